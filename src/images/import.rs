//! Creates images from a root file system archive, from the output of `docker save` or `skopeo copy`, from an OCI
//! layout, or from a directory. A failed or cancelled import leaves nothing behind.

use std::fs::{File, Permissions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Instant;

use super::compression::{StreamObserver, read_ahead};
use super::layers::{self, LayeredImage};
use super::record::ImageSource;
use super::report::{ImportProgress, ImportSpec, ImportedImage, ProgressFn};
use super::rules::IMAGE;
use super::staging::Staging;
use super::writer::TreeWriter;
use super::{Images, archive, clean, pack};
use crate::base::{At, Code, Error, Result, limits};
use crate::proc::Cancel;
use crate::store::beneath::Root;

/// An import that is being prepared or is running.
pub(super) struct ImageImport<'a> {
    pub(super) images: &'a Images,
    pub(super) spec: &'a ImportSpec<'a>,
    pub(super) progress: ProgressFn<'a>,
    pub(super) cancel: &'a Cancel,
}

impl ImageImport<'_> {
    /// Imports a file or a directory of this host.
    pub(super) fn path(self, path: &Path) -> Result<ImportedImage> {
        let missing = |error: std::io::Error| {
            Error::new(Code::InvalidPath, format!("{} cannot be read: {error}", path.display()))
        };
        let found = std::fs::metadata(path).map_err(missing)?;
        if found.is_dir() {
            return self.folder(path);
        }
        if !found.is_file() {
            let message = format!("{} is neither a file nor a folder", path.display());
            return Err(Error::new(Code::InvalidPath, message));
        }
        let file = File::open(path).map_err(missing)?;
        self.stream(file, Some(found.len()))
    }

    /// Imports an archive from a stream.
    pub(super) fn stream(mut self, input: impl Read + Send, length: Option<u64>) -> Result<ImportedImage> {
        let staging = Staging::new(&self.images.folder)?;
        let mut writer = TreeWriter::new(&staging.root())?;
        self.unpack(input, length, "unpack", &mut writer)?;
        // Only the unpacked tree shows the kind of archive: an image archive has its parts where a system has its
        // directories.
        if !LayeredImage::are_in(&staging.root())? {
            return self.finish(staging, writer);
        }
        drop(writer);
        let parts = staging.set_aside()?;
        self.parts(staging, &parts)
    }

    fn folder(mut self, path: &Path) -> Result<ImportedImage> {
        let staging = Staging::new(&self.images.folder)?;
        if LayeredImage::are_in(path)? {
            return self.parts(staging, path);
        }
        if staging.folder().starts_with(path.canonicalize().at("open", path)?) {
            let message = format!("{} contains berth's own data", path.display());
            return Err(Error::new(Code::InvalidPath, message));
        }
        let mut writer = TreeWriter::new(&staging.root())?;
        // A directory is packed into an archive first, so that the same rules apply to it.
        let packed = pack::pipe(path, self.cancel)?;
        let unpacked = self.unpack(packed.reader, None, "copy", &mut writer);
        match (unpacked, packed.thread.finish()) {
            // If the archive is truncated, packing has failed, and the error of packing is the reason.
            (Err(error), Err(reason)) if error.message() == archive::truncated().message() => {
                return Err(reason);
            }
            (unpacked, packed) => unpacked.and(packed)?,
        }
        self.finish(staging, writer)
    }

    fn parts(self, staging: Staging, parts: &Path) -> Result<ImportedImage> {
        let parts = LayeredImage::open(parts, self.spec.reference)?;
        let mut writer = TreeWriter::new(&staging.root())?;
        layers::apply(&parts, &mut writer, self.progress, self.cancel)?;
        self.finish(staging, writer)
    }

    /// Writes every member of an archive to the tree as it arrives.
    fn unpack(
        &mut self,
        input: impl Read + Send,
        length: Option<u64>,
        step: &str,
        writer: &mut TreeWriter,
    ) -> Result<()> {
        let (progress, cancel) = (&mut *self.progress, self.cancel);
        unpack(input, length, step, writer, &mut |_| {}, progress, cancel, &mut |writer, member, content| {
            writer.put(member, content).map(drop)
        })
    }

    fn finish(self, staging: Staging, writer: TreeWriter) -> Result<ImportedImage> {
        let (mut known, left_out) = writer.finish()?;
        (self.progress)(ImportProgress { step: "list".into(), read_bytes: 0, total_bytes: None, entries: 0 });
        let path = staging.root();
        if !Root::open(&path)?.exists(SHELL)? {
            let folder = system_below(&path)?;
            staging.adopt_tree(&staging.set_aside()?.join(&folder))?;
            // The container's users must be able to enter the root directory.
            let mode = std::fs::metadata(&path).at("read", &path)?.mode() | 0o555;
            std::fs::set_permissions(&path, Permissions::from_mode(mode & 0o7777)).at("prepare", &path)?;
        }
        let root = Root::open(&path)?;
        for folder in ["usr", "etc", "var", "tmp", "root", "proc", "sys", "dev", "run"] {
            root.make_dirs(folder)?;
        }
        clean::remove_identity(&path)?;
        // A rewritten file may have the inode of a removed file, whose digest is still cached.
        for path in clean::REWRITTEN {
            if let Some(written) = root.metadata(path)? {
                known.remove(&written.ino());
            }
        }
        let (name, origin) = (self.spec.name, self.spec.origin.clone());
        let record = staging.finish(name, ImageSource::Imported, origin, &known, self.cancel)?;
        self.images.set_pointer(name, &record.id)?;
        Ok(ImportedImage { image: self.images.show(&record.id)?, left_out })
    }
}

/// Maximum number of entries at the top of an archive that are searched for a system.
const TOP_ENTRIES: usize = 1000;

/// A file that a system must have: without a shell, no command could run.
const SHELL: &str = "bin/sh";

/// Returns the only directory of a tree that is a system. Root file system archives often contain the system in
/// `rootfs/` or `root.x86_64/`, beside descriptive files.
fn system_below(path: &Path) -> Result<String> {
    let root = Root::open(path)?;
    let refused = |why: String| {
        let message = format!(
            "There is no /{SHELL} in the archive{why}; it is not the root file system of a Linux system"
        );
        Error::new(Code::InvalidImage, message)
    };
    let mut systems = Vec::new();
    // A symbolic link at the top would lead out of the tree if it were opened as a tree.
    let mut names = root.entries("", TOP_ENTRIES).unwrap_or_default();
    names.sort_unstable();
    for name in names {
        if !root.is_link(&name)? && root.is_dir(&name)? && Root::open(&path.join(&name))?.exists(SHELL)? {
            systems.push(name);
        }
    }
    match systems.pop() {
        None => Err(refused(String::new())),
        Some(system) if systems.is_empty() => Ok(system),
        Some(other) => Err(refused(format!(
            " at its top, and more than one folder has one ({}, {other}); import one of them",
            systems.join(", ")
        ))),
    }
}

/// A callback that is called for each member.
type MemberFn<'a> =
    &'a mut dyn FnMut(&mut TreeWriter, &archive::Member, &mut archive::MemberContent<'_>) -> Result<()>;

/// Unpacks one archive and reports progress.
#[expect(clippy::too_many_arguments, reason = "all of it belongs to one stream")]
pub(super) fn unpack(
    input: impl Read + Send,
    length: Option<u64>,
    step: &str,
    writer: &mut TreeWriter,
    plain: &mut (dyn FnMut(&[u8]) + Send),
    progress: ProgressFn<'_>,
    cancel: &Cancel,
    each: MemberFn<'_>,
) -> Result<()> {
    let read = std::sync::atomic::AtomicU64::new(0);
    let mut count = |bytes: &[u8]| {
        read.fetch_add(bytes.len() as u64, std::sync::atomic::Ordering::Relaxed);
    };
    let observe = StreamObserver { rules: &IMAGE, raw: &mut count, plain };
    read_ahead(input, observe, cancel, |stream| {
        let mut reported = Instant::now();
        let say = |writer: &TreeWriter, progress: ProgressFn<'_>| {
            progress(ImportProgress {
                step: step.to_owned(),
                read_bytes: read.load(std::sync::atomic::Ordering::Relaxed),
                total_bytes: length,
                entries: writer.entries,
            });
        };
        say(writer, progress);
        archive::read(stream, &IMAGE, &mut |member, content| {
            each(writer, member, content)?;
            // Holes count as if they were stored in the archive.
            super::compression::check(&IMAGE, read.load(std::sync::atomic::Ordering::Relaxed), writer.bytes)?;
            if reported.elapsed() > limits::IMAGE_TELL {
                reported = Instant::now();
                say(writer, progress);
            }
            if cancel.is_cancelled() {
                Err(Error::new(Code::Cancelled, "The operation was cancelled"))
            } else {
                Ok(())
            }
        })?;
        stream.drain()?;
        say(writer, progress);
        Ok(())
    })
}

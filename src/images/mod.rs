//! Base images: read-only trees from which container roots are created. Depends on neither workspaces nor HTTP.
//!
//! ```text
//! <data>/images/ID/root       the tree; never changed
//! <data>/images/ID/listing    its content; the listing's SHA-256 is the ID (listing.rs has the format)
//! <data>/images/ID/image.json the image's record
//! <data>/images/ID/unsynced   the boot in which the image was made; removed after a verification in a later boot
//! <data>/images/ID/holds/X    an empty file for each root and snapshot X that needs the image
//! <data>/images/names/NAME    the id that the name points to
//! <data>/images/.new-UUID     an image that is being made; .gone-UUID: an image that is being removed
//! <data>/images/.making-NAME  locked while an image of this name is made
//! <data>/images/.lock         locked briefly, while an image's directory is being locked
//! ```
//!
//! An image appears and disappears by one rename. Shared state is in the file system and protected by flock(2), which
//! works between threads and between processes: `berth image …` works on the directory itself, whether or not a server
//! is running, and a server sees its changes at once. A user of an image holds a shared lock on its directory
//! ([`Image`]); removal takes the lock exclusively. Lock order: `.making-NAME` → `.lock` → an image's directory.
//!
//! In reading order, an import: `import`, `compression`, `archive` (reads and checks the format), `rules` (limits), `writer`
//! (writes the tree), `layers` (digests of layers), `staging`; a build: `bootstrap`, `clean`; later: `listing`, `verify`,
//! `export`, `pack`. A backup uses the same reader and writer (`backup`).

mod archive;
pub mod backup;
pub mod bootstrap;
pub mod build_log;
mod build_policy;
mod clean;
mod compression;
mod export;
mod hasher;
pub mod host_image;
mod id;
mod import;
mod job_events;
mod layers;
mod listing;
pub mod mirrors;
mod pack;
mod record;
mod report;
mod rules;
mod sparse;
mod staging;
mod sums;
mod verify;
mod writer;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use self::bootstrap::bootstrap;
use self::mirrors::PackageSources;
use crate::base::ids::Distro;
use crate::base::{At, Code, Error, Result, limits};
use crate::events::Topic;
use crate::proc::boot_id;
use crate::proc::{Cancel, Cgroups};
use crate::store::{file, tree};

pub use build_log::BuildLog;
pub use build_policy::Pull;
pub use export::Compression;
pub use id::{ImageId, ImageName};
pub use record::{ImageRecord, ImageSource, ImageView};
pub use report::{ImportProgress, ImportSpec, ImportedImage, ProgressFn};
use staging::Staging;
pub use verify::Verified;
pub use writer::LeftOut;

/// How long a removal waits for a reader that is about to end: a child holds the server's descriptors until its
/// execve(2).
const IMAGE_LET_GO: Duration = Duration::from_secs(2);
/// How often to check whether another process has finished an image; file locks cannot be waited for together with a
/// cancellation.
const IMAGE_LOOK: Duration = Duration::from_millis(50);

/// The image store.
#[derive(Debug)]
pub struct Images {
    folder: PathBuf,
    sources: PackageSources,
    cgroups: Cgroups,
    events: Option<Arc<Topic>>,
}

/// An image in use. It cannot be removed while this value exists. [`Images::hold`] keeps an image beyond the end of a
/// process.
#[derive(Debug)]
pub struct Image {
    pub id: ImageId,
    /// The image's tree, which is read-only.
    pub root: PathBuf,
    _shared: File,
}

impl Images {
    /// Opens the store in `folder`, removes the remains of crashes, and converts images of older versions.
    ///
    /// # Errors
    /// When the directory cannot be created or cleaned.
    pub fn open(folder: &Path, sources: PackageSources, cgroups: Cgroups) -> Result<Images> {
        file::own_dir_private(folder)?;
        file::create_dir_private(&folder.join("names"))?;
        file::sweep_temps(&folder.join("names"))?;
        let images = Images { folder: folder.to_owned(), sources, cgroups, events: None };
        images.sweep()?;
        images.adopt_old_images()?;
        Ok(images)
    }

    /// Returns the image of a distribution, and builds it if needed. Concurrent calls build it only once, even from two
    /// processes.
    ///
    /// # Errors
    /// `BuildFailed` or `Cancelled`; `ImageNotFound` when the image does not exist and `pull` forbids building.
    pub fn base(&self, distro: Distro, pull: Pull, log: &mut BuildLog, cancel: &Cancel) -> Result<Image> {
        let name = ImageName::of(distro);
        if distro == Distro::Host {
            let _turn = self.lock_name(&name, log, cancel)?;
            let made = self.run_job("build", &name, &mut |_| {}, |_| self.make_host_image(&name, cancel))?;
            return self.get(&made.record.id);
        }
        let present = |images: &Images| if pull == Pull::Always { Ok(None) } else { images.by_name(&name) };
        if let Some(image) = present(self)? {
            return Ok(image);
        }
        if pull == Pull::Never {
            return Err(build_policy::no_image(distro));
        }
        let _turn = self.lock_name(&name, log, cancel)?;
        // Another process may have created the image while this one waited.
        if let Some(image) = present(self)? {
            return Ok(image);
        }
        log.note(format!("Building the base image of {distro}; this takes a minute, once"));
        let made = self.run_job("build", &name, &mut |_| {}, |_| self.build(distro, &name, log, cancel))?;
        let image = self.get(&made.record.id)?;
        log.note(format!("The base image is ready: {}", image.id.short()));
        Ok(image)
    }

    /// Does the same as [`Images::base`], for a caller that needs no log.
    ///
    /// # Errors
    /// The same as for [`Images::base`].
    pub fn build_now(&self, distro: Distro, pull: Pull, cancel: &Cancel) -> Result<ImageView> {
        let mut log = BuildLog::to_file(verify::tempfile(&self.folder)?);
        self.show(&self.base(distro, pull, &mut log, cancel)?.id)
    }

    fn build(
        &self,
        distro: Distro,
        name: &ImageName,
        log: &mut BuildLog,
        cancel: &Cancel,
    ) -> Result<ImageView> {
        let staging = Staging::new(&self.folder)?;
        let root = staging.root();
        let group = self.cgroups.group(&format!("builds/{}", uuid::Uuid::new_v4()))?;
        bootstrap(distro, &root, &self.sources, group, log, cancel)?;
        clean::remove_identity(&root)?;
        clean::remove_caches(&root)?;
        let origin = format!("the bootstrap of {distro}");
        let id = staging.finish(name, ImageSource::Built, origin, &listing::KnownDigests::new(), cancel)?.id;
        self.set_pointer(name, &id)?;
        self.show(&id)
    }

    /// Returns the image with this ID.
    ///
    /// # Errors
    /// `ImageNotFound` when no image has this ID.
    pub fn get(&self, id: &ImageId) -> Result<Image> {
        let folder = self.folder.join(id.as_str());
        let opened = File::open(&folder);
        let shared = opened.ok().filter(|opened| {
            flock(opened, FlockOperation::NonBlockingLockShared).is_ok()
                // The image may have been removed before it was locked.
                && same(opened, &folder)
        });
        let shared = shared.ok_or_else(|| id::not_found(id.as_str()))?;
        let image = Image { id: id.clone(), root: folder.join("root"), _shared: shared };
        self.check_after_reboot(&image)?;
        Ok(image)
    }

    /// Verifies an image that was created before the current boot, because the host may have gone down before all files
    /// were on disk. A damaged image is discarded.
    fn check_after_reboot(&self, image: &Image) -> Result<()> {
        let note = image.root.with_file_name(UNSYNCED);
        let Some(boot) = file::read_optional(&note, 4096)? else { return Ok(()) };
        if boot == boot_id().as_bytes() {
            return Ok(());
        }
        let found = self.compare(image, &Cancel::new()?)?;
        if !found.ok {
            log::error!(
                "The image {} was damaged when the host went down: {:?}",
                image.id.short(),
                found.differences
            );
            let gone = format!("{GONE}{}", uuid::Uuid::new_v4());
            let folder = self.folder.join(image.id.as_str());
            // Existing users keep the damaged image; new users do not find it.
            std::fs::rename(&folder, self.folder.join(gone)).at("remove", &folder)?;
            return Err(id::not_found(image.id.as_str()));
        }
        match std::fs::remove_file(&note) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            done => done.at("remove", &note),
        }
    }

    /// Returns the image that a name points to, if there is one.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn by_name(&self, name: &ImageName) -> Result<Option<Image>> {
        let Some(id) = self.read_pointer(name)? else { return Ok(None) };
        match self.get(&id) {
            Err(error) if error.code() == Code::ImageNotFound => Ok(None),
            image => image.map(Some),
        }
    }

    /// Finds an image by its name, by its ID, or by at least the first six digits of its ID.
    ///
    /// # Errors
    /// `ImageNotFound`, also for an ambiguous prefix.
    pub fn find(&self, wanted: &str) -> Result<Image> {
        if let Ok(name) = ImageName::parse(wanted) {
            if let Some(image) = self.by_name(&name)? {
                return Ok(image);
            }
        }
        if wanted.len() >= 6 && wanted.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let mut fitting = self.ids()?.into_iter().filter(|id| id.as_str().starts_with(wanted));
            match (fitting.next(), fitting.next()) {
                (Some(id), None) => return self.get(&id),
                (Some(_), Some(_)) => {
                    let message = format!("Several images begin with '{wanted}'; give more digits");
                    return Err(Error::new(Code::ImageNotFound, message));
                }
                (None, _) => {}
            }
        }
        Err(id::not_found(wanted))
    }

    /// Keeps the image as long as `holder` needs it; `holder` becomes a file name. Calling this again has no effect.
    ///
    /// # Errors
    /// `DiskFull` or `Internal`.
    pub fn hold(&self, image: &Image, holder: &str) -> Result<()> {
        let holds = self.holds(&image.id);
        file::create_dir_private(&holds)?;
        file::write_atomic(&holds.join(check_holder(holder)?), b"", 0o600)
    }

    /// Releases a hold. Does nothing if the image is not held.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn release(&self, id: &ImageId, holder: &str) -> Result<()> {
        let path = self.holds(id).join(check_holder(holder)?);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            done => done.at("remove", &path),
        }
    }

    /// Releases the holds of all holders that no longer exist. Call this only at the start, while no other thread
    /// creates holders.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn retain_holders(&self, exists: impl Fn(&str) -> bool) -> Result<()> {
        for id in self.ids()? {
            for holder in self.holders(&id)? {
                if !exists(&holder) {
                    self.release(&id, &holder)?;
                }
            }
        }
        Ok(())
    }

    /// Returns all images, sorted by name and age.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn list(&self) -> Result<Vec<ImageView>> {
        let mut all = Vec::new();
        for id in self.ids()? {
            match self.show(&id) {
                Ok(shown) => all.push(shown),
                Err(error) if error.code() == Code::ImageNotFound => {}
                Err(error) => log::warn!("Image {}: {error}", id.short()),
            }
        }
        all.sort_unstable_by(|a, b| {
            (&a.record.name, &a.record.created_at).cmp(&(&b.record.name, &b.record.created_at))
        });
        Ok(all)
    }

    /// Returns one image as clients see it.
    ///
    /// # Errors
    /// `ImageNotFound` when no image has this ID.
    pub fn show(&self, id: &ImageId) -> Result<ImageView> {
        let record =
            ImageRecord::read(&self.folder.join(id.as_str()))?.ok_or_else(|| id::not_found(id.as_str()))?;
        let mut names = Vec::new();
        for name in self.names()? {
            if self.read_pointer(&name)?.as_ref() == Some(id) {
                names.push(name);
            }
        }
        Ok(ImageView { record, names, held_by: self.holders(id)? })
    }

    /// Removes an image and the names that point to it.
    ///
    /// # Errors
    /// `ImageNotFound`; `ImageInUse` with `details.held_by` when a workspace or a snapshot needs the image.
    pub fn remove(&self, id: &ImageId) -> Result<()> {
        let folder = self.folder.join(id.as_str());
        let opened = File::open(&folder).map_err(|_| id::not_found(id.as_str()))?;
        let in_use = || {
            let holders = self.holders(id).unwrap_or_default();
            let who = match holders.len() {
                0 => "is being read; try again when that has ended".to_owned(),
                1 => "is needed by a workspace or snapshot; delete that first".to_owned(),
                n => format!("is needed by {n} workspaces or snapshots; delete them first"),
            };
            Error::new(Code::ImageInUse, format!("The image {} {who}", id.short())).detail("held_by", holders)
        };
        if !lock_within(&opened, IMAGE_LET_GO)? || !self.holders(id)?.is_empty() {
            return Err(in_use());
        }
        if !same(&opened, &folder) {
            return Err(id::not_found(id.as_str()));
        }
        let gone = format!("{GONE}{}", uuid::Uuid::new_v4());
        std::fs::rename(&folder, self.folder.join(&gone)).at("remove", &folder)?;
        for name in self.names()? {
            if self.read_pointer(&name)?.as_ref() == Some(id) {
                let path = self.folder.join("names").join(name.as_str());
                std::fs::remove_file(&path).at("remove", &path)?;
            }
        }
        self.publish_removed(id);
        tree::remove_tree(&self.folder, &gone)
    }

    /// Returns whether roots that are created from the image use the host's own programs.
    ///
    /// # Errors
    /// When the image's record cannot be read.
    pub fn is_host_image(&self, id: &ImageId) -> Result<bool> {
        let record = ImageRecord::read(&self.folder.join(id.as_str()))?;
        Ok(record.is_some_and(|record| record.source == ImageSource::Host))
    }

    /// Returns the path of an image's files.
    pub fn root_of(&self, id: &ImageId) -> PathBuf {
        self.folder.join(id.as_str()).join("root")
    }

    fn holds(&self, id: &ImageId) -> PathBuf {
        self.folder.join(id.as_str()).join("holds")
    }

    fn holders(&self, id: &ImageId) -> Result<Vec<String>> {
        let mut holders = names_in(&self.holds(id))?;
        holders.retain(|name| check_holder(name).is_ok());
        Ok(holders)
    }

    fn ids(&self) -> Result<Vec<ImageId>> {
        Ok(names_in(&self.folder)?.iter().filter_map(|name| ImageId::parse(name).ok()).collect())
    }

    fn names(&self) -> Result<Vec<ImageName>> {
        let names = names_in(&self.folder.join("names"))?;
        Ok(names.iter().filter_map(|name| ImageName::parse(name).ok()).collect())
    }

    fn read_pointer(&self, name: &ImageName) -> Result<Option<ImageId>> {
        let path = self.folder.join("names").join(name.as_str());
        let bytes = file::read_optional(&path, 4096)?;
        Ok(bytes.and_then(|bytes| ImageId::parse(std::str::from_utf8(&bytes).ok()?.trim()).ok()))
    }

    /// Makes a name point to this image.
    ///
    /// # Errors
    /// `DiskFull` or `Internal`.
    pub fn set_pointer(&self, name: &ImageName, id: &ImageId) -> Result<()> {
        let path = self.folder.join("names").join(name.as_str());
        file::write_atomic(&path, format!("{id}\n").as_bytes(), 0o600)
    }

    /// Waits until no other process creates an image with this name, and takes the name's lock.
    fn lock_name(&self, name: &ImageName, log: &mut BuildLog, cancel: &Cancel) -> Result<File> {
        let path = self.folder.join(format!("{MAKING}{name}"));
        let mut file = lock_file(&path)?;
        let deadline = Instant::now() + self.sources.deadline + limits::COPY_TIMEOUT;
        let mut said = false;
        // A sweep may have removed the file after it was opened.
        while !(try_lock(&file).at("lock", &path)? && same(&file, &path)) {
            if !same(&file, &path) {
                file = lock_file(&path)?;
                continue;
            }
            if !said {
                log.note(format!("An image of {name} is being made already; waiting for it"));
                said = true;
            }
            if cancel.is_cancelled() {
                return Err(Error::new(Code::Cancelled, "The operation was cancelled"));
            }
            if Instant::now() > deadline {
                return Err(Error::new(
                    Code::BuildFailed,
                    format!("Another build of the image {name} does not finish"),
                ));
            }
            std::thread::sleep(IMAGE_LOOK);
        }
        Ok(file)
    }

    /// Removes the remains of crashes: all incomplete or partly removed entries on which no process is working.
    fn sweep(&self) -> Result<()> {
        let _moment = lock_store(&self.folder)?;
        for name in names_in(&self.folder)? {
            let path = self.folder.join(&name);
            if name.starts_with(NEW) || name.starts_with(GONE) {
                let idle = match File::open(&path) {
                    Ok(opened) => try_lock(&opened).at("lock", &path)?,
                    Err(_) => true,
                };
                if idle {
                    tree::remove_tree(&self.folder, &name)?;
                }
            } else if name.starts_with(MAKING) {
                // Unused lock files would accumulate, so they are removed; a file whose lock is held stays.
                let file = lock_file(&path)?;
                if try_lock(&file).at("lock", &path)? {
                    std::fs::remove_file(&path).at("remove", &path)?;
                }
            }
        }
        Ok(())
    }

    /// Converts images of older versions, which were one directory per distribution.
    fn adopt_old_images(&self) -> Result<()> {
        for distro in Distro::ALL {
            let old = self.folder.join(distro.as_str());
            if !old.is_dir() {
                continue;
            }
            log::info!("Converting the image of {distro} from an older version");
            let name = ImageName::of(distro);
            let path = self.folder.join(format!("{MAKING}{name}"));
            let turn = lock_file(&path)?;
            if !try_lock(&turn).at("lock", &path)? || !old.is_dir() {
                // Another process is converting this image.
                continue;
            }
            let staging = Staging::new(&self.folder)?;
            staging.adopt_tree(&old)?;
            let root = staging.root();
            clean::remove_identity(&root)?;
            clean::remove_caches(&root)?;
            let origin = format!("the bootstrap of {distro}, by an older version");
            let known = listing::KnownDigests::new();
            let id = staging.finish(&name, ImageSource::Built, origin, &known, &Cancel::new()?)?.id;
            self.set_pointer(&name, &id)?;
            std::fs::remove_file(&path).at("remove", &path)?;
        }
        Ok(())
    }
}

/// Prefix of the names of images that are being created.
const NEW: &str = ".new-";
/// Prefix of the names of images that are being removed.
const GONE: &str = ".gone-";
/// Prefix of the names of lock files for image names.
const MAKING: &str = ".making-";

/// The file in an image's directory that contains the ID of the boot in which the image was created. The file is
/// removed once the image has been verified after a later boot.
const UNSYNCED: &str = "unsynced";

/// Checks the name of a holder: it becomes a file name, so it must be a plain ID.
fn check_holder(holder: &str) -> Result<&str> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if holder.is_empty() || holder.len() > 200 || !holder.bytes().all(fits) {
        return Err(Error::internal(format!("{holder:?} cannot hold an image")));
    }
    Ok(holder)
}

/// Returns the names in a directory, sorted; the list is empty if the directory does not exist.
fn names_in(folder: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.at("list", folder)?,
    };
    let mut names: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    Ok(names)
}

/// Returns whether `opened` is still the file at `path`.
fn same(opened: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (opened.metadata(), path.symlink_metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// Takes an exclusive lock. Returns `false` if another process holds the lock.
fn try_lock(file: &File) -> std::io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn lock_within(file: &File, within: Duration) -> Result<bool> {
    let deadline = Instant::now() + within;
    loop {
        let locked = try_lock(file).at("lock", "an image")?;
        if locked || Instant::now() > deadline {
            return Ok(locked);
        }
        std::thread::sleep(IMAGE_LOOK);
    }
}

fn lock_file(path: &Path) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path).at("open", path)
}

/// Takes the lock of the store, under which an image's directory is locked. A thread must never wait while it holds
/// this lock.
fn lock_store(folder: &Path) -> Result<File> {
    let path = folder.join(".lock");
    let file = lock_file(&path)?;
    flock(&file, FlockOperation::LockExclusive).at("lock", &path)?;
    Ok(file)
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;

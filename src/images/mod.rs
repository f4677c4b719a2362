//! Base images: read-only trees from which roots of containers are made. Knows neither workspaces nor HTTP.
//!
//! ```text
//! <data>/images/ID/root       the tree; nobody writes into it
//! <data>/images/ID/listing    what is in it; the listing's SHA-256 is the id (listing.rs has the format)
//! <data>/images/ID/image.json where it came from
//! <data>/images/ID/unsynced   in which boot it was made, until another one has found it whole
//! <data>/images/ID/holds/X    X needs it: an empty file for each root and snapshot that lives on it
//! <data>/images/names/NAME    the id that the name points to
//! <data>/images/.new-UUID     one that is being made, .gone-UUID one that is being removed
//! <data>/images/.making-NAME  locked while an image of this name is made
//! <data>/images/.lock         locked for moments, while a folder gets its lock
//! ```
//!
//! An image appears and disappears by one rename. All that several must agree on is in the file system and guarded by
//! flock(2), which holds between threads as well as between processes: so `berth image …` works on the folder itself,
//! whether a server runs or not, and a server sees at once what it did. Whoever reads an image holds its folder's lock
//! shared ([`Image`]); removal takes it exclusively. Lock order: `.making-NAME` → `.lock` → an image's folder.

mod archive;
pub mod backup;
pub mod bootstrap;
pub mod build_log;
mod clean;
mod compression;
mod export;
mod hasher;
pub mod host_image;
mod id;
mod import;
mod job;
mod layers;
mod listing;
pub mod mirrors;
mod pack;
mod pull;
mod record;
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
pub use export::Compression;
pub use id::{ImageId, ImageName};
pub use import::{ImportProgress, ImportSpec, ImportedImage, ProgressFn};
pub use pull::Pull;
pub use record::{ImageRecord, ImageSource, ImageView};
use staging::Staging;
pub use verify::Verified;
pub use writer::LeftOut;

/// The image store.
#[derive(Debug)]
pub struct Images {
    folder: PathBuf,
    sources: PackageSources,
    cgroups: Cgroups,
    events: Option<Arc<Topic>>,
}

/// An image in use: it cannot be removed while this lives. For longer than a process there is [`Images::hold`].
#[derive(Debug)]
pub struct Image {
    /// What it is.
    pub id: ImageId,
    /// Its tree; read-only.
    pub root: PathBuf,
    _shared: File,
}

impl Images {
    /// Opens the store in `folder`, removes what a crash left half-made, and takes over images of older versions.
    ///
    /// # Errors
    /// When the folder cannot be made or cleaned.
    pub fn open(folder: &Path, sources: PackageSources, cgroups: Cgroups) -> Result<Images> {
        file::own_dir_private(folder)?;
        file::create_dir_private(&folder.join("names"))?;
        file::sweep_temps(&folder.join("names"))?;
        let images = Images { folder: folder.to_owned(), sources, cgroups, events: None };
        images.sweep()?;
        images.adopt_old_images()?;
        Ok(images)
    }

    /// The image of a distribution. Two calls at once, also of two processes, make it once.
    ///
    /// # Errors
    /// `BuildFailed` or `Cancelled`; `ImageNotFound` when there is none and none may be made.
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
            return Err(pull::no_image(distro));
        }
        let _turn = self.lock_name(&name, log, cancel)?;
        // Another may have made it while we waited.
        if let Some(image) = present(self)? {
            return Ok(image);
        }
        log.note(format!("Building the base image of {distro}; this takes a minute, once"));
        let made = self.run_job("build", &name, &mut |_| {}, |_| self.build(distro, &name, log, cancel))?;
        let image = self.get(&made.record.id)?;
        log.note(format!("The base image is ready: {}", image.id.short()));
        Ok(image)
    }

    /// The same for a caller that wants the image and no log.
    ///
    /// # Errors
    /// As [`Images::base`].
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

    /// The image with this id.
    ///
    /// # Errors
    /// `ImageNotFound`.
    pub fn get(&self, id: &ImageId) -> Result<Image> {
        let folder = self.folder.join(id.as_str());
        let opened = File::open(&folder);
        let shared = opened.ok().filter(|opened| {
            flock(opened, FlockOperation::NonBlockingLockShared).is_ok()
                // It may have been removed between the two.
                && same(opened, &folder)
        });
        let shared = shared.ok_or_else(|| id::not_found(id.as_str()))?;
        let image = Image { id: id.clone(), root: folder.join("root"), _shared: shared };
        self.check_after_reboot(&image)?;
        Ok(image)
    }

    /// An image of an earlier boot of the machine, which may have ended before everything was on disk, is verified before
    /// its first use, and given up if it is not whole.
    fn check_after_reboot(&self, image: &Image) -> Result<()> {
        let note = image.root.with_file_name(UNSYNCED);
        let Some(boot) = file::read_optional(&note, 4096)? else { return Ok(()) };
        if boot == boot_id().as_bytes() {
            return Ok(());
        }
        let found = self.compare(image, &Cancel::new()?)?;
        if !found.ok {
            log::error!(
                "The image {} was damaged as the machine went down: {:?}",
                image.id.short(),
                found.differences
            );
            let gone = format!("{GONE}{}", uuid::Uuid::new_v4());
            let folder = self.folder.join(image.id.as_str());
            // Whoever needs it has the damaged one already; for all others there is none any more.
            std::fs::rename(&folder, self.folder.join(gone)).at("remove", &folder)?;
            return Err(id::not_found(image.id.as_str()));
        }
        match std::fs::remove_file(&note) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            done => done.at("remove", &note),
        }
    }

    /// The image that a name points to, if there is one.
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

    /// The image that somebody means: a name, an id, or the first digits of one, at least six.
    ///
    /// # Errors
    /// `ImageNotFound`, also for digits with which several begin.
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

    /// Has the image stay for as long as `holder` needs it, which is the name of a file. Once is as good as twice.
    ///
    /// # Errors
    /// `DiskFull` or `Internal`.
    pub fn hold(&self, image: &Image, holder: &str) -> Result<()> {
        let holds = self.holds(&image.id);
        file::create_dir_private(&holds)?;
        file::write_atomic(&holds.join(check_holder(holder)?), b"", 0o600)
    }

    /// Lets go of it; also of one that is not held.
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

    /// Lets go of everything whose holder does not exist any more. Only for the start, while nothing is being made.
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

    /// All images, by name and age.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn list(&self) -> Result<Vec<ImageView>> {
        let mut all = Vec::new();
        for id in self.ids()? {
            match self.show(&id) {
                Ok(shown) => all.push(shown),
                Err(error) if error.code() == Code::ImageNotFound => {}
                Err(error) => log::warn!("image {}: {error}", id.short()),
            }
        }
        all.sort_unstable_by(|a, b| {
            (&a.record.name, &a.record.created_at).cmp(&(&b.record.name, &b.record.created_at))
        });
        Ok(all)
    }

    /// One image as clients see it.
    ///
    /// # Errors
    /// `ImageNotFound`.
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
    /// `ImageNotFound`; `ImageInUse` with `details.held_by` when somebody needs it.
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
        if !lock_within(&opened, limits::IMAGE_LET_GO)? || !self.holders(id)?.is_empty() {
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

    /// Whether what is made from the image sees this machine's own programs.
    ///
    /// # Errors
    /// When its record cannot be read.
    pub fn is_host_image(&self, id: &ImageId) -> Result<bool> {
        let record = ImageRecord::read(&self.folder.join(id.as_str()))?;
        Ok(record.is_some_and(|record| record.source == ImageSource::Host))
    }

    /// Where the files of an image lie.
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

    /// Has a name point to this image.
    ///
    /// # Errors
    /// `DiskFull` or `Internal`.
    pub fn set_pointer(&self, name: &ImageName, id: &ImageId) -> Result<()> {
        let path = self.folder.join("names").join(name.as_str());
        file::write_atomic(&path, format!("{id}\n").as_bytes(), 0o600)
    }

    /// Waits until nobody else makes an image of this name.
    fn lock_name(&self, name: &ImageName, log: &mut BuildLog, cancel: &Cancel) -> Result<File> {
        let path = self.folder.join(format!("{MAKING}{name}"));
        let mut file = lock_file(&path)?;
        let deadline = Instant::now() + self.sources.deadline + limits::COPY_TIMEOUT;
        let mut said = false;
        // A sweep may have removed the file between the two.
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
                return Err(Error::new(Code::Cancelled, "It was cancelled"));
            }
            if Instant::now() > deadline {
                return Err(Error::new(
                    Code::BuildFailed,
                    format!("Another build of the image {name} does not end"),
                ));
            }
            std::thread::sleep(limits::IMAGE_LOOK);
        }
        Ok(file)
    }

    /// Removes what crashes left: everything half-made or half-removed that no process works on.
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
                // Names that are not used any more would pile up; a lock that is held stays.
                let file = lock_file(&path)?;
                if try_lock(&file).at("lock", &path)? {
                    std::fs::remove_file(&path).at("remove", &path)?;
                }
            }
        }
        Ok(())
    }

    /// Takes over what older versions have made: one folder a distribution, the tree itself.
    fn adopt_old_images(&self) -> Result<()> {
        for distro in Distro::ALL {
            let old = self.folder.join(distro.as_str());
            if !old.is_dir() {
                continue;
            }
            log::info!("Taking over the image of {distro} from an older version");
            let name = ImageName::of(distro);
            let path = self.folder.join(format!("{MAKING}{name}"));
            let turn = lock_file(&path)?;
            if !try_lock(&turn).at("lock", &path)? || !old.is_dir() {
                // Another process takes it over.
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

/// Half-made images begin with this, …
const NEW: &str = ".new-";
/// … half-removed ones with this, …
const GONE: &str = ".gone-";
/// … and locks of names with this.
const MAKING: &str = ".making-";

/// Stands in an image's folder with the id of the boot in which it was made, until another boot has found it whole.
const UNSYNCED: &str = "unsynced";

/// A holder is an id: its file may lie nowhere else.
fn check_holder(holder: &str) -> Result<&str> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if holder.is_empty() || holder.len() > 200 || !holder.bytes().all(fits) {
        return Err(Error::internal(format!("{holder:?} cannot hold an image")));
    }
    Ok(holder)
}

/// The names in a folder, sorted; none if it does not exist.
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

/// Whether `opened` still is what has this path.
fn same(opened: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (opened.metadata(), path.symlink_metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// Takes a lock exclusively; `false` when somebody has it.
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
        std::thread::sleep(limits::IMAGE_LOOK);
    }
}

fn lock_file(path: &Path) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path).at("open", path)
}

/// The lock under which folders get theirs. Whoever has it does nothing that waits.
fn lock_store(folder: &Path) -> Result<File> {
    let path = folder.join(".lock");
    let file = lock_file(&path)?;
    flock(&file, FlockOperation::LockExclusive).at("lock", &path)?;
    Ok(file)
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;

//! An image that is being created: a directory that is locked during the work, and removed unless the image was
//! finished.

use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::id::ImageName;
use super::listing::{self, KnownDigests, SpecialFiles};
use super::record::{ImageRecord, ImageSource, os_release};
use super::{NEW, UNSYNCED, lock_store, try_lock};
use crate::base::{At, Error, Result, clock};
use crate::proc::Cancel;
use crate::proc::boot_id;
use crate::store::beneath::Root;
use crate::store::{file, tree};

pub(super) struct Staging {
    images: PathBuf,
    name: String,
    _locked: File,
}

impl Staging {
    /// Creates the directory with an empty tree.
    ///
    /// # Errors
    /// When the disk is full or not writable.
    pub(super) fn new(images: &Path) -> Result<Staging> {
        let name = format!("{NEW}{}", uuid::Uuid::new_v4());
        let path = images.join(&name);
        // Without this lock, a sweep between the creation and the locking of the directory would remove it.
        let _moment = lock_store(images)?;
        file::create_dir_private(&path)?;
        let locked = File::open(&path).at("open", &path)?;
        if !try_lock(&locked).at("lock", &path)? {
            return Err(Error::internal(format!("{} is locked by another process", path.display())));
        }
        let staging = Staging { images: images.to_owned(), name, _locked: locked };
        make_root(&staging.root())?;
        Ok(staging)
    }

    pub(super) fn folder(&self) -> PathBuf {
        self.images.join(&self.name)
    }

    pub(super) fn root(&self) -> PathBuf {
        self.folder().join("root")
    }

    /// Makes an existing directory of the same file system the image's tree.
    pub(super) fn adopt_tree(&self, folder: &Path) -> Result<()> {
        std::fs::remove_dir(self.root()).at("replace", self.root())?;
        std::fs::rename(folder, self.root()).at("move", folder)
    }

    /// Moves the tree aside, so that a new tree can be created from its parts.
    pub(super) fn set_aside(&self) -> Result<PathBuf> {
        let parts = self.folder().join("parts");
        if parts.exists() {
            // Remove layers that are already part of the tree.
            tree::remove_tree(&self.folder(), "parts")?;
        }
        std::fs::rename(self.root(), &parts).at("move", self.root())?;
        make_root(&self.root())?;
        Ok(parts)
    }

    /// Turns the tree into an image: lists the tree and moves it into place. If an image with the same content exists,
    /// returns that image instead.
    ///
    /// # Errors
    /// `Cancelled`, `InvalidImage`, `DiskFull` or `Internal`; the tree is removed in all these cases.
    pub(super) fn finish(
        self,
        name: &ImageName,
        source: ImageSource,
        origin: String,
        known: &KnownDigests,
        cancel: &Cancel,
    ) -> Result<ImageRecord> {
        let folder = self.folder();
        if folder.join("parts").exists() {
            tree::remove_tree(&folder, "parts")?;
        }
        let path = folder.join("listing");
        let mut out = File::create_new(&path).at("write", &path)?;
        let totals = listing::write(&self.root(), known, SpecialFiles::Remove, &mut out, cancel)?;
        let record = ImageRecord {
            id: totals.id,
            name: name.clone(),
            source,
            origin,
            os: os_release(&Root::open(&self.root())?, "PRETTY_NAME"),
            created_at: clock::now_rfc3339(),
            entries: totals.entries,
            size_bytes: totals.bytes,
        };
        // Syncing to disk can take longer than everything else, especially while others write. Therefore the current
        // boot is recorded instead: in another boot the image is verified before its first use.
        file::replace(&folder.join(UNSYNCED), boot_id().as_bytes(), 0o600)?;
        record.write(&folder)?;
        let place = self.images.join(record.id.as_str());
        match std::fs::rename(&folder, &place) {
            Ok(()) => Ok(record),
            Err(_) if place.is_dir() => Ok(ImageRecord::read(&place)?.unwrap_or(record)),
            Err(error) => Err(error).at("move", &folder),
        }
    }
}

/// Creates the root directory. The container's users must be able to enter it; the directory above is private.
fn make_root(root: &Path) -> Result<()> {
    std::fs::create_dir(root).at("make", root)?;
    std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o755)).at("prepare", root)
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(left) = tree::remove_tree(&self.images, &self.name) {
            log::warn!("An incomplete image remains until the next start: {left}");
        }
    }
}

//! The directory that holds a root: the workspace's own directory in the data directory, or the directory that the
//! workspace's owner named as `path`. A root contains set-user-ID programs, which on disk belong to the host's
//! root.
//!
//! **Invariant:** no other user of the host can enter the directory above a root. The data directory's `workspaces` has
//! mode 0700. A directory that the owner named is created with mode 0700 by the server, belongs to the server's user,
//! and contains the root as `root` beside the root's copies. The file [`MARKER`] in it names its workspace.
//!
//! A directory on the path to the owner's `path` may belong to another user, who can replace its entries at any time.
//! Therefore the directory is opened once, checked through its descriptor, and all its content is accessed through that
//! descriptor. No locks.

use std::fs::{DirBuilder, File};
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, fchmod, fstat, openat};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::make::remove_folder;
use super::record::RootRecord;
use super::record::holder;
use super::{RootLocation, Roots};
use crate::base::{At, Code, Error, Result};
use crate::store::beneath::dir_entries;
use crate::store::file;

/// Name of the root in the directory that holds it.
const ROOT: &str = "root";
/// Name of a copy that will replace the root.
const STAGING: &str = ".berth-new-root";
/// Name of the file that contains the workspace's ID.
const MARKER: &str = ".berth-workspace";
/// Permission bits of all users but the owner.
const OTHERS: u32 = 0o077;

/// The opened directory that holds a root.
pub(super) struct RootHome {
    base: PathBuf,
    /// Keeps `base` valid if that path leads through this descriptor.
    _folder: Option<OwnedFd>,
}

impl RootHome {
    pub(super) fn root(&self) -> PathBuf {
        self.base.join(ROOT)
    }

    pub(super) fn staging(&self) -> PathBuf {
        self.base.join(STAGING)
    }
}

impl RootLocation {
    /// Returns the path at which a container's start mounts or finds the root.
    pub fn attached(&self) -> PathBuf {
        self.folder.join(ROOT)
    }

    /// Opens the directory that holds the root; returns `None` if it does not exist or is empty.
    ///
    /// # Errors
    /// `Conflict` when the directory at the owner's path was not created by the server.
    pub(super) fn home(&self) -> Result<Option<RootHome>> {
        if self.is_own() {
            return Ok(Some(RootHome { base: self.folder.clone(), _folder: None }));
        }
        let Some(folder) = open(&self.root)? else { return Ok(None) };
        match read_marker(&folder)? {
            Some(id) if id == holder(&self.folder) => self.make_private(folder).map(Some),
            None if is_empty(&folder)? => Ok(None),
            _ => Err(self.foreign_folder_error()),
        }
    }

    /// Opens the directory that holds an existing root.
    ///
    /// # Errors
    /// The errors of [`RootLocation::home`]; `NotFound` when the directory does not exist.
    pub(super) fn existing_home(&self) -> Result<RootHome> {
        self.home()?.ok_or_else(|| {
            let message = format!("{} was removed; build the workspace again", self.root.display());
            Error::new(Code::NotFound, message)
        })
    }

    /// Opens the directory that holds the root, creating it if needed.
    ///
    /// # Errors
    /// The errors of [`RootLocation::home`]; an I/O error when the directory cannot be created.
    pub(super) fn make_home(&self) -> Result<RootHome> {
        match self.home()? {
            Some(home) => Ok(home),
            None => {
                if let Some(above) = self.root.parent() {
                    file::create_dir_private(above)?;
                }
                make_folder(&self.root)?;
                let folder = open(&self.root)?.ok_or_else(|| self.foreign_folder_error())?;
                let home = self.make_private(folder)?;
                self.write_marker(&home.base)?;
                Ok(home)
            }
        }
    }

    /// Removes the directory that the owner named, with the root. A directory that the server did not create is
    /// kept.
    ///
    /// # Errors
    /// When an entry cannot be removed.
    fn remove_home(&self) -> Result<()> {
        let home = match self.home() {
            Ok(home) => home,
            Err(error) => {
                log::warn!("{error}; it is kept");
                return Ok(());
            }
        };
        if let Some(home) = home {
            remove_folder(&home.staging())?;
            remove_folder(&home.root())?;
            let mark = home.base.join(MARKER);
            std::fs::remove_file(&mark).at("remove", &mark)?;
        }
        // The directory stays if it has other entries, which do not belong to the server.
        let _ = std::fs::remove_dir(&self.root);
        Ok(())
    }

    /// Checks that a directory belongs to the server's user, and removes the permissions of other users.
    fn make_private(&self, folder: OwnedFd) -> Result<RootHome> {
        use std::os::fd::AsRawFd as _;
        let stat = fstat(&folder).at("look at", &self.root)?;
        if stat.st_uid != geteuid().as_raw() {
            return Err(self.foreign_folder_error());
        }
        if stat.st_mode & OTHERS != 0 {
            log::warn!("{} was accessible to other users; it is private again", self.root.display());
            fchmod(&folder, Mode::RWXU).at("close", &self.root)?;
        }
        // Child processes use the path too, so it contains the PID instead of `self`.
        let base = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), folder.as_raw_fd()));
        Ok(RootHome { base, _folder: Some(folder) })
    }

    fn write_marker(&self, base: &Path) -> Result<()> {
        file::write_atomic(&base.join(MARKER), format!("{}\n", holder(&self.folder)).as_bytes(), 0o600)
    }

    fn foreign_folder_error(&self) -> Error {
        let message = format!(
            "{} is not the folder that berth made for this workspace; move it away, or delete the workspace and make one \
             with another path",
            self.root.display()
        );
        Error::new(Code::Conflict, message)
    }
}

impl Roots {
    /// Removes the directory that the owner named for the root, with the root in it.
    ///
    /// # Errors
    /// When an entry cannot be removed.
    pub fn remove_home(&self, location: &RootLocation) -> Result<()> {
        if location.is_own() { Ok(()) } else { location.remove_home() }
    }

    /// Moves a root of an earlier version, which was the directory at the owner's path itself, into a new
    /// directory at that path. Each step is one rename; after a crash, the next start of the server continues with
    /// the next step.
    ///
    /// # Errors
    /// When the root cannot be moved; its top directory is then closed to all other users.
    pub(super) fn migrate_old_root(&self, location: &RootLocation) -> Result<()> {
        if location.is_own() {
            return Ok(());
        }
        // Remove a copy that an earlier version left incomplete.
        remove_folder(&sibling(&location.root, ".berth-new-"))?;
        let half = sibling(&location.root, ".berth-home-");
        let is_folder = |path: &Path| path.symlink_metadata().is_ok_and(|meta| meta.is_dir());
        let is_root = || {
            let looks =
                || ["usr", "etc"].iter().all(|name| location.root.join(name).symlink_metadata().is_ok());
            is_folder(&location.root)
                && (RootRecord::read(&location.folder).is_ok_and(|record| record.is_some()) || looks())
        };
        if location.home().is_ok_and(|home| home.is_some()) || !(is_folder(&half.join(ROOT)) || is_root()) {
            return Ok(());
        }
        let moved = (|| {
            make_folder(&half)?;
            let folder = open(&half)?.ok_or_else(|| location.foreign_folder_error())?;
            let home = location.make_private(folder)?;
            if !is_folder(&home.root()) {
                location.write_marker(&home.base)?;
                std::fs::rename(&location.root, home.root()).at("move", &location.root)?;
            }
            std::fs::rename(&half, &location.root).at("move", &half)
        })();
        match moved {
            Ok(()) => {
                log::info!("The files of a container are now in {}/{ROOT}", location.root.display());
                Ok(())
            }
            Err(error) => {
                let folder = open(&location.root)?;
                folder.map_or(Ok(()), |folder| fchmod(&folder, Mode::RWXU)).at("close", &location.root)?;
                Err(error)
            }
        }
    }
}

fn sibling(root: &Path, prefix: &str) -> PathBuf {
    let name = root.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    root.with_file_name(format!("{prefix}{name}"))
}

/// Creates a private directory; does nothing if it already exists.
fn make_folder(path: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        made => made.at("make", path),
    }
}

fn open(path: &Path) -> Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT) => Ok(None),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            let message = format!("{} is not a folder; move it away", path.display());
            Err(Error::new(Code::Conflict, message))
        }
        opened => opened.map(Some).at("open", path),
    }
}

/// Returns the workspace ID in the marker file; empty if another user owns the file.
fn read_marker(folder: &OwnedFd) -> Result<Option<String>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match openat(folder, MARKER, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        opened => File::from(opened.at("open", MARKER)?),
    };
    let stat = fstat(file.as_fd()).at("look at", MARKER)?;
    let mut text = String::new();
    if stat.st_uid == geteuid().as_raw() && file.metadata().is_ok_and(|meta| meta.is_file()) {
        file.take(256).read_to_string(&mut text).at("read", MARKER)?;
    }
    Ok(Some(text.trim().to_owned()))
}

fn is_empty(folder: &OwnedFd) -> Result<bool> {
    let dir = rustix::fs::Dir::read_from(folder).at("list", "a container's folder")?;
    Ok(dir_entries(dir).flatten().next().is_none())
}

//! The folder that holds a root: the workspace's own folder in the data folder, or the folder that the owner named as
//! `path`. A root contains set-user-ID programs that belong to the host's root on disk.
//!
//! **Invariant:** no other user of the host can enter the folder above a root. The data folder's `workspaces` has mode
//! 0700; a folder that the owner named is made with mode 0700 by the server, belongs to the server's user, and contains the
//! root as `root` beside the root's copies. The file [`MARK`] names the workspace that it belongs to.
//!
//! A folder on the way to the owner's `path` may belong to another user, who can replace what lies in it at any time.
//! Therefore the folder is opened once, checked through its descriptor, and everything in it is reached through that
//! descriptor. Without locks.

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
use crate::store::file;

/// The root's name in its home.
const ROOT: &str = "root";
/// A copy that is to become the root.
const STAGING: &str = ".berth-new-root";
/// Contains the workspace's id.
const MARKER: &str = ".berth-workspace";
/// Permissions of everybody but the folder's owner.
const OTHERS: u32 = 0o077;

/// An open home.
pub(super) struct RootHome {
    base: PathBuf,
    /// Keeps `base` valid, if that leads through it.
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
    /// Where a container's start finds the root: it is attached there, or it is there.
    pub fn attached(&self) -> PathBuf {
        self.folder.join(ROOT)
    }

    /// The folder that holds the root; `None`: there is none yet.
    ///
    /// # Errors
    /// `Conflict` when there is something at the owner's path that the server did not make.
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

    /// The home of a root that is there.
    ///
    /// # Errors
    /// As above; `NotFound` when there is none.
    pub(super) fn existing_home(&self) -> Result<RootHome> {
        self.home()?.ok_or_else(|| {
            let message = format!("{} is gone; build the workspace again", self.root.display());
            Error::new(Code::NotFound, message)
        })
    }

    /// Makes the home unless it is there.
    ///
    /// # Errors
    /// As above; when the folder cannot be made.
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

    /// Removes a home that the owner named, with everything in it. A folder that the server did not make stays.
    ///
    /// # Errors
    /// When something in it cannot be removed.
    fn remove_home(&self) -> Result<()> {
        let home = match self.home() {
            Ok(home) => home,
            Err(error) => {
                log::warn!("{error}; it stays");
                return Ok(());
            }
        };
        if let Some(home) = home {
            remove_folder(&home.staging())?;
            remove_folder(&home.root())?;
            let mark = home.base.join(MARKER);
            std::fs::remove_file(&mark).at("remove", &mark)?;
        }
        // What else is in it is not the server's.
        let _ = std::fs::remove_dir(&self.root);
        Ok(())
    }

    /// A folder that belongs to the server's user, closed to all others.
    fn make_private(&self, folder: OwnedFd) -> Result<RootHome> {
        use std::os::fd::AsRawFd as _;
        let stat = fstat(&folder).at("look at", &self.root)?;
        if stat.st_uid != geteuid().as_raw() {
            return Err(self.foreign_folder_error());
        }
        if stat.st_mode & OTHERS != 0 {
            log::warn!("{} could be entered by other users; it is private again", self.root.display());
            fchmod(&folder, Mode::RWXU).at("close", &self.root)?;
        }
        // Children get it too, so no `self`.
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
    /// Removes the folder that the owner named for the root.
    ///
    /// # Errors
    /// When something in it cannot be removed.
    pub fn remove_home(&self, site: &RootLocation) -> Result<()> {
        if site.is_own() { Ok(()) } else { site.remove_home() }
    }

    /// Moves a root that an earlier version left at the owner's path itself into a home at that path. Each step is one
    /// rename, and the next start goes on after the last one that was done.
    ///
    /// # Errors
    /// When it cannot be moved; then its top folder is closed to all other users.
    pub(super) fn migrate_old_root(&self, site: &RootLocation) -> Result<()> {
        if site.is_own() {
            return Ok(());
        }
        // A copy that a version before left half-made.
        remove_folder(&sibling(&site.root, ".berth-new-"))?;
        let half = sibling(&site.root, ".berth-home-");
        let is_folder = |path: &Path| path.symlink_metadata().is_ok_and(|meta| meta.is_dir());
        let is_root = || {
            let looks = || ["usr", "etc"].iter().all(|name| site.root.join(name).symlink_metadata().is_ok());
            is_folder(&site.root)
                && (RootRecord::read(&site.folder).is_ok_and(|state| state.is_some()) || looks())
        };
        if site.home().is_ok_and(|home| home.is_some()) || !(is_folder(&half.join(ROOT)) || is_root()) {
            return Ok(());
        }
        let moved = (|| {
            make_folder(&half)?;
            let folder = open(&half)?.ok_or_else(|| site.foreign_folder_error())?;
            let home = site.make_private(folder)?;
            if !is_folder(&home.root()) {
                site.write_marker(&home.base)?;
                std::fs::rename(&site.root, home.root()).at("move", &site.root)?;
            }
            std::fs::rename(&half, &site.root).at("move", &half)
        })();
        match moved {
            Ok(()) => {
                log::info!("the files of a container are now in {}/{ROOT}", site.root.display());
                Ok(())
            }
            Err(error) => {
                let folder = open(&site.root)?;
                folder.map_or(Ok(()), |folder| fchmod(&folder, Mode::RWXU)).at("close", &site.root)?;
                Err(error)
            }
        }
    }
}

fn sibling(root: &Path, prefix: &str) -> PathBuf {
    let name = root.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    root.with_file_name(format!("{prefix}{name}"))
}

/// Makes a private folder, or takes an empty one.
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

/// The workspace that the folder's mark names.
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
    let entries = rustix::fs::Dir::read_from(folder).at("list", "a container's folder")?;
    let names = entries.flatten().map(|entry| entry.file_name().to_bytes().to_owned());
    Ok(names.filter(|name| name != b"." && name != b"..").count() == 0)
}

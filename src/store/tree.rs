//! Removes whole trees with hostile content. **Invariant:** it removes exactly this tree, never follows a link and
//! never crosses a mount. A tree may have any depth: the removal takes at most `limits::TREE_DEPTH` descriptors and no
//! recursion.
//! Any thread may remove a tree; there are no locks. No process should write into the tree any more; otherwise the
//! removal fails, but does no other harm.

use std::ffi::{CStr, CString, OsStr};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, chmod, fchmod, fstat, open, renameat, unlinkat,
};
use rustix::io::Errno;

use super::beneath::{is_dots, open_resolved, openat2_missing};
use super::file::temp_name;
pub use super::mounts::mounts_below;
use super::mounts::mounts_below_real;
pub use super::usage::{disk_usage, disk_usage_below};
use crate::base::{At, Code, Error, Result, limits};

/// How often the removal of a tree restarts because another process writes into the tree.
const TREE_PASSES: usize = 32;

/// Removes the entry `name` of the folder `parent` with all its content. If the entry is a link, the link itself is
/// removed. A missing entry is not an error.
///
/// # Errors
/// `InvalidPath` when `name` is not a single name. `MountedInside`, with `details.path`, when a file system is mounted
/// on or in the tree: in this case no entry has been removed, unless the mount appeared during the removal. `Conflict`
/// when a process keeps writing into the tree, and `Internal` when an entry cannot be removed: in these cases, parts of
/// the tree may have been removed.
pub fn remove_tree(parent: &Path, name: &str) -> Result<()> {
    let single = !name.is_empty() && !name.contains('/') && !is_dots(name.as_bytes());
    let Some(entry) = CString::new(name).ok().filter(|_| single) else {
        return Err(Error::new(Code::InvalidPath, format!("{name:?} is not the name of a file or folder")));
    };
    // The parent is opened only once, because its path may lead to another folder later.
    let above = match open(parent, PARENT_FLAGS, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        opened => opened.at("open", parent)?,
    };
    let real = fs::read_link(format!("/proc/self/fd/{}", above.as_raw_fd())).at("find", parent)?;
    let shown = real.join(name);
    if let Some(point) = mounts_below_real(&shown)?.first() {
        return Err(mounted(point));
    }
    remove_from(above.as_fd(), &entry, shown)
}

const PARENT_FLAGS: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

#[cfg(test)]
fn remove(parent: &Path, name: &CStr, shown: PathBuf) -> Result<()> {
    let above = open(parent, PARENT_FLAGS, Mode::empty()).at("open", parent)?;
    remove_from(above.as_fd(), name, shown)
}

/// Removes the entry `name` of an open folder as [`remove_tree`] does; errors show `shown` as the tree's path.
pub(super) fn remove_from(above: BorrowedFd<'_>, name: &CStr, shown: PathBuf) -> Result<()> {
    let mut walk = TreeRemoval { shown, levels: Vec::new(), moved: false };
    for _ in 0..TREE_PASSES {
        match walk.enter(above, name)? {
            None => return Ok(()),
            Some(top) => walk.levels.push((top, name.to_owned())),
        }
        walk.run()?;
        walk.levels.clear();
        match unlinkat(above, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            // Another process has written into the tree.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
            Err(errno) => return Err(walk.failed(errno, None)),
        }
    }
    Err(walk.failed(Errno::AGAIN, None))
}

struct TreeRemoval {
    shown: PathBuf,
    /// The folders from the tree's top to the current one, each with its name.
    levels: Vec<(Dir, CString)>,
    /// Whether entries from deeper levels were moved to the top folder.
    moved: bool,
}

impl TreeRemoval {
    /// Removes all entries of the top folder.
    fn run(&mut self) -> Result<()> {
        loop {
            let depth = self.levels.len();
            let Some((dir, _)) = self.levels.last_mut() else { return Ok(()) };
            match dir.read() {
                Some(entry) => {
                    let entry = entry.map_err(|errno| self.failed(errno, None))?;
                    if !is_dots(entry.file_name().to_bytes()) {
                        self.entry(entry.file_name(), entry.file_type())?;
                    }
                }
                None if depth > 1 => self.leave()?,
                None if self.moved => {
                    self.moved = false;
                    dir.rewind();
                }
                None => return Ok(()),
            }
        }
    }

    fn entry(&mut self, name: &CStr, kind: FileType) -> Result<()> {
        let (Some((dir, _)), Some((top, _))) = (self.levels.last(), self.levels.first()) else {
            return Ok(());
        };
        let (here, top) = (self.fd(dir)?, self.fd(top)?);
        if kind != FileType::Directory {
            match unlinkat(here, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                // The file system does not report types, or another process has replaced the entry.
                Err(Errno::ISDIR) => {}
                Err(errno) => return Err(self.failed(errno, Some(name))),
            }
        }
        let Some(below) = self.enter(here, name)? else { return Ok(()) };
        if self.levels.len() < limits::TREE_DEPTH {
            self.levels.push((below, name.to_owned()));
            return Ok(());
        }
        match renameat(here, name, top, temp_name()) {
            Ok(()) => self.moved = true,
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(self.failed(errno, Some(name))),
        }
        Ok(())
    }

    fn leave(&mut self) -> Result<()> {
        let (Some((_, name)), Some((above, _))) = (self.levels.pop(), self.levels.last()) else {
            return Ok(());
        };
        match unlinkat(self.fd(above)?, &*name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            // Another process has written into the folder: the next pass handles it.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => Ok(()),
            Err(errno) => Err(self.failed(errno, Some(&name))),
        }
    }

    /// Opens the folder `name` after making it writable for its owner; removes an entry that is not a folder.
    fn enter(&self, at: BorrowedFd<'_>, name: &CStr) -> Result<Option<Dir>> {
        let mut last = Errno::AGAIN;
        for _ in 0..TREE_PASSES {
            let mut opened = open_folder(at, name, OFlags::RDONLY);
            if matches!(opened, Err(Errno::ACCESS)) {
                // If this call fails, the error of the second attempt below is reported.
                let _ = open_folder(at, name, OFlags::PATH).and_then(allow_path);
                opened = open_folder(at, name, OFlags::RDONLY);
            }
            let done = match opened {
                Ok(folder) => allow(&folder).and_then(|()| Dir::new(folder)).map(Some),
                Err(Errno::NOTDIR | Errno::LOOP) => unlinkat(at, name, AtFlags::empty()).map(|()| None),
                Err(errno) => Err(errno),
            };
            match done {
                Err(Errno::NOENT) => return Ok(None),
                // A folder has replaced the entry since the check.
                Err(Errno::ISDIR) => {}
                // The entry is a mount point, or it was moved away during the lookup (complete_walk() in fs/namei.c).
                Err(Errno::XDEV) => last = Errno::XDEV,
                done => return done.map_err(|errno| self.failed(errno, Some(name))),
            }
        }
        Err(self.failed(last, Some(name)))
    }

    fn fd<'a>(&self, dir: &'a Dir) -> Result<BorrowedFd<'a>> {
        dir.fd().map_err(|errno| self.failed(errno, None))
    }

    fn failed(&self, errno: Errno, name: Option<&CStr>) -> Error {
        let mut path = self.shown.clone();
        let below = self.levels.iter().skip(1).map(|(_, name)| name.as_c_str());
        // Before the first level is open, `name` is the top folder itself.
        let last = name.filter(|_| !self.levels.is_empty());
        path.extend(below.chain(last).map(|name| OsStr::from_bytes(name.to_bytes())));
        match errno {
            // EXDEV from openat2, or EBUSY from unlink, rmdir or rename, means a mount.
            Errno::XDEV | Errno::BUSY => mounted(&path),
            Errno::NOSYS => openat2_missing(),
            Errno::AGAIN => {
                let message = format!(
                    "Could not remove {}: a process keeps writing into it; stop it and try again",
                    path.display()
                );
                Error::new(Code::Conflict, message)
            }
            errno => {
                let message = format!("Could not remove {}", path.display());
                Error::internal(message).with_source(io::Error::from(errno))
            }
        }
    }
}

fn open_folder(at: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    open_resolved(at, name, flags, ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS)
}

/// Sets write and search permission on a folder: users other than root need both to remove its entries.
fn allow(folder: &OwnedFd) -> rustix::io::Result<()> {
    let mode = Mode::from_raw_mode(fstat(folder)?.st_mode);
    if !mode.contains(Mode::RWXU) {
        // The folder may belong to another user; the error will name an entry that cannot be removed.
        let _ = fchmod(folder, mode | Mode::RWXU);
    }
    Ok(())
}

/// Sets the same permissions on a folder that cannot be read, for which fchmod(2) does not accept the descriptor.
fn allow_path(folder: OwnedFd) -> rustix::io::Result<()> {
    chmod(format!("/proc/self/fd/{}", folder.as_raw_fd()), Mode::RWXU)
}

fn mounted(path: &Path) -> Error {
    let shown = path.display().to_string();
    Error::new(Code::MountedInside, format!("A file system is mounted at {shown}; unmount it and try again"))
        .detail("path", shown)
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;

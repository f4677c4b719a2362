//! Atomic replacement in a tree beneath a [`Root`]: an edit that detects concurrent changes, and the exchange of a
//! staged entry with its target. As in [`super::beneath`], no path leads out of the tree. Any thread may use this
//! module; there are no locks.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, fchmod, fstat, openat, renameat, renameat_with, unlinkat,
};
use rustix::io::Errno;

use super::beneath::{IN_ROOT, Root, inherit_owner, invalid_path, map_kernel_error, none_if_missing, split};
use super::file::{sync_folder, temp_name};
use super::tree;
use crate::base::{Result, limits};

/// The device and the inode of a file or folder, which identify it whatever its name is.
pub type FileIdentity = (u64, u64);

impl Root {
    /// Replaces a file by a file with these bytes and the old mode and owner, if its content is still `expected`;
    /// `None` means that the file must not exist. Returns whether the file was replaced. If another process changes the
    /// file at the same time, that process's file stays unchanged. Links are neither followed nor replaced.
    ///
    /// # Errors
    /// See [`Root`]; also `InvalidPath` when the parent folder does not exist.
    pub fn replace_if(&self, rel: &str, expected: Option<&[u8]>, bytes: &[u8]) -> Result<bool> {
        let (folder, name) = self.folder_of(rel, "write")?;
        let temp = temp_name();
        let done = write_beside(&folder, name, &temp, bytes).and_then(|()| match expected {
            None => move_new(&folder, &temp, name),
            Some(expected) => exchange_checked(&folder, &temp, name, expected),
        });
        // The temporary file is the replaced file, or the new file if the exchange failed.
        let _ = unlinkat(&folder, &temp, AtFlags::empty());
        let done = map_kernel_error(done, "write", rel)?;
        map_kernel_error(sync_folder(&folder), "write", rel)?;
        Ok(done)
    }

    /// Opens a folder of the tree as a path only (`O_PATH`).
    ///
    /// # Errors
    /// See [`Root`]; also `InvalidPath` when the folder does not exist.
    pub fn open_folder(&self, rel: &str) -> Result<OwnedFd> {
        map_kernel_error(self.resolve(rel, OFlags::PATH | OFlags::DIRECTORY, IN_ROOT), "open", rel)
    }

    /// Returns whether the entry itself is a link.
    ///
    /// # Errors
    /// See [`Root`].
    pub fn is_link(&self, rel: &str) -> Result<bool> {
        let Some(entry) = self.entry(rel)? else { return Ok(false) };
        let mode = map_kernel_error(fstat(&entry), "read", rel)?.st_mode;
        Ok(FileType::from_raw_mode(mode) == FileType::Symlink)
    }

    /// Returns the identity of the entry at this path. An entry keeps its identity when it is moved.
    ///
    /// # Errors
    /// See [`Root`].
    pub fn identity(&self, rel: &str) -> Result<Option<FileIdentity>> {
        let Some(entry) = self.entry(rel)? else { return Ok(None) };
        let stat = map_kernel_error(fstat(&entry), "read", rel)?;
        Ok(Some((stat.st_dev, stat.st_ino)))
    }

    /// Exchanges two entries. If `target` does not exist, moves `staged` to that path.
    ///
    /// # Errors
    /// See [`Root`]; also `InvalidPath` when `staged` or a folder does not exist, or when both are on different file
    /// systems.
    pub fn exchange(&self, staged: &str, target: &str) -> Result<()> {
        let (from_folder, from) = self.folder_of(staged, "move")?;
        let (to_folder, to) = self.folder_of(target, "write")?;
        let rename = |flags| renameat_with(&from_folder, from, &to_folder, to, flags);
        let mut moved = Err(Errno::AGAIN);
        for _ in 0..limits::OPEN_RETRIES {
            moved = match rename(RenameFlags::EXCHANGE) {
                Err(Errno::NOENT) => rename(RenameFlags::NOREPLACE),
                done => done,
            };
            // Another process has created the target in between: exchange the entries.
            if moved != Err(Errno::EXIST) {
                break;
            }
        }
        map_kernel_error(moved, "write", target)?;
        map_kernel_error(sync_folder(&to_folder), "write", target)?;
        map_kernel_error(sync_folder(&from_folder), "write", staged)
    }

    /// Moves an entry to a name that is not in use. Returns whether the entry existed.
    ///
    /// # Errors
    /// See [`Root`]; also `Busy` when `to` exists.
    pub fn move_to_free_name(&self, from: &str, to: &str) -> Result<bool> {
        let (from_folder, from_name) = self.folder_of(from, "move")?;
        let (to_folder, to_name) = self.folder_of(to, "move")?;
        let moved = none_if_missing(renameat_with(
            &from_folder,
            from_name,
            &to_folder,
            to_name,
            RenameFlags::NOREPLACE,
        ));
        let moved = map_kernel_error(moved, "move", from)?.is_some();
        map_kernel_error(sync_folder(&to_folder), "move", to)?;
        map_kernel_error(sync_folder(&from_folder), "move", from)?;
        Ok(moved)
    }

    /// Removes an entry with all its content. A link itself is removed; mounted file systems are not removed.
    ///
    /// # Errors
    /// See [`Root`]; `MountedInside` when a file system is mounted in the entry; `Conflict` while another process
    /// writes into it.
    pub fn remove_tree(&self, rel: &str) -> Result<()> {
        let (parent, name) = split(rel, "remove")?;
        let parent = if parent.is_empty() { "." } else { parent };
        let folder = none_if_missing(self.resolve(parent, OFlags::PATH | OFlags::DIRECTORY, IN_ROOT));
        let Some(folder) = map_kernel_error(folder, "remove", rel)? else { return Ok(()) };
        let name =
            CString::new(name).map_err(|_| invalid_path("remove", rel, "no file can have this name"))?;
        tree::remove_from(folder.as_fd(), &name, PathBuf::from(rel))
    }

    fn entry(&self, rel: &str) -> Result<Option<OwnedFd>> {
        map_kernel_error(
            none_if_missing(self.resolve(rel, OFlags::PATH | OFlags::NOFOLLOW, IN_ROOT)),
            "open",
            rel,
        )
    }
}

/// Creates the file `temp` with the mode and owner of `name`, or with the defaults for a new file.
fn write_beside(folder: &OwnedFd, name: &str, temp: &str, bytes: &[u8]) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(folder, temp, flags, Mode::RUSR | Mode::WUSR)?);
    let old = openat(folder, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
    let mode = match old.and_then(fstat) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => stat.st_mode & 0o777,
        _ => 0o644,
    };
    inherit_owner(&file, folder)?;
    fchmod(&file, Mode::from_raw_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn move_new(folder: &OwnedFd, temp: &str, name: &str) -> io::Result<bool> {
    match renameat_with(folder, temp, folder, name, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Exchanges the files if the current content is `expected`. The content is checked before the exchange, so that the
/// new file rarely becomes visible without need. It is checked again after the exchange, when the old file has no
/// public name any more, so that no change can be overlooked.
fn exchange_checked(folder: &OwnedFd, temp: &str, name: &str, expected: &[u8]) -> io::Result<bool> {
    if !has_content(folder, name, expected) {
        return Ok(false);
    }
    match renameat_with(folder, temp, folder, name, RenameFlags::EXCHANGE) {
        Ok(()) => {}
        Err(Errno::NOENT) => return Ok(false),
        // The file system does not support the call. The content was checked a moment ago, so use an ordinary rename.
        Err(Errno::INVAL | Errno::NOSYS) => {
            renameat(folder, temp, folder, name)?;
            return Ok(true);
        }
        Err(errno) => return Err(errno.into()),
    }
    if has_content(folder, temp, expected) {
        return Ok(true);
    }
    match renameat_with(folder, temp, folder, name, RenameFlags::EXCHANGE) {
        // Another process has removed the new file in between, so put the other writer's file back.
        Err(Errno::NOENT) => renameat(folder, temp, folder, name)?,
        done => done?,
    }
    Ok(false)
}

fn has_content(folder: &OwnedFd, name: &str, expected: &[u8]) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let read = || {
        let file = File::from(openat(folder, name, flags, Mode::empty())?);
        if !file.metadata()?.is_file() {
            return Ok(false);
        }
        let mut bytes = Vec::with_capacity(expected.len() + 1);
        file.take(expected.len() as u64 + 1).read_to_end(&mut bytes)?;
        Ok::<_, io::Error>(bytes == expected)
    };
    read().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::store::scratch::TestFolder;

    fn names(dir: &TestFolder) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(&**dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn file_is_replaced_only_if_unchanged() {
        let dir = TestFolder::new();
        let root = Root::open(&dir).unwrap();
        assert!(root.replace_if("a", None, b"1").unwrap());
        assert!(!root.replace_if("a", None, b"2").unwrap(), "the file exists");
        assert!(!root.replace_if("a", Some(b"x"), b"2").unwrap());
        assert!(!root.replace_if("a", Some(b"12"), b"2").unwrap());
        assert!(!root.replace_if("b", Some(b"1"), b"2").unwrap(), "the file does not exist");
        assert_eq!(fs::read(dir.join("a")).unwrap(), b"1");
        fs::set_permissions(dir.join("a"), fs::Permissions::from_mode(0o600)).unwrap();
        assert!(root.replace_if("a", Some(b"1"), b"2").unwrap());
        assert_eq!(fs::metadata(dir.join("a")).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(names(&dir), ["a"]);
        assert!(root.replace_if("no/a", None, b"").is_err());
    }

    #[test]
    fn links_and_folders_are_not_replaced() {
        let dir = TestFolder::new();
        let root = Root::open(&dir).unwrap();
        root.write_new("real", b"1", 0o644).unwrap();
        symlink("real", dir.join("link")).unwrap();
        fs::create_dir(dir.join("folder")).unwrap();
        for name in ["link", "folder"] {
            assert!(!root.replace_if(name, Some(b"1"), b"2").unwrap(), "{name}");
            assert!(!root.replace_if(name, None, b"2").unwrap(), "{name}");
        }
        assert!(root.is_link("link").unwrap() && !root.is_link("real").unwrap());
        assert_eq!(fs::read(dir.join("real")).unwrap(), b"1");
        assert_eq!(names(&dir), ["folder", "link", "real"]);
    }

    #[test]
    fn entries_are_exchanged_and_back() {
        let dir = TestFolder::new();
        let root = Root::open(&dir).unwrap();
        fs::create_dir_all(dir.join("stage/new/sub")).unwrap();
        fs::create_dir(dir.join("old")).unwrap();
        let (new, old) = (root.identity("stage/new").unwrap(), root.identity("old").unwrap());
        assert_ne!(new, old);
        root.exchange("stage/new", "old").unwrap();
        assert_eq!((root.identity("old").unwrap(), root.identity("stage/new").unwrap()), (new, old));
        root.exchange("old", "fresh").unwrap();
        assert_eq!((root.identity("fresh").unwrap(), root.identity("old").unwrap()), (new, None));
        assert!(
            root.move_to_free_name("fresh", "stage/out").unwrap()
                && !root.move_to_free_name("fresh", "x").unwrap()
        );
        assert!(root.exchange("nothing", "y").is_err());
        root.remove_tree("stage").unwrap();
        root.remove_tree("stage").unwrap();
        assert!(names(&dir).is_empty());
    }
}

//! A folder in a hostile tree to which clients upload files. A file arrives in pieces, appears only when it is
//! complete, and is listed and read without following a link. This module does not depend on HTTP or on the purpose of
//! the files.
//!
//! An incomplete file has a temporary name in the folder, and its writer holds flock(2) on it. A temporary file without
//! a lock was left by a killed server and is removed. Any thread may use a tray; there are no other locks.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::SystemTime;

use rustix::fs::{
    AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, ResolveFlags, fchmod, flock, fstat, mkdirat,
    openat, renameat, statat, unlinkat,
};
use rustix::io::Errno;

use super::beneath::{
    Root, check_regular, dir_entries, inherit_owner, invalid_path, map_kernel_error, none_if_missing,
    open_resolved, reopen, split,
};
use super::file::{is_temp_name, sync_folder, temp_name};
use crate::base::{Code, Error, Result, limits};

/// Maximum total length of the paths in a listing, because paths in a deep tree are long.
const TRAY_PATHS_BYTES: usize = 4 << 20;

const NO_LINKS: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_SYMLINKS);
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

/// An inbox or outbox folder. Its errors are those of [`Root`].
#[derive(Debug)]
pub struct Tray(OwnedFd);

/// A file that is being written. Dropping it before [`TrayWriter::commit`] removes it.
#[derive(Debug)]
pub struct TrayWriter<'a> {
    tray: &'a Tray,
    file: File,
    temp: String,
}

/// The content of a tray.
#[derive(Debug, Default)]
pub struct TrayListing {
    /// The files, the newest first.
    pub files: Vec<TrayFile>,
    /// Whether the tray has more files than are listed.
    pub more: bool,
}

/// A regular file in a tray.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrayFile {
    /// The path relative to the tray, which may contain any bytes that a file system allows.
    pub path: Vec<u8>,
    /// The size in bytes.
    pub size: u64,
    /// Time of the last write, in milliseconds since 1970.
    pub changed_ms: i64,
}

impl TrayFile {
    /// Returns the path as text, with U+FFFD for bytes that are not UTF-8.
    pub fn display_path(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.path)
    }
}

impl Root {
    /// Opens the tray at `rel`. Returns `None` if the folder does not exist.
    ///
    /// # Errors
    /// `InvalidPath` when a part of the path is a link.
    pub fn tray(&self, rel: &str) -> Result<Option<Tray>> {
        let opened = none_if_missing(open_resolved(self.as_fd(), rel, FOLDER, NO_LINKS));
        Ok(map_kernel_error(opened, "open", rel)?.map(Tray))
    }

    /// Opens the tray, creates it if necessary, and removes incomplete files of killed writers.
    ///
    /// # Errors
    /// The same as for [`Root::tray`].
    pub fn make_tray(&self, rel: &str) -> Result<Tray> {
        let tray = Tray(make_folders(&self.as_fd(), rel)?);
        tray.sweep();
        Ok(tray)
    }
}

impl Tray {
    /// Starts a new file with a temporary name.
    ///
    /// # Errors
    /// `DiskFull` or `Internal` when the file cannot be created.
    pub fn create(&self) -> Result<TrayWriter<'_>> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for _ in 0..limits::OPEN_RETRIES {
            let temp = temp_name();
            let file = File::from(map_kernel_error(
                openat(&self.0, &temp, flags, Mode::RUSR | Mode::WUSR),
                "write",
                &temp,
            )?);
            // Only the sweep needs the lock, so a file system without locks is not an error.
            let _ = flock(&file, FlockOperation::NonBlockingLockExclusive);
            let writer = TrayWriter { tray: self, file, temp };
            // A sweep may have removed the file before it was locked.
            if map_kernel_error(fstat(&writer.file), "write", &writer.temp)?.st_nlink > 0 {
                return Ok(writer);
            }
        }
        Err(Error::new(Code::Busy, "The folder is being swept too often; try again"))
    }

    /// Checks that a file can be created at `path`: the path is not that of a folder, and none of its parents is a file
    /// or a link.
    ///
    /// # Errors
    /// `InvalidPath` if no file can be created at `path`.
    pub fn check_free(&self, path: &str) -> Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        match open_resolved(&self.0, path, flags, NO_LINKS) {
            Ok(found) => {
                let kind = FileType::from_raw_mode(map_kernel_error(fstat(&found), "write", path)?.st_mode);
                let folder = kind == FileType::Directory;
                if folder { Err(invalid_path("write", path, "a folder has this name")) } else { Ok(()) }
            }
            Err(Errno::NOENT) => Ok(()),
            Err(error) => map_kernel_error(Err(error), "write", path),
        }
    }

    /// Opens a file for reading. Returns `None` if the file does not exist.
    ///
    /// # Errors
    /// `InvalidPath` for links, devices and all other entries that are not regular files.
    pub fn open(&self, path: &[u8]) -> Result<Option<File>> {
        let shown = &*String::from_utf8_lossy(path);
        let found = none_if_missing(open_resolved(&self.0, path, OFlags::PATH | OFlags::NOFOLLOW, NO_LINKS));
        let Some(found) = map_kernel_error(found, "open", shown)? else { return Ok(None) };
        check_regular(&found, shown)?;
        reopen(&found, OFlags::RDONLY, shown).map(Some)
    }

    /// Opens the file at this path for reading. Returns `None` if the file does not exist or is a link, which a new
    /// file would replace.
    ///
    /// # Errors
    /// `InvalidPath` for folders, devices and all other entries that are not regular files or links.
    pub fn open_if_there(&self, path: &str) -> Result<Option<File>> {
        match open_resolved(&self.0, path, OFlags::PATH | OFlags::NOFOLLOW, NO_LINKS) {
            Ok(found)
                if map_kernel_error(fstat(&found), "open", path)
                    .map(|stat| FileType::from_raw_mode(stat.st_mode))?
                    == FileType::Symlink =>
            {
                Ok(None)
            }
            Ok(_) => self.open(path.as_bytes()),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => map_kernel_error(Err(error), "open", path),
        }
    }

    /// Returns all regular files in the tray and below it, up to [`limits::TRAY_ENTRIES`] and [`TRAY_PATHS_BYTES`].
    /// Incomplete files are omitted.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self) -> Result<TrayListing> {
        let mut listing = TrayListing::default();
        let (mut entries, mut bytes) = (0, 0);
        let mut folders = vec![Vec::new()];
        while let Some(folder) = folders.pop() {
            let here = if folder.is_empty() { &b"."[..] } else { &folder };
            let shown = &*String::from_utf8_lossy(here);
            // A folder that was removed, is too deep, is unreadable, or has been replaced by a link, is treated as
            // empty.
            let Ok(opened) = open_resolved(&self.0, here, FOLDER, NO_LINKS) else { continue };
            for entry in dir_entries(map_kernel_error(Dir::read_from(&opened), "list", shown)?) {
                let entry = map_kernel_error(entry, "list", shown)?;
                let name = entry.file_name();
                if name.to_str().is_ok_and(is_temp_name) {
                    continue;
                }
                entries += 1;
                bytes += folder.len() + name.count_bytes();
                if entries > limits::TRAY_ENTRIES || bytes > TRAY_PATHS_BYTES {
                    listing.more = true;
                    break;
                }
                let Ok(stat) = statat(&opened, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
                let path = match folder.is_empty() {
                    true => name.to_bytes().to_owned(),
                    false => [&folder, &b"/"[..], name.to_bytes()].concat(),
                };
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => folders.push(path),
                    FileType::RegularFile => listing.files.push(TrayFile {
                        path,
                        size: u64::try_from(stat.st_size).unwrap_or_default(),
                        changed_ms: stat.st_mtime.saturating_mul(1000)
                            + stat.st_mtime_nsec as i64 / 1_000_000,
                    }),
                    _ => {}
                }
            }
        }
        listing
            .files
            .sort_unstable_by(|a, b| b.changed_ms.cmp(&a.changed_ms).then_with(|| a.path.cmp(&b.path)));
        Ok(listing)
    }

    /// Removes incomplete files without a writer.
    pub fn sweep(&self) {
        let Ok(entries) = Dir::read_from(&self.0) else { return };
        for entry in entries.take(limits::TRAY_ENTRIES).flatten() {
            let Some(name) = entry.file_name().to_str().ok().filter(|name| is_temp_name(name)) else {
                continue;
            };
            let flags =
                OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            let Ok(file) = openat(&self.0, name, flags, Mode::empty()) else { continue };
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                let _ = unlinkat(&self.0, name, AtFlags::empty());
            }
        }
    }
}

impl TrayWriter<'_> {
    /// Gives the file its name and creates missing folders of `path`. An existing entry is replaced; a link is not
    /// followed.
    ///
    /// # Errors
    /// `InvalidPath` when the name is that of a folder, or when a parent is not a folder. In this case, the file is
    /// removed.
    pub fn commit(self, path: &str) -> Result<()> {
        let (parent, name) = split(path, "write")?;
        let folder = make_folders(&self.tray.0, parent)?;
        let keep = || {
            inherit_owner(&self.file, &folder)?;
            fchmod(&self.file, Mode::from_raw_mode(0o644))?;
            self.file.sync_all()?;
            renameat(&self.tray.0, &self.temp, &folder, name)?;
            sync_folder(&folder)
        };
        map_kernel_error(keep(), "write", path)
    }
}

impl Write for TrayWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for TrayWriter<'_> {
    fn drop(&mut self) {
        // The temporary name does not exist after `commit`.
        let _ = unlinkat(&self.tray.0, &self.temp, AtFlags::empty());
    }
}

/// Opens the folder at `rel` below `top`, step by step, and creates missing ones with mode 0755 and the parent's owner.
fn make_folders(top: &impl AsFd, rel: &str) -> Result<OwnedFd> {
    let mut folder = map_kernel_error(open_resolved(top, ".", FOLDER, NO_LINKS), "make", rel)?;
    for name in rel.split('/').filter(|name| !matches!(*name, "" | ".")) {
        let made = match mkdirat(&folder, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return map_kernel_error(Err(error), "make", rel),
        };
        let next = map_kernel_error(open_resolved(&folder, name, FOLDER, NO_LINKS), "make", rel)?;
        if made {
            map_kernel_error(inherit_owner(&next, &folder), "make", rel)?;
        }
        folder = next;
    }
    Ok(folder)
}

/// Returns an entity tag, and `false` if the file is too fresh for the tag to be reliable (RFC 9110, 8.8.1). Two tags
/// of a file are equal exactly if its bytes did not change, as far as the kernel's clock can show. No workload can set
/// the time that the tag is derived from.
///
/// # Errors
/// When the file's metadata cannot be read.
pub fn tag(file: &File) -> Result<(String, bool)> {
    let stat = map_kernel_error(fstat(file), "read", "the file")?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let changed = u64::try_from(stat.st_ctime).unwrap_or_default();
    let tag = format!("{:x}-{:x}-{changed:x}.{:x}", stat.st_ino, stat.st_size, stat.st_ctime_nsec);
    Ok((tag, now > changed + 1))
}

#[cfg(test)]
#[path = "tray_tests.rs"]
mod tests;

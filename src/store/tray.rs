//! A folder in a hostile tree in which others leave files: they arrive in pieces and appear whole, and are listed and
//! read without following a single link. Knows nothing of HTTP or of what the files are for.
//!
//! A file on its way has a temporary name in the folder itself, and its writer holds flock(2) on it. Whoever finds such
//! a name without a lock finds what a killed server has left, and removes it. Any thread; no other locks.

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
    Root, check_regular, inherit_owner, invalid_path, is_dots, map_kernel_error, none_if_missing,
    open_resolved, reopen, split,
};
use super::file::{is_temp_name, sync_folder, temp_name};
use crate::base::{Code, Error, Result, limits};

const NO_LINKS: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_SYMLINKS);
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

/// Such a folder. Errors are those of [`Root`].
#[derive(Debug)]
pub struct Tray(OwnedFd);

/// A file that arrives. Dropped before [`TrayWriter::commit`] it leaves nothing.
#[derive(Debug)]
pub struct TrayWriter<'a> {
    tray: &'a Tray,
    file: File,
    temp: String,
}

/// What lies in a folder.
#[derive(Debug, Default)]
pub struct TrayListing {
    /// The files, the newest first.
    pub files: Vec<TrayFile>,
    /// There are more than are listed.
    pub more: bool,
}

/// A regular file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrayFile {
    /// Below the folder; any bytes that a file system takes.
    pub path: Vec<u8>,
    /// In bytes.
    pub size: u64,
    /// When it was written last, in milliseconds since 1970.
    pub changed_ms: i64,
}

impl TrayFile {
    /// The path as text: bytes that are not UTF-8 show as U+FFFD.
    pub fn display_path(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.path)
    }
}

impl Root {
    /// The folder at `rel`; `None` if there is none.
    ///
    /// # Errors
    /// `InvalidPath` when a part of the path is a link.
    pub fn tray(&self, rel: &str) -> Result<Option<Tray>> {
        let opened = none_if_missing(open_resolved(self.as_fd(), rel, FOLDER, NO_LINKS));
        Ok(map_kernel_error(opened, "open", rel)?.map(Tray))
    }

    /// The same, made if it is missing; leftovers of writers that were killed are removed from it.
    ///
    /// # Errors
    /// As above.
    pub fn make_tray(&self, rel: &str) -> Result<Tray> {
        let tray = Tray(make_folders(&self.as_fd(), rel)?);
        tray.sweep();
        Ok(tray)
    }
}

impl Tray {
    /// Begins a file.
    ///
    /// # Errors
    /// `DiskFull`, `Internal`.
    pub fn create(&self) -> Result<TrayWriter<'_>> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for _ in 0..limits::OPEN_RETRIES {
            let temp = temp_name();
            let file = File::from(map_kernel_error(
                openat(&self.0, &temp, flags, Mode::RUSR | Mode::WUSR),
                "write",
                &temp,
            )?);
            // Locks are a convenience of the sweep: a file system without them has none.
            let _ = flock(&file, FlockOperation::NonBlockingLockExclusive);
            let deposit = TrayWriter { tray: self, file, temp };
            // Somebody may have swept between the two.
            if map_kernel_error(fstat(&deposit.file), "write", &deposit.temp)?.st_nlink > 0 {
                return Ok(deposit);
            }
        }
        Err(Error::new(Code::Busy, "The folder is being swept too often; try again"))
    }

    /// Whether a folder stands where a file is to be; a file's path may not lead over a file or a link either.
    ///
    /// # Errors
    /// `InvalidPath` when it does.
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

    /// Opens a file for reading; `None` if there is none.
    ///
    /// # Errors
    /// `InvalidPath` for a link, a device and whatever else is not a regular file.
    pub fn open(&self, path: &[u8]) -> Result<Option<File>> {
        let shown = &*String::from_utf8_lossy(path);
        let found = none_if_missing(open_resolved(&self.0, path, OFlags::PATH | OFlags::NOFOLLOW, NO_LINKS));
        let Some(found) = map_kernel_error(found, "open", shown)? else { return Ok(None) };
        check_regular(&found, shown)?;
        reopen(&found, OFlags::RDONLY, shown).map(Some)
    }

    /// Opens what has this path for reading; `None` if nothing has it, or a link, which a new file replaces.
    ///
    /// # Errors
    /// `InvalidPath` for a folder, a device and whatever else is not a regular file.
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

    /// All regular files in it and below, as far as [`limits::TRAY_ENTRIES`] and [`limits::TRAY_PATHS_BYTES`] go. Files
    /// on their way are left out.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn list(&self) -> Result<TrayListing> {
        let mut listing = TrayListing::default();
        let (mut entries, mut bytes) = (0, 0);
        let mut folders = vec![Vec::new()];
        while let Some(folder) = folders.pop() {
            let here = if folder.is_empty() { &b"."[..] } else { &folder };
            let shown = &*String::from_utf8_lossy(here);
            // What is gone, too deep, closed to us or a link by now has no files.
            let Ok(opened) = open_resolved(&self.0, here, FOLDER, NO_LINKS) else { continue };
            for entry in map_kernel_error(Dir::read_from(&opened), "list", shown)? {
                let entry = map_kernel_error(entry, "list", shown)?;
                let name = entry.file_name();
                if is_dots(name.to_bytes()) || name.to_str().is_ok_and(is_temp_name) {
                    continue;
                }
                entries += 1;
                bytes += folder.len() + name.count_bytes();
                if entries > limits::TRAY_ENTRIES || bytes > limits::TRAY_PATHS_BYTES {
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

    /// Removes files on their way that nobody writes any more.
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
    /// Gives the file its name, making the folders of `path` that are missing. What had the name is replaced; a link is
    /// not followed.
    ///
    /// # Errors
    /// `InvalidPath` when a folder has the name, or something else stands where a folder should be; nothing is left then.
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
        // Gone already if it was kept.
        let _ = unlinkat(&self.tray.0, &self.temp, AtFlags::empty());
    }
}

/// Opens the folder at `rel` below `top`, step by step, and makes what is missing: mode 0755, the owner of the one above.
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

/// Two tags of the same file are equal exactly when its bytes were not touched in between, as far as the kernel's clock
/// tells; `false` when it is too fresh to be sure (RFC 9110, 8.8.1). No workload can set the time that is used.
///
/// # Errors
/// When the file cannot be looked at.
pub fn tag(file: &File) -> Result<(String, bool)> {
    let stat = map_kernel_error(fstat(file), "read", "the file")?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let changed = u64::try_from(stat.st_ctime).unwrap_or_default();
    let tag = format!("{:x}-{:x}-{changed:x}.{:x}", stat.st_ino, stat.st_size, stat.st_ctime_nsec);
    Ok((tag, now > changed + 1))
}

#[cfg(test)]
#[path = "deposit_tests.rs"]
mod tests;

//! Files in folders that only berth and its operator change: atomic replacement, bounded reads, private folders. Trees
//! that a workload can write to are opened through [`super::beneath`] instead. Any thread may use this module, which
//! has no locks. Callers that write one file from several threads must hold a lock, as [`super::json`] does.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use uuid::Uuid;

use crate::base::{At, Error, Result};

const TEMP_PREFIX: &str = ".tmp-";

/// Returns a new name for a temporary file; [`is_temp_name`] recognises such names.
pub(super) fn temp_name() -> String {
    format!("{TEMP_PREFIX}{}", Uuid::new_v4().simple())
}

/// Returns whether the name is that of an incomplete file.
pub fn is_temp_name(name: &str) -> bool {
    name.strip_prefix(TEMP_PREFIX)
        .is_some_and(|rest| rest.len() == 32 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Replaces `path` by a file with exactly these bytes and this mode. Readers, and a crash at any moment, see either the
/// old or the new content. A symlink at `path` is replaced, not followed.
///
/// # Errors
/// `DiskFull` or `Internal`. In this case, the old file still exists and no temporary file remains. The exception is a
/// folder that cannot be synced (a failing disk): then the new content is in place but may not survive a crash.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    put(path, bytes, mode, true)?;
    sync_folder_at(folder_of(path))
}

/// Makes renames and removals in this folder survive a crash of the machine.
///
/// # Errors
/// `Internal` when the disk fails.
pub fn sync_folder_at(folder: &Path) -> Result<()> {
    sync_folder(&File::open(folder).at("open", folder)?).at("sync", folder)
}

/// Replaces a file without waiting for the disk. Readers, also after a crash of berth, see either the old or the new
/// content. After a crash of the machine, the content is undefined, so use this only for data that is worthless after
/// such a crash.
///
/// # Errors
/// The same as for [`write_atomic`].
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    put(path, bytes, mode, false)
}

fn put(path: &Path, bytes: &[u8], mode: u32, synced: bool) -> Result<()> {
    let temp = folder_of(path).join(temp_name());
    let written = write_new(&temp, bytes, mode, synced).and_then(|()| fs::rename(&temp, path));
    if written.is_err() {
        // The temporary file does not exist if its creation failed.
        let _ = fs::remove_file(&temp);
    }
    written.at("write", path)
}

fn write_new(temp: &Path, bytes: &[u8], mode: u32, synced: bool) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temp)?;
    // open(2) applies the umask, but fchmod(2) does not.
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
    file.write_all(bytes)?;
    if synced { file.sync_all() } else { Ok(()) }
}

/// Makes a rename or a removal in `folder` survive a crash of the machine.
pub(super) fn sync_folder(folder: impl std::os::fd::AsFd) -> io::Result<()> {
    match rustix::fs::fsync(folder) {
        // File systems that write folders synchronously return EINVAL (fsync(2)).
        Err(Errno::INVAL) => Ok(()),
        done => Ok(done?),
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Removes the remains of interrupted writes in `dir`, but not in folders below it, and returns their number. Call this
/// only at the start, before any file is written in `dir`.
///
/// # Errors
/// `Internal` when the folder cannot be read or a file cannot be removed. A missing folder is not an error.
pub fn sweep_temps(dir: &Path) -> Result<usize> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries.at("list", dir)?,
    };
    let mut removed = 0;
    for entry in entries {
        let entry = entry.at("list", dir)?;
        let is_temp = entry.file_name().to_str().is_some_and(is_temp_name);
        if is_temp && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            let path: PathBuf = entry.path();
            fs::remove_file(&path).at("remove", &path)?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Reads a whole file. Returns `None` if the file does not exist. Symbolic links are followed, because an operator may
/// keep the file in another folder.
///
/// # Errors
/// `Internal` when the file is not regular, is larger than `max_bytes`, or cannot be read.
pub fn read_optional(path: &Path, max_bytes: u64) -> Result<Option<Vec<u8>>> {
    // Without O_NONBLOCK, opening a FIFO would wait for a writer.
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits();
    let opened = OpenOptions::new().read(true).custom_flags(flags as i32).open(path);
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.at("open", path)?,
    };
    let metadata = file.metadata().at("read", path)?;
    if !metadata.is_file() {
        return Err(Error::internal(format!("{} is not a regular file", path.display())));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len().min(max_bytes)).unwrap_or(0));
    // One byte more than allowed is read, to distinguish a file of exactly the maximum size from a larger one, even
    // while it grows.
    file.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes).at("read", path)?;
    if bytes.len() as u64 > max_bytes {
        return Err(Error::internal(format!("{} is larger than {max_bytes} bytes", path.display())));
    }
    Ok(Some(bytes))
}

/// Creates a folder and its missing parents, accessible only to the owner. An existing folder is not changed.
///
/// # Errors
/// `Internal` or `DiskFull` when a folder cannot be created, for example because a file has its name.
pub fn create_dir_private(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).at("create the folder", path)
}

/// Creates a folder as [`create_dir_private`] does, and also makes an existing folder belong to this process's user
/// with mode 0700. Use this for parents of files that other users must never reach.
///
/// # Errors
/// The same as for [`create_dir_private`]; also when the folder's owner or mode cannot be changed.
pub fn own_dir_private(path: &Path) -> Result<()> {
    create_dir_private(path)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(path, flags, Mode::empty()).at("open", path)?;
    let (stat, ours) = (rustix::fs::fstat(&folder).at("look at", path)?, rustix::process::geteuid());
    if stat.st_uid != ours.as_raw() {
        rustix::fs::fchown(&folder, Some(ours), None).at("take over", path)?;
    }
    if stat.st_mode & 0o7777 != 0o700 {
        rustix::fs::fchmod(&folder, Mode::RWXU).at("close", path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::base::Code;
    use crate::store::scratch::TestFolder;

    #[test]
    fn replaces_content_and_mode_and_leaves_no_temp() {
        let dir = TestFolder::new();
        let path = dir.join("a.json");
        write_atomic(&path, b"one", 0o644).unwrap();
        write_atomic(&path, b"two", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        write_atomic(&path, b"two", 0o666).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
            0o666,
            "the umask must not apply"
        );
        assert_eq!(fs::read_dir(&*dir).unwrap().count(), 1);
    }

    #[test]
    fn failed_write_keeps_the_old_file_and_removes_its_temp() {
        let dir = TestFolder::new();
        fs::create_dir(dir.join("taken")).unwrap();
        assert!(write_atomic(&dir.join("taken"), b"x", 0o600).is_err(), "a folder cannot be replaced");
        assert_eq!(fs::read_dir(&*dir).unwrap().count(), 1);
        assert!(write_atomic(&dir.join("missing/x"), b"x", 0o600).is_err());
    }

    #[test]
    fn full_disk_has_its_own_code_and_keeps_the_old_file() {
        let dir = TestFolder::new();
        let _mount = dir.mount_tmpfs("small", "size=64k");
        let path = dir.join("small/a");
        write_atomic(&path, b"old", 0o600).unwrap();
        let failed = write_atomic(&path, &[7; 1 << 20], 0o600).unwrap_err();
        assert_eq!(failed.code(), Code::DiskFull);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.join("small")).unwrap().count(), 1);
    }

    #[test]
    fn sweep_removes_only_temporary_files() {
        let dir = TestFolder::new();
        for name in [temp_name(), temp_name(), ".tmp-mine".into(), "a".into()] {
            write_atomic(&dir.join(name), b"", 0o600).unwrap();
        }
        fs::create_dir(dir.join(temp_name())).unwrap();
        assert_eq!(sweep_temps(&dir).unwrap(), 2);
        assert_eq!(fs::read_dir(&*dir).unwrap().count(), 3);
        assert_eq!(sweep_temps(&dir.join("missing")).unwrap(), 0);
    }

    #[test]
    fn reads_regular_files_up_to_the_cap() {
        let dir = TestFolder::new();
        write_atomic(&dir.join("a"), b"12345", 0o600).unwrap();
        symlink("a", dir.join("link")).unwrap();
        assert_eq!(read_optional(&dir.join("link"), 5).unwrap().unwrap(), b"12345");
        assert!(read_optional(&dir.join("a"), 4).unwrap_err().message().contains("larger than 4 bytes"));
        assert_eq!(read_optional(&dir.join("b"), 5).unwrap(), None);
        dir.fifo("fifo");
        for odd in [dir.join("fifo"), dir.to_path_buf(), "/dev/zero".into()] {
            assert!(read_optional(&odd, 5).unwrap_err().message().contains("not a regular file"));
        }
    }

    #[test]
    fn private_folders_are_private() {
        let dir = TestFolder::new();
        create_dir_private(&dir.join("a/b")).unwrap();
        create_dir_private(&dir.join("a/b")).unwrap();
        assert_eq!(fs::metadata(dir.join("a")).unwrap().permissions().mode() & 0o7777, 0o700);
        write_atomic(&dir.join("file"), b"", 0o600).unwrap();
        assert!(create_dir_private(&dir.join("file")).is_err());
        fs::set_permissions(dir.join("a"), fs::Permissions::from_mode(0o777)).unwrap();
        rustix::fs::chown(dir.join("a"), Some(rustix::fs::Uid::from_raw(1234)), None).unwrap();
        own_dir_private(&dir.join("a")).unwrap();
        own_dir_private(&dir.join("a/new")).unwrap();
        let meta = fs::metadata(dir.join("a")).unwrap();
        use std::os::unix::fs::MetadataExt as _;
        assert_eq!((meta.uid(), meta.mode() & 0o7777), (0, 0o700));
    }
}

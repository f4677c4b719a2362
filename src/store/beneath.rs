//! Opens files in trees that a hostile workload can change at any moment. **Invariant:** the kernel resolves every path
//! inside the tree (openat2(2)), and the inode that was checked is the one that is used. No call waits for the
//! workload: a FIFO, a device, a socket or a file lease is an error. This module does not depend on workspaces. Any
//! thread may use it; there are no locks.

use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, Dir, DirEntry, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, fchmod, fchown, fstat, fstatfs,
    major, minor, mkdirat, open, openat, openat2, renameat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use rustix::path::Arg;

use super::file::{sync_folder, temp_name};
use crate::base::{At, Code, Error, Result, limits};

/// How often a path that leads out of a workspace is checked again: the entry may have been moved out at that moment.
const ESCAPE_RETRIES: usize = 3;
/// Maximum number of folder entries that are counted; a larger number is shown as this number.
const ENTRY_COUNT: u64 = 1_000_000;

/// Symbolic links are resolved as for a process whose root is the tree; the magic links of `/proc` are refused.
pub(super) const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
pub(super) const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

/// The root of a tree that a hostile workload can change. Paths are relative to the root, with or without a leading
/// slash. Unless documented otherwise, the errors of its functions are `InvalidPath` if the tree's content is the
/// reason (a link loop, a FIFO instead of a file), `Busy` if the tree changes too fast, `DiskFull`, and `Internal` for
/// all other errors.
#[derive(Debug)]
pub struct Root {
    top: OwnedFd,
    /// A value that keeps the tree mounted while this root exists.
    _held: Option<Arc<dyn fmt::Debug + Send + Sync>>,
}

/// The last part of a file.
#[derive(Debug)]
pub struct FileTail {
    /// The last bytes.
    pub bytes: Vec<u8>,
    /// The size of the whole file.
    pub total_size: u64,
    /// Whether `bytes` is the whole file.
    pub complete: bool,
}

impl Root {
    /// Opens the folder at `path`. Links in `path` itself are followed: the workload cannot change it.
    ///
    /// # Errors
    /// `Internal` when the folder does not exist.
    pub fn open(path: &Path) -> Result<Root> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        open(path, flags, Mode::empty()).map(Root::from_fd).at("open", path)
    }

    /// Creates a root from the descriptor of an open folder.
    pub(super) fn from_fd(top: OwnedFd) -> Root {
        Root { top, _held: None }
    }

    /// Creates a root from the descriptor of an open folder, and keeps `held` as long as the root exists.
    pub fn from_fd_holding(top: OwnedFd, held: Arc<dyn fmt::Debug + Send + Sync>) -> Root {
        Root { top, _held: Some(held) }
    }

    /// Opens a regular file for reading. Returns `None` if the file does not exist.
    ///
    /// # Errors
    /// See [`Root`].
    pub fn open_file(&self, rel: &str) -> Result<Option<File>> {
        let Some(found) = self.find(rel)? else { return Ok(None) };
        check_regular(&found, rel)?;
        reopen(&found, OFlags::RDONLY, rel).map(Some)
    }

    /// Reads a whole file of at most `max_bytes`. Returns `None` if the file does not exist.
    ///
    /// # Errors
    /// See [`Root`]; also `InvalidPath` for a file that is larger than `max_bytes`.
    pub fn read(&self, rel: &str, max_bytes: u64) -> Result<Option<Vec<u8>>> {
        let Some(file) = self.open_file(rel)? else { return Ok(None) };
        let mut bytes = Vec::new();
        map_kernel_error(file.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes), "read", rel)?;
        if bytes.len() as u64 > max_bytes {
            return Err(invalid_path("read", rel, &format!("it is larger than {max_bytes} bytes")));
        }
        Ok(Some(bytes))
    }

    /// Reads the last `max_bytes` of a file. Returns `None` if the file does not exist.
    ///
    /// # Errors
    /// See [`Root`].
    pub fn read_tail(&self, rel: &str, max_bytes: u64) -> Result<Option<FileTail>> {
        let Some(mut file) = self.open_file(rel)? else { return Ok(None) };
        let read = |file: &mut File| {
            let total_size = file.metadata()?.len();
            let start = total_size.saturating_sub(max_bytes);
            file.seek(SeekFrom::Start(start))?;
            let mut bytes = Vec::new();
            file.take(max_bytes).read_to_end(&mut bytes)?;
            Ok::<_, io::Error>(FileTail { bytes, total_size, complete: start == 0 })
        };
        map_kernel_error(read(&mut file), "read", rel).map(Some)
    }

    /// Counts the lines of a file, including a last line without a newline. Returns `None` if the file does not exist
    /// or is larger than `limits::LINE_COUNT_BYTES`.
    ///
    /// # Errors
    /// See [`Root`].
    pub fn count_lines(&self, rel: &str) -> Result<Option<u64>> {
        let Some(file) = self.open_file(rel)? else { return Ok(None) };
        if map_kernel_error(file.metadata(), "read", rel)?.len() > limits::LINE_COUNT_BYTES {
            return Ok(None);
        }
        let mut chunk = vec![0; limits::PIPE_CHUNK];
        let (mut lines, mut last) = (0, b'\n');
        // The limit also applies to a file that grows while it is read.
        let mut file = file.take(limits::LINE_COUNT_BYTES);
        loop {
            let count = match file.read(&mut chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                count => map_kernel_error(count, "read", rel)?,
            };
            let Some(&end) = chunk[..count].last() else { break };
            lines += chunk[..count].iter().filter(|&&byte| byte == b'\n').count() as u64;
            last = end;
        }
        Ok(Some(lines + u64::from(last != b'\n')))
    }

    /// Opens a new terminal at `/dev/pts/ptmx`, non-blocking. Only the real device on a devpts is used, never a file or
    /// a FIFO of the workload.
    ///
    /// # Errors
    /// See [`Root`]; also `InvalidPath` when another entry has this path.
    pub fn open_ptmx(&self) -> Result<OwnedFd> {
        const PTMX: &str = "/dev/pts/ptmx";
        /// `DEVPTS_SUPER_MAGIC` of linux/magic.h.
        const DEVPTS: i64 = 0x1cd1;
        let found =
            self.find(PTMX)?.ok_or_else(|| invalid_path("open", PTMX, "the container has no terminals"))?;
        let stat = map_kernel_error(fstat(&found), "open", PTMX)?;
        let device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && (major(stat.st_rdev), minor(stat.st_rdev)) == (5, 2);
        if !device || map_kernel_error(fstatfs(&found), "open", PTMX)?.f_type != DEVPTS {
            return Err(invalid_path("open", PTMX, "it is not the terminal multiplexer device"));
        }
        reopen(&found, OFlags::RDWR, PTMX).map(OwnedFd::from)
    }

    /// Returns the metadata of an entry, after following links inside the tree; `None` if the entry does not exist.
    ///
    /// # Errors
    /// See [`Root`].
    pub fn metadata(&self, rel: &str) -> Result<Option<Metadata>> {
        let Some(found) = self.find(rel)? else { return Ok(None) };
        map_kernel_error(File::from(found).metadata(), "read", rel).map(Some)
    }

    /// Returns whether an entry of any type exists; `false` for a dangling link.
    ///
    /// # Errors
    /// See [`Root`].
    pub fn exists(&self, rel: &str) -> Result<bool> {
        Ok(self.find(rel)?.is_some())
    }

    /// Returns whether the path is that of a folder.
    ///
    /// # Errors
    /// See [`Root`].
    pub fn is_dir(&self, rel: &str) -> Result<bool> {
        Ok(self.metadata(rel)?.is_some_and(|metadata| metadata.is_dir()))
    }

    /// Counts the entries of a folder, up to `ENTRY_COUNT`; `None` if the folder does not exist.
    ///
    /// # Errors
    /// See [`Root`].
    pub fn entry_count(&self, rel: &str) -> Result<Option<u64>> {
        let opened = none_if_missing(self.resolve(rel, FOLDER, IN_ROOT));
        let Some(folder) = map_kernel_error(opened, "list", rel)? else { return Ok(None) };
        let mut count = 0;
        for entry in dir_entries(map_kernel_error(Dir::new(folder), "list", rel)?) {
            map_kernel_error(entry, "list", rel)?;
            count += 1;
            if count == ENTRY_COUNT {
                break;
            }
        }
        Ok(Some(count))
    }

    /// Returns the names in a folder, in no particular order. The list is empty if the folder does not exist. Names
    /// that are not UTF-8 are omitted.
    ///
    /// # Errors
    /// See [`Root`]; also `InvalidPath` for a folder with more than `most` entries.
    pub fn entries(&self, rel: &str, most: usize) -> Result<Vec<String>> {
        let opened = none_if_missing(self.resolve(rel, FOLDER, IN_ROOT));
        let Some(folder) = map_kernel_error(opened, "list", rel)? else { return Ok(Vec::new()) };
        let mut names = Vec::new();
        for entry in dir_entries(map_kernel_error(Dir::new(folder), "list", rel)?) {
            let entry = map_kernel_error(entry, "list", rel)?;
            if names.len() == most {
                return Err(invalid_path("list", rel, &format!("it has more than {most} entries")));
            }
            names.extend(entry.file_name().to_str().ok().map(str::to_owned));
        }
        Ok(names)
    }

    /// Creates a folder and its missing parents, each with mode 0755 and the owner of its parent.
    ///
    /// # Errors
    /// See [`Root`]; also `InvalidPath` when one of the names exists and is not a folder.
    pub fn make_dirs(&self, rel: &str) -> Result<()> {
        let names: Vec<&str> = rel.split('/').filter(|name| !name.is_empty()).collect();
        if names.iter().any(|name| is_dots(name.as_bytes())) {
            return Err(invalid_path("create", rel, "no folder can have this name"));
        }
        // Usually all folders but the last exist: then one lookup is enough, instead of one for each parent.
        let above = names.split_last().map(|(_, above)| above.join("/")).unwrap_or_default();
        let (mut folder, mut done, left) = match self.resolve(&above, FOLDER, IN_ROOT) {
            Ok(folder) => (folder, above, &names[names.len().saturating_sub(1)..]),
            Err(_) => {
                (map_kernel_error(self.resolve("", FOLDER, IN_ROOT), "make", rel)?, String::new(), &names[..])
            }
        };
        for name in left {
            done = if done.is_empty() { (*name).to_owned() } else { format!("{done}/{name}") };
            let made = match mkdirat(&folder, *name, Mode::from_raw_mode(0o755)) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(error) => return map_kernel_error(Err(error), "make", rel),
            };
            // The path is resolved from the root again, so that a link leads where it would lead the workload.
            let next = map_kernel_error(self.resolve(&done, FOLDER, IN_ROOT), "create", rel)?;
            if made {
                map_kernel_error(inherit_owner(&next, &folder), "make", rel)?;
            }
            folder = next;
        }
        Ok(())
    }

    /// Creates a folder that all users can write to (mode 1777) and its missing parents, or sets the mode of an
    /// existing folder. A link is not changed.
    ///
    /// # Errors
    /// The same as for [`Root::make_dirs`].
    pub fn make_shared_dir(&self, rel: &str) -> Result<()> {
        const SHARED: u32 = 0o1777;
        if self.is_link(rel)? {
            return Ok(());
        }
        self.make_dirs(rel)?;
        let folder = map_kernel_error(self.resolve(rel, FOLDER | OFlags::NOFOLLOW, IN_ROOT), "prepare", rel)?;
        if map_kernel_error(fstat(&folder), "prepare", rel)?.st_mode & 0o7777 != SHARED {
            map_kernel_error(fchmod(&folder, Mode::from_raw_mode(SHARED)), "prepare", rel)?;
        }
        Ok(())
    }

    /// Creates a folder that only its owner can access (mode 0700), and its missing parents (mode 0755). A folder that
    /// already exists keeps its mode.
    ///
    /// # Errors
    /// The same as for [`Root::make_dirs`].
    pub fn make_private_dir(&self, rel: &str) -> Result<()> {
        let (parent, name) = split(rel, "make")?;
        if parent != "." {
            self.make_dirs(parent)?;
        }
        let folder = map_kernel_error(self.resolve(parent, FOLDER, IN_ROOT), "make", rel)?;
        match mkdirat(&folder, name, Mode::RWXU) {
            Ok(()) => {
                let made =
                    map_kernel_error(self.resolve(rel, FOLDER | OFlags::NOFOLLOW, IN_ROOT), "make", rel)?;
                map_kernel_error(inherit_owner(&made, &folder), "make", rel)
            }
            Err(Errno::EXIST) => map_kernel_error(self.resolve(rel, FOLDER, IN_ROOT), "make", rel).map(drop),
            Err(error) => map_kernel_error(Err(error), "make", rel),
        }
    }

    /// Creates a symbolic link with this target. An existing entry with the name is replaced unless it is a folder.
    ///
    /// # Errors
    /// See [`Root`]; also `InvalidPath` when the parent folder is missing or a folder has the name.
    pub fn link_new(&self, rel: &str, target: &str) -> Result<()> {
        let (folder, name) = self.folder_of(rel, "write")?;
        let temp = temp_name();
        map_kernel_error(symlinkat(target, &folder, &temp), "write", rel)?;
        let renamed = renameat(&folder, &temp, &folder, name);
        if renamed.is_err() {
            let _ = unlinkat(&folder, &temp, AtFlags::empty());
        }
        map_kernel_error(renamed, "write", rel)
    }

    /// Returns the path of an entry without links, as this process sees it; `None` if the entry does not exist. Use
    /// this only where no workload can change the tree, because otherwise the path may change at any moment.
    ///
    /// # Errors
    /// See [`Root`].
    pub fn real_path(&self, rel: &str) -> Result<Option<PathBuf>> {
        let Some(found) = self.find(rel)? else { return Ok(None) };
        map_kernel_error(std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())), "open", rel)
            .map(Some)
    }

    /// Removes a folder if it is empty. Returns whether the folder was removed.
    ///
    /// # Errors
    /// See [`Root`].
    pub fn remove_empty_dir(&self, rel: &str) -> Result<bool> {
        let (parent, name) = split(rel, "remove")?;
        let folder = none_if_missing(self.resolve(parent, OFlags::PATH | OFlags::DIRECTORY, IN_ROOT));
        let Some(folder) = map_kernel_error(folder, "remove", rel)? else { return Ok(false) };
        match unlinkat(&folder, name, AtFlags::REMOVEDIR) {
            Ok(()) => Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(error) => map_kernel_error(Err(error), "remove", rel),
        }
    }

    /// Replaces a file by a file with exactly these bytes and this mode, owned by the owner of the parent folder. An
    /// existing entry is replaced, even if it is a link, and is not followed.
    ///
    /// # Errors
    /// See [`Root`]; also `InvalidPath` when the parent folder does not exist or the entry is a folder.
    pub fn write_new(&self, rel: &str, bytes: &[u8], mode: u32) -> Result<()> {
        self.put_new(rel, bytes, mode, true)
    }

    /// Replaces a file as [`Root::write_new`] does, but does not force the data to the disk: after a power failure, the
    /// file may have its old content or be empty. Use this for large numbers of files that can be written again.
    ///
    /// # Errors
    /// The same as for [`Root::write_new`].
    pub fn write_again(&self, rel: &str, bytes: &[u8], mode: u32) -> Result<()> {
        self.put_new(rel, bytes, mode, false)
    }

    fn put_new(&self, rel: &str, bytes: &[u8], mode: u32, synced: bool) -> Result<()> {
        let (folder, name) = self.folder_of(rel, "write")?;
        let temp = temp_name();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fill = || {
            let mut file = File::from(openat(&folder, &temp, flags, Mode::RUSR | Mode::WUSR)?);
            inherit_owner(&file, &folder)?;
            fchmod(&file, Mode::from_raw_mode(mode))?;
            file.write_all(bytes)?;
            if synced {
                file.sync_all()?;
            }
            renameat(&folder, &temp, &folder, name)?;
            Ok::<_, io::Error>(())
        };
        let written = fill();
        if written.is_err() {
            // The temporary file does not exist if its creation failed.
            let _ = unlinkat(&folder, &temp, AtFlags::empty());
        }
        map_kernel_error(
            written.and_then(|()| if synced { sync_folder(&folder) } else { Ok(()) }),
            "write",
            rel,
        )
    }

    /// Opens a file for appending, and creates it if necessary (mode 0644, with the owner of the parent folder). The
    /// file must have only this name: it must be neither a symbolic link nor a hard link that the workload created to a
    /// file of another user.
    ///
    /// # Errors
    /// See [`Root`]; also `InvalidPath` when the parent folder does not exist, or when the entry is a link or has
    /// several names.
    pub fn append_open(&self, rel: &str) -> Result<File> {
        let (folder, name) = self.folder_of(rel, "append to")?;
        let new = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        for _ in 0..limits::OPEN_RETRIES {
            match openat(&folder, name, new, Mode::from_raw_mode(0o644)) {
                Err(Errno::EXIST) => {}
                made => {
                    let made = File::from(map_kernel_error(made, "append to", rel)?);
                    map_kernel_error(inherit_owner(&made, &folder), "append to", rel)?;
                    return Ok(made);
                }
            }
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let found = match openat(&folder, name, flags, Mode::empty()) {
                Err(Errno::NOENT) => continue,
                found => map_kernel_error(found, "append to", rel)?,
            };
            check_regular(&found, rel)?;
            if map_kernel_error(fstat(&found), "append to", rel)?.st_nlink > 1 {
                return Err(invalid_path("append to", rel, "the file has several names (hard links)"));
            }
            return reopen(&found, OFlags::WRONLY | OFlags::APPEND, rel);
        }
        map_kernel_error(Err(Errno::AGAIN), "append to", rel)
    }

    /// Removes an entry that is not a folder. Returns whether the entry existed.
    ///
    /// # Errors
    /// See [`Root`]; also `InvalidPath` for a folder.
    pub fn remove(&self, rel: &str) -> Result<bool> {
        let (parent, name) = split(rel, "remove")?;
        let folder = none_if_missing(self.resolve(parent, OFlags::PATH | OFlags::DIRECTORY, IN_ROOT));
        let Some(folder) = map_kernel_error(folder, "remove", rel)? else { return Ok(false) };
        let removed = none_if_missing(unlinkat(&folder, name, AtFlags::empty()));
        Ok(map_kernel_error(removed, "remove", rel)?.is_some())
    }

    /// Opens a folder as a working directory (`O_PATH`: for `fchdir`, not for listing). Unlike other functions, this
    /// refuses paths that point out of the tree instead of resolving them inside: absolute paths, absolute links, `..`
    /// beyond the root.
    ///
    /// # Errors
    /// `InvalidCwd` with `details.reason` `missing`, `not_a_directory` or `leaves_the_tree`; otherwise see [`Root`].
    pub fn dir_beneath(&self, rel: &str) -> Result<OwnedFd> {
        let refuse = |reason: &str, problem: &str| {
            let message = format!("The working directory {rel} {problem}");
            Err(Error::new(Code::InvalidCwd, message).detail("reason", reason))
        };
        match self.resolve(rel, OFlags::PATH | OFlags::DIRECTORY, BENEATH) {
            Err(Errno::NOENT) => refuse("missing", "does not exist in the workspace"),
            Err(Errno::NOTDIR) => refuse("not_a_directory", "is not a folder"),
            Err(Errno::XDEV) => refuse("leaves_the_tree", "leads out of the workspace"),
            opened => map_kernel_error(opened, "enter", rel),
        }
    }

    pub(super) fn find(&self, rel: &str) -> Result<Option<OwnedFd>> {
        map_kernel_error(none_if_missing(self.resolve(rel, OFlags::PATH, IN_ROOT)), "open", rel)
    }

    pub(super) fn folder_of<'a>(&self, rel: &'a str, verb: &str) -> Result<(OwnedFd, &'a str)> {
        let (parent, name) = split(rel, verb)?;
        let folder = self.resolve(parent, FOLDER, IN_ROOT);
        Ok((map_kernel_error(folder, verb, rel)?, name))
    }

    pub(super) fn resolve(&self, rel: &str, flags: OFlags, how: ResolveFlags) -> rustix::io::Result<OwnedFd> {
        open_resolved(&self.top, if rel.is_empty() { "." } else { rel }, flags, how)
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.top.as_fd()
    }
}

/// Calls openat2(2), and calls it again if a concurrent rename interferes.
pub(super) fn open_resolved(
    at: impl AsFd,
    path: impl Arg + Copy,
    flags: OFlags,
    how: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let mut escapes = 0;
    for _ in 0..limits::OPEN_RETRIES {
        match openat2(&at, path, flags | OFlags::CLOEXEC, Mode::empty(), how) {
            // With `..` in the path, any rename or mount on the machine during the lookup causes EAGAIN.
            Err(Errno::AGAIN) => std::thread::yield_now(),
            // The path leads out of the tree, or the entry was moved out during the lookup (complete_walk() in
            // fs/namei.c).
            Err(Errno::XDEV) if escapes < ESCAPE_RETRIES => escapes += 1,
            opened => return opened,
        }
    }
    Err(Errno::AGAIN)
}

/// Opens the inode of an `O_PATH` descriptor through this process's own `/proc`, which cannot lead elsewhere.
pub(super) fn reopen(found: &OwnedFd, flags: OFlags, rel: &str) -> Result<File> {
    // Without O_NONBLOCK, a lease on the file (fcntl(2), F_SETLEASE) would block this call until the holder of the
    // lease responds.
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    match open(format!("/proc/self/fd/{}", found.as_raw_fd()), flags, Mode::empty()) {
        Err(Errno::NOENT) => Err(Error::internal("/proc is not mounted; berth needs it")),
        opened => map_kernel_error(opened, "open", rel).map(File::from),
    }
}

pub(super) fn check_regular(found: &OwnedFd, rel: &str) -> Result<()> {
    match FileType::from_raw_mode(map_kernel_error(fstat(found), "open", rel)?.st_mode) {
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(invalid_path("open", rel, "it is a folder")),
        FileType::Symlink => Err(invalid_path("open", rel, "it is a symbolic link")),
        _ => Err(invalid_path("open", rel, "it is not a regular file")),
    }
}

/// Gives a file the owner of its folder: in a container, host root is not a valid owner.
pub(super) fn inherit_owner(file: impl AsFd, folder: &OwnedFd) -> rustix::io::Result<()> {
    let (file_is, folder_is) = (fstat(&file)?, fstat(folder)?);
    if (file_is.st_uid, file_is.st_gid) == (folder_is.st_uid, folder_is.st_gid) {
        return Ok(());
    }
    let owner = (Uid::from_raw(folder_is.st_uid), Gid::from_raw(folder_is.st_gid));
    match fchown(file, Some(owner.0), Some(owner.1)) {
        // Only root may change owners.
        Err(Errno::PERM) => Ok(()),
        done => done,
    }
}

/// Splits a path into its folder and the entry's name.
pub(super) fn split<'a>(rel: &'a str, verb: &str) -> Result<(&'a str, &'a str)> {
    let (parent, name) = match rel.rsplit_once('/') {
        None | Some(("", _)) => (".", rel.trim_start_matches('/')),
        Some(split) => split,
    };
    if name.is_empty() || is_dots(name.as_bytes()) {
        return Err(invalid_path(verb, rel, "no file can have this name"));
    }
    Ok((parent, name))
}

/// Returns the entries of a folder without `.` and `..`.
pub fn dir_entries(dir: Dir) -> impl Iterator<Item = rustix::io::Result<DirEntry>> {
    dir.filter(|entry| entry.as_ref().map_or(true, |entry| !is_dots(entry.file_name().to_bytes())))
}

pub(super) fn is_dots(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}

pub(super) fn none_if_missing<T>(done: rustix::io::Result<T>) -> rustix::io::Result<Option<T>> {
    match done {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        done => done.map(Some),
    }
}

pub(super) fn invalid_path(verb: &str, rel: &str, why: &str) -> Error {
    Error::new(Code::InvalidPath, format!("Could not {verb} {rel}: {why}"))
}

/// Converts an error of the kernel to berth's error for an operation inside a tree.
pub(super) fn map_kernel_error<T, E: Into<io::Error>>(
    done: Result<T, E>,
    verb: &str,
    rel: &str,
) -> Result<T> {
    let error: io::Error = match done {
        Ok(value) => return Ok(value),
        Err(error) => error.into(),
    };
    let why = match Errno::from_io_error(&error) {
        Some(Errno::NOENT) => "it, or a folder above it, does not exist",
        Some(Errno::NOTDIR) => "a part of the path is not a folder",
        Some(Errno::ISDIR) => "it is a folder",
        Some(Errno::LOOP) => "a link in the path is not allowed, or part of a loop",
        Some(Errno::XDEV) => "it leads out of the workspace",
        Some(Errno::NAMETOOLONG | Errno::INVAL) => "no file can have this name",
        // Callers that create a name check first or accept a conflict: another process was faster.
        Some(Errno::AGAIN | Errno::EXIST | Errno::NOTEMPTY) => {
            let message = format!("Could not {verb} {rel}: it is being changed; try again");
            return Err(Error::new(Code::Busy, message));
        }
        Some(Errno::NOSYS) => return Err(openat2_missing()),
        _ => return Err::<T, _>(error).at(verb, rel),
    };
    Err(invalid_path(verb, rel, why))
}

pub(super) fn openat2_missing() -> Error {
    Error::internal(
        "openat2(2) is missing or forbidden; berth needs Linux 5.6 or newer, without a seccomp filter on this call",
    )
}

#[cfg(test)]
#[path = "beneath_tests.rs"]
mod tests;

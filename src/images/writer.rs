//! Writes an untrusted tree, and nothing outside it. The kernel resolves each directory inside the tree (openat2(2),
//! RESOLVE_IN_ROOT), so a link leads where it would lead inside the container, as in container engines; the last
//! component of a name is never followed. Devices and FIFOs are omitted: a container gets its own. Set-user-ID and
//! similar bits are kept only on regular files (sudo needs them) with an owner that exists in a container.
//!
//! A writer has no locks. One thread writes, and no other thread may change the tree.

use std::collections::HashSet;
use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags,
    chmodat, chownat, fchmod, fchown, fsetxattr, fstat, fstatvfs, futimens, linkat, makedev, mkdirat,
    mknodat, open, openat, openat2, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use super::archive::{ContentPart, Member, MemberContent, MemberKind};
use super::hasher::FileHasher;
use super::listing::{FileDigest, KnownDigests, is_content_xattr};
use super::rules::{ArchiveRules, BACKUP, IMAGE};
use super::sums;
use crate::base::{At, Code, Error, Result, limits};
use crate::store::beneath::dir_entries;
use crate::store::tree;

/// Disk space that an import leaves free: enough for all other files of berth.
pub(super) const IMAGE_FREE_BYTES: u64 = 256 << 20;
/// Inodes that an import leaves free.
const IMAGE_FREE_FILES: u64 = 10_000;
/// Maximum user and group id in a container, where 65536 are mapped; the kernel's `nobody`, 65534, replaces any other.
const IMAGE_ID_MOST: u64 = 65535;

/// The numbers of entries that were omitted or changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Number of devices and FIFOs that were omitted.
    pub devices: u64,
    /// Number of entries that were assigned to the overflow user, because their owner does not exist in a container.
    pub owners: u64,
    /// Number of extended attributes that were omitted because they belong to a host.
    pub attributes: u64,
}

pub(super) struct TreeWriter {
    root: OwnedFd,
    path: PathBuf,
    /// The directory of the last entry, with its path.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Whether an entry was replaced, so that the path of `parent` may now lead to another directory.
    stale: bool,
    rules: &'static ArchiveRules,
    /// Computes the digests of an image's files; `None` for a backup.
    hasher: Option<FileHasher>,
    /// The times of directories, which are set at the end because writing entries changes them; and modes that are set
    /// at the end because they would prevent the owner from writing.
    times: Vec<(Vec<u8>, Timestamps, Option<Mode>)>,
    /// Hashes of the paths that the current layer created; the layer's whiteouts do not remove these paths.
    layer: HashSet<u64>,
    state: RandomState,
    pub(super) left_out: LeftOut,
    pub(super) entries: u64,
    pub(super) bytes: u64,
    /// Number of bytes written since the last check of free space. A small file counts as a larger one.
    unchecked_bytes: u64,
}

impl TreeWriter {
    /// Creates a writer for the directory at `path`, which must be private.
    pub(super) fn new(path: &Path) -> Result<TreeWriter> {
        TreeWriter::with(path, &IMAGE, Some(FileHasher::start()?))
    }

    /// Creates a writer for a backup, which preserves every entry exactly.
    pub(super) fn exact(path: &Path) -> Result<TreeWriter> {
        TreeWriter::with(path, &BACKUP, None)
    }

    fn with(path: &Path, rules: &'static ArchiveRules, hasher: Option<FileHasher>) -> Result<TreeWriter> {
        let root = open(path, FOLDER, Mode::empty()).at("open", path)?;
        Ok(TreeWriter {
            root,
            path: path.to_owned(),
            parent: None,
            stale: false,
            rules,
            hasher,
            times: Vec::new(),
            layer: HashSet::new(),
            state: RandomState::new(),
            left_out: LeftOut::default(),
            entries: 0,
            bytes: 0,
            unchecked_bytes: 0,
        })
    }

    /// Begins a layer. The whiteouts of the layer apply to the entries that exist now.
    pub(super) fn next_layer(&mut self) {
        self.layer.clear();
    }

    /// Writes one member and returns the digest of an exact file ([`sums`]).
    ///
    /// # Errors
    /// `InvalidImage` with the member's name, `DiskFull`, `Internal`.
    pub(super) fn put(
        &mut self,
        member: &Member,
        content: &mut MemberContent<'_>,
    ) -> Result<Option<FileDigest>> {
        let path = normalize(&member.path)?;
        self.entries += 1;
        if self.entries > self.rules.entries {
            return Err(super::listing::too_many());
        }
        self.check_room(0)?;
        if path.is_empty() {
            return match member.kind {
                MemberKind::Folder => {
                    let root = self.root.try_clone().at("open", &self.path)?;
                    // All users of the container must be able to enter the root directory.
                    self.attributes(&root, member, member.mode & 0o7777 | 0o555)?;
                    self.times.push((Vec::new(), self.times(member), None));
                    Ok(None)
                }
                _ => Err(refused(member, "has no name")),
            };
        }
        if !self.rules.exact {
            self.layer.insert(self.state.hash_one(&path));
        }
        let (folder, name) = split(&path);
        self.enter(folder, member)?;
        match member.kind {
            MemberKind::Device => self.device(name, member)?,
            MemberKind::Folder => self.folder(&path, name, member)?,
            MemberKind::File => return self.file(name, member, content),
            MemberKind::Symlink => {
                if member.target.is_empty() || member.target.len() > limits::IMAGE_PATH_BYTES {
                    return Err(refused(member, "is a link without a valid target"));
                }
                self.make(name, member, |at, name| symlinkat(&member.target[..], at, name))?;
                let (uid, gid) = self.owner(member);
                let at = self.parent_fd()?;
                if self.can_chown() {
                    for_member(chownat(at, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW), member)?;
                }
                for_member(utimensat(at, name, &self.times(member), AtFlags::SYMLINK_NOFOLLOW), member)?;
            }
            MemberKind::Link => {
                let target = normalize(&member.target)?;
                let (folder, last) = split(&target);
                if target == path || target.is_empty() {
                    return Err(refused(member, "is a link to itself"));
                }
                let from = match self.resolve(folder) {
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                        return Err(refused(member, "is a link to a missing file"));
                    }
                    from => for_member(from, member)?,
                };
                match self.make(name, member, |at, name| linkat(&from, last, at, name, AtFlags::empty())) {
                    Err(_) if statat(&from, last, AtFlags::SYMLINK_NOFOLLOW).is_err() => {
                        return Err(refused(member, "is a link to a missing file"));
                    }
                    made => made?,
                }
            }
        }
        Ok(None)
    }

    /// Removes an entry of an earlier layer; entries of this layer are kept.
    pub(super) fn whiteout(&mut self, path: &[u8]) -> Result<()> {
        let path = normalize(path)?;
        let (folder, name) = split(&path);
        if path.is_empty() {
            return Err(Error::new(Code::InvalidImage, "A layer removes the whole tree"));
        }
        let at = match self.resolve(folder) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            at => at.at("open", display_path(folder))?,
        };
        self.parent = None;
        self.remove_earlier(&at, name, &path, 0)
    }

    /// Removes all entries of earlier layers from a directory.
    pub(super) fn opaque(&mut self, path: &[u8]) -> Result<()> {
        let path = normalize(path)?;
        let folder = match resolve(&self.root, &path, FOLDER, false) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            folder => folder.at("open", display_path(&path))?,
        };
        self.parent = None;
        for name in names(&folder).at("list", display_path(&path))? {
            self.remove_earlier(&folder, &name, &join(&path, &name), 0)?;
        }
        Ok(())
    }

    fn remove_earlier(&mut self, at: &OwnedFd, name: &[u8], path: &[u8], depth: usize) -> Result<()> {
        let ours = self.layer.contains(&self.state.hash_one(path));
        let below = FOLDER | OFlags::NOFOLLOW;
        match openat(at, name, below, Mode::empty()) {
            Err(Errno::NOENT) => Ok(()),
            Err(Errno::NOTDIR | Errno::LOOP) if ours => Ok(()),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                unlinkat(at, name, AtFlags::empty()).at("remove", display_path(path))
            }
            Err(error) => Err(error).at("remove", display_path(path)),
            Ok(_) if depth > limits::IMAGE_DEPTH => Err(too_deep(limits::IMAGE_DEPTH)),
            Ok(folder) => {
                for name in names(&folder).at("list", display_path(path))? {
                    self.remove_earlier(&folder, &name, &join(path, &name), depth + 1)?;
                }
                match unlinkat(at, name, AtFlags::REMOVEDIR) {
                    _ if ours => Ok(()),
                    // The directory contains entries of this layer.
                    Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
                    Err(error) => Err(error).at("remove", display_path(path)),
                }
            }
        }
    }

    /// Sets the directories' times and returns the digests of all files.
    pub(super) fn finish(mut self) -> Result<(KnownDigests, LeftOut)> {
        self.room()?;
        for (path, times, mode) in self.times.iter().rev() {
            // The directory may have been replaced or removed.
            if let Ok(folder) = resolve(&self.root, path, FOLDER | OFlags::NOFOLLOW, self.rules.exact) {
                futimens(&folder, times).at("write", display_path(path))?;
                if let Some(mode) = mode {
                    fchmod(&folder, *mode).at("write", display_path(path))?;
                }
            }
        }
        let known = self.hasher.map(FileHasher::finish).transpose()?;
        Ok((known.unwrap_or_default(), self.left_out))
    }

    fn folder(&mut self, path: &[u8], name: &[u8], member: &Member) -> Result<()> {
        match mkdirat(self.parent_fd()?, name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) if self.rules.exact => return Err(refused(member, "occurs twice")),
            Err(Errno::EXIST) => {
                let found = for_member(statat(self.parent_fd()?, name, AtFlags::SYMLINK_NOFOLLOW), member)?;
                if rustix::fs::FileType::from_raw_mode(found.st_mode) != rustix::fs::FileType::Directory {
                    self.stale = true;
                    for_member(unlinkat(self.parent_fd()?, name, AtFlags::empty()), member)?;
                    for_member(mkdirat(self.parent_fd()?, name, Mode::RWXU), member)?;
                }
            }
            Err(error) => return for_member(Err(error), member),
        }
        let folder =
            for_member(openat(self.parent_fd()?, name, FOLDER | OFlags::NOFOLLOW, Mode::empty()), member)?;
        // Sticky and set-group-ID bits are meaningful on directories, set-user-ID is not.
        let mode = if self.rules.exact { member.mode } else { member.mode & 0o3777 };
        let later = (!self.can_chown() && mode & 0o700 != 0o700).then(|| Mode::from_raw_mode(mode));
        self.attributes(&folder, member, if later.is_some() { mode | 0o700 } else { mode })?;
        self.times.push((path.to_vec(), self.times(member), later));
        Ok(())
    }

    fn device(&mut self, name: &[u8], member: &Member) -> Result<()> {
        let Some(device) = member.device.filter(|_| self.rules.exact) else {
            self.left_out.devices += 1;
            return Ok(());
        };
        let number = makedev(device.major, device.minor);
        let mode = Mode::from_raw_mode(member.mode);
        self.make(name, member, |at, name| mknodat(at, name, device.kind, mode, number))?;
        let (uid, gid) = self.owner(member);
        let at = self.parent_fd()?;
        if self.can_chown() {
            for_member(chownat(at, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW), member)?;
        }
        // The mode is set again because the umask may have changed it. A device is not a link, so chmod(2) does not
        // follow it.
        for_member(chmodat(at, name, mode, AtFlags::empty()), member)?;
        for_member(utimensat(at, name, &self.times(member), AtFlags::SYMLINK_NOFOLLOW), member)
    }

    fn file(
        &mut self,
        name: &[u8],
        member: &Member,
        content: &mut MemberContent<'_>,
    ) -> Result<Option<FileDigest>> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut made = None;
        self.make(name, member, |at, name| {
            made = Some(openat(at, name, flags, Mode::RUSR | Mode::WUSR)?);
            Ok(())
        })?;
        let mut file = File::from(made.ok_or_else(|| Error::internal("A file was not created"))?);
        let mut at = 0_u64;
        let mut digest = self.rules.exact.then(|| sums::start_digest(member));
        content.read(member, &mut |part| {
            match part {
                ContentPart::Data(chunk, part) => {
                    if at > 0 {
                        // Only after a hole, the position must be set; otherwise the position is already correct.
                        use std::io::{Seek as _, SeekFrom};
                        file.seek(SeekFrom::Start(at)).at("write", display_path(&member.path))?;
                    }
                    file.write_all(&chunk.bytes()[part.clone()]).at("write", display_path(&member.path))?;
                    at += part.len() as u64;
                    self.check_room(part.len() as u64)?;
                    match (&mut digest, &self.hasher) {
                        (Some(digest), _) => digest.update(&chunk.bytes()[part]),
                        (None, Some(hasher)) => hasher.bytes(chunk, part),
                        (None, None) => {}
                    }
                }
                ContentPart::Hole(length) => {
                    at += length;
                    if let Some(hasher) = &self.hasher {
                        hasher.zeros(length);
                    }
                }
            }
            Ok(())
        })?;
        self.bytes = self.bytes.saturating_add(member.size);
        if self.bytes > self.rules.bytes {
            let most = self.rules.bytes >> 30;
            return Err(Error::new(
                Code::InvalidImage,
                format!("The archive unpacks to more than {most} GiB"),
            ));
        }
        file.set_len(member.size).at("write", display_path(&member.path))?;
        self.attributes(&file, member, member.mode)?;
        for_member(futimens(&file, &self.times(member)), member)?;
        if let Some(hasher) = &self.hasher {
            hasher.end(for_member(fstat(&file), member)?.st_ino);
        }
        Ok(digest.map(|digest| digest.finalize().into()))
    }

    /// Sets owner, mode and extended attributes, in this order: changing the owner clears set-user-ID and capabilities.
    fn attributes(&mut self, file: impl std::os::fd::AsFd, member: &Member, mode: u32) -> Result<()> {
        let exact = self.rules.exact;
        let known = exact || member.uid <= IMAGE_ID_MOST && member.gid <= IMAGE_ID_MOST;
        let (uid, gid) = self.owner(member);
        if self.can_chown() {
            for_member(fchown(&file, Some(uid), Some(gid)), member)?;
        }
        let folder = member.kind == MemberKind::Folder;
        let mode = if known || folder { mode } else { mode & 0o1777 };
        for_member(fchmod(&file, Mode::from_raw_mode(mode)), member)?;
        for (name, value) in &member.attributes {
            if !(exact || is_content_xattr(name)) || value.len() > limits::IMAGE_XATTR_BYTES || !known {
                self.left_out.attributes += 1;
                continue;
            }
            match fsetxattr(&file, &name[..], value, XattrFlags::empty()) {
                Err(Errno::NOTSUP) if name != b"security.capability" && !is_overlay(name) => {
                    self.left_out.attributes += 1;
                }
                // These attributes are labels of this host's security module.
                Err(_) if exact && name.starts_with(b"security.") && name != b"security.capability" => {
                    self.left_out.attributes += 1;
                }
                set => for_member(set, member)?,
            }
        }
        Ok(())
    }

    fn owner(&mut self, member: &Member) -> (Uid, Gid) {
        const NOBODY: u32 = 65534;
        let most = if self.rules.exact { u64::from(u32::MAX) } else { IMAGE_ID_MOST };
        let known = |id: u64| u32::try_from(id).ok().filter(|id| u64::from(*id) <= most);
        let (uid, gid) = (known(member.uid), known(member.gid));
        self.left_out.owners += u64::from(uid.is_none() || gid.is_none());
        (Uid::from_raw(uid.unwrap_or(NOBODY)), Gid::from_raw(gid.unwrap_or(NOBODY)))
    }

    /// Returns whether this process can set owners. A user other than root restores all files as its own.
    fn can_chown(&self) -> bool {
        !self.rules.exact || rustix::process::geteuid().is_root()
    }

    fn times(&self, member: &Member) -> Timestamps {
        let nanos = if self.rules.exact { member.nanos } else { 0 };
        Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: member.mtime, tv_nsec: nanos.into() },
        }
    }

    /// Creates an entry in the current directory, and replaces an existing entry of the same name.
    fn make(
        &mut self,
        name: &[u8],
        member: &Member,
        mut make: impl FnMut(&OwnedFd, &[u8]) -> rustix::io::Result<()>,
    ) -> Result<()> {
        match make(self.parent_fd()?, name) {
            Err(Errno::EXIST) if self.rules.exact => return Err(refused(member, "occurs twice")),
            Err(Errno::EXIST) => {}
            made => return for_member(made, member),
        }
        match unlinkat(self.parent_fd()?, name, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::ISDIR) => {
                let at = format!("/proc/self/fd/{}", self.parent_fd()?.as_raw_fd());
                let text = std::str::from_utf8(name);
                let text = text.map_err(|_| refused(member, "replaces a folder and is not UTF-8"))?;
                tree::remove_tree(Path::new(&at), text)?;
            }
            Err(error) => return for_member(Err(error), member),
        }
        self.stale = true;
        for_member(make(self.parent_fd()?, name), member)
    }

    fn parent_fd(&self) -> Result<&OwnedFd> {
        self.parent.as_ref().map(|(_, fd)| fd).ok_or_else(|| Error::internal("No directory was entered"))
    }

    /// Enters `folder`. Missing directories are created and are owned by root.
    fn enter(&mut self, folder: &[u8], member: &Member) -> Result<()> {
        if !self.stale && self.parent.as_ref().is_some_and(|(path, _)| path == folder) {
            return Ok(());
        }
        self.stale = false;
        if folder.iter().filter(|byte| **byte == b'/').count() >= self.rules.depth {
            return Err(too_deep(self.rules.depth));
        }
        let fd = match self.resolve(folder) {
            Err(Errno::NOENT) => self.make_folders(folder, member)?,
            Err(Errno::NOTDIR) => return Err(refused(member, "has a parent that is not a directory")),
            Err(Errno::LOOP) if self.rules.exact => return Err(refused(member, "is behind a link")),
            Err(Errno::LOOP) => return Err(refused(member, "is behind a loop of links")),
            fd => for_member(fd, member)?,
        };
        self.parent = Some((folder.to_vec(), fd));
        Ok(())
    }

    fn make_folders(&mut self, folder: &[u8], member: &Member) -> Result<OwnedFd> {
        let mut done: Vec<u8> = Vec::new();
        let mut at = for_member(self.resolve(b""), member)?;
        for name in folder.split(|byte| *byte == b'/') {
            match mkdirat(&at, name, Mode::from_raw_mode(0o755)) {
                Ok(()) => {
                    // The mode is set again because the umask may have changed it.
                    let made =
                        for_member(openat(&at, name, FOLDER | OFlags::NOFOLLOW, Mode::empty()), member)?;
                    for_member(fchmod(&made, Mode::from_raw_mode(0o755)), member)?;
                }
                Err(Errno::EXIST) => {}
                Err(error) => return for_member(Err(error), member),
            }
            done = join(&done, name);
            at = match self.resolve(&done) {
                Err(Errno::NOTDIR | Errno::NOENT | Errno::LOOP) => {
                    return Err(refused(member, "has a parent that is not a directory"));
                }
                at => for_member(at, member)?,
            };
        }
        Ok(at)
    }

    fn resolve(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        resolve(&self.root, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, self.rules.exact)
    }

    /// Checks the free space from time to time. `written` is the number of bytes since the last call.
    fn check_room(&mut self, written: u64) -> Result<()> {
        self.unchecked_bytes = self.unchecked_bytes.saturating_add(written.max(16 << 10));
        if self.unchecked_bytes < 16 << 20 { Ok(()) } else { self.room() }
    }

    fn room(&mut self) -> Result<()> {
        self.unchecked_bytes = 0;
        let room = fstatvfs(&self.root).at("look at", &self.path)?;
        let bytes = room.f_bavail.saturating_mul(room.f_frsize);
        // Some file systems have no fixed number of files and report 0.
        let files = room.f_files > 0 && room.f_favail < IMAGE_FREE_FILES;
        if bytes < IMAGE_FREE_BYTES || files {
            return Err(Error::new(
                Code::DiskFull,
                format!(
                    "Not enough free space on the disk with {}; free some space and try again",
                    self.path.display()
                ),
            ));
        }
        Ok(())
    }
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Opens a directory beneath `root`. With `exact`, follows no links.
fn resolve(root: &OwnedFd, path: &[u8], flags: OFlags, exact: bool) -> rustix::io::Result<OwnedFd> {
    let links = if exact { ResolveFlags::NO_SYMLINKS } else { ResolveFlags::NO_MAGICLINKS };
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_XDEV | links;
    for _ in 0..limits::OPEN_RETRIES {
        match openat2(root, if path.is_empty() { b"." } else { path }, flags, Mode::empty(), how) {
            Err(Errno::AGAIN) => std::thread::yield_now(),
            opened => return opened,
        }
    }
    Err(Errno::AGAIN)
}

/// Normalizes a path: removes slashes at both ends, and components that are `.`. The result is empty for the root
/// itself.
pub(super) fn normalize(path: &[u8]) -> Result<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                let message =
                    format!("'{}' leads out of the archive with '..'", display_path(path).escape_debug());
                return Err(Error::new(Code::InvalidImage, message));
            }
            part => parts.push(part),
        }
    }
    let path = parts.join(&b'/');
    if path.len() > limits::IMAGE_PATH_BYTES {
        return Err(Error::new(
            Code::InvalidImage,
            "The archive has a path that is too long for any file system",
        ));
    }
    Ok(path)
}

pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

pub(super) fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() { name.to_vec() } else { [folder, b"/", name].concat() }
}

fn names(folder: &OwnedFd) -> rustix::io::Result<Vec<Vec<u8>>> {
    dir_entries(Dir::read_from(folder)?).map(|entry| Ok(entry?.file_name().to_bytes().to_vec())).collect()
}

/// Returns whether overlayfs uses the attribute (Documentation/filesystems/overlayfs.rst).
fn is_overlay(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

fn for_member<T>(result: rustix::io::Result<T>, member: &Member) -> Result<T> {
    match result {
        Err(Errno::NAMETOOLONG) => Err(refused(member, "has a name that is too long for the file system")),
        Err(Errno::INVAL | Errno::ILSEQ | Errno::MLINK | Errno::PERM | Errno::ISDIR | Errno::RANGE) => {
            Err(refused(member, "cannot be created as described"))
        }
        result => result.at("unpack", display_path(&member.path)),
    }
}

fn refused(member: &Member, problem: &str) -> Error {
    let path = display_path(&member.path);
    Error::new(Code::InvalidImage, format!("The archive's entry '{}' {problem}", path.escape_debug()))
}

fn too_deep(most: usize) -> Error {
    Error::new(Code::InvalidImage, format!("The tree is deeper than {most} folders"))
}

fn display_path(path: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(path).chars().take(200).collect();
    if text.is_empty() { "/".to_owned() } else { text }
}

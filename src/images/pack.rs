//! Packs a tree into a tar archive (POSIX pax, so that names and attributes of any length fit): for exports, for
//! imported directories, and for backups. Reads only; never follows a link or crosses a mount. Sockets are omitted, and
//! in images also devices and FIFOs. The order is that of the listing, so a tree always gives the same archive.
//!
//! A tree that is exported does not change. A tree that is backed up may change: an entry that disappears is omitted,
//! and a file is stored with the size that it had when it was opened.
//!
//! Thread: `image-pack`, one for each imported directory. It ends when the other end of its pipe is closed.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::thread::{Builder as Thread, JoinHandle};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Stat, fstat, major, minor, open, openat, readlinkat, statat,
};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use sha2::Digest as _;
use tar::{EntryType, Header};

use super::archive::{Device, Member, MemberKind};
use super::listing::{chosen_attributes, is_content_xattr, names_in, too_many};
use super::rules::{ArchiveRules, IMAGE};
use super::sparse::{self, SparseReader};
use super::sums::{self, DigestingReader};
use crate::base::{At, Code, Error, Result, limits};
use crate::proc::Cancel;

/// An archive that is being written into a pipe.
pub(super) struct PackPipe {
    pub(super) reader: File,
    pub(super) thread: PackThread,
}

/// The packing thread. Join it after the pipe was read to its end.
pub(super) struct PackThread(JoinHandle<Result<()>>);

impl PackThread {
    pub(super) fn finish(self) -> Result<()> {
        self.0.join().map_err(|_| Error::internal("The packing thread failed"))?
    }
}

/// Packs the directory at `path` into a pipe.
pub(super) fn pipe(path: &Path, cancel: &Cancel) -> Result<PackPipe> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).at("open", "a pipe")?;
    let (path, cancel) = (path.to_owned(), cancel.clone());
    let work = move || {
        let mut writer = BufWriter::with_capacity(64 << 10, File::from(writer));
        write(&path, &mut writer, &cancel, &mut |_| {})
    };
    let thread = Thread::new().name("image-pack".into()).stack_size(2 * limits::STACK).spawn(work);
    let thread = thread.map_err(|error| Error::internal("Could not start a thread").with_source(error))?;
    Ok(PackPipe { reader: File::from(reader), thread: PackThread(thread) })
}

/// Packs the directory at `path`; `progress` receives the number of entries so far.
///
/// # Errors
/// `Cancelled`, `InvalidImage` for a tree that is too deep or too large, and errors of reading and writing.
pub(super) fn write(
    path: &Path,
    out: &mut dyn Write,
    cancel: &Cancel,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let mut packer = Packer::new(out, &IMAGE, None, cancel, progress);
    packer.tree(path, "", &|_| false)?;
    packer.finish()
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Maximum number of omitted entries that are named; further omitted entries are only counted.
const NAMED: usize = 20;

/// An archive that is being written.
pub(super) struct Packer<'a> {
    out: tar::Builder<&'a mut dyn Write>,
    rules: &'static ArchiveRules,
    /// Receives a checksum line for each entry.
    sums: Option<&'a mut dyn Write>,
    device: u64,
    links: HashMap<u64, Vec<u8>>,
    entries: u64,
    names: Vec<u8>,
    value: Vec<u8>,
    cancel: &'a Cancel,
    progress: &'a mut dyn FnMut(u64),
    /// Entries that the backup does not contain, each with the reason.
    left_out: Vec<String>,
    left_out_count: u64,
}

/// A callback that returns whether to skip a name.
type SkipFn<'a> = &'a dyn Fn(&[u8]) -> bool;

impl<'a> Packer<'a> {
    pub(super) fn new(
        out: &'a mut dyn Write,
        rules: &'static ArchiveRules,
        sums: Option<&'a mut dyn Write>,
        cancel: &'a Cancel,
        progress: &'a mut dyn FnMut(u64),
    ) -> Packer<'a> {
        Packer {
            out: tar::Builder::new(out),
            rules,
            sums,
            device: 0,
            links: HashMap::new(),
            entries: 0,
            names: vec![0; limits::IMAGE_XATTR_BYTES],
            value: vec![0; limits::IMAGE_XATTR_BYTES],
            cancel,
            progress,
            left_out: Vec::new(),
            left_out_count: 0,
        }
    }

    /// Packs the directory at `path` under the name `prefix`; `skip` receives the names in the archive.
    pub(super) fn tree(&mut self, path: &Path, prefix: &str, skip: SkipFn<'_>) -> Result<()> {
        let top = open(path, FOLDER, Mode::empty()).at("open", path)?;
        let stat = fstat(&top).at("read", path)?;
        self.device = stat.st_dev;
        self.links.clear();
        self.folder(top, &stat, &mut prefix.as_bytes().to_vec(), 0, skip)
    }

    /// Packs the file at `path` under the name `name`.
    pub(super) fn file(&mut self, path: &Path, name: &str) -> Result<()> {
        let (Some(folder), Some(last)) = (path.parent(), path.file_name()) else { return Ok(()) };
        let last =
            CString::new(last.as_bytes()).map_err(|_| Error::internal("A file name contains a NUL byte"))?;
        let folder = open(folder, FOLDER, Mode::empty()).at("open", folder)?;
        self.device = fstat(&folder).at("read", path)?.st_dev;
        self.links.clear();
        self.entry(&folder, &last, &mut name.as_bytes().to_vec(), 0, &|_| false)
    }

    /// Adds a file with these bytes, or a directory, owned by the user of this process.
    pub(super) fn add(&mut self, name: &str, bytes: Option<&[u8]>, mode: u32) -> Result<()> {
        let member = Member {
            path: name.as_bytes().to_vec(),
            target: Vec::new(),
            kind: if bytes.is_some() { MemberKind::File } else { MemberKind::Folder },
            mode,
            uid: rustix::process::geteuid().as_raw().into(),
            gid: rustix::process::getegid().as_raw().into(),
            mtime: i64::try_from(crate::base::clock::now_unix_ms() / 1000).unwrap_or(0),
            nanos: 0,
            device: None,
            size: bytes.map_or(0, |bytes| bytes.len() as u64),
            attributes: Vec::new(),
            pieces: None,
        };
        self.put(&member, bytes.unwrap_or_default())
    }

    /// Adds a file without a checksum line.
    pub(super) fn add_last(&mut self, name: &str, size: u64, content: impl Read) -> Result<()> {
        let mut header = Header::new_ustar();
        header.set_mode(0o600);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        self.out.append_data(&mut header, name, content).at("write", name)
    }

    /// Flushes the checksums.
    pub(super) fn end_sums(&mut self) -> Result<()> {
        self.sums.take().map_or(Ok(()), Write::flush).at("write", "the checksums")
    }

    /// Returns some of the omitted entries, and the number of all omitted entries.
    pub(super) fn left_out(&self) -> (&[String], u64) {
        (&self.left_out, self.left_out_count)
    }

    /// Completes the archive.
    pub(super) fn finish(self) -> Result<()> {
        self.out.into_inner().and_then(Write::flush).at("write", "the archive")
    }

    fn folder(
        &mut self,
        fd: OwnedFd,
        stat: &Stat,
        path: &mut Vec<u8>,
        depth: usize,
        skip: SkipFn<'_>,
    ) -> Result<()> {
        if depth > self.rules.depth {
            let most = self.rules.depth;
            if self.rules.exact {
                self.leave_out(path, &format!("deeper than {most} folders"));
                return Ok(());
            }
            return Err(Error::new(Code::InvalidImage, format!("The tree is deeper than {most} folders")));
        }
        let name = if path.is_empty() { b"./".to_vec() } else { [&path[..], b"/"].concat() };
        let member = self.member(MemberKind::Folder, &name, stat, Some(fd.as_fd()))?;
        self.put(&member, io::empty())?;
        let names = names_in(&fd, path, self.rules.entries)?;
        let length = path.len();
        for name in names {
            if length > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(name.to_bytes());
            if !skip(path) {
                self.entry(&fd, &name, path, depth, skip)?;
            }
            path.truncate(length);
        }
        Ok(())
    }

    fn entry(
        &mut self,
        at: &OwnedFd,
        name: &CStr,
        path: &mut Vec<u8>,
        depth: usize,
        skip: SkipFn<'_>,
    ) -> Result<()> {
        if self.cancel.is_cancelled() {
            return Err(cancelled());
        }
        if self.rules.exact && path.len() >= limits::IMAGE_PATH_BYTES {
            self.leave_out(path, "its path is too long");
            return Ok(());
        }
        let Some(stat) = self.present(statat(at, name, AtFlags::SYMLINK_NOFOLLOW), path)? else {
            return Ok(());
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let kept = match kind {
            FileType::Directory => {
                let Some(fd) = self.present(openat(at, name, FOLDER, Mode::empty()), path)? else {
                    return Ok(());
                };
                let inside = fstat(&fd).at("read", display_path(path))?;
                // A mounted file system, such as /proc, is not part of the tree.
                if inside.st_dev == self.device {
                    return self.folder(fd, &inside, path, depth + 1, skip);
                }
                if self.rules.exact {
                    self.leave_out(path, "another file system is mounted there");
                }
                return Ok(());
            }
            FileType::RegularFile => MemberKind::File,
            FileType::Symlink => MemberKind::Symlink,
            FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo if self.rules.exact => {
                MemberKind::Device
            }
            _ => return Ok(()),
        };
        let links = (self.rules.links)(path);
        if !links && kept != MemberKind::File {
            self.leave_out(path, "neither a file nor a folder");
            return Ok(());
        }
        if stat.st_nlink > 1 && links {
            if let Some(first) = self.links.get(&stat.st_ino).cloned() {
                let mut member = self.member(MemberKind::Link, path, &stat, None)?;
                member.target = first;
                return self.put(&member, io::empty());
            }
        }
        let mut member = self.member(kept, path, &stat, None)?;
        match kept {
            MemberKind::Symlink => {
                let Some(target) = self.present(readlinkat(at, name, Vec::new()), path)? else {
                    return Ok(());
                };
                member.target = target.into_bytes();
                self.put(&member, io::empty())?;
            }
            MemberKind::File => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let Some(fd) = self.present(openat(at, name, flags, Mode::empty()), path)? else {
                    return Ok(());
                };
                let (file, stat) = (File::from(fd), stat);
                let stat = if self.rules.exact { fstat(&file).at("read", display_path(path))? } else { stat };
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    return Ok(());
                }
                member = self.member(MemberKind::File, path, &stat, Some(file.as_fd()))?;
                self.content(member, file, &stat)?;
            }
            _ => self.put(&member, io::empty())?,
        }
        if stat.st_nlink > 1 && links {
            self.links.insert(stat.st_ino, path.clone());
        }
        Ok(())
    }

    fn content(&mut self, mut member: Member, file: File, stat: &Stat) -> Result<()> {
        if self.rules.exact {
            member.pieces = sparse::data_ranges(&file, stat).at("read", display_path(&member.path))?;
        }
        match &member.pieces {
            Some(pieces) => {
                let content = SparseReader::new(file, pieces.clone());
                self.put(&member, content)
            }
            None => {
                let size = member.size;
                // A file that has shrunk is padded, because the archive must contain as many bytes as the header
                // states.
                self.put(&member, file.take(size).chain(io::repeat(0)).take(size))
            }
        }
    }

    /// Returns the found value, or `None` if the entry disappeared; only a backup accepts a disappeared entry.
    fn present<T>(&self, found: rustix::io::Result<T>, path: &[u8]) -> Result<Option<T>> {
        match found {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) if self.rules.exact => Ok(None),
            found => found.map(Some).at("read", display_path(path)),
        }
    }

    fn leave_out(&mut self, path: &[u8], why: &str) {
        self.left_out_count += 1;
        if self.left_out.len() < NAMED {
            let path: String = display_path(path).chars().take(200).collect();
            self.left_out.push(format!("{} ({why})", path.escape_debug()));
        }
    }

    /// Returns the archive member for an entry; `fd` is a descriptor for reading the entry's attributes.
    fn member(
        &mut self,
        kind: MemberKind,
        path: &[u8],
        stat: &Stat,
        fd: Option<std::os::fd::BorrowedFd<'_>>,
    ) -> Result<Member> {
        let device = (kind == MemberKind::Device).then(|| Device {
            kind: FileType::from_raw_mode(stat.st_mode),
            major: major(stat.st_rdev),
            minor: minor(stat.st_rdev),
        });
        let mut found: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        if let Some(fd) = fd {
            let chosen: fn(&[u8]) -> bool = if self.rules.exact { |_| true } else { is_content_xattr };
            chosen_attributes(fd, &mut self.names, &mut self.value, chosen, &mut |name, value| {
                if std::str::from_utf8(name).is_ok() && found.len() < limits::IMAGE_XATTRS {
                    found.push((name.to_vec(), value.to_vec()));
                }
            })
            .at("read", display_path(path))?;
        }
        let exact = self.rules.exact;
        let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
        Ok(Member {
            path: path.to_vec(),
            target: Vec::new(),
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid.into(),
            gid: stat.st_gid.into(),
            mtime: if exact { stat.st_mtime } else { stat.st_mtime.max(0) },
            nanos: if exact { nanos } else { 0 },
            device,
            size: if kind == MemberKind::File { stat.st_size.unsigned_abs() } else { 0 },
            attributes: found,
            pieces: None,
        })
    }

    fn put(&mut self, member: &Member, content: impl Read) -> Result<()> {
        let cancel = self.cancel;
        let written = self.put_all(member, Cancellable { inner: content, cancel });
        if written.is_err() && cancel.is_cancelled() { Err(cancelled()) } else { written }
    }

    fn put_all(&mut self, member: &Member, content: impl Read) -> Result<()> {
        self.entries += 1;
        if self.entries > self.rules.entries {
            return Err(too_many());
        }
        let mut records: Vec<(String, Vec<u8>)> = Vec::new();
        for (name, value) in &member.attributes {
            records.push((format!("SCHILY.xattr.{}", String::from_utf8_lossy(name)), value.clone()));
        }
        if member.nanos > 0 || member.mtime < 0 {
            records.push(("mtime".into(), decimal(member.mtime, member.nanos).into_bytes()));
        }
        let (mut size, mut map) = (member.size, Vec::new());
        if let Some(pieces) = &member.pieces {
            map = sparse::encode_map(pieces);
            size = map.len() as u64 + pieces.iter().map(|piece| piece.length).sum::<u64>();
            records.push(("GNU.sparse.major".into(), b"1".to_vec()));
            records.push(("GNU.sparse.minor".into(), b"0".to_vec()));
            records.push(("GNU.sparse.name".into(), member.path.clone()));
            records.push(("GNU.sparse.realsize".into(), member.size.to_string().into_bytes()));
        }
        let mut header = Header::new_ustar();
        let old = header.as_old_mut();
        let names =
            [(&member.path[..], &mut old.name, "path"), (&member.target[..], &mut old.linkname, "linkpath")];
        for (bytes, field, key) in names {
            let length = bytes.len().min(field.len());
            field[..length].copy_from_slice(&bytes[..length]);
            if bytes.len() > field.len() {
                records.push((key.into(), bytes.to_vec()));
            }
        }
        header.set_entry_type(match (member.kind, member.device.map(|device| device.kind)) {
            (MemberKind::File, _) => EntryType::Regular,
            (MemberKind::Folder, _) => EntryType::Directory,
            (MemberKind::Symlink, _) => EntryType::Symlink,
            (MemberKind::Link, _) => EntryType::Link,
            (MemberKind::Device, Some(FileType::CharacterDevice)) => EntryType::Char,
            (MemberKind::Device, Some(FileType::BlockDevice)) => EntryType::Block,
            (MemberKind::Device, _) => EntryType::Fifo,
        });
        header.set_mode(member.mode);
        header.set_uid(member.uid);
        header.set_gid(member.gid);
        header.set_mtime(u64::try_from(member.mtime).unwrap_or(0));
        header.set_size(size);
        if let Some(device) = member.device {
            header
                .set_device_major(device.major)
                .and_then(|()| header.set_device_minor(device.minor))
                .at("write", display_path(&member.path))?;
        }
        header.set_cksum();
        let records = records.iter().map(|(key, value)| (key.as_str(), &value[..]));
        let written = if records.len() > 0 { self.out.append_pax_extensions(records) } else { Ok(()) };
        written.at("write", display_path(&member.path))?;
        match &mut self.sums {
            None => self.out.append(&header, map.chain(content)).at("write", display_path(&member.path))?,
            Some(sums) => {
                let mut content = DigestingReader::new(content, sums::start_digest(member));
                self.out.append(&header, map.chain(&mut content)).at("write", display_path(&member.path))?;
                let digest = (member.kind == MemberKind::File).then(|| content.digest.finalize().into());
                sums.write_all(&sums::line(member, digest.as_ref())).at("write", "the checksums")?;
            }
        }
        (self.progress)(self.entries);
        Ok(())
    }
}

fn cancelled() -> Error {
    Error::new(Code::Cancelled, "The operation was cancelled")
}

/// A reader that can be cancelled even in the middle of a file, because a file may be as large as the disk.
struct Cancellable<'a, R> {
    inner: R,
    cancel: &'a Cancel,
}

impl<R: Read> Read for Cancellable<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        self.inner.read(buffer)
    }
}

/// Formats a time for pax. The kernel counts nanoseconds upwards from the second below, even before 1970.
fn decimal(seconds: i64, nanos: u32) -> String {
    match (seconds, nanos) {
        (..0, 1..) => format!("-{}.{:09}", seconds.unsigned_abs() - 1, 1_000_000_000 - nanos),
        _ => format!("{seconds}.{nanos:09}"),
    }
}

fn display_path(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

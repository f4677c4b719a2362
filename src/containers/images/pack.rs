//! Turns a tree into a tar archive (POSIX pax, so that names and attributes of any length fit): for exports, and for
//! folders that are imported. Reads only; never follows a link, never crosses a mount; devices, FIFOs and sockets are left
//! out. The order is that of the listing, so one tree always gives one archive.
//!
//! Thread: `image-pack`, one for each folder that is imported; ends when the other end of its pipe is closed.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread::{Builder as Thread, JoinHandle};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, open, openat, readlinkat, statat};
use rustix::pipe::{PipeFlags, pipe_with};
use tar::{EntryType, Header};

use super::listing::{attributes, names_in, too_many};
use crate::base::{At, Code, Error, Result, limits};
use crate::proc::Cancel;

/// An archive that is being written into a pipe.
pub(super) struct Packed {
    pub(super) reader: File,
    pub(super) outcome: Outcome,
}

/// How the writing ends; ask once the pipe was read to its end.
pub(super) struct Outcome(JoinHandle<Result<()>>);

impl Outcome {
    pub(super) fn finish(self) -> Result<()> {
        self.0.join().map_err(|_| Error::internal("A thread that reads a folder has failed"))?
    }
}

/// Packs the folder at `path` into a pipe.
pub(super) fn pipe(path: &Path, cancel: &Cancel) -> Result<Packed> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).at("open", "a pipe")?;
    let (path, cancel) = (path.to_owned(), cancel.clone());
    let work = move || {
        let mut writer = BufWriter::with_capacity(64 << 10, File::from(writer));
        write(&path, &mut writer, &cancel, &mut |_| {})
    };
    let thread = Thread::new().name("image-pack".into()).stack_size(2 * limits::STACK).spawn(work);
    let thread = thread.map_err(|error| Error::internal("Could not start a thread").because(error))?;
    Ok(Packed { reader: File::from(reader), outcome: Outcome(thread) })
}

/// Packs the folder at `path`; `tell` gets the number of entries so far.
///
/// # Errors
/// `Cancelled`, `InvalidImage` for what is too deep or too much, and what reading and writing say.
pub(super) fn write(
    path: &Path,
    out: &mut dyn Write,
    cancel: &Cancel,
    tell: &mut dyn FnMut(u64),
) -> Result<()> {
    let top = open(path, FOLDER, Mode::empty()).at("open", path)?;
    let stat = fstat(&top).at("read", path)?;
    let mut packer = Packer {
        out: tar::Builder::new(out),
        device: stat.st_dev,
        links: HashMap::new(),
        entries: 0,
        names: vec![0; limits::IMAGE_XATTR_BYTES],
        value: vec![0; limits::IMAGE_XATTR_BYTES],
        cancel,
        tell,
    };
    packer.folder(top, &stat, &mut Vec::new(), 0)?;
    packer.out.into_inner().and_then(Write::flush).at("write", "the archive")
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

type Records = Vec<(String, Vec<u8>)>;

struct Packer<'a> {
    out: tar::Builder<&'a mut dyn Write>,
    device: u64,
    links: HashMap<u64, Vec<u8>>,
    entries: u64,
    names: Vec<u8>,
    value: Vec<u8>,
    cancel: &'a Cancel,
    tell: &'a mut dyn FnMut(u64),
}

impl Packer<'_> {
    fn folder(&mut self, fd: OwnedFd, stat: &Stat, path: &mut Vec<u8>, depth: usize) -> Result<()> {
        if depth > limits::IMAGE_DEPTH {
            let most = limits::IMAGE_DEPTH;
            return Err(Error::new(Code::InvalidImage, format!("The tree is deeper than {most} folders")));
        }
        let records = self.attributes(&fd, path)?;
        let name = if path.is_empty() { b"./".to_vec() } else { [&path[..], b"/"].concat() };
        self.put(EntryType::Directory, &name, stat, &[], records, 0, io::empty())?;
        let names = names_in(&fd, path)?;
        let length = path.len();
        for name in names {
            if length > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(name.to_bytes());
            self.entry(&fd, &name, path, depth)?;
            path.truncate(length);
        }
        Ok(())
    }

    fn entry(&mut self, at: &OwnedFd, name: &CStr, path: &mut Vec<u8>, depth: usize) -> Result<()> {
        if self.cancel.is_cancelled() {
            return Err(Error::new(Code::Cancelled, "It was cancelled"));
        }
        let stat = statat(at, name, AtFlags::SYMLINK_NOFOLLOW).at("read", shown(path))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        match kind {
            FileType::Directory => {
                let fd = openat(at, name, FOLDER, Mode::empty()).at("open", shown(path))?;
                let inside = fstat(&fd).at("read", shown(path))?;
                // What is mounted there belongs to something else, as the insides of /proc do.
                return if inside.st_dev == self.device {
                    self.folder(fd, &inside, path, depth + 1)
                } else {
                    Ok(())
                };
            }
            FileType::RegularFile | FileType::Symlink => {}
            _ => return Ok(()),
        }
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&stat.st_ino).cloned() {
                return self.put(EntryType::Link, path, &stat, &first, Vec::new(), 0, io::empty());
            }
            self.links.insert(stat.st_ino, path.clone());
        }
        if kind == FileType::Symlink {
            let target = readlinkat(at, name, Vec::new()).at("read", shown(path))?;
            return self.put(EntryType::Symlink, path, &stat, target.to_bytes(), Vec::new(), 0, io::empty());
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(openat(at, name, flags, Mode::empty()).at("open", shown(path))?);
        let records = self.attributes(&file, path)?;
        let size = stat.st_size.unsigned_abs();
        // A file that shrinks meanwhile is filled up: what the header announced must come.
        let content = file.take(size).chain(io::repeat(0)).take(size);
        self.put(EntryType::Regular, path, &stat, &[], records, size, content)
    }

    #[expect(clippy::too_many_arguments, reason = "a member has these parts")]
    fn put(
        &mut self,
        kind: EntryType,
        path: &[u8],
        stat: &Stat,
        target: &[u8],
        mut records: Records,
        size: u64,
        content: impl Read,
    ) -> Result<()> {
        self.entries += 1;
        if self.entries > limits::IMAGE_ENTRIES {
            return Err(too_many());
        }
        let mut header = Header::new_ustar();
        let old = header.as_old_mut();
        for (bytes, field, key) in [(path, &mut old.name, "path"), (target, &mut old.linkname, "linkpath")] {
            let length = bytes.len().min(field.len());
            field[..length].copy_from_slice(&bytes[..length]);
            if bytes.len() > field.len() {
                records.push((key.into(), bytes.to_vec()));
            }
        }
        header.set_entry_type(kind);
        header.set_mode(stat.st_mode & 0o7777);
        header.set_uid(stat.st_uid.into());
        header.set_gid(stat.st_gid.into());
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
        header.set_size(size);
        header.set_cksum();
        let records = records.iter().map(|(key, value)| (key.as_str(), &value[..]));
        let written = if records.len() > 0 { self.out.append_pax_extensions(records) } else { Ok(()) };
        written.and_then(|()| self.out.append(&header, content)).at("write", shown(path))?;
        (self.tell)(self.entries);
        Ok(())
    }

    fn attributes(&mut self, fd: impl std::os::fd::AsFd, path: &[u8]) -> Result<Records> {
        let mut records = Records::new();
        attributes(fd, &mut self.names, &mut self.value, &mut |name, value| {
            if let Ok(name) = std::str::from_utf8(name) {
                records.push((format!("SCHILY.xattr.{name}"), value.to_vec()));
            }
        })
        .at("read", shown(path))?;
        Ok(records)
    }
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

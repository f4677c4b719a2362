//! The canonical listing of a tree. Its SHA-256, which `sha256sum <data>/images/ID/listing` prints, is the image's ID.
//!
//! The first line is `berth image 1`, followed by one line per entry, terminated by `\n`: the root directory first, the
//! entries of each directory in byte order of their names, and the content of a directory directly after it. Fields are
//! separated by one space:
//!
//! ```text
//! d MODE UID GID PATH [XATTR…]                 a folder
//! f MODE UID GID SIZE SHA256 PATH [XATTR…]     a regular file
//! l UID GID TARGET PATH                        a symbolic link
//! h FIRST PATH                                 another name of the file FIRST, which was listed before
//! o MODE UID GID RDEV PATH                     anything else; no image has one, but a damaged one may
//! ```
//!
//! MODE is octal without the type, in four digits; UID, GID and SIZE are decimal; SHA256 is hex. PATH starts with `/`.
//! In PATH, TARGET and the names of XATTRs each byte outside `!`–`~`, and `\`, is written as `\xHH`. An XATTR is
//! `NAME=HEX`, sorted by name; only `security.capability`, `user.*` and `system.posix_acl_*` are included, because
//! other attributes belong to the host. Times and directory sizes are not included: two hosts that unpack one archive
//! get the same ID.
//!
//! This module only reads the tree. It never follows a link or crosses a mount.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, open, openat, readlinkat, statat, unlinkat,
};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::id::ImageId;
use crate::base::hex::encode as hex;
use crate::base::{At, Code, Error, Result, limits};
use crate::proc::Cancel;
use crate::store::beneath::dir_entries;

/// The SHA-256 of a file.
pub(super) type FileDigest = [u8; 32];

/// Digests that are already known, by inode, so that a file that was just written is not read again.
pub(super) type KnownDigests = HashMap<u64, FileDigest>;

/// Summary of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) id: ImageId,
    /// Number of entries, including the root directory.
    pub(super) entries: u64,
    /// Number of bytes in regular files; a file with several names counts once.
    pub(super) bytes: u64,
}

/// The treatment of entries that no image may have: devices, FIFOs and sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SpecialFiles {
    /// The entries are removed from the tree.
    Remove,
    /// The entries are listed.
    Show,
}

/// Writes the listing of the tree at `root` to `out`. With [`SpecialFiles::Remove`], it also removes special files from
/// the tree.
///
/// # Errors
/// `Cancelled`; `InvalidImage` for a tree that is too deep or has too many entries; errors of reading.
pub(super) fn write(
    root: &Path,
    known: &KnownDigests,
    others: SpecialFiles,
    out: impl Write,
    cancel: &Cancel,
) -> Result<Totals> {
    let folder = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = open(root, folder, Mode::empty()).at("open", root)?;
    let device = fstat(&top).at("read", root)?.st_dev;
    let mut lister = Lister {
        known,
        others,
        cancel,
        out: HashingWriter { out: BufWriter::new(out), digest: Sha256::new() },
        links: HashMap::new(),
        entries: 0,
        bytes: 0,
        device,
        buffer: vec![0; 256 << 10],
        names: vec![0; limits::IMAGE_XATTR_BYTES],
        line: Vec::new(),
    };
    lister.out.write_all(b"berth image 1\n").at("write", "the listing")?;
    let stat = fstat(&top).at("read", root)?;
    lister.folder(top, &stat, &mut b"/".to_vec(), 0)?;
    let HashingWriter { mut out, digest } = lister.out;
    out.flush().at("write", "the listing")?;
    let id = ImageId::parse(&hex(&digest.finalize()))?;
    Ok(Totals { id, entries: lister.entries, bytes: lister.bytes })
}

struct Lister<'a, W: Write> {
    known: &'a KnownDigests,
    others: SpecialFiles,
    cancel: &'a Cancel,
    out: HashingWriter<W>,
    /// The first path of each file with several names.
    links: HashMap<u64, Vec<u8>>,
    entries: u64,
    bytes: u64,
    device: u64,
    buffer: Vec<u8>,
    /// A buffer for the names of attributes.
    names: Vec<u8>,
    line: Vec<u8>,
}

impl<W: Write> Lister<'_, W> {
    /// Lists a directory and its entries. `path` ends with the directory's name and is unchanged on return.
    fn folder(&mut self, fd: OwnedFd, stat: &Stat, path: &mut Vec<u8>, depth: usize) -> Result<()> {
        if self.cancel.is_cancelled() {
            return Err(Error::new(Code::Cancelled, "The operation was cancelled"));
        }
        if depth > limits::IMAGE_DEPTH {
            return Err(Error::new(
                Code::InvalidImage,
                format!("The tree is deeper than {} folders", limits::IMAGE_DEPTH),
            ));
        }
        self.line(b"d", &[mode(stat), owner(stat)].join(" "), path);
        self.attributes(&fd, path)?;
        self.finish(path)?;
        let names = names_in(&fd, path, limits::IMAGE_ENTRIES)?;
        let length = path.len();
        for name in names {
            if length > 1 {
                path.push(b'/');
            }
            path.extend_from_slice(name.to_bytes());
            self.entry(&fd, &name, path, depth)?;
            path.truncate(length);
        }
        Ok(())
    }

    fn entry(&mut self, at: &OwnedFd, name: &CStr, path: &mut Vec<u8>, depth: usize) -> Result<()> {
        let stat = statat(at, name, AtFlags::SYMLINK_NOFOLLOW).at("read", display_path(path))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let belongs = matches!(kind, FileType::Directory | FileType::RegularFile | FileType::Symlink);
        if !belongs && self.others == SpecialFiles::Remove {
            return unlinkat(at, name, AtFlags::empty()).at("remove", display_path(path));
        }
        if kind != FileType::Directory && stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&stat.st_ino) {
                let mut text = Vec::new();
                escape(first, &mut text);
                let text = String::from_utf8_lossy(&text).into_owned();
                self.line(b"h", &text, path);
                return self.finish(path);
            }
            self.links.insert(stat.st_ino, path.clone());
        }
        match kind {
            FileType::Directory => {
                let folder = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = openat(at, name, folder, Mode::empty()).at("open", display_path(path))?;
                let inside = fstat(&fd).at("read", display_path(path))?;
                if inside.st_dev != self.device {
                    return Err(Error::new(
                        Code::MountedInside,
                        format!(
                            "A file system is mounted at {} of the tree; unmount it first",
                            display_path(path)
                        ),
                    ));
                }
                return self.folder(fd, &inside, path, depth + 1);
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = File::from(openat(at, name, flags, Mode::empty()).at("open", display_path(path))?);
                let hash = match self.known.get(&stat.st_ino) {
                    Some(hash) => *hash,
                    None => self.digest(&file).at("read", display_path(path))??,
                };
                let size = stat.st_size.unsigned_abs();
                self.bytes = self.bytes.saturating_add(size);
                let fields = format!("{} {} {size} {}", mode(&stat), owner(&stat), hex(&hash));
                self.line(b"f", &fields, path);
                self.attributes(&file, path)?;
            }
            FileType::Symlink => {
                let target = readlinkat(at, name, Vec::new()).at("read", display_path(path))?;
                let mut text = format!("{} ", owner(&stat)).into_bytes();
                escape(target.to_bytes(), &mut text);
                let text = String::from_utf8_lossy(&text).into_owned();
                self.line(b"l", &text, path);
            }
            _ => self.line(b"o", &format!("{} {} {}", mode(&stat), owner(&stat), stat.st_rdev), path),
        }
        self.finish(path)
    }

    fn digest(&mut self, mut file: &File) -> io::Result<Result<FileDigest>> {
        let mut digest = Sha256::new();
        loop {
            if self.cancel.is_cancelled() {
                return Ok(Err(Error::new(Code::Cancelled, "The operation was cancelled")));
            }
            match file.read(&mut self.buffer) {
                Ok(0) => return Ok(Ok(digest.finalize().into())),
                Ok(n) => digest.update(&self.buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn line(&mut self, kind: &[u8], fields: &str, path: &[u8]) {
        self.line.clear();
        self.line.extend_from_slice(kind);
        self.line.push(b' ');
        self.line.extend_from_slice(fields.as_bytes());
        self.line.push(b' ');
        escape(path, &mut self.line);
    }

    /// Appends the extended attributes that belong to the file's content.
    fn attributes(&mut self, fd: impl AsFd, path: &[u8]) -> Result<()> {
        let line = &mut self.line;
        attributes(fd, &mut self.names, &mut self.buffer, &mut |name, value| {
            line.push(b' ');
            escape(name, line);
            line.push(b'=');
            line.extend_from_slice(hex(value).as_bytes());
        })
        .at("read", display_path(path))
    }

    fn finish(&mut self, path: &[u8]) -> Result<()> {
        self.entries += 1;
        if self.entries > limits::IMAGE_ENTRIES {
            return Err(too_many());
        }
        self.line.push(b'\n');
        self.out.write_all(&self.line).at("write", display_path(path))
    }
}

pub(super) fn too_many() -> Error {
    Error::new(Code::InvalidImage, format!("The tree has more than {} entries", limits::IMAGE_ENTRIES))
}

/// Returns the names in a directory in byte order, which all walks over an image use.
pub(super) fn names_in(folder: &OwnedFd, path: &[u8], most: u64) -> Result<Vec<CString>> {
    let mut names: Vec<CString> = Vec::new();
    for entry in dir_entries(Dir::read_from(folder).at("list", display_path(path))?) {
        names.push(entry.at("list", display_path(path))?.file_name().to_owned());
        if names.len() as u64 > most {
            return Err(too_many());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Calls `each` with the extended attributes of a file that belong to its content, in the order of their names. The
/// caller provides buffers for all names and for one value.
pub(super) fn attributes(
    fd: impl AsFd,
    names: &mut [u8],
    value: &mut [u8],
    each: &mut dyn FnMut(&[u8], &[u8]),
) -> rustix::io::Result<()> {
    chosen_attributes(fd, names, value, is_content_xattr, each)
}

/// Does the same as [`attributes`], for names that `chosen` accepts.
pub(super) fn chosen_attributes(
    fd: impl AsFd,
    names: &mut [u8],
    value: &mut [u8],
    chosen: fn(&[u8]) -> bool,
    each: &mut dyn FnMut(&[u8], &[u8]),
) -> rustix::io::Result<()> {
    let length = match rustix::fs::flistxattr(&fd, &mut *names) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok(()),
        length => length?,
    };
    let mut all: Vec<&[u8]> = names[..length].split(|byte| *byte == 0).collect();
    all.retain(|name| !name.is_empty() && chosen(name));
    all.sort_unstable();
    for name in all {
        let length = match rustix::fs::fgetxattr(&fd, name, &mut *value) {
            // The attribute was removed since it was listed.
            Err(Errno::NODATA) => continue,
            length => length?,
        };
        each(name, &value[..length]);
    }
    Ok(())
}

/// Returns whether an extended attribute is part of a file's content.
pub(super) fn is_content_xattr(name: &[u8]) -> bool {
    name == b"security.capability" || name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_")
}

fn mode(stat: &Stat) -> String {
    format!("{:04o}", stat.st_mode & 0o7777)
}

fn owner(stat: &Stat) -> String {
    format!("{} {}", stat.st_uid, stat.st_gid)
}

pub(super) fn escape(bytes: &[u8], out: &mut Vec<u8>) {
    for byte in bytes {
        match byte {
            b'\\' | 0..=b' ' | 0x7f.. => {
                let _ = write!(out, "\\x{byte:02x}");
            }
            byte => out.push(*byte),
        }
    }
}

fn display_path(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// A writer that adds all written bytes to the digest.
struct HashingWriter<W: Write> {
    out: BufWriter<W>,
    digest: Sha256,
}

impl<W: Write> HashingWriter<W> {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        self.out.write_all(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::store::file::write_atomic;
    use crate::store::scratch::TestFolder;

    fn list(root: &Path) -> (String, Totals) {
        let mut out = Vec::new();
        let totals =
            write(root, &KnownDigests::new(), SpecialFiles::Show, &mut out, &Cancel::new().unwrap()).unwrap();
        (String::from_utf8(out).unwrap(), totals)
    }

    #[test]
    fn the_format_matches_the_documentation() {
        let dir = TestFolder::new();
        let tree = dir.join("tree");
        std::fs::create_dir_all(tree.join("b")).unwrap();
        for folder in [&tree, &tree.join("b")] {
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        write_atomic(&tree.join("b/x y\\"), b"hello", 0o4755).unwrap();
        std::fs::hard_link(tree.join("b/x y\\"), tree.join("b0")).unwrap();
        symlink("/etc/a b", tree.join("a")).unwrap();
        let file = File::open(tree.join("b0")).unwrap();
        let attribute = rustix::fs::fsetxattr(&file, "user.k", b"\x01", rustix::fs::XattrFlags::empty());
        let shown = if attribute.is_ok() { " user.k=01" } else { "" };
        let (text, totals) = list(&tree);
        let hash = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        let wanted = format!(
            "berth image 1\nd 0755 0 0 /\nl 0 0 /etc/a\\x20b /a\nd 0755 0 0 /b\n\
             f 4755 0 0 5 {hash} /b/x\\x20y\\x5c{shown}\nh /b/x\\x20y\\x5c /b0\n"
        );
        assert_eq!(text, wanted);
        assert_eq!((totals.entries, totals.bytes), (5, 5));
        assert_eq!(totals.id.as_str(), hex(&Sha256::digest(text.as_bytes())));
        // A change of a time does not change the listing; every other change does.
        File::open(tree.join("b0")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(list(&tree).1, totals);
        std::fs::set_permissions(tree.join("b"), std::fs::Permissions::from_mode(0o711)).unwrap();
        assert_ne!(list(&tree).1.id, totals.id);
    }

    #[test]
    fn known_digests_are_used() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = TestFolder::new();
        write_atomic(&dir.join("a"), b"x", 0o644).unwrap();
        let known = KnownDigests::from([(std::fs::metadata(dir.join("a")).unwrap().ino(), [7; 32])]);
        let mut out = Vec::new();
        write(&dir, &known, SpecialFiles::Show, &mut out, &Cancel::new().unwrap()).unwrap();
        assert!(String::from_utf8(out).unwrap().contains(&"07".repeat(32)));
    }
}

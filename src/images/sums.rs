//! Checksums of a backup: one line per entry, in the archive's order, with the entry's metadata and a digest of its
//! content. They are the archive's last member, so that a backup can be written to a pipe. Pure.
//!
//! ```text
//! KIND MODE UID GID TIME SIZE DIGEST DEVICE TARGET PATH [XATTR…]
//! ```
//!
//! KIND is `d`, `f`, `l`, `h` (another name of the file TARGET) or `o` (a device or FIFO). Missing fields are `-`.
//! DIGEST is the SHA-256 of a file's bytes, as `sha256sum` prints it; for a sparse file, of its map and the bytes
//! between the holes. Unprintable bytes are escaped as in a listing.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use super::archive::{Member, MemberKind};
use super::listing::{FileDigest, escape};
use crate::base::hex::encode as hex;

/// Returns the digest state for a file's content, which begins with the map of a sparse file.
pub(super) fn start_digest(member: &Member) -> Sha256 {
    let mut digest = Sha256::new();
    for piece in member.pieces.iter().flatten() {
        digest.update(piece.at.to_le_bytes());
        digest.update(piece.length.to_le_bytes());
    }
    digest
}

/// Returns the line of an entry, including its newline.
pub(super) fn line(member: &Member, digest: Option<&FileDigest>) -> Vec<u8> {
    let kind = match member.kind {
        MemberKind::File => 'f',
        MemberKind::Folder => 'd',
        MemberKind::Symlink => 'l',
        MemberKind::Link => 'h',
        MemberKind::Device => 'o',
    };
    let time = format!("{}.{:09}", member.mtime, member.nanos);
    let digest = digest.map_or_else(|| "-".to_owned(), |digest| hex(digest));
    let device = member.device.map_or_else(
        || "-".to_owned(),
        |device| format!("{:?}:{}:{}", device.kind, device.major, device.minor),
    );
    let Member { mode, uid, gid, size, .. } = member;
    let mut line = format!("{kind} {mode:04o} {uid} {gid} {time} {size} {digest} {device} ").into_bytes();
    if member.target.is_empty() {
        line.push(b'-');
    }
    escape(&member.target, &mut line);
    line.push(b' ');
    escape(&member.path, &mut line);
    for (name, value) in &member.attributes {
        line.push(b' ');
        escape(name, &mut line);
        line.push(b'=');
        line.extend_from_slice(hex(value).as_bytes());
    }
    line.push(b'\n');
    line
}

/// A reader that hashes the bytes that are read through it.
pub(super) struct DigestingReader<R> {
    inner: R,
    pub(super) digest: Sha256,
}

impl<R: Read> DigestingReader<R> {
    pub(super) fn new(inner: R, digest: Sha256) -> DigestingReader<R> {
        DigestingReader { inner, digest }
    }
}

impl<R: Read> Read for DigestingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.digest.update(&buffer[..n]);
        Ok(n)
    }
}

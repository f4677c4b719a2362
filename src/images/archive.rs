//! Reads tar archives strictly: it rejects archives that different readers would interpret differently. This module
//! parses the framing itself, because the `tar` crate reads names and extended headers of any length into memory and
//! splits values at line ends; the crate's types parse the header fields. The module writes nothing and does not depend
//! on the destination.

use std::ops::Range;
use std::sync::Arc;

use rustix::fs::FileType;
use tar::{EntryType, GnuExtSparseHeader, Header};

use super::compression::{Chunk, DecompressedStream};
use super::rules::ArchiveRules;
use crate::base::{Code, Error, Result, limits};

/// The type of an archive member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MemberKind {
    File,
    Folder,
    Symlink,
    /// A hard link to an earlier file.
    Link,
    /// A device or a FIFO.
    Device,
}

/// A device node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) kind: FileType,
    pub(super) major: u32,
    pub(super) minor: u32,
}

/// A member of an archive.
#[derive(Debug)]
pub(super) struct Member {
    /// The path as it is in the archive, without NUL bytes.
    pub(super) path: Vec<u8>,
    pub(super) target: Vec<u8>,
    pub(super) kind: MemberKind,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    /// Seconds since 1970.
    pub(super) mtime: i64,
    /// The nanosecond part of the time.
    pub(super) nanos: u32,
    pub(super) device: Option<Device>,
    /// Size of the file, holes included.
    pub(super) size: u64,
    pub(super) attributes: Vec<(Vec<u8>, Vec<u8>)>,
    /// Positions of the data, if the file has holes.
    pub(super) pieces: Option<Vec<DataRange>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DataRange {
    pub(super) at: u64,
    pub(super) length: u64,
}

/// The content of the current member.
pub(super) struct MemberContent<'a> {
    stream: &'a mut DecompressedStream,
    /// Number of bytes of the content that are still unread in the archive.
    left: u64,
}

impl MemberContent<'_> {
    /// Reads the whole content; `sink` receives data and holes in order.
    pub(super) fn read(
        &mut self,
        member: &Member,
        sink: &mut dyn FnMut(ContentPart) -> Result<()>,
    ) -> Result<()> {
        let whole = [DataRange { at: 0, length: member.size }];
        let mut at = 0;
        for piece in member.pieces.as_deref().unwrap_or(&whole) {
            if piece.at > at {
                sink(ContentPart::Hole(piece.at - at))?;
            }
            let mut left = piece.length;
            while left > 0 {
                let (chunk, part) = self.stream.next(left)?;
                let Some(chunk) = chunk else { return Err(truncated()) };
                left -= part.len() as u64;
                self.left -= part.len() as u64;
                sink(ContentPart::Data(chunk, part))?;
            }
            at = piece.at + piece.length;
        }
        if member.size > at {
            sink(ContentPart::Hole(member.size - at))?;
        }
        Ok(())
    }
}

/// A part of a file.
pub(super) enum ContentPart {
    Data(Arc<Chunk>, Range<usize>),
    Hole(u64),
}

/// Reads the archive to its end. `each` is called for every member and may read the member's content.
///
/// # Errors
/// `InvalidImage` with the problem; or an error of `each` or of the stream.
pub(super) fn read(
    stream: &mut DecompressedStream,
    rules: &ArchiveRules,
    each: &mut dyn FnMut(&Member, &mut MemberContent<'_>) -> Result<()>,
) -> Result<()> {
    let mut next = PaxOverrides::default();
    let mut block = [0; BLOCK];
    let mut members = 0_u64;
    loop {
        if !header(stream, &mut block)? {
            if next.is_empty() {
                return Ok(());
            }
            return Err(refused("ends after the name of a missing member"));
        }
        members += 1;
        if members / 2 > rules.entries {
            return Err(super::listing::too_many());
        }
        let head = Header::from_byte_slice(&block);
        let size = field(head.entry_size(), "size")?;
        match head.entry_type() {
            EntryType::GNULongName => next.path = Some(text(stream, size)?),
            EntryType::GNULongLink => next.target = Some(text(stream, size)?),
            EntryType::XHeader => {
                let bytes = whole(stream, size, limits::IMAGE_HEADER_BYTES)?;
                extended(&bytes, &mut next)?;
            }
            EntryType::XGlobalHeader => {
                let mut global = PaxOverrides::default();
                extended(&whole(stream, size, limits::IMAGE_HEADER_BYTES)?, &mut global)?;
                if !global.is_empty() {
                    return Err(refused("has a global header that renames or resizes all members"));
                }
            }
            kind => {
                let next = std::mem::take(&mut next);
                let (member, stored) = member(stream, rules, head, kind, size, next)?;
                let mut content = MemberContent { stream, left: stored };
                each(&member, &mut content)?;
                let left = content.left;
                skip(stream, left + padding(size))?;
            }
        }
    }
}

const BLOCK: usize = 512;

/// The values that extended headers set for the next member.
#[derive(Debug, Default)]
struct PaxOverrides {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: Sparse,
}

/// The values of the extended headers `GNU.sparse.*`.
#[derive(Debug, Default)]
struct Sparse {
    major: Option<u64>,
    size: Option<u64>,
    path: Option<Vec<u8>>,
    map: Option<Vec<u8>>,
}

impl PaxOverrides {
    fn is_empty(&self) -> bool {
        let sparse = &self.sparse;
        let nothing = self.path.is_none() && self.target.is_none() && self.size.is_none();
        nothing && self.attributes.is_empty() && sparse.major.is_none() && sparse.map.is_none()
    }
}

/// Reads the next header. Returns `false` at the end of the archive. An archive without an end marker is truncated.
fn header(stream: &mut DecompressedStream, block: &mut [u8; BLOCK]) -> Result<bool> {
    if stream.fill(block)? < BLOCK {
        return Err(truncated());
    }
    if block.iter().all(|byte| *byte == 0) {
        // The second block of zeros may be missing: GNU tar accepts a single one.
        return Ok(false);
    }
    let sum: u32 = block
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
        .sum();
    // Some old archives compute the checksum from signed bytes.
    #[expect(clippy::cast_possible_wrap, reason = "the sign is intended")]
    let signed: i32 = block
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { i32::from(*byte as i8) })
        .sum();
    let stated = Header::from_byte_slice(block).cksum().unwrap_or(u32::MAX);
    if stated != sum && i64::from(stated) != i64::from(signed) {
        return Err(Error::new(
            Code::InvalidImage,
            "The file is not a tar archive (plain or compressed with gzip, xz or zstd), or it is damaged",
        ));
    }
    Ok(true)
}

fn member(
    stream: &mut DecompressedStream,
    rules: &ArchiveRules,
    head: &Header,
    kind: EntryType,
    size: u64,
    next: PaxOverrides,
) -> Result<(Member, u64)> {
    let named = |own: Option<Vec<u8>>, name: Vec<u8>| {
        let name = own.unwrap_or(name);
        if name.contains(&0) { Err(refused("has a name with a NUL byte")) } else { Ok(name) }
    };
    let path = named(next.sparse.path.or(next.path), head.path_bytes().into_owned())?;
    let target =
        named(next.target, head.link_name_bytes().map(|name| name.into_owned()).unwrap_or_default())?;
    let kind = match kind {
        // Before POSIX, a directory was stored as a file whose name ends with a slash.
        EntryType::Regular if path.ends_with(b"/") => MemberKind::Folder,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => MemberKind::File,
        EntryType::Directory => MemberKind::Folder,
        EntryType::Symlink => MemberKind::Symlink,
        EntryType::Link => MemberKind::Link,
        EntryType::Char | EntryType::Block | EntryType::Fifo => MemberKind::Device,
        other => {
            let letter = char::from(other.as_byte()).escape_debug().to_string();
            return Err(refused(&format!("has a member of the unknown type '{letter}'")));
        }
    };
    // The tar header itself can express sizes up to this limit. If an extended header states another size, different
    // readers would interpret the archive differently.
    if next.size.is_some_and(|stated| stated != size && stated < 1 << 33) {
        return Err(refused("has two different sizes for one member"));
    }
    let stored = next.size.unwrap_or(size);
    if kind != MemberKind::File && stored > 0 {
        return Err(refused("has content for a member that cannot have any"));
    }
    if stored > rules.bytes {
        return Err(refused("has a file that is larger than an image may be"));
    }
    let mut member = Member {
        path,
        target,
        kind,
        mode: field(head.mode(), "mode")? & 0o7777,
        uid: next.uid.map_or_else(|| field(head.uid(), "owner"), Ok)?,
        gid: next.gid.map_or_else(|| field(head.gid(), "group"), Ok)?,
        mtime: match next.mtime {
            Some((seconds, _)) => seconds,
            None => field(head.mtime(), "time").map(|time| i64::try_from(time).unwrap_or(0))?,
        },
        nanos: next.mtime.map_or(0, |(_, nanos)| nanos),
        device: if kind == MemberKind::Device { Some(device(head)?) } else { None },
        size: stored,
        attributes: next.attributes,
        pieces: None,
    };
    let mut left = stored;
    if head.entry_type() == EntryType::GNUSparse {
        old_sparse(stream, head, &mut member)?;
    } else if next.sparse.major == Some(1) || next.sparse.map.is_some() {
        if kind != MemberKind::File {
            return Err(refused("has holes in a member that is not a file"));
        }
        let (pieces, read) = match (next.sparse.major, next.sparse.map) {
            (Some(1), None) => sparse_map(stream, stored)?,
            (None | Some(0), Some(map)) => (numbers(&map)?, 0),
            _ => return Err(refused("describes holes in two ways")),
        };
        member.size =
            next.sparse.size.ok_or_else(|| refused("does not state the size of a file with holes"))?;
        member.pieces = Some(pieces);
        left -= read;
    } else if next.sparse.major.is_some() {
        return Err(refused("describes holes in an unknown format"));
    }
    check_pieces(&member, left, rules)?;
    Ok((member, left))
}

fn device(head: &Header) -> Result<Device> {
    let kind = match head.entry_type() {
        EntryType::Char => FileType::CharacterDevice,
        EntryType::Block => FileType::BlockDevice,
        _ => FileType::Fifo,
    };
    let number = |number: std::io::Result<Option<u32>>| Ok(field(number, "device")?.unwrap_or(0));
    // In old archives, the device numbers of a FIFO are invalid.
    let (major, minor) = match kind {
        FileType::Fifo => (0, 0),
        _ => (number(head.device_major())?, number(head.device_minor())?),
    };
    Ok(Device { kind, major, minor })
}

/// Reads the map of GNU's old sparse format: four entries in the header, 21 in each following block.
fn old_sparse(stream: &mut DecompressedStream, head: &Header, member: &mut Member) -> Result<()> {
    let gnu = head.as_gnu().ok_or_else(|| refused("has holes without a map"))?;
    let mut pieces = Vec::new();
    let mut take = |headers: &[tar::GnuSparseHeader]| -> Result<()> {
        for header in headers.iter().filter(|header| !header.is_empty()) {
            let (at, length) = (field(header.offset(), "hole")?, field(header.length(), "hole")?);
            pieces.push(DataRange { at, length });
        }
        if pieces.len() > limits::IMAGE_PIECES {
            Err(refused("has a file with too many holes"))
        } else {
            Ok(())
        }
    };
    take(&gnu.sparse)?;
    let mut more = gnu.is_extended();
    while more {
        let mut block = GnuExtSparseHeader::new();
        if stream.fill(block.as_mut_bytes())? < BLOCK {
            return Err(truncated());
        }
        take(block.sparse())?;
        more = block.is_extended();
    }
    member.size = field(gnu.real_size(), "size")?;
    member.pieces = Some(pieces);
    Ok(())
}

/// Reads the map of the PAX format 1.0, which precedes the data: decimal numbers, one per line, padded to a block.
/// Returns the entries and the map's length.
fn sparse_map(stream: &mut DecompressedStream, stored: u64) -> Result<(Vec<DataRange>, u64)> {
    let mut text = Vec::new();
    let mut block = [0; BLOCK];
    let mut wanted = None;
    loop {
        if (text.len() + BLOCK) as u64 > stored || text.len() > limits::IMAGE_HEADER_BYTES {
            return Err(refused("has a file with an invalid map of its holes"));
        }
        if stream.fill(&mut block)? < BLOCK {
            return Err(truncated());
        }
        text.extend_from_slice(&block);
        let lines = text.iter().filter(|byte| **byte == b'\n').count();
        if wanted.is_none() && lines > 0 {
            let first = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
            let count = number(first).and_then(|count| usize::try_from(count).ok());
            let count = count.filter(|count| *count <= limits::IMAGE_PIECES);
            wanted = Some(1 + 2 * count.ok_or_else(|| refused("has a file with too many holes"))?);
        }
        if let Some(wanted) = wanted.filter(|wanted| *wanted <= lines) {
            let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').skip(1).take(wanted - 1).collect();
            return Ok((numbers(&lines.join(&b','))?, text.len() as u64));
        }
    }
}

/// Parses `AT,LENGTH,AT,LENGTH…`.
fn numbers(text: &[u8]) -> Result<Vec<DataRange>> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let all: Option<Vec<u64>> = text.split(|byte| *byte == b',').map(number).collect();
    let all = all.filter(|all| all.len() % 2 == 0 && all.len() <= 2 * limits::IMAGE_PIECES);
    let all = all.ok_or_else(|| refused("has a file with an invalid map of its holes"))?;
    Ok(all.chunks_exact(2).map(|pair| DataRange { at: pair[0], length: pair[1] }).collect())
}

/// Checks that the pieces are in order, inside the file, and as long as the stored data.
fn check_pieces(member: &Member, stored: u64, rules: &ArchiveRules) -> Result<()> {
    let Some(pieces) = &member.pieces else { return Ok(()) };
    let (mut end, mut sum) = (0_u64, 0_u64);
    for piece in pieces {
        let next = piece.at.checked_add(piece.length).filter(|_| piece.at >= end);
        end = next
            .filter(|next| *next <= member.size)
            .ok_or_else(|| refused("has a file with parts that overlap or are outside the file"))?;
        sum += piece.length;
    }
    if sum != stored || member.size > rules.bytes {
        return Err(refused("has a file with parts that do not match the stored data"));
    }
    Ok(())
}

/// Parses the records of an extended header: `LENGTH KEY=VALUE\n`, where the length includes itself.
fn extended(mut bytes: &[u8], next: &mut PaxOverrides) -> Result<()> {
    let broken = || refused("has an invalid extended header");
    while bytes.first().is_some_and(|byte| *byte != 0) {
        let space = bytes.iter().position(|byte| *byte == b' ').ok_or_else(broken)?;
        let length =
            number(&bytes[..space]).and_then(|length| usize::try_from(length).ok()).ok_or_else(broken)?;
        let record = bytes.get(space + 1..length).ok_or_else(broken)?;
        let (end, record) = record.split_last().ok_or_else(broken)?;
        let equals =
            record.iter().position(|byte| *byte == b'=').filter(|_| *end == b'\n').ok_or_else(broken)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        bytes = &bytes[length..];
        let count = || number(value).ok_or_else(broken).map(Some);
        match key {
            b"path" => next.path = Some(value.to_vec()),
            b"linkpath" => next.target = Some(value.to_vec()),
            b"size" => next.size = count()?,
            b"uid" => next.uid = count()?,
            b"gid" => next.gid = count()?,
            b"mtime" => {
                let text = std::str::from_utf8(value).map_err(|_| broken())?;
                let (whole, part) = text.split_once('.').unwrap_or((text, ""));
                let seconds: i64 = whole.parse().map_err(|_| broken())?;
                // For times before 1970, nanoseconds count upwards from the second below.
                next.mtime = Some(match nanos(part) {
                    part @ 1.. if text.starts_with('-') => (seconds.saturating_sub(1), 1_000_000_000 - part),
                    part => (seconds, part),
                });
            }
            b"GNU.sparse.major" => next.sparse.major = count()?,
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => next.sparse.size = count()?,
            b"GNU.sparse.name" => next.sparse.path = Some(value.to_vec()),
            b"GNU.sparse.map" => next.sparse.map = Some(value.to_vec()),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                return Err(refused("describes holes in an obsolete format (GNU sparse 0.0)"));
            }
            key => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    if name.is_empty() || name.contains(&0) || next.attributes.len() >= limits::IMAGE_XATTRS {
                        return Err(broken());
                    }
                    next.attributes.push((name.to_vec(), value.to_vec()));
                }
            }
        }
    }
    Ok(())
}

/// Parses the digits after a decimal point as nanoseconds.
fn nanos(digits: &str) -> u32 {
    let digits = digits.bytes().take(9).take_while(u8::is_ascii_digit);
    digits.chain(std::iter::repeat(b'0')).take(9).fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0'))
}

/// Reads a long name, terminated by NUL.
fn text(stream: &mut DecompressedStream, size: u64) -> Result<Vec<u8>> {
    let mut bytes = whole(stream, size, limits::IMAGE_PATH_BYTES + 1)?;
    if bytes.last() == Some(&0) {
        bytes.pop();
    }
    Ok(bytes)
}

/// Reads `size` bytes and the padding to a block into memory.
fn whole(stream: &mut DecompressedStream, size: u64, most: usize) -> Result<Vec<u8>> {
    let length = usize::try_from(size).ok().filter(|length| *length <= most);
    let length = length.ok_or_else(|| refused("has a name or an extended header that is too long"))?;
    let mut bytes = vec![0; length];
    if stream.fill(&mut bytes)? < length {
        return Err(truncated());
    }
    skip(stream, padding(size))?;
    Ok(bytes)
}

fn skip(stream: &mut DecompressedStream, mut left: u64) -> Result<()> {
    while left > 0 {
        let (chunk, part) = stream.next(left)?;
        if chunk.is_none() {
            return Err(truncated());
        }
        left -= part.len() as u64;
    }
    Ok(())
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn number(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}

fn field<T>(value: std::io::Result<T>, what: &str) -> Result<T> {
    value.map_err(|_| refused(&format!("has a member with an invalid {what}")))
}

pub(super) fn truncated() -> Error {
    Error::new(Code::InvalidImage, "The archive is truncated")
}

fn refused(problem: &str) -> Error {
    Error::new(Code::InvalidImage, format!("The archive {problem}"))
}

//! The archive of a backup: a tar archive, compressed with zstd, that any tar reads.
//!
//! ```text
//! backup.json    berth's version and the data format
//! data/…         the data folder
//! sums           a line with a digest for each entry before it (sums.rs has the format)
//! ```
//!
//! **Invariant:** files are unpacked only into one directory, and none of them is used before `sums` was compared. A
//! truncated archive has no `sums`. The digests detect damage but are no signature: restore only backups that you
//! trust, because they contain tokens and scripts.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Read, Seek as _, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use uuid::Uuid;

use super::archive::{self, ContentPart, Member, MemberContent, MemberKind};
use super::compression::{StreamObserver, read_ahead};
use super::pack::Packer;
pub use super::rules::DATA;
use super::rules::{BACKUP, may_be_link};
use super::sums;
use super::writer::{self, TreeWriter};
use crate::base::input_bytes::unnamed_file;
use crate::base::size::bytes;
use crate::base::{At, Code, Error, Result};
use crate::proc::Cancel;
use crate::store::format;

/// The content of `backup.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackupInfo {
    /// The format of the archive.
    pub format: u32,
    /// The format of the data directory.
    pub data_format: u32,
    /// The version of berth that wrote the backup.
    pub version: String,
    /// The time of the backup in RFC 3339.
    pub created_at: String,
    /// Whether roots, images and snapshots of containers are included.
    pub containers: bool,
    /// Original paths of included workspace files, by workspace ID: IDs in the OpenWork API are derived from paths.
    pub paths: BTreeMap<Uuid, String>,
}

/// The archive's own format.
pub const BACKUP_FORMAT: u32 = 1;

const INFO: &str = "backup.json";
const INFO_BYTES: u64 = 64 << 10;
const SUMS: &str = "sums";

/// A backup that is being written.
pub struct BackupArchive<'a>(Packer<'a>);

/// Entries that a backup does not contain.
#[derive(Clone, Debug, Default)]
pub struct OmittedEntries {
    /// Some of the omitted entries, each with the reason.
    pub named: Vec<String>,
    /// Number of all omitted entries.
    pub count: u64,
}

impl BackupArchive<'_> {
    /// Adds the directory at `path` as `name` below the data directory. `skip` gets names relative to the data
    /// directory.
    ///
    /// # Errors
    /// `Cancelled`, or an error of reading or writing.
    pub fn tree(&mut self, path: &Path, name: &str, skip: &dyn Fn(&[u8]) -> bool) -> Result<()> {
        let below = DATA.len() + 1;
        self.0.tree(path, &format!("{DATA}/{name}"), &|path| path.get(below..).is_some_and(skip))
    }

    /// Adds the file at `path`, which must not be a link.
    ///
    /// # Errors
    /// The same as for [`BackupArchive::tree`].
    pub fn file(&mut self, path: &Path, name: &str) -> Result<()> {
        self.0.file(path, &format!("{DATA}/{name}"))
    }

    /// Adds a file, or a directory if `bytes` is `None`, owned by this process's user.
    ///
    /// # Errors
    /// When the archive cannot be written.
    pub fn add(&mut self, name: &str, bytes: Option<&[u8]>, mode: u32) -> Result<()> {
        self.0.add(&format!("{DATA}/{name}"), bytes, mode)
    }
}

/// Writes an archive to `out`; `fill` adds the data. Checksums are collected in a temporary file in `beside`.
///
/// # Errors
/// An error of `fill` or of writing.
pub fn write(
    out: &mut dyn Write,
    beside: &Path,
    info: &BackupInfo,
    cancel: &Cancel,
    progress: &mut dyn FnMut(u64),
    fill: impl FnOnce(&mut BackupArchive<'_>) -> Result<()>,
) -> Result<OmittedEntries> {
    let mut lines = BufWriter::new(unnamed_file(beside).at("write in", beside)?);
    // Level 3 uses the fast compressor, the only one in this build (.cargo/config.toml).
    let mut encoder =
        zstd::Encoder::new(BufWriter::with_capacity(256 << 10, out), 3).at("write", "the backup")?;
    let text = serde_json::to_vec_pretty(info).map_err(|error| Error::internal(INFO).with_source(error))?;
    let mut again = lines.get_ref().try_clone().at("open", "the checksums")?;
    let omitted = {
        let mut packer = Packer::new(&mut encoder, &BACKUP, Some(&mut lines), cancel, progress);
        packer.add(INFO, Some(&text), 0o600)?;
        packer.add(&format!("{DATA}/"), None, 0o700)?;
        let mut archive = BackupArchive(packer);
        fill(&mut archive)?;
        let BackupArchive(mut packer) = archive;
        let (named, count) = packer.left_out();
        let omitted = OmittedEntries { named: named.to_vec(), count };
        packer.end_sums()?;
        let size = again.stream_position().at("read", "the checksums")?;
        again.rewind().at("read", "the checksums")?;
        packer.add_last(SUMS, size, again.take(size))?;
        packer.finish()?;
        omitted
    };
    encoder.finish().and_then(|mut out| out.flush()).at("write", "the backup")?;
    Ok(omitted)
}

/// Unpacks an archive into the empty, private directory `into` and compares everything with the checksums. The data is
/// in [`DATA`] there.
///
/// # Errors
/// `InvalidImage` for an archive that is damaged, incomplete or malicious; `NewerFormat`; `DiskFull`; `Cancelled`. In
/// all these cases, the caller must discard the unpacked files.
pub fn unpack(
    input: impl Read + Send,
    into: &Path,
    cancel: &Cancel,
    progress: &mut dyn FnMut(u64),
) -> Result<BackupInfo> {
    let free = free_bytes(into)?;
    let mut writer = TreeWriter::exact(into)?;
    // Once the disk is full, the remaining entries are only counted.
    let (mut full, mut needed) = (false, writer::IMAGE_FREE_BYTES);
    let mut lines = BufWriter::new(unnamed_file(into).at("write in", into)?);
    let (mut info, mut compared) = (None, false);
    let observe = StreamObserver { rules: &BACKUP, raw: &mut |_| {}, plain: &mut |_| {} };
    read_ahead(input, observe, cancel, |stream| {
        archive::read(stream, &BACKUP, &mut |member, content| {
            if compared {
                return Err(refused("has entries after its checksums"));
            }
            let path = &member.path[..];
            if info.is_none() {
                let (read, line) = read_info(member, content)?;
                info = Some(read);
                return lines.write_all(&line).at("write", "the checksums");
            }
            if path == SUMS.as_bytes() && member.kind == MemberKind::File {
                compared = true;
                if full {
                    return Ok(());
                }
                return compare(&mut lines, member, content);
            }
            let inside = path.strip_prefix(DATA.as_bytes()).is_some_and(|rest| rest.first() == Some(&b'/'));
            if !inside {
                let path = String::from_utf8_lossy(path).chars().take(200).collect::<String>();
                return Err(refused(&format!("has an unexpected entry '{}'", path.escape_debug())));
            }
            let linked = match member.kind {
                MemberKind::File | MemberKind::Folder => false,
                MemberKind::Link => !may_be_link(path) || !may_be_link(&member.target),
                MemberKind::Symlink | MemberKind::Device => !may_be_link(path),
            };
            if linked {
                let path = String::from_utf8_lossy(path).chars().take(200).collect::<String>();
                return Err(refused(&format!("has a link or device at '{}'", path.escape_debug())));
            }
            needed = needed.saturating_add(occupied(member));
            if full {
                return Ok(());
            }
            let put = writer.put(member, content).and_then(|digest| {
                progress(writer.entries);
                lines.write_all(&sums::line(member, digest.as_ref())).at("write", "the checksums")
            });
            match put {
                Err(error) if error.code() == Code::DiskFull => {
                    full = true;
                    Ok(())
                }
                put => put,
            }
        })?;
        // A compressed stream ends with a checksum of its own.
        stream.drain()
    })?;
    if full {
        let (needed, free, folder) = (bytes(needed), bytes(free), into.parent().unwrap_or(into));
        let message = format!(
            "The backup needs {needed}, and {free} are free in {}; free some disk space, or restore it elsewhere with \
             --data-dir",
            folder.display()
        );
        return Err(Error::new(Code::DiskFull, message));
    }
    let info = info.filter(|_| compared);
    let info = info.ok_or_else(|| refused("ends without its checksums; it is incomplete"))?;
    writer.finish()?;
    Ok(info)
}

/// Returns about how much disk space a member takes: a block for its entry, and whole blocks for its data.
fn occupied(member: &Member) -> u64 {
    const BLOCK: u64 = 4096;
    let data = match (&member.pieces, member.kind) {
        (Some(pieces), _) => pieces.iter().map(|piece| piece.length).fold(0, u64::saturating_add),
        (None, MemberKind::File) => member.size,
        (None, _) => 0,
    };
    data.checked_next_multiple_of(BLOCK).unwrap_or(data).saturating_add(BLOCK)
}

fn free_bytes(folder: &Path) -> Result<u64> {
    let room = rustix::fs::statvfs(folder).at("look at", folder)?;
    Ok(room.f_bavail.saturating_mul(room.f_frsize))
}

fn read_info(member: &Member, content: &mut MemberContent<'_>) -> Result<(BackupInfo, Vec<u8>)> {
    if member.path != INFO.as_bytes() || member.kind != MemberKind::File || member.size > INFO_BYTES {
        return Err(refused(&format!("does not begin with {INFO}: it is not a backup of berth")));
    }
    let (mut bytes, mut digest) = (Vec::new(), sums::start_digest(member));
    content.read(member, &mut |part| {
        if let ContentPart::Data(chunk, part) = part {
            digest.update(&chunk.bytes()[part.clone()]);
            bytes.extend_from_slice(&chunk.bytes()[part]);
        }
        Ok(())
    })?;
    #[derive(Deserialize)]
    struct Formats {
        format: u32,
        data_format: u32,
    }
    let unreadable = |error: serde_json::Error| refused(&format!("has an invalid {INFO} ({error})"));
    let formats: Formats = serde_json::from_slice(&bytes).map_err(unreadable)?;
    if formats.format > BACKUP_FORMAT {
        let found = formats.format;
        let message = format!(
            "The backup has archive format {found}, which a newer berth wrote; restore it with that version"
        );
        return Err(Error::new(Code::NewerFormat, message));
    }
    format::check_known(formats.data_format, "The backup")?;
    let info: BackupInfo = serde_json::from_slice(&bytes).map_err(unreadable)?;
    Ok((info, sums::line(member, Some(&digest.finalize().into()))))
}

/// Compares the checksum lines of the unpacked entries with those of the archive.
fn compare(ours: &mut BufWriter<File>, member: &Member, content: &mut MemberContent<'_>) -> Result<()> {
    ours.flush().at("write", "the checksums")?;
    let mut file = ours.get_ref().try_clone().at("read", "the checksums")?;
    file.rewind().at("read", "the checksums")?;
    let mut ours = BufReader::new(file);
    let mut wanted: Vec<u8> = Vec::new();
    let mut check = |wanted: &[u8]| -> Result<()> {
        let mut line = Vec::new();
        ours.read_until(b'\n', &mut line).at("read", "the checksums")?;
        if line == wanted {
            return Ok(());
        }
        let line = if line.is_empty() { wanted } else { &line };
        let text = String::from_utf8_lossy(line);
        let path = text.split(' ').nth(9).unwrap_or_default().trim_end();
        let path: String = path.chars().take(200).collect();
        Err(refused(&format!(
            "is damaged or was changed: '{}' does not match its checksum",
            path.escape_debug()
        )))
    };
    content.read(member, &mut |part| {
        let ContentPart::Data(chunk, part) = part else { return Err(refused("has checksums with holes")) };
        for piece in chunk.bytes()[part].split_inclusive(|byte| *byte == b'\n') {
            wanted.extend_from_slice(piece);
            if wanted.len() > LINE_BYTES {
                return Err(refused("has a checksum that is too long"));
            }
            if piece.ends_with(b"\n") {
                check(&wanted)?;
                wanted.clear();
            }
        }
        Ok(())
    })?;
    // Lines that remain on either side have no counterpart on the other side.
    check(&wanted)?;
    Ok(())
}

/// Maximum length of a line: four times a path, the path's target and its attributes.
const LINE_BYTES: usize = 8 << 20;

fn refused(problem: &str) -> Error {
    Error::new(Code::InvalidImage, format!("The backup {problem}"))
}

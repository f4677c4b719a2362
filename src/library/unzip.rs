//! Unpacks a zip archive from a client. The whole archive is checked before any of its files is used. Entries that
//! cannot be used are left out and reported. An archive is refused if an entry could do harm, or if different programs
//! could interpret it differently: if it has links or devices, names that lead out of the folder, duplicate names,
//! overlapping data, or too much data. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use rawzip::{CompressionMethod, CreatorSystem, ZipArchive, ZipFileHeaderRecord};

use super::folder::{check_part, is_ignored_name};
use super::zip_names;
use crate::base::limits;

/// The files of an archive, and the entries that were left out.
#[derive(Debug, Default)]
pub(super) struct UnpackedSkill {
    pub(super) files: BTreeMap<String, UnpackedFile>,
    pub(super) skipped: Vec<SkippedEntry>,
}

#[derive(Debug)]
pub(super) struct UnpackedFile {
    pub(super) bytes: Vec<u8>,
    pub(super) executable: bool,
}

/// An entry of the archive that was left out.
#[derive(Debug)]
pub(super) struct SkippedEntry {
    pub(super) name: String,
    pub(super) reason: String,
}

/// The maximum number of entries of an archive, including folders and files that desktops create.
const ENTRIES: usize = 10 * limits::SKILL_FILES;

/// Returns the files of an archive by path, without folders and files that desktops create.
///
/// # Errors
/// Returns the problem of the archive.
pub(super) fn unpack(mut archive: Vec<u8>) -> Result<UnpackedSkill, String> {
    let broken = |error: rawzip::Error| format!("The zip archive cannot be read: {error}");
    cut_comment(&mut archive);
    let zip = ZipArchive::from_slice(&archive).map_err(broken)?;
    let mut entries = zip.entries();
    let (mut unpacked, mut folders, mut ranges) = (UnpackedSkill::default(), BTreeSet::new(), Vec::new());
    let (mut count, mut left) = (0, limits::SKILL_BYTES);
    while let Some(entry) = entries.next_entry().map_err(broken)? {
        count += 1;
        if count > ENTRIES {
            return Err(format!("The archive has more than {ENTRIES} entries"));
        }
        let packed = zip.get_entry(entry.wayfinder()).map_err(broken)?;
        if packed.local_header().file_path().as_bytes() != entry.file_path().as_bytes() {
            return Err("The archive has an entry with two different names".to_owned());
        }
        ranges.push(packed.compressed_data_range());
        let name = zip_names::read(&entry)?;
        let kind = kind(&entry, &name.path)?;
        if name.path.split('/').any(is_ignored_name) {
            continue;
        }
        if name.folder || kind == ZipEntryKind::Folder {
            folders.insert(name.path);
            continue;
        }
        if let Some(reason) = skip_reason(&entry, &name) {
            unpacked.skipped.push(SkippedEntry { name: name.path, reason });
            continue;
        }
        if unpacked.files.len() == limits::SKILL_FILES {
            return Err(format!("The archive has more than {} files", limits::SKILL_FILES));
        }
        let path = name.path;
        let plain: Box<dyn Read> = match entry.compression_method() {
            CompressionMethod::STORE => Box::new(packed.data()),
            _ => Box::new(flate2::bufread::DeflateDecoder::new(packed.data())),
        };
        // The archive may state wrong sizes, so the unpacked bytes are counted.
        let (mut bytes, most) = (Vec::new(), left.saturating_add(1));
        let read = packed.verifying_reader(plain).take(most as u64).read_to_end(&mut bytes);
        if bytes.len() > left {
            return Err(format!("The unpacked archive is larger than {} bytes", limits::SKILL_BYTES));
        }
        read.map_err(|error| format!("{path} is damaged: {error}"))?;
        left -= bytes.len();
        if unpacked.files.contains_key(&path) {
            return Err(format!("The archive contains {path} twice"));
        }
        let executable = (entry.external_attributes() >> 16) & 0o111 != 0;
        unpacked.files.insert(path, UnpackedFile { bytes, executable });
    }
    if zip.entries_hint() != count as u64 {
        return Err("The archive's entry count does not match its contents".to_owned());
    }
    ranges.sort_unstable();
    if ranges.windows(2).any(|pair| pair[0].1 > pair[1].0) {
        return Err("Entries of the archive overlap, as in a zip bomb".to_owned());
    }
    let above = unpacked.files.keys().flat_map(|path| above(path));
    let folders: BTreeSet<&str> = above.chain(folders.iter().map(String::as_str)).collect();
    match unpacked.files.keys().find(|path| folders.contains(path.as_str())) {
        Some(path) => Err(format!("{path} is both a file and a folder in the archive")),
        None => Ok(unpacked),
    }
}

/// Removes the archive's comment, which may contain the signature that marks the end of an archive (`PK\5\6`).
fn cut_comment(archive: &mut Vec<u8>) {
    const END: &[u8] = b"PK\x05\x06";
    const LENGTH: usize = 22;
    let fits = |at: &usize| {
        let length = archive.get(at + 20..at + LENGTH).and_then(|bytes| bytes.first_chunk::<2>());
        let length = length.map(|bytes| usize::from(u16::from_le_bytes(*bytes)));
        length.is_some_and(|length| at + LENGTH + length == archive.len())
    };
    if let Some(at) = memchr::memmem::rfind_iter(archive, END).take(1 << 10).find(fits) {
        archive.truncate(at + LENGTH);
        archive[at + 20..].fill(0);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ZipEntryKind {
    File,
    Folder,
}

/// Returns the type of an entry according to its attributes. Unix attributes are used regardless of the system that
/// the entry names, as in unzip(1).
fn kind(entry: &ZipFileHeaderRecord<'_>, path: &str) -> Result<ZipEntryKind, String> {
    let attributes = entry.external_attributes();
    let dos = !matches!(entry.version_made_by().creator_system(), CreatorSystem::UNIX | CreatorSystem::MACOS);
    match (attributes >> 16) & 0o170_000 {
        0o040_000 => Ok(ZipEntryKind::Folder),
        0o100_000 => Ok(ZipEntryKind::File),
        // Archives from Java and .NET have no attributes; those of other tools may have permissions without a file
        // type.
        0 if dos && attributes & DOS_FOLDER != 0 && entry.uncompressed_size_hint() == 0 => {
            Ok(ZipEntryKind::Folder)
        }
        0 => Ok(ZipEntryKind::File),
        0o120_000 | 0o140_000 | 0o060_000 | 0o020_000 | 0o010_000 => {
            let shown = path.escape_debug();
            Err(format!("'{shown}' is a link or a device; only files and folders can be imported"))
        }
        _ => Ok(ZipEntryKind::File),
    }
}

/// The MS-DOS attribute that marks a folder.
const DOS_FOLDER: u32 = 0x10;

/// Returns the reason why a harmless entry cannot be used, or `None` if it can be used.
fn skip_reason(entry: &ZipFileHeaderRecord<'_>, name: &zip_names::EntryName) -> Option<String> {
    if name.undecodable {
        let reason = match entry.flags().is_utf8() {
            true => "its name is not valid UTF-8, although the archive declares UTF-8",
            false => {
                "its name is in a character set that the archive does not state; pack it again with UTF-8 names"
            }
        };
        return Some(reason.to_owned());
    }
    if let Err(error) = name.path.split('/').try_for_each(check_part) {
        return Some(error.message().to_owned());
    }
    if entry.flags().is_encrypted() {
        return Some("it is encrypted".to_owned());
    }
    let method = entry.compression_method();
    if !matches!(method, CompressionMethod::STORE | CompressionMethod::DEFLATE) {
        return Some("it is compressed in a way that berth does not support; use deflate".to_owned());
    }
    None
}

/// Returns the parent folders of a path.
fn above(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

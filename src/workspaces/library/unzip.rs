//! A zip archive that somebody sent, as a list of its files: all of it is checked before any of it is used, and what
//! different readers would understand differently is refused. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use rawzip::{CompressionMethod, ZipArchive, ZipFileHeaderRecord};

use super::check_name;
use crate::base::limits;

/// The files of an archive by their paths. Folders are left out, and what is hidden, as observed.
///
/// # Errors
/// What is wrong with it, for a person.
pub(super) fn files(archive: &[u8]) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let broken = |error: rawzip::Error| format!("It is not a zip archive that can be read: {error}");
    let zip = ZipArchive::from_slice(archive).map_err(broken)?;
    let mut entries = zip.entries();
    let (mut files, mut ranges) = (BTreeMap::new(), Vec::new());
    let (mut count, mut left) = (0, limits::SKILL_BYTES);
    while let Some(entry) = entries.next_entry().map_err(broken)? {
        count += 1;
        if count > limits::SKILL_FILES {
            return Err(format!("It has more than {} entries", limits::SKILL_FILES));
        }
        let packed = zip.get_entry(entry.wayfinder()).map_err(broken)?;
        if packed.local_header().file_path().as_bytes() != entry.file_path().as_bytes() {
            return Err("It calls one file by two names".to_owned());
        }
        ranges.push(packed.compressed_data_range());
        let Some(path) = path(&entry)? else { continue };
        let plain: Box<dyn Read> = match entry.compression_method() {
            CompressionMethod::STORE => Box::new(packed.data()),
            CompressionMethod::DEFLATE => Box::new(flate2::bufread::DeflateDecoder::new(packed.data())),
            _ => return Err(format!("{path} is compressed in a way that berth does not know; use deflate")),
        };
        // What an archive says of its sizes decides nothing.
        let (mut bytes, most) = (Vec::new(), left.saturating_add(1));
        let read = packed.verifying_reader(plain).take(most as u64).read_to_end(&mut bytes);
        if bytes.len() > left {
            return Err(format!("Unpacked it is larger than {} bytes", limits::SKILL_BYTES));
        }
        read.map_err(|error| format!("{path} is damaged: {error}"))?;
        left -= bytes.len();
        if files.contains_key(&path) {
            return Err(format!("It has {path} twice"));
        }
        files.insert(path, bytes);
    }
    if zip.entries_hint() != count as u64 {
        return Err("It says of itself that it has another number of entries than it has".to_owned());
    }
    ranges.sort_unstable();
    if ranges.windows(2).any(|pair| pair[0].1 > pair[1].0) {
        return Err("Files lie over each other in it, as in archives that are made to burst".to_owned());
    }
    let folders: BTreeSet<&str> = files.keys().flat_map(|path| above(path)).collect();
    match files.keys().find(|path| folders.contains(path.as_str())) {
        Some(path) => Err(format!("{path} is a file and a folder in it")),
        None => Ok(files),
    }
}

/// An entry's path, if it is a file that counts.
fn path(entry: &ZipFileHeaderRecord<'_>) -> Result<Option<String>, String> {
    let raw = entry.file_path();
    let path = std::str::from_utf8(raw.as_bytes()).map_err(|_| "A name in it is not UTF-8".to_owned())?;
    let shown = path.escape_debug();
    let path = path.strip_suffix('/').filter(|_| entry.is_dir()).unwrap_or(path);
    if path.contains('\\') || path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(format!("'{shown}' leads out of it, or would on some system"));
    }
    let kind = entry.mode().value() & 0o170_000;
    if !matches!(kind, 0 | 0o100_000 | 0o040_000) {
        return Err(format!("'{shown}' is a link or a device; only files and folders can be imported"));
    }
    if entry.is_dir() || kind == 0o040_000 || path.split('/').any(|part| part.starts_with('.')) {
        return Ok(None);
    }
    if entry.flags().is_encrypted() {
        return Err(format!("'{shown}' is encrypted"));
    }
    path.split('/').try_for_each(check_name).map_err(|error| format!("'{shown}': {}", error.message()))?;
    Ok(Some(path.to_owned()))
}

/// The folders above a path.
fn above(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

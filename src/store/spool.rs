//! Stores bytes on disk instead of in memory until they are read: in files without a name, limited for each key and in
//! total.
//!
//! The kernel frees the blocks of a file without a name when its last handle is closed, even after `kill -9`.
//! [`SpoolArea::open`] removes the named files that earlier versions of berth may have left.
//!
//! Any thread may use a spool. The lock of `used` is a leaf.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::file::{create_dir_private, sweep_temps};
use crate::base::input_bytes::unnamed_file;
use crate::base::thread::lock;
use crate::base::{At, Code, Error, Result};

/// Number of bytes that a file reserves at a time, so that the counters are not locked for each write.
const RESERVE_STEP: u64 = 256 << 10;

/// A folder of spooled files and its limits.
#[derive(Clone, Debug)]
pub struct SpoolArea(Arc<SpoolAreaInner>);

#[derive(Debug)]
struct SpoolAreaInner {
    folder: PathBuf,
    per_key: u64,
    total: u64,
    used: Mutex<HashMap<String, u64>>,
}

impl SpoolArea {
    /// Opens the folder, creates it if necessary, and removes the files of a killed server.
    ///
    /// # Errors
    /// When the folder cannot be created or cleaned.
    pub fn open(folder: &Path, per_key: u64, total: u64) -> Result<SpoolArea> {
        create_dir_private(folder)?;
        sweep_temps(folder)?;
        let used = Mutex::default();
        Ok(SpoolArea(Arc::new(SpoolAreaInner { folder: folder.to_owned(), per_key, total, used })))
    }

    /// Starts a file that counts against `key`.
    ///
    /// # Errors
    /// `DiskFull` or `Internal` when the file cannot be created.
    pub fn begin(&self, key: &str) -> Result<SpoolWriter> {
        let file = unnamed_file(&self.0.folder).at("create a file in", &self.0.folder)?;
        let share = SpoolReservation { area: self.0.clone(), key: key.to_owned(), bytes: 0 };
        Ok(SpoolWriter { file, share, bytes: 0 })
    }
}

/// The bytes that one file has reserved. Dropping this value returns them.
#[derive(Debug)]
struct SpoolReservation {
    area: Arc<SpoolAreaInner>,
    key: String,
    bytes: u64,
}

impl SpoolReservation {
    fn grow(&mut self, more: u64) -> Result<()> {
        let mut used = lock(&self.area.used);
        let all: u64 = used.values().sum();
        let mine = used.get(&self.key).copied().unwrap_or(0);
        let refuse = |what: &str, limit: u64| {
            let message = format!(
                "Waiting requests of {what} already hold {limit} bytes of bodies; answer or cancel pending approvals first"
            );
            Err(Error::new(Code::TooManyPending, message))
        };
        if mine + more > self.area.per_key {
            return refuse("this token", self.area.per_key);
        }
        if all + more > self.area.total {
            return refuse("all tokens together", self.area.total);
        }
        used.insert(self.key.clone(), mine + more);
        self.bytes += more;
        Ok(())
    }
}

impl Drop for SpoolReservation {
    fn drop(&mut self) {
        let mut used = lock(&self.area.used);
        if let Some(mine) = used.get_mut(&self.key) {
            *mine = mine.saturating_sub(self.bytes);
            if *mine == 0 {
                used.remove(&self.key);
            }
        }
    }
}

/// A spooled file that is being written.
#[derive(Debug)]
pub struct SpoolWriter {
    file: File,
    share: SpoolReservation,
    bytes: u64,
}

impl SpoolWriter {
    /// Appends bytes.
    ///
    /// # Errors
    /// `TooManyPending` when the limit for the key or the total limit is reached; `DiskFull`.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes += bytes.len() as u64;
        if self.bytes > self.share.bytes {
            self.share.grow((self.bytes - self.share.bytes).next_multiple_of(RESERVE_STEP))?;
        }
        self.file.write_all(bytes).at("write", &self.share.area.folder)
    }

    /// Finishes the file.
    pub fn finish(self) -> SpooledFile {
        SpooledFile(Arc::new(UnnamedFile { file: self.file, bytes: self.bytes, _share: self.share }))
    }
}

#[derive(Debug)]
struct UnnamedFile {
    file: File,
    bytes: u64,
    _share: SpoolReservation,
}

/// A complete spooled file. The kernel frees its blocks when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct SpooledFile(Arc<UnnamedFile>);

impl SpooledFile {
    pub fn size(&self) -> u64 {
        self.0.bytes
    }

    /// Returns the file, which must be read at explicit offsets.
    pub fn file(&self) -> &File {
        &self.0.file
    }

    /// Returns a reader that begins at the start of the file. Readers do not share a position.
    pub fn reader(&self) -> SpoolReader {
        SpoolReader { file: self.clone(), at: 0 }
    }
}

/// One reader of a [`SpooledFile`].
#[derive(Debug)]
pub struct SpoolReader {
    file: SpooledFile,
    at: u64,
}

impl Read for SpoolReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.file().read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::scratch::TestFolder;

    #[test]
    fn limits_hold_for_each_key_and_in_total_and_nothing_stays_on_disk() {
        let dir = TestFolder::new();
        let area = SpoolArea::open(&dir.join("spool"), 4 * RESERVE_STEP, 6 * RESERVE_STEP).unwrap();
        let fill = |key: &str, steps: u64| {
            let mut writer = area.begin(key).unwrap();
            writer.append(&vec![7; (steps * RESERVE_STEP) as usize]).map(|()| writer.finish())
        };
        let first = fill("a", 3).unwrap();
        assert_eq!(fill("a", 2).unwrap_err().code(), Code::TooManyPending);
        let second = fill("b", 3).unwrap();
        assert_eq!(fill("c", 1).unwrap_err().code(), Code::TooManyPending);
        assert_eq!(std::fs::read_dir(dir.join("spool")).unwrap().count(), 0);
        let (mut one, mut other) = (first.reader(), first.reader());
        let mut text = Vec::new();
        one.read_to_end(&mut text).unwrap();
        assert_eq!((text.len() as u64, other.read(&mut [0; 9]).unwrap()), (first.size(), 9));
        drop((first, one));
        assert!(fill("c", 3).is_err(), "a reader keeps the reservation");
        drop(other);
        fill("c", 3).unwrap();
        drop(second);
        assert!(lock(&area.0.used).is_empty());
    }

    #[test]
    fn full_disk_has_its_own_code() {
        let dir = TestFolder::new();
        let _mount = dir.mount_tmpfs("small", "size=64k");
        let area = SpoolArea::open(&dir.join("small/spool"), 1 << 30, 1 << 30).unwrap();
        let mut writer = area.begin("a").unwrap();
        assert_eq!(writer.append(&vec![7; 1 << 20]).unwrap_err().code(), Code::DiskFull);
        drop(writer);
        area.begin("a").unwrap().append(b"x").unwrap();
    }
}

//! A log of limited size in two files. When the newer file is full, it replaces the older file. One thread writes.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::base::{At, Result};

#[derive(Debug)]
pub struct RollingLog {
    path: PathBuf,
    file: File,
    size: u64,
    most: u64,
}

impl RollingLog {
    /// Opens the log at `path`, with at most `most` bytes in each of its two files.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: &Path, most: u64) -> Result<RollingLog> {
        let file = append_to(path)?;
        let size = file.metadata().at("look at", path)?.len();
        Ok(RollingLog { path: path.to_owned(), file, size, most })
    }

    /// Appends a line.
    ///
    /// # Errors
    /// When the line cannot be written.
    pub fn line(&mut self, line: &str) -> Result<()> {
        let mut bytes = Vec::with_capacity(line.len() + 1);
        bytes.extend_from_slice(line.as_bytes());
        bytes.push(b'\n');
        if self.size > 0 && self.size + bytes.len() as u64 > self.most {
            fs::rename(&self.path, older(&self.path)).at("move", &self.path)?;
            self.file = append_to(&self.path)?;
            self.size = 0;
        }
        self.file.write_all(&bytes).at("write", &self.path)?;
        self.size += bytes.len() as u64;
        Ok(())
    }
}

/// Returns the path of the older file: `x.1.log` for `x.log`.
fn older(path: &Path) -> PathBuf {
    path.with_extension("1.log")
}

fn append_to(path: &Path) -> Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path).at("open", path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::scratch::TestFolder;

    #[test]
    fn two_files_of_bounded_size_keep_the_newest_lines() {
        let dir = TestFolder::new();
        let path = dir.join("x.log");
        for number in 0..100 {
            // The log is reopened from time to time, as a later server would do.
            let mut log = RollingLog::open(&path, 100).unwrap();
            log.line(&format!("line {number}")).unwrap();
            log.line("and another").unwrap();
        }
        let (newer, before) = (fs::read_to_string(&path).unwrap(), fs::read_to_string(older(&path)).unwrap());
        assert!(newer.len() <= 100 && before.len() <= 100, "{newer}{before}");
        assert!(newer.ends_with("line 99\nand another\n"), "{newer}");
        assert_eq!(fs::read_dir(&*dir).unwrap().count(), 2);
    }
}

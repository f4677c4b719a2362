//! A log of bounded size: a file, and the one before it. When the newer is full the older is given up. One thread writes.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::base::{At, Result};

/// The log.
#[derive(Debug)]
pub struct RollingLog {
    path: PathBuf,
    file: File,
    size: u64,
    most: u64,
}

impl RollingLog {
    /// Appends to the log at `path`, whose two files have at most `most` bytes each.
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
    /// When it cannot be written.
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

/// `x.log` was `x.1.log` before it was full.
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
            // Opened anew now and then, as by a later server.
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

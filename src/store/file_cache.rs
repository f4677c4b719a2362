//! What files and folders had when they were read last: a list of fifty skills costs fifty looks, and no reading. A file is known
//! by its inode, change time and size. Knows nothing of what the files mean.
//!
//! Lock: the table, a leaf; no file is touched under it.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FileType, Stat, Statx, StatxTimestamp, fstat, makedev};

use super::beneath::{Root, map_kernel_error};
use crate::base::thread::lock;
use crate::base::{Result, limits};

/// Which file.
type Inode = (u64, u64);

/// A file or folder as the kernel describes it.
#[derive(Clone, Copy, Debug)]
pub struct FileStat {
    inode: Inode,
    stamp: FileStamp,
    mode: u32,
    links: u64,
}

/// No program can set the change time, so a file with these is the one that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    size: u64,
    changed: (i64, u64),
    modified: (i64, u64),
}

impl From<Stat> for FileStat {
    fn from(stat: Stat) -> FileStat {
        FileStat {
            inode: (stat.st_dev, stat.st_ino),
            stamp: FileStamp {
                size: u64::try_from(stat.st_size).unwrap_or_default(),
                changed: (stat.st_ctime, stat.st_ctime_nsec),
                modified: (stat.st_mtime, stat.st_mtime_nsec),
            },
            mode: stat.st_mode,
            links: stat.st_nlink,
        }
    }
}

impl From<Statx> for FileStat {
    fn from(stat: Statx) -> FileStat {
        let time = |time: StatxTimestamp| (time.tv_sec, u64::from(time.tv_nsec));
        FileStat {
            inode: (makedev(stat.stx_dev_major, stat.stx_dev_minor), stat.stx_ino),
            stamp: FileStamp {
                size: stat.stx_size,
                changed: time(stat.stx_ctime),
                modified: time(stat.stx_mtime),
            },
            mode: stat.stx_mode.into(),
            links: stat.stx_nlink.into(),
        }
    }
}

impl FileStat {
    /// Device and inode.
    pub fn inode(&self) -> Inode {
        self.inode
    }

    /// In bytes.
    pub fn size(&self) -> u64 {
        self.stamp.size
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        FileType::from_raw_mode(self.mode) == FileType::RegularFile
    }

    /// Times of its last write and of its last change of any kind, in one number each.
    pub fn times(&self) -> (i64, i64) {
        let joined =
            |(seconds, nanos): (i64, u64)| i64::try_from(nanos).unwrap_or_default() ^ (seconds << 30);
        (joined(self.stamp.modified), joined(self.stamp.changed))
    }
}

impl Root {
    /// What the entry is, after following links inside the tree; `None` if it is not there.
    ///
    /// # Errors
    /// See [`Root`].
    pub fn stat(&self, rel: &str) -> Result<Option<FileStat>> {
        let Some(found) = self.find(rel)? else { return Ok(None) };
        map_kernel_error(fstat(&found), "read", rel).map(|stat| Some(stat.into()))
    }
}

/// What was read of files, of all workspaces.
#[derive(Debug)]
pub struct FileCache<T>(Mutex<CacheTable<T>>);

#[derive(Debug)]
struct CacheTable<T> {
    files: HashMap<Inode, (FileStamp, u64, T)>,
    bytes: u64,
}

impl<T> Default for FileCache<T> {
    fn default() -> FileCache<T> {
        FileCache(Mutex::new(CacheTable { files: HashMap::new(), bytes: 0 }))
    }
}

/// One list's view: a file that has many names is read once, even if it was written just now.
pub struct CacheView<'a, T> {
    all: &'a FileCache<T>,
    own: HashMap<Inode, (FileStamp, T)>,
}

impl<T: Clone> FileCache<T> {
    /// For one list.
    pub fn views(&self) -> CacheView<'_, T> {
        CacheView { all: self, own: HashMap::new() }
    }

    /// A file of JSON as it was read before, or by `read` now. `None` if there is no file.
    ///
    /// # Errors
    /// Those of `read`; see [`Root`].
    pub fn look(
        &self,
        root: &Root,
        rel: &str,
        read: impl FnOnce() -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let Some(stat) = root.stat(rel)? else { return Ok(None) };
        if let Some(value) = self.get(&stat) {
            return Ok(Some(value));
        }
        let value = read()?;
        if let Some(value) = &value {
            // A value that takes two bytes in the file, `1,`, takes dozens in memory.
            self.insert(&stat, stat.size() * 48 + 512, value.clone());
        }
        Ok(value)
    }

    /// As it was read before.
    pub fn get(&self, stat: &FileStat) -> Option<T> {
        let table = lock(&self.0);
        let (known, _, value) = table.files.get(&stat.inode)?;
        (*known == stat.stamp).then(|| value.clone())
    }

    /// Keeps what was read of a file, which takes about `bytes`.
    pub fn insert(&self, stat: &FileStat, bytes: u64, value: T) {
        if !stat.stamp.is_settled() || bytes > limits::SEEN_BYTES / 4 {
            return;
        }
        let mut table = lock(&self.0);
        if table.files.len() >= limits::SEEN_FILES || table.bytes + bytes > limits::SEEN_BYTES {
            table.files.clear();
            table.bytes = 0;
        }
        table.bytes += bytes;
        if let Some((_, old, _)) = table.files.insert(stat.inode, (stat.stamp, bytes, value)) {
            table.bytes -= old;
        }
    }
}

impl<T: Clone> CacheView<'_, T> {
    /// The file as it was read before, or by `read` now.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn look(
        &mut self,
        stat: &FileStat,
        read: impl FnOnce(&FileStat) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        if let Some((known, value)) = self.own.get(&stat.inode) {
            if *known == stat.stamp {
                return Ok(Some(value.clone()));
            }
        }
        if let Some(value) = self.all.get(stat) {
            return Ok(Some(value));
        }
        // Written between the two, it has another stamp next time.
        let value = read(stat)?;
        if let Some(value) = &value {
            // What is made of a file takes about twice its size.
            let bytes = stat.size().min(limits::PROJECT_FILE_BYTES) * 2 + 512;
            self.all.insert(stat, bytes, value.clone());
            if stat.links > 1 {
                self.own.insert(stat.inode, (stat.stamp, value.clone()));
            }
        }
        Ok(value)
    }
}

impl FileStamp {
    /// File times come from a clock that ticks every few milliseconds (`current_time` in the kernel's fs/inode.c): of two
    /// writes within one tick the second would not show.
    fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let changed = Duration::from_secs(u64::try_from(self.changed.0).unwrap_or_default());
        now.saturating_sub(changed) > Duration::from_secs(2)
    }
}

//! Caches content that is derived from files: listing fifty unchanged skills costs fifty stat calls and no reads. A
//! file is identified by its inode, change time and size. The cache does not depend on the meaning of the files.
//!
//! The lock of the table is a leaf; no file is accessed while it is held.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FileType, Stat, Statx, StatxTimestamp, fstat, makedev};

use super::beneath::{Root, map_kernel_error};
use crate::base::thread::lock;
use crate::base::{Result, limits};

/// Maximum number of cached files: enough for the skills of some hundred workspaces.
const SEEN_FILES: usize = 4096;
/// Maximum memory of each kind of cached content.
const SEEN_BYTES: u64 = 16 << 20;

/// The device and the inode of a file.
type Inode = (u64, u64);

/// Metadata of a file or folder.
#[derive(Clone, Copy, Debug)]
pub struct FileStat {
    inode: Inode,
    stamp: FileStamp,
    mode: u32,
    links: u64,
}

/// Identifies a state of a file. Programs cannot set the change time, so a file with an equal stamp is unchanged.
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
    pub fn inode(&self) -> Inode {
        self.inode
    }

    /// Returns the size in bytes.
    pub fn size(&self) -> u64 {
        self.stamp.size
    }

    pub fn is_file(&self) -> bool {
        FileType::from_raw_mode(self.mode) == FileType::RegularFile
    }

    /// Returns the times of the last write and of the last change of any kind, each as one number.
    pub fn times(&self) -> (i64, i64) {
        let joined =
            |(seconds, nanos): (i64, u64)| i64::try_from(nanos).unwrap_or_default() ^ (seconds << 30);
        (joined(self.stamp.modified), joined(self.stamp.changed))
    }
}

impl Root {
    /// Returns the metadata of an entry, after following links inside the tree; `None` if the entry does not exist.
    ///
    /// # Errors
    /// See [`Root`].
    pub fn stat(&self, rel: &str) -> Result<Option<FileStat>> {
        let Some(found) = self.find(rel)? else { return Ok(None) };
        map_kernel_error(fstat(&found), "read", rel).map(|stat| Some(stat.into()))
    }
}

/// A cache for the files of all workspaces.
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

/// The cache during one listing: a file with several names is read only once, even if it was written just now.
pub struct CacheView<'a, T> {
    all: &'a FileCache<T>,
    own: HashMap<Inode, (FileStamp, T)>,
}

impl<T: Clone> FileCache<T> {
    /// Starts a listing.
    pub fn views(&self) -> CacheView<'_, T> {
        CacheView { all: self, own: HashMap::new() }
    }

    /// Returns the value of a JSON file from the cache, or reads the file with `read`. Returns `None` if the file does
    /// not exist.
    ///
    /// # Errors
    /// An error of `read`; see also [`Root`].
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
            // The two bytes `1,` in a file take dozens of bytes in memory.
            self.insert(&stat, stat.size() * 48 + 512, value.clone());
        }
        Ok(value)
    }

    /// Returns the cached value for this metadata, if there is one.
    pub fn get(&self, stat: &FileStat) -> Option<T> {
        let table = lock(&self.0);
        let (known, _, value) = table.files.get(&stat.inode)?;
        (*known == stat.stamp).then(|| value.clone())
    }

    /// Caches a value that takes about `bytes` of memory.
    pub fn insert(&self, stat: &FileStat, bytes: u64, value: T) {
        if !stat.stamp.is_settled() || bytes > SEEN_BYTES / 4 {
            return;
        }
        let mut table = lock(&self.0);
        if table.files.len() >= SEEN_FILES || table.bytes + bytes > SEEN_BYTES {
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
    /// Returns the value of a file from the cache, or reads the file with `read`.
    ///
    /// # Errors
    /// An error of `read`.
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
        // If the file is written after `stat`, its stamp differs the next time.
        let value = read(stat)?;
        if let Some(value) = &value {
            // A value takes about twice the size of its file.
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
    /// Returns whether the stamp is reliable. File times come from a clock that ticks every few milliseconds
    /// (`current_time` in the kernel's fs/inode.c), so a second write within the same tick would not change the stamp.
    fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let changed = Duration::from_secs(u64::try_from(self.changed.0).unwrap_or_default());
        now.saturating_sub(changed) > Duration::from_secs(2)
    }
}

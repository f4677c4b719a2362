//! How much all runs may keep on disk together: a number, and what the file system has left. Whoever writes asks now
//! and then; when it is tight, the table makes room.
//!
//! Threads: any. Lock: `making`, held by the one who makes room; it is taken before the table's.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, TryLockError};

use crate::base::{input_bytes, limits};

/// Gives up what is needed least until its argument says that it is enough, or nothing is left to give.
type ReclaimFn = Box<dyn Fn(&dyn Fn() -> bool) + Send + Sync>;

/// The account.
pub struct DiskBudget {
    folder: PathBuf,
    total: u64,
    used: AtomicU64,
    reclaimer: OnceLock<ReclaimFn>,
    reclaiming: Mutex<()>,
}

impl DiskBudget {
    /// At most `total` bytes, on the file system of `folder`.
    pub fn new(folder: PathBuf, total: u64) -> DiskBudget {
        DiskBudget {
            folder,
            total,
            used: AtomicU64::new(0),
            reclaimer: OnceLock::new(),
            reclaiming: Mutex::default(),
        }
    }

    /// Who makes room: gives up what is needed least, until its argument says that it is enough.
    pub fn set_reclaimer(&self, make: impl Fn(&dyn Fn() -> bool) + Send + Sync + 'static) {
        let _ = self.reclaimer.set(Box::new(make));
    }

    /// A file that has no name, and so goes with its last descriptor.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn unnamed_file(&self) -> io::Result<File> {
        input_bytes::unnamed_file(&self.folder)
    }

    /// So many bytes more are kept.
    pub fn add(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So many bytes less.
    pub fn sub(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// How many bytes should be given up. Never more than an eighth of all: when others fill the disk, what we keep
    /// goes slowly, and not for nothing.
    fn excess(&self) -> Option<u64> {
        let used = self.used.load(Ordering::Relaxed);
        let too_much = used.saturating_sub(self.total).max(self.missing_on_disk());
        (too_much > 0).then(|| too_much.min(used / 8).max(limits::SPOOL_CHECK_BYTES))
    }

    fn missing_on_disk(&self) -> u64 {
        // A file system that cannot say is not guessed about: the write itself will fail.
        let Ok(disk) = rustix::fs::statvfs(&self.folder) else { return 0 };
        let (free, all) = (disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize);
        (all / limits::RUNS_FREE_SHARE).min(limits::RUNS_FREE_BYTES).saturating_sub(free)
    }

    /// Has room made if it is tight, unless somebody is at it already.
    pub fn check(&self) {
        if let Some(excess) = self.excess() {
            self.reclaim(excess);
        }
    }

    /// Has room made for so many bytes.
    pub fn reclaim(&self, bytes: u64) {
        let _making = match self.reclaiming.try_lock() {
            Err(TryLockError::WouldBlock) => return,
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poison)) => poison.into_inner(),
        };
        let target = self.used.load(Ordering::Relaxed).saturating_sub(bytes);
        if let Some(make) = self.reclaimer.get() {
            make(&|| self.used.load(Ordering::Relaxed) <= target);
        }
    }
}

impl std::fmt::Debug for DiskBudget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Room({} of {})", self.used.load(Ordering::Relaxed), self.total)
    }
}

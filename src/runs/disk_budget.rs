//! Disk budget of all runs together: a fixed limit, and a minimum of free space on the file system. Writers check
//! the budget from time to time; when it is exceeded, the run table frees space.
//!
//! Threads: any. Lock: `reclaiming`, held by the caller that frees space; taken before the table's.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, TryLockError};

use crate::base::{input_bytes, limits};

/// The output of runs leaves 1/n of the file system free, where n is this number …
const RUNS_FREE_SHARE: u64 = 20;
/// … but leaves at most this many bytes free, which is enough for all other files of berth.
const RUNS_FREE_BYTES: u64 = 512 << 20;

/// A function that frees the least needed data until its argument returns `true` or no data is left.
type ReclaimFn = Box<dyn Fn(&dyn Fn() -> bool) + Send + Sync>;

/// The disk budget of all runs, with the number of bytes in use.
pub struct DiskBudget {
    folder: PathBuf,
    total: u64,
    used: AtomicU64,
    reclaimer: OnceLock<ReclaimFn>,
    reclaiming: Mutex<()>,
}

impl DiskBudget {
    /// Creates a budget of at most `total` bytes on the file system of `folder`.
    pub fn new(folder: PathBuf, total: u64) -> DiskBudget {
        DiskBudget {
            folder,
            total,
            used: AtomicU64::new(0),
            reclaimer: OnceLock::new(),
            reclaiming: Mutex::default(),
        }
    }

    /// Sets the function that frees the least needed data until its argument returns `true`.
    pub fn set_reclaimer(&self, make: impl Fn(&dyn Fn() -> bool) + Send + Sync + 'static) {
        let _ = self.reclaimer.set(Box::new(make));
    }

    /// Opens a file without a name, which the kernel removes when its last descriptor is closed.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn unnamed_file(&self) -> io::Result<File> {
        input_bytes::unnamed_file(&self.folder)
    }

    /// Records that runs use `bytes` more.
    pub fn add(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Records that runs use `bytes` less.
    pub fn sub(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Returns how many bytes should be freed; `None` if the budget is not exceeded. Frees at most an eighth of
    /// the used bytes at once, so that kept output shrinks gradually if other software fills the disk.
    fn excess(&self) -> Option<u64> {
        let used = self.used.load(Ordering::Relaxed);
        let too_much = used.saturating_sub(self.total).max(self.missing_on_disk());
        (too_much > 0).then(|| too_much.min(used / 8).max(limits::SPOOL_CHECK_BYTES))
    }

    fn missing_on_disk(&self) -> u64 {
        // If the file system cannot report its size, a later write reports the error.
        let Ok(disk) = rustix::fs::statvfs(&self.folder) else { return 0 };
        let (free, all) = (disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize);
        (all / RUNS_FREE_SHARE).min(RUNS_FREE_BYTES).saturating_sub(free)
    }

    /// Frees space if the budget is exceeded. Does nothing while another thread frees space.
    pub fn check(&self) {
        if let Some(excess) = self.excess() {
            self.reclaim(excess);
        }
    }

    /// Frees at least `bytes`, if so much output is kept. Does nothing while another thread frees space.
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

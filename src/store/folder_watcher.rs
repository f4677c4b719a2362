//! Watches folders for changes (inotify(7)). An event only means that the folder should be read again: the kernel's
//! queue can overflow, and subfolders are not watched. Any thread may use a watcher; there are no locks.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use crate::base::{At, Result};

/// The events in a folder that a watcher reports.
const WATCH_EVENTS: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);

/// A set of watched folders.
#[derive(Debug)]
pub struct FolderWatcher {
    queue: OwnedFd,
    events: WatchFlags,
}

/// A change that the kernel has reported.
#[derive(Debug)]
pub enum FolderChange {
    /// The kernel's queue overflowed: anything may have changed.
    Overflow,
    /// The watch of a folder has ended.
    WatchEnded {
        watch: i32,
        /// Whether the folder's file system was unmounted: accessing the folder could mount the file system again
        /// (automount).
        unmounted: bool,
    },
    /// A folder has changed: its entry `name`, or the folder itself.
    Entry {
        watch: i32,
        /// The entry's name, if it is UTF-8.
        name: Option<String>,
        /// Whether the folder itself was moved or removed.
        itself: bool,
    },
}

impl FolderWatcher {
    /// Creates a watcher without folders.
    ///
    /// # Errors
    /// When the user's limit of inotify instances is reached.
    pub fn new() -> Result<FolderWatcher> {
        let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
        let queue = inotify::init(flags).at("watch", "files (inotify)")?;
        Ok(FolderWatcher { queue, events: WATCH_EVENTS })
    }

    /// Creates a watcher that also reports changes of permissions.
    ///
    /// # Errors
    /// The same as for [`FolderWatcher::new`].
    pub fn with_modes() -> Result<FolderWatcher> {
        Ok(FolderWatcher { events: WATCH_EVENTS.union(WatchFlags::ATTRIB), ..FolderWatcher::new()? })
    }

    /// Watches an open folder, through this process's /proc so that the folder's path cannot be redirected. Returns the
    /// number of the watch, which is the same each time for the same folder.
    ///
    /// # Errors
    /// `NOSPC` when the kernel's limit of watches is reached.
    pub fn watch(&self, folder: &OwnedFd) -> Result<i32, Errno> {
        inotify::add_watch(&self.queue, format!("/proc/self/fd/{}", folder.as_raw_fd()), self.events)
    }

    /// Stops watching a folder.
    pub fn unwatch(&self, watch: i32) {
        // The watch may have ended together with its folder.
        let _ = inotify::remove_watch(&self.queue, watch);
    }

    /// Calls `each` for every event since the last call.
    ///
    /// # Errors
    /// When the events cannot be read.
    pub fn read(&self, mut each: impl FnMut(FolderChange)) -> Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 16 << 10];
        let mut reader = Reader::new(&self.queue, &mut buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno).at("read", "changes"),
            };
            let (watch, flags) = (event.wd(), event.events());
            each(if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                FolderChange::Overflow
            } else if flags.intersects(ReadFlags::IGNORED | ReadFlags::UNMOUNT) {
                FolderChange::WatchEnded { watch, unmounted: flags.contains(ReadFlags::UNMOUNT) }
            } else {
                let name = event.file_name().and_then(|name| name.to_str().ok()).map(str::to_owned);
                let itself = flags.intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF);
                FolderChange::Entry { watch, name, itself }
            });
        }
    }
}

impl AsFd for FolderWatcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

//! What the kernel tells of changes in folders (inotify(7)). It only says that it is worth looking again: its queue can
//! overflow, and a folder's own folders are not in it.
//! Any thread; no locks.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use crate::base::{At, Result};

/// What happens in a folder that is worth a look.
const WORTH: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);

/// Folders that are watched.
#[derive(Debug)]
pub struct FolderWatcher {
    queue: OwnedFd,
    worth: WatchFlags,
}

/// Something that has happened.
#[derive(Debug)]
pub enum FolderChange {
    /// More than the kernel could note.
    Overflow,
    /// This watch is no more; `unmounted`: its file system is gone.
    WatchEnded {
        /// Which.
        watch: i32,
        /// Looking again would mount it again.
        unmounted: bool,
    },
    /// In this folder, to the entry of this name; none: to the folder itself.
    Entry {
        /// Which.
        watch: i32,
        /// Whose, if it is UTF-8.
        name: Option<String>,
        /// The folder was moved or removed.
        itself: bool,
    },
}

impl FolderWatcher {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// When the kernel has no inotify left for this user.
    pub fn new() -> Result<FolderWatcher> {
        let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
        let queue = inotify::init(flags).at("watch", "files (inotify)")?;
        Ok(FolderWatcher { queue, worth: WORTH })
    }

    /// The same, and changes of permissions count.
    ///
    /// # Errors
    /// As above.
    pub fn with_modes() -> Result<FolderWatcher> {
        Ok(FolderWatcher { worth: WORTH.union(WatchFlags::ATTRIB), ..FolderWatcher::new()? })
    }

    /// Watches an open folder, by way of our own /proc, so that the kernel cannot be led elsewhere; the number is the
    /// same for the same folder.
    ///
    /// # Errors
    /// `NOSPC` when the kernel allows no more.
    pub fn watch(&self, folder: &OwnedFd) -> Result<i32, Errno> {
        inotify::add_watch(&self.queue, format!("/proc/self/fd/{}", folder.as_raw_fd()), self.worth)
    }

    /// Watches a folder no more.
    pub fn unwatch(&self, watch: i32) {
        // It ends by itself with its folder.
        let _ = inotify::remove_watch(&self.queue, watch);
    }

    /// Tells all that has happened since the last call.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
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

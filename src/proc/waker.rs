//! Wakes a poll(2) from another thread, any number of times. In contrast, [`super::Cancel`] can be set only once.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

use crate::base::{At, Result};

/// A descriptor that is readable from [`Waker::wake`] until [`Waker::clear`].
#[derive(Debug)]
pub struct Waker(OwnedFd);

impl Waker {
    /// Creates a waker that is not readable.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn new() -> Result<Waker> {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(Waker).at("open", "an eventfd")
    }

    /// Makes the waker readable. This cannot fail, because the counter would have to reach 2^64.
    pub fn wake(&self) {
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Makes the waker unreadable again. A caller that checks its condition after this call misses no wake-up.
    pub fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

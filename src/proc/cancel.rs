//! A flag that also wakes poll(2), so that another thread can cancel a run or a build.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

use crate::base::{At, Result};

/// A cancellation flag. All clones share the flag.
#[derive(Clone, Debug)]
pub struct Cancel(Arc<CancelInner>);

#[derive(Debug)]
struct CancelInner {
    fd: OwnedFd,
    cancelled: AtomicBool,
}

impl Cancel {
    /// Creates a flag that is not set.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn new() -> Result<Cancel> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).at("open", "an eventfd")?;
        Ok(Cancel(Arc::new(CancelInner { fd, cancelled: AtomicBool::new(false) })))
    }

    /// Sets the flag permanently.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Release);
        // The counter is never read, so the descriptor stays readable and every later poll(2) returns at once.
        let _ = rustix::io::write(&self.0.fd, &1u64.to_ne_bytes());
    }

    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Acquire)
    }
}

impl AsFd for Cancel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

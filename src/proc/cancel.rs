//! A flag that also wakes poll(2): ends runs and builds from another thread.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

use crate::base::{At, Result};

/// Cloned to whoever may cancel and whoever must notice.
#[derive(Clone, Debug)]
pub struct Cancel(Arc<CancelInner>);

#[derive(Debug)]
struct CancelInner {
    fd: OwnedFd,
    cancelled: AtomicBool,
}

impl Cancel {
    /// A flag that is down.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn new() -> Result<Cancel> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).at("open", "an eventfd")?;
        Ok(Cancel(Arc::new(CancelInner { fd, cancelled: AtomicBool::new(false) })))
    }

    /// Raises the flag, for good.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Release);
        // The counter is never read, so the descriptor stays readable for everyone who polls it later.
        let _ = rustix::io::write(&self.0.fd, &1u64.to_ne_bytes());
    }

    /// Whether it is up.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Acquire)
    }
}

impl AsFd for Cancel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

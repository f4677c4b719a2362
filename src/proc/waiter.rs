//! Lets a thread wait at the same time for a notification (such as a run's next output or an event) and for a file
//! descriptor.
//!
//! Any thread may wait or notify. The lock of the list of waiters is a leaf; notifying never blocks.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::base::thread::lock;
use crate::base::{At, Result};

/// The notification state of one waiting thread.
#[derive(Debug)]
pub struct Waiter {
    fd: OwnedFd,
    /// Whether the next notification writes to the eventfd: only the first one after [`Waiter::arm`] does.
    armed: AtomicBool,
}

/// The reason why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WakeReason {
    /// The waiter was notified.
    Notified,
    /// The other descriptor is ready.
    OtherReady,
    /// The deadline has passed.
    TimedOut,
}

impl Waiter {
    /// Creates a waiter that has not been notified.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn new() -> Result<Arc<Waiter>> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).at("open", "an eventfd")?;
        Ok(Arc::new(Waiter { fd, armed: AtomicBool::new(false) }))
    }

    /// Arms the waiter. Check the condition after this call; otherwise a notification may be missed.
    pub fn arm(&self) {
        self.armed.store(true, Ordering::SeqCst);
    }

    fn notify(&self) {
        if self.armed.swap(false, Ordering::SeqCst) {
            let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
        }
    }

    /// Consumes a notification that poll(2) has reported.
    pub fn clear(&self) {
        let _ = rustix::io::read(&self.fd, &mut [0; 8]);
    }

    /// Waits until a notification arrives, `other` is ready, or the deadline passes.
    ///
    /// # Errors
    /// When poll(2) fails.
    pub fn wait(&self, other: Option<(BorrowedFd<'_>, PollFlags)>, deadline: Instant) -> Result<WakeReason> {
        let mut fds = vec![PollFd::new(&self.fd, PollFlags::IN)];
        fds.extend(other.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut fds, Some(&timeout)) {
            // An interrupted call counts as a notification: the caller then checks its condition again.
            Err(rustix::io::Errno::INTR) => return Ok(WakeReason::Notified),
            polled => polled.at("poll", "for news")?,
        };
        if fds.get(1).is_some_and(|other| !other.revents().is_empty()) {
            return Ok(WakeReason::OtherReady);
        }
        if fds[0].revents().is_empty() {
            return Ok(WakeReason::TimedOut);
        }
        self.clear();
        Ok(WakeReason::Notified)
    }
}

impl AsFd for Waiter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// All waiters for one condition. Waiters that have been dropped are removed from the list.
#[derive(Debug, Default)]
pub struct WaiterList(Mutex<Vec<Weak<Waiter>>>);

impl WaiterList {
    /// Adds a waiter, which is notified from now on.
    pub fn add(&self, waiter: &Arc<Waiter>) {
        let mut waiters = lock(&self.0);
        waiters.retain(|waiter| waiter.strong_count() > 0);
        waiters.push(Arc::downgrade(waiter));
    }

    /// Notifies all waiters.
    pub fn notify_all(&self) {
        for waiter in lock(&self.0).iter().filter_map(Weak::upgrade) {
            waiter.notify();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::Cancel;
    use std::time::Duration;

    #[test]
    fn notification_between_check_and_wait_is_not_lost() {
        let (waiters, waiter) = (WaiterList::default(), Waiter::new().unwrap());
        waiters.add(&waiter);
        let soon = || Instant::now() + Duration::from_millis(10);
        waiters.notify_all();
        assert_eq!(waiter.wait(None, soon()).unwrap(), WakeReason::TimedOut, "the waiter was not armed");
        waiter.arm();
        waiters.notify_all();
        waiters.notify_all();
        assert_eq!(waiter.wait(None, soon()).unwrap(), WakeReason::Notified);
        assert_eq!(waiter.wait(None, soon()).unwrap(), WakeReason::TimedOut);
        let flag = Cancel::new().unwrap();
        flag.cancel();
        assert_eq!(waiter.wait(Some((flag.as_fd(), PollFlags::IN)), soon()).unwrap(), WakeReason::OtherReady);
    }
}

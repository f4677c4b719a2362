//! Waiting for news, a run's next output or an event, together with whatever else the waiting thread must notice.
//!
//! Threads: any. Lock: the list of bells, a leaf; a bell is rung without waiting for anybody.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::base::thread::lock;
use crate::base::{At, Result};

/// What one waiting thread hears.
#[derive(Debug)]
pub struct Waiter {
    fd: OwnedFd,
    /// Nobody rings twice for a thread that has not slept between.
    armed: AtomicBool,
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WakeReason {
    /// Something has happened.
    Notified,
    /// The other descriptor has something to say.
    OtherReady,
    /// The deadline has passed.
    TimedOut,
}

impl Waiter {
    /// A quiet one.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn new() -> Result<Arc<Waiter>> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).at("open", "an eventfd")?;
        Ok(Arc::new(Waiter { fd, armed: AtomicBool::new(false) }))
    }

    /// The next ring wakes. What is waited for must be looked at after this, or a ring may be missed.
    pub fn arm(&self) {
        self.armed.store(true, Ordering::SeqCst);
    }

    fn ring(&self) {
        if self.armed.swap(false, Ordering::SeqCst) {
            let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
        }
    }

    /// Takes note of a ring that poll(2) has seen.
    pub fn clear(&self) {
        let _ = rustix::io::read(&self.fd, &mut [0; 8]);
    }

    /// Waits for a ring, for `other`, or until the deadline.
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
            // An interruption counts as a ring: whoever waits looks again.
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

/// Everybody who waits for news of one thing. A bell that was dropped is forgotten.
#[derive(Debug, Default)]
pub struct WaiterList(Mutex<Vec<Weak<Waiter>>>);

impl WaiterList {
    /// Rings this one as well from now on.
    pub fn add(&self, bell: &Arc<Waiter>) {
        let mut bells = lock(&self.0);
        bells.retain(|bell| bell.strong_count() > 0);
        bells.push(Arc::downgrade(bell));
    }

    /// Something has happened.
    pub fn notify_all(&self) {
        for bell in lock(&self.0).iter().filter_map(Weak::upgrade) {
            bell.ring();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::Cancel;
    use std::time::Duration;

    #[test]
    fn a_ring_between_look_and_sleep_is_heard() {
        let (bells, bell) = (WaiterList::default(), Waiter::new().unwrap());
        bells.add(&bell);
        let soon = || Instant::now() + Duration::from_millis(10);
        bells.notify_all();
        assert_eq!(bell.wait(None, soon()).unwrap(), WakeReason::TimedOut, "nobody was waiting");
        bell.arm();
        bells.notify_all();
        bells.notify_all();
        assert_eq!(bell.wait(None, soon()).unwrap(), WakeReason::Notified);
        assert_eq!(bell.wait(None, soon()).unwrap(), WakeReason::TimedOut);
        let flag = Cancel::new().unwrap();
        flag.cancel();
        assert_eq!(bell.wait(Some((flag.as_fd(), PollFlags::IN)), soon()).unwrap(), WakeReason::OtherReady);
    }
}

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
pub struct Bell {
    fd: OwnedFd,
    /// Nobody rings twice for a thread that has not slept between.
    armed: AtomicBool,
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// Something has happened.
    Rung,
    /// The other descriptor has something to say.
    Other,
    /// The deadline has passed.
    Late,
}

impl Bell {
    /// A quiet one.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn new() -> Result<Arc<Bell>> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).at("open", "an eventfd")?;
        Ok(Arc::new(Bell { fd, armed: AtomicBool::new(false) }))
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
    pub fn wait(&self, other: Option<(BorrowedFd<'_>, PollFlags)>, deadline: Instant) -> Result<Woken> {
        let mut fds = vec![PollFd::new(&self.fd, PollFlags::IN)];
        fds.extend(other.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut fds, Some(&timeout)) {
            // An interruption counts as a ring: whoever waits looks again.
            Err(rustix::io::Errno::INTR) => return Ok(Woken::Rung),
            polled => polled.at("poll", "for news")?,
        };
        if fds.get(1).is_some_and(|other| !other.revents().is_empty()) {
            return Ok(Woken::Other);
        }
        if fds[0].revents().is_empty() {
            return Ok(Woken::Late);
        }
        self.clear();
        Ok(Woken::Rung)
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Everybody who waits for news of one thing. A bell that was dropped is forgotten.
#[derive(Debug, Default)]
pub struct Bells(Mutex<Vec<Weak<Bell>>>);

impl Bells {
    /// Rings this one as well from now on.
    pub fn add(&self, bell: &Arc<Bell>) {
        let mut bells = lock(&self.0);
        bells.retain(|bell| bell.strong_count() > 0);
        bells.push(Arc::downgrade(bell));
    }

    /// Something has happened.
    pub fn ring(&self) {
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
        let (bells, bell) = (Bells::default(), Bell::new().unwrap());
        bells.add(&bell);
        let soon = || Instant::now() + Duration::from_millis(10);
        bells.ring();
        assert_eq!(bell.wait(None, soon()).unwrap(), Woken::Late, "nobody was waiting");
        bell.arm();
        bells.ring();
        bells.ring();
        assert_eq!(bell.wait(None, soon()).unwrap(), Woken::Rung);
        assert_eq!(bell.wait(None, soon()).unwrap(), Woken::Late);
        let flag = Cancel::new().unwrap();
        flag.cancel();
        assert_eq!(bell.wait(Some((flag.as_fd(), PollFlags::IN)), soon()).unwrap(), Woken::Other);
    }
}

//! What a thread that waits for an upstream listens to besides it: its client, who is cut off when its credential ends, the
//! end of the server, and the clock. ureq hands neither through to a transport, so the watch of a request lies in a
//! thread-local while ureq works for it: a request is served by one thread from its first byte to its last.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::wire::Channel;
use crate::proc::Cancel;

/// A peer that sends no more counts as gone, as everywhere at the gate.
const DISCONNECTED: PollFlags = PollFlags::RDHUP.union(PollFlags::HUP).union(PollFlags::ERR);

/// Why a wait came to nothing. Travels through ureq inside of an [`io::Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitError {
    /// The client has gone.
    ClientDisconnected,
    /// The server ends.
    ServerStopping,
    /// The upstream took no connection in time.
    ConnectTimeout,
    /// The upstream did not answer in time.
    TimedOut,
    /// The upstream hung up where it should not.
    UpstreamClosed,
    /// The address is not one that a workspace may have, for this reason.
    Address(&'static str),
}

impl fmt::Display for WaitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WaitError::ClientDisconnected => "the client has gone",
            WaitError::ServerStopping => "the server is going down",
            WaitError::ConnectTimeout => "it took no connection in time",
            WaitError::TimedOut => "it did not answer in time",
            WaitError::UpstreamClosed => "it hung up",
            WaitError::Address(why) => why,
        })
    }
}

impl std::error::Error for WaitError {}

impl From<WaitError> for io::Error {
    fn from(cut: WaitError) -> io::Error {
        io::Error::other(cut)
    }
}

impl WaitError {
    /// The cut inside of an error.
    pub fn of(error: &io::Error) -> Option<WaitError> {
        error.get_ref()?.downcast_ref().copied()
    }
}

/// What comes after the answer to a successful upgrade: the connection, and what was read of it behind the answer.
pub(super) type Upgraded = (Channel, Vec<u8>);

/// What to do when the upstream keeps us waiting for longer than a worker should wait.
type SlowCallback = Box<dyn FnOnce()>;

/// The watch of one request.
pub struct CallWatch {
    stop: Cancel,
    gone: Cancel,
    /// The client's own socket, where it is at hand: it tells what `gone` tells only while the gate looks at it.
    client: RefCell<Option<Rc<dyn AsFd>>>,
    slow: RefCell<Option<(Instant, SlowCallback)>>,
    /// Until when the head of the answer must be there; `None` once it is.
    answer_by: Cell<Option<Instant>>,
    /// Until when all of the answer must be there, if that is limited.
    end_by: Cell<Option<Instant>>,
    patience: Duration,
    /// A connection was made for this request; else one was used again.
    pub(super) connected: Cell<bool>,
    /// Something of the answer was read.
    pub(super) heard: Cell<bool>,
    /// An upgrade was asked for: the connection is left here instead of being closed.
    pub(super) upgraded: RefCell<Option<Upgraded>>,
    pub(super) wants_upgrade: bool,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<CallWatch>>> = const { RefCell::new(None) };
}

/// The watch is the thread's for as long as this lives.
pub(super) struct CurrentWatchGuard;

impl Drop for CurrentWatchGuard {
    fn drop(&mut self) {
        CURRENT.take();
    }
}

/// The thread's watch.
pub(super) fn current() -> Option<Rc<CallWatch>> {
    CURRENT.with_borrow(Clone::clone)
}

impl CallWatch {
    /// A watch that starts now. `gone` tells that the client has gone, or may get no answer any more.
    pub fn new(stop: Cancel, gone: Cancel, patience: Duration, wants_upgrade: bool) -> CallWatch {
        CallWatch {
            stop,
            gone,
            client: RefCell::default(),
            slow: RefCell::default(),
            answer_by: Cell::new(Some(Instant::now() + patience)),
            end_by: Cell::new(None),
            patience,
            connected: Cell::new(false),
            heard: Cell::new(false),
            upgraded: RefCell::default(),
            wants_upgrade,
        }
    }

    /// Has `slow` called, once, when the upstream has not answered after `after`.
    pub fn on_slow(&self, after: Duration, slow: impl FnOnce() + 'static) {
        self.slow.replace(Some((Instant::now() + after, Box::new(slow))));
    }

    /// Limits the time for all of the answer, its body included.
    pub(super) fn end_by(&self, deadline: Instant) {
        self.end_by.set(Some(deadline));
    }

    /// What is readable when the server ends.
    pub(super) fn stop(&self) -> BorrowedFd<'_> {
        self.stop.as_fd()
    }

    /// What ends it: the server's end, and the client's.
    pub(super) fn ends(&self) -> (Cancel, Cancel) {
        (self.stop.clone(), self.gone.clone())
    }

    /// Tells when the server stops.
    pub(super) fn stopping(&self) -> &Cancel {
        &self.stop
    }

    /// From here on this socket tells whether the client is there.
    pub fn set_client(&self, client: Rc<dyn AsFd>) {
        self.client.replace(Some(client));
    }

    /// More of the request has been sent: the upstream's time begins anew.
    pub(super) fn request_sent(&self) {
        if self.answer_by.get().is_some() {
            self.answer_by.set(Some(Instant::now() + self.patience));
        }
    }

    /// The head of the answer has come: from here on only silence is limited.
    pub(super) fn response_received(&self) {
        self.answer_by.set(None);
        self.slow.take();
    }

    pub(super) fn enter(self: &Rc<CallWatch>) -> CurrentWatchGuard {
        CURRENT.set(Some(self.clone()));
        CurrentWatchGuard
    }

    /// Waits until `fd` is ready, and until `deadline` at most.
    pub(super) fn wait(
        &self,
        fd: BorrowedFd<'_>,
        want: PollFlags,
        deadline: Instant,
    ) -> io::Result<PollFlags> {
        loop {
            let next = self.check_deadlines()?.map_or(deadline, |next| next.min(deadline));
            if Instant::now() >= deadline {
                return Err(WaitError::TimedOut.into());
            }
            let client = self.client.borrow();
            let other = client.as_ref().map_or(fd, |client| client.as_fd());
            let mut fds = [
                PollFd::from_borrowed_fd(fd, want),
                PollFd::new(&self.stop, PollFlags::IN),
                PollFd::new(&self.gone, PollFlags::IN),
                PollFd::from_borrowed_fd(other, PollFlags::RDHUP),
            ];
            let watched = if client.is_some() { 4 } else { 3 };
            match poll(&mut fds[..watched], Some(&timeout_until(next))) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            if !fds[2].revents().is_empty() || watched == 4 && fds[3].revents().intersects(DISCONNECTED) {
                return Err(WaitError::ClientDisconnected.into());
            }
            if !fds[1].revents().is_empty() {
                return Err(WaitError::ServerStopping.into());
            }
            if !fds[0].revents().is_empty() {
                return Ok(fds[0].revents());
            }
        }
    }

    /// Does what is due, and tells when something is due next.
    fn check_deadlines(&self) -> io::Result<Option<Instant>> {
        let now = Instant::now();
        let ends = [self.answer_by.get(), self.end_by.get()];
        if ends.iter().flatten().any(|by| now >= *by) {
            return Err(WaitError::TimedOut.into());
        }
        let due = self.slow.borrow_mut().take_if(|(at, _)| now >= *at);
        if let Some((_, slow)) = due {
            slow();
        }
        let slow = self.slow.borrow().as_ref().map(|(at, _)| *at);
        Ok(ends.into_iter().chain([slow]).flatten().min())
    }
}

/// The time until `at`, as poll(2) takes it; rounded up, so that it has come when poll returns.
pub(super) fn timeout_until(at: Instant) -> Timespec {
    let left = at.saturating_duration_since(Instant::now()) + Duration::from_micros(1);
    Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    }
}

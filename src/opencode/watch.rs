//! The events that end a thread's wait for an upstream: data from the upstream, the client's disconnect, the expiry of
//! the client's credential, the server's shutdown, and deadlines. ureq does not pass such events to its transport, so
//! a thread keeps the watch of its request in a thread-local variable while it runs ureq: one thread serves a request
//! from its first byte to its last.

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

/// The poll flags of a disconnected peer. A peer that has shut down its sending side counts as disconnected, as
/// everywhere in the gate.
const DISCONNECTED: PollFlags = PollFlags::RDHUP.union(PollFlags::HUP).union(PollFlags::ERR);

/// The reason why a wait failed. ureq passes it to its caller inside an [`io::Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitError {
    ClientDisconnected,
    ServerStopping,
    /// The upstream did not accept a connection in time.
    ConnectTimeout,
    /// The upstream did not respond in time.
    TimedOut,
    /// The upstream closed the connection early.
    UpstreamClosed,
    /// No workspace may use this address, for this reason.
    Address(&'static str),
}

impl fmt::Display for WaitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WaitError::ClientDisconnected => "the client disconnected",
            WaitError::ServerStopping => "the server is shutting down",
            WaitError::ConnectTimeout => "it did not accept a connection in time",
            WaitError::TimedOut => "it did not respond in time",
            WaitError::UpstreamClosed => "it closed the connection",
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
    /// Returns the `WaitError` inside an [`io::Error`], if it has one.
    pub fn of(error: &io::Error) -> Option<WaitError> {
        error.get_ref()?.downcast_ref().copied()
    }
}

/// The connection after a successful upgrade, and the bytes already read after the response head.
pub(super) type Upgraded = (Channel, Vec<u8>);

/// A callback that runs if the upstream takes longer than a worker thread should wait.
type SlowCallback = Box<dyn FnOnce()>;

/// The watch of one request: the conditions that end each of its waits.
pub struct CallWatch {
    stop: Cancel,
    gone: Cancel,
    /// The client's own socket, if available. It is polled too, because `gone` reports a disconnect only while the
    /// gate polls the socket.
    client: RefCell<Option<Rc<dyn AsFd>>>,
    slow: RefCell<Option<(Instant, SlowCallback)>>,
    /// The deadline for the head of the response; `None` once the head has arrived.
    answer_by: Cell<Option<Instant>>,
    /// The deadline for the whole response; `None` if it has no deadline.
    end_by: Cell<Option<Instant>>,
    patience: Duration,
    /// Whether a new connection was opened for this request instead of using a pooled one.
    pub(super) connected: Cell<bool>,
    /// Whether part of the response was read.
    pub(super) received: Cell<bool>,
    /// Receives the connection after an upgrade, when ureq would otherwise close it.
    pub(super) upgraded: RefCell<Option<Upgraded>>,
    pub(super) wants_upgrade: bool,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<CallWatch>>> = const { RefCell::new(None) };
}

/// Keeps a watch in the thread-local variable until dropped.
pub(super) struct CurrentWatchGuard;

impl Drop for CurrentWatchGuard {
    fn drop(&mut self) {
        CURRENT.take();
    }
}

/// Returns the watch that the current thread has entered.
pub(super) fn current() -> Option<Rc<CallWatch>> {
    CURRENT.with_borrow(Clone::clone)
}

impl CallWatch {
    /// Starts a watch. `gone` is cancelled when the client disconnects or may no longer receive the response.
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
            received: Cell::new(false),
            upgraded: RefCell::default(),
            wants_upgrade,
        }
    }

    /// Registers `slow`, which is called once if the upstream has not responded within `after`.
    pub fn on_slow(&self, after: Duration, slow: impl FnOnce() + 'static) {
        self.slow.replace(Some((Instant::now() + after, Box::new(slow))));
    }

    /// Sets the deadline for the whole response, body included.
    pub(super) fn end_by(&self, deadline: Instant) {
        self.end_by.set(Some(deadline));
    }

    /// Returns the descriptor that becomes readable when the server shuts down.
    pub(super) fn stop(&self) -> BorrowedFd<'_> {
        self.stop.as_fd()
    }

    /// Returns the two cancellations: that of the server's shutdown and that of the client's disconnect.
    pub(super) fn ends(&self) -> (Cancel, Cancel) {
        (self.stop.clone(), self.gone.clone())
    }

    /// Returns the cancellation that happens when the server shuts down.
    pub(super) fn stopping(&self) -> &Cancel {
        &self.stop
    }

    /// Makes the watch also poll this socket for a disconnect of the client.
    pub fn set_client(&self, client: Rc<dyn AsFd>) {
        self.client.replace(Some(client));
    }

    /// Restarts the deadline for the response's head after more bytes of the request were sent.
    pub(super) fn request_sent(&self) {
        if self.answer_by.get().is_some() {
            self.answer_by.set(Some(Instant::now() + self.patience));
        }
    }

    /// Ends the deadline for the response's head. From now on only the time between two reads is limited.
    pub(super) fn response_received(&self) {
        self.answer_by.set(None);
        self.slow.take();
    }

    pub(super) fn enter(self: &Rc<CallWatch>) -> CurrentWatchGuard {
        CURRENT.set(Some(self.clone()));
        CurrentWatchGuard
    }

    /// Waits until `fd` is ready or `deadline` has passed.
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

    /// Fails if a deadline has passed, runs the slow callback if it is due, and returns the next deadline.
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

/// Returns the time until `at` for poll(2), rounded up so that `at` has passed when poll returns.
pub(super) fn timeout_until(at: Instant) -> Timespec {
    let left = at.saturating_duration_since(Instant::now()) + Duration::from_micros(1);
    Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    }
}

//! Reading, writing and waiting on sockets with a deadline. Sockets stay in blocking mode, because whoever takes one
//! over expects that; here every call but [`receive_waiting`] says that it does not want to wait.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{RecvFlags, SendFlags};

use crate::base::limits;

/// What came of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadOutcome {
    /// So many bytes, at least one.
    Bytes(usize),
    /// Nothing yet.
    WouldBlock,
    /// The other side will send no more.
    Eof,
}

/// Appends what has arrived, at most what the buffer has room for; makes some room if it has none.
pub(super) fn receive(socket: impl AsFd, buffer: &mut Vec<u8>) -> io::Result<ReadOutcome> {
    receive_with(socket, buffer, RecvFlags::DONTWAIT)
}

/// The same, but waits as long as the socket's own time-out says; `Nothing` when that has passed.
pub(super) fn receive_waiting(socket: impl AsFd, buffer: &mut Vec<u8>) -> io::Result<ReadOutcome> {
    receive_with(socket, buffer, RecvFlags::empty())
}

fn receive_with(socket: impl AsFd, buffer: &mut Vec<u8>, flags: RecvFlags) -> io::Result<ReadOutcome> {
    if buffer.capacity() - buffer.len() < limits::IDLE_BUFFER_BYTES / 2 {
        buffer.reserve(limits::RELAY_BYTES);
    }
    loop {
        match rustix::net::recv(&socket, spare_capacity(buffer), flags) {
            Ok((0, _)) => return Ok(ReadOutcome::Eof),
            Ok((n, _)) => return Ok(ReadOutcome::Bytes(n)),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(ReadOutcome::WouldBlock),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sends what the socket takes at once.
pub(super) fn send(socket: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match rustix::net::send(&socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(n) => return Ok(n),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(0),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Makes the close a reset. What a client does not take would otherwise stay with the kernel, some MB for each, until it
/// has asked the client eight times, about two minutes later (tcp_orphan_retries in tcp(7)).
pub(super) fn reset_on_close(socket: impl AsFd) {
    // A socket on which this fails is reset already.
    let _ = set_socket_linger(socket, Some(Duration::ZERO));
}

/// Waits until something happens or the deadline has passed; `false` for the latter.
pub(super) fn wait(sockets: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let left = deadline.map(|deadline| timespec(deadline.saturating_duration_since(Instant::now())));
        match poll(sockets, left.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether the other side was reset: nothing that it sent is still wanted. A poll that fails knows of none.
pub(super) fn is_reset<S: AsFd>(socket: &S) -> bool {
    any(&[socket], PollFlags::ERR)
}

/// Whether one of the other sides can read no more, by a reset or, on a Unix socket, a close; what it sent may still be
/// there.
pub(super) fn any_closed<S: AsFd>(sockets: &[&S]) -> bool {
    any(sockets, PollFlags::ERR | PollFlags::HUP)
}

/// Whether something has arrived, be it the end. A poll that fails knows of nothing.
pub(super) fn has_input<S: AsFd>(socket: &S) -> bool {
    any(&[socket], PollFlags::IN)
}

/// poll(2) reports ERR and HUP unasked.
fn any<S: AsFd>(sockets: &[&S], flags: PollFlags) -> bool {
    let mut sockets: Vec<PollFd<'_>> = sockets.iter().map(|socket| PollFd::new(*socket, flags)).collect();
    poll(&mut sockets, Some(&timespec(Duration::ZERO))).is_ok()
        && sockets.iter().any(|socket| socket.revents().intersects(flags))
}

/// Waits for input; `false` when the deadline has passed.
pub(super) fn wait_input(socket: impl AsFd, deadline: Instant) -> io::Result<bool> {
    wait(&mut [PollFd::new(&socket, PollFlags::IN)], Some(deadline))
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

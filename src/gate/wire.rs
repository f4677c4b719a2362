//! Non-blocking reads and writes, and waits with a deadline. The sockets themselves stay in blocking mode, because a
//! thread that takes over a socket expects that. Every call except [`receive_waiting`] passes `MSG_DONTWAIT`.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{RecvFlags, SendFlags};

use crate::base::limits;

/// The result of a read from a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadOutcome {
    /// At least one byte was read; the value is the number of bytes.
    Bytes(usize),
    /// The peer has sent no input yet.
    WouldBlock,
    Eof,
}

/// Appends received bytes to the spare capacity of `buffer`. Reserves more capacity first if little is left.
pub(super) fn receive(socket: impl AsFd, buffer: &mut Vec<u8>) -> io::Result<ReadOutcome> {
    receive_with(socket, buffer, RecvFlags::DONTWAIT)
}

/// Receives like [`receive`], but waits for input up to the socket's own timeout. Returns `WouldBlock` after that.
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

/// Sends as many bytes as the socket accepts at once.
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

/// Makes the close of this socket send a reset. Otherwise the kernel keeps unread output, some MB per client, until
/// it has probed the client eight times, about two minutes later (tcp_orphan_retries in tcp(7)).
pub(super) fn reset_on_close(socket: impl AsFd) {
    // If the call fails, the socket has been reset already.
    let _ = set_socket_linger(socket, Some(Duration::ZERO));
}

/// Waits for an event on one of the sockets. Returns `false` at the deadline.
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

/// Returns whether the peer reset the connection, so that it expects no answer. Returns `false` if poll(2) fails.
pub(super) fn is_reset<S: AsFd>(socket: &S) -> bool {
    any(&[socket], PollFlags::ERR)
}

/// Returns whether one of the peers can receive nothing more, because of a reset or, on a Unix socket, a close.
/// Input from that peer may still be readable.
pub(super) fn any_closed<S: AsFd>(sockets: &[&S]) -> bool {
    any(sockets, PollFlags::ERR | PollFlags::HUP)
}

/// Returns whether input or EOF is readable. Returns `false` if poll(2) fails.
pub(super) fn has_input<S: AsFd>(socket: &S) -> bool {
    any(&[socket], PollFlags::IN)
}

/// Returns whether one of the sockets has an event of `flags`. poll(2) always reports ERR and HUP.
fn any<S: AsFd>(sockets: &[&S], flags: PollFlags) -> bool {
    let mut sockets: Vec<PollFd<'_>> = sockets.iter().map(|socket| PollFd::new(*socket, flags)).collect();
    poll(&mut sockets, Some(&timespec(Duration::ZERO))).is_ok()
        && sockets.iter().any(|socket| socket.revents().intersects(flags))
}

/// Waits for input or EOF. Returns `false` at the deadline.
pub(super) fn wait_input(socket: impl AsFd, deadline: Instant) -> io::Result<bool> {
    wait(&mut [PollFd::new(&socket, PollFlags::IN)], Some(deadline))
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

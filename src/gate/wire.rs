//! Non-blocking reads and writes, and waits with a deadline. Sockets stay in blocking mode, because the threads that
//! take one over expect that; every call except [`receive_waiting`] passes `MSG_DONTWAIT`.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{RecvFlags, SendFlags};

use crate::base::limits;

/// The result of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadOutcome {
    /// Bytes read, at least one.
    Bytes(usize),
    /// No input yet.
    WouldBlock,
    /// EOF.
    Eof,
}

/// Appends received bytes, up to the buffer's spare capacity; reserves some if there is little.
pub(super) fn receive(socket: impl AsFd, buffer: &mut Vec<u8>) -> io::Result<ReadOutcome> {
    receive_with(socket, buffer, RecvFlags::DONTWAIT)
}

/// As [`receive`], but waits up to the socket's own timeout; `WouldBlock` after that.
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

/// Makes the close a reset. Otherwise the kernel keeps unread output, some MB per client, until it has probed the
/// client eight times, about two minutes later (tcp_orphan_retries in tcp(7)).
pub(super) fn reset_on_close(socket: impl AsFd) {
    // A socket on which this fails has been reset already.
    let _ = set_socket_linger(socket, Some(Duration::ZERO));
}

/// Waits for an event; `false` at the deadline.
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

/// Whether the peer reset the connection, so that its input is no longer wanted. `false` if poll(2) fails.
pub(super) fn is_reset<S: AsFd>(socket: &S) -> bool {
    any(&[socket], PollFlags::ERR)
}

/// Whether a peer can receive no more, after a reset or, on a Unix socket, a close. Its input may still be readable.
pub(super) fn any_closed<S: AsFd>(sockets: &[&S]) -> bool {
    any(sockets, PollFlags::ERR | PollFlags::HUP)
}

/// Whether input or EOF is readable. `false` if poll(2) fails.
pub(super) fn has_input<S: AsFd>(socket: &S) -> bool {
    any(&[socket], PollFlags::IN)
}

/// poll(2) always reports ERR and HUP.
fn any<S: AsFd>(sockets: &[&S], flags: PollFlags) -> bool {
    let mut sockets: Vec<PollFd<'_>> = sockets.iter().map(|socket| PollFd::new(*socket, flags)).collect();
    poll(&mut sockets, Some(&timespec(Duration::ZERO))).is_ok()
        && sockets.iter().any(|socket| socket.revents().intersects(flags))
}

/// Waits for input; `false` at the deadline.
pub(super) fn wait_input(socket: impl AsFd, deadline: Instant) -> io::Result<bool> {
    wait(&mut [PollFd::new(&socket, PollFlags::IN)], Some(deadline))
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

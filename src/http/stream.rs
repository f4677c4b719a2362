//! A response body that one thread writes to the client's own socket, for an unlimited time. The body is framed as
//! the head declared; on failure it is aborted so that the client notices. A client that does not read blocks the
//! thread for at most [`crate::base::limits::WRITE_STALL`].

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use rustix::event::PollFlags;
use rustix::fs::sendfile;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::client::ClientSocket;
use crate::base::limits;

/// Maximum number of bytes per sendfile(2) call, so that a shutdown is noticed between two calls.
const SENDFILE_BYTES: usize = 1 << 20;

/// A response body in progress.
pub struct StreamBody {
    socket: ClientSocket,
    ended: bool,
}

impl StreamBody {
    /// Creates the body for a socket that was handed over with a ticket.
    pub fn new(socket: ClientSocket) -> StreamBody {
        // A write returns after this time, so that the thread can check whether the client has read anything; see
        // `limits::WRITE_LOOK`. If the socket was reset, this call fails, and the first write reports the reset.
        let _ = set_socket_timeout(&socket, Timeout::Send, Some(limits::WRITE_LOOK));
        StreamBody { socket, ended: false }
    }

    /// Sends `bytes` at once.
    ///
    /// # Errors
    /// Fails if the client disconnected or does not read; the body is aborted then.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let size = format!("{:x}\r\n", bytes.len());
        let mut parts = [IoSlice::new(size.as_bytes()), IoSlice::new(bytes), IoSlice::new(b"\r\n")];
        let mut parts = if self.socket.is_chunked() { &mut parts[..] } else { &mut parts[1..2] };
        while !parts.is_empty() {
            let n = retry_blocked(|| self.socket.write_vectored(parts))?;
            if n == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            IoSlice::advance_slices(&mut parts, n);
        }
        Ok(())
    }

    /// Sends `length` bytes of a file from `offset`, without copying them through this process. The head must have
    /// declared the length.
    ///
    /// # Errors
    /// Fails like [`StreamBody::send`]; `UnexpectedEof` if the file is too short.
    pub fn send_file(&mut self, file: &File, mut offset: u64, length: u64) -> io::Result<()> {
        let end = offset + length;
        while offset < end {
            let most = usize::try_from(end - offset).unwrap_or(usize::MAX).min(SENDFILE_BYTES);
            if retry_blocked(|| Ok(sendfile(&self.socket, file, Some(&mut offset), most)?))? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// Completes the body. If a chunked body is dropped instead, the client detects that it is truncated.
    ///
    /// # Errors
    /// Fails like [`StreamBody::send`].
    pub fn end(mut self) -> io::Result<()> {
        self.ended = true;
        if !self.socket.is_chunked() {
            return Ok(());
        }
        let mut last = &b"0\r\n\r\n"[..];
        while !last.is_empty() {
            let n = retry_blocked(|| self.socket.write(last))?;
            last = &last[n..];
        }
        Ok(())
    }

    /// Aborts the body so that the client notices, even if the close of the connection is the only end of the body.
    pub fn abort(self) {
        if !self.socket.is_chunked() {
            let _ = rustix::net::sockopt::set_socket_linger(&self.socket, Some(std::time::Duration::ZERO));
        }
    }

    /// Returns the socket to poll for [`StreamBody::GONE`].
    pub fn client(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The events that show a disconnect. A client that closes its sending side counts as disconnected, as in the
    /// gate.
    pub const GONE: PollFlags = PollFlags::RDHUP.union(PollFlags::HUP).union(PollFlags::ERR);
}

/// Retries a write until the socket accepts some bytes, for at most [`limits::WRITE_STALL`].
fn retry_blocked(mut write: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    let mut since = None;
    loop {
        match write() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if since.get_or_insert_with(Instant::now).elapsed() >= limits::WRITE_STALL {
                    return Err(error);
                }
            }
            written => return written,
        }
    }
}

impl Drop for StreamBody {
    fn drop(&mut self) {
        // Only the sending side is shut down first: a close with unread input resets the connection, which may
        // discard the last bytes sent.
        if self.ended {
            self.socket.shutdown(std::net::Shutdown::Write);
        }
    }
}

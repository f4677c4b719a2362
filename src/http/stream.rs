//! A body that is written to the client's own socket, for as long as it takes: framed as the head promised, and broken
//! off visibly when it cannot go on. One thread writes; a client that does not read holds that thread for
//! [`crate::base::limits::WRITE_STALL`] at most.

use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::PollFlags;

use super::client::ClientSocket;

/// The body.
pub struct StreamBody {
    socket: ClientSocket,
    ended: bool,
}

impl StreamBody {
    /// The body of the answer that a ticket belongs to.
    pub fn new(socket: ClientSocket) -> StreamBody {
        StreamBody { socket, ended: false }
    }

    /// Sends these bytes at once.
    ///
    /// # Errors
    /// When the client has gone or does not read; the body is broken off then.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        if !self.socket.is_chunked() {
            return self.socket.write_all(bytes);
        }
        let size = format!("{:x}\r\n", bytes.len());
        let mut parts = [IoSlice::new(size.as_bytes()), IoSlice::new(bytes), IoSlice::new(b"\r\n")];
        let mut parts = &mut parts[..];
        while !parts.is_empty() {
            match self.socket.write_vectored(parts) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => IoSlice::advance_slices(&mut parts, n),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Ends the body properly. Dropped without it, a chunked body is seen to be broken off.
    ///
    /// # Errors
    /// As above.
    pub fn end(mut self) -> io::Result<()> {
        self.ended = true;
        if self.socket.is_chunked() { self.socket.write_all(b"0\r\n\r\n") } else { Ok(()) }
    }

    /// What tells that the client has gone; with [`StreamBody::GONE`].
    pub fn client(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// A client that sends no more counts as gone, as everywhere at the gate.
    pub const GONE: PollFlags = PollFlags::RDHUP.union(PollFlags::HUP).union(PollFlags::ERR);
}

impl Drop for StreamBody {
    fn drop(&mut self) {
        // A close with unread input resets the connection, and what was sent last may be lost with it.
        if self.ended {
            self.socket.shutdown(std::net::Shutdown::Write);
        }
    }
}

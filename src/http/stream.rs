//! A body that is written to the client's own socket, for as long as it takes: framed as the head promised, and broken
//! off visibly when it cannot go on. One thread writes; a client that does not read holds that thread for
//! [`crate::base::limits::WRITE_STALL`] at most.

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use rustix::event::PollFlags;
use rustix::fs::sendfile;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::client::ClientSocket;
use crate::base::limits;

/// The body.
pub struct StreamBody {
    socket: ClientSocket,
    ended: bool,
}

impl StreamBody {
    /// The body of the answer that a ticket belongs to.
    pub fn new(socket: ClientSocket) -> StreamBody {
        // A write comes back this soon to see whether the client has read anything: see `limits::WRITE_LOOK`. On a socket
        // that has been reset it cannot be set, and the first write says so.
        let _ = set_socket_timeout(&socket, Timeout::Send, Some(limits::WRITE_LOOK));
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
        let size = format!("{:x}\r\n", bytes.len());
        let mut parts = [IoSlice::new(size.as_bytes()), IoSlice::new(bytes), IoSlice::new(b"\r\n")];
        let mut parts = if self.socket.is_chunked() { &mut parts[..] } else { &mut parts[1..2] };
        while !parts.is_empty() {
            let n = patiently(|| self.socket.write_vectored(parts))?;
            if n == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            IoSlice::advance_slices(&mut parts, n);
        }
        Ok(())
    }

    /// Sends `length` bytes of a file, from `offset` on, without copying them through this process. Only where the head
    /// has announced the length.
    ///
    /// # Errors
    /// As above; `UnexpectedEof` when the file has become shorter.
    pub fn send_file(&mut self, file: &File, mut offset: u64, length: u64) -> io::Result<()> {
        let end = offset + length;
        while offset < end {
            let most = usize::try_from(end - offset).unwrap_or(usize::MAX).min(limits::SENDFILE_BYTES);
            if patiently(|| Ok(sendfile(&self.socket, file, Some(&mut offset), most)?))? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
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
        if !self.socket.is_chunked() {
            return Ok(());
        }
        let mut last = &b"0\r\n\r\n"[..];
        while !last.is_empty() {
            let n = patiently(|| self.socket.write(last))?;
            last = &last[n..];
        }
        Ok(())
    }

    /// Gives it up so that the client notices, also where only the end of the connection ends the body.
    pub fn abort(self) {
        if !self.socket.is_chunked() {
            let _ = rustix::net::sockopt::set_socket_linger(&self.socket, Some(std::time::Duration::ZERO));
        }
    }

    /// What tells that the client has gone; with [`StreamBody::GONE`].
    pub fn client(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// A client that sends no more counts as gone, as everywhere at the gate.
    pub const GONE: PollFlags = PollFlags::RDHUP.union(PollFlags::HUP).union(PollFlags::ERR);
}

/// Writes until something of it is taken, for as long as [`limits::WRITE_STALL`].
fn patiently(mut write: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
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
        // A close with unread input resets the connection, and what was sent last may be lost with it.
        if self.ended {
            self.socket.shutdown(std::net::Shutdown::Write);
        }
    }
}

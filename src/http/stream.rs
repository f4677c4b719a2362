//! A response body written to the client's own socket for an unlimited time. It is framed as the head promised, and
//! aborted visibly on failure. One thread writes; a client that does not read blocks it for at most
//! [`crate::base::limits::WRITE_STALL`].

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use rustix::event::PollFlags;
use rustix::fs::sendfile;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::client::ClientSocket;
use crate::base::limits;

/// Bytes that one sendfile(2) sends, so that a shutdown is noticed in between.
const SENDFILE_BYTES: usize = 1 << 20;

/// A response body in progress.
pub struct StreamBody {
    socket: ClientSocket,
    ended: bool,
}

impl StreamBody {
    /// The body of the answer that a ticket belongs to.
    pub fn new(socket: ClientSocket) -> StreamBody {
        // A write returns after this time to check whether the client has read anything: see `limits::WRITE_LOOK`. On
        // a socket that has been reset it cannot be set, and the first write reports that.
        let _ = set_socket_timeout(&socket, Timeout::Send, Some(limits::WRITE_LOOK));
        StreamBody { socket, ended: false }
    }

    /// Sends these bytes at once.
    ///
    /// # Errors
    /// If the client disconnected or does not read; the body is aborted then.
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

    /// Sends `length` bytes of a file from `offset`, without copying them through this process. Only if the head
    /// declared the length.
    ///
    /// # Errors
    /// As [`StreamBody::send`]; `UnexpectedEof` if the file is too short.
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

    /// Completes the body. If it is dropped instead, the client sees a truncated chunked body.
    ///
    /// # Errors
    /// As [`StreamBody::send`].
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

    /// Aborts the body so that the client notices, even where only the end of the connection ends the body.
    pub fn abort(self) {
        if !self.socket.is_chunked() {
            let _ = rustix::net::sockopt::set_socket_linger(&self.socket, Some(std::time::Duration::ZERO));
        }
    }

    /// The socket to poll for [`StreamBody::GONE`].
    pub fn client(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// A client that closes its sending side counts as disconnected, as in the gate.
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
        // A close with unread input resets the connection, which may discard the last bytes sent.
        if self.ended {
            self.socket.shutdown(std::net::Shutdown::Write);
        }
    }
}

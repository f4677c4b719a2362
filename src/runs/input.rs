//! The stdin of a running command: the end of a pipe or terminal to which clients write. Only one client writes at
//! a time; a command that does not read delays that client for a bounded time, and no other client.
//!
//! Threads: any. Lock: `end`, held during one client's write, at most [`limits::STDIN_PATIENCE`] without progress.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, TryLockError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::keeper_control::KeeperControl;
use crate::base::input_bytes::InputBytes;
use crate::base::thread::lock;
use crate::base::{Code, Error, Result, limits};
use crate::proc::Cancel;

/// The writing end of a command's stdin.
#[derive(Debug, Default)]
pub struct RunInput {
    end: Mutex<Option<StdinPipe>>,
    closed: AtomicBool,
    /// Whether stdin was open at any time.
    was_open: AtomicBool,
    /// The run's keeper, which has a copy of the descriptor and closes it when this one is closed.
    keeper: OnceLock<Arc<dyn KeeperControl>>,
}

#[derive(Debug)]
struct StdinPipe {
    /// The non-blocking descriptor.
    fd: OwnedFd,
    /// A terminal is not closed; instead, its line discipline turns ^D into EOF (termios(3), VEOF).
    is_terminal: bool,
}

impl RunInput {
    /// Opens stdin for clients; `fd` must be non-blocking.
    pub fn open(&self, fd: OwnedFd, is_terminal: bool) {
        self.was_open.store(true, Ordering::SeqCst);
        *lock(&self.end) = Some(StdinPipe { fd, is_terminal });
    }

    /// Sets the keeper that has a copy of the descriptor.
    pub fn set_keeper(&self, keeper: Arc<dyn KeeperControl>) {
        let _ = self.keeper.set(keeper);
    }

    /// Duplicates the descriptor for another berth process; `None` if stdin is closed.
    pub fn share(&self) -> Option<OwnedFd> {
        lock(&self.end).as_ref().filter(|_| !self.closed.load(Ordering::SeqCst))?.fd.try_clone().ok()
    }

    /// Closes stdin for further input. Does not wait for a client that is writing.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        if let Ok(mut end) = self.end.try_lock() {
            *end = None;
        }
    }

    /// Returns whether stdin accepts input.
    pub fn is_open(&self) -> bool {
        let open = match self.end.try_lock() {
            Ok(end) => end.is_some(),
            Err(TryLockError::WouldBlock) => true,
            Err(TryLockError::Poisoned(poison)) => poison.into_inner().is_some(),
        };
        open && !self.closed.load(Ordering::SeqCst)
    }

    /// Writes `bytes` as fast as the command reads them, then EOF if `eof` is set; returns the number of bytes
    /// written. `gone` cancels the wait when the client has disconnected.
    ///
    /// # Errors
    /// `Conflict` when stdin is closed or another client is writing; `Busy` when the command did not read in time. The
    /// detail `bytes_taken` is the number of bytes written; the rest can be sent again.
    pub fn write_input(&self, bytes: &InputBytes, eof: bool, gone: Option<&Cancel>) -> Result<u64> {
        let mut end = match self.end.try_lock() {
            Ok(end) => end,
            Err(TryLockError::Poisoned(poison)) => poison.into_inner(),
            Err(TryLockError::WouldBlock) => {
                return Err(refused(Code::Conflict, "Another client is writing to this stdin; try again", 0));
            }
        };
        let Some(open) = end.as_ref() else {
            let closed = match self.was_open.load(Ordering::SeqCst) {
                true => "Stdin is closed already, and nothing more can be written to it",
                false => "Stdin is closed; start the run with \"open_stdin\": true to write to it later",
            };
            return Err(refused(Code::Conflict, closed, 0));
        };
        let most = Instant::now() + WRITE_MAX;
        let taken = write_all(open, bytes, gone, most);
        if self.closed.load(Ordering::SeqCst) {
            *end = None;
            return taken;
        }
        if let Err(error) = &taken {
            // The command has closed its stdin.
            if error.code() == Code::Conflict {
                *end = None;
            }
            return taken;
        }
        if eof {
            if open.is_terminal {
                write(open, &[4], gone, 0, most)?;
            } else {
                *end = None;
                if let Some(keeper) = self.keeper.get() {
                    keeper.close_stdin();
                }
            }
        }
        taken
    }
}

/// Maximum duration of one client's write, however slowly the command reads.
const WRITE_MAX: Duration = Duration::from_secs(600);

fn write_all(end: &StdinPipe, bytes: &InputBytes, gone: Option<&Cancel>, most: Instant) -> Result<u64> {
    let mut taken = 0;
    while taken < bytes.len() {
        let written = bytes.with_chunk(taken, |piece| write(end, piece, gone, taken, most));
        let unread =
            |error| refused(Code::Internal, "The input could not be read back", taken).with_source(error);
        taken += written.map_err(unread)?? as u64;
    }
    Ok(taken)
}

/// Writes one piece of the input. `before` is the number of bytes of earlier pieces, for error messages.
fn write(end: &StdinPipe, bytes: &[u8], gone: Option<&Cancel>, before: u64, most: Instant) -> Result<usize> {
    let mut taken = 0;
    let mut deadline = Instant::now() + limits::STDIN_PATIENCE;
    while taken < bytes.len() {
        match rustix::io::write(&end.fd, &bytes[taken..]) {
            Ok(n) => {
                taken += n;
                deadline = (Instant::now() + limits::STDIN_PATIENCE).min(most);
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    let full = "The command does not read its stdin; send the rest later";
                    return Err(refused(Code::Busy, full, before + taken as u64));
                }
                if gone.is_some_and(Cancel::is_cancelled) {
                    return Err(refused(Code::Cancelled, "The client disconnected", before + taken as u64));
                }
                let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
                let mut fds = vec![PollFd::new(&end.fd, PollFlags::OUT)];
                fds.extend(gone.map(|gone| PollFd::new(gone, PollFlags::IN)));
                let _ = poll(&mut fds, Some(&timeout));
            }
            // The command has closed its stdin: EPIPE from a pipe, EIO from a terminal.
            Err(_) => {
                return Err(refused(
                    Code::Conflict,
                    "The command has closed its stdin",
                    before + taken as u64,
                ));
            }
        }
    }
    Ok(taken)
}

fn refused(code: Code, message: &str, taken: u64) -> Error {
    Error::new(code, message).detail("bytes_taken", taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::spawn::pipe;

    #[test]
    fn errors_report_the_number_of_bytes_written() {
        let input = RunInput::default();
        let never = input.write_input(&InputBytes::Memory(b"x".to_vec()), false, None).unwrap_err();
        assert_eq!(never.code(), Code::Conflict);
        assert!(never.message().contains("open_stdin"), "{never}");
        let (reader, writer) = pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        input.open(writer, false);
        assert_eq!(input.write_input(&InputBytes::Memory(b"abc".to_vec()), false, None).unwrap(), 3);
        let full =
            input.write_input(&InputBytes::from_vec(vec![b'x'; 1 << 20]).unwrap(), false, None).unwrap_err();
        assert_eq!(full.code(), Code::Busy);
        let taken = full.body()["details"]["bytes_taken"].as_u64().unwrap();
        assert!((1..1 << 20).contains(&taken), "{taken}");
        drop(reader);
        assert_eq!(
            input.write_input(&InputBytes::Memory(b"x".to_vec()), false, None).unwrap_err().code(),
            Code::Conflict
        );
        assert!(!input.is_open());
        let again = input.write_input(&InputBytes::Memory(Vec::new()), true, None).unwrap_err();
        assert_eq!(again.code(), Code::Conflict);
        assert!(
            again.message().contains("closed already") && !again.message().contains("open_stdin"),
            "{again}"
        );
    }
}

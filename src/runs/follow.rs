//! Reads a run's output from a given position, in the order in which the command wrote it. Each byte is returned
//! once; a marker replaces bytes that are no longer kept; the last item is the end of the run.
//!
//! Each reader has its own thread; the readers share only the run.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::PollFlags;

use super::run::Run;
use super::spool::{OutputStream, Position, Spool, SpoolFiles, SpoolRead};
use crate::base::{Code, Error, Result, limits};
use crate::proc::waiter::{Waiter, WakeReason};

/// The next item of a run's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputPiece {
    /// Number of bytes at the start of the buffer that were read from this stream at this offset: stream, offset,
    /// number.
    Bytes(OutputStream, u64, usize),
    /// A range of a stream is no longer kept: stream, start, end.
    Missed(OutputStream, u64, u64),
    /// There is no more output at the moment.
    Nothing,
    /// The run has ended, or the reader has reached the position at which reading stops.
    End,
}

/// A reader of a run's output, with its current position.
pub struct OutputFollower {
    run: Arc<Run>,
    spool: Arc<Spool>,
    files: Arc<SpoolFiles>,
    waiter: Arc<Waiter>,
    at: Position,
    turn: u64,
    /// Position at which reading stops; `None`: at the end of the run.
    until: Option<Position>,
    /// End of the output that was read but held back, because its last character is incomplete.
    waiting: Position,
}

impl OutputFollower {
    /// Creates a reader at a position; a position after the end of the output becomes the end.
    ///
    /// # Errors
    /// `Conflict` for an exec, which has no spool; an I/O error when the output was removed.
    pub fn new(run: Arc<Run>, at: Position) -> Result<OutputFollower> {
        let spool = run.spool.clone().ok_or_else(|| {
            Error::new(Code::Conflict, "This is an exec: its output is in its own response; use POST …/runs")
        })?;
        let (files, waiter) = (spool.open()?, Waiter::new()?);
        run.waiters.add(&waiter);
        let end = spool.end();
        let at = Position { out: at.out.min(end.out), err: at.err.min(end.err) };
        Ok(OutputFollower {
            run,
            spool,
            files,
            waiter,
            at,
            turn: 0,
            until: None,
            waiting: Position::default(),
        })
    }

    /// Makes the reader stop at the current end of the output.
    #[must_use]
    pub fn until_now(mut self) -> OutputFollower {
        self.until = Some(self.spool.end());
        self
    }

    /// Returns whether there is more to read or the run has ended. A notification after this call ends
    /// [`OutputFollower::wait`].
    pub fn has_more(&self, stream: Option<OutputStream>) -> bool {
        self.waiter.arm();
        if !self.run.is_running() {
            return true;
        }
        let end = self.spool.end();
        let more = |stream| self.at.of(stream) < end.of(stream);
        stream.map_or_else(|| more(OutputStream::Stdout) || more(OutputStream::Stderr), more)
    }

    /// Returns the part of `stream` that can be read without a gap; for `None`, the rest of both streams.
    pub fn read_extent(&self, stream: Option<OutputStream>) -> ReadExtent {
        let marks = self.spool.state();
        let end = self.until.unwrap_or_else(|| marks.end()).min(marks.end());
        let (mut from, mut to) = (self.at, self.at);
        let Some(stream) = stream else {
            let missed = marks.out.lost_from(from.out) + marks.err.lost_from(from.err);
            let length = end.out - from.out.min(end.out) + end.err - from.err.min(end.err);
            return ReadExtent { from, to: end, length: length.saturating_sub(missed), missed };
        };
        let (track, at) = (marks.of(stream), from.of(stream));
        let begin = track.gap_at(at).unwrap_or(at).min(end.of(stream));
        from.set(stream, begin);
        to.set(stream, track.kept_until(begin).clamp(begin, end.of(stream)));
        ReadExtent { from, to, length: to.of(stream) - begin, missed: begin.saturating_sub(at) }
    }

    /// Moves the reader to another position.
    pub fn seek(&mut self, at: Position) {
        self.at = at;
    }

    /// Returns the position after the last read byte.
    pub fn at(&self) -> Position {
        self.at
    }

    pub fn run(&self) -> &Run {
        &self.run
    }

    /// Reads the next piece of text. UTF-8 characters are not split; invalid bytes are passed through. Does not
    /// block.
    ///
    /// # Errors
    /// When reading from disk fails.
    pub fn next_text(&mut self, buffer: &mut [u8]) -> Result<OutputPiece> {
        self.next(buffer, true)
    }

    /// Reads the next piece of `stream`, or of both streams for `None`; a piece may end inside a character. Does
    /// not block.
    ///
    /// # Errors
    /// When reading from disk fails.
    pub fn next_bytes_of(&mut self, stream: Option<OutputStream>, buffer: &mut [u8]) -> Result<OutputPiece> {
        let Some(stream) = stream else { return self.next(buffer, false) };
        self.waiter.arm();
        let ended = self.until.is_some() || !self.run.is_running();
        let (from, to) = (self.at.of(stream), self.until.unwrap_or_else(|| self.spool.end()).of(stream));
        let nothing = if ended { OutputPiece::End } else { OutputPiece::Nothing };
        if from >= to {
            return Ok(nothing);
        }
        let length = usize::try_from(to - from).unwrap_or(usize::MAX).min(buffer.len());
        Ok(match self.spool.read(&self.files, stream, from, &mut buffer[..length])? {
            SpoolRead::Bytes(n) => {
                self.at.set(stream, from + n as u64);
                OutputPiece::Bytes(stream, from, n)
            }
            SpoolRead::Missed(to) => {
                self.at.set(stream, to);
                OutputPiece::Missed(stream, from, to)
            }
            SpoolRead::Nothing => nothing,
        })
    }

    fn next(&mut self, buffer: &mut [u8], text: bool) -> Result<OutputPiece> {
        self.waiter.arm();
        // Check for the end of the run first: once it has ended, all its output is present.
        let ended = self.until.is_some() || !self.run.is_running();
        let end = self.until.unwrap_or_else(|| self.spool.end());
        loop {
            let (turn, turn_end) = self.spool.turn(&self.files, self.at, self.turn)?;
            self.turn = turn;
            let limit = turn_end.map_or(end, |turn| turn.min(end));
            for stream in [OutputStream::Stdout, OutputStream::Stderr] {
                let (from, to) = (self.at.of(stream), limit.of(stream));
                let last = ended && to == end.of(stream);
                if from >= to || (!last && to <= self.waiting.of(stream)) {
                    continue;
                }
                let length = usize::try_from(to - from).unwrap_or(usize::MAX).min(buffer.len());
                match self.spool.read(&self.files, stream, from, &mut buffer[..length])? {
                    SpoolRead::Bytes(n) => {
                        // The rest of a character before a gap is lost, so do not wait for it.
                        let whole = if text && n == length { whole_characters(&buffer[..n]) } else { n };
                        let n = if whole == 0 && last && from + n as u64 == to { n } else { whole };
                        if n == 0 {
                            self.waiting.set(stream, to);
                            continue;
                        }
                        self.at.set(stream, from + n as u64);
                        return Ok(OutputPiece::Bytes(stream, from, n));
                    }
                    SpoolRead::Missed(to) => {
                        self.at.set(stream, to);
                        return Ok(OutputPiece::Missed(stream, from, to));
                    }
                    SpoolRead::Nothing => {}
                }
            }
            if turn_end.is_none() || limit == end {
                return Ok(if ended { OutputPiece::End } else { OutputPiece::Nothing });
            }
            self.turn += 1;
        }
    }

    /// Waits for more output after [`OutputPiece::Nothing`].
    ///
    /// # Errors
    /// When poll(2) fails.
    pub fn wait(&self, other: Option<(BorrowedFd<'_>, PollFlags)>, deadline: Instant) -> Result<WakeReason> {
        self.waiter.wait(other, deadline)
    }
}

/// The range of output that a read covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadExtent {
    /// Position of the first byte in the range.
    pub from: Position,
    /// Position after the last byte in the range.
    pub to: Position,
    /// Number of bytes that the reader will return.
    pub length: u64,
    /// Number of bytes that the reader will skip, because they are no longer kept.
    pub missed: u64,
}

/// Waits until a run has ended, `other` is ready, or the deadline has passed.
///
/// # Errors
/// When poll(2) fails, or the process is out of file descriptors.
pub fn wait_end(run: &Run, other: Option<BorrowedFd<'_>>, deadline: Instant) -> Result<()> {
    let waiter = Waiter::new()?;
    run.waiters.add(&waiter);
    loop {
        waiter.arm();
        if !run.is_running() {
            return Ok(());
        }
        match waiter.wait(other.map(|fd| (fd, PollFlags::IN)), deadline)? {
            WakeReason::Notified => {}
            WakeReason::OtherReady | WakeReason::TimedOut => return Ok(()),
        }
    }
}

/// Returns how many bytes can be sent as text without splitting a character: an incomplete character at the end is
/// held back, an invalid byte is not.
fn whole_characters(bytes: &[u8]) -> usize {
    // A character has at most four bytes, so only the last three can start an incomplete one.
    for back in 1..=bytes.len().min(3) {
        let at = bytes.len() - back;
        match bytes[at] {
            0b1000_0000..=0b1011_1111 => {}
            _ => {
                let incomplete = std::str::from_utf8(&bytes[at..])
                    .is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none());
                return if incomplete { at } else { bytes.len() };
            }
        }
    }
    bytes.len()
}

/// Maximum size of a piece in bytes.
pub const PIECE: usize = limits::EVENT_BYTES;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_not_split() {
        let text = "aé€𝄞".as_bytes();
        let cut: Vec<usize> = (0..=text.len()).map(|end| whole_characters(&text[..end])).collect();
        assert_eq!(cut, [0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10]);
        assert_eq!(whole_characters(b"\xff\xfe"), 2);
        assert_eq!(whole_characters(b"\x80\x80\x80\x80"), 4);
        assert_eq!(whole_characters(b"a\xe2\x28"), 3, "not a valid continuation");
    }
}

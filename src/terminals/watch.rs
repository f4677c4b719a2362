//! A client's view of a terminal: a queue of events in bounded memory. The terminal's thread never waits for a
//! client; a client that falls too far behind loses its queued output and receives the whole screen instead.
//!
//! Lock: that of the terminal.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use super::{Terminal, TerminalEnd};
use crate::base::thread::lock;
use crate::base::{Result, limits};
use crate::proc::Waker;
use crate::proc::pty::WindowSize;

/// Maximum output queued for one client; a client that is further behind receives the whole screen instead.
const WATCH_BYTES: usize = 256 << 10;

/// Access that a client requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchMode {
    /// Only watch, without the right to write.
    Read,
    /// Write if no other client is the writer; otherwise only watch.
    Write,
    /// Become the writer, replacing the previous one.
    TakeOver,
    /// Write together with other clients. The terminal of the client that typed last answers the program's
    /// queries.
    Shared,
}

/// An event for a client.
#[derive(Debug)]
pub enum WatchEvent {
    /// Output of the program, or the whole screen.
    Text(String),
    /// From now on, the client's input is accepted if `writes` is set.
    Role { writes: bool },
    /// The terminal has this size now.
    Size(WindowSize),
    /// The terminal has ended; this is the last event.
    End(TerminalEnd),
}

/// The event queue of one client, stored in the terminal's state.
#[derive(Debug)]
pub(super) struct WatcherQueue {
    number: u64,
    queue: VecDeque<WatchEvent>,
    /// Number of bytes of queued text.
    bytes: usize,
    /// Whether the next text is the whole screen.
    repaint: bool,
    wake: Arc<Waker>,
}

impl WatcherQueue {
    pub(super) fn new(number: u64) -> Result<WatcherQueue> {
        let wake = Arc::new(Waker::new()?);
        wake.wake();
        Ok(WatcherQueue { number, queue: VecDeque::new(), bytes: 0, repaint: true, wake })
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn wake(&self) -> Arc<Waker> {
        self.wake.clone()
    }

    pub(super) fn push(&mut self, out: WatchEvent) {
        self.queue.push_back(out);
        self.wake.wake();
    }

    /// Handles a new size. Output queued for the old size is dropped, because every terminal rewraps it
    /// differently.
    pub(super) fn resize(&mut self, size: WindowSize) {
        self.drop_text();
        self.push(WatchEvent::Size(size));
    }

    fn drop_text(&mut self) {
        self.queue.retain(|out| !matches!(out, WatchEvent::Text(_)));
        self.bytes = 0;
        self.repaint = true;
    }

    /// Queues output. If the queue is full, its output is dropped, and the client receives the whole screen next.
    pub(super) fn push_text(&mut self, text: &str) {
        if self.repaint || text.is_empty() {
            return;
        }
        if self.bytes + text.len() > WATCH_BYTES {
            self.drop_text();
        } else {
            self.bytes += text.len();
            match self.queue.back_mut() {
                Some(WatchEvent::Text(last)) => last.push_str(text),
                _ => self.queue.push_back(WatchEvent::Text(text.to_owned())),
            }
        }
        self.wake.wake();
    }
}

/// A client of a terminal; dropping it disconnects the client.
pub struct TerminalWatcher {
    terminal: Arc<Terminal>,
    number: u64,
    mode: WatchMode,
    wake: Arc<Waker>,
}

impl TerminalWatcher {
    pub(super) fn new(
        terminal: Arc<Terminal>,
        number: u64,
        mode: WatchMode,
        wake: Arc<Waker>,
    ) -> TerminalWatcher {
        TerminalWatcher { terminal, number, mode, wake }
    }

    /// Returns whether the terminal may accept this client's input.
    pub fn may_write(&self) -> bool {
        self.mode != WatchMode::Read
    }

    pub fn terminal(&self) -> &Arc<Terminal> {
        &self.terminal
    }

    /// Takes all queued events, oldest first. Does not block; the descriptor is readable when events are queued.
    pub fn take(&self) -> Vec<WatchEvent> {
        self.wake.clear();
        let mut state = lock(&self.terminal.state);
        let state = &mut *state;
        let Some(seat) = state.watchers.iter_mut().find(|seat| seat.number == self.number) else {
            return Vec::new();
        };
        let mut all = Vec::from(std::mem::take(&mut seat.queue));
        seat.bytes = 0;
        if std::mem::take(&mut seat.repaint) {
            // Insert the screen after an event about the size and before the event about the end.
            let at = all.iter().position(|out| matches!(out, WatchEvent::End(_))).unwrap_or(all.len());
            all.insert(at, WatchEvent::Text(state.screen.repaint()));
        }
        all
    }

    /// Queues as much of `bytes` as fits, and returns that number. If this client may not write, discards all
    /// bytes and returns their number, so that the client does not wait. The descriptor becomes readable when the
    /// queue has space again.
    pub fn type_in(&self, bytes: &[u8]) -> usize {
        let mut state = lock(&self.terminal.state);
        if state.end.is_some() {
            return bytes.len();
        }
        if state.writer != Some(self.number) {
            // Another client's terminal may already have sent this reply, so it must not be typed again.
            if self.mode != WatchMode::Shared || bytes.len() <= limits::SEQUENCE_BYTES && is_answer(bytes) {
                return bytes.len();
            }
            state.set_writer(Some(self.number));
        }
        if state.pasting {
            // A paste of another client is in progress; this client is woken when it ends.
            return 0;
        }
        let room = limits::TERMINAL_INPUT_BYTES.saturating_sub(state.input.len());
        let taken = room.min(bytes.len());
        self.terminal.queue(&mut state, &bytes[..taken]);
        taken
    }

    /// Makes this client the writer, replacing the previous one.
    pub fn take_over(&self) {
        lock(&self.terminal.state).set_writer(Some(self.number));
    }

    /// Changes the terminal's size if this client may write.
    pub fn resize(&self, size: WindowSize) {
        let may = self.mode == WatchMode::Shared || lock(&self.terminal.state).writer == Some(self.number);
        if may {
            // If the terminal has ended, the client receives that event.
            let _ = self.terminal.resize(size);
        }
    }
}

impl AsFd for TerminalWatcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

impl Drop for TerminalWatcher {
    fn drop(&mut self) {
        let mut state = lock(&self.terminal.state);
        state.watchers.retain(|seat| seat.number != self.number);
        if state.writer == Some(self.number) {
            state.writer = None;
        }
        state.active = Instant::now();
        state.last_left = state.active;
        // Wake the thread, because the terminal may be idle from now on.
        self.terminal.waker.wake();
    }
}

/// Returns whether the bytes consist only of terminal replies: device attributes, status, cursor position, modes,
/// colours, versions. A function key with a modifier looks like a reply (`CSI 1;5R`).
fn is_answer(bytes: &[u8]) -> bool {
    let cut = super::split::Splitter::default().take(bytes);
    let all: usize = cut.sequences.iter().map(ExactSizeIterator::len).sum();
    !cut.sequences.is_empty()
        && all == bytes.len()
        && cut.sequences.iter().all(|range| {
            let sequence = &cut.text[range.clone()];
            let string = sequence.starts_with("\x1b]") || sequence.starts_with("\x1bP");
            string || sequence.starts_with("\x1b[") && sequence.ends_with(['c', 'n', 'R', 't', 'y'])
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_distinguished_from_keys() {
        for answer in
            ["\x1b[?1;2c", "\x1b[3;4R", "\x1b[0n\x1b[?1;2c", "\x1b]11;rgb:0/0/0\x1b\\", "\x1bP1$r0m\x1b\\"]
        {
            assert!(is_answer(answer.as_bytes()), "{answer:?}");
        }
        for keys in
            ["", "a", "\r", "\x1b", "\x1b[A", "\x1bOP", "\x1b[?1;2cx", "\x1b[200~c\x1b[201~", "\x1b[1;5D"]
        {
            assert!(!is_answer(keys.as_bytes()), "{keys:?}");
        }
    }

    #[test]
    fn the_memory_of_a_slow_client_is_bounded() {
        let mut seat = WatcherQueue::new(0).unwrap();
        seat.repaint = false;
        for _ in 0..100 {
            seat.push_text(&"x".repeat(10_000));
            assert!(seat.bytes <= WATCH_BYTES);
        }
        assert!(seat.repaint && seat.queue.is_empty());
    }
}

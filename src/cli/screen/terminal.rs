//! Controls the terminal for the screen: switches to raw input and the alternate screen, and restores both on drop.
//! This module must not know the content of the screen. Threads: one.
//!
//! Keyboard signals stay enabled (termios(3), ISIG): Ctrl-C stops the host, as without the screen.

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
};

use crate::proc::Cancel;

/// Switches to the alternate screen, and turns off the cursor and line wrapping (xterm's control sequences, DEC
/// private modes 1049, 25 and 7).
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
/// The inverse of [`ENTER`].
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";
/// The value of a control character that disables its function (`_POSIX_VDISABLE`).
const NO_CHARACTER: u8 = 0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyPress {
    Up,
    Down,
    PageUp,
    PageDown,
    Enter,
    Escape,
    Char(char),
}

/// The result of waiting for input.
#[derive(Debug)]
pub(super) enum TerminalInput {
    /// The keys that were pressed; empty if berth does not support them.
    Keys(Vec<KeyPress>),
    /// No key was pressed in time.
    Nothing,
    /// The terminal was closed, or the screen ends.
    End,
}

/// The terminal of standard input and output.
pub(super) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Switches the terminal to raw input and the alternate screen.
    ///
    /// # Errors
    /// Fails if standard input is not a terminal.
    pub(super) fn enter() -> io::Result<RawTerminal> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
        // Without this, Ctrl-S would stop the screen and Ctrl-Z the server.
        raw.input_modes.remove(InputModes::IXON);
        raw.special_codes[SpecialCodeIndex::VSUSP] = NO_CHARACTER;
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        let terminal = RawTerminal { before };
        terminal.write(ENTER)?;
        Ok(terminal)
    }

    /// Returns the number of columns and rows.
    pub(super) fn size() -> (usize, usize) {
        let size = tcgetwinsize(io::stdout()).ok().filter(|size| size.ws_col > 0 && size.ws_row > 0);
        size.map_or((80, 24), |size| (usize::from(size.ws_col), usize::from(size.ws_row)))
    }

    /// Replaces the content of the screen by these lines.
    ///
    /// # Errors
    /// Fails if the terminal was closed.
    pub(super) fn show(&self, lines: &[String]) -> io::Result<()> {
        // Moves the cursor to the top left, prints each line and erases the rest of its row, and finally erases all
        // rows below.
        let body = lines.iter().map(|line| format!("{line}\x1b[0m\x1b[K")).collect::<Vec<_>>().join("\r\n");
        self.write(&format!("\x1b[H{body}\x1b[J"))
    }

    /// Waits up to `patience` for keys, or until `end` is cancelled.
    pub(super) fn read(&self, patience: Duration, end: &Cancel) -> TerminalInput {
        let stdin = io::stdin();
        let mut fds =
            [PollFd::new(&stdin, PollFlags::IN), PollFd::from_borrowed_fd(end.as_fd(), PollFlags::IN)];
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(patience.subsec_nanos()) };
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => return TerminalInput::Nothing,
            Ok(_) => {}
            Err(_) => return TerminalInput::End,
        }
        if !fds[1].revents().is_empty() {
            return TerminalInput::End;
        }
        let mut bytes = [0; 256];
        match rustix::io::read(&stdin, &mut bytes) {
            Ok(0) => TerminalInput::End,
            Ok(count) => TerminalInput::Keys(keys(&bytes[..count])),
            Err(Errno::INTR | Errno::AGAIN) => TerminalInput::Nothing,
            Err(_) => TerminalInput::End,
        }
    }

    #[allow(clippy::unused_self)]
    fn write(&self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = self.write(LEAVE);
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Parses the keys in a chunk of input. A terminal sends a key's sequence in one chunk, so a single escape character
/// is the Escape key.
fn keys(bytes: &[u8]) -> Vec<KeyPress> {
    let text = String::from_utf8_lossy(bytes);
    let mut rest = text.as_ref();
    let mut keys = Vec::new();
    while let Some(first) = rest.chars().next() {
        let sequence = rest.strip_prefix("\x1b[").or_else(|| rest.strip_prefix("\x1bO"));
        if let Some(sequence) = sequence {
            // A sequence consists of parameters and one final byte (ECMA-48, 5.4).
            let length =
                sequence.find(|c: char| ('@'..='~').contains(&c)).map_or(sequence.len(), |at| at + 1);
            keys.extend(match &sequence[..length] {
                "A" => Some(KeyPress::Up),
                "B" => Some(KeyPress::Down),
                "5~" => Some(KeyPress::PageUp),
                "6~" => Some(KeyPress::PageDown),
                _ => None,
            });
            rest = &sequence[length..];
            continue;
        }
        keys.push(match first {
            '\x1b' => KeyPress::Escape,
            '\r' | '\n' => KeyPress::Enter,
            c => KeyPress::Char(c),
        });
        rest = &rest[first.len_utf8()..];
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_sequences_are_parsed() {
        let all = keys(b"\x1b[A\x1bOBa\r\x1b[6~\x1b[5~\x1b[1;5C\x1b");
        let expected = [
            KeyPress::Up,
            KeyPress::Down,
            KeyPress::Char('a'),
            KeyPress::Enter,
            KeyPress::PageDown,
            KeyPress::PageUp,
            KeyPress::Escape,
        ];
        assert_eq!(all, expected);
        assert_eq!(keys("é\x1b[".as_bytes()), [KeyPress::Char('é')]);
    }
}

//! Pseudo-terminals (pty(7)): a pair of descriptors, one for us, one for the program. No path names the program's end:
//! TIOCGPTPEER opens it from ours, so it is the right one whatever is mounted where. Knows nothing of who uses them.
//! No threads, no locks.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{InputModes, OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

use serde::{Deserialize, Serialize};

use super::Stdio;
use crate::base::{At, Result};

/// How many characters a terminal shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// In a row.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

/// A new terminal.
#[derive(Debug)]
pub struct Pty {
    /// Our end: what the program writes is read here, what is written here the program reads. Non-blocking. Reading
    /// fails with EIO once every holder of the other end has closed it.
    pub master: OwnedFd,
    /// The program's end. Ours must be closed when the program has it, or its end goes unnoticed.
    pub slave: OwnedFd,
}

impl Pty {
    /// A terminal of the host.
    ///
    /// # Errors
    /// When the machine has no more of them (kernel.pty.max) or we no more descriptors.
    pub fn open() -> Result<Pty> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        Pty::from_master(rustix::fs::open("/dev/ptmx", flags, Mode::empty()).at("open", "/dev/ptmx")?)
    }

    /// The terminal of this end, which somebody opened at `/dev/ptmx` or `/dev/pts/ptmx`, non-blocking.
    ///
    /// # Errors
    /// When it is none.
    pub fn from_master(master: OwnedFd) -> Result<Pty> {
        let at = "a terminal";
        unlockpt(&master).at("unlock", at)?;
        let slave =
            ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
                .at("open", at)?;
        // Otherwise the kernel's own line editing erases half a character (termios(3), IUTF8).
        let mut modes = tcgetattr(&slave).at("prepare", at)?;
        modes.input_modes |= InputModes::IUTF8;
        tcsetattr(&slave, OptionalActions::Now, &modes).at("prepare", at)?;
        Ok(Pty { master, slave })
    }

    /// Our end, and the other one as all three streams of a program. With a `Command` whose `tty` is set the terminal
    /// becomes the controlling one of the program's session.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn split(self) -> Result<(OwnedFd, Stdio)> {
        let copy = || self.slave.try_clone().at("duplicate", "a terminal");
        Ok((self.master, Stdio { stdin: copy()?, stdout: copy()?, stderr: self.slave }))
    }
}

/// Sets the size; a program in the foreground that did not have it gets SIGWINCH.
///
/// # Errors
/// When `terminal` is none.
pub fn set_size(terminal: impl AsFd, size: WindowSize) -> Result<()> {
    let size = Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).at("resize", "a terminal")
}

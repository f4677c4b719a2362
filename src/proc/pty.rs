//! Pseudo-terminals (pty(7)): a pair of descriptors, one for the server and one for the program. The program's end is
//! opened from the server's end with TIOCGPTPEER and not by a path, so mounts cannot redirect it. No threads, no locks.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{InputModes, OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

use serde::{Deserialize, Serialize};

use super::Stdio;
use crate::base::{At, Result};

/// The size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Number of characters in a row.
    pub cols: u16,
    /// Number of rows.
    pub rows: u16,
}

/// A new pseudo-terminal.
#[derive(Debug)]
pub struct Pty {
    /// The server's end, which reads the program's output and writes its input. Non-blocking. A read fails with EIO
    /// once all descriptors of the program's end are closed.
    pub master: OwnedFd,
    /// The program's end. The server must close its copy once the program has one, or it does not notice the end of the
    /// output.
    pub slave: OwnedFd,
}

impl Pty {
    /// Opens a new terminal of the host.
    ///
    /// # Errors
    /// When the machine has no more terminals (kernel.pty.max), or when this process has no more descriptors.
    pub fn open() -> Result<Pty> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        Pty::from_master(rustix::fs::open("/dev/ptmx", flags, Mode::empty()).at("open", "/dev/ptmx")?)
    }

    /// Completes a terminal whose `master` was opened at `/dev/ptmx` or `/dev/pts/ptmx`, non-blocking.
    ///
    /// # Errors
    /// When `master` is not a terminal.
    pub fn from_master(master: OwnedFd) -> Result<Pty> {
        let at = "a terminal";
        unlockpt(&master).at("unlock", at)?;
        let slave =
            ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
                .at("open", at)?;
        // Without IUTF8, the kernel's line editing erases half of a UTF-8 character (termios(3)).
        let mut modes = tcgetattr(&slave).at("prepare", at)?;
        modes.input_modes |= InputModes::IUTF8;
        tcsetattr(&slave, OptionalActions::Now, &modes).at("prepare", at)?;
        Ok(Pty { master, slave })
    }

    /// Returns the server's end, and the program's end as all three streams of the program. If the `CommandSpec` sets
    /// `tty`, the terminal becomes the controlling terminal of the program's session.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn split(self) -> Result<(OwnedFd, Stdio)> {
        let copy = || self.slave.try_clone().at("duplicate", "a terminal");
        Ok((self.master, Stdio { stdin: copy()?, stdout: copy()?, stderr: self.slave }))
    }
}

/// Sets the size of a terminal. If the size changes, the kernel sends SIGWINCH to the foreground program.
///
/// # Errors
/// When `terminal` is not a terminal.
pub fn set_size(terminal: impl AsFd, size: WindowSize) -> Result<()> {
    let size = Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).at("resize", "a terminal")
}

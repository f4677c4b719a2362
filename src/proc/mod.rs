//! Child processes: one way to spawn, one poll loop that watches, one way to kill a whole process tree.
//! **Invariant:** nothing here depends on workspaces, containers or HTTP.

mod boot;
pub mod cancel;
pub mod capacity;
pub mod capture;
pub mod cgroup;
pub mod command_block;
pub mod confinement;
pub mod control;
mod env_marker;
pub mod exec;
mod freeze;
mod hierarchy;
pub mod idmap;
mod kill;
pub mod limits;
pub mod pty;
pub mod pump;
pub mod signal;
pub mod spawn;
pub mod sys;
pub mod tools;
pub mod waiter;
pub mod waker;

pub use boot::boot_id;
pub use cancel::Cancel;
pub use capacity::Capacity;
pub use capture::{CapturedOutput, OutputCapture, Sink};
pub use cgroup::{Cgroups, CgroupsHandle, Group};
pub use control::{CurrentUsage, Enforced, Enforcement};
pub use limits::{Limits, Usage};
pub use pty::Pty;
pub use pump::{ProcessIo, ProcessOutcome, pump};
pub use signal::{SignalHandle, SignalTarget};
pub use spawn::{Child, Spec};
pub use waker::Waker;

use std::ffi::CString;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{FileType, Stat, fchown, fstat};
use rustix::process::{Gid, Uid};
use serde::{Deserialize, Serialize};

use crate::base::{Code, Error, Result};

/// The exit status of a process, as waitid(2) reported it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// `exit(code)`.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
}

impl Exit {
    /// Whether the exit code is 0.
    pub fn success(self) -> bool {
        self == Exit::Code(0)
    }

    /// Returns the status in sandboxed.sh's format: -1 for a signal.
    pub fn code(self) -> i32 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(_) => -1,
        }
    }

    /// Returns the signal that killed the process.
    pub fn signal(self) -> Option<i32> {
        match self {
            Exit::Code(_) => None,
            Exit::Signal(signal) => Some(signal),
        }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exit code {code}"),
            Exit::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// A running process: a child of this process, or a process in a container.
pub trait Process: Send {
    /// Becomes readable when [`Process::try_exit`] has a result.
    fn exit_fd(&self) -> BorrowedFd<'_>;

    /// Returns the exit status if the process has ended. Does not wait.
    ///
    /// # Errors
    /// When the status was lost, or the process never started.
    fn try_exit(&mut self) -> Result<Option<Exit>>;

    /// Sends SIGTERM to the process and its process group.
    fn terminate(&mut self);

    /// Kills the process and everything that it started.
    fn kill(&mut self);

    /// Returns a handle for signals from other threads; `None` for a process that is not on this host.
    fn signal_handle(&self) -> Option<SignalHandle>;

    /// Returns the resource usage of the process and everything that it started; complete once it has ended.
    fn usage(&self) -> Usage;

    /// Whether the kernel killed part of it because memory ran out; `None` if this host cannot tell.
    fn oom_killed(&self) -> Option<bool> {
        self.usage().oom_killed
    }

    /// Stops watching the process, so that another berth process can watch it. Returns `None`, and changes nothing, if that
    /// is not possible: only its parent can wait for a child.
    ///
    /// # Errors
    /// When this process is out of file descriptors; nothing has changed then.
    fn hand_over(&mut self) -> Result<Option<(ProcessHandover, Box<dyn HandoverGuard>)>> {
        Ok(None)
    }
}

/// A [`Process`] that is being passed to another berth process.
#[derive(Debug)]
pub struct ProcessHandover {
    /// Process id.
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// The socket on which its exit is reported.
    pub socket: OwnedFd,
    /// Bytes that were already read from the socket.
    pub read: Vec<u8>,
    /// The path of its cgroup.
    pub group: String,
}

/// The resources that a process on another watcher still needs where it runs; kept until it ends.
pub trait HandoverGuard: Send {
    /// Called when the process has ended, with its usage.
    fn ended(&self, usage: &Usage);

    /// Called when the process cannot be killed: its whole environment must be stopped.
    fn give_up(&self);
}

/// A process on the host needs nothing.
impl HandoverGuard for () {
    fn ended(&self, _usage: &Usage) {}

    fn give_up(&self) {}
}

/// The user and groups of a command, in the id space where it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessUser {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// A command in kernel terms.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CommandSpec {
    /// Command lines to try in order until one can be executed; `argv[0]` is the program's absolute path.
    pub attempts: Vec<Vec<CString>>,
    /// `NAME=value`; nothing else is inherited.
    pub env: Vec<CString>,
    /// Working directory; the launcher decides what a relative path refers to.
    pub cwd: String,
    /// Resource limits of the command and everything it starts, within those of its environment.
    pub limits: Option<Limits>,
    /// Stdin is a terminal of [`Launcher::terminal`] and becomes the session's controlling terminal, for job control, ^C,
    /// SIGWINCH and `/dev/tty`.
    pub tty: bool,
    /// The user to run as, if it is not the launcher's.
    pub user: Option<ProcessUser>,
    /// Account for all of its usage, not only for OOM kills.
    pub account: bool,
    /// How long the start may wait for the container's agent; `None`: the default.
    #[serde(skip)]
    pub patience: Option<Duration>,
}

/// The child's ends of its three streams.
#[derive(Debug)]
pub struct Stdio {
    /// File descriptor 0.
    pub stdin: OwnedFd,
    /// File descriptor 1.
    pub stdout: OwnedFd,
    /// File descriptor 2.
    pub stderr: OwnedFd,
}

impl Stdio {
    /// Changes the owner of the pipes, or of the terminal, to the command's user: opening /dev/stdout again checks the
    /// owner. A failure is ignored; the streams stay usable.
    pub fn give_to(&self, uid: Uid, gid: Gid, tty: bool) {
        for fd in [&self.stdin, &self.stdout, &self.stderr] {
            let is_pipe = |stat: Stat| FileType::from_raw_mode(stat.st_mode).is_fifo();
            if tty || fstat(fd).is_ok_and(is_pipe) {
                let _ = fchown(fd, Some(uid), Some(gid));
            }
        }
    }
}

/// A place that starts commands: the host, or a container.
pub trait Launcher: Send + Sync {
    /// Starts `command`; `id` is the run's id, also used for its cgroup.
    ///
    /// # Errors
    /// `InvalidCwd` when the working directory does not exist, `Unavailable` when this host cannot enforce a limit
    /// of the command; nothing has run then.
    fn launch(&self, id: &str, command: &CommandSpec, stdio: Stdio) -> Result<Box<dyn Process>>;

    /// Opens a new terminal in the place where commands start, so that `tty` and `/dev/pts/N` refer to it there.
    ///
    /// # Errors
    /// When there are no more terminals, or the container cannot be started.
    fn terminal(&self) -> Result<Pty>;

    /// Reads a file by its absolute path in that place, at most `max_bytes`; `None` if it does not exist.
    ///
    /// # Errors
    /// When it is larger, or not a regular file.
    fn file(&self, path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>>;
}

/// Converts text from a client to a C string.
///
/// # Errors
/// `code` when it contains a NUL.
pub fn c_string(text: &str, code: Code, what: &str) -> Result<CString> {
    CString::new(text).map_err(|_| {
        Error::new(code, format!("The {what} contains a NUL byte, which no process can receive; remove it"))
    })
}

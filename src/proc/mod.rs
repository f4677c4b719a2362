//! Child processes: one way to spawn a process, one poll loop that watches it, one way to kill a whole process tree.
//! **Invariant:** nothing in this room depends on workspaces, containers or HTTP.

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
    /// The process called `exit(code)`.
    Code(i32),
    /// The process was killed by this signal.
    Signal(i32),
}

impl Exit {
    /// Returns whether the exit code is 0.
    pub fn success(self) -> bool {
        self == Exit::Code(0)
    }

    /// Returns the exit code, or -1 if a signal killed the process; this is the format of sandboxed.sh.
    pub fn code(self) -> i32 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(_) => -1,
        }
    }

    /// Returns the signal that killed the process, if one did.
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

/// A running process: a child of this berth process, or a process in a container.
pub trait Process: Send {
    /// Returns a descriptor that becomes readable when [`Process::try_exit`] has a result.
    fn exit_fd(&self) -> BorrowedFd<'_>;

    /// Returns the exit status if the process has ended, and `None` otherwise. Does not wait.
    ///
    /// # Errors
    /// When the status was lost, or the process never started.
    fn try_exit(&mut self) -> Result<Option<Exit>>;

    /// Sends SIGTERM to the process and its process group.
    fn terminate(&mut self);

    /// Kills the process and all processes that it started.
    fn kill(&mut self);

    /// Returns a handle with which other threads can signal the process; `None` for a process that is not on this host.
    fn signal_handle(&self) -> Option<SignalHandle>;

    /// Returns the resource usage of the process and of all processes that it started. The usage is complete once the
    /// process has ended.
    fn usage(&self) -> Usage;

    /// Returns whether the kernel killed the process or a process that it started because memory ran out; `None` if
    /// this host does not count OOM kills.
    fn oom_killed(&self) -> Option<bool> {
        self.usage().oom_killed
    }

    /// Stops watching the process, so that another berth process can watch it. Returns `None` and changes nothing if
    /// this is not possible: only the parent of a process can wait for it.
    ///
    /// # Errors
    /// When this process is out of file descriptors; in this case, this process continues to watch.
    fn hand_over(&mut self) -> Result<Option<(ProcessHandover, Box<dyn HandoverGuard>)>> {
        Ok(None)
    }
}

/// A [`Process`] that is being passed to another berth process.
#[derive(Debug)]
pub struct ProcessHandover {
    /// The process id.
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// The socket on which the agent reports the exit of the process.
    pub socket: OwnedFd,
    /// Bytes that were already read from the socket.
    pub read: Vec<u8>,
    /// The path of the process's cgroup.
    pub group: String,
}

/// The resources in this berth process that a process needs until it ends, although another berth process watches it.
pub trait HandoverGuard: Send {
    /// Called when the process has ended; `usage` is its resource usage.
    fn ended(&self, usage: &Usage);

    /// Called when the process cannot be killed, so that its whole environment must be stopped.
    fn give_up(&self);
}

/// A process on the host needs no such resources.
impl HandoverGuard for () {
    fn ended(&self, _usage: &Usage) {}

    fn give_up(&self) {}
}

/// The user and groups of a command, as ids of the place where the command runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessUser {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// A command as the kernel sees it: all names are resolved.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CommandSpec {
    /// Command lines that are tried in order until one can be executed. `argv[0]` is the program's absolute path.
    pub attempts: Vec<Vec<CString>>,
    /// Environment entries `NAME=value`; the command inherits no other variables.
    pub env: Vec<CString>,
    /// The working directory; the launcher decides what a relative path refers to.
    pub cwd: String,
    /// Resource limits of the command and of all processes it starts, in addition to the limits of its environment.
    pub limits: Option<Limits>,
    /// Whether stdin is a terminal that [`Launcher::terminal`] has opened. The terminal then becomes the session's
    /// controlling terminal, for job control, ^C, SIGWINCH and `/dev/tty`.
    pub tty: bool,
    /// The user that runs the command; `None` for the launcher's own user.
    pub user: Option<ProcessUser>,
    /// Whether to account for all resource usage of the command, not only for OOM kills.
    pub account: bool,
    /// How long the start may wait for the container's agent; `None` for the default.
    #[serde(skip)]
    pub patience: Option<Duration>,
}

/// The child's ends of its three standard streams.
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
    /// Makes the command's user the owner of the pipes or of the terminal, because opening /dev/stdout again checks the
    /// owner. A failure is ignored, because the streams stay usable.
    pub fn give_to(&self, uid: Uid, gid: Gid, tty: bool) {
        for fd in [&self.stdin, &self.stdout, &self.stderr] {
            let is_pipe = |stat: Stat| FileType::from_raw_mode(stat.st_mode).is_fifo();
            if tty || fstat(fd).is_ok_and(is_pipe) {
                let _ = fchown(fd, Some(uid), Some(gid));
            }
        }
    }
}

/// A place in which commands are started: the host or a container.
pub trait Launcher: Send + Sync {
    /// Starts `command`. `id` is the run's id and also names its cgroup.
    ///
    /// # Errors
    /// `InvalidCwd` when the working directory does not exist; `Unavailable` when this host cannot enforce one of the
    /// command's limits. In both cases, no program has run.
    fn launch(&self, id: &str, command: &CommandSpec, stdio: Stdio) -> Result<Box<dyn Process>>;

    /// Opens a new terminal in the place where commands start, so that `tty` and `/dev/pts/N` refer to it in that
    /// place.
    ///
    /// # Errors
    /// When no more terminals are available, or when the container cannot be started.
    fn terminal(&self) -> Result<Pty>;

    /// Reads at most `max_bytes` of a file by its absolute path in that place. Returns `None` if the file does not
    /// exist.
    ///
    /// # Errors
    /// When the file is larger than `max_bytes` or is not a regular file.
    fn file(&self, path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>>;
}

/// Converts text from a client to a C string.
///
/// # Errors
/// An error with `code` when the text contains a NUL; the message calls the text `what`.
pub fn c_string(text: &str, code: Code, what: &str) -> Result<CString> {
    CString::new(text).map_err(|_| {
        Error::new(code, format!("The {what} contains a NUL byte, which no process can receive; remove it"))
    })
}

//! Children: started in one way, watched by one poll loop, ended with their whole tree.
//! Knows nothing of workspaces, containers or HTTP.

mod boot;
pub mod cancel;
pub mod capacity;
pub mod capture;
pub mod cgroup;
pub mod confinement;
pub mod control;
mod env_marker;
pub mod exec;
mod freeze;
mod hierarchy;
pub mod idmap;
mod kill;
pub mod limits;
pub mod packed;
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

/// How a process ended, as waitid(2) said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// `exit(code)`.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
}

impl Exit {
    /// Whether it ended with status 0.
    pub fn success(self) -> bool {
        self == Exit::Code(0)
    }

    /// The status as sandboxed.sh answers it: -1 for a signal.
    pub fn code(self) -> i32 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(_) => -1,
        }
    }

    /// The signal, if one ended it.
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

/// Something that runs and will end: a child of ours, or a process in a container.
pub trait Process: Send {
    /// Readable once [`Process::try_exit`] has something to say.
    fn exit_fd(&self) -> BorrowedFd<'_>;

    /// The exit status if it has ended. Does not wait.
    ///
    /// # Errors
    /// When the status cannot be had any more, or the process never started (the error says why).
    fn try_exit(&mut self) -> Result<Option<Exit>>;

    /// Asks it and its process group to end (SIGTERM).
    fn terminate(&mut self);

    /// Ends it and everything that it started.
    fn kill(&mut self);

    /// The way to signal it from other threads; `None` for a process that is none of this host's.
    fn signal_handle(&self) -> Option<SignalHandle>;

    /// What it and everything it started has used; complete once it has ended.
    fn usage(&self) -> Usage;

    /// Whether the kernel ended something of it for want of memory; `None` where this host cannot tell.
    fn oom_killed(&self) -> Option<bool> {
        self.usage().oom_killed
    }

    /// Gives up watching it, for another process of ours to go on with. `None`, and it goes on as it was, where that is
    /// not possible: a child can be waited for by its parent alone.
    ///
    /// # Errors
    /// When the process is out of file descriptors; it goes on as it was.
    fn hand_over(&mut self) -> Result<Option<(ProcessHandover, Box<dyn HandoverGuard>)>> {
        Ok(None)
    }
}

/// A [`Process`] on its way to another process of ours.
#[derive(Debug)]
pub struct ProcessHandover {
    /// Its number.
    pub pid: i32,
    /// The process.
    pub pidfd: OwnedFd,
    /// Where its end will be told.
    pub socket: OwnedFd,
    /// What was read of that already.
    pub read: Vec<u8>,
    /// Its group's name.
    pub group: String,
}

/// What a process that is watched elsewhere needs of the place where it runs, for as long as it runs.
pub trait HandoverGuard: Send {
    /// It has ended, and used this.
    fn ended(&self, usage: &Usage);

    /// It cannot be ended: everything around it must be.
    fn give_up(&self);
}

/// The host itself needs nothing.
impl HandoverGuard for () {
    fn ended(&self, _usage: &Usage) {}

    fn give_up(&self) {}
}

/// Whose rights a command has, in the numbers of the place where it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessUser {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// All further groups.
    pub groups: Vec<u32>,
}

/// A command in kernel terms.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CommandSpec {
    /// Command lines to try in order until one can be executed; `argv[0]` is the program's absolute path.
    pub attempts: Vec<Vec<CString>>,
    /// `NAME=value`, nothing else is inherited.
    pub env: Vec<CString>,
    /// Working directory; what a relative one is relative to is the launcher's business.
    pub cwd: String,
    /// What it and everything it starts may use, within what its surroundings may.
    pub limits: Option<Limits>,
    /// Its stdin is a terminal of [`Launcher::terminal`], which is to be the controlling one of its session: for job
    /// control, ^C, SIGWINCH and `/dev/tty`.
    pub tty: bool,
    /// Somebody else than who starts it.
    pub user: Option<ProcessUser>,
    /// What it uses is to be told, not only whether memory ran out.
    pub account: bool,
    /// How long its start may wait for whoever has to do something for it; `None`: as long as that may take at all.
    #[serde(skip)]
    pub patience: Option<Duration>,
}

/// The child's side of its three streams.
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
    /// Makes pipes, or the terminal if that is what they are, belong to the command's user: opening /dev/stdout anew
    /// checks the owner. What cannot be given away stays usable as it is.
    pub fn give_to(&self, uid: Uid, gid: Gid, tty: bool) {
        for fd in [&self.stdin, &self.stdout, &self.stderr] {
            let is_pipe = |stat: Stat| FileType::from_raw_mode(stat.st_mode).is_fifo();
            if tty || fstat(fd).is_ok_and(is_pipe) {
                let _ = fchown(fd, Some(uid), Some(gid));
            }
        }
    }
}

/// Who can start a command: the host itself, or a container.
pub trait Launcher: Send + Sync {
    /// Starts `command`; `id` names the run, in the cgroup tree among other places.
    ///
    /// # Errors
    /// `InvalidCwd` when the working directory does not exist, `Unavailable` when this host cannot enforce a limit
    /// of the command; nothing has run then.
    fn launch(&self, id: &str, command: &CommandSpec, stdio: Stdio) -> Result<Box<dyn Process>>;

    /// A new terminal of the place in which commands are started, so that `tty` and `/dev/pts/N` mean it there.
    ///
    /// # Errors
    /// When there are no more of them, or the place cannot be started.
    fn terminal(&self) -> Result<Pty>;

    /// A file of the place, by its absolute path there, of at most so many bytes; `None` if there is none.
    ///
    /// # Errors
    /// When it is larger, or no regular file.
    fn file(&self, path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>>;
}

/// Text from a client as the kernel takes it.
///
/// # Errors
/// `code` when it contains a NUL.
pub fn c_string(text: &str, code: Code, what: &str) -> Result<CString> {
    CString::new(text).map_err(|_| {
        Error::new(code, format!("The {what} contains a NUL byte, which no process can receive"))
    })
}

//! What a process is to become, and what it says of its own start: the words between [`super::sys`] and who starts
//! processes. No threads, no locks.

use std::ffi::{CString, c_char};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::ProcessUser;

/// What [`super::sys::spawn`] starts. Everything is prepared by the caller: the child may not allocate.
#[derive(Debug)]
pub struct ExecSpec<'a> {
    /// Command lines to try in order until one can be executed; `argv[0]` is the program's path, since what a
    /// program does may depend on the name it is called by (busybox; bash called as `sh` is another shell).
    pub attempts: &'a [Vec<CString>],
    /// The whole environment.
    pub env: &'a [CString],
    /// Working directory.
    pub cwd: BorrowedFd<'a>,
    /// File descriptors 0, 1 and 2 of the child.
    pub stdio: [BorrowedFd<'a>; 3],
    /// The folder of a cgroup (v2) in which the child starts, so that no instant exists at which it is elsewhere.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// `cgroup.procs` files of v1 hierarchies, which the child enters before it executes anything.
    pub v1_procs: &'a [OwnedFd],
    /// What the child writes to its own `oom_score_adj`, where ours is not for children.
    pub oom_score: Option<&'static str>,
    /// Soft limit of open files, if it is to differ from ours.
    pub max_files: Option<u64>,
    /// Stdin is a terminal, and the child's session gets it as its controlling one.
    pub tty: bool,
    /// Somebody else whose rights the child gets before it looks at the working directory or the program.
    pub user: Option<&'a ProcessUser>,
}

/// A started child.
#[derive(Debug)]
pub struct Spawned {
    /// Its process id, which is also the id of its session and process group.
    pub pid: i32,
    /// A descriptor that means this process and never another one with the same number (pidfd_open(2)).
    pub pidfd: OwnedFd,
}

/// A child that ended, and what it used.
#[derive(Clone, Copy, Debug)]
pub struct Reaped {
    /// Its exit code, or else the signal that killed it.
    pub status: Result<i32, i32>,
    /// Processor time of it and of all its descendants that were waited for, in microseconds.
    pub cpu_micros: u64,
    /// The largest resident set among them, in bytes. Never less than ours was when it started: it ran in our memory
    /// until it executed its program, and the kernel counts that (exec_mmap).
    pub max_rss_bytes: u64,
}

/// What could not be done for a child.
#[derive(Debug)]
pub struct SpawnError {
    /// What the kernel said.
    pub error: io::Error,
    /// At which step.
    pub step: StartStep,
}

/// A step of a child's start that may fail for the command's own sake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartStep {
    /// To start at all, or to execute the program.
    Exec,
    /// To enter its cgroup.
    Group,
    /// To become the user.
    User,
    /// To enter the working directory.
    Cwd,
}

impl From<io::Error> for SpawnError {
    fn from(error: io::Error) -> SpawnError {
        SpawnError { error, step: StartStep::Exec }
    }
}

impl From<Errno> for SpawnError {
    fn from(errno: Errno) -> SpawnError {
        io::Error::from(errno).into()
    }
}

/// [`Exec`] as the child uses it: nothing in it needs any preparation. Pointers are good for as long as the process that
/// filled it in keeps what they mean.
#[derive(Debug)]
pub(super) struct ChildTask<'a> {
    /// Arrays as execve(2) takes them, one after the other, and a null pointer behind the last.
    pub(super) argvs: *const *const c_char,
    pub(super) env: *const *const c_char,
    pub(super) cwd: Cwd<'a>,
    pub(super) stdio: [RawFd; 3],
    pub(super) tty: bool,
    pub(super) user: Option<RawUser>,
    pub(super) signals: &'a [i32],
    /// The socket on which somebody waits to hear that nothing but the program's start is left to do.
    pub(super) accepted: Option<BorrowedFd<'a>>,
    /// Where it is told what failed.
    pub(super) failure: Option<BorrowedFd<'a>>,
    pub(super) max_files: Option<u64>,
    /// Its own cgroup's `cgroup.procs`, where it was not born there.
    pub(super) cgroup_procs: Option<&'a OwnedFd>,
    pub(super) v1_procs: &'a [OwnedFd],
    pub(super) oom_score: Option<&'static str>,
    /// The process is to lead a new one.
    pub(super) session: bool,
}

impl ChildTask<'_> {
    /// A program in the folder and the session, and with the rights, that the process has already.
    pub(super) fn new(argvs: &[*const c_char], env: &[*const c_char], stdio: [RawFd; 3]) -> Self {
        ChildTask {
            argvs: argvs.as_ptr(),
            env: env.as_ptr(),
            cwd: Cwd::Ours,
            stdio,
            tty: false,
            user: None,
            signals: signals_to_reset(),
            accepted: None,
            failure: None,
            max_files: None,
            cgroup_procs: None,
            v1_procs: &[],
            oom_score: None,
            session: false,
        }
    }
}

/// The null-terminated pointer array that execve(2) takes; valid as long as `strings` is.
pub(super) fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}

/// Such arrays one after the other, and a null pointer behind the last.
pub(super) fn arrays(attempts: &[Vec<CString>]) -> Vec<*const c_char> {
    attempts.iter().flat_map(|argv| pointers(argv)).chain([ptr::null()]).collect()
}

/// Where a program starts.
#[derive(Debug)]
pub(super) enum Cwd<'a> {
    Folder(BorrowedFd<'a>),
    Path(*const c_char),
    Ours,
}

/// [`User`] where the child uses it.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawUser {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: *const u32,
    pub(super) count: usize,
}

impl RawUser {
    pub(super) fn from_user(user: &ProcessUser) -> RawUser {
        let ProcessUser { uid, gid, ref groups } = *user;
        RawUser { uid, gid, groups: groups.as_ptr(), count: groups.len() }
    }
}

/// Signals that this process does not leave to the kernel. The runtime ignores SIGPIPE, our parent may have ignored any
/// (nohup(1)), and both go through execve(2). Looked up once (proc_pid_status(5)): nothing of ours changes one later
/// without a handler, and handlers do not go through it.
pub(super) fn signals_to_reset() -> &'static [i32] {
    static SIGNALS: OnceLock<Vec<i32>> = OnceLock::new();
    SIGNALS.get_or_init(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = |name| {
            let text = status.lines().find_map(|line| line.strip_prefix(name));
            // Unknown: all.
            text.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(u64::MAX)
        };
        let changed = mask("SigIgn:") | mask("SigCgt:");
        (1..=64).filter(|signal| changed & 1 << (signal - 1) != 0).collect()
    })
}

/// `struct clone_args` of clone3(2), first version with `cgroup` (Linux 5.7).
#[repr(C, align(8))]
#[derive(Default)]
pub(super) struct CloneArgs {
    pub(super) flags: u64,
    pub(super) pidfd: u64,
    pub(super) child_tid: u64,
    pub(super) parent_tid: u64,
    pub(super) exit_signal: u64,
    pub(super) stack: u64,
    pub(super) stack_size: u64,
    pub(super) tls: u64,
    pub(super) set_tid: u64,
    pub(super) set_tid_size: u64,
    pub(super) cgroup: u64,
}

impl CloneArgs {
    /// A child of which SIGCHLD tells; the kernel puts a descriptor of it at `pidfd`.
    pub(super) fn for_child(flags: u64, pidfd: &mut i32) -> CloneArgs {
        CloneArgs {
            flags: flags | libc::CLONE_PIDFD as u64,
            pidfd: ptr::from_mut(pidfd) as u64,
            exit_signal: libc::SIGCHLD as u64,
            ..CloneArgs::default()
        }
    }

    /// The same for clone(2): no flags beyond 32 bits, the signal among them, the end of the stack, the descriptor where
    /// the parent's thread id would go (CLONE_PIDFD).
    pub(super) fn for_clone(&self) -> [usize; 5] {
        let flags = self.flags & u64::from(u32::MAX) | self.exit_signal;
        [flags as usize, (self.stack + self.stack_size) as usize, self.pidfd as usize, 0, 0]
    }
}

/// Errors are the last page of numbers (syscall(2)).
#[cfg(target_arch = "x86_64")]
pub(super) fn result_or_errno(result: isize) -> Result<usize, Errno> {
    if (-4095..0).contains(&result) {
        Err(Errno::from_raw_os_error(-result as i32))
    } else {
        Ok(result as usize)
    }
}

pub(super) const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
pub(super) const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Every signal that can have a handler; the kernel refuses the two others.
pub(super) static ALL_SIGNALS: [i32; 64] = {
    let mut all = [0; 64];
    let mut at = 0;
    while at < 64 {
        all[at] = at as i32 + 1;
        at += 1;
    }
    all
};

/// Moves the calling process through a `cgroup.procs`. 0 is the writer itself (cgroups(7)): never by number, which may be
/// another process's by then.
pub(super) fn enter_group(door: impl AsFd) -> Result<(), Errno> {
    rustix::io::write(door, b"0").map(drop)
}

/// The `cgroup.procs` of a cgroup's folder, for [`enter_group`].
pub(super) fn open_procs_at(cgroup: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(cgroup, "cgroup.procs", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
}

/// What a process says of its own start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartReport {
    /// The program is about to be executed: from here on it may have run.
    Accepted,
    /// A step failed with this errno; nothing has run.
    Failed(StartStep, i32),
    /// The process is in its groups and waits for a command.
    GroupEntered,
    /// It could not enter them.
    GroupFailed(i32),
}

/// Its length as [`StartReport::to_bytes`] gives it.
pub const REPORT_BYTES: usize = 8;

impl StartReport {
    /// As it is sent: a number for what, and an errno.
    pub fn to_bytes(self) -> [u8; REPORT_BYTES] {
        let (what, errno): (u32, i32) = match self {
            StartReport::Accepted => (1, 0),
            StartReport::Failed(StartStep::Exec, errno) => (2, errno),
            StartReport::Failed(StartStep::User, errno) => (3, errno),
            StartReport::Failed(StartStep::Cwd, errno) => (4, errno),
            StartReport::GroupEntered => (5, 0),
            StartReport::GroupFailed(errno) => (6, errno),
            StartReport::Failed(StartStep::Group, errno) => (7, errno),
        };
        encode_pair(what, errno)
    }

    /// What was sent; `None`: something else.
    pub fn from_bytes(bytes: [u8; REPORT_BYTES]) -> Option<StartReport> {
        Some(match decode_pair(bytes) {
            (1, _) => StartReport::Accepted,
            (2, errno) => StartReport::Failed(StartStep::Exec, errno),
            (3, errno) => StartReport::Failed(StartStep::User, errno),
            (4, errno) => StartReport::Failed(StartStep::Cwd, errno),
            (5, _) => StartReport::GroupEntered,
            (6, errno) => StartReport::GroupFailed(errno),
            (7, errno) => StartReport::Failed(StartStep::Group, errno),
            _ => return None,
        })
    }
}

/// Waits until a child has executed its program, which closes the other end of `pipe`, or has said what failed.
pub(super) fn read_failure(pipe: impl AsFd) -> Option<SpawnError> {
    let mut told = [0u8; REPORT_BYTES];
    loop {
        match rustix::io::read(&pipe, &mut told) {
            Err(Errno::INTR) => {}
            Ok(REPORT_BYTES) => {
                let Some(StartReport::Failed(step, errno)) = StartReport::from_bytes(told) else {
                    return Some(Errno::IO.into());
                };
                return Some(SpawnError { error: io::Error::from_raw_os_error(errno), step });
            }
            _ => return None,
        }
    }
}

/// Two numbers in eight bytes.
pub fn encode_pair(what: u32, value: i32) -> [u8; REPORT_BYTES] {
    let ([a, b, c, d], [e, f, g, h]) = (what.to_le_bytes(), value.to_le_bytes());
    [a, b, c, d, e, f, g, h]
}

/// The reverse.
pub fn decode_pair(bytes: [u8; REPORT_BYTES]) -> (u32, i32) {
    let [a, b, c, d, e, f, g, h] = bytes;
    (u32::from_le_bytes([a, b, c, d]), i32::from_le_bytes([e, f, g, h]))
}

//! The specification of a new process and the reports it sends about its own start: the interface between [`super::sys`] and
//! its callers. No threads, no locks.

use std::ffi::{CString, c_char};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::ProcessUser;

/// A slot's memory is returned to the kernel after a command larger than this.
pub(super) const SLOT_KEPT_BYTES: u64 = 64 << 10;
/// Stack of a child that shares the server's memory until it executes its program. Measured: 1.2 KB, 3.5 KB in a debug
/// build; nothing in it recurses.
pub(super) const CHILD_STACK: usize = 32 << 10;

/// The process that [`super::sys::spawn`] starts. The caller prepares everything: the child must not allocate.
#[derive(Debug)]
pub struct ExecSpec<'a> {
    /// Command lines to try in order until one can be executed; `argv[0]` is the program's path, since a program may behave
    /// differently under another name (busybox; bash called as `sh`).
    pub attempts: &'a [Vec<CString>],
    /// The whole environment.
    pub env: &'a [CString],
    /// Working directory.
    pub cwd: BorrowedFd<'a>,
    /// File descriptors 0, 1 and 2 of the child.
    pub stdio: [BorrowedFd<'a>; 3],
    /// The folder of a cgroup (v2) in which the child is created, so that it never runs outside of it.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// `cgroup.procs` files of v1 hierarchies, which the child enters before it executes its program.
    pub v1_procs: &'a [OwnedFd],
    /// The value for the child's own `oom_score_adj`, if it must not inherit the server's.
    pub oom_score: Option<&'static str>,
    /// Soft limit of open files, if it differs from the server's.
    pub max_files: Option<u64>,
    /// Stdin is a terminal, which becomes the controlling terminal of the child's session.
    pub tty: bool,
    /// The user that the child switches to before it accesses the working directory or the program.
    pub user: Option<&'a ProcessUser>,
}

/// A started child.
#[derive(Debug)]
pub struct Spawned {
    /// Its process id, which is also the id of its session and process group.
    pub pid: i32,
    /// A descriptor of this process, which never refers to another process with the same number (pidfd_open(2)).
    pub pidfd: OwnedFd,
}

/// A child that was reaped, and its resource usage.
#[derive(Clone, Copy, Debug)]
pub struct Reaped {
    /// Its exit code, or the signal that killed it.
    pub status: Result<i32, i32>,
    /// Processor time of the child and of its descendants that were waited for, in microseconds.
    pub cpu_micros: u64,
    /// The largest resident set among them, in bytes. Never less than the server's at the start: the child shares the
    /// server's memory until it executes its program, and the kernel counts that (exec_mmap).
    pub max_rss_bytes: u64,
}

/// An error of starting a child.
#[derive(Debug)]
pub struct SpawnError {
    /// The kernel's error.
    pub error: io::Error,
    /// The step that failed.
    pub step: StartStep,
}

/// A step of a child's start that may fail because of the command itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartStep {
    /// Creating the process, or executing the program.
    Exec,
    /// Entering its cgroup.
    Group,
    /// Switching to the user.
    User,
    /// Entering the working directory.
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

/// [`ExecSpec`] in the form that the child uses without any preparation. The process that filled it in must keep the
/// memory behind the pointers valid.
#[derive(Debug)]
pub(super) struct ChildTask<'a> {
    /// Arrays in the format of execve(2), one after the other; a null pointer follows the last.
    pub(super) argvs: *const *const c_char,
    pub(super) env: *const *const c_char,
    pub(super) cwd: Cwd<'a>,
    pub(super) stdio: [RawFd; 3],
    pub(super) tty: bool,
    pub(super) user: Option<RawUser>,
    pub(super) signals: &'a [i32],
    /// The socket on which the child reports that only the execution of the program remains.
    pub(super) accepted: Option<BorrowedFd<'a>>,
    /// Where the child reports a failed step.
    pub(super) failure: Option<BorrowedFd<'a>>,
    pub(super) max_files: Option<u64>,
    /// `cgroup.procs` of the child's cgroup, if it was not created there.
    pub(super) cgroup_procs: Option<&'a OwnedFd>,
    pub(super) v1_procs: &'a [OwnedFd],
    pub(super) oom_score: Option<&'static str>,
    /// The child starts a new session.
    pub(super) session: bool,
}

impl ChildTask<'_> {
    /// A program that keeps the process's current folder, session and user.
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

/// Returns the null-terminated pointer array that execve(2) takes; valid as long as `strings` is.
pub(super) fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}

/// Returns such arrays one after the other; a null pointer follows the last.
pub(super) fn arrays(attempts: &[Vec<CString>]) -> Vec<*const c_char> {
    attempts.iter().flat_map(|argv| pointers(argv)).chain([ptr::null()]).collect()
}

/// The working directory of a new program.
#[derive(Debug)]
pub(super) enum Cwd<'a> {
    Folder(BorrowedFd<'a>),
    Path(*const c_char),
    Ours,
}

/// [`ProcessUser`] in the form that the child uses.
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

/// Returns the signals that do not have their default action in this process. The Rust runtime ignores SIGPIPE, the parent
/// may have ignored any signal (nohup(1)), and ignored signals stay ignored across execve(2). Read once
/// (proc_pid_status(5)): berth later changes signals only by installing handlers, which execve(2) resets.
pub(super) fn signals_to_reset() -> &'static [i32] {
    static SIGNALS: OnceLock<Vec<i32>> = OnceLock::new();
    SIGNALS.get_or_init(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = |name| {
            let text = status.lines().find_map(|line| line.strip_prefix(name));
            // If it cannot be read: all signals.
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
    /// Arguments for a child that sends SIGCHLD at its end; the kernel stores a pidfd in `pidfd`.
    pub(super) fn for_child(flags: u64, pidfd: &mut i32) -> CloneArgs {
        CloneArgs {
            flags: flags | libc::CLONE_PIDFD as u64,
            pidfd: ptr::from_mut(pidfd) as u64,
            exit_signal: libc::SIGCHLD as u64,
            ..CloneArgs::default()
        }
    }

    /// Returns the same arguments for clone(2): flags of 32 bits with the signal among them, the end of the stack, and the
    /// pidfd in place of the parent's thread id (CLONE_PIDFD).
    pub(super) fn for_clone(&self) -> [usize; 5] {
        let flags = self.flags & u64::from(u32::MAX) | self.exit_signal;
        [flags as usize, (self.stack + self.stack_size) as usize, self.pidfd as usize, 0, 0]
    }
}

/// The kernel returns errors as -4095 to -1 (syscall(2)).
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

/// All signal numbers; the kernel refuses a handler for two of them (SIGKILL and SIGSTOP).
pub(super) static ALL_SIGNALS: [i32; 64] = {
    let mut all = [0; 64];
    let mut at = 0;
    while at < 64 {
        all[at] = at as i32 + 1;
        at += 1;
    }
    all
};

/// Moves the calling process into a cgroup by writing to its `cgroup.procs`. The value 0 is the writer itself (cgroups(7));
/// a process number could belong to another process by then.
pub(super) fn enter_group(procs: impl AsFd) -> Result<(), Errno> {
    rustix::io::write(procs, b"0").map(drop)
}

/// Opens `cgroup.procs` in a cgroup's folder, for [`enter_group`].
pub(super) fn open_procs_at(cgroup: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(cgroup, "cgroup.procs", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
}

/// A new process's report about its own start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartReport {
    /// The program is about to be executed: after this report it may have run.
    Accepted,
    /// A step failed with this errno; the program has not run.
    Failed(StartStep, i32),
    /// The process has entered its groups and waits for a command.
    GroupEntered,
    /// The process could not enter its groups, with this errno.
    GroupFailed(i32),
}

/// The length of an encoded [`StartReport`].
pub const REPORT_BYTES: usize = 8;

impl StartReport {
    /// Encodes the report as a number for its kind and an errno.
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

    /// Decodes a report; `None` for unknown bytes.
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

/// Waits until a child has executed its program, which closes the other end of `pipe`, or has reported a failure.
pub(super) fn read_failure(pipe: impl AsFd) -> Option<SpawnError> {
    let mut report = [0u8; REPORT_BYTES];
    loop {
        match rustix::io::read(&pipe, &mut report) {
            Err(Errno::INTR) => {}
            Ok(REPORT_BYTES) => {
                let Some(StartReport::Failed(step, errno)) = StartReport::from_bytes(report) else {
                    return Some(Errno::IO.into());
                };
                return Some(SpawnError { error: io::Error::from_raw_os_error(errno), step });
            }
            _ => return None,
        }
    }
}

/// Encodes two numbers in eight bytes.
pub fn encode_pair(what: u32, value: i32) -> [u8; REPORT_BYTES] {
    let ([a, b, c, d], [e, f, g, h]) = (what.to_le_bytes(), value.to_le_bytes());
    [a, b, c, d, e, f, g, h]
}

/// Decodes the numbers of [`encode_pair`].
pub fn decode_pair(bytes: [u8; REPORT_BYTES]) -> (u32, i32) {
    let [a, b, c, d, e, f, g, h] = bytes;
    (u32::from_le_bytes([a, b, c, d]), i32::from_le_bytes([e, f, g, h]))
}

//! The specification of a new process, and the reports that the new process sends about its own start. This is the
//! interface between [`super::sys`] and its callers. No threads, no locks.

use std::ffi::{CString, c_char};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::ProcessUser;

/// If a command is larger than this, its slot's memory is returned to the kernel afterwards.
pub(super) const SLOT_KEPT_BYTES: u64 = 64 << 10;
/// Stack size of a child that shares the server's memory until it executes its program. The child was measured to use
/// 1.2 KB, and 3.5 KB in a debug build; it makes no recursive calls.
pub(super) const CHILD_STACK: usize = 32 << 10;

/// The specification of a process that [`super::sys::spawn`] starts. The caller prepares all data, because the child
/// must not allocate.
#[derive(Debug)]
pub struct ExecSpec<'a> {
    /// Command lines that are tried in order until one can be executed. `argv[0]` is the program's path, because a
    /// program may behave differently under another name (busybox; bash called as `sh`).
    pub attempts: &'a [Vec<CString>],
    /// The whole environment of the child: it inherits no other variables.
    pub env: &'a [CString],
    /// The working directory.
    pub cwd: BorrowedFd<'a>,
    /// File descriptors 0, 1 and 2 of the child.
    pub stdio: [BorrowedFd<'a>; 3],
    /// The folder of a cgroup (v2) in which the child is created, so that it never runs outside of that cgroup.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// `cgroup.procs` files of v1 hierarchies, which the child enters before it executes its program.
    pub v1_procs: &'a [OwnedFd],
    /// The value for the child's own `oom_score_adj`, if the child must not inherit the server's.
    pub oom_score: Option<&'static str>,
    /// The soft limit of open files, if it differs from the server's.
    pub max_files: Option<u64>,
    /// Whether stdin is a terminal, which then becomes the controlling terminal of the child's session.
    pub tty: bool,
    /// The user that the child switches to before it accesses the working directory or the program.
    pub user: Option<&'a ProcessUser>,
}

/// A started child.
#[derive(Debug)]
pub struct Spawned {
    /// The child's process id, which is also the id of its session and of its process group.
    pub pid: i32,
    /// A descriptor of the child, which never refers to another process with the same number (pidfd_open(2)).
    pub pidfd: OwnedFd,
}

/// The result of reaping a child: its exit status and its resource usage.
#[derive(Clone, Copy, Debug)]
pub struct Reaped {
    /// The child's exit code, or as an error the signal that killed it.
    pub status: Result<i32, i32>,
    /// Processor time of the child and of those of its descendants that were waited for, in microseconds.
    pub cpu_micros: u64,
    /// The largest resident set of any of these processes, in bytes. It is never less than the server's resident set at
    /// the start: the child shares the server's memory until it executes its program, and the kernel counts that memory
    /// (exec_mmap).
    pub max_rss_bytes: u64,
}

/// A failed start of a child.
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
    /// Entering the child's cgroup.
    Group,
    /// Switching to the command's user.
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

/// [`ExecSpec`] in a form that the child can use without further preparation. The process that creates this value must
/// keep the memory behind the pointers valid.
#[derive(Debug)]
pub(super) struct ChildTask<'a> {
    /// The argument arrays for execve(2), one after the other; a null pointer follows the last array.
    pub(super) argvs: *const *const c_char,
    pub(super) env: *const *const c_char,
    pub(super) cwd: Cwd<'a>,
    pub(super) stdio: [RawFd; 3],
    pub(super) tty: bool,
    pub(super) user: Option<RawUser>,
    pub(super) signals: &'a [i32],
    /// The socket on which the child reports that only the execution of the program remains.
    pub(super) accepted: Option<BorrowedFd<'a>>,
    /// The socket or pipe on which the child reports a failed step.
    pub(super) failure: Option<BorrowedFd<'a>>,
    pub(super) max_files: Option<u64>,
    /// `cgroup.procs` of the child's cgroup, if the child was not created in this cgroup.
    pub(super) cgroup_procs: Option<&'a OwnedFd>,
    pub(super) v1_procs: &'a [OwnedFd],
    pub(super) oom_score: Option<&'static str>,
    /// Whether the child starts a new session.
    pub(super) session: bool,
}

impl ChildTask<'_> {
    /// Creates the task of a program that keeps the process's current folder, session and user.
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

/// Returns the null-terminated pointer array that execve(2) takes. The array is valid as long as `strings` is.
pub(super) fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}

/// Returns the pointer arrays of all command lines, one after the other; a null pointer follows the last array.
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

/// Returns the signals whose action in this process is not the default. The Rust runtime ignores SIGPIPE, and the
/// parent may have ignored any signal (nohup(1)); ignored signals stay ignored across execve(2). The list is read once
/// (proc_pid_status(5)): later, berth changes signals only by installing handlers, which execve(2) resets.
pub(super) fn signals_to_reset() -> &'static [i32] {
    static SIGNALS: OnceLock<Vec<i32>> = OnceLock::new();
    SIGNALS.get_or_init(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = |name| {
            let text = status.lines().find_map(|line| line.strip_prefix(name));
            // If the mask cannot be read, reset all signals.
            text.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(u64::MAX)
        };
        let changed = mask("SigIgn:") | mask("SigCgt:");
        (1..=64).filter(|signal| changed & 1 << (signal - 1) != 0).collect()
    })
}

/// `struct clone_args` of clone3(2), in its first version that has the field `cgroup` (Linux 5.7).
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
    /// Creates the arguments for a child that sends SIGCHLD when it ends. The kernel stores the child's pidfd in
    /// `pidfd`.
    pub(super) fn for_child(flags: u64, pidfd: &mut i32) -> CloneArgs {
        CloneArgs {
            flags: flags | libc::CLONE_PIDFD as u64,
            pidfd: ptr::from_mut(pidfd) as u64,
            exit_signal: libc::SIGCHLD as u64,
            ..CloneArgs::default()
        }
    }

    /// Returns these arguments in the form of clone(2): 32 bits of flags that include the signal, the end of the stack,
    /// and the address of the pidfd in place of the parent's thread id (CLONE_PIDFD).
    pub(super) fn for_clone(&self) -> [usize; 5] {
        let flags = self.flags & u64::from(u32::MAX) | self.exit_signal;
        [flags as usize, (self.stack + self.stack_size) as usize, self.pidfd as usize, 0, 0]
    }
}

/// Converts the result of a system call: the kernel returns errors as -4095 to -1 (syscall(2)).
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

/// All signal numbers. The kernel refuses a handler for two of them (SIGKILL and SIGSTOP).
pub(super) static ALL_SIGNALS: [i32; 64] = {
    let mut all = [0; 64];
    let mut at = 0;
    while at < 64 {
        all[at] = at as i32 + 1;
        at += 1;
    }
    all
};

/// Moves the calling process into a cgroup by writing to the cgroup's `cgroup.procs`. The value 0 stands for the writer
/// itself (cgroups(7)); a process number could belong to another process by the time of the write.
pub(super) fn enter_group(procs: impl AsFd) -> Result<(), Errno> {
    rustix::io::write(procs, b"0").map(drop)
}

/// Opens `cgroup.procs` in the folder of a cgroup, for [`enter_group`].
pub(super) fn open_procs_at(cgroup: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(cgroup, "cgroup.procs", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
}

/// A new process's report about its own start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartReport {
    /// The program is about to be executed: once this report is sent, the program may have run.
    Accepted,
    /// A step failed with this errno, and the program has not run.
    Failed(StartStep, i32),
    /// The process has entered its groups and waits for a command.
    GroupEntered,
    /// The process could not enter its groups, with this errno.
    GroupFailed(i32),
}

/// The length of an encoded [`StartReport`].
pub const REPORT_BYTES: usize = 8;

impl StartReport {
    /// Encodes the report as two numbers: its kind and an errno.
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

    /// Decodes a report. Returns `None` if the bytes are not an encoded report.
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

/// Waits until a child has executed its program or reported a failure. Executing the program closes the child's end of
/// `pipe`.
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

/// Decodes two numbers that [`encode_pair`] has encoded.
pub fn decode_pair(bytes: [u8; REPORT_BYTES]) -> (u32, i32) {
    let [a, b, c, d, e, f, g, h] = bytes;
    (u32::from_le_bytes([a, b, c, d]), i32::from_le_bytes([e, f, g, h]))
}

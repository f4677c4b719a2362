//! The only file with `unsafe`: starting a process in a cgroup of its own, forking the single-threaded agent, and
//! replacing the calling process. No safe binding exists for these; everything else goes through rustix.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_int};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::thread::UnshareFlags;

use super::User;

/// What [`spawn`] starts. Everything is prepared by the caller: the child may not allocate.
#[derive(Debug)]
pub struct Exec<'a> {
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
    pub entrances: &'a [OwnedFd],
    /// What the child writes to its own `oom_score_adj`, where ours is not for children.
    pub oom_score: Option<&'static str>,
    /// Soft limit of open files, if it is to differ from ours.
    pub max_files: Option<u64>,
    /// Stdin is a terminal, and the child's session gets it as its controlling one.
    pub tty: bool,
    /// Somebody else whose rights the child gets before it looks at the working directory or the program.
    pub user: Option<&'a User>,
}

/// What could not be done for a child.
#[derive(Debug)]
pub struct Failed {
    /// What the kernel said.
    pub error: io::Error,
    /// At which step.
    pub step: Step,
}

/// A step of a child's start that may fail for the command's own sake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// To start at all, or to execute the program.
    Exec,
    /// To become the user.
    User,
    /// To enter the working directory.
    Cwd,
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Failed {
        Failed { error, step: Step::Exec }
    }
}

impl From<rustix::io::Errno> for Failed {
    fn from(errno: rustix::io::Errno) -> Failed {
        io::Error::from(errno).into()
    }
}

/// A started child.
#[derive(Debug)]
pub struct Spawned {
    /// Its process id, which is also the id of its session and process group.
    pub pid: i32,
    /// A descriptor that means this process and never another one with the same number (pidfd_open(2)).
    pub pidfd: OwnedFd,
}

/// `struct clone_args` of clone3(2), first version with `cgroup` (Linux 5.7).
#[repr(C, align(8))]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_PIDFD: u64 = 0x1000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The null-terminated pointer array that execve(2) takes; valid as long as `strings` is.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}

/// Starts a child as leader of a new session, with default signal handling, no inherited descriptor but its three
/// streams, and nothing inherited from our environment.
///
/// # Errors
/// What clone3(2), fchdir(2) or execve(2) said. No child is left behind then.
pub fn spawn(exec: &Exec<'_>) -> Result<Spawned, Failed> {
    let argvs: Vec<_> = exec.attempts.iter().map(|argv| pointers(argv)).collect();
    let env = pointers(exec.env);
    let stdio = exec.stdio.map(|fd| fd.as_raw_fd());
    let (failure_read, failure_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;

    let mut pidfd: c_int = -1;
    let mut args = CloneArgs {
        flags: CLONE_PIDFD,
        pidfd: ptr::from_mut(&mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = exec.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }

    // A handler of ours must not run in the child, where it would write into our own self-pipe.
    let blocked = AllSignalsBlocked::new();
    let task = Task {
        argvs: &argvs,
        env: &env,
        cwd: exec.cwd.as_raw_fd(),
        stdio,
        failure: failure_write.as_raw_fd(),
        max_files: exec.max_files,
        tty: exec.tty,
        user: exec.user,
        entrances: exec.entrances,
        oom_score: exec.oom_score,
    };
    // SAFETY: `args` is the kernel's layout and outlives the call, `pidfd` is where the kernel writes the descriptor;
    // `child` makes nothing but async-signal-safe system calls on what `task` borrows, and never returns.
    let (pid, clone_error) = unsafe { clone3(&mut args, &task) };
    drop(blocked);
    if pid < 0 {
        return Err(clone_error.into());
    }
    // SAFETY: clone3 succeeded with CLONE_PIDFD, so this is a fresh descriptor that nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid = pid as i32;

    drop(failure_write);
    let mut told = [0u8; 8];
    loop {
        match rustix::io::read(&failure_read, &mut told) {
            Err(rustix::io::Errno::INTR) => {}
            // End of file: execve closed the other end.
            Ok(8) => {
                let _ = rustix::process::waitid(
                    rustix::process::WaitId::PidFd(pidfd.as_fd()),
                    rustix::process::WaitIdOptions::EXITED,
                );
                let (errno, step) = u64_parts(told);
                let step = [Step::User, Step::Cwd].into_iter().find(|known| *known as i32 == step);
                return Err(Failed {
                    error: io::Error::from_raw_os_error(errno),
                    step: step.unwrap_or(Step::Exec),
                });
            }
            _ => return Ok(Spawned { pid, pidfd }),
        }
    }
}

/// Two numbers that a child has written.
fn u64_parts(told: [u8; 8]) -> (i32, i32) {
    let [a, b, c, d, e, f, g, h] = told;
    (i32::from_ne_bytes([a, b, c, d]), i32::from_ne_bytes([e, f, g, h]))
}

/// What the child does; everything in it was prepared by the parent.
struct Task<'a> {
    argvs: &'a [Vec<*const c_char>],
    env: &'a [*const c_char],
    cwd: RawFd,
    stdio: [RawFd; 3],
    failure: RawFd,
    max_files: Option<u64>,
    tty: bool,
    user: Option<&'a User>,
    entrances: &'a [OwnedFd],
    oom_score: Option<&'static str>,
}

/// clone3(2) with `child(task)` on the other side.
///
/// On x86_64 the child borrows our memory and we sleep until it execs (CLONE_VM, CLONE_VFORK), as posix_spawn(3) does:
/// nothing is copied, however large the server is. It runs on a stack of its own.
///
/// # Safety
/// `args` without a stack, `task` valid; the caller has blocked all signals.
#[cfg(target_arch = "x86_64")]
unsafe fn clone3(args: &mut CloneArgs, task: &Task<'_>) -> (i64, io::Error) {
    const CLONE_VM: u64 = 0x100;
    const CLONE_VFORK: u64 = 0x4000;
    // Measured use is under 2 KiB; nothing in the child recurses or allocates.
    let mut stack = vec![0u128; (32 << 10) / size_of::<u128>()];
    args.flags |= CLONE_VM | CLONE_VFORK;
    args.stack = stack.as_mut_ptr() as u64;
    args.stack_size = (stack.len() * size_of::<u128>()) as u64;
    extern "C" fn start(task: &Task<'_>) -> ! {
        child(task)
    }
    let result: i64;
    // SAFETY: in the parent this is a plain system call (rcx and r11 are what `syscall` clobbers, and not `lateout`,
    // since the child still needs its inputs then). The child comes out
    // of it on the top of its own stack, 16-byte aligned as a u128's end is, and calls `start`, which never returns;
    // the stack and `task` outlive it, since CLONE_VFORK keeps us here until it has execed or exited.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {task}",
            "call {start}",
            "ud2",
            "2:",
            task = in(reg) ptr::from_ref(task),
            start = in(reg) start as extern "C" fn(&Task<'_>) -> !,
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") ptr::from_mut(args),
            in("rsi") size_of::<CloneArgs>(),
            out("rcx") _,
            out("r11") _,
        );
    }
    drop(stack);
    (result, io::Error::from_raw_os_error(i32::try_from(-result).unwrap_or(libc::EIO)))
}

/// clone3(2) with `child(task)` on the other side, in a copy of our memory as after fork(2).
///
/// # Safety
/// As above.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn clone3(args: &mut CloneArgs, task: &Task<'_>) -> (i64, io::Error) {
    // SAFETY: without CLONE_VM the child has its own copy of everything.
    let result = unsafe { libc::syscall(libc::SYS_clone3, ptr::from_mut(args), size_of::<CloneArgs>()) };
    if result == 0 {
        child(task);
    }
    (result as i64, io::Error::last_os_error())
}

/// The child's side: only system calls, no allocation, no return.
fn child(task: &Task<'_>) -> ! {
    let Task { argvs, env, cwd, stdio, failure, max_files, tty, entrances, oom_score, user } = *task;
    let mut step = Step::Exec;
    // SAFETY: every call is on the list of signal-safety(7) or a bare system call; all pointers come from vectors
    // that the parent keeps alive until this process has execed or exited.
    unsafe {
        default_signals();
        if let Some(soft) = max_files {
            let mut limit: libc::rlimit = std::mem::zeroed();
            if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
                limit.rlim_cur = soft.min(limit.rlim_max);
                libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
            }
        }
        let mut ok = libc::setsid() != -1;
        for entrance in entrances {
            // 0 is the writer itself (cgroups(7)).
            ok &= libc::write(entrance.as_raw_fd(), c"0".as_ptr().cast(), 1) == 1;
        }
        if let Some(score) = oom_score {
            let own = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            libc::write(own, score.as_ptr().cast(), score.len());
            libc::close(own);
        }
        for (target, fd) in stdio.iter().enumerate() {
            ok &= libc::dup2(*fd, target as c_int) != -1;
        }
        // Only for the leader of a session without a terminal, which setsid has just made of us.
        ok &= !tty || libc::ioctl(0, libc::TIOCSCTTY, 0) != -1;
        if let Some(user) = user.filter(|_| ok) {
            step = Step::User;
            ok = become_user(user);
        }
        if ok {
            step = Step::Cwd;
            ok = libc::fchdir(cwd) != -1;
        }
        // Ours are all O_CLOEXEC; this is for those that somebody handed to the server (Linux 5.11, else ignored).
        libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        if ok {
            step = Step::Exec;
            try_all(argvs, env);
        }
        let told = [*libc::__errno_location(), step as i32];
        libc::write(failure, told.as_ptr().cast(), size_of_val(&told));
        libc::_exit(127)
    }
}

/// Takes on a user's rights, and gives up all others for good: execve(2) drops the capabilities of who is not root.
///
/// # Safety
/// Only in a process that is about to exec or to exit.
unsafe fn become_user(user: &User) -> bool {
    // SAFETY: bare system calls on what the caller keeps alive. Not libc's own functions: those change the ids of all
    // threads of a process (nptl(7)), and the child may share its memory with a parent that has some.
    unsafe {
        libc::syscall(libc::SYS_setgroups, user.groups.len(), user.groups.as_ptr()) == 0
            && libc::syscall(libc::SYS_setresgid, user.gid, user.gid, user.gid) == 0
            && libc::syscall(libc::SYS_setresuid, user.uid, user.uid, user.uid) == 0
    }
}

/// execve(2) with each command line until one succeeds, so it returns only with a failure. What is not there, may not
/// be executed or is no program leads to the next; the last one's failure stays in errno.
///
/// # Safety
/// Null-terminated arrays of pointers to live strings, `argvs` not empty inside.
unsafe fn try_all(argvs: &[Vec<*const c_char>], env: &[*const c_char]) {
    for argv in argvs {
        // SAFETY: the caller's promise.
        unsafe {
            libc::execve(argv[0], argv.as_ptr(), env.as_ptr());
            match *libc::__errno_location() {
                libc::ENOENT | libc::ENOTDIR | libc::EACCES | libc::ENOEXEC | libc::ELOOP => {}
                _ => return,
            }
        }
    }
}

/// Undoes what the Rust runtime and we did to signals: SIGPIPE is ignored by the runtime, and a blocked mask or an
/// ignored signal would be inherited through execve(2).
///
/// # Safety
/// Only in a process that is about to exec.
unsafe fn default_signals() {
    // SAFETY: plain system calls on local memory.
    unsafe {
        // By bare system calls: glibc's own signal(3) refuses its internal signals 32 and 33, which a parent may have
        // ignored. All zero is SIG_DFL in the kernel's struct on every architecture; 8 is the size of its mask.
        let default = [0u64; 8];
        for signal in 1..=64 {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), ptr::null_mut::<u8>(), 8usize);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
    }
}

/// Blocks all signals of this thread until dropped.
struct AllSignalsBlocked(libc::sigset_t);

impl AllSignalsBlocked {
    fn new() -> AllSignalsBlocked {
        // SAFETY: both sets are local memory of the right type; pthread_sigmask only changes this thread.
        unsafe {
            let (mut all, mut before): (libc::sigset_t, libc::sigset_t) =
                (std::mem::zeroed(), std::mem::zeroed());
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
            AllSignalsBlocked(before)
        }
    }
}

impl Drop for AllSignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: restores the mask that `new` saved.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, ptr::null_mut()) };
    }
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

/// Waits for a child through its pidfd; `wait`: until it has ended.
///
/// # Errors
/// When it has been waited for already.
pub fn reap(pidfd: BorrowedFd<'_>, wait: bool) -> io::Result<Option<Reaped>> {
    let options = libc::WEXITED | if wait { 0 } else { libc::WNOHANG };
    // SAFETY: all zero is a valid value of both structs; the kernel fills them in, and si_status is what waitid
    // sets for every child that it reports. The bare system call has a fifth argument that libc's wrapper lacks.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let mut usage: libc::rusage = std::mem::zeroed();
        let at = ptr::from_mut(&mut info);
        let fd = pidfd.as_raw_fd();
        while libc::syscall(libc::SYS_waitid, libc::P_PIDFD, fd, at, options, ptr::from_mut(&mut usage)) == -1
        {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        if info.si_pid() == 0 {
            return Ok(None);
        }
        let status = info.si_status();
        let micros = |time: libc::timeval| (time.tv_sec as u64) * 1_000_000 + time.tv_usec as u64;
        Ok(Some(Reaped {
            status: if info.si_code == libc::CLD_EXITED { Ok(status) } else { Err(status) },
            cpu_micros: micros(usage.ru_utime) + micros(usage.ru_stime),
            max_rss_bytes: usage.ru_maxrss as u64 * 1024,
        }))
    }
}

/// The largest resident set that this process ever had, in bytes.
pub fn own_max_rss_bytes() -> u64 {
    // SAFETY: the kernel fills in local memory of the right type.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage.ru_maxrss as u64 * 1024
    }
}

/// Which side of [`fork_single_threaded`] this is.
#[derive(Debug)]
pub enum Forked {
    /// The parent, with the child's pid.
    Parent(i32),
    /// The child.
    Child,
}

/// fork(2) for the agent, which has one thread: there the child may go on like any program.
///
/// # Errors
/// What fork(2) said; also when the process has more than one thread.
pub fn fork_single_threaded() -> io::Result<Forked> {
    // SAFETY: with a single thread no lock can be held by a thread that does not exist in the child. PID 1 of the
    // container starts none, and this is checked where it is cheap to check: in debug builds and tests.
    debug_assert!(std::fs::read_dir("/proc/self/task").map_or(true, |tasks| tasks.count() <= 1));
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(pid)),
    }
}

/// Turns this process into the first of `attempts` that can be executed; returns only when none can.
pub fn exec(attempts: &[Vec<CString>], env: &[CString], stdio: [BorrowedFd<'_>; 3]) -> io::Error {
    let argvs: Vec<_> = attempts.iter().map(|argv| pointers(argv)).collect();
    let env = pointers(env);
    // SAFETY: the pointer arrays are null-terminated and alive; dup2 and close_range concern only this process,
    // which is about to exec or to exit.
    unsafe {
        for (target, fd) in stdio.iter().enumerate() {
            if libc::dup2(fd.as_raw_fd(), target as c_int) == -1 {
                return io::Error::last_os_error();
            }
        }
        libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        default_signals();
        try_all(&argvs, &env);
    }
    io::Error::last_os_error()
}

/// Moves this process into new namespaces (unshare(2)).
///
/// # Errors
/// What unshare(2) said.
pub fn new_namespaces(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: without FILES every thread keeps its table of descriptors, which is what the caller would have to promise.
    unsafe { rustix::thread::unshare_unsafe(flags.difference(UnshareFlags::FILES)) }?;
    Ok(())
}

/// A process that only sleeps, in a user namespace of its own without any mapping yet: what names that namespace while
/// its mappings are written. It ends with the calling thread; the caller kills and reaps it.
///
/// # Errors
/// What clone3(2) said.
pub fn sleeper_in_user_namespace() -> io::Result<Spawned> {
    const CLONE_NEWUSER: u64 = 0x1000_0000;
    let mut pidfd: c_int = -1;
    let args = CloneArgs {
        flags: CLONE_PIDFD | CLONE_NEWUSER,
        pidfd: ptr::from_mut(&mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    let blocked = AllSignalsBlocked::new();
    // SAFETY: without CLONE_VM the child has its own copy of everything, and makes nothing but bare system calls in it; no
    // signal but SIGKILL reaches it. `args` is the kernel's layout and outlives the call.
    let pid = unsafe {
        let parent = libc::getpid();
        let result = libc::syscall(libc::SYS_clone3, ptr::from_ref(&args), size_of::<CloneArgs>());
        if result == 0 {
            libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
            // Otherwise the parent has ended before that, and nobody would.
            while libc::syscall(libc::SYS_getppid) == i64::from(parent) {
                libc::syscall(libc::SYS_ppoll, 0usize, 0, 0usize, 0usize, 0usize);
            }
            libc::_exit(0);
        }
        result
    };
    let error = io::Error::last_os_error();
    drop(blocked);
    if pid < 0 {
        return Err(error);
    }
    // SAFETY: clone3 succeeded with CLONE_PIDFD, so this is a fresh descriptor that nobody else owns.
    Ok(Spawned { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
}

/// Has a mount show its owners as the user namespace behind `userns` maps them (mount_setattr(2), Linux 5.12), and takes
/// writing away if `read_only`. The mount must not be attached anywhere yet.
///
/// # Errors
/// What mount_setattr(2) said: EINVAL where the file system cannot.
pub fn id_map(mount: BorrowedFd<'_>, userns: BorrowedFd<'_>, read_only: bool) -> io::Result<()> {
    set_attributes(
        mount,
        &libc::mount_attr {
            attr_set: libc::MOUNT_ATTR_IDMAP | if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 },
            attr_clr: 0,
            propagation: 0,
            userns_fd: userns.as_raw_fd() as u64,
        },
    )
}

/// Takes devices, set-user-id programs and, if wanted, writing away from a mount (mount_setattr(2)), and detaches it from
/// what happens at the place that it was cloned from.
///
/// # Errors
/// What mount_setattr(2) said.
pub fn restrict(mount: BorrowedFd<'_>, read_only: bool) -> io::Result<()> {
    let writing = if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
    let attr_set = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | writing;
    set_attributes(
        mount,
        &libc::mount_attr { attr_set, attr_clr: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 },
    )
}

fn set_attributes(mount: BorrowedFd<'_>, attributes: &libc::mount_attr) -> io::Result<()> {
    // SAFETY: an empty path with AT_EMPTY_PATH means the descriptor itself; the struct is the kernel's and alive, its
    // size is given.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads how the file system of `folder` keeps project quotas (`fs_quota_statv`, its version given), or writes the bounds
/// of the project `id` (`if_dqblk`) if `set`: quotactl_fd(2), Linux 5.14.
///
/// # Errors
/// What quotactl_fd(2) said.
pub fn project_quota(folder: BorrowedFd<'_>, set: bool, id: u32, data: &mut [u8; 256]) -> io::Result<()> {
    // Q_SETQUOTA or Q_XGETQSTATV, of PRJQUOTA.
    let command: u32 = if set { 0x80_0008 } else { 0x5808 } << 8 | 2;
    let (fd, data) = (folder.as_raw_fd(), data.as_mut_ptr());
    // SAFETY: `data` is larger than either struct, and the kernel copies no more than that.
    let done = unsafe { libc::syscall(libc::SYS_quotactl_fd, fd, command, id, data) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads, or writes if `set`, the `fsxattr` of a file (FS_IOC_FSGETXATTR and FS_IOC_FSSETXATTR).
///
/// # Errors
/// What ioctl(2) said.
pub fn extended_attributes(file: BorrowedFd<'_>, set: bool, data: &mut [u8; 28]) -> io::Result<()> {
    let request: libc::c_ulong = if set { 0x401c_5820 } else { 0x801c_581f };
    // SAFETY: both requests take a struct of exactly this size, which their numbers say as well.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), request as _, data.as_mut_ptr()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

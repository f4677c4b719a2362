//! The only file with `unsafe`. It starts processes in their own cgroups and processes that wait in the server's memory
//! for a command, replaces the calling process, and makes system calls for which rustix has no safe binding.
//!
//! **Invariant:** a child that shares its parent's memory (CLONE_VM) neither allocates nor touches libc's errno, which
//! belongs to the parent's thread. rustix's own system calls (its `linux_raw` backend) and [`syscall`] do neither.
#![allow(unsafe_code)]

use std::convert::Infallible;
use std::ffi::{CString, c_int, c_long, c_void};
use std::io;
use std::mem::size_of_val;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
use rustix::net::{SendFlags, send};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use rustix::thread::UnshareFlags;

use super::command_block::{Word, receive, receive_and_enter_groups, unpack};
use super::exec::{
    ALL_SIGNALS, CHILD_STACK, CLONE_CLEAR_SIGHAND, CLONE_INTO_CGROUP, ChildTask, CloneArgs, Cwd, ExecSpec,
    RawUser, Reaped, SLOT_KEPT_BYTES, SpawnError, Spawned, StartReport, StartStep, arrays, enter_group,
    open_procs_at, pointers, read_failure, signals_to_reset,
};
use crate::base::limits;

/// Makes the allocator return large blocks to the kernel when they are freed: by default, glibc keeps blocks up to the
/// size of the largest block freed so far (mallopt(3)).
pub fn return_large_blocks_to_kernel() {
    // SAFETY: the call only changes a parameter of the allocator.
    #[cfg(target_env = "gnu")]
    let _ = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 256 << 10) };
}

/// Starts a child that leads a new session, with default signal handling, no inherited descriptors except its three
/// streams, and no inherited environment.
///
/// Docker's default seccomp profile refuses clone3(2) without CAP_SYS_ADMIN (ENOSYS, in older versions EPERM). In this
/// case, clone(2) starts the child, which enters its cgroup itself before it executes a program. If the server is
/// killed before that, the child still holds the data folder's lock, so that no later server overlooks the child.
///
/// # Errors
/// The error of clone3(2), fchdir(2) or execve(2). No child remains in this case.
pub fn spawn(exec: &ExecSpec<'_>) -> Result<Spawned, SpawnError> {
    let (argvs, env) = (arrays(exec.attempts), pointers(exec.env));
    let (failure_read, failure_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;

    let mut pidfd: c_int = -1;
    let mut args = CloneArgs::for_child(CLONE_CLEAR_SIGHAND, &mut pidfd);
    if let Some(cgroup) = exec.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    let mut task = ChildTask {
        cwd: Cwd::Folder(exec.cwd),
        tty: exec.tty,
        user: exec.user.map(RawUser::from_user),
        failure: Some(failure_write.as_fd()),
        max_files: exec.max_files,
        v1_procs: exec.v1_procs,
        oom_score: exec.oom_score,
        session: true,
        ..ChildTask::new(&argvs, &env, exec.stdio.map(|fd| fd.as_raw_fd()))
    };
    extern "C" fn start(task: *const c_void) -> ! {
        // SAFETY: `task` comes from `spawn`, which sleeps (CLONE_VFORK) or has been copied until this process has
        // executed a program or exited. All pointers of `task` refer to vectors that `spawn` keeps.
        unsafe { become_or_exit(&*task.cast::<ChildTask<'_>>()) }
    }
    // On x86_64, the child borrows the server's memory, and this thread sleeps until the child executes its program, as
    // in posix_spawn(3): no memory is copied, however large the server is.
    let mut stack = vec![0u128; CHILD_STACK / size_of::<u128>()];
    if SHARED_MEMORY {
        args.flags |= (libc::CLONE_VM | libc::CLONE_VFORK) as u64;
        (args.stack, args.stack_size) = (stack.as_mut_ptr() as u64, size_of_val(&stack[..]) as u64);
    }
    // In the child, a signal handler of the server would write to the server's own self-pipe, so block all signals.
    let before = set_signal_mask(u64::MAX);
    let call = [ptr::from_ref(&args) as usize, size_of::<CloneArgs>(), 0, 0, 0];
    // SAFETY: `args` has the kernel's layout and outlives the call; the kernel writes the descriptor to `pidfd`;
    // signals are blocked; the stack and the task outlive the child's use of them.
    let mut pid = unsafe { clone(libc::SYS_clone3, call, start, ptr::from_ref(&task).cast()) };
    let procs;
    if matches!(pid, Err(Errno::NOSYS | Errno::PERM)) {
        procs = exec.cgroup.map(open_procs_at).transpose();
        // clone(2) has no CLONE_CLEAR_SIGHAND.
        task.signals = &ALL_SIGNALS;
        let call = args.for_clone();
        pid = procs.as_ref().map_err(|errno| *errno).and_then(|procs| {
            task.cgroup_procs = procs.as_ref();
            // SAFETY: the same as for the call above.
            unsafe { clone(libc::SYS_clone, call, start, ptr::from_ref(&task).cast()) }
        });
    }
    set_signal_mask(before);
    drop(stack);
    let pid = pid?;
    // SAFETY: the call succeeded with CLONE_PIDFD, so this is a new descriptor without another owner.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };

    drop(failure_write);
    match read_failure(&failure_read) {
        Some(failed) => reap(pidfd.as_fd(), true).map_or_else(|error| Err(error.into()), |_| Err(failed)),
        None => Ok(Spawned { pid, pidfd }),
    }
}

/// Whether children start in the server's memory. On other architectures, a child gets a copy, as after fork(2).
const SHARED_MEMORY: bool = cfg!(target_arch = "x86_64");

/// Makes a system call without libc's errno. Architectures other than x86_64 use libc: each child has its own errno.
///
/// # Safety
/// The caller must meet the requirements of the system call.
unsafe fn syscall(number: c_long, args: [usize; 5]) -> Result<usize, Errno> {
    #[cfg(target_arch = "x86_64")]
    {
        let result: isize;
        // SAFETY: `syscall` clobbers rcx and r11; the caller guarantees the call's effect on memory.
        unsafe {
            std::arch::asm!(
                "syscall",
                inlateout("rax") number as isize => result,
                in("rdi") args[0], in("rsi") args[1], in("rdx") args[2], in("r10") args[3], in("r8") args[4],
                lateout("rcx") _, lateout("r11") _,
                options(nostack),
            );
        }
        super::exec::result_or_errno(result)
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the caller guarantees the requirements of the call.
    match unsafe { libc::syscall(number, args[0], args[1], args[2], args[3], args[4]) } {
        -1 => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)),
        result => Ok(result as usize),
    }
}

/// Calls clone(2) or clone3(2), and calls `start(with)` in the child. The child uses the stack given in `args`, or, on
/// architectures other than x86_64, a copy of the parent's memory.
///
/// The arguments are valid for the call, and all signals are blocked. `start` does not allocate, touch errno or panic,
/// and the data that it uses outlives its use of the parent's memory.
/// outlives its use of the parent's memory.
unsafe fn clone(
    number: c_long,
    args: [usize; 5],
    start: extern "C" fn(*const c_void) -> !,
    with: *const c_void,
) -> Result<i32, Errno> {
    #[cfg(target_arch = "x86_64")]
    let result = {
        let result: isize;
        // SAFETY: in the parent, this is a plain system call (`syscall` clobbers rcx and r11; they are not `lateout`,
        // because the child still needs its inputs). The child returns on the top of its own stack, which is 16-byte
        // aligned as the end of a u128 is, and calls `start`, which never returns.
        unsafe {
            std::arch::asm!(
                "syscall",
                "test rax, rax",
                "jnz 2f",
                "xor ebp, ebp",
                "mov rdi, {with}",
                "call {start}",
                "ud2",
                "2:",
                with = in(reg) with,
                start = in(reg) start,
                inlateout("rax") number as isize => result,
                in("rdi") args[0], in("rsi") args[1], in("rdx") args[2], in("r10") args[3], in("r8") args[4],
                out("rcx") _,
                out("r11") _,
            );
        }
        super::exec::result_or_errno(result)?
    };
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the caller guarantees the requirements; without CLONE_VM, the child has its own copy of the memory.
    let result = match unsafe { syscall(number, args) }? {
        0 => start(with),
        pid => pid,
    };
    Ok(result as i32)
}

/// Executes the program of `task`, or reports the failure and exits.
///
/// # Safety
/// All pointers of `task` are valid and all arrays null-terminated; the caller is a child with a single thread.
unsafe fn become_or_exit(task: &ChildTask<'_>) -> ! {
    let mut step = StartStep::Exec;
    // SAFETY: the caller guarantees the requirements.
    let Err(errno) = unsafe { become_program(task, &mut step) };
    let told = StartReport::Failed(step, errno.raw_os_error()).to_bytes();
    if let Some(failure) = task.failure {
        // Not send(2), because `failure` may be a pipe. SIGPIPE would end this process, which exits anyway.
        let _ = rustix::io::write(failure, &told);
    }
    exit_now(127)
}

/// Calls exit_group(2). exit(3) would do further work that affects the process that owns the memory.
fn exit_now(code: usize) -> ! {
    loop {
        // SAFETY: the call takes no pointer and does not return.
        let _ = unsafe { syscall(libc::SYS_exit_group, [code, 0, 0, 0, 0]) };
    }
}

/// Resets these signals to their default actions and unblocks all signals.
fn unblock_signals(signals: &[i32]) {
    // Reset the handlers first: once signals are unblocked, no handler of the server may run in this process. In the
    // kernel's struct, all zeros mean SIG_DFL on every architecture; 8 is the size of the struct's mask.
    let default = [0u64; 8];
    for signal in signals {
        let call = [*signal as usize, default.as_ptr() as usize, 0, 8, 0];
        // SAFETY: the action is valid, and the call affects only this process.
        let _ = unsafe { syscall(libc::SYS_rt_sigaction, call) };
    }
    set_signal_mask(0);
}

/// Executes the program of `task`. Returns only if a step failed, and stores that step in `step`.
///
/// # Safety
/// The same as for [`become_or_exit`].
unsafe fn become_program(task: &ChildTask<'_>, step: &mut StartStep) -> Result<Infallible, Errno> {
    if let Some(soft) = task.max_files {
        let hard = getrlimit(Resource::Nofile).maximum;
        let current = Some(hard.map_or(soft, |hard| soft.min(hard)));
        let _ = setrlimit(Resource::Nofile, Rlimit { current, maximum: hard });
    }
    unblock_signals(task.signals);
    if task.session {
        rustix::process::setsid()?;
    }
    *step = StartStep::Group;
    task.cgroup_procs.into_iter().chain(task.v1_procs).try_for_each(enter_group)?;
    *step = StartStep::Exec;
    if let Some(score) = task.oom_score {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        if let Ok(own) = rustix::fs::open(c"/proc/self/oom_score_adj", flags, Mode::empty()) {
            let _ = rustix::io::write(&own, score.as_bytes());
        }
    }
    for (target, fd) in task.stdio.iter().enumerate() {
        if *fd == target as RawFd {
            // The descriptor may have close-on-exec set, and dup2(2) to itself would not clear it.
            // SAFETY: the call changes a flag of one of this process's own descriptors.
            unsafe { syscall(libc::SYS_fcntl, [target, libc::F_SETFD as usize, 0, 0, 0]) }?;
        } else {
            // SAFETY: the call replaces a descriptor of this process only.
            unsafe { syscall(libc::SYS_dup3, [*fd as usize, target, 0, 0, 0]) }?;
        }
    }
    if task.tty {
        // The call requires a session leader without a terminal. setsid(2) has just made this process one.
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
    }
    if let Some(RawUser { uid, gid, groups, count }) = task.user {
        *step = StartStep::User;
        let [uid, gid] = [uid as usize, gid as usize];
        // This change is permanent: execve(2) drops the capabilities of a user other than root. libc's functions are
        // not used, because they change the ids of all threads of a process (nptl(7)).
        // SAFETY: the caller guarantees that the groups are valid.
        unsafe {
            syscall(libc::SYS_setgroups, [count, groups as usize, 0, 0, 0])?;
            syscall(libc::SYS_setresgid, [gid, gid, gid, 0, 0])?;
            syscall(libc::SYS_setresuid, [uid, uid, uid, 0, 0])?;
        }
    }
    *step = StartStep::Cwd;
    match task.cwd {
        Cwd::Folder(folder) => rustix::process::fchdir(folder)?,
        // SAFETY: the caller guarantees that the string is valid.
        Cwd::Path(path) => _ = unsafe { syscall(libc::SYS_chdir, [path as usize, 0, 0, 0, 0]) }?,
        Cwd::Ours => {}
    }
    *step = StartStep::Exec;
    if let Some(socket) = task.accepted {
        send(socket, &StartReport::Accepted.to_bytes(), SendFlags::NOSIGNAL)?;
    }
    // The server's own descriptors are all O_CLOEXEC. This call is for inherited ones (Linux 5.11; optional).
    // SAFETY: the call changes flags of this process's own descriptors.
    let _ = unsafe {
        let flag = libc::CLOSE_RANGE_CLOEXEC as usize;
        syscall(libc::SYS_close_range, [3, u32::MAX as usize, flag, 0, 0])
    };
    // A path that is missing, not permitted or not a program leads to the next attempt.
    let (mut argv, mut error) = (task.argvs, Errno::NOENT);
    // SAFETY: the caller guarantees the arrays; the loop walks through them to the null pointer after the last one.
    unsafe {
        while !(*argv).is_null() {
            let call = [*argv as usize, argv as usize, task.env as usize, 0, 0];
            let Err(errno) = syscall(libc::SYS_execve, call) else { continue };
            error = errno;
            let next = [Errno::NOENT, Errno::NOTDIR, Errno::ACCESS, Errno::NOEXEC, Errno::LOOP];
            if !next.contains(&errno) {
                break;
            }
            while !(*argv).is_null() {
                argv = argv.add(1);
            }
            argv = argv.add(1);
        }
    }
    Err(error)
}

/// Slots in which child processes wait for commands, in the memory of the single-threaded process that starts them.
#[derive(Debug, Default)]
pub struct ZygoteSlots(Vec<*mut ZygoteSlot>);

struct ZygoteSlot {
    /// Not 0 while a process uses the slot: the kernel clears this field when the process ends (CLONE_CHILD_CLEARTID).
    in_use: AtomicI32,
    socket: RawFd,
    /// The memory of a stack, followed by the buffer for a command. Only touched pages take memory.
    mapping: *mut c_void,
}

const SLOT_WORDS: usize = limits::AGENT_MESSAGE_BYTES / size_of::<Word>();
const SLOT_BYTES: usize = CHILD_STACK + limits::AGENT_MESSAGE_BYTES;

impl ZygoteSlot {
    fn new() -> Result<*mut ZygoteSlot, Errno> {
        let (rights, private) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: this is a new mapping. The allocator is not used: it zeroes reused blocks, which touches all their
        // pages. A huge page would take 2 MiB for a command of 300 bytes.
        let mapping = unsafe {
            let mapping = mmap_anonymous(ptr::null_mut(), SLOT_BYTES, rights, private)?;
            let _ = madvise(mapping, SLOT_BYTES, Advice::LinuxNoHugepage);
            mapping
        };
        Ok(Box::into_raw(Box::new(ZygoteSlot { in_use: AtomicI32::new(0), socket: -1, mapping })))
    }

    /// # Safety
    /// The caller must not use another reference to the slot.
    unsafe fn message(&mut self) -> &mut [Word] {
        // SAFETY: the range is part of the slot's mapping, and any bytes are valid words.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.byte_add(CHILD_STACK).cast(), SLOT_WORDS) }
    }
}

impl ZygoteSlots {
    /// Starts a process that waits on `socket` for a [`super::command_block`] with three descriptors, sends each
    /// [`StartReport`] on this socket, and executes the command. Until then, the process shares the caller's memory, so
    /// no memory is copied. With `sibling`, the process becomes a child of the caller's parent.
    ///
    /// # Errors
    /// The error of clone(2) or mmap(2).
    pub fn spawn_waiting(&mut self, socket: BorrowedFd<'_>, sibling: bool) -> Result<i32, Errno> {
        // The signals are read before the clone, because the child uses the cached value.
        signals_to_reset();
        let slot = self.free_slot()?;
        extern "C" fn start(slot: *const c_void) -> ! {
            // SAFETY: `slot` comes from `spawn_waiting`, which touches only `in_use` until the kernel has cleared it.
            unsafe { wait_for_command(&mut *slot.cast_mut().cast::<ZygoteSlot>()) }
        }
        let mut flags = libc::SIGCHLD | if sibling { libc::CLONE_PARENT } else { 0 };
        let before = set_signal_mask(u64::MAX);
        // SAFETY: the slot is free, so no other process uses it.
        let pid = unsafe {
            (*slot).in_use.store(i32::from(SHARED_MEMORY), Ordering::Relaxed);
            (*slot).socket = socket.as_raw_fd();
            let (mut stack, mut tid) = (0, 0);
            if SHARED_MEMORY {
                flags |= libc::CLONE_VM | libc::CLONE_CHILD_CLEARTID;
                stack = (*slot).mapping.byte_add(CHILD_STACK) as usize;
                tid = (*slot).in_use.as_ptr() as usize;
            }
            let call = [flags as usize, stack, 0, tid, 0];
            let pid = clone(libc::SYS_clone, call, start, slot.cast_const().cast());
            if pid.is_err() {
                (*slot).in_use.store(0, Ordering::Relaxed);
            }
            pid
        };
        set_signal_mask(before);
        pid
    }

    /// Returns a slot that no process uses.
    fn free_slot(&mut self) -> Result<*mut ZygoteSlot, Errno> {
        // SAFETY: slots are never freed, and only `in_use` is read while a process may use a slot: Acquire makes the
        // process's use of the slot happen before a read of 0.
        let is_empty = |slot: &*mut ZygoteSlot| unsafe { (**slot).in_use.load(Ordering::Acquire) == 0 };
        let mut empty = self.0.iter().copied().filter(is_empty);
        for slot in empty.clone() {
            // SAFETY: no process uses the slot, and its content is no longer needed.
            unsafe {
                let message = (*slot).message();
                if u64::from_ne_bytes(message[0]) > SLOT_KEPT_BYTES {
                    madvise(message.as_mut_ptr().cast(), limits::AGENT_MESSAGE_BYTES, Advice::LinuxDontNeed)?;
                }
            }
        }
        if let Some(slot) = empty.next() {
            return Ok(slot);
        }
        let slot = ZygoteSlot::new()?;
        self.0.push(slot);
        Ok(slot)
    }
}

/// Receives a command in the waiting process, and executes it.
///
/// # Safety
/// Only this process may use the slot.
unsafe fn wait_for_command(slot: &mut ZygoteSlot) -> ! {
    // From here on, signals can end the process: a command that starts with a pending signal would never run.
    unblock_signals(signals_to_reset());
    // Close the sockets of other waiting processes.
    let number = slot.socket as usize;
    // SAFETY: these are this process's own descriptors. From here on, only the socket is used; it was passed to this
    // process and stays open.
    let socket = unsafe {
        let _ = syscall(libc::SYS_close_range, [3, number.saturating_sub(1), 0, 0, 0]);
        let _ = syscall(libc::SYS_close_range, [number + 1, u32::MAX as usize, 0, 0, 0]);
        BorrowedFd::borrow_raw(slot.socket)
    };
    // SAFETY: the caller guarantees that only this process uses the slot.
    let message = unsafe { slot.message() };
    if !receive_and_enter_groups(socket) {
        exit_now(0)
    }
    // The engine has disconnected or sent a malformed block: in both cases, it does not need this process.
    let Some((block, stdio)) = receive(socket, message) else { exit_now(0) };
    let Some(command) = unpack(block) else { exit_now(0) };
    let task = ChildTask {
        cwd: Cwd::Path(ptr::with_exposed_provenance(command.cwd)),
        tty: command.tty,
        user: command.user,
        accepted: Some(socket),
        failure: Some(socket),
        session: true,
        signals: &[],
        argvs: ptr::with_exposed_provenance(command.argvs),
        env: ptr::with_exposed_provenance(command.env),
        ..ChildTask::new(&[], &[], stdio)
    };
    // SAFETY: `unpack` has checked that all addresses and strings are in the block.
    unsafe { become_or_exit(&task) }
}

/// Calls fork(2) in a process with a single thread, so that the child may run any code. Returns the child's number, or
/// `None` in the child.
///
/// # Errors
/// The error of fork(2).
pub fn fork_single_threaded() -> io::Result<Option<i32>> {
    debug_assert!(std::fs::read_dir("/proc/self/task").map_or(true, |tasks| tasks.count() <= 1));
    // SAFETY: no lock can be held by a thread that does not exist in the child. The only caller, PID 1 of a container,
    // starts no threads, as the assertion above checks in tests.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(pid)),
    }
}

/// Blocks exactly the signals of `mask` for this thread. Returns the previous mask.
fn set_signal_mask(mask: u64) -> u64 {
    let mut before = 0;
    let (new, old) = (ptr::from_ref(&mask) as usize, ptr::from_mut(&mut before) as usize);
    // SAFETY: both are the kernel's sets of 8 bytes; the call affects only this thread and cannot fail.
    let _ = unsafe { syscall(libc::SYS_rt_sigprocmask, [libc::SIG_SETMASK as usize, new, old, 8, 0]) };
    before
}

/// Reaps a child by its pidfd; with `wait`, first waits until the child has ended.
///
/// # Errors
/// When the child was already reaped.
pub fn reap(pidfd: BorrowedFd<'_>, wait: bool) -> io::Result<Option<Reaped>> {
    let options = libc::WEXITED | if wait { 0 } else { libc::WNOHANG };
    // SAFETY: zero is valid for both structs, which the kernel fills in. libc's wrapper lacks the fifth argument.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let mut usage: libc::rusage = std::mem::zeroed();
        let (at, used) = (ptr::from_mut(&mut info) as usize, ptr::from_mut(&mut usage) as usize);
        let call = [libc::P_PIDFD as usize, pidfd.as_raw_fd() as usize, at, options as usize, used];
        while let Err(errno) = syscall(libc::SYS_waitid, call) {
            if errno != Errno::INTR {
                return Err(errno.into());
            }
        }
        if info.si_pid() == 0 {
            return Ok(None);
        }
        let micros = |time: libc::timeval| (time.tv_sec as u64) * 1_000_000 + time.tv_usec as u64;
        Ok(Some(Reaped {
            status: if info.si_code == libc::CLD_EXITED {
                Ok(info.si_status())
            } else {
                Err(info.si_status())
            },
            cpu_micros: micros(usage.ru_utime) + micros(usage.ru_stime),
            max_rss_bytes: usage.ru_maxrss as u64 * 1024,
        }))
    }
}

/// Replaces this process by the first of `attempts` that can be executed. Returns only if no attempt can be executed.
pub fn exec(attempts: &[Vec<CString>], env: &[CString], stdio: [BorrowedFd<'_>; 3]) -> io::Error {
    let (argvs, env) = (arrays(attempts), pointers(env));
    let task = ChildTask::new(&argvs, &env, stdio.map(|fd| fd.as_raw_fd()));
    // SAFETY: the arrays are null-terminated and alive; this process is about to execute a program or exit.
    let Err(errno) = unsafe { become_program(&task, &mut StartStep::Exec) };
    errno.into()
}

/// Returns the error if clone3(2) is forbidden. Otherwise the kernel returns EINVAL, because the arguments are missing.
pub fn clone3_refused() -> Option<Errno> {
    // SAFETY: with a size of 0 the kernel reads no struct and starts no process.
    unsafe { syscall(libc::SYS_clone3, [0; 5]) }.err().filter(|errno| *errno != Errno::INVAL)
}

/// Moves this process into new namespaces (unshare(2)).
///
/// # Errors
/// The error of unshare(2).
pub fn new_namespaces(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: the only requirement is that every thread keeps its table of descriptors, which it does without FILES.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags.difference(UnshareFlags::FILES)) }.map(drop)?)
}

/// Starts a process that only sleeps, in a new user namespace without mappings, so that the caller can write the
/// mappings. The process ends with the calling thread; the caller kills and reaps it.
///
/// # Errors
/// The error of clone(2).
pub fn sleeper_in_user_namespace() -> io::Result<Spawned> {
    let mut pidfd: c_int = -1;
    let flags = libc::CLONE_NEWUSER | libc::CLONE_PIDFD | libc::SIGCHLD;
    let parent = rustix::process::getpid().as_raw_pid() as usize;
    let before = set_signal_mask(u64::MAX);
    // SAFETY: without CLONE_VM, the child has its own copy of the memory and makes only raw system calls; no signal
    // except SIGKILL reaches the child. `pidfd` outlives the call.
    let pid = unsafe {
        let pid = syscall(libc::SYS_clone, [flags as usize, 0, ptr::from_mut(&mut pidfd) as usize, 0, 0]);
        if pid == Ok(0) {
            let _ =
                syscall(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as usize, libc::SIGKILL as usize, 0, 0, 0]);
            // If the parent ended before the prctl, the kernel does not send the signal.
            while syscall(libc::SYS_getppid, [0; 5]) == Ok(parent) {
                let _ = syscall(libc::SYS_ppoll, [0; 5]);
            }
            exit_now(0);
        }
        pid
    };
    set_signal_mask(before);
    // SAFETY: the call succeeded with CLONE_PIDFD, so this is a new descriptor without another owner.
    Ok(Spawned { pid: pid? as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
}

/// Returns the real-time signal with this number (signal(7)): 34 to 64, because glibc reserves 32 and 33.
pub fn real_time_signal(number: i32) -> Option<Signal> {
    // SAFETY: the number is not 0, and no libc reserves it.
    (34..=64).contains(&number).then(|| unsafe { Signal::from_raw_unchecked(number) })
}

/// Changes a mount (mount_setattr(2), Linux 5.12).
pub(crate) fn set_mount_attributes(mount: BorrowedFd<'_>, attributes: &libc::mount_attr) -> io::Result<()> {
    let (path, size) = (c"".as_ptr() as usize, size_of::<libc::mount_attr>());
    let (itself, attributes) = (libc::AT_EMPTY_PATH as usize, ptr::from_ref(attributes) as usize);
    // SAFETY: the empty path means the descriptor itself; the struct is alive, and has the kernel's layout and size.
    Ok(unsafe {
        syscall(libc::SYS_mount_setattr, [mount.as_raw_fd() as usize, path, itself, attributes, size])
    }
    .map(drop)?)
}

/// Reads the state of project quotas on the file system of `folder` (`fs_quota_statv`, with its version set). With
/// `set`, writes the limits of the project `id` (`if_dqblk`) instead: quotactl_fd(2), Linux 5.14.
///
/// # Errors
/// The error of quotactl_fd(2).
pub fn project_quota(folder: BorrowedFd<'_>, set: bool, id: u32, data: &mut [u8; 256]) -> io::Result<()> {
    // Q_SETQUOTA or Q_XGETQSTATV, with PRJQUOTA.
    let command: u32 = if set { 0x80_0008 } else { 0x5808 } << 8 | 2;
    let (fd, data) = (folder.as_raw_fd() as usize, data.as_mut_ptr() as usize);
    // SAFETY: `data` is larger than either struct, and the kernel copies no more than the struct.
    Ok(unsafe { syscall(libc::SYS_quotactl_fd, [fd, command as usize, id as usize, data, 0]) }.map(drop)?)
}

/// Reads the `fsxattr` of a file, or writes it with `set` (FS_IOC_FSGETXATTR and FS_IOC_FSSETXATTR).
pub(crate) fn extended_attributes(file: BorrowedFd<'_>, set: bool, data: &mut [u8; 28]) -> io::Result<()> {
    let request = if set { 0x401c_5820 } else { 0x801c_581f };
    let (fd, data) = (file.as_raw_fd() as usize, data.as_mut_ptr() as usize);
    // SAFETY: both requests take a struct of exactly this size, which is encoded in their numbers.
    Ok(unsafe { syscall(libc::SYS_ioctl, [fd, request, data, 0, 0]) }.map(drop)?)
}

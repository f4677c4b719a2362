//! The only file with `unsafe`: starting a process in a cgroup of its own, having one wait in our memory until it becomes a
//! command, replacing the calling process, and system calls without a safe binding. Everything else goes through rustix.
//!
//! What a child does while it has our memory (CLONE_VM) must not allocate and must not touch libc's errno, which lies in
//! the memory of the thread that started it: rustix's own system calls (its `linux_raw` backend) and [`bare`] do neither.
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

use super::exec::{
    ALL_SIGNALS, CLONE_CLEAR_SIGHAND, CLONE_INTO_CGROUP, ChildTask, CloneArgs, Cwd, ExecSpec, RawUser,
    Reaped, SpawnError, Spawned, StartReport, StartStep, arrays, enter_group, open_procs_at, pointers,
    read_failure, signals_to_reset,
};
use super::packed::{Word, receive, receive_and_enter_groups, unpack};
use crate::base::limits;

/// Gives large blocks back to the kernel when they are freed: by default glibc keeps blocks up to the size of the largest
/// one freed so far (mallopt(3)).
pub fn return_large_blocks_to_kernel() {
    // SAFETY: it changes one number of the allocator's.
    #[cfg(target_env = "gnu")]
    let _ = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 256 << 10) };
}

/// Starts a child as leader of a new session, with default signal handling, no inherited descriptor but its three
/// streams, and nothing inherited from our environment.
///
/// # Errors
/// What clone3(2), fchdir(2) or execve(2) said. No child is left behind then.
///
/// Docker's default seccomp profile answers clone3(2) with ENOSYS without CAP_SYS_ADMIN, older ones with EPERM. Then clone(2)
/// starts the child, which enters its cgroup itself, as a container's processes do: it executes nothing before it has. If
/// the server is killed meanwhile, the child still holds the data folder's lock, so no later server misses it.
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
        // SAFETY: `spawn` gave it, and sleeps (CLONE_VFORK) or has copied it until this has become a program or ended.
        // All its pointers are to vectors that `spawn` keeps.
        unsafe { become_or_exit(&*task.cast::<ChildTask<'_>>()) }
    }
    // On x86_64 the child borrows our memory and we sleep until it execs, as posix_spawn(3) does: nothing is copied,
    // however large the server is.
    let mut stack = vec![0u128; limits::CHILD_STACK / size_of::<u128>()];
    if SHARED_MEMORY {
        args.flags |= (libc::CLONE_VM | libc::CLONE_VFORK) as u64;
        (args.stack, args.stack_size) = (stack.as_mut_ptr() as u64, size_of_val(&stack[..]) as u64);
    }
    // A handler of ours must not run in the child, where it would write into our own self-pipe.
    let before = set_signal_mask(u64::MAX);
    let call = [ptr::from_ref(&args) as usize, size_of::<CloneArgs>(), 0, 0, 0];
    // SAFETY: `args` is the kernel's layout and outlives the call, `pidfd` is where the kernel writes the descriptor;
    // signals are blocked; stack and task outlive the child's use of them.
    let mut pid = unsafe { clone(libc::SYS_clone3, call, start, ptr::from_ref(&task).cast()) };
    let door;
    if matches!(pid, Err(Errno::NOSYS | Errno::PERM)) {
        door = exec.cgroup.map(open_procs_at).transpose();
        // clone(2) has no CLONE_CLEAR_SIGHAND.
        task.signals = &ALL_SIGNALS;
        let call = args.for_clone();
        pid = door.as_ref().map_err(|errno| *errno).and_then(|door| {
            task.cgroup_procs = door.as_ref();
            // SAFETY: as above.
            unsafe { clone(libc::SYS_clone, call, start, ptr::from_ref(&task).cast()) }
        });
    }
    set_signal_mask(before);
    drop(stack);
    let pid = pid?;
    // SAFETY: the call succeeded with CLONE_PIDFD, so this is a fresh descriptor that nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };

    drop(failure_write);
    match read_failure(&failure_read) {
        Some(failed) => reap(pidfd.as_fd(), true).map_or_else(|error| Err(error.into()), |_| Err(failed)),
        None => Ok(Spawned { pid, pidfd }),
    }
}

/// Whether children start in our memory. Elsewhere they get a copy, as after fork(2).
const SHARED_MEMORY: bool = cfg!(target_arch = "x86_64");

/// A system call past libc and its errno; elsewhere than on x86_64 through it, where a child's errno is its own.
///
/// # Safety
/// What the call itself asks for.
unsafe fn bare(number: c_long, args: [usize; 5]) -> Result<usize, Errno> {
    #[cfg(target_arch = "x86_64")]
    {
        let result: isize;
        // SAFETY: `syscall` clobbers rcx and r11; what the kernel does with memory is the caller's promise.
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
    // SAFETY: the caller's promise.
    match unsafe { libc::syscall(number, args[0], args[1], args[2], args[3], args[4]) } {
        -1 => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)),
        result => Ok(result as usize),
    }
}

/// clone(2) or clone3(2) with `start(with)` on the other side: on the stack that `args` name, or, elsewhere than on x86_64,
/// in a copy of our memory.
///
/// # Safety
/// Right arguments for that call; all signals blocked; `start` does not allocate, touch errno or panic; what it uses
/// outlives its use of our memory.
unsafe fn clone(
    number: c_long,
    args: [usize; 5],
    start: extern "C" fn(*const c_void) -> !,
    with: *const c_void,
) -> Result<i32, Errno> {
    #[cfg(target_arch = "x86_64")]
    let result = {
        let result: isize;
        // SAFETY: in the parent this is a plain system call (rcx and r11 are what `syscall` clobbers, and not `lateout`,
        // since the child still needs its inputs then). The child comes out of it on the top of its own stack, 16-byte
        // aligned as a u128's end is, and calls `start`, which never returns.
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
    // SAFETY: the caller's promise; without CLONE_VM the child has its own copy of everything.
    let result = match unsafe { bare(number, args) }? {
        0 => start(with),
        pid => pid,
    };
    Ok(result as i32)
}

/// Becomes what `task` says, or tells why not and ends.
///
/// # Safety
/// All of `task`'s pointers are valid, arrays of strings null-terminated; this process is a child of ours, alone in it.
unsafe fn become_or_exit(task: &ChildTask<'_>) -> ! {
    let mut step = StartStep::Exec;
    // SAFETY: the caller's promise.
    let Err(errno) = unsafe { become_program(task, &mut step) };
    let told = StartReport::Failed(step, errno.raw_os_error()).to_bytes();
    if let Some(failure) = task.failure {
        // Not send(2): it may be a pipe. SIGPIPE would end us, as we are about to do.
        let _ = rustix::io::write(failure, &told);
    }
    exit_now(127)
}

/// exit_group(2), without what exit(3) does for the process whose memory this is.
fn exit_now(code: usize) -> ! {
    loop {
        // SAFETY: it takes no memory and does not return.
        let _ = unsafe { bare(libc::SYS_exit_group, [code, 0, 0, 0, 0]) };
    }
}

/// Leaves these signals to the kernel, and blocks none.
fn let_signals_through(signals: &[i32]) {
    // Handlers first: once nothing is blocked, none of ours may run here. All zero is SIG_DFL in the kernel's struct on
    // every architecture; 8 is the size of its mask.
    let default = [0u64; 8];
    for signal in signals {
        let call = [*signal as usize, default.as_ptr() as usize, 0, 8, 0];
        // SAFETY: a valid action; it changes this process alone.
        let _ = unsafe { bare(libc::SYS_rt_sigaction, call) };
    }
    set_signal_mask(0);
}

/// Returns only with what could not be done at `step`.
///
/// # Safety
/// As above.
unsafe fn become_program(task: &ChildTask<'_>, step: &mut StartStep) -> Result<Infallible, Errno> {
    if let Some(soft) = task.max_files {
        let hard = getrlimit(Resource::Nofile).maximum;
        let current = Some(hard.map_or(soft, |hard| soft.min(hard)));
        let _ = setrlimit(Resource::Nofile, Rlimit { current, maximum: hard });
    }
    let_signals_through(task.signals);
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
            // Then it may still close at execve, and dup2(2) does nothing.
            // SAFETY: a flag of one of this process's own descriptors.
            unsafe { bare(libc::SYS_fcntl, [target, libc::F_SETFD as usize, 0, 0, 0]) }?;
        } else {
            // SAFETY: what was open there was this process's own to replace.
            unsafe { bare(libc::SYS_dup3, [*fd as usize, target, 0, 0, 0]) }?;
        }
    }
    if task.tty {
        // Only for the leader of a session without a terminal, which setsid has just made of us.
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
    }
    if let Some(RawUser { uid, gid, groups, count }) = task.user {
        *step = StartStep::User;
        let [uid, gid] = [uid as usize, gid as usize];
        // All other rights are given up for good: execve(2) drops the capabilities of who is not root. Not libc's own
        // functions: those change the ids of all threads of a process (nptl(7)).
        // SAFETY: the caller's promise about the groups.
        unsafe {
            bare(libc::SYS_setgroups, [count, groups as usize, 0, 0, 0])?;
            bare(libc::SYS_setresgid, [gid, gid, gid, 0, 0])?;
            bare(libc::SYS_setresuid, [uid, uid, uid, 0, 0])?;
        }
    }
    *step = StartStep::Cwd;
    match task.cwd {
        Cwd::Folder(folder) => rustix::process::fchdir(folder)?,
        // SAFETY: the caller's promise about the string.
        Cwd::Path(path) => _ = unsafe { bare(libc::SYS_chdir, [path as usize, 0, 0, 0, 0]) }?,
        Cwd::Ours => {}
    }
    *step = StartStep::Exec;
    if let Some(socket) = task.accepted {
        send(socket, &StartReport::Accepted.to_bytes(), SendFlags::NOSIGNAL)?;
    }
    // Ours are all O_CLOEXEC; this is for those that somebody handed to the server (Linux 5.11, else ignored).
    // SAFETY: flags of this process's own descriptors.
    let _ = unsafe {
        let flag = libc::CLOSE_RANGE_CLOEXEC as usize;
        bare(libc::SYS_close_range, [3, u32::MAX as usize, flag, 0, 0])
    };
    // What is not there, may not be executed or is no program leads to the next.
    let (mut argv, mut error) = (task.argvs, Errno::NOENT);
    // SAFETY: the caller's promise about the arrays: this walks from one to the next, to the null pointer behind the last.
    unsafe {
        while !(*argv).is_null() {
            let call = [*argv as usize, argv as usize, task.env as usize, 0, 0];
            let Err(errno) = bare(libc::SYS_execve, call) else { continue };
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

/// Where processes wait for commands in the memory of who starts them, which has one thread.
#[derive(Debug, Default)]
pub struct ZygoteSlots(Vec<*mut ZygoteSlot>);

struct ZygoteSlot {
    /// Not 0 while a process is in it: the kernel clears it when that leaves our memory (CLONE_CHILD_CLEARTID).
    taken: AtomicI32,
    socket: RawFd,
    /// A stack, and above it a place for a command. Only what is touched of a mapping is memory.
    mapping: *mut c_void,
}

const WORDS: usize = limits::AGENT_MESSAGE_BYTES / size_of::<Word>();
const ROOM: usize = limits::CHILD_STACK + limits::AGENT_MESSAGE_BYTES;

impl ZygoteSlot {
    fn new() -> Result<*mut ZygoteSlot, Errno> {
        let (rights, private) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: a mapping where nothing was. Not from the allocator, which would clear what it gives out again, and so
        // make all of it memory. A huge page would be 2 MiB of memory for a command of 300 bytes.
        let mapping = unsafe {
            let mapping = mmap_anonymous(ptr::null_mut(), ROOM, rights, private)?;
            let _ = madvise(mapping, ROOM, Advice::LinuxNoHugepage);
            mapping
        };
        Ok(Box::into_raw(Box::new(ZygoteSlot { taken: AtomicI32::new(0), socket: -1, mapping })))
    }

    /// # Safety
    /// Nobody else uses it.
    unsafe fn message(&mut self) -> &mut [Word] {
        // SAFETY: part of our mapping, and any bytes are words.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.byte_add(limits::CHILD_STACK).cast(), WORDS) }
    }
}

impl ZygoteSlots {
    /// Starts a process that waits on `socket` for a [`super::packed`] command with three descriptors and becomes it. It
    /// says [`StartReport`] there. Its memory is ours until then, so that nothing is copied for it, neither now nor when it
    /// leaves. `sibling`: its parent is ours.
    ///
    /// # Errors
    /// What clone(2) said, or that there is no memory.
    pub fn spawn_waiting(&mut self, socket: BorrowedFd<'_>, sibling: bool) -> Result<i32, Errno> {
        // Looked up here: the child only finds what is known already.
        signals_to_reset();
        let room = self.empty()?;
        extern "C" fn start(room: *const c_void) -> ! {
            // SAFETY: `let_wait` gave it, and touches nothing but `taken` until the kernel has cleared that.
            unsafe { wait_in(&mut *room.cast_mut().cast::<ZygoteSlot>()) }
        }
        let mut flags = libc::SIGCHLD | if sibling { libc::CLONE_PARENT } else { 0 };
        let before = set_signal_mask(u64::MAX);
        // SAFETY: the room is empty, so no other process uses it.
        let pid = unsafe {
            (*room).taken.store(i32::from(SHARED_MEMORY), Ordering::Relaxed);
            (*room).socket = socket.as_raw_fd();
            let (mut stack, mut tid) = (0, 0);
            if SHARED_MEMORY {
                flags |= libc::CLONE_VM | libc::CLONE_CHILD_CLEARTID;
                stack = (*room).mapping.byte_add(limits::CHILD_STACK) as usize;
                tid = (*room).taken.as_ptr() as usize;
            }
            let call = [flags as usize, stack, 0, tid, 0];
            let pid = clone(libc::SYS_clone, call, start, room.cast_const().cast());
            if pid.is_err() {
                (*room).taken.store(0, Ordering::Relaxed);
            }
            pid
        };
        set_signal_mask(before);
        pid
    }

    /// A room that nobody is in.
    fn empty(&mut self) -> Result<*mut ZygoteSlot, Errno> {
        // SAFETY: rooms are never freed, and only `taken` is looked at while somebody may be in one: with Acquire all that
        // was done in it is over when it is 0.
        let is_empty = |room: &*mut ZygoteSlot| unsafe { (**room).taken.load(Ordering::Acquire) == 0 };
        let mut empty = self.0.iter().copied().filter(is_empty);
        for room in empty.clone() {
            // SAFETY: nobody is in it, and what was in it is not needed any more.
            unsafe {
                let message = (*room).message();
                if u64::from_ne_bytes(message[0]) > limits::ROOM_KEPT {
                    madvise(message.as_mut_ptr().cast(), limits::AGENT_MESSAGE_BYTES, Advice::LinuxDontNeed)?;
                }
            }
        }
        if let Some(room) = empty.next() {
            return Ok(room);
        }
        let room = ZygoteSlot::new()?;
        self.0.push(room);
        Ok(room)
    }
}

/// The waiting process: receives its command and becomes it.
///
/// # Safety
/// The room is this process's alone.
unsafe fn wait_in(room: &mut ZygoteSlot) -> ! {
    // It may be ended as any other process: a command that gets one with a signal pending would never begin.
    let_signals_through(signals_to_reset());
    // What other commands are told through is none of its business.
    let number = room.socket as usize;
    // SAFETY: this process's own descriptors, of which nothing but the socket is used any more; that was handed to this
    // process and stays open.
    let socket = unsafe {
        let _ = bare(libc::SYS_close_range, [3, number.saturating_sub(1), 0, 0, 0]);
        let _ = bare(libc::SYS_close_range, [number + 1, u32::MAX as usize, 0, 0, 0]);
        BorrowedFd::borrow_raw(room.socket)
    };
    // SAFETY: the caller's promise.
    let message = unsafe { room.message() };
    if !receive_and_enter_groups(socket) {
        exit_now(0)
    }
    // Nothing came, or nothing of ours: the engine does not need this process after all.
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
    // SAFETY: `unpack` has checked that all of it lies in the block, and the strings end there.
    unsafe { become_or_exit(&task) }
}

/// fork(2) for a process with one thread: there the child may go on like any program. The child's number, `None` in it.
///
/// # Errors
/// What fork(2) said.
pub fn fork_single_threaded() -> io::Result<Option<i32>> {
    debug_assert!(std::fs::read_dir("/proc/self/task").map_or(true, |tasks| tasks.count() <= 1));
    // SAFETY: no lock can be held by a thread that does not exist in the child. PID 1 of a container, the only caller,
    // starts none, as the check above sees in tests.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(pid)),
    }
}

/// Blocks the signals of `mask` for this thread, and no others; those that were blocked before.
fn set_signal_mask(mask: u64) -> u64 {
    let mut before = 0;
    let (new, old) = (ptr::from_ref(&mask) as usize, ptr::from_mut(&mut before) as usize);
    // SAFETY: both are the kernel's sets of 8 bytes; it only changes this thread, and cannot fail.
    let _ = unsafe { bare(libc::SYS_rt_sigprocmask, [libc::SIG_SETMASK as usize, new, old, 8, 0]) };
    before
}

/// Waits for a child through its pidfd; `wait`: until it has ended.
///
/// # Errors
/// When it has been waited for already.
pub fn reap(pidfd: BorrowedFd<'_>, wait: bool) -> io::Result<Option<Reaped>> {
    let options = libc::WEXITED | if wait { 0 } else { libc::WNOHANG };
    // SAFETY: all zero is a valid value of both structs; the kernel fills them in, and si_status is what waitid
    // sets for every child that it reports. libc's wrapper lacks the fifth argument.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let mut usage: libc::rusage = std::mem::zeroed();
        let (at, used) = (ptr::from_mut(&mut info) as usize, ptr::from_mut(&mut usage) as usize);
        let call = [libc::P_PIDFD as usize, pidfd.as_raw_fd() as usize, at, options as usize, used];
        while let Err(errno) = bare(libc::SYS_waitid, call) {
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

/// Turns this process into the first of `attempts` that can be executed; returns only when none can.
pub fn exec(attempts: &[Vec<CString>], env: &[CString], stdio: [BorrowedFd<'_>; 3]) -> io::Error {
    let (argvs, env) = (arrays(attempts), pointers(env));
    let task = ChildTask::new(&argvs, &env, stdio.map(|fd| fd.as_raw_fd()));
    // SAFETY: the arrays are null-terminated and alive; what else it changes concerns only this process, which is about
    // to exec or to exit.
    let Err(errno) = unsafe { become_program(&task, &mut StartStep::Exec) };
    errno.into()
}

/// Why clone3(2) is refused, if it is: the kernel finds EINVAL where there are no arguments.
pub fn clone3_refused() -> Option<Errno> {
    // SAFETY: the kernel reads nothing of a struct of no size, and starts no process.
    unsafe { bare(libc::SYS_clone3, [0; 5]) }.err().filter(|errno| *errno != Errno::INVAL)
}

/// Moves this process into new namespaces (unshare(2)).
///
/// # Errors
/// What unshare(2) said.
pub fn new_namespaces(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: without FILES every thread keeps its table of descriptors, which is what the caller would have to promise.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags.difference(UnshareFlags::FILES)) }.map(drop)?)
}

/// A process that only sleeps, in a user namespace of its own without any mapping yet: what names that namespace while
/// its mappings are written. It ends with the calling thread; the caller kills and reaps it.
///
/// # Errors
/// What clone(2) said.
pub fn sleeper_in_user_namespace() -> io::Result<Spawned> {
    let mut pidfd: c_int = -1;
    let flags = libc::CLONE_NEWUSER | libc::CLONE_PIDFD | libc::SIGCHLD;
    let parent = rustix::process::getpid().as_raw_pid() as usize;
    let before = set_signal_mask(u64::MAX);
    // SAFETY: without CLONE_VM the child has its own copy of everything, and makes nothing but bare system calls in it; no
    // signal but SIGKILL reaches it. `pidfd` outlives the call.
    let pid = unsafe {
        let pid = bare(libc::SYS_clone, [flags as usize, 0, ptr::from_mut(&mut pidfd) as usize, 0, 0]);
        if pid == Ok(0) {
            let _ = bare(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as usize, libc::SIGKILL as usize, 0, 0, 0]);
            // Otherwise the parent has ended before that, and nobody would.
            while bare(libc::SYS_getppid, [0; 5]) == Ok(parent) {
                let _ = bare(libc::SYS_ppoll, [0; 5]);
            }
            exit_now(0);
        }
        pid
    };
    set_signal_mask(before);
    // SAFETY: the call succeeded with CLONE_PIDFD, so this is a fresh descriptor that nobody else owns.
    Ok(Spawned { pid: pid? as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
}

/// The real-time signal of this number (signal(7)): 34 to 64, since glibc keeps 32 and 33 for itself.
pub fn real_time_signal(number: i32) -> Option<Signal> {
    // SAFETY: not 0, and no number that a libc has reserved.
    (34..=64).contains(&number).then(|| unsafe { Signal::from_raw_unchecked(number) })
}

/// Changes a mount (mount_setattr(2), Linux 5.12).
pub(crate) fn set_mount_attributes(mount: BorrowedFd<'_>, attributes: &libc::mount_attr) -> io::Result<()> {
    let (path, size) = (c"".as_ptr() as usize, size_of::<libc::mount_attr>());
    let (itself, attributes) = (libc::AT_EMPTY_PATH as usize, ptr::from_ref(attributes) as usize);
    // SAFETY: an empty path with AT_EMPTY_PATH means the descriptor itself; the struct is the kernel's and alive, its
    // size is given.
    Ok(unsafe { bare(libc::SYS_mount_setattr, [mount.as_raw_fd() as usize, path, itself, attributes, size]) }
        .map(drop)?)
}

/// Reads how the file system of `folder` keeps project quotas (`fs_quota_statv`, its version given), or writes the bounds
/// of the project `id` (`if_dqblk`) if `set`: quotactl_fd(2), Linux 5.14.
///
/// # Errors
/// What quotactl_fd(2) said.
pub fn project_quota(folder: BorrowedFd<'_>, set: bool, id: u32, data: &mut [u8; 256]) -> io::Result<()> {
    // Q_SETQUOTA or Q_XGETQSTATV, of PRJQUOTA.
    let command: u32 = if set { 0x80_0008 } else { 0x5808 } << 8 | 2;
    let (fd, data) = (folder.as_raw_fd() as usize, data.as_mut_ptr() as usize);
    // SAFETY: `data` is larger than either struct, and the kernel copies no more than that.
    Ok(unsafe { bare(libc::SYS_quotactl_fd, [fd, command as usize, id as usize, data, 0]) }.map(drop)?)
}

/// Reads, or writes if `set`, the `fsxattr` of a file (FS_IOC_FSGETXATTR and FS_IOC_FSSETXATTR).
pub(crate) fn extended_attributes(file: BorrowedFd<'_>, set: bool, data: &mut [u8; 28]) -> io::Result<()> {
    let request = if set { 0x401c_5820 } else { 0x801c_581f };
    let (fd, data) = (file.as_raw_fd() as usize, data.as_mut_ptr() as usize);
    // SAFETY: both requests take a struct of exactly this size, which their numbers say as well.
    Ok(unsafe { bare(libc::SYS_ioctl, [fd, request, data, 0, 0]) }.map(drop)?)
}

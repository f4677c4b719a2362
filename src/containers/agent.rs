//! PID 1 of every container: this same binary, bind-mounted read-only. Descriptor 0 is a listening Unix socket whose
//! path lies outside the container, so nothing inside can take its place. A child of it, the zygote, takes the
//! connections: for each it starts a process that waits for a command and becomes it. These share the zygote's memory, and
//! PID 1's they do not: whatever ends one of them, the kernel's want of memory too, PID 1 lives on and starts another
//! zygote. It is the parent of them all: when one ends, it says how. As PID 1 it also reaps orphans; signals from inside
//! cannot end or stop it, and its end is the container's end (pid_namespaces(7)).
//!
//! **Invariant:** no process in the container can trace the agent or change its memory, root included. Its program may be
//! executed but not read there, and its owner has no number there; therefore the kernel gives the agent's memory to the
//! user namespace outside (`would_dump` in fs/exec.c), and tracing takes CAP_SYS_PTRACE in that one (ptrace(2)). The same
//! makes the agent's own files in /proc read-only for itself: the engine writes its `oom_score_adj`.
//!
//! One thread in each. No deadlines: they wait for the engine, which has them all.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::exit;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, accept_with, socketpair};
use rustix::process::{
    DumpableBehavior, Pid, Signal, WaitOptions, kill_process, set_dumpable_behavior, wait,
};

use super::protocol::{AgentMessage, receive_process, send_message, send_process, send_ready};
use crate::base::{At, Error, Result};
use crate::proc::spawn::dev_null;
use crate::proc::sys::{ZygoteSlots, fork_single_threaded};

/// The lowest descriptor for what we keep: 0 to 2 are for the commands.
const FIRST_OWN: i32 = 3;

/// Runs the agent. Called before anything else in `main`.
pub fn main() -> ! {
    match serve() {
        Ok(()) => exit(0),
        Err(error) => {
            // nspawn hands this on to the engine, which puts it into its own error.
            eprintln!("berth agent: {error}");
            exit(1)
        }
    }
}

fn serve() -> Result<()> {
    // Who waits for a command shares the zygote's memory: a core dump of one would end all (before Linux 5.16), and whoever
    // it becomes is not to look into it meanwhile (ptrace(2)).
    set_dumpable_behavior(DumpableBehavior::NotDumpable).at("set up", "the agent")?;
    let at = "the agent's socket";
    let listener = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), FIRST_OWN).at("take over", at)?;
    let null = dev_null()?;
    rustix::stdio::dup2_stdin(&null).at("close", "stdin")?;
    let (child_ended, handler_end) = UnixStream::pair().at("open", "a socket pair")?;
    child_ended.set_nonblocking(true).at("prepare", "a socket pair")?;
    signal_hook::low_level::pipe::register(libc::SIGCHLD, handler_end).at("handle", "SIGCHLD")?;
    // From here on nothing is printed: the workload could otherwise fill the engine's pipe through /proc/1/fd.
    rustix::stdio::dup2_stdout(&null).at("close", "stdout")?;
    rustix::stdio::dup2_stderr(&null).at("close", "stderr")?;
    drop(null);

    let mut zygote = None;
    let mut processes: HashMap<Pid, OwnedFd> = HashMap::new();
    loop {
        let Zygote { pid, socket: told } = match zygote.take() {
            Some(zygote) => zygote,
            None => match start_zygote(&listener) {
                Ok(zygote) => zygote,
                // Out of processes or memory, which something in here may give back.
                Err(_) => {
                    std::thread::sleep(Duration::from_millis(20));
                    reap(&mut processes, None);
                    continue;
                }
            },
        };
        let mut fds = [PollFd::new(&told, PollFlags::IN), PollFd::new(&child_ended, PollFlags::IN)];
        let _ = poll(&mut fds, None);
        while rustix::io::read(&child_ended, &mut [0u8; 64]).is_ok_and(|n| n > 0) {}
        announce_processes(&told, &mut processes);
        if reap(&mut processes, Some(pid)) {
            zygote = Some(Zygote { pid, socket: told });
        } else {
            // What it told of last waits all the same.
            announce_processes(&told, &mut processes);
        }
    }
}

/// Tells the engine of processes that wait. Only then they can become something, so the end of what ran is always the end
/// of one that is known here.
fn announce_processes(told: &OwnedFd, processes: &mut HashMap<Pid, OwnedFd>) {
    while let Some((pid, socket)) = receive_process(told) {
        // It may have been killed since, or the engine be gone; then nobody waits for anything.
        if send_ready(&socket, pid).is_ok() {
            processes.insert(pid, socket);
        }
    }
}

/// Who starts processes.
struct Zygote {
    pid: Pid,
    /// It tells of each on this socket.
    socket: OwnedFd,
}

/// Takes every ended child, ours or inherited, and reports those that were commands. Whether the zygote lives.
fn reap(processes: &mut HashMap<Pid, OwnedFd>, zygote: Option<Pid>) -> bool {
    let mut lives = true;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
        if Some(pid) == zygote {
            if status.stopped() {
                // Somebody inside has stopped all that it can; who is needed to go on is not among that.
                let _ = kill_process(pid, Signal::CONT);
            } else {
                lives = false;
            }
            continue;
        }
        let answer = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => AgentMessage::Exited { code },
            (None, Some(signal)) => AgentMessage::Killed { signal },
            (None, None) => continue,
        };
        if let Some(socket) = processes.remove(&pid) {
            // An engine that is gone, or that does not read, must not hold up the others.
            let _ = send_message(&socket, answer);
        }
    }
    lives
}

fn start_zygote(listener: &OwnedFd) -> Result<Zygote> {
    let at = "the zygote";
    let (told, tells) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .at("open", "a socket pair")?;
    match fork_single_threaded().at("start", at)? {
        Some(pid) => {
            let pid = Pid::from_raw(pid).ok_or_else(|| Error::internal("a process without a number"))?;
            Ok(Zygote { pid, socket: told })
        }
        None => {
            drop(told);
            run_zygote(listener, &tells)
        }
    }
}

/// What the zygote does.
fn run_zygote(listener: &OwnedFd, tells: &OwnedFd) -> ! {
    let mut rooms = ZygoteSlots::default();
    loop {
        let Ok(socket) = accept_with(listener, SocketFlags::CLOEXEC) else {
            // Out of descriptors: some are given back when processes end.
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        // Out of processes or memory: the engine sees the connection close.
        let Some(pid) = rooms.spawn_waiting(socket.as_fd(), true).ok().and_then(Pid::from_raw) else {
            continue;
        };
        if send_process(tells, pid, socket.as_fd()).is_err() {
            exit(0);
        }
    }
}

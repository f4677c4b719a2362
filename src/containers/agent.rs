//! The agent, PID 1 of every container. It is this same binary, bind-mounted read-only. Its descriptor 0 is a
//! listening Unix socket; the socket's path is outside the container, so no process inside can replace it.
//!
//! A child of the agent, the zygote, accepts the engine's connections. For each one it starts a process that waits for
//! a command and then executes it. These processes share the zygote's memory but not PID 1's: if one of them is killed,
//! for example by the OOM killer, PID 1 survives and starts another zygote. PID 1 is the parent of all of them and
//! reports their exit status. It also reaps orphans. Signals from inside the container cannot stop or kill it, and when
//! it exits the container ends (pid_namespaces(7)).
//!
//! **Invariant:** no process in the container, root included, can trace the agent or change its memory. Its program is
//! executable but not readable in the container, and its owner has no ID there; therefore the kernel assigns the
//! agent's memory to the user namespace outside (`would_dump` in fs/exec.c), and tracing requires CAP_SYS_PTRACE in
//! that namespace (ptrace(2)). For the same reason the agent cannot write its own files in /proc, so the engine writes
//! its `oom_score_adj`.
//!
//! Each process has one thread. There are no deadlines here: the engine enforces them.

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

/// The lowest descriptor for the agent's own use; descriptors 0 to 2 are passed on to commands.
const FIRST_OWN: i32 = 3;

/// Runs the agent. `main` calls this before it does anything else.
pub fn main() -> ! {
    match serve() {
        Ok(()) => exit(0),
        Err(error) => {
            // nspawn passes this line on to the engine, which includes it in its error message.
            eprintln!("berth agent: {error}");
            exit(1)
        }
    }
}

fn serve() -> Result<()> {
    // A waiting process shares the zygote's memory. Before Linux 5.16, a core dump of one waiting process would
    // kill all of them. Also, the command that a waiting process executes must not read that memory (ptrace(2)).
    set_dumpable_behavior(DumpableBehavior::NotDumpable).at("set up", "the agent")?;
    let at = "the agent's socket";
    let listener = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), FIRST_OWN).at("take over", at)?;
    let null = dev_null()?;
    rustix::stdio::dup2_stdin(&null).at("close", "stdin")?;
    let (child_ended, handler_end) = UnixStream::pair().at("open", "a socket pair")?;
    child_ended.set_nonblocking(true).at("prepare", "a socket pair")?;
    signal_hook::low_level::pipe::register(libc::SIGCHLD, handler_end).at("handle", "SIGCHLD")?;
    // Print nothing from here on: a process in the container could fill the engine's pipe through /proc/1/fd.
    rustix::stdio::dup2_stdout(&null).at("close", "stdout")?;
    rustix::stdio::dup2_stderr(&null).at("close", "stderr")?;
    drop(null);

    let mut zygote = None;
    let mut processes: HashMap<Pid, OwnedFd> = HashMap::new();
    loop {
        let Zygote { pid, socket: reports } = match zygote.take() {
            Some(zygote) => zygote,
            None => match start_zygote(&listener) {
                Ok(zygote) => zygote,
                // The container has no free process slot or memory; its processes may free some.
                Err(_) => {
                    std::thread::sleep(Duration::from_millis(20));
                    reap(&mut processes, None);
                    continue;
                }
            },
        };
        let mut fds = [PollFd::new(&reports, PollFlags::IN), PollFd::new(&child_ended, PollFlags::IN)];
        let _ = poll(&mut fds, None);
        while rustix::io::read(&child_ended, &mut [0u8; 64]).is_ok_and(|n| n > 0) {}
        announce_processes(&reports, &mut processes);
        if reap(&mut processes, Some(pid)) {
            zygote = Some(Zygote { pid, socket: reports });
        } else {
            // Handle the processes that the zygote reported before it died.
            announce_processes(&reports, &mut processes);
        }
    }
}

/// Reports waiting processes to the engine. A process can execute a command only after this report, so `processes`
/// contains every command when the agent reaps it.
fn announce_processes(reports: &OwnedFd, processes: &mut HashMap<Pid, OwnedFd>) {
    while let Some((pid, socket)) = receive_process(reports) {
        // The process may have been killed meanwhile, or the engine may have disconnected; then no command
        // follows.
        if send_ready(&socket, pid).is_ok() {
            processes.insert(pid, socket);
        }
    }
}

/// The child of the agent that starts the waiting processes.
struct Zygote {
    pid: Pid,
    /// The agent receives the PID and socket of each new process here.
    socket: OwnedFd,
}

/// Reaps every ended child of the agent, including adopted orphans, and reports the exit status of commands.
/// Returns whether the zygote is alive.
fn reap(processes: &mut HashMap<Pid, OwnedFd>, zygote: Option<Pid>) -> bool {
    let mut lives = true;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
        if Some(pid) == zygote {
            if status.stopped() {
                // A process in the container stopped every process that it could signal. The zygote must keep
                // running.
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
            // An engine that has disconnected or does not read must not block the other commands.
            let _ = send_message(&socket, answer);
        }
    }
    lives
}

fn start_zygote(listener: &OwnedFd) -> Result<Zygote> {
    let at = "the zygote";
    let (reports, reporter) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .at("open", "a socket pair")?;
    match fork_single_threaded().at("start", at)? {
        Some(pid) => {
            let pid =
                Pid::from_raw(pid).ok_or_else(|| Error::internal("fork returned an invalid process ID"))?;
            Ok(Zygote { pid, socket: reports })
        }
        None => {
            drop(reports);
            run_zygote(listener, &reporter)
        }
    }
}

/// Runs the zygote: starts a waiting process for each connection.
fn run_zygote(listener: &OwnedFd, reporter: &OwnedFd) -> ! {
    let mut rooms = ZygoteSlots::default();
    loop {
        let Ok(socket) = accept_with(listener, SocketFlags::CLOEXEC) else {
            // The zygote has no free descriptor; ending processes free some.
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        // The container has no free process slot or memory: the engine sees the connection close.
        let Some(pid) = rooms.spawn_waiting(socket.as_fd(), true).ok().and_then(Pid::from_raw) else {
            continue;
        };
        if send_process(reporter, pid, socket.as_fd()).is_err() {
            exit(0);
        }
    }
}

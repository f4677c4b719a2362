//! PID 1 of every container: this same binary, bind-mounted read-only. Descriptor 0 is a listening Unix socket whose
//! path lies outside the container, so nothing inside can take its place. For each connection it starts a process that
//! waits for a command and becomes it; when that process ends, the agent says how. As PID 1 it also reaps orphans;
//! signals from inside cannot end or stop it, and its end is the container's end (pid_namespaces(7)).
//!
//! One thread. No deadlines: it waits for the engine, which has them all.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::exit;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{SocketFlags, accept_with};
use rustix::process::{DumpableBehavior, Pid, WaitOptions, set_dumpable_behavior, wait};

use super::protocol::{Answer, send_answer, send_ready};
use crate::base::Result;
use crate::proc::spawn::dev_null;
use crate::proc::sys::Rooms;

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
    use crate::base::At;
    // Who waits for a command shares our memory: a core dump of it would end us as well (before Linux 5.16), and whoever it
    // becomes is not to look into it meanwhile (ptrace(2)).
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

    let mut rooms = Rooms::default();
    let mut processes: HashMap<Pid, OwnedFd> = HashMap::new();
    loop {
        let mut fds = [PollFd::new(&listener, PollFlags::IN), PollFd::new(&child_ended, PollFlags::IN)];
        if poll(&mut fds, None).is_err() {
            continue;
        }
        let (connection, ended) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
        if ended {
            while rustix::io::read(&child_ended, &mut [0u8; 64]).is_ok_and(|n| n > 0) {}
            reap(&mut processes);
        }
        if connection {
            let Ok(socket) = accept_with(&listener, SocketFlags::CLOEXEC) else { continue };
            // Out of processes: the engine sees the connection close.
            let Some(pid) = rooms.let_wait(socket.as_fd()).ok().and_then(Pid::from_raw) else { continue };
            // An engine that is gone by now is gone for the process as well, and it ends.
            let _ = send_ready(&socket, pid);
            processes.insert(pid, socket);
        }
    }
}

/// Takes every ended child, ours or inherited, and reports ours.
fn reap(processes: &mut HashMap<Pid, OwnedFd>) {
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        let Some(socket) = processes.remove(&pid) else { continue };
        let answer = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Answer::Exited { code },
            (None, Some(signal)) => Answer::Killed { signal },
            (None, None) => continue,
        };
        // An engine that is gone, or that does not read, must not hold up the others.
        let _ = send_answer(&socket, answer);
    }
}

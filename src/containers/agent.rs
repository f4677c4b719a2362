//! PID 1 of every container: this same binary, bind-mounted read-only. Descriptor 0 is a listening Unix socket whose
//! path lies outside the container, so nothing inside can take its place. For each connection it forks a process that
//! waits for a command and becomes it; when that process ends, the agent says how. As PID 1 it also reaps orphans;
//! signals from inside cannot end or stop it, and its end is the container's end (pid_namespaces(7)).
//!
//! One thread. No deadlines: it waits for the engine, which has them all.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::exit;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{SocketFlags, accept_with};
use rustix::process::{Gid, Pid, Uid, WaitOptions, wait};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::protocol::{Answer, Start, receive_request, send_message};
use crate::base::{Result, limits};
use crate::proc::spawn::dev_null;
use crate::proc::sys::{self, Forked};

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
            match sys::fork_single_threaded() {
                Ok(Forked::Child) => {
                    drop(processes);
                    drop(listener);
                    become_command(&socket)
                }
                Ok(Forked::Parent(pid)) => {
                    if let Some(pid) = Pid::from_raw(pid) {
                        processes.insert(pid, socket);
                    }
                }
                // Out of processes: the engine sees the connection close.
                Err(_) => drop(socket),
            }
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
        let _ = send_message(&socket, &answer, &[], Instant::now());
    }
}

/// The forked process: greets, waits for its command, becomes it.
fn become_command(socket: &OwnedFd) -> ! {
    let patience = Duration::from_secs(60);
    if send_message(socket, &Answer::Ready, &[], Instant::now() + patience).is_err() {
        exit(0);
    }
    let Some((start, fds)) = receive_request::<Start>(socket, limits::AGENT_MESSAGE_BYTES) else { exit(0) };
    let c_strings = |texts: Vec<String>| -> Vec<CString> {
        texts.into_iter().filter_map(|text| CString::new(text).ok()).collect()
    };
    let attempts: Vec<Vec<CString>> = start.attempts.into_iter().map(c_strings).collect();
    let env = c_strings(start.env);
    let fail = |answer: Answer| -> ! {
        let _ = send_message(socket, &answer, &[], Instant::now() + patience);
        exit(127)
    };
    let Ok([stdin, stdout, stderr]) = <[OwnedFd; 3]>::try_from(fds) else {
        fail(Answer::NoExec { errno: libc::EBADF })
    };
    let _ = rustix::process::setsid();
    if start.tty {
        if let Err(errno) = rustix::process::ioctl_tiocsctty(&stdin) {
            fail(Answer::NoExec { errno: errno.raw_os_error() });
        }
    }
    if let Some(user) = &start.user {
        // This process has one thread, so its ids are the process's.
        let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        let became = set_thread_groups(&groups)
            .and_then(|()| set_thread_res_gid(gid, gid, gid))
            .and_then(|()| set_thread_res_uid(uid, uid, uid));
        if let Err(errno) = became {
            fail(Answer::NoUser { errno: errno.raw_os_error() });
        }
    }
    if let Err(errno) = rustix::process::chdir(start.cwd.as_str()) {
        fail(Answer::NoCwd { errno: errno.raw_os_error() });
    }
    if send_message(socket, &Answer::Accepted, &[], Instant::now() + patience).is_err() {
        exit(0);
    }
    let error = sys::exec(&attempts, &env, [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]);
    fail(Answer::NoExec { errno: error.raw_os_error().unwrap_or(libc::EIO) })
}

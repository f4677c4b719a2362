//! A process in a container that will execute a command. The agent starts the process, which joins its own cgroup
//! and then waits for its command. Only [`PendingProcess::wait_until_ready`] blocks; other callers poll the
//! process's socket.
//!
//! The process joins its cgroup itself, through descriptors that the engine sends. No process is ever moved by its PID,
//! because the PID of a process that ended may already belong to another process of the host. The kernel attaches
//! a PID to the first message; the engine checks that PID through a pidfd before and after the process joins its
//! cgroup.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::agent_socket;
use super::protocol::{self, MessageReader, agent_timeout, container_stopped};
use super::running::{SpareProcess, has_ended};
use crate::base::{At, Result};
use crate::proc::Group;
use crate::proc::spawn::expose_other_to_oom;

/// A process that is not ready for a command yet.
#[derive(Debug)]
pub(super) struct PendingProcess {
    socket: OwnedFd,
    pub(super) deadline: Instant,
    messages: MessageReader,
    joining: Option<JoiningProcess>,
}

#[derive(Debug)]
struct JoiningProcess {
    pid: i32,
    pidfd: OwnedFd,
    group: Group,
}

impl PendingProcess {
    /// Requests a process from the agent whose socket is in `runtime`.
    pub(super) fn request(runtime: &OwnedFd, deadline: Instant) -> Result<PendingProcess> {
        Ok(PendingProcess {
            socket: agent_socket::connect_to_agent(runtime)?,
            deadline,
            messages: MessageReader::default(),
            joining: None,
        })
    }

    /// Handles received messages and returns whether the process is ready. `group` creates the process's cgroup;
    /// `is_inside` returns whether a PID belongs to the container.
    ///
    /// # Errors
    /// `ContainerStopped` when the process or its container has ended.
    pub(super) fn advance(
        &mut self,
        is_inside: &dyn Fn(i32) -> bool,
        group: impl FnOnce() -> Result<Group>,
    ) -> Result<bool> {
        match &self.joining {
            None => {
                let Some(pid) = protocol::receive_ready(&self.socket)? else { return Ok(false) };
                let pidfd = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
                let pidfd = pidfd.ok_or_else(container_stopped)?;
                let inside = is_inside(pid);
                let alive = || !has_ended(pidfd.as_fd());
                if !inside || !alive() {
                    return Err(container_stopped());
                }
                expose_other_to_oom(pid, alive);
                let group = group()?;
                protocol::send_cgroups(&self.socket, &group.procs_files()?)?;
                // Another process inside may have stopped the new one.
                let _ = pidfd_send_signal(&pidfd, Signal::CONT);
                self.joining = Some(JoiningProcess { pid, pidfd, group });
                Ok(false)
            }
            Some(JoiningProcess { pid, pidfd, group }) => {
                if !protocol::receive_entered(&self.socket, &mut self.messages)? {
                    return Ok(false);
                }
                // Check in this order: while the process is alive, its PID cannot belong to another process.
                let entered = group.contains(*pid);
                if !entered || has_ended(pidfd.as_fd()) {
                    return Err(container_stopped());
                }
                Ok(true)
            }
        }
    }

    /// Returns the waiting process after [`PendingProcess::advance`] returned `true`.
    pub(super) fn into_spare(self) -> Option<SpareProcess> {
        let JoiningProcess { pid, pidfd, group } = self.joining?;
        Some(SpareProcess { socket: self.socket, pid, pidfd, group })
    }

    /// Blocks until the process is ready.
    ///
    /// # Errors
    /// The errors of [`PendingProcess::advance`]; `ContainerSilent` when no message arrives before the deadline.
    pub(super) fn wait_until_ready(
        mut self,
        is_inside: &dyn Fn(i32) -> bool,
        group: impl FnOnce() -> Result<Group>,
    ) -> Result<SpareProcess> {
        let mut group = Some(group);
        loop {
            self.wait()?;
            let made = || group.take().map_or_else(|| Err(container_stopped()), |group| group());
            if self.advance(is_inside, made)? {
                return self.into_spare().ok_or_else(container_stopped);
            }
        }
    }

    fn wait(&self) -> Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let timeout = poll_timeout(left);
        let mut fds = [PollFd::from_borrowed_fd(self.as_fd(), PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => Err(agent_timeout()),
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).at("poll", "the agent's socket"),
        }
    }
}

pub(super) fn poll_timeout(left: Duration) -> Timespec {
    Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
}

impl AsFd for PendingProcess {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

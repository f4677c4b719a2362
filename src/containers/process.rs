//! A command in a container. Messages from the agent about the command are untrusted; to end the command, the
//! engine kills its cgroup from outside.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::process::{Signal, pidfd_send_signal};

use super::activity::BusyGuard;
use super::intruders;
use super::protocol::{AgentMessage, MessageReader};
use super::running::{AGENTS, RunningContainer};
use crate::base::{At, Code, Error, Result};
use crate::proc::exec::{StartReport, StartStep};
use crate::proc::{Cgroups, Exit, Group, HandoverGuard, Process, ProcessHandover, SignalHandle, Usage};

/// A command in a container.
pub(super) struct ContainerProcess {
    /// The container; `None` if another berth process manages it.
    pub(super) running: Option<Arc<RunningContainer>>,
    /// Cgroup of the container's agent.
    pub(super) agents: Arc<Group>,
    pub(super) socket: OwnedFd,
    pub(super) signal_handle: SignalHandle,
    pub(super) messages: MessageReader,
    pub(super) exit: Option<Exit>,
    pub(super) cwd: String,
    /// While this guard exists, the container is not stopped as idle.
    pub(super) busy: Option<BusyGuard>,
    pub(super) handed_over: bool,
    /// Whether an out-of-memory kill has been recorded for the container.
    pub(super) oom_reported: Cell<bool>,
}

/// Takes over a command whose container another berth process started.
///
/// # Errors
/// When the command's cgroup cannot be opened.
pub fn resume(handed: ProcessHandover, cgroups: &Cgroups) -> Result<Box<dyn Process>> {
    let ProcessHandover { pid, pidfd, socket, read, group } = handed;
    let container = group.split('/').next().unwrap_or_default();
    let agents = cgroups.group(&format!("{container}/{AGENTS}"))?;
    agents.disown();
    let group = cgroups.group_again(&group)?;
    let signal_handle = SignalHandle { pid, pidfd: Arc::new(pidfd), group: Arc::new(group) };
    let answers = MessageReader::with_bytes(read);
    let cwd = String::new();
    Ok(Box::new(ContainerProcess {
        running: None,
        agents: Arc::new(agents),
        socket,
        signal_handle,
        messages: answers,
        exit: None,
        cwd,
        busy: None,
        handed_over: false,
        oom_reported: Cell::default(),
    }))
}

impl Process for ContainerProcess {
    fn exit_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn try_exit(&mut self) -> Result<Option<Exit>> {
        if self.exit.is_some() {
            return Ok(self.exit);
        }
        match self.messages.try_next(&self.socket)? {
            None | Some(AgentMessage::Ready | AgentMessage::FromProcess(StartReport::Accepted)) => {}
            Some(AgentMessage::Exited { code }) => self.exit = Some(Exit::Code(code & 0xff)),
            Some(AgentMessage::Killed { signal }) => self.exit = Some(Exit::Signal(signal)),
            Some(answer) => return Err(launch_error(&answer, &self.cwd)),
        }
        Ok(self.exit)
    }

    fn terminate(&mut self) {
        self.signal_handle.group.signal(Signal::TERM, Some(self.signal_handle.pid));
    }

    fn kill(&mut self) {
        let _ = pidfd_send_signal(&*self.signal_handle.pidfd, Signal::KILL);
        if let Err(error) = self.signal_handle.group.kill(Some(self.signal_handle.pid)) {
            // If the run cannot be killed, stop the whole container: no process of a run may survive.
            log::error!("A run could not be killed, so its container is stopped: {error}");
            if let Some(running) = &self.running {
                running.end();
            }
        }
        intruders::kill_intruders(&self.agents);
        self.exit.get_or_insert(Exit::Signal(libc::SIGKILL));
    }

    fn signal_handle(&self) -> Option<SignalHandle> {
        Some(self.signal_handle.clone())
    }

    fn usage(&self) -> Usage {
        let usage = self.signal_handle.group.usage();
        self.report_oom(usage.oom_killed);
        usage
    }

    fn oom_killed(&self) -> Option<bool> {
        let killed = self.signal_handle.group.oom_killed();
        self.report_oom(killed);
        killed
    }

    fn hand_over(&mut self) -> Result<Option<(ProcessHandover, Box<dyn HandoverGuard>)>> {
        let Some(running) = self.running.clone() else { return Ok(None) };
        let handed = ProcessHandover {
            pid: self.signal_handle.pid,
            pidfd: self.signal_handle.pidfd.try_clone().at("duplicate", "a process")?,
            socket: self.socket.try_clone().at("duplicate", "the agent's socket")?,
            read: self.messages.unread().to_vec(),
            group: self.signal_handle.group.path().to_owned(),
        };
        self.handed_over = true;
        self.signal_handle.group.disown();
        Ok(Some((handed, Box::new(ContainerHold { running, _busy: self.busy.take() }))))
    }
}

/// Keeps a container from being stopped as idle while another process watches a command in it.
pub(super) struct ContainerHold {
    pub(super) running: Arc<RunningContainer>,
    pub(super) _busy: Option<BusyGuard>,
}

impl HandoverGuard for ContainerHold {
    fn ended(&self, usage: &Usage) {
        if usage.oom_killed == Some(true) {
            self.running.oom_killed.store(true, Ordering::Relaxed);
        }
    }

    fn give_up(&self) {
        self.running.end();
    }
}

impl Drop for ContainerProcess {
    fn drop(&mut self) {
        if self.handed_over {
            return;
        }
        if matches!(self.try_exit(), Ok(None)) {
            self.kill();
        }
        // The cgroup's OOM count is lost when the cgroup is removed, so read it now.
        if !self.oom_reported.get() {
            self.oom_killed();
        }
        // Other holders of the cgroup may still send signals to its processes.
        let group = std::mem::replace(&mut self.signal_handle.group, Arc::new(Group::placeholder()));
        if let Some((running, group)) = self.running.as_ref().zip(Arc::into_inner(group)) {
            running.add_spare_group(group);
        }
    }
}

impl ContainerProcess {
    fn report_oom(&self, oom_killed: Option<bool>) {
        self.oom_reported.set(true);
        if let Some(running) = self.running.as_ref().filter(|_| oom_killed == Some(true)) {
            running.oom_killed.store(true, Ordering::Relaxed);
        }
    }
}

/// Converts a message from the agent into the error of a command that did not run.
pub(super) fn launch_error(answer: &AgentMessage, cwd: &str) -> Error {
    let reason = |errno: &i32| std::io::Error::from_raw_os_error(*errno);
    match answer {
        AgentMessage::FromProcess(StartReport::Failed(StartStep::Cwd, errno)) => Error::new(
            Code::InvalidCwd,
            format!("The working directory {cwd} cannot be entered in the container: {}", reason(errno)),
        ),
        AgentMessage::FromProcess(StartReport::Failed(StartStep::User, errno)) => Error::new(
            Code::InvalidUser,
            format!("The command cannot switch to that user in the container: {}", reason(errno)),
        ),
        AgentMessage::FromProcess(StartReport::Failed(StartStep::Exec, errno)) => Error::new(
            Code::InvalidCommand,
            format!("The container cannot run the command: {}", reason(errno)),
        ),
        other => Error::internal(format!("Unexpected message from an agent: {other:?}")),
    }
}

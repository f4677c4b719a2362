//! A command in a container, as whoever started it sees it. What the agent says of it is untrusted; its end is made sure
//! of from outside.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::process::{Signal, pidfd_send_signal};

use super::intruders;
use super::load::Busy;
use super::protocol::{AgentMessage, MessageReader};
use super::running::{AGENTS, RunningContainer};
use crate::base::{At, Code, Error, Result};
use crate::proc::exec::{StartReport, StartStep};
use crate::proc::{Cgroups, Exit, Group, HandoverGuard, Process, ProcessHandover, SignalHandle, Usage};

/// A command in a container.
pub(super) struct ContainerProcess {
    /// `None` where its container is another process's.
    pub(super) running: Option<Arc<RunningContainer>>,
    /// The group of the container's agent.
    pub(super) agents: Arc<Group>,
    pub(super) socket: OwnedFd,
    pub(super) reach: SignalHandle,
    pub(super) messages: MessageReader,
    pub(super) exit: Option<Exit>,
    pub(super) cwd: String,
    /// As long as it is there, the container is not idle.
    pub(super) busy: Option<Busy>,
    pub(super) handed_over: bool,
    /// Its container knows whether memory ran out.
    pub(super) oom_reported: Cell<bool>,
}

/// A command in a container that another process of ours has started.
///
/// # Errors
/// When its group cannot be opened.
pub fn resume(handed: ProcessHandover, cgroups: &Cgroups) -> Result<Box<dyn Process>> {
    let ProcessHandover { pid, pidfd, socket, read, group } = handed;
    let container = group.split('/').next().unwrap_or_default();
    let agents = cgroups.group(&format!("{container}/{AGENTS}"))?;
    agents.disown();
    let group = cgroups.group_again(&group)?;
    let reach = SignalHandle { pid, pidfd: Arc::new(pidfd), group: Arc::new(group) };
    let answers = MessageReader::with_bytes(read);
    let cwd = String::new();
    Ok(Box::new(ContainerProcess {
        running: None,
        agents: Arc::new(agents),
        socket,
        reach,
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
        self.reach.group.signal(Signal::TERM, Some(self.reach.pid));
    }

    fn kill(&mut self) {
        let _ = pidfd_send_signal(&*self.reach.pidfd, Signal::KILL);
        if let Err(error) = self.reach.group.kill(Some(self.reach.pid)) {
            // Nothing of a run may live on: then nothing of its container does.
            log::error!("a run could not be ended, so its container is: {error}");
            if let Some(running) = &self.running {
                running.end();
            }
        }
        intruders::kill_intruders(&self.agents);
        self.exit.get_or_insert(Exit::Signal(libc::SIGKILL));
    }

    fn signal_handle(&self) -> Option<SignalHandle> {
        Some(self.reach.clone())
    }

    fn usage(&self) -> Usage {
        let usage = self.reach.group.usage();
        self.report_oom(usage.oom_killed);
        usage
    }

    fn oom_killed(&self) -> Option<bool> {
        let killed = self.reach.group.oom_killed();
        self.report_oom(killed);
        killed
    }

    fn hand_over(&mut self) -> Result<Option<(ProcessHandover, Box<dyn HandoverGuard>)>> {
        let Some(running) = self.running.clone() else { return Ok(None) };
        let handed = ProcessHandover {
            pid: self.reach.pid,
            pidfd: self.reach.pidfd.try_clone().at("duplicate", "a process")?,
            socket: self.socket.try_clone().at("duplicate", "the agent's socket")?,
            read: self.messages.unread().to_vec(),
            group: self.reach.group.path().to_owned(),
        };
        self.handed_over = true;
        self.reach.group.disown();
        Ok(Some((handed, Box::new(ContainerHold { running, _busy: self.busy.take() }))))
    }
}

/// A container in which something runs that is watched elsewhere.
pub(super) struct ContainerHold {
    pub(super) running: Arc<RunningContainer>,
    pub(super) _busy: Option<Busy>,
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
        // Its group's account goes with it.
        if !self.oom_reported.get() {
            self.oom_killed();
        }
        // Whoever else has the group may still signal it.
        let group = std::mem::replace(&mut self.reach.group, Arc::new(Group::placeholder()));
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

/// What an answer says that is no status: the command has not run.
pub(super) fn launch_error(answer: &AgentMessage, cwd: &str) -> Error {
    let reason = |errno: &i32| std::io::Error::from_raw_os_error(*errno);
    match answer {
        AgentMessage::FromProcess(StartReport::Failed(StartStep::Cwd, errno)) => Error::new(
            Code::InvalidCwd,
            format!("The working directory {cwd} cannot be entered in the container: {}", reason(errno)),
        ),
        AgentMessage::FromProcess(StartReport::Failed(StartStep::User, errno)) => Error::new(
            Code::InvalidUser,
            format!("The command cannot become that user in the container: {}", reason(errno)),
        ),
        AgentMessage::FromProcess(StartReport::Failed(StartStep::Exec, errno)) => {
            Error::new(Code::InvalidCommand, format!("The container cannot run it: {}", reason(errno)))
        }
        other => Error::internal(format!("unexpected answer of an agent: {other:?}")),
    }
}

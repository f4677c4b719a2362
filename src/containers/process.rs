//! A command in a container, as whoever started it sees it. What the agent says of it is untrusted; its end is made sure
//! of from outside.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::process::{Signal, pidfd_send_signal};

use super::intruders;
use super::load::Busy;
use super::protocol::{Answer, Answers};
use super::running::{AGENTS, Running};
use crate::base::{At, Code, Error, Result};
use crate::proc::exec::{Step, Told};
use crate::proc::{Cgroups, Exit, Group, Handed, Hold, Process, Reach, Usage};

/// A command in a container.
pub(super) struct ContainerProcess {
    /// `None` where its container is another process's.
    pub(super) running: Option<Arc<Running>>,
    /// The group of the container's agent.
    pub(super) agents: Arc<Group>,
    pub(super) socket: OwnedFd,
    pub(super) reach: Reach,
    pub(super) answers: Answers,
    pub(super) exit: Option<Exit>,
    pub(super) cwd: String,
    /// As long as it is there, the container is not idle.
    pub(super) busy: Option<Busy>,
    pub(super) handed: bool,
    /// Its container knows whether memory ran out.
    pub(super) told: Cell<bool>,
}

/// A command in a container that another process of ours has started.
///
/// # Errors
/// When its group cannot be opened.
pub fn resume(handed: Handed, cgroups: &Cgroups) -> Result<Box<dyn Process>> {
    let Handed { pid, pidfd, socket, read, group } = handed;
    let container = group.split('/').next().unwrap_or_default();
    let agents = cgroups.group(&format!("{container}/{AGENTS}"))?;
    agents.let_go();
    let group = cgroups.group_again(&group)?;
    let reach = Reach { pid, pidfd: Arc::new(pidfd), group: Arc::new(group) };
    let answers = Answers::after(read);
    let cwd = String::new();
    Ok(Box::new(ContainerProcess {
        running: None,
        agents: Arc::new(agents),
        socket,
        reach,
        answers,
        exit: None,
        cwd,
        busy: None,
        handed: false,
        told: Cell::default(),
    }))
}

impl Process for ContainerProcess {
    fn done_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn try_exit(&mut self) -> Result<Option<Exit>> {
        if self.exit.is_some() {
            return Ok(self.exit);
        }
        match self.answers.next(&self.socket)? {
            None | Some(Answer::Ready | Answer::Told(Told::Accepted)) => {}
            Some(Answer::Exited { code }) => self.exit = Some(Exit::Code(code & 0xff)),
            Some(Answer::Killed { signal }) => self.exit = Some(Exit::Signal(signal)),
            Some(answer) => return Err(refused(&answer, &self.cwd)),
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
        intruders::end(&self.agents);
        self.exit.get_or_insert(Exit::Signal(libc::SIGKILL));
    }

    fn reach(&self) -> Option<Reach> {
        Some(self.reach.clone())
    }

    fn usage(&self) -> Usage {
        let usage = self.reach.group.usage();
        self.tell(usage.oom_killed);
        usage
    }

    fn oom_killed(&self) -> Option<bool> {
        let killed = self.reach.group.oom_killed();
        self.tell(killed);
        killed
    }

    fn hand_over(&mut self) -> Result<Option<(Handed, Box<dyn Hold>)>> {
        let Some(running) = self.running.clone() else { return Ok(None) };
        let handed = Handed {
            pid: self.reach.pid,
            pidfd: self.reach.pidfd.try_clone().at("duplicate", "a process")?,
            socket: self.socket.try_clone().at("duplicate", "the agent's socket")?,
            read: self.answers.rest().to_vec(),
            group: self.reach.group.path().to_owned(),
        };
        self.handed = true;
        self.reach.group.let_go();
        Ok(Some((handed, Box::new(Held { running, _busy: self.busy.take() }))))
    }
}

/// A container in which something runs that is watched elsewhere.
pub(super) struct Held {
    pub(super) running: Arc<Running>,
    pub(super) _busy: Option<Busy>,
}

impl Hold for Held {
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
        if self.handed {
            return;
        }
        if matches!(self.try_exit(), Ok(None)) {
            self.kill();
        }
        // Its group's account goes with it.
        if !self.told.get() {
            self.oom_killed();
        }
        // Whoever else has the group may still signal it.
        let group = std::mem::replace(&mut self.reach.group, Arc::new(Group::of_nobody()));
        if let Some((running, group)) = self.running.as_ref().zip(Arc::into_inner(group)) {
            running.keep_group(group);
        }
    }
}

impl ContainerProcess {
    fn tell(&self, oom_killed: Option<bool>) {
        self.told.set(true);
        if let Some(running) = self.running.as_ref().filter(|_| oom_killed == Some(true)) {
            running.oom_killed.store(true, Ordering::Relaxed);
        }
    }
}

/// What an answer says that is no status: the command has not run.
pub(super) fn refused(answer: &Answer, cwd: &str) -> Error {
    let reason = |errno: &i32| std::io::Error::from_raw_os_error(*errno);
    match answer {
        Answer::Told(Told::Failed(Step::Cwd, errno)) => Error::new(
            Code::InvalidCwd,
            format!("The working directory {cwd} cannot be entered in the container: {}", reason(errno)),
        ),
        Answer::Told(Told::Failed(Step::User, errno)) => Error::new(
            Code::InvalidUser,
            format!("The command cannot become that user in the container: {}", reason(errno)),
        ),
        Answer::Told(Told::Failed(Step::Exec, errno)) => {
            Error::new(Code::InvalidCommand, format!("The container cannot run it: {}", reason(errno)))
        }
        other => Error::internal(format!("unexpected answer of an agent: {other:?}")),
    }
}

//! A container that runs: nspawn, the agent, the group of everything in it, and what waits for commands.
//!
//! Threads: `container-NAME` waits for nspawn's end and then ends whatever is left. Locks: `spares`, `groups` and `owner`, leaves.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, pidfd_send_signal};

use super::network::LinkLease;
use super::state::{ContainerRecord, ProcStat};
use crate::base::thread::{JoinOnDrop, lock, spawn};
use crate::base::{Result, limits};
use crate::proc::{Cancel, Child, Group, Process as _};
use crate::roots::RootHandle;

/// The group of nspawn and the agent, in the container's.
pub(super) const AGENTS: &str = "machine";

/// What runs.
#[derive(Debug)]
pub(super) struct RunningContainer {
    pub(super) record: ContainerRecord,
    /// Taken over from an earlier server.
    pub(super) adopted: bool,
    /// The workspace's folder.
    pub(super) runtime: OwnedFd,
    pub(super) group: Group,
    /// That of nspawn and the agent.
    pub(super) agents: Arc<Group>,
    /// The first uid of the container on the host.
    pub(super) uid_base: u32,
    /// Its files, put together.
    pub(super) _root: Option<RootHandle>,
    /// The namespace that its processes have their numbers in.
    pub(super) pids: Option<(u64, u64)>,
    /// PID 1 of the container.
    pub(super) init: OwnedFd,
    /// nspawn's and its own.
    pub(super) stats: [ProcStat; 2],
    pub(super) spares: Mutex<Vec<SpareProcess>>,
    /// Groups of commands that have ended, for others.
    pub(super) spare_groups: Mutex<Vec<Group>>,
    /// Something in it was killed for want of memory: v1 counts that for the innermost group alone.
    pub(super) oom_killed: AtomicBool,
    pub(super) monitor: NspawnMonitor,
}

/// A process in the container that waits for its command, in a group of its own.
#[derive(Debug)]
pub(super) struct SpareProcess {
    pub(super) socket: OwnedFd,
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) group: Group,
}

/// nspawn's process.
#[derive(Debug)]
pub(super) enum NspawnProcess {
    /// Started by us.
    Ours(Child),
    /// Started by an earlier server.
    Adopted(OwnedFd),
}

/// The thread that waits for nspawn.
#[derive(Debug)]
pub(super) struct NspawnMonitor {
    stop: Cancel,
    /// It goes on without us.
    let_go: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
    thread: Mutex<Option<JoinOnDrop>>,
}

impl NspawnMonitor {
    /// Waits for `leader` on a thread of its own. `all`: everything in the container; `runtime`: where its state lies;
    /// `lease`: its private network.
    pub(super) fn start(
        name: &str,
        leader: NspawnProcess,
        all: Group,
        runtime: PathBuf,
        lease: Option<LinkLease>,
    ) -> Result<NspawnMonitor> {
        let stop = Cancel::new()?;
        let (let_go, ended) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let thread = {
            let (stop, let_go, ended) = (stop.clone(), let_go.clone(), ended.clone());
            spawn(format!("container-{name}"), limits::STACK, move || {
                leader.wait(&stop);
                if let_go.load(Ordering::Acquire) {
                    leader.leak();
                    if let Some(lease) = lease {
                        lease.detach();
                    }
                    return;
                }
                leader.kill();
                // nspawn may have been killed alone: what it leaves is nobody's, and whoever waits for it must hear.
                if let Err(error) = all.kill(None) {
                    log::error!("container: {error}");
                }
                drop(lease);
                ContainerRecord::remove(&runtime);
                ended.store(true, Ordering::Release);
            })?
        };
        Ok(NspawnMonitor { stop, let_go, ended, thread: Mutex::new(Some(thread)) })
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Ends nspawn and everything in the container, and returns when it is over.
    pub(super) fn end(&self) {
        self.stop.cancel();
        // Under the lock: a second one who wants the end waits for it as well.
        lock(&self.thread).take();
    }

    fn detach(&self) {
        self.let_go.store(true, Ordering::Release);
        self.end();
    }
}

impl Drop for NspawnMonitor {
    fn drop(&mut self) {
        self.end();
    }
}

impl RunningContainer {
    /// Whether it has not ended.
    pub(super) fn is_alive(&self) -> bool {
        !self.monitor.has_ended() && !has_ended(self.init.as_fd())
    }

    /// Whether `pid` is one of its processes, as the kernel says. Its namespace is found quicker than its group.
    pub(super) fn contains(&self, pid: i32) -> bool {
        match self.pids {
            Some(pids) => pid_namespace(pid) == Some(pids),
            None => self.group.contains(pid),
        }
    }

    /// Whether more processes should wait in it.
    pub(super) fn needs_spare(&self) -> bool {
        lock(&self.spares).len() < limits::SPARE_PROCESSES && !self.monitor.has_ended()
    }

    /// Takes a process that waits for a command.
    pub(super) fn add_spare(&self, spare: SpareProcess) {
        lock(&self.spares).push(spare);
    }

    /// Takes the group of a command that has ended.
    pub(super) fn add_spare_group(&self, mut group: Group) {
        if !self.monitor.has_ended() && lock(&self.spare_groups).len() < limits::SPARE_GROUPS && group.reuse()
        {
            lock(&self.spare_groups).push(group);
        }
    }

    /// Whether it should still get commands: one that is being killed would take them with it.
    pub(super) fn accepts_commands(&self) -> bool {
        self.is_alive() && !self.stats.iter().any(ProcStat::is_being_killed)
    }

    /// Ends everything in it and returns when it is over.
    pub(super) fn end(&self) {
        let _ = pidfd_send_signal(&self.init, Signal::KILL);
        if let Err(error) = self.group.kill(None) {
            log::error!("container: {error}");
        }
        lock(&self.spares).clear();
        lock(&self.spare_groups).clear();
        self.monitor.end();
        // A command that is cut short has us still, while the next start makes groups of these names.
        self.group.remove();
    }

    /// Leaves it running for the next server.
    pub(super) fn detach(&self) {
        lock(&self.spares).clear();
        lock(&self.spare_groups).clear();
        self.monitor.detach();
    }
}

impl NspawnProcess {
    /// Until it has ended, or `stop`. A container has no deadline of its own.
    fn wait(&self, stop: &Cancel) {
        let process = match self {
            NspawnProcess::Ours(child) => child.exit_fd(),
            NspawnProcess::Adopted(pidfd) => pidfd.as_fd(),
        };
        let wanted = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        while matches!(poll(&mut [wanted(process), wanted(stop.as_fd())], None), Err(rustix::io::Errno::INTR))
        {
        }
    }

    fn kill(self) {
        match self {
            NspawnProcess::Ours(mut child) => child.kill(),
            NspawnProcess::Adopted(pidfd) => {
                let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            }
        }
    }

    /// Its destructor would end it; the kernel gives it to another parent when we end.
    fn leak(self) {
        std::mem::forget(self);
    }
}

pub(super) fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)], Some(&now)).is_ok_and(|count| count > 0)
}

pub(super) fn parent_of(pid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// The number of the process that a pidfd means (pidfd_open(2): `Pid:` in fdinfo); `None` once it has been reaped.
pub(super) fn pidfd_pid(pidfd: BorrowedFd<'_>) -> Option<Pid> {
    use std::os::fd::AsRawFd as _;
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    Pid::from_raw(text.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()?)
}

/// The pid namespace of a process (namespaces(7): its device and inode).
pub(super) fn pid_namespace(pid: i32) -> Option<(u64, u64)> {
    let namespace = std::fs::metadata(format!("/proc/{pid}/ns/pid")).ok()?;
    Some((namespace.dev(), namespace.ino()))
}

/// The first uid of a process's user namespace, on the host (user_namespaces(7)).
pub(super) fn uid_base(pid: i32) -> Option<u32> {
    let map = std::fs::read_to_string(format!("/proc/{pid}/uid_map")).ok()?;
    let mut fields = map.split_ascii_whitespace();
    fields.next().filter(|first| *first == "0")?;
    fields.next()?.parse().ok()
}

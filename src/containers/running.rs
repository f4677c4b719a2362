//! A running container: nspawn, the agent, the cgroup of all its processes, and processes that wait for commands.
//!
//! Threads: `container-NAME` waits for nspawn's exit and then kills the remaining processes. Locks: `spares`,
//! `spare_groups` and `monitor`, leaves.

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

/// Number of spare processes in a running container. Each has already joined its own cgroup: joining takes up to
/// 15 ms on an idle machine (the kernel waits for an RCU grace period), too long while a client waits.
const SPARE_PROCESSES: usize = 4;
/// Number of empty cgroups that a running container keeps for reuse: as many as become empty between two refills.
const SPARE_GROUPS: usize = 16;

/// Name of the cgroup of nspawn and the agent, below the container's cgroup.
pub(super) const AGENTS: &str = "machine";

/// A running container, with the handles through which the server controls it.
#[derive(Debug)]
pub(super) struct RunningContainer {
    pub(super) record: ContainerRecord,
    /// Whether an earlier server started the container.
    pub(super) adopted: bool,
    /// The workspace's directory, which contains the agent's socket.
    pub(super) runtime: OwnedFd,
    pub(super) group: Group,
    /// Cgroup of nspawn and the agent.
    pub(super) agents: Arc<Group>,
    /// The container's first UID on the host.
    pub(super) uid_base: u32,
    /// Keeps the container's root mounted.
    pub(super) _root: Option<RootHandle>,
    /// PID namespace of the container, as device and inode.
    pub(super) pids: Option<(u64, u64)>,
    /// pidfd of the container's PID 1.
    pub(super) init: OwnedFd,
    /// Open /proc/PID/stat files of nspawn and of the container's PID 1.
    pub(super) stats: [ProcStat; 2],
    pub(super) spares: Mutex<Vec<SpareProcess>>,
    /// Empty cgroups of ended commands, kept for further commands.
    pub(super) spare_groups: Mutex<Vec<Group>>,
    /// Whether the OOM killer killed any process in the container: cgroup v1 counts kills only in the innermost
    /// cgroup.
    pub(super) oom_killed: AtomicBool,
    pub(super) monitor: NspawnMonitor,
}

/// A process in the container that waits for its command, in its own cgroup.
#[derive(Debug)]
pub(super) struct SpareProcess {
    pub(super) socket: OwnedFd,
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) group: Group,
}

/// The process of nspawn.
#[derive(Debug)]
pub(super) enum NspawnProcess {
    /// nspawn was started by this server.
    Ours(Child),
    /// nspawn was started by an earlier server; this is its pidfd.
    Adopted(OwnedFd),
}

/// Handle of the thread that waits for nspawn's exit.
#[derive(Debug)]
pub(super) struct NspawnMonitor {
    stop: Cancel,
    /// When set, the thread leaves the container running as it ends.
    detached: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
    thread: Mutex<Option<JoinOnDrop>>,
}

impl NspawnMonitor {
    /// Starts a thread that waits for `leader`, the process of nspawn. `all` is the cgroup of the whole container,
    /// `runtime` the directory of its state file, and `lease` its private network.
    pub(super) fn start(
        name: &str,
        leader: NspawnProcess,
        all: Group,
        runtime: PathBuf,
        lease: Option<LinkLease>,
    ) -> Result<NspawnMonitor> {
        let stop = Cancel::new()?;
        let (detached, ended) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let thread = {
            let (stop, detached, ended) = (stop.clone(), detached.clone(), ended.clone());
            spawn(format!("container-{name}"), limits::STACK, move || {
                leader.wait(&stop);
                if detached.load(Ordering::Acquire) {
                    leader.leak();
                    if let Some(lease) = lease {
                        lease.detach();
                    }
                    return;
                }
                leader.kill();
                // nspawn may have been killed alone. The remaining processes must end too, which wakes the callers
                // that wait for their commands.
                if let Err(error) = all.kill(None) {
                    log::error!("Could not kill the processes of a container: {error}");
                }
                drop(lease);
                ContainerRecord::remove(&runtime);
                ended.store(true, Ordering::Release);
            })?
        };
        Ok(NspawnMonitor { stop, detached, ended, thread: Mutex::new(Some(thread)) })
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Kills nspawn and all processes in the container, and waits until they have ended.
    pub(super) fn end(&self) {
        self.stop.cancel();
        // The lock is held during the join, so that a second caller waits for the end too.
        lock(&self.thread).take();
    }

    fn detach(&self) {
        self.detached.store(true, Ordering::Release);
        self.end();
    }
}

impl Drop for NspawnMonitor {
    fn drop(&mut self) {
        self.end();
    }
}

impl RunningContainer {
    /// Returns whether the container is still running.
    pub(super) fn is_alive(&self) -> bool {
        !self.monitor.has_ended() && !has_ended(self.init.as_fd())
    }

    /// Returns whether process `pid` is in this container. Comparing PID namespaces is faster than reading the
    /// cgroup.
    pub(super) fn contains(&self, pid: i32) -> bool {
        match self.pids {
            Some(pids) => pid_namespace(pid) == Some(pids),
            None => self.group.contains(pid),
        }
    }

    /// Returns whether the container needs more spare processes.
    pub(super) fn needs_spare(&self) -> bool {
        lock(&self.spares).len() < SPARE_PROCESSES && !self.monitor.has_ended()
    }

    /// Adds a spare process that is ready for a command.
    pub(super) fn add_spare(&self, spare: SpareProcess) {
        lock(&self.spares).push(spare);
    }

    /// Keeps the cgroup of an ended command for reuse.
    pub(super) fn add_spare_group(&self, mut group: Group) {
        if !self.monitor.has_ended() && lock(&self.spare_groups).len() < SPARE_GROUPS && group.reuse() {
            lock(&self.spare_groups).push(group);
        }
    }

    /// Returns whether the container can take a new command: a container that is being killed would kill the
    /// command too.
    pub(super) fn accepts_commands(&self) -> bool {
        self.is_alive() && !self.stats.iter().any(ProcStat::is_being_killed)
    }

    /// Kills all processes of the container and waits until they have ended.
    pub(super) fn end(&self) {
        let _ = pidfd_send_signal(&self.init, Signal::KILL);
        if let Err(error) = self.group.kill(None) {
            log::error!("Could not kill the processes of a container: {error}");
        }
        lock(&self.spares).clear();
        lock(&self.spare_groups).clear();
        self.monitor.end();
        // Remove the cgroup now: an interrupted command may still hold this object while the next start creates
        // cgroups with the same names.
        self.group.remove();
    }

    /// Detaches this server from the container, which keeps running for the next server.
    pub(super) fn detach(&self) {
        lock(&self.spares).clear();
        lock(&self.spare_groups).clear();
        self.monitor.detach();
    }
}

impl NspawnProcess {
    /// Waits until nspawn has ended or `stop` is cancelled. There is no timeout, because a container may run
    /// forever.
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

    /// Skips the destructor, which would kill nspawn. The kernel reparents nspawn when this server exits.
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

/// Returns the PID of the process behind a pidfd (pidfd_open(2): `Pid:` in fdinfo); `None` once it has been
/// reaped.
pub(super) fn pidfd_pid(pidfd: BorrowedFd<'_>) -> Option<Pid> {
    use std::os::fd::AsRawFd as _;
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    Pid::from_raw(text.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()?)
}

/// Returns the PID namespace of a process as device and inode (namespaces(7)).
pub(super) fn pid_namespace(pid: i32) -> Option<(u64, u64)> {
    let namespace = std::fs::metadata(format!("/proc/{pid}/ns/pid")).ok()?;
    Some((namespace.dev(), namespace.ino()))
}

/// Returns the first UID of a process's user namespace, on the host (user_namespaces(7)).
pub(super) fn uid_base(pid: i32) -> Option<u32> {
    let map = std::fs::read_to_string(format!("/proc/{pid}/uid_map")).ok()?;
    let mut fields = map.split_ascii_whitespace();
    fields.next().filter(|first| *first == "0")?;
    fields.next()?.parse().ok()
}

//! Kills or signals all processes of a group. With cgroups, no process can escape. **Invariant:** a signal never
//! reaches a process that only reuses the number of a former member. No threads, no locks.

use std::io::{Read as _, Seek as _};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Access, AtFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::Group;
use super::cgroup::{GroupKind, open_in, read_in, write_in};
use super::env_marker;
use crate::base::{At, Error, Result, limits};

/// How often to check whether a killed cgroup is empty, because the kernel may not wake the poll. Clients do not notice
/// this delay, and nearly all cgroups are empty sooner.
const KILL_LOOK: Duration = Duration::from_millis(20);

impl Group {
    /// Kills every process of the group and waits until all have ended. If the group is not a cgroup, `leader` is the
    /// session whose processes are killed.
    ///
    /// # Errors
    /// When a process is still alive after [`limits::KILL_WAIT`].
    pub fn kill(&self, leader: Option<i32>) -> Result<()> {
        let deadline = Instant::now() + limits::KILL_WAIT;
        match &self.how {
            GroupKind::Cgroup { folder, .. } => {
                // cgroup.kill exists since Linux 5.14. On older kernels, kill the listed processes until the list stays
                // empty.
                if write_in(folder, "cgroup.kill", "1").is_err() {
                    if is_removed(folder) {
                        return Ok(());
                    }
                    while Instant::now() < deadline {
                        if read_in(folder, "cgroup.procs")?.is_empty() {
                            break;
                        }
                        self.signal(Signal::KILL, leader);
                    }
                }
                wait_empty(folder, deadline)
            }
            GroupKind::EnvMarker(mark) => kill_found(deadline, || mark.members(leader)),
        }
    }

    /// Sends SIGKILL to every process of the group, including processes that are being forked. Does not wait for their
    /// end.
    pub fn kill_now(&self, leader: Option<i32>) {
        match &self.how {
            // cgroup.kill exists since Linux 5.14.
            GroupKind::Cgroup { folder, .. } if write_in(folder, "cgroup.kill", "1").is_ok() => {}
            _ => self.signal(Signal::KILL, leader),
        }
    }

    /// Returns the process numbers of the current members of the group and of the groups below it. The list is empty if
    /// groups are not cgroups.
    pub fn members(&self) -> Vec<i32> {
        let GroupKind::Cgroup { home, path, .. } = &self.how else { return Vec::new() };
        let (mut pids, mut paths) = (Vec::new(), vec![path.clone()]);
        while let Some(path) = paths.pop() {
            let file = home.tree.folder.join(&path).join("cgroup.procs");
            let text = std::fs::read_to_string(file).unwrap_or_default();
            pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
            let below = home.tree.children_of(std::path::Path::new(&path)).into_iter();
            paths.extend(below.map(|name| format!("{path}/{name}")));
        }
        pids
    }

    /// Sends `signal` to every process of the group, and never to a process that reuses a member's number.
    pub fn signal(&self, signal: Signal, leader: Option<i32>) {
        let member = |pid: i32| {
            // The descriptor is opened before the check, so it refers to the process that is checked.
            let fd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
            self.contains(pid).then_some(fd)
        };
        let processes: Vec<OwnedFd> = match &self.how {
            GroupKind::Cgroup { .. } => self.members().into_iter().filter_map(member).collect(),
            GroupKind::EnvMarker(mark) => mark.members(leader),
        };
        for process in processes {
            let _ = pidfd_send_signal(&process, signal);
        }
    }
}

/// Repeatedly kills the processes that `find` returns, until it returns none.
fn kill_found(deadline: Instant, find: impl Fn() -> Vec<OwnedFd>) -> Result<()> {
    while Instant::now() < deadline {
        let found = find();
        if found.is_empty() {
            return Ok(());
        }
        for process in found {
            let _ = pidfd_send_signal(&process, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(Error::internal("Some processes could not be killed; see the processes in state D in `ps`"))
}

/// Kills the processes that an earlier server named `server` left on a host without cgroups, except those of the groups
/// in `keep`.
pub(super) fn sweep_marked(server: &str, keep: &[String]) {
    if let Err(error) =
        kill_found(Instant::now() + limits::KILL_WAIT, || env_marker::find_by_server(server, keep))
    {
        log::warn!("Processes of an earlier server could not be killed: {error}");
    }
}

/// Returns whether another process has removed the cgroup, which was therefore empty.
fn is_removed(folder: &OwnedFd) -> bool {
    rustix::fs::accessat(folder, "cgroup.procs", Access::EXISTS, AtFlags::empty()) == Err(Errno::NOENT)
}

/// Waits until the cgroup and the cgroups below it have no processes, or until the cgroup is removed. The kernel wakes
/// pollers of `cgroup.events` with POLLPRI (cgroup-v2.rst, "populated"). It delays a second change within 10 ms
/// (CGROUP_FILE_NOTIFY_MIN_INTV), and drops it if the cgroup is removed by then. Therefore the file is also read every
/// [`KILL_LOOK`].
fn wait_empty(folder: &OwnedFd, deadline: Instant) -> Result<()> {
    const EVENTS: &str = "cgroup.events";
    let mut file = match open_in(folder, EVENTS) {
        Err(_) if is_removed(folder) => return Ok(()),
        opened => opened?,
    };
    loop {
        let mut text = String::new();
        match file.rewind().and_then(|()| file.read_to_string(&mut text)) {
            // Another process has removed the cgroup, so it was empty.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
            read => read.at("read", EVENTS)?,
        };
        if text.contains("populated 0") {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::internal(
                "Some processes could not be killed; see the processes in state D in `ps`",
            ));
        }
        let pause = left.min(KILL_LOOK);
        let timeout = Timespec { tv_sec: pause.as_secs() as i64, tv_nsec: i64::from(pause.subsec_nanos()) };
        let _ = poll(&mut [PollFd::new(&file, PollFlags::PRI)], Some(&timeout));
    }
}

#[cfg(test)]
mod tests {
    use super::super::spawn::{dev_null, open_dir};
    use super::super::{Cgroups, Child, Process as _, Stdio};
    use super::*;
    use std::os::fd::AsFd as _;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// The server may remove a container's groups while a keeper waits for one of these groups to become empty.
    #[test]
    fn removed_group_is_not_waited_for() {
        let name = format!("berth-unit-{}", uuid::Uuid::new_v4().simple());
        let cgroups = Cgroups::take(&name);
        let Some(tree) = cgroups.folder().map(std::path::Path::to_owned) else { return };
        let cwd = open_dir("/").unwrap();
        for round in 0..40 {
            let path = format!("runs/{round}");
            let stdio = Stdio {
                stdin: dev_null().unwrap(),
                stdout: dev_null().unwrap(),
                stderr: dev_null().unwrap(),
            };
            let argv = [c"/bin/sleep".to_owned(), c"60".to_owned()];
            let group = cgroups.group(&path).unwrap();
            let mut child =
                Child::start(&[argv.to_vec()], &[], cwd.as_fd(), &stdio, false, None, group).unwrap();
            let waited_for = cgroups.group(&path).unwrap();
            let stop = AtomicBool::new(false);
            let took = std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) && std::fs::remove_dir(tree.join(&path)).is_err() {
                        std::thread::yield_now();
                    }
                });
                let begun = Instant::now();
                waited_for.kill(Some(child.pid())).unwrap();
                stop.store(true, Ordering::Relaxed);
                begun.elapsed()
            });
            assert!(took < limits::KILL_WAIT / 2, "round {round}: {took:?}");
            child.kill();
        }
        cgroups.release();
    }
}

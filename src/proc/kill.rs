//! The end of a group: KILL for all that lives in it, certain where groups are cgroups, and other signals, which never
//! reach a process that only has a number which the group had. No threads, no locks.

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

impl Group {
    /// Ends every process of the group and returns when none is left. `leader`: the session to look for where
    /// there is no cgroup.
    ///
    /// # Errors
    /// When something was still alive after [`limits::KILL_WAIT`].
    pub fn kill(&self, leader: Option<i32>) -> Result<()> {
        let deadline = Instant::now() + limits::KILL_WAIT;
        match &self.how {
            GroupKind::Cgroup { folder, .. } => {
                // cgroup.kill is Linux 5.14; before that the list is walked until it stays empty.
                if write_in(folder, "cgroup.kill", "1").is_err() {
                    if is_gone(folder) {
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

    /// Sends KILL to every process of the group, also to what is being forked, and does not wait for their end.
    pub fn kill_now(&self, leader: Option<i32>) {
        match &self.how {
            // cgroup.kill is Linux 5.14.
            GroupKind::Cgroup { folder, .. } if write_in(folder, "cgroup.kill", "1").is_ok() => {}
            _ => self.signal(Signal::KILL, leader),
        }
    }

    /// The processes of the group and of those below it, by their numbers at this moment. None where groups are no cgroups.
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

    /// Sends `signal` to every process of the group, never to one that only has a number which the group had.
    pub fn signal(&self, signal: Signal, leader: Option<i32>) {
        let member = |pid: i32| {
            // First the descriptor, then the check: what it means can no longer change.
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

/// Ends what is found until nothing is.
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
    Err(Error::internal("Some processes could not be ended"))
}

/// Ends what an earlier server with this name left where there are no cgroups, but for the groups in `keep`.
pub(super) fn sweep_marked(server: &str, keep: &[String]) {
    if let Err(error) =
        kill_found(Instant::now() + limits::KILL_WAIT, || env_marker::find_by_server(server, keep))
    {
        log::warn!("what an earlier server started: {error}");
    }
}

/// Whether somebody else has removed the cgroup, so that nothing lives in it: nothing can be found in its folder then.
fn is_gone(folder: &OwnedFd) -> bool {
    rustix::fs::accessat(folder, "cgroup.procs", Access::EXISTS, AtFlags::empty()) == Err(Errno::NOENT)
}

/// Waits until nothing lives in the cgroup or below it, or it is no more. The kernel wakes pollers of `cgroup.events` with POLLPRI
/// (cgroup-v2.rst, "populated"), but not always: a change soon after another is told later (10 ms, CGROUP_FILE_NOTIFY_MIN_INTV),
/// and never if somebody has removed the cgroup by then. So it is also looked at every [`limits::KILL_LOOK`].
fn wait_empty(folder: &OwnedFd, deadline: Instant) -> Result<()> {
    const EVENTS: &str = "cgroup.events";
    let mut file = match open_in(folder, EVENTS) {
        Err(_) if is_gone(folder) => return Ok(()),
        opened => opened?,
    };
    loop {
        let mut text = String::new();
        match file.rewind().and_then(|()| file.read_to_string(&mut text)) {
            // Somebody else has removed it, so it was empty.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
            read => read.at("read", EVENTS)?,
        };
        if text.contains("populated 0") {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::internal("Some processes could not be ended"));
        }
        let pause = left.min(limits::KILL_LOOK);
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

    /// The server removes a container's groups while a keeper waits for one of them to be empty.
    #[test]
    fn a_group_that_is_removed_meanwhile_is_not_waited_for() {
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

//! Groups of processes that can be ended for certain. With cgroup v2 a group is a folder: a process is born into it
//! (CLONE_INTO_CGROUP), cannot leave it, and `cgroup.kill` ends all of them however they forked. Only the tree is
//! needed, no controller, so a v2 hierarchy beside v1 ones serves as well. Where no v2 tree is writable, a group is a
//! mark in the environment and a session id, found by reading /proc: good against forgetfulness, not against malice.
//! No threads; one leaf
//! lock, for the list of groups that outlived their owner.

use std::collections::VecDeque;
use std::ffi::CString;
use std::fs;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::Usage;
use crate::base::thread::lock;
use crate::base::{At, Error, Result, limits};

/// The variable by which processes are found where there is no cgroup.
const MARK: &str = "BERTH_RUN_ID";

/// Where groups are made.
#[derive(Clone, Debug)]
pub struct Cgroups {
    tree: Option<Tree>,
}

#[derive(Clone, Debug)]
struct Tree {
    /// Groups that still lived when their owner was done with them: what a command left in the background. They
    /// are removed when they are empty, a few at each later opportunity.
    left: Arc<Mutex<VecDeque<String>>>,
    /// Our folder in the v2 hierarchy.
    folder: PathBuf,
    /// The same folder as /proc/PID/cgroup names it.
    inside: PathBuf,
    /// The same folder in the `name=systemd` v1 hierarchy: nspawn repeats its cgroup there on hybrid machines.
    mirror: Option<PathBuf>,
}

impl Cgroups {
    /// Takes the folder `name` of the v2 tree and ends whatever an earlier server with the same name left in it:
    /// the caller holds the data folder's lock, so no living server owns it.
    pub fn take(name: &str) -> Cgroups {
        let Some(tree) = find_tree(name) else { return Cgroups { tree: None } };
        let groups = Cgroups { tree: Some(tree.clone()) };
        if tree.folder.exists() {
            let left = Group::open(&tree, "").and_then(|group| group.kill(None));
            if let Err(error) = left {
                log::warn!("processes of an earlier server could not be ended: {error}");
            }
            remove_folders(&tree, "");
        }
        match fs::create_dir_all(&tree.folder) {
            Ok(()) => groups,
            Err(_) => Cgroups { tree: None },
        }
    }

    /// Whether groups are cgroups, so that nothing can escape them.
    pub fn certain(&self) -> bool {
        self.tree.is_some()
    }

    /// Whether the host has nothing but v2.
    pub fn only_v2(&self) -> bool {
        self.tree
            .as_ref()
            .is_some_and(|tree| tree.mirror.is_none() && tree.folder.starts_with("/sys/fs/cgroup"))
            && Path::new("/sys/fs/cgroup/cgroup.procs").exists()
    }

    /// Makes the group `path` (components joined by `/`).
    ///
    /// # Errors
    /// When the cgroup cannot be made.
    pub fn group(&self, path: &str) -> Result<Group> {
        match &self.tree {
            Some(tree) => Group::open(tree, path),
            None => Ok(Group { how: How::Mark(path.replace('/', "-")) }),
        }
    }

    /// Removes the whole tree at the end of the server; groups that still live stay for the next start.
    pub fn release(&self) {
        if let Some(tree) = &self.tree {
            remove_folders(tree, "");
        }
    }
}

/// A set of processes.
#[derive(Debug)]
pub struct Group {
    how: How,
}

#[derive(Debug)]
enum How {
    Cgroup { tree: Tree, path: String, folder: OwnedFd },
    Mark(String),
}

impl Group {
    fn open(tree: &Tree, path: &str) -> Result<Group> {
        let folder = tree.folder.join(path);
        fs::create_dir_all(&folder).at("make the cgroup", &folder)?;
        let fd =
            rustix::fs::open(&folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .at("open the cgroup", &folder)?;
        Ok(Group { how: How::Cgroup { tree: tree.clone(), path: path.to_owned(), folder: fd } })
    }

    /// The cgroup's folder, to be born into.
    pub fn folder(&self) -> Option<BorrowedFd<'_>> {
        match &self.how {
            How::Cgroup { folder, .. } => Some(folder.as_fd()),
            How::Mark(_) => None,
        }
    }

    /// What a command needs in its environment so that the group can find it.
    pub fn mark(&self) -> Option<CString> {
        match &self.how {
            How::Cgroup { .. } => None,
            How::Mark(id) => CString::new(format!("{MARK}={id}")).ok(),
        }
    }

    /// Moves a process in, with what it forks from then on. Costs up to 15 ms on an idle machine: the kernel
    /// waits for an RCU grace period before it takes `cgroup_threadgroup_rwsem` for writing.
    ///
    /// # Errors
    /// When the kernel refuses, e.g. because the process is gone.
    pub fn add(&self, pid: i32) -> Result<()> {
        match &self.how {
            How::Cgroup { folder, .. } => write_in(folder, "cgroup.procs", &pid.to_string()),
            How::Mark(_) => Ok(()),
        }
    }

    /// Ends every process of the group and returns when none is left. `leader`: the session to look for where
    /// there is no cgroup.
    ///
    /// # Errors
    /// When something was still alive after [`limits::KILL_WAIT`].
    pub fn kill(&self, leader: Option<i32>) -> Result<()> {
        let deadline = Instant::now() + limits::KILL_WAIT;
        match &self.how {
            How::Cgroup { folder, .. } => {
                // cgroup.kill is Linux 5.14; before that the list is walked until it stays empty.
                if write_in(folder, "cgroup.kill", "1").is_err() {
                    while Instant::now() < deadline {
                        let pids = read_in(folder, "cgroup.procs")?;
                        if pids.is_empty() {
                            break;
                        }
                        pids.lines().filter_map(|line| line.parse().ok()).for_each(kill_pid);
                    }
                }
                wait_empty(folder, deadline)
            }
            How::Mark(id) => {
                let wanted = format!("{MARK}={id}");
                while Instant::now() < deadline {
                    let found = marked(&wanted, leader);
                    if found.is_empty() {
                        return Ok(());
                    }
                    found.into_iter().for_each(kill_pid);
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(Error::internal("Some processes could not be ended"))
            }
        }
    }

    /// Sends `signal` to every process of the group, never to one that only has a number which the group had.
    pub fn signal(&self, signal: Signal, leader: Option<i32>) {
        let pids: Vec<i32> = match &self.how {
            How::Cgroup { folder, .. } => read_in(folder, "cgroup.procs")
                .unwrap_or_default()
                .lines()
                .filter_map(|l| l.parse().ok())
                .collect(),
            How::Mark(id) => marked(&format!("{MARK}={id}"), leader),
        };
        for pid in pids.into_iter().filter_map(Pid::from_raw) {
            // First the descriptor, then the check: what it means can no longer change.
            if let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) {
                if self.contains(pid.as_raw_nonzero().get()) {
                    let _ = pidfd_send_signal(&fd, signal);
                }
            }
        }
    }

    /// What everything that was ever in the group has used.
    pub fn usage(&self) -> Usage {
        let How::Cgroup { folder, .. } = &self.how else { return Usage::default() };
        // Processor time is there without any controller (cgroup-v2.rst, cpu.stat).
        let cpu_micros = read_in(folder, "cpu.stat").ok().and_then(|text| {
            text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.trim().parse().ok())
        });
        Usage { cpu_micros, ..Usage::default() }
    }

    /// Whether `pid` is in this group or below it, as the kernel says.
    pub fn contains(&self, pid: i32) -> bool {
        let How::Cgroup { tree, path, .. } = &self.how else { return true };
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else { return false };
        let wanted = Path::new(&tree.inside).join(path);
        text.lines().filter_map(|line| line.strip_prefix("0::")).any(|at| Path::new(at).starts_with(&wanted))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let How::Cgroup { tree, path, .. } = &self.how else { return };
        let mut retry = Vec::new();
        if !path.is_empty() && !remove_folders(tree, path) {
            retry.push(path.clone());
        }
        let older: Vec<String> = {
            let mut left = lock(&tree.left);
            let count = left.len().min(4);
            left.drain(..count).collect()
        };
        retry.extend(older.into_iter().filter(|path| !remove_folders(tree, path)));
        if !retry.is_empty() {
            lock(&tree.left).extend(retry);
        }
    }
}

/// Sends SIGKILL through a pidfd; a process that is gone already is fine.
fn kill_pid(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        if let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) {
            let _ = pidfd_send_signal(&fd, Signal::KILL);
        }
    }
}

fn write_in(folder: &OwnedFd, file: &str, text: &str) -> Result<()> {
    let fd =
        rustix::fs::openat(folder, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).at("open", file)?;
    rustix::io::write(&fd, text.as_bytes()).at("write", file)?;
    Ok(())
}

fn open_in(folder: &OwnedFd, file: &str) -> Result<fs::File> {
    let fd =
        rustix::fs::openat(folder, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).at("open", file)?;
    Ok(fs::File::from(fd))
}

fn read_in(folder: &OwnedFd, file: &str) -> Result<String> {
    let mut text = String::new();
    open_in(folder, file)?.read_to_string(&mut text).at("read", file)?;
    Ok(text)
}

/// Waits until nothing lives in the cgroup or below it. The kernel wakes pollers of `cgroup.events` with POLLPRI
/// (cgroup-v2.rst, "populated").
fn wait_empty(folder: &OwnedFd, deadline: Instant) -> Result<()> {
    const EVENTS: &str = "cgroup.events";
    let mut file = open_in(folder, EVENTS)?;
    loop {
        let mut text = String::new();
        file.rewind().at("read", EVENTS)?;
        file.read_to_string(&mut text).at("read", EVENTS)?;
        if text.contains("populated 0") {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::internal("Some processes could not be ended"));
        }
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let _ = poll(&mut [PollFd::new(&file, PollFlags::PRI)], Some(&timeout));
    }
}

/// Removes `path` and the folders below it, deepest first; `false` when something lives there. Folders in the
/// mirror are only ever empty shells.
fn remove_folders(tree: &Tree, path: &str) -> bool {
    if let Some(mirror) = &tree.mirror {
        remove_cgroup(&mirror.join(path));
    }
    remove_cgroup(&tree.folder.join(path))
}

fn remove_cgroup(folder: &Path) -> bool {
    // Nearly always there is nothing below: one rmdir, no listing.
    match fs::remove_dir(folder) {
        Ok(()) => return true,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return true,
        Err(_) => {}
    }
    if let Ok(entries) = fs::read_dir(folder) {
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            remove_cgroup(&entry.path());
        }
    }
    fs::remove_dir(folder).is_ok()
}

/// Finds a writable place for the folder `name`: below our own cgroup where systemd delegated it to us
/// (user.delegate, systemd.resource-control(5)), else at the top of the hierarchy.
fn find_tree(name: &str) -> Option<Tree> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let fields = |line: &str| -> Option<(String, String, String)> {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        Some((left.split(' ').nth(4)?.to_owned(), right.next()?.to_owned(), right.nth(1)?.to_owned()))
    };
    let mounts: Vec<_> = mounts.lines().filter_map(fields).collect();
    let unified = &mounts.iter().find(|(_, kind, _)| kind == "cgroup2")?.0;
    let named = mounts.iter().find(|(_, kind, options)| kind == "cgroup" && options.contains("name=systemd"));
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();

    let mut places = Vec::new();
    let own_folder = Path::new(unified).join(&own);
    let delegated = rustix::fs::getxattr(&own_folder, "user.delegate", &mut [0u8; 8]).is_ok()
        || rustix::fs::getxattr(&own_folder, "trusted.delegate", &mut [0u8; 8]).is_ok();
    if !own.is_empty() && delegated {
        places.push(own);
    }
    places.push(String::new());
    for place in places {
        let inside = Path::new("/").join(&place).join(name);
        let below = inside.strip_prefix("/").ok()?;
        let folder = Path::new(unified).join(below);
        if fs::create_dir_all(&folder).is_ok()
            && rustix::fs::access(folder.join("cgroup.procs"), rustix::fs::Access::WRITE_OK).is_ok()
        {
            let mirror = named.map(|(at, _, _)| Path::new(at).join(below));
            return Some(Tree { left: Arc::default(), folder, inside, mirror });
        }
    }
    None
}

/// Processes that carry the mark or belong to the session of `leader`.
fn marked(wanted: &str, leader: Option<i32>) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let own = std::process::id() as i32;
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != own)
        .filter(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // Fields after the command name, which may contain anything: state, ppid, pgrp, session.
            let mut after = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace();
            let state = after.next();
            let session = after.nth(2).and_then(|field| field.parse::<i32>().ok());
            if state.is_none_or(|state| state == "Z" || state == "X") {
                return false;
            }
            leader.is_some() && session == leader
                || fs::read(format!("/proc/{pid}/environ"))
                    .is_ok_and(|env| env.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_finds_a_child_that_left_its_session() {
        let wanted = format!("{MARK}=test-{}", std::process::id());
        #[expect(
            clippy::disallowed_methods,
            reason = "the test needs a child that the code under test did not start"
        )]
        let mut child = std::process::Command::new("setsid")
            .args(["sleep", "1000"])
            .env(MARK, &wanted[MARK.len() + 1..])
            .spawn()
            .unwrap();
        let group = Group { how: How::Mark(wanted[MARK.len() + 1..].to_owned()) };
        while marked(&wanted, None).is_empty() {}
        group.kill(None).unwrap();
        assert!(!child.wait().unwrap().success());
    }
}

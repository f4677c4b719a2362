//! Groups of processes that can be killed reliably. With cgroup v2 a group is a folder: a process is created in it
//! (CLONE_INTO_CGROUP) or enters it before it executes a program, cannot leave it, and `cgroup.kill` kills all members
//! however they forked. Only the tree is needed, no controller, so a v2 hierarchy beside v1 ones is enough. Where no v2 tree
//! is writable, a group is an environment variable and a session id, found by reading /proc; a process can escape from it.
//! No threads; one leaf lock, for the list of groups that outlived their owner.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustix::buffer::spare_capacity;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::control::{self, ControlFiles, CurrentUsage, Enforcement, open_procs};
use super::env_marker::EnvMarker;
use super::hierarchy::{Controller, Tree};
use super::kill;
use super::{Capacity, Limits, Usage};
use crate::base::thread::lock;
use crate::base::{At, Result};

/// How often to create a cgroup again that another berth process removed before it was opened: each process removes it
/// once.
const CGROUP_TRIES: usize = 16;
/// The workloads' CPU weight, in competition with other services.
const WORK_CPU_WEIGHT: u64 = 50;

/// Extended attribute of a group that outlived its command. The kernel keeps it as long as the group (kernfs, Linux 5.7).
pub(super) const LEFTOVER_XATTR: &str = "user.berth.left";

/// The tree in which groups are created.
#[derive(Clone, Debug)]
pub struct Cgroups {
    /// Without a v2 tree, the name is in the environment of every process that berth starts.
    name: Arc<str>,
    home: Option<CgroupTree>,
    enforcement: Arc<Enforcement>,
    capacity: Capacity,
}

#[derive(Clone, Debug)]
pub(super) struct CgroupTree {
    pub(super) tree: Arc<Tree>,
    /// Groups that still had processes when their owner dropped them: a command's background processes. They are removed
    /// when they are empty; each removal of a group retries a few.
    left: Arc<Mutex<VecDeque<String>>>,
    /// Groups at the top of the tree that have folders in v1 hierarchies for all processes below them.
    held: Arc<Mutex<BTreeSet<String>>>,
}

/// A tree in serialised form, for another berth process, which neither searches it nor changes its limits.
#[derive(Debug, Serialize, Deserialize, Default)]
pub struct CgroupsHandle {
    name: String,
    home: Option<(Tree, BTreeSet<String>)>,
}

impl Cgroups {
    /// Takes over the folder `name` of the v2 tree with the remains of an earlier server of the same name: the caller holds
    /// the data folder's lock, so no running server owns it. [`Cgroups::sweep`] kills the processes that are not taken over.
    pub fn take(name: &str) -> Cgroups {
        let tree = Tree::find(name);
        let enforcement = Arc::new(control::enforcement(tree.as_ref()));
        let capacity = Capacity::from_host();
        let home =
            tree.map(|tree| CgroupTree { tree: Arc::new(tree), left: Arc::default(), held: Arc::default() });
        if let Some(home) = &home {
            let all = ControlFiles { tree: &home.tree, folder: home.tree.folder.clone(), path: "" };
            if let Err(error) = all.set_limits(&capacity.total_limits()) {
                log::warn!("The limits of all workloads together could not be set: {error}");
            }
            all.set_cpu_weight(WORK_CPU_WEIGHT);
        }
        Cgroups { name: name.into(), home, enforcement, capacity }
    }

    /// Opens the tree of another berth process.
    pub fn from_handle(handle: CgroupsHandle) -> Cgroups {
        let home = handle.home.map(|(tree, held)| CgroupTree {
            tree: Arc::new(tree),
            left: Arc::default(),
            held: Arc::new(Mutex::new(held)),
        });
        let enforcement = Arc::new(control::enforcement(home.as_ref().map(|home| &*home.tree)));
        Cgroups { name: handle.name.into(), home, enforcement, capacity: Capacity::from_host() }
    }

    /// Returns the tree for [`Cgroups::from_handle`].
    pub fn handle(&self) -> CgroupsHandle {
        let home = self.home.as_ref().map(|home| ((*home.tree).clone(), lock(&home.held).clone()));
        CgroupsHandle { name: self.name.to_string(), home }
    }

    /// Kills all processes of an earlier server, except in the groups that `keep` names.
    pub fn sweep(&self, keep: &[String]) {
        match &self.home {
            Some(home) => sweep_below(home, "", keep),
            None => kill::sweep_marked(&self.name, keep),
        }
    }

    /// Returns the tree's folder, which a later server looks for.
    pub fn folder(&self) -> Option<&Path> {
        self.home.as_ref().map(|home| home.tree.folder.as_path())
    }

    /// Kills everything in an earlier server's tree if it is at another path, for example because systemd started that server
    /// and this one was started by hand.
    pub fn end_elsewhere(&self, folder: &Path) {
        if let Some(home) = self.home.as_ref().filter(|home| home.tree.folder != folder) {
            home.tree.end_elsewhere(folder);
        }
    }

    /// Whether groups are cgroups, so that no process can escape.
    pub fn kills_reliably(&self) -> bool {
        self.home.is_some()
    }

    /// Whether the host has only cgroup v2.
    pub fn only_v2(&self) -> bool {
        self.home.as_ref().is_some_and(|home| home.tree.only_v2)
    }

    /// Returns the limits that can be enforced.
    pub fn enforcement(&self) -> &Enforcement {
        &self.enforcement
    }

    /// Returns the machine's capacity.
    pub fn capacity(&self) -> &Capacity {
        &self.capacity
    }

    /// Creates the group `path` (components joined by `/`).
    ///
    /// # Errors
    /// When the cgroup cannot be created.
    pub fn group(&self, path: &str) -> Result<Group> {
        match &self.home {
            Some(home) => Group::open(home, path),
            None => Ok(Group::from_kind(GroupKind::EnvMarker(EnvMarker::new(&self.name, path)))),
        }
    }

    /// Opens a group that has processes of berth, with all its v1 folders.
    ///
    /// # Errors
    /// When the cgroup was removed and cannot be created again.
    pub fn group_again(&self, path: &str) -> Result<Group> {
        let mut group = self.group(path)?;
        if let GroupKind::Cgroup { home, path, v1, .. } = &mut group.how {
            v1.extend(
                home.tree.v1_folders(path).into_iter().map(|(_, folder)| folder).filter(|at| at.is_dir()),
            );
        }
        Ok(group)
    }

    /// Creates the group of one command, with `limits`.
    ///
    /// # Errors
    /// `Unavailable` when this host cannot enforce a limit; when the cgroup cannot be created.
    pub fn group_with_limits(&self, path: &str, limits: Option<&Limits>) -> Result<Group> {
        let Some(limits) = limits.filter(|limits| !limits.is_empty()) else { return self.group(path) };
        let mut group = self.group(path)?;
        self.confine(&mut group, limits)?;
        Ok(group)
    }

    /// Sets the limits of one command's group, which is empty or has only a waiting process.
    ///
    /// # Errors
    /// `Unavailable` when this host cannot enforce one of `limits`; nothing has changed then.
    pub fn confine(&self, group: &mut Group, limits: &Limits) -> Result<()> {
        self.enforcement.check(limits)?;
        group.confine(limits)
    }

    /// Removes the whole tree at the end of the server; groups with processes stay for the next start.
    pub fn release(&self) {
        if let Some(home) = &self.home {
            home.tree.remove("", true);
        }
    }
}

fn sweep_below(home: &CgroupTree, path: &str, keep: &[String]) {
    for child in home.tree.children_of(Path::new(path)) {
        let child = if path.is_empty() { child } else { format!("{path}/{child}") };
        if keep.contains(&child) {
            continue;
        }
        if keep.iter().any(|kept| Path::new(kept).starts_with(&child)) {
            sweep_below(home, &child, keep);
            continue;
        }
        if let Err(error) = Group::open(home, &child).and_then(|group| group.kill(None)) {
            log::warn!("Processes of an earlier server could not be killed: {error}");
        }
        home.tree.remove(&child, true);
    }
}

/// A set of processes.
#[derive(Debug)]
pub struct Group {
    pub(super) how: GroupKind,
    /// Another owner has taken over the group: it is not removed on drop.
    disowned: AtomicBool,
    /// The group has limits of its own.
    confined: bool,
    /// OOM-kill count of the kernel when the group was reused for another command.
    oom_kills_at_reuse: Option<u64>,
}

#[derive(Debug)]
pub(super) enum GroupKind {
    Cgroup {
        home: CgroupTree,
        path: String,
        folder: OwnedFd,
        /// The group's folders in v1 hierarchies.
        v1: Vec<PathBuf>,
    },
    EnvMarker(EnvMarker),
}

impl Group {
    fn open(home: &CgroupTree, path: &str) -> Result<Group> {
        // Cancels the pending removal of a group with this name.
        lock(&home.left).retain(|left| left != path);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = std::iter::repeat_with(|| {
            let folder = home.tree.make(path)?;
            Ok::<_, std::io::Error>(rustix::fs::open(&folder, flags, Mode::empty())?)
        });
        // Another berth process may remove the same group between the two calls.
        let folder = opened
            .take(CGROUP_TRIES)
            .find(|opened| !matches!(opened, Err(error) if error.kind() == std::io::ErrorKind::NotFound))
            .unwrap_or_else(|| Err(Errno::NOENT.into()))
            .at("create the cgroup", path)?;
        Ok(Group::from_kind(GroupKind::Cgroup {
            home: home.clone(),
            path: path.to_owned(),
            folder,
            v1: Vec::new(),
        }))
    }

    fn from_kind(how: GroupKind) -> Group {
        Group { how, disowned: AtomicBool::new(false), confined: false, oom_kills_at_reuse: None }
    }

    /// Returns a group that never has processes.
    pub fn placeholder() -> Group {
        Group::from_kind(GroupKind::EnvMarker(EnvMarker::default()))
    }

    /// Keeps the group and its processes: another owner has taken over.
    pub fn disown(&self) {
        self.disowned.store(true, Ordering::Relaxed);
    }

    fn control_files(&self) -> Option<ControlFiles<'_>> {
        match &self.how {
            GroupKind::Cgroup { home, path, .. } => {
                Some(ControlFiles { tree: &home.tree, folder: home.tree.folder.join(path), path })
            }
            GroupKind::EnvMarker(_) => None,
        }
    }

    /// Creates the group's folders in the v1 hierarchies of those `controllers` that v2 does not provide. Processes that
    /// enter the group later enter these, too.
    fn make_v1(&mut self, controllers: &[Controller]) -> Result<()> {
        let GroupKind::Cgroup { home, path, v1, .. } = &mut self.how else { return Ok(()) };
        for (controller, folder) in home.tree.v1_folders(path) {
            if controllers.contains(&controller) && !v1.contains(&folder) {
                fs::create_dir_all(&folder).at("create the cgroup", &folder)?;
                v1.push(folder);
            }
        }
        Ok(())
    }

    fn confine(&mut self, limits: &Limits) -> Result<()> {
        self.confined = true;
        let mut wanted = Vec::new();
        if limits.memory_bytes.is_some() || limits.swap_bytes.is_some() {
            wanted.push(Controller::Memory);
        }
        wanted.extend(limits.cpus.map(|_| Controller::Cpu));
        wanted.extend(limits.pids.map(|_| Controller::Pids));
        self.make_v1(&wanted)?;
        if let Some(files) = self.control_files() {
            files.set_limits(limits)?;
            if limits.memory_bytes.is_some() {
                files.set_oom_group()?;
            }
        }
        Ok(())
    }

    /// Enables all controllers that this host has, and sets the limits. For a group at the top of the tree, in which others
    /// are created. A limit without a controller is skipped; [`Enforcement`] reports it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enable_limits(&mut self, limits: &Limits) -> Result<()> {
        self.make_v1(&Controller::ALL)?;
        if let GroupKind::Cgroup { home, path, .. } = &self.how {
            lock(&home.held).insert(path.clone());
        }
        self.control_files().map_or(Ok(()), |files| files.set_limits(limits))
    }

    /// Changes the limits of a group after [`Group::enable_limits`], while processes run in it.
    ///
    /// # Errors
    /// `Conflict` when the kernel cannot reclaim memory that is in use.
    pub fn update_limits(&self, limits: &Limits) -> Result<()> {
        self.control_files().map_or(Ok(()), |files| files.set_limits(limits))
    }

    /// Accounts for the group's memory, so that OOM kills are counted.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn track_memory(&mut self) -> Result<()> {
        self.make_v1(&[Controller::Memory])
    }

    /// Returns the v1 `cgroup.procs` files that a new process must write `0` to, because it is created in the server's own
    /// v1 groups: those of the group's own folders, else those of its group at the top of the tree.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub fn v1_procs_files(&self) -> Result<Vec<OwnedFd>> {
        let GroupKind::Cgroup { home, path, v1, .. } = &self.how else { return Ok(Vec::new()) };
        let top = path.split('/').next().unwrap_or_default();
        let held = lock(&home.held).contains(top);
        let mut all = Vec::new();
        for ((_, own), (_, above)) in home.tree.v1_folders(path).iter().zip(home.tree.v1_folders(top)) {
            if v1.contains(own) {
                all.push(open_procs(own)?);
            } else if held {
                all.push(open_procs(&above)?);
            }
        }
        Ok(all)
    }

    /// Returns the cgroup's folder, in which a process can be created.
    pub fn folder(&self) -> Option<BorrowedFd<'_>> {
        match &self.how {
            GroupKind::Cgroup { folder, .. } => Some(folder.as_fd()),
            GroupKind::EnvMarker(_) => None,
        }
    }

    /// Returns the environment entry by which the group finds its processes without cgroups.
    pub fn env_marker(&self) -> Option<CString> {
        match &self.how {
            GroupKind::Cgroup { .. } => None,
            GroupKind::EnvMarker(mark) if mark.is_empty() => None,
            GroupKind::EnvMarker(mark) => CString::new(mark.variable()).ok(),
        }
    }

    /// Returns the `cgroup.procs` files to which a process outside of the server writes `0` to move itself, and the children
    /// that it starts later, into the group. Each write takes up to 15 ms on an idle machine: the kernel waits for an RCU grace
    /// period before it takes `cgroup_threadgroup_rwsem` for writing. **Invariant:** processes are never moved by number, which
    /// could belong to another process by then.
    ///
    /// # Errors
    /// When a file cannot be opened.
    pub fn procs_files(&self) -> Result<Vec<OwnedFd>> {
        let GroupKind::Cgroup { home, path, v1, .. } = &self.how else { return Ok(Vec::new()) };
        let own = home.tree.folder.join(path);
        [&own].into_iter().chain(v1).map(|folder| open_procs(folder)).collect()
    }

    /// Returns only those of the v1 folders, for a process that is in the group already.
    ///
    /// # Errors
    /// When a file cannot be opened.
    pub fn v1_limit_procs_files(&self) -> Result<Vec<OwnedFd>> {
        let GroupKind::Cgroup { v1, .. } = &self.how else { return Ok(Vec::new()) };
        v1.iter().map(|folder| open_procs(folder)).collect()
    }

    /// Prepares the group for another command if it is empty: creating and removing a group costs more than moving a process
    /// into one. Usage counters continue, so it is for commands of which only OOM kills are reported.
    pub fn reuse(&mut self) -> bool {
        let GroupKind::Cgroup { folder, .. } = &self.how else { return false };
        let empty = || read_in(folder, "cgroup.events").is_ok_and(|text| text.contains("populated 0"));
        if self.confined || !empty() {
            return false;
        }
        let noted = rustix::fs::fremovexattr(folder, LEFTOVER_XATTR);
        if noted.is_err_and(|error| !matches!(error, Errno::NODATA | Errno::OPNOTSUPP)) {
            return false;
        }
        self.oom_kills_at_reuse = Some(self.control_files().and_then(|files| files.oom_kills()).unwrap_or(0));
        true
    }

    /// Whether the usage counters include an earlier command.
    pub fn is_reused(&self) -> bool {
        self.oom_kills_at_reuse.is_some()
    }

    /// Whether the kernel killed a process of the group because memory ran out; `None` if this host cannot tell.
    pub fn oom_killed(&self) -> Option<bool> {
        let count = self.control_files()?.oom_kills()?;
        Some(count > self.oom_kills_at_reuse.unwrap_or(0))
    }

    /// Returns the usage of all processes that were ever in the group. With v1 controllers and no folders of its own, most of
    /// it is unknown.
    pub fn usage(&self) -> Usage {
        self.control_files().map(|files| files.usage()).unwrap_or_default()
    }

    /// Returns the current usage.
    pub fn current(&self) -> CurrentUsage {
        self.control_files().map(|files| files.current()).unwrap_or_default()
    }

    /// Returns the group's path as /proc/PID/cgroup shows it.
    pub fn proc_path(&self) -> Option<PathBuf> {
        match &self.how {
            GroupKind::Cgroup { home, path, .. } => Some(home.tree.inside.join(path)),
            GroupKind::EnvMarker(_) => None,
        }
    }

    /// Returns the group's path in the tree, by which [`Cgroups::group`] opens it again.
    pub fn path(&self) -> &str {
        match &self.how {
            GroupKind::Cgroup { path, .. } => path,
            GroupKind::EnvMarker(mark) => mark.id(),
        }
    }

    /// Returns the names of the groups directly below `below` in this group.
    pub fn children(&self, below: &str) -> Vec<String> {
        match &self.how {
            GroupKind::Cgroup { home, path, .. } => home.tree.children_of(&Path::new(path).join(below)),
            GroupKind::EnvMarker(_) => Vec::new(),
        }
    }

    /// Whether the process `pid` is in this group or below it, according to the kernel.
    pub fn contains(&self, pid: i32) -> bool {
        let GroupKind::Cgroup { home, path, .. } = &self.how else { return true };
        let Ok(text) = fs::File::open(format!("/proc/{pid}/cgroup")).and_then(read_whole) else {
            return false;
        };
        let wanted = home.tree.inside.join(path);
        text.lines().filter_map(|line| line.strip_prefix("0::")).any(|at| Path::new(at).starts_with(&wanted))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.remove();
    }
}

impl Group {
    /// Removes the group now instead of when the last handle is dropped: its name may be reused by then.
    pub fn remove(&self) {
        let GroupKind::Cgroup { home, path, v1, .. } = &self.how else { return };
        if self.disowned.swap(true, Ordering::AcqRel) {
            return;
        }
        if !v1.is_empty() {
            lock(&home.held).remove(path);
        }
        let mut retry = Vec::new();
        if !path.is_empty() && !home.tree.remove_with(path, v1.iter().map(PathBuf::as_path)) {
            // The command has ended, though perhaps not by itself.
            self.mark_leftover();
            retry.push(path.clone());
        }
        let older: Vec<String> = {
            let mut left = lock(&home.left);
            let count = left.len().min(4);
            left.drain(..count).collect()
        };
        retry.extend(older.into_iter().filter(|path| !home.tree.remove(path, true)));
        if !retry.is_empty() {
            lock(&home.left).extend(retry);
        }
    }
}

pub(super) fn write_in(folder: impl AsFd, file: &str, text: &str) -> Result<()> {
    let fd =
        rustix::fs::openat(folder, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).at("open", file)?;
    rustix::io::write(&fd, text.as_bytes()).at("write", file)?;
    Ok(())
}

pub(super) fn open_in(folder: impl AsFd, file: &str) -> Result<fs::File> {
    let fd =
        rustix::fs::openat(folder, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).at("open", file)?;
    Ok(fs::File::from(fd))
}

pub(super) fn read_in(folder: impl AsFd, file: &str) -> Result<String> {
    read_whole(open_in(folder, file)?).at("read", file)
}

/// Usually two calls: the kernel generates the whole file for every read(2), and std would start with 32 bytes.
fn read_whole(file: impl AsFd) -> std::io::Result<String> {
    let mut bytes = Vec::with_capacity(4096);
    while rustix::io::read(&file, spare_capacity(&mut bytes))? > 0 {
        bytes.reserve(1024);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server and a keeper both hold a run's group, and either may be the first to drop it.
    #[test]
    fn two_processes_may_drop_a_group_at_the_same_time() {
        let name = format!("berth-unit-{}", uuid::Uuid::new_v4().simple());
        let ours = Cgroups::take(&name);
        let theirs = Cgroups::from_handle(ours.handle());
        let rounds = || {
            for round in 0..3000 {
                let group = ours.group(&format!("runs/{}", round / 100)).unwrap();
                group.kill(None).unwrap();
            }
        };
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                for round in 0..3000 {
                    theirs.group_again(&format!("runs/{}", round / 100)).unwrap().kill(None).unwrap();
                }
            });
            rounds();
            other.join().unwrap();
        });
        ours.release();
        assert!(ours.folder().is_none_or(|folder| !folder.exists()));
    }
}

//! Groups of processes that can be killed reliably. With cgroup v2, a group is a folder. A process is created in this
//! folder (CLONE_INTO_CGROUP) or enters it before it executes a program, and cannot leave it; `cgroup.kill` kills all
//! members, however they forked. This requires only the tree and no controller, so a v2 hierarchy beside v1 hierarchies
//! is enough. Where no v2 tree is writable, a group consists of the processes with an environment variable or a session
//! id, which are found by reading /proc; a process can escape from such a group.
//! This module has no threads, and one leaf lock: the list of groups that outlived their owner.

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

/// How often to retry if another berth process removes a cgroup between its creation and its opening. Each process
/// removes it only once.
const CGROUP_TRIES: usize = 16;
/// The CPU weight of all workloads together, in competition with other services of the machine.
const WORK_CPU_WEIGHT: u64 = 50;

/// Extended attribute that marks a group with processes that outlived their command. The kernel keeps the attribute as
/// long as the group exists (kernfs, Linux 5.7).
pub(super) const LEFTOVER_XATTR: &str = "user.berth.left";

/// The cgroup tree in which groups are created.
#[derive(Clone, Debug)]
pub struct Cgroups {
    /// The server's name. Without a v2 tree, it is in the environment of every process that berth starts.
    name: Arc<str>,
    home: Option<CgroupTree>,
    enforcement: Arc<Enforcement>,
    capacity: Capacity,
}

#[derive(Clone, Debug)]
pub(super) struct CgroupTree {
    pub(super) tree: Arc<Tree>,
    /// Groups that still had processes, such as a command's background processes, when their owner dropped them. Each
    /// of these groups is removed when it is empty; whenever another group is removed, a few of them are tried again.
    left: Arc<Mutex<VecDeque<String>>>,
    /// Groups at the top of the tree whose folders in v1 hierarchies hold all processes below them.
    held: Arc<Mutex<BTreeSet<String>>>,
}

/// A tree in serialised form, for another berth process. That process neither searches for the tree nor changes its
/// limits.
#[derive(Debug, Serialize, Deserialize, Default)]
pub struct CgroupsHandle {
    name: String,
    home: Option<(Tree, BTreeSet<String>)>,
}

impl Cgroups {
    /// Takes over the folder `name` of the v2 tree, with the groups that an earlier server of the same name has left in
    /// it. The caller holds the data folder's lock, so no running server owns the tree. The caller then calls
    /// [`Cgroups::sweep`] to kill the processes that it does not take over.
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

    /// Opens the tree that another berth process has passed to this one.
    pub fn from_handle(handle: CgroupsHandle) -> Cgroups {
        let home = handle.home.map(|(tree, held)| CgroupTree {
            tree: Arc::new(tree),
            left: Arc::default(),
            held: Arc::new(Mutex::new(held)),
        });
        let enforcement = Arc::new(control::enforcement(home.as_ref().map(|home| &*home.tree)));
        Cgroups { name: handle.name.into(), home, enforcement, capacity: Capacity::from_host() }
    }

    /// Returns a handle that another berth process can open with [`Cgroups::from_handle`].
    pub fn handle(&self) -> CgroupsHandle {
        let home = self.home.as_ref().map(|home| ((*home.tree).clone(), lock(&home.held).clone()));
        CgroupsHandle { name: self.name.to_string(), home }
    }

    /// Kills all processes of an earlier server, except those in the groups that `keep` names.
    pub fn sweep(&self, keep: &[String]) {
        match &self.home {
            Some(home) => sweep_below(home, "", keep),
            None => kill::sweep_marked(&self.name, keep),
        }
    }

    /// Returns the tree's folder. A later server reads this path to find the tree.
    pub fn folder(&self) -> Option<&Path> {
        self.home.as_ref().map(|home| home.tree.folder.as_path())
    }

    /// Kills all processes in an earlier server's tree if that tree is at another path, for example because systemd
    /// started that server and a user started this one.
    pub fn end_elsewhere(&self, folder: &Path) {
        if let Some(home) = self.home.as_ref().filter(|home| home.tree.folder != folder) {
            home.tree.end_elsewhere(folder);
        }
    }

    /// Returns whether groups are cgroups, from which no process can escape.
    pub fn kills_reliably(&self) -> bool {
        self.home.is_some()
    }

    /// Returns whether the host has only cgroup v2.
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

    /// Creates the group `path`, whose components are joined by `/`.
    ///
    /// # Errors
    /// When the cgroup cannot be created.
    pub fn group(&self, path: &str) -> Result<Group> {
        match &self.home {
            Some(home) => Group::open(home, path),
            None => Ok(Group::from_kind(GroupKind::EnvMarker(EnvMarker::new(&self.name, path)))),
        }
    }

    /// Opens a group that already has processes of berth, with all its v1 folders.
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

    /// Creates the group of one command and sets its limits.
    ///
    /// # Errors
    /// `Unavailable` when this host cannot enforce one of `limits`; another error when the cgroup cannot be created.
    pub fn group_with_limits(&self, path: &str, limits: Option<&Limits>) -> Result<Group> {
        let Some(limits) = limits.filter(|limits| !limits.is_empty()) else { return self.group(path) };
        let mut group = self.group(path)?;
        self.confine(&mut group, limits)?;
        Ok(group)
    }

    /// Sets the limits of one command's group. The group must be empty or contain only a process that waits for the
    /// command.
    ///
    /// # Errors
    /// `Unavailable` when this host cannot enforce one of `limits`; no limit has changed in this case.
    pub fn confine(&self, group: &mut Group, limits: &Limits) -> Result<()> {
        self.enforcement.check(limits)?;
        group.confine(limits)
    }

    /// Removes the whole tree at the end of the server. Groups that still have processes stay until the next server
    /// starts.
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
    /// Whether another owner has taken over the group: then it is not removed on drop.
    disowned: AtomicBool,
    /// Whether the group has limits of its own.
    confined: bool,
    /// The kernel's count of OOM kills when the group was reused for another command.
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
        // Another berth process may remove the same group between the creation and the opening.
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

    /// Keeps the group and its processes on drop, because another owner has taken over the group.
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

    /// Creates the group's folders in the v1 hierarchies of those `controllers` that v2 does not provide. A process
    /// that enters the group later enters these folders, too.
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

    /// Enables all controllers that this host has, and sets the limits. Call this for a group at the top of the tree,
    /// in which other groups are created. A limit without a controller is skipped; [`Enforcement`] reports such limits.
    ///
    /// # Errors
    /// When the kernel refuses to create a folder or to set a limit.
    pub fn enable_limits(&mut self, limits: &Limits) -> Result<()> {
        self.make_v1(&Controller::ALL)?;
        if let GroupKind::Cgroup { home, path, .. } = &self.how {
            lock(&home.held).insert(path.clone());
        }
        self.control_files().map_or(Ok(()), |files| files.set_limits(limits))
    }

    /// Changes the limits of a group on which [`Group::enable_limits`] was called, while processes run in the group.
    ///
    /// # Errors
    /// `Conflict` when the kernel cannot reclaim memory that is in use.
    pub fn update_limits(&self, limits: &Limits) -> Result<()> {
        self.control_files().map_or(Ok(()), |files| files.set_limits(limits))
    }

    /// Enables memory accounting for the group, so that the kernel counts its OOM kills.
    ///
    /// # Errors
    /// When the kernel refuses to create a folder.
    pub fn track_memory(&mut self) -> Result<()> {
        self.make_v1(&[Controller::Memory])
    }

    /// Opens the v1 `cgroup.procs` files to which a new process must write `0`, because it is created in the server's
    /// own v1 groups. These are the files in the group's own v1 folders, or else in those of the group at the top of
    /// the tree.
    ///
    /// # Errors
    /// When one of the files cannot be opened.
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

    /// Returns the cgroup's folder as a descriptor, in which a process can be created.
    pub fn folder(&self) -> Option<BorrowedFd<'_>> {
        match &self.how {
            GroupKind::Cgroup { folder, .. } => Some(folder.as_fd()),
            GroupKind::EnvMarker(_) => None,
        }
    }

    /// Returns the environment entry that marks the group's processes on hosts without cgroups.
    pub fn env_marker(&self) -> Option<CString> {
        match &self.how {
            GroupKind::Cgroup { .. } => None,
            GroupKind::EnvMarker(mark) if mark.is_empty() => None,
            GroupKind::EnvMarker(mark) => CString::new(mark.variable()).ok(),
        }
    }

    /// Opens the `cgroup.procs` files to which a process outside of the server writes `0` to move itself, and the
    /// children that it starts later, into the group. Each write takes up to 15 ms on an idle machine: the kernel waits
    /// for an RCU grace period before it takes `cgroup_threadgroup_rwsem` for writing. **Invariant:** no process is
    /// moved by its number, because by then the number could belong to another process.
    ///
    /// # Errors
    /// When a file cannot be opened.
    pub fn procs_files(&self) -> Result<Vec<OwnedFd>> {
        let GroupKind::Cgroup { home, path, v1, .. } = &self.how else { return Ok(Vec::new()) };
        let own = home.tree.folder.join(path);
        [&own].into_iter().chain(v1).map(|folder| open_procs(folder)).collect()
    }

    /// Opens only the `cgroup.procs` files in v1 folders, for a process that is already in the group's v2 folder.
    ///
    /// # Errors
    /// When a file cannot be opened.
    pub fn v1_limit_procs_files(&self) -> Result<Vec<OwnedFd>> {
        let GroupKind::Cgroup { v1, .. } = &self.how else { return Ok(Vec::new()) };
        v1.iter().map(|folder| open_procs(folder)).collect()
    }

    /// Prepares the group for another command if it is empty, and returns whether it did. Creating and removing a group
    /// costs more than moving a process into one. The usage counters continue, so reuse groups only for commands of
    /// which only OOM kills are reported.
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

    /// Returns whether the usage counters include an earlier command.
    pub fn is_reused(&self) -> bool {
        self.oom_kills_at_reuse.is_some()
    }

    /// Returns whether the kernel killed a process of the group because memory ran out; `None` if this host does not
    /// count OOM kills.
    pub fn oom_killed(&self) -> Option<bool> {
        let count = self.control_files()?.oom_kills()?;
        Some(count > self.oom_kills_at_reuse.unwrap_or(0))
    }

    /// Returns the usage of all processes that were ever in the group. With v1 controllers and without v1 folders of
    /// the group's own, most of the usage is unknown.
    pub fn usage(&self) -> Usage {
        self.control_files().map(|files| files.usage()).unwrap_or_default()
    }

    /// Returns the usage of the processes that are in the group now.
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

    /// Returns the group's path in the tree; [`Cgroups::group`] opens the group again by this path.
    pub fn path(&self) -> &str {
        match &self.how {
            GroupKind::Cgroup { path, .. } => path,
            GroupKind::EnvMarker(mark) => mark.id(),
        }
    }

    /// Returns the names of the groups directly below the folder `below` of this group.
    pub fn children(&self, below: &str) -> Vec<String> {
        match &self.how {
            GroupKind::Cgroup { home, path, .. } => home.tree.children_of(&Path::new(path).join(below)),
            GroupKind::EnvMarker(_) => Vec::new(),
        }
    }

    /// Returns whether the process `pid` is in this group or in a group below it, according to the kernel.
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
    /// Removes the group now. When the last handle is dropped, another group may already have the same name.
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
            // The command has ended, though another process may have ended it.
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

/// Reads a file of /proc to its end, usually in two calls: the kernel generates the whole file for every read(2), and
/// the standard library would start with 32 bytes.
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

    /// Two berth processes, a server and a keeper, both hold a run's group, and either may be the first to drop it.
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

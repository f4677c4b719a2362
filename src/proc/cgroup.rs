//! Groups of processes that can be ended for certain. With cgroup v2 a group is a folder: a process is born into it
//! (CLONE_INTO_CGROUP) or enters it before it becomes a program, cannot leave it, and `cgroup.kill` ends all of them
//! however they forked. Only the tree is needed, no controller, so a v2 hierarchy beside v1 ones serves as well. Where no
//! v2 tree is writable, a group is a mark in the environment and a session id, found by reading /proc: good against
//! forgetfulness, not against malice. No threads; one leaf lock, for the list of groups that outlived their owner.

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
use crate::base::{At, Result, limits};

/// The attribute of a group that outlived its owner. The kernel keeps it as long as the group (kernfs, Linux 5.7).
pub(super) const LEFTOVER_XATTR: &str = "user.berth.left";

/// Where groups are made.
#[derive(Clone, Debug)]
pub struct Cgroups {
    /// Where there is no v2 tree, the name is in the environment of what we start.
    name: Arc<str>,
    home: Option<CgroupTree>,
    enforcement: Arc<Enforcement>,
    capacity: Capacity,
}

#[derive(Clone, Debug)]
pub(super) struct CgroupTree {
    pub(super) tree: Arc<Tree>,
    /// Groups that still lived when their owner was done with them: what a command left in the background. They
    /// are removed when they are empty, a few at each later opportunity.
    left: Arc<Mutex<VecDeque<String>>>,
    /// Groups at the top of the tree that have folders in v1 hierarchies for everything in them.
    held: Arc<Mutex<BTreeSet<String>>>,
}

/// The same tree for another process of ours, which neither looks for it nor changes its bounds.
#[derive(Debug, Serialize, Deserialize, Default)]
pub struct CgroupsHandle {
    name: String,
    home: Option<(Tree, BTreeSet<String>)>,
}

impl Cgroups {
    /// Takes the folder `name` of the v2 tree, with what an earlier server of the same name left in it: the caller holds
    /// the data folder's lock, so no living server owns it. [`Cgroups::sweep`] ends what nobody takes over.
    pub fn take(name: &str) -> Cgroups {
        let tree = Tree::find(name);
        let enforcement = Arc::new(control::enforcement(tree.as_ref()));
        let capacity = Capacity::from_host();
        let home =
            tree.map(|tree| CgroupTree { tree: Arc::new(tree), left: Arc::default(), held: Arc::default() });
        if let Some(home) = &home {
            let all = ControlFiles { tree: &home.tree, folder: home.tree.folder.clone(), path: "" };
            if let Err(error) = all.set_limits(&capacity.total_limits()) {
                log::warn!("all workloads together could not be bounded: {error}");
            }
            all.set_cpu_weight(limits::WORK_CPU_WEIGHT);
        }
        Cgroups { name: name.into(), home, enforcement, capacity }
    }

    /// The tree as another process of ours sees it.
    pub fn from_handle(handle: CgroupsHandle) -> Cgroups {
        let home = handle.home.map(|(tree, held)| CgroupTree {
            tree: Arc::new(tree),
            left: Arc::default(),
            held: Arc::new(Mutex::new(held)),
        });
        let enforcement = Arc::new(control::enforcement(home.as_ref().map(|home| &*home.tree)));
        Cgroups { name: handle.name.into(), home, enforcement, capacity: Capacity::from_host() }
    }

    /// For [`Cgroups::from_handle`].
    pub fn handle(&self) -> CgroupsHandle {
        let home = self.home.as_ref().map(|home| ((*home.tree).clone(), lock(&home.held).clone()));
        CgroupsHandle { name: self.name.to_string(), home }
    }

    /// Ends everything that an earlier server left, but what is in the groups that `keep` names.
    pub fn sweep(&self, keep: &[String]) {
        match &self.home {
            Some(home) => sweep_below(home, "", keep),
            None => kill::sweep_marked(&self.name, keep),
        }
    }

    /// The folder of our tree, for a later server.
    pub fn folder(&self) -> Option<&Path> {
        self.home.as_ref().map(|home| home.tree.folder.as_path())
    }

    /// Ends everything in the tree of an earlier server, if that was elsewhere: it may have been started by systemd once
    /// and by hand now.
    pub fn end_elsewhere(&self, folder: &Path) {
        if let Some(home) = self.home.as_ref().filter(|home| home.tree.folder != folder) {
            home.tree.end_elsewhere(folder);
        }
    }

    /// Whether groups are cgroups, so that nothing can escape them.
    pub fn kills_reliably(&self) -> bool {
        self.home.is_some()
    }

    /// Whether the host has nothing but v2.
    pub fn only_v2(&self) -> bool {
        self.home.as_ref().is_some_and(|home| home.tree.only_v2)
    }

    /// Which limits hold here.
    pub fn enforcement(&self) -> &Enforcement {
        &self.enforcement
    }

    /// What this machine has for us.
    pub fn capacity(&self) -> &Capacity {
        &self.capacity
    }

    /// Makes the group `path` (components joined by `/`).
    ///
    /// # Errors
    /// When the cgroup cannot be made.
    pub fn group(&self, path: &str) -> Result<Group> {
        match &self.home {
            Some(home) => Group::open(home, path),
            None => Ok(Group::of(GroupKind::EnvMarker(EnvMarker::new(&self.name, path)))),
        }
    }

    /// A group that something of ours lives in, with all the folders that it has.
    ///
    /// # Errors
    /// When the cgroup is gone and cannot be made again.
    pub fn group_again(&self, path: &str) -> Result<Group> {
        let mut group = self.group(path)?;
        if let GroupKind::Cgroup { home, path, v1, .. } = &mut group.how {
            v1.extend(
                home.tree.v1_folders(path).into_iter().map(|(_, folder)| folder).filter(|at| at.is_dir()),
            );
        }
        Ok(group)
    }

    /// Makes the group of one command, within `limits`.
    ///
    /// # Errors
    /// `Unavailable` when this host cannot enforce one of them; when the cgroup cannot be made.
    pub fn group_with_limits(&self, path: &str, limits: Option<&Limits>) -> Result<Group> {
        let Some(limits) = limits.filter(|limits| !limits.is_empty()) else { return self.group(path) };
        let mut group = self.group(path)?;
        self.confine(&mut group, limits)?;
        Ok(group)
    }

    /// Bounds the group of one command, which nothing or only a waiting process is in.
    ///
    /// # Errors
    /// `Unavailable` when this host cannot enforce one of `limits`; nothing has changed then.
    pub fn confine(&self, group: &mut Group, limits: &Limits) -> Result<()> {
        self.enforcement.check(limits)?;
        group.confine(limits)
    }

    /// Removes the whole tree at the end of the server; groups that still live stay for the next start.
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
            log::warn!("processes of an earlier server could not be ended: {error}");
        }
        home.tree.remove(&child, true);
    }
}

/// A set of processes.
#[derive(Debug)]
pub struct Group {
    pub(super) how: GroupKind,
    /// Whoever lives in it is somebody else's from now on.
    let_go: AtomicBool,
    /// It has limits of its own.
    confined: bool,
    /// It has been another command's, and the kernel's count of kills for want of memory was this then.
    reused: Option<u64>,
}

#[derive(Debug)]
pub(super) enum GroupKind {
    Cgroup {
        home: CgroupTree,
        path: String,
        folder: OwnedFd,
        /// Folders that the group has in v1 hierarchies.
        v1: Vec<PathBuf>,
    },
    EnvMarker(EnvMarker),
}

impl Group {
    fn open(home: &CgroupTree, path: &str) -> Result<Group> {
        // Whoever was done with a group of this name is not to remove it any more.
        lock(&home.left).retain(|left| left != path);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = std::iter::repeat_with(|| {
            let folder = home.tree.make(path)?;
            Ok::<_, std::io::Error>(rustix::fs::open(&folder, flags, Mode::empty())?)
        });
        // Another process of ours may be done with it and remove it between the two.
        let folder = opened
            .take(limits::CGROUP_TRIES)
            .find(|opened| !matches!(opened, Err(error) if error.kind() == std::io::ErrorKind::NotFound))
            .unwrap_or_else(|| Err(Errno::NOENT.into()))
            .at("make the cgroup", path)?;
        Ok(Group::of(GroupKind::Cgroup { home: home.clone(), path: path.to_owned(), folder, v1: Vec::new() }))
    }

    fn of(how: GroupKind) -> Group {
        Group { how, let_go: AtomicBool::new(false), confined: false, reused: None }
    }

    /// One that nothing is ever in.
    pub fn placeholder() -> Group {
        Group::of(GroupKind::EnvMarker(EnvMarker::default()))
    }

    /// Leaves it as it is: what lives in it goes on for somebody else.
    pub fn disown(&self) {
        self.let_go.store(true, Ordering::Relaxed);
    }

    fn files(&self) -> Option<ControlFiles<'_>> {
        match &self.how {
            GroupKind::Cgroup { home, path, .. } => {
                Some(ControlFiles { tree: &home.tree, folder: home.tree.folder.join(path), path })
            }
            GroupKind::EnvMarker(_) => None,
        }
    }

    /// Gives the group folders in the v1 hierarchies of those `controllers` that it cannot have otherwise. Who enters
    /// the group later enters them too.
    fn make_v1(&mut self, controllers: &[Controller]) -> Result<()> {
        let GroupKind::Cgroup { home, path, v1, .. } = &mut self.how else { return Ok(()) };
        for (controller, folder) in home.tree.v1_folders(path) {
            if controllers.contains(&controller) && !v1.contains(&folder) {
                fs::create_dir_all(&folder).at("make the cgroup", &folder)?;
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
        if let Some(files) = self.files() {
            files.set_limits(limits)?;
            if limits.memory_bytes.is_some() {
                files.set_oom_group()?;
            }
        }
        Ok(())
    }

    /// Gives the group every account that this host can keep, and bounds it. For a group at the top of our tree, which
    /// others are made in; a limit for which there is no controller here is left out, and [`Enforcement`] says so.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enable_limits(&mut self, limits: &Limits) -> Result<()> {
        self.make_v1(&Controller::ALL)?;
        if let GroupKind::Cgroup { home, path, .. } = &self.how {
            lock(&home.held).insert(path.clone());
        }
        self.files().map_or(Ok(()), |files| files.set_limits(limits))
    }

    /// Bounds a group that [`Group::enable_limits`] bounded, while things run in it.
    ///
    /// # Errors
    /// `Conflict` when the kernel cannot take back what is in use.
    pub fn update_limits(&self, limits: &Limits) -> Result<()> {
        self.files().map_or(Ok(()), |files| files.set_limits(limits))
    }

    /// Keeps an account of the group's memory, so that a kill for want of it can be told.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn track_memory(&mut self) -> Result<()> {
        self.make_v1(&[Controller::Memory])
    }

    /// What a process must write `0` to before it is in the group in the v1 hierarchies as well, where birth puts it
    /// beside the server: the group's own folders, else those of the group at the top that it belongs to.
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

    /// The cgroup's folder, to be born into.
    pub fn folder(&self) -> Option<BorrowedFd<'_>> {
        match &self.how {
            GroupKind::Cgroup { folder, .. } => Some(folder.as_fd()),
            GroupKind::EnvMarker(_) => None,
        }
    }

    /// What a command needs in its environment so that the group can find it.
    pub fn env_marker(&self) -> Option<CString> {
        match &self.how {
            GroupKind::Cgroup { .. } => None,
            GroupKind::EnvMarker(mark) if mark.is_empty() => None,
            GroupKind::EnvMarker(mark) => CString::new(mark.variable()).ok(),
        }
    }

    /// What a process of another place writes `0` to, to move itself and what it forks from then on into the group. Each write
    /// costs up to 15 ms on an idle machine: the kernel waits for an RCU grace period before it takes
    /// `cgroup_threadgroup_rwsem` for writing. Processes are never moved by their numbers, which may be another's by then.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub fn procs_files(&self) -> Result<Vec<OwnedFd>> {
        let GroupKind::Cgroup { home, path, v1, .. } = &self.how else { return Ok(Vec::new()) };
        let own = home.tree.folder.join(path);
        [&own].into_iter().chain(v1).map(|folder| open_procs(folder)).collect()
    }

    /// Those of the v1 folders alone, for a process that is in the group already.
    ///
    /// # Errors
    /// As above.
    pub fn v1_limit_procs_files(&self) -> Result<Vec<OwnedFd>> {
        let GroupKind::Cgroup { v1, .. } = &self.how else { return Ok(Vec::new()) };
        v1.iter().map(|folder| open_procs(folder)).collect()
    }

    /// Makes it fit for another command, if nothing lives in it: making a group and removing it costs more than moving a
    /// process into one. Its accounts go on, so it is for commands of which only the kills are told.
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
        self.reused = Some(self.files().and_then(|files| files.oom_kills()).unwrap_or(0));
        true
    }

    /// Whether its accounts have been another command's as well.
    pub fn is_reused(&self) -> bool {
        self.reused.is_some()
    }

    /// Whether the kernel has ended something in it for want of memory; `None` where this host cannot tell.
    pub fn oom_killed(&self) -> Option<bool> {
        let count = self.files()?.oom_kills()?;
        Some(count > self.reused.unwrap_or(0))
    }

    /// What everything that was ever in the group has used. Where only v1 controllers are, and the group has no
    /// account of its own, most of it is not known.
    pub fn usage(&self) -> Usage {
        self.files().map(|files| files.usage()).unwrap_or_default()
    }

    /// What the group uses now.
    pub fn current(&self) -> CurrentUsage {
        self.files().map(|files| files.current()).unwrap_or_default()
    }

    /// As /proc names it.
    pub fn proc_path(&self) -> Option<PathBuf> {
        match &self.how {
            GroupKind::Cgroup { home, path, .. } => Some(home.tree.inside.join(path)),
            GroupKind::EnvMarker(_) => None,
        }
    }

    /// Its name below our tree, by which [`Cgroups::group`] finds it again.
    pub fn path(&self) -> &str {
        match &self.how {
            GroupKind::Cgroup { path, .. } => path,
            GroupKind::EnvMarker(mark) => mark.id(),
        }
    }

    /// The groups directly below `below` in this one.
    pub fn children(&self, below: &str) -> Vec<String> {
        match &self.how {
            GroupKind::Cgroup { home, path, .. } => home.tree.children_of(&Path::new(path).join(below)),
            GroupKind::EnvMarker(_) => Vec::new(),
        }
    }

    /// Whether `pid` is in this group or below it, as the kernel says.
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
    /// Removes it at once, and not when the last who has it is done with it: its name may be another one's by then.
    pub fn remove(&self) {
        let GroupKind::Cgroup { home, path, v1, .. } = &self.how else { return };
        if self.let_go.swap(true, Ordering::AcqRel) {
            return;
        }
        if !v1.is_empty() {
            lock(&home.held).remove(path);
        }
        let mut retry = Vec::new();
        if !path.is_empty() && !home.tree.remove_with(path, v1.iter().map(PathBuf::as_path)) {
            // Whoever it belonged to has ended, though perhaps not by itself.
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

/// With two calls, as a rule: the kernel writes all of such a file for every read(2), and std asks for 32 bytes first.
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

    /// A server and a keeper both have the group of a run, and either may be done with it first.
    #[test]
    fn two_processes_may_be_done_with_a_group_at_the_same_time() {
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

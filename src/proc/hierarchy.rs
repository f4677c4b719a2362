//! The cgroup hierarchies of this machine: the location of berth's tree of groups, and the controllers that the groups
//! have. There are three cases: v2 with controllers (systemd; the tree is delegated to berth, or berth is root), v1
//! controllers beside a v2 hierarchy that has no controllers, and no writable hierarchy.
//!
//! This module moves no process but its own. No threads, no locks.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::Access;
use serde::{Deserialize, Serialize};

use crate::base::limits;

/// The CPU weight of the server's own cgroup, if it has one. The kernel's default is 100 (cgroup-v2.rst).
const SERVER_CPU_WEIGHT: u64 = 1000;

/// A resource that has a controller of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Controller {
    Memory,
    Cpu,
    Pids,
}

impl Controller {
    pub(super) const ALL: [Controller; 3] = [Controller::Memory, Controller::Cpu, Controller::Pids];

    pub(super) fn name(self) -> &'static str {
        match self {
            Controller::Memory => "memory",
            Controller::Cpu => "cpu",
            Controller::Pids => "pids",
        }
    }
}

/// The way in which the groups of berth's tree get a controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ControllerSource {
    /// The controller's files are in the group's own folder.
    V2,
    /// The controller's files are in a folder of the same name below this path. A process must enter this folder
    /// separately.
    V1(PathBuf),
    /// The controller is unavailable, for the given reason.
    Nothing(String),
}

/// The locations of berth's tree in the hierarchies.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Tree {
    /// The tree's folder in the v2 hierarchy.
    pub(super) folder: PathBuf,
    /// The path of this folder as /proc/PID/cgroup shows it.
    pub(super) inside: PathBuf,
    /// The path of this folder in the `name=systemd` v1 hierarchy: on hybrid machines, systemd-nspawn mirrors its
    /// cgroup there.
    pub(super) mirror: Option<PathBuf>,
    /// The source of each controller, in the order of [`Controller::ALL`].
    by: [ControllerSource; 3],
    /// Whether the host has only cgroup v2.
    pub(super) only_v2: bool,
}

/// A mounted cgroup hierarchy.
struct CgroupMount {
    /// The folder of the hierarchy that is mounted at `at`.
    root: String,
    at: PathBuf,
    v2: bool,
    options: String,
}

impl Tree {
    /// Finds a writable parent for the folder `name`: this process's own cgroup if systemd has delegated it
    /// (user.delegate, systemd.resource-control(5)), else the top of the hierarchy.
    pub(super) fn find(name: &str) -> Option<Tree> {
        let mounts = mounts();
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let unified = mounts.iter().find(|mount| mount.v2)?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::"))?;
        // The path is relative to the mount, which in a container may show only a part of the hierarchy.
        let own = Path::new(own).strip_prefix(&unified.root).unwrap_or(Path::new("")).to_owned();

        let mut found: Option<Tree> = None;
        let own_folder = unified.at.join(&own);
        let delegated = rustix::fs::getxattr(&own_folder, "user.delegate", &mut [0u8; 8]).is_ok()
            || rustix::fs::getxattr(&own_folder, "trusted.delegate", &mut [0u8; 8]).is_ok();
        if delegated && own != Path::new("") {
            leave(&own_folder);
            found = Tree::at(unified, &own, name, &mounts);
        }
        // Prefer a place with all controllers.
        if found.as_ref().is_none_or(|tree| tree.by.iter().any(|by| *by != ControllerSource::V2)) {
            let top = Tree::at(unified, Path::new(""), name, &mounts);
            found = match (found, top) {
                (Some(own), Some(top)) if own.count_v2() >= top.count_v2() => {
                    let _ = fs::remove_dir(&top.folder);
                    Some(own)
                }
                (Some(own), Some(top)) => {
                    let _ = fs::remove_dir(&own.folder);
                    Some(top)
                }
                (own, top) => own.or(top),
            };
        }
        found
    }

    fn at(unified: &CgroupMount, place: &Path, name: &str, mounts: &[CgroupMount]) -> Option<Tree> {
        let folder = unified.at.join(place).join(name);
        fs::create_dir_all(&folder).ok()?;
        rustix::fs::access(folder.join("cgroup.procs"), Access::WRITE_OK).ok()?;
        let offered =
            fs::read_to_string(unified.at.join(place).join("cgroup.controllers")).unwrap_or_default();
        let by = Controller::ALL.map(|controller| {
            let word = controller.name();
            if offered.split_whitespace().any(|offered| offered == word) {
                let switch = format!("+{word}");
                return match [unified.at.join(place), folder.clone()].iter().try_for_each(|at| control(at, &switch)) {
                    Ok(()) => ControllerSource::V2,
                    Err(error) => ControllerSource::Nothing(format!(
                        "the cgroup controller {word} could not be switched on for {}: {error}; start berth as root, or \
                         as a systemd service with Delegate=yes",
                        folder.display()
                    )),
                };
            }
            v1(controller, name, mounts)
        });
        // Only systemd's hybrid layout has this hierarchy.
        let named = mounts.iter().find(|mount| !mount.v2 && mount.option("name=systemd"));
        let only_v2 = mounts.iter().all(|mount| mount.v2);
        Some(Tree {
            mirror: named.map(|named| named.at.join(place).join(name)),
            inside: Path::new(&unified.root).join(place).join(name),
            folder,
            by,
            only_v2,
        })
    }

    pub(super) fn source(&self, controller: Controller) -> &ControllerSource {
        &self.by[controller as usize]
    }

    fn count_v2(&self) -> usize {
        self.by.iter().filter(|by| **by == ControllerSource::V2).count()
    }

    /// Creates the folder of a group, and its parents if they are missing.
    pub(super) fn make(&self, path: &str) -> std::io::Result<PathBuf> {
        let folder = self.folder.join(path);
        match fs::create_dir(&folder) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                fs::create_dir_all(&folder)?;
                self.enable_above(path)?;
            }
            Err(error) => return Err(error),
        }
        // The parent may have been created as a leaf, without controllers for its children.
        let file = match Controller::ALL
            .into_iter()
            .find(|controller| self.source(*controller) == &ControllerSource::V2)
        {
            Some(Controller::Memory) => "memory.max",
            Some(Controller::Cpu) => "cpu.max",
            Some(Controller::Pids) => "pids.max",
            None => return Ok(folder),
        };
        if rustix::fs::access(folder.join(file), Access::EXISTS).is_err() {
            self.enable_above(path)?;
        }
        Ok(folder)
    }

    /// Enables the available controllers for the children of every folder between the tree's folder and the group.
    fn enable_above(&self, path: &str) -> std::io::Result<()> {
        let ours = Controller::ALL
            .into_iter()
            .filter(|controller| self.source(*controller) == &ControllerSource::V2);
        let switch = ours.map(|controller| format!("+{}", controller.name())).collect::<Vec<_>>().join(" ");
        if switch.is_empty() {
            return Ok(());
        }
        let mut at = self.folder.clone();
        control(&at, &switch)?;
        let parts: Vec<_> = Path::new(path).components().collect();
        for part in parts.iter().take(parts.len().saturating_sub(1)) {
            at.push(part);
            control(&at, &switch)?;
        }
        Ok(())
    }

    /// Returns the group's folders in the v1 hierarchies, each with its controller.
    pub(super) fn v1_folders(&self, path: &str) -> Vec<(Controller, PathBuf)> {
        let v1 = Controller::ALL.into_iter().filter_map(|controller| match self.source(controller) {
            ControllerSource::V1(folder) => Some((controller, folder.join(path))),
            _ => None,
        });
        v1.collect()
    }

    /// Returns the names of the folders directly below a group.
    pub(super) fn children_of(&self, path: &Path) -> Vec<String> {
        let v1 = Controller::ALL.into_iter().filter_map(|controller| match self.source(controller) {
            ControllerSource::V1(folder) => Some(folder.join(path)),
            _ => None,
        });
        let mut names: Vec<String> = [self.folder.join(path)]
            .into_iter()
            .chain(v1)
            .flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten())
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Kills the processes of berth's tree at another path, and removes that tree.
    pub(super) fn end_elsewhere(&self, folder: &Path) {
        let ours = folder.file_name() == self.folder.file_name() && folder.starts_with("/sys/fs/cgroup");
        if !ours || !folder.is_dir() {
            return;
        }
        log::warn!("Killing the processes that an earlier server left in {}", folder.display());
        let _ = write(&folder.join("cgroup.kill"), "1");
        let deadline = std::time::Instant::now() + limits::KILL_WAIT;
        while !remove_folder(folder) && std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// Removes the v2 folder of `path` and the folders below it, deepest first. Returns `false` if a group still has
    /// processes. The folders in the mirror have no processes, so they are always removed. With `everywhere`, the v1
    /// folders of `path` are removed as well.
    pub(super) fn remove(&self, path: &str, everywhere: bool) -> bool {
        let v1 = if everywhere { self.v1_folders(path) } else { Vec::new() };
        self.remove_with(path, v1.iter().map(|(_, folder)| folder.as_path()))
    }

    /// Removes a group's v2 folder and the given v1 folders. Returns `false` if a group still has processes.
    pub(super) fn remove_with<'a>(&self, path: &str, v1: impl Iterator<Item = &'a Path>) -> bool {
        if let Some(mirror) = &self.mirror {
            remove_folder(&mirror.join(path));
        }
        let removed = remove_folder(&self.folder.join(path));
        v1.fold(removed, |removed, folder| removed & remove_folder(folder))
    }
}

impl CgroupMount {
    fn option(&self, wanted: &str) -> bool {
        self.options.split(',').any(|option| option == wanted)
    }
}

fn mounts() -> Vec<CgroupMount> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let parse = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let (left, right): (Vec<_>, Vec<_>) = (left.split(' ').collect(), right.split(' ').collect());
        let kind = *right.first()?;
        (kind == "cgroup" || kind == "cgroup2").then_some(())?;
        Some(CgroupMount {
            root: (*left.get(3)?).to_owned(),
            at: PathBuf::from(left.get(4)?),
            v2: kind == "cgroup2",
            options: (*right.get(2)?).to_owned(),
        })
    };
    text.lines().filter_map(parse).collect()
}

/// Returns the source of a controller that v2 does not provide.
fn v1(controller: Controller, name: &str, mounts: &[CgroupMount]) -> ControllerSource {
    let word = controller.name();
    let Some(mount) = mounts.iter().find(|mount| !mount.v2 && mount.option(word)) else {
        // The columns of /proc/cgroups are name, hierarchy, count and enabled (cgroups(7)).
        let known = fs::read_to_string("/proc/cgroups").unwrap_or_default();
        let off = known.lines().any(|line| {
            let mut fields = line.split_whitespace();
            fields.next() == Some(word) && fields.nth(2) == Some("0")
        });
        return ControllerSource::Nothing(if off {
            format!(
                "the kernel disables the cgroup controller {word}; add cgroup_enable={word} to its command line"
            )
        } else {
            format!(
                "the cgroup controller {word} is not available to berth; start it as root, or as a systemd service with Delegate=yes"
            )
        });
    };
    let folder = mount.at.join(name);
    let usable = fs::create_dir_all(&folder).is_ok()
        && rustix::fs::access(folder.join("cgroup.procs"), Access::WRITE_OK).is_ok();
    if usable {
        ControllerSource::V1(folder)
    } else {
        ControllerSource::Nothing(format!(
            "{} is not writable for berth; start it as root",
            mount.at.display()
        ))
    }
}

/// Moves this process out of `own_folder` before the folder's children get controllers: a cgroup has either processes
/// or children with controllers (cgroup-v2.rst, "No Internal Process Constraint").
fn leave(own_folder: &Path) {
    let offered = fs::read_to_string(own_folder.join("cgroup.controllers")).unwrap_or_default();
    if offered.trim().is_empty() {
        return;
    }
    let leaf = own_folder.join("server");
    let moved = fs::create_dir_all(&leaf)
        .and_then(|()| write(&leaf.join("cgroup.procs"), &std::process::id().to_string()));
    if let Err(error) = moved {
        log::warn!("The server could not move into {}: {error}", leaf.display());
        return;
    }
    // With the cpu controller, a large number of workloads cannot starve the server.
    if control(own_folder, "+cpu").is_ok() {
        let _ = write(&leaf.join("cpu.weight"), &SERVER_CPU_WEIGHT.to_string());
    }
}

fn control(folder: &Path, switch: &str) -> std::io::Result<()> {
    write(&folder.join("cgroup.subtree_control"), switch)
}

/// Writes `text` to an existing file of a cgroup.
pub(super) fn write(file: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    fs::OpenOptions::new().write(true).open(file)?.write_all(text.as_bytes())
}

fn remove_folder(folder: &Path) -> bool {
    // A cgroup's folder nearly always has no folders below it: then a single rmdir(2) without a listing is enough.
    match fs::remove_dir(folder) {
        Ok(()) => return true,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return true,
        Err(_) => {}
    }
    if let Ok(entries) = fs::read_dir(folder) {
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            remove_folder(&entry.path());
        }
    }
    fs::remove_dir(folder).is_ok()
}

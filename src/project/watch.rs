//! Detects changes of agent files in workspaces by other processes. inotify(7) only triggers a scan; two snapshots
//! are compared to find the changes. So no change is reported twice, none is missed if the kernel's queue overflows,
//! and berth's own writes are not reported.
//!
//! Thread: `project-watch`. Locks: the list of requested workspaces, a leaf; one site's write turn (level 3) during a
//! scan, so that it never sees a partial write of berth. The number of watches is limited, in total and per
//! workspace. A watch is set on a folder that was opened beneath its root, so it is never outside. No files of a site
//! stay open between scans.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;

use super::Project;
use super::site::ProjectSite;
use super::snapshot::{self, is_relevant_at_top};
use crate::base::thread::{self, JoinOnDrop};
use crate::base::{Result, limits};
use crate::proc::waiter::{Waiter, WakeReason};
use crate::store::folder_watcher::{FolderChange, FolderWatcher};

/// Delay between a manual change and its reload event, as in the OpenWork server; one event for each kind of file.
const RELOAD_DEBOUNCE: Duration = Duration::from_millis(750);
/// Maximum number of watched folders in a workspace.
const WATCHES_EACH: usize = 1000;
/// Maximum number of watched folders. The kernel's own limit may be lower: 8192 on an old small machine.
const WATCHES_ALL: usize = 50_000;

/// Opens the files of workspaces.
pub trait SiteProvider: Send + Sync {
    /// Opens a workspace's files. Returns `None` if the workspace does not exist or has no files yet.
    fn open(&self, id: &str) -> Option<ProjectSite>;
}

/// Watches workspaces until dropped.
#[derive(Debug)]
pub struct ProjectWatch {
    project: Weak<Project>,
    _thread: JoinOnDrop,
}

impl Drop for ProjectWatch {
    fn drop(&mut self) {
        if let Some(project) = self.project.upgrade() {
            project.watch_requests.end();
        }
    }
}

struct ProjectWatcher {
    project: Arc<Project>,
    sites: Arc<dyn SiteProvider>,
    changes: FolderWatcher,
    /// The workspace of each watch, and whether it is on the workspace's top folder.
    watches: HashMap<i32, (String, bool)>,
    /// The time of each workspace's next scan.
    due: BTreeMap<String, Instant>,
    /// The warning about missing watches was logged; it is logged once.
    warned: bool,
}

/// Starts the watching thread.
///
/// # Errors
/// If the user has no inotify instances left, or a thread cannot be started.
pub fn start(project: &Arc<Project>, sites: Arc<dyn SiteProvider>) -> Result<ProjectWatch> {
    let watcher = ProjectWatcher {
        project: project.clone(),
        sites,
        changes: FolderWatcher::new()?,
        watches: HashMap::new(),
        due: BTreeMap::new(),
        warned: false,
    };
    let waiter = Waiter::new()?;
    project.watch_requests.add_waiter(&waiter);
    let body = move || {
        if let Err(error) = watcher.run(&waiter) {
            log::error!("manual changes in workspaces are no longer detected: {error}");
        }
    };
    let thread = thread::spawn("project-watch".into(), limits::STACK, body)?;
    Ok(ProjectWatch { project: Arc::downgrade(project), _thread: thread })
}

impl ProjectWatcher {
    fn run(mut self, waiter: &Waiter) -> Result<()> {
        loop {
            waiter.arm();
            if self.project.watch_requests.is_ended() {
                return Ok(());
            }
            let new = self.project.watch_requests.take_new();
            new.iter().for_each(|id| self.look(id));
            let now = Instant::now();
            let due: Vec<String> =
                self.due.iter().filter(|(_, at)| **at <= now).map(|(id, _)| id.clone()).collect();
            for id in due {
                self.due.remove(&id);
                self.look(&id);
            }
            let forever = now + Duration::from_secs(3600);
            let deadline = self.due.values().min().copied().unwrap_or(forever);
            if waiter.wait(Some((self.changes.as_fd(), PollFlags::IN)), deadline)? == WakeReason::OtherReady {
                self.read()?;
            }
        }
    }

    fn read(&mut self) -> Result<()> {
        let soon = Instant::now() + RELOAD_DEBOUNCE;
        let mut unmounted = Vec::new();
        self.changes.read(|change| match change {
            FolderChange::Overflow => {
                self.due.extend(self.watches.values().map(|(id, _)| (id.clone(), soon)));
            }
            FolderChange::WatchEnded { watch, unmounted: gone } => {
                unmounted.extend(self.watches.remove(&watch).filter(|(_, top)| *top && gone));
            }
            FolderChange::Entry { watch, name, itself } => {
                let Some((id, top)) = self.watches.get(&watch) else { return };
                if itself || !top || name.as_deref().is_some_and(is_relevant_at_top) {
                    // Counted from the first change, so that continuous writes are reported too.
                    self.due.entry(id.clone()).or_insert(soon);
                }
            }
        })?;
        // A scan would mount it again. The next call that needs the files restarts watching.
        unmounted.iter().for_each(|(id, _)| self.forget(id));
        Ok(())
    }

    /// Compares snapshots, and watches the folders that exist now.
    fn look(&mut self, id: &str) {
        let Some(site) = self.sites.open(id) else { return self.forget(id) };
        // Watches are set before the scan, so that changes in between trigger another scan.
        let (_, folders) = snapshot::take(&site.root);
        let before: HashSet<i32> = self.of(id).collect();
        let mut now = HashSet::new();
        for folder in folders.iter().take(WATCHES_EACH) {
            now.extend(self.add(&site, folder));
        }
        for gone in before.difference(&now) {
            self.watches.remove(gone);
            self.changes.unwatch(*gone);
        }
        self.project.detect_changes(&site);
    }

    fn add(&mut self, site: &ProjectSite, folder: &str) -> Option<i32> {
        let fd = site.root.open_folder(folder).ok()?;
        let known = self.watches.len();
        let added = if known >= WATCHES_ALL { Err(Errno::NOSPC) } else { self.changes.watch(&fd) };
        match added {
            Ok(wd) => {
                self.watches.insert(wd, (site.id.clone(), folder.is_empty()));
                Some(wd)
            }
            Err(errno) => {
                if errno == Errno::NOSPC && !self.warned {
                    self.warned = true;
                    log::warn!(
                        "Manual changes are not detected in all workspaces: {known} folders are watched, and the kernel \
                         or berth allows no more (sysctl fs.inotify.max_user_watches)"
                    );
                }
                None
            }
        }
    }

    fn of<'a>(&'a self, id: &'a str) -> impl Iterator<Item = i32> + 'a {
        self.watches.iter().filter(move |(_, (other, _))| other == id).map(|(wd, _)| *wd)
    }

    fn forget(&mut self, id: &str) {
        let gone: Vec<i32> = self.of(id).collect();
        for wd in gone {
            self.watches.remove(&wd);
            self.changes.unwatch(wd);
        }
        self.due.remove(id);
        self.project.unwatch(id);
        self.project.watch_requests.forget(id);
    }
}

//! Detects changes of agent files in workspaces by other processes. An inotify(7) event only triggers a scan, which
//! compares two snapshots to find the changes. So no change is reported twice, no change is missed if the kernel's
//! queue overflows, and berth's own writes are not reported.
//!
//! Thread: `project-watch`. Locks: the list of requested workspaces, a leaf; one site's write turn (level 3) during a
//! scan, so that the scan never sees a partial write of berth. The number of watches is limited, in total and per
//! workspace. Each watch is set on a folder that was opened beneath the site's root, so no folder outside of the site
//! is watched. No files of a site stay open between scans.

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

/// The time between a change by another process and its reload event, as in the OpenWork server. All changes of one
/// kind of file in this time cause a single event.
const RELOAD_DEBOUNCE: Duration = Duration::from_millis(750);
/// The maximum number of watched folders in a workspace.
const WATCHES_EACH: usize = 1000;
/// The maximum number of watched folders in all workspaces. The kernel's own limit may be lower, for example 8192 on
/// an old small machine.
const WATCHES_ALL: usize = 50_000;

/// Opens the files of workspaces for the watching thread.
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
    /// The time at which each workspace will be scanned next.
    due: BTreeMap<String, Instant>,
    /// Whether the warning about missing watches was logged. It is logged only once.
    warned: bool,
}

/// Starts the watching thread.
///
/// # Errors
/// Fails if the user has no inotify instances left, or if the thread cannot be started.
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
                    // The delay is counted from the first change, so that continuous writes are reported too.
                    self.due.entry(id.clone()).or_insert(soon);
                }
            }
        })?;
        // A scan would mount the workspace's files again. Watching restarts at the next call that needs the files.
        unmounted.iter().for_each(|(id, _)| self.forget(id));
        Ok(())
    }

    /// Scans a workspace: compares two snapshots, and watches the folders that exist now.
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

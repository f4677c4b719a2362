//! Notices what others change of what an agent reads in a workspace. inotify(7) only says that it is worth looking: what
//! has changed is found by comparing two looks, so that nothing is told twice, nothing is missed when the kernel's queue
//! overflows, and what berth has written itself is no news.
//!
//! Thread: `project-watch`. Locks: the list of those to begin with, a leaf; one site's writes (level 3) while it looks,
//! so that it never sees half of our own write. Watches are bounded, for all and for each; a watch is set on a folder
//! that was opened beneath its root, so none is ever set outside. Nothing of a site is kept open between two looks.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;

use super::snapshot::{self, is_relevant_at_top};
use super::{Project, ProjectSite};
use crate::base::thread::{self, JoinOnDrop, lock};
use crate::base::{Result, limits};
use crate::proc::waiter::{Waiter, WaiterList, WakeReason};
use crate::store::folder_watcher::{FolderChange, FolderWatcher};

/// Who knows how to come to a workspace's files.
pub trait SiteProvider: Send + Sync {
    /// A workspace's files; `None` when there is no such workspace, or nothing of it yet.
    fn open(&self, id: &str) -> Option<ProjectSite>;
}

/// What others tell the watching thread.
#[derive(Debug)]
pub(super) struct WatchRequests {
    new: Mutex<HashSet<String>>,
    asked: Mutex<HashSet<String>>,
    ends: AtomicBool,
    bells: WaiterList,
}

impl WatchRequests {
    pub(super) fn new() -> WatchRequests {
        WatchRequests {
            new: Mutex::default(),
            asked: Mutex::default(),
            ends: AtomicBool::new(false),
            bells: WaiterList::default(),
        }
    }

    /// Has a workspace watched from now on, if it is not yet.
    pub(super) fn watch(&self, id: &str) {
        let is_new = {
            let mut asked = lock(&self.asked);
            asked.len() < limits::WORKSPACES && !asked.contains(id) && asked.insert(id.to_owned())
        };
        if is_new {
            lock(&self.new).insert(id.to_owned());
            self.bells.notify_all();
        }
    }

    /// One that is not watched any more may be asked for again.
    fn forget(&self, id: &str) {
        lock(&self.asked).remove(id);
    }
}

/// The watching, until this is dropped.
#[derive(Debug)]
pub struct ProjectWatch {
    project: Weak<Project>,
    _thread: JoinOnDrop,
}

impl Drop for ProjectWatch {
    fn drop(&mut self) {
        if let Some(project) = self.project.upgrade() {
            project.calls.ends.store(true, Ordering::SeqCst);
            project.calls.bells.notify_all();
        }
    }
}

struct ProjectWatcher {
    project: Arc<Project>,
    sites: Arc<dyn SiteProvider>,
    changes: FolderWatcher,
    /// Whose folder, and whether it is the workspace's own.
    watches: HashMap<i32, (String, bool)>,
    /// When to look.
    due: BTreeMap<String, Instant>,
    /// A host without free watches is told of once.
    warned: bool,
}

/// Begins to watch.
///
/// # Errors
/// When the kernel has no inotify left for this user, or no thread.
pub fn start(project: &Arc<Project>, sites: Arc<dyn SiteProvider>) -> Result<ProjectWatch> {
    let watcher = ProjectWatcher {
        project: project.clone(),
        sites,
        changes: FolderWatcher::new()?,
        watches: HashMap::new(),
        due: BTreeMap::new(),
        warned: false,
    };
    let bell = Waiter::new()?;
    project.calls.bells.add(&bell);
    let body = move || {
        if let Err(error) = watcher.run(&bell) {
            log::error!("changes by hand are not noticed any more: {error}");
        }
    };
    let thread = thread::spawn("project-watch".into(), limits::STACK, body)?;
    Ok(ProjectWatch { project: Arc::downgrade(project), _thread: thread })
}

impl ProjectWatcher {
    fn run(mut self, bell: &Waiter) -> Result<()> {
        loop {
            bell.arm();
            if self.project.calls.ends.load(Ordering::SeqCst) {
                return Ok(());
            }
            let new = std::mem::take(&mut *lock(&self.project.calls.new));
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
            if bell.wait(Some((self.changes.as_fd(), PollFlags::IN)), deadline)? == WakeReason::OtherReady {
                self.read()?;
            }
        }
    }

    fn read(&mut self) -> Result<()> {
        let soon = Instant::now() + limits::RELOAD_DEBOUNCE;
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
                    // From the first change on: who writes all the time is told of all the same.
                    self.due.entry(id.clone()).or_insert(soon);
                }
            }
        })?;
        // Looking would mount it again; the next call that needs the files begins anew.
        unmounted.iter().for_each(|(id, _)| self.forget(id));
        Ok(())
    }

    /// Compares what is there with what was there, and watches the folders that are there now.
    fn look(&mut self, id: &str) {
        let Some(site) = self.sites.open(id) else { return self.forget(id) };
        // First the watches, then the look: what happens in between is looked at again.
        let (_, folders) = snapshot::take(&site.root);
        let before: HashSet<i32> = self.of(id).collect();
        let mut now = HashSet::new();
        for folder in folders.iter().take(limits::WATCHES_EACH) {
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
        let added = if known >= limits::WATCHES_ALL { Err(Errno::NOSPC) } else { self.changes.watch(&fd) };
        match added {
            Ok(wd) => {
                self.watches.insert(wd, (site.id.clone(), folder.is_empty()));
                Some(wd)
            }
            Err(errno) => {
                if errno == Errno::NOSPC && !self.warned {
                    self.warned = true;
                    log::warn!(
                        "Changes by hand are not noticed in all workspaces: {known} folders are watched, and the kernel \
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
        self.project.calls.forget(id);
    }
}

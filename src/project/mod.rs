//! A workspace's agent files, as the OpenWork API shows them: OpenCode's configuration, plugins, skills, MCP servers
//! and commands; inbox and outbox; change events; export and import of all these files. Must not know HTTP, nor where
//! a workspace's files are: callers pass a [`ProjectSite`] for each call. The workload may change every file at any
//! moment, so every file is opened beneath the site's root.
//!
//! Threads: any, and `project-watch` ([`watch`]). Locks: one site's write turn (level 3), which a thread holds while
//! it writes files but never while an approval is pending; then the mutex of the snapshots, a leaf.

pub mod commands;
pub mod config;
mod files;
mod folders;
pub mod jobs;
pub mod mcp;
pub mod plugins;
pub mod portable;
mod portable_files;
pub mod preview;
pub mod references;
pub mod reload;
pub mod rules;
mod site;
pub mod skills;
pub mod snapshot;
mod swap;
pub mod trays;
mod turn;
pub mod watch;
mod watch_requests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Map, Value};

use self::reload::{ReloadAction, ReloadEvents, ReloadReason, ReloadTrigger};
use self::site::FILE_MODE;
pub use self::site::ProjectSite;
use self::snapshot::ProjectSnapshot;
use self::turn::{TurnGuard, WriteTurn};
use self::watch_requests::WatchRequests;
use crate::access::approval_request::FileContent;
use crate::base::thread::lock;
use crate::base::{Result, limits};
use crate::store::beneath::Root;
use crate::store::file_cache::FileCache;

/// How long a write waits for other writes to the same workspace. Each write takes milliseconds.
const WRITE_WAIT: Duration = Duration::from_secs(10);

/// The services on a workspace's agent files.
#[derive(Debug)]
pub struct Project {
    home: PathBuf,
    skills_read: FileCache<Arc<skills::ParsedSkill>>,
    commands_read: FileCache<Arc<commands::ParsedCommand>>,
    configs_read: FileCache<Arc<Map<String, Value>>>,
    writes: Mutex<HashMap<String, Arc<WriteTurn>>>,
    /// The most recent snapshot of each watched site, by workspace.
    seen: Mutex<HashMap<String, ProjectSnapshot>>,
    watch_requests: WatchRequests,
    /// The reload events of all workspaces.
    pub events: ReloadEvents,
}

impl Project {
    /// Creates the services. `home` is the folder of the user's global agent files.
    pub fn new(home: &Path, events: ReloadEvents) -> Project {
        Project {
            home: home.to_owned(),
            skills_read: FileCache::default(),
            commands_read: FileCache::default(),
            configs_read: FileCache::default(),
            writes: Mutex::default(),
            seen: Mutex::default(),
            watch_requests: WatchRequests::new(),
            events,
        }
    }

    /// Starts watching a workspace for changes by other processes.
    pub fn watch(&self, id: &str) {
        self.watch_requests.watch(id);
    }

    /// Takes a snapshot and reports changes that other processes made since the previous snapshot. The first snapshot
    /// reports no changes.
    fn detect_changes(&self, site: &ProjectSite) {
        let changes = self.with_turn(site, |_| {
            let now = snapshot::take(&site.root).0;
            let before = lock(&self.seen).insert(site.id.clone(), now.clone());
            Ok(before.map(|before| snapshot::changes(site, &before, &now)).unwrap_or_default())
        });
        for change in changes.unwrap_or_default() {
            self.events.record(&site.id, change.reason, Some(&change));
        }
    }

    /// Replaces the stored snapshot after berth's own changes, so that these are not reported. The caller holds the
    /// site's write turn.
    fn refresh_snapshot(&self, site: &ProjectSite) {
        if let Some(seen) = lock(&self.seen).get_mut(&site.id) {
            *seen = snapshot::take(&site.root).0;
        }
    }

    fn unwatch(&self, id: &str) {
        lock(&self.seen).remove(id);
    }

    /// Updates the stored snapshot after berth has written a file, so that this write is not reported. The caller
    /// holds the site's write turn.
    fn note_own_write(&self, site: &ProjectSite, path: &str) {
        if let Some(seen) = lock(&self.seen).get_mut(&site.id) {
            match snapshot::stamp(&site.root, path) {
                Some(stamp) => drop(seen.insert(path.to_owned(), stamp)),
                None => drop(seen.remove(path)),
            }
        }
    }

    /// Publishes a reload event for a change that berth made.
    fn report_change(
        &self,
        site: &ProjectSite,
        reason: ReloadReason,
        name: &str,
        action: ReloadAction,
        path: &str,
    ) {
        if site.is_preview() {
            return;
        }
        let trigger =
            ReloadTrigger { reason, name: Some(name.to_owned()), action, path: Some(site.path(path)) };
        self.events.record(&site.id, reason, Some(&trigger));
    }

    /// Returns the lock that serializes writes to a site.
    fn write_turn(&self, site: &ProjectSite) -> Arc<WriteTurn> {
        let mut all = lock(&self.writes);
        // A turn without other references is not in use, so it can be dropped.
        if all.len() >= limits::WORKSPACES {
            all.retain(|_, turn| Arc::strong_count(turn) > 1);
        }
        all.entry(site.id.clone()).or_default().clone()
    }

    /// Runs `write` while berth makes no other writes to the site.
    fn with_write_turn<R>(&self, site: &ProjectSite, write: impl FnOnce() -> Result<R>) -> Result<R> {
        self.with_turn(site, |turn| {
            turn.count();
            site.check_plan()?;
            write()
        })
    }

    /// Runs `look` while berth makes no writes to the site.
    fn with_turn<R>(
        &self,
        site: &ProjectSite,
        look: impl FnOnce(&mut TurnGuard<'_>) -> Result<R>,
    ) -> Result<R> {
        let turn = self.write_turn(site);
        let mut turn = turn.take(WRITE_WAIT)?;
        swap::recover_import(site)?;
        look(&mut turn)
    }

    /// Runs `read` without blocking writes. Returns `None` if berth wrote to the site while `read` was running.
    fn read_consistently<R>(&self, site: &ProjectSite, read: impl FnOnce() -> R) -> Result<Option<R>> {
        // This reference keeps the turn, and so its count of writes, from being dropped.
        let _turn = self.write_turn(site);
        let before = self.with_turn(site, |turn| Ok(turn.counted()))?;
        let read = read();
        let after = self.with_turn(site, |turn| Ok(turn.counted()))?;
        Ok((before == after).then_some(read))
    }

    /// Writes a file and creates its parent folders. The caller holds the site's write turn.
    fn put_file(&self, site: &ProjectSite, rel: &str, bytes: &[u8]) -> Result<()> {
        let folder = rel.rsplit_once('/').map_or("", |(above, _)| above);
        if site.applies_all() {
            site.root.make_dirs(folder)?;
            site.root.write_new(rel, bytes, FILE_MODE)?;
            self.note_own_write(site, rel);
            return Ok(());
        }
        let (old, found) = preview::inspect(&site.root, rel, limits::PROJECT_FILE_BYTES)?;
        if !site.may_change(rel, (old.clone(), found), Some(bytes))? {
            return Ok(());
        }
        site.root.make_dirs(folder)?;
        // The file is replaced only if it still has the content that was shown to the approver.
        let done = match &old {
            _ if site.root.is_link(rel)? => site.root.write_new(rel, bytes, FILE_MODE).map(|()| true)?,
            FileContent::Bytes(old) => site.root.replace_if(rel, Some(old), bytes)?,
            FileContent::Absent => site.root.replace_if(rel, None, bytes)?,
            FileContent::Described(_) => site.root.write_new(rel, bytes, FILE_MODE).map(|()| true)?,
        };
        self.note_own_write(site, rel);
        if done { Ok(()) } else { Err(preview::outdated(rel)) }
    }

    /// Opens a folder of the user's global files. Symbolic links on the way are the user's own, so they are followed.
    fn global(&self, rel: &str) -> Option<Root> {
        Root::open(&self.home.join(rel)).ok()
    }
}

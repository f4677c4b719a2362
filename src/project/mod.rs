//! A workspace's agent files, as the OpenWork API shows them: OpenCode's configuration, plugins, skills, MCP servers
//! and commands; inbox and outbox; change events; export and import of all of it. Must not know HTTP, nor where a
//! workspace's files are: callers pass a [`ProjectSite`] for each call. The workload may change every file at any
//! moment, so every file is opened beneath the site's root.
//!
//! Threads: any, and `project-watch` ([`watch`]). Locks: one site's write turn (level 3), held while files are
//! written but never while an approval is pending; then the snapshots, a leaf.

pub mod commands;
pub mod config;
pub mod jobs;
pub mod mcp;
pub mod plugins;
pub mod portable;
mod portable_files;
pub mod preview;
pub mod references;
pub mod reload;
pub mod rules;
pub mod skills;
pub mod snapshot;
mod swap;
pub mod trays;
mod turn;
pub mod watch;

use std::collections::HashMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};

use self::preview::WriteMode;
use self::reload::{ReloadAction, ReloadEvents, ReloadReason, ReloadTrigger};
use self::snapshot::ProjectSnapshot;
use self::turn::{TurnGuard, WriteTurn};
use self::watch::WatchRequests;
use crate::access::approval_request::FileContent;
use crate::base::thread::lock;
use crate::base::{Code, Error, Result, limits};
use crate::store::beneath::Root;
use crate::store::file_cache::FileCache;

/// A workspace's files, for one call. A container's root stays mounted as long as this exists.
#[derive(Debug)]
pub struct ProjectSite {
    /// The workspace's id in the OpenWork API.
    pub id: String,
    pub root: Root,
    /// The path of the files for the workspace's own processes, without a trailing slash: empty in a container.
    pub path_prefix: String,
    /// The folder on this host, in whose parents OpenCode looks for skills too. `None` for a container.
    pub host_folder: Option<PathBuf>,
    /// berth's own folder for the workspace, outside its files.
    pub state_folder: PathBuf,
    writes: WriteMode,
}

impl ProjectSite {
    /// Creates a site whose writes are applied. `id` is the workspace's id in the OpenWork API.
    pub fn new(
        id: String,
        root: Root,
        shown: String,
        folder: Option<PathBuf>,
        state: PathBuf,
    ) -> ProjectSite {
        ProjectSite {
            id,
            root,
            path_prefix: shown,
            host_folder: folder,
            state_folder: state,
            writes: WriteMode::default(),
        }
    }

    /// The absolute path of a file, as the workspace's own processes see it.
    pub fn path(&self, rel: &str) -> String {
        format!("{}/{rel}", self.path_prefix)
    }
}

/// The owner of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ItemScope {
    /// The workspace.
    Project,
    /// The user that runs the server.
    Global,
}

/// How long a write waits for other writes to the workspace, each of which takes milliseconds.
const WRITE_WAIT: Duration = Duration::from_secs(10);

/// The error of a file behind a symbolic link out of a host workspace.
const LINK_LEADS_OUT: &str =
    "berth does not read it, because its link is absolute or leads out of the workspace; OpenCode follows it";

/// The size of the JSON text of a list of skills or commands.
const LIST_BYTES: usize = 4 << 20;

/// A list of limited size.
#[derive(Debug, Serialize)]
pub struct BoundedList<T> {
    pub items: Vec<T>,
    /// Rows, or parts of rows, were left out.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

/// The services on a workspace's agent files.
#[derive(Debug)]
pub struct Project {
    home: PathBuf,
    skills_read: FileCache<Arc<skills::ParsedSkill>>,
    commands_read: FileCache<Arc<commands::ParsedCommand>>,
    configs_read: FileCache<Arc<Map<String, Value>>>,
    writes: Mutex<HashMap<String, Arc<WriteTurn>>>,
    /// The last snapshot of each watched site.
    seen: Mutex<HashMap<String, ProjectSnapshot>>,
    calls: WatchRequests,
    /// The events of all changes.
    pub events: ReloadEvents,
}

impl Project {
    /// `home` contains the global files.
    pub fn new(home: &Path, events: ReloadEvents) -> Project {
        Project {
            home: home.to_owned(),
            skills_read: FileCache::default(),
            commands_read: FileCache::default(),
            configs_read: FileCache::default(),
            writes: Mutex::default(),
            seen: Mutex::default(),
            calls: WatchRequests::new(),
            events,
        }
    }

    /// Starts watching a workspace for changes by other processes.
    pub fn watch(&self, id: &str) {
        self.calls.watch(id);
    }

    /// Takes a snapshot and reports changes by other processes since the last one. The first snapshot reports none.
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

    /// Replaces the snapshot after berth's own changes, so that they are not reported. Called with the site's turn.
    fn refresh_snapshot(&self, site: &ProjectSite) {
        if let Some(seen) = lock(&self.seen).get_mut(&site.id) {
            *seen = snapshot::take(&site.root).0;
        }
    }

    fn unwatch(&self, id: &str) {
        lock(&self.seen).remove(id);
    }

    /// Updates the snapshot after berth has written a file, so that the write is not reported. Called with the site's
    /// turn.
    fn note_own_write(&self, site: &ProjectSite, path: &str) {
        if let Some(seen) = lock(&self.seen).get_mut(&site.id) {
            match snapshot::stamp(&site.root, path) {
                Some(stamp) => drop(seen.insert(path.to_owned(), stamp)),
                None => drop(seen.remove(path)),
            }
        }
    }

    /// Reports a change by berth.
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

    /// The turn that serializes writes to a site.
    fn write_turn(&self, site: &ProjectSite) -> Arc<WriteTurn> {
        let mut all = lock(&self.writes);
        // Turns that no thread holds can be dropped.
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

    /// Runs `read` without blocking writes. Returns `None` if berth wrote to the site in between.
    fn read_consistently<R>(&self, site: &ProjectSite, read: impl FnOnce() -> R) -> Result<Option<R>> {
        // Held so that the count of writes is kept.
        let _turn = self.write_turn(site);
        let before = self.with_turn(site, |turn| Ok(turn.counted()))?;
        let read = read();
        let after = self.with_turn(site, |turn| Ok(turn.counted()))?;
        Ok((before == after).then_some(read))
    }

    /// Writes a file and creates the folders above it. Called with the site's turn.
    fn put_file(&self, site: &ProjectSite, rel: &str, bytes: &[u8]) -> Result<()> {
        let folder = rel.rsplit_once('/').map_or("", |(above, _)| above);
        if site.applies_all() {
            site.root.make_dirs(folder)?;
            site.root.write_new(rel, bytes, 0o644)?;
            self.note_own_write(site, rel);
            return Ok(());
        }
        let (old, found) = preview::inspect(&site.root, rel, limits::PROJECT_FILE_BYTES)?;
        if !site.may_change(rel, (old.clone(), found), Some(bytes))? {
            return Ok(());
        }
        site.root.make_dirs(folder)?;
        // The file is replaced only if it still has the content shown to the approver.
        let done = match &old {
            _ if site.root.is_link(rel)? => site.root.write_new(rel, bytes, 0o644).map(|()| true)?,
            FileContent::Bytes(old) => site.root.replace_if(rel, Some(old), bytes)?,
            FileContent::Absent => site.root.replace_if(rel, None, bytes)?,
            FileContent::Described(_) => site.root.write_new(rel, bytes, 0o644).map(|()| true)?,
        };
        self.note_own_write(site, rel);
        if done { Ok(()) } else { Err(preview::outdated(rel)) }
    }

    /// A folder of the global files. Symbolic links on the way are the user's own.
    fn global(&self, rel: &str) -> Option<Root> {
        Root::open(&self.home.join(rel)).ok()
    }
}

/// Reads the first `most` bytes of a file as text, as OpenCode does: invalid UTF-8 is replaced. The flag is true if
/// that is the whole file. Returns `None` if the file does not exist.
fn read_head(root: &Root, rel: &str, most: u64) -> Result<Option<(String, bool)>> {
    let Some(file) = root.open_file(rel)? else { return Ok(None) };
    let mut bytes = Vec::new();
    let read = file.take(most.saturating_add(1)).read_to_end(&mut bytes);
    read.map_err(|error| Error::internal(format!("Could not read {rel}")).with_source(error))?;
    let whole = bytes.len() as u64 <= most;
    bytes.truncate(usize::try_from(most).unwrap_or(usize::MAX));
    let text = String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
    Ok(Some((text, whole)))
}

/// Reads a small text file. Returns `None` if it does not exist.
fn read_text(root: &Root, rel: &str) -> Result<Option<String>> {
    let Some(bytes) = root.read(rel, limits::PROJECT_FILE_BYTES)? else { return Ok(None) };
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|_| Error::new(Code::InvalidPath, format!("Could not read {rel}: it is not UTF-8 text")))
}

/// The error of an edit during which another process kept changing the file.
fn concurrent_change(root: &Root, rel: &str) -> Error {
    if root.is_link(rel).unwrap_or(false) {
        let message =
            format!("{rel} is a symbolic link; berth does not write through links. Replace it by a file");
        return Error::new(Code::InvalidPath, message);
    }
    let message =
        format!("{rel} was changed by another process at the same time; nothing was lost, try again");
    Error::new(Code::Conflict, message).detail("path", rel)
}

//! What an agent reads in a workspace and leaves there, as the OpenWork API shows it: OpenCode's configuration, plugins,
//! skills, MCP servers, commands; inbox and outbox; who has changed what; all of it exported and imported.
//! Knows nothing of HTTP, nor how a workspace comes to its files: it is handed a [`ProjectSite`] for each call. Every file is
//! opened beneath the site's root, since the workload may change it at any moment.
//!
//! Threads: any, and `project-watch` ([`watch`]). Locks: one site's writes (level 3), held while files are written, never
//! while somebody is asked; then what was seen, a leaf.

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

/// One workspace's files, for one call: who keeps it keeps a container's root mounted.
#[derive(Debug)]
pub struct ProjectSite {
    /// The workspace's id in the OpenWork API.
    pub id: String,
    /// Its files.
    pub root: Root,
    /// The path that its own processes have for them, without a slash at the end: empty in a container.
    pub path_prefix: String,
    /// The folder on this host, where OpenCode looks for skills above it as well; none for a container.
    pub host_folder: Option<PathBuf>,
    /// What berth keeps of the workspace, outside of it.
    pub state_folder: PathBuf,
    writes: WriteMode,
}

impl ProjectSite {
    /// A workspace's files. `id` is its id in the OpenWork API; the rest as the fields say.
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

    /// The absolute path of a file, as the workspace's own processes know it.
    pub fn path(&self, rel: &str) -> String {
        format!("{}/{rel}", self.path_prefix)
    }
}

/// Whose file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ItemScope {
    /// The workspace's.
    Project,
    /// The user's who runs the server.
    Global,
}

/// How long a write waits for the other writes of its workspace, each of which takes milliseconds.
const WRITE_WAIT: Duration = Duration::from_secs(10);

/// Said of what is behind a link out of a workspace on the host.
const LINK_LEADS_OUT: &str =
    "berth does not read it: its link leads out of the workspace, or is absolute. OpenCode follows it";

/// JSON text of one list of skills or commands.
const LIST_BYTES: usize = 4 << 20;

/// A list within bounds.
#[derive(Debug, Serialize)]
pub struct BoundedList<T> {
    /// Its rows.
    pub items: Vec<T>,
    /// Rows, or parts of them, were left out.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

/// The services on it.
#[derive(Debug)]
pub struct Project {
    home: PathBuf,
    skills_read: FileCache<Arc<skills::ParsedSkill>>,
    commands_read: FileCache<Arc<commands::ParsedCommand>>,
    configs_read: FileCache<Arc<Map<String, Value>>>,
    writes: Mutex<HashMap<String, Arc<WriteTurn>>>,
    /// What was there at the last look, of the sites that are watched.
    seen: Mutex<HashMap<String, ProjectSnapshot>>,
    calls: WatchRequests,
    /// What has changed.
    pub events: ReloadEvents,
}

impl Project {
    /// `home` has the global files.
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

    /// Has changes that others make in a workspace noticed from now on.
    pub fn watch(&self, id: &str) {
        self.calls.watch(id);
    }

    /// Takes a look and tells what others have changed since the last one; the first look tells nothing.
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

    /// All that is there now is ours, and no news. Under the site's turn.
    fn refresh_snapshot(&self, site: &ProjectSite) {
        if let Some(seen) = lock(&self.seen).get_mut(&site.id) {
            *seen = snapshot::take(&site.root).0;
        }
    }

    fn unwatch(&self, id: &str) {
        lock(&self.seen).remove(id);
    }

    /// What we have written ourselves is no news for the next look. Under the site's turn.
    fn note_own_write(&self, site: &ProjectSite, path: &str) {
        if let Some(seen) = lock(&self.seen).get_mut(&site.id) {
            match snapshot::stamp(&site.root, path) {
                Some(stamp) => drop(seen.insert(path.to_owned(), stamp)),
                None => drop(seen.remove(path)),
            }
        }
    }

    /// Tells of a change that we have made.
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

    /// Whoever writes into a site holds this.
    fn write_turn(&self, site: &ProjectSite) -> Arc<WriteTurn> {
        let mut all = lock(&self.writes);
        // Those that nobody holds are worth nothing.
        if all.len() >= limits::WORKSPACES {
            all.retain(|_, turn| Arc::strong_count(turn) > 1);
        }
        all.entry(site.id.clone()).or_default().clone()
    }

    /// Runs `write` while nobody else of ours writes into the site.
    fn with_write_turn<R>(&self, site: &ProjectSite, write: impl FnOnce() -> Result<R>) -> Result<R> {
        self.with_turn(site, |turn| {
            turn.count();
            site.check_plan()?;
            write()
        })
    }

    /// Runs `look` while nobody of ours writes into the site.
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

    /// Runs `read` beside other writes of ours; `None` if there was one meanwhile.
    fn read_consistently<R>(&self, site: &ProjectSite, read: impl FnOnce() -> R) -> Result<Option<R>> {
        // Held, so that its count goes on.
        let _turn = self.write_turn(site);
        let before = self.with_turn(site, |turn| Ok(turn.counted()))?;
        let read = read();
        let after = self.with_turn(site, |turn| Ok(turn.counted()))?;
        Ok((before == after).then_some(read))
    }

    /// Writes a whole file and the folders above it. Under the site's turn.
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
        // What was shown is exchanged for the new file, so a change in between is noticed.
        let done = match &old {
            _ if site.root.is_link(rel)? => site.root.write_new(rel, bytes, 0o644).map(|()| true)?,
            FileContent::Bytes(old) => site.root.replace_if(rel, Some(old), bytes)?,
            FileContent::Absent => site.root.replace_if(rel, None, bytes)?,
            FileContent::Described(_) => site.root.write_new(rel, bytes, 0o644).map(|()| true)?,
        };
        self.note_own_write(site, rel);
        if done { Ok(()) } else { Err(preview::outdated(rel)) }
    }

    /// A folder of the global files; links on the way there are the user's own.
    fn global(&self, rel: &str) -> Option<Root> {
        Root::open(&self.home.join(rel)).ok()
    }
}

/// The first `most` bytes of a file as text, as OpenCode reads it: what is not UTF-8 is replaced. And whether that is all
/// of it; `None` if there is no file.
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

/// A small file as text; `None` if there is none.
fn read_text(root: &Root, rel: &str) -> Result<Option<String>> {
    let Some(bytes) = root.read(rel, limits::PROJECT_FILE_BYTES)? else { return Ok(None) };
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|_| Error::new(Code::InvalidPath, format!("Could not read {rel}: it is not UTF-8 text")))
}

/// The error of an edit that somebody else kept getting in front of.
fn concurrent_change(root: &Root, rel: &str) -> Error {
    if root.is_link(rel).unwrap_or(false) {
        let message =
            format!("{rel} is a symbolic link; berth writes no file through one. Put a file in its place");
        return Error::new(Code::InvalidPath, message);
    }
    let message =
        format!("{rel} was changed by somebody else at the same moment; nothing was lost, try again");
    Error::new(Code::Conflict, message).detail("path", rel)
}

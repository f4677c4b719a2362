//! Notices what people change in the library by hand, with an editor or with git, so that it reaches the workspaces that
//! use it. inotify(7) only says that it is worth looking; what has changed is found by comparing two looks. What berth
//! itself has written is no news.
//!
//! Thread: `library-watch`. Lock: the list of our own writes, a leaf. Links in the library are not followed out of it; hidden files do not count,
//! but those of a skill.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::Metadata;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use sha2::{Digest, Sha256};

use super::folder::check_part;
use super::{Library, check_name, is_ignored_name};
use crate::base::thread::{self, JoinOnDrop, lock};
use crate::base::{Result, hex, limits};
use crate::proc::waiter::{Waiter, WaiterList, WakeReason};
use crate::store::beneath::Root;
use crate::store::file;
use crate::store::folder_watcher::{FolderChange, FolderWatcher};

/// What has changed in the library.
#[derive(Debug, PartialEq, Eq)]
pub enum LibraryChange {
    /// Skills or tools of these names.
    Named(BTreeSet<String>),
    /// What all get whose agents berth configures: commands, agents, plugins, MCP servers, profiles.
    Agents,
    /// Perhaps all of it.
    Everything,
}

impl LibraryChange {
    /// The skill or tool of this name.
    pub fn named(name: &str) -> LibraryChange {
        LibraryChange::Named(BTreeSet::from([name.to_owned()]))
    }

    /// What files with these paths mean; `None`: nothing that is in a workspace.
    fn from_paths<'a>(paths: impl Iterator<Item = &'a str>) -> Option<LibraryChange> {
        let (mut names, mut agents) = (BTreeSet::new(), false);
        for path in paths {
            let (kind, rest) = path.split_once('/').unwrap_or((path, ""));
            match kind {
                "skill" => names.extend(rest.split('/').next().map(str::to_owned)),
                "tool" => names.extend(rest.strip_suffix(".ts").map(str::to_owned)),
                // Whoever builds or creates reads them.
                "workspace-template" | "init-script" => {}
                _ => agents = true,
            }
        }
        match (names.is_empty(), agents) {
            (true, false) => None,
            (true, true) => Some(LibraryChange::Agents),
            (false, false) => Some(LibraryChange::Named(names)),
            (false, true) => Some(LibraryChange::Everything),
        }
    }
}

/// The watching, until this is dropped.
#[derive(Debug)]
pub struct LibraryWatch {
    ends: Arc<AtomicBool>,
    bells: WaiterList,
    _thread: JoinOnDrop,
}

impl Drop for LibraryWatch {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        self.bells.notify_all();
    }
}

/// What tells one content of a file from another.
type LibraryStamp = (u64, u64, i64, i64, bool);
/// The files by path.
type LibrarySnapshot = BTreeMap<String, LibraryStamp>;

fn stamp(file: &Metadata) -> LibraryStamp {
    (file.ino(), file.size(), file.mtime(), file.mtime_nsec(), file.mode() & 0o100 != 0)
}

/// What berth has written itself since the last look, by path; nothing: it has removed it.
#[derive(Clone, Debug, Default)]
pub(super) struct OwnWrites(Arc<Mutex<BTreeMap<String, Option<LibraryStamp>>>>);

impl OwnWrites {
    /// A file was just written or removed.
    pub(super) fn note(&self, root: &Root, rel: &str) {
        let now = root.metadata(rel).ok().flatten().filter(Metadata::is_file);
        let mut own = lock(&self.0);
        if own.len() >= limits::LIBRARY_WATCHED {
            // Nobody looks, it seems. What is forgotten is synced once more.
            own.clear();
        }
        own.insert(rel.to_owned(), now.as_ref().map(stamp));
    }
}

struct LibraryWatcher<F> {
    folder: PathBuf,
    /// What the library was like at the last look lies here, so that the next server knows what changed in between.
    memory: PathBuf,
    changes: FolderWatcher,
    watches: HashSet<i32>,
    /// The folder in which the library lies: the library itself may be replaced.
    above: Option<i32>,
    seen: LibrarySnapshot,
    own: OwnWrites,
    ends: Arc<AtomicBool>,
    changed: F,
}

/// Begins to watch the library; `changed` is told what is new, and how to see whether to go on.
///
/// # Errors
/// When the kernel has no inotify left for this user, or no thread.
pub fn start(
    library: &Library,
    memory: &Path,
    changed: impl Fn(&LibraryChange, &dyn Fn() -> bool) + Send + 'static,
) -> Result<LibraryWatch> {
    let ends: Arc<AtomicBool> = Arc::default();
    let mut watcher = LibraryWatcher {
        folder: library.folder.clone(),
        memory: memory.to_owned(),
        changes: FolderWatcher::with_modes()?,
        watches: HashSet::new(),
        above: None,
        seen: LibrarySnapshot::new(),
        own: library.own.clone(),
        ends: ends.clone(),
        changed,
    };
    let (bell, bells) = (Waiter::new()?, WaiterList::default());
    bells.add(&bell);
    let body = move || {
        watcher.begin();
        if let Err(error) = watcher.run(&bell) {
            log::error!("changes by hand in the library are not noticed any more: {error}");
        }
    };
    Ok(LibraryWatch { ends, bells, _thread: thread::spawn("library-watch".into(), limits::STACK, body)? })
}

impl<F: Fn(&LibraryChange, &dyn Fn() -> bool)> LibraryWatcher<F> {
    /// The first look: what changed while no server was there, as far as one was there before.
    fn begin(&mut self) {
        let above = self.folder.parent().and_then(|above| Root::open(above).ok());
        self.above = above.and_then(|above| self.changes.watch(&above.open_folder("").ok()?).ok());
        self.seen = self.scan();
        let before = file::read_optional(&self.memory, 4096).ok().flatten();
        if before.is_some_and(|before| before != self.digest().as_bytes()) {
            self.notify(&LibraryChange::Everything);
        }
        self.store_digest();
    }

    fn run(&mut self, bell: &Waiter) -> Result<()> {
        let mut due: Option<(Instant, Instant)> = None;
        loop {
            bell.arm();
            if self.ends.load(Ordering::SeqCst) {
                return Ok(());
            }
            let now = Instant::now();
            if due.is_some_and(|(at, _)| at <= now) {
                due = None;
                self.compare();
            }
            let deadline = due.map_or(now + Duration::from_secs(3600), |(at, _)| at);
            if bell.wait(Some((self.changes.as_fd(), PollFlags::IN)), deadline)? == WakeReason::OtherReady
                && self.read()?
            {
                let now = Instant::now();
                let latest = due.map_or(now + limits::LIBRARY_PATIENCE, |(_, latest)| latest);
                due = Some(((now + limits::LIBRARY_QUIET).min(latest), latest));
            }
        }
    }

    /// Whether something has happened that is worth a look.
    fn read(&mut self) -> Result<bool> {
        let own = self.folder.file_name().and_then(|name| name.to_str());
        let mut worth = false;
        self.changes.read(|change| match change {
            FolderChange::Overflow => worth = true,
            FolderChange::WatchEnded { watch, .. } => {
                worth |= self.watches.remove(&watch);
            }
            FolderChange::Entry { watch, name, .. } if Some(watch) == self.above => {
                worth |= name.as_deref().is_some_and(|name| Some(name) == own);
            }
            FolderChange::Entry { name, itself, .. } => {
                worth |=
                    itself || name.is_some_and(|name| check_part(&name).is_ok() && !is_ignored_name(&name));
            }
        })?;
        Ok(worth)
    }

    fn compare(&mut self) {
        let now = self.scan();
        let differs = |a: &LibrarySnapshot, b: &LibrarySnapshot| {
            a.iter()
                .filter(|(path, stamp)| b.get(*path) != Some(*stamp))
                .map(|(path, _)| path.clone())
                .collect::<Vec<_>>()
        };
        let mut paths = differs(&now, &self.seen);
        paths.extend(differs(&self.seen, &now));
        let own = std::mem::take(&mut *lock(&self.own.0));
        let news = paths.iter().filter(|path| own.get(*path) != Some(&now.get(*path).copied()));
        let changed = LibraryChange::from_paths(news.map(String::as_str));
        self.seen = now;
        if let Some(changed) = changed {
            self.notify(&changed);
        }
        if !paths.is_empty() {
            self.store_digest();
        }
    }

    fn notify(&self, changed: &LibraryChange) {
        (self.changed)(changed, &|| !self.ends.load(Ordering::SeqCst));
    }

    fn store_digest(&self) {
        // Not when it was told to stop in the middle: the next server goes on.
        if !self.ends.load(Ordering::SeqCst)
            && let Err(error) = file::replace(&self.memory, self.digest().as_bytes(), 0o600)
        {
            log::warn!("{error}");
        }
    }

    /// All files, and watches on all folders: each is watched before it is read, so that nothing is missed in between.
    fn scan(&mut self) -> LibrarySnapshot {
        let mut seen = LibrarySnapshot::new();
        let before = std::mem::take(&mut self.watches);
        // One that is just being replaced comes back, and then the folder above tells.
        if let Ok(root) = Root::open(&self.folder) {
            let mut folders = vec![String::new()];
            while let Some(folder) = folders.pop() {
                if self.watches.len() + seen.len() >= limits::LIBRARY_WATCHED {
                    log::warn!("The library is too large to be watched whole");
                    break;
                }
                let watch = root.open_folder(&folder).ok().and_then(|fd| self.changes.watch(&fd).ok());
                self.watches.extend(watch);
                for entry in root.entries(&folder, limits::LIBRARY_ENTRIES).unwrap_or_default() {
                    let counts = match folder.starts_with("skill/") {
                        true => check_part(&entry).is_ok() && !is_ignored_name(&entry),
                        false => check_name(&entry).is_ok(),
                    };
                    if !counts {
                        continue;
                    }
                    let path = if folder.is_empty() { entry } else { format!("{folder}/{entry}") };
                    // A link may lead to a folder above it.
                    let deep = path.split('/').count() > limits::LIBRARY_PATH_PARTS + 2;
                    match root.metadata(&path) {
                        Ok(Some(found)) if found.is_file() => drop(seen.insert(path, stamp(&found))),
                        Ok(Some(found)) if found.is_dir() && !deep => folders.push(path),
                        _ => {}
                    }
                }
            }
        }
        for gone in before.difference(&self.watches) {
            self.changes.unwatch(*gone);
        }
        seen
    }

    /// The same for the same files in the same place: agents' configuration names folders, so workspaces in a data folder
    /// that was moved are synced again.
    fn digest(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.memory.as_os_str().as_encoded_bytes());
        for (path, stamp) in &self.seen {
            hash.update(format!("{path}\0{stamp:?}\n"));
        }
        hex::encode(&hash.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_say_who_is_concerned() {
        let by = |paths: &[&str]| LibraryChange::from_paths(paths.iter().copied());
        assert_eq!(by(&["skill/a/SKILL.md", "skill/a/x/y.md"]), Some(LibraryChange::named("a")));
        assert_eq!(by(&["tool/b.ts"]), Some(LibraryChange::named("b")));
        assert_eq!(by(&["workspace-template/x.json", "init-script/y/SCRIPT.sh"]), None);
        for agents in ["command/x.md", "agent/x.md", "plugins.json", "mcp/servers.json"] {
            assert_eq!(by(&[agents]), Some(LibraryChange::Agents), "{agents}");
        }
        assert_eq!(by(&["skill/a/SKILL.md", "plugins.json"]), Some(LibraryChange::Everything));
    }
}

//! Detects manual changes of the library, made with an editor or git, so that the workspaces that use the library are
//! synced. An inotify(7) event only triggers a scan, which is compared with the previous scan to find the changes.
//! berth's own writes are ignored.
//!
//! Thread: `library-watch`. Lock: the list of berth's own writes, a leaf. Symbolic links that leave the library are
//! not followed. Hidden files are ignored, except in skills.

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

/// The time without changes after which the library is scanned: by then, an editor or git has finished.
const LIBRARY_QUIET: Duration = Duration::from_millis(300);
/// The maximum time from the first manual change to a scan.
const LIBRARY_PATIENCE: Duration = Duration::from_secs(3);
/// The maximum number of watched folders of the library plus files in them.
const LIBRARY_WATCHED: usize = 20_000;

/// A change of the library.
#[derive(Debug, PartialEq, Eq)]
pub enum LibraryChange {
    /// The skills or tools with these names changed.
    Named(BTreeSet<String>),
    /// Entries changed that all workspaces with configured agents get: commands, agents, plugins, MCP servers or
    /// profiles.
    Agents,
    /// The whole library may have changed.
    Everything,
}

impl LibraryChange {
    /// Returns a change of the skill or tool with this name.
    pub fn named(name: &str) -> LibraryChange {
        LibraryChange::Named(BTreeSet::from([name.to_owned()]))
    }

    /// Returns the change that consists of these changed paths; `None` if no workspace has a copy of these files.
    fn from_paths<'a>(paths: impl Iterator<Item = &'a str>) -> Option<LibraryChange> {
        let (mut names, mut agents) = (BTreeSet::new(), false);
        for path in paths {
            let (kind, rest) = path.split_once('/').unwrap_or((path, ""));
            match kind {
                "skill" => names.extend(rest.split('/').next().map(str::to_owned)),
                "tool" => names.extend(rest.strip_suffix(".ts").map(str::to_owned)),
                // Templates and init scripts are read when a workspace is created or built, so no workspace has a
                // copy.
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

/// Watches the library until dropped.
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

/// Identifies a version of a file: inode, size, modification time and whether the file is executable.
type LibraryStamp = (u64, u64, i64, i64, bool);
/// The stamps of all files of the library, by path.
type LibrarySnapshot = BTreeMap<String, LibraryStamp>;

fn stamp(file: &Metadata) -> LibraryStamp {
    (file.ino(), file.size(), file.mtime(), file.mtime_nsec(), file.mode() & 0o100 != 0)
}

/// The files that berth itself has written since the last scan, with their stamps; `None` for a removed file.
#[derive(Clone, Debug, Default)]
pub(super) struct OwnWrites(Arc<Mutex<BTreeMap<String, Option<LibraryStamp>>>>);

impl OwnWrites {
    /// Records a file that berth has just written or removed.
    pub(super) fn note(&self, root: &Root, rel: &str) {
        let now = root.metadata(rel).ok().flatten().filter(Metadata::is_file);
        let mut own = lock(&self.0);
        if own.len() >= LIBRARY_WATCHED {
            // No scan has run for a long time. Berth's writes that are forgotten here count as manual changes, so
            // their files are synced once more.
            own.clear();
        }
        own.insert(rel.to_owned(), now.as_ref().map(stamp));
    }
}

struct LibraryWatcher<F> {
    folder: PathBuf,
    /// The file that stores the digest of the last scan, so that the next server process can detect changes made while
    /// none was running.
    memory: PathBuf,
    changes: FolderWatcher,
    watches: HashSet<i32>,
    /// The watch on the library's parent folder, since the library's folder itself may be replaced.
    above: Option<i32>,
    seen: LibrarySnapshot,
    own: OwnWrites,
    ends: Arc<AtomicBool>,
    changed: F,
}

/// Starts watching the library. The watching thread calls `changed` with each change, and with a function that returns
/// whether to continue.
///
/// # Errors
/// Fails if the user has no inotify instances left, or if the thread cannot be started.
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
            log::error!("manual changes in the library are no longer detected: {error}");
        }
    };
    Ok(LibraryWatch { ends, bells, _thread: thread::spawn("library-watch".into(), limits::STACK, body)? })
}

impl<F: Fn(&LibraryChange, &dyn Fn() -> bool)> LibraryWatcher<F> {
    /// Runs the first scan, which detects changes since the previous server process.
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
                let latest = due.map_or(now + LIBRARY_PATIENCE, |(_, latest)| latest);
                due = Some(((now + LIBRARY_QUIET).min(latest), latest));
            }
        }
    }

    /// Reads the inotify events. Returns whether any of them requires a scan.
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
        // If the server stops during the callback, the digest is not stored, so the next server process repeats the
        // callback.
        if !self.ends.load(Ordering::SeqCst)
            && let Err(error) = file::replace(&self.memory, self.digest().as_bytes(), 0o600)
        {
            log::warn!("{error}");
        }
    }

    /// Scans all files of the library and watches all its folders. A folder is watched before it is read, so that no
    /// change is missed.
    fn scan(&mut self) -> LibrarySnapshot {
        let mut seen = LibrarySnapshot::new();
        let before = std::mem::take(&mut self.watches);
        // If another process is replacing the library's folder, the watch on the parent folder reports that.
        if let Ok(root) = Root::open(&self.folder) {
            let mut folders = vec![String::new()];
            while let Some(folder) = folders.pop() {
                if self.watches.len() + seen.len() >= LIBRARY_WATCHED {
                    log::warn!("The library is too large; changes in some of its folders are not detected");
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
                    // The depth is limited because a symbolic link may point to one of its parent folders.
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

    /// Returns a digest of all files and of the data folder's path. The path is included because the agents'
    /// configuration contains absolute paths, so the workspaces must be synced after the data folder was moved.
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
    fn paths_determine_the_affected_entries() {
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

//! Snapshots of a workspace's agent files: their paths and stamps. Two snapshots are compared to find changes. Pure,
//! except for reading the file system.

use std::collections::BTreeMap;

use super::folders::{COMMAND_FOLDERS, SKILL_FOLDERS};
use super::reload::{ReloadAction, ReloadReason, ReloadTrigger};
use super::site::ProjectSite;
use crate::store::beneath::Root;
use crate::store::file_cache::FileStat;
use crate::store::finder::SearchBudget;

/// Maximum number of watched files in a workspace.
const WATCHED_FILES: usize = 4000;

/// Identifies the version of a file: device, inode, size, modification time and change time. It changes with every
/// write.
pub type SnapshotStamp = (u64, u64, u64, i64, i64);

/// The stamps of the files, by path.
pub type ProjectSnapshot = BTreeMap<String, SnapshotStamp>;

/// A folder that contains agent files.
struct WatchedPlace {
    folder: &'static str,
    reason: ReloadReason,
    kind: WatchedFiles,
}

enum WatchedFiles {
    /// The files with exactly these names.
    Files(&'static [&'static str]),
    /// All files whose names end with one of these extensions.
    Endings(&'static [&'static str]),
    /// All files in the folder's tree whose paths end with this text.
    Tree(&'static str),
}

const CONFIG: WatchedFiles = WatchedFiles::Files(&["opencode.json", "opencode.jsonc"]);
const MARKDOWN: WatchedFiles = WatchedFiles::Tree(".md");
const SCRIPTS: WatchedFiles = WatchedFiles::Endings(&[".js", ".ts"]);
const SKILL: WatchedFiles = WatchedFiles::Tree("/SKILL.md");

const fn place(folder: &'static str, reason: ReloadReason, kind: WatchedFiles) -> WatchedPlace {
    WatchedPlace { folder, reason, kind }
}

/// OpenCode accepts two spellings of a folder's name; berth watches both (tested with 1.1.53 and 1.18.34).
const PLACES: [WatchedPlace; 15] = [
    place("", ReloadReason::Config, CONFIG),
    place(".opencode", ReloadReason::Config, CONFIG),
    place("", ReloadReason::Agents, WatchedFiles::Files(&["AGENTS.md"])),
    place(SKILL_FOLDERS[0], ReloadReason::Skills, SKILL),
    place(SKILL_FOLDERS[1], ReloadReason::Skills, SKILL),
    place(SKILL_FOLDERS[2], ReloadReason::Skills, SKILL),
    place(SKILL_FOLDERS[3], ReloadReason::Skills, SKILL),
    place(COMMAND_FOLDERS[0], ReloadReason::Commands, MARKDOWN),
    place(COMMAND_FOLDERS[1], ReloadReason::Commands, MARKDOWN),
    place(".opencode/agents", ReloadReason::Agents, MARKDOWN),
    place(".opencode/agent", ReloadReason::Agents, MARKDOWN),
    place(".opencode/plugins", ReloadReason::Plugins, SCRIPTS),
    place(".opencode/plugin", ReloadReason::Plugins, SCRIPTS),
    place(".claude", ReloadReason::Skills, WatchedFiles::Files(&[])),
    place(".agents", ReloadReason::Skills, WatchedFiles::Files(&[])),
];

/// Returns whether a name in the workspace's top folder can belong to an agent file. Changes of other names are
/// ignored, because the folder may change often.
pub fn is_relevant_at_top(name: &str) -> bool {
    [".opencode", ".claude", ".agents", "AGENTS.md", "opencode.json", "opencode.jsonc"].contains(&name)
}

/// Takes a snapshot. Also returns the folders in which an agent file could appear. Entries that cannot be read are
/// skipped.
pub fn take(root: &Root) -> (ProjectSnapshot, Vec<String>) {
    let (mut files, mut folders) = (ProjectSnapshot::new(), Vec::new());
    let mut budget = SearchBudget::new(0);
    let mut nested = Vec::new();
    for place in &PLACES {
        if !root.is_dir(place.folder).unwrap_or(false) {
            continue;
        }
        if !folders.iter().any(|known| known == place.folder) {
            folders.push(place.folder.to_owned());
        }
        let mut look = |path: String| {
            if files.len() < WATCHED_FILES {
                if let Some(stamp) = stamp(root, &path) {
                    files.insert(path, stamp);
                }
            }
        };
        match place.kind {
            WatchedFiles::Files(names) => names.iter().for_each(|name| look(below(place.folder, name))),
            WatchedFiles::Endings(endings) => {
                let listed = root.list(place.folder, &mut budget).ok().flatten();
                let entries = listed.iter().flat_map(|entries| entries.iter());
                let names = entries.map(|entry| entry.name.as_str());
                names
                    .filter(|name| endings.iter().any(|ending| name.ends_with(ending)))
                    .for_each(|name| look(below(place.folder, name)));
            }
            WatchedFiles::Tree(ending) => {
                let (whole, ending) = (ending.strip_prefix('/'), ending);
                let wanted = |name: &str| whole.map_or_else(|| name.ends_with(ending), |whole| name == whole);
                let walked = root.walk(place.folder, true, wanted, &mut budget).unwrap_or_default();
                for file in walked.files {
                    if files.len() < WATCHED_FILES {
                        files.insert(file.path, stamp_of(&file.stat));
                    }
                }
                nested.extend(walked.folders.into_iter().filter(|folder| folder != place.folder));
            }
        }
    }
    // Nested folders come last, because the number of watches is limited and the others matter more.
    folders.append(&mut nested);
    (files, folders)
}

/// Returns the stamp of one file, for updating a snapshot after berth has written the file.
pub fn stamp(root: &Root, path: &str) -> Option<SnapshotStamp> {
    root.stat(path).ok().flatten().filter(FileStat::is_file).map(|stat| stamp_of(&stat))
}

fn stamp_of(stat: &FileStat) -> SnapshotStamp {
    let ((device, inode), (modified, changed)) = (stat.inode(), stat.times());
    (device, inode, stat.size(), modified, changed)
}

/// Returns the differences between two snapshots, one for each reason. A difference names a file only if a single file
/// changed.
pub fn changes(site: &ProjectSite, before: &ProjectSnapshot, after: &ProjectSnapshot) -> Vec<ReloadTrigger> {
    let mut all: BTreeMap<ReloadReason, Vec<ReloadTrigger>> = BTreeMap::new();
    let gone =
        before.keys().filter(|path| !after.contains_key(*path)).map(|path| (path, ReloadAction::Removed));
    let there = after.iter().filter_map(|(path, stamp)| match before.get(path) {
        None => Some((path, ReloadAction::Added)),
        Some(old) if old != stamp => Some((path, ReloadAction::Updated)),
        Some(_) => None,
    });
    for (path, action) in gone.chain(there) {
        let (reason, name) = named(path);
        let trigger = ReloadTrigger { reason, name, action, path: Some(site.path(path)) };
        all.entry(reason).or_default().push(trigger);
    }
    all.into_iter()
        .map(|(reason, mut triggers)| match triggers.len() {
            1 => triggers.remove(0),
            _ => ReloadTrigger { reason, name: None, action: ReloadAction::Updated, path: None },
        })
        .collect()
}

/// Returns the reason and the entry's name for a changed file.
fn named(path: &str) -> (ReloadReason, Option<String>) {
    let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
    for place in &PLACES {
        match place.kind {
            WatchedFiles::Files(names) if folder == place.folder && names.contains(&file) => {
                let name = (place.reason == ReloadReason::Config).then(|| file.to_owned());
                return (place.reason, name);
            }
            WatchedFiles::Endings(_) if folder == place.folder => {
                return (place.reason, Some(file.to_owned()));
            }
            WatchedFiles::Tree(_) => {
                let Some(inside) = path.strip_prefix(place.folder).and_then(|rest| rest.strip_prefix('/'))
                else {
                    continue;
                };
                let name = match place.reason {
                    ReloadReason::Skills => folder.rsplit('/').next().unwrap_or_default(),
                    _ => inside.trim_end_matches(".md"),
                };
                return (place.reason, Some(name.to_owned()));
            }
            _ => {}
        }
    }
    (ReloadReason::Config, None)
}

fn below(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

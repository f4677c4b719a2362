//! What an agent reads in a workspace, as a list of files and what tells one content of a file from another: two such
//! lists say what has changed. Pure but for looking.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use super::Site;
use super::reload::{Action, Reason, Trigger};
use super::skills;
use crate::base::limits;
use crate::store::beneath::Root;

/// Another one after every write that anybody does.
pub type Stamp = (u64, u64, u64, i64, i64);

/// The files by path.
pub type Snapshot = BTreeMap<String, Stamp>;

/// A place whose files an agent reads.
struct Place {
    folder: &'static str,
    reason: Reason,
    kind: Kind,
}

enum Kind {
    /// These files.
    Files(&'static [&'static str]),
    /// All with these endings.
    Endings(&'static [&'static str]),
    /// A folder each, with this file in it.
    Folders(&'static str),
}

const CONFIG: Kind = Kind::Files(&["opencode.json", "opencode.jsonc"]);
const MARKDOWN: Kind = Kind::Endings(&[".md"]);
const SCRIPTS: Kind = Kind::Endings(&[".js", ".ts"]);

const fn place(folder: &'static str, reason: Reason, kind: Kind) -> Place {
    Place { folder, reason, kind }
}

/// Both of OpenCode's spellings of a folder are read (tried with 1.1.53 and 1.18.34).
const PLACES: [Place; 13] = [
    place("", Reason::Config, CONFIG),
    place(".opencode", Reason::Config, CONFIG),
    place("", Reason::Agents, Kind::Files(&["AGENTS.md"])),
    place(skills::FOLDERS[0], Reason::Skills, Kind::Folders("SKILL.md")),
    place(skills::FOLDERS[1], Reason::Skills, Kind::Folders("SKILL.md")),
    place(skills::FOLDERS[2], Reason::Skills, Kind::Folders("SKILL.md")),
    place(".opencode/commands", Reason::Commands, MARKDOWN),
    place(".opencode/command", Reason::Commands, MARKDOWN),
    place(".opencode/agents", Reason::Agents, MARKDOWN),
    place(".opencode/agent", Reason::Agents, MARKDOWN),
    place(".opencode/plugins", Reason::Plugins, SCRIPTS),
    place(".opencode/plugin", Reason::Plugins, SCRIPTS),
    place(".claude", Reason::Skills, Kind::Files(&[])),
];

/// Names in the workspace's own folder that matter; in a busy one all others are passed over.
pub fn matters_on_top(name: &str) -> bool {
    [".opencode", ".claude", "AGENTS.md", "opencode.json", "opencode.jsonc"].contains(&name)
}

/// Looks at all of it: the files, and the folders in which one could appear. What cannot be looked at is not there.
pub fn take(root: &Root) -> (Snapshot, Vec<String>) {
    let (mut files, mut folders) = (Snapshot::new(), Vec::new());
    for place in &PLACES {
        if !root.is_dir(place.folder).unwrap_or(false) {
            continue;
        }
        if !folders.iter().any(|known| known == place.folder) {
            folders.push(place.folder.to_owned());
        }
        let mut look = |path: String| {
            if files.len() < limits::WATCHED_FILES {
                if let Some(stamp) = stamp(root, &path) {
                    files.insert(path, stamp);
                }
            }
        };
        let list = || root.entries(place.folder, limits::PROJECT_ENTRIES).unwrap_or_default();
        match place.kind {
            Kind::Files(names) => names.iter().for_each(|name| look(below(place.folder, name))),
            Kind::Endings(endings) => list()
                .iter()
                .filter(|name| endings.iter().any(|ending| name.ends_with(ending)))
                .for_each(|name| look(below(place.folder, name))),
            Kind::Folders(main) => {
                for name in list() {
                    let folder = below(place.folder, &name);
                    if root.is_dir(&folder).unwrap_or(false) {
                        look(below(&folder, main));
                        folders.push(folder);
                    }
                }
            }
        }
    }
    (files, folders)
}

/// One file's, for whoever has just written it.
pub fn stamp(root: &Root, path: &str) -> Option<Stamp> {
    let of = |found: Metadata| {
        (
            found.dev(),
            found.ino(),
            found.len(),
            found.mtime_nsec() ^ (found.mtime() << 30),
            found.ctime_nsec() ^ (found.ctime() << 30),
        )
    };
    root.metadata(path).ok().flatten().filter(Metadata::is_file).map(of)
}

/// What has changed, one for each reason: exactly, where it is one thing.
pub fn changes(site: &Site, before: &Snapshot, after: &Snapshot) -> Vec<Trigger> {
    let mut all: BTreeMap<Reason, Vec<Trigger>> = BTreeMap::new();
    let gone = before.keys().filter(|path| !after.contains_key(*path)).map(|path| (path, Action::Removed));
    let there = after.iter().filter_map(|(path, stamp)| match before.get(path) {
        None => Some((path, Action::Added)),
        Some(old) if old != stamp => Some((path, Action::Updated)),
        Some(_) => None,
    });
    for (path, action) in gone.chain(there) {
        let (reason, name) = named(path);
        let trigger = Trigger { reason, name, action, path: Some(site.path(path)) };
        all.entry(reason).or_default().push(trigger);
    }
    all.into_iter()
        .map(|(reason, mut triggers)| match triggers.len() {
            1 => triggers.remove(0),
            _ => Trigger { reason, name: None, action: Action::Updated, path: None },
        })
        .collect()
}

/// What a file is part of, and how that is called.
fn named(path: &str) -> (Reason, Option<String>) {
    let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
    for place in &PLACES {
        match place.kind {
            Kind::Files(names) if folder == place.folder && names.contains(&file) => {
                let name = (place.reason == Reason::Config).then(|| file.to_owned());
                return (place.reason, name);
            }
            Kind::Endings(_) if folder == place.folder => {
                let stem = if place.reason == Reason::Plugins { file } else { file.trim_end_matches(".md") };
                return (place.reason, Some(stem.to_owned()));
            }
            Kind::Folders(_) => {
                if let Some((above, name)) =
                    folder.rsplit_once('/').filter(|(above, _)| *above == place.folder)
                {
                    debug_assert!(!above.is_empty());
                    return (place.reason, Some(name.to_owned()));
                }
            }
            _ => {}
        }
    }
    (Reason::Config, None)
}

fn below(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

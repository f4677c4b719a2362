//! What an agent reads in a workspace, as a list of files and what tells one content of a file from another: two such
//! lists say what has changed. Pure but for looking.

use std::collections::BTreeMap;

use super::Site;
use super::reload::{Action, Reason, Trigger};
use super::{commands, skills};
use crate::base::limits;
use crate::store::beneath::Root;
use crate::store::finder::Budget;
use crate::store::remembered::FileStat;

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
    /// All below it with this ending.
    Tree(&'static str),
}

const CONFIG: Kind = Kind::Files(&["opencode.json", "opencode.jsonc"]);
const MARKDOWN: Kind = Kind::Tree(".md");
const SCRIPTS: Kind = Kind::Endings(&[".js", ".ts"]);
const SKILL: Kind = Kind::Tree("/SKILL.md");

const fn place(folder: &'static str, reason: Reason, kind: Kind) -> Place {
    Place { folder, reason, kind }
}

/// Both of OpenCode's spellings of a folder are read (tried with 1.1.53 and 1.18.34).
const PLACES: [Place; 15] = [
    place("", Reason::Config, CONFIG),
    place(".opencode", Reason::Config, CONFIG),
    place("", Reason::Agents, Kind::Files(&["AGENTS.md"])),
    place(skills::FOLDERS[0], Reason::Skills, SKILL),
    place(skills::FOLDERS[1], Reason::Skills, SKILL),
    place(skills::FOLDERS[2], Reason::Skills, SKILL),
    place(skills::FOLDERS[3], Reason::Skills, SKILL),
    place(commands::FOLDERS[0], Reason::Commands, MARKDOWN),
    place(commands::FOLDERS[1], Reason::Commands, MARKDOWN),
    place(".opencode/agents", Reason::Agents, MARKDOWN),
    place(".opencode/agent", Reason::Agents, MARKDOWN),
    place(".opencode/plugins", Reason::Plugins, SCRIPTS),
    place(".opencode/plugin", Reason::Plugins, SCRIPTS),
    place(".claude", Reason::Skills, Kind::Files(&[])),
    place(".agents", Reason::Skills, Kind::Files(&[])),
];

/// Names in the workspace's own folder that matter; in a busy one all others are passed over.
pub fn matters_on_top(name: &str) -> bool {
    [".opencode", ".claude", ".agents", "AGENTS.md", "opencode.json", "opencode.jsonc"].contains(&name)
}

/// Looks at all of it: the files, and the folders in which one could appear. What cannot be looked at is not there.
pub fn take(root: &Root) -> (Snapshot, Vec<String>) {
    let (mut files, mut folders) = (Snapshot::new(), Vec::new());
    let mut budget = Budget::new(0);
    let mut nested = Vec::new();
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
        match place.kind {
            Kind::Files(names) => names.iter().for_each(|name| look(below(place.folder, name))),
            Kind::Endings(endings) => {
                let listed = root.list(place.folder, &mut budget).ok().flatten();
                let entries = listed.iter().flat_map(|entries| entries.iter());
                let names = entries.map(|entry| entry.name.as_str());
                names
                    .filter(|name| endings.iter().any(|ending| name.ends_with(ending)))
                    .for_each(|name| look(below(place.folder, name)));
            }
            Kind::Tree(ending) => {
                let (whole, ending) = (ending.strip_prefix('/'), ending);
                let wanted = |name: &str| whole.map_or_else(|| name.ends_with(ending), |whole| name == whole);
                let walked = root.walk(place.folder, true, wanted, &mut budget).unwrap_or_default();
                for file in walked.files {
                    if files.len() < limits::WATCHED_FILES {
                        files.insert(file.path, stamp_of(&file.stat));
                    }
                }
                nested.extend(walked.folders.into_iter().filter(|folder| folder != place.folder));
            }
        }
    }
    // Watches are bounded: these come last.
    folders.append(&mut nested);
    (files, folders)
}

/// One file's, for whoever has just written it.
pub fn stamp(root: &Root, path: &str) -> Option<Stamp> {
    root.stat(path).ok().flatten().filter(FileStat::is_file).map(|stat| stamp_of(&stat))
}

fn stamp_of(stat: &FileStat) -> Stamp {
    let ((device, inode), (modified, changed)) = (stat.inode(), stat.times());
    (device, inode, stat.size(), modified, changed)
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
                return (place.reason, Some(file.to_owned()));
            }
            Kind::Tree(_) => {
                let Some(inside) = path.strip_prefix(place.folder).and_then(|rest| rest.strip_prefix('/'))
                else {
                    continue;
                };
                let name = match place.reason {
                    Reason::Skills => folder.rsplit('/').next().unwrap_or_default(),
                    _ => inside.trim_end_matches(".md"),
                };
                return (place.reason, Some(name.to_owned()));
            }
            _ => {}
        }
    }
    (Reason::Config, None)
}

fn below(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

//! The library's skills and tools in a workspace, where agents look for them. What berth wrote is listed in a manifest
//! outside the workspace: only that is ever removed, and what is already right is not written again.
//! The workspace's files are its workload's; every one is opened beneath its folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::library::{Library, TextKind, with_name};
use super::record::Shown;
use crate::base::{Code, Result, limits};
use crate::store::beneath::Root;
use crate::store::json::JsonFile;

/// The manifest's name in the workspace's own folder.
pub const MANIFEST: &str = "synced.json";

/// What berth has written: paths below the workspace, and the SHA-256 of the content.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
struct Manifest(BTreeMap<String, String>);

/// What a sync has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// Files written.
    pub written: usize,
    /// Files removed.
    pub removed: usize,
}

/// Writes what `shown` asks for, and removes what it asks for no more.
///
/// # Errors
/// Those of `store::beneath`, when the workload stands in the way; those of the library.
pub fn sync(library: &Library, shown: &Shown, folder: &Path) -> Result<Synced> {
    let wanted = wanted(library, shown)?;
    let manifest = JsonFile::open(&folder.join(MANIFEST), 0o600, Manifest::default())?;
    let known = manifest.get();
    let next: BTreeMap<String, String> =
        wanted.iter().map(|(path, text)| (path.clone(), digest(text))).collect();
    if next.is_empty() && known.0.is_empty() {
        return Ok(Synced::default());
    }
    let root = Root::open(Path::new(&shown.path))?;
    // A crash in between leaves a manifest with too many names, never a file that nobody knows.
    let all: BTreeMap<String, String> =
        known.0.iter().chain(&next).map(|(path, sum)| (path.clone(), sum.clone())).collect();
    if all != known.0 {
        manifest.update(|manifest| {
            manifest.0 = all;
            Ok(())
        })?;
    }
    let mut done = Synced::default();
    for (path, text) in &wanted {
        if root.read(path, limits::LIBRARY_FILE_BYTES * 2).ok().flatten().as_deref() == Some(text.as_bytes())
        {
            continue;
        }
        if let Some((folder, _)) = path.rsplit_once('/') {
            root.make_dirs(folder)?;
        }
        root.write_new(path, text.as_bytes(), 0o644)?;
        done.written += 1;
    }
    for (path, sum) in known.0.iter().filter(|(path, _)| !next.contains_key(*path)) {
        match root.read(path, limits::LIBRARY_FILE_BYTES * 2)? {
            None => {}
            Some(found) if hex(&Sha256::digest(&found)) == *sum => {
                root.remove(path)?;
                done.removed += 1;
                remove_empty_folders(&root, path)?;
            }
            Some(_) => log::info!("{}/{path} was changed by hand and stays", shown.path),
        }
    }
    if manifest.get().0 != next {
        manifest.update(|manifest| {
            manifest.0 = next;
            Ok(())
        })?;
    }
    Ok(done)
}

/// Paths and contents.
fn wanted(library: &Library, shown: &Shown) -> Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    for name in
        names(shown, &shown.skills, || Ok(library.skills()?.into_iter().map(|skill| skill.name).collect()))?
    {
        let skill = match library.skill(&name) {
            Ok(skill) => skill,
            Err(error) if matches!(error.code(), Code::NotInLibrary | Code::InvalidName) => {
                log::warn!("workspace {}: {}", shown.id, error.message());
                continue;
            }
            Err(error) => return Err(error),
        };
        let main = with_name(&skill.content, &name);
        for place in [".opencode/skill", ".claude/skills"] {
            files.insert(format!("{place}/{name}/SKILL.md"), main.clone());
            for file in &skill.files {
                files.insert(format!("{place}/{name}/{}", file.path), file.content.clone());
            }
        }
    }
    let all_tools = || Ok(library.texts(TextKind::Tool)?.into_iter().map(|tool| tool.name).collect());
    for name in names(shown, &shown.tools, all_tools)? {
        match library.text(TextKind::Tool, &name) {
            Ok(tool) => drop(files.insert(format!(".opencode/tool/{name}.ts"), tool.content)),
            Err(error) if matches!(error.code(), Code::NotInLibrary | Code::InvalidName) => {
                log::warn!("workspace {}: {}", shown.id, error.message());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(files)
}

/// The default host workspace has all when it names none, as observed.
fn names(
    shown: &Shown,
    named: &[String],
    all: impl Fn() -> Result<BTreeSet<String>>,
) -> Result<BTreeSet<String>> {
    if named.is_empty() && shown.id.is_nil() { all() } else { Ok(named.iter().cloned().collect()) }
}

/// The folders above a file, up to the agents' own.
fn remove_empty_folders(root: &Root, path: &str) -> Result<()> {
    let mut rest = path;
    while let Some((folder, _)) = rest.rsplit_once('/') {
        // `.opencode/skill` itself stays, whoever made it.
        if folder.matches('/').count() < 2 || !root.remove_empty_dir(folder)? {
            break;
        }
        rest = folder;
    }
    Ok(())
}

fn digest(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

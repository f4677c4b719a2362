//! Syncs a workspace with the library: berth alone writes the files of skills, tools, commands and agents, and it
//! shares the files of the agents' configuration with the users of the workspace (`merge`). A manifest outside the
//! workspace lists the files that berth has written. **Invariant:** berth changes or removes only listed files. Files
//! that are already up to date are not rewritten. The workload can change the workspace at any moment, so every file
//! is opened beneath the workspace's root (`store::beneath`).

pub use agents::configures_agents as configures;
pub use manifest::SyncManifest;

mod agents;
mod manifest;
mod merge;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::record::WorkspaceView;
use crate::base::{Code, Error, Result, limits};
use crate::library::{Library, MAIN, SKILL_LIMITS, SkillPart, TextKind, is_broken, with_name};
use crate::project::references;
use crate::store::beneath::Root;
use crate::store::json::JsonFile;
use manifest::{SharedFile, digest};
use merge::{SharedContent, SharedPart};

/// The manifest's file name in the workspace's own folder.
pub const MANIFEST: &str = "synced.json";

/// The outcome of a sync.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyncOutcome {
    pub written: usize,
    pub removed: usize,
}

/// Writes the files that the workspace `view` requests into the tree that `open` opens, and removes files that are no
/// longer requested. `folder` is the workspace's own data folder, outside the tree.
///
/// # Errors
/// Fails if the library cannot be read, or if `store::beneath` cannot write a file, for example because the workload
/// interferes.
pub fn sync(
    library: &Library,
    view: &WorkspaceView,
    folder: &Path,
    open: impl FnOnce() -> Result<Root>,
) -> Result<SyncOutcome> {
    let (files, shared) = desired_files(library, view)?;
    let manifest = JsonFile::open(&folder.join(MANIFEST), 0o600, SyncManifest::default())?;
    let known = manifest.get();
    if files.is_empty() && shared.is_empty() && known.is_empty() {
        return Ok(SyncOutcome::default());
    }
    let next = SyncManifest::default();
    let mut work =
        SyncRun { library, root: open()?, view, known: &known, next, done: SyncOutcome::default() };
    let plan = work.plan(&files, &shared)?;
    let all = known.with(&work.next);
    if all != *known {
        manifest.update(|manifest| {
            *manifest = all;
            Ok(())
        })?;
    }
    for (path, source) in plan.files {
        work.write(path, source)?;
    }
    for edit in plan.edits {
        work.edit(&edit)?;
    }
    work.remove_old()?;
    let SyncRun { next, done, .. } = work;
    if *manifest.get() != next {
        manifest.update(|manifest| {
            *manifest = next;
            Ok(())
        })?;
    }
    Ok(done)
}

/// Reads the manifest in a workspace's own data folder.
///
/// # Errors
/// Fails if the manifest cannot be read.
pub fn read_manifest(folder: &Path) -> Result<SyncManifest> {
    Ok(SyncManifest::clone(&JsonFile::open(&folder.join(MANIFEST), 0o600, SyncManifest::default())?.get()))
}

/// Replaces the manifest, after the workspace's files were replaced.
///
/// # Errors
/// Fails if the manifest cannot be written.
pub fn write_manifest(folder: &Path, manifest: &SyncManifest) -> Result<()> {
    JsonFile::open(&folder.join(MANIFEST), 0o600, SyncManifest::default())?.update(|known| {
        known.clone_from(manifest);
        Ok(())
    })
}

/// A sync in progress.
struct SyncRun<'a> {
    library: &'a Library,
    root: Root,
    view: &'a WorkspaceView,
    known: &'a SyncManifest,
    next: SyncManifest,
    done: SyncOutcome,
}

/// The changes that a sync will make.
#[derive(Default)]
struct SyncPlan<'a> {
    files: Vec<(&'a str, &'a OwnFileSource)>,
    edits: Vec<SharedEdit>,
}

/// The content of a shared file before and after the sync.
struct SharedEdit {
    path: String,
    before: Option<Vec<u8>>,
    after: String,
}

impl SyncRun<'_> {
    /// Compares the workspace with the desired files. Returns the changes, and records the desired files in `next`.
    fn plan<'b>(
        &mut self,
        files: &'b OwnFiles,
        shared: &BTreeMap<String, SharedContent>,
    ) -> Result<SyncPlan<'b>> {
        let mut plan = SyncPlan::default();
        for (path, source) in files {
            let Some(bytes) = source.bytes(self.library, self.view)? else { continue };
            let known = self.known.files.contains_key(path);
            let right = match self.look(path, bytes.len() as u64, source.executable())? {
                ExistingFile::Nothing => false,
                ExistingFile::File(found) if found == *bytes => true,
                // Only the permissions differ, and berth did not write this file, so it counts as up to date and is
                // not changed.
                ExistingFile::OtherMode(found) if found == *bytes && !known => true,
                ExistingFile::Other | ExistingFile::File(_) | ExistingFile::OtherMode(_) if !known => {
                    log::warn!("{}/{path} was not written by berth and is left unchanged", self.view.path);
                    continue;
                }
                _ => false,
            };
            // A correct file that berth did not write is not listed, so that berth does not remove it later.
            if !right || known {
                self.next.files.insert(path.clone(), digest(&bytes));
            }
            if !right {
                plan.files.push((path, source));
            }
        }
        for (path, wanted) in shared {
            let Some(edit) = self.plan_edit(path, wanted)? else { continue };
            plan.edits.extend(edit);
        }
        Ok(plan)
    }

    /// Plans the change of a shared file. Returns `None` if the file cannot be shared, and `Some(None)` if it is up to
    /// date.
    fn plan_edit(&mut self, path: &str, wanted: &SharedContent) -> Result<Option<Option<SharedEdit>>> {
        let before = self.root.read(path, limits::LIBRARY_FILE_BYTES)?;
        let made = SharedFile { made: before.is_none(), ..SharedFile::default() };
        let known = self.known.shared.get(path).unwrap_or(&made);
        let text =
            String::from_utf8(before.clone().unwrap_or_default()).map_err(|_| "it is not UTF-8".to_owned());
        let text = if self.root.is_link(path)? { Err("it is a link".to_owned()) } else { text };
        let wanted = self.without_broken(path, wanted);
        match text.and_then(|text| merge::merge(&text, &wanted, known)) {
            Ok((after, shared)) => {
                let unchanged = before.as_deref() == Some(after.as_bytes());
                if !shared.parts.is_empty() {
                    self.next.shared.insert(path.to_owned(), shared);
                }
                Ok(Some((!unchanged).then(|| SharedEdit { path: path.to_owned(), before, after })))
            }
            Err(why) => {
                log::warn!("{}/{path} was not changed: {why}", self.view.path);
                if let Some(known) = self.known.shared.get(path) {
                    self.next.shared.insert(path.to_owned(), known.clone());
                }
                Ok(None)
            }
        }
    }

    /// Leaves out values that reference files that the workspace does not have, because they would keep OpenCode from
    /// starting.
    fn without_broken<'w>(&self, path: &str, wanted: &'w SharedContent) -> Cow<'w, SharedContent> {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let SharedContent::Keys(parts) = wanted else { return Cow::Borrowed(wanted) };
        let broken = |part: &SharedPart| references::is_broken(&self.root, folder, &part.value);
        if !path.ends_with("opencode.json") || !parts.iter().any(broken) {
            return Cow::Borrowed(wanted);
        }
        let whole = |part: &&SharedPart| {
            let missing = broken(part);
            if missing {
                log::warn!(
                    "workspace {}: {} is left out: its {{file:}} does not exist",
                    self.view.id,
                    part.path.join(".")
                );
            }
            !missing
        };
        Cow::Owned(SharedContent::Keys(parts.iter().filter(whole).cloned().collect()))
    }

    /// Inspects the file at a path. A file of another size than `bytes` is not read.
    fn look(&self, path: &str, bytes: u64, executable: bool) -> Result<ExistingFile> {
        let found = match self.root.metadata(path) {
            Ok(None) => return Ok(ExistingFile::Nothing),
            Ok(Some(found)) => found,
            // This error occurs, for example, for a loop of symbolic links.
            Err(error) if error.code() == Code::InvalidPath => return Ok(ExistingFile::Other),
            Err(error) => return Err(error),
        };
        if !found.is_file() || found.len() != bytes {
            return Ok(ExistingFile::Other);
        }
        let right_mode = (found.mode() & 0o100 != 0) == executable;
        Ok(match self.root.read(path, bytes) {
            Ok(Some(found)) if right_mode => ExistingFile::File(found),
            Ok(Some(found)) => ExistingFile::OtherMode(found),
            // The workload changed the file after its size was read.
            Ok(None) | Err(_) => ExistingFile::Other,
        })
    }

    fn write(&mut self, path: &str, source: &OwnFileSource) -> Result<()> {
        // The source is read again, so that a sync has only one file in memory at a time. If the file was removed from
        // the library, the next sync handles that.
        let Some(bytes) = source.bytes(self.library, self.view)? else { return Ok(()) };
        self.make_folder(path)?;
        self.next.files.insert(path.to_owned(), digest(&bytes));
        self.root.write_again(path, &bytes, if source.executable() { 0o755 } else { 0o644 })?;
        self.done.written += 1;
        Ok(())
    }

    fn edit(&mut self, edit: &SharedEdit) -> Result<()> {
        self.make_folder(&edit.path)?;
        if !self.root.replace_if(&edit.path, edit.before.as_deref(), edit.after.as_bytes())? {
            let message = format!("{} is being changed by another process; sync again", edit.path);
            return Err(Error::new(Code::Conflict, message));
        }
        self.done.written += 1;
        Ok(())
    }

    fn make_folder(&self, path: &str) -> Result<()> {
        path.rsplit_once('/').map_or(Ok(()), |(folder, _)| self.root.make_dirs(folder))
    }

    /// Removes files that are no longer desired, unless a user has changed them.
    fn remove_old(&mut self) -> Result<()> {
        let known = self.known;
        for (path, sum) in &known.files {
            if self.next.files.contains_key(path) {
                continue;
            }
            match self.root.read(path, limits::SKILL_BYTES as u64) {
                Ok(None) => {}
                Ok(Some(found)) if digest(&found) == *sum => self.remove(path)?,
                // The entry is of another kind: a folder, a loop of symbolic links, or a larger file.
                Err(error) if error.code() != Code::InvalidPath => return Err(error),
                Ok(Some(_)) | Err(_) => {
                    log::info!("{}/{path} was changed by hand and is kept", self.view.path)
                }
            }
        }
        for (path, shared) in &known.shared {
            if self.next.shared.contains_key(path) {
                continue;
            }
            let Some(before) = self.root.read(path, limits::LIBRARY_FILE_BYTES)? else { continue };
            let text = String::from_utf8_lossy(&before);
            let Ok(after) = merge::withdraw(path, &text, shared) else { continue };
            if shared.made && merge::is_bare(path, &after) {
                self.remove(path)?;
            } else if after != text {
                self.edit(&SharedEdit { path: path.clone(), before: Some(before), after })?;
            }
        }
        Ok(())
    }

    fn remove(&mut self, path: &str) -> Result<()> {
        self.root.remove(path)?;
        self.done.removed += 1;
        let mut rest = path;
        while let Some((folder, _)) = rest.rsplit_once('/') {
            // The top folders of the agents, such as `.opencode/skill`, are kept.
            if folder.matches('/').count() < 2 || !self.root.remove_empty_dir(folder)? {
                break;
            }
            rest = folder;
        }
        Ok(())
    }
}

/// The files that only berth writes, by path below the workspace.
type OwnFiles = BTreeMap<String, OwnFileSource>;

/// The source of a file's content.
enum OwnFileSource {
    Text(String),
    /// A file of a skill's folder.
    Part {
        skill: String,
        part: SkillPart,
    },
}

impl OwnFileSource {
    /// Returns the file's bytes; `None` if the library no longer has them.
    fn bytes(&self, library: &Library, view: &WorkspaceView) -> Result<Option<Cow<'_, [u8]>>> {
        match self {
            OwnFileSource::Text(text) => Ok(Some(Cow::Borrowed(text.as_bytes()))),
            OwnFileSource::Part { skill, part } => {
                Ok(skip_broken(view, library.read_part(skill, &part.path))?.flatten().map(Cow::Owned))
            }
        }
    }

    fn executable(&self) -> bool {
        matches!(self, OwnFileSource::Part { part, .. } if part.executable)
    }
}

/// The file system entry that exists at a path.
enum ExistingFile {
    Nothing,
    /// A file of the expected size with the right permissions.
    File(Vec<u8>),
    /// A file of the expected size with other permissions.
    OtherMode(Vec<u8>),
    Other,
}

/// Returns the files that only berth writes, and berth's part of the shared files.
fn desired_files(
    library: &Library,
    view: &WorkspaceView,
) -> Result<(OwnFiles, BTreeMap<String, SharedContent>)> {
    let mut files = OwnFiles::new();
    let all = || Ok(library.skills()?.into_iter().map(|skill| skill.name).collect());
    let skills = names(view, &view.skills, all)?;
    for name in &skills {
        let Some(content) = skip_broken(view, library.skill_file(name, MAIN))? else { continue };
        let Some(folder) = skip_broken(view, library.skill_folder(name))? else { continue };
        if let Some(first) = folder.left_out.first() {
            let (count, path) = (folder.left_out.len(), &view.path);
            log::warn!("{path} gets skill {name} without {count} of its files ({first}): {SKILL_LIMITS}");
        }
        let main = with_name(&content, name);
        for place in [".opencode/skill", ".claude/skills"] {
            files.insert(format!("{place}/{name}/{MAIN}"), OwnFileSource::Text(main.clone()));
            for part in &folder.parts {
                let source = OwnFileSource::Part { skill: name.clone(), part: part.clone() };
                files.insert(format!("{place}/{name}/{}", part.path), source);
            }
        }
    }
    let all = || Ok(library.texts(TextKind::Tool)?.into_iter().map(|tool| tool.name).collect());
    for name in names(view, &view.tools, all)? {
        if let Some(tool) = skip_broken(view, library.text(TextKind::Tool, &name))? {
            files.insert(format!(".opencode/tool/{name}.ts"), OwnFileSource::Text(tool.content));
        }
    }
    if !agents::configures_agents(view) {
        return Ok((files, BTreeMap::new()));
    }
    for (kind, places) in [
        (TextKind::Command, [".opencode/command", ".claude/commands"]),
        (TextKind::Agent, [".opencode/agent", ".claude/agents"]),
    ] {
        for listed in library.texts(kind)?.into_iter().filter(|listed| listed.error.is_none()) {
            let Some(text) = skip_broken(view, library.text(kind, &listed.name))? else { continue };
            let for_opencode = agents::opencode_takes(view, kind, &listed.name, &text.content);
            for place in places.iter().skip(usize::from(!for_opencode)) {
                files
                    .insert(format!("{place}/{}.md", listed.name), OwnFileSource::Text(text.content.clone()));
            }
        }
    }
    Ok((files, agents::shared_files(library, view, &skills)?))
}

/// Returns `None` for an entry that the library does not have or cannot read, and logs it.
fn skip_broken<T>(view: &WorkspaceView, found: Result<T>) -> Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if is_broken(&error) || matches!(error.code(), Code::NotInLibrary | Code::InvalidName) => {
            log::warn!("workspace {}: {}", view.id, error.message());
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Returns the entries that the workspace names. A default host workspace that names none gets all, as in
/// sandboxed.sh.
fn names(
    view: &WorkspaceView,
    named: &[String],
    all: impl Fn() -> Result<BTreeSet<String>>,
) -> Result<BTreeSet<String>> {
    if named.is_empty() && view.id.is_nil() { all() } else { Ok(named.iter().cloned().collect()) }
}

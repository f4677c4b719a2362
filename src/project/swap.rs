//! Replaces several files of a workspace together. New files are staged first, then a journal of the exchanges is
//! written outside the workspace. From then on, a failure rolls the import back, and after a crash the next start
//! replays the journal.
//!
//! Threads: any thread that holds the site's write turn. Each step exchanges two names, so that a replaced file is
//! never missing.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::files::read_text;
use super::site::{FILE_MODE, ProjectSite};
use crate::base::{At, Code, Error, Result, limits};
use crate::store::exchange::FileIdentity;
use crate::store::file;

const JOURNAL: &str = "import.json";

#[derive(Debug, Serialize, Deserialize)]
struct ImportJournal {
    stage: String,
    steps: Vec<ImportStep>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct ImportStep {
    staged: String,
    target: String,
    /// The identity of the new file, or of the file to remove. It shows after a crash whether the step was done.
    new: FileIdentity,
    /// Whether the step removes the file at `target` by moving it to `staged`, without a replacement.
    #[serde(default)]
    removes: bool,
    /// The expected previous content, if the caller has read it.
    #[serde(skip)]
    expected: Option<Option<String>>,
}

/// An import in progress.
pub(super) struct StagedImport<'a> {
    site: &'a ProjectSite,
    stage: String,
    steps: Vec<ImportStep>,
    done: bool,
}

impl<'a> StagedImport<'a> {
    pub(super) fn begin(site: &'a ProjectSite) -> Result<StagedImport<'a>> {
        let stage = format!(".opencode/openwork/.import-{}", Uuid::new_v4().simple());
        site.root.make_dirs(&stage)?;
        Ok(StagedImport { site, stage, steps: Vec::new(), done: false })
    }

    /// Stages a file that replaces `target`. The import fails if `target` no longer has the content `old`.
    pub(super) fn file(&mut self, target: &str, text: &str, old: Option<&str>) -> Result<()> {
        let staged = self.next();
        self.site.root.write_new(&staged, text.as_bytes(), FILE_MODE)?;
        self.step(staged, target, Some(old.map(str::to_owned)))
    }

    /// Stages a file with these bytes and mode, unless `target` already has them.
    pub(super) fn put(&mut self, target: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let root = &self.site.root;
        if root.identity(target)?.is_some() {
            self.check_file(target)?;
            let same_mode = root.metadata(target)?.is_some_and(|found| found.mode() & 0o777 == mode);
            // `read` is limited to the new length; a larger file fails to be read and so counts as different.
            let same =
                same_mode && root.read(target, bytes.len() as u64).ok().flatten().as_deref() == Some(bytes);
            if same {
                return Ok(());
            }
        }
        let staged = self.next();
        root.write_new(&staged, bytes, mode)?;
        root.make_dirs(target.rsplit_once('/').map_or("", |(above, _)| above))?;
        self.step(staged, target, None)
    }

    /// Plans the removal of a file.
    pub(super) fn remove(&mut self, target: &str) -> Result<()> {
        self.check_file(target)?;
        let staged = self.next();
        let new = self.site.root.identity(target)?.ok_or_else(|| changed_during_import(target))?;
        self.steps.push(ImportStep { staged, target: target.to_owned(), new, removes: true, expected: None });
        Ok(())
    }

    /// Refuses an entry that is not a regular file, because a document cannot contain it.
    fn check_file(&self, target: &str) -> Result<()> {
        let root = &self.site.root;
        let is_file = !root.is_link(target)? && root.metadata(target)?.is_some_and(|found| found.is_file());
        if is_file {
            return Ok(());
        }
        let message = format!(
            "{target} is a folder, a link or a device; an import replaces files only. Remove it first"
        );
        Err(Error::new(Code::InvalidPath, message).detail("path", target))
    }

    fn next(&self) -> String {
        format!("{}/{}", self.stage, Uuid::new_v4().simple())
    }

    fn step(&mut self, staged: String, target: &str, expected: Option<Option<String>>) -> Result<()> {
        let new = self.site.root.identity(&staged)?.ok_or_else(|| changed_during_import(target))?;
        self.steps.push(ImportStep { staged, target: target.to_owned(), new, removes: false, expected });
        Ok(())
    }

    /// Writes the journal and applies all steps.
    pub(super) fn finish(mut self) -> Result<()> {
        let journal = ImportJournal { stage: self.stage.clone(), steps: self.steps.clone() };
        let bytes =
            serde_json::to_vec(&journal).map_err(|error| Error::internal("import").with_source(error))?;
        file::write_atomic(&path(self.site), &bytes, 0o600)?;
        for (at, step) in self.steps.iter().enumerate() {
            if let Err(error) = self.apply(step) {
                self.roll_back(at);
                let _ = forget(self.site);
                return Err(error);
            }
        }
        self.done = true;
        forget(self.site)
    }

    fn apply(&self, step: &ImportStep) -> Result<()> {
        if step.removes {
            let moved = self.site.root.move_to_free_name(&step.target, &step.staged)?;
            return if moved { Ok(()) } else { Err(changed_during_import(&step.target)) };
        }
        self.site.root.exchange(&step.staged, &step.target)?;
        let Some(expected) = &step.expected else { return Ok(()) };
        if read_text(&self.site.root, &step.staged).ok().as_ref() == Some(expected) {
            return Ok(());
        }
        undo_step(self.site, step);
        Err(changed_during_import(&step.target))
    }

    fn roll_back(&self, count: usize) {
        self.steps[..count].iter().rev().for_each(|step| undo_step(self.site, step));
    }
}

impl Drop for StagedImport<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.site.root.remove_tree(&self.stage) {
            log::warn!("{}: {error}", self.site.id);
        }
    }
}

/// Undoes a step: restores the previous file, or removes the new file if there was none.
fn undo_step(site: &ProjectSite, step: &ImportStep) {
    let undone = match site.root.identity(&step.staged) {
        Ok(Some(_)) if step.removes => site.root.move_to_free_name(&step.staged, &step.target).map(drop),
        _ if step.removes => Ok(()),
        Ok(Some(_)) => site.root.exchange(&step.staged, &step.target),
        _ => site.root.move_to_free_name(&step.target, &step.staged).map(drop),
    };
    if let Err(error) = undone {
        log::error!("{}: an import could not be rolled back: {error}", site.id);
    }
}

fn path(site: &ProjectSite) -> PathBuf {
    site.state_folder.join(JOURNAL)
}

fn forget(site: &ProjectSite) -> Result<()> {
    match std::fs::remove_file(path(site)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).at("remove", path(site)),
        _ => Ok(()),
    }
}

fn changed_during_import(target: &str) -> Error {
    let message =
        format!("{target} was changed by another process at the same time; nothing was imported, try again");
    Error::new(Code::Conflict, message).detail("path", target)
}

/// Replays the journal of an interrupted import, if there is one.
///
/// # Errors
/// Fails if the journal or the workspace cannot be read.
pub(super) fn recover_import(site: &ProjectSite) -> Result<()> {
    let Some(bytes) = file::read_optional(&path(site), limits::STATE_FILE_BYTES)? else { return Ok(()) };
    if let Ok(journal) = serde_json::from_slice::<ImportJournal>(&bytes) {
        for step in &journal.steps {
            let is_new = |at: &str| site.root.identity(at).is_ok_and(|found| found == Some(step.new));
            if step.removes {
                if is_new(&step.target) {
                    if let Err(error) = site.root.move_to_free_name(&step.target, &step.staged) {
                        log::error!("{}: {} was not removed by an import: {error}", site.id, step.target);
                    }
                }
            } else if !is_new(&step.target) && is_new(&step.staged) {
                if let Err(error) = site.root.exchange(&step.staged, &step.target) {
                    log::error!("{}: {} was not imported: {error}", site.id, step.target);
                }
            }
        }
        site.root.remove_tree(&journal.stage)?;
    }
    forget(site)
}

//! Several files and folders of a workspace put in place together. What is new is made ready beside them; then a list of
//! what changes places with what is written outside of the workspace: from that moment on the new ones count. A failure
//! takes back what was done; after a crash the list is followed to its end.
//!
//! Any thread, under the site's turn. Every step is an exchange of names, so that no moment has neither.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Site, read_text};
use crate::base::{At, Code, Error, Result, limits};
use crate::store::exchange::Identity;
use crate::store::file;

/// A file below a folder, and its text.
pub(super) type Part<'a> = (String, &'a str);

const JOURNAL: &str = "import.json";

#[derive(Debug, Serialize, Deserialize)]
struct Journal {
    stage: String,
    steps: Vec<Step>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Step {
    staged: String,
    target: String,
    /// Which file or folder the new one is: it tells whether the step was done.
    new: Identity,
    /// What the old one must be, where it was read before.
    #[serde(skip)]
    expected: Option<Option<String>>,
}

/// New files on their way.
pub(super) struct Import<'a> {
    site: &'a Site,
    stage: String,
    steps: Vec<Step>,
    done: bool,
}

impl<'a> Import<'a> {
    pub(super) fn begin(site: &'a Site) -> Result<Import<'a>> {
        let stage = format!(".opencode/openwork/.import-{}", Uuid::new_v4().simple());
        site.root.make_dirs(&stage)?;
        Ok(Import { site, stage, steps: Vec::new(), done: false })
    }

    /// A file whose content is to be as it was read when the new one takes its place.
    pub(super) fn file(&mut self, target: &str, text: &str, old: Option<&str>) -> Result<()> {
        let staged = self.next();
        self.site.root.write_new(&staged, text.as_bytes(), 0o644)?;
        self.step(staged, target, Some(old.map(str::to_owned)))
    }

    /// Files in a folder: beside what is there, or instead of all of it.
    pub(super) fn folder(&mut self, folder: &str, parts: &[Part<'_>], whole: bool) -> Result<()> {
        if parts.is_empty() {
            return Ok(());
        }
        let root = &self.site.root;
        let all = self.next();
        for (number, (path, text)) in parts.iter().enumerate() {
            let staged = if whole { format!("{all}/{path}") } else { format!("{all}/{number}") };
            let above = staged.rsplit_once('/').map_or("", |(above, _)| above);
            root.make_dirs(above)?;
            root.write_new(&staged, text.as_bytes(), 0o644)?;
            if !whole {
                let target = format!("{folder}/{path}");
                root.make_dirs(target.rsplit_once('/').map_or("", |(above, _)| above))?;
                self.step(staged, &target, None)?;
            }
        }
        if whole { self.step(all, folder, None) } else { Ok(()) }
    }

    fn next(&self) -> String {
        format!("{}/{}", self.stage, Uuid::new_v4().simple())
    }

    fn step(&mut self, staged: String, target: &str, expected: Option<Option<String>>) -> Result<()> {
        let new = self.site.root.identity(&staged)?.ok_or_else(|| changing(target))?;
        self.steps.push(Step { staged, target: target.to_owned(), new, expected });
        Ok(())
    }

    /// Puts everything in place.
    pub(super) fn finish(mut self) -> Result<()> {
        let journal = Journal { stage: self.stage.clone(), steps: self.steps.clone() };
        let bytes = serde_json::to_vec(&journal).map_err(|error| Error::internal("import").because(error))?;
        file::write_atomic(&path(self.site), &bytes, 0o600)?;
        for (at, step) in self.steps.iter().enumerate() {
            if let Err(error) = self.put(step) {
                self.take_back(at);
                let _ = forget(self.site);
                return Err(error);
            }
        }
        self.done = true;
        forget(self.site)
    }

    fn put(&self, step: &Step) -> Result<()> {
        self.site.root.change_places(&step.staged, &step.target)?;
        let Some(expected) = &step.expected else { return Ok(()) };
        if read_text(&self.site.root, &step.staged).ok().as_ref() == Some(expected) {
            return Ok(());
        }
        back(self.site, step);
        Err(changing(&step.target))
    }

    fn take_back(&self, count: usize) {
        self.steps[..count].iter().rev().for_each(|step| back(self.site, step));
    }
}

impl Drop for Import<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.site.root.remove_tree(&self.stage) {
            log::warn!("{}: {error}", self.site.id);
        }
    }
}

/// The old one where it was, or nothing there again.
fn back(site: &Site, step: &Step) {
    let undone = match site.root.identity(&step.staged) {
        Ok(Some(_)) => site.root.change_places(&step.staged, &step.target),
        _ => site.root.move_away(&step.target, &step.staged).map(drop),
    };
    if let Err(error) = undone {
        log::error!("{}: an import could not be taken back: {error}", site.id);
    }
}

fn path(site: &Site) -> PathBuf {
    site.state.join(JOURNAL)
}

fn forget(site: &Site) -> Result<()> {
    match std::fs::remove_file(path(site)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).at("remove", path(site)),
        _ => Ok(()),
    }
}

fn changing(target: &str) -> Error {
    let message =
        format!("{target} was changed by somebody else at the same moment; nothing was imported, try again");
    Error::new(Code::Conflict, message).detail("path", target)
}

/// Follows the list that a crash has left, if there is one, to its end.
///
/// # Errors
/// When the list or the workspace cannot be read.
pub(super) fn settle(site: &Site) -> Result<()> {
    let Some(bytes) = file::read_optional(&path(site), limits::STATE_FILE_BYTES)? else { return Ok(()) };
    if let Ok(journal) = serde_json::from_slice::<Journal>(&bytes) {
        for step in &journal.steps {
            let is_new = |at: &str| site.root.identity(at).is_ok_and(|found| found == Some(step.new));
            if !is_new(&step.target) && is_new(&step.staged) {
                if let Err(error) = site.root.change_places(&step.staged, &step.target) {
                    log::error!("{}: {} was not imported: {error}", site.id, step.target);
                }
            }
        }
        site.root.remove_tree(&journal.stage)?;
    }
    forget(site)
}

//! What a write would change, before it is done: the very code that writes runs without writing and leaves a plan. A write
//! that was approved is bound to its plan: unless each file still has the content that was shown, and is to get the
//! content that was shown, nothing is written.
//!
//! Checked under the site's turn, and where a file is replaced once more by what is exchanged for it.

use std::collections::HashMap;
use std::sync::Mutex;

use serde_json::{Map, json};
use sha2::{Digest as _, Sha256};

use super::ProjectSite;
use super::portable_files::MODE;
use crate::access::approval_request::{FileChange, FileContent};
use crate::base::thread::lock;
use crate::base::{Code, Error, Result, limits};
use crate::store::beneath::Root;

/// Files of a folder that a plan names one by one.
const FILES: usize = 256;
/// Files up to this size that are removed with their folder are read; of others a plan has the size. A workload fills
/// the folder.
const REMOVED_FILE_BYTES: u64 = 16 << 10;

/// Contents of all files before the write that one preview holds. A workload makes thousands of large files that one small
/// document replaces; of further ones the size is shown.
const BEFORE_BYTES: usize = 8 << 20;

type FingerprintHash = [u8; 32];

/// What tells a file from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fingerprint {
    /// Its content.
    Content(FingerprintHash),
    /// Its number, size and time of the last change, which no workload can set.
    State(FingerprintHash),
}

/// What becomes of writes to a site.
#[derive(Debug, Default)]
pub(super) enum WriteMode {
    /// They are done.
    #[default]
    Apply,
    /// They are noted, and not done.
    Preview(Mutex<PreviewLog>),
    /// They are done if they are those of this plan.
    Approved(ApprovedChanges),
}

#[derive(Debug, Default)]
pub(super) struct PreviewLog {
    changes: Vec<FileChange>,
    /// Bytes of all files before.
    before_bytes: usize,
    plan: ApprovedChanges,
}

/// What an approver was shown, as far as it takes to know it again: of each file below the site's root, the content
/// before and after.
#[derive(Clone, Debug, Default)]
pub struct ApprovedChanges(HashMap<String, (Option<Fingerprint>, Option<Fingerprint>)>);

impl ProjectSite {
    /// A site whose writes are noted instead of done.
    #[must_use]
    pub fn for_preview(mut self) -> ProjectSite {
        self.writes = WriteMode::Preview(Mutex::default());
        self
    }

    /// A site that takes only the writes of this plan.
    #[must_use]
    pub fn restricted_to(mut self, plan: Option<ApprovedChanges>) -> ProjectSite {
        self.writes = plan.map_or(WriteMode::Apply, WriteMode::Approved);
        self
    }

    /// The writes that were noted.
    pub fn into_preview(self) -> (Vec<FileChange>, ApprovedChanges) {
        match self.writes {
            WriteMode::Preview(noted) => {
                let noted = noted.into_inner().unwrap_or_default();
                (noted.changes, noted.plan)
            }
            WriteMode::Apply | WriteMode::Approved(_) => (Vec::new(), ApprovedChanges::default()),
        }
    }

    /// Whether writes are noted instead of done.
    pub(super) fn is_preview(&self) -> bool {
        matches!(self.writes, WriteMode::Preview(_))
    }

    /// Whether nobody is asked about writes.
    pub(super) fn applies_all(&self) -> bool {
        matches!(self.writes, WriteMode::Apply)
    }

    /// Asked before a file is changed: whether to do it.
    ///
    /// # Errors
    /// `ApprovalOutdated` when it is not what was approved.
    pub(super) fn may_write(&self, rel: &str, before: Option<&[u8]>, after: Option<&[u8]>) -> Result<bool> {
        if self.applies_all() {
            return Ok(true);
        }
        self.may_change(rel, (content(before), before.map(fingerprint)), after)
    }

    /// The same for a file as [`look`] has found it.
    ///
    /// # Errors
    /// As above.
    pub(super) fn may_change(
        &self,
        rel: &str,
        (before, found): (FileContent, Option<Fingerprint>),
        after: Option<&[u8]>,
    ) -> Result<bool> {
        let hashes = (found, after.map(fingerprint));
        match &self.writes {
            WriteMode::Apply => Ok(true),
            WriteMode::Preview(noted) => {
                self.note(&mut lock(noted), rel, (before, content(after)), hashes);
                Ok(false)
            }
            WriteMode::Approved(plan) if plan.0.get(rel) == Some(&hashes) => Ok(true),
            WriteMode::Approved(_) => Err(outdated(rel)),
        }
    }

    /// The same for a file that is removed.
    ///
    /// # Errors
    /// As above; when it cannot be read.
    pub(super) fn may_remove(&self, rel: &str) -> Result<bool> {
        if self.applies_all() {
            return Ok(true);
        }
        let found = inspect(&self.root, rel, limits::PROJECT_FILE_BYTES)?;
        if found.1.is_none() {
            return Ok(!self.is_preview());
        }
        self.may_change(rel, found, None)
    }

    /// The same for a folder that is removed with everything in it.
    ///
    /// # Errors
    /// As above; when it cannot be listed.
    pub(super) fn may_remove_folder(&self, folder: &str) -> Result<bool> {
        if self.applies_all() {
            return Ok(true);
        }
        let (files, more) = files_below(&self.root, folder)?;
        self.may_remove_files(folder, &files, more)?;
        Ok(!self.is_preview())
    }

    fn may_remove_files(&self, folder: &str, files: &[String], more: bool) -> Result<()> {
        for rel in files {
            let (content, found) = inspect(&self.root, rel, REMOVED_FILE_BYTES)?;
            match &self.writes {
                WriteMode::Preview(noted) => {
                    self.note(&mut lock(noted), rel, (content, FileContent::Absent), (found, None))
                }
                WriteMode::Approved(plan) if plan.0.get(rel) != Some(&(found, None)) => {
                    return Err(outdated(rel));
                }
                WriteMode::Approved(_) | WriteMode::Apply => {}
            }
        }
        if let (true, WriteMode::Preview(noted)) = (more, &self.writes) {
            let rest =
                Map::from_iter([("more".to_owned(), json!("further files, all of which are removed"))]);
            let path = self.path(folder);
            let change = FileChange {
                path,
                before: FileContent::Described(rest),
                after: FileContent::Absent,
                mode: None,
            };
            lock(noted).changes.push(change);
        }
        Ok(())
    }

    /// The same for a file that is written whole, whatever is there.
    ///
    /// # Errors
    /// As above.
    pub(super) fn may_put(&self, rel: &str, after: &[u8], mode: u32) -> Result<bool> {
        if self.applies_all() {
            return Ok(true);
        }
        let found = inspect(&self.root, rel, limits::PROJECT_FILE_BYTES)?;
        let may = self.may_change(rel, found, Some(after))?;
        if let (WriteMode::Preview(noted), true) = (&self.writes, mode != MODE) {
            let mut noted = lock(noted);
            if let Some(change) = noted.changes.last_mut() {
                change.mode = Some(format!("{mode:o}"));
            }
        }
        Ok(may)
    }

    fn note(
        &self,
        noted: &mut PreviewLog,
        rel: &str,
        (before, after): (FileContent, FileContent),
        hashes: (Option<Fingerprint>, Option<Fingerprint>),
    ) {
        let length =
            |content: &FileContent| if let FileContent::Bytes(bytes) = content { bytes.len() } else { 0 };
        noted.before_bytes += length(&before);
        let before = match before {
            FileContent::Bytes(bytes) if noted.before_bytes > BEFORE_BYTES => described(bytes.len() as u64),
            before => before,
        };
        noted.changes.push(FileChange { path: self.path(rel), before, after, mode: None });
        noted.plan.0.insert(rel.to_owned(), hashes);
    }

    /// Asked once before anything is written.
    ///
    /// # Errors
    /// `ApprovalOutdated` when a file of the plan has changed.
    pub(super) fn check_plan(&self) -> Result<()> {
        let WriteMode::Approved(plan) = &self.writes else { return Ok(()) };
        for (rel, (before, _)) in &plan.0 {
            let most =
                if matches!(before, Some(Fingerprint::State(_))) { 0 } else { limits::PROJECT_FILE_BYTES };
            if inspect(&self.root, rel, most)?.1 != *before {
                return Err(outdated(rel));
            }
        }
        Ok(())
    }
}

/// The 409 of a write that is not the one that was shown.
pub fn outdated(rel: &str) -> Error {
    let message = format!(
        "{rel} was changed after its approver was asked, so nothing was written; send the request again to have the new \
         change approved"
    );
    Error::new(Code::ApprovalOutdated, message).detail("path", rel)
}

fn content(bytes: Option<&[u8]>) -> FileContent {
    bytes.map_or(FileContent::Absent, |bytes| FileContent::Bytes(bytes.to_vec()))
}

fn fingerprint(bytes: &[u8]) -> Fingerprint {
    Fingerprint::Content(Sha256::digest(bytes).into())
}

/// A file as it is shown: with its content if that has at most `most` bytes, else with its size.
pub(super) fn inspect(root: &Root, rel: &str, most: u64) -> Result<(FileContent, Option<Fingerprint>)> {
    use std::os::unix::fs::MetadataExt as _;
    let Some(found) = root.metadata(rel)? else { return Ok((FileContent::Absent, None)) };
    if found.is_file() && found.len() <= most {
        if let Some(bytes) = root.read(rel, limits::PROJECT_FILE_BYTES)? {
            let print = fingerprint(&bytes);
            return Ok((FileContent::Bytes(bytes), Some(print)));
        }
    }
    let state = format!("{} {} {} {}", found.ino(), found.len(), found.ctime(), found.ctime_nsec());
    Ok((described(found.len()), Some(Fingerprint::State(Sha256::digest(state).into()))))
}

fn described(bytes: u64) -> FileContent {
    FileContent::Described(Map::from_iter([("bytes".to_owned(), json!(bytes))]))
}

/// The files below a folder, and whether there are more than a plan names.
fn files_below(root: &Root, folder: &str) -> Result<(Vec<String>, bool)> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        let mut names = root.entries(&folder, limits::PROJECT_ENTRIES)?;
        names.sort_unstable();
        for name in names {
            let rel = format!("{folder}/{name}");
            // A link to a folder is removed itself, and what it leads to stays.
            if !root.is_link(&rel)? && root.is_dir(&rel)? {
                folders.push(rel);
            } else {
                files.push(rel);
            }
            if files.len() + folders.len() > FILES {
                files.truncate(FILES);
                return Ok((files, true));
            }
        }
    }
    Ok((files, false))
}

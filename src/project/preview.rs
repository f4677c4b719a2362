//! Previews of writes, for approval. A preview runs the same code as the write itself, but records the changes instead
//! of applying them. When the write is approved, berth restricts it to these changes: the write fails if a file no
//! longer has the content that was shown, or would get different content.
//!
//! berth checks this when it holds the site's write turn, and once more when it replaces a file, on the content that
//! it replaces.

use std::collections::HashMap;
use std::sync::Mutex;

use serde_json::{Map, json};
use sha2::{Digest as _, Sha256};

use super::site::{FILE_MODE, ProjectSite};
use crate::access::approval_request::{FileChange, FileContent};
use crate::base::thread::lock;
use crate::base::{Code, Error, Result, limits};
use crate::store::beneath::Root;

/// The maximum number of files of a folder that a preview lists individually.
const FILES: usize = 256;
/// The maximum size of a removed file whose content is shown. For larger files only the size is shown, because the
/// workload controls the contents of the folder.
const REMOVED_FILE_BYTES: u64 = 16 << 10;

/// The maximum total size of the previous contents in a preview. Beyond it only sizes are shown, because a workload
/// can create thousands of large files that one small document replaces.
const BEFORE_BYTES: usize = 8 << 20;

type FingerprintHash = [u8; 32];

/// Identifies the version of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fingerprint {
    /// A hash of the file's content.
    Content(FingerprintHash),
    /// A hash of the file's inode, size and change time. A workload cannot set the change time.
    State(FingerprintHash),
}

/// Whether writes to a site are applied.
#[derive(Debug, Default)]
pub(super) enum WriteMode {
    /// Writes are applied.
    #[default]
    Apply,
    /// Writes are recorded instead of applied.
    Preview(Mutex<PreviewLog>),
    /// Only these approved changes are applied; other writes fail.
    Approved(ApprovedChanges),
}

#[derive(Debug, Default)]
pub(super) struct PreviewLog {
    changes: Vec<FileChange>,
    /// The total size of the previous contents in `changes`.
    before_bytes: usize,
    plan: ApprovedChanges,
}

/// The changes shown to an approver: the previous and new version of each file, by path below the site's root.
#[derive(Clone, Debug, Default)]
pub struct ApprovedChanges(HashMap<String, (Option<Fingerprint>, Option<Fingerprint>)>);

impl ProjectSite {
    /// Returns the site in a mode that records writes instead of applying them.
    #[must_use]
    pub fn for_preview(mut self) -> ProjectSite {
        self.writes = WriteMode::Preview(Mutex::default());
        self
    }

    /// Returns the site in a mode that applies only the changes in `plan`, or all writes if `plan` is `None`.
    #[must_use]
    pub fn restricted_to(mut self, plan: Option<ApprovedChanges>) -> ProjectSite {
        self.writes = plan.map_or(WriteMode::Apply, WriteMode::Approved);
        self
    }

    /// Returns the recorded writes, as changes for the approver and as the plan for [`ProjectSite::restricted_to`].
    pub fn into_preview(self) -> (Vec<FileChange>, ApprovedChanges) {
        match self.writes {
            WriteMode::Preview(log) => {
                let log = log.into_inner().unwrap_or_default();
                (log.changes, log.plan)
            }
            WriteMode::Apply | WriteMode::Approved(_) => (Vec::new(), ApprovedChanges::default()),
        }
    }

    /// Returns whether writes are recorded instead of applied.
    pub(super) fn is_preview(&self) -> bool {
        matches!(self.writes, WriteMode::Preview(_))
    }

    /// Returns whether writes are applied without restriction.
    pub(super) fn applies_all(&self) -> bool {
        matches!(self.writes, WriteMode::Apply)
    }

    /// Records or checks a change before a file is changed. Returns whether the caller shall apply the change.
    ///
    /// # Errors
    /// Fails with `ApprovalOutdated` if the change was not approved.
    pub(super) fn may_write(&self, rel: &str, before: Option<&[u8]>, after: Option<&[u8]>) -> Result<bool> {
        if self.applies_all() {
            return Ok(true);
        }
        self.may_change(rel, (content(before), before.map(fingerprint)), after)
    }

    /// Like [`ProjectSite::may_write`], but takes the previous version of the file as [`inspect`] returns it.
    ///
    /// # Errors
    /// Fails for the same reasons as [`ProjectSite::may_write`].
    pub(super) fn may_change(
        &self,
        rel: &str,
        (before, found): (FileContent, Option<Fingerprint>),
        after: Option<&[u8]>,
    ) -> Result<bool> {
        let hashes = (found, after.map(fingerprint));
        match &self.writes {
            WriteMode::Apply => Ok(true),
            WriteMode::Preview(log) => {
                self.note(&mut lock(log), rel, (before, content(after)), hashes);
                Ok(false)
            }
            WriteMode::Approved(plan) if plan.0.get(rel) == Some(&hashes) => Ok(true),
            WriteMode::Approved(_) => Err(outdated(rel)),
        }
    }

    /// Like [`ProjectSite::may_write`], for the removal of a file.
    ///
    /// # Errors
    /// Fails for the same reasons as [`ProjectSite::may_write`], and if the file cannot be read.
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

    /// Like [`ProjectSite::may_write`], for the removal of a folder with its content.
    ///
    /// # Errors
    /// Fails for the same reasons as [`ProjectSite::may_write`], and if the folder cannot be listed.
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
                WriteMode::Preview(log) => {
                    self.note(&mut lock(log), rel, (content, FileContent::Absent), (found, None))
                }
                WriteMode::Approved(plan) if plan.0.get(rel) != Some(&(found, None)) => {
                    return Err(outdated(rel));
                }
                WriteMode::Approved(_) | WriteMode::Apply => {}
            }
        }
        if let (true, WriteMode::Preview(log)) = (more, &self.writes) {
            let rest =
                Map::from_iter([("more".to_owned(), json!("further files, all of which are removed"))]);
            let path = self.path(folder);
            let change = FileChange {
                path,
                before: FileContent::Described(rest),
                after: FileContent::Absent,
                mode: None,
            };
            lock(log).changes.push(change);
        }
        Ok(())
    }

    /// Like [`ProjectSite::may_write`], for a write that replaces the file regardless of its previous content.
    ///
    /// # Errors
    /// Fails for the same reasons as [`ProjectSite::may_write`].
    pub(super) fn may_put(&self, rel: &str, after: &[u8], mode: u32) -> Result<bool> {
        if self.applies_all() {
            return Ok(true);
        }
        let found = inspect(&self.root, rel, limits::PROJECT_FILE_BYTES)?;
        let may = self.may_change(rel, found, Some(after))?;
        if let (WriteMode::Preview(log), true) = (&self.writes, mode != FILE_MODE) {
            let mut log = lock(log);
            if let Some(change) = log.changes.last_mut() {
                change.mode = Some(format!("{mode:o}"));
            }
        }
        Ok(may)
    }

    fn note(
        &self,
        log: &mut PreviewLog,
        rel: &str,
        (before, after): (FileContent, FileContent),
        hashes: (Option<Fingerprint>, Option<Fingerprint>),
    ) {
        let length =
            |content: &FileContent| if let FileContent::Bytes(bytes) = content { bytes.len() } else { 0 };
        log.before_bytes += length(&before);
        let before = match before {
            FileContent::Bytes(bytes) if log.before_bytes > BEFORE_BYTES => described(bytes.len() as u64),
            before => before,
        };
        log.changes.push(FileChange { path: self.path(rel), before, after, mode: None });
        log.plan.0.insert(rel.to_owned(), hashes);
    }

    /// Checks all approved files. The caller calls this once, before it writes the first file.
    ///
    /// # Errors
    /// Fails with `ApprovalOutdated` if a file has changed since the approval was requested.
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

/// Returns the error (409) of a write that differs from the approved one.
pub fn outdated(rel: &str) -> Error {
    let message = format!(
        "{rel} was changed after the approval was requested, so nothing was written; send the request again to have the new \
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

/// Returns a file's previous version for a preview: its content if it has at most `most` bytes, otherwise its size;
/// and a fingerprint.
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

/// Returns the files below a folder, and whether the folder has more files than a preview lists.
fn files_below(root: &Root, folder: &str) -> Result<(Vec<String>, bool)> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        let mut names = root.entries(&folder, limits::PROJECT_ENTRIES)?;
        names.sort_unstable();
        for name in names {
            let rel = format!("{folder}/{name}");
            // A symbolic link to a folder is removed like a file; its target is kept.
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

//! Who did what: one JSON line for each write, also for those that were denied or failed, for each decision about one,
//! and for failed logins. A log for each workspace, and one for what concerns the server; each is two files of bounded
//! size, the older of which is given up when the newer is full. Who asks for a log gets its end, in constant memory.
//! Knows nothing of HTTP. A line that cannot be written is a line in the server's own log, and no reason to fail.
//!
//! Threads: any. Locks: `writer` (level 3, one file) across an append; `last` is a leaf.

mod read;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::hash::Hash;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::Actor;
use crate::base::repeat_limiter::RepeatLimiter;
use crate::base::thread::lock;
use crate::base::{At, Error, Result, clock, limits};
use crate::store::file;

/// The log of what concerns the server and no workspace, or one that is not there.
pub const SERVER: &str = "server";

/// A line in the making: everything but its end.
#[derive(Clone, Debug)]
pub struct AuditDraft {
    /// Where it goes: a workspace's id in the OpenWork API, or [`SERVER`].
    pub log: String,
    /// What kind of write.
    pub action: String,
    /// What is written to.
    pub target: String,
    /// For people.
    pub summary: String,
}

/// How it ended.
#[derive(Clone, Copy, Debug)]
pub enum AuditOutcome {
    /// Done.
    Done,
    /// Not allowed, with the status and the code of the answer.
    Denied(u16, &'static str),
    /// Tried, in vain.
    Failed(u16, &'static str),
}

/// The line, in the shape of the OpenWork server; the last three only where it did not end well.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AuditLine<'a> {
    id: Uuid,
    #[serde(skip_serializing_if = "Option::is_none")]
    workspace_id: Option<&'a str>,
    actor: Value,
    action: &'a str,
    target: &'a str,
    summary: &'a str,
    timestamp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
}

/// All logs.
#[derive(Debug)]
pub struct Audit {
    folder: PathBuf,
    writer: Mutex<()>,
    /// By log: when its workspace was last changed; 0: never. Filled when it is first asked for.
    last_changes: Mutex<HashMap<String, u64>>,
    repeats: RepeatLimiter<Repeated>,
}

/// An example of what was not written because it repeats.
type Repeated = (AuditDraft, Option<Actor>, AuditOutcome);

/// Lines for refused or failed writes of one kind by one token in an interval: a client that repeats them at full speed must not
/// push the lines of others out of the log.
const REFUSED_LINES: u64 = 20;

impl Audit {
    /// The logs in the data folder.
    ///
    /// # Errors
    /// When their folder cannot be made.
    pub fn open(data_dir: &Path) -> Result<Audit> {
        let folder = data_dir.join("audit");
        file::create_dir_private(&folder)?;
        let audit = Audit {
            folder,
            writer: Mutex::default(),
            last_changes: Mutex::default(),
            repeats: RepeatLimiter::default(),
        };
        audit.prune();
        Ok(audit)
    }

    /// Writes a line, or counts it where many of its kind were refused or have failed just now.
    pub fn record(&self, draft: &AuditDraft, actor: Option<&Actor>, outcome: AuditOutcome) {
        if let AuditOutcome::Denied(status, code) | AuditOutcome::Failed(status, code) = outcome {
            let token = actor.map(|actor| actor.token_hash.as_str());
            let kind = (&draft.log, token, &draft.action, status, code);
            if !self.note(kind, REFUSED_LINES, || (draft.clone(), actor.cloned(), outcome)) {
                return;
            }
        }
        self.write(draft, actor, outcome);
    }

    fn write(&self, draft: &AuditDraft, actor: Option<&Actor>, outcome: AuditOutcome) {
        let timestamp = clock::now_unix_ms();
        let (result, status, code) = match outcome {
            AuditOutcome::Done => (None, None, None),
            AuditOutcome::Denied(status, code) => (Some("denied"), Some(status), Some(code)),
            AuditOutcome::Failed(status, code) => (Some("failed"), Some(status), Some(code)),
        };
        let line = AuditLine {
            id: Uuid::new_v4(),
            workspace_id: (draft.log != SERVER).then_some(&draft.log),
            actor: actor.map_or_else(|| json!({ "type": "remote" }), |actor| json!(actor)),
            action: &draft.action,
            target: &draft.target,
            summary: &draft.summary,
            timestamp,
            result,
            status,
            code,
        };
        let written = serde_json::to_vec(&line)
            .map_err(|error| Error::internal("A line of the audit log").with_source(error))
            .and_then(|line| self.append(&draft.log, line));
        if let Err(error) = written {
            log::error!("not in the audit log: {} {}: {error}", draft.action, draft.target);
        }
        if result.is_none() && read::changes(&draft.action, &draft.target) {
            if let Some(last) = lock(&self.last_changes).get_mut(&draft.log) {
                *last = timestamp.max(*last);
            }
        }
    }

    /// Writes that a client presented a worthless credential; one that goes on with it is counted, and written about once
    /// in an interval.
    pub fn login_failed(&self, client: &str, actor: Option<&Actor>, target: &str, seen: &str) {
        let draft = || AuditDraft {
            log: SERVER.to_owned(),
            action: "auth.failed".to_owned(),
            target: sanitize(target),
            summary: sanitize(&format!("{seen} from {client}")),
        };
        let outcome = AuditOutcome::Denied(401, "unauthorized");
        if self.note(("auth.failed", client), 1, || (draft(), actor.cloned(), outcome)) {
            self.write(&draft(), actor, outcome);
        }
    }

    /// Counts an event of this kind, and whether it is written. Of those whose interval has ended a line says how many more
    /// there were.
    fn note(&self, kind: impl Hash, burst: u64, example: impl FnOnce() -> Repeated) -> bool {
        let noted = self.repeats.note(kind, burst, Instant::now(), example);
        self.write_repeated(noted.summaries);
        noted.written
    }

    fn write_repeated(&self, ended: Vec<(Repeated, u64)>) {
        for ((mut draft, actor, outcome), count) in ended {
            draft.summary = format!("{} ({count} more like this)", draft.summary);
            self.write(&draft, actor.as_ref(), outcome);
        }
    }

    /// The last lines of a log, newest first. `old`: a log that the OpenWork server has left in the workspace.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn recent(&self, log: &str, old: Option<File>, limit: usize) -> Result<Vec<Value>> {
        let mut lines = read::MergedLog::new(self.generations(log)?, old);
        std::iter::from_fn(|| lines.next()).take(limit).collect::<io::Result<_>>().at("read", &self.folder)
    }

    /// As [`Audit::last_change`] has found before; 0 for never.
    pub fn known_change(&self, log: &str) -> Option<u64> {
        lock(&self.last_changes).get(log).copied()
    }

    /// When the workspace was last changed through the OpenWork API, in Unix milliseconds. `old` is opened only when
    /// nothing else tells, and once.
    pub fn last_change(&self, log: &str, old: impl FnOnce() -> Option<File>) -> Option<u64> {
        let last = match self.known_change(log) {
            Some(last) => last,
            None => {
                let found = self.find_last(log, old).unwrap_or_else(|error| {
                    log::error!("the audit log of {log}: {error}");
                    0
                });
                let mut last = lock(&self.last_changes);
                let last = last.entry(log.to_owned()).or_default();
                *last = found.max(*last);
                *last
            }
        };
        (last > 0).then_some(last)
    }

    fn find_last(&self, log: &str, old: impl FnOnce() -> Option<File>) -> Result<u64> {
        for old in [None, Some(old)] {
            let mut lines = match old {
                None => read::MergedLog::new(self.generations(log)?, None),
                Some(old) => read::MergedLog::new(Vec::new(), old()),
            };
            while let Some(line) = lines.next() {
                let line = line.at("read", &self.folder)?;
                let text = |key: &str| line[key].as_str().unwrap_or_default();
                if line.get("result").is_none() && read::changes(text("action"), text("target")) {
                    return Ok(line["timestamp"].as_u64().unwrap_or(0));
                }
            }
        }
        Ok(0)
    }

    /// Its files, the newer first.
    fn generations(&self, log: &str) -> Result<Vec<File>> {
        let mut files = Vec::new();
        for path in [self.path(log), self.older(log)] {
            match File::open(&path) {
                Ok(file) => files.push(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).at("open", &path),
            }
        }
        Ok(files)
    }

    fn path(&self, log: &str) -> PathBuf {
        self.folder.join(format!("{log}.jsonl"))
    }

    fn older(&self, log: &str) -> PathBuf {
        self.folder.join(format!("{log}.1.jsonl"))
    }

    fn append(&self, log: &str, mut line: Vec<u8>) -> Result<()> {
        line.push(b'\n');
        let path = self.path(log);
        let _turn = lock(&self.writer); // LOCK: 3
        let (mut file, fresh) = match open(&path, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (open(&path, true).at("make", &path)?, true)
            }
            opened => (opened.at("open", &path)?, false),
        };
        let size = file.metadata().at("look at", &path)?.len();
        if size > 0 && size + line.len() as u64 > limits::AUDIT_FILE_BYTES {
            fs::rename(&path, self.older(log)).at("move", &path)?;
            file = open(&path, true).at("make", &path)?;
        } else if size > 0 {
            // A crash may have torn the last line; the next one must not be lost with it.
            let mut last = [0];
            file.seek(SeekFrom::End(-1)).and_then(|_| file.read_exact(&mut last)).at("read", &path)?;
            if last != [b'\n'] {
                line.insert(0, b'\n');
            }
        }
        // One write, so that no reader sees half a line.
        file.write_all(&line).at("write", &path)?;
        if fresh {
            self.prune();
        }
        Ok(())
    }

    /// Gives up the logs that were not written to for the longest time, when there are too many: those of workspaces that
    /// were deleted.
    fn prune(&self) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        let mut logs: Vec<_> = entries
            .flatten()
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .filter(|(_, path)| path.file_name() != self.path(SERVER).file_name())
            .collect();
        if logs.len() <= limits::AUDIT_FILES {
            return;
        }
        logs.sort_unstable();
        for (_, path) in &logs[..logs.len() - limits::AUDIT_FILES] {
            if let Err(error) = fs::remove_file(path) {
                log::warn!("{} cannot be removed: {error}", path.display());
            }
        }
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        let rest = self.repeats.rest();
        self.write_repeated(rest);
    }
}

fn open(path: &Path, fresh: bool) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(fresh).mode(0o600).open(path)
}

/// A client's text as it may stand in a line.
pub fn sanitize(text: &str) -> String {
    text.chars().take(limits::APPROVAL_SUMMARY_CHARS).filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

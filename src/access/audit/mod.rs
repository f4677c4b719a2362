//! The audit log: one JSON line for each write, including denied and failed writes, for each approval decision, and
//! for failed logins. There is one log per workspace and one for the server. A log consists of two files of bounded
//! size; when the newer one is full, it replaces the older one. Reads return the end of a log in constant memory. If
//! a line cannot be written, the server log reports that, and the request does not fail. Independent of HTTP.
//!
//! Threads: any. Locks: `writer` (level 3, one file) while a line is appended; `last_changes` is a leaf.

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

/// Maximum number of audit log files, about 4 GiB if all were full. The least recently written ones are removed.
const AUDIT_FILES: usize = 2000;

/// The name of the log for events that concern the server, or a workspace that does not exist.
pub const SERVER: &str = "server";

/// An audit line without its outcome.
#[derive(Clone, Debug)]
pub struct AuditDraft {
    /// The name of the log: a workspace's id in the OpenWork API, or [`SERVER`].
    pub log: String,
    /// The kind of write.
    pub action: String,
    /// The path or object that is written.
    pub target: String,
    /// A description for people.
    pub summary: String,
}

/// The outcome of an audited request.
#[derive(Clone, Copy, Debug)]
pub enum AuditOutcome {
    Done,
    /// The request was not allowed; the status and code of its answer.
    Denied(u16, &'static str),
    /// The request failed; the status and code of its answer.
    Failed(u16, &'static str),
}

/// An audit line in the format of the OpenWork server. The last three fields are present only if the request did not
/// succeed.
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

/// All audit logs.
#[derive(Debug)]
pub struct Audit {
    folder: PathBuf,
    writer: Mutex<()>,
    /// The time of the last change of each workspace, or 0 if there was none. Filled on demand.
    last_changes: Mutex<HashMap<String, u64>>,
    repeats: RepeatLimiter<Repeated>,
}

/// An example of the lines that were counted instead of written.
type Repeated = (AuditDraft, Option<Actor>, AuditOutcome);

/// Maximum number of lines per interval for refused or failed writes of one kind by one token. A client that repeats
/// such writes at full speed must not rotate other lines out of the log.
const REFUSED_LINES: u64 = 20;

impl Audit {
    /// Opens the audit logs in the data folder.
    ///
    /// # Errors
    /// Fails if their folder cannot be created.
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

    /// Writes a line. Only counts it if many requests of its kind were refused or failed recently.
    pub fn record(&self, draft: &AuditDraft, actor: Option<&Actor>, outcome: AuditOutcome) {
        if let AuditOutcome::Denied(status, code) | AuditOutcome::Failed(status, code) = outcome {
            let token = actor.map(|actor| actor.token_hash.as_str());
            let kind = (&draft.log, token, &draft.action, status, code);
            if !self.count_event(kind, REFUSED_LINES, || (draft.clone(), actor.cloned(), outcome)) {
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
            .map_err(|error| Error::internal("Cannot encode an audit line").with_source(error))
            .and_then(|line| self.append(&draft.log, line));
        if let Err(error) = written {
            log::error!("Cannot write an audit line for {} {}: {error}", draft.action, draft.target);
        }
        if result.is_none() && read::changes(&draft.action, &draft.target) {
            if let Some(last) = lock(&self.last_changes).get_mut(&draft.log) {
                *last = timestamp.max(*last);
            }
        }
    }

    /// Writes a line about an invalid credential. Repetitions are counted, and summarized once per interval.
    pub fn login_failed(&self, client: &str, actor: Option<&Actor>, target: &str, seen: &str) {
        let draft = || AuditDraft {
            log: SERVER.to_owned(),
            action: "auth.failed".to_owned(),
            target: sanitize(target),
            summary: sanitize(&format!("{seen} from {client}")),
        };
        let outcome = AuditOutcome::Denied(401, "unauthorized");
        if self.count_event(("auth.failed", client), 1, || (draft(), actor.cloned(), outcome)) {
            self.write(&draft(), actor, outcome);
        }
    }

    /// Counts an event and returns whether to write a line for it. For each interval that has ended, writes a line
    /// with the number of events that were only counted.
    fn count_event(&self, kind: impl Hash, burst: u64, example: impl FnOnce() -> Repeated) -> bool {
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

    /// Returns the last lines of a log, newest first. `old` is a log that the OpenWork server left in the workspace.
    ///
    /// # Errors
    /// Fails if a file of berth's own log cannot be read.
    pub fn recent(&self, log: &str, old: Option<File>, limit: usize) -> Result<Vec<Value>> {
        let mut lines = read::MergedLog::new(self.files(log)?, old);
        std::iter::from_fn(|| lines.next()).take(limit).collect::<io::Result<_>>().at("read", &self.folder)
    }

    /// Returns the cached result of [`Audit::last_change`], with 0 for no change; `None` if it is not cached.
    pub fn known_change(&self, log: &str) -> Option<u64> {
        lock(&self.last_changes).get(log).copied()
    }

    /// Returns the time of the last change of a workspace through the OpenWork API, in Unix milliseconds. `old`
    /// opens the log of the OpenWork server; it is called only if berth's own log contains no change, and at most
    /// once per workspace.
    pub fn last_change(&self, log: &str, old: impl FnOnce() -> Option<File>) -> Option<u64> {
        let last = match self.known_change(log) {
            Some(last) => last,
            None => {
                let found = self.find_last(log, old).unwrap_or_else(|error| {
                    log::error!("Cannot read the audit log of {log}: {error}");
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
                None => read::MergedLog::new(self.files(log)?, None),
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

    /// Returns the files of a log, newer first.
    fn files(&self, log: &str) -> Result<Vec<File>> {
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
                (open(&path, true).at("create", &path)?, true)
            }
            opened => (opened.at("open", &path)?, false),
        };
        let size = file.metadata().at("inspect", &path)?.len();
        if size > 0 && size + line.len() as u64 > limits::AUDIT_FILE_BYTES {
            fs::rename(&path, self.older(log)).at("move", &path)?;
            file = open(&path, true).at("make", &path)?;
        } else if size > 0 {
            // A crash may have truncated the last line, so the next one must start on a new line.
            let mut last = [0];
            file.seek(SeekFrom::End(-1)).and_then(|_| file.read_exact(&mut last)).at("read", &path)?;
            if last != [b'\n'] {
                line.insert(0, b'\n');
            }
        }
        // The line is written in one call, so that readers see complete lines.
        file.write_all(&line).at("write", &path)?;
        if fresh {
            self.prune();
        }
        Ok(())
    }

    /// Deletes the least recently written logs if there are too many. These usually belong to deleted workspaces.
    fn prune(&self) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        let mut logs: Vec<_> = entries
            .flatten()
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .filter(|(_, path)| path.file_name() != self.path(SERVER).file_name())
            .collect();
        if logs.len() <= AUDIT_FILES {
            return;
        }
        logs.sort_unstable();
        for (_, path) in &logs[..logs.len() - AUDIT_FILES] {
            if let Err(error) = fs::remove_file(path) {
                log::warn!("Cannot remove {}: {error}", path.display());
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

/// Shortens text from a client and removes control characters.
pub fn sanitize(text: &str) -> String {
    text.chars().take(limits::APPROVAL_SUMMARY_CHARS).filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

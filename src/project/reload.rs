//! Reload events report changes of agent files, so that clients know when they must reload an engine. Events are
//! numbered per workspace. Numbering continues after a restart, and the last events are kept.
//!
//! Threads: any. Locks: the list of workspaces, then one workspace's file (level 3), then its topic.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::base::thread::lock;
use crate::base::{At, Result, clock, limits};
use crate::events::{Bus, Topic};
use crate::store::file;

/// The number of reload events that are kept for each workspace, as in the OpenWork server.
const RELOAD_EVENTS: usize = 200;

/// The kind of the changed entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReloadReason {
    Plugins,
    Skills,
    Mcp,
    Config,
    Agents,
    Commands,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReloadAction {
    Added,
    Removed,
    Updated,
}

/// The change that caused an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReloadTrigger {
    pub reason: ReloadReason,
    /// The name of the changed entry; `None` if several entries changed.
    pub name: Option<String>,
    pub action: ReloadAction,
    /// The path of the changed file or folder.
    pub path: Option<String>,
}

impl ReloadTrigger {
    /// Returns the JSON for clients. `type` is the singular of the reason.
    fn to_json(&self) -> Value {
        let kind = match self.reason {
            ReloadReason::Plugins => "plugin",
            ReloadReason::Skills => "skill",
            ReloadReason::Mcp => "mcp",
            ReloadReason::Config => "config",
            ReloadReason::Agents => "agent",
            ReloadReason::Commands => "command",
        };
        let mut event = Map::from_iter([("type".to_owned(), json!(kind))]);
        event.extend(self.name.iter().map(|name| ("name".to_owned(), json!(name))));
        event.insert("action".into(), json!(self.action));
        event.extend(self.path.iter().map(|path| ("path".to_owned(), json!(path))));
        Value::Object(event)
    }
}

/// The events of all workspaces.
#[derive(Debug)]
pub struct ReloadEvents {
    folder: PathBuf,
    bus: Arc<Bus>,
    known: Mutex<HashMap<String, Arc<WorkspaceEvents>>>,
}

#[derive(Debug)]
struct WorkspaceEvents {
    topic: Arc<Topic>,
    log: Mutex<ReloadLog>,
}

/// The file of a workspace's events, with one line of JSON per event.
#[derive(Debug)]
struct ReloadLog {
    path: PathBuf,
    file: Option<File>,
    lines: usize,
}

const KIND: &str = "reload";

impl ReloadEvents {
    /// Creates the store: events are stored in `folder` and published on `bus`.
    pub fn new(folder: &Path, bus: Arc<Bus>) -> ReloadEvents {
        ReloadEvents { folder: folder.to_owned(), bus, known: Mutex::default() }
    }

    /// Removes the stored events of all workspaces except `ids`.
    ///
    /// # Errors
    /// Fails if the folder cannot be read or a file cannot be removed.
    pub fn forget_others(&self, ids: &[String]) -> Result<()> {
        let entries = match std::fs::read_dir(&self.folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            entries => entries.at("list", &self.folder)?,
        };
        for entry in entries {
            let path = entry.at("list", &self.folder)?.path();
            let id = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            if !ids.iter().any(|known| known == id) {
                std::fs::remove_file(&path).at("remove", &path)?;
            }
        }
        Ok(())
    }

    /// Returns the topic on which a workspace's events are published.
    ///
    /// # Errors
    /// Fails if the file of the workspace's events cannot be read.
    pub fn topic(&self, id: &str) -> Result<Arc<Topic>> {
        Ok(self.workspace_events(id)?.topic.clone())
    }

    /// Returns the stored events with numbers above `cursor`, and the number of the newest event.
    ///
    /// # Errors
    /// Fails if the file of the workspace's events cannot be read.
    pub fn since(&self, id: &str, cursor: u64) -> Result<(Vec<Map<String, Value>>, u64)> {
        let (events, last) = self.workspace_events(id)?.topic.since(cursor);
        Ok((events.iter().map(|event| event.data.clone()).collect(), last))
    }

    /// Publishes an event. If the event cannot be stored, berth logs a warning.
    pub fn record(&self, id: &str, reason: ReloadReason, trigger: Option<&ReloadTrigger>) {
        let entry = match self.workspace_events(id) {
            Ok(entry) => entry,
            Err(error) => return log::warn!("a reload event of {id} is lost: {error}"),
        };
        let mut log = lock(&entry.log); // LOCK: 3
        if entry.topic.has_ended() {
            return;
        }
        let mut event = Map::from_iter([
            ("id".to_owned(), json!(uuid::Uuid::new_v4())),
            ("seq".into(), json!(entry.topic.last() + 1)),
            ("workspaceId".into(), json!(id)),
            ("reason".into(), json!(reason)),
        ]);
        event.extend(trigger.map(|trigger| ("trigger".to_owned(), trigger.to_json())));
        event.insert("timestamp".into(), json!(clock::now_unix_ms()));
        if let Err(error) = log.append(&event, &entry.topic) {
            log::warn!("a reload event of {id} will not survive a restart: {error}");
        }
        entry.topic.publish(KIND, event);
    }

    fn workspace_events(&self, id: &str) -> Result<Arc<WorkspaceEvents>> {
        let mut known = lock(&self.known);
        if let Some(entry) = known.get(id) {
            return Ok(entry.clone());
        }
        file::create_dir_private(&self.folder)?;
        let path = self.folder.join(format!("{id}.jsonl"));
        let bytes = file::read_optional(&path, limits::STATE_FILE_BYTES)?.unwrap_or_default();
        // A truncated last line was written by a server that crashed; its event was never published.
        let events: Vec<Map<String, Value>> =
            bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
        let seq = |event: &Map<String, Value>| event.get("seq").and_then(Value::as_u64).unwrap_or(0);
        let last = events.iter().map(seq).max().unwrap_or(0);
        // A topic's numbers have no gaps, so only the last contiguous events are kept.
        let unbroken = events.iter().rev().zip(0..).take_while(|(event, at)| seq(event) + at == last).count();
        let kept = &events[events.len() - unbroken..];
        let topic = Topic::new(last - unbroken as u64, RELOAD_EVENTS);
        for event in kept {
            topic.publish(KIND, event.clone());
        }
        self.bus.put(&format!("reload/{id}"), &topic);
        // If the last line is truncated, the next event rewrites the file.
        let torn = bytes.last().is_some_and(|byte| *byte != b'\n');
        let lines = if torn { RELOAD_EVENTS * 2 } else { events.len() };
        let entry =
            Arc::new(WorkspaceEvents { topic, log: Mutex::new(ReloadLog { path, file: None, lines }) });
        known.insert(id.to_owned(), entry.clone());
        Ok(entry)
    }
}

impl ReloadLog {
    /// Appends an event. Rewrites the file once half of its events are outdated.
    fn append(&mut self, event: &Map<String, Value>, topic: &Topic) -> Result<()> {
        let line = |event: &Map<String, Value>| Value::Object(event.clone()).to_string() + "\n";
        if self.lines >= RELOAD_EVENTS * 2 {
            let mut text: String = topic.since(0).0.iter().map(|event| line(&event.data)).collect();
            text += &line(event);
            self.file = None;
            file::write_atomic(&self.path, text.as_bytes(), 0o600)?;
            self.lines = topic.since(0).0.len() + 1;
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                use std::os::unix::fs::OpenOptionsExt;
                let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path);
                none.insert(opened.at("open", &self.path)?)
            }
        };
        self.lines += 1;
        file.write_all(line(event).as_bytes()).and_then(|()| file.sync_data()).at("write", &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::scratch::TestFolder;

    fn seqs(events: &ReloadEvents, cursor: u64) -> Vec<u64> {
        events.since("ws", cursor).unwrap().0.iter().map(|event| event["seq"].as_u64().unwrap()).collect()
    }

    #[test]
    fn numbering_continues_after_a_restart() {
        let dir = TestFolder::new();
        let open = || ReloadEvents::new(&dir.join("reload"), Arc::default());
        let events = open();
        assert_eq!(events.since("ws", 0).unwrap(), (vec![], 0));
        for _ in 0..3 {
            events.record("ws", ReloadReason::Skills, None);
        }
        events.record("other", ReloadReason::Mcp, None);
        assert_eq!((seqs(&events, 0), seqs(&events, 2)), (vec![1, 2, 3], vec![3]));
        let again = open();
        assert_eq!(again.since("ws", 0).unwrap(), events.since("ws", 0).unwrap());
        again.record("ws", ReloadReason::Config, None);
        assert_eq!(seqs(&open(), 2), [3, 4]);
        open().forget_others(&["ws".into()]).unwrap();
        assert_eq!((seqs(&open(), 0).len(), open().since("other", 0).unwrap().1), (4, 0));
    }

    #[test]
    fn the_file_and_the_stored_events_are_bounded() {
        let dir = TestFolder::new();
        let open = || ReloadEvents::new(&dir, Arc::default());
        let events = open();
        let count = RELOAD_EVENTS as u64 * 5;
        for _ in 0..count {
            events.record("ws", ReloadReason::Commands, None);
        }
        let kept: Vec<u64> = (count + 1 - RELOAD_EVENTS as u64..=count).collect();
        assert_eq!(seqs(&events, 0), kept);
        assert_eq!(seqs(&open(), 0), kept);
        let text = std::fs::read_to_string(dir.join("ws.jsonl")).unwrap();
        assert!(text.lines().count() <= RELOAD_EVENTS * 2);
    }

    #[test]
    fn a_truncated_line_is_ignored() {
        let dir = TestFolder::new();
        ReloadEvents::new(&dir, Arc::default()).record("ws", ReloadReason::Commands, None);
        let mut file = OpenOptions::new().append(true).open(dir.join("ws.jsonl")).unwrap();
        file.write_all(b"{\"seq\":2,\"re").unwrap();
        let again = ReloadEvents::new(&dir, Arc::default());
        assert_eq!(seqs(&again, 0), [1]);
        again.record("ws", ReloadReason::Commands, None);
        assert_eq!(seqs(&ReloadEvents::new(&dir, Arc::default()), 0), [1, 2]);
    }
}

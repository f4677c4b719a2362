//! The daemon's workspaces and the active one, stored where OpenWork's desktop reads them. A lock is held while the
//! state is changed and the file is written, so that concurrent changes are not lost.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha1::{Digest as _, Sha1};

use crate::base::thread::lock;
use crate::base::{Error, Result, clock, hex};
use crate::store::file;

/// The name of the state file of OpenWork's orchestrator.
pub(super) const FILE: &str = "openwork-orchestrator-state.json";
/// The name of the state file of `openwrk`, the older program of the orchestrator.
pub(super) const OLD_FILE: &str = "openwrk-state.json";
const FILE_BYTES: u64 = 8 << 20;
/// The maximum number of workspaces. It stops a program that adds workspaces endlessly.
const WORKSPACES: usize = 1000;

/// A workspace of the daemon.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(super) struct DaemonWorkspace {
    pub(super) id: String,
    name: String,
    pub(super) path: String,
    workspace_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    base_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    directory: Option<String>,
    created_at: u64,
    last_used_at: u64,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct StoredDaemonState {
    active_id: Option<String>,
    workspaces: Vec<DaemonWorkspace>,
}

/// The daemon's state.
pub(super) struct DaemonState {
    path: PathBuf,
    kept: Mutex<StoredDaemonState>,
    /// The other content of the file: information about the daemon and OpenCode.
    facts: Mutex<Value>,
}

impl DaemonState {
    /// Opens the state file.
    pub(super) fn open(path: &Path) -> Result<DaemonState> {
        let bytes = file::read_optional(path, FILE_BYTES)?;
        let kept = match bytes {
            None => StoredDaemonState::default(),
            Some(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| Error::config(path.display(), format!("cannot be read: {error}")))?,
        };
        Ok(DaemonState { path: path.to_owned(), kept: Mutex::new(kept), facts: Mutex::default() })
    }

    /// Writes the file with new information about the daemon and OpenCode.
    pub(super) fn tell(&self, facts: Value) -> Result<()> {
        *lock(&self.facts) = facts;
        self.save(&lock(&self.kept))
    }

    fn save(&self, kept: &StoredDaemonState) -> Result<()> {
        let mut all = json!({ "version": 1 });
        if let (Value::Object(all), Value::Object(facts)) = (&mut all, lock(&self.facts).clone()) {
            all.extend(facts);
        }
        all["activeId"] = json!(kept.active_id);
        all["workspaces"] = json!(kept.workspaces);
        file::write_atomic(&self.path, format!("{all:#}\n").as_bytes(), 0o600)
    }

    /// Returns the response `{activeId, workspaces}` of the daemon.
    pub(super) fn list(&self) -> Value {
        let kept = lock(&self.kept);
        json!({ "activeId": kept.active_id, "workspaces": kept.workspaces })
    }

    /// Returns the workspace with this id, name or path.
    pub(super) fn find(&self, word: &str) -> Option<DaemonWorkspace> {
        let kept = lock(&self.kept);
        let by = |of: fn(&DaemonWorkspace) -> &str| kept.workspaces.iter().find(|entry| of(entry) == word);
        by(|entry| &entry.id).or_else(|| by(|entry| &entry.name)).or_else(|| by(|entry| &entry.path)).cloned()
    }

    /// Adds a workspace for a folder of this machine, or updates its entry.
    pub(super) fn add(&self, path: &str, name: Option<String>) -> Result<DaemonWorkspace> {
        let name = name.unwrap_or_else(|| path.rsplit('/').next().unwrap_or(path).to_owned());
        self.put(DaemonWorkspace {
            id: id(path),
            name,
            path: path.to_owned(),
            workspace_type: "local".to_owned(),
            base_url: None,
            directory: None,
            created_at: clock::now_unix_ms(),
            last_used_at: clock::now_unix_ms(),
        })
    }

    /// Adds a workspace on another machine, or updates its entry.
    pub(super) fn add_remote(
        &self,
        url: &str,
        directory: Option<String>,
        name: Option<String>,
    ) -> Result<DaemonWorkspace> {
        let key =
            directory.as_ref().map_or_else(|| url.to_owned(), |directory| format!("{url}::{directory}"));
        self.put(DaemonWorkspace {
            id: id(&key),
            name: name.unwrap_or_else(|| url.to_owned()),
            path: directory.clone().unwrap_or_default(),
            workspace_type: "remote".to_owned(),
            base_url: Some(url.to_owned()),
            directory,
            created_at: clock::now_unix_ms(),
            last_used_at: clock::now_unix_ms(),
        })
    }

    fn put(&self, entry: DaemonWorkspace) -> Result<DaemonWorkspace> {
        let mut kept = lock(&self.kept);
        let full = kept.workspaces.len() >= WORKSPACES;
        let entry = match kept.workspaces.iter_mut().find(|known| known.id == entry.id) {
            Some(known) => {
                known.name = entry.name;
                known.last_used_at = entry.last_used_at;
                known.clone()
            }
            None if full => {
                return Err(Error::internal(format!("There are {WORKSPACES} workspaces already")));
            }
            None => {
                kept.workspaces.push(entry.clone());
                entry
            }
        };
        kept.active_id.get_or_insert_with(|| entry.id.clone());
        self.save(&kept)?;
        Ok(entry)
    }

    /// Makes a workspace the active one.
    pub(super) fn activate(&self, entry: &DaemonWorkspace) -> Result<()> {
        let mut kept = lock(&self.kept);
        kept.active_id = Some(entry.id.clone());
        if let Some(known) = kept.workspaces.iter_mut().find(|known| known.id == entry.id) {
            known.last_used_at = clock::now_unix_ms();
        }
        self.save(&kept)
    }
}

impl DaemonWorkspace {
    /// Returns the directory that OpenCode serves for the workspace.
    pub(super) fn directory(&self) -> Option<&str> {
        self.directory.as_deref().or_else(|| Some(self.path.as_str()).filter(|path| !path.is_empty()))
    }

    /// Returns the URL of the workspace's own OpenCode, or `None` if the workspace is on this machine.
    pub(super) fn base_url(&self) -> Option<&str> {
        self.base_url.as_deref()
    }
}

/// Returns the id that OpenWork's orchestrator gives to a workspace with this path or URL.
fn id(key: &str) -> String {
    let digest = Sha1::digest(key.as_bytes());
    format!("ws-{}", hex::encode(&digest[..6]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::scratch::TestFolder;

    #[test]
    fn workspaces_are_stored_and_found_by_id_name_and_path() {
        let dir = TestFolder::new();
        let state = DaemonState::open(&dir.join(FILE)).unwrap();
        let first = state.add("/a/b", None).unwrap();
        // The expected id was computed with `printf %s /a/b | sha1sum`.
        assert_eq!((first.id.as_str(), first.name.as_str()), ("ws-a51458f8d2c1", "b"));
        let other = state.add_remote("http://h:1", Some("/d".into()), Some("far".into())).unwrap();
        assert_eq!(state.add("/a/b", Some("named".into())).unwrap().id, first.id);
        state.activate(&other).unwrap();
        let again = DaemonState::open(&dir.join(FILE)).unwrap();
        for word in [first.id.as_str(), "named", "/a/b"] {
            assert_eq!(again.find(word).unwrap().id, first.id, "{word}");
        }
        assert_eq!(again.find("far").unwrap().directory(), Some("/d"));
        assert!(again.find("b").is_none());
        assert_eq!(again.list()["activeId"], other.id);
        assert_eq!(again.list()["workspaces"].as_array().unwrap().len(), 2);
    }
}

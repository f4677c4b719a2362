//! A write that waits for approval, as approvers see it: the observed fields of `GET /approvals`, and beside them all that
//! will run. The list carries a bounded part of the request and of the files it would write; the whole is spooled to disk.
//!
//! **Invariant:** the request's body, the files' contents and the summary may hold secrets. They go to approvers only;
//! log lines and the audit log get [`ApprovalRequest::note`].

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::Actor;
use crate::base::clock;
use crate::store::spool::SpooledFile;

/// Most of one approval in a list, in bytes of JSON. `GET /approvals/:id` has everything.
pub const LIST_ITEM_BYTES: usize = 64 << 10;

/// A pending write. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ApprovalRequest(Arc<ApprovalFields>);

#[derive(Debug)]
struct ApprovalFields {
    id: String,
    workspace_id: String,
    action: String,
    summary: String,
    note: String,
    paths: Vec<String>,
    created_at: u64,
    actor: Actor,
    more: Map<String, Value>,
    whole: Option<SpooledFile>,
}

/// What a question is made of.
#[derive(Debug)]
pub struct NewApprovalRequest<'a> {
    /// The workspace, as the path named it.
    pub workspace_id: &'a str,
    /// The kind of write.
    pub action: &'a str,
    /// One line for the approver. May hold secrets.
    pub summary: String,
    /// One line for the audit log and the server's log. Holds no secrets.
    pub note: String,
    /// Files and folders that it concerns.
    pub paths: Vec<String>,
    /// The client that asks.
    pub actor: Actor,
    /// Fields beside the observed ones, bounded.
    pub more: Map<String, Value>,
    /// The fields of `more` that are bounded there, complete, as members of a JSON object. `None`: `more` has everything.
    pub whole: Option<SpooledFile>,
}

impl ApprovalRequest {
    /// A question of now, with an id of its own.
    pub fn new(new: NewApprovalRequest<'_>) -> ApprovalRequest {
        ApprovalRequest(Arc::new(ApprovalFields {
            id: Uuid::new_v4().to_string(),
            workspace_id: new.workspace_id.to_owned(),
            action: new.action.to_owned(),
            summary: new.summary,
            note: new.note,
            paths: new.paths,
            created_at: clock::now_unix_ms(),
            actor: new.actor,
            more: new.more,
            whole: new.whole,
        }))
    }

    /// Good for one answer.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// The workspace, as the path named it.
    pub fn workspace_id(&self) -> &str {
        &self.0.workspace_id
    }

    /// The client that asks.
    pub fn actor(&self) -> &Actor {
        &self.0.actor
    }

    /// One line without secrets.
    pub fn note(&self) -> &str {
        &self.0.note
    }

    /// The observed fields.
    fn openwork_fields(&self, left: Duration) -> Map<String, Value> {
        let fields = &self.0;
        let mut view = Map::new();
        view.insert("id".into(), json!(fields.id));
        view.insert("workspaceId".into(), json!(fields.workspace_id));
        view.insert("action".into(), json!(fields.action));
        view.insert("summary".into(), json!(fields.summary));
        view.insert("paths".into(), json!(fields.paths));
        view.insert("createdAt".into(), json!(fields.created_at));
        view.insert("actor".into(), json!(fields.actor));
        view.insert("expires_in_ms".into(), json!(u64::try_from(left.as_millis()).unwrap_or(u64::MAX)));
        view
    }

    /// Its row in a list. `left`: how long it still waits.
    pub fn list_view(&self, left: Duration) -> Map<String, Value> {
        let mut view = self.openwork_fields(left);
        view.extend(self.0.more.clone());
        view
    }

    /// All of it: the beginning of a JSON object and, if it does not end there, a file with the rest.
    pub fn full_view(&self, left: Duration) -> (Vec<u8>, Option<SpooledFile>) {
        let Some(whole) = &self.0.whole else {
            return (Value::Object(self.list_view(left)).to_string().into_bytes(), None);
        };
        let mut view = self.openwork_fields(left);
        for (name, value) in &self.0.more {
            if !SPOOLED.contains(&name.as_str()) {
                view.insert(name.clone(), value.clone());
            }
        }
        let mut head = Value::Object(view).to_string().into_bytes();
        head.pop();
        head.push(b',');
        (head, Some(whole.clone()))
    }
}

/// Fields that a list has in part, or has to explain the rest.
const SPOOLED: [&str; 3] = ["request", "preview", "truncated"];

/// A file that a write would change.
#[derive(Debug, serde::Serialize)]
pub struct FileChange {
    /// The absolute path, as the workspace's own processes know it.
    pub path: String,
    /// What is there.
    pub before: FileContent,
    /// What would be there.
    pub after: FileContent,
    /// The permissions that it gets, in octal digits, where they are not those of other files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

/// What a file has in it, as an approver sees it.
#[derive(Clone, Debug)]
pub enum FileContent {
    /// There is no such file.
    Absent,
    /// Its bytes: a string where they are UTF-8, else `{"base64": …}`.
    Bytes(Vec<u8>),
    /// Too large to show: its size and what else tells it from others.
    Described(Map<String, Value>),
}

impl Serialize for FileContent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            FileContent::Absent => serializer.serialize_none(),
            FileContent::Bytes(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => serializer.serialize_str(text),
                Err(_) => {
                    let mut map = serializer.serialize_map(Some(1))?;
                    map.serialize_entry("base64", &BASE64_STANDARD.encode(bytes))?;
                    map.end()
                }
            },
            FileContent::Described(fields) => fields.serialize(serializer),
        }
    }
}

//! A write that waits for approval, as approvers see it: the fields of OpenWork's `GET /approvals`, plus the full
//! request. The list of approvals shows a bounded part of the request and of the files that it would write; the rest
//! is spooled to disk.
//!
//! **Invariant:** the body, the file contents and the summary may contain secrets. Only approvers see them; log
//! lines and the audit log contain [`ApprovalRequest::note`] instead.

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

/// Maximum size of the JSON of one approval in a list. `GET /approvals/:id` returns the whole JSON.
pub const LIST_ITEM_BYTES: usize = 64 << 10;

/// A pending write. Clones share the data.
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
    extra: Map<String, Value>,
    spooled: Option<SpooledFile>,
}

/// The fields of a new approval request.
#[derive(Debug)]
pub struct NewApprovalRequest<'a> {
    /// The workspace id as the client wrote it in the path.
    pub workspace_id: &'a str,
    /// The kind of write.
    pub action: &'a str,
    /// One line that describes the write to the approver. It may contain secrets.
    pub summary: String,
    /// One line that describes the write in the logs, without secrets.
    pub note: String,
    /// The files and folders that the write affects.
    pub paths: Vec<String>,
    pub actor: Actor,
    /// Fields that OpenWork does not have, of bounded size.
    pub extra: Map<String, Value>,
    /// The complete values of the fields that are shortened in `extra`, as members of a JSON object; `None` if no
    /// field was shortened.
    pub spooled: Option<SpooledFile>,
}

impl ApprovalRequest {
    /// Creates a request with a new id.
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
            extra: new.extra,
            spooled: new.spooled,
        }))
    }

    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// Returns the workspace id as the client wrote it in the path.
    pub fn workspace_id(&self) -> &str {
        &self.0.workspace_id
    }

    pub fn actor(&self) -> &Actor {
        &self.0.actor
    }

    /// Returns one line that describes the write in the logs, without secrets.
    pub fn note(&self) -> &str {
        &self.0.note
    }

    /// Returns the fields that OpenWork has. `left` is the remaining time.
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

    /// Returns the entry for a list. `left` is the remaining time.
    pub fn list_view(&self, left: Duration) -> Map<String, Value> {
        let mut view = self.openwork_fields(left);
        view.extend(self.0.extra.clone());
        view
    }

    /// Returns the complete view: the beginning of a JSON object and, if fields were shortened, a file with the
    /// rest.
    pub fn full_view(&self, left: Duration) -> (Vec<u8>, Option<SpooledFile>) {
        let Some(rest) = &self.0.spooled else {
            return (Value::Object(self.list_view(left)).to_string().into_bytes(), None);
        };
        let mut view = self.openwork_fields(left);
        for (name, value) in &self.0.extra {
            if !SPOOLED.contains(&name.as_str()) {
                view.insert(name.clone(), value.clone());
            }
        }
        let mut head = Value::Object(view).to_string().into_bytes();
        head.pop();
        head.push(b',');
        (head, Some(rest.clone()))
    }
}

/// The fields that a list shows in part, and the field that names the omitted parts.
const SPOOLED: [&str; 3] = ["request", "preview", "truncated"];

/// A file that a write would change.
#[derive(Debug, serde::Serialize)]
pub struct FileChange {
    /// The absolute path as processes in the workspace's container see it.
    pub path: String,
    /// The content before the write.
    pub before: FileContent,
    /// The content after the write.
    pub after: FileContent,
    /// The new permissions in octal, if they differ from the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

/// The content of a file, as shown to an approver.
#[derive(Clone, Debug)]
pub enum FileContent {
    /// The file does not exist.
    Absent,
    /// The bytes of the file, serialized as a string if they are UTF-8, and otherwise as `{"base64": …}`.
    Bytes(Vec<u8>),
    /// A file that is too large to show: its size and further fields that identify its content.
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

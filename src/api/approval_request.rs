//! Builds the approval request for an HTTP request: its exact body, the files that it would write, and its sender.
//! Lists show a bounded part of each; the rest is spooled to disk.

use std::io::{self, Read};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use super::{Ctx, workspace_access};
use crate::access::approval_request::{ApprovalRequest, FileChange, LIST_ITEM_BYTES, NewApprovalRequest};
use crate::base::truncate::JsonTruncator;
use crate::base::{Error, Result, limits, logging};
use crate::http::Request;
use crate::store::spool::SpoolWriter;

/// The description of a write, by dispatch or by a handler.
#[derive(Debug, Default)]
pub(super) struct WriteDescription {
    pub(super) action: &'static str,
    /// The line for the approver; `None` to derive it from the body of the request.
    pub(super) summary: Option<String>,
    /// The line for the logs, without secrets; `None` to derive it from the action, the workspace and the path.
    pub(super) note: Option<String>,
    pub(super) paths: Vec<String>,
    /// The files that would be written; `None` if the write concerns no files of the workspace.
    pub(super) changes: Option<Vec<FileChange>>,
    /// Whether the body is a form with a file, which `changes` describes.
    pub(super) is_upload: bool,
}

/// The size reserved for fields that are small in practice.
const SMALL_FIELDS: usize = 8 << 10;
const PATHS_BYTES: usize = 6 << 10;

/// How `request.body` represents the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BodyEncoding {
    /// The request has no body.
    None,
    /// The body is shown as JSON.
    Json,
    /// The body is shown as a string.
    Text,
    /// The body is shown as a base64 string, because it is not UTF-8.
    Base64,
    /// The body is omitted, because `preview` describes the uploaded file.
    Form,
}

impl BodyEncoding {
    fn as_str(self) -> &'static str {
        match self {
            BodyEncoding::None => "none",
            BodyEncoding::Json => "json",
            BodyEncoding::Text => "text",
            BodyEncoding::Base64 => "base64",
            BodyEncoding::Form => "form",
        }
    }
}

/// Builds the approval request. The caller must have buffered the body ([`Request::buffer_body`]), unless the
/// request is an upload.
pub(super) fn build(ctx: &Ctx, request: &Request, asking: WriteDescription) -> Result<ApprovalRequest> {
    let actor = request.actor().cloned().ok_or_else(|| Error::internal("A gated route has no actor"))?;
    let named = request.param("id");
    let workspace = workspace_access::concerned(ctx, request);
    let record = workspace.as_ref().map(|workspace| workspace.record());
    let name = record.as_ref().map(|record| record.view.name.as_str());
    let mut extra = Map::new();
    extra.insert(
        "workspace".into(),
        json!({
            "id": workspace.as_ref().map(|workspace| workspace.openwork_id.as_str()),
            "uuid": workspace.as_ref().map(|workspace| workspace.id().to_string()),
            "name": name,
        }),
    );
    let token = ctx.credentials.find_token(&actor);
    extra.insert(
        "asker".into(),
        json!({
            "credential": ctx.credentials.describe(&actor),
            "label": token.as_ref().and_then(|token| token.label.as_deref()),
            "tokenId": token.as_ref().map(|token| token.id.as_str()),
            "address": request.peer(),
        }),
    );
    let room = LIST_ITEM_BYTES - SMALL_FIELDS;
    let mut omitted = Vec::new();
    let shown = RequestView::of(request, asking.is_upload)?;
    let (view, cut) = shown.sketch(request, if asking.changes.is_some() { room / 2 } else { room })?;
    omitted.extend(cut);
    let target = logging::one_line(request.target());
    let method = request.method().as_str();
    let place = name.unwrap_or("?");
    let summary = match asking.summary {
        Some(summary) => visible(&summary),
        None => {
            let body = shown.summary(request, &view["body"]);
            format!("{} in {place} ({method} {}): {body}", asking.action, visible(&target))
        }
    };
    let path = logging::one_line(request.path());
    let note = asking.note.unwrap_or_else(|| format!("{} in {place} ({method} {path})", asking.action));
    extra.insert("request".into(), view);
    let files = match &asking.changes {
        None => None,
        Some(files) => Some(
            serde_json::to_vec(files)
                .map_err(|error| Error::internal("Cannot encode the file preview").with_source(error))?,
        ),
    };
    if let Some(files) = &files {
        let mut sketch = JsonTruncator::new(room / 2);
        let mut from = serde_json::Deserializer::from_slice(files);
        let cut = sketch.take("preview.files", &mut from);
        let cut = cut.map_err(|error| Error::internal("Cannot read the file preview").with_source(error))?;
        extra.insert("preview".into(), json!({ "files": cut }));
        omitted.extend(sketch.omitted());
    }
    let mut sketch = JsonTruncator::new(PATHS_BYTES);
    let all_paths = json!(asking.paths);
    let paths: Vec<String> = sketch
        .take("paths", &all_paths)
        .and_then(serde_json::from_value)
        .map_err(|error| Error::internal("Cannot encode the paths").with_source(error))?;
    omitted.extend(sketch.omitted());
    let mut spooled = None;
    if !omitted.is_empty() {
        extra.insert("truncated".into(), json!(omitted));
        let mut file = ctx.approvals.spool().begin(&actor.token_hash)?;
        file.append(format!("\"paths\":{all_paths},").as_bytes())?;
        shown.write(request, &mut file)?;
        if let Some(files) = files {
            file.append(b",\"preview\":{\"files\":")?;
            file.append(&files)?;
            file.append(b"}")?;
        }
        file.append(b"}")?;
        spooled = Some(file.finish());
    }
    let workspace_id = match (named, &workspace) {
        ("", Some(workspace)) => workspace.openwork_id.as_str(),
        _ => named,
    };
    Ok(ApprovalRequest::new(NewApprovalRequest {
        workspace_id,
        action: asking.action,
        summary,
        note: visible(&note),
        paths,
        actor,
        extra,
        spooled,
    }))
}

/// Formats text from a client on one line. If the text is too long, it is cut, and the number of omitted bytes is
/// added.
pub(super) fn visible(text: &str) -> String {
    let end = text.char_indices().nth(limits::APPROVAL_SUMMARY_CHARS).map(|(at, _)| at);
    match end {
        None => logging::one_line(text),
        Some(end) => {
            format!("{}… ({} more bytes)", logging::one_line(&text[..end]), text.len() - end)
        }
    }
}

/// The view of an HTTP request for approvers.
struct RequestView {
    encoding: BodyEncoding,
    bytes: u64,
}

impl RequestView {
    fn of(request: &Request, is_upload: bool) -> Result<RequestView> {
        let bytes = request.body_length().or_else(|| request.announced_length()).unwrap_or(0);
        if is_upload {
            return Ok(RequestView { encoding: BodyEncoding::Form, bytes });
        }
        let encoding = match request.buffered_body() {
            Some(body) if bytes > 0 => encoding(request, body)?,
            _ => BodyEncoding::None,
        };
        Ok(RequestView { encoding, bytes })
    }

    /// Returns the members of the view before `body`. They are complete if `sketch` has room for them.
    fn head(&self, request: &Request, sketch: &mut JsonTruncator) -> Map<String, Value> {
        let (path, query) = request.target().split_once('?').unwrap_or((request.target(), ""));
        let mut view = Map::new();
        view.insert("method".into(), json!(request.method().as_str()));
        view.insert("path".into(), json!(sketch.text("request.path", path, 0)));
        view.insert("query".into(), json!(sketch.text("request.query", query, 0)));
        // OpenCode works in the directory that this header selects.
        if let Some(directory) = request.header("X-OpenCode-Directory") {
            view.insert("directory".into(), json!(sketch.text("request.directory", directory, 0)));
        }
        if let Some(kind) = request.header("Content-Type") {
            view.insert("contentType".into(), json!(sketch.text("request.contentType", kind, 0)));
        }
        view.insert("bodyBytes".into(), json!(self.bytes));
        view.insert("bodyEncoding".into(), json!(self.encoding.as_str()));
        view
    }

    fn sketch(&self, request: &Request, room: usize) -> Result<(Value, Vec<String>)> {
        let mut sketch = JsonTruncator::new(room);
        let mut view = self.head(request, &mut sketch);
        let body = match (self.encoding, request.buffered_body()) {
            (BodyEncoding::None | BodyEncoding::Form, _) | (_, None) => Value::Null,
            (BodyEncoding::Json, Some(body)) => {
                let mut from = serde_json::Deserializer::from_reader(io::BufReader::new(body));
                sketch.take("request.body", &mut from).map_err(cannot_show)?
            }
            (BodyEncoding::Text, Some(body)) => {
                let text = read_prefix(body, room)?;
                let valid = std::str::from_utf8(&text).map_or_else(|error| error.valid_up_to(), str::len);
                let text = std::str::from_utf8(&text[..valid]).unwrap_or_default();
                json!(sketch.text("request.body", text, self.bytes - valid as u64))
            }
            (BodyEncoding::Base64, Some(body)) => {
                // Only whole groups of base64 are shown, so that the shown part can be decoded.
                let mut bytes = read_prefix(body, room / 4 * 3 / 2)?;
                if bytes.len() as u64 == self.bytes {
                    json!(sketch.text("request.body", &BASE64_STANDARD.encode(&bytes), 0))
                } else {
                    bytes.truncate(bytes.len() / 3 * 3);
                    let missing = self.bytes - bytes.len() as u64;
                    json!(sketch.text("request.body", &BASE64_STANDARD.encode(&bytes), missing))
                }
            }
        };
        view.insert("body".into(), body);
        Ok((Value::Object(view), sketch.omitted()))
    }

    /// Writes the complete member `"request":{…}`.
    fn write(&self, request: &Request, to: &mut SpoolWriter) -> Result<()> {
        let head = self.head(request, &mut JsonTruncator::new(usize::MAX / 2));
        let mut head = Value::Object(head).to_string();
        head.pop();
        to.append(format!("\"request\":{head},\"body\":").as_bytes())?;
        match (self.encoding, request.buffered_body()) {
            (BodyEncoding::None | BodyEncoding::Form, _) | (_, None) => to.append(b"null")?,
            (BodyEncoding::Json, Some(body)) => each_chunk(body, |bytes| to.append(bytes))?,
            (BodyEncoding::Text, Some(body)) => {
                to.append(b"\"")?;
                each_text(body, |text| match text {
                    Some(text) => {
                        let quoted = Value::from(text).to_string();
                        to.append(&quoted.as_bytes()[1..quoted.len() - 1])
                    }
                    None => Err(cannot_show("not UTF-8")),
                })?;
                to.append(b"\"")?;
            }
            (BodyEncoding::Base64, Some(body)) => {
                to.append(b"\"")?;
                let mut rest = Vec::new();
                each_chunk(body, |bytes| {
                    rest.extend_from_slice(bytes);
                    let whole = rest.len() / 3 * 3;
                    let encoded = BASE64_STANDARD.encode(&rest[..whole]);
                    rest.drain(..whole);
                    to.append(encoded.as_bytes())
                })?;
                to.append(BASE64_STANDARD.encode(&rest).as_bytes())?;
                to.append(b"\"")?;
            }
        }
        to.append(b"}")
    }

    /// Describes the body in one line: a command and the names of the other fields, or the beginning of the body.
    fn summary(&self, request: &Request, body: &Value) -> String {
        let words = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let command = ["command", "args"].iter().find_map(|key| {
            let command = body.get(*key).filter(|command| !command.is_null())?;
            let others = body.as_object()?.keys().filter(|other| *other != key).map(String::as_str);
            let others = others.collect::<Vec<_>>().join(", ");
            let others = if others.is_empty() { others } else { format!(" (with {})", visible(&others)) };
            Some(visible(&words(command)) + &others)
        });
        let text = command.unwrap_or_else(|| match body {
            Value::Null => "no body".to_owned(),
            body => visible(&words(body)),
        });
        if request.is_streamed() {
            let kind = logging::one_line(request.header("Content-Type").unwrap_or("unknown type"));
            return format!("{text}; a body of {} bytes, {kind}", self.bytes);
        }
        text
    }
}

fn cannot_show(why: impl std::fmt::Display) -> Error {
    Error::internal(format!("Cannot show the request to approvers: {why}"))
}

/// Returns the first bytes of a body.
fn read_prefix(body: impl Read, count: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    body.take(count as u64).read_to_end(&mut bytes).map_err(cannot_show)?;
    Ok(bytes)
}

fn each_chunk(mut body: impl Read, mut to: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut chunk = vec![0; limits::PIPE_CHUNK];
    loop {
        match body.read(&mut chunk).map_err(cannot_show)? {
            0 => return Ok(()),
            count => to(&chunk[..count])?,
        }
    }
}

/// Calls `to` with the pieces of a body, like [`each_chunk`], but as valid UTF-8; `None` for invalid bytes.
fn each_text(body: impl Read, mut to: impl FnMut(Option<&str>) -> Result<()>) -> Result<()> {
    let mut rest: Vec<u8> = Vec::new();
    each_chunk(body, |bytes| {
        rest.extend_from_slice(bytes);
        let valid = match std::str::from_utf8(&rest) {
            Ok(text) => text.len(),
            // The last character of this chunk may continue in the next one.
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => usize::MAX,
        };
        if valid == usize::MAX {
            // The body will be shown as base64, for which these bytes are not needed.
            rest.clear();
            return to(None);
        }
        to(std::str::from_utf8(&rest[..valid]).ok())?;
        rest.drain(..valid);
        Ok(())
    })?;
    if rest.is_empty() { Ok(()) } else { to(None) }
}

/// Chooses the encoding of a body: JSON for an object or a list, unless Content-Type declares another type.
fn encoding(request: &Request, body: Box<dyn Read>) -> Result<BodyEncoding> {
    let kind = request.header("Content-Type").unwrap_or_default().to_ascii_lowercase();
    let (mut is_text, mut start) = (true, None);
    each_text(body, |text| {
        is_text &= text.is_some();
        start = start.or_else(|| text?.bytes().find(|byte| !byte.is_ascii_whitespace()));
        Ok(())
    })?;
    if !is_text {
        return Ok(BodyEncoding::Base64);
    }
    let may_be_json = !kind.starts_with("application/octet-stream") && !kind.starts_with("text/");
    if may_be_json && matches!(start, Some(b'{' | b'[')) {
        let body = request.buffered_body().ok_or_else(|| cannot_show("the body was not buffered"))?;
        let mut from = serde_json::Deserializer::from_reader(io::BufReader::new(body));
        let whole = serde::Deserialize::deserialize(&mut from).and_then(|_: IgnoredAny| from.end());
        if whole.is_ok() {
            return Ok(BodyEncoding::Json);
        }
    }
    Ok(BodyEncoding::Text)
}

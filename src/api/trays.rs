//! `/workspace/:id/inbox` and `/workspace/:id/artifacts`: files that users send to agents, and files that agents
//! produce.

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::{Ctx, project};
use crate::access::ApprovalMode;
use crate::access::approval_request::{FileChange, FileContent};
use crate::base::logging::counted;
use crate::base::{Code, Error, Result, hex, limits};
use crate::http::download::Download;
use crate::http::multipart::MultipartForm;
use crate::http::{Answer, Request, Response};
use crate::project::preview::outdated;
use crate::project::trays::{self, Inbox, TrayKind, TrayPath, id_of};
use crate::store::beneath::Root;
use crate::store::tray;

fn root(ctx: &Ctx, request: &Request) -> Result<Root> {
    let workspace = ctx.lifecycle.registry().by_openwork_id(request.param("id"))?;
    ctx.lifecycle.files(&workspace)
}

/// The path of an upload, as far as it is known before the whole form has been read.
struct UploadTarget {
    path: Option<TrayPath>,
    /// Whether the path is given in the query, which takes precedence over the form.
    fixed: bool,
}

impl UploadTarget {
    fn asked(request: &Request) -> Result<UploadTarget> {
        let asked = request.query("path").filter(|path| !path.trim().is_empty());
        Ok(UploadTarget { path: asked.as_deref().map(TrayPath::parse).transpose()?, fixed: asked.is_some() })
    }
}

/// `POST /workspace/:id/inbox`
pub fn upload(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let workspace = ctx.lifecycle.registry().by_openwork_id(request.param("id"))?;
    let site = project::open(&ctx.lifecycle, &workspace)?;
    let max_bytes = ctx.advertised.inbox_max_bytes;
    if !ctx.advertised.inbox_enabled {
        return Err(Error::new(Code::InboxDisabled, "Workspace inbox is disabled"));
    }
    let mut form = MultipartForm::new(request.header("Content-Type"))?;
    let mut target = UploadTarget::asked(request)?;
    let announced = request.announced_length();
    if let Some(size) = announced.filter(|size| *size > max_bytes.saturating_add(FORM_BYTES)) {
        return Err(too_large(max_bytes, size));
    }
    let full = |path: &str| vec![site.path(&format!("{}/{path}", TrayKind::Inbox.folder()))];
    if ctx.approval.mode == ApprovalMode::Manual {
        let cap = max_bytes.saturating_add(FORM_BYTES);
        request.buffer_body(cap, ctx.approvals.spool()).map_err(|error| match error.code() {
            Code::BodyTooLarge => too_large(max_bytes, cap.saturating_add(1)),
            _ => error,
        })?;
        let seen = preview_upload(&site.root, form, target, max_bytes, request)?;
        request.rewind_body();
        let path = seen.path.as_str().to_owned();
        let old = match &seen.before {
            FileContent::Absent => String::new(),
            FileContent::Bytes(bytes) => format!(", in place of a file of {}", counted(bytes.len(), "byte")),
            FileContent::Described(fields) => format!(", in place of a file of {} bytes", fields["bytes"]),
        };
        let summary = format!("Upload {path} to the inbox, {}{old}", counted(seen.bytes, "byte"));
        let change =
            FileChange { path: full(&path).concat(), before: seen.before, after: seen.after, mode: None };
        let root = site.root;
        let work = move |request: &mut Request| {
            let mut form = MultipartForm::new(request.header("Content-Type"))?;
            let mut target = UploadTarget::asked(request)?;
            let name = read_to_file(&mut form, request, &mut target)?;
            receive(&root, form, target, &name, max_bytes, Some(&seen.tag), request)
        };
        let paths = vec![change.path.clone()];
        return Ok(Answer::prepared(summary, paths, work).changing(Some(vec![change])));
    }
    let name = read_to_file(&mut form, request, &mut target)?;
    if target.path.is_none() {
        // If the name is invalid, a path field after the file may still replace it.
        target.path = TrayPath::parse(&name).ok();
    }
    if let Some(path) = &target.path {
        trays::check_free(&site.root, path)?;
    }
    let shown = target.path.as_ref().map_or(name.as_str(), TrayPath::as_str);
    let size = announced.map_or(String::new(), |size| format!(", at most {size} bytes"));
    let open = if target.fixed || !request.is_streamed() { "" } else { ", or the path that follows it," };
    let summary = format!("Upload {shown}{open} to the inbox{size}");
    let paths = full(shown);
    let root = site.root;
    let work = move |request: &mut Request| receive(&root, form, target, &name, max_bytes, None, request);
    Ok(Answer::prepared(summary, paths, work))
}

/// The effect that an upload would have.
struct UploadPreview {
    path: TrayPath,
    bytes: u64,
    before: FileContent,
    after: FileContent,
    /// The tag of the file that would be replaced; `None` if there is no such file.
    tag: Option<String>,
}

/// Maximum size of a file that is shown to approvers with its content.
const SHOWN_BYTES: u64 = limits::PROJECT_FILE_BYTES;

/// Reads a buffered form to its end, in order to determine the effect of the upload.
fn preview_upload(
    root: &Root,
    mut form: MultipartForm,
    mut target: UploadTarget,
    max_bytes: u64,
    request: &mut Request,
) -> Result<UploadPreview> {
    let name = read_to_file(&mut form, request, &mut target)?;
    let (mut bytes, mut content, mut hash) = (0, Vec::new(), Sha256::new());
    loop {
        let piece = form.data(request.reader())?;
        if piece.is_empty() {
            break;
        }
        bytes += piece.len() as u64;
        hash.update(piece);
        if bytes <= SHOWN_BYTES {
            content.extend_from_slice(piece);
        }
    }
    if bytes > max_bytes {
        return Err(too_large(max_bytes, bytes));
    }
    let path = read_rest(&mut form, request, target, &name)?;
    trays::check_free(root, &path)?;
    let (before, tag) = trays::inspect(root, &path, SHOWN_BYTES)?;
    let after = if bytes <= SHOWN_BYTES {
        FileContent::Bytes(content)
    } else {
        let digest = hex::encode(&hash.finalize());
        let fields = [("bytes".to_owned(), json!(bytes)), ("sha256".to_owned(), json!(digest))];
        FileContent::Described(Map::from_iter(fields))
    };
    Ok(UploadPreview { path, bytes, before, after, tag })
}

/// Reads the rest of the form after the file. Returns the final path.
fn read_rest(
    form: &mut MultipartForm,
    request: &mut Request,
    mut target: UploadTarget,
    name: &str,
) -> Result<TrayPath> {
    while let Some(part) = form.next_part(request.reader())? {
        match (part.name.as_str(), part.file_name) {
            ("path", None) => take_path(form, request, &mut target)?,
            ("file", Some(_)) => {
                return Err(Error::new(Code::InvalidPayload, "Only one file can be uploaded at once"));
            }
            _ => {}
        }
    }
    form.finish(request.reader());
    match target.path {
        Some(path) => Ok(path),
        None => TrayPath::parse(name),
    }
}

/// Maximum number of bytes of a form in addition to its file. An upload that exceeds its limit by up to this many
/// bytes is still read to its end.
const FORM_BYTES: u64 = 256 << 10;

fn too_large(max_bytes: u64, size: u64) -> Error {
    Error::new(Code::FileTooLarge, "File exceeds upload limit")
        .detail("maxBytes", max_bytes)
        .detail("size", size)
}

/// Reads the form up to the content of the file. Returns the name of the file.
fn read_to_file(
    form: &mut MultipartForm,
    request: &mut Request,
    target: &mut UploadTarget,
) -> Result<String> {
    while let Some(part) = form.next_part(request.reader())? {
        match (part.name.as_str(), part.file_name) {
            // A browser sends an empty file name if no file was chosen.
            ("file", Some(name)) if !name.is_empty() => return Ok(name),
            ("path", None) => take_path(form, request, target)?,
            _ => {}
        }
    }
    Err(Error::new(Code::FileRequired, "Form field 'file' is required"))
}

fn take_path(form: &mut MultipartForm, request: &mut Request, target: &mut UploadTarget) -> Result<()> {
    let path = form.text(request.reader())?;
    if !target.fixed && !path.trim().is_empty() {
        target.path = Some(TrayPath::parse(&path)?);
        target.fixed = true;
    }
    Ok(())
}

fn receive(
    root: &Root,
    mut form: MultipartForm,
    target: UploadTarget,
    name: &str,
    max_bytes: u64,
    shown: Option<&Option<String>>,
    request: &mut Request,
) -> Result<Response> {
    let inbox = Inbox::open(root, max_bytes)?;
    let mut file = inbox.begin()?;
    loop {
        let piece = form.data(request.reader())?;
        // A file that is only slightly too large is read to its end, so that the error can report its size.
        if piece.is_empty() || !file.append(piece)? && file.bytes() > max_bytes + FORM_BYTES {
            break;
        }
    }
    if file.bytes() > max_bytes {
        return Err(too_large(max_bytes, file.bytes()));
    }
    let path = read_rest(&mut form, request, target, name)?;
    if let Some(tag) = shown {
        // The tag is compared immediately before the file is renamed into place.
        if trays::inspect(root, &path, 0)?.1 != *tag {
            return Err(outdated(&format!("{}/{}", TrayKind::Inbox.folder(), path.as_str())));
        }
    }
    let bytes = file.bytes();
    file.commit(&path)?;
    Ok(Response::ok(&json!({ "ok": true, "path": path.as_str(), "bytes": bytes })))
}

/// `GET /workspace/:id/inbox`
pub fn inbox(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    list(ctx, request, TrayKind::Inbox, ctx.advertised.inbox_enabled)
}

/// `GET /workspace/:id/artifacts`
pub fn artifacts(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    list(ctx, request, TrayKind::Outbox, ctx.advertised.outbox_enabled)
}

fn list(ctx: &Ctx, request: &Request, which: TrayKind, enabled: bool) -> Result<Answer> {
    let root = root(ctx, request)?;
    let listing = if enabled { which.list(&root)? } else { tray::TrayListing::default() };
    let items: Vec<Value> = listing
        .files
        .iter()
        .map(|file| {
            let mut item = json!({
                "id": id_of(&file.path), "path": file.display_path(), "size": file.size, "updatedAt": file.changed_ms,
            });
            if which == TrayKind::Inbox {
                item["name"] = json!(file.display_path().rsplit('/').next());
            }
            item
        })
        .collect();
    let mut answer = json!({ "items": items });
    if listing.more {
        answer["truncated"] = json!(true);
    }
    Ok(Answer::Now(Response::ok(&answer)))
}

/// `GET /workspace/:id/inbox/:inboxId`
pub fn inbox_item(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let root = root(ctx, request)?;
    if !ctx.advertised.inbox_enabled {
        return Err(Error::new(Code::InboxDisabled, "Workspace inbox is disabled"));
    }
    download(ctx, request, &root, TrayKind::Inbox, request.param("inboxId"))
}

/// `GET /workspace/:id/artifacts/:artifactId`
pub fn artifact(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let root = root(ctx, request)?;
    if !ctx.advertised.outbox_enabled {
        return Err(Error::new(Code::OutboxDisabled, "Workspace outbox is disabled"));
    }
    download(ctx, request, &root, TrayKind::Outbox, request.param("artifactId"))
}

fn download(ctx: &Ctx, request: &Request, root: &Root, which: TrayKind, id: &str) -> Result<Answer> {
    let (file, path) = which.open(root, id)?;
    let (tag, sure) = tray::tag(&file)?;
    let download = Download { file, name: path.name(), tag, is_strong: sure };
    let party = request.party();
    download.answer(request, &ctx.tickets, || ctx.stream_permit(party)).map(Answer::Now)
}

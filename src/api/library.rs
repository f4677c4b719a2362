//! `/api/library`: templates, skills, tools, scripts, commands, agents, plugins and MCP servers. The messages of
//! successful answers are those of sandboxed.sh.

use serde::Deserialize;
use serde_json::{Map as Object, Value};

use super::{Ctx, viewer_redaction};
use crate::base::redact::HIDDEN;
use crate::base::unknown_fields::KnownFields as Known;
use crate::base::{Code, Error, Result, limits};
use crate::http::multipart::MultipartForm;
use crate::http::{Answer, Request, Response};
use crate::library::watch::LibraryChange;
use crate::library::{LibraryMap, TemplateFields, TextKind};
use crate::workspaces::Resources;

/// Maximum size of an archive with a skill. The archive is held in memory.
const SKILL_ARCHIVE_BYTES: usize = 8 << 20;

#[derive(Deserialize)]
struct ContentBody {
    content: String,
}

fn sentence(sentence: &str) -> Result<Answer> {
    Ok(Answer::Now(Response::sentence(sentence.to_owned())))
}

fn json_answer(value: &impl serde::Serialize) -> Result<Answer> {
    Ok(Answer::Now(Response::ok(value)))
}

fn content(request: &mut Request) -> Result<String> {
    // The limit is larger than that of the content, because up to half of the body may be JSON escapes.
    Ok(request.json::<ContentBody>(limits::JSON_BODY_BYTES)?.content)
}

/// `GET /api/library/workspace-template`
pub fn templates(ctx: &Ctx, _request: &mut Request) -> Result<Answer> {
    json_answer(&ctx.lifecycle.library().templates()?)
}

/// `GET /api/library/workspace-template/:name`
pub fn template(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    json_answer(&ctx.lifecycle.library().template(request.param("name"))?)
}

/// `PUT /api/library/workspace-template/:name`
pub fn put_template(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let fields: TemplateFields =
        request.json_of(limits::JSON_BODY_BYTES, &TemplateFields::known(Known::from_type::<Resources>()))?;
    ctx.lifecycle.library().put_template(request.param("name"), fields)?;
    sentence("Workspace template saved successfully")
}

/// `DELETE /api/library/workspace-template/:name`
pub fn delete_template(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    ctx.lifecycle.library().delete_template(request.param("name"))?;
    sentence("Workspace template deleted successfully")
}

/// `GET /api/library/skill`
pub fn skills(ctx: &Ctx, _request: &mut Request) -> Result<Answer> {
    json_answer(&ctx.lifecycle.library().skills()?)
}

/// `GET /api/library/skill/:name`
pub fn skill(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    json_answer(&ctx.lifecycle.library().skill(request.param("name"))?)
}

/// `POST /api/library/skill/import?name=`: the body is a form with the field `file`.
pub fn import_skill(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let library = ctx.lifecycle.library();
    let missing = || Error::new(Code::InvalidName, "Skill name is required: `?name=NAME`");
    let name = library.new_skill(&request.query("name").ok_or_else(missing)?)?;
    let mut form = MultipartForm::new(request.header("Content-Type"))?;
    if request.announced_length().is_some_and(|length| length > (SKILL_ARCHIVE_BYTES + FORM_BYTES) as u64) {
        return Err(too_large());
    }
    while let Some(part) = form.next_part(request.reader())? {
        // A browser sends an empty file name if no file was chosen.
        let Some(file_name) = part.file_name.filter(|file| part.name == "file" && !file.is_empty()) else {
            continue;
        };
        let mut bytes = Vec::new();
        loop {
            let piece = form.data(request.reader())?;
            if piece.is_empty() {
                break;
            }
            bytes.extend_from_slice(piece);
            if bytes.len() > SKILL_ARCHIVE_BYTES {
                return Err(too_large());
            }
        }
        form.finish(request.reader());
        let skill = library.import_skill(&name, &file_name, bytes)?;
        changed(ctx, LibraryChange::named(&name));
        return json_answer(&skill);
    }
    Err(Error::new(Code::FileRequired, "No file uploaded: form field 'file' is required"))
}

/// Maximum number of bytes of a form in addition to its file.
const FORM_BYTES: usize = 64 << 10;

fn too_large() -> Error {
    let message = format!("The file is larger than {} bytes", SKILL_ARCHIVE_BYTES);
    Error::new(Code::FileTooLarge, message)
}

/// `PUT /api/library/skill/:name`
pub fn put_skill(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let text = content(request)?;
    ctx.lifecycle.library().put_skill(request.param("name"), &text)?;
    changed(ctx, LibraryChange::named(request.param("name")));
    sentence("Skill saved successfully")
}

/// `DELETE /api/library/skill/:name`
pub fn delete_skill(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    ctx.lifecycle.library().delete_skill(request.param("name"))?;
    changed(ctx, LibraryChange::named(request.param("name")));
    sentence("Skill deleted successfully")
}

/// `GET /api/library/skill/:name/files/*path`
pub fn skill_file(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    sentence(&ctx.lifecycle.library().skill_file(request.param("name"), request.param("path"))?)
}

/// `PUT /api/library/skill/:name/files/*path`
pub fn put_skill_file(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let text = content(request)?;
    ctx.lifecycle.library().put_skill_file(request.param("name"), request.param("path"), &text)?;
    changed(ctx, LibraryChange::named(request.param("name")));
    sentence("File saved successfully")
}

/// `DELETE /api/library/skill/:name/files/*path`
pub fn delete_skill_file(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    ctx.lifecycle.library().delete_skill_file(request.param("name"), request.param("path"))?;
    changed(ctx, LibraryChange::named(request.param("name")));
    sentence("File deleted successfully")
}

/// Returns the kind of text that the path selects. All kinds share the same handlers.
fn kind(request: &Request) -> Result<TextKind> {
    match request.path().split('/').nth(3) {
        Some("tool") => Ok(TextKind::Tool),
        Some("init-script") => Ok(TextKind::InitScript),
        Some("command") => Ok(TextKind::Command),
        Some("agent") => Ok(TextKind::Agent),
        _ => Err(Error::new(Code::NotFound, "Not found")),
    }
}

/// `GET /api/library/tool`, and the same for the other kinds of text.
pub fn texts(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    json_answer(&ctx.lifecycle.library().texts(kind(request)?)?)
}

/// `GET /api/library/tool/:name`, and the same for the other kinds of text.
pub fn text(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let kind = kind(request)?;
    let mut text = ctx.lifecycle.library().text(kind, request.param("name"))?;
    // A script may contain secrets in any form, so its whole content is hidden from viewers.
    if kind == TextKind::InitScript && viewer_redaction::hides(request.actor()) && !text.content.is_empty() {
        HIDDEN.clone_into(&mut text.content);
    }
    json_answer(&text)
}

/// `PUT /api/library/tool/:name`, and the same for the other kinds of text.
pub fn put_text(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let kind = kind(request)?;
    let text = content(request)?;
    ctx.lifecycle.library().put_text(kind, request.param("name"), &text)?;
    changed_text(ctx, kind, request.param("name"));
    sentence(&format!("{} saved successfully", kind.title()))
}

fn changed(ctx: &Ctx, changed: LibraryChange) {
    ctx.lifecycle.library_changed(&changed, || true);
}

fn changed_text(ctx: &Ctx, kind: TextKind, name: &str) {
    match kind {
        TextKind::Tool => changed(ctx, LibraryChange::named(name)),
        TextKind::Command | TextKind::Agent => changed(ctx, LibraryChange::Agents),
        // Builds read the script when they need it.
        TextKind::InitScript => {}
    }
}

/// `DELETE /api/library/tool/:name`, and the same for the other kinds of text.
pub fn delete_text(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let kind = kind(request)?;
    ctx.lifecycle.library().delete_text(kind, request.param("name"))?;
    changed_text(ctx, kind, request.param("name"));
    sentence(&format!("{} deleted successfully", kind.title()))
}

/// `GET /api/library/plugins`
pub fn plugins(ctx: &Ctx, _request: &mut Request) -> Result<Answer> {
    json_answer(&ctx.lifecycle.library().map(LibraryMap::Plugins)?)
}

/// `PUT /api/library/plugins`
pub fn put_plugins(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let entries: Object<String, Value> = request.json(limits::JSON_BODY_BYTES)?;
    ctx.lifecycle.library().put_map(LibraryMap::Plugins, &entries)?;
    changed(ctx, LibraryChange::Agents);
    sentence("Plugins saved successfully")
}

/// `GET /api/library/mcps`
pub fn mcps(ctx: &Ctx, _request: &mut Request) -> Result<Answer> {
    json_answer(&ctx.lifecycle.library().map(LibraryMap::Mcps)?)
}

/// `PUT /api/library/mcps`
pub fn put_mcps(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let entries: Object<String, Value> = request.json(limits::JSON_BODY_BYTES)?;
    ctx.lifecycle.library().put_map(LibraryMap::Mcps, &entries)?;
    changed(ctx, LibraryChange::Agents);
    sentence("MCP servers saved successfully")
}

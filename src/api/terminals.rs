//! `/api/workspaces/:id/terminals` and `/api/workspaces/:id/shell`.

use uuid::Uuid;

use super::Ctx;
use super::terminal_socket::{SocketOpener, SocketProtocol};
use crate::base::ids::{parse_uuid, parse_uuid_of};
use crate::base::{Code, Error, Result, limits};
use crate::http::{Answer, Request, Response};
use crate::proc::Cancel;
use crate::terminals::request::size;
use crate::terminals::{InputRequest, PASTE_BYTES, ResizeRequest, TerminalRequest, WatchMode};

fn workspace(request: &Request) -> Result<Uuid> {
    parse_uuid(request.param("id"))
}

fn terminal(request: &Request) -> Result<Uuid> {
    let list = format!("GET /api/workspaces/{}/terminals", request.param("id"));
    parse_uuid_of(request.param("terminal"), "terminal", &list)
}

/// `GET /api/workspaces/:id/terminals`
pub fn list(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let id = workspace(request)?;
    Ok(Answer::Now(Response::ok(&ctx.lifecycle.terminals().list(id))))
}

/// `POST /api/workspaces/:id/terminals`
pub fn create(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let id = workspace(request)?;
    let body: TerminalRequest = request.json_if_any(limits::JSON_BODY_BYTES)?.unwrap_or_default();
    let start = ctx.lifecycle.start_terminal(id, &body, request.party())?;
    let work = move || {
        let terminal = start()?;
        let place = format!("/api/workspaces/{id}/terminals/{}", terminal.id);
        Ok(Response::json(201, &terminal.terminal_view()).with("Location", place))
    };
    // The terminal stays if its creator disconnects; the list of terminals shows it.
    Ok(Answer::later(work, None))
}

/// `GET /api/workspaces/:id/terminals/:terminal`
pub fn get(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let found = ctx.lifecycle.terminals().get(workspace(request)?, terminal(request)?)?;
    Ok(Answer::Now(Response::ok(&found.terminal_view())))
}

/// `DELETE /api/workspaces/:id/terminals/:terminal`
pub fn delete(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let (id, terminal) = (workspace(request)?, terminal(request)?);
    let lifecycle = ctx.lifecycle.clone();
    let work = move || lifecycle.terminals().remove(id, terminal).map(|ended| Response::ok(&ended));
    Ok(Answer::later(work, None))
}

/// `POST /api/workspaces/:id/terminals/:terminal/resize`
pub fn resize(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let found = ctx.lifecycle.terminals().get(workspace(request)?, terminal(request)?)?;
    let body: ResizeRequest = request.json(limits::JSON_BODY_BYTES)?;
    found.resize(body.size()?)?;
    Ok(Answer::Now(Response::ok(&found.terminal_view())))
}

/// `POST /api/workspaces/:id/terminals/:terminal/input`: the body is JSON if Content-Type declares that, otherwise
/// raw bytes.
pub fn input(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let found = ctx.lifecycle.terminals().get(workspace(request)?, terminal(request)?)?;
    let json = request.header("Content-Type").is_some_and(is_json);
    // The permit is taken before the body is read, because a large body stays in memory until the program has read
    // it.
    let small = request.body_length().is_some_and(|length| length <= limits::TERMINAL_INPUT_BYTES as u64);
    let permit = if small { None } else { Some(ctx.lifecycle.terminals().pastes.take(found.workspace)?) };
    let bytes = if json {
        // Base64 and JSON escapes make the body larger than the input in it.
        let body: InputRequest = request.json(limits::EXEC_BODY_BYTES)?;
        body.bytes(found.application_cursor_keys())?
    } else {
        request.body(PASTE_BYTES)?
    };
    if bytes.len() > PASTE_BYTES {
        return Err(Error::new(
            Code::BodyTooLarge,
            format!("Input is limited to {PASTE_BYTES} bytes per request"),
        ));
    }
    let answer = serde_json::json!({ "bytes": bytes.len() });
    if found.try_type_in(&bytes)? {
        return Ok(Answer::Now(Response::ok(&answer)));
    }
    let disconnected = Cancel::new()?;
    let cancel = disconnected.clone();
    let work = move || {
        let _permit = permit;
        found.type_in(&bytes, &disconnected)?;
        Ok(Response::ok(&answer))
    };
    Ok(Answer::later(work, Some(cancel)))
}

fn is_json(kind: &str) -> bool {
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

/// `GET /api/workspaces/:id/terminals/:terminal/screen`: returns text, or JSON for `?format=json` or `Accept:
/// application/json`.
pub fn screen(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let found = ctx.lifecycle.terminals().get(workspace(request)?, terminal(request)?)?;
    let json = match request.query("format").as_deref() {
        None => request.header("Accept").is_some_and(|kinds| kinds.split(',').any(is_json)),
        Some("json") => true,
        Some("text") => false,
        Some(other) => {
            let message = format!("format must be text or json, not '{}'", other.escape_debug());
            return Err(Error::new(Code::InvalidRequest, message));
        }
    };
    Ok(Answer::Now(if json { Response::ok(&found.screen_view()) } else { Response::sentence(found.text()) }))
}

/// `GET /api/workspaces/:id/terminals/:terminal/ws`. The client becomes the writer if there is none. With
/// `?mode=read` it never does; with `?takeover=true` it always does.
pub fn socket(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let found = ctx.lifecycle.terminals().get(workspace(request)?, terminal(request)?)?;
    let mode = match (request.query("mode").as_deref(), request.query_flag("takeover")?) {
        (None | Some("write"), false) => WatchMode::Write,
        (None | Some("write"), true) => WatchMode::TakeOver,
        (Some("read"), false) => WatchMode::Read,
        (Some("read"), true) => {
            return Err(Error::new(Code::InvalidRequest, "takeover=true cannot be combined with mode=read"));
        }
        (Some(other), _) => {
            let message = format!("mode must be read or write, not '{}'", other.escape_debug());
            return Err(Error::new(Code::InvalidRequest, message));
        }
    };
    let opener = SocketOpener::new(ctx, request)?;
    Ok(Answer::Now(opener.open(found.watch(mode)?, SocketProtocol::Terminal)?))
}

/// `GET /api/workspaces/:id/shell`: opens a login shell. A client with the same token reconnects to the same shell.
pub fn shell(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let id = workspace(request)?;
    let opener = SocketOpener::new(ctx, request)?;
    let number = |name: &'static str, usual: u16| match request.query(name) {
        None => Ok(usual),
        Some(text) => text.parse().map_err(|_| {
            Error::new(
                Code::InvalidRequest,
                format!("{name} must be a number, not '{}'", text.escape_debug()),
            )
        }),
    };
    let wanted = size(number("cols", 80)?, number("rows", 24)?)?;
    let owner = request.actor().map(|actor| actor.token_hash.clone()).unwrap_or_default();
    let start = ctx.lifecycle.start_shell(id, owner, wanted, request.party())?;
    Ok(Answer::later(move || opener.open(start()?, SocketProtocol::Shell), None))
}

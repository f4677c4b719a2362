//! `/api/workspaces`: the sandboxed.sh API.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use super::{Ctx, runs, topic, viewer_redaction, workspace_access};
use crate::access::Scope;
use crate::base::ids::parse_uuid;
use crate::base::unknown_fields::KnownFields;
use crate::base::{Code, Error, Result, limits};
use crate::http::sse::EventStreamFormat;
use crate::http::{Answer, Reply, Request, Response};
use crate::images::Pull;
use crate::lifecycle::build::BuildRequest;
use crate::lifecycle::feed;
use crate::runs::{ExecRequest, ExecResult};
use crate::workspaces::WorkspaceView;
use crate::workspaces::create::{CreateWorkspace, UpdateWorkspace};

fn id(request: &Request) -> Result<Uuid> {
    parse_uuid(request.param("id"))
}

fn shown(record: &WorkspaceView) -> Result<Answer> {
    Ok(Answer::Now(Response::ok(record)))
}

/// `GET /api/workspaces`
pub fn list(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let mut records = ctx.lifecycle.registry().list();
    if let Some(actor) = request.actor().filter(|actor| actor.workspace_ids.is_some()) {
        records.retain(|record| workspace_access::sees_id(ctx, actor, &record.view.id.to_string()));
    }
    Ok(Answer::Now(if viewer_redaction::hides(request.actor()) {
        Response::ok(&records.iter().map(|record| viewer_redaction::record(&record.view)).collect::<Vec<_>>())
    } else {
        Response::list(records.iter().map(|record| record.json()))
    }))
}

#[derive(Deserialize)]
struct CreateWorkspaceBody {
    #[serde(flatten)]
    create: CreateWorkspace,
    /// Whether to build the base image of the template first: if it is missing (the default), always, or never.
    pull: Option<Pull>,
}

/// Warns about selected skills that are not in the library. They will be installed once they are.
fn warn_of_missing(ctx: &Ctx, request: &mut Request, skills: Option<&[String]>) {
    const MOST: usize = 10;
    let library = ctx.lifecycle.library();
    let names = skills.unwrap_or_default().iter().map(|name| name.trim()).filter(|name| !name.is_empty());
    let names: BTreeSet<&str> = names.collect();
    for name in names.into_iter().filter(|name| !library.has_skill(name)).take(MOST) {
        let name: String = name.chars().take(64).collect();
        request.warn(format!("The library has no skill `{}` yet", name.escape_debug()));
    }
}

/// `POST /api/workspaces`. Answers 200 rather than 201, as in sandboxed.sh.
pub fn create(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let known = CreateWorkspace::known().merge(KnownFields::from_names(&["pull"]));
    let body: CreateWorkspaceBody = request.json_of(limits::JSON_BODY_BYTES, &known)?;
    if let Some(warning) = body.create.check_type()? {
        request.warn(warning);
    }
    warn_of_missing(ctx, request, body.create.fields.skills.as_deref());
    let record = ctx.lifecycle.create(body.create, body.pull.unwrap_or(Pull::Missing))?;
    shown(&record.view)
}

/// `GET /api/workspaces/:id`
pub fn get(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let workspace = ctx.lifecycle.registry().get(id(request)?)?;
    shown(&workspace.record().view)
}

/// `PUT /api/workspaces/:id`
pub fn update(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let id = id(request)?;
    let body: UpdateWorkspace = request.json_of(limits::JSON_BODY_BYTES, &UpdateWorkspace::known())?;
    warn_of_missing(ctx, request, body.fields.skills.as_deref());
    let record = ctx.lifecycle.change(id, body)?;
    shown(&record.view)
}

/// `DELETE /api/workspaces/:id`. Answers with a text message, as in sandboxed.sh.
pub fn delete(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let (id, lifecycle) = (id(request)?, ctx.lifecycle.clone());
    let work = move || {
        lifecycle.delete(id)?;
        Ok(Response::sentence(format!("Workspace {id} deleted successfully")))
    };
    // The deletion continues if its client disconnects.
    Ok(Answer::later(work, None))
}

#[derive(Default, Deserialize)]
struct BuildBody {
    distro: Option<String>,
    image: Option<String>,
    #[serde(default)]
    rebuild: bool,
    pull: Option<Pull>,
}

/// `POST /api/workspaces/:id/build`, with a JSON body or with `?rebuild=true`.
pub fn build(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let id = id(request)?;
    let body: BuildBody = request.json_if_any(limits::JSON_BODY_BYTES)?.unwrap_or_default();
    let rebuild = body.rebuild || request.query_flag("rebuild")?;
    let base = ctx.lifecycle.choose_base(body.distro, body.image)?;
    let owner = request.actor().is_some_and(|actor| actor.scope >= Scope::Owner);
    if !owner && base.as_ref().is_some_and(|base| ctx.lifecycle.is_own_system(base)) {
        let message = "Only an owner can build a workspace from this machine's own system";
        return Err(Error::new(Code::Forbidden, message));
    }
    let asked = BuildRequest { base, rebuild, pull: body.pull.unwrap_or(Pull::Missing) };
    let record = ctx.lifecycle.start_build(id, asked, request.party())?;
    shown(&record.view)
}

/// `GET /api/workspaces/:id/build/events`
pub fn build_events(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let workspace = ctx.lifecycle.registry().get(id(request)?)?;
    let topic = ctx.lifecycle.build_events(workspace.id());
    topic::stream(ctx, request, &topic, Some(("status", feed::result(&workspace.record()))))
}

/// `DELETE /api/workspaces/:id/build`
pub fn cancel_build(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let (id, lifecycle) = (id(request)?, ctx.lifecycle.clone());
    Ok(Answer::later(move || lifecycle.cancel_build(id).map(|record| Response::ok(&record.view)), None))
}

/// `POST /api/workspaces/:id/sync`
pub fn sync(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let synced = ctx.lifecycle.sync(id(request)?)?;
    Ok(Answer::Now(Response::ok(&synced.view)))
}

/// `POST /api/workspaces/:id/exec`
pub fn exec(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let id = parse_uuid(request.param("id"))?;
    let body: ExecRequest = request.json_of(limits::EXEC_BODY_BYTES, &ExecRequest::known())?;
    if let Some(warning) = body.exec_clamped() {
        request.warn(warning);
    }
    if let Some(format) = EventStreamFormat::from_request(request)? {
        return runs::exec_stream(ctx, id, body, format, request.party());
    }
    let (work, cancel) = ctx.lifecycle.start_exec(id, body)?;
    let work = Box::new(move |reply: Reply| match work() {
        Ok((result, ended)) => {
            reply.send(encoded(result));
            drop(ended);
        }
        Err(error) => reply.send(Err(error)),
    });
    Ok(Answer::Later { work, cancel: Some(cancel) })
}

/// Encodes a short result at once, and a long one while it is sent.
fn encoded(result: ExecResult) -> Result<Response> {
    let failed = |error| Error::internal("Cannot read the stored output").with_source(error);
    if result.is_small() {
        let mut body = Vec::with_capacity(1024);
        result.write(&mut body).map_err(failed)?;
        return Ok(Response::empty(200).with("Content-Type", "application/json").with_body(body));
    }
    let length = result.length().map_err(failed)?;
    let response = Response::empty(200).with("Content-Type", "application/json");
    Ok(response.with_writer(length, move |out| result.write(out)))
}

/// `POST /api/workspaces/:id/rerun-init`
pub fn rerun_init(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let id = id(request)?;
    request.json_if_any::<Value>(limits::JSON_BODY_BYTES)?;
    let work = ctx.lifecycle.start_rerun(id)?;
    // The script continues if its client disconnects, because its result is stored in the workspace.
    Ok(Answer::later(move || work().map(|result| Response::ok(&result)), None))
}

/// `GET /api/workspaces/:id/debug`
pub fn debug(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    Ok(Answer::Now(Response::ok(&ctx.lifecycle.debug(id(request)?)?)))
}

/// `POST /api/workspaces/:id/start`
pub fn start(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let (id, lifecycle) = (id(request)?, ctx.lifecycle.clone());
    Ok(Answer::later(move || lifecycle.start(id).map(|status| Response::ok(&status)), None))
}

/// `POST /api/workspaces/:id/stop`
pub fn stop(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let (id, lifecycle) = (id(request)?, ctx.lifecycle.clone());
    Ok(Answer::later(move || lifecycle.stop(id).map(|status| Response::ok(&status)), None))
}

/// `GET /api/workspaces/:id/resources`
pub fn resources(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    Ok(Answer::Now(Response::ok(&ctx.lifecycle.resources(id(request)?)?)))
}

/// `GET /api/workspaces/:id/init-log`
pub fn init_log(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    Ok(Answer::Now(Response::ok(&ctx.lifecycle.init_log(id(request)?)?)))
}

//! Routes about the server itself: health, status, capabilities, the identity of the sender, and OpenWork's list of
//! workspaces.

use serde_json::{Value, json};

use super::{Ctx, VERSION, managed, workspace_access};
use crate::access::{Login, Scope};
use crate::base::{Result, limits};
use crate::http::{Answer, Request, Response};
use crate::workspaces::Workspace;
use crate::workspaces::connection::ConnectionUpdate;

fn ok(value: &Value) -> Result<Answer> {
    Ok(Answer::Now(Response::ok(value)))
}

fn uptime_ms(ctx: &Ctx) -> u64 {
    u64::try_from(ctx.started.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// `GET /health`
pub fn health(ctx: &Ctx, _: &mut Request) -> Result<Answer> {
    ok(&json!({ "ok": true, "version": VERSION, "uptimeMs": uptime_ms(ctx) }))
}

/// `GET /api/health`
pub fn api_health(ctx: &Ctx, _: &mut Request) -> Result<Answer> {
    let mode = ctx.credentials.login.as_ref().map_or("single_tenant", Login::mode);
    ok(&json!({
        "status": "ok", "version": VERSION, "dev_mode": false, "auth_required": true, "auth_mode": mode,
        "max_iterations": 50,
    }))
}

/// `GET /whoami`
pub fn whoami(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let mut answer = json!({ "ok": true, "actor": request.actor() });
    if let Some(actor) = request.actor() {
        // Senders see the hash of their own token, as in the OpenWork server.
        answer["actor"]["tokenHash"] = json!(ctx.credentials.observed_hash(actor));
        if let Some(end) = actor.expires_at {
            answer["actor"]["expiresAt"] = json!(end);
        }
        if let Some(ids) = &actor.workspace_ids {
            answer["actor"]["workspaceIds"] = json!(ids);
        }
    }
    ok(&answer)
}

/// `GET /status`
pub fn status(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let all = workspace_access::visible(ctx, request);
    ok(&status_of(ctx, request, all.len(), all.first().map(AsRef::as_ref)))
}

/// `GET /w/:id/status`
pub fn mounted_status(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let workspace = ctx.lifecycle.registry().by_openwork_id(request.param("id"))?;
    ok(&status_of(ctx, request, 1, Some(&workspace)))
}

fn status_of(ctx: &Ctx, request: &Request, count: usize, active: Option<&Workspace>) -> Value {
    let mut status = json!({
        "ok": true,
        "version": VERSION,
        "uptimeMs": uptime_ms(ctx),
        "readOnly": ctx.read_only,
        "approval": approval(ctx),
        "corsOrigins": ctx.cors_origins,
        "workspaceCount": count,
        "activeWorkspaceId": active.map(|workspace| workspace.openwork_id.clone()),
        "workspace": active.map(|workspace| shown(workspace, request)),
        "authorizedRoots": ctx.authorized_roots,
        "server": { "host": ctx.address.0, "port": ctx.address.1, "configPath": ctx.config_path },
        "tokenSource": {
            "client": ctx.credentials.client_source.as_str(), "host": ctx.credentials.host_source.as_str(),
        },
        "runs": ctx.lifecycle.runs().count(),
        "connections": (ctx.connections)(),
    });
    if let Some(managed) = &ctx.managed {
        let owner = request.actor().is_some_and(|actor| actor.scope >= Scope::Owner);
        status["opencode"] = managed::shown(managed, owner);
    }
    status
}

fn approval(ctx: &Ctx) -> Value {
    let timeout = u64::try_from(ctx.approval.timeout.as_millis()).unwrap_or(u64::MAX);
    json!({ "mode": ctx.approval.mode.as_str(), "timeoutMs": timeout })
}

/// `GET /capabilities`
pub fn capabilities(ctx: &Ctx, _: &mut Request) -> Result<Answer> {
    let facts = &ctx.advertised;
    let access = json!({ "read": true, "write": !ctx.read_only });
    let mut skills = access.clone();
    skills["source"] = json!("openwork");
    let (placement, mode) = match facts.browser_provider.as_deref() {
        Some("sandbox-headless") => ("in-sandbox", "headless"),
        Some("host-interactive") => ("host-machine", "interactive"),
        Some("client-interactive") => ("client-machine", "interactive"),
        _ => ("external", "none"),
    };
    let mut sandbox = json!({ "enabled": facts.sandbox_enabled, "backend": facts.sandbox_backend });
    if let Some(engine) = facts.sandbox_engine {
        sandbox["engine"] = json!(engine);
    }
    ok(&json!({
        "schemaVersion": 1,
        "serverVersion": VERSION,
        "skills": skills,
        "plugins": access,
        "mcp": access,
        "commands": access,
        "config": access,
        "approvals": approval(ctx),
        "sandbox": sandbox,
        "ui": { "toy": facts.toy_ui },
        "tokens": { "scoped": true, "scopes": ["owner", "collaborator", "viewer"] },
        "toolProviders": {
            "browser": { "enabled": mode != "none", "placement": placement, "mode": mode },
            "files": {
                "injection": !ctx.read_only && facts.inbox_enabled,
                "outbox": facts.outbox_enabled,
                "inboxPath": ".opencode/openwork/inbox/",
                "outboxPath": ".opencode/openwork/outbox/",
                "maxBytes": facts.inbox_max_bytes,
            },
        },
    }))
}

/// `GET /workspaces`
pub fn list_workspaces(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let all = workspace_access::visible(ctx, request);
    let items: Vec<Value> = all.iter().map(|workspace| shown(workspace, request)).collect();
    ok(&json!({ "items": items, "activeId": all.first().map(|active| active.openwork_id.clone()) }))
}

/// `GET /w/:id/workspaces`
pub fn mounted_list(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let workspace = ctx.lifecycle.registry().by_openwork_id(request.param("id"))?;
    ok(&json!({ "items": [shown(&workspace, request)], "activeId": workspace.openwork_id }))
}

/// `POST /workspaces/:id/activate`
pub fn activate(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let registry = ctx.lifecycle.registry();
    let workspace = registry.by_openwork_id(request.param("id"))?;
    match request.actor().filter(|actor| actor.workspace_ids.is_some()) {
        Some(limited) => registry.activate_for(&limited.token_hash, workspace.id()),
        None => registry.activate(workspace.id()),
    }
    ok(&json!({ "activeId": workspace.openwork_id, "workspace": shown(&workspace, request) }))
}

/// `PATCH /workspaces/:id`: sets the connection to the OpenCode of the workspace.
pub fn connect(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let workspace = ctx.lifecycle.registry().by_openwork_id(request.param("id"))?;
    let change: ConnectionUpdate = request.json(limits::JSON_BODY_BYTES)?;
    let place = workspace.opencode_at(workspace.connection_after(&change)).upstream;
    if let (Some(url), Some(draft)) = (&place.base_url, request.draft()) {
        draft.summary = format!("OpenCode at {url}").escape_debug().to_string();
    }
    let upstreams = ctx.upstreams.clone();
    let shape = shown_to(request);
    Ok(Answer::later(
        move || {
            // The address is resolved before it is saved. Every connection resolves and checks it again.
            if place.base_url.is_some() {
                upstreams.check(&place)?;
            }
            workspace.connect(&change)?;
            Ok(Response::ok(&json!({ "workspace": shape(&workspace) })))
        },
        None,
    ))
}

/// Returns the workspace in OpenWork's format, without absent values. OpenCode's password is shown to owners. It is
/// also shown to the client token if it was configured at start-up, because the orchestrator compares it.
fn shown(workspace: &Workspace, request: &Request) -> Value {
    shown_to(request)(workspace)
}

/// Returns a function that does the same as [`shown`], for an answer that is built later.
fn shown_to(request: &Request) -> impl Fn(&Workspace) -> Value + Send + use<> {
    let actor = request.actor();
    let user = actor.is_some_and(|actor| actor.scope >= Scope::Collaborator);
    let owner = actor.is_some_and(|actor| actor.scope >= Scope::Owner);
    let started = user && actor.is_some_and(|actor| !actor.is_scoped);
    move |workspace| object(workspace, user, workspace.shows_password(owner, started))
}

fn object(workspace: &Workspace, user: bool, password: bool) -> Value {
    let record = workspace.record();
    let mut object = json!({
        "id": workspace.openwork_id,
        "name": record.view.name,
        "path": record.view.path,
    });
    let connection = workspace.connection();
    object["workspaceType"] = json!(workspace.kind_of_place());
    let directory = workspace.opencode().directory.map(|directory| directory.to_string_lossy().into_owned());
    let mut opencode = serde_json::Map::new();
    let mut put = |key: &str, value: Option<&String>| {
        if let Some(value) = value {
            opencode.insert(key.to_owned(), json!(value));
        }
    };
    put("baseUrl", connection.base_url.as_ref());
    put("directory", directory.as_ref());
    if user {
        put("username", connection.username.as_ref());
    }
    if password {
        put("password", connection.password.as_ref());
    }
    for (key, value) in [("baseUrl", &connection.base_url), ("directory", &connection.directory)] {
        if let Some(value) = value {
            object[key] = json!(value);
        }
    }
    if !opencode.is_empty() {
        object["opencode"] = Value::Object(opencode);
    }
    object
}

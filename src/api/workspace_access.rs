//! Authorization by workspace: a token can be limited to some workspaces, and only owners may run commands on a
//! host. Dispatch checks this before it requests approval or runs a handler. A limited token cannot use a route that
//! names no workspace, unless the route is in `FILTERED`: the handlers of those show only workspaces that the token
//! may access.

use std::sync::Arc;

use super::Ctx;
use crate::access::{Actor, Scope};
use crate::base::ids::parse_uuid;
use crate::base::{Code, Error, Result};
use crate::http::{Effect, Method, Request, Route};
use crate::workspaces::{Workspace, WorkspaceKind};

/// How a route relates to the workspaces of a limited token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkspaceAccess {
    /// The parameter `:id` names the workspace.
    Named,
    /// The route concerns the active workspace.
    Active,
    /// The route shows no workspaces, or only those that the token may access.
    Filtered,
    /// The route refuses limited tokens.
    Refused,
}

/// Routes that name no workspace and are safe for limited tokens. The feed of approvals is not safe, because it
/// sends the same events to all clients.
const FILTERED: &[&str] =
    &["/status", "/capabilities", "/whoami", "/workspaces", "/approvals", "/approvals/:id", "/api/doctor"];

/// A route that names a workspace, but creates another one, which the token could not access.
const MAKES_ANOTHER: &str = "/api/workspaces/:id/clone";

/// Returns how a route names its workspace.
pub fn of(route: &Route<Ctx>) -> WorkspaceAccess {
    let named = ["/workspace/:id", "/workspaces/:id", "/w/:id", "/api/workspaces/:id"];
    let begins = |start: &&str| {
        route.pattern.strip_prefix(*start).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let reads = route.method == Method::Get && route.effect == Effect::Read;
    if route.pattern == MAKES_ANOTHER {
        WorkspaceAccess::Refused
    } else if named.iter().any(begins) {
        WorkspaceAccess::Named
    } else if begins(&"/opencode") {
        WorkspaceAccess::Active
    } else if FILTERED.contains(&route.pattern)
        || (reads && (route.pattern == "/api/workspaces" || begins(&"/api/library")))
    {
        WorkspaceAccess::Filtered
    } else {
        WorkspaceAccess::Refused
    }
}

/// Returns whether a route is about commands. On a host workspace, only owners may use such a route.
fn is_about_commands(route: &Route<Ctx>) -> bool {
    let rest = route.pattern.strip_prefix("/api/workspaces/:id/").unwrap_or_default();
    ["exec", "runs", "terminals", "shell"].contains(&rest.split('/').next().unwrap_or_default())
}

/// Returns the scope that a request needs for its workspace, if that is more than the route itself requires.
pub fn required(ctx: &Ctx, route: &Route<Ctx>, request: &Request) -> Option<Scope> {
    let workspace = is_about_commands(route).then(|| find(ctx, request.param("id"))).flatten()?;
    (workspace.record().view.workspace_type == WorkspaceKind::Host).then_some(Scope::Owner)
}

/// Returns the 403 error for a scope that is too low.
pub(super) fn too_low(ctx: &Ctx, required: Scope, actor: &Actor) -> Error {
    let (seen, needed) = (ctx.credentials.describe(actor), needed(required));
    Error::new(Code::Forbidden, format!("Insufficient token scope: {seen} was sent; this needs {needed}"))
        .detail("required", required.as_str())
        .detail("scope", actor.scope.as_str())
}

/// Returns the names of the credentials that have at least this scope.
pub(super) fn needed(scope: Scope) -> &'static str {
    match scope {
        Scope::Viewer => {
            "Authorization: Bearer with the client token, the host token, or a token made with POST /tokens"
        }
        Scope::Collaborator => "the client token, the host token, or a collaborator's or owner's token",
        Scope::Owner => "the host token (X-OpenWork-Host-Token, or as a Bearer) or an owner's token",
    }
}

/// Refuses a request for a workspace that a limited token may not access. The message does not depend on whether the
/// workspace exists.
///
/// # Errors
/// `Forbidden` if the token may not access the workspace.
pub fn check(ctx: &Ctx, route: &Route<Ctx>, request: &Request, actor: &Actor) -> Result<()> {
    let Some(ids) = &actor.workspace_ids else { return Ok(()) };
    let refused = |what: &str| {
        let (seen, ids) = (ctx.credentials.describe(actor), ids.join(", "));
        let message = format!("Insufficient token scope: {seen} was sent, which is limited to {ids}; {what}");
        Error::new(Code::Forbidden, message).detail("workspaceIds", ids).detail("scope", actor.scope.as_str())
    };
    let reached = match of(route) {
        WorkspaceAccess::Filtered => return Ok(()),
        WorkspaceAccess::Refused => {
            return Err(refused("this needs a token that is not limited to workspaces"));
        }
        WorkspaceAccess::Named => find(ctx, request.param("id")),
        WorkspaceAccess::Active => visible(ctx, request).into_iter().next(),
    };
    match reached {
        Some(workspace) if sees(actor, &workspace) => Ok(()),
        _ => Err(refused("this needs a token with access to the workspace in the request")),
    }
}

/// Returns whether the actor may access the workspace.
pub fn sees(actor: &Actor, workspace: &Workspace) -> bool {
    actor.reaches(&workspace.openwork_id, workspace.id())
}

/// Returns whether the actor may access the workspace with this id, which may be that of either API.
pub fn sees_id(ctx: &Ctx, actor: &Actor, id: &str) -> bool {
    actor.workspace_ids.is_none() || find(ctx, id).is_some_and(|workspace| sees(actor, &workspace))
}

/// Returns the OpenWork workspaces that the sender may see, the active one first. A limited token has its own active
/// workspace, independent of that of other tokens.
pub fn visible(ctx: &Ctx, request: &Request) -> Vec<Arc<Workspace>> {
    let mut all = ctx.lifecycle.registry().openwork_list();
    if let Some(actor) = request.actor().filter(|actor| actor.workspace_ids.is_some()) {
        all.retain(|workspace| sees(actor, workspace));
        let chosen = ctx.lifecycle.registry().active_of(&actor.token_hash);
        all.sort_by_key(|workspace| Some(workspace.id()) != chosen);
    }
    all
}

/// Returns the workspace that a request names. For `/opencode`, that is the active workspace.
pub fn concerned(ctx: &Ctx, request: &Request) -> Option<Arc<Workspace>> {
    match request.param("id") {
        "" => visible(ctx, request).into_iter().next(),
        id => find(ctx, id),
    }
}

/// Returns the workspace with this id, which may be that of either API.
pub fn find(ctx: &Ctx, id: &str) -> Option<Arc<Workspace>> {
    let registry = ctx.lifecycle.registry();
    match parse_uuid(id) {
        Ok(id) => registry.get(id).ok(),
        Err(_) => registry.by_openwork_id(id).ok(),
    }
}

/// Converts a list of ids, which may be those of either API, to ids of the OpenWork API.
///
/// # Errors
/// `WorkspaceNotFound` for the first unknown id.
pub fn openwork_ids(ctx: &Ctx, ids: &[String]) -> Result<Vec<String>> {
    let mut named = Vec::with_capacity(ids.len());
    for id in ids {
        let workspace = find(ctx, id).ok_or_else(|| {
            Error::new(Code::WorkspaceNotFound, format!("Workspace {} does not exist", id.escape_debug()))
                .detail("workspaceId", id.as_str())
        })?;
        if !named.contains(&workspace.openwork_id) {
            named.push(workspace.openwork_id.clone());
        }
    }
    Ok(named)
}

//! The audit line of a request, which is started before the handler runs and completed with the answer, and the two
//! endpoints that show audit logs. A handler may refine the line ([`Request::draft`]).

use std::fs::File;

use serde_json::json;

use super::{Ctx, opencode_policy, workspace_access};
use crate::access::Actor;
use crate::access::audit::{AuditDraft, AuditOutcome, SERVER, sanitize};
use crate::base::Result;
use crate::http::{Answer, ApprovalPolicy, Effect, Method, Request, Response, Route};
use crate::workspaces::{Workspace, WorkspaceKind};

/// Default number of audit lines in an answer, as in the OpenWork server.
const AUDIT_SHOWN: usize = 50;
/// Maximum number of audit lines in an answer, as in the OpenWork server.
const AUDIT_SHOWN_MOST: usize = 200;

/// The path of the OpenWork server's audit log in a workspace.
const OPENWORK_LOG: &str = ".opencode/openwork/audit.jsonl";

/// Routes without an audit line, because a single request is not a write of its own: keystrokes and waits, for
/// example.
const SILENT: &[&str] = &[
    "/api/workspaces/:id/runs/:run/stdin",
    "/api/workspaces/:id/runs/:run/wait",
    "/api/workspaces/:id/terminals/:terminal/input",
    "/api/workspaces/:id/terminals/:terminal/resize",
];

/// Starts the audit line for a request. Returns `None` if its route has none.
pub(super) fn draft(ctx: &Ctx, route: &Route<Ctx>, request: &Request) -> Option<AuditDraft> {
    let writes = route.effect == Effect::Write || route.method != Method::Get;
    let forwarded = route.gate == ApprovalPolicy::Forwarded;
    // Sessions and prompts do not write a workspace's settings. Requests that could run a program get an audit line,
    // whether they need approval or not.
    let risk = if forwarded { Some(opencode_policy::risk(request)?) } else { None };
    if (!writes && !forwarded) || SILENT.contains(&route.pattern) {
        return None;
    }
    let workspace = match workspace_access::of(route) {
        workspace_access::WorkspaceAccess::Active => workspace_access::concerned(ctx, request),
        // The workspace's own log can no longer be read after the deletion, so the line goes to the server's log.
        workspace_access::WorkspaceAccess::Named
            if route.pattern == "/api/workspaces/:id" && route.method == Method::Delete =>
        {
            None
        }
        workspace_access::WorkspaceAccess::Named => workspace_access::find(ctx, request.param("id")),
        _ => None,
    };
    let path = sanitize(request.path());
    Some(AuditDraft {
        log: workspace.map_or_else(|| SERVER.to_owned(), |workspace| workspace.openwork_id.clone()),
        action: risk.map_or_else(|| action(route), str::to_owned),
        summary: format!("{} {path}", route.method.as_str()),
        target: path,
    })
}

/// Returns the action of a route: that of its approval policy, or else one derived from its path and method.
fn action(route: &Route<Ctx>) -> String {
    if let ApprovalPolicy::Collaborators(action) | ApprovalPolicy::Everyone(action) = route.gate {
        return action.to_owned();
    }
    let segments: Vec<&str> =
        route.pattern.split('/').filter(|part| !["", "api", "w"].contains(part)).collect();
    let mut words: Vec<&str> =
        segments.iter().copied().filter(|part| !part.starts_with([':', '*'])).collect();
    if let Some(first) = words.first_mut().filter(|first| **first == "workspaces") {
        *first = "workspace";
    }
    let acts = segments.last().is_some_and(|last| !last.starts_with([':', '*'])) && segments.len() > 1;
    match route.method {
        // A path such as `…/:id/sync` ends with the action; a path such as `…/tokens` ends with the kind of object
        // to create.
        Method::Post if acts => {}
        Method::Post => words.push("create"),
        Method::Put => words.push("put"),
        Method::Patch => words.push("patch"),
        Method::Delete => words.push("delete"),
        _ => words.push("open"),
    }
    words.join(".")
}

/// Adds the exact target of a write to the audit line, once it is known.
pub(super) fn describe(ctx: &Ctx, request: &mut Request, summary: &str, paths: &[String]) {
    let root = paths.first().and_then(|_| workspace_access::find(ctx, request.param("id")));
    let root = root.map(|workspace| workspace.record().view.path.clone());
    let Some(draft) = request.draft() else { return };
    draft.summary = sanitize(summary);
    if let Some(path) = paths.first() {
        let inside = root.and_then(|root| path.strip_prefix(&root).map(|rest| rest.trim_start_matches('/')));
        draft.target = sanitize(inside.filter(|rest| !rest.is_empty()).unwrap_or(path));
    }
}

/// Writes the audit line of a request that is being answered.
pub(super) fn record(ctx: &Ctx, request: &mut Request, response: &Response) {
    let Some(draft) = request.take_draft() else { return };
    let code = response.code().map_or("", |code| code.as_str());
    let outcome = match response.status() {
        status @ (401 | 403) => AuditOutcome::Denied(status, code),
        status @ 400.. => AuditOutcome::Failed(status, code),
        _ => AuditOutcome::Done,
    };
    ctx.audit.record(&draft, request.actor(), outcome);
}

/// Records a credential that is invalid, or that is answered with 401 because its scope is too low.
pub(super) fn login_failed(ctx: &Ctx, request: &Request, actor: Option<&Actor>, seen: &str) {
    ctx.audit.login_failed(request.peer(), actor, request.path(), seen);
}

/// Returns the time of the last change of a workspace through the OpenWork API, in Unix milliseconds. It is
/// `updatedAt` of the workspace's configuration.
pub fn last_change(ctx: &Ctx, workspace: &Workspace) -> Option<u64> {
    ctx.audit.last_change(&workspace.openwork_id, || old(ctx, workspace))
}

/// Opens the log that the OpenWork server left in the workspace. That server supports host folders only.
fn old(ctx: &Ctx, workspace: &Workspace) -> Option<File> {
    if workspace.record().view.workspace_type != WorkspaceKind::Host {
        return None;
    }
    ctx.lifecycle.files(workspace).and_then(|root| root.open_file(OPENWORK_LOG)).ok().flatten()
}

/// `GET /workspace/:id/audit`
pub fn of_workspace(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let workspace = ctx.lifecycle.registry().by_openwork_id(request.param("id"))?;
    answer(ctx, request, &workspace.openwork_id, old(ctx, &workspace))
}

/// `GET /audit`: returns events of the server and of deleted workspaces.
pub fn of_server(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    answer(ctx, request, SERVER, None)
}

fn answer(ctx: &Ctx, request: &Request, log: &str, old: Option<File>) -> Result<Answer> {
    // A value that is not a number is ignored, as in the OpenWork server.
    let limit = request.query("limit").and_then(|text| text.parse::<usize>().ok());
    let limit = limit.unwrap_or(AUDIT_SHOWN).clamp(1, AUDIT_SHOWN_MOST);
    Ok(Answer::Now(Response::ok(&json!({ "items": ctx.audit.recent(log, old, limit)? }))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::routes::ROUTES;

    #[test]
    fn actions_are_derived_from_routes() {
        let of = |method: Method, pattern: &str| {
            let route = ROUTES.iter().find(|route| route.method == method && route.pattern == pattern);
            action(route.unwrap())
        };
        assert_eq!(of(Method::Post, "/tokens"), "tokens.create");
        assert_eq!(of(Method::Delete, "/tokens/:id"), "tokens.delete");
        assert_eq!(of(Method::Post, "/workspaces/:id/activate"), "workspace.activate");
        assert_eq!(of(Method::Post, "/api/workspaces"), "workspace.create");
        assert_eq!(of(Method::Put, "/api/workspaces/:id"), "workspace.put");
        assert_eq!(of(Method::Post, "/api/workspaces/:id/exec"), "workspace.exec");
        assert_eq!(of(Method::Put, "/api/library/skill/:name/files/*path"), "library.skill.files.put");
        for route in ROUTES.iter().filter(|route| route.method != Method::Get) {
            let action = action(route);
            assert!(!action.is_empty() && !action.contains([':', '/', '*']), "{action}");
        }
    }
}

//! `/workspace/:id/config`

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Ctx, audit, project};
use crate::base::{Result, clock, limits};
use crate::http::{Answer, Request, Response};
use crate::project::config::ConfigPatch;

#[derive(Default, Deserialize)]
struct ConfigPatchBody {
    #[serde(default)]
    opencode: Option<Map<String, Value>>,
    #[serde(default)]
    openwork: Option<Map<String, Value>>,
}

/// `GET /workspace/:id/config`
pub fn get(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let workspace = project::workspace(ctx, request)?;
    let site = project::open(&ctx.lifecycle, &workspace)?;
    Ok(Answer::Now(Response::ok(&json!({
        "opencode": ctx.project.opencode(&site)?,
        "openwork": ctx.project.openwork(&site)?,
        "updatedAt": audit::last_change(ctx, &workspace),
    }))))
}

/// Answers like [`get`], but from memory, if the files have not changed since they were last read.
pub fn get_from_memory(ctx: &Ctx, request: &mut Request) -> Option<Response> {
    let workspace = project::workspace(ctx, request).ok()?;
    let root = ctx.lifecycle.mounted_files(&workspace)?;
    let [opencode, openwork] = ctx.project.cached_configs(&root)?;
    let changed = ctx.audit.known_change(&workspace.openwork_id)?;
    let changed = (changed > 0).then_some(changed);
    Some(Response::ok(&json!({ "opencode": opencode, "openwork": openwork, "updatedAt": changed })))
}

/// `PATCH /workspace/:id/config`
pub fn patch(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let workspace = project::workspace(ctx, request)?;
    let body: ConfigPatchBody = request.json(limits::JSON_BODY_BYTES)?;
    let patch = ConfigPatch { opencode: body.opencode, openwork: body.openwork };
    patch.check()?;
    let site = project::open(&ctx.lifecycle, &workspace)?;
    let keys = [("opencode", &patch.opencode), ("openwork", &patch.openwork)].map(|(name, keys)| {
        keys.iter().flat_map(|keys| keys.keys()).map(|key| format!("{name}.{key}")).collect::<Vec<_>>()
    });
    let summary = format!("Patch workspace config: {}", keys.concat().join(", "));
    let paths = patch.paths(&site);
    let (lifecycle, service) = (ctx.lifecycle.clone(), ctx.project.clone());
    let project::Preview { changes, plan } =
        project::preview(ctx, &workspace, |site| ctx.project.patch(site, &patch))?;
    let answer = Answer::prepared(summary, paths, move |_| {
        service.patch(&project::open_for(&lifecycle, &workspace, plan)?, &patch)?;
        Ok(Response::ok(&json!({ "updatedAt": clock::now_unix_ms() })))
    });
    Ok(answer.changing(changes))
}

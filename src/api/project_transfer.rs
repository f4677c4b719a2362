//! `/workspace/:id/export` and `/workspace/:id/import`

use serde_json::json;

use super::{Ctx, project};
use crate::access::Scope;
use crate::base::logging::counted;
use crate::base::{Code, Error, Result};
use crate::http::{Answer, Request, Response};
use crate::project::portable::{BODY_BYTES, ImportBody};

/// `GET /workspace/:id/export`; `?secrets=true` is for owners.
pub fn export(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let secrets = request.query_flag("secrets")?;
    if secrets && request.actor().is_none_or(|actor| actor.scope < Scope::Owner) {
        return Err(Error::new(Code::Forbidden, "Only an owner can export secrets; omit ?secrets=true"));
    }
    let site = project::site(ctx, request)?;
    Ok(Answer::Now(Response::ok(&ctx.project.export(&site, secrets)?)))
}

/// `POST /workspace/:id/import`
pub fn import(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let workspace = project::workspace(ctx, request)?;
    let dry = request.query_flag("dryRun")?;
    let body: ImportBody = request.json_of(BODY_BYTES, &ImportBody::known())?;
    let dry = dry || body.dry_run;
    let plan = body.check()?;
    let files = plan.files(&project::open(&ctx.lifecycle, &workspace)?);
    let (lifecycle, service) = (ctx.lifecycle.clone(), ctx.project.clone());
    let summary = format!("Import workspace config: {}", counted(files.len(), "file"));
    let project::Preview { changes, plan: bound } =
        project::preview(ctx, &workspace, |site| ctx.project.import(site, &plan))?;
    let answer = Answer::prepared(summary, files.clone(), move |_| {
        if dry {
            return Ok(Response::ok(&json!({ "ok": true, "dryRun": true, "paths": files })));
        }
        service.import(&project::open_for(&lifecycle, &workspace, bound)?, &plan)?;
        Ok(Response::ok(&json!({ "ok": true })))
    });
    Ok(answer.changing(changes))
}

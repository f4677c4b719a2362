//! `/workspace/:id/plugins`

use serde::Deserialize;
use serde_json::json;

use super::{Ctx, project};
use crate::base::{Result, limits};
use crate::http::{Answer, Request, Response};
use crate::project::plugins::{LOAD_ORDER, check_spec};
use crate::project::{Project, ProjectSite};

#[derive(Deserialize)]
struct AddPluginBody {
    #[serde(default)]
    spec: String,
}

fn list(service: &Project, site: &ProjectSite, global: bool) -> Result<Response> {
    Ok(Response::ok(&json!({ "items": service.plugins(site, global)?, "loadOrder": LOAD_ORDER })))
}

/// `GET /workspace/:id/plugins`
pub fn get(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let site = project::site(ctx, request)?;
    list(&ctx.project, &site, project::include_global(request)).map(Answer::Now)
}

/// `POST /workspace/:id/plugins`
pub fn add(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let workspace = project::workspace(ctx, request)?;
    let AddPluginBody { spec } = request.json(limits::JSON_BODY_BYTES)?;
    check_spec(&spec)?;
    let paths = ctx.project.config_paths(&project::open(&ctx.lifecycle, &workspace)?);
    let (lifecycle, service) = (ctx.lifecycle.clone(), ctx.project.clone());
    let project::Preview { changes, plan } =
        project::preview(ctx, &workspace, |site| ctx.project.add_plugin(site, spec.trim()))?;
    let answer = Answer::prepared(format!("Add plugin {spec}"), paths, move |_| {
        let site = project::open_for(&lifecycle, &workspace, plan)?;
        service.add_plugin(&site, spec.trim())?;
        list(&service, &site, false)
    });
    Ok(answer.changing(changes))
}

/// `DELETE /workspace/:id/plugins/:name`. The slash of a scoped name may be percent-encoded.
pub fn remove(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let workspace = project::workspace(ctx, request)?;
    let name = request.param("name").to_owned();
    let paths = ctx.project.config_paths(&project::open(&ctx.lifecycle, &workspace)?);
    let (lifecycle, service) = (ctx.lifecycle.clone(), ctx.project.clone());
    let project::Preview { changes, plan } =
        project::preview(ctx, &workspace, |site| ctx.project.remove_plugin(site, &name))?;
    let answer = Answer::prepared(format!("Remove plugin {name}"), paths, move |_| {
        let site = project::open_for(&lifecycle, &workspace, plan)?;
        service.remove_plugin(&site, &name)?;
        list(&service, &site, false)
    });
    Ok(answer.changing(changes))
}

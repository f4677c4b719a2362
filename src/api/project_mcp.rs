//! `/workspace/:id/mcp`

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Ctx, project};
use crate::base::{Code, Error, Result, limits};
use crate::http::{Answer, Request, Response};
use crate::project::{Project, ProjectSite, mcp};

#[derive(Deserialize)]
struct AddMcpBody {
    #[serde(default)]
    name: String,
    #[serde(default)]
    config: Value,
}

fn list(service: &Project, site: &ProjectSite) -> Result<Response> {
    Ok(Response::ok(&json!({ "items": service.mcp(site)? })))
}

/// `GET /workspace/:id/mcp`
pub fn get(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    list(&ctx.project, &project::site(ctx, request)?).map(Answer::Now)
}

/// `POST /workspace/:id/mcp`
pub fn add(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let workspace = project::workspace(ctx, request)?;
    let AddMcpBody { name, config } = request.json(limits::JSON_BODY_BYTES)?;
    if !config.is_object() {
        let message = "config is required: an object with type, and command or url";
        return Err(Error::new(Code::InvalidPayload, message));
    }
    mcp::check(&name, &config)?;
    let paths = ctx.project.config_paths(&project::open(&ctx.lifecycle, &workspace)?);
    let (lifecycle, service) = (ctx.lifecycle.clone(), ctx.project.clone());
    let note = format!("Add MCP {name}");
    let project::Preview { changes, plan } =
        project::preview(ctx, &workspace, |site| ctx.project.add_mcp(site, &name, &config))?;
    let answer = Answer::prepared(format!("Add MCP {name}: {config}"), paths, move |_| {
        let site = project::open_for(&lifecycle, &workspace, plan)?;
        service.add_mcp(&site, &name, &config)?;
        list(&service, &site)
    });
    Ok(answer.noted(note).changing(changes))
}

/// `DELETE /workspace/:id/mcp/:name`
pub fn remove(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let workspace = project::workspace(ctx, request)?;
    let name = request.param("name").to_owned();
    let paths = ctx.project.config_paths(&project::open(&ctx.lifecycle, &workspace)?);
    let (lifecycle, service) = (ctx.lifecycle.clone(), ctx.project.clone());
    let project::Preview { changes, plan } =
        project::preview(ctx, &workspace, |site| ctx.project.remove_mcp(site, &name))?;
    let answer = Answer::prepared(format!("Remove MCP {name}"), paths, move |_| {
        let site = project::open_for(&lifecycle, &workspace, plan)?;
        service.remove_mcp(&site, &name)?;
        list(&service, &site)
    });
    Ok(answer.changing(changes))
}

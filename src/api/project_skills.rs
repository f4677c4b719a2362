//! `/workspace/:id/skills`

use serde::Deserialize;
use serde_json::json;

use super::{Ctx, project};
use crate::base::{Result, limits};
use crate::http::{Answer, Request, Response};
use crate::project::skills::NewSkill;

#[derive(Deserialize)]
struct PutSkillBody {
    #[serde(default)]
    name: String,
    #[serde(default)]
    content: String,
    #[serde(default)]
    description: Option<String>,
}

/// `GET /workspace/:id/skills`
pub fn list(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let site = project::site(ctx, request)?;
    let list = ctx.project.skills(&site, project::include_global(request))?;
    Ok(Answer::Now(Response::ok(&list)))
}

/// `GET /workspace/:id/skills/:name`
pub fn get(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let site = project::site(ctx, request)?;
    let global = project::include_global(request);
    let (item, content) = ctx.project.skill(&site, request.param("name"), global)?;
    Ok(Answer::Now(Response::ok(&json!({ "item": item, "content": content }))))
}

/// `POST /workspace/:id/skills`
pub fn put(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let workspace = project::workspace(ctx, request)?;
    let body: PutSkillBody = request.json(limits::JSON_BODY_BYTES)?;
    let skill = NewSkill::new(&body.name, &body.content, body.description.as_deref())?;
    let site = project::open(&ctx.lifecycle, &workspace)?;
    let path = site.path(&skill.path());
    let (lifecycle, service) = (ctx.lifecycle.clone(), ctx.project.clone());
    let description = body.description.unwrap_or_default();
    let project::Preview { changes, plan } =
        project::preview(ctx, &workspace, |site| ctx.project.put_skill(site, &skill))?;
    let summary = format!("Upsert skill {}", skill.name());
    let answer = Answer::prepared(summary, vec![path.clone()], move |_| {
        service.put_skill(&project::open_for(&lifecycle, &workspace, plan)?, &skill)?;
        Ok(Response::ok(&json!({
            "name": skill.name(), "path": path, "description": description, "scope": "project",
        })))
    });
    Ok(answer.changing(changes))
}

/// `DELETE /workspace/:id/skills/:name`
pub fn delete(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let workspace = project::workspace(ctx, request)?;
    let name = request.param("name").trim().to_owned();
    let site = project::open(&ctx.lifecycle, &workspace)?;
    let paths = vec![site.path(&ctx.project.find_skill(&site, &name)?)];
    let (lifecycle, service) = (ctx.lifecycle.clone(), ctx.project.clone());
    let project::Preview { changes, plan } =
        project::preview(ctx, &workspace, |site| ctx.project.delete_skill(site, &name))?;
    let answer = Answer::prepared(format!("Delete skill {name}"), paths, move |_| {
        let site = project::open_for(&lifecycle, &workspace, plan)?;
        let path = service.delete_skill(&site, &name)?;
        Ok(Response::ok(&json!({ "ok": true, "name": name, "path": site.path(&path) })))
    });
    Ok(answer.changing(changes))
}

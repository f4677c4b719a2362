//! `/workspace/:id/commands`

use serde_json::json;

use super::{Ctx, project};
use crate::access::Scope;
use crate::base::{Code, Error, Result, limits};
use crate::http::{Answer, Request, Response};
use crate::project::commands::{self, CommandBody, NewCommand};

/// `GET /workspace/:id/commands`. As in the OpenWork server, the user's own commands (`?scope=global`) need the host
/// token.
pub fn list(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let workspace = project::workspace(ctx, request)?;
    let list = if request.query("scope").as_deref() == Some("global") {
        if request.actor().is_none_or(|actor| actor.scope < Scope::Owner) {
            return Err(Error::new(Code::Unauthorized, "Invalid host token"));
        }
        ctx.project.global_commands()?
    } else {
        ctx.project.commands(&project::open(&ctx.lifecycle, &workspace)?)?
    };
    Ok(Answer::Now(Response::ok(&list)))
}

/// `POST /workspace/:id/commands`
pub fn put(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let workspace = project::workspace(ctx, request)?;
    let body: CommandBody = request.json(limits::JSON_BODY_BYTES)?;
    let command = NewCommand::new(&body)?;
    let paths = vec![project::open(&ctx.lifecycle, &workspace)?.path(&command.path())];
    let (lifecycle, service) = (ctx.lifecycle.clone(), ctx.project.clone());
    let project::Preview { changes, plan } =
        project::preview(ctx, &workspace, |site| ctx.project.put_command(site, &command))?;
    let answer = Answer::prepared(format!("Upsert command {}", command.name()), paths, move |_| {
        let site = project::open_for(&lifecycle, &workspace, plan)?;
        service.put_command(&site, &command)?;
        Ok(Response::ok(&service.commands(&site)?))
    });
    Ok(answer.changing(changes))
}

/// `DELETE /workspace/:id/commands/:name`. As in the OpenWork server, succeeds if the command does not exist. The
/// name of a nested command contains slashes.
pub fn delete(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let workspace = project::workspace(ctx, request)?;
    let name = request.param("name").to_owned();
    let site = project::open(&ctx.lifecycle, &workspace)?;
    let shown = name.trim().trim_start_matches('/').to_owned();
    let file = ctx.project.find_command(&site, &name)?.unwrap_or_else(|| commands::path(&shown));
    let (lifecycle, service) = (ctx.lifecycle.clone(), ctx.project.clone());
    let project::Preview { changes, plan } =
        project::preview(ctx, &workspace, |site| ctx.project.delete_command(site, &name))?;
    let answer = Answer::prepared(format!("Delete command {shown}"), vec![site.path(&file)], move |_| {
        service.delete_command(&project::open_for(&lifecycle, &workspace, plan)?, &name)?;
        Ok(Response::ok(&json!({ "ok": true })))
    });
    Ok(answer.changing(changes))
}

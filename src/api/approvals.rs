//! `/approvals`: what waits for a person, and the person's answer.

use serde::Deserialize;
use serde_json::{Map, json};

use super::{Ctx, reach, topic};
use crate::access::approvals::{Asked, not_found};
use crate::access::audit::Draft;
use crate::base::{Error, Result, limits};
use crate::http::{Answer, Request, Response};

/// `GET /approvals`
pub fn list(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let mut items = ctx.approvals.list();
    items.retain(|asked| sees(ctx, request, asked));
    Ok(Answer::Now(Response::ok(&json!({ "items": items }))))
}

fn sees(ctx: &Ctx, request: &Request, asked: &Asked) -> bool {
    request.actor().is_some_and(|actor| reach::sees_id(ctx, actor, &asked.workspace_id))
}

#[derive(Deserialize)]
struct Reply {
    reply: String,
}

/// `POST /approvals/:id`; anything but `allow` is a no, as observed.
pub fn answer(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let allow = request.json::<Reply>(limits::JSON_BODY_BYTES)?.reply == "allow";
    let id = request.param("id").to_owned();
    let asked = ctx.approvals.find(&id).filter(|asked| sees(ctx, request, asked)).ok_or_else(not_found)?;
    let log = reach::find(ctx, &asked.workspace_id).map(|workspace| workspace.openwork_id.clone());
    if let Some(draft) = request.draft() {
        let word = if allow { "allow" } else { "deny" };
        *draft = Draft {
            log: log.unwrap_or_else(|| draft.log.clone()),
            action: format!("approval.{word}"),
            target: id.clone(),
            summary: asked.summary,
        };
    }
    let by = request.actor().ok_or_else(|| Error::internal("an answer of nobody"))?;
    ctx.approvals.answer(&id, allow, by)?;
    Ok(Answer::Now(Response::ok(&json!({ "ok": true, "allowed": allow }))))
}

/// `GET /approvals/events`: what waits now (`pending`), then each `asked` and `ended`.
pub fn events(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let pending = || ("pending", Map::from_iter([("items".to_owned(), json!(ctx.approvals.list()))]));
    topic::stream_from_now(ctx, request, ctx.approvals.feed(), pending)
}

//! `/approvals`: what waits for a person, and the person's answer.

use serde::Deserialize;
use serde_json::json;

use super::Ctx;
use crate::base::{Error, Result, limits};
use crate::http::{Answer, Request, Response};

/// `GET /approvals`
pub fn list(ctx: &Ctx, _: &mut Request) -> Result<Answer> {
    Ok(Answer::Now(Response::ok(&json!({ "items": ctx.approvals.list() }))))
}

#[derive(Deserialize)]
struct Reply {
    reply: String,
}

/// `POST /approvals/:id`; anything but `allow` is a no, as observed.
pub fn answer(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let allow = request.json::<Reply>(limits::JSON_BODY_BYTES)?.reply == "allow";
    let by = request.actor().ok_or_else(|| Error::internal("an answer of nobody"))?;
    ctx.approvals.answer(request.param("id"), allow, by)?;
    Ok(Answer::Now(Response::ok(&json!({ "ok": true, "allowed": allow }))))
}

//! `/approvals`: pending approvals and their decisions.

use serde::Deserialize;
use serde_json::{Map, json};

use super::{Ctx, topic, workspace_access};
use crate::access::approval_request::ApprovalRequest;
use crate::access::approvals::not_found;
use crate::access::audit::AuditDraft;
use crate::base::{Error, Result, limits};
use crate::http::stream::StreamBody;
use crate::http::{Answer, Method, Request, Response};

/// `GET /approvals`
pub fn list(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let mut items = ctx.approvals.list();
    items.retain(|(asked, _)| sees(ctx, request, asked));
    let items: Vec<_> = items.iter().map(|(asked, left)| asked.list_view(*left)).collect();
    Ok(Answer::Now(Response::ok(&json!({ "items": items }))))
}

/// `GET /approvals/:id`: returns the complete request.
pub fn get(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let found = ctx.approvals.find(request.param("id"));
    let (asked, left) = found.filter(|(asked, _)| sees(ctx, request, asked)).ok_or_else(not_found)?;
    let (head, rest) = asked.full_view(left);
    let json = |response: Response| response.with("Content-Type", "application/json");
    let Some(rest) = rest else {
        return Ok(Answer::Now(json(Response::empty(200)).with_body(head)));
    };
    let length = head.len() as u64 + rest.size();
    if request.method() == Method::Head {
        return Ok(Answer::Now(json(Response::empty(200)).without_body(Some(length))));
    }
    let permit = ctx.stream_permit(request.party())?;
    let ticket = ctx.tickets.issue(move |socket, _| {
        permit.run(move || {
            let mut body = StreamBody::new(socket);
            let sent = body.send(&head).and_then(|()| body.send_file(rest.file(), 0, rest.size()));
            if sent.is_ok() {
                let _ = body.end();
            }
        });
    })?;
    Ok(Answer::Now(json(Response::handed_over(ticket, Some(length)))))
}

fn sees(ctx: &Ctx, request: &Request, asked: &ApprovalRequest) -> bool {
    request.actor().is_some_and(|actor| workspace_access::sees_id(ctx, actor, asked.workspace_id()))
}

#[derive(Deserialize)]
struct ApprovalReplyBody {
    reply: String,
}

/// `POST /approvals/:id`. As in the OpenWork server, any value other than `allow` denies.
pub fn answer(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let allow = request.json::<ApprovalReplyBody>(limits::JSON_BODY_BYTES)?.reply == "allow";
    let id = request.param("id").to_owned();
    let found = ctx.approvals.find(&id).filter(|(asked, _)| sees(ctx, request, asked));
    let (asked, _) = found.ok_or_else(not_found)?;
    let log =
        workspace_access::find(ctx, asked.workspace_id()).map(|workspace| workspace.openwork_id.clone());
    if let Some(draft) = request.draft() {
        let word = if allow { "allow" } else { "deny" };
        *draft = AuditDraft {
            log: log.unwrap_or_else(|| draft.log.clone()),
            action: format!("approval.{word}"),
            target: id.clone(),
            summary: asked.note().to_owned(),
        };
    }
    let by = request.actor().ok_or_else(|| Error::internal("An approval was decided without an actor"))?;
    ctx.approvals.answer(&id, allow, by)?;
    Ok(Answer::Now(Response::ok(&json!({ "ok": true, "allowed": allow }))))
}

/// `GET /approvals/events`: sends the pending approvals (`pending`), then each `asked` and `ended` event.
pub fn events(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let pending = || {
        let items: Vec<_> = ctx.approvals.list().iter().map(|(asked, left)| asked.list_view(*left)).collect();
        ("pending", Map::from_iter([("items".to_owned(), json!(items))]))
    };
    topic::stream_from_now(ctx, request, ctx.approvals.feed(), pending)
}

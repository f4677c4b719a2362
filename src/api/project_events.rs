//! `/workspace/:id/events`: changes of the files that agents read.

use serde_json::json;

use super::{Ctx, project, topic};
use crate::base::Result;
use crate::http::{Answer, Request, Response};

/// `GET /workspace/:id/events`. As in the OpenWork server, an invalid cursor is ignored.
pub fn list(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let workspace = project::workspace(ctx, request)?;
    let since = request.query("since").and_then(|text| text.parse().ok()).unwrap_or(0);
    let (items, cursor) = ctx.project.events.since(&workspace.openwork_id, since)?;
    Ok(Answer::Now(Response::ok(&json!({ "items": items, "cursor": cursor }))))
}

/// `GET /workspace/:id/events/stream`
pub fn stream(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let workspace = project::workspace(ctx, request)?;
    topic::stream(ctx, request, &ctx.project.events.topic(&workspace.openwork_id)?, None)
}

//! `/api/workspaces/:id/snapshots` and `/api/workspaces/:id/clone`.

use uuid::Uuid;

use super::Ctx;
use crate::base::ids::parse_uuid;
use crate::base::{Code, Error, Result, limits};
use crate::http::{Answer, Request, Response};
use crate::lifecycle::snapshots::{CloneRequest, TakeSnapshotRequest};

fn ids(request: &Request) -> Result<(Uuid, Uuid)> {
    let snapshot = Uuid::try_parse(request.param("snapshot"));
    let missing = |_| Error::new(Code::NotFound, "No snapshot has this id");
    Ok((parse_uuid(request.param("id"))?, snapshot.map_err(missing)?))
}

/// `GET /api/workspaces/:id/snapshots`
pub fn list(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    Ok(Answer::Now(Response::ok(&ctx.lifecycle.list_snapshots(parse_uuid(request.param("id"))?)?)))
}

/// `POST /api/workspaces/:id/snapshots`
pub fn take(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let (id, lifecycle) = (parse_uuid(request.param("id"))?, ctx.lifecycle.clone());
    let asked: TakeSnapshotRequest = request.json_if_any(limits::JSON_BODY_BYTES)?.unwrap_or_default();
    Ok(Answer::later(move || lifecycle.take_snapshot(id, asked).map(|taken| Response::ok(&taken)), None))
}

/// `DELETE /api/workspaces/:id/snapshots/:snapshot`
pub fn delete(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let (id, snapshot) = ids(request)?;
    ctx.lifecycle.remove_snapshot(id, snapshot)?;
    Ok(Answer::Now(Response::sentence(format!("Snapshot {snapshot} deleted successfully"))))
}

/// `POST /api/workspaces/:id/snapshots/:snapshot/restore`
pub fn restore(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let (id, snapshot) = ids(request)?;
    request.json_if_any::<serde_json::Value>(limits::JSON_BODY_BYTES)?;
    let work = ctx.lifecycle.start_restore(id, snapshot)?;
    // The restore continues if its client disconnects; the workspace's status shows the result.
    Ok(Answer::later(move || work().map(|record| Response::ok(&record.view)), None))
}

/// `POST /api/workspaces/:id/clone`
pub fn clone(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let (id, lifecycle) = (parse_uuid(request.param("id"))?, ctx.lifecycle.clone());
    let asked: CloneRequest = request.json_if_any(limits::JSON_BODY_BYTES)?.unwrap_or_default();
    Ok(Answer::later(
        move || lifecycle.clone_workspace(id, asked).map(|record| Response::ok(&record.view)),
        None,
    ))
}

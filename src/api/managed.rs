//! The OpenCode that the server manages: its state, its events, and its restart after a failure.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::{Ctx, topic};
use crate::access::audit::{AuditDraft, AuditOutcome, SERVER};
use crate::access::{Actor, Scope};
use crate::base::{Code, Error, Result};
use crate::host::OpencodeChange;
use crate::http::{Answer, Request};
use crate::opencode::Managed;
use crate::opencode::managed::Phase;

/// How long a reload waits until a failed OpenCode has started.
const RESTART_PATIENCE: Duration = Duration::from_secs(60);

/// Returns the state of the managed OpenCode for `GET /status`. Only owners see why it ended, because the reason may
/// name programs.
pub(super) fn shown(managed: &Managed, owner: bool) -> Value {
    let state = managed.state();
    let mut shown = json!({
        "managed": true,
        "state": state.phase.as_str(),
        "starts": state.starts,
    });
    let mut put = |key: &str, value: Value| {
        if !value.is_null() {
            shown[key] = value;
        }
    };
    put("url", json!(state.url));
    put("version", json!(state.version));
    put("pid", json!(state.pid));
    put("memoryLimitBytes", json!(managed.memory_bytes()));
    if owner {
        put("lastEnd", json!(state.reason));
    }
    shown
}

/// Publishes a change of the managed OpenCode, and writes it to the audit log.
pub fn changed(ctx: &Ctx, change: &OpencodeChange) {
    match change.state {
        "ended" | "failed" => log::warn!("{}", change.summary),
        _ => log::info!("{}", change.summary),
    }
    let draft = AuditDraft {
        log: SERVER.to_owned(),
        action: format!("opencode.{}", change.state),
        target: "opencode".to_owned(),
        summary: change.summary.clone(),
    };
    let outcome = match change.state {
        "ended" => AuditOutcome::Failed(503, Code::OpencodeStarting.as_str()),
        "failed" => AuditOutcome::Failed(503, Code::OpencodeFailed.as_str()),
        _ => AuditOutcome::Done,
    };
    ctx.audit.record(&draft, Some(&Actor::host(String::new(), None)), outcome);
    let mut data = Map::new();
    data.insert("state".to_owned(), json!(change.state));
    data.insert("summary".to_owned(), json!(change.summary));
    for (key, value) in [("pid", json!(change.pid)), ("version", json!(change.version))] {
        if !value.is_null() {
            data.insert(key.to_owned(), value);
        }
    }
    ctx.managed_events.publish("opencode", data);
}

/// `GET /api/opencode/events`
pub fn events(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let Some(managed) = &ctx.managed else {
        let message = "This server does not manage an OpenCode; start berth with --manage-opencode";
        return Err(Error::new(Code::OpencodeUnconfigured, message));
    };
    let owner = request.actor().is_some_and(|actor| actor.scope >= Scope::Owner);
    topic::stream_from_now(ctx, request, &ctx.managed_events, || match shown(managed, owner) {
        Value::Object(state) => ("state", state),
        _ => ("state", Map::new()),
    })
}

/// Restarts the managed OpenCode if it has failed, and waits until it runs. Returns `false` if it had not failed.
pub(super) fn restart_failed(managed: &Managed) -> Result<bool> {
    if managed.state().phase != Phase::Failed {
        return Ok(false);
    }
    managed.request_restart();
    managed.wait(Instant::now() + RESTART_PATIENCE)?;
    Ok(true)
}

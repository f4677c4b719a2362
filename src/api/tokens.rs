//! `/tokens`: the scoped tokens. Only owners can use these routes.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Ctx, workspace_access};
use crate::access::Scope;
use crate::access::credentials::describe_token;
use crate::access::tokens::{NewToken, Token};
use crate::base::{Code, Error, Result, limits};
use crate::http::{Answer, Request, Response};

/// Maximum length of a token's label.
const TOKEN_LABEL_CHARS: usize = 200;
/// Maximum number of workspaces that a token can be restricted to.
const TOKEN_WORKSPACES: usize = 100;

/// `GET /tokens`
pub fn list(ctx: &Ctx, _: &mut Request) -> Result<Answer> {
    Ok(Answer::Now(Response::ok(&json!({ "items": ctx.credentials.scoped() }))))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CreateTokenBody {
    #[serde(default)]
    scope: Value,
    label: Option<String>,
    expires_in_secs: Option<u64>,
    workspace_ids: Option<Vec<String>>,
}

/// `POST /tokens`
pub fn create(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let body: CreateTokenBody = request.json(limits::JSON_BODY_BYTES)?;
    let scope = serde_json::from_value::<Scope>(body.scope)
        .map_err(|_| Error::new(Code::InvalidScope, "scope is owner, collaborator or viewer"))?;
    let lifetime = match body.expires_in_secs {
        None => None,
        Some(secs @ 1..=limits::TOKEN_LIFETIME_SECS) => Some(Duration::from_secs(secs)),
        Some(_) => {
            let most = limits::TOKEN_LIFETIME_SECS;
            return Err(invalid(format!("expiresInSecs must be a number of seconds from 1 to {most}")));
        }
    };
    let workspace_ids = match body.workspace_ids {
        None => None,
        Some(ids) if (1..=TOKEN_WORKSPACES).contains(&ids.len()) => {
            Some(workspace_access::openwork_ids(ctx, &ids)?)
        }
        Some(_) => {
            let most = TOKEN_WORKSPACES;
            return Err(invalid(format!(
                "workspaceIds must name 1 to {most} workspaces; omit it for access to all"
            )));
        }
    };
    let label = body.label.map(|label| label.trim().to_owned()).filter(|label| !label.is_empty());
    if label.as_ref().is_some_and(|label| label.chars().count() > TOKEN_LABEL_CHARS) {
        return Err(invalid(format!("label is limited to {} characters", TOKEN_LABEL_CHARS)));
    }
    let (token, secret) = ctx.credentials.create(NewToken { scope, label, lifetime, workspace_ids })?;
    note(request, &token);
    log::info!("Token {} created: {}", token.id, token.scope.as_str());
    Ok(Answer::Now(
        Response::json(201, &CreatedTokenView { secret, token }).with("Cache-Control", "no-store"),
    ))
}

/// Completes the audit line of a request with the token that it concerns.
fn note(request: &mut Request, token: &Token) {
    if let Some(draft) = request.draft() {
        draft.target.clone_from(&token.id);
        draft.summary = describe_token(token);
    }
}

fn invalid(message: String) -> Error {
    Error::new(Code::InvalidPayload, message)
}

/// The answer to a creation, and the only answer that contains the secret of a token.
#[derive(serde::Serialize)]
struct CreatedTokenView {
    #[serde(rename = "token")]
    secret: String,
    #[serde(flatten)]
    token: Token,
}

/// `DELETE /tokens/:id`. The revocation takes effect at once, also for open streams and sockets of the token.
pub fn delete(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let token = ctx.credentials.revoke(request.param("id"))?;
    note(request, &token);
    log::info!("Token {} revoked", token.id);
    Ok(Answer::Now(Response::ok(&json!({ "ok": true }))))
}

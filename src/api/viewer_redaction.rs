//! Redaction for viewers. Dispatch applies it to every answer that the server produces, and streams apply it to
//! every event, so no route can omit it.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Ctx, workspace_access};
use crate::access::{Actor, Scope};
use crate::base::redact::Redactor;
use crate::http::Request;
use crate::workspaces::WorkspaceView;

/// Returns the redactor for the answer to this request, or `None` if its actor may see secrets.
pub(super) fn redactor(ctx: &Ctx, request: &Request) -> Option<Redactor> {
    if !hides(request.actor()) {
        return None;
    }
    let workspace = workspace_access::find(ctx, request.param("id"));
    Some(workspace.map_or_else(Redactor::default, |found| redactor_for(&found.record().view.env_vars)))
}

/// Returns whether secrets are hidden from this actor. A public route has no actor and shows no secrets.
pub(super) fn hides(actor: Option<&Actor>) -> bool {
    actor.is_some_and(|actor| actor.scope < Scope::Collaborator)
}

/// Returns the workspace object as a viewer sees it.
pub(super) fn record(shown: &WorkspaceView) -> Value {
    // Serialization cannot fail, because the keys are strings.
    let mut value = serde_json::to_value(shown).unwrap_or_default();
    redactor_for(&shown.env_vars).value(&mut value);
    value
}

fn redactor_for(variables: &BTreeMap<String, String>) -> Redactor {
    Redactor::with_known_values(variables.values().flat_map(|value| value.lines()))
}

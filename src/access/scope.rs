//! Scopes and the actor of a request.

use serde::Serialize;

/// What a credential allows; each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Reads.
    Viewer,
    /// Works in containers and, with approval, on project files.
    Collaborator,
    /// Everything.
    Owner,
}

impl Scope {
    /// The word of replies.
    pub fn as_str(self) -> &'static str {
        match self {
            Scope::Viewer => "viewer",
            Scope::Collaborator => "collaborator",
            Scope::Owner => "owner",
        }
    }
}

/// Who is asking, in the shape of `GET /whoami`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Actor {
    /// `host` for the host token, else `remote`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// What the client calls itself (`X-OpenWork-Client-Id`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// SHA-256 of the token, hex.
    pub token_hash: String,
    /// What it may do.
    pub scope: Scope,
}

impl Actor {
    /// The holder of the host token.
    pub fn host(token_hash: String, client_id: Option<String>) -> Actor {
        Actor { kind: "host", client_id, token_hash, scope: Scope::Owner }
    }

    /// The holder of any other token.
    pub fn remote(scope: Scope, token_hash: String, client_id: Option<String>) -> Actor {
        Actor { kind: "remote", client_id, token_hash, scope }
    }
}

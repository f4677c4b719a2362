//! Scopes, and the actor of a request.

use serde::{Deserialize, Serialize};

use super::login::JwtClaims;
use super::tokens::Token;

/// The permissions of a credential; each scope includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Reads.
    Viewer,
    /// Works in containers and, with approval, on project files.
    Collaborator,
    /// Full access.
    Owner,
}

impl Scope {
    /// The value in replies.
    pub fn as_str(self) -> &'static str {
        match self {
            Scope::Viewer => "viewer",
            Scope::Collaborator => "collaborator",
            Scope::Owner => "owner",
        }
    }
}

/// The sender of a request, in the format of `GET /whoami`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Actor {
    /// `host` for the host token, otherwise `remote`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The client's own id (`X-OpenWork-Client-Id`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// Identifies the token, 64 hex digits: SHA-256 of a stored token, a keyed hash of the client and host tokens.
    pub token_hash: String,
    pub scope: Scope,
    /// The token can end before the server does: a stored one, or one of a login.
    #[serde(skip)]
    pub is_scoped: bool,
    /// The user, if the token is one of a login, which is not in the store.
    #[serde(skip)]
    pub user: Option<String>,
    /// The expiry of the token; Unix milliseconds.
    #[serde(skip)]
    pub expires_at: Option<u64>,
    /// The workspaces that it is limited to, with their ids as in the store; `None`: all.
    #[serde(skip)]
    pub workspace_ids: Option<Vec<String>>,
}

impl Actor {
    /// The holder of the host token.
    pub fn host(token_hash: String, client_id: Option<String>) -> Actor {
        Actor { kind: "host", ..Actor::remote(Scope::Owner, token_hash, client_id) }
    }

    /// The holder of the client token.
    pub fn remote(scope: Scope, token_hash: String, client_id: Option<String>) -> Actor {
        Actor {
            kind: "remote",
            client_id,
            token_hash,
            scope,
            is_scoped: false,
            user: None,
            expires_at: None,
            workspace_ids: None,
        }
    }

    /// The holder of a stored token.
    pub fn scoped(token: &Token, client_id: Option<String>) -> Actor {
        Actor {
            is_scoped: true,
            expires_at: token.expires_at,
            workspace_ids: token.workspace_ids.clone(),
            ..Actor::remote(token.scope, token.hash.clone(), client_id)
        }
    }

    /// A logged-in user: an owner until the token expires.
    pub fn logged_in(token_hash: String, claims: &JwtClaims, client_id: Option<String>) -> Actor {
        Actor {
            is_scoped: true,
            user: Some(claims.user().to_owned()),
            expires_at: Some(claims.expires_at_ms()),
            ..Actor::remote(Scope::Owner, token_hash, client_id)
        }
    }

    /// Whether the actor may access the workspace with these two ids.
    pub fn reaches(&self, openwork_id: &str, id: uuid::Uuid) -> bool {
        self.workspace_ids.as_ref().is_none_or(|ids| {
            ids.iter()
                .any(|known| known == openwork_id || uuid::Uuid::try_parse(known).is_ok_and(|k| k == id))
        })
    }
}

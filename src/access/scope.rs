//! Scopes and the actor of a request.

use serde::{Deserialize, Serialize};

use super::login::JwtClaims;
use super::tokens::Token;

/// What a credential allows; each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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
    /// Names the token, 64 hex digits: SHA-256 of a stored one, a keyed hash of the client and the host token.
    pub token_hash: String,
    /// What it may do.
    pub scope: Scope,
    /// Its token can end before the server does: one of the store, or of a login.
    #[serde(skip)]
    pub is_scoped: bool,
    /// The user of a login, whose token is not in the store.
    #[serde(skip)]
    pub user: Option<String>,
    /// When its token ends; Unix milliseconds.
    #[serde(skip)]
    pub expires_at: Option<u64>,
    /// The only workspaces that it reaches, as the store names them; `None`: all.
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

    /// The holder of a token of the store.
    pub fn scoped(token: &Token, client_id: Option<String>) -> Actor {
        Actor {
            is_scoped: true,
            expires_at: token.expires_at,
            workspace_ids: token.workspace_ids.clone(),
            ..Actor::remote(token.scope, token.hash.clone(), client_id)
        }
    }

    /// A user who has logged in: an owner until the token expires.
    pub fn logged_in(token_hash: String, claims: &JwtClaims, client_id: Option<String>) -> Actor {
        Actor {
            is_scoped: true,
            user: Some(claims.user().to_owned()),
            expires_at: Some(claims.expires_at_ms()),
            ..Actor::remote(Scope::Owner, token_hash, client_id)
        }
    }

    /// Whether it reaches the workspace that has these two ids.
    pub fn reaches(&self, openwork_id: &str, id: uuid::Uuid) -> bool {
        self.workspace_ids.as_ref().is_none_or(|ids| {
            ids.iter()
                .any(|known| known == openwork_id || uuid::Uuid::try_parse(known).is_ok_and(|k| k == id))
        })
    }
}

//! The scope of a credential, and the actor of a request.

use serde::{Deserialize, Serialize};

use super::login::JwtClaims;
use super::tokens::Token;

/// The permissions of a credential. Each scope includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// May read.
    Viewer,
    /// May work in containers and, with approval, change project files.
    Collaborator,
    /// Has full access.
    Owner,
}

impl Scope {
    /// Returns the value in answers.
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
    /// The id that the client chose for itself (`X-OpenWork-Client-Id`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// The id of the token, in 64 hex digits: the SHA-256 of a scoped token, or a keyed hash of the client or host
    /// token.
    pub token_hash: String,
    pub scope: Scope,
    /// Whether the token can end before the server does: a scoped token, or the token of a login.
    #[serde(skip)]
    pub is_scoped: bool,
    /// The name of the user, if the token is that of a login. Such a token is not in the store.
    #[serde(skip)]
    pub user: Option<String>,
    /// The expiry of the token, in Unix milliseconds.
    #[serde(skip)]
    pub expires_at: Option<u64>,
    /// The ids (as in the token store) of the workspaces that the actor may access; `None` for all.
    #[serde(skip)]
    pub workspace_ids: Option<Vec<String>>,
}

impl Actor {
    /// Returns the actor for the host token.
    pub fn host(token_hash: String, client_id: Option<String>) -> Actor {
        Actor { kind: "host", ..Actor::remote(Scope::Owner, token_hash, client_id) }
    }

    /// Returns the actor for the client token.
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

    /// Returns the actor for a scoped token.
    pub fn scoped(token: &Token, client_id: Option<String>) -> Actor {
        Actor {
            is_scoped: true,
            expires_at: token.expires_at,
            workspace_ids: token.workspace_ids.clone(),
            ..Actor::remote(token.scope, token.hash.clone(), client_id)
        }
    }

    /// Returns the actor for a logged-in user, who is an owner until the token expires.
    pub fn logged_in(token_hash: String, claims: &JwtClaims, client_id: Option<String>) -> Actor {
        Actor {
            is_scoped: true,
            user: Some(claims.user().to_owned()),
            expires_at: Some(claims.expires_at_ms()),
            ..Actor::remote(Scope::Owner, token_hash, client_id)
        }
    }

    /// Returns whether the actor may access the workspace with these two ids.
    pub fn reaches(&self, openwork_id: &str, id: uuid::Uuid) -> bool {
        self.workspace_ids.as_ref().is_none_or(|ids| {
            ids.iter()
                .any(|known| known == openwork_id || uuid::Uuid::try_parse(known).is_ok_and(|k| k == id))
        })
    }
}

//! The connection to a workspace's OpenCode, as the server's configuration or an owner has set it. Pure.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use super::Configured;

/// The address, directory and credential of a workspace's OpenCode.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpencodeConnection {
    /// The URL of OpenCode.
    pub base_url: Option<String>,
    /// The directory that OpenCode serves for the workspace.
    pub directory: Option<String>,
    /// The user name for basic authentication.
    pub username: Option<String>,
    /// The password for basic authentication.
    pub password: Option<String>,
}

impl fmt::Debug for OpencodeConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({:?})", self.base_url)
    }
}

/// A connection that an owner has set. It applies until the configured address changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionOverride {
    pub(super) connection: OpencodeConnection,
    /// The address that was configured when the owner set the connection.
    pub(super) instead_of: Option<String>,
}

/// The body of `PATCH /workspaces/:id`. A field that is present changes the value, null removes it, and removing the
/// address restores the configured connection.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionUpdate {
    /// The URL of OpenCode.
    #[serde(default, deserialize_with = "nullable")]
    pub base_url: Option<Option<String>>,
    /// The directory that OpenCode serves for the workspace.
    #[serde(default, deserialize_with = "nullable")]
    pub directory: Option<Option<String>>,
    /// The user name for basic authentication.
    #[serde(default, deserialize_with = "nullable")]
    pub opencode_username: Option<Option<String>>,
    /// The password for basic authentication.
    #[serde(default, deserialize_with = "nullable")]
    pub opencode_password: Option<Option<String>>,
}

/// Deserialises a field so that null and a missing field differ.
fn nullable<'de, D: Deserializer<'de>>(field: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(field).map(Some)
}

impl ConnectionUpdate {
    /// Returns the changed connection. With a new address, the credential and directory of the old address are
    /// dropped.
    pub(super) fn apply(self, now: OpencodeConnection) -> OpencodeConnection {
        let (was, mut next) = (now.base_url.clone(), now);
        let set = |place: &mut Option<String>, change: Option<Option<String>>| {
            if let Some(value) = change {
                *place = value.filter(|value| !value.is_empty());
            }
        };
        set(&mut next.base_url, self.base_url);
        if next.base_url != was {
            next = OpencodeConnection { base_url: next.base_url, ..OpencodeConnection::default() };
        }
        set(&mut next.directory, self.directory);
        set(&mut next.username, self.opencode_username);
        set(&mut next.password, self.opencode_password);
        next
    }
}

pub(super) fn configured(configured: Option<&Configured>) -> OpencodeConnection {
    configured.map_or_else(OpencodeConnection::default, |configured| OpencodeConnection {
        base_url: configured.base_url.clone(),
        directory: configured.directory.clone(),
        username: configured.opencode_username.clone(),
        password: configured.opencode_password.clone(),
    })
}

pub(super) fn effective(
    chosen: Option<&ConnectionOverride>,
    configured: OpencodeConnection,
) -> OpencodeConnection {
    match chosen {
        Some(chosen) if chosen.instead_of == configured.base_url => chosen.connection.clone(),
        _ => configured,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(text: &str) -> ConnectionUpdate {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_new_address_drops_the_old_credential_and_directory() {
        let now = OpencodeConnection {
            base_url: Some("http://a".into()),
            directory: Some("/a".into()),
            username: Some("u".into()),
            password: Some("p".into()),
        };
        let same = change(r#"{"baseUrl": "http://a", "directory": null}"#).apply(now.clone());
        assert_eq!((same.directory, same.password.as_deref()), (None, Some("p")));
        let other = change(r#"{"baseUrl": "http://b", "opencodeUsername": "v"}"#).apply(now.clone());
        assert_eq!((other.username.as_deref(), other.password, other.directory), (Some("v"), None, None));
        // A connection has no `path`; the client gets a warning about this field.
        assert_eq!(change(r#"{"path": "/"}"#).apply(now.clone()), now);
        assert_eq!(change(r#"{"baseUrl": null}"#).apply(now), OpencodeConnection::default());
    }

    #[test]
    fn an_owners_connection_ends_when_the_configured_address_changes() {
        let at =
            |url: &str| OpencodeConnection { base_url: Some(url.into()), ..OpencodeConnection::default() };
        let chosen =
            ConnectionOverride { connection: at("http://mine"), instead_of: Some("http://a".into()) };
        assert_eq!(effective(Some(&chosen), at("http://a")), at("http://mine"));
        assert_eq!(effective(Some(&chosen), at("http://b")), at("http://b"));
        assert_eq!(effective(Some(&chosen), OpencodeConnection::default()), OpencodeConnection::default());
    }
}

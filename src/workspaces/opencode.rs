//! What a workspace says about its OpenCode: as configured, or as an owner has chosen since.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

use super::record::WorkspaceKind;
use super::{Configured, Workspace};
use crate::opencode::{Managed, Upstream};

/// Where a workspace's OpenCode is, and which of its directories are the workspace's.
#[derive(Clone, Debug)]
pub struct OpencodeLocation {
    /// Its address and credential.
    pub upstream: Upstream,
    /// The directory that it is told; everything that clients name must lie in it. `None` for a remote workspace that
    /// leaves it to its server.
    pub directory: Option<PathBuf>,
    /// It sees the same files as we do.
    pub shares_files: bool,
    /// The root of the container that it is in, as the host names it. All other paths are those inside.
    pub root: Option<PathBuf>,
}

/// Address, directory and credential as somebody wrote them down.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpencodeConnection {
    /// Where it answers.
    pub base_url: Option<String>,
    /// The directory that it is told.
    pub directory: Option<String>,
    /// For basic authentication.
    pub username: Option<String>,
    /// For basic authentication.
    pub password: Option<String>,
}

impl fmt::Debug for OpencodeConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({:?})", self.base_url)
    }
}

/// What an owner has chosen. It holds until the configuration says something else than it did then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionOverride {
    connection: OpencodeConnection,
    /// The address that was configured.
    instead_of: Option<String>,
}

/// The body of `PATCH /workspaces/:id`: what is there is changed, null takes it away; without an address all is as
/// configured again.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionUpdate {
    /// Where it answers.
    #[serde(default, deserialize_with = "nullable")]
    pub base_url: Option<Option<String>>,
    /// The directory that it is told.
    #[serde(default, deserialize_with = "nullable")]
    pub directory: Option<Option<String>>,
    /// For basic authentication.
    #[serde(default, deserialize_with = "nullable")]
    pub opencode_username: Option<Option<String>>,
    /// For basic authentication.
    #[serde(default, deserialize_with = "nullable")]
    pub opencode_password: Option<Option<String>>,
}

/// Tells null from a field that is not there.
fn nullable<'de, D: Deserializer<'de>>(field: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(field).map(Some)
}

impl ConnectionUpdate {
    /// What there is after it. Another address gets nothing of the credential and the directory that were for this one.
    fn apply(self, now: OpencodeConnection) -> OpencodeConnection {
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

fn configured(configured: Option<&Configured>) -> OpencodeConnection {
    configured.map_or_else(OpencodeConnection::default, |configured| OpencodeConnection {
        base_url: configured.base_url.clone(),
        directory: configured.directory.clone(),
        username: configured.opencode_username.clone(),
        password: configured.opencode_password.clone(),
    })
}

fn effective(chosen: Option<&ConnectionOverride>, configured: OpencodeConnection) -> OpencodeConnection {
    match chosen {
        Some(chosen) if chosen.instead_of == configured.base_url => chosen.connection.clone(),
        _ => configured,
    }
}

impl Workspace {
    /// As of now.
    pub fn connection(&self) -> OpencodeConnection {
        self.or_managed(self.written())
    }

    /// As the configuration or an owner has it.
    fn written(&self) -> OpencodeConnection {
        effective(self.record().opencode.as_ref(), configured(self.configured.as_ref()))
    }

    /// The OpenCode that the server runs, where this workspace has no other one: it serves all folders of this machine.
    fn managed_at(&self, written: &OpencodeConnection) -> Option<&Arc<Managed>> {
        let here =
            self.record().view.workspace_type == WorkspaceKind::Host && self.kind_of_place() != "remote";
        let managed = self.managed.as_ref().filter(|_| here && written.base_url.is_none());
        // In a sandbox it has the first workspace's files only.
        managed.filter(|managed| managed.directory().is_none() || self.id().is_nil())
    }

    fn or_managed(&self, written: OpencodeConnection) -> OpencodeConnection {
        let Some(managed) = self.managed_at(&written) else { return written };
        let (username, password) = managed.credential();
        OpencodeConnection {
            base_url: managed.state().url,
            directory: managed.directory().map(str::to_owned).or(written.directory),
            username: Some(username.to_owned()),
            password: Some(password.to_owned()),
        }
    }

    /// Whether the password of the workspace's OpenCode is shown to an owner, or to a holder of one of the tokens that the
    /// server was started with (`started`). Of the OpenCode that the server runs only the latter may see it, and only where
    /// it was passed in with a flag or the environment.
    pub fn shows_password(&self, owner: bool, started: bool) -> bool {
        if let Some(managed) = self.managed_at(&self.written()) {
            return started && managed.password_is_shared();
        }
        let shared = self.configured.as_ref().filter(|configured| configured.password_is_shared);
        let shared =
            shared.is_some_and(|configured| configured.opencode_password == self.connection().password);
        owner || started && shared
    }

    /// `local`, or `remote` when its files are not here.
    pub fn kind_of_place(&self) -> &str {
        self.configured.as_ref().map_or("local", |configured| &configured.workspace_type)
    }

    /// What [`Workspace::connection`] will say after a change.
    pub fn connection_after(&self, change: &ConnectionUpdate) -> OpencodeConnection {
        self.or_managed(change.clone().apply(self.written()))
    }

    /// Makes the change.
    ///
    /// # Errors
    /// Those of [`Workspace::update`].
    pub fn connect(&self, change: &ConnectionUpdate) -> crate::base::Result<()> {
        self.update(|record| {
            let was = configured(self.configured.as_ref());
            let next = change.clone().apply(effective(record.opencode.as_ref(), was.clone()));
            let instead_of = was.base_url;
            record.opencode =
                next.base_url.is_some().then_some(ConnectionOverride { connection: next, instead_of });
            Ok(())
        })
    }

    /// As of now, for whoever calls it.
    pub fn opencode(&self) -> OpencodeLocation {
        let written = self.written();
        let managed = self.managed_at(&written).cloned();
        let mut opencode = self.opencode_at(self.or_managed(written));
        opencode.shares_files &= managed.as_ref().is_none_or(|managed| managed.directory().is_none());
        opencode.upstream.managed = managed;
        opencode
    }

    /// The same with another connection.
    pub fn opencode_at(&self, connection: OpencodeConnection) -> OpencodeLocation {
        let record = self.record();
        let root = (record.view.workspace_type == WorkspaceKind::Container).then(|| record.view.path.clone());
        let is_here = root.is_none() && self.kind_of_place() != "remote";
        let own = || match root {
            Some(_) => Some("/".to_owned()),
            None => is_here.then(|| record.view.path.clone()),
        };
        OpencodeLocation {
            directory: connection.directory.clone().or_else(own).map(PathBuf::from),
            root: root.clone().map(PathBuf::from),
            upstream: Upstream {
                workspace: record.view.name.as_str().to_owned(),
                base_url: connection.base_url,
                username: connection.username,
                password: connection.password,
                managed: None,
            },
            shares_files: is_here,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(text: &str) -> ConnectionUpdate {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn another_address_gets_no_credential_of_the_one_before() {
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
        // The client is warned of a field that does not exist here.
        assert_eq!(change(r#"{"path": "/"}"#).apply(now.clone()), now);
        assert_eq!(change(r#"{"baseUrl": null}"#).apply(now), OpencodeConnection::default());
    }

    #[test]
    fn what_was_chosen_ends_with_another_configuration() {
        let at =
            |url: &str| OpencodeConnection { base_url: Some(url.into()), ..OpencodeConnection::default() };
        let chosen =
            ConnectionOverride { connection: at("http://mine"), instead_of: Some("http://a".into()) };
        assert_eq!(effective(Some(&chosen), at("http://a")), at("http://mine"));
        assert_eq!(effective(Some(&chosen), at("http://b")), at("http://b"));
        assert_eq!(effective(Some(&chosen), OpencodeConnection::default()), OpencodeConnection::default());
    }
}

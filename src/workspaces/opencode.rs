//! The OpenCode of a workspace: its connection, and the directory that it serves for the workspace.

use std::path::PathBuf;
use std::sync::Arc;

use super::connection::{ConnectionOverride, ConnectionUpdate, OpencodeConnection, configured, effective};
use super::kind::WorkspaceKind;
use super::registry::Workspace;
use crate::opencode::{Managed, Upstream};

/// The OpenCode of a workspace, and the directory that OpenCode serves for the workspace.
#[derive(Clone, Debug)]
pub struct OpencodeLocation {
    /// OpenCode's address and credential.
    pub upstream: Upstream,
    /// The directory that OpenCode serves for the workspace; all directories that clients name must be inside it.
    /// `None` for a remote workspace that leaves the choice of the directory to its server.
    pub directory: Option<PathBuf>,
    /// Whether OpenCode sees the same files as this server.
    pub shares_files: bool,
    /// The path on the host of the root folder of OpenCode's container; `None` if OpenCode is not in a container. All
    /// other paths are paths inside the container.
    pub root: Option<PathBuf>,
}

impl Workspace {
    /// Returns the connection in use: the configured one, the one set by an owner, or that of the OpenCode that the
    /// server runs.
    pub fn connection(&self) -> OpencodeConnection {
        self.or_managed(self.written())
    }

    /// Returns the connection as configured or set by an owner.
    fn written(&self) -> OpencodeConnection {
        effective(self.record().opencode.as_ref(), configured(self.configured.as_ref()))
    }

    /// Returns the OpenCode that the server runs, if it serves this workspace. It serves all folders of this machine
    /// for which no other OpenCode is set.
    fn managed_at(&self, written: &OpencodeConnection) -> Option<&Arc<Managed>> {
        let here =
            self.record().view.workspace_type == WorkspaceKind::Host && self.kind_of_place() != "remote";
        let managed = self.managed.as_ref().filter(|_| here && written.base_url.is_none());
        // In a sandbox, the server's OpenCode sees only the files of the first workspace.
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

    /// Returns whether a client may see the password of the workspace's OpenCode. The client has an owner token if
    /// `owner` is true, and one of the tokens that the server was started with if `started` is true. The password of
    /// the OpenCode that the server runs is shown only to the latter, and only if the password came from a flag or the
    /// environment.
    pub fn shows_password(&self, owner: bool, started: bool) -> bool {
        if let Some(managed) = self.managed_at(&self.written()) {
            return started && managed.password_is_shared();
        }
        let shared = self.configured.as_ref().filter(|configured| configured.password_is_shared);
        let shared =
            shared.is_some_and(|configured| configured.opencode_password == self.connection().password);
        owner || started && shared
    }

    /// Returns `local`, or `remote` if the workspace's files are on another machine.
    pub fn kind_of_place(&self) -> &str {
        self.configured.as_ref().map_or("local", |configured| &configured.workspace_type)
    }

    /// Returns the connection that [`Workspace::connection`] would return after a change.
    pub fn connection_after(&self, change: &ConnectionUpdate) -> OpencodeConnection {
        self.or_managed(change.clone().apply(self.written()))
    }

    /// Applies a change of the connection and stores it.
    ///
    /// # Errors
    /// Fails for the same reasons as [`Workspace::update`].
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

    /// Returns the workspace's OpenCode with its current connection.
    pub fn opencode(&self) -> OpencodeLocation {
        let written = self.written();
        let managed = self.managed_at(&written).cloned();
        let mut opencode = self.opencode_at(self.or_managed(written));
        opencode.shares_files &= managed.as_ref().is_none_or(|managed| managed.directory().is_none());
        opencode.upstream.managed = managed;
        opencode
    }

    /// Returns the workspace's OpenCode as it would be with another connection.
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

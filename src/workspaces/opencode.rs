//! What a workspace says about its OpenCode.

use std::path::PathBuf;

use super::Workspace;
use crate::opencode::Place;

/// Where a workspace's OpenCode is, and which of its directories are the workspace's.
#[derive(Clone, Debug)]
pub struct Opencode {
    /// Its address and credential.
    pub place: Place,
    /// The directory that it is told; everything that clients name must lie in it. `None` for a remote workspace that
    /// leaves it to its server.
    pub directory: Option<PathBuf>,
    /// It sees the same files as we do.
    pub is_here: bool,
}

impl Workspace {
    /// As of now.
    pub fn opencode(&self) -> Opencode {
        let record = self.record();
        let configured = self.configured.as_ref();
        let is_here = configured.is_none_or(|configured| configured.workspace_type != "remote");
        let own = || is_here.then(|| record.shown.path.clone());
        let named = configured.and_then(|configured| configured.directory.clone());
        Opencode {
            place: Place {
                workspace: record.shown.name.as_str().to_owned(),
                base_url: configured.and_then(|configured| configured.base_url.clone()),
                username: configured.and_then(|configured| configured.opencode_username.clone()),
                password: configured.and_then(|configured| configured.opencode_password.clone()),
            },
            directory: named.or_else(own).map(PathBuf::from),
            is_here,
        }
    }
}

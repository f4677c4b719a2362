//! A workspace's files, for whoever reads and writes them from outside of its commands: the only way to them.

use std::path::Path;

use super::{Lifecycle, site};
use crate::base::{Code, Error, Result};
use crate::store::beneath::Root;
use crate::workspaces::{Workspace, WorkspaceKind, WorkspaceStatus};

impl Lifecycle {
    /// The folder of a host workspace, opened without waiting for a file system; `None` where that cannot be.
    pub fn mounted_files(&self, workspace: &Workspace) -> Option<Root> {
        let record = workspace.record();
        let host = record.view.workspace_type == WorkspaceKind::Host;
        host.then(|| Root::open_cached(Path::new(&record.view.path)))?
    }

    /// The folder of a host workspace, or a container's root. The workload can change everything in it at any moment:
    /// nothing there is opened but beneath what this returns.
    ///
    /// # Errors
    /// `NotReady` for a container that was not built; `Internal` when a host workspace's folder is gone.
    pub fn files(&self, workspace: &Workspace) -> Result<Root> {
        let record = workspace.record();
        if record.view.workspace_type == WorkspaceKind::Host {
            return Root::open(Path::new(&record.view.path));
        }
        if !self.has_root(workspace, &record) {
            let message = match record.view.status {
                WorkspaceStatus::Building => {
                    "The container has no files yet; wait for its build to end: GET …/build/events"
                }
                _ => "The container has no files yet; build it with POST /api/workspaces/:id/build",
            };
            return Err(Error::new(Code::NotReady, message));
        }
        self.roots.files(&site(workspace, &record))
    }
}

//! Opens a workspace's files for the server's own use. All other modules open a workspace's files through this one.

use std::path::Path;

use super::{Lifecycle, site};
use crate::base::{Code, Error, Result};
use crate::store::beneath::Root;
use crate::workspaces::{Workspace, WorkspaceKind, WorkspaceStatus};

impl Lifecycle {
    /// Opens the folder of a host workspace, but only if this does not have to wait for a file system.
    pub fn mounted_files(&self, workspace: &Workspace) -> Option<Root> {
        let record = workspace.record();
        let host = record.view.workspace_type == WorkspaceKind::Host;
        host.then(|| Root::open_cached(Path::new(&record.view.path)))?
    }

    /// Opens the folder of a host workspace, or a container's root. **Invariant:** the workload can change any entry
    /// at any moment, so callers open files only beneath the returned root.
    ///
    /// # Errors
    /// Fails with `NotReady` for a container that was not built, or with `Internal` if a host workspace's folder no
    /// longer exists.
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

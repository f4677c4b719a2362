//! Deletes workspaces. A deletion first hides the workspace, then ends its processes, then moves its files into the
//! trash with one rename.

use std::path::Path;

use uuid::Uuid;

use super::{END_RUNS_TIMEOUT, Lifecycle, site};
use crate::base::thread::lock;
use crate::base::{Code, Error, Result};
use crate::store::tree;
use crate::workspaces::{Workspace, WorkspaceKind};

impl Lifecycle {
    /// Deletes a workspace with its own files and no others. The folder of a host workspace is kept if berth did not
    /// create it.
    ///
    /// # Errors
    /// Fails with `DefaultWorkspace`, `WorkspaceNotFound` or `MountedInside`. After an error the workspace is
    /// unchanged, except that its commands were stopped.
    pub fn delete(&self, id: Uuid) -> Result<()> {
        let workspace = self.registry.get(id)?;
        workspace.begin_delete()?;
        let deleted = self.delete_after_mark(&workspace);
        if deleted.is_err() {
            workspace.abandon_delete();
        }
        self.empty_trash();
        deleted
    }

    fn delete_after_mark(&self, workspace: &Workspace) -> Result<()> {
        let record = workspace.record();
        let root = Path::new(&record.view.path);
        let container = record.view.workspace_type == WorkspaceKind::Container;
        for folder in [workspace.folder()].into_iter().chain(container.then_some(root)) {
            if let Some(mount) = tree::mounts_below(folder)?.first() {
                return Err(Error::new(
                    Code::MountedInside,
                    format!("{} is mounted inside the workspace; unmount it first", mount.display()),
                ));
            }
        }
        self.end_job(workspace.id(), END_RUNS_TIMEOUT)?;
        if !self.runs.end_all(workspace.id(), END_RUNS_TIMEOUT) {
            return Err(Error::internal("A command in the workspace could not be stopped"));
        }
        self.runs.forget_all(workspace.id());
        self.engine.remove(&workspace.machine_name());
        let group = lock(&self.host_groups).remove(&workspace.id());
        drop(group);
        if container && !record.own_folder {
            let site = site(workspace, &record);
            self.roots.sweep(&site)?;
            self.roots.remove_home(&site)?;
            // Earlier versions stored the build log at this path.
            let _ = std::fs::remove_file(format!("{}.build.log", record.view.path));
        }
        self.registry.discard(workspace)?;
        self.roots.forget(&site(workspace, &record));
        Ok(())
    }
}

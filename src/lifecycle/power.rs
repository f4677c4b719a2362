//! Starts and stops containers on demand.

use uuid::Uuid;

use super::{END_RUNS_TIMEOUT, Lifecycle};
use crate::base::{Code, Error, Result};
use crate::containers::container::ContainerStatus;
use crate::workspaces::{WorkspaceKind, WorkspaceRecord};

impl Lifecycle {
    /// Starts a workspace's container, if it is not running. Commands also start the container automatically.
    ///
    /// # Errors
    /// Fails with `NotAContainer`, `NotReady` or `WorkspaceNotFound`, or with `ContainerStopped` and the last output
    /// of nspawn.
    pub fn start(&self, id: Uuid) -> Result<ContainerStatus> {
        let workspace = self.registry.get(id)?;
        let record = workspace.record();
        check_container(&record)?;
        super::commands::check_ready(&record)?;
        let machine = self.machine(&workspace, &record)?;
        machine.ensure_running()?;
        Ok(machine.status())
    }

    /// Ends all commands and terminals in a workspace's container, then the container. The next command starts the
    /// container again.
    ///
    /// # Errors
    /// Fails with `NotAContainer` or `WorkspaceNotFound`, or with `BuildRunning` while a build or init script uses the
    /// container.
    pub fn stop(&self, id: Uuid) -> Result<ContainerStatus> {
        let workspace = self.registry.get(id)?;
        check_container(&workspace.record())?;
        if self.jobs.has(id) {
            return Err(Error::new(
                Code::BuildRunning,
                "A build or init script of the workspace is running; wait for it to end, or delete the workspace",
            ));
        }
        if !self.runs.end_all(id, END_RUNS_TIMEOUT) {
            return Err(Error::internal("A command in the workspace could not be stopped"));
        }
        self.engine.stop_container(&workspace.machine_name());
        Ok(self.engine.status(&workspace.machine_name()))
    }
}

fn check_container(record: &WorkspaceRecord) -> Result<()> {
    if record.view.workspace_type == WorkspaceKind::Container {
        return Ok(());
    }
    Err(Error::new(Code::NotAContainer, "Only a container workspace can be started and stopped"))
}

//! Checks and starts terminals in a workspace.

use std::sync::Arc;

use uuid::Uuid;

use super::commands::{check_ready, cwd_inside};
use super::{Lifecycle, variables};
use crate::base::Result;
use crate::base::shares::ShareHolder;
use crate::proc::pty::WindowSize;
use crate::terminals::{Terminal, TerminalKind, TerminalRequest, TerminalSpec, TerminalWatcher, Terminals};
use crate::workspaces::{Workspace, WorkspaceKind};

impl Lifecycle {
    pub fn terminals(&self) -> &Terminals {
        &self.terminals
    }

    /// Checks a request for a terminal. Returns a closure that starts the terminal on a worker, since the container
    /// may have to be started first.
    ///
    /// # Errors
    /// Fails with status 400 and the name of the invalid field, with `NotReady`, or with `WorkspaceNotFound`.
    pub fn start_terminal(
        self: &Arc<Self>,
        id: Uuid,
        request: &TerminalRequest,
        party: ShareHolder,
    ) -> Result<impl FnOnce() -> Result<Arc<Terminal>> + Send + use<>> {
        let workspace = self.registry.get(id)?;
        let plan = self.plan(&workspace, request, TerminalKind::Terminal)?;
        let lifecycle = self.clone();
        Ok(move || lifecycle.start_planned(&workspace, plan, party))
    }

    /// Like [`Lifecycle::start_terminal`], for the shell of the credential `owner`. The closure returns the
    /// credential's running shell, or starts a shell of this size.
    ///
    /// # Errors
    /// Fails for the same reasons as [`Lifecycle::start_terminal`].
    pub fn start_shell(
        self: &Arc<Self>,
        id: Uuid,
        owner: String,
        size: WindowSize,
        party: ShareHolder,
    ) -> Result<impl FnOnce() -> Result<TerminalWatcher> + Send + use<>> {
        let workspace = self.registry.get(id)?;
        let request =
            TerminalRequest { cols: Some(size.cols), rows: Some(size.rows), ..TerminalRequest::default() };
        let plan = self.plan(&workspace, &request, TerminalKind::Shell)?;
        let lifecycle = self.clone();
        let start = move |lifecycle: &Lifecycle| lifecycle.start_planned(&workspace, plan, party);
        Ok(move || lifecycle.terminals.shell((id, owner), || start(&lifecycle)))
    }

    fn plan(
        &self,
        workspace: &Workspace,
        request: &TerminalRequest,
        kind: TerminalKind,
    ) -> Result<TerminalSpec> {
        let record = workspace.record();
        check_ready(&record)?;
        let container = record.view.workspace_type == WorkspaceKind::Container;
        let home = if container { "/root" } else { &self.policy.home };
        let user = self.account(workspace, &record, request.user.as_deref())?;
        let id = workspace.id().to_string();
        let place = [("WORKSPACE_ID", id.as_str()), ("WORKSPACE_NAME", record.view.name.as_str())];
        let mut plan = request.plan(home, user, &place, variables(&record), kind)?;
        if container {
            plan.command.cwd = cwd_inside(&plan.command.cwd, &record.view.path);
        }
        Ok(plan)
    }

    fn start_planned(
        &self,
        workspace: &Workspace,
        plan: TerminalSpec,
        party: ShareHolder,
    ) -> Result<Arc<Terminal>> {
        let running = self.runs.enter_terminal(workspace.id())?;
        // The terminal's run is registered, so an operation that changes the status from now on finds the run and
        // stops it.
        let record = workspace.record();
        workspace.check_alive()?;
        check_ready(&record)?;
        let launcher = self.launcher(workspace, &record)?;
        self.terminals.start(running, party, launcher.as_ref(), plan)
    }
}

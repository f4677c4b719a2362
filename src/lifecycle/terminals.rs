//! Terminals in a workspace: where they run, and that they may.

use std::sync::Arc;

use uuid::Uuid;

use super::commands::{check_ready, cwd_inside};
use super::{Lifecycle, variables};
use crate::base::Result;
use crate::base::shares::Party;
use crate::proc::pty::WindowSize;
use crate::terminals::{Terminal, TerminalKind, TerminalRequest, TerminalSpec, TerminalWatcher, Terminals};
use crate::workspaces::{Workspace, WorkspaceKind};

impl Lifecycle {
    /// All terminals.
    pub fn terminals(&self) -> &Terminals {
        &self.terminals
    }

    /// Checks a request for a terminal and returns the step that starts it, for a worker: a container may have to be
    /// started for it.
    ///
    /// # Errors
    /// 400s that name the field; `NotReady`; `WorkspaceNotFound`.
    pub fn start_terminal(
        self: &Arc<Self>,
        id: Uuid,
        request: &TerminalRequest,
        party: Party,
    ) -> Result<impl FnOnce() -> Result<Arc<Terminal>> + Send + use<>> {
        let workspace = self.registry.get(id)?;
        let plan = self.plan(&workspace, request, TerminalKind::Terminal)?;
        let lifecycle = self.clone();
        Ok(move || lifecycle.start_planned(&workspace, plan, party))
    }

    /// The same for the shell of whoever holds the credential `owner`: the one that still runs, else a new one of
    /// this size.
    ///
    /// # Errors
    /// As above.
    pub fn start_shell(
        self: &Arc<Self>,
        id: Uuid,
        owner: String,
        size: WindowSize,
        party: Party,
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
        party: Party,
    ) -> Result<Arc<Terminal>> {
        let running = self.runs.enter_terminal(workspace.id())?;
        // Now that it is entered: whoever changed the state since the check will find and end it.
        let record = workspace.record();
        workspace.check_alive()?;
        check_ready(&record)?;
        let launcher = self.launcher(workspace, &record)?;
        self.terminals.start(running, party, launcher.as_ref(), plan)
    }
}

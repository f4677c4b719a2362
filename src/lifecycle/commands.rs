//! Commands in a workspace: where they run, and that they may.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::{Lifecycle, variables};
use crate::base::{Code, Error, Result};
use crate::proc::{Cancel, Launcher};
use crate::runs::{ExecRequest, ExecResult, HostLauncher, Running, exec};
use crate::workspaces::{Kind, Record, Status, Workspace};

impl Lifecycle {
    /// Checks a command and returns the step that runs it, for a worker, and what ends it before its time.
    ///
    /// # Errors
    /// 400s that name the field; `NotReady`; `WorkspaceNotFound`.
    pub fn start_exec(
        self: &Arc<Self>,
        id: Uuid,
        request: ExecRequest,
    ) -> Result<(impl FnOnce() -> Result<ExecResult> + Send + use<>, Cancel)> {
        let workspace = self.registry.get(id)?;
        let record = workspace.record();
        check_ready(&record)?;
        let container = record.shown.workspace_type == Kind::Container;
        let home = if container { "/root" } else { &self.policy.home };
        let mut command = request.command(home, variables(&record))?;
        if container {
            command.cwd = cwd_inside(&command.cwd, &record.shown.path);
        }
        let timeout = request.timeout()?;
        let running = self.runs.enter(id)?;
        let (lifecycle, encoding, stdin) = (self.clone(), request.encoding, request.stdin);
        let cancel = running.cancel.clone();
        let work = move || {
            let running: Running = running;
            // Again, now that the run is entered: whoever changed the state since will find and end it.
            let record = workspace.record();
            workspace.check_alive()?;
            check_ready(&record)?;
            let launcher = lifecycle.launcher(&workspace, &record)?;
            let outcome = exec::run(
                launcher.as_ref(),
                &running.id.simple().to_string(),
                &command,
                stdin.map(String::into_bytes),
                lifecycle.policy.output_limit,
                timeout,
                &running.cancel,
            )?;
            Ok(ExecResult::new(outcome, encoding))
        };
        Ok((work, cancel))
    }

    pub(super) fn launcher(&self, workspace: &Workspace, record: &Record) -> Result<Box<dyn Launcher>> {
        Ok(match record.shown.workspace_type {
            Kind::Host => Box::new(HostLauncher {
                cgroups: self.engine.cgroups().clone(),
                group: self.host_group(workspace, record)?,
                folder: PathBuf::from(&record.shown.path),
            }),
            Kind::Container => Box::new(self.machine(workspace, record)?),
        })
    }
}

pub(super) fn check_ready(record: &Record) -> Result<()> {
    if record.shown.status == Status::Ready {
        return Ok(());
    }
    let status = match record.shown.status {
        Status::Pending => "Pending",
        Status::Building => "Building",
        Status::Ready | Status::Error => "Error",
    };
    Err(Error::new(
        Code::NotReady,
        format!("Container workspace is not ready (status: {status}). Build it first."),
    )
    .detail("status", status.to_ascii_lowercase()))
}

/// Absolute means inside; a path below the root as the host names it is taken too, as observed.
pub(super) fn cwd_inside(cwd: &str, root: &str) -> String {
    match Path::new(cwd).strip_prefix(root) {
        Ok(below) => format!("/{}", below.display()),
        Err(_) if cwd.starts_with('/') => cwd.to_owned(),
        Err(_) => format!("/{cwd}"),
    }
}

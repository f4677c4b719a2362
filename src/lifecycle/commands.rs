//! Checks and starts commands in a workspace.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::{Lifecycle, variables};
use crate::base::shares::ShareHolder;
use crate::base::{Code, Error, Result, limits};
use crate::proc::{Cancel, Launcher};
use crate::runs::request::LaunchPlan;
use crate::runs::run::RunOrigin;
use crate::runs::spool::OutputWriter;
use crate::runs::{ActiveRun, ExecRequest, HostLauncher, Live, Run, exec, keeper, user};
use crate::workspaces::{Workspace, WorkspaceKind, WorkspaceRecord, WorkspaceStatus};

/// A run that waits for its worker.
pub struct AcceptedRun {
    lifecycle: Arc<Lifecycle>,
    workspace: Arc<Workspace>,
    running: ActiveRun,
    writer: OutputWriter,
    window: u64,
    plan: LaunchPlan,
}

/// A started run.
pub enum StartedRun {
    /// A thread of this server must watch the run.
    Attached {
        running: ActiveRun,
        /// The writer for the run's output.
        writer: OutputWriter,
        live: Box<Live>,
    },
    /// A keeper process watches the run.
    Detached,
}

impl Lifecycle {
    /// Checks a command. Returns a closure that runs the command on a worker, and the cancellation that stops it. The
    /// caller drops the second value of the closure's result after it has sent the response.
    ///
    /// # Errors
    /// Fails with status 400 and the name of the invalid field, with `NotReady`, or with `WorkspaceNotFound`.
    pub fn start_exec(
        self: &Arc<Self>,
        id: Uuid,
        request: ExecRequest,
    ) -> Result<(impl FnOnce() -> Result<exec::FinishedExec> + Send + use<>, Cancel)> {
        request.check_exec()?;
        let workspace = self.registry.get(id)?;
        let timeout = request.exec_timeout()?;
        let kept = request.output_limit(0, self.policy.output_limit as u64)?;
        let asked = request.spec(RunOrigin::Exec, timeout);
        let encoding = request.encoding;
        let plan = self.plan_command(&workspace, request, timeout)?;
        let running = self.runs.enter_exec(id, asked)?;
        let (lifecycle, cancel) = (self.clone(), running.run.cancel.clone());
        let work = move || {
            let running: ActiveRun = running;
            let launcher = lifecycle.launcher_now(&workspace)?;
            let room = lifecycle.runs.budget();
            exec::run(launcher.as_ref(), &running.run, plan, kept as usize, encoding, room)
        };
        Ok((work, cancel))
    }

    /// Checks a run and registers it. `timeout` is its time limit.
    ///
    /// # Errors
    /// Fails with status 400 and the name of the invalid field, with `NotReady`, with `WorkspaceNotFound`, or with
    /// `DiskFull`.
    pub fn accept_run(
        self: &Arc<Self>,
        id: Uuid,
        request: ExecRequest,
        timeout: Duration,
        party: ShareHolder,
    ) -> Result<AcceptedRun> {
        request.check_run()?;
        let workspace = self.registry.get(id)?;
        let window = request.output_limit(2 * limits::PIPE_CHUNK as u64, self.policy.run_output_limit)?;
        let asked = request.spec(RunOrigin::Run, timeout);
        let mut plan = self.plan_command(&workspace, request, timeout)?;
        plan.command.account = true;
        let (running, writer) = self.runs.enter_run(id, asked, window, party)?;
        Ok(AcceptedRun { lifecycle: self.clone(), workspace, running, writer, window, plan })
    }

    fn plan_command(
        &self,
        workspace: &Workspace,
        mut request: ExecRequest,
        timeout: Duration,
    ) -> Result<LaunchPlan> {
        let record = workspace.record();
        check_ready(&record)?;
        let container = record.view.workspace_type == WorkspaceKind::Container;
        let home = if container { "/root" } else { &self.policy.home };
        let user = self.account(workspace, &record, request.user.as_deref())?;
        let mut plan = request.plan(home, user, variables(&record), timeout)?;
        if container {
            plan.command.cwd = cwd_inside(&plan.command.cwd, &record.view.path);
        }
        Ok(plan)
    }

    /// Looks up the user of a command in the workspace's own passwd file.
    pub(super) fn account(
        &self,
        workspace: &Workspace,
        record: &WorkspaceRecord,
        user: Option<&str>,
    ) -> Result<Option<user::UserAccount>> {
        user.map(|user| user::resolve(user, self.launcher(workspace, record)?.as_ref())).transpose()
    }

    /// Checks the workspace again and returns its launcher. The caller has registered the run, so an operation that
    /// changes the status from now on finds the run and stops it.
    fn launcher_now(&self, workspace: &Workspace) -> Result<Box<dyn Launcher>> {
        let record = workspace.record();
        workspace.check_alive()?;
        check_ready(&record)?;
        self.launcher(workspace, &record)
    }

    pub(super) fn launcher(
        &self,
        workspace: &Workspace,
        record: &WorkspaceRecord,
    ) -> Result<Box<dyn Launcher>> {
        Ok(match record.view.workspace_type {
            WorkspaceKind::Host => Box::new(HostLauncher {
                cgroups: self.engine.cgroups().clone(),
                group: self.host_group(workspace, record)?,
                folder: PathBuf::from(&record.view.path),
            }),
            WorkspaceKind::Container => Box::new(self.machine(workspace, record)?),
        })
    }
}

impl AcceptedRun {
    pub fn run(&self) -> &Arc<Run> {
        &self.running.run
    }

    /// Starts the run.
    ///
    /// # Errors
    /// Fails if the run could not be started. Then no command has run, and the run is removed.
    pub fn start(self) -> Result<StartedRun> {
        let AcceptedRun { lifecycle, workspace, running, writer, window, plan } = self;
        let launcher = lifecycle.launcher_now(&workspace)?;
        if running.run.spec.detach {
            let record = workspace.record();
            let place = match record.view.workspace_type {
                WorkspaceKind::Host => keeper::LaunchTarget::Host {
                    group: lifecycle.host_group(&workspace, &record)?,
                    folder: PathBuf::from(&record.view.path),
                },
                WorkspaceKind::Container => keeper::LaunchTarget::Launcher(launcher.as_ref()),
            };
            // The keeper process writes the run's output.
            drop(writer);
            lifecycle.runs.start_kept(running, place, window, plan)?;
            return Ok(StartedRun::Detached);
        }
        let live = Live::start(launcher.as_ref(), &running.run, plan)?;
        Ok(StartedRun::Attached { running, writer, live: Box::new(live) })
    }
}

impl StartedRun {
    /// Watches an attached run on the current thread until the run ends. Does nothing for a detached run.
    pub fn watch(self) {
        if let StartedRun::Attached { running, writer, live } = self {
            live.spool_to_end(&running.run, writer);
        }
    }
}

pub(super) fn check_ready(record: &WorkspaceRecord) -> Result<()> {
    if record.view.status == WorkspaceStatus::Ready {
        return Ok(());
    }
    let status = match record.view.status {
        WorkspaceStatus::Pending => "Pending",
        WorkspaceStatus::Building => "Building",
        WorkspaceStatus::Ready | WorkspaceStatus::Error => "Error",
    };
    // The first two messages are identical to those of sandboxed.sh.
    if record.view.status == WorkspaceStatus::Building {
        let message = format!(
            "Container workspace is not ready (status: {status}). Wait for its build or init script to end: GET …/build/events"
        );
        return Err(Error::new(Code::NotReady, message).detail("status", "building"));
    }
    let init = record.view.error_message.as_ref().is_some_and(|message| message.starts_with("Init script"));
    let cure = if init { " Or run its init script again: POST …/rerun-init." } else { "" };
    Err(Error::new(
        Code::NotReady,
        format!("Container workspace is not ready (status: {status}). Build it first.{cure}"),
    )
    .detail("status", status.to_ascii_lowercase()))
}

/// Returns the path of a working directory inside the container. A path on the host below the container's root is
/// translated, as in sandboxed.sh; any other absolute path already is a path inside the container.
pub(super) fn cwd_inside(cwd: &str, root: &str) -> String {
    match Path::new(cwd).strip_prefix(root) {
        Ok(below) => format!("/{}", below.display()),
        Err(_) if cwd.starts_with('/') => cwd.to_owned(),
        Err(_) => format!("/{cwd}"),
    }
}

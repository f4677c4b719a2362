//! Opens a workspace's files for the project API.

use super::Lifecycle;
use crate::base::{Result, limits};
use crate::proc::tools;
use crate::proc::{Cancel, Exit, ProcessOutcome, Spec};
use crate::project::ProjectSite;
use crate::project::watch::SiteProvider;
use crate::workspaces::{Workspace, WorkspaceKind};

impl Lifecycle {
    /// Opens a workspace's files for one call. A caller that waits for an approval opens the files again afterwards.
    ///
    /// # Errors
    /// Fails for the same reasons as [`Lifecycle::files`].
    pub fn project_site(&self, workspace: &Workspace) -> Result<ProjectSite> {
        let record = workspace.record();
        let container = record.view.workspace_type == WorkspaceKind::Container;
        let shown = if container { String::new() } else { record.view.path.trim_end_matches('/').to_owned() };
        let folder = (!container).then(|| record.view.path.clone().into());
        let state = workspace.folder().to_owned();
        Ok(ProjectSite::new(workspace.openwork_id.clone(), self.files(workspace)?, shown, folder, state))
    }

    /// Stops a timer of systemd's user instance, if such an instance runs for the server's user.
    pub fn stop_timer(&self, timer: &str) {
        let runtime = format!("/run/user/{}", rustix::process::geteuid().as_raw());
        let running = std::path::Path::new(&runtime).join("systemd/private").exists();
        let Some(systemctl) = tools::find("systemctl").filter(|_| running) else { return };
        let spec = Spec::new(systemctl)
            .args(["--user", "disable", "--now", "--", timer])
            .envs(&[("XDG_RUNTIME_DIR".to_owned(), runtime)]);
        let place = (self.engine.cgroups(), "systemctl");
        let stopped = Cancel::new().and_then(|cancel| {
            spec.run_for_output(place, limits::PROBE_OUTPUT_BYTES, limits::PROBE, &cancel)
        });
        match stopped {
            Ok((ProcessOutcome::Exited(Exit::Code(0)), _)) => {}
            Ok((ended, printed)) => log::warn!("{timer} was not stopped: {ended:?} {}", printed.trim()),
            Err(error) => log::warn!("{timer} was not stopped: {error}"),
        }
    }
}

impl SiteProvider for Lifecycle {
    fn open(&self, id: &str) -> Option<ProjectSite> {
        let workspace = self.registry.by_openwork_id(id).ok()?;
        self.project_site(&workspace).ok()
    }
}

//! A workspace's files as the project API takes them.

use super::Lifecycle;
use crate::base::{Result, limits};
use crate::proc::tools;
use crate::proc::{Cancel, Ended, Exit, Spec};
use crate::project::Site;
use crate::project::watch::Sites;
use crate::workspaces::{Kind, Workspace};

impl Lifecycle {
    /// For one call: work that waits for a person opens them again.
    ///
    /// # Errors
    /// As [`Lifecycle::files`].
    pub fn project_site(&self, workspace: &Workspace) -> Result<Site> {
        let record = workspace.record();
        let container = record.shown.workspace_type == Kind::Container;
        let shown =
            if container { String::new() } else { record.shown.path.trim_end_matches('/').to_owned() };
        let folder = (!container).then(|| record.shown.path.clone().into());
        let state = workspace.folder().to_owned();
        Ok(Site::new(workspace.openwork_id.clone(), self.files(workspace)?, shown, folder, state))
    }

    /// Stops a timer of systemd's user instance, where one runs for the server's user.
    pub fn stop_timer(&self, timer: &str) {
        let runtime = format!("/run/user/{}", rustix::process::geteuid().as_raw());
        let running = std::path::Path::new(&runtime).join("systemd/private").exists();
        let Some(systemctl) = tools::find("systemctl").filter(|_| running) else { return };
        let spec = Spec::new(systemctl)
            .args(["--user", "disable", "--now", "--", timer])
            .envs(&[("XDG_RUNTIME_DIR".to_owned(), runtime)]);
        let place = (self.engine.cgroups(), "systemctl");
        let stopped = Cancel::new()
            .and_then(|cancel| spec.printed(place, limits::PROBE_OUTPUT_BYTES, limits::PROBE, &cancel));
        match stopped {
            Ok((Ended::Exited(Exit::Code(0)), _)) => {}
            Ok((ended, printed)) => log::warn!("{timer} was not stopped: {ended:?} {}", printed.trim()),
            Err(error) => log::warn!("{timer} was not stopped: {error}"),
        }
    }
}

impl Sites for Lifecycle {
    fn open(&self, id: &str) -> Option<Site> {
        let workspace = self.registry.by_openwork_id(id).ok()?;
        self.project_site(&workspace).ok()
    }
}

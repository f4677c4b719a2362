//! Repairs workspaces at the start of the server, after an earlier server process: adopts containers that are still
//! running, ends all other processes, and reports interrupted jobs.

use super::build::finish_job;
use super::{Lifecycle, init, site};
use crate::base::Result;
use crate::workspaces::{Workspace, WorkspaceJob, WorkspaceKind};

impl Lifecycle {
    pub(super) fn repair(&self) {
        let mut adopted = Vec::new();
        for workspace in self.registry.all() {
            match self.adopt(&workspace) {
                Ok(true) => adopted.push(workspace.machine_name()),
                Ok(false) => {}
                Err(error) => log::warn!("container of workspace {} is stopped: {error}", workspace.id()),
            }
        }
        let kept = self.runs.kept_groups().into_iter().map(|(_, group)| group);
        self.engine.cgroups().sweep(&adopted.into_iter().chain(kept).collect::<Vec<_>>());
        // Networks are removed after the cgroups, whose processes used them.
        self.engine.networks().sweep();
        self.runs.resume_kept(|id| {
            let workspace = self.registry.get(id).ok()?;
            let record = workspace.record();
            (record.view.workspace_type == WorkspaceKind::Container)
                .then(|| self.machine(&workspace, &record).ok()?.hold())?
        });
        for workspace in self.registry.all() {
            if let Err(error) = self.repair_one(&workspace) {
                log::error!("workspace {} could not be repaired: {error}", workspace.id());
            }
        }
    }

    /// Adopts a workspace's running container, unless the container's root may be incomplete. Returns whether a
    /// container was adopted.
    fn adopt(&self, workspace: &Workspace) -> Result<bool> {
        let record = workspace.record();
        if record.view.workspace_type != WorkspaceKind::Container
            || matches!(
                record.job,
                Some(WorkspaceJob::Build { .. } | WorkspaceJob::Restore | WorkspaceJob::Clone)
            )
        {
            return Ok(false);
        }
        let kept = self.detached(workspace);
        self.engine
            .adopt(self.container_spec(workspace, &record)?, &|group| kept.iter().any(|kept| kept == group))
    }

    /// Returns the cgroups of detached commands in a workspace's container, in the form `runs/NUMBER`.
    pub(super) fn detached(&self, workspace: &Workspace) -> Vec<String> {
        let inside = format!("{}/", workspace.machine_name());
        let groups = self.runs.kept_groups().into_iter().filter(|(id, _)| *id == workspace.id());
        groups.filter_map(|(_, group)| Some(group.strip_prefix(&inside)?.to_owned())).collect()
    }

    /// Returns whether a container keeps running after the server ends, for its detached commands.
    pub(super) fn runs_on(&self, machine: &str) -> bool {
        let all = self.registry.all();
        let workspace = all.iter().find(|workspace| workspace.machine_name() == machine);
        workspace.is_some_and(|workspace| !self.detached(workspace).is_empty())
    }

    fn repair_one(&self, workspace: &Workspace) -> Result<()> {
        let record = workspace.record();
        if record.view.workspace_type != WorkspaceKind::Container {
            return Ok(());
        }
        let site = site(workspace, &record);
        self.roots.sweep(&site)?;
        let Some(job) = record.job else { return Ok(()) };
        if job == WorkspaceJob::Clone {
            // The client that requested the clone got no response, so the new workspace is deleted.
            return self.delete(workspace.id());
        }
        // A copy of a root has no disk limit while it is made, so the limit is set here.
        self.bound_disk(workspace, &record);
        let what = match job {
            // A root exists completely or not at all. It may be the old root, so it is kept.
            WorkspaceJob::Build { .. } => "the build; build it again",
            WorkspaceJob::RerunInit => "the init script; run it again",
            WorkspaceJob::Restore | WorkspaceJob::Clone => {
                "the restore of a snapshot, and the files are either those of before or those of the snapshot; \
                 restore again, or build to continue with the current files"
            }
        };
        if let Ok(root) = self.files(workspace) {
            for script in [init::SCRIPT, init::FRAGMENTS] {
                let _ = root.remove(script);
            }
        }
        finish_job(workspace, Some(format!("Interrupted: the server stopped during {what}")));
        Ok(())
    }
}

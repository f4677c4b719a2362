//! What a start does about work that a crash or restart cut off.

use std::path::Path;

use super::build::{finish, remove_in_place, staging_of};
use super::{Lifecycle, init};
use crate::base::Result;
use crate::store::beneath::Root;
use crate::workspaces::{Job, Kind, Workspace};

impl Lifecycle {
    pub(super) fn repair(&self) {
        for workspace in self.registry.all() {
            if let Err(error) = self.repair_one(&workspace) {
                log::error!("workspace {} could not be repaired: {error}", workspace.id());
            }
        }
    }

    fn repair_one(&self, workspace: &Workspace) -> Result<()> {
        let record = workspace.record();
        if record.shown.workspace_type != Kind::Container {
            return Ok(());
        }
        let root = Path::new(&record.shown.path);
        remove_in_place(&staging_of(root, workspace.id()))?;
        let Some(job) = record.job else { return Ok(()) };
        let what = match job {
            Job::Build { fresh } => {
                // A fresh root was this build's own: nobody has worked in it yet. One that was there before stays.
                if fresh {
                    self.give_up(root)?;
                }
                "the build; build it again"
            }
            Job::RerunInit => "the init script; run it again",
        };
        if let Ok(root) = Root::open(root) {
            let _ = root.remove(init::SCRIPT);
        }
        finish(workspace, Some(format!("Interrupted: the server stopped during {what}")));
        Ok(())
    }
}

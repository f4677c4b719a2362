//! A workspace's files as the project API takes them.

use super::Lifecycle;
use crate::base::Result;
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
}

impl Sites for Lifecycle {
    fn open(&self, id: &str) -> Option<Site> {
        let workspace = self.registry.by_openwork_id(id).ok()?;
        self.project_site(&workspace).ok()
    }
}

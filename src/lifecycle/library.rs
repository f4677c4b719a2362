//! Creates workspaces from the library's templates, and syncs the library's skills and tools into one workspace, or
//! into all workspaces that use a changed entry.

use std::sync::Arc;

use uuid::Uuid;

use super::Lifecycle;
use super::build::BuildRequest;
use crate::base::shares::ShareHolder;
use crate::base::thread::lock;
use crate::base::{Code, Error, Result};
use crate::images::Pull;
use crate::library::Library;
use crate::library::Template;
use crate::library::watch::LibraryChange;
use crate::store::allowlist::{self, MountRequest};
use crate::workspaces::create::CreateWorkspace;
use crate::workspaces::sync::{self, SyncOutcome};
use crate::workspaces::{Workspace, WorkspaceKind, WorkspaceRecord, WorkspaceStatus, WorkspaceView};

/// The maximum number of template names listed in an error.
const TEMPLATES_IN_ERROR: usize = 100;

impl Lifecycle {
    pub fn library(&self) -> &Library {
        &self.library
    }

    /// Creates a workspace from a request. With a template the workspace is a container whose build begins at once,
    /// with `pull`.
    ///
    /// # Errors
    /// Fails with status 400 and the name of the invalid field, or with `NotInLibrary` for an unknown template. If the
    /// request is refused, no files are left behind.
    pub fn create(
        self: &Arc<Self>,
        mut request: CreateWorkspace,
        pull: Pull,
    ) -> Result<Arc<WorkspaceRecord>> {
        self.choose_image(&mut request.fields)?;
        let name = request.template.as_deref().map(str::trim).filter(|name| !name.is_empty());
        let template = name.map(|name| self.template(name)).transpose()?;
        let mounts =
            request.fields.mounts.as_ref().or(template.as_ref().map(|template| &template.fields.mounts));
        self.check_mounts(mounts.map_or(&[], Vec::as_slice))?;
        let workspace = self.registry.create(request, template.as_ref())?;
        self.sync_or_warn(&workspace);
        if template.is_none() {
            return Ok(workspace.record());
        }
        let asked = BuildRequest { base: None, rebuild: false, pull };
        // The party is always an owner, because only owner tokens without limits can create workspaces.
        self.start_build(workspace.id(), asked, ShareHolder::OWNER).inspect_err(|_| {
            if let Err(error) = self.delete(workspace.id()) {
                log::error!("workspace {}: {error}", workspace.id());
            }
        })
    }

    /// Returns the template, or an error that lists the existing templates.
    fn template(&self, name: &str) -> Result<Template> {
        self.library.template(name).map_err(|error| {
            if error.code() != Code::NotInLibrary {
                return error;
            }
            let all = self.library.templates().unwrap_or_default();
            let names: Vec<String> =
                all.into_iter().map(|listed| listed.name).take(TEMPLATES_IN_ERROR).collect();
            error.detail("templates", names)
        })
    }

    /// Checks that a container may mount these host folders now. Each start of the container repeats this check.
    pub(super) fn check_mounts(&self, mounts: &[MountRequest]) -> Result<()> {
        allowlist::check(mounts)?;
        self.engine.allowlist().open(mounts).map(drop)
    }

    /// Syncs skills and tools into a workspace.
    ///
    /// # Errors
    /// Fails with `WorkspaceNotFound` or `BuildRunning`, with `NotReady` for a container without a root, or if the
    /// workspace's files cannot be read or written.
    pub fn sync(&self, id: Uuid) -> Result<Arc<WorkspaceRecord>> {
        let workspace = self.registry.get(id)?;
        let record = workspace.record();
        if record.view.status == WorkspaceStatus::Building {
            return Err(Error::new(Code::BuildRunning, "A build is running, and it syncs the workspace too"));
        }
        if record.view.workspace_type == WorkspaceKind::Container && !self.has_root(&workspace, &record) {
            return Err(Error::new(Code::NotReady, "Container doesn't exist yet. Build it first."));
        }
        self.sync_files(&workspace, &record)?;
        Ok(workspace.record())
    }

    /// Syncs the workspaces that use a changed entry, one after the other, while `go_on` returns true.
    pub fn library_changed(&self, changed: &LibraryChange, go_on: impl Fn() -> bool) {
        let workspaces = self.registry.all();
        let concerned = workspaces.iter().filter(|workspace| affects(changed, &workspace.record().view));
        concerned.take_while(|_| go_on()).for_each(|workspace| self.sync_or_warn(workspace));
    }

    /// Syncs a workspace and logs a failure. A workspace that is being built is skipped, because the build itself
    /// syncs it after it has created the root.
    pub(super) fn sync_or_warn(&self, workspace: &Workspace) {
        let record = workspace.record();
        let shown = &record.view;
        let container = shown.workspace_type == WorkspaceKind::Container;
        if container && (shown.status == WorkspaceStatus::Building || !self.has_root(workspace, &record)) {
            return;
        }
        if let Err(error) = self.sync_files(workspace, &record) {
            log::warn!("workspace {}: skills and tools were not written: {error}", workspace.id());
        }
    }

    pub(super) fn sync_files(&self, workspace: &Workspace, record: &WorkspaceRecord) -> Result<SyncOutcome> {
        let _syncing = lock(&self.syncing);
        workspace.check_alive()?;
        sync::sync(&self.library, &record.view, workspace.folder(), || self.files(workspace))
    }
}

/// Returns whether a change of the library affects the files of a workspace.
fn affects(changed: &LibraryChange, shown: &WorkspaceView) -> bool {
    let all = shown.id.is_nil() && (shown.skills.is_empty() || shown.tools.is_empty());
    match changed {
        LibraryChange::Agents => sync::configures(shown),
        LibraryChange::Everything => all || sync::configures(shown),
        LibraryChange::Named(names) => {
            all || shown.skills.iter().chain(&shown.tools).any(|used| names.contains(used))
        }
    }
}

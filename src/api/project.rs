//! Parts that the project routes share: the workspace in the path, its files, and previews of writes.

use std::sync::Arc;

use super::Ctx;
use crate::access::ApprovalMode;
use crate::access::approval_request::FileChange;
use crate::base::Result;
use crate::http::Request;
use crate::lifecycle::Lifecycle;
use crate::project::ProjectSite;
use crate::project::preview::ApprovedChanges;
use crate::workspaces::Workspace;

/// Returns the workspace in the path, and starts watching its files for changes.
pub(super) fn workspace(ctx: &Ctx, request: &Request) -> Result<Arc<Workspace>> {
    let workspace = ctx.lifecycle.registry().by_openwork_id(request.param("id"))?;
    ctx.project.watch(&workspace.openwork_id);
    Ok(workspace)
}

/// Opens the files of the workspace in the path.
pub(super) fn site(ctx: &Ctx, request: &Request) -> Result<ProjectSite> {
    let workspace = workspace(ctx, request)?;
    open(&ctx.lifecycle, &workspace)
}

/// Opens a workspace's files for one call. A write opens them again after it has been approved.
pub(super) fn open(lifecycle: &Lifecycle, workspace: &Workspace) -> Result<ProjectSite> {
    lifecycle.project_site(workspace)
}

/// The files that a write would change, and the plan that binds the write to them. Empty in automatic mode, which
/// needs no preview.
pub(super) struct Preview {
    pub(super) changes: Option<Vec<FileChange>>,
    pub(super) plan: Option<ApprovedChanges>,
}

/// Runs `write` on a site that records the changes instead of making them.
pub(super) fn preview<R>(
    ctx: &Ctx,
    workspace: &Workspace,
    write: impl FnOnce(&ProjectSite) -> Result<R>,
) -> Result<Preview> {
    preview_on(ctx, || open(&ctx.lifecycle, workspace), write)
}

/// Runs `write` like [`preview`], on the site that `open` returns.
pub(super) fn preview_on<R>(
    ctx: &Ctx,
    open: impl FnOnce() -> Result<ProjectSite>,
    write: impl FnOnce(&ProjectSite) -> Result<R>,
) -> Result<Preview> {
    if ctx.approval.mode == ApprovalMode::Auto {
        return Ok(Preview { changes: None, plan: None });
    }
    let site = open()?.for_preview();
    write(&site)?;
    let (changes, plan) = site.into_preview();
    Ok(Preview { changes: Some(changes), plan: Some(plan) })
}

/// Opens a workspace's files for the write that was previewed, and for no other.
pub(super) fn open_for(
    lifecycle: &Lifecycle,
    workspace: &Workspace,
    plan: Option<ApprovedChanges>,
) -> Result<ProjectSite> {
    Ok(open(lifecycle, workspace)?.restricted_to(plan))
}

/// Returns whether the query has `includeGlobal=true`. Any other value counts as false, as in the OpenWork server.
pub(super) fn include_global(request: &Request) -> bool {
    request.query("includeGlobal").as_deref() == Some("true")
}

//! What the routes of the project API have in common: the workspace of the path, its files, what a list answers.

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

/// The workspace that the path names; what others change in it is noticed from now on.
pub(super) fn workspace(ctx: &Ctx, request: &Request) -> Result<Arc<Workspace>> {
    let workspace = ctx.lifecycle.registry().by_openwork_id(request.param("id"))?;
    ctx.project.watch(&workspace.openwork_id);
    Ok(workspace)
}

/// The workspace's files.
pub(super) fn site(ctx: &Ctx, request: &Request) -> Result<ProjectSite> {
    let workspace = workspace(ctx, request)?;
    open(&ctx.lifecycle, &workspace)
}

/// The files of a workspace, for one call: work that waits for a person opens them again.
pub(super) fn open(lifecycle: &Lifecycle, workspace: &Workspace) -> Result<ProjectSite> {
    lifecycle.project_site(workspace)
}

/// What a write would change, and the plan that binds it to that; nothing of it in automatic mode, where nobody is asked.
pub(super) struct Preview {
    pub(super) changes: Option<Vec<FileChange>>,
    pub(super) plan: Option<ApprovedChanges>,
}

/// Runs `write` on a site that notes what would be written.
pub(super) fn preview<R>(
    ctx: &Ctx,
    workspace: &Workspace,
    write: impl FnOnce(&ProjectSite) -> Result<R>,
) -> Result<Preview> {
    preview_on(ctx, || open(&ctx.lifecycle, workspace), write)
}

/// The same for a site that `open` opens.
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

/// The files of a workspace for the write of a preview: for that one only.
pub(super) fn open_for(
    lifecycle: &Lifecycle,
    workspace: &Workspace,
    plan: Option<ApprovedChanges>,
) -> Result<ProjectSite> {
    Ok(open(lifecycle, workspace)?.restricted_to(plan))
}

/// `?includeGlobal=true`; anything else is no, as observed.
pub(super) fn include_global(request: &Request) -> bool {
    request.query("includeGlobal").as_deref() == Some("true")
}

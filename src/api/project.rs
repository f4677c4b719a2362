//! What the routes of the project API have in common: the workspace of the path, its files, what a list answers.

use std::sync::Arc;

use super::Ctx;
use crate::base::Result;
use crate::http::Request;
use crate::lifecycle::Lifecycle;
use crate::project::Site;
use crate::workspaces::Workspace;

/// The workspace that the path names; what others change in it is noticed from now on.
pub(super) fn workspace(ctx: &Ctx, request: &Request) -> Result<Arc<Workspace>> {
    let workspace = ctx.lifecycle.registry().by_openwork_id(request.param("id"))?;
    ctx.project.watch(&workspace.openwork_id);
    Ok(workspace)
}

/// The workspace's files.
pub(super) fn site(ctx: &Ctx, request: &Request) -> Result<Site> {
    let workspace = workspace(ctx, request)?;
    open(&ctx.lifecycle, &workspace)
}

/// The files of a workspace, for one call: work that waits for a person opens them again.
pub(super) fn open(lifecycle: &Lifecycle, workspace: &Workspace) -> Result<Site> {
    lifecycle.project_site(workspace)
}

/// `?includeGlobal=true`; anything else is no, as observed.
pub(super) fn include_global(request: &Request) -> bool {
    request.query("includeGlobal").as_deref() == Some("true")
}

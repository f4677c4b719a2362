//! What the routes of the project API have in common: the workspace of the path, its files, what a list answers.

use std::sync::Arc;

use super::Ctx;
use crate::base::Result;
use crate::http::Request;
use crate::lifecycle::Lifecycle;
use crate::project::Site;
use crate::workspaces::{Kind, Workspace};

/// The workspace that the path names.
pub(super) fn workspace(ctx: &Ctx, request: &Request) -> Result<Arc<Workspace>> {
    ctx.lifecycle.registry().by_openwork_id(request.param("id"))
}

/// The workspace's files.
pub(super) fn site(ctx: &Ctx, request: &Request) -> Result<Site> {
    let workspace = workspace(ctx, request)?;
    open(&ctx.lifecycle, &workspace)
}

/// The files of a workspace, for one call: work that waits for a person opens them again.
pub(super) fn open(lifecycle: &Lifecycle, workspace: &Workspace) -> Result<Site> {
    let record = workspace.record();
    let container = record.shown.workspace_type == Kind::Container;
    Ok(Site {
        id: workspace.openwork_id.clone(),
        root: lifecycle.files(workspace)?,
        shown: if container { String::new() } else { record.shown.path.trim_end_matches('/').to_owned() },
        folder: (!container).then(|| record.shown.path.clone().into()),
    })
}

/// `?includeGlobal=true`; anything else is no, as observed.
pub(super) fn include_global(request: &Request) -> bool {
    request.query("includeGlobal").as_deref() == Some("true")
}

//! The OpenCode that the server runs: brings its supervisor together with the events, the audit log and the containers.

use std::path::Path;
use std::sync::Arc;

use crate::api::{Ctx, managed};
use crate::base::Result;
use crate::host::{Change, Plan, Supervised, Surroundings};
use crate::lifecycle::sandbox::Sandbox;
use crate::opencode::Managed;
use crate::proc::Cgroups;

/// Runs the OpenCode of the plan; each change is an event, a line of the audit log and one of the server's own log.
pub(super) fn supervise(
    plan: Plan,
    managed: Arc<Managed>,
    ctx: &Arc<Ctx>,
    cgroups: Cgroups,
    data_dir: &Path,
) -> Result<Supervised> {
    let tokens = [ctx.credentials.client_token(), ctx.credentials.host_token()];
    let told = ctx.clone();
    let tell = move |change: &Change| managed::changed(&told, change);
    let sandbox =
        plan.sandbox_spec(managed.memory_bytes()).map(|spec| Sandbox::new(ctx.lifecycle.clone(), spec));
    let surroundings = Surroundings {
        cgroups,
        sandbox,
        upstreams: ctx.upstreams.clone(),
        folder: data_dir.join("host"),
        secrets: tokens.into_iter().map(str::to_owned).collect(),
        tell: Box::new(tell),
    };
    Supervised::start(plan, managed, surroundings)
}

//! The managed OpenCode: connects its supervisor with the events, the audit log and the containers.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::api::{Ctx, managed};
use crate::base::thread::{JoinOnDrop, spawn};
use crate::base::{Result, limits};
use crate::host::engine::{self, EngineSandbox};
use crate::host::{
    Enclosure, OpencodeChange, OpencodePlan, SandboxPlan, SupervisorContext, SupervisorHandle,
};
use crate::lifecycle::sandbox::Sandbox;
use crate::opencode::Managed;
use crate::proc::Cgroups;

/// Runs the OpenCode of `plan`; each change of its state becomes an event, an audit line and a log line.
pub(super) fn supervise(
    plan: OpencodePlan,
    managed: Arc<Managed>,
    ctx: &Arc<Ctx>,
    cgroups: Cgroups,
    (data_dir, image_timeout): (&Path, Duration),
    stop_server: Box<dyn Fn() + Send>,
) -> Result<SupervisorHandle> {
    let tokens = [ctx.credentials.client_token(), ctx.credentials.host_token()];
    let told = ctx.clone();
    let tell = move |change: &OpencodeChange| managed::changed(&told, change);
    let folder = data_dir.join("host");
    let enclosure = match (&plan.sandbox, plan.sandbox_spec(managed.memory_bytes())) {
        (Some(SandboxPlan::Engine(engine)), _) => {
            let own = ctx.lifecycle.own_program()?;
            let timeout = plan.start_timeout + image_timeout;
            let engine =
                EngineSandbox::new((**engine).clone(), cgroups.clone(), folder.clone(), own, timeout);
            Some(Enclosure::Engine(Box::new(engine)))
        }
        (_, Some(spec)) => Some(Enclosure::Berth(Sandbox::new(ctx.lifecycle.clone(), spec))),
        (_, None) => None,
    };
    let surroundings = SupervisorContext {
        cgroups,
        enclosure,
        stop_server,
        upstreams: ctx.upstreams.clone(),
        folder,
        secrets: tokens.into_iter().map(str::to_owned).collect(),
        tell: Box::new(tell),
    };
    SupervisorHandle::start(plan, managed, surroundings)
}

/// Removes the container that a killed server has left in an engine, on a separate thread. If `plan` uses a container,
/// the plan removes the old container itself.
pub(super) fn sweep(
    plan: Option<&OpencodePlan>,
    data_dir: &Path,
    cgroups: &Cgroups,
) -> Result<Option<JoinOnDrop>> {
    let own = plan.is_some_and(|plan| matches!(plan.sandbox, Some(SandboxPlan::Engine(_))));
    let folder = data_dir.join("host");
    if own || !engine::is_left(&folder) {
        return Ok(None);
    }
    let cgroups = cgroups.clone();
    spawn("sandbox-sweep".into(), limits::STACK, move || engine::sweep(&folder, &cgroups)).map(Some)
}

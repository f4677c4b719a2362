//! A trial of all parts together: a temporary engine starts a container in a scratch directory and runs a command
//! in it.

use std::sync::Arc;
use std::time::Instant;

use super::{Check, ScratchFolder, Subject, is_root};
use crate::base::ids::Network;
use crate::base::{At, Code, Error, Result, limits};
use crate::containers::AGENT;
use crate::containers::Engine;
use crate::containers::container::ContainerSpec;
use crate::containers::network::NetworkConfig;
use crate::images::Images;
use crate::proc::spawn::{dev_null, pipe};
use crate::proc::tools;
use crate::proc::{
    CommandSpec, Exit, Launcher as _, Limits, OutputCapture, ProcessIo, ProcessOutcome, Stdio, c_string, pump,
};
use crate::roots::Roots;

/// Checks that a container starts and runs a command.
pub(super) fn container(subject: &Subject, scratch: &ScratchFolder) -> Check {
    let name = "container";
    if !is_root() {
        return Check::warn(name, "not tried without root", "run berth doctor as root");
    }
    if tools::find("systemd-nspawn").is_none() {
        return Check::fail(name, "not tried: programs are missing", "install them first (see above)");
    }
    if subject.cancel.is_cancelled() {
        return Check::warn(name, "not tried: interrupted", "run berth doctor again");
    }
    let started = Instant::now();
    match run_in_one(subject, scratch) {
        Ok(()) => Check::ok(name, format!("started and answered in {} ms", started.elapsed().as_millis())),
        Err(error) => Check::fail(
            name,
            format!("A container cannot be started: {error}"),
            "fix the problems above first; then run berth serve --verbose and read its log",
        ),
    }
}

fn run_in_one(subject: &Subject, scratch: &ScratchFolder) -> Result<()> {
    let runtime = scratch.folder("runtime")?;
    let root = scratch.folder("runtime/root")?;
    for folder in ["usr", "etc", "var", "tmp", "proc", "sys", "dev", "run", "root"] {
        std::fs::create_dir(root.join(folder)).at("make", folder)?;
    }
    let data_dir = scratch.folder("engine")?;
    let images = Images::open(&data_dir.join("images"), subject.sources.clone(), subject.cgroups.clone())?;
    let roots = Roots::open(&data_dir, Arc::new(images), subject.cgroups.clone(), None)?;
    let engine = Engine::new(
        subject.cgroups.clone(),
        &data_dir,
        roots,
        NetworkConfig::default(),
        subject.allowlist.clone(),
    )?;
    let id = uuid::Uuid::new_v4().simple().to_string();
    let machine = engine.container(ContainerSpec {
        machine_name: format!("berth-doctor-{}", &id[..12]),
        host_name: "doctor".into(),
        root,
        runtime,
        agent: engine.agent_binary()?,
        network: Network::None,
        mounts: Vec::new(),
        limits: Limits::default(),
        tmpfs_bytes: None,
        idle_timeout: None,
    })?;
    // Run the agent's binary, the only program that certainly exists. /proc/1/exe would not do: no process inside
    // can open it.
    let text = |text: &str| c_string(text, Code::Internal, "argument");
    let command = CommandSpec {
        attempts: vec![vec![text(AGENT)?, text("--version")?]],
        env: Vec::new(),
        cwd: "/".into(),
        limits: None,
        tty: false,
        user: None,
        account: false,
        patience: None,
    };
    let (stdout, stdout_child) = pipe()?;
    let (stderr, stderr_child) = pipe()?;
    let stdio = Stdio { stdin: dev_null()?, stdout: stdout_child, stderr: stderr_child };
    let (mut out, mut err) =
        (OutputCapture::new(limits::PROBE_OUTPUT_BYTES), OutputCapture::new(limits::PROBE_OUTPUT_BYTES));
    let mut process = machine.launch("doctor", &command, stdio)?;
    let io = ProcessIo { stdin: None, stdout, stderr, out: &mut out, err: &mut err };
    let ended = pump(process.as_mut(), io, limits::PROBE, &subject.cancel)?;
    drop(process);
    engine.stop_all(&|_| false);
    let said = out.finish().into_text();
    if ended == ProcessOutcome::Exited(Exit::Code(0)) && said.trim() == env!("CARGO_PKG_VERSION") {
        return Ok(());
    }
    Err(Error::internal(format!("its command ended with {ended:?}: {said}{}", err.finish().into_text())))
}

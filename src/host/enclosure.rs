//! The place where OpenCode runs: the host, a container of berth, or a container of another engine. A start in any
//! of these places yields a process, its two output streams, and a handle to end it from other threads.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::process::Signal;

use super::OpencodePlan;
use super::engine::{EngineSandbox, HOME, RemoteControl};
use super::output::is_exposed;
use crate::base::{Code, Error, Result};
use crate::lifecycle::sandbox::{FOLDER, PROGRAM, Sandbox};
use crate::opencode::Managed;
use crate::opencode::managed::ROUTED;
use crate::proc::spawn::{PATH, dev_null, pipe};
use crate::proc::{
    Cancel, Cgroups, CommandSpec, Limits, Process, SignalHandle, SignalTarget, Spec, Stdio, c_string,
};

/// The container in which OpenCode runs, if it does not run on the host.
pub enum Enclosure {
    /// A container of berth.
    Berth(Sandbox),
    /// A container of Docker or another engine.
    Engine(Box<EngineSandbox>),
}

/// A started OpenCode process.
pub(super) struct LaunchedOpencode {
    pub(super) process: Box<dyn Process>,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    pub(super) ender: ProcessEnder,
    /// PID of OpenCode on this host; `None` if the host cannot see the process.
    pub(super) pid: Option<i32>,
}

/// A handle to end OpenCode from any thread.
#[derive(Clone)]
pub(super) enum ProcessEnder {
    Here(SignalHandle),
    There(RemoteControl),
}

impl ProcessEnder {
    /// Sends SIGTERM to OpenCode and its children.
    pub(super) fn terminate(&self) {
        match self {
            ProcessEnder::Here(reach) => reach.signal(Signal::TERM, SignalTarget::Group),
            ProcessEnder::There(control) => control.terminate(),
        }
    }

    /// Kills OpenCode and its children.
    pub(super) fn kill(&self) {
        match self {
            ProcessEnder::Here(reach) => reach.signal(Signal::KILL, SignalTarget::Group),
            ProcessEnder::There(control) => control.kill(),
        }
    }
}

/// Starts OpenCode in the place that `enclosure` describes; `None` means the host.
pub(super) fn launch(
    plan: &OpencodePlan,
    managed: &Managed,
    enclosure: Option<&Enclosure>,
    cgroups: &Cgroups,
    stop: &Cancel,
) -> Result<LaunchedOpencode> {
    let here = |process: Box<dyn Process>, stdout: OwnedFd, stderr: OwnedFd| {
        let reach =
            process.signal_handle().ok_or_else(|| Error::internal("a process that cannot be signalled"))?;
        Ok(LaunchedOpencode {
            pid: Some(reach.pid),
            ender: ProcessEnder::Here(reach),
            process,
            stdout,
            stderr,
        })
    };
    match enclosure {
        None => {
            let (stdio, stdout, stderr) = streams()?;
            here(on_host(plan, managed, cgroups, stdio)?, stdout, stderr)
        }
        Some(Enclosure::Berth(sandbox)) => {
            sandbox.prepare(stop)?;
            let (stdio, stdout, stderr) = streams()?;
            here(in_container(plan, managed, sandbox, stdio)?, stdout, stderr)
        }
        Some(Enclosure::Engine(sandbox)) => {
            managed.set_route(sandbox.prepare(stop)?);
            let ran = sandbox.launch(plan.arguments("127.0.0.1", "0"), env_inside(plan, managed, HOME))?;
            let ender = ProcessEnder::There(ran.process.control());
            let process = Box::new(ran.process);
            Ok(LaunchedOpencode { process, stdout: ran.stdout, stderr: ran.stderr, ender, pid: ran.pid })
        }
    }
}

fn streams() -> Result<(Stdio, OwnedFd, OwnedFd)> {
    let (stdout, stdout_child) = pipe()?;
    let (stderr, stderr_child) = pipe()?;
    Ok((Stdio { stdin: dev_null()?, stdout: stdout_child, stderr: stderr_child }, stdout, stderr))
}

fn credential(managed: &Managed) -> [(String, String); 2] {
    let (username, password) = managed.credential();
    [("OPENCODE_SERVER_USERNAME", username), ("OPENCODE_SERVER_PASSWORD", password)]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
}

/// Starts OpenCode on the host, in its own cgroup.
fn on_host(
    plan: &OpencodePlan,
    managed: &Managed,
    cgroups: &Cgroups,
    stdio: Stdio,
) -> Result<Box<dyn Process>> {
    let path = format!("opencode/{}", managed.state().starts);
    let limits = Limits { memory_bytes: managed.memory_bytes(), ..cgroups.capacity().container_limits() };
    let enforced = cgroups.enforcement();
    let limits = Limits {
        swap_bytes: limits.swap_bytes.filter(|_| enforced.swap_bytes.enforced),
        pids: limits.pids.filter(|_| enforced.pids.enforced),
        ..limits
    };
    let group = cgroups.group_with_limits(&path, Some(&limits))?;
    let child = Spec::bare(&plan.program, &plan.folder)
        .args(plan.arguments("127.0.0.1", &plan.port.to_string()))
        .envs(&plan.env)
        .envs(&credential(managed))
        .start(stdio, group)?;
    Ok(Box::new(child))
}

/// Starts OpenCode in a container of berth, in which the host's directories and programs do not exist.
fn in_container(
    plan: &OpencodePlan,
    managed: &Managed,
    sandbox: &Sandbox,
    stdio: Stdio,
) -> Result<Box<dyn Process>> {
    let text = |text: &str| c_string(text, Code::Internal, "argument");
    let mut argv = vec![text(PROGRAM)?];
    for word in plan.arguments("0.0.0.0", "0") {
        argv.push(text(&word)?);
    }
    let mut env = Vec::new();
    for (name, value) in env_inside(plan, managed, "/root") {
        env.push(text(&format!("{name}={value}"))?);
    }
    let command = CommandSpec {
        attempts: vec![argv],
        env,
        cwd: FOLDER.to_owned(),
        limits: None,
        tty: false,
        user: None,
        account: true,
        patience: None,
    };
    sandbox.launch(&uuid::Uuid::new_v4().to_string(), &command, stdio)
}

/// Returns OpenCode's environment in a container.
fn env_inside(plan: &OpencodePlan, managed: &Managed, home: &str) -> Vec<(String, String)> {
    let user = if home == "/root" { "root" } else { "opencode" };
    let own = [("HOME", home), ("USER", user), ("PATH", PATH)];
    let own = own.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let passed = plan.env.iter().filter(|(name, _)| !is_of_the_host(name)).cloned();
    passed.chain(own).chain(credential(managed)).collect()
}

/// Returns whether an environment variable has a meaning only on the host.
pub fn is_of_the_host(name: &str) -> bool {
    ["HOME", "PATH", "USER", "LOGNAME", "SHELL", "TMPDIR"].contains(&name) || name.starts_with("XDG_")
}

/// Returns the URL under which the server reaches OpenCode. `said` is the address that OpenCode printed.
pub(super) fn reached(enclosure: Option<&Enclosure>, said: SocketAddr) -> Result<String, String> {
    match enclosure {
        Some(Enclosure::Berth(sandbox)) => match sandbox.address() {
            Ok(ip) => Ok(format!("http://{}", SocketAddr::new(ip, said.port()))),
            Err(error) => Err(error.to_string()),
        },
        Some(Enclosure::Engine(_)) => Ok(format!("http://{ROUTED}:{}", said.port())),
        None if is_exposed(said) => Err(format!("it listens on {said}, which other machines can reach")),
        None => Ok(format!("http://{said}")),
    }
}

impl Enclosure {
    /// Returns a socket that becomes readable when the container has ended; `None` if the container outlives
    /// OpenCode.
    pub(super) fn lease(&self) -> Option<Arc<UnixStream>> {
        match self {
            Enclosure::Berth(_) => None,
            Enclosure::Engine(sandbox) => sandbox.lease(),
        }
    }

    /// Returns whether a user stopped the container through its engine.
    pub(super) fn was_stopped(&self) -> bool {
        match self {
            Enclosure::Berth(_) => false,
            Enclosure::Engine(sandbox) => sandbox.was_stopped(),
        }
    }

    /// Ends the container; does nothing for a container that outlives the server.
    pub(super) fn end(&self) {
        if let Enclosure::Engine(sandbox) = self {
            sandbox.end();
        }
    }
}

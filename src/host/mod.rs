//! The OpenCode process that the server runs itself: `opencode serve`, in its own cgroup with a memory limit,
//! supervised and restarted when it exits. In reading order: `supervise` (its life cycle), `enclosure` (the place
//! where it runs), `engine` (containers of Docker and other engines), `output` (its log, and the address that it
//! prints). The module `opencode` forwards clients' calls to the process; both modules share
//! [`crate::opencode::Managed`].
//!
//! **Invariant:** OpenCode never gets one of this server's tokens, and does not outlive a server that shuts down.
//! Processes that a killed server left are in its cgroup tree; the next start kills all of them that it does not
//! adopt.
//!
//! Threads: `opencode`, and `opencode-output` for each process. Locks: the current process, and those of
//! [`crate::opencode::Managed`]; leaves.

mod enclosure;
pub mod engine;
mod output;
mod supervise;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::base::thread::{JoinOnDrop, lock, spawn};
use crate::base::{Result, limits};
use crate::lifecycle::sandbox::{FOLDER, SandboxSpec};
use crate::opencode::{Managed, Upstreams};
use crate::proc::{Cancel, Cgroups, Limits};
use crate::store::allowlist::{MountGrant, MountRequest};
use crate::store::file;
pub use enclosure::Enclosure;
use enclosure::ProcessEnder;
pub use enclosure::is_of_the_host;
use engine::EnginePlan;

/// Whether OpenCode is restarted after it exits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// Restart until OpenCode has exited [`MAX_FAILURES`] times within [`FAILURE_WINDOW`].
    OnFailure,
    /// Always restart.
    Always,
    /// Never restart.
    Never,
}

/// Number of exits within [`FAILURE_WINDOW`] after which OpenCode counts as failed.
pub const MAX_FAILURES: usize = 5;
/// Period in which exits are counted.
pub const FAILURE_WINDOW: Duration = Duration::from_secs(300);
/// Maximum delay before a restart.
pub const MAX_RESTART_DELAY: Duration = Duration::from_secs(30);

/// The settings with which OpenCode runs.
#[derive(Clone)]
pub struct OpencodePlan {
    /// Absolute path of OpenCode's program.
    pub program: PathBuf,
    /// Working directory of OpenCode: the first workspace.
    pub folder: PathBuf,
    /// Port on which OpenCode listens; 0 selects any free port.
    pub port: u16,
    /// Environment of OpenCode, without its credential.
    pub env: Vec<(String, String)>,
    /// User name for basic authentication at OpenCode.
    pub username: String,
    /// Password for basic authentication at OpenCode; `None` selects a random one.
    pub password: Option<String>,
    /// Whether the password came from a flag or the environment, so that other programs may know it.
    pub password_is_shared: bool,
    /// Memory limit of OpenCode and its children; `None` selects half of the machine's memory.
    pub memory_bytes: Option<u64>,
    /// When OpenCode is restarted.
    pub restart: Restart,
    /// Time limit of one start.
    pub start_timeout: Duration,
    /// Log level of OpenCode: DEBUG, INFO, WARN or ERROR.
    pub log_level: String,
    /// The container in which OpenCode runs; `None` for the host.
    pub sandbox: Option<SandboxPlan>,
}

/// The settings of the container in which OpenCode runs.
#[derive(Clone, Debug)]
pub enum SandboxPlan {
    /// A container of berth.
    Berth(BerthSandbox),
    /// A container of Docker or another engine.
    Engine(Box<EnginePlan>),
}

/// The settings of a container of berth.
#[derive(Clone, Debug)]
pub struct BerthSandbox {
    /// An image by name or ID, or the name of a distribution.
    pub image: String,
    /// Mounts of host directories besides the workspace, and of the directory with their mount points.
    pub mounts: Vec<MountRequest>,
    /// The directory in the data directory that contains the mount points.
    pub extra: Option<PathBuf>,
    pub cpus: Option<f64>,
    /// Limit of processes and threads in the container.
    pub pids: Option<u64>,
    /// Whether to mount the workspace even if the allowlist denies it.
    pub insist: bool,
}

impl std::fmt::Debug for OpencodePlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Plan({})", self.program.display())
    }
}

/// A change of OpenCode's state, for events and the audit log.
#[derive(Clone, Debug)]
pub struct OpencodeChange {
    /// Name of the new state: `starting`, `running`, `ended`, `failed` or `stopped`.
    pub state: &'static str,
    /// The change in one line for users, without secrets.
    pub summary: String,
    pub pid: Option<i32>,
    /// Version of OpenCode, if it is known.
    pub version: Option<String>,
}

/// The services of the server that the supervisor uses.
pub struct SupervisorContext {
    /// Cgroups of the server, in which OpenCode gets its own.
    pub cgroups: Cgroups,
    /// The container in which OpenCode runs; `None` for the host.
    pub enclosure: Option<Enclosure>,
    /// Called to stop the server.
    pub stop_server: Box<dyn Fn() + Send>,
    /// Connections to OpenCode, for health checks.
    pub upstreams: Arc<Upstreams>,
    /// Directory of OpenCode's log.
    pub folder: PathBuf,
    /// The server's tokens, which must not appear in the log.
    pub secrets: Vec<String>,
    /// Called on each change of OpenCode's state.
    pub tell: Box<dyn Fn(&OpencodeChange) + Send>,
}

/// The handle of the current process, through which other threads can kill it at once.
type CurrentProcess = Arc<Mutex<Option<ProcessEnder>>>;

/// The supervisor's thread. Dropping it ends OpenCode and its children.
pub struct SupervisorHandle {
    stop: Cancel,
    current: CurrentProcess,
    _thread: JoinOnDrop,
}

impl OpencodePlan {
    /// Returns the state that the supervisor and the callers of OpenCode share.
    ///
    /// # Errors
    /// `Config` for a memory limit that this machine cannot enforce; an error when the kernel has no random bytes.
    pub fn managed(&self, cgroups: &Cgroups) -> Result<Managed> {
        let password = match &self.password {
            Some(password) => password.clone(),
            None => crate::access::secret::random_hex::<32>()?,
        };
        let directory = self.sandbox.as_ref().map(|_| FOLDER.to_owned());
        let managed = |memory| {
            let credential = (self.username.clone(), password);
            Managed::new(credential, self.password_is_shared, memory, directory)
        };
        if let Some(SandboxPlan::Engine(engine)) = &self.sandbox {
            return managed(Some(engine.memory_bytes));
        }
        let wanted = Limits { memory_bytes: Some(self.memory_limit(cgroups)), ..Limits::default() };
        let missing = cgroups.enforcement().missing(&wanted);
        if let (Some(_), Some((_, why))) = (self.memory_bytes, missing.first()) {
            let problem = format!("this machine cannot enforce a memory limit: {why}");
            return Err(crate::base::Error::config("--opencode-memory", problem));
        }
        managed(wanted.memory_bytes.filter(|_| missing.is_empty()))
    }

    /// Returns the settings of OpenCode's container if it is a container of berth.
    pub fn sandbox_spec(&self, memory_bytes: Option<u64>) -> Option<SandboxSpec> {
        let Some(SandboxPlan::Berth(berth)) = &self.sandbox else { return None };
        Some(SandboxSpec {
            image: berth.image.clone(),
            folder: real(&self.folder),
            program: real(&self.program),
            mounts: berth.mounts.clone(),
            memory_bytes,
            cpus: berth.cpus,
            pids: berth.pids,
        })
    }

    /// Returns the arguments of OpenCode's command line.
    fn arguments(&self, host: &str, port: &str) -> Vec<String> {
        let level = &self.log_level;
        let words = ["serve", "--hostname", host, "--port", port, "--print-logs", "--log-level", level];
        words.map(str::to_owned).to_vec()
    }

    /// Returns the paths that the container may mount in addition to those on the allowlist.
    pub fn granted(&self) -> Vec<MountGrant> {
        let insist = match &self.sandbox {
            Some(SandboxPlan::Berth(berth)) => berth.insist,
            Some(SandboxPlan::Engine(_)) | None => false,
        };
        self.sandbox_spec(None).map_or_else(Vec::new, |spec| {
            let extra = match &self.sandbox {
                Some(SandboxPlan::Berth(berth)) => berth.extra.clone(),
                Some(SandboxPlan::Engine(_)) | None => None,
            };
            let folder = MountGrant { path: spec.folder, writable: true, force: insist };
            let mut all = vec![folder, MountGrant { path: spec.program, writable: false, force: false }];
            all.extend(extra.map(|path| MountGrant { path, writable: false, force: true }));
            all
        })
    }

    /// Returns the memory limit of OpenCode and its children.
    pub fn memory_limit(&self, cgroups: &Cgroups) -> u64 {
        self.memory_bytes.unwrap_or(cgroups.capacity().memory_bytes / 2)
    }
}

/// Resolves symbolic links. Returns a missing path unchanged; opening it later reports the error.
fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// Returns the path of OpenCode's log in a data directory.
pub fn log_file(data_dir: &Path) -> PathBuf {
    data_dir.join("host").join(output::LOG)
}

impl SupervisorHandle {
    /// Starts OpenCode in the background; `managed` receives its state.
    ///
    /// # Errors
    /// When the log's directory cannot be created, or a thread cannot be started.
    pub fn start(
        plan: OpencodePlan,
        managed: Arc<Managed>,
        surroundings: SupervisorContext,
    ) -> Result<SupervisorHandle> {
        file::create_dir_private(&surroundings.folder)?;
        let stop = Cancel::new()?;
        let current = CurrentProcess::default();
        let supervisor =
            supervise::Supervisor::new(plan, managed, surroundings, stop.clone(), current.clone());
        let thread = spawn("opencode".into(), limits::STACK, move || supervisor.run())?;
        Ok(SupervisorHandle { stop, current, _thread: thread })
    }

    /// Returns a function that kills OpenCode and its children, for a server that exits at once.
    pub fn killer(&self) -> impl FnOnce() + Send + use<> {
        let (stop, current) = (self.stop.clone(), self.current.clone());
        move || {
            stop.cancel();
            if let Some(ender) = lock(&current).as_ref() {
                ender.kill();
            }
        }
    }

    /// Requests the end of OpenCode without waiting for it.
    pub fn stop_soon(&self) {
        self.stop.cancel();
    }
}

impl Drop for SupervisorHandle {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

//! The OpenCode that the server runs itself: `opencode serve`, in its own cgroup with a memory limit, supervised and
//! restarted when it exits. In reading order: `supervise` (its life cycle), `enclosure` (where it runs), `engine`
//! (containers of Docker and other engines), `output` (its log, and the address it prints). `opencode` sends calls to
//! it; both share [`crate::opencode::Managed`].
//!
//! **Invariant:** OpenCode never gets one of this server's tokens, and does not outlive a server that shuts down.
//! Processes left by a killed server are in its cgroup tree; the next start ends all of them that it does not adopt.
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

/// When OpenCode is restarted after it exits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// Until it has exited [`MAX_FAILURES`] times within [`FAILURE_WINDOW`].
    OnFailure,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// This many exits within [`FAILURE_WINDOW`] are a failure.
pub const MAX_FAILURES: usize = 5;
/// The window in which exits are counted.
pub const FAILURE_WINDOW: Duration = Duration::from_secs(300);
/// The longest delay before a restart.
pub const MAX_RESTART_DELAY: Duration = Duration::from_secs(30);

/// How to run OpenCode.
#[derive(Clone)]
pub struct OpencodePlan {
    /// An absolute path.
    pub program: PathBuf,
    /// Its working directory: the first workspace.
    pub folder: PathBuf,
    /// The port on which it listens; 0: any free port.
    pub port: u16,
    /// Its environment, without its credential.
    pub env: Vec<(String, String)>,
    /// User name for basic authentication.
    pub username: String,
    /// Password for basic authentication; random if none was supplied.
    pub password: Option<String>,
    /// The password came from a flag or the environment.
    pub password_is_shared: bool,
    /// The memory limit for it and its children; by default half of the machine's memory.
    pub memory_bytes: Option<u64>,
    /// When to restart it.
    pub restart: Restart,
    /// The time limit of a start.
    pub start_timeout: Duration,
    /// The log level: DEBUG, INFO, WARN or ERROR.
    pub log_level: String,
    /// The container in which it runs; `None` for the host.
    pub sandbox: Option<SandboxPlan>,
}

/// The container in which OpenCode runs.
#[derive(Clone, Debug)]
pub enum SandboxPlan {
    /// A container of berth.
    Berth(BerthSandbox),
    /// A container of Docker or another engine.
    Engine(Box<EnginePlan>),
}

/// A container of berth.
#[derive(Clone, Debug)]
pub struct BerthSandbox {
    /// An image by name or id, or a distribution.
    pub image: String,
    /// Host folders besides the workspace, and the folder with their mount points.
    pub mounts: Vec<MountRequest>,
    /// The folder with the mount points, in the data folder.
    pub extra: Option<PathBuf>,
    pub cpus: Option<f64>,
    /// The limit of processes and threads.
    pub pids: Option<u64>,
    /// Mount the workspace even if the allowlist denies it.
    pub insist: bool,
}

impl std::fmt::Debug for OpencodePlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Plan({})", self.program.display())
    }
}

/// A state change, for events and the audit log.
#[derive(Clone, Debug)]
pub struct OpencodeChange {
    /// The new state: `starting`, `running`, `ended`, `failed` or `stopped`.
    pub state: &'static str,
    /// One line for users, without secrets.
    pub summary: String,
    pub pid: Option<i32>,
    /// Its version, if known.
    pub version: Option<String>,
}

/// The server's services for the supervisor.
pub struct SupervisorContext {
    /// The parent of its cgroup.
    pub cgroups: Cgroups,
    /// The container in which it runs.
    pub enclosure: Option<Enclosure>,
    /// Stops the server.
    pub stop_server: Box<dyn Fn() + Send>,
    /// Connections to it.
    pub upstreams: Arc<Upstreams>,
    /// The folder of its log.
    pub folder: PathBuf,
    /// The server's tokens, which must not appear in the log.
    pub secrets: Vec<String>,
    /// Called on each change.
    pub tell: Box<dyn Fn(&OpencodeChange) + Send>,
}

/// The current process, for ending it at once.
type CurrentProcess = Arc<Mutex<Option<ProcessEnder>>>;

/// Runs the supervisor. Dropping it ends OpenCode and its children.
pub struct SupervisorHandle {
    stop: Cancel,
    current: CurrentProcess,
    _thread: JoinOnDrop,
}

impl OpencodePlan {
    /// The initial state for callers.
    ///
    /// # Errors
    /// `Config` for a memory limit that this machine cannot enforce; an error if the kernel has no random bytes.
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

    /// The settings of its container, if it runs in one of berth.
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

    /// The arguments of OpenCode's command line.
    fn arguments(&self, host: &str, port: &str) -> Vec<String> {
        let level = &self.log_level;
        let words = ["serve", "--hostname", host, "--port", port, "--print-logs", "--log-level", level];
        words.map(str::to_owned).to_vec()
    }

    /// The paths that its container may mount besides the folders of the allowlist.
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

    /// The memory limit for it and its children.
    pub fn memory_limit(&self, cgroups: &Cgroups) -> u64 {
        self.memory_bytes.unwrap_or(cgroups.capacity().memory_bytes / 2)
    }
}

/// Resolves symbolic links. A missing path is returned unchanged, and refused when it is opened.
fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// The path of its log in the data folder.
pub fn log_file(data_dir: &Path) -> PathBuf {
    data_dir.join("host").join(output::LOG)
}

impl SupervisorHandle {
    /// Starts OpenCode in the background; `managed` has its state.
    ///
    /// # Errors
    /// If the log's folder cannot be created, or a thread cannot be started.
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

    /// Kills it and its children, for a server that exits at once.
    pub fn killer(&self) -> impl FnOnce() + Send + use<> {
        let (stop, current) = (self.stop.clone(), self.current.clone());
        move || {
            stop.cancel();
            if let Some(ender) = lock(&current).as_ref() {
                ender.kill();
            }
        }
    }

    /// Stops it without waiting.
    pub fn stop_soon(&self) {
        self.stop.cancel();
    }
}

impl Drop for SupervisorHandle {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

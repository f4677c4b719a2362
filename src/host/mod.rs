//! The OpenCode that the server runs itself: `opencode serve`, in a cgroup and with a memory limit of its own, watched and
//! started again when it ends. In reading order: `supervise` (its life), `enclosure` (where it runs), `engine` (containers of
//! Docker and others), `output` (its log, and where it says that it listens). How calls reach it is `opencode`'s business; [`crate::opencode::Managed`] is what both share.
//!
//! **Invariant:** it never gets a token of ours, and nothing of it outlives a server that ends. What a killed server
//! leaves is in the server's cgroup tree, whose next start ends everything that nobody takes over.
//!
//! Threads: `opencode`, and `opencode-output` for each process. Locks: the
//! process that runs now, and those of [`crate::opencode::Managed`]; leaves.

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

/// When an OpenCode that has ended is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// Until it has ended [`MAX_FAILURES`] times within [`FAILURE_WINDOW`].
    OnFailure,
    /// However often it ends.
    Always,
    /// Not at all.
    Never,
}

/// So many ends within [`FAILURE_WINDOW`] are a failure.
pub const MAX_FAILURES: usize = 5;
/// The time in which ends are counted.
pub const FAILURE_WINDOW: Duration = Duration::from_secs(300);
/// The longest pause before a start.
pub const MAX_RESTART_DELAY: Duration = Duration::from_secs(30);

/// How OpenCode is run.
#[derive(Clone)]
pub struct OpencodePlan {
    /// Its program, an absolute path.
    pub program: PathBuf,
    /// The folder that it is started in: the first workspace.
    pub folder: PathBuf,
    /// Where it is to listen; 0: it chooses.
    pub port: u16,
    /// Its environment, without its credential.
    pub env: Vec<(String, String)>,
    /// For basic authentication.
    pub username: String,
    /// For basic authentication; a random one if none was passed in.
    pub password: Option<String>,
    /// The password came with a flag or the environment.
    pub password_is_shared: bool,
    /// The most memory that it may use with all it starts; half of the machine's if none is named.
    pub memory_bytes: Option<u64>,
    /// What happens when it ends.
    pub restart: Restart,
    /// How long a start may take.
    pub start_timeout: Duration,
    /// What it logs: DEBUG, INFO, WARN or ERROR.
    pub log_level: String,
    /// The container that it runs in; `None`: it runs on the host.
    pub sandbox: Option<SandboxPlan>,
}

/// The container that OpenCode runs in.
#[derive(Clone, Debug)]
pub enum SandboxPlan {
    /// One of berth's own.
    Berth(BerthSandbox),
    /// One of Docker's, or of another engine.
    Engine(Box<EnginePlan>),
}

/// A container of berth's own.
#[derive(Clone, Debug)]
pub struct BerthSandbox {
    /// An image by name or id, or a distribution.
    pub image: String,
    /// Folders of the host besides the workspace, after the folder that has their mount points.
    pub mounts: Vec<MountRequest>,
    /// That folder, in the data folder.
    pub extra: Option<PathBuf>,
    /// Processors.
    pub cpus: Option<f64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// The workspace is mounted even if it is one that berth refuses.
    pub insist: bool,
}

impl std::fmt::Debug for OpencodePlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Plan({})", self.program.display())
    }
}

/// A change of its state, for events and the audit log.
#[derive(Clone, Debug)]
pub struct OpencodeChange {
    /// The word of the new state: `starting`, `running`, `ended`, `failed` or `stopped`.
    pub state: &'static str,
    /// One line for people, without secrets.
    pub summary: String,
    /// Its process, where there is one.
    pub pid: Option<i32>,
    /// Its version, once that is known.
    pub version: Option<String>,
}

/// What the supervisor needs of the server.
pub struct SupervisorContext {
    /// Where its cgroup is made.
    pub cgroups: Cgroups,
    /// The container that it runs in.
    pub enclosure: Option<Enclosure>,
    /// Has the server stop.
    pub stop_server: Box<dyn Fn() + Send>,
    /// The way to it.
    pub upstreams: Arc<Upstreams>,
    /// The folder of its log.
    pub folder: PathBuf,
    /// Tokens of the server, which must not appear in the log.
    pub secrets: Vec<String>,
    /// Is told of each change.
    pub tell: Box<dyn Fn(&OpencodeChange) + Send>,
}

/// The process that runs at this moment, for an end that cannot wait.
type CurrentProcess = Arc<Mutex<Option<ProcessEnder>>>;

/// The supervisor. Dropping it ends OpenCode with all that it started.
pub struct SupervisorHandle {
    stop: Cancel,
    current: CurrentProcess,
    _thread: JoinOnDrop,
}

impl OpencodePlan {
    /// The state that callers see, before the first start.
    ///
    /// # Errors
    /// `Config` for a memory limit that this machine cannot enforce; when the kernel has no random bytes.
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

    /// What its container is made of, if it runs in one.
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

    /// The words of OpenCode's command line.
    fn arguments(&self, host: &str, port: &str) -> Vec<String> {
        let level = &self.log_level;
        let words = ["serve", "--hostname", host, "--port", port, "--print-logs", "--log-level", level];
        words.map(str::to_owned).to_vec()
    }

    /// What its container may mount besides the folders of the allowlist.
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

    /// The most memory that it may use with all it starts.
    pub fn memory_limit(&self, cgroups: &Cgroups) -> u64 {
        self.memory_bytes.unwrap_or(cgroups.capacity().memory_bytes / 2)
    }
}

/// Without links; what does not exist stays as it is, and is refused where it is opened.
fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// Where its log is, in the data folder.
pub fn log_file(data_dir: &Path) -> PathBuf {
    data_dir.join("host").join(output::LOG)
}

impl SupervisorHandle {
    /// Starts OpenCode, and returns at once; `managed` shows how far it is.
    ///
    /// # Errors
    /// When the log's folder cannot be made, or a thread cannot be started.
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

    /// Kills it with all that it started, for a server that exits at once.
    pub fn killer(&self) -> impl FnOnce() + Send + use<> {
        let (stop, current) = (self.stop.clone(), self.current.clone());
        move || {
            stop.cancel();
            if let Some(ender) = lock(&current).as_ref() {
                ender.kill();
            }
        }
    }

    /// Has it end, without waiting for that.
    pub fn stop_soon(&self) {
        self.stop.cancel();
    }
}

impl Drop for SupervisorHandle {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

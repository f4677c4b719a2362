//! What happens to a workspace: builds, init scripts, commands, deletion. Brings together the records
//! (`workspaces`), the containers and the runs, none of which knows the others. Knows nothing of HTTP.
//!
//! Threads: `build-N`, `trash`. Locks: `builds`, `feeds` and `host_groups`, leaves; `syncing`, held while files are written.

pub mod build;
pub mod commands;
pub mod debug;
pub mod delete;
pub mod feed;
pub mod files;
mod images;
pub mod init;
mod init_help;
mod jobs;
pub mod library;
pub mod power;
pub mod project;
pub mod repair;
pub mod resources;
pub mod sandbox;
pub mod snapshots;
pub mod terminals;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use uuid::Uuid;

use crate::base::pool::Pool;
use crate::base::thread::{JoinOnDrop, lock, spawn};
use crate::base::{Result, limits};
use crate::containers::Engine;
use crate::containers::container::{Container, ContainerSpec};
use crate::events::Bus;
use crate::images::Images;
use crate::library::Library;
use crate::proc::Group;
use crate::project::trays;
use crate::roots::RootLocation;
use crate::roots::Roots;
use crate::runs::Runs;
use crate::store::beneath::Root;
use crate::terminals::Terminals;
use crate::workspaces::{Registry, Workspace, WorkspaceKind, WorkspaceRecord};

/// What the start decided about commands.
#[derive(Clone, Debug)]
pub struct CommandPolicy {
    /// HOME of host commands.
    pub home: String,
    /// Bytes kept of each stream of an exec.
    pub output_limit: usize,
    /// Bytes kept of each stream of a run.
    pub run_output_limit: u64,
    /// How long an init script may take.
    pub init_timeout: Duration,
    /// After so long without commands and terminals a container is stopped; zero: never.
    pub idle_timeout: Duration,
}

/// Everything that can happen to workspaces.
pub struct Lifecycle {
    registry: Arc<Registry>,
    engine: Engine,
    images: Arc<Images>,
    roots: Arc<Roots>,
    runs: Arc<Runs>,
    terminals: Terminals,
    library: Library,
    policy: CommandPolicy,
    /// One sync at a time: two of one workspace would undo each other.
    syncing: Mutex<()>,
    builds: Mutex<HashMap<Uuid, jobs::ActiveJob>>,
    /// The server ends, and with it what is under way.
    closing: AtomicBool,
    bus: Arc<Bus>,
    feeds: feed::BuildFeeds,
    host_groups: Mutex<HashMap<Uuid, Group>>,
    builder: Pool,
    // Closing it ends the thread; the thread is let go at exit, since what it has not removed waits for the next start.
    emptied: Option<Sender<()>>,
    trash: Option<JoinOnDrop>,
}

/// How long a deletion or rebuild waits for what it ended to be gone.
const END_RUNS_TIMEOUT: Duration = Duration::from_secs(15);

impl Lifecycle {
    /// Starts the builder and the trash's thread, and repairs what a crash left.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn new(
        registry: Arc<Registry>,
        engine: Engine,
        images: Arc<Images>,
        runs: Arc<Runs>,
        library: Library,
        bus: Arc<Bus>,
        policy: CommandPolicy,
    ) -> Result<Arc<Lifecycle>> {
        let roots = engine.roots().clone();
        // Full: somebody has asked already.
        let (emptied, wanted) = bounded(1);
        let trash = spawn("trash".into(), limits::STACK, {
            let (registry, roots) = (registry.clone(), roots.clone());
            move || {
                let mut begun = false;
                // The first time containers have been taken over, with their roots.
                for () in wanted {
                    if !std::mem::replace(&mut begun, true) {
                        sweep_inboxes(&registry, &roots);
                    }
                    roots.collect_garbage();
                    registry.empty_trash();
                }
            }
        })?;
        let builder = Pool::new("build", 0, limits::BUILD_WORKERS, limits::BUILD_QUEUE)?;
        let lifecycle = Lifecycle {
            registry,
            engine,
            images,
            roots,
            runs,
            terminals: Terminals::default(),
            library,
            policy,
            syncing: Mutex::default(),
            builds: Mutex::default(),
            closing: AtomicBool::new(false),
            bus,
            feeds: feed::BuildFeeds::default(),
            host_groups: Mutex::default(),
            builder,
            emptied: Some(emptied),
            trash: Some(trash),
        };
        lifecycle.repair();
        lifecycle.empty_trash();
        Ok(Arc::new(lifecycle))
    }

    /// The records.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The images.
    pub fn images(&self) -> &Arc<Images> {
        &self.images
    }

    /// The runs.
    pub fn runs(&self) -> &Arc<Runs> {
        &self.runs
    }

    fn empty_trash(&self) {
        if let Some(emptied) = &self.emptied {
            let _ = emptied.try_send(());
        }
    }

    /// Whether the container has a root. It appears complete, and what its workload removes of it changes nothing.
    pub(crate) fn has_root(&self, workspace: &Workspace, record: &WorkspaceRecord) -> bool {
        self.roots.kind(&site(workspace, record)).is_some()
    }

    fn machine(&self, workspace: &Workspace, record: &WorkspaceRecord) -> Result<Arc<Container>> {
        self.engine.container(self.container_spec(workspace, record)?)
    }

    fn container_spec(&self, workspace: &Workspace, record: &WorkspaceRecord) -> Result<ContainerSpec> {
        let idle_timeout =
            record.view.idle_timeout_secs.map_or(self.policy.idle_timeout, Duration::from_secs);
        Ok(ContainerSpec {
            machine_name: workspace.machine_name(),
            host_name: record.view.name.host_name(),
            root: PathBuf::from(&record.view.path),
            runtime: workspace.folder().to_owned(),
            agent: self.engine.agent_binary()?,
            network: record.view.network(),
            mounts: record.view.mounts.clone(),
            limits: self.limits_of(record),
            tmpfs_bytes: record.view.resources.and_then(|resources| resources.tmpfs_bytes),
            idle_timeout: Some(idle_timeout).filter(|timeout| !timeout.is_zero()),
        })
    }

    /// The server is about to stop.
    pub fn stop_soon(&self) {
        self.runs.announce_stop();
    }

    /// berth's own program as a file that containers can mount.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn own_program(&self) -> Result<std::path::PathBuf> {
        self.engine.agent_binary()
    }

    /// Ends the server's work: no new runs, those under way may go on until `deadline`; builds are cancelled.
    pub fn close(&self, deadline: Instant) {
        self.closing.store(true, Ordering::SeqCst);
        for build in lock(&self.builds).values() {
            build.cancel.cancel();
        }
        self.runs.close(deadline);
        self.engine.stop_all(&|name| self.runs_on(name));
        lock(&self.host_groups).clear();
        self.engine.cgroups().release();
    }
}

impl Drop for Lifecycle {
    fn drop(&mut self) {
        self.emptied = None;
        if let Some(trash) = self.trash.take() {
            trash.detach();
        }
    }
}

/// Removes half uploads that a killed server has left.
fn sweep_inboxes(registry: &Registry, roots: &Roots) {
    for workspace in registry.all() {
        let record = workspace.record();
        let site = site(&workspace, &record);
        let root = match record.view.workspace_type {
            WorkspaceKind::Host => Root::open(&site.root),
            // No root is put together just to see that there is nothing.
            WorkspaceKind::Container if roots.has_changes(&site, trays::TrayKind::Inbox.folder()) => {
                roots.files(&site)
            }
            WorkspaceKind::Container => continue,
        };
        if let Ok(root) = root {
            trays::sweep(&root);
        }
    }
}

/// In the workspace's own folder: another user may own the folder above the owner's `path`, and put a link there.
pub(crate) fn build_log_path(workspace: &Workspace) -> PathBuf {
    workspace.folder().join("root.build.log")
}

/// Where a container's root belongs.
pub(crate) fn site(workspace: &Workspace, record: &WorkspaceRecord) -> RootLocation {
    RootLocation { folder: workspace.folder().to_owned(), root: PathBuf::from(&record.view.path) }
}

/// Environment of commands in a workspace, before the request's own.
pub(crate) fn variables(record: &WorkspaceRecord) -> &BTreeMap<String, String> {
    &record.view.env_vars
}

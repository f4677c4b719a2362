//! Operations on workspaces: builds, init scripts, commands, deletion. This module combines the records
//! (`workspaces`), the containers and the runs, which do not depend on each other. It must not know HTTP.
//!
//! Threads: `build-N`, `trash`. Locks: the table of `jobs`, `feeds` and `host_groups`, all of them leaves; `syncing`,
//! held while files are written.

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

/// The number of concurrent builds. Most builds wait for the network or their init script, not for the processor.
const BUILD_WORKERS: usize = 4;
/// The maximum number of builds that wait for a worker.
const BUILD_QUEUE: usize = 256;

/// The settings for commands, which do not change after the server's start.
#[derive(Clone, Debug)]
pub struct CommandPolicy {
    /// The variable HOME of commands in host workspaces.
    pub home: String,
    /// The number of bytes that are kept of each output stream of an exec.
    pub output_limit: usize,
    /// The number of bytes that are kept of each output stream of a run.
    pub run_output_limit: u64,
    /// The time limit of init scripts.
    pub init_timeout: Duration,
    /// The time after which a container without running commands and open terminals is stopped; zero means never.
    pub idle_timeout: Duration,
}

/// The service for all operations on workspaces.
pub struct Lifecycle {
    registry: Arc<Registry>,
    engine: Engine,
    images: Arc<Images>,
    roots: Arc<Roots>,
    runs: Arc<Runs>,
    terminals: Terminals,
    library: Library,
    policy: CommandPolicy,
    /// Held during a sync. Only one sync runs at a time, because two syncs of one workspace would undo each other's
    /// changes.
    syncing: Mutex<()>,
    jobs: jobs::Jobs,
    /// Whether the server is shutting down and has cancelled all jobs.
    closing: AtomicBool,
    bus: Arc<Bus>,
    feeds: feed::BuildFeeds,
    host_groups: Mutex<HashMap<Uuid, Group>>,
    builder: Pool,
    // Closing this channel ends the trash thread. At exit the thread is detached, since the next start removes the
    // remaining trash.
    emptied: Option<Sender<()>>,
    trash: Option<JoinOnDrop>,
}

/// How long a deletion or rebuild waits until the workspace's processes have exited.
const END_RUNS_TIMEOUT: Duration = Duration::from_secs(15);

impl Lifecycle {
    /// Starts the workers and the trash thread, and repairs workspaces after a crash.
    ///
    /// # Errors
    /// Fails if a thread cannot be started.
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
        // The channel holds one request to empty the trash. If it is full, a request is already pending.
        let (emptied, wanted) = bounded(1);
        let trash = spawn("trash".into(), limits::STACK, {
            let (registry, roots) = (registry.clone(), roots.clone());
            move || {
                let mut started = false;
                // When the first request arrives, the containers of an earlier server process have been adopted with
                // their roots, so those roots are not collected.
                for () in wanted {
                    if !std::mem::replace(&mut started, true) {
                        sweep_inboxes(&registry, &roots);
                    }
                    roots.collect_garbage();
                    registry.empty_trash();
                }
            }
        })?;
        let builder = Pool::new("build", 0, BUILD_WORKERS, BUILD_QUEUE)?;
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
            jobs: jobs::Jobs::default(),
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

    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    pub fn images(&self) -> &Arc<Images> {
        &self.images
    }

    pub fn runs(&self) -> &Arc<Runs> {
        &self.runs
    }

    fn empty_trash(&self) {
        if let Some(emptied) = &self.emptied {
            let _ = emptied.try_send(());
        }
    }

    /// Returns whether the container has a root. A root appears complete, and counts as a root even if the workload
    /// removes files from it.
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

    /// Announces the server's shutdown to the runs.
    pub fn stop_soon(&self) {
        self.runs.announce_stop();
    }

    /// Returns the path of a copy of berth's own program that containers can mount.
    ///
    /// # Errors
    /// Fails if the copy cannot be written.
    pub fn own_program(&self) -> Result<std::path::PathBuf> {
        self.engine.agent_binary()
    }

    /// Shuts down: refuses new runs, lets current runs continue until `deadline`, and cancels all jobs.
    pub fn close(&self, deadline: Instant) {
        self.closing.store(true, Ordering::SeqCst);
        self.jobs.cancel_all();
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

/// Removes partial uploads that a killed server left behind.
fn sweep_inboxes(registry: &Registry, roots: &Roots) {
    for workspace in registry.all() {
        let record = workspace.record();
        let site = site(&workspace, &record);
        let root = match record.view.workspace_type {
            WorkspaceKind::Host => Root::open(&site.root),
            // Containers without changes in the inbox are skipped, because their roots would have to be mounted.
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

/// Returns the path of the build log. The log is in the workspace's own folder: the parent folder of the `path` that
/// an owner chose may belong to another user, who could put a symbolic link there.
pub(crate) fn build_log_path(workspace: &Workspace) -> PathBuf {
    workspace.folder().join("root.build.log")
}

/// Returns the paths of a container's root.
pub(crate) fn site(workspace: &Workspace, record: &WorkspaceRecord) -> RootLocation {
    RootLocation { folder: workspace.folder().to_owned(), root: PathBuf::from(&record.view.path) }
}

/// Returns the environment variables of all commands in a workspace. The variables of a request are added to them.
pub(crate) fn variables(record: &WorkspaceRecord) -> &BTreeMap<String, String> {
    &record.view.env_vars
}

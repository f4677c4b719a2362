//! All containers of this server by name, the agent's binary, and the thread that stops idle containers.
//!
//! Threads: `container-idle` and the thread of [`super::spares`]. Lock: `containers`, held only for lookups and
//! insertions.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};

use super::container::{Container, ContainerSpec, ContainerStatus, EngineContext, Notifiers};
use super::network::{NetworkConfig, Networks};
use super::spares::SpareQueue;
use crate::base::thread::{JoinOnDrop, lock, spawn};
use crate::base::{At, Error, Result, limits};
use crate::proc::{Cgroups, CurrentUsage, Limits, Usage};
use crate::roots::Roots;
use crate::store::allowlist::Allowlist;
use crate::store::file;

/// Mode of the agent's binary: executable but not readable in the container.
const AGENT_MODE: u32 = 0o711;

type ContainerMap = Arc<Mutex<HashMap<String, Arc<Container>>>>;

/// All containers of a server, by name.
pub struct Engine {
    cgroups: Cgroups,
    networks: Arc<Networks>,
    roots: Arc<Roots>,
    allowlist: Allowlist,
    data_dir: PathBuf,
    agent: OnceLock<PathBuf>,
    containers: ContainerMap,
    // Dropped before `threads`: closing the queues ends the threads.
    notifiers: Option<Notifiers>,
    threads: Vec<JoinOnDrop>,
}

impl Engine {
    /// Creates an engine without containers.
    ///
    /// # Errors
    /// When the kernel refuses to start a thread.
    pub fn new(
        cgroups: Cgroups,
        data_dir: &Path,
        roots: Arc<Roots>,
        choice: NetworkConfig,
        allowlist: Allowlist,
    ) -> Result<Engine> {
        let containers = ContainerMap::default();
        // Capacity 1: a full channel means that a check is already requested.
        let (watch, look) = bounded(1);
        let (refill, spares) = SpareQueue::start()?;
        let idle = spawn("container-idle".into(), limits::STACK, {
            let containers = containers.clone();
            move || stop_idle(&containers, &look)
        })?;
        Ok(Engine {
            allowlist,
            networks: Arc::new(Networks::new(data_dir, choice, cgroups.clone())),
            cgroups,
            roots,
            data_dir: data_dir.to_owned(),
            agent: OnceLock::new(),
            containers,
            notifiers: Some(Notifiers { spares: refill, idle_check: watch }),
            threads: vec![spares, idle],
        })
    }

    pub fn roots(&self) -> &Arc<Roots> {
        &self.roots
    }

    pub fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    /// Returns the container that `spec` describes, creating the object if needed. The first command starts the
    /// container. A running container keeps its settings until its next start.
    ///
    /// # Errors
    /// When the engine has been closed.
    pub fn container(&self, spec: ContainerSpec) -> Result<Arc<Container>> {
        let name = spec.machine_name.clone();
        let known = lock(&self.containers).get(&name).cloned();
        if let Some(container) = known {
            container.set_spec(spec);
            return Ok(container);
        }
        let notifiers =
            self.notifiers.clone().ok_or_else(|| Error::internal("The engine has been closed"))?;
        let context = EngineContext {
            cgroups: self.cgroups.clone(),
            networks: self.networks.clone(),
            roots: self.roots.clone(),
            allowlist: self.allowlist.clone(),
        };
        let container = Container::new(spec, context, notifiers);
        Ok(lock(&self.containers).entry(name).or_insert(container).clone())
    }

    /// Stops a container and removes it from the engine.
    pub fn remove(&self, name: &str) {
        let container = lock(&self.containers).remove(name);
        if let Some(container) = container {
            container.stop();
        }
    }

    /// Adopts the container that `spec` describes if an earlier server left it running. Kills the cgroups of its
    /// commands, except those whose names (`runs/NUMBER`) `keep` accepts.
    ///
    /// # Errors
    /// When the kernel refuses an operation; the container is then not adopted.
    pub fn adopt(&self, spec: ContainerSpec, keep: &dyn Fn(&str) -> bool) -> Result<bool> {
        let name = spec.machine_name.clone();
        let adopted = self.container(spec)?.adopt(keep);
        if !matches!(adopted, Ok(true)) {
            lock(&self.containers).remove(&name);
        }
        adopted
    }

    pub fn networks(&self) -> &Networks {
        &self.networks
    }

    pub fn allowlist(&self) -> &Allowlist {
        &self.allowlist
    }

    /// Stops the container with this name if it is running.
    pub fn stop_container(&self, name: &str) {
        let container = lock(&self.containers).get(name).cloned();
        if let Some(container) = container {
            container.stop();
        }
    }

    /// Runs `work` on the container's root while no process can change the root. `work` receives `true` if the
    /// container is running and frozen. If `stop` is set, stops the container even if commands are running.
    ///
    /// # Errors
    /// Errors of `work`; `Unavailable` when the container cannot be frozen.
    pub fn quiesce<R>(
        &self,
        spec: ContainerSpec,
        stop: bool,
        work: impl FnOnce(bool) -> Result<R>,
    ) -> Result<R> {
        self.container(spec)?.quiesce(stop, work)
    }

    /// Returns the state of the container with this name.
    pub fn status(&self, name: &str) -> ContainerStatus {
        let container = lock(&self.containers).get(name).cloned();
        container.map_or(ContainerStatus { state: "stopped", ..ContainerStatus::default() }, |container| {
            container.status()
        })
    }

    /// Requests a new check for idle containers after a change of idle timeouts.
    pub fn recheck_idle(&self) {
        if let Some(notifiers) = &self.notifiers {
            let _ = notifiers.idle_check.try_send(());
        }
    }

    /// Returns the current and total resource usage of a container; `None` if it is not running.
    pub fn usage(&self, name: &str) -> Option<(CurrentUsage, Usage)> {
        let container = lock(&self.containers).get(name).cloned();
        container.and_then(|container| container.usage())
    }

    /// Changes the limits of a running container. A stopped container receives its limits when it starts.
    ///
    /// # Errors
    /// `Conflict` when more is in use than the new limit allows and the kernel cannot reclaim it.
    pub fn set_limits(&self, name: &str, limits: &Limits) -> Result<()> {
        let container = lock(&self.containers).get(name).cloned();
        container.map_or(Ok(()), |container| container.set_limits(limits))
    }

    /// Stops all containers except those that `stays` accepts, which keep running for the next server.
    pub fn stop_all(&self, stays: &dyn Fn(&str) -> bool) {
        let containers: Vec<_> = lock(&self.containers).drain().collect();
        for (name, container) in containers {
            if stays(&name) {
                container.detach();
            } else {
                container.stop();
            }
        }
    }

    /// Copies this binary to the data directory and returns the copy's path. Containers bind-mount the copy, because an
    /// upgrade may replace the original while the server is running.
    ///
    /// # Errors
    /// When the copy cannot be written.
    pub fn agent_binary(&self) -> Result<PathBuf> {
        if let Some(path) = self.agent.get() {
            return Ok(path.clone());
        }
        let folder = self.data_dir.join("agent");
        let path = folder.join(format!("berth-{}", env!("CARGO_PKG_VERSION")));
        // /proc/self/exe opens the running file even if its path has been replaced (proc(5)).
        let own = std::fs::read("/proc/self/exe").at("read", "/proc/self/exe")?;
        file::create_dir_private(&folder)?;
        // The file must not be readable in the container; this protects the agent's memory ([`super::agent`]).
        let mode = path.metadata().map(|meta| meta.permissions().mode() & 0o7777);
        if mode.ok() != Some(AGENT_MODE) || std::fs::read(&path).ok().as_ref() != Some(&own) {
            file::write_atomic(&path, &own, AGENT_MODE)?;
        }
        Ok(self.agent.get_or_init(|| path).clone())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop_all(&|_| false);
        if let Some(notifiers) = self.notifiers.take() {
            notifiers.spares.close();
        }
        self.threads.clear();
    }
}

/// Body of the thread that stops idle containers. The thread sleeps until the next container may become idle.
fn stop_idle(containers: &ContainerMap, look: &Receiver<()>) {
    loop {
        let all: Vec<Arc<Container>> = lock(containers).values().cloned().collect();
        let next = all.iter().filter_map(|container| container.stop_if_idle()).min();
        drop(all);
        let asked = match next {
            Some(at) => look.recv_deadline(at.max(Instant::now())),
            None => look.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        if asked == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

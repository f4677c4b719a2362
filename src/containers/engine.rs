//! All containers of this server, by name; the agent's binary; the thread that stops what is idle.
//!
//! Threads: `container-idle`, and that of [`super::spares`]. Lock: `machines`, held only to look up or insert.

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

/// Mode of the agent's program.
const AGENT_MODE: u32 = 0o711;

type ContainerMap = Arc<Mutex<HashMap<String, Arc<Container>>>>;

/// Starts and finds containers.
pub struct Engine {
    cgroups: Cgroups,
    networks: Arc<Networks>,
    roots: Arc<Roots>,
    allowlist: Allowlist,
    data_dir: PathBuf,
    agent: OnceLock<PathBuf>,
    containers: ContainerMap,
    // Closing their queues ends the threads, so this is dropped first.
    notifiers: Option<Notifiers>,
    threads: Vec<JoinOnDrop>,
}

impl Engine {
    /// An engine that has started nothing yet.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn new(
        cgroups: Cgroups,
        data_dir: &Path,
        roots: Arc<Roots>,
        choice: NetworkConfig,
        allowlist: Allowlist,
    ) -> Result<Engine> {
        let machines = ContainerMap::default();
        // Full: somebody has asked already.
        let (watch, look) = bounded(1);
        let (refill, spares) = SpareQueue::start()?;
        let idle = spawn("container-idle".into(), limits::STACK, {
            let machines = machines.clone();
            move || stop_idle(&machines, &look)
        })?;
        Ok(Engine {
            allowlist,
            networks: Arc::new(Networks::new(data_dir, choice, cgroups.clone())),
            cgroups,
            roots,
            data_dir: data_dir.to_owned(),
            agent: OnceLock::new(),
            containers: machines,
            notifiers: Some(Notifiers { spares: refill, idle_check: watch }),
            threads: vec![spares, idle],
        })
    }

    /// What its containers have as their files.
    pub fn roots(&self) -> &Arc<Roots> {
        &self.roots
    }

    /// Where groups of processes are made.
    pub fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    /// The container that `place` describes; it starts with its first command. One that runs keeps what it was
    /// started with.
    ///
    /// # Errors
    /// When the agent's binary cannot be put into the data folder.
    pub fn container(&self, place: ContainerSpec) -> Result<Arc<Container>> {
        let name = place.machine_name.clone();
        let known = lock(&self.containers).get(&name).cloned();
        if let Some(machine) = known {
            machine.set_spec(place);
            return Ok(machine);
        }
        let wishes = self.notifiers.clone().ok_or_else(|| Error::internal("the engine has ended"))?;
        let around = EngineContext {
            cgroups: self.cgroups.clone(),
            networks: self.networks.clone(),
            roots: self.roots.clone(),
            allowlist: self.allowlist.clone(),
        };
        let machine = Container::new(place, around, wishes);
        Ok(lock(&self.containers).entry(name).or_insert(machine).clone())
    }

    /// Ends a container and forgets it.
    pub fn remove(&self, name: &str) {
        let machine = lock(&self.containers).remove(name);
        if let Some(machine) = machine {
            machine.stop();
        }
    }

    /// Takes over the container that `place` describes, if an earlier server left it running. Groups of commands that
    /// were under way then are ended, unless `keep` wants them by their name, `runs/NUMBER`.
    ///
    /// # Errors
    /// When the machine refuses something; the container is not taken over then.
    pub fn adopt(&self, place: ContainerSpec, keep: &dyn Fn(&str) -> bool) -> Result<bool> {
        let name = place.machine_name.clone();
        let adopted = self.container(place)?.adopt(keep);
        if !matches!(adopted, Ok(true)) {
            lock(&self.containers).remove(&name);
        }
        adopted
    }

    /// Private networks.
    pub fn networks(&self) -> &Networks {
        &self.networks
    }

    /// Which folders of the host containers may have.
    pub fn allowlist(&self) -> &Allowlist {
        &self.allowlist
    }

    /// Stops the container, if it runs.
    pub fn stop_container(&self, name: &str) {
        let machine = lock(&self.containers).get(name).cloned();
        if let Some(machine) = machine {
            machine.stop();
        }
    }

    /// Does something with the root of the container that `place` describes, while nothing in it changes; `work` is told
    /// whether the container is there and stands still. `stop`: also when commands run in it.
    ///
    /// # Errors
    /// What `work` said; `Unavailable` when the container cannot be made to stand still.
    pub fn quiesce<R>(
        &self,
        place: ContainerSpec,
        stop: bool,
        work: impl FnOnce(bool) -> Result<R>,
    ) -> Result<R> {
        self.container(place)?.quiesce(stop, work)
    }

    /// What the container is doing.
    pub fn status(&self, name: &str) -> ContainerStatus {
        let machine = lock(&self.containers).get(name).cloned();
        machine.map_or(ContainerStatus { state: "stopped", ..ContainerStatus::default() }, |machine| {
            machine.status()
        })
    }

    /// Makes a change of idle times felt.
    pub fn recheck_idle(&self) {
        if let Some(wishes) = &self.notifiers {
            let _ = wishes.idle_check.try_send(());
        }
    }

    /// What a running container uses, now and so far.
    pub fn usage(&self, name: &str) -> Option<(CurrentUsage, Usage)> {
        let machine = lock(&self.containers).get(name).cloned();
        machine.and_then(|machine| machine.usage())
    }

    /// Bounds a running container anew; one that is stopped gets its limits at its start.
    ///
    /// # Errors
    /// `Conflict` when the kernel cannot take back what is in use.
    pub fn set_limits(&self, name: &str, limits: &Limits) -> Result<()> {
        let machine = lock(&self.containers).get(name).cloned();
        machine.map_or(Ok(()), |machine| machine.set_limits(limits))
    }

    /// Ends all containers but those that `stays` names: they run on for the next server.
    pub fn stop_all(&self, stays: &dyn Fn(&str) -> bool) {
        let machines: Vec<_> = lock(&self.containers).drain().collect();
        for (name, machine) in machines {
            if stays(&name) {
                machine.detach();
            } else {
                machine.stop();
            }
        }
    }

    /// A copy of our own binary that containers can bind: an upgrade may replace or delete the original while we run.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn agent_binary(&self) -> Result<PathBuf> {
        if let Some(path) = self.agent.get() {
            return Ok(path.clone());
        }
        let folder = self.data_dir.join("agent");
        let path = folder.join(format!("berth-{}", env!("CARGO_PKG_VERSION")));
        // /proc/self/exe is the file we run, whatever its path means by now (proc(5)).
        let own = std::fs::read("/proc/self/exe").at("read", "/proc/self/exe")?;
        file::create_dir_private(&folder)?;
        // Not to be read in the container, which keeps the agent's memory from it ([`super::agent`]).
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
        if let Some(wishes) = self.notifiers.take() {
            wishes.spares.close();
        }
        self.threads.clear();
    }
}

/// The thread that stops what is idle: sleeps until the first container may be.
fn stop_idle(machines: &ContainerMap, look: &Receiver<()>) {
    loop {
        let all: Vec<Arc<Container>> = lock(machines).values().cloned().collect();
        let next = all.iter().filter_map(|machine| machine.stop_if_idle()).min();
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

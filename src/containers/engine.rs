//! All containers of this server, by name; the agent's binary; the thread that keeps spare processes ready.
//!
//! Threads: `container-spares`. Lock: `machines`, held only to look up or insert.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use crossbeam_channel::{Sender, bounded};

use super::machine::{Machine, Place};
use crate::base::thread::{JoinOnDrop, lock, spawn};
use crate::base::{At, Error, Result, limits};
use crate::proc::{Cgroups, Current, Limits, Usage};
use crate::store::file;

/// Starts and finds containers.
pub struct Engine {
    cgroups: Cgroups,
    data_dir: PathBuf,
    agent: OnceLock<PathBuf>,
    machines: Mutex<HashMap<String, Arc<Machine>>>,
    // Closing the queue ends the thread, so the sender is dropped first.
    refill: Option<Sender<Weak<Machine>>>,
    spares: Option<JoinOnDrop>,
}

impl Engine {
    /// An engine that has started nothing yet.
    ///
    /// # Errors
    /// When its thread cannot be started.
    pub fn new(cgroups: Cgroups, data_dir: &Path) -> Result<Engine> {
        // Full: dropped; the next command makes its process itself.
        let (refill, wanted) = bounded::<Weak<Machine>>(64);
        let spares = spawn("container-spares".into(), limits::STACK, move || {
            for machine in wanted {
                if let Some(machine) = machine.upgrade() {
                    machine.refill();
                }
            }
        })?;
        Ok(Engine {
            cgroups,
            data_dir: data_dir.to_owned(),
            agent: OnceLock::new(),
            machines: Mutex::default(),
            refill: Some(refill),
            spares: Some(spares),
        })
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
    pub fn machine(&self, place: Place) -> Result<Arc<Machine>> {
        let name = place.machine.clone();
        let known = lock(&self.machines).get(&name).cloned();
        if let Some(machine) = known {
            machine.set_place(place);
            return Ok(machine);
        }
        let refill = self.refill.clone().ok_or_else(|| Error::internal("the engine has ended"))?;
        let machine = Machine::new(place, self.cgroups.clone(), refill);
        Ok(lock(&self.machines).entry(name).or_insert(machine).clone())
    }

    /// Ends a container and forgets it.
    pub fn remove(&self, name: &str) {
        let machine = lock(&self.machines).remove(name);
        if let Some(machine) = machine {
            machine.stop();
        }
    }

    /// Whether the container runs.
    pub fn is_running(&self, name: &str) -> bool {
        let machine = lock(&self.machines).get(name).cloned();
        machine.is_some_and(|machine| machine.is_running())
    }

    /// What a running container uses, now and so far.
    pub fn usage(&self, name: &str) -> Option<(Current, Usage)> {
        let machine = lock(&self.machines).get(name).cloned();
        machine.and_then(|machine| machine.usage())
    }

    /// Bounds a running container anew; one that is stopped gets its limits at its start.
    ///
    /// # Errors
    /// `Conflict` when the kernel cannot take back what is in use.
    pub fn rebound(&self, name: &str, limits: &Limits) -> Result<()> {
        let machine = lock(&self.machines).get(name).cloned();
        machine.map_or(Ok(()), |machine| machine.rebound(limits))
    }

    /// Ends all containers.
    pub fn stop(&self) {
        let machines: Vec<_> = lock(&self.machines).drain().map(|(_, machine)| machine).collect();
        for machine in machines {
            machine.stop();
        }
    }

    /// A copy of our own binary that containers can bind: an upgrade may replace or delete the original while we run.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn agent(&self) -> Result<PathBuf> {
        if let Some(path) = self.agent.get() {
            return Ok(path.clone());
        }
        let folder = self.data_dir.join("agent");
        let path = folder.join(format!("berth-{}", env!("CARGO_PKG_VERSION")));
        // /proc/self/exe is the file we run, whatever its path means by now (proc(5)).
        let own = std::fs::read("/proc/self/exe").at("read", "/proc/self/exe")?;
        file::create_dir_private(&folder)?;
        if std::fs::read(&path).ok().as_ref() != Some(&own) {
            file::write_atomic(&path, &own, 0o755)?;
        }
        Ok(self.agent.get_or_init(|| path).clone())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
        self.refill = None;
        self.spares = None;
    }
}

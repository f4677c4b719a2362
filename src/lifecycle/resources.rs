//! What a workspace's commands may use together, what they use, and what of it this host can enforce.
//!
//! Lock: `host_groups`, a leaf: the groups of host workspaces that have limits, kept so that the limits are.

use std::collections::hash_map::Entry;
use std::sync::Arc;

use serde::Serialize;
use uuid::Uuid;

use super::{Lifecycle, build_log_path};
use crate::base::Result;
use crate::base::ids::Network;
use crate::base::thread::lock;
use crate::proc::control::Enforced;
use crate::proc::{Capacity, CurrentUsage, Enforcement, Limits, Usage};
use crate::workspaces::create::UpdateWorkspace;
use crate::workspaces::{Resources, Workspace, WorkspaceKind, WorkspaceRecord};

/// The answer of `resources`.
#[derive(Debug, Serialize)]
pub struct ResourcesReport {
    /// What holds now, or will from the next start on: asked for, else the default.
    limits: Resources,
    /// What was asked for.
    asked: Option<Resources>,
    used: ResourceUsage,
    /// Whether and how each limit is enforced.
    enforcement: Enforcements,
    /// In words, what was asked for and does not hold here.
    warnings: Vec<String>,
    /// What there is on this machine for everything together.
    machine: Capacity,
    /// What all workloads of this server may use together.
    all_workloads: Limits,
}

#[derive(Debug, Serialize)]
struct ResourceUsage {
    #[serde(flatten)]
    now: CurrentUsage,
    #[serde(flatten)]
    so_far: Usage,
    disk_bytes: Option<u64>,
}

/// Whether and how each limit is enforced.
#[derive(Debug, Serialize)]
pub struct Enforcements {
    #[serde(flatten)]
    group: Enforcement,
    disk_bytes: Enforced,
}

impl Lifecycle {
    /// Changes a workspace as a client asked for it, its limits at once. What was changed in its skills and tools is
    /// written into it; the change stands also where that fails, and a sync by hand says why.
    ///
    /// # Errors
    /// 400s that name the field; `Conflict` when the kernel cannot take back now what is in use; `WorkspaceNotFound`.
    /// Nothing has changed then.
    pub fn change(&self, id: Uuid, mut update: UpdateWorkspace) -> Result<Arc<WorkspaceRecord>> {
        self.choose_image(&mut update.fields)?;
        let workspace = self.registry.get(id)?;
        let before = workspace.record();
        self.check_mounts(update.fields.mounts.as_deref().unwrap_or_default())?;
        let fields = &update.fields;
        let lists = [&fields.skills, &fields.tools, &fields.plugins, &fields.mcps];
        let syncs = lists.iter().any(|list| list.is_some()) || fields.config_profile.is_some();
        let changed = self.registry.change(id, update, |record| {
            if record.view.resources == before.view.resources {
                return Ok(());
            }
            self.apply(&workspace, record)
        });
        if let Ok(record) = &changed {
            if record.view.workspace_type == WorkspaceKind::Container {
                // What holds from the next start on, and its idle time at once.
                self.machine(&workspace, record)?;
                self.engine.recheck_idle();
            }
        }
        if changed.is_err() && workspace.check_alive().is_ok() {
            // The record could not be written, so what it still says must hold.
            if let Err(error) = self.apply(&workspace, &workspace.record()) {
                log::error!("workspace {id}: {error}");
            }
        }
        if syncs && changed.is_ok() {
            self.sync_or_warn(&workspace);
        }
        changed
    }

    /// What a workspace may use and uses.
    ///
    /// # Errors
    /// `WorkspaceNotFound`.
    pub fn resources(&self, id: Uuid) -> Result<ResourcesReport> {
        let workspace = self.registry.get(id)?;
        let record = workspace.record();
        let limits = self.limits_of(&record);
        let asked = record.view.resources;
        let (now, so_far) = match record.view.workspace_type {
            WorkspaceKind::Container => self.engine.usage(&workspace.machine_name()).unwrap_or_default(),
            WorkspaceKind::Host => lock(&self.host_groups)
                .get(&id)
                .map(|group| (group.current(), group.usage()))
                .unwrap_or_default(),
        };
        let disk = (record.view.workspace_type == WorkspaceKind::Container)
            .then(|| self.roots.size(&super::site(&workspace, &record)).map(|size| size.bytes))
            .flatten();
        let cgroups = self.engine.cgroups();
        Ok(ResourcesReport {
            limits: Resources {
                memory_bytes: limits.memory_bytes,
                swap_bytes: limits.swap_bytes,
                cpus: limits.cpus,
                pids: limits.pids,
                disk_bytes: asked.and_then(|asked| asked.disk_bytes),
                tmpfs_bytes: asked.and_then(|asked| asked.tmpfs_bytes),
            },
            asked,
            used: ResourceUsage { now, so_far, disk_bytes: disk },
            enforcement: self.enforcements(&workspace, &record),
            warnings: self.warnings(&workspace, &record),
            machine: *cgroups.capacity(),
            all_workloads: cgroups.capacity().total_limits(),
        })
    }

    /// What was asked for and does not hold on this host, in words.
    pub(super) fn warnings(&self, workspace: &Workspace, record: &WorkspaceRecord) -> Vec<String> {
        let mut all = Vec::new();
        if record.view.network() == Network::Private {
            all.extend(self.engine.networks().warnings());
        }
        let Some(asked) = record.view.resources else { return all };
        let say = |name: &str, why: &str| format!("resources.{name} is not enforced on this host: {why}");
        let enforcement = self.engine.cgroups().enforcement();
        all.extend(enforcement.missing(&asked.limits()).into_iter().map(|(name, why)| say(name, why)));
        if asked.disk_bytes.is_some() {
            let disk = self.disk(workspace, record);
            all.extend((!disk.enforced).then(|| say("disk_bytes", &disk.how)));
        }
        all
    }

    pub(super) fn enforcements(&self, workspace: &Workspace, record: &WorkspaceRecord) -> Enforcements {
        let group = self.engine.cgroups().enforcement().clone();
        Enforcements { group, disk_bytes: self.disk(workspace, record) }
    }

    fn disk(&self, workspace: &Workspace, record: &WorkspaceRecord) -> Enforced {
        match record.view.workspace_type {
            WorkspaceKind::Container => self.roots.disk_limit_status(&super::site(workspace, record)),
            WorkspaceKind::Host => {
                let how =
                    "the files of a host workspace are the host's; only a container's are bounded".into();
                Enforced { enforced: false, how }
            }
        }
    }

    /// Bounds what a container's files take.
    pub(super) fn bound_disk(&self, workspace: &Workspace, record: &WorkspaceRecord) {
        let bytes = record.view.resources.and_then(|resources| resources.disk_bytes);
        self.roots.set_disk_limit(&super::site(workspace, record), bytes);
    }

    /// What holds for a workspace: what was asked for, for a container else the machine's defaults.
    pub(super) fn limits_of(&self, record: &WorkspaceRecord) -> Limits {
        let asked = record.view.resources.map(|resources| resources.limits()).unwrap_or_default();
        match record.view.workspace_type {
            WorkspaceKind::Container => asked.or(self.engine.cgroups().capacity().container_limits()),
            WorkspaceKind::Host => asked,
        }
    }

    /// The group in which a host workspace's commands get theirs.
    pub(super) fn host_group(&self, workspace: &Workspace, record: &WorkspaceRecord) -> Result<String> {
        let mut groups = lock(&self.host_groups);
        let name = format!("host-{}", workspace.machine_name());
        let limits = self.limits_of(record);
        if let Entry::Vacant(free) = groups.entry(workspace.id()) {
            if limits.is_empty() {
                return Ok("runs".to_owned());
            }
            let mut group = self.engine.cgroups().group(&name)?;
            group.enable_limits(&limits)?;
            free.insert(group);
        }
        Ok(name)
    }

    /// Puts the limits of `record` on what runs already.
    fn apply(&self, workspace: &Workspace, record: &WorkspaceRecord) -> Result<()> {
        let limits = self.limits_of(record);
        match record.view.workspace_type {
            WorkspaceKind::Container => {
                self.engine.set_limits(&workspace.machine_name(), &limits)?;
                self.bound_disk(workspace, record);
                Ok(())
            }
            WorkspaceKind::Host => match lock(&self.host_groups).get(&workspace.id()) {
                Some(group) => group.update_limits(&limits),
                None => Ok(()),
            },
        }
    }

    /// Says in a build's log what will not hold.
    pub(super) fn log_warnings(
        &self,
        workspace: &Workspace,
        record: &WorkspaceRecord,
        log: &mut crate::images::BuildLog,
    ) {
        for warning in self.warnings(workspace, record) {
            log::warn!("workspace {}: {warning} ({})", record.view.id, build_log_path(workspace).display());
            log.note(format!("Warning: {warning}"));
        }
    }
}

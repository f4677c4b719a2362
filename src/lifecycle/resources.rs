//! Reports and changes a workspace's resource limits: the limits in effect, the current usage, and the limits that
//! this host can enforce.
//!
//! Lock: `host_groups`, a leaf. This map keeps the cgroups of host workspaces with limits, so that the limits stay in
//! effect.

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

/// The response of `resources`.
#[derive(Debug, Serialize)]
pub struct ResourcesReport {
    /// The limits in effect or, for a container that is not running, from its next start on: each requested limit,
    /// otherwise the machine's default.
    limits: Resources,
    /// The limits that a client has requested.
    asked: Option<Resources>,
    used: ResourceUsage,
    /// Whether and how each limit is enforced.
    enforcement: Enforcements,
    /// One warning for each requested limit that this host cannot enforce.
    warnings: Vec<String>,
    /// The capacity of this machine.
    machine: Capacity,
    /// The limits that apply to all workloads of this server together.
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
    /// Applies a client's changes to a workspace; limits take effect at once. If skills or tools change, the workspace
    /// is synced. If the sync fails, the change still applies, and a manual sync reports the reason.
    ///
    /// # Errors
    /// Fails with status 400 and the name of the invalid field, with `Conflict` if the kernel cannot reclaim resources
    /// in use, or with `WorkspaceNotFound`. After an error the workspace is unchanged.
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
                // Passes the settings for the next start to the engine, and applies the idle timeout at once.
                self.machine(&workspace, record)?;
                self.engine.recheck_idle();
            }
        }
        if changed.is_err() && workspace.check_alive().is_ok() {
            // The record could not be written, so the limits of the old record are applied again.
            if let Err(error) = self.apply(&workspace, &workspace.record()) {
                log::error!("workspace {id}: {error}");
            }
        }
        if syncs && changed.is_ok() {
            self.sync_or_warn(&workspace);
        }
        changed
    }

    /// Returns the limits and the usage of a workspace.
    ///
    /// # Errors
    /// Fails with `WorkspaceNotFound`.
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

    /// Returns one warning for each requested setting that this host cannot apply.
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
                let how = "a host workspace's files are the host's; only a container's can be limited".into();
                Enforced { enforced: false, how }
            }
        }
    }

    /// Sets the disk limit of a container's root.
    pub(super) fn bound_disk(&self, workspace: &Workspace, record: &WorkspaceRecord) {
        let bytes = record.view.resources.and_then(|resources| resources.disk_bytes);
        self.roots.set_disk_limit(&super::site(workspace, record), bytes);
    }

    /// Returns the limits of a workspace. A limit that a container does not set is the machine's default.
    pub(super) fn limits_of(&self, record: &WorkspaceRecord) -> Limits {
        let asked = record.view.resources.map(|resources| resources.limits()).unwrap_or_default();
        match record.view.workspace_type {
            WorkspaceKind::Container => asked.or(self.engine.cgroups().capacity().container_limits()),
            WorkspaceKind::Host => asked,
        }
    }

    /// Returns the name of the cgroup for the commands of a host workspace. Creates the cgroup if the workspace has
    /// limits.
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

    /// Applies the limits of `record` to the workspace's running processes.
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

    /// Writes the warnings about settings that this host cannot apply to the build log.
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

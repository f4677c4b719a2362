//! Snapshots of a container's files, restores, and clones. Each of these operations is an exclusive job
//! ([`super::jobs`]). While a snapshot is taken, the container's files do not change: the container is stopped if it
//! runs no commands, otherwise it is frozen.
//!
//! A snapshot includes the sync manifest and the distribution or image of the files. A restore is journaled in the
//! record, like a build; an interrupted clone is removed at the next start.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::jobs::JournaledJob;
use super::{END_RUNS_TIMEOUT, Lifecycle, site};
use crate::base::ids::{Distro, Label};
use crate::base::thread::lock;
use crate::base::{Code, Error, Result, clock, limits};
use crate::roots::{RootKind, RootLocation, RootSnapshot};
use crate::store::{file, tree};
use crate::workspaces::sync::{self, SyncManifest};
use crate::workspaces::{Workspace, WorkspaceKind, WorkspaceRecord};

/// The body of a request for a snapshot.
#[derive(Debug, Default, Deserialize)]
pub struct TakeSnapshotRequest {
    /// The snapshot's name; the current time if absent.
    name: Option<String>,
    /// Whether to end running commands, so that no files have to be copied.
    #[serde(default)]
    stop: bool,
    /// Whether to copy changed files, instead of making them a layer of the workspace. With a copy, the container's
    /// root stays unchanged.
    #[serde(default)]
    copy: bool,
}

/// The body of a request to clone a workspace.
#[derive(Debug, Default, Deserialize)]
pub struct CloneRequest {
    /// The new workspace's name; the name of the original if absent.
    name: Option<String>,
    /// The snapshot to clone; the current files if absent.
    snapshot: Option<Uuid>,
}

/// A snapshot in API responses.
#[derive(Debug, Serialize)]
pub struct SnapshotView {
    id: Uuid,
    name: String,
    created_at: String,
    root_kind: RootKind,
    /// Whether the snapshot was taken without copying files.
    instant: bool,
}

impl From<RootSnapshot> for SnapshotView {
    fn from(taken: RootSnapshot) -> SnapshotView {
        let RootSnapshot { id, name, created_at, kind, instant, .. } = taken;
        SnapshotView { id, name, created_at, root_kind: kind, instant }
    }
}

/// The settings that belong to the files of a snapshot.
#[derive(Debug, Default, Serialize, Deserialize)]
struct SnapshotSettings {
    distro: Option<Distro>,
    image: Option<String>,
    synced: SyncManifest,
}

/// The name of the file with these settings in a snapshot's folder.
const SETTINGS_FILE: &str = "kept.json";

impl SnapshotSettings {
    fn read(folder: &Path) -> Result<SnapshotSettings> {
        let path = folder.join(SETTINGS_FILE);
        let bytes = file::read_optional(&path, limits::STATE_FILE_BYTES)?;
        let read = bytes.map(|bytes| serde_json::from_slice(&bytes)).transpose();
        read.map(Option::unwrap_or_default)
            .map_err(|error| Error::internal(format!("{} is damaged", path.display())).with_source(error))
    }

    fn write(&self, folder: &Path) -> Result<()> {
        let bytes =
            serde_json::to_vec(self).map_err(|error| Error::internal("snapshot").with_source(error))?;
        file::write_atomic(&folder.join(SETTINGS_FILE), &bytes, 0o600)
    }

    fn apply(&self, record: &mut WorkspaceRecord) {
        record.view.distro = self.distro;
        record.view.image.clone_from(&self.image);
        record.finish(None);
    }
}

impl Lifecycle {
    /// Takes a snapshot.
    ///
    /// # Errors
    /// Fails with `NotAContainer`, `NotReady`, `BuildRunning`, `InvalidName`, `Busy`, `DiskFull`, `Cancelled` or
    /// `WorkspaceNotFound`, or with `Conflict` if there are too many snapshots.
    pub fn take_snapshot(self: &Arc<Self>, id: Uuid, asked: TakeSnapshotRequest) -> Result<SnapshotView> {
        let name = match asked.name {
            Some(name) => Label::parse(&name)?.as_str().to_owned(),
            None => clock::now_rfc3339(),
        };
        let workspace = self.built_workspace(id)?;
        let guard = self.enter_job(&workspace, false)?;
        let record = workspace.record();
        record.check_idle()?;
        if asked.stop && !self.runs.end_all(id, END_RUNS_TIMEOUT) {
            return Err(Error::internal("A command in the workspace could not be stopped"));
        }
        let (site, before) = (site(&workspace, &record), sync::read_manifest(workspace.folder())?);
        self.engine
            .quiesce(self.container_spec(&workspace, &record)?, asked.stop, |running| {
                let keep =
                    |folder: &Path| self.snapshot_settings(&workspace, &record, &before)?.write(folder);
                self.roots.snapshot(&site, &name, running || asked.copy, keep, &guard.cancel)
            })
            .map(SnapshotView::from)
    }

    /// Returns the settings for a snapshot. `before` is the manifest as it was before the files were copied. A
    /// concurrent sync adds files to the manifest before it writes them, and drops files from it after it has removed
    /// them, so `before` and the current manifest together list all files that berth wrote.
    fn snapshot_settings(
        &self,
        workspace: &Workspace,
        record: &WorkspaceRecord,
        before: &SyncManifest,
    ) -> Result<SnapshotSettings> {
        let synced = before.with(&sync::read_manifest(workspace.folder())?);
        Ok(SnapshotSettings { distro: record.view.distro, image: record.view.image.clone(), synced })
    }

    /// Lists all snapshots of a workspace, oldest first.
    ///
    /// # Errors
    /// Fails with `NotAContainer` or `WorkspaceNotFound`.
    pub fn list_snapshots(&self, id: Uuid) -> Result<Vec<SnapshotView>> {
        let workspace = self.container_workspace(id)?;
        let record = workspace.record();
        Ok(self.roots.snapshots(&site(&workspace, &record))?.into_iter().map(SnapshotView::from).collect())
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// Fails with `NotFound`, `BuildRunning`, `NotAContainer` or `WorkspaceNotFound`.
    pub fn remove_snapshot(self: &Arc<Self>, id: Uuid, snapshot: Uuid) -> Result<()> {
        let workspace = self.container_workspace(id)?;
        let _guard = self.enter_job(&workspace, false)?;
        let site = site(&workspace, &workspace.record());
        self.roots.delete_snapshot(&site, snapshot, |folder| self.discard_folder(folder))?;
        self.empty_trash();
        Ok(())
    }

    /// Checks and journals a restore. Returns a closure that a worker runs: it ends all processes of the workspace and
    /// then restores the files.
    ///
    /// # Errors
    /// Fails with `NotAContainer`, `NotFound`, `BuildRunning` or `WorkspaceNotFound`. The closure fails with `Busy`,
    /// `DiskFull`, `Cancelled` or `MountedInside`, and leaves the files unchanged.
    pub fn start_restore(
        self: &Arc<Self>,
        id: Uuid,
        snapshot: Uuid,
    ) -> Result<impl FnOnce() -> Result<Arc<WorkspaceRecord>> + Send + use<>> {
        let workspace = self.container_workspace(id)?;
        let record = workspace.record();
        self.roots.find_snapshot(&site(&workspace, &record), snapshot)?;
        let journaled = self.journal(workspace, |_, record| record.start_restore())?;
        let lifecycle = self.clone();
        Ok(move || lifecycle.restore(journaled, snapshot))
    }

    fn restore(&self, journaled: JournaledJob, snapshot: Uuid) -> Result<Arc<WorkspaceRecord>> {
        let workspace = journaled.workspace.clone();
        let record = workspace.record();
        let site = site(&workspace, &record);
        if let Some(mount) = tree::mounts_below(&site.root)?.first() {
            let message = format!("{} is mounted inside the workspace; unmount it first", mount.display());
            return Err(Error::new(Code::MountedInside, message));
        }
        // The snapshot may have been deleted since the request was accepted.
        self.roots.find_snapshot(&site, snapshot)?;
        let kept = SnapshotSettings::read(&self.roots.snapshot_folder(&site, snapshot))?;
        if !self.runs.end_all(workspace.id(), END_RUNS_TIMEOUT) {
            return Err(Error::internal("A command in the workspace could not be stopped"));
        }
        // The status `building` refuses new syncs; taking this lock waits for a sync in progress.
        let syncing = lock(&self.syncing);
        let before = sync::read_manifest(workspace.folder())?;
        // During the restore the manifest lists the files of both states, so that every file that berth wrote is
        // listed at all times.
        sync::write_manifest(workspace.folder(), &before.with(&kept.synced))?;
        drop(syncing);
        let restored = self.engine.quiesce(self.container_spec(&workspace, &record)?, true, |_| {
            self.roots.restore(&site, snapshot, |folder| self.discard_folder(folder), &journaled.guard.cancel)
        });
        self.bound_disk(&workspace, &record);
        let now = if restored.is_ok() { &kept.synced } else { &before };
        if let Err(error) = sync::write_manifest(workspace.folder(), now) {
            log::warn!("workspace {}: {error}", workspace.id());
        }
        restored?;
        self.empty_trash();
        journaled.end(|record| kept.apply(record));
        Ok(workspace.record())
    }

    /// Creates another workspace with the same files and settings.
    ///
    /// # Errors
    /// Fails with `NotFound` if the snapshot does not exist, and for the same reasons as [`Lifecycle::take_snapshot`].
    /// After an error the new workspace is removed.
    pub fn clone_workspace(self: &Arc<Self>, id: Uuid, asked: CloneRequest) -> Result<Arc<WorkspaceRecord>> {
        let workspace = match asked.snapshot {
            // A workspace can have a snapshot although its root does not exist.
            Some(_) => self.container_workspace(id)?,
            None => self.built_workspace(id)?,
        };
        let record = workspace.record();
        let name = match asked.name {
            Some(name) => Label::parse(&name)?,
            None => record.view.name.clone(),
        };
        let from = site(&workspace, &record);
        if let Some(snapshot) = asked.snapshot {
            self.roots.find_snapshot(&from, snapshot)?;
        }
        let guard = self.enter_job(&workspace, false)?;
        let record = workspace.record();
        record.check_idle()?;
        let made = self.registry.copy_of(&record, name)?;
        let cloned = self.fill_clone(&workspace, &record, &from, &made, asked.snapshot, &guard);
        drop(guard);
        match cloned {
            Ok(record) => Ok(record),
            Err(error) => {
                if let Err(left) = self.delete(made.id()) {
                    log::warn!("workspace {}: {left}", made.id());
                }
                Err(error)
            }
        }
    }

    /// Copies the files of a workspace or snapshot into the new workspace `made`.
    fn fill_clone(
        self: &Arc<Self>,
        workspace: &Workspace,
        record: &WorkspaceRecord,
        from: &RootLocation,
        made: &Arc<Workspace>,
        snapshot: Option<Uuid>,
        guard: &super::jobs::JobGuard,
    ) -> Result<Arc<WorkspaceRecord>> {
        // This job makes a deletion of the new workspace wait.
        let own = self.enter_job_with(made, false, guard.cancel.clone())?;
        let own = JournaledJob::begin(made.clone(), own, |_, _| Ok(()))?;
        let to = site(made, &made.record());
        let before = sync::read_manifest(workspace.folder())?;
        let kept = match snapshot {
            Some(snapshot) => {
                self.roots.clone_root(from, Some(snapshot), &to, false, &guard.cancel)?;
                SnapshotSettings::read(&self.roots.snapshot_folder(from, snapshot))?
            }
            None => {
                self.engine.quiesce(self.container_spec(workspace, record)?, false, |running| {
                    self.roots.clone_root(from, None, &to, running, &guard.cancel)
                })?;
                self.snapshot_settings(workspace, record, &before)?
            }
        };
        if guard.cancel.is_cancelled() {
            return Err(Error::new(Code::Cancelled, "The clone was cancelled; no workspace was created"));
        }
        self.bound_disk(made, &made.record());
        sync::write_manifest(made.folder(), &kept.synced)?;
        own.end(|record| kept.apply(record));
        Ok(made.record())
    }

    fn container_workspace(&self, id: Uuid) -> Result<Arc<Workspace>> {
        let workspace = self.registry.get(id)?;
        check_container(&workspace.record())?;
        Ok(workspace)
    }

    fn built_workspace(&self, id: Uuid) -> Result<Arc<Workspace>> {
        let workspace = self.container_workspace(id)?;
        let record = workspace.record();
        record.check_idle()?;
        if !self.has_root(&workspace, &record) {
            return Err(Error::new(Code::NotReady, "Container doesn't exist yet. Build it first."));
        }
        Ok(workspace)
    }
}

fn check_container(record: &WorkspaceRecord) -> Result<()> {
    if record.view.workspace_type == WorkspaceKind::Container {
        return Ok(());
    }
    let message =
        "Only a container workspace has snapshots and can be cloned; a host workspace's files are the host's";
    Err(Error::new(Code::NotAContainer, message))
}

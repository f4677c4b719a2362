//! Limits the disk usage of a root with project quotas. Files written into a root, above its image, belong to a project
//! of the file system. All layers that a workspace wrote form one project. Each copy is a project of its own, because
//! the previous copy uses space until it is removed; the limit of a copy is raised by the size of the image that it
//! contains. No threads or locks.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::home::RootHome;
use super::make::remove_folder;
use super::record::{RootKind, RootRecord};
use super::{RootLocation, Roots};
use crate::base::Result;
use crate::base::thread::lock;
use crate::proc::Enforced;
use crate::store::{file, quota, tree};

/// Project numbers are shared with the whole host; this range is unlikely to be used by other software.
fn project_number(seed: u32) -> u32 {
    0x4000_0000 | seed & 0x3fff_ffff
}

/// Returns the project of a workspace's layers.
pub(super) fn layers_project(location: &RootLocation) -> u32 {
    project_number(super::make::id_seed(location))
}

/// Returns the directory that contains a copy.
fn copy_parent(location: &RootLocation) -> &Path {
    location.root.parent().unwrap_or(&location.folder)
}

/// A place for a new copy.
pub(super) struct StagingArea {
    /// Contains the path and the root's final location.
    pub(super) home: RootHome,
    pub(super) path: PathBuf,
    /// Project of the copy, if quotas are available; it has no limit yet.
    pub(super) project: Option<u32>,
}

/// Prepares an empty place beside the root for a copy that will replace it. Without quotas, and for layers, it only
/// returns a path.
pub(super) fn make_staging(location: &RootLocation, kind: RootKind) -> Result<StagingArea> {
    let home = location.make_home()?;
    let path = home.staging();
    remove_folder(&path)?;
    if kind == RootKind::Overlay || quota::check(copy_parent(location)).is_err() {
        return Ok(StagingArea { home, path, project: None });
    }
    let project = project_number(Uuid::new_v4().as_fields().0);
    file::create_dir_private(&path)?;
    // Files created in it from now on belong to the project.
    quota::join(&path, project)?;
    Ok(StagingArea { home, path, project: Some(project) })
}

/// Returns the initial disk usage of a copy, or 0 if quotas are not available.
pub(super) fn base_usage(location: &RootLocation, copy: &Path) -> Result<u64> {
    if quota::check(copy_parent(location)).is_err() {
        return Ok(0);
    }
    tree::disk_usage(copy)
}

impl Roots {
    /// Returns the project that a root's files belong to, and a directory on its file system; `None` if there is no
    /// project.
    fn quota_project<'a>(
        &'a self,
        location: &'a RootLocation,
        record: Option<&RootRecord>,
    ) -> (&'a Path, Option<u32>) {
        match record {
            Some(record) if record.kind != RootKind::Overlay => (copy_parent(location), record.project),
            None if !location.is_own() => (copy_parent(location), None),
            _ => (self.layers.folder(), Some(layers_project(location))),
        }
    }

    /// Limits the disk usage of the root's own files; `None` removes the limit. Does nothing where that is not
    /// supported ([`Roots::disk_limit_status`]).
    pub fn set_disk_limit(&self, location: &RootLocation, bytes: Option<u64>) {
        let record = self.slot(location).ok().and_then(|slot| lock(&slot).record.clone());
        let (folder, Some(project)) = self.quota_project(location, record.as_ref()) else { return };
        if quota::check(folder).is_err() {
            return;
        }
        let image = record.map_or(0, |record| record.stack.base_bytes);
        if let Err(error) = quota::limit(folder, project, bytes.map(|bytes| bytes.saturating_add(image))) {
            log::warn!("{error}");
        }
    }

    /// Removes the limit of a copy that is being deleted.
    pub(super) fn clear_disk_limit(&self, location: &RootLocation, record: Option<&RootRecord>) {
        if let Some(project) = record.and_then(|record| record.project) {
            let _ = quota::limit(copy_parent(location), project, None);
        }
    }

    /// Returns whether a limit of this root is enforced, and how, or why not.
    pub fn disk_limit_status(&self, location: &RootLocation) -> Enforced {
        let not = |how: String| Enforced { enforced: false, how };
        let record = self.slot(location).ok().and_then(|slot| lock(&slot).record.clone());
        let (folder, project) = self.quota_project(location, record.as_ref());
        if let Err(why) = quota::check(folder) {
            return not(format!("{why}; {}", quota::HELP));
        }
        let upper = record.as_ref().and_then(|record| record.upper.as_ref());
        let is_in = |files: &Path| project.is_some() && quota::project_of(files) == project;
        let fits = match upper {
            Some(upper) => is_in(&self.layers.path(upper).join("fs")),
            None => location.existing_home().is_ok_and(|home| is_in(&home.root())),
        };
        if record.is_some() && !fits {
            return not("the root was made before the file system enforced quotas; build it again".into());
        }
        Enforced { enforced: true, how: "project quota of the data folder's file system".into() }
    }
}

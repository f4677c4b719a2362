//! Limits the disk usage of a root with project quotas. The files that a workspace writes into its root belong to
//! a project of the file system; files of the image do not. All layers of a workspace form one project. Each
//! copied root is a separate project, because the previous copy uses space until it is removed; the limit of a
//! copy is raised by the size of the image that it contains. No threads or locks.

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

/// Returns a project number in a range that other software is unlikely to use; the whole host shares these
/// numbers.
fn project_number(seed: u32) -> u32 {
    0x4000_0000 | seed & 0x3fff_ffff
}

/// Returns the project of a workspace's layers.
pub(super) fn layers_project(location: &RootLocation) -> u32 {
    project_number(super::make::id_seed(location))
}

/// Returns the parent directory of a copied root.
fn copy_parent(location: &RootLocation) -> &Path {
    location.root.parent().unwrap_or(&location.folder)
}

/// An empty place for a new copy of a root.
pub(super) struct StagingArea {
    /// The directory that will hold the root.
    pub(super) home: RootHome,
    pub(super) path: PathBuf,
    /// Project of the copy, without a limit yet; `None` if quotas are not available.
    pub(super) project: Option<u32>,
}

/// Prepares an empty directory beside the root for a copy that will replace the root. Without quotas, and for
/// layers, only returns a path.
pub(super) fn make_staging(location: &RootLocation, kind: RootKind) -> Result<StagingArea> {
    let home = location.make_home()?;
    let path = home.staging();
    remove_folder(&path)?;
    if kind == RootKind::Overlay || quota::check(copy_parent(location)).is_err() {
        return Ok(StagingArea { home, path, project: None });
    }
    let project = project_number(Uuid::new_v4().as_fields().0);
    file::create_dir_private(&path)?;
    // Files that are created in the directory from now on belong to the project.
    quota::join(&path, project)?;
    Ok(StagingArea { home, path, project: Some(project) })
}

/// Returns the disk usage of a copy before the workspace changes it; 0 if quotas are not available.
pub(super) fn base_usage(location: &RootLocation, copy: &Path) -> Result<u64> {
    if quota::check(copy_parent(location)).is_err() {
        return Ok(0);
    }
    tree::disk_usage(copy)
}

impl Roots {
    /// Returns a directory on the root's file system and the project of the root's files; the project is `None` if
    /// the files belong to none.
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

    /// Limits the disk usage of the files that the workspace wrote into its root; `None` removes the limit. Does
    /// nothing where that is not supported ([`Roots::disk_limit_status`]).
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

    /// Removes the limit of a copied root that is being deleted.
    pub(super) fn clear_disk_limit(&self, location: &RootLocation, record: Option<&RootRecord>) {
        if let Some(project) = record.and_then(|record| record.project) {
            let _ = quota::limit(copy_parent(location), project, None);
        }
    }

    /// Returns whether the limit of this root is enforced, and by what method, or the reason why not.
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

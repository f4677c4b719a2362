//! How much of the disk a root may take: what is written into it, above its image, as a project of the file system. All
//! layers that a workspace wrote are one project. Every copy is one of its own, for the copy before it goes on taking space
//! until it is removed; it has its image in it, so that much more is allowed to it. Without threads or locks.

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

/// Project numbers are the host's; these are where others do not look for theirs.
fn project_number(seed: u32) -> u32 {
    0x4000_0000 | seed & 0x3fff_ffff
}

/// The project of a workspace's layers.
pub(super) fn layers_project(site: &RootLocation) -> u32 {
    project_number(super::make::id_seed(site))
}

/// Where a copy lies.
fn copy_parent(site: &RootLocation) -> &Path {
    site.root.parent().unwrap_or(&site.folder)
}

/// Where a copy is made.
pub(super) struct StagingArea {
    /// Has the path and the root's own place.
    pub(super) home: RootHome,
    pub(super) path: PathBuf,
    /// What it belongs to, where there are quotas. Nothing bounds it yet.
    pub(super) project: Option<u32>,
}

/// An empty place beside the root for a copy that is to become it. Without quotas, and for layers, there is only a path.
pub(super) fn make_staging(site: &RootLocation, kind: RootKind) -> Result<StagingArea> {
    let home = site.make_home()?;
    let path = home.staging();
    remove_folder(&path)?;
    if kind == RootKind::Overlay || quota::check(copy_parent(site)).is_err() {
        return Ok(StagingArea { home, path, project: None });
    }
    let project = project_number(Uuid::new_v4().as_fields().0);
    file::create_dir_private(&path)?;
    // Whatever is made in it from now on.
    quota::join(&path, project)?;
    Ok(StagingArea { home, path, project: Some(project) })
}

/// What a copy takes at first, where that is of use.
pub(super) fn base_usage(site: &RootLocation, copy: &Path) -> Result<u64> {
    if quota::check(copy_parent(site)).is_err() {
        return Ok(0);
    }
    tree::disk_usage(copy)
}

impl Roots {
    /// The project that pays for what a root takes, and in which folder's file system; `None`: none does.
    fn quota_project<'a>(
        &'a self,
        site: &'a RootLocation,
        state: Option<&RootRecord>,
    ) -> (&'a Path, Option<u32>) {
        match state {
            Some(state) if state.kind != RootKind::Overlay => (copy_parent(site), state.project),
            None if !site.is_own() => (copy_parent(site), None),
            _ => (self.layers.folder(), Some(layers_project(site))),
        }
    }

    /// Bounds what the root's own files take together, from now on; `None`: no more. Where that is not possible
    /// ([`Roots::disk_limit_status`]) nothing happens.
    pub fn set_disk_limit(&self, site: &RootLocation, bytes: Option<u64>) {
        let state = self.slot(site).ok().and_then(|slot| lock(&slot).state.clone());
        let (folder, Some(project)) = self.quota_project(site, state.as_ref()) else { return };
        if quota::check(folder).is_err() {
            return;
        }
        let image = state.map_or(0, |state| state.stack.base_bytes);
        if let Err(error) = quota::limit(folder, project, bytes.map(|bytes| bytes.saturating_add(image))) {
            log::warn!("{error}");
        }
    }

    /// Nobody looks at the project of a copy that is given up any more.
    pub(super) fn clear_disk_limit(&self, site: &RootLocation, state: Option<&RootRecord>) {
        if let Some(project) = state.and_then(|state| state.project) {
            let _ = quota::limit(copy_parent(site), project, None);
        }
    }

    /// Whether a bound of this root holds, and how or why not.
    pub fn disk_limit_status(&self, site: &RootLocation) -> Enforced {
        let not = |how: String| Enforced { enforced: false, how };
        let state = self.slot(site).ok().and_then(|slot| lock(&slot).state.clone());
        let (folder, project) = self.quota_project(site, state.as_ref());
        if let Err(why) = quota::check(folder) {
            return not(format!("{why}; {}", quota::HELP));
        }
        let upper = state.as_ref().and_then(|state| state.upper.as_ref());
        let is_in = |files: &Path| project.is_some() && quota::project_of(files) == project;
        let fits = match upper {
            Some(upper) => is_in(&self.layers.path(upper).join("fs")),
            None => site.existing_home().is_ok_and(|home| is_in(&home.root())),
        };
        if state.is_some() && !fits {
            return not("the root was made before the file system enforced quotas; build it again".into());
        }
        Enforced { enforced: true, how: "project quota of the data folder's file system".into() }
    }
}

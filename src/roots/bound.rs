//! How much of the disk a root may take: what is written into it, above its image, as a project of the file system. All
//! layers that a workspace wrote are one project. Every copy is one of its own, for the copy before it goes on taking space
//! until it is removed; it has its image in it, so that much more is allowed to it. Without threads or locks.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::home::Home;
use super::make::remove;
use super::state::{Kind, State};
use super::{Roots, Site};
use crate::base::Result;
use crate::base::thread::lock;
use crate::proc::Enforced;
use crate::store::{file, quota, tree};

/// Project numbers are the host's; these are where others do not look for theirs.
fn number(seed: u32) -> u32 {
    0x4000_0000 | seed & 0x3fff_ffff
}

/// The project of a workspace's layers.
pub(super) fn project(site: &Site) -> u32 {
    number(super::make::seed_of(site))
}

/// Where a copy lies.
fn parent(site: &Site) -> &Path {
    site.root.parent().unwrap_or(&site.folder)
}

/// Where a copy is made.
pub(super) struct Stage {
    /// Has the path and the root's own place.
    pub(super) home: Home,
    pub(super) path: PathBuf,
    /// What it belongs to, where there are quotas. Nothing bounds it yet.
    pub(super) project: Option<u32>,
}

/// An empty place beside the root for a copy that is to become it. Without quotas, and for layers, there is only a path.
pub(super) fn stage(site: &Site, kind: Kind) -> Result<Stage> {
    let home = site.make_home()?;
    let path = home.staging();
    remove(&path)?;
    if kind == Kind::Overlay || quota::check(parent(site)).is_err() {
        return Ok(Stage { home, path, project: None });
    }
    let project = number(Uuid::new_v4().as_fields().0);
    file::create_dir_private(&path)?;
    // Whatever is made in it from now on.
    quota::join(&path, project)?;
    Ok(Stage { home, path, project: Some(project) })
}

/// What a copy takes at first, where that is of use.
pub(super) fn base_of(site: &Site, copy: &Path) -> Result<u64> {
    if quota::check(parent(site)).is_err() {
        return Ok(0);
    }
    tree::disk_usage(copy)
}

impl Roots {
    /// The project that pays for what a root takes, and in which folder's file system; `None`: none does.
    fn account<'a>(&'a self, site: &'a Site, state: Option<&State>) -> (&'a Path, Option<u32>) {
        match state {
            Some(state) if state.kind != Kind::Overlay => (parent(site), state.project),
            None if !site.is_own() => (parent(site), None),
            _ => (self.layers.folder(), Some(project(site))),
        }
    }

    /// Bounds what the root's own files take together, from now on; `None`: no more. Where that is not possible
    /// ([`Roots::bounded`]) nothing happens.
    pub fn bound(&self, site: &Site, bytes: Option<u64>) {
        let state = self.slot(site).ok().and_then(|slot| lock(&slot).state.clone());
        let (folder, Some(project)) = self.account(site, state.as_ref()) else { return };
        if quota::check(folder).is_err() {
            return;
        }
        let image = state.map_or(0, |state| state.stack.base_bytes);
        if let Err(error) = quota::limit(folder, project, bytes.map(|bytes| bytes.saturating_add(image))) {
            log::warn!("{error}");
        }
    }

    /// Nobody looks at the project of a copy that is given up any more.
    pub(super) fn unbound(&self, site: &Site, state: Option<&State>) {
        if let Some(project) = state.and_then(|state| state.project) {
            let _ = quota::limit(parent(site), project, None);
        }
    }

    /// Whether a bound of this root holds, and how or why not.
    pub fn bounded(&self, site: &Site) -> Enforced {
        let not = |how: String| Enforced { enforced: false, how };
        let state = self.slot(site).ok().and_then(|slot| lock(&slot).state.clone());
        let (folder, project) = self.account(site, state.as_ref());
        if let Err(why) = quota::check(folder) {
            return not(format!("{why}; {}", quota::HELP));
        }
        let upper = state.as_ref().and_then(|state| state.upper.as_ref());
        let is_in = |files: &Path| project.is_some() && quota::project_of(files) == project;
        let fits = match upper {
            Some(upper) => is_in(&self.layers.path(upper).join("fs")),
            None => site.known_home().is_ok_and(|home| is_in(&home.root())),
        };
        if state.is_some() && !fits {
            return not("the root was made before the file system enforced quotas; build it again".into());
        }
        Enforced { enforced: true, how: "project quota of the data folder's file system".into() }
    }
}

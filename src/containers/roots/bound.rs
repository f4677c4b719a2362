//! How much of the disk a root may take: what is written into it, above its image, as a project of the file system. Layers
//! of snapshots stay the workspace's that wrote them. Roots that are copies are not bounded. Without threads or locks.

use super::state::Kind;
use super::{Roots, Site};
use crate::base::thread::lock;
use crate::proc::Enforced;
use crate::store::quota;

/// The project of a root. Project numbers are the host's; these begin where others do not look for theirs.
pub(super) fn project(site: &Site) -> u32 {
    0x4000_0000 | super::make::seed_of(site) & 0x3fff_ffff
}

impl Roots {
    /// Bounds what the root's own files take together, from now on; `None`: no more. Where that is not possible
    /// ([`Roots::bounded`]) nothing happens.
    pub fn bound(&self, site: &Site, bytes: Option<u64>) {
        let folder = self.layers.folder();
        if quota::check(folder).is_err() {
            return;
        }
        if let Err(error) = quota::limit(folder, project(site), bytes) {
            log::warn!("{error}");
        }
    }

    /// Whether a bound of this root holds, and how or why not.
    pub fn bounded(&self, site: &Site) -> Enforced {
        let not = |how: String| Enforced { enforced: false, how };
        if let Err(why) = quota::check(self.layers.folder()) {
            return not(format!("{why}; {}", quota::HELP));
        }
        let state = self.slot(site).ok().and_then(|slot| lock(&slot).state.clone());
        let layered = match &state {
            Some(state) => state.kind == Kind::Overlay,
            None => site.is_own() && self.kind_to_make().is_ok_and(|kind| kind == Kind::Overlay),
        };
        if !layered {
            return not("only roots of layers are bounded, and this one is a copy".into());
        }
        let upper = state.and_then(|state| state.upper).map(|upper| self.layers.path(&upper).join("fs"));
        if upper.is_some_and(|upper| quota::project_of(&upper) != Some(project(site))) {
            return not("the root was made before the file system enforced quotas; build it again".into());
        }
        Enforced { enforced: true, how: "project quota of the data folder's file system".into() }
    }
}

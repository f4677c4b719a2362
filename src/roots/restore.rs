//! Going back to a snapshot, and a root that begins as another one is or was. A root is the old one or the new one at every
//! moment, also for a start after kill -9: what it consists of changes by one rename, and what is left over then is removed
//! by [`Roots::sweep`].

use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use uuid::Uuid;

use super::disk_limit::{StagingArea, make_staging};
use super::make::remove_folder;
use super::record::{RootKind, RootRecord};
use super::snapshot::RootSnapshot;
use super::{RootLocation, RootSlot, Roots};
use crate::base::thread::lock;
use crate::base::{At, Result};
use crate::proc::Cancel;
use crate::store::file;

impl Roots {
    /// Makes the root what it was, also where there is none any more. `put_away` gets a plain folder out of the way. The
    /// container must have been stopped, and nothing else may be done with the root meanwhile.
    ///
    /// # Errors
    /// `NotFound`; `Busy` when somebody has files of the root open; `DiskFull`; `Cancelled`; the root is as it was then.
    pub fn restore(
        &self,
        site: &RootLocation,
        id: Uuid,
        put_away: impl Fn(&Path) -> Result<()>,
        cancel: &Cancel,
    ) -> Result<()> {
        let snapshot = self.find_snapshot(site, id)?;
        let slot = self.slot(site)?;
        let stage = make_staging(site, snapshot.kind)?;
        let staging = stage.path.clone();
        let done = self.copy_snapshot_files(site, &snapshot, &staging, cancel).and_then(|()| {
            let mut slot = lock(&slot);
            self.wait_exclusive(&mut slot)?;
            let before = slot.state.clone();
            if snapshot.kind == RootKind::Overlay {
                self.restore_layers(site, &mut slot, snapshot, &stage)
            } else {
                self.restore_folder(site, &mut slot, &snapshot, &stage)
            }?;
            self.clear_disk_limit(site, before.as_ref());
            let image = |state: Option<&RootRecord>| state.and_then(|state| state.stack.image.clone());
            if image(before.as_ref()) != image(slot.state.as_ref()) {
                self.release_image(site, before.as_ref());
            }
            Ok(())
        });
        if done.is_err() {
            let _ = remove_folder(&staging);
            return done;
        }
        self.forget_size(site);
        // The old files, or an empty folder. The root is the new one whatever becomes of them.
        if let Err(error) = put_away(&staging) {
            log::warn!("{} is left until the next start: {error}", staging.display());
        }
        Ok(())
    }

    /// The snapshot's files beside the root, if they are no layers.
    fn copy_snapshot_files(
        &self,
        site: &RootLocation,
        snapshot: &RootSnapshot,
        staging: &Path,
        cancel: &Cancel,
    ) -> Result<()> {
        if snapshot.kind == RootKind::Overlay {
            return Ok(());
        }
        self.copy_tree(&self.files_of(site, snapshot.id), staging, snapshot.kind, cancel)
    }

    fn restore_layers(
        &self,
        site: &RootLocation,
        slot: &mut RootSlot,
        snapshot: RootSnapshot,
        stage: &StagingArea,
    ) -> Result<()> {
        let plain = slot.state.as_ref().is_none_or(|state| state.kind != RootKind::Overlay);
        let first_id = slot.state.as_ref().and_then(|state| state.first_id);
        slot.state = Some(self.create_layered(site, snapshot.stack, first_id)?);
        if plain {
            // From here on the layers lie over what is there, so a failure changes nothing; the sweep tries again.
            let moved = std::fs::rename(stage.home.root(), &stage.path).at("move", &site.root);
            if let Err(error) = moved.and_then(|()| file::create_dir_private(&site.attached())) {
                log::warn!("{error}");
            }
        }
        Ok(())
    }

    fn restore_folder(
        &self,
        site: &RootLocation,
        slot: &mut RootSlot,
        snapshot: &RootSnapshot,
        stage: &StagingArea,
    ) -> Result<()> {
        let (staging, root) = (&stage.path, stage.home.root());
        let had = root.symlink_metadata().is_ok();
        let change_places = || {
            let moved = match had {
                true => renameat_with(CWD, staging, CWD, &root, RenameFlags::EXCHANGE),
                false => rustix::fs::rename(staging, &root),
            };
            moved.at("move", staging)
        };
        change_places()?;
        let state = RootRecord::for_folder(snapshot.kind, snapshot.stack.clone(), stage.project);
        if slot.state.as_ref() != Some(&state) {
            if let Err(error) = state.write(&site.folder) {
                match had {
                    true => change_places()?,
                    false => std::fs::rename(&root, staging).at("move", staging)?,
                }
                return Err(error);
            }
        }
        if let Some(first) = slot.state.take().and_then(|old| old.first_id) {
            lock(&self.ranges).release(first);
        }
        slot.state = Some(state);
        Ok(())
    }

    /// Makes the root of `to`, which has none, from that of `from`, or from a snapshot of it. `running`: the container of
    /// `from` is there, and stands still. Nothing else may be done with either root meanwhile.
    ///
    /// # Errors
    /// As [`Roots::snapshot`]; nothing is left of the new root then.
    pub fn clone_root(
        &self,
        from: &RootLocation,
        snapshot: Option<Uuid>,
        to: &RootLocation,
        running: bool,
        cancel: &Cancel,
    ) -> Result<RootKind> {
        let kind = match snapshot {
            Some(id) => self.find_snapshot(from, id)?.kind,
            None => lock(&*self.slot(from)?).state.as_ref().map_or(RootKind::Copy, |state| state.kind),
        };
        let StagingArea { home, path: staging, project } = make_staging(to, kind)?;
        let made = (|| {
            let (kind, stack, _frozen) = match snapshot {
                Some(id) => {
                    let taken = self.find_snapshot(from, id)?;
                    if taken.kind != RootKind::Overlay {
                        self.copy_tree(&self.files_of(from, id), &staging, taken.kind, cancel)?;
                    }
                    (taken.kind, taken.stack, None)
                }
                None => {
                    let frozen = self.freeze(from, running, &staging, cancel)?;
                    (frozen.kind, frozen.stack.clone(), Some(frozen))
                }
            };
            let slot = self.slot(to)?;
            let mut slot = lock(&slot);
            slot.state = Some(if kind == RootKind::Overlay {
                self.create_layered(to, stack, None)?
            } else {
                std::fs::rename(&staging, home.root()).at("move", &staging)?;
                let state = RootRecord::for_folder(kind, stack, project);
                state.write(&to.folder)?;
                state
            });
            Ok(kind)
        })();
        if made.is_err() {
            let _ = remove_folder(&staging);
        }
        made
    }

    /// Removes what a crash left half-made beside a root, or half-replaced beneath it.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn sweep(&self, site: &RootLocation) -> Result<()> {
        self.migrate_old_root(site)?;
        if let Ok(Some(home)) = site.home() {
            remove_folder(&home.staging())?;
        }
        let slot = self.slot(site)?;
        let layered = lock(&slot).state.as_ref().is_some_and(|state| state.kind == RootKind::Overlay);
        if layered && site.is_own() {
            let at = site.attached();
            let empty = std::fs::read_dir(&at).is_ok_and(|mut entries| entries.next().is_none());
            if !empty {
                remove_folder(&at)?;
                file::create_dir_private(&at)?;
            }
        }
        super::snapshot::sweep(&site.folder)
    }

    pub(super) fn forget_size(&self, site: &RootLocation) {
        if let Some(sizes) = self.sizes.get() {
            sizes.forget(site);
        }
    }
}

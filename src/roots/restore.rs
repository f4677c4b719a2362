//! Restores snapshots and clones roots. At every moment, even after a crash, a root is either the old or the new
//! one: a single rename switches between them, and [`Roots::sweep`] removes the remains.

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
    /// Restores a snapshot, even if the root no longer exists. `put_away` disposes of the old root's plain
    /// directory. The container must be stopped, and the caller must exclude other operations on the root.
    ///
    /// # Errors
    /// `NotFound`; `Busy` when files of the root are open; `DiskFull`; `Cancelled`. After an error, the root is
    /// unchanged.
    pub fn restore(
        &self,
        location: &RootLocation,
        id: Uuid,
        put_away: impl Fn(&Path) -> Result<()>,
        cancel: &Cancel,
    ) -> Result<()> {
        let snapshot = self.find_snapshot(location, id)?;
        let slot = self.slot(location)?;
        let stage = make_staging(location, snapshot.kind)?;
        let staging = stage.path.clone();
        let done = self.copy_snapshot_files(location, &snapshot, &staging, cancel).and_then(|()| {
            let mut slot = lock(&slot);
            self.wait_exclusive(&mut slot)?;
            let before = slot.record.clone();
            if snapshot.kind == RootKind::Overlay {
                self.restore_layers(location, &mut slot, snapshot, &stage)
            } else {
                self.restore_folder(location, &mut slot, &snapshot, &stage)
            }?;
            self.clear_disk_limit(location, before.as_ref());
            let image = |record: Option<&RootRecord>| record.and_then(|record| record.stack.image.clone());
            if image(before.as_ref()) != image(slot.record.as_ref()) {
                self.release_image(location, before.as_ref());
            }
            Ok(())
        });
        if done.is_err() {
            let _ = remove_folder(&staging);
            return done;
        }
        self.forget_size(location);
        // `staging` now contains the old files or is empty. The restore has succeeded even if its removal fails.
        if let Err(error) = put_away(&staging) {
            log::warn!("{} is left until the next start: {error}", staging.display());
        }
        Ok(())
    }

    /// Copies the snapshot's files to `staging`; does nothing if they are layers.
    fn copy_snapshot_files(
        &self,
        location: &RootLocation,
        snapshot: &RootSnapshot,
        staging: &Path,
        cancel: &Cancel,
    ) -> Result<()> {
        if snapshot.kind == RootKind::Overlay {
            return Ok(());
        }
        self.copy_tree(&self.files_of(location, snapshot.id), staging, snapshot.kind, cancel)
    }

    fn restore_layers(
        &self,
        location: &RootLocation,
        slot: &mut RootSlot,
        snapshot: RootSnapshot,
        stage: &StagingArea,
    ) -> Result<()> {
        let plain = slot.record.as_ref().is_none_or(|record| record.kind != RootKind::Overlay);
        let first_id = slot.record.as_ref().and_then(|record| record.first_id);
        slot.record = Some(self.create_layered(location, snapshot.stack, first_id)?);
        if plain {
            // From here on, the layers cover the existing directory, so a failure to move it changes nothing for
            // readers; the next sweep tries to remove it again.
            let moved = std::fs::rename(stage.home.root(), &stage.path).at("move", &location.root);
            if let Err(error) = moved.and_then(|()| file::create_dir_private(&location.attached())) {
                log::warn!("{error}");
            }
        }
        Ok(())
    }

    fn restore_folder(
        &self,
        location: &RootLocation,
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
        let record = RootRecord::for_folder(snapshot.kind, snapshot.stack.clone(), stage.project);
        if slot.record.as_ref() != Some(&record) {
            if let Err(error) = record.write(&location.folder) {
                match had {
                    true => change_places()?,
                    false => std::fs::rename(&root, staging).at("move", staging)?,
                }
                return Err(error);
            }
        }
        if let Some(first) = slot.record.take().and_then(|old| old.first_id) {
            lock(&self.ranges).release(first);
        }
        slot.record = Some(record);
        Ok(())
    }

    /// Creates the root of `to`, which has none, from the root of `from` or from a snapshot of `from`. `running`
    /// means that the container of `from` is running and frozen. The caller must exclude other operations on both
    /// roots.
    ///
    /// # Errors
    /// The errors of [`Roots::snapshot`]; no root is left at `to`.
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
            None => lock(&*self.slot(from)?).record.as_ref().map_or(RootKind::Copy, |record| record.kind),
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
            slot.record = Some(if kind == RootKind::Overlay {
                self.create_layered(to, stack, None)?
            } else {
                std::fs::rename(&staging, home.root()).at("move", &staging)?;
                let record = RootRecord::for_folder(kind, stack, project);
                record.write(&to.folder)?;
                record
            });
            Ok(kind)
        })();
        if made.is_err() {
            let _ = remove_folder(&staging);
        }
        made
    }

    /// Removes files that a crashed server left beside or beneath a root.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn sweep(&self, location: &RootLocation) -> Result<()> {
        self.migrate_old_root(location)?;
        if let Ok(Some(home)) = location.home() {
            remove_folder(&home.staging())?;
        }
        let slot = self.slot(location)?;
        let layered = lock(&slot).record.as_ref().is_some_and(|record| record.kind == RootKind::Overlay);
        if layered && location.is_own() {
            let at = location.attached();
            let empty = std::fs::read_dir(&at).is_ok_and(|mut entries| entries.next().is_none());
            if !empty {
                remove_folder(&at)?;
                file::create_dir_private(&at)?;
            }
        }
        super::snapshot::sweep(&location.folder)
    }

    pub(super) fn forget_size(&self, location: &RootLocation) {
        if let Some(sizes) = self.sizes.get() {
            sizes.forget(location);
        }
    }
}

//! Snapshots: what a root was at a moment, to go back to or to begin another root with. `<workspace>/snapshots/ID` appears
//! and disappears by rename; it holds `snapshot.json`, and the files themselves where there are no layers.
//!
//! With layers the present upper one becomes a lower one for good and the root gets a new one: nothing is copied. That needs
//! a container that does not run, for a mount cannot be exchanged under processes. Of one that runs on (frozen) the upper
//! layer is copied, which is what the workspace itself has changed since it was made or last frozen.

use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::layers::Pins;
use super::make::{remove, staging_of};
use super::state::{Kind, Stack, State, read_json, write_json};
use super::{Roots, Site, Slot, namespace};
use crate::base::thread::lock;
use crate::base::{At, Code, Error, Result, clock, limits};
use crate::proc::{Cancel, Capture, Ended};
use crate::store::file;

/// A snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its id.
    pub id: Uuid,
    /// What its maker called it.
    pub name: String,
    /// RFC 3339.
    pub created_at: String,
    /// Of a root of this kind.
    pub kind: Kind,
    /// Nothing was copied.
    pub instant: bool,
    #[serde(flatten)]
    pub(super) stack: Stack,
}

const FOLDER: &str = "snapshots";
const RECORD: &str = "snapshot.json";
/// Half-made ones begin with this.
const STAGING: &str = ".new-";

impl Roots {
    /// Freezes the root as it is. `running`: its container is there, and stands still.
    ///
    /// # Errors
    /// `Conflict` for more than [`limits::SNAPSHOTS`]; `Busy` when somebody has files of it open; `DiskFull`; `Cancelled`.
    pub fn snapshot(&self, site: &Site, name: String, running: bool, cancel: &Cancel) -> Result<Snapshot> {
        if self.snapshots(site)?.len() >= limits::SNAPSHOTS {
            let message = format!("There are {} snapshots already; delete one first", limits::SNAPSHOTS);
            return Err(Error::new(Code::Conflict, message));
        }
        let slot = self.slot(site)?;
        let mut slot = lock(&slot);
        let id = Uuid::new_v4();
        let all = site.folder.join(FOLDER);
        let staging = all.join(format!("{STAGING}{id}"));
        file::create_dir_private(&staging)?;
        let kind = slot.state.as_ref().map_or(Kind::Copy, |state| state.kind);
        let made = (|| {
            let (stack, instant, _pins) = match kind {
                Kind::Overlay => self.freeze(site, &mut slot, running, cancel)?,
                _ => {
                    self.copy_quietly(&site.root, &staging.join("root"), kind, cancel)?;
                    (Stack::default(), false, None)
                }
            };
            let created_at = clock::now_rfc3339();
            let snapshot = Snapshot { id, name, created_at, kind, instant, stack };
            let _naming = lock(&self.naming);
            if let Some(image) = &snapshot.stack.image {
                self.images.hold(&self.images.get(image)?, &id.to_string())?;
            }
            write_json(&staging.join(RECORD), &snapshot)?;
            let place = all.join(id.to_string());
            std::fs::rename(&staging, &place).at("move", &staging)?;
            Ok(snapshot)
        })();
        if made.is_err() {
            let _ = remove(&staging);
        }
        made
    }

    /// All snapshots of a root, the oldest first.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn snapshots(&self, site: &Site) -> Result<Vec<Snapshot>> {
        read_all(&site.folder)
    }

    fn find(&self, site: &Site, id: Uuid) -> Result<Snapshot> {
        let found = read_json(&site.folder.join(FOLDER).join(id.to_string()).join(RECORD))?;
        found.ok_or_else(|| Error::new(Code::NotFound, format!("Snapshot {id} not found")))
    }

    /// Removes a snapshot; `put_away` gets its folder out of the way.
    ///
    /// # Errors
    /// `NotFound`; what `put_away` said.
    pub fn delete_snapshot(
        &self,
        site: &Site,
        id: Uuid,
        put_away: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        self.find(site, id)?;
        put_away(&site.folder.join(FOLDER).join(id.to_string()))
    }

    /// Makes the root what it was. `put_away` gets a plain folder out of the way. The container must have been stopped.
    ///
    /// # Errors
    /// `NotFound`; `Busy` when somebody has files of the root open; the root is as it was then.
    pub fn restore(
        &self,
        site: &Site,
        id: Uuid,
        put_away: impl FnOnce(&Path) -> Result<()>,
        cancel: &Cancel,
    ) -> Result<()> {
        let snapshot = self.find(site, id)?;
        let slot = self.slot(site)?;
        let mut slot = lock(&slot);
        let layered = slot.state.as_ref().is_some_and(|state| state.kind == Kind::Overlay);
        if snapshot.kind == Kind::Overlay {
            let first_id = slot.state.as_ref().and_then(|state| state.first_id);
            if layered {
                self.alone(&mut slot)?;
            } else {
                put_away(&site.root)?;
            }
            slot.state = Some(self.lay(site, snapshot.stack, first_id)?);
            return Ok(());
        }
        let staging = staging_of(&site.root);
        remove(&staging)?;
        let files = site.folder.join(FOLDER).join(id.to_string()).join("root");
        let done = self.copy_quietly(&files, &staging, snapshot.kind, cancel).and_then(|()| {
            if layered {
                self.alone(&mut slot)?;
            }
            // In one step, so that there is a root at every moment.
            renameat_with(CWD, &staging, CWD, &site.root, RenameFlags::EXCHANGE).at("move", &staging)?;
            let state = State::plain(snapshot.kind);
            state.write(&site.folder)?;
            slot.state = Some(state);
            put_away(&staging)
        });
        if done.is_err() {
            let _ = remove(&staging);
        }
        done
    }

    /// Makes the root of `to`, which has none, from that of `from`, or from a snapshot of it. `running`: the container of
    /// `from` is there, and stands still.
    ///
    /// # Errors
    /// As [`Roots::snapshot`]; nothing is left of the new root then.
    pub fn clone_root(
        &self,
        from: &Site,
        snapshot: Option<Uuid>,
        to: &Site,
        running: bool,
        cancel: &Cancel,
    ) -> Result<Kind> {
        let (kind, files, stack, _pins) = match snapshot {
            Some(id) => {
                let taken = self.find(from, id)?;
                let pins = self.layers.pin(&taken.stack.layers);
                let files = from.folder.join(FOLDER).join(id.to_string()).join("root");
                (taken.kind, files, taken.stack, Some(pins))
            }
            None => {
                let slot = self.slot(from)?;
                let mut slot = lock(&slot);
                let kind = slot.state.as_ref().map_or(Kind::Copy, |state| state.kind);
                let (stack, pins) = match kind {
                    Kind::Overlay => {
                        let (stack, _, pins) = self.freeze(from, &mut slot, running, cancel)?;
                        (stack, pins)
                    }
                    _ => (Stack::default(), None),
                };
                (kind, from.root.clone(), stack, pins)
            }
        };
        let slot = self.slot(to)?;
        let mut slot = lock(&slot);
        if kind == Kind::Overlay {
            slot.state = Some(self.lay(to, stack, None)?);
            return Ok(kind);
        }
        let staging = staging_of(&to.root);
        let made = self
            .copy_quietly(&files, &staging, kind, cancel)
            .and_then(|()| std::fs::rename(&staging, &to.root).at("move", &staging));
        if let Err(error) = made {
            let _ = remove(&staging);
            return Err(error);
        }
        let state = State::plain(kind);
        state.write(&to.folder)?;
        slot.state = Some(state);
        Ok(kind)
    }

    /// What the root consists of at this moment, as layers that nobody changes any more; whether that cost nothing.
    fn freeze(
        &self,
        site: &Site,
        slot: &mut std::sync::MutexGuard<'_, Slot>,
        running: bool,
        cancel: &Cancel,
    ) -> Result<(Stack, bool, Option<Pins>)> {
        let state = slot.state.clone().ok_or_else(|| Error::internal("there is no root"))?;
        let upper = state.upper.clone().ok_or_else(|| Error::internal("a root without an upper layer"))?;
        let files = self.layers.path(&upper).join("fs");
        let mut stack = state.stack.clone();
        let unchanged = std::fs::read_dir(&files).at("list", &files)?.next().is_none();
        if unchanged {
            return Ok((stack, true, None));
        }
        if running {
            let (copy, pins) = self.layers.create()?;
            let place = self.layers.path(&copy).join("fs");
            std::fs::remove_dir(&place).at("replace", &place)?;
            self.copy_quietly(&files, &place, state.kind, cancel)?;
            stack.layers.push(copy);
            return Ok((stack, false, Some(pins)));
        }
        self.alone(slot)?;
        stack.layers.push(upper);
        let deep = stack.layers.len() >= limits::ROOT_LAYERS;
        let pins = if deep { self.flatten(&mut stack, cancel)? } else { self.layers.pin(&stack.layers) };
        // First the root, then what wants it never to change: a crash between leaves a layer more, no wrong snapshot.
        slot.state = Some(self.lay(site, stack.clone(), state.first_id)?);
        Ok((stack, !deep, Some(pins)))
    }

    /// Replaces a deep stack by one layer: every look-up of a file goes through all layers.
    fn flatten(&self, stack: &mut Stack, cancel: &Cancel) -> Result<Pins> {
        let layers = namespace::Layers { lowers: self.lowers(stack), upper: None, first_id: None };
        let merged = self.namespace()?.merge(&layers)?;
        let (flat, pins) = self.layers.create()?;
        let place = self.layers.path(&flat).join("fs");
        std::fs::remove_dir(&place).at("replace", &place)?;
        let from = PathBuf::from(format!("{}/.", Roots::for_child(&merged.top)));
        self.copy_quietly(&from, &place, Kind::Overlay, cancel)?;
        *stack = Stack { image: None, layers: vec![flat] };
        Ok(pins)
    }

    fn copy_quietly(&self, from: &Path, to: &Path, kind: Kind, cancel: &Cancel) -> Result<()> {
        let mut printed = Capture::new(4096);
        match self.cp(from, to, kind, &mut printed, cancel)? {
            Ended::Exited(exit) if exit.success() => Ok(()),
            Ended::Cancelled => Err(Error::new(Code::Cancelled, "The copy was cancelled")),
            ended => {
                let printed = printed.finish().into_text();
                let code = if printed.contains("No space left") { Code::DiskFull } else { Code::Internal };
                Err(Error::new(code, format!("The root could not be copied ({ended:?}): {}", printed.trim())))
            }
        }
    }
}

/// The snapshots in a workspace's folder.
pub(super) fn read_all(folder: &Path) -> Result<Vec<Snapshot>> {
    let all = folder.join(FOLDER);
    let entries = match std::fs::read_dir(&all) {
        Err(error)
            if [std::io::ErrorKind::NotFound, std::io::ErrorKind::NotADirectory].contains(&error.kind()) =>
        {
            return Ok(Vec::new());
        }
        entries => entries.at("list", &all)?,
    };
    let mut found: Vec<Snapshot> = Vec::new();
    for entry in entries.flatten() {
        // Half-made ones name layers that their maker has pinned.
        if Uuid::try_parse(&entry.file_name().to_string_lossy()).is_ok() {
            found.extend(read_json(&entry.path().join(RECORD))?);
        }
    }
    found.sort_by(|a, b| (&a.created_at, a.id).cmp(&(&b.created_at, b.id)));
    Ok(found)
}

/// Removes what a crash left half-made.
pub(super) fn sweep(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder.join(FOLDER)).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(STAGING) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

//! Snapshots: what a root was at a moment, to go back to or to begin another root with. `<workspace>/snapshots/ID` appears
//! and disappears by rename; it holds `snapshot.json`, what the caller keeps beside it, and the files themselves where there
//! are no layers.
//!
//! With layers the present upper one becomes a lower one for good and the root gets a new one: nothing is copied. That needs
//! a container that does not run, for a mount cannot be exchanged under processes. Of one that runs on (frozen) the upper
//! layer is copied, which is what the workspace itself has changed since it was made or last frozen.
//!
//! The caller sees to it that nothing else is done with the root meanwhile. So its slot is locked for moments only: whoever
//! asks about a root does not wait for a copy.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::layers::LayerPins;
use super::make::remove_folder;
use super::record::{LayerStack, RootKind, RootRecord, read_json, write_json};
use super::{RootLocation, RootSlot, Roots, namespace};
use crate::base::thread::lock;
use crate::base::{At, Code, Error, Result, clock, limits};
use crate::proc::{Cancel, OutputCapture, ProcessOutcome};
use crate::store::file;

/// A snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RootSnapshot {
    /// Its id.
    pub id: Uuid,
    /// What its maker called it.
    pub name: String,
    /// RFC 3339.
    pub created_at: String,
    /// Of a root of this kind.
    pub kind: RootKind,
    /// Nothing was copied.
    pub instant: bool,
    #[serde(flatten)]
    pub(super) stack: LayerStack,
}

/// A root as it was at a moment.
pub(super) struct FrozenRoot {
    pub(super) kind: RootKind,
    pub(super) stack: LayerStack,
    instant: bool,
    /// To be kept until something names the layers.
    _pins: LayerPins,
}

const FOLDER: &str = "snapshots";
const RECORD: &str = "snapshot.json";
/// A plain root's files.
const FILES: &str = "root";
/// Half-made ones begin with this.
const STAGING: &str = ".new-";

impl Roots {
    /// Freezes the root as it is. `running`: its container is there, and stands still. `keep` writes what belongs to the
    /// snapshot into its folder.
    ///
    /// # Errors
    /// `Conflict` for more than [`limits::SNAPSHOTS`]; `Busy` when somebody has files of it open; `DiskFull`; `Cancelled`;
    /// what `keep` said.
    pub fn snapshot(
        &self,
        site: &RootLocation,
        name: &str,
        running: bool,
        keep: impl FnOnce(&Path) -> Result<()>,
        cancel: &Cancel,
    ) -> Result<RootSnapshot> {
        if self.snapshots(site)?.len() >= limits::SNAPSHOTS {
            let message = format!("There are {} snapshots already; delete one first", limits::SNAPSHOTS);
            return Err(Error::new(Code::Conflict, message));
        }
        let id = Uuid::new_v4();
        let all = site.folder.join(FOLDER);
        let staging = all.join(format!("{STAGING}{id}"));
        file::create_dir_private(&staging)?;
        let made = (|| {
            let frozen = self.freeze(site, running, &staging.join(FILES), cancel)?;
            keep(&staging)?;
            let created_at = clock::now_rfc3339();
            let snapshot = RootSnapshot {
                id,
                name: name.to_owned(),
                created_at,
                kind: frozen.kind,
                instant: frozen.instant,
                stack: frozen.stack.clone(),
            };
            let _naming = lock(&self.reference_lock);
            if let Some(image) = &snapshot.stack.image {
                self.images.hold(&self.images.get(image)?, &id.to_string())?;
            }
            write_json(&staging.join(RECORD), &snapshot)?;
            std::fs::rename(&staging, all.join(id.to_string())).at("move", &staging)?;
            file::sync_folder_at(&all)?;
            Ok(snapshot)
        })();
        if made.is_err() {
            let _ = remove_folder(&staging);
        }
        made
    }

    /// All snapshots of a root, the oldest first.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn snapshots(&self, site: &RootLocation) -> Result<Vec<RootSnapshot>> {
        read_all(&site.folder)
    }

    /// One of them.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn find_snapshot(&self, site: &RootLocation, id: Uuid) -> Result<RootSnapshot> {
        let found = read_json(&self.snapshot_folder(site, id).join(RECORD))?;
        found.ok_or_else(|| {
            let message = format!("Snapshot {id} not found; GET /api/workspaces/:id/snapshots lists them");
            Error::new(Code::NotFound, message)
        })
    }

    /// Where a snapshot lies, with what its maker keeps beside it.
    pub fn snapshot_folder(&self, site: &RootLocation, id: Uuid) -> PathBuf {
        site.folder.join(FOLDER).join(id.to_string())
    }

    /// The files of a snapshot of a plain root.
    pub(super) fn files_of(&self, site: &RootLocation, id: Uuid) -> PathBuf {
        self.snapshot_folder(site, id).join(FILES)
    }

    /// Removes a snapshot; `put_away` gets its folder out of the way.
    ///
    /// # Errors
    /// `NotFound`; what `put_away` said.
    pub fn delete_snapshot(
        &self,
        site: &RootLocation,
        id: Uuid,
        put_away: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        self.find_snapshot(site, id)?;
        put_away(&self.snapshot_folder(site, id))
    }

    /// The root at this moment: as layers that nobody changes any more, or copied to `place` if it is a plain folder.
    /// `running`: the container is there, and stands still.
    pub(super) fn freeze(
        &self,
        site: &RootLocation,
        running: bool,
        place: &Path,
        cancel: &Cancel,
    ) -> Result<FrozenRoot> {
        let slot = self.slot(site)?;
        let mut locked = lock(&slot);
        let state = locked
            .state
            .clone()
            .unwrap_or_else(|| RootRecord::for_folder(RootKind::Copy, LayerStack::default(), None));
        let Some(upper) = state.upper.clone() else {
            drop(locked);
            let stack = state.stack.clone();
            let home = site.existing_home()?;
            self.copy_tree(&home.root(), place, state.kind, cancel)?;
            return Ok(FrozenRoot { kind: state.kind, stack, instant: false, _pins: self.layers.pin([]) });
        };
        let files = self.layers.path(&upper).join("fs");
        let mut stack = state.stack.clone();
        if std::fs::read_dir(&files).at("list", &files)?.next().is_none() {
            let pins = self.layers.pin(&stack.layers);
            return Ok(FrozenRoot { kind: state.kind, stack, instant: true, _pins: pins });
        }
        if running {
            let mut pins = self.layers.pin(&stack.layers);
            drop(locked);
            let copy = self.copy_layer(&files, cancel, &mut pins)?;
            stack.layers.push(copy);
            return Ok(FrozenRoot { kind: state.kind, stack, instant: false, _pins: pins });
        }
        self.wait_exclusive(&mut locked)?;
        stack.layers.push(upper);
        let mut pins = self.layers.pin(&stack.layers);
        let deep = stack.layers.len() >= limits::ROOT_LAYERS;
        if deep {
            // Every look-up of a file goes through all layers.
            let closed = ClosedSlot::new(&slot, &mut locked);
            drop(locked);
            stack = self.flatten(&stack, cancel, &mut pins)?;
            locked = lock(&slot);
            closed.open(&mut locked);
        }
        // First the root, then what wants it never to change: a crash between leaves a layer more, no wrong snapshot.
        locked.state = Some(self.create_layered(site, stack.clone(), state.first_id)?);
        Ok(FrozenRoot { kind: state.kind, stack, instant: !deep, _pins: pins })
    }

    /// One layer with all that the stack shows.
    fn flatten(&self, stack: &LayerStack, cancel: &Cancel, pins: &mut LayerPins) -> Result<LayerStack> {
        let layers = namespace::OverlaySpec { lowers: self.lowers(stack), upper: None, first_id: None };
        let merged = self.namespace()?.merge(&layers)?;
        let from = PathBuf::from(format!("{}/.", Roots::child_path(&merged.top)));
        let flat = self.copy_layer(&from, cancel, pins)?;
        Ok(LayerStack { layers: vec![flat], host: stack.host, ..LayerStack::default() })
    }

    fn copy_layer(&self, from: &Path, cancel: &Cancel, pins: &mut LayerPins) -> Result<String> {
        let (layer, pinned) = self.layers.create(None)?;
        let place = self.layers.path(&layer).join("fs");
        std::fs::remove_dir(&place).at("replace", &place)?;
        self.copy_tree(from, &place, RootKind::Overlay, cancel)?;
        pins.add(pinned);
        Ok(layer)
    }

    pub(super) fn copy_tree(&self, from: &Path, to: &Path, kind: RootKind, cancel: &Cancel) -> Result<()> {
        let mut printed = OutputCapture::new(4096);
        match self.run_cp(from, to, kind, &mut printed, cancel)? {
            ProcessOutcome::Exited(exit) if exit.success() => Ok(()),
            ProcessOutcome::Cancelled => {
                Err(Error::new(Code::Cancelled, "It was cancelled; nothing has changed"))
            }
            ended => {
                let printed = printed.finish().into_text();
                let code = if printed.contains("No space left") { Code::DiskFull } else { Code::Internal };
                Err(Error::new(code, format!("The root could not be copied ({ended:?}): {}", printed.trim())))
            }
        }
    }
}

/// Keeps everybody from a root's files while its slot is not locked.
struct ClosedSlot<'a>(&'a std::sync::Mutex<RootSlot>);

impl ClosedSlot<'_> {
    fn new<'a>(slot: &'a std::sync::Mutex<RootSlot>, locked: &mut RootSlot) -> ClosedSlot<'a> {
        locked.closed = true;
        ClosedSlot(slot)
    }

    fn open(self, locked: &mut RootSlot) {
        locked.closed = false;
        std::mem::forget(self);
    }
}

impl Drop for ClosedSlot<'_> {
    fn drop(&mut self) {
        lock(self.0).closed = false;
    }
}

/// The snapshots in a workspace's folder.
pub(super) fn read_all(folder: &Path) -> Result<Vec<RootSnapshot>> {
    let all = folder.join(FOLDER);
    let entries = match std::fs::read_dir(&all) {
        Err(error)
            if [std::io::ErrorKind::NotFound, std::io::ErrorKind::NotADirectory].contains(&error.kind()) =>
        {
            return Ok(Vec::new());
        }
        entries => entries.at("list", &all)?,
    };
    let mut found: Vec<RootSnapshot> = Vec::new();
    for entry in entries.flatten() {
        // Half-made ones name layers that their maker has pinned.
        if Uuid::try_parse(&entry.file_name().to_string_lossy()).is_ok() {
            found.extend(read_json(&entry.path().join(RECORD))?);
        }
    }
    found.sort_unstable_by(|a, b| (&a.created_at, a.id).cmp(&(&b.created_at, b.id)));
    Ok(found)
}

/// The files of a snapshot of a plain root.
pub(super) fn files_in(folder: &Path, id: Uuid) -> PathBuf {
    folder.join(FOLDER).join(id.to_string()).join(FILES)
}

/// Removes what a crash left half-made.
pub(super) fn sweep(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder.join(FOLDER)).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(STAGING) {
            remove_folder(&entry.path())?;
        }
    }
    Ok(())
}

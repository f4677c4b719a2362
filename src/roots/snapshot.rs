//! Snapshots: the state of a root at one moment, for restoring the root or creating another one. A rename makes
//! the directory `<workspace>/snapshots/ID` appear and disappear. It contains `snapshot.json`, the caller's files,
//! and the root's files if the root has no layers.
//!
//! For a snapshot of a layered root, its current upper layer becomes a permanent lower layer and the root receives
//! a new upper layer; no file is copied. That requires a stopped container, because a mount cannot be replaced
//! under running processes. If the container keeps running (frozen), the upper layer is copied instead; it
//! contains the workspace's changes since its creation or its last snapshot.
//!
//! The caller excludes other operations on the root. Therefore the slot is locked only briefly, and readers of the
//! root's state do not wait for a copy.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::layers::LayerPins;
use super::make::remove_folder;
use super::record::{LayerStack, RootKind, RootRecord, read_json, write_json};
use super::{RootLocation, RootSlot, Roots, namespace};
use crate::base::thread::lock;
use crate::base::{At, Code, Error, Result, clock};
use crate::proc::{Cancel, OutputCapture, ProcessOutcome};
use crate::store::file;

/// Maximum number of layers of a root, because the kernel searches a missing file in all of them. A deeper stack
/// is merged into one layer.
const ROOT_LAYERS: usize = 50;
/// Maximum number of snapshots of a workspace.
const SNAPSHOTS: usize = 200;

/// A snapshot of a root.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RootSnapshot {
    pub id: Uuid,
    /// Name that the client gave the snapshot.
    pub name: String,
    /// Time of creation in RFC 3339.
    pub created_at: String,
    /// Kind of the root at the time of the snapshot.
    pub kind: RootKind,
    /// Whether the snapshot was made without copying files.
    pub instant: bool,
    #[serde(flatten)]
    pub(super) stack: LayerStack,
}

/// The state of a root at one moment.
pub(super) struct FrozenRoot {
    pub(super) kind: RootKind,
    pub(super) stack: LayerStack,
    instant: bool,
    /// Keeps the layers until a record refers to them.
    _pins: LayerPins,
}

const FOLDER: &str = "snapshots";
const RECORD: &str = "snapshot.json";
/// Name of the directory with the files of a copied root.
const FILES: &str = "root";
/// Prefix of the names of incomplete snapshots.
const STAGING: &str = ".new-";

impl Roots {
    /// Takes a snapshot of the root. `running` means that the root's container is running and frozen. `keep`
    /// writes the caller's files into the snapshot's directory.
    ///
    /// # Errors
    /// `Conflict` when there are already [`SNAPSHOTS`]; `Busy` when files of the root are open; `DiskFull`;
    /// `Cancelled`; errors of `keep`.
    pub fn snapshot(
        &self,
        location: &RootLocation,
        name: &str,
        running: bool,
        keep: impl FnOnce(&Path) -> Result<()>,
        cancel: &Cancel,
    ) -> Result<RootSnapshot> {
        if self.snapshots(location)?.len() >= SNAPSHOTS {
            let message = format!("There are {} snapshots already; delete one first", SNAPSHOTS);
            return Err(Error::new(Code::Conflict, message));
        }
        let id = Uuid::new_v4();
        let all = location.folder.join(FOLDER);
        let staging = all.join(format!("{STAGING}{id}"));
        file::create_dir_private(&staging)?;
        let made = (|| {
            let frozen = self.freeze(location, running, &staging.join(FILES), cancel)?;
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

    /// Returns all snapshots of a root, oldest first.
    ///
    /// # Errors
    /// When a snapshot's record cannot be read.
    pub fn snapshots(&self, location: &RootLocation) -> Result<Vec<RootSnapshot>> {
        read_all(&location.folder)
    }

    /// Returns the snapshot with this ID.
    ///
    /// # Errors
    /// `NotFound` when the root has no such snapshot.
    pub fn find_snapshot(&self, location: &RootLocation, id: Uuid) -> Result<RootSnapshot> {
        let found = read_json(&self.snapshot_folder(location, id).join(RECORD))?;
        found.ok_or_else(|| {
            let message = format!("Snapshot {id} not found; GET /api/workspaces/:id/snapshots lists them");
            Error::new(Code::NotFound, message)
        })
    }

    /// Returns the directory of a snapshot.
    pub fn snapshot_folder(&self, location: &RootLocation, id: Uuid) -> PathBuf {
        location.folder.join(FOLDER).join(id.to_string())
    }

    /// Returns the directory with the files of a copied root's snapshot.
    pub(super) fn files_of(&self, location: &RootLocation, id: Uuid) -> PathBuf {
        self.snapshot_folder(location, id).join(FILES)
    }

    /// Deletes a snapshot by passing its directory to `put_away`.
    ///
    /// # Errors
    /// `NotFound`; errors of `put_away`.
    pub fn delete_snapshot(
        &self,
        location: &RootLocation,
        id: Uuid,
        put_away: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        self.find_snapshot(location, id)?;
        put_away(&self.snapshot_folder(location, id))
    }

    /// Freezes the state of the root: as layers that no longer change, or by copying a plain directory to `place`.
    /// `running` means that the container is running and frozen.
    pub(super) fn freeze(
        &self,
        location: &RootLocation,
        running: bool,
        place: &Path,
        cancel: &Cancel,
    ) -> Result<FrozenRoot> {
        let slot = self.slot(location)?;
        let mut locked = lock(&slot);
        let record = locked
            .record
            .clone()
            .unwrap_or_else(|| RootRecord::for_folder(RootKind::Copy, LayerStack::default(), None));
        let Some(upper) = record.upper.clone() else {
            drop(locked);
            let stack = record.stack.clone();
            let home = location.existing_home()?;
            self.copy_tree(&home.root(), place, record.kind, cancel)?;
            return Ok(FrozenRoot { kind: record.kind, stack, instant: false, _pins: self.layers.pin([]) });
        };
        let files = self.layers.path(&upper).join("fs");
        let mut stack = record.stack.clone();
        if std::fs::read_dir(&files).at("list", &files)?.next().is_none() {
            let pins = self.layers.pin(&stack.layers);
            return Ok(FrozenRoot { kind: record.kind, stack, instant: true, _pins: pins });
        }
        if running {
            let mut pins = self.layers.pin(&stack.layers);
            drop(locked);
            let copy = self.copy_layer(&files, cancel, &mut pins)?;
            stack.layers.push(copy);
            return Ok(FrozenRoot { kind: record.kind, stack, instant: false, _pins: pins });
        }
        self.wait_exclusive(&mut locked)?;
        stack.layers.push(upper);
        let mut pins = self.layers.pin(&stack.layers);
        let deep = stack.layers.len() >= ROOT_LAYERS;
        if deep {
            // The stack is at its limit, so merge its layers; the root's files stay closed meanwhile.
            let closed = ClosedSlot::new(&slot, &mut locked);
            drop(locked);
            stack = self.flatten(&stack, cancel, &mut pins)?;
            locked = lock(&slot);
            closed.open(&mut locked);
        }
        // Write the root's record before the snapshot's: a crash between the two leaves an extra layer, but never
        // a snapshot with a layer that is still writable.
        locked.record = Some(self.create_layered(location, stack.clone(), record.first_id)?);
        Ok(FrozenRoot { kind: record.kind, stack, instant: !deep, _pins: pins })
    }

    /// Merges the layers and the image of a stack into a single layer.
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
                Err(Error::new(Code::Cancelled, "The operation was cancelled; nothing has changed"))
            }
            ended => {
                let printed = printed.finish().into_text();
                let code = if printed.contains("No space left") { Code::DiskFull } else { Code::Internal };
                Err(Error::new(code, format!("The root could not be copied ({ended:?}): {}", printed.trim())))
            }
        }
    }
}

/// Keeps other callers from opening a root's files while its slot is unlocked.
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

/// Reads the snapshots in a workspace's directory.
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
        // Skip incomplete snapshots; the thread that creates one pins its layers.
        if Uuid::try_parse(&entry.file_name().to_string_lossy()).is_ok() {
            found.extend(read_json(&entry.path().join(RECORD))?);
        }
    }
    found.sort_unstable_by(|a, b| (&a.created_at, a.id).cmp(&(&b.created_at, b.id)));
    Ok(found)
}

/// Returns the directory with the files of a copied root's snapshot.
pub(super) fn files_in(folder: &Path, id: Uuid) -> PathBuf {
    folder.join(FOLDER).join(id.to_string()).join(FILES)
}

/// Removes incomplete snapshots that a crashed server left behind.
pub(super) fn sweep(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder.join(FOLDER)).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(STAGING) {
            remove_folder(&entry.path())?;
        }
    }
    Ok(())
}

//! Roots in backups. A layered root is saved as its layers and their image: its upper layer becomes the topmost of
//! the saved layers, as in a snapshot, and the restored root receives a new upper layer and new user IDs. A copied
//! root is saved as its files. For a running container, a backup first takes a snapshot, so that no file changes
//! while it is read (`lifecycle::snapshots`). No locks: a restore works on a directory that no server uses.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::layers::LayerStore;
use super::record::{IdRanges, RootKind, RootRecord, workspace_folders};
use super::{RootLocation, snapshot};
use crate::base::{At, Error, Result};
use crate::store::file;

/// The parts of a root that a backup contains.
#[derive(Debug, Default)]
pub struct SavedRoot {
    /// Content of `root.json`; `None` if the root has no record.
    pub state: Option<Vec<u8>>,
    /// Directory with the files of a copied root; `None` for a layered root.
    pub files: Option<PathBuf>,
    /// IDs of the layers that the root and its snapshots need.
    pub layers: BTreeSet<String>,
}

/// Returns the parts to save of the root at path `root`, whose workspace has the directory `folder`. `taken` is a
/// snapshot made for this backup; if it is `None`, the root itself is saved and must not change. Returns `None` if
/// the root does not exist.
///
/// # Errors
/// When a record cannot be read.
pub fn save(folder: &Path, root: &Path, taken: Option<Uuid>) -> Result<Option<SavedRoot>> {
    let mut saved = SavedRoot::default();
    let location = RootLocation { folder: folder.to_owned(), root: root.to_owned() };
    let snapshots = snapshot::read_all(folder)?;
    let Some(mut state) = RootRecord::read(folder)? else {
        let home = location.home()?;
        let files = home.map(|home| home.root()).filter(|root| root.is_dir());
        let files = match taken {
            Some(id) => Some(snapshot::files_in(folder, id)),
            None => files,
        };
        saved.files = files;
        return Ok(saved.files.is_some().then_some(saved));
    };
    match taken {
        Some(id) => {
            let found = snapshots.iter().find(|snapshot| snapshot.id == id);
            let found = found.ok_or_else(|| Error::internal("The snapshot for the backup was removed"))?;
            state.stack = found.stack.clone();
            saved.files = (state.kind != RootKind::Overlay).then(|| snapshot::files_in(folder, id));
        }
        None if state.kind == RootKind::Overlay => state.stack.layers.extend(state.upper.take()),
        None => saved.files = Some(location.existing_home()?.root()),
    }
    state.upper = None;
    state.first_id = None;
    state.project = None;
    saved.layers.extend(state.stack.layers.iter().cloned());
    let others = snapshots.iter().filter(|snapshot| Some(snapshot.id) != taken);
    saved.layers.extend(others.flat_map(|snapshot| snapshot.stack.layers.iter().cloned()));
    let text = serde_json::to_vec_pretty(&state)
        .map_err(|error| Error::internal("Could not serialize root.json").with_source(error))?;
    saved.state = Some(text);
    Ok(Some(saved))
}

/// Completes the layered roots in a data directory that was restored from a backup.
///
/// # Errors
/// When the directory cannot be written.
pub fn complete_restored_roots(data_dir: &Path) -> Result<()> {
    let mut ranges = IdRanges::new(data_dir)?;
    for folder in workspace_folders(data_dir)? {
        let Some(mut state) = RootRecord::read(&folder)?.filter(|state| state.kind == RootKind::Overlay)
        else {
            continue;
        };
        let location = RootLocation { folder: folder.clone(), root: folder.join("root") };
        for layer in &state.stack.layers {
            let path = data_dir.join("layers").join(layer);
            // The kernel used `work` while the layer was writable; backups do not contain it.
            file::create_dir_private(&path.join("work"))?;
            if !path.join("fs").is_dir() {
                let message =
                    format!("The backup does not have the layer {layer}, which {} needs", folder.display());
                return Err(Error::internal(message));
            }
        }
        let (upper, _pins) =
            LayerStore::open(data_dir)?.create(Some(super::disk_limit::layers_project(&location)))?;
        file::create_dir_private(&location.attached())?;
        state.upper = Some(upper);
        // Allocate new IDs, because another server on this host may use the old ones.
        state.first_id = Some(ranges.pick(Uuid::new_v4().as_fields().0)?);
        state.write(&folder)?;
    }
    Ok(())
}

/// Returns the directory with a layer's files, without its `work` directory.
pub fn layer_folder(data_dir: &Path, layer: &str) -> Result<PathBuf> {
    let path = data_dir.join("layers").join(layer).join("fs");
    path.symlink_metadata().at("read", &path)?;
    Ok(path)
}

//! Layers: the files of roots above their image. A layer `<data>/layers/ID` contains the directories `fs`, with
//! the files, and `work`, which the kernel needs while the layer is writable. Snapshots and clones share layers. A
//! layer is removed when no root and no snapshot refers to it.
//!
//! Lock: `pinned`, a leaf. It protects the list of layers to which a record will refer soon.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use uuid::Uuid;

use crate::base::thread::lock;
use crate::base::{At, Result};
use crate::store::{file, quota, tree};

/// The layers in a data directory.
#[derive(Debug)]
pub(super) struct LayerStore {
    data_dir: PathBuf,
    folder: PathBuf,
    pinned: Arc<Mutex<BTreeMap<String, usize>>>,
}

/// Keeps layers from being removed until a record refers to them.
#[derive(Debug)]
pub(super) struct LayerPins {
    pinned: Arc<Mutex<BTreeMap<String, usize>>>,
    ids: Vec<String>,
}

impl LayerStore {
    pub(super) fn open(data_dir: &Path) -> Result<LayerStore> {
        let folder = data_dir.join("layers");
        file::own_dir_private(&folder)?;
        Ok(LayerStore { data_dir: data_dir.to_owned(), folder, pinned: Arc::default() })
    }

    pub(super) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the directory of a layer.
    pub(super) fn path(&self, id: &str) -> PathBuf {
        self.folder.join(id)
    }

    /// Creates an empty layer. Its files belong to `project` if that is given and quotas are available. All users
    /// can enter its top directory, like the top directory of any root.
    pub(super) fn create(&self, project: Option<u32>) -> Result<(String, LayerPins)> {
        let id = Uuid::new_v4().to_string();
        let pins = self.pin([&id]);
        let path = self.path(&id);
        file::create_dir_private(&path)?;
        let project = project.filter(|_| quota::check(&path).is_ok());
        for part in ["fs", "work"] {
            let part = path.join(part);
            std::fs::create_dir(&part).at("make", &part)?;
            // Add both directories: the kernel moves files between them, and a file cannot be moved to another
            // project.
            if let Some(project) = project {
                quota::join(&part, project)?;
            }
        }
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(path.join("fs"), open).at("prepare", &path)?;
        Ok((id, pins))
    }

    pub(super) fn pin<'a>(&self, ids: impl IntoIterator<Item = &'a String>) -> LayerPins {
        let ids: Vec<String> = ids.into_iter().cloned().collect();
        let mut pinned = lock(&self.pinned);
        for id in &ids {
            *pinned.entry(id.clone()).or_default() += 1;
        }
        LayerPins { pinned: self.pinned.clone(), ids }
    }

    /// Removes the layers that are neither pinned nor returned by `named`; slow. `named` reads the references from
    /// all records, after the layers were listed; if it fails, no layer is removed.
    pub(super) fn remove_unreferenced(
        &self,
        named: impl FnOnce(&Path) -> Result<BTreeSet<String>>,
    ) -> Result<()> {
        // The order matters: another thread pins a layer before creating it, and unpins it after a record refers
        // to it.
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.folder).at("list", &self.folder)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if Uuid::try_parse(&name).is_ok() {
                found.push(name);
            }
        }
        let pinned: BTreeSet<String> = lock(&self.pinned).keys().cloned().collect();
        let named = named(&self.data_dir)?;
        for id in found.iter().filter(|id| !pinned.contains(*id) && !named.contains(*id)) {
            tree::remove_tree(&self.folder, id)?;
        }
        Ok(())
    }
}

impl LayerPins {
    /// Adds the pins of `others` to this object.
    pub(super) fn add(&mut self, mut others: LayerPins) {
        self.ids.append(&mut others.ids);
    }
}

impl Drop for LayerPins {
    fn drop(&mut self) {
        let mut pinned = lock(&self.pinned);
        for id in &self.ids {
            if let Some(count) = pinned.get_mut(id) {
                *count -= 1;
                if *count == 0 {
                    pinned.remove(id);
                }
            }
        }
    }
}

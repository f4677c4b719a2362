//! The record of a root, `<workspace>/root.json`: the root's kind and layers. A root is complete once this file
//! exists. A directory without it is a root that an older version copied. No threads or locks.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::base::{At, Error, Result};
use crate::images::ImageId;
use crate::proc::idmap::IDS;
use crate::store::file;

/// How the files of a root are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RootKind {
    /// Layers over a base image, which is not copied.
    Overlay,
    /// A copy that shares blocks with the image until they are changed.
    Reflink,
    /// A copy that shares no blocks with the image.
    Copy,
}

impl RootKind {
    /// Returns the kind's name in flags and responses.
    pub fn as_str(self) -> &'static str {
        match self {
            RootKind::Overlay => "overlay",
            RootKind::Reflink => "reflink",
            RootKind::Copy => "copy",
        }
    }
}

/// The parts of a root: the base image, then immutable layers, lowest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LayerStack {
    pub(super) image: Option<ImageId>,
    pub(super) layers: Vec<String>,
    /// Whether the host's own programs are bind-mounted into the container.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) host: bool,
    /// Disk usage of a copied root before the workspace changed it; 0 if the root has no limit.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) base_bytes: u64,
}

fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

/// Content of `root.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RootRecord {
    pub(super) kind: RootKind,
    #[serde(flatten)]
    pub(super) stack: LayerStack,
    /// ID of the writable layer; `None` for a copied root.
    pub(super) upper: Option<String>,
    /// ID on the host of root in the container; it never changes.
    pub(super) first_id: Option<u32>,
    /// File system project of a copied root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) project: Option<u32>,
}

const FILE: &str = "root.json";

impl RootRecord {
    /// Creates the record of a root that is a plain directory.
    pub(super) fn for_folder(kind: RootKind, stack: LayerStack, project: Option<u32>) -> RootRecord {
        RootRecord { kind, stack, upper: None, first_id: None, project }
    }

    pub(super) fn read(folder: &Path) -> Result<Option<RootRecord>> {
        read_json(&folder.join(FILE))
    }

    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        write_json(&folder.join(FILE), self)
    }

    pub(super) fn remove(folder: &Path) -> Result<()> {
        match std::fs::remove_file(folder.join(FILE)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).at("remove", folder.join(FILE))
            }
            _ => Ok(()),
        }
    }
}

pub(super) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(bytes) = file::read_optional(path, 1 << 20)? else { return Ok(None) };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| Error::internal(format!("{} is damaged: {error}", path.display())))
}

pub(super) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let bytes = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::internal("Could not serialize the record of a root").with_source(error))?;
    file::write_atomic(path, &bytes, 0o600)
}

/// Returns the name under which a workspace or snapshot holds an image: the last part of its directory's path.
pub(super) fn holder(folder: &Path) -> String {
    folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Returns the directories of all workspaces in a data directory.
pub fn workspace_folders(data_dir: &Path) -> Result<Vec<PathBuf>> {
    let all = data_dir.join("workspaces");
    let entries = match std::fs::read_dir(&all) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.at("list", &all)?,
    };
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

/// Allocates ranges of user IDs. `taken` contains the ranges of this server's roots, and the ranges that
/// /etc/subuid and /etc/subgid assign to users.
#[derive(Debug)]
pub(super) struct IdRanges {
    taken: BTreeSet<u32>,
}

impl IdRanges {
    /// Limits of the range that systemd reserves for containers, 0x80000 to 0x6fff0000 (UIDS-GIDS.md), in units of
    /// [`IDS`]; distributions do not assign these IDs to users.
    const FIRST: u32 = 0x8;
    const LAST: u32 = 0x6fff;

    pub(super) fn new(data_dir: &Path) -> Result<IdRanges> {
        let mut taken: BTreeSet<u32> = workspace_folders(data_dir)?
            .iter()
            .filter_map(|folder| RootRecord::read(folder).ok()??.first_id)
            .map(|first| first / IDS)
            .collect();
        for table in ["/etc/subuid", "/etc/subgid"] {
            let text = std::fs::read_to_string(table).unwrap_or_default();
            for line in text.lines() {
                let mut numbers = line.split(':').skip(1).map_while(|field| field.trim().parse::<u64>().ok());
                let (Some(first), Some(count)) = (numbers.next(), numbers.next()) else { continue };
                let last = first.saturating_add(count.saturating_sub(1)).min(u64::from(u32::MAX));
                taken.extend((first / u64::from(IDS)..=last / u64::from(IDS)).map(|range| range as u32));
            }
        }
        Ok(IdRanges { taken })
    }

    /// Allocates a range, if possible the one that `seed` selects, so that two servers on one host rarely use the
    /// same.
    pub(super) fn pick(&mut self, seed: u32) -> Result<u32> {
        let count = Self::LAST - Self::FIRST + 1;
        let free = (0..count)
            .map(|step| Self::FIRST + (seed % count + step) % count)
            .find(|range| !self.taken.contains(range))
            .ok_or_else(|| Error::internal("No user IDs are left for another container"))?;
        self.taken.insert(free);
        Ok(free * IDS)
    }

    pub(super) fn release(&mut self, first: u32) {
        self.taken.remove(&(first / IDS));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_unique_until_released() {
        let mut ranges = IdRanges { taken: BTreeSet::from([IdRanges::FIRST + 1]) };
        let first = ranges.pick(0).unwrap();
        assert_eq!(first, 0x80000);
        assert_eq!(ranges.pick(0).unwrap(), 0xa0000, "the second is taken");
        ranges.release(first);
        assert_eq!(ranges.pick(0).unwrap(), first);
        assert!(ranges.pick(u32::MAX).unwrap() <= 0x6fff_0000);
    }

    #[test]
    fn a_record_round_trips() {
        let folder = crate::store::scratch::TestFolder::new();
        assert_eq!(RootRecord::read(&folder).unwrap(), None);
        let state = RootRecord {
            kind: RootKind::Overlay,
            stack: LayerStack {
                image: Some(ImageId::parse(&"a".repeat(64)).unwrap()),
                layers: vec!["a".into()],
                host: true,
                base_bytes: 7,
            },
            upper: Some("b".into()),
            first_id: Some(0x80000),
            project: Some(9),
        };
        state.write(&folder).unwrap();
        assert_eq!(RootRecord::read(&folder).unwrap(), Some(state));
        file::write_atomic(&folder.join(FILE), b"{", 0o600).unwrap();
        assert!(RootRecord::read(&folder).is_err());
        RootRecord::remove(&folder).unwrap();
        RootRecord::remove(&folder).unwrap();
    }
}

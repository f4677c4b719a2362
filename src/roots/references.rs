//! Reads from all records in a data directory which images and layers its roots and snapshots refer to. No locks.

use std::collections::BTreeSet;
use std::path::Path;

use super::record::{RootRecord, holder, workspace_folders};
use super::snapshot;
use crate::base::Result;

/// Returns the names of the workspaces and snapshots that need a base image.
pub(super) fn image_holders(data_dir: &Path) -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for folder in workspace_folders(data_dir)? {
        if RootRecord::read(&folder)?.is_some_and(|record| record.stack.image.is_some()) {
            all.insert(holder(&folder));
        }
        let snapshots = snapshot::read_all(&folder)?;
        all.extend(
            snapshots.iter().filter(|taken| taken.stack.image.is_some()).map(|taken| taken.id.to_string()),
        );
    }
    Ok(all)
}

/// Returns the layers to which a root or a snapshot refers.
pub(super) fn named_layers(data_dir: &Path) -> Result<BTreeSet<String>> {
    let mut named = BTreeSet::new();
    for folder in workspace_folders(data_dir)? {
        let record = RootRecord::read(&folder)?;
        named.extend(
            record.into_iter().flat_map(|record| record.stack.layers.into_iter().chain(record.upper)),
        );
        for taken in snapshot::read_all(&folder)? {
            named.extend(taken.stack.layers);
        }
    }
    Ok(named)
}

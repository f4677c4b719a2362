//! The record of a server's container, written before the start, so that the next server can remove a container that
//! a killed server left behind, whatever its own sandbox is. Usually none is left, because a container ends with its
//! server.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::arguments::{EXTRA_NAME, EnginePlan};
use super::command::{EngineCommand, EngineKind};
use crate::base::{Error, Result};
use crate::proc::Cgroups;
use crate::store::{file, tree};

/// The folder for starting a container with the server in it.
pub const SEED: &str = "seed";
/// The file with its secrets.
pub const SECRETS: &str = "sandbox.env";
/// The folder of the container's socket, in the same folder.
pub(super) const DOOR: &str = "door";
/// In the folder `host` of the data folder.
const FILE: &str = "sandbox.json";
const FILE_BYTES: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
struct EngineRecord {
    apple: bool,
    program: PathBuf,
    env: Vec<(String, String)>,
    name: String,
    label: String,
    /// The mount point that the engine creates in the workspace, removed with the container.
    extra: Option<PathBuf>,
}

/// Writes the record.
///
/// # Errors
/// If the file cannot be written.
pub fn keep(folder: &Path, plan: &EnginePlan) -> Result<()> {
    let extra = plan.workspace.source.join(EXTRA_NAME);
    let is_new = !plan.mounts.is_empty() && extra.symlink_metadata().is_err();
    let record = EngineRecord {
        apple: plan.command.kind == EngineKind::Apple,
        program: plan.command.program.clone(),
        env: plan.command.env.clone(),
        name: plan.name.clone(),
        label: plan.label(),
        extra: is_new.then_some(extra),
    };
    let text = serde_json::to_vec(&record).map_err(|error| Error::internal(FILE).with_source(error))?;
    file::replace(&folder.join(FILE), &text, 0o600)
}

fn read(folder: &Path) -> Option<EngineRecord> {
    let bytes = file::read_optional(&folder.join(FILE), FILE_BYTES).ok().flatten()?;
    serde_json::from_slice(&bytes).ok()
}

/// Whether a container may still exist.
pub fn is_kept(folder: &Path) -> bool {
    folder.join(FILE).exists()
}

/// Removes the record after the container was removed.
pub fn forget(folder: &Path) {
    if let Some(extra) = read(folder).and_then(|record| record.extra) {
        // Only if it is still empty.
        let _ = std::fs::remove_dir(extra);
    }
    for name in [SEED, SECRETS, DOOR] {
        if let Err(error) = tree::remove_tree(folder, name) {
            log::warn!("{error}");
        }
    }
    let _ = std::fs::remove_file(folder.join(FILE));
}

/// Removes the container of a killed server.
pub fn sweep(folder: &Path, cgroups: &Cgroups) {
    let Some(record) = read(folder) else { return forget(folder) };
    let kind = if record.apple { EngineKind::Apple } else { EngineKind::Docker };
    let command = EngineCommand { kind, program: record.program, env: record.env };
    let removed = match kind {
        EngineKind::Docker => {
            command.labelled(&record.label, cgroups).and_then(|left| command.remove(&left, cgroups))
        }
        EngineKind::Apple => command.stop(&record.name, cgroups),
    };
    match removed {
        Ok(()) => forget(folder),
        Err(error) => {
            log::warn!("The container {} of an earlier start may still exist: {error}", record.name)
        }
    }
}

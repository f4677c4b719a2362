//! The record of the container that a server starts for OpenCode. It is written before the start, so that the next
//! server can remove the container if this server is killed, whatever sandbox the next server uses. Usually there
//! is no container to remove, because a container ends with its server.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::arguments::{EXTRA_NAME, EnginePlan};
use super::command::{EngineCommand, EngineKind};
use crate::base::{Error, Result};
use crate::proc::Cgroups;
use crate::store::{file, tree};

/// Directory for the files of a container in which the server runs too.
pub const SEED: &str = "seed";
/// File with the secrets of that container.
pub const SECRETS: &str = "sandbox.env";
/// Directory for the socket of OpenCode's container.
pub(super) const DOOR: &str = "door";
/// Name of the record in the directory `host` of the data directory.
const FILE: &str = "sandbox.json";
const FILE_BYTES: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
struct EngineRecord {
    apple: bool,
    program: PathBuf,
    env: Vec<(String, String)>,
    name: String,
    label: String,
    /// Path in the workspace at which the engine creates a mount point; it is removed with the container.
    extra: Option<PathBuf>,
}

/// Writes the record of the container that `plan` describes.
///
/// # Errors
/// When the file cannot be written.
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

/// Returns whether a record exists, so that a container may exist too.
pub fn is_kept(folder: &Path) -> bool {
    folder.join(FILE).exists()
}

/// Removes the record and the files of a container that has been removed.
pub fn forget(folder: &Path) {
    if let Some(extra) = read(folder).and_then(|record| record.extra) {
        // The removal fails, as intended, if the directory is no longer empty.
        let _ = std::fs::remove_dir(extra);
    }
    for name in [SEED, SECRETS, DOOR] {
        if let Err(error) = tree::remove_tree(folder, name) {
            log::warn!("{error}");
        }
    }
    let _ = std::fs::remove_file(folder.join(FILE));
}

/// Removes the container that a killed server recorded.
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

//! The resource limits of a workspace, as clients set them.

use serde::{Deserialize, Serialize};

use super::kind::WorkspaceKind;
use crate::base::{Code, Error, Result};
use crate::proc::Limits;

/// The minimum `pids` of a container workspace. nspawn, the agent's two processes and the waiting processes take
/// seven; a shell with a pipe takes three or more.
const CONTAINER_PIDS: u64 = 16;
/// The minimum `cpus` of a container workspace. With this limit, a start takes 1.3 s on an idle machine; with 0.01, it
/// exceeds `CONTAINER_START`.
const CONTAINER_CPUS: f64 = 0.05;

/// The field `resources`. A limit that is missing means the machine's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    /// The maximum memory, page cache included.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// The maximum swap; 0 means none.
    #[serde(default)]
    pub swap_bytes: Option<u64>,
    /// The maximum processor time, in processors, for example 0.5 or 2.
    #[serde(default)]
    pub cpus: Option<f64>,
    /// The maximum number of processes and threads.
    #[serde(default)]
    pub pids: Option<u64>,
    /// The maximum size of the container's files.
    #[serde(default)]
    pub disk_bytes: Option<u64>,
    /// The size of a /tmp in memory, which the container gets at its next start. If absent, /tmp is on disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tmpfs_bytes: Option<u64>,
}

/// The valid sizes of a /tmp in memory. The container's memory limit also limits it.
const TMPFS: std::ops::RangeInclusive<u64> = 64 << 10..=1 << 50;

/// The minimum disk limit, which is smaller than the smallest base image.
const MIN_DISK_BYTES: u64 = 16 << 20;

impl Resources {
    /// Checks that a machine can enforce the limits, and that a workspace of this kind works with them.
    ///
    /// # Errors
    /// Fails with `InvalidPayload`, the name of the field and its valid range.
    pub fn check(&self, kind: WorkspaceKind) -> Result<()> {
        self.limits().check("resources")?;
        if kind == WorkspaceKind::Container {
            let refuse = |name: &str, least: String| {
                let field = format!("resources.{name}");
                let message =
                    format!("{field} of a container must be at least {least}; it does not start with less");
                Err(Error::new(Code::InvalidPayload, message).detail("field", field))
            };
            if self.pids.is_some_and(|pids| pids < CONTAINER_PIDS) {
                return refuse("pids", CONTAINER_PIDS.to_string());
            }
            if self.cpus.is_some_and(|cpus| cpus < CONTAINER_CPUS) {
                return refuse("cpus", CONTAINER_CPUS.to_string());
            }
        }
        if self.tmpfs_bytes.is_some_and(|bytes| kind == WorkspaceKind::Host || !TMPFS.contains(&bytes)) {
            let message = format!(
                "resources.tmpfs_bytes is the size of a container's /tmp in memory, from {} to {}",
                TMPFS.start(),
                TMPFS.end()
            );
            return Err(Error::new(Code::InvalidPayload, message).detail("field", "resources.tmpfs_bytes"));
        }
        if self.disk_bytes.is_some_and(|bytes| !(MIN_DISK_BYTES..=1 << 60).contains(&bytes)) {
            let message =
                format!("resources.disk_bytes is a number of bytes from {MIN_DISK_BYTES} to {}", 1u64 << 60);
            return Err(Error::new(Code::InvalidPayload, message).detail("field", "resources.disk_bytes"));
        }
        Ok(())
    }

    /// Returns the limits that a cgroup enforces.
    pub fn limits(&self) -> Limits {
        Limits {
            memory_bytes: self.memory_bytes,
            swap_bytes: self.swap_bytes,
            cpus: self.cpus,
            pids: self.pids,
        }
    }
}

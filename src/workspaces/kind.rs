//! The kind of a workspace.

use serde::{Deserialize, Serialize};

/// The place where a workspace's commands run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkspaceKind {
    Host,
    /// In a container. `chroot` is the name in older versions of sandboxed.sh.
    #[serde(alias = "chroot")]
    Container,
}

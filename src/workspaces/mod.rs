//! Workspaces as records: names, folders and status. Must not know runs, containers or HTTP; the operations that
//! involve these are in `lifecycle`.

pub mod connection;
pub mod create;
pub mod kind;
pub mod opencode;
pub mod record;
pub mod registry;
pub mod resources;
pub mod status;
pub mod sync;

pub use kind::WorkspaceKind;
pub use record::{WorkspaceJob, WorkspaceRecord, WorkspaceStatus, WorkspaceView};
pub use registry::{Registry, Workspace, openwork_id};
pub use resources::Resources;
pub use status::ContainerBase;

use std::path::PathBuf;

/// A workspace from a flag, the environment or the configuration file.
#[derive(Clone)]
pub struct Configured {
    /// The absolute path of the workspace's folder, which exists.
    pub path: PathBuf,
    pub name: String,
    /// Where the workspace's files are: `local` for this machine, `remote` for another one.
    pub workspace_type: String,
    /// The URL of the workspace's OpenCode.
    pub base_url: Option<String>,
    /// The directory that OpenCode serves for the workspace.
    pub directory: Option<String>,
    /// The user name for OpenCode's basic authentication.
    pub opencode_username: Option<String>,
    /// The password for OpenCode's basic authentication.
    pub opencode_password: Option<String>,
    /// Whether the password came from a flag or the environment. If so, the client token may read it back, because the
    /// orchestrator that supplied the password compares it with its own copy.
    pub password_is_shared: bool,
}

impl std::fmt::Debug for Configured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Configured({}, {})", self.name, self.path.display())
    }
}

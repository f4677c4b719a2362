//! Workspaces as records: what they are called, where they lie, what state they are in. Knows neither runs nor
//! containers nor HTTP; what happens *to* a workspace is in `lifecycle`.

pub mod create;
pub mod opencode;
pub mod record;
pub mod registry;
pub mod resources;
pub mod status;
pub mod sync;

pub use record::{WorkspaceJob, WorkspaceKind, WorkspaceRecord, WorkspaceStatus, WorkspaceView};
pub use registry::{Registry, Workspace, openwork_id};
pub use resources::Resources;
pub use status::ContainerBase;

use std::path::PathBuf;

/// A workspace that flags, environment or file named.
#[derive(Clone)]
pub struct Configured {
    /// Its folder; absolute, exists.
    pub path: PathBuf,
    /// Its name.
    pub name: String,
    /// `local` or `remote`.
    pub workspace_type: String,
    /// Where its OpenCode answers.
    pub base_url: Option<String>,
    /// The directory that OpenCode is told.
    pub directory: Option<String>,
    /// For OpenCode's basic authentication.
    pub opencode_username: Option<String>,
    /// For OpenCode's basic authentication.
    pub opencode_password: Option<String>,
    /// The password came with a flag or the environment. The client token may see it then: the orchestrator that passed it
    /// compares.
    pub password_is_shared: bool,
}

impl std::fmt::Debug for Configured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Configured({}, {})", self.name, self.path.display())
    }
}

//! One workspace's files, for one call. This module must not know what the files contain.

use std::path::PathBuf;

use super::preview::WriteMode;
use crate::store::beneath::Root;

/// The mode of files that berth creates.
pub(super) const FILE_MODE: u32 = 0o644;

/// A workspace's files, for one call. A container's root stays mounted as long as this value exists.
#[derive(Debug)]
pub struct ProjectSite {
    /// The workspace's id in the OpenWork API.
    pub id: String,
    pub root: Root,
    /// The path prefix under which the workspace's own processes see the files, without a trailing slash: empty in a
    /// container.
    pub path_prefix: String,
    /// The workspace's folder on this host, in whose parent folders OpenCode also looks for skills. `None` for a
    /// container.
    pub host_folder: Option<PathBuf>,
    /// The folder in which berth stores its own data about the workspace, outside the workspace's files.
    pub state_folder: PathBuf,
    pub(super) writes: WriteMode,
}

impl ProjectSite {
    /// Creates a site whose writes are applied. `id` is the workspace's id in the OpenWork API.
    pub fn new(
        id: String,
        root: Root,
        path_prefix: String,
        host_folder: Option<PathBuf>,
        state_folder: PathBuf,
    ) -> ProjectSite {
        ProjectSite { id, root, path_prefix, host_folder, state_folder, writes: WriteMode::default() }
    }

    /// Returns the absolute path of a file, as the workspace's own processes see it.
    pub fn path(&self, rel: &str) -> String {
        format!("{}/{rel}", self.path_prefix)
    }
}

//! State on disk: atomic files, locked JSON, files in trees that a hostile workload controls, removal of whole trees.
//! **Invariant:** nothing in this room depends on workspaces, HTTP or child processes.

pub mod allowlist;
pub mod beneath;
mod cached_lookup;
pub mod exchange;
pub mod file;
pub mod file_cache;
pub mod finder;
pub mod folder_watcher;
pub mod format;
pub mod front_matter;
pub mod json;
pub mod jsonc;
pub mod lock;
mod mounts;
pub mod quota;
pub mod rolling;
pub mod spool;
pub mod tray;
pub mod tree;
mod usage;
mod yaml;

#[cfg(test)]
pub(crate) mod scratch;

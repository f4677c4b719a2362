//! State on disk: atomic files, locked JSON, opens that a hostile tree cannot lead astray, removal of whole trees.
//! Knows nothing of workspaces, HTTP or children.

pub mod beneath;
pub mod deposit;
pub mod file;
pub mod json;
pub mod lock;
mod mounts;
pub mod tree;
mod usage;

#[cfg(test)]
pub(crate) mod scratch;

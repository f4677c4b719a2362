//! State on disk: atomic files, locked JSON, opens that a hostile tree cannot lead astray, removal of whole trees.
//! Knows nothing of workspaces, HTTP or children.

pub mod allowlist;
mod at_hand;
pub mod beneath;
pub mod changes;
pub mod deposit;
pub mod exchange;
pub mod file;
pub mod finder;
pub mod format;
pub mod front_matter;
pub mod json;
pub mod jsonc;
pub mod lock;
mod mounts;
pub mod quota;
pub mod remembered;
pub mod rolling;
pub mod spool;
pub mod tree;
mod usage;
mod yaml;

#[cfg(test)]
pub(crate) mod scratch;

//! Runs that outlive the server. Each has a keeper: a berth process (`berth keeper`) outside every container and
//! in its own cgroup. The keeper owns the run's pipes, its spool and its deadline, and waits for the command's
//! end. It then writes the run's record and exits. A server follows the keeper over a socket in the run's
//! directory; the next server connects to the same socket. If neither the keeper nor the record reports the result
//! of a run, the result is lost.
//!
//! In reading order: `wire` (the protocol), `child` (the keeper), `link` (the server's side of one keeper), `watch`
//! (the thread that follows all keepers).

pub mod child;
mod link;
mod watch;
mod wire;

pub(super) use link::{FoundKeeper, KeeperLookup, groups};
pub use link::{KeeperLink, KeptRun, LaunchTarget};
pub use watch::Keepers;

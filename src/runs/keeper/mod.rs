//! Runs that outlive the server. Each has a keeper: a berth process (`berth keeper`) outside every container and in a
//! cgroup of its own. It owns the run's pipes, its spool, its deadline and the wait for its end, writes the run's
//! record when it has ended, and then exits. A server follows it over a socket in the run's directory; the next server
//! finds the socket there. If neither the keeper nor its record reports the end of a run, its status is lost.
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

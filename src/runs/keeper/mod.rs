//! Runs that outlive the server. Each has a keeper: a process of ours (`berth keeper`), outside of every container and in
//! a cgroup of its own, that owns the run's pipes, its spool, its deadline and the wait for its end. It writes the run's
//! record when that has come, then ends. A server follows it over a socket in the run's folder; the next server finds
//! the socket there. What is not told by a keeper, or written by it, is not known: then the run's status is lost.
//!
//! In reading order: `wire` (what the two say to each other), `child` (the keeper), `link` (the server's side of one),
//! `watch` (the thread that follows all).

pub mod child;
mod link;
mod watch;
mod wire;

pub(super) use link::{FoundKeeper, KeeperLookup, groups};
pub use link::{KeeperLink, KeptRun, LaunchTarget};
pub use watch::Keepers;

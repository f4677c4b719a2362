//! Requests to the keeper of a detached run, sent by the run's input and its spool. [`super::keeper`] implements
//! the trait, so that neither side depends on the other.

use std::fmt::Debug;

/// Requests to the process that keeps a detached run. No request waits for an answer.
pub trait KeeperControl: Debug + Send + Sync {
    /// Closes the keeper's copy of the command's standard input.
    fn close_stdin(&self);

    /// Discards all but the last `keep` bytes of each output stream.
    fn shrink(&self, keep: u64);
}

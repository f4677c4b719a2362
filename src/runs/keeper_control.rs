//! Requests from the input and the output of a detached run to its keeper. [`super::keeper`] implements the trait, so that
//! neither depends on it.

use std::fmt::Debug;

/// Requests to the process that keeps a detached run. They do not wait for an answer.
pub trait KeeperControl: Debug + Send + Sync {
    /// Closes the keeper's copy of the command's standard input.
    fn close_stdin(&self);

    /// Discards all but the last `keep` bytes of each output stream.
    fn shrink(&self, keep: u64);
}

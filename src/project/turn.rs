//! The turn for writes to one workspace. The time to wait for the turn is limited, so that a hanging file system or
//! many concurrent writes do not block the threads that serve other workspaces.
//!
//! Locks: the turn (level 3), held while files are written; the mutex of its state is a leaf.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::base::thread::lock;
use crate::base::{Code, Error, Result};

#[derive(Debug, Default)]
pub(super) struct WriteTurn {
    state: Mutex<TurnState>,
    free: Condvar,
}

#[derive(Debug, Default)]
struct TurnState {
    taken: bool,
    /// The number of writes so far.
    writes: u64,
}

/// Keeps the turn taken, and releases it when dropped.
#[derive(Debug)]
pub(super) struct TurnGuard<'a>(&'a WriteTurn);

impl WriteTurn {
    /// Takes the turn.
    ///
    /// # Errors
    /// Fails with `Busy` if other writes hold the turn for longer than `wait`.
    pub(super) fn take(&self, wait: Duration) -> Result<TurnGuard<'_>> {
        let waited = self.free.wait_timeout_while(lock(&self.state), wait, |state| state.taken);
        let (mut state, late) = waited.unwrap_or_else(PoisonError::into_inner);
        if late.timed_out() && state.taken {
            let message =
                format!("Other writes to this workspace take longer than {} s; try again", wait.as_secs());
            return Err(Error::new(Code::Busy, message));
        }
        state.taken = true;
        Ok(TurnGuard(self))
    }
}

impl TurnGuard<'_> {
    pub(super) fn count(&mut self) {
        lock(&self.0.state).writes += 1;
    }

    /// Returns the number of writes so far.
    pub(super) fn counted(&self) -> u64 {
        lock(&self.0.state).writes
    }
}

impl Drop for TurnGuard<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).taken = false;
        self.0.free.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_a_turn_times_out() {
        let turn = WriteTurn::default();
        let held = turn.take(Duration::ZERO).unwrap();
        assert_eq!(turn.take(Duration::from_millis(1)).unwrap_err().code(), Code::Busy);
        drop(held);
        assert!(turn.take(Duration::ZERO).is_ok());
    }
}

//! The turn to write into one workspace. Who waits for it does so for a bounded time: a file system that hangs, or many
//! writers at once, must not hold the threads that serve other workspaces.
//!
//! Lock: level 3, held while files are written; the state below it is a leaf.

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
    /// Writes so far.
    writes: u64,
}

/// Gives the turn back when dropped.
#[derive(Debug)]
pub(super) struct TurnGuard<'a>(&'a WriteTurn);

impl WriteTurn {
    /// Takes the turn.
    ///
    /// # Errors
    /// `Busy` when others have it for longer than `wait`.
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
    /// Counts a write.
    pub(super) fn count(&mut self) {
        lock(&self.0.state).writes += 1;
    }

    /// How many there were.
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
    fn a_turn_is_waited_for_in_vain_for_a_bounded_time() {
        let turn = WriteTurn::default();
        let held = turn.take(Duration::ZERO).unwrap();
        assert_eq!(turn.take(Duration::from_millis(1)).unwrap_err().code(), Code::Busy);
        drop(held);
        assert!(turn.take(Duration::ZERO).is_ok());
    }
}

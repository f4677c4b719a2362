//! The turn to write into one workspace. Who waits for it does so for a bounded time: a file system that hangs, or many
//! writers at once, must not hold the threads that serve other workspaces.
//!
//! Lock: level 3, held while files are written; the flag below it is a leaf.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::base::thread::lock;
use crate::base::{Code, Error, Result};

#[derive(Debug, Default)]
pub(super) struct Turn {
    taken: Mutex<bool>,
    free: Condvar,
}

/// Gives the turn back when dropped.
#[derive(Debug)]
pub(super) struct TurnGuard<'a>(&'a Turn);

impl Turn {
    /// Takes the turn.
    ///
    /// # Errors
    /// `Busy` when others have it for longer than `wait`.
    pub(super) fn take(&self, wait: Duration) -> Result<TurnGuard<'_>> {
        let taken = lock(&self.taken);
        let waited = self.free.wait_timeout_while(taken, wait, |taken| *taken);
        let (mut taken, late) = waited.unwrap_or_else(PoisonError::into_inner);
        if late.timed_out() && *taken {
            let message =
                format!("Other writes to this workspace take longer than {} s; try again", wait.as_secs());
            return Err(Error::new(Code::Busy, message));
        }
        *taken = true;
        Ok(TurnGuard(self))
    }
}

impl Drop for TurnGuard<'_> {
    fn drop(&mut self) {
        *lock(&self.0.taken) = false;
        self.0.free.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_waited_for_in_vain_for_a_bounded_time() {
        let turn = Turn::default();
        let held = turn.take(Duration::ZERO).unwrap();
        assert_eq!(turn.take(Duration::from_millis(1)).unwrap_err().code(), Code::Busy);
        drop(held);
        assert!(turn.take(Duration::ZERO).is_ok());
    }
}

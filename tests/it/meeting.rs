//! A barrier for threads, like `std::sync::Barrier`, but with a deadline: if one thread panics, the others, and with
//! them the whole test run, must not wait forever.

use std::sync::{Condvar, Mutex};
use std::time::Duration;

pub struct Meeting {
    expected: usize,
    /// The number of waiting threads, and the number of completed rounds.
    state: Mutex<(usize, u64)>,
    changed: Condvar,
}

impl Meeting {
    pub fn of(expected: usize) -> Meeting {
        Meeting { expected, state: Mutex::new((0, 0)), changed: Condvar::new() }
    }

    #[track_caller]
    pub fn wait(&self) {
        let mut state = self.state.lock().unwrap_or_else(|poison| poison.into_inner());
        state.0 += 1;
        if state.0 == self.expected {
            *state = (0, state.1 + 1);
            self.changed.notify_all();
            return;
        }
        let round = state.1;
        let longest = Duration::from_secs(100);
        let waited = self.changed.wait_timeout_while(state, longest, |state| state.1 == round);
        let met = !waited.unwrap_or_else(|poison| poison.into_inner()).1.timed_out();
        assert!(met, "the other threads did not arrive within {longest:?}");
    }
}

//! Turns at work of which the machine gains nothing when many threads do it at the same moment, such as copying output that
//! never ends. Threads take turns in the order in which they came, so that the machine stays free for short requests.
//!
//! A turn is a courtesy, not a right: after [`FairSemaphore::PATIENCE`] a thread goes on without one, so no turn that is held too
//! long can stop the server.
//!
//! Threads: any. Lock: `state`, a leaf.

use std::collections::VecDeque;
use std::num::NonZero;
use std::sync::Mutex;
use std::thread::{Thread, available_parallelism, current, park_timeout};
use std::time::{Duration, Instant};

use super::thread::lock;

/// So many threads at a time.
#[derive(Debug)]
pub struct FairSemaphore {
    state: Mutex<SemaphoreState>,
}

#[derive(Debug)]
struct SemaphoreState {
    free: usize,
    /// Those that wait, in the order in which they came. A thread that got its turn has been taken out.
    waiting: VecDeque<Thread>,
}

/// A turn; dropping it passes it on.
#[derive(Debug)]
pub struct SemaphorePermit<'a>(Option<&'a FairSemaphore>);

impl FairSemaphore {
    /// How long a thread waits for its turn.
    const PATIENCE: Duration = Duration::from_millis(100);

    /// How many processors there are.
    pub fn processors() -> usize {
        available_parallelism().map_or(2, NonZero::get)
    }

    /// At most `count` threads at a time.
    pub const fn new(count: usize) -> FairSemaphore {
        FairSemaphore { state: Mutex::new(SemaphoreState { free: count, waiting: VecDeque::new() }) }
    }

    /// Waits for a turn.
    pub fn wait(&self) -> SemaphorePermit<'_> {
        let this = current();
        {
            let mut state = lock(&self.state);
            if state.free > 0 {
                state.free -= 1;
                return SemaphorePermit(Some(self));
            }
            state.waiting.push_back(this.clone());
        }
        let end = Instant::now() + Self::PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            park_timeout(left);
            let mut state = lock(&self.state);
            let Some(place) = state.waiting.iter().position(|thread| thread.id() == this.id()) else {
                return SemaphorePermit(Some(self));
            };
            if left.is_zero() {
                state.waiting.remove(place);
                return SemaphorePermit(None);
            }
        }
    }
}

impl Drop for SemaphorePermit<'_> {
    fn drop(&mut self) {
        let Some(turns) = self.0 else { return };
        let mut state = lock(&turns.state);
        match state.waiting.pop_front() {
            Some(next) => {
                drop(state);
                next.unpark();
            }
            None => state.free += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn no_more_than_that_many_at_a_time_and_everyone_in_the_end() {
        let (turns, inside, most) = (FairSemaphore::new(2), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let turn = turns.wait();
                        assert!(turn.0.is_some());
                        most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(most.into_inner(), 2);
        let state = lock(&turns.state);
        assert!(state.free == 2 && state.waiting.is_empty());
    }

    #[test]
    fn a_turn_that_is_held_stops_no_other_thread() {
        let turns = FairSemaphore::new(1);
        let held = turns.wait();
        let without = turns.wait();
        assert!(without.0.is_none());
        drop(without);
        assert_eq!(lock(&turns.state).free, 0);
        drop(held);
        assert_eq!(lock(&turns.state).free, 1);
    }
}

//! A fair semaphore for work that does not get faster when many threads do it at once, such as copying endless output.
//! Threads get permits in the order of their arrival, so that the machine stays responsive to short requests.
//!
//! A permit is advisory: after [`FairSemaphore::MAX_WAIT`] a thread continues without one, so a permit that is held for
//! too long cannot block the server.
//!
//! Any thread may use a semaphore. The lock of `state` is a leaf: no other lock is taken while it is held.

use std::collections::VecDeque;
use std::num::NonZero;
use std::sync::Mutex;
use std::thread::{Thread, available_parallelism, current, park_timeout};
use std::time::{Duration, Instant};

use super::thread::lock;

/// A semaphore with a bounded wait.
#[derive(Debug)]
pub struct FairSemaphore {
    state: Mutex<SemaphoreState>,
}

#[derive(Debug)]
struct SemaphoreState {
    free: usize,
    /// Waiting threads in order of arrival. A thread is removed when it gets a permit.
    waiting: VecDeque<Thread>,
}

/// The result of a wait: a permit, or nothing if the wait timed out. Dropping a permit passes it to the next thread.
#[derive(Debug)]
pub struct SemaphorePermit<'a>(Option<&'a FairSemaphore>);

impl FairSemaphore {
    /// How long a thread waits for a permit before it continues without one.
    const MAX_WAIT: Duration = Duration::from_millis(100);

    /// Returns the number of processors.
    pub fn processors() -> usize {
        available_parallelism().map_or(2, NonZero::get)
    }

    /// Creates a semaphore with `count` permits.
    pub const fn new(count: usize) -> FairSemaphore {
        FairSemaphore { state: Mutex::new(SemaphoreState { free: count, waiting: VecDeque::new() }) }
    }

    /// Waits for a permit, at most [`FairSemaphore::MAX_WAIT`].
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
        let end = Instant::now() + Self::MAX_WAIT;
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
        let Some(semaphore) = self.0 else { return };
        let mut state = lock(&semaphore.state);
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
    fn at_most_count_threads_hold_a_permit_and_all_get_one() {
        let (semaphore, inside, most) = (FairSemaphore::new(2), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let permit = semaphore.wait();
                        assert!(permit.0.is_some());
                        most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(most.into_inner(), 2);
        let state = lock(&semaphore.state);
        assert!(state.free == 2 && state.waiting.is_empty());
    }

    #[test]
    fn held_permit_blocks_no_other_thread() {
        let semaphore = FairSemaphore::new(1);
        let held = semaphore.wait();
        let without = semaphore.wait();
        assert!(without.0.is_none());
        drop(without);
        assert_eq!(lock(&semaphore.state).free, 0);
        drop(held);
        assert_eq!(lock(&semaphore.state).free, 1);
    }
}

//! Tracks whether a container is busy: counts the guards that prevent an idle stop, and records when the last
//! guard was dropped.
//!
//! Lock: `state`, a leaf; `idle` is its condition variable.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::base::thread::lock;

/// The busy state of one container.
#[derive(Debug)]
pub(super) struct Activity {
    state: Mutex<ActivityState>,
    /// Notified when the last guard is dropped.
    idle: Condvar,
}

#[derive(Debug)]
struct ActivityState {
    /// Number of live [`BusyGuard`]s.
    busy: usize,
    idle_since: Instant,
}

/// While this guard exists, its container is not stopped as idle.
#[derive(Debug)]
pub struct BusyGuard(Arc<Activity>);

impl Activity {
    pub(super) fn new() -> Activity {
        let state = ActivityState { busy: 0, idle_since: Instant::now() };
        Activity { state: Mutex::new(state), idle: Condvar::new() }
    }

    /// Returns the number of live guards.
    pub(super) fn busy(&self) -> usize {
        lock(&self.state).busy
    }

    /// Returns when the container was last in use.
    pub(super) fn idle_since(&self) -> Instant {
        lock(&self.state).idle_since
    }

    /// Restarts the idle time of the container at zero.
    pub(super) fn touch(&self) {
        lock(&self.state).idle_since = Instant::now();
    }

    /// Waits up to `patience` until no guard is left; returns whether no guard is left.
    pub(super) fn wait_idle(&self, patience: Duration) -> bool {
        let state = self.idle.wait_timeout_while(lock(&self.state), patience, |state| state.busy > 0);
        state.unwrap_or_else(PoisonError::into_inner).0.busy == 0
    }
}

impl BusyGuard {
    pub(super) fn new(activity: &Arc<Activity>) -> BusyGuard {
        lock(&activity.state).busy += 1;
        BusyGuard(activity.clone())
    }
}

impl Drop for BusyGuard {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.busy -= 1;
        state.idle_since = Instant::now();
        let is_idle = state.busy == 0;
        drop(state);
        if is_idle {
            self.0.idle.notify_all();
        }
    }
}

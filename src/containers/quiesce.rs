//! A container that stands still, or is stopped, while something is done with its root: a snapshot is taken, another root is
//! put in its place. No command starts it meanwhile; who only looks does not wait.
//!
//! Locks: those of [`super::machine`]; `still` is a leaf.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use super::container::Container;
use super::running::RunningContainer;
use crate::base::thread::lock;
use crate::base::{Result, limits};

/// What runs while something is done with the root; `None`: it was stopped.
pub(super) type QuiescedState = Option<Arc<RunningContainer>>;

impl Container {
    /// Does something with its root while nothing in it changes and no command can start it: it is stopped for that if
    /// nothing runs in it or `stop` says so, else it stands still. `work` is told whether it is there.
    ///
    /// # Errors
    /// `Unavailable` when it cannot be made to stand still; what `work` said.
    pub(super) fn quiesce<R>(&self, stop: bool, work: impl FnOnce(bool) -> Result<R>) -> Result<R> {
        let mut state = lock(&self.running);
        let running = state.clone().filter(|running| running.is_alive());
        let deadline =
            Instant::now() + if stop || running.is_none() { Duration::ZERO } else { limits::QUIET };
        let busy = loop {
            match self.activity.busy.load(Ordering::Acquire) > 0 {
                true if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
                busy => break busy,
            }
        };
        let stays = |running: &Arc<RunningContainer>| !stop && (busy || running.group.has_leftovers("runs"));
        let Some(running) = running.filter(stays) else {
            if let Some(running) = state.take() {
                running.end();
            }
            let _shown = QuiescedGuard::new(&self.quiesced, None);
            return work(false);
        };
        running.group.freeze(true)?;
        let done = {
            let _shown = QuiescedGuard::new(&self.quiesced, Some(running.clone()));
            work(true)
        };
        // Without this it would stand still for ever, so its end is better.
        if let Err(error) = running.group.freeze(false) {
            log::error!("container {}: {error}", self.name);
            *state = None;
            running.end();
        }
        done
    }

    /// What runs; waits for a start or an end, but not for a copy of the root.
    pub(super) fn current(&self) -> Option<Arc<RunningContainer>> {
        loop {
            if let Some(still) = lock(&self.quiesced).clone() {
                return still;
            }
            match self.running.try_lock() {
                Ok(state) => return state.clone(),
                Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner().clone(),
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

/// Tells those who only look what there is, while the lock of `state` is held for long.
struct QuiescedGuard<'a>(&'a Mutex<Option<QuiescedState>>);

impl QuiescedGuard<'_> {
    fn new(still: &Mutex<Option<QuiescedState>>, running: QuiescedState) -> QuiescedGuard<'_> {
        *lock(still) = Some(running);
        QuiescedGuard(still)
    }
}

impl Drop for QuiescedGuard<'_> {
    fn drop(&mut self) {
        *lock(self.0) = None;
    }
}

//! The slot that holds a running container. The lock of the slot is held for long: while the container starts or
//! stops, and while its root is copied. Readers need not wait for a copy, because the holder of the lock publishes
//! the state for them.
//!
//! Lock: `state`, a leaf, held briefly; `changed` is its condition variable.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::running::RunningContainer;
use crate::base::thread::lock;

/// The running container; `None` if the container is stopped.
type Running = Option<Arc<RunningContainer>>;

#[derive(Debug, Default)]
pub(super) struct RunningSlot {
    state: Mutex<SlotState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct SlotState {
    /// The content of the slot; valid only while the slot is not locked.
    running: Running,
    locked: bool,
    /// The state that readers see while the slot is locked; `None` makes them wait.
    published: Option<Running>,
}

/// The lock on a slot. The holder may replace the container in it; the drop unlocks the slot.
#[derive(Debug)]
pub(super) struct SlotGuard<'a> {
    slot: &'a RunningSlot,
    running: Running,
}

impl RunningSlot {
    /// Locks the slot; waits while another thread holds the lock.
    pub(super) fn lock(&self) -> SlotGuard<'_> {
        let state = self.changed.wait_while(lock(&self.state), |state| state.locked);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        state.locked = true;
        SlotGuard { slot: self, running: state.running.take() }
    }

    /// Locks the slot; returns `None` if it is already locked.
    pub(super) fn try_lock(&self) -> Option<SlotGuard<'_>> {
        let mut state = lock(&self.state);
        if state.locked {
            return None;
        }
        state.locked = true;
        Some(SlotGuard { slot: self, running: state.running.take() })
    }

    /// Returns the running container. Waits while the container starts or stops, but not while its root is copied.
    pub(super) fn current(&self) -> Running {
        let is_unknown = |state: &mut SlotState| state.locked && state.published.is_none();
        let state = self.changed.wait_while(lock(&self.state), is_unknown);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        state.published.clone().unwrap_or_else(|| state.running.clone())
    }

    /// Returns the content of the slot; `None` if the slot stays locked for longer than `patience`.
    pub(super) fn current_within(&self, patience: Duration) -> Option<Running> {
        let state = self.changed.wait_timeout_while(lock(&self.state), patience, |state| state.locked);
        let (state, _) = state.unwrap_or_else(PoisonError::into_inner);
        (!state.locked).then(|| state.running.clone())
    }
}

impl SlotGuard<'_> {
    /// Publishes `running` to readers until the slot is unlocked or [`SlotGuard::unpublish`] is called.
    pub(super) fn publish(&self, running: Running) {
        lock(&self.slot.state).published = Some(running);
        self.slot.changed.notify_all();
    }

    /// Makes readers wait again until the slot is unlocked.
    pub(super) fn unpublish(&self) {
        lock(&self.slot.state).published = None;
    }
}

impl Deref for SlotGuard<'_> {
    type Target = Running;

    fn deref(&self) -> &Running {
        &self.running
    }
}

impl DerefMut for SlotGuard<'_> {
    fn deref_mut(&mut self) -> &mut Running {
        &mut self.running
    }
}

impl Drop for SlotGuard<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.slot.state);
        *state = SlotState { running: self.running.take(), locked: false, published: None };
        drop(state);
        self.slot.changed.notify_all();
    }
}

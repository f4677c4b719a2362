//! Freezes or stops a container while its root is copied or replaced. During that time no command can start the
//! container; readers of its state do not wait.
//!
//! Locks: those of [`super::container`].

use std::sync::Arc;
use std::time::Duration;

use super::container::Container;
use super::running::RunningContainer;
use crate::base::Result;

/// Grace period before a snapshot freezes a busy container, for a command that has just ended but is still
/// counted. If no command is running, the container is stopped instead of frozen.
const QUIET: Duration = Duration::from_millis(50);

impl Container {
    /// Runs `work` while no process can change the root and no command can start the container. If `stop` is set
    /// or no process is running in the container, stops the container; otherwise freezes it. `work` receives
    /// `true` if the container is running and frozen.
    ///
    /// # Errors
    /// `Unavailable` when the container cannot be frozen; the errors of `work`.
    pub(super) fn quiesce<R>(&self, stop: bool, work: impl FnOnce(bool) -> Result<R>) -> Result<R> {
        let mut slot = self.running.lock();
        let running = slot.clone().filter(|running| running.is_alive());
        let patience = if stop || running.is_none() { Duration::ZERO } else { QUIET };
        let busy = !self.activity.wait_idle(patience);
        let stays = |running: &Arc<RunningContainer>| !stop && (busy || running.group.has_leftovers("runs"));
        let Some(running) = running.filter(stays) else {
            if let Some(running) = slot.take() {
                running.end();
            }
            slot.publish(None);
            return work(false);
        };
        running.group.freeze(true)?;
        slot.publish(Some(running.clone()));
        let done = work(true);
        slot.unpublish();
        // A container that cannot be thawed would stay frozen forever, so stop it.
        if let Err(error) = running.group.freeze(false) {
            log::error!("Container {}: {error}", self.name);
            *slot = None;
            running.end();
        }
        done
    }

    /// Returns the running container. Waits while the container starts or stops, but not while its root is copied.
    pub(super) fn current(&self) -> Option<Arc<RunningContainer>> {
        self.running.current()
    }
}

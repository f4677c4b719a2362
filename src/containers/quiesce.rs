//! Freezes or stops a container while its root is copied or replaced. No command can start it during that time; readers
//! do not wait.
//!
//! Locks: those of [`super::container`].

use std::sync::Arc;
use std::time::Duration;

use super::container::Container;
use super::running::RunningContainer;
use crate::base::Result;

/// How long a snapshot waits for a command that has just ended to be counted as ended: a snapshot without running
/// commands is free.
const QUIET: Duration = Duration::from_millis(50);

impl Container {
    /// Runs `work` while nothing in the root changes and no command can start the container. Stops the container if
    /// nothing is running in it or `stop` is set; otherwise freezes it. `work` receives whether the container is
    /// running and frozen.
    ///
    /// # Errors
    /// `Unavailable` when it cannot be frozen; errors of `work`.
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
        // If it cannot be thawed it would stay frozen forever, so stop it.
        if let Err(error) = running.group.freeze(false) {
            log::error!("Container {}: {error}", self.name);
            *slot = None;
            running.end();
        }
        done
    }

    /// Returns the running container. Waits for a start or stop, but not for a copy of the root.
    pub(super) fn current(&self) -> Option<Arc<RunningContainer>> {
        self.running.current()
    }
}

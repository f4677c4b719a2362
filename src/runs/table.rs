//! Which runs are under way, by workspace, so that a build, a deletion or the end of the server can end them.
//!
//! Lock: `runs`, a leaf; `ended` is its condition.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::base::thread::lock;
use crate::base::{Code, Error, Result};
use crate::proc::Cancel;

/// The table.
#[derive(Default)]
pub struct Runs {
    runs: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    by_id: HashMap<Uuid, (Uuid, Cancel)>,
    closed: bool,
}

/// A run's entry; dropping it says that the run is over.
pub struct Running {
    table: Arc<Runs>,
    /// The run's id.
    pub id: Uuid,
    /// Ends the run.
    pub cancel: Cancel,
}

impl Runs {
    /// Enters a run of `workspace`. Entered before the workspace's state is checked, so that whoever changes the
    /// state first and then ends all runs misses none.
    ///
    /// # Errors
    /// `ShuttingDown` once the server ends.
    pub fn enter(self: &Arc<Self>, workspace: Uuid) -> Result<Running> {
        let (id, cancel) = (Uuid::new_v4(), Cancel::new()?);
        let mut state = lock(&self.runs);
        if state.closed {
            return Err(Error::new(Code::ShuttingDown, "The server is shutting down"));
        }
        state.by_id.insert(id, (workspace, cancel.clone()));
        Ok(Running { table: self.clone(), id, cancel })
    }

    /// Ends all runs of `workspace` and waits until they have ended; `false` when some had not after `patience`.
    pub fn end_all(&self, workspace: Uuid, patience: Duration) -> bool {
        self.end_matching(|owner| owner == workspace, patience)
    }

    /// Lets no new run in, waits until `deadline` for those under way, then ends them.
    pub fn close(&self, deadline: Instant) {
        let mut state = lock(&self.runs);
        state.closed = true;
        while !state.by_id.is_empty() && Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            state = self.ended.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        self.end_matching(|_| true, Duration::from_secs(5));
    }

    /// How many are under way.
    pub fn count(&self) -> usize {
        lock(&self.runs).by_id.len()
    }

    fn end_matching(&self, matches: impl Fn(Uuid) -> bool, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut state = lock(&self.runs);
        loop {
            let mut any = false;
            for (owner, cancel) in state.by_id.values() {
                if matches(*owner) {
                    cancel.cancel();
                    any = true;
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if !any || left.is_zero() {
                return !any;
            }
            state = self.ended.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        lock(&self.table.runs).by_id.remove(&self.id);
        self.table.ended.notify_all();
    }
}

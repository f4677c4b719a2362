//! Requests to the thread `project-watch`. Locks: the set of requested workspaces, and the set of new requests; both
//! are leaves.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::base::limits;
use crate::base::thread::lock;
use crate::proc::waiter::{Waiter, WaiterList};

/// The requests that other threads make to the watching thread.
#[derive(Debug)]
pub(super) struct WatchRequests {
    new: Mutex<HashSet<String>>,
    requested: Mutex<HashSet<String>>,
    ended: AtomicBool,
    waiters: WaiterList,
}

impl WatchRequests {
    pub(super) fn new() -> WatchRequests {
        WatchRequests {
            new: Mutex::default(),
            requested: Mutex::default(),
            ended: AtomicBool::new(false),
            waiters: WaiterList::default(),
        }
    }

    /// Requests watching of a workspace, if it is not watched yet.
    pub(super) fn watch(&self, id: &str) {
        let is_new = {
            let mut requested = lock(&self.requested);
            requested.len() < limits::WORKSPACES && !requested.contains(id) && requested.insert(id.to_owned())
        };
        if is_new {
            lock(&self.new).insert(id.to_owned());
            self.waiters.notify_all();
        }
    }

    /// Forgets a workspace that is no longer watched, so that it can be requested again.
    pub(super) fn forget(&self, id: &str) {
        lock(&self.requested).remove(id);
    }

    /// Removes and returns the workspaces requested since the last call.
    pub(super) fn take_new(&self) -> HashSet<String> {
        std::mem::take(&mut *lock(&self.new))
    }

    /// Wakes `waiter` at every new request, and when watching ends.
    pub(super) fn add_waiter(&self, waiter: &Arc<Waiter>) {
        self.waiters.add(waiter);
    }

    /// Ends watching: the watching thread returns.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.waiters.notify_all();
    }

    pub(super) fn is_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }
}

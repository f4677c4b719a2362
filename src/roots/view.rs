//! A mounted root and the handles of its users. A root can be replaced only when its slot has the last reference.
//!
//! Lock: `count`, a leaf; `released` is its condition variable.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::namespace::MergedRoot;
use crate::base::thread::lock;

/// A slot's reference to a mounted root.
#[derive(Debug)]
pub(super) struct RootView {
    root: Arc<MergedRoot>,
    users: Arc<RootUsers>,
}

/// Number of [`RootHandle`]s of one mounted root.
#[derive(Debug, Default)]
struct RootUsers {
    count: Mutex<usize>,
    released: Condvar,
}

/// Keeps a root mounted while it exists.
#[derive(Debug)]
pub struct RootHandle {
    // Dropped before `_user`, so that the mount is released before the user count decreases.
    root: Arc<MergedRoot>,
    _user: RootUser,
}

#[derive(Debug)]
struct RootUser(Arc<RootUsers>);

impl RootView {
    pub(super) fn new(root: MergedRoot) -> RootView {
        RootView { root: Arc::new(root), users: Arc::default() }
    }

    pub(super) fn handle(&self) -> RootHandle {
        *lock(&self.users.count) += 1;
        RootHandle { root: self.root.clone(), _user: RootUser(self.users.clone()) }
    }

    pub(super) fn is_unused(&self) -> bool {
        *lock(&self.users.count) == 0
    }

    /// Waits up to `patience` until no handles are left; returns whether none are left.
    pub(super) fn wait_unused(&self, patience: Duration) -> bool {
        let count = lock(&self.users.count);
        let count = self.users.released.wait_timeout_while(count, patience, |count| *count > 0);
        *count.unwrap_or_else(PoisonError::into_inner).0 == 0
    }
}

impl RootHandle {
    pub(super) fn root(&self) -> &MergedRoot {
        &self.root
    }
}

impl Drop for RootUser {
    fn drop(&mut self) {
        let mut count = lock(&self.0.count);
        *count -= 1;
        let is_last = *count == 0;
        drop(count);
        if is_last {
            self.0.released.notify_all();
        }
    }
}

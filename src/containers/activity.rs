//! How busy a container is: the handles that keep it from being stopped for idleness, and the time since the last one.
//!
//! Lock: `idle_since`, a leaf.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::base::thread::lock;

/// The open [`Busy`] handles of one container.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) busy: AtomicUsize,
    pub(super) idle_since: Mutex<Instant>,
}

/// A handle that keeps its container from being stopped for idleness.
#[derive(Debug)]
pub struct Busy(Arc<Load>);

impl Load {
    pub(super) fn new() -> Load {
        Load { busy: AtomicUsize::new(0), idle_since: Mutex::new(Instant::now()) }
    }
}

impl Busy {
    pub(super) fn new(load: &Arc<Load>) -> Busy {
        load.busy.fetch_add(1, Ordering::AcqRel);
        Busy(load.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        *lock(&self.0.idle_since) = Instant::now();
        self.0.busy.fetch_sub(1, Ordering::AcqRel);
    }
}

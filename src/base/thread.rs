//! Threads with a name, an owner and an end; locks that outlive a panic.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle, current};

use super::{Error, Result};

/// A thread that is joined when its owner drops it. Drop first what makes it end.
#[derive(Debug)]
pub struct JoinOnDrop(Option<JoinHandle<()>>);

impl JoinOnDrop {
    /// Whether the thread has ended.
    pub fn is_finished(&self) -> bool {
        self.0.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Lets the thread go; for one that may not be waited for at exit.
    pub fn detach(mut self) {
        self.0 = None;
    }
}

impl Drop for JoinOnDrop {
    fn drop(&mut self) {
        // What a thread drops last may own that very thread.
        if let Some(handle) = self.0.take().filter(|handle| handle.thread().id() != current().id()) {
            // A panicked thread has already logged its panic.
            let _ = handle.join();
        }
    }
}

/// Starts a named thread with a stack of `stack` bytes.
///
/// # Errors
/// `Internal` when the machine has no room for another thread.
pub fn spawn(name: String, stack: usize, body: impl FnOnce() + Send + 'static) -> Result<JoinOnDrop> {
    let started = Builder::new().name(name.clone()).stack_size(stack).spawn(body);
    started
        .map(|handle| JoinOnDrop(Some(handle)))
        .map_err(|error| Error::internal(format!("Could not start the thread {name}")).because(error))
}

/// Locks `mutex` also after a panic under it: our guarded values are valid between statements.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

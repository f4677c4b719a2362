//! Named threads that are joined when their owners drop them, and locks that remain usable after a panic.

use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle, current};

use rustix::process::{getpriority_process, setpriority_process};

use super::{Error, Result};

/// A thread that is joined when its owner drops the handle. Before that, the owner drops the value that makes the
/// thread end.
#[derive(Debug)]
pub struct JoinOnDrop(Option<JoinHandle<()>>);

impl JoinOnDrop {
    pub fn is_finished(&self) -> bool {
        self.0.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Detaches a thread that the server must not wait for when it exits.
    pub fn detach(mut self) {
        self.0 = None;
    }
}

impl Drop for JoinOnDrop {
    fn drop(&mut self) {
        // If the thread itself is the last owner of its handle, it cannot join itself.
        if let Some(handle) = self.0.take().filter(|handle| handle.thread().id() != current().id()) {
            // A panicked thread has already logged its panic.
            let _ = handle.join();
        }
    }
}

/// Starts a named thread with a stack of `stack` bytes.
///
/// # Errors
/// `Internal` when the machine cannot start another thread.
pub fn spawn(name: String, stack: usize, body: impl FnOnce() + Send + 'static) -> Result<JoinOnDrop> {
    let started = Builder::new().name(name.clone()).stack_size(stack).spawn(body);
    started
        .map(|handle| JoinOnDrop(Some(handle)))
        .map_err(|error| Error::internal(format!("Could not start the thread {name}")).with_source(error))
}

/// Locks `mutex`, even if a thread panicked while it held the lock: the guarded values are valid between statements.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    /// The thread's nice value before [`lower_priority`] changed it.
    static BEFORE: Cell<Option<i32>> = const { Cell::new(None) };
}

/// Raises the calling thread's nice value until [`restore_priority`], so that the other threads of the process run
/// first (on Linux, setpriority(2) sets the value of one thread). Use it for work whose size a client determines. Do
/// not call it before a child is started: the child would inherit the value.
pub fn lower_priority() {
    // Without CAP_SYS_NICE the value could not be restored.
    if BEFORE.get().is_some() || !rustix::process::geteuid().is_root() {
        return;
    }
    if let Ok(before) = getpriority_process(None) {
        if setpriority_process(None, (before + 10).min(19)).is_ok() {
            BEFORE.set(Some(before));
        }
    }
}

/// Restores the nice value that the thread had before [`lower_priority`].
pub fn restore_priority() {
    if let Some(before) = BEFORE.take() {
        let _ = setpriority_process(None, before);
    }
}

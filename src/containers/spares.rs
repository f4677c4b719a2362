//! Keeps waiting processes ready in all containers. One thread serves all containers with a single poll(2), so that an
//! agent that does not answer delays only its own container.
//!
//! Thread: `container-spares`. No locks of its own.

use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::event::{PollFd, PollFlags, poll};

use super::container::Container;
use super::pending_process::{PendingProcess, poll_timeout};
use super::running::RunningContainer;
use crate::base::thread::{JoinOnDrop, spawn};
use crate::base::{Result, limits};
use crate::proc::Waker;

/// Limit of queued requests; when the queue is full, the next command starts its own process.
const REQUESTS: usize = 64;
/// Longest sleep of the thread between two checks.
const LOOK: Duration = Duration::from_secs(60);

/// Handle of the thread that keeps spare processes ready; requests go through it.
#[derive(Clone, Debug)]
pub(super) struct SpareQueue {
    queue: Sender<SpareRequest>,
    waker: Arc<Waker>,
    closed: Arc<AtomicBool>,
}

/// A request for spare processes in a container. It includes the running container, so that the thread needs no
/// lock that a start or stop holds.
#[derive(Debug)]
struct SpareRequest {
    container: Weak<Container>,
    running: Arc<RunningContainer>,
}

/// A spare process that is not ready yet.
struct PendingSpare {
    container: Weak<Container>,
    running: Arc<RunningContainer>,
    process: PendingProcess,
}

impl SpareQueue {
    /// Starts the thread; [`SpareQueue::close`] ends it.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(super) fn start() -> Result<(SpareQueue, JoinOnDrop)> {
        let (queue, wanted) = bounded(REQUESTS);
        let (waker, closed) = (Arc::new(Waker::new()?), Arc::<AtomicBool>::default());
        let thread = spawn("container-spares".into(), limits::STACK, {
            let (waker, closed) = (waker.clone(), closed.clone());
            move || serve(&wanted, &waker, &closed)
        })?;
        Ok((SpareQueue { queue, waker, closed }, thread))
    }

    /// Requests spare processes for a container.
    pub(super) fn request(&self, container: &Arc<Container>, running: &Arc<RunningContainer>) {
        let request = SpareRequest { container: Arc::downgrade(container), running: running.clone() };
        if self.queue.try_send(request).is_ok() {
            self.waker.wake();
        }
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.waker.wake();
    }
}

fn serve(wanted: &Receiver<SpareRequest>, waker: &Waker, closed: &AtomicBool) {
    let mut pending: Vec<PendingSpare> = Vec::new();
    while !closed.load(Ordering::Acquire) {
        while let Ok(request) = wanted.try_recv() {
            let begun = begin(request, &pending);
            pending.extend(begun);
        }
        let now = Instant::now();
        let next = pending.iter().map(|one| one.process.deadline).min();
        let sleep = next.map_or(LOOK, |next| next.saturating_duration_since(now)).min(LOOK);
        let mut fds = vec![PollFd::new(waker, PollFlags::IN)];
        fds.extend(pending.iter().map(|one| PollFd::from_borrowed_fd(one.process.as_fd(), PollFlags::IN)));
        let _ = poll(&mut fds, Some(&poll_timeout(sleep)));
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        waker.clear();
        let now = Instant::now();
        let mut next = Vec::new();
        for (one, ready) in std::mem::take(&mut pending).into_iter().zip(ready.into_iter().skip(1)) {
            if ready {
                next.extend(advance_pending(one));
            } else if one.process.deadline > now {
                next.push(one);
            }
        }
        pending = next;
    }
}

/// Requests a spare process if the container needs one; returns `None` if a request for it is already pending.
fn begin(
    SpareRequest { container, running }: SpareRequest,
    pending: &[PendingSpare],
) -> Option<PendingSpare> {
    if !running.needs_spare() || pending.iter().any(|one| Arc::ptr_eq(&one.running, &running)) {
        return None;
    }
    let process = PendingProcess::request(&running.runtime, Instant::now() + limits::AGENT_ANSWER).ok()?;
    Some(PendingSpare { container, running, process })
}

/// Handles the messages of a pending process. Returns the process that is pending afterwards: the same one, the
/// next one if it became ready, or none after an error.
fn advance_pending(mut one: PendingSpare) -> Option<PendingSpare> {
    let container = one.container.upgrade()?;
    let group = || container.group_for_spare(&one.running);
    match one.process.advance(&|pid| one.running.contains(pid), group) {
        Ok(false) => Some(one),
        Ok(true) => {
            one.running.add_spare(one.process.into_spare()?);
            begin(SpareRequest { container: one.container, running: one.running }, &[])
        }
        Err(_) => None,
    }
}

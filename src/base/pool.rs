//! A bounded set of named worker threads with a queue, both shared fairly ([`super::shares`]): a job whose token or
//! workspace uses its share of the workers waits, and jobs of others that came later pass it. Workers beyond the minimum
//! start when they are needed and end when they are not. Knows nothing of what the jobs are.
//!
//! Locks: `workers`, held only to start a thread; `state`, a leaf that may be taken under it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{Thread, current, park_timeout};
use std::time::{Duration, Instant};

use super::pace::{StartPacer, TICK};
use super::shares::{Ledger, Party, ShareError};
use super::thread::{self, JoinOnDrop, lock, spawn};
use super::{Result, limits};

type PoolJob = Box<dyn FnOnce() + Send>;

/// The workers. Dropping it lets the jobs that were taken end, then joins.
pub struct Pool(Arc<PoolInner>);

struct PoolInner {
    name: &'static str,
    state: Mutex<PoolState>,
    /// There may be a job that can begin, or the pool ends.
    changed: Condvar,
    workers: Mutex<PoolWorkers>,
}

#[derive(Default)]
struct PoolWorkers {
    threads: Vec<JoinOnDrop>,
    number: usize,
}

struct PoolState {
    /// `false` once the pool ends: no new threads, no new jobs.
    open: bool,
    queue: VecDeque<(Party, PoolJob)>,
    /// Jobs taken and not finished.
    pending: Ledger,
    /// Jobs that are being done, on our threads and on those of others.
    begun: Ledger,
    /// Threads whose job is over for all but themselves ([`ending`]).
    ending: usize,
    /// Threads of others that wait in [`claim`], in the order in which they came. One that may begin is taken out.
    claims: VecDeque<(Party, Thread)>,
    /// Threads.
    live: usize,
    most: usize,
    pace: Option<StartPacer>,
    /// A thread looks at held-up jobs again before long.
    ticking: bool,
}

impl PoolState {
    /// Takes the oldest job that can begin.
    fn begin(&mut self) -> Option<(Party, Instant, PoolJob)> {
        let now = Instant::now();
        let paced = |party| self.pace.as_ref().is_none_or(|pace| pace.allows(party, now));
        let at =
            self.queue.iter().position(|(party, _)| self.begun.check(*party).is_ok() && paced(*party))?;
        let (party, job) = self.queue.remove(at)?;
        self.begun.force_take(party);
        if let Some(pace) = &mut self.pace {
            pace.begin(party, now);
        }
        Some((party, now, job))
    }

    /// Lets those that wait in [`claim`] begin as far as there are places, and wakes no other.
    fn grant(&mut self) {
        let begun = &mut self.begun;
        self.claims.retain(|(party, thread)| {
            let granted = begun.take(*party).is_ok();
            if granted {
                thread.unpark();
            }
            !granted
        });
    }

    /// How many threads are not to be had.
    fn taken(&self) -> usize {
        self.pending.used() + self.ending
    }
}

impl Pool {
    /// `min` threads that stay, up to `max` and the owners' reserve; `queue` jobs may wait beyond those being worked on.
    ///
    /// # Errors
    /// When the first threads cannot be started.
    pub fn new(name: &'static str, min: usize, max: usize, queue: usize) -> Result<Pool> {
        let begun = Ledger::new(max);
        let most = max + begun.reserve();
        let state = PoolState {
            open: true,
            queue: VecDeque::new(),
            pending: Ledger::new(max + queue),
            begun,
            ending: 0,
            claims: VecDeque::new(),
            live: 0,
            most,
            pace: None,
            ticking: false,
        };
        let inner =
            PoolInner { name, state: Mutex::new(state), changed: Condvar::new(), workers: Mutex::default() };
        let inner = Arc::new(inner);
        for _ in 0..min {
            lock(&inner.state).live += 1;
            inner.start(true)?;
        }
        Ok(Pool(inner))
    }

    /// Has a token's jobs begin no faster than `most_fresh` at a time while others' do ([`super::pace`]).
    #[must_use]
    pub fn paced(self, most_fresh: usize) -> Pool {
        lock(&self.0.state).pace = Some(StartPacer::new(most_fresh));
        self
    }

    /// Hands a job to a worker.
    ///
    /// # Errors
    /// When every worker is taken and the queue is full, or the party has its share; the job is dropped then.
    pub fn submit(
        &self,
        party: Party,
        job: impl FnOnce() + Send + 'static,
    ) -> std::result::Result<(), ShareError> {
        self.reserve(party).map(|place| place.run(job))
    }

    /// Keeps a worker for a job that is not made yet, so that a refusal can still be answered.
    ///
    /// # Errors
    /// When every worker is taken and the queue is full, or the party has its share.
    pub fn reserve(&self, party: Party) -> std::result::Result<Permit, ShareError> {
        lock(&self.0.state).pending.take(party)?;
        let place = Permit { pool: self.0.clone(), party, used: false, begun: false };
        if self.0.staffed() { Ok(place) } else { Err(ShareError::Full) }
    }

    /// Counts the caller's own thread as one of the workers, if one is free, for a party that is not known yet
    /// ([`claim`]).
    ///
    /// # Errors
    /// When every worker is taken, even if the queue is not full.
    pub fn occupy(&self) -> std::result::Result<Permit, ShareError> {
        let party = Party::ANONYMOUS;
        let mut state = lock(&self.0.state);
        // The jobs in the queue came first.
        state.begun.check(party)?;
        if state.begun.used() + state.queue.len() >= state.begun.capacity() {
            return Err(ShareError::Full);
        }
        state.pending.take(party)?;
        state.begun.force_take(party);
        Ok(Permit { pool: self.0.clone(), party, used: false, begun: true })
    }
}

/// A worker that is kept for one job; dropped without one, it is free again.
pub struct Permit {
    pool: Arc<PoolInner>,
    party: Party,
    /// Handed over: the worker gives it back.
    used: bool,
    /// Its job is being done, on the thread that has it.
    begun: bool,
}

impl Permit {
    /// Hands the job over. It is dropped if the pool has ended.
    pub fn run(mut self, job: impl FnOnce() + Send + 'static) {
        {
            let mut state = lock(&self.pool.state);
            if !state.open {
                return;
            }
            state.queue.push_back((self.party, Box::new(job)));
            self.used = true;
            self.pool.wake(&mut state);
        }
        // The thread that the reservation started may have timed out.
        self.pool.staffed();
    }

    /// Does the job on this thread, in this place. A job that steps aside gives the place up.
    pub fn run_here(self, job: impl FnOnce()) {
        /// Also when the job panics.
        struct ReleaseOnDrop;
        impl Drop for ReleaseOnDrop {
            fn drop(&mut self) {
                drop(OCCUPIED.take());
            }
        }
        OCCUPIED.set(Some(self));
        let _leave = ReleaseOnDrop;
        job();
    }
}

/// Says whose job the calling thread does in a place that it occupies. If that party has its share of the workers, the
/// thread waits for one of them, as its job would in the queue. Elsewhere it does nothing.
///
/// # Errors
/// When the party has its share of the queue as well, or none of its jobs ends in time.
pub fn claim(party: Party, patience: Duration) -> std::result::Result<(), ShareError> {
    OCCUPIED.with_borrow_mut(|place| {
        let Some(place) = place.as_mut().filter(|place| place.begun) else { return Ok(()) };
        let pool = place.pool.clone();
        let mut state = lock(&pool.state);
        state.pending.assign(place.party, party)?;
        state.begun.give_back(place.party);
        (place.party, place.begun) = (party, false);
        if let Ok(()) = state.begun.take(party) {
            place.begun = true;
            return Ok(());
        }
        let this = current();
        state.claims.push_back((party, this.clone()));
        // Another job may begin in the place that was given back.
        pool.wake(&mut state);
        let deadline = Instant::now() + patience;
        while let Some(at) = state.claims.iter().position(|(_, thread)| thread.id() == this.id()) {
            let left = deadline.saturating_duration_since(Instant::now());
            if !state.open || left.is_zero() {
                state.claims.remove(at);
                return state.begun.take(party).map(|()| place.begun = true);
            }
            drop(state);
            park_timeout(left);
            state = lock(&pool.state);
        }
        place.begun = true;
        Ok(())
    })
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = lock(&self.pool.state);
        if !self.used {
            state.pending.give_back(self.party);
        }
        if self.begun {
            state.begun.give_back(self.party);
            self.pool.wake(&mut state);
        }
    }
}

impl PoolInner {
    /// A job may begin: those that wait in [`claim`] come first; one worker looks at the whole queue.
    fn wake(&self, state: &mut PoolState) {
        state.grant();
        self.changed.notify_one();
    }

    /// Starts a thread if there are fewer than jobs, as far as the maximum allows; `false` when there is no thread at all.
    fn staffed(self: &Arc<Self>) -> bool {
        {
            let mut state = lock(&self.state);
            if state.live >= state.taken().min(state.most) || !state.open {
                return true;
            }
            state.live += 1;
        }
        match self.start(false) {
            Ok(()) => true,
            Err(error) => {
                log::warn!("{error}");
                lock(&self.state).live > 0
            }
        }
    }

    /// Starts a thread that is counted already.
    fn start(self: &Arc<Self>, stays: bool) -> Result<()> {
        let mut workers = lock(&self.workers);
        // The end joins all threads that it finds, under the same lock.
        if !lock(&self.state).open {
            return Ok(());
        }
        let pool = self.clone();
        let started =
            spawn(format!("{}-{}", self.name, workers.number), limits::STACK, move || work(&pool, stays));
        workers.number += 1;
        workers.threads.retain(|worker| !worker.is_finished());
        match started {
            Ok(worker) => {
                workers.threads.push(worker);
                Ok(())
            }
            Err(error) => {
                lock(&self.state).live -= 1;
                Err(error)
            }
        }
    }
}

thread_local! {
    static COUNTED: RefCell<Option<CurrentJob>> = const { RefCell::new(None) };
    /// On a thread that is not a worker: the place that its job takes.
    static OCCUPIED: RefCell<Option<Permit>> = const { RefCell::new(None) };
}

/// On a worker's thread: the job that it counts for.
struct CurrentJob {
    pool: Arc<PoolInner>,
    party: Party,
    begun: Instant,
    ending: bool,
}

impl CurrentJob {
    /// Its job is over.
    fn give_back(&self, state: &mut PoolState) {
        if self.ending {
            state.ending -= 1;
        } else {
            state.pending.give_back(self.party);
        }
        state.begun.give_back(self.party);
        if let Some(pace) = &mut state.pace {
            pace.end(self.party, self.begun);
        }
    }
}

/// Called by a job before it reports its end, when only short work such as cleaning up remains: a client that has heard
/// of the end can have the place at once. Another job waits for this thread if all are at that. Outside of a job, and a
/// second time, it does nothing.
pub fn release_early() {
    COUNTED.with_borrow_mut(|counted| {
        if let Some(counted) = counted.as_mut().filter(|counted| !counted.ending) {
            counted.ending = true;
            let mut state = lock(&counted.pool.state);
            state.ending += 1;
            state.pending.give_back(counted.party);
        }
    });
}

/// Called by a job that takes longer than its pool was made for: the pool gets another worker in its stead, and this
/// thread ends with the job. The caller must have bounded such jobs in another way. Outside of a job, and a second
/// time, it does nothing.
pub fn step_aside() {
    drop(OCCUPIED.take());
    let Some(counted) = COUNTED.take() else { return };
    {
        let mut state = lock(&counted.pool.state);
        state.live -= 1;
        counted.give_back(&mut state);
        counted.pool.wake(&mut state);
    }
    // The jobs in the queue may have no other thread.
    counted.pool.staffed();
}

fn work(pool: &Arc<PoolInner>, stays: bool) {
    let mut state = lock(&pool.state);
    loop {
        let Some((party, begun, job)) = state.begin() else {
            if !state.open && state.queue.is_empty() {
                pool.changed.notify_all();
                return;
            }
            let ticks = state.pace.is_some() && !state.queue.is_empty() && !state.ticking;
            state.ticking |= ticks;
            let (after, waited) = if ticks {
                pool.changed.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner)
            } else {
                pool.changed.wait_timeout(state, limits::WORKER_IDLE).unwrap_or_else(PoisonError::into_inner)
            };
            state = after;
            if ticks {
                state.ticking = false;
            } else if waited.timed_out() && state.queue.is_empty() && !stays {
                state.live -= 1;
                return;
            }
            continue;
        };
        if state.pace.is_some() && !state.queue.is_empty() {
            // Another thread looks at what is held up.
            pool.changed.notify_one();
        }
        drop(state);
        COUNTED.set(Some(CurrentJob { pool: pool.clone(), party, begun, ending: false }));
        // The panic hook has logged it; the job's own guards have answered. The worker lives on.
        drop(catch_unwind(AssertUnwindSafe(job)));
        thread::restore_priority();
        let Some(counted) = COUNTED.take() else { return };
        state = lock(&pool.state);
        counted.give_back(&mut state);
        state.grant();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        {
            let mut state = lock(&self.0.state);
            state.open = false;
            state.claims.iter().for_each(|(_, thread)| thread.unpark());
        }
        self.0.changed.notify_all();
        let workers = std::mem::take(&mut lock(&self.0.workers).threads);
        drop(workers);
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;

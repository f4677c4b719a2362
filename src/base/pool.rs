//! A bounded set of named worker threads with a queue. Tokens and workspaces share the workers and the queue fairly
//! ([`super::shares`]): a job waits while its token or workspace uses its share of the workers, and later jobs of other
//! users pass it. Workers beyond the minimum start on demand and end when they are idle. The pool runs any kind of job.
//!
//! Locks: `workers`, held only to start a thread; `state`, a leaf, which may be taken while `workers` is held.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{Thread, current, park_timeout};
use std::time::{Duration, Instant};

use super::shares::{Ledger, ShareError, ShareHolder};
use super::start_pacing::{StartPacer, TICK};
use super::thread::{self, JoinOnDrop, lock, spawn};
use super::{Result, limits};

/// How long an idle worker beyond the minimum waits for another job.
const WORKER_IDLE: Duration = Duration::from_secs(30);

type PoolJob = Box<dyn FnOnce() + Send>;

/// A pool of workers. Dropping it waits for the jobs that were accepted, then joins the threads.
pub struct Pool(Arc<PoolInner>);

struct PoolInner {
    name: &'static str,
    state: Mutex<PoolState>,
    /// Signalled when a job may start, or when the pool is dropped.
    changed: Condvar,
    workers: Mutex<PoolWorkers>,
}

#[derive(Default)]
struct PoolWorkers {
    threads: Vec<JoinOnDrop>,
    number: usize,
}

struct PoolState {
    /// Whether the pool accepts jobs and starts threads: `false` once the pool is being dropped.
    open: bool,
    queue: VecDeque<(ShareHolder, PoolJob)>,
    /// The jobs that are queued or running.
    pending: Ledger,
    /// The jobs that are running, on the pool's threads and on other threads ([`Pool::occupy`]).
    begun: Ledger,
    /// Number of threads whose job has released its permit early ([`release_early`]).
    finishing: usize,
    /// Threads outside of the pool that wait in [`claim`], in order of arrival. A thread is removed when its claim is
    /// granted.
    claims: VecDeque<(ShareHolder, Thread)>,
    /// Number of worker threads.
    live_threads: usize,
    max_threads: usize,
    pace: Option<StartPacer>,
    /// Whether a thread already checks delayed jobs again after [`TICK`].
    ticking: bool,
}

impl PoolState {
    /// Takes the oldest job that may start from the queue.
    fn begin(&mut self) -> Option<(ShareHolder, Instant, PoolJob)> {
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

    /// Grants as many claims as there are free permits, and wakes the threads of these claims.
    fn grant_claims(&mut self) {
        let begun = &mut self.begun;
        self.claims.retain(|(party, thread)| {
            let granted = begun.take(*party).is_ok();
            if granted {
                thread.unpark();
            }
            !granted
        });
    }

    /// Returns the number of threads that are not available for a new job.
    fn busy_threads(&self) -> usize {
        self.pending.used() + self.finishing
    }
}

impl Pool {
    /// Creates a pool with `min` permanent threads and at most `max` threads plus the owners' reserve. At most `queue`
    /// jobs may wait.
    ///
    /// # Errors
    /// When the permanent threads cannot be started.
    pub fn new(name: &'static str, min: usize, max: usize, queue: usize) -> Result<Pool> {
        let begun = Ledger::new(max);
        let max_threads = max + begun.reserve();
        let state = PoolState {
            open: true,
            queue: VecDeque::new(),
            pending: Ledger::new(max + queue),
            begun,
            finishing: 0,
            claims: VecDeque::new(),
            live_threads: 0,
            max_threads,
            pace: None,
            ticking: false,
        };
        let inner =
            PoolInner { name, state: Mutex::new(state), changed: Condvar::new(), workers: Mutex::default() };
        let inner = Arc::new(inner);
        for _ in 0..min {
            lock(&inner.state).live_threads += 1;
            inner.start(true)?;
        }
        Ok(Pool(inner))
    }

    /// Limits how many jobs of one token start at nearly the same time ([`super::start_pacing`]).
    #[must_use]
    pub fn paced(self, most_fresh: usize) -> Pool {
        lock(&self.0.state).pace = Some(StartPacer::new(most_fresh));
        self
    }

    /// Queues a job. The job is dropped if this function returns an error.
    ///
    /// # Errors
    /// When all workers are busy and the queue is full, or when the party uses its share.
    pub fn submit(
        &self,
        party: ShareHolder,
        job: impl FnOnce() + Send + 'static,
    ) -> std::result::Result<(), ShareError> {
        self.reserve(party).map(|permit| permit.run(job))
    }

    /// Reserves a place for a job that is submitted later, so that the caller can still report a refusal to the client.
    ///
    /// # Errors
    /// When all workers are busy and the queue is full, or when the party uses its share.
    pub fn reserve(&self, party: ShareHolder) -> std::result::Result<Permit, ShareError> {
        lock(&self.0.state).pending.take(party)?;
        let permit = Permit { pool: self.0.clone(), party, used: false, begun: false };
        if self.0.ensure_worker() { Ok(permit) } else { Err(ShareError::Full) }
    }

    /// Counts the calling thread as a worker if a permit is free. The party is not known yet; the thread names it in
    /// [`claim`].
    ///
    /// # Errors
    /// When all workers are busy, even if the queue is not full.
    pub fn occupy(&self) -> std::result::Result<Permit, ShareError> {
        let party = ShareHolder::ANONYMOUS;
        let mut state = lock(&self.0.state);
        // Jobs that are already queued have precedence.
        state.begun.check(party)?;
        if state.begun.used() + state.queue.len() >= state.begun.capacity() {
            return Err(ShareError::Full);
        }
        state.pending.take(party)?;
        state.begun.force_take(party);
        Ok(Permit { pool: self.0.clone(), party, used: false, begun: true })
    }
}

/// The right to run one job. If a permit is dropped unused, another job can take its place.
pub struct Permit {
    pool: Arc<PoolInner>,
    party: ShareHolder,
    /// Whether the job was queued: then the worker returns the permit.
    used: bool,
    /// Whether the job is running on the thread that holds this permit.
    begun: bool,
}

impl Permit {
    /// Queues the job. The job is dropped if the pool has been dropped.
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
        // The thread that `reserve` started may have ended in the meantime.
        self.pool.ensure_worker();
    }

    /// Runs the job on the calling thread with this permit. A job that calls [`step_aside`] releases the permit.
    pub fn run_here(self, job: impl FnOnce()) {
        /// Releases the permit when the job ends or panics.
        struct ReleaseOnDrop;
        impl Drop for ReleaseOnDrop {
            fn drop(&mut self) {
                drop(OCCUPIED_PERMIT.take());
            }
        }
        OCCUPIED_PERMIT.set(Some(self));
        let _leave = ReleaseOnDrop;
        job();
    }
}

/// Assigns the calling thread's permit to `party`. If that party already uses its share of the workers, the thread
/// waits until one of the party's jobs ends, as a queued job would. Has no effect on a thread without an anonymous
/// permit.
///
/// # Errors
/// When the party also uses its share of the queue, or when no permit becomes free within `patience`.
pub fn claim(party: ShareHolder, patience: Duration) -> std::result::Result<(), ShareError> {
    OCCUPIED_PERMIT.with_borrow_mut(|permit| {
        let Some(permit) = permit.as_mut().filter(|permit| permit.begun) else { return Ok(()) };
        let pool = permit.pool.clone();
        let mut state = lock(&pool.state);
        state.pending.assign(permit.party, party)?;
        state.begun.give_back(permit.party);
        (permit.party, permit.begun) = (party, false);
        if let Ok(()) = state.begun.take(party) {
            permit.begun = true;
            return Ok(());
        }
        let this = current();
        state.claims.push_back((party, this.clone()));
        // Another job may start with the permit that was returned above.
        pool.wake(&mut state);
        let deadline = Instant::now() + patience;
        while let Some(at) = state.claims.iter().position(|(_, thread)| thread.id() == this.id()) {
            let left = deadline.saturating_duration_since(Instant::now());
            if !state.open || left.is_zero() {
                state.claims.remove(at);
                return state.begun.take(party).map(|()| permit.begun = true);
            }
            drop(state);
            park_timeout(left);
            state = lock(&pool.state);
        }
        permit.begun = true;
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
    /// Wakes the threads whose job may start: threads that wait in [`claim`] come first, then one worker checks the
    /// queue.
    fn wake(&self, state: &mut PoolState) {
        state.grant_claims();
        self.changed.notify_one();
    }

    /// Starts a thread if more are needed and the maximum allows it. Returns `false` if the pool then has no thread at
    /// all.
    fn ensure_worker(self: &Arc<Self>) -> bool {
        {
            let mut state = lock(&self.state);
            if state.live_threads >= state.busy_threads().min(state.max_threads) || !state.open {
                return true;
            }
            state.live_threads += 1;
        }
        match self.start(false) {
            Ok(()) => true,
            Err(error) => {
                log::warn!("{error}");
                lock(&self.state).live_threads > 0
            }
        }
    }

    /// Starts a thread that the caller has already counted in `live_threads`.
    fn start(self: &Arc<Self>, stays: bool) -> Result<()> {
        let mut workers = lock(&self.workers);
        // `Drop` sets `open` to `false` and joins all threads in the list, under the same lock.
        if !lock(&self.state).open {
            return Ok(());
        }
        let pool = self.clone();
        let started = spawn(format!("{}-{}", self.name, workers.number), limits::STACK, move || {
            worker_loop(&pool, stays)
        });
        workers.number += 1;
        workers.threads.retain(|worker| !worker.is_finished());
        match started {
            Ok(worker) => {
                workers.threads.push(worker);
                Ok(())
            }
            Err(error) => {
                lock(&self.state).live_threads -= 1;
                Err(error)
            }
        }
    }
}

thread_local! {
    static CURRENT_JOB: RefCell<Option<CurrentJob>> = const { RefCell::new(None) };
    /// The permit of the current job, if this thread is not a worker.
    static OCCUPIED_PERMIT: RefCell<Option<Permit>> = const { RefCell::new(None) };
}

/// The job that a worker is running.
struct CurrentJob {
    pool: Arc<PoolInner>,
    party: ShareHolder,
    begun: Instant,
    finishing: bool,
}

impl CurrentJob {
    /// Returns the job's permit to the pool at the end of the job.
    fn give_back(&self, state: &mut PoolState) {
        if self.finishing {
            state.finishing -= 1;
        } else {
            state.pending.give_back(self.party);
        }
        state.begun.give_back(self.party);
        if let Some(pace) = &mut state.pace {
            pace.end(self.party, self.begun);
        }
    }
}

/// Releases the calling job's permit before the job reports its end, when only short work such as cleaning up remains.
/// A client that has received the end can then use the permit at once. If all threads are doing such work, the next job
/// waits for one of them. Has no effect outside of a job and on a second call.
pub fn release_early() {
    CURRENT_JOB.with_borrow_mut(|counted| {
        if let Some(counted) = counted.as_mut().filter(|counted| !counted.finishing) {
            counted.finishing = true;
            let mut state = lock(&counted.pool.state);
            state.finishing += 1;
            state.pending.give_back(counted.party);
        }
    });
}

/// Removes the calling thread from its pool, for a job that takes longer than the pool's jobs should. The pool starts
/// another worker instead, and the calling thread ends with the job. The caller must limit such jobs in another way.
/// Has no effect outside of a job and on a second call.
pub fn step_aside() {
    drop(OCCUPIED_PERMIT.take());
    let Some(counted) = CURRENT_JOB.take() else { return };
    {
        let mut state = lock(&counted.pool.state);
        state.live_threads -= 1;
        counted.give_back(&mut state);
        counted.pool.wake(&mut state);
    }
    // The pool may have no other thread for the queued jobs.
    counted.pool.ensure_worker();
}

fn worker_loop(pool: &Arc<PoolInner>, stays: bool) {
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
                pool.changed.wait_timeout(state, WORKER_IDLE).unwrap_or_else(PoisonError::into_inner)
            };
            state = after;
            if ticks {
                state.ticking = false;
            } else if waited.timed_out() && state.queue.is_empty() && !stays {
                state.live_threads -= 1;
                return;
            }
            continue;
        };
        if state.pace.is_some() && !state.queue.is_empty() {
            // Let another thread check the delayed jobs.
            pool.changed.notify_one();
        }
        drop(state);
        CURRENT_JOB.set(Some(CurrentJob { pool: pool.clone(), party, begun, finishing: false }));
        // If the job panicked, the panic hook has logged it and the job's guards have replied. The worker continues.
        drop(catch_unwind(AssertUnwindSafe(job)));
        thread::restore_priority();
        let Some(counted) = CURRENT_JOB.take() else { return };
        state = lock(&pool.state);
        counted.give_back(&mut state);
        state.grant_claims();
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

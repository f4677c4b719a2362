//! A bounded set of named worker threads with a queue. Workers beyond the minimum start when they are needed and end
//! when they are not. Knows nothing of what the jobs are.
//!
//! Locks: `workers`, held only to start a thread or to count; `jobs`, held only to send without waiting.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::thread::{JoinOnDrop, lock, spawn};
use super::{Result, limits};

type Job = Box<dyn FnOnce() + Send>;

/// The workers. Dropping it lets the jobs that were taken end, then joins.
pub struct Pool(Arc<Inner>);

struct Inner {
    name: &'static str,
    max: usize,
    queue: usize,
    /// `None` once the pool ends: that closes the queue, so that the joins can finish.
    jobs: Mutex<Option<Sender<Job>>>,
    waiting: Receiver<Job>,
    counts: Arc<Counts>,
    workers: Mutex<Vec<JoinOnDrop>>,
    number: AtomicUsize,
}

#[derive(Default)]
struct Counts {
    /// Jobs taken and not finished.
    pending: AtomicUsize,
    /// Threads.
    live: AtomicUsize,
}

impl Pool {
    /// `min` threads that stay, up to `max`; `queue` jobs may wait beyond those being worked on.
    ///
    /// # Errors
    /// When the first threads cannot be started.
    pub fn new(name: &'static str, min: usize, max: usize, queue: usize) -> Result<Pool> {
        // Never full: `reserve` refuses before it gets there.
        let (jobs, waiting) = bounded(max + queue);
        let inner = Inner {
            name,
            max,
            queue,
            jobs: Mutex::new(Some(jobs)),
            waiting,
            counts: Arc::default(),
            workers: Mutex::default(),
            number: AtomicUsize::new(0),
        };
        for _ in 0..min {
            inner.start(true)?;
        }
        Ok(Pool(Arc::new(inner)))
    }

    /// Hands a job to a worker.
    ///
    /// # Errors
    /// When every worker is taken and the queue is full; the job is dropped then.
    pub fn submit(&self, job: impl FnOnce() + Send + 'static) -> std::result::Result<(), Refused> {
        self.reserve().map(|place| place.run(job))
    }

    /// Keeps a worker for a job that is not made yet, so that a refusal can still be answered.
    ///
    /// # Errors
    /// When every worker is taken and the queue is full.
    pub fn reserve(&self) -> std::result::Result<Place, Refused> {
        let inner = &self.0;
        let pending = inner.counts.pending.fetch_add(1, Ordering::SeqCst);
        let place = Place { pool: Arc::downgrade(inner), counts: inner.counts.clone(), used: false };
        if pending >= inner.max + inner.queue || !inner.staffed(pending + 1) {
            return Err(Refused);
        }
        Ok(place)
    }
}

/// A worker that is kept for one job; dropped without one, it is free again.
pub struct Place {
    // A job may lie in wait longer than its pool lives.
    pool: Weak<Inner>,
    counts: Arc<Counts>,
    /// Handed over: the worker gives it back.
    used: bool,
}

impl Place {
    /// Hands the job over. It is dropped if the pool has ended.
    pub fn run(mut self, job: impl FnOnce() + Send + 'static) {
        let Some(pool) = self.pool.upgrade() else { return };
        // The thread that the reservation started may have grown tired of waiting.
        pool.staffed(pool.counts.pending.load(Ordering::SeqCst));
        let jobs = lock(&pool.jobs).clone();
        self.used = jobs.is_some_and(|jobs| jobs.try_send(Box::new(job)).is_ok());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.used {
            self.counts.pending.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Inner {
    /// Sees to it that `pending` jobs have threads, as far as `max` allows; `false` when there is no thread at all.
    fn staffed(&self, pending: usize) -> bool {
        let live = self.counts.live.load(Ordering::SeqCst);
        if live < pending.min(self.max) {
            if let Err(error) = self.start(false) {
                log::warn!("{error}");
                return live > 0;
            }
        }
        true
    }

    fn start(&self, stays: bool) -> Result<()> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let (waiting, counts) = (self.waiting.clone(), self.counts.clone());
        counts.live.fetch_add(1, Ordering::SeqCst);
        let started =
            spawn(format!("{}-{number}", self.name), limits::STACK, move || work(&waiting, &counts, stays));
        let mut workers = lock(&self.workers);
        workers.retain(|worker| !worker.is_finished());
        match started {
            Ok(worker) => {
                workers.push(worker);
                Ok(())
            }
            Err(error) => {
                self.counts.live.fetch_sub(1, Ordering::SeqCst);
                Err(error)
            }
        }
    }
}

/// The job was not taken.
#[derive(Debug)]
pub struct Refused;

fn work(waiting: &Receiver<Job>, counts: &Counts, stays: bool) {
    loop {
        let job = if stays {
            waiting.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            waiting.recv_timeout(limits::WORKER_IDLE)
        };
        match job {
            Ok(job) => {
                // The panic hook has logged it; the job's own guards have answered. The worker lives on.
                drop(catch_unwind(AssertUnwindSafe(job)));
                counts.pending.fetch_sub(1, Ordering::SeqCst);
            }
            Err(RecvTimeoutError::Timeout) => {
                counts.live.fetch_sub(1, Ordering::SeqCst);
                // A job that came between the time-out and the line above was promised a thread: this one.
                if waiting.is_empty() {
                    return;
                }
                counts.live.fetch_add(1, Ordering::SeqCst);
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        *lock(&self.0.jobs) = None;
        let workers = std::mem::take(&mut *lock(&self.0.workers));
        drop(workers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    #[test]
    fn refuses_beyond_its_bounds_and_survives_panics() {
        let pool = Pool::new("test", 0, 2, 0).unwrap();
        let hold = Arc::new(Barrier::new(3));
        for _ in 0..2 {
            let hold = hold.clone();
            pool.submit(move || {
                hold.wait();
            })
            .unwrap();
        }
        let mut refused = 0;
        for _ in 0..3 {
            refused += usize::from(pool.submit(|| panic!("on purpose")).is_err());
        }
        assert!(refused >= 2, "{refused}");
        hold.wait();
        let (done, finished) = bounded(1);
        while pool
            .submit({
                let done = done.clone();
                move || done.send(()).unwrap()
            })
            .is_err()
        {}
        finished.recv().unwrap();
    }

    #[test]
    fn a_kept_place_is_a_place() {
        let pool = Pool::new("test", 0, 1, 0).unwrap();
        let place = pool.reserve().unwrap();
        assert!(pool.reserve().is_err());
        drop(place);
        let place = pool.reserve().unwrap();
        let (done, finished) = bounded(1);
        place.run(move || done.send(()).unwrap());
        finished.recv().unwrap();
        while pool.reserve().is_err() {}
        let late = pool.reserve().unwrap();
        drop(pool);
        late.run(|| panic!("the pool has ended"));
    }
}

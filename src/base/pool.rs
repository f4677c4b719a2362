//! A bounded set of named worker threads with a queue. Workers beyond the minimum start when they are needed and end
//! when they are not. Knows nothing of what the jobs are.
//!
//! Locks: `workers`, held only to start a thread or to count; `jobs`, held only to send without waiting; `busy`, a leaf.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};

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
    /// Threads whose job is over for everybody but them ([`ending`]).
    ending: AtomicUsize,
    /// Threads.
    live: AtomicUsize,
    /// Jobs that are being done, on our threads and on those of others; at most `max`.
    busy: Mutex<usize>,
    less_busy: Condvar,
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
        let inner = Arc::new(inner);
        for _ in 0..min {
            inner.start(true)?;
        }
        Ok(Pool(inner))
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
        let place =
            Place { pool: Arc::downgrade(inner), counts: inner.counts.clone(), used: false, begun: false };
        if pending >= inner.max + inner.queue || !inner.staffed(pending + 1 + inner.counts.ending()) {
            return Err(Refused);
        }
        Ok(place)
    }

    /// Counts the caller's own thread as one of the workers, if one is free.
    ///
    /// # Errors
    /// When every worker is taken, even if the queue is not full.
    pub fn occupy(&self) -> std::result::Result<Place, Refused> {
        let inner = &self.0;
        let pending = inner.counts.pending.fetch_add(1, Ordering::SeqCst);
        let mut place =
            Place { pool: Arc::downgrade(inner), counts: inner.counts.clone(), used: false, begun: false };
        // Who waits in the queue came first.
        if pending >= inner.max || !inner.counts.try_begin(inner.max) {
            return Err(Refused);
        }
        place.begun = true;
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
    /// Its job is being done, by whoever has it.
    begun: bool,
}

impl Place {
    /// Hands the job over. It is dropped if the pool has ended.
    pub fn run(mut self, job: impl FnOnce() + Send + 'static) {
        let Some(pool) = self.pool.upgrade() else { return };
        // The thread that the reservation started may have grown tired of waiting.
        pool.staffed(pool.counts.taken());
        let jobs = lock(&pool.jobs).clone();
        self.used = jobs.is_some_and(|jobs| jobs.try_send(Box::new(job)).is_ok());
    }

    /// Does the job on this thread, in this place. A job that steps aside gives the place up.
    pub fn run_here(self, job: impl FnOnce()) {
        /// Also when the job panics.
        struct Leave;
        impl Drop for Leave {
            fn drop(&mut self) {
                drop(OCCUPIED.take());
            }
        }
        OCCUPIED.set(Some(self));
        let _leave = Leave;
        job();
    }
}

impl Counts {
    fn try_begin(&self, max: usize) -> bool {
        let mut busy = lock(&self.busy);
        let free = *busy < max;
        *busy += usize::from(free);
        free
    }

    /// On a worker's thread. It waits only for threads of others: there are no more workers than jobs that may be done.
    fn begin(&self, max: usize) {
        let busy = lock(&self.busy);
        let mut busy =
            self.less_busy.wait_while(busy, |busy| *busy >= max).unwrap_or_else(PoisonError::into_inner);
        *busy += 1;
    }

    fn done(&self) {
        *lock(&self.busy) -= 1;
        self.less_busy.notify_one();
    }

    fn ending(&self) -> usize {
        self.ending.load(Ordering::SeqCst)
    }

    /// How many threads are not to be had. `pending` first: who goes from one count to the other is in both for a
    /// moment, and never in none.
    fn taken(&self) -> usize {
        self.pending.load(Ordering::SeqCst) + self.ending()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.used {
            self.counts.pending.fetch_sub(1, Ordering::SeqCst);
        }
        if self.begun {
            self.counts.done();
        }
    }
}

impl Inner {
    /// Sees to it that there are `wanted` threads, as far as `max` allows; `false` when there is no thread at all.
    fn staffed(self: &Arc<Self>, wanted: usize) -> bool {
        let live = self.counts.live.load(Ordering::SeqCst);
        if live < wanted.min(self.max) {
            if let Err(error) = self.start(false) {
                log::warn!("{error}");
                return live > 0;
            }
        }
        true
    }

    fn start(self: &Arc<Self>, stays: bool) -> Result<()> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let (pool, waiting, counts) = (Arc::downgrade(self), self.waiting.clone(), self.counts.clone());
        let max = self.max;
        counts.live.fetch_add(1, Ordering::SeqCst);
        let started = spawn(format!("{}-{number}", self.name), limits::STACK, move || {
            work(&pool, &waiting, &counts, max, stays)
        });
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

thread_local! {
    static COUNTED: RefCell<Option<Counted>> = const { RefCell::new(None) };
    /// On a thread of somebody else's: the place that its job takes.
    static OCCUPIED: RefCell<Option<Place>> = const { RefCell::new(None) };
}

/// On a worker's thread: the pool that it counts for.
struct Counted {
    pool: Weak<Inner>,
    counts: Arc<Counts>,
    ending: bool,
}

impl Counted {
    /// Its job is over.
    fn give_back(self) {
        let count = if self.ending { &self.counts.ending } else { &self.counts.pending };
        count.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Called by a job before it lets anybody know of its end, when all that is left to do is short, such as cleaning up: who
/// has heard of the end can have its place at once, and is not refused for want of it. Another job waits for this thread
/// if all are at that. Outside of a job, and a second time, it does nothing.
pub fn ending() {
    COUNTED.with_borrow_mut(|counted| {
        if let Some(counted) = counted.as_mut().filter(|counted| !counted.ending) {
            counted.ending = true;
            counted.counts.ending.fetch_add(1, Ordering::SeqCst);
            counted.counts.pending.fetch_sub(1, Ordering::SeqCst);
        }
    });
}

/// Called by a job that takes longer than its pool was made for: the pool gets another worker in its stead, and this
/// thread ends with the job. Whoever calls it must have bounded such jobs in another way. Outside of a job, and a second
/// time, it does nothing.
pub fn step_aside() {
    drop(OCCUPIED.take());
    let Some(counted) = COUNTED.take() else { return };
    let (pool, counts) = (counted.pool.clone(), counted.counts.clone());
    counts.live.fetch_sub(1, Ordering::SeqCst);
    counted.give_back();
    counts.done();
    // Those that wait in the queue may have nobody else.
    if let Some(pool) = pool.upgrade() {
        pool.staffed(counts.taken());
    }
}

fn work(pool: &Weak<Inner>, waiting: &Receiver<Job>, counts: &Arc<Counts>, max: usize, stays: bool) {
    loop {
        COUNTED.set(Some(Counted { pool: pool.clone(), counts: counts.clone(), ending: false }));
        let job = if stays {
            waiting.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            waiting.recv_timeout(limits::WORKER_IDLE)
        };
        match job {
            Ok(job) => {
                counts.begin(max);
                // The panic hook has logged it; the job's own guards have answered. The worker lives on.
                drop(catch_unwind(AssertUnwindSafe(job)));
                match COUNTED.take() {
                    Some(counted) => {
                        counted.give_back();
                        counts.done();
                    }
                    None => return,
                }
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
    fn who_steps_aside_leaves_room_for_another() {
        let pool = Pool::new("test", 1, 1, 0).unwrap();
        let (go_on, long) = bounded::<()>(0);
        let (done, finished) = bounded(2);
        let told = done.clone();
        pool.submit(move || {
            step_aside();
            step_aside();
            told.send(1).unwrap();
            let _ = long.recv();
            told.send(2).unwrap();
        })
        .unwrap();
        assert_eq!(finished.recv(), Ok(1));
        pool.submit(move || done.send(3).unwrap()).unwrap();
        assert_eq!(finished.recv(), Ok(3));
        drop(go_on);
        assert_eq!(finished.recv(), Ok(2));
        while pool.reserve().is_err() {}
        drop(pool.reserve().unwrap());
        assert!(pool.0.counts.live.load(Ordering::SeqCst) <= 1);
        step_aside();
    }

    #[test]
    fn who_is_ending_has_given_its_place_back() {
        let pool = Pool::new("test", 0, 1, 0).unwrap();
        let (clean_up, cleaning) = bounded::<()>(0);
        let (done, finished) = bounded(2);
        let told = done.clone();
        pool.submit(move || {
            ending();
            ending();
            told.send(1).unwrap();
            let _ = cleaning.recv();
            told.send(2).unwrap();
        })
        .unwrap();
        assert_eq!(finished.recv(), Ok(1));
        pool.submit(move || done.send(3).unwrap()).expect("there is room as soon as the end is known");
        assert!(pool.reserve().is_err());
        drop(clean_up);
        assert_eq!((finished.recv(), finished.recv()), (Ok(2), Ok(3)));
        while pool.reserve().is_err() {}
        assert_eq!((pool.0.counts.live.load(Ordering::SeqCst), pool.0.counts.ending()), (1, 0));
        ending();
    }

    #[test]
    fn who_steps_aside_leaves_nobody_waiting() {
        let pool = Pool::new("test", 0, 1, 1).unwrap();
        let (tell, told) = bounded(0);
        let (done, finished) = bounded(1);
        pool.submit(move || {
            told.recv().unwrap();
            step_aside();
            finished.recv().unwrap();
        })
        .unwrap();
        pool.submit(move || done.send(()).unwrap()).unwrap();
        tell.send(()).unwrap();
    }

    #[test]
    fn a_callers_own_thread_takes_a_place_until_it_steps_aside() {
        let pool = Pool::new("test", 0, 1, 1).unwrap();
        let place = pool.occupy().unwrap();
        assert!(pool.occupy().is_err());
        place.run_here(|| {
            assert!(pool.occupy().is_err());
            // What comes in the ordinary way waits, though there is a thread for it.
            let (done, finished) = bounded(1);
            pool.submit(move || done.send(()).unwrap()).unwrap();
            let waited = finished.recv_timeout(std::time::Duration::from_millis(100));
            assert_eq!(waited, Err(RecvTimeoutError::Timeout));
            step_aside();
            finished.recv().unwrap();
            while pool.occupy().is_err() {}
        });
        drop(pool.occupy().unwrap());
        let place = pool.occupy().unwrap();
        drop(catch_unwind(AssertUnwindSafe(|| place.run_here(|| panic!("on purpose")))));
        drop(pool.occupy().unwrap());
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

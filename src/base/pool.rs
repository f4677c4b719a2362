//! A bounded set of named worker threads with a queue, both shared fairly ([`super::shares`]): a job whose token or
//! workspace uses its share of the workers waits, and jobs of others that came later pass it. Workers beyond the minimum
//! start when they are needed and end when they are not. Knows nothing of what the jobs are.
//!
//! Locks: `workers`, held only to start a thread; `state`, a leaf that may be taken under it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::shares::{Ledger, Party, Refused};
use super::thread::{JoinOnDrop, lock, spawn};
use super::{Result, limits};

type Job = Box<dyn FnOnce() + Send>;

/// The workers. Dropping it lets the jobs that were taken end, then joins.
pub struct Pool(Arc<Inner>);

struct Inner {
    name: &'static str,
    state: Mutex<State>,
    /// There may be a job that can begin, or the pool ends.
    changed: Condvar,
    workers: Mutex<Workers>,
}

#[derive(Default)]
struct Workers {
    threads: Vec<JoinOnDrop>,
    number: usize,
}

struct State {
    /// `false` once the pool ends: no new threads, no new jobs.
    open: bool,
    queue: VecDeque<(Party, Job)>,
    /// Jobs taken and not finished.
    pending: Ledger,
    /// Jobs that are being done, on our threads and on those of others.
    begun: Ledger,
    /// Threads whose job is over for all but themselves ([`ending`]).
    ending: usize,
    /// Threads of others that wait in [`claim`].
    claiming: usize,
    /// Threads.
    live: usize,
    most: usize,
}

impl State {
    /// Takes the oldest job that can begin.
    fn begin(&mut self) -> Option<(Party, Job)> {
        let at = self.queue.iter().position(|(party, _)| self.begun.check(*party).is_ok())?;
        let (party, job) = self.queue.remove(at)?;
        self.begun.take_anyway(party);
        Some((party, job))
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
        let state = State {
            open: true,
            queue: VecDeque::new(),
            pending: Ledger::new(max + queue),
            begun,
            ending: 0,
            claiming: 0,
            live: 0,
            most,
        };
        let inner =
            Inner { name, state: Mutex::new(state), changed: Condvar::new(), workers: Mutex::default() };
        let inner = Arc::new(inner);
        for _ in 0..min {
            lock(&inner.state).live += 1;
            inner.start(true)?;
        }
        Ok(Pool(inner))
    }

    /// Hands a job to a worker.
    ///
    /// # Errors
    /// When every worker is taken and the queue is full, or the party has its share; the job is dropped then.
    pub fn submit(
        &self,
        party: Party,
        job: impl FnOnce() + Send + 'static,
    ) -> std::result::Result<(), Refused> {
        self.reserve(party).map(|place| place.run(job))
    }

    /// Keeps a worker for a job that is not made yet, so that a refusal can still be answered.
    ///
    /// # Errors
    /// When every worker is taken and the queue is full, or the party has its share.
    pub fn reserve(&self, party: Party) -> std::result::Result<Place, Refused> {
        lock(&self.0.state).pending.take(party)?;
        let place = Place { pool: self.0.clone(), party, used: false, begun: false };
        if self.0.staffed() { Ok(place) } else { Err(Refused::Full) }
    }

    /// Counts the caller's own thread as one of the workers, if one is free, for a party that is not known yet
    /// ([`claim`]).
    ///
    /// # Errors
    /// When every worker is taken, even if the queue is not full.
    pub fn occupy(&self) -> std::result::Result<Place, Refused> {
        let party = Party::ANONYMOUS;
        let mut state = lock(&self.0.state);
        // The jobs in the queue came first.
        state.begun.check(party)?;
        if state.begun.used() + state.queue.len() >= state.begun.capacity() {
            return Err(Refused::Full);
        }
        state.pending.take(party)?;
        state.begun.take_anyway(party);
        Ok(Place { pool: self.0.clone(), party, used: false, begun: true })
    }
}

/// A worker that is kept for one job; dropped without one, it is free again.
pub struct Place {
    pool: Arc<Inner>,
    party: Party,
    /// Handed over: the worker gives it back.
    used: bool,
    /// Its job is being done, on the thread that has it.
    begun: bool,
}

impl Place {
    /// Hands the job over. It is dropped if the pool has ended.
    pub fn run(mut self, job: impl FnOnce() + Send + 'static) {
        {
            let mut state = lock(&self.pool.state);
            if !state.open {
                return;
            }
            state.queue.push_back((self.party, Box::new(job)));
            self.used = true;
            self.pool.wake(&state);
        }
        // The thread that the reservation started may have timed out.
        self.pool.staffed();
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

/// Says whose job the calling thread does in a place that it occupies. If that party has its share of the workers, the
/// thread waits for one of them, as its job would in the queue. Elsewhere it does nothing.
///
/// # Errors
/// When the party has its share of the queue as well, or none of its jobs ends in time.
pub fn claim(party: Party, patience: Duration) -> std::result::Result<(), Refused> {
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
        // Another job may begin in the place that was given back.
        pool.wake(&state);
        let deadline = Instant::now() + patience;
        while let Err(refused) = state.begun.check(party) {
            let left = deadline.saturating_duration_since(Instant::now());
            if !state.open || left.is_zero() {
                return Err(refused);
            }
            state.claiming += 1;
            (state, _) = pool.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
            state.claiming -= 1;
        }
        state.begun.take_anyway(party);
        place.begun = true;
        Ok(())
    })
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = lock(&self.pool.state);
        if !self.used {
            state.pending.give_back(self.party);
        }
        if self.begun {
            state.begun.give_back(self.party);
            self.pool.wake(&state);
        }
    }
}

impl Inner {
    /// A job may begin. One worker looks at the whole queue; who waits in [`claim`] looks after itself alone.
    fn wake(&self, state: &State) {
        if state.claiming > 0 {
            self.changed.notify_all();
        } else {
            self.changed.notify_one();
        }
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
    static COUNTED: RefCell<Option<Counted>> = const { RefCell::new(None) };
    /// On a thread that is not a worker: the place that its job takes.
    static OCCUPIED: RefCell<Option<Place>> = const { RefCell::new(None) };
}

/// On a worker's thread: the job that it counts for.
struct Counted {
    pool: Arc<Inner>,
    party: Party,
    ending: bool,
}

impl Counted {
    /// Its job is over.
    fn give_back(&self, state: &mut State) {
        if self.ending {
            state.ending -= 1;
        } else {
            state.pending.give_back(self.party);
        }
        state.begun.give_back(self.party);
    }
}

/// Called by a job before it reports its end, when only short work such as cleaning up remains: a client that has heard
/// of the end can have the place at once. Another job waits for this thread if all are at that. Outside of a job, and a
/// second time, it does nothing.
pub fn ending() {
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
        counted.pool.wake(&state);
    }
    // The jobs in the queue may have no other thread.
    counted.pool.staffed();
}

fn work(pool: &Arc<Inner>, stays: bool) {
    let mut state = lock(&pool.state);
    loop {
        let Some((party, job)) = state.begin() else {
            if !state.open && state.queue.is_empty() {
                pool.changed.notify_all();
                return;
            }
            if stays {
                state = pool.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let (after, waited) =
                pool.changed.wait_timeout(state, limits::WORKER_IDLE).unwrap_or_else(PoisonError::into_inner);
            state = after;
            if waited.timed_out() && state.queue.is_empty() {
                state.live -= 1;
                return;
            }
            continue;
        };
        drop(state);
        COUNTED.set(Some(Counted { pool: pool.clone(), party, ending: false }));
        // The panic hook has logged it; the job's own guards have answered. The worker lives on.
        drop(catch_unwind(AssertUnwindSafe(job)));
        let Some(counted) = COUNTED.take() else { return };
        state = lock(&pool.state);
        counted.give_back(&mut state);
        if state.claiming > 0 {
            pool.changed.notify_all();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.0.state).open = false;
        self.0.changed.notify_all();
        let workers = std::mem::take(&mut lock(&self.0.workers).threads);
        drop(workers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::{RecvTimeoutError, bounded};
    use std::sync::Barrier;

    const P: Party = Party::ANONYMOUS;

    #[test]
    fn refuses_beyond_its_bounds_and_survives_panics() {
        let pool = Pool::new("test", 0, 2, 0).unwrap();
        let hold = Arc::new(Barrier::new(3));
        for _ in 0..2 {
            let hold = hold.clone();
            pool.submit(P, move || {
                hold.wait();
            })
            .unwrap();
        }
        let mut refused = 0;
        for _ in 0..3 {
            refused += usize::from(pool.submit(P, || panic!("on purpose")).is_err());
        }
        assert!(refused >= 2, "{refused}");
        hold.wait();
        let (done, finished) = bounded(1);
        while pool
            .submit(P, {
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
        pool.submit(P, move || {
            step_aside();
            step_aside();
            told.send(1).unwrap();
            let _ = long.recv();
            told.send(2).unwrap();
        })
        .unwrap();
        assert_eq!(finished.recv(), Ok(1));
        pool.submit(P, move || done.send(3).unwrap()).unwrap();
        assert_eq!(finished.recv(), Ok(3));
        drop(go_on);
        assert_eq!(finished.recv(), Ok(2));
        while pool.reserve(P).is_err() {}
        drop(pool.reserve(P).unwrap());
        assert!(lock(&pool.0.state).live <= 1);
        step_aside();
    }

    #[test]
    fn who_is_ending_has_given_its_place_back() {
        let pool = Pool::new("test", 0, 1, 0).unwrap();
        let (clean_up, cleaning) = bounded::<()>(0);
        let (done, finished) = bounded(2);
        let told = done.clone();
        pool.submit(P, move || {
            ending();
            ending();
            told.send(1).unwrap();
            let _ = cleaning.recv();
            told.send(2).unwrap();
        })
        .unwrap();
        assert_eq!(finished.recv(), Ok(1));
        pool.submit(P, move || done.send(3).unwrap()).expect("there is room as soon as the end is known");
        assert!(pool.reserve(P).is_err());
        drop(clean_up);
        assert_eq!((finished.recv(), finished.recv()), (Ok(2), Ok(3)));
        while pool.reserve(P).is_err() {}
        {
            let state = lock(&pool.0.state);
            assert!(state.live <= state.most && state.ending == 0);
        }
        ending();
    }

    #[test]
    fn who_steps_aside_leaves_nobody_waiting() {
        let pool = Pool::new("test", 0, 1, 1).unwrap();
        let (tell, told) = bounded(0);
        let (done, finished) = bounded(1);
        pool.submit(P, move || {
            told.recv().unwrap();
            step_aside();
            finished.recv().unwrap();
        })
        .unwrap();
        pool.submit(P, move || done.send(()).unwrap()).unwrap();
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
            pool.submit(P, move || done.send(()).unwrap()).unwrap();
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
    fn jobs_of_others_pass_those_of_a_party_that_has_its_share() {
        let party = |token: &str| Party::new(token, None, false);
        let pool = Pool::new("test", 0, 2, 8).unwrap();
        let (go_on, long) = bounded::<()>(0);
        let (done, finished) = bounded(8);
        for number in 0..4 {
            let (long, done) = (long.clone(), done.clone());
            pool.submit(party("a"), move || {
                let _ = long.recv();
                done.send(number).unwrap();
            })
            .unwrap();
        }
        assert_eq!(pool.submit(party("a"), || ()).and(pool.submit(party("a"), || ())), Err(Refused::Token));
        let told = done.clone();
        pool.submit(party("b"), move || told.send(10).unwrap()).unwrap();
        assert_eq!(finished.recv(), Ok(10));
        let told = done.clone();
        pool.submit(Party::OWNER, move || told.send(11).unwrap()).unwrap();
        assert_eq!(finished.recv(), Ok(11));
        drop(go_on);
        assert_eq!((0..4).map(|_| finished.recv().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3]);
    }

    #[test]
    fn a_place_is_claimed_once_its_party_is_known() {
        let party = Party::new("a", None, false);
        let pool = Pool::new("test", 0, 2, 0).unwrap();
        let (first, second) = (pool.occupy().unwrap(), pool.occupy().unwrap());
        first.run_here(|| {
            claim(party, Duration::ZERO).unwrap();
            assert_eq!(pool.reserve(party).err(), Some(Refused::Full));
            let pool = &pool;
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    second.run_here(|| assert_eq!(claim(party, Duration::ZERO), Err(Refused::Token)))
                });
            });
            drop(pool.occupy().unwrap());
        });
        assert!(claim(party, Duration::ZERO).is_ok() && lock(&pool.0.state).begun.used() == 0);
    }

    #[test]
    fn a_claim_waits_while_its_party_has_its_share() {
        let party = Party::new("a", None, false);
        let pool = Pool::new("test", 0, 2, 4).unwrap();
        let (go_on, held) = bounded::<()>(0);
        pool.submit(party, move || {
            let _ = held.recv();
        })
        .unwrap();
        while lock(&pool.0.state).begun.used() == 0 {
            std::thread::yield_now();
        }
        let place = pool.occupy().unwrap();
        std::thread::scope(|scope| {
            let claiming = scope.spawn(|| {
                let mut claimed = None;
                place.run_here(|| claimed = Some(claim(party, Duration::from_secs(60))));
                claimed
            });
            while lock(&pool.0.state).claiming == 0 {
                std::thread::yield_now();
            }
            drop(pool.occupy().expect("who waits leaves its place to others"));
            drop(go_on);
            assert_eq!(claiming.join().unwrap(), Some(Ok(())));
        });
        let state = lock(&pool.0.state);
        assert_eq!((state.claiming, state.pending.used(), state.begun.used()), (0, 0, 0));
    }

    #[test]
    fn a_kept_place_is_a_place() {
        let pool = Pool::new("test", 0, 1, 0).unwrap();
        let place = pool.reserve(P).unwrap();
        assert!(pool.reserve(P).is_err());
        drop(place);
        let place = pool.reserve(P).unwrap();
        let (done, finished) = bounded(1);
        place.run(move || done.send(()).unwrap());
        finished.recv().unwrap();
        while pool.reserve(P).is_err() {}
        let late = pool.reserve(P).unwrap();
        drop(pool);
        late.run(|| panic!("the pool has ended"));
    }
}

//! Worker threads shared by many owners of work, each in a lane of its own: no lane occupies more than half of the
//! threads, lanes take turns, and each has a bounded queue. Knows nothing of what the jobs are.
//!
//! Lock: the lanes, a leaf; no job runs under it.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use super::pool::Pool;
use super::thread::lock;
use super::{Code, Error, Result};

type Job = Box<dyn FnOnce() + Send>;

/// Threads that read and write workspaces' files.
pub const WORKERS: usize = 8;
/// Jobs that wait in one lane, without a thread. Forty clients that write at once are no attack.
const QUEUE: usize = 128;

/// The workers and their lanes.
pub struct Lanes {
    pool: Pool,
    queues: Arc<Mutex<Queues>>,
}

struct Queues {
    lanes: HashMap<String, Lane>,
    /// Lanes with waiting jobs, the next one first.
    turns: VecDeque<String>,
    /// Most workers of one lane.
    each: usize,
}

#[derive(Default)]
struct Lane {
    running: usize,
    waiting: VecDeque<Job>,
}

impl Lanes {
    /// Up to `threads` workers.
    ///
    /// # Errors
    /// When the first thread cannot be started.
    pub fn new(name: &'static str, threads: usize) -> Result<Lanes> {
        let each = (threads / 2).max(1);
        let queues = Queues { lanes: HashMap::new(), turns: VecDeque::new(), each };
        Ok(Lanes { pool: Pool::new(name, 1, threads, QUEUE)?, queues: Arc::new(Mutex::new(queues)) })
    }

    /// Keeps a place for a job that is not made yet, so that a refusal can still be answered.
    ///
    /// # Errors
    /// `Busy` when the lane's queue is full.
    pub fn admit(&self, lane: &str) -> Result<Admitted<'_>> {
        let full = lock(&self.queues).lanes.get(lane).is_some_and(|lane| lane.waiting.len() >= QUEUE);
        if full {
            return Err(Error::new(Code::Busy, "Too many requests read this workspace's files; try again"));
        }
        Ok(Admitted { lanes: self, lane: lane.to_owned() })
    }
}

/// A job's place in a lane.
pub struct Admitted<'a> {
    lanes: &'a Lanes,
    lane: String,
}

impl Admitted<'_> {
    /// Hands the job over. It is dropped if the pool has ended.
    pub fn run(self, job: impl FnOnce() + Send + 'static) {
        let queues = &self.lanes.queues;
        {
            let mut queues = lock(queues);
            let lane = queues.lanes.entry(self.lane.clone()).or_default();
            lane.waiting.push_back(Box::new(job));
            if lane.waiting.len() == 1 {
                queues.turns.push_back(self.lane);
            }
        }
        let queues = queues.clone();
        // A refusal means that others wait in the pool's own queue: each looks for a job when its turn comes.
        let _ = self.lanes.pool.submit(move || serve(&queues));
    }
}

impl Queues {
    /// The next job of a lane that may have another worker. Workers call this again after each job, so that a lane at
    /// its limit is served when one of its jobs ends.
    fn next(&mut self) -> Option<(String, Job)> {
        for _ in 0..self.turns.len() {
            let name = self.turns.pop_front()?;
            let Some(lane) = self.lanes.get_mut(&name) else { continue };
            if lane.running >= self.each {
                self.turns.push_back(name);
                continue;
            }
            let Some(job) = lane.waiting.pop_front() else { continue };
            lane.running += 1;
            if !lane.waiting.is_empty() {
                self.turns.push_back(name.clone());
            }
            return Some((name, job));
        }
        None
    }

    fn done(&mut self, name: &str) {
        if let Some(lane) = self.lanes.get_mut(name) {
            lane.running -= 1;
            if lane.running == 0 && lane.waiting.is_empty() {
                self.lanes.remove(name);
            }
        }
    }
}

fn serve(queues: &Mutex<Queues>) {
    let mut next = lock(queues).next();
    while let Some((lane, job)) = next {
        // The panic hook has logged it; the job's own guards have answered.
        drop(catch_unwind(AssertUnwindSafe(job)));
        let mut queues = lock(queues);
        queues.done(&lane);
        next = queues.next();
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::{Receiver, unbounded};

    use super::*;

    #[test]
    fn one_lane_never_holds_all_threads() {
        let lanes = Lanes::new("lane-test", 4).unwrap();
        let (started, starts) = unbounded();
        let (release, gate): (_, Receiver<()>) = unbounded();
        let hold = |lane: &'static str| {
            let (started, gate) = (started.clone(), gate.clone());
            move || {
                started.send(lane).unwrap();
                let _ = gate.recv();
            }
        };
        for _ in 0..6 {
            lanes.admit("greedy").unwrap().run(hold("greedy"));
        }
        assert_eq!([starts.recv().unwrap(), starts.recv().unwrap()], ["greedy"; 2]);
        lanes.admit("other").unwrap().run(hold("other"));
        assert_eq!(starts.recv().unwrap(), "other");
        for _ in 0..QUEUE - 4 {
            lanes.admit("greedy").unwrap().run(|| {});
        }
        assert_eq!(lanes.admit("greedy").err().unwrap().code(), Code::Busy);
        assert!(lanes.admit("third").is_ok());
        drop(release);
        for _ in 0..4 {
            assert_eq!(starts.recv().unwrap(), "greedy");
        }
        let (done, finished) = unbounded();
        lanes
            .admit("greedy")
            .unwrap_or_else(|_| panic!("the queue was served"))
            .run(move || done.send(()).unwrap());
        finished.recv().unwrap();
    }

    #[test]
    fn a_panic_leaves_the_lane_open() {
        let lanes = Lanes::new("lane-panic", 2).unwrap();
        for _ in 0..4 {
            lanes.admit("a").unwrap().run(|| panic!("expected"));
        }
        let (done, finished) = unbounded();
        lanes.admit("a").unwrap().run(move || done.send(()).unwrap());
        finished.recv().unwrap();
    }
}

//! Rate limit for log lines, so that a client that repeats a request at full speed does not fill the log. In each
//! interval, the first few events of a kind are logged and the rest are counted, like the kernel's `printk_ratelimit`.
//!
//! Any thread may use a limiter. Its only lock is a leaf: no other lock is taken while it is held.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::thread::lock;

/// The interval in which the events of one kind are counted together.
pub const INTERVAL: Duration = Duration::from_secs(10);
/// Maximum number of kinds that are counted separately, which take some 100 KB; events of further kinds share one
/// counter.
const MAX_KINDS: usize = 1024;
/// How often the limiter looks for expired intervals.
const SWEEP: Duration = Duration::from_secs(1);

/// Counts events by kind; `V` is an example of an event of the kind.
#[derive(Debug)]
pub struct RepeatLimiter<V> {
    /// Hashes kinds with a random key: clients choose the kinds, and must not be able to provoke collisions.
    hasher: RandomState,
    state: Mutex<RepeatState<V>>,
}

#[derive(Debug)]
struct RepeatState<V> {
    kinds: HashMap<u64, KindCounter<V>>,
    swept: Option<Instant>,
}

#[derive(Debug)]
struct KindCounter<V> {
    since: Instant,
    seen: u64,
    suppressed: u64,
    example: Option<V>,
}

/// Reports what the caller should log after an event.
#[derive(Debug, PartialEq, Eq)]
pub struct RepeatReport<V> {
    /// Whether to log the event itself.
    pub written: bool,
    /// An example event of each kind whose interval has ended, with the number of suppressed events of that kind.
    pub summaries: Vec<(V, u64)>,
}

impl<V> Default for RepeatLimiter<V> {
    fn default() -> RepeatLimiter<V> {
        RepeatLimiter {
            hasher: RandomState::new(),
            state: Mutex::new(RepeatState { kinds: HashMap::new(), swept: None }),
        }
    }
}

impl<V> RepeatLimiter<V> {
    /// Counts an event. The first `burst` events of its kind in an interval are to be logged.
    pub fn note(
        &self,
        kind: impl Hash,
        burst: u64,
        now: Instant,
        example: impl FnOnce() -> V,
    ) -> RepeatReport<V> {
        let mut state = lock(&self.state);
        let due = state.swept.is_none_or(|swept| now.saturating_duration_since(swept) >= SWEEP);
        let ended = if due { state.sweep(now) } else { Vec::new() };
        let key = self.hasher.hash_one(kind);
        let full = state.kinds.len() >= MAX_KINDS && !state.kinds.contains_key(&key);
        let key = if full { 0 } else { key };
        let fresh = || KindCounter { since: now, seen: 0, suppressed: 0, example: None };
        let kind = state.kinds.entry(key).or_insert_with(fresh);
        kind.seen += 1;
        let written = kind.seen <= burst;
        if !written {
            kind.suppressed += 1;
            kind.example.get_or_insert_with(example);
        }
        RepeatReport { written, summaries: ended }
    }

    /// Returns the counts of suppressed events that have not been reported yet.
    pub fn rest(&self) -> Vec<(V, u64)> {
        lock(&self.state).kinds.drain().filter_map(|(_, mut kind)| kind.report()).collect()
    }
}

impl<V> RepeatState<V> {
    fn sweep(&mut self, now: Instant) -> Vec<(V, u64)> {
        self.swept = Some(now);
        let mut ended = Vec::new();
        self.kinds.retain(|_, kind| {
            let over = now.saturating_duration_since(kind.since) >= INTERVAL;
            if over {
                ended.extend(kind.report());
            }
            !over
        });
        ended
    }
}

impl<V> KindCounter<V> {
    fn report(&mut self) -> Option<(V, u64)> {
        self.example.take().map(|example| (example, self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_events_are_logged_and_the_rest_counted() {
        let (limiter, start) = (RepeatLimiter::default(), Instant::now());
        let note = |kind: &'static str, now| limiter.note(kind, 2, now, || kind);
        let written = |kind, now| {
            let report = note(kind, now);
            assert_eq!(report.summaries, []);
            report.written
        };
        assert_eq!([0; 5].map(|_| written("a", start)), [true, true, false, false, false]);
        assert!(written("b", start), "another kind is not suppressed");
        let later = start + INTERVAL;
        assert_eq!(note("b", later), RepeatReport { written: true, summaries: vec![("a", 3)] });
        assert!(written("a", later));
        assert!(written("a", later) && !written("a", later));
        assert_eq!((limiter.rest(), limiter.rest()), (vec![("a", 1)], vec![]));
    }

    #[test]
    fn many_kinds_use_bounded_memory_and_few_lines() {
        let (limiter, now) = (RepeatLimiter::default(), Instant::now());
        let written = (0..10 * MAX_KINDS).filter(|kind| limiter.note(kind, 1, now, || ()).written).count();
        assert_eq!((written, lock(&limiter.state).kinds.len()), (MAX_KINDS + 1, MAX_KINDS + 1));
        let ended = limiter.note(0, 1, now + INTERVAL, || ()).summaries;
        assert_eq!(ended, [((), 9 * MAX_KINDS as u64 - 1)]);
    }
}

//! Keeps logs small while a client repeats a request at full speed: of each kind of event the first ones of an interval are
//! written, and the others are counted, as the kernel's `printk_ratelimit` does.
//!
//! Any thread. Lock: one, a leaf.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::thread::lock;

/// How long the events of one kind are counted together.
pub const INTERVAL: Duration = Duration::from_secs(10);
/// Kinds that are counted each on its own; the events of further ones are counted together. Some 100 KB.
const KINDS: usize = 1024;
/// How often it is checked whether the interval of some kind has ended.
const SWEEP: Duration = Duration::from_secs(1);

/// Counts of events by kind; `V` is an example of a kind.
#[derive(Debug)]
pub struct RepeatLimiter<V> {
    /// Keyed at random: clients, who choose kinds, cannot make two of them equal.
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
    kept_back: u64,
    example: Option<V>,
}

/// What to write of an event.
#[derive(Debug, PartialEq, Eq)]
pub struct RepeatReport<V> {
    /// The event itself.
    pub written: bool,
    /// Examples of kinds whose interval has ended, each with the number of events that were not written.
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
    /// Counts an event; the first `burst` of its kind in an interval are written.
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
        let full = state.kinds.len() >= KINDS && !state.kinds.contains_key(&key);
        let key = if full { 0 } else { key };
        let fresh = || KindCounter { since: now, seen: 0, kept_back: 0, example: None };
        let kind = state.kinds.entry(key).or_insert_with(fresh);
        kind.seen += 1;
        let written = kind.seen <= burst;
        if !written {
            kind.kept_back += 1;
            kind.example.get_or_insert_with(example);
        }
        RepeatReport { written, summaries: ended }
    }

    /// What was counted and not reported yet.
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
        self.example.take().map(|example| (example, self.kept_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_are_written_and_the_others_counted() {
        let (repeats, start) = (RepeatLimiter::default(), Instant::now());
        let note = |kind: &'static str, now| repeats.note(kind, 2, now, || kind);
        let written = |kind, now| {
            let noted = note(kind, now);
            assert_eq!(noted.summaries, []);
            noted.written
        };
        assert_eq!([0; 5].map(|_| written("a", start)), [true, true, false, false, false]);
        assert!(written("b", start), "another kind is not held back");
        let later = start + INTERVAL;
        assert_eq!(note("b", later), RepeatReport { written: true, summaries: vec![("a", 3)] });
        assert!(written("a", later));
        assert!(written("a", later) && !written("a", later));
        assert_eq!((repeats.rest(), repeats.rest()), (vec![("a", 1)], vec![]));
    }

    #[test]
    fn many_kinds_take_bounded_memory_and_write_few_lines() {
        let (repeats, now) = (RepeatLimiter::default(), Instant::now());
        let written = (0..10 * KINDS).filter(|kind| repeats.note(kind, 1, now, || ()).written).count();
        assert_eq!((written, lock(&repeats.state).kinds.len()), (KINDS + 1, KINDS + 1));
        let ended = repeats.note(0, 1, now + INTERVAL, || ()).summaries;
        assert_eq!(ended, [((), 9 * KINDS as u64 - 1)]);
    }
}

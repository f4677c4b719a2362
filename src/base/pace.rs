//! How fast one token's jobs begin while others use the same pool. A job is *fresh* for its first moments, in which it
//! costs most: a command is started then, and most have ended. While jobs of other tokens begin as well, a token has no
//! more fresh jobs than a few for each processor, so that a flood of short commands does not make everyone's commands slow;
//! long ones are not held up, and a token that is alone is not held up at all.
//!
//! No lock of its own: the pool's.

use std::time::{Duration, Instant};

use super::shares::Party;

/// How long a job is fresh.
const FRESH: Duration = Duration::from_millis(50);
/// For so long after a job has begun its token counts as one of those that use the pool.
const PRESENT: Duration = Duration::from_secs(1);
/// How long a held-up job waits until it is looked at again, if no other one ends.
pub(super) const TICK: Duration = Duration::from_millis(10);

/// The fresh jobs of a pool.
#[derive(Debug)]
pub(super) struct Pace {
    most_fresh: usize,
    /// Fresh jobs that have not ended.
    fresh: Vec<(Party, Instant)>,
    /// When each party's latest job began.
    present: Vec<(Party, Instant)>,
}

impl Pace {
    /// At most `most_fresh` fresh jobs for each token.
    pub(super) fn new(most_fresh: usize) -> Pace {
        Pace { most_fresh, fresh: Vec::new(), present: Vec::new() }
    }

    /// Whether a job of `party` may begin.
    pub(super) fn allows(&self, party: Party, now: Instant) -> bool {
        let fresh = |(one, begun): &&(Party, Instant)| one.shares_token(party) && now - *begun < FRESH;
        let other = |(one, begun): &(Party, Instant)| !one.shares_token(party) && now - *begun < PRESENT;
        party.is_unlimited()
            || self.fresh.iter().filter(fresh).count() < self.most_fresh
            || !self.present.iter().any(other)
    }

    /// A job begins.
    pub(super) fn begin(&mut self, party: Party, now: Instant) {
        self.fresh.retain(|(_, begun)| now - *begun < FRESH);
        self.fresh.push((party, now));
        self.present.retain(|(one, begun)| !one.shares_token(party) && now - *begun < PRESENT);
        self.present.push((party, now));
    }

    /// A job that began then has ended.
    pub(super) fn end(&mut self, party: Party, begun: Instant) {
        if let Some(at) = self.fresh.iter().position(|job| *job == (party, begun)) {
            self.fresh.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_slowed_while_others_are_there_and_only_then() {
        let [flood, other] = ["a", "b"].map(|token| Party::new(token, None, false));
        let now = Instant::now();
        let mut pace = Pace::new(2);
        for _ in 0..10 {
            assert!(pace.allows(flood, now), "it is alone");
            pace.begin(flood, now);
        }
        pace.begin(other, now);
        assert!(!pace.allows(flood, now) && pace.allows(other, now) && pace.allows(Party::OWNER, now));
        (0..9).for_each(|_| pace.end(flood, now));
        assert!(pace.allows(flood, now), "one fresh job is left");
        pace.begin(flood, now);
        assert!(!pace.allows(flood, now));
        assert!(pace.allows(flood, now + FRESH), "long jobs do not count");
        let later = now + PRESENT;
        (0..5).for_each(|_| pace.begin(flood, later));
        assert!(pace.allows(flood, later), "the other has gone");
        assert!(pace.present.len() == 1 && pace.fresh.len() == 5);
    }
}

//! How fast one token's jobs begin while others use the same pool. A job is *fresh* for its first moments, in which it
//! costs most: a command is started then, and most have ended. While jobs of other tokens begin as well, a token has no
//! more fresh jobs than a few for each processor, so that a flood of short commands does not make everyone's commands slow;
//! long ones are not held up. A token that is alone has some times as many: a burst of starts as wide as the pool would
//! make every other thread of the machine wait, the server's short answers among them. Others do not hold up owners.
//!
//! No lock of its own: the pool's.

use std::time::{Duration, Instant};

use super::shares::Party;

/// How long a job is fresh.
const FRESH: Duration = Duration::from_millis(50);
/// For so long after a job has begun its token counts as one of those that use the pool.
const PRESENT: Duration = Duration::from_secs(1);
/// How many times as many jobs are fresh where they are one token's, or all together.
const BURST: usize = 8;
/// How long a held-up job waits until it is looked at again, if no other one ends.
pub(super) const TICK: Duration = Duration::from_millis(10);

/// The fresh jobs of a pool.
#[derive(Debug)]
pub(super) struct StartPacer {
    most_fresh: usize,
    /// Fresh jobs that have not ended.
    fresh: Vec<(Party, Instant)>,
    /// When each party's latest job began.
    present: Vec<(Party, Instant)>,
}

impl StartPacer {
    /// At most `most_fresh` fresh jobs for each token.
    pub(super) fn new(most_fresh: usize) -> StartPacer {
        StartPacer { most_fresh, fresh: Vec::new(), present: Vec::new() }
    }

    /// Whether a job of `party` may begin.
    pub(super) fn allows(&self, party: Party, now: Instant) -> bool {
        let other = |(one, begun): &(Party, Instant)| !one.shares_token(party) && now - *begun < PRESENT;
        let (mut own, mut all) = (0, 0);
        for (one, _) in self.fresh.iter().filter(|(_, begun)| now - *begun < FRESH) {
            all += 1;
            own += usize::from(one.shares_token(party));
        }
        if party.is_unlimited() {
            return own < self.most_fresh * BURST;
        }
        all < self.most_fresh * BURST && (own < self.most_fresh || !self.present.iter().any(other))
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
        let mut pace = StartPacer::new(2);
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

    #[test]
    fn a_burst_is_no_wider_than_the_machine_starts_at_once() {
        let [one, other] = ["a", "b"].map(|token| Party::new(token, None, false));
        let now = Instant::now();
        for party in [one, Party::OWNER] {
            let mut pace = StartPacer::new(2);
            let begun =
                (0..100).take_while(|_| pace.allows(party, now).then(|| pace.begin(party, now)).is_some());
            assert_eq!(begun.count(), 2 * BURST);
            assert!(!pace.allows(other, now) && pace.allows(party, now + FRESH));
            pace.end(party, now);
            assert!(pace.allows(party, now));
        }
        let mut pace = StartPacer::new(2);
        (0..2 * BURST).for_each(|_| pace.begin(one, now));
        assert!(pace.allows(Party::OWNER, now), "others do not hold up owners");
    }
}

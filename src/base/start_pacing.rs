//! Limits how fast the jobs of one token start while other tokens use the same pool. A job is *fresh* for the first
//! [`FRESH`] after its start, when it costs most: a command is being spawned, and most commands end within that time.
//! While other tokens also start jobs, a token has at most `most_fresh` fresh jobs, a few for each processor, so that a
//! flood of short commands does not delay the commands of other tokens; long commands are not delayed. A token that is
//! alone may have [`BURST`] times as many fresh jobs, but not more: a burst of starts as wide as the pool would delay
//! every other thread of the machine, including the server's short answers. Owners are not delayed by other tokens.
//!
//! A pacer has no lock of its own: the pool's lock protects it.

use std::time::{Duration, Instant};

use super::shares::ShareHolder;

/// How long a job is fresh.
const FRESH: Duration = Duration::from_millis(50);
/// How long after the start of its latest job a token counts as a user of the pool.
const PRESENT: Duration = Duration::from_secs(1);
/// Factor on `most_fresh` for a token that is alone, and for all tokens together.
const BURST: usize = 8;
/// How often the pool checks a delayed job again if no other job ends.
pub(super) const TICK: Duration = Duration::from_millis(10);

/// Counts the fresh jobs of a pool.
#[derive(Debug)]
pub(super) struct StartPacer {
    most_fresh: usize,
    /// The fresh jobs that have not ended, each with its start time.
    fresh: Vec<(ShareHolder, Instant)>,
    /// The start time of each party's latest job.
    present: Vec<(ShareHolder, Instant)>,
}

impl StartPacer {
    /// Creates a pacer that allows `most_fresh` fresh jobs for each token.
    pub(super) fn new(most_fresh: usize) -> StartPacer {
        StartPacer { most_fresh, fresh: Vec::new(), present: Vec::new() }
    }

    /// Returns whether a job of `party` may start now.
    pub(super) fn allows(&self, party: ShareHolder, now: Instant) -> bool {
        let other =
            |(one, begun): &(ShareHolder, Instant)| !one.shares_token(party) && now - *begun < PRESENT;
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

    /// Records the start of a job.
    pub(super) fn begin(&mut self, party: ShareHolder, now: Instant) {
        self.fresh.retain(|(_, begun)| now - *begun < FRESH);
        self.fresh.push((party, now));
        self.present.retain(|(one, begun)| !one.shares_token(party) && now - *begun < PRESENT);
        self.present.push((party, now));
    }

    /// Records the end of the job that started at `begun`.
    pub(super) fn end(&mut self, party: ShareHolder, begun: Instant) {
        if let Some(at) = self.fresh.iter().position(|job| *job == (party, begun)) {
            self.fresh.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flood_is_slowed_only_while_other_tokens_are_active() {
        let [flood, other] = ["a", "b"].map(|token| ShareHolder::new(token, None, false));
        let now = Instant::now();
        let mut pace = StartPacer::new(2);
        for _ in 0..10 {
            assert!(pace.allows(flood, now), "the token is alone");
            pace.begin(flood, now);
        }
        pace.begin(other, now);
        assert!(!pace.allows(flood, now) && pace.allows(other, now) && pace.allows(ShareHolder::OWNER, now));
        (0..9).for_each(|_| pace.end(flood, now));
        assert!(pace.allows(flood, now), "one fresh job remains");
        pace.begin(flood, now);
        assert!(!pace.allows(flood, now));
        assert!(pace.allows(flood, now + FRESH), "long jobs are not counted");
        let later = now + PRESENT;
        (0..5).for_each(|_| pace.begin(flood, later));
        assert!(pace.allows(flood, later), "the other token is no longer active");
        assert!(pace.present.len() == 1 && pace.fresh.len() == 5);
    }

    #[test]
    fn burst_is_bounded_for_one_token_and_for_all() {
        let [one, other] = ["a", "b"].map(|token| ShareHolder::new(token, None, false));
        let now = Instant::now();
        for party in [one, ShareHolder::OWNER] {
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
        assert!(pace.allows(ShareHolder::OWNER, now), "other tokens do not delay owners");
    }
}

//! What is kept of one stream: how long it is, and which stretches of it are gone. Offsets count from the stream's
//! first byte and stay true for ever. Pure.

use serde::{Deserialize, Serialize};

use crate::base::limits;

/// One stream's account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamTrack {
    /// How many bytes the command wrote.
    pub end: u64,
    /// What of them is not kept: from, to; sorted, apart from each other, within `end`.
    gaps: Vec<(u64, u64)>,
}

impl StreamTrack {
    /// A stream of which all is kept.
    pub fn whole(end: u64) -> StreamTrack {
        StreamTrack { end, gaps: Vec::new() }
    }

    /// The first offset that is kept, or the end.
    pub fn start(&self) -> u64 {
        self.gaps.first().filter(|gap| gap.0 == 0).map_or(0, |gap| gap.1)
    }

    /// How many bytes are kept.
    pub fn kept(&self) -> u64 {
        self.end - self.gaps.iter().map(|(from, to)| to - from).sum::<u64>()
    }

    /// Whether something is missing.
    pub fn is_cut(&self) -> bool {
        !self.gaps.is_empty()
    }

    /// How much of what lies behind `from` is missing.
    pub fn lost_from(&self, from: u64) -> u64 {
        self.gaps.iter().map(|gap| gap.1.saturating_sub(gap.0.max(from))).sum()
    }

    /// Where the gap ends in which `offset` lies.
    pub fn gap_at(&self, offset: u64) -> Option<u64> {
        self.gaps.iter().find(|(from, to)| (*from..*to).contains(&offset)).map(|(_, to)| *to)
    }

    /// Up to where everything from `offset` on is kept; `offset` itself is.
    pub fn kept_until(&self, offset: u64) -> u64 {
        self.gaps.iter().map(|(from, _)| *from).find(|from| *from > offset).unwrap_or(self.end)
    }

    /// Whether something between `from` and `to` is missing.
    pub fn is_cut_between(&self, from: u64, to: u64) -> bool {
        self.gaps.iter().any(|gap| gap.0 < to && from < gap.1)
    }

    /// Notes that a stretch is gone. Beyond [`limits::SPOOL_GAPS`] the two nearest gaps become one: what lies between
    /// them is given up, so that this stays small whatever the disk does.
    pub fn mark_lost(&mut self, from: u64, to: u64) {
        let to = to.min(self.end);
        if from >= to {
            return;
        }
        self.gaps.push((from, to));
        self.gaps.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(self.gaps.len());
        for (from, to) in self.gaps.drain(..) {
            match merged.last_mut() {
                Some(last) if from <= last.1 => last.1 = last.1.max(to),
                _ => merged.push((from, to)),
            }
        }
        while merged.len() > limits::SPOOL_GAPS {
            let between = |at: &usize| merged[at + 1].0 - merged[*at].1;
            let Some(nearest) = (0..merged.len() - 1).min_by_key(between) else { break };
            merged[nearest].1 = merged[nearest + 1].1;
            merged.remove(nearest + 1);
        }
        self.gaps = merged;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_joined_and_counted() {
        let mut track = StreamTrack::whole(100);
        assert_eq!((track.start(), track.kept(), track.is_cut()), (0, 100, false));
        track.mark_lost(0, 10);
        track.mark_lost(10, 15);
        track.mark_lost(50, 60);
        track.mark_lost(55, 300);
        track.mark_lost(7, 7);
        assert_eq!((track.start(), track.kept()), (15, 35));
        assert_eq!((track.gap_at(3), track.gap_at(15), track.gap_at(99)), (Some(15), None, Some(100)));
        assert_eq!((track.kept_until(15), track.kept_until(20)), (50, 50));
        assert_eq!((track.lost_from(0), track.lost_from(14), track.lost_from(99)), (65, 51, 1));
        assert!(track.is_cut_between(40, 51) && !track.is_cut_between(15, 50));
        track.end = 120;
        assert_eq!((track.kept_until(100), track.gap_at(100)), (120, None));
    }

    #[test]
    fn many_gaps_become_few() {
        let mut track = StreamTrack::whole(1 << 20);
        for at in 0..1000 {
            track.mark_lost(at * 1000 + 500, at * 1000 + 500 + at % 400);
        }
        assert_eq!(track.gaps.len(), limits::SPOOL_GAPS);
        assert!(track.gaps.windows(2).all(|pair| pair[0].1 < pair[1].0));
        assert!(track.kept() > 0);
    }
}

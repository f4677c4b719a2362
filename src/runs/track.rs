//! Length of one stream, and the ranges of it that are no longer kept. Offsets count from the stream's first byte
//! and never change. Pure.

use serde::{Deserialize, Serialize};

use crate::base::limits;

/// Length and gaps of one output stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamTrack {
    /// Number of bytes that the command has written to the stream.
    pub end: u64,
    /// Ranges that are not kept, each as start and end; sorted, disjoint, below the stream's `end`.
    gaps: Vec<(u64, u64)>,
}

impl StreamTrack {
    /// Returns the track of a stream of `end` bytes that are all kept.
    pub fn whole(end: u64) -> StreamTrack {
        StreamTrack { end, gaps: Vec::new() }
    }

    /// Returns the first kept offset; if the stream has no gap at its start, 0.
    pub fn start(&self) -> u64 {
        self.gaps.first().filter(|gap| gap.0 == 0).map_or(0, |gap| gap.1)
    }

    /// Returns the number of kept bytes.
    pub fn kept(&self) -> u64 {
        self.end - self.gaps.iter().map(|(from, to)| to - from).sum::<u64>()
    }

    /// Returns whether bytes of the stream are missing.
    pub fn is_cut(&self) -> bool {
        !self.gaps.is_empty()
    }

    /// Returns the number of missing bytes after `from`.
    pub fn lost_from(&self, from: u64) -> u64 {
        self.gaps.iter().map(|gap| gap.1.saturating_sub(gap.0.max(from))).sum()
    }

    /// Returns the end of the gap that contains `offset`; `None` if `offset` is in no gap.
    pub fn gap_at(&self, offset: u64) -> Option<u64> {
        self.gaps.iter().find(|(from, to)| (*from..*to).contains(&offset)).map(|(_, to)| *to)
    }

    /// Returns the end of the kept range that starts at or contains `offset`.
    pub fn kept_until(&self, offset: u64) -> u64 {
        self.gaps.iter().map(|(from, _)| *from).find(|from| *from > offset).unwrap_or(self.end)
    }

    /// Returns whether bytes between `from` and `to` are missing.
    pub fn is_cut_between(&self, from: u64, to: u64) -> bool {
        self.gaps.iter().any(|gap| gap.0 < to && from < gap.1)
    }

    /// Marks a range as missing. If there are more than [`limits::SPOOL_GAPS`] gaps, merges the two nearest and
    /// gives up the bytes between them, so that the list stays bounded.
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
    fn gaps_are_merged_and_counted() {
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
    fn the_number_of_gaps_is_bounded() {
        let mut track = StreamTrack::whole(1 << 20);
        for at in 0..1000 {
            track.mark_lost(at * 1000 + 500, at * 1000 + 500 + at % 400);
        }
        assert_eq!(track.gaps.len(), limits::SPOOL_GAPS);
        assert!(track.gaps.windows(2).all(|pair| pair[0].1 < pair[1].0));
        assert!(track.kept() > 0);
    }
}

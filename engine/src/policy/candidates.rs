//! Sealed segments, sorted so that few need to be looked at to find a victim.
//!
//! Among segments of one class that are about equally full, the one filled first has the highest score, whatever the score is
//! made of. So segments stand in cells of class and fill, each in the order of filling, and a choice looks at the
//! [`HEADS`] first of each cell: at most classes × [`STEPS`] × [`HEADS`], and far fewer in practice, whether the slice
//! has 500 segments or 100,000.
//!
//! ```text
//!             fill  0/64   1/64   2/64  …  63/64
//!   class 0        [ 7 3 ] [   ]  [ 9 ]    [   ]      each cell: oldest first
//!   class 1        [   ]   [ 2 ]  [   ]    [ 4 8 1 ]
//! ```
//!
//! **Cost.** A record's death is O(1) unless the segment falls into the next cell, once in a 64th of its bytes; then, and to
//! add or remove a segment, O(log n). A choice is O(classes × steps × victims). Memory: about 100 bytes a segment.
//!
//! Invariants:
//! - A segment is here from when it is sealed until it is taken away to be cleaned; pinned ones stay, and are passed over
//!   by [`choose`](super::victim::choose).
//! - The order within a cell is total, so that what is looked at depends on the segments alone.

use std::collections::BTreeSet;

use terrane_ocssd::ChunkId;

use super::LogTime;
use super::placement::CLASSES_MAX;
use super::victim::{SegmentState, SegmentStats};

/// Steps of fill that are told apart.
pub const STEPS: usize = 64;
/// Segments of a cell that a choice looks at. More than one, since wear may prefer the second, and the first may be
/// pinned or already chosen.
pub const HEADS: usize = 4;

/// The sealed segments of a slice.
#[derive(Debug, Clone)]
pub struct Candidates {
    /// By class and fill.
    cells: Vec<BTreeSet<(LogTime, ChunkId)>>,
    /// By chunk.
    segments: Vec<Option<SegmentStats>>,
}

impl Candidates {
    /// None yet, of a slice of so many chunks.
    pub fn new(chunks: u32) -> Self {
        Self { cells: vec![BTreeSet::new(); CLASSES_MAX * STEPS], segments: vec![None; chunks as usize] }
    }

    /// A segment was sealed.
    ///
    /// # Panics
    /// If it is here already, or is not one of the slice.
    pub fn add(&mut self, segment: SegmentStats) {
        let ChunkId(chunk) = segment.segment;
        let known = self.segments[chunk as usize].replace(segment);
        assert!(known.is_none(), "chunk {chunk} was sealed twice");
        self.cells[cell(&segment)].insert((segment.filled_at, segment.segment));
    }

    /// Takes a segment away, to be cleaned or because it is gone. `None` if it is not here.
    pub fn remove(&mut self, segment: ChunkId) -> Option<SegmentStats> {
        let stats = self.segments.get_mut(segment.0 as usize)?.take()?;
        self.cells[cell(&stats)].remove(&(stats.filled_at, segment));
        Some(stats)
    }

    /// A segment, if it is here.
    pub fn get(&self, segment: ChunkId) -> Option<&SegmentStats> {
        self.segments.get(segment.0 as usize)?.as_ref()
    }

    /// So many bytes of a segment died. Nothing happens if it is not here.
    ///
    /// # Panics
    /// If more died than was alive.
    pub fn died(&mut self, segment: ChunkId, bytes: u64) {
        let Some(live_bytes) = self.get(segment).map(|stats| stats.live_bytes) else { return };
        self.hold(segment, live_bytes.checked_sub(bytes).expect("what dies was alive"));
    }

    /// So many bytes of a segment are alive now. Nothing happens if it is not here.
    pub fn hold(&mut self, segment: ChunkId, live_bytes: u64) {
        let Some(stats) = self.segments.get_mut(segment.0 as usize).and_then(Option::as_mut) else { return };
        let before = cell(stats);
        stats.live_bytes = live_bytes;
        let (after, key) = (cell(stats), (stats.filled_at, segment));
        if before != after {
            self.cells[before].remove(&key);
            self.cells[after].insert(key);
        }
    }

    /// The segment may not be taken for now, or may again. Nothing happens if it is not here.
    pub fn pin(&mut self, segment: ChunkId, pinned: bool) {
        if let Some(stats) = self.segments.get_mut(segment.0 as usize).and_then(Option::as_mut) {
            stats.state = if pinned { SegmentState::Pinned } else { SegmentState::Sealed };
        }
    }

    /// The segments among which the next victims are: what [`choose`](super::victim::choose) takes. `must_move` are
    /// among them, wherever they stand. With more victims wanted than [`HEADS`], those beyond may be the second best.
    pub fn heads<'s>(&'s self, must_move: &'s [ChunkId]) -> impl Iterator<Item = &'s SegmentStats> + Clone {
        let segments = &self.segments[..];
        let in_cells = self.cells.iter().flat_map(move |cell| {
            let stats = cell.iter().filter_map(move |(_, chunk)| segments[chunk.0 as usize].as_ref());
            // Pinned ones do not count, so that they cannot hide those behind them.
            stats.filter(|segment| segment.state == SegmentState::Sealed).take(HEADS)
        });
        must_move.iter().filter_map(move |chunk| self.get(*chunk)).chain(in_cells)
    }
}

fn cell(segment: &SegmentStats) -> usize {
    let step = u128::from(segment.live_bytes) * STEPS as u128 / u128::from(segment.size_bytes.max(1));
    usize::from(segment.class.0) * STEPS + (step as usize).min(STEPS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::placement::Class;
    use crate::policy::victim::{Ask, Score, choose};
    use proptest::prelude::*;

    const SIZE: u64 = 6_400;

    fn segment(chunk: u32, class: u8, live_bytes: u64, filled_at: u64) -> SegmentStats {
        SegmentStats {
            segment: ChunkId(chunk),
            state: SegmentState::Sealed,
            size_bytes: SIZE,
            live_bytes,
            class: Class(class),
            interval_bytes: 1_000 << class,
            filled_at: LogTime(filled_at),
        }
    }

    fn heads(candidates: &Candidates) -> Vec<u32> {
        candidates.heads(&[]).map(|segment| segment.segment.0).collect()
    }

    #[test]
    fn the_oldest_of_each_cell() {
        let mut candidates = Candidates::new(16);
        for chunk in 0..8 {
            candidates.add(segment(chunk, 1, SIZE, 100 - u64::from(chunk)));
        }
        candidates.add(segment(9, 0, 6_399, 1));
        assert_eq!(heads(&candidates), [9, 7, 6, 5, 4]);
        candidates.died(ChunkId(0), 99);
        assert_eq!(heads(&candidates), [9, 7, 6, 5, 4], "within its cell");
        candidates.died(ChunkId(0), 2);
        assert_eq!(heads(&candidates), [9, 0, 7, 6, 5, 4], "it fell into the next");
        candidates.pin(ChunkId(7), true);
        assert_eq!(heads(&candidates), [9, 0, 6, 5, 4, 3], "pinned ones hide nobody");
        candidates.pin(ChunkId(7), false);
        assert_eq!(candidates.remove(ChunkId(6)).map(|stats| stats.filled_at), Some(LogTime(94)));
        assert_eq!(heads(&candidates), [9, 0, 7, 5, 4, 3]);
        assert_eq!(candidates.remove(ChunkId(6)), None);
        assert_eq!(candidates.get(ChunkId(0)).map(|stats| stats.live_bytes), Some(SIZE - 101));
        let must_move: Vec<u32> =
            candidates.heads(&[ChunkId(1), ChunkId(6)]).map(|stats| stats.segment.0).take(2).collect();
        assert_eq!(must_move, [1, 9], "first what must move, wherever it stands, if it is there");
        candidates.died(ChunkId(15), 1);
        candidates.pin(ChunkId(99), true);
    }

    #[test]
    #[should_panic(expected = "sealed twice")]
    fn a_segment_is_sealed_once() {
        let mut candidates = Candidates::new(1);
        candidates.add(segment(0, 0, 1, 1));
        candidates.add(segment(0, 0, 1, 1));
    }

    proptest! {
        /// What is chosen from the heads is what is chosen from all, if segments of a cell differ in age alone.
        #[test]
        fn nothing_better_is_overlooked(
            segments in prop::collection::vec((0u8..16, 0u64..64, 0u64..5_000), 1..200),
            deaths in prop::collection::vec((0u32..200, 0u64..8), 0..400),
            greedy: bool,
        ) {
            let mut candidates = Candidates::new(200);
            let mut all: Vec<SegmentStats> = Vec::new();
            for (chunk, (class, step, filled_at)) in segments.into_iter().enumerate() {
                all.push(segment(chunk as u32, class, step * 100, filled_at));
                candidates.add(all[chunk]);
            }
            for (chunk, steps) in deaths {
                let Some(segment) = all.get_mut(chunk as usize) else { continue };
                let bytes = segment.live_bytes.min(steps * 100);
                segment.live_bytes -= bytes;
                candidates.died(segment.segment, bytes);
            }
            let ask = Ask {
                now: LogTime(5_000),
                score: if greedy { Score::Greedy } else { Score::Rent },
                victims: if greedy { 1 } else { HEADS },
                live_share_max: 1.0,
                room_bytes: u64::MAX,
                must_move: &[],
            };
            let (mut from_heads, mut from_all) = (Vec::new(), Vec::new());
            choose(candidates.heads(&[]), &ask, |_| 0.0, &mut from_heads);
            choose(all.iter(), &ask, |_| 0.0, &mut from_all);
            let scores = |victims: &[crate::policy::victim::Victim]| victims.iter().map(|victim| {
                let segment = &all[victim.segment.0 as usize];
                ask.score.of(segment, 1.0 - segment.live_share(), ask.now)
            }).collect::<Vec<_>>();
            prop_assert_eq!(scores(&from_heads), scores(&from_all));
        }
    }
}

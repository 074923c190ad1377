//! The spare chunks: which one takes the place of a bad one.
//!
//! A spare is *ready* (free) or *used*: it held something once, and its next reset judges it (liblightnvm and pblk do
//! the same: a failed write evacuates the chunk, and only a failed reset retires it). A used one may be the chunk that
//! failed, on its way back with a strike; or one that a power cut left half filled. While it is reset it is *being
//! judged*: whoever needs a spare and finds none waits for that.

use std::collections::{BTreeMap, BTreeSet};

use crate::geometry::{ChunkId, Geometry};

/// Failed writes after which a chunk is not taken back.
pub(super) const STRIKES_MAX: u32 = 2;

/// Chunks that no line has.
#[derive(Debug, Default)]
pub(super) struct Spares {
    pub(super) ready: BTreeSet<ChunkId>,
    pub(super) used: BTreeSet<ChunkId>,
    pub(super) judging: BTreeSet<ChunkId>,
    /// Judgements that ended.
    pub(super) judged: u64,
}

impl Spares {
    /// Spares in whatever state.
    pub(super) fn count(&self) -> u32 {
        (self.ready.len() + self.used.len() + self.judging.len()) as u32
    }

    /// Drops a chunk that turned out to be bad.
    pub(super) fn forget(&mut self, chunk: ChunkId) {
        self.ready.remove(&chunk);
        self.used.remove(&chunk);
        self.judging.remove(&chunk);
    }

    /// Whether a chunk is one of them.
    pub(super) fn contains(&self, chunk: ChunkId) -> bool {
        [&self.ready, &self.used, &self.judging].iter().any(|spares| spares.contains(&chunk))
    }

    /// A chunk is about to be reset.
    pub(super) fn begin_judging(&mut self, chunk: ChunkId) {
        self.used.remove(&chunk);
        self.judging.insert(chunk);
    }

    /// It was reset, or not.
    pub(super) fn end_judging(&mut self, chunk: ChunkId) {
        self.judging.remove(&chunk);
        self.judged += 1;
    }

    /// Takes a ready spare for a member that stands in `unit`.
    pub(super) fn take(&mut self, geometry: &Geometry, wear: &[u32], unit: u32) -> Option<ChunkId> {
        let chosen = choose(&self.ready, geometry, wear, unit)?;
        self.ready.remove(&chosen);
        Some(chosen)
    }
}

/// The spare for a member of `unit`: of the same unit, so that the line keeps its bandwidth; if none is left, of the unit
/// that has most. The least worn of them.
pub(super) fn choose(
    ready: &BTreeSet<ChunkId>,
    geometry: &Geometry,
    wear: &[u32],
    unit: u32,
) -> Option<ChunkId> {
    let mut units: BTreeMap<u32, u32> = BTreeMap::new();
    for chunk in ready {
        *units.entry(geometry.unit_of(*chunk)).or_default() += 1;
    }
    let richest = units.iter().max_by_key(|(unit, count)| (**count, std::cmp::Reverse(**unit)));
    let unit = if units.contains_key(&unit) { unit } else { *richest?.0 };
    let of_unit = ready.iter().filter(|chunk| geometry.unit_of(**chunk) == unit);
    of_unit.min_by_key(|chunk| (wear[chunk.0 as usize], **chunk)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_unit_first_then_the_richest_and_the_least_worn() {
        let geometry = Geometry {
            groups: 1,
            parallel_units: 3,
            chunks: 4,
            chunk_sectors: 8,
            sector_bytes: 512,
            ws_min: 1,
            ws_opt: 1,
            mw_cunits: 0,
            max_open: 0,
        };
        let mut wear = vec![0; 12];
        wear[8] = 3;
        wear[9] = 1;
        wear[10] = 2;
        let mut spares = Spares { ready: [1, 4, 8, 9, 10].map(ChunkId).into(), ..Spares::default() };
        let mut take = |unit| spares.take(&geometry, &wear, unit).map(|chunk| chunk.0);
        assert_eq!(take(0), Some(1));
        assert_eq!(take(0), Some(9), "unit 2 has most; its chunk 9 is the least worn");
        assert_eq!(take(1), Some(4));
        assert_eq!(take(1), Some(10));
        assert_eq!(take(2), Some(8));
        assert_eq!(take(2), None);
    }
}

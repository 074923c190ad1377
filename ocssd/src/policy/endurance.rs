//! How much life a chunk has left, and when to stop using it.
//!
//! A vendor rates a device for so many resets of each chunk; some chunks do not get that far and show it by errors.
//! The host keeps a limit for each chunk: the rated one, lowered when the chunk gives cause. A chunk with a lower
//! limit is treated by every policy as if it were worn already ([`Endurance::effective_wear`]), so levelling evens
//! out the life that is left, not the count of resets.
//!
//! Invariants:
//! - A limit is only ever lowered.
//! - Wear beyond the limit is no reason to lose data: the chunk is emptied, then left alone. What it holds stays
//!   readable.

use std::collections::BTreeMap;

use crate::geometry::ChunkId;

/// What a chunk is still good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fitness {
    /// Anything.
    Good,
    /// Little life is left: long-lived data only, if anything, so that it is erased rarely.
    LongLivedOnly,
    /// Its life is used up: no new data; what it holds moves when cleaning comes by. To be retired.
    Spent,
}

/// The limit of every chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endurance {
    rated_cycles: u32,
    reserve_permille: u32,
    /// Chunks whose limit is below the rated one.
    lowered: BTreeMap<ChunkId, u32>,
}

impl Endurance {
    /// `rated_cycles`: resets that a chunk is rated for. `reserve_permille`: the last share of its life in which a
    /// chunk takes long-lived data only (20: the last 2 %); more keeps hot data off weak chunks longer, fewer chunks
    /// are left for it.
    ///
    /// # Panics
    /// If `rated_cycles` is 0 or `reserve_permille` is above 1,000.
    pub fn new(rated_cycles: u32, reserve_permille: u32) -> Self {
        assert!(rated_cycles > 0, "a chunk is rated for at least one reset");
        assert!(reserve_permille <= 1_000, "a reserve is a share of the life");
        Self { rated_cycles, reserve_permille, lowered: BTreeMap::new() }
    }

    /// Resets after which this chunk is spent.
    pub fn limit(&self, chunk: ChunkId) -> u32 {
        self.lowered.get(&chunk).copied().unwrap_or(self.rated_cycles)
    }

    /// Lowers the limit of a chunk: it was weak from birth, or failed a write, a reset or too many corrections. A limit
    /// that is not lower changes nothing. `lower_limit(chunk, wear)` retires a chunk with that wear.
    pub fn lower_limit(&mut self, chunk: ChunkId, limit: u32) {
        if limit < self.limit(chunk) {
            self.lowered.insert(chunk, limit);
        }
    }

    /// The chunks with a limit of their own, to be kept with the list of grown defects.
    pub fn lowered(&self) -> impl Iterator<Item = (ChunkId, u32)> + '_ {
        self.lowered.iter().map(|(chunk, limit)| (*chunk, *limit))
    }

    /// Resets that the chunk has left.
    pub fn remaining(&self, chunk: ChunkId, wear: u32) -> u32 {
        self.limit(chunk).saturating_sub(wear)
    }

    /// The wear at which a chunk of the rated limit would have as much life left: what levelling compares.
    pub fn effective_wear(&self, chunk: ChunkId, wear: u32) -> u32 {
        wear.saturating_add(self.rated_cycles - self.limit(chunk))
    }

    /// What the chunk is good for.
    pub fn fitness(&self, chunk: ChunkId, wear: u32) -> Fitness {
        let remaining = self.remaining(chunk, wear);
        let reserve = u64::from(self.rated_cycles) * u64::from(self.reserve_permille) / 1_000;
        match remaining {
            0 => Fitness::Spent,
            left if u64::from(left) <= reserve => Fitness::LongLivedOnly,
            _ => Fitness::Good,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fitness_falls_with_wear() {
        let mut endurance = Endurance::new(1_000, 20);
        endurance.lower_limit(ChunkId(1), 500);
        let table = [
            (0, 0, Fitness::Good),
            (0, 979, Fitness::Good),
            (0, 980, Fitness::LongLivedOnly),
            (0, 999, Fitness::LongLivedOnly),
            (0, 1_000, Fitness::Spent),
            (0, u32::MAX, Fitness::Spent),
            (1, 479, Fitness::Good),
            (1, 480, Fitness::LongLivedOnly),
            (1, 500, Fitness::Spent),
        ];
        for (chunk, wear, fitness) in table {
            assert_eq!(endurance.fitness(ChunkId(chunk), wear), fitness, "chunk {chunk} at {wear}");
        }
    }

    #[test]
    fn a_limit_is_only_lowered() {
        let mut endurance = Endurance::new(1_000, 20);
        for (limit, expected) in [(2_000, 1_000), (700, 700), (800, 700), (10, 10), (700, 10)] {
            endurance.lower_limit(ChunkId(3), limit);
            assert_eq!(endurance.limit(ChunkId(3)), expected);
        }
        assert_eq!(endurance.lowered().collect::<Vec<_>>(), [(ChunkId(3), 10)]);
    }

    #[test]
    fn a_weak_chunk_looks_worn() {
        let mut endurance = Endurance::new(1_000, 20);
        endurance.lower_limit(ChunkId(1), 600);
        assert_eq!(endurance.effective_wear(ChunkId(0), 50), 50);
        assert_eq!(endurance.effective_wear(ChunkId(1), 50), 450);
        assert_eq!(endurance.effective_wear(ChunkId(1), u32::MAX), u32::MAX);
    }

    proptest! {
        #[test]
        fn equal_effective_wear_means_equal_life_left(
            limits in prop::collection::vec(0u32..2_000, 2),
            wear in 0u32..1_000,
        ) {
            let mut endurance = Endurance::new(1_000, 20);
            for (chunk, limit) in limits.iter().enumerate() {
                endurance.lower_limit(ChunkId(chunk as u32), *limit);
            }
            for chunk in [ChunkId(0), ChunkId(1)] {
                let effective = endurance.effective_wear(chunk, wear);
                prop_assert_eq!(1_000u32.saturating_sub(effective), endurance.remaining(chunk, wear));
            }
        }
    }
}

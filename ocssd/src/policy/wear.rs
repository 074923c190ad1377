//! Wear levelling: what cleaning adds to its choice of victims so that chunks grow old together.
//!
//! Allocation by wear ([`allocation`](super::allocation)) levels the chunks that come round. Data that never dies
//! keeps its chunks from coming round at all: with half of the data static, the other chunks wear twice as fast.
//! Two things bring them back, and neither copies on its own:
//!
//! - [`WearPolicy::credit`]: cleaning counts a small share of a segment as if it were dead, the more the less worn its
//!   chunk is. It decides between victims that are nearly equal, and brings cold segments forward that have some dead
//!   space to pay with.
//! - [`WearPolicy::static_victim`]: the one segment more that cleaning should take now, since its chunk is too far
//!   behind and nothing in it dies. Its data goes to the most worn free chunk, like any long-lived data.
//!
//! **What it costs.** Moving one segment of static data lets one young chunk catch up and one old chunk rest. Were the
//! spread held at a constant `d` all life long, each static segment would move once in about `d` erases of the mean: with
//! a share `c` of the device static, that is `c / d` of all writes, a fifth for 40 % and `d` = 2. It would cost the device
//! a tenth of its life. So the limit follows the life that is left (Murugan and Du, "Rejuvenator", MSST 2011, narrow
//! their threshold as the device ages): wide while every chunk has most of its life before it, narrow when it counts.
//! Each move then buys erases in proportion to the life left, and static data moves a few times in a whole life, however
//! long that is. `docs/decisions/0007-wear-levelling.md` has the measurements, `tests/wear.rs` repeats them.
//!
//! Invariants:
//! - A segment with data younger than [`WearPolicy::cold_permille`] is never named: cleaning will come to it by itself,
//!   and the chunk that took its data would not rest.
//! - A move gains at least [`WearPolicy::spread_limit`] erases: the chunk that takes the data is that much more worn.
//! - Copies of moves that were named stay below [`WearPolicy::copy_permille_max`] of all bytes written, however bad the
//!   spread. Past that, spread is the lesser evil.

use crate::geometry::ChunkId;

/// Wear of a set of chunks. Offline chunks and those taken out of use do not belong in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WearStats {
    /// Least worn chunk's resets.
    pub min: u32,
    /// Most worn chunk's resets.
    pub max: u32,
    /// Resets of all chunks.
    pub sum: u64,
    /// Chunks.
    pub count: u32,
}

impl WearStats {
    /// Of chunks with this wear; `None` without any.
    pub fn of(wear: impl IntoIterator<Item = u32>) -> Option<Self> {
        let mut wear = wear.into_iter();
        let first = wear.next()?;
        let start = Self { min: first, max: first, sum: u64::from(first), count: 1 };
        Some(wear.fold(start, |stats, wear| Self {
            min: stats.min.min(wear),
            max: stats.max.max(wear),
            sum: stats.sum + u64::from(wear),
            count: stats.count + 1,
        }))
    }

    /// Mean wear, rounded down.
    pub fn mean(&self) -> u32 {
        u32::try_from(self.sum / u64::from(self.count)).expect("a mean of u32 is one")
    }

    /// How far the most worn chunk is ahead of the mean.
    pub fn max_over_mean(&self) -> f64 {
        f64::from(self.max) - self.sum as f64 / f64::from(self.count)
    }
}

/// A sealed segment that cleaning could take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentWear {
    /// Its chunk.
    pub chunk: ChunkId,
    /// The chunk's wear.
    pub wear: u32,
    /// Bytes of it that are alive and would be copied.
    pub live_bytes: u64,
    /// Bytes the device took since a user wrote the youngest of its data, or since the segment was sealed if only that
    /// is known: then static data that was just moved cannot be moved again before it is
    /// [cold](WearPolicy::cold_permille) once more.
    pub age_bytes: u64,
}

/// What the device was written, for judging age and cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes that the chunks hold together.
    pub capacity_bytes: u64,
    /// Bytes written so far, everything counted.
    pub written_bytes: u64,
    /// Bytes of those that were copied out of [static victims](WearPolicy::static_victim).
    pub levelled_bytes: u64,
}

/// How evenly chunks shall wear, and what that may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WearPolicy {
    /// Resets that a chunk is rated for. Default 3,000, usual for three bits a cell. Too high: chunks die with the
    /// spread still wide. Too low: the spread is narrow early, and stays so at the cost of `spread_min`.
    pub rated_cycles: u32,
    /// Resets by which chunks may differ at the end of the rated life, and past it. Default 2; at least 1. Each step
    /// lower costs more copies near the end.
    pub spread_min: u32,
    /// Share of the life that is left by which chunks may differ, in permille. Default 1,000: the most worn chunk is
    /// ahead of the mean by about half of what the mean has left. Less: more copies; 0: always `spread_min`. At most
    /// 2,000, where worn chunks reach their rated life in one go, and the copies of the last moment are many.
    pub spread_permille: u32,
    /// Largest share of a segment that [`WearPolicy::credit`] counts as dead, in permille. Default 100. At most 500.
    /// More: less is left to static moves, and victims are fuller.
    pub credit_permille_max: u32,
    /// Age of data from which a segment counts as one that cleaning never chose, in device overwrites, permille.
    /// Default 4,000. Lower: segments are moved that would have died by themselves. Higher: what is static is known late.
    pub cold_permille: u32,
    /// Most that static moves may copy, of all bytes written, in permille. Default 10. What was not used accumulates
    /// for the end of life, when it is needed.
    pub copy_permille_max: u32,
}

impl Default for WearPolicy {
    fn default() -> Self {
        Self {
            rated_cycles: 3_000,
            spread_min: 2,
            spread_permille: 1_000,
            credit_permille_max: 100,
            cold_permille: 4_000,
            copy_permille_max: 10,
        }
    }
}

/// A value of [`WearPolicy`] that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}, but must be within {least} to {most}")]
pub struct WearPolicyError {
    /// Name of the field.
    pub field: &'static str,
    /// Its value.
    pub value: u32,
    /// Least that is allowed.
    pub least: u32,
    /// Most that is allowed.
    pub most: u32,
}

impl WearPolicy {
    /// Whether every value is within its limits.
    ///
    /// # Errors
    /// The first that is not.
    pub fn validate(&self) -> Result<(), WearPolicyError> {
        let limits = [
            ("rated_cycles", self.rated_cycles, 1, u32::MAX),
            ("spread_min", self.spread_min, 1, u32::MAX),
            ("spread_permille", self.spread_permille, 0, 2_000),
            ("credit_permille_max", self.credit_permille_max, 0, 500),
            ("cold_permille", self.cold_permille, 1, 1_000_000),
            ("copy_permille_max", self.copy_permille_max, 0, 1_000),
        ];
        for (field, value, least, most) in limits {
            if !(least..=most).contains(&value) {
                return Err(WearPolicyError { field, value, least, most });
            }
        }
        Ok(())
    }

    /// Resets by which chunks may differ now.
    pub fn spread_limit(&self, stats: &WearStats) -> u32 {
        let left = u64::from(self.rated_cycles.saturating_sub(stats.mean()));
        let share = left * u64::from(self.spread_permille) / 1_000;
        u32::try_from(share).unwrap_or(u32::MAX).max(self.spread_min)
    }

    /// Share of a segment that cleaning counts as dead beside what is: from `credit_permille_max` for a chunk that is
    /// behind the mean by the spread limit or more, over nothing at the mean, to minus as much for one ahead of it.
    ///
    /// Cleaning adds it to the dead share, not to its score: a score may be infinite or zero, a share has a meaning.
    pub fn credit(&self, wear: u32, stats: &WearStats) -> f64 {
        let mean = stats.sum as f64 / f64::from(stats.count);
        let behind = (mean - f64::from(wear)) / f64::from(self.spread_limit(stats));
        behind.clamp(-1.0, 1.0) * f64::from(self.credit_permille_max) / 1_000.0
    }

    /// The segment that cleaning should take next for the sake of wear, though it would not choose it by itself: the
    /// one that gains most erases for each byte copied. `None`: nothing is worth its copies now.
    ///
    /// `rest_wear` is the wear of the chunk that would take the data: the most worn free one. To be asked once for
    /// each segment that cleaning took, so that moves are spread over the cleaning.
    pub fn static_victim(
        &self,
        segments: &[SegmentWear],
        stats: &WearStats,
        rest_wear: u32,
        traffic: &Traffic,
    ) -> Option<ChunkId> {
        let limit = self.spread_limit(stats);
        let cold_bytes = u128::from(traffic.capacity_bytes) * u128::from(self.cold_permille) / 1_000;
        let affordable = u128::from(traffic.written_bytes) * u128::from(self.copy_permille_max) / 1_000;
        let worth = |segment: &&SegmentWear| {
            rest_wear.saturating_sub(segment.wear) > limit
                && u128::from(segment.age_bytes) >= cold_bytes
                && u128::from(traffic.levelled_bytes) + u128::from(segment.live_bytes) <= affordable
        };
        let gain = |segment: &SegmentWear| u128::from(rest_wear - segment.wear);
        let best = segments.iter().filter(worth).max_by(|a, b| {
            // gain / live, compared without division; an empty segment is free of cost.
            let left = gain(a) * u128::from(b.live_bytes.max(1));
            let right = gain(b) * u128::from(a.live_bytes.max(1));
            left.cmp(&right).then(a.age_bytes.cmp(&b.age_bytes)).then(b.chunk.cmp(&a.chunk))
        });
        best.map(|segment| segment.chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn stats(min: u32, max: u32, mean: u32) -> WearStats {
        WearStats { min, max, sum: u64::from(mean) * 100, count: 100 }
    }

    fn segment(chunk: u32, wear: u32, live_mib: u64, age_mib: u64) -> SegmentWear {
        SegmentWear { chunk: ChunkId(chunk), wear, live_bytes: live_mib * MIB, age_bytes: age_mib * MIB }
    }

    /// A device of 100 MiB that was written a hundred times over.
    fn traffic() -> Traffic {
        Traffic { capacity_bytes: 100 * MIB, written_bytes: 10_000 * MIB, levelled_bytes: 0 }
    }

    #[test]
    fn statistics() {
        assert_eq!(WearStats::of([]), None);
        let found = WearStats::of([3, 1, 7, 2]).unwrap();
        assert_eq!(found, WearStats { min: 1, max: 7, sum: 13, count: 4 });
        assert_eq!(found.mean(), 3);
        assert_eq!(found.max_over_mean(), 3.75);
        assert_eq!(WearStats::of([u32::MAX, u32::MAX]).unwrap().mean(), u32::MAX);
    }

    #[test]
    fn the_limit_follows_the_life_that_is_left() {
        let policy =
            WearPolicy { rated_cycles: 1_000, spread_min: 3, spread_permille: 500, ..WearPolicy::default() };
        for (mean, limit) in [(0, 500), (500, 250), (990, 5), (994, 3), (1_000, 3), (2_000, 3)] {
            assert_eq!(policy.spread_limit(&stats(0, 0, mean)), limit, "at a mean of {mean}");
        }
        let constant = WearPolicy { spread_permille: 0, ..policy };
        assert_eq!(constant.spread_limit(&stats(0, 0, 0)), 3);
    }

    #[test]
    fn credit_grows_with_what_a_chunk_is_behind() {
        let policy = WearPolicy { rated_cycles: 100, ..WearPolicy::default() };
        let stats = stats(0, 200, 50); // limit 50
        for (wear, credit) in [(0, 0.1), (25, 0.05), (50, 0.0), (75, -0.05), (100, -0.1), (200, -0.1)] {
            assert!((policy.credit(wear, &stats) - credit).abs() < 1e-12, "at a wear of {wear}");
        }
    }

    #[test]
    fn the_static_victim_gains_most_for_a_copied_byte() {
        let policy = WearPolicy { rated_cycles: 100, ..WearPolicy::default() };
        let stats = stats(0, 100, 90); // limit 10
        let victim = |segments: &[SegmentWear]| {
            policy.static_victim(segments, &stats, 100, &traffic()).map(|chunk| chunk.0)
        };
        assert_eq!(victim(&[]), None);
        assert_eq!(victim(&[segment(0, 90, 1, 500)]), None, "within the limit");
        assert_eq!(victim(&[segment(0, 89, 1, 500)]), Some(0), "beyond it");
        assert_eq!(victim(&[segment(0, 20, 1, 399)]), None, "too young to be cold");
        assert_eq!(victim(&[segment(0, 20, 1, 500), segment(1, 10, 1, 500)]), Some(1), "less worn");
        assert_eq!(victim(&[segment(0, 20, 2, 500), segment(1, 40, 1, 500)]), Some(1), "half the cost");
        assert_eq!(victim(&[segment(0, 20, 1, 500), segment(1, 20, 1, 600)]), Some(1), "older");
        assert_eq!(victim(&[segment(1, 20, 1, 500), segment(0, 20, 1, 500)]), Some(0), "lower id");
        assert_eq!(victim(&[segment(0, 20, 0, 500), segment(1, 10, 1, 500)]), Some(0), "no cost at all");
        assert_eq!(victim(&[segment(0, 120, 0, 500)]), None, "more worn than where it would go");
    }

    #[test]
    fn copies_are_capped() {
        let policy = WearPolicy { rated_cycles: 100, ..WearPolicy::default() };
        let stats = stats(0, 100, 90);
        let segments = [segment(0, 0, 4, 500), segment(1, 50, 1, 500)];
        let victim = |levelled_mib| {
            let traffic = Traffic { levelled_bytes: levelled_mib * MIB, ..traffic() };
            policy.static_victim(&segments, &stats, 100, &traffic).map(|chunk| chunk.0)
        };
        // 1 % of 10,000 MiB.
        assert_eq!(victim(99), Some(1), "the large one would not fit");
        assert_eq!(victim(100), None);
        assert_eq!(victim(u64::MAX / MIB), None);
    }

    #[test]
    fn limits_are_checked() {
        WearPolicy::default().validate().unwrap();
        let bad = WearPolicy { spread_min: 0, ..WearPolicy::default() };
        assert_eq!(
            bad.validate().unwrap_err().to_string(),
            "spread_min is 0, but must be within 1 to 4294967295"
        );
        assert!(WearPolicy { spread_permille: 2_001, ..WearPolicy::default() }.validate().is_err());
        assert!(WearPolicy { rated_cycles: 0, ..WearPolicy::default() }.validate().is_err());
        assert!(WearPolicy { credit_permille_max: 501, ..WearPolicy::default() }.validate().is_err());
        assert!(WearPolicy { cold_permille: 0, ..WearPolicy::default() }.validate().is_err());
        assert!(WearPolicy { copy_permille_max: 1_001, ..WearPolicy::default() }.validate().is_err());
    }

    fn segments() -> impl Strategy<Value = Vec<SegmentWear>> {
        prop::collection::vec((0u32..300, 0u64..8, 0u64..1_600), 0..30).prop_map(|list| {
            let number =
                |(chunk, (wear, live, age)): (usize, (u32, u64, u64))| segment(chunk as u32, wear, live, age);
            list.into_iter().enumerate().map(number).collect()
        })
    }

    proptest! {
        #[test]
        fn a_victim_is_cold_behind_and_affordable(
            segments in segments(),
            rest_wear in 0u32..300,
            rated_cycles in 1u32..400,
            levelled_mib in 0u64..120,
        ) {
            let policy = WearPolicy { rated_cycles, ..WearPolicy::default() };
            let Some(stats) = WearStats::of(segments.iter().map(|segment| segment.wear)) else { return Ok(()) };
            let traffic = Traffic { levelled_bytes: levelled_mib * MIB, ..traffic() };
            let victim = policy.static_victim(&segments, &stats, rest_wear, &traffic);
            let allowed = |segment: &SegmentWear| {
                rest_wear > segment.wear + policy.spread_limit(&stats)
                    && segment.age_bytes >= 4 * traffic.capacity_bytes
                    && traffic.levelled_bytes + segment.live_bytes <= 100 * MIB
            };
            match victim {
                None => prop_assert!(!segments.iter().any(allowed)),
                Some(chunk) => {
                    let victim = segments.iter().find(|segment| segment.chunk == chunk).unwrap();
                    prop_assert!(allowed(victim));
                    let gain = |segment: &SegmentWear| f64::from(rest_wear - segment.wear)
                        / segment.live_bytes.max(1) as f64;
                    for other in segments.iter().filter(|segment| allowed(segment)) {
                        prop_assert!(gain(other) <= gain(victim) * (1.0 + 1e-9));
                    }
                }
            }
            let mut reversed = segments.clone();
            reversed.reverse();
            prop_assert_eq!(policy.static_victim(&reversed, &stats, rest_wear, &traffic), victim);
        }

        #[test]
        fn credit_never_rises_with_wear(wear in 0u32..500, rated_cycles in 1u32..400, mean in 0u32..400) {
            let policy = WearPolicy { rated_cycles, ..WearPolicy::default() };
            let stats = stats(0, 500, mean);
            prop_assert!(policy.credit(wear, &stats) >= policy.credit(wear + 1, &stats));
            prop_assert!(policy.credit(wear, &stats).abs() <= 0.1);
        }
    }
}

//! When the entries of a group were appended, roughly, in the shard's own time.
//!
//! How long a version lived is what tells how hot its key is, and the index knows a version by its Raft index alone. So a group
//! remembers a few pairs of index and time, close together for what is recent and wide apart for what is old, and
//! what lies between two of them is interpolated.
//!
//! Invariants:
//! - Indexes and times rise.
//! - There are at most about [`PER_DOUBLING`] samples for each doubling of age beyond the least spacing, whatever was written.

use std::collections::VecDeque;

use crate::policy::LogTime;

/// Samples for each doubling of age: what lies between two is known to about an eighth of its age, or better.
const PER_DOUBLING: u64 = 8;

#[derive(Debug)]
pub(crate) struct Chronicle {
    samples: VecDeque<(u64, LogTime)>,
}

impl Chronicle {
    /// Of a group of which nothing is known but that its last entry is not younger than `now`: a steady life until then.
    pub(crate) fn new(last_index: u64, now: LogTime) -> Self {
        Self { samples: VecDeque::from([(0, LogTime(0)), (last_index, now)]) }
    }

    /// The entry of `index` is appended. Samples closer together than `spacing_bytes` are not worth their room.
    pub(crate) fn note(&mut self, index: u64, now: LogTime, spacing_bytes: u64) {
        if let Some((last_index, last)) = self.samples.back()
            && (now.since(*last) < spacing_bytes || index <= *last_index)
        {
            return;
        }
        self.samples.push_back((index, now));
        self.thin(now);
    }

    /// Drops what stands closer to its neighbours than its age is worth.
    fn thin(&mut self, now: LogTime) {
        let mut at = 1;
        while at + 1 < self.samples.len() {
            let (before, after) = (self.samples[at - 1].1, self.samples[at + 1].1);
            if after.since(before) < now.since(before) / PER_DOUBLING {
                self.samples.remove(at);
            } else {
                at += 1;
            }
        }
    }

    /// When the entry of `index` was appended, given that `last_index` is the newest.
    pub(crate) fn time_of(&self, index: u64, last_index: u64, now: LogTime) -> LogTime {
        let at = self.samples.partition_point(|(sample, _)| *sample <= index);
        let (low, low_time) = at.checked_sub(1).map_or((0, LogTime(0)), |at| self.samples[at]);
        let (high, high_time) = self.samples.get(at).copied().unwrap_or((last_index.max(index), now));
        let within = u128::from(high_time.since(low_time)) * u128::from(index - low);
        LogTime(low_time.0 + (within / u128::from((high - low).max(1))) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn between_samples_time_is_interpolated() {
        let mut chronicle = Chronicle::new(100, LogTime(1000));
        chronicle.note(110, LogTime(1500), 100);
        let time = |index| chronicle.time_of(index, 120, LogTime(2000)).0;
        assert_eq!([0, 50, 100, 105, 110, 115, 120].map(time), [0, 500, 1000, 1250, 1500, 1750, 2000]);
        let fresh = Chronicle::new(0, LogTime(700));
        assert_eq!(fresh.time_of(0, 0, LogTime(700)), LogTime(700), "an empty group began now");
    }

    proptest! {
        #[test]
        fn a_steady_life_is_known_exactly_and_few_samples_are_kept(
            bytes in 1_u64..100, count in 1_u64..5000, index in 0_u64..5000
        ) {
            let mut chronicle = Chronicle::new(0, LogTime(0));
            (1..=count).for_each(|index| chronicle.note(index, LogTime(index * bytes), 1));
            let (index, now) = (index.min(count), LogTime(count * bytes));
            prop_assert!(chronicle.time_of(index, count, now).0.abs_diff(index * bytes) <= 1);
            prop_assert!(chronicle.samples.len() < 16 * 2 * PER_DOUBLING as usize, "{}", chronicle.samples.len());
        }

        #[test]
        fn a_life_in_bursts_is_known_to_a_fraction_of_its_age(
            bursts in prop::collection::vec((1_u64..50, 1_u64..100_000), 1..300), pick in any::<prop::sample::Index>()
        ) {
            let mut chronicle = Chronicle::new(0, LogTime(0));
            let (mut index, mut now) = (0, 0);
            let mut truth = Vec::new();
            for (entries, bytes) in bursts {
                for _ in 0..entries {
                    (index, now) = (index + 1, now + bytes);
                    chronicle.note(index, LogTime(now), 1000);
                    truth.push((index, now));
                }
            }
            let (asked, time) = truth[pick.index(truth.len())];
            let known = chronicle.time_of(asked, index, LogTime(now)).0;
            prop_assert!(known.abs_diff(time) <= (now - time.min(known)) / 2 + 100_000, "{known} of {time} at {now}");
        }
    }
}

//! Which stream a record goes to: the class of the interval after which it is expected to be overwritten.
//!
//! Segments whose records die at about the same rate are cheap to clean (Wang et al., "Separating Data via Block
//! Invalidation Time Inference for Write Amplification Reduction in Log-Structured Storage", FAST '22, infer it from the
//! overwritten version's age and from the age of what survives, as here). What is *about the same* follows from what
//! cleaning pays for space. Let `P`, the **going rate**, be the bytes that users write in the time for which keeping a
//! byte of space costs as much as copying a byte ([`victim::rent_score`](super::victim::rent_score) says where that comes
//! from). Records with intervals far below `P` die before their segment is cleaned, whatever they are mixed with;
//! all of those can share a stream. The space goes to those around and above `P`, and there the classes are narrow:
//!
//! ```text
//!   class        0          1        2       3      4      5       6         7
//!   interval  ──────┼──────────┼────────┼───────┼──────┼──────┼────────┼───────────▶
//!                 P/r³        P/r²     P/r      P     P·r    P·r²    P·r³
//! ```
//!
//! `P` is not set, it is observed: the mean, in logarithms, of the scores of the last victims. It finds its place from
//! anywhere, since the classes decide only how well the victims turn out, not how many there are.
//!
//! Invariants:
//! - A longer expected interval never gives a lower class.
//! - No allocation, no clock, nothing remembered but the going rate.

use super::LogTime;
use super::heat::Heat;
use super::victim::{SegmentStats, rent_score};

/// Classes of the store.
pub const CLASSES: u8 = 12;
/// Longest over shortest interval of a class of the store.
pub const RATIO: f64 = 2.0;

/// Most classes there can be.
pub const CLASSES_MAX: usize = 16;

/// Victims over which the going rate is a mean.
const GOING_RATE_VICTIMS: f64 = 64.0;

/// What a new key is taken for, against the going rate: rather cold. Most keys of most loads are.
const NEW_KEY_INTERVALS: u64 = 4;

/// A lifetime class: 0 is what is overwritten soonest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class(pub u8);

impl Class {
    /// The stream it shares with its neighbours if there are fewer streams than classes.
    pub fn stream(self, classes: u8, streams: u8) -> u8 {
        let stream = u32::from(self.0) * u32::from(streams.min(classes)) / u32::from(classes);
        u8::try_from(stream).expect("below the number of classes")
    }
}

/// Where a record belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// Its class.
    pub class: Class,
    /// The interval to expect, in bytes of [`LogTime`]; what [`Contents::add`](super::victim::Contents::add) wants.
    pub interval_bytes: u64,
}

/// The classes and their boundaries now.
#[derive(Debug, Clone, Copy)]
pub struct Classes {
    count: u8,
    ratio: f64,
    going_rate_bytes: f64,
    /// First interval of each class but the first.
    boundaries: [u64; CLASSES_MAX - 1],
}

impl Classes {
    /// Classes of which each spans intervals of the `ratio` to 1, around a first guess of the going rate: the bytes
    /// that the slice holds will do.
    ///
    /// # Panics
    /// If there is no class, or more than [`CLASSES_MAX`], or the ratio is not above 1.
    pub fn new(count: u8, ratio: f64, going_rate_bytes: u64) -> Self {
        assert!((1..=CLASSES_MAX).contains(&usize::from(count)), "{count} classes");
        assert!(ratio > 1.0 && ratio.is_finite(), "classes of {ratio} to 1");
        let mut classes = Self {
            count,
            ratio,
            going_rate_bytes: going_rate_bytes.max(1) as f64,
            boundaries: [0; CLASSES_MAX - 1],
        };
        classes.draw_boundaries();
        classes
    }

    /// How many there are.
    pub fn count(&self) -> u8 {
        self.count
    }

    /// What cleaning pays for space now, in bytes of [`LogTime`]. Worth keeping in a checkpoint; a guess does no harm.
    pub fn going_rate_bytes(&self) -> u64 {
        self.going_rate_bytes as u64
    }

    /// The class of an interval.
    pub fn class_of(&self, interval_bytes: u64) -> Class {
        let boundaries = &self.boundaries[..usize::from(self.count) - 1];
        Class(boundaries.partition_point(|first| *first <= interval_bytes) as u8)
    }

    /// Where a record belongs that a user just wrote. `heat` is the key's, this write included: that of the overwritten
    /// version, [`overwritten`](Heat::overwritten) now.
    pub fn first_written(&self, heat: Heat) -> Placed {
        self.relocated(heat, 0)
    }

    /// Where a live record belongs that cleaning moves, `age_bytes` after a user wrote it.
    pub fn relocated(&self, heat: Heat, age_bytes: u64) -> Placed {
        let new_key =
            || self.going_rate_bytes().saturating_mul(NEW_KEY_INTERVALS).max(age_bytes.saturating_mul(2));
        let interval_bytes = heat.expected_bytes(age_bytes).unwrap_or_else(new_key);
        Placed { class: self.class_of(interval_bytes), interval_bytes }
    }

    /// A segment was chosen for its score: the going rate follows. Segments that had to move for other reasons, and empty
    /// ones, say nothing about it.
    pub fn cleaned(&mut self, victim: &SegmentStats, now: LogTime) {
        let score = rent_score(victim, 1.0 - victim.live_share(), now);
        if score.is_finite() && score > 0.0 {
            self.going_rate_bytes *= (score / self.going_rate_bytes).powf(1.0 / GOING_RATE_VICTIMS);
            self.going_rate_bytes = self.going_rate_bytes.clamp(1.0, 1e18);
            self.draw_boundaries();
        }
    }

    fn draw_boundaries(&mut self) {
        let hotter = i32::from(self.count) / 2;
        for (step, boundary) in self.boundaries.iter_mut().enumerate().take(usize::from(self.count) - 1) {
            *boundary = (self.going_rate_bytes * self.ratio.powi(step as i32 + 1 - hotter)) as u64;
        }
    }
}

/// What the number of streams for user writes is worth: streams, and bytes written for each byte of users with that many
/// (`docs/decisions/0008-cleaning.md`: Zipf 0.99 at a space amplification of 1.6). As many as there are classes are those of
/// the relocated records; fewer are streams of their own.
const STREAMS_WORTH: [(u8, f64); 5] = [(1, 1.56), (2, 1.35), (4, 1.26), (8, 1.23), (CLASSES, 1.21)];

/// How many streams user writes should be spread over: each stream that a flush writes to costs it a frame
/// (`frame_overhead_bytes`: header, checksum and, on average, half a write unit of padding), which must not eat what
/// the streams save. `flush_bytes` is what a flush carries, averaged over the last ones; `streams_max` what the device
/// can keep open.
///
/// Few streams also mean few frames in the common case of one durable write a flush.
pub fn user_streams(flush_bytes: u64, frame_overhead_bytes: u64, streams_max: u8) -> u8 {
    let overhead = frame_overhead_bytes as f64 / flush_bytes.max(1) as f64;
    let cost = |(streams, amplification): &(u8, f64)| amplification + f64::from(*streams) * overhead;
    let choices = STREAMS_WORTH.iter().filter(|(streams, _)| *streams <= streams_max.max(1));
    choices.min_by(|a, b| cost(a).total_cmp(&cost(b))).expect("one stream is always a choice").0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::victim::SegmentState;
    use proptest::prelude::*;
    use terrane_ocssd::ChunkId;

    const KIB: u64 = 1024;

    #[test]
    fn classes_stand_around_the_going_rate() {
        let classes = Classes::new(4, 2.0, 1024);
        let cases = [(0, 0), (511, 0), (512, 1), (1023, 1), (1024, 2), (2047, 2), (2048, 3), (u64::MAX, 3)];
        for (interval, class) in cases {
            assert_eq!(classes.class_of(interval), Class(class), "an interval of {interval}");
        }
        assert_eq!(Classes::new(1, 2.0, 0).class_of(7), Class(0));
    }

    #[test]
    fn first_by_its_interval_then_by_its_age_too() {
        let classes = Classes::new(4, 2.0, 1024);
        let once = Heat::NEW.overwritten(512);
        assert_eq!(classes.first_written(once), Placed { class: Class(1), interval_bytes: 512 });
        assert_eq!(classes.relocated(once, 1024), Placed { class: Class(2), interval_bytes: 1536 });
        let often = once.overwritten(512).overwritten(512).overwritten(512);
        assert_eq!(classes.relocated(often, 1024), Placed { class: Class(1), interval_bytes: 768 });
        assert_eq!(classes.first_written(Heat::NEW), Placed { class: Class(3), interval_bytes: 4096 });
        assert_eq!(classes.relocated(Heat::NEW, 4096), Placed { class: Class(3), interval_bytes: 8192 });
    }

    #[test]
    fn the_going_rate_follows_the_victims() {
        let mut classes = Classes::new(8, 2.0, 1 << 40);
        let victim = SegmentStats {
            segment: ChunkId(0),
            state: SegmentState::Sealed,
            size_bytes: KIB,
            live_bytes: KIB / 2,
            class: Class(0),
            interval_bytes: 1 << 20,
            filled_at: LogTime(0),
        };
        let score = rent_score(&victim, 0.5, LogTime(1 << 20));
        for _ in 0..2_000 {
            classes.cleaned(&victim, LogTime(1 << 20));
        }
        assert!((classes.going_rate_bytes() as f64 / score - 1.0).abs() < 0.01, "{classes:?} and {score}");
        let before = classes.going_rate_bytes();
        classes.cleaned(&SegmentStats { live_bytes: 0, ..victim }, LogTime(1 << 20));
        classes.cleaned(&SegmentStats { live_bytes: KIB, ..victim }, LogTime(1 << 20));
        assert_eq!(classes.going_rate_bytes(), before, "empty and full ones say nothing");
    }

    #[test]
    fn fewer_streams_when_little_is_in_flight() {
        let cases = [(4 * KIB, 1), (16 * KIB, 2), (64 * KIB, 4), (256 * KIB, 4), (512 * KIB, CLASSES)];
        for (flush_bytes, streams) in cases {
            assert_eq!(user_streams(flush_bytes, 2 * KIB + 64, 16), streams, "{flush_bytes} bytes a flush");
        }
        assert_eq!(user_streams(u64::MAX, 0, 3), 2, "what the device can keep open");
        assert_eq!(user_streams(0, 0, 0), 1);
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7].map(|class| Class(class).stream(8, 4)), [0, 0, 1, 1, 2, 2, 3, 3]);
        assert_eq!([0, 1, 2, 3].map(|class| Class(class).stream(4, 9)), [0, 1, 2, 3]);
    }

    proptest! {
        #[test]
        fn a_longer_interval_never_gives_a_lower_class(
            count in 1u8..=16, ratio in 1.01f64..16.0, going_rate: u64, interval in 0u64..u64::MAX,
        ) {
            let classes = Classes::new(count, ratio, going_rate);
            prop_assert!(classes.class_of(interval) <= classes.class_of(interval + 1));
            prop_assert!(classes.class_of(u64::MAX).0 < count);
        }

        #[test]
        fn larger_flushes_never_get_fewer_streams(flush in 0u64..1 << 40, overhead in 0u64..1 << 16, max: u8) {
            prop_assert!(user_streams(flush, overhead, max) <= user_streams(flush + 4096, overhead, max));
            prop_assert!(user_streams(flush, overhead, max) <= max.max(1));
        }
    }
}

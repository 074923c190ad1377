//! How often a key is overwritten, in two bytes beside the key in the index.
//!
//! One interval between two writes says little: if a key is written at random with a constant rate, every third interval
//! is shorter than 0.4 of the mean or longer than 1.6 of it. The mean of the last few says more, and a key that has outlived
//! its mean is likely colder than it looked. Both follow from one assumption (writes at a rate that is not known, all
//! scales of rate being equally likely): after `n` intervals of mean `m`, with the last write `a` ago, the expected rate
//! is `n / (n·m + a)`.
//!
//! ```text
//!  15        10 9          3 2      0
//! ├─ exponent ─┼─ mantissa ─┼─ count ─┤   mean interval = (1 + mantissa / 128) · 2^exponent bytes
//! ```
//!
//! Invariants:
//! - The mean is kept within a 128th, rounded down, and costs no floating point.
//! - A key that was written once has no heat: all bits are zero.

const COUNT_BITS: u32 = 3;
const COUNT_MASK: u16 = (1 << COUNT_BITS) - 1;
const MANTISSA_BITS: u32 = 7;
const MANTISSA_MASK: u16 = (1 << MANTISSA_BITS) - 1;
// The exponent of a u64 takes six bits.
const _: () = assert!(COUNT_BITS + MANTISSA_BITS + 6 == u16::BITS);

/// Intervals that the mean looks back on. More: steadier for keys of constant rate, slower to follow those that change.
pub const MEMORY: u32 = 4;
const _: () = assert!(MEMORY <= COUNT_MASK as u32);

/// An interval shorter than the mean by this factor is taken for a change.
const SOONER: u64 = 8;
/// A version that outlived the mean by this factor is taken for a change.
const LATER: u64 = 4;

/// What the index remembers of a key's past writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Heat(u16);

impl Heat {
    /// Of a key that was written once.
    pub const NEW: Self = Self(0);

    /// As it is stored.
    pub fn to_bits(self) -> u16 {
        self.0
    }

    /// What was stored. Any bits are some heat.
    pub fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// Intervals that the mean is of, at most [`MEMORY`] (what was stored may say more, up to 7).
    pub fn intervals(self) -> u32 {
        u32::from(self.0 & COUNT_MASK)
    }

    /// Mean interval between writes, in bytes of [`LogTime`](super::LogTime); `None` if the key was written once.
    pub fn mean_bytes(self) -> Option<u64> {
        if self.intervals() == 0 {
            return None;
        }
        let exponent = u32::from(self.0 >> (COUNT_BITS + MANTISSA_BITS));
        let mantissa = u64::from(self.0 >> COUNT_BITS & MANTISSA_MASK) | 1 << MANTISSA_BITS;
        Some(match exponent.checked_sub(MANTISSA_BITS) {
            Some(left) => mantissa << left,
            None => mantissa >> (MANTISSA_BITS - exponent),
        })
    }

    /// The key was overwritten, `interval_bytes` after it was last written.
    #[must_use]
    pub fn overwritten(self, interval_bytes: u64) -> Self {
        self.overwritten_with_memory(interval_bytes, MEMORY)
    }

    /// The same with another memory than [`MEMORY`], 1 to 7: for measuring what the best one is.
    #[must_use]
    pub fn overwritten_with_memory(self, interval_bytes: u64, memory: u32) -> Self {
        let mean = self.mean_bytes().unwrap_or(0);
        let known = if interval_bytes < mean / SOONER { 1 } else { self.intervals() };
        let before = known.min(self.intervals()).min(memory - 1);
        let mean = u128::from(mean);
        let mean = (mean * u128::from(before) + u128::from(interval_bytes)) / u128::from(before + 1);
        Self::encode(u64::try_from(mean).expect("a mean of u64 is one"), before + 1)
    }

    /// The interval to expect of a key whose live version was written `age_bytes` ago; `None` if it was written once.
    pub fn expected_bytes(self, age_bytes: u64) -> Option<u64> {
        let mean = self.mean_bytes()?;
        let intervals = if age_bytes / LATER > mean { 1 } else { self.intervals() };
        Some(mean.saturating_add(age_bytes / u64::from(intervals)))
    }

    fn encode(mean: u64, intervals: u32) -> Self {
        let mean = mean.max(1);
        let exponent = mean.ilog2();
        let mantissa = match exponent.checked_sub(MANTISSA_BITS) {
            Some(right) => mean >> right,
            None => mean << (MANTISSA_BITS - exponent),
        };
        let mantissa = (mantissa as u16) & MANTISSA_MASK;
        Self((exponent as u16) << (COUNT_BITS + MANTISSA_BITS) | mantissa << COUNT_BITS | intervals as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_new_key_has_none() {
        assert_eq!(Heat::NEW.to_bits(), 0);
        assert_eq!(Heat::NEW.mean_bytes(), None);
        assert_eq!(Heat::NEW.expected_bytes(1 << 30), None);
    }

    #[test]
    fn the_mean_of_the_first_few_then_of_about_the_last_few() {
        let mut heat = Heat::NEW;
        // Powers of two and their sums up to 8 bits are kept exactly.
        for (interval, mean, intervals) in
            [(64, 64, 1), (128, 96, 2), (192, 128, 3), (128, 128, 4), (512, 224, 4)]
        {
            heat = heat.overwritten(interval);
            assert_eq!((heat.mean_bytes(), heat.intervals()), (Some(mean), intervals), "after {interval}");
        }
        let last = heat.overwritten_with_memory(4096, 1);
        assert_eq!((last.mean_bytes(), last.intervals()), (Some(4096), 1), "no memory: the last one");
        assert_eq!(heat.overwritten_with_memory(1, 1).mean_bytes(), Some(1), "however short");
    }

    #[test]
    fn what_outlives_its_mean_is_colder_the_more_so_the_less_is_known() {
        let once = Heat::NEW.overwritten(1024);
        let often = once.overwritten(1024).overwritten(1024).overwritten(1024);
        assert_eq!(once.expected_bytes(0), Some(1024));
        assert_eq!(once.expected_bytes(4096), Some(5120));
        assert_eq!(often.expected_bytes(4096), Some(2048));
    }

    #[test]
    fn a_change_of_habit_is_soon_believed() {
        let often = [1024; 4].iter().fold(Heat::NEW, |heat, interval| heat.overwritten(*interval));
        assert_eq!(often.overwritten(128).mean_bytes(), Some(800), "short, but it happens");
        let hotter = often.overwritten(126);
        assert_eq!((hotter.mean_bytes(), hotter.intervals()), (Some(572), 2));
        assert_eq!(often.expected_bytes(4096), Some(2048), "long, but it happens");
        assert_eq!(often.expected_bytes(4100), Some(5124));
    }

    #[test]
    fn extremes() {
        assert_eq!(Heat::NEW.overwritten(0).mean_bytes(), Some(1));
        let longest = Heat::NEW.overwritten(u64::MAX);
        assert_eq!(longest.mean_bytes(), Some(u64::MAX << 56));
        assert_eq!(longest.overwritten(u64::MAX).mean_bytes(), Some(u64::MAX << 56));
        assert_eq!(longest.expected_bytes(u64::MAX), Some(u64::MAX));
    }

    proptest! {
        #[test]
        fn kept_within_a_128th(interval in 1u64.., memory in 1u32..=7) {
            let mean = Heat::NEW.overwritten_with_memory(interval, memory).mean_bytes().unwrap();
            prop_assert!(mean <= interval && interval - mean <= interval / 128);
        }

        #[test]
        fn any_bits_are_some_heat(bits: u16, interval: u64, age: u64) {
            let heat = Heat::from_bits(bits);
            prop_assert_eq!(heat.to_bits(), bits);
            prop_assert!(heat.expected_bytes(age).is_none_or(|expected| expected >= heat.mean_bytes().unwrap()));
            prop_assert!((1..=MEMORY).contains(&heat.overwritten(interval).intervals()));
        }

        #[test]
        fn a_longer_interval_never_makes_it_hotter(bits: u16, interval in 0u64..u64::MAX) {
            let heat = Heat::from_bits(bits);
            prop_assert!(heat.overwritten(interval).mean_bytes() <= heat.overwritten(interval + 1).mean_bytes());
        }
    }
}

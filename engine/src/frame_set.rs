//! Which frames of an epoch there are, in constant space.
//!
//! A start must notice a frame that is gone, and cleaning erases frames all the time. So it is kept what frames there must be, as
//! power sums of their numbers: how many, their sum, the sum of their squares (all modulo 2^64). Sets are added and subtracted
//! without being listed, and the difference of two equal sets is empty. What is missing has an identity: of one missing
//! frame the sum is its number.

use crate::cursor::Cursor;

/// Bytes of an encoded set.
pub(crate) const BYTES: usize = 24;

/// A set of frame numbers of one epoch, as power sums.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FrameSet {
    count: u64,
    sum: u64,
    squares: u64,
}

impl FrameSet {
    /// The frames 1 to `last`.
    pub(crate) fn up_to(last: u64) -> Self {
        let n = u128::from(last);
        // Exact for every number that an epoch can reach: 2^40 frames are a century at a million a second.
        let squares = (n * (n + 1) / 2).wrapping_mul(2 * n + 1) / 3;
        Self { count: last, sum: (n * (n + 1) / 2) as u64, squares: squares as u64 }
    }

    pub(crate) fn insert(&mut self, number: u64) {
        *self = self.plus(Self { count: 1, sum: number, squares: number.wrapping_mul(number) });
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            count: self.count.wrapping_add(other.count),
            sum: self.sum.wrapping_add(other.sum),
            squares: self.squares.wrapping_add(other.squares),
        }
    }

    pub(crate) fn minus(self, other: Self) -> Self {
        Self {
            count: self.count.wrapping_sub(other.count),
            sum: self.sum.wrapping_sub(other.sum),
            squares: self.squares.wrapping_sub(other.squares),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn words(&self) -> [u64; 3] {
        [self.count, self.sum, self.squares]
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        self.words().iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
    }

    pub(crate) fn decode(cursor: &mut Cursor<'_>) -> Option<Self> {
        Some(Self { count: cursor.u64()?, sum: cursor.u64()?, squares: cursor.u64()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(numbers: impl IntoIterator<Item = u64>) -> FrameSet {
        let mut set = FrameSet::default();
        numbers.into_iter().for_each(|number| set.insert(number));
        set
    }

    #[test]
    fn one_missing_frame_is_named_by_the_sum() {
        let missing = FrameSet::up_to(1000).minus(of((1..=1000).filter(|number| *number != 17)));
        assert_eq!(missing.words(), [1, 17, 17 * 17]);
    }

    proptest! {
        #[test]
        fn what_is_erased_and_what_is_left_make_up_all(
            last in 0_u64..300, erased in prop::collection::btree_set(1_u64..300, 0..100)
        ) {
            let left = of((1..=last).filter(|number| !erased.contains(number)));
            let erased = of((1..=last).filter(|number| erased.contains(number)));
            prop_assert_eq!(FrameSet::up_to(last), left.plus(erased));
            prop_assert!(FrameSet::up_to(last).minus(left).minus(erased).is_empty());
        }
    }
}

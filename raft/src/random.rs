//! The random part of election timeouts: SplitMix64 (Steele, Lea and Flood, 2014), seeded by the host.

use crate::types::PeerId;

#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// Replicas of one group share a seed but not an id, and must not share their timeouts.
    pub(crate) fn new(seed: u64, id: PeerId) -> Random {
        let mut random = Random(seed ^ id.0.wrapping_mul(0xd6e8_feb8_6659_fd93));
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not 0. The bias is below `limit / 2^64`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        let product = u128::from(self.next()) * u128::from(limit);
        (product >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_that_share_a_seed_draw_differently() {
        let draw = |id| {
            let mut random = Random::new(7, PeerId(id));
            (0..4).map(|_| random.below(1_000_000)).collect::<Vec<_>>()
        };
        assert_ne!(draw(1), draw(2));
        assert_eq!(draw(1), draw(1));
        assert!(draw(3).iter().all(|value| *value < 1_000_000));
    }
}

//! How chunks differ and age: pure functions of the options, the seed and a chunk's erases and reads.
//!
//! Endurance varies between blocks of one device (for 3D NAND, Luo et al., SIGMETRICS 2018, report early-life and
//! process variation); reads disturb a block's other pages, the sooner the more often it was erased (Cai et al.,
//! DSN 2015). The model keeps the direction of these effects, not the figures of any part.

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

use super::options::{FlashOptions, WearOdds};
use crate::media::NoticeKind;

/// Wear index of a chunk at the end of a mean chunk's life.
const WEAR_INDEX_MAX: u64 = u8::MAX as u64;

/// Share of the reads a new block stands that a block at its end has lost.
const READS_LOST_TO_WEAR: f64 = 0.9;

/// How near to high ECC effort a chunk is when the device mentions it, and as what.
const ECC_LEVELS: [(f64, NoticeKind); 3] =
    [(1.0, NoticeKind::EccHigh), (0.75, NoticeKind::EccMedium), (0.5, NoticeKind::EccLow)];

/// What a chunk was born with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Birth {
    /// Erases it stands; `None`: any number.
    pub(super) erases_max: Option<u32>,
    /// Offline from the start.
    pub(super) bad: bool,
}

/// What the `index`-th chunk of the device was born with: the same each time it is asked.
pub(super) fn birth(options: &FlashOptions, index: u32) -> Birth {
    // An odd multiplier keeps neighbours' streams apart; the generator mixes the rest.
    let mut rng =
        Pcg64Mcg::seed_from_u64(options.seed ^ (u64::from(index) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let bad = rng.random_bool(options.bad_at_birth);
    let mean = f64::from(options.endurance.erases_mean);
    let erases_max = (options.endurance.erases_mean > 0).then(|| {
        let erases = mean * (1.0 + options.endurance.variation * standard_normal(&mut rng));
        (erases.round() as u32).max(1)
    });
    Birth { erases_max, bad }
}

/// Nearly normal, within six deviations: the sum of twelve uniform numbers (Irwin-Hall).
fn standard_normal(rng: &mut Pcg64Mcg) -> f64 {
    (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0
}

/// How much of its life a chunk has behind it, 0 to 1.
pub(super) fn worn(erases: u32, erases_max: Option<u32>) -> f64 {
    erases_max.map_or(0.0, |max| (f64::from(erases) / f64::from(max)).min(1.0))
}

/// The wear index that the chunk's descriptor shows. Without an end of life it counts erases.
pub(super) fn wear_index(erases: u32, erases_mean: u32) -> u8 {
    let index = match erases_mean {
        0 => u64::from(erases),
        mean => u64::from(erases) * WEAR_INDEX_MAX / u64::from(mean),
    };
    index.min(WEAR_INDEX_MAX) as u8
}

/// How much correction a read takes after so many page reads since the last erase; `None`: nothing to speak of.
pub(super) fn ecc_level(ecc_page_reads: u32, worn: f64, page_reads: u64) -> Option<NoticeKind> {
    if ecc_page_reads == 0 {
        return None;
    }
    let stands = f64::from(ecc_page_reads) * (1.0 - READS_LOST_TO_WEAR * worn);
    let reached = page_reads as f64 / stands;
    ECC_LEVELS.into_iter().find(|(level, _)| reached >= *level).map(|(_, kind)| kind)
}

impl WearOdds {
    /// The odds for a chunk that has so much of its life behind it.
    pub(super) fn at(&self, worn: f64) -> f64 {
        self.fresh + (self.worn - self.fresh) * worn * worn
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flash::Endurance;

    #[test]
    fn endurance_spreads_around_its_mean() {
        let endurance = Endurance { erases_mean: 1000, variation: 0.1, ..Endurance::default() };
        let options = FlashOptions { endurance, seed: 7, ..FlashOptions::default() };
        let limits: Vec<f64> =
            (0..4000).map(|index| f64::from(birth(&options, index).erases_max.unwrap())).collect();
        let mean = limits.iter().sum::<f64>() / limits.len() as f64;
        let deviation =
            (limits.iter().map(|limit| (limit - mean).powi(2)).sum::<f64>() / limits.len() as f64).sqrt();
        assert!((990.0..1010.0).contains(&mean), "{mean}");
        assert!((90.0..110.0).contains(&deviation), "{deviation}");
        assert_eq!(birth(&options, 9), birth(&options, 9));
    }

    #[test]
    fn without_variation_all_are_alike() {
        let endurance = Endurance { erases_mean: 5, ..Endurance::default() };
        let options = FlashOptions { endurance, ..FlashOptions::default() };
        assert!((0..100).all(|index| birth(&options, index) == Birth { erases_max: Some(5), bad: false }));
        assert_eq!(birth(&FlashOptions::default(), 3).erases_max, None);
    }

    #[test]
    fn odds_grow_with_wear() {
        let odds = WearOdds { fresh: 0.1, worn: 0.5 };
        let at: Vec<f64> = [0, 5, 10, 20].map(|erases| odds.at(worn(erases, Some(10)))).to_vec();
        assert_eq!(at, [0.1, 0.2, 0.5, 0.5]);
        assert_eq!(odds.at(worn(1000, None)), 0.1);
    }

    #[test]
    fn worn_blocks_stand_fewer_reads() {
        let cases = [
            (0.0, 49, None),
            (0.0, 50, Some(NoticeKind::EccLow)),
            (0.0, 75, Some(NoticeKind::EccMedium)),
            (0.0, 100, Some(NoticeKind::EccHigh)),
            (1.0, 4, None),
            (1.0, 10, Some(NoticeKind::EccHigh)),
        ];
        for (worn, page_reads, level) in cases {
            assert_eq!(ecc_level(100, worn, page_reads), level, "{page_reads} reads at {worn}");
        }
        assert_eq!(ecc_level(0, 1.0, u64::MAX), None);
    }

    #[test]
    fn the_wear_index_is_a_share_of_the_mean_life() {
        assert_eq!([0, 500, 1000, 2000].map(|erases| wear_index(erases, 1000)), [0, 127, 255, 255]);
        assert_eq!([3, 300].map(|erases| wear_index(erases, 0)), [3, 255]);
    }
}

//! Zipf's law over any number of ranks, in constant memory, and a mixing that scatters what is popular.
//!
//! Two steps, each exact by itself:
//! - [`Zipf`] draws a popularity *rank* 0..n, rank r with probability proportional to 1/(r+1)^theta. It uses
//!   rejection-inversion (W. Hörmann, G. Derflinger, "Rejection-inversion to generate variates from monotone
//!   discrete distributions", ACM TOMACS 6(3), 1996): invert the integral of the hat function, then accept or
//!   reject. No table, no zeta sum, about 1.1 draws per sample for every n and theta. As only one of its
//!   constants depends on n, n may differ from draw to draw and the law stays exact, for one more logarithm
//!   and exponential.
//! - [`Scramble`] maps ranks to record numbers through a keyed one-to-one mixing of 0..n, so that popular
//!   records lie scattered over the key space. YCSB hashes modulo n instead, which lets several ranks fall on
//!   one record and leaves others unreachable; a permutation keeps the law exact.
//!
//! Invariants: every rank and every record is below n; `Scramble` is a bijection of 0..n.

use rand::{Rng, RngExt};

/// Zipf's law over the ranks 0..n.
#[derive(Debug, Clone)]
pub(crate) struct Zipf {
    ranks: f64,
    theta: f64,
    /// The hat's integral just below the first rank and just above the last: the interval that draws fall in.
    integral_first: f64,
    integral_last: f64,
    /// Draws that lie at most this far left of their rank are accepted without evaluating the law.
    accept_left: f64,
}

impl Zipf {
    /// The law over `ranks` ranks (at least 1) with exponent `theta` (finite, 0 = uniform; YCSB's default is
    /// 0.99).
    pub(crate) fn new(ranks: u64, theta: f64) -> Self {
        assert!(ranks >= 1, "a distribution needs at least one rank");
        assert!(theta.is_finite() && theta >= 0.0, "the exponent is a finite number from 0 up");
        let accept_left = 2.0 - integral_inverse(integral(2.5, theta) - hat(2.0, theta), theta);
        Zipf {
            ranks: ranks as f64,
            theta,
            // The first rank's whole mass is taken as a rectangle of height 1, hence the "- 1".
            integral_first: integral(1.5, theta) - 1.0,
            integral_last: integral(ranks as f64 + 0.5, theta),
            accept_left,
        }
    }

    /// Draws a rank, 0 being the most popular.
    pub(crate) fn rank(&self, rng: &mut impl Rng) -> u64 {
        self.draw(self.ranks, self.integral_last, rng)
    }

    /// Draws a rank by the same exponent's law over another number of ranks (at least 1).
    pub(crate) fn rank_among(&self, ranks: u64, rng: &mut impl Rng) -> u64 {
        debug_assert!(ranks >= 1);
        let ranks = ranks as f64;
        // The usual case: nothing was inserted.
        let last = if ranks == self.ranks { self.integral_last } else { integral(ranks + 0.5, self.theta) };
        self.draw(ranks, last, rng)
    }

    fn draw(&self, ranks: f64, integral_last: f64, rng: &mut impl Rng) -> u64 {
        loop {
            let uniform: f64 = rng.random();
            let area = integral_last + uniform * (self.integral_first - integral_last);
            let x = integral_inverse(area, self.theta);
            let rank = x.round().clamp(1.0, ranks);
            let accepted = rank - x <= self.accept_left
                || area >= integral(rank + 0.5, self.theta) - hat(rank, self.theta);
            if accepted {
                return rank as u64 - 1;
            }
        }
    }

    /// The mean rank: the sum of r * r^-theta over that of r^-theta, less one as ranks count from 0.
    pub(crate) fn mean(&self) -> f64 {
        power_sum(self.ranks, 1.0 - self.theta) / power_sum(self.ranks, -self.theta) - 1.0
    }
}

/// The sum of r^`power` for r = 1 to `n`: the first terms one by one, the rest by the formula of Euler and
/// Maclaurin up to the third derivative, which from there on errs by less than a billionth.
fn power_sum(n: f64, power: f64) -> f64 {
    const HEAD: f64 = 32.0;
    let head = HEAD.min(n);
    let first: f64 = (1..=head as u32).map(|r| f64::from(r).powf(power)).sum();
    if n <= head {
        return first;
    }
    let over = |x: f64| integral(x, -power);
    let tail = |x: f64| {
        let third = power * (power - 1.0) * (power - 2.0);
        x.powf(power) / 2.0 + power * x.powf(power - 1.0) / 12.0 - third * x.powf(power - 3.0) / 720.0
    };
    first + over(n) - over(head) + tail(n) - tail(head)
}

/// The hat function x^-theta.
fn hat(x: f64, theta: f64) -> f64 {
    (-theta * x.ln()).exp()
}

/// The hat's integral from 1 to `x`: (x^(1-theta) - 1) / (1-theta), and ln x where theta is 1.
fn integral(x: f64, theta: f64) -> f64 {
    let ln_x = x.ln();
    let t = (1.0 - theta) * ln_x;
    // (e^t - 1)/t tends to 1 at t = 0: its first terms avoid dividing nearly nothing by nearly nothing.
    let ratio = if t.abs() > 1e-8 { t.exp_m1() / t } else { 1.0 + t / 2.0 + t * t / 6.0 };
    ratio * ln_x
}

/// The inverse of [`integral`].
fn integral_inverse(area: f64, theta: f64) -> f64 {
    // Rounding may push t a hair below -1, where the logarithm ends.
    let t = (area * (1.0 - theta)).max(-1.0);
    let ratio = if t.abs() > 1e-8 { t.ln_1p() / t } else { 1.0 - t / 2.0 + t * t / 3.0 };
    (ratio * area).exp()
}

/// A fixed one-to-one mixing of 0..n.
///
/// Rounds of odd multiplication and xor-shift are bijections of 0..2^k; values that land at n or above are
/// mixed again until they land below ("cycle walking"), fewer than two passes on average as 2^k < 2n.
#[derive(Debug, Clone)]
pub(crate) struct Scramble {
    records: u64,
    mask: u64,
    shift: u32,
}

impl Scramble {
    /// The mixing of 0..`records` (at least 1). It depends on nothing else: separate runs find the same
    /// records popular.
    pub(crate) fn new(records: u64) -> Self {
        assert!(records >= 1, "nothing to scramble");
        let bits = u64::BITS - (records - 1).leading_zeros();
        let mask = if bits == 0 { 0 } else { u64::MAX >> (u64::BITS - bits) };
        Scramble { records, mask, shift: (bits / 2).max(1) }
    }

    /// The record that has this popularity rank.
    pub(crate) fn record(&self, rank: u64) -> u64 {
        debug_assert!(rank < self.records);
        let mut x = rank;
        loop {
            for (offset, factor) in ROUNDS {
                x = x.wrapping_add(offset).wrapping_mul(factor) & self.mask;
                x ^= x >> self.shift;
            }
            if x < self.records {
                return x;
            }
        }
    }
}

/// Offsets and odd factors of the mixing rounds: digits of pi, the factors made odd.
const ROUNDS: [(u64, u64); 4] = [
    (0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7345),
    (0xa409_3822_299f_31d0, 0x082e_fa98_ec4e_6c89),
    (0x4528_21e6_38d0_1377, 0xbe54_66cf_34e9_0c6d),
    (0xc0ac_29b7_c97c_50dd, 0x3f84_d5b5_b547_0917),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::chi_square::{assert_fits, assert_misses, zipf_expects};
    use rand::SeedableRng;
    use rand_pcg::Pcg64Mcg;

    const DRAWS: u64 = 500_000;

    fn count(ranks: u64, seed: u64, mut draw: impl FnMut(&mut Pcg64Mcg) -> u64) -> Vec<u64> {
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        let mut counts = vec![0; ranks as usize];
        for _ in 0..DRAWS {
            counts[draw(&mut rng) as usize] += 1;
        }
        counts
    }

    /// Ranks follow the exact law.
    #[test]
    fn ranks_follow_the_law() {
        for (ranks, theta) in
            [(2, 0.99), (10, 0.5), (1_000, 0.99), (1_000, 1.0), (100_000, 0.99), (5_000, 1.5), (64, 0.0)]
        {
            let zipf = Zipf::new(ranks, theta);
            for seed in 0..3 {
                let counts = count(ranks, seed, |rng| zipf.rank(rng));
                let what = format!("{ranks} ranks, theta {theta}, seed {seed}");
                assert_fits(&counts, &zipf_expects(ranks, theta, DRAWS), &what);
            }
        }
    }

    /// The check above has teeth: a law only slightly different is found out.
    #[test]
    fn the_test_tells_nearby_laws_apart() {
        let zipf = Zipf::new(1_000, 0.99);
        let counts = count(1_000, 0, |rng| zipf.rank(rng));
        assert_misses(&counts, &zipf_expects(1_000, 0.97, DRAWS), "theta 0.97");
        assert_misses(&counts, &zipf_expects(1_000, 1.01, DRAWS), "theta 1.01");
        let mut shifted = counts.clone();
        shifted.rotate_right(1);
        assert_misses(&shifted, &zipf_expects(1_000, 0.99, DRAWS), "shifted by one rank");
    }

    /// The law over another number of ranks than it was made for is that number's law, not a cut of the first
    /// one.
    #[test]
    fn the_number_of_ranks_may_change() {
        for theta in [0.5, 0.99, 1.0, 1.5] {
            let zipf = Zipf::new(1_000, theta);
            for ranks in [2, 999, 1_000, 1_001, 3_000] {
                let counts = count(ranks, 5, |rng| zipf.rank_among(ranks, rng));
                let what = format!("{ranks} ranks, theta {theta}");
                assert_fits(&counts, &zipf_expects(ranks, theta, DRAWS), &what);
            }
        }
    }

    #[test]
    fn means_are_the_sums_of_the_definition() {
        for ranks in [1, 2, 31, 32, 33, 1_000, 100_000] {
            for theta in [0.0, 0.5, 0.99, 1.0, 1.5, 2.0, 3.0, 10.0] {
                let law = zipf_expects(ranks, theta, 1);
                let exact: f64 = law.iter().enumerate().map(|(rank, p)| rank as f64 * p).sum();
                let mean = Zipf::new(ranks, theta).mean();
                let off = (mean - exact).abs() / exact.max(1.0);
                assert!(off < 1e-9, "{ranks} ranks, theta {theta}: {mean}, not {exact}");
            }
        }
    }

    /// Scrambled records are the same law over other names: sorted back by rank, the counts still fit.
    #[test]
    fn records_follow_the_law_too() {
        let (records, theta) = (3_000, 0.99);
        let (zipf, scramble) = (Zipf::new(records, theta), Scramble::new(records));
        let counts = count(records, 7, |rng| scramble.record(zipf.rank(rng)));
        let by_rank: Vec<u64> = (0..records).map(|rank| counts[scramble.record(rank) as usize]).collect();
        assert_fits(&by_rank, &zipf_expects(records, theta, DRAWS), "scrambled");
    }

    #[test]
    fn a_single_rank_is_always_drawn() {
        let zipf = Zipf::new(1, 0.99);
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        assert!((0..1_000).all(|_| zipf.rank(&mut rng) == 0));
        assert_eq!(Scramble::new(1).record(0), 0);
    }

    /// Constant memory also means no loss of precision worth naming at sizes that no table could hold.
    #[test]
    fn huge_domains_stay_in_range() {
        for theta in [0.0, 0.5, 0.99, 1.0, 2.0] {
            let ranks = 1 << 52;
            let zipf = Zipf::new(ranks, theta);
            let mut rng = Pcg64Mcg::seed_from_u64(3);
            assert!((0..10_000).all(|_| zipf.rank(&mut rng) < ranks));
        }
    }

    #[test]
    fn scrambling_is_one_to_one() {
        for records in [1, 2, 3, 4, 5, 7, 8, 9, 100, 1_000, 1_024, 1_025, 65_537, 100_000] {
            let scramble = Scramble::new(records);
            let mut hit = vec![false; records as usize];
            for rank in 0..records {
                let record = scramble.record(rank) as usize;
                assert!(!hit[record], "{records} records: two ranks on record {record}");
                hit[record] = true;
            }
        }
    }

    /// The most popular ranks do not stay neighbours: over 16 equal stretches of the key space, the first
    /// 1,600 ranks spread about evenly (100 each; a fixed permutation, so the bounds cannot flicker).
    #[test]
    fn scrambling_scatters() {
        for records in [100_000u64, 1 << 20, 999_983] {
            let scramble = Scramble::new(records);
            let mut stretches = [0; 16];
            for rank in 0..1_600 {
                stretches[(scramble.record(rank) * 16 / records) as usize] += 1;
            }
            assert!(stretches.iter().all(|hits| (50..=150).contains(hits)), "{records}: {stretches:?}");
        }
    }
}

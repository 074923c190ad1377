//! How many bytes a value has: one size for all, or drawn anew for every write.
//!
//! The laws are YCSB's for the lengths of fields: constant, uniform, and zipfian with small values common.

use rand::{Rng, RngExt};

use crate::workload::spec::SizeLaw;
use crate::workload::zipf::Zipf;

/// The law of value sizes; shared by all workers, it holds no state.
#[derive(Debug, Clone)]
pub(crate) enum Sizes {
    /// Always so many bytes.
    Fixed(usize),
    /// From the first to the last of these, evenly.
    Uniform(usize, usize),
    /// This many bytes and a rank by Zipf's law more.
    Zipfian(usize, Zipf),
}

impl Sizes {
    /// The sampler of a valid law.
    pub(crate) fn new(law: &SizeLaw) -> Self {
        match *law {
            SizeLaw::Fixed { bytes } => Sizes::Fixed(bytes),
            SizeLaw::Uniform { min, max } => Sizes::Uniform(min, max),
            SizeLaw::Zipfian { min, max, theta } => {
                Sizes::Zipfian(min, Zipf::new((max - min) as u64 + 1, theta))
            }
        }
    }

    /// Draws a size in bytes.
    pub(crate) fn bytes(&self, rng: &mut impl Rng) -> usize {
        match self {
            Sizes::Fixed(bytes) => *bytes,
            Sizes::Uniform(min, max) => rng.random_range(*min..=*max),
            Sizes::Zipfian(min, zipf) => min + zipf.rank(rng) as usize,
        }
    }

    /// The mean size in bytes, of the law and not of a sample.
    pub(crate) fn mean(&self) -> f64 {
        match self {
            Sizes::Fixed(bytes) => *bytes as f64,
            Sizes::Uniform(min, max) => (*min as f64 + *max as f64) / 2.0,
            Sizes::Zipfian(min, zipf) => *min as f64 + zipf.mean(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::chi_square::{assert_fits, assert_misses, zipf_expects};
    use crate::workload::generator;

    const DRAWS: u64 = 1_000_000;

    /// Counts of the sizes `min` to `max`, and the mean.
    fn draw(law: SizeLaw, min: usize, max: usize) -> (Vec<u64>, f64) {
        let sizes = Sizes::new(&law);
        let mut rng = generator(4, 0, 0);
        let mut counts = vec![0; max - min + 1];
        for _ in 0..DRAWS {
            counts[sizes.bytes(&mut rng) - min] += 1;
        }
        let total: f64 = counts.iter().enumerate().map(|(at, count)| (min + at) as f64 * *count as f64).sum();
        (counts, total / DRAWS as f64)
    }

    #[test]
    fn fixed_is_fixed() {
        let law = SizeLaw::Fixed { bytes: 4_096 };
        assert_eq!(draw(law, 4_096, 4_096), (vec![DRAWS], 4_096.0));
        assert_eq!(Sizes::new(&law).mean(), 4_096.0);
    }

    #[test]
    fn uniform_is_even_from_the_first_to_the_last() {
        let (min, max) = (32, 1_031);
        let law = SizeLaw::Uniform { min, max };
        let (counts, mean) = draw(law, min, max);
        assert_fits(&counts, &vec![DRAWS as f64 / 1_000.0; 1_000], "uniform sizes");
        assert_misses(&counts, &zipf_expects(1_000, 0.1, DRAWS), "theta 0.1");
        assert_eq!(Sizes::new(&law).mean(), 531.5);
        // One standard deviation of the mean of a million draws is 0.29 bytes; five are allowed.
        assert!((mean - 531.5).abs() < 1.5, "{mean}");
    }

    #[test]
    fn zipfian_sizes_are_mostly_small() {
        let (min, max, theta) = (64, 2_063, 0.99);
        let law = SizeLaw::Zipfian { min, max, theta };
        let (counts, mean) = draw(law, min, max);
        assert_fits(&counts, &zipf_expects(2_000, theta, DRAWS), "zipfian sizes");
        assert_misses(&counts, &zipf_expects(2_000, 0.97, DRAWS), "theta 0.97");
        let exact = Sizes::new(&law).mean();
        assert!((mean - exact).abs() < exact * 0.01, "{mean}, not {exact}");
        assert!(exact < 320.0, "far below the middle: {exact}");
    }

    #[test]
    fn a_range_of_one_size_is_that_size() {
        for law in [SizeLaw::Uniform { min: 99, max: 99 }, SizeLaw::Zipfian { min: 99, max: 99, theta: 0.99 }]
        {
            let sizes = Sizes::new(&law);
            assert_eq!((sizes.bytes(&mut generator(1, 0, 0)), sizes.mean()), (99, 99.0));
        }
    }
}

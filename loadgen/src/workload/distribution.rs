//! Which record an operation touches.
//!
//! Every law is drawn in constant memory and time, over the records that exist at that moment: `n` of them,
//! numbered from 0, of which the first `records` were there from the start and the others were inserted
//! since.
//!
//! - *zipfian*: Zipf's law over all n ([`Zipf`]). The records of the start hold the first ranks, scattered
//!   over their numbers ([`Scramble`]) or not; what is inserted joins at the unpopular end, in the order of
//!   insertion, so no record ever changes its rank. YCSB's differs: it draws from a law over ten billion
//!   ranks whatever n is and hashes them modulo the records it expects at the end (counting the expected
//!   inserts twice), drawing again what is not there yet. Several ranks then share a record, others are never
//!   asked for, and with theta 0.99 the hottest record gets 3.8 % of the draws, at any n. Here every record
//!   has the exact probability of its rank: over 100,000 records the hottest gets 7.8 %, so caches fare
//!   better than under YCSB.
//! - *uniform*: each record as often as any other, inserted ones included (YCSB's uniform, hotspot
//!   and sequential laws leave these out).
//! - *latest*: Zipf's law by age: the newest record n-1 has rank 0. As YCSB's, but the law over the n of the
//!   moment is exact without a running zeta sum.
//! - *hotspot*: `operations` of the draws fall evenly on the hot records, a share `set` of the start's, the
//!   others evenly on the rest, inserted ones included. The hot set stays as it is while records are
//!   inserted.
//! - *sequential*: one record after the other. All workers share one walk (clones of [`Keys`] too), so
//!   together they touch every record once before any is touched again; which worker gets which depends on
//!   their timing. It is the only law whose draws do not depend on the worker's generator alone.
//!
//! Invariants: every draw is below n; with n unchanged, every record can be drawn (hotspot: unless told
//! otherwise).
//!
//! Sources: B. F. Cooper et al., SoCC 2010, and YCSB's generators of the same names.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rand::{Rng, RngExt};

use crate::workload::spec::Distribution;
use crate::workload::zipf::{Scramble, Zipf};

/// The law by which records are drawn; shared by all workers.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    records: u64,
    law: Law,
}

#[derive(Debug, Clone)]
enum Law {
    Zipfian { zipf: Zipf, scramble: Option<Scramble> },
    Uniform,
    Latest { zipf: Zipf },
    Hotspot { hot: u64, operations: f64, scramble: Option<Scramble> },
    Sequential { next: Arc<AtomicU64> },
}

impl Keys {
    /// The law of a valid `distribution`, where `records` records (at least 1) exist from the start.
    pub(crate) fn new(distribution: &Distribution, records: u64) -> Self {
        assert!(records >= 1, "a law needs a record to draw");
        let scramble = |wanted: bool| wanted.then(|| Scramble::new(records));
        let law = match *distribution {
            Distribution::Zipfian { theta, scrambled } => {
                Law::Zipfian { zipf: Zipf::new(records, theta), scramble: scramble(scrambled) }
            }
            Distribution::Uniform => Law::Uniform,
            Distribution::Latest { theta } => Law::Latest { zipf: Zipf::new(records, theta) },
            Distribution::Hotspot { set, operations, scrambled } => Law::Hotspot {
                hot: ((records as f64 * set).round() as u64).clamp(1, records),
                operations,
                scramble: scramble(scrambled),
            },
            Distribution::Sequential => Law::Sequential { next: Arc::new(AtomicU64::new(0)) },
        };
        Keys { records, law }
    }

    /// Draws a record, below `n`: how many exist now, at least as many as at the start.
    pub(crate) fn record(&self, n: u64, rng: &mut impl Rng) -> u64 {
        debug_assert!(n >= self.records, "records do not vanish");
        match &self.law {
            Law::Zipfian { zipf, scramble } => self.place(zipf.rank_among(n, rng), scramble.as_ref()),
            Law::Uniform => rng.random_range(0..n),
            Law::Latest { zipf } => n - 1 - zipf.rank_among(n, rng),
            Law::Hotspot { hot, operations, scramble } => {
                // Where everything is hot there is nothing else to draw.
                let is_hot = rng.random::<f64>() < *operations || *hot == n;
                let drawn = if is_hot { rng.random_range(0..*hot) } else { rng.random_range(*hot..n) };
                self.place(drawn, scramble.as_ref())
            }
            Law::Sequential { next } => {
                let step = |at: u64| if at + 1 < n { at + 1 } else { 0 };
                let mut at = next.load(Ordering::Relaxed);
                // The walk orders nothing but itself.
                while let Err(now) =
                    next.compare_exchange_weak(at, step(at), Ordering::Relaxed, Ordering::Relaxed)
                {
                    at = now;
                }
                at
            }
        }
    }

    /// The record that holds a place in the order of popularity: scattered among those of the start, in order
    /// after.
    fn place(&self, rank: u64, scramble: Option<&Scramble>) -> u64 {
        match scramble {
            Some(scramble) if rank < self.records => scramble.record(rank),
            _ => rank,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::chi_square::{assert_fits, assert_misses, zipf_expects};
    use crate::workload::generator;

    const DRAWS: u64 = 1_000_000;
    const RECORDS: u64 = 2_000;

    const ZIPFIAN: Distribution = Distribution::Zipfian { theta: 0.99, scrambled: true };
    const STRAIGHT: Distribution = Distribution::Zipfian { theta: 0.99, scrambled: false };
    const LATEST: Distribution = Distribution::Latest { theta: 0.99 };
    const HOTSPOT: Distribution = Distribution::Hotspot { set: 0.2, operations: 0.8, scrambled: false };
    const SCATTERED: Distribution = Distribution::Hotspot { set: 0.2, operations: 0.8, scrambled: true };

    /// Counts of each record: [`DRAWS`] draws in equal stretches, over each of these numbers of records in
    /// turn.
    fn counts(distribution: Distribution, sizes: &[u64]) -> Vec<u64> {
        let keys = Keys::new(&distribution, RECORDS);
        let mut rng = generator(9, 0, 0);
        let mut counts = vec![0; sizes[sizes.len() - 1] as usize];
        for n in sizes {
            for _ in 0..DRAWS / sizes.len() as u64 {
                counts[keys.record(*n, &mut rng) as usize] += 1;
            }
        }
        counts
    }

    /// What each record expects where `law` gives a stretch's expectations for n records.
    fn expected(sizes: &[u64], law: impl Fn(u64, u64) -> Vec<f64>) -> Vec<f64> {
        let mut sum = vec![0.0; sizes[sizes.len() - 1] as usize];
        for n in sizes {
            for (sum, expected) in sum.iter_mut().zip(law(*n, DRAWS / sizes.len() as u64)) {
                *sum += expected;
            }
        }
        sum
    }

    /// One insert between stretches, 500 stretches: the records grow by a quarter.
    fn growing() -> Vec<u64> {
        (RECORDS..RECORDS + 500).collect()
    }

    fn latest(theta: f64) -> impl Fn(u64, u64) -> Vec<f64> {
        move |n, draws| zipf_expects(n, theta, draws).into_iter().rev().collect()
    }

    fn hotspot(hot: u64, operations: f64) -> impl Fn(u64, u64) -> Vec<f64> {
        move |n, draws| {
            let draws = draws as f64;
            let each = |record| {
                if record < hot { operations / hot as f64 } else { (1.0 - operations) / (n - hot) as f64 }
            };
            (0..n).map(|record| draws * each(record)).collect()
        }
    }

    /// Counts of the start's records in the order of their ranks, then the inserted ones.
    fn by_rank(counts: &[u64]) -> Vec<u64> {
        let scramble = Scramble::new(RECORDS);
        let places =
            (0..counts.len() as u64).map(|rank| if rank < RECORDS { scramble.record(rank) } else { rank });
        places.map(|record| counts[record as usize]).collect()
    }

    #[test]
    fn zipfian_is_zipfs_law() {
        for sizes in [vec![RECORDS], vec![RECORDS + 700], growing()] {
            let what = format!("up to {} records", sizes[sizes.len() - 1]);
            let law = expected(&sizes, |n, draws| zipf_expects(n, 0.99, draws));
            let straight = counts(STRAIGHT, &sizes);
            assert_fits(&straight, &law, &what);
            let scrambled = counts(ZIPFIAN, &sizes);
            assert_fits(&by_rank(&scrambled), &law, &format!("scrambled, {what}"));
            assert_misses(&scrambled, &law, "the scrambled one read unscrambled");
            assert_misses(
                &straight,
                &expected(&sizes, |n, draws| zipf_expects(n, 0.97, draws)),
                "theta 0.97",
            );
        }
        let grown = counts(ZIPFIAN, &growing());
        let frozen: Vec<f64> = zipf_expects(RECORDS, 0.99, DRAWS).into_iter().chain([0.01; 499]).collect();
        assert_misses(&by_rank(&grown), &frozen, "a law that knows nothing of the inserts");
    }

    #[test]
    fn uniform_is_even() {
        let even = |n: u64, draws: u64| vec![draws as f64 / n as f64; n as usize];
        for sizes in [vec![RECORDS], growing()] {
            let drawn = counts(Distribution::Uniform, &sizes);
            assert_fits(&drawn, &expected(&sizes, even), "uniform");
            let tilted = expected(&sizes, |n, draws| zipf_expects(n, 0.1, draws));
            assert_misses(&drawn, &tilted, "theta 0.1");
        }
    }

    #[test]
    fn latest_is_zipfs_law_from_the_newest() {
        for sizes in [vec![RECORDS], vec![3 * RECORDS], growing()] {
            let drawn = counts(LATEST, &sizes);
            assert_fits(&drawn, &expected(&sizes, latest(0.99)), "latest");
            assert_misses(&drawn, &expected(&sizes, latest(0.97)), "theta 0.97");
        }
        let mut behind = latest(0.99)(RECORDS - 1, DRAWS);
        behind.push(0.0);
        assert_misses(&counts(LATEST, &[RECORDS]), &behind, "a newest record that is one behind");
        let mut frozen = latest(0.99)(RECORDS, DRAWS);
        frozen.extend([0.01; 499]);
        assert_misses(&counts(LATEST, &growing()), &frozen, "a law that knows nothing of the inserts");
    }

    #[test]
    fn hotspot_has_its_two_levels() {
        let hot = RECORDS / 5;
        for sizes in [vec![RECORDS], growing()] {
            let law = expected(&sizes, hotspot(hot, 0.8));
            let drawn = counts(HOTSPOT, &sizes);
            assert_fits(&drawn, &law, "hotspot");
            let scattered = counts(SCATTERED, &sizes);
            assert_fits(&by_rank(&scattered), &law, "scattered hotspot");
            assert_misses(&scattered, &law, "the scattered one read in order");
            assert_misses(&drawn, &expected(&sizes, hotspot(hot, 0.78)), "78 % of the operations");
            assert_misses(&drawn, &expected(&sizes, hotspot(hot - 2, 0.8)), "two records fewer");
        }
    }

    #[test]
    fn hotspot_at_its_limits() {
        let mut rng = generator(1, 0, 0);
        let mut draw = |set, operations, records| {
            let keys = Keys::new(&Distribution::Hotspot { set, operations, scrambled: false }, records);
            (0..1_000).map(|_| keys.record(records, &mut rng)).collect::<Vec<_>>()
        };
        assert!(draw(1.0, 0.0, 10).iter().all(|record| *record < 10), "all hot, though none may be drawn");
        assert!(draw(1e-9, 1.0, 10).iter().all(|record| *record == 0), "at least one record is hot");
        assert!(draw(0.2, 0.0, 10).iter().all(|record| (2..10).contains(record)));
        assert!(draw(0.5, 0.5, 1).iter().all(|record| *record == 0));
    }

    #[test]
    fn sequential_walks_round_and_takes_inserts_in() {
        let keys = Keys::new(&Distribution::Sequential, 4);
        let mut rng = generator(1, 0, 0);
        let walk: Vec<_> = [4, 4, 4, 4, 4, 4, 5, 5, 5, 5].map(|n| keys.record(n, &mut rng)).into();
        assert_eq!(walk, [0, 1, 2, 3, 0, 1, 2, 3, 4, 0]);
        assert_eq!(keys.clone().record(5, &mut rng), 1, "clones share the walk");
        let single = Keys::new(&Distribution::Sequential, 1);
        assert_eq!([1, 1, 2, 2].map(|n| single.record(n, &mut rng)), [0, 0, 0, 1]);
    }

    /// Workers that walk together touch every record equally often.
    #[test]
    fn workers_share_the_walk() {
        let keys = Keys::new(&Distribution::Sequential, 100);
        let walks: Vec<u64> = std::thread::scope(|scope| {
            let walk = |worker| {
                let mut rng = generator(1, 0, worker);
                let keys = &keys;
                scope.spawn(move || (0..2_500).map(|_| keys.record(100, &mut rng)).collect::<Vec<_>>())
            };
            let workers: Vec<_> = (0..4).map(walk).collect();
            workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
        });
        let mut counts = [0; 100];
        walks.iter().for_each(|record| counts[*record as usize] += 1);
        assert_eq!(counts, [100; 100]);
    }

    #[test]
    fn a_single_record_suffices() {
        let mut rng = generator(1, 0, 0);
        for distribution in
            [ZIPFIAN, STRAIGHT, LATEST, HOTSPOT, SCATTERED, Distribution::Uniform, Distribution::Sequential]
        {
            let keys = Keys::new(&distribution, 1);
            assert!((0..100).all(|_| keys.record(1, &mut rng) == 0), "{distribution:?}");
            assert!((0..100).all(|_| keys.record(2, &mut rng) < 2), "{distribution:?}");
        }
    }
}

//! What is asked: workloads as data, the names of records and their values, and each worker's own sequence of
//! operations.
//!
//! [`spec`] describes a workload; a [`Chooser`] made of it draws operations, with [`distribution`] for the
//! records and [`sizes`] for the values, both upon Zipf's law in [`zipf`]; [`names`] turns records into keys
//! and [`record`] makes values that prove what they are. Nothing here does I/O but the reading of a
//! workload's file.
//!
//! Invariants: a worker's operations depend on nothing but the seed, its number, the phase and how many
//! records exist (sequential keys aside: all workers share one walk); record names are distinct.

pub(crate) mod distribution;
pub(crate) mod names;
pub(crate) mod record;
pub(crate) mod sizes;
pub(crate) mod spec;
pub(crate) mod zipf;

#[cfg(test)]
mod chi_square;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

use crate::workload::distribution::Keys;
use crate::workload::sizes::Sizes;
use crate::workload::spec::{RowLaw, Spec};

/// The 64-bit finaliser of MurmurHash3 in Stafford's variant 13, as in SplitMix64: a bijection of the 64-bit
/// numbers.
pub(crate) const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Undoes [`mix`]: the proof that it is one-to-one.
#[cfg(test)]
pub(crate) const fn unmix(mut x: u64) -> u64 {
    x ^= x >> 31 ^ x >> 62;
    x = x.wrapping_mul(inverse(0x94d0_49bb_1331_11eb));
    x ^= x >> 27 ^ x >> 54;
    x = x.wrapping_mul(inverse(0xbf58_476d_1ce4_e5b9));
    x ^= x >> 30 ^ x >> 60;
    x.wrapping_sub(0x9e37_79b9_7f4a_7c15)
}

/// What an odd number must be multiplied with to give 1 modulo 2^64: Newton's iteration, each step of which
/// doubles the three low bits that every odd number has right as its own inverse.
#[cfg(test)]
const fn inverse(odd: u64) -> u64 {
    let mut inverse = odd;
    let mut bits = 3;
    while bits < u64::BITS {
        inverse = inverse.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(inverse)));
        bits *= 2;
    }
    inverse
}

/// A generator for one worker: streams of distinct (seed, phase, worker) do not run in step.
pub(crate) fn generator(seed: u64, phase: u32, worker: u32) -> Pcg64Mcg {
    Pcg64Mcg::seed_from_u64(mix(mix(seed) ^ (u64::from(phase) << 32 | u64::from(worker))))
}

/// One operation, by record numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    /// Read the record.
    Read(u64),
    /// Overwrite the record's whole value.
    Update(u64),
    /// Add a record; the caller gives it its number.
    Insert,
    /// Read so many rows in key order, from this record on.
    Scan {
        /// Where it begins.
        from: u64,
        /// Rows, at least 1.
        rows: u32,
    },
    /// Read the record, then overwrite its whole value.
    ReadModifyWrite(u64),
    /// Read so many records in one request; [`Chooser::records`] draws them.
    MultiGet(u32),
    /// Overwrite so many records in one request; [`Chooser::records`] draws them.
    Batch(u32),
}

/// Draws that [`Chooser::records`] spends on finding a record that it does not have yet.
const DISTINCT_TRIES: u32 = 16;

/// The rule by which workers draw their operations; shared by all.
#[derive(Debug, Clone)]
pub(crate) struct Chooser {
    /// For each kind that the mix has, the sum of its share and all before it; the last is above every draw.
    thresholds: Vec<(f64, Kind)>,
    keys: Keys,
    sizes: Sizes,
    rows: u32,
    rows_vary: bool,
    multi_get: u32,
    batch: u32,
}

/// A kind of operation, yet without records.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Read,
    Update,
    Insert,
    Scan,
    ReadModifyWrite,
    MultiGet,
    Batch,
}

impl Chooser {
    /// A valid `spec` over `records` records (at least 1) that exist from the start.
    pub(crate) fn new(spec: &Spec, records: u64) -> Self {
        let mix = &spec.mix;
        let mut sum = 0.0;
        let mut thresholds = Vec::new();
        for (share, kind) in [
            (mix.read, Kind::Read),
            (mix.update, Kind::Update),
            (mix.insert, Kind::Insert),
            (mix.scan, Kind::Scan),
            (mix.read_modify_write, Kind::ReadModifyWrite),
            (mix.multi_get, Kind::MultiGet),
            (mix.batch, Kind::Batch),
        ] {
            if share > 0.0 {
                sum += share;
                thresholds.push((sum, kind));
            }
        }
        // The shares may add up to a hair less than 1, the draws do not know.
        thresholds.last_mut().expect("a valid mix has a share").0 = f64::INFINITY;
        Chooser {
            thresholds,
            keys: Keys::new(&spec.keys.distribution, records),
            sizes: Sizes::new(&spec.values.size),
            rows: spec.scan.rows,
            rows_vary: spec.scan.distribution == RowLaw::Uniform,
            multi_get: spec.multi_get.records,
            batch: spec.batch.records,
        }
    }

    /// The next operation, where `n` records exist now (at least as many as from the start).
    pub(crate) fn next(&self, rng: &mut Pcg64Mcg, n: u64) -> Op {
        let drawn: f64 = rng.random();
        let below = |(threshold, _): &&(f64, Kind)| drawn < *threshold;
        let (_, kind) = self.thresholds.iter().find(below).expect("the last threshold is above every draw");
        match kind {
            Kind::Read => Op::Read(self.keys.record(n, rng)),
            Kind::Update => Op::Update(self.keys.record(n, rng)),
            Kind::Insert => Op::Insert,
            Kind::Scan => {
                let from = self.keys.record(n, rng);
                Op::Scan {
                    from,
                    rows: if self.rows_vary { rng.random_range(1..=self.rows) } else { self.rows },
                }
            }
            Kind::ReadModifyWrite => Op::ReadModifyWrite(self.keys.record(n, rng)),
            Kind::MultiGet => Op::MultiGet(self.multi_get),
            Kind::Batch => Op::Batch(self.batch),
        }
    }

    /// Fills `records` with `count` different records (all `n` if there are fewer), drawn by the same law as
    /// single ones. What is drawn twice is drawn again; where a law keeps to so few records that this does
    /// not help, the next record by number that is not there yet is taken.
    pub(crate) fn records(&self, rng: &mut Pcg64Mcg, n: u64, count: u32, records: &mut Vec<u64>) {
        records.clear();
        for _ in 0..u64::from(count).min(n) {
            let mut record = self.keys.record(n, rng);
            for _ in 0..DISTINCT_TRIES {
                // A linear look at a few thousand numbers at most: less than making as many values takes.
                if !records.contains(&record) {
                    break;
                }
                record = self.keys.record(n, rng);
            }
            while records.contains(&record) {
                record = if record + 1 < n { record + 1 } else { 0 };
            }
            records.push(record);
        }
    }

    /// Draws the size of the next value, in bytes.
    pub(crate) fn value_bytes(&self, rng: &mut Pcg64Mcg) -> usize {
        self.sizes.bytes(rng)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::chi_square::{assert_fits, assert_misses};
    use std::collections::BTreeSet;

    fn spec(toml: &str) -> Spec {
        Spec::parse(toml, "test").unwrap()
    }

    #[test]
    fn mixing_can_be_undone() {
        for x in (0..10_000).chain((0..64).map(|bit| 1 << bit)).chain([u64::MAX]) {
            assert_eq!((unmix(mix(x)), mix(unmix(x))), (x, x));
        }
    }

    /// How often each kind of operation comes, in the order of the shares.
    fn kinds(chooser: &Chooser, draws: u64) -> [u64; 7] {
        let mut rng = generator(1, 0, 0);
        let mut counts = [0; 7];
        for _ in 0..draws {
            let kind = match chooser.next(&mut rng, 1_000) {
                Op::Read(_) => 0,
                Op::Update(_) => 1,
                Op::Insert => 2,
                Op::Scan { .. } => 3,
                Op::ReadModifyWrite(_) => 4,
                Op::MultiGet(_) => 5,
                Op::Batch(_) => 6,
            };
            counts[kind] += 1;
        }
        counts
    }

    #[test]
    fn mixes_are_what_they_say() {
        let example = spec(include_str!("../../workloads/example.toml"));
        for spec in Spec::built_in().unwrap().into_iter().chain([example]) {
            let draws = 1_000_000;
            let counts = kinds(&Chooser::new(&spec, 1_000), draws);
            let mut fitting = (Vec::new(), Vec::new());
            for ((name, share), count) in spec.mix.shares().into_iter().zip(counts) {
                if share == 0.0 || share == 1.0 {
                    assert_eq!(count as f64, share * draws as f64, "{spec}: {name}");
                } else {
                    fitting.0.push(count);
                    fitting.1.push(share * draws as f64);
                }
            }
            if let [first, second, ..] = fitting.1[..] {
                assert_fits(&fitting.0, &fitting.1, &spec.title);
                fitting.1[0] = first - 0.01 * draws as f64;
                fitting.1[1] = second + 0.01 * draws as f64;
                assert_misses(&fitting.0, &fitting.1, "one percent from one kind to the next");
            }
        }
    }

    #[test]
    fn scans_are_as_long_as_they_say() {
        let rows = |toml: &str| {
            let chooser = Chooser::new(&spec(toml), 1_000);
            let mut rng = generator(1, 0, 0);
            let mut counts = vec![0; 101];
            for _ in 0..100_000 {
                match chooser.next(&mut rng, 1_000) {
                    Op::Scan { from, rows } if from < 1_000 => counts[rows as usize] += 1,
                    other => panic!("{other:?}"),
                }
            }
            counts
        };
        let even = rows("mix.scan = 1\nscan.rows = 100");
        assert_eq!(even[0], 0);
        assert_fits(&even[1..], &[1_000.0; 100], "rows");
        let fixed = rows("mix.scan = 1\nscan = { rows = 100, distribution = 'fixed' }");
        assert_eq!((fixed[100], fixed[..100].iter().sum::<u64>()), (100_000, 0));
    }

    #[test]
    fn groups_have_different_records_and_all_of_them() {
        for (keys, count) in [
            ("distribution = 'uniform'", 100),
            ("theta = 0.99", 100),
            ("theta = 10", 100),
            ("distribution = 'latest'\ntheta = 10", 100),
            ("distribution = 'hotspot'\nset = 0.001\noperations = 1", 100),
            ("distribution = 'sequential'", 1_000),
            ("theta = 0.99", 1_000),
        ] {
            let spec = spec(&format!("mix.batch = 1\nbatch.records = {count}\n[keys]\n{keys}"));
            let chooser = Chooser::new(&spec, 400);
            let mut rng = generator(1, 0, 0);
            assert_eq!(chooser.next(&mut rng, 400), Op::Batch(count));
            let mut records = vec![7; 3];
            for n in [400, 500] {
                chooser.records(&mut rng, n, count, &mut records);
                let distinct: BTreeSet<_> = records.iter().copied().collect();
                assert_eq!(distinct.len() as u64, u64::from(count).min(n), "{keys}");
                assert_eq!(distinct.len(), records.len(), "{keys}");
                assert!(records.iter().all(|record| *record < n), "{keys}");
            }
        }
    }

    /// Groups prefer what single operations prefer: the first of each follows the law itself.
    #[test]
    fn groups_follow_the_law() {
        let spec = spec("mix.multi_get = 1\nkeys.distribution = 'uniform'");
        let chooser = Chooser::new(&spec, 50);
        let mut rng = generator(2, 0, 0);
        let (mut first, mut all, mut records) = (vec![0; 50], vec![0; 50], Vec::new());
        for _ in 0..20_000 {
            chooser.records(&mut rng, 50, 10, &mut records);
            first[records[0] as usize] += 1;
            records.iter().for_each(|record| all[*record as usize] += 1);
        }
        assert_fits(&first, &[400.0; 50], "first records");
        // Drawn without replacement: less varied than independent draws, so only the upper limit tells.
        assert!(chi_square::deviate(&all, &[4_000.0; 50]) < 5.0);
    }

    #[test]
    fn workers_repeat_themselves_but_not_each_other() {
        let spec = spec(include_str!("../../workloads/example.toml"));
        let chooser = Chooser::new(&spec, 1_000_000);
        let ops = |seed, phase, worker| {
            let mut rng = generator(seed, phase, worker);
            let op = |_| (chooser.next(&mut rng, 1_000_100), chooser.value_bytes(&mut rng));
            (0..100).map(op).collect::<Vec<_>>()
        };
        assert_eq!(ops(1, 0, 0), ops(1, 0, 0));
        for other in [ops(2, 0, 0), ops(1, 1, 0), ops(1, 0, 1)] {
            assert_ne!(ops(1, 0, 0), other);
        }
    }
}

//! What is asked: YCSB's core mixes as data, the names of records, and each worker's own sequence of operations.
//!
//! Source of the mixes: B. F. Cooper et al., "Benchmarking cloud serving systems with YCSB", SoCC 2010. `w` is not
//! YCSB's: updates only, for the figures that are about writing.
//!
//! Invariants: a worker's operations depend on nothing but the seed, its number and the phase; record names are
//! distinct.

pub(crate) mod record;
pub(crate) mod zipf;

use std::fmt;

use clap::ValueEnum;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use serde::Serialize;

use crate::workload::zipf::{Scramble, Zipf};

/// A mix of operations over records picked by Zipf's law.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Workload {
    /// Half reads, half updates ("update heavy").
    A,
    /// 95 % reads, 5 % updates ("read mostly").
    B,
    /// Reads only.
    C,
    /// Updates only (not YCSB's: measures writing by itself).
    W,
}

impl Workload {
    /// The share of reads, in percent; the rest are updates.
    pub(crate) const fn read_percent(self) -> u32 {
        match self {
            Workload::A => 50,
            Workload::B => 95,
            Workload::C => 100,
            Workload::W => 0,
        }
    }

    /// The share of updates, 0 to 1.
    pub(crate) fn update_share(self) -> f64 {
        f64::from(100 - self.read_percent()) / 100.0
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reads = self.read_percent();
        match self {
            Workload::A => write!(f, "YCSB A ({reads}/{})", 100 - reads),
            Workload::B => write!(f, "YCSB B ({reads}/{})", 100 - reads),
            Workload::C => write!(f, "YCSB C (reads only)"),
            Workload::W => write!(f, "updates only"),
        }
    }
}

/// Bytes of every record's name.
pub(crate) const KEY_BYTES: usize = 24;

/// The name of a record: "user" and the 20 digits of its mixed number, as in YCSB, whose inserts do not come in key
/// order either. The mixing is one-to-one, so names are distinct.
pub(crate) fn key(record: u64) -> [u8; KEY_BYTES] {
    let mut name = *b"user00000000000000000000";
    let mut rest = mix(record);
    for digit in name[4..].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    name
}

/// The 64-bit finaliser of MurmurHash3 in Stafford's variant 13, as in SplitMix64: a bijection of the 64-bit numbers.
pub(crate) const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A generator for one worker: streams of distinct (seed, phase, worker) do not run in step.
pub(crate) fn generator(seed: u64, phase: u32, worker: u32) -> Pcg64Mcg {
    Pcg64Mcg::seed_from_u64(mix(mix(seed) ^ (u64::from(phase) << 32 | u64::from(worker))))
}

/// One operation, by record number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    /// Read the record.
    Read(u64),
    /// Overwrite the record's whole value.
    Update(u64),
}

/// The rule by which workers draw their operations; shared by all, it holds no state.
#[derive(Debug, Clone)]
pub(crate) struct Chooser {
    read_percent: u32,
    zipf: Zipf,
    scramble: Scramble,
}

impl Chooser {
    /// `workload` over `records` records (at least 1) with Zipf exponent `theta`.
    pub(crate) fn new(workload: Workload, records: u64, theta: f64) -> Self {
        Chooser {
            read_percent: workload.read_percent(),
            zipf: Zipf::new(records, theta),
            scramble: Scramble::new(records),
        }
    }

    /// The next operation.
    pub(crate) fn next(&self, rng: &mut Pcg64Mcg) -> Op {
        let read = rng.random_range(0..100) < self.read_percent;
        let record = self.scramble.record(self.zipf.rank(rng));
        if read { Op::Read(record) } else { Op::Update(record) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_look_like_ycsb_and_differ() {
        assert_eq!(&key(0), b"user16294208416658607535");
        let names: BTreeSet<_> = (0..10_000).map(key).collect();
        assert_eq!(names.len(), 10_000);
        assert!(
            names.iter().all(|name| name.starts_with(b"user") && name[4..].iter().all(u8::is_ascii_digit))
        );
    }

    #[test]
    fn mixes_are_what_they_say() {
        for (workload, reads) in
            [(Workload::A, 50.0), (Workload::B, 95.0), (Workload::C, 100.0), (Workload::W, 0.0)]
        {
            let chooser = Chooser::new(workload, 1_000, 0.99);
            let mut rng = generator(1, 0, 0);
            let draws = 100_000;
            let seen = (0..draws).filter(|_| matches!(chooser.next(&mut rng), Op::Read(_))).count();
            let percent = seen as f64 * 100.0 / f64::from(draws);
            // One percent is more than six standard deviations of 100,000 draws.
            assert!((percent - reads).abs() < 1.0, "{workload}: {percent} % reads");
        }
    }

    #[test]
    fn workers_repeat_themselves_but_not_each_other() {
        let chooser = Chooser::new(Workload::A, 1_000_000, 0.5);
        let ops = |seed, phase, worker| {
            let mut rng = generator(seed, phase, worker);
            (0..100).map(|_| chooser.next(&mut rng)).collect::<Vec<_>>()
        };
        assert_eq!(ops(1, 0, 0), ops(1, 0, 0));
        for other in [ops(2, 0, 0), ops(1, 1, 0), ops(1, 0, 1)] {
            assert_ne!(ops(1, 0, 0), other);
        }
    }
}

//! What is replayed: the keys of a store and the updates to them, made here or recorded elsewhere.
//!
//! A recorded trace is text, one update a line: the key, a blank, and the bytes of the record. A key is any word.
//! Empty lines and lines that begin with `#` say nothing.
//!
//! ```text
//! # key bytes
//! user4711 1024
//! user0042 980
//! user4711 1031
//! ```
//!
//! The store is first loaded with every key of the trace, at the size of its first update.

use std::collections::HashMap;
use std::io::BufRead;

use anyhow::{Context, bail};
use rand::seq::SliceRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

/// One update.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Update {
    /// Its key, by number.
    pub(crate) key: u32,
    /// Bytes of the record.
    pub(crate) bytes: u32,
}

/// What a key is loaded with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FirstWrite {
    /// Bytes of the record.
    pub(crate) bytes: u32,
    /// Which update overwrites it; `usize::MAX`: none.
    pub(crate) next: usize,
}

/// Keys and updates.
#[derive(Debug, Clone)]
pub(crate) struct Trace {
    /// The keys, in the order in which they are loaded.
    pub(crate) keys: Vec<FirstWrite>,
    /// In order.
    pub(crate) updates: Vec<Update>,
    /// Most bytes that are alive at any time.
    pub(crate) live_bytes_max: u64,
    /// Bytes of an update, on average.
    pub(crate) update_bytes_mean: u64,
    /// By update: which one overwrites it; `u32::MAX`: none.
    next: Vec<u32>,
    /// By key: how many updates it gets.
    counts: Vec<u32>,
}

/// How keys are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Choice {
    /// All alike.
    Uniform,
    /// The key of rank r with a weight of r^−θ.
    Zipf {
        /// θ.
        theta: f64,
    },
}

/// A load to be made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// Keys of the store.
    pub(crate) keys: usize,
    /// Updates.
    pub(crate) updates: usize,
    /// How keys are chosen.
    pub(crate) choice: Choice,
    /// Bytes of a record: the same for all, or from this to 64 times this, each doubling alike.
    pub(crate) bytes: u32,
    /// Whether records differ in size.
    pub(crate) varied: bool,
    /// Keys among the 1,000 most popular that are replaced by others in the time of one overwrite of the store.
    pub(crate) churn: usize,
    /// Decides everything that is left to chance.
    pub(crate) seed: u64,
}

impl Load {
    /// Makes the trace.
    pub(crate) fn make(&self) -> Trace {
        let mut rng = Pcg64Mcg::seed_from_u64(self.seed);
        let mut by_rank: Vec<u32> = (0..self.keys as u32).collect();
        by_rank.shuffle(&mut rng);
        let size = |rng: &mut Pcg64Mcg| match self.varied {
            true => (f64::from(self.bytes) * rng.random_range(0.0..6.0f64).exp2()) as u32,
            false => self.bytes,
        };
        let sizes: Vec<u32> = (0..self.keys).map(|_| size(&mut rng)).collect();
        let cumulated = self.cumulated();
        let updates = (0..self.updates)
            .map(|at| {
                if self.churn > 0 && at % (self.keys / self.churn).max(1) == 0 {
                    let popular = rng.random_range(0..self.keys.min(1_000));
                    by_rank.swap(popular, rng.random_range(0..self.keys));
                }
                let key = by_rank[self.rank(&cumulated, &mut rng)];
                Update { key, bytes: sizes[key as usize] }
            })
            .collect();
        Trace::new(sizes, updates)
    }

    fn cumulated(&self) -> Vec<f64> {
        let Choice::Zipf { theta } = self.choice else { return Vec::new() };
        let mut sum = 0.0;
        let weights = (1..=self.keys).map(|rank| (rank as f64).powf(-theta));
        weights
            .map(|weight| {
                sum += weight;
                sum
            })
            .collect()
    }

    fn rank(&self, cumulated: &[f64], rng: &mut impl Rng) -> usize {
        match cumulated.last() {
            None => rng.random_range(0..self.keys),
            Some(sum) => {
                let drawn = rng.random_range(0.0..*sum);
                cumulated.partition_point(|upto| *upto <= drawn).min(self.keys - 1)
            }
        }
    }
}

impl Trace {
    fn new(sizes: Vec<u32>, updates: Vec<Update>) -> Self {
        let mut keys: Vec<FirstWrite> =
            sizes.iter().map(|bytes| FirstWrite { bytes: *bytes, next: usize::MAX }).collect();
        let mut next = vec![u32::MAX; updates.len()];
        let mut counts = vec![0; keys.len()];
        for (at, update) in updates.iter().enumerate().rev() {
            let first = &mut keys[update.key as usize];
            next[at] = u32::try_from(first.next).unwrap_or(u32::MAX);
            first.next = at;
            counts[update.key as usize] += 1;
        }
        let mut live: u64 = sizes.iter().map(|bytes| u64::from(*bytes)).sum();
        let mut live_bytes_max = live;
        let mut now = sizes;
        for update in &updates {
            let old = std::mem::replace(&mut now[update.key as usize], update.bytes);
            live = live + u64::from(update.bytes) - u64::from(old);
            live_bytes_max = live_bytes_max.max(live);
        }
        let sum: u64 = updates.iter().map(|update| u64::from(update.bytes)).sum();
        let update_bytes_mean = (sum / updates.len().max(1) as u64).max(1);
        Self { keys, updates, live_bytes_max, update_bytes_mean, next, counts }
    }

    /// Which update overwrites what update `at` wrote.
    pub(crate) fn next_of(&self, at: usize) -> usize {
        let next = self.next[at];
        if next == u32::MAX { usize::MAX } else { next as usize }
    }

    /// Bytes of updates between two of this key, over the whole trace.
    pub(crate) fn mean_interval_bytes(&self, key: u32) -> u64 {
        let updates = self.updates.len() as u64 * self.update_bytes_mean;
        updates / u64::from(self.counts[key as usize].max(1))
    }

    /// Reads a recorded trace.
    ///
    /// # Errors
    /// If it cannot be read, or a line is not an update; which line is said.
    pub(crate) fn read(text: impl BufRead) -> anyhow::Result<Self> {
        let mut numbers: HashMap<String, u32> = HashMap::new();
        let mut sizes = Vec::new();
        let mut updates = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.with_context(|| format!("line {}", number + 1))?;
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut words = line.split_ascii_whitespace();
            let (Some(key), Some(bytes), None) = (words.next(), words.next(), words.next()) else {
                bail!("line {}: not a key and a number of bytes", number + 1);
            };
            let bytes: u32 =
                bytes.parse().with_context(|| format!("line {}: bytes {bytes:?}", number + 1))?;
            if bytes == 0 {
                bail!("line {}: a record has bytes", number + 1);
            }
            let key = *numbers.entry(key.to_owned()).or_insert_with(|| {
                sizes.push(bytes);
                sizes.len() as u32 - 1
            });
            updates.push(Update { key, bytes });
        }
        if updates.is_empty() {
            bail!("no update in it");
        }
        Ok(Self::new(sizes, updates))
    }

    /// Bytes of the largest record.
    pub(crate) fn record_bytes_max(&self) -> u32 {
        let loaded = self.keys.iter().map(|key| key.bytes);
        self.updates.iter().map(|update| update.bytes).chain(loaded).max().unwrap_or(0)
    }
}

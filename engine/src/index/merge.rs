//! Merging what recovery finds into an index, whatever the order of the keys.
//!
//! Records come in the order of the log, their keys at random: each alone would cost several cache misses. So they are
//! gathered, sorted by key and merged a batch at a time, and neighbours find the same page warm.
//!
//! Invariants: of a key's records the one with the highest version wins, of those with the same version the one that came
//! last (rule 1 of recovery; they say the same). A deleted key stays in the index as a tombstone until the merge ends, so that an older
//! record that is found later does not bring it back (rule 4).

use std::ops::Bound;

use super::Index;
use super::builder::IndexBuilder;
use super::location::{Located, Place};
use super::range::KeyCursor;

/// Where a deleted key points during the merge: no record is without a length and yet has an offset.
const TOMBSTONE: Place = Place { chunk: 0, offset: 1, length: 0 };

/// Bytes of a batch: a share of the index, between these limits. Many groups may be merged at once.
const BATCH_SHARE: u64 = 8;
const BATCH_BYTES_MIN: u64 = 64 << 10;
const BATCH_BYTES_MAX: u64 = 32 << 20;

/// Keys that are swept for tombstones at a time.
const SWEEP_KEYS: usize = 4096;

/// An index in the making.
#[derive(Debug, Default)]
pub struct IndexMerge {
    index: Index,
    /// Keys of the batch, one after the other.
    keys: Vec<u8>,
    batch: Vec<Found>,
    deletions: bool,
}

#[derive(Debug, Clone, Copy)]
struct Found {
    key_start: usize,
    key_bytes: u32,
    located: Located,
}

/// What a batch is sorted by first: the key's first bytes, and which record it is.
type Order = (u64, u32);

fn head(key: &[u8]) -> u64 {
    let mut head = [0; 8];
    let bytes = key.len().min(8);
    head[..bytes].copy_from_slice(&key[..bytes]);
    u64::from_be_bytes(head)
}

impl IndexMerge {
    /// A record that put the key.
    pub fn put(&mut self, key: &[u8], located: Located) {
        self.found(key, located);
    }

    /// A record that deleted the key.
    pub fn delete(&mut self, key: &[u8], version: u64) {
        self.deletions = true;
        self.found(key, Located::new(version, TOMBSTONE));
    }

    fn found(&mut self, key: &[u8], located: Located) {
        self.batch.push(Found { key_start: self.keys.len(), key_bytes: key.len() as u32, located });
        self.keys.extend_from_slice(key);
        let each = (size_of::<Found>() + size_of::<Order>()) as u64;
        let bytes = self.batch.len() as u64 * each + self.keys.len() as u64;
        let limit = (self.index.memory_bytes() / BATCH_SHARE).clamp(BATCH_BYTES_MIN, BATCH_BYTES_MAX);
        if bytes >= limit {
            self.merge_batch();
        }
    }

    fn merge_batch(&mut self) {
        let Self { index, keys, batch, .. } = self;
        let key = |at: u32| {
            let found = &batch[at as usize];
            &keys[found.key_start..found.key_start + found.key_bytes as usize]
        };
        let mut order: Vec<Order> = (0..batch.len() as u32).map(|at| (head(key(at)), at)).collect();
        order.sort_unstable_by(|&(a_head, a), &(b_head, b)| {
            let version = |at: u32| batch[at as usize].located.version;
            a_head
                .cmp(&b_head)
                .then_with(|| key(a).cmp(key(b)))
                .then_with(|| version(a).cmp(&version(b)))
                .then(a.cmp(&b))
        });
        let winners = order.iter().enumerate().filter_map(|(rank, &(_, at))| {
            let beaten = order.get(rank + 1).is_some_and(|&(_, next)| key(next) == key(at));
            (!beaten).then(|| (key(at), batch[at as usize].located))
        });
        if index.is_empty() {
            let mut builder = IndexBuilder::default();
            winners.for_each(|(key, located)| builder.push(key, located));
            *index = builder.finish();
        } else {
            for (key, located) in winners {
                if index.get(key).is_none_or(|known| known.version <= located.version) {
                    index.insert(key, located);
                }
            }
        }
        self.keys.clear();
        self.batch.clear();
    }

    /// The index of what is live.
    pub fn finish(self) -> Index {
        let dead = self.deletions;
        self.finish_without(dead, |located| located.place == TOMBSTONE)
    }

    /// The index of what is live and has no higher version than this. A key of a higher one is missing.
    pub fn finish_up_to(self, version: u64) -> Index {
        self.finish_without(true, |located| located.place == TOMBSTONE || located.version > version)
    }

    fn finish_without(mut self, some: bool, dead: impl Fn(Located) -> bool) -> Index {
        self.merge_batch();
        if some {
            self.sweep(dead);
        }
        self.index
    }

    fn sweep(&mut self, is_dead: impl Fn(Located) -> bool) {
        let mut cursor = KeyCursor::new(Bound::Unbounded, Bound::Unbounded);
        let mut more = true;
        while more {
            let mut dead = Vec::new();
            more = cursor.visit(&self.index, SWEEP_KEYS, |key, located| {
                if is_dead(located) {
                    dead.push(key.to_vec());
                }
            });
            for key in dead {
                self.index.remove(&key);
            }
        }
    }
}

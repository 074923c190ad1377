//! The cache of payloads that left the tail or were read back, bounded in bytes.
//!
//! Keyed by (group slot, Raft index): within one run of the process that names one payload for ever, wherever its
//! record stands.

use std::hash::{BuildHasher, Hasher};

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::unsync::{Cache, DefaultLifecycle};

/// Which payload: group slot and Raft index.
pub(crate) type PayloadKey = (u32, u64);

/// What an entry costs beside its bytes: table slot, list links and the buffer's own header, in bytes.
const ENTRY_BYTES: u64 = 128;

/// A size by which the cache's tables are first laid out.
const PAYLOAD_BYTES_USUAL: u64 = 1024;

pub(crate) struct PayloadCache {
    /// `None` when the cache has no room at all.
    cache: Option<Cache<PayloadKey, Bytes, PayloadWeight, FixedHash>>,
    hits: u64,
}

impl PayloadCache {
    pub(crate) fn new(bytes: u64) -> Self {
        let cache = (bytes > 0).then(|| {
            let items = (bytes / (PAYLOAD_BYTES_USUAL + ENTRY_BYTES)).clamp(16, 1 << 20) as usize;
            Cache::with(items, bytes, PayloadWeight, FixedHash, DefaultLifecycle::default())
        });
        Self { cache, hits: 0 }
    }

    /// What `take` finds in the payload, if it is here. A hit is what was found: a payload may be here and not hold it.
    pub(crate) fn get<T>(&mut self, key: PayloadKey, take: impl FnOnce(&Bytes) -> Option<T>) -> Option<T> {
        let found = self.cache.as_ref().and_then(|cache| cache.get(&key)).and_then(take);
        self.hits += u64::from(found.is_some());
        found
    }

    pub(crate) fn insert(&mut self, key: PayloadKey, payload: Bytes) {
        if let Some(cache) = &mut self.cache {
            cache.insert(key, payload);
        }
    }

    pub(crate) fn remove(&mut self, key: PayloadKey) {
        if let Some(cache) = &mut self.cache {
            cache.remove(&key);
        }
    }

    pub(crate) fn hits(&self) -> u64 {
        self.hits
    }
}

#[derive(Clone)]
struct PayloadWeight;

impl Weighter<PayloadKey, Bytes> for PayloadWeight {
    fn weight(&self, _: &PayloadKey, payload: &Bytes) -> u64 {
        payload.len() as u64 + ENTRY_BYTES
    }
}

/// A hash without a random seed: a replay evicts what the first run evicted. Keys are not chosen by clients, so
/// nobody can aim at collisions.
#[derive(Clone, Copy)]
struct FixedHash;

impl BuildHasher for FixedHash {
    type Hasher = Mixer;

    fn build_hasher(&self) -> Mixer {
        Mixer(0)
    }
}

struct Mixer(u64);

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(23) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        // The table takes bits from both ends; multiplication alone leaves the low ones weak.
        let mixed = (self.0 ^ (self.0 >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        mixed ^ (mixed >> 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_within_its_bytes_and_counts() {
        let mut cache = PayloadCache::new(10_000);
        for index in 0..1000 {
            cache.insert((1, index), Bytes::from(vec![index as u8; 500]));
        }
        let mut holds = |index| cache.get((1, index), |payload| Some(payload.clone())).is_some();
        let kept: Vec<u64> = (0..1000).filter(|index| holds(*index)).collect();
        assert!(!kept.is_empty() && kept.len() as u64 * (500 + ENTRY_BYTES) <= 10_000, "{} kept", kept.len());
        assert_eq!(cache.hits(), kept.len() as u64);
        assert_eq!(cache.get((1, kept[0]), |_| None::<()>), None);
        assert_eq!(cache.hits(), kept.len() as u64, "what was not found in a payload is no hit");
        cache.remove((1, kept[0]));
        assert_eq!(cache.get((1, kept[0]), |_| Some(())), None);
    }

    #[test]
    fn without_room_it_keeps_nothing() {
        let mut cache = PayloadCache::new(0);
        cache.insert((1, 1), Bytes::from_static(b"x"));
        assert_eq!(cache.get((1, 1), |_| Some(())), None);
    }

    #[test]
    fn neighbouring_keys_spread_over_the_table() {
        let mut low = [0_u32; 64];
        for index in 0..6400_u64 {
            low[(FixedHash.hash_one((3_u32, index)) & 63) as usize] += 1;
        }
        assert!(low.iter().all(|count| (50..200).contains(count)), "{low:?}");
    }
}

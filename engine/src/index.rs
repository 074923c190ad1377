//! The index of one group: which record holds each live key, in key order.
//!
//! Invariant: an entry's version is the Raft index of the last applied entry that put the key; a deleted key has no
//! entry. Keys are applied in the order of the log, so the higher version wins by construction; recovery applies in
//! the same order (rule 1).

use std::collections::BTreeMap;
use std::ops::Bound;

/// Where a record stands. The chunk's generation is the segment table's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) chunk: u32,
    /// Bytes from the start of the chunk to the record's header.
    pub(crate) offset: u32,
    /// Bytes of the record, header included; 0: not on the medium yet, its payload is in the tail.
    pub(crate) length: u32,
}

impl Place {
    pub(crate) const PENDING: Self = Self { chunk: 0, offset: 0, length: 0 };

    pub(crate) fn is_pending(&self) -> bool {
        self.length == 0
    }
}

/// What the index knows of a live key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Located {
    pub(crate) version: u64,
    pub(crate) place: Place,
}

#[derive(Debug, Default)]
pub(crate) struct Index {
    keys: BTreeMap<Box<[u8]>, Located>,
    key_bytes: u64,
}

impl Index {
    pub(crate) fn get(&self, key: &[u8]) -> Option<Located> {
        self.keys.get(key).copied()
    }

    /// Points the key at `located` and returns what it pointed at before.
    pub(crate) fn insert(&mut self, key: &[u8], located: Located) -> Option<Located> {
        if let Some(known) = self.keys.get_mut(key) {
            return Some(std::mem::replace(known, located));
        }
        self.key_bytes += key.len() as u64;
        self.keys.insert(key.into(), located);
        None
    }

    pub(crate) fn remove(&mut self, key: &[u8]) -> Option<Located> {
        let old = self.keys.remove(key)?;
        self.key_bytes -= key.len() as u64;
        Some(old)
    }

    /// The same version of the key stands at `place` now. Nothing happens if another version is live.
    pub(crate) fn repoint(&mut self, key: &[u8], version: u64, place: Place) {
        if let Some(known) = self.keys.get_mut(key)
            && known.version == version
        {
            known.place = place;
        }
    }

    /// Live keys between the bounds, ascending. Empty if the bounds cross.
    pub(crate) fn range<'a>(
        &'a self,
        start: Bound<&[u8]>,
        end: Bound<&[u8]>,
    ) -> impl Iterator<Item = (&'a [u8], Located)> + use<'a> {
        let crossed = match (start, end) {
            (Bound::Excluded(low), Bound::Excluded(high)) => low >= high,
            (Bound::Included(low) | Bound::Excluded(low), Bound::Included(high) | Bound::Excluded(high)) => {
                low > high
            }
            _ => false,
        };
        // `BTreeMap::range` panics on crossed bounds, and these come from clients.
        let range = (!crossed).then(|| self.keys.range::<[u8], _>((start, end)));
        range.into_iter().flatten().map(|(key, located)| (&key[..], *located))
    }

    /// Live keys.
    pub(crate) fn len(&self) -> u64 {
        self.keys.len() as u64
    }

    /// Memory it takes, in bytes: keys as they are, and the map's share per key (pointer, length, place and version
    /// in nodes that are three quarters full, and the allocator's header).
    pub(crate) fn memory_bytes(&self) -> u64 {
        let per_key = size_of::<(Box<[u8]>, Located)>() as u64 * 4 / 3 + 16;
        self.key_bytes + self.len() * per_key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(version: u64) -> Located {
        Located { version, place: Place { chunk: 1, offset: version as u32, length: 10 } }
    }

    #[test]
    fn keys_come_in_order_within_the_bounds() {
        let mut index = Index::default();
        for (version, key) in ["b", "a", "c", ""].iter().enumerate() {
            assert_eq!(index.insert(key.as_bytes(), at(version as u64)), None);
        }
        assert_eq!(index.insert(b"b", at(7)), Some(at(0)));
        let keys = |start, end| index.range(start, end).map(|(key, _)| key.to_vec()).collect::<Vec<_>>();
        assert_eq!(keys(Bound::Unbounded, Bound::Unbounded), [&b""[..], b"a", b"b", b"c"]);
        assert_eq!(keys(Bound::Included(b"a"), Bound::Excluded(b"c")), [b"a", b"b"]);
        assert_eq!(keys(Bound::Excluded(b"a"), Bound::Included(b"c")), [b"b", b"c"]);
        assert!(keys(Bound::Included(b"c"), Bound::Included(b"a")).is_empty());
        assert!(keys(Bound::Excluded(b"a"), Bound::Excluded(b"a")).is_empty());
        assert!(keys(Bound::Included(b"a"), Bound::Excluded(b"a")).is_empty());
        assert_eq!(index.len(), 4);
    }

    #[test]
    fn only_the_live_version_is_repointed() {
        let mut index = Index::default();
        index.insert(b"k", at(5));
        let place = Place { chunk: 9, offset: 0, length: 1 };
        index.repoint(b"k", 4, place);
        assert_eq!(index.get(b"k"), Some(at(5)));
        index.repoint(b"k", 5, place);
        assert_eq!(index.get(b"k"), Some(Located { version: 5, place }));
        assert!(index.memory_bytes() > 1);
        assert_eq!(index.remove(b"k").map(|located| located.version), Some(5));
        assert_eq!((index.get(b"k"), index.len()), (None, 0));
    }
}

//! Closed blocks in order of a small key, each operation in constant time.
//!
//! With the number of valid pages as the key the first block is the greedy victim; with the same key for all,
//! the block that was closed first.

/// Stands for "no block".
const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Link {
    key: u32,
    previous: u32,
    next: u32,
}

/// Blocks by key; among equal keys in the order in which they got it.
///
/// Invariant: no bucket below `lowest` holds a block.
#[derive(Debug, Clone)]
pub(crate) struct Buckets {
    /// By block.
    links: Vec<Link>,
    /// First and last block, by key.
    ends: Vec<(u32, u32)>,
    lowest: usize,
}

impl Buckets {
    /// For blocks `0..blocks`, none of them in, and keys `0..=key_max`.
    pub(crate) fn new(blocks: u32, key_max: u32) -> Self {
        let link = Link { key: NONE, previous: NONE, next: NONE };
        let buckets = key_max as usize + 1;
        Self { links: vec![link; blocks as usize], ends: vec![(NONE, NONE); buckets], lowest: buckets }
    }

    pub(crate) fn insert(&mut self, block: u32, key: u32) {
        let (first, last) = self.ends[key as usize];
        debug_assert_eq!(self.links[block as usize].key, NONE, "a block is in once");
        self.links[block as usize] = Link { key, previous: last, next: NONE };
        match last {
            NONE => self.ends[key as usize] = (block, block),
            last => {
                self.links[last as usize].next = block;
                self.ends[key as usize] = (first, block);
            }
        }
        self.lowest = self.lowest.min(key as usize);
    }

    pub(crate) fn remove(&mut self, block: u32) {
        let Link { key, previous, next } = self.links[block as usize];
        debug_assert_ne!(key, NONE, "only a block that is in can leave");
        self.links[block as usize] = Link { key: NONE, previous: NONE, next: NONE };
        match previous {
            NONE => self.ends[key as usize].0 = next,
            previous => self.links[previous as usize].next = next,
        }
        match next {
            NONE => self.ends[key as usize].1 = previous,
            next => self.links[next as usize].previous = previous,
        }
    }

    /// The first block of the lowest key. Constant time when amortized: keys fall one by one, so the lowest is
    /// sought upwards at most as far as it fell.
    pub(crate) fn first(&mut self) -> Option<u32> {
        let found =
            self.ends[self.lowest.min(self.ends.len())..].iter().position(|(first, _)| *first != NONE);
        self.lowest = found.map_or(self.ends.len(), |offset| self.lowest + offset);
        self.ends.get(self.lowest).map(|(first, _)| *first)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a plain list in which every block has the moment it got its key.
        #[test]
        fn the_first_is_the_oldest_of_the_lowest(steps in prop::collection::vec((0u32..12, 0u32..6), 1..200)) {
            let mut buckets = Buckets::new(12, 5);
            let mut model: Vec<(u32, u32)> = Vec::new();
            for (block, key) in steps {
                match model.iter().position(|(_, other)| *other == block) {
                    // Every third key takes the block out, the others give it a new key.
                    Some(at) => {
                        model.remove(at);
                        buckets.remove(block);
                        if key % 3 != 0 {
                            model.push((key, block));
                            buckets.insert(block, key);
                        }
                    }
                    None => {
                        model.push((key, block));
                        buckets.insert(block, key);
                    }
                }
                // `min_by_key` returns the first of equals, and the list is in the order of arrival.
                let expected = model.iter().min_by_key(|(key, _)| *key).map(|(_, block)| *block);
                prop_assert_eq!(buckets.first(), expected);
            }
        }
    }
}

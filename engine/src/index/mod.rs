//! The index of one group: which record holds each live key, in key order.
//!
//! A B+-tree of pages ([`node`], [`page`]) that store what neighbouring keys have in common once and give locations no more
//! bytes than they need: about 15 bytes beside a key's own (docs/decisions/0009).
//!
//! Invariants:
//! - An entry's version is the Raft index of the last applied entry that put the key; a deleted key has no entry. Keys are
//!   applied in the order of the log, so the higher version wins by construction; recovery applies by the same rule
//!   ([`IndexMerge`]).
//! - The memory it takes is known at any time, allocator included ([`Index::memory_bytes`]). The index itself refuses
//!   nothing, since apply cannot fail: the budget is kept where entries are appended ([`crate::Options::index_bytes_max`]).
//! - Looking up and updating allocate nothing (an update may, when it is the first of its page to need a wider location).

mod builder;
mod location;
mod memory;
mod merge;
mod node;
mod page;
mod range;
#[cfg(test)]
mod tests;

use std::ops::Bound;

pub use builder::IndexBuilder;
pub use location::{Located, Place};
pub use merge::IndexMerge;
pub use range::{KeyCursor, Range};

use node::{Inner, Node, Split};
use page::Page;

/// Keys in order, each with the version and the place of its record.
#[derive(Debug, Default)]
pub struct Index {
    root: Node,
    keys: u64,
    key_bytes: u64,
    memory_bytes: u64,
}

/// Memory that one more key may take at worst, in bytes: a page of its own and a separator as long as itself, both with
/// room to spare. Most keys take a small part of that.
pub fn key_bytes_max(key: &[u8]) -> u64 {
    3 * key.len() as u64 + 256
}

impl Index {
    /// Where the key's record stands.
    pub fn get(&self, key: &[u8]) -> Option<Located> {
        self.root.get(key)
    }

    /// Points the key at `located` and returns what it pointed at before.
    pub fn insert(&mut self, key: &[u8], located: Located) -> Option<Located> {
        self.update(key, |_| located)
    }

    /// Points the key at what `located` makes of what it points at now, which is returned.
    pub fn update(
        &mut self,
        key: &[u8],
        located: impl FnOnce(Option<Located>) -> Located,
    ) -> Option<Located> {
        let (old, split) = self.root.insert(key, located, &mut self.memory_bytes);
        if let Some(Split { separator, right }) = split {
            let left = std::mem::take(&mut self.root);
            let separators = Page::of(&separator, Located::NOTHING);
            let inner = Inner { separators, children: vec![left, right] };
            self.root = Node::Inner(Box::new(inner));
            self.memory_bytes += self.root.own_bytes();
        }
        if old.is_none() {
            self.keys += 1;
            self.key_bytes += key.len() as u64;
        }
        old
    }

    /// Takes the key out and returns what it pointed at.
    pub fn remove(&mut self, key: &[u8]) -> Option<Located> {
        let old = self.root.remove(key, &mut self.memory_bytes)?;
        while let Node::Inner(inner) = &mut self.root
            && inner.children.len() <= 1
        {
            let only = inner.children.pop().unwrap_or_default();
            // The child's room in its parent goes with the parent.
            self.memory_bytes -= self.root.own_bytes();
            self.root = only;
        }
        self.keys -= 1;
        self.key_bytes -= key.len() as u64;
        Some(old)
    }

    /// The same version of the key stands at `place` now. Returns the place before; nothing happens if another version is
    /// live.
    pub fn repoint(&mut self, key: &[u8], version: u64, place: Place) -> Option<Place> {
        self.amend(key, |known| (known.version == version).then_some(place))
    }

    /// The record of this version was copied from one place to another. False, and nothing happens, if the key does not
    /// point at what was copied any more: then the copy is dead.
    pub fn relocate(&mut self, key: &[u8], version: u64, from: Place, to: Place) -> bool {
        self.amend(key, |known| ((known.version, known.place) == (version, from)).then_some(to)).is_some()
    }

    /// Returns the place before.
    fn amend(&mut self, key: &[u8], place: impl FnOnce(Located) -> Option<Place>) -> Option<Place> {
        let page = self.root.leaf_mut(key);
        let at = page.search(key).ok()?;
        let known = page.located(at);
        let place = place(known)?;
        self.memory_bytes -= page.memory_bytes();
        page.set_located(at, Located { place, ..known });
        self.memory_bytes += page.memory_bytes();
        Some(known.place)
    }

    /// Live keys between the bounds, ascending. Empty if the bounds cross.
    pub fn range<'a>(&'a self, start: Bound<&[u8]>, end: Bound<&'a [u8]>) -> Range<'a> {
        Range::new(&self.root, start, end)
    }

    /// Takes out the keys from `at` on, into an index of their own. Both are built anew.
    pub fn split_off(&mut self, at: &[u8]) -> Self {
        let part = |start, end| {
            let mut builder = IndexBuilder::default();
            let mut range = self.range(start, end);
            while let Some((key, located)) = range.next_key() {
                builder.push(key, located);
            }
            builder.finish()
        };
        let upper = part(Bound::Included(at), Bound::Unbounded);
        *self = part(Bound::Unbounded, Bound::Excluded(at));
        upper
    }

    /// Live keys.
    pub fn len(&self) -> u64 {
        self.keys
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.keys == 0
    }

    /// Bytes of all keys, as users count them.
    pub fn key_bytes(&self) -> u64 {
        self.key_bytes
    }

    /// Bytes of memory it takes: all its allocations, each as large as the allocator makes it.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }
}

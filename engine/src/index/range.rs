//! Reading an index in the order of its keys, at one moment ([`Range`]) or with writes in between ([`KeyCursor`]).

use std::ops::Bound;

use super::Index;
use super::location::Located;
use super::node::{Inner, Node};
use super::page::Page;

/// Live keys between two bounds, ascending. It lends each key until the next one is asked for, as keys are put
/// together from their parts.
#[derive(Debug)]
pub struct Range<'a> {
    /// Where the leaf hangs: inner nodes with the child that was taken, from the root down.
    path: Vec<(&'a Inner, usize)>,
    leaf: &'a Page,
    /// The next key in the leaf.
    at: usize,
    end: Bound<&'a [u8]>,
    /// The key lent last, which begins with its leaf's prefix.
    key: Vec<u8>,
}

impl<'a> Range<'a> {
    pub(super) fn new(root: &'a Node, start: Bound<&[u8]>, end: Bound<&'a [u8]>) -> Self {
        let mut path = Vec::new();
        let mut node = root;
        let leaf = loop {
            match node {
                Node::Leaf(page) => break page,
                Node::Inner(inner) => {
                    let at = match start {
                        Bound::Included(key) | Bound::Excluded(key) => inner.child_of(key),
                        Bound::Unbounded => 0,
                    };
                    path.push((&**inner, at));
                    node = &inner.children[at];
                }
            }
        };
        let at = match start {
            Bound::Unbounded => 0,
            Bound::Included(key) => leaf.search(key).unwrap_or_else(|at| at),
            Bound::Excluded(key) => leaf.search(key).map_or_else(|at| at, |at| at + 1),
        };
        Self { path, leaf, at, end, key: leaf.prefix().to_vec() }
    }

    /// The next key and where its record stands.
    pub fn next_key(&mut self) -> Option<(&[u8], Located)> {
        while self.at == self.leaf.len() {
            self.next_leaf()?;
        }
        let at = self.at;
        self.key.truncate(self.leaf.prefix().len());
        self.leaf.suffix_onto(at, &mut self.key);
        let within = match self.end {
            Bound::Unbounded => true,
            Bound::Included(end) => &self.key[..] <= end,
            Bound::Excluded(end) => &self.key[..] < end,
        };
        if !within {
            return None;
        }
        self.at += 1;
        Some((&self.key, self.leaf.located(at)))
    }

    fn next_leaf(&mut self) -> Option<()> {
        let up = self.path.iter().rposition(|(inner, at)| at + 1 < inner.children.len())?;
        self.path.truncate(up + 1);
        let (inner, at) = &mut self.path[up];
        *at += 1;
        let mut node = &inner.children[*at];
        while let Node::Inner(inner) = node {
            self.path.push((&**inner, 0));
            node = &inner.children[0];
        }
        let Node::Leaf(leaf) = node else { unreachable!("the way down ends at a leaf") };
        self.leaf = leaf;
        self.at = 0;
        self.key.clear();
        self.key.extend_from_slice(leaf.prefix());
        Some(())
    }
}

/// A place between keys that survives writes: a scan or a snapshot goes on from it after the index changed.
///
/// Every key that is there all the time is visited once. A key that comes or goes meanwhile may be visited or not, and
/// what is visited is what the index knows at that moment.
#[derive(Debug, Clone)]
pub struct KeyCursor {
    start: Bound<Vec<u8>>,
    end: Bound<Vec<u8>>,
}

impl KeyCursor {
    /// A cursor before the first key between the bounds.
    pub fn new(start: Bound<&[u8]>, end: Bound<&[u8]>) -> Self {
        Self { start: start.map(<[u8]>::to_vec), end: end.map(<[u8]>::to_vec) }
    }

    /// Visits the next keys of the index, at most `count_max`. False once there are no more.
    pub fn visit(&mut self, index: &Index, count_max: usize, mut visit: impl FnMut(&[u8], Located)) -> bool {
        let mut range =
            index.range(self.start.as_ref().map(Vec::as_slice), self.end.as_ref().map(Vec::as_slice));
        let mut count = 0;
        while count < count_max {
            let Some((key, located)) = range.next_key() else { break };
            visit(key, located);
            count += 1;
        }
        if count > 0 {
            self.start = Bound::Excluded(range.into_last_key());
        }
        count == count_max
    }
}

impl Range<'_> {
    /// The key lent last.
    fn into_last_key(self) -> Vec<u8> {
        self.key
    }
}

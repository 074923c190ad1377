//! Building an index from keys that come in order: page after page, then the nodes above them.

use super::Index;
use super::location::{Located, Widths};
use super::node::{Inner, Node};
use super::page::{self, HEAD_BYTES, PAGE_BYTES, Page, Run, SLOT_BYTES};

/// Bytes up to which pages are filled. The rest is left to inserts: a page allocates what it holds, not what it could hold.
const FILL_BYTES: usize = PAGE_BYTES / 4 * 3;

/// Builds an index from ascending keys, without searching.
#[derive(Debug, Default)]
pub struct IndexBuilder {
    filling: Filling,
    /// The last key, of all.
    last: Vec<u8>,
    leaves: Vec<Built>,
    keys: u64,
    key_bytes: u64,
    memory_bytes: u64,
}

/// A node, and a separator between the keys before it and its own.
#[derive(Debug)]
struct Built {
    separator: Vec<u8>,
    node: Node,
}

/// What the next page will hold.
#[derive(Debug, Default)]
struct Filling {
    run: Run,
    /// Bytes that all keys begin with.
    shared: usize,
    widths: Widths,
}

impl Filling {
    /// Takes the key in, unless the page would be too full.
    fn take(&mut self, key: &[u8], located: Located) -> bool {
        let shared = match self.run.first() {
            None => key.len(),
            Some(first) => page::common_bytes(&first[..self.shared], key),
        };
        let widths = self.widths.union(Widths::of(located));
        let count = self.run.len() + 1;
        let rests = (self.run.key_bytes() + key.len()).saturating_sub(count * (shared + HEAD_BYTES));
        if count > 1 && count * (SLOT_BYTES + widths.total()) + rests > FILL_BYTES {
            return false;
        }
        self.run.push(key, located);
        (self.shared, self.widths) = (shared, widths);
        true
    }

    /// The page, and an empty start for the next one.
    fn page(&mut self) -> Page {
        let page = Page::build(&self.run, 0..self.run.len());
        self.run.clear();
        (self.shared, self.widths) = (0, Widths::default());
        page
    }
}

impl IndexBuilder {
    /// Adds a key.
    ///
    /// # Panics
    /// If it is not greater than the one before.
    pub fn push(&mut self, key: &[u8], located: Located) {
        assert!(self.keys == 0 || key > &self.last[..], "keys ascend");
        if !self.filling.take(key, located) {
            self.close_leaf();
            let separator = page::separator(&self.last, key);
            self.leaves.push(Built { separator, node: Node::default() });
            let taken = self.filling.take(key, located);
            assert!(taken, "an empty page takes any key");
        }
        self.last.clear();
        self.last.extend_from_slice(key);
        self.keys += 1;
        self.key_bytes += key.len() as u64;
    }

    /// Fills the leaf that was begun last.
    fn close_leaf(&mut self) {
        let node = Node::Leaf(self.filling.page());
        self.memory_bytes += node.own_bytes();
        match self.leaves.last_mut() {
            Some(begun) => begun.node = node,
            None => self.leaves.push(Built { separator: Vec::new(), node }),
        }
    }

    /// The index over all keys.
    pub fn finish(mut self) -> Index {
        self.close_leaf();
        let mut nodes = std::mem::take(&mut self.leaves);
        while nodes.len() > 1 {
            nodes = self.parents(nodes);
        }
        let root = nodes.pop().expect("there is a leaf").node;
        Index { root, keys: self.keys, key_bytes: self.key_bytes, memory_bytes: self.memory_bytes }
    }

    fn parents(&mut self, nodes: Vec<Built>) -> Vec<Built> {
        let mut parents = Vec::new();
        let mut nodes = nodes.into_iter().peekable();
        let mut filling = Filling::default();
        while let Some(Built { separator, node }) = nodes.next() {
            let mut children = vec![node];
            while let Some(next) = nodes.next_if(|next| filling.take(&next.separator, Located::NOTHING)) {
                children.push(next.node);
            }
            children.shrink_to_fit();
            let inner = Inner { separators: filling.page(), children };
            let node = Node::Inner(Box::new(inner));
            self.memory_bytes += node.own_bytes();
            parents.push(Built { separator, node });
        }
        parents
    }
}

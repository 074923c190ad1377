//! The tree: a B+-tree whose leaves are pages of keys and whose inner nodes are pages of separators with children.
//!
//! Invariants:
//! - A child's keys are not below the separator before it, and below the separator after it.
//! - All leaves are equally deep. No leaf but the root is empty, no inner node is without a child; one with a single child
//!   and no separator may exist below the root.
//! - A page too large is split once; pages are merged when one of two neighbours is small and both make one page that is
//!   not almost full.
//!
//! Separators are the shortest that do (Bayer and Unterauer, TODS '77). Nodes belong to their parents: there are no page
//! numbers, so nothing is looked up on the way down but what is searched.

use super::location::Located;
use super::memory;
use super::page::{self, PAGE_BYTES, Page};

#[derive(Debug)]
pub(super) enum Node {
    Leaf(Page),
    Inner(Box<Inner>),
}

// An inner node costs its parent no more than a leaf does.
const _: () = assert!(size_of::<Node>() == size_of::<Page>() && size_of::<Page>() == 32);

#[derive(Debug, Default)]
pub(super) struct Inner {
    /// One less than there are children.
    pub(super) separators: Page,
    pub(super) children: Vec<Node>,
}

/// What a node gave away because it was too large: a node for the keys from `separator` on.
pub(super) struct Split {
    pub(super) separator: Vec<u8>,
    pub(super) right: Node,
}

/// Bytes below which a page is worth merging.
const SPARSE_BYTES: usize = PAGE_BYTES / 4;

impl Default for Node {
    fn default() -> Self {
        Node::Leaf(Page::default())
    }
}

impl Node {
    pub(super) fn get(&self, key: &[u8]) -> Option<Located> {
        let mut node = self;
        loop {
            match node {
                Node::Leaf(page) => return page.search(key).ok().map(|at| page.located(at)),
                Node::Inner(inner) => node = &inner.children[inner.child_of(key)],
            }
        }
    }

    /// The page that holds the key, if one does.
    pub(super) fn leaf_mut(&mut self, key: &[u8]) -> &mut Page {
        let mut node = self;
        loop {
            match node {
                Node::Leaf(page) => return page,
                Node::Inner(inner) => {
                    let at = inner.child_of(key);
                    node = &mut inner.children[at];
                }
            }
        }
    }

    /// Points the key at what `located` makes of what it points at now. `memory_bytes` follows what the tree allocates.
    pub(super) fn insert(
        &mut self,
        key: &[u8],
        located: impl FnOnce(Option<Located>) -> Located,
        memory_bytes: &mut u64,
    ) -> (Option<Located>, Option<Split>) {
        match self {
            Node::Inner(inner) => {
                let at = inner.child_of(key);
                let (old, split) = inner.children[at].insert(key, located, memory_bytes);
                (old, split.and_then(|split| inner.adopt(at, split, memory_bytes)))
            }
            Node::Leaf(page) => {
                *memory_bytes -= page.memory_bytes();
                let (old, split) = match page.search(key) {
                    Ok(at) => {
                        let old = page.located(at);
                        page.set_located(at, located(Some(old)));
                        (Some(old), None)
                    }
                    Err(at) => (None, insert_into(page, at, key, located(None))),
                };
                *memory_bytes += page.memory_bytes();
                let split = split.map(|(separator, right)| {
                    *memory_bytes += right.memory_bytes();
                    Split { separator, right: Node::Leaf(right) }
                });
                (old, split)
            }
        }
    }

    pub(super) fn remove(&mut self, key: &[u8], memory_bytes: &mut u64) -> Option<Located> {
        match self {
            Node::Inner(inner) => {
                let at = inner.child_of(key);
                let removed = inner.children[at].remove(key, memory_bytes)?;
                inner.mend(at, memory_bytes);
                Some(removed)
            }
            Node::Leaf(page) => {
                let at = page.search(key).ok()?;
                let removed = page.located(at);
                *memory_bytes -= page.memory_bytes();
                page.remove(at);
                *memory_bytes += page.memory_bytes();
                Some(removed)
            }
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Node::Leaf(page) => page.len() == 0,
            Node::Inner(inner) => inner.children.is_empty(),
        }
    }

    fn is_sparse(&self) -> bool {
        match self {
            Node::Leaf(page) => page.content_bytes() < SPARSE_BYTES,
            Node::Inner(inner) => inner.separators.content_bytes() < SPARSE_BYTES,
        }
    }

    /// Bytes allocated for the node itself, without its children's own.
    pub(super) fn own_bytes(&self) -> u64 {
        match self {
            Node::Leaf(page) => page.memory_bytes(),
            Node::Inner(inner) => inner.own_bytes(),
        }
    }
}

/// Adds a key to a leaf, and takes what is too much out of it.
fn insert_into(page: &mut Page, at: usize, key: &[u8], located: Located) -> Option<(Vec<u8>, Page)> {
    if page.insert(at, key, located) {
        return page.is_overfull().then(|| page.split(at));
    }
    let alone = Page::of(key, located);
    if at > 0 {
        return Some((page::separator(&page.key(at - 1), key), alone));
    }
    let separator = page::separator(key, &page.key(0));
    Some((separator, std::mem::replace(page, alone)))
}

impl Inner {
    /// The child whose keys are around `key`.
    pub(super) fn child_of(&self, key: &[u8]) -> usize {
        match self.separators.search(key) {
            Ok(at) => at + 1,
            Err(at) => at,
        }
    }

    fn own_bytes(&self) -> u64 {
        memory::allocated(size_of::<Self>())
            + memory::allocated(self.children.capacity() * size_of::<Node>())
            + self.separators.memory_bytes()
    }

    /// Takes in what the child at `at` gave away.
    fn adopt(&mut self, at: usize, split: Split, memory_bytes: &mut u64) -> Option<Split> {
        let Split { separator, right } = split;
        *memory_bytes -= self.own_bytes();
        let upper = if self.separators.insert(at, &separator, Located::NOTHING) {
            insert_child(&mut self.children, at + 1, right);
            // Each half keeps a separator.
            let too_large = self.separators.is_overfull() && self.separators.len() >= 3;
            too_large.then(|| self.split(at))
        } else if at > 0 {
            let alone = Inner { children: vec![right], ..Inner::default() };
            Some((separator, alone))
        } else {
            let first = std::mem::replace(&mut self.children[0], right);
            let alone = Inner { children: vec![first], ..Inner::default() };
            Some((separator, std::mem::replace(self, alone)))
        };
        *memory_bytes += self.own_bytes();
        upper.map(|(separator, right)| {
            *memory_bytes += right.own_bytes();
            Split { separator, right: Node::Inner(Box::new(right)) }
        })
    }

    fn split(&mut self, inserted: usize) -> (Vec<u8>, Inner) {
        let (separator, separators) = self.separators.split_around(inserted);
        let children = self.children.split_off(self.separators.len() + 1);
        self.children.shrink_to_fit();
        (separator, Inner { separators, children })
    }

    /// Puts in order what removing a key left of the child at `at`.
    fn mend(&mut self, at: usize, memory_bytes: &mut u64) {
        let child = &self.children[at];
        if !child.is_empty() && !child.is_sparse() {
            return;
        }
        *memory_bytes -= self.own_bytes();
        if child.is_empty() {
            let child = self.children.remove(at);
            *memory_bytes -= child.own_bytes();
            self.forget_separator(at.saturating_sub(1));
        } else {
            // With the neighbour above, else with the one below.
            if !self.merge(at, memory_bytes) && at > 0 {
                self.merge(at - 1, memory_bytes);
            }
        }
        *memory_bytes += self.own_bytes();
    }

    fn forget_separator(&mut self, at: usize) {
        if at < self.separators.len() {
            self.separators.remove(at);
        }
        let bytes = |children: usize| children * size_of::<Node>();
        if memory::is_wasteful(bytes(self.children.capacity()), bytes(self.children.len())) {
            self.children.shrink_to_fit();
        }
    }

    /// Makes one of the child at `at` and the next, if there is one and they are small enough together.
    fn merge(&mut self, at: usize, memory_bytes: &mut u64) -> bool {
        let [below, above, ..] = &mut self.children[at..] else { return false };
        let before = below.own_bytes() + above.own_bytes();
        match (&mut *below, above) {
            (Node::Leaf(below), Node::Leaf(above)) => {
                let Some(merged) = Page::merged(below, None, above) else { return false };
                *below = merged;
            }
            (Node::Inner(below), Node::Inner(above)) => {
                let between = self.separators.key(at);
                let Some(merged) = Page::merged(&below.separators, Some(&between), &above.separators) else {
                    return false;
                };
                below.separators = merged;
                below.children.reserve_exact(above.children.len());
                below.children.append(&mut above.children);
            }
            _ => unreachable!("all leaves are equally deep"),
        }
        *memory_bytes -= before;
        *memory_bytes += below.own_bytes();
        self.children.remove(at + 1);
        self.forget_separator(at);
        true
    }
}

/// Children take little room beyond what they need: there are many, and a node is 32 bytes.
fn insert_child(children: &mut Vec<Node>, at: usize, child: Node) {
    if children.len() == children.capacity() {
        children.reserve_exact(children.len() / 8 + 2);
    }
    children.insert(at, child);
}

#[cfg(test)]
impl Node {
    /// Checks the invariants of the tree between two bounds. Returns its depth, its keys and the bytes it allocated.
    pub(super) fn check(&self, low: Option<&[u8]>, high: Option<&[u8]>) -> (usize, u64, u64) {
        let page = match self {
            Node::Leaf(page) => page,
            Node::Inner(inner) => &inner.separators,
        };
        page.check();
        let keys: Vec<_> = (0..page.len()).map(|at| page.key(at)).collect();
        assert!(keys.is_sorted_by(|a, b| a < b), "keys ascend");
        let within =
            |key: &Vec<u8>| low.is_none_or(|low| low <= &key[..]) && high.is_none_or(|high| &key[..] < high);
        assert!(keys.iter().all(within), "keys are between the separators around them");
        let Node::Inner(inner) = self else { return (1, keys.len() as u64, self.own_bytes()) };
        assert_eq!(inner.children.len(), keys.len() + 1);
        let mut sums = (0, 0, self.own_bytes());
        for (at, child) in inner.children.iter().enumerate() {
            assert!(!child.is_empty(), "no node below the root is empty");
            let low = if at == 0 { low } else { Some(&keys[at - 1][..]) };
            let high = keys.get(at).map(|key| &key[..]).or(high);
            let (depth, count, bytes) = child.check(low, high);
            assert!(sums.0 == 0 || sums.0 == depth + 1, "all leaves are equally deep");
            sums = (depth + 1, sums.1 + count, sums.2 + bytes);
        }
        sums
    }
}

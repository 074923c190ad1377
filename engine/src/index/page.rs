//! A page: some neighbouring keys with their locations, in one allocation.
//!
//! ```text
//! prefix | slot 0 | slot 1 | .. | free | .. | entry 1 | entry 0
//!
//! slot  = head (5 bytes of the key after the prefix) | tag (3 bits) | end (21 bits)
//! entry = location, the key after the head
//! ```
//!
//! What all keys of a page begin with is stored once, as its prefix. The next five bytes of each key, padded with zeros,
//! stand in the slots, so that a search mostly compares integers that lie side by side. The tag is the number of those
//! bytes, or [`TAG_LONGER`] if more of the key follows in its entry: head and tag together order keys that
//! differ in them. `end` counts from the end of the page to where the entry starts, so entries have no length, and a page
//! that grows moves them in one piece. Heads are as in Graefe's "normalised key" pages and LeanStore's (Leis et al.,
//! ICDE '18), except that a head is taken out of its key and so costs nothing.
//!
//! Invariants: keys ascend strictly. Slots and entries have the same order, without gaps. Every location has the page's
//! widths.

use std::ops::Range;

use super::location::{Located, Widths};
use super::memory;

/// Bytes of slots and entries past which a page is split. Larger pages save memory, smaller ones make inserts cheaper
/// (docs/decisions/0009).
pub(super) const PAGE_BYTES: usize = 4 << 10;

pub(super) const SLOT_BYTES: usize = size_of::<u64>();
pub(super) const HEAD_BYTES: usize = 5;
/// The tag of a key that goes on in its entry.
const TAG_LONGER: u64 = HEAD_BYTES as u64 + 1;
const TAG_MASK: u64 = 7;
const END_BITS: u32 = 21;
const END_MASK: u64 = (1 << END_BITS) - 1;

// A page may hold a few keys of any size: a half of a split has less than three sizes of the largest key, and one more is
// inserted before the next split. The rest is what keeps a page below its limit, with locations made wider.
const _: () = assert!(
    4 * (crate::op::KEY_BYTES_MAX + super::location::LOCATION_BYTES_MAX)
        + PAGE_BYTES / SLOT_BYTES * (SLOT_BYTES + super::location::LOCATION_BYTES_MAX)
        < 1 << END_BITS
);

/// Head and tag of a key without its prefix.
fn order_of(suffix: &[u8]) -> u64 {
    let head = match suffix.first_chunk::<8>() {
        Some(bytes) => u64::from_be_bytes(*bytes) >> 24,
        None => {
            let mut bytes = [0; 8];
            let kept = suffix.len().min(HEAD_BYTES);
            bytes[..kept].copy_from_slice(&suffix[..kept]);
            u64::from_be_bytes(bytes) >> 24
        }
    };
    head << 3 | (suffix.len() as u64).min(TAG_LONGER)
}

fn slot_order(slot: &[u8; SLOT_BYTES]) -> u64 {
    u64::from_le_bytes(*slot) >> END_BITS
}

/// The first slot that is not below `order`.
///
/// Not a binary search: its probes wait for each other, and in a large index each waits for memory. These do not: one
/// probe for each cache line, then those of one line.
fn lower_bound(slots: &[[u8; SLOT_BYTES]], order: u64) -> usize {
    const LINE_SLOTS: usize = 64 / SLOT_BYTES;
    let below = |slot: &&[u8; SLOT_BYTES]| slot_order(slot) < order;
    match slots.iter().step_by(LINE_SLOTS).filter(below).count() {
        0 => 0,
        lines => {
            let first = (lines - 1) * LINE_SLOTS;
            let line = &slots[first..slots.len().min(first + LINE_SLOTS)];
            first + line.iter().filter(below).count()
        }
    }
}

/// What of a key without its prefix stands in its entry.
fn rest_of(suffix: &[u8]) -> &[u8] {
    suffix.get(HEAD_BYTES..).unwrap_or_default()
}

/// Bytes that both begin with.
pub(super) fn common_bytes(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The shortest key that is greater than `below` and not greater than `from`, which is greater than `below`.
pub(super) fn separator(below: &[u8], from: &[u8]) -> Vec<u8> {
    from[..common_bytes(below, from) + 1].to_vec()
}

#[derive(Debug, Default)]
pub(super) struct Page {
    bytes: Box<[u8]>,
    prefix_bytes: u32,
    count: u16,
    widths: Widths,
}

/// Keys and locations outside of pages, ascending. What its keys have in common may be set apart.
#[derive(Debug, Default)]
pub(super) struct Run {
    /// What every key begins with.
    prefix: Vec<u8>,
    suffixes: Vec<u8>,
    /// Where each key's suffix ends.
    ends: Vec<usize>,
    located: Vec<Located>,
}

impl Run {
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn push(&mut self, key: &[u8], located: Located) {
        debug_assert!(self.prefix.is_empty());
        self.suffixes.extend_from_slice(key);
        self.ends.push(self.suffixes.len());
        self.located.push(located);
    }

    pub(super) fn clear(&mut self) {
        self.prefix.clear();
        self.suffixes.clear();
        self.ends.clear();
        self.located.clear();
    }

    /// The first key without what is set apart.
    pub(super) fn first(&self) -> Option<&[u8]> {
        (self.len() > 0).then(|| self.suffix(0))
    }

    /// Bytes of all keys without what is set apart.
    pub(super) fn key_bytes(&self) -> usize {
        self.suffixes.len()
    }

    fn suffix(&self, at: usize) -> &[u8] {
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.suffixes[start..self.ends[at]]
    }

    pub(super) fn key(&self, at: usize) -> Vec<u8> {
        [&self.prefix[..], self.suffix(at)].concat()
    }
}

impl Page {
    /// A page of one key. All of it is the prefix.
    pub(super) fn of(key: &[u8], located: Located) -> Self {
        let mut run = Run::default();
        run.push(key, located);
        Self::build(&run, 0..1)
    }

    /// A page of a part of a run.
    pub(super) fn build(run: &Run, range: Range<usize>) -> Self {
        if range.is_empty() {
            return Self::default();
        }
        let shared = common_bytes(run.suffix(range.start), run.suffix(range.end - 1));
        let widths = run.located[range.clone()].iter().map(|located| Widths::of(*located));
        Self::pack(run, range, shared, widths.fold(Widths::default(), Widths::union))
    }

    /// A page whose prefix is the run's and `shared` bytes more.
    fn pack(run: &Run, range: Range<usize>, shared: usize, widths: Widths) -> Self {
        let entries = range.clone().map(|at| widths.total() + rest_of(&run.suffix(at)[shared..]).len());
        let prefix_bytes = run.prefix.len() + shared;
        let needed = prefix_bytes + SLOT_BYTES * range.len() + entries.sum::<usize>();
        let mut page = Self {
            bytes: vec![0; memory::roomy(needed)].into(),
            prefix_bytes: prefix_bytes as u32,
            count: 0,
            widths,
        };
        page.bytes[..run.prefix.len()].copy_from_slice(&run.prefix);
        page.bytes[run.prefix.len()..prefix_bytes].copy_from_slice(&run.suffix(range.start)[..shared]);
        for at in range {
            page.insert_fitting(page.len(), &run.suffix(at)[shared..], run.located[at]);
        }
        page
    }

    /// Keys.
    pub(super) fn len(&self) -> usize {
        self.count.into()
    }

    /// What every key begins with.
    pub(super) fn prefix(&self) -> &[u8] {
        &self.bytes[..self.prefix_bytes as usize]
    }

    /// Bytes of slots and entries.
    pub(super) fn content_bytes(&self) -> usize {
        SLOT_BYTES * self.len() + self.entries_bytes()
    }

    /// Whether it should be split.
    pub(super) fn is_overfull(&self) -> bool {
        self.content_bytes() > PAGE_BYTES && self.count > 1
    }

    /// Bytes allocated.
    pub(super) fn memory_bytes(&self) -> u64 {
        memory::allocated(self.bytes.len())
    }

    fn slots(&self) -> &[[u8; SLOT_BYTES]] {
        let start = self.prefix_bytes as usize;
        self.bytes[start..start + SLOT_BYTES * self.len()].as_chunks().0
    }

    fn slots_mut(&mut self) -> &mut [[u8; SLOT_BYTES]] {
        let start = self.prefix_bytes as usize;
        let end = start + SLOT_BYTES * self.len();
        self.bytes[start..end].as_chunks_mut().0
    }

    fn slot(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.slots()[at])
    }

    /// Bytes of the first `count` entries.
    fn end_of(&self, count: usize) -> usize {
        if count == 0 { 0 } else { (self.slot(count - 1) & END_MASK) as usize }
    }

    fn entries_bytes(&self) -> usize {
        self.end_of(self.len())
    }

    fn entry(&self, at: usize) -> &[u8] {
        let end = self.bytes.len();
        &self.bytes[end - self.end_of(at + 1)..end - self.end_of(at)]
    }

    fn rest(&self, at: usize) -> &[u8] {
        &self.entry(at)[self.widths.total()..]
    }

    pub(super) fn located(&self, at: usize) -> Located {
        self.widths.unpack(self.entry(at))
    }

    /// Appends the key without the prefix.
    pub(super) fn suffix_onto(&self, at: usize, out: &mut Vec<u8>) {
        let order = self.slot(at) >> END_BITS;
        let head = (order >> 3 << 24).to_be_bytes();
        out.extend_from_slice(&head[..HEAD_BYTES.min((order & TAG_MASK) as usize)]);
        out.extend_from_slice(self.rest(at));
    }

    pub(super) fn key(&self, at: usize) -> Vec<u8> {
        let mut key = self.prefix().to_vec();
        self.suffix_onto(at, &mut key);
        key
    }

    fn suffix_bytes(&self, at: usize) -> usize {
        HEAD_BYTES.min((self.slot(at) >> END_BITS & TAG_MASK) as usize) + self.rest(at).len()
    }

    /// Where the key is, or where it would have to be inserted.
    pub(super) fn search(&self, key: &[u8]) -> Result<usize, usize> {
        let prefix = self.prefix();
        let Some(suffix) = key.strip_prefix(prefix) else {
            return Err(if key < prefix { 0 } else { self.len() });
        };
        let order = order_of(suffix);
        let slots = self.slots();
        let at = lower_bound(slots, order);
        if slots.get(at).is_none_or(|slot| slot_order(slot) != order) {
            return Err(at);
        }
        if order & TAG_MASK != TAG_LONGER {
            return Ok(at);
        }
        let rest = rest_of(suffix);
        if self.rest(at) == rest {
            return Ok(at);
        }
        // Keys that have their heads in common. Mostly there is one.
        let (mut low, mut high) = (at, at + slots[at..].partition_point(|slot| slot_order(slot) == order));
        while low < high {
            let middle = low.midpoint(high);
            match self.rest(middle).cmp(rest) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Ok(middle),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    pub(super) fn set_located(&mut self, at: usize, located: Located) {
        let widths = self.widths.union(Widths::of(located));
        if widths != self.widths {
            self.repack(self.prefix_bytes as usize, widths);
        }
        let start = self.bytes.len() - self.end_of(at + 1);
        self.widths.pack(located, &mut self.bytes[start..start + widths.total()]);
    }

    /// Adds a key where `search` put it. False, and nothing happens, if the key lacks the prefix and the page would
    /// be too large with a shorter one; the key belongs before or after all others then.
    pub(super) fn insert(&mut self, at: usize, key: &[u8], located: Located) -> bool {
        let prefix_bytes = self.prefix_bytes as usize;
        let shared = match key.starts_with(self.prefix()) {
            true => prefix_bytes,
            false => common_bytes(self.prefix(), key),
        };
        let widths = self.widths.union(Widths::of(located));
        if shared < prefix_bytes {
            let added = SLOT_BYTES + widths.total() + rest_of(&key[shared..]).len();
            if self.content_bytes_with(shared) + added > PAGE_BYTES {
                debug_assert!(at == 0 || at == self.len());
                return false;
            }
        }
        if shared < prefix_bytes || widths != self.widths {
            self.repack(shared, widths);
        }
        self.reserve(SLOT_BYTES + widths.total() + rest_of(&key[shared..]).len());
        self.insert_fitting(at, &key[shared..], located);
        true
    }

    /// Bytes of slots and entries if the prefix were cut to `prefix_bytes`.
    fn content_bytes_with(&self, prefix_bytes: usize) -> usize {
        let longer = self.prefix_bytes as usize - prefix_bytes;
        let entry = |at| self.widths.total() + (self.suffix_bytes(at) + longer).saturating_sub(HEAD_BYTES);
        SLOT_BYTES * self.len() + (0..self.len()).map(entry).sum::<usize>()
    }

    /// Cuts the prefix to `prefix_bytes` and gives locations these widths.
    fn repack(&mut self, prefix_bytes: usize, widths: Widths) {
        let run = self.run(prefix_bytes);
        *self = match run.len() {
            0 => Self { widths, ..Self::default() },
            all => Self::pack(&run, 0..all, 0, widths),
        };
    }

    /// All keys, with that much of the prefix set apart.
    fn run(&self, prefix_bytes: usize) -> Run {
        let mut run = Run { prefix: self.prefix()[..prefix_bytes].to_vec(), ..Run::default() };
        self.append_to(&mut run);
        run
    }

    fn append_to(&self, run: &mut Run) {
        for at in 0..self.len() {
            run.suffixes.extend_from_slice(&self.prefix()[run.prefix.len()..]);
            self.suffix_onto(at, &mut run.suffixes);
            run.ends.push(run.suffixes.len());
            run.located.push(self.located(at));
        }
    }

    fn reserve(&mut self, bytes: usize) {
        let needed = self.prefix_bytes as usize + self.content_bytes() + bytes;
        if needed > self.bytes.len() {
            self.resize(memory::roomy(needed));
        }
    }

    fn resize(&mut self, capacity: usize) {
        let (front, back) = (self.prefix_bytes as usize + SLOT_BYTES * self.len(), self.entries_bytes());
        let mut bytes = Vec::with_capacity(capacity);
        bytes.extend_from_slice(&self.bytes[..front]);
        bytes.resize(capacity - back, 0);
        bytes.extend_from_slice(&self.bytes[self.bytes.len() - back..]);
        self.bytes = bytes.into_boxed_slice();
    }

    fn insert_fitting(&mut self, at: usize, suffix: &[u8], located: Located) {
        let rest = rest_of(suffix);
        let location = self.widths.total();
        let entry = location + rest.len();
        let end = self.bytes.len();
        let (before, all) = (self.end_of(at), self.entries_bytes());
        let slots_end = self.prefix_bytes as usize + SLOT_BYTES * self.len();
        assert!(slots_end + SLOT_BYTES + all + entry <= end && all + entry <= END_MASK as usize);
        self.bytes.copy_within(end - all..end - before, end - all - entry);
        let start = end - before - entry;
        self.widths.pack(located, &mut self.bytes[start..start + location]);
        self.bytes[start + location..start + entry].copy_from_slice(rest);
        let slot = self.prefix_bytes as usize + SLOT_BYTES * at;
        self.bytes.copy_within(slot..slots_end, slot + SLOT_BYTES);
        self.count += 1;
        let slots = &mut self.slots_mut()[at..];
        slots[0] = (order_of(suffix) << END_BITS | (before + entry) as u64).to_le_bytes();
        for slot in &mut slots[1..] {
            *slot = (u64::from_le_bytes(*slot) + entry as u64).to_le_bytes();
        }
    }

    pub(super) fn remove(&mut self, at: usize) {
        let end = self.bytes.len();
        let (before, after, all) = (self.end_of(at), self.end_of(at + 1), self.entries_bytes());
        let entry = after - before;
        self.bytes.copy_within(end - all..end - after, end - all + entry);
        for slot in &mut self.slots_mut()[at + 1..] {
            *slot = (u64::from_le_bytes(*slot) - entry as u64).to_le_bytes();
        }
        let slot = self.prefix_bytes as usize + SLOT_BYTES * at;
        let slots_end = self.prefix_bytes as usize + SLOT_BYTES * self.len();
        self.bytes.copy_within(slot + SLOT_BYTES..slots_end, slot);
        self.count -= 1;
        if self.count == 0 {
            *self = Self::default();
            return;
        }
        let needed = self.prefix_bytes as usize + self.content_bytes();
        if memory::is_wasteful(self.bytes.len(), needed) {
            self.resize(memory::roomy(needed));
        }
    }

    /// Moves the upper keys into a page of its own, which it returns with the separator between the two. `inserted`
    /// is where the last key came in: where keys come in order, pages are left full.
    pub(super) fn split(&mut self, inserted: usize) -> (Vec<u8>, Page) {
        let (run, all) = (self.run(self.prefix_bytes as usize), self.len());
        let cut = match inserted {
            0 => 1,
            last if last + 1 == all => all - 1,
            _ => self.middle(),
        };
        let below = common_bytes(run.suffix(cut - 1), run.suffix(cut));
        let separator = [&run.prefix[..], &run.suffix(cut)[..below + 1]].concat();
        *self = Self::build(&run, 0..cut);
        (separator, Self::build(&run, cut..all))
    }

    /// Like [`Page::split`], but the key between the halves leaves the page. There are three keys or more.
    pub(super) fn split_around(&mut self, inserted: usize) -> (Vec<u8>, Page) {
        let (run, all) = (self.run(self.prefix_bytes as usize), self.len());
        let cut = if inserted + 1 == all { all - 2 } else { self.middle().min(all - 2) };
        let separator = run.key(cut);
        *self = Self::build(&run, 0..cut);
        (separator, Self::build(&run, cut + 1..all))
    }

    /// The key at which the upper half begins, by bytes: never the first.
    fn middle(&self) -> usize {
        let half = self.content_bytes() / 2;
        let within = |at: &usize| SLOT_BYTES * at + self.end_of(*at) <= half;
        let (mut low, mut high) = (1, self.len() - 1);
        while low < high {
            let middle = (low + high).div_ceil(2);
            if within(&middle) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        low
    }

    /// The keys of two neighbours, and the one `between` them, if they make a page that is not almost full.
    pub(super) fn merged(below: &Page, between: Option<&[u8]>, above: &Page) -> Option<Page> {
        const MERGED_BYTES_MAX: usize = PAGE_BYTES / 4 * 3;
        if below.content_bytes() + above.content_bytes() > MERGED_BYTES_MAX {
            return None;
        }
        let mut shared = below.prefix();
        for next in between.into_iter().chain([above.prefix()]) {
            shared = &shared[..common_bytes(shared, next)];
        }
        let middle = between.map_or(0, |key| SLOT_BYTES + key.len() - shared.len());
        let bytes = below.content_bytes_with(shared.len()) + middle + above.content_bytes_with(shared.len());
        if bytes > MERGED_BYTES_MAX {
            return None;
        }
        let mut run = Run { prefix: shared.to_vec(), ..Run::default() };
        below.append_to(&mut run);
        if let Some(between) = between {
            run.suffixes.extend_from_slice(&between[shared.len()..]);
            run.ends.push(run.suffixes.len());
            run.located.push(Located::NOTHING);
        }
        above.append_to(&mut run);
        Some(Self::build(&run, 0..run.len()))
    }
}

#[cfg(test)]
impl Page {
    /// Checks what does not follow from the order of keys.
    pub(super) fn check(&self) {
        let used = self.prefix_bytes as usize + self.content_bytes();
        assert!(used <= self.bytes.len(), "content fits");
        assert!(
            !memory::is_wasteful(self.bytes.len(), used),
            "{used} of {} bytes are used",
            self.bytes.len()
        );
        let mut end = 0;
        for at in 0..self.len() {
            let next = self.end_of(at + 1);
            assert!(next >= end + self.widths.total(), "entries have the order of slots");
            end = next;
            let tag = self.slot(at) >> END_BITS & TAG_MASK;
            assert!(tag <= TAG_LONGER);
            assert_eq!(tag == TAG_LONGER, !self.rest(at).is_empty(), "a key goes on where its tag says so");
            assert!(self.key(at).starts_with(self.prefix()));
            assert_eq!(self.search(&self.key(at)), Ok(at));
        }
    }
}

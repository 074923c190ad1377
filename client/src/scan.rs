//! Scans: ranges of keys, merged over a table's partitions.
//!
//! Keys are spread over partitions by their hash, so a range lies in all of them: each is read page by page, and
//! the pages are merged by key.
//!
//! **Invariant:** a row is given out only when every partition that is not finished has its next row at hand, so
//! the order is total.

use crate::client::{Shared, kind};
use crate::error::{Failure, ScanError};
use crate::routing::{Operation, OperationKind};
use crate::table::detached;
use crate::wire::{self, Consistency, ErrorReply, Response, Row, TableId};
use bytes::Bytes;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::ops::{Range, RangeFrom, RangeFull, RangeInclusive, RangeTo, RangeToInclusive};
use std::sync::Arc;
use tokio::task::JoinSet;

/// Rows of a page when it is not known how many are wanted, and at most.
const PAGE_ROWS_MAX: u32 = 1000;

/// Bytes of a page: pages of all partitions are in memory at once.
const PAGE_BYTES_MAX: u32 = 256 << 10;

/// First pages fetched at a time; each is a request to another partition.
const FIRST_PAGES_AT_ONCE: usize = 64;

/// Keys from `start` (inclusive) to `end` (exclusive), ordered bytewise. Made from Rust's own ranges over
/// anything that is bytes.
///
/// ```
/// use terrane_client::KeyRange;
/// assert!(KeyRange::from("a".."c").contains(b"b"));
/// assert!(!KeyRange::from("a".."c").contains(b"c"));
/// assert!(KeyRange::from("a"..="c").contains(b"c"));
/// assert!(KeyRange::prefix("user").contains(b"user42"));
/// assert!(KeyRange::from(..).contains(b"anything"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyRange {
    start: Bytes,
    /// Empty: to the end.
    end: Bytes,
    /// No key is in the range, however its ends read.
    empty: bool,
}

impl KeyRange {
    /// Every key.
    pub fn all() -> KeyRange {
        KeyRange::default()
    }

    /// Every key that begins with `prefix`.
    pub fn prefix(prefix: impl AsRef<[u8]>) -> KeyRange {
        let prefix = prefix.as_ref();
        // The first key behind all those: the prefix with its last byte that can be raised, raised.
        let mut end = prefix.to_vec();
        while let Some(last) = end.last_mut() {
            if *last < u8::MAX {
                *last += 1;
                break;
            }
            end.pop();
        }
        KeyRange { start: Bytes::copy_from_slice(prefix), end: end.into(), empty: false }
    }

    /// Whether a key lies in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        !self.empty && key >= &self.start[..] && (self.end.is_empty() || key < &self.end[..])
    }

    fn new(start: &[u8], end: Option<Bytes>) -> KeyRange {
        // An end that is the empty key excludes everything: no key is below it.
        let empty = end.as_ref().is_some_and(|end| end.is_empty() || end <= start);
        KeyRange { start: Bytes::copy_from_slice(start), end: end.unwrap_or_default(), empty }
    }
}

/// The first key above `key`.
fn successor(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

impl<K: AsRef<[u8]>> From<Range<K>> for KeyRange {
    fn from(range: Range<K>) -> KeyRange {
        KeyRange::new(range.start.as_ref(), Some(Bytes::copy_from_slice(range.end.as_ref())))
    }
}

impl<K: AsRef<[u8]>> From<RangeInclusive<K>> for KeyRange {
    fn from(range: RangeInclusive<K>) -> KeyRange {
        KeyRange::new(range.start().as_ref(), Some(successor(range.end().as_ref())))
    }
}

impl<K: AsRef<[u8]>> From<RangeFrom<K>> for KeyRange {
    fn from(range: RangeFrom<K>) -> KeyRange {
        KeyRange::new(range.start.as_ref(), None)
    }
}

impl<K: AsRef<[u8]>> From<RangeTo<K>> for KeyRange {
    fn from(range: RangeTo<K>) -> KeyRange {
        KeyRange::new(b"", Some(Bytes::copy_from_slice(range.end.as_ref())))
    }
}

impl<K: AsRef<[u8]>> From<RangeToInclusive<K>> for KeyRange {
    fn from(range: RangeToInclusive<K>) -> KeyRange {
        KeyRange::new(b"", Some(successor(range.end.as_ref())))
    }
}

impl From<RangeFull> for KeyRange {
    fn from(_: RangeFull) -> KeyRange {
        KeyRange::all()
    }
}

/// One partition's part of a scan.
struct Part {
    hash: u64,
    /// Where its next page starts; `None`: it has no further page.
    next: Option<Bytes>,
    page: VecDeque<Row>,
}

/// A walk over a range, in ascending order of keys. [`Table::scanner`](crate::Table::scanner) makes one.
///
/// After an error the walk can go on: the page that failed is asked for again.
#[must_use = "a scanner reads nothing until `next`"]
pub struct Scanner {
    shared: Arc<Shared>,
    table: TableId,
    consistency: Consistency,
    range: KeyRange,
    rows_wanted: Option<usize>,
    started: bool,
    parts: Vec<Part>,
    /// The parts that have rows in their page, by their first key.
    heads: BinaryHeap<Reverse<(Bytes, usize)>>,
    /// The part whose page ran out with the last row given: to be filled before the next is.
    dry: Option<usize>,
}

impl std::fmt::Debug for Scanner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scanner")
            .field("table", &self.table)
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

impl Scanner {
    pub(crate) fn new(
        shared: Arc<Shared>,
        table: TableId,
        consistency: Consistency,
        range: KeyRange,
    ) -> Scanner {
        Scanner {
            shared,
            table,
            consistency,
            range,
            rows_wanted: None,
            started: false,
            parts: Vec::new(),
            heads: BinaryHeap::new(),
            dry: None,
        }
    }

    /// About how many rows will be read: pages are sized so that little more is fetched.
    pub fn rows_wanted(mut self, rows: usize) -> Scanner {
        self.rows_wanted = Some(rows);
        self
    }

    /// The next row; `None` when the range is at its end.
    ///
    /// # Errors
    /// See [`ScanError`]. The same row is tried for again by the next call.
    pub async fn next(&mut self) -> Result<Option<Row>, ScanError> {
        if self.range.empty || self.rows_wanted == Some(0) {
            return Ok(None);
        }
        if !self.started {
            self.start().await?;
        }
        if let Some(part) = self.dry {
            let (rows, next) = self.page(part).await?;
            self.dry = None;
            self.fill(part, rows, next);
        }
        let Some(Reverse((_, part))) = self.heads.pop() else { return Ok(None) };
        let row = self.parts[part].page.pop_front().expect("a part among the heads has a row");
        match self.parts[part].page.front() {
            Some(head) => self.heads.push(Reverse((head.key.clone(), part))),
            None if self.parts[part].next.is_some() => self.dry = Some(part),
            None => {}
        }
        Ok(Some(row))
    }

    /// Fetches every partition's first page.
    async fn start(&mut self) -> Result<(), ScanError> {
        for bound in [&self.range.start, &self.range.end] {
            Failure::bound(bound)?;
        }
        if self.parts.is_empty() {
            let hashes: Option<Vec<u64>> = {
                let routing = self.shared.routing();
                routing.map().and_then(|map| {
                    let partitions = map.partitions(self.table)?;
                    (0..partitions).map(|at| map.hash_of_partition(self.table, at)).collect()
                })
            };
            let Some(hashes) = hashes else { return Err(ScanError::UnknownTable) };
            let first = self.range.start.clone();
            self.parts = hashes
                .into_iter()
                .map(|hash| Part { hash, next: Some(first.clone()), page: VecDeque::new() })
                .collect();
        }
        // Those a failed start has already filled are not asked again.
        let mut missing: VecDeque<usize> = (0..self.parts.len())
            .filter(|&at| self.parts[at].page.is_empty() && self.parts[at].next.is_some())
            .collect();
        let mut fetching = JoinSet::new();
        while !missing.is_empty() || !fetching.is_empty() {
            while fetching.len() < FIRST_PAGES_AT_ONCE
                && let Some(at) = missing.pop_front()
            {
                let page = self.page(at);
                fetching.spawn(async move { (at, page.await) });
            }
            match fetching.join_next().await {
                Some(Ok((at, result))) => {
                    let (rows, next) = result?;
                    self.fill(at, rows, next);
                }
                Some(Err(panicked)) => std::panic::resume_unwind(panicked.into_panic()),
                None => {}
            }
        }
        self.started = true;
        Ok(())
    }

    fn fill(&mut self, at: usize, rows: Vec<Row>, next: Option<Bytes>) {
        let part = &mut self.parts[at];
        part.page = rows.into();
        part.next = next;
        if let Some(head) = part.page.front() {
            self.heads.push(Reverse((head.key.clone(), at)));
        }
    }

    fn page_rows(&self) -> u32 {
        let Some(wanted) = self.rows_wanted else { return PAGE_ROWS_MAX };
        // A partition's share of the rows, with room for chance: one page of each is mostly enough.
        let share = wanted.div_ceil(self.parts.len().max(1));
        let rows = share.saturating_add(share / 4).saturating_add(4).min(wanted);
        u32::try_from(rows).unwrap_or(u32::MAX).clamp(1, PAGE_ROWS_MAX)
    }

    /// Fetches the part's next page: its rows, and where the page behind it starts.
    fn page(
        &self,
        at: usize,
    ) -> impl Future<Output = Result<(Vec<Row>, Option<Bytes>), ScanError>> + Send + 'static {
        let part = &self.parts[at];
        let start = part.next.clone().unwrap_or_default();
        let end = self.range.end.clone();
        let operation = Operation::new(self.table, part.hash, OperationKind::Read);
        let (shared, consistency, rows_max) = (self.shared.clone(), self.consistency, self.page_rows());
        async move {
            let encode = |head: &wire::RequestHead, out: &mut Vec<u8>| {
                wire::encode_scan(head, &start, &end, rows_max, PAGE_BYTES_MAX, out);
            };
            match shared.run(operation, consistency, encode).await {
                Ok(Response::Rows { rows, more }) => accept(rows, more, &start, &end),
                Ok(other) => Err(Failure::unexpected(kind(&other)).into()),
                Err(Failure::Refused(ErrorReply::NotFound)) => Ok((Vec::new(), None)),
                Err(failure) => Err(failure.into()),
            }
        }
    }
}

/// Checks a page (its order decides the merge, and its last key where the next starts) and detaches its rows.
fn accept(
    rows: Vec<Row>,
    more: bool,
    start: &[u8],
    end: &[u8],
) -> Result<(Vec<Row>, Option<Bytes>), ScanError> {
    let ordered = rows.windows(2).all(|pair| pair[0].key < pair[1].key);
    let inside = rows.first().is_none_or(|row| &row.key[..] >= start)
        && rows.last().is_none_or(|row| end.is_empty() || &row.key[..] < end);
    if !ordered || !inside {
        return Err(ScanError::Protocol { why: "a scan's rows are out of order or out of range".to_owned() });
    }
    let next = rows.last().filter(|_| more).map(|row| successor(&row.key));
    let rows = rows
        .into_iter()
        .map(|row| Row { key: detached(row.key), version: row.version, value: detached(row.value) })
        .collect();
    Ok((rows, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_mean_what_rusts_ranges_mean() {
        let keys: [&[u8]; 6] = [b"a", b"b", b"b\0", b"c", b"\xff", b"\xff\xff"];
        let inside = |range: KeyRange| keys.map(|key| range.contains(key));
        assert_eq!(inside(("b".."c").into()), [false, true, true, false, false, false]);
        assert_eq!(inside(("b"..="b").into()), [false, true, false, false, false, false]);
        assert_eq!(inside(("c"..).into()), [false, false, false, true, true, true]);
        assert_eq!(inside((.."b").into()), [true, false, false, false, false, false]);
        assert_eq!(inside((..="b").into()), [true, true, false, false, false, false]);
        assert_eq!(inside((..).into()), [true; 6]);
        assert_eq!(inside(KeyRange::prefix("b")), [false, true, true, false, false, false]);
        assert_eq!(inside(KeyRange::prefix(b"\xff")), [false, false, false, false, true, true]);
        assert_eq!(inside(KeyRange::prefix("")), [true; 6]);
        assert_eq!(inside(("c".."a").into()), [false; 6]);
        assert_eq!(inside(("".."").into()), [false; 6]);
    }

    #[test]
    fn pages_out_of_order_or_range_are_refused() {
        let row = |key: &'static str| Row { key: key.into(), version: 1, value: Bytes::new() };
        let page = |keys: &[&'static str]| keys.iter().map(|key| row(key)).collect::<Vec<_>>();
        assert!(accept(page(&["b", "a"]), false, b"", b"").is_err());
        assert!(accept(page(&["a", "a"]), false, b"", b"").is_err());
        assert!(accept(page(&["a", "b"]), false, b"b", b"").is_err());
        assert!(accept(page(&["a", "b"]), false, b"", b"b").is_err());
        let (rows, next) = accept(page(&["a", "b"]), true, b"a", b"c").unwrap();
        assert_eq!((rows.len(), next.as_deref()), (2, Some(&b"b\0"[..])));
        assert_eq!(accept(page(&["a"]), false, b"", b"").unwrap().1, None);
    }
}

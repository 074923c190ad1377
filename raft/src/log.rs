//! The log as the algorithm sees it: which terms it consists of, where it begins and ends, and how much is
//! durable.
//!
//! Terms are kept as runs, so a log of any length takes a few words; sizes and kinds are remembered for the
//! most recent entries only, and the host, which has the payloads, fills in the rest.
//!
//! **Durability.** Every append handed to the host is remembered until it is reported durable, in order,
//! because an index and a term alone do not name a write: an entry can be appended, replaced by a later
//! leader's, and appended again by a still later one, and a late report of the first write says nothing about
//! the third. A report counts for the oldest unreported append that it fits, and what later appends replaced
//! does not count.
//!
//! Invariants: `first - 1 <= last`; `persisted <= last`; runs ascend in term and index; the entries up to
//! `persisted` are durable exactly as they stand in the log now.

use std::collections::VecDeque;

use crate::types::{EntryKind, EntryMeta, Index, Term, TermRun};

/// How many recent entries' sizes are remembered: 8 bytes each. Older ones travel one to a message.
const SIZES_MAX: usize = 1 << 16;

/// An append given to the host and not reported durable yet.
#[derive(Clone, Copy, Debug)]
struct Unreported {
    first: Index,
    last: Index,
    last_term: Term,
    /// The node's term when it was handed over.
    handed_in: Term,
}

/// Why a restored log makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// `last_index` is below `first_index - 1`, or `first_index` is 0.
    #[error("the log ends before it begins: entries {first_index} to {last_index}")]
    Range {
        /// As restored.
        first_index: Index,
        /// As restored.
        last_index: Index,
    },
    /// A run does not begin after the one before, in both term and index.
    #[error("the terms of the log do not ascend at entry {0}")]
    RunOrder(Index),
    /// There are entries that belong to no run, or a run that has no entries.
    #[error("the terms of the log do not cover its entries {first_index} to {last_index}")]
    Coverage {
        /// As restored.
        first_index: Index,
        /// As restored.
        last_index: Index,
    },
}

#[derive(Debug)]
pub(crate) struct Log {
    runs: Vec<TermRun>,
    first: Index,
    last: Index,
    persisted: Index,
    unreported: VecDeque<Unreported>,
    /// Size and kind of the entries up to `last`.
    sizes: VecDeque<(u32, EntryKind)>,
}

impl Log {
    /// A log of which everything is durable.
    pub(crate) fn restore(runs: Vec<TermRun>, first: Index, last: Index) -> Result<Log, LogError> {
        if first == 0 || last == Index::MAX || last < first - 1 {
            return Err(LogError::Range { first_index: first, last_index: last });
        }
        let mut before = TermRun { term: 0, first: 0 };
        for run in &runs {
            if run.term <= before.term || run.first <= before.first {
                return Err(LogError::RunOrder(run.first));
            }
            before = *run;
        }
        let empty = last < first;
        let begins = runs.first().map_or(Index::MAX, |run| run.first);
        if before.first > last || (!empty && begins > first) {
            return Err(LogError::Coverage { first_index: first, last_index: last });
        }
        let mut log =
            Log { runs, first, last, persisted: last, unreported: VecDeque::new(), sizes: VecDeque::new() };
        log.forget_runs_before_first();
        Ok(log)
    }

    pub(crate) fn first(&self) -> Index {
        self.first
    }

    pub(crate) fn last(&self) -> Index {
        self.last
    }

    /// Term of the last entry, or of the one before the log if it is empty (0 if that is not known).
    pub(crate) fn last_term(&self) -> Term {
        self.term_at(self.last).unwrap_or(0)
    }

    /// Entries up to here are durable.
    pub(crate) fn persisted(&self) -> Index {
        self.persisted
    }

    /// Term of the entry at `index`: known from the entry before the first (0 for index 0) to the last.
    pub(crate) fn term_at(&self, index: Index) -> Option<Term> {
        if index > self.last || index + 1 < self.first {
            return None;
        }
        if index == 0 {
            return Some(0);
        }
        let after = self.runs.partition_point(|run| run.first <= index);
        self.runs[..after].last().map(|run| run.term)
    }

    /// The last entry at or before `index` whose term is not above `term`, with its term: where two logs may
    /// still agree. If only entries dropped from the front may be meant, their last, with term 0 if that is
    /// not known.
    pub(crate) fn last_not_above(&self, index: Index, term: Term) -> (Index, Term) {
        let mut index = index.min(self.last);
        for run in self.runs.iter().rev() {
            if run.first > index {
                continue;
            }
            if run.term <= term {
                return (index, run.term);
            }
            index = run.first - 1;
        }
        let before = (self.first - 1).min(index);
        (before, self.term_at(before).unwrap_or(0))
    }

    /// Whether a log that ends with (`last_index`, `last_term`) is at least as complete as this one (section
    /// 5.4.1 of the Raft paper).
    pub(crate) fn is_covered_by(&self, last_index: Index, last_term: Term) -> bool {
        (last_term, last_index) >= (self.last_term(), self.last)
    }

    /// The entries from `from` on: at most `count_max`, and at most `bytes_max` unless the first alone is
    /// larger. An entry of unknown size comes alone.
    pub(crate) fn entries(&self, from: Index, count_max: usize, bytes_max: u64) -> Vec<EntryMeta> {
        if from > self.last || from < self.first {
            return Vec::new();
        }
        let count_max = u64::try_from(count_max).unwrap_or(u64::MAX).min(self.last - from + 1);
        let sizes_first = self.last + 1 - self.sizes.len() as u64;
        let mut run = self.runs.partition_point(|run| run.first <= from) - 1;
        if from < sizes_first {
            let term = self.runs[run].term;
            return vec![EntryMeta { term, bytes: EntryMeta::UNKNOWN_BYTES, kind: EntryKind::Ops }];
        }
        let offset = (from - sizes_first) as usize;
        let mut total = 0u64;
        let count = self
            .sizes
            .range(offset..)
            .take(count_max as usize)
            .take_while(|(bytes, _)| {
                let fits = total == 0 || total + u64::from(*bytes) <= bytes_max;
                total += u64::from(*bytes).max(1);
                fits
            })
            .count();
        let mut entries = Vec::with_capacity(count);
        for (index, (bytes, kind)) in (from..).zip(self.sizes.range(offset..offset + count)) {
            while self.runs.get(run + 1).is_some_and(|next| next.first <= index) {
                run += 1;
            }
            entries.push(EntryMeta { term: self.runs[run].term, bytes: *bytes, kind: *kind });
        }
        entries
    }

    /// Puts `entries` at `first`, replacing what was there and after; the node is in term `handed_in`.
    /// `joined` says that the host sees them as part of the previous append.
    pub(crate) fn append(&mut self, first: Index, entries: &[EntryMeta], handed_in: Term, joined: bool) {
        assert!(first >= self.first && first <= self.last + 1, "an append must touch the log");
        let Some(last_entry) = entries.last() else { return };
        self.truncate(first);
        for entry in entries {
            self.last += 1;
            if self.runs.last().is_none_or(|run| run.term != entry.term) {
                self.runs.push(TermRun { term: entry.term, first: self.last });
            }
            self.sizes.push_back((entry.bytes, entry.kind));
        }
        let excess = self.sizes.len().saturating_sub(SIZES_MAX);
        self.sizes.drain(..excess);
        match self.unreported.back_mut() {
            Some(previous) if joined => {
                previous.last = self.last;
                previous.last_term = last_entry.term;
            }
            _ => {
                let (last, last_term) = (self.last, last_entry.term);
                self.unreported.push_back(Unreported { first, last, last_term, handed_in });
            }
        }
    }

    /// Drops the entries from `from` on.
    fn truncate(&mut self, from: Index) {
        if from > self.last {
            return;
        }
        let keep = self.runs.partition_point(|run| run.first < from);
        self.runs.truncate(keep);
        let dropped = usize::try_from(self.last + 1 - from).unwrap_or(usize::MAX);
        self.sizes.truncate(self.sizes.len().saturating_sub(dropped));
        self.last = from - 1;
        self.persisted = self.persisted.min(self.last);
    }

    /// The host says that an append which ends with (or at least reaches) this entry is durable, and all
    /// before it. Returns the term in which that append was handed over, and whether more of the log is
    /// durable than before; `None` if the report fits nothing that is still of interest.
    pub(crate) fn on_persisted(&mut self, term: Term, index: Index) -> Option<(Term, bool)> {
        let whole =
            self.unreported.iter().position(|append| append.last == index && append.last_term == term);
        let handed_in = if let Some(position) = whole {
            let handed_in = self.unreported[position].handed_in;
            self.unreported.drain(..=position);
            handed_in
        } else {
            // A part of an append: it counts if nothing after it replaced that part.
            let position =
                self.unreported.iter().position(|append| append.first <= index && index < append.last)?;
            let replaced = self.unreported.range(position + 1..).any(|append| append.first <= index);
            if replaced || self.term_at(index) != Some(term) {
                return None;
            }
            self.unreported.drain(..position);
            self.unreported[0].first = index + 1;
            self.unreported[0].handed_in
        };
        let unchanged = self.unreported.iter().map(|append| append.first - 1).min().unwrap_or(Index::MAX);
        let durable = index.min(unchanged);
        let grew = durable > self.persisted;
        self.persisted = self.persisted.max(durable);
        Some((handed_in, grew))
    }

    /// The host dropped the entries before `first`.
    pub(crate) fn drop_before(&mut self, first: Index) {
        assert!(first <= self.last + 1, "a log cannot begin after its end");
        if first <= self.first {
            return;
        }
        self.first = first;
        self.forget_runs_before_first();
        let kept = usize::try_from(self.last + 1 - first).unwrap_or(usize::MAX);
        let excess = self.sizes.len().saturating_sub(kept);
        self.sizes.drain(..excess);
    }

    /// Keeps the run of the entry before the first: its term is needed to send the first.
    fn forget_runs_before_first(&mut self) {
        let before = self.first - 1;
        let needed = self.runs.partition_point(|run| run.first <= before).saturating_sub(1);
        self.runs.drain(..needed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(runs: &[(Term, Index)]) -> Vec<TermRun> {
        runs.iter().map(|&(term, first)| TermRun { term, first }).collect()
    }

    fn entries(terms: &[Term]) -> Vec<EntryMeta> {
        terms.iter().map(|&term| EntryMeta { term, bytes: 10, kind: EntryKind::Ops }).collect()
    }

    /// Entries 1 to 9 of the terms 1 1 1 4 4 5 5 6 6.
    fn paper_log() -> Log {
        Log::restore(runs(&[(1, 1), (4, 4), (5, 6), (6, 8)]), 1, 9).expect("a valid log")
    }

    #[test]
    fn terms_are_known_from_before_the_first_entry_to_the_last() {
        let log = paper_log();
        let terms: Vec<_> = (0..=10).map(|index| log.term_at(index)).collect();
        let expected = [0, 1, 1, 1, 4, 4, 5, 5, 6, 6].map(Some).into_iter().chain([None]);
        assert!(terms.into_iter().eq(expected));

        let log = Log::restore(runs(&[(1, 1), (4, 4), (5, 6)]), 6, 7).expect("a valid log");
        assert_eq!(
            (log.term_at(4), log.term_at(5), log.term_at(6), log.term_at(8)),
            (None, Some(4), Some(5), None)
        );

        // The term before the first entry may be forgotten; an empty log may be anywhere.
        let log = Log::restore(runs(&[(5, 6)]), 6, 7).expect("a valid log");
        assert_eq!((log.term_at(5), log.term_at(6)), (None, Some(5)));
        let log = Log::restore(runs(&[(4, 2)]), 6, 5).expect("a valid log");
        assert_eq!((log.term_at(5), log.term_at(6), log.last_term()), (Some(4), None, 4));
    }

    #[test]
    fn contradictions_are_refused() {
        let restore = |list: &[(Term, Index)], first, last| Log::restore(runs(list), first, last).map(|_| ());
        let range = |first_index, last_index| Err(LogError::Range { first_index, last_index });
        let coverage = |first_index, last_index| Err(LogError::Coverage { first_index, last_index });
        assert_eq!(restore(&[], 1, 0), Ok(()));
        assert_eq!(restore(&[], 0, 0), range(0, 0));
        assert_eq!(restore(&[], 5, 3), range(5, 3));
        assert_eq!(restore(&[], 1, 1), coverage(1, 1));
        assert_eq!(restore(&[(1, 2)], 1, 3), coverage(1, 3));
        assert_eq!(restore(&[(1, 1), (2, 5)], 1, 4), coverage(1, 4));
        assert_eq!(restore(&[(2, 1), (1, 3)], 1, 4), Err(LogError::RunOrder(3)));
        assert_eq!(restore(&[(1, 3), (2, 3)], 3, 4), Err(LogError::RunOrder(3)));
        assert_eq!(restore(&[(0, 1)], 1, 1), Err(LogError::RunOrder(1)));
    }

    #[test]
    fn back_up_skips_whole_terms() {
        let log = paper_log();
        for (index, term, expected) in [
            (9, 6, (9, 6)),
            (20, 9, (9, 6)),
            (9, 5, (7, 5)),
            (9, 4, (5, 4)),
            (9, 3, (3, 1)),
            (8, 6, (8, 6)),
            (6, 4, (5, 4)),
            (2, 9, (2, 1)),
            (9, 0, (0, 0)),
        ] {
            assert_eq!(log.last_not_above(index, term), expected, "{index}/{term}");
        }
        let log = Log::restore(runs(&[(4, 4), (5, 6), (6, 8)]), 6, 9).expect("a valid log");
        assert_eq!(log.last_not_above(9, 4), (5, 4));
        assert_eq!(log.last_not_above(9, 3), (3, 0), "what came before is not known");
        assert_eq!(log.last_not_above(2, 9), (2, 0));
    }

    #[test]
    fn appending_replaces_what_was_there() {
        let mut log = paper_log();
        log.append(6, &entries(&[7, 7]), 7, false);
        assert_eq!((log.last(), log.last_term(), log.persisted()), (7, 7, 5));
        assert_eq!(log.runs, runs(&[(1, 1), (4, 4), (7, 6)]));
        // A later leader brings back entries of a term that was replaced.
        log.append(4, &entries(&[4, 5, 8]), 8, false);
        assert_eq!(log.runs, runs(&[(1, 1), (4, 4), (5, 5), (8, 6)]));
        assert_eq!((log.last(), log.persisted()), (6, 3));
    }

    #[test]
    fn sizes_bound_what_is_sent_together() {
        let mut log = Log::restore(runs(&[(1, 1)]), 1, 2).expect("a valid log");
        let sizes = [40, 0, 0, 60, 10];
        let fresh: Vec<_> =
            sizes.iter().map(|&bytes| EntryMeta { term: 2, bytes, kind: EntryKind::Ops }).collect();
        log.append(3, &fresh, 2, false);
        let sent = |from, count, bytes| {
            let entries = log.entries(from, count, bytes);
            entries.iter().map(|entry| (entry.term, entry.bytes)).collect::<Vec<_>>()
        };
        // Restored entries have unknown sizes and go alone.
        assert_eq!(sent(1, 9, 1000), [(1, EntryMeta::UNKNOWN_BYTES)]);
        assert_eq!(sent(3, 9, 1000).len(), 5);
        assert_eq!(sent(3, 2, 1000), [(2, 40), (2, 0)]);
        assert_eq!(sent(3, 9, 50).len(), 3);
        assert_eq!(sent(6, 9, 50), [(2, 60)], "too large, but one always goes");
        assert_eq!(sent(3, 9, 1), [(2, 40)]);
        assert_eq!(sent(8, 9, 50), []);
    }

    #[test]
    fn old_sizes_are_forgotten() {
        let mut log = Log::restore(Vec::new(), 1, 0).expect("a valid log");
        log.append(1, &entries(&vec![1; SIZES_MAX + 3]), 1, false);
        assert_eq!(log.entries(3, 9, 1000)[0].bytes, EntryMeta::UNKNOWN_BYTES);
        assert_eq!(log.entries(4, 1, 1000)[0].bytes, 10);
        log.append(5, &entries(&[2]), 2, false);
        assert_eq!(log.entries(3, 9, 1000)[0].bytes, EntryMeta::UNKNOWN_BYTES);
        assert_eq!(log.entries(4, 9, 1000).len(), 2);
    }

    #[test]
    fn reports_count_for_the_append_they_fit() {
        let mut log = Log::restore(runs(&[(1, 1)]), 1, 1).expect("a valid log");
        log.append(2, &entries(&[2, 2]), 2, false);
        log.append(4, &entries(&[2]), 3, false);
        assert_eq!(log.on_persisted(2, 9), None, "no such entry");
        assert_eq!(log.on_persisted(3, 3), None, "no such term");
        assert_eq!(log.on_persisted(2, 2), Some((2, true)), "a part");
        assert_eq!(log.persisted(), 2);
        assert_eq!(log.on_persisted(2, 4), Some((3, true)), "the last speaks for those before");
        assert_eq!(log.persisted(), 4);
        assert_eq!(log.on_persisted(2, 3), None, "reported already");
    }

    #[test]
    fn a_report_of_a_replaced_write_proves_nothing() {
        let mut log = Log::restore(runs(&[(1, 1)]), 1, 1).expect("a valid log");
        log.append(2, &entries(&[2, 2]), 2, false);
        log.append(3, &entries(&[3]), 3, false);
        log.append(3, &entries(&[2]), 4, false);
        // The first append is durable, but its entry 3 is not the one in the log, though it looks the same.
        assert_eq!(log.on_persisted(2, 3), Some((2, true)));
        assert_eq!(log.persisted(), 2);
        assert_eq!(log.on_persisted(3, 3), Some((3, false)));
        assert_eq!(log.on_persisted(2, 3), Some((4, true)));
        assert_eq!(log.persisted(), 3);
    }

    #[test]
    fn a_part_that_was_replaced_does_not_count() {
        let mut log = Log::restore(runs(&[(1, 1)]), 1, 1).expect("a valid log");
        log.append(2, &entries(&[2, 2, 2]), 2, false);
        log.append(3, &entries(&[3]), 3, false);
        assert_eq!(log.on_persisted(2, 3), None);
        assert_eq!(log.on_persisted(2, 2), Some((2, true)));
        assert_eq!(log.persisted(), 2);
    }

    #[test]
    fn the_front_can_be_dropped() {
        let mut log = paper_log();
        log.drop_before(6);
        assert_eq!(
            (log.first(), log.term_at(4), log.term_at(5), log.term_at(6)),
            (6, None, Some(4), Some(5))
        );
        log.drop_before(3);
        assert_eq!(log.first(), 6);
        log.drop_before(10);
        assert_eq!((log.last(), log.last_term(), log.term_at(8)), (9, 6, None));
        log.append(10, &entries(&[6]), 6, false);
        assert_eq!(log.entries(10, 1, 100).len(), 1);
    }
}

//! The log as the algorithm sees it: which terms it consists of, where it begins and ends, and how much is durable.
//!
//! Terms are kept as runs, so a log of any length takes a few words; sizes and kinds are remembered for the most recent
//! entries only, and the host, which has the payloads, fills in the rest.
//!
//! **Durability.** Every append handed to the host is remembered until it is reported durable, in order, because an
//! index and a term alone do not name a write: an entry can be appended, replaced by a later leader's, and appended again
//! by a still later one, and a late report of the first write says nothing about the third. A report counts for the
//! oldest unreported append that it fits, and what later appends replaced does not count.
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

    /// The last entry at or before `index` whose term is not above `term`, with its term: where two logs may still
    /// agree. The position before the log if there is none.
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

    /// Whether a log that ends with (`last_index`, `last_term`) is at least as complete as this one (section 5.4.1
    /// of the Raft paper).
    pub(crate) fn is_covered_by(&self, last_index: Index, last_term: Term) -> bool {
        (last_term, last_index) >= (self.last_term(), self.last)
    }

    /// The entries from `from` on: at most `count_max`, and at most `bytes_max` unless the first alone is larger. An
    /// entry of unknown size comes alone.
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

    /// Puts `entries` at `first`, replacing what was there and after. `joined` says that the host sees them as part
    /// of the previous append.
    pub(crate) fn append(&mut self, first: Index, entries: &[EntryMeta], joined: bool) {
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
                self.unreported.push_back(Unreported { first, last: self.last, last_term: last_entry.term });
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

    /// The host says that an append which ends with (or at least reaches) this entry is durable, and all before it.
    /// Returns whether more of the log is durable than before.
    pub(crate) fn on_persisted(&mut self, term: Term, index: Index) -> bool {
        let found =
            self.unreported.iter().position(|append| append.last == index && append.last_term == term);
        let durable = match found {
            Some(position) => {
                self.unreported.drain(..=position);
                index
            }
            // A part of an append: it counts if nothing after it replaced that part.
            None => {
                let part = self.unreported.iter().position(|a| a.first <= index && index < a.last);
                let Some(position) = part else { return false };
                let replaced = self.unreported.range(position + 1..).any(|append| append.first <= index);
                if replaced || self.term_at(index) != Some(term) {
                    return false;
                }
                self.unreported.drain(..position);
                self.unreported[0].first = index + 1;
                index
            }
        };
        let unchanged = self.unreported.iter().map(|append| append.first - 1).min().unwrap_or(Index::MAX);
        let durable = durable.min(unchanged);
        if durable <= self.persisted {
            return false;
        }
        self.persisted = durable;
        true
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

//! One group in memory: its log's shape, the recent payloads, and the index over what was applied.
//!
//! ```text
//!  first_index        tail_first        applied        last_index
//!      |  payload on flash |  payload in memory ............ |
//!      |  applied to the index ............ | waiting for Raft|
//! ```
//!
//! Invariants:
//! - `first_index - 1 <= applied <= last_index`, and `tail_first <= applied + 1`: what is not applied is in memory,
//!   so that apply never reads.
//! - An entry leaves the tail only once it is durable (its place is known) and applied. A key whose place is pending
//!   therefore always finds its payload in the tail.
//! - The applied part of the log is never truncated from behind; from the front, only the applied part is. What indexes point at
//!   stays on the medium all the same.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::chronicle::Chronicle;
use crate::entry::{ENTRY_OPS, Entry, GroupId, HardState};
use crate::index::{self, Index, Located, Place};
use crate::lineage::{self, TermRun};
use crate::log::Log;
use crate::op::{self, Op};
use crate::policy::LogTime;
use crate::policy::heat::Heat;
use crate::record;
use crate::state_record::{self, StateRecord};

/// A payload in memory.
#[derive(Debug)]
pub(crate) struct TailEntry {
    pub(crate) kind: u8,
    /// Keys whose live version this entry is. Only such payloads are worth caching.
    live: u32,
    /// Where the records stand that it superseded. They are needed until it is durable itself.
    superseded: Vec<Place>,
    pub(crate) payload: Bytes,
}

impl TailEntry {
    /// What it counts for against the tail's limit, in bytes.
    fn bytes(&self) -> u64 {
        self.payload.len() as u64 + size_of::<Self>() as u64
    }
}

/// Memory that the puts of an entry may add to the index, in bytes.
pub(crate) fn index_bytes_max(kind: u8, payload: &[u8]) -> u64 {
    if kind == ENTRY_OPS { put_keys(payload).map(index::key_bytes_max).sum() } else { 0 }
}

/// Keys that the ops of a payload put.
pub(crate) fn put_keys(payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    op::decode(payload).flatten().filter_map(|op| match op {
        Op::Put { key, .. } => Some(key),
        Op::Delete { .. } => None,
    })
}

#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) id: GroupId,
    pub(crate) incarnation: u32,
    pub(crate) hard_state: HardState,
    pub(crate) membership: Bytes,
    pub(crate) suspect: bool,
    pub(crate) runs: Vec<TermRun>,
    /// The log's lineage is not what the newest state record says (recovery cut the log).
    pub(crate) lineage_unrecorded: bool,
    pub(crate) first_index: u64,
    pub(crate) last_index: u64,
    pub(crate) applied: u64,
    /// Where the entries from `first_index` stand.
    places: VecDeque<Place>,
    tail: VecDeque<TailEntry>,
    /// Index of the tail's front (the next index, when it is empty).
    tail_first: u64,
    /// Entries up to here should leave the tail as soon as they may.
    tail_expired: u64,
    pub(crate) index: Index,
    /// When its entries were appended.
    pub(crate) chronicle: Chronicle,
    /// Memory that the puts which are not applied may add to the index, in bytes.
    promised_bytes: u64,
    /// Whether the state awaits a flush, and how it is asked for.
    pub(crate) state_pending: StatePending,
    /// Counts changes of the state; those up to `state_durable` are durable.
    pub(crate) state_issued: u64,
    pub(crate) state_durable: u64,
    /// Bytes applied since the last state record, which also says how far applying got.
    pub(crate) unmarked_bytes: u64,
    /// Commit index in the newest state record.
    pub(crate) marked_commit: u64,
}

/// Whether a group's state awaits a flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StatePending {
    /// The newest state is on the medium or in the flush under way.
    No,
    /// It goes along with the next flush, but asks for none.
    Along,
    /// Somebody waits for it.
    Wanted,
}

/// A payload that left the tail.
pub(crate) struct Evicted {
    pub(crate) index: u64,
    pub(crate) bytes: u64,
    /// The payload, if some key's live version is in it.
    pub(crate) live_payload: Option<Bytes>,
}

impl Group {
    pub(crate) fn new(id: GroupId, incarnation: u32, membership: Bytes) -> Self {
        Self {
            id,
            incarnation,
            hard_state: HardState::default(),
            membership,
            suspect: false,
            runs: Vec::new(),
            lineage_unrecorded: false,
            first_index: 1,
            last_index: 0,
            applied: 0,
            places: VecDeque::new(),
            tail: VecDeque::new(),
            tail_first: 1,
            tail_expired: 0,
            index: Index::default(),
            chronicle: Chronicle::new(0, LogTime(0)),
            promised_bytes: 0,
            state_pending: StatePending::No,
            state_issued: 0,
            state_durable: 0,
            unmarked_bytes: 0,
            marked_commit: 0,
        }
    }

    /// A group whose entries up to `applied` are applied and on the medium, at `places` from `first_index` on.
    pub(crate) fn restored(
        id: GroupId,
        incarnation: u32,
        state: StateRecord,
        hard_state: HardState,
        index: Index,
        places: VecDeque<Place>,
    ) -> Self {
        let applied = state.first_index - 1 + places.len() as u64;
        Self {
            hard_state,
            suspect: state.suspect,
            runs: state.runs,
            first_index: state.first_index,
            last_index: applied,
            applied,
            places,
            tail_first: applied + 1,
            index,
            marked_commit: hard_state.commit,
            ..Self::new(id, incarnation, state.membership)
        }
    }

    /// The term of the entry at `index`, or of the one before the first; index 0 is before every log and has term 0.
    pub(crate) fn term_at(&self, index: u64) -> Option<u64> {
        if index == 0 {
            return Some(0);
        }
        if index + 1 < self.first_index || index > self.last_index {
            return None;
        }
        lineage::term_at(&self.runs, index)
    }

    pub(crate) fn place(&self, index: u64) -> Option<Place> {
        self.places.get(usize::try_from(index.checked_sub(self.first_index)?).ok()?).copied()
    }

    /// Places of all entries that are durable.
    pub(crate) fn places(&self) -> impl Iterator<Item = Place> {
        self.places.iter().copied().filter(|place| !place.is_pending())
    }

    pub(crate) fn tail_entry(&self, index: u64) -> Option<&TailEntry> {
        self.tail.get(usize::try_from(index.checked_sub(self.tail_first)?).ok()?)
    }

    /// Cuts the log so that it ends before `first`, and returns the bytes that left the tail. True if the lineage
    /// changed.
    pub(crate) fn truncate_from(&mut self, first: u64, log: &mut Log) -> (u64, bool) {
        assert!(first > self.applied, "{}: index {first} is applied and cannot be truncated", self.id);
        let kept = (first - self.tail_first) as usize;
        let mut bytes = 0;
        for entry in self.tail.drain(kept..) {
            bytes += entry.bytes();
            self.promised_bytes -= index_bytes_max(entry.kind, &entry.payload);
        }
        self.places.drain((first - self.first_index) as usize..).for_each(|place| log.release(place));
        self.last_index = first - 1;
        (bytes, lineage::truncate_from(&mut self.runs, first))
    }

    /// The log begins at `first` from now on, or at the first entry before it that is not durable yet.
    pub(crate) fn truncate_front(&mut self, first: u64, log: &mut Log) {
        assert!(first <= self.applied + 1, "{}: index {first} is not applied and must be kept", self.id);
        while self.first_index < first
            && let Some(place) = self.places.front().copied().filter(|place| !place.is_pending())
        {
            log.release(place);
            self.places.pop_front();
            self.first_index += 1;
        }
    }

    /// Appends an entry at `last_index + 1`. Returns its bytes in the tail, and whether the lineage changed.
    pub(crate) fn push(&mut self, entry: &Entry) -> (u64, bool) {
        let new_term = self.runs.last().is_none_or(|run| run.term != entry.term);
        if new_term {
            self.runs.push(TermRun { term: entry.term, first: self.last_index + 1 });
        }
        (self.push_payload(entry, Place::PENDING), new_term)
    }

    /// Appends an entry that the lineage covers already. Returns its bytes in the tail.
    pub(crate) fn push_payload(&mut self, entry: &Entry, place: Place) -> u64 {
        self.last_index += 1;
        debug_assert_eq!(lineage::term_at(&self.runs, self.last_index), Some(entry.term));
        let tail_entry =
            TailEntry { kind: entry.kind, live: 0, superseded: Vec::new(), payload: entry.payload.clone() };
        let bytes = tail_entry.bytes();
        self.promised_bytes += index_bytes_max(entry.kind, &entry.payload);
        self.tail.push_back(tail_entry);
        self.places.push_back(place);
        bytes
    }

    /// Points the index at the entries up to `index`. Calls `overwritten` with each version (older than the tail)
    /// that lost a key.
    pub(crate) fn apply(
        &mut self,
        index: u64,
        now: LogTime,
        log: &mut Log,
        mut overwritten: impl FnMut(u64),
    ) {
        assert!(index <= self.last_index, "{}: index {index} is not stored", self.id);
        for version in self.applied + 1..=index {
            let at = (version - self.tail_first) as usize;
            let entry = &self.tail[at];
            let payload = entry.payload.clone();
            self.unmarked_bytes += payload.len() as u64;
            if entry.kind != ENTRY_OPS {
                continue;
            }
            let place = self.places[(version - self.first_index) as usize];
            let durable = !place.is_pending();
            let written_at = self.written_at(version, now);
            for (op, place) in record::parts(&payload, place) {
                let (old, new) = match op {
                    Op::Put { key, .. } => {
                        self.tail[at].live += 1;
                        self.promised_bytes -= index::key_bytes_max(key);
                        let (chronicle, last) = (&self.chronicle, self.last_index);
                        let old = self.index.update(key, |old| Located {
                            version,
                            place,
                            heat: old.map_or(Heat::NEW, |old| {
                                let lived = written_at.since(chronicle.time_of(old.version, last, now));
                                old.heat.overwritten(lived)
                            }),
                        });
                        (old, Some(place))
                    }
                    Op::Delete { key } => (self.index.remove(key), None),
                };
                log.moved(None, new);
                let old_place = old.map(|old| old.place).filter(|place| !place.is_pending());
                match durable {
                    true => log.moved(old_place, None),
                    false => self.tail[at].superseded.extend(old_place),
                }
                if let Some(old) = old {
                    match old.version.checked_sub(self.tail_first) {
                        Some(at) => self.tail[at as usize].live -= 1,
                        None => overwritten(old.version),
                    }
                }
            }
        }
        self.applied = self.applied.max(index);
    }

    /// When the entry of `index` was appended.
    pub(crate) fn written_at(&self, index: u64, now: LogTime) -> LogTime {
        self.chronicle.time_of(index, self.last_index, now)
    }

    /// The heat of a key once it is overwritten now.
    pub(crate) fn heat_if_put(&self, key: &[u8], now: LogTime) -> Heat {
        let lived = |old: Located| old.heat.overwritten(now.since(self.written_at(old.version, now)));
        self.index.get(key).map_or(Heat::NEW, lived)
    }

    /// The record of (`index`, `term`) is durable at `place`. Nothing happens if the log holds another entry there.
    pub(crate) fn placed(&mut self, index: u64, term: u64, place: Place, log: &mut Log) {
        // An entry that left the front of the log is committed: its term is that of the lineage still.
        if index > self.last_index || lineage::term_at(&self.runs, index) != Some(term) {
            return;
        }
        if let Some(at) = index.checked_sub(self.first_index) {
            let before = std::mem::replace(&mut self.places[at as usize], place);
            log.release(before);
            log.retain(place);
        }
        if index > self.applied {
            return;
        }
        // Applied before it was durable here (a quorum of others had it): the index still says "pending". If the
        // payload left the tail, the index knows an earlier place of the same entry, which stays good.
        if let Some(entry) = index.checked_sub(self.tail_first).map(|at| &mut self.tail[at as usize])
            && entry.kind == ENTRY_OPS
        {
            std::mem::take(&mut entry.superseded).into_iter().for_each(|old| log.moved(Some(old), None));
            for (op, place) in record::parts(&entry.payload, place) {
                if let Some(old) = self.index.repoint(op.key(), index, place) {
                    log.moved(Some(old), Some(place));
                }
            }
        }
    }

    /// Entries up to `index` should leave the tail as soon as they may.
    pub(crate) fn expire_tail(&mut self, index: u64) {
        self.tail_expired = self.tail_expired.max(index);
    }

    /// Whether the entry of an index that is in the tail is not durable yet.
    fn awaits_place(&self, index: u64) -> bool {
        self.place(index).is_some_and(|place| place.is_pending())
    }

    /// Takes the front of the tail, if it expired, is durable and applied.
    pub(crate) fn evict(&mut self) -> Option<Evicted> {
        let index = self.tail_first;
        if index > self.tail_expired.min(self.applied) || self.awaits_place(index) {
            return None;
        }
        let entry = self.tail.pop_front()?;
        self.tail_first += 1;
        let bytes = entry.bytes();
        Some(Evicted { index, bytes, live_payload: (entry.live > 0).then_some(entry.payload) })
    }

    /// Memory of the index, and what the puts that are not applied may add, in bytes.
    pub(crate) fn index_demand(&self) -> u64 {
        self.index.memory_bytes() + self.promised_bytes
    }

    /// What the next state record says of commit: all that is applied is committed.
    pub(crate) fn commit_mark(&self) -> u64 {
        self.hard_state.commit.max(self.applied)
    }

    pub(crate) fn state_record(&self) -> StateRecord {
        StateRecord {
            suspect: self.suspect,
            first_index: self.first_index,
            vote: self.hard_state.vote,
            runs: self.runs.clone(),
            membership: self.membership.clone(),
        }
    }

    /// Bytes of its state's payload if the lineage had `more_runs` more.
    pub(crate) fn state_bytes(&self, more_runs: usize) -> u64 {
        state_record::payload_bytes(self.runs.len() + more_runs, self.membership.len())
    }
}

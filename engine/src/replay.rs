//! Replay: from the records that count, in the order they were written, to the groups as they were.
//!
//! Invariants:
//! - The newest state record of a group is the truth about it. Only records of the incarnation that it names count
//!   (rule 3), and an entry only if the lineage gives its index that term (rule 2).
//! - Only entries up to the recorded commit are applied, in the order of their indexes, so the higher seq wins; the
//!   same entry written again later moves its place (rule 1). What is above the commit waits for Raft (rule 9).
//! - The recovered log has no holes: it ends before the first index whose entry is missing.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::entry::{ENTRY_OPS, Entry, GroupId, HardState};
use crate::group::Group;
use crate::index::{Index, Located, Place};
use crate::lineage;
use crate::op::{self, Op};
use crate::record::{Record, RecordKind};
use crate::state_record::StateRecord;

/// A record that counts but cannot be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unreadable;

#[derive(Debug, Default)]
pub(crate) struct Replay {
    groups: BTreeMap<GroupId, ReplayedGroup>,
    pub(crate) entries: u64,
}

#[derive(Debug, Default)]
struct ReplayedGroup {
    /// Of the newest state record; 0 before the first.
    incarnation: u32,
    newest: Option<NewestState>,
    index: Index,
    /// Places of the applied entries.
    places: VecDeque<Place>,
    /// Entries above the applied ones, by index, in the order they were written.
    waiting: BTreeMap<u64, Vec<Candidate>>,
}

#[derive(Debug)]
struct NewestState {
    epoch: u32,
    term: u64,
    commit: u64,
    record: StateRecord,
}

#[derive(Debug)]
struct Candidate {
    incarnation: u32,
    term: u64,
    kind: u8,
    place: Place,
    payload: Bytes,
}

/// A group as replay leaves it.
pub(crate) struct Replayed {
    pub(crate) group: Group,
    /// Entries that follow the applied ones, with their places.
    pub(crate) waiting: Vec<(Entry, Place)>,
    /// Epoch of the newest state record.
    pub(crate) state_epoch: u32,
}

impl Replay {
    /// The next record, of a frame of this epoch.
    pub(crate) fn record(&mut self, epoch: u32, record: &Record<'_>, place: Place) -> Result<(), Unreadable> {
        let group = self.groups.entry(record.header.group).or_default();
        match record.header.kind {
            RecordKind::State => group.state(epoch, record),
            RecordKind::Entry => {
                self.entries += 1;
                group.entry(record, place)
            }
        }
    }

    /// The groups, ascending. Entries of a group without any state record are void.
    pub(crate) fn finish(self) -> Vec<Replayed> {
        self.groups.into_iter().filter_map(|(id, group)| group.finish(id)).collect()
    }
}

impl ReplayedGroup {
    fn applied(&self) -> u64 {
        self.places.len() as u64
    }

    fn state(&mut self, epoch: u32, record: &Record<'_>) -> Result<(), Unreadable> {
        let state = StateRecord::decode(record.payload).ok_or(Unreadable)?;
        let incarnation = record.header.incarnation;
        if incarnation < self.incarnation {
            return Ok(());
        }
        if incarnation > self.incarnation {
            // Another life: nothing of the old one counts.
            self.incarnation = incarnation;
            self.index = Index::default();
            self.places.clear();
        }
        let (term, commit) = (record.header.term, record.header.index);
        self.newest = Some(NewestState { epoch, term, commit, record: state });
        self.settle();
        Ok(())
    }

    fn entry(&mut self, record: &Record<'_>, place: Place) -> Result<(), Unreadable> {
        let header = &record.header;
        let ops_sound = header.entry_kind != ENTRY_OPS || op::decode(record.payload).all(|op| op.is_ok());
        if !ops_sound || header.index == 0 {
            return Err(Unreadable);
        }
        if header.incarnation < self.incarnation {
            return Ok(());
        }
        if header.incarnation == self.incarnation && header.index <= self.applied() {
            if self.lineage_term(header.index) == Some(header.term) {
                self.move_applied(record, place);
            }
            return Ok(());
        }
        self.waiting.entry(header.index).or_default().push(Candidate {
            incarnation: header.incarnation,
            term: header.term,
            kind: header.entry_kind,
            place,
            payload: Bytes::copy_from_slice(record.payload),
        });
        Ok(())
    }

    fn lineage_term(&self, index: u64) -> Option<u64> {
        lineage::term_at(&self.newest.as_ref()?.record.runs, index)
    }

    /// An applied entry stands in a later place as well: that one wins.
    fn move_applied(&mut self, record: &Record<'_>, place: Place) {
        let index = record.header.index;
        self.places[(index - 1) as usize] = place;
        if record.header.entry_kind == ENTRY_OPS {
            for op in op::decode(record.payload).flatten() {
                self.index.repoint(op.key(), index, place);
            }
        }
    }

    /// Takes the entry of `index`, if it was found.
    fn take_entry(&mut self, index: u64) -> Option<Candidate> {
        let term = self.lineage_term(index)?;
        let incarnation = self.incarnation;
        let candidates = self.waiting.get_mut(&index)?;
        let at =
            candidates.iter().rposition(|found| found.incarnation == incarnation && found.term == term)?;
        let candidate = candidates.swap_remove(at);
        self.waiting.remove(&index);
        Some(candidate)
    }

    /// Applies what is known to be committed.
    fn settle(&mut self) {
        let commit = self.newest.as_ref().map_or(0, |newest| newest.commit);
        while self.applied() < commit {
            let index = self.applied() + 1;
            let Some(entry) = self.take_entry(index) else { return };
            self.places.push_back(entry.place);
            if entry.kind != ENTRY_OPS {
                continue;
            }
            for op in op::decode(&entry.payload).flatten() {
                match op {
                    Op::Put { key, .. } => {
                        self.index.insert(key, Located { version: index, place: entry.place });
                    }
                    Op::Delete { key } => {
                        self.index.remove(key);
                    }
                }
            }
        }
    }

    fn finish(mut self, id: GroupId) -> Option<Replayed> {
        self.settle();
        let first_waiting = self.applied() + 1;
        let mut waiting = Vec::new();
        for index in first_waiting.. {
            let Some(found) = self.take_entry(index) else { break };
            waiting.push((Entry { term: found.term, kind: found.kind, payload: found.payload }, found.place));
        }
        let mut newest = self.newest?;
        let last_index = self.places.len() as u64 + waiting.len() as u64;
        let lineage_cut = lineage::truncate_from(&mut newest.record.runs, last_index + 1);
        let hard_state =
            HardState { term: newest.term, vote: newest.record.vote, commit: newest.commit.min(last_index) };
        let mut group =
            Group::restored(id, self.incarnation, newest.record, hard_state, self.index, self.places);
        group.lineage_unrecorded = lineage_cut;
        Some(Replayed { group, waiting, state_epoch: newest.epoch })
    }
}

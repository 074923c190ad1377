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
use crate::index::{IndexMerge, Located, Place};
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
    keys: IndexMerge,
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
            self.keys = IndexMerge::default();
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
            self.apply(index, record.payload, place);
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
            if entry.kind == ENTRY_OPS {
                self.apply(index, &entry.payload, entry.place);
            }
        }
    }

    /// What the ops of the entry at `index` say, which stands at `place`. Later ops win over earlier ones of the same entry,
    /// and so does what is said again of an entry that was moved.
    fn apply(&mut self, index: u64, payload: &[u8], place: Place) {
        for op in op::decode(payload).flatten() {
            match op {
                Op::Put { key, .. } => self.keys.put(key, Located { version: index, place }),
                Op::Delete { key } => self.keys.delete(key, index),
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
            Group::restored(id, self.incarnation, newest.record, hard_state, self.keys.finish(), self.places);
        group.lineage_unrecorded = lineage_cut;
        Some(Replayed { group, waiting, state_epoch: newest.epoch })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::KeyCursor;
    use crate::lineage::TermRun;
    use crate::record::RecordHeader;
    use std::ops::Bound;

    const GROUP: GroupId = GroupId(1);

    /// Feeds records as frames would bring them.
    #[derive(Default)]
    struct Feed {
        replay: Replay,
        written: u32,
    }

    impl Feed {
        fn record(&mut self, header: RecordHeader, payload: &[u8]) -> Result<(), Unreadable> {
            self.written += 1;
            let place = Place { chunk: 2, offset: self.written, length: 1 };
            let header = RecordHeader { payload_bytes: payload.len() as u32, ..header };
            self.replay.record(1, &Record { header, payload, crc: 0 }, place)
        }

        fn entry(&mut self, incarnation: u32, index: u64, term: u64, key: &str) {
            let payload = op::encode_put(key.as_bytes(), b"value", None);
            let header = header(RecordKind::Entry, incarnation, index, term);
            self.record(header, &payload).unwrap();
        }

        fn state(&mut self, incarnation: u32, commit: u64, runs: &[(u64, u64)]) {
            let state = StateRecord {
                suspect: false,
                first_index: 1,
                vote: 0,
                runs: runs.iter().map(|&(term, first)| TermRun { term, first }).collect(),
                membership: Bytes::new(),
            };
            self.record(header(RecordKind::State, incarnation, commit, 9), &state.encode()).unwrap();
        }

        /// The one group: incarnation, last index, applied keys with their versions.
        fn finish(self) -> (u32, u64, Vec<(String, u64)>) {
            let [replayed] = &self.replay.finish()[..] else { panic!("one group") };
            let mut keys = Vec::new();
            KeyCursor::new(Bound::Unbounded, Bound::Unbounded).visit(
                &replayed.group.index,
                usize::MAX,
                |key, located| keys.push((String::from_utf8(key.to_vec()).unwrap(), located.version)),
            );
            let last = replayed.group.last_index + replayed.waiting.len() as u64;
            (replayed.group.incarnation, last, keys)
        }
    }

    fn header(kind: RecordKind, incarnation: u32, index: u64, term: u64) -> RecordHeader {
        RecordHeader { payload_bytes: 0, kind, entry_kind: ENTRY_OPS, incarnation, group: GROUP, index, term }
    }

    fn keys(list: &[(&str, u64)]) -> Vec<(String, u64)> {
        list.iter().map(|(key, version)| (key.to_string(), *version)).collect()
    }

    /// Without rule 3 (the incarnation is not compared): entry 3 of the old life continues the new log.
    #[test]
    fn rule_3_only_the_incarnation_that_the_newest_state_names_counts() {
        let mut feed = Feed::default();
        feed.state(1, 0, &[(1, 1)]);
        for index in 1..=3 {
            feed.entry(1, index, 1, "old");
        }
        feed.state(1, 1, &[(1, 1)]);
        feed.state(2, 0, &[(1, 1)]);
        feed.entry(2, 1, 1, "new");
        // A record of the old life again, as cleaning may write one.
        feed.entry(1, 2, 1, "old");
        feed.state(2, 1, &[(1, 1)]);
        assert_eq!(feed.finish(), (2, 1, keys(&[("new", 1)])));
    }

    /// The state record of the new life was lost with a damaged frame, a later one was not.
    #[test]
    fn rule_3_entries_may_be_met_before_the_state_that_names_their_incarnation() {
        let mut feed = Feed::default();
        feed.state(1, 0, &[(1, 1)]);
        feed.entry(1, 1, 1, "old");
        feed.state(1, 1, &[(1, 1)]);
        feed.entry(2, 1, 1, "new");
        feed.entry(2, 2, 1, "newer");
        feed.state(2, 2, &[(1, 1)]);
        assert_eq!(feed.finish(), (2, 2, keys(&[("new", 1), ("newer", 2)])));
    }

    /// Without rule 2 (the term is not compared): the key of term 2 is applied at index 2.
    #[test]
    fn rule_2_among_several_entries_of_an_index_the_lineage_chooses() {
        let mut feed = Feed::default();
        feed.state(1, 0, &[(1, 1)]);
        feed.entry(1, 1, 1, "one");
        feed.entry(1, 2, 1, "mine");
        feed.state(1, 0, &[(1, 1), (2, 2)]);
        feed.entry(1, 2, 2, "theirs");
        // A third leader had the first one's entry.
        feed.state(1, 2, &[(1, 1), (3, 3)]);
        assert_eq!(feed.finish(), (1, 2, keys(&[("mine", 2), ("one", 1)])));
    }

    /// Without rule 1 (an applied entry keeps its first place): the places are those of the first record.
    #[test]
    fn rule_1_the_same_entry_written_again_counts_at_its_later_place() {
        let mut feed = Feed::default();
        feed.state(1, 0, &[(1, 1)]);
        feed.entry(1, 1, 1, "key");
        feed.state(1, 1, &[(1, 1)]);
        // Another term's entry of that index is void, wherever it stands.
        feed.entry(1, 1, 1, "key");
        let place = Place { chunk: 2, offset: feed.written, length: 1 };
        feed.entry(1, 1, 2, "key");
        let replayed = feed.replay.finish();
        let group = &replayed[0].group;
        assert_eq!(group.place(1), Some(place));
        assert_eq!(group.index.get(b"key"), Some(Located { version: 1, place }));
    }

    #[test]
    fn the_log_ends_before_the_first_hole_and_goes_on_once_it_is_filled() {
        let mut feed = Feed::default();
        feed.state(1, 0, &[(1, 1)]);
        feed.entry(1, 1, 1, "one");
        feed.entry(1, 3, 1, "three");
        feed.state(1, 3, &[(1, 1)]);
        let mut filled = Feed { replay: feed.replay, written: feed.written };
        filled.entry(1, 2, 1, "two");
        assert_eq!(filled.finish(), (1, 3, keys(&[("one", 1), ("three", 3), ("two", 2)])));

        let mut feed = Feed::default();
        feed.entry(1, 1, 1, "one");
        feed.entry(1, 3, 1, "three");
        feed.state(1, 3, &[(1, 1)]);
        assert_eq!(feed.finish(), (1, 1, keys(&[("one", 1)])));
    }

    #[test]
    fn records_that_make_no_sense_are_reported() {
        let mut feed = Feed::default();
        assert_eq!(feed.record(header(RecordKind::State, 1, 0, 1), b"nonsense"), Err(Unreadable));
        assert_eq!(feed.record(header(RecordKind::Entry, 1, 1, 1), b"nonsense"), Err(Unreadable));
        assert_eq!(feed.record(header(RecordKind::Entry, 1, 0, 1), b""), Err(Unreadable));
        assert!(feed.replay.finish().is_empty());
    }
}

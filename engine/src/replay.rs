//! Replay: from the records that count, in whatever order they are met, to the groups as they were.
//!
//! Invariants:
//! - The newest state record of a group, by LSN, is the truth about it. Only records of the incarnation that it names
//!   count (rule 3), and an entry only if the lineage gives its index that term (rule 2). What is moved by cleaning is
//!   known to be committed and needs no lineage.
//! - Of the records of a key the one with the higher index wins, of equal ones the one that is met last (rule 1): a put that
//!   was moved, or stands twice, says the same at all of its places. Deletes are remembered until all records were met (rule 4).
//! - Only entries up to the recorded commit are applied. What is above the commit waits for Raft (rule 9).
//! - From its first index on the recovered log has no holes: it ends before the first index whose entry is missing. What is
//!   known to be committed but lies behind a hole is not applied.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::entry::{ENTRY_OPS, GroupId, HardState, Lsn};
use crate::group::Group;
use crate::hint::{About, Hint};
use crate::index::{IndexMerge, Located, Place};
use crate::lineage;
use crate::record::RecordKind;
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
    /// The highest index of an entry that the keys know.
    newest_version: u64,
    /// Committed entries from the first index of the log on.
    log: BTreeMap<u64, (Lsn, Place)>,
    /// Records that may or may not count, by index.
    waiting: BTreeMap<u64, Vec<Candidate>>,
}

#[derive(Debug)]
struct NewestState {
    lsn: Lsn,
    chunk: u32,
    term: u64,
    commit: u64,
    record: StateRecord,
}

/// An entry, or a record that was moved by cleaning.
#[derive(Debug, Clone, Copy)]
struct Found {
    incarnation: u32,
    lsn: Lsn,
    /// `None`: it is settled.
    term: Option<u64>,
    kind: u8,
    place: Place,
}

#[derive(Debug)]
struct Candidate {
    found: Found,
    ops: Vec<HeldOp>,
    /// The payload, if the records themselves were read.
    payload: Option<Bytes>,
}

/// What one record says of a key.
#[derive(Debug, Clone, Copy)]
struct KeyOp<'a> {
    key: &'a [u8],
    deletes: bool,
    /// Bytes of the record.
    length: u32,
}

#[derive(Debug)]
struct HeldOp {
    key: Box<[u8]>,
    deletes: bool,
    length: u32,
}

impl<'a> KeyOp<'a> {
    fn of(hint: &Hint<'a>) -> Option<Self> {
        let (key, deletes) = match hint.about {
            About::Put { key, .. } => (key, false),
            About::Delete { key } => (key, true),
            About::Bare | About::State(_) | About::Nonsense => return None,
        };
        Some(Self { key, deletes, length: hint.header.record_bytes() })
    }
}

/// An entry that waits for Raft.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) kind: u8,
    pub(crate) place: Place,
    /// `None`: it must be read.
    pub(crate) payload: Option<Bytes>,
}

/// A group as replay leaves it.
pub(crate) struct Replayed {
    pub(crate) group: Group,
    /// Entries that follow the applied ones.
    pub(crate) waiting: Vec<Waiting>,
    /// Epoch of the newest state record, and the chunk that holds it.
    pub(crate) state_epoch: u32,
    pub(crate) state_chunk: u32,
}

impl Replay {
    /// The hint of the next record of a group, or those of the run of records that make up an entry of several ops. They
    /// stand one after the other from `offset` of `chunk` on; `lsn` is that of the first.
    pub(crate) fn record(
        &mut self,
        lsn: Lsn,
        run: &[Hint<'_>],
        chunk: u32,
        offset: u32,
    ) -> Result<(), Unreadable> {
        let first = &run[0];
        let group = self.groups.entry(first.header.group).or_default();
        let same_entry = |left: usize, record: &Hint<'_>| {
            let (header, head) = (&record.header, &first.header);
            usize::from(header.parts_left) == left
                && (
                    header.kind,
                    header.entry_kind,
                    header.incarnation,
                    header.group,
                    header.index,
                    header.term,
                ) == (head.kind, head.entry_kind, head.incarnation, head.group, head.index, head.term)
        };
        if !run.iter().rev().enumerate().all(|(left, record)| same_entry(left, record)) {
            return Err(Unreadable);
        }
        let length = run.iter().map(|record| record.header.record_bytes()).sum();
        let place = Place { chunk, offset, length };
        match first.header.kind {
            RecordKind::State if run.len() == 1 => group.state(lsn, first, chunk),
            RecordKind::Entry => {
                self.entries += 1;
                let found = Found {
                    incarnation: first.header.incarnation,
                    lsn,
                    term: Some(first.header.term),
                    kind: first.header.entry_kind,
                    place,
                };
                group.candidate(first.header.index, found, run)
            }
            RecordKind::Settled | RecordKind::Tombstone if run.len() == 1 => {
                let found =
                    Found { incarnation: first.header.incarnation, lsn, term: None, kind: ENTRY_OPS, place };
                group.candidate(first.header.index, found, run)
            }
            _ => Err(Unreadable),
        }
    }

    /// The groups, ascending. Entries of a group without any state record are void.
    pub(crate) fn finish(self) -> Vec<Replayed> {
        self.groups.into_iter().filter_map(|(id, group)| group.finish(id)).collect()
    }
}

impl ReplayedGroup {
    fn state(&mut self, lsn: Lsn, record: &Hint<'_>, chunk: u32) -> Result<(), Unreadable> {
        let About::State(payload) = record.about else { return Err(Unreadable) };
        let state = StateRecord::decode(payload).ok_or(Unreadable)?;
        let incarnation = record.header.incarnation;
        if incarnation < self.incarnation {
            return Ok(());
        }
        if incarnation > self.incarnation {
            // Another life: nothing of the old one counts.
            self.incarnation = incarnation;
            self.newest = None;
            self.keys = IndexMerge::default();
            self.newest_version = 0;
            self.log.clear();
        }
        if self.newest.as_ref().is_some_and(|newest| newest.lsn > lsn) {
            return Ok(());
        }
        // What was committed once is committed for ever, though a start after damage may say less.
        let known = self.newest.as_ref().map_or(0, |newest| newest.commit);
        let (term, commit) = (record.header.term, record.header.index.max(known));
        self.log = self.log.split_off(&state.first_index);
        self.newest = Some(NewestState { lsn, chunk, term, commit, record: state });
        self.settle();
        Ok(())
    }

    /// An entry, or a record that was moved, is there.
    fn candidate(&mut self, index: u64, found: Found, run: &[Hint<'_>]) -> Result<(), Unreadable> {
        if index == 0 || run.iter().any(|hint| hint.about == About::Nonsense) {
            return Err(Unreadable);
        }
        if found.incarnation < self.incarnation {
            return Ok(());
        }
        let committed = self.newest.as_ref().is_some_and(|newest| index <= newest.commit);
        if found.incarnation == self.incarnation && (committed || found.term.is_none()) {
            self.take(index, found, run.iter().filter_map(KeyOp::of).collect());
        } else {
            let ops = run.iter().filter_map(KeyOp::of);
            let ops = ops.map(|KeyOp { key, deletes, length }| HeldOp { key: key.into(), deletes, length });
            let payloads: Option<Vec<_>> = run.iter().map(|hint| hint.payload).collect();
            let payload = payloads.map(|parts| parts.concat().into());
            let candidate = Candidate { found, ops: ops.collect(), payload };
            self.waiting.entry(index).or_default().push(candidate);
        }
        Ok(())
    }

    fn lineage_term(&self, index: u64) -> Option<u64> {
        lineage::term_at(&self.newest.as_ref()?.record.runs, index)
    }

    /// A record of this incarnation that is known to be committed, if it is the entry of its index.
    fn take(&mut self, index: u64, found: Found, ops: Vec<KeyOp<'_>>) {
        if found.term.is_some() {
            if self.lineage_term(index) != found.term {
                return;
            }
            let first_index = self.newest.as_ref().map_or(0, |newest| newest.record.first_index);
            if index >= first_index && self.log.get(&index).is_none_or(|(lsn, _)| *lsn < found.lsn) {
                self.log.insert(index, (found.lsn, found.place));
            }
        }
        if found.kind == ENTRY_OPS {
            self.newest_version = self.newest_version.max(index);
            self.take_ops(index, found.place, ops);
        }
    }

    /// What the ops of an entry say, or one of them that was moved. Only what the entry says last of a key counts, so all
    /// records of a key and an index say the same, and any of them will do.
    fn take_ops(&mut self, index: u64, place: Place, ops: Vec<KeyOp<'_>>) {
        let mut offset = place.offset;
        let mut placed: Vec<_> = ops
            .into_iter()
            .map(|op| {
                let at = Place { chunk: place.chunk, offset, length: op.length };
                offset += op.length;
                (op, at)
            })
            .collect();
        if placed.len() > 1 {
            // Stable: of equal keys the last is the latest.
            placed.sort_by_key(|(op, _)| op.key);
            placed.dedup_by(|later, earlier| {
                let same = later.0.key == earlier.0.key;
                if same {
                    *earlier = *later;
                }
                same
            });
        }
        for (op, place) in placed {
            match op.deletes {
                false => self.keys.put(op.key, Located::new(index, place)),
                true => self.keys.delete(op.key, index),
            }
        }
    }

    /// Takes what is known to be committed by now: all up to the commit, and what cleaning moved.
    fn settle(&mut self) {
        let commit = self.newest.as_ref().map_or(0, |newest| newest.commit);
        let incarnation = self.incarnation;
        let mut counts = Vec::new();
        self.waiting.retain(|index, candidates| {
            candidates.retain_mut(|Candidate { found, ops, .. }| {
                let now = found.incarnation == incarnation && (*index <= commit || found.term.is_none());
                if now {
                    counts.push((*index, *found, std::mem::take(ops)));
                }
                // A later life may be named by a state that was not met yet.
                !now && found.incarnation >= incarnation
            });
            !candidates.is_empty()
        });
        for (index, found, ops) in counts {
            let ops = ops.iter();
            let ops =
                ops.map(|HeldOp { key, deletes, length }| KeyOp { key, deletes: *deletes, length: *length });
            self.take(index, found, ops.collect());
        }
    }

    fn finish(mut self, id: GroupId) -> Option<Replayed> {
        let newest = self.newest.take()?;
        let mut state = newest.record;
        let first_index = state.first_index;
        let mut places = VecDeque::new();
        for index in first_index..=newest.commit {
            let Some((_, place)) = self.log.get(&index) else { break };
            places.push_back(*place);
        }
        let applied = first_index - 1 + places.len() as u64;
        let mut waiting = Vec::new();
        if applied == newest.commit {
            for index in applied + 1.. {
                let term = lineage::term_at(&state.runs, index);
                let Some(candidates) = self.waiting.get_mut(&index) else { break };
                let fits =
                    |at: &&mut Candidate| at.found.incarnation == self.incarnation && at.found.term == term;
                let found = candidates.iter_mut().filter(fits).max_by_key(|at| at.found.lsn);
                let (Some(Candidate { found, payload, .. }), Some(term)) = (found, term) else { break };
                let Found { kind, place, .. } = *found;
                waiting.push(Waiting { index, term, kind, place, payload: payload.take() });
            }
        }
        // What lies behind a hole the leader brings again.
        let index =
            if self.newest_version > applied { self.keys.finish_up_to(applied) } else { self.keys.finish() };
        let last_index = applied + waiting.len() as u64;
        let lineage_cut = lineage::truncate_from(&mut state.runs, last_index + 1);
        let hard_state =
            HardState { term: newest.term, vote: state.vote, commit: newest.commit.min(last_index) };
        let mut group = Group::restored(id, self.incarnation, state, hard_state, index, places);
        group.lineage_unrecorded = lineage_cut;
        Some(Replayed { group, waiting, state_epoch: newest.lsn.epoch, state_chunk: newest.chunk })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::KeyCursor;
    use crate::lineage::TermRun;
    use crate::op;
    use crate::record::{self, Record, RecordHeader};
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
            let header = RecordHeader { payload_bytes: payload.len() as u32, ..header };
            let lsn = Lsn { epoch: 1, counter: u64::from(self.written) };
            self.replay.record(lsn, &[Hint::of(&Record { header, payload, crc: 0 })], 2, self.written)
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
        RecordHeader {
            payload_bytes: 0,
            kind,
            entry_kind: ENTRY_OPS,
            parts_left: 0,
            incarnation,
            group: GROUP,
            index,
            term,
        }
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
        let length = record::HEADER_BYTES as u32 + op::encode_put(b"key", b"value", None).len() as u32;
        let place = Place { chunk: 2, offset: feed.written, length };
        feed.entry(1, 1, 2, "key");
        let replayed = feed.replay.finish();
        let group = &replayed[0].group;
        assert_eq!(group.place(1), Some(place));
        assert_eq!(group.index.get(b"key"), Some(Located::new(1, place)));
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

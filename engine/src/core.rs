//! The state of a store between two polls: groups, what awaits the flusher, and how far durability got.
//!
//! Invariants:
//! - Entries are written in the order of their LSN. State records overtake them: a state is written before every
//!   entry that was appended after it changed (rule 2) and is the newest in memory at that moment (rule 7).
//! - `durable < first pending LSN`, and it only rises.
//! - Once stopped, nothing is accepted and nothing becomes durable any more.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use terrane_ocssd::MediaCounters;

use crate::anchor::AnchorLog;
use crate::cache::PayloadCache;
use crate::chronicle::Chronicle;
use crate::entry::{ENTRY_OPS, Entry, GroupId};
use crate::error::StoreError;
use crate::frame;
use crate::group::{Group, StatePending};
use crate::hint;
use crate::index::{self, Place};
use crate::log::Log;
use crate::op::{self, Op};
use crate::options::Options;
use crate::policy::LogTime;
use crate::policy::heat::Heat;
use crate::policy::pace::{Load, Marks, Pace};
use crate::policy::placement::{self, CLASSES, Class, Classes, Placed, RATIO};
use crate::record::{self, Extent, RecordHeader, RecordKind};
use crate::slice::Layout;
use crate::stream::Stream;

/// An entry that no flush has taken yet.
#[derive(Debug)]
pub(crate) struct PendingEntry {
    pub(crate) lsn: u64,
    pub(crate) slot: u32,
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) kind: u8,
    pub(crate) payload: Bytes,
    /// Records that it is written as, and their bytes in total.
    pub(crate) parts: u32,
    pub(crate) bytes: u32,
    /// Bytes of their hints, at most.
    pub(crate) hint_bytes: u32,
    /// How long it is expected to live.
    pub(crate) placed: Placed,
}

impl PendingEntry {
    pub(crate) fn extent(&self) -> Extent {
        Extent { bytes: self.bytes, hint_bytes: self.hint_bytes }
    }
}

/// A live record that leaves the segment it stands in.
#[derive(Debug)]
pub(crate) struct Move {
    pub(crate) slot: u32,
    pub(crate) kind: RecordKind,
    /// Index of the entry that it came with.
    pub(crate) version: u64,
    /// The op.
    pub(crate) payload: Bytes,
    pub(crate) from: Place,
    /// Of the key; `None`: it is a delete.
    pub(crate) heat: Option<Heat>,
}

impl Move {
    pub(crate) fn record_bytes(&self) -> u32 {
        (record::HEADER_BYTES + self.payload.len()) as u32
    }
}

/// What a store did since it was opened, and what it holds now. Bytes, unless named otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Keys and values of the ops that were appended.
    pub user_bytes: u64,
    /// Records written, with their headers.
    pub log_bytes: u64,
    /// Frame and segment headers written.
    pub header_bytes: u64,
    /// Footers written: the hints of sealed segments.
    pub hint_bytes: u64,
    /// Zeros written to fill the device's smallest write, and between the last frame of a segment and its footer.
    pub padding_bytes: u64,
    /// Frames written, in number.
    pub frames: u64,
    /// Flushes completed, in number.
    pub flushes: u64,
    /// Entries written, in number.
    pub entries: u64,
    /// State records written, in number.
    pub states: u64,
    /// Records that cleaning wrote again, with their headers.
    pub moved_bytes: u64,
    /// Segments that cleaning erased, in number.
    pub cleaned_segments: u64,
    /// Reads of values that the cache answered, in number. Those that the tail of recent entries answers count nowhere.
    pub cache_hits: u64,
    /// Reads of values that went to the medium, in number.
    pub cache_misses: u64,
    /// What the medium counted.
    pub media: MediaCounters,
    /// The whole slice.
    pub slice_bytes: u64,
    /// Part of the slice that is not free.
    pub used_bytes: u64,
    /// Payloads in memory because they are recent.
    pub tail_bytes: u64,
    /// Memory of all indexes.
    pub index_bytes: u64,
    /// Live keys, in number.
    pub keys: u64,
}

impl Counters {
    /// Of the reads that recent entries could not answer, the part that the cache did, from 0 to 1. `None` before the first.
    pub fn cache_hit_ratio(&self) -> Option<f64> {
        let reads = self.cache_hits + self.cache_misses;
        (reads > 0).then(|| self.cache_hits as f64 / reads as f64)
    }
}

/// Parts of a slice's bytes by which the times of entries are told apart.
const CHRONICLE_SPACINGS: u64 = 4096;

/// Free chunks that nothing but cleaning may take, so that it can always go on: for what it moves, and for the states that it
/// needs before it frees a segment.
pub(crate) const CLEANING_RESERVE_CHUNKS: u32 = 3;

pub(crate) struct Core {
    pub(crate) epoch: u32,
    pub(crate) layout: Layout,
    /// Bytes of a record (header and payload) that is accepted.
    pub(crate) record_bytes_max: u32,
    pub(crate) slots: BTreeMap<GroupId, u32>,
    pub(crate) groups: Vec<Group>,
    pub(crate) log: Log,
    pub(crate) anchor: AnchorLog,
    /// Of all groups: memory of the index, and what puts that are not applied may add to it, in bytes.
    index_demand: u64,
    pub(crate) cache: PayloadCache,
    pub(crate) pending: VecDeque<PendingEntry>,
    /// Upper bound of what the pending entries cost on the medium, and the largest of them.
    pub(crate) pending_cost: u64,
    pub(crate) pending_largest: u64,
    /// Records that cleaning moves, oldest first, and their bytes.
    pub(crate) moves: VecDeque<Move>,
    pub(crate) move_bytes: u64,
    /// Moves ever asked for, and those that are durable or came too late.
    pub(crate) moves_issued: u64,
    pub(crate) moves_done: u64,
    /// Entries or states wait for room that cleaning makes.
    pub(crate) starved: bool,
    /// A flush is under way.
    pub(crate) flushing: bool,
    /// Cleaning needs the states that are wanted.
    pub(crate) cleaning_needs_states: bool,
    /// Slots whose state is pending, oldest first.
    pub(crate) states_pending: Vec<u32>,
    pub(crate) issued: u64,
    pub(crate) durable: u64,
    /// Payloads in the tail, oldest first; entries that were truncated since may still be named.
    tail_ages: VecDeque<(u32, u64)>,
    tail_bytes: u64,
    tail_bytes_max: u64,
    /// The highest term that any group has known.
    pub(crate) term_max: u64,
    /// Free chunks that are left to what a full shard must still write.
    pub(crate) append_reserve_chunks: u32,
    /// Damage was found on the slice, now or at an earlier start.
    pub(crate) damage_known: bool,
    /// The clock when the store was opened.
    pub(crate) clock_start: u64,
    /// Where records go by their expected lifetime.
    pub(crate) classes: Classes,
    /// User bytes of a flush, averaged over the last ones.
    pub(crate) flush_bytes: u64,
    /// Bytes that cleaning may move before users write more; negative if it is ahead.
    pub(crate) move_allowance: f64,
    /// Share alive of the last victim.
    pub(crate) victim_live_share: f64,
    /// Frames written in this epoch.
    pub(crate) frames: u64,
    /// Number of the last flush taken.
    pub(crate) flush: u64,
    /// Records written or taken in this epoch.
    pub(crate) records: u64,
    pub(crate) stopped: Option<StoreError>,
    pub(crate) closing: bool,
    pub(crate) counters: Counters,
}

impl Core {
    pub(crate) fn new(
        layout: Layout,
        epoch: u32,
        log: Log,
        anchor: AnchorLog,
        term_max: u64,
        options: &Options,
    ) -> Self {
        let payload_max = u64::from(options.record_bytes_max);
        let record_max =
            (payload_max + record::HEADER_BYTES as u64).min(u64::from(layout.record_bytes_limit()));
        Self {
            epoch,
            layout,
            record_bytes_max: record_max as u32,
            slots: BTreeMap::new(),
            groups: Vec::new(),
            log,
            anchor,
            index_demand: 0,
            cache: PayloadCache::new(options.cache_bytes),
            pending: VecDeque::new(),
            pending_cost: 0,
            pending_largest: 0,
            moves: VecDeque::new(),
            move_bytes: 0,
            moves_issued: 0,
            moves_done: 0,
            starved: false,
            flushing: false,
            cleaning_needs_states: false,
            states_pending: Vec::new(),
            issued: 0,
            durable: 0,
            tail_ages: VecDeque::new(),
            tail_bytes: 0,
            tail_bytes_max: options.tail_bytes,
            term_max,
            append_reserve_chunks: options.append_reserve_chunks,
            damage_known: false,
            clock_start: 0,
            classes: Classes::new(CLASSES, RATIO, layout.slice_bytes()),
            flush_bytes: 0,
            move_allowance: 0.0,
            victim_live_share: 0.0,
            frames: 0,
            flush: 0,
            records: 0,
            stopped: None,
            closing: false,
            counters: Counters::default(),
        }
    }

    pub(crate) fn add_group(&mut self, mut group: Group) -> u32 {
        group.chronicle = Chronicle::new(group.last_index, self.clock());
        let slot = self.groups.len() as u32;
        self.slots.insert(group.id, slot);
        self.index_demand += group.index_demand();
        self.groups.push(group);
        slot
    }

    pub(crate) fn slot(&self, group: GroupId) -> Option<u32> {
        self.slots.get(&group).copied()
    }

    pub(crate) fn group(&self, group: GroupId) -> Option<&Group> {
        self.slot(group).map(|slot| &self.groups[slot as usize])
    }

    /// Changes what a group's index takes or may come to take.
    pub(crate) fn change_index<R>(&mut self, slot: u32, change: impl FnOnce(&mut Group, &mut Log) -> R) -> R {
        let group = &mut self.groups[slot as usize];
        self.index_demand -= group.index_demand();
        let out = change(group, &mut self.log);
        self.index_demand += group.index_demand();
        out
    }

    /// Whether puts of these keys leave the indexes within `limit` bytes of memory. A key that the group has already
    /// may always be put.
    pub(crate) fn index_takes<'a>(
        &self,
        slot: u32,
        keys: impl IntoIterator<Item = &'a [u8]>,
        limit: u64,
    ) -> bool {
        let mut bytes = self.index_demand;
        keys.into_iter().all(|key| {
            let more = bytes + index::key_bytes_max(key);
            if more > limit {
                return self.groups[slot as usize].index.get(key).is_some();
            }
            bytes = more;
            true
        })
    }

    pub(crate) fn check_accepts(&self) -> Result<(), StoreError> {
        match &self.stopped {
            Some(stopped) => Err(stopped.clone()),
            None if self.closing => Err(StoreError::Closed),
            None => Ok(()),
        }
    }

    pub(crate) fn issue(&mut self) -> u64 {
        self.issued += 1;
        self.issued
    }

    /// Bytes of a payload that is accepted.
    pub(crate) fn payload_bytes_max(&self) -> u32 {
        self.record_bytes_max - record::HEADER_BYTES as u32
    }

    pub(crate) fn state_cost(&self, payload_bytes: u64) -> u64 {
        self.log.record_cost(Extent {
            bytes: record::HEADER_BYTES as u32 + payload_bytes as u32,
            hint_bytes: hint::state_bytes_max(payload_bytes as u32),
        })
    }

    /// Free chunks left if everything pending, states included, and records of `cost` bytes in total (the largest
    /// being `largest`) were written, and cleaning had won what it can; negative if they might not fit.
    pub(crate) fn chunks_left(&self, cost: u64, largest: u64) -> i64 {
        let (mut cost, mut largest) = (cost + self.pending_cost, largest.max(self.pending_largest));
        for slot in &self.states_pending {
            let group = &self.groups[*slot as usize];
            if group.state_pending == StatePending::Wanted {
                let state = self.state_cost(group.state_bytes(0));
                cost += state;
                largest = largest.max(state);
            }
        }
        let needed = self.log.chunks_needed(Stream::USER, cost, largest);
        // Before a chunk is opened, the one that is open becomes something to clean.
        let reclaimable = self.log.reclaimable_chunks((needed > 0).then_some(Stream::USER));
        i64::from(self.log.free_chunks()) + reclaimable as i64
            - i64::from(CLEANING_RESERVE_CHUNKS)
            - needed as i64
    }

    /// Free chunks left if a state of so many bytes was written after everything pending.
    pub(crate) fn chunks_left_after_state(&self, payload_bytes: u64) -> i64 {
        let cost = self.state_cost(payload_bytes);
        self.chunks_left(cost, cost)
    }

    /// Cleaning uses its reserve. It alone writes then, and all into one segment.
    pub(crate) fn is_scarce(&self) -> bool {
        self.log.free_chunks() < CLEANING_RESERVE_CHUNKS
    }

    /// The shard's clock: bytes that users wrote since the store was opened, beyond those of earlier starts.
    pub(crate) fn clock(&self) -> LogTime {
        LogTime(self.clock_start.saturating_add(self.counters.user_bytes))
    }

    /// How long an entry is expected to live: as long as the largest of what it puts.
    fn placed(&self, slot: u32, entry: &Entry) -> Placed {
        if entry.kind != ENTRY_OPS {
            // The log is cut soon.
            return Placed { class: Class(0), interval_bytes: 1 };
        }
        let ops = op::decode(&entry.payload).flatten();
        let put = ops.filter(|op| matches!(op, Op::Put { .. })).max_by_key(Op::user_bytes);
        match put {
            Some(put) => {
                self.classes.first_written(self.groups[slot as usize].heat_if_put(put.key(), self.clock()))
            }
            None => self.placed_delete(),
        }
    }

    /// A delete is needed as long as anything older than it is left: many times as long as a record.
    pub(crate) fn placed_delete(&self) -> Placed {
        Placed { class: Class(CLASSES - 1), interval_bytes: self.layout.slice_bytes().saturating_mul(16) }
    }

    /// How many streams users' writes should be spread over now.
    pub(crate) fn user_streams(&self) -> u8 {
        let overhead = frame::HEADER_BYTES as u64 + u64::from(self.layout.unit_bytes / 2);
        placement::user_streams(self.flush_bytes, overhead, self.layout.streams.users_max())
    }

    /// The room there is, in bytes: whole free chunks.
    pub(crate) fn room_bytes(&self) -> u64 {
        u64::from(self.log.free_chunks()) * u64::from(self.layout.chunk_bytes)
    }

    /// The room at which cleaning begins, keeps even, and takes what is kept for it.
    pub(crate) fn marks(&self) -> Marks {
        let chunk_bytes = u64::from(self.layout.chunk_bytes);
        let percent =
            |percent: u32| u64::from((self.layout.chunk_count * percent / 100).max(2)) * chunk_bytes;
        let reserve_bytes = u64::from(CLEANING_RESERVE_CHUNKS) * chunk_bytes;
        let low_bytes = reserve_bytes + percent(1);
        Marks { reserve_bytes, low_bytes, high_bytes: low_bytes + percent(2) }
    }

    /// How cleaning and users share the device now.
    pub(crate) fn pace(&self) -> Pace {
        self.marks().pace(&Load {
            room_bytes: self.room_bytes(),
            victim_live_share: self.victim_live_share,
            latency_over_goal: 1.0,
        })
    }

    /// Users wrote so many bytes: cleaning may go on with what it has to move for them.
    pub(crate) fn allow_moves(&mut self, user_bytes: u64) {
        let copies = user_bytes as f64 * self.pace().copies_per_user_byte;
        let most = f64::from(self.layout.chunk_bytes);
        self.move_allowance = (self.move_allowance + copies).min(most);
    }

    /// Cleaning need not wait for users: room is short.
    pub(crate) fn cleaning_is_urgent(&self) -> bool {
        self.starved || self.room_bytes() <= self.marks().low_bytes
    }

    /// The group's state changed, or should be written again. Returns the number by which to wait for it.
    pub(crate) fn want_state(&mut self, slot: u32, want: StatePending) -> u64 {
        let group = &mut self.groups[slot as usize];
        group.state_issued += 1;
        if group.state_pending == StatePending::No {
            self.states_pending.push(slot);
        }
        if group.state_pending != StatePending::Wanted {
            group.state_pending = want;
        }
        group.state_issued
    }

    /// Appends one checked entry to its group, in memory and for the flusher. True if the lineage changed.
    pub(crate) fn push_entry(&mut self, slot: u32, entry: Entry) -> bool {
        let lsn = self.issue();
        let placed = self.placed(slot, &entry);
        let (bytes, new_term) = self.change_index(slot, |group, _| group.push(&entry));
        let (now, spacing) = (self.clock(), self.layout.slice_bytes() / CHRONICLE_SPACINGS);
        let group = &mut self.groups[slot as usize];
        let index = group.last_index;
        group.chronicle.note(index, now, spacing);
        self.note_tail(slot, index, bytes);
        let (parts, extent) = record::entry_shape(&self.entry_header(slot, index, &entry), &entry.payload);
        let cost = self.log.record_cost(extent);
        self.pending_cost += cost;
        self.pending_largest = self.pending_largest.max(cost);
        self.term_max = self.term_max.max(entry.term);
        let Entry { term, kind, payload } = entry;
        let Extent { bytes, hint_bytes } = extent;
        self.pending.push_back(PendingEntry {
            lsn,
            slot,
            index,
            term,
            kind,
            payload,
            parts,
            bytes,
            hint_bytes,
            placed,
        });
        new_term
    }

    /// The header of an entry, were it one record.
    pub(crate) fn entry_header(&self, slot: u32, index: u64, entry: &Entry) -> RecordHeader {
        let group = &self.groups[slot as usize];
        RecordHeader {
            payload_bytes: entry.payload.len() as u32,
            kind: RecordKind::Entry,
            entry_kind: entry.kind,
            parts_left: 0,
            incarnation: group.incarnation,
            group: group.id,
            index,
            term: entry.term,
        }
    }

    /// A payload of `bytes` entered the tail.
    pub(crate) fn note_tail(&mut self, slot: u32, index: u64, bytes: u64) {
        self.tail_bytes += bytes;
        self.tail_ages.push_back((slot, index));
    }

    /// Payloads of `bytes` left the tail by truncation.
    pub(crate) fn forget_tail(&mut self, bytes: u64) {
        self.tail_bytes -= bytes;
    }

    /// Brings the tail back to its limit, as far as its oldest payloads may leave it.
    pub(crate) fn shrink_tail(&mut self) {
        while self.tail_bytes > self.tail_bytes_max {
            let Some((slot, index)) = self.tail_ages.pop_front() else { return };
            self.groups[slot as usize].expire_tail(index);
            self.evict_expired(slot);
        }
    }

    /// Takes what expired and is durable and applied by now out of the tail.
    pub(crate) fn evict_expired(&mut self, slot: u32) {
        while let Some(evicted) = self.groups[slot as usize].evict() {
            self.tail_bytes -= evicted.bytes;
            if let Some(payload) = evicted.live_payload {
                self.cache.insert((slot, evicted.index), payload);
            }
        }
    }

    pub(crate) fn apply(&mut self, slot: u32, index: u64, commit_mark_bytes: u64) {
        let now = self.clock();
        let Self { groups, log, cache, .. } = self;
        let group = &mut groups[slot as usize];
        self.index_demand -= group.index_demand();
        group.apply(index, now, log, |version| cache.remove((slot, version)));
        self.index_demand += group.index_demand();
        let mark = group.unmarked_bytes >= commit_mark_bytes;
        self.evict_expired(slot);
        if mark {
            self.groups[slot as usize].unmarked_bytes = 0;
            self.want_state(slot, StatePending::Along);
        }
    }

    /// Whether commit marks may leave so many chunks free: they only spare work, so they do not use the reserve.
    pub(crate) fn leaves_reserve(&self, chunks_left: i64) -> bool {
        chunks_left >= i64::from(self.append_reserve_chunks)
    }

    /// Before the last flush of an orderly end: every group writes down how far it applied, where there is room.
    pub(crate) fn mark_commits(&mut self) {
        for slot in 0..self.groups.len() as u32 {
            let group = &self.groups[slot as usize];
            if group.commit_mark() > group.marked_commit
                && self.leaves_reserve(self.chunks_left_after_state(group.state_bytes(0)))
            {
                self.want_state(slot, StatePending::Wanted);
            }
        }
    }

    pub(crate) fn counters(&self, media: MediaCounters) -> Counters {
        Counters {
            cache_hits: self.cache.hits(),
            media,
            slice_bytes: self.layout.slice_bytes(),
            used_bytes: self.log.used_bytes(),
            tail_bytes: self.tail_bytes,
            index_bytes: self.groups.iter().map(|group| group.index.memory_bytes()).sum(),
            keys: self.groups.iter().map(|group| group.index.len()).sum(),
            ..self.counters
        }
    }
}

//! The flusher: one loop that makes everything pending durable, again and again.
//!
//! Whatever arrived during a flush goes into the next; there is no timer and no fixed batch. A flush that fits one
//! segment is one frame and one durable write. Otherwise its frames are written volatile, and one media flush covers
//! them: a durable write makes only itself durable.
//!
//! The frames of a stream go out one after the other, beside those of other streams: **write, write the footer of what was
//! left or finish it, begin the next**. Where the device
//! tells lifetimes apart by a handle that fills one reclaim unit after the other (FDP), two chunks that were written
//! at once would share units and die together only by chance. It costs a flush that spans segments one write's time,
//! once in a segment. Nothing hangs on the moment of the finish: all acknowledged frames of the chunk are
//! durable before it, and those of this flush count only with the whole flush; after a crash between finish and first
//! write the chunk is one that ends early, as after any start.
//!
//! Invariants:
//! - One flush is in flight at a time, so only the highest flush of an epoch can be incomplete (rule 5).
//! - States come first in a flush, each group's newest and only that (rules 2 and 7).
//! - A stream has one chunk open, however many a flush fills; and the medium is told the lifetime of each before its
//!   first write.
//! - Nothing of a flush is acknowledged before all of it is durable; after a failed write, finish or flush nothing is
//!   acknowledged any more (a failed flush is never retried into success).

use std::cell::RefCell;
use std::task::Poll;

use bytes::Bytes;
use terrane_ocssd::{AlignedBuf, ChunkId, Durability, Media, MediaError};

use crate::core::{CLEANING_RESERVE_CHUNKS, Core, Move};
use crate::entry::Lsn;
use crate::error::StoreError;
use crate::frame::{self, BodyChecksum, FrameHeader};
use crate::group::StatePending;
use crate::hint::Hint;
use crate::index::Place;
use crate::log::{FramePlan, Opening};
use crate::pipeline::Pipeline;
use crate::policy::LogTime;
use crate::policy::placement::{Class, Placed};
use crate::record::{self, Extent, RecordHeader, RecordKind};
use crate::segment::{self, SegmentHeader};
use crate::slice::SliceId;
use crate::store::{HeldSeat, Store};
use crate::stream::Stream;

/// A record of the flush (an entry of several ops is a run of records), and where it goes.
struct Outgoing {
    /// `None`: of a state, which lives until the next.
    placed: Option<Placed>,
    stream: Stream,
    slot: u32,
    header: RecordHeader,
    payload: Bytes,
    /// Records that it is written as, and their bytes in total.
    parts: u32,
    bytes: u32,
    /// Bytes of their hints, at most.
    hint_bytes: u32,
    place: Place,
    /// Of a record that is moved: where it stood.
    from: Option<Place>,
}

impl Outgoing {
    fn extent(&self) -> Extent {
        Extent { bytes: self.bytes, hint_bytes: self.hint_bytes }
    }

    fn hints(&self) -> impl Iterator<Item = Hint<'_>> {
        record::hints(&self.header, &self.payload, self.parts)
    }
}

/// What one flush writes, and what is true once it is durable.
struct Flush {
    records: Vec<Outgoing>,
    /// Slot, number of the state written, commit index it names.
    states: Vec<(u32, u64, u64)>,
    frames: Vec<FramePlan>,
    number: u64,
    lsn_first: u64,
    frame_first: u64,
    term_max: u64,
    /// LSN counter up to which everything is durable then.
    durable: u64,
    clock: LogTime,
    /// Bytes of the footers that go along, and of the zeros before them.
    footer_bytes: u64,
    footer_padding_bytes: u64,
}

/// One write to the medium.
struct FrameWrite {
    chunk: ChunkId,
    sector: u32,
    stream: Stream,
    opens: Option<Opening>,
    /// Of the segment that is left.
    footer: Option<FooterWrite>,
    buf: AlignedBuf,
}

/// The footer of a segment, up to the end of its chunk.
struct FooterWrite {
    chunk: ChunkId,
    sector: u32,
    buf: AlignedBuf,
}

/// Frame buffers that are used again.
#[derive(Default)]
struct Buffers {
    spare: Vec<AlignedBuf>,
}

/// Bytes that cleaning moves along with a flush of users, at least: less would be all headers and padding.
const MOVES_WITH_USERS_BYTES: u64 = 128 << 10;

/// Flushes over which the bytes of one are averaged.
const FLUSHES_AVERAGED: u64 = 16;

/// Buffers kept: one flush rarely has more than two frames.
const SPARE_BUFFERS: usize = 3;
/// A buffer larger than this goes back to the allocator.
const SPARE_BYTES_MAX: usize = 4 << 20;

impl Buffers {
    fn take(&mut self, bytes: usize) -> AlignedBuf {
        match self.spare.iter().position(|buf| buf.capacity() >= bytes) {
            Some(at) => {
                let mut buf = self.spare.swap_remove(at);
                buf.set_len(bytes);
                buf
            }
            None => AlignedBuf::zeroed(bytes),
        }
    }

    fn give(&mut self, buf: AlignedBuf) {
        if buf.capacity() <= SPARE_BYTES_MAX {
            if self.spare.len() == SPARE_BUFFERS {
                self.spare.remove(0);
            }
            self.spare.push(buf);
        }
    }
}

impl Core {
    /// Takes what the next flush writes: every wanted state, then entries up to `bytes_max` as far as there is room, then
    /// what cleaning moves.
    fn take_flush(&mut self, bytes_max: u32) -> Option<Flush> {
        let wanted =
            |core: &Self, slot: &u32| core.groups[*slot as usize].state_pending == StatePending::Wanted;
        let states_wanted = self.states_pending.iter().any(|slot| wanted(self, slot));
        if self.pending.is_empty() && self.moves.is_empty() && !states_wanted {
            return None;
        }
        let (mut records, mut states) = (Vec::new(), Vec::new());
        self.starved = false;
        let (cost, largest) = self.take_states(&mut records, &mut states);
        // A state is written before the entries that were appended after it changed.
        if !self.starved {
            self.take_entries(bytes_max, cost, largest, &mut records);
        }
        self.take_moves(bytes_max, &mut records);
        if records.is_empty() {
            return None;
        }
        self.spread(&mut records);
        records.sort_by_key(|record| record.stream);
        let durable = self.pending.front().map_or(self.issued, |entry| entry.lsn - 1);
        let clock = self.clock();
        let frames = self.log.plan(records.iter().map(|record| (record.stream, record.extent())), clock.0);
        self.flush += 1;
        let (lsn_first, frame_first) = (self.records + 1, self.frames + 1);
        self.records += records.iter().map(|record| u64::from(record.parts)).sum::<u64>();
        self.frames += frames.len() as u64;
        let (number, term_max) = (self.flush, self.term_max);
        Some(Flush {
            records,
            states,
            frames,
            number,
            lsn_first,
            frame_first,
            term_max,
            durable,
            clock,
            footer_bytes: 0,
            footer_padding_bytes: 0,
        })
    }

    /// Sends records to the streams of their expected lifetimes, if there is room for it: more segments may be opened than if
    /// they were written together, and all that was admitted must still fit.
    fn spread(&mut self, records: &mut [Outgoing]) {
        let of_users = |record: &&Outgoing| record.header.kind == RecordKind::Entry;
        let user_bytes: u64 = records.iter().filter(of_users).map(|record| u64::from(record.bytes)).sum();
        if user_bytes > 0 {
            self.flush_bytes = (self.flush_bytes * (FLUSHES_AVERAGED - 1) + user_bytes) / FLUSHES_AVERAGED;
        }
        if self.starved || self.is_scarce() {
            return;
        }
        let (streams, user_streams) = (self.layout.streams, self.user_streams());
        let goes_to = |record: &Outgoing| match (record.header.kind, record.placed) {
            (RecordKind::Entry, Some(placed)) => streams.of_user(placed.class, user_streams),
            (_, Some(placed)) => streams.of_class(placed.class),
            (_, None) => streams.of_user(Class(0), user_streams),
        };
        let mut costs = [(0, 0); Stream::COUNT];
        for record in &*records {
            let cost = self.log.record_cost(record.extent());
            let (sum, largest) = &mut costs[goes_to(record).slot()];
            (*sum, *largest) = (*sum + cost, cost.max(*largest));
        }
        let needed =
            |(stream, (sum, largest)): (Stream, (u64, u64))| self.log.chunks_needed(stream, sum, largest);
        let spread: u64 = Stream::all().zip(costs).map(needed).sum();
        let pending = self.log.chunks_needed(Stream::USER, self.pending_cost, self.pending_largest) + 1;
        if spread + pending + u64::from(CLEANING_RESERVE_CHUNKS) <= u64::from(self.log.free_chunks()) {
            records.iter_mut().for_each(|record| record.stream = goes_to(record));
        }
    }

    /// States, the wanted ones first, as far as there is room. Returns their cost and that of the largest.
    fn take_states(&mut self, records: &mut Vec<Outgoing>, states: &mut Vec<(u32, u64, u64)>) -> (u64, u64) {
        let wanted =
            |core: &Self, slot: &u32| core.groups[*slot as usize].state_pending == StatePending::Wanted;
        let mut slots = std::mem::take(&mut self.states_pending);
        slots.sort_by_key(|slot| !wanted(self, slot));
        let stream = self.state_stream();
        let reserve = if self.cleaning_needs_states { 0 } else { CLEANING_RESERVE_CHUNKS };
        let room = self.log.free_chunks().checked_sub(reserve).map(u64::from);
        let (mut cost, mut largest) = (0, 0);
        for slot in slots {
            let state_cost = self.state_cost(self.groups[slot as usize].state_bytes(0));
            let (cost_then, largest_then) = (cost + state_cost, state_cost.max(largest));
            let needed = self.log.chunks_needed(stream, cost_then, largest_then);
            let has_room = room.is_some_and(|room| needed <= room);
            if wanted(self, &slot) && !has_room {
                self.starved = true;
                self.states_pending.push(slot);
                continue;
            }
            // Marks were not admitted: they go along only where there is room beyond what was.
            if wanted(self, &slot)
                || has_room && self.leaves_reserve(self.chunks_left(cost_then, largest_then))
            {
                (cost, largest) = (cost_then, largest_then);
                let (record, sequence, commit) = self.outgoing_state(slot);
                records.push(record);
                states.push((slot, sequence, commit));
            }
            self.groups[slot as usize].state_pending = StatePending::No;
        }
        (cost, largest)
    }

    /// Where states go.
    fn state_stream(&self) -> Stream {
        if self.is_scarce() { self.layout.streams.coldest() } else { Stream::USER }
    }

    /// Entries that go along with states of this cost.
    fn take_entries(&mut self, bytes_max: u32, mut cost: u64, mut largest: u64, records: &mut Vec<Outgoing>) {
        // While cleaning uses its reserve, not even the rest of an open segment is taken from it.
        let Some(room) = self.log.free_chunks().checked_sub(CLEANING_RESERVE_CHUNKS) else {
            self.starved = !self.pending.is_empty();
            return;
        };
        // The shorter the room, the smaller the users' part of what is written: long before there is none.
        let bytes_max = (f64::from(bytes_max) * self.pace().user_share) as u64;
        let states = records.len();
        let mut bytes = 0;
        while let Some(entry) = self.pending.front() {
            bytes += u64::from(entry.bytes);
            if bytes > bytes_max && records.len() > states {
                break;
            }
            let entry_cost = self.log.record_cost(entry.extent());
            (cost, largest) = (cost + entry_cost, largest.max(entry_cost));
            if self.log.chunks_needed(Stream::USER, cost, largest) > u64::from(room) {
                self.starved = true;
                break;
            }
            let Some(entry) = self.pending.pop_front() else { break };
            self.pending_cost -= entry_cost;
            let group = &self.groups[entry.slot as usize];
            let header = RecordHeader {
                payload_bytes: entry.payload.len() as u32,
                kind: RecordKind::Entry,
                entry_kind: entry.kind,
                parts_left: (entry.parts - 1) as u16,
                incarnation: group.incarnation,
                group: group.id,
                index: entry.index,
                term: entry.term,
            };
            records.push(Outgoing {
                placed: Some(entry.placed),
                stream: Stream::USER,
                slot: entry.slot,
                header,
                payload: entry.payload,
                parts: entry.parts,
                bytes: entry.bytes,
                hint_bytes: entry.hint_bytes,
                place: Place::PENDING,
                from: None,
            });
        }
        if self.pending.is_empty() {
            self.pending_largest = 0;
        }
    }

    /// Moves that are still worth it.
    fn take_moves(&mut self, bytes_max: u32, records: &mut Vec<Outgoing>) {
        let costs = records.iter().map(|record| self.log.record_cost(record.extent()));
        let (others, largest_other) = (costs.clone().sum(), costs.max().unwrap_or(0));
        // A little goes along with each flush, rather than much with a few for which users then wait.
        let user_bytes: u64 = records.iter().map(|record| u64::from(record.bytes)).sum();
        let with_users = (user_bytes as f64 * 2.0 * self.pace().copies_per_user_byte) as u64;
        let bytes_max = match self.cleaning_is_urgent() || user_bytes == 0 {
            true => u64::from(bytes_max),
            false => with_users.max(MOVES_WITH_USERS_BYTES).min(u64::from(bytes_max)),
        };
        let now = self.clock();
        let coldest = self.layout.streams.coldest();
        let mut room = u64::from(self.log.free_chunks());
        let (mut bytes, mut cost, mut largest) = (0, 0, 0);
        if self.is_scarce() {
            (cost, largest) = (others, largest_other);
        } else {
            room = room.saturating_sub(self.log.chunks_needed(Stream::USER, others, largest_other));
        }
        while let Some(front) = self.moves.front() {
            bytes += u64::from(front.record_bytes());
            let header = self.move_header(front);
            let (_, extent) = record::entry_shape(&header, &front.payload);
            let move_cost = self.log.record_cost(extent);
            (cost, largest) = (cost + move_cost, largest.max(move_cost));
            let full = self.log.chunks_needed(coldest, cost, largest) > room;
            if full || bytes > bytes_max && bytes > u64::from(front.record_bytes()) {
                break;
            }
            let Some(moved) = self.moves.pop_front() else { break };
            let record_bytes = moved.record_bytes();
            self.move_bytes -= u64::from(record_bytes);
            if !self.is_worth_moving(&moved) {
                (bytes, cost) = (bytes - u64::from(record_bytes), cost - move_cost);
                self.moves_done += 1;
                continue;
            }
            let age = now.since(self.groups[moved.slot as usize].written_at(moved.version, now));
            let placed = match moved.heat {
                Some(heat) => self.classes.relocated(heat, age),
                None => self.placed_delete(),
            };
            records.push(Outgoing {
                placed: Some(placed),
                stream: coldest,
                slot: moved.slot,
                header,
                payload: moved.payload,
                parts: 1,
                bytes: record_bytes,
                hint_bytes: extent.hint_bytes,
                place: Place::PENDING,
                from: Some(moved.from),
            });
        }
    }

    fn move_header(&self, moved: &Move) -> RecordHeader {
        let group = &self.groups[moved.slot as usize];
        RecordHeader {
            payload_bytes: moved.payload.len() as u32,
            kind: moved.kind,
            entry_kind: 0,
            parts_left: 0,
            incarnation: group.incarnation,
            group: group.id,
            index: moved.version,
            term: 0,
        }
    }

    fn outgoing_state(&self, slot: u32) -> (Outgoing, u64, u64) {
        let group = &self.groups[slot as usize];
        let payload = group.state_record().encode();
        let commit = group.commit_mark();
        let header = RecordHeader {
            payload_bytes: payload.len() as u32,
            kind: RecordKind::State,
            entry_kind: 0,
            parts_left: 0,
            incarnation: group.incarnation,
            group: group.id,
            index: commit,
            term: group.hard_state.term,
        };
        let outgoing = Outgoing {
            placed: None,
            stream: self.state_stream(),
            slot,
            header,
            bytes: header.record_bytes(),
            hint_bytes: record::hints(&header, &payload, 1).map(|hint| hint.bytes_max()).sum(),
            payload,
            parts: 1,
            place: Place::PENDING,
            from: None,
        };
        (outgoing, group.state_issued, commit)
    }

    /// The flush is durable.
    fn complete(&mut self, flush: Flush) {
        self.flushing = false;
        for (slot, sequence, commit) in &flush.states {
            let group = &mut self.groups[*slot as usize];
            group.state_durable = *sequence;
            group.marked_commit = *commit;
        }
        self.count_flush(&flush);
        let mut lsn = Lsn { epoch: self.epoch, counter: flush.lsn_first };
        for (number, frame) in (flush.frame_first..).zip(&flush.frames) {
            self.log.wrote(frame.chunk, number, lsn);
            let records = &flush.records[frame.records.clone()];
            lsn.counter += records.iter().map(|record| u64::from(record.parts)).sum::<u64>();
        }
        let openings = || flush.frames.iter().filter_map(|frame| frame.opens);
        openings()
            .filter_map(|opening| opening.forgets)
            .for_each(|generation| self.anchor.forget(generation));
        let left: Vec<u32> = openings().filter_map(|opening| opening.leaves).map(|left| left.chunk).collect();
        for record in flush.records {
            let mut offset = record.place.offset;
            for hint in record.hints() {
                let length = hint.header.record_bytes();
                self.log.holds(record.slot, Place { chunk: record.place.chunk, offset, length }, &hint);
                offset += length;
            }
            let Outgoing { slot, header, payload, place, from, .. } = record;
            if let Some(Placed { interval_bytes, .. }) = record.placed {
                self.log.expects(place.chunk, record.bytes, interval_bytes, flush.clock);
            }
            if matches!(header.kind, RecordKind::Settled | RecordKind::Tombstone) {
                self.moved(slot, &header, &payload, from.expect("it stood somewhere"), place);
            }
            if header.kind == RecordKind::Entry {
                self.change_index(slot, |group, log| group.placed(header.index, header.term, place, log));
                self.evict_expired(slot);
            }
        }
        // Only now does anything point into what was left: before, it looked empty.
        left.into_iter().for_each(|chunk| self.log.seal(chunk));
        debug_assert!(flush.durable >= self.durable, "durability only rises");
        self.durable = flush.durable;
        self.shrink_tail();
    }

    fn count_flush(&mut self, flush: &Flush) {
        let counters = &mut self.counters;
        counters.flushes += 1;
        counters.frames += flush.frames.len() as u64;
        for record in &flush.records {
            match record.header.kind {
                RecordKind::State => counters.states += 1,
                RecordKind::Entry => counters.entries += 1,
                RecordKind::Settled | RecordKind::Tombstone => {
                    counters.moved_bytes += u64::from(record.bytes)
                }
            }
        }
        for frame in &flush.frames {
            counters.log_bytes += u64::from(frame.body_bytes);
            counters.header_bytes += frame::HEADER_BYTES as u64;
            let frame_bytes = self.layout.frame_bytes(frame.body_bytes);
            counters.padding_bytes += u64::from(frame_bytes - frame.body_bytes) - frame::HEADER_BYTES as u64;
            if frame.opens.is_some() {
                counters.header_bytes += segment::HEADER_BYTES as u64;
                counters.padding_bytes += u64::from(self.layout.unit_bytes) - segment::HEADER_BYTES as u64;
            }
        }
        counters.hint_bytes += flush.footer_bytes;
        counters.padding_bytes += flush.footer_padding_bytes;
    }
}

impl Flush {
    /// Fills the frames, and the footers of segments that are left, and learns every record's place.
    fn fill(&mut self, slice: SliceId, core: &mut Core, buffers: &mut Buffers) -> Vec<FrameWrite> {
        let frames = u16::try_from(self.frames.len()).expect("a flush is limited in bytes");
        let mut lsn = self.lsn_first;
        let clock = self.clock;
        let mut writes = Vec::with_capacity(self.frames.len());
        for (ordinal, plan) in self.frames.iter().enumerate() {
            let records = &mut self.records[plan.records.clone()];
            let count: u32 = records.iter().map(|record| record.parts).sum();
            let header = FrameHeader {
                generation: plan.stamp.generation,
                lsn_first: lsn,
                flush: self.number,
                frames,
                ordinal: ordinal as u16,
                records: count,
                body_bytes: plan.body_bytes,
                term_max: self.term_max,
                number: self.frame_first + ordinal as u64,
                body_crc: 0,
            };
            lsn += u64::from(count);
            let mut write = fill_frame(slice, core, (plan, clock), header, records, buffers);
            core.log.note_frame(plan, &header, records.iter().flat_map(Outgoing::hints));
            let left = plan.opens.and_then(|opening| opening.leaves);
            if let Some(footer) = left.and_then(|left| core.log.take_footer(left.chunk)) {
                let room = core.layout.chunk_bytes - footer.end;
                self.footer_bytes += u64::from(footer.bytes);
                self.footer_padding_bytes += u64::from(room - footer.bytes);
                let mut buf = buffers.take(room as usize);
                footer.builder.encode(footer.stamp, footer.end, &mut buf);
                let sector = core.layout.sector_of(footer.end);
                write.footer = Some(FooterWrite { chunk: ChunkId(footer.chunk), sector, buf });
            }
            writes.push(write);
        }
        writes
    }
}

fn fill_frame(
    slice: SliceId,
    core: &Core,
    (plan, clock): (&FramePlan, LogTime),
    mut header: FrameHeader,
    records: &mut [Outgoing],
    buffers: &mut Buffers,
) -> FrameWrite {
    let layout = &core.layout;
    let lead = if plan.opens.is_some() { layout.unit_bytes } else { 0 };
    let mut buf = buffers.take((lead + layout.frame_bytes(plan.body_bytes)) as usize);
    let (segment, frame) = buf.split_at_mut(lead as usize);
    if plan.opens.is_some() {
        segment.fill(0);
        let stream = plan.stream.slot() as u32;
        SegmentHeader { slice, generation: plan.stamp.generation, chunk: plan.chunk, stream, born: clock.0 }
            .encode(segment);
    }
    let mut at = frame::HEADER_BYTES;
    let mut checksum = BodyChecksum::new(plan.stamp);
    for record in records {
        record.place = Place { chunk: plan.chunk, offset: plan.offset + at as u32, length: record.bytes };
        if record.parts == 1 {
            checksum.add(record::encode(&record.header, &record.payload, plan.stamp, &mut frame[at..]));
        } else {
            let mut part_at = at;
            let mut payload = &record.payload[..];
            for (left, (_, part)) in (0..record.parts).rev().zip(record::parts(&record.payload, record.place))
            {
                let (op, rest) = payload.split_at(part.length as usize - record::HEADER_BYTES);
                payload = rest;
                let header =
                    RecordHeader { payload_bytes: op.len() as u32, parts_left: left as u16, ..record.header };
                checksum.add(record::encode(&header, op, plan.stamp, &mut frame[part_at..]));
                part_at += part.length as usize;
            }
        }
        at += record.bytes as usize;
    }
    frame[at..].fill(0);
    header.body_crc = checksum.finish();
    header.encode(plan.stamp, frame);
    FrameWrite {
        chunk: ChunkId(plan.chunk),
        sector: layout.sector_of(plan.offset - lead),
        stream: plan.stream,
        opens: plan.opens,
        footer: None,
        buf,
    }
}

impl<M: Media> Store<M> {
    /// Makes pending changes durable until [`Store::close`] was called and nothing is left, then returns. Exactly one
    /// task of the host runs this.
    ///
    /// An error means that the medium failed: the store is stopped for good, all pending and later changes fail,
    /// and only opening it again tells what is on the medium. Dropping the future during a flush stops the store
    /// too.
    pub async fn run_flusher(&self) -> Result<(), StoreError> {
        let mut cleaner = std::pin::pin!(self.run_cleaner());
        let mut flusher = std::pin::pin!(self.run_flushes());
        let mut cleaned = false;
        std::future::poll_fn(|cx| {
            if !cleaned && let Poll::Ready(result) = cleaner.as_mut().poll(cx) {
                cleaned = true;
                if let Err(stopped) = result {
                    return Poll::Ready(Err(stopped));
                }
            }
            flusher.as_mut().poll(cx)
        })
        .await
    }

    async fn run_flushes(&self) -> Result<(), StoreError> {
        let mut buffers = Buffers::default();
        loop {
            if !self.flush_once(&mut buffers).await? {
                let drained = {
                    let core = self.shared.core.borrow();
                    core.closing && !core.starved
                };
                if drained {
                    return Ok(());
                }
                self.work_arrived().await;
            }
        }
    }

    pub(crate) async fn work_arrived(&self) {
        let mut seat = HeldSeat::new(&self.shared.work);
        let mut polled = false;
        std::future::poll_fn(|cx| {
            if std::mem::replace(&mut polled, true) {
                return Poll::Ready(());
            }
            seat.register(cx);
            Poll::Pending
        })
        .await;
    }

    /// One flush. False if there was nothing to write.
    async fn flush_once(&self, buffers: &mut Buffers) -> Result<bool, StoreError> {
        let (flush, writes) = {
            let mut core = self.shared.core.borrow_mut();
            if let Some(stopped) = &core.stopped {
                return Err(stopped.clone());
            }
            let (done, starved) = (core.moves_done, core.starved);
            let Some(mut flush) = core.take_flush(self.shared.options.flush_bytes_max) else {
                // Moves that came too late are done as well.
                let (moved, starves) = (core.moves_done != done, core.starved && !starved);
                drop(core);
                if moved {
                    self.shared.progress.wake_all();
                }
                if starves {
                    // Cleaning has to begin.
                    self.shared.work.wake_all();
                    self.shared.progress.wake_all();
                }
                return Ok(false);
            };
            let writes = flush.fill(self.shared.slice, &mut core, buffers);
            core.flushing = true;
            (flush, writes)
        };
        let guard = StopWhenDropped { store: self };
        let result = self.write_out(writes, buffers).await;
        std::mem::forget(guard);
        match result {
            Ok(()) => {
                self.shared.core.borrow_mut().complete(flush);
                self.shared.progress.wake_all();
                // Cleaning may have to begin.
                self.shared.work.wake_all();
                Ok(true)
            }
            Err(error) => {
                let stopped = StoreError::Stopped(std::sync::Arc::new(error));
                self.stop(stopped.clone());
                Err(stopped)
            }
        }
    }

    async fn write_out(&self, writes: Vec<FrameWrite>, buffers: &mut Buffers) -> Result<(), MediaError> {
        let media = &self.shared.media;
        let alone = writes.len() == 1;
        let durability = if alone { Durability::Durable } else { Durability::Volatile };
        let buffers = RefCell::new(buffers);
        let mut streams = Pipeline::new();
        let mut writes = writes.into_iter().peekable();
        while let Some(first) = writes.next() {
            let stream = first.stream;
            let mut frames = vec![first];
            while let Some(write) = writes.next_if(|write| write.stream == stream) {
                frames.push(write);
            }
            streams.push(write_stream(media, frames, durability, &buffers));
        }
        let mut written = Ok(());
        while let Some(result) = streams.next().await {
            // Each stream runs to its end, whatever became of the others.
            written = written.and(result);
        }
        written?;
        if alone { Ok(()) } else { media.flush().await }
    }

    pub(crate) fn stop(&self, stopped: StoreError) {
        tracing::error!(error = %stopped, slice = ?self.shared.slice, "the store stopped");
        self.shared.core.borrow_mut().stopped.get_or_insert(stopped);
        self.shared.progress.wake_all();
        self.shared.work.wake_all();
    }
}

/// Writes frames of one stream.
async fn write_stream<M: Media>(
    media: &M,
    frames: Vec<FrameWrite>,
    durability: Durability,
    buffers: &RefCell<&mut Buffers>,
) -> Result<(), MediaError> {
    for write in frames {
        if let Some(opening) = write.opens {
            // A footer fills the chunk.
            if let Some(FooterWrite { chunk, sector, buf }) = write.footer {
                let (written, buf) = media.write(chunk, sector, buf, durability).await;
                buffers.borrow_mut().give(buf);
                written?;
            } else if let Some(left) = opening.leaves.filter(|left| !left.full) {
                media.finish(ChunkId(left.chunk)).await?;
            }
            media.reset(write.chunk).await?;
            media.expect_lifetime(write.chunk, write.stream.lifetime());
        }
        let (written, buf) = media.write(write.chunk, write.sector, write.buf, durability).await;
        buffers.borrow_mut().give(buf);
        written?;
    }
    Ok(())
}

/// Stops the store if the flusher's future is dropped within a flush: nobody would learn how it ended.
struct StopWhenDropped<'a, M: Media> {
    store: &'a Store<M>,
}

impl<M: Media> Drop for StopWhenDropped<'_, M> {
    fn drop(&mut self) {
        self.store.stop(StoreError::FlusherDropped);
    }
}

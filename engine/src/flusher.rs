//! The flusher: one loop that makes everything pending durable, again and again.
//!
//! Whatever arrived during a flush goes into the next; there is no timer and no fixed batch. A flush that fits one
//! segment is one frame and one durable write. Otherwise its frames are written volatile, and one media flush covers
//! them: a durable write makes only itself durable.
//!
//! The frames of a stream go out one after the other: **write, finish what was left, begin the next**. Where the device
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

use std::task::Poll;

use bytes::Bytes;
use terrane_ocssd::{AlignedBuf, ChunkId, Durability, Media, MediaError};

use crate::core::Core;
use crate::error::StoreError;
use crate::frame::{self, BodyChecksum, FrameHeader};
use crate::group::StatePending;
use crate::index::Place;
use crate::log::{FramePlan, Opening};
use crate::record::{self, RecordHeader, RecordKind};
use crate::segment::{self, SegmentHeader};
use crate::slice::SliceId;
use crate::store::{HeldSeat, Store};

/// A record of the flush, and where it goes.
struct Outgoing {
    slot: u32,
    header: RecordHeader,
    payload: Bytes,
    place: Place,
}

/// What one flush writes, and what is true once it is durable.
struct Flush {
    records: Vec<Outgoing>,
    /// Slot, number of the state written, commit index it names.
    states: Vec<(u32, u64, u64)>,
    frames: Vec<FramePlan>,
    number: u64,
    lsn_first: u64,
    term_max: u64,
    /// LSN counter up to which everything is durable then.
    durable: u64,
}

/// One write to the medium.
struct FrameWrite {
    chunk: ChunkId,
    sector: u32,
    opens: Option<Opening>,
    buf: AlignedBuf,
}

/// Frame buffers that are used again.
#[derive(Default)]
struct Buffers {
    spare: Vec<AlignedBuf>,
}

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
    /// Takes what the next flush writes: every wanted state, then entries up to `bytes_max`.
    fn take_flush(&mut self, bytes_max: u32) -> Option<Flush> {
        let wanted =
            |core: &Self, slot: &u32| core.groups[*slot as usize].state_pending == StatePending::Wanted;
        if self.pending.is_empty() && !self.states_pending.iter().any(|slot| wanted(self, slot)) {
            return None;
        }
        let mut records = Vec::new();
        let mut states = Vec::new();
        let mut slots = std::mem::take(&mut self.states_pending);
        slots.sort_by_key(|slot| !wanted(self, slot));
        let (mut cost, mut largest) = (0, 0);
        for slot in slots {
            let state_cost = self.state_cost(self.groups[slot as usize].state_bytes(0));
            // Marks were not admitted: they go along only where there is room beyond what was.
            let fits = wanted(self, &slot)
                || self.leaves_reserve(self.chunks_left(cost + state_cost, state_cost.max(largest)));
            if fits {
                (cost, largest) = (cost + state_cost, state_cost.max(largest));
                let (record, sequence, commit) = self.outgoing_state(slot);
                records.push(record);
                states.push((slot, sequence, commit));
            }
            self.groups[slot as usize].state_pending = StatePending::No;
        }
        let mut bytes = 0;
        while let Some(entry) = self.pending.front() {
            bytes += record::HEADER_BYTES as u64 + entry.payload.len() as u64;
            if bytes > u64::from(bytes_max) && records.len() > states.len() {
                break;
            }
            let Some(entry) = self.pending.pop_front() else { break };
            self.pending_cost -= self.log.record_cost((record::HEADER_BYTES + entry.payload.len()) as u32);
            let group = &self.groups[entry.slot as usize];
            let header = RecordHeader {
                payload_bytes: entry.payload.len() as u32,
                kind: RecordKind::Entry,
                entry_kind: entry.kind,
                incarnation: group.incarnation,
                group: group.id,
                index: entry.index,
                term: entry.term,
            };
            records.push(Outgoing {
                slot: entry.slot,
                header,
                payload: entry.payload,
                place: Place::PENDING,
            });
        }
        if self.pending.is_empty() {
            self.pending_largest = 0;
        }
        let durable = self.pending.front().map_or(self.issued, |entry| entry.lsn - 1);
        let frames = self.log.plan(records.iter().map(|record| record.header.record_bytes()));
        self.flush += 1;
        let lsn_first = self.records + 1;
        self.records += records.len() as u64;
        let (number, term_max) = (self.flush, self.term_max);
        Some(Flush { records, states, frames, number, lsn_first, term_max, durable })
    }

    fn outgoing_state(&self, slot: u32) -> (Outgoing, u64, u64) {
        let group = &self.groups[slot as usize];
        let payload = group.state_record().encode();
        let commit = group.commit_mark();
        let header = RecordHeader {
            payload_bytes: payload.len() as u32,
            kind: RecordKind::State,
            entry_kind: 0,
            incarnation: group.incarnation,
            group: group.id,
            index: commit,
            term: group.hard_state.term,
        };
        (Outgoing { slot, header, payload, place: Place::PENDING }, group.state_issued, commit)
    }

    /// The flush is durable.
    fn complete(&mut self, flush: Flush) {
        for (slot, sequence, commit) in &flush.states {
            let group = &mut self.groups[*slot as usize];
            group.state_durable = *sequence;
            group.marked_commit = *commit;
        }
        let counters = &mut self.counters;
        counters.flushes += 1;
        counters.frames += flush.frames.len() as u64;
        counters.states += flush.states.len() as u64;
        counters.entries += (flush.records.len() - flush.states.len()) as u64;
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
        for record in flush.records {
            if record.header.kind == RecordKind::Entry {
                let RecordHeader { index, term, .. } = record.header;
                self.change_index(record.slot, |group| group.placed(index, term, record.place));
                self.evict_expired(record.slot);
            }
        }
        debug_assert!(flush.durable >= self.durable, "durability only rises");
        self.durable = flush.durable;
        self.shrink_tail();
    }
}

impl Flush {
    /// Fills the frames and learns every record's place.
    fn fill(&mut self, slice: SliceId, core: &Core, buffers: &mut Buffers) -> Vec<FrameWrite> {
        let frames = u16::try_from(self.frames.len()).expect("a flush is limited in bytes");
        let mut lsn = self.lsn_first;
        let mut writes = Vec::with_capacity(self.frames.len());
        for (ordinal, plan) in self.frames.iter().enumerate() {
            let records = &mut self.records[plan.records.clone()];
            let header = FrameHeader {
                generation: plan.stamp.generation,
                lsn_first: lsn,
                flush: self.number,
                frames,
                ordinal: ordinal as u16,
                records: records.len() as u32,
                body_bytes: plan.body_bytes,
                term_max: self.term_max,
                body_crc: 0,
            };
            lsn += records.len() as u64;
            writes.push(fill_frame(slice, core, plan, header, records, buffers));
        }
        writes
    }
}

fn fill_frame(
    slice: SliceId,
    core: &Core,
    plan: &FramePlan,
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
        SegmentHeader { slice, generation: plan.stamp.generation, chunk: plan.chunk }.encode(segment);
    }
    let mut at = frame::HEADER_BYTES;
    let mut checksum = BodyChecksum::new(plan.stamp);
    for record in records {
        let length = record.header.record_bytes();
        record.place = Place { chunk: plan.chunk, offset: plan.offset + at as u32, length };
        checksum.add(record::encode(&record.header, &record.payload, plan.stamp, &mut frame[at..]));
        at += length as usize;
    }
    frame[at..].fill(0);
    header.body_crc = checksum.finish();
    header.encode(plan.stamp, frame);
    FrameWrite {
        chunk: ChunkId(plan.chunk),
        sector: layout.sector_of(plan.offset - lead),
        opens: plan.opens,
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
        let mut buffers = Buffers::default();
        loop {
            if !self.flush_once(&mut buffers).await? {
                if self.shared.core.borrow().closing {
                    return Ok(());
                }
                self.work_arrived().await;
            }
        }
    }

    async fn work_arrived(&self) {
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
            let Some(mut flush) = core.take_flush(self.shared.options.flush_bytes_max) else {
                return Ok(false);
            };
            let writes = flush.fill(self.shared.slice, &core, buffers);
            (flush, writes)
        };
        let guard = StopWhenDropped { store: self };
        let result = self.write_out(writes, buffers).await;
        std::mem::forget(guard);
        match result {
            Ok(()) => {
                self.shared.core.borrow_mut().complete(flush);
                self.shared.progress.wake_all();
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
        for write in writes {
            if let Some(opening) = write.opens {
                if let Some(left) = opening.leaves {
                    media.finish(left).await?;
                }
                media.reset(write.chunk).await?;
                media.expect_lifetime(write.chunk, opening.lifetime);
            }
            let (written, buf) = media.write(write.chunk, write.sector, write.buf, durability).await;
            buffers.give(buf);
            written?;
        }
        if alone { Ok(()) } else { media.flush().await }
    }

    fn stop(&self, stopped: StoreError) {
        tracing::error!(error = %stopped, slice = ?self.shared.slice, "the store stopped");
        self.shared.core.borrow_mut().stopped.get_or_insert(stopped);
        self.shared.progress.wake_all();
        self.shared.work.wake_all();
    }
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

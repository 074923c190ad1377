//! Cleaning: what is still needed of a segment is written again, elsewhere, and the segment is erased.
//!
//! ```text
//! victim -> read -> live? -> moved by a flush -> states of its groups -> anchor: freed -> chunk free
//! ```
//!
//! Invariants:
//! - A segment is erased only when nothing of it is needed (a record is, until what superseded it is durable), and after a flush
//!   that began then and made durable a state of every group that has a record in it. That state says what is committed
//!   (so what superseded a record is applied by recovery too), where the log begins, and that the states in the segment
//!   are old (rules 7 and 8).
//! - That it is free is durable in the anchor before its chunk is written again.
//! - Only what an index points at is moved, and a delete as long as an older record of its key may stand somewhere (rule 4).
//! - A record that is moved keeps its index. If a newer version is applied while it is moved, that one wins (rule 1).
//! - A segment that cannot be read is left alone.

use bytes::Bytes;
use terrane_ocssd::{ChunkId, Media};

use crate::anchor::{self, WriteError};
use crate::core::{CLEANING_RESERVE_CHUNKS, Core, Move};
use crate::entry::{ENTRY_OPS, Lsn};
use crate::error::StoreError;
use crate::frame;
use crate::group::StatePending;
use crate::index::Place;
use crate::lineage;
use crate::op::{self, Op};
use crate::record::{Record, RecordHeader, RecordKind};
use crate::scan::{FoundSegment, Met, MetFrame, Walk};
use crate::store::{HeldSeat, Store};

/// Bytes that are read of a victim and not moved yet.
const MOVES_BYTES_MAX: u64 = 1 << 20;

impl Core {
    /// Cleaning should make room.
    fn wants_cleaning(&self) -> bool {
        // With nothing to win it would move the same records again and again.
        (self.starved || self.room_bytes() < self.marks().high_bytes) && self.log.reclaimable_chunks(None) > 0
    }

    /// The store is closed, and nothing waits for room.
    fn is_drained(&self) -> bool {
        self.closing && self.pending.is_empty() && !self.starved
    }

    /// Every group that has a record in the segment writes its state. Returns the numbers by which to wait for them.
    fn want_states_of(&mut self, chunk: u32) -> Vec<(u32, u64)> {
        let slots: Vec<u32> = self.log.segment(chunk).slots.iter().copied().collect();
        slots.into_iter().map(|slot| (slot, self.want_state(slot, StatePending::Wanted))).collect()
    }

    /// The segment to clean next, `None` if none is worth it now. When somebody waits for room, it is the one that is emptied
    /// soonest.
    fn victim(&mut self) -> Option<u32> {
        self.log.resume_postponed(self.durable);
        if self.starved {
            return self.log.emptiest();
        }
        let (room, now) = (self.room_bytes(), self.clock());
        let reserve = u64::from(CLEANING_RESERVE_CHUNKS) * u64::from(self.layout.chunk_bytes);
        let due = self.log.due(now, self.marks().live_share_max(room), room.max(reserve) - reserve / 3)?;
        self.classes.cleaned(&due, now);
        self.victim_live_share = due.live_share();
        Some(due.segment.0)
    }

    /// Whether the index still points at what should be moved; of a delete, whether no newer version is there.
    pub(crate) fn is_worth_moving(&self, moved: &Move) -> bool {
        let Some(Ok(op)) = op::decode(&moved.payload).next() else { return false };
        let known = self.groups[moved.slot as usize].index.get(op.key());
        match op {
            Op::Put { .. } => {
                known.is_some_and(|known| (known.version, known.place) == (moved.version, moved.from))
            }
            // What superseded it counts once it is durable.
            Op::Delete { .. } => known.is_none_or(|known| known.place.is_pending()),
        }
    }

    /// A moved record is durable at `place`.
    pub(crate) fn moved(
        &mut self,
        slot: u32,
        header: &RecordHeader,
        payload: &Bytes,
        from: Place,
        place: Place,
    ) {
        self.moves_done += 1;
        let Some(Ok(Op::Put { key, .. })) = op::decode(payload).next() else { return };
        self.change_index(slot, |group, log| {
            if group.index.relocate(key, header.index, from, place) {
                log.moved(Some(from), Some(place));
            }
        });
    }

    /// Queues what must be moved of a frame.
    fn move_out(&mut self, chunk: u32, frame: &MetFrame<'_>) {
        for (nth, (at, record)) in frame.records.iter().enumerate() {
            let offset = frame.offset + frame::HEADER_BYTES as u32 + at;
            let place = Place { chunk, offset, length: record.header.record_bytes() };
            let lsn =
                Lsn { epoch: frame.segment.generation.epoch(), counter: frame.header.lsn_first + nth as u64 };
            if let Some(moved) = self.worth_moving(chunk, place, lsn, record) {
                self.move_bytes += u64::from(moved.record_bytes());
                self.move_allowance -= f64::from(moved.record_bytes());
                self.moves_issued += 1;
                self.moves.push_back(moved);
            }
        }
    }

    fn worth_moving(&self, chunk: u32, from: Place, lsn: Lsn, record: &Record<'_>) -> Option<Move> {
        let header = &record.header;
        let op = match header.kind {
            RecordKind::State => return None,
            RecordKind::Entry if header.entry_kind != ENTRY_OPS => return None,
            RecordKind::Entry | RecordKind::Settled | RecordKind::Tombstone => {
                op::decode(record.payload).next()?.ok()?
            }
        };
        let slot = self.slot(header.group)?;
        let group = &self.groups[slot as usize];
        if group.incarnation != header.incarnation {
            return None;
        }
        let kind = match op {
            Op::Put { .. } => RecordKind::Settled,
            Op::Delete { .. } => {
                // An entry that was never committed deletes nothing.
                let committed = header.kind == RecordKind::Tombstone
                    || header.index <= group.applied
                        && lineage::term_at(&group.runs, header.index) == Some(header.term);
                // Once every other segment begins after it, nothing older of its key is left. An entry may be older than
                // it looks: what it deleted may have been moved before it was applied.
                let oldest =
                    header.kind == RecordKind::Tombstone && self.log.all_others_begin_after(chunk, lsn);
                if !committed || oldest {
                    return None;
                }
                RecordKind::Tombstone
            }
        };
        let heat = match op {
            Op::Put { key, .. } => Some(group.index.get(key)?.heat),
            Op::Delete { .. } => None,
        };
        let payload = Bytes::copy_from_slice(record.payload);
        let moved = Move { slot, kind, version: header.index, payload, from, heat };
        self.is_worth_moving(&moved).then_some(moved)
    }
}

impl<M: Media> Store<M> {
    /// Cleans until the store is closed. An error means that the medium failed.
    pub(crate) async fn run_cleaner(&self) -> Result<(), StoreError> {
        loop {
            let mut sealed = None;
            let victim = {
                let mut core = self.shared.core.borrow_mut();
                if let Some(stopped) = &core.stopped {
                    return Err(stopped.clone());
                }
                if core.is_drained() {
                    return Ok(());
                }
                let victim = if core.wants_cleaning() { core.victim() } else { None };
                match victim {
                    // Whatever can be won is in a segment that is not full yet.
                    None if core.starved && !core.flushing => {
                        sealed = core.log.seal_early();
                        None
                    }
                    victim => victim,
                }
            };
            if let Some(left) = sealed {
                // It counts against what the device can have open.
                if !left.full
                    && let Err(error) = self.shared.media.finish(ChunkId(left.chunk)).await
                {
                    let stopped = StoreError::Stopped(std::sync::Arc::new(error));
                    self.stop(stopped.clone());
                    return Err(stopped);
                }
                continue;
            }
            match victim {
                Some(chunk) => {
                    if !self.clean(chunk).await? {
                        return Ok(());
                    }
                }
                None => self.work_arrived().await,
            }
        }
    }

    /// Empties and frees one segment. False if the store was closed meanwhile.
    async fn clean(&self, chunk: u32) -> Result<bool, StoreError> {
        let cleaned = self.clean_segment(chunk).await;
        self.shared.core.borrow_mut().cleaning_needs_states = false;
        cleaned
    }

    async fn clean_segment(&self, chunk: u32) -> Result<bool, StoreError> {
        let (segment, needed) = {
            let mut core = self.shared.core.borrow_mut();
            core.log.begin_cleaning(chunk);
            if core.is_scarce() {
                // Should power be lost soon after, the next start finds the segment void, and no state in it that it needs.
                core.cleaning_needs_states = true;
                core.want_states_of(chunk);
            }
            let segment = core.log.segment(chunk);
            // Up to the last frame that counts: what a dropped flush left behind it is void.
            let found = FoundSegment {
                generation: segment.stamp.generation,
                chunk,
                readable: segment.filled,
                stream: segment.stream.slot() as u32,
                born: segment.born,
            };
            (found, segment.needed())
        };
        if needed > 0 {
            match self.move_all(segment).await? {
                Some(true) => {}
                Some(false) => return Ok(false),
                None => {
                    self.shared.core.borrow_mut().log.give_up_cleaning(chunk);
                    return Ok(true);
                }
            }
        }
        let states = {
            let mut core = self.shared.core.borrow_mut();
            let core = &mut *core;
            if core.log.segment(chunk).live > 0 {
                // What superseded the rest is on its way, and may itself wait for room.
                core.log.postpone_cleaning(chunk, core.issued);
                return Ok(true);
            }
            core.cleaning_needs_states = true;
            core.want_states_of(chunk)
        };
        self.shared.work.wake_all();
        let durable = |core: &Core| {
            let newest =
                |(slot, sequence): &(u32, u64)| core.groups[*slot as usize].state_durable >= *sequence;
            states.iter().all(newest)
        };
        if !self.reached(durable).await? {
            return Ok(false);
        }
        self.free(chunk).await.map(|()| true)
    }

    /// Moves everything that is needed of a segment. `Some(false)` if the store was closed meanwhile, `None` if part of the
    /// segment cannot be read.
    async fn move_all(&self, segment: FoundSegment) -> Result<Option<bool>, StoreError> {
        let shared = &self.shared;
        let layout = shared.core.borrow().layout;
        let mut walk = Walk::new(shared.slice, segment);
        let mut bytes = layout.unit_bytes;
        loop {
            let met = |met: Met<'_>| {
                if let Met::Frame(frame) = met {
                    bytes += layout.frame_bytes(frame.header.body_bytes);
                    shared.core.borrow_mut().move_out(segment.chunk, &frame);
                }
            };
            match walk.step(&shared.media, &layout, met).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    tracing::warn!(%error, chunk = segment.chunk, "a segment cannot be cleaned");
                    return Ok(None);
                }
            }
            shared.work.wake_all();
            let goes_on = |core: &Core| {
                let paced = core.move_allowance > 0.0 || core.cleaning_is_urgent();
                core.move_bytes <= MOVES_BYTES_MAX && paced
            };
            if !self.reached(goes_on).await? {
                return Ok(Some(false));
            }
        }
        if bytes != segment.readable {
            tracing::warn!(chunk = segment.chunk, "a segment is damaged and cannot be cleaned");
            return Ok(None);
        }
        let issued = shared.core.borrow().moves_issued;
        self.reached(|core| core.moves_done >= issued).await.map(Some)
    }

    /// Waits until `condition` holds. False if the store is closed before, and nobody waits for room.
    async fn reached(&self, condition: impl Fn(&Core) -> bool) -> Result<bool, StoreError> {
        let mut seat = HeldSeat::new(&self.shared.progress);
        std::future::poll_fn(|cx| {
            let core = self.shared.core.borrow();
            if condition(&core) {
                return std::task::Poll::Ready(Ok(true));
            }
            if let Some(stopped) = &core.stopped {
                return std::task::Poll::Ready(Err(stopped.clone()));
            }
            if core.is_drained() {
                return std::task::Poll::Ready(Ok(false));
            }
            seat.register(cx);
            std::task::Poll::Pending
        })
        .await
    }

    /// Says durably that the segment is void, and gives its chunk back.
    async fn free(&self, chunk: u32) -> Result<(), StoreError> {
        let layout = self.shared.core.borrow().layout;
        let write = {
            let mut core = self.shared.core.borrow_mut();
            let core = &mut *core;
            core.anchor.free(&layout, core.log.freed_segment(chunk))
        };
        match anchor::write_freed(&self.shared.media, &layout, write).await {
            Ok(filled) => {
                let mut core = self.shared.core.borrow_mut();
                if let Some(filled) = filled {
                    core.anchor.began(filled);
                }
                core.log.free(chunk);
                core.counters.cleaned_segments += 1;
                drop(core);
                self.shared.work.wake_all();
                Ok(())
            }
            Err(error) => {
                let error = match error {
                    WriteError::Media(error) => error,
                    WriteError::Full => unreachable!("the layout leaves room for an anchor of every segment"),
                };
                let stopped = StoreError::Stopped(std::sync::Arc::new(error));
                self.stop(stopped.clone());
                Err(stopped)
            }
        }
    }
}

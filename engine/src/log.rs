//! The segments of a slice: which chunks are free, what the others hold, and where the next records go.
//!
//! Invariants:
//! - Each stream fills one segment at a time. A segment that the next record does not fit is sealed and never written
//!   again; nor is any segment of an earlier start (where it ended may be unknown). So a start wastes at most the
//!   rest of one segment for each stream.
//! - At most one frame per segment and flush.
//! - What is needed of a segment is what indexes point at, the entries that the logs of groups still have, and deletes. It
//!   falls only; at nothing the segment can be erased.
//! - A chunk is free once that is durable in the anchor and no read of what it held is under way.
//! - What was admitted fits: `chunks_left` does not overestimate, but for the states that freeing segments costs, which are not
//!   in it (they matter with hundreds of groups and small chunks). Records take the room of their hints with them: a segment is
//!   left while its footer still fits.

use std::collections::BTreeSet;
use std::ops::Range;

use terrane_ocssd::ChunkId;

use crate::anchor::FreedSegment;
use crate::entry::Lsn;
use crate::footer::{self, FooterBuilder, Packer};
use crate::frame::{self, FrameHeader};
use crate::frame_set::FrameSet;
use crate::hint::Hint;
use crate::index::Place;
use crate::policy::LogTime;
use crate::policy::candidates::Candidates;
use crate::policy::placement::Class;
use crate::policy::victim::{self, Ask, Contents, Score, SegmentState, SegmentStats};
use crate::record::Extent;
use crate::segment::{Generation, Stamp};
use crate::slice::{LOG_CHUNK_FIRST, Layout, SliceId};
use crate::stream::Stream;

/// A segment in memory.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) stamp: Stamp,
    pub(crate) stream: Stream,
    /// The shard's clock when it was opened.
    pub(crate) born: u64,
    phase: Phase,
    /// Bytes written or planned, from the start of the chunk.
    pub(crate) filled: u32,
    /// Frames that are durable.
    pub(crate) frames: FrameSet,
    /// LSN of the first record, once its frame is durable.
    pub(crate) first_lsn: Option<Lsn>,
    /// Cleaning tried, and could not read all of it.
    pub(crate) unreadable: bool,
    /// What it was filled with, as far as that is known.
    contents: Contents,
    /// Cleaning should not try again yet.
    postponed: bool,
    /// Bytes of records that an index points at.
    pub(crate) live: u64,
    /// Bytes of entries that the logs of groups still have.
    pub(crate) retained: u64,
    /// Bytes of deletes.
    pub(crate) deletes: u64,
    /// Bytes that the hints of all its records may take, wherever they stand.
    pub(crate) hint_bytes: u64,
    /// Its footer, while it is open; `None` if it gets none.
    footer: Option<FooterBuilder>,
    /// Bytes of the footer's blocks, with what is planned, at most.
    footer_planned: u32,
    /// Groups (by slot) that have a record in it.
    pub(crate) slots: BTreeSet<u32>,
    /// Reads of it that are under way.
    pins: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// Nothing more goes into it, but its last frame is on its way.
    Sealing,
    Sealed,
    /// Cleaning is at work on it.
    Cleaned,
    /// It is void. Its chunk is free as soon as it is not read.
    Freed,
}

impl Segment {
    /// A segment of an earlier start, whose last frame that counts ends at `filled`.
    pub(crate) fn found(stamp: Stamp, stream: Stream, born: u64, filled: u32) -> Self {
        Self { phase: Phase::Sealed, ..Self::opened(stamp, stream, born, filled) }
    }

    /// What a freed segment of an earlier start left on its chunk.
    pub(crate) fn freed(stamp: Stamp) -> Self {
        Self { phase: Phase::Freed, ..Self::opened(stamp, Stream::USER, 0, 0) }
    }

    fn opened(stamp: Stamp, stream: Stream, born: u64, filled: u32) -> Self {
        Self {
            stamp,
            stream,
            born,
            phase: Phase::Open,
            filled,
            frames: FrameSet::default(),
            first_lsn: None,
            unreadable: false,
            contents: Contents::default(),
            postponed: false,
            live: 0,
            retained: 0,
            deletes: 0,
            hint_bytes: 0,
            footer: None,
            footer_planned: 0,
            slots: BTreeSet::new(),
            pins: 0,
        }
    }

    /// What must be moved to win the segment's chunk, in bytes; `None` if it cannot be won: it is not full yet, a log has an
    /// entry in it, it cannot be read, or there is no less than `dense` to move.
    pub(crate) fn to_move(&self, dense: u64) -> Option<u64> {
        let sealed = matches!(self.phase, Phase::Sealed | Phase::Cleaned);
        let movable = sealed && !self.unreadable && self.retained == 0;
        Some(self.needed()).filter(|needed| movable && *needed < dense)
    }

    /// Bytes of records that cleaning would move, and of their hints at most.
    pub(crate) fn needed(&self) -> u64 {
        let records = self.live + self.deletes;
        records + records.min(self.hint_bytes)
    }

    /// Bytes that are left to frames if `blocks` more bytes go into the footer.
    fn rest(&self, layout: &Layout, blocks: u32) -> u32 {
        let footer = match self.footer {
            Some(_) => layout.footer_bytes(self.footer_planned + blocks),
            None => 0,
        };
        (layout.chunk_bytes - self.filled).saturating_sub(footer)
    }

    /// The same for a record that brings the frame's hints to `blocks` bytes. One whose hint is too long for a footer ends it.
    fn rest_for(&self, layout: &Layout, blocks: u32, record: Extent) -> u32 {
        match record.hint_bytes > layout.hint_bytes_limit() {
            true => layout.chunk_bytes - self.filled,
            false => self.rest(layout, blocks),
        }
    }

    /// What the choice of victims knows of it.
    fn stats(&self, chunk: u32, layout: &Layout) -> SegmentStats {
        let known = !self.contents.is_empty();
        SegmentStats {
            segment: ChunkId(chunk),
            state: self.state(dense_bytes(layout)),
            size_bytes: u64::from(layout.chunk_bytes),
            live_bytes: self.needed(),
            class: Class(self.stream.slot() as u8),
            // Of an earlier start: it has lived as long as it was expected to.
            interval_bytes: if known { self.contents.interval_bytes() } else { self.born.max(1) },
            filled_at: if known { self.contents.filled_at() } else { LogTime(self.born) },
        }
    }

    fn state(&self, dense: u64) -> SegmentState {
        let stays = self.to_move(dense).is_none() || self.postponed;
        if stays { SegmentState::Pinned } else { SegmentState::Sealed }
    }
}

#[derive(Debug)]
pub(crate) struct Log {
    layout: Layout,
    slice: SliceId,
    epoch: u32,
    /// Free chunks, the least worn first.
    free: BTreeSet<(u32, u32)>,
    /// Wear by chunk, as reported at the start.
    wear: Vec<u32>,
    /// By chunk.
    segments: Vec<Option<Segment>>,
    /// Those of them that cleaning may choose from.
    candidates: Candidates,
    /// Segments that cleaning left for now, each with the LSN counter that must be durable before it tries again.
    postponed: Vec<(u64, u32)>,
    /// Chunks were lost that may hold segments, and may be readable again at a later start.
    has_lost_chunks: bool,
    /// By stream: the chunk that it fills.
    open: [Option<u32>; Stream::COUNT],
    segments_opened: u32,
    /// The longest record that may stand in a segment, in bytes.
    largest: u32,
    /// Segments that cleaning can win, in number, and what it would move.
    movable: u64,
    to_move: u64,
    packer: Packer,
}

/// The footer of a segment that is left, ready to be written.
#[derive(Debug)]
pub(crate) struct SealedFooter {
    pub(crate) chunk: u32,
    /// Bytes from the start of the chunk to the end of its frames: from here on it is written.
    pub(crate) end: u32,
    pub(crate) stamp: Stamp,
    /// Bytes of it, less the zeros before it.
    pub(crate) bytes: u32,
    pub(crate) builder: FooterBuilder,
}

/// One frame of a flush, before it is filled.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FramePlan {
    pub(crate) chunk: u32,
    pub(crate) stream: Stream,
    pub(crate) stamp: Stamp,
    /// Bytes from the start of the chunk to the frame's header.
    pub(crate) offset: u32,
    /// The frame opens the segment: its header is written along with it.
    pub(crate) opens: Option<Opening>,
    /// Which records of the flush.
    pub(crate) records: Range<usize>,
    pub(crate) body_bytes: u32,
    /// Bytes that it takes in the footer, at most.
    pub(crate) hint_bytes: u32,
}

/// A stream goes on in a new segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Opening {
    /// What the stream leaves: full, or too full for the next record.
    pub(crate) leaves: Option<Left>,
    /// What stood on the new segment's chunk.
    pub(crate) forgets: Option<Generation>,
}

/// A chunk that a stream is done with. If it is not full, it is to be finished before the next is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) chunk: u32,
    pub(crate) full: bool,
}

impl Log {
    /// A log that may use the chunks in `free` (by wear and number) and has segments elsewhere.
    pub(crate) fn new(
        layout: Layout,
        slice: SliceId,
        epoch: u32,
        free: BTreeSet<(u32, u32)>,
        wear: Vec<u32>,
        segments: Vec<Option<Segment>>,
    ) -> Self {
        let open = [None; Stream::COUNT];
        let (mut movable, mut to_move) = (0, 0);
        let is_lost = |chunk: u32| {
            let held = segments.get(chunk as usize).is_some_and(Option::is_some);
            !held && !free.contains(&(wear[chunk as usize], chunk))
        };
        let has_lost_chunks = (LOG_CHUNK_FIRST..layout.chunk_count).any(is_lost);
        let mut candidates = Candidates::new(layout.chunk_count);
        for (chunk, segment) in (0..).zip(&segments) {
            let Some(segment) = segment.as_ref().filter(|segment| segment.phase == Phase::Sealed) else {
                continue;
            };
            candidates.add(segment.stats(chunk, &layout));
            if let Some(bytes) = segment.to_move(dense_bytes(&layout)) {
                (movable, to_move) = (movable + 1, to_move + bytes);
            }
        }
        Self {
            layout,
            slice,
            epoch,
            free,
            wear,
            segments,
            candidates,
            postponed: Vec::new(),
            has_lost_chunks,
            open,
            segments_opened: 0,
            largest: 0,
            movable,
            to_move,
            packer: Packer::default(),
        }
    }

    /// Changes a segment.
    fn adjust(&mut self, chunk: u32, change: impl FnOnce(&mut Segment)) {
        let dense = dense_bytes(&self.layout);
        let segment = self.segment_mut(chunk);
        let before = segment.to_move(dense);
        change(segment);
        let after = segment.to_move(dense);
        if let Some(bytes) = before {
            (self.movable, self.to_move) = (self.movable - 1, self.to_move - bytes);
        }
        if let Some(bytes) = after {
            (self.movable, self.to_move) = (self.movable + 1, self.to_move + bytes);
        }
        let segment = self.segment(chunk);
        if segment.phase == Phase::Sealed {
            let (needed, stays) = (segment.needed(), segment.state(dense) == SegmentState::Pinned);
            self.candidates.hold(ChunkId(chunk), needed);
            self.candidates.pin(ChunkId(chunk), stays);
        }
    }

    /// The segment that a place points into.
    pub(crate) fn segment(&self, chunk: u32) -> &Segment {
        self.segments[chunk as usize].as_ref().expect("a place names a chunk that holds a segment")
    }

    pub(crate) fn segment_mut(&mut self, chunk: u32) -> &mut Segment {
        self.segments[chunk as usize].as_mut().expect("a place names a chunk that holds a segment")
    }

    /// Segments that are full or of an earlier start, and that cleaning is not at work on.
    pub(crate) fn sealed(&self) -> impl Iterator<Item = (u32, &Segment)> {
        (0..).zip(&self.segments).filter_map(|(chunk, segment)| {
            segment.as_ref().filter(|segment| segment.phase == Phase::Sealed).map(|segment| (chunk, segment))
        })
    }

    /// What a key's index entry pointed at, and what it points at now.
    pub(crate) fn moved(&mut self, old: Option<Place>, new: Option<Place>) {
        if let Some(new) = new.filter(|place| !place.is_pending()) {
            self.adjust(new.chunk, |segment| segment.live += u64::from(new.length));
        }
        if let Some(old) = old.filter(|place| !place.is_pending()) {
            self.adjust(old.chunk, |segment| segment.live -= u64::from(old.length));
        }
    }

    /// A group's log has an entry at `place`.
    pub(crate) fn retain(&mut self, place: Place) {
        self.adjust(place.chunk, |segment| segment.retained += u64::from(place.length));
    }

    /// A group's log has no entry at `place` any more.
    pub(crate) fn release(&mut self, place: Place) {
        if !place.is_pending() {
            self.adjust(place.chunk, |segment| segment.retained -= u64::from(place.length));
        }
    }

    /// A record of the group is durable at `place`.
    pub(crate) fn holds(&mut self, slot: u32, place: Place, hint: &Hint<'_>) {
        let hint_bytes = hint.bytes_max().min(self.layout.hint_bytes_limit());
        self.largest = self.largest.max(place.length + hint_bytes);
        let deletes = if hint.deletes() { place.length } else { 0 };
        self.adjust(place.chunk, |segment| {
            segment.deletes += u64::from(deletes);
            segment.hint_bytes += u64::from(hint_bytes);
        });
        let segment = self.segment_mut(place.chunk);
        if segment.slots.last() != Some(&slot) {
            segment.slots.insert(slot);
        }
    }

    pub(crate) fn pin(&mut self, chunk: u32) {
        self.segment_mut(chunk).pins += 1;
    }

    /// The read is over. True if the chunk is free now.
    pub(crate) fn unpin(&mut self, chunk: u32) -> bool {
        let segment = self.segment_mut(chunk);
        segment.pins -= 1;
        let recycled = segment.pins == 0 && segment.phase == Phase::Freed;
        if recycled {
            self.recycle(chunk);
        }
        recycled
    }

    /// The segment is durable to its end.
    pub(crate) fn seal(&mut self, chunk: u32) {
        let segment = self.segment_mut(chunk);
        assert_eq!(segment.phase, Phase::Sealing);
        self.becomes_candidate(chunk);
    }

    fn becomes_candidate(&mut self, chunk: u32) {
        self.adjust(chunk, |segment| segment.phase = Phase::Sealed);
        self.candidates.add(self.segment(chunk).stats(chunk, &self.layout));
    }

    /// Cleaning takes the segment: nobody else will.
    pub(crate) fn begin_cleaning(&mut self, chunk: u32) {
        let segment = self.segment_mut(chunk);
        assert_eq!(segment.phase, Phase::Sealed);
        segment.phase = Phase::Cleaned;
        self.candidates.remove(ChunkId(chunk));
    }

    /// Cleaning leaves the segment as it is, for good.
    pub(crate) fn give_up_cleaning(&mut self, chunk: u32) {
        self.adjust(chunk, |segment| segment.unreadable = true);
        self.becomes_candidate(chunk);
    }

    /// Cleaning leaves the segment as it is until `lsn` is durable.
    pub(crate) fn postpone_cleaning(&mut self, chunk: u32, lsn: u64) {
        self.segment_mut(chunk).postponed = true;
        self.becomes_candidate(chunk);
        self.postponed.push((lsn, chunk));
    }

    /// What was postponed until now may be cleaned again.
    pub(crate) fn resume_postponed(&mut self, durable: u64) {
        let (ready, later) = self.postponed.drain(..).partition(|(lsn, _)| *lsn <= durable);
        self.postponed = later;
        let ready: Vec<(u64, u32)> = ready;
        ready.into_iter().for_each(|(_, chunk)| self.adjust(chunk, |segment| segment.postponed = false));
    }

    /// Of all segments that can be won, the one with the least to move.
    pub(crate) fn emptiest(&self) -> Option<u32> {
        let dense = dense_bytes(&self.layout);
        let sealed =
            self.sealed().filter(|(_, segment)| !segment.postponed && segment.to_move(dense).is_some());
        sealed.min_by_key(|(_, segment)| (segment.needed(), segment.stamp.generation)).map(|(chunk, _)| chunk)
    }

    /// The segment that is due at the highest price of space, among those of which at most `live_share_max` is alive.
    pub(crate) fn due(&self, now: LogTime, live_share_max: f64, room_bytes: u64) -> Option<SegmentStats> {
        let ask = Ask { now, score: Score::Rent, victims: 1, live_share_max, room_bytes, must_move: &[] };
        let mut victims = Vec::new();
        victim::choose(self.candidates.heads(&[]), &ask, |_| 0.0, &mut victims);
        self.candidates.get(victims.first()?.segment).copied()
    }

    /// A record of `bytes` was put into a segment, to be overwritten after about `interval_bytes`.
    pub(crate) fn expects(&mut self, chunk: u32, bytes: u32, interval_bytes: u64, now: LogTime) {
        self.segment_mut(chunk).contents.add(bytes.into(), interval_bytes, now);
    }

    /// Whether every segment but this one begins after `lsn`. Of what cannot be read nobody knows.
    pub(crate) fn all_others_begin_after(&self, chunk: u32, lsn: Lsn) -> bool {
        let before = |segment: &Segment| {
            let begins_before = segment.first_lsn.is_some_and(|first| first < lsn);
            segment.phase != Phase::Freed && (begins_before || segment.unreadable)
        };
        !self.has_lost_chunks
            && (0..)
                .zip(&self.segments)
                .all(|(at, segment)| at == chunk || !segment.as_ref().is_some_and(before))
    }

    /// A frame is durable, with its number and the LSN of its first record.
    pub(crate) fn wrote(&mut self, chunk: u32, number: u64, lsn: Lsn) {
        let segment = self.segment_mut(chunk);
        segment.frames.insert(number);
        segment.first_lsn.get_or_insert(lsn);
    }

    /// What the anchor must say before the segment is free.
    pub(crate) fn freed_segment(&self, chunk: u32) -> FreedSegment {
        let segment = self.segment(chunk);
        FreedSegment { generation: segment.stamp.generation, frames: segment.frames }
    }

    /// The anchor says that the segment is void: its chunk is free as soon as nobody reads it.
    pub(crate) fn free(&mut self, chunk: u32) {
        let segment = self.segment_mut(chunk);
        assert_eq!((segment.phase, segment.live, segment.retained), (Phase::Cleaned, 0, 0));
        self.adjust(chunk, |segment| segment.phase = Phase::Freed);
        if self.segment(chunk).pins == 0 {
            self.recycle(chunk);
        }
    }

    fn recycle(&mut self, chunk: u32) {
        self.wear[chunk as usize] += 1;
        self.free.insert((self.wear[chunk as usize], chunk));
    }

    pub(crate) fn free_chunks(&self) -> u32 {
        self.free.len() as u32
    }

    /// Bytes of frames that the stream's open segment still takes.
    fn open_rest(&self, stream: Stream) -> u32 {
        self.open[stream.slot()].map_or(0, |chunk| self.segment(chunk).rest(&self.layout, 0))
    }

    pub(crate) fn free_bytes(&self) -> u64 {
        u64::from(self.free_chunks()) * u64::from(self.layout.segment_capacity())
            + u64::from(self.open_rest(Stream::USER))
    }

    /// Bytes of the slice that hold something or were left behind by a seal.
    pub(crate) fn used_bytes(&self) -> u64 {
        let free = u64::from(self.free_chunks()) * u64::from(self.layout.chunk_bytes);
        let slice = u64::from(self.layout.chunk_count) * u64::from(self.layout.chunk_bytes);
        let open: u64 = Stream::all().map(|stream| u64::from(self.open_rest(stream))).sum();
        slice - free - open
    }

    /// Chunks that cleaning can still win, at least: what is needed of the sealed segments fits the others. `sealing`: a
    /// segment that will be sealed first.
    pub(crate) fn reclaimable_chunks(&self, sealing: Option<Stream>) -> u64 {
        let capacity = u64::from(self.layout.segment_capacity());
        let dense = dense_bytes(&self.layout);
        let (mut movable, mut to_move) = (self.movable, self.to_move);
        if let Some(chunk) = sealing.and_then(|stream| self.open[stream.slot()]) {
            let segment = self.segment(chunk);
            if segment.retained == 0 && segment.needed() < dense {
                (movable, to_move) = (movable + 1, to_move + segment.needed());
            }
        }
        // A segment is left when the next record does not fit; two neighbours together hold more than one capacity.
        let packed = dense.saturating_sub(u64::from(self.largest)).max(capacity / 2);
        movable.saturating_sub(to_move.div_ceil(packed))
    }

    /// Seals an open segment that cleaning would win something from, before it is full, and returns what is left so, to be
    /// finished. No flush may be under way.
    pub(crate) fn seal_early(&mut self) -> Option<Left> {
        let won = self.reclaimable_chunks(None);
        let capacity = u64::from(self.layout.segment_capacity());
        let worth = |log: &Self, stream: &Stream| {
            log.open[stream.slot()].is_some_and(|chunk| {
                let segment = log.segment(chunk);
                let half_empty = segment.needed() < capacity / 2;
                segment.retained == 0 && (half_empty || log.reclaimable_chunks(Some(*stream)) > won)
            })
        };
        let stream = Stream::all().find(|stream| worth(self, stream))?;
        let chunk = self.open[stream.slot()].take()?;
        let chunk_bytes = self.layout.chunk_bytes;
        let segment = self.segment_mut(chunk);
        segment.phase = Phase::Sealing;
        segment.footer = None;
        let full = segment.filled == chunk_bytes;
        self.seal(chunk);
        Some(Left { chunk, full })
    }

    /// Whole free chunks that records of `bytes` in total may take in a stream, the largest being `largest` bytes: an
    /// upper bound. Each record counts as if it were alone in its frame (`record_cost`).
    pub(crate) fn chunks_needed(&self, stream: Stream, bytes: u64, largest: u64) -> u64 {
        if bytes <= u64::from(self.open_rest(stream)) {
            return 0;
        }
        let capacity = u64::from(self.layout.segment_capacity());
        // A segment is left when the next record does not fit: it is full but for less than the largest record.
        // And two neighbours together hold more than one capacity.
        let by_largest = bytes / capacity.saturating_sub(largest).max(1);
        let by_pairs = 2 * bytes / capacity;
        by_largest.min(by_pairs) + 1
    }

    /// Upper bound of what a record costs on the medium, however it is framed, and with its hints.
    pub(crate) fn record_cost(&self, record: Extent) -> u64 {
        let hint = footer::FRAME_BYTES_MAX + record.hint_bytes.min(self.layout.hint_bytes_limit());
        // One that leaves no room for them has a segment for itself.
        (u64::from(self.layout.frame_bytes(record.bytes)) + u64::from(hint))
            .min(self.layout.segment_capacity().into())
    }

    /// Decides where records of these streams go, and takes the space. Records of a stream stand together, and
    /// its frames are to be written in the order given. `clock` is the shard's.
    pub(crate) fn plan(
        &mut self,
        records: impl Iterator<Item = (Stream, Extent)>,
        clock: u64,
    ) -> Vec<FramePlan> {
        let mut frames: Vec<FramePlan> = Vec::new();
        let mut stream = None;
        for (at, (of, record)) in records.enumerate() {
            if stream == Some(of)
                && let Some(frame) = frames.last_mut()
                && self.grows(frame, record)
            {
                frame.records.end = at + 1;
                frame.body_bytes += record.bytes;
                frame.hint_bytes += record.hint_bytes;
                continue;
            }
            self.close_frame(frames.last());
            stream = Some(of);
            let hint_bytes = footer::FRAME_BYTES_MAX + record.hint_bytes;
            let frame_bytes = self.layout.frame_bytes(record.bytes);
            let fits = |log: &Self, chunk: u32| {
                frame_bytes <= log.segment(chunk).rest_for(&log.layout, hint_bytes, record)
            };
            let open = self.open[of.slot()];
            let opens = (!open.is_some_and(|chunk| fits(self, chunk))).then(|| self.open_next(of, clock));
            let chunk = self.open[of.slot()].expect("a segment was opened");
            if record.hint_bytes > self.layout.hint_bytes_limit() || !fits(self, chunk) {
                self.segment_mut(chunk).footer = None;
            }
            let segment = self.segment(chunk);
            frames.push(FramePlan {
                chunk,
                stream: of,
                stamp: segment.stamp,
                offset: segment.filled,
                opens,
                records: at..at + 1,
                body_bytes: record.bytes,
                hint_bytes,
            });
        }
        self.close_frame(frames.last());
        frames
    }

    /// Whether the frame takes the record in as well.
    fn grows(&mut self, frame: &FramePlan, record: Extent) -> bool {
        let layout = self.layout;
        let segment = self.segment_mut(frame.chunk);
        let rest = segment.rest_for(&layout, frame.hint_bytes + record.hint_bytes, record);
        let body = frame.body_bytes.checked_add(record.bytes);
        let grows = body.is_some_and(|body| {
            body <= layout.chunk_bytes - frame::HEADER_BYTES as u32 && layout.frame_bytes(body) <= rest
        });
        if grows && record.hint_bytes > layout.hint_bytes_limit() {
            segment.footer = None;
        }
        grows
    }

    fn close_frame(&mut self, frame: Option<&FramePlan>) {
        if let Some(frame) = frame {
            let end = frame.offset + self.layout.frame_bytes(frame.body_bytes);
            let segment = self.segment_mut(frame.chunk);
            segment.filled = end;
            segment.footer_planned += frame.hint_bytes;
        }
    }

    fn open_next(&mut self, stream: Stream, clock: u64) -> Opening {
        let leaves = self.open[stream.slot()].take().map(|chunk| {
            let chunk_bytes = self.layout.chunk_bytes;
            let segment = self.segment_mut(chunk);
            segment.phase = Phase::Sealing;
            Left { chunk, full: segment.filled == chunk_bytes }
        });
        let (_, chunk) = self.free.pop_first().expect("what was admitted has room");
        self.segments_opened += 1;
        let stamp = Stamp::new(self.slice, Generation::new(self.epoch, self.segments_opened));
        let mut segment = Segment::opened(stamp, stream, clock, self.layout.unit_bytes);
        segment.footer = Some(FooterBuilder::default());
        let before = self.segments[chunk as usize].replace(segment);
        self.open[stream.slot()] = Some(chunk);
        Opening { leaves, forgets: before.map(|before| before.stamp.generation) }
    }

    /// A planned frame was filled: its segment's footer will name it.
    pub(crate) fn note_frame<'a>(
        &mut self,
        frame: &FramePlan,
        header: &FrameHeader,
        hints: impl IntoIterator<Item = Hint<'a>>,
    ) {
        let segment = self.segments[frame.chunk as usize].as_mut().expect("it was planned there");
        if let Some(footer) = &mut segment.footer {
            footer.frame(header, hints, &mut self.packer);
            assert!(footer.bytes() <= segment.footer_planned, "hints keep within what was planned");
            segment.footer_planned = footer.bytes();
        }
    }

    /// The footer of a segment that is left, if it gets one.
    pub(crate) fn take_footer(&mut self, chunk: u32) -> Option<SealedFooter> {
        let segment = self.segments[chunk as usize].as_mut().expect("it was left");
        let mut builder = segment.footer.take()?;
        let (end, stamp) = (segment.filled, segment.stamp);
        let bytes = builder.finish(&mut self.packer);
        let padding = self.layout.chunk_bytes - end - bytes;
        footer::is_worth(padding, &self.layout).then_some(SealedFooter { chunk, end, stamp, bytes, builder })
    }
}

/// What headers and padding of frames take of a dense segment, at most, in bytes.
const FRAMING_BYTES: u64 = 256 << 10;

/// Bytes of records that a segment holds if it is filled with large frames.
pub(crate) fn dense_bytes(layout: &Layout) -> u64 {
    let capacity = u64::from(layout.segment_capacity());
    capacity - FRAMING_BYTES.min(capacity / 8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use terrane_ocssd::Geometry;

    const GEOMETRY: Geometry = Geometry {
        groups: 1,
        parallel_units: 1,
        chunks: 40,
        chunk_sectors: 32,
        sector_bytes: 512,
        ws_min: 1,
        ws_opt: 1,
        mw_cunits: 0,
        max_open: 0,
    };

    const SLICE: SliceId = SliceId { cluster: 1, node: 2, shard: 3 };

    fn log() -> Log {
        let layout = Layout::new(&GEOMETRY).unwrap();
        let free = (2..40).map(|chunk| (u32::from(chunk == 2), chunk)).collect();
        let mut segments = Vec::new();
        segments.resize_with(40, || None);
        Log::new(layout, SLICE, 7, free, vec![0; 40], segments)
    }

    fn extent(bytes: u32) -> Extent {
        // Some are too long for a footer.
        let hint_bytes = if bytes % 16 == 7 { bytes } else { bytes.min(100) };
        Extent { bytes, hint_bytes }
    }

    fn user(lengths: impl IntoIterator<Item = u32>) -> impl Iterator<Item = (Stream, Extent)> {
        lengths.into_iter().map(|length| (Stream::USER, extent(length)))
    }

    #[test]
    fn a_flush_continues_the_open_segment_and_spills_into_the_least_worn_free_one() {
        let mut log = log();
        let frames = log.plan(user([100, 200]), 0);
        assert_eq!(
            frames,
            [FramePlan {
                chunk: 3,
                stream: Stream::USER,
                stamp: Stamp::new(SLICE, Generation::new(7, 1)),
                offset: 512,
                opens: Some(Opening { leaves: None, forgets: None }),
                records: 0..2,
                body_bytes: 300,
                hint_bytes: footer::FRAME_BYTES_MAX + 200,
            }]
        );
        // Two smallest writes are left to the footer.
        let frames = log.plan(user([12_900, 1000, 1000]), 0);
        let places: Vec<_> = frames
            .iter()
            .map(|frame| (frame.chunk, frame.offset, frame.opens.is_some(), frame.records.clone()))
            .collect();
        assert_eq!(places, [(3, 1024, false, 0..2), (4, 512, true, 2..3)]);
        assert_eq!(log.segment(4).stamp.generation, Generation::new(7, 2));
    }

    #[test]
    fn a_segment_that_is_left_before_it_is_full_is_named() {
        let mut log = log();
        let mut left = |length: u32| {
            let frames = log.plan(user([length]), 0);
            let [frame] = &frames[..] else { panic!("{frames:?}") };
            (frame.chunk, frame.opens.map(|opening| opening.leaves))
        };
        let full = 32 * 512 - 512 - frame::HEADER_BYTES as u32;
        assert_eq!(left(9000), (3, Some(None)));
        assert_eq!(left(9000), (4, Some(Some(Left { chunk: 3, full: false }))));
        assert_eq!(left(100), (4, None));
        assert_eq!(left(full), (5, Some(Some(Left { chunk: 4, full: false }))));
        assert_eq!(left(100), (6, Some(Some(Left { chunk: 5, full: true }))));
    }

    /// Without the hints in what a record costs, it is admitted into a rest that it does not fit.
    #[test]
    fn what_fits_but_for_its_hints_takes_another_chunk() {
        let mut log = log();
        log.plan(user([100]), 0);
        let rest = log.open_rest(Stream::USER);
        let record = Extent { bytes: rest - frame::HEADER_BYTES as u32, hint_bytes: 250 };
        assert_eq!(log.layout.frame_bytes(record.bytes), rest);
        let cost = log.record_cost(record);
        assert!(log.chunks_needed(Stream::USER, cost, cost) >= 1);
        let frames = log.plan([(Stream::USER, record)].into_iter(), 0);
        assert!(frames[0].opens.is_some());
    }

    fn lengths() -> impl Strategy<Value = u32> {
        prop_oneof![9 => 40_u32..9000, 1 => 9000_u32..16_000]
    }

    proptest! {
        #[test]
        fn what_is_planned_fits_and_the_estimate_is_an_upper_bound(
            flushes in prop::collection::vec(prop::collection::vec(lengths(), 1..12), 1..6)
        ) {
            let mut log = log();
            let limit = log.layout.record_bytes_limit();
            for lengths in flushes {
                let lengths: Vec<u32> = lengths.into_iter().map(|length| length.min(limit)).collect();
                let costs = lengths.iter().map(|length| log.record_cost(extent(*length)));
                let needed = log.chunks_needed(Stream::USER, costs.clone().sum(), costs.max().unwrap_or(0));
                if needed > u64::from(log.free_chunks()) {
                    break;
                }
                let before = log.free_chunks();
                let frames = log.plan(user(lengths.iter().copied()), 0);
                prop_assert!(u64::from(before - log.free_chunks()) <= needed);
                let mut next = 0;
                let mut chunks = BTreeSet::new();
                for frame in &frames {
                    prop_assert_eq!(frame.records.start, next);
                    next = frame.records.end;
                    let body: u32 = lengths[frame.records.clone()].iter().sum();
                    prop_assert_eq!(body, frame.body_bytes);
                    let segment = log.segment(frame.chunk);
                    let footer = segment.footer.as_ref().map(|_| log.layout.footer_bytes(segment.footer_planned));
                    prop_assert!(segment.filled + footer.unwrap_or(0) <= log.layout.chunk_bytes);
                    prop_assert_eq!(frame.offset + log.layout.frame_bytes(body), segment.filled);
                    // Only with a hint that is too long, or what fills a segment for itself, has it none.
                    let plain = |length: &u32| *length < 15_000 && extent(*length).hint_bytes <= 100;
                    let all_plain = lengths[frame.records.clone()].iter().all(plain);
                    prop_assert!(footer.is_some() || frame.opens.is_none() || !all_plain);
                    prop_assert!(chunks.insert(frame.chunk), "one frame per segment and flush");
                }
                prop_assert_eq!(next, lengths.len());
            }
        }
    }
}

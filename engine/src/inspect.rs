//! Looking at a slice that no store has open: its anchors, segments, frames and groups, and whether a start would find
//! damage.
//!
//! What is judged is judged by recovery's own code ([`crate::recovery`]), so that the two cannot disagree. Beyond that it is
//! told what a start has no use for: where the frames stand, what they hold, and what the slice still shows of segments that
//! do not count any more.
//!
//! A report is of the slice ([`SliceReport`]), its anchors, its segments and, if the log was read, the log as a whole.
//! What a segment keeps about itself beside its header belongs in [`SegmentReport`]; what is found by reading its frames, in
//! [`SegmentContents`].
//!
//! Invariants:
//! - Of the medium only the report and reads are asked for. Nothing is written, finished or flushed.
//! - Damage is part of the report, never an error: an error says that the medium failed or cannot hold a slice.
//! - Memory is bounded by what a start of the slice takes: its indexes, and its largest flush.

use bytes::Bytes;
use terrane_ocssd::{ChunkId, Media};

use crate::anchor::{Anchor, Found};
use crate::entry::GroupId;
use crate::error::OpenError;
use crate::frame::FrameHeader;
use crate::lineage::TermRun;
use crate::record::{Record, RecordKind};
use crate::recovery::{self, Assembled, Damage, FoundLog, ReadLog};
use crate::replay::Replayed;
use crate::scan::{self, FoundChunks, FoundSegment, Met};
use crate::slice::{ANCHOR_CHUNKS, LOG_CHUNK_FIRST, Layout, SliceId};

/// How much of a slice is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Anchors and the headers of segments: a few sectors a chunk.
    Headers,
    /// All that a start reads: every segment that may count, in full.
    Log,
}

/// What is told while a slice is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// How far the log is read.
    Progress {
        /// Bytes of the log that were read.
        read_bytes: u64,
        /// Bytes that will be read in all.
        all_bytes: u64,
    },
    /// A valid frame. Segments come in the order in which they were opened, the frames of one in the order of their places.
    Frame(FrameReport),
}

/// A slice as it stands on the medium.
#[derive(Debug)]
#[non_exhaustive]
pub struct SliceReport {
    /// Whose slice was looked for.
    pub slice: SliceId,
    /// Chunks of the slice, those of the anchor included.
    pub chunks: u32,
    /// Bytes of a chunk.
    pub chunk_bytes: u32,
    /// Bytes of the smallest write: frames begin at multiples of it.
    pub unit_bytes: u32,
    /// The two chunks of the anchor, in their order.
    pub anchors: Vec<AnchorReport>,
    /// The chunk with the anchor that a start would go by; `None`: it would not start.
    pub newest_anchor: Option<ChunkId>,
    /// Chunks with log, in the order in which the segments were opened.
    pub segments: Vec<SegmentReport>,
    /// Chunks of the log of which so much cannot be read that nothing says whether they hold a segment.
    pub lost_chunks: Vec<ChunkId>,
    /// Chunks of the log that hold no segment.
    pub blank_chunks: u32,
    /// What the log says, put together. `None` if it was not read, or cannot be without an anchor.
    pub log: Option<LogReport>,
    /// Why a start would refuse the slice.
    pub refused: Option<OpenError>,
}

impl SliceReport {
    /// Whether a start would take the slice and find nothing missing or broken, as far as was read.
    pub fn is_sound(&self) -> bool {
        self.refused.is_none()
            && self.lost_chunks.is_empty()
            && self.log.as_ref().is_none_or(|log| log.damage.is_empty())
    }
}

/// A chunk of the anchor.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AnchorReport {
    /// Which chunk.
    pub chunk: ChunkId,
    /// What stands there.
    pub content: AnchorContent,
}

/// What stands in a chunk of the anchor.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AnchorContent {
    /// Nothing.
    Blank,
    /// Something that is no valid anchor. The older of the two may be: a crash tears what is being written.
    Damaged,
    /// An anchor of another version of the format.
    OtherFormat(u32),
    /// An anchor.
    Valid(AnchorFields),
}

/// What an anchor says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AnchorFields {
    /// Whose slice it is.
    pub slice: SliceId,
    /// Counts the anchors of the slice.
    pub sequence: u64,
    /// The epoch of the start that wrote it.
    pub epoch: u32,
    /// The highest term known by then.
    pub term_max: u64,
    /// Checksum over the newest damage that a start found; 0: none ever did.
    pub damage: u32,
    /// The start that first found it; 0: there is none.
    pub damage_known_since: u32,
    /// Earlier epochs of which frames must be there, ascending.
    pub epochs: Vec<EpochReport>,
    /// Frames of this epoch that were freed.
    pub freed_frames: u64,
    /// Segments that are free and may still stand on their chunks, those that were freed after the anchor was written
    /// included.
    pub freed: Vec<SegmentId>,
}

/// What an anchor says of an earlier epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct EpochReport {
    /// The epoch.
    pub epoch: u32,
    /// The last flush that counts.
    pub last_flush: u64,
    /// Frames that must be there.
    pub frames: u64,
}

/// One use of a chunk as a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId {
    /// The start that opened it.
    pub epoch: u32,
    /// Counts the segments of the epoch.
    pub ordinal: u32,
}

/// Whether what a segment holds counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SegmentState {
    /// It is part of the log, or may be, if its frames were not read.
    Counts,
    /// Its epoch counts, but no frame of it does: the next start takes its chunk.
    Unused,
    /// Cleaning freed it, and its chunk was not written again yet.
    Freed,
    /// It is of an epoch of which nothing counts any more.
    Void,
    /// No anchor says.
    Unknown,
}

/// A segment as it stands on its chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentReport {
    /// Where it stands.
    pub chunk: ChunkId,
    /// Which use of the chunk.
    pub id: SegmentId,
    /// The stream that fills it: its records' expected lifetime.
    pub stream: u32,
    /// The shard's clock when it was opened: bytes that users had written.
    pub born_bytes: u64,
    /// Bytes of the chunk that can be read, by what the device says.
    pub readable_bytes: u32,
    /// Whether it counts.
    pub state: SegmentState,
    /// What its frames hold, where they were read.
    pub contents: Option<SegmentContents>,
}

/// What the frames of a segment hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentContents {
    /// Bytes from the start of the chunk to the end of the last valid frame.
    pub filled_bytes: u32,
    /// Valid frames.
    pub frames: u64,
    /// Of these, frames that count.
    pub frames_counted: u64,
    /// Records in valid frames.
    pub records: RecordCounts,
    /// Bytes of these records, their headers included.
    pub record_bytes: u64,
    /// Sectors with a valid frame header whose records are not all there. Where a flush was cut off that is as it should be.
    pub torn_sectors: Vec<u32>,
    /// First sectors of smallest writes that the device does not give back.
    pub unreadable_sectors: Vec<u32>,
}

/// Records by kind, in number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordCounts {
    /// Ops of log entries, and entries without ops.
    pub entries: u64,
    /// States of groups.
    pub states: u64,
    /// Puts that cleaning moved.
    pub settled: u64,
    /// Deletes that cleaning moved.
    pub tombstones: u64,
}

impl RecordCounts {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.entries + self.states + self.settled + self.tombstones
    }

    fn of(records: &[(u32, Record<'_>)]) -> Self {
        let mut counts = Self::default();
        for (_, record) in records {
            *match record.header.kind {
                RecordKind::Entry => &mut counts.entries,
                RecordKind::State => &mut counts.states,
                RecordKind::Settled => &mut counts.settled,
                RecordKind::Tombstone => &mut counts.tombstones,
            } += 1;
        }
        counts
    }

    fn add(&mut self, other: Self) {
        self.entries += other.entries;
        self.states += other.states;
        self.settled += other.settled;
        self.tombstones += other.tombstones;
    }
}

/// A valid frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct FrameReport {
    /// The chunk it stands on.
    pub chunk: ChunkId,
    /// The sector of the chunk that it begins at.
    pub sector: u32,
    /// Its segment.
    pub segment: SegmentId,
    /// Counts the frames of the epoch.
    pub number: u64,
    /// Counts the flushes of the epoch.
    pub flush: u64,
    /// Which frame of its flush, from 0.
    pub ordinal: u16,
    /// Frames of the flush.
    pub flush_frames: u16,
    /// The LSN counter of its first record.
    pub lsn_first: u64,
    /// At least every term that a record of an earlier frame speaks of.
    pub term_max: u64,
    /// Its records.
    pub records: RecordCounts,
    /// Their bytes, headers included.
    pub record_bytes: u32,
}

/// The log as a start would put it together.
#[derive(Debug)]
#[non_exhaustive]
pub struct LogReport {
    /// Frames that count.
    pub frames: u64,
    /// Entry records that count, superseded ones included.
    pub entries: u64,
    /// Incomplete last flushes that a start would drop: 0 or 1. Taken for torn by a crash.
    pub dropped_flushes: u64,
    /// What is missing or broken.
    pub damage: Vec<Damage>,
    /// The groups, ascending by id.
    pub groups: Vec<GroupReport>,
    /// Bytes read.
    pub read_bytes: u64,
}

/// A group as a start would find it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupReport {
    /// The group.
    pub id: GroupId,
    /// Its local birth number.
    pub incarnation: u32,
    /// Its current term, as it was last written.
    pub term: u64,
    /// Whom it voted for in that term, as it was last written.
    pub vote: u64,
    /// The highest index known to be committed, as far as the log reaches.
    pub commit: u64,
    /// First index of the log.
    pub first_index: u64,
    /// Highest index that would be applied.
    pub applied: u64,
    /// Last index of the log; `first_index - 1` when it is empty.
    pub last_index: u64,
    /// Live keys.
    pub keys: u64,
    /// The log as term runs, ascending.
    pub runs: Vec<TermRun>,
    /// The membership, in the host's encoding.
    pub membership: Bytes,
    /// Whether records may have been lost that it acknowledged.
    pub suspect: bool,
    /// The epoch in which its newest state was written, and the chunk that holds it.
    pub state_at: (u32, ChunkId),
}

/// Looks at a slice. `see` is called while the log is read.
///
/// # Errors
/// [`OpenError::Geometry`] if the medium cannot hold a slice, [`OpenError::Media`] if it fails otherwise than by not giving back
/// what it holds. Why else a start would refuse the slice is part of the report.
pub async fn inspect<M: Media>(
    media: &M,
    slice: SliceId,
    depth: Depth,
    see: impl FnMut(Seen),
) -> Result<SliceReport, OpenError> {
    let layout = Layout::new(media.geometry()).map_err(OpenError::Geometry)?;
    let report = media.report().await?;
    let anchors = recovery::read_anchors(media, &layout, &report).await?;
    let mut out = SliceReport {
        slice,
        chunks: layout.chunk_count,
        chunk_bytes: layout.chunk_bytes,
        unit_bytes: layout.unit_bytes,
        anchors: ANCHOR_CHUNKS.into_iter().zip(&anchors).map(anchor_report).collect(),
        newest_anchor: None,
        segments: Vec::new(),
        lost_chunks: Vec::new(),
        blank_chunks: 0,
        log: None,
        refused: None,
    };
    let mut walk = Walk { layout, slice, media, see, out: &mut out };
    let found = match recovery::newest_anchor(anchors, slice) {
        Ok(newest) => {
            walk.out.newest_anchor = Some(newest.chunk());
            match recovery::find_log(media, &layout, slice, &report, &newest).await {
                Ok(found) => Ok((newest, found)),
                Err(error @ OpenError::AnchorLost { .. }) => Err(error),
                Err(error) => return Err(error),
            }
        }
        Err(error) => Err(error),
    };
    match found {
        Ok((newest, found)) => walk.with_anchor(&newest, found, depth).await?,
        Err(refused) => {
            walk.out.newest_anchor = None;
            walk.out.refused = Some(refused);
            let found = scan::find_segments(media, &layout, slice, &report, |_| true).await?;
            walk.without_anchor(found, depth).await?;
        }
    }
    let log_chunks = layout.chunk_count - LOG_CHUNK_FIRST;
    out.blank_chunks = log_chunks - out.segments.len() as u32 - out.lost_chunks.len() as u32;
    Ok(out)
}

/// A look under way.
struct Walk<'a, M, S> {
    layout: Layout,
    slice: SliceId,
    media: &'a M,
    see: S,
    out: &'a mut SliceReport,
}

impl<M: Media, S: FnMut(Seen)> Walk<'_, M, S> {
    async fn with_anchor(&mut self, newest: &Anchor, found: FoundLog, depth: Depth) -> Result<(), OpenError> {
        self.list(&found.segments, SegmentState::Counts);
        self.lose(&found.lost);
        if depth == Depth::Log {
            let mut tally = Tally::new(self.layout, &found.segments, &mut self.see);
            // Footers spare a start the frames, but here it is the frames that are looked at.
            let (media, layout) = (self.media, &self.layout);
            let read =
                recovery::read_log(media, layout, self.slice, newest, &found, false, |met| tally.meet(met));
            let read = read.await?;
            let contents = tally.finish();
            self.fill(contents, &read.assembled);
            self.out.log = Some(log_report(newest, read, found.bytes_read));
        }
        self.list(&found.freed, SegmentState::Freed);
        self.list(&found.void, SegmentState::Void);
        self.out.segments.sort_by_key(|segment| segment.id);
        if newest.epoch == u32::MAX {
            self.out.refused = Some(OpenError::EpochsExhausted);
        }
        Ok(())
    }

    async fn without_anchor(&mut self, found: FoundChunks, depth: Depth) -> Result<(), OpenError> {
        self.list(&found.segments, SegmentState::Unknown);
        self.lose(&found.lost);
        if depth == Depth::Log {
            let mut tally = Tally::new(self.layout, &found.segments, &mut self.see);
            let meet = |met: Met<'_>| tally.meet(&met);
            scan::scan_segments(self.media, &self.layout, self.slice, &found.segments, meet).await?;
            let contents = tally.finish();
            for (segment, contents) in self.out.segments.iter_mut().zip(contents) {
                segment.contents = Some(contents);
            }
        }
        Ok(())
    }

    fn list(&mut self, segments: &[FoundSegment], state: SegmentState) {
        self.out.segments.extend(segments.iter().map(|segment| SegmentReport {
            chunk: ChunkId(segment.chunk),
            id: SegmentId::of(segment),
            stream: segment.stream,
            born_bytes: segment.born,
            readable_bytes: segment.readable,
            state,
            contents: None,
        }));
    }

    /// Lost places come chunk by chunk.
    fn lose(&mut self, lost: &[(u32, u32)]) {
        self.out.lost_chunks = lost.iter().map(|(chunk, _)| ChunkId(*chunk)).collect();
        self.out.lost_chunks.dedup();
    }

    /// The segments that were listed first get their contents.
    fn fill(&mut self, contents: Vec<SegmentContents>, assembled: &Assembled) {
        for (segment, mut contents) in self.out.segments.iter_mut().zip(contents) {
            match assembled.used.get(&segment.chunk.0) {
                Some(used) => contents.frames_counted = used.frames.words()[0],
                None => segment.state = SegmentState::Unused,
            }
            segment.contents = Some(contents);
        }
    }
}

/// What is met, by segment, in their order.
struct Tally<'a, S> {
    layout: Layout,
    see: &'a mut S,
    segments: &'a [FoundSegment],
    contents: Vec<SegmentContents>,
    /// The segment that is read, and the bytes of those before it.
    at: usize,
    before_bytes: u64,
    all_bytes: u64,
}

impl<'a, S: FnMut(Seen)> Tally<'a, S> {
    fn new(layout: Layout, segments: &'a [FoundSegment], see: &'a mut S) -> Self {
        let all_bytes = segments.iter().map(|segment| u64::from(segment.readable)).sum();
        see(Seen::Progress { read_bytes: 0, all_bytes });
        let contents = vec![SegmentContents::default(); segments.len()];
        Self { layout, see, segments, contents, at: 0, before_bytes: 0, all_bytes }
    }

    fn meet(&mut self, met: &Met<'_>) {
        match met {
            Met::Frame(frame) => {
                let records = RecordCounts::of(frame.records);
                let end = frame.offset + self.layout.frame_bytes(frame.header.body_bytes);
                let sector = self.layout.sector_of(frame.offset);
                (self.see)(Seen::Frame(FrameReport::new(&frame.segment, sector, &frame.header, records)));
                let contents = self.reach(&frame.segment, end);
                contents.frames += 1;
                contents.filled_bytes = end;
                contents.records.add(records);
                contents.record_bytes += u64::from(frame.header.body_bytes);
            }
            Met::Hinted { .. } => unreachable!("footers are not read"),
            Met::Torn { segment, offset, .. } => {
                let sector = self.layout.sector_of(*offset);
                self.reach(segment, *offset).torn_sectors.push(sector);
            }
            Met::Unreadable { segment, offset } => {
                let sector = self.layout.sector_of(*offset);
                self.reach(segment, *offset).unreadable_sectors.push(sector);
            }
        }
    }

    /// The reading has come as far as this offset of the segment. What is met of one comes before what is met of the next.
    fn reach(&mut self, segment: &FoundSegment, offset: u32) -> &mut SegmentContents {
        while self.segments[self.at] != *segment {
            self.before_bytes += u64::from(self.segments[self.at].readable);
            self.at += 1;
        }
        let read_bytes = self.before_bytes + u64::from(offset);
        (self.see)(Seen::Progress { read_bytes, all_bytes: self.all_bytes });
        &mut self.contents[self.at]
    }

    fn finish(self) -> Vec<SegmentContents> {
        (self.see)(Seen::Progress { read_bytes: self.all_bytes, all_bytes: self.all_bytes });
        self.contents
    }
}

impl SegmentId {
    fn of(segment: &FoundSegment) -> Self {
        Self { epoch: segment.generation.epoch(), ordinal: segment.generation.ordinal() }
    }
}

impl FrameReport {
    fn new(segment: &FoundSegment, sector: u32, header: &FrameHeader, records: RecordCounts) -> Self {
        Self {
            chunk: ChunkId(segment.chunk),
            sector,
            segment: SegmentId::of(segment),
            number: header.number,
            flush: header.flush,
            ordinal: header.ordinal,
            flush_frames: header.frames,
            lsn_first: header.lsn_first,
            term_max: header.term_max,
            records,
            record_bytes: header.body_bytes,
        }
    }
}

fn anchor_report((chunk, found): (ChunkId, &Found)) -> AnchorReport {
    let content = match found {
        Found::Blank => AnchorContent::Blank,
        Found::Damaged => AnchorContent::Damaged,
        Found::Other(version) => AnchorContent::OtherFormat(*version),
        Found::Valid(anchor) => AnchorContent::Valid(AnchorFields {
            slice: anchor.slice,
            sequence: anchor.sequence,
            epoch: anchor.epoch,
            term_max: anchor.term_max,
            damage: anchor.damage,
            damage_known_since: anchor.damage_known_since,
            epochs: anchor
                .epochs
                .iter()
                .map(|end| EpochReport {
                    epoch: end.epoch,
                    last_flush: end.last_flush,
                    frames: end.frames.words()[0],
                })
                .collect(),
            freed_frames: anchor.freed_frames.words()[0],
            freed: anchor
                .freed
                .iter()
                .map(|freed| SegmentId { epoch: freed.epoch(), ordinal: freed.ordinal() })
                .collect(),
        }),
    };
    AnchorReport { chunk, content }
}

fn log_report(newest: &Anchor, read: ReadLog, headers_bytes: u64) -> LogReport {
    let ReadLog { assembled, groups, bytes_read, .. } = read;
    let epoch = newest.epoch.saturating_add(1);
    let (_, known_since) = recovery::known_damage(newest, &assembled.damage, epoch);
    LogReport {
        frames: assembled.frames,
        entries: assembled.entries,
        dropped_flushes: assembled.dropped_flushes,
        damage: assembled.damage,
        groups: groups.into_iter().map(|group| group_report(group, known_since)).collect(),
        read_bytes: headers_bytes + bytes_read,
    }
}

fn group_report(replayed: Replayed, damage_known_since: u32) -> GroupReport {
    let Replayed { group, waiting, state_epoch, state_chunk } = replayed;
    GroupReport {
        id: group.id,
        incarnation: group.incarnation,
        term: group.hard_state.term,
        vote: group.hard_state.vote,
        commit: group.hard_state.commit,
        first_index: group.first_index,
        applied: group.applied,
        last_index: group.last_index + waiting.len() as u64,
        keys: group.index.len(),
        runs: group.runs,
        membership: group.membership,
        suspect: group.suspect || recovery::is_outdated(state_epoch, damage_known_since),
        state_at: (state_epoch, ChunkId(state_chunk)),
    }
}

//! The segments of a slice: which chunks are free, which one is being filled, and where the next records go.
//!
//! Invariants:
//! - Records are written in the order they are planned. A segment that the next record does not fit is sealed and never
//!   written again; nor is any segment of an earlier start (where it ended may be unknown). So a start wastes at
//!   most the rest of one segment.
//! - A stream has one segment open, and the plan names the one that it leaves with the frame that opens the next.
//! - At most one frame per segment and flush.
//! - What was admitted fits: `chunks_needed` never underestimates.

use std::collections::BTreeSet;
use std::ops::Range;

use terrane_ocssd::{ChunkId, LifetimeClass};

use crate::frame;
use crate::index::Place;
use crate::segment::{Generation, Stamp};
use crate::slice::{Layout, SliceId};

/// The lifetime class of records as users write them.
///
/// It is that of chunks of which nothing is said as well, the anchor's, so that these take no placement handle from the
/// streams: a start is done with its anchor before the log begins.
const USER_LIFETIME: LifetimeClass = LifetimeClass(0);

#[derive(Debug, Clone, Copy)]
struct OpenSegment {
    chunk: u32,
    stamp: Stamp,
    /// Bytes written or planned.
    filled: u32,
}

/// Where records of one expected lifetime go, segment after segment.
#[derive(Debug)]
struct Stream {
    lifetime: LifetimeClass,
    open: Option<OpenSegment>,
}

#[derive(Debug)]
pub(crate) struct Log {
    layout: Layout,
    slice: SliceId,
    epoch: u32,
    /// Free chunks, the least worn first.
    free: BTreeSet<(u32, u32)>,
    /// By chunk: the stamp of the segment it holds.
    stamps: Vec<Option<Stamp>>,
    user: Stream,
    segments_opened: u32,
}

/// One frame of a flush, before it is filled.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FramePlan {
    pub(crate) chunk: u32,
    pub(crate) stamp: Stamp,
    /// Bytes from the start of the chunk to the frame's header.
    pub(crate) offset: u32,
    /// The frame opens the segment: its header is written along with it.
    pub(crate) opens: Option<Opening>,
    /// Which records of the flush.
    pub(crate) records: Range<usize>,
    pub(crate) body_bytes: u32,
}

/// A stream goes on in a new segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Opening {
    /// What the medium is told of the new segment's content.
    pub(crate) lifetime: LifetimeClass,
    /// The chunk that the stream leaves before it is full: to be finished before the new one is written.
    pub(crate) leaves: Option<ChunkId>,
}

impl Log {
    /// A log that may use the chunks in `free` (by wear and number) and has segments elsewhere.
    pub(crate) fn new(
        layout: Layout,
        slice: SliceId,
        epoch: u32,
        free: BTreeSet<(u32, u32)>,
        stamps: Vec<Option<Stamp>>,
    ) -> Self {
        let user = Stream { lifetime: USER_LIFETIME, open: None };
        Self { layout, slice, epoch, free, stamps, user, segments_opened: 0 }
    }

    /// Stamp of the segment that the index points into.
    pub(crate) fn stamp(&self, place: Place) -> Stamp {
        self.stamps[place.chunk as usize].expect("a place names a chunk that holds a segment")
    }

    pub(crate) fn free_chunks(&self) -> u32 {
        self.free.len() as u32
    }

    /// Bytes of frames that the open segment still takes.
    fn open_rest(&self) -> u32 {
        self.user.open.map_or(0, |open| self.layout.chunk_bytes - open.filled)
    }

    pub(crate) fn free_bytes(&self) -> u64 {
        u64::from(self.free_chunks()) * u64::from(self.layout.segment_capacity())
            + u64::from(self.open_rest())
    }

    /// Bytes of the slice that hold something or were left behind by a seal.
    pub(crate) fn used_bytes(&self) -> u64 {
        let free = u64::from(self.free_chunks()) * u64::from(self.layout.chunk_bytes);
        let slice = u64::from(self.layout.chunk_count) * u64::from(self.layout.chunk_bytes);
        slice - free - u64::from(self.open_rest())
    }

    /// Whole free chunks that records of `bytes` in total may take, the largest being `largest` bytes: an upper
    /// bound. Each record counts as if it were alone in its frame (`record_cost`).
    pub(crate) fn chunks_needed(&self, bytes: u64, largest: u64) -> u64 {
        if bytes <= u64::from(self.open_rest()) {
            return 0;
        }
        let capacity = u64::from(self.layout.segment_capacity());
        // A segment is left when the next record does not fit: it is full but for less than the largest record.
        // And two neighbours together hold more than one capacity.
        let by_largest = bytes / capacity.saturating_sub(largest).max(1);
        let by_pairs = 2 * bytes / capacity;
        by_largest.min(by_pairs) + 1
    }

    /// Upper bound of what a record costs on the medium, however it is framed.
    pub(crate) fn record_cost(&self, record_bytes: u32) -> u64 {
        u64::from(self.layout.frame_bytes(record_bytes))
    }

    /// Decides where records of these lengths go, and takes the space. The frames are to be written in the order given.
    pub(crate) fn plan(&mut self, lengths: impl Iterator<Item = u32>) -> Vec<FramePlan> {
        let mut frames: Vec<FramePlan> = Vec::new();
        for (at, length) in lengths.enumerate() {
            if let Some(frame) = frames.last_mut()
                && self.grows(frame, length)
            {
                frame.records.end = at + 1;
                frame.body_bytes += length;
                continue;
            }
            self.close_frame(frames.last());
            let fits = self.user.open.is_some_and(|open| {
                open.filled < self.layout.chunk_bytes
                    && self.layout.frame_bytes(length) <= self.layout.chunk_bytes - open.filled
            });
            let opens = (!fits).then(|| self.open_next());
            let open = self.user.open.expect("a segment was opened");
            frames.push(FramePlan {
                chunk: open.chunk,
                stamp: open.stamp,
                offset: open.filled,
                opens,
                records: at..at + 1,
                body_bytes: length,
            });
        }
        self.close_frame(frames.last());
        frames
    }

    fn grows(&self, frame: &FramePlan, length: u32) -> bool {
        let body = frame.body_bytes.checked_add(length);
        body.is_some_and(|body| {
            body <= self.layout.chunk_bytes - frame::HEADER_BYTES as u32
                && self.layout.frame_bytes(body) <= self.layout.chunk_bytes - frame.offset
        })
    }

    fn close_frame(&mut self, frame: Option<&FramePlan>) {
        if let (Some(frame), Some(open)) = (frame, &mut self.user.open)
            && frame.chunk == open.chunk
        {
            open.filled = frame.offset + self.layout.frame_bytes(frame.body_bytes);
        }
    }

    fn open_next(&mut self) -> Opening {
        let left = self.user.open.filter(|open| open.filled < self.layout.chunk_bytes);
        let (_, chunk) = self.free.pop_first().expect("what was admitted has room");
        self.segments_opened += 1;
        let stamp = Stamp::new(self.slice, Generation::new(self.epoch, self.segments_opened));
        self.stamps[chunk as usize] = Some(stamp);
        self.user.open = Some(OpenSegment { chunk, stamp, filled: self.layout.unit_bytes });
        Opening { lifetime: self.user.lifetime, leaves: left.map(|open| ChunkId(open.chunk)) }
    }
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
        Log::new(layout, SLICE, 7, free, vec![None; 40])
    }

    #[test]
    fn a_flush_continues_the_open_segment_and_spills_into_the_least_worn_free_one() {
        let mut log = log();
        let frames = log.plan([100, 200].into_iter());
        assert_eq!(
            frames,
            [FramePlan {
                chunk: 3,
                stamp: Stamp::new(SLICE, Generation::new(7, 1)),
                offset: 512,
                opens: Some(Opening { lifetime: USER_LIFETIME, leaves: None }),
                records: 0..2,
                body_bytes: 300
            }]
        );
        let frames = log.plan([14_000, 1000, 1000].into_iter());
        let places: Vec<_> = frames
            .iter()
            .map(|frame| (frame.chunk, frame.offset, frame.opens.is_some(), frame.records.clone()))
            .collect();
        assert_eq!(places, [(3, 1024, false, 0..2), (4, 512, true, 2..3)]);
        let place = Place { chunk: 4, offset: 0, length: 1 };
        assert_eq!(log.stamp(place).generation, Generation::new(7, 2));
    }

    #[test]
    fn a_segment_that_is_left_before_it_is_full_is_named() {
        let mut log = log();
        let mut left = |length: u32| {
            let frames = log.plan([length].into_iter());
            let [frame] = &frames[..] else { panic!("{frames:?}") };
            (frame.chunk, frame.opens.map(|opening| opening.leaves))
        };
        let full = 32 * 512 - 512 - frame::HEADER_BYTES as u32;
        assert_eq!(left(9000), (3, Some(None)));
        assert_eq!(left(9000), (4, Some(Some(ChunkId(3)))));
        assert_eq!(left(100), (4, None));
        assert_eq!(left(full), (5, Some(Some(ChunkId(4)))));
        assert_eq!(left(100), (6, Some(None)), "the one before is full");
    }

    proptest! {
        #[test]
        fn what_is_planned_fits_and_the_estimate_is_an_upper_bound(
            flushes in prop::collection::vec(prop::collection::vec(40_u32..9000, 1..12), 1..6)
        ) {
            let mut log = log();
            let limit = log.layout.record_bytes_limit();
            for lengths in flushes {
                let lengths: Vec<u32> = lengths.into_iter().map(|length| length.min(limit)).collect();
                let costs = lengths.iter().map(|length| log.record_cost(*length));
                let needed = log.chunks_needed(costs.clone().sum(), costs.max().unwrap_or(0));
                if needed > u64::from(log.free_chunks()) {
                    break;
                }
                let before = log.free_chunks();
                let frames = log.plan(lengths.iter().copied());
                prop_assert!(u64::from(before - log.free_chunks()) <= needed);
                let mut next = 0;
                let mut chunks = BTreeSet::new();
                for frame in &frames {
                    prop_assert_eq!(frame.records.start, next);
                    next = frame.records.end;
                    let body: u32 = lengths[frame.records.clone()].iter().sum();
                    prop_assert_eq!(body, frame.body_bytes);
                    prop_assert!(frame.offset + log.layout.frame_bytes(body) <= log.layout.chunk_bytes);
                    prop_assert!(chunks.insert(frame.chunk), "one frame per segment and flush");
                }
                prop_assert_eq!(next, lengths.len());
            }
        }
    }
}

//! The slice: one shard's share of a device, and the arithmetic of its chunks.
//!
//! Chunks 0 and 1 belong to the anchor ([`crate::anchor`]); every other chunk is a segment or free. Nothing in a
//! slice is ever overwritten: a chunk is reset and written front to back.

use crate::cursor::Cursor;
use crate::stream::Streams;
use crate::{footer, frame};
use terrane_ocssd::{ChunkId, Geometry};

/// The two chunks of the anchor.
pub(crate) const ANCHOR_CHUNKS: [ChunkId; 2] = [ChunkId(0), ChunkId(1)];

/// Chunks that the store must be able to have open: the anchor's, one for what users write, one for what cleaning moves, and
/// one that a flush spills into.
const OPEN_CHUNKS_LEAST: u32 = 4;

/// First chunk of the log.
pub(crate) const LOG_CHUNK_FIRST: u32 = 2;

/// Whose slice it is. It is written into the anchor and every segment, so that a slice moved, swapped or
/// copied from elsewhere is noticed instead of read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SliceId {
    /// The cluster.
    pub cluster: u128,
    /// The node within the cluster.
    pub node: u32,
    /// The shard within the node.
    pub shard: u32,
}

impl SliceId {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.cluster.to_le_bytes());
        out.extend_from_slice(&self.node.to_le_bytes());
        out.extend_from_slice(&self.shard.to_le_bytes());
    }

    pub(crate) fn decode(cursor: &mut Cursor<'_>) -> Option<Self> {
        Some(Self { cluster: cursor.u128()?, node: cursor.u32()?, shard: cursor.u32()? })
    }
}

/// Sizes that follow from the geometry, in bytes unless named otherwise.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    /// The unit of addresses.
    pub(crate) sector_bytes: u32,
    /// The smallest write: frames start at multiples of it.
    pub(crate) unit_bytes: u32,
    pub(crate) chunk_bytes: u32,
    pub(crate) chunk_count: u32,
    pub(crate) streams: Streams,
}

impl Layout {
    /// The layout of a slice, or why a slice of this shape cannot hold a store.
    pub(crate) fn new(geometry: &Geometry) -> Result<Self, &'static str> {
        if geometry.sector_bytes == 0 || geometry.ws_min == 0 {
            return Err("sector size and smallest write must not be zero");
        }
        if geometry.mw_cunits != 0 {
            return Err("a medium that cannot read what it just wrote (mw_cunits > 0) is not supported");
        }
        if (1..OPEN_CHUNKS_LEAST).contains(&geometry.max_open) {
            return Err("at least four chunks must be open at once");
        }
        let Ok(chunk_bytes) = u32::try_from(geometry.chunk_bytes()) else {
            return Err("a chunk must be smaller than 4 GiB");
        };
        if !geometry.chunk_sectors.is_multiple_of(geometry.ws_min) {
            return Err("a chunk must be a whole number of smallest writes");
        }
        let layout = Self {
            sector_bytes: geometry.sector_bytes,
            unit_bytes: geometry.sector_bytes * geometry.ws_min,
            chunk_bytes,
            chunk_count: geometry.chunk_count(),
            streams: Streams::of(geometry.chunk_count(), geometry.max_open),
        };
        if layout.chunk_count < LOG_CHUNK_FIRST + 6 {
            return Err("a slice needs at least eight chunks");
        }
        if layout.chunk_bytes / layout.unit_bytes < 8 {
            return Err("a chunk must hold at least eight smallest writes");
        }
        if u64::from(layout.chunk_count) * 48 + 256 > u64::from(layout.chunk_bytes) {
            return Err("the anchor could not list one epoch per chunk: fewer or larger chunks are needed");
        }
        Ok(layout)
    }

    /// Bytes of the whole slice.
    pub(crate) fn slice_bytes(&self) -> u64 {
        u64::from(self.chunk_count) * u64::from(self.chunk_bytes)
    }

    /// `bytes` rounded up to whole smallest writes.
    pub(crate) fn round_up(&self, bytes: u32) -> u32 {
        bytes.next_multiple_of(self.unit_bytes)
    }

    /// Bytes that a frame with `body` bytes of records takes, padding included.
    pub(crate) fn frame_bytes(&self, body: u32) -> u32 {
        self.round_up(frame::HEADER_BYTES as u32 + body)
    }

    /// Bytes of frames, and of what its footer says of them, that a segment holds at least.
    pub(crate) fn segment_capacity(&self) -> u32 {
        // The header, the footer's end, and what fills its first smallest write.
        self.chunk_bytes - 2 * self.unit_bytes - footer::TRAILER_BYTES
    }

    /// Bytes of a segment's footer with so many bytes of blocks.
    pub(crate) fn footer_bytes(&self, blocks: u32) -> u32 {
        self.round_up(blocks + footer::TRAILER_BYTES)
    }

    /// The longest hint that a footer takes. A record with a longer one (a state of a long lineage, a key of many KiB in small
    /// chunks) makes its segment one without a footer.
    pub(crate) fn hint_bytes_limit(&self) -> u32 {
        self.chunk_bytes / 64
    }

    /// The largest record (header and payload) that fits in a segment, though perhaps without a footer.
    pub(crate) fn record_bytes_limit(&self) -> u32 {
        self.chunk_bytes - self.unit_bytes - frame::HEADER_BYTES as u32
    }

    pub(crate) fn sector_of(&self, offset: u32) -> u32 {
        offset / self.sector_bytes
    }
}

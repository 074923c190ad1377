//! The segment header: the first smallest write of a chunk that holds log.
//!
//! ```text
//!  0  magic "TRNSEGMT"       40  generation u64 (epoch << 32 | ordinal)
//!  8  version u32            48  chunk u32
//! 12  chunks u32 (1)         52  zero
//! 16  slice id (24 bytes)    60  crc32c of bytes 0..60
//! ```
//!
//! Invariant: a generation never repeats in a slice (the epoch rises at every start, the ordinal within it). It is
//! mixed into the checksum of every frame and record of the segment, so what an earlier use of the chunk left behind
//! is never valid.

use crate::cursor::Cursor;
use crate::slice::SliceId;

const MAGIC: &[u8; 8] = b"TRNSEGMT";
const VERSION: u32 = 1;
/// Chunks that make up a segment.
const CHUNKS_PER_SEGMENT: u32 = 1;

/// Bytes of the header; the rest of its smallest write is zero.
pub(crate) const HEADER_BYTES: usize = 64;

/// One use of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Generation(pub(crate) u64);

impl Generation {
    pub(crate) fn new(epoch: u32, ordinal: u32) -> Self {
        Self(u64::from(epoch) << 32 | u64::from(ordinal))
    }

    pub(crate) fn epoch(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// What checksums of this segment start from.
    pub(crate) fn checksum_seed(self) -> u32 {
        crc32c::crc32c(&self.0.to_le_bytes())
    }
}

/// Says which use of which chunk of which slice follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) slice: SliceId,
    pub(crate) generation: Generation,
    pub(crate) chunk: u32,
}

impl SegmentHeader {
    pub(crate) fn encode(&self, out: &mut [u8]) {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&CHUNKS_PER_SEGMENT.to_le_bytes());
        self.slice.encode(&mut bytes);
        bytes.extend_from_slice(&self.generation.0.to_le_bytes());
        bytes.extend_from_slice(&self.chunk.to_le_bytes());
        bytes.resize(HEADER_BYTES - 4, 0);
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        out[..HEADER_BYTES].copy_from_slice(&bytes);
    }

    /// The header, if `bytes` hold a valid one.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, crc) = bytes.get(..HEADER_BYTES)?.split_last_chunk::<4>()?;
        let mut cursor = Cursor::new(body);
        if cursor.take(8)? != MAGIC || crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
            return None;
        }
        if cursor.u32()? != VERSION || cursor.u32()? != CHUNKS_PER_SEGMENT {
            return None;
        }
        let slice = SliceId::decode(&mut cursor)?;
        Some(Self { slice, generation: Generation(cursor.u64()?), chunk: cursor.u32()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    pub(crate) const HEADER: SegmentHeader = SegmentHeader {
        slice: SliceId { cluster: 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10, node: 2, shard: 3 },
        generation: Generation(0x0000_0007_0000_0009),
        chunk: 5,
    };

    #[test]
    fn golden_bytes() {
        let mut bytes = [0; HEADER_BYTES];
        HEADER.encode(&mut bytes);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        expect!["54524e5345474d540100000001000000100f0e0d0c0b0a090807060504030201020000000300000009000000070000000500000000000000000000002c521314"].assert_eq(&hex);
        assert_eq!(SegmentHeader::decode(&bytes), Some(HEADER));
    }

    #[test]
    fn any_changed_byte_is_noticed() {
        let mut bytes = [0; HEADER_BYTES];
        HEADER.encode(&mut bytes);
        for at in 0..HEADER_BYTES {
            bytes[at] ^= 0x10;
            assert_eq!(SegmentHeader::decode(&bytes), None, "byte {at}");
            bytes[at] ^= 0x10;
        }
        assert_eq!(SegmentHeader::decode(&bytes[..HEADER_BYTES - 1]), None);
    }
}

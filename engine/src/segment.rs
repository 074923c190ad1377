//! The segment header: the first smallest write of a chunk that holds log.
//!
//! ```text
//!  0  magic "TRNSEGMT"       48  chunk u32
//!  8  version u32            52  stream u32
//! 12  chunks u32 (1)         56  born u64: the shard's clock when it was opened
//! 16  slice id (24 bytes)    64  zero u32
//! 40  generation u64         68  crc32c of bytes 0..68
//!     (epoch << 32 | ordinal)
//! ```
//!
//! Invariant: a generation never repeats in a slice (the epoch rises at every start, the ordinal within it). Together
//! with the slice's identity it is mixed into the checksum of every frame and record of the segment (its *stamp*), so
//! what an earlier use of the chunk left behind is never valid.

use crate::cursor::Cursor;
use crate::slice::SliceId;

const MAGIC: &[u8; 8] = b"TRNSEGMT";
const VERSION: u32 = 2;
/// Chunks that make up a segment.
const CHUNKS_PER_SEGMENT: u32 = 1;

/// Bytes of the header; the rest of its smallest write is zero.
pub(crate) const HEADER_BYTES: usize = 72;

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

    /// Counts the segments of the epoch.
    pub(crate) fn ordinal(self) -> u32 {
        self.0 as u32
    }
}

/// What the checksums of one use of a segment start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) generation: Generation,
    /// The checksum of slice id and generation.
    pub(crate) seed: u32,
}

impl Stamp {
    pub(crate) fn new(slice: SliceId, generation: Generation) -> Self {
        let mut bytes = Vec::with_capacity(32);
        slice.encode(&mut bytes);
        bytes.extend_from_slice(&generation.0.to_le_bytes());
        Self { generation, seed: crc32c::crc32c(&bytes) }
    }
}

/// Says which use of which chunk of which slice follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) slice: SliceId,
    pub(crate) generation: Generation,
    pub(crate) chunk: u32,
    /// Which stream it belongs to: its records' expected lifetime.
    pub(crate) stream: u32,
    /// Bytes that users had written to the shard when it was opened.
    pub(crate) born: u64,
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
        bytes.extend_from_slice(&self.stream.to_le_bytes());
        bytes.extend_from_slice(&self.born.to_le_bytes());
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
        let generation = Generation(cursor.u64()?);
        Some(Self { slice, generation, chunk: cursor.u32()?, stream: cursor.u32()?, born: cursor.u64()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;
    use expect_test::expect;

    pub(crate) const HEADER: SegmentHeader = SegmentHeader {
        slice: SliceId { cluster: 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10, node: 2, shard: 3 },
        generation: Generation(0x0000_0007_0000_0009),
        chunk: 5,
        stream: 1,
        born: 0x0a0b_0c0d,
    };

    #[test]
    fn golden_bytes() {
        let mut bytes = [0; HEADER_BYTES];
        HEADER.encode(&mut bytes);
        let dump = golden::dump(&bytes);
        expect![[r#"
            0000  54 52 4e 53 45 47 4d 54
            0008  02 00 00 00 01 00 00 00
            0016  10 0f 0e 0d 0c 0b 0a 09
            0024  08 07 06 05 04 03 02 01
            0032  02 00 00 00 03 00 00 00
            0040  09 00 00 00 07 00 00 00
            0048  05 00 00 00 01 00 00 00
            0056  0d 0c 0b 0a 00 00 00 00
            0064  00 00 00 00 31 0d 28 e8
        "#]]
        .assert_eq(&dump);
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

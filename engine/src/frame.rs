//! The frame: one atomic write to a segment.
//!
//! ```text
//!  0  magic "TRNF"                      28  frames of the flush u16    48  frame number u64
//!  4  generation u64                    30  this frame's ordinal u16   56  body crc32c u32
//! 12  first LSN counter u64             32  record count u32           60  header crc32c u32
//! 20  flush number u64                  36  body bytes u32             64  records, one after the other,
//!                                       40  term_max u64                   then zeros to the next smallest write
//! ```
//!
//! All checksums start from the segment's stamp. A frame starts at a multiple of the smallest write, right after the one before it. Its records count only if all
//! of them are valid; the body checksum runs over the records' own checksums, so every payload byte is summed once.
//!
//! Invariants: flush numbers ascend by one in an epoch, from 1, and so do frame numbers, in the order of flush and
//! ordinal: a start knows which frames there must be. All frames of a flush carry the same count, and ordinals from 0. `term_max` is at least every term that a record of an earlier frame
//! of the slice speaks of.

use crate::cursor::Cursor;
use crate::record::{self, Record};
use crate::segment::{Generation, Stamp};
use crate::slice::SliceId;

/// Bytes before the records.
pub(crate) const HEADER_BYTES: usize = 64;

const MAGIC: &[u8; 4] = b"TRNF";

/// What a frame says of itself. Its epoch is the generation's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) generation: Generation,
    /// Counts the records that the shard wrote in this epoch before this frame, plus one.
    pub(crate) lsn_first: u64,
    pub(crate) flush: u64,
    pub(crate) frames: u16,
    pub(crate) ordinal: u16,
    pub(crate) records: u32,
    pub(crate) body_bytes: u32,
    pub(crate) term_max: u64,
    /// Counts the frames of this epoch, from 1.
    pub(crate) number: u64,
    pub(crate) body_crc: u32,
}

impl FrameHeader {
    /// Writes the header to the front of `out`. `stamp` is of the header's generation.
    pub(crate) fn encode(&self, stamp: Stamp, out: &mut [u8]) {
        out[..4].copy_from_slice(MAGIC);
        out[4..12].copy_from_slice(&self.generation.0.to_le_bytes());
        out[12..20].copy_from_slice(&self.lsn_first.to_le_bytes());
        out[20..28].copy_from_slice(&self.flush.to_le_bytes());
        out[28..30].copy_from_slice(&self.frames.to_le_bytes());
        out[30..32].copy_from_slice(&self.ordinal.to_le_bytes());
        out[32..36].copy_from_slice(&self.records.to_le_bytes());
        out[36..40].copy_from_slice(&self.body_bytes.to_le_bytes());
        out[40..48].copy_from_slice(&self.term_max.to_le_bytes());
        out[48..56].copy_from_slice(&self.number.to_le_bytes());
        out[56..60].copy_from_slice(&self.body_crc.to_le_bytes());
        let crc = crc32c::crc32c_append(stamp.seed, &out[..HEADER_BYTES - 4]);
        out[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    }

    /// The generation that a valid header of this slice at the front of `bytes` names, whichever it is.
    pub(crate) fn claimed_generation(bytes: &[u8], slice: SliceId) -> Option<Generation> {
        let (claimed, _) = bytes.strip_prefix(MAGIC)?.split_first_chunk::<8>()?;
        let generation = Generation(u64::from_le_bytes(*claimed));
        Self::decode(bytes, Stamp::new(slice, generation)).map(|header| header.generation)
    }

    /// The header at the front of `bytes`, if it is valid and of this use of the segment.
    pub(crate) fn decode(bytes: &[u8], stamp: Stamp) -> Option<Self> {
        let (body, crc) = bytes.get(..HEADER_BYTES)?.split_last_chunk::<4>()?;
        let mut cursor = Cursor::new(body);
        if cursor.take(4)? != MAGIC
            || cursor.u64()? != stamp.generation.0
            || crc32c::crc32c_append(stamp.seed, body) != u32::from_le_bytes(*crc)
        {
            return None;
        }
        let header = Self {
            generation: stamp.generation,
            lsn_first: cursor.u64()?,
            flush: cursor.u64()?,
            frames: cursor.u16()?,
            ordinal: cursor.u16()?,
            records: cursor.u32()?,
            body_bytes: cursor.u32()?,
            term_max: cursor.u64()?,
            number: cursor.u64()?,
            body_crc: cursor.u32()?,
        };
        header.is_sound().then_some(header)
    }

    /// Whether its numbers can be.
    pub(crate) fn is_sound(&self) -> bool {
        self.flush > 0 && self.ordinal < self.frames && self.number > u64::from(self.ordinal)
    }
}

/// The body checksum, fed with each record's checksum in order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyChecksum(u32);

impl BodyChecksum {
    pub(crate) fn new(stamp: Stamp) -> Self {
        Self(stamp.seed)
    }

    pub(crate) fn add(&mut self, record_crc: u32) {
        self.0 = crc32c::crc32c_append(self.0, &record_crc.to_le_bytes());
    }

    pub(crate) fn finish(self) -> u32 {
        self.0
    }
}

/// The records of a frame whose header was read, each with its offset in `body`; `None` unless all are valid.
/// `body` starts after the header and may be longer than the frame.
pub(crate) fn decode_body<'a>(
    header: &FrameHeader,
    stamp: Stamp,
    body: &'a [u8],
) -> Option<Vec<(u32, Record<'a>)>> {
    let body = body.get(..header.body_bytes as usize)?;
    let mut records = Vec::with_capacity((header.records as usize).min(body.len() / record::HEADER_BYTES));
    let mut checksum = BodyChecksum::new(stamp);
    let mut at = 0;
    while at < body.len() {
        let record = record::decode(&body[at..], stamp)?;
        checksum.add(record.crc);
        records.push((at as u32, record));
        at += record.header.record_bytes() as usize;
    }
    (records.len() == header.records as usize && checksum.finish() == header.body_crc).then_some(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::GroupId;
    use crate::golden;
    use crate::record::{RecordHeader, RecordKind};
    use expect_test::expect;
    use proptest::prelude::*;

    const GENERATION: Generation = Generation(0x0000_0007_0000_0009);

    fn stamp() -> Stamp {
        Stamp::new(SliceId { cluster: 1, node: 2, shard: 3 }, GENERATION)
    }

    fn frame(payloads: &[Vec<u8>]) -> (FrameHeader, Vec<u8>) {
        let mut body = Vec::new();
        let mut checksum = BodyChecksum::new(stamp());
        for (index, payload) in payloads.iter().enumerate() {
            let header = RecordHeader {
                payload_bytes: payload.len() as u32,
                kind: RecordKind::Entry,
                entry_kind: 0,
                parts_left: 0,
                incarnation: 1,
                group: GroupId(1),
                index: index as u64 + 1,
                term: 1,
            };
            let at = body.len();
            body.resize(at + header.record_bytes() as usize, 0);
            checksum.add(record::encode(&header, payload, stamp(), &mut body[at..]));
        }
        let header = FrameHeader {
            generation: GENERATION,
            lsn_first: 0x21,
            flush: 0x22,
            frames: 3,
            ordinal: 1,
            records: payloads.len() as u32,
            body_bytes: body.len() as u32,
            term_max: 0x23,
            number: 0x24,
            body_crc: checksum.finish(),
        };
        let mut bytes = vec![0; HEADER_BYTES];
        header.encode(stamp(), &mut bytes);
        bytes.extend_from_slice(&body);
        (header, bytes)
    }

    #[test]
    fn golden_bytes() {
        let (header, bytes) = frame(&[]);
        let dump = golden::dump(&bytes);
        expect![[r#"
            0000  54 52 4e 46 09 00 00 00
            0008  07 00 00 00 21 00 00 00
            0016  00 00 00 00 22 00 00 00
            0024  00 00 00 00 03 00 01 00
            0032  00 00 00 00 00 00 00 00
            0040  23 00 00 00 00 00 00 00
            0048  24 00 00 00 00 00 00 00
            0056  0b 36 56 17 4f a2 ae df
        "#]]
        .assert_eq(&dump);
        assert_eq!(FrameHeader::decode(&bytes, stamp()), Some(header));
        assert_eq!(
            FrameHeader::claimed_generation(&bytes, SliceId { cluster: 1, node: 2, shard: 3 }),
            Some(GENERATION)
        );
        assert_eq!(FrameHeader::claimed_generation(&bytes, SliceId { cluster: 1, node: 2, shard: 4 }), None);
        let next = Stamp::new(SliceId { cluster: 1, node: 2, shard: 3 }, Generation(GENERATION.0 + 1));
        assert_eq!(FrameHeader::decode(&bytes, next), None);
    }

    proptest! {
        #[test]
        fn a_frame_counts_whole_or_not_at_all(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..6),
            at in any::<prop::sample::Index>(), flip in 1_u8..
        ) {
            let (header, mut bytes) = frame(&payloads);
            let records = decode_body(&header, stamp(), &bytes[HEADER_BYTES..]).unwrap();
            let back: Vec<_> = records.iter().map(|(_, record)| record.payload.to_vec()).collect();
            prop_assert_eq!(back, payloads);
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            let read = FrameHeader::decode(&bytes, stamp())
                .and_then(|header| decode_body(&header, stamp(), &bytes[HEADER_BYTES..]));
            prop_assert_eq!(read, None);
        }

        #[test]
        fn random_bytes_never_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..300), records in 0_u32..5, body_bytes in any::<u32>()
        ) {
            prop_assert_eq!(FrameHeader::decode(&bytes, stamp()), None);
            let (mut header, _) = frame(&[]);
            header.records = records;
            header.body_bytes = body_bytes;
            let _ = decode_body(&header, stamp(), &bytes);
        }
    }
}

//! The record: one op of a log entry, one value or tombstone that cleaning moved, or one group state; verifiable by itself.
//!
//! ```text
//!  0  crc32c u32, from the segment's stamp over bytes 4.. of header and payload
//!  4  payload bytes u32      16  group u64
//!  8  kind u8                24  index u64   (state: commit)
//!  9  entry kind u8          32  term u64    (state: hard state's term; settled and tombstone: 0)
//! 10  parts left u16         40  payload
//! 12  incarnation u32
//! ```
//!
//! An entry of several ops is a run of records, one for each op, in one frame: `parts left` counts those that follow. So
//! every record but a state is about one key at most: it is read, found dead, and moved by itself.
//!
//! Invariant: a reader never trusts a place. It checks checksum, group, incarnation, index and term of what it got
//! (rule 10): a place that went stale yields an error, not another key's value.

use bytes::Bytes;

use crate::cursor::Cursor;
use crate::entry::{ENTRY_OPS, GroupId};
use crate::hint::{About, Hint};
use crate::index::Place;
use crate::op::{self, Op};
use crate::segment::Stamp;

/// Bytes before the payload.
pub(crate) const HEADER_BYTES: usize = 40;

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecordKind {
    /// An op of a Raft log entry, or a whole entry without ops.
    Entry,
    /// The state of a whole group ([`crate::state_record`]).
    State,
    /// A put that is known to be committed, moved by cleaning. Its index is that of the entry that it came with; it
    /// needs no lineage.
    Settled,
    /// A delete that is known to be committed, moved by cleaning.
    Tombstone,
}

impl RecordKind {
    fn code(self) -> u8 {
        match self {
            RecordKind::Entry => 1,
            RecordKind::State => 2,
            RecordKind::Settled => 3,
            RecordKind::Tombstone => 4,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(RecordKind::Entry),
            2 => Some(RecordKind::State),
            3 => Some(RecordKind::Settled),
            4 => Some(RecordKind::Tombstone),
            _ => None,
        }
    }
}

/// Everything of a record but its payload and checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) payload_bytes: u32,
    pub(crate) kind: RecordKind,
    pub(crate) entry_kind: u8,
    /// Records of the same entry that follow.
    pub(crate) parts_left: u16,
    pub(crate) incarnation: u32,
    pub(crate) group: GroupId,
    pub(crate) index: u64,
    pub(crate) term: u64,
}

impl RecordHeader {
    /// Bytes of the whole record.
    pub(crate) fn record_bytes(&self) -> u32 {
        HEADER_BYTES as u32 + self.payload_bytes
    }
}

/// Writes the record to the front of `out` and returns its checksum.
pub(crate) fn encode(header: &RecordHeader, payload: &[u8], stamp: Stamp, out: &mut [u8]) -> u32 {
    debug_assert_eq!(header.payload_bytes as usize, payload.len());
    let end = HEADER_BYTES + payload.len();
    out[4..8].copy_from_slice(&header.payload_bytes.to_le_bytes());
    out[8] = header.kind.code();
    out[9] = header.entry_kind;
    out[10..12].copy_from_slice(&header.parts_left.to_le_bytes());
    out[12..16].copy_from_slice(&header.incarnation.to_le_bytes());
    out[16..24].copy_from_slice(&header.group.0.to_le_bytes());
    out[24..32].copy_from_slice(&header.index.to_le_bytes());
    out[32..40].copy_from_slice(&header.term.to_le_bytes());
    out[HEADER_BYTES..end].copy_from_slice(payload);
    let crc = crc32c::crc32c_append(stamp.seed, &out[4..end]);
    out[..4].copy_from_slice(&crc.to_le_bytes());
    crc
}

/// What a record, or a run of them, takes in a segment, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) bytes: u32,
    /// Of its hints in the footer, at most.
    pub(crate) hint_bytes: u32,
}

/// A record found in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) header: RecordHeader,
    pub(crate) payload: &'a [u8],
    pub(crate) crc: u32,
}

/// The record at the front of `bytes`, if it is whole, of this use of the segment, and of a known kind.
pub(crate) fn decode(bytes: &[u8], stamp: Stamp) -> Option<Record<'_>> {
    let mut cursor = Cursor::new(bytes);
    let crc = cursor.u32()?;
    let payload_bytes = cursor.u32()?;
    let kind = cursor.u8()?;
    let entry_kind = cursor.u8()?;
    let parts_left = cursor.u16()?;
    let incarnation = cursor.u32()?;
    let group = GroupId(cursor.u64()?);
    let index = cursor.u64()?;
    let term = cursor.u64()?;
    let payload = cursor.take(payload_bytes as usize)?;
    let covered = &bytes[4..HEADER_BYTES + payload.len()];
    if crc32c::crc32c_append(stamp.seed, covered) != crc {
        return None;
    }
    let kind = RecordKind::from_code(kind)?;
    let header =
        RecordHeader { payload_bytes, kind, entry_kind, parts_left, incarnation, group, index, term };
    Some(Record { header, payload, crc })
}

/// The ops of a sound payload, each with the place of its record, for an entry (or a moved record) that stands at `place`.
pub(crate) fn parts(payload: &[u8], place: Place) -> impl Iterator<Item = (Op<'_>, Place)> {
    let mut ops = op::decode(payload);
    let mut offset = place.offset;
    std::iter::from_fn(move || {
        let before = ops.rest_bytes();
        let op = ops.next()?.expect("ops are checked before they are stored");
        let length = HEADER_BYTES as u32 + (before - ops.rest_bytes()) as u32;
        let at = if place.is_pending() { place } else { Place { chunk: place.chunk, offset, length } };
        offset += length;
        Some((op, at))
    })
}

/// The hints of an entry or another record of which `header` is the (first) record's, were it written as one.
pub(crate) fn hints<'a>(
    header: &RecordHeader,
    payload: &'a [u8],
    parts: u32,
) -> impl Iterator<Item = Hint<'a>> {
    let single = (parts == 1).then(|| Hint::of(&Record { header: *header, payload, crc: 0 }));
    let header = *header;
    let place = Place { chunk: 0, offset: 0, length: header.record_bytes() };
    let several = (parts > 1).then(|| {
        self::parts(payload, place).zip((0..parts).rev()).map(move |((op, place), left)| Hint {
            header: RecordHeader {
                payload_bytes: place.length - HEADER_BYTES as u32,
                parts_left: left as u16,
                ..header
            },
            about: About::of_op(&op),
            payload: None,
        })
    });
    single.into_iter().chain(several.into_iter().flatten())
}

/// How many records an entry of this header and payload is written as, and what they take in total.
pub(crate) fn entry_shape(header: &RecordHeader, payload: &[u8]) -> (u32, Extent) {
    let ops = if header.entry_kind == ENTRY_OPS { op::decode(payload).count() } else { 1 };
    let records = ops.max(1) as u32;
    let bytes = records * HEADER_BYTES as u32 + payload.len() as u32;
    let hint_bytes = hints(header, payload, records).map(|hint| hint.bytes_max()).sum();
    (records, Extent { bytes, hint_bytes })
}

/// Kind and payload of the entry whose records `bytes` are, if they are whole and `is` says of each that it is the right one.
pub(crate) fn decode_entry(
    mut bytes: &[u8],
    stamp: Stamp,
    is: impl Fn(&RecordHeader) -> bool,
) -> Option<(u8, Bytes)> {
    let first = decode(bytes, stamp)?;
    let mut payload = Vec::with_capacity(bytes.len());
    for left in (0..=first.header.parts_left).rev() {
        let record = decode(bytes, stamp)?;
        let header = &record.header;
        if header.kind != RecordKind::Entry || header.parts_left != left || !is(header) {
            return None;
        }
        payload.extend_from_slice(record.payload);
        bytes = bytes.get(header.record_bytes() as usize..)?;
    }
    bytes.is_empty().then(|| (first.header.entry_kind, payload.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;
    use crate::segment::Generation;
    use crate::slice::SliceId;
    use expect_test::expect;
    use proptest::prelude::*;

    fn stamp(ordinal: u32) -> Stamp {
        Stamp::new(SliceId { cluster: 1, node: 2, shard: 3 }, Generation::new(7, ordinal))
    }

    fn header(payload: &[u8]) -> RecordHeader {
        RecordHeader {
            payload_bytes: payload.len() as u32,
            kind: RecordKind::Entry,
            entry_kind: 1,
            parts_left: 0,
            incarnation: 4,
            group: GroupId(0x1122),
            index: 0x3344,
            term: 0x5566,
        }
    }

    fn encoded(payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0xee; HEADER_BYTES + payload.len()];
        encode(&header(payload), payload, stamp(9), &mut bytes);
        bytes
    }

    #[test]
    fn golden_bytes() {
        let dump = golden::dump(&encoded(b"payload"));
        expect![[r#"
            0000  6a dd d8 35 07 00 00 00
            0008  01 01 00 00 04 00 00 00
            0016  22 11 00 00 00 00 00 00
            0024  44 33 00 00 00 00 00 00
            0032  66 55 00 00 00 00 00 00
            0040  70 61 79 6c 6f 61 64
        "#]]
        .assert_eq(&dump);
    }

    #[test]
    fn a_record_of_another_generation_is_not_valid() {
        let bytes = encoded(b"payload");
        assert_eq!(decode(&bytes, stamp(9)).unwrap().header, header(b"payload"));
        assert_eq!(decode(&bytes, stamp(10)), None);
    }

    proptest! {
        #[test]
        fn any_change_is_noticed(
            payload in prop::collection::vec(any::<u8>(), 0..200),
            at in any::<prop::sample::Index>(), flip in 1_u8..
        ) {
            let mut bytes = encoded(&payload);
            prop_assert_eq!(decode(&bytes, stamp(9)).unwrap().payload, &payload[..]);
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert_eq!(decode(&bytes, stamp(9)), None);
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&bytes, stamp(9));
        }
    }
}

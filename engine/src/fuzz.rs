//! Bodies of the fuzz targets for what this crate reads from flash. Only with the feature `fuzz`, for the package `fuzz/`.
//!
//! Each takes any bytes. It decodes them as they are, and again with lengths and checksums made right, since else next to
//! nothing gets past them. Whatever decodes must be the same after it was encoded and decoded again; nothing may panic.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use crate::anchor::{Anchor, EpochEnd, Found, FreedSegment};
use crate::compression::Decompressor;
use crate::entry::GroupId;
use crate::frame::{self, BodyChecksum, FrameHeader};
use crate::frame_set::FrameSet;
use crate::index::{Index, Located, Place};
use crate::lineage::TermRun;
use crate::op::{self, Op, OpsBuilder, Stored};
use crate::policy::heat::Heat;
use crate::record::{self, RecordHeader, RecordKind};
use crate::segment::{self, Generation, SegmentHeader, Stamp};
use crate::slice::SliceId;
use crate::state_record::StateRecord;

const SLICE: SliceId = SliceId { cluster: 1, node: 2, shard: 3 };
const GENERATION: Generation = Generation(0x0000_0007_0000_0009);
const SEQUENCE: u64 = 4;

fn stamp() -> Stamp {
    Stamp::new(SLICE, GENERATION)
}

/// As they are, and with the checksum in the last four of the first `count` bytes made right.
fn with_checksum(bytes: &[u8], count: usize, seed: u32, mut check: impl FnMut(&[u8])) {
    check(bytes);
    if let Some((body, crc)) =
        bytes.to_vec().get_mut(..count).and_then(|part| part.split_last_chunk_mut::<4>())
    {
        *crc = crc32c::crc32c_append(seed, body).to_le_bytes();
        check(&[&*body, &crc[..], &bytes[count..]].concat());
    }
}

/// An anchor.
pub fn anchor(bytes: &[u8]) {
    check_anchor(bytes);
    let mut sized = bytes.to_vec();
    if let Some(claimed) = sized.get_mut(12..16) {
        claimed.copy_from_slice(&(bytes.len() as u32).to_le_bytes());
    }
    with_checksum(&sized, sized.len(), 0, check_anchor);
}

fn check_anchor(bytes: &[u8]) {
    let _ = Anchor::claimed_bytes(bytes);
    if let Found::Valid(anchor) = Anchor::decode(bytes) {
        assert_eq!(Anchor::decode(&anchor.encode()), Found::Valid(anchor));
    }
}

/// The freeing of a segment.
pub fn freed(bytes: &[u8]) {
    let seed = crate::anchor::seed(SLICE);
    with_checksum(bytes, crate::anchor::FREED_BYTES, seed, |bytes| {
        if let Some(freed) = FreedSegment::decode(bytes, SLICE, SEQUENCE) {
            assert_eq!(freed.encode(SLICE, SEQUENCE), bytes[..crate::anchor::FREED_BYTES]);
        }
    });
}

/// The header of a segment.
pub fn segment_header(bytes: &[u8]) {
    with_checksum(bytes, segment::HEADER_BYTES, 0, |bytes| {
        if let Some(header) = SegmentHeader::decode(bytes) {
            let mut again = [0; segment::HEADER_BYTES];
            header.encode(&mut again);
            assert_eq!(SegmentHeader::decode(&again), Some(header));
        }
    });
}

/// The header of a frame.
pub fn frame_header(bytes: &[u8]) {
    with_checksum(bytes, frame::HEADER_BYTES, stamp().seed, |bytes| {
        if let Some(header) = FrameHeader::decode(bytes, stamp()) {
            let mut again = [0; frame::HEADER_BYTES];
            header.encode(stamp(), &mut again);
            assert_eq!(again, bytes[..frame::HEADER_BYTES]);
            assert_eq!(FrameHeader::claimed_generation(bytes, SLICE), Some(GENERATION));
        }
        let _ = FrameHeader::claimed_generation(bytes, SliceId { shard: 4, ..SLICE });
    });
}

/// A record.
pub fn record(bytes: &[u8]) {
    check_record(bytes);
    let mut sealed = bytes.to_vec();
    if seal_record(&mut sealed).is_some() {
        check_record(&sealed);
    }
}

fn check_record(bytes: &[u8]) {
    if let Some(record) = record::decode(bytes, stamp()) {
        let mut again = vec![0; record.header.record_bytes() as usize];
        assert_eq!(record::encode(&record.header, record.payload, stamp(), &mut again), record.crc);
        assert_eq!(again, bytes[..again.len()]);
    }
}

/// Makes the checksum of the record at the front right. Returns it, and the record's bytes if they are all there.
fn seal_record(bytes: &mut [u8]) -> Option<(u32, usize)> {
    let payload: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
    let end = record::HEADER_BYTES.checked_add(u32::from_le_bytes(payload) as usize)?;
    let crc = crc32c::crc32c_append(stamp().seed, bytes.get(4..end)?);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    Some((crc, end))
}

/// A frame with its records.
pub fn frame(bytes: &[u8]) {
    check_frame(bytes);
    let mut sealed = bytes.to_vec();
    let Some((header, body)) = sealed.split_at_mut_checked(frame::HEADER_BYTES) else { return };
    let mut checksum = BodyChecksum::new(stamp());
    let (mut at, mut records) = (0, 0_u32);
    while let Some((crc, bytes)) = seal_record(&mut body[at..]) {
        checksum.add(crc);
        at += bytes;
        records += 1;
    }
    header[32..36].copy_from_slice(&records.to_le_bytes());
    header[36..40].copy_from_slice(&(at as u32).to_le_bytes());
    header[56..60].copy_from_slice(&checksum.finish().to_le_bytes());
    let crc = crc32c::crc32c_append(stamp().seed, &header[..60]);
    header[60..].copy_from_slice(&crc.to_le_bytes());
    check_frame(&sealed);
}

fn check_frame(bytes: &[u8]) {
    let Some(header) = FrameHeader::decode(bytes, stamp()) else { return };
    if let Some(records) = frame::decode_body(&header, stamp(), &bytes[frame::HEADER_BYTES..]) {
        let sum: u32 = records.iter().map(|(_, record)| record.header.record_bytes()).sum();
        assert_eq!((records.len() as u32, sum), (header.records, header.body_bytes));
    }
}

/// The state of a group. It has one spelling.
pub fn state_record(bytes: &[u8]) {
    if let Some(state) = StateRecord::decode(bytes) {
        assert_eq!(state.encode(), bytes);
    }
}

/// The ops of an entry. They have one spelling. What a compressed value decompresses to is as long as it says.
pub fn ops(bytes: &[u8]) {
    let mut decompressor = Decompressor::new();
    let mut builder = OpsBuilder::new();
    let mut keys: Vec<Vec<u8>> = Vec::new();
    for op in op::decode(bytes) {
        match op {
            Ok(Op::Put { key, value, expires_unix_ms }) => {
                if let Stored::Compressed { stored, raw_bytes } = value
                    && let Ok(raw) = decompressor.decompress(stored, raw_bytes)
                {
                    assert_eq!(raw.len(), value.raw_bytes());
                }
                builder.put_stored(key, value, expires_unix_ms)
            }
            Ok(Op::Delete { key }) => builder.delete(key),
            Err(_) => {
                keys.iter().for_each(|key| assert!(op::last_said(bytes, key).is_err()));
                return;
            }
        };
        keys.extend(op.map(|op| op.key().to_vec()));
    }
    assert_eq!(builder.finish(), bytes);
    keys.iter().for_each(|key| assert!(matches!(op::last_said(bytes, key), Ok(Some(_)))));
    if bytes.len() < u32::MAX as usize {
        let header = RecordHeader {
            payload_bytes: bytes.len() as u32,
            kind: RecordKind::Entry,
            entry_kind: crate::entry::ENTRY_OPS,
            parts_left: 0,
            incarnation: 1,
            group: crate::entry::GroupId(1),
            index: 1,
            term: 1,
        };
        let (records, total) = record::entry_shape(&header, bytes);
        let total = total.bytes;
        let place = Place { chunk: 2, offset: 64, length: total };
        let parts: Vec<_> = record::parts(bytes, place).collect();
        let sum: u32 = parts.iter().map(|(_, place)| place.length).sum();
        assert!(parts.is_empty() || (parts.len() as u32, sum) == (records, total));
    }
}

/// The index, told what to do by the bytes, beside an ordered map. Its pages are never read from flash, but a page's bytes
/// are packed by hand.
pub fn index(bytes: &[u8]) {
    let mut index = Index::default();
    let mut model = BTreeMap::new();
    let mut rest = bytes;
    let mut version = 0;
    while let [what, length, tail @ ..] = rest {
        let (key, tail) = tail.split_at(usize::from(*length).min(tail.len()));
        // Bits of the first byte lengthen the key with what many keys have in common.
        let key = [&[b'a'; 80][..usize::from(what >> 4) * 5], key].concat();
        rest = tail;
        version += 1;
        let located = Located {
            version,
            place: Place { chunk: version as u32 % 7, offset: version as u32 * 64, length: 50 },
            heat: Heat::from_bits(version as u16 * 977),
        };
        match what & 3 {
            0 | 1 => assert_eq!(index.insert(&key, located), model.insert(key, located)),
            2 => assert_eq!(index.remove(&key), model.remove(&key)),
            _ => assert_eq!(index.get(&key), model.get(&key).copied()),
        }
    }
    assert_eq!(index.len(), model.len() as u64);
    let mut cursor = index.range(Bound::Unbounded, Bound::Unbounded);
    for (key, located) in &model {
        assert_eq!(cursor.next_key(), Some((&key[..], *located)));
    }
    assert!(cursor.next_key().is_none());
}

/// Inputs that decode, by target: where mutations begin.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let set = FrameSet::up_to(3);
    let anchor = Anchor {
        slice: SLICE,
        sequence: SEQUENCE,
        epoch: 9,
        term_max: 5,
        damage: 10,
        damage_known_since: 9,
        epochs: vec![
            EpochEnd { epoch: 6, last_flush: 7, frames: set },
            EpochEnd { epoch: 8, last_flush: 9, frames: set },
        ],
        freed_frames: set,
        freed: vec![GENERATION],
    };
    let mut segment_header = vec![0; segment::HEADER_BYTES];
    SegmentHeader { slice: SLICE, generation: GENERATION, chunk: 5, stream: 1, born: 77 }
        .encode(&mut segment_header);
    let state = StateRecord {
        suspect: true,
        first_index: 1,
        vote: 2,
        runs: vec![TermRun { term: 1, first: 1 }, TermRun { term: 3, first: 4 }],
        membership: Bytes::from_static(b"members"),
    };
    let mut ops = OpsBuilder::new();
    ops.put(b"key", b"value", None).put(b"k", b"", Some(9)).delete(b"gone").put(&[7; 200], &[8; 300], None);
    let ops = ops.finish();
    // A frame of zstd spelled out (RFC 8878, without the magic number): 300 bytes of content in a run of one block.
    let stored = [0x60, 0x2c, 0x00, 0x63, 0x09, 0x00, 0x07];
    assert_eq!(Decompressor::new().decompress(&stored, 300).as_deref(), Ok(&[7; 300][..]));
    let value = Stored::Compressed { stored: &stored, raw_bytes: 300 };
    let mut compressed = OpsBuilder::new();
    compressed.put_stored(b"key", value, None).put_stored(b"k", value, Some(9)).delete(b"gone");
    let record = |kind, payload: &[u8]| {
        let header = RecordHeader {
            payload_bytes: payload.len() as u32,
            kind,
            entry_kind: 0,
            parts_left: 0,
            incarnation: 1,
            group: GroupId(1),
            index: 2,
            term: 3,
        };
        let mut bytes = vec![0; header.record_bytes() as usize];
        record::encode(&header, payload, stamp(), &mut bytes);
        bytes
    };
    let records = [
        record(RecordKind::State, &state.encode()),
        record(RecordKind::Entry, &op::encode_put(b"key", b"value", None)),
        record(RecordKind::Settled, &op::encode_put(b"key", b"value", Some(1))),
        record(RecordKind::Tombstone, &op::encode_delete(b"key")),
    ];
    let mut checksum = BodyChecksum::new(stamp());
    records
        .iter()
        .for_each(|record| checksum.add(u32::from_le_bytes(record[..4].try_into().expect("four bytes"))));
    let body = records.concat();
    let header = FrameHeader {
        generation: GENERATION,
        lsn_first: 21,
        flush: 22,
        frames: 3,
        ordinal: 1,
        records: records.len() as u32,
        body_bytes: body.len() as u32,
        term_max: 23,
        number: 24,
        body_crc: checksum.finish(),
    };
    let mut frame_header = vec![0; frame::HEADER_BYTES];
    header.encode(stamp(), &mut frame_header);
    let frame = [&frame_header[..], &body].concat();
    let orders: Vec<u8> = (0..60_u8).flat_map(|n| [n.wrapping_mul(37) & 0xf3, 2, n / 5, n % 5]).collect();
    vec![
        ("anchor", anchor.encode()),
        ("freed", FreedSegment { generation: GENERATION, frames: set }.encode(SLICE, SEQUENCE)),
        ("segment_header", segment_header),
        ("frame_header", frame_header),
        ("record", records[1].clone()),
        ("record", records[0].clone()),
        ("frame", frame),
        ("state_record", state.encode().to_vec()),
        ("ops", ops.to_vec()),
        ("ops", compressed.finish().to_vec()),
        ("index", orders),
    ]
}

//! The metadata record: one full copy of what a volume must remember.
//!
//! ```text
//! offset  size  field
//!      0     8  magic            "TRNVOLUM"
//!      8     4  format version   1
//!     12     4  length           of the whole record, both checksums included
//!     16     8  sequence         rises with every record
//!     24    36  geometry         of the device: groups, parallel units, chunks, sectors of a chunk, bytes of a sector,
//!                                ws_min, ws_opt, mw_cunits, max_open (4 each)
//!     60     4  width            members of a line
//!     64     4  spares           chunks of a unit kept as such
//!     68     4  label bytes      L
//!     72     4  remaps           R
//!     76     4  defects          D
//!     80     4  strikes          S
//!     84     4  header checksum  of bytes 0..84
//!     88     L  label
//!      .  12*R  remaps           ascending: line, member, chunk (4 each)
//!      .   4*D  defects          ascending: chunk
//!      .   8*S  strikes          ascending: chunk, count (4 each)
//!      .     4  checksum         of everything before it
//! ```
//!
//! The header has a checksum of its own, so that the length can be believed although the rest may be cut off: a record
//! that does not end below the write pointer was being written when the power went, and nothing relied on it; a whole
//! one whose checksum is wrong is damage.

use super::assignment::{Assignment, MemberId, Tables};
use super::error::VolumeError;
use crate::geometry::{ChunkId, Geometry};

/// The newest version this program reads, and the one it writes.
pub(super) const METADATA_VERSION: u32 = 1;

/// The longest label, in bytes.
pub const LABEL_BYTES_MAX: usize = 512;

const MAGIC: [u8; 8] = *b"TRNVOLUM";
const HEADER_CHECKSUM_AT: usize = 84;
const HEADER_BYTES: usize = HEADER_CHECKSUM_AT + 4;
const CHECKSUM_BYTES: usize = 4;

/// A whole header is below the write pointer as soon as anything of a record is.
const _: () = assert!(HEADER_BYTES <= 512);

/// One metadata record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) sequence: u64,
    pub(super) geometry: Geometry,
    pub(super) width: u32,
    pub(super) spare_chunks_per_unit: u32,
    pub(super) label: Vec<u8>,
    pub(super) tables: Tables,
}

/// What stands somewhere in a metadata chunk.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Record(Record),
    /// A record that does not end within the bytes given.
    CutOff,
    /// Zeros, one smallest write of them at least.
    Padding,
    /// A record of a version that this program does not know.
    Newer {
        sequence: u64,
        version: u32,
        length: usize,
    },
    Damaged(&'static str),
}

/// Bytes of a record with tables of that size.
pub(super) fn record_bytes(label: usize, remaps: usize, defects: usize, strikes: usize) -> usize {
    HEADER_BYTES + label + 12 * remaps + 4 * defects + 8 * strikes + CHECKSUM_BYTES
}

impl Record {
    /// The slice's division. Fails if the record contradicts itself.
    pub(super) fn assignment(&self) -> Result<Assignment, VolumeError> {
        Assignment::new(self.geometry, self.width, self.spare_chunks_per_unit)
    }

    /// Bytes of the record.
    pub(super) fn encoded_bytes(&self) -> usize {
        let Tables { remaps, defects, strikes } = &self.tables;
        record_bytes(self.label.len(), remaps.len(), defects.len(), strikes.len())
    }

    /// The record as it stands on the device.
    pub(super) fn encode(&self) -> Vec<u8> {
        let length = self.encoded_bytes();
        let Tables { remaps, defects, strikes } = &self.tables;
        let mut bytes = Vec::with_capacity(length);
        bytes.extend(MAGIC);
        let mut put = |number: u32| bytes.extend(number.to_le_bytes());
        put(METADATA_VERSION);
        put(length as u32);
        put(self.sequence as u32);
        put((self.sequence >> 32) as u32);
        for number in geometry_fields(&self.geometry) {
            put(number);
        }
        put(self.width);
        put(self.spare_chunks_per_unit);
        for count in [self.label.len(), remaps.len(), defects.len(), strikes.len()] {
            put(count as u32);
        }
        seal(&mut bytes);
        bytes.extend(&self.label);
        let mut put = |number: u32| bytes.extend(number.to_le_bytes());
        for (id, chunk) in remaps {
            put(id.line);
            put(id.member);
            put(chunk.0);
        }
        for chunk in defects {
            put(chunk.0);
        }
        for (chunk, count) in strikes {
            put(chunk.0);
            put(*count);
        }
        seal(&mut bytes);
        assert_eq!(bytes.len(), length, "the length of a record is known before it is made");
        bytes
    }

    /// What begins at the front of `bytes`. `unit_bytes`: a smallest write.
    pub(super) fn decode(bytes: &[u8], unit_bytes: usize) -> Found {
        if bytes.iter().take(unit_bytes).all(|byte| *byte == 0) {
            return Found::Padding;
        }
        if !bytes.starts_with(&MAGIC) {
            return Found::Damaged("something other than a record");
        }
        let Some(header) = bytes.get(..HEADER_BYTES) else {
            return Found::CutOff;
        };
        if !is_sealed(header) {
            return Found::Damaged("the checksum of a record's header does not match");
        }
        let mut fields = Fields(&header[MAGIC.len()..]);
        let version = fields.next();
        let length = fields.next() as usize;
        let sequence = u64::from(fields.next()) | u64::from(fields.next()) << 32;
        let Some(record) = bytes.get(..length) else {
            return Found::CutOff;
        };
        if version > METADATA_VERSION {
            return Found::Newer { sequence, version, length };
        }
        if length < HEADER_BYTES + CHECKSUM_BYTES || !is_sealed(record) {
            return Found::Damaged("the checksum of a record does not match");
        }
        let geometry = Geometry {
            groups: fields.next(),
            parallel_units: fields.next(),
            chunks: fields.next(),
            chunk_sectors: fields.next(),
            sector_bytes: fields.next(),
            ws_min: fields.next(),
            ws_opt: fields.next(),
            mw_cunits: fields.next(),
            max_open: fields.next(),
        };
        let width = fields.next();
        let spare_chunks_per_unit = fields.next();
        let [label, remaps, defects, strikes] = [(); 4].map(|()| fields.next() as usize);
        let sizes = [label, remaps.saturating_mul(12), defects.saturating_mul(4), strikes.saturating_mul(8)];
        let body = sizes.into_iter().fold(HEADER_BYTES + CHECKSUM_BYTES, usize::saturating_add);
        if body != length || label > LABEL_BYTES_MAX || version == 0 {
            return Found::Damaged("the sizes of a record make no sense");
        }
        let (label, rest) = record[HEADER_BYTES..].split_at(label);
        let mut fields = Fields(rest);
        let mut tables = Tables::default();
        for _ in 0..remaps {
            let id = MemberId { line: fields.next(), member: fields.next() };
            tables.remaps.insert(id, ChunkId(fields.next()));
        }
        tables.defects.extend((0..defects).map(|_| ChunkId(fields.next())));
        for _ in 0..strikes {
            let chunk = ChunkId(fields.next());
            tables.strikes.insert(chunk, fields.next());
        }
        let record = Self { sequence, geometry, width, spare_chunks_per_unit, label: label.to_vec(), tables };
        match record.assignment().map(|assignment| record.tables.validate(&assignment)) {
            Ok(Ok(())) => Found::Record(record),
            Ok(Err(reason)) => Found::Damaged(reason),
            Err(_) => Found::Damaged("the sizes of a record make no sense"),
        }
    }
}

fn geometry_fields(geometry: &Geometry) -> [u32; 9] {
    let Geometry {
        groups,
        parallel_units,
        chunks,
        chunk_sectors,
        sector_bytes,
        ws_min,
        ws_opt,
        mw_cunits,
        max_open,
    } = *geometry;
    [groups, parallel_units, chunks, chunk_sectors, sector_bytes, ws_min, ws_opt, mw_cunits, max_open]
}

/// Appends the checksum of everything so far.
fn seal(bytes: &mut Vec<u8>) {
    let checksum = crc32c::crc32c(bytes);
    bytes.extend(checksum.to_le_bytes());
}

/// Whether the last four bytes are the checksum of what is before them.
fn is_sealed(bytes: &[u8]) -> bool {
    bytes
        .split_last_chunk()
        .is_some_and(|(before, checksum)| crc32c::crc32c(before) == u32::from_le_bytes(*checksum))
}

/// Numbers one after the other.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn next(&mut self) -> u32 {
        let (field, rest) = self.0.split_first_chunk().expect("the length was checked");
        self.0 = rest;
        u32::from_le_bytes(*field)
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use proptest::prelude::*;

    use super::*;

    const UNIT: usize = 512;

    fn sample() -> Record {
        let geometry = Geometry {
            groups: 2,
            parallel_units: 2,
            chunks: 10,
            chunk_sectors: 64,
            sector_bytes: 4096,
            ws_min: 2,
            ws_opt: 8,
            mw_cunits: 12,
            max_open: 30,
        };
        let mut tables = Tables::default();
        tables.remaps.insert(MemberId { line: 1, member: 3 }, ChunkId(32));
        tables.defects.extend([ChunkId(7), ChunkId(36)]);
        tables.strikes.insert(ChunkId(2), 1);
        Record {
            sequence: 0x0102_0304_0506_0708,
            geometry,
            width: 4,
            spare_chunks_per_unit: 3,
            label: b"label".to_vec(),
            tables,
        }
    }

    #[test]
    fn golden_bytes() {
        let lines: Vec<String> = sample()
            .encode()
            .chunks(16)
            .map(|row| row.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "))
            .collect();
        expect![[r#"
            54 52 4e 56 4f 4c 55 4d 01 00 00 00 7d 00 00 00
            08 07 06 05 04 03 02 01 02 00 00 00 02 00 00 00
            0a 00 00 00 40 00 00 00 00 10 00 00 02 00 00 00
            08 00 00 00 0c 00 00 00 1e 00 00 00 04 00 00 00
            03 00 00 00 05 00 00 00 01 00 00 00 02 00 00 00
            01 00 00 00 df 78 c9 08 6c 61 62 65 6c 01 00 00
            00 03 00 00 00 20 00 00 00 07 00 00 00 24 00 00
            00 02 00 00 00 01 00 00 00 61 d0 2b 9e"#]]
        .assert_eq(&lines.join("\n"));
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        let mut bytes = sample().encode();
        assert_eq!(bytes.len(), sample().encoded_bytes());
        assert_eq!(Record::decode(&bytes, UNIT), Found::Record(sample()));
        bytes.extend([9; 100]);
        assert_eq!(Record::decode(&bytes, UNIT), Found::Record(sample()));
    }

    #[test]
    fn a_record_that_is_cut_off_is_told_from_a_damaged_one() {
        let bytes = sample().encode();
        for length in MAGIC.len()..bytes.len() {
            assert_eq!(Record::decode(&bytes[..length], UNIT), Found::CutOff, "{length} bytes");
        }
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x10;
            let found = Record::decode(&bytes, UNIT);
            assert!(matches!(found, Found::Damaged(_)), "byte {at}: {found:?}");
        }
        assert_eq!(Record::decode(&[0; UNIT], UNIT), Found::Padding);
        assert_eq!(Record::decode(&[], UNIT), Found::Padding);
    }

    #[test]
    fn a_newer_record_is_known_as_such() {
        let mut bytes = sample().encode();
        bytes[8] = 2;
        let checksum = crc32c::crc32c(&bytes[..HEADER_CHECKSUM_AT]);
        bytes[HEADER_CHECKSUM_AT..HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
        let newer =
            Found::Newer { sequence: sample().sequence, version: 2, length: sample().encoded_bytes() };
        assert_eq!(Record::decode(&bytes, UNIT), newer);
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), sealed: bool) {
            let mut bytes = bytes;
            if sealed && bytes.len() > HEADER_BYTES + CHECKSUM_BYTES {
                bytes[..8].copy_from_slice(&MAGIC);
                bytes[8..12].copy_from_slice(&1u32.to_le_bytes());
                let length = bytes.len();
                bytes[12..16].copy_from_slice(&(length as u32).to_le_bytes());
                let checksum = crc32c::crc32c(&bytes[..HEADER_CHECKSUM_AT]);
                bytes[HEADER_CHECKSUM_AT..HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
                bytes.truncate(length - CHECKSUM_BYTES);
                seal(&mut bytes);
            }
            let _ = Record::decode(&bytes, UNIT);
        }
    }
}

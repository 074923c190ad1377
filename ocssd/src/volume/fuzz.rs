//! Body of the fuzz target for the records of a volume's metadata. Only with the feature `fuzz`, for the package `fuzz/`.

use super::assignment::{MemberId, Tables};
use super::record::{Found, Record};
use crate::geometry::{ChunkId, Geometry};

const UNIT_BYTES: usize = 512;

/// A metadata record: as it is, and with its length and checksums made right. What decodes has one spelling.
pub fn record(bytes: &[u8]) {
    check(bytes);
    let mut sealed = bytes.to_vec();
    if sealed.len() < 92 {
        return;
    }
    let end = sealed.len() - 4;
    sealed[12..16].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
    for at in [84, end] {
        let checksum = crc32c::crc32c(&sealed[..at]);
        sealed[at..at + 4].copy_from_slice(&checksum.to_le_bytes());
    }
    check(&sealed);
}

fn check(bytes: &[u8]) {
    if let Found::Record(record) = Record::decode(bytes, UNIT_BYTES) {
        let again = record.encode();
        assert_eq!(Record::decode(&again, UNIT_BYTES), Found::Record(record));
    }
}

/// Inputs that decode.
pub fn seeds() -> Vec<Vec<u8>> {
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
    let record = Record {
        sequence: 7,
        geometry,
        width: 4,
        spare_chunks_per_unit: 2,
        label: b"label".to_vec(),
        tables,
    };
    vec![record.encode()]
}

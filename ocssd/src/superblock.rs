//! The superblock: whose device this is, and how it is divided.
//!
//! Two copies stand at fixed places in front of the first slice. It is written by
//! [`format()`] alone, after everything else, so a device that has one was laid out
//! to its end.
//!
//! ```text
//! byte  0        8         12       16         24       40     44       48       52
//!       | magic  | version | length | sequence | cluster | node | shards | sector | 0 ...
//!       56       64      72                       124
//!       | chunk  | slice | 0 ...                  | crc32c of bytes 0..124 |
//! ```
//!
//! All numbers are little-endian; `sector`, `chunk` and `slice` are sizes in bytes.
//!
//! Invariants:
//! - Magic, version, length, sequence and checksum stay where they are in every version to come, so that
//!   an older program can tell a newer device from a damaged one.
//! - Of two valid copies the one with the higher sequence counts.

use crate::layout::Layout;

pub use crate::format::{FormatError, FormatOptions, format};

/// The newest format this program reads, and the one it writes.
pub const FORMAT_VERSION: u32 = 1;

/// Where the copies stand, in bytes from the start of the device.
pub const COPY_OFFSETS: [u64; 2] = [0, 64 << 10];

/// Bytes that a superblock occupies, checksum included. The rest of its write is zeros.
pub const SUPERBLOCK_BYTES: usize = 128;

/// Bytes looked at in each copy's place, to tell a blank device from one that holds something else.
pub const COPY_BYTES: usize = 4096;

const MAGIC: [u8; 8] = *b"TERRANE\n";
const CHECKSUM_AT: usize = SUPERBLOCK_BYTES - 4;

// The copies do not overlap, even padded to the largest sector, and both end before the first slice.
const _: () = assert!(COPY_OFFSETS[0] + crate::layout::SECTOR_BYTES_MAX as u64 <= COPY_OFFSETS[1]);
const _: () =
    assert!(COPY_OFFSETS[1] + crate::layout::SECTOR_BYTES_MAX as u64 <= crate::layout::FIRST_SLICE_OFFSET);

/// Whose device this is, and how it is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Format of everything on the device.
    pub version: u32,
    /// Rises with every rewrite of the superblock.
    pub sequence: u64,
    /// The cluster that the node belongs to.
    pub cluster: u128,
    /// The node whose device this is.
    pub node: u32,
    /// Slices on the device, one for each shard of the node.
    pub shards: u32,
    /// Bytes of a sector.
    pub sector_bytes: u32,
    /// Bytes of a chunk.
    pub chunk_bytes: u64,
    /// Bytes of a slice.
    pub slice_bytes: u64,
}

/// Why a device has no superblock that this program can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SuperblockError {
    /// Nothing but zeros where the copies should stand.
    #[error("it is blank: it was never formatted, or formatting it was interrupted")]
    Blank,
    /// Something else is stored there.
    #[error("it holds something other than a Terrane device")]
    NotOurs,
    /// Written by a newer program.
    #[error(
        "it has format version {version}, and this program knows versions up to {FORMAT_VERSION}: upgrade \
         this program"
    )]
    Newer {
        /// The device's version.
        version: u32,
    },
    /// Ours, but no copy can be trusted.
    #[error("its superblock is damaged in both copies ({reason})")]
    Damaged {
        /// What is wrong with the better copy.
        reason: &'static str,
    },
}

/// What one copy's place holds.
enum Copy {
    Blank,
    NotOurs,
    Damaged(&'static str),
    Newer { sequence: u64, version: u32 },
    Valid(Superblock),
}

impl Superblock {
    /// How the device is divided.
    pub fn layout(&self) -> Layout {
        Layout {
            shards: self.shards,
            sector_bytes: self.sector_bytes,
            chunk_bytes: self.chunk_bytes,
            slice_bytes: self.slice_bytes,
        }
    }

    /// The superblock as it stands on the device.
    pub fn encode(&self) -> [u8; SUPERBLOCK_BYTES] {
        let mut bytes = [0; SUPERBLOCK_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC);
        put(8, &self.version.to_le_bytes());
        put(12, &(SUPERBLOCK_BYTES as u32).to_le_bytes());
        put(16, &self.sequence.to_le_bytes());
        put(24, &self.cluster.to_le_bytes());
        put(40, &self.node.to_le_bytes());
        put(44, &self.shards.to_le_bytes());
        put(48, &self.sector_bytes.to_le_bytes());
        put(56, &self.chunk_bytes.to_le_bytes());
        put(64, &self.slice_bytes.to_le_bytes());
        let checksum = crc32c::crc32c(&bytes[..CHECKSUM_AT]);
        bytes[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Chooses between what stands in the two places. Each slice holds [`COPY_BYTES`] bytes from there;
    /// fewer (a short device) count as if zeros followed.
    pub fn choose(copies: [&[u8]; 2]) -> Result<Self, SuperblockError> {
        let copies = copies.map(inspect);
        let newest = copies.iter().filter_map(|copy| match copy {
            Copy::Valid(superblock) => Some((superblock.sequence, Ok(*superblock))),
            Copy::Newer { sequence, version } => {
                Some((*sequence, Err(SuperblockError::Newer { version: *version })))
            }
            Copy::Blank | Copy::NotOurs | Copy::Damaged(_) => None,
        });
        if let Some((_, chosen)) = newest.max_by_key(|(sequence, _)| *sequence) {
            return chosen;
        }
        let mut verdict = SuperblockError::Blank;
        for copy in copies {
            match copy {
                Copy::Damaged(reason) => return Err(SuperblockError::Damaged { reason }),
                Copy::NotOurs => verdict = SuperblockError::NotOurs,
                _ => {}
            }
        }
        Err(verdict)
    }
}

fn inspect(bytes: &[u8]) -> Copy {
    if bytes.iter().all(|byte| *byte == 0) {
        return Copy::Blank;
    }
    if !bytes.starts_with(&MAGIC) {
        return Copy::NotOurs;
    }
    let Some(bytes) = bytes.first_chunk::<SUPERBLOCK_BYTES>() else {
        return Copy::Damaged("it is cut short");
    };
    if crc32c::crc32c(&bytes[..CHECKSUM_AT]) != u32_at(bytes, CHECKSUM_AT) {
        return Copy::Damaged("its checksum does not match");
    }
    let version = u32_at(bytes, 8);
    let sequence = u64_at(bytes, 16);
    if version > FORMAT_VERSION {
        return Copy::Newer { sequence, version };
    }
    if version == 0 || u32_at(bytes, 12) as usize != SUPERBLOCK_BYTES {
        return Copy::Damaged("its version and length do not fit");
    }
    let superblock = Superblock {
        version,
        sequence,
        cluster: u128::from(u64_at(bytes, 24)) | u128::from(u64_at(bytes, 32)) << 64,
        node: u32_at(bytes, 40),
        shards: u32_at(bytes, 44),
        sector_bytes: u32_at(bytes, 48),
        chunk_bytes: u64_at(bytes, 56),
        slice_bytes: u64_at(bytes, 64),
    };
    match superblock.layout().validate() {
        Ok(()) => Copy::Valid(superblock),
        Err(_) => Copy::Damaged("its sizes make no sense"),
    }
}

fn u32_at(bytes: &[u8; SUPERBLOCK_BYTES], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

fn u64_at(bytes: &[u8; SUPERBLOCK_BYTES], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Superblock {
        Superblock {
            version: FORMAT_VERSION,
            sequence: 0x0102_0304_0506_0708,
            cluster: 0x0011_2233_4455_6677_8899_aabb_ccdd_eeff,
            node: 7,
            shards: 2,
            sector_bytes: 512,
            chunk_bytes: 8 << 20,
            slice_bytes: 128 << 20,
        }
    }

    fn resealed(mut bytes: [u8; SUPERBLOCK_BYTES]) -> [u8; SUPERBLOCK_BYTES] {
        let checksum = crc32c::crc32c(&bytes[..CHECKSUM_AT]);
        bytes[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    fn of_version(version: u32, sequence: u64) -> [u8; SUPERBLOCK_BYTES] {
        Superblock { version, sequence, ..sample() }.encode()
    }

    const BLANK: [u8; COPY_BYTES] = [0; COPY_BYTES];

    #[test]
    fn golden_bytes() {
        let lines: Vec<String> = sample()
            .encode()
            .chunks(16)
            .map(|row| row.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "))
            .collect();
        expect![[r#"
            54 45 52 52 41 4e 45 0a 01 00 00 00 80 00 00 00
            08 07 06 05 04 03 02 01 ff ee dd cc bb aa 99 88
            77 66 55 44 33 22 11 00 07 00 00 00 02 00 00 00
            00 02 00 00 00 00 00 00 00 00 80 00 00 00 00 00
            00 00 00 08 00 00 00 00 00 00 00 00 00 00 00 00
            00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
            00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
            00 00 00 00 00 00 00 00 00 00 00 00 60 5a 91 42"#]]
        .assert_eq(&lines.join("\n"));
    }

    #[test]
    fn the_higher_sequence_counts() {
        let (old, new) = (of_version(1, 3), of_version(1, 4));
        assert_eq!(Superblock::choose([&old, &new]).unwrap().sequence, 4);
        assert_eq!(Superblock::choose([&new, &old]).unwrap().sequence, 4);
    }

    #[test]
    fn one_good_copy_is_enough() {
        let good = sample().encode();
        let mut torn = good;
        torn[100] ^= 1;
        for bad in [&torn[..], &BLANK[..], b"something else", &[][..]] {
            assert_eq!(Superblock::choose([&good, bad]), Ok(sample()));
            assert_eq!(Superblock::choose([bad, &good]), Ok(sample()));
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let blank = &BLANK[..];
        let mut torn = sample().encode();
        torn[60] ^= 1;
        let newer = of_version(2, 9);
        assert_eq!(Superblock::choose([blank, &[]]), Err(SuperblockError::Blank));
        assert_eq!(Superblock::choose([blank, b"btrfs"]), Err(SuperblockError::NotOurs));
        assert!(matches!(Superblock::choose([&torn, b"x"]), Err(SuperblockError::Damaged { .. })));
        assert!(matches!(Superblock::choose([&torn[..9], blank]), Err(SuperblockError::Damaged { .. })));
        assert_eq!(Superblock::choose([&newer, blank]), Err(SuperblockError::Newer { version: 2 }));
    }

    #[test]
    fn an_upgrade_that_was_cut_short_counts_as_newer() {
        let (old, newer) = (of_version(1, 3), of_version(2, 4));
        assert_eq!(Superblock::choose([&newer, &old]), Err(SuperblockError::Newer { version: 2 }));
    }

    #[test]
    fn sizes_that_make_no_sense_are_damage() {
        for (at, byte) in [(44, 0), (49, 3), (56, 1), (64, 1), (71, 0xff), (12, 64), (8, 0)] {
            let mut bytes = sample().encode();
            bytes[at] = byte;
            let bytes = resealed(bytes);
            let found = Superblock::choose([&bytes, &bytes]);
            assert!(matches!(found, Err(SuperblockError::Damaged { .. })), "byte {at}: {found:?}");
        }
    }

    proptest! {
        #[test]
        fn every_changed_byte_is_noticed(at in 0..SUPERBLOCK_BYTES, flip in 1..=255u8) {
            let mut bytes = sample().encode();
            bytes[at] ^= flip;
            prop_assert!(Superblock::choose([&bytes, &BLANK]).is_err());
        }

        #[test]
        fn any_bytes_are_judged_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), ours: bool) {
            let mut bytes = bytes;
            if ours && bytes.len() >= SUPERBLOCK_BYTES {
                bytes[..8].copy_from_slice(&MAGIC);
                let checksum = crc32c::crc32c(&bytes[..CHECKSUM_AT]);
                bytes[CHECKSUM_AT..SUPERBLOCK_BYTES].copy_from_slice(&checksum.to_le_bytes());
            }
            let _ = Superblock::choose([&bytes, &bytes]);
        }
    }
}

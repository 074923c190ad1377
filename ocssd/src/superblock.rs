//! The superblock: whose device this is, of which kind and shape it was, and how it is divided.
//!
//! On a device that can be overwritten two copies stand at fixed places in front of the first slice. Where the host
//! manages the flash, the same bytes are the label of every slice's volume. It is written by `format` alone, after
//! everything else, so a device that has one was laid out to its end.
//!
//! ```text
//! byte  0        8         12       16         24        40     44       48       52
//!       | magic  | version | length | sequence | cluster | node | shards | sector | kind
//!       56      64      72       76      80       84              88       92       96           100
//!       | chunk | slice | groups | units | chunks | chunk_sectors | ws_min | ws_opt | mw_cunits | max_open
//!       104           112           120  124
//!       | zone_bytes  | size_bytes  | 0  | crc32c of bytes 0..124
//! ```
//!
//! All numbers are little-endian; `sector`, `chunk` and `slice` are sizes in bytes. Version 1 has zeros in place of
//! `kind` and from byte 72 on: it knew conventional devices alone, whose shape follows from their layout.
//!
//! Invariants:
//! - Magic, version, length, sequence and checksum stay where they are in every version to come, so that
//!   an older program can tell a newer device from a damaged one.
//! - Of two valid copies the one with the higher sequence counts.
//! - What was read in one version is written in the same one: only `format` raises it.

use crate::device::{DeviceKind, DeviceShape};
use crate::geometry::Geometry;
use crate::layout::{Layout, SECTOR_BYTES_MAX, SECTOR_BYTES_MIN};

pub use crate::format::{FormatError, FormatOptions, format};

/// The newest format this program reads, and the one it writes.
pub const FORMAT_VERSION: u32 = 2;

/// The first version that names the kind and shape of the device.
const VERSION_WITH_SHAPE: u32 = 2;

/// Where the copies stand, in bytes from the start of the device.
pub const COPY_OFFSETS: [u64; 2] = [0, 64 << 10];

/// Bytes that a superblock occupies, checksum included. The rest of its write is zeros.
pub const SUPERBLOCK_BYTES: usize = 128;

/// Bytes looked at in each copy's place, to tell a blank device from one that holds something else.
pub const COPY_BYTES: usize = 4096;

const MAGIC: [u8; 8] = *b"TERRANE\n";
const CHECKSUM_AT: usize = SUPERBLOCK_BYTES - 4;

// The copies do not overlap, even padded to the largest sector, and both end before the first slice.
const _: () = assert!(COPY_OFFSETS[0] + SECTOR_BYTES_MAX as u64 <= COPY_OFFSETS[1]);
const _: () = assert!(COPY_OFFSETS[1] + SECTOR_BYTES_MAX as u64 <= crate::layout::FIRST_SLICE_OFFSET);

/// Whose device this is, of which kind and shape it was, and how it is divided.
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
    /// Bytes of a chunk, as a shard sees it.
    pub chunk_bytes: u64,
    /// Bytes of a slice, as a shard sees it.
    pub slice_bytes: u64,
    /// What kind of device it is.
    pub kind: DeviceKind,
    /// What the device said of itself when it was laid out; of a conventional one, what it was laid out as.
    pub shape: DeviceShape,
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

const WRONG_SIZES: &str = "its sizes make no sense";

/// What one copy's place holds.
enum Copy {
    Blank,
    NotOurs,
    Damaged(&'static str),
    Newer { sequence: u64, version: u32 },
    Valid(Superblock),
}

impl Superblock {
    /// How a device that can be overwritten is divided.
    pub fn layout(&self) -> Layout {
        Layout {
            shards: self.shards,
            sector_bytes: self.sector_bytes,
            chunk_bytes: self.chunk_bytes,
            slice_bytes: self.slice_bytes,
        }
    }

    /// The geometry of each slice of a device that can be overwritten: best write and limits as they were when it was
    /// laid out.
    pub fn slice_geometry(&self) -> Geometry {
        Geometry { chunks: (self.slice_bytes / self.chunk_bytes) as u32, ..self.shape.geometry }
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
        if self.version >= VERSION_WITH_SHAPE {
            let DeviceShape { geometry, zone_bytes, size_bytes } = self.shape;
            put(52, &self.kind.code().to_le_bytes());
            put(72, &geometry.groups.to_le_bytes());
            put(76, &geometry.parallel_units.to_le_bytes());
            put(80, &geometry.chunks.to_le_bytes());
            put(84, &geometry.chunk_sectors.to_le_bytes());
            put(88, &geometry.ws_min.to_le_bytes());
            put(92, &geometry.ws_opt.to_le_bytes());
            put(96, &geometry.mw_cunits.to_le_bytes());
            put(100, &geometry.max_open.to_le_bytes());
            put(104, &zone_bytes.to_le_bytes());
            put(112, &size_bytes.to_le_bytes());
        }
        let checksum = crc32c::crc32c(&bytes[..CHECKSUM_AT]);
        bytes[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Whether the sizes fit together and the arithmetic on them cannot overflow.
    fn makes_sense(&self) -> bool {
        let DeviceShape { geometry, zone_bytes, size_bytes } = self.shape;
        let writes = geometry.ws_min >= 1
            && geometry.ws_min <= geometry.ws_opt
            && geometry.ws_opt <= geometry.chunk_sectors
            && geometry.mw_cunits <= geometry.chunk_sectors;
        if !writes || i64::try_from(size_bytes).is_err() {
            return false;
        }
        let slices = self.slice_bytes.checked_mul(self.shards.into()).filter(|bytes| *bytes > 0);
        let Some(slices) = slices.filter(|bytes| *bytes <= size_bytes) else { return false };
        if self.kind == DeviceKind::Conventional {
            let layout = self.layout();
            return layout.validate().is_ok()
                && layout.device_bytes() <= size_bytes
                && geometry == Geometry { ws_opt: geometry.ws_opt, ..layout.shape(size_bytes).geometry }
                && zone_bytes == 0;
        }
        let sector = u64::from(self.sector_bytes);
        let sectors = (SECTOR_BYTES_MIN..=SECTOR_BYTES_MAX).contains(&self.sector_bytes)
            && self.sector_bytes.is_power_of_two();
        let chunks = u64::from(geometry.groups)
            .checked_mul(geometry.parallel_units.into())
            .and_then(|units| units.checked_mul(geometry.chunks.into()))
            .filter(|chunks| (1..=u64::from(u32::MAX)).contains(chunks));
        // A zone has more addresses than sectors that can be written; chunks of other devices have no such gap.
        let chunk_span = match (self.kind, zone_bytes) {
            (DeviceKind::Zoned, bytes) => bytes,
            (_, 0) => geometry.chunk_bytes(),
            _ => return false,
        };
        let (Some(chunks), true) = (chunks, sectors) else { return false };
        let whole = |bytes: u64, of: u64| of > 0 && bytes > 0 && bytes.is_multiple_of(of);
        if chunk_span < geometry.chunk_bytes()
            || !whole(chunk_span, sector)
            || chunks.checked_mul(chunk_span).is_none_or(|bytes| bytes > size_bytes)
        {
            return false;
        }
        let capacity = chunks * geometry.chunk_bytes();
        let room = match self.kind {
            // The superblock has the first chunk to itself.
            DeviceKind::Fdp if self.chunk_bytes == geometry.chunk_bytes() => capacity - self.chunk_bytes,
            DeviceKind::Fdp => return false,
            _ => capacity,
        };
        slices <= room
            && whole(self.chunk_bytes, sector)
            && whole(self.slice_bytes, self.chunk_bytes)
            && u32::try_from(self.slice_bytes / self.chunk_bytes).is_ok()
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
    decode(bytes, version, sequence).map_or_else(Copy::Damaged, Copy::Valid)
}

/// A copy whose checksum matches, of a version that is known. The error says what makes no sense in it.
fn decode(bytes: &[u8; SUPERBLOCK_BYTES], version: u32, sequence: u64) -> Result<Superblock, &'static str> {
    let layout = Layout {
        shards: u32_at(bytes, 44),
        sector_bytes: u32_at(bytes, 48),
        chunk_bytes: u64_at(bytes, 56),
        slice_bytes: u64_at(bytes, 64),
    };
    let (kind, shape) = match version {
        ..VERSION_WITH_SHAPE => {
            layout.validate().map_err(|_| WRONG_SIZES)?;
            (DeviceKind::Conventional, layout.shape(layout.device_bytes()))
        }
        _ => (
            DeviceKind::from_code(u32_at(bytes, 52)).ok_or("its kind of device is unknown")?,
            shape_at(bytes),
        ),
    };
    let superblock = Superblock {
        version,
        sequence,
        cluster: u128::from(u64_at(bytes, 24)) | u128::from(u64_at(bytes, 32)) << 64,
        node: u32_at(bytes, 40),
        shards: layout.shards,
        sector_bytes: layout.sector_bytes,
        chunk_bytes: layout.chunk_bytes,
        slice_bytes: layout.slice_bytes,
        kind,
        shape,
    };
    if superblock.makes_sense() { Ok(superblock) } else { Err(WRONG_SIZES) }
}

fn shape_at(bytes: &[u8; SUPERBLOCK_BYTES]) -> DeviceShape {
    let geometry = Geometry {
        groups: u32_at(bytes, 72),
        parallel_units: u32_at(bytes, 76),
        chunks: u32_at(bytes, 80),
        chunk_sectors: u32_at(bytes, 84),
        sector_bytes: u32_at(bytes, 48),
        ws_min: u32_at(bytes, 88),
        ws_opt: u32_at(bytes, 92),
        mw_cunits: u32_at(bytes, 96),
        max_open: u32_at(bytes, 100),
    };
    DeviceShape { geometry, zone_bytes: u64_at(bytes, 104), size_bytes: u64_at(bytes, 112) }
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
            kind: DeviceKind::Conventional,
            shape: DeviceShape {
                geometry: Geometry {
                    groups: 1,
                    parallel_units: 1,
                    chunks: 32,
                    chunk_sectors: 16384,
                    sector_bytes: 512,
                    ws_min: 1,
                    ws_opt: 256,
                    mw_cunits: 0,
                    max_open: 0,
                },
                zone_bytes: 0,
                size_bytes: 300 << 20,
            },
        }
    }

    /// As version 1 knew it: what it did not write follows from the layout.
    fn sample_of_version_1() -> Superblock {
        let shape = DeviceShape { size_bytes: 257 << 20, ..sample().shape };
        Superblock { version: 1, shape, ..sample() }
    }

    /// Sectors of 4096 bytes, slices of so many chunks; `shape` makes of one unit of 32 chunks what the kind has.
    fn of_kind(
        kind: DeviceKind,
        chunk_bytes: u64,
        slice_chunks: u64,
        shape: impl FnOnce(Geometry) -> DeviceShape,
    ) -> Superblock {
        let geometry = Geometry {
            chunk_sectors: (chunk_bytes / 4096) as u32,
            sector_bytes: 4096,
            ws_opt: 32,
            ..sample().shape.geometry
        };
        let (shape, slice_bytes) = (shape(geometry), slice_chunks * chunk_bytes);
        Superblock { sector_bytes: 4096, chunk_bytes, slice_bytes, kind, shape, ..sample() }
    }

    /// Two slices that stripe over eight units, two spare chunks in each unit.
    fn flash() -> Superblock {
        of_kind(DeviceKind::Flash, 8 << 20, 15, |geometry| {
            let units = Geometry { groups: 2, parallel_units: 4, chunk_sectors: 256, ..geometry };
            let geometry = Geometry { ws_min: 4, ws_opt: 24, mw_cunits: 96, max_open: 64, ..units };
            DeviceShape { geometry, zone_bytes: 0, size_bytes: 256 << 20 }
        })
    }

    /// Zones of 8 MiB in addresses, 6 MiB of which can be written.
    fn zoned() -> Superblock {
        of_kind(DeviceKind::Zoned, 6 << 20, 14, |geometry| DeviceShape {
            geometry: Geometry { max_open: 8, ..geometry },
            zone_bytes: 8 << 20,
            size_bytes: 256 << 20,
        })
    }

    /// Reclaim units of 16 MiB, the first of them for the superblock.
    fn fdp() -> Superblock {
        of_kind(DeviceKind::Fdp, 16 << 20, 10, |geometry| DeviceShape {
            geometry: Geometry { chunks: 21, ..geometry },
            zone_bytes: 0,
            size_bytes: 21 * (16 << 20),
        })
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

    const ROW: usize = 16;

    fn dump(bytes: &[u8]) -> String {
        let row = |row: &[u8]| row.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
        bytes.chunks(ROW).map(row).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn golden_bytes_of_version_1() {
        expect![[r#"
            54 45 52 52 41 4e 45 0a 01 00 00 00 80 00 00 00
            08 07 06 05 04 03 02 01 ff ee dd cc bb aa 99 88
            77 66 55 44 33 22 11 00 07 00 00 00 02 00 00 00
            00 02 00 00 00 00 00 00 00 00 80 00 00 00 00 00
            00 00 00 08 00 00 00 00 00 00 00 00 00 00 00 00
            00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
            00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
            00 00 00 00 00 00 00 00 00 00 00 00 60 5a 91 42"#]]
        .assert_eq(&dump(&sample_of_version_1().encode()));
    }

    #[test]
    fn golden_bytes_of_version_2() {
        expect![[r#"
            54 45 52 52 41 4e 45 0a 02 00 00 00 80 00 00 00
            08 07 06 05 04 03 02 01 ff ee dd cc bb aa 99 88
            77 66 55 44 33 22 11 00 07 00 00 00 02 00 00 00
            00 02 00 00 00 00 00 00 00 00 80 00 00 00 00 00
            00 00 00 08 00 00 00 00 01 00 00 00 01 00 00 00
            20 00 00 00 00 40 00 00 01 00 00 00 00 01 00 00
            00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
            00 00 c0 12 00 00 00 00 00 00 00 00 89 6b 9e 77"#]]
        .assert_eq(&dump(&sample().encode()));
        // Whose device it is stands where it does on a conventional one.
        let (same, sample) = (3 * ROW, sample().encode());
        for (superblock, expected) in [
            (
                flash(),
                expect![[r#"
                    00 10 00 00 01 00 00 00 00 00 80 00 00 00 00 00
                    00 00 80 07 00 00 00 00 02 00 00 00 04 00 00 00
                    20 00 00 00 00 01 00 00 04 00 00 00 18 00 00 00
                    60 00 00 00 40 00 00 00 00 00 00 00 00 00 00 00
                    00 00 00 10 00 00 00 00 00 00 00 00 f7 51 42 69"#]],
            ),
            (
                zoned(),
                expect![[r#"
                    00 10 00 00 02 00 00 00 00 00 60 00 00 00 00 00
                    00 00 40 05 00 00 00 00 01 00 00 00 01 00 00 00
                    20 00 00 00 00 06 00 00 01 00 00 00 20 00 00 00
                    00 00 00 00 08 00 00 00 00 00 80 00 00 00 00 00
                    00 00 00 10 00 00 00 00 00 00 00 00 ec 06 0d 80"#]],
            ),
            (
                fdp(),
                expect![[r#"
                    00 10 00 00 03 00 00 00 00 00 00 01 00 00 00 00
                    00 00 00 0a 00 00 00 00 01 00 00 00 01 00 00 00
                    15 00 00 00 00 10 00 00 01 00 00 00 20 00 00 00
                    00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
                    00 00 00 15 00 00 00 00 00 00 00 00 72 ae ff 42"#]],
            ),
        ] {
            let bytes = superblock.encode();
            assert_eq!(bytes[..same], sample[..same]);
            expected.assert_eq(&dump(&bytes[same..]));
        }
    }

    #[test]
    fn every_version_and_kind_is_read_as_it_was_written() {
        for written in [sample(), sample_of_version_1(), flash(), zoned(), fdp()] {
            let bytes = written.encode();
            assert_eq!(Superblock::choose([&bytes, &bytes]), Ok(written));
        }
    }

    #[test]
    fn what_version_1_did_not_write_follows_from_its_layout() {
        let old = sample_of_version_1();
        assert_eq!(old.shape, old.layout().shape(old.layout().device_bytes()));
        assert_eq!(old.slice_geometry(), old.layout().geometry());
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
        let newer = of_version(3, 9);
        assert_eq!(Superblock::choose([blank, &[]]), Err(SuperblockError::Blank));
        assert_eq!(Superblock::choose([blank, b"btrfs"]), Err(SuperblockError::NotOurs));
        assert!(matches!(Superblock::choose([&torn, b"x"]), Err(SuperblockError::Damaged { .. })));
        assert!(matches!(Superblock::choose([&torn[..9], blank]), Err(SuperblockError::Damaged { .. })));
        assert_eq!(Superblock::choose([&newer, blank]), Err(SuperblockError::Newer { version: 3 }));
    }

    #[test]
    fn an_upgrade_that_was_cut_short_counts_as_newer() {
        let (old, newer) = (of_version(1, 3), of_version(3, 4));
        assert_eq!(Superblock::choose([&newer, &old]), Err(SuperblockError::Newer { version: 3 }));
    }

    #[test]
    fn sizes_that_make_no_sense_are_damage() {
        let of_any_version = [(44, 0), (49, 3), (56, 1), (64, 1), (71, 0xff), (12, 64), (8, 0)];
        // An unknown kind, another kind's shape; no groups, a second unit, fewer chunks than the slices have; writes of
        // nothing, a best write beyond the chunk; hidden sectors, limits and zones of flash; a size below the layout's or
        // beyond any file's.
        let conventional =
            [(52, 9), (52, 2), (72, 0), (76, 2), (80, 1), (88, 0), (93, 0xff), (96, 1), (100, 1), (104, 1)];
        let sizes = [(115, 0x0f), (119, 0xff)];
        // No shards or sectors of no size; chunks and slices that are no whole sectors; no units, more chunks than can
        // be counted or than the device has bytes for.
        let flash_alone =
            [(44, 0), (48, 1), (56, 1), (64, 1), (52, 9), (52, 2), (72, 0), (79, 0xff), (82, 1), (87, 1)];
        // A smallest write above the best one, as many hidden sectors as no chunk has, a zone.
        let flash_writes = [(88, 25), (93, 0xff), (98, 1), (104, 1), (115, 0), (119, 0xff)];
        // A zone of no size, one smaller than its capacity.
        let zones = [(106, 0), (106, 0x50), (82, 1), (88, 33)];
        // One chunk more in the slices than there are beside the superblock's, chunks that are no reclaim units.
        let units = [(80, 20), (59, 2)];
        let cases = [
            (fdp(), &units[..]),
            (sample_of_version_1(), &of_any_version),
            (sample(), &of_any_version),
            (sample(), &conventional),
            (sample(), &sizes),
            (flash(), &flash_alone),
            (flash(), &flash_writes),
            (zoned(), &zones),
        ];
        for (superblock, changes) in cases {
            for &(at, byte) in changes {
                let mut bytes = superblock.encode();
                assert_ne!(bytes[at], byte, "byte {at} of {:?} does not change", superblock.kind);
                bytes[at] = byte;
                let bytes = resealed(bytes);
                let found = Superblock::choose([&bytes, &bytes]);
                assert!(matches!(found, Err(SuperblockError::Damaged { .. })), "byte {at}: {found:?}");
            }
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

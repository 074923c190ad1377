//! How a conventional device is divided: superblocks in front, then one slice for each shard.
//!
//! ```text
//! 0        64 KiB        1 MiB            1 MiB + slice           1 MiB + 2 slices
//! | copy 0 | copy 1      | slice 0        | slice 1               | ...
//! ```
//!
//! Invariants:
//! - A slice is a whole number of chunks, a chunk a whole number of sectors.
//! - All slices of a device are equal, so a slice's place follows from its shard's number alone.

use crate::device::DeviceShape;
use crate::geometry::{BEST_WRITE_BYTES, Geometry};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Where slice 0 begins. A multiple of every sector and of any erase block or stripe that a partition
/// tool would align to.
pub const FIRST_SLICE_OFFSET: u64 = MIB;

/// Fewest chunks in a slice: two for the anchor, the rest for the log with room to clean it.
pub const SLICE_CHUNKS_MIN: u64 = 8;

/// Limits of a sector's size in bytes.
pub const SECTOR_BYTES_MIN: u32 = 512;
/// Limits of a sector's size in bytes.
pub const SECTOR_BYTES_MAX: u32 = 64 * KIB as u32;

/// Limits of a chunk's size in bytes, when it is given rather than chosen.
pub const CHUNK_BYTES_MIN: u64 = 64 * KIB;
/// Limits of a chunk's size in bytes, when it is given rather than chosen.
pub const CHUNK_BYTES_MAX: u64 = 1024 * MIB;

const CHUNK_BYTES_CHOSEN_MIN: u64 = 8 * MIB;
const CHUNK_BYTES_CHOSEN_MAX: u64 = 64 * MIB;

// A chunk of any allowed size is a whole number of sectors of any allowed size, and vice versa.
const _: () = assert!(CHUNK_BYTES_MIN.is_multiple_of(SECTOR_BYTES_MAX as u64));
const _: () = assert!(FIRST_SLICE_OFFSET.is_multiple_of(SECTOR_BYTES_MAX as u64));
const _: () = assert!(CHUNK_BYTES_MAX / SECTOR_BYTES_MIN as u64 <= u32::MAX as u64);

/// Why a device cannot be divided as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// A slice for each shard does not fit.
    #[error(
        "{size_bytes} bytes are too few for {shards} shards with chunks of {chunk_bytes} bytes: \
         at least {needed_bytes} bytes are needed; make the device larger, or ask for fewer shards or \
         smaller chunks"
    )]
    TooSmall {
        /// Bytes of the device.
        size_bytes: u64,
        /// Slices asked for.
        shards: u32,
        /// Bytes of a chunk, as asked for or chosen.
        chunk_bytes: u64,
        /// Bytes the device must have at least.
        needed_bytes: u64,
    },
    /// No shards.
    #[error("a device needs at least one shard")]
    NoShards,
    /// The sector size cannot be used.
    #[error(
        "a sector of {sector_bytes} bytes cannot be used: it must be a power of two from \
         {SECTOR_BYTES_MIN} to {SECTOR_BYTES_MAX}"
    )]
    Sector {
        /// The size asked for.
        sector_bytes: u32,
    },
    /// The chunk size cannot be used.
    #[error(
        "a chunk of {chunk_bytes} bytes cannot be used: it must be a multiple of {CHUNK_BYTES_MIN} bytes, \
         at most {CHUNK_BYTES_MAX}"
    )]
    Chunk {
        /// The size asked for.
        chunk_bytes: u64,
    },
    /// The chunk divided among the parallel units leaves too little for each.
    #[error(
        "a chunk of {chunk_bytes} bytes cannot be striped over {units} parallel units: its part on each must hold the \
         metadata and what the write buffer hides; ask for larger chunks or fewer units"
    )]
    FlashChunk {
        /// The size asked for, or chosen.
        chunk_bytes: u64,
        /// Parallel units of a slice.
        units: u32,
    },
    /// The slice is not a whole number of chunks, or there are too many of them on the device.
    #[error("a slice of {slice_bytes} bytes is not a number of chunks that can be addressed")]
    Slice {
        /// The size found.
        slice_bytes: u64,
    },
}

/// The division of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Slices on the device.
    pub shards: u32,
    /// Bytes of a sector, the unit of addresses and the smallest write.
    pub sector_bytes: u32,
    /// Bytes of a chunk.
    pub chunk_bytes: u64,
    /// Bytes of a slice.
    pub slice_bytes: u64,
}

impl Layout {
    /// Divides `size_bytes` into equal slices, as large as fit. Without `chunk_bytes` a slice gets about
    /// 512 chunks, each a power of two from 8 to 64 MiB.
    pub fn plan(
        size_bytes: u64,
        shards: u32,
        sector_bytes: u32,
        chunk_bytes: Option<u64>,
    ) -> Result<Self, LayoutError> {
        if shards == 0 {
            return Err(LayoutError::NoShards);
        }
        let room = size_bytes.saturating_sub(FIRST_SLICE_OFFSET) / u64::from(shards);
        let chunk_bytes = chunk_bytes.unwrap_or_else(|| chunk_bytes_for(room));
        if !is_chunk(chunk_bytes) {
            return Err(LayoutError::Chunk { chunk_bytes });
        }
        let chunks = (room / chunk_bytes).min(u64::from(u32::MAX / shards));
        if chunks < SLICE_CHUNKS_MIN {
            let needed_bytes = u64::from(shards)
                .saturating_mul(SLICE_CHUNKS_MIN * chunk_bytes)
                .saturating_add(FIRST_SLICE_OFFSET);
            return Err(LayoutError::TooSmall { size_bytes, shards, chunk_bytes, needed_bytes });
        }
        let layout = Self { shards, sector_bytes, chunk_bytes, slice_bytes: chunks * chunk_bytes };
        layout.validate()?;
        Ok(layout)
    }

    /// Whether the numbers, read from a device, make sense together.
    pub fn validate(&self) -> Result<(), LayoutError> {
        let Self { shards, sector_bytes, chunk_bytes, slice_bytes } = *self;
        if shards == 0 {
            return Err(LayoutError::NoShards);
        }
        let sector_fits = (SECTOR_BYTES_MIN..=SECTOR_BYTES_MAX).contains(&sector_bytes);
        if !sector_bytes.is_power_of_two() || !sector_fits {
            return Err(LayoutError::Sector { sector_bytes });
        }
        if !is_chunk(chunk_bytes) {
            return Err(LayoutError::Chunk { chunk_bytes });
        }
        let chunks = slice_bytes / chunk_bytes;
        let whole = slice_bytes.is_multiple_of(chunk_bytes);
        let addressable = (SLICE_CHUNKS_MIN..=u64::from(u32::MAX / shards)).contains(&chunks);
        let end = u64::from(shards)
            .checked_mul(slice_bytes)
            .and_then(|bytes| bytes.checked_add(FIRST_SLICE_OFFSET))
            .filter(|end| i64::try_from(*end).is_ok());
        if !whole || !addressable || end.is_none() {
            return Err(LayoutError::Slice { slice_bytes });
        }
        Ok(())
    }

    /// Bytes from the start of the device to the end of its last slice.
    pub fn device_bytes(&self) -> u64 {
        self.slice_offset(self.shards)
    }

    /// Where the shard's slice begins, in bytes from the start of the device.
    pub fn slice_offset(&self, shard: u32) -> u64 {
        FIRST_SLICE_OFFSET + u64::from(shard) * self.slice_bytes
    }

    /// What a device of `size_bytes` is laid out as: the chunks of all slices as one parallel unit.
    pub fn shape(&self, size_bytes: u64) -> DeviceShape {
        let geometry = self.geometry();
        let geometry = Geometry { chunks: geometry.chunks * self.shards, ..geometry };
        DeviceShape { geometry, zone_bytes: 0, size_bytes }
    }

    /// The geometry of each slice: one parallel unit, no limit to open chunks.
    pub fn geometry(&self) -> Geometry {
        let sector_bytes = u64::from(self.sector_bytes);
        Geometry {
            groups: 1,
            parallel_units: 1,
            chunks: (self.slice_bytes / self.chunk_bytes) as u32,
            chunk_sectors: (self.chunk_bytes / sector_bytes) as u32,
            sector_bytes: self.sector_bytes,
            ws_min: 1,
            ws_opt: (u64::from(BEST_WRITE_BYTES).min(self.chunk_bytes) / sector_bytes).max(1) as u32,
            mw_cunits: 0,
            max_open: 0,
        }
    }
}

fn is_chunk(bytes: u64) -> bool {
    bytes.is_multiple_of(CHUNK_BYTES_MIN) && (CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&bytes)
}

pub(crate) fn chunk_bytes_for(slice_bytes: u64) -> u64 {
    let wanted = (slice_bytes / 512).max(1);
    let power = 1 << wanted.ilog2();
    u64::clamp(power, CHUNK_BYTES_CHOSEN_MIN, CHUNK_BYTES_CHOSEN_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_follow_the_slice() {
        let cases = [
            // (device, shards) -> (chunk, chunks in a slice)
            ((MIB + 64 * MIB, 1), (8 * MIB, 8)),
            ((1024 * MIB, 2), (8 * MIB, 63)),
            ((8 * 1024 * MIB, 1), (8 * MIB, 1023)),
            ((16 * 1024 * MIB, 1), (16 * MIB, 1023)),
            ((1 << 40, 4), (64 * MIB, 4095)),
        ];
        for ((size, shards), (chunk_bytes, chunks)) in cases {
            let layout = Layout::plan(size, shards, 512, None).unwrap();
            assert_eq!((layout.chunk_bytes, layout.geometry().chunks), (chunk_bytes, chunks), "{size}");
            assert!(layout.device_bytes() <= size);
            assert_eq!(layout.geometry().slice_bytes(), layout.slice_bytes);
        }
    }

    #[test]
    fn slices_follow_each_other() {
        let layout = Layout::plan(100 * MIB, 3, 4096, Some(MIB)).unwrap();
        assert_eq!(layout.slice_bytes, 33 * MIB);
        let offsets: Vec<u64> = (0..=3).map(|shard| layout.slice_offset(shard) / MIB).collect();
        assert_eq!(offsets, [1, 34, 67, 100]);
        assert_eq!(layout.device_bytes(), 100 * MIB);
    }

    #[test]
    fn too_small_says_what_is_needed() {
        let error = Layout::plan(100 * MIB, 2, 512, None).unwrap_err();
        let LayoutError::TooSmall { needed_bytes, .. } = error else { panic!("{error}") };
        assert_eq!(needed_bytes, MIB + 2 * 8 * 8 * MIB);
        assert!(Layout::plan(needed_bytes, 2, 512, None).is_ok());
        assert!(Layout::plan(needed_bytes - 1, 2, 512, None).is_err());
        assert!(error.to_string().contains(&needed_bytes.to_string()), "{error}");
        assert!(matches!(Layout::plan(0, 2, 512, None), Err(LayoutError::TooSmall { .. })));
    }

    #[test]
    fn nonsense_is_refused() {
        let size = 1024 * MIB;
        assert_eq!(Layout::plan(size, 0, 512, None), Err(LayoutError::NoShards));
        for sector_bytes in [0, 256, 1000, 128 * 1024] {
            assert_eq!(Layout::plan(size, 1, sector_bytes, None), Err(LayoutError::Sector { sector_bytes }));
        }
        for chunk_bytes in [0, 512, 100_000, 2048 * MIB] {
            let plan = Layout::plan(size, 1, 512, Some(chunk_bytes));
            assert_eq!(plan, Err(LayoutError::Chunk { chunk_bytes }));
        }
        let layout = Layout { shards: 1, sector_bytes: 512, chunk_bytes: MIB, slice_bytes: 9 * MIB };
        assert_eq!(layout.validate(), Ok(()));
        for slice_bytes in [0, 7 * MIB, 9 * MIB + 512, u64::MAX / MIB * MIB] {
            let bad = Layout { slice_bytes, ..layout };
            assert_eq!(bad.validate(), Err(LayoutError::Slice { slice_bytes }));
        }
    }
}

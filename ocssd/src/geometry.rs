//! The shape of a device in Open-Channel 2.0's terms.

/// Bytes of the best write ([`Geometry::ws_opt`]) where the device does not say: large enough to keep several dies busy.
pub(crate) const BEST_WRITE_BYTES: u32 = 128 << 10;

/// Index of a chunk within a slice: `(group * parallel_units + unit) * chunks + chunk`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId(pub u32);

/// The shape of one slice of a device (Open-Channel 2.0, section "Geometry"). A conventional device has
/// one group of one parallel unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Groups (channels).
    pub groups: u32,
    /// Parallel units (dies) in a group.
    pub parallel_units: u32,
    /// Chunks in a parallel unit.
    pub chunks: u32,
    /// Sectors in a chunk (`clba`).
    pub chunk_sectors: u32,
    /// Bytes of a sector: the unit of addresses.
    pub sector_bytes: u32,
    /// Smallest write, in sectors.
    pub ws_min: u32,
    /// Best write, in sectors.
    pub ws_opt: u32,
    /// Sectors below the write pointer of an open chunk that cannot be read yet, and that a power cut may take
    /// even after a flush: the device has not programmed them.
    pub mw_cunits: u32,
    /// Chunks that may be open at once; 0: no limit.
    pub max_open: u32,
}

impl Geometry {
    /// Chunks of the whole slice.
    pub const fn chunk_count(&self) -> u32 {
        self.groups * self.parallel_units * self.chunks
    }

    /// Parallel units of the whole slice.
    pub const fn unit_count(&self) -> u32 {
        self.groups * self.parallel_units
    }

    /// The parallel unit that a chunk is in, counted over all groups.
    pub const fn unit_of(&self, chunk: ChunkId) -> u32 {
        chunk.0 / self.chunks
    }

    /// The `nth` chunk of a parallel unit.
    pub const fn chunk_of(&self, unit: u32, nth: u32) -> ChunkId {
        ChunkId(unit * self.chunks + nth)
    }

    /// Bytes of one chunk.
    pub const fn chunk_bytes(&self) -> u64 {
        self.chunk_sectors as u64 * self.sector_bytes as u64
    }

    /// Bytes of the whole slice.
    pub const fn slice_bytes(&self) -> u64 {
        self.chunk_count() as u64 * self.chunk_bytes()
    }
}

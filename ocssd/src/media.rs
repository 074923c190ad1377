//! The seam over every kind of device: **erase units written only at their write pointer**.
//!
//! The host never overwrites. It resets a chunk, writes it front to back, and reads below the write
//! pointer. Whatever a device is beneath (a file, a block device, a zoned namespace, Open-Channel
//! flash), the engine sees these operations and no others.
//!
//! Invariants:
//! - The buffer travels with the operation and comes back with the result, so that the kernel may write
//!   into it while the future is alive or after it was dropped.
//! - [`Durability::Durable`] makes **only that write** durable. [`Media::flush`] alone is a barrier for
//!   writes that completed before it began.
//! - A failed write or flush is never retried into success by a backend: what it reports is what happened.

use crate::buffer::AlignedBuf;
use crate::geometry::{ChunkId, Geometry};

/// What a completed write promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// In the device, perhaps only in its cache: a later [`Media::flush`] makes it durable.
    Volatile,
    /// Survives power loss once the write completes (O_DSYNC or FUA). Says nothing of other writes. The limit
    /// of [`Media::flush`] holds here as well: the last `mw_cunits` sectors of an open chunk are not covered.
    Durable,
}

/// State of a chunk (Open-Channel 2.0, section "Chunk descriptor"; zones map onto the same four).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkState {
    /// Reset; may be opened by writing at sector 0.
    Free,
    /// Partly written; goes on at its write pointer.
    Open,
    /// Full or finished; readable below its write pointer.
    Closed,
    /// Lost to the host.
    Offline,
}

/// One chunk as the device reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkInfo {
    /// Which chunk.
    pub id: ChunkId,
    /// Its state.
    pub state: ChunkState,
    /// First sector not yet written, relative to the chunk. A conventional device cannot know it after a
    /// restart: it reports every chunk `Closed` with the write pointer at the end, and the host finds
    /// out by reading.
    pub write_pointer: u32,
    /// Times this chunk was reset, as far as the device knows.
    pub wear: u32,
}

/// Why a media operation failed. Addresses are those of the failed operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MediaError {
    /// The address, length or alignment breaks a rule of the device. Our own bug, reported rather than
    /// asserted because a device may refuse what a superblock promised.
    #[error("{operation} of {chunk:?} at sector {sector}: {reason}")]
    Rule {
        /// `write`, `read`, `reset`, `finish` or `append`.
        operation: &'static str,
        /// The chunk addressed.
        chunk: ChunkId,
        /// Sector within the chunk.
        sector: u32,
        /// The rule that was broken.
        reason: &'static str,
    },
    /// The operating system or the device failed the operation.
    #[error("{operation} of {chunk:?} at sector {sector} failed: {source}")]
    Io {
        /// `write`, `read`, `reset`, `finish`, `append` or `flush`.
        operation: &'static str,
        /// The chunk addressed (chunk 0 for `flush`, which has no address).
        chunk: ChunkId,
        /// Sector within the chunk.
        sector: u32,
        /// The error of the system.
        source: std::io::Error,
    },
    /// The chunk is offline.
    #[error("{chunk:?} is offline")]
    Offline {
        /// The chunk addressed.
        chunk: ChunkId,
    },
    /// The device could not program these sectors, and says of which chunk (Open-Channel 2.0 status 2F0, NVMe
    /// 280). Nothing at or above `sector` of the chunk is there; what is below it stays readable. The chunk
    /// takes no more writes in this life: the host goes on elsewhere.
    #[error("{chunk:?} failed to program sector {sector}")]
    WriteFailed {
        /// The chunk addressed.
        chunk: ChunkId,
        /// First sector that is not there.
        sector: u32,
    },
    /// The device closed the chunk before it was full (Open-Channel 2.0 status 2F1). Nothing of this write is
    /// there; the chunk is readable below `write_pointer`.
    #[error("{chunk:?} was closed early by the device, at sector {write_pointer}")]
    ClosedEarly {
        /// The chunk addressed.
        chunk: ChunkId,
        /// First sector that is not there.
        write_pointer: u32,
    },
    /// The device read these sectors and could not correct them (NVMe 281).
    #[error("sector {sector} of {chunk:?} cannot be read")]
    Unreadable {
        /// The chunk addressed.
        chunk: ChunkId,
        /// First sector known to be lost.
        sector: u32,
    },
    /// The device lost power (simulated): nothing can be done before it is opened again.
    #[error("the device has no power")]
    PowerLost,
}

impl MediaError {
    /// Whether the content of the addressed sectors is what failed, not our request or the whole device: the
    /// host reads around it, as around a bad checksum.
    pub fn is_bad_content(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::Offline { .. } | Self::Unreadable { .. })
    }
}

/// The class of records that are expected to die together. Streams of one class share a placement handle on a
/// device that has them; the numbers mean nothing beyond being equal or not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LifetimeClass(pub u8);

/// What a device says of itself without being asked (Open-Channel 2.0, "Chunk notification log").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notice {
    /// Which chunk is concerned.
    pub chunk: ChunkId,
    /// First sector concerned, and how many; `None`: the whole chunk.
    pub sectors: Option<(u32, u32)>,
    /// What it says.
    pub kind: NoticeKind,
}

/// What a [`Notice`] says, ascending by urgency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum NoticeKind {
    /// The chunk's wear index went beyond the device's threshold over the mean.
    Worn,
    /// Low error rate was exceeded: rewrite when convenient.
    EccLow,
    /// Medium error rate: rewrite soon.
    EccMedium,
    /// High error rate, the data still good: rewrite now.
    EccHigh,
    /// The data is lost.
    Unrecoverable,
    /// The chunk went offline.
    Offline,
}

/// Counters of what a medium did since it was opened, in bytes and operations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MediaCounters {
    /// Bytes written, padding included.
    pub written_bytes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Writes and appends submitted.
    pub writes: u64,
    /// Reads submitted.
    pub reads: u64,
    /// Flushes submitted.
    pub flushes: u64,
    /// Chunks reset.
    pub resets: u64,
}

/// One slice of a device, as one shard sees it: chunks `0..geometry.chunk_count()`.
///
/// All operations take `&self` and may run concurrently on one thread; writes to one chunk are submitted
/// in the order of their addresses, the next may be submitted before the last completed.
///
/// # Futures that are dropped
///
/// An operation is submitted when its future is first polled; one that never was did nothing. Dropped after that, it
/// is not taken back: it takes effect or not, in part or whole, sooner or later, and nobody learns how it ended. Until the
/// medium is opened again, expect
/// - of a **write** or append: the write pointer stands behind it, anything may stand in its sectors, and the chunk cannot be
///   reset, for the write could land in its next life. Where the device keeps write pointers the chunk takes no more writes.
///   A durable one may fail later flushes, too;
/// - of a **reset** or **finish**: the chunk is as before or as after, and may refuse whatever depends on which;
/// - of a **flush**: nothing is durable by it, and every later flush may fail, of all slices of the device: its failure
///   might have been the only word of what the device's cache lost, so it counts as one that failed;
/// - of a **read**, or any other: nothing.
///
/// A slice that is dropped with such a write or reset is not handed out again before the device is opened again.
#[expect(async_fn_in_trait, reason = "one thread per shard: futures are neither Send nor meant to be")]
pub trait Media: 'static {
    /// The geometry, constant while the medium is open.
    fn geometry(&self) -> &Geometry;

    /// State of every chunk, ordered by id.
    async fn report(&self) -> Result<Vec<ChunkInfo>, MediaError>;

    /// Writes whole sectors (`buf.len()` a multiple of `ws_min` sectors) at `sector`, which must be the
    /// chunk's write pointer counting writes still in flight. The first write opens a free chunk; the
    /// write that fills a chunk closes it.
    ///
    /// Resolves when the device has the data, with the promise of `durability`.
    async fn write(
        &self,
        chunk: ChunkId,
        sector: u32,
        buf: AlignedBuf,
        durability: Durability,
    ) -> (Result<(), MediaError>, AlignedBuf);

    /// Writes whole sectors where the device chooses within the chunk (zone append), and says where.
    async fn append(
        &self,
        chunk: ChunkId,
        buf: AlignedBuf,
        durability: Durability,
    ) -> (Result<u32, MediaError>, AlignedBuf);

    /// Fills `buf` (whole sectors) from `sector` of the chunk. Reading at or above the write pointer is
    /// an error where the device knows it.
    ///
    /// Resolves when the bytes are in `buf`; they are not verified.
    async fn read(
        &self,
        chunk: ChunkId,
        sector: u32,
        buf: AlignedBuf,
    ) -> (Result<(), MediaError>, AlignedBuf);

    /// Says of what lifetime the content of a free chunk will be, before its first write. Advice: a device without
    /// placement handles ignores it. Kept until the chunk is reset.
    ///
    /// Chunks of one class are best written one after the other, each full or [finished](Self::finish) before the next
    /// begins: a placement handle fills one reclaim unit after the other, and two chunks written at once share theirs.
    fn expect_lifetime(&self, _chunk: ChunkId, _class: LifetimeClass) {}

    /// Whether a flush makes even the last [`Geometry::mw_cunits`] sectors of open chunks durable, since the
    /// device's buffer survives power loss. They stay hidden from reads all the same.
    fn protects_buffer(&self) -> bool {
        self.geometry().mw_cunits == 0
    }

    /// What the device noticed since the last call, oldest first.
    fn take_notices(&self) -> Vec<Notice> {
        Vec::new()
    }

    /// Makes the chunk free, whatever its state was, unless a write of it is in flight. Its old content must be taken as undefined, and must never be trusted:
    /// a conventional device keeps it.
    async fn reset(&self, chunk: ChunkId) -> Result<(), MediaError>;

    /// Closes an open chunk before it is full; where the device has no such command, by padding it to its end, so
    /// that the write pointer afterwards is where it was or at the end. Any other chunk, or one with a write in flight, is refused.
    async fn finish(&self, chunk: ChunkId) -> Result<(), MediaError>;

    /// Resolves when every write that completed before this call is durable, but for the last
    /// [`Geometry::mw_cunits`] sectors below the write pointer of each open chunk, unless the device
    /// [protects its buffer](Self::protects_buffer): those the host makes durable by writing on behind them and
    /// making that durable, or by [`Self::finish`] and a flush.
    async fn flush(&self) -> Result<(), MediaError>;

    /// What was done since the medium was opened.
    fn counters(&self) -> MediaCounters;
}

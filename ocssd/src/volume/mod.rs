//! The host's duties on flash that it manages itself, between an engine and a raw slice of a device.
//!
//! Open-Channel and zoned devices hand their chunks to the host, and with them what a drive's firmware would do: spread
//! writes over the dies, keep what the flash cannot return yet, close chunks, cope with those that go bad, and find
//! everything again after the power was cut. A [`Volume`] does all that, and is itself a [`Media`] whose chunks are
//! *lines*: one chunk of each parallel unit of a stripe set, written round robin, so that a segment has the bandwidth
//! of all of them.
//!
//! ```text
//! engine ── Media ── Volume ── Media ── device
//!           lines              chunks
//! ```
//!
//! | file | duty |
//! |---|---|
//! | `stripe` | sectors of a line on its members; the lag of a line |
//! | `assignment` | which chunk is a member, a spare, metadata |
//! | `write_buffer`, `write`, `read` | what the device cannot return yet; whole units |
//! | `flush` | what durable means |
//! | `close` | finish, and what a power cut leaves |
//! | `defects`, `spares`, `reset` | bad chunks: evacuation, judgement, replacement; the table of races |
//! | `metadata`, `record`, `recovery`, `erase` | what is remembered, where, how it is found, and how it goes |
//! | `notices` | what the device says and the volume finds out, in lines |
//! | `line`, `shared`, `jobs` | state, and work that outlives its caller |
//!
//! Invariants:
//! - What was acknowledged as durable survives a power cut, and chunks that fail while they are written; reads never
//!   return anything else. (There is one copy: a chunk that goes offline takes its sectors with it, and says so.)
//! - No I/O but through the device, no clock, no thread. Nothing is done in the background: the used spares are judged
//!   when a line is reset or a spare is needed.
//! - The device must keep write pointers. (A conventional one reports every chunk closed after a start.)
//! - Memory: `width * mw_cunits + unit` sectors for each open line, beside writes in flight.

mod assignment;
mod close;
mod defects;
mod erase;
mod error;
mod flush;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod jobs;
mod line;
mod metadata;
mod notices;
mod read;
mod record;
mod recovery;
mod reset;
mod shared;
mod spares;
mod stripe;
mod write;
mod write_buffer;

use std::fmt;
use std::rc::Rc;

pub use self::error::VolumeError;
pub use self::record::LABEL_BYTES_MAX;
use self::shared::Shared;
use crate::buffer::AlignedBuf;
use crate::geometry::{ChunkId, Geometry};
use crate::media::{
    ChunkInfo, ChunkState, Durability, LifetimeClass, Media, MediaCounters, MediaError, Notice, NoticeKind,
};

/// How a volume is laid out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeOptions {
    /// What the caller wants to find again, such as the superblock of the device: at most [`LABEL_BYTES_MAX`] bytes.
    pub label: Vec<u8>,
    /// Parallel units of a line. Must divide their number. 0, the default: all of them. Fewer: more lines, each with
    /// less bandwidth.
    pub stripe_units: u32,
    /// Chunks of each unit kept to take the place of bad ones. Default 0, which leaves what the units without metadata
    /// have over: two chunks each.
    pub spare_chunks_per_unit: u32,
}

impl VolumeOptions {
    /// What the host would see of a volume on a slice of that shape.
    ///
    /// # Errors
    /// [`VolumeError::Options`] if options and geometry do not fit.
    pub fn geometry_on(&self, slice: Geometry, protects_buffer: bool) -> Result<Geometry, VolumeError> {
        let assignment = recovery::assign(slice, self)?;
        Ok(assignment.logical_geometry(protects_buffer))
    }
}

/// What is done about a volume that has more bad chunks than spares.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OpenMode {
    /// It is refused.
    #[default]
    Strict,
    /// Lines that miss a chunk are offline, the others go on. If no chunk is left for a second copy of the metadata, what
    /// is there can be read, and no chunk that fails from then on can be replaced.
    Degraded,
}

/// How a volume is, and what it did since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VolumeStatus {
    /// Lines, whatever their state.
    pub lines: u32,
    /// Members of a line.
    pub stripe_units: u32,
    /// Lines without a chunk for one of their members.
    pub lines_offline: u32,
    /// Chunks that may still take the place of bad ones.
    pub spares_left: u32,
    /// Chunks known to be bad, from birth or grown.
    pub defects: u32,
    /// Members that do not stand where the layout has them.
    pub remapped: u32,
    /// Members that were brought to another chunk.
    pub evacuations: u64,
    /// Bytes that were written for that.
    pub evacuated_bytes: u64,
    /// Bytes of lines that were closed before they were full: written by the device as padding, or left unused.
    pub padding_bytes: u64,
    /// Bytes of metadata written, in both places, padding included.
    pub metadata_bytes: u64,
}

/// A slice of host-managed flash with the host's duties done. See the [module](self).
pub struct Volume<M: Media> {
    shared: Rc<Shared<M>>,
}

impl<M: Media> fmt::Debug for Volume<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Volume").field("geometry", &self.shared.geometry).finish_non_exhaustive()
    }
}

impl<M: Media> Drop for Volume<M> {
    fn drop(&mut self) {
        self.shared.jobs.clear();
    }
}

impl<M: Media> Volume<M> {
    /// Lays a volume out on a slice; whatever the slice held is gone. Resolves when it is durable.
    ///
    /// Every chunk that is not free is reset; those that cannot be are defects from birth.
    ///
    /// # Errors
    /// [`VolumeError::Options`] if options and geometry do not fit, [`VolumeError::TooFewSpares`] if more chunks are bad
    /// than spares are kept, or what the device said.
    pub async fn create(media: M, options: &VolumeOptions) -> Result<Self, VolumeError> {
        Ok(Self { shared: recovery::create(media, options).await? })
    }

    /// Opens a volume. What was durable is there. A line whose members a power cut left uneven is closed, and so is every
    /// line that was open if the device hides sectors of open chunks ([`Geometry::mw_cunits`] of the device): all that is
    /// there of it can be read, and nothing can be added.
    ///
    /// # Errors
    /// [`VolumeError::Blank`] if there is none, [`VolumeError::Damaged`] if its metadata cannot be trusted,
    /// [`VolumeError::Shrunk`] or [`VolumeError::GeometryDiffers`] if the device is another one,
    /// [`VolumeError::TooFewSpares`] if more chunks are bad than spares are left, or what the device said.
    pub async fn open(media: M) -> Result<Self, VolumeError> {
        Self::open_as(media, OpenMode::Strict).await
    }

    /// Opens a volume as [`Self::open`] does, and says what is done if spares are short.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub async fn open_as(media: M, mode: OpenMode) -> Result<Self, VolumeError> {
        Ok(Self { shared: recovery::open(media, mode).await? })
    }

    /// The label of the volume on a slice, without opening it.
    ///
    /// # Errors
    /// As for [`Self::open`], but for the geometry, which is not compared.
    pub async fn read_label(media: &M) -> Result<Vec<u8>, VolumeError> {
        let report = recovery::checked_report(media).await?;
        let candidates = metadata::read_candidates(media, &report).await?;
        Ok(metadata::newest(&candidates)?.label.clone())
    }

    /// Makes whatever volume is on a slice unreadable, and nothing else: after a power cut meanwhile it is as it was, or
    /// there is none. Durable when it resolves.
    ///
    /// # Errors
    /// What the device said, if a chunk with metadata can neither be reset nor is lost.
    pub async fn erase(media: &M) -> Result<(), VolumeError> {
        erase::erase(media).await
    }

    /// What the caller wanted to find again.
    pub fn label(&self) -> &[u8] {
        &self.shared.label
    }

    /// The device beneath. Its counters tell what was written in all, and so the amplification.
    pub fn media(&self) -> &M {
        &self.shared.media
    }

    /// How the volume is.
    pub fn status(&self) -> VolumeStatus {
        let state = self.shared.state.borrow();
        let lines = self.shared.geometry.chunks;
        let offline = |line: &u32| state.table.state(ChunkId(*line)) == ChunkState::Offline;
        VolumeStatus {
            lines,
            stripe_units: self.shared.assignment.stripe.width,
            lines_offline: (0..lines).filter(offline).count() as u32,
            spares_left: state.spares.count(),
            defects: state.tables.defects.len() as u32,
            remapped: state.tables.remaps.len() as u32,
            evacuations: state.evacuations,
            evacuated_bytes: state.evacuated_bytes,
            padding_bytes: state.padding_bytes,
            metadata_bytes: state.metadata_bytes,
        }
    }

    /// Wear of a line's members, in their order: as the device last reported it, and resets since.
    ///
    /// # Panics
    /// If there is no such line.
    pub fn member_wear(&self, line: ChunkId) -> Vec<u32> {
        let state = self.shared.state.borrow();
        let members = state.lines[line.0 as usize].members.iter();
        members.map(|member| state.wear[member.chunk.0 as usize]).collect()
    }
}

impl<M: Media> Media for Volume<M> {
    fn geometry(&self) -> &Geometry {
        &self.shared.geometry
    }

    /// Wear is the highest of the line's members. A line that holds data and has a chunk that the device reports offline
    /// is among the next [notices](Media::take_notices), each time.
    async fn report(&self) -> Result<Vec<ChunkInfo>, MediaError> {
        let found = self.shared.media.report().await?;
        let mut state = self.shared.state.borrow_mut();
        let state = &mut *state;
        for (wear, info) in state.wear.iter_mut().zip(&found) {
            *wear = info.wear;
        }
        let mut report = state.table.report();
        for (info, line) in report.iter_mut().zip(&state.lines) {
            let chunks = line.members.iter().map(|member| member.chunk.0 as usize);
            info.wear = chunks.clone().map(|chunk| state.wear[chunk]).max().unwrap_or(0);
            let lost = |chunk: usize| found.get(chunk).is_some_and(|info| info.state == ChunkState::Offline);
            // An empty line's member is replaced when it is written or reset.
            let holds_data = info.write_pointer > 0;
            if holds_data && chunks.clone().any(lost) {
                state.noticed.insert((info.id.0, NoticeKind::Offline, None));
            }
        }
        Ok(report)
    }

    async fn write(
        &self,
        chunk: ChunkId,
        sector: u32,
        buf: AlignedBuf,
        durability: Durability,
    ) -> (Result<(), MediaError>, AlignedBuf) {
        let (result, buf) = self.shared.write("write", chunk, Some(sector), buf, durability).await;
        (result.map(|_| ()), buf)
    }

    async fn append(
        &self,
        chunk: ChunkId,
        buf: AlignedBuf,
        durability: Durability,
    ) -> (Result<u32, MediaError>, AlignedBuf) {
        self.shared.write("append", chunk, None, buf, durability).await
    }

    async fn read(
        &self,
        chunk: ChunkId,
        sector: u32,
        buf: AlignedBuf,
    ) -> (Result<(), MediaError>, AlignedBuf) {
        self.shared.read(chunk, sector, buf).await
    }

    fn expect_lifetime(&self, chunk: ChunkId, class: LifetimeClass) {
        let members = {
            let mut state = self.shared.state.borrow_mut();
            let Some(line) = state.lines.get_mut(chunk.0 as usize) else { return };
            line.class = Some(class);
            line.members.iter().map(|member| member.chunk).collect::<Vec<_>>()
        };
        for member in members {
            self.shared.media.expect_lifetime(member, class);
        }
    }

    fn take_notices(&self) -> Vec<Notice> {
        self.shared.take_notices()
    }

    async fn reset(&self, chunk: ChunkId) -> Result<(), MediaError> {
        self.shared.reset(chunk).await
    }

    async fn finish(&self, chunk: ChunkId) -> Result<(), MediaError> {
        self.shared.finish(chunk).await
    }

    async fn flush(&self) -> Result<(), MediaError> {
        self.shared.flush().await
    }

    fn counters(&self) -> MediaCounters {
        self.shared.state.borrow().counters
    }
}

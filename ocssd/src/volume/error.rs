//! Why a volume cannot be made, opened, or go on.

use crate::geometry::Geometry;
use crate::media::MediaError;

/// Why a volume cannot be created or opened, or what stopped one of its operations: there it is the source of a
/// [`MediaError::Io`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VolumeError {
    /// The device failed.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// The options and the device do not fit.
    #[error("{0}")]
    Options(&'static str),
    /// Nothing but zeros or free chunks where the metadata should stand.
    #[error("it holds no volume: it was never formatted, or formatting it was interrupted")]
    Blank,
    /// There is something, and no record of it can be trusted. Says what was found in each place.
    #[error("its metadata cannot be trusted: {0}")]
    Damaged(String),
    /// Written by a newer program.
    #[error(
        "its metadata has version {version}, and this program knows versions up to {known}: upgrade this program"
    )]
    Newer {
        /// The device's version.
        version: u32,
        /// The newest version that this program reads.
        known: u32,
    },
    /// The device has fewer chunks than when the volume was made.
    #[error("the device shrank: the volume was made on {recorded} chunks, and it has {found}")]
    Shrunk {
        /// Chunks when the volume was made.
        recorded: u32,
        /// Chunks now.
        found: u32,
    },
    /// The device is of another shape than when the volume was made.
    #[error(
        "the device has another geometry than the volume was made on: recorded {recorded:?}, found {found:?}"
    )]
    GeometryDiffers {
        /// Geometry when the volume was made.
        recorded: Geometry,
        /// Geometry now.
        found: Geometry,
    },
    /// More chunks are bad than spares can replace.
    #[error(
        "too few spare chunks: {missing} more are needed in place of bad ones ({defects} chunks are known bad, {spares} \
         of the slice were kept as spares)"
    )]
    TooFewSpares {
        /// Members that have no chunk.
        missing: u32,
        /// Chunks known to be bad.
        defects: u32,
        /// Chunks that the layout keeps as spares.
        spares: u32,
    },
    /// Fewer than two chunks are left that may hold metadata, so that a full copy could not stand in each of two.
    #[error("no chunk is left to keep the second copy of the metadata in")]
    NoMetadataPlace,
    /// A chunk with a record of an earlier volume can neither be reset nor is lost: that record would count again if the
    /// power went before a newer one was written.
    #[error(
        "the metadata of what was there before cannot be erased ({0}): erase the whole device with its own tools first \
         (`nvme format`)"
    )]
    NotErased(MediaError),
    /// The content of a bad chunk could not be brought to its replacement.
    #[error("a chunk went bad, and what it held could not be moved: {0}")]
    NotEvacuated(String),
    /// A flush failed before, and nothing tells what it lost.
    #[error("an earlier flush failed")]
    FlushFailed,
    /// The metadata could not be written before.
    #[error("the metadata could not be written: {0}")]
    MetadataFailed(String),
}

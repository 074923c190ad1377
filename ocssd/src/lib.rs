//! Erase-unit media: one seam over files, block devices and simulated flash.

pub mod buffer;
pub mod geometry;
pub mod media;

pub use buffer::AlignedBuf;
pub use geometry::{ChunkId, Geometry};
pub use media::{ChunkInfo, ChunkState, Durability, Media, MediaCounters, MediaError};

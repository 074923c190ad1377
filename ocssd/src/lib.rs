//! Erase-unit media: one seam over files, block devices and simulated flash.

pub mod buffer;
mod chunk_table;
pub mod geometry;
pub mod media;
pub mod sim;

pub use buffer::AlignedBuf;
pub use geometry::{ChunkId, Geometry};
pub use media::{ChunkInfo, ChunkState, Durability, Media, MediaCounters, MediaError};
pub use sim::{SimMedia, SimOptions};

//! Erase-unit media: one seam over files, block devices and simulated flash.
//!
//! The engine speaks to [`Media`]; [`SimMedia`] and [`FileMedia`] implement it. `format` lays a
//! conventional device out, and [`FileDevice`] opens it.
//!
//! ```no_run
//! use std::path::Path;
//! use terrane_ocssd::{FileDevice, FormatOptions, Media, format};
//!
//! let options = FormatOptions {
//!     cluster: 1,
//!     node: 1,
//!     shards: 2,
//!     size_bytes: 1 << 30,
//!     chunk_bytes: None,
//!     sector_bytes: None,
//!     force: false,
//! };
//! format(Path::new("node-1.terrane"), &options, &mut |_written, _total| {})?;
//! let device = FileDevice::open("node-1.terrane")?;
//! let media = device.slice(0)?;
//! assert_eq!(media.geometry().slice_bytes(), device.superblock().slice_bytes);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod buffer;
mod chunk_order;
mod chunk_table;
mod claims;
pub mod fdp;
pub mod file;
pub mod format;
pub mod geometry;
pub mod layout;
mod line;
mod lock;
pub mod media;
pub mod nvme;
mod probe;
pub mod sim;
pub mod superblock;
pub mod zoned;

pub use buffer::AlignedBuf;
pub use fdp::{FdpDevice, FdpMedia, FdpSlice};
pub use file::{FileDevice, FileMedia, FileOptions, OpenError};
pub use format::{FormatError, FormatOptions, format};
pub use geometry::{ChunkId, Geometry};
pub use layout::{Layout, LayoutError};
pub use media::{
    ChunkInfo, ChunkState, Durability, LifetimeClass, Media, MediaCounters, MediaError, Notice, NoticeKind,
};
pub use nvme::NamespaceError;
pub use sim::{SimMedia, SimOptions};
pub use superblock::{Superblock, SuperblockError};
pub use zoned::{ZonedDevice, ZonedMedia, ZonedShape, ZonedSlice};

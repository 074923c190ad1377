//! Erase-unit media: one seam over files, block devices and simulated flash.
//!
//! The engine speaks to [`Media`]; [`SimMedia`] and [`FileMedia`] implement it. `format` lays a
//! conventional device out, and [`FileDevice`] opens it. [`trace`] records what any medium is asked to write, and
//! [`ftl`] models the ordinary drive on which the same would cost more.
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
mod chunk_table;
pub mod file;
pub mod flash;
pub mod format;
pub mod ftl;
pub mod geometry;
pub mod layout;
mod lock;
pub mod media;
mod probe;
mod ring_file;
pub mod sim;
pub mod superblock;
pub mod trace;

pub use buffer::AlignedBuf;
pub use file::{FileDevice, FileMedia, FileOptions, OpenError};
pub use flash::{FlashDevice, FlashMedia, FlashOptions};
pub use format::{FormatError, FormatOptions, format};
pub use geometry::{ChunkId, Geometry};
pub use layout::{Layout, LayoutError};
pub use media::{
    ChunkInfo, ChunkState, Durability, LifetimeClass, Media, MediaCounters, MediaError, Notice, NoticeKind,
};
pub use sim::{SimMedia, SimOptions};
pub use superblock::{Superblock, SuperblockError};

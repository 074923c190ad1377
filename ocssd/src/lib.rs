//! Erase-unit media: one seam over files, block devices and flash that the host manages.
//!
//! The engine speaks to [`Media`]. [`Device`] lays a node's device out, whatever kind it is, opens it, and hands out
//! its slices as [`DeviceMedia`]; [`SimMedia`] stands in for one in tests. [`trace`] records what any medium is asked to
//! write, and [`ftl`] models the ordinary drive on which the same would cost more.
//!
//! ```no_run
//! use std::path::Path;
//! use terrane_ocssd::{Device, DeviceOptions, FormatOptions, KindOptions, Media};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let options = FormatOptions {
//!     cluster: 1,
//!     node: 1,
//!     shards: 2,
//!     size_bytes: 1 << 30,
//!     chunk_bytes: None,
//!     sector_bytes: None,
//!     force: false,
//! };
//! Device::format(Path::new("node-1.terrane"), &options, &KindOptions::default(), &mut |_written, _total| {})?;
//! let device = Device::open("node-1.terrane", &DeviceOptions::default())?;
//! let media = device.slice(0).await?;
//! assert_eq!(media.geometry().slice_bytes(), device.superblock().slice_bytes);
//! # Ok(())
//! # }
//! ```

mod admission;
mod barrier;
pub mod buffer;
mod chunk_order;
mod chunk_table;
mod claims;
pub mod device;
pub mod fdp;
pub mod file;
pub mod flash;
pub mod format;
pub mod ftl;
pub mod geometry;
pub mod layout;
mod line;
mod lock;
pub mod media;
pub mod nvme;
mod overlay;
pub mod policy;
mod probe;
mod ring_file;
pub mod scrubber;
pub mod sim;
pub mod superblock;
pub mod trace;
pub mod volume;
pub mod zoned;

pub use buffer::AlignedBuf;
pub use device::{
    Device, DeviceKind, DeviceMedia, DeviceOptions, DeviceShape, Difference, FlashLayout, Inspection,
    KindOptions, OpenError, Refusal, UnknownKind,
};
pub use fdp::{FdpDevice, FdpMedia, FdpSlice};
pub use file::{FileDevice, FileMedia, FileOptions};
pub use flash::{FlashDevice, FlashMedia, FlashOptions};
pub use format::{FormatError, FormatOptions, format};
pub use geometry::{ChunkId, Geometry};
pub use layout::{Layout, LayoutError};
pub use media::{
    ChunkInfo, ChunkState, Durability, LifetimeClass, Media, MediaCounters, MediaError, Notice, NoticeKind,
};
pub use nvme::NamespaceError;
pub use overlay::Overlay;
pub use scrubber::{Scrubber, Step, Verdict};
pub use sim::{FaultRates, SimMedia, SimOptions};
pub use superblock::{Superblock, SuperblockError};
pub use volume::{OpenMode, Volume, VolumeError, VolumeOptions, VolumeStatus};
pub use zoned::{ZonedDevice, ZonedMedia, ZonedShape, ZonedSlice};

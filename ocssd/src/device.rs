//! A node's device, whatever kind it is: one thing to lay out, to open, and to take slices of.
//!
//! ```text
//! Device::format   looks at the path, agrees with the user on the kind, lays it out
//! Device::open     looks at the path, opens that kind's backend, compares with the superblock
//!    +-- DeviceMedia of slice 0, on shard 0's thread
//!    +-- DeviceMedia of slice 1, on shard 1's thread
//! ```
//!
//! [`detect`] finds out what stands at a path, [`kind`] has the kinds and what makes two devices differ, [`media`] the
//! one type of medium that the rest of the program is compiled for.
//!
//! Invariants:
//! - A device is opened only as the kind that it was laid out as, and only if it still has the shape that its data
//!   relies on.
//! - Every refusal says why, and what to do.

mod detect;
mod error;
mod kind;
mod media;

use std::io;
use std::path::Path;

use crate::file::{FileDevice, FileOptions};
use crate::format::{FormatError, FormatOptions, format, look};
use crate::superblock::Superblock;

pub use self::detect::Refusal;
pub(crate) use self::detect::{Host, LookError, Site};
pub use self::error::OpenError;
pub use self::kind::{DeviceKind, DeviceShape, Difference, UnknownKind};
pub use self::media::DeviceMedia;

/// How a device is opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceOptions {
    /// Acknowledge durable writes before they are durable. For comparisons only: power loss may take what was
    /// acknowledged. Default false.
    pub nosync: bool,
    /// The kind that it must be. Default none: what it is found to be.
    pub kind: Option<DeviceKind>,
}

/// An open device. Clones share it; any thread may take its slice.
#[derive(Debug, Clone)]
pub struct Device {
    backend: Backend,
}

#[derive(Debug, Clone)]
enum Backend {
    File(FileDevice),
}

impl Device {
    /// Opens and locks a device that was laid out by [`Self::format`]. Blocks.
    pub fn open(path: impl AsRef<Path>, options: &DeviceOptions) -> Result<Self, OpenError> {
        let site = Site::to_open(&Host::default(), path.as_ref())?;
        let backend = match site.kind(options.kind)? {
            DeviceKind::Conventional => {
                Backend::File(FileDevice::open_at(&site, FileOptions { nosync: options.nosync })?)
            }
            kind => return Err(Refusal::NoBackend { path: site.path().to_path_buf(), kind }.into()),
        };
        Ok(Self { backend })
    }

    /// What kind of device stands at `path`, by the word of the system alone.
    pub fn look(path: impl AsRef<Path>) -> Result<DeviceKind, OpenError> {
        Ok(Site::to_open(&Host::default(), path.as_ref())?.kind(None)?)
    }

    /// Lays out what stands at `path`, as the kind that is asked for or found. Blocks. See [`format()`].
    pub fn format(
        path: &Path,
        options: &FormatOptions,
        kind: Option<DeviceKind>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Superblock, FormatError> {
        let kind = match (look(&Host::default(), path)?, kind) {
            (Some(site), kind) => site.kind_to_lay_out(kind)?,
            // A file can be made, a device cannot.
            (None, None | Some(DeviceKind::Conventional)) => DeviceKind::Conventional,
            (None, Some(DeviceKind::Flash)) => DeviceKind::Flash,
            (None, Some(DeviceKind::Zoned | DeviceKind::Fdp)) => {
                let (step, source) = ("look at", io::ErrorKind::NotFound.into());
                return Err(FormatError::Io { step, path: path.to_path_buf(), source });
            }
        };
        match kind {
            DeviceKind::Conventional => format(path, options, progress),
            kind => Err(Refusal::NoBackend { path: path.to_path_buf(), kind }.into()),
        }
    }

    /// Whose device this is, of which kind, and how it is divided.
    pub fn superblock(&self) -> &Superblock {
        match &self.backend {
            Backend::File(device) => device.superblock(),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        match &self.backend {
            Backend::File(device) => device.path(),
        }
    }

    /// The shard's slice. Call it on the shard's own thread, within its runtime. The slice is given back when the
    /// value is dropped, unless a write was dropped in flight.
    pub async fn slice(&self, shard: u32) -> Result<DeviceMedia, OpenError> {
        match &self.backend {
            Backend::File(device) => Ok(DeviceMedia::File(device.slice(shard)?)),
        }
    }
}

//! A node's device, whatever kind it is: one thing to lay out, to open, and to take slices of.
//!
//! ```text
//! Device::format   looks at the path, agrees with the user on the kind, lays it out
//! Device::open     looks at the path, opens that kind's backend, compares with the superblock
//!    +-- DeviceMedia of slice 0, on shard 0's thread
//!    +-- DeviceMedia of slice 1, on shard 1's thread
//! ```
//!
//! `detect` finds out what stands at a path, `kind` has the kinds and what makes two devices differ, `media` the one type
//! of medium that the rest of the program is compiled for. `managed` is flash that the host manages (`flash` plans what
//! is emulated), `placed` a namespace with placement handles; conventional devices are in [`crate::file`] and
//! [`crate::format`].
//!
//! Invariants:
//! - A device is opened only as the kind that it was laid out as, and only if it still has the shape that its data
//!   relies on.
//! - Every refusal says why, and what to do.
//! - A path is resolved once, before it is looked at: a symbolic link is not itself formatted over, or removed.

mod detect;
mod error;
mod flash;
mod kind;
mod managed;
mod media;
mod placed;

use std::fs::File;
use std::io;
use std::path::Path;

use crate::file::{FileDevice, FileOptions, superblock_of};
use crate::flash::FlashDevice;
use crate::format::{FormatError, FormatOptions, format, look, read_copies, read_superblock};
use crate::superblock::{Superblock, SuperblockError};
use crate::zoned::ZonedDevice;

use self::managed::{Managed, Raw};
use self::placed::Placed;

pub use self::detect::Refusal;
pub(crate) use self::detect::{Host, LookError, Site};
pub use self::error::OpenError;
pub use self::flash::FlashLayout;
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
    /// To look at it: it is locked, and nothing on it is changed. Where opening a slice repairs something, the slice shows
    /// it as repaired, from memory. (A namespace is opened for passthrough as ever: its slices must not be written.)
    /// Default false.
    pub read_only: bool,
}

/// As what a device is laid out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KindOptions {
    /// The kind that it must be. Default none: what it is found to be, a new file conventional.
    pub kind: Option<DeviceKind>,
    /// The shape of emulated flash.
    pub flash: FlashLayout,
}

/// What stands at a path, as far as it can be told without disturbing who works on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inspection {
    /// What kind of device it is.
    pub kind: DeviceKind,
    /// Whose it is, and how it is divided. `None`: it has zones, and only who has them to itself can tell.
    pub superblock: Option<Superblock>,
}

/// An open device. Clones share it; any thread may take its slice.
#[derive(Debug, Clone)]
pub struct Device {
    backend: Backend,
    read_only: bool,
}

#[derive(Debug, Clone)]
enum Backend {
    File(FileDevice),
    Managed(Managed),
    Placed(Placed),
}

impl Device {
    /// Opens and locks a device that was laid out by [`Self::format`]. Blocks.
    pub fn open(path: impl AsRef<Path>, options: &DeviceOptions) -> Result<Self, OpenError> {
        let site = Site::to_open(&Host::default(), path.as_ref())?;
        let path = site.path();
        let kind = site.kind(options.kind)?;
        if options.nosync && kind != DeviceKind::Conventional {
            return Err(OpenError::NoSync { path: path.to_path_buf(), kind });
        }
        let opened = match kind {
            DeviceKind::Conventional => {
                let file = FileOptions { nosync: options.nosync };
                FileDevice::open_at(&site, file, !options.read_only).map(Backend::File)
            }
            DeviceKind::Flash => match options.read_only {
                true => FlashDevice::read_file(path),
                false => FlashDevice::open_file(path),
            }
            .map_err(OpenError::from)
            .and_then(|device| Managed::open(path, Raw::Flash(device)))
            .map(Backend::Managed),
            DeviceKind::Zoned => ZonedDevice::open(path)
                .map_err(OpenError::from)
                .and_then(|device| Managed::open(path, Raw::Zoned(device)))
                .map(Backend::Managed),
            DeviceKind::Fdp => Placed::open(path).map(Backend::Placed),
        };
        match opened {
            Ok(backend) => Ok(Self { backend, read_only: options.read_only }),
            Err(OpenError::InUse { path }) => {
                Err(site.holder().map_or(OpenError::InUse { path }, OpenError::Refused))
            }
            Err(error) => Err(error),
        }
    }

    /// What kind of device stands at `path`, by the word of the system alone.
    pub fn look(path: impl AsRef<Path>) -> Result<DeviceKind, OpenError> {
        Ok(Site::to_open(&Host::default(), path.as_ref())?.kind(None)?)
    }

    /// Looks at what was laid out at `path`: takes no lock, opens it for reading only and sends it no command, so that a
    /// node may run on it, or start meanwhile. Blocks.
    ///
    /// # Errors
    /// The reason why it could not be opened either; that it is in use is none.
    pub fn inspect(path: impl AsRef<Path>) -> Result<Inspection, OpenError> {
        let site = Site::to_open(&Host::default(), path.as_ref())?;
        let path = site.path();
        let open = |path: &Path| {
            let refused = |source| OpenError::Io { step: "open", path: path.to_path_buf(), source };
            File::open(path).map_err(refused)
        };
        let kind = site.kind_without_lock()?;
        let superblock = match kind {
            DeviceKind::Conventional => Some(superblock_of(path, &open(path)?)?),
            DeviceKind::Flash => {
                let raw = Raw::Flash(FlashDevice::look_at_file(path)?);
                Some(*Managed::open(path, raw)?.superblock())
            }
            DeviceKind::Zoned => None,
            DeviceKind::Fdp => {
                // The same sectors.
                let block = site.namespace_block().map(|name| Path::new("/dev").join(name));
                let front = open(&block.unwrap_or_else(|| path.to_path_buf()))?;
                let found = read_superblock(&front)
                    .map_err(|source| OpenError::Io { step: "read", path: path.to_path_buf(), source })?
                    .map_err(|source| OpenError::Superblock { path: path.to_path_buf(), source })?;
                if found.kind != kind {
                    let laid_out = found.kind;
                    return Err(OpenError::KindDiffers { path: path.to_path_buf(), laid_out, found: kind });
                }
                Some(found)
            }
        };
        Ok(Inspection { kind, superblock })
    }

    /// Lays out what stands at `path`, as the kind that is asked for or found; what no backend needs to be told of
    /// `options` must be left out. Everything is durable when it returns. Blocks the calling thread.
    ///
    /// `progress` is called with bytes done so far and bytes in all.
    pub fn format(
        path: &Path,
        options: &FormatOptions,
        as_kind: &KindOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Superblock, FormatError> {
        let found = look(&Host::default(), path)?;
        let path = found.as_ref().map_or(path, Site::path);
        let kind = match (&found, as_kind.kind) {
            (Some(site), kind) => site.kind_to_lay_out(kind)?,
            // A file can be made, a device cannot.
            (None, None | Some(DeviceKind::Conventional)) => DeviceKind::Conventional,
            (None, Some(DeviceKind::Flash)) => DeviceKind::Flash,
            (None, Some(DeviceKind::Zoned | DeviceKind::Fdp)) => {
                let nothing = "there is no such device, and a file can be made as a conventional device or as flash only";
                let source = io::Error::new(io::ErrorKind::NotFound, nothing);
                return Err(FormatError::Io { step: "look at", path: path.to_path_buf(), source });
            }
        };
        if matches!(kind, DeviceKind::Zoned | DeviceKind::Fdp) {
            let chosen = [
                (options.size_bytes != 0, "size"),
                (options.chunk_bytes.is_some(), "chunk size"),
                (options.sector_bytes.is_some(), "sector size"),
            ];
            if let Some((_, what)) = chosen.into_iter().find(|(chosen, _)| *chosen) {
                return Err(FormatError::NotChosen { path: path.to_path_buf(), kind, what });
            }
        }
        let laid_out = match kind {
            DeviceKind::Conventional => format(path, options, progress),
            DeviceKind::Flash => flash::format(path, found.as_ref(), options, &as_kind.flash, progress),
            DeviceKind::Zoned => Self::format_zoned(path, options, progress),
            DeviceKind::Fdp => placed::format(path, options, progress),
        };
        match (laid_out, &found) {
            (Err(FormatError::InUse { path }), Some(site)) => {
                Err(site.holder().map_or(FormatError::InUse { path }, FormatError::Refused))
            }
            (laid_out, _) => laid_out,
        }
    }

    fn format_zoned(
        path: &Path,
        options: &FormatOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Superblock, FormatError> {
        let raw = Raw::Zoned(ZonedDevice::open(path)?);
        if !options.force {
            managed::refuse_to_destroy(path, &raw)?;
        }
        managed::lay_out(path, &raw, options, progress)
    }

    /// Whose device this is, of which kind, and how it is divided.
    pub fn superblock(&self) -> &Superblock {
        match &self.backend {
            Backend::File(device) => device.superblock(),
            Backend::Managed(device) => device.superblock(),
            Backend::Placed(device) => device.superblock(),
        }
    }

    /// The copies of the superblock that stand in front of a device that can be overwritten, each by itself; none of one
    /// that the host manages, where the superblock is the label of every slice. Blocks.
    pub fn superblock_copies(&self) -> Result<Vec<Result<Superblock, SuperblockError>>, OpenError> {
        let front = match &self.backend {
            Backend::Managed(_) => return Ok(Vec::new()),
            Backend::File(device) => device.path().to_path_buf(),
            // The same sectors, through the block device of the namespace.
            Backend::Placed(device) => {
                let site = Site::to_open(&Host::default(), device.path())?;
                let block = site.namespace_block().map(|name| Path::new("/dev").join(name));
                block.unwrap_or_else(|| device.path().to_path_buf())
            }
        };
        File::open(front)
            .and_then(|file| read_copies(&file))
            .map(|copies| copies.iter().map(|copy| Superblock::choose([copy, &[]])).collect())
            .map_err(|source| OpenError::Io { step: "read", path: self.path().to_path_buf(), source })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        match &self.backend {
            Backend::File(device) => device.path(),
            Backend::Managed(device) => device.path(),
            Backend::Placed(device) => device.path(),
        }
    }

    /// The shard's slice. Call it on the shard's own thread, within its runtime. The slice is given back when the
    /// value is dropped, unless a write was dropped in flight.
    pub async fn slice(&self, shard: u32) -> Result<DeviceMedia, OpenError> {
        match &self.backend {
            Backend::File(device) => Ok(DeviceMedia::File(device.slice(shard)?)),
            Backend::Managed(device) => device.slice(shard, self.read_only).await,
            Backend::Placed(device) => Ok(DeviceMedia::Fdp(device.slice(shard)?)),
        }
    }
}

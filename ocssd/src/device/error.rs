//! Why a device cannot be used.

use std::io;
use std::path::PathBuf;

use crate::device::detect::{LookError, Refusal};
use crate::device::kind::{DeviceKind, Difference};
use crate::flash::{FlashFileError, FlashSliceError};
use crate::media::MediaError;
use crate::nvme::NamespaceError;
use crate::superblock::SuperblockError;
use crate::volume::VolumeError;

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Nothing is there.
    #[error(
        "{}: there is no such file or device. If this node is new, create it with `terrane format`. A node \
         whose device is lost must not start on an empty one: it would vote without its memory",
        .path.display()
    )]
    Missing {
        /// The path given.
        path: PathBuf,
    },
    /// Neither a regular file nor a device.
    #[error(
        "{} is neither a regular file, nor a block device, nor the character device of an NVMe namespace (/dev/ngXnY)",
        .path.display()
    )]
    NotADevice {
        /// The path given.
        path: PathBuf,
    },
    /// It is not what was asked for, or nothing can be written to it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It moved to a device of another kind, or the device was turned into one.
    #[error(
        "{} is {found}, but was laid out as {laid_out}: give the device that it was laid out on",
        .path.display()
    )]
    KindDiffers {
        /// The device.
        path: PathBuf,
        /// What it was.
        laid_out: DeviceKind,
        /// What it is.
        found: DeviceKind,
    },
    /// The device has another shape than when it was laid out.
    #[error(
        "{} is not the device that was laid out{}: {}",
        .path.display(), if *.shrank { ", or it shrank and part of the data is gone" } else { "" }, list(.differences)
    )]
    ShapeDiffers {
        /// The device.
        path: PathBuf,
        /// Every number that differs.
        differences: Vec<Difference>,
        /// It has fewer chunks or bytes.
        shrank: bool,
    },
    /// Durability was to be left out, which only conventional devices can.
    #[error("{} is {kind}: `nosync` is for conventional devices, to compare with systems that do not sync", .path.display())]
    NoSync {
        /// The device.
        path: PathBuf,
        /// What it is.
        kind: DeviceKind,
    },
    /// The volume of a slice cannot be opened: too many bad chunks, damage.
    #[error("the slice of shard {shard} on {} cannot be used: {source}", .path.display())]
    Volume {
        /// The device.
        path: PathBuf,
        /// Whose slice it is.
        shard: u32,
        /// What is wrong with it.
        source: VolumeError,
    },
    /// A slice is not of the node and time that slice 0 says.
    #[error(
        "the slice of shard {shard} on {} is another device's, or left over from an earlier format: formatting it was \
         interrupted, or parts of devices were mixed",
        .path.display()
    )]
    ForeignSlice {
        /// The device.
        path: PathBuf,
        /// Whose slice it should be.
        shard: u32,
    },
    /// An emulated device's file cannot be used.
    #[error(transparent)]
    Flash(FlashFileError),
    /// An emulated device cannot be divided so.
    #[error("{}: {source}", .path.display())]
    FlashSlice {
        /// The device.
        path: PathBuf,
        /// What does not fit.
        source: FlashSliceError,
    },
    /// A namespace cannot be used.
    #[error(transparent)]
    Namespace(NamespaceError),
    /// The device failed while it was looked at or laid out.
    #[error("{}: {source}", .path.display())]
    Media {
        /// The device.
        path: PathBuf,
        /// What it said.
        source: MediaError,
    },
    /// The superblock is missing, damaged, foreign or newer.
    #[error("{} cannot be used: {source}.{}", .path.display(), advice(.source))]
    Superblock {
        /// The device.
        path: PathBuf,
        /// What is wrong with it.
        source: SuperblockError,
    },
    /// It was cut after it was laid out.
    #[error(
        "{} has {found_bytes} bytes, but its superblock says {needed_bytes}: it was truncated or copied \
         incompletely, and part of the data is gone",
        .path.display()
    )]
    TooShort {
        /// The device.
        path: PathBuf,
        /// Bytes it has.
        found_bytes: u64,
        /// Bytes it had when it was laid out.
        needed_bytes: u64,
    },
    /// It moved to a device or file system with larger blocks, or without direct I/O.
    #[error(
        "{} was laid out in sectors of {sector_bytes} bytes, which direct I/O cannot address where it is \
         now: move it back, or to a device with smaller blocks",
        .path.display()
    )]
    Alignment {
        /// The device.
        path: PathBuf,
        /// Bytes of its sectors.
        sector_bytes: u32,
    },
    /// Another process has it open.
    #[error("{} is in use by another process: is the node running already?", .path.display())]
    InUse {
        /// The device.
        path: PathBuf,
    },
    /// The device has no such slice.
    #[error("{} has no slice for shard {shard}: it was laid out for {shards} shards", .path.display())]
    NoSuchSlice {
        /// The device.
        path: PathBuf,
        /// The shard asked for.
        shard: u32,
        /// Slices of the device.
        shards: u32,
    },
    /// The slice was handed out already and not given back.
    #[error("the slice of shard {shard} of {} is open already", .path.display())]
    SliceInUse {
        /// The device.
        path: PathBuf,
        /// The shard asked for.
        shard: u32,
    },
    /// The operating system failed a step.
    #[error("cannot {step} {}: {source}", .path.display())]
    Io {
        /// What was attempted.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

fn advice(error: &SuperblockError) -> &'static str {
    match error {
        SuperblockError::Blank => {
            " If this node is new, create its device with `terrane format`. A node whose device is lost must \
             not start on an empty one: it would vote without its memory"
        }
        SuperblockError::NotOurs => " Check the path in the configuration",
        SuperblockError::Damaged { .. } => {
            " The device must not be formatted and used again as this node: it would vote without its memory"
        }
        SuperblockError::Newer { .. } => "",
    }
}

impl From<LookError> for OpenError {
    fn from(error: LookError) -> Self {
        match error {
            LookError::Refused(refusal) => Self::Refused(refusal),
            LookError::Namespace(error) => error.into(),
            LookError::Io { step, path, source } => Self::Io { step, path, source },
        }
    }
}

impl From<FlashFileError> for OpenError {
    fn from(error: FlashFileError) -> Self {
        match error {
            FlashFileError::InUse { path } => Self::InUse { path },
            FlashFileError::TooShort { path, found_bytes, needed_bytes } => {
                Self::TooShort { path, found_bytes, needed_bytes }
            }
            FlashFileError::Alignment { path, sector_bytes } => Self::Alignment { path, sector_bytes },
            error => Self::Flash(error),
        }
    }
}

impl From<NamespaceError> for OpenError {
    fn from(error: NamespaceError) -> Self {
        match error {
            NamespaceError::InUse { path } => Self::InUse { path },
            error => Self::Namespace(error),
        }
    }
}

fn list(differences: &[Difference]) -> String {
    differences.iter().map(Difference::to_string).collect::<Vec<_>>().join("; ")
}

//! Why a device cannot be used.

use std::io;
use std::path::PathBuf;

use crate::device::detect::{LookError, Refusal};
use crate::device::kind::{DeviceKind, Difference};
use crate::superblock::SuperblockError;

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
    #[error("{} is neither a regular file nor a block device", .path.display())]
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
            LookError::Io { step, path, source } => Self::Io { step, path, source },
        }
    }
}

fn list(differences: &[Difference]) -> String {
    differences.iter().map(Difference::to_string).collect::<Vec<_>>().join("; ")
}

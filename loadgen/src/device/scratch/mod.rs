//! The file or block device that a probe works on: laid out like a node's, filled, and removed at the end.
//!
//! Invariants:
//! - What exists and is not an earlier probe's leftover is touched only if that was forced.
//! - A file is removed when this is dropped, and also when making it failed half-way. A block device keeps the probe's
//!   superblock, by which the next probe knows it for its own.
//! - Every sector was written once, with bytes that do not compress, before anything is measured.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use futures_util::future::try_join_all;
use nix::sys::statvfs::statvfs;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use tempfile::TempDir;
use terrane_ocssd::layout::FIRST_SLICE_OFFSET;
use terrane_ocssd::{
    AlignedBuf, ChunkId, Device, DeviceKind, DeviceOptions, Durability, FormatOptions, KindOptions, Media,
    MediaError, OpenError, SuperblockError,
};

use crate::device::cell::{self, Cell, Stop, stamp};
use crate::device::progress::Progress;
use crate::device::report::Measured;
use crate::place;
use crate::report::figures::bytes;
use crate::ring;

/// The cluster that a probe's superblock names, by which its leftovers are known: no real one is drawn like this.
const CLUSTER: u128 = u128::from_be_bytes(*b"terrane-loadgen ");

/// A probe overwrites in place and fills at several points at once: other kinds of device are refused, with the reason.
const OPENED_AS: DeviceOptions =
    DeviceOptions { nosync: false, kind: Some(DeviceKind::Conventional), read_only: false };

/// Chunks that a slice is divided into, about, and limits of a chunk's size: as `terrane format` chooses them for a
/// large device, but smaller ones on a small device, so that there still are enough to choose from.
const CHUNKS: u64 = 512;
const CHUNK_BYTES: (u64, u64) = (64 << 10, 64 << 20);

/// Bytes of one write, and writes in flight, while the slices are filled.
const FILL_BYTES: u64 = 1 << 20;
const FILL_DEPTH: u32 = 4;

/// Why a probe does not touch a path.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ScratchError {
    /// Something else's data is there.
    #[error("{} exists and is not an earlier probe's: it holds data; name another path or say --force", .0.display())]
    HoldsData(PathBuf),
    /// Someone works on it.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// A folder, a pipe, or the like.
    #[error("{} is neither a regular file nor a block device: name one, or a new file in it", .0.display())]
    NotADevice(PathBuf),
    /// The folder is not there.
    #[error("the folder {} does not exist: create it, or name another path", .0.display())]
    NoFolder(PathBuf),
    /// The file system is too full.
    #[error(
        "{} has {} free, but the probe needs {}: free some space, ask for a smaller --size, or name another path",
        .folder.display(), bytes(*.free), bytes(*.needed)
    )]
    Space {
        /// Where the file would be.
        folder: PathBuf,
        /// Bytes free to us, with those of the leftover that would be replaced.
        free: u64,
        /// Bytes needed.
        needed: u64,
    },
}

/// What a probe is to work on.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// A new file, a leftover, or a block device.
    pub(crate) path: PathBuf,
    /// Bytes of it that are used.
    pub(crate) size_bytes: u64,
    /// Slices, one for each thread.
    pub(crate) shards: u32,
    /// Bytes of the largest request; a chunk is not smaller.
    pub(crate) request_bytes_max: u32,
    /// Destroy what is there.
    pub(crate) force: bool,
}

/// A device laid out and filled.
#[derive(Debug)]
pub(crate) struct Scratch {
    device: Device,
    /// Held for its drop.
    _file: Option<Removed>,
    _folder: Option<TempDir>,
}

/// A file that is removed when this is dropped.
#[derive(Debug)]
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                eprintln!("warning: cannot remove the probe's file {}: {error}", self.0.display());
            }
            _ => {}
        }
    }
}

impl Scratch {
    /// Lays out what is wanted and fills it; `None` if it was stopped, which it is not while the layout is written.
    ///
    /// # Errors
    /// [`ScratchError`] and [`place::PlaceError`] before anything is touched; else what the media says.
    pub(crate) fn prepare(wanted: &Wanted, stop: &Stop, progress: &Progress) -> anyhow::Result<Option<Self>> {
        let found = Found::at(wanted)?;
        if found.holds_data && !wanted.force {
            return Err(ScratchError::HoldsData(wanted.path.clone()).into());
        }
        let options = FormatOptions {
            cluster: CLUSTER,
            node: 1,
            shards: wanted.shards,
            size_bytes: wanted.size_bytes,
            chunk_bytes: Some(chunk_bytes(wanted)),
            sector_bytes: None,
            // A new file is not forced: if something appears there meanwhile, it is not ours.
            force: found.exists,
        };
        let kind = KindOptions { kind: OPENED_AS.kind, ..KindOptions::default() };
        let laid_out = Device::format(&wanted.path, &options, &kind, &mut |done, all| {
            progress.laying_out(done, all);
        });
        progress.laid_out();
        // What was a file of ours before is removed even then; where there was none, none is left.
        let ours = found.is_file && (laid_out.is_ok() || found.exists && !wanted.force);
        let file = ours.then(|| wanted.path.canonicalize().map(Removed)).transpose()?;
        laid_out?;
        let device = Device::open(&wanted.path, &OPENED_AS)?;
        fill(&device, stop, progress)?;
        Ok((!stop.is_set()).then_some(Scratch { device, _file: file, _folder: None }))
    }

    /// As [`Self::prepare`], on a file of its own in `folder`, whose requests are of `request_bytes_max` at most.
    pub(crate) fn in_folder(
        folder: &Path,
        size_bytes: u64,
        shards: u32,
        request_bytes_max: u32,
        stop: &Stop,
    ) -> anyhow::Result<Option<Self>> {
        if !folder.is_dir() {
            return Err(ScratchError::NoFolder(folder.to_owned()).into());
        }
        let inner = tempfile::Builder::new()
            .prefix("terrane-probe-")
            .tempdir_in(folder)
            .with_context(|| format!("cannot make a folder in {}", folder.display()))?;
        let path = inner.path().join("device");
        let wanted = Wanted { path, size_bytes, shards, request_bytes_max, force: false };
        let scratch = Scratch::prepare(&wanted, stop, &Progress::new())?;
        Ok(scratch.map(|scratch| Scratch { _folder: Some(inner), ..scratch }))
    }

    /// Measures one cell; `None` if it was stopped.
    ///
    /// # Errors
    /// If there is too little of it for the cell, or an operation fails.
    pub(crate) fn measure(
        &self,
        cell: Cell,
        window: Duration,
        stop: &Stop,
    ) -> anyhow::Result<Option<Measured>> {
        cell::measure(&self.device, cell, window, stop)
    }

    /// The device.
    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// Bytes of it that hold data.
    pub(crate) fn filled_bytes(&self) -> u64 {
        let superblock = self.device.superblock();
        u64::from(superblock.shards) * superblock.slice_bytes
    }
}

/// What there is at the path before the probe.
#[derive(Debug, Clone, Copy)]
struct Found {
    exists: bool,
    /// It is a regular file, or will be one.
    is_file: bool,
    /// It is not a leftover, and not empty.
    holds_data: bool,
}

impl Found {
    fn at(wanted: &Wanted) -> anyhow::Result<Self> {
        let path = &wanted.path;
        let metadata = match std::fs::metadata(path) {
            Ok(metadata) => Some(metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("cannot look at {}", path.display())),
        };
        let Some(metadata) = metadata else {
            room(path, wanted.size_bytes, 0)?;
            return Ok(Found { exists: false, is_file: true, holds_data: false });
        };
        let is_file = metadata.is_file();
        if !is_file && !metadata.file_type().is_block_device() {
            return Err(ScratchError::NotADevice(path.clone()).into());
        }
        let holds_data = match Device::open(path, &OPENED_AS) {
            Ok(device) => device.superblock().cluster != CLUSTER,
            Err(OpenError::InUse { .. }) => return Err(ScratchError::InUse(path.clone()).into()),
            // Only of a file can it be said that there is nothing else in it.
            Err(OpenError::Superblock { source: SuperblockError::Blank, .. }) => {
                !is_file || metadata.len() > 0
            }
            Err(
                OpenError::Superblock { .. }
                | OpenError::TooShort { .. }
                | OpenError::Alignment { .. }
                | OpenError::KindDiffers { .. },
            ) => true,
            Err(error) => return Err(error.into()),
        };
        if is_file && (!holds_data || wanted.force) {
            room(&path.canonicalize()?, wanted.size_bytes, metadata.blocks() * 512)?;
        }
        Ok(Found { exists: true, is_file, holds_data })
    }
}

/// Whether the file's folder has room for `needed` bytes, `held` of which the file that is replaced has already, on a
/// file system that can be probed.
fn room(path: &Path, needed: u64, held: u64) -> anyhow::Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        return Err(ScratchError::NoFolder(folder.to_owned()).into());
    }
    place::suits(folder, 0)?;
    let system = statvfs(folder).with_context(|| format!("cannot look at {}", folder.display()))?;
    let free = (system.blocks_available() * system.fragment_size()).saturating_add(held);
    if free < needed {
        return Err(ScratchError::Space { folder: folder.to_owned(), free, needed }.into());
    }
    Ok(())
}

/// Bytes of a chunk for what is wanted.
fn chunk_bytes(wanted: &Wanted) -> u64 {
    let slice = wanted.size_bytes.saturating_sub(FIRST_SLICE_OFFSET) / u64::from(wanted.shards.max(1));
    let chosen = 1_u64 << (slice / CHUNKS).max(1).ilog2();
    chosen.clamp(CHUNK_BYTES.0, CHUNK_BYTES.1).max(u64::from(wanted.request_bytes_max).next_power_of_two())
}

/// Writes every chunk of every slice, each slice from a thread of its own.
fn fill(device: &Device, stop: &Stop, progress: &Progress) -> anyhow::Result<()> {
    let superblock = device.superblock();
    progress.filling(u64::from(superblock.shards) * superblock.slice_bytes);
    let fill_slice = |shard| {
        let mut ring = ring::runtime(FILL_DEPTH)?;
        ring.block_on(async {
            let media = device.slice(shard).await?;
            try_join_all((0..FILL_DEPTH).map(|lane| fill_lane(&media, lane, stop, progress))).await?;
            anyhow::Ok(media.flush().await?)
        })
        .with_context(|| format!("cannot fill {}", device.path().display()))
    };
    let results: Vec<anyhow::Result<()>> = std::thread::scope(|scope| {
        let fill_slice = &fill_slice;
        let threads: Vec<_> =
            (0..superblock.shards).map(|shard| scope.spawn(move || fill_slice(shard))).collect();
        let joined = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.collect()
    });
    results.into_iter().collect()
}

/// Every `FILL_DEPTH`th chunk, from `lane` on.
async fn fill_lane(
    media: &impl Media,
    lane: u32,
    stop: &Stop,
    progress: &Progress,
) -> Result<(), MediaError> {
    let geometry = *media.geometry();
    let step = FILL_BYTES.min(geometry.chunk_bytes());
    // Another one for every lane of every slice, and every probe.
    let mut rng = Pcg64Mcg::seed_from_u64(RandomState::new().hash_one(lane));
    let mut buf = AlignedBuf::zeroed(step as usize);
    rng.fill(&mut buf[..]);
    for chunk in (lane..geometry.chunk_count()).step_by(FILL_DEPTH as usize).map(ChunkId) {
        media.reset(chunk).await?;
        let mut left = geometry.chunk_bytes();
        while left > 0 && !stop.is_set() {
            buf.set_len(step.min(left) as usize);
            stamp(&mut buf, rng.random());
            let result;
            (result, buf) = media.append(chunk, buf, Durability::Volatile).await;
            result?;
            left -= buf.len() as u64;
            progress.filled(buf.len() as u64);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;

//! A namespace with placement handles, as a node's device.
//!
//! ```text
//! reclaim unit 0        1 .. 1 + n       1 + n .. 1 + 2n
//! | superblock copies | slice 0        | slice 1         | ...
//! ```
//!
//! It can be overwritten, so everything is as on a conventional device but the unit: chunks are reclaim units, and the
//! superblock has the first to itself, that no unit of the log dies with it.
//!
//! Invariants:
//! - Every sector of every slice is written once by `format`: the device keeps no write pointers, and what an earlier
//!   store left behind must not be read as this one's.
//! - The superblock comes last.

use std::path::Path;
use std::sync::mpsc;

use crate::buffer::AlignedBuf;
use crate::device::error::OpenError;
use crate::device::kind::{DeviceKind, DeviceShape};
use crate::device::managed::on_a_ring;
use crate::fdp::{FdpDevice, FdpMedia, FdpSlice};
use crate::format::{FormatError, FormatOptions};
use crate::geometry::{ChunkId, Geometry};
use crate::layout::LayoutError;
use crate::media::{Durability, Media, MediaError};
use crate::superblock::{
    COPY_BYTES, COPY_OFFSETS, FORMAT_VERSION, SUPERBLOCK_BYTES, Superblock, SuperblockError,
};

/// The chunk of the superblock.
const SUPERBLOCK_CHUNK: ChunkId = ChunkId(0);

/// The first chunk of slice 0.
const FIRST_SLICE_CHUNK: u32 = 1;

/// Fewest units of a slice, which are large: two for the anchor, and one beyond the four that the log keeps in reserve.
const SLICE_CHUNKS_MIN: u32 = 7;

/// Bytes of one write of zeros.
const STEP_BYTES: u64 = 1 << 20;

/// An open device. Clones share it; any thread may take its slice.
#[derive(Debug, Clone)]
pub(crate) struct Placed {
    device: FdpDevice,
    superblock: Superblock,
}

impl Placed {
    /// Reads the superblock, and compares it with the device. Blocks.
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        let device = FdpDevice::open(path)?;
        let (found, shape) = look(&device)?;
        let superblock =
            found.map_err(|source| OpenError::Superblock { path: path.to_path_buf(), source })?;
        if superblock.kind != DeviceKind::Fdp {
            let (laid_out, found) = (superblock.kind, DeviceKind::Fdp);
            return Err(OpenError::KindDiffers { path: path.to_path_buf(), laid_out, found });
        }
        let differences = superblock.shape.differences(&shape);
        if !differences.is_empty() {
            let shrank = superblock.shape.shrank(&shape);
            return Err(OpenError::ShapeDiffers { path: path.to_path_buf(), differences, shrank });
        }
        Ok(Self { device, superblock })
    }

    pub(crate) fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    pub(crate) fn path(&self) -> &Path {
        self.device.path()
    }

    pub(crate) fn slice(&self, shard: u32) -> Result<FdpMedia, OpenError> {
        let shards = self.superblock.shards;
        if shard >= shards {
            return Err(OpenError::NoSuchSlice { path: self.path().to_path_buf(), shard, shards });
        }
        let chunks = self.superblock.slice_geometry().chunks;
        Ok(self.device.slice(&slice(&self.device, shard, shards, chunks)?)?)
    }
}

/// A shard's chunks, and as many handles as the others have.
fn slice(device: &FdpDevice, shard: u32, shards: u32, chunks: u32) -> Result<FdpSlice, OpenError> {
    let share = device.share(shard, shards)?;
    Ok(FdpSlice { first_chunk: FIRST_SLICE_CHUNK + shard * chunks, chunks, ..share })
}

/// What stands in the place of the superblock, and the shape of the device. Blocks.
fn look(device: &FdpDevice) -> Result<(Result<Superblock, SuperblockError>, DeviceShape), OpenError> {
    let path = device.path();
    let read = on_a_ring(async || {
        let front = FdpSlice { first_chunk: 0, chunks: 1, handles: vec![0] };
        let media = device.slice(&front)?;
        let geometry = Geometry { chunks: device.chunks(), ..*media.geometry() };
        let mut copies = [Vec::new(), Vec::new()];
        for (copy, offset) in copies.iter_mut().zip(COPY_OFFSETS) {
            let sector = (offset / u64::from(geometry.sector_bytes)) as u32;
            let bytes = COPY_BYTES.max(geometry.sector_bytes as usize);
            let (result, buf) = media.read(SUPERBLOCK_CHUNK, sector, AlignedBuf::zeroed(bytes)).await;
            match result {
                Ok(()) => *copy = buf[..COPY_BYTES].to_vec(),
                // The other copy may do.
                Err(error) if error.is_bad_content() => {}
                Err(source) => return Err(OpenError::Media { path: path.to_path_buf(), source }),
            }
        }
        let shape = DeviceShape { geometry, zone_bytes: 0, size_bytes: geometry.slice_bytes() };
        Ok((Superblock::choose([&copies[0], &copies[1]]), shape))
    });
    read.map_err(|source| OpenError::Io { step: "set up a ring for", path: path.to_path_buf(), source })?
}

/// Writes every slice once, and then the superblock. Blocks.
pub(crate) fn format(
    path: &Path,
    options: &FormatOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Superblock, FormatError> {
    if options.shards == 0 {
        return Err(FormatError::Layout { path: path.to_path_buf(), source: LayoutError::NoShards });
    }
    let device = FdpDevice::open(path)?;
    let (found, shape) = look(&device).map_err(|error| FormatError::Open(Box::new(error)))?;
    match found {
        _ if options.force => {}
        Err(SuperblockError::Blank) => {}
        Err(SuperblockError::NotOurs) => return Err(FormatError::NotEmpty { path: path.to_path_buf() }),
        found => {
            return Err(FormatError::AlreadyFormatted {
                path: path.to_path_buf(),
                found: found.map(Box::new),
            });
        }
    }
    let geometry = shape.geometry;
    let chunks = (geometry.chunks - FIRST_SLICE_CHUNK) / options.shards;
    if chunks < SLICE_CHUNKS_MIN {
        let (has, needed) = (chunks, SLICE_CHUNKS_MIN);
        return Err(FormatError::TooFewChunks {
            path: path.to_path_buf(),
            shards: options.shards,
            has,
            needed,
        });
    }
    let superblock = Superblock {
        version: FORMAT_VERSION,
        sequence: 1,
        cluster: options.cluster,
        node: options.node,
        shards: options.shards,
        sector_bytes: geometry.sector_bytes,
        chunk_bytes: geometry.chunk_bytes(),
        slice_bytes: u64::from(chunks) * geometry.chunk_bytes(),
        kind: DeviceKind::Fdp,
        shape,
    };
    let (said, heard) = mpsc::channel();
    std::thread::scope(|scope| {
        let device = &device;
        let written = scope.spawn(move || on_a_ring(async || write_all(device, &superblock, &said).await));
        // Until the thread is done with it.
        for (done, all) in heard {
            progress(done, all);
        }
        let written = written.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match written {
            Ok(Ok(())) => Ok(superblock),
            Ok(Err(error)) => Err(FormatError::Open(Box::new(error))),
            Err(source) => {
                Err(FormatError::Io { step: "set up a ring for", path: path.to_path_buf(), source })
            }
        }
    })
}

async fn write_all(
    device: &FdpDevice,
    superblock: &Superblock,
    said: &mpsc::Sender<(u64, u64)>,
) -> Result<(), OpenError> {
    let failed = |source| OpenError::Media { path: device.path().to_path_buf(), source };
    let front = FdpSlice { first_chunk: 0, chunks: 1, handles: vec![0] };
    let front = device.slice(&front)?;
    let copies_bytes = COPY_OFFSETS[1] as usize + COPY_BYTES.max(superblock.sector_bytes as usize);
    // An old superblock is gone before its data is touched.
    write_front(&front, AlignedBuf::zeroed(copies_bytes)).await.map_err(failed)?;

    let chunks = superblock.slice_geometry().chunks;
    let all = u64::from(superblock.shards) * superblock.slice_bytes;
    let mut done = 0;
    for shard in 0..superblock.shards {
        let media = device.slice(&slice(device, shard, superblock.shards, chunks)?)?;
        zero(&media, |bytes| {
            done += bytes;
            let _ = said.send((done, all));
        })
        .await
        .map_err(failed)?;
    }
    let mut copies = AlignedBuf::zeroed(copies_bytes);
    for offset in COPY_OFFSETS {
        copies[offset as usize..][..SUPERBLOCK_BYTES].copy_from_slice(&superblock.encode());
    }
    write_front(&front, copies).await.map_err(failed)
}

async fn write_front(front: &FdpMedia, bytes: AlignedBuf) -> Result<(), MediaError> {
    front.reset(SUPERBLOCK_CHUNK).await?;
    front.write(SUPERBLOCK_CHUNK, 0, bytes, Durability::Durable).await.0?;
    front.flush().await
}

async fn zero(media: &FdpMedia, mut said: impl FnMut(u64)) -> Result<(), MediaError> {
    let chunk_bytes = media.geometry().chunk_bytes();
    let mut buf = AlignedBuf::zeroed(STEP_BYTES.min(chunk_bytes) as usize);
    for chunk in (0..media.geometry().chunk_count()).map(ChunkId) {
        media.reset(chunk).await?;
        let mut left = chunk_bytes;
        while left > 0 {
            buf.set_len(STEP_BYTES.min(left) as usize);
            let result;
            (result, buf) = media.append(chunk, buf, Durability::Volatile).await;
            result?;
            left -= buf.len() as u64;
            said(buf.len() as u64);
        }
    }
    media.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// They would have divided the device among one, and a superblock said that there is none.
    #[test]
    fn a_device_for_no_shards_is_refused() {
        let options = FormatOptions {
            cluster: 1,
            node: 1,
            shards: 0,
            size_bytes: 0,
            chunk_bytes: None,
            sector_bytes: None,
            force: true,
        };
        let refused = format(Path::new("/dev/none"), &options, &mut |_, _| {});
        assert!(
            matches!(refused, Err(FormatError::Layout { source: LayoutError::NoShards, .. })),
            "{refused:?}"
        );
    }
}

//! A preallocated file or raw block device, through io_uring and direct I/O.
//!
//! The device enforces no rules and remembers no write pointers, so the host does both: after a start
//! every chunk is closed and readable to its end, until it is reset.
//!
//! ```text
//! FileDevice (Send + Sync, one per process and path: the lock, two descriptors)
//!   +-- FileMedia of slice 0, on shard 0's thread (duplicates of both descriptors, chunk table)
//!   +-- FileMedia of slice 1, on shard 1's thread
//! ```
//!
//! Invariants:
//! - All I/O is O_DIRECT: what a read returns came from the device, not from memory.
//! - A durable write goes through a descriptor opened with O_DSYNC; it says nothing of other writes.
//! - Once a flush or a durable write failed, or was dropped before it ended, every later flush fails, of every slice of
//!   the device: they share its cache, and the kernel reports a lost write once and then forgets it.
//! - A slice is handed out once at a time.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;

use crate::admission::{Admission, admitted_media};
use crate::barrier::Barrier;
use crate::buffer::{AlignedBuf, BUFFER_ALIGN};
use crate::chunk_table::ChunkTable;
use crate::device::{DeviceKind, Host, Site};
use crate::format::read_superblock;
use crate::geometry::{ChunkId, Geometry};
use crate::lock::{DeviceLock, LockError};
use crate::media::{ChunkInfo, Durability, Media, MediaCounters, MediaError};
use crate::probe;
use crate::ring_file::RingFile;
use crate::superblock::Superblock;

pub use crate::device::OpenError;

/// How a device is opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FileOptions {
    /// Acknowledge durable writes when the plain direct write completes, and flush nothing. For
    /// comparisons only: power loss may take what was acknowledged. Default false.
    pub nosync: bool,
}

/// An open device. Clones share it; any thread may take its slice.
#[derive(Debug, Clone)]
pub struct FileDevice {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    superblock: Superblock,
    options: FileOptions,
    plain: File,
    durable: File,
    taken: Vec<AtomicBool>,
    /// A durable write flushes the device's cache as well.
    barrier: Barrier,
    /// Dropped with the last slice: nobody else comes in while one may still be written.
    _lock: DeviceLock,
}

impl FileDevice {
    /// Opens and locks a device that was laid out by [`format`](crate::format::format). Blocks.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::open_with(path, FileOptions::default())
    }

    /// As [`Self::open`], with options.
    pub fn open_with(path: impl AsRef<Path>, options: FileOptions) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let site = Site::to_open(&Host::default(), path)?;
        site.kind(Some(DeviceKind::Conventional))?;
        Self::open_at(&site, options, true)
    }

    /// Opens what was found to be a conventional device, to write to it or only to read.
    pub(crate) fn open_at(site: &Site, options: FileOptions, write: bool) -> Result<Self, OpenError> {
        let path = site.path();
        let error = |step, source| OpenError::Io { step, path: path.to_path_buf(), source };
        let lock = DeviceLock::take(path, site.node()).map_err(|refused| match refused {
            LockError::Held => site
                .holder()
                .map_or_else(|| OpenError::InUse { path: path.to_path_buf() }, OpenError::Refused),
            LockError::Io(source) => error("open", source),
        })?;

        let superblock = superblock_of(path, lock.file())?;

        let descriptor = |flags| {
            let file = OpenOptions::new().read(true).write(write).custom_flags(flags).open(path);
            file.map_err(|source| {
                site.not_writable(&source).map_or_else(|| error("open", source), OpenError::Refused)
            })
        };
        let durable_flags = if options.nosync { libc::O_DIRECT } else { libc::O_DIRECT | libc::O_DSYNC };
        let shared = Shared {
            path: path.to_path_buf(),
            superblock,
            options,
            plain: descriptor(libc::O_DIRECT)?,
            durable: descriptor(durable_flags)?,
            taken: (0..superblock.shards).map(|_| AtomicBool::new(false)).collect(),
            barrier: Barrier::default(),
            _lock: lock,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Whose device this is, and how it is divided.
    pub fn superblock(&self) -> &Superblock {
        &self.shared.superblock
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// The shard's slice. Call it on the shard's own thread; operations run on that thread's monoio
    /// runtime. The slice is given back when the value is dropped, unless a write was dropped in flight.
    pub fn slice(&self, shard: u32) -> Result<FileMedia, OpenError> {
        let shared = &self.shared;
        let path = || shared.path.clone();
        let taken = shared.taken.get(shard as usize).ok_or_else(|| OpenError::NoSuchSlice {
            path: path(),
            shard,
            shards: shared.superblock.shards,
        })?;
        let duplicate = |file: &File| {
            let file = file.try_clone();
            file.map_err(|source| OpenError::Io { step: "duplicate the descriptor of", path: path(), source })
        };
        let (plain, durable) = (duplicate(&shared.plain)?, duplicate(&shared.durable)?);
        if taken.swap(true, Ordering::AcqRel) {
            return Err(OpenError::SliceInUse { path: path(), shard });
        }
        let layout = shared.superblock.layout();
        let geometry = shared.superblock.slice_geometry();
        Ok(FileMedia {
            device: self.clone(),
            shard,
            offset: layout.slice_offset(shard),
            plain: RingFile::new(plain),
            durable: RingFile::new(durable),
            admission: Admission::new(geometry, ChunkTable::all_closed(geometry)),
        })
    }
}

/// The superblock of an open conventional device that is what it was when it was laid out. Reads only.
pub(crate) fn superblock_of(path: &Path, file: &File) -> Result<Superblock, OpenError> {
    let error = |step, source| OpenError::Io { step, path: path.to_path_buf(), source };
    let superblock = read_superblock(file)
        .map_err(|source| error("read", source))?
        .map_err(|source| OpenError::Superblock { path: path.to_path_buf(), source })?;
    if superblock.kind != DeviceKind::Conventional {
        let (laid_out, found) = (superblock.kind, DeviceKind::Conventional);
        return Err(OpenError::KindDiffers { path: path.to_path_buf(), laid_out, found });
    }
    let found_bytes = probe::size_bytes(file).map_err(|source| error("measure", source))?;
    let needed_bytes = superblock.shape.size_bytes;
    if found_bytes < needed_bytes {
        return Err(OpenError::TooShort { path: path.to_path_buf(), found_bytes, needed_bytes });
    }
    let sector_bytes = superblock.sector_bytes;
    let aligned = probe::alignment(file)
        .map_err(|source| error("look at", source))?
        .is_some_and(|by| by.memory as usize <= BUFFER_ALIGN && sector_bytes.is_multiple_of(by.offset));
    if aligned {
        Ok(superblock)
    } else {
        Err(OpenError::Alignment { path: path.to_path_buf(), sector_bytes })
    }
}

/// One slice of a [`FileDevice`]. Its operations must be awaited within a monoio runtime with io_uring;
/// elsewhere they panic.
///
/// A future that is dropped leaves its operation to complete or not; a chunk with such a write refuses to
/// be reset.
#[derive(Debug)]
pub struct FileMedia {
    device: FileDevice,
    shard: u32,
    offset: u64,
    plain: RingFile,
    durable: RingFile,
    admission: Admission,
}

impl FileMedia {
    fn byte_offset(&self, chunk: ChunkId, sector: u32) -> u64 {
        let geometry = self.geometry();
        self.offset
            + u64::from(chunk.0) * geometry.chunk_bytes()
            + u64::from(sector) * u64::from(geometry.sector_bytes)
    }

    /// A write from its admission to its completion; returns where it went.
    async fn place(
        &self,
        operation: &'static str,
        chunk: ChunkId,
        sector: Option<u32>,
        buf: AlignedBuf,
        durability: Durability,
    ) -> (Result<u32, MediaError>, AlignedBuf) {
        let start = match self.admission.write(operation, chunk, sector, buf.len()) {
            Ok((start, _)) => start,
            Err(error) => return (Err(error), buf),
        };
        let (part, at) = (0..buf.len(), self.byte_offset(chunk, start));
        let file = match durability {
            Durability::Volatile => &self.plain,
            Durability::Durable => &self.durable,
        };
        let write = file.write_whole(buf, part, at, self.geometry().sector_bytes);
        let (result, buf) = match durability {
            Durability::Volatile => write.await,
            Durability::Durable => {
                self.device.shared.barrier.depends_on(write, |(result, _)| result.is_err()).await
            }
        };
        self.admission.table().end_write(chunk);
        let failed = |source| MediaError::Io { operation, chunk, sector: start, source };
        (result.map(|()| start).map_err(failed), buf)
    }
}

impl Media for FileMedia {
    admitted_media!();

    async fn read(
        &self,
        chunk: ChunkId,
        sector: u32,
        buf: AlignedBuf,
    ) -> (Result<(), MediaError>, AlignedBuf) {
        if let Err(error) = self.admission.read(chunk, sector, buf.len()) {
            return (Err(error), buf);
        }
        let (part, at) = (0..buf.len(), self.byte_offset(chunk, sector));
        let (result, buf) = self.plain.read_whole(buf, part, at, self.geometry().sector_bytes).await;
        let result = result.map_err(|source| MediaError::Io { operation: "read", chunk, sector, source });
        (result, buf)
    }

    async fn reset(&self, chunk: ChunkId) -> Result<(), MediaError> {
        self.admission.reset(chunk)?;
        self.admission.table().end_reset(chunk, true);
        Ok(())
    }

    async fn finish(&self, chunk: ChunkId) -> Result<(), MediaError> {
        let mut table = self.admission.table();
        table.check_finish(chunk)?;
        table.finish(chunk);
        Ok(())
    }

    async fn flush(&self) -> Result<(), MediaError> {
        self.admission.flush();
        let flush = async {
            if self.device.shared.options.nosync {
                return Ok(());
            }
            let failed = |source| MediaError::Io { operation: "flush", chunk: ChunkId(0), sector: 0, source };
            self.plain.get().map_err(failed)?.sync_data().await.map_err(failed)
        };
        self.device.shared.barrier.flush(flush).await
    }
}

impl Drop for FileMedia {
    fn drop(&mut self) {
        // A write that was dropped may still land: whoever took the slice next would not expect it.
        if self.admission.is_at_rest() {
            self.device.shared.taken[self.shard as usize].store(false, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;
    use crate::format::{FormatOptions, format};

    /// Two slices of one device, and one step on the first whose descriptor the system fails.
    fn flush_of_the_other_slice_after(fail: impl AsyncFnOnce(&mut FileMedia)) -> Result<(), MediaError> {
        // In the build's folder: a system's `/tmp` may be memory, without direct I/O.
        let program = std::env::current_exe().unwrap();
        let folder = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
        let path = folder.path().join("node.terrane");
        let options = FormatOptions {
            cluster: 1,
            node: 1,
            shards: 2,
            size_bytes: 3 << 20,
            chunk_bytes: Some(64 << 10),
            sector_bytes: None,
            force: false,
        };
        format(&path, &options, &mut |_, _| {}).unwrap();
        let device = FileDevice::open(&path).unwrap();
        let (mut first, second) = (device.slice(0).unwrap(), device.slice(1).unwrap());
        let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().build().unwrap();
        runtime.block_on(async {
            second.flush().await.unwrap();
            fail(&mut first).await;
            second.flush().await
        })
    }

    #[test]
    fn a_failed_flush_fails_the_later_flushes_of_every_slice() {
        let other = flush_of_the_other_slice_after(async |slice| {
            // It cannot be synced.
            slice.plain = RingFile::new(File::open("/dev/null").unwrap());
            assert!(slice.flush().await.is_err());
        });
        assert!(matches!(other, Err(MediaError::Io { operation: "flush", .. })), "{other:?}");
    }

    #[test]
    fn a_failed_durable_write_fails_the_later_flushes_of_every_slice() {
        for (durability, fails) in [(Durability::Durable, true), (Durability::Volatile, false)] {
            let other = flush_of_the_other_slice_after(async |slice| {
                // It cannot be written.
                let read_only = || RingFile::new(File::open(slice.device.path()).unwrap());
                (slice.plain, slice.durable) = (read_only(), read_only());
                slice.reset(ChunkId(0)).await.unwrap();
                let buf = AlignedBuf::zeroed(slice.geometry().sector_bytes as usize);
                assert!(slice.write(ChunkId(0), 0, buf, durability).await.0.is_err());
            });
            assert_eq!(other.is_err(), fails, "{other:?}");
        }
    }

    /// Submits an operation, and drops its future before it ends.
    fn begin_and_drop<T>(operation: impl Future<Output = T>) {
        assert!(pin!(operation).poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }

    /// Nobody would ever hear that it failed.
    #[test]
    fn a_dropped_flush_or_durable_write_fails_the_later_flushes_of_every_slice() {
        let other = flush_of_the_other_slice_after(async |slice| begin_and_drop(slice.flush()));
        assert!(matches!(other, Err(MediaError::Io { operation: "flush", .. })), "{other:?}");
        for (durability, fails) in [(Durability::Durable, true), (Durability::Volatile, false)] {
            let other = flush_of_the_other_slice_after(async |slice| {
                slice.reset(ChunkId(0)).await.unwrap();
                let buf = AlignedBuf::zeroed(slice.geometry().sector_bytes as usize);
                begin_and_drop(slice.write(ChunkId(0), 0, buf, durability));
            });
            assert_eq!(other.is_err(), fails, "{durability:?}: {other:?}");
        }
    }

    #[test]
    fn a_flush_that_was_never_begun_fails_nobody() {
        let other = flush_of_the_other_slice_after(async |slice| drop(slice.flush()));
        assert!(other.is_ok(), "{other:?}");
    }
}

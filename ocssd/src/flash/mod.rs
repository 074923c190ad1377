//! An Open-Channel 2.0 device in software, over memory or over a file.
//!
//! It enforces the rules that a real one does, wears out, breaks and loses power like one, and counts what it does, so
//! that the host's duties can be tested without such a device. Source of the rules: "Open-Channel Solid State Drives
//! Specification", revision 2.0, 29 January 2018; codes and layouts as in the public headers of Linux, SPDK and QEMU.
//!
//! ```text
//! FlashDevice (the hardware: Send + Sync; clones share it)
//!   +-- Controller, behind a lock: chunks, wear, chance, notifications, data or the file's records
//!   +-- FlashMedia of slice 0, on shard 0's thread: units 0..n, as a Media
//!   +-- FlashMedia of slice 1, on shard 1's thread: units n..2n
//!   +-- VectorQueue: commands 90 to 93 on physical addresses, for the whole device
//! ```
//!
//! ```
//! use terrane_ocssd::{FlashDevice, FlashOptions, Media};
//!
//! let device = FlashDevice::memory(FlashOptions { seed: 7, ..FlashOptions::default() })?;
//! let (first, second) = (device.slice(0, 2)?, device.slice(1, 2)?);
//! assert_eq!(first.geometry().unit_count() + second.geometry().unit_count(), 4);
//! assert!(device.slice(1, 2).is_err(), "a slice is handed out once at a time");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Where the specification leaves room, or `Media` asks for more, the device does this:
//! - After a failed write (2F0) a chunk takes no more before its next reset, and says that it is closed: all below
//!   the failed unit is programmed and readable. The specification would have the host go on at the next unit.
//! - A flush is a command of its own. Without one, a power cut takes any suffix of a chunk that was not durable.
//! - There is no command that closes a chunk: [`Media::finish`](crate::Media::finish) pads it to its end.
//! - What survives what: an injected power cut is in the file when it returns, and whatever the device acknowledged
//!   outlives the death of the process. If the machine itself loses power, only what a flush or a durable write covered
//!   is sure: of a chunk that was written after that, a write pointer may come back above sectors that never reached
//!   the disk.
//!
//! Invariants:
//! - Device amplification is 1: nothing is programmed that the host did not write or order to be copied.
//! - The same options and the same sequence of operations give the same device, fault for fault.

mod address;
mod chunk;
mod controller;
mod descriptor;
mod image;
mod notification;
mod options;
mod port;
mod power;
mod record;
mod request;
mod slice;
mod status;
mod timing;
mod vector;
mod wear;

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use address::{AddressFormat, Place, Ppa};
pub use controller::FlashCounters;
pub use descriptor::{ChunkDescriptor, DESCRIPTOR_BYTES};
pub use image::FlashFileError;
pub use notification::{NOTIFICATION_BYTES, Notification, NotificationScope};
pub use options::{Endurance, FlashOptions, FlashOptionsError, WearOdds};
pub use record::IMAGE_VERSION;
pub use slice::{FlashMedia, FlashSliceError};
pub use status::Status;
pub use timing::{FlashClock, NandTiming, SleepUntil};
pub use vector::{ADDRESSES_MAX, Completion, VectorQueue, opcode};

use self::chunk::Chunk;
use self::controller::{Controller, Storage};
use self::image::{Image, Opened};
use self::port::{Port, Shared};
use crate::geometry::{ChunkId, Geometry};
use crate::media::{ChunkInfo, Notice, NoticeKind};

/// Flipped in what reads return of a corrupted byte.
const CORRUPT_BIT: u8 = 0x10;

/// An emulated device. A value is a handle: clones share the device. It goes on as long as any handle of it.
///
/// Chunks are numbered over the whole device: `(group * parallel_units + unit) * chunks + chunk`.
#[derive(Debug, Clone)]
pub struct FlashDevice {
    shared: Arc<Shared>,
}

impl FlashDevice {
    /// A new device in memory, with power on. Every chunk is free, but for those that are bad from birth.
    ///
    /// Memory is taken by the chunk when it is first written, and given back when it is erased.
    pub fn memory(options: FlashOptions) -> Result<Self, FlashOptionsError> {
        options.validate()?;
        Ok(Self::of(Arc::new(Shared::new(Controller::in_memory(options)))))
    }

    /// Makes a file that holds a new device, written to its end and durable when this returns. Refuses a path where
    /// anything is. Blocks the calling thread; `progress` is called with bytes written so far and bytes to write in all.
    pub fn create_file(
        path: impl AsRef<Path>,
        options: &FlashOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), FlashFileError> {
        Image::create(path.as_ref(), options, progress)
    }

    /// Opens and locks a file that [`Self::create_file`] made. What was armed, corrupted or made unreadable is not kept
    /// in the file, and reads are counted anew; all else of the device is as it was. Blocks the calling thread.
    pub fn open_file(path: impl AsRef<Path>) -> Result<Self, FlashFileError> {
        Ok(Self::with(Image::open(path.as_ref())?))
    }

    /// The device in a file as it is at this moment, to read from: no lock is taken and nothing is written, so that another
    /// process may be at work on it. Whatever would change it fails.
    pub(crate) fn look_at_file(path: &Path) -> Result<Self, FlashFileError> {
        Ok(Self::with(Image::look(path)?))
    }

    /// Opens and locks a file as [`Self::open_file`] does, but to read from: nothing is written, and whatever would change
    /// the device fails. Since no chunk is written on, all are closed, and hide nothing.
    pub(crate) fn read_file(path: &Path) -> Result<Self, FlashFileError> {
        let mut opened = Image::look_locked(path)?;
        opened.chunks.iter_mut().for_each(Chunk::close);
        Ok(Self::with(opened))
    }

    fn with(opened: Opened) -> Self {
        let storage = Storage::File(opened.image);
        let controller = Controller::new(opened.options, opened.chunks, storage, opened.state);
        Self::of(Arc::new(Shared::new(controller)))
    }

    /// Whether the file begins like one that [`Self::create_file`] made, whatever its state. Opens it for reading only.
    pub fn is_in_file(path: impl AsRef<Path>) -> io::Result<bool> {
        Image::is_one(path.as_ref())
    }

    fn of(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// What the device is.
    pub fn options(&self) -> FlashOptions {
        self.shared.controller().options.clone()
    }

    /// The shape of the whole device.
    pub fn geometry(&self) -> &Geometry {
        &self.shared.geometry
    }

    /// Where its file is; `None`: in memory.
    pub fn path(&self) -> Option<PathBuf> {
        match &self.shared.controller().storage {
            Storage::Memory(_) => None,
            Storage::File(image) => Some(image.path.clone()),
        }
    }

    /// How addresses of the device are built.
    pub fn address_format(&self) -> AddressFormat {
        self.shared.controller().format
    }

    /// The share of one of `shards` shards: equally many whole parallel units for each, one after the other. It is given
    /// back when the last handle of it is dropped, or when a new life of the device begins. Call it on the shard's own
    /// thread.
    pub fn slice(&self, shard: u32, shards: u32) -> Result<FlashMedia, FlashSliceError> {
        FlashMedia::open(&self.shared, shard, shards)
    }

    /// A queue for vector commands, for the calling thread.
    pub fn vector_queue(&self) -> io::Result<VectorQueue> {
        Port::open(&self.shared).map(VectorQueue::new)
    }

    /// State of every chunk of the device, ordered by number.
    pub fn report(&self) -> Vec<ChunkInfo> {
        self.shared.controller().report(&(0..self.shared.geometry.unit_count()))
    }

    /// The chunk information log of some chunks.
    ///
    /// # Panics
    /// If the device has fewer chunks.
    pub fn descriptors(&self, chunks: Range<u32>) -> Vec<ChunkDescriptor> {
        let controller = self.shared.controller();
        chunks.map(|index| controller.descriptor(index)).collect()
    }

    /// Entries of the notification log with a higher count than `seen`, oldest first.
    pub fn notifications(&self, seen: u64) -> Vec<Notification> {
        self.shared.controller().log.since(seen).copied().collect()
    }

    /// What the device did since it was made or opened.
    pub fn counters(&self) -> FlashCounters {
        self.shared.controller().counters
    }

    /// Operations submitted so far in all lives of the device that broke no rule: writes, appends, reads, resets and
    /// flushes. A finish counts as the writes it consists of.
    pub fn operations(&self) -> u64 {
        self.shared.controller().operations
    }

    /// Cuts the power at the `n`-th operation from now, counted from 1: by the seed either before that operation has
    /// any effect, or in the middle of it. Replaces an earlier call.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn crash_after(&self, n: u64) {
        assert!(n > 0, "operations are counted from 1");
        let mut controller = self.shared.controller();
        controller.cut_at = Some(controller.operations + n);
    }

    /// Cuts the power now. Every operation in flight, and every later one, fails with
    /// [`MediaError::PowerLost`](crate::MediaError::PowerLost) until [`Self::power_on`].
    pub fn power_cut(&self) {
        self.shared.controller().cut();
        self.shared.wake_waiting();
    }

    /// Whether the device has power.
    pub fn has_power(&self) -> bool {
        self.shared.controller().powered
    }

    /// Brings the device back with whatever survived, cutting the power first if it is on. Handles of slices are dead;
    /// slices are handed out anew. What was armed and a pending [`Self::crash_after`] are disarmed; what is worn, bad,
    /// unreadable or corrupted stays so.
    pub fn power_on(&self) {
        self.shared.controller().power_on();
        self.shared.wake_waiting();
    }

    /// The host's process dies and starts again while the device keeps its power, as after `kill -9`: writes in flight
    /// that reached the device are there, readable and still volatile. Handles of slices are dead, as after
    /// [`Self::power_on`].
    ///
    /// # Panics
    /// If the device has no power.
    pub fn restart(&self) {
        self.shared.controller().restart();
        self.shared.wake_waiting();
    }

    /// One of the units of the next write to this chunk, which one by the seed, fails to be programmed (2F0).
    ///
    /// # Panics
    /// If there is no such chunk. So do the calls that follow.
    pub fn fail_next_write_of(&self, chunk: ChunkId) {
        self.shared.controller().chunks[chunk.0 as usize].armed.write = true;
    }

    /// The device closes the chunk instead of taking its next write (2F1).
    pub fn close_early(&self, chunk: ChunkId) {
        self.shared.controller().chunks[chunk.0 as usize].armed.early_close = true;
    }

    /// The next reset of the chunk fails and takes it offline (2C0).
    pub fn fail_next_reset_of(&self, chunk: ChunkId) {
        self.shared.controller().chunks[chunk.0 as usize].armed.reset = true;
    }

    /// The chunk goes offline for good, now, with a notification.
    pub fn take_offline(&self, chunk: ChunkId) {
        self.shared.controller().take_offline(chunk.0);
        self.shared.wake_waiting();
    }

    /// Every read that touches this sector fails, until its chunk is erased (281).
    ///
    /// # Panics
    /// Also if there is no such sector.
    pub fn fail_reads_of(&self, chunk: ChunkId, sector: u32) {
        assert!(sector < self.shared.geometry.chunk_sectors, "there is no such sector");
        self.shared.controller().chunks[chunk.0 as usize].unreadable.insert(sector);
    }

    /// Damages a byte silently: reads return it with one bit flipped, until its chunk is erased. Twice restores it.
    ///
    /// # Panics
    /// Also if there is no such byte.
    pub fn corrupt(&self, chunk: ChunkId, sector: u32, byte: u32) {
        let geometry = &self.shared.geometry;
        assert!(sector < geometry.chunk_sectors && byte < geometry.sector_bytes, "there is no such byte");
        let mut controller = self.shared.controller();
        *controller.chunks[chunk.0 as usize].flipped.entry((sector, byte)).or_insert(0) ^= CORRUPT_BIT;
    }

    /// The device notices something, and puts it into its log.
    ///
    /// # Panics
    /// Also if there are no such sectors, none, or more than 65,536.
    pub fn notice(&self, notice: Notice) {
        let Notice { chunk, sectors, kind } = notice;
        assert!(chunk.0 < self.shared.geometry.chunk_count(), "there is no such chunk");
        let mut controller = self.shared.controller();
        match sectors {
            None => controller.notify(chunk.0, NotificationScope::Chunk, kind),
            Some((sector, count)) => {
                let end = sector.checked_add(count);
                assert!(end.is_some_and(|end| end <= self.shared.geometry.chunk_sectors), "no such sectors");
                assert!((1..=1 << 16).contains(&count), "an entry covers 1 to 65,536 sectors");
                controller.notify_sectors(chunk.0, sector, count, kind);
            }
        }
    }

    /// The device notices something of a whole parallel unit, counted over all groups.
    ///
    /// # Panics
    /// Also if there is no such unit.
    pub fn notice_of_unit(&self, unit: u32, kind: NoticeKind) {
        let geometry = &self.shared.geometry;
        assert!(unit < geometry.unit_count(), "there is no such unit");
        self.shared.controller().notify(geometry.chunk_of(unit, 0).0, NotificationScope::Unit, kind);
    }
}

//! One shard's share of the device: whole parallel units, as a [`Media`].
//!
//! Invariants:
//! - Slices of one life of the device have no unit in common.
//! - A handle belongs to the life in which it was made, or into which [`FlashMedia::power_on`] or
//!   [`FlashMedia::restart`] took it. Operations of every older one fail with [`MediaError::PowerLost`], so a store that
//!   should be dead cannot write behind its successor's back.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use super::FlashDevice;
use super::controller::{Controller, Share};
use super::notification::{Notification, NotificationScope};
use super::port::{Port, Shared};
use super::request::{Origin, WriteRequest};
use super::status::{Refusal, Rule};
use super::timing::FlashClock;
use crate::buffer::AlignedBuf;
use crate::geometry::{ChunkId, Geometry};
use crate::media::{ChunkInfo, ChunkState, Durability, Media, MediaCounters, MediaError, Notice};

/// Bytes of one write of padding, where the best write is no larger.
const PADDING_BYTES: u32 = 256 << 10;

/// Why a slice was not handed out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlashSliceError {
    /// There is no such shard.
    #[error("there is no slice {shard} of {shards}")]
    NoSuchSlice {
        /// The shard asked for.
        shard: u32,
        /// Slices that the device is to be divided into.
        shards: u32,
    },
    /// The parallel units cannot be divided evenly.
    #[error(
        "{units} parallel units cannot be divided among {shards} shards: each shard needs as many whole units"
    )]
    Indivisible {
        /// Parallel units of the device.
        units: u32,
        /// Slices that the device is to be divided into.
        shards: u32,
    },
    /// The device allows fewer open chunks than there are shards.
    #[error("the device allows {max_open} open chunks, too few for {shards} shards")]
    TooFewOpen {
        /// Chunks that may be open at once.
        max_open: u32,
        /// Slices that the device is to be divided into.
        shards: u32,
    },
    /// Some of the slice's parallel units were handed out already and not given back.
    #[error("the slice of shard {shard} is open already, or shares parallel units with one that is")]
    InUse {
        /// The shard asked for.
        shard: u32,
    },
    /// The device has no power.
    #[error("the device has no power")]
    NoPower,
    /// The operating system refused another descriptor.
    #[error("cannot duplicate the descriptor of the device's file: {0}")]
    Io(#[from] io::Error),
}

/// One slice of a [`FlashDevice`]. A value is a handle: clones share the slice. On a device in a file its operations
/// must be awaited within a monoio runtime with io_uring; elsewhere they panic.
#[derive(Debug)]
pub struct FlashMedia {
    port: Port,
    share: Share,
    geometry: Geometry,
    tenancy: RefCell<Rc<Tenancy>>,
}

/// A slice in one life of the device, given back when its last handle is dropped.
#[derive(Debug)]
struct Tenancy {
    shared: Arc<Shared>,
    token: u64,
    life: u64,
    counters: Cell<MediaCounters>,
    /// The newest notification that the host took.
    seen: Cell<u64>,
}

impl Drop for Tenancy {
    fn drop(&mut self) {
        for tenant in &mut self.shared.controller().tenants {
            if *tenant == self.token {
                *tenant = 0;
            }
        }
    }
}

impl Clone for FlashMedia {
    fn clone(&self) -> Self {
        Self {
            port: self.port.clone(),
            share: self.share.clone(),
            geometry: self.geometry,
            tenancy: RefCell::new(self.tenancy()),
        }
    }
}

/// The share of one shard, and its shape.
fn divide(
    geometry: &Geometry,
    max_open_per_unit: u32,
    shard: u32,
    shards: u32,
) -> Result<(Share, Geometry), FlashSliceError> {
    if shard >= shards {
        return Err(FlashSliceError::NoSuchSlice { shard, shards });
    }
    let units = geometry.unit_count();
    if !units.is_multiple_of(shards) {
        return Err(FlashSliceError::Indivisible { units, shards });
    }
    let each = units / shards;
    let by_unit = max_open_per_unit.saturating_mul(each);
    let max_open = match (geometry.max_open, by_unit) {
        (0, by_unit) => by_unit,
        (max_open, _) if max_open < shards => return Err(FlashSliceError::TooFewOpen { max_open, shards }),
        (max_open, 0) => max_open / shards,
        (max_open, by_unit) => by_unit.min(max_open / shards),
    };
    // Whole groups where it comes to that; else the units count as those of one group.
    let per_group = if each.is_multiple_of(geometry.parallel_units) { geometry.parallel_units } else { each };
    let share = Share { units: shard * each..(shard + 1) * each, max_open };
    let shape = Geometry { groups: each / per_group, parallel_units: per_group, max_open, ..*geometry };
    Ok((share, shape))
}

/// Gives units that nobody has to a new tenant.
fn claim(shared: &Arc<Shared>, controller: &mut Controller, share: &Share, seen: u64) -> Option<Rc<Tenancy>> {
    let token = controller.tenant_last + 1;
    let life = controller.life;
    let units = &mut controller.tenants[share.units.start as usize..share.units.end as usize];
    if units.iter().any(|tenant| *tenant != 0) {
        return None;
    }
    units.fill(token);
    controller.tenant_last = token;
    let (counters, seen) = (Cell::default(), Cell::new(seen));
    Some(Rc::new(Tenancy { shared: Arc::clone(shared), token, life, counters, seen }))
}

impl FlashMedia {
    pub(super) fn open(shared: &Arc<Shared>, shard: u32, shards: u32) -> Result<Self, FlashSliceError> {
        let per_unit = shared.controller().options.max_open_per_unit;
        let (share, geometry) = divide(&shared.geometry, per_unit, shard, shards)?;
        let port = Port::open(shared)?;
        let mut controller = shared.controller();
        if !controller.powered {
            return Err(FlashSliceError::NoPower);
        }
        let claimed = claim(shared, &mut controller, &share, 0);
        drop(controller);
        let tenancy = claimed.ok_or(FlashSliceError::InUse { shard })?;
        Ok(Self { port, share, geometry, tenancy: RefCell::new(tenancy) })
    }

    /// The handle with a clock, so that operations take the device's time (see
    /// [`FlashOptions::timing`](super::FlashOptions::timing)). Clones made from then on have it too.
    pub fn with_clock(mut self, clock: FlashClock) -> Self {
        self.port.clock = Some(clock);
        self
    }

    /// The device that this is a slice of.
    pub fn device(&self) -> FlashDevice {
        FlashDevice::of(Arc::clone(&self.port.shared))
    }

    /// The device's number of one of the slice's chunks.
    ///
    /// # Panics
    /// If the slice has no such chunk.
    pub fn on_device(&self, chunk: ChunkId) -> ChunkId {
        assert!(chunk.0 < self.geometry.chunk_count(), "the slice has no {chunk:?}");
        ChunkId(self.share.units.start * self.geometry.chunks + chunk.0)
    }

    /// Chunks of one parallel unit that may be open at once (`maxocpu`); 0: no limit.
    pub fn max_open_per_unit(&self) -> u32 {
        self.port.controller().options.max_open_per_unit
    }

    /// As [`FlashDevice::operations`].
    pub fn operations(&self) -> u64 {
        self.device().operations()
    }

    /// As [`FlashDevice::crash_after`].
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn crash_after(&self, n: u64) {
        self.device().crash_after(n);
    }

    /// As [`FlashDevice::power_cut`].
    pub fn power_cut(&self) {
        self.device().power_cut();
    }

    /// As [`FlashDevice::has_power`].
    pub fn has_power(&self) -> bool {
        self.device().has_power()
    }

    /// As [`FlashDevice::power_on`], and takes this handle into the new life, with counters at zero. Handles of other
    /// slices, and older clones of this one, stay behind.
    pub fn power_on(&self) {
        self.go_on(Controller::power_on);
    }

    /// As [`FlashDevice::restart`], and takes this handle into the new life, like [`Self::power_on`].
    ///
    /// # Panics
    /// If the device has no power.
    pub fn restart(&self) {
        self.go_on(Controller::restart);
    }

    fn go_on(&self, begin_life: impl FnOnce(&mut Controller)) {
        let shared = &self.port.shared;
        let mut controller = shared.controller();
        begin_life(&mut controller);
        let seen = self.tenancy().seen.get();
        let claimed = claim(shared, &mut controller, &self.share, seen);
        drop(controller);
        shared.wake_waiting();
        // The old tenancy locks the controller when it goes, which is free again.
        self.tenancy.replace(claimed.expect("a life begins without tenants"));
    }

    /// As [`FlashDevice::fail_next_write_of`], of a chunk of the slice.
    ///
    /// # Panics
    /// If there is no such chunk. So do the calls that follow.
    pub fn fail_next_write_of(&self, chunk: ChunkId) {
        self.device().fail_next_write_of(self.on_device(chunk));
    }

    /// As [`FlashDevice::close_early`], of a chunk of the slice.
    pub fn close_early(&self, chunk: ChunkId) {
        self.device().close_early(self.on_device(chunk));
    }

    /// As [`FlashDevice::fail_next_reset_of`], of a chunk of the slice.
    pub fn fail_next_reset_of(&self, chunk: ChunkId) {
        self.device().fail_next_reset_of(self.on_device(chunk));
    }

    /// As [`FlashDevice::take_offline`], of a chunk of the slice.
    pub fn take_offline(&self, chunk: ChunkId) {
        self.device().take_offline(self.on_device(chunk));
    }

    /// As [`FlashDevice::fail_reads_of`], of a chunk of the slice.
    pub fn fail_reads_of(&self, chunk: ChunkId, sector: u32) {
        self.device().fail_reads_of(self.on_device(chunk), sector);
    }

    /// As [`FlashDevice::corrupt`], of a chunk of the slice.
    pub fn corrupt(&self, chunk: ChunkId, sector: u32, byte: u32) {
        self.device().corrupt(self.on_device(chunk), sector, byte);
    }

    /// As [`FlashDevice::notice`], of a chunk of the slice.
    pub fn notice(&self, notice: Notice) {
        self.device().notice(Notice { chunk: self.on_device(notice.chunk), ..notice });
    }

    fn tenancy(&self) -> Rc<Tenancy> {
        Rc::clone(&self.tenancy.borrow())
    }

    fn locate(&self, chunk: ChunkId) -> Result<u32, Refusal> {
        if chunk.0 < self.geometry.chunk_count() {
            Ok(self.on_device(chunk).0)
        } else {
            Err(Rule::NO_SUCH_CHUNK.into())
        }
    }

    /// A write from its submission to its completion; returns where it went.
    async fn place(
        &self,
        chunk: ChunkId,
        sector: Option<u32>,
        buf: AlignedBuf,
        durability: Durability,
        origin: Origin,
    ) -> (Result<u32, Refusal>, AlignedBuf) {
        let tenancy = self.tenancy();
        let submitted = self.locate(chunk).and_then(|index| {
            let durable = durability == Durability::Durable;
            let request = WriteRequest { chunk: index, sector, durable, origin, share: Some(&self.share) };
            self.port.submit_write(tenancy.life, &request, &buf)
        });
        let ticket = match submitted {
            Ok(ticket) => ticket,
            Err(refusal) => return (Err(refusal), buf),
        };
        tenancy.count(|counters| {
            counters.writes += 1;
            counters.written_bytes += buf.len() as u64;
        });
        let (carried, buf) = self.port.carry(&ticket, buf, 0).await;
        (self.port.end_write(&ticket, carried).await, buf)
    }

    /// Pads an open chunk to its end.
    async fn pad(&self, chunk: ChunkId) -> Result<(), Refusal> {
        let life = self.tenancy().life;
        let index = self.locate(chunk)?;
        let mut at = self.port.controller().check_finish(life, index)?;
        let Geometry { chunk_sectors, sector_bytes, ws_min, ws_opt, .. } = self.geometry;
        let step = ws_opt.max(PADDING_BYTES / sector_bytes / ws_min * ws_min);
        while at < chunk_sectors {
            let sectors = step.min(chunk_sectors - at);
            let zeros = AlignedBuf::zeroed(sectors as usize * sector_bytes as usize);
            let (placed, _) = self.place(chunk, Some(at), zeros, Durability::Volatile, Origin::Padding).await;
            placed?;
            at += sectors;
        }
        Ok(())
    }

    async fn erase(&self, chunk: ChunkId) -> Result<(), Refusal> {
        let tenancy = self.tenancy();
        let index = self.locate(chunk)?;
        let (state, reset_free, reset_open) = {
            let controller = self.port.controller();
            (controller.state_of(index), controller.options.reset_free, controller.options.reset_open)
        };
        match state {
            Some(ChunkState::Free) if !reset_free => {
                // Free is what it shall be.
                return self.port.controller().check_life(tenancy.life);
            }
            Some(ChunkState::Open) if !reset_open => match self.pad(chunk).await {
                // Closed before its end, it can be reset as well.
                Ok(()) | Err(Refusal::WriteFailed { .. } | Refusal::ClosedEarly { .. }) => {}
                Err(refusal) => return Err(refusal),
            },
            _ => {}
        }
        let ticket = self.port.submit_reset(tenancy.life, index)?;
        tenancy.count(|counters| counters.resets += 1);
        self.port.end_reset(&ticket).await
    }

    /// What an entry of the device's log says of this slice's chunks.
    fn notices_of(&self, entry: &Notification, notices: &mut Vec<Notice>) {
        let controller = self.port.controller();
        let Some(place) = controller.format.unpack(entry.address) else {
            return;
        };
        let index = controller.format.chunk_index(place);
        let chunks = self.geometry.chunks;
        let first = self.share.units.start * chunks;
        let kind = entry.kind;
        let (range, sectors) = match entry.scope {
            NotificationScope::Sectors(count) => (index..index + 1, Some((place.sector, count))),
            NotificationScope::Chunk => (index..index + 1, None),
            NotificationScope::Unit => (index / chunks * chunks..(index / chunks + 1) * chunks, None),
        };
        let mine = range.filter(|index| (first..first + self.geometry.chunk_count()).contains(index));
        notices.extend(mine.map(|index| Notice { chunk: ChunkId(index - first), sectors, kind }));
    }
}

impl Tenancy {
    fn count(&self, change: impl FnOnce(&mut MediaCounters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }
}

impl Media for FlashMedia {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    async fn report(&self) -> Result<Vec<ChunkInfo>, MediaError> {
        let controller = self.port.controller();
        controller
            .check_life(self.tenancy().life)
            .map_err(|refusal| refusal.into_media("report", ChunkId(0), 0))?;
        Ok(controller.report(&self.share.units))
    }

    async fn write(
        &self,
        chunk: ChunkId,
        sector: u32,
        buf: AlignedBuf,
        durability: Durability,
    ) -> (Result<(), MediaError>, AlignedBuf) {
        let (placed, buf) = self.place(chunk, Some(sector), buf, durability, Origin::Host).await;
        (placed.map(drop).map_err(|refusal| refusal.into_media("write", chunk, sector)), buf)
    }

    async fn append(
        &self,
        chunk: ChunkId,
        buf: AlignedBuf,
        durability: Durability,
    ) -> (Result<u32, MediaError>, AlignedBuf) {
        let (placed, buf) = self.place(chunk, None, buf, durability, Origin::Host).await;
        (placed.map_err(|refusal| refusal.into_media("append", chunk, 0)), buf)
    }

    async fn read(
        &self,
        chunk: ChunkId,
        sector: u32,
        buf: AlignedBuf,
    ) -> (Result<(), MediaError>, AlignedBuf) {
        let tenancy = self.tenancy();
        let submitted = self
            .locate(chunk)
            .and_then(|index| self.port.submit_read(tenancy.life, index, sector, buf.len()));
        let ticket = match submitted {
            Ok(ticket) => ticket,
            Err(refusal) => return (Err(refusal.into_media("read", chunk, sector)), buf),
        };
        tenancy.count(|counters| {
            counters.reads += 1;
            counters.read_bytes += buf.len() as u64;
        });
        let part = 0..buf.len();
        let (result, buf) = self.port.end_read(&ticket, buf, part).await;
        (result.map_err(|refusal| refusal.into_media("read", chunk, sector)), buf)
    }

    fn protects_buffer(&self) -> bool {
        self.geometry.mw_cunits == 0 || self.port.controller().options.protected_buffer
    }

    fn take_notices(&self) -> Vec<Notice> {
        let tenancy = self.tenancy();
        let entries: Vec<Notification> =
            self.port.controller().log.since(tenancy.seen.get()).copied().collect();
        let mut notices = Vec::new();
        for entry in &entries {
            tenancy.seen.set(entry.count);
            self.notices_of(entry, &mut notices);
        }
        notices
    }

    async fn reset(&self, chunk: ChunkId) -> Result<(), MediaError> {
        self.erase(chunk).await.map_err(|refusal| refusal.into_media("reset", chunk, 0))
    }

    async fn finish(&self, chunk: ChunkId) -> Result<(), MediaError> {
        self.pad(chunk).await.map_err(|refusal| refusal.into_media("finish", chunk, 0))
    }

    async fn flush(&self) -> Result<(), MediaError> {
        let tenancy = self.tenancy();
        tenancy.count(|counters| counters.flushes += 1);
        let flushed = self.port.flush(tenancy.life, &self.share.units).await;
        flushed.map_err(|refusal| refusal.into_media("flush", ChunkId(0), 0))
    }

    fn counters(&self) -> MediaCounters {
        self.tenancy().counters.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry() -> Geometry {
        Geometry {
            groups: 2,
            parallel_units: 4,
            chunks: 3,
            chunk_sectors: 8,
            sector_bytes: 4096,
            ws_min: 1,
            ws_opt: 1,
            mw_cunits: 0,
            max_open: 0,
        }
    }

    #[test]
    fn shares_are_whole_units() {
        // (shards) -> (groups, parallel units) of each share
        for (shards, shape) in [(1, (2, 4)), (2, (1, 4)), (4, (1, 2)), (8, (1, 1))] {
            let mut next = 0;
            for shard in 0..shards {
                let (share, of_share) = divide(&geometry(), 0, shard, shards).unwrap();
                assert_eq!((of_share.groups, of_share.parallel_units), shape);
                assert_eq!(of_share.unit_count(), share.units.len() as u32);
                assert_eq!(share.units.start, next);
                next = share.units.end;
            }
            assert_eq!(next, 8);
        }
        assert!(matches!(divide(&geometry(), 0, 2, 2), Err(FlashSliceError::NoSuchSlice { .. })));
        assert!(matches!(divide(&geometry(), 0, 0, 0), Err(FlashSliceError::NoSuchSlice { .. })));
        assert!(matches!(divide(&geometry(), 0, 0, 3), Err(FlashSliceError::Indivisible { .. })));
    }

    #[test]
    fn open_chunks_are_shared_out() {
        let limited = Geometry { max_open: 10, ..geometry() };
        let max_open = |geometry: &Geometry, per_unit, shards| {
            divide(geometry, per_unit, 0, shards).map(|(share, _)| share.max_open)
        };
        assert_eq!(max_open(&geometry(), 0, 2).unwrap(), 0);
        assert_eq!(max_open(&geometry(), 3, 2).unwrap(), 12);
        assert_eq!(max_open(&limited, 0, 4).unwrap(), 2);
        assert_eq!(max_open(&limited, 1, 2).unwrap(), 4);
        assert_eq!(max_open(&limited, 8, 2).unwrap(), 5);
        let few = Geometry { max_open: 3, ..geometry() };
        assert!(matches!(max_open(&few, 0, 4), Err(FlashSliceError::TooFewOpen { .. })));
    }
}

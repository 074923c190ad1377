//! The zones of one slice as a medium.
//!
//! Invariants:
//! - The chunk table counts writes when they are submitted; [`ChunkOrder`] brings them to the device in that order.
//! - A chunk whose write failed is closed where its good content ends, and its zone is finished, so that it holds no open
//!   resource. What waited behind the failed write fails with it.
//! - Once a flush failed, or was dropped before it ended, every later flush fails, of every slice of the device: they
//!   share its cache. A durable write counts as a flush where it is one because the kernel flushes behind it, unless it
//!   failed and the write pointer shows that it never came to the flush.
//! - What was dropped in flight may still come to the device. Its chunk is never used again, its slice is not given to
//!   anybody else, and the device stays locked as long.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;

use super::ZonedSlice;
use super::transport::{Stopped, Transport};
use super::zones::ZonedShape;
use crate::admission::{Admission, admitted_media};
use crate::barrier::Barrier;
use crate::buffer::AlignedBuf;
use crate::chunk_order::{Broken, ChunkOrder, Passage, Sharing};
use crate::chunk_table::ChunkTable;
use crate::claims::Claim;
use crate::geometry::{ChunkId, Geometry};
use crate::lock::DeviceLock;
use crate::media::{ChunkInfo, ChunkState, Durability, Media, MediaCounters, MediaError, Notice, NoticeKind};
use crate::nvme::identify::{Zone, ZoneCondition};
use crate::nvme::status::Fault;

/// One slice of a [`ZonedDevice`](super::ZonedDevice): its zones are the chunks. Operations must be awaited within
/// a monoio runtime with io_uring; elsewhere they panic.
///
/// A write, reset or finish that is dropped in flight leaves its chunk unusable until the device is opened again: nobody
/// knows where its write pointer will stand.
#[derive(Debug)]
pub struct ZonedMedia {
    admission: Admission,
    first_zone: u32,
    zone_sectors: u64,
    order: ChunkOrder,
    transport: Transport,
    notices: RefCell<Vec<Notice>>,
    barrier: Arc<Barrier>,
    /// Gone only in tests without a device.
    owned: Option<Owned>,
}

/// What a slice keeps of its device: the claim, and the device's lock as long as something may be written.
#[derive(Debug)]
pub(super) struct Owned {
    pub(super) claim: Claim,
    pub(super) lock: Arc<DeviceLock>,
}

/// What a write came to.
struct Written {
    /// Where it went.
    result: Result<u32, MediaError>,
    buf: AlignedBuf,
    /// It failed, and may have been in its zone by then: what failed was perhaps what came behind it.
    may_be_there: bool,
}

impl ZonedMedia {
    /// `zones`: what the device says of each zone of the slice, in order.
    pub(super) fn new(
        transport: Transport,
        shape: &ZonedShape,
        slice: ZonedSlice,
        zones: &[Zone],
        barrier: Arc<Barrier>,
        owned: Option<Owned>,
    ) -> Result<Self, &'static str> {
        if zones.len() != slice.zones as usize {
            return Err("the device reports fewer zones than it has");
        }
        let geometry = shape.geometry(slice.zones, slice.max_open);
        let mut table = ChunkTable::all_free(geometry);
        let order = ChunkOrder::strict(slice.zones);
        for (index, zone) in (0..).zip(zones) {
            let (state, write_pointer) = shape.chunk(slice.first_zone + index, zone)?;
            table.set(ChunkId(index), state, write_pointer);
            order.starts_at(ChunkId(index), write_pointer);
        }
        Ok(Self {
            admission: Admission::new(geometry, table),
            first_zone: slice.first_zone,
            zone_sectors: shape.zone_sectors,
            order,
            transport,
            notices: RefCell::default(),
            barrier,
            owned,
        })
    }

    /// First sector of the chunk's zone on the device.
    fn zone_start(&self, chunk: ChunkId) -> u64 {
        u64::from(self.first_zone + chunk.0) * self.zone_sectors
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
        let mut passage = self.order.passage(chunk);
        let device_places = sector.is_none() && buf.len() <= self.transport.append_bytes_max();
        let sharing = if device_places { Sharing::Shared } else { Sharing::Alone };
        let (result, buf) = match passage.enter(sharing, start == 0).await {
            Err(broken) => (Err(broken.told(operation, chunk, start)), buf),
            Ok(()) => {
                let place = if device_places { None } else { Some(start) };
                let write = self.write_within(&mut passage, operation, chunk, place, buf, durability);
                let flushes =
                    durability == Durability::Durable && self.transport.flushes_behind_durable_writes();
                let written = match flushes {
                    true => self.barrier.depends_on(write, |written| written.may_be_there).await,
                    false => write.await,
                };
                (written.result, written.buf)
            }
        };
        self.admission.table().end_write(chunk);
        passage.leave();
        (result, buf)
    }

    /// A write whose turn it is, at `place` of its chunk (`None`: where the device chooses).
    async fn write_within(
        &self,
        passage: &mut Passage<'_>,
        operation: &'static str,
        chunk: ChunkId,
        place: Option<u32>,
        buf: AlignedBuf,
        durability: Durability,
    ) -> Written {
        let sectors = (buf.len() / self.geometry().sector_bytes as usize) as u32;
        let (written, buf) = match place {
            None => self.append_to_zone(chunk, sectors, buf, durability).await,
            Some(start) => self.write_to_zone(chunk, start, buf, durability).await,
        };
        match written {
            Ok(at) => {
                passage.acknowledge(at + sectors);
                Written { result: Ok(at), buf, may_be_there: false }
            }
            Err(stopped) => {
                let good = place.map(|start| start + stopped.sectors);
                let (error, may_be_there) =
                    self.write_failed(passage, operation, chunk, good, stopped.fault).await;
                Written { result: Err(error), buf, may_be_there }
            }
        }
    }

    async fn write_to_zone(
        &self,
        chunk: ChunkId,
        start: u32,
        buf: AlignedBuf,
        durability: Durability,
    ) -> (Result<u32, Stopped>, AlignedBuf) {
        let at = self.zone_start(chunk) + u64::from(start);
        let (result, buf) = self.transport.write(at, buf, durability).await;
        (result.map(|()| start), buf)
    }

    async fn append_to_zone(
        &self,
        chunk: ChunkId,
        sectors: u32,
        buf: AlignedBuf,
        durability: Durability,
    ) -> (Result<u32, Stopped>, AlignedBuf) {
        let (result, buf) = self.transport.append(self.zone_start(chunk), buf, durability).await;
        let result = result.and_then(|at| {
            let within = at.checked_sub(self.zone_start(chunk)).and_then(|sector| u32::try_from(sector).ok());
            let last_start = self.geometry().chunk_sectors - sectors;
            within.filter(|sector| *sector <= last_start).ok_or_else(|| {
                Fault::Io(io::Error::other(format!("the device says that it appended at its sector {at}")))
            })
        });
        (result.map_err(|fault| Stopped { sectors: 0, fault }), buf)
    }

    /// Closes a chunk whose write failed: once nothing else is in flight in it, everything below `good` (`None`: below
    /// the highest append that completed well) counts, and nothing above. Returns whether the write may be there all the
    /// same, for all that the device says.
    async fn write_failed(
        &self,
        passage: &mut Passage<'_>,
        operation: &'static str,
        chunk: ChunkId,
        good: Option<u32>,
        fault: Fault,
    ) -> (MediaError, bool) {
        passage.stay_alone().await;
        if let Some(broken) = passage.broken() {
            // Another that failed beside this one has cleaned up.
            return (broken.told(operation, chunk, passage.acknowledged()), true);
        }
        let good = good.unwrap_or_else(|| passage.acknowledged());
        let zone = self.zone_start(chunk);
        let found = self.transport.look(zone).await.ok();
        let condition = found.map(|found| found.condition);
        let moved = found.is_some_and(|found| found.write_pointer > zone + u64::from(good));
        let may_be_there = !found.is_some_and(|found| {
            let says_where = found.condition == ZoneCondition::Empty || holds_resources(found.condition);
            says_where && found.write_pointer == zone + u64::from(good)
        });
        let fault = match (fault, condition) {
            (_, Some(ZoneCondition::Offline)) => Fault::Offline,
            // The block device has one error for nearly everything.
            (Fault::Io(_), Some(ZoneCondition::ReadOnly | ZoneCondition::Full)) => Fault::Closed,
            // The device went over the sectors and did not say that they are there: so they are not. (The kernel tries a
            // failed write again by itself, and then hears only that it is not at the write pointer.)
            (Fault::Io(_), Some(_)) if moved => Fault::WriteFailed,
            (fault, _) => fault,
        };
        let programming = matches!(fault, Fault::WriteFailed);
        let mut state = ChunkState::Closed;
        match condition {
            Some(ZoneCondition::Empty) if !programming && good == 0 => state = ChunkState::Free,
            Some(condition) if !holds_resources(condition) => {}
            // It frees the open resource, which a zone that cannot be looked at may have as well. If it fails, so will the
            // host's reset, which judges the zone.
            _ => drop(self.transport.finish(zone).await),
        }
        passage.break_off(good, programming);
        if matches!(fault, Fault::Offline) {
            self.lose(chunk);
        } else {
            self.admission.table().set(chunk, state, good);
        }
        (fault.at(operation, chunk, good), may_be_there)
    }

    /// The device says that the zone is offline.
    fn lose(&self, chunk: ChunkId) {
        self.admission.table().set(chunk, ChunkState::Offline, 0);
        let notice = Notice { chunk, sectors: None, kind: NoticeKind::Offline };
        self.notices.borrow_mut().push(notice);
    }

    /// What a failure that is no write's means, and what follows from it.
    fn failed(&self, fault: Fault, operation: &'static str, chunk: ChunkId, sector: u32) -> MediaError {
        if matches!(fault, Fault::Offline) {
            self.lose(chunk);
        }
        fault.at(operation, chunk, sector)
    }
}

/// Whether a zone has one of the resources that the device has few of: it can be written on, and has been.
fn holds_resources(condition: ZoneCondition) -> bool {
    matches!(condition, ZoneCondition::ImplicitlyOpen | ZoneCondition::ExplicitlyOpen | ZoneCondition::Closed)
}

impl Media for ZonedMedia {
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
        let at = self.zone_start(chunk) + u64::from(sector);
        let (result, buf) = self.transport.read(at, buf).await;
        let result =
            result.map_err(|stopped| self.failed(stopped.fault, "read", chunk, sector + stopped.sectors));
        (result, buf)
    }

    fn take_notices(&self) -> Vec<Notice> {
        self.notices.take()
    }

    async fn reset(&self, chunk: ChunkId) -> Result<(), MediaError> {
        self.admission.reset(chunk)?;
        let mut passage = self.order.passage(chunk);
        // A finish may be on its way.
        passage.stay_alone().await;
        let result = match passage.broken() {
            // Nobody waits for it any more, and it would come in the chunk's next life.
            Some(broken @ Broken::Dropped) => Err(broken.told("reset", chunk, 0)),
            _ => {
                let result = self.transport.reset(self.zone_start(chunk)).await;
                result.map_err(|fault| self.failed(fault, "reset", chunk, 0))
            }
        };
        self.admission.table().end_reset(chunk, result.is_ok());
        passage.leave();
        result
    }

    async fn finish(&self, chunk: ChunkId) -> Result<(), MediaError> {
        let write_pointer = {
            let mut table = self.admission.table();
            table.check_finish(chunk)?;
            // At once, so that no write is admitted while the device is at it.
            table.finish(chunk);
            table.write_pointer(chunk)
        };
        let mut passage = self.order.passage(chunk);
        passage.stay_alone().await;
        let result = self.transport.finish(self.zone_start(chunk)).await;
        passage.leave();
        result.map_err(|fault| {
            if !matches!(fault, Fault::Closed | Fault::Offline) {
                self.admission.table().set(chunk, ChunkState::Open, write_pointer);
            }
            self.failed(fault, "finish", chunk, write_pointer)
        })
    }

    async fn flush(&self) -> Result<(), MediaError> {
        self.admission.flush();
        let failed = |source| MediaError::Io { operation: "flush", chunk: ChunkId(0), sector: 0, source };
        self.barrier.flush(async { self.transport.flush().await.map_err(failed) }).await
    }
}

impl Drop for ZonedMedia {
    fn drop(&mut self) {
        // A finish is in the order of its chunk, but no admission.
        let at_rest = self.admission.is_at_rest() && !self.order.any_dropped();
        if let Some(Owned { mut claim, lock }) = self.owned.take()
            && !at_rest
        {
            // What was dropped may still come to the device: whoever took the slice next would not expect it.
            claim.keep();
            if !self.transport.shares_the_lock() {
                // It is in the reactor's hands, and nobody will hear of its end: not before that of the process.
                std::mem::forget(lock);
            }
        }
    }
}

#[cfg(test)]
#[path = "media_tests.rs"]
mod tests;

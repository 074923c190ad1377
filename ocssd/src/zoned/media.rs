//! The zones of one slice as a medium.
//!
//! Invariants:
//! - The chunk table counts writes when they are submitted; [`ChunkOrder`] brings them to the device in that order.
//! - A chunk whose write failed is closed where its good content ends, and its zone is finished, so that it holds no open
//!   resource. What waited behind the failed write fails with it.
//! - Once a flush failed, or a durable write through the kernel's block device, every later flush fails, of every slice of
//!   the device: they share its cache.

use std::cell::{Cell, RefCell};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::transport::{Stopped, Transport};
use super::zones::ZonedShape;
use super::{ZonedDevice, ZonedSlice};
use crate::buffer::AlignedBuf;
use crate::chunk_order::{ChunkOrder, Passage, Sharing};
use crate::chunk_table::ChunkTable;
use crate::claims::Claim;
use crate::geometry::{ChunkId, Geometry};
use crate::media::{ChunkInfo, ChunkState, Durability, Media, MediaCounters, MediaError, Notice, NoticeKind};
use crate::nvme::identify::{Zone, ZoneCondition};
use crate::nvme::status::Fault;

/// One slice of a [`ZonedDevice`](super::ZonedDevice): its zones are the chunks. Operations must be awaited within
/// a monoio runtime with io_uring; elsewhere they panic.
///
/// A write that is dropped in flight leaves its chunk unusable until the device is opened again: nobody knows where
/// its write pointer will stand.
#[derive(Debug)]
pub struct ZonedMedia {
    geometry: Geometry,
    first_zone: u32,
    zone_sectors: u64,
    table: RefCell<ChunkTable>,
    order: ChunkOrder,
    transport: Transport,
    notices: RefCell<Vec<Notice>>,
    counters: Cell<MediaCounters>,
    flush_failed: Arc<AtomicBool>,
    /// Gone only in tests without a device.
    owned: Option<Owned>,
}

/// What a slice keeps of its device: the claim, and the device's lock as long as something may be written.
#[derive(Debug)]
pub(super) struct Owned {
    pub(super) claim: Claim,
    pub(super) _device: ZonedDevice,
}

impl ZonedMedia {
    /// `zones`: what the device says of each zone of the slice, in order.
    pub(super) fn new(
        transport: Transport,
        shape: &ZonedShape,
        slice: ZonedSlice,
        zones: &[Zone],
        flush_failed: Arc<AtomicBool>,
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
            geometry,
            first_zone: slice.first_zone,
            zone_sectors: shape.zone_sectors,
            table: RefCell::new(table),
            order,
            transport,
            notices: RefCell::default(),
            counters: Cell::default(),
            flush_failed,
            owned,
        })
    }

    /// First sector of the chunk's zone on the device.
    fn zone_start(&self, chunk: ChunkId) -> u64 {
        u64::from(self.first_zone + chunk.0) * self.zone_sectors
    }

    fn count(&self, change: impl FnOnce(&mut MediaCounters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
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
        let admitted = self.table.borrow_mut().begin_write(operation, chunk, sector, buf.len());
        let (start, sectors) = match admitted {
            Ok(admitted) => admitted,
            Err(error) => return (Err(error), buf),
        };
        let mut passage = self.order.passage(chunk);
        self.count(|counters| {
            counters.writes += 1;
            counters.written_bytes += buf.len() as u64;
        });
        let device_places = sector.is_none() && buf.len() <= self.transport.append_bytes_max();
        let sharing = if device_places { Sharing::Shared } else { Sharing::Alone };
        let (result, buf) = match passage.enter(sharing, start == 0).await {
            Err(broken) => (Err(broken.told(operation, chunk, start)), buf),
            Ok(()) => {
                let (written, buf) = match device_places {
                    true => self.append_to_zone(chunk, sectors, buf, durability).await,
                    false => self.write_to_zone(chunk, start, buf, durability).await,
                };
                match written {
                    Ok(at) => {
                        passage.acknowledge(at + sectors);
                        (Ok(at), buf)
                    }
                    Err(stopped) => {
                        let good = if device_places { None } else { Some(start + stopped.sectors) };
                        let error =
                            self.write_failed(&mut passage, operation, chunk, good, stopped.fault).await;
                        if durability == Durability::Durable
                            && matches!(error, MediaError::Io { .. })
                            && self.transport.flushes_behind_durable_writes()
                        {
                            self.flush_failed.store(true, Ordering::Release);
                        }
                        (Err(error), buf)
                    }
                }
            }
        };
        self.table.borrow_mut().end_write(chunk);
        passage.leave();
        (result, buf)
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
            let last_start = self.geometry.chunk_sectors - sectors;
            within.filter(|sector| *sector <= last_start).ok_or_else(|| {
                Fault::Io(io::Error::other(format!("the device says that it appended at its sector {at}")))
            })
        });
        (result.map_err(|fault| Stopped { sectors: 0, fault }), buf)
    }

    /// Closes a chunk whose write failed: once nothing else is in flight in it, everything below `good` (`None`: below
    /// the highest append that completed well) counts, and nothing above.
    async fn write_failed(
        &self,
        passage: &mut Passage<'_>,
        operation: &'static str,
        chunk: ChunkId,
        good: Option<u32>,
        fault: Fault,
    ) -> MediaError {
        passage.stay_alone().await;
        if let Some(broken) = passage.broken() {
            // Another that failed beside this one has cleaned up.
            return broken.told(operation, chunk, passage.acknowledged());
        }
        let good = good.unwrap_or_else(|| passage.acknowledged());
        let zone = self.zone_start(chunk);
        let found = self.transport.look(zone).await.ok();
        let condition = found.map(|found| found.condition);
        let moved = found.is_some_and(|found| found.write_pointer > zone + u64::from(good));
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
            Some(ZoneCondition::ImplicitlyOpen | ZoneCondition::ExplicitlyOpen | ZoneCondition::Closed) => {
                // It frees the open resource. If it fails, so will the host's reset, which judges the zone.
                let _ = self.transport.finish(zone).await;
            }
            _ => {}
        }
        passage.break_off(good, programming);
        if matches!(fault, Fault::Offline) {
            self.lose(chunk);
        } else {
            self.table.borrow_mut().set(chunk, state, good);
        }
        fault.at(operation, chunk, good)
    }

    /// The device says that the zone is offline.
    fn lose(&self, chunk: ChunkId) {
        self.table.borrow_mut().set(chunk, ChunkState::Offline, 0);
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

impl Media for ZonedMedia {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    async fn report(&self) -> Result<Vec<ChunkInfo>, MediaError> {
        Ok(self.table.borrow().report())
    }

    async fn write(
        &self,
        chunk: ChunkId,
        sector: u32,
        buf: AlignedBuf,
        durability: Durability,
    ) -> (Result<(), MediaError>, AlignedBuf) {
        let (result, buf) = self.place("write", chunk, Some(sector), buf, durability).await;
        (result.map(drop), buf)
    }

    async fn append(
        &self,
        chunk: ChunkId,
        buf: AlignedBuf,
        durability: Durability,
    ) -> (Result<u32, MediaError>, AlignedBuf) {
        self.place("append", chunk, None, buf, durability).await
    }

    async fn read(
        &self,
        chunk: ChunkId,
        sector: u32,
        buf: AlignedBuf,
    ) -> (Result<(), MediaError>, AlignedBuf) {
        let admitted = self.table.borrow_mut().check_read(chunk, sector, buf.len());
        if let Err(error) = admitted {
            return (Err(error), buf);
        }
        self.count(|counters| {
            counters.reads += 1;
            counters.read_bytes += buf.len() as u64;
        });
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
        self.table.borrow_mut().begin_reset(chunk)?;
        self.count(|counters| counters.resets += 1);
        let mut passage = self.order.passage(chunk);
        // A finish may be on its way.
        passage.stay_alone().await;
        let result = self.transport.reset(self.zone_start(chunk)).await;
        self.table.borrow_mut().end_reset(chunk, result.is_ok());
        passage.leave();
        result.map_err(|fault| self.failed(fault, "reset", chunk, 0))
    }

    async fn finish(&self, chunk: ChunkId) -> Result<(), MediaError> {
        let write_pointer = {
            let mut table = self.table.borrow_mut();
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
                self.table.borrow_mut().set(chunk, ChunkState::Open, write_pointer);
            }
            self.failed(fault, "finish", chunk, write_pointer)
        })
    }

    async fn flush(&self) -> Result<(), MediaError> {
        self.count(|counters| counters.flushes += 1);
        let failed = |source| MediaError::Io { operation: "flush", chunk: ChunkId(0), sector: 0, source };
        let lost = || failed(io::Error::other("an earlier flush failed; what it covered may be lost"));
        if self.flush_failed.load(Ordering::Acquire) {
            return Err(lost());
        }
        if let Err(source) = self.transport.flush().await {
            self.flush_failed.store(true, Ordering::Release);
            return Err(failed(source));
        }
        // One of another slice may have failed meanwhile, over the same cache.
        if self.flush_failed.load(Ordering::Acquire) { Err(lost()) } else { Ok(()) }
    }

    fn counters(&self) -> MediaCounters {
        self.counters.get()
    }
}

impl Drop for ZonedMedia {
    fn drop(&mut self) {
        // A write that was dropped may still land: whoever took the slice next would not expect it.
        if self.table.get_mut().has_writes_in_flight()
            && let Some(owned) = &mut self.owned
        {
            owned.claim.keep();
        }
    }
}

#[cfg(test)]
#[path = "media_tests.rs"]
mod tests;

//! Zones in memory that keep the rules of a zoned namespace, complete in any order, and fail when told to: the device
//! against which the order of writes and the handling of failures are tested.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

use super::transport::Stopped;
use crate::buffer::AlignedBuf;
use crate::nvme::identify::{Zone, ZoneCondition};
use crate::nvme::status::{Fault, Status};

/// Bytes of a sector of the fake.
pub(crate) const SECTOR_BYTES: usize = 512;

/// What the next write or append comes to, instead of what it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It goes as it should.
    None,
    /// This status, and the zone's state as it was.
    Status(u16),
    /// The zone changes to this condition before.
    Condition(ZoneCondition),
    /// The device says that it appended elsewhere.
    Lie(u64),
    /// The write pointer moves, and an error without a cause comes back: the device wrote wrongly, or what was done
    /// behind the write failed.
    Lost,
}

/// One zone, with its content.
#[derive(Debug)]
struct FakeZone {
    zone: Zone,
    content: Vec<u8>,
}

/// All zones of the fake, which are one slice.
#[derive(Debug)]
pub(crate) struct FakeZones {
    zones: RefCell<Vec<FakeZone>>,
    zone_sectors: u64,
    rng: RefCell<Pcg64Mcg>,
    yields_max: u32,
    /// In order of the writes' arrival.
    troubles: RefCell<VecDeque<Trouble>>,
    /// The device has a cache and no FUA.
    pub(crate) flushes_behind_durable_writes: Cell<bool>,
    /// It does not say how its zones are.
    pub(crate) is_silent: Cell<bool>,
    /// The most appends that were on their way at once.
    pub(crate) appends_at_once: Cell<u32>,
    appending: Cell<u32>,
    append_sectors_max: u32,
}

impl FakeZones {
    /// Empty zones of `zone_sectors` sectors, three quarters of which can be written.
    pub(crate) fn new(zones: u32, zone_sectors: u64, seed: u64, yields_max: u32) -> Self {
        let zone = |index: u32| {
            let start = u64::from(index) * zone_sectors;
            let capacity = zone_sectors * 3 / 4;
            let condition = ZoneCondition::Empty;
            let zone = Zone { start, capacity, write_pointer: start, condition, sequential: true };
            FakeZone { zone, content: vec![0; capacity as usize * SECTOR_BYTES] }
        };
        Self {
            zones: RefCell::new((0..zones).map(zone).collect()),
            zone_sectors,
            rng: RefCell::new(Pcg64Mcg::seed_from_u64(seed)),
            yields_max,
            troubles: RefCell::default(),
            flushes_behind_durable_writes: Cell::default(),
            is_silent: Cell::default(),
            appends_at_once: Cell::default(),
            appending: Cell::default(),
            append_sectors_max: 4,
        }
    }

    /// The next writes and appends to arrive fail like this, in turn.
    pub(crate) fn trouble(&self, troubles: impl IntoIterator<Item = Trouble>) {
        self.troubles.borrow_mut().extend(troubles);
    }

    /// What the device says of all its zones.
    pub(crate) fn report(&self) -> Vec<Zone> {
        self.zones.borrow().iter().map(|zone| zone.zone).collect()
    }

    /// Changes a zone behind the host's back.
    pub(crate) fn set_condition(&self, zone: usize, condition: ZoneCondition) {
        self.zones.borrow_mut()[zone].zone.condition = condition;
    }

    pub(crate) fn append_bytes_max(&self) -> usize {
        self.append_sectors_max as usize * SECTOR_BYTES
    }

    /// Takes a while, different for each operation: they arrive in any order.
    async fn travel(&self) {
        let yields = self.rng.borrow_mut().random_range(0..=self.yields_max);
        for _ in 0..yields {
            let mut yielded = false;
            std::future::poll_fn(|context| {
                context.waker().wake_by_ref();
                if std::mem::replace(&mut yielded, true) {
                    std::task::Poll::Ready(())
                } else {
                    std::task::Poll::Pending
                }
            })
            .await;
        }
    }

    fn index(&self, sector: u64) -> usize {
        (sector / self.zone_sectors) as usize
    }

    /// A write at `sector`; `None`: an append.
    fn put(&self, zone_start: u64, sector: Option<u64>, bytes: &[u8]) -> Result<u64, Fault> {
        let fault = |status: u16| Fault::of_status(Status::of(status.into()).expect("no success"));
        let mut zones = self.zones.borrow_mut();
        let FakeZone { zone, content } = &mut zones[self.index(zone_start)];
        let trouble = self.troubles.borrow_mut().pop_front().unwrap_or(Trouble::None);
        match trouble {
            Trouble::Status(status) => return Err(fault(status)),
            Trouble::Condition(condition) => zone.condition = condition,
            Trouble::None | Trouble::Lie(_) | Trouble::Lost => {}
        }
        match zone.condition {
            ZoneCondition::Full => return Err(fault(Status::ZONE_FULL)),
            ZoneCondition::ReadOnly => return Err(fault(Status::ZONE_READ_ONLY)),
            ZoneCondition::Offline => return Err(fault(Status::ZONE_OFFLINE)),
            _ => {}
        }
        let at = sector.unwrap_or(zone.write_pointer);
        if at != zone.write_pointer {
            return Err(fault(Status::ZONE_INVALID_WRITE));
        }
        let within = (at - zone.start) as usize * SECTOR_BYTES;
        let Some(place) = content.get_mut(within..within + bytes.len()) else {
            return Err(fault(Status::ZONE_BOUNDARY));
        };
        place.copy_from_slice(bytes);
        zone.write_pointer += (bytes.len() / SECTOR_BYTES) as u64;
        let full = zone.write_pointer == zone.start + zone.capacity;
        zone.condition = if full { ZoneCondition::Full } else { ZoneCondition::ImplicitlyOpen };
        match trouble {
            Trouble::Lie(said) => Ok(said),
            Trouble::Lost => Err(Fault::Io(io::ErrorKind::Other.into())),
            _ => Ok(at),
        }
    }

    pub(crate) async fn write(&self, sector: u64, buf: AlignedBuf) -> (Result<(), Stopped>, AlignedBuf) {
        self.travel().await;
        let result = self.put(sector, Some(sector), &buf).map(drop);
        self.travel().await;
        (result.map_err(|fault| Stopped { sectors: 0, fault }), buf)
    }

    pub(crate) async fn append(&self, zone_start: u64, buf: AlignedBuf) -> (Result<u64, Fault>, AlignedBuf) {
        self.appending.set(self.appending.get() + 1);
        self.appends_at_once.set(self.appends_at_once.get().max(self.appending.get()));
        self.travel().await;
        let result = self.put(zone_start, None, &buf);
        self.travel().await;
        self.appending.set(self.appending.get() - 1);
        (result, buf)
    }

    pub(crate) async fn read(&self, sector: u64, mut buf: AlignedBuf) -> (Result<(), Stopped>, AlignedBuf) {
        self.travel().await;
        let zones = self.zones.borrow();
        let FakeZone { zone, content } = &zones[self.index(sector)];
        if zone.condition == ZoneCondition::Offline {
            let fault = Fault::Offline;
            return (Err(Stopped { sectors: 0, fault }), buf);
        }
        let within = (sector - zone.start) as usize * SECTOR_BYTES;
        let length = buf.len();
        buf.copy_from_slice(&content[within..within + length]);
        (Ok(()), buf)
    }

    pub(crate) async fn reset(&self, zone_start: u64) -> Result<(), Fault> {
        self.travel().await;
        let mut zones = self.zones.borrow_mut();
        let zone = &mut zones[self.index(zone_start)].zone;
        match zone.condition {
            ZoneCondition::ReadOnly => return Err(Fault::Rule("read only")),
            ZoneCondition::Offline => return Err(Fault::Offline),
            _ => {}
        }
        (zone.condition, zone.write_pointer) = (ZoneCondition::Empty, zone.start);
        Ok(())
    }

    pub(crate) async fn finish(&self, zone_start: u64) -> Result<(), Fault> {
        self.travel().await;
        let mut zones = self.zones.borrow_mut();
        let zone = &mut zones[self.index(zone_start)].zone;
        match zone.condition {
            ZoneCondition::ReadOnly => return Err(Fault::Rule("read only")),
            ZoneCondition::Offline => return Err(Fault::Offline),
            _ => {}
        }
        zone.condition = ZoneCondition::Full;
        Ok(())
    }

    pub(crate) async fn look(&self, zone_start: u64) -> Result<Zone, Fault> {
        self.travel().await;
        if self.is_silent.get() {
            return Err(Fault::Io(io::ErrorKind::Other.into()));
        }
        Ok(self.zones.borrow()[self.index(zone_start)].zone)
    }

    pub(crate) async fn flush(&self) -> io::Result<()> {
        self.travel().await;
        Ok(())
    }
}

//! Zones through NVMe passthrough: commands on a ring of our own, awaited, nothing blocks.
//!
//! A zone append carries the zone's start and comes back with the place it got, so several may be in flight in one
//! zone. A write at the pointer goes alone ([`ChunkOrder`](crate::chunk_order)), and what is larger than one command
//! goes part after part.

use std::io;

use super::transport::Stopped;
use crate::buffer::AlignedBuf;
use crate::lock::LockedFile;
use crate::media::Durability;
use crate::nvme::command::{Command, ZoneAction};
use crate::nvme::identify::{ZONE_BYTES, Zone, parse_zones};
use crate::nvme::ring::{DEPTH, Ring};
use crate::nvme::status::Fault;

/// What the commands need to know of the namespace.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Commands {
    pub(crate) nsid: u32,
    pub(crate) sector_bytes: u32,
    /// Most sectors of a read or write.
    pub(crate) transfer_sectors_max: u32,
    /// Most sectors of an append.
    pub(crate) append_sectors_max: u32,
}

/// The zones of one slice.
#[derive(Debug)]
pub(crate) struct RingZones {
    ring: Ring,
    commands: Commands,
}

impl RingZones {
    /// Over a descriptor of the namespace's character device.
    pub(crate) fn new(device: LockedFile, commands: Commands) -> io::Result<Self> {
        Ok(Self { ring: Ring::new(device, DEPTH)?, commands })
    }

    /// Most bytes of an append that the device places.
    pub(crate) fn append_bytes_max(&self) -> usize {
        self.commands.append_sectors_max as usize * self.commands.sector_bytes as usize
    }

    fn sectors(&self, buf: &AlignedBuf) -> u32 {
        (buf.len() / self.commands.sector_bytes as usize) as u32
    }

    /// Writes at the write pointer of a zone.
    pub(crate) async fn write(
        &self,
        sector: u64,
        mut buf: AlignedBuf,
        durability: Durability,
    ) -> (Result<(), Stopped>, AlignedBuf) {
        let Commands { nsid, sector_bytes, transfer_sectors_max, .. } = self.commands;
        let whole = self.sectors(&buf);
        let durable = durability == Durability::Durable;
        let mut done = 0;
        while done < whole {
            let sectors = (whole - done).min(transfer_sectors_max);
            let command = Command::write(nsid, sector + u64::from(done), sectors, sector_bytes, durable);
            let from = done as usize * sector_bytes as usize;
            let result;
            (result, buf) = self.ring.transfer(1, buf, from, |_| command).await;
            if let Err(failed) = result {
                return (Err(Stopped { sectors: done, fault: failed.fault }), buf);
            }
            done += sectors;
        }
        (Ok(()), buf)
    }

    /// Writes where the device chooses in the zone that starts at `zone_start`. Returns the sector of the device.
    pub(crate) async fn append(
        &self,
        zone_start: u64,
        buf: AlignedBuf,
        durability: Durability,
    ) -> (Result<u64, Fault>, AlignedBuf) {
        let Commands { nsid, sector_bytes, .. } = self.commands;
        let durable = durability == Durability::Durable;
        let command = Command::append(nsid, zone_start, self.sectors(&buf), sector_bytes, durable);
        let (result, buf) = self.ring.transfer(1, buf, 0, |_| command).await;
        (result.map_err(|failed| failed.fault), buf)
    }

    /// Reads below the write pointer of a zone.
    pub(crate) async fn read(&self, sector: u64, buf: AlignedBuf) -> (Result<(), Stopped>, AlignedBuf) {
        let Commands { nsid, sector_bytes, transfer_sectors_max, .. } = self.commands;
        let whole = self.sectors(&buf);
        let parts = whole.div_ceil(transfer_sectors_max);
        let command = |part: u32| {
            let done = part * transfer_sectors_max;
            let sectors = (whole - done).min(transfer_sectors_max);
            Command::read(nsid, sector + u64::from(done), sectors, sector_bytes)
        };
        let (result, buf) = self.ring.transfer(parts, buf, 0, command).await;
        let result = result
            .map(drop)
            .map_err(|failed| Stopped { sectors: failed.part * transfer_sectors_max, fault: failed.fault });
        (result, buf)
    }

    /// Changes the state of the zone that starts at `zone_start`.
    pub(crate) async fn manage(&self, zone_start: u64, action: ZoneAction) -> Result<(), Fault> {
        self.ring.command(Command::zone(self.commands.nsid, zone_start, action)).await
    }

    /// What the device says of the zone that starts at `zone_start`.
    pub(crate) async fn look(&self, zone_start: u64) -> Result<Zone, Fault> {
        let bytes = 2 * ZONE_BYTES;
        let command = Command::report_zones(self.commands.nsid, zone_start, bytes as u32);
        let (result, buf) = self.ring.transfer(1, AlignedBuf::zeroed(bytes), 0, |_| command).await;
        result.map_err(|failed| failed.fault)?;
        let zones = parse_zones(&buf).map_err(|error| Fault::Io(io::Error::other(error)))?;
        zones.first().copied().ok_or_else(|| Fault::Io(io::Error::other("the device reports no such zone")))
    }

    /// A barrier for what completed before.
    pub(crate) async fn flush(&self) -> Result<(), Fault> {
        self.ring.command(Command::flush(self.commands.nsid)).await
    }
}

//! The two ways to a zone, as one: the kernel's block device, and passthrough.
//!
//! Sectors are those of the device, counted from its start. What a transport promises is only what its device does: the
//! order of writes within a zone, states and limits are the caller's.

use std::io;

use super::block::BlockZones;
#[cfg(test)]
use super::fake::FakeZones;
use super::passthrough::RingZones;
use crate::buffer::AlignedBuf;
use crate::media::Durability;
use crate::nvme::command::ZoneAction;
use crate::nvme::identify::Zone;
use crate::nvme::status::Fault;

/// A transfer that ended before its end.
#[derive(Debug)]
pub(crate) struct Stopped {
    /// Sectors from its start that are known to have been moved.
    pub(crate) sectors: u32,
    /// Why it went no further.
    pub(crate) fault: Fault,
}

/// A way to the zones of one slice.
#[derive(Debug)]
pub(crate) enum Transport {
    /// The kernel's zoned block device.
    Block(BlockZones),
    /// NVMe passthrough.
    Ring(RingZones),
    /// A device that is not there, which completes in any order and fails when told to.
    #[cfg(test)]
    Fake(FakeZones),
}

impl Transport {
    /// Most bytes of an append that the device places itself; 0: it places none.
    pub(crate) fn append_bytes_max(&self) -> usize {
        match self {
            Self::Block(_) => 0,
            Self::Ring(zones) => zones.append_bytes_max(),
            #[cfg(test)]
            Self::Fake(zones) => zones.append_bytes_max(),
        }
    }

    /// Whether a durable write is one because the whole cache is flushed behind it. One that failed may then be the only
    /// word of a flush that failed: the kernel reports that once, and forgets it.
    pub(crate) fn flushes_behind_durable_writes(&self) -> bool {
        match self {
            Self::Block(zones) => zones.flushes_behind_durable_writes(),
            // Each carries FUA, which every NVMe device has.
            Self::Ring(_) => false,
            #[cfg(test)]
            Self::Fake(zones) => zones.flushes_behind_durable_writes.get(),
        }
    }

    /// Whether what is in flight keeps the device locked by itself.
    pub(crate) fn shares_the_lock(&self) -> bool {
        matches!(self, Self::Ring(_))
    }

    pub(crate) async fn write(
        &self,
        sector: u64,
        buf: AlignedBuf,
        durability: Durability,
    ) -> (Result<(), Stopped>, AlignedBuf) {
        match self {
            Self::Block(zones) => zones.write(sector, buf, durability).await,
            Self::Ring(zones) => zones.write(sector, buf, durability).await,
            #[cfg(test)]
            Self::Fake(zones) => zones.write(sector, buf).await,
        }
    }

    pub(crate) async fn append(
        &self,
        zone_start: u64,
        buf: AlignedBuf,
        durability: Durability,
    ) -> (Result<u64, Fault>, AlignedBuf) {
        match self {
            Self::Block(_) => unreachable!("the kernel's block device places no appends"),
            Self::Ring(zones) => zones.append(zone_start, buf, durability).await,
            #[cfg(test)]
            Self::Fake(zones) => zones.append(zone_start, buf).await,
        }
    }

    pub(crate) async fn read(&self, sector: u64, buf: AlignedBuf) -> (Result<(), Stopped>, AlignedBuf) {
        match self {
            Self::Block(zones) => zones.read(sector, buf).await,
            Self::Ring(zones) => zones.read(sector, buf).await,
            #[cfg(test)]
            Self::Fake(zones) => zones.read(sector, buf).await,
        }
    }

    pub(crate) async fn reset(&self, zone_start: u64) -> Result<(), Fault> {
        match self {
            Self::Block(zones) => zones.reset(zone_start),
            Self::Ring(zones) => zones.manage(zone_start, ZoneAction::Reset).await,
            #[cfg(test)]
            Self::Fake(zones) => zones.reset(zone_start).await,
        }
    }

    pub(crate) async fn finish(&self, zone_start: u64) -> Result<(), Fault> {
        match self {
            Self::Block(zones) => zones.finish(zone_start),
            Self::Ring(zones) => zones.manage(zone_start, ZoneAction::Finish).await,
            #[cfg(test)]
            Self::Fake(zones) => zones.finish(zone_start).await,
        }
    }

    /// What the device says of the zone that starts at `zone_start`.
    pub(crate) async fn look(&self, zone_start: u64) -> Result<Zone, Fault> {
        match self {
            Self::Block(zones) => zones.look(zone_start).map_err(Fault::Io),
            Self::Ring(zones) => zones.look(zone_start).await,
            #[cfg(test)]
            Self::Fake(zones) => zones.look(zone_start).await,
        }
    }

    pub(crate) async fn flush(&self) -> io::Result<()> {
        match self {
            Self::Block(zones) => zones.flush().await,
            Self::Ring(zones) => zones.flush().await.map_err(|fault| match fault {
                Fault::Io(error) => error,
                other => io::Error::other(format!("{other:?}")),
            }),
            #[cfg(test)]
            Self::Fake(zones) => zones.flush().await,
        }
    }
}

//! Zones through the kernel's zoned block device (`/dev/nvmeXnY`, or any other that the kernel calls host-managed).
//!
//! Data goes through the reactor's ring with O_DIRECT descriptors, as for a file. The kernel has no zone append for
//! programs, so an append is a write at the pointer that the host knows; one write of a zone is in flight at a time,
//! which [`ChunkOrder`](crate::chunk_order) sees to: a request that the ring cannot issue at once goes to a
//! worker, and the next one would overtake it.
//!
//! Zones are managed by ioctl, which **blocks the shard's thread** until the device has done it: once for each chunk
//! that is erased, once for each that is finished early, and once to look at a zone whose write failed. The ring has
//! no such operation. Passthrough does not have this cost.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::transport::Stopped;
use super::zones::ZonedShape;
use crate::buffer::AlignedBuf;
use crate::media::Durability;
use crate::nvme::identify::{Zone, ZoneCondition};
use crate::nvme::status::Fault;
use crate::ring_file::RingFile;

/// Bytes of a unit in which the kernel counts, whatever the device's sectors are.
const KERNEL_SECTOR_BYTES: u64 = 512;

/// Bytes of the header of `struct blk_zone_report`, and of each zone after it.
const REPORT_HEADER_BYTES: usize = 16;
const REPORT_ZONE_BYTES: usize = 64;

/// Zones asked for at once.
const REPORT_ZONES: usize = 512;

/// The report has capacities: a flag of its header, since Linux 5.9.
const REPORTS_CAPACITY: u32 = 1;

/// `struct blk_zone_range`, in kernel sectors.
#[repr(C)]
pub(crate) struct ZoneRange {
    sector: u64,
    sectors: u64,
}

nix::ioctl_readwrite!(blk_report_zone, 0x12, 130, [u8; REPORT_HEADER_BYTES]);
nix::ioctl_write_ptr!(blk_reset_zone, 0x12, 131, ZoneRange);
nix::ioctl_read!(blk_get_zone_size, 0x12, 132, u32);
nix::ioctl_read!(blk_get_zone_count, 0x12, 133, u32);
nix::ioctl_write_ptr!(blk_finish_zone, 0x12, 136, ZoneRange);

/// Bytes from the start of one zone to the start of the next; `None`: the device has no zones.
pub(crate) fn zone_bytes(device: &File) -> io::Result<Option<u64>> {
    let (mut kernel_sectors, mut zones) = (0, 0);
    // SAFETY: the descriptor is open, and each call gets a place for one `u32`.
    let asked = unsafe {
        blk_get_zone_size(device.as_raw_fd(), &mut kernel_sectors)
            .and_then(|_| blk_get_zone_count(device.as_raw_fd(), &mut zones))
    };
    match asked {
        Ok(_) if zones == 0 => Ok(None),
        Ok(_) => Ok(Some(u64::from(kernel_sectors) * KERNEL_SECTOR_BYTES)),
        Err(nix::errno::Errno::ENOTTY) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// `zones` zones from `sector` on (fewer at the device's end), in sectors of `sector_bytes`. Blocks.
pub(crate) fn report(device: &File, sector_bytes: u32, sector: u64, zones: u32) -> io::Result<Vec<Zone>> {
    let kernel_sectors = u64::from(sector_bytes) / KERNEL_SECTOR_BYTES;
    let mut found: Vec<Zone> = Vec::new();
    let mut at = sector * kernel_sectors;
    while (found.len() as u32) < zones {
        let asked = (zones as usize - found.len()).min(REPORT_ZONES);
        let mut bytes = vec![0; REPORT_HEADER_BYTES + asked * REPORT_ZONE_BYTES];
        bytes[..8].copy_from_slice(&at.to_ne_bytes());
        bytes[8..12].copy_from_slice(&(asked as u32).to_ne_bytes());
        // SAFETY: the buffer starts with a header that says how many zones have room after it, and has that room.
        unsafe { blk_report_zone(device.as_raw_fd(), bytes.as_mut_ptr().cast()) }?;
        let part = parse_report(&bytes, kernel_sectors)?;
        let Some((_, next)) = part.last() else { break };
        at = *next;
        found.extend(part.iter().map(|(zone, _)| zone));
    }
    Ok(found)
}

/// The zones of a report, each with the kernel sector that follows it.
fn parse_report(bytes: &[u8], kernel_sectors: u64) -> io::Result<Vec<(Zone, u64)>> {
    let wrong = |reason: &str| {
        io::Error::new(io::ErrorKind::InvalidData, format!("in the report of zones, {reason}"))
    };
    let number = |at: usize| {
        let field: Option<&[u8; 8]> = bytes.get(at..).and_then(|tail| tail.first_chunk());
        field.map(|field| u64::from_ne_bytes(*field)).ok_or_else(|| wrong("the end is missing"))
    };
    // Two words of four bytes after the sector: the count, and the flags.
    let words = number(8)?.to_ne_bytes();
    let word = |at: usize| u32::from_ne_bytes([words[at], words[at + 1], words[at + 2], words[at + 3]]);
    let room = bytes.len().saturating_sub(REPORT_HEADER_BYTES) / REPORT_ZONE_BYTES;
    let count = (word(0) as usize).min(room);
    let has_capacity = word(4) & REPORTS_CAPACITY != 0;
    (0..count)
        .map(|index| {
            let at = REPORT_HEADER_BYTES + index * REPORT_ZONE_BYTES;
            let (start, length, pointer) = (number(at)?, number(at + 8)?, number(at + 16)?);
            let capacity = if has_capacity { number(at + 32)? } else { length };
            let condition =
                ZoneCondition::of(bytes[at + 25]).ok_or_else(|| wrong("a zone is in an unknown state"))?;
            let next = start.checked_add(length).filter(|next| *next > start);
            let zone = Zone {
                start: start / kernel_sectors,
                capacity: capacity / kernel_sectors,
                write_pointer: pointer / kernel_sectors,
                condition,
                // The kernel's type 2: sequential writes required.
                sequential: bytes[at + 24] == 2,
            };
            Ok((zone, next.ok_or_else(|| wrong("a zone has no length"))?))
        })
        .collect()
}

/// The zones of one slice.
#[derive(Debug)]
pub(crate) struct BlockZones {
    /// For ioctls.
    control: File,
    plain: RingFile,
    durable: RingFile,
    sector_bytes: u32,
    zone_sectors: u64,
    flushes_behind_durable_writes: bool,
}

impl BlockZones {
    /// Of descriptors opened with O_DIRECT, the durable one with O_DSYNC as well.
    pub(crate) fn new(
        plain: File,
        durable: File,
        shape: &ZonedShape,
        flushes_behind_durable_writes: bool,
    ) -> io::Result<Self> {
        let control = plain.try_clone()?;
        let (plain, durable) = (RingFile::new(plain), RingFile::new(durable));
        let ZonedShape { sector_bytes, zone_sectors, .. } = *shape;
        Ok(Self { control, plain, durable, sector_bytes, zone_sectors, flushes_behind_durable_writes })
    }

    fn range(&self, zone_start: u64) -> ZoneRange {
        let kernel_sectors = u64::from(self.sector_bytes) / KERNEL_SECTOR_BYTES;
        ZoneRange { sector: zone_start * kernel_sectors, sectors: self.zone_sectors * kernel_sectors }
    }

    /// The kernel makes a durable write durable by a flush of the whole cache.
    pub(crate) fn flushes_behind_durable_writes(&self) -> bool {
        self.flushes_behind_durable_writes
    }

    /// Writes at the write pointer of a zone. How far a write came that stopped is not known here.
    pub(crate) async fn write(
        &self,
        sector: u64,
        buf: AlignedBuf,
        durability: Durability,
    ) -> (Result<(), Stopped>, AlignedBuf) {
        let file = match durability {
            Durability::Volatile => &self.plain,
            Durability::Durable => &self.durable,
        };
        let (part, at) = (0..buf.len(), sector * u64::from(self.sector_bytes));
        let (result, buf) = file.write_whole(buf, part, at, self.sector_bytes).await;
        (result.map_err(|error| stopped(error, true)), buf)
    }

    /// Reads below the write pointer of a zone.
    pub(crate) async fn read(&self, sector: u64, buf: AlignedBuf) -> (Result<(), Stopped>, AlignedBuf) {
        let (part, at) = (0..buf.len(), sector * u64::from(self.sector_bytes));
        let (result, buf) = self.plain.read_whole(buf, part, at, self.sector_bytes).await;
        (result.map_err(|error| stopped(error, false)), buf)
    }

    /// Empties a zone. Blocks.
    pub(crate) fn reset(&self, zone_start: u64) -> Result<(), Fault> {
        // SAFETY: the descriptor is open, and the range is a whole `struct blk_zone_range`.
        let done = unsafe { blk_reset_zone(self.control.as_raw_fd(), &self.range(zone_start)) };
        done.map(drop).map_err(|errno| Fault::of_block_error(errno.into(), true))
    }

    /// Fills a zone. Blocks.
    pub(crate) fn finish(&self, zone_start: u64) -> Result<(), Fault> {
        // SAFETY: as in `reset`.
        let done = unsafe { blk_finish_zone(self.control.as_raw_fd(), &self.range(zone_start)) };
        done.map(drop).map_err(|errno| Fault::of_block_error(errno.into(), true))
    }

    /// What the device says of a zone. Blocks.
    pub(crate) fn look(&self, zone_start: u64) -> io::Result<Zone> {
        let found = report(&self.control, self.sector_bytes, zone_start, 1)?;
        found.first().copied().ok_or_else(|| io::Error::other("the device reports no such zone"))
    }

    /// A barrier for what completed before.
    pub(crate) async fn flush(&self) -> io::Result<()> {
        self.plain.get()?.sync_data().await
    }
}

fn stopped(error: io::Error, writes: bool) -> Stopped {
    Stopped { sectors: 0, fault: Fault::of_block_error(error, writes) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn report_of(flags: u32, zones: &[[u64; 4]]) -> Vec<u8> {
        let mut bytes = vec![0; REPORT_HEADER_BYTES];
        bytes[8..12].copy_from_slice(&(zones.len() as u32).to_ne_bytes());
        bytes[12..].copy_from_slice(&flags.to_ne_bytes());
        for [start, length, pointer, capacity] in zones {
            let mut zone = [0; REPORT_ZONE_BYTES];
            zone[..8].copy_from_slice(&start.to_ne_bytes());
            zone[8..16].copy_from_slice(&length.to_ne_bytes());
            zone[16..24].copy_from_slice(&pointer.to_ne_bytes());
            (zone[24], zone[25]) = (2, 4);
            zone[32..40].copy_from_slice(&capacity.to_ne_bytes());
            bytes.extend(zone);
        }
        bytes
    }

    #[test]
    fn a_report_is_read_in_sectors_of_the_device() {
        let bytes = report_of(REPORTS_CAPACITY, &[[0, 16384, 800, 12288], [16384, 16384, 16384, 12288]]);
        let zones = parse_report(&bytes, 8).unwrap();
        let first = Zone {
            start: 0,
            capacity: 1536,
            write_pointer: 100,
            condition: ZoneCondition::Closed,
            sequential: true,
        };
        assert_eq!(zones[0], (first, 16384));
        assert_eq!((zones[1].0.start, zones[1].1), (2048, 32768));
        let without = parse_report(&report_of(0, &[[0, 16384, 0, 0]]), 8).unwrap();
        assert_eq!(without[0].0.capacity, 2048);
    }

    #[test]
    fn a_zone_without_length_is_refused() {
        assert!(parse_report(&report_of(1, &[[0, 0, 0, 0]]), 8).is_err());
        assert!(parse_report(&report_of(1, &[[u64::MAX, 2, 0, 0]]), 8).is_err());
    }

    #[test]
    fn what_is_no_zoned_device_has_no_zones() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(zone_bytes(&file).unwrap(), None);
        assert!(report(&file, 512, 0, 1).is_err());
    }

    proptest! {
        #[test]
        fn any_report_is_judged_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = parse_report(&bytes, 8);
        }
    }
}

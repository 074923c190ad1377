//! What a device's zones are as chunks. Pure.
//!
//! A zone is a chunk whose sectors are the zone's **capacity**: the addresses between that and the next zone's start
//! belong to nobody. States map like this:
//!
//! | zone | chunk |
//! |---|---|
//! | empty | free |
//! | implicitly or explicitly open, closed | open, at its write pointer |
//! | full | closed, at its end |
//! | read only | closed, at its end: its write pointer means nothing; what was not written reads as anything |
//! | offline | offline |
//!
//! A zone that the device *closed* gave back its open resource only; it goes on at its write pointer, so to the host
//! it is open.

use crate::geometry::{BEST_WRITE_BYTES, Geometry};
use crate::media::ChunkState;
use crate::nvme::identify::{Zone, ZoneCondition};

/// What a zoned device offers. Sectors are its logical blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZonedShape {
    /// Zones.
    pub zones: u32,
    /// Sectors from the start of one zone to the start of the next.
    pub zone_sectors: u64,
    /// Sectors of each zone that can be written.
    pub capacity_sectors: u32,
    /// Bytes of a sector.
    pub sector_bytes: u32,
    /// Sectors of the write that the device likes best.
    pub best_write_sectors: u32,
    /// Zones that may be open at once, the smaller of the device's limits on open and on active zones; 0: no limit.
    /// Every partly written zone counts, also those that a write opened implicitly; a full one does not.
    pub open_max: u32,
}

/// What a device says of itself, apart from its zones.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Said {
    pub(crate) sectors: u64,
    pub(crate) zone_sectors: u64,
    pub(crate) sector_bytes: u32,
    /// 0 or 1: it does not say.
    pub(crate) best_write_sectors: u32,
    /// 0: no limit.
    pub(crate) open_max: u32,
    /// 0: no limit.
    pub(crate) active_max: u32,
}

impl ZonedShape {
    /// Checks all zones of a device, in order, against what it says of itself.
    pub(crate) fn of(said: &Said, zones: &[Zone]) -> Result<Self, &'static str> {
        if said.zone_sectors == 0 || !said.sectors.is_multiple_of(said.zone_sectors) {
            return Err("the size of a zone does not divide that of the device");
        }
        let count = u32::try_from(zones.len()).map_err(|_| "there are too many")?;
        if count == 0 || said.sectors / said.zone_sectors != u64::from(count) {
            return Err("the device reports another number of zones than fit its size");
        }
        let first = zones[0];
        let capacity_sectors = u32::try_from(first.capacity).map_err(|_| "they are too large")?;
        if capacity_sectors == 0 || first.capacity > said.zone_sectors {
            return Err("their capacity is zero, or larger than they are");
        }
        for (index, zone) in zones.iter().enumerate() {
            if !zone.sequential || zone.condition == ZoneCondition::NotWritePointer {
                return Err("some are conventional: only zones that are written in sequence can be used");
            }
            if zone.start != index as u64 * said.zone_sectors {
                return Err("they do not follow each other");
            }
            if zone.capacity != first.capacity {
                return Err("their capacities differ");
            }
        }
        let best = if said.best_write_sectors > 1 {
            said.best_write_sectors
        } else {
            BEST_WRITE_BYTES / said.sector_bytes
        };
        let open_max = match (said.open_max, said.active_max) {
            (0, limit) | (limit, 0) => limit,
            (open, active) => open.min(active),
        };
        Ok(Self {
            zones: count,
            zone_sectors: said.zone_sectors,
            capacity_sectors,
            sector_bytes: said.sector_bytes,
            best_write_sectors: best.clamp(1, capacity_sectors),
            open_max,
        })
    }

    /// The geometry of a slice of so many zones, of which so many may be open.
    pub(crate) fn geometry(&self, zones: u32, max_open: u32) -> Geometry {
        Geometry {
            groups: 1,
            parallel_units: 1,
            chunks: zones,
            chunk_sectors: self.capacity_sectors,
            sector_bytes: self.sector_bytes,
            ws_min: 1,
            ws_opt: self.best_write_sectors,
            mw_cunits: 0,
            max_open,
        }
    }

    /// The zone with this number as a chunk: its state and write pointer.
    pub(crate) fn chunk(&self, number: u32, zone: &Zone) -> Result<(ChunkState, u32), &'static str> {
        let start = u64::from(number) * self.zone_sectors;
        if zone.start != start || zone.capacity != u64::from(self.capacity_sectors) {
            return Err("a zone is not where or as large as it was");
        }
        let end = self.capacity_sectors;
        let within = || {
            let sectors =
                zone.write_pointer.checked_sub(start).and_then(|sectors| u32::try_from(sectors).ok());
            sectors.filter(|sectors| *sectors <= end).ok_or("a write pointer is outside its zone")
        };
        Ok(match zone.condition {
            ZoneCondition::Empty => (ChunkState::Free, 0),
            ZoneCondition::ImplicitlyOpen | ZoneCondition::ExplicitlyOpen | ZoneCondition::Closed => {
                match within()? {
                    write_pointer if write_pointer == end => (ChunkState::Closed, end),
                    write_pointer => (ChunkState::Open, write_pointer),
                }
            }
            ZoneCondition::Full | ZoneCondition::ReadOnly => (ChunkState::Closed, end),
            ZoneCondition::Offline => (ChunkState::Offline, 0),
            ZoneCondition::NotWritePointer => return Err("a zone became conventional"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: Said = Said {
        sectors: 4 * 2048,
        zone_sectors: 2048,
        sector_bytes: 4096,
        best_write_sectors: 0,
        open_max: 8,
        active_max: 12,
    };

    fn zones() -> Vec<Zone> {
        (0..4)
            .map(|index| Zone {
                start: index * 2048,
                capacity: 1536,
                write_pointer: index * 2048,
                condition: ZoneCondition::Empty,
                sequential: true,
            })
            .collect()
    }

    #[test]
    fn chunks_have_the_capacity_and_the_smaller_limit_counts() {
        let shape = ZonedShape::of(&SAID, &zones()).unwrap();
        let expected = ZonedShape {
            zones: 4,
            zone_sectors: 2048,
            capacity_sectors: 1536,
            sector_bytes: 4096,
            best_write_sectors: 32,
            open_max: 8,
        };
        assert_eq!(shape, expected);
        for (open_max, active_max, smaller) in [(0, 0, 0), (0, 5, 5), (5, 0, 5), (9, 4, 4)] {
            let said = Said { open_max, active_max, ..SAID };
            assert_eq!(ZonedShape::of(&said, &zones()).unwrap().open_max, smaller);
        }
        assert_eq!(
            ZonedShape::of(&Said { best_write_sectors: 99, ..SAID }, &zones()).unwrap().best_write_sectors,
            99
        );
    }

    #[test]
    fn zones_that_cannot_be_chunks_are_refused() {
        let refused = |said: Said, change: fn(&mut Vec<Zone>)| {
            let mut zones = zones();
            change(&mut zones);
            ZonedShape::of(&said, &zones).unwrap_err()
        };
        let nothing: fn(&mut Vec<Zone>) = |_| {};
        let cases = [
            (refused(Said { sectors: 4 * 2048 + 1, ..SAID }, nothing), "does not divide"),
            (refused(Said { zone_sectors: 0, ..SAID }, nothing), "does not divide"),
            (refused(Said { sectors: 3 * 2048, ..SAID }, nothing), "another number"),
            (refused(SAID, |zones| zones.truncate(3)), "another number"),
            (refused(SAID, |zones| zones.clear()), "another number"),
            (refused(SAID, |zones| zones[0].capacity = 2049), "larger than they are"),
            (refused(SAID, |zones| zones[0].capacity = 0), "zero"),
            (refused(SAID, |zones| zones[0].capacity = u64::MAX), "too large"),
            (refused(SAID, |zones| zones[2].capacity = 1535), "differ"),
            (refused(SAID, |zones| zones[1].sequential = false), "conventional"),
            (refused(SAID, |zones| zones[3].start += 1), "follow"),
        ];
        for (reason, part) in cases {
            assert!(reason.contains(part), "{reason}: {part}");
        }
    }

    #[test]
    fn every_condition_has_its_state() {
        let shape = ZonedShape::of(&SAID, &zones()).unwrap();
        let chunk = |condition, write_pointer: u64| {
            let zone = Zone { write_pointer: 2048 + write_pointer, condition, ..zones()[1] };
            shape.chunk(1, &zone)
        };
        let table = [
            (ZoneCondition::Empty, 7, Ok((ChunkState::Free, 0))),
            (ZoneCondition::ImplicitlyOpen, 7, Ok((ChunkState::Open, 7))),
            (ZoneCondition::ExplicitlyOpen, 0, Ok((ChunkState::Open, 0))),
            (ZoneCondition::Closed, 9, Ok((ChunkState::Open, 9))),
            (ZoneCondition::Closed, 1536, Ok((ChunkState::Closed, 1536))),
            (ZoneCondition::Full, u64::MAX - 4096, Ok((ChunkState::Closed, 1536))),
            (ZoneCondition::ReadOnly, 3, Ok((ChunkState::Closed, 1536))),
            (ZoneCondition::Offline, 3, Ok((ChunkState::Offline, 0))),
            (ZoneCondition::Closed, 1537, Err("a write pointer is outside its zone")),
            (ZoneCondition::ImplicitlyOpen, u64::MAX - 4096, Err("a write pointer is outside its zone")),
            (ZoneCondition::NotWritePointer, 0, Err("a zone became conventional")),
        ];
        for (condition, write_pointer, expected) in table {
            assert_eq!(chunk(condition, write_pointer), expected, "{condition:?} at {write_pointer}");
        }
        assert!(shape.chunk(2, &zones()[1]).is_err());
    }
}

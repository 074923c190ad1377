//! Physical addresses: group, parallel unit, chunk and sector packed into 64 bits.
//!
//! ```text
//! 63 ... 0 | group | parallel unit | chunk | sector |
//! ```
//!
//! The device says how many bits each part has (Open-Channel 2.0, section "Geometry", LBA format); the host builds
//! addresses from that. Counts that are not powers of two leave gaps of addresses that name nothing.

use crate::geometry::Geometry;

/// A physical address as commands carry it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ppa(pub u64);

/// What an address names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Group (channel).
    pub group: u32,
    /// Parallel unit within the group.
    pub unit: u32,
    /// Chunk within the parallel unit.
    pub chunk: u32,
    /// Sector within the chunk.
    pub sector: u32,
}

/// How many bits of an address each part has, lowest first: sector, chunk, parallel unit, group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressFormat {
    shape: Geometry,
    /// Bits of the group.
    pub group_bits: u8,
    /// Bits of the parallel unit.
    pub unit_bits: u8,
    /// Bits of the chunk.
    pub chunk_bits: u8,
    /// Bits of the sector.
    pub sector_bits: u8,
}

impl AddressFormat {
    /// The shortest format in which every sector of the device has an address.
    ///
    /// # Panics
    /// If the geometry needs more than 64 bits, which no valid device does.
    pub fn of(geometry: &Geometry) -> Self {
        let format = Self {
            shape: *geometry,
            group_bits: bits(geometry.groups),
            unit_bits: bits(geometry.parallel_units),
            chunk_bits: bits(geometry.chunks),
            sector_bits: bits(geometry.chunk_sectors),
        };
        assert!(format.bits() <= u64::BITS, "an address does not fit 64 bits");
        format
    }

    fn bits(&self) -> u32 {
        [self.group_bits, self.unit_bits, self.chunk_bits, self.sector_bits].into_iter().map(u32::from).sum()
    }

    /// The address of a place.
    ///
    /// # Panics
    /// If the device has no such place.
    pub fn pack(&self, place: Place) -> Ppa {
        assert!(self.holds(place), "{place:?} is not on the device");
        let parts = [
            (place.group, self.group_bits),
            (place.unit, self.unit_bits),
            (place.chunk, self.chunk_bits),
            (place.sector, self.sector_bits),
        ];
        // A single part of no bits would shift by the whole width only if all others had none: it is zero then.
        Ppa(parts.into_iter().fold(0, |address, (part, bits)| address << bits | u64::from(part)))
    }

    /// What the address names; `None`: nothing on this device.
    pub fn unpack(&self, address: Ppa) -> Option<Place> {
        let mut rest = address.0;
        let mut take = |bits: u8| {
            let part = rest & ((1 << bits) - 1);
            rest >>= bits;
            part as u32
        };
        let sector = take(self.sector_bits);
        let chunk = take(self.chunk_bits);
        let unit = take(self.unit_bits);
        let group = take(self.group_bits);
        let place = Place { group, unit, chunk, sector };
        (rest == 0 && self.holds(place)).then_some(place)
    }

    /// Number of the place's chunk among all of the device.
    pub(super) fn chunk_index(&self, place: Place) -> u32 {
        (place.group * self.shape.parallel_units + place.unit) * self.shape.chunks + place.chunk
    }

    /// The first sector of a chunk, by its number among all of the device.
    pub(super) fn chunk_place(&self, index: u32) -> Place {
        let unit = index / self.shape.chunks;
        Place {
            group: unit / self.shape.parallel_units,
            unit: unit % self.shape.parallel_units,
            chunk: index % self.shape.chunks,
            sector: 0,
        }
    }

    fn holds(&self, place: Place) -> bool {
        place.group < self.shape.groups
            && place.unit < self.shape.parallel_units
            && place.chunk < self.shape.chunks
            && place.sector < self.shape.chunk_sectors
    }
}

/// Bits that the numbers `0..count` take.
fn bits(count: u32) -> u8 {
    (u32::BITS - (count - 1).leading_zeros()) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn geometry(groups: u32, parallel_units: u32, chunks: u32, chunk_sectors: u32) -> Geometry {
        let ws = 1;
        Geometry {
            groups,
            parallel_units,
            chunks,
            chunk_sectors,
            sector_bytes: 4096,
            ws_min: ws,
            ws_opt: ws,
            mw_cunits: 0,
            max_open: 0,
        }
    }

    #[test]
    fn parts_stand_where_the_bit_lengths_put_them() {
        let format = AddressFormat::of(&geometry(8, 4, 1474, 6144));
        assert_eq!(
            (format.group_bits, format.unit_bits, format.chunk_bits, format.sector_bits),
            (3, 2, 11, 13)
        );
        let address = format.pack(Place { group: 5, unit: 3, chunk: 1473, sector: 6143 });
        assert_eq!(address, Ppa(5 << 26 | 3 << 24 | 1473 << 13 | 6143));
    }

    #[test]
    fn what_names_nothing_is_told() {
        let format = AddressFormat::of(&geometry(1, 3, 5, 6));
        assert_eq!(format.group_bits, 0);
        let last = format.pack(Place { group: 0, unit: 2, chunk: 4, sector: 5 });
        assert!(format.unpack(last).is_some());
        // A sector and a chunk in the gaps, a unit, and bits above all parts.
        for address in [6, 5 << 3, 3 << 6, 1 << 8, u64::MAX] {
            assert_eq!(format.unpack(Ppa(address)), None, "{address:#x}");
        }
    }

    proptest! {
        #[test]
        fn every_place_has_its_own_address(
            groups in 1_u32..5, units in 1_u32..5, chunks in 1_u32..70, sectors in 1_u32..300, at in any::<u64>(),
        ) {
            let shape = geometry(groups, units, chunks, sectors);
            let format = AddressFormat::of(&shape);
            let index = (at % u64::from(shape.chunk_count())) as u32;
            let place = Place { sector: (at >> 32) as u32 % sectors, ..format.chunk_place(index) };
            prop_assert_eq!(format.chunk_index(place), index);
            prop_assert_eq!(format.unpack(format.pack(place)), Some(place));
        }
    }
}

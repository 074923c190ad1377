//! What a device can be, and the shape it has.

use std::fmt;
use std::str::FromStr;

use crate::geometry::Geometry;

/// The kinds of device that a node can run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// A file or block device that can be overwritten in place.
    Conventional,
    /// Open-Channel flash in software, in a file.
    Flash,
    /// Zones written at their write pointer: a zoned block device, or a zoned namespace by NVMe passthrough.
    Zoned,
    /// A namespace with placement handles (NVMe flexible data placement), by passthrough.
    Fdp,
}

impl DeviceKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Conventional, Self::Flash, Self::Zoned, Self::Fdp];

    /// The number that stands for it in a superblock.
    pub(crate) const fn code(self) -> u32 {
        match self {
            Self::Conventional => 0,
            Self::Flash => 1,
            Self::Zoned => 2,
            Self::Fdp => 3,
        }
    }

    pub(crate) fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// Its name in configurations and on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Conventional => "file",
            Self::Flash => "flash",
            Self::Zoned => "zoned",
            Self::Fdp => "fdp",
        }
    }

    /// Whether it takes writes at write pointers alone, so that the host manages it through a volume.
    pub const fn is_host_managed(self) -> bool {
        matches!(self, Self::Flash | Self::Zoned)
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Conventional => "a conventional device",
            Self::Flash => "emulated flash",
            Self::Zoned => "a zoned device",
            Self::Fdp => "a device with placement handles (FDP)",
        })
    }
}

/// A name that stands for no kind of device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no kind of device: write file, flash, zoned or fdp")]
pub struct UnknownKind(pub String);

impl FromStr for DeviceKind {
    type Err = UnknownKind;

    fn from_str(name: &str) -> Result<Self, UnknownKind> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| UnknownKind(name.to_owned()))
    }
}

/// What a whole device says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceShape {
    /// The geometry of the whole device, before it is divided. The chunks of a zoned device are its zones, as far as
    /// they can be written.
    pub geometry: Geometry,
    /// Bytes of addresses from one zone to the next; 0 where there are no zones.
    pub zone_bytes: u64,
    /// Bytes of the device.
    pub size_bytes: u64,
}

/// A number in which a device is not what its superblock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference {
    /// What is counted.
    pub field: &'static str,
    /// As it was when the device was laid out.
    pub superblock: u64,
    /// As it is.
    pub device: u64,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, superblock, device } = self;
        write!(f, "the superblock says {superblock} {field}, the device has {device}")
    }
}

impl DeviceShape {
    /// Where `found` cannot stand in for this shape, which a device had when it was laid out.
    ///
    /// What decides where data lies must be equal. The best write size is advice and may change with the device's
    /// firmware. More may be open at once than before, and less hidden from reads, but not the reverse.
    pub fn differences(&self, found: &Self) -> Vec<Difference> {
        let (laid_out, is) = (&self.geometry, &found.geometry);
        let opened = |limit: u32| if limit == 0 { u64::MAX } else { limit.into() };
        let differs = |field, superblock: u64, device: u64| Difference { field, superblock, device };
        let mut differences: Vec<_> = [
            differs("groups", laid_out.groups.into(), is.groups.into()),
            differs("parallel units a group", laid_out.parallel_units.into(), is.parallel_units.into()),
            differs("chunks a unit", laid_out.chunks.into(), is.chunks.into()),
            differs("sectors a chunk", laid_out.chunk_sectors.into(), is.chunk_sectors.into()),
            differs("bytes a sector", laid_out.sector_bytes.into(), is.sector_bytes.into()),
            differs("sectors a smallest write", laid_out.ws_min.into(), is.ws_min.into()),
            differs("bytes a zone", self.zone_bytes, found.zone_bytes),
            differs("bytes", self.size_bytes, found.size_bytes),
        ]
        .into_iter()
        .filter(|difference| difference.superblock != difference.device)
        .collect();
        if is.mw_cunits > laid_out.mw_cunits {
            differences.push(differs(
                "sectors that cannot be read yet",
                laid_out.mw_cunits.into(),
                is.mw_cunits.into(),
            ));
        }
        if opened(is.max_open) < opened(laid_out.max_open) {
            differences.push(differs("chunks open at once", laid_out.max_open.into(), is.max_open.into()));
        }
        differences
    }

    /// Whether `found` has fewer chunks or bytes than this shape.
    pub fn shrank(&self, found: &Self) -> bool {
        let chunks = |shape: &Self| {
            let Geometry { groups, parallel_units, chunks, .. } = shape.geometry;
            u128::from(groups) * u128::from(parallel_units) * u128::from(chunks)
        };
        found.size_bytes < self.size_bytes || chunks(found) < chunks(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: DeviceShape = DeviceShape {
        geometry: Geometry {
            groups: 2,
            parallel_units: 4,
            chunks: 512,
            chunk_sectors: 4096,
            sector_bytes: 4096,
            ws_min: 4,
            ws_opt: 24,
            mw_cunits: 96,
            max_open: 64,
        },
        zone_bytes: 32 << 20,
        size_bytes: 1 << 36,
    };

    #[test]
    fn names_and_codes_tell_the_kinds_apart() {
        for kind in DeviceKind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
            assert_eq!(DeviceKind::from_code(kind.code()), Some(kind));
        }
        assert_eq!(DeviceKind::from_code(4), None);
        assert!("tape".parse::<DeviceKind>().unwrap_err().to_string().contains("\"tape\""));
    }

    #[test]
    fn each_number_that_differs_is_named() {
        assert_eq!(SHAPE.differences(&SHAPE), []);
        type Change = fn(&mut DeviceShape);
        let changes: [(Change, &str); 10] = [
            (|shape| shape.geometry.groups = 1, "2 groups, the device has 1"),
            (|shape| shape.geometry.parallel_units = 8, "4 parallel units a group, the device has 8"),
            (|shape| shape.geometry.chunks = 500, "512 chunks a unit, the device has 500"),
            (|shape| shape.geometry.chunk_sectors = 2048, "4096 sectors a chunk, the device has 2048"),
            (|shape| shape.geometry.sector_bytes = 512, "4096 bytes a sector, the device has 512"),
            (|shape| shape.geometry.ws_min = 8, "4 sectors a smallest write, the device has 8"),
            (|shape| shape.geometry.mw_cunits = 97, "96 sectors that cannot be read yet, the device has 97"),
            (|shape| shape.geometry.max_open = 63, "64 chunks open at once, the device has 63"),
            (|shape| shape.zone_bytes = 16 << 20, "33554432 bytes a zone, the device has 16777216"),
            (|shape| shape.size_bytes = 7, "68719476736 bytes, the device has 7"),
        ];
        let mut all = SHAPE;
        for (change, text) in changes {
            let mut found = SHAPE;
            change(&mut found);
            let differences = SHAPE.differences(&found);
            assert_eq!(differences.len(), 1, "{text}");
            assert_eq!(differences[0].to_string(), format!("the superblock says {text}"));
            change(&mut all);
        }
        assert_eq!(SHAPE.differences(&all).len(), changes.len());
    }

    #[test]
    fn what_only_becomes_better_is_no_difference() {
        let better = Geometry { ws_opt: 48, mw_cunits: 0, max_open: 0, ..SHAPE.geometry };
        assert_eq!(SHAPE.differences(&DeviceShape { geometry: better, ..SHAPE }), []);
        let unlimited = DeviceShape { geometry: Geometry { max_open: 0, ..SHAPE.geometry }, ..SHAPE };
        assert_eq!(unlimited.differences(&SHAPE).len(), 1, "a limit where there was none");
    }

    #[test]
    fn fewer_chunks_or_bytes_have_shrunk() {
        let fewer = DeviceShape { geometry: Geometry { chunks: 511, ..SHAPE.geometry }, ..SHAPE };
        let smaller = DeviceShape { size_bytes: SHAPE.size_bytes - 1, ..SHAPE };
        assert!(SHAPE.shrank(&fewer) && SHAPE.shrank(&smaller));
        assert!(!SHAPE.shrank(&SHAPE) && !fewer.shrank(&SHAPE) && !smaller.shrank(&SHAPE));
    }
}

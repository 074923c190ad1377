//! Zoned namespaces: each zone is a chunk, and the device keeps the rules itself.
//!
//! ```text
//! ZonedDevice (Send + Sync, one per process and path: the lock, the descriptors)
//!   +-- ZonedMedia of a run of zones, on one shard's thread (chunk table, order of writes, transport)
//!   +-- ZonedMedia of the next run, on another's
//! ```
//!
//! Two transports, chosen by the path: the kernel's zoned block device (`block.rs`), and NVMe passthrough
//! (`passthrough.rs`) with zone append, several in flight in one zone. Never both: opening either locks the namespace.
//! (The engine and the volume write at the pointer; append is an operation of the seam, tested, that nothing calls on
//! zones.)
//!
//! Durability: a durable write carries FUA (passthrough) or O_DSYNC (block device, where the kernel turns it into FUA or,
//! without that, a flush behind the write); a flush is the device's own.
//! A zoned device never moves data by itself between the host's writes and resets, so its write amplification is one.
//!
//! Invariants:
//! - The device's limit of open zones is divided among the slices, never promised twice. The smaller of its limits for
//!   open and active zones is used: a zone that the device closed by itself still is active.
//! - What the device reports is checked, zone by zone, before it is believed.

mod block;
#[cfg(test)]
mod fake;
mod media;
mod passthrough;
mod transport;
mod zones;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::libc;

pub use media::ZonedMedia;
pub use zones::ZonedShape;

use self::block::BlockZones;
use self::media::Owned;
use self::passthrough::{Commands, RingZones};
use self::transport::Transport;
use self::zones::Said;
use crate::barrier::Barrier;
use crate::claims::Claims;
use crate::lock::{DeviceLock, LockError};
use crate::nvme::command::{Command, Identify};
use crate::nvme::identify::{CommandSet, ZONE_BYTES, Zone, ZonedNamespace, append_bytes_max, parse_zones};
use crate::nvme::namespace::{NamespaceError, Passthrough, blocks_of, check_sector, describe};
use crate::probe::{self, Kind};

/// Bytes of the buffer that a report of many zones goes through.
const REPORT_BYTES: usize = 64 << 10;

/// A run of zones for one owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZonedSlice {
    /// Its first zone.
    pub first_zone: u32,
    /// How many zones it has.
    pub zones: u32,
    /// How many of them may be open at once; 0 only where the device has no limit.
    pub max_open: u32,
}

/// An open zoned device. Clones share it; any thread may take its slice.
#[derive(Debug, Clone)]
pub struct ZonedDevice {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    shape: ZonedShape,
    way: Way,
    claims: Arc<Claims>,
    barrier: Arc<Barrier>,
}

/// How the device is reached.
#[derive(Debug)]
enum Way {
    Block { plain: File, durable: File, flushes_behind_durable_writes: bool, lock: Arc<DeviceLock> },
    Passthrough { namespace: Box<Passthrough>, commands: Commands },
}

impl ZonedDevice {
    /// Opens and locks a zoned namespace: its block device (`/dev/nvmeXnY`), or its character device (`/dev/ngXnY`) for
    /// passthrough. Blocks.
    ///
    /// # Errors
    /// The reason why it cannot be used, and what to do.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NamespaceError> {
        let path = path.as_ref();
        let metadata = std::fs::metadata(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => NamespaceError::Missing { path: path.to_path_buf() },
            _ => NamespaceError::io("look at", path)(source),
        })?;
        let kind = metadata.file_type();
        let (shape, way) = if kind.is_block_device() {
            open_block(path, metadata.rdev())?
        } else if kind.is_char_device() {
            open_passthrough(path)?
        } else {
            return Err(NamespaceError::NotADevice {
                path: path.to_path_buf(),
                found: describe(&kind),
                wanted: "a zoned block device, or the character device of a zoned NVMe namespace (/dev/ngXnY),",
            });
        };
        let (claims, barrier) = (Arc::default(), Arc::default());
        let shared = Shared { path: path.to_path_buf(), shape, way, claims, barrier };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// What it offers.
    pub fn shape(&self) -> &ZonedShape {
        &self.shared.shape
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// The slice of a shard if the device is divided evenly: zones and open zones alike, the remainders unused.
    ///
    /// # Errors
    /// If it has fewer zones, or may have fewer open, than there are shards.
    pub fn share(&self, shard: u32, shards: u32) -> Result<ZonedSlice, NamespaceError> {
        let ZonedShape { zones, open_max, .. } = self.shared.shape;
        let too_few =
            |what, has| NamespaceError::TooFew { path: self.shared.path.clone(), what, has, shards };
        if shards == 0 || zones / shards == 0 {
            return Err(too_few("zones", zones));
        }
        if open_max != 0 && open_max / shards == 0 {
            return Err(too_few("zones that may be open at once", open_max));
        }
        if shard >= shards {
            return Err(self.no_slice("the shard is beyond the last"));
        }
        let zones = zones / shards;
        Ok(ZonedSlice { first_zone: shard * zones, zones, max_open: open_max / shards })
    }

    /// Hands out a slice, with the states and write pointers that the device reports now. Call it on the owner's
    /// thread; operations run on that thread's monoio runtime. The slice is given back when the value is dropped, unless
    /// a write, reset or finish was dropped in flight. Blocks.
    ///
    /// # Errors
    /// If it is not all there, in part another's, or promises more open zones than the device has.
    pub fn slice(&self, slice: ZonedSlice) -> Result<ZonedMedia, NamespaceError> {
        let Shared { path, shape, way, claims, barrier } = &*self.shared;
        let end = slice.first_zone.checked_add(slice.zones).ok_or("it reaches beyond the device's end");
        let claim = end
            .and_then(|end| claims.take(slice.first_zone..end, shape.zones, slice.max_open, shape.open_max))
            .map_err(|reason| self.no_slice(reason))?;
        let duplicated = || NamespaceError::io("duplicate the descriptor of", path);
        let at = u64::from(slice.first_zone) * shape.zone_sectors;
        let (transport, zones, lock) = match way {
            Way::Block { plain, durable, flushes_behind_durable_writes, lock } => {
                let zones = block::report(plain, shape.sector_bytes, at, slice.zones)
                    .map_err(NamespaceError::io("report the zones of", path))?;
                let plain = plain.try_clone().map_err(duplicated())?;
                let durable = durable.try_clone().map_err(duplicated())?;
                let block = BlockZones::new(plain, durable, shape, *flushes_behind_durable_writes);
                (Transport::Block(block.map_err(duplicated())?), zones, lock)
            }
            Way::Passthrough { namespace, commands } => {
                let zones = report(namespace, at, slice.zones, shape.zone_sectors)?;
                let device = namespace.device.try_clone().map_err(duplicated())?;
                let ring = RingZones::new(device, *commands);
                let ring = ring.map_err(NamespaceError::io("set up a ring for", path))?;
                (Transport::Ring(ring), zones, namespace.device.lock())
            }
        };
        let owned = Owned { claim, lock: lock.clone() };
        ZonedMedia::new(transport, shape, slice, &zones, barrier.clone(), Some(owned))
            .map_err(|reason| NamespaceError::Zones { path: path.clone(), reason })
    }

    fn no_slice(&self, reason: &'static str) -> NamespaceError {
        NamespaceError::Slice { path: self.shared.path.clone(), reason }
    }
}

fn open_block(path: &Path, device: u64) -> Result<(ZonedShape, Way), NamespaceError> {
    let owned = || path.to_path_buf();
    let queue = Queue::of(path, device)?;
    let lock = DeviceLock::take(path, Kind::BlockDevice).map_err(|error| match error {
        LockError::Held => NamespaceError::InUse { path: owned() },
        LockError::Io(source) if source.kind() == io::ErrorKind::PermissionDenied => {
            NamespaceError::NotPermitted { path: owned() }
        }
        LockError::Io(source) => NamespaceError::io("open", path)(source),
    })?;
    let zone_bytes = block::zone_bytes(lock.file())
        .map_err(NamespaceError::io("ask for the zones of", path))?
        .ok_or_else(|| NamespaceError::NotZoned { path: owned() })?;
    let looked = NamespaceError::io("look at", path);
    let sector_bytes = probe::alignment(lock.file()).map_err(looked)?.map_or(0, |alignment| alignment.offset);
    let granularity = queue.number("zone_write_granularity");
    let granularity =
        granularity.map_err(NamespaceError::io("read queue/zone_write_granularity of", path))?;
    let sector_bytes = sector_bytes.max(granularity);
    check_sector(path, sector_bytes)?;
    let size_bytes = probe::size_bytes(lock.file()).map_err(NamespaceError::io("measure", path))?;
    let zones = block::report(lock.file(), sector_bytes, 0, u32::MAX)
        .map_err(NamespaceError::io("report the zones of", path))?;
    let (open_max, active_max) = (queue.number("max_open_zones"), queue.number("max_active_zones"));
    let said = Said {
        sectors: size_bytes / u64::from(sector_bytes),
        zone_sectors: zone_bytes / u64::from(sector_bytes),
        sector_bytes,
        // Advice: what does not give it is used without.
        best_write_sectors: queue.number("optimal_io_size").unwrap_or(0) / sector_bytes,
        open_max: open_max.map_err(NamespaceError::io("read queue/max_open_zones of", path))?,
        active_max: active_max.map_err(NamespaceError::io("read queue/max_active_zones of", path))?,
    };
    let shape =
        ZonedShape::of(&said, &zones).map_err(|reason| NamespaceError::Zones { path: owned(), reason })?;
    let descriptor = |flags| {
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
        file.map_err(NamespaceError::io("open", path))
    };
    let (plain, durable) = (descriptor(libc::O_DIRECT)?, descriptor(libc::O_DIRECT | libc::O_DSYNC)?);
    let flushes_behind_durable_writes = queue.flushes_behind_durable_writes();
    Ok((shape, Way::Block { plain, durable, flushes_behind_durable_writes, lock: Arc::new(lock) }))
}

/// What sysfs says of a block device's queue. A kernel of Linux 5.12 or newer says all that is asked here of a zoned one.
struct Queue(PathBuf);

impl Queue {
    fn of(path: &Path, device: u64) -> Result<Self, NamespaceError> {
        let sysfs = format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device));
        if Path::new(&sysfs).join("partition").exists() {
            return Err(NamespaceError::NotADevice {
                path: path.to_path_buf(),
                found: "a partition",
                wanted: "a whole zoned device",
            });
        }
        Ok(Self(Path::new(&sysfs).join("queue")))
    }

    fn said(&self, name: &str) -> io::Result<String> {
        Ok(std::fs::read_to_string(self.0.join(name))?.trim().to_owned())
    }

    /// A number that it must say: a limit that is not known would be taken for none, and zones fail that break it.
    fn number(&self, name: &str) -> io::Result<u32> {
        let said = self.said(name)?;
        said.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("{said:?} is no number")))
    }

    /// Whether the kernel makes a durable write durable by a flush behind it: the device has a cache, and no FUA. Yes if it
    /// does not say.
    fn flushes_behind_durable_writes(&self) -> bool {
        let is = |name, value| self.said(name).is_ok_and(|said| said == value);
        !is("write_cache", "write through") && !is("fua", "1")
    }
}

fn open_passthrough(path: &Path) -> Result<(ZonedShape, Way), NamespaceError> {
    let device = Passthrough::open(path)?;
    if device.command_set != CommandSet::Zoned {
        return Err(NamespaceError::NotZoned { path: path.to_path_buf() });
    }
    let namespace = device.namespace;
    let zoned = device.identify(Identify::ZonedNamespace)?;
    let zoned = ZonedNamespace::parse(&zoned, namespace.format).map_err(device.bad_answer())?;
    let controller = device.identify(Identify::ZonedController)?;
    let append_bytes_max = append_bytes_max(&controller).map_err(device.bad_answer())?;
    let count = u32::try_from(namespace.blocks / zoned.zone_blocks).unwrap_or(u32::MAX);
    let zones = report(&device, 0, count, zoned.zone_blocks)?;
    let said = Said {
        sectors: namespace.blocks,
        zone_sectors: zoned.zone_blocks,
        sector_bytes: namespace.block_bytes,
        best_write_sectors: namespace.best_write_blocks,
        open_max: zoned.open_max,
        active_max: zoned.active_max,
    };
    let shape = ZonedShape::of(&said, &zones)
        .map_err(|reason| NamespaceError::Zones { path: path.to_path_buf(), reason })?;
    let commands = Commands {
        nsid: device.nsid,
        sector_bytes: namespace.block_bytes,
        transfer_sectors_max: device.transfer_blocks_max,
        append_sectors_max: blocks_of(append_bytes_max, namespace.block_bytes)
            .min(device.transfer_blocks_max),
    };
    Ok((shape, Way::Passthrough { namespace: Box::new(device), commands }))
}

/// `count` zones from sector `at` on (fewer at the namespace's end). Blocks.
fn report(device: &Passthrough, at: u64, count: u32, zone_sectors: u64) -> Result<Vec<Zone>, NamespaceError> {
    let mut buf = vec![0; REPORT_BYTES];
    let mut found: Vec<Zone> = Vec::new();
    while found.len() < count as usize {
        let next = at + found.len() as u64 * zone_sectors;
        let rest = count as usize - found.len();
        let bytes = ((rest + 1) * ZONE_BYTES).min(REPORT_BYTES);
        buf.fill(0);
        device.io("report the zones of", Command::report_zones(device.nsid, next, bytes as u32), &mut buf)?;
        let part = parse_zones(&buf[..bytes]).map_err(device.bad_answer())?;
        if part.is_empty() {
            break;
        }
        found.extend(part);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Taken for "no limit", a missing one lets the host open more zones than the device has room for.
    #[test]
    fn a_limit_that_is_missing_is_not_no_limit() {
        let folder = tempfile::tempdir().unwrap();
        let queue = Queue(folder.path().to_path_buf());
        assert_eq!(queue.number("max_open_zones").unwrap_err().kind(), io::ErrorKind::NotFound);
        for (said, number) in [("0\n", Some(0)), ("14\n", Some(14)), ("\n", None), ("many\n", None)] {
            std::fs::write(folder.path().join("max_open_zones"), said).unwrap();
            assert_eq!(queue.number("max_open_zones").ok(), number, "{said:?}");
        }
    }

    #[test]
    fn a_durable_write_needs_a_flush_where_a_cache_has_no_fua() {
        let folder = tempfile::tempdir().unwrap();
        let queue = Queue(folder.path().to_path_buf());
        assert!(queue.flushes_behind_durable_writes(), "it does not say");
        for (cache, fua, flushes) in [
            ("write back", "0", true),
            ("write back", "1", false),
            ("write through", "0", false),
            ("write through", "1", false),
        ] {
            std::fs::write(folder.path().join("write_cache"), format!("{cache}\n")).unwrap();
            std::fs::write(folder.path().join("fua"), format!("{fua}\n")).unwrap();
            assert_eq!(queue.flushes_behind_durable_writes(), flushes, "{cache}, {fua}");
        }
    }

    #[test]
    fn what_has_no_zones_is_refused_with_the_reason() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let refused = |path: &Path| ZonedDevice::open(path).unwrap_err();
        assert!(matches!(refused(Path::new("/dev/none")), NamespaceError::Missing { .. }));
        assert!(matches!(refused(file.path()), NamespaceError::NotADevice { found: "a file", .. }));
        assert!(matches!(refused(Path::new("/")), NamespaceError::NotADevice { found: "a folder", .. }));
        assert!(matches!(refused(Path::new("/dev/null")), NamespaceError::NotADevice { .. }));
    }
}

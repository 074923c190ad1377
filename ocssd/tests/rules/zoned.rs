//! Zoned namespaces: through the kernel's block device, and by passthrough.

use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::task::Poll;

use terrane_ocssd::{
    AlignedBuf, ChunkId, ChunkState, Device as NodeDevice, DeviceOptions, Durability, FdpDevice, FileDevice,
    FormatOptions, Media, MediaError, NamespaceError, OpenError, Refusal, ZonedDevice, ZonedMedia,
    ZonedSlice, format,
};

use crate::contract::{Harness, Probe, every_rule};
use crate::hardware::{Device, agrees_with_a_model, all, device, number, run};

pub(crate) struct Zoned {
    pub(crate) path: PathBuf,
}

impl Device for Zoned {
    type Media = ZonedMedia;

    fn open(&self) -> ZonedMedia {
        let device = ZonedDevice::open(&self.path).unwrap();
        device.slice(device.share(0, 1).unwrap()).unwrap()
    }

    fn remembers_write_pointers(&self) -> bool {
        true
    }
}

#[test]
fn zoned_block_device() {
    if let Some(path) = device("TERRANE_ZNS_BLOCK") {
        every_rule(&Zoned { path });
    }
}

#[test]
fn zones_by_passthrough() {
    if let Some(path) = device("TERRANE_ZNS_CHAR") {
        every_rule(&Zoned { path });
    }
}

/// Appends of different lengths, durable and not, all in flight in one zone: each is where the device said, and they
/// leave no hole.
#[test]
fn appends_in_flight_together_find_their_places() {
    let Some(path) = device("TERRANE_ZNS_CHAR") else { return };
    let zoned = Zoned { path };
    let probe = Probe::of(zoned.create());
    run(async {
        for round in 0..4_u8 {
            let appends = (0..32_u32).map(|index| {
                let (media, buf) =
                    (probe.media.clone(), probe.pattern(round + index as u8 * 7, 1 + index as usize % 5));
                let durability = if index % 3 == 0 { Durability::Durable } else { Durability::Volatile };
                async move {
                    let (place, buf) = media.append(ChunkId(round.into()), buf, durability).await;
                    (place.unwrap(), buf)
                }
            });
            let mut places = all(appends.collect()).await;
            places.sort_unstable_by_key(|(place, _)| *place);
            let mut end = 0;
            for (place, written) in places {
                assert_eq!(place, end);
                let found = AlignedBuf::zeroed(written.len());
                let (result, found) = probe.media.read(ChunkId(round.into()), place, found).await;
                result.unwrap();
                assert!(found[..] == written[..], "other bytes at sector {place}");
                end += (written.len() / probe.ws_bytes) as u32;
            }
            assert_eq!(probe.state(round.into()).await, (ChunkState::Open, end));
        }
    });
}

#[test]
fn a_zoned_block_device_agrees_with_a_model() {
    if let Some(path) = device("TERRANE_ZNS_BLOCK") {
        agrees_with_a_model(&Zoned { path }, "a_zoned_block_device_agrees");
    }
}

#[test]
fn zones_by_passthrough_agree_with_a_model() {
    if let Some(path) = device("TERRANE_ZNS_CHAR") {
        agrees_with_a_model(&Zoned { path }, "zones_by_passthrough_agree");
    }
}

/// Writes larger than one command, small ones and appends, all submitted before the first completed.
fn large_and_small_writes_keep_their_order(zoned: &Zoned) {
    let probe = Probe::of(zoned.create());
    run(async {
        let lengths = [1, 300, 2, 1, 77, 256, 3];
        let mut at = 0;
        let mut writes = Vec::new();
        for (index, length) in lengths.into_iter().enumerate() {
            let (media, buf) = (probe.media.clone(), probe.pattern(index as u8 * 31, length));
            let sector = at;
            writes.push(async move {
                if index % 2 == 0 {
                    media.write(ChunkId(0), sector, buf, Durability::Volatile).await.0.unwrap();
                } else {
                    assert_eq!(media.append(ChunkId(0), buf, Durability::Volatile).await.0.unwrap(), sector);
                }
            });
            at += length as u32;
        }
        all(writes).await;
        at = 0;
        for (index, length) in lengths.into_iter().enumerate() {
            probe.expect(0, at, index as u8 * 31, length).await;
            at += length as u32;
        }
        assert_eq!(probe.state(0).await, (ChunkState::Open, at));
    });
}

#[test]
fn large_and_small_writes_keep_their_order_on_a_block_device() {
    if let Some(path) = device("TERRANE_ZNS_BLOCK") {
        large_and_small_writes_keep_their_order(&Zoned { path });
    }
}

#[test]
fn large_and_small_writes_keep_their_order_by_passthrough() {
    if let Some(path) = device("TERRANE_ZNS_CHAR") {
        large_and_small_writes_keep_their_order(&Zoned { path });
    }
}

/// A device that allows fewer active zones than it has would refuse the later ones if a finish did not free them.
fn finished_zones_hold_no_resources(zoned: &Zoned) {
    let device = ZonedDevice::open(&zoned.path).unwrap();
    let shape = *device.shape();
    assert_ne!(shape.open_max, 0, "the device has no limit, so this tests nothing");
    drop(device);
    let probe = Probe::of(zoned.create());
    run(async {
        for chunk in 0..shape.zones {
            probe.write(chunk, 0, 1, 1).await.unwrap();
            probe.media.finish(ChunkId(chunk)).await.unwrap();
            probe.expect(chunk, 0, 1, 1).await;
        }
    });
    // And after a restart they are closed, at their ends.
    let probe = Probe::of(zoned.reopen(probe.into_media()));
    run(async {
        for chunk in 0..shape.zones {
            assert_eq!(probe.state(chunk).await, (ChunkState::Closed, probe.chunk_writes));
            probe.expect(chunk, 0, 1, 1).await;
        }
    });
}

#[test]
fn finished_zones_hold_no_resources_on_a_block_device() {
    if let Some(path) = device("TERRANE_ZNS_BLOCK") {
        finished_zones_hold_no_resources(&Zoned { path });
    }
}

#[test]
fn finished_zones_hold_no_resources_by_passthrough() {
    if let Some(path) = device("TERRANE_ZNS_CHAR") {
        finished_zones_hold_no_resources(&Zoned { path });
    }
}

#[test]
fn slices_divide_zones_and_open_zones() {
    let Some(path) = device("TERRANE_ZNS_CHAR") else { return };
    drop(Zoned { path: path.clone() }.create());
    let device = ZonedDevice::open(path).unwrap();
    let shape = *device.shape();
    let (first, second) = (device.share(0, 2).unwrap(), device.share(1, 2).unwrap());
    assert_eq!((first.first_zone, second.first_zone), (0, shape.zones / 2));
    assert_eq!(first.max_open, shape.open_max / 2);
    let (one, two) = (Probe::of(device.slice(first).unwrap()), Probe::of(device.slice(second).unwrap()));
    let refused = |slice| matches!(device.slice(slice), Err(NamespaceError::Slice { .. }));
    assert!(refused(first), "handed out twice");
    assert!(refused(ZonedSlice { first_zone: shape.zones, zones: 1, max_open: 1 }));
    run(async {
        one.write(0, 0, 1, 2).await.unwrap();
        two.write(0, 0, 5, 3).await.unwrap();
        one.expect(0, 0, 1, 2).await;
        two.expect(0, 0, 5, 3).await;
        assert_eq!((one.state(0).await.1, two.state(0).await.1), (2, 3));
    });
    drop(one);
    device.slice(first).unwrap();
    assert!(device.share(0, shape.zones + 1).is_err());
}

#[test]
fn kinds_of_devices_are_not_mixed_up() {
    let (Some(conventional), Some(block), Some(char), Some(placed)) = (
        device("TERRANE_CONV_BLOCK"),
        device("TERRANE_ZNS_BLOCK"),
        device("TERRANE_ZNS_CHAR"),
        device("TERRANE_FDP_CHAR"),
    ) else {
        return;
    };
    assert!(matches!(ZonedDevice::open(&conventional), Err(NamespaceError::NotZoned { .. })));
    assert!(matches!(ZonedDevice::open(&placed), Err(NamespaceError::NotZoned { .. })));
    assert!(matches!(FdpDevice::open(&char), Err(NamespaceError::Zoned { .. })));
    assert!(matches!(FdpDevice::open(&block), Err(NamespaceError::NotADevice { .. })));
    for path in [&block, &char] {
        let options = FormatOptions {
            cluster: 1,
            node: 1,
            shards: 1,
            size_bytes: 0,
            chunk_bytes: Some(1 << 20),
            sector_bytes: None,
            force: true,
        };
        assert!(format(path, &options, &mut |_, _| {}).is_err());
        assert!(FileDevice::open(path).is_err());
    }
}

/// Block writes and passthrough never meet: whoever has the namespace by one way keeps it from the other.
#[test]
fn a_namespace_is_used_in_one_way_at_a_time() {
    let Some(char) = device("TERRANE_ZNS_CHAR") else { return };
    let block = block_device_beside(&char);
    let by_passthrough = ZonedDevice::open(&char).unwrap();
    assert!(matches!(ZonedDevice::open(&block), Err(NamespaceError::InUse { .. })));
    assert!(matches!(ZonedDevice::open(&char), Err(NamespaceError::InUse { .. })));
    // A slice keeps its device.
    let slice = by_passthrough.slice(by_passthrough.share(0, 1).unwrap()).unwrap();
    drop(by_passthrough);
    assert!(matches!(ZonedDevice::open(&block), Err(NamespaceError::InUse { .. })));
    drop(slice);
    let by_block = ZonedDevice::open(&block).unwrap();
    assert!(matches!(ZonedDevice::open(&char), Err(NamespaceError::InUse { .. })));
    drop(by_block);
    ZonedDevice::open(&char).unwrap();
}

/// A reset that comes late empties a zone of whoever has the slice next, in this process or another.
#[test]
fn what_was_dropped_in_flight_keeps_its_slice_and_the_lock() {
    let Some(path) = device("TERRANE_ZNS_CHAR") else { return };
    let zoned = ZonedDevice::open(&path).unwrap();
    let whole = zoned.share(0, 1).unwrap();
    let media = zoned.slice(whole).unwrap();
    run(async {
        let mut reset = Box::pin(media.reset(ChunkId(0)));
        let submitted = poll_fn(|context| Poll::Ready(reset.as_mut().poll(context))).await;
        assert!(submitted.is_pending());
        drop(reset);
        drop(media);
        assert!(matches!(zoned.slice(whole), Err(NamespaceError::Slice { .. })));
        drop(zoned);
        assert!(matches!(ZonedDevice::open(&path), Err(NamespaceError::InUse { .. })));
    });
    // The ring went with the runtime, and waited for it.
    ZonedDevice::open(&path).unwrap();
}

/// Its character device could write all over the file system.
#[test]
fn a_namespace_whose_block_device_is_mounted_is_refused_with_the_reason() {
    let Some(char) = device("TERRANE_MOUNTED_CHAR") else { return };
    assert!(matches!(ZonedDevice::open(&char), Err(NamespaceError::InUse { .. })));
    assert!(matches!(FdpDevice::open(&char), Err(NamespaceError::InUse { .. })));
    let refused = NodeDevice::open(&char, &DeviceOptions::default()).unwrap_err();
    assert!(matches!(refused, OpenError::Refused(Refusal::Mounted { .. })), "{refused}");
}

/// The block device beside a namespace's character device. Everything is reset by the way that a test takes, so the ways
/// do not meet in a zone.
fn block_device_beside(char: &Path) -> PathBuf {
    PathBuf::from(char.to_str().unwrap().replace("/ng", "/nvme"))
}

/// A namespace with media errors, and the chunk and sector of one of them.
fn with_bad_sector(variable: &str) -> Option<(Zoned, u32, u32)> {
    let (path, bad) = (device("TERRANE_BAD_ZNS_CHAR")?, number(variable)?);
    let zone_sectors = ZonedDevice::open(&path).unwrap().shape().zone_sectors as u32;
    Some((Zoned { path }, bad / zone_sectors, bad % zone_sectors))
}

fn a_sector_that_cannot_be_read_is_named(zoned: &Zoned, chunk: u32, sector: u32) {
    let probe = Probe::of(zoned.create());
    run(async {
        probe.write(chunk, 0, 3, sector as usize + 8).await.unwrap();
        let named = |found: MediaError, from: u32| match found {
            MediaError::Unreadable { chunk: at, sector: first } => {
                assert_eq!(at, ChunkId(chunk));
                assert!((from..=sector).contains(&first), "sector {first}");
            }
            other => panic!("{other}"),
        };
        named(probe.read(chunk, sector, 1).await.unwrap_err(), sector);
        named(probe.read(chunk, sector - 3, 8).await.unwrap_err(), sector - 3);
        named(probe.read(chunk, 0, sector as usize + 8).await.unwrap_err(), 0);
        // Its neighbours are good.
        probe.expect(chunk, 0, 3, sector as usize).await;
        probe.expect(chunk, sector + 1, 3_u8.wrapping_add((sector + 1) as u8), 7).await;
    });
}

#[test]
fn a_sector_that_cannot_be_read_is_named_by_passthrough() {
    if let Some((zoned, chunk, sector)) = with_bad_sector("TERRANE_BAD_SECTOR") {
        a_sector_that_cannot_be_read_is_named(&zoned, chunk, sector);
    }
}

#[test]
fn a_sector_that_cannot_be_read_is_named_on_a_block_device() {
    if let Some((Zoned { path }, chunk, sector)) = with_bad_sector("TERRANE_BAD_SECTOR") {
        let path = block_device_beside(&path);
        a_sector_that_cannot_be_read_is_named(&Zoned { path }, chunk, sector);
    }
}

fn a_sector_that_cannot_be_written_closes_the_chunk(zoned: &Zoned, chunk: u32, sector: u32) {
    let probe = Probe::of(zoned.create());
    run(async {
        probe.write(chunk, 0, 3, sector as usize).await.unwrap();
        // The second waits behind the first, and fails with it.
        let writes = (0..2).map(|index| probe.write(chunk, sector + index, 9, 1)).collect();
        for failed in all(writes).await {
            let named = matches!(
                failed,
                Err(MediaError::WriteFailed { chunk: at, sector: first }) if at == ChunkId(chunk) && first == sector
            );
            assert!(named, "{failed:?}");
        }
        assert_eq!(probe.state(chunk).await, (ChunkState::Closed, sector));
        probe.expect(chunk, 0, 3, sector as usize).await;
        // The next life is good up to the same place, and an append does not fare better.
        probe.reset(chunk).await;
        probe.write(chunk, 0, 5, sector as usize).await.unwrap();
        let (failed, _) = probe.media.append(ChunkId(chunk), probe.pattern(0, 1), Durability::Durable).await;
        let named = matches!(failed, Err(MediaError::WriteFailed { sector: first, .. }) if first == sector);
        assert!(named, "{failed:?}");
        probe.expect(chunk, 0, 5, sector as usize).await;
        // The other chunks go on, and a flush does not remember it.
        probe.write(chunk + 1, 0, 7, 9).await.unwrap();
        probe.media.flush().await.unwrap();
        probe.expect(chunk + 1, 0, 7, 9).await;
    });
}

#[test]
fn a_sector_that_cannot_be_written_closes_the_chunk_by_passthrough() {
    if let Some((zoned, chunk, sector)) = with_bad_sector("TERRANE_BAD_WRITE_SECTOR") {
        a_sector_that_cannot_be_written_closes_the_chunk(&zoned, chunk, sector);
    }
}

#[test]
fn a_sector_that_cannot_be_written_closes_the_chunk_on_a_block_device() {
    if let Some((Zoned { path }, chunk, sector)) = with_bad_sector("TERRANE_BAD_WRITE_SECTOR") {
        let path = block_device_beside(&path);
        a_sector_that_cannot_be_written_closes_the_chunk(&Zoned { path }, chunk, sector);
    }
}

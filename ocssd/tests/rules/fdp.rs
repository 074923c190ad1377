//! A namespace with flexible data placement, by passthrough.

use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::task::{Context, Waker};

use terrane_ocssd::{
    AlignedBuf, ChunkId, Durability, FdpDevice, FdpMedia, Geometry, LifetimeClass, Media, NamespaceError,
};

use crate::contract::{Harness, Probe, every_rule};
use crate::hardware::{Device, agrees_with_a_model, device, run};

/// Bytes of the largest command that the medium sends.
const COMMAND_BYTES_MAX: u32 = 256 << 10;

pub(crate) struct Fdp {
    pub(crate) path: PathBuf,
}

impl Device for Fdp {
    type Media = FdpMedia;

    fn open(&self) -> FdpMedia {
        let device = FdpDevice::open(&self.path).unwrap();
        device.slice(&device.share(0, 1).unwrap()).unwrap()
    }

    fn remembers_write_pointers(&self) -> bool {
        false
    }
}

#[test]
fn placed_data() {
    if let Some(path) = device("TERRANE_FDP_CHAR") {
        every_rule(&Fdp { path });
    }
}

#[test]
fn placed_data_agrees_with_a_model() {
    if let Some(path) = device("TERRANE_FDP_CHAR") {
        agrees_with_a_model(&Fdp { path }, "placed_data_agrees");
    }
}

/// Sectors that were written into the unit of each handle.
fn filled(path: &PathBuf) -> Vec<u64> {
    let device = FdpDevice::open(path).unwrap();
    let geometry = *device.slice(&device.share(0, 1).unwrap()).unwrap().geometry();
    filled_on(&device, &geometry)
}

fn filled_on(device: &FdpDevice, geometry: &Geometry) -> Vec<u64> {
    let handles = device.handles().unwrap();
    let chunk_sectors = u64::from(geometry.chunk_sectors);
    handles.iter().map(|handle| chunk_sectors - handle.unit_blocks_left).collect()
}

/// Without the directive in the write both classes fill the unit of the default handle.
#[test]
fn a_class_has_a_handle_of_its_own() {
    let Some(path) = device("TERRANE_FDP_CHAR") else { return };
    let fdp = Fdp { path: path.clone() };
    let probe = Probe::of(fdp.create());
    run(async {
        for (chunk, class, sectors) in [(0, 7, 40), (1, 9, 11), (2, 7, 5)] {
            probe.media.expect_lifetime(ChunkId(chunk), LifetimeClass(class));
            probe.write_as(chunk, 0, 1, sectors, Durability::Durable).await.unwrap();
            probe.media.finish(ChunkId(chunk)).await.unwrap();
        }
        probe.expect(0, 0, 1, 40).await;
    });
    drop(probe);
    let filled = filled(&path);
    // The third chunk is of the first's class, and began in an empty unit: without the update it would be 45.
    assert_eq!(filled[..2], [5, 11], "{filled:?}");
}

/// Chunks filled one after the other are units filled one after the other: nothing is moved, and the device says so.
///
/// QEMU counts what is left of a unit that is given up as written to the media; and as left it takes the command
/// that filled the unit to its end, even if nothing was. So the last command of each unit counts twice there.
#[test]
fn the_device_writes_no_more_than_the_host() {
    let Some(path) = device("TERRANE_FDP_CHAR") else { return };
    drop(Fdp { path: path.clone() }.create());
    let device = FdpDevice::open(&path).unwrap();
    let probe = Probe::of(device.slice(&device.share(0, 1).unwrap()).unwrap());
    let fill = async |chunks: &[u32]| {
        for chunk in chunks.iter().copied() {
            probe.reset(chunk).await;
            probe.media.expect_lifetime(ChunkId(chunk), LifetimeClass(chunk as u8 % 2));
            probe.write(chunk, 0, chunk as u8, probe.chunk_writes as usize).await.unwrap();
        }
    };
    // Whatever was begun before is given up, and both handles end at their units' ends.
    run(fill(&[0, 1]));
    let before = device.statistics().unwrap();
    let from = probe.media.counters().written_bytes;
    run(fill(&[0, 1, 2, 1, 0]));
    let after = device.statistics().unwrap();
    let written = probe.media.counters().written_bytes - from;
    assert_eq!(after.host_bytes - before.host_bytes, u128::from(written));
    let twice = 5 * u128::from(COMMAND_BYTES_MAX);
    assert!(after.media_bytes - before.media_bytes <= u128::from(written) + twice, "{before:?} {after:?}");
    assert!(after.amplification_since(&before).is_some_and(|amplification| amplification < 1.02));
    assert!(!device.handle_use().unwrap().is_empty());
}

#[test]
fn slices_have_handles_of_their_own() {
    let Some(path) = device("TERRANE_FDP_CHAR") else { return };
    let device = FdpDevice::open(path).unwrap();
    let (first, second) = (device.share(0, 2).unwrap(), device.share(1, 2).unwrap());
    assert!(first.handles.iter().all(|handle| !second.handles.contains(handle)));
    let one = device.slice(&first).unwrap();
    assert!(matches!(device.slice(&first), Err(NamespaceError::Slice { .. })), "handed out twice");
    let two = device.slice(&second).unwrap();
    assert_eq!(one.geometry(), two.geometry());
    drop((one, device));
    drop(two);
}

/// A slice that is handed out again: where its handle stands is asked anew. With what was known when the device was opened, the
/// handle would seem to be in an empty unit.
#[test]
fn the_next_owner_of_a_slice_begins_in_an_empty_unit() {
    let Some(path) = device("TERRANE_FDP_CHAR") else { return };
    let all = |device: &FdpDevice| Probe::of(device.slice(&device.share(0, 1).unwrap()).unwrap());
    let probe = Probe::of(Fdp { path: path.clone() }.create());
    // The handle's unit is full, and so the next one empty.
    run(probe.write(0, 0, 1, probe.chunk_writes as usize)).unwrap();
    drop(probe);
    let device = FdpDevice::open(path).unwrap();
    for (chunk, sectors) in [(1, 40), (2, 5)] {
        let probe = all(&device);
        run(async {
            probe.reset(chunk).await;
            probe.write(chunk, 0, 1, sectors).await.unwrap();
        });
        let filled = filled_on(&device, probe.media.geometry());
        assert_eq!(filled[0], sectors as u64, "{filled:?}");
    }
}

/// Submits an operation, and drops its future before it ends.
fn begin_and_drop<T>(operation: impl Future<Output = T>) {
    assert!(pin!(operation).poll(&mut Context::from_waker(Waker::noop())).is_pending());
}

/// The late deallocation would hit what the next owner wrote.
#[test]
fn a_slice_with_a_dropped_reset_or_write_is_not_handed_out_again() {
    let Some(path) = device("TERRANE_FDP_CHAR") else { return };
    let drops: [fn(&FdpMedia); 2] = [
        |media| begin_and_drop(media.reset(ChunkId(1))),
        |media| {
            let buf = AlignedBuf::zeroed(media.geometry().sector_bytes as usize);
            begin_and_drop(media.write(ChunkId(0), 0, buf, Durability::Volatile));
        },
    ];
    for drops in drops {
        let device = FdpDevice::open(&path).unwrap();
        let share = device.share(0, 1).unwrap();
        let media = device.slice(&share).unwrap();
        run(async {
            media.reset(ChunkId(0)).await.unwrap();
            drops(&media);
            drop(media);
        });
        assert!(matches!(device.slice(&share), Err(NamespaceError::Slice { .. })), "handed out again");
    }
}

/// Nobody would ever hear that it failed.
#[test]
fn a_dropped_flush_fails_the_later_flushes_of_every_slice() {
    let Some(path) = device("TERRANE_FDP_CHAR") else { return };
    let device = FdpDevice::open(path).unwrap();
    let [first, second] = [0, 1].map(|shard| device.slice(&device.share(shard, 2).unwrap()).unwrap());
    run(async {
        drop(first.flush());
        second.flush().await.unwrap();
        begin_and_drop(first.flush());
        assert!(second.flush().await.is_err());
        assert!(first.flush().await.is_err());
    });
}

/// However many entries it has: QEMU's is far shorter than one command.
#[test]
fn the_logs_are_read_in_full() {
    let Some(path) = device("TERRANE_FDP_CHAR") else { return };
    let device = FdpDevice::open(path).unwrap();
    assert_eq!(device.handle_use().unwrap().len(), usize::from(device.configuration().handles));
}

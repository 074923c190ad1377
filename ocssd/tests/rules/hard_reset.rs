//! What survives a hard reset of the machine, on every kind of device that the environment names.
//!
//! Two runs of the same test, told apart by `TERRANE_PHASE`: the first writes, the machine is reset as by its button, the
//! second looks. In QEMU the devices live on, and with them even what no flush covered; so this tests that the host
//! finds its way back from what the device reports, not that the device keeps what it promised.

use terrane_ocssd::{
    ChunkId, ChunkState, Durability, FdpDevice, FileDevice, FormatOptions, Media, ZonedDevice, format,
};

use crate::contract::{Harness, Probe, assert_rule};
use crate::fdp::Fdp;
use crate::hardware::{Phase, device, phase, run};
use crate::zoned::Zoned;

/// Units that were written durably, one by one; volatile and then flushed; and volatile only.
const DURABLE: u32 = 5;
const FLUSHED: u32 = 3;
const VOLATILE: u32 = 4;

async fn write<M: Media>(media: M) -> M {
    let probe = Probe::of(media);
    for chunk in 0..6 {
        probe.reset(chunk).await;
    }
    for at in 0..DURABLE {
        probe.write_as(0, at, 10 + at as u8, 1, Durability::Durable).await.unwrap();
    }
    probe.write(1, 0, 20, FLUSHED as usize).await.unwrap();
    probe.write(2, 0, 30, DURABLE as usize).await.unwrap();
    probe.media.finish(ChunkId(2)).await.unwrap();
    probe.write(3, 0, 40, probe.chunk_writes as usize).await.unwrap();
    probe.media.flush().await.unwrap();
    probe.write(4, 0, 50, VOLATILE as usize).await.unwrap();
    probe.into_media()
}

async fn verify<M: Media>(media: M, remembers_write_pointers: bool) {
    let probe = Probe::of(media);
    probe.expect(0, 0, 10, DURABLE as usize).await;
    probe.expect(1, 0, 20, FLUSHED as usize).await;
    probe.expect(2, 0, 30, DURABLE as usize).await;
    probe.expect(3, 0, 40, probe.chunk_writes as usize).await;
    let full = (ChunkState::Closed, probe.chunk_writes);
    if !remembers_write_pointers {
        for chunk in 0..6 {
            assert_eq!(probe.state(chunk).await, full);
        }
        return;
    }
    assert_eq!(probe.state(0).await, (ChunkState::Open, DURABLE));
    assert_eq!(probe.state(1).await, (ChunkState::Open, FLUSHED));
    assert_eq!(probe.state(2).await, full);
    assert_eq!(probe.state(3).await, full);
    assert_eq!(probe.state(5).await, (ChunkState::Free, 0));
    // What was not flushed may be gone, but only from its end.
    let (_, kept) = probe.state(4).await;
    assert!(kept <= VOLATILE);
    if kept > 0 {
        probe.expect(4, 0, 50, kept as usize).await;
    }
    assert_rule(probe.read(4, kept, 1).await, "read");
    // And it goes on where it stopped.
    probe.write_as(0, DURABLE, 10 + DURABLE as u8, 2, Durability::Durable).await.unwrap();
    probe.expect(0, 0, 10, DURABLE as usize + 2).await;
    assert_rule(probe.write(1, 0, 0, 1).await, "write");
}

fn in_this_phase<H: Harness>(harness: &H, open: impl Fn() -> H::Media) {
    match phase() {
        None => {}
        Some(Phase::Write) => drop(run(write(harness.create()))),
        Some(Phase::Verify) => run(verify(open(), harness.remembers_write_pointers())),
    }
}

#[test]
fn hard_reset_of_a_zoned_block_device() {
    if let Some(path) = device("TERRANE_ZNS_BLOCK") {
        let zoned = Zoned { path };
        in_this_phase(&zoned, || {
            let device = ZonedDevice::open(&zoned.path).unwrap();
            device.slice(device.share(0, 1).unwrap()).unwrap()
        });
    }
}

#[test]
fn hard_reset_of_zones_by_passthrough() {
    if let Some(path) = device("TERRANE_ZNS_CHAR") {
        let zoned = Zoned { path };
        in_this_phase(&zoned, || {
            let device = ZonedDevice::open(&zoned.path).unwrap();
            device.slice(device.share(0, 1).unwrap()).unwrap()
        });
    }
}

#[test]
fn hard_reset_of_placed_data() {
    if let Some(path) = device("TERRANE_FDP_CHAR") {
        let fdp = Fdp { path };
        in_this_phase(&fdp, || {
            let device = FdpDevice::open(&fdp.path).unwrap();
            device.slice(&device.share(0, 1).unwrap()).unwrap()
        });
    }
}

#[test]
fn hard_reset_of_a_conventional_device() {
    let Some(path) = device("TERRANE_CONV_BLOCK") else { return };
    match phase() {
        None => {}
        Some(Phase::Write) => {
            let options = FormatOptions {
                cluster: 1,
                node: 1,
                shards: 1,
                size_bytes: 9 << 20,
                chunk_bytes: Some(1 << 20),
                sector_bytes: None,
                force: true,
            };
            format(&path, &options, &mut |_, _| {}).unwrap();
            drop(run(write(FileDevice::open(&path).unwrap().slice(0).unwrap())));
        }
        Some(Phase::Verify) => run(verify(FileDevice::open(&path).unwrap().slice(0).unwrap(), false)),
    }
}

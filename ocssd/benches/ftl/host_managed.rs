//! The same log on flash that the host manages: what the emulated device counts, and the recorded writes on an ordinary
//! drive beside it.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::task::{Context as TaskContext, Poll, Waker};

use anyhow::Context;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use terrane_ocssd::trace::{Recorder, Trace};
use terrane_ocssd::{
    AlignedBuf, ChunkId, Durability, FlashDevice, FlashOptions, Geometry, LifetimeClass, Media, MediaError,
};

use crate::recorded::{self, Drive, Replay};
use crate::workload::{LOG_CLASSES, weighted};

/// 512 chunks of 256 KiB on four parallel units.
const GEOMETRY: Geometry = Geometry {
    groups: 2,
    parallel_units: 2,
    chunks: 128,
    chunk_sectors: 64,
    sector_bytes: 4096,
    ws_min: 4,
    ws_opt: 8,
    mw_cunits: 16,
    max_open: 0,
};

/// Share of the chunks that hold live data, percent.
const USED_PERCENT: u32 = 90;

/// How often the whole device is written.
const FILLS: u32 = 8;

/// A chunk is half a block of the ordinary drive, as in the table of workloads.
const BLOCK_PAGES: u32 = 2 * GEOMETRY.chunk_sectors;

/// Writes the log through a recorder, and replays the record.
pub(crate) fn run(spare: f64, seed: u64) -> anyhow::Result<Vec<Replay>> {
    let device = FlashDevice::memory(FlashOptions { geometry: GEOMETRY, seed, ..FlashOptions::default() })?;
    let (recorder, recording) = Recorder::new(device.slice(0, 1)?, Vec::new())?;
    complete(log(&recorder, seed)).context("writing to the emulated flash")?;
    let written = recorder.counters().written_bytes;
    let counted = device.counters();
    let own = Replay {
        name: "host-managed flash, by its counters".to_owned(),
        used_percent: None,
        trim: None,
        streams: None,
        host_bytes: counted.received_bytes,
        programmed_bytes: counted.programmed_bytes,
        device_wa: counted.amplification(),
    };
    let trace = Trace::read(&recording.end()?[..])?;
    let drive =
        Drive { uses: vec![100], over_provisioning: spare, block_pages: Some(BLOCK_PAGES), merge: true };
    let mut rows = recorded::replay_all("the same writes, ordinary drive", &trace, &drive)?;
    assert_eq!(counted.received_bytes, written, "the device counts what the medium counts");
    assert_eq!(trace.written_bytes(), written, "the record holds what the medium counts");
    rows.push(own);
    Ok(rows)
}

/// The log of the table of workloads: a chunk is open for each lifetime class, and a random chunk of the class is
/// recycled when it is full. At the end every chunk is full and everything is durable.
async fn log(media: &impl Media, seed: u64) -> Result<(), MediaError> {
    struct Class {
        live: Vec<u32>,
        live_max: usize,
        open: u32,
        next: u32,
    }

    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    let mut free: VecDeque<u32> = (0..GEOMETRY.chunk_count()).collect();
    let live_max = f64::from(GEOMETRY.chunk_count() * USED_PERCENT / 100);
    let mut classes: Vec<Class> = Vec::new();
    for (index, (_, live)) in LOG_CLASSES.into_iter().enumerate() {
        let open = free.pop_front().expect("a chunk is free");
        media.expect_lifetime(ChunkId(open), LifetimeClass(index as u8));
        classes.push(Class { live: Vec::new(), live_max: (live_max * live) as usize, open, next: 0 });
    }
    let requests = GEOMETRY.chunk_count() * FILLS * GEOMETRY.chunk_sectors / GEOMETRY.ws_opt;
    for _ in 0..requests {
        let index = weighted(&mut rng, LOG_CLASSES.iter().map(|(writes, _)| *writes));
        let class = &mut classes[index];
        let buf = AlignedBuf::zeroed((GEOMETRY.ws_opt * GEOMETRY.sector_bytes) as usize);
        media.write(ChunkId(class.open), class.next, buf, Durability::Volatile).await.0?;
        class.next += GEOMETRY.ws_opt;
        if class.next == GEOMETRY.chunk_sectors {
            class.live.push(class.open);
            if class.live.len() > class.live_max {
                let victim = class.live.swap_remove(rng.random_range(0..class.live.len()));
                media.reset(ChunkId(victim)).await?;
                free.push_back(victim);
            }
            class.next = 0;
            class.open = free.pop_front().expect("live chunks are fewer than all");
            media.expect_lifetime(ChunkId(class.open), LifetimeClass(index as u8));
        }
    }
    // To their ends by writing, not by `finish`: padding is the device's, and no part of the record.
    for class in classes.iter().filter(|class| class.next > 0) {
        let sectors = GEOMETRY.chunk_sectors - class.next;
        let buf = AlignedBuf::zeroed((sectors * GEOMETRY.sector_bytes) as usize);
        media.write(ChunkId(class.open), class.next, buf, Durability::Volatile).await.0?;
    }
    media.flush().await
}

/// Everything is in memory: nothing is worth waiting for.
fn complete<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = TaskContext::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
}

//! One cell of the probe: operations of one size at one depth, for a while.
//!
//! Each of `shards` threads works on its own slice of the device, through its own runtime; `depth` clients in all, spread
//! over the threads, each send an operation when their last one was answered. Each request is one operation of the
//! media: nothing is grouped.
//!
//! Counted is what completes within the window, which opens a little after the start, when all clients have an operation
//! in flight. A device so slow that nothing completed by then gets the time that its first read and write take.

use std::cell::RefCell;
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use anyhow::{anyhow, ensure};
use futures_util::lock::Mutex;
use hdrhistogram::Histogram;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use terrane_ocssd::{AlignedBuf, Device, DeviceMedia, Durability, Media};

use crate::device::chunks::Chunks;
use crate::device::report::{Latencies, Measured};
use crate::measure::tally::latencies;

/// The part of the window that passes before it, uncounted, and the most that may be.
const WARM_PART: u32 = 10;
const WARM_MAX: Duration = Duration::from_millis(300);

/// Bytes between the stamps that make every block written a new one.
const STAMP_EVERY: usize = 4096;

/// Fewest chunks of a slice for so many requests in flight: one to write, one to read, and one that each request holds.
pub(crate) const fn chunks_min(in_flight: u32) -> u32 {
    in_flight + 2
}

/// What is asked of the device: `depth` requests in flight, each of `bytes` (rounded up to whole sectors), a read with
/// the probability `read_share` and else a write, durable or not.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cell {
    /// Bytes of each request, before they are rounded up to sectors.
    pub(crate) bytes: u32,
    /// Requests in flight, over all shards.
    pub(crate) depth: u32,
    /// Share of reads among the requests, from 0 to 1.
    pub(crate) read_share: f64,
    /// Writes survive power loss once they are answered.
    pub(crate) durable: bool,
}

/// Tells measurements, from any thread, to end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Ends them.
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether they are to end.
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Measures one cell on a device whose every chunk was written. `None`: it was stopped before its end.
///
/// # Errors
/// If the device is too small for the cell, or an operation fails.
pub(crate) fn measure(
    device: &Device,
    cell: Cell,
    window: Duration,
    stop: &Stop,
) -> anyhow::Result<Option<Measured>> {
    let superblock = device.superblock();
    let bytes = cell.bytes.max(1).next_multiple_of(superblock.sector_bytes);
    let cell = Cell { bytes, depth: cell.depth.max(1), ..cell };
    // No more threads than there are requests to share out.
    let shards = superblock.shards.min(cell.depth);
    let clients = |shard: u32| cell.depth / shards + u32::from(shard < cell.depth % shards);
    ensure!(
        (0.0..=1.0).contains(&cell.read_share),
        "a share of reads is from 0 to 1, not {}",
        cell.read_share
    );
    let chunks_min = if cell.read_share < 1.0 { chunks_min(clients(0)) } else { 1 };
    ensure!(
        u64::from(bytes) <= superblock.chunk_bytes
            && superblock.slice_bytes / superblock.chunk_bytes >= u64::from(chunks_min),
        "{} is too small for {} requests of {bytes} bytes at once: give the probe a larger size",
        device.path().display(),
        cell.depth,
    );
    // Set by a thread that fails, so that the others end too.
    let failed = Stop::default();
    let together = Barrier::new(shards as usize);
    let run = |shard: u32| {
        let clients = clients(shard);
        let ready = crate::ring::runtime(clients).and_then(|mut ring| {
            let media = ring.block_on(device.slice(shard))?;
            Ok((ring, media))
        });
        if ready.is_err() {
            failed.set();
        }
        together.wait();
        let (mut ring, media) = ready?;
        let stops = [stop.clone(), failed.clone()];
        ring.block_on(serve(media, cell, clients, window, stops)).inspect_err(|_| failed.set())
    };
    let tallies: anyhow::Result<Vec<Tally>> = std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = (0..shards).map(|shard| scope.spawn(move || run(shard))).collect();
        let joined = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        // Each is joined, whatever the first of them came to.
        joined.collect::<Vec<_>>().into_iter().collect()
    });
    let tallies = tallies?;
    Ok((!stop.is_set()).then(|| measured(cell, window, &tallies)))
}

/// What the shards' tallies come to.
fn measured(cell: Cell, window: Duration, tallies: &[Tally]) -> Measured {
    let (mut reads, mut writes) = (latencies(), latencies());
    let mut seconds = window;
    for tally in tallies {
        // Equal bounds: they always can be added.
        let added = reads.add(&tally.reads).and(writes.add(&tally.writes));
        debug_assert!(added.is_ok());
        seconds = seconds.max(tally.last.saturating_duration_since(tally.begin));
    }
    let seconds = seconds.as_secs_f64();
    let operations = reads.len() + writes.len();
    let ops_s = operations as f64 / seconds;
    // The process's, so one thread's word is enough.
    let cpu = tallies[0].cpu_to.saturating_sub(tallies[0].cpu_from);
    Measured {
        bytes: cell.bytes,
        depth: cell.depth,
        read_share: cell.read_share,
        durable: cell.durable,
        seconds,
        operations,
        ops_s,
        mb_s: ops_s * f64::from(cell.bytes) / 1e6,
        cpu_s_per_mops: cpu.as_secs_f64() * 1e6 / operations.max(1) as f64,
        reads: Latencies::of(&reads),
        writes: Latencies::of(&writes),
    }
}

/// One shard's part: this many clients on its slice until the window is over.
async fn serve(
    media: DeviceMedia,
    cell: Cell,
    clients: u32,
    window: Duration,
    stops: [Stop; 2],
) -> anyhow::Result<Tally> {
    let geometry = *media.geometry();
    let sectors = cell.bytes / geometry.sector_bytes;
    let begin = Instant::now() + (window / WARM_PART).min(WARM_MAX);
    let shard = Rc::new(Shard {
        media,
        cell,
        chunks: RefCell::new(Chunks::new(geometry.chunk_count(), geometry.chunk_sectors, sectors)),
        turn: Mutex::new(()),
        tally: RefCell::new(Tally::new(cell, begin, begin + window)),
        stops,
    });
    // Others every time: the device may still hold what an earlier cell read.
    let seeds = RandomState::new();
    let clients: Vec<_> = (0..clients)
        .map(|client| {
            let (shard, seed) = (shard.clone(), seeds.hash_one(client));
            monoio::spawn(async move { shard.client(seed).await.inspect_err(|_| shard.stops[1].set()) })
        })
        .collect();
    let mut result = Ok(());
    for client in clients {
        // All are waited for, so that no write is in flight when the media goes.
        result = result.and(client.await);
    }
    result?;
    // What is still in the device's cache is not left for the next cell to pay.
    if cell.read_share < 1.0 {
        shard.media.flush().await?;
    }
    Ok(shard.tally.replace(Tally::new(cell, begin, begin)))
}

/// What the clients of one shard share.
struct Shard {
    media: DeviceMedia,
    cell: Cell,
    chunks: RefCell<Chunks>,
    /// Held from the choice of a write's place until its chunk is reset, if it has to be.
    turn: Mutex<()>,
    tally: RefCell<Tally>,
    /// What ends the shard early: the user's word, and another thread's failure.
    stops: [Stop; 2],
}

impl Shard {
    /// Sends one request after the other.
    async fn client(&self, seed: u64) -> anyhow::Result<()> {
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        let mut buf = AlignedBuf::zeroed(self.cell.bytes as usize);
        // No two blocks alike: some devices compress, and some find duplicates.
        rng.fill(&mut buf[..]);
        loop {
            let from = Instant::now();
            if self.stops.iter().any(Stop::is_set) || self.tally.borrow_mut().over(from) {
                return Ok(());
            }
            let read = rng.random_bool(self.cell.read_share);
            let result;
            if read {
                let (chunk, sector) = self.chunks.borrow_mut().begin_read(&mut rng);
                let answer = self.media.read(chunk, sector, buf).await;
                self.chunks.borrow_mut().end(chunk);
                (result, buf) = (answer.0.map_err(Into::into), answer.1);
            } else {
                stamp(&mut buf, rng.random());
                (result, buf) = self.write(buf).await;
            }
            result?;
            self.tally.borrow_mut().note(read, from, Instant::now());
        }
    }

    async fn write(&self, buf: AlignedBuf) -> (anyhow::Result<()>, AlignedBuf) {
        let turn = self.turn.lock().await;
        let place = self.chunks.borrow_mut().begin_write();
        let Some(place) = place else {
            return (Err(anyhow!("every chunk of the slice is in use")), buf);
        };
        if place.reset
            && let Err(error) = self.media.reset(place.chunk).await
        {
            return (Err(error.into()), buf);
        }
        drop(turn);
        let durability = if self.cell.durable { Durability::Durable } else { Durability::Volatile };
        let (result, buf) = self.media.append(place.chunk, buf, durability).await;
        self.chunks.borrow_mut().end(place.chunk);
        (result.map(drop).map_err(Into::into), buf)
    }
}

/// Makes every block of the buffer one that was not written before.
pub(crate) fn stamp(buf: &mut [u8], stamp: u64) {
    for (block, bytes) in (0..).zip(buf.chunks_mut(STAMP_EVERY)) {
        // A sector is longer than its stamp.
        bytes[..8].copy_from_slice(&(stamp ^ block).to_le_bytes());
    }
}

/// What one shard counted.
#[derive(Debug)]
struct Tally {
    cell: Cell,
    begin: Instant,
    end: Instant,
    reads: Histogram<u64>,
    writes: Histogram<u64>,
    /// When the last operation that counts completed.
    last: Instant,
    /// What the process had used when the window opened, and when it closed.
    cpu_from: Duration,
    cpu_to: Duration,
}

impl Tally {
    fn new(cell: Cell, begin: Instant, end: Instant) -> Self {
        let cpu = cpu();
        let (reads, writes) = (latencies(), latencies());
        Tally { cell, begin, end, reads, writes, last: begin, cpu_from: cpu, cpu_to: cpu }
    }

    /// An operation completed. It counts within the window, and after it as long as there was none of its kind.
    fn note(&mut self, read: bool, from: Instant, done: Instant) {
        if done < self.begin {
            return;
        }
        if self.reads.is_empty() && self.writes.is_empty() && done < self.end {
            self.cpu_from = cpu();
        }
        let kind = if read { &mut self.reads } else { &mut self.writes };
        if done <= self.end || kind.is_empty() {
            kind.saturating_record(u64::try_from((done - from).as_nanos()).unwrap_or(u64::MAX));
            self.last = self.last.max(done);
        }
    }

    /// Whether enough was counted by `now`.
    fn over(&mut self, now: Instant) -> bool {
        let missing = (self.cell.read_share > 0.0 && self.reads.is_empty())
            || (self.cell.read_share < 1.0 && self.writes.is_empty());
        let over = now >= self.end && !missing;
        if over && self.cpu_to <= self.cpu_from {
            self.cpu_to = cpu();
        }
        over
    }
}

/// User and system time of this process so far, with its io_uring workers.
fn cpu() -> Duration {
    let duration =
        |time: TimeVal| Duration::new(time.tv_sec().try_into().unwrap_or(0), time.tv_usec() as u32 * 1_000);
    match getrusage(UsageWho::RUSAGE_SELF) {
        Ok(usage) => duration(usage.user_time()) + duration(usage.system_time()),
        Err(error) => unreachable!("a process may ask what it used: {error}"),
    }
}

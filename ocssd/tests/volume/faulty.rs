//! A simulated device whose chunks go bad by plan, and which keeps the last `mw_cunits` sectors of an open chunk in a
//! buffer that dies with the power.
//!
//! Writes, resets and reads are counted in the order in which they are submitted, over all lives of the device. A chunk
//! that failed is closed: at the failed sector, or below it by as much as the device had accepted and not programmed.
//! After a power cut an open chunk may come back closed at any sector down to `mw_cunits` below what was flushed.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use terrane_ocssd::{
    AlignedBuf, ChunkId, ChunkInfo, ChunkState, Durability, Geometry, LifetimeClass, Media, MediaCounters,
    MediaError, Notice, SimMedia, SimOptions,
};

/// What happens to a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// [`MediaError::WriteFailed`] at the write's first sector.
    Failed,
    /// The same, and the buffered sectors below it are gone too.
    FailedWithBuffer,
    /// [`MediaError::ClosedEarly`].
    ClosedEarly,
    /// The chunk goes offline.
    Offline,
    /// An error that names no chunk.
    Io,
}

/// What happens to a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadFault {
    /// An error that says nothing of the sectors.
    Io,
    /// [`MediaError::Unreadable`].
    Unreadable,
    /// The device refuses it.
    Rule,
}

#[derive(Debug, Clone, Default)]
struct Chunk {
    /// Nothing at or above this sector is there, and nothing can be written.
    cap: Option<u32>,
    /// All below completed and was flushed.
    flushed: u32,
    /// All below completed.
    done: u32,
    in_flight: u32,
    /// What a power cut left: it is programmed, no later one takes it.
    programmed: u32,
    /// Writes that completed before those below them: first sector, end, whether durable.
    early: BTreeMap<u32, (u32, bool)>,
}

impl Chunk {
    fn completed(&mut self, sector: u32, end: u32, durable: bool) {
        self.early.insert(sector, (end, durable));
        while let Some((end, durable)) = self.early.remove(&self.done) {
            if durable && self.flushed == self.done {
                self.flushed = end;
            }
            self.done = end;
        }
    }
}

#[derive(Default)]
struct Plan {
    writes: u64,
    resets: u64,
    faults: BTreeMap<u64, Fault>,
    bad_resets: BTreeMap<u64, ()>,
    reads: u64,
    read_faults: BTreeMap<u64, ReadFault>,
    failing_finishes: u32,
    kept_at_reset: BTreeSet<ChunkId>,
    chunks: BTreeMap<ChunkId, Chunk>,
    notices: Vec<Notice>,
    lose_buffer: bool,
    rng: Option<Pcg64Mcg>,
    /// Chance of a fault of each write and reset, in a thousand.
    chance: u32,
    faults_left: u32,
}

/// The device. A value is a handle: clones share it, those of one life.
#[derive(Clone)]
pub(crate) struct Faulty {
    pub(crate) sim: SimMedia,
    plan: Rc<RefCell<Plan>>,
    protects: Rc<Cell<bool>>,
}

/// Pending once.
struct Yield(bool);

impl Future for Yield {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Faulty {
    pub(crate) fn new(geometry: Geometry, seed: u64, yields_max: u32) -> Self {
        // Odd seeds keep old content behind a reset, even ones zero it: each shows what the other hides.
        let stale = !seed.is_multiple_of(2);
        // What of its buffer dies with the power is decided here.
        let options = SimOptions {
            seed,
            yields_max,
            conventional: false,
            stale,
            protected_buffer: true,
            ..SimOptions::default()
        };
        let plan =
            Plan { lose_buffer: true, rng: Some(Pcg64Mcg::seed_from_u64(seed ^ 1)), ..Plan::default() };
        Self {
            sim: SimMedia::new(geometry, options),
            plan: Rc::new(RefCell::new(plan)),
            protects: Rc::new(Cell::new(false)),
        }
    }

    /// Whether a flush covers the buffer too.
    pub(crate) fn protect_buffer(&self, protects: bool) {
        self.protects.set(protects);
    }

    /// The `n`-th write from now, counted from 1, fails.
    pub(crate) fn fail_write(&self, n: u64, fault: Fault) {
        let mut plan = self.plan.borrow_mut();
        let at = plan.writes + n;
        plan.faults.insert(at, fault);
    }

    /// The `n`-th reset from now, counted from 1, fails and takes the chunk offline.
    pub(crate) fn fail_reset(&self, n: u64) {
        let mut plan = self.plan.borrow_mut();
        let at = plan.resets + n;
        plan.bad_resets.insert(at, ());
    }

    /// The `n`-th read from now, counted from 1, fails.
    pub(crate) fn fail_read(&self, n: u64, fault: ReadFault) {
        let mut plan = self.plan.borrow_mut();
        let at = plan.reads + n;
        plan.read_faults.insert(at, fault);
    }

    /// The next finishes fail, so many, and leave the chunks open.
    pub(crate) fn fail_finishes(&self, count: u32) {
        self.plan.borrow_mut().failing_finishes = count;
    }

    /// Every reset of the chunk fails, and leaves it as it is.
    pub(crate) fn keep_at_reset(&self, chunk: ChunkId) {
        self.plan.borrow_mut().kept_at_reset.insert(chunk);
    }

    /// Each write and reset may fail, by that chance in a thousand, until so many did.
    pub(crate) fn fail_at_random(&self, chance: u32, faults: u32) {
        let mut plan = self.plan.borrow_mut();
        plan.chance = chance;
        plan.faults_left = faults;
    }

    pub(crate) fn writes(&self) -> u64 {
        self.plan.borrow().writes
    }

    pub(crate) fn notice(&self, notice: Notice) {
        self.plan.borrow_mut().notices.push(notice);
    }

    /// The power goes, if it has not, and comes back.
    pub(crate) fn power_cycle(&self) {
        self.sim.power_on();
        let geometry = *self.sim.geometry();
        let report = block_on(self.sim.report()).unwrap();
        let mut plan = self.plan.borrow_mut();
        let plan = &mut *plan;
        for info in report {
            let chunk = plan.chunks.entry(info.id).or_default();
            chunk.in_flight = 0;
            chunk.early.clear();
            if let Some(cap) = chunk.cap {
                chunk.cap = Some(cap.min(info.write_pointer)).filter(|_| info.state != ChunkState::Free);
            } else if info.state == ChunkState::Open && geometry.mw_cunits > 0 && !self.protects.get() {
                let rng = plan.rng.as_mut().unwrap();
                let flushed = chunk.flushed.min(info.write_pointer).saturating_sub(geometry.mw_cunits);
                let floor = flushed.max(chunk.programmed.min(info.write_pointer));
                let steps = (info.write_pointer - floor.next_multiple_of(geometry.ws_min)) / geometry.ws_min;
                if plan.lose_buffer && rng.random_bool(0.5) {
                    chunk.cap = Some(info.write_pointer - rng.random_range(0..=steps) * geometry.ws_min);
                }
            }
            if chunk.cap.is_some() && info.state == ChunkState::Open {
                // It does not count as open any more.
                block_on(self.sim.finish(info.id)).unwrap();
            }
            chunk.done = chunk.cap.unwrap_or(info.write_pointer);
            chunk.flushed = chunk.done;
            chunk.programmed = chunk.done;
        }
    }

    /// The host's process starts again.
    pub(crate) fn restart(&self) {
        self.sim.restart();
        let report = block_on(self.sim.report()).unwrap();
        let mut plan = self.plan.borrow_mut();
        for info in report {
            let chunk = plan.chunks.entry(info.id).or_default();
            chunk.in_flight = 0;
            if chunk.cap.is_some() && info.state == ChunkState::Open {
                block_on(self.sim.finish(info.id)).unwrap();
            }
        }
    }

    /// The next fault, if this write or reset has one.
    fn chance(plan: &mut Plan) -> Option<Fault> {
        let rng = plan.rng.as_mut().unwrap();
        if plan.faults_left == 0 || rng.random_range(0..1000) >= plan.chance {
            return None;
        }
        plan.faults_left -= 1;
        let faults = [Fault::Failed, Fault::FailedWithBuffer, Fault::ClosedEarly];
        Some(faults[rng.random_range(0..faults.len())])
    }

    async fn fail(&self, fault: Fault, chunk: ChunkId, sector: u32) -> MediaError {
        let geometry = *self.sim.geometry();
        let failed = MediaError::WriteFailed { chunk, sector };
        match fault {
            Fault::Io => return planned("write", chunk, sector),
            Fault::Offline => {
                self.sim.take_offline(chunk);
                return MediaError::Offline { chunk };
            }
            Fault::Failed | Fault::FailedWithBuffer | Fault::ClosedEarly => {}
        }
        let at = {
            let mut plan = self.plan.borrow_mut();
            let this = plan.chunks.entry(chunk).or_default();
            let buffered = if fault == Fault::FailedWithBuffer { geometry.mw_cunits } else { 0 };
            // What is durable stays so.
            let kept = if self.protects.get() { 0 } else { geometry.mw_cunits };
            let floor = this.flushed.saturating_sub(kept).max(this.programmed);
            let floor = floor.next_multiple_of(geometry.ws_min);
            let at =
                (sector.saturating_sub(buffered)).max(floor).next_multiple_of(geometry.ws_min).min(sector);
            this.cap = Some(at);
            at
        };
        // The device closes the chunk; writes that were submitted before go first.
        while matches!(self.sim.finish(chunk).await, Err(MediaError::Rule { .. })) {
            let idle = self.plan.borrow().chunks[&chunk].in_flight == 0;
            if idle {
                break;
            }
            Yield(false).await;
        }
        match (fault, failed) {
            (Fault::ClosedEarly, _) => MediaError::ClosedEarly { chunk, write_pointer: at },
            _ => MediaError::WriteFailed { chunk, sector: at },
        }
    }
}

impl Media for Faulty {
    fn geometry(&self) -> &Geometry {
        self.sim.geometry()
    }

    fn protects_buffer(&self) -> bool {
        self.protects.get() || self.geometry().mw_cunits == 0
    }

    async fn report(&self) -> Result<Vec<ChunkInfo>, MediaError> {
        let mut report = self.sim.report().await?;
        let plan = self.plan.borrow();
        for info in &mut report {
            let cap = plan.chunks.get(&info.id).and_then(|chunk| chunk.cap);
            // A chunk that failed its first write is free beneath, and closed for all that the host is told.
            if let (Some(cap), true) = (cap, info.state != ChunkState::Offline) {
                info.write_pointer = cap;
                info.state = ChunkState::Closed;
            }
        }
        Ok(report)
    }

    async fn write(
        &self,
        chunk: ChunkId,
        sector: u32,
        buf: AlignedBuf,
        durability: Durability,
    ) -> (Result<(), MediaError>, AlignedBuf) {
        let fault = {
            let mut plan = self.plan.borrow_mut();
            plan.writes += 1;
            let n = plan.writes;
            let this = plan.chunks.entry(chunk).or_default();
            if this.cap.is_some() {
                let reason = "the chunk is closed; reset it first";
                return (Err(MediaError::Rule { operation: "write", chunk, sector, reason }), buf);
            }
            let planned = plan.faults.remove(&n);
            planned.or_else(|| Self::chance(&mut plan))
        };
        if let Some(fault) = fault {
            return (Err(self.fail(fault, chunk, sector).await), buf);
        }
        let end = sector + (buf.len() / self.geometry().sector_bytes as usize) as u32;
        self.plan.borrow_mut().chunks.get_mut(&chunk).unwrap().in_flight += 1;
        let (result, buf) = self.sim.write(chunk, sector, buf, durability).await;
        let mut plan = self.plan.borrow_mut();
        let this = plan.chunks.get_mut(&chunk).unwrap();
        this.in_flight = this.in_flight.saturating_sub(1);
        if result.is_ok() {
            this.completed(sector, end, durability == Durability::Durable);
        }
        (result, buf)
    }

    async fn append(
        &self,
        _chunk: ChunkId,
        _buf: AlignedBuf,
        _durability: Durability,
    ) -> (Result<u32, MediaError>, AlignedBuf) {
        unreachable!("a volume chooses the place itself")
    }

    async fn read(
        &self,
        chunk: ChunkId,
        sector: u32,
        buf: AlignedBuf,
    ) -> (Result<(), MediaError>, AlignedBuf) {
        let (cap, fault) = {
            let mut plan = self.plan.borrow_mut();
            plan.reads += 1;
            let n = plan.reads;
            (plan.chunks.get(&chunk).and_then(|chunk| chunk.cap), plan.read_faults.remove(&n))
        };
        if let Some(fault) = fault {
            let error = match fault {
                ReadFault::Io => planned("read", chunk, sector),
                ReadFault::Unreadable => MediaError::Unreadable { chunk, sector },
                ReadFault::Rule => MediaError::Rule { operation: "read", chunk, sector, reason: "planned" },
            };
            return (Err(error), buf);
        }
        let end = sector + (buf.len() / self.geometry().sector_bytes as usize) as u32;
        if cap.is_some_and(|cap| end > cap) {
            let reason = "the read reaches beyond the write pointer";
            return (Err(MediaError::Rule { operation: "read", chunk, sector, reason }), buf);
        }
        // The device closes the chunk before it says that a write of it failed.
        let report = self.sim.report().await;
        if cap.is_some() && report.is_ok_and(|report| report[chunk.0 as usize].state == ChunkState::Open) {
            let _ = self.sim.finish(chunk).await;
        }
        self.sim.read(chunk, sector, buf).await
    }

    fn expect_lifetime(&self, chunk: ChunkId, class: LifetimeClass) {
        self.sim.expect_lifetime(chunk, class);
    }

    fn take_notices(&self) -> Vec<Notice> {
        std::mem::take(&mut self.plan.borrow_mut().notices)
    }

    async fn reset(&self, chunk: ChunkId) -> Result<(), MediaError> {
        let bad = {
            let mut plan = self.plan.borrow_mut();
            if plan.kept_at_reset.contains(&chunk) {
                return Err(planned("reset", chunk, 0));
            }
            plan.resets += 1;
            let n = plan.resets;
            let planned = plan.bad_resets.remove(&n).is_some();
            planned || Self::chance(&mut plan).is_some()
        };
        if bad {
            self.sim.take_offline(chunk);
            return Err(MediaError::Offline { chunk });
        }
        self.sim.reset(chunk).await?;
        self.plan.borrow_mut().chunks.insert(chunk, Chunk::default());
        Ok(())
    }

    async fn finish(&self, chunk: ChunkId) -> Result<(), MediaError> {
        {
            let mut plan = self.plan.borrow_mut();
            if plan.failing_finishes > 0 {
                plan.failing_finishes -= 1;
                return Err(planned("finish", chunk, 0));
            }
        }
        if self.plan.borrow().chunks.get(&chunk).is_some_and(|chunk| chunk.cap.is_some()) {
            let reason = "only an open chunk can be finished";
            return Err(MediaError::Rule { operation: "finish", chunk, sector: 0, reason });
        }
        self.sim.finish(chunk).await
    }

    async fn flush(&self) -> Result<(), MediaError> {
        let marks: Vec<(ChunkId, u32)> =
            self.plan.borrow().chunks.iter().map(|(id, chunk)| (*id, chunk.done)).collect();
        self.sim.flush().await?;
        let mut plan = self.plan.borrow_mut();
        for (id, done) in marks {
            let chunk = plan.chunks.entry(id).or_default();
            chunk.flushed = chunk.flushed.max(done.min(chunk.done));
        }
        Ok(())
    }

    fn counters(&self) -> MediaCounters {
        self.sim.counters()
    }
}

/// An error that says nothing but that the operation failed.
fn planned(operation: &'static str, chunk: ChunkId, sector: u32) -> MediaError {
    MediaError::Io { operation, chunk, sector, source: std::io::Error::other("planned") }
}

/// Polls until ready. The simulated medium wakes itself, so polling again is all that waking does.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = Context::from_waker(std::task::Waker::noop());
    for _ in 0..1_000_000 {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
    panic!("it waits for something that never comes");
}

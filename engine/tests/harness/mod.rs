//! What the suites share: an executor that polls only what was woken, and a store on simulated media.

#![allow(dead_code, reason = "each suite uses a part of it")]

pub(crate) mod placement;

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use terrane_engine::{ENTRY_OPS, Entry, OpenError, Options, Recovery, SliceId, Store, StoreError, op};
use terrane_ocssd::{AlignedBuf, ChunkId, Geometry, Media, SimMedia, SimOptions};

pub(crate) const SLICE: SliceId = SliceId { cluster: 0xc1, node: 3, shard: 1 };

/// Chunks of 16 KiB.
pub(crate) const fn geometry(chunks: u32) -> Geometry {
    Geometry {
        groups: 1,
        parallel_units: 1,
        chunks,
        chunk_sectors: 32,
        sector_bytes: 512,
        ws_min: 1,
        ws_opt: 8,
        mw_cunits: 0,
        max_open: 0,
    }
}

pub(crate) fn options() -> Options {
    Options { cache_bytes: 4 << 10, tail_bytes: 64 << 10, commit_mark_bytes: 1 << 10, ..Options::default() }
}

/// Options with which what is pending is often split over flushes.
pub(crate) fn small_flushes() -> Options {
    Options { flush_bytes_max: 4 << 10, ..options() }
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Task {
    future: Pin<Box<dyn Future<Output = ()>>>,
    flag: Arc<Flag>,
}

/// Tasks of one thread. A task whose wake-up is lost is never polled again.
#[derive(Default)]
pub(crate) struct Executor {
    tasks: Vec<Task>,
}

impl Executor {
    pub(crate) fn spawn(&mut self, future: impl Future<Output = ()> + 'static) {
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        self.tasks.push(Task { future: Box::pin(future), flag });
    }

    /// Polls what is ready, round after round. False once nothing is.
    pub(crate) fn round(&mut self) -> bool {
        let mut polled = false;
        self.tasks.retain_mut(|task| {
            if !task.flag.0.swap(false, Ordering::Relaxed) {
                return true;
            }
            polled = true;
            let waker = Waker::from(Arc::clone(&task.flag));
            task.future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending()
        });
        polled
    }

    /// Runs until nothing is ready any more.
    pub(crate) fn settle(&mut self) {
        while self.round() {}
    }

    /// Runs until `main` is done.
    pub(crate) fn block_on<T: 'static>(&mut self, main: impl Future<Output = T> + 'static) -> T {
        let out = Rc::new(RefCell::new(None));
        let slot = Rc::clone(&out);
        self.spawn(async move {
            let value = main.await;
            *slot.borrow_mut() = Some(value);
        });
        loop {
            if let Some(value) = out.borrow_mut().take() {
                return value;
            }
            assert!(self.round(), "nothing is ready, and the future is not done: a wake-up was lost");
        }
    }
}

/// Polls one future to its end, on its own.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let flag = Arc::new(Flag(AtomicBool::new(true)));
    let waker = Waker::from(Arc::clone(&flag));
    loop {
        assert!(flag.0.swap(false, Ordering::Relaxed), "a wake-up was lost");
        if let Poll::Ready(out) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return out;
        }
    }
}

/// A store with its flusher running.
pub(crate) struct Node {
    pub(crate) media: SimMedia,
    pub(crate) store: Store<SimMedia>,
    pub(crate) recovery: Recovery,
    pub(crate) executor: Executor,
    pub(crate) flusher: Rc<RefCell<Option<Result<(), StoreError>>>>,
}

impl Node {
    pub(crate) fn format(media: &SimMedia) {
        block_on(Store::format(media, SLICE)).expect("a blank slice can be formatted");
    }

    pub(crate) fn try_open(media: &SimMedia, options: Options) -> Result<Self, OpenError> {
        let (store, recovery) = block_on(Store::open(media.clone(), SLICE, options))?;
        let mut executor = Executor::default();
        let flusher = Rc::new(RefCell::new(None));
        let (end, running) = (Rc::clone(&flusher), store.clone());
        executor.spawn(async move {
            let result = running.run_flusher().await;
            *end.borrow_mut() = Some(result);
        });
        Ok(Self { media: media.clone(), store, recovery, executor, flusher })
    }

    pub(crate) fn open(media: &SimMedia) -> Self {
        Self::try_open(media, options()).expect("the slice can be opened")
    }

    /// A formatted device and an open store on it.
    pub(crate) fn fresh(chunks: u32) -> Self {
        let media = SimMedia::new(geometry(chunks), SimOptions::default());
        Self::format(&media);
        Self::open(&media)
    }

    /// Waits for durability.
    pub(crate) fn wait(&mut self, durable: impl Future<Output = Result<(), StoreError>> + 'static) {
        self.executor.block_on(durable).expect("the change becomes durable");
    }

    pub(crate) fn block_on<T: 'static>(&mut self, main: impl Future<Output = T> + 'static) -> T {
        self.executor.block_on(main)
    }

    /// Loses power, then opens the store again.
    pub(crate) fn power_cycle(self) -> Self {
        let media = self.media.clone();
        drop(self);
        // This handle lives on; older ones are dead.
        media.power_on();
        Self::open(&media)
    }
}

/// Frames on the medium, in the order of their places: chunk, sector, flush number, sectors.
pub(crate) fn frames(media: &SimMedia, chunks: u32) -> Vec<FoundFrame> {
    let mut found = Vec::new();
    let report = block_on(media.report()).expect("the medium reports");
    for chunk in (2..chunks).map(ChunkId) {
        let sectors = report[chunk.0 as usize].write_pointer as usize;
        if sectors == 0 {
            continue;
        }
        let (result, bytes) = block_on(media.read(chunk, 0, AlignedBuf::zeroed(sectors * 512)));
        result.expect("the medium reads");
        for (sector, bytes) in bytes.chunks(512).enumerate() {
            if bytes.starts_with(b"TRNF") {
                let flush = u64::from_le_bytes(bytes[20..28].try_into().unwrap());
                let body = u32::from_le_bytes(bytes[36..40].try_into().unwrap());
                found.push(FoundFrame {
                    chunk,
                    sector: sector as u32,
                    flush,
                    sectors: (64 + body).div_ceil(512),
                });
            }
        }
    }
    found
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FoundFrame {
    pub(crate) chunk: ChunkId,
    pub(crate) sector: u32,
    pub(crate) flush: u64,
    pub(crate) sectors: u32,
}

pub(crate) fn put(term: u64, key: &str, value: &[u8]) -> Entry {
    Entry { term, kind: ENTRY_OPS, payload: op::encode_put(key.as_bytes(), value, None) }
}

pub(crate) fn delete(term: u64, key: &str) -> Entry {
    Entry { term, kind: ENTRY_OPS, payload: op::encode_delete(key.as_bytes()) }
}

pub(crate) fn noop(term: u64) -> Entry {
    Entry { term, kind: terrane_engine::ENTRY_NOOP, payload: Bytes::new() }
}

/// The seeds to run: 0 to `count`, or to `TERRANE_SEEDS` (for a long run), or `TERRANE_SEED` alone.
pub(crate) fn seeds(count: u64) -> Vec<u64> {
    let number = |name| std::env::var(name).ok().map(|value| value.parse().expect("a number"));
    match number("TERRANE_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("TERRANE_SEEDS").unwrap_or(count)).collect(),
    }
}

/// Says how to run a failing seed again.
pub(crate) struct Replay {
    pub(crate) seed: u64,
    pub(crate) suite: &'static str,
    pub(crate) test: &'static str,
}

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self { seed, suite, test } = self;
            eprintln!("replay: TERRANE_SEED={seed} cargo test -p terrane-engine --test {suite} {test}");
        }
    }
}

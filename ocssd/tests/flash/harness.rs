//! A small device, and one way to drive it.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use terrane_ocssd::{
    AlignedBuf, ChunkId, ChunkState, Durability, FlashDevice, FlashMedia, FlashOptions, Geometry, Media,
    MediaError,
};

pub(crate) const SECTOR: usize = 512;

/// 2 groups of 2 units of 4 chunks of 32 sectors, written by 4, the last 8 hidden.
pub(crate) fn geometry() -> Geometry {
    Geometry {
        groups: 2,
        parallel_units: 2,
        chunks: 4,
        chunk_sectors: 32,
        sector_bytes: SECTOR as u32,
        ws_min: 4,
        ws_opt: 8,
        mw_cunits: 8,
        max_open: 0,
    }
}

pub(crate) fn options() -> FlashOptions {
    FlashOptions { geometry: geometry(), ..FlashOptions::default() }
}

/// The same without hidden sectors.
pub(crate) fn plain() -> FlashOptions {
    FlashOptions { geometry: Geometry { mw_cunits: 0, ..geometry() }, ..FlashOptions::default() }
}

pub(crate) fn device(options: FlashOptions) -> FlashDevice {
    FlashDevice::memory(options).unwrap()
}

/// The whole device as one slice.
pub(crate) fn whole(options: FlashOptions) -> FlashMedia {
    device(options).slice(0, 1).unwrap()
}

/// Polls after which an operation counts as one that never ends.
pub(crate) const POLLS_MAX: u32 = 1_000_000;

/// Polls until ready. Devices in memory wake themselves, so polling again is all that waking does.
///
/// # Panics
/// If it never is.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..POLLS_MAX {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
    panic!("it waits for something that never comes");
}

pub(crate) fn filled(sectors: u32, byte: u8) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(sectors as usize * SECTOR);
    buf.fill(byte);
    buf
}

pub(crate) fn write(
    media: &FlashMedia,
    chunk: u32,
    sector: u32,
    sectors: u32,
    byte: u8,
) -> Result<(), MediaError> {
    block_on(media.write(ChunkId(chunk), sector, filled(sectors, byte), Durability::Volatile)).0
}

/// Content of whole sectors, each checked to be uniform.
pub(crate) fn read(media: &FlashMedia, chunk: u32, sector: u32, sectors: u32) -> Result<Vec<u8>, MediaError> {
    let buf = AlignedBuf::zeroed(sectors as usize * SECTOR);
    let (result, buf) = block_on(media.read(ChunkId(chunk), sector, buf));
    result?;
    let uniform = |sector: &[u8]| {
        assert!(sector.iter().all(|byte| *byte == sector[0]), "a sector is mixed");
        sector[0]
    };
    Ok(buf.chunks(SECTOR).map(uniform).collect())
}

pub(crate) fn reset(media: &FlashMedia, chunk: u32) -> Result<(), MediaError> {
    block_on(media.reset(ChunkId(chunk)))
}

pub(crate) fn finish(media: &FlashMedia, chunk: u32) -> Result<(), MediaError> {
    block_on(media.finish(ChunkId(chunk)))
}

pub(crate) fn flush(media: &FlashMedia) {
    block_on(media.flush()).unwrap();
}

/// State and write pointer.
pub(crate) fn state(media: &FlashMedia, chunk: u32) -> (ChunkState, u32) {
    let info = block_on(media.report()).unwrap()[chunk as usize];
    (info.state, info.write_pointer)
}

/// The reason of a refused request.
pub(crate) fn broken_rule<T>(result: Result<T, MediaError>) -> &'static str {
    match result {
        Err(MediaError::Rule { reason, .. }) => reason,
        Err(other) => panic!("failed otherwise: {other}"),
        Ok(_) => panic!("accepted against the rules"),
    }
}

/// Seeds to try: `TERRANE_SEED` alone, or `TERRANE_RUNS` of them, or so many.
fn seeds(count: u64) -> std::ops::Range<u64> {
    let number =
        |name| std::env::var(name).ok().map(|value| value.parse::<u64>().expect("a number is asked for"));
    match number("TERRANE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("TERRANE_RUNS").unwrap_or(count),
    }
}

/// Runs a check for each seed, and says how to repeat the one that failed.
pub(crate) fn for_seeds(count: u64, test: &str, check: impl Fn(u64)) {
    for seed in seeds(count) {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(seed)));
        if let Err(panic) = outcome {
            eprintln!(
                "seed {seed} failed; replay: TERRANE_SEED={seed} cargo test -p terrane-ocssd --test flash {test}"
            );
            std::panic::resume_unwind(panic);
        }
    }
}

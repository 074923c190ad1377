//! What the simulated medium promises beyond the contract of every medium.

mod faults;
mod power;

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use terrane_ocssd::{AlignedBuf, ChunkId, Durability, Geometry, Media, SimMedia, SimOptions};

pub(crate) const SECTOR: usize = 512;
pub(crate) const CHUNK: ChunkId = ChunkId(1);

pub(crate) fn geometry() -> Geometry {
    Geometry {
        groups: 1,
        parallel_units: 1,
        chunks: 4,
        chunk_sectors: 16,
        sector_bytes: SECTOR as u32,
        ws_min: 1,
        ws_opt: 8,
        mw_cunits: 0,
        max_open: 0,
    }
}

pub(crate) fn device(seed: u64) -> SimMedia {
    SimMedia::new(geometry(), SimOptions { seed, ..SimOptions::default() })
}

/// Polls after which an operation counts as one that never ends: many times the longest stall.
pub(crate) const POLLS_MAX: u32 = 1_000_000;

/// Polls until ready. The simulated medium wakes itself, so polling again is all that waking does.
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

pub(crate) fn poll_once<T>(future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

pub(crate) fn filled(sectors: usize, byte: u8) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(sectors * SECTOR);
    buf.fill(byte);
    buf
}

pub(crate) fn write(media: &SimMedia, sector: u32, sectors: usize, byte: u8, durability: Durability) {
    block_on(media.write(CHUNK, sector, filled(sectors, byte), durability)).0.unwrap();
}

pub(crate) fn reset(media: &SimMedia) {
    block_on(media.reset(CHUNK)).unwrap();
}

pub(crate) fn flush(media: &SimMedia) {
    block_on(media.flush()).unwrap();
}

/// The chunk's content, whole sectors, checked to be uniform within each.
pub(crate) fn sectors(media: &SimMedia, from: u32, count: usize) -> Vec<u8> {
    let (result, buf) = block_on(media.read(CHUNK, from, AlignedBuf::zeroed(count * SECTOR)));
    result.unwrap();
    buf.chunks(SECTOR)
        .map(|sector| {
            assert!(sector.iter().all(|byte| *byte == sector[0]), "a sector is torn");
            sector[0]
        })
        .collect()
}

pub(crate) fn cut(media: &SimMedia) {
    media.power_cut();
    media.power_on();
}

//! The simulated medium, conventional and not.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use terrane_ocssd::{ChunkId, Geometry, Media, SimMedia, SimOptions};

use crate::contract::{CHUNK_BYTES, CHUNKS, Harness, Probe, assert_rule, every_rule};

pub(crate) struct Sim {
    options: SimOptions,
    ws_min: u32,
}

impl Sim {
    pub(crate) fn with(options: SimOptions) -> Self {
        Self { options, ws_min: 1 }
    }
}

impl Harness for Sim {
    type Media = SimMedia;

    fn create(&self) -> SimMedia {
        let geometry = Geometry {
            groups: 1,
            parallel_units: 1,
            chunks: CHUNKS,
            chunk_sectors: (CHUNK_BYTES / 512) as u32,
            sector_bytes: 512,
            ws_min: self.ws_min,
            ws_opt: 8 * self.ws_min,
            mw_cunits: 0,
            max_open: 0,
        };
        SimMedia::new(geometry, self.options.clone())
    }

    fn reopen(&self, media: SimMedia) -> SimMedia {
        media.restart();
        media
    }

    fn remembers_write_pointers(&self) -> bool {
        !self.options.conventional
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
                return value;
            }
        }
    }
}

#[test]
fn sim_conventional() {
    every_rule(&Sim::with(SimOptions::default()));
}

#[test]
fn sim_conventional_out_of_order() {
    for seed in 0..20 {
        every_rule(&Sim::with(SimOptions { seed, yields_max: 5, ..SimOptions::default() }));
    }
}

#[test]
fn sim_that_zeroes_on_reset() {
    for seed in 0..20 {
        every_rule(&Sim::with(SimOptions { seed, yields_max: 3, stale: false, ..SimOptions::default() }));
    }
}

#[test]
fn sim_that_tracks_write_pointers() {
    for seed in 0..20 {
        let options = SimOptions { seed, yields_max: 3, conventional: false, ..SimOptions::default() };
        every_rule(&Sim::with(options));
    }
}

#[test]
fn sim_with_large_smallest_write() {
    let options = SimOptions { yields_max: 3, conventional: false, ..SimOptions::default() };
    every_rule(&Sim { options, ws_min: 4 });
}

#[test]
fn open_chunks_are_limited() {
    let sim = Sim::with(SimOptions { conventional: false, ..SimOptions::default() });
    let geometry = Geometry { max_open: 2, ..*sim.create().geometry() };
    let probe = Probe::of(SimMedia::new(geometry, sim.options.clone()));
    sim.run(async {
        probe.write(0, 0, 1, 1).await.unwrap();
        probe.write(1, 0, 1, 1).await.unwrap();
        assert_rule(probe.write(2, 0, 1, 1).await, "write");
        probe.media.finish(ChunkId(0)).await.unwrap();
        probe.write(2, 0, 1, 1).await.unwrap();
        assert_rule(probe.write(3, 0, 1, 1).await, "write");
        probe.reset(1).await;
        let whole = probe.chunk_writes as usize;
        probe.write(3, 0, 1, whole).await.unwrap();
        probe.write(4, 0, 1, 1).await.unwrap();
        assert_rule(probe.write(5, 0, 1, 1).await, "write");
    });
}

#[test]
fn the_last_sectors_of_an_open_chunk_are_hidden() {
    let sim = Sim::with(SimOptions { conventional: false, ..SimOptions::default() });
    let geometry = Geometry { mw_cunits: 3, ..*sim.create().geometry() };
    let probe = Probe::of(SimMedia::new(geometry, sim.options.clone()));
    sim.run(async {
        probe.write(0, 0, 1, 2).await.unwrap();
        assert_rule(probe.read(0, 0, 1).await, "read");
        probe.write(0, 2, 3, 3).await.unwrap();
        probe.expect(0, 0, 1, 2).await;
        assert_rule(probe.read(0, 0, 3).await, "read");
        probe.media.finish(ChunkId(0)).await.unwrap();
        probe.expect(0, 0, 1, 5).await;
    });
}

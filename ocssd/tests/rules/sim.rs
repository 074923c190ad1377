//! The simulated medium, conventional and not.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use terrane_ocssd::{ChunkId, ChunkState, FaultRates, Geometry, Media, MediaError, SimMedia, SimOptions};

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
fn sim_that_tears_sectors_and_zeroes_on_reset() {
    for seed in 0..20 {
        every_rule(&Sim::with(SimOptions {
            seed,
            yields_max: 3,
            conventional: false,
            stale: false,
            tear_within_sector: true,
            ..SimOptions::default()
        }));
    }
}

/// Whatever takes long, or warns, breaks no rule.
#[test]
fn sim_that_is_slow_and_worn() {
    for seed in 0..20 {
        let faults =
            FaultRates { latency_spike: 300_000, stall: 100_000, high_ecc: 500_000, ..FaultRates::default() };
        let tracking =
            SimOptions { seed, yields_max: 2, conventional: false, faults, ..SimOptions::default() };
        let faults = FaultRates { high_ecc: 0, ..faults };
        every_rule(&Sim::with(SimOptions { conventional: true, faults, ..tracking.clone() }));
        every_rule(&Sim { options: tracking, ws_min: 4 });
    }
}

/// A chunk that the device closed is one that the host finished, but for the error that says so.
#[test]
fn a_chunk_that_the_device_closed_goes_on_after_a_reset() {
    for early in [true, false] {
        let sim = Sim { options: SimOptions { conventional: false, ..SimOptions::default() }, ws_min: 4 };
        let probe = Probe::of(sim.create());
        sim.run(async {
            probe.write(0, 0, 1, 2).await.unwrap();
            if early {
                probe.media.close_early_at_next_write();
            } else {
                probe.media.fail_next_program();
            }
            let end = match probe.write(0, 2, 3, 4).await {
                Err(MediaError::ClosedEarly { chunk: ChunkId(0), write_pointer }) if early => {
                    assert_eq!(write_pointer, 2 * probe.ws);
                    2
                }
                Err(MediaError::WriteFailed { chunk: ChunkId(0), sector }) if !early => {
                    assert!(sector.is_multiple_of(probe.ws));
                    sector / probe.ws
                }
                other => panic!("{other:?}"),
            };
            assert!((2..6).contains(&end));
            assert_eq!(probe.state(0).await, (ChunkState::Closed, end));
            probe.expect(0, 0, 1, end as usize).await;
            assert_rule(probe.read(0, end - 1, 2).await, "read");
            assert_rule(probe.media.finish(ChunkId(0)).await, "finish");
            probe.reset(0).await;
            probe.write(0, 0, 7, 2).await.unwrap();
            probe.expect(0, 0, 7, 2).await;
        });
    }
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
    for protected_buffer in [false, true] {
        let options = SimOptions { conventional: false, protected_buffer, ..SimOptions::default() };
        the_last_sectors_are_hidden(&Sim::with(options));
    }
}

fn the_last_sectors_are_hidden(sim: &Sim) {
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

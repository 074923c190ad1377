//! A volume over a simulated slice: its lines keep the rules of every medium's chunks.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use terrane_ocssd::{Geometry, Media, SimMedia, SimOptions, Volume, VolumeOptions};

use crate::contract::{CHUNKS, Harness, every_rule};

struct OverSim {
    options: SimOptions,
    geometry: Geometry,
    stripe_units: u32,
}

/// Two groups of two units, as many lines as the contract wants, a device that keeps 12 sectors of each chunk to itself.
fn geometry() -> Geometry {
    Geometry {
        groups: 2,
        parallel_units: 2,
        chunks: CHUNKS + 4,
        chunk_sectors: 64,
        sector_bytes: 512,
        ws_min: 2,
        ws_opt: 8,
        mw_cunits: 12,
        max_open: 0,
    }
}

impl OverSim {
    fn with(seed: u64, geometry: Geometry) -> Self {
        let options = SimOptions { seed, yields_max: 3, conventional: false, ..SimOptions::default() };
        Self { options, geometry, stripe_units: 0 }
    }
}

impl Harness for OverSim {
    type Media = Volume<SimMedia>;

    fn create(&self) -> Self::Media {
        let sim = SimMedia::new(self.geometry, self.options.clone());
        let options = VolumeOptions {
            label: b"rules".to_vec(),
            stripe_units: self.stripe_units,
            spare_chunks_per_unit: 2,
        };
        self.run(Volume::create(sim, &options)).unwrap()
    }

    fn reopen(&self, volume: Self::Media) -> Self::Media {
        let sim = volume.media().clone();
        drop(volume);
        sim.restart();
        self.run(Volume::open(sim)).unwrap()
    }

    fn remembers_write_pointers(&self) -> bool {
        true
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
fn volume_over_sim() {
    for seed in 0..20 {
        every_rule(&OverSim::with(seed, geometry()));
    }
}

#[test]
fn volume_over_sim_that_hides_nothing() {
    for seed in 0..10 {
        every_rule(&OverSim::with(seed, Geometry { mw_cunits: 0, ..geometry() }));
    }
}

#[test]
fn volume_of_narrow_stripes() {
    for stripe_units in [1, 2] {
        let harness = OverSim { stripe_units, ..OverSim::with(7, geometry()) };
        assert_eq!(harness.create().geometry().chunks, CHUNKS * 4 / stripe_units);
        every_rule(&harness);
    }
}

#[test]
fn volume_of_a_lone_unit() {
    let geometry = Geometry { groups: 1, parallel_units: 1, chunks: CHUNKS + 6, ..geometry() };
    every_rule(&OverSim::with(3, geometry));
}

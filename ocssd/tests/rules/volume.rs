//! A volume over a simulated slice, and over emulated flash: its lines keep the rules of every medium's chunks.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use terrane_ocssd::flash::{Endurance, WearOdds};
use terrane_ocssd::{
    FlashDevice, FlashMedia, FlashOptions, Geometry, Media, SimMedia, SimOptions, Volume, VolumeOptions,
};

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

    fn closes_open_chunks(&self) -> bool {
        self.geometry.mw_cunits > 0
    }

    fn hides(&self) -> bool {
        false
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        block_on(future)
    }
}

/// Emulated flash, whose finish pads a chunk to its end.
struct OverFlash(FlashOptions);

impl Harness for OverFlash {
    type Media = Volume<FlashMedia>;

    fn create(&self) -> Self::Media {
        let device = FlashDevice::memory(self.0.clone()).unwrap();
        let options = VolumeOptions { spare_chunks_per_unit: 2, ..VolumeOptions::default() };
        block_on(Volume::create(device.slice(0, 1).unwrap(), &options)).unwrap()
    }

    fn reopen(&self, volume: Self::Media) -> Self::Media {
        let device = volume.media().device();
        drop(volume);
        device.restart();
        block_on(Volume::open(device.slice(0, 1).unwrap())).unwrap()
    }

    fn remembers_write_pointers(&self) -> bool {
        true
    }

    fn closes_open_chunks(&self) -> bool {
        self.0.geometry.mw_cunits > 0
    }

    fn hides(&self) -> bool {
        false
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        block_on(future)
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
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

#[test]
fn volume_over_flash() {
    for protected_buffer in [false, true] {
        for mw_cunits in [0, 12, 16] {
            for seed in 0..6 {
                let geometry = Geometry { mw_cunits, ..geometry() };
                let options = FlashOptions {
                    geometry,
                    seed,
                    yields_max: 3,
                    protected_buffer,
                    ..FlashOptions::default()
                };
                every_rule(&OverFlash(options));
            }
        }
    }
}

#[test]
fn volume_over_flash_that_resets_only_closed_chunks() {
    let geometry = Geometry { mw_cunits: 8, max_open: 64, ..geometry() };
    let options = FlashOptions { geometry, reset_free: false, reset_open: false, ..FlashOptions::default() };
    every_rule(&OverFlash(options));
}

/// Chunks that are bad from birth and programs that fail make no difference to the rules.
#[test]
fn volume_over_flash_with_bad_chunks() {
    for seed in 0..20 {
        let endurance =
            Endurance { program_failure: WearOdds { fresh: 0.004, worn: 0.004 }, ..Endurance::default() };
        let geometry = Geometry { chunks: CHUNKS + 12, ..geometry() };
        let options = FlashOptions {
            geometry,
            seed,
            endurance,
            bad_at_birth: 0.03,
            yields_max: 2,
            ..FlashOptions::default()
        };
        every_rule(&OverFlash(options));
    }
}

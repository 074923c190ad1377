//! Rigs of the simulated medium: a conventional one, one that tracks write pointers, and both with every fault.

use std::rc::Rc;

use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use terrane_ocssd::sim::Injected;
use terrane_ocssd::{FaultRates, Geometry, SimMedia, SimOptions};

use crate::rig::{Promises, Rig};

pub(crate) struct SimRig {
    media: SimMedia,
    conventional: bool,
}

/// Faults often enough for each to meet the others. Whole chunks are lost rarely: the rest is what is looked at.
pub(crate) const FAULTS: FaultRates = FaultRates {
    torn_write: 10_000,
    lost_write: 10_000,
    misdirected_write: 10_000,
    corrupted_write: 10_000,
    failed_program: 10_000,
    early_close: 10_000,
    read_error: 10_000,
    latent_read_error: 2_000,
    corrupted_read: 10_000,
    high_ecc: 10_000,
    failed_flush: 30_000,
    failed_reset: 10_000,
    offline: 500,
    latency_spike: 5_000,
    stall: 500,
    power_cut: 1_000,
};

/// Of these, what a conventional device may have.
pub(crate) const CONVENTIONAL_FAULTS: FaultRates =
    FaultRates { failed_program: 0, early_close: 0, high_ecc: 0, ..FAULTS };

impl SimRig {
    fn new(geometry: Geometry, options: SimOptions) -> Self {
        let conventional = options.conventional;
        Self { media: SimMedia::new(geometry, options), conventional }
    }

    pub(crate) fn conventional(seed: u64) -> Self {
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        let geometry = Geometry { mw_cunits: 0, max_open: 0, ..geometry(&mut rng) };
        Self::new(geometry, options(&mut rng))
    }

    pub(crate) fn conventional_with_faults(seed: u64) -> Self {
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        let geometry = Geometry { mw_cunits: 0, max_open: 0, ..geometry(&mut rng) };
        Self::new(geometry, SimOptions { faults: CONVENTIONAL_FAULTS, ..options(&mut rng) })
    }

    pub(crate) fn tracking(seed: u64) -> Self {
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        Self::new(geometry(&mut rng), SimOptions { conventional: false, ..options(&mut rng) })
    }

    pub(crate) fn tracking_with_faults(seed: u64) -> Self {
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        let options = SimOptions { conventional: false, faults: FAULTS, ..options(&mut rng) };
        Self::new(geometry(&mut rng), options)
    }
}

/// Small enough for chunks to fill up and be used again.
fn geometry(rng: &mut Pcg64Mcg) -> Geometry {
    let ws_min = *[1, 2, 4].choose(rng).expect("not empty");
    Geometry {
        groups: 1,
        parallel_units: 2,
        chunks: 3,
        chunk_sectors: 32,
        sector_bytes: 512,
        ws_min,
        ws_opt: 8,
        mw_cunits: *[0, 0, 1, 4, 12].choose(rng).expect("not empty"),
        max_open: *[0, 3].choose(rng).expect("not empty"),
    }
}

fn options(rng: &mut Pcg64Mcg) -> SimOptions {
    SimOptions {
        seed: rng.random(),
        yields_max: *[0, 2, 6].choose(rng).expect("not empty"),
        stale: rng.random(),
        tear_within_sector: rng.random(),
        protected_buffer: rng.random_bool(0.25),
        ..SimOptions::default()
    }
}

impl Rig for SimRig {
    type Media = SimMedia;

    fn media(&self) -> Rc<SimMedia> {
        Rc::new(self.media.clone())
    }

    fn promises(&self) -> Promises {
        Promises { tracks_pointers: !self.conventional, pads: false, tells_faults: true, volume: None }
    }

    fn crash_after(&mut self, n: u64) {
        self.media.crash_after(n);
    }

    fn power_cut(&mut self) {
        self.media.power_cut();
    }

    fn power_on(&mut self) {
        self.media.power_on();
    }

    fn restart(&mut self) {
        self.media.restart();
    }

    fn take_faults(&mut self) -> Vec<Injected> {
        self.media.take_fault_log()
    }
}

//! Rigs of the emulated flash: chunks that fail, close early and wear out at its own odds, and power cuts.

use std::rc::Rc;

use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use terrane_ocssd::flash::{Endurance, WearOdds};
use terrane_ocssd::sim::Injected;
use terrane_ocssd::{FlashDevice, FlashMedia, FlashOptions, Geometry};

use crate::rig::{Promises, Rig};

pub(crate) struct FlashRig {
    media: FlashMedia,
}

impl FlashRig {
    pub(crate) fn sound(seed: u64) -> Self {
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        Self::new(options(&mut rng))
    }

    /// About every third run loses a chunk, and most see one fail.
    pub(crate) fn wearing(seed: u64) -> Self {
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        let endurance = Endurance {
            erases_mean: 12,
            variation: 0.4,
            program_failure: WearOdds { fresh: 0.002, worn: 0.01 },
            early_close: WearOdds { fresh: 0.002, worn: 0.01 },
        };
        let bad_at_birth = *[0.0, 0.2].choose(&mut rng).expect("not empty");
        Self::new(FlashOptions { endurance, bad_at_birth, ecc_page_reads: 100, ..options(&mut rng) })
    }

    fn new(options: FlashOptions) -> Self {
        let device = FlashDevice::memory(options).expect("the options describe a device");
        Self { media: device.slice(0, 1).expect("nobody else has it") }
    }
}

fn options(rng: &mut Pcg64Mcg) -> FlashOptions {
    let ws_min = *[1, 2, 4].choose(rng).expect("not empty");
    let geometry = Geometry {
        groups: 1,
        parallel_units: 2,
        chunks: 3,
        chunk_sectors: 32,
        sector_bytes: 512,
        ws_min,
        ws_opt: 8,
        mw_cunits: ws_min * *[0, 1, 3].choose(rng).expect("not empty"),
        max_open: *[0, 3].choose(rng).expect("not empty"),
    };
    FlashOptions {
        geometry,
        seed: rng.random(),
        reset_free: rng.random(),
        reset_open: rng.random(),
        protected_buffer: rng.random_bool(0.25),
        yields_max: *[0, 2, 6].choose(rng).expect("not empty"),
        ..FlashOptions::default()
    }
}

impl Rig for FlashRig {
    type Media = FlashMedia;

    fn media(&self) -> Rc<FlashMedia> {
        Rc::new(self.media.clone())
    }

    fn promises(&self) -> Promises {
        Promises {
            tracks_pointers: true,
            restart_keeps_volatile: true,
            flush_covers_resets: true,
            tells_faults: false,
        }
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
        // What wears out says so in the results, and may excuse nothing that is durable.
        Vec::new()
    }
}

//! Rigs of the emulated flash: chunks that fail, close early and wear out at its own odds, and power cuts.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use terrane_ocssd::flash::{Endurance, FlashCounters, WearOdds};
use terrane_ocssd::sim::{Fault, Injected};
use terrane_ocssd::{
    AlignedBuf, ChunkId, Durability, FlashDevice, FlashMedia, FlashOptions, Geometry, Media,
};

use crate::rig::{Promises, Rig, block_on, poll_once};

pub(crate) struct FlashRig {
    media: FlashMedia,
    counted: CountedFaults,
}

/// The faults of emulated flash, from its counters: what they were, not where.
#[derive(Debug, Clone, Default)]
pub(crate) struct CountedFaults {
    told: BTreeMap<Fault, u64>,
}

impl CountedFaults {
    /// Those since the last call. A chunk of it goes offline only in a reset.
    pub(crate) fn take(&mut self, media: &FlashMedia) -> Vec<Injected> {
        let FlashCounters { program_failures, early_closes, gone_offline, .. } = media.device().counters();
        let mut faults = Vec::new();
        for (fault, times) in [
            (Fault::FailedProgram, program_failures),
            (Fault::EarlyClose, early_closes),
            (Fault::FailedReset, gone_offline),
        ] {
            let told = self.told.insert(fault, times).unwrap_or(0);
            faults.extend((told..times).map(|_| Injected { fault, chunk: ChunkId(0), sectors: None }));
        }
        faults
    }
}

impl FlashRig {
    pub(crate) fn sound(seed: u64) -> Self {
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        Self::new(options(&mut rng))
    }

    /// What that may meet.
    pub(crate) const WEAR: [Fault; 3] = [Fault::FailedProgram, Fault::EarlyClose, Fault::FailedReset];

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
        let media = device.slice(0, 1).expect("nobody else has it");
        Self { media, counted: CountedFaults::default() }
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
            pads: true,
            // Not where they struck, nor of which chunk.
            tells_faults: false,
            volume: None,
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
        self.counted.take(&self.media)
    }
}

/// Found by an endurance run: a write in flight kept a flush from covering what had completed behind it.
#[test]
fn flash_flushes_what_completed_behind_a_write_in_flight() {
    behind_a_write_in_flight(0, 4..8, Durability::Volatile);
}

/// Found by an endurance run: the last sectors of a full chunk were held back while a write below them was in flight.
#[test]
fn flash_holds_nothing_back_of_a_full_chunk() {
    behind_a_write_in_flight(4, 4..32, Durability::Durable);
}

fn behind_a_write_in_flight(mw_cunits: u32, sectors: Range<u32>, durability: Durability) {
    for seed in 0..32 {
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        let options = options(&mut rng);
        let geometry = Geometry { ws_min: 4, mw_cunits, max_open: 0, ..options.geometry };
        let options = FlashOptions { geometry, protected_buffer: false, yields_max: 9, ..options };
        let FlashRig { media, .. } = FlashRig::new(options);
        let bytes = |sectors: u32| AlignedBuf::zeroed((sectors * geometry.sector_bytes) as usize);
        let below = bytes(sectors.start);
        let mut in_flight = Box::pin(media.write(ChunkId(0), 0, below, Durability::Volatile));
        if poll_once(in_flight.as_mut()).is_ready() {
            continue;
        }
        let buf = bytes(sectors.end - sectors.start);
        block_on(media.write(ChunkId(0), sectors.start, buf, durability)).0.unwrap();
        if durability == Durability::Volatile {
            block_on(media.flush()).unwrap();
        }
        drop(in_flight);
        media.power_cut();
        media.power_on();
        assert_eq!(block_on(media.report()).unwrap()[0].write_pointer, sectors.end);
    }
}

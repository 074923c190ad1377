//! Rigs of a volume, over the simulated medium and over the emulated flash: chunks that fail, close early and die in a
//! reset are the volume's affair. Its host sees nothing of them, so nothing excuses a loss.

use std::rc::Rc;

use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use terrane_ocssd::flash::{Endurance, WearOdds};
use terrane_ocssd::sim::{Fault, Injected};
use terrane_ocssd::{
    FaultRates, FlashDevice, FlashMedia, FlashOptions, Geometry, Media, MediaError, SimMedia, SimOptions,
    Volume, VolumeError, VolumeOptions,
};

use crate::rig::{Promises, Rig, block_on};

/// The device beneath a volume, and its power switch.
pub(crate) trait Device: Media + Clone {
    fn crash_after(&self, n: u64);
    fn power_cut(&self);
    fn has_power(&self) -> bool;
    fn power_on(&self);
    fn restart(&self);
    fn take_faults(&self) -> Vec<Injected>;
}

impl Device for SimMedia {
    fn crash_after(&self, n: u64) {
        self.crash_after(n);
    }

    fn power_cut(&self) {
        self.power_cut();
    }

    fn has_power(&self) -> bool {
        self.has_power()
    }

    fn power_on(&self) {
        self.power_on();
    }

    fn restart(&self) {
        self.restart();
    }

    fn take_faults(&self) -> Vec<Injected> {
        self.take_fault_log()
    }
}

impl Device for FlashMedia {
    fn crash_after(&self, n: u64) {
        self.crash_after(n);
    }

    fn power_cut(&self) {
        self.power_cut();
    }

    fn has_power(&self) -> bool {
        self.has_power()
    }

    fn power_on(&self) {
        self.power_on();
    }

    fn restart(&self) {
        self.restart();
    }

    fn take_faults(&self) -> Vec<Injected> {
        Vec::new()
    }
}

pub(crate) struct VolumeRig<D: Device> {
    rng: Pcg64Mcg,
    device: D,
    /// `None` only while it is opened again.
    volume: Option<Rc<Volume<D>>>,
}

/// Spares enough for what wears out in one run.
const SPARE_CHUNKS_PER_UNIT: u32 = 8;

fn geometry(rng: &mut Pcg64Mcg) -> Geometry {
    let ws_min = *[1, 2].choose(rng).expect("not empty");
    Geometry {
        groups: 1,
        parallel_units: *[1, 2, 3].choose(rng).expect("not empty"),
        chunks: 4 + SPARE_CHUNKS_PER_UNIT + 4,
        chunk_sectors: 32,
        sector_bytes: 512,
        ws_min,
        ws_opt: *[2, 4].choose(rng).expect("not empty"),
        mw_cunits: ws_min * *[0, 1, 3].choose(rng).expect("not empty"),
        max_open: *[0, 11].choose(rng).expect("not empty"),
    }
}

impl VolumeRig<SimMedia> {
    pub(crate) fn over_sim(seed: u64) -> Self {
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        let faults = FaultRates {
            failed_program: 4_000,
            early_close: 4_000,
            failed_reset: 4_000,
            high_ecc: 5_000,
            latency_spike: 5_000,
            stall: 300,
            power_cut: 500,
            ..FaultRates::default()
        };
        let options = SimOptions {
            seed: rng.random(),
            yields_max: *[0, 2, 6].choose(&mut rng).expect("not empty"),
            conventional: false,
            stale: rng.random(),
            protected_buffer: rng.random_bool(0.25),
            ..SimOptions::default()
        };
        let device = SimMedia::new(geometry(&mut rng), options);
        let rig = Self::create(rng, device.clone());
        device.set_fault_rates(faults);
        rig
    }
}

impl VolumeRig<FlashMedia> {
    pub(crate) fn over_flash(seed: u64) -> Self {
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        let options = FlashOptions {
            geometry: geometry(&mut rng),
            seed: rng.random(),
            endurance: Endurance {
                erases_mean: 40,
                variation: 0.4,
                program_failure: WearOdds { fresh: 0.001, worn: 0.005 },
                early_close: WearOdds { fresh: 0.001, worn: 0.005 },
            },
            ecc_page_reads: 100,
            reset_free: rng.random(),
            reset_open: rng.random(),
            protected_buffer: rng.random_bool(0.25),
            yields_max: *[0, 2, 6].choose(&mut rng).expect("not empty"),
            ..FlashOptions::default()
        };
        let device = FlashDevice::memory(options).expect("the options describe a device");
        Self::create(rng, device.slice(0, 1).expect("nobody else has it"))
    }
}

impl<D: Device> VolumeRig<D> {
    fn create(rng: Pcg64Mcg, device: D) -> Self {
        let options =
            VolumeOptions { spare_chunks_per_unit: SPARE_CHUNKS_PER_UNIT, ..VolumeOptions::default() };
        let volume = block_on(Volume::create(device.clone(), &options)).expect("a new device takes a volume");
        Self { rng, device, volume: Some(Rc::new(volume)) }
    }

    /// Opens the volume, over and over if power goes while it is opened.
    fn open(&mut self) {
        loop {
            if self.rng.random_bool(0.3) {
                self.device.crash_after(self.rng.random_range(1..=40));
            }
            match block_on(Volume::open(self.device.clone())) {
                // It may be open before it knows.
                Ok(_) if !self.device.has_power() => self.device.power_on(),
                Ok(volume) => {
                    // Not in the middle of what follows, where nobody expects it.
                    self.device.crash_after(u64::MAX / 2);
                    self.volume = Some(Rc::new(volume));
                    return;
                }
                Err(VolumeError::Media(MediaError::PowerLost)) => self.device.power_on(),
                Err(error) => panic!("the volume cannot be opened: {error}"),
            }
        }
    }
}

impl<D: Device> Rig for VolumeRig<D> {
    type Media = Volume<D>;

    fn media(&self) -> Rc<Volume<D>> {
        Rc::clone(self.volume.as_ref().expect("the volume is open"))
    }

    fn promises(&self) -> Promises {
        Promises {
            tracks_pointers: true,
            no_holes: false,
            // What waits in its memory for a whole unit goes with the host.
            restart_keeps_volatile: false,
            flush_covers_resets: true,
            keeps_open: false,
            keeps_survivors: false,
            tells_faults: true,
        }
    }

    fn crash_after(&mut self, n: u64) {
        self.device.crash_after(n);
    }

    fn power_cut(&mut self) {
        self.device.power_cut();
    }

    fn power_on(&mut self) {
        self.volume = None;
        self.device.power_on();
        self.open();
    }

    fn restart(&mut self) {
        self.volume = None;
        self.device.restart();
        self.open();
    }

    fn take_faults(&mut self) -> Vec<Injected> {
        let mut faults = self.device.take_faults();
        faults.retain(|injected| injected.fault == Fault::PowerCut);
        faults
    }
}

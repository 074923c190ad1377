//! Rigs of a volume, over the simulated medium and over the emulated flash.
//!
//! Chunks that fail, close early and die in a reset are the volume's affair: in `over_sim` and `over_flash` nothing else
//! strikes, so nothing excuses anything. In `over_failing_sim` the device fails its host as well, and `beneath` says
//! what of that the volume may pass on.
//!
//! Metadata stands in two chunks, so one of them may be lost at a time and no more: that is done on purpose while the
//! volume is opened, and not left to the rates.

use std::rc::Rc;

use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use terrane_ocssd::flash::{Endurance, WearOdds};
use terrane_ocssd::sim::{Fault, Injected};
use terrane_ocssd::{
    ChunkId, ChunkInfo, FaultRates, FlashDevice, FlashMedia, FlashOptions, Geometry, Media, MediaError,
    SimMedia, SimOptions, Volume, VolumeError, VolumeOptions,
};

use crate::flash::CountedFaults;
use crate::rig::{Promises, Rig, VolumePromises, block_on};

/// The device beneath a volume, and its power switch.
pub(crate) trait Device: Media + Clone {
    fn crash_after(&self, n: u64);
    fn power_cut(&self);
    fn has_power(&self) -> bool;
    fn power_on(&self);
    fn restart(&self);
    /// The faults that struck since the last call; `counted` is of the rig.
    fn take_faults(&self, counted: &mut CountedFaults) -> Vec<Injected>;
    fn set_fault_rates(&self, rates: FaultRates);
    fn fail_reads_of(&self, chunk: ChunkId, sector: u32);
    /// Whether closing a chunk pads it.
    const PADS: bool;
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

    fn take_faults(&self, _: &mut CountedFaults) -> Vec<Injected> {
        self.take_fault_log()
    }

    fn set_fault_rates(&self, rates: FaultRates) {
        self.set_fault_rates(rates);
    }

    fn fail_reads_of(&self, chunk: ChunkId, sector: u32) {
        self.fail_reads_of(chunk, sector);
    }

    const PADS: bool = false;
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

    fn take_faults(&self, counted: &mut CountedFaults) -> Vec<Injected> {
        counted.take(self)
    }

    fn set_fault_rates(&self, rates: FaultRates) {
        assert_eq!(rates, FaultRates::default(), "flash wears out by its own odds");
    }

    fn fail_reads_of(&self, chunk: ChunkId, sector: u32) {
        self.fail_reads_of(chunk, sector);
    }

    const PADS: bool = true;
}

pub(crate) struct VolumeRig<D: Device> {
    rng: Pcg64Mcg,
    device: D,
    /// `None` only while it is opened again.
    volume: Option<Rc<Volume<D>>>,
    promises: VolumePromises,
    rates: FaultRates,
    /// Damage in two of its chunks has a volume refused: a second one does not follow the first before a start.
    metadata_is_damaged: bool,
    counted: CountedFaults,
    /// What struck and was not taken yet.
    struck: Vec<Injected>,
}

/// What a volume's host never hears of.
pub(crate) const HIDDEN_FAULTS: FaultRates = FaultRates {
    failed_program: 4_000,
    early_close: 4_000,
    failed_reset: 4_000,
    high_ecc: 5_000,
    latency_spike: 5_000,
    stall: 300,
    power_cut: 500,
    ..NO_FAULTS
};

/// What a volume's host hears of in one way or another. Not all of it in one run.
pub(crate) const SHOWN_FAULTS: FaultRates = FaultRates {
    torn_write: 1_500,
    read_error: 4_000,
    latent_read_error: 1_500,
    failed_flush: 8_000,
    offline: 400,
    ..HIDDEN_FAULTS
};

const NO_FAULTS: FaultRates = FaultRates {
    torn_write: 0,
    lost_write: 0,
    misdirected_write: 0,
    corrupted_write: 0,
    failed_program: 0,
    early_close: 0,
    read_error: 0,
    latent_read_error: 0,
    corrupted_read: 0,
    high_ecc: 0,
    failed_flush: 0,
    failed_reset: 0,
    offline: 0,
    latency_spike: 0,
    stall: 0,
    power_cut: 0,
};

/// Times that a volume is opened before it counts as one that cannot be.
const OPENINGS_MAX: u32 = 1000;

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
        Self::on_sim(Pcg64Mcg::seed_from_u64(seed), HIDDEN_FAULTS, |media| media)
    }

    /// Over a device that fails its host too, in some ways of all.
    pub(crate) fn over_failing_sim(seed: u64) -> Self {
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        let mut some = |rate: u32| if rng.random_bool(0.5) { rate } else { 0 };
        let all = SHOWN_FAULTS;
        let faults = FaultRates {
            torn_write: some(all.torn_write),
            read_error: some(all.read_error),
            failed_flush: some(all.failed_flush),
            ..HIDDEN_FAULTS
        };
        // Never both, so that it is known which of them a sector is lost to.
        let faults = match rng.random_range(0..3) {
            0 => FaultRates { latent_read_error: all.latent_read_error, ..faults },
            1 => FaultRates { offline: all.offline, ..faults },
            _ => faults,
        };
        Self::on_sim(rng, faults, |media| media)
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
        Self::create(rng, device.slice(0, 1).expect("nobody else has it"), NO_FAULTS)
    }
}

impl<D: Device> VolumeRig<D> {
    /// Over what is made of a simulated medium that has no faults.
    pub(crate) fn over(seed: u64, make: impl FnOnce(SimMedia) -> D) -> Self {
        Self::on_sim(Pcg64Mcg::seed_from_u64(seed), NO_FAULTS, make)
    }

    fn on_sim(mut rng: Pcg64Mcg, faults: FaultRates, make: impl FnOnce(SimMedia) -> D) -> Self {
        let options = SimOptions {
            seed: rng.random(),
            yields_max: *[0, 2, 6].choose(&mut rng).expect("not empty"),
            conventional: false,
            stale: rng.random(),
            protected_buffer: rng.random_bool(0.25),
            ..SimOptions::default()
        };
        let device = SimMedia::new(geometry(&mut rng), options);
        Self::create(rng, make(device), faults)
    }

    /// A volume on a new device, on which these faults strike from then on.
    fn create(rng: Pcg64Mcg, device: D, rates: FaultRates) -> Self {
        let options =
            VolumeOptions { spare_chunks_per_unit: SPARE_CHUNKS_PER_UNIT, ..VolumeOptions::default() };
        let volume = block_on(Volume::create(device.clone(), &options)).expect("a new device takes a volume");
        let width = volume.status().stripe_units;
        let promises = VolumePromises {
            width,
            unit_sectors: volume.geometry().ws_opt / width,
            device_hides: device.geometry().mw_cunits > 0,
        };
        device.set_fault_rates(rates);
        Self {
            rng,
            device,
            volume: Some(Rc::new(volume)),
            promises,
            rates,
            metadata_is_damaged: false,
            counted: CountedFaults::default(),
            struck: Vec::new(),
        }
    }

    /// Whether metadata may stand in a chunk of the device.
    fn may_hold_metadata(&self, chunk: ChunkId) -> bool {
        let Geometry { parallel_units, chunks, .. } = *self.device.geometry();
        match parallel_units {
            1 => chunk.0 < 4,
            _ => chunk.0 / chunks < 2 && chunk.0 % chunks < 2,
        }
    }

    /// Takes what struck the device. Latent errors of metadata are the volume's affair; once a chunk for metadata is
    /// offline no other one follows it.
    fn note_faults(&mut self) {
        for injected in self.device.take_faults(&mut self.counted) {
            let of_metadata = self.may_hold_metadata(injected.chunk);
            match injected.fault {
                Fault::Offline if of_metadata => self.rates.offline = 0,
                Fault::TornWrite if of_metadata => self.metadata_is_damaged = true,
                Fault::LatentReadError if of_metadata => {
                    self.metadata_is_damaged = true;
                    continue;
                }
                _ => {}
            }
            self.struck.push(injected);
        }
        let torn_write = if self.metadata_is_damaged { 0 } else { self.rates.torn_write };
        // While it is opened it reads little but metadata, and while it is open none of that.
        let latent_read_error = if self.volume.is_some() { self.rates.latent_read_error } else { 0 };
        self.device.set_fault_rates(FaultRates { torn_write, latent_read_error, ..self.rates });
    }

    /// Metadata that cannot be read any more, in one of its two places.
    fn spoil_metadata(&mut self) {
        let report = block_on(self.device.report()).expect("power is on");
        let holds = |info: &&ChunkInfo| info.write_pointer > 0 && self.may_hold_metadata(info.id);
        let candidates: Vec<ChunkInfo> = report.iter().filter(holds).copied().collect();
        if let Some(info) = candidates.choose(&mut self.rng) {
            self.device.fail_reads_of(info.id, self.rng.random_range(0..info.write_pointer));
        }
    }

    /// Opens the volume, over and over if power goes or something fails while it is opened.
    fn open(&mut self) {
        self.note_faults();
        let may = self.rates.latent_read_error > 0 && !self.metadata_is_damaged;
        if may && self.rng.random_bool(0.1) {
            self.spoil_metadata();
            self.note_faults();
        }
        for _ in 0..OPENINGS_MAX {
            if self.rng.random_bool(0.3) {
                self.device.crash_after(self.rng.random_range(1..=40));
            }
            let before = self.struck.len();
            let opened = block_on(Volume::open(self.device.clone()));
            self.note_faults();
            let has_power = self.device.has_power();
            match opened {
                Ok(volume) if has_power => {
                    // Not in the middle of what follows, where nobody expects it.
                    self.device.crash_after(u64::MAX / 2);
                    self.volume = Some(Rc::new(volume));
                    // A start repairs the damage that it finds, and what it cannot see is none.
                    self.metadata_is_damaged = false;
                    self.note_faults();
                    return;
                }
                // It may be open before it knows that the power went.
                Ok(_) | Err(VolumeError::Media(MediaError::PowerLost)) => assert!(!has_power),
                Err(error) => {
                    let struck = &self.struck[before..];
                    assert!(
                        explains_failed_opening(struck, &error),
                        "the volume cannot be opened: {error}, after {struck:?}"
                    );
                }
            }
            if has_power {
                self.device.restart();
            } else {
                self.struck.push(Injected { fault: Fault::PowerCut, chunk: ChunkId(0), sectors: None });
                self.device.power_on();
            }
        }
        panic!("the volume was not opened in {OPENINGS_MAX} attempts");
    }
}

/// Whether the volume could not be opened, this once, for what struck meanwhile.
fn explains_failed_opening(struck: &[Injected], error: &VolumeError) -> bool {
    let has = |fault| struck.iter().any(|injected| injected.fault == fault);
    match error {
        VolumeError::Media(MediaError::Io { operation: "flush", .. }) => has(Fault::FailedFlush),
        VolumeError::Media(MediaError::Io { .. }) => has(Fault::TornWrite),
        VolumeError::Damaged(_) => has(Fault::ReadError),
        _ => false,
    }
}

impl<D: Device> Rig for VolumeRig<D> {
    type Media = Volume<D>;

    fn media(&self) -> Rc<Volume<D>> {
        Rc::clone(self.volume.as_ref().expect("the volume is open"))
    }

    fn promises(&self) -> Promises {
        Promises { tracks_pointers: true, pads: D::PADS, tells_faults: true, volume: Some(self.promises) }
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
        self.note_faults();
        std::mem::take(&mut self.struck)
    }
}

//! Over emulated flash that wears: programs and resets fail by themselves, chunks are bad from birth, finishing pads,
//! and the power goes anywhere.

use std::cell::Cell;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use terrane_ocssd::flash::{Endurance, WearOdds};
use terrane_ocssd::{
    AlignedBuf, ChunkId, Durability, FlashDevice, FlashMedia, FlashOptions, Geometry, Media, MediaError,
    OpenMode, Volume, VolumeError, VolumeOptions,
};

use crate::faulty::block_on;
use crate::model::{LineModel, Model, SECTOR, content, write};
use crate::{Told, is_no_spare};

const RUNS: u64 = 60;
const LIVES: u32 = 8;
const STEPS: u32 = 60;

fn device(seed: u64, rng: &mut Pcg64Mcg) -> FlashDevice {
    let geometry = Geometry {
        groups: 1,
        parallel_units: rng.random_range(1..=3),
        chunks: 14,
        chunk_sectors: 96,
        sector_bytes: 512,
        ws_min: 2,
        ws_opt: 8,
        mw_cunits: [0, 8, 12][rng.random_range(0..3)],
        max_open: 0,
    };
    let odds = |most: f64| WearOdds { fresh: most / 4.0, worn: most };
    let endurance =
        Endurance { erases_mean: 12, variation: 0.3, program_failure: odds(0.002), early_close: odds(0.001) };
    let options = FlashOptions {
        geometry,
        seed,
        endurance,
        bad_at_birth: 0.02,
        protected_buffer: rng.random_bool(0.3),
        reset_open: rng.random_bool(0.5),
        reset_free: rng.random_bool(0.5),
        yields_max: rng.random_range(0..3),
        ..FlashOptions::default()
    };
    FlashDevice::memory(options).unwrap()
}

fn open(device: &FlashDevice, rng: &mut Pcg64Mcg) -> Volume<FlashMedia> {
    loop {
        if rng.random_bool(0.3) {
            device.crash_after(rng.random_range(1..30));
        }
        let opened = block_on(Volume::open_as(device.slice(0, 1).unwrap(), OpenMode::Degraded));
        match opened {
            Ok(volume) if device.has_power() => return volume,
            Ok(_) | Err(VolumeError::Media(MediaError::PowerLost)) => device.power_on(),
            Err(error) => panic!("{error}"),
        }
    }
}

/// One life, until the power goes. False: the flash is worn out.
fn live(volume: &Volume<FlashMedia>, model: &mut Model, rng: &mut Pcg64Mcg) -> bool {
    let whole = volume.geometry().chunk_sectors;
    let worn_out = Cell::new(false);
    for _ in 0..STEPS {
        let line = rng.random_range(0..model.lines.len() as u32);
        let before = model.lines.clone();
        let this = &mut model.lines[line as usize];
        let step = rng.random_range(0..10);
        let result = if this.stopped {
            Ok(())
        } else if this.resetting || (this.closed && step < 4) {
            this.resetting = true;
            block_on(volume.reset(ChunkId(line))).map(|()| {
                *this = LineModel { life: this.life + 1, ..LineModel::default() };
            })
        } else if step < 7 && !this.closed {
            let sectors = (2 * rng.random_range(1..=30u32)).min(whole - this.written);
            let durability = if rng.random_bool(0.5) { Durability::Durable } else { Durability::Volatile };
            let (life, sector) = (this.life, this.written);
            this.written += sectors;
            block_on(write(volume, line, life, sector, sectors, durability)).map(|()| {
                model.lines[line as usize].acknowledged = sector + sectors;
                model.lines[line as usize].closed = sector + sectors == whole;
                if durability == Durability::Durable {
                    model.durable(line, sector + sectors);
                }
            })
        } else if step == 7 && !this.closed && this.written > 0 {
            block_on(volume.finish(ChunkId(line))).map(|()| this.closed = true)
        } else if step < 9 {
            block_on(volume.flush()).map(|()| model.flushed(&before))
        } else {
            let (life, end) = (this.life, this.acknowledged);
            let buf = AlignedBuf::zeroed(end.max(1) as usize * SECTOR);
            let (read, buf) = match end {
                0 => (Ok(()), buf),
                _ => block_on(volume.read(ChunkId(line), 0, buf)),
            };
            read.inspect(|()| {
                assert!(end == 0 || *buf == *content(line, life, 0, end), "line {line} is wrong")
            })
        };
        match result {
            Ok(()) => {}
            Err(MediaError::PowerLost) => break,
            Err(error) if is_no_spare(&error) || is_metadata_worn_out(&error) => {
                model.lines[line as usize].stopped = true;
                worn_out.set(true);
            }
            Err(error) => panic!("line {line}: {error}"),
        }
    }
    !worn_out.get()
}

fn run(seed: u64) {
    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    let device = device(seed, &mut rng);
    let options = VolumeOptions { spare_chunks_per_unit: 4, ..VolumeOptions::default() };
    let mut volume = match block_on(Volume::create(device.slice(0, 1).unwrap(), &options)) {
        Ok(volume) => volume,
        Err(VolumeError::TooFewSpares { .. }) => return,
        Err(error) => panic!("{error}"),
    };
    let mut model = Model { pads: true, ..Model::of(&volume) };
    for _ in 0..LIVES {
        if rng.random_bool(0.8) {
            device.crash_after(rng.random_range(1..400));
        }
        let goes_on = live(&volume, &mut model, &mut rng);
        drop(volume);
        if !device.has_power() || rng.random_bool(0.5) {
            device.power_on();
        } else {
            device.restart();
        }
        volume = open(&device, &mut rng);
        device.crash_after(1 << 40);
        block_on(model.check_opened(&volume));
        if !goes_on {
            break;
        }
    }
}

/// Whether all chunks for metadata are worn out.
fn is_metadata_worn_out(error: &MediaError) -> bool {
    let MediaError::Io { source, .. } = error else { return false };
    let source = source.get_ref().and_then(|source| source.downcast_ref::<VolumeError>());
    matches!(source, Some(VolumeError::MetadataFailed(_)))
}

#[test]
fn flash_wears_out() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match number("TERRANE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("TERRANE_RUNS").unwrap_or(RUNS),
    };
    for seed in seeds {
        let _replay = Told(format!(
            "replay: TERRANE_SEED={seed} cargo test -p terrane-ocssd --test volume flash_wears_out"
        ));
        run(seed);
    }
}

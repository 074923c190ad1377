//! Every failure at every write, and a power cut at every operation, of a short run.

use terrane_ocssd::{AlignedBuf, ChunkId, Durability, Media, MediaError, Volume};

use crate::faulty::{Fault, block_on};
use crate::model::{SECTOR, content};
use crate::{Bench, Told, geometry, is_no_spare};

use Durability::{Durable, Volatile};

/// A log on line 0, another on line 1 that is closed early, a line that is used again.
fn run(bench: &Bench) -> Result<(), MediaError> {
    bench.write(0, 6, Volatile)?;
    bench.write(0, 2, Durable)?;
    bench.write(2, 10, Durable)?;
    bench.write(0, 12, Volatile)?;
    bench.flush()?;
    bench.write(1, 4, Durable)?;
    bench.write(1, 4, Durable)?;
    bench.write(0, 20, Durable)?;
    bench.write(1, 10, Volatile)?;
    bench.finish(1)?;
    bench.flush()?;
    bench.reset(2)?;
    bench.write(2, 8, Durable)?;
    bench.write(0, 24, Volatile)?;
    bench.flush()?;
    bench.write(2, 30, Volatile)?;
    bench.flush()
}

/// What goes on afterwards: every line begins a new life.
fn go_on(bench: &Bench) -> Result<(), MediaError> {
    for line in 0..bench.volume.geometry().chunks {
        bench.reset(line)?;
        bench.write(line, 20, Durable)?;
        bench.write(line, 6, Volatile)?;
    }
    bench.flush()
}

fn device_writes() -> u64 {
    let bench = Bench::new(geometry(), 0, 0);
    let before = bench.device.writes();
    run(&bench).unwrap();
    bench.device.writes() - before
}

/// Without the write buffer the sectors that the device lost with the failed chunk would be gone; without the redo of
/// what was in flight the run would fail.
#[test]
fn a_chunk_fails_at_every_write() {
    for fault in [Fault::Failed, Fault::FailedWithBuffer, Fault::ClosedEarly] {
        for n in 1..=device_writes() {
            for seed in 0..4 {
                let _told = Told(format!("{fault:?} at write {n}, seed {seed}"));
                let bench = Bench::new(geometry(), seed, (seed % 3) as u32);
                bench.device.fail_write(n, fault);
                run(&bench).unwrap_or_else(|error| panic!("{fault:?} at write {n}: {error}"));
                bench.check();
                let bench = bench.power_cycle();
                go_on(&bench).unwrap();
                bench.check();
                bench.power_cycle().check();
            }
        }
    }
}

/// The spare fails as well, or the metadata that records it.
#[test]
fn two_chunks_fail_one_after_the_other() {
    for n in 1..=device_writes() {
        for second in 1..8 {
            let _told = Told(format!("writes {n} and {}", n + second));
            let bench = Bench::new(geometry(), n, 1);
            bench.device.fail_write(n, Fault::FailedWithBuffer);
            bench.device.fail_write(n + second, Fault::ClosedEarly);
            run(&bench).unwrap_or_else(|error| panic!("writes {n} and {}: {error}", n + second));
            bench.check();
            let bench = bench.power_cycle();
            go_on(&bench).unwrap();
            bench.power_cycle().check();
        }
    }
}

/// A chunk that is gone takes with it what only it held. The rest is right, and what is not there says so.
#[test]
fn a_chunk_goes_offline_at_every_write() {
    for fault in [Fault::Offline, Fault::Io] {
        for n in 1..=device_writes() {
            let bench = Bench::new(geometry(), n, 1);
            bench.device.fail_write(n, fault);
            let ended = run(&bench);
            if let Err(error) = &ended {
                assert!(matches!(error, MediaError::Io { .. }), "write {n}: {error}");
            }
            nothing_is_wrong(&bench, n);
            let Bench { device, volume, model } = bench;
            drop(volume);
            device.power_cycle();
            let volume = block_on(Volume::open(device.clone())).unwrap();
            let bench = Bench { device, volume, model };
            nothing_is_wrong(&bench, n);
        }
    }
}

fn nothing_is_wrong(bench: &Bench, n: u64) {
    let report = block_on(bench.volume.report()).unwrap();
    for (line, info) in (0..).zip(report) {
        let life = bench.model.borrow().lines[line as usize].life;
        let resetting = bench.model.borrow().lines[line as usize].resetting;
        for sector in 0..info.write_pointer {
            let read = bench.volume.read(ChunkId(line), sector, AlignedBuf::zeroed(SECTOR));
            match block_on(read) {
                (Ok(()), buf) => {
                    assert!(resetting || *buf == *content(line, life, sector, 1), "write {n}, line {line}");
                }
                (Err(MediaError::Unreadable { chunk, sector: named }), _) => {
                    assert_eq!((chunk, named), (ChunkId(line), sector));
                }
                (Err(error), _) => panic!("write {n}, line {line}, sector {sector}: {error}"),
            }
        }
    }
}

/// Operations of the device for a run whose `n`-th write fails.
fn operations(seed: u64, n: Option<u64>) -> u64 {
    let bench = Bench::new(geometry(), seed, 0);
    if let Some(n) = n {
        bench.device.fail_write(n, Fault::FailedWithBuffer);
    }
    let before = bench.device.sim.operations();
    run(&bench).unwrap();
    bench.device.sim.operations() - before
}

/// Fails if a remap is acknowledged before its record is durable, if the old chunk is reset before that, if a durable
/// write does not cover what is below it in its line, or if recovery takes more than the prefix.
#[test]
fn the_power_goes_at_every_operation() {
    let faults = std::iter::once(None).chain((1..=device_writes()).step_by(2).map(Some));
    for fault in faults {
        for seed in 0..3 {
            for cut in 1..=operations(seed, fault) {
                let bench = Bench::new(geometry(), seed, 0);
                if let Some(n) = fault {
                    bench.device.fail_write(n, Fault::FailedWithBuffer);
                }
                bench.device.sim.crash_after(cut);
                let _told = Told(format!("fault at write {fault:?}, seed {seed}, cut at operation {cut}"));
                let ended = run(&bench);
                assert!(matches!(ended, Err(MediaError::PowerLost)), "{ended:?}");
                let bench = bench.power_cycle();
                go_on(&bench).unwrap();
                bench.power_cycle().check();
            }
        }
    }
}

/// The power goes while the volume is opened after a cut, at every operation of that.
#[test]
fn the_power_goes_again_at_every_operation_of_recovery() {
    for seed in 0..4 {
        let fault = 6;
        let all = operations(seed, Some(fault));
        for first in (1..=all).step_by(3) {
            for second in 1.. {
                let _told = Told(format!("seed {seed}, cuts at operations {first} and then {second}"));
                let bench = Bench::new(geometry(), seed, 0);
                bench.device.fail_write(fault, Fault::FailedWithBuffer);
                bench.device.sim.crash_after(first);
                run(&bench).unwrap_err();
                let Bench { device, volume, model } = bench;
                drop(volume);
                device.power_cycle();
                device.sim.crash_after(second);
                let ended = block_on(Volume::open(device.clone()));
                let recovered = ended.is_ok();
                drop(ended);
                device.power_cycle();
                let volume = block_on(Volume::open(device.clone())).unwrap();
                let mut model = model.into_inner();
                block_on(model.check_opened(&volume));
                if recovered {
                    break;
                }
            }
        }
    }
}

/// The power goes while a remap is recorded, and again while the volume is opened; then one place of the metadata is lost.
/// The other one alone must do: fails if a chunk that an older record names is erased before the newer one is in both.
#[test]
fn either_place_does_after_any_two_power_cuts() {
    let faults = 6..=device_writes();
    let runs = faults.flat_map(|fault| (0..4).map(move |seed| (fault, seed)));
    let runs = runs
        .flat_map(|(fault, seed)| (1..=operations(0, Some(fault))).map(move |first| (fault, seed, first)));
    for (fault, seed, first) in runs {
        let lost = if seed % 2 == 0 { [0, 1] } else { [9, 10] };
        for second in 1.. {
            let _told = Told(format!(
                "fault at {fault}, seed {seed}, cuts at {first} and then {second}, chunks {lost:?} lost"
            ));
            let bench = Bench::new(geometry(), seed, 0);
            bench.device.fail_write(fault, Fault::FailedWithBuffer);
            bench.device.sim.crash_after(first);
            run(&bench).unwrap_err();
            let Bench { device, volume, model } = bench;
            drop(volume);
            device.power_cycle();
            device.sim.crash_after(second);
            let recovered = block_on(Volume::open(device.clone())).is_ok();
            device.power_cycle();
            lost.into_iter().for_each(|chunk| device.sim.take_offline(ChunkId(chunk)));
            // One place alone cannot take a new record: what it says is right is all that is asked.
            match block_on(Volume::open(device.clone())) {
                Ok(volume) => block_on(model.into_inner().check_opened(&volume)),
                Err(error) => panic!("{error}"),
            }
            if recovered {
                break;
            }
        }
    }
}

/// Many chunks fail, one a round, so that the metadata fills its chunks and moves on; the power goes at every operation
/// of every round.
#[test]
fn the_power_goes_while_metadata_moves() {
    for seed in 0..2 {
        for cut in 1..10_000 {
            let _told = Told(format!("seed {seed}, cut at operation {cut}"));
            let mut bench = Bench::new(geometry(), seed, 0);
            bench.device.sim.crash_after(cut);
            let mut whole = true;
            for round in 0..9 {
                let line = round % 3;
                let ended = (|| {
                    bench.reset(line)?;
                    bench.device.fail_write(1 + u64::from(round % 2), Fault::Failed);
                    bench.write(line, 16, Durable)?;
                    bench.write(line, 14, Durable)
                })();
                match ended {
                    Ok(()) => {}
                    Err(error) if is_no_spare(&error) => break,
                    Err(error) => {
                        assert!(matches!(error, MediaError::PowerLost), "cut {cut}, round {round}: {error}");
                        whole = false;
                        bench = bench.power_cycle();
                    }
                }
            }
            if whole {
                assert!(bench.volume.status().metadata_bytes > 2 * 32 * 512, "it did not move: {cut}");
                break;
            }
        }
    }
}

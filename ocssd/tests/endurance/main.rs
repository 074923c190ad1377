//! Endurance: seeded runs of random operations on a medium, with faults, power cuts and restarts, against a model
//! that knows what each sector may hold. The law is in `model`: no durable byte is lost.
//!
//! `TERRANE_SEED=n` replays one run of each kind of medium, `TERRANE_RUNS=n` makes that many; `just endurance` makes
//! 10,000 of each.

mod beneath;
mod driver;
mod flash;
mod liar;
mod model;
mod regressions;
mod rig;
mod sector;
mod sim;
mod volume;

use std::env;

use terrane_ocssd::FaultRates;
use terrane_ocssd::sim::Fault;

use crate::flash::FlashRig;
use crate::model::Tally;
use crate::rig::Rig;
use crate::sim::{CONVENTIONAL_FAULTS, FAULTS, SimRig};
use crate::volume::{HIDDEN_FAULTS, SHOWN_FAULTS, VolumeRig};

/// Runs of each kind where nobody says how many: a second or a few for each.
const RUNS: u64 = 1000;

/// Says how to repeat a run that failed.
struct Replay {
    test: &'static str,
    seed: u64,
}

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self { test, seed } = self;
            eprintln!("replay: TERRANE_SEED={seed} cargo test -p terrane-ocssd --test endurance {test}");
        }
    }
}

/// All runs of a kind of medium. `None`: only one was asked for, which says little of what they should have met.
fn endure<R: Rig>(test: &'static str, create: impl Fn(u64) -> R) -> Option<Tally> {
    let number = |name| env::var(name).ok().map(|text| text.parse().expect("a number"));
    let only = number("TERRANE_SEED");
    let seeds = match only {
        Some(seed) => seed..=seed,
        None => 1..=number("TERRANE_RUNS").unwrap_or(RUNS),
    };
    let mut tally = Tally::default();
    for seed in seeds {
        let replay = Replay { test, seed };
        tally.add(&driver::run(seed, &create));
        drop(replay);
    }
    eprintln!("{test}: {tally:?}");
    (only.is_none() && tally.cuts >= 500).then_some(tally)
}

/// Every kind of fault that may strike did, over all runs.
fn met(tally: &Tally, faults: impl IntoIterator<Item = Fault>) {
    for fault in faults {
        assert!(tally.faults.contains_key(&fault), "{fault:?} never struck: {tally:?}");
    }
}

/// The kinds of fault that strike at those rates.
fn kinds(rates: &FaultRates) -> impl Iterator<Item = Fault> {
    let strikes = |fault: &Fault| match fault {
        Fault::Overwritten => rates.misdirected_write > 0,
        fault => rates.of(*fault) > 0,
    };
    ALL.into_iter().filter(strikes)
}

const ALL: [Fault; 17] = [
    Fault::TornWrite,
    Fault::LostWrite,
    Fault::MisdirectedWrite,
    Fault::Overwritten,
    Fault::CorruptedWrite,
    Fault::FailedProgram,
    Fault::EarlyClose,
    Fault::ReadError,
    Fault::LatentReadError,
    Fault::CorruptedRead,
    Fault::HighEcc,
    Fault::FailedFlush,
    Fault::FailedReset,
    Fault::Offline,
    Fault::LatencySpike,
    Fault::Stall,
    Fault::PowerCut,
];

#[test]
fn conventional() {
    let Some(tally) = endure("conventional", SimRig::conventional) else { return };
    assert!(tally.durable_read > 1000 && tally.volatile_lost > 100, "{tally:?}");
}

#[test]
fn conventional_with_faults() {
    let Some(tally) = endure("conventional_with_faults", SimRig::conventional_with_faults) else { return };
    assert!(tally.durable_read > 1000 && tally.volatile_lost > 100 && tally.detected > 0, "{tally:?}");
    met(&tally, kinds(&CONVENTIONAL_FAULTS));
}

#[test]
fn tracking() {
    let Some(tally) = endure("tracking", SimRig::tracking) else { return };
    assert!(tally.durable_read > 1000 && tally.volatile_lost > 100, "{tally:?}");
    assert!(tally.hidden_lost > 10 && tally.resets_lost > 10, "{tally:?}");
}

#[test]
fn tracking_with_faults() {
    let Some(tally) = endure("tracking_with_faults", SimRig::tracking_with_faults) else { return };
    assert!(tally.durable_read > 1000 && tally.volatile_lost > 100 && tally.detected > 0, "{tally:?}");
    assert!(tally.hidden_lost > 10 && tally.resets_lost > 10, "{tally:?}");
    met(&tally, kinds(&FAULTS));
}

#[test]
fn flash() {
    let Some(tally) = endure("flash", FlashRig::sound) else { return };
    assert!(tally.durable_read > 1000 && tally.volatile_lost > 100 && tally.hidden_lost > 10, "{tally:?}");
}

#[test]
fn flash_that_wears_out() {
    let Some(tally) = endure("flash_that_wears_out", FlashRig::wearing) else { return };
    assert!(tally.durable_read > 1000 && tally.volatile_lost > 100 && tally.hidden_lost > 10, "{tally:?}");
    met(&tally, FlashRig::WEAR);
}

#[test]
fn volume_over_sim() {
    let Some(tally) = endure("volume_over_sim", VolumeRig::over_sim) else { return };
    assert!(tally.durable_read > 1000 && tally.volatile_lost > 100 && tally.hidden_lost > 10, "{tally:?}");
    met(&tally, kinds(&HIDDEN_FAULTS));
}

#[test]
fn volume_over_failing_sim() {
    let Some(tally) = endure("volume_over_failing_sim", VolumeRig::over_failing_sim) else { return };
    assert!(tally.durable_read > 1000 && tally.volatile_lost > 100 && tally.hidden_lost > 10, "{tally:?}");
    assert!(tally.lines_broken > 10 && tally.members_gone > 10 && tally.detected > 10, "{tally:?}");
    met(&tally, kinds(&SHOWN_FAULTS));
}

#[test]
fn volume_over_flash() {
    let Some(tally) = endure("volume_over_flash", VolumeRig::over_flash) else { return };
    assert!(tally.durable_read > 1000 && tally.volatile_lost > 100 && tally.hidden_lost > 10, "{tally:?}");
    met(&tally, FlashRig::WEAR);
}

//! One cell of the table: a workload on a drive in a state, run until it is steady.

use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;
use serde::Serialize;
use terrane_ocssd::ftl::{CollectorStream, Ftl, FtlOptions, VictimPolicy};

use crate::workload::Workload;

/// What is run.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    pub(crate) workload: Workload,
    /// Share of the logical space that the host uses, percent.
    pub(crate) used_percent: u32,
    /// Whether the host tells the drive what it does not use.
    pub(crate) trim: bool,
    /// Whether each stream has a placement handle.
    pub(crate) streams: bool,
    pub(crate) drive: FtlOptions,
    /// What others report, where this is comparable.
    pub(crate) public: Option<&'static str>,
}

/// How long, in the host's writes of all that it uses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Laps {
    pub(crate) warm: u32,
    pub(crate) measured: u32,
}

/// What came out.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) workload: String,
    pub(crate) used_percent: u32,
    pub(crate) trim: bool,
    pub(crate) streams: bool,
    pub(crate) victim: String,
    pub(crate) collector: String,
    pub(crate) over_provisioning: f64,
    pub(crate) blocks: u32,
    pub(crate) block_pages: u32,
    pub(crate) logical_pages: u32,
    /// Pages programmed per page written.
    pub(crate) device_wa: f64,
    pub(crate) formula: Option<&'static str>,
    pub(crate) formula_wa: Option<f64>,
    pub(crate) public: Option<&'static str>,
    pub(crate) host_pages: u64,
    pub(crate) collector_pages: u64,
    pub(crate) erases: u64,
    pub(crate) wear_min: u32,
    pub(crate) wear_max: u32,
}

impl Cell {
    /// Fills the drive, brings it into a steady state, and measures. The same seed gives the same row.
    pub(crate) fn run(&self, laps: Laps, seed: u64) -> Row {
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        let host_streams = if self.streams { self.workload.streams() } else { 1 };
        let options = FtlOptions { host_streams, seed, ..self.drive.clone() };
        let logical = options.logical_pages;
        let used = (u64::from(logical) * u64::from(self.used_percent) / 100) as u32;
        let mut drive = Ftl::new(options.clone()).expect("the sizes were checked");
        drive.fill();
        let mut requests = self.workload.begin(&mut drive, used, self.trim, &mut rng);
        let mut go_on = |drive: &mut Ftl, laps: u32| {
            let until = drive.counters().host_pages + u64::from(used) * u64::from(laps);
            while drive.counters().host_pages < until {
                requests.next(drive, &mut rng);
            }
        };
        go_on(&mut drive, laps.warm);
        let before = drive.counters();
        go_on(&mut drive, laps.measured);
        let done = drive.counters().since(&before);
        let wear = drive.wear();
        let still = if self.trim { 0 } else { logical - used };
        // With streams apart the formulas, which speak of one log, say nothing.
        let apart = self.streams && host_streams > 1;
        let formula = if apart { None } else { self.workload.formula(&options, used, still) };
        let formula = match (formula, options.victim) {
            (Some(("greedy", _)), VictimPolicy::Fifo) => {
                let room = options.room_ratio(1) - f64::from(still);
                Some(("FIFO", terrane_ocssd::ftl::analytic::fifo(room / f64::from(used))))
            }
            (formula, _) => formula,
        };
        Row {
            workload: self.workload.name(),
            used_percent: self.used_percent,
            trim: self.trim,
            streams: self.streams,
            victim: victim_name(options.victim),
            collector: collector_name(options.collector).to_owned(),
            over_provisioning: options.over_provisioning,
            blocks: options.blocks(),
            block_pages: options.block_pages,
            logical_pages: logical,
            device_wa: done.amplification(),
            formula: formula.map(|(name, _)| name),
            formula_wa: formula.map(|(_, value)| value),
            public: self.public,
            host_pages: done.host_pages,
            collector_pages: done.collector_pages,
            erases: done.erases,
            wear_min: wear.min,
            wear_max: wear.max,
        }
    }
}

pub(crate) fn victim_name(victim: VictimPolicy) -> String {
    match victim {
        VictimPolicy::Greedy => "greedy".to_owned(),
        VictimPolicy::Fifo => "FIFO".to_owned(),
        VictimPolicy::CostBenefit => "cost-benefit".to_owned(),
        VictimPolicy::Choices(draws) => format!("best of {draws}"),
    }
}

pub(crate) fn collector_name(collector: CollectorStream) -> &'static str {
    match collector {
        CollectorStream::WithHost => "with the host's",
        CollectorStream::Own => "one of its own",
        CollectorStream::PerStream => "one per stream",
    }
}

//! Which cells are run.

use terrane_ocssd::ftl::{CollectorStream, FtlOptions, VictimPolicy};

use crate::cell::Cell;
use crate::workload::Workload;

/// A table of cells under one title.
pub(crate) struct Section {
    pub(crate) title: &'static str,
    pub(crate) kind: Kind,
    pub(crate) cells: Vec<Cell>,
}

/// What a table shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The model against the formulas: by policy, spare and block.
    Formulas,
    /// Workloads on the drive.
    Workloads,
    /// A cache: by spare and streams.
    Cache,
    /// What decides over several writers in one block: by pace, block and collector.
    Mixing,
}

const FULL_DRIVE_PUBLIC: &str = "> 3.5: an ordinary SSD, 90 % full";
const FOUR_WRITERS_PUBLIC: &str = "1.02 → ≥ 1.6: four sequential writers";

fn cell(workload: Workload, used_percent: u32, trim: bool, drive: &FtlOptions) -> Cell {
    Cell { workload, used_percent, trim, streams: false, drive: drive.clone(), public: None }
}

/// Uniform writes to a drive that is all in use, by every policy for which there is a formula.
pub(crate) fn formulas(drive: &FtlOptions) -> Section {
    let small_blocks = FtlOptions { block_pages: 64, ..drive.clone() };
    let uniform =
        |options: &FtlOptions, public| Cell { public, ..cell(Workload::Uniform, 100, true, options) };
    let mut cells = Vec::new();
    for over_provisioning in [0.07, 0.15, 0.28] {
        for options in [&small_blocks, drive] {
            cells.push(uniform(&FtlOptions { over_provisioning, ..options.clone() }, None));
        }
    }
    for (over_provisioning, public) in [(0.1, "5.7"), (0.2, "3.2"), (0.3, "2.4"), (0.4, "2.0"), (0.6, "1.6")]
    {
        let victim = VictimPolicy::Fifo;
        cells.push(uniform(&FtlOptions { over_provisioning, victim, ..small_blocks.clone() }, Some(public)));
    }
    Section { title: "Uniform overwrites of a full drive", kind: Kind::Formulas, cells }
}

/// Every workload, with and without TRIM and streams.
pub(crate) fn workloads(drive: &FtlOptions, used_percents: &[u32]) -> Section {
    let cost_benefit = FtlOptions { victim: VictimPolicy::CostBenefit, ..drive.clone() };
    let all = [
        (Workload::Uniform, drive),
        (Workload::Zipf, drive),
        (Workload::Zipf, &cost_benefit),
        (Workload::Writers(vec![1]), drive),
        (Workload::Writers(vec![1; 4]), drive),
        (Workload::Writers(vec![1, 2, 3, 4]), drive),
        (Workload::Writers(vec![1; 8]), drive),
        (Workload::Log { segment_blocks: 0.5 }, drive),
    ];
    let mut cells = Vec::new();
    for (workload, drive) in all {
        for streams in [false, true] {
            if streams && workload.streams() == 1 {
                continue;
            }
            for &used_percent in used_percents {
                for trim in [true, false] {
                    let public = match &workload {
                        Workload::Uniform if used_percent == 90 => Some(FULL_DRIVE_PUBLIC),
                        Workload::Writers(paces) if paces.len() == 4 && !streams => Some(FOUR_WRITERS_PUBLIC),
                        _ => None,
                    };
                    let cell = cell(workload.clone(), used_percent, trim, drive);
                    cells.push(Cell { streams, public, ..cell });
                }
            }
        }
    }
    Section { title: "Workloads", kind: Kind::Workloads, cells }
}

/// A flash cache on a full drive, which is what CacheLib's authors measured: "Towards Efficient Flash Caches with
/// Emerging NVMe Flexible Data Placement SSDs", EuroSys 2025. They give the size of the random part, 4 %, not its share of
/// the writes, and the drive's spare only as 7 to 20 %.
pub(crate) fn cache(drive: &FtlOptions) -> Section {
    let mut cells = Vec::new();
    for (streams, public) in
        [(false, "3.22: CacheLib, full drive, no FDP"), (true, "1.03: CacheLib with FDP")]
    {
        for over_provisioning in [0.07, 0.12, 0.2] {
            for random_share in [0.5, 0.8] {
                let options = FtlOptions { over_provisioning, ..drive.clone() };
                let cell = cell(Workload::Cache { random_share }, 100, true, &options);
                cells.push(Cell { streams, public: Some(public), ..cell });
            }
        }
    }
    Section { title: "A flash cache on a full drive", kind: Kind::Cache, cells }
}

/// Four writers without streams at 90 % use: what their paces, the size of a block and the collector's stream do.
pub(crate) fn mixing(drive: &FtlOptions) -> Section {
    let mut cells = Vec::new();
    for paces in [vec![1, 1, 1, 1], vec![9, 10, 11, 12], vec![2, 3, 4, 5], vec![1, 2, 3, 4], vec![1, 2, 4, 8]]
    {
        for block_pages in [drive.block_pages / 4, drive.block_pages, drive.block_pages * 4] {
            for collector in [CollectorStream::Own, CollectorStream::WithHost] {
                let options = FtlOptions { block_pages, collector, ..drive.clone() };
                cells.push(cell(Workload::Writers(paces.clone()), 90, true, &options));
            }
        }
    }
    for segment_blocks in [0.0625, 0.25, 1.0, 2.0] {
        for streams in [false, true] {
            let cell = cell(Workload::Log { segment_blocks }, 90, true, drive);
            cells.push(Cell { streams, ..cell });
        }
    }
    Section { title: "What decides where writers mix (90 % used, TRIM)", kind: Kind::Mixing, cells }
}

//! The arguments of `device`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::device::SIZE_BYTES_MIN;
use crate::report::figures;

/// Seconds that a cell is measured, if nothing is said: of the whole table, and of the quick one.
const CELL_SECONDS: (u64, u64) = (3, 1);

pub(crate) const EXAMPLES: &str = "\
Examples:
  terrane-loadgen device --path ./probe --size 8GiB      every cell for 3 s, about two minutes in all
  terrane-loadgen device --path ./probe --quick          a third of the cells, for 1 s each
  terrane-loadgen device --path ./probe --json d.json    and the numbers, for reports to be held against
  terrane-loadgen device --path /dev/nvme1n1 --size 64GiB --force    the bare device; destroys what it holds

A file is made, laid out like a node's device, filled, and removed at the end, whatever that end is. Reads are spread
over all of it: let it be larger than what the device caches. Nosync writes are answered when the direct write
completes, durable ones when they survive power loss (O_DSYNC).

Exit codes: 0 all done; 1 failure; 2 wrong usage; 130 interrupted (what was measured by then is told).";

/// What to measure.
#[derive(Debug, Clone, Args)]
pub(crate) struct DeviceArgs {
    /// The file to make, or the block device to use. What exists is refused unless an earlier probe left it.
    #[arg(long, value_name = "FILE|DEVICE")]
    pub(crate) path: PathBuf,

    /// Bytes that are laid out, written and read; at least 64MiB.
    #[arg(long, default_value = "4GiB", value_parser = size, value_name = "BYTES")]
    pub(crate) size: u64,

    /// How long each cell is measured; 3 s, or with --quick 1 s.
    #[arg(long, value_parser = seconds, value_name = "S")]
    pub(crate) seconds_per_cell: Option<Duration>,

    /// Threads, each with its own slice and ring, that the requests in flight are shared out to.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64), value_name = "N")]
    pub(crate) shards: u32,

    /// Only the cells that tell most: 4 and 32 KiB, depth 1 and 32.
    #[arg(long)]
    pub(crate) quick: bool,

    /// Destroys what the path holds; a file is gone afterwards.
    #[arg(long)]
    pub(crate) force: bool,

    /// Writes all numbers to this file as JSON (stable keys; units in the names).
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

impl DeviceArgs {
    /// How long each cell is measured.
    pub(crate) fn window(&self) -> Duration {
        let seconds = if self.quick { CELL_SECONDS.1 } else { CELL_SECONDS.0 };
        self.seconds_per_cell.unwrap_or(Duration::from_secs(seconds))
    }
}

fn size(text: &str) -> Result<u64, String> {
    let bytes = figures::size(text)?;
    if bytes < SIZE_BYTES_MIN {
        return Err(format!("the probe needs at least {}", figures::bytes(SIZE_BYTES_MIN)));
    }
    Ok(bytes)
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.001..=3_600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("seconds are a number from 0.001 to 3600, for example 3 or 0.5".to_owned()),
    }
}

//! What the probe found: one structure, printed as a table, written as JSON and read again.
//!
//! The JSON's keys are stable: keys may be added, none changes its meaning or unit while `format` stays the same.
//!
//! ```text
//! format, command ("device"), version
//! partial                 cells are missing
//! ended_early             why they are, or null
//! path, size_bytes        what was probed, and how much of it holds data that is read and written
//! sector_bytes, chunk_bytes, shards
//! cells                   in the order in which they were measured:
//!   bytes, depth          of each request; requests in flight over all shards
//!   read_share            1 random reads, 0 sequential writes, 0.5 one to one
//!   durable               writes survive power loss once answered (false also where nothing is written)
//!   seconds, operations   how long was counted, and what completed then
//!   ops_s, mb_s           operations, and millions of bytes, per second
//!   cpu_s_per_mops        CPU seconds of the whole process per million operations; that is µs per operation
//!   reads, writes         count, mean_us, p50_us, p99_us, p999_us, max_us; null where there were none
//! ```

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::report::figures::{bytes, count, latency};

/// Version of the JSON's structure.
pub(crate) const FORMAT: u32 = 1;

/// How the JSON names the command that wrote it.
pub(crate) const COMMAND: &str = "device";

/// All that one probe found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DeviceReport {
    pub(crate) format: u32,
    pub(crate) command: String,
    pub(crate) version: String,
    pub(crate) partial: bool,
    pub(crate) ended_early: Option<String>,
    pub(crate) path: String,
    pub(crate) size_bytes: u64,
    pub(crate) sector_bytes: u32,
    pub(crate) chunk_bytes: u64,
    pub(crate) shards: u32,
    pub(crate) cells: Vec<Measured>,
}

/// One cell in numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Bytes of each request, whole sectors.
    pub(crate) bytes: u32,
    /// Requests in flight.
    pub(crate) depth: u32,
    /// Share of reads, from 0 to 1.
    pub(crate) read_share: f64,
    /// Writes were durable.
    pub(crate) durable: bool,
    /// How long was counted.
    pub(crate) seconds: f64,
    /// Requests that completed then.
    pub(crate) operations: u64,
    /// Requests per second.
    pub(crate) ops_s: f64,
    /// Millions of bytes per second.
    pub(crate) mb_s: f64,
    /// CPU seconds of the whole process per million requests: the same number in µs is one request's.
    pub(crate) cpu_s_per_mops: f64,
    /// Latencies of the reads.
    pub(crate) reads: Option<Latencies>,
    /// Latencies of the writes.
    pub(crate) writes: Option<Latencies>,
}

/// Latencies of one kind of request, in µs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Latencies {
    pub(crate) count: u64,
    pub(crate) mean_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) max_us: f64,
}

impl Latencies {
    /// Those of a histogram in nanoseconds; `None` if it is empty.
    pub(crate) fn of(ns: &Histogram<u64>) -> Option<Self> {
        let at = |quantile| ns.value_at_quantile(quantile) as f64 / 1e3;
        (!ns.is_empty()).then(|| Latencies {
            count: ns.len(),
            mean_us: ns.mean() / 1e3,
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: ns.max() as f64 / 1e3,
        })
    }
}

impl Measured {
    /// The 99th percentile of the reads' latencies in µs.
    pub(crate) fn read_p99_us(&self) -> Option<f64> {
        self.reads.map(|latencies| latencies.p99_us)
    }

    /// The 99th percentile of the writes' latencies in µs.
    pub(crate) fn write_p99_us(&self) -> Option<f64> {
        self.writes.map(|latencies| latencies.p99_us)
    }

    /// In words: `4.0 KiB random read, depth 32`.
    pub(crate) fn name(&self) -> String {
        name(self.bytes, self.depth, self.read_share, self.durable)
    }

    fn kind(&self) -> String {
        kind(self.read_share, self.durable)
    }
}

fn kind(read_share: f64, durable: bool) -> String {
    let durable = if durable { "durable" } else { "nosync" };
    match read_share {
        share if share >= 1.0 => "random read".to_owned(),
        share if share <= 0.0 => format!("sequential write, {durable}"),
        0.5 => format!("1:1 mix, {durable}"),
        share => format!("{:.0} % reads, {durable}", share * 100.0),
    }
}

/// A cell in words.
pub(crate) fn name(size: u32, depth: u32, read_share: f64, durable: bool) -> String {
    format!("{} {}, depth {depth}", bytes(size.into()), kind(read_share, durable))
}

impl DeviceReport {
    /// Writes it as JSON.
    pub(crate) fn write_json(&self, path: &Path) -> anyhow::Result<()> {
        crate::report::write_json(self, path)
    }

    /// Reads one that was written with `--json`.
    ///
    /// # Errors
    /// If it cannot be read, or is something else.
    pub(crate) fn read_json(path: &Path) -> anyhow::Result<Self> {
        let at = || format!("{}: not a report of the device probe", path.display());
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let report: DeviceReport = serde_json::from_str(&text).with_context(at)?;
        ensure!(report.command == COMMAND, "{}, but of `{}`", at(), report.command);
        ensure!(
            report.format == FORMAT,
            "{} has format {}, and this program reads format {FORMAT}: probe the device again",
            path.display(),
            report.format
        );
        Ok(report)
    }

    /// As a table, for people: a row for each cell, and one more for the writes of a mix.
    pub(crate) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(UTF8_BORDERS_ONLY);
        let header = ["", "size", "depth", "IOPS", "MB/s", "p50", "p99", "p99.9", "max", "CPU per I/O"];
        table.set_header(header);
        let shown = |us: f64| latency(Duration::from_nanos((us * 1e3) as u64));
        let of = |latencies: Option<Latencies>| match latencies {
            Some(l) => [l.p50_us, l.p99_us, l.p999_us, l.max_us].map(shown),
            None => [const { String::new() }; 4],
        };
        let mut before = None;
        for cell in &self.cells {
            // A blank line between reads, writes and mixes.
            if before.replace(cell.read_share).is_some_and(|before| before != cell.read_share) {
                table.add_row([""]);
            }
            let mixed = cell.reads.is_some() && cell.writes.is_some();
            let mut row = vec![
                cell.kind(),
                bytes(cell.bytes.into()),
                cell.depth.to_string(),
                count(cell.ops_s.round() as u64),
                count(cell.mb_s.round() as u64),
            ];
            row.extend(of(cell.reads.or(cell.writes)));
            row.push(format!("{:.1} µs", cell.cpu_s_per_mops));
            if mixed {
                row[0].push_str(": reads");
            }
            table.add_row(row);
            if mixed {
                let mut row = vec!["  its writes".to_owned()];
                row.resize(5, String::new());
                row.extend(of(cell.writes));
                table.add_row(row);
            }
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let missing = match &self.ended_early {
            Some(why) => format!("\nEnded early, not all cells were measured: {why}."),
            None => String::new(),
        };
        let shards =
            if self.shards == 1 { "one thread".to_owned() } else { format!("{} threads", self.shards) };
        format!("\n{}: {} written, {shards}\n{table}{missing}", self.path, bytes(self.size_bytes))
    }
}

//! The table: of each target in each cell the median of its samples, the least and the most; as text, JSON and CSV.
//!
//! ```text
//! format, command ("compare"), version
//! partial                not everything was measured: `failures` says what and why
//! provisional            why Terrane's rows are not final yet, or null
//! machine                cpu, cores, memory, kernel, device, date, command line
//! scale_bytes, cache_bytes, key_bytes, seconds, warmup_seconds, repetitions, shards, nodes
//! configurations         per target: its effective settings, as it told them
//! failures               target, cell and reason of what could not be measured
//! rows                   target, value_bytes, config, mode, clients, repetitions,
//!   and each of these as median, with _min and _max beside it (null where it was not measured):
//!   load_ops_s           records loaded a second
//!   mixed_ops_s          operations of the mixed phase a second
//!   read_p99_us, write_p99_us
//!   cpu_s_per_mops       CPU seconds per million operations of the mixed phase: of the whole process where the store is
//!                        embedded (the load generator's part is in it, alike for all), of all servers where it is not
//!   wa                   bytes written to the device by the kernel's count / bytes of keys and values written, in the
//!                        mixed phase; servers: mean over the nodes
//!   wa_own               the same by the store's own count
//!   load_wa              as wa, while loading
//!   sa                   bytes occupied at the end / bytes of live keys and values; servers: mean over the nodes
//!   rss_bytes            resident memory at its fullest; servers: all nodes
//!   mixed_ratio          to RocksDB in the same cell: mixed_ops_s / its mixed_ops_s (medians)
//!   device_share         mixed_ops_s / the device probe's in the same cell (medians)
//! ```

use std::collections::BTreeMap;

use comfy_table::{Cell as Field, Table};
use serde::Serialize;

use crate::cli::compare::Contestant;
use crate::compare::plan::Cell;
use crate::report::figures::{bytes, count, latency};
use crate::report::machine::Machine;
use crate::report::tables::{right, table};

/// Version of the JSON's structure.
pub(crate) const FORMAT: u32 = 1;

/// What one measurement came to. `None`: it could not be measured.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Sample {
    pub(crate) load_ops_s: Option<f64>,
    pub(crate) mixed_ops_s: Option<f64>,
    pub(crate) read_p99_us: Option<f64>,
    pub(crate) write_p99_us: Option<f64>,
    pub(crate) cpu_s_per_mops: Option<f64>,
    pub(crate) wa: Option<f64>,
    pub(crate) wa_own: Option<f64>,
    pub(crate) load_wa: Option<f64>,
    pub(crate) sa: Option<f64>,
    pub(crate) rss_bytes: Option<f64>,
}

/// The median of some samples, and their range.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Of these numbers; `None` if there are none. Of an even number, the median is the mean of the middle two.
    pub(crate) fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut sorted: Vec<f64> = numbers.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            1 => sorted[middle],
            _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
        };
        Some(Spread { median, min, max })
    }
}

macro_rules! row {
    ($($name:ident / $min:ident / $max:ident),+ $(,)?) => {
        /// One target in one cell.
        #[derive(Debug, Clone, PartialEq, Serialize)]
        pub(crate) struct Row {
            pub(crate) target: &'static str,
            pub(crate) value_bytes: u64,
            pub(crate) config: &'static str,
            pub(crate) mode: &'static str,
            pub(crate) clients: u32,
            pub(crate) repetitions: u32,
            $(pub(crate) $name: Option<f64>, pub(crate) $min: Option<f64>, pub(crate) $max: Option<f64>,)+
            pub(crate) mixed_ratio: Option<f64>,
            pub(crate) device_share: Option<f64>,
        }

        impl Row {
            /// The columns, in the order of the fields.
            pub(crate) const COLUMNS: &'static [&'static str] = &[
                "target", "value_bytes", "config", "mode", "clients", "repetitions",
                $(stringify!($name), stringify!($min), stringify!($max),)+
                "mixed_ratio", "device_share",
            ];

            fn new(target: Contestant, cell: Cell, samples: &[Sample]) -> Row {
                $(let $name = Spread::of(samples.iter().filter_map(|sample| sample.$name));)+
                Row {
                    target: target.name(),
                    value_bytes: cell.value_bytes,
                    config: cell.config.name(),
                    mode: cell.mode.name(),
                    clients: cell.clients,
                    repetitions: samples.len() as u32,
                    $(
                        $min: $name.map(|spread| spread.min),
                        $max: $name.map(|spread| spread.max),
                        $name: $name.map(|spread| spread.median),
                    )+
                    mixed_ratio: None,
                    device_share: None,
                }
            }
        }
    };
}

row! {
    load_ops_s / load_ops_s_min / load_ops_s_max,
    mixed_ops_s / mixed_ops_s_min / mixed_ops_s_max,
    read_p99_us / read_p99_us_min / read_p99_us_max,
    write_p99_us / write_p99_us_min / write_p99_us_max,
    cpu_s_per_mops / cpu_s_per_mops_min / cpu_s_per_mops_max,
    wa / wa_min / wa_max,
    wa_own / wa_own_min / wa_own_max,
    load_wa / load_wa_min / load_wa_max,
    sa / sa_min / sa_max,
    rss_bytes / rss_bytes_min / rss_bytes_max,
}

/// Something that could not be measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Failure {
    pub(crate) target: &'static str,
    pub(crate) value_bytes: u64,
    pub(crate) config: &'static str,
    pub(crate) mode: &'static str,
    pub(crate) clients: u32,
    pub(crate) repetition: u32,
    pub(crate) reason: String,
}

/// The whole comparison.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    pub(crate) format: u32,
    pub(crate) command: &'static str,
    pub(crate) version: &'static str,
    pub(crate) partial: bool,
    pub(crate) provisional: Option<&'static str>,
    pub(crate) machine: Machine,
    pub(crate) scale_bytes: u64,
    pub(crate) cache_bytes: u64,
    pub(crate) key_bytes: u32,
    pub(crate) seconds: u64,
    pub(crate) warmup_seconds: u64,
    pub(crate) repetitions: u32,
    pub(crate) shards: u32,
    pub(crate) nodes: u32,
    pub(crate) configurations: BTreeMap<&'static str, BTreeMap<String, String>>,
    pub(crate) failures: Vec<Failure>,
    pub(crate) rows: Vec<Row>,
}

/// Why Terrane's rows are marked.
pub(crate) const PROVISIONAL: &str = "Terrane's engine does not reclaim space yet: its space amplification grows with \
     every overwrite, and it does no cleaning work. Its rows show what writing once costs, and are not comparable with \
     stores at a space amplification near 1. It has no compression yet either.";

/// The rows of all samples, in the order in which cells and targets first came.
pub(crate) fn rows(samples: &[(Cell, Contestant, Sample)]) -> Vec<Row> {
    let mut keys: Vec<(Cell, Contestant)> = Vec::new();
    for (cell, target, _) in samples {
        if !keys.contains(&(*cell, *target)) {
            keys.push((*cell, *target));
        }
    }
    let of = |cell: Cell, target: Contestant| -> Vec<Sample> {
        samples.iter().filter(|(c, t, _)| (*c, *t) == (cell, target)).map(|(.., sample)| *sample).collect()
    };
    let mixed = |cell: Cell, target: Contestant| {
        Spread::of(of(cell, target).iter().filter_map(|sample| sample.mixed_ops_s))
            .map(|spread| spread.median)
    };
    keys.iter()
        .map(|&(cell, target)| {
            let mut row = Row::new(target, cell, &of(cell, target));
            let ratio = |other| Some(row.mixed_ops_s? / mixed(cell, other)?);
            (row.mixed_ratio, row.device_share) = match target {
                Contestant::Device => (None, None),
                _ => (ratio(Contestant::Rocksdb), ratio(Contestant::Device)),
            };
            row
        })
        .collect()
}

impl Comparison {
    /// The table for people: a part for each configuration, mode and number of clients.
    pub(crate) fn tables(&self) -> String {
        let mut text = String::new();
        let mut parts: Vec<(&str, &str, u32)> = Vec::new();
        for row in &self.rows {
            if !parts.contains(&(row.config, row.mode, row.clients)) {
                parts.push((row.config, row.mode, row.clients));
            }
        }
        for (config, mode, clients) in parts {
            text.push_str(&format!("\n{config}, {mode}, {clients} clients: median (least to most)\n"));
            let rows =
                self.rows.iter().filter(|row| (row.config, row.mode, row.clients) == (config, mode, clients));
            text.push_str(&format!("{}\n", part(rows)));
        }
        for failure in &self.failures {
            text.push_str(&format!(
                "  not measured: {} {} {} {} clients, {}, repetition {}: {}\n",
                failure.target,
                failure.config,
                failure.mode,
                failure.clients,
                bytes(failure.value_bytes),
                failure.repetition,
                failure.reason
            ));
        }
        if let Some(provisional) = self.provisional {
            text.push_str(&format!("\nProvisional. {provisional}\n"));
        }
        if self.partial {
            text.push_str("\nPartial: not everything was measured.\n");
        }
        text
    }
}

/// The columns of the table for people.
pub(crate) const HEADINGS: [&str; 12] = [
    "value",
    "target",
    "load ops/s",
    "mixed ops/s",
    "× RocksDB",
    "of device",
    "read p99",
    "write p99",
    "CPU s/M",
    "WA",
    "SA",
    "RSS",
];

/// A row of the table for people.
pub(crate) fn fields(row: &Row) -> [String; 12] {
    let spread =
        |median: Option<f64>, min: Option<f64>, max: Option<f64>, show: &dyn Fn(f64) -> String| match (
            median, min, max,
        ) {
            (Some(median), Some(min), Some(max)) if min < max => {
                format!("{} ({} – {})", show(median), show(min), show(max))
            }
            (Some(median), ..) => show(median),
            (None, ..) => String::new(),
        };
    let whole = |number: f64| count(number.round() as u64);
    let us = |us: f64| latency(std::time::Duration::from_nanos((us * 1e3) as u64));
    let plain =
        |number: Option<f64>, digits: usize| number.map_or(String::new(), |n| format!("{n:.digits$}"));
    [
        bytes(row.value_bytes),
        row.target.to_owned(),
        spread(row.load_ops_s, row.load_ops_s_min, row.load_ops_s_max, &whole),
        spread(row.mixed_ops_s, row.mixed_ops_s_min, row.mixed_ops_s_max, &whole),
        plain(row.mixed_ratio, 2),
        row.device_share.map_or(String::new(), |share| format!("{:.0} %", share * 100.0)),
        row.read_p99_us.map_or(String::new(), us),
        row.write_p99_us.map_or(String::new(), us),
        plain(row.cpu_s_per_mops, 1),
        plain(row.wa, 2),
        plain(row.sa, 2),
        row.rss_bytes.map_or(String::new(), |rss| bytes(rss as u64)),
    ]
}

fn part<'a>(rows: impl Iterator<Item = &'a Row>) -> Table {
    let mut table = table();
    table.set_header(HEADINGS.map(right));
    for row in rows {
        let mut fields = fields(row).map(right);
        fields[1] = Field::new(row.target);
        table.add_row(fields);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::target::{Config, Mode};

    fn cell(value_bytes: u64) -> Cell {
        Cell { config: Config::Plain, mode: Mode::Sync, clients: 8, value_bytes }
    }

    fn sample(mixed: f64) -> Sample {
        Sample { mixed_ops_s: Some(mixed), wa: Some(1.5), ..Sample::default() }
    }

    fn rows_of_some() -> Vec<Row> {
        rows(&[
            (cell(1024), Contestant::Engine, sample(300.0)),
            (cell(1024), Contestant::Rocksdb, sample(100.0)),
            (cell(1024), Contestant::Device, sample(600.0)),
            (cell(1024), Contestant::Engine, sample(100.0)),
            (cell(1024), Contestant::Rocksdb, sample(120.0)),
            (cell(1024), Contestant::Engine, sample(220.0)),
            (cell(4096), Contestant::Engine, sample(50.0)),
        ])
    }

    #[test]
    fn medians_have_their_range_beside_them() {
        let of = |numbers: &[f64]| Spread::of(numbers.iter().copied());
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(of(&[4.0, 1.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
    }

    #[test]
    fn rows_are_related_to_rocksdb_and_the_device_of_their_own_cell() {
        let rows = rows_of_some();
        let keys: Vec<_> = rows.iter().map(|row| (row.target, row.value_bytes, row.repetitions)).collect();
        assert_eq!(
            keys,
            [("engine", 1024, 3), ("rocksdb", 1024, 2), ("device", 1024, 1), ("engine", 4096, 1)]
        );
        assert_eq!((rows[0].mixed_ops_s, rows[0].mixed_ops_s_min), (Some(220.0), Some(100.0)));
        assert_eq!((rows[0].mixed_ratio, rows[1].mixed_ratio), (Some(2.0), Some(1.0)));
        assert_eq!(rows[0].device_share, Some(220.0 / 600.0));
        assert_eq!((rows[2].mixed_ratio, rows[3].mixed_ratio, rows[3].device_share), (None, None, None));
        assert_eq!((rows[0].wa, rows[0].load_ops_s), (Some(1.5), None));
    }

    /// The documented names are those of the JSON and of the CSV.
    #[test]
    fn columns_are_the_keys() {
        let json = serde_json::to_value(&rows_of_some()[0]).unwrap();
        let mut keys: Vec<&String> = json.as_object().unwrap().keys().collect();
        let mut columns: Vec<&str> = Row::COLUMNS.to_vec();
        keys.sort();
        columns.sort_unstable();
        assert_eq!(keys, columns);
        let source = include_str!("table.rs");
        let documented = &source[..source.find("use std").unwrap()];
        for column in Row::COLUMNS {
            let name = column.trim_end_matches("_min").trim_end_matches("_max");
            assert!(documented.contains(name), "{name} is not documented");
        }
    }
}

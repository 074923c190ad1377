//! The table: of each target in each cell the median of its samples, the least and the most; as text, JSON and CSV.
//!
//! ```text
//! format, command ("compare"), version
//! partial                not everything was measured: `failures` says what and why
//! provisional            always null (earlier: why Terrane's rows are not final yet)
//! machine                cpu, cores, memory, kernel, device, date, command line
//! scale_bytes, cache_bytes, key_bytes, seconds, warmup_seconds, repetitions, shards, nodes
//! configurations         the distinct ones: target, config, mode, value_bytes, clients (null where they make no
//!                        difference), settings (as the target told them)
//! remarks                in what the targets differ that no figure shows
//! failures               target, cell, repetition and reason of what could not be measured, or not to its end: no such
//!                        measurement is in a row
//! warnings               the same of what makes a measurement doubtful (it is in its row); repetition is null where
//!                        the whole row is meant
//! rows                   target, value_bytes, config, mode, clients, repetitions (that count),
//!   and each of these as median, with _min and _max beside it (null where it was not measured), and with _ratio: by
//!   how much it is RocksDB's in the same cell, the median over the repetitions of (ours / RocksDB's of that repetition):
//!   load_ops_s           records loaded a second
//!   mixed_ops_s          operations of the mixed phase a second
//!   read_p99_us, write_p99_us
//!   cpu_s_per_mops       CPU seconds per million operations of the mixed phase: of the whole process where the store is
//!                        embedded (the load generator's part is in it, alike for all), of all servers where it is not
//!   wa                   bytes written to the device by the kernel's count / bytes of keys and values written, in the
//!                        mixed phase; servers: mean over the nodes
//!   wa_own               the same by the store's own count
//!   load_wa              as wa, while loading
//!   sa                   bytes occupied at the end / bytes of live keys and values; servers: bytes occupied on all
//!                        nodes / bytes of all copies
//!   rss_bytes            resident memory at its fullest; servers: all nodes
//!   device_share         mixed_ops_s / the device probe's in the same cell, as the ratios: median over repetitions
//! ```

use std::collections::BTreeMap;

use comfy_table::{Cell as Field, Table};
use serde::Serialize;

use crate::cli::compare::Contestant;
use crate::compare::plan::{Cell, Turn};
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
    ($($name:ident / $min:ident / $max:ident / $ratio:ident),+ $(,)?) => {
        /// One target in one cell.
        #[derive(Debug, Clone, PartialEq, Serialize)]
        pub(crate) struct Row {
            pub(crate) target: &'static str,
            pub(crate) value_bytes: u64,
            pub(crate) config: &'static str,
            pub(crate) mode: &'static str,
            pub(crate) clients: u32,
            pub(crate) repetitions: u32,
            $(
                pub(crate) $name: Option<f64>,
                pub(crate) $min: Option<f64>,
                pub(crate) $max: Option<f64>,
                pub(crate) $ratio: Option<f64>,
            )+
            pub(crate) device_share: Option<f64>,
        }

        impl Row {
            /// The columns, in the order of the fields.
            pub(crate) const COLUMNS: &'static [&'static str] = &[
                "target", "value_bytes", "config", "mode", "clients", "repetitions",
                $(stringify!($name), stringify!($min), stringify!($max), stringify!($ratio),)+
                "device_share",
            ];

            /// Of a target's samples in a cell, by repetition, and those of the two that it is compared with.
            fn new(target: Contestant, cell: Cell, samples: &Series, rocksdb: &Series, device: &Series) -> Row {
                $(let $name = Spread::of(samples.values().filter_map(|sample| sample.$name));)+
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
                        $ratio: paired(samples, rocksdb, |sample| sample.$name),
                        $name: $name.map(|spread| spread.median),
                    )+
                    device_share: paired(samples, device, |sample| sample.mixed_ops_s),
                }
            }
        }
    };
}

row! {
    load_ops_s / load_ops_s_min / load_ops_s_max / load_ops_s_ratio,
    mixed_ops_s / mixed_ops_s_min / mixed_ops_s_max / mixed_ops_s_ratio,
    read_p99_us / read_p99_us_min / read_p99_us_max / read_p99_us_ratio,
    write_p99_us / write_p99_us_min / write_p99_us_max / write_p99_us_ratio,
    cpu_s_per_mops / cpu_s_per_mops_min / cpu_s_per_mops_max / cpu_s_per_mops_ratio,
    wa / wa_min / wa_max / wa_ratio,
    wa_own / wa_own_min / wa_own_max / wa_own_ratio,
    load_wa / load_wa_min / load_wa_max / load_wa_ratio,
    sa / sa_min / sa_max / sa_ratio,
    rss_bytes / rss_bytes_min / rss_bytes_max / rss_bytes_ratio,
}

/// The samples of a target in a cell, by repetition.
type Series = BTreeMap<u32, Sample>;

/// The median of the ratios of what was measured in the same repetition: drift of the machine hits both alike.
fn paired(samples: &Series, others: &Series, figure: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
    let ratio = |(repetition, sample): (&u32, &Sample)| {
        let other = figure(others.get(repetition)?).filter(|other| *other > 0.0)?;
        Some(figure(sample)? / other)
    };
    Spread::of(samples.iter().filter_map(ratio)).map(|spread| spread.median)
}

/// Why something was not measured, or is doubtful.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Note {
    pub(crate) target: &'static str,
    pub(crate) value_bytes: u64,
    pub(crate) config: &'static str,
    pub(crate) mode: &'static str,
    pub(crate) clients: u32,
    /// `None`: of all repetitions.
    pub(crate) repetition: Option<u32>,
    pub(crate) reason: String,
}

impl Note {
    /// About one measurement.
    pub(crate) fn of(turn: &Turn, reason: String) -> Note {
        Note {
            target: turn.target.name(),
            value_bytes: turn.cell.value_bytes,
            config: turn.cell.config.name(),
            mode: turn.cell.mode.name(),
            clients: turn.cell.clients,
            repetition: Some(turn.repetition),
            reason,
        }
    }

    /// What it is about, for people; without the target.
    pub(crate) fn cell(&self) -> String {
        let Note { config, mode, clients, repetition, .. } = self;
        let repetition = repetition.map_or(String::new(), |number| format!(", repetition {number}"));
        format!("{config} {mode} {clients} clients, {}{repetition}", bytes(self.value_bytes))
    }
}

/// A target's settings, and where they held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Configuration {
    pub(crate) target: &'static str,
    pub(crate) config: &'static str,
    pub(crate) mode: &'static str,
    /// `None`: it makes no difference; as in `clients`.
    pub(crate) value_bytes: Option<u64>,
    pub(crate) clients: Option<u32>,
    pub(crate) settings: BTreeMap<String, String>,
}

impl Configuration {
    /// Whose it is and where it held.
    pub(crate) fn title(&self) -> String {
        let mut title = format!("Configuration of {}: {}, {}", self.target, self.config, self.mode);
        if let Some(value_bytes) = self.value_bytes {
            title.push_str(&format!(", values of {}", bytes(value_bytes)));
        }
        if let Some(clients) = self.clients {
            title.push_str(&format!(", {clients} clients"));
        }
        title
    }
}

/// The distinct configurations among the settings that measurements told.
pub(crate) fn configurations(told: &[(Turn, BTreeMap<String, String>)]) -> Vec<Configuration> {
    let mut distinct = Vec::new();
    for (turn, settings) in told {
        let differs = |alike: &dyn Fn(&Turn) -> bool| {
            told.iter().any(|(other, others)| {
                let near = |turn: &Turn| (turn.target, turn.cell.config, turn.cell.mode);
                near(other) == near(turn) && alike(other) && others != settings
            })
        };
        let configuration = Configuration {
            target: turn.target.name(),
            config: turn.cell.config.name(),
            mode: turn.cell.mode.name(),
            value_bytes: differs(&|_| true).then_some(turn.cell.value_bytes),
            clients: differs(&|other| other.cell.value_bytes == turn.cell.value_bytes)
                .then_some(turn.cell.clients),
            settings: settings.clone(),
        };
        if !distinct.contains(&configuration) {
            distinct.push(configuration);
        }
    }
    distinct
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
    pub(crate) configurations: Vec<Configuration>,
    pub(crate) remarks: Vec<&'static str>,
    pub(crate) failures: Vec<Note>,
    pub(crate) warnings: Vec<Note>,
    pub(crate) rows: Vec<Row>,
}

/// In what these targets differ that no figure shows.
pub(crate) fn remarks(targets: &[Contestant]) -> Vec<&'static str> {
    use Contestant::{Blobdb, Etcd, Fjall, Redis, RedisEverysec, Rocksdb};
    let all: [(&[Contestant], &'static str); 4] = [
        (
            &[Rocksdb, Blobdb],
            "RocksDB's memtables, up to max_write_buffer_number × write_buffer_size (4 × 64 MiB), come on top of its \
             cache; its RSS has them.",
        ),
        (
            &[Fjall],
            "fjall is served by the page cache too, beyond its cache: by whatever memory the machine has free, which \
             its RSS does not have.",
        ),
        (&[Etcd], "etcd maps its database into memory: --cache does not bound it."),
        (&[Redis, RedisEverysec], "Redis keeps all data in memory: --cache does not bound it."),
    ];
    all.into_iter()
        .filter(|(whose, _)| targets.iter().any(|target| whose.contains(target)))
        .map(|(_, remark)| remark)
        .collect()
}

/// The rows of all samples, in the order in which cells and targets first came.
pub(crate) fn rows(samples: &[(Turn, Sample)]) -> Vec<Row> {
    let mut keys: Vec<(Cell, Contestant)> = Vec::new();
    for (turn, _) in samples {
        if !keys.contains(&(turn.cell, turn.target)) {
            keys.push((turn.cell, turn.target));
        }
    }
    let of = |cell: Cell, target: Contestant| -> Series {
        let own = samples.iter().filter(|(turn, _)| (turn.cell, turn.target) == (cell, target));
        own.map(|(turn, sample)| (turn.repetition, *sample)).collect()
    };
    let row = |&(cell, target): &(Cell, Contestant)| {
        let other = |other| match target {
            // The probe is no store.
            Contestant::Device => Series::new(),
            _ => of(cell, other),
        };
        Row::new(target, cell, &of(cell, target), &other(Contestant::Rocksdb), &other(Contestant::Device))
    };
    keys.iter().map(row).collect()
}

/// By how much the kernel's count of what was written and the store's own may differ.
const COUNTS_DIFFER_MAX: f64 = 0.1;

/// What is doubtful about whole rows.
pub(crate) fn doubts(rows: &[Row]) -> Vec<Note> {
    let doubt = |row: &Row| {
        let (wa, own) = (row.wa?, row.wa_own?);
        ((wa - own).abs() > COUNTS_DIFFER_MAX * own).then(|| Note {
            target: row.target,
            value_bytes: row.value_bytes,
            config: row.config,
            mode: row.mode,
            clients: row.clients,
            repetition: None,
            reason: format!(
                "write amplification is {wa:.2} by the kernel's count, but {own:.2} by the store's own"
            ),
        })
    };
    rows.iter().filter_map(doubt).collect()
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
            text.push_str(&format!(
                "\n{config}, {mode}, {clients} clients: median (ratio to RocksDB), least – most\n"
            ));
            let rows =
                self.rows.iter().filter(|row| (row.config, row.mode, row.clients) == (config, mode, clients));
            text.push_str(&format!("{}\n", part(rows)));
        }
        for (what, notes) in [("not measured", &self.failures), ("warning", &self.warnings)] {
            for note in notes {
                text.push_str(&format!("  {what}: {} {}: {}\n", note.target, note.cell(), note.reason));
            }
        }
        for remark in &self.remarks {
            text.push_str(&format!("\n{remark}"));
        }
        if !self.remarks.is_empty() {
            text.push('\n');
        }
        if self.partial {
            text.push_str("\nPartial: not everything was measured.\n");
        }
        text
    }
}

/// The columns of the table for people.
pub(crate) const HEADINGS: [&str; 11] = [
    "value",
    "target",
    "load ops/s",
    "mixed ops/s",
    "of device",
    "read p99",
    "write p99",
    "CPU s/M",
    "WA",
    "SA",
    "RSS",
];

/// A row of the table for people: below each median its ratio to RocksDB, of throughputs the range.
pub(crate) fn fields(row: &Row) -> [String; 11] {
    type Show<'a> = &'a dyn Fn(f64) -> String;
    let told = |median: Option<f64>, ratio: Option<f64>, gap: &str, show: Show<'_>| match (median, ratio) {
        (Some(median), Some(ratio)) => format!("{}{gap}({ratio:.2}×)", show(median)),
        (Some(median), None) => show(median),
        (None, _) => String::new(),
    };
    let whole = |number: f64| count(number.round() as u64);
    let rate = |median, ratio, min: Option<f64>, max: Option<f64>| {
        let told = told(median, ratio, " ", &whole);
        match (min, max) {
            (Some(min), Some(max)) if min < max => format!("{told}\n{} – {}", whole(min), whole(max)),
            _ => told,
        }
    };
    let below = |median, ratio, show: Show<'_>| told(median, ratio, "\n", show);
    let us = |us: f64| latency(std::time::Duration::from_nanos((us * 1e3) as u64));
    let decimal = |number: f64| format!("{number:.2}");
    [
        bytes(row.value_bytes),
        row.target.to_owned(),
        rate(row.load_ops_s, row.load_ops_s_ratio, row.load_ops_s_min, row.load_ops_s_max),
        rate(row.mixed_ops_s, row.mixed_ops_s_ratio, row.mixed_ops_s_min, row.mixed_ops_s_max),
        row.device_share.map_or(String::new(), |share| format!("{:.0} %", share * 100.0)),
        below(row.read_p99_us, row.read_p99_us_ratio, &us),
        below(row.write_p99_us, row.write_p99_us_ratio, &us),
        below(row.cpu_s_per_mops, row.cpu_s_per_mops_ratio, &|seconds| format!("{seconds:.1}")),
        below(row.wa, row.wa_ratio, &decimal),
        below(row.sa, row.sa_ratio, &decimal),
        below(row.rss_bytes, row.rss_bytes_ratio, &|rss| bytes(rss as u64)),
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
pub(crate) mod tests {
    use super::*;
    use crate::cli::target::{Config, Mode};

    fn cell(value_bytes: u64) -> Cell {
        Cell { config: Config::Plain, mode: Mode::Sync, clients: 8, value_bytes }
    }

    fn sample(mixed: f64) -> Sample {
        Sample { mixed_ops_s: Some(mixed), wa: Some(1.5), ..Sample::default() }
    }

    /// A table of some rows.
    pub(crate) fn comparison() -> Comparison {
        Comparison {
            format: FORMAT,
            command: "compare",
            version: "0",
            partial: false,
            provisional: None,
            machine: Machine::of(None),
            scale_bytes: 1 << 30,
            cache_bytes: 1 << 26,
            key_bytes: 16,
            seconds: 20,
            warmup_seconds: 2,
            repetitions: 3,
            shards: 2,
            nodes: 3,
            configurations: Vec::new(),
            remarks: remarks(&[Contestant::Fjall]),
            failures: vec![Note::of(&turn(1024, 2, Contestant::Rocksdb), "ended early: full".to_owned())],
            warnings: Vec::new(),
            rows: rows_of_some(),
        }
    }

    #[test]
    fn people_are_told_what_is_missing_and_what_differs() {
        let text = comparison().tables();
        for words in [
            "not measured: rocksdb plain sync 8 clients, 1.0 KiB, repetition 2: ended early: full",
            "fjall is served by the page cache",
            "220 (2.00×)",
            "100 – 300",
        ] {
            assert!(text.contains(words), "{words}:\n{text}");
        }
        let widest = text.lines().filter(|line| line.starts_with('│')).map(|line| line.chars().count()).max();
        assert!(widest < Some(150), "{text}");
    }

    fn turn(value_bytes: u64, repetition: u32, target: Contestant) -> Turn {
        Turn { cell: cell(value_bytes), repetition, target }
    }

    /// The second repetition of RocksDB is missing.
    fn rows_of_some() -> Vec<Row> {
        rows(&[
            (turn(1024, 1, Contestant::Engine), sample(300.0)),
            (turn(1024, 1, Contestant::Rocksdb), sample(100.0)),
            (turn(1024, 1, Contestant::Device), sample(600.0)),
            (turn(1024, 2, Contestant::Engine), sample(100.0)),
            (turn(1024, 3, Contestant::Rocksdb), sample(220.0)),
            (turn(1024, 3, Contestant::Engine), sample(220.0)),
            (turn(4096, 1, Contestant::Engine), sample(50.0)),
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
        // By repetition: 300 / 100 and 220 / 220.
        assert_eq!((rows[0].mixed_ops_s_ratio, rows[1].mixed_ops_s_ratio), (Some(2.0), Some(1.0)));
        assert_eq!((rows[0].wa_ratio, rows[0].sa_ratio), (Some(1.0), None));
        assert_eq!(rows[0].device_share, Some(0.5));
        assert_eq!((rows[2].mixed_ops_s_ratio, rows[2].device_share), (None, None), "the probe is no store");
        assert_eq!((rows[3].mixed_ops_s_ratio, rows[3].device_share), (None, None), "of another cell");
        assert_eq!((rows[0].wa, rows[0].load_ops_s), (Some(1.5), None));
    }

    #[test]
    fn counts_that_differ_are_a_doubt() {
        let counted = |wa, wa_own| {
            let sample = Sample { wa: Some(wa), wa_own, ..Sample::default() };
            doubts(&rows(&[(turn(1024, 1, Contestant::Engine), sample)]))
        };
        assert_eq!(
            (counted(1.09, Some(1.0)), counted(0.91, Some(1.0)), counted(9.0, None)),
            (vec![], vec![], vec![])
        );
        for wa in [1.2, 0.8] {
            let doubt = &counted(wa, Some(1.0))[0];
            assert_eq!((doubt.target, doubt.repetition), ("engine", None));
            assert!(doubt.reason.contains(&format!("{wa:.2} by the kernel")), "{}", doubt.reason);
        }
    }

    #[test]
    fn configurations_that_agree_are_one() {
        let told = |value_bytes, clients, text: &str| {
            let mut turn = turn(value_bytes, 1, Contestant::Blobdb);
            turn.cell.clients = clients;
            (turn, BTreeMap::from([("table".to_owned(), text.to_owned())]))
        };
        let keys = |told: &[(Turn, BTreeMap<String, String>)]| -> Vec<_> {
            let all = configurations(told);
            all.iter().map(|one| (one.value_bytes, one.clients, one.settings["table"].clone())).collect()
        };
        let (a, b) = (|| "a".to_owned(), || "b".to_owned());
        assert_eq!(keys(&[told(1, 8, "a"), told(1, 64, "a"), told(4, 8, "a")]), [(None, None, a())]);
        assert_eq!(
            keys(&[told(1, 8, "a"), told(1, 64, "a"), told(4, 8, "b")]),
            [(Some(1), None, a()), (Some(4), None, b())]
        );
        assert_eq!(
            keys(&[told(1, 8, "a"), told(1, 64, "b")]),
            [(Some(1), Some(8), a()), (Some(1), Some(64), b())]
        );
        let mut nosync = told(1, 8, "b");
        nosync.0.cell.mode = Mode::Nosync;
        assert_eq!(keys(&[told(1, 8, "a"), nosync]), [(None, None, a()), (None, None, b())]);
    }

    #[test]
    fn remarks_are_of_those_who_are_there() {
        assert!(remarks(&[Contestant::Engine, Contestant::Device]).is_empty());
        let of = remarks(&[Contestant::Blobdb, Contestant::Rocksdb, Contestant::Fjall]);
        assert!(of.len() == 2 && of[0].contains("memtables") && of[1].contains("page cache"), "{of:?}");
    }

    #[test]
    fn ratios_stand_below_and_ranges_beside_throughput_only() {
        let rows = rows_of_some();
        let fields = fields(&rows[0]);
        assert_eq!((&fields[3][..], &fields[4][..]), ("220 (2.00×)\n100 – 300", "50 %"));
        assert_eq!((&fields[8][..], &fields[2][..]), ("1.50\n(1.00×)", ""));
        assert_eq!(super::fields(&rows[3])[3], "50");
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
            let name =
                ["_min", "_max", "_ratio"].iter().find_map(|end| column.strip_suffix(end)).unwrap_or(column);
            assert!(documented.contains(name), "{name} is not documented");
        }
    }
}

//! The comparison as a page.

use crate::cli::compare::Contestant;
use crate::compare::table::{Comparison, HEADINGS, Note, Row, fields};
use crate::report::axis::{Axis, Unit};
use crate::report::chart::Bar;
use crate::report::curves::{self, Cell};
use crate::report::figures::bytes;
use crate::report::page::{Page, Section, Table, Verdict};

/// The page.
pub(crate) fn page(table: &Comparison) -> Page {
    let verdict = if table.partial {
        Verdict::Partial("Not everything was measured; what is missing is listed below.".into())
    } else {
        Verdict::Good("Everything was measured.".into())
    };
    let mut sections = Vec::new();
    let mut parts: Vec<(&str, &str, u32)> = Vec::new();
    for row in &table.rows {
        if !parts.contains(&(row.config, row.mode, row.clients)) {
            parts.push((row.config, row.mode, row.clients));
        }
    }
    for (config, mode, clients) in parts {
        let rows: Vec<&Row> = table
            .rows
            .iter()
            .filter(|row| (row.config, row.mode, row.clients) == (config, mode, clients))
            .collect();
        let title = |what: &str| format!("{what}: {config}, {mode}, {clients} clients");
        let chart = |axis: Axis, pick: fn(&Row) -> [Option<f64>; 3]| {
            curves::comparison(axis, &cells(&rows, pick), None)
        };
        sections.push(Section::chart(
            &title("Mixed throughput"),
            Some("Half reads, half updates, Zipf 0.99. Bars are medians, whiskers the least and the most."),
            chart(Axis::linear("Operations/s", Unit::Count), |row| {
                [row.mixed_ops_s, row.mixed_ops_s_min, row.mixed_ops_s_max]
            }),
        ));
        if rows.iter().any(|row| row.target == Contestant::Rocksdb.name()) {
            let ratios = cells(&rows, |row| [row.mixed_ops_s_ratio; 3]);
            let axis = Axis::linear("Times RocksDB", Unit::Ratio);
            sections.push(Section::chart(
                &title("Mixed throughput, ratio to RocksDB"),
                Some("Medians over the repetitions, each beside RocksDB's of the same repetition."),
                curves::comparison(axis, &ratios, Some((1.0, "RocksDB".to_owned()))),
            ));
        }
        sections.push(Section::chart(
            &title("p99 of reads"),
            None,
            chart(Axis::log("Latency", Unit::Microseconds), |row| {
                [row.read_p99_us, row.read_p99_us_min, row.read_p99_us_max]
            }),
        ));
        sections.push(Section::chart(
            &title("p99 of updates"),
            None,
            chart(Axis::log("Latency", Unit::Microseconds), |row| {
                [row.write_p99_us, row.write_p99_us_min, row.write_p99_us_max]
            }),
        ));
        sections.push(Section::chart(
            &title("Write amplification"),
            Some("By the kernel's count, in the mixed phase. It means nothing without the space amplification beside it: see the table."),
            chart(Axis::linear("Device bytes per user byte", Unit::Ratio), |row| {
                [row.wa, row.wa_min, row.wa_max]
            }),
        ));
        sections.push(Section::chart(
            &title("Loading"),
            None,
            chart(Axis::linear("Records/s", Unit::Count), |row| {
                [row.load_ops_s, row.load_ops_s_min, row.load_ops_s_max]
            }),
        ));
        let all = Table {
            header: HEADINGS.map(str::to_owned).to_vec(),
            rows: rows.iter().map(|row| fields(row).map(|field| field.replace('\n', " ")).to_vec()).collect(),
        };
        let note = "Medians, in brackets the ratio to RocksDB; of throughputs also the least and the most.";
        sections.push(Section::table(&title("All figures"), Some(note), all));
    }
    for (title, notes) in
        [("Not measured", &table.failures), ("What makes these numbers doubtful", &table.warnings)]
    {
        if !notes.is_empty() {
            let row = |note: &Note| vec![note.target.to_owned(), note.cell(), note.reason.clone()];
            let header = ["target", "cell", "reason"].map(str::to_owned).to_vec();
            sections.push(Section::table(
                title,
                None,
                Table { header, rows: notes.iter().map(row).collect() },
            ));
        }
    }
    if !table.remarks.is_empty() {
        sections.push(Section::text("What the figures do not show", &table.remarks.join("\n")));
    }
    for configuration in &table.configurations {
        let settings = configuration.settings.iter();
        let rows = settings.map(|(name, value)| vec![name.clone(), value.clone()]).collect();
        let header = vec!["Setting".to_owned(), "Value".to_owned()];
        sections.push(Section::table(&configuration.title(), None, Table { header, rows }));
    }
    Page {
        title: "Terrane beside its peers".into(),
        subtitle: format!(
            "{} loaded per value size, {} of cache, {} s mixed after {} s of warm-up, {} repetitions interleaved",
            bytes(table.scale_bytes),
            bytes(table.cache_bytes),
            table.seconds,
            table.warmup_seconds,
            table.repetitions
        ),
        verdict,
        facts: table.machine.facts(),
        command: table.machine.command.clone(),
        sections,
    }
}

fn cells(rows: &[&Row], pick: fn(&Row) -> [Option<f64>; 3]) -> Vec<Cell> {
    rows.iter()
        .map(|row| {
            let [median, min, max] = pick(row);
            let bar = median.zip(min).zip(max).map(|((value, min), max)| Bar { value, min, max });
            Cell { group: bytes(row.value_bytes), series: row.target.to_owned(), bar }
        })
        .collect()
}

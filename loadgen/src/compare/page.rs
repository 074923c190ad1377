//! The comparison as a page.

use crate::compare::table::{Comparison, HEADINGS, Row, fields};
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
        match table.provisional {
            Some(why) => Verdict::Good(format!("Everything was measured. Provisional: {why}")),
            None => Verdict::Good("Everything was measured.".into()),
        }
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
            rows: rows.iter().map(|row| fields(row).to_vec()).collect(),
        };
        sections.push(Section::table(&title("All figures"), None, all));
    }
    if !table.failures.is_empty() {
        let rows = table.failures.iter().map(|failure| {
            let cell = format!(
                "{} {} {} clients, {}, repetition {}",
                failure.config,
                failure.mode,
                failure.clients,
                bytes(failure.value_bytes),
                failure.repetition
            );
            vec![failure.target.to_owned(), cell, failure.reason.clone()]
        });
        let header = ["target", "cell", "reason"].map(str::to_owned).to_vec();
        sections.push(Section::table("Not measured", None, Table { header, rows: rows.collect() }));
    }
    for (target, settings) in &table.configurations {
        let rows = settings.iter().map(|(name, value)| vec![name.clone(), value.clone()]).collect();
        let header = vec!["Setting".to_owned(), "Value".to_owned()];
        sections.push(Section::table(&format!("Configuration of {target}"), None, Table { header, rows }));
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

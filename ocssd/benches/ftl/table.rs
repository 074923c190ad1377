//! Rows as aligned text, and as Markdown for `docs/benchmarks.md`.

use comfy_table::presets::{ASCII_MARKDOWN, NOTHING};
use comfy_table::{Cell as TableCell, CellAlignment, Table};

use crate::cell::Row;
use crate::plan::Kind;

pub(crate) fn table(kind: Kind, rows: &[Row], markdown: bool) -> String {
    let mut table = Table::new();
    table.load_style(if markdown { ASCII_MARKDOWN } else { NOTHING });
    match kind {
        Kind::Workloads => by_use(&mut table, rows),
        _ => listed(&mut table, kind, rows),
    }
    table.trim_fmt()
}

fn yes(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

/// A line for each row.
fn listed(table: &mut Table, kind: Kind, rows: &[Row]) {
    let first: &[&str] = match kind {
        Kind::Formulas => &["victim", "spare", "pages a block"],
        Kind::Cache => &["workload", "spare", "streams"],
        Kind::Mixing | Kind::Workloads => &["workload", "blocks", "collector writes to", "streams"],
    };
    let last: &[&str] = match kind {
        Kind::Formulas => &["device WA", "formula", "off", "public figure"],
        Kind::Cache => &["device WA", "public figure"],
        Kind::Mixing | Kind::Workloads => &["device WA"],
    };
    table.set_header(first.iter().chain(last));
    for row in rows {
        let mut cells = match kind {
            Kind::Formulas => {
                vec![row.victim.clone(), percent(row.over_provisioning), row.block_pages.to_string()]
            }
            Kind::Cache => vec![row.workload.clone(), percent(row.over_provisioning), yes(row.streams)],
            Kind::Mixing | Kind::Workloads => {
                vec![row.workload.clone(), row.blocks.to_string(), row.collector.clone(), yes(row.streams)]
            }
        };
        let first_number = cells.len();
        cells.push(format!("{:.2}", row.device_wa));
        if kind == Kind::Formulas {
            let (name, value) = (row.formula.unwrap_or_default(), row.formula_wa.unwrap_or(f64::NAN));
            cells.push(format!("{value:.2} ({name})"));
            cells.push(format!("{:+.1} %", (row.device_wa / value - 1.0) * 100.0));
        }
        let numbers = first_number..cells.len();
        if last.contains(&"public figure") {
            cells.push(row.public.unwrap_or_default().to_owned());
        }
        table.add_row(
            cells.into_iter().enumerate().map(|(index, text)| aligned(text, numbers.contains(&index))),
        );
    }
}

/// A line for each workload, a column for each share of use: with TRIM / without.
fn by_use(table: &mut Table, rows: &[Row]) {
    let mut uses: Vec<u32> = rows.iter().map(|row| row.used_percent).collect();
    uses.sort_unstable();
    uses.dedup();
    let names = ["workload", "victim", "streams"].map(str::to_owned).into_iter();
    let measured = uses.iter().map(|used| format!("{used} % used: TRIM / none"));
    let formulas = uses.iter().map(|used| format!("formula, {used} %"));
    let public = ["formula of", "public figure"].map(str::to_owned);
    table.set_header(names.chain(measured).chain(formulas).chain(public));
    for lines in rows.chunk_by(|left, right| key(left) == key(right)) {
        let both = |used: u32, value: &dyn Fn(&Row) -> Option<f64>| {
            let of = |trim: bool| {
                let row = lines.iter().find(|row| row.used_percent == used && row.trim == trim);
                row.and_then(value)
            };
            pair(of(true), of(false), 2)
        };
        let row = &lines[0];
        let mut cells = vec![row.workload.clone(), row.victim.clone(), yes(row.streams)];
        cells.extend(uses.iter().map(|used| both(*used, &|row| Some(row.device_wa))));
        cells.extend(uses.iter().map(|used| both(*used, &|row| row.formula_wa)));
        cells.push(lines.iter().find_map(|row| row.formula).unwrap_or_default().to_owned());
        cells.push(lines.iter().find_map(|row| row.public).unwrap_or_default().to_owned());
        let numbers = 3..3 + 2 * uses.len();
        table.add_row(
            cells.into_iter().enumerate().map(|(index, text)| aligned(text, numbers.contains(&index))),
        );
    }
}

fn key(row: &Row) -> (&str, &str, bool) {
    (&row.workload, &row.victim, row.streams)
}

/// What came out with TRIM and without.
pub(crate) fn pair(with: Option<f64>, without: Option<f64>, decimals: usize) -> String {
    if with.is_none() && without.is_none() {
        return String::new();
    }
    let one =
        |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.decimals$}"));
    format!("{} / {}", one(with), one(without))
}

pub(crate) fn aligned(text: String, number: bool) -> TableCell {
    let side = if number { CellAlignment::Right } else { CellAlignment::Left };
    TableCell::new(text).set_alignment(side)
}

//! What came out: medians, with the least and the most.

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};

use crate::job::{Cpu, Reads};

/// What one echo gave.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Echo {
    pub(crate) messages_s: f64,
    /// The echoing thread's time for each message.
    pub(crate) cpu: Cpu,
}

/// What one contestant gave, repetition by repetition; why not, where it did not.
#[derive(Debug)]
pub(crate) struct Results {
    name: &'static str,
    alone: Vec<Result<Reads, String>>,
    many: Vec<Result<Reads, String>>,
    echo: Vec<Result<Echo, String>>,
}

impl Results {
    pub(crate) fn new(name: &'static str) -> Self {
        Results { name, alone: Vec::new(), many: Vec::new(), echo: Vec::new() }
    }

    pub(crate) fn read(&mut self, depth: u32, result: anyhow::Result<Reads>) {
        let told = self.told(result);
        let results = if depth == 1 { &mut self.alone } else { &mut self.many };
        results.push(told);
    }

    pub(crate) fn echo(&mut self, result: anyhow::Result<Echo>) {
        let told = self.told(result);
        self.echo.push(told);
    }

    fn told<T>(&self, result: anyhow::Result<T>) -> Result<T, String> {
        result.map_err(|error| format!("{error:#}")).inspect_err(|error| eprintln!("{}: {error}", self.name))
    }
}

/// All contestants; the echo as a ratio to the first's.
pub(crate) fn table(results: &[Results]) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    table.set_header([
        "",
        "4K read QD1\nK IOPS",
        "QD32\nK IOPS",
        "QD32\nuser µs per I/O",
        "QD32\nCPU µs per I/O",
        "echo\nrelative",
        "echo\nK messages/s",
        "echo\nCPU µs per message",
    ]);
    for each in results {
        let relative = each.echo.iter().zip(&results[0].echo).map(|(own, first)| match (own, first) {
            (Ok(own), Ok(first)) => Ok(own.messages_s / first.messages_s),
            (Err(error), _) => Err(error.clone()),
            (_, Err(_)) => Err(format!("nothing from {}", results[0].name)),
        });
        table.add_row([
            each.name.to_owned(),
            median(each.alone.iter().map(of(|reads: &Reads| reads.per_second / 1e3)), 1),
            median(each.many.iter().map(of(|reads: &Reads| reads.per_second / 1e3)), 1),
            median(each.many.iter().map(of(|reads: &Reads| reads.cpu.user_us)), 2),
            median(each.many.iter().map(of(|reads: &Reads| reads.cpu.all_us)), 1),
            median(relative, 2),
            median(each.echo.iter().map(of(|echo: &Echo| echo.messages_s / 1e3)), 0),
            median(each.echo.iter().map(of(|echo: &Echo| echo.cpu.all_us)), 2),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

fn of<T>(number: impl Fn(&T) -> f64) -> impl Fn(&Result<T, String>) -> Result<f64, String> {
    move |result| result.as_ref().map(&number).map_err(Clone::clone)
}

/// `median (least–most)`, or why there is none; and how often it failed if it sometimes did.
fn median(numbers: impl Iterator<Item = Result<f64, String>>, digits: usize) -> String {
    let mut good = Vec::new();
    let mut failed = Vec::new();
    for number in numbers {
        match number {
            Ok(number) => good.push(number),
            Err(error) => failed.push(error),
        }
    }
    good.sort_by(f64::total_cmp);
    let (Some(least), Some(most)) = (good.first(), good.last()) else {
        return failed
            .into_iter()
            .next()
            .map_or_else(|| "not measured".to_owned(), |error| format!("failed: {error}"));
    };
    let middle = (good[(good.len() - 1) / 2] + good[good.len() / 2]) / 2.0;
    let failures = if failed.is_empty() { String::new() } else { format!(", {} failed", failed.len()) };
    format!("{middle:.digits$} ({least:.digits$}–{most:.digits$}){failures}")
}

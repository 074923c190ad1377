//! The report as tables and a verdict, for people at a terminal.

use std::time::Duration;

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{Cell, CellAlignment, Table};

use crate::measure::tally::Kind;
use crate::report::figures::{bytes, count, latency};
use crate::report::{LatencyReport, MeanAndMax, Numbers, PhaseReport, Report};

impl Report {
    /// The report as tables.
    pub(crate) fn tables(&self) -> String {
        let mut text = String::new();
        let mut section = |title: String, table: Table| {
            text.push_str(&format!("\n{title}\n{table}\n"));
        };
        for (name, phase) in self.phases() {
            let numbers = &phase.numbers;
            let what = match name {
                "load" => format!("Load: {} records", count(self.settings.records)),
                _ => format!("Run: {}", self.settings.workload),
            };
            let title = format!(
                "{what}, {} operations in {:.1} s, {} ops/s",
                count(numbers.operations),
                numbers.seconds,
                count(numbers.ops_per_second.round() as u64)
            );
            section(title, latency_table(numbers));
            if phase.steps.len() > 1 {
                section("Steps".to_owned(), step_table(phase));
            }
        }
        section("Summary".to_owned(), self.summary());
        if let Some(verify) = &self.verify {
            for example in &verify.examples {
                text.push_str(&format!("  broken promise: {example}\n"));
            }
        }
        for (_, phase) in self.phases() {
            for example in &phase.fault_examples {
                text.push_str(&format!("  broken promise: {example}\n"));
            }
            for (kind, failure) in &phase.numbers.failures {
                text.push_str(&format!("  first '{kind}': {}\n", failure.example));
            }
        }
        for warning in &self.warnings {
            text.push_str(&format!("  warning: {warning}\n"));
        }
        text
    }

    /// What it all means, in a line or two.
    pub(crate) fn verdict(&self) -> String {
        let mut text = String::new();
        if let Some(why) = &self.ended_early {
            text.push_str(&format!("Ended early: {why}. These results are partial.\n"));
        }
        text.push_str(match (&self.verify, self.kept_every_promise()) {
            (Some(verify), false) if verify.lost == 0 && self.broken_on_the_way() == 0 => {
                "UNPROVEN: not everything could be read back."
            }
            (_, false) => "FAILED: the target broke a promise (see above).",
            (Some(_), true) => "Every acknowledged write is there.",
            (None, true) if self.command == "verify" => "Nothing was checked.",
            (None, true) => match self.settings.check {
                "ledger" => "No read contradicted an acknowledged write; --verify reads all of them back.",
                "presence" => {
                    "Every value read was whole and its key's own; without versions no more can be told."
                }
                _ => "Every value read was whole and its key's own.",
            },
        });
        if self.command == "demo" && self.ok {
            text.push_str("\nNext: keep a cluster with `terrane local --nodes 3 --dir DIR`, and use it with `terrane put`, `terrane get`, and `terrane-loadgen run`.");
        }
        text
    }

    fn broken_on_the_way(&self) -> u64 {
        self.phases().map(|(_, phase)| phase.numbers.broken()).sum()
    }

    fn summary(&self) -> Table {
        let mut table = table();
        let mut row = |name: &str, value: String| {
            table.add_row([Cell::new(name), Cell::new(value).set_alignment(CellAlignment::Right)]);
        };
        let mut target = self.settings.target.to_owned();
        for part in [self.settings.mode, self.settings.config].into_iter().flatten() {
            target.push_str(&format!(", {part}"));
        }
        row("target", target);
        if let Some(run) = self.run.as_ref().filter(|run| run.numbers.operations > 0) {
            row("throughput", format!("{} ops/s", count(run.numbers.ops_per_second.round() as u64)));
            if run.numbers.unsent > 0 {
                row("operations due and never sent", count(run.numbers.unsent));
            }
            if let Some(lag) = &run.numbers.lag {
                row("operations sent late, p99", us(lag.p99_us));
            }
        }
        for (name, phase) in self.phases() {
            row(&format!("failed operations, {name}"), failures(&phase.numbers));
        }
        for (name, phase) in self.phases() {
            let servers_cpu = phase.servers.as_ref().and_then(|servers| servers.cpu_seconds_per_million_ops);
            let operations: u64 = phase.per_second.iter().sum();
            let own_cpu = phase.client_cpu_seconds * 1e6 / operations.max(1) as f64;
            let embedded = !matches!(self.settings.target, "cluster" | "etcd" | "redis");
            match servers_cpu {
                Some(cpu) if embedded => {
                    row(&format!("CPU per million ops, {name} (load generator and store)"), seconds(cpu));
                }
                _ => {
                    if let Some(cpu) = servers_cpu {
                        row(&format!("server CPU per million ops, {name} (all nodes)"), seconds(cpu));
                    }
                    if operations > 0 {
                        row(&format!("load generator's CPU per million ops, {name}"), seconds(own_cpu));
                    }
                }
            }
        }
        for (name, phase) in self.phases() {
            let Some(servers) = &phase.servers else { continue };
            if let Some(ratio) = servers.device_bytes_per_user_byte {
                row(&format!("device bytes per user byte per node, {name}"), mean_and_max(ratio));
            }
            if let Some(ratio) = servers.proc_bytes_per_user_byte {
                row(&format!("  by the kernel's count, {name}"), mean_and_max(ratio));
            }
        }
        if let Some(space) = self.space_amplification {
            row("bytes occupied per live byte", format!("{space:.2}"));
        }
        let last = self.run.as_ref().or(self.load.as_ref());
        if let Some(resident) = last.and_then(|phase| phase.servers.as_ref()?.resident_bytes()) {
            row("resident memory, most (all nodes)", bytes(resident));
        }
        if let Some(device) = &self.device {
            row(
                &format!("share of the device ({})", device.cell),
                format!("{:.0} % of {} ops/s", device.share * 100.0, count(device.ops_per_second as u64)),
            );
        }
        for outage in &self.outages {
            let silence = match (outage.mean_ms, outage.max_ms) {
                (Some(mean), Some(max)) => format!("{mean:.0} ms mean, {max:.0} ms max"),
                _ if outage.partitions == 0 => "it led nothing".to_owned(),
                _ => "a partition never answered again".to_owned(),
            };
            let (node, at, partitions) = (outage.node, outage.at_seconds, outage.partitions);
            row(
                &format!("time without a leader (node {node} killed at {at:.1} s, led {partitions})"),
                silence,
            );
        }
        if let Some(verify) = &self.verify {
            let read = verify.records - verify.unread;
            row("records read back", format!("{} of {}", count(read), count(verify.records)));
            if verify.not_written > 0 {
                row("records never acknowledged, not there", count(verify.not_written));
            }
            row("acknowledged writes lost", count(verify.lost));
        }
        let absent: u64 = self.phases().map(|(_, phase)| phase.numbers.not_found).sum();
        if absent > 0 {
            row("reads of records that are not there (never loaded, or expired?)", count(absent));
        }
        if self.command != "verify" {
            row("stale, lost or damaged reads on the way", count(self.broken_on_the_way()));
        }
        table
    }
}

/// An empty table in the reports' style.
pub(crate) fn table() -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    table
}

/// A cell with a number or a heading of numbers.
pub(crate) fn right(text: impl Into<String>) -> Cell {
    Cell::new(text.into()).set_alignment(CellAlignment::Right)
}

fn us(us: f64) -> String {
    latency(Duration::from_nanos((us * 1e3) as u64))
}

fn seconds(seconds: f64) -> String {
    format!("{seconds:.1} s")
}

fn mean_and_max(ratio: MeanAndMax) -> String {
    format!("{:.3} mean, {:.3} max", ratio.mean, ratio.max)
}

fn failures(numbers: &Numbers) -> String {
    let kinds: Vec<String> =
        numbers.failures.iter().map(|(kind, failure)| format!("{} {kind}", count(failure.count))).collect();
    if kinds.is_empty() { "0".to_owned() } else { kinds.join(", ") }
}

fn latency_table(numbers: &Numbers) -> Table {
    let mut table = table();
    table.set_header(["", "operations", "mean", "p50", "p99", "p99.9", "max"].map(right));
    for kind in Kind::ALL {
        let Some(latencies) = numbers.of(kind) else { continue };
        let mut row = vec![Cell::new(kind.words()), right(count(latencies.count))];
        let LatencyReport { mean_us, p50_us, p99_us, p999_us, max_us, .. } = *latencies;
        row.extend([mean_us, p50_us, p99_us, p999_us, max_us].map(|value| right(us(value))));
        table.add_row(row);
    }
    table
}

fn step_table(phase: &PhaseReport) -> Table {
    let mut table = table();
    table.set_header(
        ["step", "offered/s", "done/s", "read p99", "write p99", "failed", "never sent"].map(right),
    );
    for step in &phase.steps {
        let numbers = &step.numbers;
        // The worst of the kinds that read, and of those that write: percentiles are not averaged.
        let worst = |writes: bool| {
            let kinds = Kind::ALL.into_iter().filter(|kind| kind.writes() == writes);
            kinds.filter_map(|kind| Some(numbers.of(kind)?.p99_us)).reduce(f64::max)
        };
        let failed: u64 = numbers.failures.values().map(|failure| failure.count).sum();
        table.add_row([
            Cell::new(&step.name),
            right(step.offered_per_second.map_or("max".to_owned(), |rate| count(rate.round() as u64))),
            right(count(numbers.ops_per_second.round() as u64)),
            right(worst(false).map_or(String::new(), us)),
            right(worst(true).map_or(String::new(), us)),
            right(count(failed)),
            right(count(numbers.unsent)),
        ]);
    }
    table
}

//! What came out: one structure, printed as tables and written as JSON.
//!
//! The JSON's keys are stable: keys may be added, none changes its meaning or unit while `format` stays the same.
//! Units are in the names (`_us`, `_seconds`, `_bytes`); what could not be measured is `null`.
//!
//! ```text
//! format, command ("demo" | "run"), version, ok
//! ended_early             why the run was cut short, or null
//! settings                workload, theta, records, value_bytes, connections, threads, seed,
//!                         seconds or operations (what the timed phase was bounded by), nodes, shards (demo only)
//! load, run               a phase, or null if it was not run:
//!   seconds, operations, ops_per_second
//!   reads, updates        count, mean_us, p50_us, p99_us, p999_us, max_us
//!   failures              operations that failed after the client's own retries: kind -> count, first message
//!   broken_promises       kind -> count (lost, stale, damaged values seen by reads of that phase)
//!   not_found             reads of records that were never acknowledged and are not there
//!   per_second            successful operations in each second
//!   client_cpu_seconds
//!   servers               cpu_seconds, cpu_seconds_per_million_ops,
//!                         device_bytes_per_user_byte, proc_bytes_per_user_byte (each mean and max over the nodes),
//!                         nodes: node -> cpu_us, device_written_bytes, proc_write_bytes, user_bytes
//! outages                 per kill: node, at_seconds, partitions, max_ms, mean_ms, down_ms
//! verify                  records, intact, lost, unread, not_written, seconds, broken_promises, examples
//! ```

pub(crate) mod figures;
pub(crate) mod progress;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{Cell, CellAlignment, Table};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::cli::LoadArgs;
use crate::load::runner::Outcome;
use crate::measure::meter::{self, Counters};
use crate::measure::outage::Outage;
use crate::measure::tally::Tally;
use crate::report::figures::{count, latency};
use crate::target::FailureKind;
use crate::workload::Workload;

/// Version of the JSON's structure.
pub(crate) const FORMAT: u32 = 1;

/// Everything a run came to.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Version of this structure.
    pub(crate) format: u32,
    /// Which command made it.
    pub(crate) command: &'static str,
    /// Version of the load generator.
    pub(crate) version: &'static str,
    /// Nothing acknowledged was lost, and everything asked for was done.
    pub(crate) ok: bool,
    /// Why it was cut short.
    pub(crate) ended_early: Option<String>,
    /// What was asked for.
    pub(crate) settings: Settings,
    /// The load phase.
    pub(crate) load: Option<PhaseReport>,
    /// The timed phase.
    pub(crate) run: Option<PhaseReport>,
    /// The kills.
    pub(crate) outages: Vec<OutageReport>,
    /// The read-back.
    pub(crate) verify: Option<VerifyReport>,
}

/// What was asked for.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Settings {
    pub(crate) workload: Workload,
    pub(crate) theta: f64,
    pub(crate) records: u64,
    pub(crate) value_bytes: u64,
    pub(crate) connections: u32,
    pub(crate) threads: u32,
    pub(crate) seconds: Option<u64>,
    pub(crate) operations: Option<u64>,
    pub(crate) seed: u64,
    pub(crate) nodes: Option<u32>,
    pub(crate) shards: Option<u32>,
}

/// One phase in numbers.
#[derive(Debug, Serialize)]
pub(crate) struct PhaseReport {
    pub(crate) seconds: f64,
    pub(crate) operations: u64,
    pub(crate) ops_per_second: f64,
    pub(crate) reads: LatencyReport,
    pub(crate) updates: LatencyReport,
    pub(crate) failures: BTreeMap<FailureKind, FailureReport>,
    pub(crate) broken_promises: BTreeMap<&'static str, u64>,
    pub(crate) not_found: u64,
    pub(crate) per_second: Vec<u64>,
    pub(crate) client_cpu_seconds: f64,
    pub(crate) servers: Option<ServersReport>,
}

/// Latencies of one kind of operation, successful ones only.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct LatencyReport {
    pub(crate) count: u64,
    pub(crate) mean_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) max_us: f64,
}

/// Failures of one kind.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct FailureReport {
    pub(crate) count: u64,
    pub(crate) example: String,
}

/// What a phase cost the servers.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ServersReport {
    pub(crate) cpu_seconds: Option<f64>,
    pub(crate) cpu_seconds_per_million_ops: Option<f64>,
    pub(crate) device_bytes_per_user_byte: Option<MeanAndMax>,
    pub(crate) proc_bytes_per_user_byte: Option<MeanAndMax>,
    pub(crate) nodes: BTreeMap<u64, Counters>,
}

/// A ratio over the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct MeanAndMax {
    pub(crate) mean: f64,
    pub(crate) max: f64,
}

/// One kill.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct OutageReport {
    /// The node that was killed.
    pub(crate) node: u64,
    /// When, from the start of the timed phase.
    pub(crate) at_seconds: f64,
    /// Partitions that it led.
    pub(crate) partitions: u32,
    /// The longest time one of them gave no answer, and the mean; `None`: one never answered again.
    pub(crate) max_ms: Option<f64>,
    pub(crate) mean_ms: Option<f64>,
    /// How long the process was dead.
    pub(crate) down_ms: f64,
}

/// The read-back.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct VerifyReport {
    /// Records that were looked for.
    pub(crate) records: u64,
    /// Records that keep every promise made.
    pub(crate) intact: u64,
    /// Records whose acknowledged write is gone, older, different or damaged.
    pub(crate) lost: u64,
    /// Records that could not be read.
    pub(crate) unread: u64,
    /// Records never acknowledged and not there (the load was cut short).
    pub(crate) not_written: u64,
    pub(crate) seconds: f64,
    pub(crate) broken_promises: BTreeMap<&'static str, u64>,
    pub(crate) examples: Vec<String>,
}

impl Settings {
    /// What these arguments ask for; the number of operations if that is the bound, nodes and shards if they are ours.
    pub(crate) fn new(args: &LoadArgs, operations: Option<u64>, cluster: Option<(u32, u32)>) -> Self {
        Settings {
            workload: args.workload,
            theta: args.theta,
            records: args.records,
            value_bytes: args.value_size as u64,
            connections: args.connections,
            threads: args.threads,
            seconds: operations.is_none().then_some(args.seconds),
            operations,
            seed: args.seed,
            nodes: cluster.map(|(nodes, _)| nodes),
            shards: cluster.map(|(_, shards)| shards),
        }
    }
}

fn us(ns: u64) -> f64 {
    ns as f64 / 1e3
}

impl From<&Histogram<u64>> for LatencyReport {
    fn from(ns: &Histogram<u64>) -> Self {
        LatencyReport {
            count: ns.len(),
            mean_us: ns.mean() / 1e3,
            p50_us: us(ns.value_at_quantile(0.5)),
            p99_us: us(ns.value_at_quantile(0.99)),
            p999_us: us(ns.value_at_quantile(0.999)),
            max_us: us(ns.max()),
        }
    }
}

fn broken_promises(tally: &Tally) -> BTreeMap<&'static str, u64> {
    tally.faults.iter().map(|(fault, count)| (fault.words(), *count)).collect()
}

impl PhaseReport {
    /// A phase that was to last `window` (`None`: until its work was done), with what it cost.
    pub(crate) fn new(
        outcome: &Outcome,
        window: Option<Duration>,
        client_cpu: Duration,
        servers: Option<ServersReport>,
    ) -> Self {
        let tally = &outcome.tally;
        // Operations that ended after the window have latencies, but no part in its throughput.
        let (seconds, counted) = match window {
            Some(window) if outcome.early.is_none() => {
                (window.as_secs_f64(), tally.operations_within(window))
            }
            _ => (tally.last.as_secs_f64(), tally.operations()),
        };
        PhaseReport {
            seconds,
            operations: tally.operations(),
            ops_per_second: if seconds > 0.0 { counted as f64 / seconds } else { 0.0 },
            reads: (&tally.reads).into(),
            updates: (&tally.updates).into(),
            failures: tally
                .failures
                .iter()
                .map(|(kind, failures)| {
                    (*kind, FailureReport { count: failures.count, example: failures.example.clone() })
                })
                .collect(),
            broken_promises: broken_promises(tally),
            not_found: tally.not_found,
            per_second: tally.per_second.clone(),
            client_cpu_seconds: client_cpu.as_secs_f64(),
            servers,
        }
    }

    /// Broken promises of all kinds.
    pub(crate) fn broken(&self) -> u64 {
        self.broken_promises.values().sum()
    }
}

impl ServersReport {
    /// The nodes' use of a phase of `operations` operations; `None` if no node could be measured.
    pub(crate) fn new(nodes: BTreeMap<u64, Counters>, operations: u64) -> Option<Self> {
        if nodes.is_empty() {
            return None;
        }
        let cpu_seconds = meter::cpu(&nodes).map(|cpu| cpu.as_secs_f64());
        let over_nodes = |ratio: fn(&Counters) -> Option<f64>| {
            meter::mean_and_max(nodes.values().map(ratio)).map(|(mean, max)| MeanAndMax { mean, max })
        };
        Some(ServersReport {
            cpu_seconds,
            cpu_seconds_per_million_ops: cpu_seconds
                .filter(|_| operations > 0)
                .map(|seconds| seconds * 1e6 / operations as f64),
            device_bytes_per_user_byte: over_nodes(Counters::device_per_user_byte),
            proc_bytes_per_user_byte: over_nodes(Counters::proc_per_user_byte),
            nodes,
        })
    }
}

impl OutageReport {
    /// What killing `node` cost, `at` into the timed phase, its process being dead for `down`.
    pub(crate) fn new(node: u64, at: Duration, down: Duration, outage: &Outage) -> Self {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        OutageReport {
            node,
            at_seconds: at.as_secs_f64(),
            partitions: outage.partitions.len() as u32,
            max_ms: outage.max().map(ms),
            mean_ms: outage.mean().map(ms),
            down_ms: ms(down),
        }
    }
}

impl VerifyReport {
    /// A read-back of `records` records, `unread` of which could not be read.
    pub(crate) fn new(outcome: &Outcome, records: u64, unread: u64) -> Self {
        let tally = &outcome.tally;
        let lost = tally.broken();
        VerifyReport {
            records,
            intact: records.saturating_sub(lost + unread + tally.not_found),
            lost,
            unread,
            not_written: tally.not_found,
            seconds: tally.last.as_secs_f64(),
            broken_promises: broken_promises(tally),
            examples: tally.fault_examples.clone(),
        }
    }

    /// Nothing acknowledged was lost, and everything was looked at.
    pub(crate) fn passed(&self) -> bool {
        self.lost == 0 && self.unread == 0
    }
}

impl Report {
    /// Empties the file that the report will be written to. That it cannot be written is better said before a long run
    /// than after; and a run that fails leaves no older run's numbers behind.
    pub(crate) fn begin_json(path: &Path) -> anyhow::Result<()> {
        File::create(path)
            .map(drop)
            .with_context(|| format!("--json {}: it cannot be written", path.display()))
    }

    /// Writes the report as JSON.
    pub(crate) fn write_json(&self, path: &Path) -> anyhow::Result<()> {
        let mut json = serde_json::to_string_pretty(self).context("cannot turn the report into JSON")?;
        json.push('\n');
        std::fs::write(path, json).with_context(|| format!("cannot write the report to {}", path.display()))
    }

    /// Whether nothing acknowledged was missed on the way, and all was there at the end (if it was looked for).
    pub(crate) fn kept_every_promise(&self) -> bool {
        let phases = [&self.load, &self.run].into_iter().flatten().all(|phase| phase.broken() == 0);
        phases && self.verify.as_ref().is_none_or(VerifyReport::passed)
    }

    /// The report as tables, for people.
    pub(crate) fn tables(&self) -> String {
        let mut text = String::new();
        let mut section = |title: String, table: Table| {
            text.push_str(&format!("\n{title}\n{table}\n"));
        };
        for (name, phase) in [("load", &self.load), ("run", &self.run)] {
            let Some(phase) = phase else { continue };
            let title = match name {
                "load" => format!("Load: {} records", count(self.settings.records)),
                _ => format!("Run: {}", self.settings.workload),
            };
            let title = format!(
                "{title}, {} in {:.1} s, {} ops/s",
                operations(phase.operations),
                phase.seconds,
                count(phase.ops_per_second.round() as u64)
            );
            section(title, latency_table(phase));
        }
        section("Summary".to_owned(), self.summary());
        if let Some(verify) = &self.verify {
            for example in &verify.examples {
                text.push_str(&format!("  broken promise: {example}\n"));
            }
        }
        for phase in [&self.load, &self.run].into_iter().flatten() {
            for (kind, failure) in &phase.failures {
                text.push_str(&format!("  first '{kind}': {}\n", failure.example));
            }
        }
        text
    }

    /// What it all means, in a line or two.
    pub(crate) fn verdict(&self) -> String {
        let mut text = String::new();
        if let Some(why) = &self.ended_early {
            text.push_str(&format!("Ended early: {why}.\n"));
        }
        text.push_str(match (&self.verify, self.kept_every_promise()) {
            (_, false) => {
                "FAILED: the cluster broke a promise, or not everything could be read back (see above)."
            }
            (Some(_), true) => "Every acknowledged write is there.",
            (None, true) => "No read contradicted an acknowledged write; --verify reads all of them back.",
        });
        if self.command == "demo" && self.ok {
            text.push_str("\nNext: keep a cluster with `terrane local --nodes 3 --dir DIR`, and use it with `terrane put`, `terrane get`, and `terrane-loadgen run`.");
        }
        text
    }

    fn summary(&self) -> Table {
        let mut table = table();
        let mut row = |name: &str, value: String| {
            table.add_row([Cell::new(name), Cell::new(value).set_alignment(CellAlignment::Right)]);
        };
        if let Some(run) = self.run.as_ref().filter(|run| run.operations > 0) {
            row("throughput", format!("{} ops/s", count(run.ops_per_second.round() as u64)));
        }
        let phases = [("load", &self.load), ("run", &self.run)];
        for (name, phase) in phases.into_iter().filter_map(|(name, phase)| Some((name, phase.as_ref()?))) {
            row(&format!("failed operations, {name}"), failures(phase));
        }
        for (name, phase) in phases.into_iter().filter_map(|(name, phase)| Some((name, phase.as_ref()?))) {
            let per_million = |seconds: f64| seconds * 1e6 / phase.operations.max(1) as f64;
            if let Some(cpu) = phase.servers.as_ref().and_then(|servers| servers.cpu_seconds_per_million_ops)
            {
                row(&format!("server CPU per million ops, {name} (all nodes)"), format!("{cpu:.1} s"));
            }
            if phase.operations > 0 {
                let cpu = per_million(phase.client_cpu_seconds);
                row(&format!("load generator's CPU per million ops, {name}"), format!("{cpu:.1} s"));
            }
        }
        for (name, phase) in phases.into_iter().filter_map(|(name, phase)| Some((name, phase.as_ref()?))) {
            let Some(servers) = &phase.servers else { continue };
            if let Some(ratio) = servers.device_bytes_per_user_byte {
                row(&format!("device bytes per user byte per node, {name}"), mean_and_max(ratio));
            }
            if let Some(ratio) = servers.proc_bytes_per_user_byte {
                row("  the same by the kernel's count", mean_and_max(ratio));
            }
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
        let absent: u64 =
            phases.into_iter().filter_map(|(_, phase)| phase.as_ref()).map(|phase| phase.not_found).sum();
        if absent > 0 {
            row("reads of records that are not there (never loaded?)", count(absent));
        }
        let stale: u64 =
            phases.into_iter().filter_map(|(_, phase)| phase.as_ref()).map(PhaseReport::broken).sum();
        row("stale, lost or damaged reads on the way", count(stale));
        table
    }
}

fn table() -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    table
}

fn operations(number: u64) -> String {
    format!("{} operations", count(number))
}

fn mean_and_max(ratio: MeanAndMax) -> String {
    format!("{:.3} mean, {:.3} max", ratio.mean, ratio.max)
}

fn failures(phase: &PhaseReport) -> String {
    let kinds: Vec<String> =
        phase.failures.iter().map(|(kind, failure)| format!("{} {kind}", count(failure.count))).collect();
    if kinds.is_empty() { "0".to_owned() } else { kinds.join(", ") }
}

fn latency_table(phase: &PhaseReport) -> Table {
    let mut table = table();
    let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
    table.set_header(
        ["", "operations", "mean", "p50", "p99", "p99.9", "max"].map(|name| right(name.to_owned())),
    );
    for (name, latencies) in [("reads", &phase.reads), ("updates", &phase.updates)] {
        if latencies.count == 0 {
            continue;
        }
        let mut row = vec![Cell::new(name), right(count(latencies.count))];
        for us in [latencies.mean_us, latencies.p50_us, latencies.p99_us, latencies.p999_us, latencies.max_us]
        {
            row.push(right(latency(Duration::from_nanos((us * 1e3) as u64))));
        }
        table.add_row(row);
    }
    table
}

#[cfg(test)]
mod tests;

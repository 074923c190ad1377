//! What came out: one structure, printed as tables and written as JSON, CSV, HdrHistogram log and a page with charts.
//!
//! The JSON's keys are stable: keys may be added, none changes its meaning or unit while `format` stays the same.
//! Units are in the names (`_us`, `_seconds`, `_bytes`); what could not be measured or did not occur is `null`.
//!
//! ```text
//! format, command ("demo" | "run" | "verify"), version, ok
//! partial                 the run was cut short: what is here is what was measured until then
//! ended_early             why, or null
//! warnings                what makes the numbers doubtful
//! machine                 cpu, cores, memory, kernel, device, date, command line
//! settings                target, mode, config (embedded targets), workload (as data), records, clients, connections,
//!                         threads, pinned_to, check (ledger: no older than acknowledged; presence: as far as a target
//!                         without versions tells; values: each by itself), seed, profile (the steps' paces), warmup_seconds, seconds or operations (what bounds the
//!                         timed phase), target_settings, nodes, shards (demo only)
//! load, run               a phase, or null if it was not run:
//!   seconds, operations, ops_per_second
//!   records, written_bytes  records read or written; bytes of keys and values whose writing was acknowledged
//!   reads, updates, inserts, scans, read_modify_writes, multi_gets, batches
//!                         count, mean_us, p50_us, p99_us, p999_us, max_us
//!   lag                   the same, of how late operations of open steps were sent (part of their latency)
//!   unsent                operations that were due and never sent
//!   failures              operations that failed after the client's own retries: kind -> count, first message
//!   broken_promises       kind -> count (lost, stale, damaged values seen by reads of that phase)
//!   not_found             reads of records that were never acknowledged and are not there
//!   per_second            successful operations in each second, warm-up included
//!   steps                 name, pace, measured, starts_seconds, and the same numbers as the phase; offered_per_second
//!   timeline              second by second: see `measure/timeline.rs`
//!   settle_seconds        how long the store then took to finish what was left over (embedded peers: flushes and
//!                         compactions); what that used is in `servers`, not in the throughput
//!   client_cpu_seconds    of this process: an embedded target's is part of it
//!   servers               cpu_seconds, cpu_seconds_per_million_ops,
//!                         device_bytes_per_user_byte, proc_bytes_per_user_byte (each mean and max over the nodes),
//!                         nodes: node -> cpu_us, device_written_bytes, proc_write_bytes, user_bytes,
//!                         resident_bytes, resident_max_bytes, occupied_bytes
//! space_amplification     bytes that the store occupies after the last phase / bytes of live keys and values; mean over
//!                         the nodes
//! device                  the probe's cell that is nearest to the run, its ops_per_second, and our share of it
//! outages                 per kill: node, at_seconds, partitions, max_ms, mean_ms, down_ms
//! verify                  records, intact, lost, unread, not_written, seconds, broken_promises, examples
//! ```

pub(crate) mod axis;
pub(crate) mod chart;
pub(crate) mod csv;
pub(crate) mod curves;
pub(crate) mod figures;
pub(crate) mod hlog;
pub(crate) mod machine;
pub(crate) mod page;
pub(crate) mod progress;
mod story;
pub(crate) mod tables;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::load::plan::{Bound, Pace, Plan, Step};
use crate::load::session::{Measured, Subject};
use crate::measure::meter::{self, Counters, Used};
use crate::measure::outage::Outage;
use crate::measure::tally::{ByKind, Counts, Fault, Kind};
use crate::measure::timeline::Second;
use crate::output;
use crate::report::machine::Machine;
use crate::target::FailureKind;
use crate::workload::spec::Spec;

/// Version of the JSON's structure.
pub(crate) const FORMAT: u32 = 2;

/// Everything a run came to.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) format: u32,
    pub(crate) command: &'static str,
    pub(crate) version: &'static str,
    /// Nothing acknowledged was lost, and everything asked for was done.
    pub(crate) ok: bool,
    pub(crate) partial: bool,
    pub(crate) ended_early: Option<String>,
    pub(crate) warnings: Vec<String>,
    pub(crate) machine: Machine,
    pub(crate) settings: Settings,
    pub(crate) load: Option<PhaseReport>,
    pub(crate) run: Option<PhaseReport>,
    pub(crate) space_amplification: Option<f64>,
    pub(crate) device: Option<DeviceShare>,
    pub(crate) outages: Vec<OutageReport>,
    pub(crate) verify: Option<VerifyReport>,
}

/// What was asked for.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Settings {
    pub(crate) target: &'static str,
    pub(crate) mode: Option<&'static str>,
    pub(crate) config: Option<&'static str>,
    pub(crate) workload: Spec,
    pub(crate) records: u64,
    pub(crate) clients: u32,
    pub(crate) connections: u32,
    pub(crate) threads: u32,
    pub(crate) pinned_to: Vec<usize>,
    pub(crate) check: &'static str,
    pub(crate) seed: u64,
    pub(crate) profile: Vec<String>,
    pub(crate) warmup_seconds: f64,
    pub(crate) seconds: Option<f64>,
    pub(crate) operations: Option<u64>,
    pub(crate) target_settings: BTreeMap<String, String>,
    pub(crate) nodes: Option<u32>,
    pub(crate) shards: Option<u32>,
}

/// One phase in numbers.
#[derive(Debug, Serialize)]
pub(crate) struct PhaseReport {
    #[serde(flatten)]
    pub(crate) numbers: Numbers,
    pub(crate) per_second: Vec<u64>,
    pub(crate) steps: Vec<StepReport>,
    pub(crate) timeline: Vec<Second>,
    pub(crate) settle_seconds: f64,
    pub(crate) client_cpu_seconds: f64,
    pub(crate) servers: Option<ServersReport>,
    /// The whole distribution, for charts.
    #[serde(skip)]
    pub(crate) latencies: ByKind,
    /// Some of the broken promises, in words.
    #[serde(skip)]
    pub(crate) fault_examples: Vec<String>,
}

/// What was counted in a phase or a step.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Numbers {
    pub(crate) seconds: f64,
    pub(crate) operations: u64,
    pub(crate) ops_per_second: f64,
    pub(crate) records: u64,
    pub(crate) written_bytes: u64,
    pub(crate) reads: Option<LatencyReport>,
    pub(crate) updates: Option<LatencyReport>,
    pub(crate) inserts: Option<LatencyReport>,
    pub(crate) scans: Option<LatencyReport>,
    pub(crate) read_modify_writes: Option<LatencyReport>,
    pub(crate) multi_gets: Option<LatencyReport>,
    pub(crate) batches: Option<LatencyReport>,
    pub(crate) lag: Option<LatencyReport>,
    pub(crate) unsent: u64,
    pub(crate) failures: BTreeMap<FailureKind, FailureReport>,
    pub(crate) broken_promises: BTreeMap<&'static str, u64>,
    pub(crate) not_found: u64,
}

/// One step of the timed phase.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct StepReport {
    pub(crate) name: String,
    pub(crate) pace: String,
    pub(crate) measured: bool,
    pub(crate) starts_seconds: f64,
    pub(crate) offered_per_second: Option<f64>,
    #[serde(flatten)]
    pub(crate) numbers: Numbers,
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

/// What a phase cost the processes behind the target.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ServersReport {
    pub(crate) cpu_seconds: Option<f64>,
    pub(crate) cpu_seconds_per_million_ops: Option<f64>,
    pub(crate) device_bytes_per_user_byte: Option<MeanAndMax>,
    pub(crate) proc_bytes_per_user_byte: Option<MeanAndMax>,
    pub(crate) nodes: BTreeMap<u64, Used>,
}

/// A ratio over the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct MeanAndMax {
    pub(crate) mean: f64,
    pub(crate) max: f64,
}

/// The run beside what the device gave the probe.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct DeviceShare {
    /// Which of the probe's cells: sizes, depth, mix.
    pub(crate) cell: String,
    pub(crate) ops_per_second: f64,
    /// Our operations / the probe's.
    pub(crate) share: f64,
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
#[derive(Debug, Clone, Default, Serialize)]
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
    /// What these arguments ask of a target.
    pub(crate) fn new(
        subject: &Subject,
        plan: &Plan,
        target: &'static str,
        target_settings: Vec<(String, String)>,
    ) -> Self {
        let length_of = |measured: bool| -> Duration {
            let steps = plan.steps().iter().filter(|step| step.measured == measured);
            let lengths = steps.map(|step| match step.bound {
                Bound::Time(length) => length,
                Bound::Operations(_) => Duration::ZERO,
            });
            lengths.sum()
        };
        let operations = plan.steps().iter().find_map(|step| match step.bound {
            Bound::Operations(operations) => Some(operations),
            Bound::Time(_) => None,
        });
        Settings {
            target,
            mode: None,
            config: None,
            workload: subject.spec.clone(),
            records: subject.records,
            clients: subject.shape.workers,
            connections: subject.shape.connections,
            threads: subject.shape.threads,
            pinned_to: subject.shape.cpus.clone(),
            check: "ledger",
            seed: subject.seed,
            profile: plan
                .steps()
                .iter()
                .filter(|step| step.measured)
                .map(|step| step.pace.to_string())
                .collect(),
            warmup_seconds: length_of(false).as_secs_f64(),
            seconds: operations.is_none().then(|| length_of(true).as_secs_f64()),
            operations,
            target_settings: target_settings.into_iter().collect(),
            nodes: None,
            shards: None,
        }
    }
}

impl From<&Histogram<u64>> for LatencyReport {
    fn from(ns: &Histogram<u64>) -> Self {
        let us = |ns: u64| ns as f64 / 1e3;
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

impl Numbers {
    /// These counts, of a time that was to last `window` (`None`: until its work was done), which began at `starts`
    /// from the phase's start.
    fn new(counts: &Counts, window: Option<Duration>, starts: Duration, unsent: u64) -> Self {
        // Operations that ended after the window have latencies, but no part in its throughput.
        let (seconds, counted) = match window {
            Some(window) => (window.as_secs_f64(), counts.in_time),
            None => (counts.last.saturating_sub(starts).as_secs_f64(), counts.operations()),
        };
        let of = |kind| counts.latencies.get(kind).map(LatencyReport::from);
        let failure = |(kind, failures): (&FailureKind, &crate::measure::tally::FailureTally)| {
            (*kind, FailureReport { count: failures.count, example: failures.example.clone() })
        };
        Numbers {
            seconds,
            operations: counts.operations(),
            ops_per_second: if seconds > 0.0 { counted as f64 / seconds } else { 0.0 },
            records: counts.records,
            written_bytes: counts.written_bytes,
            reads: of(Kind::Read),
            updates: of(Kind::Update),
            inserts: of(Kind::Insert),
            scans: of(Kind::Scan),
            read_modify_writes: of(Kind::ReadModifyWrite),
            multi_gets: of(Kind::MultiGet),
            batches: of(Kind::Batch),
            lag: counts.lag.as_deref().map(LatencyReport::from),
            unsent,
            failures: counts.failures.iter().map(failure).collect(),
            broken_promises: broken_promises(&counts.faults),
            not_found: counts.not_found,
        }
    }

    /// The latencies of a kind.
    pub(crate) fn of(&self, kind: Kind) -> Option<&LatencyReport> {
        match kind {
            Kind::Read => self.reads.as_ref(),
            Kind::Update => self.updates.as_ref(),
            Kind::Insert => self.inserts.as_ref(),
            Kind::Scan => self.scans.as_ref(),
            Kind::ReadModifyWrite => self.read_modify_writes.as_ref(),
            Kind::MultiGet => self.multi_gets.as_ref(),
            Kind::Batch => self.batches.as_ref(),
        }
    }

    /// Broken promises of all kinds.
    pub(crate) fn broken(&self) -> u64 {
        self.broken_promises.values().sum()
    }
}

fn broken_promises(faults: &BTreeMap<Fault, u64>) -> BTreeMap<&'static str, u64> {
    faults.iter().map(|(fault, count)| (fault.words(), *count)).collect()
}

impl PhaseReport {
    /// A phase without steps: it lasts until its work is done.
    pub(crate) fn untimed(measured: Measured) -> Self {
        let counts = measured.outcome.tally.total(|_| true);
        let numbers = Numbers::new(&counts, None, Duration::ZERO, 0);
        PhaseReport::assembled(measured, counts, numbers, Vec::new())
    }

    /// The timed phase.
    pub(crate) fn timed(measured: Measured, plan: &Plan) -> Self {
        let tally = &measured.outcome.tally;
        let early = measured.outcome.early.is_some();
        let ended = measured.outcome.elapsed;
        let steps: Vec<StepReport> = plan
            .steps()
            .iter()
            .enumerate()
            .map(|(number, step)| {
                let counts = tally.step(number);
                let window = step_window(step, early.then_some(ended));
                // What would have been due after the end of a phase that was cut short is not held against anyone.
                let unsent = if early { 0 } else { step.unsent() };
                StepReport {
                    name: step.name.clone(),
                    pace: step.pace.to_string(),
                    measured: step.measured,
                    starts_seconds: step.starts.as_secs_f64(),
                    offered_per_second: match step.pace {
                        Pace::Closed => None,
                        Pace::Open { from, to } => Some((from + to) / 2.0),
                    },
                    numbers: Numbers::new(&counts, window, step.starts, unsent),
                }
            })
            .collect();
        let of_measured = |number: usize| plan.steps().get(number).is_some_and(|step| step.measured);
        let counts = tally.total(of_measured);
        let measured_steps = || steps.iter().filter(|step| step.measured);
        let starts = measured_steps().next().map_or(0.0, |step| step.starts_seconds);
        let window = plan
            .length()
            .is_some()
            .then(|| Duration::from_secs_f64(measured_steps().map(|step| step.numbers.seconds).sum::<f64>()));
        let unsent = measured_steps().map(|step| step.numbers.unsent).sum();
        let numbers = Numbers::new(&counts, window, Duration::from_secs_f64(starts), unsent);
        PhaseReport::assembled(measured, counts, numbers, steps)
    }

    /// Why a phase that came to nothing is none: all that was tried failed.
    pub(crate) fn unanswered(&self) -> Option<String> {
        let (kind, failures) =
            self.numbers.failures.first_key_value().filter(|_| self.numbers.operations == 0)?;
        Some(format!("no operation of the timed phase was answered, first '{kind}': {}", failures.example))
    }

    /// When the last operation was answered, if none was for a second or more before the end, and some failed.
    fn fell_silent(&self) -> Option<f64> {
        const SILENCE: f64 = 1.0;
        let silent = self.timeline.iter().rev().take_while(|second| second.operations == 0);
        let (first, failed) =
            silent.fold((None, 0), |(_, failed), second| (Some(second), failed + second.failed));
        let at = first.map(|second| second.at_seconds - second.seconds)?;
        let end = self.timeline.last().map_or(0.0, |second| second.at_seconds);
        (failed > 0 && end - at >= SILENCE).then_some(at)
    }

    fn assembled(measured: Measured, counts: Counts, numbers: Numbers, steps: Vec<StepReport>) -> Self {
        // The servers worked in the warm-up too: what they used is divided by all that they did.
        let all = measured.outcome.tally.total(|_| true);
        let servers = ServersReport::new(measured.used, all.operations(), all.written_bytes);
        PhaseReport {
            numbers,
            per_second: measured.outcome.tally.per_second.clone(),
            steps,
            timeline: measured.timeline,
            settle_seconds: measured.settled.as_secs_f64(),
            client_cpu_seconds: measured.client_cpu.as_secs_f64(),
            servers,
            latencies: counts.latencies,
            fault_examples: counts.fault_examples,
        }
    }
}

/// How long a step lasted that is bound by time, in a phase that may have been cut short.
fn step_window(step: &Step, cut_at: Option<Duration>) -> Option<Duration> {
    let ends = step.ends()?;
    let ends = cut_at.map_or(ends, |cut| cut.clamp(step.starts, ends));
    Some(ends - step.starts)
}

impl ServersReport {
    /// The nodes' use of a phase of `operations` operations that wrote `written` bytes; `None` if no node could be
    /// measured.
    pub(crate) fn new(nodes: BTreeMap<u64, Used>, operations: u64, written: u64) -> Option<Self> {
        if nodes.is_empty() {
            return None;
        }
        let cpu_us = meter::sum(nodes.values(), |used| used.counters.cpu_us);
        let cpu_seconds = cpu_us.map(|cpu_us| cpu_us as f64 / 1e6);
        let over_nodes = |ratio: fn(&Counters, u64) -> Option<f64>| {
            meter::mean_and_max(nodes.values().map(|used| ratio(&used.counters, written)))
                .map(|(mean, max)| MeanAndMax { mean, max })
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

    /// Bytes occupied, mean over the nodes that tell.
    pub(crate) fn occupied_bytes(&self) -> Option<f64> {
        let known: Vec<u64> = self.nodes.values().filter_map(|used| used.gauges.occupied_bytes).collect();
        (!known.is_empty()).then(|| known.iter().sum::<u64>() as f64 / known.len() as f64)
    }

    /// Resident memory at its fullest, all nodes.
    pub(crate) fn resident_bytes(&self) -> Option<u64> {
        meter::sum(self.nodes.values(), |used| used.gauges.resident_max_bytes)
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
    /// Adds a read-back of `records` records, `unread` of which could not be read.
    pub(crate) fn add(&mut self, measured: &Measured, records: u64, unread: u64) {
        let counts = measured.outcome.tally.total(|_| true);
        let lost = counts.broken();
        self.records += records;
        self.intact += records.saturating_sub(lost + unread + counts.not_found);
        self.lost += lost;
        self.unread += unread;
        self.not_written += counts.not_found;
        self.seconds += measured.outcome.elapsed.as_secs_f64();
        for (what, count) in broken_promises(&counts.faults) {
            *self.broken_promises.entry(what).or_insert(0) += count;
        }
        self.examples.extend(counts.fault_examples.iter().cloned());
        self.examples.truncate(10);
    }

    /// Nothing acknowledged was lost, and everything was looked at.
    pub(crate) fn passed(&self) -> bool {
        self.lost == 0 && self.unread == 0
    }
}

impl Report {
    /// The beginning of a report: nothing was measured yet.
    pub(crate) fn begin(command: &'static str, machine: Machine, settings: Settings) -> Self {
        Report {
            format: FORMAT,
            command,
            version: env!("CARGO_PKG_VERSION"),
            ok: false,
            partial: false,
            ended_early: None,
            warnings: Vec::new(),
            machine,
            settings,
            load: None,
            run: None,
            space_amplification: None,
            device: None,
            outages: Vec::new(),
            verify: None,
        }
    }

    /// Writes the report as JSON.
    pub(crate) fn write_json(&self, path: &Path) -> anyhow::Result<()> {
        write_json(self, path)
    }

    /// Whether nothing acknowledged was missed on the way, and all was there at the end (if it was looked for).
    pub(crate) fn kept_every_promise(&self) -> bool {
        self.phases().all(|(_, phase)| phase.numbers.broken() == 0)
            && self.verify.as_ref().is_none_or(VerifyReport::passed)
    }

    /// The phases that were run, by name.
    pub(crate) fn phases(&self) -> impl Iterator<Item = (&'static str, &PhaseReport)> {
        [("load", &self.load), ("run", &self.run)]
            .into_iter()
            .filter_map(|(name, phase)| Some((name, phase.as_ref()?)))
    }

    /// Works out the space amplification: `live` are the bytes of keys and values that a store must hold.
    pub(crate) fn note_space(&mut self, live: f64) {
        let last = self.run.as_ref().or(self.load.as_ref());
        let occupied = last.and_then(|phase| phase.servers.as_ref()?.occupied_bytes());
        self.space_amplification = occupied.filter(|_| live > 0.0).map(|occupied| occupied / live);
    }

    /// What a generator that did not keep up, or a plan that could not be met, means for the numbers.
    pub(crate) fn note_doubts(&mut self) {
        let Some(run) = &self.run else { return };
        if let Some(at) = run.fell_silent() {
            self.warnings.push(format!(
                "nothing was answered any more from {at:.0} s on: the numbers hold a target that was gone"
            ));
        }
        for step in run.steps.iter().filter(|step| step.measured && step.numbers.unsent > 0) {
            self.warnings.push(format!(
                "step '{}': {} operations were due and never sent: the rate was not reached, and the latencies are lower bounds (more --clients, or a lower rate)",
                step.name,
                figures::count(step.numbers.unsent)
            ));
        }
    }
}

/// Writes any report as JSON.
pub(crate) fn write_json(report: &impl Serialize, path: &Path) -> anyhow::Result<()> {
    let mut json = serde_json::to_string_pretty(report).context("cannot turn the report into JSON")?;
    json.push('\n');
    output::whole(path, json.as_bytes())
        .with_context(|| format!("cannot write the report to {}", path.display()))
}

#[cfg(test)]
mod page_tests;
#[cfg(test)]
mod tests;

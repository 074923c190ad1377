//! What some workers counted: latencies, throughput over time, failures by kind, and breaches of the target's promises.
//!
//! A few threads share a tally behind a lock; the progress line looks in now and then, the report merges them.
//! Histograms are merged, never percentiles (an average of percentiles means nothing).
//!
//! Each step of a phase has counts of its own; the warm-up's are kept apart too, and left out of the results.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::check::ledger::Breach;
use crate::target::{Failure, FailureKind};
use crate::workload::record::Damage;

/// Latencies above this are counted as this: ten minutes, in nanoseconds.
const LATENCY_MAX_NS: u64 = 600_000_000_000;

/// The finest difference that is told apart: latencies of less than a microsecond are, but not nanoseconds. It saves
/// memory that would otherwise count as the embedded store's.
const LATENCY_UNIT_NS: u64 = 16;

/// A histogram of latencies in nanoseconds, three significant digits.
pub(crate) fn latencies() -> Histogram<u64> {
    match Histogram::new_with_bounds(LATENCY_UNIT_NS, LATENCY_MAX_NS, 3) {
        Ok(histogram) => histogram,
        Err(error) => unreachable!("constant bounds are valid: {error}"),
    }
}

/// What a worker did, as reports tell it apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A get.
    Read,
    /// A put of a record that is there.
    Update,
    /// A put of a new record.
    Insert,
    /// A scan of some rows.
    Scan,
    /// A get and then a put of the same record, timed as one.
    ReadModifyWrite,
    /// A read of several records in one request.
    MultiGet,
    /// A write of several records in one request.
    Batch,
}

impl Kind {
    /// All kinds, in the order of the reports.
    pub(crate) const ALL: [Kind; 7] = [
        Kind::Read,
        Kind::Update,
        Kind::Insert,
        Kind::Scan,
        Kind::ReadModifyWrite,
        Kind::MultiGet,
        Kind::Batch,
    ];

    /// The plural, for tables.
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Kind::Read => "reads",
            Kind::Update => "updates",
            Kind::Insert => "inserts",
            Kind::Scan => "scans",
            Kind::ReadModifyWrite => "read-modify-writes",
            Kind::MultiGet => "multi-gets",
            Kind::Batch => "batches",
        }
    }

    /// Whether it changes anything: on the charts there are only reads and writes.
    pub(crate) const fn writes(self) -> bool {
        !matches!(self, Kind::Read | Kind::Scan | Kind::MultiGet)
    }
}

/// Latencies by kind; kinds that did not occur cost nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct ByKind {
    histograms: [Option<Box<Histogram<u64>>>; Kind::ALL.len()],
}

impl ByKind {
    /// The latencies of one kind, nanoseconds.
    pub(crate) fn get(&self, kind: Kind) -> Option<&Histogram<u64>> {
        self.histograms[kind as usize].as_deref()
    }

    /// Successful operations of all kinds.
    pub(crate) fn operations(&self) -> u64 {
        self.histograms.iter().flatten().map(|histogram| histogram.len()).sum()
    }

    /// The latencies of all kinds that write, or of all that do not.
    pub(crate) fn merged(&self, writes: bool) -> Histogram<u64> {
        let mut sum = latencies();
        for kind in Kind::ALL.into_iter().filter(|kind| kind.writes() == writes) {
            self.get(kind).iter().for_each(|histogram| merge(&mut sum, histogram));
        }
        sum
    }

    fn record(&mut self, kind: Kind, latency: Duration) {
        let histogram = self.histograms[kind as usize].get_or_insert_with(|| Box::new(latencies()));
        histogram.saturating_record(nanoseconds(latency));
    }

    fn add(&mut self, other: &ByKind) {
        for (mine, theirs) in self.histograms.iter_mut().zip(&other.histograms) {
            match (mine, theirs) {
                (_, None) => {}
                (Some(mine), Some(theirs)) => merge(mine, theirs),
                (mine @ None, Some(theirs)) => *mine = Some(theirs.clone()),
            }
        }
    }
}

fn nanoseconds(latency: Duration) -> u64 {
    u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1)
}

/// Failures of one kind.
#[derive(Debug, Clone)]
pub(crate) struct FailureTally {
    /// How many.
    pub(crate) count: u64,
    /// The first one's message.
    pub(crate) example: String,
}

/// A way in which the cluster broke its word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// An acknowledged record is not there.
    Missing,
    /// A read gave an older version than had been acknowledged before it began.
    Older,
    /// The acknowledged version holds other bytes than were acknowledged.
    Different,
    /// The value is not one that was ever written to this key.
    Damaged,
    /// Two acknowledged writes of one key were given the same version.
    VersionClash,
}

impl Fault {
    /// In words, for reports.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Fault::Missing => "missing",
            Fault::Older => "older than acknowledged",
            Fault::Different => "other bytes at the acknowledged version",
            Fault::Damaged => "damaged",
            Fault::VersionClash => "one version for two writes",
        }
    }
}

impl From<Breach> for Fault {
    fn from(breach: Breach) -> Self {
        match breach {
            Breach::Missing => Fault::Missing,
            Breach::Older => Fault::Older,
            Breach::Different => Fault::Different,
        }
    }
}

impl From<Damage> for Fault {
    fn from(_: Damage) -> Self {
        Fault::Damaged
    }
}

/// Examples of faults that a tally keeps, so that a report can name keys to look at.
const FAULT_EXAMPLES_MAX: usize = 10;

/// What was counted in one step.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts {
    /// Latencies of successful operations, from the moment they were due.
    pub(crate) latencies: ByKind,
    /// In open steps: from when operations were due to when they were sent.
    pub(crate) lag: Option<Box<Histogram<u64>>>,
    /// Successful operations that ended within the step.
    pub(crate) in_time: u64,
    /// Bytes of keys and values whose writing was acknowledged.
    pub(crate) written_bytes: u64,
    /// Records that were read or written: more than operations where scans, multi-gets and batches are.
    pub(crate) records: u64,
    /// Failed operations by kind.
    pub(crate) failures: BTreeMap<FailureKind, FailureTally>,
    /// Broken promises by kind.
    pub(crate) faults: BTreeMap<Fault, u64>,
    /// Some of the faults, in words with their key.
    pub(crate) fault_examples: Vec<String>,
    /// Reads that found no such key, where none had been promised.
    pub(crate) not_found: u64,
    /// When the last successful operation ended, from the phase's start.
    pub(crate) last: Duration,
}

/// A successful operation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Success {
    pub(crate) kind: Kind,
    /// When it was due, and when it was sent; equal in a closed loop. From the phase's start, as the next.
    pub(crate) due: Duration,
    pub(crate) sent: Duration,
    /// When it was answered.
    pub(crate) ended: Duration,
    /// Whether that was within its step.
    pub(crate) in_time: bool,
    /// Whether its step is open: then lateness is counted.
    pub(crate) open: bool,
    /// Bytes of keys and values that it wrote.
    pub(crate) written_bytes: u64,
    /// Records that it read or wrote.
    pub(crate) records: u64,
}

impl Counts {
    /// Successful operations.
    pub(crate) fn operations(&self) -> u64 {
        self.latencies.operations()
    }

    /// Failed operations.
    #[cfg(test)]
    pub(crate) fn failed(&self) -> u64 {
        self.failures.values().map(|tally| tally.count).sum()
    }

    /// Broken promises.
    pub(crate) fn broken(&self) -> u64 {
        self.faults.values().sum()
    }

    fn success(&mut self, success: &Success) {
        self.latencies.record(success.kind, success.ended.saturating_sub(success.due));
        if success.open {
            let lag = self.lag.get_or_insert_with(|| Box::new(latencies()));
            lag.saturating_record(nanoseconds(success.sent.saturating_sub(success.due)));
        }
        self.in_time += u64::from(success.in_time);
        self.written_bytes += success.written_bytes;
        self.records += success.records;
        self.last = self.last.max(success.ended);
    }

    /// Adds what was counted elsewhere in the same step, or in another.
    pub(crate) fn add(&mut self, other: &Counts) {
        self.latencies.add(&other.latencies);
        match (&mut self.lag, &other.lag) {
            (_, None) => {}
            (Some(mine), Some(theirs)) => merge(mine, theirs),
            (mine @ None, Some(theirs)) => *mine = Some(theirs.clone()),
        }
        self.in_time += other.in_time;
        self.written_bytes += other.written_bytes;
        self.records += other.records;
        for (kind, theirs) in &other.failures {
            self.failures
                .entry(*kind)
                .and_modify(|mine| mine.count += theirs.count)
                .or_insert_with(|| theirs.clone());
        }
        for (fault, count) in &other.faults {
            *self.faults.entry(*fault).or_insert(0) += count;
        }
        let room = FAULT_EXAMPLES_MAX.saturating_sub(self.fault_examples.len());
        self.fault_examples.extend(other.fault_examples.iter().take(room).cloned());
        self.not_found += other.not_found;
        self.last = self.last.max(other.last);
    }
}

/// Everything some workers counted in one phase.
#[derive(Debug, Clone)]
pub(crate) struct Tally {
    steps: Vec<Counts>,
    /// Successful operations by the second of the phase in which they ended.
    pub(crate) per_second: Vec<u64>,
    recent: Recent,
}

/// What happened since it was last looked at.
#[derive(Debug, Clone)]
pub(crate) struct Recent {
    /// Latencies of what only reads, nanoseconds.
    pub(crate) reads: Histogram<u64>,
    /// Latencies of what writes.
    pub(crate) writes: Histogram<u64>,
    /// Failed operations.
    pub(crate) failed: u64,
    /// Broken promises.
    pub(crate) broken: u64,
    /// Bytes of keys and values written.
    pub(crate) written_bytes: u64,
}

impl Recent {
    /// Nothing yet.
    pub(crate) fn new() -> Self {
        Recent { reads: latencies(), writes: latencies(), failed: 0, broken: 0, written_bytes: 0 }
    }

    /// Successful operations.
    pub(crate) fn operations(&self) -> u64 {
        self.reads.len() + self.writes.len()
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.reads.reset();
        self.writes.reset();
        (self.failed, self.broken, self.written_bytes) = (0, 0, 0);
    }

    /// Adds what happened elsewhere in the same time.
    pub(crate) fn add(&mut self, other: &Recent) {
        merge(&mut self.reads, &other.reads);
        merge(&mut self.writes, &other.writes);
        self.failed += other.failed;
        self.broken += other.broken;
        self.written_bytes += other.written_bytes;
    }
}

impl Tally {
    /// Nothing counted.
    pub(crate) fn new() -> Self {
        Tally { steps: Vec::new(), per_second: Vec::new(), recent: Recent::new() }
    }

    /// Counts a success in a step.
    pub(crate) fn success(&mut self, step: usize, success: &Success) {
        self.step_mut(step).success(success);
        let latency = nanoseconds(success.ended.saturating_sub(success.due));
        let recent = if success.kind.writes() { &mut self.recent.writes } else { &mut self.recent.reads };
        recent.saturating_record(latency);
        self.recent.written_bytes += success.written_bytes;
        let second = success.ended.as_secs() as usize;
        if self.per_second.len() <= second {
            self.per_second.resize(second + 1, 0);
        }
        self.per_second[second] += 1;
    }

    /// Counts a failure.
    pub(crate) fn failure(&mut self, step: usize, failure: Failure) {
        self.recent.failed += 1;
        self.step_mut(step)
            .failures
            .entry(failure.kind)
            .and_modify(|tally| tally.count += 1)
            .or_insert(FailureTally { count: 1, example: failure.message });
    }

    /// Counts a broken promise about `key`.
    pub(crate) fn fault(&mut self, step: usize, fault: Fault, key: &[u8]) {
        self.recent.broken += 1;
        let counts = self.step_mut(step);
        *counts.faults.entry(fault).or_insert(0) += 1;
        if counts.fault_examples.len() < FAULT_EXAMPLES_MAX {
            counts.fault_examples.push(format!("{}: {}", key.escape_ascii(), fault.words()));
        }
    }

    /// Counts a read that found nothing where nothing had been promised.
    pub(crate) fn not_found(&mut self, step: usize) {
        self.step_mut(step).not_found += 1;
    }

    /// The counts of a step.
    pub(crate) fn step(&self, step: usize) -> Counts {
        self.steps.get(step).cloned().unwrap_or_default()
    }

    /// The counts of all steps for which `of` says so.
    pub(crate) fn total(&self, of: impl Fn(usize) -> bool) -> Counts {
        let mut sum = Counts::default();
        self.steps.iter().enumerate().filter(|(step, _)| of(*step)).for_each(|(_, counts)| sum.add(counts));
        sum
    }

    /// Moves what happened since the last call into `into`.
    pub(crate) fn drain_recent(&mut self, into: &mut Recent) {
        into.add(&self.recent);
        self.recent.clear();
    }

    /// Adds what other workers counted in the same phase.
    pub(crate) fn add(&mut self, other: &Tally) {
        for (step, counts) in other.steps.iter().enumerate() {
            self.step_mut(step).add(counts);
        }
        if self.per_second.len() < other.per_second.len() {
            self.per_second.resize(other.per_second.len(), 0);
        }
        for (mine, theirs) in self.per_second.iter_mut().zip(&other.per_second) {
            *mine += theirs;
        }
    }

    fn step_mut(&mut self, step: usize) -> &mut Counts {
        if self.steps.len() <= step {
            self.steps.resize_with(step + 1, Counts::default);
        }
        &mut self.steps[step]
    }
}

/// Adds the counts of `from` to `into`; both were made by [`latencies`], so no value is out of range.
pub(crate) fn merge(into: &mut Histogram<u64>, from: &Histogram<u64>) {
    if let Err(error) = into.add(from) {
        unreachable!("histograms of equal bounds add up: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn success(kind: Kind, due: Duration, ended: Duration) -> Success {
        let in_time = ended < ms(1_000);
        Success { kind, due, sent: due, ended, in_time, open: false, written_bytes: 10, records: 1 }
    }

    fn tally(latencies_ms: &[u64]) -> Tally {
        let mut tally = Tally::new();
        let mut ended = Duration::ZERO;
        for latency in latencies_ms {
            let due = ended;
            ended += ms(*latency);
            tally.success(0, &success(Kind::Read, due, ended));
        }
        tally
    }

    #[test]
    fn workers_add_up_to_what_one_would_have_counted() {
        let mut sum = tally(&[1, 2, 3, 400]);
        let mut other = tally(&[500, 600, 700]);
        for kind in [FailureKind::Busy, FailureKind::Busy, FailureKind::TimedOut] {
            other.failure(0, Failure { kind, message: "first".into() });
        }
        other.fault(0, Fault::Older, b"user\x001");
        sum.add(&other);
        let total = sum.total(|_| true);
        assert_eq!(total.operations(), 7);
        assert_eq!(sum.per_second, [5, 2]);
        assert_eq!(total.in_time, 5);
        assert_eq!((total.written_bytes, total.records), (70, 7));
        assert_eq!(total.last, ms(1_800));
        assert_eq!(total.failed(), 3);
        assert_eq!(total.failures[&FailureKind::Busy].count, 2);
        assert_eq!(total.broken(), 1);
        assert_eq!(total.fault_examples, ["user\\x001: older than acknowledged"]);
        let median_ms = total.latencies.get(Kind::Read).unwrap().value_at_quantile(0.5) as f64 / 1e6;
        assert!((399.0..=401.0).contains(&median_ms), "{median_ms}");
        assert!(total.latencies.get(Kind::Update).is_none());
        assert_eq!((total.latencies.merged(false).len(), total.latencies.merged(true).len()), (7, 0));
    }

    #[test]
    fn steps_are_counted_apart() {
        let mut tally = tally(&[1]);
        tally.success(2, &success(Kind::Batch, ms(0), ms(5)));
        tally.not_found(2);
        assert_eq!([0, 1, 2, 3].map(|step| tally.step(step).operations()), [1, 0, 1, 0]);
        assert_eq!(tally.total(|step| step != 0).operations(), 1);
        assert_eq!(tally.step(2).not_found, 1);
    }

    /// Latency counts from when an operation was due, whoever is to blame for its being sent late.
    #[test]
    fn lateness_is_part_of_the_latency() {
        let mut tally = Tally::new();
        let late = Success { sent: ms(90), open: true, ..success(Kind::Update, ms(10), ms(100)) };
        tally.success(0, &late);
        let counts = tally.step(0);
        let of = |histogram: &Histogram<u64>| (histogram.max() as f64 / 1e6).round();
        assert_eq!(of(counts.latencies.get(Kind::Update).unwrap()), 90.0);
        assert_eq!(of(counts.lag.as_ref().unwrap()), 80.0);
    }

    #[test]
    fn recent_happenings_are_seen_once() {
        let mut tally = tally(&[1, 2, 3]);
        tally.fault(0, Fault::Damaged, b"k");
        let mut seen = Recent::new();
        tally.drain_recent(&mut seen);
        assert_eq!((seen.operations(), seen.broken, seen.written_bytes), (3, 1, 30));
        tally.drain_recent(&mut seen);
        assert_eq!(seen.operations(), 3);
        assert_eq!(tally.step(0).operations(), 3, "looking takes nothing away");
    }

    #[test]
    fn absurd_latencies_are_kept_at_the_limit() {
        let mut tally = Tally::new();
        tally.success(0, &success(Kind::Update, ms(0), ms(0)));
        tally.success(0, &success(Kind::Update, ms(0), Duration::from_secs(1 << 20)));
        assert_eq!(tally.step(0).operations(), 2);
    }
}

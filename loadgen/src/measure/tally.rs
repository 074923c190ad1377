//! What one thread counted: latencies, throughput over time, failures by kind, and breaches of the cluster's promises.
//!
//! Each thread has its own tally behind its own lock; the progress line looks in now and then, the report merges them.
//! Histograms are merged, never percentiles (an average of percentiles means nothing).

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::check::ledger::Breach;
use crate::target::{Failure, FailureKind};
use crate::workload::record::Damage;

/// Latencies above this are counted as this: ten minutes, in nanoseconds.
const LATENCY_MAX_NS: u64 = 600_000_000_000;

/// A histogram of latencies in nanoseconds, three significant digits.
pub(crate) fn latencies() -> Histogram<u64> {
    match Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3) {
        Ok(histogram) => histogram,
        Err(error) => unreachable!("constant bounds are valid: {error}"),
    }
}

/// Which of the two kinds of operation a latency belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A get.
    Read,
    /// A put.
    Update,
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

/// Everything one thread counted in one phase.
#[derive(Debug, Clone)]
pub(crate) struct Tally {
    /// Latencies of successful reads, nanoseconds.
    pub(crate) reads: Histogram<u64>,
    /// Latencies of successful updates, nanoseconds.
    pub(crate) updates: Histogram<u64>,
    /// Successful operations by the second of the phase in which they ended.
    pub(crate) per_second: Vec<u64>,
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
    /// Latencies since the progress line last looked.
    recent: Histogram<u64>,
}

impl Tally {
    /// Nothing counted.
    pub(crate) fn new() -> Self {
        Tally {
            reads: latencies(),
            updates: latencies(),
            per_second: Vec::new(),
            failures: BTreeMap::new(),
            faults: BTreeMap::new(),
            fault_examples: Vec::new(),
            not_found: 0,
            last: Duration::ZERO,
            recent: latencies(),
        }
    }

    /// Counts a success that ended at `ended` (from the phase's start) after `latency`.
    pub(crate) fn success(&mut self, kind: Kind, ended: Duration, latency: Duration) {
        let latency_ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1);
        match kind {
            Kind::Read => self.reads.saturating_record(latency_ns),
            Kind::Update => self.updates.saturating_record(latency_ns),
        }
        self.recent.saturating_record(latency_ns);
        let second = ended.as_secs() as usize;
        if self.per_second.len() <= second {
            self.per_second.resize(second + 1, 0);
        }
        self.per_second[second] += 1;
        self.last = self.last.max(ended);
    }

    /// Counts a failure.
    pub(crate) fn failure(&mut self, failure: Failure) {
        self.failures
            .entry(failure.kind)
            .and_modify(|tally| tally.count += 1)
            .or_insert(FailureTally { count: 1, example: failure.message });
    }

    /// Counts a broken promise about `key`.
    pub(crate) fn fault(&mut self, fault: Fault, key: &[u8]) {
        *self.faults.entry(fault).or_insert(0) += 1;
        if self.fault_examples.len() < FAULT_EXAMPLES_MAX {
            self.fault_examples.push(format!("{}: {}", key.escape_ascii(), fault.words()));
        }
    }

    /// Successful operations.
    pub(crate) fn operations(&self) -> u64 {
        self.reads.len() + self.updates.len()
    }

    /// Failed operations.
    pub(crate) fn failed(&self) -> u64 {
        self.failures.values().map(|tally| tally.count).sum()
    }

    /// Broken promises.
    pub(crate) fn broken(&self) -> u64 {
        self.faults.values().sum()
    }

    /// Successful operations that ended before `window` (whole seconds) was over.
    pub(crate) fn operations_within(&self, window: Duration) -> u64 {
        self.per_second.iter().take(window.as_secs() as usize).sum()
    }

    /// Moves the latencies since the last call into `into`.
    pub(crate) fn drain_recent(&mut self, into: &mut Histogram<u64>) {
        merge(into, &self.recent);
        self.recent.reset();
    }

    /// Adds what another thread counted in the same phase.
    pub(crate) fn add(&mut self, other: &Tally) {
        merge(&mut self.reads, &other.reads);
        merge(&mut self.updates, &other.updates);
        if self.per_second.len() < other.per_second.len() {
            self.per_second.resize(other.per_second.len(), 0);
        }
        for (mine, theirs) in self.per_second.iter_mut().zip(&other.per_second) {
            *mine += theirs;
        }
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

/// Adds the counts of `from` to `into`; both were made by [`latencies`], so no value is out of range.
fn merge(into: &mut Histogram<u64>, from: &Histogram<u64>) {
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

    fn tally(latencies_ms: &[u64]) -> Tally {
        let mut tally = Tally::new();
        let mut ended = Duration::ZERO;
        for latency in latencies_ms {
            ended += ms(*latency);
            tally.success(Kind::Read, ended, ms(*latency));
        }
        tally
    }

    #[test]
    fn threads_add_up_to_what_one_would_have_counted() {
        let mut sum = tally(&[1, 2, 3, 400]);
        let mut other = tally(&[500, 600, 700]);
        for kind in [FailureKind::Busy, FailureKind::Busy, FailureKind::TimedOut] {
            other.failure(Failure { kind, message: "first".into() });
        }
        other.fault(Fault::Older, b"user\x001");
        sum.add(&other);
        assert_eq!(sum.operations(), 7);
        assert_eq!(sum.per_second, [5, 2]);
        assert_eq!(sum.operations_within(Duration::from_secs(1)), 5);
        assert_eq!(sum.last, ms(1_800));
        assert_eq!(sum.failed(), 3);
        assert_eq!(sum.failures[&FailureKind::Busy].count, 2);
        assert_eq!(sum.broken(), 1);
        assert_eq!(sum.fault_examples, ["user\\x001: older than acknowledged"]);
        let median_ms = sum.reads.value_at_quantile(0.5) as f64 / 1e6;
        assert!((399.0..=401.0).contains(&median_ms), "{median_ms}");
    }

    #[test]
    fn recent_latencies_are_seen_once() {
        let mut tally = tally(&[1, 2, 3]);
        let mut seen = latencies();
        tally.drain_recent(&mut seen);
        assert_eq!(seen.len(), 3);
        tally.drain_recent(&mut seen);
        assert_eq!(seen.len(), 3);
        assert_eq!(tally.operations(), 3, "looking takes nothing away");
    }

    #[test]
    fn absurd_latencies_are_kept_at_the_limit() {
        let mut tally = Tally::new();
        tally.success(Kind::Update, ms(0), Duration::ZERO);
        tally.success(Kind::Update, ms(0), Duration::MAX);
        assert_eq!(tally.updates.len(), 2);
    }
}

//! The three phases of a run, each a [`Job`]: load every record, send mixed traffic, read everything back.
//!
//! All three check the cluster's word as they go: each acknowledged write goes into the [`Ledger`], each read is held
//! against what had been acknowledged *before it began* (reads are linearizable, so less would be a stale read).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use xxhash_rust::xxh3::xxh3_64;

use crate::check::ledger::{Ledger, Promise};
use crate::load::runner::{EarlyEnd, Job, Worker};
use crate::measure::outage::OutageWatch;
use crate::measure::tally::{Fault, Kind};
use crate::target::{Failure, Found, Target};
use crate::workload::record::{self, Writer};
use crate::workload::{Chooser, Op, generator, key};

/// Numbers of the phases: part of what generators are seeded with, and of the operation numbers inside the values, so
/// that no two phases write the same bytes.
const LOAD: u32 = 0;
const MIXED: u32 = 1;

/// What writing phases have in common.
#[derive(Debug, Clone)]
pub(crate) struct Writing {
    /// Where acknowledged writes are noted.
    pub(crate) ledger: Arc<Ledger>,
    /// The run's number inside values.
    pub(crate) run: u32,
    /// Bytes of every value.
    pub(crate) value_bytes: usize,
}

impl Writing {
    /// Writes a record once; notes and counts what came of it.
    async fn put<T: Target>(
        &self,
        worker: &Worker<T>,
        record: u64,
        op: u64,
    ) -> Result<(Instant, Instant), Failure> {
        let key = key(record);
        let writer = Writer { run: self.run, worker: worker.number };
        let composed = record::compose(&key, writer, op, self.value_bytes);
        let began = Instant::now();
        let version = worker.target.put(&key, composed.value, None).await?.unwrap_or(0);
        let ended = Instant::now();
        worker.success(Kind::Update, began, ended);
        let promise = Promise { version, checksum: composed.checksum };
        if self.ledger.acknowledge(record, promise).is_err() {
            worker.tally().fault(Fault::VersionClash, &key);
        }
        Ok((began, ended))
    }
}

/// The number of a worker's `nth` operation of a phase, distinct over phases.
fn op_number(phase: u32, nth: u64) -> u64 {
    u64::from(phase) << 56 | nth
}

/// Reads a record once, counts it, and holds it against the ledger.
async fn get<T: Target>(
    ledger: &Ledger,
    worker: &Worker<T>,
    record: u64,
) -> Result<(Instant, Instant), Failure> {
    let key = key(record);
    let promised = ledger.promised(record);
    let began = Instant::now();
    let found = worker.target.get(&key).await?;
    let ended = Instant::now();
    worker.success(Kind::Read, began, ended);
    match judge(promised, &key, found) {
        Ok(true) => {}
        Ok(false) => worker.tally().not_found += 1,
        Err(fault) => worker.tally().fault(fault, &key),
    }
    Ok((began, ended))
}

/// Whether what a read found is there and keeps what had been promised before it.
fn judge(promised: Promise, key: &[u8], found: Option<Found>) -> Result<bool, Fault> {
    let Some(found) = found else {
        promised.check(None)?;
        return Ok(false);
    };
    let checksum = record::check(key, &found.value)?;
    promised.check(Some(Promise { version: found.version.unwrap_or(0), checksum }))?;
    Ok(true)
}

/// Writes every record once.
#[derive(Debug)]
pub(crate) struct Load {
    writing: Writing,
    next: AtomicU64,
}

/// Failures in a row on one record after which a phase that needs every record gives up. With the client's own retries
/// (5 s each) that is well past any election.
const TRIES_MAX: u32 = 8;

impl Load {
    /// Loads all records of the ledger.
    pub(crate) fn new(writing: Writing) -> Self {
        Load { writing, next: AtomicU64::new(0) }
    }
}

impl Job for Load {
    async fn work<T: Target>(&self, worker: Worker<T>) {
        let mut nth = 0;
        'records: while !worker.stopped() {
            let record = self.next.fetch_add(1, Ordering::Relaxed);
            if record >= self.writing.ledger.records() {
                return;
            }
            for streak in 0..TRIES_MAX {
                nth += 1;
                let failure = match self.writing.put(&worker, record, op_number(LOAD, nth)).await {
                    Ok(_) => continue 'records,
                    Err(failure) => failure,
                };
                if streak + 1 == TRIES_MAX && !failure.kind.is_final() {
                    worker.stop(EarlyEnd::Hopeless(format!(
                        "a record could not be written in {TRIES_MAX} tries, last: {}",
                        failure.message
                    )));
                }
                worker.failure(failure, streak).await;
                if worker.stopped() {
                    return;
                }
            }
        }
    }
}

/// When mixed traffic ends. Operations under way at the end are finished.
#[derive(Debug)]
pub(crate) enum Until {
    /// After this long.
    Time(Duration),
    /// After this many operations of all workers together, failed ones included.
    Operations(Quota),
}

/// A number of operations for all workers together.
#[derive(Debug)]
pub(crate) struct Quota {
    total: u64,
    begun: AtomicU64,
}

impl Until {
    /// The end after `total` operations.
    pub(crate) fn operations(total: u64) -> Self {
        Until::Operations(Quota { total, begun: AtomicU64::new(0) })
    }

    /// Whether a worker may begin another operation, `elapsed` into the phase; counts it.
    fn begin(&self, elapsed: Duration) -> bool {
        match self {
            Until::Time(window) => elapsed < *window,
            Until::Operations(quota) => quota.begun.fetch_add(1, Ordering::Relaxed) < quota.total,
        }
    }
}

/// Reads and updates as the workload says.
#[derive(Debug)]
pub(crate) struct Mixed {
    /// What the updates write.
    pub(crate) writing: Writing,
    /// What is asked.
    pub(crate) chooser: Chooser,
    /// Seed of the workers' generators.
    pub(crate) seed: u64,
    /// How long.
    pub(crate) until: Until,
    /// Told of every success, if someone is going to be killed.
    pub(crate) watch: Option<Arc<OutageWatch>>,
}

impl Job for Mixed {
    async fn work<T: Target>(&self, worker: Worker<T>) {
        let mut rng = generator(self.seed, MIXED, worker.number);
        let (mut nth, mut streak) = (0, 0);
        while !worker.stopped() && self.until.begin(worker.elapsed(Instant::now())) {
            nth += 1;
            let op = self.chooser.next(&mut rng);
            let (record, done) = match op {
                Op::Read(record) => (record, get(&self.writing.ledger, &worker, record).await),
                Op::Update(record) => {
                    (record, self.writing.put(&worker, record, op_number(MIXED, nth)).await)
                }
            };
            match done {
                Ok((began, ended)) => {
                    streak = 0;
                    if let Some(watch) = &self.watch {
                        watch.success(began, ended, || xxh3_64(&key(record)));
                    }
                }
                Err(failure) => {
                    worker.failure(failure, streak).await;
                    streak += 1;
                }
            }
        }
    }
}

/// Reads every record and holds it against the ledger. What cannot be read is counted too: unread is unproven.
#[derive(Debug)]
pub(crate) struct ReadBack {
    ledger: Arc<Ledger>,
    next: AtomicU64,
    unread: AtomicU64,
}

impl ReadBack {
    /// Reads back all records of the ledger.
    pub(crate) fn new(ledger: Arc<Ledger>) -> Self {
        ReadBack { ledger, next: AtomicU64::new(0), unread: AtomicU64::new(0) }
    }

    /// Records that could not be read; complete when the phase has ended.
    pub(crate) fn unread(&self) -> u64 {
        let begun = self.next.load(Ordering::Acquire).min(self.ledger.records());
        self.unread.load(Ordering::Acquire) + (self.ledger.records() - begun)
    }
}

impl Job for ReadBack {
    async fn work<T: Target>(&self, worker: Worker<T>) {
        'records: while !worker.stopped() {
            let record = self.next.fetch_add(1, Ordering::AcqRel);
            if record >= self.ledger.records() {
                return;
            }
            for streak in 0..TRIES_MAX {
                match get(&self.ledger, &worker, record).await {
                    Ok(_) => continue 'records,
                    Err(failure) => worker.failure(failure, streak).await,
                }
                if worker.stopped() {
                    break;
                }
            }
            self.unread.fetch_add(1, Ordering::AcqRel);
            // One record that answers nobody is a lost partition: the others would each take as long.
            worker.stop(EarlyEnd::Hopeless(format!("a record could not be read in {TRIES_MAX} tries")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::runner::{Crew, Outcome, testing};
    use crate::target::FailureKind;
    use crate::target::memory::{Faults, MemoryTarget};
    use crate::workload::Workload;

    const CREW: Crew = Crew { threads: 2, connections: 6 };

    fn writing(records: u64) -> Writing {
        Writing { ledger: Arc::new(Ledger::new(records)), run: 1, value_bytes: 64 }
    }

    fn load(target: &MemoryTarget, writing: &Writing) -> Outcome {
        testing::run(CREW, target, Load::new(writing.clone())).unwrap()
    }

    fn read_back(target: &MemoryTarget, writing: &Writing) -> (Outcome, u64) {
        let job = Arc::new(ReadBack::new(writing.ledger.clone()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let phase = runtime.block_on(crate::load::runner::Phase::start(CREW, target, job.clone())).unwrap();
        (phase.join().unwrap(), job.unread())
    }

    fn mixed(target: &MemoryTarget, writing: &Writing, workload: Workload) -> Outcome {
        let chooser = Chooser::new(workload, writing.ledger.records(), 0.99);
        let until = Until::operations(2_000);
        let job = Mixed { writing: writing.clone(), chooser, seed: 1, until, watch: None };
        testing::run(CREW, target, job).unwrap()
    }

    #[test]
    fn a_faithful_target_passes() {
        let (target, writing) = (MemoryTarget::default(), writing(500));
        let loaded = load(&target, &writing);
        assert_eq!((loaded.tally.updates.len(), target.len()), (500, 500));
        let outcome = mixed(&target, &writing, Workload::A);
        assert_eq!(outcome.tally.operations(), 2_000);
        assert!(outcome.tally.reads.len() > 900 && outcome.tally.updates.len() > 900);
        assert_eq!((outcome.tally.broken(), outcome.tally.failed(), outcome.early), (0, 0, None));
        let (read, unread) = read_back(&target, &writing);
        assert_eq!((read.tally.reads.len(), read.tally.broken(), unread), (500, 0, 0));
    }

    #[test]
    fn time_ends_mixed_traffic_too() {
        let until = Until::Time(Duration::from_secs(3));
        assert!(until.begin(Duration::from_millis(2_999)));
        assert!(!until.begin(Duration::from_secs(3)));
    }

    #[test]
    fn a_lost_record_is_found() {
        let (target, writing) =
            (MemoryTarget::with(Faults { lose_every: 100, ..Faults::default() }), writing(500));
        load(&target, &writing);
        let (read, unread) = read_back(&target, &writing);
        assert_eq!((read.tally.faults[&Fault::Missing], read.tally.broken(), unread), (5, 5, 0));
    }

    /// After the first load, an update that is forgotten leaves the older value: a stale read, found in passing.
    #[test]
    fn a_lost_update_is_found_in_passing_and_at_the_end() {
        let (target, writing) = (MemoryTarget::default(), writing(20));
        load(&target, &writing);
        target.set(Faults { lose_every: 1, ..Faults::default() });
        let outcome = mixed(&target, &writing, Workload::A);
        assert!(outcome.tally.faults[&Fault::Older] > 0);
        let (read, _) = read_back(&target, &writing);
        assert!(read.tally.faults[&Fault::Older] > 0);
    }

    #[test]
    fn damaged_and_exchanged_values_are_found() {
        let (target, writing) = (MemoryTarget::default(), writing(20));
        load(&target, &writing);
        target.set(Faults { damage_every: 1, ..Faults::default() });
        let outcome = mixed(&target, &writing, Workload::A);
        assert!(outcome.tally.faults[&Fault::Damaged] > 0);

        let (target, writing) = (MemoryTarget::default(), self::writing(20));
        load(&target, &writing);
        let other = record::compose(&key(3), Writer { run: 9, worker: 9 }, 9, 64);
        target.tamper(&key(3), |found| found.map(|found| Found { value: other.value, ..found }));
        let (read, _) = read_back(&target, &writing);
        assert_eq!(read.tally.faults.keys().collect::<Vec<_>>(), [&Fault::Different]);
    }

    /// Writes that failed though they were applied promise nothing, and break nothing.
    #[test]
    fn unknown_outcomes_are_neither_promises_nor_losses() {
        let faults = Faults { fail_every: Some((3, FailureKind::TimedOut)), ..Faults::default() };
        let (target, writing) = (MemoryTarget::with(faults), writing(60));
        let loaded = load(&target, &writing);
        assert!(loaded.tally.failures[&FailureKind::TimedOut].count >= 20);
        assert_eq!(loaded.tally.updates.len(), 60);
        let (read, unread) = read_back(&target, &writing);
        assert_eq!((read.tally.broken(), unread), (0, 0));
    }

    #[test]
    fn a_full_target_ends_the_phase() {
        let (target, writing) =
            (MemoryTarget::with(Faults { full_after: Some(40), ..Faults::default() }), writing(500));
        let loaded = load(&target, &writing);
        assert_eq!(loaded.early, Some(EarlyEnd::Full));
        assert_eq!(loaded.tally.updates.len(), 40);
        let (read, unread) = read_back(&target, &writing);
        assert_eq!((read.tally.broken(), unread), (0, 0), "what was acknowledged is still there");
        assert_eq!(read.tally.not_found, 460);
    }

    #[test]
    fn a_target_that_answers_nothing_is_given_up_and_proves_nothing() {
        let (target, writing) = (MemoryTarget::default(), writing(50));
        load(&target, &writing);
        target.set(Faults { reads_fail: true, ..Faults::default() });
        let (read, unread) = read_back(&target, &writing);
        assert!(matches!(read.early, Some(EarlyEnd::Hopeless(_))), "{:?}", read.early);
        assert_eq!(unread, 50);
    }
}

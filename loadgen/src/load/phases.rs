//! The three phases of a run, each a [`Job`]: load every record, send the timed traffic, read everything back.
//!
//! All three check the target's word as they go: each acknowledged write goes into the [`Books`], each read is held
//! against what had been acknowledged *before it began* (reads are linearizable, so less would be a stale read).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand_pcg::Pcg64Mcg;
use xxhash_rust::xxh3::xxh3_64;

use crate::check::books::{self, Books, Entry};
use crate::load::plan::{Next, Pace, Plan};
use crate::load::population::Population;
use crate::load::runner::{EarlyEnd, Job, Worker};
use crate::measure::outage::OutageWatch;
use crate::measure::tally::{Kind, Success};
use crate::target::{Failure, Found, Target};
use crate::workload::names::Names;
use crate::workload::record::{self, Record, Writer};
use crate::workload::{Chooser, Op, generator};

/// Numbers of the phases: part of what generators are seeded with, and of the operation numbers inside the values, so
/// that no two phases write the same bytes.
const LOAD: u32 = 0;
const TIMED: u32 = 1;

/// What writing phases have in common.
#[derive(Debug, Clone)]
pub(crate) struct Writing {
    /// Where acknowledged writes are noted.
    pub(crate) books: Arc<Books>,
    /// How records are named.
    pub(crate) names: Names,
    /// The run's number inside values.
    pub(crate) run: u32,
    /// Percent of each value that compresses away.
    pub(crate) compressible: u32,
    /// How long values live.
    pub(crate) ttl: Option<Duration>,
}

/// When an operation was due, and in which step.
#[derive(Debug, Clone, Copy)]
struct Slot {
    step: usize,
    due: Duration,
    open: bool,
    ends: Option<Duration>,
}

impl Slot {
    /// In a closed loop: due when it is sent.
    fn now<T: Target>(worker: &Worker<T>, step: usize, ends: Option<Duration>) -> Slot {
        Slot { step, due: worker.elapsed(Instant::now()), open: false, ends }
    }
}

/// A write of one record.
#[derive(Debug, Clone, Copy)]
struct Put {
    /// What it counts as.
    kind: Kind,
    record: u64,
    /// Its operation's number.
    op: u64,
    /// Bytes of the value.
    bytes: usize,
    /// When its operation began, if that was before the write.
    began: Option<Instant>,
}

/// An operation that was answered.
struct Done {
    kind: Kind,
    sent: Instant,
    ended: Instant,
    written_bytes: u64,
    records: u64,
}

/// Counts it.
fn count<T: Target>(worker: &Worker<T>, slot: Slot, done: &Done) {
    let ended = worker.elapsed(done.ended);
    let sent = worker.elapsed(done.sent);
    let success = Success {
        kind: done.kind,
        due: if slot.open { slot.due } else { sent },
        sent,
        ended,
        in_time: slot.ends.is_none_or(|ends| ended <= ends),
        open: slot.open,
        written_bytes: done.written_bytes,
        records: done.records,
    };
    worker.success(slot.step, &success);
}

impl Writing {
    /// A value for a record.
    fn compose<T>(&self, worker: &Worker<T>, key: &[u8], op: u64, bytes: usize) -> Record {
        let writer = Writer { run: self.run, worker: worker.number };
        record::compose(key, writer, op, bytes, self.compressible)
    }

    /// Enters an acknowledged write into the books.
    fn acknowledge<T: Target>(
        &self,
        worker: &Worker<T>,
        step: usize,
        record: u64,
        version: Option<u64>,
        checksum: u64,
        now: Instant,
    ) {
        match self.books.acknowledge(record, version, checksum, now) {
            Ok(()) => {}
            Err(Entry::Fault(fault)) => worker.fault(step, fault, &self.names.name(record)),
            Err(Entry::Journal(why)) => worker.stop(EarlyEnd::Hopeless(why)),
        }
    }

    /// Writes a record once; notes and counts what came of it.
    async fn put<T: Target>(&self, worker: &Worker<T>, slot: Slot, put: Put) -> Result<Done, Failure> {
        let Put { kind, record, op, bytes, began } = put;
        let key = self.names.name(record);
        let composed = self.compose(worker, &key, op, bytes);
        let sent = began.unwrap_or_else(Instant::now);
        let version = worker.target.put(&key, composed.value, self.ttl).await?;
        let ended = Instant::now();
        let done = Done { kind, sent, ended, written_bytes: (key.len() + bytes) as u64, records: 1 };
        count(worker, slot, &done);
        self.acknowledge(worker, slot.step, record, version, composed.checksum, ended);
        Ok(done)
    }

    /// Writes several records in one request.
    async fn put_batch<T: Target>(
        &self,
        worker: &Worker<T>,
        slot: Slot,
        records: &[u64],
        op: u64,
        mut bytes: impl FnMut() -> usize,
    ) -> Result<Done, Failure> {
        let mut pairs = Vec::with_capacity(records.len());
        let mut checksums = Vec::with_capacity(records.len());
        let mut written_bytes = 0;
        for record in records {
            let key = self.names.name(*record);
            let composed = self.compose(worker, &key, op, bytes());
            written_bytes += (key.len() + composed.value.len()) as u64;
            checksums.push(composed.checksum);
            pairs.push((Bytes::copy_from_slice(&key), composed.value));
        }
        let sent = Instant::now();
        let versions = worker.target.put_batch(pairs, self.ttl).await?;
        let ended = Instant::now();
        let done = Done { kind: Kind::Batch, sent, ended, written_bytes, records: records.len() as u64 };
        count(worker, slot, &done);
        for ((record, checksum), version) in records.iter().zip(checksums).zip(versions) {
            self.acknowledge(worker, slot.step, *record, version, checksum, ended);
        }
        Ok(done)
    }

    /// Reads a record once, counts it if `counted`, and holds it against the books.
    async fn get<T: Target>(
        &self,
        worker: &Worker<T>,
        slot: Slot,
        record: u64,
        counted: bool,
    ) -> Result<Done, Failure> {
        let key = self.names.name(record);
        let promised = self.books.promised(record);
        let sent = Instant::now();
        let found = worker.target.get(&key).await?;
        let done = Done { kind: Kind::Read, sent, ended: Instant::now(), written_bytes: 0, records: 1 };
        if counted {
            count(worker, slot, &done);
        }
        self.judge(worker, slot, promised, &key, found.as_ref());
        Ok(done)
    }

    fn judge<T: Target>(
        &self,
        worker: &Worker<T>,
        slot: Slot,
        promised: crate::check::ledger::Promise,
        key: &[u8],
        found: Option<&Found>,
    ) {
        match books::judge(promised, key, found) {
            Ok(true) => {}
            Ok(false) => worker.tally().not_found(slot.step),
            Err(fault) => worker.fault(slot.step, fault, key),
        }
    }

    async fn multi_get<T: Target>(
        &self,
        worker: &Worker<T>,
        slot: Slot,
        records: &[u64],
    ) -> Result<Done, Failure> {
        let keys: Vec<Bytes> =
            records.iter().map(|record| Bytes::copy_from_slice(&self.names.name(*record))).collect();
        let promised: Vec<_> = records.iter().map(|record| self.books.promised(*record)).collect();
        let sent = Instant::now();
        let found = worker.target.multi_get(&keys).await?;
        let records = records.len() as u64;
        let done = Done { kind: Kind::MultiGet, sent, ended: Instant::now(), written_bytes: 0, records };
        count(worker, slot, &done);
        for ((promised, key), found) in promised.into_iter().zip(&keys).zip(&found) {
            self.judge(worker, slot, promised, key, found.as_ref());
        }
        Ok(done)
    }

    /// Scans from a record's key on. Every row must be a value that was written to its key; which rows there should
    /// have been, only the target knows.
    async fn scan<T: Target>(
        &self,
        worker: &Worker<T>,
        slot: Slot,
        from: u64,
        rows: u32,
    ) -> Result<Done, Failure> {
        let key = self.names.name(from);
        let sent = Instant::now();
        let found = worker.target.scan(&key, rows as usize).await?;
        let records = found.len() as u64;
        let done = Done { kind: Kind::Scan, sent, ended: Instant::now(), written_bytes: 0, records };
        count(worker, slot, &done);
        for row in &found {
            if let Err(damage) = record::check(&row.key, &row.found.value) {
                worker.fault(slot.step, damage.into(), &row.key);
            }
        }
        Ok(done)
    }
}

/// The number of a worker's `nth` operation of a phase, distinct over phases.
fn op_number(phase: u32, nth: u64) -> u64 {
    u64::from(phase) << 56 | nth
}

/// Writes every record once.
#[derive(Debug)]
pub(crate) struct Load {
    writing: Writing,
    chooser: Chooser,
    seed: u64,
    records: u64,
    next: AtomicU64,
}

/// Failures in a row on one record after which a phase that needs every record gives up. With the client's own retries
/// (5 s each) that is well past any election.
const TRIES_MAX: u32 = 8;

impl Load {
    /// Loads the records 0..`records`, with values of the sizes that `chooser` draws.
    pub(crate) fn new(writing: Writing, chooser: Chooser, seed: u64, records: u64) -> Self {
        Load { writing, chooser, seed, records, next: AtomicU64::new(0) }
    }
}

impl Job for Load {
    async fn work<T: Target>(&self, worker: Worker<T>) {
        let mut rng = generator(self.seed, LOAD, worker.number);
        let mut nth = 0;
        'records: while !worker.stopped() {
            let record = self.next.fetch_add(1, Ordering::Relaxed);
            if record >= self.records {
                return;
            }
            let bytes = self.chooser.value_bytes(&mut rng);
            for streak in 0..TRIES_MAX {
                nth += 1;
                let slot = Slot::now(&worker, 0, None);
                let op = op_number(LOAD, nth);
                let put = Put { kind: Kind::Insert, record, op, bytes, began: None };
                let put = self.writing.put(&worker, slot, put);
                let failure = match put.await {
                    Ok(_) => continue 'records,
                    Err(failure) => failure,
                };
                if streak + 1 == TRIES_MAX && !failure.kind.is_final() {
                    worker.stop(EarlyEnd::Hopeless(format!(
                        "a record could not be written in {TRIES_MAX} tries, last: {}",
                        failure.message
                    )));
                }
                worker.failure(0, failure, streak).await;
                if worker.stopped() {
                    return;
                }
            }
        }
    }
}

/// A target that has answered nothing for this long is dead: going on would only count failures.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// The timed phase: operations as the workload says, when the plan says.
#[derive(Debug)]
pub(crate) struct Timed {
    /// What the writes write.
    pub(crate) writing: Writing,
    /// When.
    pub(crate) plan: Arc<Plan>,
    /// What is asked, step by step.
    pub(crate) choosers: Vec<Chooser>,
    /// Which records there are.
    pub(crate) population: Arc<Population>,
    /// Seed of the workers' generators.
    pub(crate) seed: u64,
    /// Told of every success on one record, if someone is going to be killed.
    pub(crate) watch: Option<Arc<OutageWatch>>,
    /// When an operation last succeeded, in milliseconds from the phase's start.
    pub(crate) last_success_ms: AtomicU64,
}

impl Job for Timed {
    async fn work<T: Target>(&self, worker: Worker<T>) {
        let mut rng = generator(self.seed, TIMED, worker.number);
        let mut nth = 0;
        let mut streak = 0;
        for (number, step) in self.plan.steps().iter().enumerate() {
            worker.wait_until(step.starts).await;
            let chooser = &self.choosers[number];
            while !worker.stopped() {
                let now = worker.elapsed(Instant::now());
                let due = match step.next(now) {
                    Next::Over => break,
                    Next::Begin(due) => due,
                };
                if let Some(due) = due {
                    worker.wait_until(due).await;
                    if worker.stopped() {
                        break;
                    }
                }
                let open = matches!(step.pace, Pace::Open { .. });
                let slot = Slot { step: number, due: due.unwrap_or(now), open, ends: step.ends() };
                nth += 1;
                match self.one(&worker, slot, chooser, &mut rng, op_number(TIMED, nth)).await {
                    Ok(()) => {
                        streak = 0;
                        self.note_success(&worker);
                    }
                    Err(failure) => {
                        self.give_up_on_silence(&worker, &failure);
                        worker.failure(number, failure, streak).await;
                        streak += 1;
                    }
                }
            }
        }
    }
}

impl Timed {
    fn note_success<T: Target>(&self, worker: &Worker<T>) {
        let now = worker.elapsed(Instant::now()).as_millis() as u64;
        self.last_success_ms.fetch_max(now, Ordering::Relaxed);
    }

    /// Ends the phase if nobody has had an answer for long.
    fn give_up_on_silence<T: Target>(&self, worker: &Worker<T>, failure: &Failure) {
        let last = Duration::from_millis(self.last_success_ms.load(Ordering::Relaxed));
        let silence = worker.elapsed(Instant::now()).saturating_sub(last);
        if silence > SILENCE_MAX {
            worker.stop(EarlyEnd::Hopeless(format!(
                "no operation has succeeded for {:.0} s, last: {}",
                silence.as_secs_f64(),
                failure.message
            )));
        }
    }

    /// One operation.
    async fn one<T: Target>(
        &self,
        worker: &Worker<T>,
        slot: Slot,
        chooser: &Chooser,
        rng: &mut Pcg64Mcg,
        number: u64,
    ) -> Result<(), Failure> {
        let writing = &self.writing;
        let op = chooser.next(rng, self.population.known());
        let (record, done) = match op {
            Op::Read(record) => (record, writing.get(worker, slot, record, true).await?),
            Op::Update(record) => {
                let bytes = chooser.value_bytes(rng);
                let put = Put { kind: Kind::Update, record, op: number, bytes, began: None };
                let put = writing.put(worker, slot, put);
                (record, put.await?)
            }
            Op::Insert => {
                let record = self.population.begin();
                let bytes = chooser.value_bytes(rng);
                let put = Put { kind: Kind::Insert, record, op: number, bytes, began: None };
                let put = writing.put(worker, slot, put).await;
                // A failed insert is not tried again: its number is used up, and nothing was promised of it.
                self.population.done(record);
                (record, put?)
            }
            Op::ReadModifyWrite(record) => {
                let bytes = chooser.value_bytes(rng);
                let read = writing.get(worker, slot, record, false).await?;
                let began = Some(read.sent);
                let put = Put { kind: Kind::ReadModifyWrite, record, op: number, bytes, began };
                let put = writing.put(worker, slot, put);
                (record, put.await?)
            }
            Op::Scan { from, rows } => return writing.scan(worker, slot, from, rows).await.map(drop),
            Op::MultiGet(count) => {
                let records = several(chooser, rng, self.population.known(), count);
                return writing.multi_get(worker, slot, &records).await.map(drop);
            }
            Op::Batch(count) => {
                let records = several(chooser, rng, self.population.known(), count);
                let bytes = || chooser.value_bytes(rng);
                return writing.put_batch(worker, slot, &records, number, bytes).await.map(drop);
            }
        };
        if let Some(watch) = &self.watch {
            watch.success(done.sent, done.ended, || xxh3_64(&writing.names.name(record)));
        }
        Ok(())
    }
}

/// The records of a multi-get or a batch.
fn several(chooser: &Chooser, rng: &mut Pcg64Mcg, known: u64, count: u32) -> Vec<u64> {
    let mut records = Vec::with_capacity(count as usize);
    chooser.records(rng, known, count, &mut records);
    records
}

/// Reads the records `first`..`end` and holds them against the books. What cannot be read is counted too: unread is
/// unproven.
#[derive(Debug)]
pub(crate) struct ReadBack {
    writing: Writing,
    end: u64,
    next: AtomicU64,
    unread: AtomicU64,
}

impl ReadBack {
    /// Reads back these records.
    pub(crate) fn new(writing: Writing, first: u64, end: u64) -> Self {
        ReadBack { writing, end, next: AtomicU64::new(first), unread: AtomicU64::new(0) }
    }

    /// Records that could not be read; complete when the phase has ended.
    pub(crate) fn unread(&self) -> u64 {
        let begun = self.next.load(Ordering::Acquire).min(self.end);
        self.unread.load(Ordering::Acquire) + (self.end - begun)
    }
}

impl Job for ReadBack {
    async fn work<T: Target>(&self, worker: Worker<T>) {
        'records: while !worker.stopped() {
            let record = self.next.fetch_add(1, Ordering::AcqRel);
            if record >= self.end {
                return;
            }
            for streak in 0..TRIES_MAX {
                let slot = Slot::now(&worker, 0, None);
                match self.writing.get(&worker, slot, record, true).await {
                    Ok(_) => continue 'records,
                    Err(failure) => worker.failure(0, failure, streak).await,
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
    use crate::check::ledger::Ledger;
    use crate::load::plan::{Bound, Outline};
    use crate::load::runner::Outcome;
    use crate::load::runner::testing::{run, shape};
    use crate::measure::tally::{Counts, Fault};
    use crate::target::FailureKind;
    use crate::target::memory::{Faults, MemoryTarget};
    use crate::workload::spec::Spec;

    fn spec(toml: &str) -> Spec {
        match toml {
            name if name.len() == 1 => Spec::named_or_file(name).unwrap(),
            toml => Spec::parse(toml, "test").unwrap(),
        }
    }

    fn writing(records: u64) -> Writing {
        let books = Books { ledger: Some(Ledger::new(0, records)), journal: None };
        Writing { books: Arc::new(books), names: Names::default(), run: 1, compressible: 0, ttl: None }
    }

    fn all(outcome: &Outcome) -> Counts {
        outcome.tally.total(|_| true)
    }

    fn load(target: &MemoryTarget, writing: &Writing, records: u64) -> Outcome {
        let spec = spec("[mix]\nread = 1.0\n[values]\nbytes = 64");
        let job = Load::new(writing.clone(), Chooser::new(&spec, records), 1, records);
        run(&shape(2, 6), target, &Arc::new(job)).unwrap()
    }

    fn read_back(target: &MemoryTarget, writing: &Writing, records: u64) -> (Counts, Outcome, u64) {
        let job = Arc::new(ReadBack::new(writing.clone(), 0, records));
        let outcome = run(&shape(2, 6), target, &job).unwrap();
        (all(&outcome), outcome, job.unread())
    }

    fn operations(total: u64) -> Vec<Outline> {
        let bound = Bound::Operations(total);
        vec![Outline { name: "run".into(), bound, pace: Pace::Closed, workload: None }]
    }

    fn timed(
        target: &MemoryTarget,
        writing: &Writing,
        spec: &Spec,
        records: u64,
        outlines: Vec<Outline>,
    ) -> (Outcome, Arc<Timed>) {
        let plan = Arc::new(Plan::new(Duration::ZERO, outlines));
        let choosers = plan
            .steps()
            .iter()
            .map(|step| Chooser::new(step.workload.as_ref().unwrap_or(spec), records))
            .collect();
        let job = Arc::new(Timed {
            writing: writing.clone(),
            plan,
            choosers,
            population: Arc::new(Population::new(records)),
            seed: 1,
            watch: None,
            last_success_ms: AtomicU64::new(0),
        });
        (run(&shape(2, 6), target, &job).unwrap(), job)
    }

    fn count(counts: &Counts, kind: Kind) -> u64 {
        counts.latencies.get(kind).map_or(0, |histogram| histogram.len())
    }

    #[test]
    fn a_faithful_target_passes() {
        let (target, writing) = (MemoryTarget::default(), writing(500));
        let loaded = all(&load(&target, &writing, 500));
        assert_eq!((count(&loaded, Kind::Insert), target.len()), (500, 500));
        assert_eq!(loaded.written_bytes, 500 * (24 + 64));
        let (outcome, _) = timed(&target, &writing, &spec("a"), 500, operations(2_000));
        let counts = all(&outcome);
        assert_eq!(counts.operations(), 2_000);
        assert!(count(&counts, Kind::Read) > 900 && count(&counts, Kind::Update) > 900);
        assert_eq!((counts.broken(), counts.failed(), outcome.early), (0, 0, None));
        let (read, _, unread) = read_back(&target, &writing, 500);
        assert_eq!((count(&read, Kind::Read), read.broken(), unread), (500, 0, 0));
    }

    /// Every kind of operation does what it says: what was inserted is found, what was read and then written counts
    /// once, scans, multi-gets and batches count their records.
    #[test]
    fn every_kind_of_operation_keeps_its_promises() {
        let mix = "[mix]\nread = 0.2\nupdate = 0.1\ninsert = 0.2\nscan = 0.1\nread_modify_write = 0.2\n\
                   multi_get = 0.1\nbatch = 0.1\n[keys]\ndistribution = \"latest\"\n[values]\nbytes = 40\n\
                   [scan]\nrows = 5\ndistribution = \"fixed\"\n[multi_get]\nrecords = 3\n[batch]\nrecords = 4";
        let (target, writing) = (MemoryTarget::default(), writing(100));
        load(&target, &writing, 100);
        let (outcome, job) = timed(&target, &writing, &spec(mix), 100, operations(3_000));
        let counts = all(&outcome);
        assert_eq!(
            (counts.operations(), counts.broken(), counts.failed(), counts.not_found),
            (3_000, 0, 0, 0)
        );
        for kind in Kind::ALL {
            assert!(count(&counts, kind) > 200, "{kind:?}: {}", count(&counts, kind));
        }
        let inserted = count(&counts, Kind::Insert);
        assert_eq!((target.len() as u64, job.population.known()), (100 + inserted, 100 + inserted));
        let batches = count(&counts, Kind::Batch);
        let puts = inserted + count(&counts, Kind::Update) + count(&counts, Kind::ReadModifyWrite);
        assert_eq!(counts.written_bytes, (puts + 4 * batches) * (24 + 40));
        let multi_gets = count(&counts, Kind::MultiGet);
        let single = puts + count(&counts, Kind::Read);
        let scanned = counts.records - single - 4 * batches - 3 * multi_gets;
        assert!(scanned > 0 && scanned <= 5 * count(&counts, Kind::Scan));
        let (read, _, unread) = read_back(&target, &writing, 100 + inserted);
        assert_eq!((read.broken(), read.not_found, unread), (0, 0, 0));
    }

    #[test]
    fn a_lost_record_is_found() {
        let (target, writing) =
            (MemoryTarget::with(Faults { lose_every: 100, ..Faults::default() }), writing(500));
        load(&target, &writing, 500);
        let (read, _, unread) = read_back(&target, &writing, 500);
        assert_eq!((read.faults[&Fault::Missing], read.broken(), unread), (5, 5, 0));
    }

    /// After the first load, an update that is forgotten leaves the older value: a stale read, found in passing.
    #[test]
    fn a_lost_update_is_found_in_passing_and_at_the_end() {
        let (target, writing) = (MemoryTarget::default(), writing(20));
        load(&target, &writing, 20);
        target.set(Faults { lose_every: 1, ..Faults::default() });
        let (outcome, _) = timed(&target, &writing, &spec("a"), 20, operations(500));
        assert!(all(&outcome).faults[&Fault::Older] > 0);
        let (read, ..) = read_back(&target, &writing, 20);
        assert!(read.faults[&Fault::Older] > 0);
    }

    #[test]
    fn damaged_and_exchanged_values_are_found() {
        let (target, writing) = (MemoryTarget::default(), writing(20));
        load(&target, &writing, 20);
        target.set(Faults { damage_every: 1, ..Faults::default() });
        let (outcome, _) = timed(&target, &writing, &spec("a"), 20, operations(500));
        assert!(all(&outcome).faults[&Fault::Damaged] > 0);

        let (target, writing) = (MemoryTarget::default(), self::writing(20));
        load(&target, &writing, 20);
        let key = writing.names.name(3);
        let other = record::compose(&key, Writer { run: 9, worker: 9 }, 9, 64, 0);
        target.tamper(&key, |found| found.map(|found| Found { value: other.value, ..found }));
        let (read, ..) = read_back(&target, &writing, 20);
        assert_eq!(read.faults.keys().collect::<Vec<_>>(), [&Fault::Different]);
    }

    /// Writes that failed though they were applied promise nothing, and break nothing.
    #[test]
    fn unknown_outcomes_are_neither_promises_nor_losses() {
        let faults = Faults { fail_every: Some((3, FailureKind::TimedOut)), ..Faults::default() };
        let (target, writing) = (MemoryTarget::with(faults), writing(60));
        let loaded = all(&load(&target, &writing, 60));
        assert!(loaded.failures[&FailureKind::TimedOut].count >= 20);
        assert_eq!(loaded.operations(), 60);
        let (read, _, unread) = read_back(&target, &writing, 60);
        assert_eq!((read.broken(), unread), (0, 0));
    }

    #[test]
    fn a_full_target_ends_the_phase() {
        let (target, writing) =
            (MemoryTarget::with(Faults { full_after: Some(40), ..Faults::default() }), writing(500));
        let loaded = load(&target, &writing, 500);
        assert_eq!(loaded.early, Some(EarlyEnd::Full));
        assert_eq!(all(&loaded).operations(), 40);
        let (read, _, unread) = read_back(&target, &writing, 500);
        assert_eq!((read.broken(), unread), (0, 0), "what was acknowledged is still there");
        assert_eq!(read.not_found, 460);
    }

    #[test]
    fn a_target_that_answers_nothing_is_given_up_and_proves_nothing() {
        let (target, writing) = (MemoryTarget::default(), writing(50));
        load(&target, &writing, 50);
        target.set(Faults { reads_fail: true, ..Faults::default() });
        let (_, outcome, unread) = read_back(&target, &writing, 50);
        assert!(matches!(outcome.early, Some(EarlyEnd::Hopeless(_))), "{:?}", outcome.early);
        assert_eq!(unread, 50);
    }

    /// Steps take their turns, each with its own workload; what is sent is what was due, no more and no earlier.
    #[test]
    fn steps_are_kept() {
        let (target, writing) = (MemoryTarget::default(), writing(50));
        load(&target, &writing, 50);
        let outlines = crate::load::plan::parse_profile("c:500@0.2,w:1000@0.2").unwrap();
        let (outcome, job) = timed(&target, &writing, &spec("a"), 50, outlines);
        let [first, second] = [0, 1].map(|step| outcome.tally.step(step));
        assert_eq!((count(&first, Kind::Read), count(&first, Kind::Update)), (first.operations(), 0));
        assert_eq!((count(&second, Kind::Read), count(&second, Kind::Update)), (0, second.operations()));
        let steps = job.plan.steps();
        assert_eq!(first.operations() + steps[0].unsent(), 100);
        assert_eq!(second.operations() + steps[1].unsent(), 200);
        assert_eq!(first.lag.as_ref().unwrap().len(), first.operations());
    }

    /// The heart of the open loop: one answer that takes long makes all that was due meanwhile late, and their
    /// latencies say so, though each was answered at once when it was sent.
    #[test]
    fn a_stall_is_charged_to_all_that_was_due_meanwhile() {
        let (target, writing) = (MemoryTarget::default(), writing(50));
        load(&target, &writing, 50);
        let stall = Duration::from_millis(200);
        target.set(Faults { stall_once: Some(stall), ..Faults::default() });
        let outlines = crate::load::plan::parse_profile("c:1000@0.5").unwrap();
        let plan = Arc::new(Plan::new(Duration::ZERO, outlines));
        let job = Arc::new(Timed {
            writing: writing.clone(),
            plan,
            choosers: vec![Chooser::new(&spec("c"), 50)],
            population: Arc::new(Population::new(50)),
            seed: 1,
            watch: None,
            last_success_ms: AtomicU64::new(0),
        });
        // A single worker: while it waits, nobody else sends what is due.
        let outcome = run(&shape(1, 1), &target, &job).unwrap();
        let counts = all(&outcome);
        let reads = counts.latencies.get(Kind::Read).unwrap();
        let late = reads.len() - reads.count_between(0, stall.as_nanos() as u64 / 2);
        // About a hundred were due in the first half of the stall; a closed loop would have seen a single slow one.
        assert!(late >= 50, "{late} of {}", reads.len());
    }
}

//! One run against one target: its phases in order, each with what it cost the target and ourselves, second by second.
//!
//! Commands differ in where the target comes from and in what happens to it; what is sent, counted and checked is here,
//! once.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant, SystemTime, SystemTimeError, UNIX_EPOCH};

use anyhow::{Context, bail};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use tokio::sync::{Notify, oneshot};

use crate::check::books::Books;
use crate::interrupt::Interrupt;
use crate::load::phases::{Load, ReadBack, Timed, Writing};
use crate::load::plan::{Bound, Plan};
use crate::load::population::Population;
use crate::load::runner::{Crew, EarlyEnd, Job, Outcome, Phase, Shape};
use crate::measure::meter::{Meter, Used, sum};
use crate::measure::outage::OutageWatch;
use crate::measure::tally::Recent;
use crate::measure::timeline::Second;
use crate::report::hlog::Log;
use crate::report::progress::{Goal, Live, Shown};
use crate::target::{Ability, Connect};
use crate::workload::spec::Spec;
use crate::workload::{Chooser, mix};

/// How often a phase is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// How long a node's counters are waited for at the end of a phase, and how often they are asked for meanwhile.
const COUNTERS_LIMIT: Duration = Duration::from_secs(5);
const COUNTERS_PAUSE: Duration = Duration::from_millis(100);

/// The load generator was not run for this long: its own latencies are then no one else's.
const STANDSTILL: Duration = Duration::from_millis(1_000);

/// How far the wall clock may drift from the monotonic one within a phase before it is worth a word.
const CLOCK_JUMP: Duration = Duration::from_secs(1);

/// What a session is about.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    /// The workload.
    pub(crate) spec: Spec,
    /// Records that are loaded.
    pub(crate) records: u64,
    /// Seed of the operations' order.
    pub(crate) seed: u64,
    /// Threads, connections, workers.
    pub(crate) shape: Shape,
}

/// A run under way.
pub(crate) struct Session<C: Connect> {
    subject: Subject,
    connect: C,
    crew: Crew<C>,
    writing: Writing,
    population: Arc<Population>,
    interrupt: Interrupt,
}

/// A phase's numbers.
pub(crate) struct Measured {
    /// What the workers counted.
    pub(crate) outcome: Outcome,
    /// What each node used.
    pub(crate) used: BTreeMap<u64, Used>,
    /// Our own CPU time (an embedded target's is part of it).
    pub(crate) client_cpu: Duration,
    /// Second by second.
    pub(crate) timeline: Vec<Second>,
    /// What makes the numbers doubtful.
    pub(crate) warnings: Vec<String>,
    /// How long the store then took to settle.
    pub(crate) settled: Duration,
}

impl Measured {
    /// Why the phase ended early, if it did.
    pub(crate) fn early(&self) -> Option<&EarlyEnd> {
        self.outcome.early.as_ref()
    }
}

impl<C: Connect> Session<C> {
    /// Connects. Refuses a workload that needs what the target cannot do.
    pub(crate) async fn begin(
        subject: Subject,
        connect: C,
        books: Books,
        interrupt: Interrupt,
    ) -> anyhow::Result<Session<C>> {
        supported(&connect, &subject.spec)?;
        let names = subject.spec.names();
        let writing = Writing {
            books: Arc::new(books),
            names,
            run: run_number(),
            compressible: subject.spec.values.compressible,
            ttl: subject.spec.ttl(),
        };
        let crew = interrupt.or_interrupted(Crew::start(&subject.shape, &connect)).await?;
        let population = Arc::new(Population::new(subject.records));
        Ok(Session { subject, connect, crew, writing, population, interrupt })
    }

    /// What was acknowledged so far.
    pub(crate) fn books(&self) -> &Arc<Books> {
        &self.writing.books
    }

    /// Records that were loaded or inserted, answered or not.
    pub(crate) fn records(&self) -> u64 {
        self.population.begun()
    }

    /// Writes every record once, and lets the store settle: what that costs belongs to loading.
    pub(crate) async fn load(&self) -> anyhow::Result<Measured> {
        let records = self.subject.records;
        let goal = Goal::Operations(records);
        let chooser = Chooser::new(&self.subject.spec, records);
        let job = Load::new(self.writing.clone(), chooser, self.subject.seed, records);
        let meter = RefCell::new(Meter::default());
        let live = Live::new("load", goal);
        let mut loaded =
            self.measured(&Arc::new(job), goal, None, &live, &meter, None, async |_| Ok(())).await?;
        self.settle(&mut loaded, &meter).await;
        Ok(loaded)
    }

    /// Lets the store finish what the phase left over: what that uses belongs to the phase, though not to its
    /// throughput. What goes wrong ends the run; the phase's numbers stay.
    async fn settle(&self, phase: &mut Measured, meter: &RefCell<Meter>) {
        if phase.early().is_some() {
            return;
        }
        let begun = Instant::now();
        let connect = self.connect.clone();
        let (done, settled) = oneshot::channel();
        // A thread of its own: one of the runtime's would be waited for at the end, however long a store takes.
        let settling = std::thread::Builder::new().name("settle".to_owned()).spawn(move || {
            // Nobody listens any more if the run was interrupted.
            let _ = done.send(connect.settle());
        });
        let settled = async {
            settling.context("cannot start a thread")?;
            settled.await.context("the thread that waits for the store ended without a word")?
        };
        tokio::select! {
            settled = settled => if let Err(error) = settled {
                phase.outcome.early = Some(EarlyEnd::Hopeless(format!("the store did not settle: {error:#}")));
            },
            () = self.interrupt.raised() => phase.outcome.early = Some(EarlyEnd::Interrupted),
        }
        phase.settled = begun.elapsed();
        self.look(meter).await;
        phase.used = meter.borrow().used();
    }

    /// Sends the workload as planned. While it runs, `meanwhile` may do things to the target; it is given the phase's
    /// clock and is waited for. The counters are looked at through `meter`, so that it can add looks of its own.
    pub(crate) async fn timed(
        &self,
        plan: &Arc<Plan>,
        watch: Option<Arc<OutageWatch>>,
        live: &Live,
        meter: &RefCell<Meter>,
        log: Option<&mut Log>,
        meanwhile: impl AsyncFnOnce(PhaseClock) -> anyhow::Result<()>,
    ) -> anyhow::Result<Measured> {
        let mut choosers = Vec::new();
        for step in plan.steps() {
            let spec = step.workload.as_ref().unwrap_or(&self.subject.spec);
            supported(&self.connect, spec)?;
            choosers.push(Chooser::new(spec, self.subject.records));
        }
        let job = Timed {
            writing: self.writing.clone(),
            plan: plan.clone(),
            choosers,
            population: self.population.clone(),
            seed: self.subject.seed,
            watch,
            last_success_ms: AtomicU64::new(0),
        };
        let mut timed =
            self.measured(&Arc::new(job), goal(plan), Some(plan), live, meter, log, meanwhile).await?;
        self.settle(&mut timed, meter).await;
        Ok(timed)
    }

    /// Reads the records `first`..`end` back and holds them against what was acknowledged; gives how many could not be
    /// read.
    pub(crate) async fn read_back(&self, first: u64, end: u64) -> anyhow::Result<(Measured, u64)> {
        let goal = Goal::Operations(end - first);
        let job = Arc::new(ReadBack::new(self.writing.clone(), first, end));
        let live = Live::new("read back", goal);
        let meter = RefCell::new(Meter::default());
        let measured = self.measured(&job, goal, None, &live, &meter, None, async |_| Ok(())).await?;
        Ok((measured, job.unread()))
    }

    /// The same session with other books: for checking in pieces.
    pub(crate) fn with_books(&mut self, books: Books) {
        self.writing.books = Arc::new(books);
    }

    /// Closes what was connected, in order.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        self.crew.stop().context("closing the target")
    }

    /// Runs a phase between two looks at the counters.
    #[expect(clippy::too_many_arguments, reason = "what the phases differ in")]
    async fn measured<J: Job>(
        &self,
        job: &Arc<J>,
        goal: Goal,
        plan: Option<&Plan>,
        live: &Live,
        meter: &RefCell<Meter>,
        log: Option<&mut Log>,
        meanwhile: impl AsyncFnOnce(PhaseClock) -> anyhow::Result<()>,
    ) -> anyhow::Result<Measured> {
        self.look(meter).await;
        let cpu_before = own_cpu();
        let phase = self.crew.begin(job);
        let ended = Rc::new(Notify::new());
        let clock = PhaseClock { started: tokio::time::Instant::now(), ended: ended.clone() };
        let mut diary = Diary::new(log);
        let follow = async {
            self.follow(&phase, goal, plan, live, meter, &mut diary).await;
            ended.notify_one();
            Ok(())
        };
        tokio::try_join!(follow, meanwhile(clock))?;
        live.clear();
        let outcome = phase.join()?;
        let client_cpu = own_cpu().saturating_sub(cpu_before);
        self.look(meter).await;
        let used = meter.borrow().used();
        // The last second was written before the last look.
        diary.cost(&used);
        Ok(Measured {
            outcome,
            used,
            client_cpu,
            timeline: diary.timeline,
            warnings: diary.warnings,
            settled: Duration::ZERO,
        })
    }

    /// Watches a phase to its end.
    async fn follow(
        &self,
        phase: &Phase<'_>,
        goal: Goal,
        plan: Option<&Plan>,
        live: &Live,
        meter: &RefCell<Meter>,
        diary: &mut Diary<'_>,
    ) {
        let mut shown = Shown::new(goal);
        let mut recent = Recent::new();
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let waiting = Instant::now();
            tokio::select! {
                _ = looks.tick() => {}
                () = self.interrupt.raised() => phase.stop(EarlyEnd::Interrupted),
            }
            if self.interrupt.is_raised() {
                // The tick is what the loop waits for from here on.
                looks.tick().await;
            }
            let finished = phase.finished();
            let elapsed = phase.elapsed();
            diary.stood_still(elapsed, waiting.elapsed());
            recent.clear();
            phase.glance(&mut recent);
            let step = plan.map_or("", |plan| plan.at(elapsed));
            live.show(&mut shown, elapsed, step, &recent);
            diary.recent.add(&recent);
            // A step's end ends the second too, so that each belongs to one step.
            let crossed = plan.is_some_and(|plan| !plan.same_step(diary.written, elapsed));
            if diary.is_due(elapsed) || crossed || finished {
                // The last look comes when all is over, and goes into the last second.
                let looks = if finished { Vec::new() } else { self.connect.looks().await };
                for (node, look) in looks {
                    meter.borrow_mut().look(node, look);
                }
                let begun = diary.written;
                let step = plan.map_or("", |plan| plan.at(begun));
                let measured = plan.is_none_or(|plan| plan.is_measured(begun));
                diary.write(elapsed, step, measured, &meter.borrow().used());
                if let Some(why) = diary.unlogged.take() {
                    // As with the record: what was measured until now is told.
                    phase.stop(EarlyEnd::Hopeless(why));
                }
            }
            if finished {
                return;
            }
        }
    }

    /// Looks at all nodes' counters. One that was looked at before and does not answer now (it was just started
    /// again) is waited for; in the end its absence shows in the report.
    async fn look(&self, meter: &RefCell<Meter>) {
        let begun = tokio::time::Instant::now();
        loop {
            let looks = self.connect.looks().await;
            let expected = meter.borrow().nodes();
            let missing = expected.iter().any(|node| looks.iter().all(|(known, _)| known != node));
            if !missing || begun.elapsed() >= COUNTERS_LIMIT || self.interrupt.is_raised() {
                let mut meter = meter.borrow_mut();
                return looks.into_iter().for_each(|(node, look)| meter.look(node, look));
            }
            tokio::time::sleep(COUNTERS_PAUSE).await;
        }
    }
}

/// How far the timed phase goes.
pub(crate) fn goal(plan: &Plan) -> Goal {
    match (plan.length(), plan.steps().last().map(|step| step.bound)) {
        (None, Some(Bound::Operations(operations))) => Goal::Operations(operations),
        (length, _) => Goal::Time(length.unwrap_or_default()),
    }
}

/// Refuses a workload that asks for what the target cannot do.
pub(crate) fn supported<C: Connect>(connect: &C, spec: &Spec) -> anyhow::Result<()> {
    let missing: Vec<String> = spec
        .needs()
        .into_iter()
        .filter(|need| !connect.can(*need))
        .map(|need: Ability| need.to_string())
        .collect();
    if !missing.is_empty() {
        bail!(
            "unsupported: workload '{}' needs {}, which this target cannot do",
            spec.name,
            missing.join(", ")
        );
    }
    Ok(())
}

/// What is written down of a phase while it runs.
struct Diary<'a> {
    started: Instant,
    wall: SystemTime,
    recent: Recent,
    written: Duration,
    /// Bytes of keys and values acknowledged so far.
    user_bytes: u64,
    timeline: Vec<Second>,
    warnings: Vec<String>,
    log: Option<&'a mut Log>,
    /// Why the log takes no more.
    unlogged: Option<String>,
}

impl<'a> Diary<'a> {
    fn new(log: Option<&'a mut Log>) -> Self {
        Diary {
            started: Instant::now(),
            wall: SystemTime::now(),
            recent: Recent::new(),
            written: Duration::ZERO,
            user_bytes: 0,
            timeline: Vec::new(),
            warnings: Vec::new(),
            log,
            unlogged: None,
        }
    }

    /// Whether a second is full.
    fn is_due(&self, elapsed: Duration) -> bool {
        elapsed.saturating_sub(self.written) >= Duration::from_secs(1)
    }

    /// Notes the second that ends now.
    fn write(&mut self, elapsed: Duration, step: &str, measured: bool, used: &BTreeMap<u64, Used>) {
        let length = elapsed.saturating_sub(self.written);
        if length.is_zero() {
            return;
        }
        let (reads, writes) = (&self.recent.reads, &self.recent.writes);
        let us = |histogram: &hdrhistogram::Histogram<u64>, quantile| {
            (!histogram.is_empty()).then(|| histogram.value_at_quantile(quantile) as f64 / 1e3)
        };
        self.user_bytes += self.recent.written_bytes;
        let second = Second {
            at_seconds: elapsed.as_secs_f64(),
            seconds: length.as_secs_f64(),
            step: step.to_owned(),
            operations: self.recent.operations(),
            failed: self.recent.failed,
            reads: reads.len(),
            writes: writes.len(),
            read_p50_us: us(reads, 0.5),
            read_p99_us: us(reads, 0.99),
            write_p50_us: us(writes, 0.5),
            write_p99_us: us(writes, 0.99),
            device_written_bytes: None,
            user_bytes: None,
            cpu_seconds: None,
            resident_bytes: None,
        };
        if let Some(log) = self.log.take_if(|_| measured) {
            let logged = log
                .interval("read", self.written, length, reads)
                .and_then(|()| log.interval("write", self.written, length, writes));
            match logged {
                Ok(()) => self.log = Some(log),
                Err(error) => self.unlogged = Some(format!("{error:#}")),
            }
        }
        self.timeline.push(second);
        self.cost(used);
        self.recent.clear();
        self.written = elapsed;
        let drift = drift(self.wall.elapsed(), self.started.elapsed());
        if drift > CLOCK_JUMP {
            self.warnings.push(format!(
                "the wall clock jumped by {:.1} s at {:.0} s: times of day are off, latencies are not (they go by the monotonic clock)",
                drift.as_secs_f64(),
                elapsed.as_secs_f64()
            ));
            // Once for each jump.
            (self.wall, self.started) = (SystemTime::now(), Instant::now());
        }
    }

    /// Notes on the last second what all has cost by its end.
    fn cost(&mut self, used: &BTreeMap<u64, Used>) {
        let Some(second) = self.timeline.last_mut() else { return };
        second.device_written_bytes =
            sum(used.values(), |used| used.counters.device_written_bytes.or(used.counters.proc_write_bytes));
        // Where the nodes count the user's bytes, each replica's count is in the sum, as its writes are.
        second.user_bytes = sum(used.values(), |used| used.counters.user_bytes.or(Some(self.user_bytes)));
        second.cpu_seconds = sum(used.values(), |used| used.counters.cpu_us).map(|us| us as f64 / 1e6);
        second.resident_bytes = sum(used.values(), |used| used.gauges.resident_bytes);
    }

    /// Notes that the load generator itself was not run for a while.
    fn stood_still(&mut self, elapsed: Duration, gap: Duration) {
        if gap >= STANDSTILL {
            self.warnings.push(format!(
                "the load generator stood still for {:.1} s at {:.0} s (suspended, or the machine was overloaded): latencies of that moment are its own",
                gap.as_secs_f64(),
                elapsed.as_secs_f64()
            ));
        }
    }
}

/// How far apart two clocks have run; the wall clock may be before its start.
fn drift(wall: Result<Duration, SystemTimeError>, monotonic: Duration) -> Duration {
    match wall {
        Ok(wall) => wall.abs_diff(monotonic),
        Err(before) => before.duration() + monotonic,
    }
}

/// The clock of a phase, for whoever does things while it runs.
#[derive(Clone)]
pub(crate) struct PhaseClock {
    started: tokio::time::Instant,
    ended: Rc<Notify>,
}

impl PhaseClock {
    /// How long the phase has been going on.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Waits until `at` from the phase's start; false if the phase ended first.
    pub(crate) async fn wait_until(&self, at: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep_until(self.started + at) => true,
            () = self.ended.notified() => false,
        }
    }
}

/// Begins an HdrHistogram log, if one is asked for.
pub(crate) fn begin_log(path: Option<&Path>) -> anyhow::Result<Option<Log>> {
    path.map(|path| Log::create(path, SystemTime::now())).transpose()
}

/// A number that tells this process's values from those of other runs over the same data.
fn run_number() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    mix(now ^ u64::from(std::process::id())) as u32
}

/// User and system time of this process so far.
fn own_cpu() -> Duration {
    let duration = |time: TimeVal| {
        Duration::from_secs(time.tv_sec().max(0) as u64) + Duration::from_micros(time.tv_usec().max(0) as u64)
    };
    match getrusage(UsageWho::RUSAGE_SELF) {
        Ok(usage) => duration(usage.user_time()) + duration(usage.system_time()),
        Err(errno) => unreachable!("asking for our own usage cannot fail: {errno}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A jump back was told as half an eternity.
    #[test]
    fn a_wall_clock_that_jumps_is_said_once_and_by_how_much() {
        const JUMP: Duration = Duration::from_secs(100);
        let mut diary = Diary::new(None);
        for (jump, wall) in [("ahead", SystemTime::now() - JUMP), ("back", SystemTime::now() + JUMP)] {
            diary.wall = wall;
            for _ in 0..2 {
                diary.write(diary.written + Duration::from_secs(1), "", true, &BTreeMap::new());
            }
            let warnings = std::mem::take(&mut diary.warnings);
            assert_eq!(warnings.len(), 1, "{jump}: {warnings:?}");
            // The test itself may be held up.
            let by =
                warnings[0].strip_prefix("the wall clock jumped by ").unwrap().split(' ').next().unwrap();
            assert!((99.0..110.0).contains(&by.parse::<f64>().unwrap()), "{jump}: {warnings:?}");
        }
    }

    #[test]
    fn a_load_generator_that_stood_still_says_so() {
        let mut diary = Diary::new(None);
        diary.stood_still(Duration::from_secs(9), STANDSTILL - Duration::from_millis(1));
        assert_eq!(diary.warnings, [""; 0]);
        diary.stood_still(Duration::from_secs(9), Duration::from_secs(2));
        assert!(diary.warnings[0].contains("stood still for 2.0 s at 9 s"), "{:?}", diary.warnings);
    }
}

//! The crew: workers, each with one operation in flight, spread over connections and threads.
//!
//! ```text
//! thread 0 ── connection 0 ── workers 0 .. pipeline        one worker = one operation in flight
//!          └─ connection 2 ── workers ..
//! thread 1 ── connection 1 ── workers ..
//! ```
//!
//! The threads live as long as the crew, and with them the connections: phases are sent to them one after another, so
//! that caches are warm and embedded stores stay open. Each thread runs on the runtime that its target brings
//! ([`Connect::host`]); its workers are polled together in one task.
//!
//! Invariants: the clock of a phase starts after every thread has connected, and at the same moment for all; a phase
//! is over when every worker of every thread is, or when a thread failed, and then its error says why.

use std::cell::RefCell;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use futures_util::stream::{FuturesUnordered, StreamExt};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use tokio::sync::oneshot;

use crate::measure::tally::{Fault, Recent, Success, Tally};
use crate::target::{Connect, Failure, FailureKind, Seat, Target};

/// How many workers, over how many connections, on how many threads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Operating system threads, at least 1. Targets whose calls block get one for each worker instead.
    pub(crate) threads: u32,
    /// Connections, at least 1; at least one a thread is opened.
    pub(crate) connections: u32,
    /// Workers in all, at least 1.
    pub(crate) workers: u32,
    /// The CPUs that threads are pinned to, in turn; empty: they are not.
    pub(crate) cpus: Vec<usize>,
}

/// What one thread is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Share {
    /// Connections.
    connections: u32,
    /// Workers' numbers, each with the number of its connection within the thread.
    workers: Vec<(u32, usize)>,
}

impl Shape {
    /// The threads' shares. Worker w uses connection w mod connections, connection c lives on thread c mod threads.
    fn shares(&self, blocks: bool) -> Vec<Share> {
        let (threads, connections) = match blocks {
            true => (self.workers, self.workers),
            false => (self.threads, self.connections.max(self.threads)),
        };
        (0..threads)
            .map(|thread| Share {
                connections: (thread..connections).step_by(threads as usize).count() as u32,
                workers: (0..self.workers)
                    .filter(|worker| worker % connections % threads == thread)
                    .map(|worker| (worker, (worker % connections / threads) as usize))
                    .collect(),
            })
            .collect()
    }
}

/// What every worker of a phase does until its work is done or [`Worker::stopped`].
pub(crate) trait Job: Send + Sync + 'static {
    /// One worker's whole phase.
    async fn work<T: Target>(&self, worker: Worker<T>);
}

/// Why a phase ended before its work was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EarlyEnd {
    /// The one who started the phase asked for it.
    Asked,
    /// Someone pressed Ctrl-C, or the like.
    Interrupted,
    /// The target's space is used up.
    Full,
    /// Going on makes no sense, for this reason.
    Hopeless(String),
}

impl fmt::Display for EarlyEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EarlyEnd::Asked => f.write_str("it was told to stop"),
            EarlyEnd::Interrupted => f.write_str("it was interrupted"),
            EarlyEnd::Full => f.write_str("the target's space is used up"),
            EarlyEnd::Hopeless(why) => f.write_str(why),
        }
    }
}

/// Shared by all workers of a phase: the way to end it.
#[derive(Debug, Default)]
struct Stop {
    set: AtomicBool,
    /// Why, and since when.
    reason: Mutex<Option<(EarlyEnd, Instant)>>,
}

impl Stop {
    /// Ends the phase; the first reason stays.
    fn stop(&self, why: EarlyEnd) {
        locked(&self.reason).get_or_insert_with(|| (why, Instant::now()));
        self.set.store(true, Ordering::Release);
    }
}

/// A lock that outlives a panic of another holder: tallies stay readable, and the panic itself is reported at the join.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One worker's view of its phase.
pub(crate) struct Worker<T> {
    /// Its number, 0..workers.
    pub(crate) number: u32,
    /// What it sends its operations to.
    pub(crate) target: Rc<T>,
    started: Instant,
    stop: Arc<Stop>,
    tally: Arc<Mutex<Tally>>,
}

/// The shortest and longest pause after a failed operation: a dead target is not hammered, a healed one soon noticed.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(250);

impl<T: Target> Worker<T> {
    /// Whether the phase has been ended.
    pub(crate) fn stopped(&self) -> bool {
        self.stop.set.load(Ordering::Acquire)
    }

    /// Ends the phase for all workers.
    pub(crate) fn stop(&self, why: EarlyEnd) {
        self.stop.stop(why);
    }

    /// How long the phase has been going on at `now`.
    pub(crate) fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }

    /// Waits until `at` from the phase's start, in slices so that an ended phase is noticed.
    pub(crate) async fn wait_until(&self, at: Duration) {
        /// The longest a worker sleeps without looking up.
        const NAP: Duration = Duration::from_millis(200);
        let at = self.started + at;
        while !self.stopped() {
            let now = Instant::now();
            if now >= at {
                return;
            }
            self.target.sleep_until(at.min(now + NAP)).await;
        }
    }

    /// Counts an operation that was answered.
    pub(crate) fn success(&self, step: usize, success: &Success) {
        self.tally().success(step, success);
    }

    /// Counts a broken promise about `key`.
    pub(crate) fn fault(&self, step: usize, fault: Fault, key: &[u8]) {
        self.tally().fault(step, fault, key);
    }

    /// Counts a failed operation, ends the phase if no other try can help, and otherwise pauses before the next:
    /// `streak` is the number of failures in a row before this one.
    pub(crate) async fn failure(&self, step: usize, failure: Failure, streak: u32) {
        let pause = (!failure.kind.is_final()).then(|| PAUSE_MAX.min(PAUSE_MIN * 2u32.pow(streak.min(10))));
        match failure.kind {
            FailureKind::Full => self.stop(EarlyEnd::Full),
            kind if kind.is_final() => self.stop(EarlyEnd::Hopeless(failure.message.clone())),
            _ => {}
        }
        self.tally().failure(step, failure);
        if let Some(pause) = pause {
            self.target.sleep_until(Instant::now() + pause).await;
        }
    }

    /// The tally of this worker's thread; never held across an await.
    pub(crate) fn tally(&self) -> MutexGuard<'_, Tally> {
        locked(&self.tally)
    }
}

/// A phase's work for one thread, made on the thread that starts the phase and run on the one it is for.
type Work<T> = Box<dyn FnOnce(Vec<Rc<T>>) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// One thread, as the one who leads the crew sees it.
struct Member<T> {
    work: mpsc::Sender<Work<T>>,
    workers: Vec<(u32, usize)>,
    /// `None` once the thread was joined.
    handle: RefCell<Option<JoinHandle<anyhow::Result<()>>>>,
}

impl<T> Member<T> {
    /// Whether the thread has ended.
    fn is_gone(&self) -> bool {
        self.handle.borrow().as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// The error of a thread that has ended; told once.
    fn error(&self) -> Option<anyhow::Error> {
        if self.is_gone() { joined(self.handle.take()?).err() } else { None }
    }
}

/// Waits for a thread's end; gives its error.
fn joined(handle: JoinHandle<anyhow::Result<()>>) -> anyhow::Result<()> {
    handle.join().unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<&str>().copied();
        let said = said.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Err(anyhow!("a load thread panicked: {}", said.unwrap_or("it said nothing")))
    })
}

/// The threads of a crew, whatever their target is.
trait Threads {
    /// Whether one has ended.
    fn one_is_gone(&self) -> bool;

    /// The first error of those that have ended; told once.
    fn error(&self) -> Option<anyhow::Error>;
}

impl<C: Connect> Threads for Crew<C> {
    fn one_is_gone(&self) -> bool {
        self.members.iter().any(Member::is_gone)
    }

    fn error(&self) -> Option<anyhow::Error> {
        self.members.iter().find_map(Member::error)
    }
}

/// Connected threads, waiting for phases.
pub(crate) struct Crew<C: Connect> {
    members: Vec<Member<C::Target>>,
}

/// How often an idle thread looks for work: at first, and after so many looks in vain, so that it hardly disturbs a
/// store that settles. A phase's clock starts later than either, so that all begin together.
const LOOK: Duration = Duration::from_millis(2);
const LOOKS: u32 = 100;
const LOOK_IDLE: Duration = Duration::from_millis(20);
const RUN_UP: Duration = Duration::from_millis(30);

/// Tallies of a phase: threads beyond that share, because each costs memory that would count as an embedded store's.
const TALLIES: usize = 4;

impl<C: Connect> Crew<C> {
    /// Starts the threads and connects each. Fails if any cannot connect.
    pub(crate) async fn start(shape: &Shape, connect: &C) -> anyhow::Result<Crew<C>> {
        let shares = shape.shares(connect.blocks());
        let threads = shares.len() as u32;
        // No crew yet: if this is dropped while they connect, nobody waits for the threads (who does not answer them
        // would hold up an interrupt). They end by themselves.
        let mut members = Vec::new();
        let mut connecting = Vec::new();
        for (thread, share) in shares.into_iter().enumerate() {
            let seat = Seat { thread: thread as u32, threads, connections: share.connections };
            let cpu = shape.cpus.get(thread % shape.cpus.len().max(1)).copied();
            let (ready, connected) = oneshot::channel();
            let (work, queue) = mpsc::channel();
            let connect = connect.clone();
            let handle = std::thread::Builder::new()
                .name(format!("load-{thread}"))
                .spawn(move || {
                    if let Err(error) = cpu.map_or(Ok(()), pin) {
                        // Nobody listens any more only if another thread failed first.
                        let _ = ready.send(Err(error));
                        return Ok(());
                    }
                    connect.host(seat, async |targets| serve(targets, ready, &queue).await)
                })
                .context("cannot start a load thread")?;
            connecting.push(connected);
            let handle = RefCell::new(Some(handle));
            members.push(Member { work, workers: share.workers, handle });
        }
        let mut failed = None;
        for connected in connecting {
            match connected.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => failed = failed.or(Some(error)),
                // The thread's own end says why, unless another has a reason already.
                Err(_) => {}
            }
        }
        let crew = Crew { members };
        if failed.is_some() || crew.one_is_gone() {
            let ended = crew.stop();
            return Err(failed.or(ended.err()).unwrap_or_else(|| anyhow!("a load thread ended at once")));
        }
        Ok(crew)
    }

    /// Starts `job` on all workers at once.
    pub(crate) fn begin<J: Job>(&self, job: &Arc<J>) -> Phase<'_> {
        let stop = Arc::new(Stop::default());
        let tallies: Vec<_> =
            (0..self.members.len().min(TALLIES)).map(|_| Arc::new(Mutex::new(Tally::new()))).collect();
        let left = Arc::new(AtomicUsize::new(self.members.len()));
        let ended = Arc::new(Mutex::new(None));
        let started = Instant::now() + RUN_UP;
        for (thread, member) in self.members.iter().enumerate() {
            let (job, stop, left, ended) = (job.clone(), stop.clone(), left.clone(), ended.clone());
            let tally = tallies[thread % tallies.len()].clone();
            let workers = member.workers.clone();
            let work: Work<C::Target> = Box::new(move |targets| {
                Box::pin(async move {
                    let mut tasks: FuturesUnordered<_> = workers
                        .into_iter()
                        .map(|(number, connection)| {
                            let target = targets[connection].clone();
                            let (stop, tally) = (stop.clone(), tally.clone());
                            let job = &job;
                            async move {
                                target.sleep_until(started).await;
                                job.work(Worker { number, target, started, stop, tally }).await;
                            }
                        })
                        .collect();
                    while tasks.next().await.is_some() {}
                    *locked(&ended) = Some(Instant::now());
                    left.fetch_sub(1, Ordering::AcqRel);
                })
            });
            // A thread that is gone shows when the phase is joined.
            let _ = member.work.send(work);
        }
        Phase { started, stop, tallies, left, ended, members: self }
    }

    /// Ends the threads in order: what they connected to is closed. Gives the first error.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        self.join()
    }

    fn join(&mut self) -> anyhow::Result<()> {
        // All are told before the first is waited for: embedded shards end together.
        let handles: Vec<_> = self.members.drain(..).filter_map(|member| member.handle.take()).collect();
        handles.into_iter().map(joined).fold(Ok(()), anyhow::Result::and)
    }
}

impl<C: Connect> Drop for Crew<C> {
    fn drop(&mut self) {
        // Reached with members only on the way out of another error, which is the one to tell.
        let _ = self.join();
    }
}

/// A load thread's life on its target's runtime: phases, one after another, until nobody can send more.
async fn serve<T: Target>(
    targets: anyhow::Result<Vec<Rc<T>>>,
    ready: oneshot::Sender<anyhow::Result<()>>,
    queue: &mpsc::Receiver<Work<T>>,
) {
    let targets = match targets {
        Ok(targets) => targets,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let _ = ready.send(Ok(()));
    let mut looks = 0;
    loop {
        match queue.try_recv() {
            Ok(work) => {
                work(targets.clone()).await;
                looks = 0;
            }
            Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) => {
                let Some(target) = targets.first() else { return };
                let pause = if looks < LOOKS { LOOK } else { LOOK_IDLE };
                looks = looks.saturating_add(1);
                target.sleep_until(Instant::now() + pause).await;
            }
        }
    }
}

/// Pins the calling thread.
fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .with_context(|| {
            format!("cannot pin a load thread to CPU {cpu}: it is not there, or not for this process (`nproc`, `taskset -p $$`)")
        })
}

/// A phase under way. Dropping it asks the workers to stop and does not wait for them.
pub(crate) struct Phase<'a> {
    started: Instant,
    stop: Arc<Stop>,
    tallies: Vec<Arc<Mutex<Tally>>>,
    /// Threads that are not done.
    left: Arc<AtomicUsize>,
    /// When the last thread was done that is.
    ended: Arc<Mutex<Option<Instant>>>,
    members: &'a dyn Threads,
}

/// What a phase came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// All workers' counts.
    pub(crate) tally: Tally,
    /// Why it ended early, if it did.
    pub(crate) early: Option<EarlyEnd>,
    /// How long it took: until it was stopped, else until the last worker was done. What was in flight when it was
    /// stopped is counted, the time that it took from then on is not.
    pub(crate) elapsed: Duration,
}

impl Phase<'_> {
    /// How long the phase has been going on.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Whether all workers are done (or a thread is gone).
    pub(crate) fn finished(&self) -> bool {
        self.left.load(Ordering::Acquire) == 0 || self.members.one_is_gone()
    }

    /// Ends the phase: workers finish what they have in flight.
    pub(crate) fn stop(&self, why: EarlyEnd) {
        self.stop.stop(why);
    }

    /// Moves what happened since the last glance into `recent`.
    pub(crate) fn glance(&self, recent: &mut Recent) {
        for tally in &self.tallies {
            locked(tally).drain_recent(recent);
        }
    }

    /// Adds up what the workers counted. To be called when the phase is [`finished`](Phase::finished).
    pub(crate) fn join(self) -> anyhow::Result<Outcome> {
        const FAILED: &str = "a load thread failed in the middle of a phase";
        if self.left.load(Ordering::Acquire) > 0 {
            return Err(self.members.error().map_or_else(|| anyhow!(FAILED), |error| error.context(FAILED)));
        }
        let mut sum = Tally::new();
        for tally in &self.tallies {
            sum.add(&locked(tally));
        }
        let since = |at: Instant| at.saturating_duration_since(self.started);
        let ended = locked(&self.ended).map_or_else(|| self.elapsed(), since);
        let (early, stopped_at) = locked(&self.stop.reason).clone().map(|(why, at)| (why, since(at))).unzip();
        let elapsed = stopped_at.map_or(ended, |at| at.min(ended));
        Ok(Outcome { tally: sum, early, elapsed })
    }
}

impl Drop for Phase<'_> {
    fn drop(&mut self) {
        self.stop.stop(EarlyEnd::Asked);
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A crew of so many threads and workers, one connection a thread.
    pub(crate) fn shape(threads: u32, workers: u32) -> Shape {
        Shape { threads, connections: threads, workers, cpus: Vec::new() }
    }

    /// Runs a phase to its end on a crew of its own.
    pub(crate) fn run<C: Connect, J: Job>(
        shape: &Shape,
        connect: &C,
        job: &Arc<J>,
    ) -> anyhow::Result<Outcome> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let crew = Crew::start(shape, connect).await?;
            let phase = crew.begin(job);
            while !phase.finished() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let outcome = phase.join();
            crew.stop()?;
            outcome
        })
    }
}

#[cfg(test)]
mod tests {
    use super::testing::shape;
    use super::*;
    use crate::measure::meter::Look;
    use crate::measure::tally::Kind;
    use crate::target::memory::MemoryTarget;
    use crate::target::{Ability, clock};
    use std::collections::BTreeSet;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn workers_and_connections_are_dealt_out_evenly() {
        for (threads, connections, workers) in
            [(1, 1, 1), (1, 1, 7), (3, 3, 7), (4, 4, 2), (2, 8, 64), (2, 3, 9), (3, 1, 5)]
        {
            let shape = Shape { threads, connections, workers, cpus: vec![] };
            let shares = shape.shares(false);
            assert_eq!(shares.len() as u32, threads);
            let opened: u32 = shares.iter().map(|share| share.connections).sum();
            assert_eq!(opened, connections.max(threads));
            let all: BTreeSet<u32> = shares.iter().flat_map(|share| &share.workers).map(|w| w.0).collect();
            assert_eq!(all, (0..workers).collect());
            for share in &shares {
                assert!(share.workers.iter().all(|(_, connection)| *connection < share.connections as usize));
            }
            let mut by_connection = vec![0u32; opened as usize];
            for (thread, share) in shares.iter().enumerate() {
                for (_, connection) in &share.workers {
                    by_connection[connection * threads as usize + thread] += 1;
                }
            }
            let (least, most) = (by_connection.iter().min().unwrap(), by_connection.iter().max().unwrap());
            assert!(most - least <= 1, "{shape:?}: {by_connection:?}");
        }
    }

    #[test]
    fn blocking_targets_get_a_thread_for_each_worker() {
        let shares = shape(2, 5).shares(true);
        assert_eq!(shares.len(), 5);
        assert!(shares.iter().all(|share| share.connections == 1 && share.workers.len() == 1));
    }

    struct Count {
        next: AtomicU64,
        limit: u64,
        seen: Mutex<BTreeSet<u32>>,
    }

    impl Count {
        fn new(limit: u64) -> Arc<Count> {
            Arc::new(Count { next: AtomicU64::new(0), limit, seen: Mutex::default() })
        }
    }

    impl Job for Count {
        async fn work<T: Target>(&self, worker: Worker<T>) {
            self.seen.lock().unwrap().insert(worker.number);
            while !worker.stopped() && self.next.fetch_add(1, Ordering::Relaxed) < self.limit {
                let due = worker.elapsed(Instant::now());
                let read = worker.target.get(b"nothing").await;
                assert!(read.is_ok_and(|found| found.is_none()));
                let ended = worker.elapsed(Instant::now());
                let success = Success {
                    kind: Kind::Read,
                    due,
                    sent: due,
                    ended,
                    in_time: true,
                    open: false,
                    written_bytes: 0,
                    records: 1,
                };
                worker.success(0, &success);
            }
        }
    }

    #[test]
    fn every_worker_works_and_everything_is_counted() {
        let job = Count::new(5_000);
        let outcome = testing::run(&shape(6, 20), &MemoryTarget::default(), &job).unwrap();
        assert_eq!(outcome.tally.total(|_| true).operations(), 5_000);
        assert_eq!(outcome.early, None);
        assert_eq!(*job.seen.lock().unwrap(), (0..20).collect());
    }

    #[tokio::test]
    async fn a_crew_does_one_phase_after_another() {
        let crew = Crew::start(&shape(2, 4), &MemoryTarget::default()).await.unwrap();
        for limit in [10, 300] {
            let phase = crew.begin(&Count::new(limit));
            while !phase.finished() {
                tokio::task::yield_now().await;
            }
            assert_eq!(phase.join().unwrap().tally.total(|_| true).operations(), limit);
        }
        crew.stop().unwrap();
    }

    #[tokio::test]
    async fn a_phase_can_be_stopped() {
        let crew = Crew::start(&shape(2, 4), &MemoryTarget::default()).await.unwrap();
        let phase = crew.begin(&Count::new(u64::MAX));
        phase.stop(EarlyEnd::Interrupted);
        while !phase.finished() {
            tokio::task::yield_now().await;
        }
        assert_eq!(phase.join().unwrap().early, Some(EarlyEnd::Interrupted));
    }

    /// Every worker has an operation in flight that is answered only when the test says so.
    struct Held {
        begun: AtomicUsize,
        release: tokio::sync::Semaphore,
    }

    impl Job for Held {
        async fn work<T: Target>(&self, _: Worker<T>) {
            self.begun.fetch_add(1, Ordering::AcqRel);
            self.release.acquire().await.unwrap().forget();
        }
    }

    #[tokio::test]
    async fn time_after_the_stop_is_not_the_phases() {
        let crew = Crew::start(&shape(2, 4), &MemoryTarget::default()).await.unwrap();
        let job = Arc::new(Held { begun: AtomicUsize::new(0), release: tokio::sync::Semaphore::new(0) });
        let phase = crew.begin(&job);
        while job.begun.load(Ordering::Acquire) < 4 {
            tokio::task::yield_now().await;
        }
        let before = phase.elapsed();
        phase.stop(EarlyEnd::Interrupted);
        let after = phase.elapsed();
        phase.stop(EarlyEnd::Asked);
        while phase.elapsed() < after + Duration::from_millis(1) {
            tokio::task::yield_now().await;
        }
        job.release.add_permits(4);
        while !phase.finished() {
            tokio::task::yield_now().await;
        }
        let Outcome { early, elapsed, .. } = phase.join().unwrap();
        assert_eq!(early, Some(EarlyEnd::Interrupted), "the first reason");
        assert!((before..=after).contains(&elapsed), "{before:?} {elapsed:?} {after:?}");
    }

    #[tokio::test]
    async fn time_before_the_join_is_not_the_phases() {
        let crew = Crew::start(&shape(2, 4), &MemoryTarget::default()).await.unwrap();
        let phase = crew.begin(&Count::new(100));
        while !phase.finished() {
            tokio::task::yield_now().await;
        }
        let after = phase.elapsed();
        while phase.elapsed() == after {
            tokio::task::yield_now().await;
        }
        let outcome = phase.join().unwrap();
        assert!(outcome.elapsed <= after && outcome.early.is_none());
    }

    /// A target whose runtime fails while its load is under way.
    #[derive(Clone)]
    struct Breaks;

    impl Connect for Breaks {
        type Target = MemoryTarget;

        fn can(&self, _: Ability) -> bool {
            false
        }

        fn host(
            &self,
            _: Seat,
            load: impl AsyncFnOnce(anyhow::Result<Vec<Rc<MemoryTarget>>>),
        ) -> anyhow::Result<()> {
            let mut ended = Ok(());
            clock::on_tokio(async {
                let target = MemoryTarget::default();
                let broken = async {
                    while target.len() == 0 {
                        tokio::task::yield_now().await;
                    }
                };
                tokio::select! {
                    () = broken => ended = Err(anyhow!("the ring broke")),
                    () = load(Ok(vec![Rc::new(target.clone())])) => {}
                }
            })?;
            ended
        }

        async fn looks(&self) -> Vec<(u64, Look)> {
            Vec::new()
        }
    }

    struct PutForever;

    impl Job for PutForever {
        async fn work<T: Target>(&self, worker: Worker<T>) {
            while !worker.stopped() {
                worker.target.put(b"key", bytes::Bytes::new(), None).await.unwrap();
            }
        }
    }

    #[test]
    fn a_thread_that_fails_in_the_middle_says_why() {
        let error = testing::run(&shape(1, 2), &Breaks, &Arc::new(PutForever)).unwrap_err();
        assert_eq!(format!("{error:#}"), "a load thread failed in the middle of a phase: the ring broke");
    }

    #[derive(Clone)]
    struct Unreachable;

    impl Connect for Unreachable {
        type Target = MemoryTarget;

        fn can(&self, _: Ability) -> bool {
            false
        }

        fn host(
            &self,
            seat: Seat,
            load: impl AsyncFnOnce(anyhow::Result<Vec<Rc<MemoryTarget>>>),
        ) -> anyhow::Result<()> {
            let targets = match seat.thread {
                0 => Ok(vec![Rc::new(MemoryTarget::default())]),
                _ => Err(anyhow!("nobody there")),
            };
            clock::on_tokio(load(targets))
        }

        async fn looks(&self) -> Vec<(u64, Look)> {
            Vec::new()
        }
    }

    #[test]
    fn a_thread_that_cannot_connect_fails_the_crew() {
        let error = testing::run(&shape(2, 4), &Unreachable, &Count::new(1)).unwrap_err();
        assert_eq!(error.to_string(), "nobody there");
    }

    #[test]
    fn a_cpu_that_is_not_there_is_named() {
        let shape = Shape { cpus: vec![1_000], ..shape(1, 1) };
        let error = testing::run(&shape, &MemoryTarget::default(), &Count::new(1)).unwrap_err();
        assert!(format!("{error:#}").contains("CPU 1000"), "{error:#}");
    }

    struct Panics;

    impl Job for Panics {
        async fn work<T: Target>(&self, worker: Worker<T>) {
            assert_ne!(worker.number, 1, "worker 1 gives up");
        }
    }

    #[test]
    fn a_panicking_worker_is_reported() {
        let error = testing::run(&shape(1, 2), &MemoryTarget::default(), &Arc::new(Panics)).unwrap_err();
        assert!(format!("{error:#}").contains("worker 1 gives up"), "{error:#}");
    }
}

//! The closed loop: a fixed number of workers, each with one operation in flight, spread over a few threads.
//!
//! A "connection" is one worker: it sends its next operation when the last one was answered. So `--connections 64`
//! keeps at most 64 operations in flight, however many sockets the client library uses underneath. A closed loop slows
//! down with the system it measures: its latencies say what that many clients feel, not what a fixed rate of arrivals
//! would (coordinated omission).
//!
//! Each thread has its own runtime, its own target (and so its own sockets) and its own tally.
//!
//! Invariant: the clock of a phase starts after every thread has connected.

use std::fmt;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use futures_util::stream::{FuturesUnordered, StreamExt};
use hdrhistogram::Histogram;
use tokio::sync::oneshot;

use crate::measure::tally::{Kind, Tally};
use crate::target::{Connect, Failure, FailureKind, Seat, Target};

/// How many workers, on how many threads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Crew {
    /// Operating system threads, at least 1.
    pub(crate) threads: u32,
    /// Workers in all, at least 1. With fewer workers than threads the spare threads are not started.
    pub(crate) connections: u32,
}

impl Crew {
    /// The numbers of the workers of each thread.
    fn shares(self) -> Vec<Vec<u32>> {
        let threads = self.threads.min(self.connections).max(1);
        (0..threads)
            .map(|thread| (0..self.connections).filter(|worker| worker % threads == thread).collect())
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
    /// The cluster's space is used up.
    Full,
    /// Going on makes no sense, for this reason.
    Hopeless(String),
}

impl fmt::Display for EarlyEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EarlyEnd::Asked => f.write_str("it was told to stop"),
            EarlyEnd::Full => f.write_str("the cluster's space is used up"),
            EarlyEnd::Hopeless(why) => f.write_str(why),
        }
    }
}

/// Shared by all workers of a phase: the way to end it.
#[derive(Debug, Default)]
struct Stop {
    set: AtomicBool,
    reason: Mutex<Option<EarlyEnd>>,
}

impl Stop {
    /// Ends the phase; the first reason stays.
    fn stop(&self, why: EarlyEnd) {
        locked(&self.reason).get_or_insert(why);
        self.set.store(true, Ordering::Release);
    }
}

/// A lock that outlives a panic of another holder: tallies stay readable, and the panic itself is reported at the join.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One worker's view of its phase.
pub(crate) struct Worker<T> {
    /// Its number, 0..connections.
    pub(crate) number: u32,
    /// What it sends its operations to.
    pub(crate) target: Rc<T>,
    started: Instant,
    stop: Arc<Stop>,
    tally: Arc<Mutex<Tally>>,
}

/// The shortest and longest pause after a failed operation: a dead cluster is not hammered, a healed one soon noticed.
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

    /// Counts an operation that was answered.
    pub(crate) fn success(&self, kind: Kind, began: Instant, ended: Instant) {
        self.tally().success(kind, self.elapsed(ended), ended.saturating_duration_since(began));
    }

    /// Counts a failed operation, ends the phase if no other try can help, and otherwise pauses before the next:
    /// `streak` is the number of failures in a row before this one.
    pub(crate) async fn failure(&self, failure: Failure, streak: u32) {
        let pause = (!failure.kind.is_final()).then(|| PAUSE_MAX.min(PAUSE_MIN * 2u32.pow(streak.min(10))));
        match failure.kind {
            FailureKind::Full => self.stop(EarlyEnd::Full),
            kind if kind.is_final() => self.stop(EarlyEnd::Hopeless(failure.message.clone())),
            _ => {}
        }
        self.tally().failure(failure);
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
    }

    /// This thread's tally; never held across an await.
    pub(crate) fn tally(&self) -> MutexGuard<'_, Tally> {
        locked(&self.tally)
    }
}

/// A phase under way. Dropping it asks the workers to stop and does not wait for them.
pub(crate) struct Phase {
    started: Instant,
    stop: Arc<Stop>,
    tallies: Vec<Arc<Mutex<Tally>>>,
    threads: Vec<JoinHandle<anyhow::Result<()>>>,
}

/// What a phase came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// All threads' counts.
    pub(crate) tally: Tally,
    /// Why it ended early, if it did.
    pub(crate) early: Option<EarlyEnd>,
}

/// A look at a phase under way.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Glance {
    /// Successful operations so far.
    pub(crate) operations: u64,
    /// Failed operations so far.
    pub(crate) failed: u64,
    /// Broken promises so far.
    pub(crate) broken: u64,
}

impl Phase {
    /// Connects every thread, then starts `job` on all workers at once. Fails if any thread cannot connect.
    pub(crate) async fn start<C: Connect, J: Job>(
        crew: Crew,
        connect: &C,
        job: Arc<J>,
    ) -> anyhow::Result<Phase> {
        let stop = Arc::new(Stop::default());
        let mut waiting = Vec::new();
        let (mut tallies, mut threads) = (Vec::new(), Vec::new());
        let shares = crew.shares();
        let threads_in_all = shares.len() as u32;
        for (thread, workers) in shares.into_iter().enumerate() {
            let seat = Seat { thread: thread as u32, threads: threads_in_all, connections: 1 };
            let tally = Arc::new(Mutex::new(Tally::new()));
            let (ready, connected) = oneshot::channel();
            let (begin, begun) = mpsc::channel();
            let (connect, job) = (connect.clone(), job.clone());
            let (shared_stop, shared_tally) = (stop.clone(), tally.clone());
            let handle = std::thread::Builder::new()
                .name(format!("load-{thread}"))
                .spawn(move || {
                    let load = async |targets: anyhow::Result<Vec<Rc<C::Target>>>| {
                        let target = match targets.map(|mut targets| targets.swap_remove(0)) {
                            Ok(target) => target,
                            Err(error) => {
                                // Nobody listens any more only if another thread failed first.
                                let _ = ready.send(Err(error));
                                return;
                            }
                        };
                        let _ = ready.send(Ok(()));
                        // The sender is dropped unused when another thread could not connect.
                        let Ok(started) = begun.recv() else { return };
                        let make = |number| Worker {
                            number,
                            target: target.clone(),
                            started,
                            stop: shared_stop.clone(),
                            tally: shared_tally.clone(),
                        };
                        let mut tasks: FuturesUnordered<_> =
                            workers.into_iter().map(|number| job.work(make(number))).collect();
                        while tasks.next().await.is_some() {}
                    };
                    connect.host(seat, load)
                })
                .context("cannot start a load thread")?;
            waiting.push((connected, begin));
            tallies.push(tally);
            threads.push(handle);
        }
        let mut begins = Vec::new();
        for (connected, begin) in waiting {
            match connected.await {
                Ok(result) => result?,
                Err(_) => return Err(anyhow!("a load thread ended before it had connected")),
            }
            begins.push(begin);
        }
        let started = Instant::now();
        for begin in begins {
            // A thread that is gone reports at the join.
            let _ = begin.send(started);
        }
        Ok(Phase { started, stop, tallies, threads })
    }

    /// How long the phase has been going on.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Whether all workers are done.
    pub(crate) fn finished(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// Counts so far; the latencies since the last look go into `recent`.
    pub(crate) fn glance(&self, recent: &mut Histogram<u64>) -> Glance {
        let mut glance = Glance::default();
        for tally in &self.tallies {
            let mut tally = locked(tally);
            glance.operations += tally.operations();
            glance.failed += tally.failed();
            glance.broken += tally.broken();
            tally.drain_recent(recent);
        }
        glance
    }

    /// Waits for the workers and adds up what they counted.
    pub(crate) fn join(mut self) -> anyhow::Result<Outcome> {
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(result) => result?,
                Err(_) => return Err(anyhow!("a load thread panicked")),
            }
        }
        let mut sum = Tally::new();
        for tally in &self.tallies {
            sum.add(&locked(tally));
        }
        let early = locked(&self.stop.reason).clone();
        Ok(Outcome { tally: sum, early })
    }
}

impl Drop for Phase {
    fn drop(&mut self) {
        self.stop.stop(EarlyEnd::Asked);
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// Runs a phase to its end on a runtime of its own.
    pub(crate) fn run<C: Connect, J: Job>(crew: Crew, connect: &C, job: J) -> anyhow::Result<Outcome> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(Phase::start(crew, connect, Arc::new(job)))?.join()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::meter::Look;
    use crate::target::memory::MemoryTarget;
    use crate::target::{Ability, clock};
    use std::collections::BTreeSet;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn workers_are_dealt_out_evenly() {
        for (threads, connections) in [(1, 1), (1, 7), (3, 7), (4, 2), (2, 64)] {
            let shares = Crew { threads, connections }.shares();
            assert_eq!(shares.len() as u32, threads.min(connections));
            let all: BTreeSet<u32> = shares.iter().flatten().copied().collect();
            assert_eq!(all, (0..connections).collect());
            let (least, most) =
                (shares.iter().map(Vec::len).min().unwrap(), shares.iter().map(Vec::len).max().unwrap());
            assert!(most - least <= 1 && least > 0);
        }
    }

    struct Count {
        next: AtomicU64,
        limit: u64,
        seen: Mutex<BTreeSet<u32>>,
    }

    impl Job for Count {
        async fn work<T: Target>(&self, worker: Worker<T>) {
            self.seen.lock().unwrap().insert(worker.number);
            while !worker.stopped() && self.next.fetch_add(1, Ordering::Relaxed) < self.limit {
                let began = Instant::now();
                let read = worker.target.get(b"nothing").await;
                assert!(read.is_ok_and(|found| found.is_none()));
                worker.success(Kind::Read, began, Instant::now());
            }
        }
    }

    #[test]
    fn every_worker_works_and_everything_is_counted() {
        let job = Arc::new(Count { next: AtomicU64::new(0), limit: 5_000, seen: Mutex::default() });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let crew = Crew { threads: 3, connections: 8 };
        let phase = runtime.block_on(Phase::start(crew, &MemoryTarget::default(), job.clone())).unwrap();
        let outcome = phase.join().unwrap();
        assert_eq!(outcome.tally.operations(), 5_000);
        assert_eq!(outcome.early, None);
        assert_eq!(*job.seen.lock().unwrap(), (0..8).collect());
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
            _: Seat,
            load: impl AsyncFnOnce(anyhow::Result<Vec<Rc<MemoryTarget>>>),
        ) -> anyhow::Result<()> {
            clock::on_tokio(load(Err(anyhow!("nobody there"))))
        }

        async fn looks(&self) -> Vec<(u64, Look)> {
            Vec::new()
        }
    }

    #[test]
    fn a_thread_that_cannot_connect_fails_the_phase() {
        let job = Count { next: AtomicU64::new(0), limit: 1, seen: Mutex::default() };
        let crew = Crew { threads: 2, connections: 4 };
        let error = testing::run(crew, &Unreachable, job).unwrap_err();
        assert_eq!(error.to_string(), "nobody there");
    }

    struct Panics;

    impl Job for Panics {
        async fn work<T: Target>(&self, worker: Worker<T>) {
            assert_ne!(worker.number, 1, "worker 1 gives up");
        }
    }

    #[test]
    fn a_panicking_worker_is_reported() {
        let crew = Crew { threads: 1, connections: 2 };
        let error = testing::run(crew, &MemoryTarget::default(), Panics).unwrap_err();
        assert!(error.to_string().contains("a load thread panicked"), "{error}");
    }
}

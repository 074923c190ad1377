//! One run against one cluster: its phases in order, each with what it cost the servers and ourselves.
//!
//! `run` and `demo` differ in where the cluster comes from and in what happens to it; what is sent, counted and checked
//! is here, once.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use tokio::sync::Notify;

use crate::check::ledger::Ledger;
use crate::cli::LoadArgs;
use crate::load::phases::{Load, Mixed, ReadBack, Until, Writing};
use crate::load::runner::{EarlyEnd, Job, Outcome, Phase};
use crate::measure::meter::Meter;
use crate::measure::outage::OutageWatch;
use crate::report::progress::{Goal, Live};
use crate::report::{PhaseReport, ServersReport, VerifyReport};
use crate::target::cluster::{Cluster, ClusterConnect};
use crate::workload::{Chooser, mix};

/// How long a node's counters are waited for at the end of a phase, and how often they are asked for meanwhile.
const LOOK_LIMIT: Duration = Duration::from_secs(5);
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// A run under way.
pub(crate) struct Session {
    args: LoadArgs,
    connect: ClusterConnect,
    cluster: Cluster,
    writing: Writing,
}

/// A phase's numbers and why it ended early, if it did.
pub(crate) struct Measured {
    pub(crate) report: PhaseReport,
    pub(crate) early: Option<EarlyEnd>,
}

impl Session {
    /// Connects to the cluster at these addresses.
    pub(crate) async fn begin(args: &LoadArgs, addresses: &[String]) -> anyhow::Result<Session> {
        let connect = ClusterConnect::new(addresses);
        let cluster = Cluster::connect(addresses).await?;
        let ledger = Arc::new(Ledger::new(args.records));
        let writing = Writing { ledger, run: run_number(), value_bytes: args.value_size };
        Ok(Session { args: args.clone(), connect, cluster, writing })
    }

    /// The connection for everything but load: topology, counters.
    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Writes every record once.
    pub(crate) async fn load(&self) -> anyhow::Result<Measured> {
        let goal = Goal::Operations(self.args.records);
        let live = Live::new("load", goal);
        let meter = RefCell::new(Meter::default());
        let job = Arc::new(Load::new(self.writing.clone()));
        let (outcome, cpu) = self.measured(job, goal, &live, &meter, async |_| Ok(())).await?;
        Ok(self.report(outcome, None, cpu, &meter.borrow()))
    }

    /// Sends the workload. While it runs, `meanwhile` may do things to the cluster; it is given the phase's clock and
    /// is waited for. The counters are looked at through `meter`, so that it can add looks of its own.
    pub(crate) async fn mixed(
        &self,
        operations: Option<u64>,
        watch: Option<Arc<OutageWatch>>,
        live: &Live,
        meter: &RefCell<Meter>,
        meanwhile: impl AsyncFnOnce(PhaseClock) -> anyhow::Result<()>,
    ) -> anyhow::Result<Measured> {
        let args = &self.args;
        let (until, window) = match operations {
            Some(total) => (Until::operations(total), None),
            None => (Until::Time(args.window()), Some(args.window())),
        };
        let job = Mixed {
            writing: self.writing.clone(),
            chooser: Chooser::new(args.workload, args.records, args.theta),
            seed: args.seed,
            until,
            watch,
        };
        let goal = self.mixed_goal(operations);
        let (outcome, cpu) = self.measured(Arc::new(job), goal, live, meter, meanwhile).await?;
        Ok(self.report(outcome, window, cpu, &meter.borrow()))
    }

    /// How far the timed phase goes.
    pub(crate) fn mixed_goal(&self, operations: Option<u64>) -> Goal {
        operations.map_or(Goal::Time(self.args.window()), Goal::Operations)
    }

    /// Reads every record back.
    pub(crate) async fn read_back(&self) -> anyhow::Result<VerifyReport> {
        let goal = Goal::Operations(self.args.records);
        let job = Arc::new(ReadBack::new(self.writing.ledger.clone()));
        let phase = Phase::start(self.args.crew(), &self.connect, job.clone()).await?;
        let outcome = Live::new("read back", goal).follow(phase, goal).await?;
        Ok(VerifyReport::new(&outcome, self.args.records, job.unread()))
    }

    /// Runs a phase between two looks at the counters; gives what it came to and our own CPU time.
    async fn measured<J: Job>(
        &self,
        job: Arc<J>,
        goal: Goal,
        live: &Live,
        meter: &RefCell<Meter>,
        meanwhile: impl AsyncFnOnce(PhaseClock) -> anyhow::Result<()>,
    ) -> anyhow::Result<(Outcome, Duration)> {
        self.look(meter).await;
        let cpu_before = own_cpu();
        let phase = Phase::start(self.args.crew(), &self.connect, job).await?;
        let ended = Rc::new(Notify::new());
        let clock = PhaseClock { started: tokio::time::Instant::now(), ended: ended.clone() };
        let follow = async {
            let outcome = live.follow(phase, goal).await;
            ended.notify_one();
            outcome
        };
        let (outcome, ()) = tokio::try_join!(follow, meanwhile(clock))?;
        let cpu = own_cpu().saturating_sub(cpu_before);
        self.look(meter).await;
        Ok((outcome, cpu))
    }

    /// Looks at all nodes' counters. One that was looked at before and does not answer now (it was just started
    /// again) is waited for; in the end its absence shows in the report.
    async fn look(&self, meter: &RefCell<Meter>) {
        let begun = tokio::time::Instant::now();
        loop {
            let counters = self.cluster.counters().await;
            let expected = meter.borrow().nodes();
            let missing = expected.iter().any(|node| counters.iter().all(|(known, _)| known != node));
            if !missing || begun.elapsed() >= LOOK_LIMIT {
                let mut meter = meter.borrow_mut();
                return counters.into_iter().for_each(|(node, counters)| meter.look(node, counters));
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    fn report(&self, outcome: Outcome, window: Option<Duration>, cpu: Duration, meter: &Meter) -> Measured {
        let servers = ServersReport::new(meter.used(), outcome.tally.operations());
        Measured { report: PhaseReport::new(&outcome, window, cpu, servers), early: outcome.early }
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

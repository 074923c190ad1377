//! `demo`: a cluster of processes on this machine, loaded, measured, robbed of its busiest leader half-way, and read
//! back. It ends with the cluster stopped and the temporary folder removed, whatever happened. An interrupt ends at once
//! what comes before the load, and the load in order: what was measured is told.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures_util::stream::{FuturesUnordered, StreamExt};
use xxhash_rust::xxh3::xxh3_64;

use crate::check::books::Books;
use crate::check::ledger::Ledger;
use crate::cli::WrongUsage;
use crate::cli::demo::DemoArgs;
use crate::cli::load::LoadArgs;
use crate::interrupt::{Interrupt, Interrupted};
use crate::load::runner::EarlyEnd;
use crate::load::session::{self, PhaseClock, Session, Subject};
use crate::measure::meter::Meter;
use crate::measure::outage::OutageWatch;
use crate::place::Place;
use crate::report::figures::bytes;
use crate::report::machine::Machine;
use crate::report::progress::Live;
use crate::report::{OutageReport, PhaseReport, Report, Settings, VerifyReport};
use crate::servers::terrane::{self, LOOK, Layout, Nodes, READY_LIMIT};
use crate::target::Target;
use crate::target::cluster::{Cluster, ClusterConnect, ClusterTarget};
use crate::target::leaders::Leaders;
use crate::workload::names::Names;
use crate::workload::spec::Spec;

/// Runs it; gives the report, whether good or bad.
pub(crate) async fn demo(args: &DemoArgs, interrupt: &Interrupt) -> anyhow::Result<Report> {
    let spec = args.load.spec().context(WrongUsage)?;
    let plan = Arc::new(args.load.plan(None));
    let window = plan.length().unwrap_or_default();
    let binary = interrupt.or_interrupted(terrane::find_terrane(args.terrane.as_deref())).await?;
    let size = args.size.unwrap_or_else(|| device_bytes(&args.load, &spec, window, args.shards));
    let needed = size.saturating_mul(u64::from(args.nodes));
    let place = match &args.data_dir {
        Some(folder) if terrane::is_laid_out(folder) => Place::named(folder, 0)?,
        Some(folder) => Place::named(folder, needed)?,
        None => Place::temporary(needed)?,
    };
    if terrane::is_laid_out(place.path()) {
        eprintln!("Using the cluster's data in {}", place.path().display());
    } else {
        let each = bytes(size);
        eprintln!("Laying out {} nodes of {each} in {}", args.nodes, place.path().display());
    }
    let layout = terrane::lay_out(&binary, args.nodes, args.shards, place.path(), size);
    let layout = interrupt.or_interrupted(layout).await.map_err(|error| match &args.data_dir {
        Some(folder) if error.is::<Interrupted>() => error.context(format!(
            "a cluster was being laid out in {}: what is there holds no data, remove it",
            folder.display()
        )),
        _ => error,
    })?;
    // Declared after the place: dropped, and so stopped, before the folder is removed.
    let mut nodes = Nodes::start(&binary, &layout)?;
    let leaders = interrupt.or_interrupted(terrane::wait_ready(&mut nodes, &layout)).await?;
    eprintln!("{}", described(&layout, &leaders));

    let names = spec.names();
    let subject =
        Subject { spec, records: args.load.records, seed: args.load.seed, shape: args.load.shape() };
    let mut settings = Settings::new(&subject, &plan, "cluster", Vec::new());
    (settings.nodes, settings.shards) = (Some(args.nodes), Some(args.shards));
    let mut report = Report::begin("demo", Machine::of(Some(place.path())), settings);
    let books = Books { ledger: Some(Ledger::new(0, args.load.records)), journal: None };
    let cluster = interrupt.or_interrupted(Cluster::connect(&layout.addresses())).await?;
    let connect = ClusterConnect::new(&layout.addresses());
    let session = Session::begin(subject, connect, books, interrupt.clone()).await?;
    let mut log = session::begin_log(args.load.hlog.as_deref())?;
    let load = session.load().await?;
    nodes.check()?;
    let mut early = load.early().cloned();
    report.load = Some(PhaseReport::untimed(load));
    if early.is_none() {
        let live = Live::new("run", session::goal(&plan));
        let watch = Arc::new(OutageWatch::new(leaders.partitions()));
        let mut kills = Kills {
            args,
            window,
            names,
            nodes: &mut nodes,
            cluster: &cluster,
            watch: &watch,
            live: &live,
            interrupt,
            outages: Vec::new(),
        };
        let meter = RefCell::new(Meter::default());
        let run = session
            .timed(&plan, Some(watch.clone()), &live, &meter, log.as_mut(), async |clock| {
                kills.run(&meter, &clock).await
            })
            .await?;
        report.outages = kills.outages;
        nodes.check()?;
        early = run.early().cloned();
        report.warnings.extend(run.warnings.iter().cloned());
        report.run = Some(PhaseReport::timed(run, &plan));
        report.note_doubts();
    }
    if early == Some(EarlyEnd::Full) {
        eprintln!(
            "The nodes' devices are full: ending early. Everything acknowledged so far is read back; give them more room with --size."
        );
    }
    if early != Some(EarlyEnd::Interrupted) {
        let (measured, unread) = session.read_back(0, session.records()).await?;
        let mut verify = VerifyReport::default();
        verify.add(&measured, session.records(), unread);
        report.verify = Some(verify);
        early = early.or(measured.early().cloned());
    }
    crate::run::finish_log(&args.load, log)?;
    session.finish()?;
    nodes.check()?;
    for complaint in nodes.stop() {
        eprintln!("warning: {complaint}");
    }
    report.ended_early = early.as_ref().map(EarlyEnd::to_string);
    report.partial = early.is_some();
    // Running out of space is an end of the demonstration, not a broken promise.
    report.ok = matches!(early, None | Some(EarlyEnd::Full)) && report.kept_every_promise();
    Ok(report)
}

/// Bytes of each node's device that will hold everything the run writes, with no space reclaimed: the records, and as
/// many updates as a fast machine may do, each with what surrounds it in the log; a third more, because the popular
/// records do not spread evenly over the shards.
fn device_bytes(load: &LoadArgs, spec: &Spec, window: Duration, shards: u32) -> u64 {
    /// What a record occupies beside its value: key, headers, padding of its frame.
    const OVERHEAD: u64 = 200;
    /// Updates per second that are expected at most, and the bytes per second that bound them either way.
    const UPDATES_PER_SECOND: u64 = 60_000;
    const BYTES_PER_SECOND: (u64, u64) = (60 << 20, 400 << 20);
    /// The least that a shard's slice makes sense with.
    const PER_SHARD_MIN: u64 = 512 << 20;
    let value = spec.mean_value_bytes() as u64;
    let rate = (value * UPDATES_PER_SECOND).clamp(BYTES_PER_SECOND.0, BYTES_PER_SECOND.1);
    let loaded = load.records.saturating_mul(value + OVERHEAD);
    let updated = (window.as_secs_f64() * rate as f64 * spec.update_share()) as u64;
    let total = loaded.saturating_add(updated);
    let total = total.saturating_add(total / 3).max(PER_SHARD_MIN * u64::from(shards));
    total.min(1 << 62).next_multiple_of(64 << 20)
}

fn described(layout: &Layout, leaders: &Leaders) -> String {
    let nodes: Vec<String> = layout
        .nodes
        .iter()
        .map(|node| format!("{} at {} leads {}", node.id, node.address, leaders.led_by(node.id).len()))
        .collect();
    format!("{} partitions; node {}", leaders.partitions(), nodes.join("; node "))
}

/// Kills nodes under load, as planned.
struct Kills<'a> {
    args: &'a DemoArgs,
    window: Duration,
    names: Names,
    nodes: &'a mut Nodes,
    cluster: &'a Cluster,
    watch: &'a Arc<OutageWatch>,
    live: &'a Live,
    interrupt: &'a Interrupt,
    outages: Vec<OutageReport>,
}

impl Kills<'_> {
    /// Kills at each planned moment, until the phase ends.
    async fn run(&mut self, meter: &RefCell<Meter>, clock: &PhaseClock) -> anyhow::Result<()> {
        for at in moments(self.window, self.args.kills) {
            if !clock.wait_until(at).await {
                break;
            }
            let interrupt = self.interrupt;
            match interrupt.or_interrupted(self.kill_one(meter, clock)).await {
                // The phase ends by itself; an outage whose end nobody saw is no number to tell.
                Err(error) if error.is::<Interrupted>() => break,
                killed => killed?,
            }
        }
        Ok(())
    }

    /// Kills the node that leads most, starts it again, and waits until all it led has answered again.
    async fn kill_one(&mut self, meter: &RefCell<Meter>, clock: &PhaseClock) -> anyhow::Result<()> {
        self.nodes.check()?;
        let leaders = self.leaders().await?;
        let (node, led) = leaders.busiest().context("no partition has a leader to kill")?;
        let target = self.cluster.target().await?;
        // The last look at the counters that die with the process.
        if let Some(look) = self.cluster.look_at(node).await {
            meter.borrow_mut().look(node, look);
        }
        let at = clock.elapsed();
        let killed = self.nodes.kill_node(node)?;
        self.watch.killed(killed);
        self.live.event(&format!(
            "{:.1} s: killed node {node}, which led {} of {} partitions",
            at.as_secs_f64(),
            led.len(),
            leaders.partitions()
        ));
        let (watch, live, names, nodes) = (self.watch, self.live, self.names, &mut *self.nodes);
        let restart = async {
            tokio::time::sleep(self.args.restart_after).await;
            nodes.start_node(node)?;
            meter.borrow_mut().restarted(node);
            let down = killed.elapsed();
            let now = clock.elapsed().as_secs_f64();
            live.event(&format!("{now:.1} s: started node {node} again"));
            anyhow::Ok(down)
        };
        let (down, ()) = tokio::try_join!(restart, async {
            probe(&target, watch, names, &led).await;
            Ok(())
        })?;
        let outage = self.watch.outage(&led);
        self.outages.push(OutageReport::new(node, at, down, &outage));
        Ok(())
    }

    /// The present leaders, as soon as every partition has one again.
    async fn leaders(&self) -> anyhow::Result<Leaders> {
        let begun = Instant::now();
        loop {
            let last = match self.cluster.leaders().await {
                Ok(leaders) if leaders.missing() == 0 => return Ok(leaders),
                Ok(leaders) => format!("{} partitions have no leader", leaders.missing()),
                Err(error) => format!("{error:#}"),
            };
            if begun.elapsed() > READY_LIMIT {
                bail!("no leader for {} s: {last}\n{}", READY_LIMIT.as_secs(), self.nodes.log_tails());
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Asks each partition for one of its records until it answers, so that the time without a leader is known even of a
/// partition that the workload happens not to touch. Gives up after [`READY_LIMIT`]; the report then says so.
async fn probe(target: &ClusterTarget, watch: &Arc<OutageWatch>, names: Names, partitions: &[u32]) {
    let begun = Instant::now();
    let asking: FuturesUnordered<_> = partitions
        .iter()
        .map(async |partition| {
            // A key of this partition, found by trial: as many tries as there are partitions, on average.
            let asked = (0..)
                .map(|record| names.name(record))
                .find(|key| watch.partition(xxh3_64(key)) == *partition as usize);
            let Some(asked) = asked else { return };
            while begun.elapsed() < READY_LIMIT {
                let began = Instant::now();
                match target.get(&asked).await {
                    Ok(_) => return watch.success(began, Instant::now(), || xxh3_64(&asked)),
                    Err(_) => tokio::time::sleep(LOOK).await,
                }
            }
        })
        .collect();
    asking.for_each(async |()| {}).await;
}

/// The moments of `kills` kills within `window`: evenly spread, a single one half-way.
fn moments(window: Duration, kills: u32) -> impl Iterator<Item = Duration> {
    (1..=kills).map(move |nth| window * nth / (kills + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn device_bytes_of(line: &str) -> u64 {
        let cli = crate::cli::Cli::try_parse_from(line.split_whitespace()).unwrap();
        let crate::cli::Command::Demo(args) = cli.command else { panic!("{line}") };
        device_bytes(&args.load, &args.load.spec().unwrap(), args.load.window(), args.shards)
    }

    #[test]
    fn kills_are_spread_and_one_is_half_way() {
        let seconds =
            |kills| moments(Duration::from_secs(30), kills).map(|at| at.as_secs_f64()).collect::<Vec<_>>();
        assert_eq!(seconds(0), [0.0; 0]);
        assert_eq!(seconds(1), [15.0]);
        assert_eq!(seconds(2), [10.0, 20.0]);
    }

    #[test]
    fn devices_have_room_for_what_is_asked() {
        let small = device_bytes_of("x demo --records 1000 --seconds 4 --workload c");
        assert_eq!(small, 1 << 30);
        let usual = device_bytes_of("x demo");
        assert!((1 << 30..2 << 30).contains(&usual), "{usual}");
        let large = device_bytes_of("x demo --value-size 32KiB");
        assert!((8 << 30..20 << 30).contains(&large), "{large}");
        let reads = device_bytes_of("x demo --workload c --records 10000000");
        assert!((15 << 30..18 << 30).contains(&reads), "{reads}");
        let absurd = device_bytes_of("x demo --records 1000000000000 --value-size 64MiB");
        assert!(absurd > 1 << 60);
    }
}

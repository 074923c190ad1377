//! `run`: loads and measures a target.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;

use crate::check::books::Books;
use crate::check::journal::{About, Journal};
use crate::check::ledger::Ledger;
use crate::cli::load::LoadArgs;
use crate::cli::run::{Check, RunArgs};
use crate::cli::target::{Mode, TargetName};
use crate::cli::{WrongUsage, usage};
use crate::device::{Cell, DeviceReport, share};
use crate::interrupt::Interrupt;
use crate::load::plan::{Bound, Plan};
use crate::load::runner::EarlyEnd;
use crate::load::session::{self, Session, Subject};
use crate::measure::meter::Meter;
use crate::output;
use crate::report::csv;
use crate::report::figures::count;
use crate::report::hlog::Log;
use crate::report::machine::Machine;
use crate::report::progress::Live;
use crate::report::{DeviceShare, PhaseReport, Report, Settings, VerifyReport};
use crate::target::Connect;
use crate::target::open::{Amount, Visit, with_target};
use crate::workload::spec::Spec;

/// Runs it; gives the report, whether good or bad.
pub(crate) async fn run(args: &RunArgs, interrupt: &Interrupt) -> anyhow::Result<Report> {
    let mut spec = args.load.spec().context(WrongUsage)?;
    let target = args.target.name();
    if args.load.compressible.is_none() && args.target.config.compressible() > 0 {
        spec.values.compressible = args.target.config.compressible();
    }
    usage(
        args.target.data.is_some() || !args.skip_load || !target.is_embedded(),
        "--skip-load needs the --data folder that an earlier run loaded",
    )?;
    let shape = args.load.shape();
    let threads = match target {
        // Its calls do not block: a shard on each thread, whatever the number of workers.
        TargetName::Engine => shape.threads,
        _ => shape.workers,
    };
    keepable(args, &spec)?;
    args.record.as_deref().map_or(Ok(()), Journal::check)?;
    let plan = args.load.plan(args.operations);
    let amount = Amount { must_exist: args.skip_load, ..amount(&args.load, &spec, &plan, threads) };
    let subject = Subject { spec, records: args.load.records, seed: args.load.seed, shape };
    let run = Run { args, subject, plan: Arc::new(plan), interrupt };
    let report = with_target(&args.target, amount, interrupt, run).await?;
    if let (true, Some(folder)) =
        (interrupt.is_raised(), args.target.data.as_ref().filter(|_| target.is_embedded()))
    {
        eprintln!("{} keeps the store, with all that was acknowledged", folder.display());
    }
    Ok(report)
}

/// What a run will write, at most.
fn amount(load: &LoadArgs, spec: &Spec, plan: &Plan, threads: u32) -> Amount {
    /// Writes per second that are expected of an embedded store at most, and the bytes per second that bound them
    /// either way.
    const WRITES_PER_SECOND: f64 = 250_000.0;
    const BYTES_PER_SECOND: (f64, f64) = (100e6, 1e9);
    /// What surrounds a record in the log: headers, its frame's padding where few share one.
    const OVERHEAD: f64 = 200.0;
    let record = spec.mean_value_bytes() + spec.keys.bytes as f64;
    let live = load.records as f64 * record;
    let rate = (record * WRITES_PER_SECOND).clamp(BYTES_PER_SECOND.0, BYTES_PER_SECOND.1);
    let updated: f64 = plan
        .steps()
        .iter()
        .map(|step| {
            let spec = step.workload.as_ref().unwrap_or(spec);
            let share = spec.update_share() * spec.values_per_operation();
            match (step.bound, step.offered()) {
                (_, Some(offered)) => offered as f64 * share * record,
                (Bound::Operations(operations), _) => operations as f64 * share * record,
                (Bound::Time(length), _) => length.as_secs_f64() * spec.update_share() * rate,
            }
        })
        .sum();
    let written = live + updated;
    Amount {
        live_bytes: live as u64,
        written_bytes: written as u64,
        value_bytes: spec.mean_value_bytes() as u64,
        overhead_bytes: (written / record * OVERHEAD) as u64,
        threads,
        must_exist: false,
    }
}

struct Run<'a> {
    args: &'a RunArgs,
    subject: Subject,
    plan: Arc<Plan>,
    interrupt: &'a Interrupt,
}

impl Visit for Run<'_> {
    type Output = Report;

    async fn visit<C: Connect>(self, connect: C, settings: Vec<(String, String)>) -> anyhow::Result<Report> {
        let Run { args, subject, plan, interrupt } = self;
        // Those of steps too: before anything is loaded.
        let of_steps = plan.steps().iter().filter_map(|step| step.workload.as_ref());
        for spec in std::iter::once(&subject.spec).chain(of_steps) {
            session::supported(&connect, spec)?;
        }
        let probe = args.device.as_deref().map(DeviceReport::read_json).transpose().context("--device")?;
        let target = args.target.name();
        let mut settings = Settings::new(&subject, &plan, target.name(), settings);
        if target.is_embedded() {
            settings.mode = Some(args.target.mode.name());
            settings.config = Some(args.target.config.name());
        }
        if connect.blocks() {
            (settings.threads, settings.connections) = (settings.clients, settings.clients);
        }
        settings.check = match args.check {
            Check::Values => "values",
            Check::Ledger if connect.tells_versions() => "ledger",
            Check::Ledger => "presence",
        };
        let machine = Machine::of(args.target.data.as_deref());
        let mut report = Report::begin("run", machine, settings);
        let books = books(args, &subject)?;
        let live_bytes =
            subject.records as f64 * (subject.spec.mean_value_bytes() + subject.spec.keys.bytes as f64);
        let records = subject.records;
        let session = Session::begin(subject, connect, books, interrupt.clone()).await?;
        let mut log = session::begin_log(args.load.hlog.as_deref())?;
        let mut early = None;
        if !args.skip_load {
            let load = session.load().await?;
            early = load.early().cloned();
            report.warnings.extend(load.warnings.iter().cloned());
            report.load = Some(PhaseReport::untimed(load));
        }
        if early.is_none() && !args.only_load {
            let live = Live::new("run", session::goal(&plan));
            let meter = RefCell::new(Meter::default());
            let run = session.timed(&plan, None, &live, &meter, log.as_mut(), async |_| Ok(())).await?;
            early = run.early().cloned();
            report.warnings.extend(run.warnings.iter().cloned());
            report.run = Some(PhaseReport::timed(run, &plan));
            report.note_doubts();
        }
        if let (Some(probe), Some(run)) = (&probe, &report.run) {
            report.device = share_of_device(probe, args, &report.settings, run);
        }
        // Of a store that was not loaded to its end, nobody knows how much is live.
        if args.skip_load || report.load.as_ref().is_some_and(|load| load.numbers.operations >= records) {
            // Inserts made it larger than it was loaded.
            report.note_space(live_bytes * session.records() as f64 / records as f64);
        }
        if args.verify && early != Some(EarlyEnd::Interrupted) {
            let mut verify = VerifyReport::default();
            let (measured, unread) = session.read_back(0, session.records()).await?;
            verify.add(&measured, session.records(), unread);
            early = early.or(measured.early().cloned());
            report.verify = Some(verify);
        }
        let recorded = finish_record(args, session.books(), interrupt);
        let logged = finish_log(&args.load, log);
        // What was measured is told, whatever goes wrong on the way out.
        for error in [recorded.err(), logged.err(), session.finish().err()].into_iter().flatten() {
            early.get_or_insert(EarlyEnd::Hopeless(format!("{error:#}")));
        }
        if let Some(why) = report.run.as_ref().and_then(PhaseReport::unanswered) {
            early.get_or_insert(EarlyEnd::Hopeless(why));
        }
        report.ended_early = early.as_ref().map(EarlyEnd::to_string);
        report.partial = early.is_some();
        report.ok = early.is_none() && report.kept_every_promise();
        Ok(report)
    }
}

/// Ends the record of acknowledged writes.
fn finish_record(args: &RunArgs, books: &Books, interrupt: &Interrupt) -> anyhow::Result<()> {
    if let (Some(path), Some(journal)) = (&args.record, &books.journal) {
        let path = path.display();
        match journal.finish()? {
            0 => eprintln!("--record {path}: not written, for no write was acknowledged"),
            writes if interrupt.is_raised() => {
                eprintln!("{path} holds {} acknowledged writes", count(writes))
            }
            _ => {}
        }
    }
    Ok(())
}

/// Refuses books that prove nothing, before anything is laid out.
fn keepable(args: &RunArgs, spec: &Spec) -> anyhow::Result<()> {
    let expire = spec.ttl().is_some();
    usage(
        !args.verify || args.check == Check::Ledger && !expire,
        "--verify needs --check ledger, and values that do not vanish by themselves (no TTL)",
    )?;
    usage(
        args.record.is_none() || !expire,
        "--record: values that vanish by themselves (TTL) cannot be verified",
    )
}

/// The books that a run keeps.
fn books(args: &RunArgs, subject: &Subject) -> anyhow::Result<Books> {
    // Values that vanish by themselves break no promise.
    let expire = subject.spec.ttl().is_some();
    let ledger = (args.check == Check::Ledger && !expire).then(|| Ledger::new(0, subject.records));
    let about = About { names: subject.spec.names() };
    let journal = args.record.as_deref().map(|path| Journal::create(path, about)).transpose()?;
    Ok(Books { ledger, journal })
}

/// What part of the device's own speed the run reached: its nearest cell has the value's size, the workers in flight
/// as depth, and the run's share of reads.
fn share_of_device(
    probe: &DeviceReport,
    args: &RunArgs,
    settings: &Settings,
    run: &PhaseReport,
) -> Option<DeviceShare> {
    let like = Cell {
        bytes: settings.workload.mean_value_bytes() as u32,
        depth: settings.clients,
        read_share: 1.0 - settings.workload.update_share(),
        durable: args.target.mode == Mode::Sync,
    };
    let share = share::share(probe, &like, run.numbers.ops_per_second)?;
    let near = if share.exact { "" } else { "nearest cell: " };
    Some(DeviceShare {
        cell: format!("{near}{}", share.cell.name()),
        ops_per_second: share.cell.ops_s,
        share: share.share,
    })
}

/// Looks whether the files can be written that a run will write, before it starts.
pub(crate) fn check_files(load: &LoadArgs) -> anyhow::Result<()> {
    output::check_all([
        ("--json", &load.json),
        ("--html", &load.html),
        ("--csv", &load.csv),
        ("--hlog", &load.hlog),
    ])
}

/// Writes what was asked for. A file that cannot be written does not keep the others from it.
///
/// # Errors
/// The first of them.
pub(crate) fn write_files(load: &LoadArgs, report: &Report) -> anyhow::Result<()> {
    let mut written = Vec::new();
    if let Some(path) = &load.json {
        written.push(report.write_json(path).context("--json"));
    }
    match (&load.csv, &report.run) {
        (Some(path), Some(run)) => written.push(csv::write(path, &run.timeline).context("--csv")),
        (Some(path), None) => tell_unwritten("--csv", path),
        (None, _) => {}
    }
    if let Some(path) = &load.html {
        written.push(report.page().write(path).context("--html"));
    }
    written.into_iter().collect()
}

/// Ends the log of latencies.
pub(crate) fn finish_log(load: &LoadArgs, log: Option<Log>) -> anyhow::Result<()> {
    if let (Some(path), Some(log)) = (&load.hlog, log)
        && !log.finish()?
    {
        tell_unwritten("--hlog", path);
    }
    Ok(())
}

/// An older file of that name is another run's, and stays.
fn tell_unwritten(option: &str, path: &Path) {
    eprintln!("{option} {}: not written, for nothing was measured in the timed phase", path.display());
}

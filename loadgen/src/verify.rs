//! `verify`: reads back what an earlier `run --record` wrote down as acknowledged.

use anyhow::ensure;

use crate::check::books::Books;
use crate::check::journal::Recorded;
use crate::check::ledger::Promise;
use crate::cli::usage;
use crate::cli::verify::VerifyArgs;
use crate::interrupt::Interrupt;
use crate::load::plan::Plan;
use crate::load::runner::{EarlyEnd, Shape};
use crate::load::session::{Session, Subject};
use crate::report::figures::count;
use crate::report::machine::Machine;
use crate::report::{Report, Settings, VerifyReport};
use crate::target::Connect;
use crate::target::open::{Amount, Visit, with_target};
use crate::workload::spec::Spec;

/// Runs it; gives the report, whether good or bad.
pub(crate) async fn verify(args: &VerifyArgs, interrupt: &Interrupt) -> anyhow::Result<Report> {
    let recorded = Recorded::open(&args.file)?;
    ensure!(recorded.writes > 0, "{}: no acknowledged write is recorded in it", args.file.display());
    eprintln!("{} acknowledged writes of {} records", count(recorded.writes), count(recorded.records));
    usage(
        !args.target.name().is_embedded() || args.target.data.is_some(),
        "an embedded store is found again by its --data folder",
    )?;
    let amount = Amount {
        live_bytes: 0,
        written_bytes: 0,
        value_bytes: 1024,
        overhead_bytes: 0,
        threads: args.threads,
        must_exist: true,
    };
    with_target(&args.target, amount, interrupt, Verify { args, recorded, interrupt }).await
}

struct Verify<'a> {
    args: &'a VerifyArgs,
    recorded: Recorded,
    interrupt: &'a Interrupt,
}

impl Visit for Verify<'_> {
    type Output = Report;

    async fn visit<C: Connect>(self, connect: C, settings: Vec<(String, String)>) -> anyhow::Result<Report> {
        let Verify { args, recorded, interrupt } = self;
        let shape = Shape {
            threads: args.threads,
            connections: args.threads,
            workers: args.clients,
            cpus: Vec::new(),
        };
        // Only the keys' names matter.
        let mut spec = Spec::named_or_file("c")?;
        spec.keys.bytes = recorded.about.names.bytes();
        spec.keys.order = recorded.about.names.order();
        let subject = Subject { spec, records: recorded.records, seed: 0, shape };
        let plan = Plan::new(std::time::Duration::ZERO, Vec::new());
        let settings = Settings::new(&subject, &plan, args.target.name().name(), settings);
        let mut report = Report::begin("verify", Machine::of(args.target.data.as_deref()), settings);
        if recorded.torn_bytes > 0 {
            report.warnings.push(format!(
                "the file ends in the middle of an entry ({} bytes): its writer was killed, or its disk was full",
                recorded.torn_bytes
            ));
        }
        let mut session = Session::begin(subject, connect, Books::default(), interrupt.clone()).await?;
        let window = (args.memory / size_of::<Promise>() as u64).max(1);
        let mut verify = VerifyReport::default();
        let mut early = None;
        let mut first = 0;
        while first < recorded.records && early.is_none() {
            let end = first.saturating_add(window).min(recorded.records);
            let ledger = recorded.window(first, end - first)?;
            session.with_books(Books { ledger: Some(ledger), journal: None });
            let (measured, unread) = session.read_back(first, end).await?;
            verify.add(&measured, end - first, unread);
            early = measured.early().cloned();
            first = end;
        }
        verify.unread += recorded.records - first;
        verify.records = recorded.records;
        report.verify = Some(verify);
        // What was found is told, whatever goes wrong on the way out.
        if let Err(error) = session.finish() {
            early.get_or_insert(EarlyEnd::Hopeless(format!("{error:#}")));
        }
        report.ended_early = early.as_ref().map(EarlyEnd::to_string);
        report.partial = early.is_some();
        report.ok = early.is_none() && report.kept_every_promise();
        Ok(report)
    }
}

//! `run`: loads and measures a cluster that is already running.

use std::cell::RefCell;

use crate::cli::RunArgs;
use crate::load::runner::EarlyEnd;
use crate::load::session::Session;
use crate::measure::meter::Meter;
use crate::report::progress::Live;
use crate::report::{FORMAT, Report, Settings};

/// Runs it; gives the report, whether good or bad.
pub(crate) async fn run(args: &RunArgs) -> anyhow::Result<Report> {
    let session = Session::begin(&args.load, &args.addr).await?;
    let mut report = Report {
        format: FORMAT,
        command: "run",
        version: env!("CARGO_PKG_VERSION"),
        ok: false,
        ended_early: None,
        settings: Settings::new(&args.load, args.operations, None),
        load: None,
        run: None,
        outages: Vec::new(),
        verify: None,
    };
    let mut early = None;
    if !args.skip_load {
        let load = session.load().await?;
        report.load = Some(load.report);
        early = load.early;
    }
    if early.is_none() {
        let live = Live::new("run", session.mixed_goal(args.operations));
        let meter = RefCell::new(Meter::default());
        let run = session.mixed(args.operations, None, &live, &meter, async |_| Ok(())).await?;
        report.run = Some(run.report);
        early = run.early;
    }
    if args.verify {
        report.verify = Some(session.read_back().await?);
    }
    report.ended_early = early.as_ref().map(EarlyEnd::to_string);
    report.ok = early.is_none() && report.kept_every_promise();
    Ok(report)
}

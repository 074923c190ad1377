//! The `terrane-loadgen` binary: loads, measures and checks Terrane clusters.
//!
//! From the outside in: `cli` says what can be asked; `demo` and `bench` (the `run` command) are the two commands, the
//! first with a cluster of its own (`cluster`, `place`, `leaders`, `outage`); `session` is one run against a cluster,
//! its `phases` executed by the `runner`'s workers against a `target`; `workload` and `zipf` choose the operations,
//! `record` and `ledger` are how every answer is checked; `tally`, `meter`, `report` and `progress` count and tell.
//!
//! Invariants: nothing but `cluster_target` and `leaders` knows the client library; standard output holds results only.

mod check;
mod cli;
mod demo;
mod device;
mod interrupt;
mod load;
mod measure;
mod place;
mod report;
mod run;
mod servers;
mod target;
mod workload;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

use crate::cli::{Cli, Command};
use crate::interrupt::{Interrupted, or_interrupted};
use crate::report::Report;

/// Failure, or something acknowledged was lost.
const FAILED: u8 = 1;

/// Interrupted by SIGINT or SIGTERM.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILED),
        Err(error) => {
            eprintln!("terrane-loadgen: {error:#}");
            ExitCode::from(if error.is::<Interrupted>() { INTERRUPTED } else { FAILED })
        }
    }
}

/// Runs the command and tells its results; gives whether they are good.
fn run(cli: &Cli) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    if let Command::Device(args) = &cli.command {
        return runtime.block_on(device::run(args)).map(|()| true);
    }
    let json = match &cli.command {
        Command::Demo(args) => args.load.json.as_deref(),
        Command::Run(args) => args.load.json.as_deref(),
        Command::Device(_) => unreachable!("it was run above"),
    };
    if let Some(path) = json {
        Report::begin_json(path)?;
    }
    let report = match &cli.command {
        Command::Demo(args) => runtime.block_on(or_interrupted(demo::demo(args)))?,
        Command::Run(args) => runtime.block_on(or_interrupted(run::run(args)))?,
        Command::Device(_) => unreachable!("it was run above"),
    };
    tell(&report);
    if let Some(path) = json {
        report.write_json(path)?;
    }
    Ok(report.ok)
}

#[expect(clippy::print_stdout, reason = "the results are this program's output")]
fn tell(report: &Report) {
    println!("{}", report.tables());
    println!("{}", report.verdict());
}

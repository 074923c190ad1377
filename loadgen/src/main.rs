//! The `terrane-loadgen` binary: loads, measures and checks Terrane, and its peers beside it.
//!
//! From the outside in: `cli` says what can be asked; `run`, `verify` and `demo` are commands, the last with a cluster
//! of its own (`servers`). `load` is one run against a target: its crew of threads, its phases, its plan. A `target` is
//! whatever keeps values under keys. `workload` chooses the operations and composes the values; `check` is how every
//! answer is held against what was acknowledged; `measure` counts, `report` tells, `output` is how files are written.
//!
//! Invariants: nothing but `target/cluster` and `target/leaders` knows the client library, nothing but `target/engine`
//! and `device` the engine and the media; standard output holds results only.

mod check;
mod cli;
mod compare;
mod demo;
mod device;
mod interrupt;
mod load;
mod measure;
mod output;
mod place;
mod report;
mod ring;
mod run;
mod servers;
mod target;
mod verify;
mod workload;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

use crate::cli::{Cli, Command, WrongUsage};
use crate::interrupt::{INTERRUPTED, Interrupt, Interrupted};
use crate::report::Report;

/// Failure, or something acknowledged was lost.
const FAILED: u8 = 1;

/// The command line contradicts itself; clap's own code.
const WRONG_USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
        .and_then(|runtime| {
            let done = runtime.block_on(execute(&cli));
            // A blocking call that was left behind by an interrupt ends with the process.
            runtime.shutdown_background();
            done
        });
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("terrane-loadgen: {error:#}");
            ExitCode::from(match error {
                error if error.is::<Interrupted>() => INTERRUPTED,
                error if error.is::<WrongUsage>() => WRONG_USAGE,
                _ => FAILED,
            })
        }
    }
}

/// Runs the command and tells its results.
async fn execute(cli: &Cli) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::listen()?;
    let (report, files) = match &cli.command {
        Command::Compare(args) => {
            let complete = compare::compare(&args.clone().spelled_out(), &interrupt).await?;
            return Ok(if complete { ExitCode::SUCCESS } else { ExitCode::from(FAILED) });
        }
        Command::Device(args) => return device::run(args, &interrupt).await.map(|()| ExitCode::SUCCESS),
        Command::Demo(args) => {
            run::check_files(&args.load)?;
            (demo::demo(args, &interrupt).await?, Some(&args.load))
        }
        Command::Run(args) => {
            run::check_files(&args.load)?;
            (run::run(args, &interrupt).await?, Some(&args.load))
        }
        Command::Verify(args) => {
            if let Some(path) = &args.json {
                output::check("--json", path)?;
            }
            let report = verify::verify(args, &interrupt).await?;
            if let Some(path) = &args.json {
                report.write_json(path)?;
            }
            (report, None)
        }
    };
    tell(&report);
    if let Some(files) = files {
        run::write_files(files, &report)?;
    }
    Ok(match report.ok {
        true => ExitCode::SUCCESS,
        false if interrupt.is_raised() => ExitCode::from(INTERRUPTED),
        false => ExitCode::from(FAILED),
    })
}

#[expect(clippy::print_stdout, reason = "the results are this program's output")]
fn tell(report: &Report) {
    println!("{}", report.tables());
    println!("{}", report.verdict());
}

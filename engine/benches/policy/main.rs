//! What the policies of cleaning make of a load: write amplification by policy and space, beside what others do, the
//! formulas, and an oracle.
//!
//! ```text
//! cargo bench -p terrane-engine --bench policy
//! cargo bench -p terrane-engine --bench policy -- --quick
//! cargo bench -p terrane-engine --bench policy -- --all
//! cargo bench -p terrane-engine --bench policy -- --trace updates.txt
//! ```
//!
//! Nothing is timed: the same seed gives the same numbers on any machine. `trace.rs` says what a recorded trace looks like,
//! `sim.rs` what is counted.

mod bound;
mod plan;
mod sim;
mod trace;

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use anyhow::{Context, ensure};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use terrane_engine::policy::victim::Score;

use crate::plan::{Row, Section};
use crate::sim::{Log, Outcome, Policy, Streams};
use crate::trace::{Choice, Load, Trace};

/// What to run.
#[derive(Debug, Parser)]
#[command(name = "policy", about = "Write amplification of cleaning policies, simulated")]
struct Options {
    /// A small run: a tenth of the keys, a third of the overwrites.
    #[arg(long)]
    quick: bool,

    /// Other loads, and everything that was tried.
    #[arg(long)]
    all: bool,

    /// Keys of the store.
    #[arg(long, default_value_t = 300_000, value_parser = clap::value_parser!(u32).range(1_000..), value_name = "N")]
    keys: u32,

    /// Updates, as overwrites of the store; the first two thirds only warm up.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    overwrites: u32,

    /// Space amplifications: bytes occupied ÷ bytes alive.
    #[arg(long, value_delimiter = ',', default_values_t = [1.3, 1.6], value_name = "SA,SA…")]
    space: Vec<f64>,

    /// Segments that what is alive would fill.
    #[arg(long, default_value_t = 2_048, value_parser = clap::value_parser!(u32).range(64..), value_name = "N")]
    segments: u32,

    /// Replay a recorded trace, instead of the loads made here.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,

    /// Decides everything that is left to chance.
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,

    /// Said by `cargo bench`; it means nothing.
    #[arg(long, hide = true)]
    bench: bool,
}

#[expect(clippy::print_stdout, reason = "the tables are what this program is for")]
fn main() -> anyhow::Result<()> {
    let mut options = Options::parse();
    if options.quick {
        options.keys /= 10;
        options.overwrites = (options.overwrites / 3).max(1);
        options.segments = (options.segments / 4).max(64);
    }
    let least = 1.0 + 40.0 / f64::from(options.segments);
    for space in &options.space {
        ensure!(
            *space >= least,
            "--space {space}: at least {least:.2}, for the open segments of {}",
            options.segments
        );
    }
    let keys = options.keys as usize;
    let base = plan::zipf(keys, keys * options.overwrites as usize, options.seed);
    let mut sections = match &options.trace {
        Some(path) => {
            vec![Section { title: path.display().to_string(), load: None, rows: plan::main_rows() }]
        }
        None => vec![Section {
            title: "Zipf 0.99, records of one size".to_owned(),
            load: Some(base),
            rows: plan::main_rows(),
        }],
    };
    if options.trace.is_none() {
        let uniform = Load { choice: Choice::Uniform, ..base };
        match options.all {
            true => sections.extend(plan::other_sections(base)),
            false => sections.push(Section {
                title: "Uniform keys".to_owned(),
                load: Some(uniform),
                rows: plan::short_rows(),
            }),
        }
    }
    if options.all {
        let load = options.trace.is_none().then_some(base);
        sections.push(Section { title: "One thing changed at a time".to_owned(), load, rows: plan::tried() });
    }

    println!(
        "Write amplification, simulated; {} segments of live data, {} overwrites, seed {}.",
        options.segments, options.overwrites, options.seed
    );
    let progress = progress_bar(&options, &sections)?;
    for section in &sections {
        let trace = match (&section.load, &options.trace) {
            (Some(load), _) => load.make(),
            (None, path) => {
                let path = path.as_ref().context("a section without a load has a trace")?;
                let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
                Trace::read(BufReader::new(file)).with_context(|| path.display().to_string())?
            }
        };
        progress.set_message(section.title.clone());
        let outcomes = run_section(&options, &trace, &section.rows, &progress)?;
        progress.suspend(|| {
            println!("\n{}\n{}", section.title, table(&options, &section.rows, &outcomes));
            if let Some(Load { choice: Choice::Zipf { theta }, churn: 0, .. }) = section.load {
                let groups = bound::zipf(keys, theta);
                println!(
                    "{}",
                    line("bound: true rates, segments without end", &options.space, |space| {
                        format!("{:.2}", bound::least_amplification(&groups, space))
                    })
                );
            }
        });
    }
    if options.trace.is_none() {
        let uniform = Load { choice: Choice::Uniform, ..base }.make();
        let spaces = [1.1, 1.2, 1.3, 1.4, 1.6];
        let oldest = Policy { streams: Streams::One, score: Score::Oldest, heads: false };
        let simulated = run_cells(&uniform, &options, &spaces.map(|space| (oldest, space)), &progress)?;
        progress.suspend(|| {
            println!("\nUniform keys, the oldest segment first: the formula, and the simulation as a check");
            println!("{}", line("", &spaces, |space| format!("SA {space}")));
            println!("{}", line("formula", &spaces, |space| format!("{:.2}", bound::oldest_first(space))));
            let mut simulated = simulated.iter();
            println!(
                "{}",
                line("simulated", &spaces, |_| {
                    simulated
                        .next()
                        .map_or(String::new(), |outcome| format!("{:.2}", outcome.amplification()))
                })
            );
        });
    }
    progress.finish_and_clear();
    Ok(())
}

fn line(name: &str, spaces: &[f64], mut cell: impl FnMut(f64) -> String) -> String {
    let cells: Vec<String> = spaces.iter().map(|space| format!("{:>8}", cell(*space))).collect();
    format!("  {name:<44}{}", cells.concat())
}

/// Outcomes are by row, then by space.
fn table(options: &Options, rows: &[Row], outcomes: &[Outcome]) -> String {
    let mut lines = vec![line("", &options.space, |space| format!("SA {space}"))];
    for (row, outcomes) in rows.iter().zip(outcomes.chunks(options.space.len())) {
        let mut outcomes_left = outcomes.iter();
        let mut text = line(&row.name, &options.space, |_| {
            outcomes_left.next().map_or(String::new(), |outcome| format!("{:.2}", outcome.amplification()))
        });
        if row.policy.heads {
            let looked_at = |outcome: &Outcome| outcome.looked_at / outcome.victims.max(1);
            let most = outcomes.iter().map(looked_at).max().unwrap_or(0);
            let segments = outcomes.iter().map(|outcome| outcome.segments).max().unwrap_or(0);
            text += &format!("   looks at {most} of {segments} segments");
        }
        lines.push(text);
    }
    lines.join("\n")
}

fn run_section(
    options: &Options,
    trace: &Trace,
    rows: &[Row],
    progress: &ProgressBar,
) -> anyhow::Result<Vec<Outcome>> {
    let cells: Vec<(Policy, f64)> =
        rows.iter().flat_map(|row| options.space.iter().map(|space| (row.policy, *space))).collect();
    run_cells(trace, options, &cells, progress)
}

/// Runs every cell, as many at once as there are processors. Outcomes are in the order of the cells.
fn run_cells(
    trace: &Trace,
    options: &Options,
    cells: &[(Policy, f64)],
    progress: &ProgressBar,
) -> anyhow::Result<Vec<Outcome>> {
    let segment_bytes = (trace.live_bytes_max / u64::from(options.segments)).max(1);
    let largest = trace.record_bytes_max();
    ensure!(
        u64::from(largest) * 4 <= segment_bytes,
        "a record has {largest} bytes, and a segment {segment_bytes}: fewer --segments"
    );
    let warm = trace.updates.len() / 3 * 2;
    let next = AtomicUsize::new(0);
    let (results, collected) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            let (results, next) = (results.clone(), &next);
            scope.spawn(move || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some((policy, space)) = cells.get(index) else { break };
                    let log = Log { segment_bytes, space: *space, warm };
                    let outcome = sim::run(trace, &log, *policy, &|updates| progress.inc(updates));
                    if results.send((index, outcome)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(results);
        let mut outcomes = vec![None; cells.len()];
        for (index, outcome) in collected {
            outcomes[index] = Some(outcome);
        }
        outcomes.into_iter().collect::<Option<Vec<Outcome>>>().context("a run ended without a result")
    })
}

/// Hidden unless a person watches.
fn progress_bar(options: &Options, sections: &[Section]) -> anyhow::Result<ProgressBar> {
    let cells: usize = sections.iter().map(|section| section.rows.len() * options.space.len()).sum();
    let updates = u64::from(options.keys) * u64::from(options.overwrites);
    let style = ProgressStyle::with_template("{bar:24.cyan/blue} {percent:>3} %  {msg}  {eta} left")?;
    Ok(ProgressBar::new((cells as u64 + 5) * updates).with_style(style))
}

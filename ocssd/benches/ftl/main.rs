//! What an ordinary drive makes of the writes that it gets: device amplification by workload, use, TRIM and streams,
//! beside the formulas and the figures that others report.
//!
//! ```text
//! cargo bench -p terrane-ocssd --bench ftl
//! cargo bench -p terrane-ocssd --bench ftl -- --full --json ftl.json --svg ftl.svg
//! cargo bench -p terrane-ocssd --bench ftl -- --trace engine.0 engine.1
//! ```
//!
//! Traces are recorded by `terrane-loadgen run --target engine --trace engine`, one for each shard; several at once are
//! shards that share the drive.
//!
//! Nothing is timed: the same seed gives the same numbers on any machine. The drive is filled once before each cell, so
//! that without TRIM it takes everything for data.

mod cell;
mod host_managed;
mod plan;
mod plot;
mod recorded;
mod table;
mod workload;

use std::fs::File;
use std::io::{BufWriter, IsTerminal};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use anyhow::Context;
use clap::Parser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use terrane_ocssd::ftl::FtlOptions;

use crate::cell::{Cell, Laps, Row};
use crate::plan::{Kind, Section};
use crate::recorded::Drive;

/// What to run.
#[derive(Debug, Parser)]
#[command(
    name = "ftl",
    about = "Device write amplification of an ordinary drive, by a model of its translation layer"
)]
struct Options {
    /// A drive of 32 GiB and longer runs (well over five minutes), instead of 2 GiB.
    #[arg(long)]
    full: bool,

    /// Shares of the logical space in use, percent. With --trace: what the traces' slices take of the drive.
    #[arg(long, value_delimiter = ',', default_values_t = [70, 80, 90], value_parser = clap::value_parser!(u32).range(10..=100), value_name = "P,P…")]
    uses: Vec<u32>,

    /// Over-provisioning of the drive, as a share of its logical space.
    #[arg(long, default_value_t = 0.07, value_name = "SHARE")]
    spare: f64,

    /// Replay what was recorded of a medium (`terrane-loadgen run --target engine --trace FILE`), instead of the
    /// workloads made here. Several: shards that share the drive.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    trace: Vec<PathBuf>,

    /// Pages of an erase block, with --trace. By default a 512th of the drive.
    #[arg(long, requires = "trace", value_name = "N")]
    block_pages: Option<u32>,

    /// With --trace: the drive has no protected cache, and programs a page that two successive writes share for each
    /// of them.
    #[arg(long, requires = "trace")]
    no_cache: bool,

    /// Decides everything that is left to chance.
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,

    /// Write all results to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Draw amplification over use into this file.
    #[arg(long, conflicts_with = "trace", value_name = "FILE")]
    svg: Option<PathBuf>,

    /// Print tables as Markdown.
    #[arg(long)]
    markdown: bool,

    /// Said by `cargo bench`; it means nothing.
    #[arg(long, hide = true)]
    bench: bool,
}

#[expect(clippy::print_stdout, reason = "the tables are what this program is for")]
fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    if !options.trace.is_empty() {
        let drive = Drive {
            uses: options.uses,
            over_provisioning: options.spare,
            block_pages: options.block_pages,
            merge: !options.no_cache,
        };
        let replayed = recorded::replay_files(&options.trace, &drive)?;
        println!("{}", recorded::table(&replayed, options.markdown));
        return write_json(options.json.as_ref(), &replayed);
    }
    let (logical_pages, laps) = match options.full {
        true => (1 << 23, Laps { warm: 5, measured: 3 }),
        false => (1 << 19, Laps { warm: 4, measured: 2 }),
    };
    let drive = FtlOptions {
        logical_pages,
        block_pages: logical_pages / 512,
        over_provisioning: options.spare,
        ..FtlOptions::default()
    };
    drive.validate()?;
    println!(
        "A drive of {} pages of 4 KiB in blocks of {} ({} blocks, {:.1} % spare), seed {}.",
        drive.logical_pages,
        drive.block_pages,
        drive.blocks(),
        drive.over_provisioning * 100.0,
        options.seed
    );
    let sections = [
        plan::formulas(&drive),
        plan::workloads(&drive, &options.uses),
        plan::cache(&drive),
        plan::mixing(&drive),
    ];
    let rows = run_all(&sections, laps, options.seed)?;
    let mut left = &rows[..];
    for section in &sections {
        let (rows, rest) = left.split_at(section.cells.len());
        left = rest;
        println!("\n{}\n\n{}", section.title, table::table(section.kind, rows, options.markdown));
        if let (Kind::Workloads, Some(path)) = (section.kind, &options.svg) {
            plot::write(path, rows)?;
        }
    }
    let host_managed = host_managed::run(options.spare, options.seed)?;
    println!(
        "\nA log recorded on host-managed flash\n\n{}",
        recorded::table(&host_managed, options.markdown)
    );
    write_json(options.json.as_ref(), &(rows, host_managed))
}

/// Runs every cell, as many at once as there are processors. Rows are in the order of the cells.
fn run_all(sections: &[Section], laps: Laps, seed: u64) -> anyhow::Result<Vec<Row>> {
    let cells: Vec<&Cell> = sections.iter().flat_map(|section| &section.cells).collect();
    for cell in &cells {
        cell.drive.validate().with_context(|| format!("the drive of {}", cell.workload.name()))?;
    }
    let progress = progress_bar(cells.len() as u64)?;
    let next = AtomicUsize::new(0);
    let (results, collected) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            let (results, next, cells) = (results.clone(), &next, &cells);
            scope.spawn(move || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(cell) = cells.get(index) else { break };
                    if results.send((index, cell.run(laps, seed))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(results);
        let mut rows: Vec<Option<Row>> = vec![None; cells.len()];
        for (index, row) in collected {
            progress.set_message(format!("{}, {} %", row.workload, row.used_percent));
            progress.inc(1);
            rows[index] = Some(row);
        }
        progress.finish_and_clear();
        rows.into_iter().collect::<Option<Vec<Row>>>().context("a run ended without a result")
    })
}

fn progress_bar(cells: u64) -> anyhow::Result<ProgressBar> {
    let target = match std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let style = ProgressStyle::with_template("{bar:24.cyan/blue} {pos}/{len}  {msg}  {elapsed} so far")?;
    Ok(ProgressBar::with_draw_target(Some(cells), target).with_style(style))
}

fn write_json(path: Option<&PathBuf>, rows: &impl serde::Serialize) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    let context = || format!("writing {}", path.display());
    let file = File::create(path).with_context(context)?;
    serde_json::to_writer_pretty(BufWriter::new(file), rows).with_context(context)
}

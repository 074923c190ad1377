//! The device probe: what the hardware gives to the same I/O code that the engine writes and reads through (the media of
//! `terrane_ocssd` on monoio), so that each result can be read as a share of it.
//!
//! ```text
//! scratch    a file or block device, laid out like a node's, filled, removed at the end
//! cell       one cell measured on it: clients on a slice for each thread, their places chosen by `chunks`
//! report     what came out, as a table and as JSON
//! share      a result as a share of the nearest cell
//! ```
//!
//! Invariants:
//! - What exists is destroyed only if that was forced; the probe's own file never outlives the probe.
//! - An interrupted probe still tells the cells that it measured, and says that others are missing.

mod cell;
mod chunks;
mod progress;
pub(crate) mod report;
mod scratch;
pub(crate) mod share;

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::sync::oneshot;

use crate::cli::device::DeviceArgs;
use crate::device::progress::Progress;
use crate::device::scratch::Wanted;
use crate::interrupt::{Interrupt, Interrupted};
use crate::output;

pub(crate) use crate::device::cell::{Cell, Stop};
pub(crate) use crate::device::report::{DeviceReport, Measured};
pub(crate) use crate::device::scratch::Scratch;

const KIB: u32 = 1 << 10;

/// Fewest bytes that all cells can be measured on: enough chunks of the largest write.
pub(crate) const SIZE_BYTES_MIN: u64 = 64 << 20;

/// Depths of the cells that write large blocks one after the other.
const SEQUENTIAL_DEPTH: u32 = 8;

/// How often it is looked whether the layout is still being written, once an interrupt came.
const LOOK: Duration = Duration::from_millis(20);

/// Runs the command: measures, prints, and writes the JSON.
///
/// # Errors
/// [`Interrupted`] if it was, and whatever else ended it; what had been measured by then was told before.
pub(crate) async fn run(args: &DeviceArgs, interrupt: &Interrupt) -> anyhow::Result<()> {
    if let Some(path) = &args.json {
        output::check("--json", path)?;
    }
    let (stop, progress) = (Stop::default(), Arc::new(Progress::on_terminal()));
    let (send, done) = oneshot::channel();
    let work = {
        let (args, stop, progress) = (args.clone(), stop.clone(), progress.clone());
        move || {
            // Nobody waits for the answer only if the process is ending.
            let _ = send.send(probe(&args, &stop, &progress, &mut |_| {}));
        }
    };
    let mut done = pin!(async { done.await.context("the probe's thread ended without a word")? });
    let started = async {
        // Not before the interrupt is listened for; and not on one of the runtime's threads, whose end it would wait
        // for: this one may be left behind, see below.
        std::thread::Builder::new().name("probe".to_owned()).spawn(work).context("cannot start a thread")?;
        (&mut done).await
    };
    let probed = match interrupt.or_interrupted(started).await {
        Err(error) if error.is::<Interrupted>() => {
            stop.set();
            loop {
                if progress.is_laying_out() {
                    // It does not stop, and may take long; it ends with the process.
                    return abandon(&args.path).and(Err(error));
                }
                if let Ok(probed) = tokio::time::timeout(LOOK, &mut done).await {
                    break probed;
                }
            }
        }
        probed => probed,
    };
    progress.clear();
    let Probed { report, ended } = probed?;
    tell(&report);
    if let Some(path) = &args.json {
        report.write_json(path)?;
    }
    ended
}

/// Removes the file whose layout is being written, and will not be finished.
fn abandon(path: &Path) -> anyhow::Result<()> {
    let path = path.canonicalize()?;
    if path.is_file() {
        std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the results are this program's output")]
fn tell(report: &DeviceReport) {
    println!("{}", report.table());
}

/// What was measured, and why no more.
#[derive(Debug)]
struct Probed {
    report: DeviceReport,
    ended: anyhow::Result<()>,
}

/// Prepares the device and measures one cell after the other; `each` is shown every cell as it was measured.
fn probe(
    args: &DeviceArgs,
    stop: &Stop,
    progress: &Progress,
    each: &mut dyn FnMut(&Measured),
) -> anyhow::Result<Probed> {
    let mut cells = plan(args.quick);
    let request_bytes_max = cells.iter().map(|cell| cell.bytes).max().unwrap_or(0);
    let (path, size_bytes) = (args.path.clone(), args.size);
    let wanted = Wanted { path, size_bytes, shards: args.shards, request_bytes_max, force: args.force };
    let Some(scratch) = Scratch::prepare(&wanted, stop, progress)? else { bail!(Interrupted) };
    let superblock = *scratch.device().superblock();
    // Small requests are alike where the sectors are large.
    let mut seen = Vec::new();
    cells.retain_mut(|cell| {
        cell.bytes = cell.bytes.next_multiple_of(superblock.sector_bytes);
        let new = !seen.contains(cell);
        seen.extend(new.then_some(*cell));
        new
    });
    let mut report = DeviceReport {
        format: report::FORMAT,
        command: report::COMMAND.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        partial: false,
        ended_early: None,
        path: args.path.display().to_string(),
        size_bytes: scratch.filled_bytes(),
        sector_bytes: superblock.sector_bytes,
        chunk_bytes: superblock.chunk_bytes,
        shards: superblock.shards,
        cells: Vec::new(),
    };
    let window = args.window();
    eprintln!("Measuring {} cells, {:.3} s each.", cells.len(), window.as_secs_f64());
    let mut ended = Ok(());
    for (index, cell) in cells.iter().enumerate() {
        let name = report::name(cell.bytes, cell.depth, cell.read_share, cell.durable);
        progress.measuring(index, cells.len(), name.clone());
        match scratch.measure(*cell, window, stop) {
            Ok(Some(measured)) => {
                each(&measured);
                report.cells.push(measured);
            }
            Ok(None) => {
                ended = Err(Interrupted.into());
                break;
            }
            Err(error) => {
                ended = Err(error.context(format!("cannot measure {name}")));
                break;
            }
        }
    }
    report.partial = ended.is_err();
    report.ended_early = ended.as_ref().err().map(|error| format!("{error:#}"));
    Ok(Probed { report, ended })
}

/// The cells of the table, in its order.
fn plan(quick: bool) -> Vec<Cell> {
    let mut cells = Vec::new();
    let depths: &[u32] = if quick { &[1, 32] } else { &[1, 8, 32, 128] };
    let sizes: &[u32] = if quick { &[4, 32] } else { &[4, 8, 16, 32] };
    for bytes in sizes.iter().map(|kib| kib * KIB) {
        cells.extend(depths.iter().map(|depth| Cell {
            bytes,
            depth: *depth,
            read_share: 1.0,
            durable: false,
        }));
    }
    let mut write = |bytes, depth, read_share| {
        cells.extend([false, true].map(|durable| Cell { bytes, depth, read_share, durable }));
    };
    write(4 * KIB, 1, 0.0);
    let sizes: &[u32] = if quick { &[128] } else { &[128, 1024] };
    for kib in sizes {
        write(kib * KIB, SEQUENTIAL_DEPTH, 0.0);
    }
    let sizes: &[u32] = if quick { &[4, 32] } else { &[1, 4, 16, 32] };
    let depths: &[u32] = if quick { &[32] } else { &[8, 32] };
    for kib in sizes {
        for depth in depths {
            write(kib * KIB, *depth, 0.5);
        }
    }
    cells
}

/// Measures one cell by itself, on a file of `file_bytes` made for it in `folder` and removed again, over `shards`
/// threads. To measure several, keep a [`Scratch`].
///
/// # Errors
/// [`Interrupted`] if it was stopped; else if the folder does not suit, or an operation fails.
pub(crate) fn measure(
    folder: &Path,
    file_bytes: u64,
    cell: Cell,
    shards: u32,
    window: Duration,
    stop: &Stop,
) -> anyhow::Result<Measured> {
    let Some(scratch) = Scratch::in_folder(folder, file_bytes, shards, cell.bytes, stop)? else {
        bail!(Interrupted)
    };
    match scratch.measure(cell, window, stop)? {
        Some(measured) => Ok(measured),
        None => bail!(Interrupted),
    }
}

#[cfg(test)]
mod tests;

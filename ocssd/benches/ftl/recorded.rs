//! Recorded traces on the ordinary drive, at several fills, with and without TRIM and streams.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use comfy_table::Table;
use comfy_table::presets::{ASCII_MARKDOWN, NOTHING};
use serde::Serialize;
use terrane_ocssd::ftl::{Ftl, FtlOptions};
use terrane_ocssd::trace::{Event, ReplayOptions, Tail, Trace, replay, side_by_side};

use crate::table::{aligned, pair};

/// How many times what it is to hold the drive is written before it is measured.
const WARM_FILLS: u64 = 3;

/// Placement handles that drives offer; classes beyond them share.
const HANDLES: usize = 8;

/// One replay.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Replay {
    pub(crate) name: String,
    /// Share of the drive's logical space that the medium takes, percent. `None`, as of the next two: not a drive that
    /// hides its blocks.
    pub(crate) used_percent: Option<u32>,
    pub(crate) trim: Option<bool>,
    pub(crate) streams: Option<bool>,
    pub(crate) host_bytes: u64,
    pub(crate) programmed_bytes: u64,
    pub(crate) device_wa: f64,
}

/// The drive that a trace is replayed on.
#[derive(Debug, Clone)]
pub(crate) struct Drive {
    /// Shares of its logical space that the trace's medium takes, percent: a drive for each.
    pub(crate) uses: Vec<u32>,
    pub(crate) over_provisioning: f64,
    /// By default a 512th of the drive.
    pub(crate) block_pages: Option<u32>,
    /// Whether a page that two successive writes share is programmed once.
    pub(crate) merge: bool,
}

/// Reads traces of shards that share a drive, and replays them together.
pub(crate) fn replay_files(paths: &[PathBuf], drive: &Drive) -> anyhow::Result<Vec<Replay>> {
    let traces = paths.iter().map(|path| read(path)).collect::<anyhow::Result<Vec<Trace>>>()?;
    let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    replay_all(&names.join(", "), &side_by_side(&traces)?, drive)
}

fn read(path: &Path) -> anyhow::Result<Trace> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let trace = Trace::read(file).with_context(|| format!("reading {}", path.display()))?;
    if let Tail::CutOff { whole_bytes } = trace.tail {
        eprintln!("{} was cut off after {whole_bytes} bytes: what follows is missing", path.display());
    }
    Ok(trace)
}

/// Replays a trace: over and over until the drive is steady, then once more, of which the second half is measured. A store
/// that begins empty is thus measured when it is full.
///
/// The drive was full before. With TRIM, what is beyond the medium is trimmed; the medium itself is as it is laid out:
/// written to its end.
pub(crate) fn replay_all(name: &str, trace: &Trace, drive: &Drive) -> anyhow::Result<Vec<Replay>> {
    let trace_bytes = trace.written_bytes();
    ensure!(trace_bytes > 0, "the trace writes nothing");
    let laps = (trace.geometry.slice_bytes() * WARM_FILLS).div_ceil(trace_bytes);
    let (first, second) = trace.events.split_at(trace.events.len() / 2);
    let [first, second] = [first, second].map(|events| Trace { events: events.to_vec(), ..trace.clone() });
    let streams_apart: &[bool] = if classes_of(trace) > 1 { &[false, true] } else { &[false] };
    let mut replays = Vec::new();
    for &streams in streams_apart {
        for &used_percent in &drive.uses {
            for trim in [true, false] {
                let host_streams = if streams { classes_of(trace).min(HANDLES) as u8 } else { 1 };
                let options = drive.options(trace, used_percent, host_streams)?;
                let how = ReplayOptions { trim, streams, merge: drive.merge };
                let used_pages = (trace.geometry.slice_bytes() / u64::from(options.page_bytes)) as u32;
                let beyond = used_pages..options.logical_pages;
                let mut ftl = Ftl::new(options)?;
                ftl.fill();
                if trim {
                    beyond.for_each(|page| ftl.trim(page));
                }
                for _ in 0..laps {
                    replay(trace, &mut ftl, &how)?;
                }
                replay(&first, &mut ftl, &how)?;
                let done = replay(&second, &mut ftl, &how)?;
                replays.push(Replay {
                    name: name.to_owned(),
                    used_percent: Some(used_percent),
                    trim: Some(trim),
                    streams: Some(streams),
                    host_bytes: done.host_bytes,
                    programmed_bytes: done.programmed_bytes,
                    device_wa: done.amplification(),
                });
            }
        }
    }
    Ok(replays)
}

impl Drive {
    /// The drive of which the trace's medium takes this share.
    fn options(&self, trace: &Trace, used_percent: u32, host_streams: u8) -> anyhow::Result<FtlOptions> {
        let usual = FtlOptions::default();
        let bytes = trace.geometry.slice_bytes() * 100 / u64::from(used_percent);
        let pages = bytes.div_ceil(u64::from(usual.page_bytes));
        let logical_pages = u32::try_from(pages).context("the trace is of more pages than the model has")?;
        Ok(FtlOptions {
            logical_pages,
            block_pages: self.block_pages.unwrap_or((logical_pages / 512).max(1)),
            over_provisioning: self.over_provisioning,
            host_streams,
            ..usual
        })
    }
}

/// Lifetime classes up to the highest.
fn classes_of(trace: &Trace) -> usize {
    let class = |event: &Event| match event {
        Event::Write { class, .. } => Some(usize::from(class.0)),
        Event::Reset { .. } | Event::Finish { .. } => None,
    };
    trace.events.iter().filter_map(class).max().map_or(0, |highest| highest + 1)
}

/// A line for each trace with and without streams, a column for each share of use.
pub(crate) fn table(replays: &[Replay], markdown: bool) -> String {
    let mut table = Table::new();
    table.load_style(if markdown { ASCII_MARKDOWN } else { NOTHING });
    let mut uses: Vec<u32> = replays.iter().filter_map(|replay| replay.used_percent).collect();
    uses.sort_unstable();
    uses.dedup();
    let names = ["trace", "streams", "measured, MiB"].map(str::to_owned).into_iter();
    table.set_header(names.chain(uses.iter().map(|used| format!("{used} % used: TRIM / none"))));
    for lines in replays.chunk_by(|left, right| (&left.name, left.streams) == (&right.name, right.streams)) {
        let line = &lines[0];
        let wa = |used: u32, trim: bool| {
            let here = |replay: &&Replay| replay.used_percent == Some(used) && replay.trim == Some(trim);
            lines.iter().find(here).map(|replay| replay.device_wa)
        };
        let streams = line.streams.map_or("", |streams| if streams { "yes" } else { "no" });
        let mut cells = vec![line.name.clone(), streams.to_owned(), (line.host_bytes >> 20).to_string()];
        cells.extend(uses.iter().map(|used| match line.used_percent {
            Some(_) => pair(wa(*used, true), wa(*used, false), 3),
            None => format!("{:.3}", line.device_wa),
        }));
        table.add_row(cells.into_iter().enumerate().map(|(index, text)| aligned(text, index > 1)));
    }
    table.trim_fmt()
}

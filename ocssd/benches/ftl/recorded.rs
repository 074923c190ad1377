//! A recorded trace on the ordinary drive, with and without TRIM and streams.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, ensure};
use comfy_table::Table;
use comfy_table::presets::{ASCII_MARKDOWN, NOTHING};
use serde::Serialize;
use terrane_ocssd::ftl::{Ftl, FtlOptions};
use terrane_ocssd::trace::{Event, ReplayOptions, Tail, Trace, replay};

/// How many times its logical space the drive is written before it is measured.
const WARM_FILLS: u64 = 3;

/// One replay.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Replay {
    pub(crate) name: String,
    /// `None`: not a drive that could be told.
    pub(crate) trim: Option<bool>,
    pub(crate) streams: Option<bool>,
    pub(crate) host_bytes: u64,
    pub(crate) programmed_bytes: u64,
    pub(crate) device_wa: f64,
}

/// Reads a trace from a file and replays it.
pub(crate) fn replay_file(
    path: &Path,
    over_provisioning: f64,
    block_pages: Option<u32>,
) -> anyhow::Result<Vec<Replay>> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let trace = Trace::read(file).with_context(|| format!("reading {}", path.display()))?;
    if let Tail::CutOff { whole_bytes } = trace.tail {
        eprintln!("{} was cut off after {whole_bytes} bytes: what follows is missing", path.display());
    }
    replay_all(&path.display().to_string(), &trace, over_provisioning, block_pages)
}

/// Bytes that a trace writes.
pub(crate) fn written_bytes(trace: &Trace) -> u64 {
    let sectors = |event: &Event| match event {
        Event::Write { sectors, .. } => u64::from(*sectors),
        Event::Reset { .. } | Event::Finish { .. } => 0,
    };
    trace.events.iter().map(sectors).sum::<u64>() * u64::from(trace.geometry.sector_bytes)
}

/// Replays a trace on drives whose logical space is just the medium: over and over until the drive is steady, then once
/// more, of which the second half is measured. A store that begins empty is thus measured when it is full.
pub(crate) fn replay_all(
    name: &str,
    trace: &Trace,
    over_provisioning: f64,
    block_pages: Option<u32>,
) -> anyhow::Result<Vec<Replay>> {
    let mut options = FtlOptions { over_provisioning, ..FtlOptions::default() };
    let pages = trace.geometry.slice_bytes() / u64::from(options.page_bytes);
    options.logical_pages = u32::try_from(pages).context("the trace is of more pages than the model has")?;
    options.block_pages = block_pages.unwrap_or((options.logical_pages / 512).max(1));
    let trace_bytes = written_bytes(trace);
    ensure!(trace_bytes > 0, "the trace writes nothing");
    let laps = (trace.geometry.slice_bytes() * WARM_FILLS).div_ceil(trace_bytes);
    let half = trace.events.len() / 2;
    let (first, second) = trace.events.split_at(half);
    let [first, second] = [first, second].map(|events| Trace { events: events.to_vec(), ..trace.clone() });
    let mut replays = Vec::new();
    for streams in [false, true] {
        for trim in [true, false] {
            let host_streams = if streams { streams_of(trace) } else { 1 };
            let mut drive = Ftl::new(FtlOptions { host_streams, ..options.clone() })?;
            let how = ReplayOptions { trim, streams, ..ReplayOptions::default() };
            drive.fill();
            for _ in 0..laps {
                replay(trace, &mut drive, &how)?;
            }
            replay(&first, &mut drive, &how)?;
            let done = replay(&second, &mut drive, &how)?;
            replays.push(Replay {
                name: name.to_owned(),
                trim: Some(trim),
                streams: Some(streams),
                host_bytes: done.host_bytes,
                programmed_bytes: done.programmed_bytes,
                device_wa: done.amplification(),
            });
        }
    }
    Ok(replays)
}

/// As many streams as the classes need, at most as many as drives offer.
fn streams_of(trace: &Trace) -> u8 {
    const HANDLES: u8 = 8;
    let class = |event: &Event| match event {
        Event::Write { class, .. } => Some(class.0),
        Event::Reset { .. } | Event::Finish { .. } => None,
    };
    let highest = trace.events.iter().filter_map(class).max().unwrap_or(0);
    highest.saturating_add(1).min(HANDLES)
}

pub(crate) fn table(replays: &[Replay], markdown: bool) -> String {
    let mut table = Table::new();
    table.load_style(if markdown { ASCII_MARKDOWN } else { NOTHING });
    table.set_header(["trace", "TRIM", "streams", "written, MiB", "programmed, MiB", "device WA"]);
    for replay in replays {
        let yes = |yes: Option<bool>| yes.map_or("", |yes| if yes { "yes" } else { "no" }).to_owned();
        table.add_row([
            replay.name.clone(),
            yes(replay.trim),
            yes(replay.streams),
            (replay.host_bytes >> 20).to_string(),
            (replay.programmed_bytes >> 20).to_string(),
            format!("{:.3}", replay.device_wa),
        ]);
    }
    table.trim_fmt()
}

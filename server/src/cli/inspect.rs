//! `terrane inspect`: what stands on the device of a node that is stopped, and whether it is all there. It never writes.
//!
//! [`terrane_engine::inspect`] looks, this tells: to people in tables, to scripts as one JSON object a line.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use terrane_engine::inspect::{
    AnchorContent, AnchorReport, Depth, FrameReport, GroupReport, LogReport, RecordCounts, Seen, SegmentId,
    SegmentReport, SegmentState, SliceReport, inspect,
};
use terrane_engine::{Damage, DamageKind};
use terrane_ocssd::{Device, DeviceMedia, DeviceOptions, Superblock, SuperblockError};

use super::status::{lines, plain_table};
use super::{Exit, Failure, output};
use crate::cluster::ClusterMap;
use crate::config::ByteSize;
use crate::{node, reactor};

const EXAMPLES: &str = "\
The node must be stopped; its device is locked meanwhile, and nothing on it is changed. All of the log is read, as a start
would, unless --headers is given: that takes as long, and as much memory for the index.

Exit codes: 0 nothing is missing or broken; 1 it cannot be looked at (no device, in use, the system fails); 6 something is
missing or broken, or a start would refuse it.

Examples:
  terrane inspect node-1.terrane                   superblock, anchors, segments
  terrane inspect node-1.terrane --verify          only whether it is sound, and what is not
  terrane inspect /dev/nvme0n1 --headers           without reading the log
  terrane inspect node-1.terrane --slice 0 --groups --frames
  terrane inspect node-1.terrane --json | jq 'select(.slice).slice.segments[].chunk'";

/// Show what stands on a stopped node's device, or verify it. Never writes.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The file or device
    #[arg(value_name = "DEVICE")]
    device: PathBuf,
    /// Only this slice
    #[arg(long, value_name = "N")]
    slice: Option<u32>,
    /// Only what is missing or broken: every frame's and record's checksum is checked, and that all frames are there
    #[arg(long, conflicts_with_all = ["headers", "frames", "groups"])]
    verify: bool,
    /// Anchors and headers of segments only: the log is not read
    #[arg(long, conflicts_with_all = ["frames", "groups"])]
    headers: bool,
    /// Show every frame
    #[arg(long)]
    frames: bool,
    /// Show the state of every group
    #[arg(long)]
    groups: bool,
    /// Print JSON, one object a line: {"device":…}, then {"frame":…} and one {"slice":…} for each slice
    #[arg(long)]
    pub(super) json: bool,
}

/// Operations that the ring takes at once: more than are ever under way.
const RING_ENTRIES: u32 = 128;

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let options = DeviceOptions { read_only: true, ..DeviceOptions::default() };
    let device = Device::open(&args.device, &options).map_err(anyhow::Error::from)?;
    let superblock = *device.superblock();
    let copies = device.superblock_copies().map_err(anyhow::Error::from)?;
    let slices = match args.slice {
        Some(slice) if slice >= superblock.shards => {
            return Err(Failure::usage(format!("there is no slice {slice}: it has {}", superblock.shards)));
        }
        Some(slice) => slice..slice + 1,
        None => 0..superblock.shards,
    };
    match args.json {
        true => output::print_json(&json!({ "device": device_json(device.path(), &superblock, &copies) }))?,
        false => output::print(device_text(device.path(), &superblock, &copies, args.verify))?,
    }
    let mut unsound: Vec<String> = copies
        .iter()
        .zip(0..)
        .filter(|(copy, _)| copy.is_err())
        .map(|(_, copy)| format!("superblock copy {copy}"))
        .collect();
    let looked = reactor::run_shard(None, RING_ENTRIES, |_: reactor::Reactor<DeviceMedia>| async {
        for slice in slices {
            if !look_at(args, &device, slice).await? {
                unsound.push(format!("slice {slice}"));
            }
        }
        Ok::<_, Failure>(())
    });
    looked.map_err(|error| Failure::new(Exit::Failure, error.to_string()))??;
    match unsound.is_empty() {
        true if args.json || !args.verify => Ok(()),
        true => output::print("sound\n"),
        false => Err(Failure::new(Exit::Damaged, format!("missing or broken: {}", unsound.join(", ")))),
    }
}

/// Looks at one slice and tells what is there. False: something is not.
async fn look_at(args: &Args, device: &Device, shard: u32) -> Result<bool, Failure> {
    let media = device.slice(shard).await.map_err(anyhow::Error::from)?;
    let bar = progress_bar(shard);
    let mut printed = Ok(());
    if args.frames && !args.json {
        printed = output::print(format!("\nslice {shard}: frames\n{}", frame_header()));
    }
    let depth = if args.headers { Depth::Headers } else { Depth::Log };
    let see = |seen: Seen| match seen {
        Seen::Progress { read_bytes, all_bytes } => {
            bar.set_length(all_bytes);
            bar.set_position(read_bytes);
        }
        Seen::Frame(frame) if args.frames && printed.is_ok() => {
            printed = bar.suspend(|| match args.json {
                true => output::print_json(&json!({ "frame": frame_json(shard, &frame) })),
                false => output::print(frame_text(&frame)),
            });
        }
        Seen::Frame(_) => {}
    };
    let report = inspect(&media, node::slice_id(device.superblock(), shard), depth, see).await;
    bar.finish_and_clear();
    printed?;
    let report = report.map_err(anyhow::Error::from)?;
    match args.json {
        true => output::print_json(&json!({ "slice": slice_json(args, &report) }))?,
        false => output::print(slice_text(args, &report))?,
    }
    Ok(report.is_sound())
}

/// On a terminal; nothing otherwise.
fn progress_bar(shard: u32) -> ProgressBar {
    let target = match std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    ProgressBar::with_draw_target(None, target)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        .with_message(format!("reading slice {shard}"))
}

// --- what it is called

/// What stands in the place of one copy.
fn copy_text(copy: &Result<Superblock, SuperblockError>) -> String {
    match copy {
        Ok(found) => format!("valid, format {}, sequence {}", found.version, found.sequence),
        Err(SuperblockError::Blank) => "blank".to_owned(),
        Err(SuperblockError::NotOurs) => "something else".to_owned(),
        Err(SuperblockError::Newer { version }) => format!("format {version}, newer than this program"),
        Err(SuperblockError::Damaged { reason }) => format!("damaged: {reason}"),
        Err(other) => other.to_string(),
    }
}

fn segment_name(id: SegmentId) -> String {
    format!("{}.{}", id.epoch, id.ordinal)
}

fn state_name(state: SegmentState) -> &'static str {
    match state {
        SegmentState::Counts => "counts",
        SegmentState::Unused => "unused",
        SegmentState::Freed => "freed",
        SegmentState::Void => "void",
        _ => "unknown",
    }
}

fn damage_text(damage: &Damage) -> String {
    let (chunk, sector) = (damage.chunk.0, damage.sector);
    match damage.what {
        DamageKind::Frames { epoch, missing: [1, number, _] } => {
            format!("frame {number} of epoch {epoch} is missing or broken")
        }
        // The count is a difference, modulo 2^64.
        DamageKind::Frames { epoch, missing: [count, ..] } if count > i64::MAX as u64 => {
            format!("epoch {epoch} has {} frames more than the anchor knows", count.wrapping_neg())
        }
        DamageKind::Frames { epoch, missing: [count, ..] } => {
            format!("{count} frames of epoch {epoch} are missing or broken")
        }
        DamageKind::Sector => format!("chunk {chunk}, sector {sector}: the device does not give it back"),
        DamageKind::Record => format!("chunk {chunk}, sector {sector}: an intact record makes no sense"),
        _ => format!("chunk {chunk}, sector {sector}: {:?}", damage.what),
    }
}

/// What is missing or broken in a slice.
fn complaints(report: &SliceReport) -> Vec<String> {
    let refused = report.refused.iter().map(|error| format!("`terrane start` would refuse it: {error}"));
    let lost = report
        .lost_chunks
        .iter()
        .map(|chunk| format!("chunk {}: too much of it cannot be read to say whether it holds log", chunk.0));
    let damage = report.log.iter().flat_map(|log| log.damage.iter().map(damage_text));
    // Without the anchor nobody knows what should be there, but a frame that is begun and not whole is told.
    let torn = report.segments.iter().flat_map(|segment| {
        let torn = segment.contents.iter().flat_map(|contents| &contents.torn_sectors);
        let chunk = segment.chunk.0;
        torn.map(move |sector| format!("chunk {chunk}, sector {sector}: a frame is not whole"))
    });
    let torn = torn.filter(|_| !report.is_sound());
    refused.chain(lost).chain(damage).chain(torn).collect()
}

// --- for people

fn device_text(
    path: &Path,
    superblock: &Superblock,
    copies: &[Result<Superblock, SuperblockError>],
    brief: bool,
) -> String {
    let Superblock { cluster, node, shards, kind, sector_bytes, chunk_bytes, slice_bytes, version, .. } =
        *superblock;
    let mut text = String::new();
    for (copy, number) in copies.iter().zip(0..) {
        if !brief || copy.is_err() {
            text.push_str(&format!("superblock copy {number}: {}\n", copy_text(copy)));
        }
    }
    if brief {
        return text;
    }
    if copies.is_empty() {
        text.push_str(&format!("superblock: the label of every slice, format {version}\n"));
    }
    format!(
        "{}: {kind}, laid out for node {node} of cluster {cluster:032x}\n\
         {shards} slices of {}, chunks of {}, sectors of {sector_bytes} bytes\n{text}",
        path.display(),
        ByteSize(slice_bytes),
        ByteSize(chunk_bytes),
    )
}

fn frame_header() -> String {
    format!(
        "{:>8} {:>8} {:>12} {:>10} {:>10} {:>8} {:>8} {:>7} {:>8} {:>11} {:>10}\n",
        "chunk",
        "sector",
        "segment",
        "frame",
        "flush",
        "entries",
        "states",
        "settled",
        "deletes",
        "bytes",
        "lsn"
    )
}

fn frame_text(frame: &FrameReport) -> String {
    let RecordCounts { entries, states, settled, tombstones, .. } = frame.records;
    format!(
        "{:>8} {:>8} {:>12} {:>10} {:>10} {entries:>8} {states:>8} {settled:>7} {tombstones:>8} {:>11} {:>10}\n",
        frame.chunk.0,
        frame.sector,
        segment_name(frame.segment),
        frame.number,
        format!("{}:{}/{}", frame.flush, frame.ordinal + 1, frame.flush_frames),
        frame.record_bytes,
        frame.lsn_first,
    )
}

fn slice_text(args: &Args, report: &SliceReport) -> String {
    let mut text = String::new();
    if !args.verify {
        text.push_str(&format!(
            "\nslice {}: {} chunks of {}\n\n",
            report.slice.shard,
            report.chunks,
            ByteSize(report.chunk_bytes.into())
        ));
        text.push_str(&anchors_text(report));
        text.push_str(&segments_text(&report.segments));
        text.push_str(&format!("\n{} chunks hold no log\n", report.blank_chunks));
        if let Some(log) = &report.log {
            text.push_str(&format!("{} frames count, with {} entries\n", log.frames, log.entries));
            if log.dropped_flushes > 0 {
                text.push_str("the last flush is not whole: a start drops it, as one that a crash cut off\n");
            }
            if args.groups {
                text.push_str(&groups_text(&log.groups));
            }
        }
    }
    for complaint in complaints(report) {
        text.push_str(&format!("slice {}: {complaint}\n", report.slice.shard));
    }
    text
}

fn anchors_text(report: &SliceReport) -> String {
    let header =
        ["anchor", "content", "sequence", "epoch", "term max", "damage since", "freed", "frames freed"];
    let mut table = plain_table(header);
    for AnchorReport { chunk, content, .. } in &report.anchors {
        let content_text = match content {
            AnchorContent::Blank => "blank".to_owned(),
            AnchorContent::Damaged => "damaged".to_owned(),
            AnchorContent::OtherFormat(version) => format!("format {version}"),
            _ if Some(*chunk) == report.newest_anchor => "valid, newest".to_owned(),
            _ => "valid".to_owned(),
        };
        let mut row = vec![chunk.0.to_string(), content_text];
        if let AnchorContent::Valid(anchor) = content {
            let since = match anchor.damage_known_since {
                0 => "-".to_owned(),
                epoch => epoch.to_string(),
            };
            row.extend([anchor.sequence.to_string(), anchor.epoch.to_string(), anchor.term_max.to_string()]);
            row.extend([since, anchor.freed.len().to_string(), anchor.freed_frames.to_string()]);
        }
        row.resize(header.len(), "-".to_owned());
        table.add_row(row);
    }
    let mut text = lines(&table);
    let newest = report.anchors.iter().find(|anchor| Some(anchor.chunk) == report.newest_anchor);
    if let Some(AnchorReport { content: AnchorContent::Valid(anchor), .. }) = newest
        && !anchor.epochs.is_empty()
    {
        let mut table = plain_table(["earlier epoch", "last flush", "frames"]);
        for end in &anchor.epochs {
            table.add_row([end.epoch.to_string(), end.last_flush.to_string(), end.frames.to_string()]);
        }
        text.push('\n');
        text.push_str(&lines(&table));
    }
    text
}

fn segments_text(segments: &[SegmentReport]) -> String {
    if segments.is_empty() {
        return String::new();
    }
    let header = [
        "chunk",
        "segment",
        "stream",
        "born",
        "state",
        "filled",
        "frames",
        "count",
        "entries",
        "states",
        "settled",
        "deletes",
        "torn",
        "unreadable",
    ];
    let mut table = plain_table(header);
    for segment in segments {
        let mut row = vec![
            segment.chunk.0.to_string(),
            segment_name(segment.id),
            segment.stream.to_string(),
            segment.born_bytes.to_string(),
            state_name(segment.state).to_owned(),
        ];
        if let Some(contents) = &segment.contents {
            let RecordCounts { entries, states, settled, tombstones, .. } = contents.records;
            let torn = (contents.torn_sectors.len(), contents.unreadable_sectors.len());
            row.extend(
                [u64::from(contents.filled_bytes), contents.frames, contents.frames_counted].map(text),
            );
            row.extend([entries, states, settled, tombstones, torn.0 as u64, torn.1 as u64].map(text));
        }
        row.resize(header.len(), "-".to_owned());
        table.add_row(row);
    }
    format!("\n{}", lines(&table))
}

fn text(number: u64) -> String {
    number.to_string()
}

fn groups_text(groups: &[GroupReport]) -> String {
    let header = [
        "table",
        "partition",
        "term",
        "vote",
        "commit",
        "applied",
        "first",
        "last",
        "keys",
        "suspect",
        "state at",
    ];
    let mut table = plain_table(header);
    for group in groups {
        let (of_table, partition) = ClusterMap::of_group(group.id);
        table.add_row([
            of_table.to_string(),
            partition.to_string(),
            group.term.to_string(),
            vote_text(group.vote),
            group.commit.to_string(),
            group.applied.to_string(),
            group.first_index.to_string(),
            group.last_index.to_string(),
            group.keys.to_string(),
            if group.suspect { "yes" } else { "no" }.to_owned(),
            format!("epoch {}, chunk {}", group.state_at.0, group.state_at.1.0),
        ]);
    }
    format!("\n{}", lines(&table))
}

fn vote_text(vote: u64) -> String {
    match vote {
        0 => "-".to_owned(),
        terrane_engine::VOTE_SPENT => "spent".to_owned(),
        node => node.to_string(),
    }
}

// --- for scripts

fn device_json(
    path: &Path,
    superblock: &Superblock,
    copies: &[Result<Superblock, SuperblockError>],
) -> Value {
    let copy = |copy: &Result<Superblock, SuperblockError>| match copy {
        Ok(found) => json!({ "valid": true, "format": found.version, "sequence": found.sequence }),
        Err(_) => json!({ "valid": false, "problem": copy_text(copy) }),
    };
    json!({
        "path": path.display().to_string(),
        "kind": superblock.kind.to_string(),
        "format": superblock.version,
        "cluster": format!("{:032x}", superblock.cluster),
        "node": superblock.node,
        "slices": superblock.shards,
        "slice_bytes": superblock.slice_bytes,
        "chunk_bytes": superblock.chunk_bytes,
        "sector_bytes": superblock.sector_bytes,
        "superblock_copies": copies.iter().map(copy).collect::<Vec<_>>(),
    })
}

fn records_json(records: RecordCounts) -> Value {
    json!({
        "entries": records.entries,
        "states": records.states,
        "settled": records.settled,
        "tombstones": records.tombstones,
    })
}

fn frame_json(slice: u32, frame: &FrameReport) -> Value {
    json!({
        "slice": slice,
        "chunk": frame.chunk.0,
        "sector": frame.sector,
        "epoch": frame.segment.epoch,
        "segment": frame.segment.ordinal,
        "number": frame.number,
        "flush": frame.flush,
        "ordinal": frame.ordinal,
        "flush_frames": frame.flush_frames,
        "lsn_first": frame.lsn_first,
        "term_max": frame.term_max,
        "records": records_json(frame.records),
        "record_bytes": frame.record_bytes,
    })
}

fn slice_json(args: &Args, report: &SliceReport) -> Value {
    let mut slice = json!({
        "slice": report.slice.shard,
        "sound": report.is_sound(),
        "problems": complaints(report),
    });
    if !args.verify {
        slice["chunks"] = report.chunks.into();
        slice["chunk_bytes"] = report.chunk_bytes.into();
        slice["unit_bytes"] = report.unit_bytes.into();
        slice["blank_chunks"] = report.blank_chunks.into();
        slice["newest_anchor"] = report.newest_anchor.map(|chunk| chunk.0).into();
        slice["anchors"] = report.anchors.iter().map(anchor_json).collect();
        slice["segments"] = report.segments.iter().map(segment_json).collect();
    }
    if let Some(log) = &report.log {
        slice["log"] = log_json(args, log);
    }
    slice
}

fn anchor_json(report: &AnchorReport) -> Value {
    let chunk = report.chunk.0;
    match &report.content {
        AnchorContent::Blank => json!({ "chunk": chunk, "content": "blank" }),
        AnchorContent::OtherFormat(version) => {
            json!({ "chunk": chunk, "content": "other_format", "format": version })
        }
        AnchorContent::Valid(anchor) => json!({
            "chunk": chunk,
            "content": "valid",
            "sequence": anchor.sequence,
            "epoch": anchor.epoch,
            "term_max": anchor.term_max,
            "damage": anchor.damage,
            "damage_known_since": anchor.damage_known_since,
            "epochs": anchor.epochs.iter().map(|end| json!({
                "epoch": end.epoch,
                "last_flush": end.last_flush,
                "frames": end.frames,
            })).collect::<Vec<_>>(),
            "freed_frames": anchor.freed_frames,
            "freed": anchor.freed.iter().map(|id| json!({
                "epoch": id.epoch,
                "segment": id.ordinal,
            })).collect::<Vec<_>>(),
        }),
        _ => json!({ "chunk": chunk, "content": "damaged" }),
    }
}

fn segment_json(segment: &SegmentReport) -> Value {
    let mut object = json!({
        "chunk": segment.chunk.0,
        "epoch": segment.id.epoch,
        "segment": segment.id.ordinal,
        "stream": segment.stream,
        "born_bytes": segment.born_bytes,
        "readable_bytes": segment.readable_bytes,
        "state": state_name(segment.state),
    });
    if let Some(contents) = &segment.contents {
        object["filled_bytes"] = contents.filled_bytes.into();
        object["frames"] = contents.frames.into();
        object["frames_counted"] = contents.frames_counted.into();
        object["records"] = records_json(contents.records);
        object["record_bytes"] = contents.record_bytes.into();
        object["torn_sectors"] = contents.torn_sectors.clone().into();
        object["unreadable_sectors"] = contents.unreadable_sectors.clone().into();
    }
    object
}

fn log_json(args: &Args, log: &LogReport) -> Value {
    let mut object = json!({
        "frames": log.frames,
        "entries": log.entries,
        "dropped_flushes": log.dropped_flushes,
        "damage": log.damage.iter().map(damage_json).collect::<Vec<_>>(),
        "read_bytes": log.read_bytes,
    });
    if args.groups {
        object["groups"] = log.groups.iter().map(group_json).collect();
    }
    object
}

fn damage_json(damage: &Damage) -> Value {
    let (chunk, sector) = (damage.chunk.0, damage.sector);
    match damage.what {
        DamageKind::Frames { epoch, missing } => {
            json!({ "what": "frames", "epoch": epoch, "count": missing[0], "sum": missing[1], "squares": missing[2] })
        }
        DamageKind::Sector => json!({ "what": "sector", "chunk": chunk, "sector": sector }),
        _ => json!({ "what": "record", "chunk": chunk, "sector": sector }),
    }
}

fn group_json(group: &GroupReport) -> Value {
    let (table, partition) = ClusterMap::of_group(group.id);
    json!({
        "group": group.id.0,
        "table": table,
        "partition": partition,
        "incarnation": group.incarnation,
        "term": group.term,
        "vote": group.vote,
        "commit": group.commit,
        "applied": group.applied,
        "first": group.first_index,
        "last": group.last_index,
        "keys": group.keys,
        "runs": group.runs.iter().map(|run| json!({ "term": run.term, "first": run.first })).collect::<Vec<_>>(),
        "membership_bytes": group.membership.len(),
        "suspect": group.suspect,
        "state_epoch": group.state_at.0,
        "state_chunk": group.state_at.1.0,
    })
}

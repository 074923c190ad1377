//! Making a volume, and opening one: chunk report and newest metadata give the table of lines.
//!
//! **Create** destroys old metadata first and writes the new one last, so that a device with metadata was laid out to
//! its end.
//!
//! **Open**, in this order:
//!
//! 1. a flush: what a process that died left in the device's cache counts as flushed from here on;
//! 2. the candidates for metadata, and the newest record; a device of another shape is refused;
//! 3. each line from its members' write pointers ([`close`](super::close)); open members of lines that cannot go on are
//!    finished, which on a device that hides sectors of open chunks is every open one;
//! 4. the metadata is written again if the places differ, one was damaged, or something changed;
//! 5. only then, chunks that no line has are reset: with the newest record in both places, nothing can name them; nor is
//!    anything needed of the metadata chunks that hold no newest record, which are reset if they are damaged;
//! 6. empty lines with a member that is offline get a spare;
//! 7. a flush: what was closed stays closed, and what was reset stays so **before** a record names it. Without that a
//!    power cut could bring back what a spare held in its earlier life, in an empty line;
//! 8. the spares that were given away are recorded.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use futures_util::stream::{self, StreamExt};

use super::assignment::{Assignment, MemberId, Tables};
use super::close::{limit_open, recovered};
use super::error::VolumeError;
use super::jobs::Jobs;
use super::line::{Health, Limits, Line, Member, Remains, verdict};
use super::metadata::{Candidate, Places, newest, padded_sectors, read_candidates};
use super::record::{LABEL_BYTES_MAX, Record, record_bytes};
use super::shared::{self, Shared, State};
use super::spares::{Spares, choose};
use super::{OpenMode, VolumeOptions};
use crate::chunk_table::ChunkTable;
use crate::geometry::{ChunkId, Geometry};
use crate::media::{ChunkInfo, ChunkState, Media, MediaError, NoticeKind};

/// Resets in flight at once while a volume is made.
const RESETS_IN_FLIGHT: usize = 64;

/// The division of a slice of that shape, if its metadata will always fit.
pub(super) fn assign(slice: Geometry, options: &VolumeOptions) -> Result<Assignment, VolumeError> {
    let assignment = Assignment::new(slice, options.stripe_units, options.spare_chunks_per_unit)?;
    // A chunk that was replaced is a spare itself once it was reset, so every member may come to stand elsewhere; and
    // every chunk may go bad.
    let (chunks, members) = (slice.chunk_count() as usize, assignment.members().count());
    let worst = record_bytes(LABEL_BYTES_MAX, members, chunks, chunks);
    if padded_sectors(&slice, worst) > slice.chunk_sectors {
        return Err(VolumeError::Options("a chunk cannot hold the metadata"));
    }
    Ok(assignment)
}

/// Lays a volume out on a slice, whatever it held.
pub(super) async fn create<M: Media>(
    media: M,
    options: &VolumeOptions,
) -> Result<Rc<Shared<M>>, VolumeError> {
    if options.label.len() > LABEL_BYTES_MAX {
        return Err(VolumeError::Options("the label is longer than 512 bytes"));
    }
    let assignment = assign(*media.geometry(), options)?;
    let geometry = &assignment.geometry;
    let report = checked_report(&media).await?;
    let candidates: BTreeSet<ChunkId> = assignment.candidates().into_iter().flatten().collect();
    let (metadata, data): (Vec<&ChunkInfo>, Vec<&ChunkInfo>) =
        report.iter().partition(|info| candidates.contains(&info.id));
    let mut tables = Tables::default();
    for chunks in [metadata, data] {
        tables.defects.extend(make_free(&media, &chunks).await?);
        media.flush().await?;
    }
    // A candidate that cannot be reset may keep the record of an earlier volume: ours must beat it.
    let kept = read_candidates(&media, &checked_report(&media).await?).await?;
    let kept = kept.iter().map(Candidate::sequence).max().unwrap_or(0);
    let wear = wear(&report);
    let mut spares = assignment.first_spares();
    spares.retain(|chunk| !tables.defects.contains(chunk));
    let mut missing = 0;
    for id in
        assignment.members().filter(|id| tables.defects.contains(&assignment.home(*id))).collect::<Vec<_>>()
    {
        match choose(&spares, geometry, &wear, geometry.unit_of(assignment.home(id))) {
            Some(spare) => {
                spares.remove(&spare);
                tables.remaps.insert(id, spare);
            }
            None => missing += 1,
        }
    }
    if missing > 0 {
        return Err(VolumeError::TooFewSpares {
            missing,
            defects: tables.defects.len() as u32,
            spares: assignment.first_spares().len() as u32,
        });
    }
    let free = candidates.into_iter().filter(|chunk| !tables.defects.contains(chunk)).collect();
    let places = Places::empty(assignment.candidates(), free, kept);
    let limits = limits(&media, &assignment);
    let lines = empty_lines(&assignment, &tables, &limits);
    let spares = Spares { ready: spares, ..Spares::default() };
    let label = options.label.clone();
    let shared = assemble(media, Parts { assignment, limits, label, lines, tables, spares, places, wear });
    commit(&shared).await?;
    Ok(shared)
}

/// Resets what is not free. Returns the chunks that are bad.
async fn make_free<M: Media>(media: &M, chunks: &[&ChunkInfo]) -> Result<Vec<ChunkId>, MediaError> {
    let mut bad = Vec::new();
    let offline = chunks.iter().filter(|info| info.state == ChunkState::Offline);
    bad.extend(offline.map(|info| info.id));
    let used = chunks.iter().filter(|info| matches!(info.state, ChunkState::Open | ChunkState::Closed));
    let resets = used.map(|info| async move { (info.id, media.reset(info.id).await) });
    let mut resets = stream::iter(resets).buffered(RESETS_IN_FLIGHT);
    while let Some((chunk, reset)) = resets.next().await {
        match reset {
            Ok(()) => {}
            Err(error @ (MediaError::PowerLost | MediaError::Rule { .. })) => return Err(error),
            Err(_) => bad.push(chunk),
        }
    }
    Ok(bad)
}

/// Opens a volume.
pub(super) async fn open<M: Media>(media: M, mode: OpenMode) -> Result<Rc<Shared<M>>, VolumeError> {
    media.flush().await?;
    let report = checked_report(&media).await?;
    let found = read_candidates(&media, &report).await?;
    let record = newest(&found)?.clone();
    let geometry = *media.geometry();
    check_geometry(&record, &geometry)?;
    let assignment = record.assignment()?;
    let places = Places::found(&assignment, &found, &record);
    let limits = limits(&media, &assignment);
    let Record { label, mut tables, .. } = record;

    let state_of = |chunk: ChunkId| match report[chunk.0 as usize] {
        _ if tables.defects.contains(&chunk) => (ChunkState::Offline, 0),
        ChunkInfo { state, write_pointer, .. } => (state, write_pointer),
    };
    let found_members: Vec<Vec<(ChunkId, (ChunkState, u32))>> = (0..assignment.lines())
        .map(|line| {
            let members = (0..assignment.stripe.width).map(|member| MemberId { line, member });
            members.map(|id| tables.chunk_of(&assignment, id)).map(|chunk| (chunk, state_of(chunk))).collect()
        })
        .collect();
    let as_found = |members: &Vec<(ChunkId, (ChunkState, u32))>| {
        let members: Vec<(ChunkState, u32)> = members.iter().map(|(_, found)| *found).collect();
        recovered(&assignment.stripe, geometry.ws_min, &members)
    };
    let mut states: Vec<(ChunkState, u32)> = found_members.iter().map(as_found).collect();
    limit_open(&mut states, limits.hidden, assignment.max_open());
    let lines: Vec<Line> = found_members
        .iter()
        .map(|members| Line::new(members.iter().map(|member| found_member(member, &limits)).collect()))
        .collect();
    let mut spares = Spares::default();
    let mut offline = Vec::new();
    for chunk in tables.unused(&assignment) {
        match report[chunk.0 as usize].state {
            ChunkState::Free => spares.ready.insert(chunk),
            ChunkState::Open | ChunkState::Closed => spares.used.insert(chunk),
            ChunkState::Offline => {
                offline.push(chunk);
                true
            }
        };
    }
    let changed = !offline.is_empty();
    tables.defects.extend(offline);
    let wear = wear(&report);
    let shared = assemble(media, Parts { assignment, limits, label, lines, tables, spares, places, wear });
    {
        let mut state = shared.state.borrow_mut();
        state.tables_version += u64::from(changed);
        for (line, (kind, end)) in states.into_iter().enumerate() {
            state.table.set(ChunkId(line as u32), kind, end);
            if kind == ChunkState::Open {
                state.open.insert(line as u32);
            }
            if kind != ChunkState::Free && state.lines[line].members.iter().any(|member| member.gone) {
                state.notice(line as u32, None, NoticeKind::Offline);
            }
        }
    }
    close_lines(&shared, &report).await?;
    let left = {
        let state = shared.state.borrow();
        let candidates = found.iter().map(|found| found.chunk).filter(|chunk| !state.places.is_open(*chunk));
        candidates.chain(state.spares.used.iter().copied()).collect::<Vec<_>>()
    };
    for chunk in left.into_iter().filter(|chunk| report[chunk.0 as usize].state == ChunkState::Open) {
        // It counts as open for the device until it is closed. If it cannot be, nothing depends on it.
        let _ = shared.media.finish(chunk).await;
    }
    let kept = match commit(&shared).await {
        Err(error) if mode == OpenMode::Strict || is_power_lost(&error) => return Err(error),
        kept => kept.is_ok(),
    };
    if kept {
        shared.repair_candidates(&found).await?;
        let used = shared.state.borrow().spares.used.clone();
        for chunk in used {
            shared.state.borrow_mut().spares.begin_judging(chunk);
            shared.judge(chunk).await;
        }
    }
    let missing = replace_missing(&shared, kept).await;
    if missing > 0 && mode == OpenMode::Strict {
        return Err(shared.state.borrow().no_spare(&shared.assignment, missing));
    }
    shared.barrier().await?;
    {
        let mut state = shared.state.borrow_mut();
        let lines = state.unsettled.clone();
        state.forget_settled(lines);
    }
    match commit(&shared).await {
        Err(error) if mode == OpenMode::Strict || is_power_lost(&error) => return Err(error),
        _ => {}
    }
    Ok(shared)
}

/// A member as its chunk was found.
fn found_member((chunk, (found, pointer)): &(ChunkId, (ChunkState, u32)), limits: &Limits) -> Member {
    let end = (*pointer).min(limits.chunk_sectors);
    match found {
        ChunkState::Free => Member::empty(*chunk, limits),
        ChunkState::Open => Member::found(*chunk, end, false, limits),
        ChunkState::Closed => Member::found(*chunk, end, true, limits),
        ChunkState::Offline => Member::gone(*chunk, limits),
    }
}

/// Finishes the open members of lines that cannot go on.
async fn close_lines<M: Media>(shared: &Rc<Shared<M>>, report: &[ChunkInfo]) -> Result<(), MediaError> {
    let mut open = Vec::new();
    {
        let mut state = shared.state.borrow_mut();
        let state = &mut *state;
        for (index, line) in (0..).zip(&state.lines) {
            let open_before = open.len();
            let closed = state.table.state(ChunkId(index)) == ChunkState::Closed;
            for (nth, member) in line.members.iter().enumerate() {
                let is_open = report[member.chunk.0 as usize].state == ChunkState::Open;
                if closed && is_open && member.health == Health::Sound {
                    open.push((index, nth, member.chunk));
                }
            }
            if open.len() > open_before {
                state.unsettled.insert(index);
                let unused = shared.geometry.chunk_sectors - state.table.write_pointer(ChunkId(index));
                state.padding_bytes += u64::from(unused) * u64::from(shared.geometry.sector_bytes);
            }
        }
    }
    for (line, nth, chunk) in open {
        let finished = shared.media.finish(chunk).await;
        let mut state = shared.state.borrow_mut();
        if state.lines[line as usize].members[nth].note_finish(&finished, &shared.limits) {
            continue;
        }
        let error = match finished {
            Err(error @ MediaError::PowerLost) => return Err(error),
            finished => finished.err(),
        };
        // Of what the chunk hides nothing was durable, unless the device protects it: then it may be read one day.
        let remains =
            verdict(&mut error.into_iter().collect()).map_or(Remains::Readable, |(_, remains)| remains);
        state.lose(line, nth, remains, &shared.limits);
        let ends = state.lines[line as usize].members.iter().map(|member| Some(member.done()));
        let ws_min = shared.geometry.ws_min;
        let end = shared.assignment.stripe.prefix(ends) / ws_min * ws_min;
        let end = end.min(state.table.write_pointer(ChunkId(line)));
        state.table.set(ChunkId(line), ChunkState::Closed, end);
    }
    Ok(())
}

/// Gives a spare to each member that is gone from a line without data; a line that gets none goes offline. Returns how
/// many members of all lines have, or will have, none.
async fn replace_missing<M: Media>(shared: &Rc<Shared<M>>, may_record: bool) -> u32 {
    let mut empty = Vec::new();
    let mut of_lines_with_data = 0;
    {
        let state = shared.state.borrow();
        for (line, this) in (0..).zip(&state.lines) {
            let lost = this.members.iter().enumerate().filter(|(_, member)| member.gone);
            match state.table.state(ChunkId(line)) {
                ChunkState::Free => empty.extend(lost.map(|(index, member)| (line, index, member.chunk))),
                // The next reset of the line will need a spare.
                _ => of_lines_with_data += lost.count() as u32,
            }
        }
    }
    let mut unserved = 0;
    for (line, index, gone) in empty {
        let spare = match may_record {
            true => shared.take_spare(shared.unit_of(line, index)).await,
            false => None,
        };
        let mut state = shared.state.borrow_mut();
        let state = &mut *state;
        state.retire_for_good(gone);
        match spare {
            Some(spare) => {
                state.lines[line as usize].members[index].restart(spare, &shared.limits);
                shared.enter(state, line, index);
            }
            None => {
                unserved += 1;
                state.table.set(ChunkId(line), ChunkState::Offline, 0);
            }
        }
    }
    unserved + of_lines_with_data.saturating_sub(shared.state.borrow().spares.count())
}

fn is_power_lost(error: &VolumeError) -> bool {
    matches!(error, VolumeError::Media(MediaError::PowerLost))
}

/// A device of another shape than the volume was made on is another device, or a broken one.
fn check_geometry(record: &Record, found: &Geometry) -> Result<(), VolumeError> {
    let recorded = record.geometry;
    if found.chunk_count() < recorded.chunk_count() {
        return Err(VolumeError::Shrunk { recorded: recorded.chunk_count(), found: found.chunk_count() });
    }
    if recorded != *found {
        return Err(VolumeError::GeometryDiffers { recorded, found: *found });
    }
    Ok(())
}

/// The device's report, which has one entry for every chunk, in order, or the device is not what it says.
pub(super) async fn checked_report<M: Media>(media: &M) -> Result<Vec<ChunkInfo>, VolumeError> {
    let report = media.report().await?;
    let expected = media.geometry().chunk_count();
    let in_order = report.iter().zip(0..).all(|(info, nth)| info.id == ChunkId(nth));
    if report.len() != expected as usize || !in_order {
        return Err(VolumeError::Options("the device's report does not fit its geometry"));
    }
    Ok(report)
}

fn wear(report: &[ChunkInfo]) -> Vec<u32> {
    report.iter().map(|info| info.wear).collect()
}

fn limits<M: Media>(media: &M, assignment: &Assignment) -> Limits {
    let Geometry { chunk_sectors, sector_bytes, mw_cunits, .. } = assignment.geometry;
    Limits {
        chunk_sectors,
        unit_sectors: assignment.stripe.unit_sectors,
        sector_bytes: sector_bytes as usize,
        hidden: mw_cunits,
        lag: if media.protects_buffer() { 0 } else { mw_cunits },
    }
}

fn empty_lines(assignment: &Assignment, tables: &Tables, limits: &Limits) -> Vec<Line> {
    let member = |line, member| {
        let chunk = tables.chunk_of(assignment, MemberId { line, member });
        Member::empty(chunk, limits)
    };
    let line = |line| Line::new((0..assignment.stripe.width).map(|nth| member(line, nth)).collect());
    (0..assignment.lines()).map(line).collect()
}

/// What recovery or creation found out, before it is a volume.
struct Parts {
    assignment: Assignment,
    limits: Limits,
    label: Vec<u8>,
    lines: Vec<Line>,
    tables: Tables,
    spares: Spares,
    places: Places,
    wear: Vec<u32>,
}

fn assemble<M: Media>(media: M, parts: Parts) -> Rc<Shared<M>> {
    let Parts { assignment, limits, label, lines, tables, spares, places, wear } = parts;
    let geometry = assignment.logical_geometry(media.protects_buffer());
    // What is hidden on the device is in memory here: the host may read all of it.
    let table = ChunkTable::all_free(Geometry { mw_cunits: 0, ..geometry });
    let state = State::new(shared::Parts { table, lines, tables, places, spares, wear });
    Rc::new(Shared {
        media,
        assignment,
        limits,
        geometry,
        label,
        jobs: Jobs::default(),
        state: RefCell::new(state),
    })
}

/// Brings the metadata up to date, if it is not.
async fn commit<M: Media>(shared: &Rc<Shared<M>>) -> Result<(), VolumeError> {
    let job = Rc::clone(shared);
    Ok(shared.run(async move { job.commit().await }).await?)
}

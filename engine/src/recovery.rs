//! Recovery: from whatever is on the slice to a store that may go on.
//!
//! ```text
//! flush the device | newest anchor | find segments | frames -> flushes -> replay | next anchor
//! ```
//!
//! Invariants:
//! - What recovery saw is durable before it acts on it: the device is flushed before anything is read.
//! - A flush counts whole or not at all where it is the highest of the last epoch. In earlier epochs, the anchor
//!   says which flush was the last (rule 5).
//! - The next anchor is durable before anything is written to the log, so that what was dropped stays void.
//! - No chunk is open when the store goes on, whatever a crash left open: no segment is continued, and a device limits
//!   how many chunks are open.
//! - What is missing below the highest flush is damage (rule 6): every group whose state was not written since that
//!   damage became known is suspect.
//!
//! A bad **last** flush is ambiguous. It looks the same whether it was torn by a crash before it was acknowledged, or
//! damaged afterwards; it is taken for torn.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use terrane_ocssd::{ChunkId, ChunkState, Media};

use crate::anchor::{self, Anchor, EpochEnd, Found};
use crate::core::Core;
use crate::entry::{GroupId, HardState, VOTE_SPENT};
use crate::error::OpenError;
use crate::frame::{self, FrameHeader};
use crate::index::Place;
use crate::lineage::TermRun;
use crate::log::Log;
use crate::options::{Options, OptionsError};
use crate::replay::Replay;
use crate::scan::{self, FoundChunks, FoundSegment, Met, MetFrame};
use crate::segment::Stamp;
use crate::slice::{ANCHOR_CHUNKS, LOG_CHUNK_FIRST, Layout, SliceId};

/// What recovery found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovery {
    /// The epoch that begins now.
    pub epoch: u32,
    /// All groups, ascending by id.
    pub groups: Vec<RecoveredGroup>,
    /// What is missing or broken below the highest flush, in the order of the log. Damage that was known before is
    /// listed again.
    pub damage: Vec<Damage>,
    /// Incomplete last flushes that were dropped now: 0 or 1. Taken for torn by a crash before anything
    /// of them was acknowledged; damage to the very last flush looks the same.
    pub dropped_flushes: u64,
    /// Valid frames, in number.
    pub frames: u64,
    /// Bytes read.
    pub bytes_scanned: u64,
    /// Entry records that were found, in number, superseded ones included.
    pub entries: u64,
}

/// One group as recovery found it: what a Raft node is restored from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecoveredGroup {
    /// The group.
    pub id: GroupId,
    /// Its local birth number.
    pub incarnation: u64,
    /// Its hard state. `vote` is [`VOTE_SPENT`] where it may have been forgotten.
    pub hard_state: HardState,
    /// The log as term runs, ascending.
    pub runs: Vec<TermRun>,
    /// First index of the log.
    pub first_index: u64,
    /// Last index of the log; `first_index - 1` when it is empty.
    pub last_index: u64,
    /// Highest index that is applied.
    pub applied: u64,
    /// The membership as it was last set.
    pub membership: Bytes,
    /// Records may have been lost that this replica acknowledged: it grants no vote and acknowledges nothing until
    /// its leader has repaired it ([`Store::clear_suspect`](crate::Store::clear_suspect)).
    pub suspect: bool,
}

/// Something missing or broken below the highest flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damage {
    /// The chunk in which it was noticed, or after which the missing part should follow.
    pub chunk: ChunkId,
    /// Sector within the chunk.
    pub sector: u32,
    /// What it is.
    pub what: DamageKind,
}

/// Kinds of damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DamageKind {
    /// Frames of these flushes are missing or broken.
    Flushes {
        /// Their epoch.
        epoch: u32,
        /// The first of them.
        first: u64,
        /// The last of them.
        last: u64,
    },
    /// The device does not give the sector back (sector 0 of a chunk that is offline: none of them).
    Sector,
    /// A record is intact but makes no sense.
    Record,
}

pub(crate) async fn recover<M: Media>(
    media: &M,
    layout: &Layout,
    slice: SliceId,
    options: &Options,
) -> Result<(Core, Recovery), OpenError> {
    let log_chunks = layout.chunk_count - LOG_CHUNK_FIRST;
    if options.propose_reserve_chunks >= log_chunks {
        return Err(OptionsError {
            option: "propose_reserve_chunks",
            value: options.propose_reserve_chunks.into(),
            limit: "it must leave some of the slice's chunks to proposals",
        }
        .into());
    }
    media.flush().await?;
    let report = media.report().await?;
    let mut anchors = Vec::with_capacity(ANCHOR_CHUNKS.len());
    for chunk in ANCHOR_CHUNKS {
        let info = &report[chunk.0 as usize];
        let readable = anchor::readable_bytes(layout, info.state, info.write_pointer);
        anchors.push(anchor::read(media, layout, chunk, readable).await?);
    }
    let newest = newest_anchor(anchors, slice)?;
    let epoch = newest.epoch.checked_add(1).ok_or(OpenError::EpochsExhausted)?;
    // Nothing goes on with what an earlier start left open, and the device may have few chunks open at once. The chunk
    // of the next anchor is reset anyway.
    for info in report.iter().filter(|info| info.id != newest.other_chunk()) {
        if info.state == ChunkState::Open {
            media.finish(info.id).await?;
        }
    }

    let counts = |of: u32| of >= newest.epoch || newest.end_of(of).is_some();
    let found = scan::find_segments(media, layout, slice, &report, counts).await?;
    let FoundChunks { segments, lost, bytes_read: probed_bytes } = found;
    if let Some(last) = segments.last()
        && last.generation.epoch() > newest.epoch
    {
        return Err(OpenError::AnchorLost { anchor: newest.epoch, log: last.generation.epoch() });
    }
    let segments: Vec<_> =
        segments.into_iter().filter(|segment| counts(segment.generation.epoch())).collect();
    let mut assembly = Assembly::new(layout, &newest);
    let scanned_bytes =
        scan::scan_segments(media, layout, slice, &segments, |met| assembly.meet(met)).await?;
    let mut assembled = assembly.finish();
    // Whatever such a chunk held is missing, and it may have been the end of the log.
    assembled.damage.extend(lost.iter().map(|&(chunk, offset)| Damage {
        chunk: ChunkId(chunk),
        sector: layout.sector_of(offset),
        what: DamageKind::Sector,
    }));
    // What could not be read now may be readable at a later start, or by other means: it is not overwritten.
    let of_damaged_epoch = |segment: &&FoundSegment| {
        assembled.met.get(&segment.generation.epoch()).is_some_and(|met| met.damaged)
    };
    let damaged_segments = segments.iter().filter(of_damaged_epoch).map(|segment| segment.chunk);
    let kept: BTreeSet<u32> = lost.iter().map(|(chunk, _)| *chunk).chain(damaged_segments).collect();

    let found = damage_checksum(&assembled.damage);
    let (damage, damage_known_since) = match found {
        // A group that is suspect because of damage that is gone by now stays so.
        0 => (newest.damage, newest.damage_known_since),
        known if known == newest.damage => (known, newest.damage_known_since),
        // Before the first start nothing was written, so nothing of it can be lost.
        new if newest.epoch == 0 => (new, 0),
        new => (new, epoch),
    };
    let next = Anchor {
        slice,
        sequence: newest.sequence + 1,
        epoch,
        term_max: assembled.term_max,
        damage,
        damage_known_since,
        epochs: assembled.ends(&newest),
    };
    anchor::write(media, layout, &next).await.map_err(|error| match error {
        anchor::WriteError::Full => OpenError::AnchorFull { epochs: next.epochs.len() },
        anchor::WriteError::Media(error) => error.into(),
    })?;

    let free = report[LOG_CHUNK_FIRST as usize..]
        .iter()
        .filter(|info| !assembled.used.contains(&info.id.0) && !kept.contains(&info.id.0))
        .map(|info| (info.wear, info.id.0))
        .collect();
    let mut stamps = vec![None; layout.chunk_count as usize];
    for segment in segments.iter().filter(|segment| assembled.used.contains(&segment.chunk)) {
        stamps[segment.chunk as usize] = Some(Stamp::new(slice, segment.generation));
    }
    let log = Log::new(*layout, slice, epoch, free, stamps);
    let mut core = Core::new(*layout, epoch, log, assembled.term_max, options);
    core.damage_known = next.damage_known_since > 0;
    let mut recovery = Recovery {
        epoch,
        groups: Vec::new(),
        damage: assembled.damage,
        dropped_flushes: assembled.dropped_flushes,
        frames: assembled.frames,
        bytes_scanned: probed_bytes + scanned_bytes,
        entries: assembled.replay.entries,
    };
    restore_groups(&mut core, &mut recovery, assembled.replay, &next);
    Ok((core, recovery))
}

fn newest_anchor(anchors: Vec<Found>, slice: SliceId) -> Result<Anchor, OpenError> {
    let blank = anchors.iter().all(|found| *found == Found::Blank);
    let mut newest: Option<Anchor> = None;
    let mut foreign = None;
    for found in anchors {
        match found {
            Found::Newer(version) => return Err(OpenError::NewerFormat { found: version }),
            Found::Valid(anchor) if anchor.slice != slice => foreign = Some(anchor.slice),
            Found::Valid(anchor) => {
                if newest.as_ref().is_none_or(|newest| newest.sequence < anchor.sequence) {
                    newest = Some(anchor);
                }
            }
            Found::Blank | Found::Damaged => {}
        }
    }
    match (newest, foreign) {
        (Some(newest), _) => Ok(newest),
        (None, Some(found)) => Err(OpenError::WrongSlice { found, expected: slice }),
        (None, None) if blank => Err(OpenError::Blank),
        (None, None) => Err(OpenError::AnchorDamaged),
    }
}

/// Which damage it is, whatever the order in which it was met; 0 for none. How much there is would not do: new damage
/// may come when old damage goes.
fn damage_checksum(damage: &[Damage]) -> u32 {
    let mut which: Vec<[u64; 4]> = damage
        .iter()
        .map(|damage| {
            let (chunk, sector) = (u64::from(damage.chunk.0), u64::from(damage.sector));
            match damage.what {
                // Where flushes are missed depends on what is left around them.
                DamageKind::Flushes { epoch, first, last } => [0, epoch.into(), first, last],
                DamageKind::Sector => [1, chunk, sector, 0],
                DamageKind::Record => [2, chunk, sector, 0],
            }
        })
        .collect();
    which.sort_unstable();
    which.dedup();
    if which.is_empty() {
        return 0;
    }
    let bytes: Vec<u8> = which.iter().flatten().flat_map(|word| word.to_le_bytes()).collect();
    crc32c::crc32c(&bytes).max(1)
}

/// Puts the replayed groups into the core and says what they are.
fn restore_groups(core: &mut Core, recovery: &mut Recovery, replay: Replay, anchor: &Anchor) {
    for replayed in replay.finish() {
        let mut group = replayed.group;
        // A state written since the damage became known says itself whether the group is suspect. An older one knows
        // nothing of it, so the group is, at this start and at each one until a state is written.
        let state_outdated = replayed.state_epoch < anchor.damage_known_since;
        if state_outdated {
            group.suspect = true;
            group.hard_state.term = group.hard_state.term.max(core.term_max);
            group.hard_state.vote = VOTE_SPENT;
        }
        let mut tail = Vec::with_capacity(replayed.waiting.len());
        for (entry, place) in &replayed.waiting {
            let bytes = group.push_payload(entry, *place);
            tail.push((group.last_index, bytes));
        }
        recovery.groups.push(RecoveredGroup {
            id: group.id,
            incarnation: u64::from(group.incarnation),
            hard_state: group.hard_state,
            runs: group.runs.clone(),
            first_index: group.first_index,
            last_index: group.last_index,
            applied: group.applied,
            membership: group.membership.clone(),
            suspect: group.suspect,
        });
        core.term_max = core.term_max.max(group.hard_state.term);
        let slot = core.add_group(group);
        for (index, bytes) in tail {
            core.note_tail(slot, index, bytes);
        }
    }
}

/// Puts frames together to flushes, flushes to epochs, and hands what counts to replay.
struct Assembly<'a> {
    layout: &'a Layout,
    anchor: &'a Anchor,
    current: Option<EpochProgress>,
    out: Assembled,
}

/// How far one epoch was met.
struct EpochProgress {
    epoch: u32,
    /// Last flush that counts, where the anchor knows it.
    limit: Option<u64>,
    /// Every flush up to here was met whole or counted as damage.
    passed: u64,
    /// The flush after it, while some of its frames were not met.
    held: Option<HeldFlush>,
    damaged: bool,
    /// Where the last valid frame ended.
    chunk: u32,
    sector: u32,
}

struct HeldFlush {
    frames: u16,
    met: Vec<HeldFrame>,
    /// One of its frames is known to be broken.
    torn: bool,
}

impl HeldFlush {
    fn of(header: &FrameHeader) -> Self {
        Self { frames: header.frames, met: Vec::new(), torn: false }
    }
}

struct HeldFrame {
    segment: FoundSegment,
    header: FrameHeader,
    stamp: Stamp,
    offset: u32,
    body: Vec<u8>,
}

/// Last flush that counts, and whether there is damage, of an epoch that was met.
struct EpochMet {
    last_flush: u64,
    damaged: bool,
}

struct Assembled {
    replay: Replay,
    damage: Vec<Damage>,
    frames: u64,
    dropped_flushes: u64,
    term_max: u64,
    /// Chunks that hold frames that count.
    used: BTreeSet<u32>,
    met: BTreeMap<u32, EpochMet>,
}

impl<'a> Assembly<'a> {
    fn new(layout: &'a Layout, anchor: &'a Anchor) -> Self {
        let out = Assembled {
            replay: Replay::default(),
            damage: Vec::new(),
            frames: 0,
            dropped_flushes: 0,
            term_max: anchor.term_max,
            used: BTreeSet::new(),
            met: BTreeMap::new(),
        };
        Self { layout, anchor, current: None, out }
    }

    fn meet(&mut self, met: Met<'_>) {
        match met {
            Met::Frame(frame) => self.frame(&frame),
            Met::Torn { segment, header } => {
                // It stands for a frame that is never met. One flush is in flight at a time, so all before it were
                // durable.
                if self.enter_flush(segment, &header) {
                    let progress = self.current.as_mut().expect("the epoch was entered");
                    progress.held.get_or_insert_with(|| HeldFlush::of(&header)).torn = true;
                }
            }
            Met::Unreadable { segment, offset } => {
                let sector = self.layout.sector_of(offset);
                let progress = self.enter_epoch(segment.generation.epoch(), segment.chunk);
                progress.damaged = true;
                let chunk = ChunkId(segment.chunk);
                self.out.damage.push(Damage { chunk, sector, what: DamageKind::Sector });
            }
        }
    }

    /// The progress of `epoch`; whichever was under way before has ended.
    fn enter_epoch(&mut self, epoch: u32, chunk: u32) -> &mut EpochProgress {
        if self.current.as_ref().is_none_or(|current| current.epoch != epoch) {
            self.end_epoch();
            let limit = self.anchor.end_of(epoch).map(|end| end.last_flush);
            let (passed, held, damaged, sector) = (0, None, false, 0);
            self.current = Some(EpochProgress { epoch, limit, passed, held, damaged, chunk, sector });
        }
        self.current.as_mut().expect("an epoch was entered")
    }

    /// A header of this flush was met. False if the flush is void, or was passed already.
    fn enter_flush(&mut self, segment: FoundSegment, header: &FrameHeader) -> bool {
        self.out.term_max = self.out.term_max.max(header.term_max);
        let progress = self.enter_epoch(segment.generation.epoch(), segment.chunk);
        if progress.limit.is_some_and(|limit| header.flush > limit) || header.flush <= progress.passed {
            return false;
        }
        if header.flush > progress.passed + 1 {
            self.pass_damaged(header.flush - 1);
        }
        true
    }

    fn frame(&mut self, frame: &MetFrame<'_>) {
        let header = &frame.header;
        if !self.enter_flush(frame.segment, header) {
            return;
        }
        let end = frame.offset + self.layout.frame_bytes(header.body_bytes);
        let end_sector = self.layout.sector_of(end);
        self.out.frames += 1;
        let progress = self.current.as_mut().expect("the epoch was entered");
        (progress.chunk, progress.sector) = (frame.segment.chunk, end_sector);
        if header.frames == 1 {
            progress.passed = header.flush;
            progress.held = None;
            self.count(frame);
            return;
        }
        let held = progress.held.get_or_insert_with(|| HeldFlush::of(header));
        held.met.push(HeldFrame {
            segment: frame.segment,
            header: frame.header,
            stamp: frame.stamp,
            offset: frame.offset,
            body: frame.body.to_vec(),
        });
        if held.met.len() == usize::from(held.frames) && !held.torn {
            progress.passed = header.flush;
            self.count_held();
        }
    }

    /// Flushes up to `last` were not met whole, although something later was (or the anchor knows of it).
    fn pass_damaged(&mut self, last: u64) {
        let progress = self.current.as_mut().expect("the epoch was entered");
        let first = progress.passed + 1;
        progress.damaged = true;
        progress.passed = last;
        let what = DamageKind::Flushes { epoch: progress.epoch, first, last };
        let (chunk, sector) = (ChunkId(progress.chunk), progress.sector);
        self.out.damage.push(Damage { chunk, sector, what });
        // It was durable once: what is left of it counts.
        self.count_held();
    }

    fn end_epoch(&mut self) {
        let Some(progress) = &mut self.current else { return };
        match progress.limit {
            Some(limit) if progress.passed < limit => self.pass_damaged(limit),
            Some(_) => {}
            None => self.out.dropped_flushes += u64::from(progress.held.take().is_some()),
        }
        if let Some(progress) = self.current.take() {
            let met = EpochMet { last_flush: progress.passed, damaged: progress.damaged };
            self.out.met.insert(progress.epoch, met);
        }
    }

    fn finish(mut self) -> Assembled {
        self.end_epoch();
        for end in &self.anchor.epochs {
            if !self.out.met.contains_key(&end.epoch) && end.last_flush > 0 {
                let met = EpochMet { last_flush: end.last_flush, damaged: true };
                self.out.met.insert(end.epoch, met);
                let what = DamageKind::Flushes { epoch: end.epoch, first: 1, last: end.last_flush };
                self.out.damage.push(Damage { chunk: ChunkId(LOG_CHUNK_FIRST), sector: 0, what });
            }
        }
        self.out
    }

    fn count_held(&mut self) {
        let held = self.current.as_mut().and_then(|progress| progress.held.take());
        for frame in held.into_iter().flat_map(|held| held.met) {
            let records = frame::decode_body(&frame.header, frame.stamp, &frame.body).unwrap_or_default();
            let HeldFrame { segment, header, stamp, offset, ref body } = frame;
            self.count(&MetFrame { segment, offset, header, stamp, body, records: &records });
        }
    }

    /// The frame counts.
    fn count(&mut self, frame: &MetFrame<'_>) {
        let chunk = frame.segment.chunk;
        self.out.used.insert(chunk);
        let epoch = frame.segment.generation.epoch();
        for (at, record) in frame.records {
            let offset = frame.offset + frame::HEADER_BYTES as u32 + at;
            let place = Place { chunk, offset, length: record.header.record_bytes() };
            if self.out.replay.record(epoch, record, place).is_err() {
                let sector = self.layout.sector_of(offset);
                self.out.damage.push(Damage { chunk: ChunkId(chunk), sector, what: DamageKind::Record });
                if let Some(progress) = &mut self.current {
                    progress.damaged = true;
                }
            }
        }
    }
}

impl Assembled {
    /// What the next anchor says of the epochs before it.
    fn ends(&self, anchor: &Anchor) -> Vec<EpochEnd> {
        let mut ends = anchor.epochs.clone();
        if let Some(met) = self.met.get(&anchor.epoch)
            && (met.last_flush > 0 || met.damaged)
        {
            ends.push(EpochEnd { epoch: anchor.epoch, last_flush: met.last_flush });
        }
        ends
    }
}

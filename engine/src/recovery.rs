//! Recovery: from whatever is on the slice to a store that may go on.
//!
//! ```text
//! flush the device | newest anchor | find segments | footers, or frames -> flushes -> replay | next anchor
//! ```
//!
//! Invariants:
//! - What recovery saw is durable before it acts on it: the device is flushed before anything is read.
//! - A flush counts whole or not at all where it is the highest of the last epoch. In earlier epochs, the anchor
//!   says which flush was the last (rule 5).
//! - The next anchor is durable before anything is written to the log, so that what was dropped stays void.
//! - No chunk is open when the store goes on, whatever a crash left open: no segment is continued, and a device limits
//!   how many chunks are open.
//! - A footer is believed of flushes that were durable before it may have been: of the highest flush of the newest epoch
//!   every frame is read. What only a footer knew, and is needed, is read and verified; if that fails, all is scanned.
//! - What is missing below the highest flush is damage (rule 6): every group whose state was not written since that
//!   damage became known is suspect.
//!
//! A bad **last** flush is ambiguous. It looks the same whether it was torn by a crash before it was acknowledged, or
//! damaged afterwards; it is taken for torn.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use bytes::Bytes;
use terrane_ocssd::{AlignedBuf, ChunkId, ChunkInfo, ChunkState, Media, MediaError};

use crate::anchor::{self, Anchor, AnchorLog, EpochEnd, Found};
use crate::core::Core;
use crate::entry::{Entry, GroupId, HardState, Lsn, VOTE_SPENT};
use crate::error::OpenError;
use crate::footer::FrameHints;
use crate::frame::{self, FrameHeader};
use crate::frame_set::FrameSet;
use crate::hint::Hint;
use crate::lineage::TermRun;
use crate::log::{Log, Segment};
use crate::options::{Options, OptionsError};
use crate::pipeline::Pipeline;
use crate::record::{self, Record};
use crate::replay::{Replay, Replayed, Waiting};
use crate::scan::{self, FoundChunks, FoundSegment, LookedUp, Met, MetFrame};
use crate::segment::{Generation, Stamp};
use crate::slice::{ANCHOR_CHUNKS, LOG_CHUNK_FIRST, Layout, SliceId};
use crate::stream::Stream;

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
    /// Segments of which only the footer was read, in number.
    pub hinted_segments: u64,
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
    /// The chunk in which it was noticed; of missing frames, which is not known, the first of the log.
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
    /// Frames of this epoch are missing or broken, nobody knows where.
    Frames {
        /// Their epoch.
        epoch: u32,
        /// How many, the sum of their numbers, and the sum of the squares of these: of a single frame, the second is its
        /// number.
        missing: [u64; 3],
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
    let newest = newest_anchor(read_anchors(media, layout, &report).await?, slice)?;
    let epoch = newest.epoch.checked_add(1).ok_or(OpenError::EpochsExhausted)?;
    // Nothing goes on with what an earlier start left open, and the device may have few chunks open at once. The chunk
    // of the next anchor is reset anyway.
    for info in report.iter().filter(|info| info.id != newest.other_chunk()) {
        if info.state == ChunkState::Open {
            media.finish(info.id).await?;
        }
    }

    let found = find_log(media, layout, slice, &report, &newest).await?;
    let read = read_log(media, layout, slice, &newest, &found, true, |_| ()).await?;
    let ReadLog { mut assembled, groups: replayed, hinted: hinted_segments, bytes_read } = read;
    let FoundLog { segments, freed, void: _, lost, bytes_read: probed_bytes } = found;
    // What could not be read now may be readable at a later start, or by other means: it is not overwritten.
    let of_damaged_epoch = |segment: &&FoundSegment| {
        assembled.met.get(&segment.generation.epoch()).is_some_and(|met| met.damaged)
    };
    let damaged_segments = segments.iter().filter(of_damaged_epoch).map(|segment| segment.chunk);
    let kept: BTreeSet<u32> = lost.iter().map(|(chunk, _)| *chunk).chain(damaged_segments).collect();

    let (damage, damage_known_since) = known_damage(&newest, &assembled.damage, epoch);
    let next = Anchor {
        slice,
        sequence: newest.sequence + 1,
        epoch,
        term_max: assembled.term_max,
        damage,
        damage_known_since,
        epochs: std::mem::take(&mut assembled.ends),
        freed_frames: FrameSet::default(),
        freed: freed.iter().map(|segment| segment.generation).collect(),
    };
    let free = report[LOG_CHUNK_FIRST as usize..]
        .iter()
        .filter(|info| !assembled.used.contains_key(&info.id.0) && !kept.contains(&info.id.0))
        .map(|info| (info.wear, info.id.0))
        .collect();
    let wear = report.iter().map(|info| info.wear).collect();
    let mut held: Vec<Option<Segment>> = Vec::new();
    held.resize_with(layout.chunk_count as usize, || None);
    for segment in &freed {
        held[segment.chunk as usize] = Some(Segment::freed(Stamp::new(slice, segment.generation)));
    }
    let mut clock = 0;
    for segment in &segments {
        let Some(used) = assembled.used.get(&segment.chunk) else { continue };
        clock = clock.max(segment.born.saturating_add(segment.readable.into()));
        let stamp = Stamp::new(slice, segment.generation);
        let stream = Stream::from_number(segment.stream);
        let mut found = Segment::found(stamp, stream, segment.born, used.end);
        (found.frames, found.first_lsn) = (used.frames, used.first_lsn);
        (found.deletes, found.hint_bytes) = (used.deletes, used.hint_bytes);
        // Between its frames is something that could not be read: it is not erased.
        found.unreadable = layout.unit_bytes + used.bytes != used.end;
        held[segment.chunk as usize] = Some(found);
    }
    let log = Log::new(*layout, slice, epoch, free, wear, held);
    let term_max = assembled.term_max;
    let damage_known = next.damage_known_since > 0;
    let mut core = Core::new(*layout, epoch, log, AnchorLog::new(next), term_max, options);
    core.damage_known = damage_known;
    core.clock_start = clock;
    let mut recovery = Recovery {
        epoch,
        groups: Vec::new(),
        damage: assembled.damage,
        dropped_flushes: assembled.dropped_flushes,
        frames: assembled.frames,
        bytes_scanned: probed_bytes + bytes_read,
        hinted_segments,
        entries: assembled.entries,
    };
    let states = restore_groups(&mut core, &mut recovery, replayed);
    for (chunk, used) in &assembled.used {
        for slot in used.groups.iter().filter_map(|group| core.slot(*group)).collect::<Vec<_>>() {
            core.log.segment_mut(*chunk).slots.insert(slot);
        }
    }
    // All that was recovered is durable: what nothing of it needs is free, without a word in the log.
    let void: Vec<u32> = core
        .log
        .sealed()
        .filter(|(chunk, segment)| {
            recovery.damage.is_empty() && segment.to_move(1) == Some(0) && !states.contains(chunk)
        })
        .map(|(chunk, _)| chunk)
        .collect();
    for chunk in void {
        core.log.begin_cleaning(chunk);
        core.anchor.anchor.free(core.log.freed_segment(chunk));
        core.log.free(chunk);
    }
    let next = &core.anchor.anchor;
    let filled = anchor::write(media, layout, next).await.map_err(|error| match error {
        anchor::WriteError::Full => OpenError::AnchorFull { epochs: next.epochs.len() },
        anchor::WriteError::Media(error) => error.into(),
    })?;
    core.anchor.began(filled);
    Ok((core, recovery))
}

/// Both anchor chunks, in their order.
pub(crate) async fn read_anchors<M: Media>(
    media: &M,
    layout: &Layout,
    report: &[ChunkInfo],
) -> Result<Vec<Found>, MediaError> {
    let mut anchors = Vec::with_capacity(ANCHOR_CHUNKS.len());
    for chunk in ANCHOR_CHUNKS {
        let info = &report[chunk.0 as usize];
        let readable = anchor::readable_bytes(layout, info.state, info.write_pointer);
        anchors.push(anchor::read(media, layout, chunk, readable).await?);
    }
    Ok(anchors)
}

/// The chunks with log, told apart by what the anchor says of them. Each list is by generation.
pub(crate) struct FoundLog {
    /// Segments whose frames may count.
    pub(crate) segments: Vec<FoundSegment>,
    /// Freed, and not yet written again.
    pub(crate) freed: Vec<FoundSegment>,
    /// Of epochs of which nothing is left that counts.
    pub(crate) void: Vec<FoundSegment>,
    /// See [`FoundChunks::lost`].
    pub(crate) lost: Vec<(u32, u32)>,
    pub(crate) bytes_read: u64,
}

/// Finds the segments, by their headers. Reads only.
pub(crate) async fn find_log<M: Media>(
    media: &M,
    layout: &Layout,
    slice: SliceId,
    report: &[ChunkInfo],
    newest: &Anchor,
) -> Result<FoundLog, OpenError> {
    let counts = |of: u32| of >= newest.epoch || newest.end_of(of).is_some();
    let found = scan::find_segments(media, layout, slice, report, counts).await?;
    let FoundChunks { mut segments, lost, bytes_read } = found;
    let freed: BTreeSet<Generation> = newest.freed.iter().copied().collect();
    let freed = segments.extract_if(.., |segment| freed.contains(&segment.generation)).collect();
    if let Some(last) = segments.last()
        && last.generation.epoch() > newest.epoch
    {
        return Err(OpenError::AnchorLost { anchor: newest.epoch, log: last.generation.epoch() });
    }
    let (segments, void) = segments.into_iter().partition(|segment| counts(segment.generation.epoch()));
    Ok(FoundLog { segments, freed, void, lost, bytes_read })
}

/// The log, put together.
pub(crate) struct ReadLog {
    pub(crate) assembled: Assembled,
    pub(crate) groups: Vec<Replayed>,
    /// Segments that were known by their footers.
    pub(crate) hinted: u64,
    pub(crate) bytes_read: u64,
}

/// Reads the segments that may count, by their footers if `footers` and where they have any, and puts together what counts.
/// `observe` sees all that is met before. Reads only.
pub(crate) async fn read_log<M: Media>(
    media: &M,
    layout: &Layout,
    slice: SliceId,
    newest: &Anchor,
    found: &FoundLog,
    mut footers: bool,
    mut observe: impl FnMut(&Met<'_>),
) -> Result<ReadLog, MediaError> {
    let mut bytes_read = 0;
    let (mut assembled, groups, hinted) = loop {
        let mut assembly = Assembly::new(layout, slice, newest);
        let meet = |met: Met<'_>| {
            observe(&met);
            assembly.meet(met);
        };
        let read = scan::read_segments(media, layout, slice, &found.segments, footers, meet).await?;
        bytes_read += read.bytes_read;
        if !read.nonsense && assembly.verify_held(media).await? {
            let Finished { mut out, replay } = assembly.finish();
            out.entries = replay.entries;
            let mut replayed = replay.finish();
            if read_waiting(media, layout, slice, &found.segments, &mut replayed).await? {
                break (out, replayed, read.hinted);
            }
        }
        tracing::warn!("footers do not serve: all segments are scanned");
        footers = false;
    };
    // Whatever such a chunk held is missing, and it may have been the end of the log.
    assembled.damage.extend(found.lost.iter().map(|&(chunk, offset)| Damage {
        chunk: ChunkId(chunk),
        sector: layout.sector_of(offset),
        what: DamageKind::Sector,
    }));
    Ok(ReadLog { assembled, groups, hinted, bytes_read })
}

/// What the anchor of a start of this epoch, which finds this damage, says of it: which it is, and since when it is known.
pub(crate) fn known_damage(newest: &Anchor, damage: &[Damage], epoch: u32) -> (u32, u32) {
    match damage_checksum(damage) {
        // A group that is suspect because of damage that is gone by now stays so.
        0 => (newest.damage, newest.damage_known_since),
        known if known == newest.damage => (known, newest.damage_known_since),
        // Before the first start nothing was written, so nothing of it can be lost.
        new if newest.epoch == 0 => (new, 0),
        new => (new, epoch),
    }
}

pub(crate) fn newest_anchor(anchors: Vec<Found>, slice: SliceId) -> Result<Anchor, OpenError> {
    let blank = anchors.iter().all(|found| *found == Found::Blank);
    let mut newest: Option<Anchor> = None;
    let mut foreign = None;
    for found in anchors {
        match found {
            Found::Other(version) => return Err(OpenError::OtherFormat { found: version }),
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
                DamageKind::Frames { epoch, missing: [count, sum, squares] } => {
                    [epoch.into(), count, sum, squares]
                }
                DamageKind::Sector => [u64::MAX, chunk, sector, 0],
                DamageKind::Record => [u64::MAX, chunk, sector, 1],
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

/// Whether a group's newest state knows nothing of the damage: then the group is suspect, at this start and at each one until
/// a state is written. One that was written since the damage became known says itself whether it is.
pub(crate) fn is_outdated(state_epoch: u32, damage_known_since: u32) -> bool {
    state_epoch < damage_known_since
}

/// Puts the replayed groups into the core and says what they are. Returns the chunks that hold their newest states.
fn restore_groups(core: &mut Core, recovery: &mut Recovery, groups: Vec<Replayed>) -> BTreeSet<u32> {
    let mut states = BTreeSet::new();
    let damage_known_since = core.anchor.anchor.damage_known_since;
    for replayed in groups {
        states.insert(replayed.state_chunk);
        let mut group = replayed.group;
        if is_outdated(replayed.state_epoch, damage_known_since) {
            group.suspect = true;
            group.hard_state.term = group.hard_state.term.max(core.term_max);
            group.hard_state.vote = VOTE_SPENT;
        }
        let mut tail = Vec::with_capacity(replayed.waiting.len());
        for Waiting { term, kind, place, payload, .. } in replayed.waiting {
            let payload = payload.expect("what was not read yet was read since");
            let bytes = group.push_payload(&Entry { term, kind, payload }, place);
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
        group.places().for_each(|place| core.log.retain(place));
        let mut keys = group.index.range(Bound::Unbounded, Bound::Unbounded);
        while let Some((_, located)) = keys.next_key() {
            core.log.moved(None, Some(located.place));
        }
        let slot = core.add_group(group);
        for (index, bytes) in tail {
            core.note_tail(slot, index, bytes);
        }
    }
    states
}

/// Entries that are read at once.
const READS_AT_ONCE: usize = 16;

/// Reads the payloads of entries that only footers know. False if one of them is not there.
async fn read_waiting<M: Media>(
    media: &M,
    layout: &Layout,
    slice: SliceId,
    segments: &[FoundSegment],
    groups: &mut [Replayed],
) -> Result<bool, MediaError> {
    let stamps: BTreeMap<u32, Stamp> =
        segments.iter().map(|segment| (segment.chunk, Stamp::new(slice, segment.generation))).collect();
    let mut unread = groups.iter_mut().flat_map(|Replayed { group, waiting, .. }| {
        let (id, incarnation) = (group.id, group.incarnation);
        waiting.iter_mut().filter(|entry| entry.payload.is_none()).map(move |entry| (id, incarnation, entry))
    });
    let mut pipeline = Pipeline::new();
    loop {
        while pipeline.len() < READS_AT_ONCE
            && let Some((group, incarnation, entry)) = unread.next()
        {
            let stamp = stamps[&entry.place.chunk];
            pipeline.push(async move {
                let (index, term) = (entry.index, entry.term);
                let is = |header: &record::RecordHeader| {
                    (header.group, header.incarnation, header.index, header.term)
                        == (group, incarnation, index, term)
                };
                let first = layout.sector_of(entry.place.offset);
                let end = (entry.place.offset + entry.place.length).div_ceil(layout.sector_bytes);
                let buf = AlignedBuf::zeroed(((end - first) * layout.sector_bytes) as usize);
                let (result, buf) = media.read(ChunkId(entry.place.chunk), first, buf).await;
                match result {
                    Ok(()) => {}
                    Err(error) if error.is_bad_content() => return Ok(false),
                    Err(error) => return Err(error),
                }
                let at = (entry.place.offset - first * layout.sector_bytes) as usize;
                let found = record::decode_entry(&buf[at..at + entry.place.length as usize], stamp, is);
                entry.payload = found.filter(|(kind, _)| *kind == entry.kind).map(|(_, payload)| payload);
                Ok::<_, MediaError>(entry.payload.is_some())
            });
        }
        let Some(read) = pipeline.next().await else { return Ok(true) };
        if !read? {
            return Ok(false);
        }
    }
}

/// Puts frames together to flushes, flushes to epochs, and hands what counts to replay.
///
/// Streams fill several segments side by side, so frames are not met in the order in which they were written. It does
/// not matter: every flush but the highest of the newest epoch was whole once, so its frames count as they come, and only
/// those of the highest one are held back until all was met.
struct Assembly<'a> {
    layout: &'a Layout,
    slice: SliceId,
    anchor: &'a Anchor,
    newest: NewestEpoch,
    replay: Replay,
    out: Assembled,
}

/// The epoch of the anchor: where it ended must be found out.
#[derive(Default)]
struct NewestEpoch {
    /// The highest flush of which a header was met; 0 before the first.
    highest: u64,
    /// Number of the first frame of that flush.
    first_number: u64,
    frames: u16,
    /// Its frames.
    held: Vec<HeldFrame>,
    /// One of its frames is known to be broken.
    torn: bool,
}

struct HeldFrame {
    segment: FoundSegment,
    header: FrameHeader,
    offset: u32,
    content: HeldContent,
}

/// What becomes of a frame that was met.
enum Fate {
    Counts,
    /// It counts if its flush turns out to be whole.
    Held,
    Void,
}

enum HeldContent {
    /// The records' bytes.
    Records(Vec<u8>),
    /// What a footer says of it.
    Hints(FrameHints),
}

/// What was met of an epoch.
#[derive(Default)]
struct EpochMet {
    frames: FrameSet,
    /// Something else than frames is wrong with it.
    damaged: bool,
}

/// All that counts.
struct Finished {
    out: Assembled,
    replay: Replay,
}

#[derive(Default)]
pub(crate) struct Assembled {
    pub(crate) entries: u64,
    pub(crate) damage: Vec<Damage>,
    pub(crate) frames: u64,
    pub(crate) dropped_flushes: u64,
    term_max: u64,
    /// By chunk: what counts of the segment on it.
    pub(crate) used: BTreeMap<u32, UsedSegment>,
    met: BTreeMap<u32, EpochMet>,
    /// What the next anchor says of the epochs before it.
    ends: Vec<EpochEnd>,
}

/// A segment of which something counts.
#[derive(Default)]
pub(crate) struct UsedSegment {
    pub(crate) frames: FrameSet,
    /// Bytes from the start of the chunk to the end of the last frame that counts.
    pub(crate) end: u32,
    /// Bytes of these frames.
    bytes: u32,
    first_lsn: Option<Lsn>,
    /// Bytes of deletes.
    deletes: u64,
    /// Bytes that the hints of its records may take.
    hint_bytes: u64,
    groups: BTreeSet<GroupId>,
}

impl<'a> Assembly<'a> {
    fn new(layout: &'a Layout, slice: SliceId, anchor: &'a Anchor) -> Self {
        let out = Assembled { term_max: anchor.term_max, ..Assembled::default() };
        Self { layout, slice, anchor, newest: NewestEpoch::default(), replay: Replay::default(), out }
    }

    fn meet(&mut self, met: Met<'_>) {
        match met {
            Met::Frame(MetFrame { segment, offset, header, body, records, .. }) => {
                match self.fate(&segment, &header) {
                    Fate::Counts => self.count(&segment, offset, &header, &hints_of(records)),
                    Fate::Held => {
                        let content = HeldContent::Records(body.to_vec());
                        self.newest.held.push(HeldFrame { segment, header, offset, content });
                    }
                    Fate::Void => {}
                }
            }
            Met::Hinted { segment, frame } => match self.fate(&segment, &frame.header) {
                Fate::Counts => self.count_hinted(&segment, &frame),
                Fate::Held => {
                    let FrameHints { header, offset, .. } = frame;
                    let content = HeldContent::Hints(frame);
                    self.newest.held.push(HeldFrame { segment, header, offset, content });
                }
                Fate::Void => {}
            },
            // It stands for a frame that is never met. One flush is in flight at a time, so all before it were durable.
            Met::Torn { segment, offset: _, header } => {
                self.out.term_max = self.out.term_max.max(header.term_max);
                if segment.generation.epoch() == self.anchor.epoch && self.is_highest(&header) {
                    self.newest.torn = true;
                }
            }
            Met::Unreadable { segment, offset } => {
                self.out.met.entry(segment.generation.epoch()).or_default().damaged = true;
                let (chunk, sector) = (ChunkId(segment.chunk), self.layout.sector_of(offset));
                self.out.damage.push(Damage { chunk, sector, what: DamageKind::Sector });
            }
        }
    }

    /// Whether the flush of this header is the highest of the newest epoch, as far as is known by now. What was held of
    /// a lower one counts then.
    fn is_highest(&mut self, header: &FrameHeader) -> bool {
        if header.flush > self.newest.highest {
            let first_number = header.number - u64::from(header.ordinal);
            let (highest, frames) = (header.flush, header.frames);
            let next = NewestEpoch { highest, first_number, frames, held: Vec::new(), torn: false };
            let lower = std::mem::replace(&mut self.newest, next);
            // Of a lower flush what a footer says is true.
            self.count_held(lower.held);
        }
        header.flush == self.newest.highest
    }

    fn fate(&mut self, segment: &FoundSegment, header: &FrameHeader) -> Fate {
        self.out.term_max = self.out.term_max.max(header.term_max);
        let epoch = segment.generation.epoch();
        if epoch != self.anchor.epoch {
            let limit = self.anchor.end_of(epoch).map_or(0, |end| end.last_flush);
            if header.flush <= limit { Fate::Counts } else { Fate::Void }
        } else if self.is_highest(header) {
            Fate::Held
        } else {
            Fate::Counts
        }
    }

    /// All was met: reads what is known of the highest flush from footers alone. They were written with that very flush, and
    /// may be durable where its frames are not. False if the device does not give one of these back: a scan says what that means.
    async fn verify_held<M: Media>(&mut self, media: &M) -> Result<bool, MediaError> {
        for held in &mut self.newest.held {
            let HeldContent::Hints(frame) = &held.content else { continue };
            let stamp = Stamp::new(self.slice, held.segment.generation);
            match scan::look_up(media, self.layout, stamp, held.segment.chunk, frame).await? {
                LookedUp::Whole(header, body) => {
                    (held.header, held.content) = (header, HeldContent::Records(body));
                }
                LookedUp::Broken => self.newest.torn = true,
                LookedUp::Unreadable => return Ok(false),
            }
        }
        Ok(true)
    }

    /// All was met and verified.
    fn finish(mut self) -> Finished {
        let newest = std::mem::take(&mut self.newest);
        let whole = newest.held.len() == usize::from(newest.frames) && !newest.torn;
        // The last flush that counts, and the last frame that must have been written.
        let (last_flush, last_number) = match newest.highest {
            0 => (0, 0),
            highest if whole => (highest, newest.first_number + u64::from(newest.frames) - 1),
            highest => (highest - 1, newest.first_number - 1),
        };
        match whole {
            true => self.count_held(newest.held),
            false => self.out.dropped_flushes = 1,
        }
        let frames = FrameSet::up_to(last_number).minus(self.anchor.freed_frames);
        let mut ends = self.anchor.epochs.clone();
        ends.push(EpochEnd { epoch: self.anchor.epoch, last_flush, frames });
        for end in ends {
            let met = self.out.met.get(&end.epoch).map_or(FrameSet::default(), |met| met.frames);
            let missing = end.frames.minus(met);
            if !missing.is_empty() {
                self.out.met.entry(end.epoch).or_default().damaged = true;
                let what = DamageKind::Frames { epoch: end.epoch, missing: missing.words() };
                self.out.damage.push(Damage { chunk: ChunkId(LOG_CHUNK_FIRST), sector: 0, what });
            }
            let damaged = self.out.met.get(&end.epoch).is_some_and(|met| met.damaged);
            if !end.frames.is_empty() || damaged {
                self.out.ends.push(end);
            }
        }
        Finished { out: self.out, replay: self.replay }
    }

    fn count_held(&mut self, held: Vec<HeldFrame>) {
        for HeldFrame { segment, header, offset, content } in held {
            match content {
                HeldContent::Records(body) => {
                    let stamp = Stamp::new(self.slice, segment.generation);
                    let records = frame::decode_body(&header, stamp, &body).unwrap_or_default();
                    self.count(&segment, offset, &header, &hints_of(&records));
                }
                HeldContent::Hints(frame) => self.count_hinted(&segment, &frame),
            }
        }
    }

    fn count_hinted(&mut self, segment: &FoundSegment, frame: &FrameHints) {
        let hints: Vec<_> = frame.hints().collect();
        self.count(segment, frame.offset, &frame.header, &hints);
    }

    /// The frame, which stands at `frame_offset`, counts.
    fn count(&mut self, segment: &FoundSegment, frame_offset: u32, header: &FrameHeader, hints: &[Hint<'_>]) {
        let chunk = segment.chunk;
        let epoch = segment.generation.epoch();
        self.out.frames += 1;
        self.out.met.entry(epoch).or_default().frames.insert(header.number);
        let used = self.out.used.entry(chunk).or_default();
        used.first_lsn.get_or_insert(Lsn { epoch, counter: header.lsn_first });
        for hint in hints {
            used.groups.insert(hint.header.group);
            used.deletes += if hint.deletes() { u64::from(hint.header.record_bytes()) } else { 0 };
            used.hint_bytes += u64::from(hint.bytes_max().min(self.layout.hint_bytes_limit()));
        }
        used.frames.insert(header.number);
        let frame_bytes = self.layout.frame_bytes(header.body_bytes);
        used.bytes += frame_bytes;
        used.end = used.end.max(frame_offset + frame_bytes);
        let mut rest = hints;
        let mut lsn = Lsn { epoch, counter: header.lsn_first };
        let mut offset = frame_offset + frame::HEADER_BYTES as u32;
        while let Some(first) = rest.first() {
            // An entry of several ops is a run of records.
            let parts = (usize::from(first.header.parts_left) + 1).min(rest.len());
            let (run, behind) = rest.split_at(parts);
            rest = behind;
            if self.replay.record(lsn, run, chunk, offset).is_err() {
                let sector = self.layout.sector_of(offset);
                self.out.damage.push(Damage { chunk: ChunkId(chunk), sector, what: DamageKind::Record });
                self.out.met.entry(epoch).or_default().damaged = true;
            }
            lsn.counter += run.len() as u64;
            offset += run.iter().map(|hint| hint.header.record_bytes()).sum::<u32>();
        }
    }
}

fn hints_of<'a>(records: &[(u32, Record<'a>)]) -> Vec<Hint<'a>> {
    records.iter().map(|(_, record)| Hint::of(record)).collect()
}

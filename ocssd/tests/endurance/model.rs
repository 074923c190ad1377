//! What a medium may hold, sector by sector, by the promises of `media.rs` and nothing else.
//!
//! The law: **no durable byte is lost.** What a flush covered, or a durable write, reads back right, unless a fault
//! that destroys data struck at that very sector; and even then nothing that is wrong passes for right.
//!
//! - A flush covers what completed before it was submitted; a durable write only itself.
//! - The last `mw_cunits` sectors of an open chunk are not covered before something behind them is, unless the buffer
//!   is protected; but what is below the write pointer after a cut is good.
//! - A chunk that was reset owes nothing of its old life. Until the reset is durable a cut may bring that life back;
//!   the sectors say so themselves.
//! - What a power cut left is on the medium, and the next cut takes nothing of it.
//! - A volume promises more, see `rig`, and is excused by less, see `beneath`.
//!
//! Panics where the medium breaks the law.

use std::collections::{BTreeMap, BTreeSet};

use terrane_ocssd::sim::{Fault, Injected};
use terrane_ocssd::{ChunkId, ChunkInfo, ChunkState, Geometry, MediaError, Notice, NoticeKind};

use crate::beneath::{Beneath, says_that_line_is_closed};
use crate::rig::{Promises, VolumePromises};
use crate::sector::Tag;

/// One sector in the present life of its chunk.
#[derive(Debug, Clone, Copy, Default)]
struct Sector {
    /// Number of the write that is, or will be, its content. `None`: this life has not written it.
    number: Option<u64>,
    /// When that write completed.
    completed_at: Option<u64>,
    /// A flush or its own durability made it durable.
    covered: bool,
    /// Something was made durable while it was written: perhaps what is above it in its chunk, and not itself.
    straddled: bool,
    /// A flush that had to cover it failed: no other will.
    doomed: bool,
    /// The write failed, or was not promised when power went: it may hold anything.
    undefined: bool,
    /// A fault destroyed it: it may hold anything.
    harmed: bool,
    /// A fault made it unreadable.
    unreadable: bool,
}

/// What is known of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Known(ChunkState),
    /// Its reset may not have happened: only another reset helps.
    Limbo(ChunkState),
}

#[derive(Debug, Clone, Copy, Default)]
struct Reset {
    /// When it completed.
    at: Option<u64>,
    /// It is durable.
    covered: bool,
    /// A flush that had to cover it failed: no other will.
    doomed: bool,
}

#[derive(Debug, Clone)]
struct Chunk {
    phase: Phase,
    life: u32,
    /// Counts writes in flight.
    pointer: u32,
    sectors: Vec<Sector>,
    writes_in_flight: u32,
    resetting: bool,
    finishing: bool,
    /// Its last reset.
    reset: Reset,
    /// The one before, if nothing was written since. If the last one was given up, a chunk that is free may be so by this.
    reset_before: Option<Reset>,
    /// When it was closed at less than its end, and whether that is durable.
    closed_at: Option<u64>,
    close_covered: bool,
    close_doomed: bool,
    /// The device took it out of use from this sector on, and may not have said so yet.
    failed_at: Option<u32>,
    /// Where the write pointer came back after the last cut: what is below has been programmed.
    survived: u32,
    /// It came back longer than it was: what an earlier start had dropped may have come to light.
    loose: bool,
    /// What [`Self::covered_end`] was when the chunk failed.
    covered_before: u32,
    /// The device said that it is offline.
    offline_noticed: bool,
    /// Members of a line that the device said to be offline, and which of them were found to be so.
    members_offline: u32,
    members_gone: BTreeSet<u32>,
    /// The line takes no more writes, and ends where nobody was told.
    broken: bool,
    /// It came back open on a device that hides sectors: its next write moves it to other chunks, which are not on
    /// record before a flush.
    reopened: bool,
}

/// How a medium came to be opened again.
#[derive(Debug, Clone, Copy)]
struct Opening {
    power_lost: bool,
    volatile: Volatile,
    /// The power went while it was opened, if not before: chunks may have been closed by then.
    cut_short: bool,
    /// As many chunks are open as may be, so that others may have been closed.
    limit_reached: bool,
}

/// What of that which had completed is there, though nothing covered it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Volatile {
    Nothing,
    Everything,
    /// What filled units of so many sectors with all that is below it.
    WholeUnits(u32),
}

/// A write on its way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WriteTicket {
    pub(crate) chunk: ChunkId,
    pub(crate) sector: u32,
    pub(crate) sectors: u32,
    durable: bool,
    life: u32,
    submitted_at: u64,
}

/// A read on its way.
#[derive(Debug, Clone)]
pub(crate) struct ReadTicket {
    pub(crate) chunk: ChunkId,
    pub(crate) sector: u32,
    life: u32,
    /// For each sector, whether its content was complete when the read was submitted.
    complete: Vec<bool>,
    /// Read errors beneath a volume before it was submitted.
    read_errors: u64,
}

/// What happened in a run, to show that it was worth it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Durable sectors that were read back right after a cut or a restart.
    pub(crate) durable_read: u64,
    /// Covered sectors that a cut took, as `mw_cunits` allows.
    pub(crate) hidden_lost: u64,
    /// Completed, volatile sectors that a cut took or spoilt.
    pub(crate) volatile_lost: u64,
    /// Harmed sectors that a reader found out.
    pub(crate) detected: u64,
    /// Chunks that came back in the life before their reset.
    pub(crate) resets_lost: u64,
    /// Lines of a volume that were closed by what struck beneath.
    pub(crate) lines_broken: u64,
    /// Members of lines that went offline with what they held.
    pub(crate) members_gone: u64,
    pub(crate) cuts: u64,
    pub(crate) restarts: u64,
    pub(crate) faults: BTreeMap<Fault, u64>,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.durable_read += other.durable_read;
        self.hidden_lost += other.hidden_lost;
        self.volatile_lost += other.volatile_lost;
        self.detected += other.detected;
        self.resets_lost += other.resets_lost;
        self.lines_broken += other.lines_broken;
        self.members_gone += other.members_gone;
        self.cuts += other.cuts;
        self.restarts += other.restarts;
        for (fault, times) in &other.faults {
            *self.faults.entry(*fault).or_default() += times;
        }
    }
}

pub(crate) struct Model {
    geometry: Geometry,
    promises: Promises,
    protects_buffer: bool,
    chunks: Vec<Chunk>,
    now: u64,
    last_number: u64,
    /// A fault cut the power, and it did not come back yet.
    power_was_cut: bool,
    /// Operations in flight that make something durable, and when the last of them ended.
    barriers_in_flight: u32,
    last_barrier_ended_at: u64,
    /// When a flush failed beneath a volume, since that was opened.
    flush_failed_at: Option<u64>,
    beneath: Beneath,
    pub(crate) tally: Tally,
}

impl Chunk {
    fn new(geometry: &Geometry, info: &ChunkInfo) -> Self {
        Self {
            phase: Phase::Known(info.state),
            life: 0,
            pointer: info.write_pointer,
            sectors: vec![Sector::default(); geometry.chunk_sectors as usize],
            writes_in_flight: 0,
            resetting: false,
            finishing: false,
            reset: Reset { at: Some(0), covered: true, doomed: false },
            reset_before: None,
            closed_at: None,
            close_covered: false,
            close_doomed: false,
            failed_at: None,
            survived: 0,
            loose: false,
            covered_before: 0,
            offline_noticed: false,
            members_offline: 0,
            members_gone: BTreeSet::new(),
            broken: false,
            reopened: false,
        }
    }

    fn is(&self, state: ChunkState) -> bool {
        self.phase == Phase::Known(state)
    }

    fn is_offline(&self) -> bool {
        self.is(ChunkState::Offline)
    }

    /// It is not closed any more.
    fn reopen(&mut self) {
        self.closed_at = None;
        self.close_covered = false;
        self.close_doomed = false;
        self.covered_before = 0;
    }

    fn busy(&self) -> bool {
        self.resetting || self.finishing
    }

    /// End of the last sector that completed.
    fn completed_end(&self) -> u32 {
        self.end_of(|sector| sector.completed_at.is_some())
    }

    /// End of the last sector that is covered, or was before the chunk failed.
    fn covered_end(&self) -> u32 {
        self.covered_before.max(self.end_of(|sector| sector.covered))
    }

    /// End of what completed from the front on.
    fn completed_prefix(&self) -> u32 {
        let written = self.sectors[..self.pointer as usize].iter();
        let in_flight = |sector: &Sector| sector.number.is_some() && sector.completed_at.is_none();
        written.take_while(|sector| !in_flight(sector)).count() as u32
    }

    /// End of what is owed from the front on.
    fn owed_prefix(&self) -> u32 {
        self.sectors.iter().take_while(|sector| sector.is_owed()).count() as u32
    }

    /// Whether everything in it is durable.
    fn is_settled(&self) -> bool {
        let written = &self.sectors[..self.pointer as usize];
        self.writes_in_flight == 0 && !self.broken && written.iter().all(|sector| sector.covered)
    }

    /// End of the last sector for which it holds.
    fn end_of(&self, holds: impl Fn(&Sector) -> bool) -> u32 {
        self.sectors.iter().rposition(holds).map_or(0, |last| last as u32 + 1)
    }

    /// Whether it is closed for good, so that it hides nothing.
    fn closed_durably(&self) -> bool {
        self.close_covered || self.sectors.last().is_some_and(|last| last.covered)
    }

    /// Where that ends which a cut may not take.
    fn promised_end(&self, hidden: u32) -> u32 {
        match self.closed_durably() {
            true => self.sectors.len() as u32,
            false => self.covered_end().saturating_sub(hidden).max(self.survived),
        }
    }

    /// Sectors that a reader must find right after a cut.
    fn promised(&self, hidden: u32) -> impl Iterator<Item = u32> {
        let promised = |sector: &u32| self.sectors[*sector as usize].is_owed();
        (0..self.promised_end(hidden)).filter(promised)
    }

    /// A line ends at its first sector that is lost: one that a failed flush left behind, and that a host took for whole
    /// which came back while the power stayed, takes what is above it along.
    fn forget_above_doomed(&mut self) {
        let first = self.sectors.iter().position(|sector| sector.doomed && !sector.covered);
        for sector in self.sectors.iter_mut().skip(first.unwrap_or(usize::MAX)) {
            sector.covered = false;
            sector.doomed = true;
        }
    }
}

impl Sector {
    /// Nothing is written there, which does not make it readable.
    fn clear(&mut self) {
        *self = Self { unreadable: self.unreadable, ..Self::default() };
    }

    fn is_owed(&self) -> bool {
        self.covered && !self.undefined && !self.harmed && !self.unreadable
    }
}

impl Model {
    pub(crate) fn new(
        geometry: Geometry,
        promises: Promises,
        protects_buffer: bool,
        report: &[ChunkInfo],
    ) -> Self {
        assert_eq!(report.len(), geometry.chunk_count() as usize);
        Self {
            geometry,
            promises,
            protects_buffer,
            chunks: report.iter().map(|info| Chunk::new(&geometry, info)).collect(),
            now: 0,
            last_number: 0,
            power_was_cut: false,
            barriers_in_flight: 0,
            last_barrier_ended_at: 0,
            flush_failed_at: None,
            beneath: Beneath::default(),
            tally: Tally::default(),
        }
    }

    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// Sectors that an open chunk may lose, although they are covered.
    fn at_stake(&self) -> u32 {
        if self.protects_buffer { 0 } else { self.geometry.mw_cunits }
    }

    fn chunk(&mut self, chunk: ChunkId) -> &mut Chunk {
        &mut self.chunks[chunk.0 as usize]
    }

    fn chunks_where(&self, holds: impl Fn(&Chunk) -> bool) -> Vec<ChunkId> {
        (0..).map(ChunkId).zip(&self.chunks).filter(|(_, chunk)| holds(chunk)).map(|(id, _)| id).collect()
    }

    /// Chunks that may be written, with the room that they have.
    pub(crate) fn writable(&self) -> Vec<(ChunkId, u32)> {
        let is_open = |chunk: &Chunk| {
            chunk.finishing
                || matches!(
                    chunk.phase,
                    Phase::Known(ChunkState::Open) | Phase::Limbo(ChunkState::Open | ChunkState::Closed)
                )
        };
        let open = self.chunks.iter().filter(|chunk| is_open(chunk)).count() as u32;
        let may_open = self.geometry.max_open == 0 || open < self.geometry.max_open;
        let writable = |chunk: &Chunk| {
            let takes = chunk.is(ChunkState::Open) || chunk.is(ChunkState::Free) && may_open;
            takes && !chunk.busy() && !chunk.broken
        };
        let room = |id: ChunkId| (id, self.geometry.chunk_sectors - self.chunks[id.0 as usize].pointer);
        self.chunks_where(writable).into_iter().map(room).collect()
    }

    pub(crate) fn finishable(&self) -> Vec<ChunkId> {
        let idle = |chunk: &Chunk| !chunk.busy() && !chunk.broken && chunk.writes_in_flight == 0;
        self.chunks_where(|chunk| chunk.is(ChunkState::Open) && idle(chunk))
    }

    pub(crate) fn resettable(&self) -> Vec<ChunkId> {
        self.chunks_where(|chunk| !chunk.is_offline() && !chunk.busy() && chunk.writes_in_flight == 0)
    }

    /// Chunks that have something to read, and where that ends. A host reads nothing that it was not told to be
    /// there, nor behind that; a device may refuse it. A volume shows everything.
    pub(crate) fn readable(&self) -> Vec<(ChunkId, u32)> {
        let end = |chunk: &Chunk| {
            if chunk.is_offline() || chunk.busy() {
                return 0;
            }
            if self.promises.volume.is_some() {
                return match chunk.broken {
                    true => chunk.owed_prefix().min(chunk.promised_end(self.at_stake())),
                    false => chunk.completed_prefix().max(chunk.completed_end()),
                };
            }
            let open = matches!(chunk.phase, Phase::Known(ChunkState::Open) | Phase::Limbo(ChunkState::Open));
            let hidden = if open || chunk.writes_in_flight > 0 { self.geometry.mw_cunits } else { 0 };
            chunk.completed_prefix().saturating_sub(hidden)
        };
        let with_end = |id: ChunkId| (id, end(&self.chunks[id.0 as usize]));
        self.chunks_where(|chunk| end(chunk) > 0).into_iter().map(with_end).collect()
    }

    /// A write of so many sectors goes to the write pointer. Fills the buffer.
    pub(crate) fn write_submitted(&mut self, chunk: ChunkId, durable: bool, buf: &mut [u8]) -> WriteTicket {
        let sector_bytes = self.geometry.sector_bytes as usize;
        let chunk_sectors = self.geometry.chunk_sectors;
        let mut number = self.last_number;
        let state = self.chunk(chunk);
        let (start, life) = (state.pointer, state.life);
        for (sector, bytes) in (start..).zip(buf.chunks_mut(sector_bytes)) {
            number += 1;
            Tag { chunk, sector, life, number }.encode(bytes);
            let known = &mut state.sectors[sector as usize];
            known.clear();
            known.number = Some(number);
        }
        let sectors = (buf.len() / sector_bytes) as u32;
        state.pointer += sectors;
        state.writes_in_flight += 1;
        let full = state.pointer == chunk_sectors;
        state.phase = Phase::Known(if full { ChunkState::Closed } else { ChunkState::Open });
        self.last_number = number;
        let submitted_at = self.tick();
        self.barriers_in_flight += u32::from(durable);
        WriteTicket { chunk, sector: start, sectors, durable, life, submitted_at }
    }

    pub(crate) fn write_completed(
        &mut self,
        ticket: WriteTicket,
        result: &Result<(), MediaError>,
        struck: &[Injected],
    ) {
        let WriteTicket { chunk, sector, sectors, durable, life, submitted_at } = ticket;
        let now = self.tick();
        let of_volume = self.promises.volume.is_some();
        // What does not fill a unit is written later.
        let unit = self.promises.volume.map_or(1, |volume| volume.unit_sectors);
        let written_end = (sector + sectors) / unit * unit;
        let straddled = self.barriers_in_flight > 0 || self.last_barrier_ended_at >= submitted_at;
        if durable {
            self.barrier_ended();
        }
        let state = self.chunk(chunk);
        assert_eq!(state.life, life, "a chunk with a write in flight was reset");
        state.writes_in_flight -= 1;
        let addressed = sector as usize..(sector + sectors) as usize;
        match result {
            Ok(()) => {
                assert!(
                    state.failed_at.is_none_or(|failed_at| sector + sectors <= failed_at),
                    "a write of {chunk:?} at {sector} was acknowledged above the sector that failed"
                );
                for (at, sector) in (0..).zip(&mut state.sectors[..addressed.end]).skip(addressed.start) {
                    sector.completed_at = Some(now);
                    sector.covered |= durable;
                    sector.straddled = straddled || at >= written_end;
                    sector.harmed = false;
                }
                if durable && of_volume {
                    // With all that is below it.
                    for sector in &mut self.chunk(chunk).sectors[..addressed.end] {
                        sector.covered |= !sector.doomed;
                    }
                }
            }
            Err(error @ MediaError::Io { .. }) if of_volume => {
                for sector in &mut self.chunk(chunk).sectors[addressed] {
                    sector.completed_at = Some(now);
                    sector.undefined = true;
                }
                self.operation_failed(chunk, error);
            }
            Err(MediaError::Io { .. }) => {
                let torn = Injected { fault: Fault::TornWrite, chunk, sectors: Some((sector, sectors)) };
                assert!(struck.contains(&torn), "a write failed without a fault: {result:?}");
                for sector in &mut state.sectors[addressed] {
                    sector.completed_at = Some(now);
                    sector.undefined = true;
                }
            }
            Err(MediaError::WriteFailed { chunk: named, sector: end })
            | Err(MediaError::ClosedEarly { chunk: named, write_pointer: end }) => {
                assert_eq!(*named, chunk);
                assert!(*end < sector + sectors, "a write failed that is there: {result:?}");
                self.chunk_failed(chunk, *end);
                let there = addressed.start..addressed.end.min(*end as usize);
                for sector in self.chunk(chunk).sectors.get_mut(there).into_iter().flatten() {
                    sector.completed_at = Some(now);
                }
            }
            Err(error) => self.excuse(chunk, error),
        }
    }

    fn barrier_ended(&mut self) {
        self.barriers_in_flight -= 1;
        self.last_barrier_ended_at = self.now;
    }

    /// The device says that the chunk ends here, and is closed.
    fn chunk_failed(&mut self, chunk: ChunkId, end: u32) {
        let now = self.now;
        let at_stake = self.at_stake();
        let tells_faults = self.promises.tells_faults;
        let state = self.chunk(chunk);
        if !tells_faults {
            state.failed_at.get_or_insert(end);
        }
        assert_eq!(state.failed_at, Some(end), "{chunk:?} failed without a fault");
        let lost = state.promised(at_stake).find(|sector| *sector >= end);
        assert_eq!(lost, None, "a durable sector of {chunk:?} is lost as it failed at {end}");
        state.covered_before = state.covered_end();
        for sector in &mut state.sectors[end as usize..] {
            sector.clear();
        }
        if state.closed_at.is_none() {
            state.closed_at = Some(now);
            state.pointer = end;
            state.phase = Phase::Known(ChunkState::Closed);
        }
    }

    /// A write or a finish failed for what struck beneath a volume.
    fn operation_failed(&mut self, line: ChunkId, error: &MediaError) {
        assert!(self.beneath.explains(error), "{line:?} failed without a fault: {error} ({error:?})");
        let breaks = says_that_line_is_closed(error) && !self.chunk(line).broken;
        self.tally.lines_broken += u64::from(breaks);
        self.chunk(line).broken |= breaks;
    }

    /// An error that is right if the chunk is offline.
    fn excuse(&mut self, chunk: ChunkId, error: &MediaError) {
        let offline = matches!(error, MediaError::Offline { chunk: named } if *named == chunk);
        assert!(offline && self.chunk(chunk).is_offline(), "{chunk:?} failed without a fault: {error}");
    }

    pub(crate) fn read_submitted(&mut self, chunk: ChunkId, sector: u32, sectors: u32) -> ReadTicket {
        let read_errors = self.beneath.read_errors();
        let state = self.chunk(chunk);
        let addressed = &state.sectors[sector as usize..(sector + sectors) as usize];
        let complete = addressed.iter().map(|sector| sector.completed_at.is_some()).collect();
        ReadTicket { chunk, sector, life: state.life, complete, read_errors }
    }

    /// Returns whether the read told the content of its sectors.
    pub(crate) fn read_completed(
        &mut self,
        ticket: &ReadTicket,
        result: &Result<(), MediaError>,
        bytes: &[u8],
        struck: &[Injected],
    ) -> bool {
        let ReadTicket { chunk, sector: start, life, .. } = *ticket;
        let sectors = ticket.complete.len() as u32;
        let state = self.chunk(chunk);
        if state.life != life {
            // Reset meanwhile: its content means nothing.
            return false;
        }
        let limbo = matches!(state.phase, Phase::Limbo(_));
        if let (Err(error), Some(volume)) = (result, self.promises.volume) {
            assert!(
                limbo || self.explains_read(&volume, ticket, error),
                "a read failed without a fault: {error}, {:?}",
                self.chunk(chunk)
            );
            return false;
        }
        let state = self.chunk(chunk);
        if let Err(error) = result {
            let bad = |sector: u32| state.sectors[sector as usize].unreadable;
            match error {
                MediaError::Io { .. } | MediaError::Unreadable { .. } => {
                    let passing =
                        Injected { fault: Fault::ReadError, chunk, sectors: Some((start, sectors)) };
                    let excused = match error {
                        // Given up with the reset that may have harmed it.
                        _ if limbo => true,
                        MediaError::Unreadable { sector, .. } => {
                            (start..start + sectors).contains(sector) && bad(*sector)
                        }
                        _ => (start..start + sectors).any(bad),
                    };
                    assert!(excused || struck.contains(&passing), "a read failed without a fault: {error}");
                }
                error => self.excuse(chunk, error),
            }
            return false;
        }
        let sector_bytes = self.geometry.sector_bytes as usize;
        let mut told = true;
        for ((sector, bytes), complete) in (start..).zip(bytes.chunks(sector_bytes)).zip(&ticket.complete) {
            let flipped = Injected { fault: Fault::CorruptedRead, chunk, sectors: Some((sector, 1)) };
            if struck.contains(&flipped) {
                assert!(Tag::decode(bytes).is_none(), "a flipped bit passed");
                told = false;
            } else {
                self.check(chunk, sector, bytes, *complete);
            }
        }
        told
    }

    /// Whether a read of a volume may fail so.
    fn explains_read(&mut self, volume: &VolumePromises, ticket: &ReadTicket, error: &MediaError) -> bool {
        let addressed = ticket.sector..ticket.sector + ticket.complete.len() as u32;
        let breaks_lines = self.beneath.breaks_lines();
        let at_stake = self.at_stake();
        let line = &mut self.chunks[ticket.chunk.0 as usize];
        match error {
            MediaError::Unreadable { chunk, sector } => {
                if *chunk != ticket.chunk || !addressed.contains(sector) {
                    return false;
                }
                let member = volume.member_of(*sector);
                if line.sectors[*sector as usize].unreadable || line.members_gone.contains(&member) {
                    return true;
                }
                // A chunk that the line has left may still be the one on record, and take its place back in a cut.
                if line.members_gone.len() as u32 == line.members_offline && self.beneath.explains_offline() {
                    line.members_offline += 1;
                }
                if (line.members_gone.len() as u32) < line.members_offline {
                    self.tally.members_gone += 1;
                    return line.members_gone.insert(member);
                }
                let explained = self.beneath.explains_unreadable();
                line.sectors[*sector as usize].unreadable |= explained;
                explained
            }
            MediaError::Io { operation: "read", .. } => self.beneath.read_errors() > ticket.read_errors,
            // The line was closed meanwhile, before its end.
            MediaError::Rule { .. } if breaks_lines => {
                let promised_end = line.promised_end(at_stake);
                let promised = |at: u32| at < promised_end && line.sectors[at as usize].is_owed();
                !addressed.into_iter().all(promised)
            }
            _ => false,
        }
    }

    fn check(&mut self, chunk: ChunkId, sector: u32, bytes: &[u8], complete: bool) {
        let found = Tag::decode(bytes);
        let life = self.chunk(chunk).life;
        let limbo = matches!(self.chunk(chunk).phase, Phase::Limbo(_));
        let loose = self.chunk(chunk).loose;
        let known = self.chunk(chunk).sectors[sector as usize];
        let passes = found
            .filter(|tag| (tag.chunk, tag.sector, tag.life) == (chunk, sector, life))
            .map(|tag| tag.number);
        match passes {
            // Nobody was ever told that it is there.
            Some(_) if loose && known.number.is_none() => {}
            Some(number) => {
                assert_eq!(
                    Some(number),
                    known.number,
                    "sector {sector} of {chunk:?}: wrong data pass for right ({known:?})"
                );
                self.chunk(chunk).sectors[sector as usize].undefined &= !complete || limbo;
            }
            None if known.harmed => self.tally.detected += 1,
            None => {
                let owed = complete && !known.undefined && known.number.is_some();
                assert!(
                    !owed,
                    "sector {sector} of {chunk:?}, life {life}, is lost: {known:?}, found {found:?}, bytes {:02x?}",
                    &bytes[..24]
                );
            }
        }
    }

    /// Returns the moment up to which the flush covers.
    pub(crate) fn flush_submitted(&mut self) -> u64 {
        self.barriers_in_flight += 1;
        self.now
    }

    pub(crate) fn flush_completed(
        &mut self,
        mark: u64,
        result: &Result<(), MediaError>,
        struck: &[Injected],
    ) {
        self.tick();
        self.barrier_ended();
        let covers = |at: Option<u64>| at.is_some_and(|at| at <= mark);
        if let Err(error) = result {
            if self.promises.volume.is_some() {
                // If it was the device's flush that failed, that doomed everything when it struck.
                assert!(self.beneath.explains(error), "a flush failed without a fault: {error}");
                return;
            }
            let failed = struck.iter().any(|injected| injected.fault == Fault::FailedFlush);
            assert!(failed, "a flush failed without a fault: {error}");
            for chunk in &mut self.chunks {
                for sector in &mut chunk.sectors {
                    sector.doomed |= covers(sector.completed_at) && !sector.covered;
                }
                for reset in std::iter::once(&mut chunk.reset).chain(&mut chunk.reset_before) {
                    reset.doomed |= covers(reset.at) && !reset.covered;
                }
                chunk.close_doomed |= covers(chunk.closed_at) && !chunk.close_covered;
            }
            return;
        }
        // A flush that failed is never success later.
        assert!(
            self.flush_failed_at.is_none_or(|failed_at| mark <= failed_at),
            "a flush succeeded after one failed"
        );
        for chunk in &mut self.chunks {
            for sector in &mut chunk.sectors {
                sector.covered |= covers(sector.completed_at) && !sector.doomed;
            }
            for reset in std::iter::once(&mut chunk.reset).chain(&mut chunk.reset_before) {
                reset.covered |= covers(reset.at) && !reset.doomed;
            }
            chunk.close_covered |= covers(chunk.closed_at) && !chunk.close_doomed;
        }
    }

    pub(crate) fn reset_submitted(&mut self, chunk: ChunkId) {
        self.barriers_in_flight += 1;
        let state = self.chunk(chunk);
        state.resetting = true;
        state.life += 1;
        let last = std::mem::take(&mut state.reset);
        state.reset_before = state.is(ChunkState::Free).then_some(last);
        state.survived = 0;
        state.loose = false;
        state.broken = false;
        state.reopened = false;
        state.reopen();
        for sector in &mut state.sectors {
            sector.clear();
        }
    }

    pub(crate) fn reset_completed(&mut self, chunk: ChunkId, result: &Result<(), MediaError>) {
        let now = self.tick();
        let durably = self.promises.volume.is_some();
        self.barrier_ended();
        let state = self.chunk(chunk);
        state.resetting = false;
        match result {
            Ok(()) => {
                state.phase = Phase::Known(ChunkState::Free);
                state.pointer = 0;
                state.reset.at = Some(now);
                state.reset.covered |= durably;
                state.reset_before = None;
                state.failed_at = None;
                state.members_offline = 0;
                state.members_gone.clear();
                for sector in &mut state.sectors {
                    sector.unreadable = false;
                }
            }
            Err(error @ MediaError::Io { .. }) if durably => {
                // Some members were reset and some were not, or not durably.
                state.phase = Phase::Limbo(ChunkState::Closed);
                state.pointer = 0;
                assert!(self.beneath.explains(error), "a reset of {chunk:?} failed without a fault: {error}");
            }
            Err(error) => {
                if !self.promises.tells_faults {
                    // The host gave the content up already.
                    self.chunk(chunk).phase = Phase::Known(ChunkState::Offline);
                }
                self.excuse(chunk, error);
            }
        }
    }

    pub(crate) fn finish_submitted(&mut self, chunk: ChunkId) {
        self.chunk(chunk).finishing = true;
    }

    pub(crate) fn finish_completed(&mut self, chunk: ChunkId, result: &Result<(), MediaError>) {
        let now = self.tick();
        let state = self.chunk(chunk);
        state.finishing = false;
        match result {
            Ok(()) => {
                state.phase = Phase::Known(ChunkState::Closed);
                state.closed_at = Some(now);
            }
            // Where a chunk is finished by padding it.
            Err(MediaError::WriteFailed { chunk: named, sector: end })
            | Err(MediaError::ClosedEarly { chunk: named, write_pointer: end }) => {
                assert_eq!(*named, chunk);
                self.chunk_failed(chunk, *end);
            }
            Err(error @ MediaError::Io { .. }) if self.promises.volume.is_some() => {
                self.operation_failed(chunk, error);
            }
            Err(error) => self.excuse(chunk, error),
        }
    }

    /// What struck chunks as a whole: known before the operation at hand is judged.
    pub(crate) fn chunks_struck(&mut self, struck: &[Injected]) {
        for injected in struck {
            *self.tally.faults.entry(injected.fault).or_default() += 1;
            self.power_was_cut |= injected.fault == Fault::PowerCut;
            if self.promises.volume.is_some() {
                self.struck_beneath(injected.fault);
                continue;
            }
            if !self.promises.tells_faults {
                continue;
            }
            let chunk = &mut self.chunks[injected.chunk.0 as usize];
            match (injected.fault, injected.sectors) {
                (Fault::Offline | Fault::FailedReset, _) => chunk.phase = Phase::Known(ChunkState::Offline),
                (Fault::FailedProgram | Fault::EarlyClose, Some((sector, _))) => {
                    chunk.failed_at = Some(sector)
                }
                (Fault::LatentReadError, Some((sector, _))) => {
                    chunk.sectors[sector as usize].unreadable = true;
                }
                _ => {}
            }
        }
    }

    fn struck_beneath(&mut self, fault: Fault) {
        self.beneath.strikes(fault);
        if fault == Fault::FailedFlush {
            self.flush_failed_at.get_or_insert(self.now);
            // Of a write in flight the device may have had a part.
            for chunk in &mut self.chunks {
                for sector in &mut chunk.sectors {
                    sector.doomed |= sector.number.is_some() && !sector.covered;
                }
                chunk.reset.doomed |= !chunk.reset.covered;
                chunk.close_doomed |= !chunk.close_covered;
            }
        }
    }

    /// What struck content: known after the operation at hand was judged, which may be the one that wrote it.
    pub(crate) fn sectors_struck(&mut self, struck: &[Injected]) {
        for injected in struck {
            let Some((first, count)) = injected.sectors else { continue };
            if matches!(
                injected.fault,
                Fault::LostWrite | Fault::MisdirectedWrite | Fault::CorruptedWrite | Fault::Overwritten
            ) {
                let chunk = &mut self.chunks[injected.chunk.0 as usize];
                for sector in &mut chunk.sectors[first as usize..(first + count) as usize] {
                    sector.harmed = true;
                }
            }
        }
    }

    pub(crate) fn noticed(&mut self, notices: &[Notice]) {
        for notice in notices {
            if notice.kind == NoticeKind::Offline && self.promises.volume.is_some() {
                self.member_is_offline(notice.chunk);
            } else if notice.kind == NoticeKind::Offline && self.promises.tells_faults {
                let chunk = self.chunk(notice.chunk);
                assert!(chunk.is_offline() && !chunk.offline_noticed, "said to be offline: {notice:?}");
                chunk.offline_noticed = true;
            }
        }
        if !self.promises.tells_faults || self.promises.volume.is_some() {
            return;
        }
        let silent = self.chunks_where(|chunk| chunk.is_offline() && !chunk.offline_noticed);
        assert!(silent.is_empty(), "offline without a notice: {silent:?}");
    }

    /// The device lost a chunk of a line, with what that held. A line may say so for one that it is leaving as well, or
    /// twice: that excuses nothing.
    fn member_is_offline(&mut self, line: ChunkId) {
        let line = &mut self.chunks[line.0 as usize];
        // A part of it that died in its reset is replaced by that or by the next.
        let given_up = line.resetting || matches!(line.phase, Phase::Limbo(_));
        line.members_offline += u32::from(!given_up && self.beneath.explains_offline());
    }

    /// The report of a running medium.
    pub(crate) fn reported(&mut self, report: &[ChunkInfo]) {
        for info in report {
            let chunk_sectors = self.geometry.chunk_sectors;
            let tells_faults = self.promises.tells_faults;
            let pads = self.promises.pads;
            let breaks_lines = self.beneath.breaks_lines();
            let chunk = self.chunk(info.id);
            let Phase::Known(state) = chunk.phase else { continue };
            if chunk.busy() || chunk.writes_in_flight > 0 && breaks_lines {
                continue;
            }
            let differs = info.state != state || info.write_pointer != chunk.pointer;
            if chunk.broken || breaks_lines && differs {
                self.line_broke(info);
                continue;
            }
            if chunk.writes_in_flight > 0 && !tells_faults {
                // The device may know of a failure that the host was not told of yet.
                continue;
            }
            assert_eq!(info.state, state, "{info:?} against {chunk:?}");
            let padded = pads && chunk.closed_at.is_some() && info.write_pointer == chunk_sectors;
            assert!(
                state == ChunkState::Offline || padded || info.write_pointer == chunk.pointer,
                "{info:?}: the write pointer should be {}",
                chunk.pointer
            );
        }
    }

    /// The report of a line that broke: closed where it is whole, or not closed yet.
    fn line_broke(&mut self, info: &ChunkInfo) {
        let at_stake = self.at_stake();
        let line = self.chunk(info.id);
        line.broken = true;
        if info.state == ChunkState::Open {
            return;
        }
        assert_eq!(info.state, ChunkState::Closed, "{info:?}");
        let lost = line.promised(at_stake).find(|sector| *sector >= info.write_pointer);
        assert_eq!(lost, None, "a durable sector is lost: {info:?}, {line:?}");
        if line.members_offline == 0 {
            assert!(info.write_pointer <= line.pointer, "never written: {info:?}, {line:?}");
        }
        line.covered_before = line.covered_end();
        for sector in &mut line.sectors[info.write_pointer as usize..] {
            sector.clear();
        }
        line.phase = Phase::Known(ChunkState::Closed);
        line.pointer = info.write_pointer;
        line.broken = false;
    }

    /// Power came back, and the medium reports this.
    pub(crate) fn power_returned(&mut self, report: &[ChunkInfo]) {
        self.tally.cuts += 1;
        self.opened(report, true);
    }

    /// The host came back, while the medium had power; unless power went before it was open again.
    pub(crate) fn restarted(&mut self, report: &[ChunkInfo]) {
        self.tally.restarts += 1;
        self.opened(report, self.power_was_cut);
    }

    /// Whether a fault is why nothing can be done.
    pub(crate) fn power_was_cut(&self) -> bool {
        self.power_was_cut
    }

    fn opened(&mut self, report: &[ChunkInfo], power_lost: bool) {
        assert_eq!(report.len(), self.chunks.len());
        let cut_short = std::mem::take(&mut self.power_was_cut);
        let open = report.iter().filter(|info| info.state == ChunkState::Open).count() as u32;
        let volatile = match self.promises.volume {
            _ if power_lost => Volatile::Nothing,
            None => Volatile::Everything,
            Some(_) if self.beneath.moves_lines() => Volatile::Nothing,
            Some(volume) => Volatile::WholeUnits(volume.unit_sectors),
        };
        let limit_reached = self.geometry.max_open != 0 && open >= self.geometry.max_open;
        let opening = Opening { power_lost, volatile, cut_short, limit_reached };
        for (index, info) in report.iter().enumerate() {
            assert_eq!(info.id, ChunkId(index as u32));
            if self.chunks[index].is_offline() {
                assert_eq!(info.state, ChunkState::Offline, "{info:?}");
                continue;
            }
            if info.state == ChunkState::Offline {
                // A reset that was under way may have failed.
                let given_up = !self.promises.tells_faults && self.chunks[index].resetting;
                assert!(given_up, "offline without a fault: {info:?}");
                self.chunks[index].phase = Phase::Known(ChunkState::Offline);
                continue;
            }
            if self.promises.tracks_pointers {
                self.opened_with_pointer(info, opening);
            } else {
                self.opened_without_pointer(info, power_lost);
            }
            let now = self.tick();
            // A volume flushes first, and what a cut left is on the medium.
            let covers = power_lost || self.promises.volume.is_some();
            let chunk = &mut self.chunks[index];
            chunk.writes_in_flight = 0;
            chunk.resetting = false;
            chunk.reset_before = None;
            chunk.finishing = false;
            chunk.broken = false;
            let limbo = matches!(chunk.phase, Phase::Limbo(_));
            for sector in chunk.sectors.iter_mut().filter(|sector| sector.number.is_some()) {
                sector.completed_at.get_or_insert(now);
                // The cache in which it was doomed is gone.
                sector.doomed &= !power_lost;
                sector.covered |= covers && !sector.doomed && !limbo;
            }
        }
        self.barriers_in_flight = 0;
        self.flush_failed_at = None;
        self.beneath.opened(power_lost);
    }

    /// A conventional device knows nothing: everything can be read, and what was not promised may be anything.
    fn opened_without_pointer(&mut self, info: &ChunkInfo, power_lost: bool) {
        let chunk_sectors = self.geometry.chunk_sectors;
        assert_eq!((info.state, info.write_pointer), (ChunkState::Closed, chunk_sectors));
        let mut lost = 0;
        let chunk = self.chunk(info.id);
        chunk.phase = Phase::Known(ChunkState::Closed);
        chunk.pointer = chunk_sectors;
        for sector in &mut chunk.sectors {
            let kept = sector.covered || !power_lost && sector.completed_at.is_some();
            lost += u64::from(!kept && sector.completed_at.is_some());
            sector.undefined |= !kept;
        }
        self.tally.volatile_lost += lost;
    }

    /// A device that tracks write pointers: below them is what was written.
    fn opened_with_pointer(&mut self, info: &ChunkInfo, opening: Opening) {
        let Opening { power_lost, volatile, cut_short, limit_reached } = opening;
        let keeps_volatile = volatile == Volatile::Everything;
        let flush_failed = self.beneath.flush_failed_since_power();
        let tore = self.beneath.tore();
        let breaks_lines = self.beneath.breaks_lines();
        let at_stake = self.at_stake();
        let geometry = self.geometry;
        let now = self.tick();
        let ChunkInfo { id, state, write_pointer: pointer, .. } = *info;
        assert!(pointer <= geometry.chunk_sectors && pointer.is_multiple_of(geometry.ws_min), "{info:?}");
        match state {
            ChunkState::Free => assert_eq!(pointer, 0, "{info:?}"),
            ChunkState::Open => assert!(pointer < geometry.chunk_sectors, "{info:?}"),
            ChunkState::Closed | ChunkState::Offline => {}
        }
        let Promises { pads, tells_faults, volume, .. } = self.promises;
        let chunk = &mut self.chunks[id.0 as usize];
        let certain = chunk.reset.covered
            || keeps_volatile && chunk.reset.at.is_some()
            || chunk.promised(at_stake).next().is_some();
        if !certain {
            if state == ChunkState::Free {
                // The reset happened.
                chunk.reset.at = Some(now);
                chunk.reset.covered = power_lost;
                // Or it is free by the one before: then no flush makes that durable, if one failed to.
                chunk.reset.doomed |= chunk.reset_before.is_some_and(|reset| reset.doomed && !reset.covered);
                chunk.failed_at = None;
                chunk.reopen();
                chunk.phase = Phase::Known(state);
                chunk.pointer = 0;
                for sector in &mut chunk.sectors {
                    sector.clear();
                    sector.unreadable &= !power_lost;
                }
                return;
            }
            self.tally.resets_lost += u64::from(chunk.reset.at.take().is_some());
            chunk.reopen();
            chunk.phase = Phase::Limbo(state);
            chunk.pointer = pointer;
            for sector in &mut chunk.sectors {
                sector.undefined = true;
                sector.covered = false;
            }
            return;
        }
        if power_lost && volume.is_some() {
            chunk.forget_above_doomed();
        }
        let promised = chunk.promised(at_stake).last().map_or(0, |last| last + 1);
        let kept = match volatile {
            Volatile::Nothing => promised,
            Volatile::Everything => promised.max(chunk.completed_end()),
            Volatile::WholeUnits(_) if chunk.reopened => promised,
            Volatile::WholeUnits(unit) => promised.max(chunk.completed_prefix() / unit * unit),
        };
        let kept = chunk.failed_at.map_or(kept, |failed_at| kept.min(failed_at));
        assert!(pointer >= kept, "sectors up to {kept} are lost: {opening:?}, {info:?}, {chunk:?}");
        let by_host = chunk.closed_at.is_some() || chunk.finishing;
        // A member that is offline says nothing of where it ended.
        // The volume may have closed it where nobody was told: to show what its device hides, or in an opening that was
        // cut short.
        let by_volume = volume.is_some() && (chunk.reopened || cut_short);
        let padded = pads && (by_host || by_volume);
        if volume.is_some() && !padded && pointer > chunk.pointer && chunk.members_offline == 0 {
            // It went when it had been reset, and another had not.
            chunk.members_offline += u32::from(self.beneath.explains_offline());
        }
        // Of a line that broke the device may have more than is whole.
        let longer = padded || breaks_lines || chunk.members_offline > 0 || flush_failed && power_lost;
        assert!(longer || pointer <= chunk.pointer, "never written up to {pointer}: {info:?}, {chunk:?}");
        chunk.loose |= volume.is_some() && pointer > chunk.pointer;
        let by_device = match volume {
            None => chunk.failed_at.is_some() || !tells_faults,
            // Its members may be uneven; or one has lost what it hid.
            Some(volume) => {
                let whole = chunk.is_settled() && chunk.members_offline == 0;
                volume.device_hides || limit_reached || !whole || breaks_lines || flush_failed
            }
        };
        if state == ChunkState::Closed && pointer < geometry.chunk_sectors {
            assert!(by_host || by_device, "closed by nobody: {info:?}, {chunk:?}");
        }
        if chunk.close_covered || keeps_volatile && chunk.closed_at.is_some() {
            assert_eq!(state, ChunkState::Closed, "no longer closed: {info:?}, {chunk:?}");
        }
        let covered_end = chunk.covered_end();
        // Then padding may stand where something was, if that was not promised.
        let padded_from = if pads && by_volume { promised } else { geometry.chunk_sectors };
        for (at, sector) in (0..).zip(&mut chunk.sectors) {
            let completed = sector.completed_at.is_some();
            if at >= pointer {
                self.tally.hidden_lost += u64::from(sector.covered);
                self.tally.volatile_lost += u64::from(completed && !sector.covered);
                sector.clear();
                // Of a line that is not empty, members may have more than is shown.
                sector.unreadable &= !(power_lost && (volume.is_none() || state == ChunkState::Free));
            } else if volume.is_some() {
                // Of a write in flight anything may be there.
                let unsure = !completed || sector.straddled || sector.doomed || tore;
                sector.undefined |= !sector.covered && unsure || at >= padded_from;
            } else if keeps_volatile {
                sector.undefined |= !completed;
            } else {
                // A durable write above it moved the write pointer over it.
                sector.undefined |= !sector.covered && at < covered_end;
            }
        }
        chunk.phase = Phase::Known(state);
        chunk.pointer = pointer;
        chunk.reset.at.get_or_insert(now);
        if state == ChunkState::Closed {
            if pointer < geometry.chunk_sectors {
                chunk.closed_at.get_or_insert(now);
            }
        } else {
            chunk.reopen();
            chunk.failed_at = None;
        }
        chunk.reopened |= state == ChunkState::Open && volume.is_some_and(|volume| volume.device_hides);
        if power_lost {
            // What a cut left is on the medium.
            chunk.reset.covered = true;
            chunk.survived = pointer;
            // A volume closed it anew, and will do so again.
            chunk.close_covered |= state == ChunkState::Closed && volume.is_none();
        }
    }

    /// However often it was tried, the sector could not be read.
    pub(crate) fn gave_up(&mut self, chunk: ChunkId, sector: u32) {
        let known = self.chunk(chunk).sectors[sector as usize];
        let limbo = matches!(self.chunk(chunk).phase, Phase::Limbo(_));
        let gone = self
            .promises
            .volume
            .is_some_and(|volume| self.chunk(chunk).members_gone.contains(&volume.member_of(sector)));
        assert!(known.unreadable || limbo || gone, "sector {sector} of {chunk:?} cannot be read: {known:?}");
        self.tally.detected += 1;
    }

    /// A durable sector that must be right, for the tally.
    pub(crate) fn is_owed(&self, chunk: ChunkId, sector: u32) -> bool {
        self.chunks[chunk.0 as usize].sectors[sector as usize].is_owed()
    }
}

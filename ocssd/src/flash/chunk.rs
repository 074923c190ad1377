//! One chunk as its device keeps it: state, pointers, what it was told to break.
//!
//! ```text
//! 0        durable     completed - mw_cunits   completed   landed   write pointer      end
//! |===========|==================|=================|==========|===========|.............|
//!  survives     readable           hidden while      the storage holds it   accepted      not written
//!  a power cut                     the chunk is open
//! ```
//!
//! Invariants:
//! - `durable <= landed <= write_pointer` and `completed <= landed`; all are multiples of `ws_min`.
//! - The write pointer moves when a write is accepted, so that the next may follow before it completed.
//! - A chunk that stopped takes no write before its next reset; its write pointer is where it stopped.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::status::{Refusal, Rule};
use crate::geometry::Geometry;
use crate::media::{ChunkState, NoticeKind};

/// Why a chunk takes no more writes before it is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// A write unit could not be programmed.
    WriteFailed,
    /// The device closed it.
    ClosedEarly,
}

/// A write that was accepted.
#[derive(Debug)]
pub(super) struct InFlight {
    id: u64,
    start: u32,
    /// The storage has it.
    landed: bool,
    /// The host was told.
    completed: bool,
}

/// What tests told the chunk to do next.
#[derive(Debug, Default)]
pub(super) struct Armed {
    pub(super) write: bool,
    pub(super) early_close: bool,
    pub(super) reset: bool,
}

#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) state: ChunkState,
    pub(super) write_pointer: u32,
    pub(super) durable: u32,
    pub(super) stop: Option<Stop>,
    pub(super) erases: u32,
    /// Erases it stands; `None`: any number.
    pub(super) erases_max: Option<u32>,
    /// Pages read since the last erase, or since the device was opened.
    pub(super) page_reads: u64,
    pub(super) resetting: bool,
    writes: VecDeque<InFlight>,
    /// Transfers to the storage under way, of the present life of the device and of earlier ones.
    pub(super) transfers: u32,
    pub(super) stale_transfers: u32,
    pub(super) armed: Armed,
    /// The most urgent level of ECC that was told of, since the last erase.
    pub(super) told_ecc: Option<NoticeKind>,
    pub(super) told_worn: bool,
    pub(super) unreadable: BTreeSet<u32>,
    /// Bits that are flipped in what reads return, by sector and byte.
    pub(super) flipped: BTreeMap<(u32, u32), u8>,
}

impl Chunk {
    pub(super) fn new(state: ChunkState, write_pointer: u32, erases: u32, erases_max: Option<u32>) -> Self {
        Self {
            state,
            write_pointer,
            durable: write_pointer,
            stop: None,
            erases,
            erases_max,
            page_reads: 0,
            resetting: false,
            writes: VecDeque::new(),
            transfers: 0,
            stale_transfers: 0,
            armed: Armed::default(),
            told_ecc: None,
            told_worn: false,
            unreadable: BTreeSet::new(),
            flipped: BTreeMap::new(),
        }
    }

    /// First sector that is not known to the host as written.
    pub(super) fn completed(&self) -> u32 {
        self.first_without(|write| write.completed)
    }

    /// End of the last write that the host knows of, though one below it may be in flight.
    fn completed_end(&self) -> u32 {
        match self.writes.iter().rposition(|write| write.completed) {
            Some(last) => self.writes.get(last + 1).map_or(self.write_pointer, |next| next.start),
            None => self.completed(),
        }
    }

    /// First sector that the storage may not have.
    pub(super) fn landed(&self) -> u32 {
        self.first_without(|write| write.landed)
    }

    fn first_without(&self, done: impl Fn(&InFlight) -> bool) -> u32 {
        self.writes.iter().find(|write| !done(write)).map_or(self.write_pointer, |write| write.start)
    }

    /// Whether the device has nothing left to hold back: the chunk is closed, and all of it completed.
    fn is_settled(&self) -> bool {
        self.state == ChunkState::Closed && self.writes.iter().all(|write| write.completed)
    }

    /// First sector that cannot be read, with so many hidden below the write pointer of an open chunk.
    pub(super) fn readable(&self, mw_cunits: u32) -> u32 {
        match self.is_settled() {
            true => self.write_pointer,
            false => self.completed().saturating_sub(mw_cunits),
        }
    }

    /// First sector that a flush which is submitted now need not make durable.
    pub(super) fn flushable(&self, geometry: &Geometry, protected: bool) -> u32 {
        self.completed_end().saturating_sub(self.held(geometry, protected))
    }

    /// Sectors below the end of what is written that stay in the buffer, which a power cut takes. Nothing comes behind
    /// those of a closed chunk, so it holds none back, even while the host waits for an answer.
    fn held(&self, geometry: &Geometry, protected: bool) -> u32 {
        if protected || self.state == ChunkState::Closed { 0 } else { geometry.mw_cunits }
    }

    /// Whether any write or transfer of it, or its reset, is under way.
    pub(super) fn check_idle(&self) -> Result<(), Rule> {
        if self.resetting {
            return Err(Rule::RESETTING);
        }
        if self.stale_transfers > 0 || !self.writes.is_empty() {
            return Err(Rule::WRITE_IN_FLIGHT);
        }
        Ok(())
    }

    /// The rules of a write of `sectors` at `sector`, or wherever the write pointer is. Returns where that is. How many
    /// chunks may be open is not the chunk's to say.
    pub(super) fn check_write(
        &self,
        geometry: &Geometry,
        sector: Option<u32>,
        sectors: u32,
    ) -> Result<u32, Refusal> {
        if self.state == ChunkState::Offline {
            return Err(Refusal::Offline);
        }
        if !sectors.is_multiple_of(geometry.ws_min) {
            return Err(Rule::NOT_WHOLE_UNITS.into());
        }
        if self.resetting {
            return Err(Rule::RESETTING.into());
        }
        if self.stale_transfers > 0 {
            return Err(Rule::WRITE_IN_FLIGHT.into());
        }
        let pointer = self.write_pointer;
        let at = sector.unwrap_or(pointer);
        // Writes that the host sent before it knew meet the end of the first one that failed.
        if at >= pointer
            && let Some(stop) = self.stop
        {
            return Err(stop.refusal(pointer));
        }
        if self.state == ChunkState::Closed {
            return Err(Rule::CLOSED.into());
        }
        if at != pointer {
            return Err(Rule::NOT_AT_POINTER.into());
        }
        if sectors > geometry.chunk_sectors - pointer {
            return Err(Rule::WRITE_BEYOND_END.into());
        }
        Ok(pointer)
    }

    /// The rules of a read.
    pub(super) fn check_read(&self, geometry: &Geometry, sector: u32, sectors: u32) -> Result<(), Refusal> {
        if self.state == ChunkState::Offline {
            return Err(Refusal::Offline);
        }
        if self.resetting {
            return Err(Rule::RESETTING.into());
        }
        let Some(end) = sector.checked_add(sectors).filter(|end| *end <= geometry.chunk_sectors) else {
            return Err(Rule::READ_BEYOND_END.into());
        };
        if end > self.write_pointer {
            return Err(Rule::BEYOND_POINTER.into());
        }
        if end > self.readable(geometry.mw_cunits) {
            return Err(Rule::HIDDEN.into());
        }
        Ok(())
    }

    /// Takes a write from the write pointer to `end`, which [`Self::check_write`] allowed.
    pub(super) fn accept(&mut self, geometry: &Geometry, id: u64, end: u32) {
        assert!(end > self.write_pointer && end <= geometry.chunk_sectors && self.stop.is_none());
        let start = self.write_pointer;
        self.writes.push_back(InFlight { id, start, landed: false, completed: false });
        self.write_pointer = end;
        let full = end == geometry.chunk_sectors;
        self.state = if full { ChunkState::Closed } else { ChunkState::Open };
    }

    /// If it is open, it takes no more writes.
    pub(super) fn close(&mut self) {
        if self.state == ChunkState::Open {
            self.state = ChunkState::Closed;
        }
    }

    /// The chunk takes no more writes, and ends at its write pointer.
    pub(super) fn stop(&mut self, stop: Stop) {
        self.state = ChunkState::Closed;
        self.stop = Some(stop);
    }

    /// The storage has the write.
    pub(super) fn land(&mut self, id: u64) {
        self.writes.iter_mut().filter(|write| write.id == id).for_each(|write| write.landed = true);
    }

    /// The host is told of the write. False: it was cut off, since one before it failed.
    pub(super) fn complete(&mut self, id: u64) -> bool {
        let Some(write) = self.writes.iter_mut().find(|write| write.id == id) else {
            return false;
        };
        write.completed = true;
        while self.writes.front().is_some_and(|write| write.completed) {
            self.writes.pop_front();
        }
        true
    }

    /// A durable write up to `end` completed: it is on the flash with all that is below it, since pages are programmed
    /// in order.
    pub(super) fn make_durable(&mut self, geometry: &Geometry, protected: bool, end: u32) {
        let reach = self.completed().max(end);
        let programmed = end.min(reach.saturating_sub(self.held(geometry, protected))).min(self.landed());
        self.durable = self.durable.max(programmed);
    }

    /// The storage failed a write in flight: the chunk ends before it. True: with it went one that the host was told of.
    pub(super) fn fail_from(&mut self, id: u64) -> bool {
        let Some(at) = self.writes.iter().position(|write| write.id == id) else {
            return false;
        };
        let told = self.writes.range(at..).any(|write| write.completed);
        self.write_pointer = self.writes[at].start;
        self.writes.truncate(at);
        self.durable = self.durable.min(self.write_pointer);
        self.stop(Stop::WriteFailed);
        told
    }

    /// Erased: whatever it was before.
    pub(super) fn erase(&mut self) {
        self.state = ChunkState::Free;
        self.write_pointer = 0;
        self.durable = 0;
        self.stop = None;
        self.erases += 1;
        self.page_reads = 0;
        self.told_ecc = None;
        self.unreadable.clear();
        self.flipped.clear();
    }

    /// Lost to the host.
    pub(super) fn take_offline(&mut self) {
        self.state = ChunkState::Offline;
        self.write_pointer = 0;
        self.durable = 0;
        self.stop = None;
        self.writes.clear();
    }

    /// The host is gone, or the power: the chunk ends at `end`, which the storage has and which is on the flash now.
    pub(super) fn settle_at(&mut self, geometry: &Geometry, end: u32) {
        assert!(
            end >= self.durable && end <= self.landed(),
            "what was durable stays, what never came does not"
        );
        self.writes.clear();
        self.write_pointer = end;
        self.state = match (end, self.stop) {
            (_, Some(_)) => ChunkState::Closed,
            (0, None) => ChunkState::Free,
            (end, None) if end == geometry.chunk_sectors => ChunkState::Closed,
            (_, None) => ChunkState::Open,
        };
    }

    /// Transfers under way belong to an earlier life from now on, and what was armed is forgotten.
    pub(super) fn begin_life(&mut self) {
        self.stale_transfers += std::mem::take(&mut self.transfers);
        self.armed = Armed::default();
        self.resetting = false;
    }
}

impl Stop {
    /// How a write is answered that comes after it, or that met it.
    pub(super) fn refusal(self, write_pointer: u32) -> Refusal {
        match self {
            Self::WriteFailed => Refusal::WriteFailed { sector: write_pointer },
            Self::ClosedEarly => Refusal::ClosedEarly { write_pointer },
        }
    }
}

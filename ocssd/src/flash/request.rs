//! Requests: how each is submitted, and how it completes.
//!
//! Submitting checks the rules, takes the write pointer forward, draws the chances and fixes how long it takes; completing
//! makes the effect visible to the host. A ticket connects the two.
//!
//! Invariants:
//! - A request that breaks a rule changes nothing and draws no chance.
//! - A ticket of an earlier life of the device has no effect.
//! - What is counted as programmed is counted where data is stored, apart from what is counted as received.

use std::io;
use std::ops::Range;
use std::time::Duration;

use rand::RngExt;

use super::chunk::{Chunk, Stop};
use super::controller::{Controller, Share, Storage};
use super::notification::NotificationScope;
use super::status::{Refusal, Rule};
use super::wear;
use crate::geometry::ChunkId;
use crate::media::{ChunkState, NoticeKind};

/// Where a write comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Host,
    Padding,
}

/// A write before it is submitted.
#[derive(Debug, Clone, Copy)]
pub(super) struct WriteRequest<'a> {
    pub(super) chunk: u32,
    /// `None`: wherever the write pointer is.
    pub(super) sector: Option<u32>,
    pub(super) durable: bool,
    pub(super) origin: Origin,
    pub(super) share: Option<&'a Share>,
}

/// How long a request takes after it was submitted.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wait {
    pub(super) yields: u32,
    pub(super) until: Option<Duration>,
}

/// A submitted write.
#[derive(Debug)]
pub(super) struct WriteTicket {
    pub(super) life: u64,
    pub(super) chunk: u32,
    pub(super) start: u32,
    /// End of what was accepted; `start`: nothing was.
    pub(super) end: u32,
    pub(super) durable: bool,
    pub(super) wait: Wait,
    id: u64,
    /// How the write ends, if not well.
    stop: Option<Stop>,
}

/// A submitted read.
#[derive(Debug)]
pub(super) struct ReadTicket {
    pub(super) life: u64,
    pub(super) chunk: u32,
    pub(super) sector: u32,
    pub(super) sectors: u32,
    pub(super) wait: Wait,
    /// Read with much correction.
    pub(super) high_ecc: bool,
}

/// A submitted reset.
#[derive(Debug)]
pub(super) struct ResetTicket {
    pub(super) life: u64,
    pub(super) chunk: u32,
    pub(super) wait: Wait,
}

/// A submitted flush.
#[derive(Debug)]
pub(super) struct FlushTicket {
    pub(super) life: u64,
    pub(super) wait: Wait,
    /// Chunk, its erases, and what of it becomes durable.
    marks: Vec<(u32, u32, u32)>,
}

impl Controller {
    /// Counts a request that broke no rule. `Ok(true)`: the power goes in the middle of it, so the caller leaves its
    /// traces and then calls [`Self::cut`]. An error: it went before.
    fn count(&mut self) -> Result<bool, Refusal> {
        self.operations += 1;
        if self.cut_at != Some(self.operations) {
            return Ok(false);
        }
        if self.rng.random_bool(0.5) {
            return Ok(true);
        }
        self.cut();
        Err(Refusal::PowerLost)
    }

    fn wait(&mut self, until: Option<Duration>) -> Wait {
        let yields = match self.options.yields_max {
            0 => 0,
            max => self.rng.random_range(0..=max),
        };
        Wait { yields, until }
    }

    fn chunk(&self, index: u32) -> Result<&Chunk, Refusal> {
        self.chunks.get(index as usize).ok_or(Refusal::Rule(Rule::NO_SUCH_CHUNK))
    }

    fn whole_sectors(&self, bytes: usize) -> Result<u32, Refusal> {
        let sector_bytes = self.options.geometry.sector_bytes as usize;
        if bytes == 0 || !bytes.is_multiple_of(sector_bytes) {
            return Err(Rule::NOT_WHOLE_SECTORS.into());
        }
        u32::try_from(bytes / sector_bytes).map_err(|_| Rule::NOT_WHOLE_SECTORS.into())
    }

    /// Whether one more chunk may be opened.
    fn check_open(&self, index: u32, share: Option<&Share>) -> Result<(), Rule> {
        let geometry = &self.options.geometry;
        let open = |units: Range<u32>| -> u32 {
            self.open_in_unit[units.start as usize..units.end as usize].iter().sum()
        };
        let unit = geometry.unit_of(ChunkId(index));
        let full = |limit: u32, units: Range<u32>| limit != 0 && open(units) >= limit;
        if full(geometry.max_open, 0..geometry.unit_count()) {
            return Err(Rule::TOO_MANY_OPEN);
        }
        if full(self.options.max_open_per_unit, unit..unit + 1) {
            return Err(Rule::TOO_MANY_OPEN_IN_UNIT);
        }
        match share {
            Some(share) if full(share.max_open, share.units.clone()) => Err(Rule::TOO_MANY_OPEN_IN_SLICE),
            _ => Ok(()),
        }
    }

    /// Pages that so many sectors from `sector` on touch.
    fn pages(&self, sector: u32, sectors: u32) -> u32 {
        let page = self.options.page_sectors();
        (sector + sectors).div_ceil(page) - sector / page
    }

    pub(super) fn submit_write(
        &mut self,
        life: u64,
        request: &WriteRequest<'_>,
        data: &[u8],
        now: Duration,
    ) -> Result<WriteTicket, Refusal> {
        self.check_life(life)?;
        let geometry = self.options.geometry;
        let index = request.chunk;
        let chunk = self.chunk(index)?;
        let sectors = self.whole_sectors(data.len())?;
        let start = chunk.check_write(&geometry, request.sector, sectors)?;
        if chunk.state == ChunkState::Free {
            self.check_open(index, request.share)?;
        }
        let cut = self.count()?;
        let (accepted, stop) = self.fate_of_write(index, sectors);
        let (end, id) = (start + accepted, self.operations);
        if accepted > 0 {
            self.change(index, |chunk, geometry| chunk.accept(geometry, id, end));
            let bytes = u64::from(accepted) * u64::from(geometry.sector_bytes);
            self.counters.received_bytes += bytes;
            if request.origin == Origin::Padding {
                self.counters.padding_bytes += bytes;
            }
            self.dirty.insert(index);
            match self.storage {
                Storage::Memory(_) => self.program(index, id, start, &data[..bytes as usize]),
                Storage::File(_) => self.chunks[index as usize].transfers += 1,
            }
        }
        if let Some(stop) = stop {
            self.change(index, |chunk, _| chunk.stop(stop));
            self.remember(index);
        }
        if cut {
            // What would have carried the data to a file is not sent any more.
            let chunk = &mut self.chunks[index as usize];
            chunk.transfers -= u32::from(accepted > 0 && matches!(self.storage, Storage::File(_)));
            self.cut();
            return Err(Refusal::PowerLost);
        }
        let pages = self.pages(start, accepted);
        let bytes = data.len() as u64;
        let until = self.schedule.write(now, geometry.unit_of(ChunkId(index)), pages, bytes);
        let wait = self.wait(until);
        Ok(WriteTicket { life, chunk: index, start, end, durable: request.durable, wait, id, stop })
    }

    /// How many sectors of a write the chunk takes, and why not all.
    fn fate_of_write(&mut self, index: u32, sectors: u32) -> (u32, Option<Stop>) {
        let units = sectors / self.options.geometry.ws_min;
        let endurance = self.options.endurance;
        let chunk = &mut self.chunks[index as usize];
        let worn = wear::worn(chunk.erases, chunk.erases_max);
        let closes = endurance.early_close.at(worn);
        if std::mem::take(&mut chunk.armed.early_close) || (closes > 0.0 && self.rng.random_bool(closes)) {
            self.counters.early_closes += 1;
            return (0, Some(Stop::ClosedEarly));
        }
        let fails = endurance.program_failure.at(worn);
        let failed = if std::mem::take(&mut chunk.armed.write) {
            Some(self.rng.random_range(0..units))
        } else if fails > 0.0 {
            (0..units).find(|_| self.rng.random_bool(fails))
        } else {
            None
        };
        match failed {
            Some(unit) => {
                self.counters.program_failures += 1;
                (unit * self.options.geometry.ws_min, Some(Stop::WriteFailed))
            }
            None => (sectors, None),
        }
    }

    /// Pages take the data.
    fn program(&mut self, index: u32, id: u64, sector: u32, data: &[u8]) {
        let geometry = self.options.geometry;
        if let Storage::Memory(cells) = &mut self.storage {
            let cells = &mut cells[index as usize];
            cells.resize(geometry.chunk_bytes() as usize, 0);
            let at = sector as usize * geometry.sector_bytes as usize;
            cells[at..at + data.len()].copy_from_slice(data);
        }
        self.counters.programmed_bytes += data.len() as u64;
        let sectors = (data.len() / geometry.sector_bytes as usize) as u32;
        self.counters.pages_programmed += u64::from(self.pages(sector, sectors));
        self.chunks[index as usize].land(id);
        self.remember(index);
    }

    /// A transfer to the file ended; `data` is what it carried.
    pub(super) fn land(&mut self, ticket: &WriteTicket, data: &[u8], ended: &io::Result<()>) {
        let chunk = &mut self.chunks[ticket.chunk as usize];
        if self.life != ticket.life {
            chunk.stale_transfers -= 1;
            return;
        }
        chunk.transfers -= 1;
        if !self.powered || chunk.state == ChunkState::Offline {
            return;
        }
        match ended {
            Ok(()) => self.program(ticket.chunk, ticket.id, ticket.start, data),
            Err(error) => {
                if self.change(ticket.chunk, |chunk, _| chunk.fail_from(ticket.id)) {
                    // The host was told of it, and no flush may say now that it is there.
                    self.broken = Some(error.kind());
                }
                self.remember(ticket.chunk);
            }
        }
    }

    /// Whether a durable write can be answered: all that is below it in its chunk is stored, or never will be.
    pub(super) fn may_complete(&self, ticket: &WriteTicket) -> bool {
        let chunk = &self.chunks[ticket.chunk as usize];
        self.check_life(ticket.life).is_err()
            || chunk.state == ChunkState::Offline
            || chunk.write_pointer < ticket.end
            || chunk.landed() >= ticket.end
    }

    /// The write's time is over. Where it began, if it went well.
    pub(super) fn complete_write(&mut self, ticket: &WriteTicket) -> Result<u32, Refusal> {
        self.check_life(ticket.life)?;
        let protected = self.options.protected_buffer;
        let geometry = self.options.geometry;
        let chunk = &mut self.chunks[ticket.chunk as usize];
        if chunk.state == ChunkState::Offline {
            return Err(Refusal::Offline);
        }
        let whole = ticket.end == ticket.start || chunk.complete(ticket.id);
        if let Some(stop) = ticket.stop {
            return Err(stop.refusal(ticket.end));
        }
        if !whole {
            return Err(Stop::WriteFailed.refusal(chunk.write_pointer));
        }
        if ticket.durable {
            chunk.make_durable(&geometry, protected, ticket.end);
            if let Some(kind) = self.broken {
                return Err(Refusal::Io(kind.into()));
            }
        }
        Ok(ticket.start)
    }

    pub(super) fn submit_read(
        &mut self,
        life: u64,
        index: u32,
        sector: u32,
        bytes: usize,
        now: Duration,
    ) -> Result<ReadTicket, Refusal> {
        self.check_life(life)?;
        let geometry = self.options.geometry;
        self.chunk(index)?;
        let sectors = self.whole_sectors(bytes)?;
        self.chunk(index)?.check_read(&geometry, sector, sectors)?;
        if self.count()? {
            self.cut();
            return Err(Refusal::PowerLost);
        }
        let pages = self.pages(sector, sectors);
        self.counters.pages_read += u64::from(pages);
        let high_ecc = self.disturb(index, pages);
        let until = self.schedule.read(now, geometry.unit_of(ChunkId(index)), pages, bytes as u64);
        let wait = self.wait(until);
        Ok(ReadTicket { life, chunk: index, sector, sectors, wait, high_ecc })
    }

    /// Reading wears on the neighbours: says so once for each level, and whether it is high by now.
    fn disturb(&mut self, index: u32, pages: u32) -> bool {
        let chunk = &mut self.chunks[index as usize];
        chunk.page_reads += u64::from(pages);
        let worn = wear::worn(chunk.erases, chunk.erases_max);
        let level = wear::ecc_level(self.options.ecc_page_reads, worn, chunk.page_reads);
        if let Some(kind) = level
            && chunk.told_ecc < level
        {
            chunk.told_ecc = level;
            self.notify(index, NotificationScope::Chunk, kind);
        }
        level == Some(NoticeKind::EccHigh)
    }

    /// The read's time is over; `buf` holds what the file had, or nothing yet if the data is in memory.
    pub(super) fn complete_read(&mut self, ticket: &ReadTicket, buf: &mut [u8]) -> Result<(), Refusal> {
        self.check_life(ticket.life)?;
        let geometry = self.options.geometry;
        let sector_bytes = geometry.sector_bytes as usize;
        let chunk = &self.chunks[ticket.chunk as usize];
        if chunk.state == ChunkState::Offline {
            return Err(Refusal::Offline);
        }
        let sectors = ticket.sector..ticket.sector + ticket.sectors;
        if let Some(sector) = chunk.unreadable.range(sectors.clone()).next().copied() {
            self.notify_sectors(ticket.chunk, sector, 1, NoticeKind::Unrecoverable);
            return Err(Refusal::Unreadable { sector });
        }
        if let Storage::Memory(cells) = &self.storage {
            let at = ticket.sector as usize * sector_bytes;
            match cells[ticket.chunk as usize].get(at..at + buf.len()) {
                Some(stored) => buf.copy_from_slice(stored),
                // Erased since it was submitted.
                None => buf.fill(0xFF),
            }
        }
        for ((sector, byte), bits) in chunk.flipped.range((sectors.start, 0)..(sectors.end, 0)) {
            buf[(sector - sectors.start) as usize * sector_bytes + *byte as usize] ^= bits;
        }
        Ok(())
    }

    pub(super) fn submit_reset(
        &mut self,
        life: u64,
        index: u32,
        now: Duration,
    ) -> Result<ResetTicket, Refusal> {
        self.check_life(life)?;
        let chunk = self.chunk(index)?;
        if chunk.state == ChunkState::Offline {
            return Err(Refusal::Offline);
        }
        chunk.check_idle()?;
        match chunk.state {
            ChunkState::Free if !self.options.reset_free => return Err(Rule::RESET_OF_FREE.into()),
            ChunkState::Open if !self.options.reset_open => return Err(Rule::RESET_OF_OPEN.into()),
            _ => {}
        }
        let cut = self.count()?;
        self.chunks[index as usize].resetting = true;
        if cut {
            self.cut();
            return Err(Refusal::PowerLost);
        }
        let until = self.schedule.erase(now, self.options.geometry.unit_of(ChunkId(index)));
        let wait = self.wait(until);
        Ok(ResetTicket { life, chunk: index, wait })
    }

    pub(super) fn complete_reset(&mut self, ticket: &ResetTicket) -> Result<(), Refusal> {
        self.check_life(ticket.life)?;
        if self.chunks[ticket.chunk as usize].state == ChunkState::Offline {
            return Err(Refusal::Offline);
        }
        self.chunks[ticket.chunk as usize].resetting = false;
        self.erase(ticket.chunk)
    }

    /// A flush of the chunks of some units.
    pub(super) fn submit_flush(&mut self, life: u64, units: &Range<u32>) -> Result<FlushTicket, Refusal> {
        self.check_life(life)?;
        let geometry = self.options.geometry;
        if self.count()? {
            self.cut();
            return Err(Refusal::PowerLost);
        }
        let chunks = units.start * geometry.chunks..units.end * geometry.chunks;
        let mark = |index: &u32| {
            let chunk = &self.chunks[*index as usize];
            (*index, chunk.erases, chunk.flushable(&geometry, self.options.protected_buffer))
        };
        let marks = self.dirty.range(chunks).map(mark).collect();
        let wait = self.wait(None);
        Ok(FlushTicket { life, wait, marks })
    }

    /// Whether a flush can be answered: all that it covers is stored, and what is below that, or never will be. A chunk that
    /// stopped ends where it stopped; what is below that may still be on its way.
    pub(super) fn may_flush(&self, ticket: &FlushTicket) -> bool {
        let ready = |(index, erases, mark): &(u32, u32, u32)| {
            let chunk = &self.chunks[*index as usize];
            chunk.state == ChunkState::Offline
                || chunk.erases != *erases
                || chunk.landed() >= chunk.write_pointer.min(*mark)
        };
        self.check_life(ticket.life).is_err() || ticket.marks.iter().all(ready)
    }

    pub(super) fn complete_flush(&mut self, ticket: &FlushTicket) -> Result<(), Refusal> {
        self.check_life(ticket.life)?;
        if let Some(kind) = self.broken {
            return Err(Refusal::Io(kind.into()));
        }
        for (index, erases, mark) in &ticket.marks {
            let chunk = &mut self.chunks[*index as usize];
            if chunk.erases != *erases || chunk.state == ChunkState::Offline {
                continue;
            }
            chunk.durable = chunk.durable.max((*mark).min(chunk.landed()));
            if chunk.durable == chunk.write_pointer {
                self.dirty.remove(index);
            }
        }
        Ok(())
    }

    /// Whether the chunk may be padded to its end now; from where on.
    pub(super) fn check_finish(&self, life: u64, index: u32) -> Result<u32, Refusal> {
        self.check_life(life)?;
        let chunk = self.chunk(index)?;
        match chunk.state {
            ChunkState::Offline => Err(Refusal::Offline),
            ChunkState::Open => {
                chunk.check_idle()?;
                Ok(chunk.write_pointer)
            }
            _ => Err(Rule::FINISH_OF_NOT_OPEN.into()),
        }
    }
}

//! Writes of a simulated medium: submitted at the write pointer, completed in any order, each with what strikes it.
//!
//! Invariants:
//! - A failed program or an early close is decided when a write is submitted, and befalls every write in flight that
//!   reaches above the sector that the device names. Of what was acknowledged it takes only what was not programmed:
//!   the last [`Geometry::mw_cunits`] sectors, unless the buffer is protected.
//! - All else is decided when a write completes.

use std::io;

use rand::RngExt;

use super::cells::Change;
use super::faults::{Failure, Fault};
use super::{Device, SimMedia, State};
use crate::geometry::{ChunkId, Geometry};
use crate::media::{ChunkState, Durability, MediaError};

/// A write in flight.
pub(super) struct Write {
    pub(super) chunk: ChunkId,
    pub(super) sector: u32,
    pub(super) data: Vec<u8>,
    durable: bool,
}

impl Write {
    fn sectors(&self, geometry: &Geometry) -> u32 {
        (self.data.len() / geometry.sector_bytes as usize) as u32
    }
}

impl Failure {
    fn error(&self, chunk: ChunkId) -> MediaError {
        match self.fault {
            Fault::EarlyClose => MediaError::ClosedEarly { chunk, write_pointer: self.sector },
            _ => MediaError::WriteFailed { chunk, sector: self.sector },
        }
    }
}

impl SimMedia {
    /// Submits a write: returns its key among those in flight, its first sector and the life it is in.
    pub(super) fn submit_write(
        &self,
        operation: &'static str,
        chunk: ChunkId,
        sector: Option<u32>,
        data: &[u8],
        durability: Durability,
    ) -> Result<(u64, u32, u64), MediaError> {
        let life = self.alive()?;
        let mut state = self.device.state.borrow_mut();
        let known = state.cells.get(chunk.0 as usize).and_then(|cells| cells.failure);
        if let Some(failure) = known.filter(|failure| failure.reported)
            && state.table.state(chunk) == ChunkState::Closed
        {
            // Not a broken rule: the host may not have heard of it yet.
            return Err(failure.error(chunk));
        }
        let (start, sectors) = state.table.begin_write(operation, chunk, sector, data.len())?;
        let cut = self.count(&mut state)?;
        state.counters.writes += 1;
        state.counters.written_bytes += data.len() as u64;
        let key = state.operations;
        let durable = durability == Durability::Durable;
        self.device.perhaps_fail(&mut state, chunk, start, sectors);
        state.in_flight.insert(key, Write { chunk, sector: start, data: data.to_vec(), durable });
        if cut {
            self.device.cut(&mut state);
            return Err(MediaError::PowerLost);
        }
        Ok((key, start, life))
    }

    pub(super) fn complete_write(
        &self,
        operation: &'static str,
        key: u64,
        life: u64,
    ) -> Result<(), MediaError> {
        self.still(life)?;
        let device = &*self.device;
        let state = &mut *device.state.borrow_mut();
        let write = state.in_flight.remove(&key).expect("a write completes once, within its life");
        let Write { chunk, sector, durable, .. } = write;
        state.table.end_write(chunk);
        if state.table.state(chunk) == ChunkState::Offline {
            return Err(MediaError::Offline { chunk });
        }
        let end = sector + write.sectors(&device.geometry);
        let failure = state.cells[chunk.0 as usize].failure.filter(|failure| failure.sector < end);
        if let Some(failure) = failure {
            if let Some(Write { data, .. }) = device.programmable(state, write) {
                state.push(chunk, Change::Write { sector, data });
            }
            device.close_failed(state, chunk);
            return Err(failure.error(chunk));
        }
        if state.strikes(Fault::TornWrite) {
            state.faults.record(Fault::TornWrite, chunk, Some((sector, write.sectors(&device.geometry))));
            let old = device.visible(state, chunk, sector, write.data.len());
            let data = device.tear(&mut state.rng, &old, &write.data, false);
            state.push(chunk, Change::Write { sector, data });
            let source = io::ErrorKind::Other.into();
            return Err(MediaError::Io { operation, chunk, sector, source });
        }
        let data = device.deliver(state, write);
        if durable {
            let Device { geometry, options, .. } = device;
            state.cells[chunk.0 as usize].write_through(geometry, options, sector, &data);
        } else {
            state.push(chunk, Change::Write { sector, data });
        }
        Ok(())
    }
}

impl Device {
    /// Decides whether the chunk fails at this write, if it has not failed before it.
    fn perhaps_fail(&self, state: &mut State, chunk: ChunkId, start: u32, sectors: u32) {
        if state.cells[chunk.0 as usize].failure.is_some() {
            return;
        }
        let failure = if state.strikes(Fault::FailedProgram) {
            let unit = self.geometry.ws_min;
            let first = match self.options.protected_buffer {
                true => start,
                // After a reset that is not durable, what is programmed is of the life before it.
                false => self.programmed(start).max(state.cells[chunk.0 as usize].programmed).min(start),
            };
            let sector = first + state.rng.random_range(0..(start + sectors - first) / unit) * unit;
            Some(Failure { fault: Fault::FailedProgram, sector, reported: false })
        } else if state.strikes(Fault::EarlyClose) {
            Some(Failure { fault: Fault::EarlyClose, sector: start, reported: false })
        } else {
            None
        };
        state.cells[chunk.0 as usize].failure = failure;
    }

    /// How far a chunk is programmed that was written up to `sector`, at the least.
    pub(super) fn programmed(&self, sector: u32) -> u32 {
        sector.saturating_sub(self.geometry.mw_cunits).next_multiple_of(self.geometry.ws_min)
    }

    /// Leaves what the device can program of a write, if anything.
    pub(super) fn programmable(&self, state: &State, mut write: Write) -> Option<Write> {
        if let Some(failure) = state.cells[write.chunk.0 as usize].failure {
            let sectors = failure.sector.saturating_sub(write.sector).min(write.sectors(&self.geometry));
            write.data.truncate(sectors as usize * self.geometry.sector_bytes as usize);
        }
        (!write.data.is_empty()).then_some(write)
    }

    /// The device closes a chunk that failed, if it has not yet.
    pub(super) fn close_failed(&self, state: &mut State, chunk: ChunkId) {
        if let Some(failure) = self.give_up_failed(state, chunk) {
            state.table.set(chunk, ChunkState::Closed, failure.sector);
            state.push(chunk, Change::Finish);
        }
    }

    /// What a chunk that failed cannot hold is gone, which is in the log from now on. `None`: it has not failed, or
    /// that is known.
    pub(super) fn give_up_failed(&self, state: &mut State, chunk: ChunkId) -> Option<Failure> {
        if state.table.state(chunk) == ChunkState::Offline {
            return None;
        }
        let cells = &mut state.cells[chunk.0 as usize];
        let failure = cells.failure.as_mut().filter(|failure| !failure.reported)?;
        failure.reported = true;
        let failure = *failure;
        cells.give_up(&self.geometry, failure.sector);
        let lost = (failure.sector, self.geometry.chunk_sectors - failure.sector);
        state.faults.record(failure.fault, chunk, Some(lost));
        Some(failure)
    }

    /// What really arrives at the place of a write that is acknowledged.
    fn deliver(&self, state: &mut State, write: Write) -> Vec<u8> {
        let sectors = write.sectors(&self.geometry);
        let Write { chunk, sector, mut data, .. } = write;
        if state.strikes(Fault::LostWrite) {
            state.faults.record(Fault::LostWrite, chunk, Some((sector, sectors)));
            return self.visible(state, chunk, sector, data.len());
        }
        if state.strikes(Fault::MisdirectedWrite) {
            state.faults.record(Fault::MisdirectedWrite, chunk, Some((sector, sectors)));
            let old = self.visible(state, chunk, sector, data.len());
            if let Some((wrong, at)) = self.astray(state, chunk, sector, sectors) {
                state.faults.record(Fault::Overwritten, wrong, Some((at, sectors)));
                state.cells[wrong.0 as usize].smash(&self.geometry, at, &data);
            }
            return old;
        }
        if state.strikes(Fault::CorruptedWrite) {
            let hit = self.flip(state, sector, &mut data);
            state.faults.record(Fault::CorruptedWrite, chunk, Some((hit, 1)));
        }
        data
    }
}

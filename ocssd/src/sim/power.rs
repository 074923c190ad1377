//! What is left when the host or the power goes: chance decides over everything that was not durable.
//!
//! Of a chunk that is open for certain, a device that programs late ([`Geometry::mw_cunits`]) and does not protect its
//! buffer loses the last sectors below its write pointer as well, though a flush or a durable write covered them: the
//! write pointer falls back over them, and what it does not fall back over is good, for good. Bad sectors above it are
//! forgotten: they were never programmed, and a chunk that comes back free is as one that was erased.
//!
//! Each write meets one of three fates, so that whole losses and whole survivals are as likely as a mix:
//! a host that is wrong in one of them is found in few seeds.

use std::collections::BTreeMap;

use rand::RngExt;
use rand_pcg::Pcg64Mcg;

use super::cells::{Cached, Change};
use super::write::Write;
use super::{Device, State};
use crate::chunk_table::ChunkTable;
use crate::geometry::ChunkId;
use crate::media::ChunkState;

/// What a power cut does to one write that is not durable.
#[derive(Clone, Copy)]
enum Fate {
    Kept,
    Lost,
    Mixed,
}

impl State {
    fn fate(&mut self) -> Fate {
        match self.rng.random_range(0..4) {
            0 => Fate::Kept,
            1 => Fate::Lost,
            _ => Fate::Mixed,
        }
    }

    fn keeps(&mut self, fate: Fate) -> bool {
        match fate {
            Fate::Kept => true,
            Fate::Lost => false,
            Fate::Mixed => self.rng.random_bool(0.5),
        }
    }
}

impl Device {
    /// `new` over `old`, some sectors of it; torn within a sector too if asked for.
    pub(super) fn tear(&self, rng: &mut Pcg64Mcg, old: &[u8], new: &[u8], within_sector: bool) -> Vec<u8> {
        let sector_bytes = self.geometry.sector_bytes as usize;
        let mut torn = old.to_vec();
        for (sector, bytes) in torn.chunks_mut(sector_bytes).zip(new.chunks(sector_bytes)) {
            let choices = if within_sector { 3 } else { 2 };
            let kept = match rng.random_range(0..choices) {
                0 => 0,
                1 => sector_bytes,
                _ => rng.random_range(0..=sector_bytes),
            };
            sector[..kept].copy_from_slice(&bytes[..kept]);
        }
        torn
    }

    /// The process is gone, the power is not.
    pub(super) fn abandon(&self, state: &mut State) {
        for write in std::mem::take(&mut state.in_flight).into_values() {
            let Some(Write { chunk, sector, data, .. }) = self.programmable(state, write) else { continue };
            let data = if self.options.conventional {
                let old = self.visible(state, chunk, sector, data.len());
                match state.fate() {
                    Fate::Kept => data,
                    Fate::Lost => continue,
                    Fate::Mixed => self.tear(&mut state.rng, &old, &data, false),
                }
            } else {
                // The device took it when it moved its write pointer.
                data
            };
            state.push(chunk, Change::Write { sector, data });
        }
        state.table.forget_in_flight();
        if self.options.conventional {
            self.forget_write_pointers(state);
        } else {
            for chunk in (0..self.geometry.chunk_count()).map(ChunkId) {
                // It knows which chunks it could not program, whether or not it came to say so; and a finish that was
                // in flight it took as it took the writes.
                self.close_failed(state, chunk);
                self.finish(state, chunk);
            }
        }
    }

    /// Power is gone: chance decides what the platter keeps of everything that was not durable.
    pub(super) fn cut(&self, state: &mut State) {
        if !state.powered {
            return;
        }
        state.powered = false;
        state.table.forget_in_flight();
        let mut late: BTreeMap<ChunkId, Vec<Write>> = BTreeMap::new();
        for write in std::mem::take(&mut state.in_flight).into_values() {
            if let Some(write) = self.programmable(state, write) {
                late.entry(write.chunk).or_default().push(write);
            }
        }
        for index in 0..self.geometry.chunk_count() {
            let chunk = ChunkId(index);
            let late = late.remove(&chunk).unwrap_or_default();
            self.give_up_failed(state, chunk);
            let cache = std::mem::take(&mut state.cells[index as usize].cache);
            if self.options.conventional {
                self.cut_conventional(state, chunk, cache, late);
            } else {
                self.cut_tracked(state, chunk, cache, late);
            }
        }
        if self.options.conventional {
            self.forget_write_pointers(state);
        }
    }

    fn cut_conventional(&self, state: &mut State, chunk: ChunkId, cache: Vec<Cached>, late: Vec<Write>) {
        let sector_bytes = self.geometry.sector_bytes as usize;
        let index = chunk.0 as usize;
        for cached in cache {
            let fate = state.fate();
            match cached.change {
                Change::Write { sector, data } => {
                    for (offset, bytes) in data.chunks(sector_bytes).enumerate() {
                        if state.keeps(fate) {
                            let at = sector + offset as u32;
                            state.cells[index].settle_write(&self.geometry, at, bytes);
                        }
                    }
                }
                Change::Reset => {
                    if state.keeps(fate) {
                        state.cells[index].settle_reset(&self.options);
                    }
                }
                Change::Finish => {}
            }
        }
        for write in late {
            let data = match state.fate() {
                Fate::Kept => write.data,
                Fate::Lost => continue,
                Fate::Mixed => {
                    let old = self.visible(state, chunk, write.sector, write.data.len());
                    self.tear(&mut state.rng, &old, &write.data, self.options.tear_within_sector)
                }
            };
            state.cells[index].settle_write(&self.geometry, write.sector, &data);
        }
    }

    /// A device that tracks write pointers comes back with one between what is durable and what was
    /// submitted. Below it everything was written, except what was cached before a durable write
    /// overtook it: that is given to chance.
    fn cut_tracked(&self, state: &mut State, chunk: ChunkId, cache: Vec<Cached>, late: Vec<Write>) {
        let geometry = &self.geometry;
        let sector_bytes = geometry.sector_bytes as usize;
        let index = chunk.0 as usize;
        let mut writes: Vec<(u32, Vec<u8>)> = Vec::new();
        let mut finished = false;
        let mut reset_lost = false;
        for cached in cache {
            match cached.change {
                Change::Write { sector, data } => writes.push((sector, data)),
                Change::Finish => finished = true,
                Change::Reset => {
                    let fate = state.fate();
                    if !state.keeps(fate) {
                        reset_lost = true;
                        break;
                    }
                    writes.clear();
                    finished = false;
                    state.cells[index].settle_reset(&self.options);
                }
            }
        }
        let durable = state.cells[index].write_pointer;
        let end = |(sector, data): &(u32, Vec<u8>)| sector + (data.len() / sector_bytes) as u32;
        // What is below the sector that failed was programmed, or that one could not have been tried.
        let failed = state.cells[index].failure.take().is_some();
        let floor = match state.cells[index].state {
            ChunkState::Open if !self.options.protected_buffer && !failed => {
                self.programmed(durable).max(state.cells[index].programmed)
            }
            _ => durable,
        };
        if !reset_lost {
            writes.extend(late.into_iter().map(|write| (write.sector, write.data)));
        }
        let submitted = writes.iter().map(end).max().unwrap_or(0).max(durable);
        let steps = (submitted - floor) / geometry.ws_min;
        let pointer = match state.fate() {
            Fate::Kept => submitted,
            Fate::Lost => floor,
            Fate::Mixed => floor + state.rng.random_range(0..=steps) * geometry.ws_min,
        };
        if pointer < durable {
            state.cells[index].fall_back(geometry, pointer);
        }
        let fate = state.fate();
        for (sector, data) in writes {
            for (offset, bytes) in data.chunks(sector_bytes).enumerate() {
                let at = sector + offset as u32;
                if at < pointer && (at >= durable || state.keeps(fate)) {
                    state.cells[index].settle_write(geometry, at, bytes);
                }
            }
        }
        state.cells[index].programmed = state.cells[index].write_pointer;
        state.cells[index].unreadable.retain(|sector| *sector < pointer);
        if finished && pointer == submitted && state.keeps(fate) {
            state.cells[index].state = ChunkState::Closed;
        }
        if failed {
            // It will not be written before its next reset.
            state.cells[index].state = ChunkState::Closed;
        }
        if state.table.state(chunk) != ChunkState::Offline {
            let cells = &state.cells[index];
            state.table.set(chunk, cells.state, cells.write_pointer);
        }
    }

    fn forget_write_pointers(&self, state: &mut State) {
        let old = std::mem::replace(&mut state.table, ChunkTable::all_closed(self.geometry));
        for index in 0..self.geometry.chunk_count() {
            if old.state(ChunkId(index)) == ChunkState::Offline {
                state.table.set(ChunkId(index), ChunkState::Offline, 0);
            }
        }
    }
}

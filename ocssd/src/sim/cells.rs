//! What a chunk holds: the platter, which survives a power cut, and over it a cache of changes that do
//! not.
//!
//! Invariants:
//! - Changes reach the platter in the order in which they completed, except durable writes, which pass
//!   the cache; what the cache still holds of their sectors takes their content too, so no older change
//!   wins over them later.
//! - A reset that the device remembers is in the cache like a write.

use std::collections::BTreeSet;

use super::SimOptions;
use super::faults::Failure;
use crate::geometry::Geometry;
use crate::media::ChunkState;

/// Content of one chunk.
pub(super) struct Cells {
    /// What survives a power cut. Empty: all zeros.
    platter: Vec<u8>,
    /// What completed since, oldest first.
    pub(super) cache: Vec<Cached>,
    /// State as the platter has it. Only a device that tracks write pointers uses this and the next.
    pub(super) state: ChunkState,
    pub(super) write_pointer: u32,
    /// What outlived a power cut is programmed, though the chunk be open.
    pub(super) programmed: u32,
    /// Sectors that fail every read.
    pub(super) unreadable: BTreeSet<u32>,
    /// Why the chunk takes no more writes before its next reset.
    pub(super) failure: Option<Failure>,
}

/// A change that completed, and that no flush has covered.
pub(super) struct Cached {
    /// Its place among all completions of the device.
    pub(super) sequence: u64,
    /// A flush that had to cover it failed, so no later one will.
    pub(super) doomed: bool,
    pub(super) change: Change,
}

pub(super) enum Change {
    Write { sector: u32, data: Vec<u8> },
    Reset,
    Finish,
}

impl Cells {
    /// Zeros.
    pub(super) fn new() -> Self {
        Self {
            platter: Vec::new(),
            cache: Vec::new(),
            state: ChunkState::Free,
            write_pointer: 0,
            programmed: 0,
            unreadable: BTreeSet::new(),
            failure: None,
        }
    }

    /// What a read sees now: the platter with the cache over it.
    pub(super) fn visible(
        &self,
        geometry: &Geometry,
        options: &SimOptions,
        sector: u32,
        len: usize,
    ) -> Vec<u8> {
        let start = byte(geometry, sector);
        let mut bytes = match self.platter.get(start..start + len) {
            Some(platter) => platter.to_vec(),
            None => vec![0; len],
        };
        for cached in &self.cache {
            match &cached.change {
                Change::Write { sector, data } => overlay(&mut bytes, start, data, byte(geometry, *sector)),
                Change::Reset if !options.stale => bytes.fill(0),
                Change::Reset | Change::Finish => {}
            }
        }
        bytes
    }

    /// A completed durable write: on the platter at once, and alone.
    pub(super) fn write_through(
        &mut self,
        geometry: &Geometry,
        options: &SimOptions,
        sector: u32,
        data: &[u8],
    ) {
        self.settle_last_reset(options);
        self.settle_write(geometry, sector, data);
        self.overrule(geometry, sector, data);
    }

    /// The chunk took a write that is durable, so its last reset happened; what came before that is gone.
    fn settle_last_reset(&mut self, options: &SimOptions) {
        if let Some(last) = self.cache.iter().rposition(|cached| matches!(cached.change, Change::Reset)) {
            self.cache.drain(..=last);
            self.settle_reset(options);
        }
    }

    /// A completed flush: everything up to `mark` goes to the platter, in order.
    pub(super) fn settle_until(&mut self, geometry: &Geometry, options: &SimOptions, mark: u64) {
        for cached in std::mem::take(&mut self.cache) {
            if cached.sequence > mark || cached.doomed {
                self.cache.push(cached);
                continue;
            }
            match cached.change {
                Change::Write { sector, data } => {
                    // Only doomed changes are left of what came before.
                    self.settle_last_reset(options);
                    self.settle_write(geometry, sector, &data);
                    self.overrule(geometry, sector, &data);
                }
                Change::Reset => {
                    self.cache.clear();
                    self.settle_reset(options);
                }
                Change::Finish => self.state = ChunkState::Closed,
            }
        }
    }

    /// Puts a write on the platter.
    pub(super) fn settle_write(&mut self, geometry: &Geometry, sector: u32, data: &[u8]) {
        let start = byte(geometry, sector);
        self.platter_mut(geometry)[start..start + data.len()].copy_from_slice(data);
        let end = sector + (data.len() / geometry.sector_bytes as usize) as u32;
        self.write_pointer = self.write_pointer.max(end);
        if self.state != ChunkState::Closed {
            let full = self.write_pointer == geometry.chunk_sectors;
            self.state = if full { ChunkState::Closed } else { ChunkState::Open };
        }
    }

    /// Resets the platter.
    pub(super) fn settle_reset(&mut self, options: &SimOptions) {
        self.state = ChunkState::Free;
        self.write_pointer = 0;
        self.programmed = 0;
        if !options.stale {
            self.platter.clear();
        }
    }

    /// Flips one bit of a byte, wherever it is kept.
    pub(super) fn damage(&mut self, geometry: &Geometry, sector: u32, at: u32) {
        const BIT: u8 = 0x10;
        let offset = byte(geometry, sector) + at as usize;
        self.platter_mut(geometry)[offset] ^= BIT;
        for cached in &mut self.cache {
            if let Change::Write { sector, data } = &mut cached.change {
                let hit = offset.checked_sub(byte(geometry, *sector)).and_then(|at| data.get_mut(at));
                if let Some(hit) = hit {
                    *hit ^= BIT;
                }
            }
        }
    }

    /// A write gone astray: over what is there, wherever it is kept, and unknown to the write pointer.
    pub(super) fn smash(&mut self, geometry: &Geometry, sector: u32, data: &[u8]) {
        let start = byte(geometry, sector);
        self.platter_mut(geometry)[start..start + data.len()].copy_from_slice(data);
        self.overrule(geometry, sector, data);
    }

    /// The write pointer falls back: what was above it had never been programmed.
    pub(super) fn fall_back(&mut self, geometry: &Geometry, sector: u32) {
        let start = byte(geometry, sector);
        if let Some(above) = self.platter.get_mut(start..) {
            above.fill(0);
        }
        self.write_pointer = sector;
        self.programmed = self.programmed.min(sector);
        self.state = if sector == 0 { ChunkState::Free } else { ChunkState::Open };
    }

    /// Nothing is left from `sector` on, wherever it was kept.
    pub(super) fn give_up(&mut self, geometry: &Geometry, sector: u32) {
        self.cache.retain_mut(|cached| match &mut cached.change {
            Change::Write { sector: first, data } => {
                data.truncate(byte(geometry, sector.saturating_sub(*first)));
                !data.is_empty()
            }
            Change::Reset | Change::Finish => true,
        });
        if self.write_pointer > sector {
            self.fall_back(geometry, sector);
        }
    }

    /// Writes over whatever the cache holds of the same sectors.
    fn overrule(&mut self, geometry: &Geometry, sector: u32, data: &[u8]) {
        for cached in &mut self.cache {
            if let Change::Write { sector: theirs, data: old } = &mut cached.change {
                overlay(old, byte(geometry, *theirs), data, byte(geometry, sector));
            }
        }
    }

    fn platter_mut(&mut self, geometry: &Geometry) -> &mut Vec<u8> {
        if self.platter.is_empty() {
            self.platter.resize(geometry.chunk_bytes() as usize, 0);
        }
        &mut self.platter
    }
}

/// Where a sector begins within its chunk.
fn byte(geometry: &Geometry, sector: u32) -> usize {
    sector as usize * geometry.sector_bytes as usize
}

/// Copies the part of `from` (which begins at byte `from_start`) that falls within `to`.
fn overlay(to: &mut [u8], to_start: usize, from: &[u8], from_start: usize) {
    let start = to_start.max(from_start);
    let end = (to_start + to.len()).min(from_start + from.len());
    if start < end {
        to[start - to_start..end - to_start].copy_from_slice(&from[start - from_start..end - from_start]);
    }
}

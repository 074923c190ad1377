//! What is left when the power or the host goes.
//!
//! Data is written once in a chunk's life, and read below its write pointer only. So nothing needs to be undone: losing
//! what was not durable means that the write pointer comes back lower.
//!
//! Invariants:
//! - After a cut the write pointer of a chunk is anywhere between what was durable and what the storage has, in whole
//!   smallest writes; below it everything is as it was written.
//! - A reset under way was done or was not.

use rand::RngExt;

use super::controller::Controller;
use crate::media::ChunkState;

impl Controller {
    /// The power is gone: chance decides over everything that was not durable.
    pub(super) fn cut(&mut self) {
        if !self.powered {
            return;
        }
        self.powered = false;
        for index in 0..self.chunks.len() as u32 {
            let chunk = &self.chunks[index as usize];
            if chunk.state == ChunkState::Offline {
                continue;
            }
            if chunk.resetting && self.rng.random_bool(0.5) {
                // One that fails takes the chunk offline, as it would have.
                let _ = self.erase(index);
                continue;
            }
            let chunk = &self.chunks[index as usize];
            let (durable, landed) = (chunk.durable, chunk.landed());
            let end = self.survives(durable, landed);
            self.change(index, |chunk, geometry| chunk.settle_at(geometry, end));
            self.chunks[index as usize].durable = end;
            if end != landed {
                self.remember(index);
            }
        }
        self.dirty.clear();
    }

    /// Where the write pointer comes back. Whole losses and whole survivals are as likely as a mix, so that a host that
    /// is wrong in one of them is found in few seeds.
    fn survives(&mut self, durable: u32, landed: u32) -> u32 {
        if landed == durable {
            return durable;
        }
        let unit = self.options.geometry.ws_min;
        match self.rng.random_range(0..4) {
            0 => landed,
            1 => durable,
            _ => durable + self.rng.random_range(0..=(landed - durable) / unit) * unit,
        }
    }

    /// The power comes back, cutting it first if it is on.
    pub(super) fn power_on(&mut self) {
        self.cut();
        self.powered = true;
        self.begin_life();
    }

    /// The host's process dies and comes back; the device keeps its power, its buffer and what it was told.
    pub(super) fn restart(&mut self) {
        assert!(self.powered, "a process cannot come back on a device without power");
        for index in 0..self.chunks.len() as u32 {
            let chunk = &self.chunks[index as usize];
            if chunk.state == ChunkState::Offline {
                continue;
            }
            if chunk.resetting {
                let _ = self.erase(index);
                continue;
            }
            // What the storage does not have never reached the device.
            self.change(index, |chunk, geometry| chunk.settle_at(geometry, chunk.landed()));
        }
        self.begin_life();
    }

    fn begin_life(&mut self) {
        self.life += 1;
        self.cut_at = None;
        self.tenants.fill(0);
        self.schedule.clear();
        self.chunks.iter_mut().for_each(super::chunk::Chunk::begin_life);
    }
}

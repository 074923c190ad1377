//! Writes: accepted into memory in the order of their addresses, submitted to all members at once.
//!
//! A write is accepted and its full units are submitted when its future is first polled; what does not fill a unit waits
//! in memory for what follows. A volatile write resolves when the device has every unit that it filled or touched
//! before it ended; the part of a unit that waits is what the volume, as the device's cache, holds for it.

use std::rc::Rc;

use super::flush::{Asks, Target};
use super::shared::Shared;
use crate::buffer::AlignedBuf;
use crate::geometry::ChunkId;
use crate::media::{Durability, Media, MediaError};

/// A write that was accepted.
struct Accepted {
    line: u32,
    sector: u32,
    end: u32,
    life: u64,
    /// Written durably by its programs alone, as far as it looked when they were submitted.
    chain: bool,
}

impl<M: Media> Shared<M> {
    /// [`Media::write`], and with `sector` of `None` [`Media::append`]. Returns the first sector.
    pub(super) async fn write(
        self: &Rc<Self>,
        operation: &'static str,
        chunk: ChunkId,
        sector: Option<u32>,
        buf: AlignedBuf,
        durability: Durability,
    ) -> (Result<u32, MediaError>, AlignedBuf) {
        let accepted = match self.accept(operation, chunk, sector, &buf, durability) {
            Ok(accepted) => accepted,
            Err(error) => return (Err(error), buf),
        };
        self.pump(accepted.line, accepted.chain);
        let result = self.written_out(operation, &accepted, durability).await;
        let mut state = self.state.borrow_mut();
        state.table.end_write(chunk);
        if result.is_ok() {
            let line = &mut state.lines[chunk.0 as usize];
            line.acknowledged = line.acknowledged.max(accepted.end);
        }
        drop(state);
        self.jobs.notify();
        (result.map(|()| accepted.sector), buf)
    }

    fn accept(
        self: &Rc<Self>,
        operation: &'static str,
        chunk: ChunkId,
        sector: Option<u32>,
        buf: &[u8],
        durability: Durability,
    ) -> Result<Accepted, MediaError> {
        let stripe = &self.assignment.stripe;
        let mut state = self.state.borrow_mut();
        let at = sector.unwrap_or(0);
        if let Some(line) = state.lines.get(chunk.0 as usize) {
            if let Some(error) = state.broken(operation, chunk.0, at) {
                return Err(error);
            }
            if line.finishing {
                let reason = "a finish of the chunk is in flight";
                return Err(MediaError::Rule { operation, chunk, sector: at, reason });
            }
        }
        let (sector, sectors) = state.table.begin_write(operation, chunk, sector, buf.len())?;
        state.counters.writes += 1;
        state.counters.written_bytes += buf.len() as u64;
        state.unsettled.insert(chunk.0);
        let line = &mut state.lines[chunk.0 as usize];
        let (end, life) = (sector + sectors, line.life);
        let durable = durability == Durability::Durable;
        let chain = durable && line.members.iter().all(|member| member.is_durable_chain());
        for piece in stripe.pieces(sector, sectors) {
            let from = piece.offset as usize * self.limits.sector_bytes;
            let bytes = piece.sectors as usize * self.limits.sector_bytes;
            line.members[piece.member].buffer.push(&buf[from..from + bytes]);
        }
        drop(state);
        let accepted = Accepted { line: chunk.0, sector, end, life, chain };
        if durable {
            self.want(&accepted.target());
        }
        Ok(accepted)
    }

    async fn written_out(
        self: &Rc<Self>,
        operation: &'static str,
        accepted: &Accepted,
        durability: Durability,
    ) -> Result<(), MediaError> {
        if durability == Durability::Durable {
            let asks = Asks::Write { operation, sector: accepted.sector };
            return self.settle(&[accepted.target()], asks).await;
        }
        let stripe = &self.assignment.stripe;
        let unit = stripe.unit_sectors;
        let ready = || {
            let state = self.state.borrow();
            let line = &state.lines[accepted.line as usize];
            let mut members = line.members.iter().enumerate();
            let done = members.all(|(index, member)| {
                let end = stripe.member_end(index, accepted.end);
                let touched = end > stripe.member_end(index, accepted.sector);
                !touched || member.done() >= end / unit * unit
            });
            match state.broken(operation, accepted.line, accepted.sector) {
                None => done.then_some(Ok(())),
                // Whether a part of a unit that waits will ever be written is known only now: it will not.
                Some(error) => Some(if line.is_done(stripe, accepted.end) { Ok(()) } else { Err(error) }),
            }
        };
        self.jobs.until(ready).await
    }
}

impl Accepted {
    fn target(&self) -> Target {
        Target { line: self.line, end: self.end, life: self.life }
    }
}

//! Reads: split over the members, from the device where it can return the sectors and from memory where it cannot.
//!
//! What comes from memory is copied when the read is submitted, and what comes from the device was readable then, so
//! nothing that happens to the line meanwhile (a program that completes, an evacuation that ends) can make it wrong; the
//! chunks that are read are pinned until the read is over.
//!
//! An error names the first sector of the **line** that could not be read. That of a member whose chunk is gone is
//! [`MediaError::Unreadable`]: the line is there, those sectors are not. So is a refusal by the rules of the device, for
//! what the host asked was checked against the line's before.

use std::rc::Rc;

use futures_util::future::join_all;

use super::line::Broken;
use super::shared::Shared;
use crate::buffer::AlignedBuf;
use crate::geometry::ChunkId;
use crate::media::{Media, MediaError, NoticeKind};

/// A run of sectors that the device of one member returns.
struct DeviceRead {
    member: usize,
    chunk: ChunkId,
    /// First sector within the chunk.
    from: u32,
    to: u32,
    /// The life of the line that it is from.
    life: u64,
}

/// Keeps chunks from being reset.
struct Pins<M> {
    shared: Rc<Shared<M>>,
    chunks: Vec<ChunkId>,
}

impl<M> Drop for Pins<M> {
    fn drop(&mut self) {
        let mut state = self.shared.state.borrow_mut();
        for chunk in &self.chunks {
            state.readers[chunk.0 as usize] -= 1;
        }
        drop(state);
        self.shared.jobs.notify();
    }
}

impl<M: Media> Shared<M> {
    /// [`Media::read`].
    pub(super) async fn read(
        self: &Rc<Self>,
        chunk: ChunkId,
        sector: u32,
        mut buf: AlignedBuf,
    ) -> (Result<(), MediaError>, AlignedBuf) {
        let checked = {
            let mut state = self.state.borrow_mut();
            // A line that the power stopped seems to end anywhere; nothing is asked of it that breaks a rule.
            let broken = state.lines.get(chunk.0 as usize).and_then(|line| line.broken.as_ref());
            if matches!(broken, Some(Broken::PowerLost)) {
                return (Err(MediaError::PowerLost), buf);
            }
            state.counters.reads += 1;
            let checked = state.table.check_read(chunk, sector, buf.len());
            match &checked {
                Ok(_) => state.counters.read_bytes += buf.len() as u64,
                Err(_) => state.counters.reads -= 1,
            }
            checked
        };
        let end = match checked {
            Ok(sectors) => sector + sectors,
            Err(error) => return (Err(error), buf),
        };
        if let Some(sector) = self.gone(chunk.0, sector, end) {
            return (Err(MediaError::Unreadable { chunk, sector }), buf);
        }
        let (reads, _pins) = self.from_memory(chunk.0, sector, end, &mut buf);
        let result = match &reads[..] {
            [only] if only.to - only.from == end - sector => {
                // One member and nothing from memory: straight into the caller's buffer.
                let (result, filled) = self.media.read(only.chunk, only.from, buf).await;
                buf = filled;
                result.map_err(|error| self.translate(chunk.0, only, error).1)
            }
            reads => self.gather(chunk.0, sector, end, reads, &mut buf).await,
        };
        (result, buf)
    }

    /// The first of those sectors whose member is gone.
    fn gone(&self, line: u32, sector: u32, end: u32) -> Option<u32> {
        let state = self.state.borrow();
        let members = &state.lines[line as usize].members;
        let mut pieces = self.assignment.stripe.pieces(sector, end - sector);
        pieces.find(|piece| members[piece.member].gone).map(|piece| sector + piece.offset)
    }

    /// Fills in what is in memory; returns what is not.
    fn from_memory(
        self: &Rc<Self>,
        line: u32,
        sector: u32,
        end: u32,
        buf: &mut [u8],
    ) -> (Vec<DeviceRead>, Pins<M>) {
        let (stripe, sector_bytes) = (&self.assignment.stripe, self.limits.sector_bytes);
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let this = &state.lines[line as usize];
        let (members, life) = (&this.members, this.life);
        for piece in stripe.pieces(sector, end - sector) {
            let memory = &members[piece.member].buffer;
            let piece_end = piece.sector + piece.sectors;
            let from = memory.start().clamp(piece.sector, piece_end);
            if from < piece_end {
                let at = (piece.offset + from - piece.sector) as usize * sector_bytes;
                memory.copy_out(from, &mut buf[at..at + (piece_end - from) as usize * sector_bytes]);
            }
        }
        let mut reads = Vec::new();
        for (index, member) in members.iter().enumerate() {
            let from = stripe.member_end(index, sector);
            let to = stripe.member_end(index, end).min(member.buffer.start());
            if from < to {
                reads.push(DeviceRead { member: index, chunk: member.chunk, from, to, life });
            }
        }
        let chunks: Vec<ChunkId> = reads.iter().map(|read| read.chunk).collect();
        for chunk in &chunks {
            state.readers[chunk.0 as usize] += 1;
        }
        (reads, Pins { shared: Rc::clone(self), chunks })
    }

    /// Reads from all members at once, and puts the units in their order.
    async fn gather(
        &self,
        line: u32,
        sector: u32,
        end: u32,
        reads: &[DeviceRead],
        buf: &mut [u8],
    ) -> Result<(), MediaError> {
        let (stripe, sector_bytes) = (&self.assignment.stripe, self.limits.sector_bytes);
        let submit = |read: &DeviceRead| {
            let part = AlignedBuf::zeroed((read.to - read.from) as usize * sector_bytes);
            self.media.read(read.chunk, read.from, part)
        };
        let results = join_all(reads.iter().map(submit)).await;
        let mut parts: Vec<Option<(&DeviceRead, AlignedBuf)>> = (0..stripe.width).map(|_| None).collect();
        let mut failed: Option<(u32, MediaError)> = None;
        for (read, (result, part)) in reads.iter().zip(results) {
            match result {
                Ok(()) => parts[read.member] = Some((read, part)),
                Err(error) => {
                    let found = self.translate(line, read, error);
                    if failed.as_ref().is_none_or(|(first, _)| found.0 < *first) {
                        failed = Some(found);
                    }
                }
            }
        }
        if let Some((_, error)) = failed {
            return Err(error);
        }
        for piece in stripe.pieces(sector, end - sector) {
            let Some((read, part)) = &parts[piece.member] else { continue };
            let to = (piece.sector + piece.sectors).min(read.to);
            if piece.sector < to {
                let len = (to - piece.sector) as usize * sector_bytes;
                let from = (piece.sector - read.from) as usize * sector_bytes;
                let at = piece.offset as usize * sector_bytes;
                buf[at..at + len].copy_from_slice(&part[from..from + len]);
            }
        }
        Ok(())
    }

    /// An error of a member as one of the line, and the sector that it names.
    fn translate(&self, line: u32, read: &DeviceRead, error: MediaError) -> (u32, MediaError) {
        let chunk = ChunkId(line);
        // A device may name any sector; ours is one of those asked for.
        let on_line =
            |sector: u32| self.assignment.stripe.sector_of(read.member, sector.clamp(read.from, read.to - 1));
        let notice = |sectors, kind| {
            let mut state = self.state.borrow_mut();
            // The line may have been reset meanwhile, and be sound now.
            if state.lines[line as usize].life == read.life {
                state.notice(line, sectors, kind);
            }
        };
        let first = on_line(read.from);
        match error {
            MediaError::PowerLost => (0, MediaError::PowerLost),
            MediaError::Unreadable { sector, .. } => {
                let sector = on_line(sector);
                notice(Some((sector, 1)), NoticeKind::Unrecoverable);
                (sector, MediaError::Unreadable { chunk, sector })
            }
            MediaError::Offline { .. } => {
                notice(None, NoticeKind::Offline);
                (first, MediaError::Unreadable { chunk, sector: first })
            }
            // The host's part was checked before: the device does not have what it should.
            MediaError::Rule { .. } => {
                notice(Some((first, 1)), NoticeKind::Unrecoverable);
                (first, MediaError::Unreadable { chunk, sector: first })
            }
            MediaError::Io { sector, source, .. } => {
                let sector = on_line(sector);
                (sector, MediaError::Io { operation: "read", chunk, sector, source })
            }
            other => {
                let source = std::io::Error::other(other.to_string());
                (first, MediaError::Io { operation: "read", chunk, sector: first, source })
            }
        }
    }
}

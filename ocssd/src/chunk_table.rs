//! What the host knows of every chunk: state, write pointer, wear, writes in flight.
//!
//! The rules of erase units are enforced here, in one place, for every backend whose device does not
//! enforce them itself (a file accepts any write anywhere, which would hide our mistakes until the
//! first real zoned device).
//!
//! Invariants:
//! - The write pointer counts writes that were submitted, so the next may follow before the last
//!   completed. It never moves back except by a reset.
//! - A chunk with a write in flight is never reset: the late write would land in the chunk's next life.
//!   A write whose future was dropped counts as in flight until the medium is opened again.

use crate::geometry::{ChunkId, Geometry};
use crate::media::{ChunkInfo, ChunkState, MediaError};

#[derive(Debug, Clone)]
struct Chunk {
    state: ChunkState,
    write_pointer: u32,
    wear: u32,
    writes_in_flight: u32,
    resetting: bool,
}

/// State of all chunks of a slice, and the judge of what may be done to them.
#[derive(Debug, Clone)]
pub(crate) struct ChunkTable {
    geometry: Geometry,
    chunks: Vec<Chunk>,
    open: u32,
}

impl ChunkTable {
    /// The state of a conventional device after a start: nothing is known, so every chunk is closed and
    /// readable to its end.
    pub(crate) fn all_closed(geometry: Geometry) -> Self {
        Self::uniform(geometry, ChunkState::Closed, geometry.chunk_sectors)
    }

    /// The state of a new device that tracks write pointers.
    pub(crate) fn all_free(geometry: Geometry) -> Self {
        Self::uniform(geometry, ChunkState::Free, 0)
    }

    fn uniform(geometry: Geometry, state: ChunkState, write_pointer: u32) -> Self {
        let chunk = Chunk { state, write_pointer, wear: 0, writes_in_flight: 0, resetting: false };
        Self { geometry, chunks: vec![chunk; geometry.chunk_count() as usize], open: 0 }
    }

    /// Every chunk, ordered by id.
    pub(crate) fn report(&self) -> Vec<ChunkInfo> {
        let info = |(index, chunk): (usize, &Chunk)| ChunkInfo {
            id: ChunkId(index as u32),
            state: chunk.state,
            write_pointer: chunk.write_pointer,
            wear: chunk.wear,
        };
        self.chunks.iter().enumerate().map(info).collect()
    }

    /// Admits a write of `bytes` at `sector` (`None`: an append, wherever the write pointer stands) and
    /// moves the write pointer over it. Returns its first sector and its length in sectors.
    pub(crate) fn begin_write(
        &mut self,
        operation: &'static str,
        id: ChunkId,
        sector: Option<u32>,
        bytes: usize,
    ) -> Result<(u32, u32), MediaError> {
        let geometry = self.geometry;
        let open = self.open;
        let at = sector.unwrap_or(0);
        let chunk = self.chunk(operation, id, at)?;
        let rule = |reason| Err(MediaError::Rule { operation, chunk: id, sector: at, reason });
        let sectors = match whole_sectors(&geometry, bytes) {
            Some(sectors) if sectors.is_multiple_of(geometry.ws_min) => sectors,
            Some(_) => return rule("the length is not a multiple of the smallest write"),
            None => return rule("the length is not a positive number of whole sectors"),
        };
        if chunk.resetting {
            return rule("a reset of the chunk is in flight");
        }
        if chunk.state == ChunkState::Closed {
            return rule("the chunk is closed; reset it first");
        }
        if sector.is_some_and(|sector| sector != chunk.write_pointer) {
            return rule("the sector is not the write pointer");
        }
        let start = chunk.write_pointer;
        if sectors > geometry.chunk_sectors - start {
            return rule("the write reaches beyond the chunk's end");
        }
        let opens = chunk.state == ChunkState::Free;
        if opens && geometry.max_open != 0 && open >= geometry.max_open {
            return rule("too many chunks are open");
        }
        chunk.write_pointer += sectors;
        chunk.writes_in_flight += 1;
        let closes = chunk.write_pointer == geometry.chunk_sectors;
        chunk.state = if closes { ChunkState::Closed } else { ChunkState::Open };
        self.open = self.open + u32::from(opens) - u32::from(closes);
        Ok((start, sectors))
    }

    /// A write admitted by [`Self::begin_write`] completed, well or not.
    pub(crate) fn end_write(&mut self, id: ChunkId) {
        let chunk = &mut self.chunks[id.0 as usize];
        assert!(chunk.writes_in_flight > 0, "a write of {id:?} ended that never began");
        chunk.writes_in_flight -= 1;
    }

    /// Whether `bytes` from `sector` may be read. Returns the length in sectors.
    pub(crate) fn check_read(&mut self, id: ChunkId, sector: u32, bytes: usize) -> Result<u32, MediaError> {
        let operation = "read";
        let geometry = self.geometry;
        let chunk = self.chunk(operation, id, sector)?;
        let rule = |reason| Err(MediaError::Rule { operation, chunk: id, sector, reason });
        let Some(sectors) = whole_sectors(&geometry, bytes) else {
            return rule("the length is not a positive number of whole sectors");
        };
        if chunk.resetting {
            return rule("a reset of the chunk is in flight");
        }
        let hidden = if chunk.state == ChunkState::Open { geometry.mw_cunits } else { 0 };
        let Some(end) = sector.checked_add(sectors).filter(|end| *end <= geometry.chunk_sectors) else {
            return rule("the read reaches beyond the chunk's end");
        };
        if end > chunk.write_pointer {
            return rule("the read reaches beyond the write pointer");
        }
        if end > chunk.write_pointer.saturating_sub(hidden) {
            return rule("the last sectors below the write pointer cannot be read yet");
        }
        Ok(sectors)
    }

    /// Admits a reset. Nothing else may be done to the chunk before [`Self::end_reset`].
    pub(crate) fn begin_reset(&mut self, id: ChunkId) -> Result<(), MediaError> {
        let chunk = self.chunk("reset", id, 0)?;
        let rule = |reason| Err(MediaError::Rule { operation: "reset", chunk: id, sector: 0, reason });
        if chunk.resetting {
            return rule("a reset of the chunk is in flight");
        }
        if chunk.writes_in_flight > 0 {
            return rule("a write of the chunk is in flight");
        }
        chunk.resetting = true;
        Ok(())
    }

    /// A reset admitted by [`Self::begin_reset`] completed. One that failed leaves the chunk as it was.
    pub(crate) fn end_reset(&mut self, id: ChunkId, done: bool) {
        let chunk = &mut self.chunks[id.0 as usize];
        assert!(chunk.resetting, "a reset of {id:?} ended that never began");
        chunk.resetting = false;
        if done {
            let was_open = chunk.state == ChunkState::Open;
            chunk.state = ChunkState::Free;
            chunk.write_pointer = 0;
            chunk.wear += 1;
            self.open -= u32::from(was_open);
        }
    }

    /// Whether the chunk may be finished now.
    pub(crate) fn check_finish(&mut self, id: ChunkId) -> Result<(), MediaError> {
        let chunk = self.chunk("finish", id, 0)?;
        let sector = chunk.write_pointer;
        let rule = |reason| Err(MediaError::Rule { operation: "finish", chunk: id, sector, reason });
        if chunk.state != ChunkState::Open || chunk.resetting {
            return rule("only an open chunk can be finished");
        }
        if chunk.writes_in_flight > 0 {
            return rule("a write of the chunk is in flight");
        }
        Ok(())
    }

    /// Closes the chunk at its write pointer.
    pub(crate) fn finish(&mut self, id: ChunkId) {
        self.set(id, ChunkState::Closed, self.chunks[id.0 as usize].write_pointer);
    }

    /// Sets what the device says of a chunk.
    pub(crate) fn set(&mut self, id: ChunkId, state: ChunkState, write_pointer: u32) {
        let chunk = &mut self.chunks[id.0 as usize];
        let was_open = chunk.state == ChunkState::Open;
        chunk.state = state;
        chunk.write_pointer = write_pointer;
        self.open = self.open + u32::from(state == ChunkState::Open) - u32::from(was_open);
    }

    /// Forgets operations in flight: the host that submitted them is gone.
    pub(crate) fn forget_in_flight(&mut self) {
        for chunk in &mut self.chunks {
            chunk.writes_in_flight = 0;
            chunk.resetting = false;
        }
    }

    /// Whether nothing was admitted that has not completed and may still change a chunk.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.chunks.iter().all(|chunk| chunk.writes_in_flight == 0 && !chunk.resetting)
    }

    /// State of one chunk that exists.
    pub(crate) fn state(&self, id: ChunkId) -> ChunkState {
        self.chunks[id.0 as usize].state
    }

    /// Whether a write of a chunk that exists was admitted and has not completed.
    pub(crate) fn is_written(&self, id: ChunkId) -> bool {
        self.chunks[id.0 as usize].writes_in_flight > 0
    }

    /// Write pointer of one chunk that exists.
    pub(crate) fn write_pointer(&self, id: ChunkId) -> u32 {
        self.chunks[id.0 as usize].write_pointer
    }

    fn chunk(&mut self, operation: &'static str, id: ChunkId, sector: u32) -> Result<&mut Chunk, MediaError> {
        match self.chunks.get_mut(id.0 as usize) {
            None => Err(MediaError::Rule { operation, chunk: id, sector, reason: "there is no such chunk" }),
            Some(chunk) if chunk.state == ChunkState::Offline => Err(MediaError::Offline { chunk: id }),
            Some(chunk) => Ok(chunk),
        }
    }
}

/// `bytes` in sectors, if they are a positive number of whole ones.
fn whole_sectors(geometry: &Geometry, bytes: usize) -> Option<u32> {
    let sector_bytes = geometry.sector_bytes as usize;
    if bytes == 0 || !bytes.is_multiple_of(sector_bytes) {
        return None;
    }
    u32::try_from(bytes / sector_bytes).ok()
}

//! Where on a slice the next read and the next write go.
//!
//! Writes fill one chunk after the other, in turn over the slice, as a log does; reads are spread evenly over all
//! chunks but the one being filled. A chunk is taken for writing only when nothing is in flight on it, so that its
//! reset breaks no rule of the media.
//!
//! Invariants:
//! - At the start every chunk is written to its end.
//! - An operation occupies one chunk from [`Chunks::begin_read`] or [`Chunks::begin_write`] to [`Chunks::end`].
//! - With at least two chunks more than operations in flight there always is one to take and one to read.

use rand::{Rng, RngExt};
use terrane_ocssd::ChunkId;

/// Where a write goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// The chunk.
    pub(crate) chunk: ChunkId,
    /// It is new: it must be reset before it is written.
    pub(crate) reset: bool,
}

/// The chunks of one slice, for operations of one size.
#[derive(Debug)]
pub(crate) struct Chunks {
    /// Operations in flight, for each chunk.
    in_flight: Vec<u32>,
    /// Operations of this size that fit into a chunk.
    slots: u32,
    /// Sectors of one operation.
    sectors: u32,
    /// The chunk being filled, and the writes it still has room for.
    open: Option<(u32, u32)>,
    /// Where the search for the next chunk begins.
    next: u32,
}

impl Chunks {
    /// `count` chunks of `chunk_sectors`, for operations of `sectors`.
    ///
    /// # Panics
    /// If an operation does not fit into a chunk, or there are fewer than two chunks.
    pub(crate) fn new(count: u32, chunk_sectors: u32, sectors: u32) -> Self {
        assert!(sectors > 0 && sectors <= chunk_sectors && count >= 2, "the slice fits the operations");
        let slots = chunk_sectors / sectors;
        Chunks { in_flight: vec![0; count as usize], slots, sectors, open: None, next: 0 }
    }

    /// Takes the place of a read: a chunk and a sector within it.
    pub(crate) fn begin_read(&mut self, rng: &mut impl Rng) -> (ChunkId, u32) {
        let count = self.in_flight.len() as u32;
        let chunk = match self.open {
            // One less to choose from; those behind the open one move up.
            Some((open, _)) => {
                let chosen = rng.random_range(0..count - 1);
                chosen + u32::from(chosen >= open)
            }
            None => rng.random_range(0..count),
        };
        self.in_flight[chunk as usize] += 1;
        (ChunkId(chunk), rng.random_range(0..self.slots) * self.sectors)
    }

    /// Takes the place of a write. `None`: something is in flight on every chunk.
    pub(crate) fn begin_write(&mut self) -> Option<Place> {
        let (chunk, reset) = match &mut self.open {
            Some((chunk, room)) if *room > 0 => {
                *room -= 1;
                (*chunk, false)
            }
            full => {
                let count = self.in_flight.len() as u32;
                let chunk = (0..count)
                    .map(|step| (self.next + step) % count)
                    .find(|chunk| self.in_flight[*chunk as usize] == 0)?;
                *full = Some((chunk, self.slots - 1));
                self.next = (chunk + 1) % count;
                (chunk, true)
            }
        };
        self.in_flight[chunk as usize] += 1;
        Some(Place { chunk: ChunkId(chunk), reset })
    }

    /// An operation on the chunk ended.
    pub(crate) fn end(&mut self, chunk: ChunkId) {
        self.in_flight[chunk.0 as usize] -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_pcg::Pcg64Mcg;

    fn write(chunks: &mut Chunks) -> (u32, bool) {
        let place = chunks.begin_write().unwrap();
        (place.chunk.0, place.reset)
    }

    #[test]
    fn writes_fill_one_chunk_after_the_other_in_turn() {
        // Seven sectors hold two writes of three.
        let mut chunks = Chunks::new(3, 7, 3);
        let mut places = Vec::new();
        for _ in 0..8 {
            let place = write(&mut chunks);
            chunks.end(ChunkId(place.0));
            places.push(place);
        }
        let lap = [(0, true), (0, false), (1, true), (1, false), (2, true), (2, false)];
        assert_eq!(places[..6], lap);
        assert_eq!(places[6..], lap[..2]);
    }

    #[test]
    fn a_chunk_in_use_is_passed_over() {
        let mut chunks = Chunks::new(3, 1, 1);
        assert_eq!(write(&mut chunks), (0, true));
        assert_eq!(write(&mut chunks), (1, true));
        chunks.end(ChunkId(0));
        assert_eq!(write(&mut chunks), (2, true));
        assert_eq!(write(&mut chunks), (0, true));
        assert_eq!(chunks.begin_write(), None, "all are in use");
        chunks.end(ChunkId(1));
        assert_eq!(write(&mut chunks), (1, true));
    }

    #[test]
    fn reads_are_spread_over_everything_but_the_open_chunk() {
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let mut chunks = Chunks::new(4, 9, 2);
        let mut seen = |chunks: &mut Chunks| {
            let mut counts = [[0_u32; 9]; 4];
            for _ in 0..16_000 {
                let (chunk, sector) = chunks.begin_read(&mut rng);
                counts[chunk.0 as usize][sector as usize] += 1;
                chunks.end(chunk);
            }
            counts
        };
        let all = seen(&mut chunks);
        let (first, second) = (write(&mut chunks), write(&mut chunks));
        assert_eq!((first, second), ((0, true), (0, false)));
        let rest = seen(&mut chunks);
        for (chunk, (all, rest)) in all.into_iter().zip(rest).enumerate() {
            for (sector, (all, rest)) in all.into_iter().zip(rest).enumerate() {
                // Four slots of two sectors; the last sector belongs to none.
                let slot = sector % 2 == 0 && sector < 8;
                assert_eq!(all > 800, slot, "{chunk} {sector}: {all}");
                assert_eq!(rest > 1_000, slot && chunk != 0, "{chunk} {sector}: {rest}");
                assert!(slot || (all, rest) == (0, 0));
            }
        }
        assert!(rest[0].iter().all(|count| *count == 0), "the open chunk is not read");
    }
}

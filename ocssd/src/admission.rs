//! Admission: what the host's rules let through to a device that does not enforce them, and the count of it.
//!
//! Invariants:
//! - What is refused leaves no trace: it is not counted, and no chunk changes.
//! - What was let in is under way until its end is told to the [table](ChunkTable), which a dropped future never does.

use std::cell::{Cell, RefCell, RefMut};

use crate::chunk_table::ChunkTable;
use crate::geometry::{ChunkId, Geometry};
use crate::media::{ChunkInfo, MediaCounters, MediaError};

/// What every [`Media`](crate::Media) has in common whose writes the host admits, whatever is beneath: it has an `admission`, and
/// a `place` that takes a write from there to its end and says where it went.
macro_rules! admitted_media {
    () => {
        fn geometry(&self) -> &Geometry {
            self.admission.geometry()
        }

        async fn report(&self) -> Result<Vec<ChunkInfo>, MediaError> {
            Ok(self.admission.report())
        }

        async fn write(
            &self,
            chunk: ChunkId,
            sector: u32,
            buf: AlignedBuf,
            durability: Durability,
        ) -> (Result<(), MediaError>, AlignedBuf) {
            let (result, buf) = self.place("write", chunk, Some(sector), buf, durability).await;
            (result.map(drop), buf)
        }

        async fn append(
            &self,
            chunk: ChunkId,
            buf: AlignedBuf,
            durability: Durability,
        ) -> (Result<u32, MediaError>, AlignedBuf) {
            self.place("append", chunk, None, buf, durability).await
        }

        fn counters(&self) -> MediaCounters {
            self.admission.counters()
        }
    };
}

pub(crate) use admitted_media;

/// The chunks of one slice, and what was done to them.
#[derive(Debug)]
pub(crate) struct Admission {
    geometry: Geometry,
    table: RefCell<ChunkTable>,
    counters: Cell<MediaCounters>,
}

impl Admission {
    /// To the chunks of `table`, which are of this geometry.
    pub(crate) fn new(geometry: Geometry, table: ChunkTable) -> Self {
        Self { geometry, table: RefCell::new(table), counters: Cell::default() }
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The chunks, to tell how something ended. Not to be held across an await.
    pub(crate) fn table(&self) -> RefMut<'_, ChunkTable> {
        self.table.borrow_mut()
    }

    pub(crate) fn report(&self) -> Vec<ChunkInfo> {
        self.table.borrow().report()
    }

    pub(crate) fn counters(&self) -> MediaCounters {
        self.counters.get()
    }

    /// Whether nothing is under way that may still change a chunk, a write or a reset.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.table.borrow().is_at_rest()
    }

    /// Lets a write in. Returns its first sector and its length in sectors.
    pub(crate) fn write(
        &self,
        operation: &'static str,
        chunk: ChunkId,
        sector: Option<u32>,
        bytes: usize,
    ) -> Result<(u32, u32), MediaError> {
        let admitted = self.table().begin_write(operation, chunk, sector, bytes)?;
        self.count(|counters| {
            counters.writes += 1;
            counters.written_bytes += bytes as u64;
        });
        Ok(admitted)
    }

    /// Lets a read in. Returns its length in sectors.
    pub(crate) fn read(&self, chunk: ChunkId, sector: u32, bytes: usize) -> Result<u32, MediaError> {
        let sectors = self.table().check_read(chunk, sector, bytes)?;
        self.count(|counters| {
            counters.reads += 1;
            counters.read_bytes += bytes as u64;
        });
        Ok(sectors)
    }

    /// Lets a reset in.
    pub(crate) fn reset(&self, chunk: ChunkId) -> Result<(), MediaError> {
        self.table().begin_reset(chunk)?;
        self.count(|counters| counters.resets += 1);
        Ok(())
    }

    /// Counts a flush, which no rule refuses.
    pub(crate) fn flush(&self) {
        self.count(|counters| counters.flushes += 1);
    }

    fn count(&self, change: impl FnOnce(&mut MediaCounters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_let_in_counts() {
        let geometry = Geometry {
            groups: 1,
            parallel_units: 1,
            chunks: 2,
            chunk_sectors: 8,
            sector_bytes: 512,
            ws_min: 1,
            ws_opt: 1,
            mw_cunits: 0,
            max_open: 0,
        };
        let admission = Admission::new(geometry, ChunkTable::all_free(geometry));
        let chunk = ChunkId(1);
        assert!(admission.write("write", chunk, Some(3), 512).is_err());
        assert!(admission.read(chunk, 0, 512).is_err());
        assert!(admission.reset(ChunkId(2)).is_err());
        assert_eq!(admission.counters(), MediaCounters::default());
        assert!(admission.is_at_rest());

        assert_eq!(admission.write("append", chunk, None, 1024).unwrap(), (0, 2));
        assert!(!admission.is_at_rest(), "a write is under way");
        assert!(admission.reset(chunk).is_err());
        admission.table().end_write(chunk);
        assert_eq!(admission.read(chunk, 1, 512).unwrap(), 1);
        admission.reset(chunk).unwrap();
        assert!(!admission.is_at_rest(), "a reset is under way");
        admission.table().end_reset(chunk, false);
        assert!(admission.is_at_rest());
        admission.flush();
        let counters = MediaCounters {
            written_bytes: 1024,
            read_bytes: 512,
            writes: 1,
            reads: 1,
            flushes: 1,
            resets: 1,
        };
        assert_eq!(admission.counters(), counters);
    }
}

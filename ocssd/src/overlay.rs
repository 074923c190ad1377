//! A medium that changes nothing: what is done to it stays in memory, before another medium that is only read.
//!
//! For looking at a device. Whoever opens it may repair, finish and reset what they find, as a start does, and sees that it
//! is done; the device has nothing of it.
//!
//! Invariants:
//! - Of the medium behind, only the report, reads and what it says of itself are asked for.
//! - What was written here is read back; nothing of it is durable, whatever a write or a flush says.
//! - Sectors that the medium behind hides of an open chunk stay hidden from it: they are unreadable once the chunk is
//!   finished here.

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::admission::Admission;
use crate::buffer::AlignedBuf;
use crate::chunk_table::ChunkTable;
use crate::geometry::{ChunkId, Geometry};
use crate::media::{ChunkInfo, ChunkState, Durability, Media, MediaCounters, MediaError};

/// Any medium, of which nothing is changed. Memory: what is written to it.
#[derive(Debug)]
pub struct Overlay<M: Media> {
    media: M,
    admission: Admission,
    /// Resets before those that are counted here, by chunk.
    wear: Vec<u32>,
    /// Chunks that are not as they are behind.
    changed: RefCell<BTreeMap<ChunkId, Changed>>,
}

/// Content of a chunk that was written, finished or reset here.
#[derive(Debug, Default)]
struct Changed {
    /// Sectors that are read from the medium behind.
    behind: u32,
    /// Sectors behind these that it has, but does not give.
    hidden: u32,
    /// What was written here after them.
    bytes: Vec<u8>,
}

impl<M: Media> Overlay<M> {
    /// Shows `media` as it is now.
    pub async fn new(media: M) -> Result<Self, MediaError> {
        let geometry = *media.geometry();
        let mut table = ChunkTable::all_free(geometry);
        let mut wear = Vec::new();
        for info in media.report().await? {
            table.set(info.id, info.state, info.write_pointer);
            wear.push(info.wear);
        }
        Ok(Self { media, admission: Admission::new(geometry, table), wear, changed: RefCell::default() })
    }

    /// What the chunk holds, as of now, to be changed.
    fn change(&self, chunk: ChunkId, info: &ChunkInfo, change: impl FnOnce(&mut Changed)) {
        let mut changed = self.changed.borrow_mut();
        change(changed.entry(chunk).or_insert_with(|| {
            let open = info.state == ChunkState::Open;
            let hidden = if open { self.geometry().mw_cunits.min(info.write_pointer) } else { 0 };
            Changed { behind: info.write_pointer - hidden, hidden, bytes: Vec::new() }
        }));
    }

    fn info(&self, chunk: ChunkId) -> ChunkInfo {
        let table = self.admission.table();
        let (state, write_pointer) = (table.state(chunk), table.write_pointer(chunk));
        ChunkInfo { id: chunk, state, write_pointer, wear: self.wear[chunk.0 as usize] }
    }

    /// Where a chunk that is not as it is behind goes on here: sectors that are read from behind, and the first that is kept
    /// here. Between them are those that are hidden.
    fn borders(&self, chunk: ChunkId) -> Option<(u32, u32)> {
        self.changed.borrow().get(&chunk).map(|content| (content.behind, content.behind + content.hidden))
    }

    /// Copies what was written here, from so many sectors on.
    fn copy_kept(&self, chunk: ChunkId, sectors: u32, buf: &mut [u8]) {
        let from = sectors as usize * self.geometry().sector_bytes as usize;
        let changed = self.changed.borrow();
        buf.copy_from_slice(&changed[&chunk].bytes[from..from + buf.len()]);
    }

    fn keep(
        &self,
        operation: &'static str,
        chunk: ChunkId,
        sector: Option<u32>,
        buf: &[u8],
    ) -> Result<u32, MediaError> {
        let before = (chunk.0 < self.geometry().chunk_count()).then(|| self.info(chunk));
        let (start, _) = self.admission.write(operation, chunk, sector, buf.len())?;
        self.admission.table().end_write(chunk);
        let before = before.expect("a chunk that does not exist is not written");
        self.change(chunk, &before, |content| content.bytes.extend_from_slice(buf));
        Ok(start)
    }
}

impl<M: Media> Media for Overlay<M> {
    fn geometry(&self) -> &Geometry {
        self.admission.geometry()
    }

    async fn report(&self) -> Result<Vec<ChunkInfo>, MediaError> {
        let mut report = self.admission.report();
        report.iter_mut().zip(&self.wear).for_each(|(info, before)| info.wear += before);
        Ok(report)
    }

    async fn write(
        &self,
        chunk: ChunkId,
        sector: u32,
        buf: AlignedBuf,
        _durability: Durability,
    ) -> (Result<(), MediaError>, AlignedBuf) {
        (self.keep("write", chunk, Some(sector), &buf).map(drop), buf)
    }

    async fn append(
        &self,
        chunk: ChunkId,
        buf: AlignedBuf,
        _durability: Durability,
    ) -> (Result<u32, MediaError>, AlignedBuf) {
        (self.keep("append", chunk, None, &buf), buf)
    }

    async fn read(
        &self,
        chunk: ChunkId,
        sector: u32,
        mut buf: AlignedBuf,
    ) -> (Result<(), MediaError>, AlignedBuf) {
        let sectors = match self.admission.read(chunk, sector, buf.len()) {
            Ok(sectors) => sectors,
            Err(error) => return (Err(error), buf),
        };
        let (behind, first_here) = match self.borders(chunk) {
            Some((behind, first_here)) if sector + sectors > behind => (behind, first_here),
            _ => return self.media.read(chunk, sector, buf).await,
        };
        if behind < first_here && sector < first_here {
            return (Err(MediaError::Unreadable { chunk, sector: sector.max(behind) }), buf);
        }
        let mut front_bytes = 0;
        if sector < first_here {
            front_bytes = ((first_here - sector) * self.geometry().sector_bytes) as usize;
            let (result, front) = self.media.read(chunk, sector, AlignedBuf::zeroed(front_bytes)).await;
            if let Err(error) = result {
                return (Err(error), buf);
            }
            buf[..front_bytes].copy_from_slice(&front);
        }
        self.copy_kept(chunk, sector.saturating_sub(first_here), &mut buf[front_bytes..]);
        (Ok(()), buf)
    }

    fn protects_buffer(&self) -> bool {
        self.media.protects_buffer()
    }

    async fn reset(&self, chunk: ChunkId) -> Result<(), MediaError> {
        self.admission.reset(chunk)?;
        self.admission.table().end_reset(chunk, true);
        self.changed.borrow_mut().insert(chunk, Changed::default());
        Ok(())
    }

    async fn finish(&self, chunk: ChunkId) -> Result<(), MediaError> {
        self.admission.table().check_finish(chunk)?;
        let before = self.info(chunk);
        self.change(chunk, &before, |_| {});
        self.admission.table().finish(chunk);
        Ok(())
    }

    async fn flush(&self) -> Result<(), MediaError> {
        self.admission.flush();
        Ok(())
    }

    fn counters(&self) -> MediaCounters {
        self.admission.counters()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::sim::{SimMedia, SimOptions};

    const GEOMETRY: Geometry = Geometry {
        groups: 1,
        parallel_units: 1,
        chunks: 3,
        chunk_sectors: 8,
        sector_bytes: 512,
        ws_min: 1,
        ws_opt: 1,
        mw_cunits: 2,
        max_open: 0,
    };

    fn now<T>(future: impl Future<Output = T>) -> T {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(out) => out,
            Poll::Pending => panic!("the medium completes at once"),
        }
    }

    fn write(media: &impl Media, chunk: u32, sector: u32, sectors: usize, byte: u8) {
        let mut buf = AlignedBuf::zeroed(sectors * 512);
        buf.fill(byte);
        now(media.write(ChunkId(chunk), sector, buf, Durability::Durable)).0.unwrap();
    }

    /// The first byte of each sector.
    fn read(media: &impl Media, chunk: u32, sector: u32, sectors: usize) -> Result<Vec<u8>, MediaError> {
        let (result, buf) = now(media.read(ChunkId(chunk), sector, AlignedBuf::zeroed(sectors * 512)));
        result.map(|()| buf.chunks(512).map(|sector| sector[0]).collect())
    }

    /// Everything that may be asked of a medium is done, and the one behind is as it was.
    #[test]
    fn what_is_done_stays_here() {
        let options = SimOptions { conventional: false, ..SimOptions::default() };
        let media = SimMedia::new(GEOMETRY, options);
        write(&media, 0, 0, 8, 1);
        write(&media, 1, 0, 5, 2);
        let (report, counters) = (now(media.report()).unwrap(), media.counters());

        let overlay = now(Overlay::new(media.clone())).unwrap();
        assert_eq!(now(overlay.report()).unwrap(), report);
        assert_eq!(read(&overlay, 1, 0, 3).unwrap(), [2; 3]);
        assert!(matches!(read(&overlay, 1, 0, 4), Err(MediaError::Rule { .. })), "hidden while it is open");
        now(overlay.finish(ChunkId(1))).unwrap();
        assert_eq!(read(&overlay, 1, 0, 3).unwrap(), [2; 3]);
        let hidden = read(&overlay, 1, 2, 3);
        assert!(matches!(hidden, Err(MediaError::Unreadable { sector: 3, .. })), "{hidden:?}");
        now(overlay.reset(ChunkId(0))).unwrap();
        assert!(read(&overlay, 0, 0, 1).is_err(), "nothing of an earlier life");
        write(&overlay, 0, 0, 8, 3);
        write(&overlay, 2, 0, 4, 4);
        now(overlay.flush()).unwrap();
        assert_eq!(read(&overlay, 0, 0, 8).unwrap(), [3; 8]);
        assert_eq!(read(&overlay, 2, 1, 1).unwrap(), [4; 1]);
        let state = |chunk: usize| {
            let info = now(overlay.report()).unwrap()[chunk];
            (info.state, info.write_pointer, info.wear - report[chunk].wear)
        };
        assert_eq!(state(0), (ChunkState::Closed, 8, 1));
        assert_eq!(state(1), (ChunkState::Closed, 5, 0));
        assert_eq!(state(2), (ChunkState::Open, 4, 0));

        assert_eq!(now(media.report()).unwrap(), report);
        let after = MediaCounters { reads: 0, read_bytes: 0, ..media.counters() };
        assert_eq!(after, MediaCounters { reads: 0, read_bytes: 0, ..counters });
        assert_eq!(read(&media, 0, 0, 8).unwrap(), [1; 8]);
    }
}

//! A model of a device with placement handles: into which reclaim unit every write goes.
//!
//! A handle fills one unit after the other with whatever is written with it, in the order of submission. It is sent to an empty
//! unit when a chunk begins, unless another chunk is being written with it just then, as [`terrane_ocssd::fdp`] does.
//! Each class has a handle of its own here, and so have the chunks of which nothing is said.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use terrane_ocssd::{
    AlignedBuf, ChunkId, ChunkInfo, Durability, Geometry, LifetimeClass, Media, MediaCounters, MediaError,
};

/// Of what a chunk was from one reset to the next.
#[derive(Debug, Clone)]
pub(crate) struct ChunkLife {
    pub(crate) chunk: ChunkId,
    /// What was said of it before its first write.
    pub(crate) class: Option<LifetimeClass>,
    /// The reclaim units that hold a part of it.
    pub(crate) units: BTreeSet<u32>,
}

#[derive(Debug, Default)]
struct Handle {
    unit: u32,
    sectors_left: u32,
    /// Chunks that are being written with it.
    open: u32,
}

#[derive(Debug, Default)]
struct Units {
    handles: BTreeMap<Option<LifetimeClass>, Handle>,
    units: u32,
    expected: BTreeMap<ChunkId, LifetimeClass>,
    /// By chunk that is being written: its life.
    written: BTreeMap<ChunkId, usize>,
    lives: Vec<ChunkLife>,
}

impl Units {
    fn write(&mut self, chunk: ChunkId, mut sectors: u32, unit_sectors: u32) {
        let Self { handles, units, expected, written, lives } = self;
        let class = expected.get(&chunk).copied();
        let handle = handles.entry(class).or_default();
        let mut next = |handle: &mut Handle| {
            *units += 1;
            (handle.unit, handle.sectors_left) = (*units, unit_sectors);
        };
        let life = *written.entry(chunk).or_insert_with(|| {
            handle.open += 1;
            if handle.open == 1 && handle.sectors_left != unit_sectors {
                next(handle);
            }
            lives.push(ChunkLife { chunk, class, units: BTreeSet::new() });
            lives.len() - 1
        });
        while sectors > 0 {
            if handle.sectors_left == 0 {
                next(handle);
            }
            lives[life].units.insert(handle.unit);
            let now = sectors.min(handle.sectors_left);
            handle.sectors_left -= now;
            sectors -= now;
        }
    }

    /// The chunk takes no more writes.
    fn end(&mut self, chunk: ChunkId) {
        if let Some(life) = self.written.remove(&chunk)
            && let Some(handle) = self.handles.get_mut(&self.lives[life].class)
        {
            handle.open -= 1;
        }
    }
}

/// A medium whose writes are placed into reclaim units as large as its chunks. Clones share it.
#[derive(Clone)]
pub(crate) struct PlacedMedia<M> {
    media: M,
    units: Rc<RefCell<Units>>,
    fails_finish: Rc<Cell<bool>>,
}

impl<M: Media> PlacedMedia<M> {
    pub(crate) fn over(media: M) -> Self {
        Self { media, units: Rc::default(), fails_finish: Rc::default() }
    }

    /// What was written since, in the order in which it was begun.
    pub(crate) fn lives(&self) -> Vec<ChunkLife> {
        self.units.borrow().lives.clone()
    }

    /// From now on no chunk can be finished.
    pub(crate) fn fail_finish(&self) {
        self.fails_finish.set(true);
    }
}

impl<M: Media> Media for PlacedMedia<M> {
    fn geometry(&self) -> &Geometry {
        self.media.geometry()
    }

    async fn report(&self) -> Result<Vec<ChunkInfo>, MediaError> {
        self.media.report().await
    }

    async fn write(
        &self,
        chunk: ChunkId,
        sector: u32,
        buf: AlignedBuf,
        durability: Durability,
    ) -> (Result<(), MediaError>, AlignedBuf) {
        let Geometry { chunk_sectors, sector_bytes, .. } = *self.geometry();
        let sectors = buf.len() as u32 / sector_bytes;
        self.units.borrow_mut().write(chunk, sectors, chunk_sectors);
        let (result, buf) = self.media.write(chunk, sector, buf, durability).await;
        if sector + sectors == chunk_sectors {
            self.units.borrow_mut().end(chunk);
        }
        (result, buf)
    }

    async fn append(
        &self,
        chunk: ChunkId,
        buf: AlignedBuf,
        _durability: Durability,
    ) -> (Result<u32, MediaError>, AlignedBuf) {
        let reason = "the engine writes where it wants to";
        (Err(MediaError::Rule { operation: "append", chunk, sector: 0, reason }), buf)
    }

    async fn read(
        &self,
        chunk: ChunkId,
        sector: u32,
        buf: AlignedBuf,
    ) -> (Result<(), MediaError>, AlignedBuf) {
        self.media.read(chunk, sector, buf).await
    }

    fn expect_lifetime(&self, chunk: ChunkId, class: LifetimeClass) {
        self.units.borrow_mut().expected.insert(chunk, class);
    }

    async fn reset(&self, chunk: ChunkId) -> Result<(), MediaError> {
        self.media.reset(chunk).await?;
        let mut units = self.units.borrow_mut();
        units.end(chunk);
        units.expected.remove(&chunk);
        Ok(())
    }

    async fn finish(&self, chunk: ChunkId) -> Result<(), MediaError> {
        if self.fails_finish.get() {
            let source = std::io::ErrorKind::Other.into();
            return Err(MediaError::Io { operation: "finish", chunk, sector: 0, source });
        }
        self.media.finish(chunk).await?;
        self.units.borrow_mut().end(chunk);
        Ok(())
    }

    async fn flush(&self) -> Result<(), MediaError> {
        self.media.flush().await
    }

    fn counters(&self) -> MediaCounters {
        self.media.counters()
    }
}

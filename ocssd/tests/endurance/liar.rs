//! Media that break one promise each, to see that the model finds them out: without these tests a model that
//! checks nothing would pass.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use terrane_ocssd::sim::Injected;
use terrane_ocssd::{
    AlignedBuf, ChunkId, ChunkInfo, ChunkState, Durability, Geometry, Media, MediaCounters, MediaError,
    Notice,
};

use crate::driver::run;
use crate::rig::{Promises, Rig, block_on};
use crate::sim::SimRig;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    /// None, to be sure that it is the lie that is found.
    Nothing,
    /// A flush covers nothing.
    Flush,
    /// A durable write is only cached.
    Durable,
    /// A chunk shows what it held before its reset.
    Reset,
    /// The sectors that a cut may take stay below the write pointer, as garbage.
    Hidden,
}

/// A medium that lies.
struct Liar {
    media: Rc<<SimRig as Rig>::Media>,
    lie: Lie,
    /// What it shows in place of its content.
    shown: RefCell<BTreeMap<(ChunkId, u32), Vec<u8>>>,
}

struct LiarRig {
    rig: SimRig,
    media: Rc<Liar>,
}

impl LiarRig {
    fn new(seed: u64, lie: Lie) -> Self {
        let rig = SimRig::tracking(seed);
        let media = Liar { media: rig.media(), lie, shown: RefCell::default() };
        Self { rig, media: Rc::new(media) }
    }

    fn reopen(&mut self) {
        let Liar { lie, ref shown, .. } = *self.media;
        self.media = Rc::new(Liar { media: self.rig.media(), lie, shown: RefCell::new(shown.take()) });
    }
}

impl Rig for LiarRig {
    type Media = Liar;

    fn media(&self) -> Rc<Liar> {
        Rc::clone(&self.media)
    }

    fn promises(&self) -> Promises {
        self.rig.promises()
    }

    fn crash_after(&mut self, n: u64) {
        self.rig.crash_after(n);
    }

    fn power_cut(&mut self) {
        self.rig.power_cut();
    }

    fn power_on(&mut self) {
        self.rig.power_on();
        self.reopen();
        self.media.forget_hidden();
    }

    fn restart(&mut self) {
        self.rig.restart();
        self.reopen();
    }

    fn take_faults(&mut self) -> Vec<Injected> {
        self.rig.take_faults()
    }
}

impl Liar {
    fn forget_hidden(&self) {
        if self.lie != Lie::Hidden {
            return;
        }
        let Geometry { mw_cunits, sector_bytes, .. } = *self.geometry();
        for info in block_on(self.media.report()).expect("power is on") {
            if info.state == ChunkState::Open {
                for sector in info.write_pointer.saturating_sub(mw_cunits)..info.write_pointer {
                    self.shown.borrow_mut().insert((info.id, sector), vec![0; sector_bytes as usize]);
                }
            }
        }
    }

    /// What the chunk shows from its reset on.
    async fn remember(&self, chunk: ChunkId) {
        self.shown.borrow_mut().retain(|(shown, _), _| *shown != chunk);
        if self.lie != Lie::Reset {
            return;
        }
        let Geometry { chunk_sectors, sector_bytes, .. } = *self.geometry();
        for sector in 0..chunk_sectors {
            let buf = AlignedBuf::zeroed(sector_bytes as usize);
            if let (Ok(()), buf) = self.media.read(chunk, sector, buf).await {
                self.shown.borrow_mut().insert((chunk, sector), buf.to_vec());
            }
        }
    }
}

impl Media for Liar {
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
        let durability = if self.lie == Lie::Durable { Durability::Volatile } else { durability };
        self.media.write(chunk, sector, buf, durability).await
    }

    async fn append(
        &self,
        chunk: ChunkId,
        buf: AlignedBuf,
        durability: Durability,
    ) -> (Result<u32, MediaError>, AlignedBuf) {
        let durability = if self.lie == Lie::Durable { Durability::Volatile } else { durability };
        self.media.append(chunk, buf, durability).await
    }

    async fn read(
        &self,
        chunk: ChunkId,
        sector: u32,
        buf: AlignedBuf,
    ) -> (Result<(), MediaError>, AlignedBuf) {
        let (result, mut buf) = self.media.read(chunk, sector, buf).await;
        let sector_bytes = self.geometry().sector_bytes as usize;
        for (sector, bytes) in (sector..).zip(buf.chunks_mut(sector_bytes)) {
            if let Some(shown) = self.shown.borrow().get(&(chunk, sector)) {
                bytes.copy_from_slice(shown);
            }
        }
        (result, buf)
    }

    fn protects_buffer(&self) -> bool {
        self.media.protects_buffer()
    }

    fn take_notices(&self) -> Vec<Notice> {
        self.media.take_notices()
    }

    async fn reset(&self, chunk: ChunkId) -> Result<(), MediaError> {
        self.remember(chunk).await;
        self.media.reset(chunk).await
    }

    async fn finish(&self, chunk: ChunkId) -> Result<(), MediaError> {
        self.media.finish(chunk).await
    }

    async fn flush(&self) -> Result<(), MediaError> {
        if self.lie == Lie::Flush { Ok(()) } else { self.media.flush().await }
    }

    fn counters(&self) -> MediaCounters {
        self.media.counters()
    }
}

/// Runs of 40 in which the lie is found.
fn found(lie: Lie) -> usize {
    (0..40)
        .filter(|seed| catch_unwind(AssertUnwindSafe(|| run(*seed, |seed| LiarRig::new(seed, lie)))).is_err())
        .count()
}

#[test]
fn lies_are_found() {
    assert_eq!(found(Lie::Nothing), 0);
    for lie in [Lie::Flush, Lie::Durable, Lie::Reset, Lie::Hidden] {
        let times = found(lie);
        assert!(times >= 4, "{lie:?} was found in {times} of 40 runs");
    }
}

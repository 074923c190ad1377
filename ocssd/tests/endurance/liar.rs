//! Media that break one promise each, to see that the model finds them out: without these tests a model that
//! checks nothing would pass. Some of them lie beneath a volume, which cannot know, but whose host must.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use terrane_ocssd::sim::Injected;
use terrane_ocssd::{
    AlignedBuf, ChunkId, ChunkInfo, ChunkState, Durability, FaultRates, Geometry, Media, MediaCounters,
    MediaError, Notice, SimMedia,
};

use crate::driver::run;
use crate::flash::CountedFaults;
use crate::rig::{Promises, Rig, block_on};
use crate::sim::SimRig;
use crate::volume::{Device, VolumeRig};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    /// None, to be sure that it is the lie that is found.
    Nothing,
    /// A flush covers nothing.
    Flush,
    /// One flush of three covers nothing.
    DroppedFlush,
    /// A durable write is only cached.
    Durable,
    /// One write of twelve never happens.
    LostWrite,
    /// The first two sectors of a write change places.
    SwappedSectors,
    /// A chunk shows what it held before its reset.
    Reset,
    /// One reset of four is not done: the chunk keeps its data, and its write pointer.
    NoReset,
    /// A chunk is not closed.
    NoFinish,
    /// One read of six shows what the chunk held before its reset.
    StaleRead,
    /// The sectors that a cut may take stay below the write pointer, as garbage.
    Hidden,
    /// After a cut the last sectors below the write pointer are garbage, those of closed chunks too.
    LostTail,
    /// After a restart of the host the write pointers of open chunks are too low.
    PointerBack,
    /// After a cut the write pointers of open chunks are too high.
    PointerAhead,
}

/// A medium that lies. A value is a handle.
#[derive(Clone)]
struct Liar {
    media: SimMedia,
    lie: Lie,
    kept: Rc<RefCell<Kept>>,
}

/// What it needs for that.
#[derive(Default)]
struct Kept {
    /// What it shows in place of its content.
    shown: BTreeMap<(ChunkId, u32), Vec<u8>>,
    /// What a stale read shows.
    stale: BTreeMap<(ChunkId, u32), Vec<u8>>,
    flushes: u32,
    writes: u32,
    resets: u32,
    reads: u32,
    /// The next report is wrong.
    misreports: bool,
}

/// Counts, and says whether it is the turn of one in so many.
fn is_due(count: &mut u32, of: u32) -> bool {
    *count += 1;
    count.is_multiple_of(of)
}

impl Liar {
    fn new(media: SimMedia, lie: Lie) -> Self {
        Self { media, lie, kept: Rc::default() }
    }

    fn power_returned(&self) {
        self.kept.borrow_mut().misreports = self.lie == Lie::PointerAhead;
        let Geometry { mw_cunits, ws_min, sector_bytes, .. } = *self.media.geometry();
        for info in block_on(self.media.report()).expect("power is on") {
            let garbage = match self.lie {
                Lie::Hidden if info.state == ChunkState::Open => mw_cunits,
                Lie::LostTail => ws_min,
                _ => 0,
            };
            for sector in info.write_pointer.saturating_sub(garbage)..info.write_pointer {
                self.kept.borrow_mut().shown.insert((info.id, sector), vec![0; sector_bytes as usize]);
            }
        }
    }

    fn restarted(&self) {
        self.kept.borrow_mut().misreports = self.lie == Lie::PointerBack;
    }

    /// What the chunk shows from its reset on.
    async fn remember(&self, chunk: ChunkId) {
        self.kept.borrow_mut().shown.retain(|(shown, _), _| *shown != chunk);
        if !matches!(self.lie, Lie::Reset | Lie::StaleRead) {
            return;
        }
        let Geometry { chunk_sectors, sector_bytes, .. } = *self.media.geometry();
        for sector in 0..chunk_sectors {
            let buf = AlignedBuf::zeroed(sector_bytes as usize);
            if let (Ok(()), buf) = self.media.read(chunk, sector, buf).await {
                let mut kept = self.kept.borrow_mut();
                let old = if self.lie == Lie::Reset { &mut kept.shown } else { &mut kept.stale };
                old.insert((chunk, sector), buf.to_vec());
            }
        }
    }

    fn distort(&self, buf: &mut AlignedBuf, durability: Durability) -> Durability {
        let sector_bytes = self.media.geometry().sector_bytes as usize;
        match self.lie {
            Lie::Durable => return Durability::Volatile,
            Lie::LostWrite if is_due(&mut self.kept.borrow_mut().writes, 12) => buf.fill(0),
            Lie::SwappedSectors if buf.len() >= 2 * sector_bytes => {
                let (first, second) = buf.split_at_mut(sector_bytes);
                first.swap_with_slice(&mut second[..sector_bytes]);
            }
            _ => {}
        }
        durability
    }
}

impl Media for Liar {
    fn geometry(&self) -> &Geometry {
        self.media.geometry()
    }

    async fn report(&self) -> Result<Vec<ChunkInfo>, MediaError> {
        let mut report = self.media.report().await?;
        if std::mem::take(&mut self.kept.borrow_mut().misreports) {
            let Geometry { ws_min, chunk_sectors, .. } = *self.media.geometry();
            for info in report.iter_mut().filter(|info| info.state == ChunkState::Open) {
                match self.lie {
                    Lie::PointerBack => info.write_pointer -= ws_min,
                    _ if info.write_pointer + ws_min < chunk_sectors => info.write_pointer += ws_min,
                    _ => {}
                }
            }
        }
        Ok(report)
    }

    async fn write(
        &self,
        chunk: ChunkId,
        sector: u32,
        mut buf: AlignedBuf,
        durability: Durability,
    ) -> (Result<(), MediaError>, AlignedBuf) {
        let durability = self.distort(&mut buf, durability);
        self.media.write(chunk, sector, buf, durability).await
    }

    async fn append(
        &self,
        chunk: ChunkId,
        mut buf: AlignedBuf,
        durability: Durability,
    ) -> (Result<u32, MediaError>, AlignedBuf) {
        let durability = self.distort(&mut buf, durability);
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
        let kept = &mut *self.kept.borrow_mut();
        let stale = self.lie == Lie::StaleRead && is_due(&mut kept.reads, 6);
        let shown = if stale { &kept.stale } else { &kept.shown };
        for (sector, bytes) in (sector..).zip(buf.chunks_mut(sector_bytes)) {
            if let Some(shown) = shown.get(&(chunk, sector)) {
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
        if self.lie == Lie::NoReset && is_due(&mut self.kept.borrow_mut().resets, 4) {
            return Ok(());
        }
        self.remember(chunk).await;
        self.media.reset(chunk).await
    }

    async fn finish(&self, chunk: ChunkId) -> Result<(), MediaError> {
        if self.lie == Lie::NoFinish { Ok(()) } else { self.media.finish(chunk).await }
    }

    async fn flush(&self) -> Result<(), MediaError> {
        match self.lie {
            Lie::Flush => Ok(()),
            Lie::DroppedFlush if is_due(&mut self.kept.borrow_mut().flushes, 3) => Ok(()),
            _ => self.media.flush().await,
        }
    }

    fn counters(&self) -> MediaCounters {
        self.media.counters()
    }
}

impl Device for Liar {
    const PADS: bool = SimMedia::PADS;

    fn crash_after(&self, n: u64) {
        self.media.crash_after(n);
    }

    fn power_cut(&self) {
        self.media.power_cut();
    }

    fn has_power(&self) -> bool {
        self.media.has_power()
    }

    fn power_on(&self) {
        self.media.power_on();
        self.power_returned();
    }

    fn restart(&self) {
        self.media.restart();
        self.restarted();
    }

    fn take_faults(&self, _: &mut CountedFaults) -> Vec<Injected> {
        self.media.take_fault_log()
    }

    fn set_fault_rates(&self, rates: FaultRates) {
        self.media.set_fault_rates(rates);
    }

    fn fail_reads_of(&self, chunk: ChunkId, sector: u32) {
        self.media.fail_reads_of(chunk, sector);
    }
}

/// The liar as it is.
struct LiarRig {
    rig: SimRig,
    media: Rc<Liar>,
}

impl LiarRig {
    fn new(seed: u64, lie: Lie) -> Self {
        let rig = SimRig::tracking(seed);
        let media = Rc::new(Liar::new((*rig.media()).clone(), lie));
        Self { rig, media }
    }

    fn reopen(&mut self) {
        let Liar { lie, ref kept, .. } = *self.media;
        let media = (*self.rig.media()).clone();
        self.media = Rc::new(Liar { media, lie, kept: Rc::clone(kept) });
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
        self.media.power_returned();
    }

    fn restart(&mut self) {
        self.rig.restart();
        self.reopen();
        self.media.restarted();
    }

    fn take_faults(&mut self) -> Vec<Injected> {
        self.rig.take_faults()
    }
}

/// Runs of 40 in which the lie is found.
fn found<R: Rig>(create: impl Fn(u64) -> R) -> usize {
    (0..40).filter(|seed| catch_unwind(AssertUnwindSafe(|| run(*seed, &create))).is_err()).count()
}

fn are_found(lies: &[Lie], found: impl Fn(Lie) -> usize) {
    assert_eq!(found(Lie::Nothing), 0);
    for lie in lies {
        let times = found(*lie);
        eprintln!("{lie:?}: found in {times} of 40 runs");
        assert!(times >= 4, "{lie:?} was found in {times} of 40 runs");
    }
}

#[test]
fn lies_are_found() {
    let lies = [
        Lie::Flush,
        Lie::DroppedFlush,
        Lie::Durable,
        Lie::LostWrite,
        Lie::SwappedSectors,
        Lie::Reset,
        Lie::NoReset,
        Lie::NoFinish,
        Lie::StaleRead,
        Lie::Hidden,
        Lie::LostTail,
        Lie::PointerBack,
        Lie::PointerAhead,
    ];
    are_found(&lies, |lie| found(|seed| LiarRig::new(seed, lie)));
}

/// A volume trusts its device, and hands on what that says: its host must notice all the same.
#[test]
fn lies_beneath_a_volume_are_found() {
    let lies = [Lie::Flush, Lie::DroppedFlush, Lie::Durable, Lie::LostWrite, Lie::StaleRead, Lie::LostTail];
    are_found(&lies, |lie| found(|seed| VolumeRig::over(seed, |media| Liar::new(media, lie))));
}

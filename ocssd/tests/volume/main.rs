//! What a volume promises beyond the contract of every medium: chunks that go bad, power cuts, what is remembered.

mod closing;
mod create;
mod exhaustive;
mod faulty;
mod flash;
mod model;
mod races;
mod random;
mod reads;

use std::cell::RefCell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use terrane_ocssd::{ChunkId, Durability, Geometry, Media, MediaError, Volume, VolumeError, VolumeOptions};

use crate::faulty::{Faulty, block_on};
use crate::model::{Model, write};

/// Two units with a buffer of six sectors each; chunks of 32 sectors in units of 4.
pub(crate) fn geometry() -> Geometry {
    Geometry {
        groups: 1,
        parallel_units: 2,
        chunks: 9,
        chunk_sectors: 32,
        sector_bytes: 512,
        ws_min: 2,
        ws_opt: 4,
        mw_cunits: 6,
        max_open: 0,
    }
}

pub(crate) fn options() -> VolumeOptions {
    VolumeOptions { label: b"a label".to_vec(), stripe_units: 0, spare_chunks_per_unit: 3 }
}

/// A volume over a device with faults, and what it must hold. All steps are taken one after the other.
pub(crate) struct Bench {
    pub(crate) device: Faulty,
    pub(crate) volume: Volume<Faulty>,
    pub(crate) model: RefCell<Model>,
}

impl Bench {
    pub(crate) fn new(geometry: Geometry, seed: u64, yields_max: u32) -> Self {
        Self::with(Faulty::new(geometry, seed, yields_max))
    }

    pub(crate) fn with(device: Faulty) -> Self {
        let volume = block_on(Volume::create(device.clone(), &options())).unwrap();
        let model = RefCell::new(Model::of(&volume));
        Self { device, volume, model }
    }

    pub(crate) fn write(&self, line: u32, sectors: u32, durability: Durability) -> Result<(), MediaError> {
        let (life, sector) = {
            let mut model = self.model.borrow_mut();
            let line = &mut model.lines[line as usize];
            let sector = line.written;
            line.written += sectors;
            (line.life, sector)
        };
        block_on(write(&self.volume, line, life, sector, sectors, durability))?;
        let mut model = self.model.borrow_mut();
        model.lines[line as usize].acknowledged = sector + sectors;
        if durability == Durability::Durable {
            model.durable(line, sector + sectors);
        }
        if sector + sectors == self.volume.geometry().chunk_sectors {
            model.lines[line as usize].closed = true;
        }
        Ok(())
    }

    pub(crate) fn flush(&self) -> Result<(), MediaError> {
        let before = self.model.borrow().lines.clone();
        block_on(self.volume.flush())?;
        self.model.borrow_mut().flushed(&before);
        Ok(())
    }

    pub(crate) fn finish(&self, line: u32) -> Result<(), MediaError> {
        block_on(self.volume.finish(ChunkId(line)))?;
        let mut model = self.model.borrow_mut();
        model.lines[line as usize].closed = true;
        model.lines[line as usize].closing = true;
        Ok(())
    }

    pub(crate) fn reset(&self, line: u32) -> Result<(), MediaError> {
        self.model.borrow_mut().lines[line as usize].resetting = true;
        block_on(self.volume.reset(ChunkId(line)))?;
        let this = &mut self.model.borrow_mut().lines[line as usize];
        *this = model::LineModel { life: this.life + 1, ..model::LineModel::default() };
        Ok(())
    }

    pub(crate) fn check(&self) {
        let scarce = self.volume.status().spares_left == 0;
        block_on(self.model.borrow().clone().check_all(&self.volume, scarce));
    }

    /// The power goes and comes back; what was promised must be there.
    pub(crate) fn power_cycle(self) -> Self {
        self.reopen(true)
    }

    /// The process starts again.
    pub(crate) fn restart(self) -> Self {
        self.reopen(false)
    }

    fn reopen(self, cut: bool) -> Self {
        let Self { device, volume, model } = self;
        drop(volume);
        match cut {
            true => device.power_cycle(),
            false => device.restart(),
        }
        let volume = block_on(Volume::open(device.clone())).unwrap();
        assert_eq!(volume.label(), b"a label");
        let mut model = model.into_inner();
        block_on(model.check_opened(&volume));
        Self { device, volume, model: RefCell::new(model) }
    }
}

/// Says where a test was when it failed.
pub(crate) struct Told(pub(crate) String);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0);
        }
    }
}

/// Polls once.
pub(crate) fn poll<T>(future: Pin<&mut (impl Future<Output = T> + ?Sized)>) -> Poll<T> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Whether an operation failed because there was no spare left.
pub(crate) fn is_no_spare(error: &MediaError) -> bool {
    let MediaError::Io { source, .. } = error else { return false };
    let source = source.get_ref().and_then(|source| source.downcast_ref::<VolumeError>());
    matches!(source, Some(VolumeError::TooFewSpares { .. }))
}

/// Polls two operations in turn until both are over.
pub(crate) fn both<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    let (mut a, mut b) = (pin!(a), pin!(b));
    let (mut first, mut second) = (None, None);
    for _ in 0..100_000 {
        if first.is_none()
            && let Poll::Ready(value) = poll(a.as_mut())
        {
            first = Some(value);
        }
        if second.is_none()
            && let Poll::Ready(value) = poll(b.as_mut())
        {
            second = Some(value);
        }
        match (first, second) {
            (Some(first), Some(second)) => return (first, second),
            unfinished => (first, second) = unfinished,
        }
    }
    panic!("they wait for something that never comes");
}

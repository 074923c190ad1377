//! Sends a medium through its lives: random operations, several in flight, polled in an order of the seed; then power
//! goes, or the host dies, and everything is read back.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use terrane_ocssd::{AlignedBuf, ChunkId, Durability, Geometry, Media, MediaError};

use crate::model::{Model, ReadTicket, Tally, WriteTicket};
use crate::rig::{POLLS_MAX, Rig, block_on, poll_once};

/// Lives of the medium in one run.
const LIVES: u32 = 4;
/// Steps in a life, at most: each submits an operation or polls one.
const STEPS_MAX: u32 = 160;
/// Operations in flight, at most.
const IN_FLIGHT_MAX: usize = 8;
/// Times that a read is tried again after an error that passes.
const READ_TRIES: u32 = 40;
/// Times that the power may go while the medium is opened and read back.
const OPENINGS_MAX: u32 = 1000;

/// The power is gone.
struct Lost;

/// An operation in flight, and what the model knows of it.
struct Pending {
    what: What,
    future: Pin<Box<dyn Future<Output = Done>>>,
    polls: u32,
}

#[derive(Debug)]
enum What {
    Write(WriteTicket),
    Read(ReadTicket),
    Reset(ChunkId),
    Finish(ChunkId),
    Flush(u64),
}

struct Done {
    result: Result<(), MediaError>,
    /// Where an append went.
    place: Option<u32>,
    /// What a read returned.
    buf: Option<AlignedBuf>,
}

impl From<Result<(), MediaError>> for Done {
    fn from(result: Result<(), MediaError>) -> Self {
        Self { result, place: None, buf: None }
    }
}

/// How a life ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// The power goes at an operation chosen beforehand.
    Crash,
    /// The power goes between two.
    Cut,
    /// The host dies.
    Restart,
}

/// One run. Panics if the medium breaks a promise.
pub(crate) fn run<R: Rig>(seed: u64, create: impl FnOnce(u64) -> R) -> Tally {
    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    let rig = create(rng.random());
    let media = rig.media();
    let geometry = *media.geometry();
    let report = block_on(media.report()).expect("a new medium reports its chunks");
    let model = Model::new(geometry, rig.promises(), media.protects_buffer(), &report);
    drop(media);
    let mut run = Run { rng, rig, geometry, model, in_flight: Vec::new(), may_lose_power: false };
    for _ in 0..LIVES {
        run.life();
    }
    run.last_life();
    run.model.tally
}

struct Run<R: Rig> {
    rng: Pcg64Mcg,
    rig: R,
    geometry: Geometry,
    model: Model,
    in_flight: Vec<Pending>,
    /// Whether a crash was asked for, at an operation to come.
    may_lose_power: bool,
}

impl<R: Rig> Run<R> {
    fn life(&mut self) {
        let end = *[End::Crash, End::Crash, End::Cut, End::Restart].choose(&mut self.rng).expect("not empty");
        let steps = self.rng.random_range(1..=STEPS_MAX);
        self.may_lose_power = end == End::Crash;
        if self.may_lose_power {
            let operation = self.rng.random_range(1..=u64::from(steps));
            self.rig.crash_after(operation);
        }
        let mut alive = (0..steps).try_for_each(|_| self.step());
        if alive.is_ok() && self.rng.random_bool(0.5) {
            // All of it ends, or it hangs.
            alive = self.complete_all();
        }
        self.in_flight.clear();
        self.settle();
        match (alive, end) {
            // It may have gone without anybody being told yet.
            (Ok(()), End::Restart) if !self.model.power_was_cut() => {
                self.rig.restart();
                if self.opened(true).is_err() {
                    self.power_returns();
                }
            }
            (Ok(()), _) => {
                self.rig.power_cut();
                self.power_returns();
            }
            (Err(Lost), _) => self.power_returns(),
        }
    }

    /// Everything is closed and made durable, and has to be there after a cut.
    fn last_life(&mut self) {
        self.may_lose_power = false;
        let finished = self.model.finishable().into_iter().try_for_each(|chunk| {
            self.finish(chunk)?;
            self.complete_all()
        });
        let flushed = finished.and_then(|()| {
            self.flush()?;
            self.complete_all()
        });
        self.in_flight.clear();
        if flushed.is_ok() {
            self.rig.power_cut();
        }
        self.power_returns();
    }

    fn power_returns(&mut self) {
        self.may_lose_power = false;
        for _ in 0..OPENINGS_MAX {
            self.rig.power_on();
            if self.opened(false).is_ok() {
                return;
            }
        }
        panic!("the power went {OPENINGS_MAX} times before everything was read back");
    }

    /// The medium was opened again: its report and its content have to be what was promised.
    fn opened(&mut self, restarted: bool) -> Result<(), Lost> {
        self.settle();
        let media = self.rig.media();
        self.model.noticed(&media.take_notices());
        let report = self.survive(block_on(media.report()))?.expect("an open medium reports its chunks");
        if restarted {
            self.model.restarted(&report);
        } else {
            self.model.power_returned(&report);
        }
        // A volume closes what it must to show what the device hides. Not always, so that it goes on without as well.
        let leaves_hidden = self.rig.promises().volume.is_some() && self.rng.random_bool(0.3);
        let left = if leaves_hidden { self.geometry.mw_cunits } else { 0 };
        for (chunk, end) in self.model.readable() {
            let end = end.saturating_sub(left);
            for sector in 0..end {
                self.read_back(&media, chunk, sector)?;
            }
        }
        Ok(())
    }

    /// What struck outside of any operation of ours.
    fn settle(&mut self) {
        let struck = self.rig.take_faults();
        self.model.chunks_struck(&struck);
        self.model.sectors_struck(&struck);
    }

    fn read_back(&mut self, media: &Rc<R::Media>, chunk: ChunkId, sector: u32) -> Result<(), Lost> {
        for _ in 0..READ_TRIES {
            let ticket = self.model.read_submitted(chunk, sector, 1);
            let buf = AlignedBuf::zeroed(self.geometry.sector_bytes as usize);
            let (result, buf) = block_on(media.read(chunk, sector, buf));
            let struck = self.rig.take_faults();
            self.model.chunks_struck(&struck);
            let result = self.survive(result)?;
            self.model.noticed(&media.take_notices());
            let told = self.model.read_completed(&ticket, &result, &buf, &struck);
            self.model.sectors_struck(&struck);
            if matches!(result, Err(MediaError::Offline { .. })) {
                return Ok(());
            }
            if told {
                let owed = self.model.is_owed(chunk, sector);
                self.model.tally.durable_read += u64::from(owed);
                return Ok(());
            }
        }
        self.model.gave_up(chunk, sector);
        Ok(())
    }

    /// A result, unless the power went.
    fn survive<T>(&mut self, result: Result<T, MediaError>) -> Result<Result<T, MediaError>, Lost> {
        match result {
            Err(MediaError::PowerLost) => {
                self.settle();
                assert!(self.may_lose_power || self.model.power_was_cut(), "power went without a cut");
                Err(Lost)
            }
            other => Ok(other),
        }
    }

    fn step(&mut self) -> Result<(), Lost> {
        let submits = self.rng.random_bool(0.5) && self.in_flight.len() < IN_FLIGHT_MAX;
        if !submits && !self.in_flight.is_empty() {
            let index = self.rng.random_range(0..self.in_flight.len());
            if self.rng.random_bool(0.01) {
                // The host loses interest. The operation takes effect or not.
                drop(self.in_flight.swap_remove(index));
                return Ok(());
            }
            return self.poll(index);
        }
        match self.rng.random_range(0..100) {
            0..60 => self.write(),
            60..78 => self.read(),
            78..86 => self.flush(),
            86..90 => match self.model.finishable().choose(&mut self.rng) {
                Some(chunk) => self.finish(*chunk),
                None => Ok(()),
            },
            90..97 => self.reset(),
            _ => {
                let media = self.rig.media();
                let report = self.survive(block_on(media.report()))?.expect("an open medium reports");
                self.model.reported(&report);
                Ok(())
            }
        }
    }

    fn write(&mut self) -> Result<(), Lost> {
        let writable = self.model.writable();
        // Few chunks, so that they fill up.
        let favoured = writable.len().min(if self.rng.random_bool(0.7) { 2 } else { usize::MAX });
        let among = &writable[..favoured];
        let Some(&(chunk, room)) = among.choose(&mut self.rng) else { return Ok(()) };
        let unit = self.geometry.ws_min;
        let units = self.rng.random_range(1..=(room / unit).min(6));
        let durable = self.rng.random_bool(0.3);
        let durability = if durable { Durability::Durable } else { Durability::Volatile };
        let mut buf = AlignedBuf::zeroed((units * unit * self.geometry.sector_bytes) as usize);
        let ticket = self.model.write_submitted(chunk, durable, &mut buf);
        let media = self.rig.media();
        let future: Pin<Box<dyn Future<Output = Done>>> = if self.rng.random_bool(0.25) {
            Box::pin(async move {
                let (result, _) = media.append(chunk, buf, durability).await;
                let place = result.as_ref().ok().copied();
                Done { result: result.map(drop), place, buf: None }
            })
        } else {
            Box::pin(async move { media.write(chunk, ticket.sector, buf, durability).await.0.into() })
        };
        self.submit(What::Write(ticket), future)
    }

    fn read(&mut self) -> Result<(), Lost> {
        let Some(&(chunk, end)) = self.model.readable().choose(&mut self.rng) else { return Ok(()) };
        let sector = self.rng.random_range(0..end);
        let sectors = self.rng.random_range(1..=(end - sector).min(8));
        let ticket = self.model.read_submitted(chunk, sector, sectors);
        let media = self.rig.media();
        let buf = AlignedBuf::zeroed((sectors * self.geometry.sector_bytes) as usize);
        let future = async move {
            let (result, buf) = media.read(chunk, sector, buf).await;
            Done { result, place: None, buf: Some(buf) }
        };
        self.submit(What::Read(ticket), Box::pin(future))
    }

    fn reset(&mut self) -> Result<(), Lost> {
        let Some(&chunk) = self.model.resettable().choose(&mut self.rng) else { return Ok(()) };
        self.model.reset_submitted(chunk);
        let media = self.rig.media();
        self.submit(What::Reset(chunk), Box::pin(async move { media.reset(chunk).await.into() }))
    }

    fn finish(&mut self, chunk: ChunkId) -> Result<(), Lost> {
        self.model.finish_submitted(chunk);
        let media = self.rig.media();
        self.submit(What::Finish(chunk), Box::pin(async move { media.finish(chunk).await.into() }))
    }

    fn flush(&mut self) -> Result<(), Lost> {
        let mark = self.model.flush_submitted();
        let media = self.rig.media();
        self.submit(What::Flush(mark), Box::pin(async move { media.flush().await.into() }))
    }

    /// The first poll is what submits.
    fn submit(&mut self, what: What, future: Pin<Box<dyn Future<Output = Done>>>) -> Result<(), Lost> {
        self.in_flight.push(Pending { what, future, polls: 0 });
        self.poll(self.in_flight.len() - 1)
    }

    fn complete_all(&mut self) -> Result<(), Lost> {
        while !self.in_flight.is_empty() {
            let index = self.rng.random_range(0..self.in_flight.len());
            self.poll(index)?;
        }
        Ok(())
    }

    fn poll(&mut self, index: usize) -> Result<(), Lost> {
        let pending = &mut self.in_flight[index];
        pending.polls += 1;
        assert!(pending.polls < POLLS_MAX, "{:?} waits for something that never comes", pending.what);
        let polled = poll_once(pending.future.as_mut());
        let struck = self.rig.take_faults();
        self.model.chunks_struck(&struck);
        if let Poll::Ready(done) = polled {
            let Pending { what, .. } = self.in_flight.swap_remove(index);
            let Done { result, place, buf } = done;
            let result = self.survive(result)?;
            self.notice();
            match what {
                What::Write(ticket) => {
                    assert!(place.is_none_or(|place| place == ticket.sector), "appended at {place:?}");
                    self.model.write_completed(ticket, &result, &struck);
                }
                What::Read(ticket) => {
                    let buf = buf.expect("a read returns its buffer");
                    self.model.read_completed(&ticket, &result, &buf, &struck);
                }
                What::Reset(chunk) => self.model.reset_completed(chunk, &result),
                What::Finish(chunk) => self.model.finish_completed(chunk, &result),
                What::Flush(mark) => self.model.flush_completed(mark, &result, &struck),
            }
        }
        self.model.sectors_struck(&struck);
        self.notice();
        Ok(())
    }

    fn notice(&mut self) {
        let notices = self.rig.media().take_notices();
        self.model.noticed(&notices);
    }
}

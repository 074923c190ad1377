//! What goes wrong on a simulated medium: by chance, at a rate; or once, when a test asks for it.
//!
//! | fault | when | what the host is told | what happened |
//! |---|---|---|---|
//! | torn write | write | I/O error | some sectors were written, none is durable |
//! | lost write | write | success | nothing was written, not even if durable |
//! | misdirected write | write | success | it overwrote another place of this or another chunk |
//! | corrupted write | write | success | one bit is not what the host sent |
//! | failed program | write | `WriteFailed`, with the chunk | nothing from that sector on; the chunk is closed |
//! | early close | write | `ClosedEarly` | nothing of the write; the chunk is closed |
//! | read error | read | I/O error | nothing; the next read is well |
//! | latent read error | read | `Unreadable` (an I/O error if conventional) | the sector stays lost until a reset, or a power cut that takes it |
//! | corrupted read | read | success | one bit of the buffer is wrong, this once |
//! | high ECC | read | a notice | nothing: the data are good still |
//! | failed flush | flush | I/O error | what it had to cover is lost to every later flush |
//! | failed reset | reset | `Offline`, and a notice | the chunk is offline |
//! | offline | any | a notice | some chunk is offline |
//! | latency spike | any | nothing | the operation takes many times as long |
//! | stall | any | nothing | no operation of the device completes for a long time |
//! | power cut | any | `PowerLost` | see the module `power` |
//!
//! Invariants:
//! - A rate of zero draws nothing from the generator, so seeds keep their meaning as faults are added.
//! - Everything that struck is in the log, at the very sectors that it harmed: what the log does not hold, the
//!   device owes its host.

use std::collections::BTreeSet;

use rand::RngExt;

use super::{Device, SimMedia, State};
use crate::geometry::ChunkId;
use crate::media::{ChunkState, Notice, NoticeKind};

const PER_MILLION: u32 = 1_000_000;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// A write failed with an I/O error and was written in part.
    TornWrite,
    /// A write was acknowledged and never happened.
    LostWrite,
    /// A write was acknowledged and happened elsewhere.
    MisdirectedWrite,
    /// These sectors were overwritten by a misdirected write. Has no rate of its own.
    Overwritten,
    /// A bit of a write was flipped on its way.
    CorruptedWrite,
    /// The device could not program, and said of which chunk.
    FailedProgram,
    /// The device closed a chunk before it was full.
    EarlyClose,
    /// A read failed, once.
    ReadError,
    /// A sector became unreadable, until its chunk is reset.
    LatentReadError,
    /// A bit of what a read returned was flipped, once.
    CorruptedRead,
    /// A read needed much correction, and the device said so.
    HighEcc,
    /// A flush failed.
    FailedFlush,
    /// A reset failed, which took the chunk offline.
    FailedReset,
    /// A chunk went offline by itself.
    Offline,
    /// An operation took many times as long as it should.
    LatencySpike,
    /// The device did nothing for a long time.
    Stall,
    /// The power went.
    PowerCut,
}

/// How often each fault strikes: times in a million of the operations it may strike at (the table above, column
/// "when"). All zero by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FaultRates {
    /// [`Fault::TornWrite`], of writes and appends.
    pub torn_write: u32,
    /// [`Fault::LostWrite`], of writes and appends.
    pub lost_write: u32,
    /// [`Fault::MisdirectedWrite`], of writes and appends.
    pub misdirected_write: u32,
    /// [`Fault::CorruptedWrite`], of writes and appends.
    pub corrupted_write: u32,
    /// [`Fault::FailedProgram`], of writes and appends. Not on a conventional device.
    pub failed_program: u32,
    /// [`Fault::EarlyClose`], of writes and appends. Not on a conventional device.
    pub early_close: u32,
    /// [`Fault::ReadError`], of reads.
    pub read_error: u32,
    /// [`Fault::LatentReadError`], of reads.
    pub latent_read_error: u32,
    /// [`Fault::CorruptedRead`], of reads.
    pub corrupted_read: u32,
    /// [`Fault::HighEcc`], of reads. Not on a conventional device.
    pub high_ecc: u32,
    /// [`Fault::FailedFlush`], of flushes.
    pub failed_flush: u32,
    /// [`Fault::FailedReset`], of resets.
    pub failed_reset: u32,
    /// [`Fault::Offline`], of all operations: some chunk, not the one addressed.
    pub offline: u32,
    /// [`Fault::LatencySpike`], of all operations.
    pub latency_spike: u32,
    /// [`Fault::Stall`], of all operations.
    pub stall: u32,
    /// [`Fault::PowerCut`], of all operations.
    pub power_cut: u32,
}

impl FaultRates {
    /// How often this fault strikes.
    pub fn of(&self, fault: Fault) -> u32 {
        match fault {
            Fault::TornWrite => self.torn_write,
            Fault::LostWrite => self.lost_write,
            Fault::MisdirectedWrite => self.misdirected_write,
            Fault::Overwritten => 0,
            Fault::CorruptedWrite => self.corrupted_write,
            Fault::FailedProgram => self.failed_program,
            Fault::EarlyClose => self.early_close,
            Fault::ReadError => self.read_error,
            Fault::LatentReadError => self.latent_read_error,
            Fault::CorruptedRead => self.corrupted_read,
            Fault::HighEcc => self.high_ecc,
            Fault::FailedFlush => self.failed_flush,
            Fault::FailedReset => self.failed_reset,
            Fault::Offline => self.offline,
            Fault::LatencySpike => self.latency_spike,
            Fault::Stall => self.stall,
            Fault::PowerCut => self.power_cut,
        }
    }

    pub(super) fn validate(&self) -> Result<(), &'static str> {
        let Self {
            torn_write,
            lost_write,
            misdirected_write,
            corrupted_write,
            failed_program,
            early_close,
            read_error,
            latent_read_error,
            corrupted_read,
            high_ecc,
            failed_flush,
            failed_reset,
            offline,
            latency_spike,
            stall,
            power_cut,
        } = *self;
        let writes =
            [torn_write, lost_write, misdirected_write, corrupted_write, failed_program, early_close];
        let reads = [read_error, latent_read_error, corrupted_read, high_ecc];
        let others = [failed_flush, failed_reset, offline, latency_spike, stall, power_cut];
        match writes.iter().chain(&reads).chain(&others).any(|rate| *rate > PER_MILLION) {
            true => Err("a fault strikes at most a million times in a million operations"),
            false => Ok(()),
        }
    }
}

/// A fault that struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Injected {
    /// What it was.
    pub fault: Fault,
    /// The chunk that it harmed; chunk 0 where none was.
    pub chunk: ChunkId,
    /// First sector harmed, and how many; none: the fault harmed no content, or the whole chunk
    /// ([`Fault::Offline`], [`Fault::FailedReset`]).
    pub sectors: Option<(u32, u32)>,
}

/// Why the device takes no more writes in a chunk's present life.
#[derive(Clone, Copy)]
pub(super) struct Failure {
    pub(super) fault: Fault,
    /// First sector that is not there.
    pub(super) sector: u32,
    /// Whether any write completed with it. The chunk is open before, and closed after.
    pub(super) reported: bool,
}

/// What may strike, what struck, and what the device said of it.
pub(super) struct Faults {
    rates: FaultRates,
    armed: BTreeSet<Fault>,
    log: Vec<Injected>,
    pub(super) notices: Vec<Notice>,
}

impl Faults {
    pub(super) fn new(rates: FaultRates) -> Self {
        Self { rates, armed: BTreeSet::new(), log: Vec::new(), notices: Vec::new() }
    }

    pub(super) fn disarm(&mut self) {
        self.armed.clear();
    }

    pub(super) fn record(&mut self, fault: Fault, chunk: ChunkId, sectors: Option<(u32, u32)>) {
        self.log.push(Injected { fault, chunk, sectors });
    }
}

impl State {
    /// Whether the fault strikes the operation at hand.
    pub(super) fn strikes(&mut self, fault: Fault) -> bool {
        if self.faults.armed.remove(&fault) {
            return true;
        }
        let rate = self.faults.rates.of(fault);
        rate > 0 && self.rng.random_range(0..PER_MILLION) < rate
    }

    /// A chunk is lost to the host, and the device says so.
    pub(super) fn go_offline(&mut self, fault: Fault, chunk: ChunkId) {
        if self.table.state(chunk) == ChunkState::Offline {
            return;
        }
        self.table.set(chunk, ChunkState::Offline, 0);
        self.faults.record(fault, chunk, None);
        self.faults.notices.push(Notice { chunk, sectors: None, kind: NoticeKind::Offline });
    }

    /// The device says that these sectors needed much correction.
    pub(super) fn warn(&mut self, chunk: ChunkId, sectors: (u32, u32)) {
        self.faults.record(Fault::HighEcc, chunk, None);
        self.faults.notices.push(Notice { chunk, sectors: Some(sectors), kind: NoticeKind::EccHigh });
    }
}

impl Device {
    /// Flips one bit of `bytes`, which begin at `sector`. Returns the sector it is in.
    pub(super) fn flip(&self, state: &mut State, sector: u32, bytes: &mut [u8]) -> u32 {
        let at = state.rng.random_range(0..bytes.len());
        bytes[at] ^= 1 << state.rng.random_range(0..8);
        sector + (at / self.geometry.sector_bytes as usize) as u32
    }

    /// Where a write of `sectors` at `sector` of `chunk` goes astray to: another place for as many. `None`: there
    /// is none.
    pub(super) fn astray(
        &self,
        state: &mut State,
        chunk: ChunkId,
        sector: u32,
        sectors: u32,
    ) -> Option<(ChunkId, u32)> {
        let geometry = &self.geometry;
        let places = (geometry.chunk_sectors - sectors) / geometry.ws_min + 1;
        let mut wrong = ChunkId(state.rng.random_range(0..geometry.chunk_count()));
        let at = state.rng.random_range(0..places) * geometry.ws_min;
        let overlaps = at < sector + sectors && sector < at + sectors;
        if wrong == chunk && overlaps {
            wrong = ChunkId((chunk.0 + 1) % geometry.chunk_count());
        }
        (wrong != chunk || !overlaps).then_some((wrong, at))
    }
}

/// Faults on request. Those of the next operation are forgotten when the device begins a new life.
impl SimMedia {
    /// How often each fault strikes from now on, in place of [`SimOptions::faults`](super::SimOptions::faults).
    ///
    /// # Panics
    /// If the device cannot have such a fault.
    pub fn set_fault_rates(&self, rates: FaultRates) {
        let options = super::SimOptions { faults: rates, ..self.device.options.clone() };
        options.validate(&self.device.geometry).expect("the device can have these faults");
        self.device.state.borrow_mut().faults.rates = rates;
    }

    /// What struck since the last call, oldest first: the only excuse that the device has.
    pub fn take_fault_log(&self) -> Vec<Injected> {
        std::mem::take(&mut self.device.state.borrow_mut().faults.log)
    }

    fn arm(&self, fault: Fault) {
        self.device.state.borrow_mut().faults.armed.insert(fault);
    }

    /// The next write or append fails with an I/O error. Which of its sectors were written is left to
    /// the seed, and none of them is durable.
    pub fn fail_next_write(&self) {
        self.arm(Fault::TornWrite);
    }

    /// The next write or append is acknowledged and never happens, even if it is to be durable.
    pub fn lose_next_write(&self) {
        self.arm(Fault::LostWrite);
    }

    /// The next write or append is acknowledged and overwrites another place, which the log tells.
    pub fn misdirect_next_write(&self) {
        self.arm(Fault::MisdirectedWrite);
    }

    /// The next write or append is acknowledged with one bit of it flipped.
    pub fn corrupt_next_write(&self) {
        self.arm(Fault::CorruptedWrite);
    }

    /// The next write or append to be submitted fails with [`MediaError::WriteFailed`](crate::MediaError::WriteFailed),
    /// and so do those behind it in its chunk, which is closed.
    ///
    /// # Panics
    /// If the device is a conventional one.
    pub fn fail_next_program(&self) {
        assert!(!self.device.options.conventional, "a conventional device knows no chunks");
        self.arm(Fault::FailedProgram);
    }

    /// The next write or append to be submitted fails with [`MediaError::ClosedEarly`](crate::MediaError::ClosedEarly),
    /// and so do those behind it in its chunk.
    ///
    /// # Panics
    /// If the device is a conventional one.
    pub fn close_early_at_next_write(&self) {
        assert!(!self.device.options.conventional, "a conventional device knows no chunks");
        self.arm(Fault::EarlyClose);
    }

    /// The next read fails with an I/O error and leaves the buffer as it was.
    pub fn fail_next_read(&self) {
        self.arm(Fault::ReadError);
    }

    /// Every read that touches this sector fails, until its chunk is reset or a power cut takes the sector.
    ///
    /// # Panics
    /// If there is no such sector.
    pub fn fail_reads_of(&self, chunk: ChunkId, sector: u32) {
        let geometry = &self.device.geometry;
        assert!(chunk.0 < geometry.chunk_count() && sector < geometry.chunk_sectors);
        let mut state = self.device.state.borrow_mut();
        state.cells[chunk.0 as usize].unreadable.insert(sector);
        state.faults.record(Fault::LatentReadError, chunk, Some((sector, 1)));
    }

    /// The next read returns its bytes with one bit flipped. What is stored stays right.
    pub fn corrupt_next_read(&self) {
        self.arm(Fault::CorruptedRead);
    }

    /// The next read succeeds, and the device says that its sectors needed much correction.
    ///
    /// # Panics
    /// If the device is a conventional one.
    pub fn weaken_next_read(&self) {
        assert!(!self.device.options.conventional, "a conventional device reports no chunks");
        self.arm(Fault::HighEcc);
    }

    /// The next flush fails with an I/O error, and so does, silently, all that it had to make durable: a
    /// later flush succeeds without covering it, as a kernel that dropped dirty pages does.
    pub fn fail_next_flush(&self) {
        self.arm(Fault::FailedFlush);
    }

    /// The next reset fails with [`MediaError::Offline`](crate::MediaError::Offline), and takes its chunk offline.
    pub fn fail_next_reset(&self) {
        self.arm(Fault::FailedReset);
    }

    /// The chunk goes offline for good, and the device says so: everything done to it, even what is in flight,
    /// fails with [`MediaError::Offline`](crate::MediaError::Offline).
    ///
    /// # Panics
    /// If there is no such chunk.
    pub fn take_offline(&self, chunk: ChunkId) {
        assert!(chunk.0 < self.device.geometry.chunk_count());
        self.device.state.borrow_mut().go_offline(Fault::Offline, chunk);
    }

    /// The next operation to be submitted takes many times as long as it would.
    pub fn slow_next_operation(&self) {
        self.arm(Fault::LatencySpike);
    }

    /// From the next operation to be submitted on, no operation completes for a long time.
    pub fn stall_at_next_operation(&self) {
        self.arm(Fault::Stall);
    }

    /// Damages a byte silently: one bit of it is flipped, on the platter and in the cache. Twice
    /// restores it.
    ///
    /// # Panics
    /// If there is no such byte.
    pub fn corrupt(&self, chunk: ChunkId, sector: u32, byte: u32) {
        let geometry = &self.device.geometry;
        assert!(chunk.0 < geometry.chunk_count() && sector < geometry.chunk_sectors);
        assert!(byte < geometry.sector_bytes);
        let mut state = self.device.state.borrow_mut();
        state.cells[chunk.0 as usize].damage(geometry, sector, byte);
        state.faults.record(Fault::CorruptedWrite, chunk, Some((sector, 1)));
    }
}

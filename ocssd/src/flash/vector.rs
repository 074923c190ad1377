//! Vector commands: up to 64 addresses each, anywhere on the device (Open-Channel 2.0, section "Vector Commands").
//!
//! A command completes with one status and a bit for each address, set where that address failed. The status is that of
//! the first address that failed; the others are done or not, as their bits say.

use std::ops::Range;
use std::rc::Rc;

use super::address::Ppa;
use super::port::Port;
use super::request::{Origin, WriteRequest, WriteTicket};
use super::status::{Refusal, Rule, Status};
use super::timing::FlashClock;
use crate::buffer::AlignedBuf;

/// Addresses that a command may carry.
pub const ADDRESSES_MAX: usize = 64;

/// Opcodes of the commands.
pub mod opcode {
    /// [`VectorQueue::reset`](super::VectorQueue::reset).
    pub const RESET: u8 = 0x90;
    /// [`VectorQueue::write`](super::VectorQueue::write).
    pub const WRITE: u8 = 0x91;
    /// [`VectorQueue::read`](super::VectorQueue::read).
    pub const READ: u8 = 0x92;
    /// [`VectorQueue::copy`](super::VectorQueue::copy).
    pub const COPY: u8 = 0x93;
}

/// How a vector command completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// [`Status::SUCCESS`], or what the first failed address met. With [`Status::HIGH_ECC`] the data is good.
    pub status: Status,
    /// A bit for each address, the first lowest: set, the address failed (or, with [`Status::HIGH_ECC`], was read with
    /// much correction).
    pub failed: u64,
}

impl Completion {
    fn new() -> Self {
        Self { status: Status::SUCCESS, failed: 0 }
    }

    fn invalid() -> Self {
        Self { status: Status::INVALID_FIELD, failed: 0 }
    }

    /// Some addresses failed. Of several statuses the one of the first address stays.
    fn fail(&mut self, addresses: Range<usize>, status: Status) {
        if addresses.is_empty() {
            return;
        }
        let before = self.failed & ((1 << addresses.start) - 1);
        if before == 0 {
            self.status = status;
        }
        let bits = addresses.fold(0, |bits, at| bits | 1 << at);
        self.failed |= bits;
    }
}

/// A queue of vector commands to the whole device, whoever has its slices: what an administrator's tool would use. Like
/// every handle it belongs to one thread and one life of the device.
#[derive(Debug, Clone)]
pub struct VectorQueue {
    port: Port,
    life: u64,
}

/// Addresses of one command that follow each other in one chunk.
struct Run {
    /// Which of the command's addresses.
    addresses: Range<usize>,
    chunk: u32,
    sector: u32,
}

impl Run {
    fn sectors(&self) -> u32 {
        self.addresses.len() as u32
    }
}

impl VectorQueue {
    pub(super) fn new(port: Port) -> Self {
        let life = port.controller().life;
        Self { port, life }
    }

    /// The queue with a clock, so that commands take the device's time.
    pub fn with_clock(mut self, clock: FlashClock) -> Self {
        self.port.clock = Some(clock);
        self
    }

    /// Resets the chunk of each address; the sector counts for nothing.
    pub async fn reset(&self, addresses: &[Ppa]) -> Completion {
        if addresses.is_empty() || addresses.len() > ADDRESSES_MAX {
            return Completion::invalid();
        }
        let mut completion = Completion::new();
        let mut tickets = Vec::new();
        for (at, address) in addresses.iter().enumerate() {
            let submitted =
                self.locate(*address).and_then(|(chunk, _)| self.port.submit_reset(self.life, chunk));
            match submitted {
                Ok(ticket) => tickets.push((at, ticket)),
                Err(refusal) => completion.fail(at..at + 1, refusal.status()),
            }
        }
        for (at, ticket) in &tickets {
            if let Err(refusal) = self.port.end_reset(ticket).await {
                completion.fail(*at..at + 1, refusal.status());
            }
        }
        completion
    }

    /// Writes one sector of the buffer to each address. Addresses of one chunk that follow each other are one write,
    /// which must begin at the write pointer and have whole multiples of `ws_min`.
    pub async fn write(&self, addresses: &[Ppa], buf: AlignedBuf) -> (Completion, AlignedBuf) {
        if !self.fits(addresses, buf.len()) {
            return (Completion::invalid(), buf);
        }
        let mut completion = Completion::new();
        let mut tickets: Vec<(Run, Rc<WriteTicket>)> = Vec::new();
        for run in self.runs(addresses, &mut completion) {
            let request = WriteRequest {
                chunk: run.chunk,
                sector: Some(run.sector),
                durable: false,
                origin: Origin::Host,
                share: None,
            };
            let data = &buf[self.bytes(&run.addresses)];
            match self.port.submit_write(self.life, &request, data) {
                Ok(ticket) => tickets.push((run, ticket)),
                Err(refusal) => completion.fail(run.addresses, refusal.status()),
            }
        }
        let mut buf = buf;
        let mut carried = Vec::new();
        for (run, ticket) in &tickets {
            let (result, back) = self.port.carry(ticket, buf, self.bytes(&run.addresses).start).await;
            buf = back;
            carried.push(result);
        }
        for ((run, ticket), carried) in tickets.into_iter().zip(carried) {
            let Err(refusal) = self.port.end_write(&ticket, carried).await else {
                continue;
            };
            // What is below the place where the chunk ended was programmed.
            let written = match refusal {
                Refusal::WriteFailed { sector } => sector.saturating_sub(run.sector),
                _ => 0,
            };
            let first = run.addresses.start + written as usize;
            completion.fail(first..run.addresses.end, refusal.status());
        }
        (completion, buf)
    }

    /// Reads the sector of each address into the buffer.
    pub async fn read(&self, addresses: &[Ppa], buf: AlignedBuf) -> (Completion, AlignedBuf) {
        if !self.fits(addresses, buf.len()) {
            return (Completion::invalid(), buf);
        }
        let mut completion = Completion::new();
        let mut tickets = Vec::new();
        for run in self.runs(addresses, &mut completion) {
            let bytes = self.bytes(&run.addresses).len();
            match self.port.submit_read(self.life, run.chunk, run.sector, bytes) {
                Ok(ticket) => tickets.push((run, ticket)),
                Err(refusal) => completion.fail(run.addresses, refusal.status()),
            }
        }
        let mut buf = buf;
        let mut corrected = 0;
        for (run, ticket) in tickets {
            let (result, back) = self.port.end_read(&ticket, buf, self.bytes(&run.addresses)).await;
            buf = back;
            match result {
                Ok(()) if ticket.high_ecc => {
                    corrected = run.addresses.fold(corrected, |bits, at| bits | 1 << at);
                }
                Ok(()) => {}
                Err(refusal) => completion.fail(run.addresses, refusal.status()),
            }
        }
        if completion.failed == 0 && corrected != 0 {
            completion = Completion { status: Status::HIGH_ECC, failed: corrected };
        }
        (completion, buf)
    }

    /// Copies the sector at each address of `from` to the address at the same place in `to`, within the device, under
    /// the rules of a write. Nothing is copied if any of them cannot be read.
    pub async fn copy(&self, from: &[Ppa], to: &[Ppa]) -> Completion {
        if from.len() != to.len() || from.is_empty() || from.len() > ADDRESSES_MAX {
            return Completion::invalid();
        }
        let buf = AlignedBuf::zeroed(from.len() * self.port.shared.geometry.sector_bytes as usize);
        let (read, buf) = self.read(from, buf).await;
        if read.status != Status::SUCCESS && read.status != Status::HIGH_ECC {
            return read;
        }
        self.write(to, buf).await.0
    }

    fn fits(&self, addresses: &[Ppa], bytes: usize) -> bool {
        let count = addresses.len();
        (1..=ADDRESSES_MAX).contains(&count) && self.bytes(&(0..count)).len() == bytes
    }

    /// Bytes of a buffer that belong to some of the addresses.
    fn bytes(&self, addresses: &Range<usize>) -> Range<usize> {
        let sector_bytes = self.port.shared.geometry.sector_bytes as usize;
        addresses.start * sector_bytes..addresses.end * sector_bytes
    }

    fn locate(&self, address: Ppa) -> Result<(u32, u32), Refusal> {
        let format = self.port.controller().format;
        let place = format.unpack(address).ok_or(Refusal::Rule(Rule::NO_SUCH_CHUNK))?;
        Ok((format.chunk_index(place), place.sector))
    }

    /// Groups addresses that follow each other; those that name nothing have failed.
    fn runs(&self, addresses: &[Ppa], completion: &mut Completion) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (at, address) in addresses.iter().enumerate() {
            let (chunk, sector) = match self.locate(*address) {
                Ok(place) => place,
                Err(refusal) => {
                    completion.fail(at..at + 1, refusal.status());
                    continue;
                }
            };
            match runs.last_mut() {
                Some(run)
                    if run.addresses.end == at
                        && run.chunk == chunk
                        && run.sector + run.sectors() == sector =>
                {
                    run.addresses.end += 1;
                }
                _ => runs.push(Run { addresses: at..at + 1, chunk, sector }),
            }
        }
        runs
    }
}

//! What every contestant is asked to do, and how it is counted.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

/// Bytes of a read.
pub(crate) const BLOCK_BYTES: usize = 4096;

/// Connections of the echo, messages on the way on each, and bytes of a message.
pub(crate) const CONNECTIONS: usize = 64;
pub(crate) const PIPELINE: usize = 16;
pub(crate) const MESSAGE_BYTES: usize = 128;

/// Bytes that an echo takes in at once: more than are ever on the way on one connection.
pub(crate) const ECHO_BYTES: usize = 4096;
const _: () = assert!(PIPELINE * MESSAGE_BYTES <= ECHO_BYTES);

/// Read random blocks of a file for a while, so many at a time.
#[derive(Debug, Clone)]
pub(crate) struct ReadJob {
    pub(crate) path: PathBuf,
    pub(crate) blocks: u64,
    pub(crate) depth: u32,
    pub(crate) window: Duration,
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reads {
    pub(crate) per_second: f64,
    /// The thread's time for each read, in µs.
    pub(crate) cpu: Cpu,
}

/// Listen on a port of 127.0.0.1, say which, accept [`CONNECTIONS`], and send back what comes until all are closed.
#[derive(Debug)]
pub(crate) struct EchoJob {
    pub(crate) listening: Sender<SocketAddr>,
}

impl EchoJob {
    /// Says where.
    pub(crate) fn listening(&self, address: SocketAddr) -> anyhow::Result<()> {
        self.listening.send(address).context("nobody waits any more")
    }
}

/// The offsets to read, one after the other.
#[derive(Debug)]
pub(crate) struct Offsets {
    rng: Pcg64Mcg,
    blocks: u64,
}

impl ReadJob {
    /// Others at every call.
    pub(crate) fn offsets(&self) -> Offsets {
        Offsets { rng: Pcg64Mcg::seed_from_u64(RandomState::new().hash_one(0)), blocks: self.blocks }
    }
}

impl Offsets {
    pub(crate) fn next(&mut self) -> u64 {
        self.rng.random_range(0..self.blocks) * BLOCK_BYTES as u64
    }
}

/// The counting of reads, from when the runtime is ready and the file open.
#[derive(Debug)]
pub(crate) struct Lap {
    begin: Instant,
    end: Instant,
    cpu: Cpu,
}

impl Lap {
    pub(crate) fn begin(window: Duration) -> anyhow::Result<Self> {
        let begin = Instant::now();
        Ok(Lap { begin, end: begin + window, cpu: Cpu::now()? })
    }

    /// Whether another read is to be sent.
    pub(crate) fn goes_on(&self) -> bool {
        Instant::now() < self.end
    }

    /// All of `reads` are done.
    pub(crate) fn end(&self, reads: u64) -> anyhow::Result<Reads> {
        let cpu = Cpu::now()?.per(reads, self.cpu);
        Ok(Reads { per_second: reads as f64 / self.begin.elapsed().as_secs_f64(), cpu })
    }
}

/// Time that this thread used, in µs. The kernel samples how it divides into user and system time by its clock tick, so
/// `user_us` is rough in a short window; their sum is exact.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cpu {
    pub(crate) user_us: f64,
    pub(crate) all_us: f64,
}

impl Cpu {
    /// So far.
    pub(crate) fn now() -> anyhow::Result<Self> {
        let usage = getrusage(UsageWho::RUSAGE_THREAD).context("cannot ask for the time used")?;
        let us = |time: TimeVal| time.tv_sec() as f64 * 1e6 + time.tv_usec() as f64;
        let user_us = us(usage.user_time());
        Ok(Cpu { user_us, all_us: user_us + us(usage.system_time()) })
    }

    /// For each of so many operations, since `before`.
    pub(crate) fn per(self, operations: u64, before: Cpu) -> Self {
        let each = |now: f64, before: f64| (now - before) / operations.max(1) as f64;
        Cpu { user_us: each(self.user_us, before.user_us), all_us: each(self.all_us, before.all_us) }
    }
}

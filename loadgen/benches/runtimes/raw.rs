//! io_uring itself, with no runtime; and the client of every contestant's echo.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use terrane_ocssd::AlignedBuf;

use crate::job::{BLOCK_BYTES, CONNECTIONS, ECHO_BYTES, EchoJob, Lap, ReadJob, Reads};

/// Submissions that a ring takes at once; the same for all that can be told.
pub(crate) const ENTRIES: u32 = 256;

/// How long the client waits for any answer.
const SILENCE: Duration = Duration::from_secs(5);

/// How a ring is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ring {
    /// Without flags.
    Plain,
    /// `SINGLE_ISSUER | DEFER_TASKRUN` (Linux 6.1).
    Deferred,
}

impl Ring {
    pub(crate) fn builder(self) -> io_uring::Builder {
        let mut builder = IoUring::builder();
        if self == Ring::Deferred {
            builder.setup_single_issuer().setup_defer_taskrun();
        }
        builder
    }
}

fn submit(ring: &mut IoUring, entry: &squeue::Entry) -> anyhow::Result<()> {
    // SAFETY: the buffer that the entry points to is never freed or moved, and not touched until this completed.
    if unsafe { ring.submission().push(entry) }.is_err() {
        bail!("the ring takes fewer submissions than it said")
    }
    Ok(())
}

pub(crate) fn read(job: &ReadJob, ring: Ring) -> anyhow::Result<Reads> {
    let mut ring = ring.builder().build(ENTRIES).context("cannot make a ring")?;
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&job.path)?;
    let mut offsets = job.offsets();
    // Never freed: if this ends with an error, reads may still be in flight.
    let mut bufs: Vec<&'static mut AlignedBuf> =
        (0..job.depth).map(|_| Box::leak(Box::new(AlignedBuf::zeroed(BLOCK_BYTES)))).collect();
    let mut entry = |slot: usize| {
        opcode::Read::new(Fd(file.as_raw_fd()), bufs[slot].as_mut_ptr(), BLOCK_BYTES as u32)
            .offset(offsets.next())
            .build()
            .user_data(slot as u64)
    };
    let lap = Lap::begin(job.window)?;
    for slot in 0..job.depth as usize {
        let entry = entry(slot);
        submit(&mut ring, &entry)?;
    }
    let (mut reads, mut in_flight) = (0, job.depth);
    let mut done = VecDeque::new();
    while in_flight > 0 {
        ring.submit_and_wait(1)?;
        done.extend(ring.completion().map(|completion| (completion.user_data(), completion.result())));
        for (slot, result) in done.drain(..) {
            ensure!(result == BLOCK_BYTES as i32, "a read gave {result}");
            reads += 1;
            if lap.goes_on() {
                let entry = entry(slot as usize);
                submit(&mut ring, &entry)?;
            } else {
                in_flight -= 1;
            }
        }
    }
    lap.end(reads)
}

pub(crate) fn echo(job: EchoJob, ring: Ring) -> anyhow::Result<()> {
    let ring = ring.builder().build(ENTRIES).context("cannot make a ring")?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    // What is accepted inherits it.
    setsockopt(&listener, sockopt::TcpNoDelay, &true)?;
    job.listening(listener.local_addr()?)?;
    let streams: Vec<TcpStream> =
        (0..CONNECTIONS).map(|_| listener.accept().map(|(stream, _)| stream)).collect::<io::Result<_>>()?;
    Pump::new(ring, &streams).run(None).map(drop)
}

/// What the client saw come back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Around {
    pub(crate) bytes: u64,
    pub(crate) elapsed: Duration,
}

/// The client: sends a burst on each connection, and what comes back again, for a while.
pub(crate) fn send_around(streams: &[TcpStream], burst: usize, window: Duration) -> anyhow::Result<Around> {
    let ring = Ring::Plain.builder().build(ENTRIES).context("cannot make a ring")?;
    let mut pump = Pump::new(ring, streams);
    let begin = Instant::now();
    pump.sending.fill(0..burst);
    let (bytes, end) = pump.run(Some(begin + window))?;
    Ok(Around { bytes, elapsed: end - begin })
}

/// Sends back on each connection what it receives.
struct Pump<'a> {
    ring: IoUring,
    streams: &'a [TcpStream],
    /// Never freed: if this ends with an error, operations may still be in flight.
    bufs: Vec<&'static mut [u8; ECHO_BYTES]>,
    /// The part of each buffer that is being sent; empty while it receives.
    sending: Vec<std::ops::Range<usize>>,
}

impl<'a> Pump<'a> {
    /// Receives on all first.
    fn new(ring: IoUring, streams: &'a [TcpStream]) -> Self {
        let bufs = streams.iter().map(|_| Box::leak(Box::new([0; ECHO_BYTES]))).collect();
        Pump { ring, streams, bufs, sending: vec![0..0; streams.len()] }
    }

    /// Submits what the connection does next.
    fn next(&mut self, slot: usize) -> anyhow::Result<()> {
        let fd = Fd(self.streams[slot].as_raw_fd());
        let (buf, sending) = (&mut self.bufs[slot], &self.sending[slot]);
        let entry = if sending.is_empty() {
            opcode::Recv::new(fd, buf.as_mut_ptr(), ECHO_BYTES as u32).build()
        } else {
            opcode::Send::new(fd, buf[sending.clone()].as_ptr(), sending.len() as u32).build()
        };
        submit(&mut self.ring, &entry.user_data(slot as u64))
    }

    /// Pumps until all connections are closed, which it does itself at `end`. Gives the bytes received by then, and
    /// when that was.
    fn run(&mut self, end: Option<Instant>) -> anyhow::Result<(u64, Instant)> {
        for slot in 0..self.streams.len() {
            self.next(slot)?;
        }
        let silence = Timespec::new().sec(SILENCE.as_secs());
        let (mut bytes, mut open, mut over) = (0, self.streams.len(), None);
        let mut done = VecDeque::new();
        while open > 0 {
            match self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&silence)) {
                Err(error) if error.raw_os_error() == Some(libc::ETIME) => bail!("no answer for {SILENCE:?}"),
                waited => waited.map(drop)?,
            }
            if over.is_none() && end.is_some_and(|end| Instant::now() >= end) {
                over = Some(Instant::now());
                for stream in self.streams {
                    stream.shutdown(Shutdown::Both)?;
                }
            }
            done.extend(self.ring.completion().map(|done| (done.user_data() as usize, done.result())));
            for (slot, result) in done.drain(..) {
                let Ok(moved @ 1..) = usize::try_from(result) else {
                    // Closed by the one side or the other; to the client only its own end is welcome.
                    ensure!(end.is_none() || over.is_some(), "the connection ended with {result}");
                    open -= 1;
                    continue;
                };
                if self.sending[slot].is_empty() {
                    bytes += if over.is_some() { 0 } else { moved as u64 };
                    self.sending[slot] = 0..moved;
                } else {
                    self.sending[slot].start += moved;
                }
                self.next(slot)?;
            }
        }
        Ok((bytes, over.unwrap_or_else(Instant::now)))
    }
}

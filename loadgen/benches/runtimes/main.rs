//! The comparison of runtimes behind the choice of one (docs/decisions/0001-shard-runtime.md), repeatable:
//!
//! ```text
//! cargo bench -p terrane-loadgen --features runtimes --bench runtimes -- --seconds 1 --repetitions 5
//! ```
//!
//! Each contestant does the same two things, on one thread pinned to one core:
//! - reads random 4 KiB blocks of a file with O_DIRECT, 1 and 32 at a time: reads per second, and at 32 the user time of
//!   the thread for each;
//! - echoes over loopback TCP what 64 connections send, each with 16 messages of 128 bytes on the way.
//!
//! The other end of the echo is the same for all: plain io_uring, which sends back what it receives, on another core if
//! there is one. "deferred" is a ring with `SINGLE_ISSUER | DEFER_TASKRUN`, as the server's; the others have the ring
//! that their runtime makes by default.
//!
//! Invariants:
//! - Repetitions are interleaved (A B C A B C), so that a machine that drifts drifts for all; medians and ranges are told,
//!   and the echo's ratio is taken within each repetition.
//! - The file is written before it is read. (On an empty file glommio 0.9.0 takes a poll for completions to be possible,
//!   and its first read fails with EOPNOTSUPP.)
//! - A contestant that fails, panics or hangs is told as such, and the others are measured.

mod compio;
mod glommio;
mod job;
mod monoio;
mod raw;
mod table;

use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use tempfile::NamedTempFile;

use crate::job::{BLOCK_BYTES, CONNECTIONS, Cpu, EchoJob, MESSAGE_BYTES, PIPELINE, ReadJob, Reads};
use crate::table::{Echo, Results};

/// What to measure with.
#[derive(Debug, Parser)]
#[command(
    name = "runtimes",
    about = "Compares io_uring runtimes: direct reads and loopback echo on one core"
)]
struct Options {
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 1.0, value_parser = seconds, value_name = "S")]
    seconds: f64,

    /// How often everything is measured.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1_000), value_name = "N")]
    repetitions: u32,

    /// The folder in which the file to read is made, and removed.
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"), value_name = "FOLDER")]
    path: PathBuf,

    /// MiB of that file.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=1 << 24), value_name = "MIB")]
    mib: u64,

    /// Said by `cargo bench`; it means nothing.
    #[arg(long, hide = true)]
    bench: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.01..=600.0).contains(&seconds) => Ok(seconds),
        _ => Err("seconds are a number from 0.01 to 600".to_owned()),
    }
}

/// How long a contestant may take beyond its window until it is given up.
const PATIENCE: Duration = Duration::from_secs(15);

/// One that is compared.
#[derive(Debug, Clone, Copy)]
struct Contestant {
    name: &'static str,
    read: fn(&ReadJob) -> anyhow::Result<Reads>,
    echo: fn(EchoJob) -> anyhow::Result<()>,
}

/// The first is what the others' echo is held against.
const CONTESTANTS: [Contestant; 6] = [
    Contestant {
        name: "io-uring",
        read: |job| raw::read(job, raw::Ring::Plain),
        echo: |job| raw::echo(job, raw::Ring::Plain),
    },
    Contestant {
        name: "io-uring, deferred",
        read: |job| raw::read(job, raw::Ring::Deferred),
        echo: |job| raw::echo(job, raw::Ring::Deferred),
    },
    Contestant {
        name: "monoio",
        read: |job| monoio::read(job, raw::Ring::Plain),
        echo: |job| monoio::echo(job, raw::Ring::Plain),
    },
    Contestant {
        name: "monoio, deferred",
        read: |job| monoio::read(job, raw::Ring::Deferred),
        echo: |job| monoio::echo(job, raw::Ring::Deferred),
    },
    Contestant { name: "compio", read: compio::read, echo: compio::echo },
    Contestant { name: "glommio", read: glommio::read, echo: glommio::echo },
];

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let window = Duration::from_secs_f64(options.seconds);
    let allowed = sched_getaffinity(Pid::from_raw(0)).context("cannot ask for the cores")?;
    let mut cores = (0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false));
    let core = cores.next().context("no core is allowed")?;
    let cores = Cores { measured: core, client: cores.next().unwrap_or(core) };
    eprintln!("Writing {} MiB in {}", options.mib, options.path.display());
    let file = written(&options.path, options.mib << 20)?;
    let blocks = (options.mib << 20) / BLOCK_BYTES as u64;
    let mut results: Vec<Results> = CONTESTANTS.iter().map(|each| Results::new(each.name)).collect();
    for repetition in 1..=options.repetitions {
        eprintln!("Repetition {repetition} of {}", options.repetitions);
        for depth in [1, 32] {
            for (contestant, results) in CONTESTANTS.iter().zip(&mut results) {
                let job = ReadJob { path: file.path().to_owned(), blocks, depth, window };
                let read = contestant.read;
                results.read(depth, on_core(cores.measured, window, move || read(&job)));
            }
        }
        for (contestant, results) in CONTESTANTS.iter().zip(&mut results) {
            results.echo(echo(contestant, cores, window));
        }
    }
    let client = if cores.client == cores.measured { "the same core" } else { "another core" };
    tell(&format!("One core; the echo's other end on {client}.\n{}", table::table(&results)));
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the results are this program's output")]
fn tell(text: &str) {
    println!("{text}");
}

/// Which core does what.
#[derive(Debug, Clone, Copy)]
struct Cores {
    measured: usize,
    client: usize,
}

/// A file full of bytes that do not compress; removed when dropped.
fn written(folder: &Path, bytes: u64) -> anyhow::Result<NamedTempFile> {
    let at = || format!("cannot write a file in {}", folder.display());
    let mut file = tempfile::Builder::new().prefix("runtimes-").tempfile_in(folder).with_context(at)?;
    let mut block = vec![0; 1 << 20];
    let mut rng = Pcg64Mcg::seed_from_u64(1);
    for _ in 0..bytes / block.len() as u64 {
        rng.fill(&mut block[..]);
        file.write_all(&block).with_context(at)?;
    }
    file.as_file().sync_all().with_context(at)?;
    Ok(file)
}

/// Starts `work` on a thread of its own, pinned to a core; its result comes through the channel, or nothing if it
/// panicked.
fn start<T: Send + 'static>(
    core: usize,
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> mpsc::Receiver<anyhow::Result<T>> {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        let mut set = CpuSet::new();
        let pinned = set.set(core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
        // Nobody listens any more if it was given up.
        let _ = send.send(pinned.context("cannot pin the thread").and_then(|()| work()));
    });
    receive
}

/// Waits for what [`start`] started. One that takes too long is left behind where it is.
fn finish<T>(receive: &mpsc::Receiver<anyhow::Result<T>>, limit: Duration) -> anyhow::Result<T> {
    match receive.recv_timeout(limit) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => bail!("it hangs"),
        Err(mpsc::RecvTimeoutError::Disconnected) => bail!("it panicked"),
    }
}

fn on_core<T: Send + 'static>(
    core: usize,
    window: Duration,
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    finish(&start(core, work), window + PATIENCE)
}

/// Lets a contestant echo for a while.
fn echo(contestant: &Contestant, cores: Cores, window: Duration) -> anyhow::Result<Echo> {
    let (send, listening) = mpsc::channel();
    let serve = contestant.echo;
    let server = start(cores.measured, move || {
        serve(EchoJob { listening: send })?;
        Cpu::now()
    });
    let Ok(address) = listening.recv_timeout(PATIENCE) else {
        // It says why, unless it hangs.
        return finish(&server, PATIENCE).and_then(|_| bail!("it never listened"));
    };
    let streams: Vec<TcpStream> = (0..CONNECTIONS)
        .map(|_| {
            let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
            stream.set_nodelay(true).map(|()| stream)
        })
        .collect::<std::io::Result<_>>()
        .context("cannot connect")?;
    let burst = MESSAGE_BYTES * PIPELINE;
    let client = on_core(cores.client, window, move || raw::send_around(&streams, burst, window));
    let served = finish(&server, PATIENCE);
    let (client, cpu) = (client?, served?);
    let messages = client.bytes / MESSAGE_BYTES as u64;
    let messages_s = messages as f64 / client.elapsed.as_secs_f64();
    // The thread did nothing else.
    Ok(Echo { messages_s, cpu: cpu.per(messages, Cpu::default()) })
}

//! `compare`: Terrane beside its peers, in one table, measured in one run.
//!
//! ```text
//! plan         the cells of the table, and the order of the measurements: targets take turns (A B C, B C A, C A B)
//! child        one measurement: `run` in a process of its own
//! deploy       the servers that a networked target needs, for one measurement
//! table        medians, ranges, ratios; as text, JSON and CSV
//! page         the same with charts
//! ```
//!
//! Invariants: each measurement has a folder of its own, gone before the next begins; after every measurement the JSON
//! holds all that is known. Before the first has ended nothing is written: what an earlier comparison wrote stays.

mod child;
mod deploy;
mod page;
mod plan;
mod table;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::compare::{CompareArgs, Contestant};
use crate::cli::target::{Config, Mode, TargetName};
use crate::compare::child::Arguments;
use crate::compare::deploy::Servers;
use crate::compare::plan::{Cell, Turn};
use crate::compare::table::{Comparison, Note, Row, Sample};
use crate::device;
use crate::interrupt::{Interrupt, Interrupted};
use crate::output;
use crate::place::Place;
use crate::report::figures::{bytes, count, latency};
use crate::report::machine::Machine;
use crate::report::{csv, write_json};

/// Least that a store caches.
const CACHE_MIN: u64 = 8 << 20;

/// Bytes per second of reads and writes together that a target is expected to reach at most, for the room that is
/// asked for. A virtual disk was seen to give 1.5 GB/s at 32 KiB; a target that outgrows its room is not measured.
const THROUGHPUT_MAX: u64 = 1600 << 20;

/// The same in writes per second, of small values: about twice what was seen of an embedded store, and of a server of one
/// node on this machine.
const WRITES_MAX: u64 = 250_000;
const SERVED_WRITES_MAX: u64 = 150_000;

/// The least that the engine is given: reserves take the same number of chunks of any device.
const ENGINE_BYTES_MIN: u64 = 64 << 20;

/// What a small write takes beside its key and value, at most.
const WRITE_OVERHEAD: u64 = 256;

/// Runs it; gives whether everything was measured.
pub(crate) async fn compare(args: &CompareArgs, interrupt: &Interrupt) -> anyhow::Result<bool> {
    let targets = plan::targets(args)?;
    let turns = plan::turns(args, &targets);
    crate::cli::usage(!turns.is_empty(), "no target that was asked for has any of the modes asked for")?;
    for left_out in plan::left_out(args, &targets) {
        eprintln!("{left_out}");
    }
    output::check_all([("--json", &args.json), ("--csv", &args.csv), ("--html", &args.html)])?;
    let room = room(args, &turns);
    let place = match &args.data_dir {
        Some(folder) => Place::named(folder, room)?,
        None => Place::temporary(room)?,
    };
    let shards = args.shards.unwrap_or_else(|| {
        std::thread::available_parallelism().map_or(2, |cores| cores.get() as u32).min(64)
    });
    let mut table = Comparison {
        format: table::FORMAT,
        command: "compare",
        version: env!("CARGO_PKG_VERSION"),
        partial: true,
        provisional: None,
        machine: Machine::of(Some(place.path())),
        scale_bytes: args.scale,
        cache_bytes: args.cache.unwrap_or((args.scale / 16).max(CACHE_MIN)),
        key_bytes: args.key_size,
        seconds: args.seconds,
        warmup_seconds: args.warmup,
        repetitions: args.repetitions,
        shards,
        nodes: args.nodes,
        configurations: Vec::new(),
        remarks: table::remarks(&targets),
        failures: Vec::new(),
        warnings: Vec::new(),
        rows: Vec::new(),
    };
    eprintln!(
        "{} measurements of {} with {} of cache, {} s each and what loading takes",
        turns.len(),
        bytes(args.scale),
        bytes(table.cache_bytes),
        args.seconds + args.warmup
    );
    let progress = Progress::new(turns.len());
    let mut samples: Vec<(Turn, Sample)> = Vec::new();
    let mut told: Vec<(Turn, BTreeMap<String, String>)> = Vec::new();
    let mut warnings: Vec<Note> = Vec::new();
    let mut interrupted = false;
    for (number, turn) in turns.iter().enumerate() {
        progress.begin(number, turn);
        match one(turn, args, &table, place.path(), interrupt).await {
            Ok(measured) => {
                let child::Measured { sample, settings, failure, warnings: doubts } = measured;
                progress.tell(number, turn, &sample, failure.iter().chain(&doubts));
                told.push((*turn, settings.into_iter().collect()));
                match failure {
                    Some(reason) => table.failures.push(Note::of(turn, reason)),
                    None => samples.push((*turn, sample)),
                }
                warnings.extend(doubts.into_iter().map(|doubt| Note::of(turn, doubt)));
            }
            Err(error) if error.is::<Interrupted>() => {
                interrupted = true;
                break;
            }
            Err(error) => {
                let reason = format!("{error:#}");
                progress.tell(number, turn, &Sample::default(), [&reason]);
                table.failures.push(Note::of(turn, reason));
            }
        }
        table.rows = table::rows(&samples);
        table.configurations = table::configurations(&told);
        table.warnings = warnings.iter().cloned().chain(table::doubts(&table.rows)).collect();
        // Hours of work are not lost with the last measurement. To a pipe it is written once, at the end.
        if let Some(path) = args.json.as_ref().filter(|path| output::is_replaced(path))
            && let Err(error) = write_json(&table, path)
        {
            eprintln!("warning: {error:#}; it is tried again after the next measurement");
        }
        settle(place.path()).await;
    }
    progress.clear();
    if told.is_empty() && table.failures.is_empty() {
        // Interrupted in the first measurement: no table of nothing in place of an older one.
        return Err(anyhow::Error::from(Interrupted).context("nothing was measured, and nothing is written"));
    }
    table.partial = interrupted || !table.failures.is_empty();
    tell(&table);
    // One that cannot be written does not keep the others from it.
    let mut written = Vec::new();
    if let Some(path) = &args.json {
        written.push(write_json(&table, path));
    }
    if let Some(path) = &args.csv {
        written.push(csv::table(path, Row::COLUMNS, &table.rows));
    }
    if let Some(path) = &args.html {
        written.push(page::page(&table).write(path).with_context(|| format!("--html {}", path.display())));
    }
    written.into_iter().collect::<anyhow::Result<()>>()?;
    if interrupted { Err(Interrupted.into()) } else { Ok(table.failures.is_empty()) }
}

#[expect(clippy::print_stdout, reason = "the results are this program's output")]
fn tell(table: &Comparison) {
    println!("{}", table.tables());
}

/// Waits until the disk is done with what the last measurement left to it, its removal included: the next one shall
/// not pay for it.
async fn settle(place: &Path) {
    let place = place.to_owned();
    let synced = tokio::task::spawn_blocking(move || {
        let folder = std::fs::File::open(&place)?;
        nix::unistd::syncfs(&folder).map_err(std::io::Error::from)
    });
    let failed = match synced.await {
        Ok(synced) => synced.err().map(|error| error.to_string()),
        Err(error) => Some(error.to_string()),
    };
    if let Some(error) = failed {
        eprintln!("warning: the disk cannot be synced between measurements: {error}");
    }
}

/// Bytes that Terrane's embedded engine may occupy: it cleans, so its space amplification is what it is given.
fn engine_bytes(args: &CompareArgs, config: Config) -> u64 {
    let percent = match config {
        Config::Plain => 160,
        Config::Compressed => 90,
    };
    args.scale.saturating_mul(percent) / 100
}

/// Bytes of a chunk of the engine's, by default: half a thousandth of a slice's, and large enough for some values.
fn engine_chunk_bytes(capacity_bytes: u64, shards: u32, value_bytes: u64) -> u64 {
    let share = (capacity_bytes / u64::from(shards.max(1)) / 512).max(1);
    (1 << share.ilog2()).max((4 * value_bytes).next_power_of_two()).max(64 << 10)
}

/// Bytes that one store, or one node, may occupy: what is loaded, all that the mixed phase can write (half of its
/// operations do), and as much again by half for what surrounds small values in a log and for the unevenness of shards.
fn store_bytes(args: &CompareArgs, turn: &Turn) -> u64 {
    if turn.target == Contestant::Engine {
        let bytes = args.capacity.unwrap_or(engine_bytes(args, turn.cell.config));
        return bytes.max(ENGINE_BYTES_MIN).checked_next_multiple_of(1 << 20).unwrap_or(bytes);
    }
    let embedded = turn.target.target().is_none_or(TargetName::is_embedded);
    let writes = if embedded { WRITES_MAX } else { SERVED_WRITES_MAX };
    let write = turn.cell.value_bytes + u64::from(args.key_size) + WRITE_OVERHEAD;
    let throughput = writes.saturating_mul(write).min(THROUGHPUT_MAX / 2);
    let mixed = (args.seconds + args.warmup).saturating_mul(throughput);
    let written = args.scale.saturating_add(args.scale / 4).saturating_add(mixed).max(1 << 30);
    let bytes = args.capacity.unwrap_or(written.saturating_add(written / 2));
    bytes.checked_next_multiple_of(64 << 20).unwrap_or(bytes)
}

/// Bytes that one measurement at a time may occupy at most.
fn room(args: &CompareArgs, turns: &[Turn]) -> u64 {
    let of = |turn: &Turn| match turn.target {
        Contestant::Device => args.scale.max(device::SIZE_BYTES_MIN),
        Contestant::Cluster | Contestant::Etcd => store_bytes(args, turn).saturating_mul(args.nodes.into()),
        _ => store_bytes(args, turn),
    };
    turns.iter().map(of).max().unwrap_or(0)
}

/// Connections to servers: as many as each client library is meant to be used with. Redis serves a connection's
/// requests one after another, so its clients have one each; etcd's and Terrane's are multiplexed.
fn connections(turn: &Turn) -> u32 {
    let clients = turn.cell.clients;
    match turn.target {
        Contestant::Redis | Contestant::RedisEverysec => clients,
        Contestant::Etcd => clients.min(8),
        _ => 1,
    }
}

/// One measurement, in a folder that is gone afterwards.
async fn one(
    turn: &Turn,
    args: &CompareArgs,
    table: &Comparison,
    place: &Path,
    interrupt: &Interrupt,
) -> anyhow::Result<child::Measured> {
    let folder = tempfile::Builder::new()
        .prefix("measurement-")
        .tempdir_in(place)
        .with_context(|| format!("cannot make a folder in {}", place.display()))?;
    let Some(target) = turn.target.target() else {
        return probe(turn, args, table.shards, folder.path(), interrupt).await;
    };
    let Cell { config, mode, clients, value_bytes } = turn.cell;
    let records = (args.scale / (value_bytes + u64::from(args.key_size))).max(1);
    let mut arguments = Arguments::default();
    arguments
        .option("target", target.name())
        .option("workload", "a")
        .option("records", records)
        .option("value-size", value_bytes)
        .option("key-size", args.key_size)
        .option("compressible", config.compressible())
        .option("clients", clients)
        .option("seconds", args.seconds)
        .option("warmup", args.warmup)
        .option("seed", turn.repetition)
        .option("check", "values");
    let data = folder.path().join("data");
    std::fs::create_dir(&data).with_context(|| format!("cannot make {}", data.display()))?;
    let mut servers = Servers::None;
    if target.is_embedded() {
        arguments
            .option("threads", table.shards)
            .option("mode", mode.name())
            .option("config", config.name())
            .option("cache", table.cache_bytes)
            .option("capacity", store_bytes(args, turn))
            .path("data", &data);
        let chosen = |name: &str| {
            args.settings.iter().any(|setting| setting.target == turn.target && setting.name == name)
        };
        if turn.target == Contestant::Engine && !chosen("chunk_bytes") {
            let bytes = engine_chunk_bytes(store_bytes(args, turn), table.shards, turn.cell.value_bytes);
            arguments.option("set", format!("chunk_bytes={bytes}"));
        }
        for setting in args.settings.iter().filter(|setting| setting.target == turn.target) {
            arguments.option("set", format!("{}={}", setting.name, setting.value));
        }
    } else {
        arguments.option("connections", connections(turn));
        let (capacity, cache) = (store_bytes(args, turn), table.cache_bytes);
        let started = Servers::start(*turn, args, table.shards, capacity, cache, &data, &mut arguments);
        servers = interrupt.or_interrupted(started).await?;
    }
    let json = folder.path().join("report.json");
    let measured = child::measure(arguments.list_all(), &json, interrupt).await;
    // A server that died explains a measurement that failed.
    let alive = servers.check();
    let settings = servers.settings();
    for complaint in servers.stop() {
        eprintln!("warning: {complaint}");
    }
    alive?;
    let mut measured = measured?;
    measured.settings.extend(settings);
    measured.sample.sa = measured.sample.sa.map(|sa| sa * servers.nodes_per_copy(args.nodes));
    Ok(measured)
}

/// What the disk gives the engine's own I/O code, with the cell's sizes, depth and mix.
async fn probe(
    turn: &Turn,
    args: &CompareArgs,
    shards: u32,
    folder: &Path,
    interrupt: &Interrupt,
) -> anyhow::Result<child::Measured> {
    let cell = device::Cell {
        bytes: u32::try_from(turn.cell.value_bytes)?,
        depth: turn.cell.clients,
        read_share: 0.5,
        durable: turn.cell.mode == Mode::Sync,
    };
    let stop = device::Stop::default();
    // Little data are no less of a disk.
    let (folder, scale) = (folder.to_owned(), args.scale.max(device::SIZE_BYTES_MIN));
    let window = Duration::from_secs(args.seconds.min(5));
    let work = tokio::task::spawn_blocking({
        let stop = stop.clone();
        move || device::measure(&folder, scale, cell, shards, window, &stop)
    });
    let mut work = std::pin::pin!(work);
    let measured = tokio::select! {
        measured = &mut work => measured,
        () = interrupt.raised() => {
            stop.set();
            // What it made is removed when it ends.
            let _ = work.await;
            return Err(Interrupted.into());
        }
    };
    let measured = measured.context("the probe's thread failed")??;
    let sample = Sample {
        mixed_ops_s: Some(measured.ops_s),
        read_p99_us: measured.read_p99_us(),
        write_p99_us: measured.write_p99_us(),
        cpu_s_per_mops: Some(measured.cpu_s_per_mops),
        ..Sample::default()
    };
    let settings = vec![("requests".to_owned(), "1:1 random reads and sequential writes, direct".to_owned())];
    Ok(child::Measured { sample, settings, failure: None, warnings: Vec::new() })
}

/// Which measurement is under way, and how long the rest may take.
struct Progress {
    bar: ProgressBar,
    began: Instant,
    turns: usize,
    seen: bool,
}

impl Progress {
    fn new(turns: usize) -> Progress {
        let seen = std::io::stderr().is_terminal();
        let target = if seen { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(turns as u64), target);
        match ProgressStyle::with_template("{bar:24.cyan/blue} {pos}/{len}  {msg}  {elapsed} so far") {
            Ok(style) => bar.set_style(style),
            Err(error) => unreachable!("a constant template is valid: {error}"),
        }
        if seen {
            bar.enable_steady_tick(Duration::from_secs(1));
        }
        Progress { bar, began: Instant::now(), turns, seen }
    }

    fn begin(&self, done: usize, turn: &Turn) {
        self.bar.set_position(done as u64);
        let left = match done {
            0 => String::new(),
            done => {
                let each = self.began.elapsed() / done as u32;
                format!(", some {:.0} min left", (each * (self.turns - done) as u32).as_secs_f64() / 60.0)
            }
        };
        self.bar.set_message(format!("{}{left}", named(turn)));
    }

    fn tell<'a>(
        &self,
        number: usize,
        turn: &Turn,
        sample: &Sample,
        complaints: impl IntoIterator<Item = &'a String>,
    ) {
        let ops = |ops: Option<f64>| ops.map_or("-".to_owned(), |ops| count(ops.round() as u64));
        let us = |us: Option<f64>| {
            us.map_or("-".to_owned(), |us| latency(Duration::from_nanos((us * 1e3) as u64)))
        };
        let mut line = format!(
            "[{}/{}] {}: load {} ops/s, mixed {} ops/s, p99 read {} write {}",
            number + 1,
            self.turns,
            named(turn),
            ops(sample.load_ops_s),
            ops(sample.mixed_ops_s),
            us(sample.read_p99_us),
            us(sample.write_p99_us)
        );
        for complaint in complaints {
            line.push_str(&format!(" ({complaint})"));
        }
        if self.seen {
            self.bar.suspend(|| eprintln!("{line}"));
        } else {
            eprintln!("{line}");
        }
    }

    fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

fn named(turn: &Turn) -> String {
    let Cell { config, mode, clients, value_bytes } = turn.cell;
    format!(
        "{} {} {}, {}, {clients} clients, repetition {}",
        turn.target.name(),
        mode.name(),
        bytes(value_bytes),
        match config {
            Config::Plain => "incompressible",
            Config::Compressed => "compressible",
        },
        turn.repetition
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: CompareArgs,
    }

    /// What must be free is what the hungriest turn lays out, and that is what can be written in its time. Small values
    /// are slower in bytes than a disk: three nodes for 128 MiB of values of 1 KiB once wanted 78 GiB.
    #[test]
    fn room_is_asked_for_what_is_laid_out() {
        // The room, and what the first target's store of the largest values takes of it.
        let room = |line: &str| {
            let args = Line::try_parse_from(format!("compare {line}").split_whitespace()).unwrap().args;
            let turns = plan::turns(&args, &args.targets);
            let largest = turns.iter().max_by_key(|turn| turn.cell.value_bytes).unwrap();
            (room(&args, &turns), store_bytes(&args, &Turn { target: args.targets[0], ..*largest }))
        };
        let (needed, store) = room("--target engine --target device --scale 1GiB --seconds 1 --warmup 0");
        assert_eq!((needed, store), (1639 << 20, 1639 << 20), "the engine cleans");
        let (needed, store) = room("--target cluster --target engine --nodes 3 --scale 2GiB --seconds 20");
        assert_eq!(needed, 3 * store);
        assert!(store >= 3 * ((5 << 29) + 20 * (800 << 20)) / 2);
        let (needed, store) = room("--target cluster --value-sizes 1024 --scale 128MiB");
        assert!(needed == 3 * store && (10 << 30..20 << 30).contains(&needed), "{}", bytes(needed));
        assert_eq!(room("--target device --scale 64MiB").0, 64 << 20);
        assert_eq!(room("--target device --scale 1MiB").0, device::SIZE_BYTES_MIN);
        assert_eq!(room("--target engine --capacity 100MiB"), (100 << 20, 100 << 20));
        assert_eq!(room("--target engine --config compressed --scale 1000MiB").1, 900 << 20);
    }

    #[test]
    fn a_slice_has_512_chunks_if_values_leave_it_that_many() {
        assert_eq!(engine_chunk_bytes(1639 << 20, 2, 4096), 1 << 20);
        assert_eq!(engine_chunk_bytes(64 << 20, 2, 32 << 10), 128 << 10);
        assert_eq!(engine_chunk_bytes(64 << 20, 2, 100), 64 << 10);
    }
}

//! The command line: what can be asked, with which defaults and limits. Wrong usage ends with exit code 2 (clap's).

pub(crate) mod device;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::load::runner::Crew;
use crate::report::figures;
use crate::workload::Workload;
use crate::workload::record::VALUE_BYTES_MIN;

/// Loads, measures and checks Terrane clusters.
#[derive(Debug, Parser)]
#[command(name = "terrane-loadgen", version, about, long_about = LONG_ABOUT, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const LONG_ABOUT: &str = "\
Loads, measures and checks Terrane clusters.

Every value written says which key, writer and operation it belongs to, and carries a checksum; every acknowledged \
write is remembered. So each value read is proven to be one that was written to that key, each read is held against \
what had been acknowledged before it began, and at the end everything can be read back.

Load is a closed loop: each of --connections workers has one operation in flight and sends the next one when it was \
answered.";

const EXIT_CODES: &str = "\
Exit codes: 0 all done and nothing lost; 1 failure, or something acknowledged was lost; 2 wrong usage; 130 interrupted.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Starts a cluster here, loads it, kills a leader under load, and proves that nothing acknowledged was lost.
    #[command(after_help = DEMO_EXAMPLES)]
    Demo(DemoArgs),
    /// Loads and measures a cluster that is already running.
    #[command(after_help = RUN_EXAMPLES)]
    Run(RunArgs),
    /// Measures what a disk gives to the code that the engine reads and writes through.
    #[command(after_help = device::EXAMPLES)]
    Device(device::DeviceArgs),
}

const DEMO_EXAMPLES: &str = "\
Examples:
  terrane-loadgen demo                                   three nodes, 100,000 records of 1 KiB, YCSB A for 30 s
  terrane-loadgen demo --records 1000 --seconds 4        a quick look
  terrane-loadgen demo --kills 10 --seconds 120          ten kills instead of one
  terrane-loadgen demo --value-size 32KiB --json out.json

The nodes are separate `terrane` processes on loopback; they are stopped on every way out. Their data lies in a
temporary folder that is removed, unless --data-dir names one.

Exit codes: 0 all done and nothing lost; 1 failure, or something acknowledged was lost; 2 wrong usage; 130 interrupted.";

const RUN_EXAMPLES: &str = "\
Examples:
  terrane local --nodes 3 --dir ./cluster &              a cluster to measure
  terrane-loadgen run --addr 127.0.0.1:7400 --workload a --connections 64
  terrane-loadgen run --workload w --seconds 20          updates only
  terrane-loadgen run --workload c --skip-load           read what an earlier run loaded
  terrane-loadgen run --records 1000000 --verify --json out.json

Exit codes: 0 all done and nothing lost; 1 failure, or something acknowledged was lost; 2 wrong usage; 130 interrupted.";

/// What load to send; the same for both commands.
#[derive(Debug, Clone, Args)]
pub(crate) struct LoadArgs {
    /// The mix: YCSB a (half reads, half updates), b (95 % reads), c (reads only), or w (updates only).
    #[arg(long, value_enum, ignore_case = true, default_value = "a", value_name = "a|b|c|w")]
    pub(crate) workload: Workload,

    /// How many records are loaded and used.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=1 << 40), value_name = "N")]
    pub(crate) records: u64,

    /// Bytes of each value, at least 32 (a value describes itself); 4KiB and the like are understood.
    #[arg(long, default_value = "1024", value_parser = value_size, value_name = "BYTES")]
    pub(crate) value_size: usize,

    /// How long the timed phase lasts.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=1_000_000), value_name = "S")]
    pub(crate) seconds: u64,

    /// Operations in flight: workers that each send an operation when their last one was answered. Not sockets: each
    /// thread's client pipelines its workers' operations over a few.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=100_000), value_name = "N")]
    pub(crate) connections: u32,

    /// Threads that the workers are spread over; one sends some 100,000 operations a second.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256), value_name = "N")]
    pub(crate) threads: u32,

    /// Exponent of Zipf's law over the records: 0 is uniform, YCSB's is 0.99.
    #[arg(long, default_value_t = 0.99, value_parser = theta, value_name = "T")]
    pub(crate) theta: f64,

    /// Seed of the operations' order; equal seeds ask for the same.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) seed: u64,

    /// Writes all numbers to this file as JSON (stable keys; units in the names).
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

impl LoadArgs {
    pub(crate) fn crew(&self) -> Crew {
        Crew { threads: self.threads, connections: self.connections }
    }

    pub(crate) fn window(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

#[derive(Debug, Clone, Args)]
pub(crate) struct DemoArgs {
    #[command(flatten)]
    pub(crate) load: LoadArgs,

    /// How many nodes the cluster has.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=9), value_name = "N")]
    pub(crate) nodes: u32,

    /// Shards (threads that own data) of each node.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64), value_name = "N")]
    pub(crate) shards: u32,

    /// Keeps the cluster's data here, and finds it again next time; otherwise a temporary folder is used and removed.
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,

    /// Bytes of each node's device, laid out before the start; by default enough for what will be written.
    #[arg(long, value_parser = figures::size, value_name = "BYTES")]
    pub(crate) size: Option<u64>,

    /// How many times the node that leads most is killed (SIGKILL) and started again during the timed phase: once is
    /// half-way, more are spread evenly.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=1_000), value_name = "N")]
    pub(crate) kills: u32,

    /// Seconds that a killed node stays down.
    #[arg(long, default_value = "1", value_parser = seconds, value_name = "S")]
    pub(crate) restart_after: Duration,

    /// The `terrane` binary to start; by default the one beside this program (under cargo it is built first).
    #[arg(long, value_name = "PATH")]
    pub(crate) terrane: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) load: LoadArgs,

    /// Where the cluster is: base addresses of one or more nodes.
    #[arg(long, default_value = "127.0.0.1:7400", value_delimiter = ',', value_name = "HOST:PORT[,..]")]
    pub(crate) addr: Vec<String>,

    /// Does not load the records first: an earlier run has.
    #[arg(long)]
    pub(crate) skip_load: bool,

    /// Ends the timed phase after this many operations instead of --seconds.
    #[arg(long, conflicts_with = "seconds", value_parser = clap::value_parser!(u64).range(1..), value_name = "N")]
    pub(crate) operations: Option<u64>,

    /// Reads every record back at the end and checks it against what was acknowledged.
    #[arg(long)]
    pub(crate) verify: bool,
}

/// The largest value a cluster can be configured to take.
const VALUE_BYTES_MAX: u64 = 64 << 20;

fn value_size(text: &str) -> Result<usize, String> {
    let bytes = figures::size(text)?;
    if !(VALUE_BYTES_MIN as u64..=VALUE_BYTES_MAX).contains(&bytes) {
        return Err(format!("a value has {VALUE_BYTES_MIN} bytes to 64MiB"));
    }
    usize::try_from(bytes).map_err(|error| error.to_string())
}

fn theta(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(theta) if (0.0..=10.0).contains(&theta) => Ok(theta),
        _ => Err("the exponent is a number from 0 to 10, for example 0.99".to_owned()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=86_400.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("seconds are a number from 0 to 86400, for example 1 or 0.5".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn definitions_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_documented_commands_parse() {
        for line in [
            "terrane-loadgen demo",
            "terrane-loadgen demo --nodes 3 --shards 2 --records 100000 --value-size 1024 --seconds 30 --workload a \
             --json f --data-dir d --connections 32 --threads 1 --seed 7 --restart-after 0.5 --terrane t --size 2GiB",
            "terrane-loadgen run --workload A --addr 127.0.0.1:7400,127.0.0.1:7500 --records 9 --value-size 4KiB \
             --threads 2 --connections 64 --seconds 5 --json f --skip-load --verify",
            "terrane-loadgen run --workload w --operations 1000",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            "terrane-loadgen",
            "terrane-loadgen run --workload z",
            "terrane-loadgen run --records 0",
            "terrane-loadgen run --value-size 31",
            "terrane-loadgen run --value-size 65MiB",
            "terrane-loadgen run --connections 0",
            "terrane-loadgen run --theta -1",
            "terrane-loadgen run --theta nan",
            "terrane-loadgen run --operations 5 --seconds 5",
            "terrane-loadgen demo --nodes 0",
            "terrane-loadgen demo --restart-after -1",
            "terrane-loadgen demo --addr 127.0.0.1:1",
        ] {
            assert_eq!(parse(line).expect_err(line).exit_code(), 2, "{line}");
        }
    }
}

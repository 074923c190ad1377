//! The command line: what can be asked, with which defaults and limits. Wrong usage ends with exit code 2 (clap's).

pub(crate) mod compare;
pub(crate) mod demo;
pub(crate) mod device;
pub(crate) mod load;
pub(crate) mod run;
pub(crate) mod target;
pub(crate) mod verify;

use clap::{Parser, Subcommand};

use crate::cli::compare::{COMPARE_EXAMPLES, CompareArgs};
use crate::cli::demo::{DEMO_EXAMPLES, DemoArgs};
use crate::cli::run::{RUN_EXAMPLES, RunArgs};
use crate::cli::verify::{VERIFY_EXAMPLES, VerifyArgs};

/// Loads, measures and checks Terrane, and its peers beside it.
#[derive(Debug, Parser)]
#[command(name = "terrane-loadgen", version, about, long_about = LONG_ABOUT, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The command line contradicts itself, in a way that only shows when its parts are looked at together.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("wrong usage")]
pub(crate) struct WrongUsage;

/// Refuses a command line unless `right`.
pub(crate) fn usage(right: bool, otherwise: &str) -> anyhow::Result<()> {
    if right { Ok(()) } else { Err(anyhow::anyhow!("{otherwise}").context(WrongUsage)) }
}

const LONG_ABOUT: &str = "\
Loads, measures and checks Terrane, and its peers beside it.

Every value written says which key, writer and operation it belongs to, and carries a checksum; every acknowledged \
write is remembered. So each value read is proven to be one that was written to that key, each read is held against \
what had been acknowledged before it began, and at the end everything can be read back.

Load is a closed loop (each of --clients workers sends its next operation when the last one was answered) or an open \
one (--rate, --profile: operations begin when they are due, and their latency counts from then).";

const EXIT_CODES: &str = "\
Exit codes: 0 all done and nothing lost; 1 failure, or something acknowledged was lost; 2 wrong usage; 130 interrupted.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Starts a cluster here, loads it, kills a leader under load, and proves that nothing acknowledged was lost.
    #[command(after_help = DEMO_EXAMPLES)]
    Demo(Box<DemoArgs>),
    /// Loads and measures a cluster that is already running, or an embedded store.
    #[command(after_help = RUN_EXAMPLES)]
    Run(Box<RunArgs>),
    /// Measures Terrane beside its peers, in one table.
    #[command(after_help = COMPARE_EXAMPLES)]
    Compare(Box<CompareArgs>),
    /// Measures what a disk gives to the code that the engine reads and writes through.
    #[command(after_help = device::EXAMPLES)]
    Device(device::DeviceArgs),
    /// Reads back what an earlier run recorded as acknowledged.
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify(Box<VerifyArgs>),
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
             --json f --data-dir d --clients 32 --threads 1 --seed 7 --restart-after 0.5 --terrane t --size 2GiB",
            "terrane-loadgen run --workload A --addr 127.0.0.1:7400,127.0.0.1:7500 --records 9 --value-size 4KiB \
             --threads 2 --clients 64 --seconds 5 --json f --html h --csv c --hlog l --skip-load --verify",
            "terrane-loadgen run --workload w --operations 1000 --connections 4 --pipeline 8 --pin 0-1",
            "terrane-loadgen run --target engine --mode nosync --config compressed --cache 64MiB --threads 2",
            "terrane-loadgen run --target rocksdb --blob --set write_buffer_size=32MiB",
            "terrane-loadgen run --rate 20k --warmup 5 --distribution latest --record acknowledged",
            "terrane-loadgen run --profile 1000..9000/5@50,c:max@10 --value-size zipf:64..4096 --key-size 16",
            "terrane-loadgen verify acknowledged --addr 127.0.0.1:7400 --memory 64MiB",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            "terrane-loadgen",
            "terrane-loadgen run --records 0",
            "terrane-loadgen run --value-size many",
            "terrane-loadgen run --value-size zipf:64",
            "terrane-loadgen run --clients 0",
            "terrane-loadgen run --clients 8 --pipeline 2",
            "terrane-loadgen run --operations 5 --seconds 5",
            "terrane-loadgen run --rate fast",
            "terrane-loadgen run --rate 5 --profile 5@5",
            "terrane-loadgen run --profile 5",
            "terrane-loadgen run --operations 5 --profile 5@5",
            "terrane-loadgen run --workload z",
            "terrane-loadgen run --value-size 31",
            "terrane-loadgen run --value-size 65MiB",
            "terrane-loadgen run --compressible 101",
            "terrane-loadgen run --pin 3-1",
            "terrane-loadgen run --set nothing",
            "terrane-loadgen run --target floppy",
            "terrane-loadgen run --mode async",
            "terrane-loadgen demo --nodes 0",
            "terrane-loadgen demo --restart-after -1",
            "terrane-loadgen demo --addr 127.0.0.1:1",
            "terrane-loadgen verify",
        ] {
            assert_eq!(parse(line).expect_err(line).exit_code(), 2, "{line}");
        }
    }
}

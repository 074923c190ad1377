//! `demo`'s arguments.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::cli::load::{LoadArgs, seconds};
use crate::report::figures;

pub(crate) const DEMO_EXAMPLES: &str = "\
Examples:
  terrane-loadgen demo                                   three nodes, 100,000 records of 1 KiB, YCSB A for 30 s
  terrane-loadgen demo --records 1000 --seconds 4        a quick look
  terrane-loadgen demo --kills 10 --seconds 120          ten kills instead of one
  terrane-loadgen demo --value-size 32KiB --html out.html

The nodes are separate `terrane` processes on loopback; they are stopped on every way out. Their data lies in a
temporary folder that is removed, unless --data-dir names one.

Exit codes: 0 all done and nothing lost; 1 failure, or something acknowledged was lost; 2 wrong usage; 130 interrupted.";

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

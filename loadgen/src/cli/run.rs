//! `run`'s arguments.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::cli::load::LoadArgs;
use crate::cli::target::TargetArgs;

pub(crate) const RUN_EXAMPLES: &str = "\
Examples:
  terrane local --nodes 3 --dir ./cluster &              a cluster to measure
  terrane-loadgen run --addr 127.0.0.1:7400 --workload a --clients 64
  terrane-loadgen run --workload w --seconds 20 --html run.html
  terrane-loadgen run --rate 20k --warmup 5              open loop: latency from when each operation was due
  terrane-loadgen run --profile 5k..50k/10@100           a staircase of ten rates, ten seconds each
  terrane-loadgen run --profile c:max@10,a:5k@30         reads at full speed, then a mix at a fixed rate
  terrane-loadgen run --workload c --skip-load           read what an earlier run loaded
  terrane-loadgen run --record acknowledged              then: terrane-loadgen verify acknowledged
  terrane-loadgen run --target engine --threads 2 --mode nosync --records 1000000
  terrane-loadgen run --target engine --trace engine     then: cargo bench -p terrane-ocssd --bench ftl -- --trace engine.*
  terrane-loadgen run --target rocksdb --clients 8       a peer (cargo build --features rocksdb)

Exit codes: 0 all done and nothing lost; 1 failure, or something acknowledged was lost; 2 wrong usage; 130 interrupted.";

/// How closely answers are held against what was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Check {
    /// Each value read is whole and belongs to its key, and is no older than what was acknowledged before the read
    /// began: 16 bytes of memory a record.
    Ledger,
    /// Each value read is whole and belongs to its key.
    Values,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) load: LoadArgs,

    #[command(flatten)]
    pub(crate) target: TargetArgs,

    /// Does not load the records first: an earlier run has.
    #[arg(long)]
    pub(crate) skip_load: bool,

    /// Ends after loading.
    #[arg(long, conflicts_with = "skip_load")]
    pub(crate) only_load: bool,

    /// Ends the timed phase after this many operations instead of --seconds.
    #[arg(long, conflicts_with_all = ["seconds", "profile"], value_parser = clap::value_parser!(u64).range(1..), value_name = "N")]
    pub(crate) operations: Option<u64>,

    /// How closely answers are checked: against a ledger of everything acknowledged, or each value by itself.
    #[arg(long, value_enum, default_value = "ledger", value_name = "ledger|values")]
    pub(crate) check: Check,

    /// Reads every record back at the end and checks it against what was acknowledged.
    #[arg(long)]
    pub(crate) verify: bool,

    /// Records every acknowledged write in this file, for `verify`: 32 bytes each. Called FILE.unfinished until the run
    /// ends; a run that is killed leaves that.
    #[arg(long, value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,

    /// A probe's JSON (`device --json`): the run is told as a share of what the device gave it.
    #[arg(long, value_name = "FILE")]
    pub(crate) device: Option<PathBuf>,
}

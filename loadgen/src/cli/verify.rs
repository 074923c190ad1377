//! `verify`'s arguments.

use std::path::PathBuf;

use clap::Args;

use crate::cli::target::TargetArgs;
use crate::report::figures;

pub(crate) const VERIFY_EXAMPLES: &str = "\
Examples:
  terrane-loadgen run --record acknowledged
  terrane-loadgen verify acknowledged
  terrane-loadgen verify acknowledged --addr 10.0.0.1:7400 --memory 64MiB --clients 64

Others may write meanwhile: a record may be newer than what was acknowledged, never older, other or gone.

Exit codes: 0 everything acknowledged is there; 1 failure, or something is lost; 2 wrong usage; 130 interrupted.";

#[derive(Debug, Clone, Args)]
pub(crate) struct VerifyArgs {
    /// What `run --record` wrote.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,

    #[command(flatten)]
    pub(crate) target: TargetArgs,

    /// Memory for what was acknowledged; the file is read once for each part of the records that fits.
    #[arg(long, default_value = "256MiB", value_parser = figures::size, value_name = "BYTES")]
    pub(crate) memory: u64,

    /// Reads in flight.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=100_000), value_name = "N")]
    pub(crate) clients: u32,

    /// Threads that read.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256), value_name = "N")]
    pub(crate) threads: u32,

    /// Writes the result to this file as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

//! `terrane config`: the example to start from, and a check of what became of it.

use std::path::PathBuf;

use anyhow::Context;

use super::{Failure, output};
use crate::config::{ClusterId, Config};

const EXAMPLES: &str = "\
Examples:
  terrane config --example > node-1.toml     a commented file with a new cluster id
  terrane config --check node-1.toml         what would `terrane start` say to it?";

/// Print a commented example, or check a file without starting anything.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
#[group(required = true, multiple = false)]
pub(super) struct Args {
    /// Print a commented configuration with a new cluster id
    #[arg(long)]
    example: bool,
    /// Parse and validate FILE
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    if let Some(path) = &args.check {
        let config = Config::load(path)?;
        config.validate()?;
        return output::print(format!(
            "{}: valid: node {} of {} in cluster {}\n",
            path.display(),
            config.node_id,
            config.nodes.len(),
            config.cluster_id
        ));
    }
    // A constant id would be copied into many clusters, which could then meet and mix.
    let example = Config::example();
    let written = Config::parse(&example).context("parsing the example")?.cluster_id;
    output::print(example.replace(&written.to_string(), &new_cluster_id()?.to_string()))
}

/// A cluster id drawn from the operating system's generator.
pub(super) fn new_cluster_id() -> anyhow::Result<ClusterId> {
    use std::io::Read;
    let mut bits = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bits))
        .context("reading 16 random bytes from /dev/urandom")?;
    // Zero is no id; it comes up once in 2^128.
    Ok(ClusterId(u128::from_le_bytes(bits).max(1)))
}

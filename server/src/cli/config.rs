//! `terrane config`: the example to start from, and a check of what became of it.

use std::path::PathBuf;

use anyhow::Context;
use terrane_ocssd::{Device, OpenError, Superblock};

use super::{Failure, output};
use crate::config::{ByteSize, ClusterId, Config};

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
    /// Parse and validate FILE, and say what its device is
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    if let Some(path) = &args.check {
        let config = Config::load(path)?;
        config.validate()?;
        return output::print(format!(
            "{}: valid: node {} of {} in cluster {}\n{}: {}\n",
            path.display(),
            config.node_id,
            config.nodes.len(),
            config.cluster_id,
            config.data.display(),
            describe_device(&config)
        ));
    }
    // A constant id would be copied into many clusters, which could then meet and mix.
    let example = Config::example();
    let written = Config::parse(&example).context("parsing the example")?.cluster_id;
    output::print(example.replace(&written.to_string(), &new_cluster_id()?.to_string()))
}

/// What a configuration's device is, without taking it from a node that runs on it. A node need not have one yet, so that
/// nothing here is an error.
fn describe_device(config: &Config) -> String {
    match Device::inspect(&config.data) {
        Ok(found) => match found.superblock {
            Some(superblock) => {
                let described = format!(
                    "{}, laid out for node {}: {} slices of {}",
                    found.kind,
                    superblock.node,
                    superblock.shards,
                    ByteSize(superblock.slice_bytes)
                );
                let Superblock { cluster, node, shards, chunk_bytes, .. } = superblock;
                match config.check_device(cluster, node, shards, chunk_bytes) {
                    Ok(()) => described,
                    Err(error) => format!("{described}. `terrane start` will refuse it: {error}"),
                }
            }
            None => format!("{} (whose it is, `terrane start` finds out when it takes it)", found.kind),
        },
        Err(OpenError::Missing { .. }) => "not there yet (`terrane format`)".to_owned(),
        Err(error) => error.to_string(),
    }
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

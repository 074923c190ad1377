//! `terrane start`: one node, in the foreground, until it is told to stop.

use std::io::{self, IsTerminal};
use std::net::{IpAddr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use super::Failure;
use crate::config::{ByteSize, Config, Pin};

/// How long the kernel may take to free a dead node's ports; milliseconds in practice.
const PORTS_PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks at the ports.
const PORTS_INTERVAL: Duration = Duration::from_millis(5);

const EXAMPLES: &str = "\
The device must have been laid out by `terrane format`: a node never starts empty, because a node
that forgot its votes could elect a second leader. SIGTERM and SIGINT stop it gracefully: it hands
its leaderships over and its log is flushed. Logs go to standard error.

Examples:
  terrane start --config node-1.toml
  terrane start --config node-1.toml --log debug
  terrane start --config node-1.toml --log info,terrane_raft=debug --data /dev/nvme0n1";

/// Run a node until SIGTERM or SIGINT.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The node's configuration; `terrane config --example` prints one
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Instead of `data`: the device
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Instead of `listen`: the IP address to bind to
    #[arg(long, value_name = "IP")]
    listen: Option<IpAddr>,
    /// Instead of `cache_bytes`: cache of values per shard
    #[arg(long, value_name = "SIZE")]
    cache_bytes: Option<ByteSize>,
    /// Instead of `pin`: pin shards to cores
    #[arg(long, value_name = "true|false|auto")]
    pin: Option<Pin>,
    /// Acknowledge writes before they are durable: power loss loses them. For comparisons only
    #[arg(long)]
    nosync: bool,
    /// Instead of `log`: what is logged, a level or a filter of `tracing`
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

impl Args {
    fn override_fields(&self, config: &mut Config) {
        if let Some(data) = &self.data {
            config.data.clone_from(data);
        }
        if let Some(listen) = self.listen {
            config.listen = Some(listen);
        }
        if let Some(size) = self.cache_bytes {
            config.cache_bytes = size.0;
        }
        if let Some(pin) = self.pin {
            config.pin = pin;
        }
        config.nosync |= self.nosync;
        if let Some(log) = &self.log {
            config.log.clone_from(log);
        }
    }
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let mut config = Config::load(&args.config)?;
    args.override_fields(&mut config);
    config.validate()?;
    log_to_standard_error(&config.log)?;
    wait_for_ports(&config);
    crate::node::run(&config)?;
    Ok(())
}

/// Waits until no one listens on this node's ports any more, at most [`PORTS_PATIENCE`].
///
/// A node that is started again right after it ended would else fail now and then: the kernel takes the
/// io_uring of a process down after the process is gone, and until then the accepts in it keep the
/// listening sockets open. Who still listens later is another process, which is the node's to report.
fn wait_for_ports(config: &Config) {
    let deadline = Instant::now() + PORTS_PATIENCE;
    let base = config.own_node().address.port();
    let ports = base..=base + config.shards as u16;
    let free = || {
        ports.clone().all(|port| match TcpListener::bind((config.listen_ip(), port)) {
            Ok(_) => true,
            Err(error) => error.kind() != io::ErrorKind::AddrInUse,
        })
    };
    while !free() && Instant::now() < deadline {
        std::thread::sleep(PORTS_INTERVAL);
    }
}

fn log_to_standard_error(filter: &str) -> anyhow::Result<()> {
    let filter: EnvFilter = filter.parse().context("log")?;
    tracing_subscriber::fmt()
        .compact()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init()
        .map_err(|error| anyhow::anyhow!("cannot log to standard error: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn overridden(flags: &[&str]) -> Config {
        let line = Line::parse_from(["start", "--config", "f"].iter().chain(flags));
        let mut config = Config::parse(&Config::example()).expect("the example parses");
        line.args.override_fields(&mut config);
        config
    }

    #[test]
    fn flags_override_the_file_and_only_where_they_are_given() {
        assert_eq!(overridden(&[]), Config::parse(&Config::example()).expect("the example parses"));
        let config = overridden(&[
            "--data",
            "/dev/x",
            "--listen",
            "0.0.0.0",
            "--cache-bytes",
            "1MiB",
            "--pin",
            "false",
            "--nosync",
            "--log",
            "debug",
        ]);
        assert_eq!(config.data, PathBuf::from("/dev/x"));
        assert_eq!(config.listen, Some(IpAddr::from([0, 0, 0, 0])));
        assert_eq!((config.cache_bytes, config.pin), (1 << 20, Pin::Never));
        assert!(config.nosync);
        assert_eq!(config.log, "debug");
    }
}

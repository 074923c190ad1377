//! What `put`, `get`, `del`, `scan` and `status` share: where the cluster is, how long to wait, and what
//! the client's errors mean to a script.

use std::time::Duration;

use anyhow::Context;
use terrane_client::Client;
use tokio::runtime::Runtime;

use super::{Exit, Failure};
use crate::config::NodeAddress;

/// Where the cluster is and how it is talked to.
#[derive(Debug, clap::Args)]
pub(super) struct Target {
    /// One or more nodes; the rest is learned from them
    #[arg(
        long,
        value_name = "HOST:PORT[,..]",
        env = "TERRANE_ADDR",
        default_value = "127.0.0.1:7400",
        value_delimiter = ','
    )]
    addr: Vec<NodeAddress>,
    /// How long to wait for an answer, retries included, such as 500ms, 5s or 2m
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_time)]
    timeout: Duration,
    /// Print JSON, errors too
    #[arg(long)]
    pub(super) json: bool,
}

/// Reads `500ms`, `5s`, `2m` or a plain number of seconds; not zero.
fn parse_time(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| "write a time such as 500ms, 5s or 2m".to_owned())?;
    let millis = match unit.trim() {
        "ms" => Some(number),
        "" | "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        _ => return Err("write a time such as 500ms, 5s or 2m".to_owned()),
    };
    match millis {
        None | Some(0) => Err("the time must be at least 1ms, and finite".to_owned()),
        Some(millis) => Ok(Duration::from_millis(millis)),
    }
}

/// A client and the runtime it lives on, for a program that does one thing after the other.
pub(super) struct Connection {
    runtime: Runtime,
    pub(super) client: Client,
}

impl Connection {
    pub(super) fn open(target: &Target) -> Result<Connection, Failure> {
        let addresses: Vec<String> = target.addr.iter().map(NodeAddress::to_string).collect();
        Connection::to(&addresses, target.timeout)
    }

    /// Connects to the cluster of the first of `addresses` that answers.
    pub(super) fn to(addresses: &[String], timeout: Duration) -> Result<Connection, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("starting the client's runtime")?;
        let client = runtime
            .block_on(Client::builder().timeout(timeout).connect(addresses))
            .map_err(|error| Failure::new(Exit::Unavailable, error.to_string()))?;
        Ok(Connection { runtime, client })
    }

    pub(super) fn wait<T>(&self, operation: impl Future<Output = T>) -> T {
        self.runtime.block_on(operation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_units() {
        for (text, millis) in [("500ms", 500), ("5s", 5000), ("5 s", 5000), ("2m", 120_000), ("7", 7000)] {
            assert_eq!(parse_time(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "0", "0ms", "-1s", "1.5s", "1h", "soon", "99999999999999999999s"] {
            assert!(parse_time(text).is_err(), "{text}");
        }
        assert!(parse_time("18446744073709551615m").is_err());
    }
}

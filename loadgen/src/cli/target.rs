//! What load is sent to, and how that is set up.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::cli::usage;
use crate::report::figures;
use crate::target::setup::Overrides;

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TargetName {
    /// A Terrane cluster, through its client.
    Cluster,
    /// Terrane's engine, embedded: no network.
    Engine,
    /// RocksDB, embedded (feature `rocksdb`).
    Rocksdb,
    /// RocksDB with integrated BlobDB and its garbage collection (feature `rocksdb`).
    Blobdb,
    /// fjall with key-value separation, embedded (feature `fjall`).
    Fjall,
    /// etcd, through its client (feature `etcd`).
    Etcd,
    /// Redis, through its client (feature `redis`).
    Redis,
}

impl TargetName {
    /// As on the command line and in reports.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            TargetName::Cluster => "cluster",
            TargetName::Engine => "engine",
            TargetName::Rocksdb => "rocksdb",
            TargetName::Blobdb => "blobdb",
            TargetName::Fjall => "fjall",
            TargetName::Etcd => "etcd",
            TargetName::Redis => "redis",
        }
    }

    /// The cargo feature that brings it; `None`: it is always there.
    pub(crate) const fn feature(self) -> Option<&'static str> {
        match self {
            TargetName::Cluster | TargetName::Engine => None,
            TargetName::Rocksdb | TargetName::Blobdb => Some("rocksdb"),
            TargetName::Fjall => Some("fjall"),
            TargetName::Etcd => Some("etcd"),
            TargetName::Redis => Some("redis"),
        }
    }

    /// Whether this program was built with it.
    pub(crate) const fn is_compiled_in(self) -> bool {
        match self {
            TargetName::Cluster | TargetName::Engine => true,
            TargetName::Rocksdb | TargetName::Blobdb => cfg!(feature = "rocksdb"),
            TargetName::Fjall => cfg!(feature = "fjall"),
            TargetName::Etcd => cfg!(feature = "etcd"),
            TargetName::Redis => cfg!(feature = "redis"),
        }
    }

    /// Whether it runs within this process.
    pub(crate) const fn is_embedded(self) -> bool {
        !matches!(self, TargetName::Cluster | TargetName::Etcd | TargetName::Redis)
    }
}

/// This program was built without the peer.
#[derive(Debug, thiserror::Error)]
#[error(
    "this program was built without {0}: build it with `cargo build --release -p terrane-loadgen --features {1}` (or \
     `--features peers` for all of them)"
)]
pub(crate) struct NotCompiledIn(pub(crate) &'static str, pub(crate) &'static str);

/// What an acknowledgement means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// An acknowledged write survives power loss.
    Sync,
    /// It survives the process only.
    Nosync,
}

impl Mode {
    /// As on the command line and in reports.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Mode::Sync => "sync",
            Mode::Nosync => "nosync",
        }
    }
}

/// Two configurations that every store is compared in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Config {
    /// Incompressible values, no compression.
    Plain,
    /// Values that compress to half, each store with its usual compression.
    Compressed,
}

impl Config {
    /// As on the command line and in reports.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Config::Plain => "plain",
            Config::Compressed => "compressed",
        }
    }

    /// Percent of each value that compresses away.
    pub(crate) const fn compressible(self) -> u32 {
        match self {
            Config::Plain => 0,
            Config::Compressed => 50,
        }
    }
}

/// What load is sent to.
#[derive(Debug, Clone, Args)]
pub(crate) struct TargetArgs {
    /// What load is sent to.
    #[arg(long, value_enum, default_value = "cluster", value_name = "TARGET", help_heading = "Target")]
    pub(crate) target: TargetName,

    /// With --target rocksdb: integrated BlobDB, as --target blobdb.
    #[arg(long, help_heading = "Target")]
    pub(crate) blob: bool,

    /// Where a cluster or server is: one or more addresses. [default: 127.0.0.1:7400, etcd 127.0.0.1:2379, redis
    /// 127.0.0.1:6379]
    #[arg(long, value_delimiter = ',', value_name = "HOST:PORT[,..]", help_heading = "Target")]
    pub(crate) addr: Vec<String>,

    /// The servers' processes, if they run here: CPU, memory and bytes written are read from the kernel.
    #[arg(long, value_delimiter = ',', value_name = "PID[,..]", help_heading = "Target")]
    pub(crate) server_pid: Vec<u32>,

    /// The servers' data folders, in the order of --server-pid: what they occupy is counted.
    #[arg(long, value_delimiter = ',', value_name = "DIR[,..]", help_heading = "Target")]
    pub(crate) server_data: Vec<PathBuf>,

    /// The folder of an embedded store, kept and found again; by default a temporary one that is removed.
    #[arg(long, value_name = "DIR", help_heading = "Target")]
    pub(crate) data: Option<PathBuf>,

    /// What an embedded store's acknowledgement means: sync survives power loss, nosync the process only.
    #[arg(long, value_enum, default_value = "sync", value_name = "sync|nosync", help_heading = "Target")]
    pub(crate) mode: Mode,

    /// plain: incompressible values, no compression; compressed: values that compress to half, the store's usual
    /// compression.
    #[arg(
        long,
        value_enum,
        default_value = "plain",
        value_name = "plain|compressed",
        help_heading = "Target"
    )]
    pub(crate) config: Config,

    /// Memory that an embedded store may cache in. [default: a sixteenth of the loaded data, at least 8 MiB]
    #[arg(long, value_name = "BYTES", value_parser = figures::size, help_heading = "Target")]
    pub(crate) cache: Option<u64>,

    /// Bytes of the embedded engine's device. [default: enough for what will be written]
    #[arg(long, value_name = "BYTES", value_parser = figures::size, help_heading = "Target")]
    pub(crate) capacity: Option<u64>,

    /// Records what the embedded engine writes to its device, and which chunks it resets, in FILE.0, FILE.1, …: one for each
    /// shard, about 10 bytes a write. For the `ftl` bench, which replays them on a model of an ordinary drive.
    #[arg(long, value_name = "FILE", help_heading = "Target")]
    pub(crate) trace: Option<PathBuf>,

    /// Overrides a setting of an embedded store; which there are is said when one is unknown.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = setting, help_heading = "Target")]
    pub(crate) settings: Vec<(String, String)>,
}

impl TargetArgs {
    /// The target that is meant.
    pub(crate) fn name(&self) -> TargetName {
        match self.target {
            TargetName::Rocksdb if self.blob => TargetName::Blobdb,
            name => name,
        }
    }

    /// Addresses, with the target's usual one as default.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let usual = match self.target {
            TargetName::Etcd => "127.0.0.1:2379",
            TargetName::Redis => "127.0.0.1:6379",
            _ => "127.0.0.1:7400",
        };
        if self.addr.is_empty() { vec![usual.to_owned()] } else { self.addr.clone() }
    }

    /// Refuses what the target would ignore: whoever says `--mode nosync` to a cluster must not believe that it heard.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        const OF_EMBEDDED: &str = "is of embedded stores: a server has its own configuration";
        const OF_SERVERS: &str = "is of servers, and this store is embedded";
        let name = self.name();
        let (servers, embedded) = (!name.is_embedded(), name.is_embedded());
        for (given, ignored, option, what) in [
            (self.data.is_some(), servers, "--data", "is the folder of an embedded store"),
            (self.mode == Mode::Nosync, servers, "--mode nosync", OF_EMBEDDED),
            (self.cache.is_some(), servers, "--cache", OF_EMBEDDED),
            (!self.settings.is_empty(), servers, "--set", OF_EMBEDDED),
            (self.capacity.is_some(), servers, "--capacity", OF_EMBEDDED),
            (
                self.trace.is_some(),
                name != TargetName::Engine,
                "--trace",
                "records the media of --target engine",
            ),
            (self.blob, name != TargetName::Blobdb, "--blob", "is of --target rocksdb"),
            (!self.addr.is_empty(), embedded, "--addr", OF_SERVERS),
            (!self.server_pid.is_empty(), embedded, "--server-pid", OF_SERVERS),
            (!self.server_data.is_empty(), embedded, "--server-data", OF_SERVERS),
        ] {
            usage(!(given && ignored), &format!("{option} {what} (the target is {})", name.name()))?;
        }
        Ok(())
    }

    /// Settings that are to be otherwise.
    pub(crate) fn overrides(&self) -> Overrides {
        Overrides::new(self.settings.iter().cloned())
    }
}

fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("a setting is NAME=VALUE".to_owned()),
    }
}

//! `compare`'s arguments.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::cli::target::{Config, Mode};
use crate::report::figures;
use crate::workload::record::VALUE_BYTES_MIN;
use crate::workload::spec::VALUE_BYTES_MAX;

pub(crate) const COMPARE_EXAMPLES: &str = "\
Examples:
  terrane-loadgen compare                                every embedded store of this build, both client counts
  terrane-loadgen compare --quick                        a look: 256 MiB, two sizes, 5 s, one repetition
  terrane-loadgen compare --target engine --target rocksdb --value-sizes 4096 --mode nosync --clients 8
  terrane-loadgen compare --target cluster --target etcd --value-sizes 1024 --scale 128MiB --clients 64
  terrane-loadgen compare --set rocksdb.write_buffer_size=128MiB --json table.json --html table.html

Peers are features of the build: cargo build --release -p terrane-loadgen --features peers. A fair RocksDB needs the
processor's own checksum instructions: RUSTFLAGS=\"-C target-cpu=native\".

Every measurement is a process of its own, so memory, CPU and bytes written are one store's. Targets take turns (A B C,
then B C A, C A B), so that drift of a shared machine hits all alike; ratios are what counts.

Exit codes: 0 all measured; 1 something could not be measured (the rest is told); 2 wrong usage; 130 interrupted (what
was measured by then is told).";

/// What can stand in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Contestant {
    /// What the disk gives the engine's own I/O code: same sizes, depth and mix.
    Device,
    /// Terrane's engine, embedded.
    Engine,
    /// RocksDB, embedded.
    Rocksdb,
    /// RocksDB with integrated BlobDB and its garbage collection, embedded.
    Blobdb,
    /// fjall with key-value separation, embedded.
    Fjall,
    /// A Terrane cluster of --nodes nodes on loopback.
    Cluster,
    /// An etcd cluster of --nodes members on loopback.
    Etcd,
    /// A Redis server on loopback that syncs every write (appendfsync always).
    Redis,
    /// The same, synced once a second (appendfsync everysec): an acknowledged write may be lost.
    RedisEverysec,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct CompareArgs {
    /// What is compared; repeatable. [default: device, engine and every embedded peer of this build]
    #[arg(long = "target", value_enum, value_name = "TARGET")]
    pub(crate) targets: Vec<Contestant>,

    /// Bytes of the values.
    #[arg(long, value_delimiter = ',', value_parser = value_size, value_name = "BYTES[,..]", default_value = "1024,4096,16384,32768")]
    pub(crate) value_sizes: Vec<u64>,

    /// plain: incompressible values, no compression; compressed: values that compress to half, each store's usual
    /// compression.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "plain",
        value_name = "plain|compressed[,..]"
    )]
    pub(crate) config: Vec<Config>,

    /// sync: an acknowledged write survives power loss; nosync: the process only.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "sync", value_name = "sync|nosync[,..]")]
    pub(crate) mode: Vec<Mode>,

    /// Operations in flight.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=10_000), default_value = "8,64", value_name = "N[,..]")]
    pub(crate) clients: Vec<u32>,

    /// Bytes of keys and values that are loaded for each value size.
    #[arg(long, default_value = "2GiB", value_parser = scale, value_name = "BYTES")]
    pub(crate) scale: u64,

    /// Memory that each store may cache in. [default: a sixteenth of --scale]
    #[arg(long, value_parser = figures::size, value_name = "BYTES")]
    pub(crate) cache: Option<u64>,

    /// Bytes that each store, and each node of a cluster, may occupy: what Terrane lays out, and what must be free.
    /// [default: one and a half times what loading and the mixed phase may write, at least 1.5 GiB]
    #[arg(long, value_parser = figures::size, value_name = "BYTES")]
    pub(crate) capacity: Option<u64>,

    /// How long the mixed phase lasts, after --warmup seconds of the same.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=100_000), value_name = "S")]
    pub(crate) seconds: u64,

    /// Seconds of the mixed load that do not count.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=100_000), value_name = "S")]
    pub(crate) warmup: u64,

    /// How often everything is measured; the table has the medians, and the least and most beside them.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100), value_name = "N")]
    pub(crate) repetitions: u32,

    /// Shards of the embedded engine and of each cluster node. [default: the processors]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64), value_name = "N")]
    pub(crate) shards: Option<u32>,

    /// Nodes of a Terrane cluster, members of an etcd cluster.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=9), value_name = "N")]
    pub(crate) nodes: u32,

    /// Bytes of keys.
    #[arg(long, default_value_t = 16, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(8..=256))]
    pub(crate) key_size: u32,

    /// Where the data lies meanwhile. [default: the system's temporary folder, or where there is room]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,

    /// The `terrane` binary for --target cluster; by default the one beside this program.
    #[arg(long, value_name = "PATH")]
    pub(crate) terrane: Option<PathBuf>,

    /// Overrides a setting of one target; which there are is said when one is unknown.
    #[arg(long = "set", value_name = "TARGET.NAME=VALUE", value_parser = setting)]
    pub(crate) settings: Vec<Override>,

    /// A quick look: 256 MiB, values of 1 and 32 KiB, 8 clients, 5 s, one repetition.
    #[arg(long, conflicts_with_all = ["scale", "value_sizes", "seconds", "repetitions", "clients"])]
    pub(crate) quick: bool,

    /// Writes the table to this file as JSON (stable keys; units in the names), after every measurement; to what is no
    /// regular file, once at the end.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Writes the table to this file as CSV.
    #[arg(long, value_name = "FILE")]
    pub(crate) csv: Option<PathBuf>,

    /// Writes a page with charts to this file; it needs no network to be looked at.
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
}

/// A setting of one target that is to be otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Override {
    /// Whose.
    pub(crate) target: Contestant,
    pub(crate) name: String,
    pub(crate) value: String,
}

/// Bytes of a value: one describes itself, so that it cannot be as small as it likes.
fn value_size(text: &str) -> Result<u64, String> {
    match figures::size(text)? {
        bytes if (VALUE_BYTES_MIN as u64..=VALUE_BYTES_MAX as u64).contains(&bytes) => Ok(bytes),
        _ => Err(format!("a value has {VALUE_BYTES_MIN} bytes to 64MiB")),
    }
}

impl CompareArgs {
    /// The arguments as they are meant, --quick spelled out.
    pub(crate) fn spelled_out(mut self) -> Self {
        if self.quick {
            self.scale = 256 << 20;
            self.value_sizes = vec![1024, 32768];
            self.clients = vec![8];
            self.seconds = 5;
            self.repetitions = 1;
        }
        self
    }
}

/// Bytes that are loaded: less than this measures no store.
fn scale(text: &str) -> Result<u64, String> {
    const MIN: u64 = 1 << 20;
    match figures::size(text)? {
        bytes if bytes >= MIN => Ok(bytes),
        _ => Err(format!("at least {} are loaded", figures::bytes(MIN))),
    }
}

fn setting(text: &str) -> Result<Override, String> {
    let wrong = || "a setting is TARGET.NAME=VALUE, for example rocksdb.write_buffer_size=128MiB".to_owned();
    let (path, value) = text.split_once('=').ok_or_else(wrong)?;
    let (target, name) = path.split_once('.').ok_or_else(wrong)?;
    let target = Contestant::from_str(target, true).map_err(|_| {
        let known = Contestant::value_variants().iter().filter_map(ValueEnum::to_possible_value);
        let known: Vec<String> = known.map(|value| value.get_name().to_owned()).collect();
        format!("'{target}' is no target: there are {}", known.join(", "))
    })?;
    if name.is_empty() {
        return Err(wrong());
    }
    Ok(Override { target, name: name.to_owned(), value: value.to_owned() })
}

//! A node's configuration: one TOML file, a few of its fields also flags of `terrane start`.
//!
//! Two steps, so that flags can override the file: [`Config::load`] reads and parses, [`Config::validate`]
//! checks every field and their relations. What needs the device (is it this cluster's, does a value fit
//! its chunks) is [`Config::check_device`].
//!
//! Invariants:
//! - Unknown fields are errors: a misspelt limit must not silently become the default.
//! - Fields marked *same on every node* decide where data lives or whether leases are safe; nodes compare
//!   [`Config::agreement`] when they meet.

mod byte_size;
mod identity;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub use byte_size::{ByteSize, ByteSizeError};
pub use identity::{ClusterId, ClusterIdError, NodeAddress, NodeAddressError};

/// Name of the one table that every cluster has.
pub const DEFAULT_TABLE_NAME: &str = "default";
/// Most bytes that a key can have (a limit of the wire format, not configurable).
pub const KEY_BYTES_MAX: u64 = 64 << 10;

const SHARDS_MAX: u32 = 1024;
const PARTITIONS_MAX: u32 = 1 << 16;
/// With this a page of a scan, which may exceed its limit by one row, still fits the body of a frame.
const VALUE_BYTES_MAX: u64 = 32 << 20;
/// Room that a value needs in its chunk beside itself: its key, frame and record headers, padding.
const VALUE_OVERHEAD_BYTES: u64 = KEY_BYTES_MAX + (64 << 10);

/// Everything a node must be told. See [`Config::example`] for the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Identity of the cluster, 32 hexadecimal digits. No default. Same on every node; must equal the
    /// superblock's.
    pub cluster_id: ClusterId,

    /// Id of this node, one of `nodes`. No default, at least 1. Must equal the superblock's. Never given to
    /// another device: a node whose device is lost gets a new id.
    pub node_id: u32,

    /// The device: a file or block device laid out by `terrane format`. No default. A relative path starts
    /// at the folder of the configuration file.
    pub data: PathBuf,

    /// Shards: pinned threads, each with its slice of the device, its listener and its groups. No default,
    /// 1 to 1024, best the number of cores. Same on every node; must equal the superblock's, since the
    /// number is fixed at format.
    pub shards: u32,

    /// Copies of every value, on different nodes. Default 3, 1 to 7; with fewer nodes, one per node. Same
    /// on every node. Each costs its size once more in device writes and network; `n` copies survive
    /// `(n - 1) / 2` lost nodes.
    #[serde(default = "defaults::replicas")]
    pub replicas: u32,

    /// Partitions of the table: hash ranges, each a Raft group. Default 16, a power of two up to 65536. Same
    /// on every node and for the life of the cluster. More spread load more evenly over nodes and shards; each
    /// costs a few KiB of memory and its share of heartbeats.
    #[serde(default = "defaults::partitions")]
    pub partitions: u32,

    /// IP address that the node's listeners bind to. Default: the loopback address of its entry in `nodes`
    /// (127.0.0.1 for `localhost`). Must be set if that entry is reachable from other machines: there is no
    /// authentication yet, so opening up is a decision, not a default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<IpAddr>,

    /// Most bytes of a value. Default 4 MiB, 1 B to 32 MiB; must fit a chunk of the device. Same on every
    /// node: followers take what the leader accepted. A shard's memory holds several of them at a time.
    #[serde(default = "defaults::value_bytes_max", with = "byte_size::as_bytes")]
    pub value_bytes_max: u64,

    /// Cache of values **per shard**. Default 64 MiB, 0 to 1 TiB. Memory is taken as it fills. A read that
    /// misses costs one device read.
    #[serde(default = "defaults::cache_bytes", with = "byte_size::as_bytes")]
    pub cache_bytes: u64,

    /// Recent log entries kept in memory **per shard** for followers. Default 32 MiB, 1 MiB to 1 TiB. A
    /// follower further behind is fed by device reads.
    #[serde(default = "defaults::tail_bytes", with = "byte_size::as_bytes")]
    pub tail_bytes: u64,

    /// Memory of the index **per shard**. Default 1 GiB, 64 MiB to 1 TiB. A key takes about 15 bytes beside its own.
    /// When it is used up, puts of new keys are answered `Full`; updates and deletes go on.
    #[serde(default = "defaults::index_bytes_max", with = "byte_size::as_bytes")]
    pub index_bytes_max: u64,

    /// Silence after which a follower campaigns, in milliseconds; each draws from once to twice this.
    /// Default 1000, 50 to 60000. Same on every node: leases rest on it. Shorter finds a dead leader
    /// sooner, and takes a slow one for dead more often. A restarted node grants no vote for this long.
    #[serde(default = "defaults::election_timeout_ms")]
    pub election_timeout_ms: u64,

    /// Interval of heartbeats, in milliseconds. Default 100, at least 5 and at most a third of
    /// `election_timeout_ms`. Costs one small message per pair of shards each time.
    #[serde(default = "defaults::heartbeat_ms")]
    pub heartbeat_ms: u64,

    /// How far apart two nodes' monotonic clocks may run, in parts per million. Default 1000, 500 (what NTP
    /// may slew) to 100000. Same on every node. Leases are shortened by it; beyond it a leased read may be stale.
    #[serde(default = "defaults::clock_drift_ppm")]
    pub clock_drift_ppm: u32,

    /// Bytes of requests and answers in flight on one connection before it stops being read. Default 16 MiB,
    /// at least one largest value with its key; up to 4 GiB. Bounds what one client can occupy.
    #[serde(default = "defaults::connection_inflight_bytes_max", with = "byte_size::as_bytes")]
    pub connection_inflight_bytes_max: u64,

    /// Bytes of requests in flight on one shard; above it requests are answered `Busy`. Default 128 MiB, at
    /// least `connection_inflight_bytes_max`, up to 64 GiB. Bounds a shard's memory beside cache, tail and index.
    #[serde(default = "defaults::shard_inflight_bytes_max", with = "byte_size::as_bytes")]
    pub shard_inflight_bytes_max: u64,

    /// Whether shards are pinned to cores: `true`, `false` or `"auto"` (default), which pins when this node
    /// is the only one of `nodes` on loopback and the machine has a core for each shard.
    #[serde(default)]
    pub pin: Pin,

    /// Acknowledge writes before they are durable. Default `false`. **Power loss then loses acknowledged
    /// writes**; it exists to compare with systems that do this.
    #[serde(default)]
    pub nosync: bool,

    /// What is logged: a filter of `tracing`, as in `info` or `warn,terrane_server::peer=debug`. Default
    /// `info`.
    #[serde(default = "defaults::log")]
    pub log: String,

    /// Every node of the cluster, this one included. Same on every node.
    pub nodes: Vec<NodeConfig>,
}

/// One node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// The node's id, at least 1, unique.
    pub id: u32,
    /// `host:port` under which nodes and clients reach it. The port is the base port: it takes any request,
    /// and shard `s` listens on `port + 1 + s`; all of these must be reachable.
    pub address: NodeAddress,
}

/// Whether shards are pinned to cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pin {
    /// Pin when this node has the machine to itself and a core for each shard. See [`Config::pin`].
    #[default]
    Auto,
    /// Shard `s` runs on the `s`-th of the cores that the process may use, modulo their number.
    Always,
    /// The scheduler decides.
    Never,
}

impl Serialize for Pin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Pin::Auto => serializer.serialize_str("auto"),
            Pin::Always => serializer.serialize_bool(true),
            Pin::Never => serializer.serialize_bool(false),
        }
    }
}

impl<'de> Deserialize<'de> for Pin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Pin, D::Error> {
        struct Choice;
        impl de::Visitor<'_> for Choice {
            type Value = Pin;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false or \"auto\"")
            }
            fn visit_bool<E: de::Error>(self, pin: bool) -> Result<Pin, E> {
                Ok(if pin { Pin::Always } else { Pin::Never })
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Pin, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Choice)
    }
}

impl std::str::FromStr for Pin {
    type Err = String;

    fn from_str(text: &str) -> Result<Pin, String> {
        match text {
            "auto" => Ok(Pin::Auto),
            "true" => Ok(Pin::Always),
            "false" => Ok(Pin::Never),
            _ => Err(format!("{text:?} is not true, false or \"auto\"")),
        }
    }
}

mod defaults {
    pub(super) fn replicas() -> u32 {
        3
    }
    pub(super) fn partitions() -> u32 {
        16
    }
    pub(super) fn value_bytes_max() -> u64 {
        4 << 20
    }
    pub(super) fn cache_bytes() -> u64 {
        64 << 20
    }
    pub(super) fn tail_bytes() -> u64 {
        32 << 20
    }
    pub(super) fn index_bytes_max() -> u64 {
        1 << 30
    }
    pub(super) fn election_timeout_ms() -> u64 {
        1000
    }
    pub(super) fn heartbeat_ms() -> u64 {
        100
    }
    pub(super) fn clock_drift_ppm() -> u32 {
        1000
    }
    pub(super) fn connection_inflight_bytes_max() -> u64 {
        16 << 20
    }
    pub(super) fn shard_inflight_bytes_max() -> u64 {
        128 << 20
    }
    pub(super) fn log() -> String {
        "info".to_owned()
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}; `terrane config --example` prints one to start from", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file is not TOML, misses a field, or has an unknown one. The message shows the line.
    #[error("cannot parse the configuration {}:\n{message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The parser's message, with the line it is about.
        message: String,
    },
    /// A field's value, alone or beside others, cannot work.
    #[error("{field}: {problem}; {remedy}")]
    Invalid {
        /// The field, as written in the file.
        field: &'static str,
        /// What is wrong.
        problem: String,
        /// What to write instead.
        remedy: String,
    },
    /// The device was laid out for something else than this configuration says.
    #[error("the device {} {problem}; {remedy}", path.display())]
    Device {
        /// The device.
        path: PathBuf,
        /// How they differ.
        problem: String,
        /// What to do.
        remedy: String,
    },
}

fn invalid(field: &'static str, problem: impl Into<String>, remedy: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { field, problem: problem.into(), remedy: remedy.into() }
}

/// Checks that `value` lies in `min..=max`.
fn within(field: &'static str, value: u64, min: u64, max: u64, unit: &str) -> Result<(), ConfigError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(invalid(field, format!("{value}{unit} is out of range"), format!("write {min} to {max}{unit}")))
}

/// Checks that `bytes` lies in `min..=max`, speaking in sizes.
fn size_within(field: &'static str, bytes: u64, min: u64, max: u64) -> Result<(), ConfigError> {
    if (min..=max).contains(&bytes) {
        return Ok(());
    }
    Err(invalid(
        field,
        format!("{} is out of range", ByteSize(bytes)),
        format!("write \"{}\" to \"{}\"", ByteSize(min), ByteSize(max)),
    ))
}

impl Config {
    /// A configuration with every default. `nodes` must hold `node_id`; nothing is validated yet.
    pub fn new(
        cluster_id: ClusterId,
        node_id: u32,
        data: PathBuf,
        shards: u32,
        nodes: Vec<NodeConfig>,
    ) -> Config {
        Config {
            cluster_id,
            node_id,
            data,
            shards,
            replicas: defaults::replicas(),
            partitions: defaults::partitions(),
            listen: None,
            value_bytes_max: defaults::value_bytes_max(),
            cache_bytes: defaults::cache_bytes(),
            tail_bytes: defaults::tail_bytes(),
            index_bytes_max: defaults::index_bytes_max(),
            election_timeout_ms: defaults::election_timeout_ms(),
            heartbeat_ms: defaults::heartbeat_ms(),
            clock_drift_ppm: defaults::clock_drift_ppm(),
            connection_inflight_bytes_max: defaults::connection_inflight_bytes_max(),
            shard_inflight_bytes_max: defaults::shard_inflight_bytes_max(),
            pin: Pin::Auto,
            nosync: false,
            log: defaults::log(),
            nodes,
        }
    }

    /// Reads and parses a file; a relative `data` becomes relative to the file's folder. Does **not**
    /// validate: flags may still change fields, so call [`Config::validate`] afterwards.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let mut config = Config::parse(&text)
            .map_err(|error| ConfigError::Parse { path: path.to_owned(), message: error.to_string() })?;
        if let Some(folder) = path.parent() {
            // join() keeps an absolute path as it is.
            config.data = folder.join(&config.data);
        }
        Ok(config)
    }

    /// Parses TOML text. Does not validate.
    pub fn parse(text: &str) -> Result<Config, toml::de::Error> {
        toml::from_str(text)
    }

    /// The file's text for this configuration, without comments; [`Config::parse`] reads it back.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every field of Config has a TOML form")
    }

    /// A commented configuration that parses and validates.
    pub fn example() -> String {
        include_str!("config/example.toml").to_owned()
    }

    /// Checks every field and the relations between them; the first thing wrong is the error.
    pub fn validate(&self) -> Result<(), ConfigError> {
        within("shards", self.shards.into(), 1, SHARDS_MAX.into(), "")?;
        self.validate_nodes()?;
        within("replicas", self.replicas.into(), 1, 7, "")?;
        if !self.partitions.is_power_of_two() || self.partitions > PARTITIONS_MAX {
            return Err(invalid(
                "partitions",
                format!("{} is not a power of two up to {PARTITIONS_MAX}", self.partitions),
                format!("write {}", self.partitions.min(PARTITIONS_MAX).next_power_of_two()),
            ));
        }
        self.validate_listen()?;
        self.validate_sizes()?;
        self.validate_times()?;
        if let Err(error) = self.log.parse::<tracing_subscriber::EnvFilter>() {
            return Err(invalid(
                "log",
                format!("{:?} is not a filter: {error}", self.log),
                "write a level (error, warn, info, debug, trace) or a list such as \"info,terrane_raft=debug\"",
            ));
        }
        if self.data.as_os_str().is_empty() {
            return Err(invalid("data", "the path is empty", "write the path of the device or file"));
        }
        Ok(())
    }

    fn validate_nodes(&self) -> Result<(), ConfigError> {
        if self.nodes.is_empty() {
            return Err(invalid(
                "nodes",
                "no node is listed",
                "write a [[nodes]] entry with id and address for each",
            ));
        }
        let mut ids = BTreeSet::new();
        for node in &self.nodes {
            if node.id == 0 {
                return Err(invalid("nodes.id", "0 means \"no node\"", "number nodes from 1"));
            }
            if !ids.insert(node.id) {
                return Err(invalid(
                    "nodes.id",
                    format!("{} is listed twice", node.id),
                    "give each node its own id",
                ));
            }
            if node.address.shard_port(self.shards - 1).is_none() {
                return Err(invalid(
                    "nodes.address",
                    format!("{} leaves no room for {} shard ports after it", node.address, self.shards),
                    format!("write a port up to {}", 65_535 - self.shards),
                ));
            }
        }
        let mut ports: Vec<(&str, u16, u32)> =
            self.nodes.iter().map(|node| (node.address.host(), node.address.port(), node.id)).collect();
        ports.sort_unstable();
        for pair in ports.windows(2) {
            let ((host, port, id), (next_host, next_port, next_id)) = (pair[0], pair[1]);
            if host == next_host && u32::from(next_port - port) <= self.shards {
                return Err(invalid(
                    "nodes.address",
                    format!(
                        "nodes {id} and {next_id} overlap: {host}:{port} takes the ports up to {}",
                        u32::from(port) + self.shards
                    ),
                    format!(
                        "put base ports on one host at least {} apart (one for the node, one for each shard)",
                        self.shards + 1
                    ),
                ));
            }
        }
        if !ids.contains(&self.node_id) {
            let known: Vec<String> = ids.iter().map(u32::to_string).collect();
            return Err(invalid(
                "node_id",
                format!("{} is not one of the nodes", self.node_id),
                format!("write one of {} or add a [[nodes]] entry for it", known.join(", ")),
            ));
        }
        Ok(())
    }

    fn validate_listen(&self) -> Result<(), ConfigError> {
        let own = &self.own_node().address;
        match self.listen {
            None if !own.is_loopback() => Err(invalid(
                "listen",
                format!(
                    "this node's address is {own}, but without `listen` it would bind to loopback, \
                     where the other nodes cannot reach it"
                ),
                "write the IP address to bind to (\"0.0.0.0\" for all) if the network is trusted: \
                 there is no authentication yet",
            )),
            Some(ip) if ip.is_loopback() && !own.is_loopback() => Err(invalid(
                "listen",
                format!("{ip} is loopback, but the other nodes are told to reach this one at {own}"),
                "bind to the address they use, or give this node a loopback address in `nodes`",
            )),
            _ => Ok(()),
        }
    }

    fn validate_sizes(&self) -> Result<(), ConfigError> {
        const TIB: u64 = 1 << 40;
        size_within("value_bytes_max", self.value_bytes_max, 1, VALUE_BYTES_MAX)?;
        size_within("cache_bytes", self.cache_bytes, 0, TIB)?;
        size_within("tail_bytes", self.tail_bytes, 1 << 20, TIB)?;
        // Leaders stop a sixteenth before the limit. That holds what a pass may stage: 1 MiB of payloads, be they all keys.
        size_within("index_bytes_max", self.index_bytes_max, 64 << 20, TIB)?;
        let largest_request = self.value_bytes_max + VALUE_OVERHEAD_BYTES;
        if self.connection_inflight_bytes_max < largest_request {
            return Err(invalid(
                "connection_inflight_bytes_max",
                format!(
                    "{} is less than one largest request ({}: value_bytes_max, a key and headers)",
                    ByteSize(self.connection_inflight_bytes_max),
                    ByteSize(largest_request)
                ),
                "raise it, or lower value_bytes_max",
            ));
        }
        size_within("connection_inflight_bytes_max", self.connection_inflight_bytes_max, 0, 4 << 30)?;
        if self.shard_inflight_bytes_max < self.connection_inflight_bytes_max {
            return Err(invalid(
                "shard_inflight_bytes_max",
                format!(
                    "{} is less than connection_inflight_bytes_max",
                    ByteSize(self.shard_inflight_bytes_max)
                ),
                format!("write at least \"{}\"", ByteSize(self.connection_inflight_bytes_max)),
            ));
        }
        size_within("shard_inflight_bytes_max", self.shard_inflight_bytes_max, 0, 64 << 30)
    }

    fn validate_times(&self) -> Result<(), ConfigError> {
        within("election_timeout_ms", self.election_timeout_ms, 50, 60_000, " ms")?;
        within("heartbeat_ms", self.heartbeat_ms, 5, 60_000, " ms")?;
        if self.heartbeat_ms * 3 > self.election_timeout_ms {
            return Err(invalid(
                "heartbeat_ms",
                format!(
                    "{} ms is more than a third of election_timeout_ms ({} ms): one lost heartbeat \
                     would depose a leader",
                    self.heartbeat_ms, self.election_timeout_ms
                ),
                format!("write at most {}", self.election_timeout_ms / 3),
            ));
        }
        within("clock_drift_ppm", self.clock_drift_ppm.into(), 500, 100_000, " ppm")
    }

    /// Compares with what the superblock of [`Config::data`] says, and checks that the largest value fits
    /// its chunks.
    pub fn check_device(
        &self,
        cluster: u128,
        node: u32,
        shards: u32,
        chunk_bytes: u64,
    ) -> Result<(), ConfigError> {
        let device = |problem: String, remedy: &str| {
            Err(ConfigError::Device { path: self.data.clone(), problem, remedy: remedy.to_owned() })
        };
        if ClusterId(cluster) != self.cluster_id {
            return device(
                format!("belongs to cluster {}, not {}", ClusterId(cluster), self.cluster_id),
                "point `data` at this cluster's device, or correct cluster_id",
            );
        }
        if node != self.node_id {
            return device(
                format!("is node {node}'s, not node {}'s", self.node_id),
                "point `data` at this node's device, or correct node_id",
            );
        }
        if shards != self.shards {
            return device(
                format!("was formatted for {shards} shards, the configuration says {}", self.shards),
                "the number is fixed at format: correct `shards`",
            );
        }
        self.check_chunk(chunk_bytes)
    }

    /// Whether a device with chunks of that size can hold the values that this configuration allows.
    ///
    /// # Errors
    /// [`ConfigError::Device`] if it cannot.
    pub fn check_chunk(&self, chunk_bytes: u64) -> Result<(), ConfigError> {
        if chunk_bytes >= self.value_bytes_max + VALUE_OVERHEAD_BYTES {
            return Ok(());
        }
        let problem = format!(
            "has chunks of {}, too small for values of value_bytes_max = {} with their key and headers",
            ByteSize(chunk_bytes),
            ByteSize(self.value_bytes_max)
        );
        let remedy = "lower value_bytes_max, or format a device with a larger --chunk-size".to_owned();
        Err(ConfigError::Device { path: self.data.clone(), problem, remedy })
    }

    /// This node's entry. Panics if `node_id` is not listed, which [`Config::validate`] excludes.
    pub fn own_node(&self) -> &NodeConfig {
        self.node(self.node_id).expect("validated: node_id is one of nodes")
    }

    /// The entry of a node.
    pub fn node(&self, id: u32) -> Option<&NodeConfig> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// IP address that listeners bind to: `listen`, else this node's own loopback address.
    pub fn listen_ip(&self) -> IpAddr {
        self.listen
            .or_else(|| self.own_node().address.ip().filter(IpAddr::is_loopback))
            .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    /// Replicas of each group: `replicas`, at most one per node.
    pub fn replica_count(&self) -> usize {
        (self.replicas as usize).min(self.nodes.len())
    }

    /// A text of every field that must be the same on all nodes, in one fixed form. Nodes compare its hash
    /// when they meet, and refuse each other when it differs.
    pub fn agreement(&self) -> String {
        let mut nodes: Vec<&NodeConfig> = self.nodes.iter().collect();
        nodes.sort_unstable_by_key(|node| node.id);
        let nodes: Vec<String> = nodes.iter().map(|node| format!("{}={}", node.id, node.address)).collect();
        format!(
            "shards={} replicas={} partitions={} value_bytes_max={} election_timeout_ms={} clock_drift_ppm={} \
             nodes={}",
            self.shards,
            self.replica_count(),
            self.partitions,
            self.value_bytes_max,
            self.election_timeout_ms,
            self.clock_drift_ppm,
            nodes.join(",")
        )
    }
}

#[cfg(test)]
mod tests;

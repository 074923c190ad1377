//! What the nodes of a laid-out cluster are told beyond the layout: their share of a memory budget, and settings that
//! someone asked to be otherwise, written into each node's TOML before it starts.
//!
//! The budget is that of the embedded engine and of the peers: a shard's cache and its tail together take a node's
//! budget divided by its shards. Invariant: all nodes are told the same.

use anyhow::{Context, bail};
use toml::{Table, Value};

use super::Layout;
use crate::report::figures;

/// The tail's share of a shard's memory, and its limits in bytes: the least that a node accepts, and its default.
const TAIL_SHARE: u64 = 8;
const TAIL_BYTES_MIN: u64 = 1 << 20;
const TAIL_BYTES_MAX: u64 = 32 << 20;

/// What the layout fixed, and what the mode decides: not to be set.
const FIXED: [&str; 7] = ["cluster_id", "node_id", "data", "shards", "nodes", "listen", "nosync"];

/// What the nodes were told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    /// Copies of every value.
    pub(crate) copies: u32,
    pub(crate) settings: Vec<(String, String)>,
}

impl Layout {
    /// Gives each node `cache_bytes` for its `shards` to cache in, and then these overrides (NAME=VALUE, fields of the
    /// nodes' configuration).
    ///
    /// # Errors
    /// If there is no such setting, or a file cannot be read or written.
    pub(crate) fn configure(
        &self,
        shards: u32,
        cache_bytes: u64,
        overrides: &[(String, String)],
    ) -> anyhow::Result<Told> {
        let share = cache_bytes / u64::from(shards.max(1));
        let tail_bytes = (share / TAIL_SHARE).clamp(TAIL_BYTES_MIN, TAIL_BYTES_MAX);
        let mut told = None;
        for node in &self.nodes {
            let path = node.config.display();
            let text =
                std::fs::read_to_string(&node.config).with_context(|| format!("cannot read {path}"))?;
            let mut config: Table = text.parse().with_context(|| format!("cannot understand {path}"))?;
            let set = [("tail_bytes", tail_bytes), ("cache_bytes", share.saturating_sub(tail_bytes))];
            for (name, bytes) in set {
                config.insert(name.to_owned(), Value::Integer(bytes.try_into()?));
            }
            for (name, text) in overrides {
                override_one(&mut config, name, text)?;
            }
            let text = toml::to_string(&config).with_context(|| format!("cannot write {path}"))?;
            std::fs::write(&node.config, text).with_context(|| format!("cannot write {path}"))?;
            told = Some(self.told(&config));
        }
        told.context("a cluster has at least one node")
    }

    fn told(&self, config: &Table) -> Told {
        let nodes = self.nodes.len() as u32;
        let replicas = config.get("replicas").and_then(Value::as_integer);
        let replicas = replicas.and_then(|replicas| u32::try_from(replicas).ok());
        let settable = config.iter().filter(|(name, _)| !FIXED.contains(&name.as_str()));
        let shown = settable.map(|(name, value)| {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            // As the embedded engine tells it.
            let each = if ["cache_bytes", "tail_bytes"].contains(&name.as_str()) { " a shard" } else { "" };
            (name.clone(), format!("{value}{each}"))
        });
        Told { copies: replicas.unwrap_or(nodes).min(nodes), settings: shown.collect() }
    }
}

/// Replaces a field; it keeps its type. A configuration that was laid out holds all fields that can be set.
fn override_one(config: &mut Table, name: &str, text: &str) -> anyhow::Result<()> {
    let known = || {
        let names = config.keys().map(String::as_str).filter(|name| !FIXED.contains(name));
        names.collect::<Vec<_>>().join(", ")
    };
    if FIXED.contains(&name) || !config.contains_key(name) {
        bail!("--set cluster.{name}: unknown here; this target knows {}", known());
    }
    let value = match figures::size(text) {
        // Sizes are written as words or numbers.
        Ok(bytes) if name.contains("_bytes") => Value::Integer(bytes.try_into()?),
        _ => text
            .parse::<i64>()
            .map(Value::Integer)
            .or_else(|_| text.parse::<bool>().map(Value::Boolean))
            .unwrap_or_else(|_| Value::String(text.to_owned())),
    };
    config.insert(name.to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::servers::terrane::NodeFiles;

    /// As `terrane local --init-only` writes it.
    const LAID_OUT: &str = r#"
        # A node.
        cluster_id = "0123456789abcdef0123456789abcdef"
        node_id = 1
        data = "node-1.terrane"
        shards = 2
        replicas = 3
        partitions = 16
        cache_bytes = "64 MiB"
        tail_bytes = "32 MiB"
        heartbeat_ms = 100
        pin = "auto"
        nosync = false
        log = "info"
        [[nodes]]
        id = 1
        address = "127.0.0.1:7400"
        [[nodes]]
        id = 2
        address = "127.0.0.1:7500"
    "#;

    fn layout(folder: &Path, nodes: u64) -> Layout {
        let file = |id: u64| {
            let config = folder.join(format!("node-{id}.toml"));
            std::fs::write(&config, LAID_OUT).unwrap();
            NodeFiles { id, config, log: "log".into(), address: "127.0.0.1:7400".into() }
        };
        Layout { nodes: (1..=nodes).map(file).collect() }
    }

    fn written(layout: &Layout, node: usize) -> Table {
        std::fs::read_to_string(&layout.nodes[node].config).unwrap().parse().unwrap()
    }

    fn set(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    #[test]
    fn the_memory_budget_is_shared_out_over_the_shards() {
        let folder = tempfile::tempdir().unwrap();
        for (budget, tail, cache) in [
            (128_i64 << 20, 8_i64 << 20, 56_i64 << 20),
            (1 << 30, 32 << 20, 480 << 20),
            (8 << 20, 1 << 20, 3 << 20),
            (1, 1 << 20, 0),
        ] {
            let layout = layout(folder.path(), 2);
            let told = layout.configure(2, budget as u64, &[]).unwrap();
            for node in 0..2 {
                let config = written(&layout, node);
                assert_eq!(config["tail_bytes"].as_integer(), Some(tail));
                assert_eq!(config["cache_bytes"].as_integer(), Some(cache));
                assert_eq!(config["nodes"].as_array().unwrap().len(), 2, "what else there is stays");
            }
            assert!(told.settings.contains(&("cache_bytes".to_owned(), format!("{cache} a shard"))));
            assert!(!told.settings.iter().any(|(name, _)| FIXED.contains(&name.as_str())));
            assert_eq!(told.copies, 2, "no more than nodes");
        }
    }

    #[test]
    fn overrides_reach_every_node() {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(folder.path(), 3);
        let overrides =
            set(&[("replicas", "1"), ("cache_bytes", "3MiB"), ("pin", "true"), ("log", "warn,x=debug")]);
        let told = layout.configure(2, 1 << 30, &overrides).unwrap();
        assert_eq!(told.copies, 1);
        for node in 0..3 {
            let config = written(&layout, node);
            assert_eq!(config["replicas"].as_integer(), Some(1));
            assert_eq!(config["cache_bytes"].as_integer(), Some(3 << 20));
            assert_eq!(config["pin"].as_bool(), Some(true));
            assert_eq!(config["log"].as_str(), Some("warn,x=debug"));
        }
    }

    #[test]
    fn what_is_no_setting_is_refused_with_those_there_are() {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(folder.path(), 1);
        for name in ["floppy", "shards", "nosync"] {
            let error = layout.configure(2, 1 << 30, &set(&[(name, "1")])).unwrap_err().to_string();
            assert!(error.starts_with(&format!("--set cluster.{name}: unknown here")), "{error}");
            assert!(error.contains("partitions, ") && !error.contains("node_id"), "{error}");
        }
    }
}

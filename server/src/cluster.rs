//! Where everything is: nodes, tables, partitions, and which replicas serve which group.
//!
//! The map is a pure function of the configuration, so every node and every run computes the same one.
//!
//! Invariants:
//! - A replica of partition `p` lives on shard `p % shards` of each of its nodes: replicas of a group sit
//!   on equal shard numbers, so one link joins each pair of shards.
//! - A group id is never zero and never reused: `table << 32 | partition`.
//! - Membership is fixed, so a node's id serves as the peer id of each of its replicas.

use std::net::SocketAddr;

use terrane_engine::GroupId;
use terrane_raft::PeerId;

/// Id of a node in its cluster; 0 is never a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

impl From<NodeId> for PeerId {
    fn from(node: NodeId) -> Self {
        PeerId(u64::from(node.0))
    }
}

impl From<NodeId> for terrane_client::wire::NodeId {
    fn from(node: NodeId) -> Self {
        Self(u64::from(node.0))
    }
}

/// A node and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeAddress {
    /// Which node.
    pub id: NodeId,
    /// Host as clients and peers are told it.
    pub host: String,
    /// The base port; shard `s` listens on `port + 1 + s`.
    pub port: u16,
    /// Where `host` resolved to, with the base port.
    pub address: SocketAddr,
}

impl NodeAddress {
    /// Port of one shard's own listener.
    pub fn shard_port(&self, shard: u32) -> u16 {
        self.port + 1 + u16::try_from(shard).expect("a validated configuration has ports for all shards")
    }

    /// `host:port` of one shard's own listener, as clients are told it.
    pub fn shard_name(&self, shard: u32) -> String {
        let port = self.shard_port(shard);
        match self.host.contains(':') {
            true => format!("[{}]:{port}", self.host),
            false => format!("{}:{port}", self.host),
        }
    }

    /// Socket address of one shard's own listener.
    pub fn shard_address(&self, shard: u32) -> SocketAddr {
        SocketAddr::new(self.address.ip(), self.shard_port(shard))
    }
}

/// A table: a named key space cut into hash ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Id on the wire; never zero.
    pub id: u32,
    /// Name for people.
    pub name: String,
    /// Hash ranges; a power of two.
    pub partitions: u32,
}

/// The map of the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterMap {
    /// Identity of the cluster, in every superblock, hello and slice.
    pub cluster: u128,
    /// Rises when the map changes. Fixed membership: always 1.
    pub version: u32,
    /// Nodes in order of id.
    pub nodes: Vec<NodeAddress>,
    /// Shards of every node.
    pub shards: u32,
    /// Copies of each partition, at most one a node.
    pub replicas: u32,
    /// Tables in order of id.
    pub tables: Vec<Table>,
    /// Hash of everything that all nodes' configurations must agree on; peers compare it when they meet.
    pub agreement: u64,
}

/// The table that exists without being created.
pub const DEFAULT_TABLE: u32 = 1;

impl ClusterMap {
    /// The node of that id.
    pub fn node(&self, id: NodeId) -> Option<&NodeAddress> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// The table of that id; 0 stands for the default table.
    pub fn table(&self, id: u32) -> Option<&Table> {
        let id = if id == 0 { DEFAULT_TABLE } else { id };
        self.tables.iter().find(|table| table.id == id)
    }

    /// Shard that serves a partition, on every node that has a replica of it.
    pub fn shard_of(&self, partition: u32) -> u32 {
        partition % self.shards
    }

    /// Nodes with a replica of the partition; the first is the one that leads when all are equal.
    /// Replicas rotate over the nodes, so that leaders and copies spread evenly.
    pub fn replicas_of(&self, partition: u32) -> Vec<NodeId> {
        let count = self.nodes.len();
        // Shards take every `shards`-th partition; rotating by the quotient spreads each shard's groups too.
        let start = (partition / self.shards) as usize;
        (0..(self.replicas as usize).min(count)).map(|k| self.nodes[(start + k) % count].id).collect()
    }

    /// The group of a table's partition.
    pub fn group(table: u32, partition: u32) -> GroupId {
        GroupId(u64::from(table) << 32 | u64::from(partition))
    }

    /// Table and partition of a group.
    pub fn of_group(group: GroupId) -> (u32, u32) {
        ((group.0 >> 32) as u32, group.0 as u32)
    }

    /// Groups with a replica on the given shard of the given node, in order of id.
    pub fn groups_of(&self, node: NodeId, shard: u32) -> Vec<GroupId> {
        let mut groups = Vec::new();
        for table in &self.tables {
            for partition in (0..table.partitions).filter(|&p| self.shard_of(p) == shard) {
                if self.replicas_of(partition).contains(&node) {
                    groups.push(Self::group(table.id, partition));
                }
            }
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(nodes: u32, shards: u32, replicas: u32, partitions: u32) -> ClusterMap {
        let nodes = (1..=nodes)
            .map(|id| NodeAddress {
                id: NodeId(id),
                host: format!("10.0.0.{id}"),
                port: 7400,
                address: format!("10.0.0.{id}:7400").parse().unwrap(),
            })
            .collect();
        let tables = vec![Table { id: DEFAULT_TABLE, name: "default".into(), partitions }];
        ClusterMap { cluster: 7, version: 1, nodes, shards, replicas, tables, agreement: 0 }
    }

    #[test]
    fn every_partition_has_its_replicas_on_distinct_nodes_and_equal_shards() {
        for (nodes, shards, replicas) in [(1, 1, 3), (3, 2, 3), (5, 4, 3), (4, 3, 2)] {
            let map = map(nodes, shards, replicas, 32);
            for partition in 0..32 {
                let homes = map.replicas_of(partition);
                let mut distinct = homes.clone();
                distinct.sort();
                distinct.dedup();
                assert_eq!(distinct.len(), replicas.min(nodes) as usize);
                let group = ClusterMap::group(DEFAULT_TABLE, partition);
                assert_eq!(ClusterMap::of_group(group), (DEFAULT_TABLE, partition));
                for node in &map.nodes {
                    for shard in 0..shards {
                        let hosted = map.groups_of(node.id, shard).contains(&group);
                        assert_eq!(hosted, homes.contains(&node.id) && shard == map.shard_of(partition));
                    }
                }
            }
        }
    }

    #[test]
    fn first_replicas_spread_over_nodes_on_each_shard() {
        let map = map(3, 2, 3, 16);
        for shard in 0..2 {
            let mut led = [0; 3];
            for partition in (0..16).filter(|p| map.shard_of(*p) == shard) {
                led[map.replicas_of(partition)[0].0 as usize - 1] += 1;
            }
            assert!(led.iter().all(|&n| (2..=3).contains(&n)), "{led:?}");
        }
    }

    #[test]
    fn shard_ports_follow_the_base_port() {
        let map = map(1, 2, 1, 4);
        assert_eq!(map.nodes[0].shard_address(1), "10.0.0.1:7402".parse::<SocketAddr>().unwrap());
        assert_eq!(map.nodes[0].shard_name(0), "10.0.0.1:7401");
        let six = NodeAddress { host: "::1".into(), ..map.nodes[0].clone() };
        assert_eq!(six.shard_name(0), "[::1]:7401");
    }
}

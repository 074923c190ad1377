//! The cluster's map as a client needs it: nodes, tables, and who holds and leads each partition.
//!
//! Body of a topology reply (text is a `u16` length and UTF-8; a record is a `u16` length and that many bytes, of
//! which a reader takes the fields it knows):
//! ```text
//! 0 u128 cluster id   16 u32 map version   20 u16 nodes   22 u16 tables
//! then per node a record:       u64 id, u16 base port, u16 shards, text host
//! then per table a record:      u32 id, u32 partitions, text name
//!   followed per partition by a record:
//!                               u16 shard, u64 leader (0 unknown), u8 replicas, u64 node id of each
//! ```
//!
//! **Invariant:** a decoded table has 2^n partitions.

use super::DecodeError;
use super::fields::{Fields, put_record, put_text};
use bytes::Bytes;
use std::fmt;

/// A node's number, unique in its cluster and never reused. 0 is no node's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A table's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TableId(pub u32);

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What one node knows of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// The cluster's id: the same on all its nodes, different for every cluster.
    pub cluster: u128,
    /// Rises whenever nodes, tables or placements change. (A new leader alone does not raise it.)
    pub map_version: u32,
    /// All nodes, by id.
    pub nodes: Vec<NodeInfo>,
    /// All tables, by id.
    pub tables: Vec<TableInfo>,
}

/// A node and where it listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    /// The node.
    pub id: NodeId,
    /// Name or address that clients can reach it by; an IPv6 address without brackets.
    pub host: String,
    /// Anyone may connect here; shard `s` listens on `base_port + 1 + s`.
    pub base_port: u16,
    /// How many shards it has.
    pub shards: u16,
}

/// A table and its partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableInfo {
    /// The table.
    pub id: TableId,
    /// Its name.
    pub name: String,
    /// Its partitions in order; 2^n of them.
    pub partitions: Vec<PartitionInfo>,
}

/// Who holds a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionInfo {
    /// The shard it lives on, on each node that holds it.
    pub shard: u16,
    /// The nodes that hold it, at most 255.
    pub replicas: Vec<NodeId>,
    /// The node that leads it, as far as the answering node knows.
    pub leader: Option<NodeId>,
}

impl Topology {
    pub(super) fn encode_body(&self, out: &mut Vec<u8>) {
        let count = |count: usize, what: &str| u16::try_from(count).expect(what).to_le_bytes();
        out.extend_from_slice(&self.cluster.to_le_bytes());
        out.extend_from_slice(&self.map_version.to_le_bytes());
        out.extend_from_slice(&count(self.nodes.len(), "a cluster has at most 65,535 nodes"));
        out.extend_from_slice(&count(self.tables.len(), "a cluster has at most 65,535 tables"));
        for node in &self.nodes {
            put_record(out, |out| {
                out.extend_from_slice(&node.id.0.to_le_bytes());
                out.extend_from_slice(&node.base_port.to_le_bytes());
                out.extend_from_slice(&node.shards.to_le_bytes());
                put_text(out, &node.host);
            });
        }
        for table in &self.tables {
            let partitions =
                u32::try_from(table.partitions.len()).expect("a table has at most 2^31 partitions");
            debug_assert!(partitions.is_power_of_two(), "a table has 2^n partitions, not {partitions}");
            put_record(out, |out| {
                out.extend_from_slice(&table.id.0.to_le_bytes());
                out.extend_from_slice(&partitions.to_le_bytes());
                put_text(out, &table.name);
            });
            for partition in &table.partitions {
                put_record(out, |out| {
                    out.extend_from_slice(&partition.shard.to_le_bytes());
                    out.extend_from_slice(&partition.leader.unwrap_or_default().0.to_le_bytes());
                    out.push(
                        u8::try_from(partition.replicas.len()).expect("a group has at most 255 replicas"),
                    );
                    for node in &partition.replicas {
                        out.extend_from_slice(&node.0.to_le_bytes());
                    }
                });
            }
        }
    }

    pub(super) fn decode_body(body: Bytes) -> Result<Topology, DecodeError> {
        let mut fields = Fields::new(body);
        let cluster = fields.u128("cluster id")?;
        let map_version = fields.u32("map version")?;
        let node_count = fields.u16("node count")?;
        let table_count = fields.u16("table count")?;
        // Grown as records are found, not reserved by the counts: those are only claims.
        let mut nodes = Vec::new();
        for _ in 0..node_count {
            let mut record = fields.record("node")?;
            nodes.push(NodeInfo {
                id: NodeId(record.u64("node id")?),
                base_port: record.u16("base port")?,
                shards: record.u16("shard count")?,
                host: record.text("host")?,
            });
        }
        let mut tables = Vec::new();
        for _ in 0..table_count {
            let mut record = fields.record("table")?;
            let id = TableId(record.u32("table id")?);
            let partition_count = record.u32("partition count")?;
            let name = record.text("table name")?;
            if !partition_count.is_power_of_two() {
                return Err(DecodeError::BadValue {
                    field: "partition count",
                    value: partition_count.into(),
                });
            }
            let mut partitions = Vec::new();
            for _ in 0..partition_count {
                let mut record = fields.record("partition")?;
                let shard = record.u16("shard")?;
                let leader = record.u64("leader")?;
                let replicas = (0..record.u8("replica count")?)
                    .map(|_| record.u64("replica").map(NodeId))
                    .collect::<Result<Vec<_>, _>>()?;
                let leader = (leader != 0).then_some(NodeId(leader));
                partitions.push(PartitionInfo { shard, replicas, leader });
            }
            tables.push(TableInfo { id, name, partitions });
        }
        Ok(Topology { cluster, map_version, nodes, tables })
    }

    /// The node with this id.
    pub fn node(&self, id: NodeId) -> Option<&NodeInfo> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// The table with this name.
    pub fn table(&self, name: &str) -> Option<&TableInfo> {
        self.tables.iter().find(|table| table.name == name)
    }

    /// A small cluster for tests: three nodes, two shards, one table of two partitions.
    #[cfg(test)]
    pub(crate) fn sample() -> Topology {
        let node =
            |id: u64| NodeInfo { id: NodeId(id), host: format!("10.0.0.{id}"), base_port: 7400, shards: 2 };
        let partition =
            |shard, leader| PartitionInfo { shard, replicas: vec![NodeId(1), NodeId(2), NodeId(3)], leader };
        Topology {
            cluster: 0x0011_2233_4455_6677_8899_aabb_ccdd_eeff,
            map_version: 3,
            nodes: vec![node(1), node(2), node(3)],
            tables: vec![TableInfo {
                id: TableId(1),
                name: "default".into(),
                partitions: vec![partition(0, Some(NodeId(2))), partition(1, None)],
            }],
        }
    }
}

impl NodeInfo {
    /// `host:port` of the port that takes anyone.
    pub fn base_address(&self) -> String {
        address(&self.host, self.base_port)
    }

    /// `host:port` of one shard; `None` if its port number would not exist.
    pub fn shard_address(&self, shard: u16) -> Option<String> {
        let port = self.base_port.checked_add(1)?.checked_add(shard)?;
        Some(address(&self.host, port))
    }
}

/// `host:port`, with the brackets that an IPv6 address needs.
fn address(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_ready_to_connect_to() {
        let mut node = NodeInfo { id: NodeId(1), host: "db1".into(), base_port: 7400, shards: 2 };
        assert_eq!(node.base_address(), "db1:7400");
        assert_eq!(node.shard_address(1).as_deref(), Some("db1:7402"));
        node.host = "::1".into();
        assert_eq!(node.shard_address(0).as_deref(), Some("[::1]:7401"));
        node.base_port = 65_534;
        assert_eq!(node.shard_address(0).as_deref(), Some("[::1]:65535"));
        assert_eq!(node.shard_address(1), None);
    }

    #[test]
    fn a_table_of_three_partitions_is_refused() {
        let mut out = Vec::new();
        Topology::sample().encode_body(&mut out);
        // The partition count is the second field of the table's record.
        let at = out.windows(7).position(|run| run == b"default").unwrap() - 2 - 4;
        assert_eq!(out[at], 2);
        out[at] = 3;
        assert_eq!(
            Topology::decode_body(out.into()),
            Err(DecodeError::BadValue { field: "partition count", value: 3 })
        );
    }

    #[test]
    fn fields_of_a_newer_server_are_skipped() {
        let mut out = Vec::new();
        Topology::sample().encode_body(&mut out);
        // The first node's record grows by four bytes, and something follows the last table.
        let grown = u16::from_le_bytes([out[24], out[25]]) + 4;
        out[24..26].copy_from_slice(&grown.to_le_bytes());
        let end = 26 + usize::from(grown) - 4;
        out.splice(end..end, [1, 2, 3, 4]);
        out.extend([5; 9]);
        assert_eq!(Topology::decode_body(out.into()), Ok(Topology::sample()));
    }
}

//! Who leads what: the part of a topology that the demo acts upon.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use terrane_client::wire::Topology;

/// The table that load is sent to: the one that every cluster has.
pub(crate) const TABLE: &str = "default";

/// The leader of each partition of the table, as far as known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leaders {
    by_partition: Vec<Option<u64>>,
}

impl Leaders {
    /// The leaders that a topology names.
    pub(crate) fn of(topology: &Topology) -> anyhow::Result<Leaders> {
        let table = topology
            .tables
            .iter()
            .find(|table| table.name == TABLE)
            .with_context(|| format!("the cluster has no table named '{TABLE}'"))?;
        let by_partition: Vec<Option<u64>> =
            table.partitions.iter().map(|partition| partition.leader.map(|node| node.0)).collect();
        ensure!(by_partition.len().is_power_of_two(), "the table has {} partitions", by_partition.len());
        Ok(Leaders { by_partition })
    }

    /// How many partitions there are, a power of two.
    pub(crate) fn partitions(&self) -> u32 {
        self.by_partition.len() as u32
    }

    /// How many partitions have no known leader.
    pub(crate) fn missing(&self) -> usize {
        self.by_partition.iter().filter(|leader| leader.is_none()).count()
    }

    /// The partitions that a node leads.
    pub(crate) fn led_by(&self, node: u64) -> Vec<u32> {
        (0..self.partitions()).filter(|p| self.by_partition[*p as usize] == Some(node)).collect()
    }

    /// The node that leads most partitions (the lowest id among equals) and those partitions.
    pub(crate) fn busiest(&self) -> Option<(u64, Vec<u32>)> {
        let mut led = BTreeMap::new();
        for node in self.by_partition.iter().flatten() {
            *led.entry(*node).or_insert(0) += 1;
        }
        let (node, _) = led.into_iter().max_by_key(|(node, led)| (*led, std::cmp::Reverse(*node)))?;
        Some((node, self.led_by(node)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use terrane_client::wire::{NodeId, PartitionInfo, TableId, TableInfo};

    fn leaders(by_partition: &[Option<u64>]) -> anyhow::Result<Leaders> {
        let partition =
            |leader: &Option<u64>| PartitionInfo { shard: 0, replicas: vec![], leader: leader.map(NodeId) };
        let partitions = by_partition.iter().map(partition).collect();
        let table = TableInfo { id: TableId(1), name: TABLE.to_owned(), partitions };
        Leaders::of(&Topology { cluster: 1, map_version: 1, nodes: vec![], tables: vec![table] })
    }

    #[test]
    fn the_busiest_node_is_found() {
        let leaders = leaders(&[Some(3), Some(2), Some(3), Some(2)]).unwrap();
        assert_eq!(leaders.busiest(), Some((2, vec![1, 3])));
        assert_eq!((leaders.partitions(), leaders.missing()), (4, 0));
        assert!(leaders.led_by(1).is_empty());
    }

    #[test]
    fn partitions_without_a_leader_are_counted() {
        assert_eq!(leaders(&[None, Some(9)]).unwrap().missing(), 1);
        assert_eq!(leaders(&[None]).unwrap().busiest(), None);
    }

    #[test]
    fn impossible_topologies_are_errors() {
        assert!(leaders(&[None, None, None]).is_err());
        let none = Topology { cluster: 1, map_version: 1, nodes: vec![], tables: vec![] };
        assert!(Leaders::of(&none).unwrap_err().to_string().contains("default"));
    }
}

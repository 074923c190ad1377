//! A node's statistics: named counters, and one row per replica it hosts.
//!
//! Body of a status reply (text and record as in a topology reply):
//! ```text
//! 0 u64 node id   8 u32 counters   12 u32 groups
//! then per counter:           text name, u64 value
//! then per group a record:    u64 group, u32 table, u32 partition, u16 shard, u8 role,
//!                             u64 term, u64 commit, u64 applied, u64 last, u64 leader's node id (0 unknown)
//! ```
//! Counters describe themselves by name, so servers can add some without breaking anyone.

use super::fields::{Fields, put_record, put_text};
use super::{DecodeError, NodeId, TableId};
use bytes::Bytes;

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeStatus {
    /// The node that answered.
    pub node: NodeId,
    /// Counters and gauges by name; the unit is the name's last word (`_us`, `_bytes`, `_ops`).
    pub counters: Vec<(String, u64)>,
    /// The replicas this node hosts, by group.
    pub groups: Vec<GroupStatus>,
}

impl NodeStatus {
    /// The counter with this name.
    pub fn counter(&self, name: &str) -> Option<u64> {
        self.counters.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
    }
}

/// What a replica is to its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReplicaRole {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks for votes (or whether it would get them).
    Candidate,
    /// Leads.
    Leader,
    /// Receives the log without a vote.
    Learner,
    /// Votes without data.
    Witness,
    /// A role this client does not know.
    Other(u8),
}

impl ReplicaRole {
    /// The role's number on the wire.
    pub fn number(self) -> u8 {
        match self {
            ReplicaRole::Follower => 0,
            ReplicaRole::Candidate => 1,
            ReplicaRole::Leader => 2,
            ReplicaRole::Learner => 3,
            ReplicaRole::Witness => 4,
            ReplicaRole::Other(number) => number,
        }
    }

    /// The role with this number.
    pub fn from_number(number: u8) -> ReplicaRole {
        match number {
            0 => ReplicaRole::Follower,
            1 => ReplicaRole::Candidate,
            2 => ReplicaRole::Leader,
            3 => ReplicaRole::Learner,
            4 => ReplicaRole::Witness,
            number => ReplicaRole::Other(number),
        }
    }

    /// The role in a word.
    pub fn name(self) -> &'static str {
        match self {
            ReplicaRole::Follower => "follower",
            ReplicaRole::Candidate => "candidate",
            ReplicaRole::Leader => "leader",
            ReplicaRole::Learner => "learner",
            ReplicaRole::Witness => "witness",
            ReplicaRole::Other(_) => "other",
        }
    }
}

/// One replica's state. All indexes are of its group's Raft log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupStatus {
    /// The group's number.
    pub group: u64,
    /// The table it belongs to.
    pub table: TableId,
    /// Which of the table's partitions it serves.
    pub partition: u32,
    /// The shard it lives on.
    pub shard: u16,
    /// What this replica is.
    pub role: ReplicaRole,
    /// The Raft term.
    pub term: u64,
    /// The highest index known to be committed.
    pub commit: u64,
    /// The highest index applied.
    pub applied: u64,
    /// The highest index in the log.
    pub last: u64,
    /// The leader, as far as this replica knows.
    pub leader: Option<NodeId>,
}

impl NodeStatus {
    pub(super) fn encode_body(&self, out: &mut Vec<u8>) {
        let count = |count: usize| u32::try_from(count).expect("fits a body").to_le_bytes();
        out.extend_from_slice(&self.node.0.to_le_bytes());
        out.extend_from_slice(&count(self.counters.len()));
        out.extend_from_slice(&count(self.groups.len()));
        for (name, value) in &self.counters {
            put_text(out, name);
            out.extend_from_slice(&value.to_le_bytes());
        }
        for group in &self.groups {
            put_record(out, |out| {
                out.extend_from_slice(&group.group.to_le_bytes());
                out.extend_from_slice(&group.table.0.to_le_bytes());
                out.extend_from_slice(&group.partition.to_le_bytes());
                out.extend_from_slice(&group.shard.to_le_bytes());
                out.push(group.role.number());
                for number in [group.term, group.commit, group.applied, group.last] {
                    out.extend_from_slice(&number.to_le_bytes());
                }
                out.extend_from_slice(&group.leader.unwrap_or_default().0.to_le_bytes());
            });
        }
    }

    pub(super) fn decode_body(body: Bytes) -> Result<NodeStatus, DecodeError> {
        let mut fields = Fields::new(body);
        let node = NodeId(fields.u64("node id")?);
        let counter_count = fields.u32("counter count")?;
        let group_count = fields.u32("group count")?;
        // Grown as they are found, not reserved by the counts: those are only claims.
        let mut counters = Vec::new();
        for _ in 0..counter_count {
            counters.push((fields.text("counter name")?, fields.u64("counter")?));
        }
        let mut groups = Vec::new();
        for _ in 0..group_count {
            let mut record = fields.record("group")?;
            groups.push(GroupStatus {
                group: record.u64("group")?,
                table: TableId(record.u32("table")?),
                partition: record.u32("partition")?,
                shard: record.u16("shard")?,
                role: ReplicaRole::from_number(record.u8("role")?),
                term: record.u64("term")?,
                commit: record.u64("commit index")?,
                applied: record.u64("applied index")?,
                last: record.u64("last index")?,
                leader: Some(NodeId(record.u64("leader")?)).filter(|node| node.0 != 0),
            });
        }
        Ok(NodeStatus { node, counters, groups })
    }

    #[cfg(test)]
    pub(super) fn sample() -> NodeStatus {
        NodeStatus {
            node: NodeId(1),
            counters: vec![("cpu_us".into(), 1_000_000), ("user_bytes".into(), 4096)],
            groups: vec![GroupStatus {
                group: 9,
                table: TableId(1),
                partition: 1,
                shard: 1,
                role: ReplicaRole::Leader,
                term: 5,
                commit: 100,
                applied: 99,
                last: 101,
                leader: Some(NodeId(1)),
            }],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_and_numbers_agree() {
        for number in 0..=255 {
            assert_eq!(ReplicaRole::from_number(number).number(), number);
        }
    }

    #[test]
    fn counters_are_found_by_name() {
        let status = NodeStatus::sample();
        assert_eq!(status.counter("user_bytes"), Some(4096));
        assert_eq!(status.counter("absent"), None);
    }
}

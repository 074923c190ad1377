//! `terrane status`: which nodes answer, who leads, and what the nodes count.
//!
//! A partition's leader is the node that says it leads in the highest term, not the one that others
//! believe in: after a crash the others believe in a dead leader for a while.

use std::collections::BTreeMap;
use std::time::Duration;

use comfy_table::Table;
use serde_json::{Map, Value, json};
use terrane_client::NodeError;
use terrane_client::wire::{NodeId, NodeStatus, ReplicaRole, TableId, Topology};

use super::connection::{Connection, Target};
use super::{Exit, Failure, output};

/// How long one node may take to answer, so that a dead one does not use up the time of the others.
const NODE_TIMEOUT: Duration = Duration::from_secs(1);

const EXAMPLES: &str = "\
Exit code 5: a partition has no leader, or no node answered.

Examples:
  terrane status
  terrane status --groups               every replica's term and log
  terrane status --addr 10.0.0.1:7400,10.0.0.2:7400 --json | jq '.nodes[].counters'";

/// Show nodes, leaders and counters.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Show every replica as well
    #[arg(long)]
    groups: bool,
    #[command(flatten)]
    pub(super) target: Target,
}

/// What all nodes together said.
pub(super) struct Picture {
    topology: Topology,
    /// By node; `Err`: why it did not answer.
    nodes: BTreeMap<NodeId, Result<NodeStatus, String>>,
    leaders: BTreeMap<(TableId, u32), NodeId>,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let picture = Picture::look(&Connection::open(&args.target)?)?;
    if args.target.json {
        output::print_json(&picture.json())?;
    } else {
        output::print(picture.text(args.groups))?;
    }
    match picture.leaderless() {
        missing if missing.is_empty() => Ok(()),
        missing => Err(Failure {
            // The JSON above says it already.
            message: if args.target.json {
                String::new()
            } else {
                format!("no leader for {}", missing.join(", "))
            },
            ..Failure::new(Exit::Unavailable, "")
        }),
    }
}

/// Who leads each partition, by what the leaders say of themselves.
fn leaders<'a>(answers: impl Iterator<Item = &'a NodeStatus>) -> BTreeMap<(TableId, u32), NodeId> {
    let mut best: BTreeMap<(TableId, u32), (u64, NodeId)> = BTreeMap::new();
    for status in answers {
        for group in status.groups.iter().filter(|group| group.role == ReplicaRole::Leader) {
            let claim = (group.term, status.node);
            let known = best.entry((group.table, group.partition)).or_insert(claim);
            *known = claim.max(*known);
        }
    }
    best.into_iter().map(|(partition, (_, node))| (partition, node)).collect()
}

impl Picture {
    /// Asks every node of the cluster.
    pub(super) fn look(connection: &Connection) -> Result<Picture, Failure> {
        let client = &connection.client;
        connection.wait(async {
            let unavailable = |error: NodeError| Failure::new(Exit::Unavailable, error.to_string());
            let topology = client.topology().await.map_err(unavailable)?;
            let mut nodes = BTreeMap::new();
            for node in &topology.nodes {
                let answer = tokio::time::timeout(NODE_TIMEOUT, client.status(&node.base_address())).await;
                let answer = match answer {
                    Ok(answer) => answer.map_err(|error| error.to_string()),
                    Err(_) => Err("no answer in time".to_owned()),
                };
                nodes.insert(node.id, answer);
            }
            let leaders = leaders(nodes.values().filter_map(|answer| answer.as_ref().ok()));
            Ok(Picture { topology, nodes, leaders })
        })
    }

    /// Partitions without a leader, as `table/number`.
    pub(super) fn leaderless(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for table in &self.topology.tables {
            for number in 0..table.partitions.len() as u32 {
                if !self.leaders.contains_key(&(table.id, number)) {
                    missing.push(format!("{}/{number}", table.name));
                }
            }
        }
        missing
    }

    pub(super) fn leads(&self, node: NodeId) -> usize {
        self.leaders.values().filter(|&&leader| leader == node).count()
    }

    fn json(&self) -> Value {
        let nodes: Vec<Value> = self
            .topology
            .nodes
            .iter()
            .map(|node| {
                let mut object = Map::new();
                object.insert("id".to_owned(), node.id.0.into());
                object.insert("address".to_owned(), node.base_address().into());
                object.insert("shards".to_owned(), node.shards.into());
                object.insert("leads".to_owned(), self.leads(node.id).into());
                object.insert("reachable".to_owned(), matches!(self.nodes.get(&node.id), Some(Ok(_))).into());
                match self.nodes.get(&node.id) {
                    Some(Ok(status)) => {
                        let counters: Map<String, Value> = status
                            .counters
                            .iter()
                            .map(|(name, value)| (name.clone(), (*value).into()))
                            .collect();
                        object.insert("counters".to_owned(), counters.into());
                        object.insert("cache_hit_ratio".to_owned(), cache_hit_ratio(status).into());
                        let groups: Vec<Value> = status
                            .groups
                            .iter()
                            .map(|group| {
                                json!({
                                    "table": group.table.0,
                                    "partition": group.partition,
                                    "shard": group.shard,
                                    "role": group.role.name(),
                                    "term": group.term,
                                    "commit": group.commit,
                                    "applied": group.applied,
                                    "last": group.last,
                                    "leader": group.leader.map(|leader| leader.0),
                                })
                            })
                            .collect();
                        object.insert("replicas".to_owned(), groups.into());
                    }
                    Some(Err(error)) => {
                        object.insert("problem".to_owned(), error.as_str().into());
                    }
                    None => {}
                }
                object.into()
            })
            .collect();
        let tables: Vec<Value> = self
            .topology
            .tables
            .iter()
            .map(|table| {
                let partitions: Vec<Value> = (0..)
                    .zip(&table.partitions)
                    .map(|(number, partition)| {
                        json!({
                            "partition": number,
                            "shard": partition.shard,
                            "nodes": partition.replicas.iter().map(|node| node.0).collect::<Vec<_>>(),
                            "leader": self.leaders.get(&(table.id, number)).map(|node| node.0),
                        })
                    })
                    .collect();
                json!({ "id": table.id.0, "name": table.name, "partitions": partitions })
            })
            .collect();
        json!({
            "cluster": format!("{:032x}", self.topology.cluster),
            "map_version": self.topology.map_version,
            "nodes": nodes,
            "tables": tables,
            "leaderless": self.leaderless(),
        })
    }

    fn text(&self, groups: bool) -> String {
        let partitions: usize = self.topology.tables.iter().map(|table| table.partitions.len()).sum();
        let mut text = format!(
            "cluster {:032x}: {partitions} partitions, {} with a leader\n\n",
            self.topology.cluster,
            self.leaders.len()
        );
        let mut table = plain_table(["node", "address", "shards", "replicas", "leads", "state"]);
        for node in &self.topology.nodes {
            let (replicas, state) = match self.nodes.get(&node.id) {
                Some(Ok(status)) => (status.groups.len().to_string(), "answers".to_owned()),
                Some(Err(error)) => ("-".to_owned(), error.clone()),
                None => ("-".to_owned(), "not asked".to_owned()),
            };
            table.add_row([
                node.id.to_string(),
                node.base_address(),
                node.shards.to_string(),
                replicas,
                self.leads(node.id).to_string(),
                state,
            ]);
        }
        text.push_str(&lines(&table));
        for (id, status) in &self.nodes {
            let Ok(status) = status else { continue };
            text.push_str(&format!("\nnode {id}\n"));
            let mut table = plain_table(["counter", "value"]);
            for (name, value) in &status.counters {
                table.add_row([name.clone(), value.to_string()]);
            }
            if let Some(ratio) = cache_hit_ratio(status) {
                table.add_row(["cache_hit_ratio".to_owned(), format!("{ratio:.3}")]);
            }
            text.push_str(&lines(&table));
            if groups {
                text.push('\n');
                let mut table = plain_table([
                    "table",
                    "partition",
                    "shard",
                    "role",
                    "term",
                    "commit",
                    "applied",
                    "last",
                    "leader",
                ]);
                for group in &status.groups {
                    table.add_row([
                        group.table.to_string(),
                        group.partition.to_string(),
                        group.shard.to_string(),
                        group.role.name().to_owned(),
                        group.term.to_string(),
                        group.commit.to_string(),
                        group.applied.to_string(),
                        group.last.to_string(),
                        group.leader.map_or("-".to_owned(), |leader| leader.to_string()),
                    ]);
                }
                text.push_str(&lines(&table));
            }
        }
        text
    }
}

/// Of a node's reads of values that recent entries could not answer, the part that its caches did. `None` before the first.
fn cache_hit_ratio(status: &NodeStatus) -> Option<f64> {
    let (hits, misses) = (status.counter("cache_hits")?, status.counter("cache_misses")?);
    (hits + misses > 0).then(|| hits as f64 / (hits + misses) as f64)
}

/// A table without lines: columns that `awk` can read.
pub(super) fn plain_table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header);
    table
}

/// The table's lines, each ended, without spaces at their ends.
pub(super) fn lines(table: &Table) -> String {
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use terrane_client::wire::{GroupStatus, NodeInfo, PartitionInfo, TableInfo};

    fn group(partition: u32, role: ReplicaRole, term: u64, leader: Option<u64>) -> GroupStatus {
        GroupStatus {
            group: partition.into(),
            table: TableId(1),
            partition,
            shard: 0,
            role,
            term,
            commit: 5,
            applied: 5,
            last: 6,
            leader: leader.map(NodeId),
        }
    }

    fn picture() -> Picture {
        let node = |id: u64, groups| NodeStatus {
            node: NodeId(id),
            counters: [("user_bytes", 10 * id), ("cache_hits", 3 * (id - 1)), ("cache_misses", id - 1)]
                .map(|(name, value)| (name.to_owned(), value))
                .to_vec(),
            groups,
        };
        let old = node(
            1,
            vec![group(0, ReplicaRole::Leader, 3, Some(1)), group(1, ReplicaRole::Follower, 9, Some(3))],
        );
        let new = node(
            2,
            vec![group(0, ReplicaRole::Leader, 4, Some(2)), group(1, ReplicaRole::Follower, 9, Some(3))],
        );
        let partition =
            |leader| PartitionInfo { shard: 0, replicas: vec![NodeId(1), NodeId(2), NodeId(3)], leader };
        let info = |id| NodeInfo { id: NodeId(id), host: "h".to_owned(), base_port: 7400, shards: 1 };
        Picture {
            topology: Topology {
                cluster: 0xabc,
                map_version: 1,
                nodes: vec![info(1), info(2), info(3)],
                tables: vec![TableInfo {
                    id: TableId(1),
                    name: "default".to_owned(),
                    partitions: vec![partition(Some(NodeId(1))), partition(Some(NodeId(3)))],
                }],
            },
            leaders: leaders([&old, &new].into_iter()),
            nodes: BTreeMap::from([
                (NodeId(1), Ok(old)),
                (NodeId(2), Ok(new)),
                (NodeId(3), Err("connection refused".to_owned())),
            ]),
        }
    }

    #[test]
    fn the_leader_is_who_says_so_in_the_highest_term() {
        let picture = picture();
        assert_eq!(picture.leaders, BTreeMap::from([((TableId(1), 0), NodeId(2))]));
        assert_eq!(picture.leaderless(), ["default/1"], "a dead node leads nothing, whatever others believe");
        assert_eq!((picture.leads(NodeId(1)), picture.leads(NodeId(2))), (0, 1));
    }

    #[test]
    fn text_names_every_node_and_why_one_is_silent() {
        let text = picture().text(true);
        expect_test::expect![[r#"
            cluster 00000000000000000000000000000abc: 2 partitions, 1 with a leader

             node  address  shards  replicas  leads  state
             1     h:7400   1       2         0      answers
             2     h:7400   1       2         1      answers
             3     h:7400   1       -         0      connection refused

            node 1
             counter       value
             user_bytes    10
             cache_hits    0
             cache_misses  0

             table  partition  shard  role      term  commit  applied  last  leader
             1      0          0      leader    3     5       5        6     1
             1      1          0      follower  9     5       5        6     3

            node 2
             counter          value
             user_bytes       20
             cache_hits       3
             cache_misses     1
             cache_hit_ratio  0.750

             table  partition  shard  role      term  commit  applied  last  leader
             1      0          0      leader    4     5       5        6     2
             1      1          0      follower  9     5       5        6     3
        "#]]
        .assert_eq(&text);
    }

    #[test]
    fn json_says_the_same() {
        let json = picture().json();
        assert_eq!(json["cluster"], "00000000000000000000000000000abc");
        assert_eq!(json["leaderless"], json!(["default/1"]));
        assert_eq!(json["nodes"][0]["counters"]["user_bytes"], 10);
        let ratio = |node: usize| &json["nodes"][node]["cache_hit_ratio"];
        assert_eq!((ratio(0), ratio(1)), (&Value::Null, &json!(0.75)), "none before the first read");
        assert_eq!(json["nodes"][0]["replicas"][1]["leader"], 3);
        assert_eq!(
            (&json["nodes"][2]["reachable"], &json["nodes"][2]["problem"]),
            (&json!(false), &json!("connection refused"))
        );
        assert_eq!(json["tables"][0]["partitions"][0]["leader"], 2);
        assert_eq!(json["tables"][0]["partitions"][1]["leader"], Value::Null);
    }
}

//! Which server a request goes to, and what to do with each answer: pure state, no I/O and no clock.
//!
//! **What.** [`PartitionMap`] turns a topology into addresses. [`Routing`] keeps one, learns from answers who leads
//! each partition, and decides after every answer or loss what an [`Operation`] does next ([`Action`]).
//!
//! **Why pure.** The async client and the simulator's client follow the same rules, and each rule is tested
//! without a socket.
//!
//! **Invariants**
//! - A partition always has a target: when its leader is unknown or unreachable, its replicas take turns.
//! - An operation whose repetition could do harm is never sent again once an earlier sending of it may have had
//!   an effect.
//! - A client never changes clusters: a topology with another cluster id is refused.

use crate::wire::{
    ErrorReply, Header, NodeId, Response, TableId, Topology, first_hash_of, partition_hash, partition_of_hash,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// The first pause between attempts; it doubles with each further failure.
const PAUSE_FIRST: Duration = Duration::from_millis(4);

/// How often the pause doubles: up to 128 ms, a fraction of an election, so that a new leader is found soon.
const PAUSE_DOUBLINGS_MAX: u32 = 5;

/// The longest a server's `Busy` can hold an operation back before it asks again.
const BUSY_PAUSE_MAX: Duration = Duration::from_secs(1);

/// How many redirections are followed at once; beyond, replicas disagree about the leader, and a pause is due.
const REDIRECTIONS_AT_ONCE: u32 = 2;

/// One server to send to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its node, where known (a hint may name only an address).
    pub node: Option<NodeId>,
    /// `host:port` of the shard's own port.
    pub address: Arc<str>,
}

/// Why a topology cannot be routed by.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// It describes another cluster than the one this client is connected to.
    #[error("the server belongs to cluster {found:032x}, this client to cluster {expected:032x}")]
    OtherCluster {
        /// This client's.
        expected: u128,
        /// The topology's.
        found: u128,
    },
    /// A table's partitions are not 2^n.
    #[error("table {table} has {partitions} partitions, which is not a power of two")]
    PartitionCount {
        /// The table.
        table: TableId,
        /// How many it has.
        partitions: usize,
    },
    /// None of a partition's replicas has an address.
    #[error("partition {partition} of table {table} has no replica on a listed node")]
    NoReplica {
        /// The table.
        table: TableId,
        /// The partition.
        partition: usize,
    },
}

/// Why a request cannot be routed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RouteError {
    /// No topology has been installed yet.
    #[error("the cluster's topology is not known yet")]
    NoMap,
    /// The map has no such table.
    #[error("the cluster has no table {table}")]
    UnknownTable {
        /// The table asked for.
        table: TableId,
    },
}

/// Who is thought to lead a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Lead {
    /// Nobody known: the replica at this position is asked next.
    Unknown { next: usize },
    /// The replica at this position.
    Replica(usize),
    /// An address a server named that the map does not list.
    Named(Target),
}

#[derive(Debug, Clone)]
struct Partition {
    /// At least one, in the topology's order.
    replicas: Vec<Target>,
    lead: Lead,
}

impl Partition {
    fn target(&self) -> &Target {
        match &self.lead {
            Lead::Unknown { next } => &self.replicas[next % self.replicas.len()],
            Lead::Replica(at) => &self.replicas[*at],
            Lead::Named(target) => target,
        }
    }

    /// `failed` does not lead, or cannot be reached: if it is still the one that would be asked, ask the next.
    fn turn_from(&mut self, failed: &Target) {
        if self.target() == failed {
            let at = self.replicas.iter().position(|replica| replica == failed);
            self.lead = Lead::Unknown { next: at.map_or(0, |at| (at + 1) % self.replicas.len()) };
        }
    }

    /// `from` says who leads. Returns whether that taught something to follow.
    fn learn(&mut self, from: &Target, node: Option<NodeId>, address: Option<&str>) -> bool {
        let at = match node {
            Some(_) => self.replicas.iter().position(|replica| replica.node == node),
            None => self.replicas.iter().position(|replica| Some(&*replica.address) == address),
        };
        let lead = match (at, address) {
            (Some(at), None) => Lead::Replica(at),
            (Some(at), Some(address)) if &*self.replicas[at].address == address => Lead::Replica(at),
            (_, Some(address)) => Lead::Named(Target { node, address: address.into() }),
            (None, None) => {
                self.turn_from(from);
                return false;
            }
        };
        let before = std::mem::replace(&mut self.lead, lead);
        if self.target().address == from.address {
            // It says of itself both that it leads and that it does not.
            self.lead = before;
            self.turn_from(from);
            return false;
        }
        true
    }
}

#[derive(Debug, Clone)]
struct Table {
    name: String,
    partitions: Vec<Partition>,
}

/// A topology made ready for routing: for each partition its replicas' shard addresses, and who leads as far as
/// is known.
#[derive(Debug, Clone)]
pub struct PartitionMap {
    cluster: u128,
    version: u32,
    /// Base addresses of all nodes, by id.
    nodes: BTreeMap<NodeId, Arc<str>>,
    tables: BTreeMap<TableId, Table>,
}

impl PartitionMap {
    /// Builds the map.
    ///
    /// # Errors
    /// The topology is inconsistent; see [`MapError`].
    pub fn from_topology(topology: &Topology) -> Result<PartitionMap, MapError> {
        let infos: BTreeMap<NodeId, _> = topology.nodes.iter().map(|node| (node.id, node)).collect();
        // One allocation per address, shared by all partitions of the shard.
        let mut addresses: BTreeMap<(NodeId, u16), Arc<str>> = BTreeMap::new();
        let mut tables = BTreeMap::new();
        for table in &topology.tables {
            if !table.partitions.len().is_power_of_two() {
                let partitions = table.partitions.len();
                return Err(MapError::PartitionCount { table: table.id, partitions });
            }
            let mut partitions = Vec::with_capacity(table.partitions.len());
            for (number, partition) in table.partitions.iter().enumerate() {
                let mut replicas = Vec::with_capacity(partition.replicas.len());
                for &node in &partition.replicas {
                    let address = match addresses.get(&(node, partition.shard)) {
                        Some(address) => address.clone(),
                        None => {
                            let address =
                                infos.get(&node).and_then(|info| info.shard_address(partition.shard));
                            let Some(address) = address else { continue };
                            let address: Arc<str> = address.into();
                            addresses.insert((node, partition.shard), address.clone());
                            address
                        }
                    };
                    replicas.push(Target { node: Some(node), address });
                }
                if replicas.is_empty() {
                    return Err(MapError::NoReplica { table: table.id, partition: number });
                }
                let leader = partition
                    .leader
                    .and_then(|leader| replicas.iter().position(|replica| replica.node == Some(leader)));
                // Without a leader, partitions start at different replicas: the first requests spread.
                let lead = leader.map_or(Lead::Unknown { next: number % replicas.len() }, Lead::Replica);
                partitions.push(Partition { replicas, lead });
            }
            tables.insert(table.id, Table { name: table.name.clone(), partitions });
        }
        Ok(PartitionMap {
            cluster: topology.cluster,
            version: topology.map_version,
            nodes: infos.into_iter().map(|(id, info)| (id, info.base_address().into())).collect(),
            tables,
        })
    }

    /// The cluster's id.
    pub fn cluster(&self) -> u128 {
        self.cluster
    }

    /// The map's version: what requests carry in their header.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Every node's base address (`host:port`), by node id.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Arc<str>)> {
        self.nodes.iter().map(|(id, address)| (*id, address))
    }

    /// The table with this name.
    pub fn table(&self, name: &str) -> Option<TableId> {
        self.tables.iter().find(|(_, table)| table.name == name).map(|(id, _)| *id)
    }

    /// How many partitions a table has: 2^n.
    pub fn partitions(&self, table: TableId) -> Option<u32> {
        // A decoded table has at most 2^31 partitions, its count is a u32.
        self.tables.get(&table).map(|table| table.partitions.len() as u32)
    }

    /// The partition a key belongs to.
    pub fn partition_of(&self, table: TableId, key: &[u8]) -> Option<u32> {
        self.partitions(table).map(|partitions| partition_of_hash(partition_hash(key), partitions))
    }

    /// A hash that addresses a whole partition, as a scan's header carries it.
    pub fn hash_of_partition(&self, table: TableId, partition: u32) -> Option<u64> {
        let partitions = self.partitions(table)?;
        (partition < partitions).then(|| first_hash_of(partition, partitions))
    }

    /// Where requests for the partition that `hash` falls into go now.
    pub fn target(&self, table: TableId, hash: u64) -> Option<&Target> {
        let partitions = &self.tables.get(&table)?.partitions;
        Some(partitions[partition_of_hash(hash, partitions.len() as u32) as usize].target())
    }

    fn partition_mut(&mut self, table: TableId, hash: u64) -> Option<&mut Partition> {
        let partitions = &mut self.tables.get_mut(&table)?.partitions;
        let at = partition_of_hash(hash, partitions.len() as u32) as usize;
        Some(&mut partitions[at])
    }

    /// What was learned about leaders and the new topology does not know is kept.
    fn inherit_leaders(&mut self, old: &PartitionMap) {
        for (id, table) in &mut self.tables {
            let Some(before) = old.tables.get(id) else { continue };
            if before.partitions.len() != table.partitions.len() {
                continue;
            }
            for (partition, before) in table.partitions.iter_mut().zip(&before.partitions) {
                let known = partition.replicas.iter().position(|replica| replica == before.target());
                if let (Lead::Unknown { .. }, Lead::Replica(_), Some(at)) =
                    (&partition.lead, &before.lead, known)
                {
                    partition.lead = Lead::Replica(at);
                }
            }
        }
    }
}

/// What an operation may do to the data, which decides when it may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationKind {
    /// Changes nothing: repeated at will.
    Read,
    /// An unconditional write: repeated when the connection broke, even if an earlier sending may have been done
    /// by then. It then happens at least once, and a write of another client that came in between is overwritten.
    /// Not repeated after mere silence: see [`Loss::Silent`].
    Write,
    /// A conditional write: its repetition would be judged by the outcome of its first sending, so it is only
    /// repeated when that certainly had none.
    ConditionalWrite,
}

/// How an attempt came to have no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// The server certainly did not receive the request.
    Unsent,
    /// The connection broke after the request may have been received. Whatever the server did with it, it did, or
    /// proposed, before it can receive the next: a repetition comes after it in the log, or it is in no log at all.
    Broken,
    /// Nothing came in time, but the connection stands. The request may still wait in front of the server, and be
    /// executed after a repetition, and even after what this client writes next: a write must not be repeated.
    Silent,
}

/// One operation on its way, over as many attempts as it takes.
#[derive(Debug, Clone)]
pub struct Operation {
    table: TableId,
    hash: u64,
    kind: OperationKind,
    /// Attempts that failed, for the pause before the next.
    failures: u32,
    refreshed: bool,
    maybe_done: bool,
}

impl Operation {
    /// An operation on the partition of `table` that `hash` falls into.
    pub fn new(table: TableId, hash: u64, kind: OperationKind) -> Operation {
        Operation { table, hash, kind, failures: 0, refreshed: false, maybe_done: false }
    }

    /// The table it is about.
    pub fn table(&self) -> TableId {
        self.table
    }

    /// The partition hash its header carries.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// What it may do to the data.
    pub fn kind(&self) -> OperationKind {
        self.kind
    }

    /// Whether it may be sent to another server while an earlier one may yet execute it ([`Loss::Silent`]): if not,
    /// there is no point in waiting for one server for less than the whole time.
    pub fn may_be_repeated_after_silence(&self) -> bool {
        self.kind == OperationKind::Read
    }

    /// Whether a write may have been done by an attempt whose answer never came. If the operation then ends
    /// without success, its outcome is unknown.
    pub fn maybe_done(&self) -> bool {
        self.maybe_done
    }

    /// How many attempts failed so far.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// An attempt that reached a server was lost without an answer.
    fn lose(&mut self) {
        self.maybe_done |= self.kind != OperationKind::Read;
    }

    /// Counts a failure. The pause it asks for: doubling, and spread by the key's hash so that operations that
    /// failed together do not return together.
    fn pause(&mut self) -> Duration {
        self.failures += 1;
        let pause = PAUSE_FIRST * (1 << (self.failures - 1).min(PAUSE_DOUBLINGS_MAX));
        let spread = (self.hash.rotate_left(self.failures * 7) % 256) as u32;
        pause * (256 + spread) / 512
    }
}

/// What to do next with an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// It is decided: give the caller this reply. An error in it is final.
    Done(Response),
    /// Send it again, to this target, now.
    RetryAt(Target),
    /// Fetch the topology (after the pause), install it, and send again to [`Routing::target`].
    RefreshMap(Duration),
    /// Wait so long, then send again to [`Routing::target`].
    BackOff(Duration),
}

/// What a client knows of its cluster, and its rules.
#[derive(Debug, Clone)]
pub struct Routing {
    seeds: Vec<Arc<str>>,
    map: Option<PartitionMap>,
    /// The highest map version any server mentioned.
    version_seen: u32,
    next_source: usize,
}

impl Routing {
    /// Knows nothing but some nodes' base addresses.
    pub fn new(seeds: impl IntoIterator<Item = Arc<str>>) -> Routing {
        Routing { seeds: seeds.into_iter().collect(), map: None, version_seen: 0, next_source: 0 }
    }

    /// The map, once a topology has been installed.
    pub fn map(&self) -> Option<&PartitionMap> {
        self.map.as_ref()
    }

    /// What requests carry as their map version.
    pub fn map_version(&self) -> u32 {
        self.map.as_ref().map_or(0, PartitionMap::version)
    }

    /// Whether some server's map is newer than ours: fetch the topology when convenient.
    pub fn is_stale(&self) -> bool {
        self.version_seen > self.map_version()
    }

    /// The base address to ask for the topology next: the nodes known and the seeds take turns. `None` only if
    /// there are neither.
    pub fn next_source(&mut self) -> Option<Arc<str>> {
        let known = self.map.iter().flat_map(|map| map.nodes.values());
        let sources: Vec<_> = known.chain(&self.seeds).collect();
        let source = (*sources.get(self.next_source % sources.len().max(1))?).clone();
        self.next_source = self.next_source.wrapping_add(1);
        Some(source)
    }

    /// Every address that requests may go to: nodes, their shards, what servers named, and the seeds.
    pub fn addresses(&self) -> BTreeSet<Arc<str>> {
        let mut addresses: BTreeSet<Arc<str>> = self.seeds.iter().cloned().collect();
        if let Some(map) = &self.map {
            addresses.extend(map.nodes.values().cloned());
            for partition in map.tables.values().flat_map(|table| &table.partitions) {
                addresses.extend(partition.replicas.iter().map(|replica| replica.address.clone()));
                addresses.insert(partition.target().address.clone());
            }
        }
        addresses
    }

    /// How many addresses [`Routing::next_source`] goes round.
    pub fn sources(&self) -> usize {
        self.seeds.len() + self.map.as_ref().map_or(0, |map| map.nodes.len())
    }

    /// Takes a topology in. Returns whether it was used: one older than the map is not.
    ///
    /// # Errors
    /// It is of another cluster, or inconsistent. The map stays as it was.
    pub fn install(&mut self, topology: &Topology) -> Result<bool, MapError> {
        if let Some(map) = &self.map {
            if map.cluster != topology.cluster {
                return Err(MapError::OtherCluster { expected: map.cluster, found: topology.cluster });
            }
            if topology.map_version < map.version {
                return Ok(false);
            }
        }
        let mut map = PartitionMap::from_topology(topology)?;
        if let Some(old) = &self.map {
            map.inherit_leaders(old);
        }
        self.map = Some(map);
        Ok(true)
    }

    /// Where a request for the partition of `table` that `hash` falls into goes now.
    ///
    /// # Errors
    /// No map yet, or no such table in it.
    pub fn target(&self, table: TableId, hash: u64) -> Result<Target, RouteError> {
        let map = self.map.as_ref().ok_or(RouteError::NoMap)?;
        map.target(table, hash).cloned().ok_or(RouteError::UnknownTable { table })
    }

    /// `from` answered.
    pub fn on_reply(
        &mut self,
        operation: &mut Operation,
        from: &Target,
        header: &Header,
        reply: Response,
    ) -> Action {
        self.version_seen = self.version_seen.max(header.map_version);
        let Response::Error(error) = reply else { return Action::Done(reply) };
        match error {
            ErrorReply::NotLeader { leader, ref address } => {
                let learned = self
                    .partition_mut(operation)
                    .is_some_and(|partition| partition.learn(from, leader, address.as_deref()));
                let pause = operation.pause();
                if learned && operation.failures <= REDIRECTIONS_AT_ONCE {
                    self.retry_now(operation)
                } else {
                    Action::BackOff(pause)
                }
            }
            ErrorReply::WrongPartition { map_version } => {
                self.version_seen = self.version_seen.max(map_version);
                self.turn_from(operation, from);
                let pause = operation.pause();
                Action::RefreshMap(if operation.failures == 1 { Duration::ZERO } else { pause })
            }
            ErrorReply::Busy { retry_after_ms } => {
                let asked = Duration::from_millis(retry_after_ms.into());
                Action::BackOff(asked.min(BUSY_PAUSE_MAX).max(operation.pause()))
            }
            ErrorReply::Unavailable { .. } => {
                self.turn_from(operation, from);
                Action::BackOff(operation.pause())
            }
            ErrorReply::OutcomeUnknown | ErrorReply::StorageFailed => {
                operation.lose();
                self.turn_from(operation, from);
                match operation.kind {
                    OperationKind::ConditionalWrite => {
                        Action::Done(Response::Error(ErrorReply::OutcomeUnknown))
                    }
                    OperationKind::Read | OperationKind::Write => Action::BackOff(operation.pause()),
                }
            }
            ErrorReply::UnknownTable if !operation.refreshed => {
                operation.refreshed = true;
                Action::RefreshMap(Duration::ZERO)
            }
            error => Action::Done(Response::Error(error)),
        }
    }

    /// The attempt at `from` brought no answer: the connection failed or was lost, or nothing came in time.
    pub fn on_lost(&mut self, operation: &mut Operation, from: &Target, loss: Loss) -> Action {
        self.turn_from(operation, from);
        if loss != Loss::Unsent {
            operation.lose();
            let repeatable = match operation.kind {
                OperationKind::Read => true,
                OperationKind::Write => loss == Loss::Broken,
                OperationKind::ConditionalWrite => false,
            };
            if !repeatable {
                return Action::Done(Response::Error(ErrorReply::OutcomeUnknown));
            }
        }
        let pause = operation.pause();
        let replicas = self.partition_mut(operation).map_or(0, |partition| partition.replicas.len());
        // Each other replica is asked once without waiting, then there is time for an election.
        if (operation.failures as usize) < replicas {
            self.retry_now(operation)
        } else {
            Action::BackOff(pause)
        }
    }

    fn partition_mut(&mut self, operation: &Operation) -> Option<&mut Partition> {
        self.map.as_mut()?.partition_mut(operation.table, operation.hash)
    }

    fn turn_from(&mut self, operation: &Operation, failed: &Target) {
        if let Some(partition) = self.partition_mut(operation) {
            partition.turn_from(failed);
        }
    }

    fn retry_now(&mut self, operation: &mut Operation) -> Action {
        match self.target(operation.table, operation.hash) {
            Ok(target) => Action::RetryAt(target),
            Err(_) => Action::RefreshMap(Duration::ZERO),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Opcode;

    const TABLE: TableId = TableId(1);

    fn routing() -> Routing {
        let mut routing = Routing::new(["seed:7400".into()]);
        assert!(routing.install(&Topology::sample()).unwrap());
        routing
    }

    fn header(map_version: u32) -> Header {
        let mut out = Vec::new();
        Response::Pong.encode(Opcode::Ping as u8, 1, map_version, &mut out);
        Header::decode(out.first_chunk().unwrap()).unwrap()
    }

    fn reply(routing: &mut Routing, operation: &mut Operation, from: &Target, error: ErrorReply) -> Action {
        routing.on_reply(operation, from, &header(3), Response::Error(error))
    }

    fn not_leader(leader: u64, address: &str) -> ErrorReply {
        ErrorReply::NotLeader {
            leader: (leader != 0).then_some(NodeId(leader)),
            address: (!address.is_empty()).then(|| address.to_owned()),
        }
    }

    fn operation(kind: OperationKind) -> Operation {
        Operation::new(TABLE, 0, kind)
    }

    fn address(routing: &Routing, hash: u64) -> String {
        routing.target(TABLE, hash).unwrap().address.to_string()
    }

    #[test]
    fn the_leaders_shard_port_is_base_plus_one_plus_shard() {
        let routing = routing();
        // Partition 0 is led by node 2 on shard 0; partition 1, on shard 1, has no known leader: replica 1 % 3.
        assert_eq!(address(&routing, 0), "10.0.0.2:7401");
        assert_eq!(address(&routing, u64::MAX), "10.0.0.2:7402");
        let map = routing.map().unwrap();
        assert_eq!(map.table("default"), Some(TABLE));
        assert_eq!(map.table("other"), None);
        assert_eq!(map.partitions(TABLE), Some(2));
        assert_eq!(map.partition_of(TABLE, b"hello"), Some(1), "the hash of hello begins with 0x95");
        assert_eq!(map.hash_of_partition(TABLE, 1), Some(1 << 63));
        assert_eq!(map.hash_of_partition(TABLE, 2), None);
    }

    #[test]
    fn without_map_or_table_there_is_no_route() {
        assert_eq!(Routing::new([]).target(TABLE, 0), Err(RouteError::NoMap));
        let other = TableId(9);
        assert_eq!(routing().target(other, 0), Err(RouteError::UnknownTable { table: other }));
        assert_eq!(Routing::new([]).next_source(), None);
    }

    #[test]
    fn a_named_leader_is_followed_at_once_and_remembered() {
        let mut routing = routing();
        let mut get = operation(OperationKind::Read);
        let from = routing.target(TABLE, 0).unwrap();
        let action = reply(&mut routing, &mut get, &from, not_leader(3, "10.0.0.3:7401"));
        let expected = Target { node: Some(NodeId(3)), address: "10.0.0.3:7401".into() };
        assert_eq!(action, Action::RetryAt(expected));
        assert_eq!(address(&routing, 0), "10.0.0.3:7401");
        assert_eq!(address(&routing, u64::MAX), "10.0.0.2:7402", "the other partition is untouched");
    }

    #[test]
    fn a_leader_at_an_address_the_map_does_not_list_is_followed() {
        let mut routing = routing();
        let from = routing.target(TABLE, 0).unwrap();
        reply(&mut routing, &mut operation(OperationKind::Read), &from, not_leader(3, "moved:9000"));
        assert_eq!(address(&routing, 0), "moved:9000");
        // When it does not answer there, the replicas take turns again.
        let moved = routing.target(TABLE, 0).unwrap();
        routing.on_lost(&mut operation(OperationKind::Read), &moved, Loss::Unsent);
        assert_eq!(address(&routing, 0), "10.0.0.1:7401");
    }

    #[test]
    fn replicas_that_disagree_are_asked_with_pauses() {
        let mut routing = routing();
        let mut get = operation(OperationKind::Read);
        let mut paused = Vec::new();
        for round in 0..8 {
            let from = routing.target(TABLE, 0).unwrap();
            let other = if from.node == Some(NodeId(2)) { 3 } else { 2 };
            match reply(&mut routing, &mut get, &from, not_leader(other, "")) {
                Action::RetryAt(_) => assert!(round < 2),
                Action::BackOff(pause) => paused.push(pause),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(paused.len(), 6);
        assert!(paused.iter().all(|pause| (PAUSE_FIRST..=PAUSE_FIRST * 32).contains(pause)), "{paused:?}");
        assert!(paused.last() > paused.first());
    }

    #[test]
    fn an_unknown_leader_lets_replicas_take_turns() {
        let mut routing = routing();
        let mut get = operation(OperationKind::Read);
        let mut asked = Vec::new();
        for _ in 0..4 {
            let from = routing.target(TABLE, 0).unwrap();
            asked.push(from.node.unwrap().0);
            assert!(matches!(reply(&mut routing, &mut get, &from, not_leader(0, "")), Action::BackOff(_)));
        }
        assert_eq!(asked, [2, 3, 1, 2]);
    }

    #[test]
    fn one_that_calls_itself_leader_and_not_is_passed_over() {
        let mut routing = routing();
        let from = routing.target(TABLE, 0).unwrap();
        let action =
            reply(&mut routing, &mut operation(OperationKind::Read), &from, not_leader(2, "10.0.0.2:7401"));
        assert!(matches!(action, Action::BackOff(_)));
        assert_eq!(address(&routing, 0), "10.0.0.3:7401");
    }

    #[test]
    fn late_news_does_not_undo_what_was_learned_since() {
        let mut routing = routing();
        let old = routing.target(TABLE, 0).unwrap();
        reply(&mut routing, &mut operation(OperationKind::Read), &old, not_leader(1, ""));
        // A second operation's loss at the old leader, node 2, arrives later; its turn would go to node 3.
        routing.on_lost(&mut operation(OperationKind::Read), &old, Loss::Broken);
        assert_eq!(address(&routing, 0), "10.0.0.1:7401");
    }

    #[test]
    fn a_lost_read_or_write_asks_every_replica_once_then_pauses() {
        for kind in [OperationKind::Read, OperationKind::Write] {
            let mut routing = routing();
            let mut lost = operation(kind);
            let mut asked = Vec::new();
            loop {
                let from = routing.target(TABLE, 0).unwrap();
                asked.push(from.node.unwrap().0);
                match routing.on_lost(&mut lost, &from, Loss::Broken) {
                    Action::RetryAt(target) => assert_eq!(target, routing.target(TABLE, 0).unwrap()),
                    Action::BackOff(_) => break,
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(asked, [2, 3, 1]);
            assert_eq!(lost.maybe_done(), kind == OperationKind::Write);
        }
    }

    #[test]
    fn a_conditional_write_is_repeated_only_if_it_certainly_had_no_effect() {
        let unknown = Action::Done(Response::Error(ErrorReply::OutcomeUnknown));
        let mut routing = routing();
        let from = routing.target(TABLE, 0).unwrap();

        let mut put = operation(OperationKind::ConditionalWrite);
        assert!(matches!(routing.on_lost(&mut put, &from, Loss::Unsent), Action::RetryAt(_)));
        assert!(!put.maybe_done());
        assert_eq!(routing.on_lost(&mut put, &from, Loss::Broken), unknown);
        assert!(put.maybe_done());
        assert_eq!(
            routing.on_lost(&mut operation(OperationKind::ConditionalWrite), &from, Loss::Silent),
            unknown
        );

        for error in [ErrorReply::OutcomeUnknown, ErrorReply::StorageFailed] {
            let mut put = operation(OperationKind::ConditionalWrite);
            assert_eq!(reply(&mut routing, &mut put, &from, error.clone()), unknown);
            let mut put = operation(OperationKind::Write);
            assert!(matches!(reply(&mut routing, &mut put, &from, error), Action::BackOff(_)));
            assert!(put.maybe_done());
        }
        // These say that nothing was done.
        for error in [
            not_leader(3, ""),
            ErrorReply::Busy { retry_after_ms: 1 },
            ErrorReply::Unavailable { why: "starting".into() },
            ErrorReply::WrongPartition { map_version: 3 },
        ] {
            let mut put = operation(OperationKind::ConditionalWrite);
            assert!(!matches!(reply(&mut routing, &mut put, &from, error), Action::Done(_)));
            assert!(!put.maybe_done());
        }
    }

    #[test]
    fn a_write_is_not_repeated_while_it_may_yet_be_executed() {
        let mut routing = routing();
        let from = routing.target(TABLE, 0).unwrap();
        let mut put = operation(OperationKind::Write);
        let unknown = Action::Done(Response::Error(ErrorReply::OutcomeUnknown));
        assert_eq!(routing.on_lost(&mut put, &from, Loss::Silent), unknown);
        assert!(put.maybe_done());
        let mut get = operation(OperationKind::Read);
        let from = routing.target(TABLE, 0).unwrap();
        assert!(matches!(routing.on_lost(&mut get, &from, Loss::Silent), Action::RetryAt(_)));
    }

    #[test]
    fn busy_waits_as_long_as_asked_within_reason() {
        let mut routing = routing();
        let from = routing.target(TABLE, 0).unwrap();
        let mut pause = |retry_after_ms| {
            let mut get = operation(OperationKind::Read);
            match reply(&mut routing, &mut get, &from, ErrorReply::Busy { retry_after_ms }) {
                Action::BackOff(pause) => pause,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(pause(200), Duration::from_millis(200));
        assert_eq!(pause(u32::MAX), BUSY_PAUSE_MAX);
        assert!(pause(0) > Duration::ZERO);
        assert_eq!(address(&routing, 0), "10.0.0.2:7401", "a busy leader is still the leader");
    }

    #[test]
    fn final_answers_are_final() {
        let mut routing = routing();
        let from = routing.target(TABLE, 0).unwrap();
        for error in [
            ErrorReply::NotFound,
            ErrorReply::ConditionFailed { current: None },
            ErrorReply::Full,
            ErrorReply::TooLarge { limit: 1 },
            ErrorReply::Unsupported { what: "expiry".into() },
            ErrorReply::Malformed { why: "no".into() },
        ] {
            let mut put = operation(OperationKind::Write);
            let action = reply(&mut routing, &mut put, &from, error.clone());
            assert_eq!(action, Action::Done(Response::Error(error)));
        }
        let written = Response::Written { version: 7 };
        let mut put = operation(OperationKind::Write);
        assert_eq!(routing.on_reply(&mut put, &from, &header(3), written.clone()), Action::Done(written));
    }

    #[test]
    fn a_newer_map_is_noticed_and_fetched() {
        let mut routing = routing();
        let from = routing.target(TABLE, 0).unwrap();
        assert!(!routing.is_stale());
        routing.on_reply(&mut operation(OperationKind::Read), &from, &header(4), Response::Pong);
        assert!(routing.is_stale());
        let newer = Topology { map_version: 4, ..Topology::sample() };
        assert_eq!(routing.install(&newer), Ok(true));
        assert!(!routing.is_stale());

        let mut get = operation(OperationKind::Read);
        let wrong = ErrorReply::WrongPartition { map_version: 5 };
        assert_eq!(reply(&mut routing, &mut get, &from, wrong.clone()), Action::RefreshMap(Duration::ZERO));
        assert!(routing.is_stale());
        let again = reply(&mut routing, &mut get, &from, wrong);
        assert!(matches!(again, Action::RefreshMap(pause) if pause > Duration::ZERO));
    }

    #[test]
    fn an_unknown_table_is_looked_for_once() {
        let mut routing = routing();
        let from = routing.target(TABLE, 0).unwrap();
        let mut get = operation(OperationKind::Read);
        let first = reply(&mut routing, &mut get, &from, ErrorReply::UnknownTable);
        assert_eq!(first, Action::RefreshMap(Duration::ZERO));
        let second = reply(&mut routing, &mut get, &from, ErrorReply::UnknownTable);
        assert_eq!(second, Action::Done(Response::Error(ErrorReply::UnknownTable)));
    }

    #[test]
    fn older_maps_other_clusters_and_broken_topologies_are_refused() {
        let mut routing = routing();
        let older = Topology { map_version: 2, ..Topology::sample() };
        assert_eq!(routing.install(&older), Ok(false));
        let other = Topology { cluster: 1, ..Topology::sample() };
        assert!(matches!(routing.install(&other), Err(MapError::OtherCluster { found: 1, .. })));
        let mut broken = Topology::sample();
        broken.tables[0].partitions[1].replicas = vec![NodeId(77)];
        let expected = MapError::NoReplica { table: TABLE, partition: 1 };
        assert_eq!(routing.install(&broken), Err(expected));
        broken.tables[0].partitions.clear();
        let expected = MapError::PartitionCount { table: TABLE, partitions: 0 };
        assert_eq!(routing.install(&broken), Err(expected));
        assert_eq!(routing.map_version(), 3, "the map is as it was");
    }

    #[test]
    fn a_new_map_keeps_leaders_it_does_not_know_better() {
        let mut routing = routing();
        let from = routing.target(TABLE, u64::MAX).unwrap();
        let mut get = Operation::new(TABLE, u64::MAX, OperationKind::Read);
        reply(&mut routing, &mut get, &from, not_leader(3, ""));
        let newer = Topology { map_version: 4, ..Topology::sample() };
        routing.install(&newer).unwrap();
        assert_eq!(address(&routing, u64::MAX), "10.0.0.3:7402", "learned, and not contradicted");
        assert_eq!(address(&routing, 0), "10.0.0.2:7401", "as the topology says");
    }

    #[test]
    fn topology_sources_take_turns() {
        let mut routing = routing();
        let sources: Vec<String> = (0..5).map(|_| routing.next_source().unwrap().to_string()).collect();
        let expected = ["10.0.0.1:7400", "10.0.0.2:7400", "10.0.0.3:7400", "seed:7400", "10.0.0.1:7400"];
        assert_eq!(sources, expected);
        assert_eq!(routing.sources(), 4);
        // Each node's base port and two shard ports, and the seed.
        assert_eq!(routing.addresses().len(), 3 * 3 + 1);
        let from = routing.target(TABLE, 0).unwrap();
        reply(&mut routing, &mut operation(OperationKind::Read), &from, not_leader(3, "moved:9000"));
        assert!(routing.addresses().contains("moved:9000"));
    }
}

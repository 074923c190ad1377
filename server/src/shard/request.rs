//! Requests: to the shard that owns the partition, through its replica, and back to whoever asked.
//!
//! Invariants:
//! - A request for another shard waits for a credit of the mesh, so its reply always has a place. Requests
//!   without credit wait here, bounded by what their connections may have in flight.
//! - Every responder is answered exactly once.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::Bytes;
use terrane_client::wire::{
    self, Consistency, ErrorReply, GroupStatus, Header, NodeInfo, NodeStatus, PartitionInfo, ReplicaRole,
    Request, Response, Row, TableId, TableInfo, Topology,
};
use terrane_engine::{GroupId, Lookup, ReadError};
use terrane_raft::{PeerId, Role};

use super::replica::{Effect, Read, Replica, Wanted};
use super::session::{Connection, Responder};
use super::{
    PROPOSAL_BYTES_MIN, Phase, READ_BYTES_MAX, SCARCE_BYTES, STAGED_BYTES_MAX, STOPPING, Shard, ShardReply,
    ShardRequest,
};
use crate::cluster::ClusterMap;
use crate::seam::World;

/// State of one shard's groups and its counters.
#[derive(Debug, Default)]
pub struct Description {
    /// One row for each group.
    pub groups: Vec<GroupStatus>,
    /// Counters by name; those of all shards of a node add up.
    pub counters: Vec<(&'static str, u64)>,
}

/// A page of a range of one partition, as a client asks for it.
pub(super) struct Scan {
    start: Bytes,
    end: Bytes,
    count_max: u32,
    bytes_max: u32,
}

/// What a forwarded request's reply is for.
pub(super) enum Pending {
    /// To be passed on.
    Client(Responder),
    /// One of the descriptions that are being gathered.
    Gather(Rc<Gather>),
}

/// Descriptions of all shards of a node, as they come in.
pub(super) struct Gather {
    missing: Cell<usize>,
    gathered: RefCell<Description>,
    responder: RefCell<Option<(Request, Responder)>>,
}

impl<W: World> Shard<W> {
    /// Takes a client's request: answers it, queues it for the next pass, or sends it to the shard it is for.
    pub(super) fn submit(self: &Rc<Self>, header: Header, request: Request, responder: Responder) {
        match request {
            Request::Ping => self.respond(responder, Response::Pong),
            Request::Topology | Request::Status => self.gather(request, responder),
            _ => match self.locate(&header) {
                Ok((_, owner)) if owner == self.acceptance.shard => {
                    self.inbox.borrow_mut().requests.push_back((header, request, responder));
                    self.wake.notify_one();
                }
                Ok((_, owner)) => {
                    if let Responder::Client { connection, .. } = &responder {
                        if connection.defers(true) {
                            return connection.clone().defer(header, request, responder);
                        }
                        connection.forwarded_out();
                    }
                    let token = self.next_token.get();
                    self.next_token.set(token + 1);
                    self.forwarded.borrow_mut().insert(token, Pending::Client(responder));
                    self.forward(owner, ShardRequest::Data { token, header, request });
                }
                Err(error) => self.respond(responder, Response::Error(error)),
            },
        }
    }

    /// Submits requests of a connection that had to wait, a few at a time: each answer that is written, and each that
    /// comes from another shard, brings the next few. So however many wait, none is looked at again and again.
    pub(super) fn resubmit(self: &Rc<Self>, connection: &Connection) {
        let most = if connection.is_closed() { usize::MAX } else { RESUBMITTED_AT_ONCE };
        for _ in 0..most {
            let Some((header, request, responder)) = connection.next_deferred() else { break };
            self.submit(header, request, responder);
        }
    }

    /// The group a data request is for, and the shard that owns it. The header suffices: that it carries the
    /// hash of the request's key was checked when the request was decoded.
    fn locate(&self, header: &Header) -> Result<(GroupId, u32), ErrorReply> {
        let table = self.map.table(header.table.0).ok_or(ErrorReply::UnknownTable)?;
        let partition = wire::partition_of_hash(header.partition_hash, table.partitions);
        Ok((ClusterMap::group(table.id, partition), self.map.shard_of(partition)))
    }

    fn forward(&self, to: u32, request: ShardRequest) {
        let waiting = &mut self.backlog.borrow_mut()[to as usize];
        if !waiting.is_empty() {
            return waiting.push_back(request);
        }
        if let Err(request) = self.mesh.try_send(to as usize, request) {
            waiting.push_back(request);
        }
    }

    /// Serves what came over the mesh: requests of other shards, and their replies to ours.
    pub(super) fn serve_mesh(self: &Rc<Self>, replicas: &mut [Replica]) {
        // No more than one ring's worth: what comes meanwhile is for the next pass, after timers and completions.
        for _ in 0..REQUESTS_A_PASS {
            let Some((from, request)) = self.mesh.recv_request() else { break };
            match request {
                ShardRequest::Data { token, header, request } => {
                    self.operate(replicas, &header, request, Responder::Shard { shard: from, token });
                }
                ShardRequest::Describe { token } => {
                    let description = self.describe(replicas);
                    self.mesh.reply(from, ShardReply::Describe { token, description });
                }
            }
        }
        loop {
            let Some((from, reply)) = self.mesh.recv_reply() else { break };
            // The reply gave a credit back.
            let next = self.backlog.borrow_mut()[from].pop_front();
            if let Some(next) = next
                && let Err(next) = self.mesh.try_send(from, next)
            {
                self.backlog.borrow_mut()[from].push_front(next);
            }
            let (token, outcome) = match reply {
                ShardReply::Data { token, response } => (token, Ok(response)),
                ShardReply::Describe { token, description } => (token, Err(description)),
            };
            let pending = self.forwarded.borrow_mut().remove(&token).expect("a token is used once");
            match (pending, outcome) {
                (Pending::Client(responder), Ok(response)) => {
                    let client = match &responder {
                        Responder::Client { connection, .. } => Some(connection.clone()),
                        Responder::Shard { .. } => None,
                    };
                    self.respond(responder, response);
                    if let Some(connection) = client {
                        connection.forwarded_back();
                        self.resubmit(&connection);
                    }
                }
                (Pending::Gather(gather), Err(description)) => self.gathered(&gather, description),
                _ => unreachable!("a shard replies in kind"),
            }
        }
    }

    /// Carries out a request whose partition lives on this shard.
    pub(super) fn operate(
        self: &Rc<Self>,
        replicas: &mut [Replica],
        header: &Header,
        request: Request,
        responder: Responder,
    ) {
        match self.phase.get() {
            Phase::Serving | Phase::Stopping => {}
            Phase::Closed => {
                let error = ErrorReply::Unavailable { why: STOPPING.into() };
                return self.respond(responder, Response::Error(error));
            }
            Phase::Failed => return self.respond(responder, Response::Error(ErrorReply::StorageFailed)),
        }
        // A client that has many answers to take gets no more until it has taken some.
        if let Responder::Client { connection, .. } = &responder
            && connection.defers(false)
        {
            return connection.clone().defer(*header, request, responder);
        }
        let group = match self.locate(header) {
            Ok((group, _)) => group,
            Err(error) => return self.respond(responder, Response::Error(error)),
        };
        let Some(&place) = self.places.get(&group) else {
            let map_version = self.map.version;
            return self.respond(responder, Response::Error(ErrorReply::WrongPartition { map_version }));
        };
        if self.staged_bytes.get() > STAGED_BYTES_MAX || self.store.free_bytes() < SCARCE_BYTES {
            self.drain_all(replicas);
        }
        let replica = &mut replicas[place];
        match request {
            Request::Get { key } => self.query(replica, header, Wanted::Get(key), responder),
            Request::Scan { start, end, count_max, bytes_max } => {
                let scan = Scan { start, end, count_max, bytes_max };
                self.query(replica, header, Wanted::Scan(scan), responder);
            }
            Request::Put { value, .. } if value.len() > self.settings.value_bytes_max as usize => {
                let limit = self.settings.value_bytes_max;
                self.respond(responder, Response::Error(ErrorReply::TooLarge { limit }));
            }
            Request::Put { expires_ms, .. } if expires_ms != 0 => {
                self.respond(responder, Response::Error(ErrorReply::Unsupported { what: "expiry".into() }));
            }
            Request::Put { key, value, condition, .. } => {
                replica.write(self, key, Effect::Put { value }, condition, responder);
            }
            Request::Delete { key, condition } => {
                replica.write(self, key, Effect::Delete, condition, responder);
            }
            // The others have no partition: they are answered where the connection is.
            other => {
                let what = other.opcode().name().into();
                self.respond(responder, Response::Error(ErrorReply::Unsupported { what }));
            }
        }
    }

    fn query(self: &Rc<Self>, replica: &mut Replica, header: &Header, wanted: Wanted, responder: Responder) {
        match header.consistency() {
            Consistency::TableDefault | Consistency::Linearizable => replica.read(self, wanted, 0, responder),
            Consistency::Eventual => self.look(replica.group, Read { wanted, after: 0, responder }),
            Consistency::Sequential => {
                let what = "sequential consistency".into();
                self.respond(responder, Response::Error(ErrorReply::Unsupported { what }));
            }
        }
    }

    /// Reads what is applied now, and answers.
    pub(super) fn look(self: &Rc<Self>, group: GroupId, read: Read) {
        let Read { wanted, responder, .. } = read;
        match wanted {
            Wanted::Refusal { current } => {
                self.respond(responder, Response::Error(ErrorReply::ConditionFailed { current }));
            }
            Wanted::Get(key) => match self.store.try_get(group, &key) {
                Lookup::Absent => self.respond(responder, Response::Error(ErrorReply::NotFound)),
                Lookup::Ready(found) => self.respond(responder, value(found)),
                Lookup::OnMedia { bytes } => {
                    let shard = self.clone();
                    self.world.spawn(async move {
                        shard.take_read_bytes(bytes.into()).await;
                        // A write that was applied since may be seen, as if the read had begun later.
                        let response = match shard.store.get(group, &key).await {
                            Ok(Some(found)) => value(found),
                            Ok(None) => Response::Error(ErrorReply::NotFound),
                            Err(error) => unreadable(group, &error),
                        };
                        shard.respond(responder, response);
                        shard.give_read_bytes(bytes.into());
                    });
                }
            },
            Wanted::Scan(scan) => {
                let shard = self.clone();
                self.world.spawn(async move {
                    shard.take_read_bytes(SCAN_BYTES_MAX as u64).await;
                    let response = shard.scan(group, &scan).await;
                    shard.respond(responder, response);
                    shard.give_read_bytes(SCAN_BYTES_MAX as u64);
                });
            }
        }
    }

    /// Resolves when `bytes` of the memory for reads are ours, or all of it for a read larger than that. Give them back.
    async fn take_read_bytes(&self, bytes: u64) {
        let bytes = bytes.min(READ_BYTES_MAX);
        while self.read_bytes_left.get() < bytes {
            self.read_bytes_back.notified().await;
        }
        self.read_bytes_left.set(self.read_bytes_left.get() - bytes);
        // There may be enough left for the next one, which was woken for nothing before.
        self.read_bytes_back.notify_one();
    }

    fn give_read_bytes(&self, bytes: u64) {
        self.read_bytes_left.set(self.read_bytes_left.get() + bytes.min(READ_BYTES_MAX));
        self.read_bytes_back.notify_one();
    }

    /// Notes a proposal that the store has not seen yet.
    pub(super) fn stage(&self, payload_bytes: usize) {
        self.staged_bytes.set(self.staged_bytes.get() + PROPOSAL_BYTES_MIN.max(payload_bytes as u64));
    }

    async fn scan(&self, group: GroupId, scan: &Scan) -> Response {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let start = Included(&scan.start[..]);
        let end = if scan.end.is_empty() { Unbounded } else { Excluded(&scan.end[..]) };
        let limit = |wanted: u32, most: usize| if wanted == 0 { most } else { (wanted as usize).min(most) };
        let count = limit(scan.count_max, SCAN_ROWS_MAX);
        let bytes = limit(scan.bytes_max, SCAN_BYTES_MAX);
        match self.store.scan(group, start, end, count, bytes).await {
            Ok(page) => {
                let row = |(key, found): (Bytes, terrane_engine::Value)| Row {
                    key,
                    version: found.version,
                    value: found.value,
                };
                Response::Rows { rows: page.rows.into_iter().map(row).collect(), more: page.more }
            }
            Err(error) => unreadable(group, &error),
        }
    }

    /// Sends the answer to whoever waits for it.
    pub(super) fn respond(&self, responder: Responder, response: Response) {
        match responder {
            Responder::Client { connection, request_id, opcode, request_bytes } => {
                connection.answer(request_id, opcode, request_bytes, &response);
            }
            Responder::Shard { shard, token } => {
                self.mesh.reply(shard, ShardReply::Data { token, response });
            }
        }
    }

    pub(super) fn not_leader(&self, group: GroupId, leader: Option<PeerId>) -> ErrorReply {
        let (_, partition) = ClusterMap::of_group(group);
        let node = leader.and_then(|peer| self.map.nodes.iter().find(|node| PeerId::from(node.id) == peer));
        let address = node.map(|node| node.shard_name(self.map.shard_of(partition)));
        ErrorReply::NotLeader { leader: node.map(|node| node.id.into()), address }
    }

    fn gather(self: &Rc<Self>, request: Request, responder: Responder) {
        let gather = Rc::new(Gather {
            missing: Cell::new(self.map.shards as usize),
            gathered: RefCell::default(),
            responder: RefCell::new(Some((request, responder))),
        });
        for shard in 0..self.map.shards {
            if shard == self.acceptance.shard {
                let own = self.describe(&self.replicas.borrow());
                self.gathered(&gather, own);
            } else {
                let token = self.next_token.get();
                self.next_token.set(token + 1);
                self.forwarded.borrow_mut().insert(token, Pending::Gather(gather.clone()));
                self.forward(shard, ShardRequest::Describe { token });
            }
        }
    }

    fn gathered(&self, gather: &Gather, description: Description) {
        gather.missing.set(gather.missing.get() - 1);
        let mut all = gather.gathered.borrow_mut();
        all.groups.extend(description.groups);
        for (name, count) in description.counters {
            match all.counters.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum += count,
                None => all.counters.push((name, count)),
            }
        }
        if gather.missing.get() > 0 {
            return;
        }
        all.groups.sort_by_key(|row| (row.table, row.partition));
        let (request, responder) = gather.responder.borrow_mut().take().expect("answered once");
        let response = match request {
            Request::Topology => Response::Topology(self.topology(&all.groups)),
            _ => {
                all.counters.extend((self.process_counters)());
                let counters = all.counters.iter().map(|&(name, count)| (name.to_owned(), count)).collect();
                Response::Status(NodeStatus {
                    node: self.acceptance.node.into(),
                    counters,
                    groups: std::mem::take(&mut all.groups),
                })
            }
        };
        drop(all);
        self.respond(responder, response);
    }

    fn topology(&self, groups: &[GroupStatus]) -> Topology {
        let nodes = self.map.nodes.iter().map(|node| NodeInfo {
            id: node.id.into(),
            host: node.host.clone(),
            base_port: node.port,
            shards: self.map.shards as u16,
        });
        let tables = self.map.tables.iter().map(|table| {
            let partitions = (0..table.partitions).map(|partition| {
                let place =
                    groups.binary_search_by_key(&(table.id, partition), |row| (row.table.0, row.partition));
                let known = place.ok().map(|place| &groups[place]);
                PartitionInfo {
                    shard: self.map.shard_of(partition) as u16,
                    replicas: self.map.replicas_of(partition).into_iter().map(wire::NodeId::from).collect(),
                    leader: known.and_then(|row| row.leader),
                }
            });
            TableInfo { id: TableId(table.id), name: table.name.clone(), partitions: partitions.collect() }
        });
        Topology {
            cluster: self.map.cluster,
            map_version: self.map.version,
            nodes: nodes.collect(),
            tables: tables.collect(),
        }
    }

    fn describe(&self, replicas: &[Replica]) -> Description {
        let groups = replicas.iter().map(|replica| {
            let (table, partition) = ClusterMap::of_group(replica.group);
            let status = replica.raft.status();
            GroupStatus {
                group: replica.group.0,
                table: TableId(table),
                partition,
                shard: self.acceptance.shard as u16,
                role: match status.role {
                    Role::Follower => ReplicaRole::Follower,
                    Role::PreCandidate | Role::Candidate => ReplicaRole::Candidate,
                    Role::Leader => ReplicaRole::Leader,
                },
                term: status.term,
                commit: status.commit,
                applied: status.applied,
                last: status.last_index,
                leader: status.leader.map(|peer| wire::NodeId(peer.0)),
            }
        });
        let store = self.store.counters();
        let counters = vec![
            ("connections", self.connections.get()),
            ("device_read_bytes", store.media.read_bytes),
            ("device_written_bytes", store.media.written_bytes),
            ("device_writes", store.media.writes),
            ("entries", store.entries),
            ("flushes", store.flushes),
            ("frames", store.frames),
            ("cache_hits", store.cache_hits),
            ("cache_misses", store.cache_misses),
            ("keys", store.keys),
            ("padding_bytes", store.padding_bytes),
            ("slice_bytes", store.slice_bytes),
            ("used_bytes", store.used_bytes),
            ("user_bytes", store.user_bytes),
            ("shards_failed", u64::from(self.phase.get() == Phase::Failed)),
        ];
        Description { groups: groups.collect(), counters }
    }
}

/// Deferred requests that one answer sets going.
const RESUBMITTED_AT_ONCE: usize = 16;
/// Requests of other shards that one pass takes.
const REQUESTS_A_PASS: usize = 1024;
/// Most rows and bytes of one page of a scan, whatever the client asks for.
const SCAN_ROWS_MAX: usize = 10_000;
const SCAN_BYTES_MAX: usize = 4 << 20;

fn value(found: terrane_engine::Value) -> Response {
    Response::Value { version: found.version, value: found.value }
}

fn unreadable(group: GroupId, error: &ReadError) -> Response {
    tracing::error!(group = group.0, %error, "a stored value cannot be read");
    Response::Error(ErrorReply::StorageFailed)
}

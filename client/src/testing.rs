//! A cluster in memory, for tests of whatever uses a [`Client`].
//!
//! It speaks the real protocol over in-process pipes (or, with [`MemoryCluster::listen`], over TCP on loopback) and
//! keeps its data in a map: no replication, no durability. What it adds are the faults a client must survive: leaders
//! that move, nodes that are down or hang, answers that are lost.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use terrane_client::testing::{MemoryCluster, Shape};
//! use terrane_client::wire::NodeId;
//!
//! let cluster = MemoryCluster::new(Shape { nodes: 3, shards: 2, partitions: 4 });
//! let client = cluster.client().await?;
//! client.put("key", "value").await?;
//! cluster.set_leaders(Some(NodeId(3))); // the client finds out, and follows
//! assert_eq!(client.get("key").await?.unwrap().value, "value");
//! # Ok(())
//! # }
//! ```

use crate::link::{Connecting, Connector, ReadHalf, WriteHalf};
use crate::wire::{
    Condition, ErrorReply, FrameDecoder, GroupStatus, Header, KEY_BYTES_MAX, NodeId, NodeInfo, NodeStatus,
    PartitionInfo, ReplicaRole, Request, Response, Row, TableId, TableInfo, Topology,
    encode_connection_error, partition_of_hash, put_body_bytes, row_bytes,
};
use crate::{Client, ClientBuilder, ConnectError, DEFAULT_TABLE};
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The largest value it accepts: 4 MiB, like a server with default settings.
pub const VALUE_BYTES_MAX: u32 = 4 << 20;

/// The number of its one table, [`DEFAULT_TABLE`].
pub const TABLE: TableId = TableId(1);

/// The base port of every node of a cluster that is reached by pipes.
const PIPE_BASE_PORT: u16 = 7400;

/// Most rows of a page.
const PAGE_ROWS_MAX: usize = 1000;

/// Most bytes of a page's rows.
const PAGE_BYTES_MAX: usize = 1 << 20;

/// How large a cluster is. All nodes hold all partitions; partition `p` lives on shard `p % shards`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// How many nodes, numbered from 1.
    pub nodes: u16,
    /// How many shards each has.
    pub shards: u16,
    /// How many partitions the table has; a power of two.
    pub partitions: u32,
}

impl Default for Shape {
    /// One node, one shard, one partition.
    fn default() -> Shape {
        Shape { nodes: 1, shards: 1, partitions: 1 }
    }
}

/// Whether a node can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It serves.
    Up,
    /// It refuses connections; those it had are closed.
    Down,
    /// Connections to it are never completed, and those it had get no more answers.
    Hung,
}

/// What happens to one request, decided by [`MemoryCluster::on_call`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Nothing special.
    None,
    /// It is not done, and answered with this.
    Answer(ErrorReply),
    /// It is not done; the connection closes.
    Close,
    /// It is done; the connection closes before the answer.
    DoThenClose,
    /// It is not done and not answered.
    Silence,
    /// It is done and not answered.
    DoThenSilence,
    /// It is not done; these bytes come instead of an answer.
    Bytes(Vec<u8>),
}

/// A request as a fault hook sees it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Call<'a> {
    /// The node that received it.
    pub node: NodeId,
    /// The shard whose port it came through; `None`: the base port.
    pub shard: Option<u16>,
    /// Its header.
    pub header: &'a Header,
    /// Its body.
    pub request: &'a Request,
}

type Hook = Box<dyn FnMut(&Call<'_>) -> Fault + Send>;

/// The cluster. Dropping it closes all connections.
pub struct MemoryCluster {
    inner: Arc<Inner>,
    listeners: Vec<JoinHandle<()>>,
}

impl fmt::Debug for MemoryCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryCluster").field("addresses", &self.addresses()).finish_non_exhaustive()
    }
}

struct Inner {
    state: Mutex<State>,
    /// Per node; connections watch it.
    presence: BTreeMap<NodeId, watch::Sender<Presence>>,
}

struct State {
    topology: Topology,
    partitions: Vec<Partition>,
    requests: BTreeMap<NodeId, u64>,
    hook: Option<Hook>,
}

#[derive(Default)]
struct Partition {
    last_version: u64,
    rows: BTreeMap<Bytes, (u64, Bytes)>,
}

impl MemoryCluster {
    /// A cluster reached by pipes: no sockets, so a test with paused time is deterministic. Node 1 leads
    /// everything.
    ///
    /// # Panics
    /// When the shape has no node or no shard, or its partitions are not a power of two.
    pub fn new(shape: Shape) -> MemoryCluster {
        MemoryCluster::with_nodes(shape, |id| (format!("node{id}"), PIPE_BASE_PORT))
    }

    /// A cluster that listens on loopback, on ports the system has free.
    ///
    /// # Errors
    /// No run of neighbouring free ports was found, or the system refused.
    ///
    /// # Panics
    /// As [`MemoryCluster::new`].
    pub async fn listen(shape: Shape) -> io::Result<MemoryCluster> {
        let mut ports = BTreeMap::new();
        for id in 1..=u64::from(shape.nodes) {
            ports.insert(id, neighbouring_ports(shape.shards).await?);
        }
        let base = |id: u64| ports[&id][0].local_addr().map(|address| address.port());
        let bases = (1..=u64::from(shape.nodes)).map(base).collect::<io::Result<Vec<u16>>>()?;
        let mut cluster =
            MemoryCluster::with_nodes(shape, |id| ("127.0.0.1".to_owned(), bases[id as usize - 1]));
        for (id, listeners) in ports {
            for (at, listener) in listeners.into_iter().enumerate() {
                let shard = at.checked_sub(1).map(|shard| shard as u16);
                let inner = cluster.inner.clone();
                cluster.listeners.push(tokio::spawn(accept(inner, NodeId(id), shard, listener)));
            }
        }
        Ok(cluster)
    }

    fn with_nodes(shape: Shape, place: impl Fn(u64) -> (String, u16)) -> MemoryCluster {
        assert!(shape.nodes > 0 && shape.shards > 0, "a cluster has nodes, and they have shards");
        assert!(shape.partitions.is_power_of_two(), "a table has 2^n partitions");
        let ids: Vec<NodeId> = (1..=u64::from(shape.nodes)).map(NodeId).collect();
        let nodes = ids.iter().map(|&id| {
            let (host, base_port) = place(id.0);
            NodeInfo { id, host, base_port, shards: shape.shards }
        });
        let partition = |number: u32| PartitionInfo {
            shard: (number % u32::from(shape.shards)) as u16,
            replicas: ids.clone(),
            leader: Some(NodeId(1)),
        };
        let table = TableInfo {
            id: TABLE,
            name: DEFAULT_TABLE.to_owned(),
            partitions: (0..shape.partitions).map(partition).collect(),
        };
        let topology =
            Topology { cluster: 0x7e57, map_version: 1, nodes: nodes.collect(), tables: vec![table] };
        let presence = ids.iter().map(|&id| (id, watch::Sender::new(Presence::Up))).collect();
        let state = State {
            topology,
            partitions: (0..shape.partitions).map(|_| Partition::default()).collect(),
            requests: BTreeMap::new(),
            hook: None,
        };
        MemoryCluster { inner: Arc::new(Inner { state: Mutex::new(state), presence }), listeners: Vec::new() }
    }

    /// The nodes' base addresses.
    pub fn addresses(&self) -> Vec<String> {
        self.inner.state().topology.nodes.iter().map(NodeInfo::base_address).collect()
    }

    /// A client of this cluster, with default settings.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn client(&self) -> Result<Client, ConnectError> {
        self.client_with(Client::builder()).await
    }

    /// A client of this cluster, with the settings given.
    ///
    /// # Errors
    /// As [`ClientBuilder::connect`].
    pub async fn client_with(&self, settings: ClientBuilder) -> Result<Client, ConnectError> {
        let settings = if self.listeners.is_empty() {
            settings.connector(Arc::new(Pipes { inner: self.inner.clone() }))
        } else {
            settings
        };
        settings.connect(self.addresses()).await
    }

    /// Makes `leader` lead every partition (`None`: nobody does). Clients are not told before they ask.
    pub fn set_leaders(&self, leader: Option<NodeId>) {
        for table in &mut self.inner.state().topology.tables {
            for partition in &mut table.partitions {
                partition.leader = leader;
            }
        }
    }

    /// Changes the topology; its map version is raised by one.
    pub fn change_topology(&self, change: impl FnOnce(&mut Topology)) {
        let mut state = self.inner.state();
        change(&mut state.topology);
        state.topology.map_version += 1;
    }

    /// Makes a node reachable or not.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn set_presence(&self, node: NodeId, presence: Presence) {
        self.inner.presence[&node].send_replace(presence);
    }

    /// Lets `hook` decide what happens to each request from now on. It must not call the cluster's own methods:
    /// they would wait for the request to be decided.
    pub fn on_call(&self, hook: impl FnMut(&Call<'_>) -> Fault + Send + 'static) {
        self.inner.state().hook = Some(Box::new(hook));
    }

    /// How many requests a node received, of any kind.
    pub fn requests(&self, node: NodeId) -> u64 {
        self.inner.state().requests.get(&node).copied().unwrap_or(0)
    }

    /// How many connections a node has, on all its ports.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn connections(&self, node: NodeId) -> usize {
        self.inner.presence[&node].receiver_count()
    }
}

impl Drop for MemoryCluster {
    fn drop(&mut self) {
        for listener in &self.listeners {
            listener.abort();
        }
        for presence in self.inner.presence.values() {
            presence.send_replace(Presence::Down);
        }
        // The hook may hold a handle to whatever the test shares with it.
        self.inner.state().hook = None;
    }
}

/// Listeners on `base, base + 1, ..., base + shards`.
async fn neighbouring_ports(shards: u16) -> io::Result<Vec<TcpListener>> {
    const TRIES: usize = 100;
    let mut refused = io::Error::from(io::ErrorKind::AddrInUse);
    'tries: for _ in 0..TRIES {
        let mut listeners = vec![TcpListener::bind(("127.0.0.1", 0)).await?];
        let base = listeners[0].local_addr()?.port();
        for shard in 0..shards {
            let Some(port) = base.checked_add(1 + shard) else { continue 'tries };
            match TcpListener::bind(("127.0.0.1", port)).await {
                Ok(listener) => listeners.push(listener),
                Err(error) => {
                    refused = error;
                    continue 'tries;
                }
            }
        }
        return Ok(listeners);
    }
    Err(refused)
}

async fn accept(inner: Arc<Inner>, node: NodeId, shard: Option<u16>, listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        if inner.presence(node) == Presence::Down {
            continue;
        }
        // A test's latency is no one's concern if this fails.
        let _ = stream.set_nodelay(true);
        let (read, write) = stream.into_split();
        tokio::spawn(serve(inner.clone(), node, shard, Box::new(read), Box::new(write)));
    }
}

/// Connects by pipe.
struct Pipes {
    inner: Arc<Inner>,
}

impl Connector for Pipes {
    fn connect<'a>(&'a self, address: &'a str) -> Connecting<'a> {
        Box::pin(async move {
            let place = self.inner.state().topology.nodes.iter().find_map(|node| {
                if node.base_address() == address {
                    return Some((node.id, None));
                }
                let shard = (0..node.shards).find(|&s| node.shard_address(s).as_deref() == Some(address));
                shard.map(|shard| (node.id, Some(shard)))
            });
            let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
            let (node, shard) = place.ok_or_else(refused)?;
            match self.inner.presence(node) {
                Presence::Up => {}
                Presence::Down => return Err(refused()),
                Presence::Hung => return std::future::pending().await,
            }
            let (near, far) = tokio::io::duplex(64 << 10);
            let (read, write) = tokio::io::split(far);
            tokio::spawn(serve(self.inner.clone(), node, shard, Box::new(read), Box::new(write)));
            let (read, write) = tokio::io::split(near);
            Ok((Box::new(read) as ReadHalf, Box::new(write) as WriteHalf))
        })
    }
}

/// What becomes of the connection after a request.
enum After {
    GoOn,
    Close,
}

async fn serve(
    inner: Arc<Inner>,
    node: NodeId,
    shard: Option<u16>,
    mut read: ReadHalf,
    mut write: WriteHalf,
) {
    let mut presence = inner.presence[&node].subscribe();
    let body_bytes_max = put_body_bytes(KEY_BYTES_MAX as usize, VALUE_BYTES_MAX as usize) as u32;
    let mut decoder = FrameDecoder::new(body_bytes_max);
    let mut input = BytesMut::new();
    let mut out = Vec::new();
    loop {
        input.reserve(64 << 10);
        let received = tokio::select! {
            biased;
            now = async { presence.wait_for(|now| *now != Presence::Up).await.map(|now| *now) } => Err(now),
            received = read.read_buf(&mut input) => Ok(received),
        };
        match received {
            Ok(Ok(1..)) => {}
            Ok(_) => return,
            Err(Ok(Presence::Hung)) => {
                // Silent until the node is up again, when its peers have long forgotten this connection.
                let _ = presence.wait_for(|now| *now != Presence::Hung).await;
                return;
            }
            Err(_) => return,
        }
        let after = loop {
            match decoder.decode(&mut input) {
                Ok(Some((header, body))) => {
                    if let After::Close = inner.answer(node, shard, &header, body, &mut out) {
                        break After::Close;
                    }
                }
                Ok(None) => break After::GoOn,
                Err(error) if error.is_fatal() => {
                    encode_connection_error(&error.to_reply(), 0, &mut out);
                    break After::Close;
                }
                Err(crate::wire::FrameError::BodyTooLarge { header, .. }) => {
                    let error = ErrorReply::TooLarge { limit: VALUE_BYTES_MAX };
                    Response::Error(error).encode(header.opcode, header.request_id, 0, &mut out);
                }
                Err(_) => break After::Close,
            }
        };
        if write.write_all(&out).await.is_err() || matches!(after, After::Close) {
            return;
        }
        out.clear();
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn presence(&self, node: NodeId) -> Presence {
        *self.presence[&node].borrow()
    }

    fn answer(
        &self,
        node: NodeId,
        shard: Option<u16>,
        header: &Header,
        body: Bytes,
        out: &mut Vec<u8>,
    ) -> After {
        let state = &mut *self.state();
        *state.requests.entry(node).or_insert(0) += 1;
        let map_version = state.topology.map_version;
        let mut reply =
            |response: Response| response.encode(header.opcode, header.request_id, map_version, out);
        let request = match Request::decode(header, body) {
            Ok(request) => request,
            Err(error) => {
                reply(Response::Error(error.to_reply()));
                return After::GoOn;
            }
        };
        let fault = match &mut state.hook {
            Some(hook) => hook(&Call { node, shard, header, request: &request }),
            None => Fault::None,
        };
        match fault {
            Fault::None => reply(state.execute(node, shard, header, request)),
            Fault::Answer(error) => reply(Response::Error(error)),
            Fault::Close => return After::Close,
            Fault::DoThenClose => {
                state.execute(node, shard, header, request);
                return After::Close;
            }
            Fault::Silence => {}
            Fault::DoThenSilence => drop(state.execute(node, shard, header, request)),
            Fault::Bytes(bytes) => out.extend_from_slice(&bytes),
        }
        After::GoOn
    }
}

impl State {
    fn execute(&mut self, node: NodeId, shard: Option<u16>, header: &Header, request: Request) -> Response {
        match request {
            Request::Ping => return Response::Pong,
            Request::Topology => return Response::Topology(self.topology.clone()),
            Request::Status => return Response::Status(self.status(node)),
            _ => {}
        }
        let partition = match self.route(node, shard, header) {
            Ok(partition) => &mut self.partitions[partition],
            Err(error) => return Response::Error(error),
        };
        match request {
            Request::Get { key } => match partition.rows.get(&key) {
                Some((version, value)) => Response::Value { version: *version, value: value.clone() },
                None => Response::Error(ErrorReply::NotFound),
            },
            Request::Put { value, .. } if value.len() > VALUE_BYTES_MAX as usize => {
                Response::Error(ErrorReply::TooLarge { limit: VALUE_BYTES_MAX })
            }
            Request::Put { expires_ms: 1.., .. } => {
                Response::Error(ErrorReply::Unsupported { what: "expiry".to_owned() })
            }
            Request::Put { key, value, condition, .. } => partition.write(key, Some(value), condition),
            Request::Delete { key, condition } => partition.write(key, None, condition),
            Request::Scan { start, end, count_max, bytes_max } => {
                partition.scan(start, &end, count_max, bytes_max)
            }
            _ => Response::Error(ErrorReply::Unsupported { what: "this operation".to_owned() }),
        }
    }

    /// The partition a request is about, if this is where to ask.
    fn route(&self, node: NodeId, shard: Option<u16>, header: &Header) -> Result<usize, ErrorReply> {
        let Some(table) = self.topology.tables.iter().find(|table| table.id == header.table) else {
            return Err(ErrorReply::UnknownTable);
        };
        let number = partition_of_hash(header.partition_hash, table.partitions.len() as u32) as usize;
        let partition = &table.partitions[number];
        if shard.is_some_and(|shard| shard != partition.shard) || !partition.replicas.contains(&node) {
            return Err(ErrorReply::WrongPartition { map_version: self.topology.map_version });
        }
        if partition.leader != Some(node) {
            let leader = partition.leader.and_then(|leader| self.topology.node(leader));
            return Err(ErrorReply::NotLeader {
                leader: partition.leader,
                address: leader.and_then(|leader| leader.shard_address(partition.shard)),
            });
        }
        Ok(number)
    }

    fn status(&self, node: NodeId) -> NodeStatus {
        let groups = self.topology.tables.iter().flat_map(|table| {
            table.partitions.iter().enumerate().map(|(number, partition)| {
                let last = self.partitions[number].last_version;
                GroupStatus {
                    group: number as u64 + 1,
                    table: table.id,
                    partition: number as u32,
                    shard: partition.shard,
                    role: if partition.leader == Some(node) {
                        ReplicaRole::Leader
                    } else {
                        ReplicaRole::Follower
                    },
                    term: 1,
                    commit: last,
                    applied: last,
                    last,
                    leader: partition.leader,
                }
            })
        });
        NodeStatus {
            node,
            counters: vec![("requests".to_owned(), self.requests.get(&node).copied().unwrap_or(0))],
            groups: groups.collect(),
        }
    }
}

impl Partition {
    fn write(&mut self, key: Bytes, value: Option<Bytes>, condition: Condition) -> Response {
        let current = self.rows.get(&key).map(|(version, _)| *version);
        if !condition.holds(current) {
            return Response::Error(ErrorReply::ConditionFailed { current });
        }
        if value.is_none() && current.is_none() {
            return Response::Error(ErrorReply::NotFound);
        }
        self.last_version += 1;
        let version = self.last_version;
        match value {
            // Copied out of the receive buffer, which would else be kept whole.
            Some(value) => {
                self.rows.insert(Bytes::copy_from_slice(&key), (version, Bytes::copy_from_slice(&value)))
            }
            None => self.rows.remove(&key),
        };
        Response::Written { version }
    }

    fn scan(&self, start: Bytes, end: &Bytes, count_max: u32, bytes_max: u32) -> Response {
        let at_most = |asked: u32, most: usize| if asked == 0 { most } else { most.min(asked as usize) };
        let (count_max, bytes_max) = (at_most(count_max, PAGE_ROWS_MAX), at_most(bytes_max, PAGE_BYTES_MAX));
        let mut rows = Vec::new();
        let mut bytes = 0;
        for (key, (version, value)) in self.rows.range((Bound::Included(start), Bound::Unbounded)) {
            if !end.is_empty() && key >= end {
                break;
            }
            bytes += row_bytes(key.len(), value.len());
            if rows.len() == count_max || (bytes > bytes_max && !rows.is_empty()) {
                return Response::Rows { rows, more: true };
            }
            rows.push(Row { key: key.clone(), version: *version, value: value.clone() });
        }
        Response::Rows { rows, more: false }
    }
}

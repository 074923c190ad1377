//! A whole cluster in one thread and virtual time: the shards of every node as they run in production, over the
//! simulator's network, clocks and media.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use terrane_client::wire::{
    self, Condition, ErrorReply, FrameDecoder, Request, RequestHead, Response, TableId,
};
use terrane_engine::{GroupId, Options, SliceId, Store};
use terrane_ocssd::Geometry;
use terrane_ocssd::sim::{SimMedia, SimOptions};
use terrane_server::cluster::{ClusterMap, DEFAULT_TABLE, NodeAddress, NodeId, Table};
use terrane_server::mesh::{ControlEnd, Mesh};
use terrane_server::seam::{ByteReader, ByteWriter, Doorbell, World};
use terrane_server::shard::{Context, Control, Settings, Shard};
use terrane_server::sim::{SimBell, SimDoorbell, SimWorld, Simulation};

const PORT: u16 = 7000;
const CLUSTER: u128 = 0x7e44_a4e0;
/// Clients are no node; they live on a machine of their own.
const CLIENT: u32 = 100;

type Live = Rc<Shard<SimWorld>>;

/// A simulated cluster.
pub(crate) struct Cluster {
    pub(crate) sim: Simulation,
    map: Arc<ClusterMap>,
    /// Shards that run, by node and shard.
    live: Rc<RefCell<BTreeMap<(u32, u32), Live>>>,
    control: RefCell<BTreeMap<u32, ControlEnd<Control, SimBell>>>,
}

fn geometry() -> Geometry {
    Geometry {
        groups: 1,
        parallel_units: 1,
        chunks: 64,
        chunk_sectors: 512,
        sector_bytes: 512,
        ws_min: 1,
        ws_opt: 8,
        mw_cunits: 0,
        max_open: 0,
    }
}

fn slice(node: u32, shard: u32) -> SliceId {
    SliceId { cluster: CLUSTER, node, shard }
}

impl Cluster {
    /// Lays out and starts a cluster; everything that happens in it is decided by `seed`.
    pub(crate) fn start(seed: u64, nodes: u32, shards: u32, partitions: u32) -> Self {
        let sim = Simulation::new(seed);
        let addresses = (1..=nodes).map(|id| NodeAddress {
            id: NodeId(id),
            host: sim.ip(id).to_string(),
            port: PORT,
            address: sim.addr(id, PORT),
        });
        let map = ClusterMap {
            cluster: CLUSTER,
            version: 1,
            nodes: addresses.collect(),
            shards,
            replicas: 3,
            tables: vec![Table { id: DEFAULT_TABLE, name: "default".into(), partitions }],
            agreement: 1,
        };
        let cluster = Self { sim, map: Arc::new(map), live: Rc::default(), control: RefCell::default() };
        for node in 1..=nodes {
            for shard in 0..shards {
                let medium = cluster.sim.add_media(node, geometry(), SimOptions::default());
                assert_eq!(medium, shard as usize);
                let media = cluster.sim.media(node, medium);
                cluster.sim.block_on(async { Store::format(&media, slice(node, shard)).await }).unwrap();
            }
            cluster.run(node);
        }
        cluster
    }

    /// Starts the shards of a node that is up and has none.
    pub(crate) fn run(&self, node: u32) {
        let doorbells: Vec<_> = (0..self.map.shards).map(|_| SimDoorbell::new()).collect();
        let bells: Vec<_> = doorbells.iter().map(Doorbell::bell).collect();
        let Mesh { ends, control } = Mesh::new(64, &bells);
        self.control.borrow_mut().insert(node, control);
        for (shard, (mesh, doorbell)) in ends.into_iter().zip(doorbells).enumerate() {
            let shard = shard as u32;
            let world = self.sim.world(node);
            let media: SimMedia = self.sim.media(node, shard as usize);
            let (map, live) = (self.map.clone(), self.live.clone());
            let ip = self.sim.ip(node);
            self.sim.spawn(node, async move {
                let own = map.node(NodeId(node)).expect("on the map").clone();
                let exclusive = SocketAddr::new(ip, own.shard_port(shard));
                let listeners = vec![
                    world.listen(exclusive, false).await.expect("the port is free"),
                    world.listen(SocketAddr::new(ip, PORT), true).await.expect("the port is shared"),
                ];
                let opened = Store::open(media, slice(node, shard), Options::default()).await;
                let (store, recovery) = opened.expect("what a crash leaves behind can be opened");
                assert!(recovery.damage.is_empty(), "a crash is not damage: {:?}", recovery.damage);
                let context = Context {
                    node: own.id,
                    shard,
                    map,
                    settings: settings(),
                    process_counters: Arc::new(Vec::new),
                };
                let served =
                    Shard::new(world, context, store, &recovery, mesh).expect("the map has not changed");
                live.borrow_mut().insert((node, shard), served.clone());
                served.run(listeners, doorbell).await.expect("simulated media fail only by losing power");
                live.borrow_mut().remove(&(node, shard));
            });
        }
    }

    fn forget(&self, node: u32) {
        self.live.borrow_mut().retain(|&(of, _), _| of != node);
    }

    /// `kill -9`.
    pub(crate) fn kill(&self, node: u32) {
        self.sim.kill(node);
        self.forget(node);
    }

    /// Power is gone; so is what was not durable.
    pub(crate) fn crash(&self, node: u32) {
        self.sim.crash(node);
        self.forget(node);
    }

    /// Brings a dead node back.
    pub(crate) fn revive(&self, node: u32) {
        self.sim.boot(node);
        self.run(node);
    }

    /// SIGTERM.
    pub(crate) fn stop(&self, node: u32) {
        let mut control = self.control.borrow_mut();
        let control = control.get_mut(&node).expect("it runs");
        for shard in 0..self.map.shards as usize {
            // A shard that has ended already needs no telling.
            let _ = control.send(shard, Control::Shutdown);
        }
    }

    /// Whether all shards of `node` have ended.
    pub(crate) fn stopped(&self, node: u32) -> bool {
        self.live.borrow().keys().all(|&(of, _)| of != node)
    }

    /// A client's view from outside.
    pub(crate) fn client(&self) -> SimClient {
        SimClient { world: self.sim.world(CLIENT), map: self.map.clone() }
    }

    /// Runs a task of a client, which no fault of a node touches.
    pub(crate) fn spawn_client(&self, task: impl Future<Output = ()> + 'static) {
        self.sim.spawn(CLIENT, task);
    }

    fn groups(&self) -> Vec<(GroupId, u32, Vec<NodeId>)> {
        let partitions = 0..self.map.tables[0].partitions;
        partitions
            .map(|partition| {
                let group = ClusterMap::group(DEFAULT_TABLE, partition);
                (group, self.map.shard_of(partition), self.map.replicas_of(partition))
            })
            .collect()
    }

    fn store(&self, node: NodeId, shard: u32) -> Option<Store<SimMedia>> {
        self.live.borrow().get(&(node.0, shard)).map(|shard| shard.store().clone())
    }

    /// Whether every replica of every group runs and has applied the same index.
    pub(crate) fn converged(&self) -> bool {
        self.groups().into_iter().all(|(group, shard, replicas)| {
            let applied = |&node: &NodeId| {
                let store = self.store(node, shard)?;
                Some((store.applied(group), store.last_index(group)))
            };
            let marks: Vec<_> = replicas.iter().map(applied).collect();
            marks[0].is_some_and(|(applied, last)| applied > 0 && applied == last)
                && marks.iter().all(|mark| *mark == marks[0])
        })
    }

    /// Everything a replica holds: its log byte for byte, and its keys with versions and values.
    pub(crate) async fn replicas_are_equal(&self) {
        for (group, shard, replicas) in self.groups() {
            let mut first = None;
            for node in replicas {
                let store = self.store(node, shard).expect("it runs");
                let image = image(&store, group).await;
                let expected = first.get_or_insert_with(|| image.clone());
                assert!(*expected == image, "{group:?} on {node:?} differs");
            }
        }
    }
}

type Image = (Vec<(u64, u8, Bytes)>, Vec<(Bytes, u64, Bytes)>);

async fn image(store: &Store<SimMedia>, group: GroupId) -> Image {
    let mut log = Vec::new();
    let last = store.last_index(group);
    while (log.len() as u64) < last {
        let entries =
            store.entries(group, log.len() as u64 + 1, 1000, 1 << 20).await.expect("the log can be read");
        assert!(!entries.is_empty(), "the log has no gap");
        log.extend(entries.into_iter().map(|entry| (entry.term, entry.kind, entry.payload)));
    }
    use std::ops::Bound::Unbounded;
    let rows =
        store.scan(group, Unbounded, Unbounded, usize::MAX, usize::MAX).await.expect("keys can be read");
    let rows = rows.rows.into_iter().map(|(key, found)| (key, found.version, found.value));
    (log, rows.collect())
}

fn settings() -> Settings {
    Settings {
        value_bytes_max: 16 << 10,
        election_timeout: Duration::from_millis(300),
        heartbeat_interval: Duration::from_millis(50),
        clock_drift_ppm: 1000,
        connection_inflight_bytes_max: 1 << 20,
        connection_answer_bytes_max: 4 << 20,
        shard_inflight_bytes_max: 4 << 20,
    }
}

/// What became of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was done.
    Done(Response),
    /// It was not done, and will not be.
    Refused(ErrorReply),
    /// Nobody can say.
    Unknown,
}

/// A client that knows only addresses and asks node after node, over one connection for each attempt.
#[derive(Clone)]
pub(crate) struct SimClient {
    world: SimWorld,
    map: Arc<ClusterMap>,
}

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(2);

impl SimClient {
    /// The bytes of a request.
    pub(crate) fn frame(&self, request: &Request) -> Vec<u8> {
        let head = RequestHead {
            request_id: 1,
            table: TableId(DEFAULT_TABLE),
            partition_hash: request.key().map_or(0, |key| wire::partition_hash(key)),
            ..RequestHead::default()
        };
        let mut frame = Vec::new();
        request.encode(&head, &mut frame);
        frame
    }

    /// The bytes of a request with an empty body and any opcode, sound otherwise.
    pub(crate) fn frame_of_opcode(&self, opcode: u8) -> Vec<u8> {
        let ping = self.frame(&Request::Ping);
        let header = ping.first_chunk().expect("a ping is a header");
        wire::Header { opcode, ..wire::Header::decode(header).expect("it was just encoded") }
            .encode()
            .to_vec()
    }

    /// Sends bytes as they are and gives what comes back until the node closes or falls silent, and which it was.
    pub(crate) async fn send_raw(&self, node: u32, bytes: Vec<u8>) -> (Vec<Response>, bool) {
        let own = self.map.node(NodeId(node)).expect("on the map");
        let (mut reader, mut writer) = self.world.connect(own.address).await.expect("the node listens");
        let silent = Rc::new(std::cell::Cell::new(false));
        let (closer, world, timed_out) = (writer.closer(), self.world.clone(), silent.clone());
        self.world.spawn(async move {
            world.sleep(Duration::from_millis(500)).await;
            timed_out.set(true);
            terrane_server::seam::Closer::close(&closer);
        });
        let (mut decoder, mut input, mut frames) = (FrameDecoder::new(1 << 20), BytesMut::new(), Vec::new());
        // The node may close before it has read everything.
        let _ = writer.write_all(bytes).await;
        loop {
            while let Some((header, body)) = decoder.decode(&mut input).expect("a node speaks the protocol") {
                frames.push(Response::decode(&header, body).expect("a node speaks the protocol"));
            }
            input.reserve(4096);
            let (result, filled) = reader.read(input).await;
            input = filled;
            if !matches!(result, Ok(n) if n > 0) {
                return (frames, !silent.get());
            }
        }
    }

    /// One attempt at one node. `Refused` only if the node says so.
    pub(crate) async fn attempt(&self, node: u32, request: &Request) -> Outcome {
        let own = self.map.node(NodeId(node)).expect("on the map");
        let Ok((mut reader, mut writer)) = self.world.connect(own.address).await else {
            return Outcome::Refused(ErrorReply::Unavailable { why: "cannot connect".into() });
        };
        let closer = writer.closer();
        let world = self.world.clone();
        self.world.spawn(async move {
            world.sleep(ATTEMPT).await;
            terrane_server::seam::Closer::close(&closer);
        });
        if writer.write_all(self.frame(request)).await.0.is_err() {
            return Outcome::Unknown;
        }
        let mut decoder = FrameDecoder::new(1 << 20);
        let mut input = BytesMut::new();
        loop {
            if let Some((header, body)) = decoder.decode(&mut input).expect("a node speaks the protocol") {
                return match Response::decode(&header, body).expect("a node speaks the protocol") {
                    Response::Error(ErrorReply::OutcomeUnknown) => Outcome::Unknown,
                    Response::Error(error) => Outcome::Refused(error),
                    response => Outcome::Done(response),
                };
            }
            input.reserve(4096);
            let (result, filled) = reader.read(input).await;
            input = filled;
            if !matches!(result, Ok(n) if n > 0) {
                return Outcome::Unknown;
            }
        }
    }

    /// Asks node after node until one that leads does it, or says no, or nobody can say.
    pub(crate) async fn ask(&self, request: Request) -> Outcome {
        let nodes = self.map.nodes.len() as u64;
        let mut node = 1 + (self.world.random() % nodes) as u32;
        loop {
            match self.attempt(node, &request).await {
                Outcome::Refused(
                    ErrorReply::NotLeader { .. } | ErrorReply::Busy { .. } | ErrorReply::Unavailable { .. },
                ) => {
                    node = node % nodes as u32 + 1;
                    self.world.sleep(Duration::from_millis(10)).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// Asks until somebody knows; only for what may be done twice.
    pub(crate) async fn insist(&self, request: Request) -> Result<Response, ErrorReply> {
        loop {
            match self.ask(request.clone()).await {
                Outcome::Done(response) => return Ok(response),
                Outcome::Refused(error) => return Err(error),
                Outcome::Unknown => {}
            }
        }
    }

    pub(crate) async fn get(&self, key: &str) -> Option<(u64, Bytes)> {
        match self.insist(Request::Get { key: Bytes::copy_from_slice(key.as_bytes()) }).await {
            Ok(Response::Value { version, value }) => Some((version, value)),
            Err(ErrorReply::NotFound) => None,
            other => panic!("get {key}: {other:?}"),
        }
    }

    pub(crate) async fn put(&self, key: &str, value: Bytes, condition: Condition) -> Outcome {
        let key = Bytes::copy_from_slice(key.as_bytes());
        self.ask(Request::Put { key, value, condition, expires_ms: 0 }).await
    }

    /// Virtual time, seen from outside.
    pub(crate) async fn sleep(&self, duration: Duration) {
        self.world.sleep(duration).await;
    }
}

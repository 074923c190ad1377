//! One shard: a core's groups, log, index, links and connections, in one thread.
//!
//! Everything that happens to a shard's groups happens in [`Shard::pass`], one pass of the loop: what became
//! durable → what peers, clients and other shards sent → timers → effects to the store and the peers →
//! answers. Between passes the shard parks. All groups' entries of a pass reach the store together, and
//! whatever gathers while one flush is under way shares the next.
//!
//! Invariants:
//! - A pass never awaits. What must wait (reads of flash, the network) runs in tasks of its own.
//! - Messages that promise durability leave only after the LSN they depend on is durable.
//! - The loop never spins: when more work is there after a pass it rings its own bell and parks, so that the
//!   ring beneath is always served (completions are reaped only when the runtime parks).
//! - After a failed flush nothing more is acknowledged: the shard leaves its groups and answers
//!   `StorageFailed`.

mod replica;
mod request;
pub mod session;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use terrane_client::wire::{self, ErrorReply, Header, Request, Response};
use terrane_engine::{Entry, GroupId, Lsn, RecoveredGroup, Recovery, Store, StoreError};
use terrane_ocssd::Media;
use terrane_raft::{
    Append, AppendSource, Effects, EntryKind, EntryMeta, Index, Membership, Message, PeerId, RaftNode,
    Restored, Role, Term,
};

use crate::cluster::{ClusterMap, NodeId};
use crate::mesh::MeshEnd;
use crate::notify::Notify;
use crate::peer::codec::{Delivery, Envelope, Hello, PEER_VERSION};
use crate::peer::{self, Acceptance, Link};
use crate::seam::{Bell, Doorbell, Time, World};
use replica::Replica;
use session::Responder;

/// How a shard behaves; the same on every shard of a node.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Largest value accepted, in bytes.
    pub value_bytes_max: u32,
    /// A follower that hears nothing for this long, up to twice as long, calls an election.
    pub election_timeout: Duration,
    /// How often a leader speaks when it has nothing to say.
    pub heartbeat_interval: Duration,
    /// Bound on the difference in speed of two nodes' clocks, in parts per million.
    pub clock_drift_ppm: u32,
    /// Request bytes that one connection may have in flight; past it the connection is not read.
    pub connection_inflight_bytes_max: u64,
    /// Answer bytes that may wait for one client to read them; past it the client is disconnected.
    pub connection_answer_bytes_max: usize,
    /// Request bytes that all connections of a shard may have in flight; past it requests get `Busy`.
    pub shard_inflight_bytes_max: u64,
}

impl Settings {
    /// Largest body of a frame that can hold a legal request.
    pub fn body_bytes_max(&self) -> u32 {
        wire::put_body_bytes(wire::KEY_BYTES_MAX as usize, self.value_bytes_max as usize) as u32
    }
}

/// What a shard needs to know of its surroundings.
pub struct Context {
    /// This node.
    pub node: NodeId,
    /// This shard.
    pub shard: u32,
    /// The whole cluster.
    pub map: Arc<ClusterMap>,
    /// How to behave.
    pub settings: Settings,
    /// Counters of the process, for the status answer.
    pub process_counters: Arc<dyn Fn() -> Vec<(&'static str, u64)> + Send + Sync>,
}

/// A request on its way to the shard that owns its partition.
pub enum ShardRequest {
    /// An operation on data.
    Data {
        /// Number to give back with the reply.
        token: u64,
        /// Header of the client's frame.
        header: Header,
        /// The operation.
        request: Request,
    },
    /// State of all groups, for topology and status answers.
    Describe {
        /// Number to give back with the reply.
        token: u64,
    },
}

/// The reply to a [`ShardRequest`].
pub enum ShardReply {
    /// Of an operation on data.
    Data {
        /// Number of the request.
        token: u64,
        /// What to answer.
        response: Response,
    },
    /// State of all groups.
    Describe {
        /// Number of the request.
        token: u64,
        /// The state.
        description: request::Description,
    },
}

/// What the main thread tells a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Hand leadership over, make the log durable, and end.
    Shutdown,
}

/// The bell of a world's shards.
pub type BellOf<W> = <<W as World>::Doorbell as Doorbell>::Bell;
/// A shard's end of the mesh.
pub type ShardMesh<W> = MeshEnd<ShardRequest, ShardReply, Control, BellOf<W>>;

/// Something gave work to the store; what follows once it is durable.
struct Persist {
    lsn: Lsn,
    replica: usize,
    entries: Option<(Term, Index)>,
    messages: Vec<(PeerId, Message)>,
}

/// Payloads that came with the message being stepped.
struct Incoming {
    /// Index of the first.
    first: Index,
    payloads: Vec<Bytes>,
}

#[derive(Default)]
struct Inbox {
    deliveries: VecDeque<Delivery>,
    delivery_bytes: u64,
    requests: VecDeque<(Header, Request, Responder)>,
    lost_links: Vec<NodeId>,
}

/// Bytes of peers' messages that may wait for the next pass before links stop reading.
const INBOX_BYTES_MAX: u64 = 32 << 20;
/// Shortest and longest time between two looks at the clock.
const TICK_MIN: Duration = Duration::from_millis(1);
const TICK_MAX: Duration = Duration::from_millis(25);
/// Bytes of values that reads of flash hold in memory at once.
const READ_BYTES_MAX: u64 = 64 << 20;
/// Bytes of proposals after which a pass hands them to the store before it takes more, so that the store's word on
/// its free space stays true; it keeps a multiple of this in reserve.
const STAGED_BYTES_MAX: u64 = 1 << 20;
/// Free bytes below which each proposal goes to the store at once, for the same reason.
const SCARCE_BYTES: u64 = 64 << 20;
/// What a small proposal costs the store at most: the largest sector.
const PROPOSAL_BYTES_MIN: u64 = 4096;
/// What clients of a stopping node are told.
const STOPPING: &str = "the node is stopping";
/// How long leaders may take to hand over when the node stops.
const HANDOVER_MAX: Duration = Duration::from_secs(2);

/// One shard. Shared by the tasks of its thread.
pub struct Shard<W: World> {
    pub(crate) world: W,
    pub(crate) settings: Settings,
    pub(crate) map: Arc<ClusterMap>,
    pub(crate) acceptance: Acceptance,
    pub(crate) connections: Cell<u64>,
    process_counters: Arc<dyn Fn() -> Vec<(&'static str, u64)> + Send + Sync>,
    store: Store<W::Media>,
    replicas: RefCell<Vec<Replica>>,
    places: BTreeMap<GroupId, usize>,
    links: Vec<Rc<Link>>,
    inbox: RefCell<Inbox>,
    inbox_room: Notify,
    wake: Notify,
    next_deadline: Cell<Time>,
    mesh: ShardMesh<W>,
    /// The rings of the mesh were emptied.
    drained: Notify,
    /// Requests that found no credit for their shard, by shard.
    backlog: RefCell<Vec<VecDeque<ShardRequest>>>,
    forwarded: RefCell<BTreeMap<u64, request::Pending>>,
    next_token: Cell<u64>,
    persists: RefCell<VecDeque<Persist>>,
    /// Appends on their way to peers that are so far behind that their entries must be read from flash.
    fed_from_flash: RefCell<BTreeMap<(GroupId, PeerId), VecDeque<Envelope>>>,
    /// What proposals that no store has taken yet will cost it, about.
    staged_bytes: Cell<u64>,
    /// Bytes that reads of flash may still take into memory; a read waits until there are enough.
    read_bytes_left: Cell<u64>,
    read_bytes_back: Notify,
    inflight_bytes: Rc<Cell<u64>>,
    phase: Cell<Phase>,
    stop_wanted: Cell<bool>,
}

/// Where a shard is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Everything is served.
    Serving,
    /// The node is stopping: leaders hand over, requests are still served, new connections are not.
    Stopping,
    /// The log takes nothing more and is being made durable.
    Closed,
    /// The store failed: this shard takes no part in its groups, and says so to whoever asks.
    Failed,
}

impl<W: World> Shard<W> {
    /// A shard over a recovered store. Groups that the map puts here and the store does not know yet are
    /// created.
    ///
    /// # Errors
    /// If the store holds a group that the map does not put here, or one that was created with other replicas or
    /// another number of partitions: both are fixed, and going on would hide data.
    pub fn new(
        world: W,
        context: Context,
        store: Store<W::Media>,
        recovery: &Recovery,
        mesh: ShardMesh<W>,
    ) -> anyhow::Result<Rc<Self>> {
        let Context { node, shard: number, map, settings, process_counters } = context;
        let peers: Vec<NodeId> = map.nodes.iter().map(|n| n.id).filter(|&id| id != node).collect();
        let links = map.nodes.iter().filter(|peer| peer.id != node);
        let links: Vec<Rc<Link>> = links.map(|peer| Link::new(peer.id, peer.shard_address(number))).collect();
        let recovered: BTreeMap<GroupId, &RecoveredGroup> =
            recovery.groups.iter().map(|group| (group.id, group)).collect();
        let mut replicas = Vec::new();
        let mut places = BTreeMap::new();
        let hosted = map.groups_of(node, number);
        if let Some(stray) = recovered.keys().find(|group| !hosted.contains(group)) {
            anyhow::bail!(
                "the device holds {stray}, which the configuration does not place on this shard: partitions and \
                 replicas are fixed; restore `partitions`, `replicas` and [[nodes]], or format anew"
            );
        }
        for group in hosted {
            let (table, partition) = ClusterMap::of_group(group);
            let partitions = map.table(table).map_or(0, |table| table.partitions);
            let voters = map.replicas_of(partition).into_iter().map(PeerId::from);
            let membership = Membership::of_voters(voters);
            let (restored, last_lsn) = match recovered.get(&group) {
                Some(found) => (restore(found, membership, partitions)?, Lsn { epoch: 0, counter: 0 }),
                None => {
                    let durable = store.create_group(group, encode_membership(&membership, partitions))?;
                    // In the first epoch of a device nobody can have promised anything yet.
                    (newborn(&store, group, membership, recovery.epoch > 1), durable.lsn())
                }
            };
            let config = raft_config(node, &settings, world.random());
            let raft = RaftNode::new(config, restored, raft_time(world.now()))?;
            places.insert(group, replicas.len());
            replicas.push(Replica::new(group, raft, last_lsn));
        }
        let acceptance = Acceptance {
            node,
            cluster: map.cluster,
            shard: number,
            shards: map.shards,
            epoch: recovery.epoch,
            agreement: map.agreement,
            peers,
            refused: Cell::new(None),
        };
        Ok(Rc::new(Self {
            backlog: RefCell::new((0..map.shards).map(|_| VecDeque::new()).collect()),
            world,
            settings,
            map,
            acceptance,
            connections: Cell::new(0),
            process_counters,
            store,
            replicas: RefCell::new(replicas),
            places,
            links,
            inbox: RefCell::default(),
            inbox_room: Notify::new(),
            wake: Notify::new(),
            next_deadline: Cell::new(Time::ZERO),
            mesh,
            drained: Notify::new(),
            forwarded: RefCell::default(),
            next_token: Cell::new(0),
            persists: RefCell::default(),
            fed_from_flash: RefCell::default(),
            staged_bytes: Cell::new(0),
            read_bytes_left: Cell::new(READ_BYTES_MAX),
            read_bytes_back: Notify::new(),
            inflight_bytes: Rc::default(),
            phase: Cell::new(Phase::Serving),
            stop_wanted: Cell::new(false),
        }))
    }

    /// The store beneath, for whoever embeds or checks a shard.
    pub fn store(&self) -> &Store<W::Media> {
        &self.store
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Whether groups are still served: they are until the log is closed or has failed.
    fn serving(&self) -> bool {
        matches!(self.phase.get(), Phase::Serving | Phase::Stopping)
    }

    /// Serves until the node stops (`Ok`) or the store fails (`Err`, after which nothing is acknowledged any
    /// more, though questions are still answered with the reason until the node stops).
    pub async fn run(
        self: &Rc<Self>,
        listeners: Vec<W::Listener>,
        doorbell: W::Doorbell,
    ) -> Result<(), StoreError> {
        for listener in listeners {
            self.world.spawn(session::accept(self.clone(), listener));
        }
        for link in &self.links {
            let hello = Hello {
                version: PEER_VERSION,
                cluster: self.acceptance.cluster,
                from: self.acceptance.node,
                to: link.node,
                shard: self.acceptance.shard,
                shards: self.acceptance.shards,
                epoch: self.acceptance.epoch,
                agreement: self.acceptance.agreement,
            };
            let shard = self.clone();
            let lost = move |node| {
                shard.inbox.borrow_mut().lost_links.push(node);
                shard.wake.notify_one();
            };
            self.world.spawn(peer::run(self.world.clone(), link.clone(), hello, lost));
        }
        self.world.spawn(self.clone().watch_mesh(doorbell));
        self.world.spawn(self.clone().watch_clock());
        self.world.spawn(self.clone().watch_durable());
        let flusher: Rc<RefCell<Option<Result<(), StoreError>>>> = Rc::default();
        self.world.spawn({
            let (shard, flusher) = (self.clone(), flusher.clone());
            async move {
                let outcome = shard.store.run_flusher().await;
                *flusher.borrow_mut() = Some(outcome);
                shard.wake.notify_one();
            }
        });
        loop {
            if let Some(Ok(())) = *flusher.borrow() {
                return Ok(());
            }
            if flusher.borrow().is_some() && self.phase.get() != Phase::Failed {
                self.phase.set(Phase::Failed);
                tracing::error!("the log cannot be written any more; this shard leaves its groups");
            }
            if self.phase.get() == Phase::Failed {
                self.abandon_groups();
                if self.stop_wanted.get() {
                    self.store.close();
                    let cause = flusher.borrow_mut().take().and_then(Result::err);
                    return Err(cause.unwrap_or(StoreError::Closed));
                }
            }
            self.pass();
            self.drained.notify_one();
            self.wake.notified().await;
        }
    }

    /// Wakes the loop when the mesh brings something. What comes while a pass is under way goes through the
    /// bell, too: waiting for it lets the runtime park and reap completions between passes.
    async fn watch_mesh(self: Rc<Self>, mut doorbell: W::Doorbell) {
        loop {
            self.mesh.wait(&mut doorbell).await;
            self.wake.notify_one();
            self.drained.notified().await;
            if !self.mesh.is_empty() {
                doorbell.bell().ring();
                doorbell.wait().await;
            }
        }
    }

    async fn watch_clock(self: Rc<Self>) {
        loop {
            let now = self.world.now();
            // Never at once, even when a deadline has passed: this task must not stay ready.
            let at = self.next_deadline.get().clamp(now + TICK_MIN, now + TICK_MAX);
            self.world.sleep_until(at).await;
            self.wake.notify_one();
        }
    }

    async fn watch_durable(self: Rc<Self>) {
        let mut seen = Lsn { epoch: 0, counter: 0 };
        while let Ok(durable) = self.store.durable_after(seen).await {
            seen = durable;
            self.wake.notify_one();
        }
    }

    /// One pass of the loop.
    fn pass(self: &Rc<Self>) {
        let mut replicas = self.replicas.borrow_mut();
        self.take_control(&mut replicas);
        self.settle_persists(&mut replicas);
        let (lost, deliveries, requests) = {
            let mut inbox = self.inbox.borrow_mut();
            inbox.delivery_bytes = 0;
            (
                std::mem::take(&mut inbox.lost_links),
                std::mem::take(&mut inbox.deliveries),
                std::mem::take(&mut inbox.requests),
            )
        };
        self.inbox_room.notify_all();
        for node in lost {
            for replica in replicas.iter_mut() {
                replica.raft.report_unreachable(self.raft_now(), node.into());
                replica.dirty = true;
            }
        }
        for delivery in deliveries {
            self.step(&mut replicas, delivery);
        }
        for (header, request, responder) in requests {
            self.operate(&mut replicas, &header, request, responder);
        }
        self.serve_mesh(&mut replicas);
        if !self.serving() {
            self.next_deadline.set(Time::MAX);
            return;
        }
        let now = self.raft_now();
        for replica in replicas.iter_mut().filter(|replica| replica.raft.next_deadline() <= now) {
            replica.raft.tick(now);
            replica.dirty = true;
        }
        self.drain_all(&mut replicas);
        let next = replicas.iter().map(|replica| replica.raft.next_deadline()).min();
        self.next_deadline.set(next.map_or(Time::MAX, |time| Time(time.0)));
    }

    fn drain_all(self: &Rc<Self>, replicas: &mut [Replica]) {
        for (place, replica) in replicas.iter_mut().enumerate() {
            self.drain(replica, place);
        }
        self.staged_bytes.set(0);
    }

    fn take_control(self: &Rc<Self>, replicas: &mut [Replica]) {
        while let Some(message) = self.mesh.recv_control() {
            match message {
                Control::Shutdown => self.begin_stop(replicas),
            }
        }
    }

    fn settle_persists(self: &Rc<Self>, replicas: &mut [Replica]) {
        let durable = self.store.durable_lsn();
        loop {
            let Some(persist) = self.persists.borrow_mut().pop_front_if(|persist| persist.lsn <= durable)
            else {
                break;
            };
            let replica = &mut replicas[persist.replica];
            if let Some((term, index)) = persist.entries {
                replica.raft.on_persisted(self.raft_now(), term, index);
                replica.dirty = true;
            }
            for (to, message) in persist.messages {
                self.send(replica.group, to, message);
            }
        }
    }

    /// Takes what a peer shard sent; resolves when there is room for more.
    pub(crate) async fn deliver(&self, from: NodeId, deliveries: Vec<Delivery>) {
        {
            let mut inbox = self.inbox.borrow_mut();
            for delivery in deliveries {
                if delivery.envelope.from != PeerId::from(from).0 {
                    tracing::warn!(node = from.0, "dropped a message that names another sender");
                    continue;
                }
                inbox.delivery_bytes += delivery.payloads.iter().map(|p| p.len() as u64).sum::<u64>();
                inbox.deliveries.push_back(delivery);
            }
        }
        self.wake.notify_one();
        while self.inbox.borrow().delivery_bytes > INBOX_BYTES_MAX {
            self.inbox_room.notified().await;
        }
    }

    fn step(self: &Rc<Self>, replicas: &mut [Replica], delivery: Delivery) {
        let Delivery { envelope, payloads } = delivery;
        let Some(&place) = self.places.get(&GroupId(envelope.group)) else { return };
        if envelope.to != PeerId::from(self.acceptance.node).0 || !self.serving() {
            return;
        }
        if !self.can_store(GroupId(envelope.group), &envelope.message, &payloads) {
            return;
        }
        let replica = &mut replicas[place];
        // One append at a time: what this replica still holds goes to the store first.
        self.drain(replica, place);
        let first = envelope.message.entries_range().map_or(0, |(first, _)| first);
        replica.raft.step(self.raft_now(), PeerId(envelope.from), envelope.message);
        self.drain_with(replica, place, Some(Incoming { first, payloads }));
    }

    /// Whether entries of a peer could be stored. A message whose entries cannot is not stepped, so not
    /// acknowledged: the leader tries again, and others may form the quorum.
    fn can_store(&self, group: GroupId, message: &Message, payloads: &[Bytes]) -> bool {
        let Some((_, metas)) = message.entries_range() else { return true };
        let ops = || metas.iter().zip(payloads).filter(|(meta, _)| meta.kind == EntryKind::Ops);
        if ops().next().is_none() {
            return true;
        }
        if !self.store.accepts_append(payloads.iter().map(Bytes::len)) {
            return false;
        }
        let sound = ops().all(|(_, payload)| {
            payload.len() <= self.store.payload_bytes_max() as usize
                && terrane_engine::op::decode(payload).all(|op| op.is_ok())
        });
        if !sound {
            tracing::error!("ignored entries of a peer that this node could not store or read");
        }
        sound && self.store.index_accepts(group, ops().map(|(_, payload)| &payload[..]))
    }

    fn drain(self: &Rc<Self>, replica: &mut Replica, place: usize) {
        if replica.dirty {
            self.drain_with(replica, place, None);
        }
    }

    /// Carries out what the Raft node wants until it wants nothing more. `incoming` came with the message
    /// just stepped.
    fn drain_with(self: &Rc<Self>, replica: &mut Replica, place: usize, mut incoming: Option<Incoming>) {
        replica.dirty = false;
        if !self.serving() {
            return;
        }
        loop {
            let effects = replica.raft.take_effects();
            if effects.is_empty() {
                return;
            }
            if let Err(error) = self.carry_out(replica, place, effects, &mut incoming) {
                // The Raft node believes in a write that does not exist: it must not speak again.
                tracing::error!(%error, group = replica.group.0, "the store refused a write; the shard stops");
                self.phase.set(Phase::Failed);
                return;
            }
        }
    }

    fn carry_out(
        self: &Rc<Self>,
        replica: &mut Replica,
        place: usize,
        effects: Effects,
        incoming: &mut Option<Incoming>,
    ) -> anyhow::Result<()> {
        // Reads that were confirmed are so whatever else happened.
        for ready in effects.reads {
            replica.read_ready(ready.context, ready.index);
        }
        if let Some(change) = &effects.role {
            let leader = change.leader.map(|peer| peer.0);
            tracing::info!(group = replica.group.0, term = change.term, role = ?change.role, leader, "role");
            if change.role != Role::Leader {
                replica.abandon(self);
            }
        }
        for (peer, error) in &effects.rejected {
            tracing::warn!(group = replica.group.0, peer = peer.0, %error, "ignored a message");
        }
        if effects.repaired {
            tracing::info!(group = replica.group.0, "repaired by its leader: votes and acknowledges again");
            replica.last_lsn = self.store.clear_suspect(replica.group)?.lsn();
        }
        if let Some(state) = effects.hard_state {
            let state = engine_hard_state(state);
            replica.last_lsn = self.store.set_hard_state(replica.group, state)?.lsn();
        }
        let mut entries = None;
        if let Some(append) = effects.append {
            entries = Some(self.store_append(replica, append, incoming)?);
        }
        for (to, message) in effects.messages {
            self.send(replica.group, to, message);
        }
        if entries.is_none() && replica.last_lsn <= self.store.durable_lsn() {
            for (to, message) in effects.messages_after_persist {
                self.send(replica.group, to, message);
            }
        } else if entries.is_some() || !effects.messages_after_persist.is_empty() {
            self.persists.borrow_mut().push_back(Persist {
                lsn: replica.last_lsn,
                replica: place,
                entries,
                messages: effects.messages_after_persist,
            });
        }
        for context in effects.reads_failed {
            replica.fail_read(self, context);
        }
        if let Some(commit) = effects.commit {
            self.store.apply(replica.group, commit)?;
            replica.raft.on_applied(self.raft_now(), commit);
        }
        let applied = self.store.applied(replica.group);
        replica.settle(self, applied);
        Ok(())
    }

    fn store_append(
        &self,
        replica: &mut Replica,
        append: Append,
        incoming: &mut Option<Incoming>,
    ) -> anyhow::Result<(Term, Index)> {
        let mark = append.persisted_mark();
        let entries: Vec<Entry> = match append.source {
            AppendSource::Proposal => {
                let indexes = append.first..;
                let staged = &mut replica.staged;
                indexes.zip(&append.entries).map(|(index, meta)| own_entry(staged, index, meta)).collect()
            }
            AppendSource::Message => {
                let Incoming { first, payloads } = incoming.take().expect("one message is stepped at a time");
                // Entries that the log already had are not stored again.
                let payloads = payloads.into_iter().skip((append.first - first) as usize);
                // A copy each: a payload in the cache must not keep a whole batch of the network alive.
                let copied = |payload: Bytes| Bytes::copy_from_slice(&payload);
                append
                    .entries
                    .iter()
                    .zip(payloads)
                    .map(|(meta, payload)| entry(meta, copied(payload)))
                    .collect()
            }
        };
        assert_eq!(entries.len(), append.entries.len(), "every entry has its payload");
        replica.last_lsn = self.store.append(replica.group, append.first, entries)?.lsn();
        Ok(mark)
    }

    /// Sends a message, with the payloads of its entries attached.
    fn send(self: &Rc<Self>, group: GroupId, to: PeerId, message: Message) {
        let Some(link) = self.links.iter().find(|link| PeerId::from(link.node) == to) else { return };
        let from = PeerId::from(self.acceptance.node).0;
        let wanted = message.entries_range().map(|(first, entries)| (first, entries.len()));
        let mut envelope = Envelope { group: group.0, from, to: to.0, message };
        let Some((first, count)) = wanted else { return link.send(envelope, Vec::new()) };
        // Behind an append that waits for flash the next ones wait, too: out of order they would be refused.
        if let Some(queue) = self.fed_from_flash.borrow_mut().get_mut(&(group, to)) {
            return queue.push_back(envelope);
        }
        if let Some(entries) = self.store.try_entries(group, first, count, u64::MAX) {
            if let Some(payloads) = attach(&mut envelope.message, entries) {
                link.send(envelope, payloads);
            }
            return;
        }
        self.fed_from_flash.borrow_mut().insert((group, to), VecDeque::from([envelope]));
        self.world.spawn(self.clone().feed_from_flash(group, to, link.clone()));
    }

    /// Sends the appends that wait for `to`, in order, until none is left. Raft bears that one goes out late, or
    /// never, as when the log has moved on meanwhile.
    async fn feed_from_flash(self: Rc<Self>, group: GroupId, to: PeerId, link: Rc<Link>) {
        loop {
            let next = self.fed_from_flash.borrow_mut().get_mut(&(group, to)).and_then(VecDeque::pop_front);
            let Some(mut envelope) = next else { break };
            let Some((first, entries)) = envelope.message.entries_range() else { continue };
            match self.store.entries(group, first, entries.len(), u64::MAX).await {
                Ok(entries) => {
                    if let Some(payloads) = attach(&mut envelope.message, entries) {
                        link.send(envelope, payloads);
                    }
                }
                Err(error) => tracing::error!(%error, group = group.0, first, "cannot read log entries"),
            }
        }
        self.fed_from_flash.borrow_mut().remove(&(group, to));
    }

    fn begin_stop(self: &Rc<Self>, replicas: &mut [Replica]) {
        self.stop_wanted.set(true);
        if self.phase.get() != Phase::Serving {
            return;
        }
        self.phase.set(Phase::Stopping);
        for replica in replicas.iter_mut().filter(|replica| replica.raft.is_leader()) {
            // Refused where there is nobody to hand over to.
            let _ = replica.raft.transfer_leader(self.raft_now(), None);
            replica.dirty = true;
        }
        let shard = self.clone();
        self.world.spawn(async move {
            let deadline = shard.world.now() + HANDOVER_MAX;
            while shard.has_unfinished_business() && shard.world.now() < deadline {
                shard.world.sleep(Duration::from_millis(5)).await;
            }
            if shard.phase.get() == Phase::Stopping {
                shard.phase.set(Phase::Closed);
                let reply = ErrorReply::Unavailable { why: STOPPING.into() };
                for replica in shard.replicas.borrow_mut().iter_mut() {
                    replica.fail_all(&shard, &reply);
                }
            }
            shard.store.close();
            shard.wake.notify_one();
        });
    }

    /// Whether this shard still leads groups that a peer could lead, or has writes to answer.
    fn has_unfinished_business(&self) -> bool {
        let connected = self.links.iter().any(|link| link.connected());
        let replicas = self.replicas.borrow();
        replicas.iter().any(|replica| !replica.proposals.is_empty() || connected && replica.raft.is_leader())
    }

    /// Tells everyone who waits that the store failed. Nothing that was not durable is acknowledged.
    fn abandon_groups(self: &Rc<Self>) {
        self.persists.borrow_mut().clear();
        for replica in self.replicas.borrow_mut().iter_mut() {
            replica.fail_all(self, &ErrorReply::StorageFailed);
        }
    }

    pub(crate) fn raft_now(&self) -> terrane_raft::Time {
        raft_time(self.world.now())
    }
}

fn raft_time(time: Time) -> terrane_raft::Time {
    terrane_raft::Time(time.0)
}

fn own_entry(staged: &mut VecDeque<(Index, Bytes)>, index: Index, meta: &EntryMeta) -> Entry {
    let payload = match meta.kind {
        EntryKind::Noop => Bytes::new(),
        EntryKind::Ops | EntryKind::Membership => {
            let (staged_index, payload) = staged.pop_front().expect("every proposal was staged");
            assert_eq!(staged_index, index, "proposals are stored in order");
            payload
        }
    };
    entry(meta, payload)
}

fn entry(meta: &EntryMeta, payload: Bytes) -> Entry {
    Entry { term: meta.term, kind: meta.kind as u8, payload }
}

/// The payloads of a message's entries, if the log still holds those very entries; sizes that the Raft node no
/// longer knew are filled in.
fn attach(message: &mut Message, stored: Vec<Entry>) -> Option<Vec<Bytes>> {
    let (_, metas) = message.entries_mut()?;
    if metas.len() != stored.len() {
        return None;
    }
    for (meta, entry) in metas.iter_mut().zip(&stored) {
        // An index and a term name one entry, so the terms decide.
        if meta.term != entry.term {
            return None;
        }
        meta.bytes = u32::try_from(entry.payload.len()).ok()?;
        meta.kind = EntryKind::from_u8(entry.kind)?;
    }
    Some(stored.into_iter().map(|entry| entry.payload).collect())
}

fn engine_hard_state(state: terrane_raft::HardState) -> terrane_engine::HardState {
    let vote = state.vote.map_or(0, |peer| peer.0);
    terrane_engine::HardState { term: state.term, vote, commit: state.commit }
}

fn raft_hard_state(state: terrane_engine::HardState) -> terrane_raft::HardState {
    let vote = (state.vote != 0).then_some(PeerId(state.vote));
    terrane_raft::HardState { term: state.term, vote, commit: state.commit }
}

/// A replica that was created just now. On a damaged device it may have been there before: the store says so.
fn newborn<M: Media>(store: &Store<M>, group: GroupId, membership: Membership, rejoining: bool) -> Restored {
    Restored {
        hard_state: raft_hard_state(store.hard_state(group).unwrap_or_default()),
        runs: Vec::new(),
        first_index: 1,
        last_index: 0,
        applied: 0,
        membership,
        suspect: store.suspect(group),
        rejoining,
    }
}

fn restore(found: &RecoveredGroup, membership: Membership, partitions: u32) -> anyhow::Result<Restored> {
    if found.membership != encode_membership(&membership, partitions) {
        anyhow::bail!(
            "{} was created with other replicas or another number of partitions than the configuration says; \
             both are fixed: restore the old [[nodes]], `replicas` and `partitions`, or format anew",
            found.id
        );
    }
    Ok(Restored {
        hard_state: raft_hard_state(found.hard_state),
        runs: found
            .runs
            .iter()
            .map(|run| terrane_raft::TermRun { term: run.term, first: run.first })
            .collect(),
        first_index: found.first_index,
        last_index: found.last_index,
        applied: found.applied,
        membership,
        suspect: found.suspect,
        rejoining: true,
    })
}

/// The number of partitions that the group is one of, then the voters' ids, little-endian: all that can differ while
/// membership is fixed.
fn encode_membership(membership: &Membership, partitions: u32) -> Bytes {
    let voters = membership.voters.iter().flat_map(|peer| peer.0.to_le_bytes());
    partitions.to_le_bytes().into_iter().chain(voters).collect()
}

fn raft_config(node: NodeId, settings: &Settings, seed: u64) -> terrane_raft::Config {
    terrane_raft::Config {
        election_timeout: settings.election_timeout,
        heartbeat_interval: settings.heartbeat_interval,
        clock_drift_ppm: settings.clock_drift_ppm,
        seed,
        ..terrane_raft::Config::new(node.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_membership() {
        let membership = Membership::of_voters([PeerId(3), PeerId(1)]);
        let expected = [[16, 0, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 3, 0, 0, 0]].concat();
        assert_eq!(encode_membership(&membership, 16)[..], [&expected[..], &[0; 4]].concat());
    }
}

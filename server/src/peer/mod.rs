//! Links between shards of different nodes.
//!
//! A link carries messages one way: each shard dials its counterpart on every other node, and reads what
//! the counterparts dialled to it. All groups of a shard share its links; what gathers while one write is
//! under way goes out as one batch.
//!
//! Invariants:
//! - A link is bounded in bytes. Past the bound messages are dropped, which Raft repairs: a slow peer costs
//!   only itself.
//! - Nothing survives a broken connection: a new one starts with a hello and an empty queue, and the groups
//!   are told, so that they probe again.
//! - No batch is read before hello and answer agree on version, cluster, nodes and shard.

pub mod codec;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::cluster::NodeId;
use crate::notify::Notify;
use crate::seam::{ByteReader, ByteWriter, Closer, World};
use crate::select::either;
use crate::stall::StallGuard;
use codec::{ANSWER_BYTES, Answer, Delivery, Envelope, HELLO_BYTES, Hello, PEER_VERSION, Verdict};

/// Most bytes that wait on one link; so a batch cannot hold more either.
pub const LINK_BYTES_MAX: u64 = 64 << 20;
/// What a batch should hold at most: little enough that heartbeats do not wait long behind it, and that a slow link
/// gets one through before it is taken for stuck. One message may exceed it.
const BATCH_BYTES: u64 = 1 << 20;

const BACKOFF_FIRST: Duration = Duration::from_millis(20);
const BACKOFF_LAST: Duration = Duration::from_secs(1);
/// How long a connection attempt, hello and answer may take together.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// Room offered to one read.
const READ_BYTES: usize = 64 << 10;
/// What a small message costs on the wire, about.
const ENVELOPE_BYTES: u64 = 128;

#[derive(Default)]
struct Queue {
    /// Messages, the payloads of their entries, and what both cost.
    messages: VecDeque<(Envelope, Vec<Bytes>, u64)>,
    bytes: u64,
}

impl Queue {
    fn push(&mut self, envelope: Envelope, payloads: Vec<Bytes>) {
        let bytes = ENVELOPE_BYTES + payloads.iter().map(|payload| payload.len() as u64).sum::<u64>();
        if self.bytes + bytes <= LINK_BYTES_MAX {
            self.bytes += bytes;
            self.messages.push_back((envelope, payloads, bytes));
        }
    }

    /// As many messages as one batch should have, at least one if there is any.
    fn take_batch(&mut self) -> (Vec<Envelope>, Vec<Bytes>) {
        let (mut envelopes, mut payloads, mut bytes) = (Vec::new(), Vec::new(), 0);
        while bytes < BATCH_BYTES
            && let Some((envelope, mut attached, cost)) = self.messages.pop_front()
        {
            envelopes.push(envelope);
            payloads.append(&mut attached);
            bytes += cost;
        }
        self.bytes -= bytes;
        (envelopes, payloads)
    }
}

/// The sending end of a link.
pub struct Link {
    /// Node at the other end.
    pub node: NodeId,
    address: SocketAddr,
    queue: RefCell<Queue>,
    connected: Cell<bool>,
    broken: Cell<bool>,
    wake: Notify,
}

impl Link {
    /// A link that [`run`] will connect.
    pub fn new(node: NodeId, address: SocketAddr) -> Rc<Self> {
        Rc::new(Self {
            node,
            address,
            queue: RefCell::default(),
            connected: Cell::new(false),
            broken: Cell::new(false),
            wake: Notify::new(),
        })
    }

    /// Queues a message with the payloads of its entries. Not connected, or full: drops it, as a network may.
    pub fn send(&self, envelope: Envelope, payloads: Vec<Bytes>) {
        if !self.connected.get() {
            return;
        }
        self.queue.borrow_mut().push(envelope, payloads);
        self.wake.notify_one();
    }

    /// Whether hello and answer have been exchanged and the connection has not failed since.
    pub fn connected(&self) -> bool {
        self.connected.get()
    }
}

/// Keeps `link` connected for as long as the shard lives; `lost` is called each time a connection that
/// worked breaks.
pub async fn run<W: World>(world: W, link: Rc<Link>, hello: Hello, lost: impl Fn(NodeId)) {
    let mut backoff = BACKOFF_FIRST;
    let mut refused = None;
    let mut unreachable = false;
    loop {
        match connect(&world, link.address, hello).await {
            Ok((reader, writer)) => {
                tracing::debug!(node = link.node.0, shard = hello.shard, "link up");
                if unreachable {
                    tracing::info!(node = link.node.0, address = %link.address, "peer is reachable again");
                }
                refused = None;
                unreachable = false;
                backoff = BACKOFF_FIRST;
                link.broken.set(false);
                link.connected.set(true);
                world.spawn(watch(link.clone(), reader, writer.closer()));
                write_batches(&world, &link, writer).await;
                link.connected.set(false);
                *link.queue.borrow_mut() = Queue::default();
                tracing::debug!(node = link.node.0, shard = hello.shard, "link down");
                lost(link.node);
            }
            Err(ConnectError::Refused(verdict)) => {
                // Said once, not at every attempt: an operator reads this.
                if refused.replace(verdict) != Some(verdict) {
                    tracing::error!(
                        node = link.node.0,
                        address = %link.address,
                        "peer refuses this node: {}",
                        describe(verdict)
                    );
                }
                backoff = BACKOFF_LAST;
            }
            Err(ConnectError::Failed(reason)) => {
                // Once for each outage.
                if !std::mem::replace(&mut unreachable, true) {
                    tracing::warn!(
                        node = link.node.0,
                        address = %link.address,
                        "cannot reach peer: {reason}; trying again until it answers"
                    );
                }
            }
        }
        // Spread, so that shards which lost a node do not all dial at the same moment.
        let spread = world.random() % (backoff.as_micros() as u64 + 1);
        world.sleep(backoff / 2 + Duration::from_micros(spread)).await;
        backoff = (backoff * 2).min(BACKOFF_LAST);
    }
}

fn describe(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Welcome => "it does not",
        Verdict::OtherCluster => "it belongs to another cluster; compare cluster_id in both configurations",
        Verdict::OtherNode => {
            "another node answers at this address; compare [[nodes]] in both configurations"
        }
        Verdict::OtherConfiguration => {
            "its configuration differs where all nodes must agree: shards, replicas, partitions, value_bytes_max, \
             election_timeout_ms, clock_drift_ppm and the addresses in [[nodes]]"
        }
        Verdict::OtherVersion => {
            "it speaks another version of the peer protocol; run the same release everywhere"
        }
    }
}

enum ConnectError {
    Failed(String),
    Refused(Verdict),
}

async fn connect<W: World>(
    world: &W,
    address: SocketAddr,
    hello: Hello,
) -> Result<(W::Reader, W::Writer), ConnectError> {
    let deadline = world.now() + HANDSHAKE_TIMEOUT;
    let connecting = either(world.connect(address), world.sleep_until(deadline)).await;
    let (mut reader, mut writer) = match connecting {
        Ok(Ok(halves)) => halves,
        Ok(Err(error)) => return Err(ConnectError::Failed(error.to_string())),
        Err(()) => return Err(ConnectError::Failed("no answer".into())),
    };
    let closer = writer.closer();
    let done = Rc::new(Cell::new(false));
    // Reads and writes must not be dropped half-way, so the deadline closes the connection instead.
    world.spawn({
        let (done, world) = (done.clone(), world.clone());
        async move {
            world.sleep_until(deadline).await;
            if !done.get() {
                closer.close();
            }
        }
    });
    let outcome = async {
        let closed = || ConnectError::Failed("it closed the connection during the hello".into());
        writer.write_all(hello.encode().to_vec()).await.0.map_err(|_| closed())?;
        let mut input = Input { buffer: BytesMut::new() };
        let bytes = input.take(&mut reader, ANSWER_BYTES).await.ok_or_else(closed)?;
        let bytes: [u8; ANSWER_BYTES] = bytes[..].try_into().expect("as many as were asked for");
        match Answer::decode(&bytes) {
            Ok(Answer { verdict: Verdict::Welcome, .. }) => Ok(()),
            Ok(Answer { verdict, .. }) => Err(ConnectError::Refused(verdict)),
            Err(error) => {
                Err(ConnectError::Failed(format!("it answered the hello with something else: {error}")))
            }
        }
    }
    .await;
    done.set(true);
    match outcome {
        Ok(()) => Ok((reader, writer)),
        Err(error) => {
            writer.close();
            Err(error)
        }
    }
}

/// The accepting side never sends after its answer: any end of this read is the end of the connection.
async fn watch<R: ByteReader>(link: Rc<Link>, mut reader: R, closer: impl Closer) {
    let _ = reader.read(BytesMut::with_capacity(64)).await;
    closer.close();
    link.broken.set(true);
    link.wake.notify_one();
}

/// Returns when the connection is broken.
async fn write_batches<W: World>(world: &W, link: &Rc<Link>, mut writer: W::Writer) {
    let mut out = Vec::new();
    let guard = StallGuard::new(world, writer.closer(), WRITE_STALL_MAX);
    while !link.broken.get() {
        let (envelopes, payloads) = link.queue.borrow_mut().take_batch();
        if envelopes.is_empty() {
            link.wake.notified().await;
            continue;
        }
        out.clear();
        codec::encode_batch(&envelopes, &payloads, &mut out);
        drop((envelopes, payloads));
        let (result, buffer) = guard.write_all(&mut writer, out).await;
        out = buffer;
        if out.capacity() > 4 << 20 {
            out = Vec::new();
        }
        if result.is_err() {
            break;
        }
    }
    writer.close();
    // The reading half is still held by its task; wait for it, so that it never marks the next connection.
    while !link.broken.get() {
        link.wake.notified().await;
    }
}

/// A peer that does not take one batch in this long is cut off: after a healed partition a new connection carries
/// messages at once, while an old one would wait for the system's retransmission timer.
const WRITE_STALL_MAX: Duration = Duration::from_secs(5);

/// What an accepting shard checks a hello against.
pub struct Acceptance {
    /// This node.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: u128,
    /// This shard.
    pub shard: u32,
    /// Shards of this node.
    pub shards: u32,
    /// Start counter of this shard.
    pub epoch: u32,
    /// Hash of what all nodes' configurations must agree on.
    pub agreement: u64,
    /// Other nodes of the cluster.
    pub peers: Vec<NodeId>,
    /// Who was refused last, and why.
    pub refused: Cell<Option<(NodeId, Verdict)>>,
}

impl Acceptance {
    fn judge(&self, hello: &Hello) -> Verdict {
        if hello.version != PEER_VERSION {
            Verdict::OtherVersion
        } else if hello.cluster != self.cluster {
            Verdict::OtherCluster
        } else if hello.to != self.node || !self.peers.contains(&hello.from) {
            Verdict::OtherNode
        } else if hello.shards != self.shards
            || hello.shard != self.shard
            || hello.agreement != self.agreement
        {
            Verdict::OtherConfiguration
        } else {
            Verdict::Welcome
        }
    }
}

/// Serves a connection that began with [`codec::HELLO_MAGIC`]; `buffer` holds what was read of it so far.
/// `deliver` takes the messages of each batch and resolves when there is room for the next.
pub async fn serve<R: ByteReader, T: ByteWriter>(
    acceptance: &Acceptance,
    mut reader: R,
    mut writer: T,
    buffer: BytesMut,
    deliver: impl AsyncFn(NodeId, Vec<Delivery>),
) {
    let mut input = Input { buffer };
    let Some(bytes) = input.take(&mut reader, HELLO_BYTES).await else { return };
    let hello = match Hello::decode(bytes[..].try_into().expect("as many as were asked for")) {
        Ok(hello) => hello,
        Err(error) => {
            tracing::warn!(%error, "closing a connection that began like a peer's");
            return;
        }
    };
    let verdict = acceptance.judge(&hello);
    let answer = Answer { version: PEER_VERSION, verdict, epoch: acceptance.epoch };
    if writer.write_all(answer.encode().to_vec()).await.0.is_err() {
        return;
    }
    if verdict != Verdict::Welcome {
        // The peer says so as well, and tries again and again: once for each reason is enough.
        if acceptance.refused.replace(Some((hello.from, verdict))) != Some((hello.from, verdict)) {
            tracing::warn!(?hello, ?verdict, "refused a peer");
        }
        return;
    }
    loop {
        let Some(header) = input.take(&mut reader, codec::BATCH_HEADER_BYTES).await else { break };
        let header = header[..].try_into().expect("as many as were asked for");
        // One more envelope than the sender's bound may just fit, and archives have some overhead.
        let header = match codec::BatchHeader::decode(&header, 2 * LINK_BYTES_MAX) {
            Ok(header) => header,
            Err(error) => {
                tracing::warn!(node = hello.from.0, %error, "closing a link");
                break;
            }
        };
        let Some(body) = input.take(&mut reader, header.body_bytes()).await else { break };
        match codec::decode_batch(&header, body) {
            Ok(deliveries) => deliver(hello.from, deliveries).await,
            Err(error) => {
                tracing::warn!(node = hello.from.0, %error, "closing a link");
                break;
            }
        }
    }
    writer.close();
}

/// Bytes read and not yet taken.
struct Input {
    buffer: BytesMut,
}

impl Input {
    /// Splits off the next `count` bytes, reading as many as it takes.
    async fn take<R: ByteReader>(&mut self, reader: &mut R, count: usize) -> Option<BytesMut> {
        while self.buffer.len() < count {
            let missing = count - self.buffer.len();
            self.buffer.reserve(missing.max(READ_BYTES));
            let (result, buffer) = reader.read(std::mem::take(&mut self.buffer)).await;
            self.buffer = buffer;
            match result {
                Ok(n) if n > 0 => {}
                _ => return None,
            }
        }
        Some(self.buffer.split_to(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use terrane_raft::{Body, Message};

    fn envelope(group: u64) -> Envelope {
        Envelope { group, from: 1, to: 2, message: Message { term: 1, body: Body::TimeoutNow } }
    }

    #[test]
    fn a_hello_is_judged_by_everything_that_must_agree() {
        let acceptance = Acceptance {
            node: NodeId(2),
            cluster: 7,
            shard: 1,
            shards: 2,
            epoch: 3,
            agreement: 9,
            peers: vec![NodeId(1), NodeId(3)],
            refused: Cell::new(None),
        };
        let good = Hello {
            version: PEER_VERSION,
            cluster: 7,
            from: NodeId(1),
            to: NodeId(2),
            shard: 1,
            shards: 2,
            epoch: 40,
            agreement: 9,
        };
        assert_eq!(acceptance.judge(&good), Verdict::Welcome);
        for (hello, verdict) in [
            (Hello { version: PEER_VERSION + 1, ..good }, Verdict::OtherVersion),
            (Hello { cluster: 8, ..good }, Verdict::OtherCluster),
            (Hello { to: NodeId(3), ..good }, Verdict::OtherNode),
            (Hello { from: NodeId(4), ..good }, Verdict::OtherNode),
            (Hello { from: NodeId(2), ..good }, Verdict::OtherNode),
            (Hello { shard: 0, ..good }, Verdict::OtherConfiguration),
            (Hello { shards: 4, ..good }, Verdict::OtherConfiguration),
            (Hello { agreement: 10, ..good }, Verdict::OtherConfiguration),
        ] {
            assert_eq!(acceptance.judge(&hello), verdict, "{hello:?}");
        }
    }

    #[test]
    fn batches_are_small_in_order_and_lose_nothing() {
        let mut queue = Queue::default();
        let payload = Bytes::from(vec![0; 300 << 10]);
        for group in 0..8 {
            queue.push(envelope(group), vec![payload.clone()]);
        }
        let mut groups = Vec::new();
        loop {
            let (envelopes, payloads) = queue.take_batch();
            if envelopes.is_empty() {
                break;
            }
            assert_eq!(envelopes.len(), payloads.len());
            let before_last = (envelopes.len() as u64 - 1) * (payload.len() as u64 + ENVELOPE_BYTES);
            assert!(before_last < BATCH_BYTES, "the last message may exceed the bound, the others not");
            groups.extend(envelopes.iter().map(|envelope| envelope.group));
        }
        assert_eq!(groups, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(queue.bytes, 0);
    }

    #[test]
    fn a_full_queue_drops_what_comes() {
        let mut queue = Queue::default();
        let payload = Bytes::from(vec![0; LINK_BYTES_MAX as usize / 2]);
        for group in 0..3 {
            queue.push(envelope(group), vec![payload.clone()]);
        }
        assert_eq!(queue.messages.len(), 1, "two and their envelopes are more than the bound");
        queue.push(envelope(9), Vec::new());
        assert_eq!(queue.messages.len(), 2, "what is small still fits");
    }
}

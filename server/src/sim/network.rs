//! The simulated network: byte streams in order, with seeded delays, cuts and resets.
//!
//! It behaves as TCP between hosts does, seen from a program: a stream never loses, repeats or reorders a
//! byte, but it may stall for any time, and end at any moment with an unknown tail undelivered.
//!
//! Invariants:
//! - Packets of one direction of a connection arrive in the order they were sent.
//! - A cut is one-way. What is due while the way is cut stalls; after a heal it either arrives, late, or
//!   the connection is reset.
//! - A connection whose node died is reset at the peer: soon if only the process died; if the machine
//!   did, soon or when it is back.
//! - Nothing is delivered to a node in another life than the one that opened the connection.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;

use super::Inner;
use super::executor::{Decision, Event};

/// How the network behaves. Durations are in nanoseconds.
#[derive(Debug, Clone)]
pub struct NetworkOptions {
    /// One way between two nodes. Default 50 to 500 µs.
    pub delay_ns: RangeInclusive<u64>,
    /// One way between two programs of one node. Default 5 to 30 µs.
    pub local_delay_ns: RangeInclusive<u64>,
    /// One packet in so many is late, as after a retransmission; 0: none. Default 1000.
    pub hiccup_one_in: u32,
    /// How late. Default 1 to 40 ms.
    pub hiccup_ns: RangeInclusive<u64>,
    /// After how long without an answer an attempt to connect is given up. Default 1 to 3 s.
    pub connect_timeout_ns: RangeInclusive<u64>,
    /// After how long a cut breaks a connection, if it breaks it before the heal. Default 0.2 to 5 s.
    pub break_after_ns: RangeInclusive<u64>,
    /// Bytes that a stream holds, sent and not yet read, before its writer waits. Default 256 KiB.
    pub window_bytes: usize,
}

impl Default for NetworkOptions {
    fn default() -> Self {
        Self {
            delay_ns: 50_000..=500_000,
            local_delay_ns: 5_000..=30_000,
            hiccup_one_in: 1000,
            hiccup_ns: 1_000_000..=40_000_000,
            connect_timeout_ns: 1_000_000_000..=3_000_000_000,
            break_after_ns: 200_000_000..=5_000_000_000,
            window_bytes: 256 * 1024,
        }
    }
}

/// The largest packet of a stream, in bytes.
const PACKET_BYTES_MAX: usize = 16 * 1024;

/// The first port that is given to those who do not ask for one.
const EPHEMERAL_PORTS: u16 = 40_000;

/// The address of a node: 10.0.x.y.
pub(super) fn node_ip(node: u32) -> IpAddr {
    let [_, _, high, low] = node.to_be_bytes();
    assert!(node <= 0xffff, "the simulated network has 65536 addresses");
    IpAddr::V4(Ipv4Addr::new(10, 0, high, low))
}

/// The node that an address names, seen from `from`.
fn node_of(from: u32, ip: IpAddr) -> Option<u32> {
    match ip {
        IpAddr::V4(v4) => match v4.octets() {
            [10, 0, high, low] => Some(u32::from_be_bytes([0, 0, high, low])),
            _ if v4.is_loopback() || v4.is_unspecified() => Some(from),
            _ => None,
        },
        IpAddr::V6(v6) => (v6.is_loopback() || v6.is_unspecified()).then_some(from),
    }
}

#[derive(Default)]
pub(super) struct Network {
    options: NetworkOptions,
    /// (from, to): nothing gets through this way.
    cuts: BTreeSet<(u32, u32)>,
    listeners: BTreeMap<ListenerId, ListenerState>,
    connections: BTreeMap<u64, Connection>,
    next_listener: u64,
    next_connection: u64,
    next_port: BTreeMap<u32, u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ListenerId(u64);

struct ListenerState {
    node: u32,
    addr: SocketAddr,
    shared: bool,
    /// Connections not yet accepted.
    queue: VecDeque<u64>,
    waker: Option<Waker>,
}

/// One end of a connection. Side 0 opened it, side 1 accepted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EndId {
    connection: u64,
    side: usize,
}

impl EndId {
    fn other(self) -> Self {
        Self { connection: self.connection, side: 1 - self.side }
    }
}

struct Connection {
    ends: [End; 2],
}

/// One end, and the stream that flows towards it.
struct End {
    node: u32,
    addr: SocketAddr,
    /// Sent to this end and not yet there, in order.
    in_flight: VecDeque<Packet>,
    /// Packets that are due but stall because of a cut.
    stalled: usize,
    /// When the last packet in flight arrives.
    last_arrival: u64,
    /// Arrived and not read.
    inbound: BytesMut,
    /// Bytes sent to this end that its peer does not know to be read.
    unacknowledged: usize,
    /// Bytes read here of which the peer cannot be told because of a cut.
    acknowledgement_due: usize,
    /// The peer has closed: after what is inbound nothing comes, and nobody reads what we write.
    peer_closed: bool,
    state: EndState,
    /// No program holds this end: it has dropped it, died, or never accepted it.
    released: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EndState {
    Open,
    /// Closed by its own program.
    Closed,
    /// Broken: the peer's host said so, or gave no sign for too long.
    Broken(io::ErrorKind),
    /// Its node died; the peer was not told yet.
    Dead,
}

enum Packet {
    Data(Vec<u8>),
    /// The sender has closed.
    Close,
    /// The sender's host knows no such connection.
    Reset,
}

impl End {
    fn new(node: u32, addr: SocketAddr) -> Self {
        Self {
            node,
            addr,
            in_flight: VecDeque::new(),
            stalled: 0,
            last_arrival: 0,
            inbound: BytesMut::new(),
            unacknowledged: 0,
            acknowledgement_due: 0,
            peer_closed: false,
            state: EndState::Open,
            released: false,
            reader: None,
            writer: None,
        }
    }

    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }

    /// Ends an open end's use, and lets its tasks find out.
    fn end(&mut self, state: EndState) {
        if self.state == EndState::Open {
            self.state = state;
            self.inbound = BytesMut::new();
            self.wake();
        }
    }
}

impl Network {
    pub(super) fn new(options: NetworkOptions) -> Self {
        Self { options, ..Self::default() }
    }

    fn is_cut(&self, from: u32, to: u32) -> bool {
        self.cuts.contains(&(from, to))
    }

    fn take_port(&mut self, node: u32) -> u16 {
        loop {
            let port = self.next_port.entry(node).or_insert(EPHEMERAL_PORTS);
            let taken = *port;
            *port = port.checked_add(1).unwrap_or(EPHEMERAL_PORTS);
            let used = self
                .listeners
                .values()
                .any(|listener| listener.node == node && listener.addr.port() == taken);
            if !used {
                return taken;
            }
        }
    }

    fn end(&mut self, id: EndId) -> Option<&mut End> {
        self.connections.get_mut(&id.connection).map(|connection| &mut connection.ends[id.side])
    }

    fn ends(&self) -> impl Iterator<Item = EndId> + use<> {
        let ids: Vec<_> = self.connections.keys().copied().collect();
        ids.into_iter().flat_map(|connection| [0, 1].map(|side| EndId { connection, side }))
    }
}

/// How an attempt to connect must go on.
pub(super) enum Attempt {
    /// The connection stands; our end, and the time until we know.
    Opened(EndId, u64),
    /// Refused, known after so long.
    Refused(u64),
    /// No answer; given up after so long.
    Silence(u64),
}

impl Inner {
    fn delay_between(&self, from: u32, to: u32) -> u64 {
        let network = self.network.borrow();
        let options = &network.options;
        if from == to {
            return self.executor.random_in(options.local_delay_ns.clone());
        }
        let delay = self.executor.random_in(options.delay_ns.clone());
        if self.executor.one_in(options.hiccup_one_in) {
            delay + self.executor.random_in(options.hiccup_ns.clone())
        } else {
            delay
        }
    }

    pub(super) fn listen(
        &self,
        node: u32,
        mut addr: SocketAddr,
        shared: bool,
    ) -> io::Result<(ListenerId, SocketAddr)> {
        let mut network = self.network.borrow_mut();
        if node_of(node, addr.ip()) != Some(node) {
            return Err(io::Error::new(
                io::ErrorKind::AddrNotAvailable,
                format!("cannot listen on {addr}: node {node} is {}", node_ip(node)),
            ));
        }
        if addr.port() == 0 {
            addr.set_port(network.take_port(node));
        }
        let taken = network.listeners.values().any(|other| {
            other.node == node
                && other.addr.port() == addr.port()
                && (other.addr.ip() == addr.ip()
                    || other.addr.ip().is_unspecified()
                    || addr.ip().is_unspecified())
                && !(shared && other.shared)
        });
        if taken {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("cannot listen on {addr}: another listener has it"),
            ));
        }
        let id = ListenerId(network.next_listener);
        network.next_listener += 1;
        let state = ListenerState { node, addr, shared, queue: VecDeque::new(), waker: None };
        network.listeners.insert(id, state);
        Ok((id, addr))
    }

    pub(super) fn close_listener(&self, id: ListenerId) {
        let Some(listener) = self.network.borrow_mut().listeners.remove(&id) else { return };
        for connection in listener.queue {
            let id = EndId { connection, side: 1 };
            self.reset(id);
            self.forget(id);
        }
    }

    pub(super) fn poll_accept(
        &self,
        id: ListenerId,
        context: &Context<'_>,
    ) -> Poll<io::Result<(EndId, SocketAddr)>> {
        let mut network = self.network.borrow_mut();
        let Some(listener) = network.listeners.get_mut(&id) else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        let Some(connection) = listener.queue.pop_front() else {
            listener.waker = Some(context.waker().clone());
            return Poll::Pending;
        };
        let ends = &network.connections[&connection].ends;
        Poll::Ready(Ok((EndId { connection, side: 1 }, ends[0].addr)))
    }

    /// The first packet of an attempt is on its way; gives how long it takes.
    pub(super) fn connect_delay(&self, from: u32, addr: SocketAddr) -> io::Result<u64> {
        match node_of(from, addr.ip()) {
            Some(to) => Ok(self.delay_between(from, to)),
            None => Err(io::ErrorKind::HostUnreachable.into()),
        }
    }

    /// The first packet of an attempt has arrived, or has not.
    pub(super) fn attempt(&self, from: u32, addr: SocketAddr) -> Attempt {
        let to = node_of(from, addr.ip()).expect("checked when the attempt began");
        let back = self.delay_between(to, from);
        let reachable = {
            let network = self.network.borrow();
            !network.is_cut(from, to) && !network.is_cut(to, from) && self.answers(to)
        };
        if !reachable {
            let timeout = self.network.borrow().options.connect_timeout_ns.clone();
            return Attempt::Silence(self.executor.random_in(timeout));
        }
        let mut network = self.network.borrow_mut();
        let network = &mut *network;
        let listening: Vec<_> = network
            .listeners
            .iter()
            .filter(|(_, listener)| {
                listener.node == to
                    && listener.addr.port() == addr.port()
                    && (listener.addr.ip() == addr.ip() || listener.addr.ip().is_unspecified())
            })
            .map(|(id, _)| *id)
            .collect();
        if listening.is_empty() {
            return Attempt::Refused(back);
        }
        let chosen = self.executor.random_in(0..=listening.len() as u64 - 1) as usize;
        let our_ip = if from == to { addr.ip() } else { node_ip(from) };
        let our_addr = SocketAddr::new(our_ip, network.take_port(from));
        let id = network.next_connection;
        network.next_connection += 1;
        let ends = [End::new(from, our_addr), End::new(to, addr)];
        network.connections.insert(id, Connection { ends });
        let listener = network.listeners.get_mut(&listening[chosen]).expect("just listed");
        listener.queue.push_back(id);
        if let Some(waker) = listener.waker.take() {
            waker.wake();
        }
        self.executor.note(Decision::Connect, id);
        Attempt::Opened(EndId { connection: id, side: 0 }, back)
    }

    /// Moves arrived bytes into the spare capacity of `buf`.
    pub(super) fn poll_read(
        &self,
        id: EndId,
        buf: &mut BytesMut,
        context: &Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut network = self.network.borrow_mut();
        let Some(connection) = network.connections.get_mut(&id.connection) else {
            return Poll::Ready(Ok(0));
        };
        let peer = connection.ends[1 - id.side].node;
        let end = &mut connection.ends[id.side];
        match end.state {
            EndState::Closed | EndState::Dead => return Poll::Ready(Ok(0)),
            EndState::Broken(kind) => return Poll::Ready(Err(kind.into())),
            EndState::Open => {}
        }
        if end.inbound.is_empty() {
            if end.peer_closed {
                return Poll::Ready(Ok(0));
            }
            end.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        let most = end.inbound.len().min(buf.capacity() - buf.len());
        // A program must not rely on where reads end.
        let count =
            if self.executor.one_in(4) { self.executor.random_in(1..=most as u64) as usize } else { most };
        buf.extend_from_slice(&end.inbound.split_to(count));
        end.acknowledgement_due += count;
        let node = end.node;
        if !network.is_cut(node, peer) {
            network.acknowledge(id);
        }
        Poll::Ready(Ok(count))
    }

    /// Takes bytes from the front of `buf`, beginning at `written`, as far as the window goes.
    pub(super) fn poll_write(
        &self,
        id: EndId,
        buf: &[u8],
        written: &mut usize,
        context: &Context<'_>,
    ) -> Poll<io::Result<()>> {
        while *written < buf.len() {
            let mut network = self.network.borrow_mut();
            let window = network.options.window_bytes;
            let Some(connection) = network.connections.get_mut(&id.connection) else {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            };
            let [end, peer] = connection.pair(id.side);
            match end.state {
                EndState::Closed | EndState::Dead => {
                    return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
                }
                EndState::Broken(kind) => return Poll::Ready(Err(kind.into())),
                EndState::Open if end.peer_closed => {
                    return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
                }
                EndState::Open => {}
            }
            let room = window.saturating_sub(peer.unacknowledged);
            if room == 0 {
                end.writer = Some(context.waker().clone());
                return Poll::Pending;
            }
            let rest = buf.len() - *written;
            let most = rest.min(room).min(PACKET_BYTES_MAX);
            let count = if self.executor.one_in(4) {
                self.executor.random_in(1..=most as u64) as usize
            } else {
                most
            };
            peer.unacknowledged += count;
            drop(network);
            let data = buf[*written..*written + count].to_vec();
            *written += count;
            self.send(id.other(), Packet::Data(data));
        }
        Poll::Ready(Ok(()))
    }

    /// The program at `id` closes the connection.
    pub(super) fn close(&self, id: EndId) {
        let mut network = self.network.borrow_mut();
        let Some(end) = network.end(id) else { return };
        if end.state != EndState::Open {
            return;
        }
        end.end(EndState::Closed);
        drop(network);
        self.send(id.other(), Packet::Close);
    }

    /// The host at `id` refuses the connection.
    fn reset(&self, id: EndId) {
        let mut network = self.network.borrow_mut();
        let Some(end) = network.end(id) else { return };
        end.end(EndState::Closed);
        drop(network);
        self.send(id.other(), Packet::Reset);
    }

    /// No program holds `id` any more.
    pub(super) fn forget(&self, id: EndId) {
        self.close(id);
        let mut network = self.network.borrow_mut();
        let Some(connection) = network.connections.get_mut(&id.connection) else { return };
        connection.ends[id.side].released = true;
        if connection.ends.iter().all(|end| end.released) {
            network.connections.remove(&id.connection);
        }
    }

    /// Puts a packet on its way to `to`.
    fn send(&self, to: EndId, packet: Packet) {
        let mut network = self.network.borrow_mut();
        let Some(connection) = network.connections.get_mut(&to.connection) else { return };
        let [end, peer] = connection.pair(to.side);
        end.in_flight.push_back(packet);
        let (from_node, to_node) = (peer.node, end.node);
        drop(network);
        self.schedule_delivery(to, from_node, to_node);
    }

    /// One more packet will be due, after those before it.
    fn schedule_delivery(&self, to: EndId, from_node: u32, to_node: u32) {
        let delay = self.delay_between(from_node, to_node);
        let mut network = self.network.borrow_mut();
        let Some(end) = network.end(to) else { return };
        let arrival = (self.executor.now() + delay).max(end.last_arrival + 1);
        end.last_arrival = arrival;
        drop(network);
        self.executor.at(arrival, Event::Call(Box::new(move |inner: &Inner| inner.deliver(to))));
    }

    /// The oldest packet to `to` is due.
    fn deliver(&self, to: EndId) {
        let mut borrowed = self.network.borrow_mut();
        let network = &mut *borrowed;
        let Some(connection) = network.connections.get_mut(&to.connection) else { return };
        let [end, peer] = connection.pair(to.side);
        if network.cuts.contains(&(peer.node, end.node)) {
            end.stalled += 1;
            return;
        }
        let Some(packet) = end.in_flight.pop_front() else { return };
        let (kind, digest) = match &packet {
            Packet::Data(data) => (0, u64::from(crc32c::crc32c(data))),
            Packet::Close => (1, 0),
            Packet::Reset => (2, 0),
        };
        let place = (to.connection << 3) | ((to.side as u64) << 2) | kind;
        self.executor.note(Decision::Deliver, (place << 32) ^ digest);
        match (end.state, packet) {
            (EndState::Open, Packet::Data(data)) => {
                end.inbound.extend_from_slice(&data);
                if let Some(waker) = end.reader.take() {
                    waker.wake();
                }
            }
            (EndState::Open, Packet::Close) => {
                end.peer_closed = true;
                end.wake();
            }
            (EndState::Open, Packet::Reset) => {
                end.end(EndState::Broken(io::ErrorKind::ConnectionReset));
            }
            // What comes for a connection that its program has closed is answered with a reset.
            (EndState::Closed | EndState::Broken(_), Packet::Data(_)) => {
                if peer.state == EndState::Open && !peer.in_flight_reset() {
                    peer.in_flight.push_back(Packet::Reset);
                    let (from_node, to_node) = (end.node, peer.node);
                    drop(borrowed);
                    self.schedule_delivery(to.other(), from_node, to_node);
                }
            }
            (EndState::Closed | EndState::Broken(_), Packet::Close | Packet::Reset) | (EndState::Dead, _) => {
            }
        }
    }

    /// Nothing gets from `from` to `to` any more. Of the connections concerned some break after a while.
    pub(super) fn cut_way(&self, from: u32, to: u32) {
        self.executor.note(Decision::Cut, (u64::from(from) << 32) | u64::from(to));
        if !self.network.borrow_mut().cuts.insert((from, to)) {
            return;
        }
        let concerned: Vec<_> = {
            let network = self.network.borrow();
            let nodes = |id: &EndId| {
                let ends = &network.connections[&id.connection].ends;
                (ends[1 - id.side].node, ends[id.side].node)
            };
            network.ends().filter(|id| nodes(id) == (from, to)).collect()
        };
        for id in concerned {
            if self.executor.one_in(2) {
                let wait = self.network.borrow().options.break_after_ns.clone();
                let at = self.executor.now() + self.executor.random_in(wait);
                self.executor.at(
                    at,
                    Event::Call(Box::new(move |inner: &Inner| {
                        let mut network = inner.network.borrow_mut();
                        if network.is_cut(from, to)
                            && let Some(connection) = network.connections.get_mut(&id.connection)
                        {
                            for end in &mut connection.ends {
                                end.end(EndState::Broken(io::ErrorKind::TimedOut));
                            }
                        }
                    })),
                );
            }
        }
    }

    /// The way from `from` to `to` is open again. What stalled arrives, or the connection is reset.
    pub(super) fn heal_way(&self, from: u32, to: u32) {
        self.executor.note(Decision::Heal, (u64::from(from) << 32) | u64::from(to));
        if !self.network.borrow_mut().cuts.remove(&(from, to)) {
            return;
        }
        let ends: Vec<_> = self.network.borrow().ends().collect();
        for id in ends {
            let stalled = {
                let mut network = self.network.borrow_mut();
                let Some(connection) = network.connections.get_mut(&id.connection) else { continue };
                let [end, peer] = connection.pair(id.side);
                if (end.node, peer.node) == (from, to) {
                    // It can tell its peer again what it has read.
                    network.acknowledge(id);
                    continue;
                }
                if (peer.node, end.node) != (from, to) {
                    continue;
                }
                let stalled = std::mem::take(&mut end.stalled);
                if stalled > 0 && self.executor.one_in(2) {
                    for end in &mut connection.ends {
                        end.end(EndState::Broken(io::ErrorKind::ConnectionReset));
                    }
                }
                stalled
            };
            for _ in 0..stalled {
                self.schedule_delivery(id, from, to);
            }
        }
    }

    /// Opens every way that is cut.
    pub(super) fn heal_all(&self) {
        let cuts: Vec<_> = self.network.borrow().cuts.iter().copied().collect();
        for (from, to) in cuts {
            self.heal_way(from, to);
        }
    }

    /// All sockets of a node are gone with its process. `promptly`: its host lives and tells the peers;
    /// else the seed decides of each whether it learns now or when the node is back.
    pub(super) fn drop_sockets(&self, node: u32, promptly: bool) {
        let never_accepted: Vec<_> = {
            let mut network = self.network.borrow_mut();
            let gone = network.listeners.extract_if(.., |_, listener| listener.node == node);
            gone.flat_map(|(_, listener)| listener.queue).collect()
        };
        let ends: Vec<_> = self.network.borrow().ends().collect();
        for id in ends {
            {
                let mut network = self.network.borrow_mut();
                let Some(end) = network.end(id) else { continue };
                if end.node != node || end.state != EndState::Open {
                    continue;
                }
                end.end(EndState::Dead);
            }
            if promptly || self.executor.one_in(2) {
                self.bury(id);
            }
        }
        for connection in never_accepted {
            self.forget(EndId { connection, side: 1 });
        }
    }

    /// A node is back: its host answers for what its former life has left open.
    pub(super) fn reset_former_life(&self, node: u32) {
        let ends: Vec<_> = self.network.borrow().ends().collect();
        for id in ends {
            let dead = self
                .network
                .borrow_mut()
                .end(id)
                .is_some_and(|end| end.node == node && end.state == EndState::Dead);
            if dead {
                self.bury(id);
            }
        }
    }

    /// The peer of a dead end is told.
    fn bury(&self, id: EndId) {
        if let Some(end) = self.network.borrow_mut().end(id) {
            end.state = EndState::Closed;
        }
        self.send(id.other(), Packet::Reset);
    }
}

impl Connection {
    /// This side's end and the other one.
    fn pair(&mut self, side: usize) -> [&mut End; 2] {
        let [a, b] = &mut self.ends;
        if side == 0 { [a, b] } else { [b, a] }
    }
}

impl End {
    fn in_flight_reset(&self) -> bool {
        self.in_flight.iter().any(|packet| matches!(packet, Packet::Reset))
    }
}

impl Network {
    /// Tells the peer of `id` what has been read there.
    fn acknowledge(&mut self, id: EndId) {
        let Some(connection) = self.connections.get_mut(&id.connection) else { return };
        let [end, peer] = connection.pair(id.side);
        end.unacknowledged -= std::mem::take(&mut end.acknowledgement_due);
        if let Some(waker) = peer.writer.take() {
            waker.wake();
        }
    }
}

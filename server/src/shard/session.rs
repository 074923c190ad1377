//! Connections: bytes in, requests to the shard that owns them, answers out.
//!
//! A connection has two tasks. The reader cuts the stream into frames and hands requests over; the writer
//! sends whatever answers have gathered since its last write.
//!
//! Invariants:
//! - Request bytes in flight are bounded for each connection: past the bound its reader stops reading.
//! - Answer bytes not yet written are bounded: past the bound, requests wait (unread, or in `deferred`) until the
//!   client has taken some. A client that takes nothing for long is disconnected.
//! - A frame that cannot be trusted gets an error frame, then the connection is closed; the requests before
//!   it are answered first.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use terrane_client::wire::{
    ErrorReply, FrameDecoder, FrameError, HEADER_BYTES, Header, Request, Response, encode_connection_error,
};

use super::{Phase, Shard};
use crate::notify::Notify;
use crate::peer;
use crate::seam::{ByteReader, ByteWriter, Closer, Listener, World};
use crate::stall::StallGuard;

/// Room offered to one read of a connection.
const READ_BYTES: usize = 64 << 10;
/// Answers gather in pieces of about this size, each one write.
const PIECE_BYTES: usize = 256 << 10;
/// Hint for requests that came while the shard had too many bytes in flight.
const BUSY_RETRY_MS: u32 = 5;
/// What a request costs of the budgets at least: about what it takes in memory while it is under way.
const REQUEST_BYTES_MIN: u64 = 1024;
/// Forwarded requests that one connection may have unanswered; their replies hold memory before they are written.
const FORWARDED_MAX: u32 = 64;
/// A client that does not take one piece in this long has gone.
const WRITE_STALL_MAX: Duration = Duration::from_secs(30);
/// How long a new connection may take to say its first four bytes.
const GREETING_MAX: Duration = Duration::from_secs(10);

/// The part of a connection that answers need.
pub struct Connection {
    /// Answers to be written, in pieces; the last one may still grow.
    out: RefCell<VecDeque<Vec<u8>>>,
    out_bytes: Cell<usize>,
    out_bytes_max: usize,
    /// A piece that was written, for its memory.
    spare: RefCell<Vec<u8>>,
    wake: Notify,
    inflight_bytes: Cell<u64>,
    shard_inflight_bytes: Rc<Cell<u64>>,
    forwarded: Cell<u32>,
    /// Requests that wait until the client has taken answers, or other shards have answered.
    deferred: RefCell<VecDeque<(Header, Request, Responder)>>,
    resume: Notify,
    closed: Cell<bool>,
    map_version: u32,
}

impl Connection {
    /// Queues an answer for the writer, and gives the request's bytes back to the budgets.
    pub fn answer(&self, request_id: u64, opcode: u8, request_bytes: u64, response: &Response) {
        self.inflight_bytes.set(self.inflight_bytes.get() - request_bytes);
        self.shard_inflight_bytes.set(self.shard_inflight_bytes.get() - request_bytes);
        self.resume.notify_one();
        if !self.closed.get() {
            self.write(|piece| response.encode(opcode, request_id, self.map_version, piece));
        }
    }

    fn write(&self, encode: impl FnOnce(&mut Vec<u8>)) {
        let mut out = self.out.borrow_mut();
        if out.back().is_none_or(|piece| piece.len() >= PIECE_BYTES) {
            out.push_back(self.spare.take());
        }
        let piece = out.back_mut().expect("there is one now");
        let before = piece.len();
        encode(piece);
        self.out_bytes.set(self.out_bytes.get() + piece.len() - before);
        drop(out);
        self.wake.notify_one();
    }

    fn take_charge(&self, request_bytes: u64) {
        self.inflight_bytes.set(self.inflight_bytes.get() + request_bytes);
        self.shard_inflight_bytes.set(self.shard_inflight_bytes.get() + request_bytes);
    }

    /// Whether the client must take answers before it gets more.
    fn is_full(&self) -> bool {
        self.out_bytes.get() > self.out_bytes_max
    }

    /// Counts a request that goes to another shard. Its answer calls [`Connection::forwarded_back`].
    pub(super) fn forwarded_out(&self) {
        self.forwarded.set(self.forwarded.get() + 1);
    }

    /// Another shard answered.
    pub(super) fn forwarded_back(&self) {
        self.forwarded.set(self.forwarded.get() - 1);
    }

    /// Takes a request back that must wait; `forwarding` if it is for another shard.
    pub(super) fn defers(&self, forwarding: bool) -> bool {
        !self.closed.get() && (self.is_full() || forwarding && self.forwarded.get() >= FORWARDED_MAX)
    }

    /// Keeps a request until [`Connection::next_deferred`].
    pub(super) fn defer(&self, header: Header, request: Request, responder: Responder) {
        self.deferred.borrow_mut().push_back((header, request, responder));
    }

    /// The request that has waited longest, if its wait is over.
    pub(super) fn next_deferred(&self) -> Option<(Header, Request, Responder)> {
        if self.defers(true) { None } else { self.deferred.borrow_mut().pop_front() }
    }

    /// Whether nobody takes answers any more.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Resolves when every request has its answer, or nobody takes answers any more.
    async fn answered(&self) {
        while self.inflight_bytes.get() > 0 && !self.closed.get() {
            self.resume.notified().await;
        }
    }

    fn close(&self) {
        self.closed.set(true);
        self.wake.notify_one();
        self.resume.notify_one();
    }
}

/// Accepts connections for as long as the shard runs.
pub async fn accept<W: World>(shard: Rc<Shard<W>>, mut listener: W::Listener) {
    loop {
        match listener.accept().await {
            Ok((reader, writer, _)) => {
                if !matches!(shard.phase(), Phase::Stopping | Phase::Closed) {
                    shard.world.spawn(serve(shard.clone(), reader, writer));
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                shard.world.sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Reads the first bytes to tell a peer from a client, then serves either until it leaves.
async fn serve<W: World>(shard: Rc<Shard<W>>, mut reader: W::Reader, writer: W::Writer) {
    let greeted = Rc::new(Cell::new(false));
    shard.world.spawn({
        let (greeted, world, closer) = (greeted.clone(), shard.world.clone(), writer.closer());
        async move {
            world.sleep(GREETING_MAX).await;
            if !greeted.get() {
                closer.close();
            }
        }
    });
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    while buffer.len() < 4 {
        let (result, filled) = reader.read(buffer).await;
        buffer = filled;
        if !matches!(result, Ok(n) if n > 0) {
            return;
        }
    }
    greeted.set(true);
    if buffer[..4] == peer::codec::HELLO_MAGIC.to_le_bytes() {
        let deliver = async |from, deliveries| shard.deliver(from, deliveries).await;
        peer::serve(&shard.acceptance, reader, writer, buffer, deliver).await;
    } else {
        serve_client(shard, reader, writer, buffer).await;
    }
}

async fn serve_client<W: World>(
    shard: Rc<Shard<W>>,
    mut reader: W::Reader,
    writer: W::Writer,
    mut input: BytesMut,
) {
    let connection = Rc::new(Connection {
        out: RefCell::default(),
        out_bytes: Cell::new(0),
        out_bytes_max: shard.settings.connection_answer_bytes_max,
        spare: RefCell::default(),
        wake: Notify::new(),
        inflight_bytes: Cell::new(0),
        shard_inflight_bytes: shard.inflight_bytes.clone(),
        forwarded: Cell::new(0),
        deferred: RefCell::default(),
        resume: Notify::new(),
        closed: Cell::new(false),
        map_version: shard.map.version,
    });
    shard.connections.set(shard.connections.get() + 1);
    shard.world.spawn(write_answers(shard.clone(), connection.clone(), writer));
    let mut decoder = FrameDecoder::new(shard.settings.body_bytes_max());
    // A stream that cannot be this protocol is refused at its first bytes, not when a header's worth is there.
    if input[..4] != terrane_client::wire::MAGIC.to_le_bytes() {
        input.resize(HEADER_BYTES.max(input.len()), 0);
    }
    'connection: loop {
        loop {
            match decoder.decode(&mut input) {
                Ok(Some((header, body))) => receive(&shard, &connection, &header, body),
                Ok(None) => break,
                Err(FrameError::BodyTooLarge { header, .. }) => {
                    let limit = shard.settings.value_bytes_max;
                    let reply = Response::Error(ErrorReply::TooLarge { limit });
                    connection.answer(header.request_id, header.opcode, 0, &reply);
                }
                Err(error) => {
                    // The stream cannot be followed any further: say why, after the answers that are due.
                    tracing::debug!(%error, "closing a connection");
                    connection.answered().await;
                    let map_version = connection.map_version;
                    connection.write(|piece| encode_connection_error(&error.to_reply(), map_version, piece));
                    break 'connection;
                }
            }
        }
        while (connection.inflight_bytes.get() > shard.settings.connection_inflight_bytes_max
            || connection.is_full())
            && !connection.closed.get()
        {
            connection.resume.notified().await;
        }
        // Room for what the frame still needs, but no more than a peer can make good soon by sending it.
        input.reserve(decoder.bytes_wanted(&input).clamp(READ_BYTES, 1 << 20));
        let (result, filled) = reader.read(input).await;
        input = filled;
        if connection.closed.get() || !matches!(result, Ok(n) if n > 0) {
            break;
        }
    }
    // A client that has said all it will say still gets its answers, as long as it takes them.
    connection.answered().await;
    connection.close();
    shard.connections.set(shard.connections.get() - 1);
}

async fn write_answers<W: World>(shard: Rc<Shard<W>>, connection: Rc<Connection>, mut writer: W::Writer) {
    let guard = StallGuard::new(&shard.world, writer.closer(), WRITE_STALL_MAX);
    loop {
        let Some(piece) = connection.out.borrow_mut().pop_front() else {
            if connection.closed.get() {
                break;
            }
            connection.wake.notified().await;
            continue;
        };
        let bytes = piece.len();
        let (result, mut piece) = guard.write_all(&mut writer, piece).await;
        // One huge answer must not hold its memory for the life of the connection.
        if piece.capacity() <= 2 * PIECE_BYTES {
            piece.clear();
            connection.spare.replace(piece);
        }
        connection.out_bytes.set(connection.out_bytes.get() - bytes);
        connection.resume.notify_one();
        if result.is_err() {
            break;
        }
        shard.resubmit(&connection);
    }
    connection.close();
    writer.close();
    // Whoever waits in here gets its bytes back, if no answer.
    shard.resubmit(&connection);
}

/// Who waits for an answer, and how it gets there.
pub enum Responder {
    /// A client connected to this shard.
    Client {
        /// Its connection.
        connection: Rc<Connection>,
        /// Its number for the request.
        request_id: u64,
        /// What was asked.
        opcode: u8,
        /// Bytes of the request.
        request_bytes: u64,
    },
    /// Another shard of this node, which forwarded the request.
    Shard {
        /// Which shard.
        shard: usize,
        /// Its number for the request.
        token: u64,
    },
}

fn receive<W: World>(shard: &Rc<Shard<W>>, connection: &Rc<Connection>, header: &Header, body: Bytes) {
    let request_bytes = ((HEADER_BYTES + body.len()) as u64).max(REQUEST_BYTES_MIN);
    connection.take_charge(request_bytes);
    let responder = Responder::Client {
        connection: connection.clone(),
        request_id: header.request_id,
        opcode: header.opcode,
        request_bytes,
    };
    if connection.shard_inflight_bytes.get() > shard.settings.shard_inflight_bytes_max {
        return shard.respond(responder, Response::Error(ErrorReply::Busy { retry_after_ms: BUSY_RETRY_MS }));
    }
    match Request::decode(header, body) {
        Ok(request) => shard.submit(*header, request, responder),
        Err(error) => shard.respond(responder, Response::Error(error.to_reply())),
    }
}

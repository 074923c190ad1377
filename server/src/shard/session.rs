//! Connections: bytes in, requests to the shard that owns them, answers out.
//!
//! A connection has two tasks. The reader cuts the stream into frames and hands requests over; the writer
//! sends whatever answers have gathered since its last write.
//!
//! Invariants:
//! - Request bytes in flight are bounded for each connection: past the bound its reader stops reading.
//! - Answer bytes not yet written are bounded: a client that does not read its answers is disconnected.
//! - A frame that cannot be trusted gets an error frame, then the connection is closed; the requests before
//!   it are still served.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use terrane_client::wire::{
    ErrorReply, FrameDecoder, FrameError, HEADER_BYTES, Header, Request, Response, encode_connection_error,
};

use super::{Phase, Shard};
use crate::notify::Notify;
use crate::peer;
use crate::seam::{ByteReader, ByteWriter, Closer, Listener, World};

/// The part of a connection that answers need.
pub struct Connection {
    out: RefCell<Vec<u8>>,
    out_bytes_max: usize,
    wake: Notify,
    inflight_bytes: Cell<u64>,
    shard_inflight_bytes: Rc<Cell<u64>>,
    resume: Notify,
    closed: Cell<bool>,
    close: Box<dyn Fn()>,
    map_version: u32,
}

impl Connection {
    /// Queues an answer for the writer, and gives the request's bytes back to the budgets.
    pub fn answer(&self, request_id: u64, opcode: u8, request_bytes: u64, response: &Response) {
        self.inflight_bytes.set(self.inflight_bytes.get() - request_bytes);
        self.shard_inflight_bytes.set(self.shard_inflight_bytes.get() - request_bytes);
        self.resume.notify_one();
        if self.closed.get() {
            return;
        }
        response.encode(opcode, request_id, self.map_version, &mut self.out.borrow_mut());
        if self.out.borrow().len() > self.out_bytes_max {
            tracing::warn!("disconnecting a client that does not read its answers");
            self.shut();
            return;
        }
        self.wake.notify_one();
    }

    fn take_charge(&self, request_bytes: u64) {
        self.inflight_bytes.set(self.inflight_bytes.get() + request_bytes);
        self.shard_inflight_bytes.set(self.shard_inflight_bytes.get() + request_bytes);
    }

    fn shut(&self) {
        self.closed.set(true);
        (self.close)();
        self.wake.notify_one();
        self.resume.notify_one();
    }
}

/// Accepts connections for as long as the shard runs.
pub async fn accept<W: World>(shard: Rc<Shard<W>>, mut listener: W::Listener) {
    loop {
        match listener.accept().await {
            Ok((reader, writer, _)) => {
                if shard.phase() != Phase::Serving {
                    continue;
                }
                shard.world.spawn(serve(shard.clone(), reader, writer));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                shard.world.sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}

/// Reads the first bytes to tell a peer from a client, then serves either until it leaves.
async fn serve<W: World>(shard: Rc<Shard<W>>, mut reader: W::Reader, writer: W::Writer) {
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    while buffer.len() < 4 {
        let (result, filled) = reader.read(buffer).await;
        buffer = filled;
        if !matches!(result, Ok(n) if n > 0) {
            return;
        }
    }
    if buffer[..4] == peer::codec::HELLO_MAGIC.to_le_bytes() {
        let deliver = async |from, deliveries| shard.deliver(from, deliveries).await;
        peer::serve(&shard.acceptance, reader, writer, buffer, deliver).await;
    } else {
        serve_client(shard, reader, writer, buffer).await;
    }
}

/// Room offered to one read of a connection.
const READ_BYTES: usize = 64 << 10;
/// Hint for requests that came while the shard had too many bytes in flight.
const BUSY_RETRY_MS: u32 = 5;

async fn serve_client<W: World>(
    shard: Rc<Shard<W>>,
    mut reader: W::Reader,
    writer: W::Writer,
    buffer: BytesMut,
) {
    let closer = writer.closer();
    let connection = Rc::new(Connection {
        out: RefCell::default(),
        out_bytes_max: shard.settings.connection_answer_bytes_max,
        wake: Notify::new(),
        inflight_bytes: Cell::new(0),
        shard_inflight_bytes: shard.inflight_bytes.clone(),
        resume: Notify::new(),
        closed: Cell::new(false),
        close: Box::new(move || closer.close()),
        map_version: shard.map.version,
    });
    shard.connections.set(shard.connections.get() + 1);
    shard.world.spawn(write_answers(connection.clone(), writer));
    let mut decoder = FrameDecoder::new(shard.settings.body_bytes_max());
    let mut input = buffer;
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
                    // The stream cannot be followed any further: say why, then let the writer close it.
                    tracing::debug!(%error, "closing a connection");
                    let map_version = connection.map_version;
                    encode_connection_error(&error.to_reply(), map_version, &mut connection.out.borrow_mut());
                    break 'connection;
                }
            }
        }
        while connection.inflight_bytes.get() > shard.settings.connection_inflight_bytes_max
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
    // Answers still to come go to nobody; the writer sends what it has and closes.
    connection.closed.set(true);
    connection.wake.notify_one();
    shard.connections.set(shard.connections.get() - 1);
}

async fn write_answers<T: ByteWriter>(connection: Rc<Connection>, mut writer: T) {
    let mut buffer = Vec::new();
    loop {
        std::mem::swap(&mut buffer, &mut connection.out.borrow_mut());
        if buffer.is_empty() {
            if connection.closed.get() {
                break;
            }
            connection.wake.notified().await;
            continue;
        }
        let (result, written) = writer.write_all(buffer).await;
        buffer = written;
        buffer.clear();
        // One huge answer must not hold its memory for the life of the connection.
        if buffer.capacity() > 1 << 20 {
            buffer = Vec::new();
        }
        if result.is_err() {
            break;
        }
    }
    connection.closed.set(true);
    writer.close();
    connection.resume.notify_one();
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
    let request_bytes = (HEADER_BYTES + body.len()) as u64;
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

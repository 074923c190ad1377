//! One connection to one address, shared by many callers at a time.
//!
//! **How.** A caller encodes its request straight into the connection's outgoing buffer, under a short lock, and
//! waits on a one-shot channel in its request's slot. One task owns the socket: its writing half takes whatever
//! has gathered and writes it in one go, its reading half hands each reply to the slot that its request id names.
//! No task is spawned per request.
//!
//! **Invariants**
//! - A request id is a slot's number and its generation: a reply that comes after its caller gave up finds
//!   another generation and is dropped.
//! - A loss says truthfully whether the request may have reached the server: it certainly did not while its bytes
//!   were still in the outgoing buffer of a connection that ended.

use crate::routing::Loss;
use crate::wire::{BODY_BYTES_MAX, FrameDecoder, Header, Response};
use bytes::{Bytes, BytesMut};
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

/// Room made for each read: many small replies, or a good part of a large one.
const READ_BYTES: usize = 64 << 10;

/// An outgoing buffer that grew beyond this for a large value is given back.
const KEPT_BUFFER_BYTES: usize = 1 << 20;

pub(crate) type ReadHalf = Box<dyn AsyncRead + Send + Unpin>;
pub(crate) type WriteHalf = Box<dyn AsyncWrite + Send + Unpin>;
pub(crate) type Connecting<'a> = Pin<Box<dyn Future<Output = io::Result<(ReadHalf, WriteHalf)>> + Send + 'a>>;

/// Where byte streams come from: TCP, or a test's pipes.
pub(crate) trait Connector: Send + Sync {
    /// Connects to `host:port`.
    fn connect<'a>(&'a self, address: &'a str) -> Connecting<'a>;
}

/// Connects by TCP.
pub(crate) struct Tcp;

impl Connector for Tcp {
    fn connect<'a>(&'a self, address: &'a str) -> Connecting<'a> {
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            // Requests are already gathered into full writes; holding them back only costs latency.
            stream.set_nodelay(true)?;
            let (read, write) = stream.into_split();
            Ok((Box::new(read) as ReadHalf, Box::new(write) as WriteHalf))
        })
    }
}

/// Why a connection ended, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reason(Arc<str>);

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A request that got no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lost {
    pub(crate) loss: Loss,
    pub(crate) why: Reason,
}

type Answer = Result<(Header, Bytes), Lost>;

/// A connection, alive while somebody holds it.
pub(crate) struct Link {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    address: Arc<str>,
    state: Mutex<State>,
    /// Something is in the outgoing buffer.
    work: Notify,
    /// Requests that may yet be under way.
    places: Semaphore,
}

struct State {
    /// Encoded requests not yet given to the socket.
    out: Vec<u8>,
    /// How many outgoing buffers were given to the socket.
    batches: u64,
    /// How many times something was received.
    heard: u64,
    slots: Vec<Slot>,
    free: Vec<u32>,
    lost: Option<Reason>,
    /// A request waited its time out and nothing was heard meanwhile.
    stalled: bool,
}

struct Slot {
    generation: u32,
    /// The batch the request went, or will go, out with.
    batch: u64,
    caller: Option<oneshot::Sender<Answer>>,
}

impl Link {
    /// Starts connecting. Requests may be made at once; they wait for the connection.
    pub(crate) fn open(
        address: Arc<str>,
        connector: Arc<dyn Connector>,
        connect_timeout: Duration,
        pipeline: usize,
    ) -> Link {
        let shared = Arc::new(Shared {
            address,
            state: Mutex::new(State {
                out: Vec::new(),
                batches: 0,
                heard: 0,
                slots: Vec::new(),
                free: Vec::new(),
                lost: None,
                stalled: false,
            }),
            work: Notify::new(),
            places: Semaphore::new(pipeline),
        });
        let task = tokio::spawn(serve(shared.clone(), connector, connect_timeout));
        Link { shared, task }
    }

    /// Whether new requests should be made here.
    pub(crate) fn is_usable(&self) -> bool {
        let state = self.shared.lock();
        state.lost.is_none() && !state.stalled
    }

    /// Sends what `encode` appends for the request id it is given, and waits for the reply.
    ///
    /// Dropping the future abandons the answer, not the request.
    pub(crate) async fn call(&self, deadline: Instant, encode: impl FnOnce(u64, &mut Vec<u8>)) -> Answer {
        let shared = &*self.shared;
        let _place = match shared.places.try_acquire() {
            Ok(place) => place,
            Err(_) => match timeout_at(deadline, shared.places.acquire()).await {
                Ok(Ok(place)) => place,
                // Closed only when the connection is lost.
                Ok(Err(_)) => return Err(shared.unsent()),
                Err(_) => return Err(shared.unanswered(Loss::Unsent)),
            },
        };
        let (caller, answer) = oneshot::channel();
        let (mut request, heard_before) = {
            let mut state = shared.lock();
            if let Some(why) = &state.lost {
                return Err(Lost { loss: Loss::Unsent, why: why.clone() });
            }
            let id = state.occupy(caller);
            let first = state.out.is_empty();
            encode(id, &mut state.out);
            let heard = state.heard;
            drop(state);
            if first {
                shared.work.notify_one();
            }
            (Occupied { shared, id, answered: false }, heard)
        };
        match timeout_at(deadline, answer).await {
            Ok(Ok(answer)) => {
                request.answered = true;
                answer
            }
            // The slot's sender is only dropped unused together with the slot's occupant: with us.
            Ok(Err(_)) => Err(shared.unanswered(Loss::Silent)),
            Err(_) => {
                {
                    let mut state = shared.lock();
                    state.stalled |= state.heard == heard_before;
                }
                drop(request);
                // Its bytes may still be sent, even if they have not been yet.
                Err(shared.unanswered(Loss::Silent))
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Frees a request's slot when its caller gives up. (An answer frees it by itself.)
struct Occupied<'a> {
    shared: &'a Shared,
    id: u64,
    answered: bool,
}

impl Drop for Occupied<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.shared.lock().vacate(self.id);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each critical section leaves the state whole at every step, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reason(&self, what: impl fmt::Display) -> Reason {
        Reason(format!("{}: {what}", self.address).into())
    }

    fn unsent(&self) -> Lost {
        let why = self.lock().lost.clone();
        Lost { loss: Loss::Unsent, why: why.unwrap_or_else(|| self.reason("closed")) }
    }

    fn unanswered(&self, loss: Loss) -> Lost {
        Lost { loss, why: self.reason("no answer in time") }
    }

    /// Ends the connection: every caller learns whether its request may have been sent.
    fn lose(&self, why: Reason) {
        let mut state = self.lock();
        if state.lost.is_some() {
            return;
        }
        state.lost = Some(why.clone());
        state.out = Vec::new();
        let batches = state.batches;
        let waiting: Vec<_> = state
            .slots
            .iter_mut()
            .filter_map(|slot| {
                let loss = if slot.batch < batches { Loss::Broken } else { Loss::Unsent };
                slot.caller.take().map(|caller| (caller, loss))
            })
            .collect();
        drop(state);
        self.places.close();
        for (caller, loss) in waiting {
            // A caller that gave up meanwhile needs no answer.
            let _ = caller.send(Err(Lost { loss, why: why.clone() }));
        }
    }
}

impl State {
    /// Takes a slot for a request; returns the request's id, which is never 0.
    fn occupy(&mut self, caller: oneshot::Sender<Answer>) -> u64 {
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, batch: 0, caller: None });
            // As many slots as `places` has permits, which is checked to fit when the client is built.
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[at as usize];
        slot.batch = self.batches;
        slot.caller = Some(caller);
        u64::from(slot.generation) << 32 | (u64::from(at) + 1)
    }

    /// How many requests wait for an answer.
    fn under_way(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Frees the slot of request `id`, if that request is still its occupant, and returns who waits there.
    fn vacate(&mut self, id: u64) -> Option<oneshot::Sender<Answer>> {
        let at = ((id & u64::from(u32::MAX)) as u32).checked_sub(1)?;
        let slot = self.slots.get_mut(at as usize)?;
        if u64::from(slot.generation) != id >> 32 {
            return None;
        }
        // `None` here: nobody has occupied the slot since it was freed, or the connection was lost.
        let caller = slot.caller.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(at);
        Some(caller)
    }
}

/// Says that the connection is lost even if its task is dropped with its runtime.
struct LoseOnDrop(Arc<Shared>);

impl Drop for LoseOnDrop {
    fn drop(&mut self) {
        let why = self.0.reason("the connection was closed by this client");
        self.0.lose(why);
    }
}

async fn serve(shared: Arc<Shared>, connector: Arc<dyn Connector>, connect_timeout: Duration) {
    let guard = LoseOnDrop(shared);
    let shared = &guard.0;
    let why = match timeout(connect_timeout, connector.connect(&shared.address)).await {
        Err(_) => shared.reason(format_args!("no connection within {} ms", connect_timeout.as_millis())),
        Ok(Err(error)) => shared.reason(format_args!("cannot connect: {error}")),
        Ok(Ok((read, write))) => {
            tokio::select! {
                why = read_replies(shared, read) => why,
                why = write_requests(shared, write) => why,
            }
        }
    };
    shared.lose(why);
}

async fn write_requests(shared: &Shared, mut half: WriteHalf) -> Reason {
    let mut batch = Vec::new();
    loop {
        shared.work.notified().await;
        if shared.lock().under_way() > 1 {
            // Let the other callers that are ready to run add their requests: one write for all of them.
            tokio::task::yield_now().await;
        }
        loop {
            {
                let mut state = shared.lock();
                if state.out.is_empty() {
                    break;
                }
                std::mem::swap(&mut state.out, &mut batch);
                state.batches += 1;
            }
            if let Err(error) = half.write_all(&batch).await {
                return shared.reason(format_args!("connection lost: {error}"));
            }
            batch.clear();
            batch.shrink_to(KEPT_BUFFER_BYTES);
        }
    }
}

async fn read_replies(shared: &Shared, mut half: ReadHalf) -> Reason {
    let mut decoder = FrameDecoder::new(BODY_BYTES_MAX);
    let mut input = BytesMut::new();
    let mut replies = Vec::new();
    loop {
        input.reserve(READ_BYTES);
        match half.read_buf(&mut input).await {
            Ok(0) if decoder.is_idle(&input) => return shared.reason("the server closed the connection"),
            Ok(0) => return shared.reason("the server closed the connection in the middle of a reply"),
            Ok(_) => {}
            Err(error) => return shared.reason(format_args!("connection lost: {error}")),
        }
        let end = loop {
            match decoder.decode(&mut input) {
                Ok(Some((header, _))) if !header.is_response() => {
                    break Some(shared.reason("protocol error: the server sent a request"));
                }
                Ok(Some((header, body))) if header.request_id == 0 => {
                    break Some(match Response::decode(&header, body) {
                        Ok(Response::Error(error)) => shared.reason(error),
                        Ok(_) => shared.reason("protocol error: a reply to no request"),
                        Err(error) => shared.reason(format_args!("protocol error: {error}")),
                    });
                }
                Ok(Some((header, body))) => replies.push((header, body)),
                Ok(None) => break None,
                Err(error) => break Some(shared.reason(format_args!("protocol error: {error}"))),
            }
        };
        deliver(shared, &mut replies);
        if let Some(why) = end {
            return why;
        }
    }
}

/// Hands replies to their callers: one lock for all of a read, and nobody is woken under it.
fn deliver(shared: &Shared, replies: &mut Vec<(Header, Bytes)>) {
    let mut callers: [Option<oneshot::Sender<Answer>>; 64] = [const { None }; 64];
    while !replies.is_empty() {
        let count = replies.len().min(callers.len());
        let mut state = shared.lock();
        state.heard += 1;
        for (caller, (header, _)) in callers.iter_mut().zip(&replies[..count]) {
            *caller = state.vacate(header.request_id);
        }
        drop(state);
        for (caller, reply) in callers.iter_mut().zip(replies.drain(..count)) {
            if let Some(caller) = caller.take() {
                // A caller that gave up meanwhile needs no answer.
                let _ = caller.send(Ok(reply));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{HEADER_BYTES, Opcode, Request, RequestHead};
    use tokio::io::DuplexStream;
    use tokio::sync::mpsc;

    /// Gives out pipes and hands their far ends to the test.
    struct Pipe(mpsc::UnboundedSender<DuplexStream>);

    impl Connector for Pipe {
        fn connect<'a>(&'a self, _address: &'a str) -> Connecting<'a> {
            Box::pin(async move {
                let (near, far) = tokio::io::duplex(256);
                self.0.send(far).expect("the test holds the other end");
                let (read, write) = tokio::io::split(near);
                Ok((Box::new(read) as ReadHalf, Box::new(write) as WriteHalf))
            })
        }
    }

    struct Fixture {
        link: Arc<Link>,
        far_ends: mpsc::UnboundedReceiver<DuplexStream>,
    }

    fn fixture(pipeline: usize) -> Fixture {
        let (sender, far_ends) = mpsc::unbounded_channel();
        let link = Link::open("test:1".into(), Arc::new(Pipe(sender)), Duration::from_secs(1), pipeline);
        Fixture { link: Arc::new(link), far_ends }
    }

    fn in_one_second() -> Instant {
        Instant::now() + Duration::from_secs(1)
    }

    fn ping(link: &Arc<Link>) -> tokio::task::JoinHandle<Answer> {
        let link = link.clone();
        tokio::spawn(async move {
            link.call(in_one_second(), |request_id, out| {
                Request::Ping.encode(&RequestHead { request_id, ..RequestHead::default() }, out);
            })
            .await
        })
    }

    async fn next_request(far: &mut DuplexStream) -> u64 {
        let mut header = [0; HEADER_BYTES];
        far.read_exact(&mut header).await.unwrap();
        Header::decode(&header).unwrap().request_id
    }

    async fn pong(far: &mut DuplexStream, request_id: u64) {
        let mut out = Vec::new();
        Response::Pong.encode(Opcode::Ping as u8, request_id, 0, &mut out);
        far.write_all(&out).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn answers_find_their_callers_in_any_order() {
        let mut fixture = fixture(8);
        let calls: Vec<_> = (0..5).map(|_| ping(&fixture.link)).collect();
        let mut far = fixture.far_ends.recv().await.unwrap();
        let mut ids = Vec::new();
        for _ in 0..5 {
            ids.push(next_request(&mut far).await);
        }
        for &id in ids.iter().rev() {
            assert_ne!(id, 0);
            pong(&mut far, id).await;
        }
        for (call, id) in calls.into_iter().zip(ids) {
            assert_eq!(call.await.unwrap().unwrap().0.request_id, id);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_answer_does_not_reach_the_next_in_the_slot() {
        let mut fixture = fixture(1);
        let first = ping(&fixture.link);
        let mut far = fixture.far_ends.recv().await.unwrap();
        let late = next_request(&mut far).await;
        assert_eq!(first.await.unwrap().unwrap_err().loss, Loss::Silent);

        let second = ping(&fixture.link);
        let id = next_request(&mut far).await;
        assert_eq!(id & u64::from(u32::MAX), late & u64::from(u32::MAX), "the same slot");
        pong(&mut far, late).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(!second.is_finished());
        pong(&mut far, id).await;
        assert_eq!(second.await.unwrap().unwrap().0.request_id, id);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_given_to_the_socket_was_not_sent() {
        let mut fixture = fixture(100);
        // The pipe holds 256 bytes: the first batch of ten pings is written in part and waits, the next gathers.
        let first: Vec<_> = (0..10).map(|_| ping(&fixture.link)).collect();
        let far = fixture.far_ends.recv().await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        let second: Vec<_> = (0..10).map(|_| ping(&fixture.link)).collect();
        tokio::time::sleep(Duration::from_millis(1)).await;
        drop(far);
        for call in first {
            assert_eq!(call.await.unwrap().unwrap_err().loss, Loss::Broken);
        }
        for call in second {
            assert_eq!(call.await.unwrap().unwrap_err().loss, Loss::Unsent);
        }
        assert!(!fixture.link.is_usable());
        let refused = ping(&fixture.link).await.unwrap().unwrap_err();
        assert_eq!(refused.loss, Loss::Unsent, "a lost connection takes nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_pipeline_makes_callers_wait() {
        let mut fixture = fixture(2);
        let calls: Vec<_> = (0..3).map(|_| ping(&fixture.link)).collect();
        let mut far = fixture.far_ends.recv().await.unwrap();
        let first = next_request(&mut far).await;
        next_request(&mut far).await;
        let third = tokio::time::timeout(Duration::from_millis(10), next_request(&mut far)).await;
        assert!(third.is_err(), "only two are under way");
        pong(&mut far, first).await;
        next_request(&mut far).await;
        drop(far);
        let answered = {
            let mut answered = 0;
            for call in calls {
                answered += usize::from(call.await.unwrap().is_ok());
            }
            answered
        };
        assert_eq!(answered, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_makes_a_connection_unusable_but_slowness_does_not() {
        let mut fixture = fixture(8);
        let slow = ping(&fixture.link);
        let mut far = fixture.far_ends.recv().await.unwrap();
        next_request(&mut far).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        // Another request is answered while the first waits in vain: the server lives.
        let other = ping(&fixture.link);
        let id = next_request(&mut far).await;
        pong(&mut far, id).await;
        other.await.unwrap().unwrap();
        slow.await.unwrap().unwrap_err();
        assert!(fixture.link.is_usable());

        ping(&fixture.link).await.unwrap().unwrap_err();
        assert!(!fixture.link.is_usable(), "nothing was heard for a whole time-out");
    }

    #[tokio::test(start_paused = true)]
    async fn dropping_the_link_closes_the_connection() {
        let mut fixture = fixture(8);
        let mut far = fixture.far_ends.recv().await.unwrap();
        drop(fixture.link);
        assert_eq!(far.read(&mut [0; 1]).await.unwrap(), 0);
    }
}

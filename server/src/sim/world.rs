//! [`SimWorld`]: the simulator's side of the seam.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use terrane_ocssd::SimMedia;

use super::Inner;
use super::executor::{Event, EventKey};
use super::network::{Attempt, EndId, ListenerId};
use crate::seam::{Bell, ByteReader, ByteWriter, Closer, Doorbell, Listener, Time, World};

/// The world as one life of one simulated node sees it.
///
/// When that life ends (see [`super::Simulation::kill`]), its tasks are gone, and what is asked of the
/// world afterwards does nothing or fails: a handle cannot reach into the node's next life.
#[derive(Clone)]
pub struct SimWorld {
    inner: Rc<Inner>,
    node: u32,
    life: u64,
}

impl std::fmt::Debug for SimWorld {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimWorld(node {}, life {})", self.node, self.life)
    }
}

impl SimWorld {
    pub(super) fn new(inner: Rc<Inner>, node: u32, life: u64) -> Self {
        Self { inner, node, life }
    }

    /// The number of the node.
    pub fn node(&self) -> u32 {
        self.node
    }

    fn check_alive(&self) -> io::Result<()> {
        if self.inner.is_alive(self.node, self.life) {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::NetworkDown, "this life of the node is over"))
        }
    }

    fn halves(&self, id: EndId) -> (SimReader, SimWriter) {
        let end = Rc::new(OpenEnd { inner: self.inner.clone(), id });
        (SimReader { end: end.clone() }, SimWriter { end })
    }
}

impl World for SimWorld {
    type Media = SimMedia;
    type Reader = SimReader;
    type Writer = SimWriter;
    type Listener = SimListener;
    type Doorbell = SimDoorbell;

    fn now(&self) -> Time {
        Time(self.inner.clock_of(self.node).shown(self.inner.executor.now()))
    }

    fn sleep_until(&self, at: Time) -> impl Future<Output = ()> + 'static {
        Timer { inner: self.inner.clone(), due: Due::Shown(self.node, at.0), key: None }
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        if self.inner.is_alive(self.node, self.life) {
            self.inner.executor.spawn(self.node, task);
        }
    }

    fn random(&self) -> u64 {
        self.inner.executor.random()
    }

    fn unix_ms(&self) -> u64 {
        self.inner.unix_ms(self.node)
    }

    async fn listen(&self, addr: SocketAddr, shared: bool) -> io::Result<SimListener> {
        self.check_alive()?;
        let (id, addr) = self.inner.listen(self.node, addr, shared)?;
        Ok(SimListener { world: self.clone(), id, addr })
    }

    async fn connect(&self, addr: SocketAddr) -> io::Result<(SimReader, SimWriter)> {
        self.check_alive()?;
        let there = self.inner.connect_delay(self.node, addr)?;
        pass(self.inner.clone(), there).await;
        self.check_alive()?;
        match self.inner.attempt(self.node, addr) {
            Attempt::Opened(id, back) => {
                // If this future is dropped now, the halves close what the other side has accepted.
                let halves = self.halves(id);
                pass(self.inner.clone(), back).await;
                Ok(halves)
            }
            Attempt::Refused(back) => {
                pass(self.inner.clone(), back).await;
                Err(io::ErrorKind::ConnectionRefused.into())
            }
            Attempt::Silence(timeout) => {
                pass(self.inner.clone(), timeout).await;
                Err(io::ErrorKind::TimedOut.into())
            }
        }
    }
}

/// Resolves after `nanos` of virtual time.
pub(super) fn pass(inner: Rc<Inner>, nanos: u64) -> impl Future<Output = ()> {
    let at = inner.executor.now().saturating_add(nanos);
    Timer { inner, due: Due::True(at), key: None }
}

/// A timer in virtual time. It leaves nothing behind when dropped.
struct Timer {
    inner: Rc<Inner>,
    due: Due,
    key: Option<EventKey>,
}

enum Due {
    /// When virtual time is this.
    True(u64),
    /// When the clock of this node shows this.
    Shown(u32, u64),
}

impl Future for Timer {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let executor = &self.inner.executor;
        let at = match self.due {
            Due::True(at) => at,
            // Asked anew each time, for the speed of the clock may have changed.
            Due::Shown(node, shown) => self.inner.clock_of(node).true_moment(shown),
        };
        if executor.now() >= at {
            return Poll::Ready(());
        }
        if let Some(key) = self.key
            && key.is_at(at)
            && executor.rewake(key, context.waker())
        {
            return Poll::Pending;
        }
        if let Some(key) = self.key {
            executor.cancel(key);
        }
        let key = executor.at(at, Event::Wake(context.waker().clone()));
        self.key = Some(key);
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.inner.executor.cancel(key);
        }
    }
}

/// A listening socket of a simulated node.
pub struct SimListener {
    world: SimWorld,
    id: ListenerId,
    addr: SocketAddr,
}

impl std::fmt::Debug for SimListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimListener({})", self.addr)
    }
}

impl Listener for SimListener {
    type Reader = SimReader;
    type Writer = SimWriter;

    async fn accept(&mut self) -> io::Result<(SimReader, SimWriter, SocketAddr)> {
        let inner = &self.world.inner;
        let accepted = std::future::poll_fn(|context| inner.poll_accept(self.id, context)).await;
        let (id, peer) = accepted?;
        let (reader, writer) = self.world.halves(id);
        Ok((reader, writer, peer))
    }

    fn local_addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        self.world.inner.close_listener(self.id);
    }
}

/// One end of a connection, held by its two halves.
struct OpenEnd {
    inner: Rc<Inner>,
    id: EndId,
}

impl Drop for OpenEnd {
    fn drop(&mut self) {
        self.inner.forget(self.id);
    }
}

/// The reading half of a simulated connection.
pub struct SimReader {
    end: Rc<OpenEnd>,
}

impl std::fmt::Debug for SimReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimReader({:?})", self.end.id)
    }
}

impl ByteReader for SimReader {
    async fn read(&mut self, mut buf: BytesMut) -> (io::Result<usize>, BytesMut) {
        assert!(buf.capacity() > buf.len(), "a read needs spare capacity");
        let end = &self.end;
        let result = std::future::poll_fn(|context| end.inner.poll_read(end.id, &mut buf, context)).await;
        (result, buf)
    }
}

/// The writing half of a simulated connection.
pub struct SimWriter {
    end: Rc<OpenEnd>,
}

impl std::fmt::Debug for SimWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimWriter({:?})", self.end.id)
    }
}

impl ByteWriter for SimWriter {
    type Closer = SimCloser;

    async fn write_all(&mut self, buf: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        let end = &self.end;
        let mut written = 0;
        let result =
            std::future::poll_fn(|context| end.inner.poll_write(end.id, &buf, &mut written, context)).await;
        (result, buf)
    }

    fn closer(&self) -> SimCloser {
        SimCloser { inner: self.end.inner.clone(), id: self.end.id }
    }
}

/// Closes a simulated connection from another task.
#[derive(Clone)]
pub struct SimCloser {
    inner: Rc<Inner>,
    id: EndId,
}

impl std::fmt::Debug for SimCloser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimCloser({:?})", self.id)
    }
}

impl Closer for SimCloser {
    fn close(&self) {
        self.inner.close(self.id);
    }
}

/// A doorbell between shards that share one thread.
#[derive(Debug, Default)]
pub struct SimDoorbell {
    bell: SimBell,
}

impl SimDoorbell {
    /// A doorbell that nobody has rung.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Doorbell for SimDoorbell {
    type Bell = SimBell;

    fn bell(&self) -> SimBell {
        self.bell.clone()
    }

    async fn wait(&mut self) {
        let door = &self.bell.door;
        std::future::poll_fn(|context| {
            *door.waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some(context.waker().clone());
            if door.rung.swap(false, Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// Rings a [`SimDoorbell`].
#[derive(Debug, Clone, Default)]
pub struct SimBell {
    door: Arc<Door>,
}

/// The seam asks for a bell that may be rung from any thread, so this one may, although none does.
#[derive(Debug, Default)]
struct Door {
    rung: AtomicBool,
    waiting: Mutex<Option<Waker>>,
}

impl Bell for SimBell {
    fn ring(&self) {
        self.door.rung.store(true, Ordering::SeqCst);
        let waiting = self.door.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waiting {
            waker.wake();
        }
    }
}

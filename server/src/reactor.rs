//! The real world of a shard: one pinned thread, one monoio runtime, one io_uring.
//!
//! - [`run_shard`] builds the runtime and runs the shard's future to its end; [`Reactor`] is its [`World`].
//! - The ring is set up with `SINGLE_ISSUER | DEFER_TASKRUN` where the kernel has them (6.1): completions
//!   are then reaped only when the runtime parks. **No task may stay ready for ever**, or I/O starves.
//! - The clock is `CLOCK_BOOTTIME`, which counts suspend. Timers run on `CLOCK_MONOTONIC`, which does not:
//!   after a suspend they fire late, never early.
//! - A [`Doorbell`] is an eventfd that is read through the ring; the ringing half is a plain `write` from
//!   any thread. (A waker of monoio must not leave its thread.)
//!
//! Which kind of [`Media`] the shard uses is the caller's choice; the reactor only carries the type.

use std::cell::UnsafeCell;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io::{self, Read};
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use monoio::buf::IoBufMut;
use monoio::io::{AsyncReadRent, AsyncWriteRentExt, OwnedReadHalf, OwnedWriteHalf, Splitable};
use monoio::net::{ListenerOpts, TcpListener, TcpStream};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{Shutdown, shutdown};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use terrane_ocssd::Media;

use crate::seam::{Bell, ByteReader, ByteWriter, Closer, Doorbell, Listener, Time, World};

/// The longest single sleep; longer ones are slept in parts (monoio's timer wheel spans about two years).
const SLEEP_MAX: Duration = Duration::from_secs(24 * 3600);

/// When TCP starts to ask a silent peer whether it is still there, how often, and how many answers may
/// stay out: a peer that vanished without a word is noticed after two minutes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_RETRIES: u32 = 4;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// The CPUs that this process may run on, ascending.
///
/// # Errors
/// What `sched_getaffinity` says.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect())
}

/// Makes the calling thread a shard: pins it to `cpu` if given, builds a runtime whose ring takes
/// `ring_entries` submissions at once (at least 256), and runs the future that `main` makes until it ends.
/// Tasks that the future spawned and that have not ended by then are never polled again.
///
/// # Errors
/// If the CPU is not available or io_uring is not.
pub fn run_shard<M, F>(
    cpu: Option<usize>,
    ring_entries: u32,
    main: impl FnOnce(Reactor<M>) -> F,
) -> io::Result<F::Output>
where
    M: Media,
    F: Future,
{
    if let Some(cpu) = cpu {
        pin_to(cpu)?;
    }
    let rng = seed_from_system()?;
    let mut builder = io_uring::IoUring::builder();
    builder.setup_single_issuer().setup_defer_taskrun();
    let mut runtime = match build_runtime(builder, ring_entries) {
        // An older kernel does not know the flags.
        Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => {
            build_runtime(io_uring::IoUring::builder(), ring_entries)
        }
        built => built,
    }
    .map_err(|error| explain_ring_failure(&error))?;
    let reactor = Reactor { rng: Rc::new(RefCell::new(rng)), media: PhantomData };
    Ok(runtime.block_on(main(reactor)))
}

type Runtime = monoio::Runtime<monoio::time::TimeDriver<monoio::IoUringDriver>>;

fn build_runtime(ring: io_uring::Builder, entries: u32) -> io::Result<Runtime> {
    monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
        .with_entries(entries)
        .uring_builder(ring)
        .enable_timer()
        .build()
}

fn explain_ring_failure(error: &io::Error) -> io::Error {
    let hint = match error.raw_os_error() {
        Some(nix::libc::ENOSYS) => "this kernel has no io_uring",
        Some(nix::libc::EPERM) => {
            "io_uring is forbidden here: see the sysctl kernel.io_uring_disabled, or the container's seccomp profile"
        }
        Some(nix::libc::ENOMEM) => "not enough locked memory: raise the limit (ulimit -l)",
        _ => "cannot set up io_uring",
    };
    io::Error::new(error.kind(), format!("{hint} ({error})"))
}

fn pin_to(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .map_err(io::Error::from)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot pin to CPU {cpu} ({error})")))
}

fn seed_from_system() -> io::Result<Pcg64Mcg> {
    let mut seed = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut seed)?;
    Ok(Pcg64Mcg::from_seed(seed))
}

/// The [`World`] of a shard that [`run_shard`] runs. Its operations work on that thread only.
pub struct Reactor<M> {
    rng: Rc<RefCell<Pcg64Mcg>>,
    media: PhantomData<fn() -> M>,
}

impl<M> Clone for Reactor<M> {
    fn clone(&self) -> Self {
        Self { rng: self.rng.clone(), media: PhantomData }
    }
}

impl<M> std::fmt::Debug for Reactor<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reactor")
    }
}

fn boot_time() -> Time {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has had this clock since 2.6.39");
    let seconds = u64::try_from(now.tv_sec()).expect("time since boot is not negative");
    let nanos = u64::try_from(now.tv_nsec()).expect("time since boot is not negative");
    Time(seconds * 1_000_000_000 + nanos)
}

impl<M: Media> World for Reactor<M> {
    type Media = M;
    type Reader = TcpReader;
    type Writer = TcpWriter;
    type Listener = TcpPort;
    type Doorbell = EventDoorbell;

    fn now(&self) -> Time {
        boot_time()
    }

    #[expect(clippy::manual_async_fn, reason = "an async fn would borrow the world")]
    fn sleep_until(&self, at: Time) -> impl Future<Output = ()> + 'static {
        async move {
            loop {
                let rest = at - boot_time();
                if rest.is_zero() {
                    return;
                }
                monoio::time::sleep(rest.min(SLEEP_MAX)).await;
            }
        }
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        // Dropping the handle lets the task run on by itself.
        drop(monoio::spawn(task));
    }

    fn random(&self) -> u64 {
        self.rng.borrow_mut().random()
    }

    fn unix_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    async fn listen(&self, addr: SocketAddr, shared: bool) -> io::Result<TcpPort> {
        let options = ListenerOpts::new().reuse_port(shared).reuse_addr(true).backlog(BACKLOG);
        let socket = TcpListener::bind_with_config(addr, &options).map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::AddrInUse => ": another process listens there",
                io::ErrorKind::AddrNotAvailable => ": no interface of this machine has that address",
                io::ErrorKind::PermissionDenied => ": ports below 1024 need a privilege",
                _ => "",
            };
            io::Error::new(error.kind(), format!("cannot listen on {addr}{hint} ({error})"))
        })?;
        let local = socket.local_addr()?;
        Ok(TcpPort { socket, local })
    }

    async fn connect(&self, addr: SocketAddr) -> io::Result<(TcpReader, TcpWriter)> {
        let stream = TcpStream::connect_addr(addr).await?;
        split(stream)
    }
}

fn split(stream: TcpStream) -> io::Result<(TcpReader, TcpWriter)> {
    stream.set_nodelay(true)?;
    stream.set_tcp_keepalive(Some(KEEPALIVE_IDLE), Some(KEEPALIVE_INTERVAL), Some(KEEPALIVE_RETRIES))?;
    let fd = stream.as_raw_fd();
    let (read_half, write_half) = stream.into_split();
    let closer = TcpCloser { fd, alive: Rc::downgrade(&write_half.0) };
    Ok((TcpReader { half: read_half }, TcpWriter { half: write_half, closer }))
}

/// A listening TCP socket.
pub struct TcpPort {
    socket: TcpListener,
    local: SocketAddr,
}

impl std::fmt::Debug for TcpPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TcpPort({})", self.local)
    }
}

impl Listener for TcpPort {
    type Reader = TcpReader;
    type Writer = TcpWriter;

    async fn accept(&mut self) -> io::Result<(TcpReader, TcpWriter, SocketAddr)> {
        let (stream, peer) = self.socket.accept().await?;
        let (reader, writer) = split(stream)?;
        Ok((reader, writer, peer))
    }

    fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

/// The reading half of a TCP connection.
#[derive(Debug)]
pub struct TcpReader {
    half: OwnedReadHalf<TcpStream>,
}

impl ByteReader for TcpReader {
    async fn read(&mut self, buf: BytesMut) -> (io::Result<usize>, BytesMut) {
        let (filled, capacity) = (buf.len(), buf.capacity());
        assert!(capacity > filled, "a read needs spare capacity");
        let (result, spare) = self.half.read(buf.slice_mut(filled..capacity)).await;
        (result, spare.into_inner())
    }
}

/// The writing half of a TCP connection.
#[derive(Debug)]
pub struct TcpWriter {
    half: OwnedWriteHalf<TcpStream>,
    closer: TcpCloser,
}

impl ByteWriter for TcpWriter {
    type Closer = TcpCloser;

    async fn write_all(&mut self, buf: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        let (result, buf) = self.half.write_all(buf).await;
        (result.map(drop), buf)
    }

    fn closer(&self) -> TcpCloser {
        self.closer.clone()
    }
}

/// Shuts a TCP connection down from another task.
#[derive(Debug, Clone)]
pub struct TcpCloser {
    fd: RawFd,
    /// Both halves hold the stream, and the stream holds the descriptor: while this is alive, `fd` has
    /// not been closed and given to something else.
    alive: Weak<UnsafeCell<TcpStream>>,
}

impl Closer for TcpCloser {
    fn close(&self) {
        if self.alive.strong_count() > 0 {
            // The peer may have closed it first, which is as good.
            let _ = shutdown(self.fd, Shutdown::Both);
        }
    }
}

/// A doorbell before it is hung up: made by the main thread, which deals out its bells, and moved into the
/// shard's thread, which opens it there.
#[derive(Debug)]
pub struct DoorbellKit {
    event: Arc<EventFd>,
}

impl DoorbellKit {
    /// A doorbell that nobody has rung.
    ///
    /// # Errors
    /// If the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { event: Arc::new(event) })
    }

    /// A bell of this door.
    pub fn bell(&self) -> EventBell {
        EventBell { event: self.event.clone() }
    }

    /// The doorbell of the shard whose thread this is. Rings so far are kept.
    ///
    /// # Errors
    /// If the process has no descriptor left.
    pub fn open(self) -> io::Result<EventDoorbell> {
        let file = std::fs::File::from(self.event.as_fd().try_clone_to_owned()?);
        let file = monoio::fs::File::from_std(file)?;
        let rung = Rc::new(Cell::new(false));
        let listening = Box::pin(listen_for_rings(file, rung.clone()));
        Ok(EventDoorbell { bell: self.bell(), rung, listening })
    }
}

/// Reads the eventfd again and again, and notes each time that somebody rang.
async fn listen_for_rings(event: monoio::fs::File, rung: Rc<Cell<bool>>) {
    let mut count = vec![0; 8];
    loop {
        let result;
        (result, count) = event.read_at(count, 0).await;
        let read = result.expect("an eventfd of our own can be read");
        assert_eq!(read, 8, "an eventfd gives its count as a whole");
        rung.set(true);
    }
}

/// A doorbell that waits on an eventfd through the shard's ring.
pub struct EventDoorbell {
    bell: EventBell,
    rung: Rc<Cell<bool>>,
    /// One read is always in flight, and stays so when a `wait` is dropped: so no ring is lost, and
    /// waiting allocates nothing.
    listening: Pin<Box<dyn Future<Output = ()>>>,
}

impl std::fmt::Debug for EventDoorbell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventDoorbell").field("bell", &self.bell).finish_non_exhaustive()
    }
}

impl Doorbell for EventDoorbell {
    type Bell = EventBell;

    fn bell(&self) -> EventBell {
        self.bell.clone()
    }

    async fn wait(&mut self) {
        std::future::poll_fn(|context| {
            // It never ends; it is polled to note rings and to leave our waker with the read in flight.
            let _ = self.listening.as_mut().poll(context);
            if self.rung.take() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// Rings an [`EventDoorbell`], from any thread.
#[derive(Debug, Clone)]
pub struct EventBell {
    event: Arc<EventFd>,
}

impl Bell for EventBell {
    fn ring(&self) {
        // It fails only if the count would overflow, and then the door has been rung often enough.
        let _ = self.event.write(1);
    }
}

#[cfg(test)]
mod tests;

//! The seam between shard logic and the world: time, spawn, randomness, network, media and doorbells.
//!
//! Shard logic is written once, over [`World`]. The reactor ([`crate::reactor`]) provides the world for
//! real; the simulator ([`crate::sim`]) provides it from a seed, in one thread and virtual time.
//!
//! Invariants:
//! - Everything here stays on one thread: no future is `Send`. Only a [`Bell`] may be rung from elsewhere.
//! - Buffers travel with the operation and come back with the result, as in [`Media`].
//! - A stream operation that is dropped before it resolves leaves its stream in an unknown place: whoever
//!   drops it must close the connection. So reads and writes live in tasks of their own, and are ended
//!   through a [`Closer`], never by dropping. Each function says so where it is otherwise.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

use bytes::BytesMut;
use terrane_ocssd::Media;

/// A moment on a node's monotonic clock, in nanoseconds since some fixed moment of that node (its boot).
///
/// The clock counts the time a machine spends suspended, so that a lease cannot outlive a nap. Moments of
/// different nodes cannot be compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// The earliest moment.
    pub const ZERO: Self = Self(0);
    /// A moment that never comes (584 years after the earliest).
    pub const MAX: Self = Self(u64::MAX);

    /// Nanoseconds since the clock's fixed moment.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Whole milliseconds since the clock's fixed moment.
    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000_000
    }

    /// How long after `earlier` this moment is; zero if it is not after.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    /// Saturates at [`Time::MAX`].
    fn add(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }
}

impl AddAssign<Duration> for Time {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub<Duration> for Time {
    type Output = Self;

    /// Saturates at [`Time::ZERO`].
    fn sub(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_sub(nanos))
    }
}

impl Sub for Time {
    type Output = Duration;

    /// As [`Time::since`]: zero if `earlier` is later.
    fn sub(self, earlier: Self) -> Duration {
        self.since(earlier)
    }
}

/// What a shard takes from outside itself. A cheap handle: clone it into every task.
#[expect(async_fn_in_trait, reason = "one thread per shard: futures are neither Send nor meant to be")]
pub trait World: Clone + 'static {
    /// One slice of a device.
    type Media: Media;
    /// The reading half of a connection.
    type Reader: ByteReader;
    /// The writing half of a connection.
    type Writer: ByteWriter;
    /// A listening socket.
    type Listener: Listener<Reader = Self::Reader, Writer = Self::Writer>;
    /// What the shard waits on when nothing is left to do.
    type Doorbell: Doorbell;

    /// The monotonic clock.
    fn now(&self) -> Time;

    /// Resolves at `at` or soon after it; at once if it has passed. Timers may be as coarse as a
    /// millisecond. May be dropped at any time.
    fn sleep_until(&self, at: Time) -> impl Future<Output = ()> + 'static;

    /// Runs `task` on this shard until it ends. It is never polled inside this call.
    fn spawn(&self, task: impl Future<Output = ()> + 'static);

    /// A uniformly distributed number. Not for secrets.
    fn random(&self) -> u64;

    /// Milliseconds since 1970 by the wall clock, which may jump either way: for stamps that people read
    /// and for expiry, never for leases or timeouts.
    fn unix_ms(&self) -> u64;

    /// Listens on `addr` (port 0: any free port, see [`Listener::local_addr`]).
    ///
    /// With `shared`, other listeners that also asked for it share the port (SO_REUSEPORT), and the
    /// system spreads connections over them. Without, a port that is taken gives
    /// [`io::ErrorKind::AddrInUse`].
    async fn listen(&self, addr: SocketAddr, shared: bool) -> io::Result<Self::Listener>;

    /// Opens a connection, without delay for small writes (TCP_NODELAY).
    ///
    /// It may take as long as the system's own connect timeout; race it with [`World::sleep_until`] for
    /// a shorter one. May be dropped at any time: the attempt is then given up.
    async fn connect(&self, addr: SocketAddr) -> io::Result<(Self::Reader, Self::Writer)>;

    /// Resolves `duration` from now, as [`World::sleep_until`].
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        self.sleep_until(self.now() + duration)
    }
}

/// A listening socket; closed when dropped. Connections already accepted live on.
#[expect(async_fn_in_trait, reason = "one thread per shard: futures are neither Send nor meant to be")]
pub trait Listener: 'static {
    /// The reading half of an accepted connection.
    type Reader: ByteReader;
    /// The writing half of an accepted connection.
    type Writer: ByteWriter;

    /// Waits for the next connection, and gives its halves and the peer's address.
    ///
    /// **Not to be dropped** except to stop: a connection that arrived meanwhile may be lost, half open.
    /// An error may be about one connection (it was reset before it was taken) or about the process (no
    /// descriptors left): wait a little, then call again.
    async fn accept(&mut self) -> io::Result<(Self::Reader, Self::Writer, SocketAddr)>;

    /// The address that is listened on, with the real port.
    fn local_addr(&self) -> SocketAddr;
}

/// The reading half of a connection. Dropping it alone does not close the connection.
#[expect(async_fn_in_trait, reason = "one thread per shard: futures are neither Send nor meant to be")]
pub trait ByteReader: 'static {
    /// Appends at least one byte to `buf`, at most what fits its spare capacity, and gives how many;
    /// 0 means that the peer, or our own [`Closer`], ended the stream. After an error or an end the
    /// connection is of no more use.
    ///
    /// **Not to be dropped**: bytes would be lost. End it through a [`Closer`].
    ///
    /// # Panics
    /// If `buf` has no spare capacity: reserve first.
    async fn read(&mut self, buf: BytesMut) -> (io::Result<usize>, BytesMut);
}

/// The writing half of a connection. When both halves are dropped the connection is closed.
#[expect(async_fn_in_trait, reason = "one thread per shard: futures are neither Send nor meant to be")]
pub trait ByteWriter: 'static {
    /// What closes the connection from another task.
    type Closer: Closer;

    /// Writes all of `buf`. Resolves when the system has taken the bytes, which says nothing of the
    /// peer; it waits as long as the peer does not read. After an error some of the bytes may have gone:
    /// the connection is of no more use.
    ///
    /// **Not to be dropped**: part of the bytes may go, or not. End it through a [`Closer`].
    async fn write_all(&mut self, buf: Vec<u8>) -> (io::Result<()>, Vec<u8>);

    /// Closes both directions at once, as [`Closer::close`].
    fn close(&mut self) {
        self.closer().close();
    }

    /// A handle that closes this connection from another task, for instance while a write is stuck. It
    /// does not keep the connection's socket usable by itself, and outliving both halves is harmless.
    fn closer(&self) -> Self::Closer;
}

/// Closes a connection whose halves are in use elsewhere.
pub trait Closer: Clone + 'static {
    /// Closes both directions at once: a read in flight ends (0 or an error), a write in flight fails.
    /// Closing twice is harmless.
    fn close(&self);
}

/// What a shard waits on when all its rings are empty. Owned by one task of the shard.
#[expect(async_fn_in_trait, reason = "one thread per shard: futures are neither Send nor meant to be")]
pub trait Doorbell: 'static {
    /// The half that others ring.
    type Bell: Bell;

    /// A bell of this door.
    fn bell(&self) -> Self::Bell;

    /// Resolves once the bell was rung since the last time this resolved; rings before that are
    /// remembered, many count as one. May resolve without a ring. May be dropped at any time: no ring is
    /// lost, though one may be reported twice.
    async fn wait(&mut self);
}

/// Rings a shard's doorbell, from any thread.
pub trait Bell: Clone + Send + Sync + 'static {
    /// Wakes the shard, now or when it next waits. Never blocks.
    fn ring(&self);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_saturates_instead_of_wrapping() {
        assert_eq!(Time(5) + Duration::from_nanos(7), Time(12));
        assert_eq!(Time(5) - Duration::from_nanos(7), Time::ZERO);
        assert_eq!(Time(5) - Time(7), Duration::ZERO);
        assert_eq!(Time(7) - Time(5), Duration::from_nanos(2));
        assert_eq!(Time::MAX + Duration::MAX, Time::MAX);
        assert_eq!(Time(1_999_999).as_millis(), 1);
    }
}

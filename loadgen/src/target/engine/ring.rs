//! The runtime of a shard's thread: one monoio, one io_uring, and what wakes it.
//!
//! - The ring is set up as the server's is ([`crate::ring`]): completions are reaped only when the runtime parks.
//! - [`Breath`] makes it park: operations that the cache answers never wait, and a thread full of them would reap no
//!   completion, flush nothing and serve nobody.
//! - [`Timers`] are timerfds read through the ring: monoio's own timers go by the millisecond.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::AsFd;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};

use crate::target::clock::arm;
use crate::target::engine::mesh::Post;

/// Operations that a shard has in flight, for the size of its ring; more are submitted in several calls.
const IN_FLIGHT: u32 = 512;

/// Runs a future on a runtime of this thread's own.
pub(super) fn run<T>(main: impl Future<Output = T>) -> anyhow::Result<T> {
    Ok(crate::ring::runtime(IN_FLIGHT)?.block_on(main))
}

/// A descriptor that gives a count of 8 bytes whenever something happened: an eventfd or a timerfd.
#[derive(Debug)]
struct Counting {
    file: monoio::fs::File,
    buf: Vec<u8>,
}

impl Counting {
    fn new(file: std::fs::File) -> io::Result<Self> {
        Ok(Counting { file: monoio::fs::File::from_std(file)?, buf: vec![0; 8] })
    }

    async fn happened(&mut self) -> io::Result<()> {
        loop {
            let (result, buf) = self.file.read_at(std::mem::take(&mut self.buf), 0).await;
            self.buf = buf;
            match result {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map(drop),
            }
        }
    }
}

/// The bell of this thread, as it hears it.
#[derive(Debug)]
pub(super) struct Door(Counting);

impl Door {
    /// Listens to the bell whose eventfd this is.
    pub(super) fn new(bell: std::fs::File) -> anyhow::Result<Door> {
        Ok(Door(Counting::new(bell).context("cannot listen to an eventfd")?))
    }

    /// Waits until the bell is or was rung. To be awaited to its end: a ring that a dropped wait had heard is lost.
    pub(super) async fn rung(&mut self) {
        self.0.happened().await.expect("an eventfd of our own can be read");
    }
}

/// Operations that a thread answers without waiting before it must park once. Parking costs about two system calls
/// (a few microseconds), an operation from memory about one microsecond: so parking takes a few percent, and what
/// waits in the ring waits at most some tens of microseconds longer.
const OPS_PER_BREATH: u32 = 64;

/// Lets the runtime park now and then.
#[derive(Debug, Default)]
pub(super) struct Breath {
    ops: Cell<u32>,
    taken: Cell<u64>,
    asked: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

impl Breath {
    /// To be awaited by each operation that was answered without waiting: waits for a breath if one is due.
    pub(super) async fn after_op(&self, own: &Post) {
        self.ops.set(self.ops.get() + 1);
        if self.ops.get() < OPS_PER_BREATH {
            return;
        }
        if !self.asked.replace(true) {
            own.ring();
        }
        let before = self.taken.get();
        std::future::poll_fn(|cx| {
            if self.taken.get() != before {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Something came out of the ring, so the runtime has just parked.
    pub(super) fn reaped(&self) {
        if !self.asked.get() {
            self.ops.set(0);
        }
    }

    /// The bell was heard: whoever waits may go on.
    pub(super) fn take(&self) {
        self.asked.set(false);
        self.ops.set(0);
        self.taken.set(self.taken.get() + 1);
        for waker in self.waiting.take() {
            waker.wake();
        }
    }
}

/// Precise timers; idle ones are kept for the next sleep.
#[derive(Debug, Default)]
pub(super) struct Timers {
    idle: RefCell<Vec<Timer>>,
}

#[derive(Debug)]
struct Timer {
    timer: TimerFd,
    fired: Counting,
}

impl Timer {
    fn new() -> io::Result<Timer> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)?;
        let file = timer.as_fd().try_clone_to_owned()?.into();
        Ok(Timer { timer, fired: Counting::new(file)? })
    }

    async fn sleep(&mut self, left: Duration) -> io::Result<()> {
        arm(&self.timer, left)?;
        self.fired.happened().await
    }
}

impl Timers {
    /// Waits until `at`.
    pub(super) async fn sleep_until(&self, at: Instant) {
        loop {
            let left = at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let idle = self.idle.borrow_mut().pop();
            // Without a descriptor to spare, the runtime's coarse timer is late but right.
            let Ok(mut timer) = idle.map_or_else(Timer::new, Ok) else {
                monoio::time::sleep(left).await;
                continue;
            };
            match timer.sleep(left).await {
                Ok(()) => self.idle.borrow_mut().push(timer),
                Err(_) => monoio::time::sleep(left).await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::join;

    #[test]
    fn sleeps_end_after_their_time_and_timers_are_used_again() {
        run(async {
            let timers = Timers::default();
            for us in [0, 1, 50, 700, 3_000] {
                let at = Instant::now() + Duration::from_micros(us);
                timers.sleep_until(at).await;
                assert!(Instant::now() >= at, "{us} µs");
            }
            assert_eq!(timers.idle.borrow().len(), 1);
            let at = Instant::now() + Duration::from_micros(500);
            join(timers.sleep_until(at), timers.sleep_until(at)).await;
            assert!(Instant::now() >= at);
            assert_eq!(timers.idle.borrow().len(), 2);
        })
        .unwrap();
    }
}

//! Waiting precisely: what targets offer as [`sleep_until`](super::Target::sleep_until).
//!
//! The timers of async runtimes go by the millisecond; a load of 10,000 operations a second has one every 100 µs. A
//! timerfd fires within the kernel's own precision, tens of microseconds.

use std::cell::RefCell;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::unix::AsyncFd;

/// Runs one load thread on a tokio runtime of its own.
pub(crate) fn on_tokio(load: impl Future<Output = ()>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime for a load thread")?;
    runtime.block_on(load);
    Ok(())
}

/// Precise timers of a thread that runs tokio: idle ones are kept for the next sleep.
#[derive(Debug, Default)]
pub(crate) struct TokioClock {
    idle: RefCell<Vec<AsyncFd<Timer>>>,
}

impl TokioClock {
    /// Waits until `at`.
    pub(crate) async fn sleep_until(&self, at: Instant) {
        let left = at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        let idle = self.idle.borrow_mut().pop();
        // Without a descriptor to spare, the runtime's coarse timer is late but right.
        let Some(timer) = idle.or_else(new_timer) else {
            return tokio::time::sleep_until(at.into()).await;
        };
        if arm(&timer.get_ref().0, left).is_err() || timer.readable().await.is_err() {
            return tokio::time::sleep_until(at.into()).await;
        }
        // Disarming takes the expiration with it: no read is needed before the next use.
        if let Ok(mut guard) = timer.readable().await {
            guard.clear_ready();
        }
        if timer.get_ref().0.unset().is_ok() {
            self.idle.borrow_mut().push(timer);
        }
    }
}

/// A timerfd that tokio can watch.
#[derive(Debug)]
struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

fn new_timer() -> Option<AsyncFd<Timer>> {
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC);
    // SAFETY: the descriptor is owned by the `Timer` that goes into the `AsyncFd`, and closed only with it.
    unsafe { AsyncFd::register(Timer(timer.ok()?)) }.ok()
}

/// Sets a timer to fire once, after `left` (not zero).
pub(crate) fn arm(timer: &TimerFd, left: Duration) -> nix::Result<()> {
    timer.set(Expiration::OneShot(TimeSpec::from_duration(left)), TimerSetTimeFlags::empty())
}

#[cfg(any(feature = "rocksdb", feature = "fjall"))]
/// Waits until `at` by blocking the thread: for targets whose calls block anyway, one worker a thread.
pub(crate) fn block_until(at: Instant) {
    std::thread::sleep(at.saturating_duration_since(Instant::now()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleeps_end_after_their_time_and_timers_are_used_again() {
        on_tokio(async {
            let clock = TokioClock::default();
            for us in [0, 1, 50, 700, 3_000] {
                let at = Instant::now() + Duration::from_micros(us);
                clock.sleep_until(at).await;
                assert!(Instant::now() >= at, "{us} µs");
            }
            assert_eq!(clock.idle.borrow().len(), 1);
            let at = Instant::now() + Duration::from_micros(500);
            tokio::join!(clock.sleep_until(at), clock.sleep_until(at));
            assert!(Instant::now() >= at);
            assert_eq!(clock.idle.borrow().len(), 2);
        })
        .unwrap();
    }
}

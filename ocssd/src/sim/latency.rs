//! How long operations take: yields, the delay hook, and what makes both longer.
//!
//! Invariants:
//! - A stall ends although nobody polls the operation at which it began: whoever waits for it drives it.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, Shared};
use rand::RngExt;

use super::faults::Fault;
use super::{Device, Operation, State};
use crate::geometry::ChunkId;

/// A spike makes an operation take this many times as long, at least and at most.
const SPIKE_FACTOR: std::ops::RangeInclusive<u32> = 4..=32;

/// A stall takes as long as this many operations of the kind at which it began.
const STALL_FACTOR: u32 = 100;

/// Pending so many times, waking itself.
struct Yields(u32);

impl Future for Yields {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.0 == 0 {
            return Poll::Ready(());
        }
        self.0 -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// A time in which the device does nothing.
pub(super) type Stall = Shared<LocalBoxFuture<'static, ()>>;

impl Device {
    /// Waits as the options and the faults say.
    pub(super) async fn pause(&self, operation: Operation, bytes: usize) {
        let (yields, repeats) = self.duration(&mut self.state.borrow_mut(), operation, bytes);
        Yields(yields).await;
        if let Some(delay) = &self.options.delay {
            for _ in 0..repeats {
                delay(operation, bytes).await;
            }
        }
        wait_while_stalled(&self.state).await;
    }

    /// The yields of an operation, and how many times its delay is to pass.
    fn duration(&self, state: &mut State, operation: Operation, bytes: usize) -> (u32, u32) {
        let yields = match self.options.yields_max {
            0 => 0,
            max => state.rng.random_range(0..=max),
        };
        if state.strikes(Fault::Stall) && state.stall.is_none() {
            state.faults.record(Fault::Stall, ChunkId(0), None);
            state.stall = Some(self.stall(operation, bytes));
        }
        if state.strikes(Fault::LatencySpike) {
            state.faults.record(Fault::LatencySpike, ChunkId(0), None);
            let factor = state.rng.random_range(SPIKE_FACTOR);
            return ((yields + 1) * factor, factor);
        }
        (yields, 1)
    }

    fn stall(&self, operation: Operation, bytes: usize) -> Stall {
        let yields = (self.options.yields_max + 1) * STALL_FACTOR;
        let delay = self.options.delay.clone();
        let pass = async move {
            Yields(yields).await;
            if let Some(delay) = delay {
                for _ in 0..STALL_FACTOR {
                    delay(operation, bytes).await;
                }
            }
        };
        pass.boxed_local().shared()
    }
}

async fn wait_while_stalled(state: &RefCell<State>) {
    loop {
        let Some(stall) = state.borrow().stall.clone() else { return };
        stall.await;
        // Another may have begun since.
        state.borrow_mut().stall.take_if(|stall| stall.peek().is_some());
    }
}

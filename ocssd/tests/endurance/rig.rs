//! What the driver needs of a kind of medium to send it through an endurance run.

use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use terrane_ocssd::Media;
use terrane_ocssd::sim::Injected;

/// What a kind of medium promises beyond [`Media`], or less.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Promises {
    /// It knows its write pointers after a start.
    pub(crate) tracks_pointers: bool,
    /// What is not promised is right all the same if it is below a write pointer after a cut: what was covered, and
    /// what is above all that was covered. Otherwise it may be anything.
    pub(crate) no_holes: bool,
    /// What was acknowledged as volatile survives the death of the host's process, if the power stays.
    pub(crate) restart_keeps_volatile: bool,
    /// A flush covers the resets that completed before it.
    pub(crate) flush_covers_resets: bool,
    /// A chunk that was open comes back open. Otherwise it may come back closed.
    pub(crate) keeps_open: bool,
    /// What outlived one power cut outlives the next, though it be among the last `mw_cunits` sectors of an open chunk.
    /// `media.rs` does not ask for that: what recovered an open chunk may move it to where it is not programmed yet.
    pub(crate) keeps_survivors: bool,
    /// [`Rig::take_faults`] tells every fault. Otherwise chunks may fail, close and die without a word in it, which they
    /// may not take as an excuse for losing what is durable.
    pub(crate) tells_faults: bool,
}

/// A medium, its power switch, and the record of what was done to it.
pub(crate) trait Rig {
    type Media: Media;

    /// The medium in its present life.
    fn media(&self) -> Rc<Self::Media>;

    fn promises(&self) -> Promises;

    /// Cuts the power at the `n`-th operation of the device from now, at the latest in its middle.
    fn crash_after(&mut self, n: u64);

    fn power_cut(&mut self);

    /// Opens the medium again after power was lost.
    fn power_on(&mut self);

    /// The host's process dies and opens the medium again.
    fn restart(&mut self);

    /// The faults that struck since the last call **and that this medium may show its host**, oldest first.
    fn take_faults(&mut self) -> Vec<Injected>;
}

/// Polls until ready: simulated media wake themselves, so polling again is all that waking does.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
}

pub(crate) fn poll_once<T>(future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

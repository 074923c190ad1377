//! What the driver needs of a kind of medium to send it through an endurance run.

use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use terrane_ocssd::Media;
use terrane_ocssd::sim::Injected;

/// Polls after which an operation counts as one that never ends. The longest that any medium here takes is a stall of
/// some thousand polls.
pub(crate) const POLLS_MAX: u32 = 1_000_000;

/// What a kind of medium promises beyond [`Media`], or less.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Promises {
    /// It knows its write pointers after a start.
    pub(crate) tracks_pointers: bool,
    /// A chunk that is finished may be padded, and a cut may leave it anywhere on the way to its end.
    pub(crate) pads: bool,
    /// [`Rig::take_faults`] tells every fault, with its chunk. Otherwise chunks may fail, close and die without a word
    /// in it, which they may not take as an excuse for losing what is durable.
    pub(crate) tells_faults: bool,
    /// It is a volume: see [`VolumePromises`]. Its faults are its device's, and their chunks say nothing here.
    pub(crate) volume: Option<VolumePromises>,
}

/// What a volume promises beyond [`Media`]:
///
/// - whatever was written can be read at once, and while other writes are in flight;
/// - a durable write is durable with all that is below it in its line;
/// - a reset is durable when it resolves;
/// - opening it flushes what the process before left in the device.
///
/// And less: what waits in its memory for the rest of a stripe unit goes with the host, and a line whose members a cut
/// left uneven comes back closed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct VolumePromises {
    /// Members of a line.
    pub(crate) width: u32,
    /// Sectors of a stripe unit.
    pub(crate) unit_sectors: u32,
    /// The device hides sectors of open chunks, whether or not it protects them.
    pub(crate) device_hides: bool,
}

impl VolumePromises {
    /// The member of its line that a sector is on.
    pub(crate) fn member_of(&self, sector: u32) -> u32 {
        sector / self.unit_sectors % self.width
    }
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

    /// The host's process dies and opens the medium again. If power goes meanwhile, that is among the faults.
    fn restart(&mut self);

    /// The faults that struck since the last call, oldest first.
    fn take_faults(&mut self) -> Vec<Injected>;
}

/// Polls until ready: simulated media wake themselves, so polling again is all that waking does.
///
/// # Panics
/// If it never is.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    for _ in 0..POLLS_MAX {
        if let Poll::Ready(value) = poll_once(future.as_mut()) {
            return value;
        }
    }
    panic!("it waits for something that never comes");
}

pub(crate) fn poll_once<T>(future: Pin<&mut (impl Future<Output = T> + ?Sized)>) -> Poll<T> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
#[should_panic(expected = "it waits for something that never comes")]
fn a_hang_is_a_failure() {
    block_on(std::future::pending::<()>());
}

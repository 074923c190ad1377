//! Time: a virtual clock that stands still until everything waits for it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use terrane_ocssd::flash::{FlashClock, NandTiming};
use terrane_ocssd::{AlignedBuf, ChunkId, Durability, FlashMedia, FlashOptions, Media};

use crate::harness::{POLLS_MAX, SECTOR, device, filled, plain};

const PROGRAM: Duration = Duration::from_micros(700);
const SENSE: Duration = Duration::from_micros(60);
const ERASE: Duration = Duration::from_millis(5);
/// A unit of 4 sectors on the channel.
const TRANSFER: Duration = Duration::from_micros(2);

#[derive(Clone, Default)]
struct VirtualTime {
    now: Rc<Cell<Duration>>,
    sleepers: Rc<RefCell<BTreeSet<Duration>>>,
}

impl VirtualTime {
    fn clock(&self) -> FlashClock {
        let (time, sleeping) = (self.clone(), self.clone());
        FlashClock {
            now: Rc::new(move || time.now.get()),
            sleep_until: Rc::new(move |until| {
                let time = sleeping.clone();
                Box::pin(poll_fn(move |_| {
                    if time.now.get() >= until {
                        return Poll::Ready(());
                    }
                    time.sleepers.borrow_mut().insert(until);
                    Poll::Pending
                })) as Pin<Box<dyn Future<Output = ()>>>
            }),
        }
    }

    /// Runs the future, and returns how long it took.
    fn run<T>(&self, future: impl Future<Output = T>) -> (T, Duration) {
        let begun = self.now.get();
        let mut future = pin!(future);
        for _ in 0..POLLS_MAX {
            if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return (value, self.now.get() - begun);
            }
            let next = self.sleepers.borrow_mut().pop_first().expect("something waits for the clock");
            self.now.set(self.now.get().max(next));
        }
        panic!("it waits for something that never comes");
    }
}

/// Chunks 0 to 3 are in unit 0, 4 to 7 in unit 1 of the same group, 8 to 11 in unit 0 of the other.
fn timed() -> (FlashMedia, VirtualTime) {
    let bytes_per_s = (4 * SECTOR) as u64 * 1_000_000 / TRANSFER.as_micros() as u64;
    let timing = NandTiming {
        read_page: SENSE,
        program_page: PROGRAM,
        erase: ERASE,
        channel_bytes_per_s: bytes_per_s,
        planes: 1,
    };
    let time = VirtualTime::default();
    let device = device(FlashOptions { timing: Some(timing), ..plain() });
    (device.slice(0, 1).unwrap().with_clock(time.clock()), time)
}

/// Runs two futures at once.
async fn both<A, B>(first: impl Future<Output = A>, second: impl Future<Output = B>) -> (A, B) {
    let (mut first, mut second) = (Box::pin(first), Box::pin(second));
    let (mut a, mut b) = (None, None);
    poll_fn(|context| {
        if a.is_none()
            && let Poll::Ready(value) = first.as_mut().poll(context)
        {
            a = Some(value);
        }
        if b.is_none()
            && let Poll::Ready(value) = second.as_mut().poll(context)
        {
            b = Some(value);
        }
        if a.is_some() && b.is_some() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    (a.unwrap(), b.unwrap())
}

async fn write(media: &FlashMedia, chunk: u32, sectors: u32) {
    media.write(ChunkId(chunk), 0, filled(sectors, 1), Durability::Volatile).await.0.unwrap();
}

/// Fails without the schedule of units: both would take as long as one.
#[test]
fn two_writes_to_one_unit_take_twice_and_to_two_units_once() {
    let once = TRANSFER + PROGRAM;
    let (media, time) = timed();
    assert_eq!(time.run(write(&media, 0, 4)).1, once);
    let (media, time) = timed();
    assert_eq!(time.run(both(write(&media, 0, 4), write(&media, 1, 4))).1, 2 * once, "one unit");
    let (media, time) = timed();
    assert_eq!(time.run(both(write(&media, 0, 4), write(&media, 8, 4))).1, once, "two groups");
    let (media, time) = timed();
    assert_eq!(time.run(both(write(&media, 0, 4), write(&media, 4, 4))).1, once + TRANSFER, "one channel");
}

#[test]
fn everything_takes_its_time() {
    let (media, time) = timed();
    assert_eq!(time.run(write(&media, 0, 16)).1, 4 * (TRANSFER + PROGRAM));
    let read = media.read(ChunkId(0), 3, AlignedBuf::zeroed(2 * SECTOR));
    assert_eq!(time.run(read).1, 2 * SENSE + TRANSFER / 2, "two pages are touched");
    assert_eq!(time.run(media.reset(ChunkId(0))).1, ERASE);
    assert_eq!(time.run(media.flush()).1, Duration::ZERO);
}

#[test]
fn a_read_waits_for_the_erase_before_it() {
    let (media, time) = timed();
    time.run(write(&media, 1, 4));
    let read = async |chunk: u32| media.read(ChunkId(chunk), 0, AlignedBuf::zeroed(SECTOR)).await.0.unwrap();
    let waited = time.run(both(async { media.reset(ChunkId(0)).await.unwrap() }, read(1))).1;
    assert_eq!(waited, ERASE + SENSE + TRANSFER / 4);
}

#[test]
fn without_a_clock_no_time_passes() {
    let (media, time) = timed();
    let media = media.device();
    media.restart();
    let media = media.slice(0, 1).unwrap();
    assert_eq!(time.run(write(&media, 0, 4)).1, Duration::ZERO);
}

#[test]
fn a_device_is_idle_when_its_power_returns() {
    let (media, time) = timed();
    let mut erase = Box::pin(media.reset(ChunkId(0)));
    time.run(poll_fn(|context| {
        assert!(erase.as_mut().poll(context).is_pending());
        Poll::Ready(())
    }));
    media.power_on();
    assert_eq!(time.run(write(&media, 1, 4)).1, TRANSFER + PROGRAM);
}

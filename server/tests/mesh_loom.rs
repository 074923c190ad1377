//! Every interleaving of the mesh's park and wake protocol, by loom, over the very source of the server.
//!
//! The rings are modelled by what the protocol needs of them: a counter that a push raises with release
//! and a look reads with acquire. A lost wake-up shows as a consumer that waits for ever, which loom
//! reports as a deadlock.

// The alias that `parker.rs` takes its atomics from.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicBool, Ordering, fence};
}

#[path = "../src/mesh/parker.rs"]
#[expect(unreachable_pub, reason = "the file is the library's, where it is public")]
mod parker;

use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use parker::Parker;

/// Remembers rings, as an eventfd does.
struct Door {
    rung: Mutex<bool>,
    wake: Condvar,
}

impl Door {
    fn new() -> Self {
        Self { rung: Mutex::new(false), wake: Condvar::new() }
    }

    fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.wake.notify_one();
    }

    fn wait(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.wake.wait(rung).unwrap();
        }
        *rung = false;
    }
}

/// `producers` threads push `pushes` messages each into a ring of their own; the consumer ends when it has
/// seen all of them.
fn exchange(producers: usize, pushes: usize) {
    let parker = Arc::new(Parker::new());
    let door = Arc::new(Door::new());
    let rings: Vec<_> = (0..producers).map(|_| Arc::new(AtomicUsize::new(0))).collect();
    let threads: Vec<_> = rings
        .iter()
        .cloned()
        .map(|ring| {
            let (parker, door) = (parker.clone(), door.clone());
            thread::spawn(move || {
                for pushed in 1..=pushes {
                    ring.store(pushed, Ordering::Release);
                    if parker.must_ring() {
                        door.ring();
                    }
                }
            })
        })
        .collect();
    // As `MeshEnd::wait`: look, say that we park, look again, sleep.
    let seen = || rings.iter().map(|ring| ring.load(Ordering::Acquire)).sum::<usize>();
    let mut taken = 0;
    while taken < producers * pushes {
        while seen() == taken {
            parker.prepare_park();
            if seen() == taken {
                door.wait();
            }
            parker.unpark();
        }
        taken = seen();
    }
    for thread in threads {
        thread.join().unwrap();
    }
}

fn model(preemptions: Option<usize>, body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.check(body);
}

#[test]
fn no_wake_up_is_lost_with_one_producer() {
    model(Some(3), || exchange(1, 2));
}

#[test]
fn no_wake_up_is_lost_with_two_producers() {
    model(Some(2), || exchange(2, 1));
}

#[test]
fn of_two_producers_that_see_one_parking_only_one_rings() {
    model(None, || {
        let parker = Arc::new(Parker::new());
        parker.prepare_park();
        let other = parker.clone();
        let thread = thread::spawn(move || other.must_ring());
        let here = parker.must_ring();
        let there = thread.join().unwrap();
        assert!(here ^ there);
    });
}

/// The handshake alone: one push against one parking. Gives true if in some interleaving the consumer saw
/// no message and the producer saw no parking, which is the lost wake-up.
fn handshake_can_miss<P: Handshake>() -> bool {
    let missed = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let outcome = missed.clone();
    model(None, move || {
        let (parker, ring) = (Arc::new(P::default()), Arc::new(AtomicUsize::new(0)));
        let (its_parker, its_ring) = (parker.clone(), ring.clone());
        let producer = thread::spawn(move || {
            its_ring.store(1, Ordering::Release);
            its_parker.must_ring()
        });
        parker.prepare_park();
        let seen = ring.load(Ordering::Acquire) == 1;
        let rang = producer.join().unwrap();
        outcome.fetch_or(!seen && !rang, std::sync::atomic::Ordering::Relaxed);
    });
    missed.load(std::sync::atomic::Ordering::Relaxed)
}

trait Handshake: Default + Send + Sync + 'static {
    fn prepare_park(&self);
    fn must_ring(&self) -> bool;
}

impl Handshake for Parker {
    fn prepare_park(&self) {
        Self::prepare_park(self);
    }
    fn must_ring(&self) -> bool {
        Self::must_ring(self)
    }
}

/// The same handshake without its fences.
#[derive(Default)]
struct Fenceless(AtomicBool);

impl Handshake for Fenceless {
    fn prepare_park(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
    fn must_ring(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[test]
fn the_fences_are_what_prevents_a_lost_wake_up() {
    assert!(!handshake_can_miss::<Parker>());
    assert!(handshake_can_miss::<Fenceless>(), "or the model proves nothing");
}

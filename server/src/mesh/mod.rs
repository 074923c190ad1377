//! The mesh: how the shards of one node talk. Messages are moved through rings; nothing is shared.
//!
//! Each ordered pair of shards (a shard and itself included) has two single-producer single-consumer
//! rings, one for requests and one for the replies that travel the other way; the main thread has one
//! control ring to every shard.
//!
//! ```text
//!   shard 0                                  shard 1
//!   try_send ──────── requests 0→1 ────────▶ recv_request
//!   recv_reply ◀───── replies  1→0 ───────── reply
//! ```
//!
//! Invariants:
//! - A consumer never waits for a push: [`MeshEnd::reply`] cannot fail, because each request reserved the
//!   slot of its reply when it was sent. Credit to a shard = capacity − requests sent to it whose reply was
//!   not yet taken, so neither ring can be full while the rule is kept, and no cycle of shards can wait for
//!   each other.
//! - Each request is answered exactly once.
//! - Between two shards requests arrive in the order they were sent; replies in the order they were given.
//! - A sleeping shard is woken through its bell only if it said that it sleeps ([`parker`]).

pub mod parker;

mod sync {
    pub(super) use std::sync::atomic::{AtomicBool, Ordering, fence};
}

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use rtrb::{Consumer, Producer, PushError, RingBuffer};

use self::parker::Parker;
use crate::notify::Notify;
use crate::seam::{Bell, Doorbell};

/// Control messages that may wait for one shard. The main thread sends few.
const CONTROL_CAPACITY: usize = 16;

/// The mesh of a node, before its ends go where they belong.
#[derive(Debug)]
pub struct Mesh<Req, Rep, Ctl, B> {
    /// One per shard, by shard number, to be moved into its thread.
    pub ends: Vec<MeshEnd<Req, Rep, Ctl, B>>,
    /// For the main thread.
    pub control: ControlEnd<Ctl, B>,
}

impl<Req, Rep, Ctl, B: Bell> Mesh<Req, Rep, Ctl, B> {
    /// Builds the mesh of as many shards as there are `bells`: `bells[i]` rings shard `i`. `capacity`
    /// bounds the unanswered requests from one shard to another.
    ///
    /// # Panics
    /// If `capacity` is zero.
    pub fn new(capacity: usize, bells: &[B]) -> Self {
        assert!(capacity > 0, "a mesh without capacity carries nothing");
        let shards = bells.len();
        let parkers: Vec<_> = bells.iter().map(|_| Arc::new(Parker::new())).collect();
        // grid[from][to]; taken apart below, where each end gets its row of producers and column of consumers.
        let mut requests = Grid::new(shards, capacity);
        let mut replies = Grid::new(shards, capacity);
        let mut control_ends = Vec::with_capacity(shards);
        let mut ends = Vec::with_capacity(shards);
        for shard in 0..shards {
            let (control_out, control_in) = RingBuffer::new(CONTROL_CAPACITY);
            control_ends.push(ControlLink {
                ring: control_out,
                wake: Wake { parker: parkers[shard].clone(), bell: bells[shard].clone() },
            });
            let links = (0..shards)
                .map(|other| Link {
                    wake: Wake { parker: parkers[other].clone(), bell: bells[other].clone() },
                    requests_out: RefCell::new(requests.producer(shard, other)),
                    requests_in: RefCell::new(requests.consumer(other, shard)),
                    replies_out: RefCell::new(replies.producer(shard, other)),
                    replies_in: RefCell::new(replies.consumer(other, shard)),
                    unanswered: Cell::new(0),
                    owed: Cell::new(0),
                    credit: Notify::new(),
                })
                .collect();
            ends.push(MeshEnd {
                shard,
                capacity,
                parker: parkers[shard].clone(),
                links,
                control: RefCell::new(control_in),
                next_request: Cell::new(0),
                next_reply: Cell::new(0),
            });
        }
        Self { ends, control: ControlEnd { links: control_ends } }
    }
}

/// One shard's end of the mesh. It belongs to one thread and takes `&self` everywhere: keep it in an `Rc`.
#[derive(Debug)]
pub struct MeshEnd<Req, Rep, Ctl, B> {
    shard: usize,
    capacity: usize,
    parker: Arc<Parker>,
    /// By shard number.
    links: Vec<Link<Req, Rep, B>>,
    control: RefCell<Consumer<Ctl>>,
    /// Where the next look for a request starts, so that a busy shard cannot starve the others.
    next_request: Cell<usize>,
    next_reply: Cell<usize>,
}

/// What a shard holds of another one.
#[derive(Debug)]
struct Link<Req, Rep, B> {
    wake: Wake<B>,
    requests_out: RefCell<Producer<Req>>,
    requests_in: RefCell<Consumer<Req>>,
    replies_out: RefCell<Producer<Rep>>,
    replies_in: RefCell<Consumer<Rep>>,
    /// Requests sent there whose reply was not taken yet: at most the capacity.
    unanswered: Cell<usize>,
    /// Requests taken from there that were not replied to yet.
    owed: Cell<usize>,
    /// Called when a reply gives its credit back.
    credit: Notify,
}

#[derive(Debug)]
struct Wake<B> {
    parker: Arc<Parker>,
    bell: B,
}

impl<B: Bell> Wake<B> {
    /// To be called after a push into one of the consumer's rings.
    fn after_push(&self) {
        if self.parker.must_ring() {
            self.bell.ring();
        }
    }
}

impl<Req, Rep, Ctl, B: Bell> MeshEnd<Req, Rep, Ctl, B> {
    /// The number of this shard.
    pub fn shard(&self) -> usize {
        self.shard
    }

    /// How many shards the node has.
    pub fn shards(&self) -> usize {
        self.links.len()
    }

    /// How many more requests may be sent to shard `to` before a reply comes back from it.
    pub fn credit(&self, to: usize) -> usize {
        self.capacity - self.links[to].unanswered.get()
    }

    /// Sends a request to shard `to`, which owes one reply. Without credit it comes straight back: keep it
    /// until a reply was received, or wait with [`MeshEnd::credit_returned`].
    pub fn try_send(&self, to: usize, request: Req) -> Result<(), Req> {
        let link = &self.links[to];
        if link.unanswered.get() == self.capacity {
            return Err(request);
        }
        match link.requests_out.borrow_mut().push(request) {
            Ok(()) => {}
            Err(PushError::Full(_)) => {
                unreachable!("a request ring is as large as the credit that guards it")
            }
        }
        link.unanswered.set(link.unanswered.get() + 1);
        link.wake.after_push();
        Ok(())
    }

    /// Resolves when a reply from shard `to` gave credit back, at once if it has done so since the last
    /// call resolved; check the credit again after it, for other tasks may have been faster. May be
    /// dropped at any time.
    pub async fn credit_returned(&self, to: usize) {
        self.links[to].credit.notified().await;
    }

    /// Answers one request that shard `to` sent.
    ///
    /// # Panics
    /// If shard `to` is owed no reply.
    pub fn reply(&self, to: usize, reply: Rep) {
        let link = &self.links[to];
        let owed = link.owed.get();
        assert!(owed > 0, "shard {to} is owed no reply");
        link.owed.set(owed - 1);
        match link.replies_out.borrow_mut().push(reply) {
            Ok(()) => {}
            Err(PushError::Full(_)) => unreachable!("a request reserved the slot of its reply"),
        }
        link.wake.after_push();
    }

    /// The next request, with the shard it came from and to which the reply is owed. Shards are served in
    /// turn.
    pub fn recv_request(&self) -> Option<(usize, Req)> {
        let (from, request) = take_in_turn(&self.links, &self.next_request, |link| &link.requests_in)?;
        let owed = &self.links[from].owed;
        owed.set(owed.get() + 1);
        Some((from, request))
    }

    /// The next reply, with the shard that gave it; this returns the credit of its request.
    ///
    /// # Panics
    /// If that shard replied to something it was not asked.
    pub fn recv_reply(&self) -> Option<(usize, Rep)> {
        let (from, reply) = take_in_turn(&self.links, &self.next_reply, |link| &link.replies_in)?;
        let link = &self.links[from];
        let unanswered = link.unanswered.get();
        assert!(unanswered > 0, "shard {from} replied to something it was not asked");
        link.unanswered.set(unanswered - 1);
        link.credit.notify_one();
        Some((from, reply))
    }

    /// The next message of the main thread.
    pub fn recv_control(&self) -> Option<Ctl> {
        self.control.borrow_mut().pop().ok()
    }

    /// True if the end of shard `to` was dropped: it will answer nothing more.
    pub fn is_gone(&self, to: usize) -> bool {
        self.links[to].requests_out.borrow().is_abandoned()
    }

    /// Resolves when there is something to receive, at once if there is already. `doorbell` is this
    /// shard's own. To be awaited by one task at a time; may be dropped at any time, no wake-up is lost.
    pub async fn wait<D: Doorbell<Bell = B>>(&self, doorbell: &mut D) {
        while self.is_empty() {
            self.parker.prepare_park();
            if self.is_empty() {
                doorbell.wait().await;
            }
            self.parker.unpark();
        }
    }

    /// True if no ring holds anything for this shard. The next moment it may.
    pub fn is_empty(&self) -> bool {
        self.control.borrow().is_empty()
            && self
                .links
                .iter()
                .all(|link| link.requests_in.borrow().is_empty() && link.replies_in.borrow().is_empty())
    }
}

/// Takes one message, looking first at the link after the one that was served last.
fn take_in_turn<Req, Rep, B, T>(
    links: &[Link<Req, Rep, B>],
    next: &Cell<usize>,
    ring: impl Fn(&Link<Req, Rep, B>) -> &RefCell<Consumer<T>>,
) -> Option<(usize, T)> {
    let start = next.get();
    let order = (start..links.len()).chain(0..start);
    for from in order {
        if let Ok(message) = ring(&links[from]).borrow_mut().pop() {
            next.set((from + 1) % links.len());
            return Some((from, message));
        }
    }
    None
}

/// The main thread's end: one control ring to every shard.
#[derive(Debug)]
pub struct ControlEnd<Ctl, B> {
    /// By shard number.
    links: Vec<ControlLink<Ctl, B>>,
}

#[derive(Debug)]
struct ControlLink<Ctl, B> {
    ring: Producer<Ctl>,
    wake: Wake<B>,
}

impl<Ctl, B: Bell> ControlEnd<Ctl, B> {
    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.links.len()
    }

    /// Sends `message` to shard `to`, and wakes it. It comes back if the shard is behind by many messages
    /// or has ended.
    pub fn send(&mut self, to: usize, message: Ctl) -> Result<(), Ctl> {
        let link = &mut self.links[to];
        if link.ring.is_abandoned() {
            return Err(message);
        }
        link.ring.push(message).map_err(|PushError::Full(message)| message)?;
        link.wake.after_push();
        Ok(())
    }
}

/// The two ends of a ring, until they are given out.
type Ring<T> = (Option<Producer<T>>, Option<Consumer<T>>);

/// A ring for each ordered pair, whose two ends are given out once.
struct Grid<T> {
    shards: usize,
    rings: Vec<Ring<T>>,
}

impl<T> Grid<T> {
    fn new(shards: usize, capacity: usize) -> Self {
        let rings = (0..shards * shards)
            .map(|_| {
                let (producer, consumer) = RingBuffer::new(capacity);
                (Some(producer), Some(consumer))
            })
            .collect();
        Self { shards, rings }
    }

    fn producer(&mut self, from: usize, to: usize) -> Producer<T> {
        self.rings[from * self.shards + to].0.take().expect("one producer per ring")
    }

    fn consumer(&mut self, from: usize, to: usize) -> Consumer<T> {
        self.rings[from * self.shards + to].1.take().expect("one consumer per ring")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Debug, Clone, Default)]
    struct CountingBell(Arc<AtomicUsize>);

    impl Bell for CountingBell {
        fn ring(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl CountingBell {
        fn rings(&self) -> usize {
            self.0.load(Ordering::Relaxed)
        }
    }

    type End = MeshEnd<u32, String, &'static str, CountingBell>;

    fn build(shards: usize, capacity: usize) -> Mesh<u32, String, &'static str, CountingBell> {
        let bells: Vec<_> = (0..shards).map(|_| CountingBell::default()).collect();
        Mesh::new(capacity, &bells)
    }

    #[test]
    fn ends_may_move_to_their_threads() {
        fn is_send<T: Send>() {}
        is_send::<End>();
        is_send::<ControlEnd<u32, CountingBell>>();
    }

    #[test]
    fn a_request_reserves_the_slot_of_its_reply() {
        let Mesh { ends, .. } = build(2, 2);
        let (a, b) = (&ends[0], &ends[1]);
        assert_eq!(a.credit(1), 2);
        assert_eq!(a.try_send(1, 10), Ok(()));
        assert_eq!(a.try_send(1, 11), Ok(()));
        assert_eq!(a.try_send(1, 12), Err(12), "no credit");
        assert_eq!(b.recv_request(), Some((0, 10)));
        assert_eq!(b.recv_request(), Some((0, 11)));
        assert_eq!(a.try_send(1, 12), Err(12), "taken is not answered");
        b.reply(0, "ten".into());
        b.reply(0, "eleven".into());
        assert_eq!(a.credit(1), 0, "answered is not taken");
        assert_eq!(a.recv_reply(), Some((1, "ten".into())));
        assert_eq!(a.credit(1), 1);
        assert_eq!(a.try_send(1, 12), Ok(()));
        assert_eq!(a.recv_reply(), Some((1, "eleven".into())));
        assert_eq!(a.recv_reply(), None);
        assert_eq!(b.credit(0), 2, "the other direction has credit of its own");
    }

    #[test]
    #[should_panic(expected = "owed no reply")]
    fn a_reply_nobody_asked_for_is_our_bug() {
        let Mesh { ends, .. } = build(2, 2);
        ends[1].reply(0, "what?".into());
    }

    #[test]
    fn a_busy_shard_does_not_starve_the_others() {
        let Mesh { ends, .. } = build(3, 4);
        for request in 0..4 {
            ends[0].try_send(2, request).unwrap();
        }
        ends[1].try_send(2, 100).unwrap();
        ends[2].try_send(2, 200).unwrap();
        let order: Vec<_> = std::iter::from_fn(|| ends[2].recv_request()).collect();
        assert_eq!(order, [(0, 0), (1, 100), (2, 200), (0, 1), (0, 2), (0, 3)]);
    }

    #[test]
    fn the_bell_rings_only_for_a_parked_shard_and_once() {
        let bells = [CountingBell::default(), CountingBell::default()];
        let Mesh { ends, mut control } = Mesh::<u32, u32, u32, _>::new(4, &bells);
        ends[0].try_send(1, 1).unwrap();
        assert_eq!(bells[1].rings(), 0, "awake");
        ends[1].parker.prepare_park();
        ends[0].try_send(1, 2).unwrap();
        control.send(1, 3).unwrap();
        assert_eq!(bells[1].rings(), 1, "parked: the first of two rings");
        ends[1].parker.prepare_park();
        control.send(1, 4).unwrap();
        assert_eq!(bells[1].rings(), 2);
        assert_eq!(bells[0].rings(), 0);
    }

    #[test]
    fn an_ended_shard_is_seen() {
        let Mesh { mut ends, mut control } = build(2, 4);
        let last = ends.pop().unwrap();
        assert!(!ends[0].is_gone(1));
        assert_eq!(control.send(1, "stop"), Ok(()));
        assert_eq!(last.recv_control(), Some("stop"));
        drop(last);
        assert!(ends[0].is_gone(1));
        assert_eq!(control.send(1, "again"), Err("again"));
    }

    #[test]
    fn threads_exchange_everything_in_order() {
        const MESSAGES: u32 = 20_000;
        /// A door that parks the thread, so that this test needs no runtime.
        struct ThreadDoor(std::sync::mpsc::Receiver<()>, ThreadBell);
        #[derive(Clone)]
        struct ThreadBell(std::sync::mpsc::Sender<()>);
        impl Bell for ThreadBell {
            fn ring(&self) {
                // The door is gone when its thread has finished, and then needs no wake-up.
                let _ = self.0.send(());
            }
        }
        impl Doorbell for ThreadDoor {
            type Bell = ThreadBell;
            fn bell(&self) -> ThreadBell {
                self.1.clone()
            }
            async fn wait(&mut self) {
                self.0.recv().expect("this door holds a bell itself");
            }
        }
        let doors: Vec<_> = (0..3)
            .map(|_| {
                let (sender, receiver) = std::sync::mpsc::channel();
                ThreadDoor(receiver, ThreadBell(sender))
            })
            .collect();
        let bells: Vec<_> = doors.iter().map(Doorbell::bell).collect();
        let Mesh { ends, .. } = Mesh::<u32, u32, (), _>::new(8, &bells);
        // Shards 0 and 1 ask shard 2, which answers with the double.
        let threads: Vec<_> = ends
            .into_iter()
            .zip(doors)
            .map(|(end, mut door)| {
                std::thread::spawn(move || {
                    let (mut sent, mut answered, mut served) = (0, 0, 0);
                    let asks = end.shard() < 2;
                    while if asks { answered < MESSAGES } else { served < 2 * MESSAGES } {
                        while asks && sent < MESSAGES && end.try_send(2, sent).is_ok() {
                            sent += 1;
                        }
                        while let Some((from, request)) = end.recv_request() {
                            end.reply(from, 2 * request);
                            served += 1;
                        }
                        while let Some((_, reply)) = end.recv_reply() {
                            assert_eq!(reply, 2 * answered);
                            answered += 1;
                        }
                        let done = if asks { answered == MESSAGES } else { served == 2 * MESSAGES };
                        if !done && (!asks || sent == MESSAGES || end.credit(2) == 0) {
                            let mut wait = std::pin::pin!(end.wait(&mut door));
                            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
                            assert!(wait.as_mut().poll(&mut context).is_ready());
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    }
}

//! How the shards of the embedded store talk: one ring for requests and one for replies per ordered pair of threads,
//! and an eventfd for a thread that sleeps. The same protocol as between the shards of a server (`server/src/mesh`).
//!
//! Invariants:
//! - Nobody waits for a push: a request is sent only with credit, which reserves the slot of its reply. Credit towards
//!   a shard = capacity − requests sent to it whose reply was not taken yet; so neither ring can be full, and no
//!   circle of shards can wait for each other.
//! - A sleeping shard is rung for only if it said that it sleeps. It says so and **then** looks at its rings again; the
//!   sender pushes and **then** looks whether it said so. A full fence between the two steps on either side rules out
//!   that both look too early (Dekker's handshake), so a message never lies in the ring of a shard that nobody rings.
//! - A shard that has ended says so after its last reply, and rings everyone. Whoever sees that takes the replies that
//!   are left and gives the rest up, so that a dead shard costs errors and hangs nobody.

use std::cell::{Cell, RefCell};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::task::Waker;

use anyhow::Context;
use nix::sys::eventfd::{EfdFlags, EventFd};
use rtrb::{Consumer, Producer, RingBuffer};

/// Unanswered requests from one shard to another, at most.
pub(super) const CAPACITY: usize = 1024;

/// How a shard's thread is woken, and what it tells the others of itself.
#[derive(Debug)]
pub(super) struct Post {
    bell: EventFd,
    sleeps: AtomicBool,
    gone: AtomicBool,
}

impl Post {
    fn new() -> anyhow::Result<Post> {
        let bell =
            EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC).context("cannot make an eventfd")?;
        Ok(Post { bell, sleeps: AtomicBool::new(false), gone: AtomicBool::new(false) })
    }

    /// Wakes the thread, whether it sleeps or not.
    pub(super) fn ring(&self) {
        // It fails only if the count would overflow, and then it was rung often enough.
        let _ = self.bell.write(1);
    }

    /// After a push: wakes the thread if it said that it sleeps. Of several senders one rings.
    fn after_push(&self) {
        fence(Ordering::SeqCst);
        let sleeps = self.sleeps.load(Ordering::Relaxed)
            && self.sleeps.compare_exchange(true, false, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if sleeps {
            self.ring();
        }
    }
}

/// What all shards of one phase share.
#[derive(Debug)]
pub(super) struct Crew {
    posts: Vec<Arc<Post>>,
    /// Shards whose own load has not ended.
    loaded: AtomicU32,
}

impl Crew {
    /// The way to wake a shard.
    pub(super) fn post(&self, shard: usize) -> &Arc<Post> {
        &self.posts[shard]
    }

    /// Whether no shard has load of its own any more.
    pub(super) fn all_unloaded(&self) -> bool {
        self.loaded.load(Ordering::Acquire) == 0
    }

    fn ring_all(&self) {
        self.posts.iter().for_each(|post| post.ring());
    }
}

/// Builds the mesh of so many shards; each end goes to its thread. `Ask` is what is asked, `Reply` what is answered.
pub(super) fn mesh<Ask, Reply>(shards: usize, capacity: usize) -> anyhow::Result<Vec<End<Ask, Reply>>> {
    let posts = (0..shards).map(|_| Ok(Arc::new(Post::new()?))).collect::<anyhow::Result<Vec<_>>>()?;
    let crew = Arc::new(Crew { posts, loaded: AtomicU32::new(shards as u32) });
    let mut ends: Vec<End<Ask, Reply>> = (0..shards)
        .map(|me| End {
            me,
            crew: crew.clone(),
            links: Vec::with_capacity(shards),
            capacity,
            loaded: Cell::new(true),
        })
        .collect();
    // Link by link: `a`'s to `b`, and `b`'s to `a`. Both are in the place of the other's number.
    for a in 0..shards {
        for b in a..shards {
            let (one, other) = Link::pair(if a == b { 1 } else { capacity });
            ends[a].links.push(one);
            if a != b {
                ends[b].links.push(other);
            }
        }
    }
    Ok(ends)
}

/// A shard's end of the rings between it and one other.
#[derive(Debug)]
struct Link<Ask, Reply> {
    asks_out: RefCell<Producer<Tagged<Ask>>>,
    asks_in: RefCell<Consumer<Tagged<Ask>>>,
    replies_out: RefCell<Producer<Tagged<Reply>>>,
    replies_in: RefCell<Consumer<Tagged<Reply>>>,
    /// Requests sent whose reply was not taken.
    unanswered: Cell<usize>,
    /// Tasks that wait for credit.
    waiting: RefCell<Vec<Waker>>,
    /// The other side is gone, and it was dealt with.
    given_up: Cell<bool>,
}

/// A message and the number of the slot that waits for its answer.
#[derive(Debug)]
struct Tagged<T> {
    slot: u32,
    message: T,
}

impl<Ask, Reply> Link<Ask, Reply> {
    fn pair(capacity: usize) -> (Self, Self) {
        let (asks_a, asks_b) = (RingBuffer::new(capacity), RingBuffer::new(capacity));
        let (replies_a, replies_b) = (RingBuffer::new(capacity), RingBuffer::new(capacity));
        let link = |asks_out, asks_in, replies_out, replies_in| Link {
            asks_out: RefCell::new(asks_out),
            asks_in: RefCell::new(asks_in),
            replies_out: RefCell::new(replies_out),
            replies_in: RefCell::new(replies_in),
            unanswered: Cell::new(0),
            waiting: RefCell::default(),
            given_up: Cell::new(false),
        };
        (
            link(asks_a.0, asks_b.1, replies_a.0, replies_b.1),
            link(asks_b.0, asks_a.1, replies_b.0, replies_a.1),
        )
    }
}

/// What came from another shard.
#[derive(Debug)]
pub(super) enum Received<Ask, Reply> {
    /// A request, to be answered with [`End::reply`].
    Ask { from: usize, slot: u32, ask: Ask },
    /// The reply to the request of this slot.
    Reply { slot: u32, reply: Reply },
    /// The shard has ended: it will answer nothing more.
    Gone { shard: usize },
}

/// One shard's end of the mesh. Dropping it tells the others that the shard is gone.
#[derive(Debug)]
pub(super) struct End<Ask, Reply> {
    me: usize,
    crew: Arc<Crew>,
    links: Vec<Link<Ask, Reply>>,
    capacity: usize,
    loaded: Cell<bool>,
}

impl<Ask, Reply> End<Ask, Reply> {
    /// This shard's number.
    pub(super) fn me(&self) -> usize {
        self.me
    }

    /// How many shards there are.
    pub(super) fn shards(&self) -> usize {
        self.links.len()
    }

    /// What all shards share.
    pub(super) fn crew(&self) -> &Arc<Crew> {
        &self.crew
    }

    /// Whether a request can be sent now: `None` if that shard is gone.
    pub(super) fn has_credit(&self, to: usize) -> Option<bool> {
        let gone = self.crew.posts[to].gone.load(Ordering::Acquire);
        (!gone).then(|| self.links[to].unanswered.get() < self.capacity)
    }

    /// Wakes this task when there may be credit for `to` again, or `to` is gone.
    pub(super) fn wait_for_credit(&self, to: usize, waker: &Waker) {
        self.links[to].waiting.borrow_mut().push(waker.clone());
    }

    /// Sends a request. Its reply comes with the same slot.
    ///
    /// # Panics
    /// Without credit ([`End::has_credit`]).
    pub(super) fn ask(&self, to: usize, slot: u32, ask: Ask) {
        let link = &self.links[to];
        assert!(link.unanswered.get() < self.capacity, "a request needs credit");
        link.unanswered.set(link.unanswered.get() + 1);
        let pushed = link.asks_out.borrow_mut().push(Tagged { slot, message: ask });
        assert!(pushed.is_ok(), "the ring is as large as the credit");
        self.crew.posts[to].after_push();
    }

    /// Answers a request, exactly once.
    pub(super) fn reply(&self, to: usize, slot: u32, reply: Reply) {
        let pushed = self.links[to].replies_out.borrow_mut().push(Tagged { slot, message: reply });
        assert!(pushed.is_ok(), "the request reserved the slot of its reply");
        self.crew.posts[to].after_push();
    }

    /// Takes what has come from shard `from`, one message: replies first, they free what others wait for.
    pub(super) fn receive(&self, from: usize) -> Option<Received<Ask, Reply>> {
        let link = &self.links[from];
        // Read before the ring: what a shard that is gone has left there was there before it said so.
        let gone = !link.given_up.get() && self.crew.posts[from].gone.load(Ordering::Acquire);
        let reply = link.replies_in.borrow_mut().pop();
        if let Ok(Tagged { slot, message: reply }) = reply {
            link.unanswered.set(link.unanswered.get() - 1);
            self.wake_waiting(from);
            return Some(Received::Reply { slot, reply });
        }
        if gone {
            link.given_up.set(true);
            self.wake_waiting(from);
            return Some(Received::Gone { shard: from });
        }
        let ask = link.asks_in.borrow_mut().pop();
        ask.ok().map(|Tagged { slot, message: ask }| Received::Ask { from, slot, ask })
    }

    fn wake_waiting(&self, shard: usize) {
        let waiting = &self.links[shard].waiting;
        if !waiting.borrow().is_empty() {
            for waker in waiting.take() {
                waker.wake();
            }
        }
    }

    /// "I sleep". True if the shard may wait for its bell; false if something is there already: it must not wait.
    pub(super) fn prepare_sleep(&self) -> bool {
        let sleeps = &self.crew.posts[self.me].sleeps;
        sleeps.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.links.iter().all(|link| link.asks_in.borrow().is_empty() && link.replies_in.borrow().is_empty())
    }

    /// "I am awake". A sender that saw it asleep may still ring.
    pub(super) fn wake_up(&self) {
        self.crew.posts[self.me].sleeps.store(false, Ordering::Relaxed);
    }

    /// This shard's own load has ended; when that is true of all, everyone is rung. Says so only once.
    pub(super) fn unload(&self) {
        if self.loaded.replace(false) && self.crew.loaded.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.crew.ring_all();
        }
    }

    /// The doorbell of this shard, to be read through its own runtime's ring.
    pub(super) fn bell_file(&self) -> std::io::Result<std::fs::File> {
        Ok(self.crew.posts[self.me].bell.as_fd().try_clone_to_owned()?.into())
    }
}

impl<Ask, Reply> Drop for End<Ask, Reply> {
    fn drop(&mut self) {
        self.unload();
        self.crew.posts[self.me].gone.store(true, Ordering::Release);
        self.crew.ring_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type TestEnd = End<u32, String>;

    fn ends(shards: usize, capacity: usize) -> Vec<TestEnd> {
        mesh(shards, capacity).unwrap()
    }

    fn rings(end: &TestEnd) -> u64 {
        // Blocks when nobody rang: one ring more, taken off again, avoids that.
        end.crew.post(end.me).ring();
        end.crew.post(end.me).bell.read().unwrap() - 1
    }

    #[test]
    fn links_join_each_pair() {
        let ends = ends(3, 2);
        for from in 0..3 {
            for to in (0..3).filter(|to| *to != from) {
                ends[from].ask(to, 7, (10 * from + to) as u32);
                let Some(Received::Ask { from: who, slot: 7, ask }) = ends[to].receive(from) else {
                    panic!("{from} to {to}")
                };
                assert_eq!((who, ask), (from, (10 * from + to) as u32));
                ends[to].reply(from, 7, ask.to_string());
                let Some(Received::Reply { slot: 7, reply }) = ends[from].receive(to) else {
                    panic!("{to} to {from}")
                };
                assert_eq!(reply, (10 * from + to).to_string());
            }
        }
    }

    #[test]
    fn a_request_reserves_the_slot_of_its_reply() {
        let ends = ends(2, 2);
        ends[0].ask(1, 0, 10);
        ends[0].ask(1, 1, 11);
        assert_eq!(ends[0].has_credit(1), Some(false));
        for _ in 0..2 {
            let Some(Received::Ask { slot, ask, .. }) = ends[1].receive(0) else { panic!("it was asked") };
            ends[1].reply(0, slot, ask.to_string());
        }
        assert_eq!(ends[0].has_credit(1), Some(false), "answered is not taken");
        assert!(matches!(ends[0].receive(1), Some(Received::Reply { slot: 0, .. })));
        assert_eq!(ends[0].has_credit(1), Some(true));
    }

    #[test]
    fn the_bell_rings_only_for_a_sleeper_and_once() {
        let ends = ends(3, 4);
        ends[0].ask(2, 0, 1);
        assert_eq!(rings(&ends[2]), 0, "awake");
        assert!(!ends[2].prepare_sleep(), "something is there");
        ends[0].ask(2, 1, 2);
        ends[1].ask(2, 1, 3);
        assert_eq!(rings(&ends[2]), 1, "the first of two");
        for from in [0, 0, 1] {
            assert!(matches!(ends[2].receive(from), Some(Received::Ask { .. })));
        }
        assert!(ends[2].prepare_sleep());
        ends[2].wake_up();
        ends[1].ask(2, 2, 4);
        assert_eq!(rings(&ends[2]), 0);
    }

    #[test]
    fn a_shard_that_ends_leaves_its_replies_and_is_seen_once() {
        let mut ends = ends(2, 4);
        let last = ends.pop().unwrap();
        ends[0].ask(1, 3, 1);
        ends[0].ask(1, 4, 2);
        assert!(last.receive(0).is_some());
        last.reply(0, 3, "one".to_owned());
        assert!(!ends[0].crew.all_unloaded());
        drop(last);
        assert_eq!(rings(&ends[0]), 1);
        assert_eq!(ends[0].has_credit(1), None);
        assert!(matches!(ends[0].receive(1), Some(Received::Reply { slot: 3, .. })));
        assert!(matches!(ends[0].receive(1), Some(Received::Gone { shard: 1 })));
        assert!(ends[0].receive(1).is_none());
        ends[0].unload();
        assert!(ends[0].crew.all_unloaded());
        assert_eq!(rings(&ends[0]), 1, "the last load ended");
    }
}

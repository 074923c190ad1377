//! The simulator's executor: tasks, virtual time, and the trace of every decision.
//!
//! Invariants:
//! - What runs next depends on the seed and on earlier decisions alone: no clock, thread, address or hash
//!   order has a part in it. Every decision goes into the trace hash.
//! - Nothing that belongs to the executor is borrowed while foreign code runs (a poll, a drop, an event).
//! - Time never stands still for ever: each poll costs a little, so a task that spins meets its deadline
//!   instead of hanging the test.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

/// What one poll of a task costs, in nanoseconds.
const POLL_COST_NS: RangeInclusive<u64> = 50..=1_000;

/// The task that `block_on` runs, which is not stored.
pub(super) const ROOT: TaskId = TaskId(0);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TaskId(u64);

/// A place in the queue of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EventKey {
    at: u64,
    sequence: u64,
}

impl EventKey {
    pub(super) fn is_at(self, at: u64) -> bool {
        self.at == at
    }
}

/// What happens at a moment. `C` is what a call is given.
pub(super) enum Event<C> {
    /// A timer rings.
    Wake(Waker),
    /// Something in the simulated world takes place.
    Call(Box<dyn FnOnce(&C)>),
}

/// Kinds of decisions in the trace.
#[derive(Clone, Copy)]
#[repr(u64)]
pub(super) enum Decision {
    Poll = 1,
    Event,
    Deliver,
    Connect,
    Cut,
    Heal,
    Death,
    Boot,
    Pause,
}

pub(super) struct Executor<C> {
    now: Cell<u64>,
    rng: RefCell<Pcg64Mcg>,
    trace: Cell<u64>,
    ready: ReadyList,
    tasks: RefCell<BTreeMap<TaskId, Task>>,
    /// Woken tasks of nodes that are paused.
    held: RefCell<BTreeMap<u32, Vec<TaskId>>>,
    events: RefCell<BTreeMap<EventKey, Event<C>>>,
    next_task: Cell<u64>,
    next_event: Cell<u64>,
}

type ReadyList = Arc<Mutex<Vec<TaskId>>>;
type TaskFuture = Pin<Box<dyn Future<Output = ()>>>;

struct Task {
    node: u32,
    /// Absent while it is being polled.
    future: Option<TaskFuture>,
    waker: Arc<TaskWaker>,
}

/// Wakers must be `Send`, although these never leave their thread.
struct TaskWaker {
    id: TaskId,
    queued: AtomicBool,
    ready: ReadyList,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            lock(&self.ready).push(self.id);
        }
    }
}

fn lock(ready: &ReadyList) -> MutexGuard<'_, Vec<TaskId>> {
    // A panic elsewhere leaves the list whole.
    ready.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the executor did, or could not do.
pub(super) enum Step {
    /// It polled a task or fired an event.
    Ran,
    /// It is the root task's turn; the caller polls it.
    RootTurn,
    /// Nothing is ready and nothing is due, ever.
    Idle,
}

impl<C> Executor<C> {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            now: Cell::new(0),
            rng: RefCell::new(Pcg64Mcg::seed_from_u64(seed)),
            trace: Cell::new(0xcbf2_9ce4_8422_2325),
            ready: ReadyList::default(),
            tasks: RefCell::default(),
            held: RefCell::default(),
            events: RefCell::default(),
            next_task: Cell::new(ROOT.0 + 1),
            next_event: Cell::new(0),
        }
    }

    /// Nanoseconds of virtual time since the simulation began.
    pub(super) fn now(&self) -> u64 {
        self.now.get()
    }

    pub(super) fn trace_hash(&self) -> u64 {
        self.trace.get()
    }

    /// Adds a decision to the trace.
    pub(super) fn note(&self, decision: Decision, detail: u64) {
        let mut hash = self.trace.get();
        for word in [decision as u64, self.now.get(), detail] {
            hash = (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29);
        }
        self.trace.set(hash);
    }

    pub(super) fn random(&self) -> u64 {
        self.rng.borrow_mut().random()
    }

    pub(super) fn random_in(&self, range: RangeInclusive<u64>) -> u64 {
        self.rng.borrow_mut().random_range(range)
    }

    /// True once in `n` times; never if `n` is 0.
    pub(super) fn one_in(&self, n: u32) -> bool {
        n > 0 && self.rng.borrow_mut().random_range(0..n) == 0
    }

    pub(super) fn task_count(&self) -> usize {
        self.tasks.borrow().len()
    }

    pub(super) fn spawn(&self, node: u32, future: impl Future<Output = ()> + 'static) {
        let id = TaskId(self.next_task.get());
        self.next_task.set(id.0 + 1);
        let waker = self.waker(id);
        let task = Task { node, future: Some(Box::pin(future)), waker: waker.clone() };
        self.tasks.borrow_mut().insert(id, task);
        waker.wake();
    }

    fn waker(&self, id: TaskId) -> Arc<TaskWaker> {
        Arc::new(TaskWaker { id, queued: AtomicBool::new(false), ready: self.ready.clone() })
    }

    /// The waker of the root task, already woken once.
    pub(super) fn root_waker(&self) -> RootWaker {
        let waker = self.waker(ROOT);
        waker.wake_by_ref();
        RootWaker(waker)
    }

    /// Drops all tasks of a node.
    pub(super) fn drop_tasks(&self, node: u32) {
        let dead: Vec<Task> = {
            let mut tasks = self.tasks.borrow_mut();
            tasks.extract_if(.., |_, task| task.node == node).map(|(_, task)| task).collect()
        };
        self.held.borrow_mut().remove(&node);
        drop(dead);
    }

    /// Drops all tasks and events, which hold the world that holds them.
    pub(super) fn clear(&self) {
        // A task may spawn another one when it is dropped.
        loop {
            let tasks = self.tasks.take();
            if tasks.is_empty() {
                break;
            }
            drop(tasks);
        }
        let events = self.events.take();
        drop(events);
    }

    pub(super) fn at(&self, at: u64, event: Event<C>) -> EventKey {
        let sequence = self.next_event.get();
        self.next_event.set(sequence + 1);
        let key = EventKey { at: at.max(self.now.get()), sequence };
        self.events.borrow_mut().insert(key, event);
        key
    }

    /// Takes an event back. It may have happened.
    pub(super) fn cancel(&self, key: EventKey) {
        let event = self.events.borrow_mut().remove(&key);
        drop(event);
    }

    /// Lets a pending timer wake another task; false if it has rung.
    pub(super) fn rewake(&self, key: EventKey, waker: &Waker) -> bool {
        match self.events.borrow_mut().get_mut(&key) {
            Some(Event::Wake(old)) => {
                old.clone_from(waker);
                true
            }
            _ => false,
        }
    }

    /// Queues again what was held back while the node was paused.
    pub(super) fn release(&self, node: u32) {
        let held = self.held.borrow_mut().remove(&node).unwrap_or_default();
        lock(&self.ready).extend(held);
    }

    /// Fires one due event, or else polls one ready task, or else lets time pass until the next event.
    pub(super) fn step(&self, context: &C, is_paused: impl Fn(u32) -> bool) -> Step {
        if self.fire_due(context) {
            return Step::Ran;
        }
        while let Some(id) = self.pick() {
            if id == ROOT {
                self.note(Decision::Poll, ROOT.0);
                self.charge_poll();
                return Step::RootTurn;
            }
            let Some(node) = self.tasks.borrow().get(&id).map(|task| task.node) else {
                continue;
            };
            if is_paused(node) {
                self.held.borrow_mut().entry(node).or_default().push(id);
                continue;
            }
            self.note(Decision::Poll, id.0);
            self.poll(id);
            self.charge_poll();
            return Step::Ran;
        }
        let Some(next) = self.events.borrow().keys().next().copied() else {
            return Step::Idle;
        };
        self.now.set(next.at);
        self.fire_due(context);
        Step::Ran
    }

    fn fire_due(&self, context: &C) -> bool {
        let event = {
            let mut events = self.events.borrow_mut();
            match events.first_entry() {
                Some(entry) if entry.key().at <= self.now.get() => entry.remove_entry(),
                _ => return false,
            }
        };
        let (key, event) = event;
        self.note(Decision::Event, key.sequence);
        match event {
            Event::Wake(waker) => waker.wake(),
            Event::Call(call) => call(context),
        }
        true
    }

    fn pick(&self) -> Option<TaskId> {
        let mut ready = lock(&self.ready);
        if ready.is_empty() {
            return None;
        }
        let chosen = self.rng.borrow_mut().random_range(0..ready.len());
        Some(ready.swap_remove(chosen))
    }

    fn poll(&self, id: TaskId) {
        let taken = self.tasks.borrow_mut().get_mut(&id).and_then(|task| {
            task.waker.queued.store(false, Ordering::Relaxed);
            Some((task.future.take()?, task.waker.clone()))
        });
        let Some((mut future, waker)) = taken else { return };
        let waker = Waker::from(waker);
        let poll = future.as_mut().poll(&mut Context::from_waker(&waker));
        let finished = {
            let mut tasks = self.tasks.borrow_mut();
            match (poll, tasks.get_mut(&id)) {
                (Poll::Pending, Some(task)) => {
                    task.future = Some(future);
                    return;
                }
                // It has ended, or its node has died while it ran.
                (_, _) => (tasks.remove(&id), future),
            }
        };
        drop(finished);
    }

    fn charge_poll(&self) {
        let cost = self.random_in(POLL_COST_NS);
        self.now.set(self.now.get() + cost);
    }
}

/// The waker of one `block_on`.
pub(super) struct RootWaker(Arc<TaskWaker>);

impl RootWaker {
    /// To be taken for each poll.
    pub(super) fn for_poll(&self) -> Waker {
        self.0.queued.store(false, Ordering::Relaxed);
        Waker::from(self.0.clone())
    }
}

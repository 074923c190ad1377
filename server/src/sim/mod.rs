//! The deterministic simulator: whole nodes in one thread, from a seed.
//!
//! A [`Simulation`] holds virtual time, the executor that chooses by the seed which ready task runs next,
//! a network with delays and cuts, and the media of every node. [`SimWorld`] is its side of the seam: the
//! same shard logic runs over it as over the reactor.
//!
//! ```
//! use std::time::Duration;
//! use terrane_server::seam::World;
//! use terrane_server::sim::Simulation;
//!
//! let sim = Simulation::new(42);
//! let world = sim.world(0);
//! sim.spawn(0, async move { world.sleep(Duration::from_secs(3600)).await });
//! sim.run_until(|| sim.tasks() == 0, Duration::from_secs(3601)).unwrap();
//! ```
//!
//! Invariants:
//! - The same seed and the same calls give the same run, bit by bit: [`Simulation::trace_hash`] says so.
//!   (What runs inside must keep to it too: no clock, no thread, no map that orders by a random hash.)
//! - A life of a node ends as a whole: all its tasks are dropped, its sockets and its media are gone.
//! - Each node has a clock of its own, from another offset, and drifting if told so.

mod clock;
mod executor;
mod network;
mod world;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use terrane_ocssd::sim::{DelayHook, Operation};
use terrane_ocssd::{Geometry, SimMedia, SimOptions};

use self::clock::DriftingClock;
use self::executor::{Decision, Event, Executor, Step};
use self::network::Network;
pub use self::network::NetworkOptions;
use self::world::pass;
pub use self::world::{SimBell, SimCloser, SimDoorbell, SimListener, SimReader, SimWorld, SimWriter};
use crate::seam::World;

/// What [`Simulation::block_on`] allows before it takes the simulation for stuck.
const BLOCK_ON_LIMIT: Duration = Duration::from_secs(3600);

/// The wall clock of every simulation begins here (milliseconds since 1970).
const UNIX_MS_AT_START: u64 = 1_750_000_000_000;

/// How far a node's wall clock may be off, in milliseconds.
const WALL_CLOCK_SKEW_MS: u64 = 250;

/// Why a run ended before what it waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Stalled {
    /// Nothing is ready and nothing is due: every task waits for another.
    #[error("simulation of seed {seed}: all {tasks} tasks wait for each other at {at:?}")]
    Idle {
        /// The seed that repeats it.
        seed: u64,
        /// Virtual time since the start.
        at: Duration,
        /// Tasks that exist.
        tasks: usize,
    },
    /// The virtual time that was allowed is over.
    #[error("simulation of seed {seed}: not there by {at:?}, with {tasks} tasks")]
    Deadline {
        /// The seed that repeats it.
        seed: u64,
        /// Virtual time since the start.
        at: Duration,
        /// Tasks that exist.
        tasks: usize,
    },
}

/// A simulated world of nodes. Nodes are numbered by whoever uses them and exist from their first use.
pub struct Simulation {
    inner: Rc<Inner>,
}

struct Inner {
    seed: u64,
    executor: Executor<Inner>,
    network: RefCell<Network>,
    nodes: RefCell<BTreeMap<u32, Node>>,
    /// What the duration of every media operation is multiplied by.
    media_slowness: Cell<u64>,
}

struct Node {
    /// Rises with every death.
    life: u64,
    power: Power,
    /// In virtual time; over if it has passed.
    paused_until: u64,
    clock: DriftingClock,
    wall_skew_ms: u64,
    media: Vec<SimMedia>,
}

/// Whether a node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Power {
    /// The process runs.
    Running,
    /// The process is dead; the machine answers that nobody is there.
    ProcessDead,
    /// The machine is dead: it answers nothing, and its media have no power.
    MachineDead,
}

impl Inner {
    fn with_node<R>(&self, node: u32, f: impl FnOnce(&mut Node) -> R) -> R {
        let mut nodes = self.nodes.borrow_mut();
        f(nodes.entry(node).or_insert_with(|| Node {
            life: 0,
            power: Power::Running,
            paused_until: 0,
            clock: self.fresh_clock(),
            wall_skew_ms: self.executor.random_in(0..=2 * WALL_CLOCK_SKEW_MS),
            media: Vec::new(),
        }))
    }

    /// A clock that has run since a boot some time ago.
    fn fresh_clock(&self) -> DriftingClock {
        let uptime = self.executor.random_in(1_000_000_000..=1_000_000_000_000);
        DriftingClock::new(self.executor.now(), uptime)
    }

    fn clock_of(&self, node: u32) -> DriftingClock {
        self.with_node(node, |node| node.clock)
    }

    fn unix_ms(&self, node: u32) -> u64 {
        let skew = self.with_node(node, |node| node.wall_skew_ms);
        UNIX_MS_AT_START + self.executor.now() / 1_000_000 + skew - WALL_CLOCK_SKEW_MS
    }

    fn is_alive(&self, node: u32, life: u64) -> bool {
        self.with_node(node, |node| node.life == life && node.power == Power::Running)
    }

    /// Whether the machine answers packets at all.
    fn answers(&self, node: u32) -> bool {
        self.with_node(node, |node| node.power != Power::MachineDead)
    }

    fn is_paused(&self, node: u32) -> bool {
        let now = self.executor.now();
        self.nodes.borrow().get(&node).is_some_and(|node| now < node.paused_until)
    }

    fn step(&self) -> Step {
        self.executor.step(self, |node| self.is_paused(node))
    }
}

impl std::fmt::Debug for Simulation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Simulation")
            .field("seed", &self.inner.seed)
            .field("elapsed", &self.elapsed())
            .field("tasks", &self.tasks())
            .finish_non_exhaustive()
    }
}

impl Simulation {
    /// A world without anything in it, whose every chance is decided by `seed`.
    pub fn new(seed: u64) -> Self {
        Self::with_network(seed, NetworkOptions::default())
    }

    /// As [`Simulation::new`], over a network of another kind.
    pub fn with_network(seed: u64, options: NetworkOptions) -> Self {
        let inner = Inner {
            seed,
            executor: Executor::new(seed),
            network: RefCell::new(Network::new(options)),
            nodes: RefCell::default(),
            media_slowness: Cell::new(1),
        };
        Self { inner: Rc::new(inner) }
    }

    /// The seed of this run.
    pub fn seed(&self) -> u64 {
        self.inner.seed
    }

    /// Virtual time since the start.
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.inner.executor.now())
    }

    /// A hash of every decision so far: which task ran when, what arrived when with which content, every
    /// fault. Two runs that agree in it have gone the same way.
    pub fn trace_hash(&self) -> u64 {
        self.inner.executor.trace_hash()
    }

    /// Tasks that have not ended.
    pub fn tasks(&self) -> usize {
        self.inner.executor.task_count()
    }

    /// A number drawn by the seed.
    pub fn random(&self) -> u64 {
        self.inner.executor.random()
    }

    /// The world as the present life of `node` sees it.
    pub fn world(&self, node: u32) -> SimWorld {
        let life = self.inner.with_node(node, |node| node.life);
        SimWorld::new(self.inner.clone(), node, life)
    }

    /// The address of `node` in the simulated network. Loopback addresses work too, within a node.
    pub fn ip(&self, node: u32) -> IpAddr {
        network::node_ip(node)
    }

    /// The address of a port of `node`.
    pub fn addr(&self, node: u32, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(node), port)
    }

    /// Gives `node` one more medium, and its number there, counted from 0: the shard that it is for.
    /// `options.seed` and `options.delay` are the simulation's own: operations take as long as those of a
    /// fast drive.
    pub fn add_media(&self, node: u32, geometry: Geometry, options: SimOptions) -> usize {
        let seed = self.inner.executor.random();
        let delay = Some(media_delays(&self.inner));
        let media = SimMedia::new(geometry, SimOptions { seed, delay, ..options });
        self.inner.with_node(node, |node| {
            node.media.push(media);
            node.media.len() - 1
        })
    }

    /// From now on media operations of all nodes take `factor` times as long: with slow media much more is under way
    /// at any moment, and so at stake in a power cut.
    pub fn slow_media(&self, factor: u64) {
        self.inner.media_slowness.set(factor);
    }

    /// A handle on medium `shard` of `node`, for the node's present life: it fails in the next one.
    ///
    /// # Panics
    /// If there is no such medium.
    pub fn media(&self, node: u32, shard: usize) -> SimMedia {
        self.inner.with_node(node, |node| node.media[shard].clone())
    }

    /// Runs `task` on `node` until it ends or the node dies.
    pub fn spawn(&self, node: u32, task: impl Future<Output = ()> + 'static) {
        self.world(node).spawn(task);
    }

    /// Runs until `done` says so. `done` is asked between any two polls and must not change anything.
    ///
    /// # Errors
    /// If it does not happen within `at_most` of virtual time, or can never happen any more.
    pub fn run_until(&self, done: impl Fn() -> bool, at_most: Duration) -> Result<(), Stalled> {
        let deadline = self.deadline(at_most);
        while !done() {
            self.check_deadline(deadline)?;
            match self.inner.step() {
                // A turn of a root that is no more means nothing.
                Step::Ran | Step::RootTurn => {}
                Step::Idle => return Err(self.idle()),
            }
        }
        Ok(())
    }

    /// Lets `duration` of virtual time pass.
    pub fn run_for(&self, duration: Duration) {
        let over = Rc::new(Cell::new(false));
        let set = over.clone();
        let at = self.deadline(duration);
        self.inner.executor.at(at, Event::Call(Box::new(move |_| set.set(true))));
        while !over.get() {
            self.inner.step();
        }
    }

    /// Runs `future`, which belongs to no node and which no fault touches, along with everything else
    /// until it ends. It may hold the simulation itself, to inject faults.
    ///
    /// # Panics
    /// If it cannot end, or not within an hour of virtual time.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let deadline = self.deadline(BLOCK_ON_LIMIT);
        let root_waker = self.inner.executor.root_waker();
        let mut future = pin!(future);
        loop {
            let stalled = match self.inner.step() {
                Step::Ran => self.check_deadline(deadline).err(),
                Step::RootTurn => {
                    let waker = root_waker.for_poll();
                    let poll = future.as_mut().poll(&mut Context::from_waker(&waker));
                    if let Poll::Ready(output) = poll {
                        return output;
                    }
                    self.check_deadline(deadline).err()
                }
                Step::Idle => Some(self.idle()),
            };
            if let Some(stalled) = stalled {
                panic!("{stalled}");
            }
        }
    }

    fn deadline(&self, at_most: Duration) -> u64 {
        let nanos = u64::try_from(at_most.as_nanos()).unwrap_or(u64::MAX);
        self.inner.executor.now().saturating_add(nanos)
    }

    fn check_deadline(&self, deadline: u64) -> Result<(), Stalled> {
        if self.inner.executor.now() <= deadline {
            return Ok(());
        }
        Err(Stalled::Deadline { seed: self.seed(), at: self.elapsed(), tasks: self.tasks() })
    }

    fn idle(&self) -> Stalled {
        Stalled::Idle { seed: self.seed(), at: self.elapsed(), tasks: self.tasks() }
    }

    /// Cuts `a` and `b` off from each other, both ways. Bytes stall; each connection between them breaks
    /// after a while, or at the heal, or survives, by the seed.
    pub fn cut(&self, a: u32, b: u32) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// Nothing that `from` sends reaches `to` any more, while what `to` sends still reaches `from`.
    pub fn cut_one_way(&self, from: u32, to: u32) {
        self.inner.cut_way(from, to);
    }

    /// Cuts `node` off from each of `others`, both ways.
    pub fn isolate(&self, node: u32, others: impl IntoIterator<Item = u32>) {
        for other in others {
            if other != node {
                self.cut(node, other);
            }
        }
    }

    /// Opens all ways that were cut.
    pub fn heal(&self) {
        self.inner.heal_all();
    }

    /// Opens both ways between `a` and `b`.
    pub fn heal_between(&self, a: u32, b: u32) {
        self.inner.heal_way(a, b);
        self.inner.heal_way(b, a);
    }

    /// The process of `node` dies, as by `kill -9`: its tasks are dropped, its peers soon see resets, and
    /// connecting to it is refused. Its media keep power and cache. [`Simulation::boot`] brings it back.
    /// Does nothing to a node that does not run.
    pub fn kill(&self, node: u32) {
        if self.is_running(node) {
            self.inner.with_node(node, |node| {
                for media in &node.media {
                    media.restart();
                }
            });
            self.end_life(node, Power::ProcessDead);
        }
    }

    /// The machine of `node` loses power: its tasks are dropped, its media lose what was not durable, its
    /// peers see resets soon or only when it is back, and connecting to it gets no answer.
    /// [`Simulation::boot`] brings it back, with another clock.
    pub fn crash(&self, node: u32) {
        self.inner.with_node(node, |node| {
            for media in &node.media {
                media.power_cut();
            }
        });
        if self.is_running(node) {
            self.end_life(node, Power::MachineDead);
        } else {
            self.inner.with_node(node, |node| node.power = Power::MachineDead);
        }
    }

    /// Brings a dead node back, with no task. Take its [`Simulation::world`] and [`Simulation::media`]
    /// anew, and spawn it again. Does nothing to a node that runs.
    pub fn boot(&self, node: u32) {
        let power = self.inner.with_node(node, |node| node.power);
        if power == Power::Running {
            return;
        }
        self.inner.executor.note(Decision::Boot, u64::from(node));
        if power == Power::MachineDead {
            let clock = self.inner.fresh_clock();
            self.inner.with_node(node, |node| {
                node.clock = clock;
                for media in &node.media {
                    media.power_on();
                }
            });
        }
        self.inner.with_node(node, |node| node.power = Power::Running);
        self.inner.reset_former_life(node);
    }

    /// Whether `node` runs.
    pub fn is_running(&self, node: u32) -> bool {
        self.inner.with_node(node, |node| node.power == Power::Running)
    }

    /// Stops `node` for `duration`, as by SIGSTOP: none of its tasks runs, while its clock, its sockets
    /// and its media go on.
    pub fn pause(&self, node: u32, duration: Duration) {
        self.inner.executor.note(Decision::Pause, u64::from(node));
        let until = self.deadline(duration);
        self.inner.with_node(node, |node| node.paused_until = node.paused_until.max(until));
        let resume = move |inner: &Inner| {
            if !inner.is_paused(node) {
                inner.executor.release(node);
            }
        };
        self.inner.executor.at(until, Event::Call(Box::new(resume)));
    }

    /// From now on the clock of `node` runs fast by `ppm` parts per million, or slow if negative.
    ///
    /// # Panics
    /// If the clock would run backwards.
    pub fn set_drift(&self, node: u32, ppm: i32) {
        let now = self.inner.executor.now();
        self.inner.with_node(node, |node| node.clock.set_drift(now, ppm));
    }

    fn end_life(&self, node: u32, power: Power) {
        self.inner.executor.note(Decision::Death, u64::from(node));
        self.inner.with_node(node, |node| {
            node.life += 1;
            node.paused_until = 0;
            node.power = power;
        });
        self.inner.drop_sockets(node, power == Power::ProcessDead);
        self.inner.executor.drop_tasks(node);
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the simulation's seed was {}, after {:?}", self.seed(), self.elapsed());
        }
        // Tasks hold worlds, which hold the tasks.
        self.inner.executor.clear();
    }
}

/// How long operations of a fast drive take, in virtual time.
fn media_delays(inner: &Rc<Inner>) -> DelayHook {
    let inner: Weak<Inner> = Rc::downgrade(inner);
    Rc::new(move |operation, bytes| -> Pin<Box<dyn Future<Output = ()>>> {
        // The simulation may be over while a test still looks at a medium.
        let Some(inner) = inner.upgrade() else { return Box::pin(std::future::ready(())) };
        let base = match operation {
            Operation::DurableWrite | Operation::Append => 100_000..=300_000,
            Operation::Write => 20_000..=80_000,
            Operation::Read => 50_000..=100_000,
            Operation::Flush => 200_000..=800_000,
            Operation::Reset | Operation::Finish => 5_000..=20_000,
        };
        // One byte per nanosecond is 1 GB/s.
        let nanos = (inner.executor.random_in(base) + bytes as u64) * inner.media_slowness.get();
        Box::pin(pass(inner, nanos))
    })
}

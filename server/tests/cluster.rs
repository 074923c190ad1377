//! The cluster, whole, from a seed: every test runs the shards that production runs, in one thread and virtual time.
//!
//! `TERRANE_SEED=n cargo test -p terrane-server --test cluster` (or `just sim n`) repeats one run of every test;
//! `TERRANE_SEEDS=n` tries that many seeds instead of the few that fit an ordinary test run.

mod simulated;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use simulated::{Cluster, Outcome, SimClient};
use terrane_client::wire::{Condition, ErrorReply, Request, Response};

/// Longest virtual time until a healed cluster has settled.
const SETTLE: Duration = Duration::from_secs(60);

fn for_seeds(few: u64, test: impl Fn(u64)) {
    let read = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = read("TERRANE_SEED") {
        return test(seed);
    }
    for seed in 0..read("TERRANE_SEEDS").unwrap_or(few) {
        // Shown only if the test fails.
        eprintln!("replay: TERRANE_SEED={seed} cargo test -p terrane-server --test cluster");
        test(seed);
    }
}

fn number(value: &[u8]) -> u64 {
    u64::from_le_bytes(value.try_into().expect("values of these tests are numbers"))
}

/// What one writer knows of its key.
#[derive(Default)]
struct Key {
    acknowledged: Cell<u64>,
    tried: Cell<u64>,
    /// Numbers whose outcome nobody knows: they may still take effect.
    unknown: RefCell<Vec<u64>>,
}

/// Writes rising numbers to its own key until told to stop.
async fn write(client: SimClient, name: String, key: Rc<Key>, stop: Rc<Cell<bool>>, running: Rc<Cell<u32>>) {
    let mut next = 1;
    while !stop.get() {
        key.tried.set(next);
        match client.put(&name, Bytes::copy_from_slice(&u64::to_le_bytes(next)), Condition::None).await {
            Outcome::Done(Response::Written { .. }) => key.acknowledged.set(next),
            Outcome::Unknown => key.unknown.borrow_mut().push(next),
            other => panic!("{name}: {other:?}"),
        }
        next += 1;
        client.sleep(Duration::from_millis(5)).await;
    }
    running.set(running.get() - 1);
}

/// Adds one to a shared counter with conditional puts until told to stop.
async fn count(client: SimClient, counter: Rc<Counter>, stop: Rc<Cell<bool>>, running: Rc<Cell<u32>>) {
    while !stop.get() {
        let (known, known_version) = (counter.known.get(), counter.known_version.get());
        let (version, old) = match client.get("counter").await {
            Some((version, value)) => (version, number(&value)),
            None => (0, 0),
        };
        assert!(old >= known, "a read that began after {known} was known saw {old}");
        assert!(
            version >= known_version,
            "a read that began after version {known_version} was known saw {version}"
        );
        counter.known.set(counter.known.get().max(old));
        counter.known_version.set(counter.known_version.get().max(version));
        let condition = if version == 0 { Condition::Absent } else { Condition::Version(version) };
        let new = Bytes::copy_from_slice(&u64::to_le_bytes(old + 1));
        match client.put("counter", new, condition).await {
            Outcome::Done(Response::Written { .. }) => {
                counter.added.set(counter.added.get() + 1);
                counter.known.set(counter.known.get().max(old + 1));
            }
            Outcome::Refused(ErrorReply::ConditionFailed { current }) => {
                // What a refusal names is as certain as what a read returns.
                let named = current.expect("the counter is never deleted");
                counter.known_version.set(counter.known_version.get().max(named));
            }
            Outcome::Unknown => counter.unknown.set(counter.unknown.get() + 1),
            other => panic!("counter: {other:?}"),
        }
        client.sleep(Duration::from_millis(7)).await;
    }
    running.set(running.get() - 1);
}

#[derive(Default)]
struct Counter {
    added: Cell<u64>,
    unknown: Cell<u64>,
    /// The highest value and version that were seen or acknowledged, so that a stale read is noticed at once.
    known: Cell<u64>,
    known_version: Cell<u64>,
}

/// Writers, counters and readers at work on a cluster.
struct Load {
    keys: Vec<Rc<Key>>,
    counter: Rc<Counter>,
    stop: Rc<Cell<bool>>,
    running: Rc<Cell<u32>>,
}

impl Load {
    fn start(cluster: &Cluster, writers: usize, counters: usize) -> Self {
        let load = Self {
            keys: (0..writers).map(|_| Rc::default()).collect(),
            counter: Rc::default(),
            stop: Rc::default(),
            running: Rc::new(Cell::new((writers + counters) as u32)),
        };
        for (k, key) in load.keys.iter().enumerate() {
            let (stop, running) = (load.stop.clone(), load.running.clone());
            let task = write(cluster.client(), format!("key-{k}"), key.clone(), stop, running);
            cluster.spawn_client(task);
        }
        for _ in 0..counters {
            let (stop, running) = (load.stop.clone(), load.running.clone());
            cluster.spawn_client(count(cluster.client(), load.counter.clone(), stop, running));
        }
        load
    }

    fn acknowledged(&self) -> u64 {
        self.keys.iter().map(|key| key.acknowledged.get()).sum()
    }

    /// Ends the load on a healed cluster and checks that nothing acknowledged is lost.
    fn finish(self, cluster: &Cluster) {
        self.stop.set(true);
        let running = self.running.clone();
        cluster.sim.run_until(|| running.get() == 0, SETTLE).expect("every operation comes to an end");
        cluster.sim.run_until(|| cluster.converged(), SETTLE).expect("replicas converge");
        let client = cluster.client();
        cluster.sim.block_on(async {
            for (k, key) in self.keys.iter().enumerate() {
                let found = client.get(&format!("key-{k}")).await.map_or(0, |(_, value)| number(&value));
                let fine = found >= key.acknowledged.get() || key.unknown.borrow().contains(&found);
                assert!(fine, "key-{k}: {} was acknowledged, {found} is there", key.acknowledged.get());
                assert!(found <= key.tried.get(), "key-{k}: {found} was never written");
            }
            let total = client.get("counter").await.map_or(0, |(_, value)| number(&value));
            let (added, unknown) = (self.counter.added.get(), self.counter.unknown.get());
            assert!(
                (added..=added + unknown).contains(&total),
                "counter is {total} after {added} additions and {unknown} of unknown outcome"
            );
            cluster.replicas_are_equal().await;
        });
    }
}

#[test]
fn a_node_that_was_cut_off_ends_byte_equal() {
    for_seeds(5, |seed| {
        let cluster = Cluster::start(seed, 3, 2, 4);
        let load = Load::start(&cluster, 6, 2);
        cluster
            .sim
            .run_until(|| load.acknowledged() > 30, SETTLE)
            .expect("a fresh cluster elects and serves");
        cluster.sim.isolate(1 + (seed % 3) as u32, [1, 2, 3]);
        let before = load.acknowledged();
        cluster.sim.run_until(|| load.acknowledged() > before + 60, SETTLE).expect("two of three go on");
        cluster.sim.heal();
        let before = load.acknowledged();
        cluster.sim.run_until(|| load.acknowledged() > before + 30, SETTLE).expect("all three go on");
        load.finish(&cluster);
    });
}

#[test]
fn power_cuts_kills_cuts_and_pauses_lose_nothing() {
    for_seeds(12, |seed| {
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        let cluster = Cluster::start(seed, 3, 2, 4);
        let load = Load::start(&cluster, 6, 2);
        cluster
            .sim
            .run_until(|| load.acknowledged() > 10, SETTLE)
            .expect("a fresh cluster elects and serves");
        for node in 1..=3 {
            cluster.sim.set_drift(node, rng.random_range(-400..=400));
        }
        cluster.sim.slow_media([1, 10, 60][rng.random_range(0..3)]);
        for _ in 0..12 {
            let node = rng.random_range(1..=3);
            match rng.random_range(0..8) {
                0 => cluster.kill(node),
                1 => cluster.crash(node),
                2 => {
                    // The moment after an acknowledgement is when a promise too many would be found out.
                    let before = load.acknowledged();
                    let _ = cluster.sim.run_until(|| load.acknowledged() > before, Duration::from_secs(1));
                    (1..=3).for_each(|node| cluster.crash(node));
                }
                3 => cluster.sim.cut(node, node % 3 + 1),
                4 => cluster.sim.cut_one_way(node, node % 3 + 1),
                5 => cluster.sim.isolate(node, [1, 2, 3]),
                6 => cluster.sim.pause(node, Duration::from_millis(rng.random_range(50..3000))),
                _ => cluster.stop(node),
            }
            cluster.sim.run_for(Duration::from_millis(rng.random_range(1..1200)));
            for node in 1..=3 {
                if !cluster.sim.is_running(node) {
                    cluster.revive(node);
                } else if cluster.stopped(node) {
                    cluster.kill(node);
                    cluster.revive(node);
                }
            }
            if rng.random_range(0..3) > 0 {
                cluster.sim.heal();
            }
            cluster.sim.run_for(Duration::from_millis(rng.random_range(1..1500)));
        }
        cluster.sim.heal();
        cluster.sim.run_for(Duration::from_secs(3));
        for node in (1..=3).filter(|&node| cluster.stopped(node)) {
            cluster.kill(node);
            cluster.revive(node);
        }
        load.finish(&cluster);
    });
}

#[test]
fn a_stopped_leader_hands_over_and_keeps_everything() {
    for_seeds(3, |seed| {
        let cluster = Cluster::start(seed, 3, 2, 4);
        let load = Load::start(&cluster, 6, 0);
        cluster
            .sim
            .run_until(|| load.acknowledged() > 30, SETTLE)
            .expect("a fresh cluster elects and serves");
        for node in 1..=3 {
            cluster.stop(node);
            cluster.sim.run_until(|| cluster.stopped(node), SETTLE).expect("a node stops when it is told to");
            let before = load.acknowledged();
            cluster.sim.run_until(|| load.acknowledged() > before + 20, SETTLE).expect("the others go on");
            cluster.kill(node);
            cluster.revive(node);
            let before = load.acknowledged();
            cluster.sim.run_until(|| load.acknowledged() > before + 20, SETTLE).expect("all go on");
        }
        load.finish(&cluster);
    });
}

#[test]
fn one_node_alone_serves_and_survives_a_power_cut() {
    for_seeds(3, |seed| {
        let cluster = Cluster::start(seed, 1, 2, 4);
        let load = Load::start(&cluster, 4, 1);
        cluster.sim.run_until(|| load.acknowledged() > 30, SETTLE).expect("it elects itself");
        cluster.crash(1);
        cluster.revive(1);
        let before = load.acknowledged();
        cluster.sim.run_until(|| load.acknowledged() > before + 30, SETTLE).expect("it serves again");
        load.finish(&cluster);
    });
}

#[test]
fn a_seed_repeats_a_run_exactly() {
    let run = |seed| {
        let cluster = Cluster::start(seed, 3, 2, 4);
        let load = Load::start(&cluster, 4, 1);
        cluster.sim.run_until(|| load.acknowledged() > 20, SETTLE).expect("it serves");
        cluster.crash(2);
        cluster.revive(2);
        cluster.sim.run_for(Duration::from_secs(2));
        cluster.sim.trace_hash()
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
fn a_refused_condition_says_which_version_it_met() {
    let cluster = Cluster::start(1, 3, 2, 4);
    let client = cluster.client();
    cluster.sim.block_on(async {
        let value = || Bytes::from_static(&[1; 8]);
        let Outcome::Done(Response::Written { version }) = client.put("k", value(), Condition::Absent).await
        else {
            panic!("the key was absent");
        };
        let refused = client.put("k", value(), Condition::Absent).await;
        assert_eq!(refused, Outcome::Refused(ErrorReply::ConditionFailed { current: Some(version) }));
        let refused = client.put("other", value(), Condition::Present).await;
        assert_eq!(refused, Outcome::Refused(ErrorReply::ConditionFailed { current: None }));
        let done = client.put("k", value(), Condition::Version(version)).await;
        assert!(matches!(done, Outcome::Done(Response::Written { version: newer }) if newer > version));
        let key = Bytes::from_static(b"k");
        let deleted = client.ask(Request::Delete { key, condition: Condition::Present }).await;
        assert!(matches!(deleted, Outcome::Done(Response::Written { .. })));
        assert_eq!(client.get("k").await, None);
    });
}

#[test]
fn what_is_not_served_is_refused_by_name() {
    let cluster = Cluster::start(2, 1, 1, 1);
    let client = cluster.client();
    cluster.sim.block_on(async {
        let key = Bytes::from_static(b"k");
        let put = |value: Bytes, expires_ms| {
            client.ask(Request::Put { key: key.clone(), value, condition: Condition::None, expires_ms })
        };
        let expiry = put(Bytes::from_static(b"v"), 1).await;
        assert_eq!(expiry, Outcome::Refused(ErrorReply::Unsupported { what: "expiry".into() }));
        let large = put(Bytes::from(vec![0; (16 << 10) + 1]), 0).await;
        assert_eq!(large, Outcome::Refused(ErrorReply::TooLarge { limit: 16 << 10 }));
    });
}

/// What a node says to bytes that no client should send, and whether it closes the connection after it.
async fn provoke(client: &SimClient, bytes: Vec<u8>) -> (Vec<ErrorReply>, bool) {
    let (frames, closed) = client.send_raw(1, bytes).await;
    let errors = frames.into_iter().map(|response| match response {
        Response::Error(error) => error,
        other => panic!("{other:?} to a malformed frame"),
    });
    (errors.collect(), closed)
}

#[test]
fn malformed_frames_are_answered_and_never_obeyed() {
    let cluster = Cluster::start(3, 1, 1, 1);
    let client = cluster.client();
    cluster.sim.block_on(async {
        assert!(matches!(
            client.put("k", Bytes::from_static(b"before"), Condition::None).await,
            Outcome::Done(_)
        ));
        let put = || {
            client.frame(&Request::Put {
                key: Bytes::from_static(b"k"),
                value: Bytes::from_static(b"after"),
                condition: Condition::None,
                expires_ms: 0,
            })
        };
        // Wrong magic, even when fewer bytes than a header came.
        let (errors, closed) = provoke(&client, b"GET / HTTP/1.1\r\n\r\n".to_vec()).await;
        assert!(matches!(&errors[..], [ErrorReply::Malformed { .. }]) && closed, "{errors:?}");
        // Another protocol version.
        let mut frame = put();
        frame[4] = 9;
        let (errors, closed) = provoke(&client, frame).await;
        assert!(matches!(&errors[..], [ErrorReply::VersionMismatch { .. }]) && closed, "{errors:?}");
        // One flipped bit anywhere: never the new value, never a panic.
        let bits = 8 * put().len();
        for bit in 0..bits {
            let mut frame = put();
            frame[bit / 8] ^= 1 << (bit % 8);
            let (frames, closed) = client.send_raw(1, frame).await;
            assert!(closed, "bit {bit}");
            assert!(frames.iter().all(|frame| matches!(frame, Response::Error(_))), "bit {bit}: {frames:?}");
        }
        let (_, value) = client.get("k").await.expect("it was written");
        assert_eq!(value, "before");
        // An unknown operation is answered by its number, and the connection goes on.
        let (errors, closed) = provoke(&client, client.frame_of_opcode(99)).await;
        assert_eq!(errors, [ErrorReply::UnknownOpcode { opcode: 99 }]);
        assert!(!closed);
        let (errors, _) = provoke(&client, client.frame_of_opcode(20)).await;
        assert_eq!(errors, [ErrorReply::Unsupported { what: "batch".into() }]);
        // A key beyond the limit.
        let key = Bytes::from(vec![b'k'; (64 << 10) + 1]);
        let (errors, closed) = provoke(&client, client.frame(&Request::Get { key })).await;
        assert!(matches!(&errors[..], [ErrorReply::KeyTooLarge { limit: 65_536 }]) && !closed, "{errors:?}");
    });
}

#[test]
fn a_leader_that_slept_does_not_answer_from_its_old_state() {
    for_seeds(5, |seed| {
        let cluster = Cluster::start(seed, 3, 1, 1);
        let client = cluster.client();
        let get = || Request::Get { key: Bytes::from_static(b"k") };
        let put = |value: &'static str| Request::Put {
            key: Bytes::from_static(b"k"),
            value: Bytes::from_static(value.as_bytes()),
            condition: Condition::None,
            expires_ms: 0,
        };
        let answers: Rc<RefCell<Vec<Outcome>>> = Rc::default();
        cluster.sim.block_on(async {
            client.insist(put("old")).await.expect("a fresh cluster serves");
            let mut leader = 1;
            while !matches!(client.attempt(leader, &get()).await, Outcome::Done(_)) {
                leader = leader % 3 + 1;
            }
            cluster.sim.pause(leader, Duration::from_secs(12));
            client.insist(put("new")).await.expect("the other two go on");
            // Asked from now on, through the pause and beyond it: requests wait in the sleeper's sockets, and are
            // what it finds when it wakes up, before it has heard that it was deposed.
            while cluster.sim.elapsed() < Duration::from_secs(16) {
                let (asker, answers, request) = (client.clone(), answers.clone(), get());
                cluster.spawn_client(async move {
                    let outcome = asker.attempt(leader, &request).await;
                    answers.borrow_mut().push(outcome);
                });
                client.sleep(Duration::from_millis(100)).await;
            }
        });
        let stale = |outcome: &Outcome| matches!(outcome, Outcome::Done(Response::Value { value, .. }) if value != "new");
        assert!(!answers.borrow().iter().any(stale), "{:?}", answers.borrow());
        let refused = |outcome: &Outcome| matches!(outcome, Outcome::Refused(ErrorReply::NotLeader { .. }));
        assert!(answers.borrow().iter().any(refused), "the sleeper learned that it does not lead any more");
    });
}

#[test]
fn a_deep_pipeline_of_large_answers_is_answered_in_full() {
    for_seeds(2, |seed| {
        let cluster = Cluster::start(seed, 1, 2, 4);
        let client = cluster.client();
        cluster.sim.block_on(async {
            // Keys of both shards, so that some requests are forwarded, and more bytes of answers than may wait.
            let mut frames = Vec::new();
            for k in 0..8 {
                let value = Bytes::from(vec![k; 16 << 10]);
                let outcome = client.put(&format!("key-{k}"), value, Condition::None).await;
                assert!(matches!(outcome, Outcome::Done(_)));
            }
            for k in 0..800 {
                let key = Bytes::from(format!("key-{}", k % 8));
                frames.extend(client.frame(&Request::Get { key }));
            }
            let (answers, closed) = client.send_raw(1, frames).await;
            assert_eq!(answers.len(), 800);
            assert!(answers.iter().all(|answer| matches!(answer, Response::Value { .. })));
            assert!(!closed, "a client that reads is not cut off");
        });
    });
}

//! `kill -9` of any node at any time loses nothing that was acknowledged: with real processes, real disks and real
//! sockets.
//!
//! Each of several writers owns a few keys and writes rising numbers to them. Nodes are killed at moments drawn from a
//! seed (counted in acknowledged writes, not in seconds) and started again a little later; others are frozen and thawed
//! (SIGSTOP, SIGCONT), so that a leader wakes up in a world that went on without it. All along, and at the end, every key
//! must hold at least the last number that was acknowledged, and nothing that was never written.

mod processes;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::Signal;
use processes::Processes;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use terrane_client::Client;

const WRITERS: usize = 8;
const KEYS_PER_WRITER: usize = 4;
const KILLS: usize = 10;

/// The last number written to a key and known to be acknowledged, the last one tried, and those whose outcome nobody
/// knows: such a write may still take effect later.
#[derive(Default)]
struct Key {
    acknowledged: AtomicU64,
    tried: AtomicU64,
    unknown: Mutex<Vec<u64>>,
}

struct Ledger {
    keys: Vec<Key>,
    writes: AtomicU64,
    stop: AtomicBool,
}

fn name(key: usize) -> Vec<u8> {
    format!("key-{key:04}").into_bytes()
}

/// A number, and enough of it that a torn or mixed-up value is seen.
fn value(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(64)
}

fn number(value: &[u8]) -> u64 {
    let number = u64::from_le_bytes(value[..8].try_into().expect("values have 512 bytes"));
    assert_eq!(value, self::value(number), "a value is whole");
    number
}

async fn client(addresses: &[String]) -> Client {
    loop {
        match Client::builder().timeout(Duration::from_secs(3)).connect(addresses).await {
            Ok(client) => return client,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn write(client: Client, ledger: Arc<Ledger>, writer: usize) {
    let mut next = 1;
    while !ledger.stop.load(Ordering::Relaxed) {
        let key = writer * KEYS_PER_WRITER + next as usize % KEYS_PER_WRITER;
        let entry = &ledger.keys[key];
        entry.tried.store(next, Ordering::SeqCst);
        if client.put(&name(key), &value(next)).await.is_ok() {
            entry.acknowledged.store(next, Ordering::SeqCst);
            ledger.writes.fetch_add(1, Ordering::SeqCst);
        } else {
            entry.unknown.lock().expect("nobody panics with it").push(next);
        }
        next += 1;
    }
}

async fn check(client: &Client, ledger: &Ledger, key: usize) {
    let entry = &ledger.keys[key];
    let acknowledged = entry.acknowledged.load(Ordering::SeqCst);
    let found = loop {
        // A cluster that is electing leaders may take longer than one call waits.
        if let Ok(found) = client.get(&name(key)).await {
            break found.map_or(0, |found| number(&found.value));
        }
    };
    let tried = entry.tried.load(Ordering::SeqCst);
    let unknown = entry.unknown.lock().expect("nobody panics with it").contains(&found);
    assert!(found >= acknowledged || unknown, "key {key}: {acknowledged} was acknowledged, {found} is there");
    assert!(found <= tried, "key {key}: {found} is there, {tried} was the last one written");
}

async fn read(client: Client, ledger: Arc<Ledger>) {
    let mut key = 0;
    while !ledger.stop.load(Ordering::Relaxed) {
        check(&client, &ledger, key % ledger.keys.len()).await;
        key += 1;
    }
}

async fn acknowledged_more(ledger: &Ledger, more: u64) {
    let target = ledger.writes.load(Ordering::SeqCst) + more;
    while ledger.writes.load(Ordering::SeqCst) < target {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn ten_kills_and_some_freezes_lose_nothing_acknowledged() {
    let seed = std::env::var("TERRANE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("the moments of this run: TERRANE_SEED={seed} cargo test -p terrane-server --test kill");
    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    let mut cluster = Processes::start(3, 2, |config| {
        config.election_timeout_ms = 300;
        config.heartbeat_ms = 50;
    });
    let addresses = cluster.addresses();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let ledger = Arc::new(Ledger {
            keys: (0..WRITERS * KEYS_PER_WRITER).map(|_| Key::default()).collect(),
            writes: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        let client = client(&addresses).await;
        let mut tasks: Vec<_> =
            (0..WRITERS).map(|writer| tokio::spawn(write(client.clone(), ledger.clone(), writer))).collect();
        tasks.push(tokio::spawn(read(client.clone(), ledger.clone())));
        for _ in 0..KILLS {
            acknowledged_more(&ledger, rng.random_range(20..400)).await;
            let node = rng.random_range(0..3);
            cluster.kill(node);
            acknowledged_more(&ledger, rng.random_range(1..200)).await;
            cluster.restart(node);
            if rng.random_range(0..3) == 0 {
                let node = rng.random_range(0..3);
                cluster.signal(node, Signal::SIGSTOP);
                acknowledged_more(&ledger, rng.random_range(1..400)).await;
                cluster.signal(node, Signal::SIGCONT);
            }
        }
        acknowledged_more(&ledger, 200).await;
        ledger.stop.store(true, Ordering::Relaxed);
        for task in tasks {
            task.await.expect("no writer or reader found anything wrong");
        }
        for key in 0..ledger.keys.len() {
            check(&client, &ledger, key).await;
        }
        let acknowledged: u64 = ledger.writes.load(Ordering::SeqCst);
        eprintln!("{acknowledged} writes acknowledged through {KILLS} kills, none lost");
    });
}

//! Gets that memory answers: how many a second one core makes, and what part of them is the index.
//!
//! ```text
//! cargo bench -p terrane-engine --bench reads                   # 100,000 keys, values of 1 KiB
//! cargo bench -p terrane-engine --bench reads -- --keys 1000000 --value-bytes 100
//! valgrind --tool=callgrind --toggle-collect='*measured*' BENCH --rounds 1 --gets 200000
//! ```
//!
//! All values are in the cache, and the medium is memory, so nothing waits. Keys are asked for in a random order. Time is that
//! of the thread on the processor, since the machine may be shared; a row is the median of its rounds, which take turns, and
//! the best of them.

#![allow(clippy::print_stdout, reason = "a bench prints its table")]

use std::future::Future;
use std::hint::black_box;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use clap::Parser;
use nix::time::{ClockId, clock_gettime};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use terrane_engine::{ENTRY_OPS, Entry, GroupId, Lookup, Options, SliceId, Store, op};
use terrane_ocssd::{Geometry, SimMedia, SimOptions};

/// Gets a second of one core that memory answers
#[derive(Debug, Parser)]
struct Args {
    /// Keys, of 16 random bytes each
    #[arg(long, default_value_t = 100_000)]
    keys: u64,
    /// Bytes of each value
    #[arg(long, default_value_t = 1024)]
    value_bytes: usize,
    /// Gets of a round
    #[arg(long, default_value_t = 1_000_000)]
    gets: usize,
    /// Rounds of each row
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// What cargo passes on
    #[arg(long, hide = true)]
    bench: bool,
}

const GROUP: GroupId = GroupId(1);
const SLICE: SliceId = SliceId { cluster: 1, node: 1, shard: 0 };
/// Entries of one append.
const BATCH: usize = 64;

/// What a get of a value that is in memory needs: one poll.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(out) => out,
        Poll::Pending => panic!("nothing has to wait"),
    }
}

/// A store with all keys applied and in its cache.
fn loaded(args: &Args, keys: &[[u8; 16]]) -> anyhow::Result<Store<SimMedia>> {
    let live_bytes = args.keys * (args.value_bytes as u64 + 128);
    let chunk_sectors = 2048;
    let geometry = Geometry {
        groups: 1,
        parallel_units: 1,
        chunks: (live_bytes / (u64::from(chunk_sectors) * 4096) * 2 + 32) as u32,
        chunk_sectors,
        sector_bytes: 4096,
        ws_min: 1,
        ws_opt: 8,
        mw_cunits: 0,
        max_open: 0,
    };
    let media = SimMedia::new(geometry, SimOptions::default());
    now(Store::format(&media, SLICE))?;
    let options = Options {
        // Twice what is live: the cache spares some of its room for what comes new.
        cache_bytes: 2 * args.keys * (args.value_bytes as u64 + 256),
        tail_bytes: 1 << 20,
        ..Options::default()
    };
    let (store, _) = now(Store::open(media, SLICE, options))?;
    let running = store.clone();
    let mut flusher: Pin<Box<dyn Future<Output = _>>> = Box::pin(async move { running.run_flusher().await });
    drop(store.create_group(GROUP, Bytes::new())?);
    let mut random = Pcg64Mcg::seed_from_u64(1);
    let mut value = vec![0; args.value_bytes];
    let mut last = 0;
    for batch in keys.chunks(BATCH) {
        let entries = batch.iter().map(|key| {
            random.fill(&mut value[..]);
            Entry { term: 1, kind: ENTRY_OPS, payload: op::encode_put(key, &value, None) }
        });
        drop(store.append(GROUP, last + 1, entries.collect())?);
        last += batch.len() as u64;
        let flushed = flusher.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        ensure!(flushed.is_pending(), "the flusher ended: {flushed:?}");
        store.apply(GROUP, last)?;
    }
    for key in keys {
        now(store.get(GROUP, key))?.context("a key that was put is gone")?;
    }
    Ok(store)
}

/// What this thread had of the processor.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every Linux has this clock").into()
}

/// What is timed, in nanoseconds a get. Named, so that a profiler can be told to look at it alone.
#[inline(never)]
fn measured(keys: &[[u8; 16]], order: &[u32], get: impl Fn(&[u8])) -> f64 {
    let start = processor_time();
    for number in order {
        get(&keys[*number as usize]);
    }
    (processor_time() - start).as_secs_f64() * 1e9 / order.len() as f64
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut random = Pcg64Mcg::seed_from_u64(0);
    let mut keys = vec![[0; 16]; args.keys as usize];
    keys.iter_mut().for_each(|key| random.fill(key));
    let store = loaded(&args, &keys)?;
    let before = store.counters();
    let mut order: Vec<u32> = (0..args.gets).map(|at| (at as u64 % args.keys) as u32).collect();
    order.shuffle(&mut random);
    let rows: [(&str, &dyn Fn() -> f64); 3] = [
        ("get, awaited", &|| measured(&keys, &order, |key| _ = black_box(now(store.get(GROUP, key))))),
        ("try_get", &|| {
            measured(&keys, &order, |key| {
                let found = store.try_get(GROUP, key);
                assert!(matches!(black_box(found), Lookup::Ready(_)));
            })
        }),
        ("try_get of a key that is not there", &|| {
            measured(&keys, &order, |key| {
                let mut absent = [1; 17];
                absent[..16].copy_from_slice(key);
                assert_eq!(black_box(store.try_get(GROUP, &absent)), Lookup::Absent);
            })
        }),
    ];
    let mut nanos = vec![Vec::new(); rows.len()];
    for _ in 0..args.rounds {
        for ((_, row), nanos) in rows.iter().zip(&mut nanos) {
            nanos.push(row());
        }
    }
    let counters = store.counters();
    ensure!(counters.cache_misses == before.cache_misses, "some gets went to the medium");
    println!(
        "{} keys, values of {} bytes, {} rounds of {} gets",
        args.keys, args.value_bytes, args.rounds, args.gets
    );
    println!("{:36} {:>11} {:>11} {:>15}", "", "median ns", "best ns", "median gets/s");
    for ((name, _), nanos) in rows.iter().zip(&mut nanos) {
        nanos.sort_by(f64::total_cmp);
        let (median, best) = (nanos[nanos.len() / 2], nanos[0]);
        println!("{name:36} {median:>11.0} {best:>11.0} {:>15.0}", 1e9 / median);
    }
    Ok(())
}

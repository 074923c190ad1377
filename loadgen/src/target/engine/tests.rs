//! The embedded store as the load drives it: on real files, over real rings.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::{join, join_all};
use tempfile::TempDir;
use terrane_ocssd::ftl::{Ftl, FtlOptions};
use terrane_ocssd::trace::{Event, ReplayOptions, Tail, Trace, replay, side_by_side};
use terrane_ocssd::{Geometry, Media, SimMedia, SimOptions};

use super::*;
use crate::target::FailureKind;
use crate::target::setup::Overrides;

/// A folder on a real file system: one for temporary files may be in memory, without direct I/O.
fn folder() -> TempDir {
    tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap()
}

/// Of a medium in memory.
const SIM_GEOMETRY: Geometry = Geometry {
    groups: 1,
    parallel_units: 1,
    chunks: 16,
    chunk_sectors: 128,
    sector_bytes: 512,
    ws_min: 1,
    ws_opt: 8,
    mw_cunits: 0,
    max_open: 0,
};

fn setup(folder: &Path, threads: u32) -> Setup {
    // Small chunks, a small tail and no cache: reads go to the file, and the log runs through many chunks.
    let set = [("chunk_bytes", "256KiB"), ("tail_bytes", "64KiB"), ("cache_bytes", "0")];
    Setup {
        folder: folder.to_owned(),
        durable: true,
        compressed: false,
        cache_bytes: 1 << 20,
        capacity_bytes: (1 << 20) + u64::from(threads) * (16 << 20),
        threads,
        overrides: Overrides::new(set.map(|(name, value)| (name.to_owned(), value.to_owned()))),
        trace: None,
    }
}

fn open(folder: &Path, threads: u32) -> EngineConnect {
    EngineConnect::new(setup(folder, threads), &GiveUp::default()).unwrap()
}

/// Runs one phase: `job` on every thread, all at once. Results by thread.
fn phase<T: Send>(connect: &EngineConnect, job: impl AsyncFn(u32, Rc<EngineTarget>) -> T + Sync) -> Vec<T> {
    phase_with_main(connect, job, || ()).0
}

/// As [`phase`], with something to do on this thread meanwhile.
fn phase_with_main<T: Send, U>(
    connect: &EngineConnect,
    job: impl AsyncFn(u32, Rc<EngineTarget>) -> T + Sync,
    main: impl FnOnce() -> U,
) -> (Vec<T>, U) {
    let threads = connect.shared.config.threads;
    let (job, begin) = (&job, &std::sync::Barrier::new(threads as usize));
    std::thread::scope(|scope| {
        let hosts: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    let mut result = None;
                    let seat = Seat { thread, threads, connections: 1 };
                    let load = async |targets: anyhow::Result<Vec<Rc<EngineTarget>>>| {
                        let mut targets = targets.unwrap();
                        assert_eq!(targets.len(), 1);
                        // As the phases do: nobody begins before all have connected.
                        begin.wait();
                        result = Some(job(thread, targets.remove(0)).await);
                    };
                    connect.host(seat, load).unwrap();
                    result.unwrap()
                })
            })
            .collect();
        let done = main();
        (hosts.into_iter().map(|host| host.join().unwrap()).collect(), done)
    })
}

fn key(number: u64) -> [u8; 8] {
    format!("k{number:07}").into_bytes().try_into().unwrap()
}

fn value(number: u64, bytes: usize) -> Bytes {
    (0..bytes).map(|at| (number as usize * 31 + at) as u8).collect()
}

fn looks(connect: &EngineConnect) -> Look {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let looks = runtime.block_on(connect.looks());
    assert_eq!(looks.len(), 1);
    looks[0].1
}

/// Every thread writes and reads keys of every shard; a later phase, and a later process, find them all.
#[test]
fn keys_are_found_across_shards_phases_and_starts() {
    for threads in [1, 2, 3] {
        let folder = folder();
        let connect = open(folder.path(), threads);
        let keys = 300;
        let written: Vec<BTreeMap<u64, u64>> = phase(&connect, async |thread, target| {
            let mut versions = BTreeMap::new();
            for number in (0..keys).filter(|number| number % u64::from(threads) == u64::from(thread)) {
                assert!(target.get(&key(number)).await.unwrap().is_none());
                let value = value(number, 100 + number as usize);
                let version = target.put(&key(number), value.clone(), None).await.unwrap().unwrap();
                let found = target.get(&key(number)).await.unwrap().unwrap();
                assert_eq!((found.version, found.value), (Some(version), value));
                versions.insert(number, version);
            }
            versions
        });
        let written: BTreeMap<u64, u64> = written.into_iter().flatten().collect();
        assert_eq!(written.len() as u64, keys);
        let find_all = |connect: &EngineConnect| {
            phase(connect, async |_, target| {
                for (number, version) in &written {
                    let found = target.get(&key(*number)).await.unwrap().unwrap();
                    assert_eq!(found.version, Some(*version));
                    assert_eq!(found.value, value(*number, 100 + *number as usize));
                }
            });
        };
        find_all(&connect);
        drop(connect);
        find_all(&open(folder.path(), threads));
    }
}

/// A phase whose shards are dropped in the middle of things, as by a process that dies: what was acknowledged is there.
#[test]
fn a_sudden_end_loses_nothing_acknowledged() {
    let folder = folder();
    let connect = open(folder.path(), 1);
    let acknowledged = Cell::new(0);
    for round in 1..=3_u64 {
        let seat = Seat { thread: 0, threads: 1, connections: 1 };
        let end = connect.take_end(seat).unwrap();
        ring::run(async {
            let mut door = Door::new(end.bell_file().unwrap()).unwrap();
            let (shard, _) = connect.open(end).await.unwrap();
            let writer = shard.clone();
            let load = async {
                for number in 0..acknowledged.get() {
                    let found = writer.get(&key(number)).await.unwrap().unwrap();
                    assert_eq!(found.value, value(number, 700));
                }
                for number in acknowledged.get()..round * 50 {
                    writer.put(&key(number), &value(number, 700)).await.unwrap();
                    acknowledged.set(number + 1);
                }
            };
            let live = shard.live(std::future::pending(), &mut door);
            // Left while the shard lives: nothing is closed.
            futures_util::future::select(std::pin::pin!(live), std::pin::pin!(load)).await;
        })
        .unwrap();
        assert_eq!(acknowledged.get(), round * 50);
    }
    drop(connect);
    let connect = open(folder.path(), 1);
    phase(&connect, async |_, target| {
        for number in 0..150 {
            assert!(target.get(&key(number)).await.unwrap().is_some(), "{number}");
        }
        // The index went on where it was, in a term of its own.
        assert_eq!(target.put(b"next", Bytes::new(), None).await.unwrap(), Some(151));
    });
}

/// Many workers on few keys: versions of a key are distinct and rise for each writer; the highest is what stays.
#[test]
fn versions_of_hot_keys_rise() {
    let folder = folder();
    let connect = open(folder.path(), 2);
    let keys = 3;
    let all: Vec<Vec<(u64, u64, u64)>> = phase(&connect, async |thread, target| {
        let workers = (0..16).map(async |worker| {
            let mut seen = vec![0; keys as usize];
            let mut written = Vec::new();
            for nth in 0..40 {
                let number = (nth + worker) % keys;
                let content = u64::from(thread) << 32 | worker << 16 | nth;
                let bytes = Bytes::copy_from_slice(&content.to_le_bytes());
                let version = target.put(&key(number), bytes, None).await.unwrap().unwrap();
                assert!(version > seen[number as usize]);
                let found = target.get(&key(number)).await.unwrap().unwrap();
                assert!(found.version.unwrap() >= version, "a write is readable once it is acknowledged");
                seen[number as usize] = found.version.unwrap();
                written.push((number, version, content));
            }
            written
        });
        join_all(workers).await.into_iter().flatten().collect()
    });
    let mut newest = BTreeMap::new();
    for (number, version, content) in all.into_iter().flatten() {
        let versions: &mut BTreeMap<u64, u64> = newest.entry(number).or_default();
        assert_eq!(versions.insert(version, content), None, "version {version} of {number} twice");
    }
    phase(&connect, async |_, target| {
        for (number, versions) in &newest {
            let (version, content) = versions.last_key_value().unwrap();
            let found = target.get(&key(*number)).await.unwrap().unwrap();
            assert_eq!((found.version, &found.value[..]), (Some(*version), &content.to_le_bytes()[..]));
        }
    });
}

#[test]
fn scans_merge_all_groups_in_order() {
    let folder = folder();
    let mut setup = setup(folder.path(), 2);
    let set = [("groups", "3"), ("chunk_bytes", "256KiB"), ("cache_bytes", "0")];
    setup.overrides = Overrides::new(set.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let connect = EngineConnect::new(setup, &GiveUp::default()).unwrap();
    assert!(connect.can(Ability::Scan) && !connect.can(Ability::Ttl) && !connect.can(Ability::Batch));
    phase(&connect, async |thread, target| {
        for number in (0..400).filter(|number| number % 2 == u64::from(thread)) {
            target.put(&key(number), value(number, 50), None).await.unwrap();
        }
    });
    phase(&connect, async |_, target| {
        for (from, limit) in [(0, 1), (0, 100), (17, 250), (390, 100), (400, 5), (0, 0), (0, 1000)] {
            let rows = target.scan(&key(from), limit).await.unwrap();
            let expected: Vec<u64> = (from..400).take(limit).collect();
            assert_eq!(rows.len(), expected.len(), "{limit} from {from}");
            for (row, number) in rows.iter().zip(expected) {
                assert_eq!((&row.key[..], &row.found.value), (&key(number)[..], &value(number, 50)));
            }
        }
    });
}

/// Space runs out in the middle of several writers: they are told `Full`, and all that was acknowledged stays readable.
#[test]
fn a_full_device_refuses_writes_and_goes_on_reading() {
    let folder = folder();
    let mut setup = setup(folder.path(), 2);
    setup.capacity_bytes = (1 << 20) + 2 * 12 * (256 << 10);
    let connect = EngineConnect::new(setup, &GiveUp::default()).unwrap();
    let written: Vec<Vec<u64>> = phase(&connect, async |thread, target| {
        let workers = (0..4).map(async |worker| {
            let mut written = Vec::new();
            for nth in 0.. {
                let number = nth * 8 + u64::from(thread) * 4 + worker;
                match target.put(&key(number), value(number, 4000), None).await {
                    Ok(_) => written.push(number),
                    Err(failure) => {
                        assert_eq!(failure.kind, FailureKind::Full, "{}", failure.message);
                        break;
                    }
                }
            }
            written
        });
        join_all(workers).await.into_iter().flatten().collect()
    });
    let written: Vec<u64> = written.into_iter().flatten().collect();
    assert!(written.len() > 200, "{} fitted", written.len());
    let look = looks(&connect);
    assert!(look.gauges.occupied_bytes.unwrap() > 2 * 6 * (256 << 10));
    phase(&connect, async |_, target| {
        for number in &written {
            let found = target.get(&key(*number)).await.unwrap().unwrap();
            assert_eq!(found.value, value(*number, 4000));
        }
    });
}

#[test]
fn what_is_too_large_or_unsupported_says_so() {
    let folder = folder();
    let connect = open(folder.path(), 2);
    phase(&connect, async |_, target| {
        // Beyond a record's limit; and within it, but beyond what a chunk can hold.
        for bytes in [8 << 20, 300 << 10] {
            let failure = target.put(b"key", vec![0; bytes].into(), None).await.unwrap_err();
            assert_eq!(failure.kind, FailureKind::TooLarge, "{}", failure.message);
        }
        let failure = target.put(&[0; 65 << 10], Bytes::new(), None).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::TooLarge);
        let failure = target.put(b"key", Bytes::new(), Some(Duration::from_secs(1))).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Unsupported);
        assert_eq!(target.multi_get(&[]).await.unwrap_err().kind, FailureKind::Unsupported);
        assert_eq!(target.put_batch(Vec::new(), None).await.unwrap_err().kind, FailureKind::Unsupported);
    });
}

/// One thread's load is over at once; the other goes on with keys of both.
#[test]
fn a_thread_without_load_serves_the_others() {
    let folder = folder();
    let connect = open(folder.path(), 2);
    let (idle, served) = (AtomicU64::new(0), AtomicU64::new(0));
    phase(&connect, async |thread, target| {
        if thread == 0 {
            idle.fetch_add(1, Ordering::Relaxed);
            return;
        }
        for number in 0..200 {
            target.put(&key(number), value(number, 100), None).await.unwrap();
            assert!(target.get(&key(number)).await.unwrap().is_some());
            served.fetch_add(1, Ordering::Relaxed);
        }
    });
    assert_eq!((idle.into_inner(), served.into_inner()), (1, 200));
}

/// A thread that cannot open its shard costs errors, and nobody waits for it.
#[test]
fn a_missing_shard_fails_what_needs_it() {
    let folder = folder();
    let connect = open(folder.path(), 2);
    // Somebody has shard 1's slice.
    let taken = ring::run(connect.shared.device.slice(1)).unwrap().unwrap();
    let failures = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (connect, failures) = (&connect, &failures);
            scope.spawn(move || {
                let load = async |targets: anyhow::Result<Vec<Rc<EngineTarget>>>| match targets {
                    Err(error) => {
                        assert_eq!(thread, 1);
                        assert!(format!("{error:#}").contains("slice of shard 1"), "{error:#}");
                    }
                    Ok(targets) => {
                        for number in 0..100 {
                            let done = targets[0].put(&key(number), value(number, 10), None).await;
                            let kind = done.err().map(|failure| failure.kind);
                            *failures.lock().unwrap().entry(kind).or_insert(0) += 1;
                        }
                    }
                };
                connect.host(Seat { thread, threads: 2, connections: 1 }, load).unwrap();
            });
        }
    });
    drop(taken);
    let failures = failures.into_inner().unwrap();
    assert_eq!(failures.keys().copied().collect::<Vec<_>>(), [None, Some(FailureKind::Unavailable)]);
    assert_eq!(failures.values().sum::<u32>(), 100);
    // The next phase finds everyone.
    phase(&connect, async |_, target| drop(target.get(b"key").await.unwrap()));
}

#[test]
fn seats_and_stores_must_fit() {
    let folder = folder();
    let connect = open(folder.path(), 2);
    let told = Cell::new(false);
    let load = async |targets: anyhow::Result<Vec<Rc<EngineTarget>>>| {
        let error = targets.err().unwrap().to_string();
        assert!(error.contains("2 threads"), "{error}");
        told.set(true);
    };
    connect.host(Seat { thread: 0, threads: 1, connections: 1 }, load).unwrap();
    assert!(told.get());
    let error = |setup| format!("{:#}", EngineConnect::new(setup, &GiveUp::default()).unwrap_err());
    assert!(error(setup(folder.path(), 2)).contains("in use"), "it is open");
    drop(connect);
    assert!(error(setup(folder.path(), 3)).contains("was laid out for 2 threads, not for 3"));
    let with = |set: [(&str, &str); 1]| Setup {
        overrides: Overrides::new(set.map(|(name, value)| (name.to_owned(), value.to_owned()))),
        ..setup(folder.path(), 2)
    };
    assert!(error(with([("chunk_bytes", "512KiB")])).contains("chunk_bytes=262144"));
    assert!(error(with([("typo", "1")])).contains("--set typo"));
    // Another number of groups is noticed when the slices are opened.
    phase(&open(folder.path(), 2), async |_, _| ());
    let connect = EngineConnect::new(with([("groups", "2")]), &GiveUp::default()).unwrap();
    let load = async |targets: anyhow::Result<Vec<Rc<EngineTarget>>>| {
        assert!(targets.err().unwrap().to_string().contains("`groups`"));
    };
    connect.host(Seat { thread: 1, threads: 2, connections: 1 }, load).unwrap();
}

#[test]
fn an_interrupted_layout_is_begun_anew() {
    let folder = folder();
    std::fs::write(folder.path().join("engine.terrane.unfinished"), b"half").unwrap();
    phase(&open(folder.path(), 1), async |_, target| {
        target.put(b"key", Bytes::new(), None).await.unwrap();
    });
    assert!(!folder.path().join("engine.terrane.unfinished").exists());
}

/// What compresses is written compressed, read raw by its own shard and the other, and counted as users wrote it.
#[test]
fn compressed_values_take_less_and_read_the_same() {
    let written = [false, true].map(|compressed| {
        let folder = folder();
        let mut setup = setup(folder.path(), 2);
        setup.compressed = compressed;
        let connect = EngineConnect::new(setup, &GiveUp::default()).unwrap();
        let repeats = |number: u64| Bytes::from(format!("{number} again, ").repeat(400));
        phase(&connect, async |thread, target| {
            for number in (0..40).map(|number| number * 2 + u64::from(thread)) {
                target.put(&key(number), repeats(number), None).await.unwrap();
                assert_eq!(target.get(&key(number)).await.unwrap().unwrap().value, repeats(number));
            }
        });
        phase(&connect, async |thread, target| {
            for number in (0..40).map(|number| number * 2 + 1 - u64::from(thread)) {
                assert_eq!(target.get(&key(number)).await.unwrap().unwrap().value, repeats(number));
            }
            let rows = target.scan(&key(0), 100).await.unwrap();
            assert_eq!(rows.len(), 80);
            assert!(rows.iter().zip(0..).all(|(row, number)| row.found.value == repeats(number)));
        });
        let settings: BTreeMap<String, String> = connect.settings().into_iter().collect();
        assert_eq!(settings["compression"].starts_with("zstd level "), compressed, "{settings:?}");
        let counters = looks(&connect).counters;
        let user: u64 = (0..80).map(|number| 8 + repeats(number).len() as u64).sum();
        assert_eq!(counters.user_bytes, Some(user));
        counters.device_written_bytes.unwrap()
    });
    assert!(written[1] * 3 < written[0], "{written:?}");
}

/// The counters are right while the shards run, after they have ended, and over several phases.
#[test]
fn looks_count_everything() {
    let folder = folder();
    let mut setup = setup(folder.path(), 2);
    setup.durable = false;
    let connect = EngineConnect::new(setup, &GiveUp::default()).unwrap();
    let before = looks(&connect);
    assert_eq!((before.counters.user_bytes, before.counters.device_written_bytes), (Some(0), Some(0)));
    let (user, last) = (AtomicU64::new(0), Mutex::new(before));
    for _ in 0..2 {
        // A thread that is blocked serves nobody: so they tell and ask by atomics.
        let (written, looked) = (AtomicU64::new(0), AtomicU64::new(0));
        let job = async |thread: u32, target: Rc<EngineTarget>| {
            for number in 0..50 {
                let number = number * 2 + u64::from(thread);
                target.put(&key(number), value(number, 600), None).await.unwrap();
                user.fetch_add(8 + 600, Ordering::Relaxed);
            }
            // Both are looked at while they run and have nothing to do.
            written.fetch_add(1, Ordering::Release);
            while looked.load(Ordering::Acquire) == 0 {
                target.sleep_until(Instant::now() + Duration::from_micros(100)).await;
            }
        };
        let main = || {
            while written.load(Ordering::Acquire) < 2 {
                std::thread::yield_now();
            }
            let look = looks(&connect);
            looked.store(1, Ordering::Release);
            look
        };
        let (_, look) = phase_with_main(&connect, job, main);
        assert_eq!(look.counters.user_bytes, Some(user.load(Ordering::Relaxed)), "fresh as of the call");
        assert!(look.counters.device_written_bytes > look.counters.user_bytes);
        assert!(look.gauges.occupied_bytes.unwrap() >= look.counters.user_bytes.unwrap());
        assert!(look.gauges.resident_bytes.is_some() && look.counters.cpu_us.is_some());
        let ended = looks(&connect);
        assert_eq!(ended.counters.user_bytes, look.counters.user_bytes);
        assert!(ended.counters.device_written_bytes >= look.counters.device_written_bytes);
        assert!(ended.counters.device_written_bytes > last.lock().unwrap().counters.device_written_bytes);
        *last.lock().unwrap() = ended;
    }
    let settings: BTreeMap<String, String> = connect.settings().into_iter().collect();
    assert!(settings["durability"].contains("without FUA"), "{settings:?}");
    assert_eq!(settings["chunk_bytes"], "262144");
}

/// Workers that the cache always answers never wait; a sleeper on the same thread and a worker on another are served
/// all the same.
#[test]
fn a_thread_full_of_cached_reads_still_parks() {
    let folder = folder();
    let mut setup = setup(folder.path(), 2);
    setup.overrides = Overrides::default();
    setup.capacity_bytes = 256 << 20;
    let connect = EngineConnect::new(setup, &GiveUp::default()).unwrap();
    let done = AtomicU64::new(0);
    phase(&connect, async |thread, target| {
        for number in 0..20 {
            target.put(&key(number), value(number, 10), None).await.unwrap();
        }
        if thread == 1 {
            for number in 0..200 {
                target.put(&key(number), value(number, 10), None).await.unwrap();
                target.get(&key(number)).await.unwrap();
            }
            done.store(1, Ordering::Release);
            return;
        }
        let own = (0..20).find(|number| target.shard.owns(&key(*number))).unwrap();
        let slept = Cell::new(false);
        let sleeper = async {
            let at = Instant::now() + Duration::from_micros(300);
            target.sleep_until(at).await;
            assert!(Instant::now() >= at);
            slept.set(true);
        };
        let spinner = async {
            // Ends only through what the ring brings: the sleep, and the other thread's requests.
            while !slept.get() || done.load(Ordering::Acquire) == 0 {
                target.get(&key(own)).await.unwrap().unwrap();
            }
        };
        join(spinner, sleeper).await;
    });
}

/// Many hops both ways, with threads that fall asleep and wake all the time.
#[test]
fn a_hundred_thousand_hops_arrive() {
    let folder = folder();
    let connect = open(folder.path(), 3);
    let hops: Vec<u64> = phase(&connect, async |thread, target| {
        let keys: Vec<_> = (0..60).map(key).filter(|key| !target.shard.owns(key)).collect();
        let keys = &keys;
        // One worker at a time makes everyone sleep between any two hops; many at once fill the rings.
        let mut hops = 0;
        for workers in [1, 2, 64] {
            let each = 12_000 / workers;
            let work = |worker: usize| {
                let target = target.clone();
                async move {
                    for nth in 0..each {
                        let key = &keys[(nth + worker + thread as usize) % keys.len()];
                        assert!(target.get(key).await.unwrap().is_none());
                    }
                }
            };
            join_all((0..workers).map(work)).await;
            hops += each * workers;
        }
        hops as u64
    });
    assert!(hops.iter().sum::<u64>() >= 100_000, "{hops:?}");
}

/// What two shards asked of their files is in their traces, to the byte; and an ordinary drive programs at least that.
#[test]
fn traces_hold_what_the_media_were_asked_for() {
    let folder = folder();
    let base = folder.path().join("trace");
    let mut setup = setup(folder.path(), 2);
    // Sectors of a page: the drive then programs just what it is told to.
    let set = [("chunk_bytes", "256KiB"), ("sector_bytes", "4096")];
    setup.overrides = Overrides::new(set.map(|(name, value)| (name.to_owned(), value.to_owned())));
    setup.trace = Some(base.clone());
    let connect = EngineConnect::new(setup, &GiveUp::default()).unwrap();
    phase(&connect, async |thread, target| {
        for number in (0..400).filter(|number| number % 2 == u64::from(thread)) {
            target.put(&key(number), value(number, 6_000), None).await.unwrap();
        }
    });
    let written = looks(&connect).counters.device_written_bytes.unwrap();
    let traces = [0, 1].map(|shard| {
        let file = std::fs::File::open(format!("{}.{shard}", base.display())).unwrap();
        Trace::read(file).unwrap()
    });
    assert!(traces.iter().all(|trace| trace.tail == Tail::Ended && trace.written_bytes() > 1 << 20));
    assert_eq!(traces.iter().map(Trace::written_bytes).sum::<u64>(), written);

    let joined = side_by_side(&traces).unwrap();
    let pages = (joined.geometry.slice_bytes() / 4096) as u32;
    let options =
        FtlOptions { logical_pages: pages, block_pages: 96, over_provisioning: 0.2, ..FtlOptions::default() };
    let mut drive = Ftl::new(options).unwrap();
    drive.fill();
    let before = drive.counters();
    let replayed = replay(&joined, &mut drive, &ReplayOptions::default()).unwrap();
    assert_eq!((replayed.host_bytes, replayed.counters), (written, drive.counters().since(&before)));
    assert_eq!(replayed.counters.host_pages * 4096, written);
    let programmed = replayed.counters.host_pages + replayed.counters.collector_pages;
    assert_eq!(replayed.programmed_bytes, programmed * 4096);

    // A second crew would have to begin the files anew.
    let load = async |targets: anyhow::Result<Vec<Rc<EngineTarget>>>| {
        let error = targets.err().unwrap().to_string();
        assert!(error.contains("shard 0 was recorded before"), "{error}");
    };
    connect.host(Seat { thread: 0, threads: 2, connections: 1 }, load).unwrap();
}

/// The same over a medium that tells what it was asked: every write and reset is there, and nothing else.
#[test]
fn a_trace_agrees_with_the_counters_of_the_medium() {
    let media = SimMedia::new(SIM_GEOMETRY, SimOptions { conventional: false, ..SimOptions::default() });
    let end = mesh::mesh(1, 1).unwrap().remove(0);
    let (before, recording) = ring::run(async {
        let mut door = Door::new(end.bell_file().unwrap()).unwrap();
        Store::format(&media, device::slice_id(0)).await.unwrap();
        let before = media.counters();
        let (recorder, recording) = Recorder::new(media.clone(), Vec::new()).unwrap();
        let options = terrane_engine::Options::default();
        let (store, recovery) = Store::open(recorder, device::slice_id(0), options).await.unwrap();
        let chunk_bytes = SIM_GEOMETRY.chunk_bytes();
        let shard = Shard::new(store, &recovery, end, 1, None, Arc::default(), chunk_bytes).await.unwrap();
        let worker = shard.clone();
        let load = async {
            for number in 0..300 {
                worker.put(&key(number % 7), &value(number, 900)).await.unwrap();
            }
        };
        shard.live(load, &mut door).await.unwrap();
        (before, recording)
    })
    .unwrap();
    let counted = media.counters();
    let trace = Trace::read(&recording.end().unwrap()[..]).unwrap();
    let count = |kind: fn(&Event) -> bool| trace.events.iter().filter(|event| kind(event)).count() as u64;
    assert_eq!(trace.written_bytes(), counted.written_bytes - before.written_bytes);
    assert_eq!(count(|event| matches!(event, Event::Write { .. })), counted.writes - before.writes);
    assert_eq!(count(|event| matches!(event, Event::Reset { .. })), counted.resets - before.resets);
    assert!(counted.resets - before.resets > 3, "several chunks: {counted:?}");
}

/// A write that fails stops the shard: nothing of its flush is acknowledged, nor anything later; reads go on, and the
/// end of the thread is an error.
#[test]
fn a_failed_write_is_never_a_success() {
    let media = SimMedia::new(SIM_GEOMETRY, SimOptions::default());
    let end = mesh::mesh(1, 1).unwrap().remove(0);
    let ended = ring::run(async {
        let mut door = Door::new(end.bell_file().unwrap()).unwrap();
        Store::format(&media, device::slice_id(0)).await.unwrap();
        let opened =
            Store::open(media.clone(), device::slice_id(0), terrane_engine::Options::default()).await;
        let (store, recovery) = opened.unwrap();
        let shard = Shard::new(store, &recovery, end, 1, None, Arc::default(), SIM_GEOMETRY.chunk_bytes())
            .await
            .unwrap();
        let worker = shard.clone();
        let load = async {
            worker.put(b"key", b"kept").await.unwrap();
            media.fail_next_write();
            for failed in join_all((0..4).map(|_| worker.put(b"key", b"lost"))).await {
                assert_eq!(failed.unwrap_err().kind, FailureKind::OutcomeUnknown);
            }
            let refused = worker.put(b"key", b"late").await.unwrap_err();
            assert_eq!(refused.kind, FailureKind::Refused, "{}", refused.message);
            let found = worker.get(b"key").await.unwrap().unwrap();
            assert_eq!((&found.value[..], found.version), (&b"kept"[..], Some(1)));
        };
        shard.live(load, &mut door).await
    })
    .unwrap();
    assert!(format!("{:#}", ended.unwrap_err()).starts_with("shard 0 failed: the store stopped"));
}

/// More operations at once than a ring has places for: the rest wait for credit.
#[test]
fn workers_beyond_the_rings_capacity_wait_their_turn() {
    let folder = folder();
    let connect = open(folder.path(), 2);
    phase(&connect, async |_, target| {
        let workers = (0..2 * mesh::CAPACITY as u64 + 500).map(|number| {
            let target = target.clone();
            async move { target.get(&key(number)).await.unwrap().is_none() }
        });
        assert!(join_all(workers).await.into_iter().all(|none| none));
    });
}

//! How long a store on a real file takes to open, with footers and without, and what footers cost.
//!
//! ```text
//! cargo test --release -p terrane-engine --test reopen -- --ignored --nocapture
//! TERRANE_REOPEN_MIB=8192 TERRANE_REOPEN_DIR=/somewhere cargo test ...
//! ```

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use terrane_engine::{Counters, ENTRY_OPS, Entry, GroupId, Options, Recovery, SliceId, Store, op};
use terrane_ocssd::{FileDevice, FileMedia, FormatOptions};

const GROUP: GroupId = GroupId(1);
const SLICE: SliceId = SliceId { cluster: 0xabc, node: 1, shard: 0 };
const VALUE_BYTES: usize = 1024;
/// Clients whose writes share a flush.
const CLIENTS: u64 = 64;
const CHUNK_BYTES: u64 = 8 << 20;

/// Keys of YCSB, or random bytes.
#[derive(Debug, Clone, Copy)]
enum Keys {
    User,
    Random,
}

impl Keys {
    fn key(self, number: u64) -> Vec<u8> {
        // Splitmix64's finalizer: a bijection.
        let mix = |mut z: u64| {
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        match self {
            Keys::User => format!("user{:019}", mix(number) >> 1).into_bytes(),
            Keys::Random => [mix(number).to_le_bytes(), mix(!number).to_le_bytes()].concat(),
        }
    }
}

fn run<T>(main: impl Future<Output = T>) -> T {
    monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
        .build()
        .expect("io_uring works here")
        .block_on(main)
}

async fn open(device: &FileDevice) -> (Store<FileMedia>, Recovery) {
    Store::open(device.slice(0).unwrap(), SLICE, Options::default()).await.unwrap()
}

fn fill(path: &Path, keys: Keys, count: u64) -> Counters {
    let device = FileDevice::open(path).unwrap();
    run(async {
        Store::format(&device.slice(0).unwrap(), SLICE).await.unwrap();
        let (store, _) = open(&device).await;
        let writer = async {
            store.create_group(GROUP, Bytes::new()).unwrap().await.unwrap();
            for first in (1..=count).step_by(CLIENTS as usize) {
                let entries = (first..first + CLIENTS).map(|index| {
                    let payload = op::encode_put(&keys.key(index), &[index as u8; VALUE_BYTES], None);
                    Entry { term: 1, kind: ENTRY_OPS, payload }
                });
                store.append(GROUP, first, entries.collect()).unwrap().await.unwrap();
                store.apply(GROUP, first + CLIENTS - 1).unwrap();
                store.truncate_front(GROUP, first).unwrap();
            }
            store.close();
        };
        let (flushed, ()) = futures(store.run_flusher(), writer).await;
        flushed.unwrap();
        store.counters()
    })
}

/// Both, side by side.
async fn futures<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    let (mut a, mut b) = (std::pin::pin!(a), std::pin::pin!(b));
    let (mut out_a, mut out_b) = (None, None);
    std::future::poll_fn(|cx| {
        for _ in 0..2 {
            if out_a.is_none()
                && let std::task::Poll::Ready(out) = a.as_mut().poll(cx)
            {
                out_a = Some(out);
            }
            if out_b.is_none()
                && let std::task::Poll::Ready(out) = b.as_mut().poll(cx)
            {
                out_b = Some(out);
            }
        }
        match out_a.is_some() && out_b.is_some() {
            true => std::task::Poll::Ready((out_a.take().unwrap(), out_b.take().unwrap())),
            false => std::task::Poll::Pending,
        }
    })
    .await
}

/// The best of three starts.
fn reopen(path: &Path, count: u64) -> (Duration, Recovery) {
    let once = || {
        let device = FileDevice::open(path).unwrap();
        run(async {
            let before = Instant::now();
            let (store, recovery) = open(&device).await;
            let took = before.elapsed();
            assert!(recovery.damage.is_empty());
            assert_eq!(store.counters().keys, count);
            (took, recovery)
        })
    };
    (0..3).map(|_| once()).min_by_key(|(took, _)| *took).unwrap()
}

/// Without its last byte, no footer is valid.
fn spoil_footers(path: &Path) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let bytes = file.metadata().unwrap().len();
    for end in (1 << 20..=bytes).step_by(CHUNK_BYTES as usize).skip(3) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, end - 1).unwrap();
        file.write_all_at(&[byte[0] ^ 1], end - 1).unwrap();
    }
    file.sync_all().unwrap();
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

#[test]
#[ignore = "a measurement of minutes, for a release build"]
fn reopening_with_footers_and_without() {
    let mib = number("TERRANE_REOPEN_MIB", 1024);
    let folder = std::env::var_os("TERRANE_REOPEN_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = tempfile::tempdir_in(folder).unwrap();
    let path = folder.path().join("device");
    for keys in [Keys::User, Keys::Random] {
        let options = FormatOptions {
            cluster: SLICE.cluster,
            node: SLICE.node,
            shards: 1,
            size_bytes: (mib << 20) * 13 / 10 + (80 << 20),
            chunk_bytes: Some(CHUNK_BYTES),
            sector_bytes: None,
            force: true,
        };
        terrane_ocssd::format(&path, &options, &mut |_, _| {}).unwrap();
        let count = (mib << 20) / VALUE_BYTES as u64;
        let written = fill(&path, keys, count);
        let (with, hinted) = reopen(&path, count);
        spoil_footers(&path);
        let (without, scanned) = reopen(&path, count);
        assert_eq!(scanned.hinted_segments, 0);
        let log = written.log_bytes + written.header_bytes + written.hint_bytes + written.padding_bytes;
        let share = |bytes: u64| 100.0 * bytes as f64 / written.user_bytes as f64;
        let read = |recovery: &Recovery| recovery.bytes_scanned as f64 / f64::from(1 << 20);
        eprintln!(
            "{keys:?}: {mib} MiB of values of {VALUE_BYTES} bytes\n\
             footers {:.1} bytes a key, {:.2} % of what users wrote; padding {:.2} %, all {:.2} %\n\
             with footers: {with:.2?}, {:.1} MiB read, {} segments by footer\n\
             without:      {without:.2?}, {:.1} MiB read",
            written.hint_bytes as f64 / count as f64,
            share(written.hint_bytes),
            share(written.padding_bytes),
            share(log),
            read(&hinted),
            hinted.hinted_segments,
            read(&scanned),
        );
    }
}

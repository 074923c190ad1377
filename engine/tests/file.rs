//! The store on a real file through io_uring and direct I/O.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::pin::pin;
use std::task::Poll;

use bytes::Bytes;
use terrane_engine::{
    ENTRY_OPS, Entry, GroupId, HardState, OpenError, Options, Recovery, SliceId, Store, StoreError, op,
};
use terrane_ocssd::{FileDevice, FileMedia, FormatOptions};

const GROUPS: u64 = 4;
const CLUSTER: u128 = 0xabc;

fn slice(shard: u32) -> SliceId {
    SliceId { cluster: CLUSTER, node: 1, shard }
}

fn run<T>(main: impl Future<Output = T>) -> T {
    monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
        .build()
        .expect("io_uring works here")
        .block_on(main)
}

fn lay_out(path: &Path) {
    let options = FormatOptions {
        cluster: CLUSTER,
        node: 1,
        shards: 2,
        size_bytes: 64 << 20,
        chunk_bytes: Some(1 << 20),
        sector_bytes: None,
        force: false,
    };
    terrane_ocssd::format(path, &options, &mut |_, _| {}).expect("a file can be laid out");
    let device = FileDevice::open(path).unwrap();
    run(async {
        for shard in 0..2 {
            Store::format(&device.slice(shard).unwrap(), slice(shard)).await.unwrap();
        }
    });
}

async fn open(device: &FileDevice, shard: u32) -> Result<(Store<FileMedia>, Recovery), OpenError> {
    // A small tail and no cache: most reads go to the file.
    let options = Options { cache_bytes: 0, tail_bytes: 64 << 10, ..Options::default() };
    Store::open(device.slice(shard).unwrap(), slice(shard), options).await
}

fn value(group: u64, index: u64) -> Vec<u8> {
    let length = (group * 7919 + index * 104_729) % 3000;
    (0..length).map(|at| (at * index + group) as u8).collect()
}

fn key(index: u64) -> String {
    format!("key{:03}", index % 150)
}

/// Several groups write at once; everything is read back, before and after an orderly end and after a sudden one.
#[test]
fn what_was_written_is_read_back_after_each_start() {
    // The build's own folder is on a disk; a folder for temporary files may be in memory, without direct I/O.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("device");
    lay_out(&path);
    let mut last = 0;
    for orderly in [true, false, true] {
        let device = FileDevice::open(&path).unwrap();
        run(async {
            let (store, recovery) = open(&device, 0).await.unwrap();
            assert!(recovery.damage.is_empty());
            // A task of its own would outlive the runtime, and keep the device.
            let flusher = store.run_flusher();
            let main = async {
                for group in (0..GROUPS).map(GroupId) {
                    if last == 0 {
                        store.create_group(group, Bytes::from_static(b"members")).unwrap().await.unwrap();
                    }
                    assert_eq!(store.last_index(group), last);
                    store.apply(group, last).unwrap();
                    check(&store, group, last).await;
                }
                let writers: Vec<_> = (0..GROUPS)
                    .map(|group| monoio::spawn(write(store.clone(), GroupId(group), last)))
                    .collect();
                for writer in writers {
                    writer.await;
                }
                for group in (0..GROUPS).map(GroupId) {
                    check(&store, group, last + 300).await;
                }
                let counters = store.counters();
                assert!(counters.cache_misses > 0, "some reads went to the file");
                let written =
                    counters.log_bytes + counters.header_bytes + counters.hint_bytes + counters.padding_bytes;
                // The anchor is the other write.
                let anchor = counters.media.written_bytes - written;
                assert!(anchor > 0 && anchor <= 4096, "{anchor} bytes are not accounted for");
                if orderly {
                    store.close();
                }
            };
            alongside(flusher, main, orderly).await;
        });
        last += 300;
    }
    // The other slice was not touched.
    let device = FileDevice::open(&path).unwrap();
    let (_, recovery) = run(async { open(&device, 1).await.map(|(_, recovery)| ((), recovery)) }).unwrap();
    assert_eq!((recovery.frames, recovery.epoch), (0, 1));
}

/// Runs both until `main` is done, and the flusher too if it is to come to its end; else it is dropped.
async fn alongside(
    flusher: impl Future<Output = Result<(), StoreError>>,
    main: impl Future<Output = ()>,
    orderly: bool,
) {
    let (mut flusher, mut main) = (pin!(flusher), pin!(main));
    let (mut flushed, mut done) = (false, false);
    std::future::poll_fn(|cx| {
        done = done || main.as_mut().poll(cx).is_ready();
        if !flushed && let Poll::Ready(result) = flusher.as_mut().poll(cx) {
            result.expect("the medium works");
            flushed = true;
        }
        done = done || main.as_mut().poll(cx).is_ready();
        if done && (flushed || !orderly) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

async fn write(store: Store<FileMedia>, group: GroupId, last: u64) {
    let mut index = last;
    while index < last + 300 {
        let count = (index % 7 + 1).min(last + 300 - index);
        let entries = (index + 1..=index + count)
            .map(|index| {
                let payload = match index % 11 {
                    0 => op::encode_delete(key(index).as_bytes()),
                    _ => op::encode_put(key(index).as_bytes(), &value(group.0, index), None),
                };
                Entry { term: 1 + last, kind: ENTRY_OPS, payload }
            })
            .collect();
        store.append(group, index + 1, entries).unwrap().await.unwrap();
        index += count;
        store.apply(group, index).unwrap();
    }
    let state = HardState { term: 1 + last, vote: 1, commit: index };
    store.set_hard_state(group, state).unwrap().await.unwrap();
}

async fn check(store: &Store<FileMedia>, group: GroupId, last: u64) {
    let mut expected = BTreeMap::new();
    for index in 1..=last {
        match index % 11 {
            0 => drop(expected.remove(&key(index))),
            _ => drop(expected.insert(key(index), (value(group.0, index), index))),
        }
    }
    let scan = store.scan(group, Bound::Unbounded, Bound::Unbounded, usize::MAX, usize::MAX).await.unwrap();
    let rows = scan.rows.iter().map(|(key, found)| {
        (String::from_utf8(key.to_vec()).unwrap(), (found.value.to_vec(), found.version))
    });
    assert_eq!(rows.collect::<BTreeMap<_, _>>(), expected, "{group}");
    let missing = store.get(group, b"key999").await.unwrap();
    assert_eq!(missing, None);
}

//! Values that are stored compressed: what readers, replicas, cleaning and a start make of them.

mod harness;

use std::ops::Bound;

use bytes::Bytes;
use harness::{Node, geometry};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;
use terrane_engine::compression::{CompressionOptions, DecompressError, RAW_BYTES_MAX, ValueCompressor};
use terrane_engine::op::{Op, Stored};
use terrane_engine::{ENTRY_OPS, Entry, GroupId, Lookup, Options, ReadError, Scan, op};
use terrane_ocssd::{SimMedia, SimOptions};

const GROUP: GroupId = GroupId(1);

fn compressor() -> ValueCompressor {
    ValueCompressor::new(CompressionOptions::default()).unwrap()
}

fn entry(payload: Bytes) -> Entry {
    Entry { term: 1, kind: ENTRY_OPS, payload }
}

fn put(key: &str, value: &[u8]) -> Entry {
    entry(op::encode_put_compressed(key.as_bytes(), value, None, &mut compressor()))
}

fn fresh(chunks: u32) -> Node {
    let mut node = Node::fresh(chunks);
    let created = node.store.create_group(GROUP, Bytes::new()).unwrap();
    node.wait(created);
    node
}

fn append(node: &mut Node, entries: Vec<Entry>) {
    let first = node.store.last_index(GROUP) + 1;
    let last = first + entries.len() as u64 - 1;
    let durable = node.store.append(GROUP, first, entries).unwrap();
    node.wait(durable);
    node.store.apply(GROUP, last).unwrap();
}

fn get(node: &mut Node, key: &'static str) -> Result<Vec<u8>, ReadError> {
    let store = node.store.clone();
    let found = node.block_on(async move { store.get(GROUP, key.as_bytes()).await });
    found.map(|found| found.expect("the key has a value").value.to_vec())
}

fn scan(node: &mut Node, bytes_max: usize) -> Result<Scan, ReadError> {
    let store = node.store.clone();
    node.block_on(async move {
        store.scan(GROUP, Bound::Unbounded, Bound::Unbounded, usize::MAX, bytes_max).await
    })
}

/// From memory, from the cache, from the medium, and after a start.
#[test]
fn readers_get_the_raw_value_and_the_log_carries_the_stored_one() {
    let mut node = fresh(16);
    let value = b"says the same again, ".repeat(100);
    let sent = put("key", &value);
    assert!(sent.payload.len() < 200);
    append(&mut node, vec![sent.clone()]);
    assert_eq!(get(&mut node, "key").unwrap(), value);
    let Lookup::Ready(found) = node.store.try_get(GROUP, b"key") else { panic!("it is in the tail") };
    assert_eq!((&found.value[..], found.version), (&value[..], 1));
    let counters = node.store.counters();
    assert_eq!(counters.user_bytes, 3 + value.len() as u64, "users count what they wrote");
    assert!(counters.log_bytes < 500, "{counters:?}");
    let store = node.store.clone();
    let entries = node.block_on(async move { store.entries(GROUP, 1, 1, u64::MAX).await }).unwrap();
    assert_eq!(entries[..], std::slice::from_ref(&sent)[..], "replicas get it as it is");

    let mut node = end_and_open(node);
    assert!(matches!(node.store.try_get(GROUP, b"key"), Lookup::OnMedia { bytes } if bytes < 200));
    for _ in 0..2 {
        assert_eq!(get(&mut node, "key").unwrap(), value);
    }
    let counters = node.store.counters();
    assert_eq!((counters.cache_misses, counters.cache_hits), (1, 1));
    let row = &scan(&mut node, usize::MAX).unwrap().rows[0];
    assert_eq!((&row.0[..], &row.1.value[..]), (&b"key"[..], &value[..]));
}

/// Ends in order, so that the next start knows what was applied, and nothing is in memory.
fn end_and_open(mut node: Node) -> Node {
    node.store.close();
    node.executor.settle();
    node.power_cycle()
}

/// Without a count of raw bytes, a scan of some KiB of payloads returns any number of MiB.
#[test]
fn a_scan_returns_no_more_raw_bytes_than_it_was_asked_for() {
    let mut node = fresh(16);
    let value = vec![b'x'; 100_000];
    append(&mut node, (0..9).map(|key| put(&format!("key{key}"), &value)).collect());
    for _ in 0..2 {
        let page = scan(&mut node, 250_000).unwrap();
        assert_eq!((page.rows.len(), page.more), (3, true));
        assert!(page.rows.iter().all(|(_, found)| found.value[..] == value[..]));
        let page = scan(&mut node, usize::MAX).unwrap();
        assert_eq!((page.rows.len(), page.more), (9, false));
        assert_eq!(scan(&mut node, 1).unwrap().rows.len(), 1, "at least one row");
        // Then from the medium.
        node = end_and_open(node);
    }
}

/// Stored bytes that are not a frame of the raw length that is said: they were appended so, by whoever it was.
#[test]
fn what_does_not_decompress_is_an_error_and_no_panic() {
    let mut node = fresh(16);
    let sound = put("key", &b"says the same again, ".repeat(100));
    let Some(Ok(Op::Put { value: Stored::Compressed { stored, raw_bytes }, .. })) =
        op::decode(&sound.payload).next()
    else {
        panic!("it is compressed")
    };
    assert_eq!(raw_bytes, 2100);
    // By hand: tag, key length, stored length, raw length (two bytes each in the shortest form), key, stored.
    let with = |raw_bytes: u32, stored: &[u8]| {
        let length = |bytes: u32| [bytes as u8 & 0x7f | 0x80, (bytes >> 7) as u8];
        let mut payload = vec![4, 3];
        match stored.len() {
            short @ 0..128 => payload.push(short as u8),
            long => payload.extend(length(long as u32)),
        }
        payload.extend(length(raw_bytes));
        payload.extend(b"key");
        payload.extend(stored);
        entry(payload.into())
    };
    assert_eq!(with(2100, stored), sound, "the hand writes what the builder does");
    let mut damaged = stored.to_vec();
    damaged[0] ^= 0xff;
    for (wrong, expected) in [
        (with(2099, stored), None),
        (with(2101, stored), Some(DecompressError::Length { raw_bytes: 2101, found: 2100 })),
        (with(2100, &damaged), None),
    ] {
        append(&mut node, vec![wrong]);
        let index = node.store.last_index(GROUP);
        assert!(matches!(node.store.try_get(GROUP, b"key"), Lookup::OnMedia { .. }), "get says why");
        for _ in 0..2 {
            let error = get(&mut node, "key").unwrap_err();
            let ReadError::Compressed { group: GROUP, index: at, reason } = error else { panic!("{error}") };
            assert_eq!(at, index);
            assert!(expected.as_ref().is_none_or(|expected| *expected == reason), "{reason}");
            assert!(matches!(scan(&mut node, usize::MAX), Err(ReadError::Compressed { .. })));
            node = end_and_open(node);
        }
    }
    // A later value is read as ever.
    append(&mut node, vec![sound]);
    assert_eq!(get(&mut node, "key").unwrap().len(), 2100);
}

/// A length that cannot be is refused before it is stored.
#[test]
fn a_raw_length_that_cannot_be_is_not_appended() {
    let node = fresh(16);
    let mut payload = vec![4, 1, 2];
    payload.extend([0x81, 0x80, 0x80, 0x02]);
    payload.extend(b"kxx");
    let refused = node.store.append(GROUP, 1, vec![entry(payload.into())]).unwrap_err();
    let words = format!("a value of {} bytes, of which 2 are stored", RAW_BYTES_MAX + 1);
    assert!(refused.to_string().contains(&words), "{refused}");
}

/// Cleaning moves what is stored, as it is: overwriting goes on for many times the slice, and every value reads back.
#[test]
fn cleaning_moves_compressed_values() {
    let media = SimMedia::new(geometry(24), SimOptions::default());
    Node::format(&media);
    let mut node = Node::try_open(&media, Options { cache_bytes: 0, ..harness::options() }).unwrap();
    let created = node.store.create_group(GROUP, Bytes::new()).unwrap();
    node.wait(created);
    let value = |key: u64, round: u64| {
        let mut value = vec![7; 3000];
        Pcg64Mcg::seed_from_u64(key << 32 | round).fill_bytes(&mut value[..1500]);
        value
    };
    let keys = 110;
    let mut newest = vec![0; keys as usize];
    for round in 1..100 {
        // Some stay as they are for now, and are moved.
        let entries = (0..keys).filter(|key| round == 1 || (key * key + 7 * round) % 11 < 2).map(|key| {
            newest[key as usize] = round;
            put(&format!("key{key:03}"), &value(key, round))
        });
        let entries: Vec<Entry> = entries.collect();
        for some in entries.chunks(5) {
            append(&mut node, some.to_vec());
            node.store.truncate_front(GROUP, node.store.last_index(GROUP) + 1).unwrap();
            node.executor.settle();
        }
    }
    assert!(node.store.counters().cleaned_segments > 20, "{:?}", node.store.counters());
    assert!(node.store.counters().moved_bytes > 10_000, "{:?}", node.store.counters());
    for _ in 0..2 {
        let rows = scan(&mut node, usize::MAX).unwrap().rows;
        assert_eq!(rows.len(), keys as usize);
        for ((key, found), at) in rows.into_iter().zip(0..) {
            assert_eq!(found.value[..], value(at, newest[at as usize])[..], "{key:?}");
        }
        node = end_and_open(node);
    }
}

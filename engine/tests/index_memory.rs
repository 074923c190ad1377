//! What the index takes, by an allocator that counts: the promise of 32 bytes beside a key, and the accounting.

#[path = "harness/counting_allocator.rs"]
mod counting_allocator;

use std::hint::black_box;

use counting_allocator::{CountingAllocator, allocated_bytes, allocations};
use terrane_engine::index::{Index, Located, Place};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const KEYS: u64 = 200_000;

/// SplitMix64 (Steele, Lea and Flood, OOPSLA '14): a permutation, so that no key comes twice.
fn mixed(number: u64) -> u64 {
    let mixed = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

fn random_key(bytes: usize, number: u64) -> Vec<u8> {
    let words = (0..bytes as u64 / 8).flat_map(|word| mixed(number + (word << 40)).to_be_bytes());
    words.collect()
}

/// As after a year of writes: versions of five bytes, chunks of 64 MiB, values of 1 KB.
fn located(number: u64) -> Located {
    let place = Place {
        chunk: (mixed(number) % 4096) as u32,
        offset: (mixed(number) >> 20) as u32 % (64 << 20),
        length: 1024 + (mixed(number) % 128) as u32,
    };
    Located::new((1 << 33) + number, place)
}

/// Bytes that the index over these keys takes beside them, for each key; its own account must agree.
fn bytes_beside_a_key(shape: &str, key: impl Fn(u64) -> Vec<u8>) -> f64 {
    let before = allocated_bytes();
    let mut index = Index::default();
    for number in 0..KEYS {
        index.insert(&key(number), located(number));
    }
    let account = |index: &Index| {
        assert_eq!(
            index.memory_bytes() as i64,
            allocated_bytes() - before,
            "{shape}: memory is accounted exactly"
        );
    };
    account(&index);
    let beside = (index.memory_bytes() as f64 - index.key_bytes() as f64) / KEYS as f64;

    // Nothing is allocated by a look-up, nor by an update that needs no wider location.
    let calls = allocations();
    for number in 0..1000 {
        let random = random_number(number);
        let key = key(random);
        let keys_made = allocations() - calls;
        let known = black_box(index.get(&key)).expect("it was inserted");
        index.repoint(&key, known.version, known.place);
        assert!(index.relocate(&key, known.version, known.place, known.place));
        assert_eq!(index.insert(&key, known), Some(known));
        assert_eq!(allocations() - calls, keys_made, "{shape}: no allocation");
    }

    for number in 0..KEYS {
        if number % 10 != 0 {
            index.remove(&key(number));
        }
    }
    account(&index);
    let left = (index.memory_bytes() as f64 - index.key_bytes() as f64) / index.len() as f64;
    let key_bytes = index.key_bytes() as f64 / index.len() as f64;
    assert!(left <= 32.0 + key_bytes / 8.0, "{shape}: {left:.1} bytes beside a key that was left over");
    drop(index);
    assert_eq!(allocated_bytes(), before, "{shape}: all of it is given back");
    // Not before: the test's output is kept in memory of this thread.
    eprintln!("{shape}: {beside:.1} bytes beside a key, {left:.1} once nine of ten are gone");
    beside
}

fn random_number(number: u64) -> u64 {
    mixed(number) % KEYS
}

#[test]
fn at_most_32_bytes_beside_a_key() {
    for bytes in [8, 16, 24, 64, 256] {
        let beside =
            bytes_beside_a_key(&format!("random keys of {bytes} bytes"), |number| random_key(bytes, number));
        assert!(beside <= 32.0, "{bytes}-byte keys: {beside:.1}");
        if bytes == 16 || bytes == 24 {
            assert!(beside <= 20.0, "prefix compression should beat the promise: {beside:.1}");
        }
    }
    let sequential = bytes_beside_a_key("sequential keys", |number| format!("user{number:020}").into_bytes());
    assert!(sequential <= 10.0, "{sequential:.1}: what keys have in common is stored once");
    let prefixed = bytes_beside_a_key("keys with 40 bytes in common", |number| {
        [&b"tenant-000042/table-orders/customer-0001"[..], &mixed(number).to_be_bytes()].concat()
    });
    assert!(prefixed <= 0.0, "{prefixed:.1}: keys take less than their own bytes");
}

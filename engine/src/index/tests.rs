//! The index against a `BTreeMap` as the model, with its invariants checked as it goes.

use std::collections::BTreeMap;
use std::ops::Bound;

use proptest::prelude::*;
use rand::{Rng, RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::*;
use crate::op::KEY_BYTES_MAX;
use crate::policy::heat::Heat;

type Model = BTreeMap<Vec<u8>, Located>;

impl Index {
    /// Checks every invariant, memory included.
    fn check(&self) {
        let (_, keys, bytes) = self.root.check(None, None);
        assert_eq!(keys, self.keys);
        assert_eq!(bytes, self.memory_bytes, "memory is accounted exactly");
    }
}

fn at(version: u64) -> Located {
    Located::new(version, Place { chunk: 1, offset: version as u32, length: 10 })
}

fn collect(index: &Index, start: Bound<&[u8]>, end: Bound<&[u8]>) -> Vec<(Vec<u8>, Located)> {
    let mut found = Vec::new();
    let mut range = index.range(start, end);
    while let Some((key, located)) = range.next_key() {
        found.push((key.to_vec(), located));
    }
    assert!(range.next_key().is_none(), "a range that ended stays so");
    found
}

fn assert_same(index: &Index, model: &Model) {
    index.check();
    assert_eq!(index.len(), model.len() as u64);
    assert_eq!(index.key_bytes(), model.keys().map(|key| key.len() as u64).sum::<u64>());
    let found = collect(index, Bound::Unbounded, Bound::Unbounded);
    assert!(
        found.iter().map(|(key, located)| (key, located)).eq(model.iter()),
        "the same keys and locations"
    );
}

/// Shapes of keys, each of which meets other parts of a page.
#[derive(Debug, Clone, Copy)]
enum Keys {
    /// Random bytes, all of one length.
    Random(usize),
    /// Numbers in order, as text.
    Sequential,
    /// Few different bytes, any length: prefixes of each other, heads in common, zeros at the end.
    Nested,
    /// A long part in common, with exceptions.
    LongPrefix(usize),
    /// Up to the largest size.
    Large,
}

impl Keys {
    fn key(self, random: &mut Pcg64, next: &mut u64) -> Vec<u8> {
        match self {
            Keys::Random(bytes) => {
                let mut key = vec![0; bytes];
                random.fill_bytes(&mut key);
                // Few enough to be met again.
                key[2..bytes - 2].fill(7);
                key
            }
            Keys::Sequential => {
                *next += 1;
                let number = if random.random_ratio(1, 4) { random.random_range(0..*next) } else { *next };
                format!("user{number:020}").into_bytes()
            }
            Keys::Nested => {
                let bytes = random.random_range(0..14);
                (0..bytes).map(|_| *[0, 0, 0, 1, 255].get(random.random_range(0..5_usize)).unwrap()).collect()
            }
            Keys::LongPrefix(bytes) => {
                let cut = if random.random_ratio(1, 50) { random.random_range(0..bytes) } else { bytes };
                let mut key = vec![b'p'; cut];
                key.extend_from_slice(&random.random_range(0..3000_u32).to_be_bytes());
                key
            }
            Keys::Large => {
                let bytes = random.random_range(0..=KEY_BYTES_MAX);
                let mut key = vec![random.random_range(0..3_u8); bytes];
                if let Some(byte) = key.get_mut(random.random_range(0..=KEY_BYTES_MAX)) {
                    *byte = 9;
                }
                key
            }
        }
    }
}

fn located(random: &mut Pcg64, version: u64) -> Located {
    let any = |random: &mut Pcg64| random.random::<u32>() >> random.random_range(0..32_u32);
    let place = Place { chunk: any(random), offset: any(random), length: any(random) };
    let wide = random.random_ratio(1, 1000);
    let heat = if random.random_ratio(1, 8) { Heat::from_bits(random.random()) } else { Heat::NEW };
    Located { version: if wide { version << 40 } else { version }, place, heat }
}

fn seeds() -> Vec<u64> {
    match std::env::var("TERRANE_SEED") {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => (1..=3).collect(),
    }
}

/// Random operations on keys of one shape, in waves that grow and shrink.
fn run(keys: Keys, operations: u32) {
    for seed in seeds() {
        eprintln!("seed {seed}: TERRANE_SEED={seed} cargo test -p terrane-engine --lib index::");
        let mut random = Pcg64::seed_from_u64(seed);
        let (mut index, mut model) = (Index::default(), Model::new());
        let mut next = 0;
        for operation in 1..=operations {
            let shrinks = operation / (operations / 6).max(1) % 2 == 1;
            let key = match random.random_ratio(1, 3).then(|| keys.key(&mut random, &mut next)) {
                Some(key) => key,
                // One that is there, or the place where one was.
                None => {
                    let probe = keys.key(&mut random, &mut next);
                    let near = model.range(probe.clone()..).next().or(model.iter().next_back());
                    near.map_or(probe, |(key, _)| key.clone())
                }
            };
            let known = model.get(&key).copied();
            assert_eq!(index.get(&key), known);
            let new = located(&mut random, operation.into());
            match random.random_range(0..10_u32) {
                0..=4 if !shrinks => {
                    assert_eq!(index.insert(&key, new), model.insert(key, new));
                }
                0..=6 => {
                    assert_eq!(index.remove(&key), model.remove(&key));
                }
                7 => {
                    let version = known.map_or(1, |known| known.version) + u64::from(random.random::<bool>());
                    index.repoint(&key, version, new.place);
                    if let Some(known) = model.get_mut(&key).filter(|known| known.version == version) {
                        known.place = new.place;
                    }
                }
                8 => {
                    let from = if random.random::<bool>() { known.unwrap_or(new) } else { new };
                    let moved = index.relocate(&key, from.version, from.place, new.place);
                    let same =
                        known.filter(|known| (known.version, known.place) == (from.version, from.place));
                    assert_eq!(moved, same.is_some());
                    if let Some(known) = same {
                        model.insert(key, Located { place: new.place, ..known });
                    }
                }
                _ => {
                    let (low, high) = (key, keys.key(&mut random, &mut next));
                    let bound = |key, random: &mut Pcg64| match random.random_range(0..5_u32) {
                        0 => Bound::Unbounded,
                        1 | 2 => Bound::Included(key),
                        _ => Bound::Excluded(key),
                    };
                    let (start, end) = (bound(&low[..], &mut random), bound(&high[..], &mut random));
                    let above = |key: &[u8]| match start {
                        Bound::Unbounded => true,
                        Bound::Included(start) => key >= start,
                        Bound::Excluded(start) => key > start,
                    };
                    let below = |key: &[u8]| match end {
                        Bound::Unbounded => true,
                        Bound::Included(end) => key <= end,
                        Bound::Excluded(end) => key < end,
                    };
                    let from = model.range::<[u8], _>((start, Bound::Unbounded));
                    let wanted = from.take_while(|(key, _)| above(key) && below(key)).take(200);
                    let mut range = index.range(start, end);
                    for (key, located) in wanted {
                        assert_eq!(range.next_key(), Some((&key[..], *located)));
                    }
                }
            }
            if operation % (operations / 40).max(1) == 0 {
                index.check();
                let most: u64 = model.keys().map(|key| key_bytes_max(key)).sum();
                assert!(index.memory_bytes() <= most + 256, "{} of {most}", index.memory_bytes());
            }
        }
        assert_same(&index, &model);

        let cut = keys.key(&mut random, &mut next);
        let (upper, model_upper) = (index.split_off(&cut), model.split_off(&cut));
        assert_same(&index, &model);
        assert_same(&upper, &model_upper);

        for key in model.keys() {
            assert!(index.remove(key).is_some());
        }
        assert_same(&index, &Model::new());
        assert_eq!(index.memory_bytes(), 0, "an empty index takes nothing");
    }
}

#[test]
fn random_keys_behave_like_the_model() {
    run(Keys::Random(16), 30_000);
    run(Keys::Random(24), 10_000);
}

#[test]
fn sequential_keys_behave_like_the_model() {
    run(Keys::Sequential, 20_000);
}

#[test]
fn keys_that_are_prefixes_of_each_other_behave_like_the_model() {
    run(Keys::Nested, 40_000);
}

#[test]
fn keys_with_a_long_common_prefix_behave_like_the_model() {
    run(Keys::LongPrefix(40), 20_000);
    run(Keys::LongPrefix(3000), 4000);
}

#[test]
fn keys_up_to_the_largest_behave_like_the_model() {
    run(Keys::Large, 1500);
}

/// An outlier must not blow a page of long common prefixes up.
#[test]
fn a_key_without_the_prefix_of_a_full_page_gets_a_page_of_its_own() {
    let (mut index, mut model) = (Index::default(), Model::new());
    let mut put = |key: Vec<u8>| {
        index.insert(&key, at(1));
        if key.len() < 100 {
            index.check();
        }
        model.insert(key, at(1));
    };
    let long = |number: u32| [&vec![b'm'; 60_000][..], &number.to_be_bytes()].concat();
    for number in 0..600 {
        put(long(number));
    }
    for outlier in [&b"a"[..], b"mm", b"z", b"mz"] {
        put(outlier.to_vec());
        put([outlier, &[b'm'; 70]].concat());
    }
    assert_same(&index, &model);
    assert!(index.memory_bytes() < 20 * 60_000 + 64 * 1024, "{} bytes", index.memory_bytes());
}

/// Without the separator before the page forgotten (but the one after it, which the last page lacks): a separator is left
/// over.
#[test]
fn a_page_that_is_emptied_beside_full_ones_leaves_their_keys_where_they_are() {
    // Inserted in order, pages are full, so that none of them can be merged.
    let key = |number: u32| format!("key{number:08}").into_bytes();
    for first in [0, 700, 2500] {
        let (mut index, mut model) = (Index::default(), Model::new());
        for number in 0..3000 {
            index.insert(&key(number), at(1));
            model.insert(key(number), at(1));
        }
        for number in (first..first + 500).rev() {
            assert!(index.remove(&key(number)).is_some());
            model.remove(&key(number));
            index.check();
        }
        assert_same(&index, &model);
        assert!(
            (0..3000).all(|number| index.get(&key(number)).is_some() == model.contains_key(&key(number)))
        );
    }
}

#[test]
fn keys_come_in_order_within_the_bounds() {
    let mut index = Index::default();
    for (version, key) in ["b", "a", "c", ""].iter().enumerate() {
        assert_eq!(index.insert(key.as_bytes(), at(version as u64)), None);
    }
    assert_eq!(index.insert(b"b", at(7)), Some(at(0)));
    let keys = |start, end| collect(&index, start, end).into_iter().map(|(key, _)| key).collect::<Vec<_>>();
    assert_eq!(keys(Bound::Unbounded, Bound::Unbounded), [&b""[..], b"a", b"b", b"c"]);
    assert_eq!(keys(Bound::Included(b"a"), Bound::Excluded(b"c")), [b"a", b"b"]);
    assert_eq!(keys(Bound::Excluded(b"a"), Bound::Included(b"c")), [b"b", b"c"]);
    assert!(keys(Bound::Included(b"c"), Bound::Included(b"a")).is_empty());
    assert!(keys(Bound::Excluded(b"a"), Bound::Excluded(b"a")).is_empty());
    assert!(keys(Bound::Included(b"a"), Bound::Excluded(b"a")).is_empty());
    assert_eq!(index.len(), 4);
}

#[test]
fn only_the_live_version_is_repointed() {
    let mut index = Index::default();
    index.insert(b"k", at(5));
    let place = Place { chunk: 9, offset: 0, length: 1 };
    index.repoint(b"k", 4, place);
    assert_eq!(index.get(b"k"), Some(at(5)));
    index.repoint(b"k", 5, place);
    assert_eq!(index.get(b"k"), Some(Located::new(5, place)));
    assert_eq!(index.remove(b"k").map(|located| located.version), Some(5));
    assert_eq!((index.get(b"k"), index.len()), (None, 0));
}

/// Without rule 1 at relocation (the place is not compared): the copy of an old record takes the key back.
#[test]
fn rule_1_only_the_record_that_was_copied_is_relocated() {
    let mut index = Index::default();
    let copy = Place { chunk: 7, offset: 1, length: 10 };
    let here = at(5).place;
    assert!(!index.relocate(b"k", 5, here, copy), "the key is gone");
    index.insert(b"k", at(5));
    assert!(!index.relocate(b"k", 4, here, copy), "another version");
    assert!(!index.relocate(b"k", 5, Place { chunk: 3, ..here }, copy), "another copy");
    assert_eq!(index.get(b"k"), Some(at(5)));
    assert!(index.relocate(b"k", 5, here, copy));
    assert_eq!(index.get(b"k"), Some(Located::new(5, copy)));
}

#[test]
fn a_cursor_goes_on_after_any_write_and_visits_what_stays_once() {
    for seed in seeds() {
        eprintln!("seed {seed}: TERRANE_SEED={seed} cargo test -p terrane-engine --lib index::");
        let mut random = Pcg64::seed_from_u64(seed);
        let key = |number: u32| number.wrapping_mul(0x9e37_79b1).to_be_bytes();
        let mut index = Index::default();
        // Odd ones come and go, even ones stay.
        for number in 0..20_000 {
            index.insert(&key(number), at(1));
        }
        let (low, high) = (0x2000_0000_u32.to_be_bytes(), 0xe000_0000_u32.to_be_bytes());
        let mut cursor = KeyCursor::new(Bound::Included(&low), Bound::Excluded(&high));
        let mut visited = Vec::new();
        let mut more = true;
        while more {
            more = cursor.visit(&index, random.random_range(1..200), |key, _| visited.push(key.to_vec()));
            for _ in 0..random.random_range(0..400) {
                let number = random.random_range(0..10_000) * 2 + 1;
                if random.random::<bool>() {
                    index.remove(&key(number));
                } else {
                    index.insert(&key(number), at(2));
                }
            }
        }
        assert!(!cursor.visit(&index, 1, |_, _| panic!("a cursor at its end stays there")));
        assert!(visited.is_sorted_by(|a, b| a < b), "no key is visited twice");
        let stays = (0..20_000).step_by(2).map(key).filter(|key| (low..high).contains(key)).count();
        let number =
            |key: &Vec<u8>| u32::from_be_bytes(key[..].try_into().unwrap()).wrapping_mul(0x0e8b_2f51);
        assert_eq!(number(&key(77).to_vec()), 77, "the other factor undoes the first");
        assert_eq!(visited.iter().filter(|key| number(key) % 2 == 0).count(), stays, "no key is passed over");
    }
}

#[test]
fn a_built_index_is_the_inserted_one() {
    let mut random = Pcg64::seed_from_u64(1);
    for (keys, count) in [
        (Keys::Random(16), 20_000),
        (Keys::Nested, 20_000),
        (Keys::LongPrefix(500), 3000),
        (Keys::Large, 100),
        (Keys::Sequential, 1),
        (Keys::Sequential, 0),
    ] {
        let mut model = Model::new();
        for version in 1..=count {
            model.insert(keys.key(&mut random, &mut 0), located(&mut random, version));
        }
        let mut builder = IndexBuilder::default();
        model.iter().for_each(|(key, located)| builder.push(key, *located));
        let mut index = builder.finish();
        assert_same(&index, &model);
        // It goes on as any other.
        for version in 1..=1000 {
            let key = keys.key(&mut random, &mut 0);
            assert_eq!(index.insert(&key, at(version)), model.insert(key, at(version)));
        }
        assert_same(&index, &model);
    }
}

#[test]
#[should_panic(expected = "keys ascend")]
fn a_builder_refuses_keys_out_of_order() {
    let mut builder = IndexBuilder::default();
    builder.push(b"b", at(1));
    builder.push(b"b", at(2));
}

proptest! {
    /// Without rule 1 (the last record wins) or rule 4 (a deletion only removes what is there): older records come
    /// back.
    #[test]
    fn rules_1_and_4_a_merge_keeps_the_highest_version_in_whatever_order_records_come(
        mut records in prop::collection::vec((0_u64..400, any::<bool>()), 0..8000), seed in any::<u64>()
    ) {
        let mut model = Model::new();
        let key = |number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
        let mut found: Vec<_> = records.drain(..).zip(1..).collect();
        for &((number, deleted), version) in &found {
            match deleted {
                true => model.remove(&key(number)[..]),
                false => model.insert(key(number).to_vec(), at(version)),
            };
        }
        let mut random = Pcg64::seed_from_u64(seed);
        for last in (1..found.len()).rev() {
            found.swap(last, random.random_range(0..=last));
        }
        let mut merge = IndexMerge::default();
        for ((number, deleted), version) in found {
            match deleted {
                true => merge.delete(&key(number), version),
                false => {
                    // The same record stands in two places: the later one counts.
                    merge.put(&key(number), Located::new(version, Place { chunk: 9, ..at(version).place }));
                    merge.put(&key(number), at(version));
                }
            }
        }
        assert_same(&merge.finish(), &model);
    }
}

//! Silent corruption anywhere in a slice: bytes flip in anchors, segment headers, frames, records and unused space.
//!
//! Whatever flips, the store never panics and never shows wrong content. It either refuses to open, or says that the
//! groups are suspect, or has everything that was acknowledged, but for records of sealed segments that it did not read: of
//! these, reading says that they are damaged. The last flush is the exception that the docs name, and
//! so are several last flushes at once; here the last ones write only a group on which nothing else depends, and there
//! are more of them than flips.

mod harness;

use bytes::Bytes;
use harness::{Node, Replay, block_on, geometry, noop, options, put, seeds, small_flushes};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use terrane_engine::op::{self, Op, Stored};
use terrane_engine::{Entry, GroupId, HardState, OpenError, ReadError};
use terrane_ocssd::{AlignedBuf, ChunkId, Media, SimMedia, SimOptions};

const CHUNKS: u32 = 24;
const GROUPS: [GroupId; 2] = [GroupId(1), GroupId(2)];
/// Written by the last flushes.
const SACRIFICE: GroupId = GroupId(9);
const ENTRIES_PER_EPOCH: u64 = 12;
const FLIPS_MAX: u64 = 3;

fn content(group: GroupId, index: u64, term: u64) -> Entry {
    let length = (index * 37 + group.0 * 11) % if index.is_multiple_of(10) { 7000 } else { 900 };
    let value: Vec<u8> = (0..length).map(|at| (at ^ index ^ term) as u8).collect();
    put(term, &format!("key{}", index % 8), &value)
}

/// A slice after three starts of a store, the last of them still running.
fn written(seed: u64) -> SimMedia {
    let media = SimMedia::new(geometry(CHUNKS), SimOptions { seed, ..SimOptions::default() });
    Node::format(&media);
    for epoch in 1..=3 {
        let options = if seed.is_multiple_of(2) { options() } else { small_flushes() };
        let mut node = Node::try_open(&media, options).unwrap();
        for group in GROUPS {
            if epoch == 1 {
                let created = node.store.create_group(group, Bytes::from_static(b"members")).unwrap();
                node.wait(created);
            }
            let state = HardState { term: epoch, vote: group.0, commit: 0 };
            let voted = node.store.set_hard_state(group, state).unwrap();
            node.wait(voted);
        }
        let first = (epoch - 1) * ENTRIES_PER_EPOCH + 1;
        for index in first..first + ENTRIES_PER_EPOCH {
            // Every third one goes with its successor.
            for group in GROUPS {
                let durable = node.store.append(group, index, vec![content(group, index, epoch)]).unwrap();
                if index % 3 != 0 {
                    node.wait(durable);
                }
                node.store.apply(group, index).unwrap();
            }
        }
        if epoch == 3 {
            let last = node.store.create_group(SACRIFICE, Bytes::new()).unwrap();
            node.wait(last);
            for index in 1..=FLIPS_MAX {
                let last = node.store.append(SACRIFICE, index, vec![noop(1)]).unwrap();
                node.wait(last);
            }
        }
        node.executor.settle();
        drop(node);
        media.power_on();
    }
    media
}

/// Sectors that hold something.
fn used_sectors(media: &SimMedia) -> Vec<(ChunkId, u32)> {
    let mut used = Vec::new();
    for chunk in (0..CHUNKS).map(ChunkId) {
        let (result, bytes) = block_on(media.read(chunk, 0, AlignedBuf::zeroed(32 * 512)));
        result.unwrap();
        let sectors = bytes.chunks(512).zip(0..).filter(|(bytes, _)| bytes.iter().any(|byte| *byte != 0));
        used.extend(sectors.map(|(_, sector)| (chunk, sector)));
    }
    used
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Refused,
    Suspect,
    Whole,
}

fn look(media: &SimMedia) -> Outcome {
    let mut node = match Node::try_open(media, options()) {
        Ok(node) => node,
        Err(OpenError::AnchorLost { .. } | OpenError::AnchorDamaged) => return Outcome::Refused,
        Err(error) => panic!("{error}"),
    };
    let suspect = node.recovery.groups.iter().any(|group| group.suspect);
    assert_eq!(suspect, !node.recovery.damage.is_empty(), "{:?}", node.recovery.damage);
    for group in GROUPS {
        let found = node.recovery.groups.iter().find(|found| found.id == group);
        let Some(found) = found else {
            assert!(suspect, "{group} is lost, and nobody knows");
            continue;
        };
        assert!(found.hard_state.term == 3 || suspect, "{found:?}");
        assert!(found.hard_state.vote == if suspect { u64::MAX } else { group.0 });
        assert!(found.last_index == 3 * ENTRIES_PER_EPOCH || suspect, "{found:?}");
        assert!(found.applied <= found.last_index);
        let last = found.last_index;
        // What recovery read has been verified; of what it knows by footers, reading tells.
        let unread = node.recovery.hinted_segments > 0;
        for index in 1..=last {
            let store = node.store.clone();
            let entries = node.block_on(async move { store.entries(group, index, 1, u64::MAX).await });
            match entries {
                Ok(entries) => {
                    assert_eq!(entries, [content(group, index, (index - 1) / ENTRIES_PER_EPOCH + 1)]);
                }
                Err(ReadError::Damaged { .. }) if unread => {}
                Err(error) => panic!("{error}"),
            }
        }
        node.store.apply(group, last).unwrap();
        for key in (0..8).map(|key| format!("key{key}")) {
            let (store, of) = (node.store.clone(), key.clone());
            let found = node.block_on(async move { store.get(group, of.as_bytes()).await });
            let found = match found {
                Ok(None) => continue,
                Ok(Some(found)) => found,
                Err(ReadError::Damaged { .. }) if unread => continue,
                Err(error) => panic!("{error}"),
            };
            let expected = content(group, found.version, (found.version - 1) / ENTRIES_PER_EPOCH + 1);
            let said = op::decode(&expected.payload).next().unwrap().unwrap();
            let (key, value) = (key.as_bytes(), Stored::Raw(&found.value));
            assert_eq!(said, Op::Put { key, value, expires_unix_ms: None });
        }
    }
    if suspect { Outcome::Suspect } else { Outcome::Whole }
}

#[test]
fn corruption_is_noticed_or_harmless_and_never_shown() {
    let mut outcomes = std::collections::BTreeMap::new();
    for seed in seeds(1500) {
        let _replay =
            Replay { seed, suite: "corruption", test: "corruption_is_noticed_or_harmless_and_never_shown" };
        let media = written(seed % 2);
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        let used = used_sectors(&media);
        for _ in 0..rng.random_range(1..=FLIPS_MAX) {
            let (chunk, sector) = used[rng.random_range(0..used.len())];
            media.corrupt(chunk, sector, rng.random_range(0..512));
        }
        *outcomes.entry(look(&media)).or_insert(0) += 1;
        // Once more: what the first start wrote changes nothing.
        media.power_on();
        look(&media);
    }
    if outcomes.values().sum::<i32>() > 100 {
        assert_eq!(outcomes.len(), 3, "every outcome occurs: {outcomes:?}");
    }
}

/// Every sector in turn, so that none is left out.
#[test]
fn any_one_bad_sector_is_noticed_or_harmless() {
    for variant in 0..2 {
        let media = written(variant);
        let used = used_sectors(&media);
        for (chunk, sector) in used {
            for byte in [0, 13, 33, 300] {
                let media = written(variant);
                media.corrupt(chunk, sector, byte);
                look(&media);
            }
        }
    }
}

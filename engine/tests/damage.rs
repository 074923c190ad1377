//! Damage that hides: what a start must notice although no frame is left to say so, and what it must remember.

mod harness;

use bytes::Bytes;
use harness::{FoundFrame, Node, frames, noop};
use terrane_engine::{Entry, GroupId, HardState};
use terrane_ocssd::SimMedia;

const GROUP: GroupId = GroupId(5);
const CHUNKS: u32 = 16;

/// A store with one group of an empty log, which voted in term 7.
fn with_group() -> Node {
    let mut node = Node::fresh(CHUNKS);
    let created = node.store.create_group(GROUP, Bytes::from_static(b"members")).unwrap();
    node.wait(created);
    let voted = node.store.set_hard_state(GROUP, HardState { term: 7, vote: 2, commit: 0 }).unwrap();
    node.wait(voted);
    node
}

/// Appends, and waits: a flush of its own. Returns its frame.
fn append(node: &mut Node, first: u64, entries: Vec<Entry>) -> FoundFrame {
    let durable = node.store.append(GROUP, first, entries).unwrap();
    node.wait(durable);
    frames(&node.media, CHUNKS).into_iter().max_by_key(|frame| frame.flush).unwrap()
}

/// The device after the process and the power are gone.
fn cut(node: Node) -> SimMedia {
    let media = node.media.clone();
    drop(node);
    media.power_on();
    media
}

/// With only the extent of known damage in the anchor, the second damage is taken for the first.
#[test]
fn new_damage_is_not_taken_for_old_damage_of_the_same_extent() {
    let mut node = with_group();
    let hurt: Vec<_> = (1..=4).map(|index| append(&mut node, index, vec![noop(7)])).collect();
    let media = cut(node);
    media.corrupt(hurt[2].chunk, hurt[2].sector, 30);
    let mut node = Node::open(&media);
    assert!(node.recovery.groups[0].suspect);
    let cleared = node.store.clear_suspect(GROUP).unwrap();
    node.wait(cleared);
    let node = node.power_cycle();
    assert!(!node.recovery.groups[0].suspect, "the same damage again");

    let media = cut(node);
    media.corrupt(hurt[2].chunk, hurt[2].sector, 30);
    media.corrupt(hurt[1].chunk, hurt[1].sector, 30);
    assert!(Node::open(&media).recovery.groups[0].suspect);
}

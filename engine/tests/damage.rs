//! Damage that hides: what a start must notice although no frame is left to say so, and what it must remember.

mod harness;

use bytes::Bytes;
use harness::{FoundFrame, Node, block_on, frames, geometry, noop, put};
use terrane_engine::{
    AppendError, Damage, DamageKind, ENTRY_NOOP, Entry, GroupId, HardState, TermRun, VOTE_SPENT,
};
use terrane_ocssd::{ChunkId, Media, SimMedia, SimOptions};

const GROUP: GroupId = GroupId(5);
const CHUNKS: u32 = 16;
/// Three chunks are cleaning's.
const CLEANING_RESERVE_BYTES: u64 = 3 * (16 * 1024 - 512);

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

fn make_unreadable(media: &SimMedia, chunk: ChunkId) {
    (0..geometry(CHUNKS).chunk_sectors).for_each(|sector| media.fail_reads_of(chunk, sector));
}

/// Appends from `index` on, with the reserves as well, until nothing fits any more.
fn assert_untouched_when_full(node: &mut Node, chunk: ChunkId, index: u64) {
    let state = |node: &Node| block_on(node.media.report()).unwrap()[chunk.0 as usize];
    let before = state(node);
    let large = Entry { kind: ENTRY_NOOP, ..put(8, "k", &[2; 9000]) };
    for index in index.. {
        let Ok(durable) = node.store.append(GROUP, index, vec![large.clone()]) else { break };
        node.wait(durable);
    }
    // States go on, and what cleaning wins for them is the least worn first: every free chunk has its turn.
    for term in 10..400 {
        let voted = node.store.set_hard_state(GROUP, HardState { term, vote: 1, commit: 0 }).unwrap();
        node.wait(voted);
    }
    assert!(node.store.counters().cleaned_segments > 6);
    assert_eq!(state(node), before, "it was not reset");
}

/// Two segments of the last epoch, the second of them (with a vote and an entry that were acknowledged) lost whole.
/// Without the care for such chunks nothing says that it was ever there: the flush numbers end before it.
#[test]
fn a_last_segment_that_is_lost_whole_makes_suspect() {
    for offline in [false, true] {
        let mut node = with_group();
        let first = append(&mut node, 1, vec![put(7, "a", &[1; 9000])]);
        let second = append(&mut node, 2, vec![put(7, "b", &[1; 9000])]);
        assert_ne!(first.chunk, second.chunk);
        let voted = node.store.set_hard_state(GROUP, HardState { term: 8, vote: 3, commit: 0 }).unwrap();
        node.wait(voted);
        let media = cut(node);
        match offline {
            true => media.take_offline(second.chunk),
            false => make_unreadable(&media, second.chunk),
        }
        let mut node = Node::open(&media);
        let found = &node.recovery.groups[0];
        assert_eq!((found.last_index, found.suspect), (1, true), "offline: {offline}");
        assert_eq!(found.hard_state.vote, VOTE_SPENT);
        let of_it = |damage: &&Damage| damage.chunk == second.chunk && damage.what == DamageKind::Sector;
        let lost = node.recovery.damage.iter().filter(of_it).count();
        assert_eq!(lost, if offline { 1 } else { geometry(CHUNKS).chunk_sectors as usize });

        // It is never written again, and the same damage makes nobody suspect twice.
        let cleared = node.store.clear_suspect(GROUP).unwrap();
        node.wait(cleared);
        assert_untouched_when_full(&mut node, second.chunk, 2);
        let node = node.power_cycle();
        assert!(!node.recovery.groups[0].suspect);
        assert!(!node.recovery.damage.is_empty(), "it is still reported");
    }
}

/// A segment in the middle of the log of which no frame can be read, but its header can: because the device refuses, or
/// because checksums fail. Without the care for it, it is taken for free and written over.
#[test]
fn a_segment_whose_frames_cannot_be_read_is_not_overwritten() {
    for refused in [false, true] {
        let mut node = with_group();
        append(&mut node, 1, vec![put(7, "a", &[1; 9000])]);
        let hurt = append(&mut node, 2, vec![put(7, "b", &[1; 9000])]);
        append(&mut node, 3, vec![put(7, "c", &[1; 9000])]);
        let media = cut(node);
        let harm = |media: &SimMedia| match refused {
            true => media.fail_reads_of(hurt.chunk, hurt.sector),
            false => media.corrupt(hurt.chunk, hurt.sector, 20),
        };
        harm(&media);
        let mut node = Node::open(&media);
        assert!(node.recovery.groups[0].suspect);
        assert_ne!(hurt.sector, 0, "the segment's header is before it");
        assert_untouched_when_full(&mut node, hurt.chunk, 2);
    }
}

/// Recovery cut the log, so its lineage goes along with the next entries. Without its cost being admitted, the flush
/// finds no chunk for it.
#[test]
fn a_lineage_that_recovery_cut_is_admitted_with_the_next_entries() {
    let mut node = Node::fresh(CHUNKS);
    // A state that fills a segment for itself, so that its cost shows.
    for (group, membership) in [(GROUP, vec![1; 12_000]), (GroupId(6), Vec::new())] {
        let created = node.store.create_group(group, Bytes::from(membership)).unwrap();
        node.wait(created);
    }
    append(&mut node, 1, vec![noop(7)]);
    let hurt = append(&mut node, 2, vec![noop(8)]);
    let voted = node.store.set_hard_state(GROUP, HardState { term: 8, vote: 2, commit: 0 }).unwrap();
    node.wait(voted);
    let media = cut(node);
    media.corrupt(hurt.chunk, hurt.sector, 20);

    let mut node = Node::open(&media);
    assert_eq!(node.recovery.groups[0].runs, [TermRun { term: 7, first: 1 }]);
    // Another group fills the slice, but for the rest of the last segment.
    let filler = Entry { kind: ENTRY_NOOP, ..put(1, "k", &[2; 1000]) };
    for index in 1.. {
        let durable = node.store.append(GroupId(6), index, vec![filler.clone()]).unwrap();
        node.wait(durable);
        if node.store.free_bytes() < 6000 + CLEANING_RESERVE_BYTES {
            break;
        }
    }
    let refused = node.store.append(GROUP, 2, vec![noop(7)]);
    assert!(matches!(refused, Err(AppendError::Full)), "{refused:?}");
    let fits = node.store.append(GroupId(6), node.store.last_index(GroupId(6)) + 1, vec![noop(1)]).unwrap();
    node.wait(fits);
}

/// The only segment, with all that was known of the group, is lost. Without the suspicion the host creates the group
/// anew, and it votes a second time in term 7.
#[test]
fn a_group_that_is_created_on_a_damaged_slice_is_suspect() {
    let mut node = with_group();
    let only = append(&mut node, 1, vec![put(7, "a", b"1")]);
    // The start in between lets the shard's highest term survive.
    let node = node.power_cycle();
    let media = cut(node);
    make_unreadable(&media, only.chunk);
    let mut node = Node::open(&media);
    assert!(node.recovery.groups.is_empty());
    let created = node.store.create_group(GROUP, Bytes::from_static(b"members")).unwrap();
    let spent = HardState { term: 7, vote: VOTE_SPENT, commit: 0 };
    assert_eq!((node.store.suspect(GROUP), node.store.hard_state(GROUP)), (true, Some(spent)));
    node.wait(created);

    let mut node = node.power_cycle();
    let found = &node.recovery.groups[0];
    assert_eq!((found.suspect, found.hard_state), (true, spent));
    let cleared = node.store.clear_suspect(GROUP).unwrap();
    node.wait(cleared);
    assert!(!node.store.suspect(GROUP));
    assert!(!node.power_cycle().recovery.groups[0].suspect);
}

/// A device may have bad chunks from the day it was made. Nothing is missing from them.
#[test]
fn a_chunk_that_was_bad_before_the_first_start_makes_nobody_suspect() {
    let media = SimMedia::new(geometry(CHUNKS), SimOptions::default());
    Node::format(&media);
    media.take_offline(ChunkId(4));
    make_unreadable(&media, ChunkId(5));
    let mut node = Node::open(&media);
    assert!(!node.recovery.damage.is_empty());
    let created = node.store.create_group(GROUP, Bytes::new()).unwrap();
    node.wait(created);
    assert!(!node.store.suspect(GROUP));
    assert!(!node.power_cycle().power_cycle().recovery.groups[0].suspect);
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

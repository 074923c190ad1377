//! The rules of recovery (numbers as in `docs/format.md`, "Recovery"), one by one. Of each test it was tried that it fails when the rule
//! is taken out of the code; the comment says how.

mod harness;

use bytes::Bytes;
use harness::{FoundFrame, Node, block_on, delete, frames, geometry, noop, options, put, small_flushes};
use std::ops::Bound;
use terrane_engine::{DamageKind, GroupId, HardState, OpenError, SliceId, Store, TermRun, VOTE_SPENT};
use terrane_ocssd::{ChunkId, SimMedia, SimOptions};

const GROUP: GroupId = GroupId(5);
const CHUNKS: u32 = 16;

/// A store with one group of an empty log, term 1.
fn with_group() -> Node {
    let mut node = Node::fresh(CHUNKS);
    let created = node.store.create_group(GROUP, Bytes::from_static(b"members")).unwrap();
    node.wait(created);
    let voted = node.store.set_hard_state(GROUP, HardState { term: 1, vote: 2, commit: 0 }).unwrap();
    node.wait(voted);
    node
}

/// Appends, and waits: a flush of its own.
fn append(node: &mut Node, first: u64, entries: Vec<terrane_engine::Entry>) {
    let durable = node.store.append(GROUP, first, entries).unwrap();
    node.wait(durable);
}

fn close(mut node: Node) -> SimMedia {
    node.store.close();
    node.executor.settle();
    let media = node.media.clone();
    drop(node);
    media.power_on();
    media
}

fn value(node: &mut Node, key: &'static str) -> Option<(Vec<u8>, u64)> {
    let store = node.store.clone();
    let found = node.block_on(async move { store.get(GROUP, key.as_bytes()).await }).unwrap();
    found.map(|found| (found.value.to_vec(), found.version))
}

fn last_frame(media: &SimMedia) -> FoundFrame {
    frames(media, CHUNKS).into_iter().max_by_key(|frame| frame.flush).unwrap()
}

/// Without the rule (a key keeps the first entry that recovery applies to it): the old value is read.
#[test]
fn rule_1_the_higher_seq_wins() {
    let mut node = with_group();
    append(&mut node, 1, vec![put(1, "a", b"old"), put(1, "b", b"only"), put(1, "c", b"gone")]);
    append(&mut node, 4, vec![put(1, "a", b"new"), delete(1, "c")]);
    node.store.apply(GROUP, 5).unwrap();
    let mut node = Node::open(&close(node));
    assert_eq!(value(&mut node, "a"), Some((b"new".to_vec(), 4)));
    assert_eq!(value(&mut node, "b"), Some((b"only".to_vec(), 2)));
    assert_eq!(value(&mut node, "c"), None);
}

/// Without the rule (an entry that stands twice keeps its first place): the read fails.
#[test]
fn rule_1_of_equal_seqs_the_later_lsn_wins() {
    let mut node = with_group();
    append(&mut node, 1, vec![put(1, "k", b"value")]);
    let first_place = last_frame(&node.media);
    append(&mut node, 1, vec![put(1, "k", b"value")]);
    node.store.apply(GROUP, 1).unwrap();
    let media = close(node);
    let mut node = Node::open(&media);
    media.fail_reads_of(first_place.chunk, first_place.sector);
    assert_eq!(value(&mut node, "k"), Some((b"value".to_vec(), 1)));
}

/// Without the rule (the term is not compared): index 3 comes back with the value of term 1.
#[test]
fn rule_2_an_entry_counts_only_in_the_term_of_its_lineage() {
    let mut node = with_group();
    append(&mut node, 1, vec![noop(1), put(1, "k", b"lost"), put(1, "l", b"lost")]);
    append(&mut node, 2, vec![put(2, "k", b"won")]);
    let node = node.power_cycle();
    let found = &node.recovery.groups[0];
    assert_eq!(found.runs, [TermRun { term: 1, first: 1 }, TermRun { term: 2, first: 2 }]);
    assert_eq!(found.last_index, 2);
    let entries = block_on(node.store.entries(GROUP, 1, 10, 10_000)).unwrap();
    assert_eq!(entries, [noop(1), put(2, "k", b"won")]);
}

/// Without the rule (a recovered log that was cut does not write its lineage again): the entry of term 1, which was
/// acknowledged, is void after the second start, because the newest state record still says term 2.
#[test]
fn rule_2_a_lineage_that_recovery_cut_is_written_before_the_next_entry() {
    let media = close(with_group());
    let mut node = Node::try_open(&media, small_flushes()).unwrap();
    append(&mut node, 1, vec![noop(1), put(1, "k", b"mine")]);
    // The lineage of term 2 goes with the first flush, its entries with the second: others came before them.
    let other = node.store.create_group(GroupId(6), Bytes::new()).unwrap();
    node.wait(other);
    let others = node.store.append(GroupId(6), 1, vec![put(1, "k", &[7; 5000])]).unwrap();
    drop(node.store.append(GROUP, 2, vec![put(2, "k", b"theirs")]).unwrap());
    node.wait(others);
    node.executor.settle();
    let media = node.media.clone();
    let torn = last_frame(&media);
    drop(node);
    media.power_on();
    media.corrupt(torn.chunk, torn.sector, 70);

    let mut node = Node::open(&media);
    let found = &node.recovery.groups[0];
    assert_eq!((found.last_index, &found.runs[..]), (1, &[TermRun { term: 1, first: 1 }][..]));
    append(&mut node, 2, vec![put(1, "k", b"mine")]);
    assert_eq!(node.power_cycle().recovery.groups[0].last_index, 2);
}

/// Without the rule (the anchor does not list the last valid flush, or recovery does not ask it): the entry of the
/// dropped flush is there at the third start.
#[test]
fn rule_5_a_dropped_flush_stays_void() {
    for starts_between in 0..3 {
        let mut node = with_group();
        append(&mut node, 1, vec![noop(1)]);
        append(&mut node, 2, vec![put(1, "k", b"torn")]);
        let media = node.media.clone();
        let torn = last_frame(&media);
        drop(node);
        media.power_on();
        media.corrupt(torn.chunk, torn.sector, 70);

        let mut node = Node::open(&media);
        assert_eq!(node.recovery.groups[0].last_index, 1);
        assert!(node.recovery.damage.is_empty(), "a bad last flush is taken for torn");
        for _ in 0..starts_between {
            node = node.power_cycle();
        }
        let media = node.media.clone();
        drop(node);
        media.power_on();
        media.corrupt(torn.chunk, torn.sector, 70);

        let node = Node::open(&media);
        let found = &node.recovery.groups[0];
        assert_eq!((found.last_index, found.suspect), (1, false));
    }
}

/// Without the rule (an incomplete flush counts as far as it goes): the first of the two entries is there.
#[test]
fn rule_5_an_incomplete_last_flush_is_dropped_whole() {
    let mut node = with_group();
    append(&mut node, 1, vec![noop(1)]);
    // Two records that do not fit in one segment: a flush of two frames.
    let large = vec![7; 9000];
    append(&mut node, 2, vec![put(1, "k", &large)]);
    let two = node.store.append(GROUP, 3, vec![put(1, "k", b"small"), put(1, "k", &large)]).unwrap();
    node.wait(two);
    let all = frames(&node.media, CHUNKS);
    let last_flush = all.iter().map(|frame| frame.flush).max().unwrap();
    let of_last: Vec<_> = all.iter().filter(|frame| frame.flush == last_flush).collect();
    if of_last.len() < 2 {
        panic!("the flush was to have two frames: {all:?}");
    }
    let media = node.media.clone();
    drop(node);
    media.power_on();
    media.corrupt(of_last[1].chunk, of_last[1].sector, 100);
    let node = Node::open(&media);
    assert_eq!(node.recovery.groups[0].last_index, 2);
    assert_eq!((node.recovery.dropped_flushes, node.recovery.damage.len()), (1, 0));
}

/// Entries 1, 2 and 3 in flushes of their own, the second of them damaged.
fn damaged_in_the_middle() -> (SimMedia, FoundFrame) {
    let mut node = with_group();
    append(&mut node, 1, vec![put(1, "a", b"1")]);
    append(&mut node, 2, vec![put(1, "b", b"2")]);
    let hurt = last_frame(&node.media);
    append(&mut node, 3, vec![put(1, "c", b"3")]);
    let later = node.store.set_hard_state(GROUP, HardState { term: 9, vote: 3, commit: 3 }).unwrap();
    node.wait(later);
    let other = node.store.create_group(GroupId(6), Bytes::new()).unwrap();
    node.wait(other);
    let media = node.media.clone();
    drop(node);
    media.power_on();
    media.corrupt(hurt.chunk, hurt.sector, 30);
    (media, hurt)
}

/// One frame of the first epoch is missing. Each flush was one frame.
fn missing(number: u64) -> DamageKind {
    DamageKind::Frames { epoch: 1, missing: [1, number, number * number] }
}

/// Without the rule (a frame that is missing is passed over): nobody is suspect, and a vote that was forgotten
/// may be given again.
#[test]
fn rule_6_a_bad_frame_below_the_highest_flush_makes_every_group_suspect() {
    let (media, hurt) = damaged_in_the_middle();
    let node = Node::open(&media);
    let damage = &node.recovery.damage[..];
    assert!(matches!(damage, [one] if one.what == missing(hurt.flush)), "{damage:?}");
    let [group, other] = &node.recovery.groups[..] else { panic!("two groups") };
    assert!(group.suspect && other.suspect, "damage may concern any group");
    // The log is cut at the hole, although entry 3 is intact.
    assert_eq!((group.last_index, group.applied), (1, 1));
    let spent = HardState { term: 9, vote: VOTE_SPENT, commit: 1 };
    assert_eq!(group.hard_state, spent);
    assert_eq!((other.hard_state.term, other.hard_state.vote), (9, VOTE_SPENT), "the shard's highest term");
}

/// Without the rule (states do not carry the suspicion, or the anchor does not remember what is known): a later start
/// suspects nobody, or everybody again.
#[test]
fn rule_6_suspicion_lasts_until_it_is_cleared_and_then_stays_cleared() {
    let (media, hurt) = damaged_in_the_middle();
    let mut node = Node::open(&media).power_cycle();
    assert!(node.recovery.groups.iter().all(|group| group.suspect));
    // One group's state is written while it is suspect, the other's is not.
    let voted = node.store.set_hard_state(GroupId(6), HardState { term: 10, vote: 0, commit: 0 }).unwrap();
    node.wait(voted);
    let mut node = node.power_cycle();
    assert!(node.recovery.groups.iter().all(|group| group.suspect));
    assert_eq!(node.recovery.groups[1].hard_state.term, 10);
    let created = node.store.create_group(GroupId(7), Bytes::new()).unwrap();
    node.wait(created);
    // The leader repairs: it sends what is missing, and the host clears the suspicion.
    append(&mut node, 2, vec![put(1, "b", b"2"), put(1, "c", b"3")]);
    let cleared = node.store.clear_suspect(GROUP).unwrap();
    node.wait(cleared);

    let mut node = node.power_cycle();
    let suspect: Vec<_> = node.recovery.groups.iter().map(|group| (group.id.0, group.suspect)).collect();
    assert_eq!(suspect, [(5, false), (6, true), (7, true)]);
    assert!(!node.recovery.damage.is_empty(), "it is reported as long as it is there");
    assert_eq!(node.recovery.groups[0].last_index, 3);
    node.store.apply(GROUP, 3).unwrap();
    assert_eq!(value(&mut node, "b"), Some((b"2".to_vec(), 2)));

    // Damage that is new makes suspect again.
    let media = node.media.clone();
    let next = frames(&media, CHUNKS)
        .into_iter()
        .find(|frame| frame.chunk == hurt.chunk && frame.flush > hurt.flush);
    drop(node);
    media.power_on();
    let next = next.unwrap();
    media.corrupt(next.chunk, next.sector, 30);
    let node = Node::open(&media);
    assert!(node.recovery.groups.iter().all(|group| group.suspect));
}

/// Without the rule (the anchor's list of known damage is believed although the suspicion was not yet written): a
/// crash between the two leaves nobody suspect.
#[test]
fn rule_6_a_crash_during_recovery_does_not_lose_the_suspicion() {
    for operation in 1.. {
        let (media, _) = damaged_in_the_middle();
        media.crash_after(operation);
        let cut = Node::try_open(&media, options()).is_err();
        media.power_on();
        let node = Node::open(&media);
        assert!(node.recovery.groups.iter().all(|group| group.suspect), "operation {operation}");
        if !cut {
            assert!(operation > 10);
            break;
        }
    }
}

/// Without the rule (damage is only looked for in the last epoch): the gap in an earlier one goes unnoticed.
#[test]
fn rule_6_holds_for_every_earlier_epoch_and_its_end() {
    let mut node = with_group();
    append(&mut node, 1, vec![put(1, "a", b"1")]);
    append(&mut node, 2, vec![put(1, "b", b"2")]);
    let last_of_epoch = last_frame(&node.media);
    let mut node = node.power_cycle();
    append(&mut node, 3, vec![put(1, "c", b"3")]);
    let media = node.media.clone();
    drop(node);
    media.power_on();
    media.corrupt(last_of_epoch.chunk, last_of_epoch.sector, 30);
    let node = Node::open(&media);
    let found = &node.recovery.groups[0];
    assert_eq!((found.last_index, found.suspect), (1, true));
}

/// Without the rule (the search stops at the first bad frame): what follows in the segment is lost as well, and the
/// term of the hard state falls.
#[test]
fn rule_6_the_search_goes_on_behind_a_bad_frame() {
    for in_header in [true, false] {
        let (media, hurt) = damaged_in_the_middle();
        if !in_header {
            // Heal the header, and hurt the record instead.
            media.corrupt(hurt.chunk, hurt.sector, 30);
            media.corrupt(hurt.chunk, hurt.sector, 60);
        }
        let node = Node::open(&media);
        assert_eq!(node.recovery.groups.len(), 2, "the other group was created behind it");
        assert_eq!(node.recovery.groups[0].hard_state.term, 9);
        assert_eq!(node.recovery.damage.len(), 1);
    }
}

/// Without the rule (a frame with a valid header and bad records counts for nothing): both look like a torn tail.
#[test]
fn rule_6_a_torn_frame_proves_that_the_flush_before_it_was_durable() {
    let mut node = with_group();
    append(&mut node, 1, vec![put(1, "a", b"1")]);
    let hurt = last_frame(&node.media);
    append(&mut node, 2, vec![put(1, "b", b"2")]);
    let torn = last_frame(&node.media);
    let media = node.media.clone();
    drop(node);
    media.power_on();
    media.corrupt(hurt.chunk, hurt.sector, 30);
    media.corrupt(torn.chunk, torn.sector, 70);
    let node = Node::open(&media);
    let what = missing(hurt.flush);
    assert!(matches!(node.recovery.damage[..], [damage] if damage.what == what));
    assert_eq!((node.recovery.dropped_flushes, node.recovery.groups[0].suspect), (1, true));
}

/// Without the rule (each change is a record of its own): many records are written.
#[test]
fn rule_7_states_come_from_memory_and_only_the_newest_is_written() {
    let mut node = with_group();
    let before = node.store.counters().states;
    let mut last = None;
    for term in 2..100 {
        last = Some(node.store.set_hard_state(GROUP, HardState { term, vote: 1, commit: 0 }).unwrap());
    }
    node.wait(last.unwrap());
    assert_eq!(node.store.counters().states, before + 1);
    assert_eq!(node.power_cycle().recovery.groups[0].hard_state.term, 99);
}

/// Without the rule (everything found is applied): the uncommitted put is read.
#[test]
fn rule_9_only_what_is_known_to_be_committed_is_applied() {
    let mut node = with_group();
    append(&mut node, 1, vec![put(1, "k", b"committed"), put(1, "k", b"not yet")]);
    node.store.apply(GROUP, 1).unwrap();
    let media = close(node);
    let mut node = Node::open(&media);
    let found = &node.recovery.groups[0];
    assert_eq!((found.applied, found.hard_state.commit, found.last_index), (1, 1, 2));
    assert_eq!(value(&mut node, "k"), Some((b"committed".to_vec(), 1)));
    node.store.apply(GROUP, 2).unwrap();
    assert_eq!(value(&mut node, "k"), Some((b"not yet".to_vec(), 2)));
}

/// Without the flush at its start, recovery builds on what is only in the device's cache: the second start finds less
/// than the first one did, or takes the loss for damage.
#[test]
fn what_recovery_saw_is_durable() {
    let mut unflushed = 0;
    for seed in 0..40 {
        let sim = SimOptions { seed, yields_max: 3, ..SimOptions::default() };
        let media = SimMedia::new(geometry(CHUNKS), sim);
        Node::format(&media);
        let mut node = Node::open(&media);
        let created = node.store.create_group(GROUP, Bytes::new()).unwrap();
        node.wait(created);
        // A flush of two frames, volatile until the device is flushed; the process dies while it is.
        let large = vec![7; 9000];
        drop(node.store.append(GROUP, 1, vec![put(1, "k", &large), put(1, "k", &large)]).unwrap());
        let before = (media.operations(), node.store.durable_lsn());
        // A reset, two writes, and the device's flush.
        while media.operations() < before.0 + 4 {
            assert!(node.executor.round());
        }
        unflushed += u32::from(node.store.durable_lsn() == before.1);
        drop(node);
        media.restart();
        let node = Node::open(&media);
        let seen = node.recovery.groups[0].last_index;
        let node = node.power_cycle();
        let found = &node.recovery.groups[0];
        assert_eq!((found.last_index, found.suspect), (seen, false), "seed {seed}");
    }
    assert!(unflushed > 10, "{unflushed}");
}

#[test]
fn what_an_earlier_store_left_behind_is_never_valid() {
    let mut node = with_group();
    append(&mut node, 1, vec![put(1, "k", b"of another life")]);
    let media = close(node);
    let other = SliceId { cluster: 0xc2, ..harness::SLICE };
    // Formatting does not zero the device here, and a conventional one keeps its content.
    block_on(Store::format(&media, other)).unwrap();
    // Nor do its frames count once the header that names their owner is damaged.
    for header_damaged in [false, true] {
        if header_damaged {
            media.corrupt(frames(&media, CHUNKS)[0].chunk, 0, 3);
        }
        let (_, recovery) = block_on(Store::open(media.clone(), other, options())).unwrap();
        assert!(recovery.groups.is_empty() && recovery.damage.is_empty());
    }
    let error = block_on(Store::open(media, harness::SLICE, options())).unwrap_err();
    assert!(matches!(error, OpenError::WrongSlice { found, .. } if found == other), "{error}");
}

#[test]
fn a_damaged_segment_header_hides_nothing() {
    let mut node = with_group();
    append(&mut node, 1, vec![put(1, "k", b"value")]);
    node.store.apply(GROUP, 1).unwrap();
    let media = close(node);
    for damaged_sectors in [&[0][..], &[0, 1]] {
        let chunk = frames(&media, CHUNKS)[0].chunk;
        damaged_sectors.iter().for_each(|sector| media.corrupt(chunk, *sector, 3));
        let mut node = Node::open(&media);
        // The sector behind the header holds the first flush.
        let first_flush_lost = damaged_sectors.len() > 1;
        assert_eq!(!node.recovery.damage.is_empty(), first_flush_lost);
        assert_eq!(node.recovery.groups[0].suspect, first_flush_lost);
        assert_eq!(value(&mut node, "k"), Some((b"value".to_vec(), 1)));
        drop(node);
        media.power_on();
        damaged_sectors.iter().for_each(|sector| media.corrupt(chunk, *sector, 3));
    }
}

#[test]
fn an_unreadable_sector_in_the_log_makes_suspect() {
    let mut node = with_group();
    append(&mut node, 1, vec![put(1, "k", b"value")]);
    let media = node.media.clone();
    let last = last_frame(&media);
    drop(node);
    media.power_on();
    // It may have held the last flush, which was acknowledged: unlike a torn one, the device admits the loss.
    media.fail_reads_of(last.chunk, last.sector);
    let node = Node::open(&media);
    assert!(node.recovery.groups[0].suspect);
    assert!(matches!(node.recovery.damage[..], [damage] if damage.what == DamageKind::Sector));
}

#[test]
fn blank_damaged_lost_and_foreign_anchors_are_told_apart() {
    let media = SimMedia::new(geometry(CHUNKS), SimOptions::default());
    let open = |media: &SimMedia| Node::try_open(media, options()).map(drop);
    assert!(matches!(open(&media), Err(OpenError::Blank)));
    Node::format(&media);
    // Format left the first anchor in chunk 1; the first start wrote the next one to chunk 0.
    media.corrupt(ChunkId(1), 0, 40);
    assert!(matches!(open(&media), Err(OpenError::AnchorDamaged)));
    media.corrupt(ChunkId(1), 0, 40);
    open(&media).unwrap();
    media.power_on();
    // A start that wrote nothing to the log may be forgotten.
    media.corrupt(ChunkId(0), 0, 40);
    open(&media).unwrap();
    media.power_on();
    let mut node = Node::open(&media);
    let created = node.store.create_group(GROUP, Bytes::new()).unwrap();
    node.wait(created);
    let epoch = node.recovery.epoch;
    drop(node);
    media.power_on();
    let newest = ChunkId(if epoch.is_multiple_of(2) { 1 } else { 0 });
    media.corrupt(newest, 0, 40);
    let lost = open(&media);
    assert!(matches!(lost, Err(OpenError::AnchorLost { .. })), "{lost:?}");
}

#[test]
fn a_store_is_not_formatted_twice() {
    let media = SimMedia::new(geometry(CHUNKS), SimOptions::default());
    Node::format(&media);
    let error = block_on(Store::format(&media, harness::SLICE)).unwrap_err();
    assert!(matches!(error, terrane_engine::FormatError::Exists(_)), "{error}");
    let scan = block_on(Node::open(&media).store.scan(GROUP, Bound::Unbounded, Bound::Unbounded, 1, 1));
    assert!(scan.is_err(), "a group that does not exist");
}

//! Media that fail, fill up, or lie, and hosts that end the store in odd ways.

mod harness;

use std::ops::Bound;

use bytes::Bytes;
use harness::{Node, block_on, frames, geometry, noop, options, put};
use terrane_engine::{
    AppendError, Durable, ENTRY_OPS, Entry, GroupId, HardState, Lookup, Malformed, Options, ReadError,
    StoreError, op,
};
use terrane_ocssd::{ChunkState, Geometry, Media, SimMedia, SimOptions};

const GROUP: GroupId = GroupId(1);

fn with_group(chunks: u32) -> Node {
    let mut node = Node::fresh(chunks);
    let created = node.store.create_group(GROUP, Bytes::new()).unwrap();
    node.wait(created);
    node
}

fn assert_stopped(node: &mut Node, pending: Vec<Durable<SimMedia>>, before: terrane_engine::Lsn) {
    for durable in pending {
        let result = node.executor.block_on(durable);
        assert!(matches!(result, Err(StoreError::Stopped(_))), "{result:?}");
    }
    assert_eq!(node.store.durable_lsn(), before, "nothing of the failed flush is acknowledged");
    assert!(matches!(*node.flusher.borrow(), Some(Err(StoreError::Stopped(_)))));
    let append = node.store.append(GROUP, node.store.last_index(GROUP) + 1, vec![noop(9)]);
    assert!(matches!(append, Err(AppendError::Store(StoreError::Stopped(_)))));
    assert!(node.store.set_hard_state(GROUP, HardState::default()).is_err());
    assert!(!node.store.accepts_proposals());
    let (store, lsn) = (node.store.clone(), node.store.durable_lsn());
    assert!(node.block_on(async move { store.durable_after(lsn).await }).is_err());
}

#[test]
fn a_failed_write_stops_the_store_and_acknowledges_nothing_of_its_flush() {
    let mut node = with_group(16);
    let kept = node.store.append(GROUP, 1, vec![put(1, "k", b"kept")]).unwrap();
    node.wait(kept);
    node.store.apply(GROUP, 1).unwrap();
    let before = node.store.durable_lsn();
    let first = node.store.append(GROUP, 2, vec![put(1, "k", b"lost")]).unwrap();
    let second = node.store.set_hard_state(GROUP, HardState { term: 2, vote: 1, commit: 0 }).unwrap();
    node.media.fail_next_write();
    assert_stopped(&mut node, vec![first, second], before);
    // Reads go on.
    assert!(matches!(node.store.try_get(GROUP, b"k"), Lookup::Ready(found) if &found.value[..] == b"kept"));

    let found = node.power_cycle().recovery.groups[0].clone();
    assert!(found.last_index >= 1 && !found.suspect);
}

#[test]
fn a_failed_flush_stops_the_store_and_acknowledges_nothing_of_it() {
    let mut node = with_group(16);
    let before = node.store.durable_lsn();
    let large = vec![1; 9000];
    // Two frames: parallel writes and one flush, which fails.
    let pending = node.store.append(GROUP, 1, vec![put(1, "a", &large), put(1, "b", &large)]).unwrap();
    node.media.fail_next_flush();
    assert_stopped(&mut node, vec![pending], before);
}

#[test]
fn one_failed_frame_of_several_acknowledges_nothing() {
    let mut node = with_group(16);
    let before = node.store.durable_lsn();
    let large = vec![1; 9000];
    let pending = node.store.append(GROUP, 1, vec![put(1, "a", &large), put(1, "b", &large)]).unwrap();
    node.media.fail_next_write();
    assert_stopped(&mut node, vec![pending], before);
    assert!(!node.power_cycle().recovery.groups[0].suspect, "an incomplete last flush is no damage");
}

/// Media that remember write pointers, and have four chunks open at most.
fn with_four_open(chunks: u32) -> SimMedia {
    let options = SimOptions { conventional: false, ..SimOptions::default() };
    let media = SimMedia::new(Geometry { max_open: 4, ..geometry(chunks) }, options);
    Node::format(&media);
    media
}

fn open_chunks(media: &SimMedia) -> usize {
    let report = block_on(media.report()).unwrap();
    report.iter().filter(|info| info.state == ChunkState::Open).count()
}

#[test]
fn a_flush_over_many_chunks_keeps_within_the_limit_of_open_ones() {
    let media = with_four_open(30);
    let mut node = Node::open(&media);
    let created = node.store.create_group(GROUP, Bytes::new()).unwrap();
    node.wait(created);
    // Each takes most of a chunk of 16 KiB, and one in four just fills it.
    let length = |index: u64| if index.is_multiple_of(4) { 15_700 } else { 9000 };
    let entries = (1..=12).map(|index| put(1, "k", &vec![index as u8; length(index)])).collect();
    let appended = node.store.append(GROUP, 1, entries).unwrap();
    node.wait(appended);
    assert!(node.store.counters().flushes <= 3, "they share a flush");
    node.store.apply(GROUP, 12).unwrap();
    assert!(open_chunks(&media) <= 4);
    let found = node.power_cycle();
    assert_eq!((found.recovery.entries, found.recovery.damage.len()), (12, 0));
}

/// Whatever the operation after which power is lost while the store is opened, and once more after that.
#[test]
fn starts_that_crash_use_up_no_open_chunks() {
    let mut media = with_four_open(250);
    for cut in 1..40 {
        for _ in 0..2 {
            media.crash_after(cut);
            drop(Node::try_open(&media, options()));
            media.power_on();
        }
        let mut node = Node::open(&media);
        let group = GroupId(cut);
        let created = node.store.create_group(group, Bytes::new()).unwrap();
        node.wait(created);
        // One flush each, the third into a second chunk; and no orderly end.
        for index in 1..=3 {
            let appended = node.store.append(group, index, vec![put(1, "k", &[7; 6000])]).unwrap();
            node.wait(appended);
        }
        assert!(open_chunks(&media) <= 4, "cut at {cut}");
        media = node.media.clone();
        drop(node);
        media.power_on();
    }
}

#[test]
fn a_flusher_dropped_in_a_flush_stops_the_store() {
    let media = SimMedia::new(geometry(16), SimOptions { yields_max: 20, seed: 3, ..SimOptions::default() });
    Node::format(&media);
    let mut node = Node::open(&media);
    let created = node.store.create_group(GROUP, Bytes::new()).unwrap();
    let writes = node.store.counters().media.writes;
    while node.store.counters().media.writes == writes {
        assert!(node.executor.round());
    }
    assert_eq!(node.store.counters().flushes, 0, "the flush is under way");
    node.executor = harness::Executor::default();
    assert!(matches!(node.executor.block_on(created), Err(StoreError::FlusherDropped)));
}

#[test]
fn closing_writes_what_is_pending_and_how_far_it_was_applied() {
    let mut node = with_group(16);
    let pending = node.store.append(GROUP, 1, vec![put(1, "k", b"v"), noop(1)]).unwrap();
    node.store.apply(GROUP, 1).unwrap();
    node.store.close();
    assert!(matches!(
        node.store.append(GROUP, 3, vec![noop(1)]),
        Err(AppendError::Store(StoreError::Closed))
    ));
    node.wait(pending);
    node.executor.settle();
    assert!(matches!(*node.flusher.borrow(), Some(Ok(()))));
    let (store, lsn) = (node.store.clone(), node.store.durable_lsn());
    let after = node.block_on(async move { store.durable_after(lsn).await });
    assert!(matches!(after, Err(StoreError::Closed)));
    let found = node.power_cycle().recovery.groups[0].clone();
    assert_eq!((found.applied, found.last_index), (1, 2));
}

#[test]
fn durable_after_follows_the_flushes() {
    let mut node = with_group(16);
    let before = node.store.durable_lsn();
    let durable = node.store.append(GROUP, 1, vec![noop(1), noop(1)]).unwrap();
    assert_eq!(durable.lsn().counter, before.counter + 2);
    let store = node.store.clone();
    let after = node.block_on(async move { store.durable_after(before).await }).unwrap();
    assert_eq!(after, durable.lsn());
}

#[test]
fn a_full_slice_refuses_proposals_then_entries_and_still_takes_states_and_reads() {
    let mut node = with_group(19);
    let mut index = 0;
    let mut refused_proposals_at = None;
    let mut refused_deletes_at = None;
    loop {
        if !node.store.accepts_proposals() {
            refused_proposals_at.get_or_insert(index);
        }
        if !node.store.accepts_deletes() {
            refused_deletes_at.get_or_insert(index);
        }
        match node.store.append(GROUP, index + 1, vec![put(1, &format!("key{index}"), &[index as u8; 1000])])
        {
            Ok(durable) => node.wait(durable),
            Err(AppendError::Full) => break,
            Err(error) => panic!("{error}"),
        }
        index += 1;
        node.store.apply(GROUP, index).unwrap();
    }
    let refused_proposals_at = refused_proposals_at.expect("proposals are refused first");
    let refused_deletes_at = refused_deletes_at.expect("then deletes");
    assert!(
        refused_proposals_at < refused_deletes_at && refused_deletes_at < index,
        "{refused_proposals_at} {refused_deletes_at} {index}"
    );
    assert!(index > 100, "{index} entries of 1 KB in 17 chunks of 16 KiB, five of them reserved");
    for term in 2..30 {
        let voted = node.store.set_hard_state(GROUP, HardState { term, vote: 1, commit: 0 }).unwrap();
        node.wait(voted);
    }
    let mut node = node.power_cycle();
    assert_eq!(node.recovery.groups[0].hard_state.term, 29);
    let more = |entry| node.store.append(GROUP, index + 1, vec![entry]);
    assert!(matches!(more(put(29, "k", b"")), Err(AppendError::Full)));
    assert!(!node.store.accepts_deletes() && !node.store.accepts_append([10]));
    // What a leader needs to lead may use the reserve.
    drop(more(noop(29)).unwrap());
    node.store.apply(GROUP, index).unwrap();
    let store = node.store.clone();
    let scan = node.block_on(async move {
        store.scan(GROUP, Bound::Unbounded, Bound::Unbounded, 10_000, usize::MAX).await
    });
    assert_eq!(scan.unwrap().rows.len() as u64, index);

    // States go on for ever: what old ones take is cleaned.
    for term in 30..1000 {
        let voted = node.store.set_hard_state(GROUP, HardState { term, vote: 1, commit: 0 }).unwrap();
        node.wait(voted);
    }
    assert!(node.store.counters().cleaned_segments > 3);
    assert_eq!(node.power_cycle().recovery.groups[0].hard_state.term, 999);
}

#[test]
fn entries_that_cannot_be_are_refused_and_change_nothing() {
    let mut node = with_group(16);
    let durable = node.store.append(GROUP, 1, vec![noop(2), noop(2)]).unwrap();
    node.wait(durable);
    let limit = u64::from(node.store.payload_bytes_max());
    let append = |first, entry: Entry| node.store.append(GROUP, first, vec![noop(2), entry]).unwrap_err();
    let entry = |kind, payload: &'static [u8]| Entry { term: 2, kind, payload: Bytes::from_static(payload) };
    let malformed = |error| match error {
        AppendError::Malformed { index: 4, reason } => reason,
        error => panic!("{error}"),
    };
    assert_eq!(malformed(append(3, entry(ENTRY_OPS, &[1, 1]))), Malformed::Ops(op::OpError::Short));
    assert_eq!(malformed(append(3, entry(7, &[]))), Malformed::Kind(7));
    assert_eq!(malformed(append(3, noop(1))), Malformed::Term { term: 1, before: 2 });
    assert!(matches!(append(4, noop(2)), AppendError::Gap { first: 4, last: 2 }));
    assert!(matches!(append(0, noop(2)), AppendError::Gap { first: 0, .. }));
    let large = Entry { term: 2, kind: 0, payload: Bytes::from(vec![0; limit as usize + 1]) };
    assert!(matches!(append(3, large), AppendError::TooLarge { limit: at, .. } if at == limit));
    assert!(matches!(
        node.store.append(GroupId(9), 1, vec![noop(2)]),
        Err(AppendError::Store(StoreError::UnknownGroup(GroupId(9))))
    ));
    assert!(matches!(node.store.create_group(GROUP, Bytes::new()), Err(StoreError::GroupExists(GROUP))));
    assert_eq!(node.store.last_index(GROUP), 2);
    // The largest record that is accepted fits.
    let largest = Entry { term: 2, kind: 0, payload: Bytes::from(vec![5; limit as usize]) };
    let durable = node.store.append(GROUP, 3, vec![largest.clone()]).unwrap();
    node.wait(durable);
    let node = node.power_cycle();
    assert_eq!(block_on(node.store.entries(GROUP, 3, 1, 1)).unwrap(), [largest]);
    let outside = block_on(node.store.entries(GROUP, 4, 1, 1));
    assert!(matches!(outside, Err(ReadError::OutOfLog { index: 4, first: 1, last: 3 })));
}

/// A store whose value of "k" is only on the medium.
fn with_value_on_media() -> Node {
    let mut node = with_group(16);
    let durable = node.store.append(GROUP, 1, vec![put(1, "k", b"value"), put(1, "l", &[3; 600])]).unwrap();
    node.wait(durable);
    node.store.apply(GROUP, 2).unwrap();
    node.store.close();
    node.executor.settle();
    node.power_cycle()
}

#[test]
fn a_read_that_fails_once_is_tried_again_and_a_damaged_record_is_an_error() {
    let mut node = with_value_on_media();
    let get = |node: &mut Node| {
        let store = node.store.clone();
        node.block_on(async move { store.get(GROUP, b"k").await })
    };
    // The record: header, and a payload of three bytes before key and value.
    assert_eq!(node.store.try_get(GROUP, b"k"), Lookup::OnMedia { bytes: 40 + 3 + 6 });
    let frame = frames(&node.media, 16).into_iter().find(|frame| frame.sectors > 1).unwrap();
    // The frame's header, the state with the new lineage, and then the entry.
    let byte = 64 + (40 + 28 + 16) + 40 + 6;
    node.media.corrupt(frame.chunk, frame.sector, byte);
    let damaged = get(&mut node);
    assert!(matches!(damaged, Err(ReadError::Damaged { group: GROUP, index: 1, .. })), "{damaged:?}");
    node.media.corrupt(frame.chunk, frame.sector, byte);
    node.media.fail_next_read();
    assert_eq!(&get(&mut node).unwrap().unwrap().value[..], b"value");
    // Now it is cached.
    assert!(matches!(node.store.try_get(GROUP, b"k"), Lookup::Ready(_)));
    node.media.fail_next_read();
    assert_eq!(&get(&mut node).unwrap().unwrap().value[..], b"value");
}

#[test]
fn scans_keep_order_and_limits() {
    let mut node = with_group(32);
    let entries: Vec<_> = (0..60).rev().map(|key| put(1, &format!("key{key:02}"), &[key; 300])).collect();
    let durable = node.store.append(GROUP, 1, entries).unwrap();
    node.store.apply(GROUP, 60).unwrap();
    node.wait(durable);
    node.store.close();
    node.executor.settle();
    let mut node = node.power_cycle();
    let mut scan = |start: &'static str, end: &'static str, count, bytes| {
        let store = node.store.clone();
        let (start, end) = (Bound::Included(start.as_bytes()), Bound::Excluded(end.as_bytes()));
        node.block_on(async move { store.scan(GROUP, start, end, count, bytes).await }).unwrap()
    };
    let keys = |scan: &terrane_engine::Scan| -> Vec<String> {
        scan.rows.iter().map(|(key, _)| String::from_utf8(key.to_vec()).unwrap()).collect()
    };
    let some = scan("key10", "key15", 100, 1 << 20);
    assert_eq!((keys(&some), some.more), ((10..15).map(|key| format!("key{key}")).collect(), false));
    assert!(some.rows.iter().zip(10..).all(|((_, found), key)| found.value[..] == [key; 300]));
    let counted = scan("key10", "key50", 3, 1 << 20);
    assert_eq!((counted.rows.len(), counted.more), (3, true));
    let limited = scan("key10", "key50", 100, 1000);
    assert_eq!((limited.rows.len(), limited.more), (4, true), "1000 bytes are reached with the fourth");
    assert_eq!(scan("key10", "key50", 100, 1).rows.len(), 1, "at least one row");
    assert!(scan("key50", "key10", 100, 1000).rows.is_empty());
}

/// One durable write per value: what ten values of 1 KB in one flush cost.
#[test]
fn a_flush_of_ten_values_writes_at_most_fifteen_percent_more() {
    // In chunks of 16 KiB, zeros up to footers would weigh.
    let chunks = terrane_ocssd::Geometry { chunk_sectors: 256, ..geometry(16) };
    let media = SimMedia::new(chunks, SimOptions::default());
    Node::format(&media);
    let mut node = Node::try_open(&media, Options::default()).unwrap();
    let created = node.store.create_group(GROUP, Bytes::new()).unwrap();
    node.wait(created);
    let before = node.store.counters();
    for flush in 0..30 {
        let entries = (0..10).map(|key| put(1, &format!("user{flush:010}{key:010}"), &[key; 1000])).collect();
        let durable = node.store.append(GROUP, flush * 10 + 1, entries).unwrap();
        node.wait(durable);
    }
    let after = node.store.counters();
    assert_eq!(after.flushes - before.flushes, 30);
    let written = after.media.written_bytes - before.media.written_bytes;
    let parts = |counters: terrane_engine::Counters| {
        counters.log_bytes + counters.header_bytes + counters.hint_bytes + counters.padding_bytes
    };
    assert_eq!(written, parts(after) - parts(before), "every byte written is accounted for");
    let user = after.user_bytes - before.user_bytes;
    assert_eq!(user, 300 * 1024);
    assert!(written * 100 <= user * 115, "{written} bytes for {user}");
}

#[test]
fn memory_stays_within_the_limits_of_tail_and_cache() {
    let media = SimMedia::new(geometry(64), SimOptions::default());
    Node::format(&media);
    let mut node = Node::open(&media);
    let limit = options().tail_bytes;
    for group in [GROUP, GroupId(2)] {
        let created = node.store.create_group(group, Bytes::new()).unwrap();
        node.wait(created);
    }
    // The second group's first entry is not applied: it must stay, and hold nobody else up.
    let stuck = node.store.append(GroupId(2), 1, vec![put(1, "stuck", b"here")]).unwrap();
    node.wait(stuck);
    for index in 1..=300 {
        let durable =
            node.store.append(GROUP, index, vec![put(1, &format!("k{}", index % 50), &[1; 1000])]).unwrap();
        node.wait(durable);
        node.store.apply(GROUP, index).unwrap();
        assert!(node.store.counters().tail_bytes <= limit + 2000);
    }
    assert!(node.store.try_entries(GROUP, 1, 10, 10_000).is_none(), "the oldest left memory");
    assert!(node.store.try_entries(GROUP, 290, 10, 100_000).is_some());
    assert!(node.store.try_entries(GroupId(2), 1, 1, 100).is_some());
    node.store.apply(GroupId(2), 1).unwrap();
    let store = node.store.clone();
    let entries = node.block_on(async move { store.entries(GROUP, 1, 300, u64::MAX).await }).unwrap();
    assert_eq!(entries.len(), 300);
    assert_eq!(entries[6], put(1, "k7", &[1; 1000]));
    assert_eq!((node.store.counters().keys, node.store.version(GROUP, b"k7")), (51, Some(257)));
}

/// A quorum of others may have an entry before this replica does: it is applied while its flush is under way.
#[test]
fn what_was_applied_before_it_was_durable_is_found_after_it_left_memory() {
    let mut node = with_group(32);
    for index in 1..=120 {
        let durable =
            node.store.append(GROUP, index, vec![put(1, &format!("k{index}"), &[1; 1000])]).unwrap();
        node.store.apply(GROUP, index).unwrap();
        assert!(matches!(node.store.try_get(GROUP, format!("k{index}").as_bytes()), Lookup::Ready(_)));
        node.wait(durable);
    }
    let mut on_media = 0;
    for index in 1..=120_u64 {
        let key = format!("k{index}");
        on_media += u32::from(matches!(node.store.try_get(GROUP, key.as_bytes()), Lookup::OnMedia { .. }));
        let store = node.store.clone();
        let found = node.block_on(async move { store.get(GROUP, key.as_bytes()).await }).unwrap().unwrap();
        assert_eq!((found.version, &found.value[..]), (index, &[1; 1000][..]));
    }
    assert!(on_media > 20, "{on_media}");
}

/// How far applying got goes along with the entries, so that little waits for Raft after a sudden end.
#[test]
fn commit_marks_bound_what_waits_after_a_sudden_end() {
    let mut node = with_group(32);
    for index in 1..=100 {
        let durable = node.store.append(GROUP, index, vec![put(1, "k", &[1; 300])]).unwrap();
        node.wait(durable);
        node.store.apply(GROUP, index).unwrap();
    }
    let found = node.power_cycle().recovery.groups[0].clone();
    assert_eq!(found.last_index, 100);
    // A mark for each KiB applied, written with the next flush.
    assert!((92..100).contains(&found.applied), "{found:?}");
}

/// What was admitted has room, although nothing was flushed in between.
#[test]
fn states_that_pend_together_never_overcommit_the_slice() {
    let mut node = Node::fresh(16);
    let large = Bytes::from(vec![1; 6000]);
    let mut created = Vec::new();
    let full = loop {
        match node.store.create_group(GroupId(created.len() as u64), large.clone()) {
            Ok(durable) if created.len() < 100 => created.push(durable),
            Ok(_) => panic!("that many cannot fit"),
            Err(error) => break error,
        }
    };
    assert!(matches!(full, StoreError::Full), "{full}");
    // Two of them fit in each of eleven chunks, three are cleaning's; the estimate may be short by a few.
    assert!((14..=22).contains(&created.len()), "{}", created.len());
    for durable in created {
        node.wait(durable);
    }
}

/// Commit marks were not admitted: they go along with a flush only as far as there is room beyond the reserve.
#[test]
fn commit_marks_never_overcommit_the_slice() {
    let mut node = Node::fresh(19);
    let small = GroupId(50);
    let groups: Vec<_> = (1..=8).map(GroupId).collect();
    for group in groups.iter().chain([&small]) {
        let membership = Bytes::from(vec![1; if *group == small { 0 } else { 6000 }]);
        let created = node.store.create_group(*group, membership).unwrap();
        node.wait(created);
    }
    for group in &groups {
        let durable =
            node.store.append(*group, 1, vec![put(1, "a", &[1; 700]), put(1, "b", &[2; 700])]).unwrap();
        node.wait(durable);
    }
    let mut term = 0;
    while node.store.free_bytes() > 75_000 + 3 * 15_872 {
        term += 1;
        let voted = node.store.set_hard_state(small, HardState { term, vote: 1, commit: 0 }).unwrap();
        node.wait(voted);
    }
    assert!(term > 0);
    for group in &groups {
        node.store.apply(*group, 2).unwrap();
    }
    let states = node.store.counters().states;
    let voted = node.store.set_hard_state(small, HardState { term: term + 1, vote: 1, commit: 0 }).unwrap();
    node.wait(voted);
    let written = node.store.counters().states - states;
    assert!((2..9).contains(&written), "some marks fit, not all: {written}");
    // Marks only spare work after a restart; the last chunks are for votes.
    assert!(node.store.free_bytes() >= 5 * 15_000, "the reserve is left: {}", node.store.free_bytes());
}

/// Without the budget (nothing is asked before an entry is appended): the index grows until the process is killed.
#[test]
fn a_full_index_refuses_new_keys_and_takes_updates_and_deletes() {
    let limit = 2 << 20;
    let large_chunks = terrane_ocssd::Geometry { chunk_sectors: 512, ..geometry(50) };
    let media = SimMedia::new(large_chunks, SimOptions::default());
    Node::format(&media);
    let mut node = Node::try_open(&media, Options { index_bytes_max: limit, ..options() }).unwrap();
    let created = node.store.create_group(GROUP, Bytes::new()).unwrap();
    node.wait(created);
    let key = |number: u64| format!("{:08x}-a-key-of-some-length", number.wrapping_mul(0x9e37_79b1) as u32);
    let batch = |from: u64| {
        let mut ops = op::OpsBuilder::new();
        (from..from + 100).for_each(|number| {
            ops.put(key(number).as_bytes(), b"v", None);
        });
        Entry { term: 1, kind: ENTRY_OPS, payload: ops.finish() }
    };
    // Appended, but applied one behind: what is under way counts, too.
    let (mut keys, mut leaders_stopped_at) = (0, None);
    loop {
        if !node.store.accepts_put(GROUP, key(keys).as_bytes()) {
            leaders_stopped_at.get_or_insert(keys);
        }
        let index = node.store.last_index(GROUP) + 1;
        let accepts = node.store.index_accepts(GROUP, [&batch(keys).payload[..]]);
        match node.store.append(GROUP, index, vec![batch(keys)]) {
            Ok(durable) => node.wait(durable),
            Err(AppendError::IndexFull { limit: named }) => {
                assert_eq!((named, accepts), (limit, false));
                break;
            }
            Err(error) => panic!("{error}"),
        }
        assert!(accepts, "a follower that asks is not refused afterwards");
        node.store.apply(GROUP, index - 1).unwrap();
        keys += 100;
    }
    let leaders_stopped_at = leaders_stopped_at.expect("leaders stop before followers refuse");
    assert!(leaders_stopped_at < keys);
    node.store.apply(GROUP, node.store.last_index(GROUP)).unwrap();
    let counters = node.store.counters();
    assert_eq!(counters.keys, keys);
    assert!(counters.index_bytes <= limit, "{}", counters.index_bytes);
    assert!(counters.index_bytes > limit * 8 / 10, "{} of {limit} bytes are used", counters.index_bytes);

    // With a lower limit it opens all the same, and takes what asks for no more.
    drop(node);
    media.power_on();
    let mut node = Node::try_open(&media, Options { index_bytes_max: limit / 2, ..options() }).unwrap();
    let mut change = |entry| {
        let index = node.store.last_index(GROUP) + 1;
        let durable = node.store.append(GROUP, index, vec![entry])?;
        node.wait(durable);
        node.store.apply(GROUP, index).unwrap();
        Ok::<_, AppendError>(node.store.counters())
    };
    assert!(matches!(change(put(1, "new", b"")), Err(AppendError::IndexFull { .. })));
    assert_eq!(change(batch(0)).unwrap().keys, keys, "keys that are there may be written");
    let mut left = keys;
    while let Err(error) = change(put(1, "new", b"")) {
        assert!(matches!(error, AppendError::IndexFull { .. }));
        let mut ops = op::OpsBuilder::new();
        (left - 100..left).for_each(|number| {
            ops.delete(key(number).as_bytes());
        });
        left -= 100;
        let counters = change(Entry { term: 1, kind: ENTRY_OPS, payload: ops.finish() }).unwrap();
        assert_eq!(counters.keys, left, "keys may be deleted");
    }
    assert!(left > keys / 3, "{left} of {keys} keys fit in half of the limit");
}

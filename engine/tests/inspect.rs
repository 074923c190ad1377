//! Looking at a slice: what is told of it is what a start finds, and nothing is changed by it.

mod harness;

use bytes::Bytes;
use harness::{Node, SLICE, block_on, delete, frames, geometry, noop, put};
use terrane_engine::inspect::{AnchorContent, Depth, Seen, SegmentState, SliceReport, inspect};
use terrane_engine::{DamageKind, GroupId, HardState, OpenError, SliceId, Store};
use terrane_ocssd::{AlignedBuf, ChunkId, Durability, Media, SimMedia, SimOptions};

const GROUP: GroupId = GroupId(5);
const CHUNKS: u32 = 16;

/// Places of frames, in the order in which they were told.
type Places = Vec<(ChunkId, u32)>;

/// The slice, its frames, and the progress that was told: bytes read, of bytes in all.
fn look(media: &SimMedia, depth: Depth) -> (SliceReport, Places, Vec<(u64, u64)>) {
    let (before, written) = (block_on(media.report()).unwrap(), media.counters());
    let (mut frames, mut progress) = (Vec::new(), Vec::new());
    let report = block_on(inspect(media, SLICE, depth, |seen| match seen {
        Seen::Frame(frame) => frames.push((frame.chunk, frame.sector)),
        Seen::Progress { read_bytes, all_bytes } => progress.push((read_bytes, all_bytes)),
    }))
    .unwrap();
    assert_eq!(block_on(media.report()).unwrap(), before, "no chunk was touched");
    let after = media.counters();
    assert_eq!(
        (after.writes, after.resets, after.flushes),
        (written.writes, written.resets, written.flushes)
    );
    (report, frames, progress)
}

/// A store that filled some segments, with deletes, and cleaned some.
fn used(rounds: u64) -> Node {
    let mut node = Node::fresh(CHUNKS);
    let created = node.store.create_group(GROUP, Bytes::from_static(b"members")).unwrap();
    node.wait(created);
    let voted = node.store.set_hard_state(GROUP, HardState { term: 7, vote: 2, commit: 0 }).unwrap();
    node.wait(voted);
    for index in 1..=rounds {
        let entry = match index % 10 {
            9 => delete(7, &format!("key{:02}", index % 20)),
            _ => put(7, &format!("key{:02}", index % 20), &[index as u8; 1500]),
        };
        let durable = node.store.append(GROUP, index, vec![entry]).unwrap();
        node.wait(durable);
        node.store.apply(GROUP, index).unwrap();
        node.store.truncate_front(GROUP, index).unwrap();
    }
    node
}

fn stopped(mut node: Node) -> SimMedia {
    node.store.close();
    node.executor.settle();
    let media = node.media.clone();
    drop(node);
    media.power_on();
    media
}

/// Whatever a start finds, the look before it has told.
#[test]
fn a_look_tells_what_the_next_start_finds() {
    for rounds in [0, 3, 40, 400] {
        let media = stopped(used(rounds));
        let standing = frames(&media, CHUNKS);
        let (report, told, progress) = look(&media, Depth::Log);
        assert!(report.is_sound(), "{report:?}");
        let log = report.log.as_ref().unwrap();
        let (last, all) = *progress.last().unwrap();
        assert_eq!((last, progress.is_sorted()), (all, true), "it ends at all of it");

        let counted = report.segments.iter().filter(|segment| segment.state == SegmentState::Counts);
        let contents: Vec<_> = counted.map(|segment| segment.contents.as_ref().unwrap()).collect();
        assert_eq!(contents.iter().map(|contents| contents.frames_counted).sum::<u64>(), log.frames);
        assert_eq!(contents.iter().map(|contents| contents.frames).sum::<u64>(), told.len() as u64);
        let places: Vec<_> = standing.iter().map(|frame| (frame.chunk, frame.sector)).collect();
        assert!(told.iter().all(|frame| places.contains(frame)));
        let entries: u64 = contents.iter().map(|contents| contents.records.entries).sum();
        let moved: u64 = contents.iter().map(|at| at.records.settled + at.records.tombstones).sum();
        assert_eq!(moved > 0, rounds == 400, "{moved} records were moved");
        let log_chunks = report.segments.len() as u32 + report.blank_chunks;
        assert_eq!(log_chunks, CHUNKS - 2);

        let node = Node::open(&media);
        assert!(node.recovery.damage.is_empty());
        assert_eq!((log.frames, log.entries), (node.recovery.frames, node.recovery.entries));
        assert_eq!(entries, log.entries, "entries of one op each");
        assert_eq!(log.dropped_flushes, node.recovery.dropped_flushes);
        let (told, found) = (&log.groups[0], &node.recovery.groups[0]);
        assert_eq!(
            (told.id, told.term, told.vote, told.commit, told.applied, told.first_index, told.last_index),
            (
                found.id,
                found.hard_state.term,
                found.hard_state.vote,
                found.hard_state.commit,
                found.applied,
                found.first_index,
                found.last_index
            )
        );
        assert_eq!((&told.runs, &told.membership, told.suspect), (&found.runs, &found.membership, false));
        assert_eq!(told.keys, node.store.counters().keys);
    }
}

#[test]
fn headers_alone_read_little_and_tell_the_segments() {
    let media = stopped(used(40));
    let (full, ..) = look(&media, Depth::Log);
    let before = media.counters().read_bytes;
    let (headers, frames, progress) = look(&media, Depth::Headers);
    // Both anchor chunks, of 16 KiB each, and two smallest writes of each other chunk.
    assert!(media.counters().read_bytes - before <= 2 * (16 << 10) + u64::from(CHUNKS) * 2 * 512);
    assert_eq!((frames.len(), progress.len()), (0, 0));
    assert!(headers.log.is_none() && headers.segments.iter().all(|segment| segment.contents.is_none()));
    let ids = |report: &SliceReport| -> Vec<_> {
        report.segments.iter().map(|at| (at.chunk, at.id, at.stream, at.born_bytes)).collect()
    };
    assert_eq!(ids(&headers), ids(&full));
    assert!(!ids(&full).is_empty());
}

/// Segments that cleaning freed are told as such as long as they stand there, in the report and by the anchor.
#[test]
fn freed_segments_are_told_apart() {
    let media = stopped(used(400));
    let (report, ..) = look(&media, Depth::Log);
    let freed: Vec<_> =
        report.segments.iter().filter(|at| at.state == SegmentState::Freed).map(|at| at.id).collect();
    assert!(!freed.is_empty());
    let newest = report.anchors.iter().find(|anchor| Some(anchor.chunk) == report.newest_anchor).unwrap();
    let AnchorContent::Valid(anchor) = &newest.content else { panic!("{newest:?}") };
    assert!(freed.iter().all(|id| anchor.freed.contains(id)));
}

/// Changes a byte of the sector behind the store's back.
fn corrupt(media: &SimMedia, chunk: ChunkId, sector: u32) {
    media.corrupt(chunk, sector, 100);
}

/// One changed byte in a record: the frame is missing, as it would be to a start, and it is told where it stands.
#[test]
fn a_changed_byte_is_damage_and_has_a_place() {
    let node = used(10);
    let victim = frames(&node.media, CHUNKS)[4];
    let media = stopped(node);
    corrupt(&media, victim.chunk, victim.sector);
    let (report, ..) = look(&media, Depth::Log);
    assert!(!report.is_sound());
    let log = report.log.as_ref().unwrap();
    assert!(
        matches!(log.damage[..], [damage] if matches!(damage.what, DamageKind::Frames { missing: [1, ..], .. }))
    );
    let torn: Vec<_> = report
        .segments
        .iter()
        .flat_map(|at| {
            at.contents.iter().flat_map(|c| c.torn_sectors.iter().map(|sector| (at.chunk, *sector)))
        })
        .collect();
    assert_eq!(torn, [(victim.chunk, victim.sector)]);
    assert!(log.groups[0].suspect, "its state knows nothing of the damage");
    let (headers, ..) = look(&media, Depth::Headers);
    assert!(headers.is_sound(), "as far as was read");

    let node = Node::open(&media);
    assert_eq!(node.recovery.damage, log.damage);
    assert!(node.recovery.groups[0].suspect);
}

/// Sectors that the device does not give back, and a chunk that says nothing of itself.
#[test]
fn what_cannot_be_read_is_damage() {
    let node = used(10);
    let victim = frames(&node.media, CHUNKS)[4];
    let media = stopped(node);
    media.fail_reads_of(victim.chunk, victim.sector);
    let (report, ..) = look(&media, Depth::Log);
    let unreadable: Vec<_> = report
        .segments
        .iter()
        .filter_map(|at| at.contents.as_ref().map(|contents| (at.chunk, contents.unreadable_sectors.clone())))
        .filter(|(_, sectors)| !sectors.is_empty())
        .collect();
    assert_eq!(unreadable, [(victim.chunk, vec![victim.sector])]);
    assert!(!report.is_sound());

    (0..geometry(CHUNKS).chunk_sectors).for_each(|sector| media.fail_reads_of(victim.chunk, sector));
    for depth in [Depth::Headers, Depth::Log] {
        let (report, ..) = look(&media, depth);
        assert_eq!(report.lost_chunks, [victim.chunk]);
        assert!(!report.is_sound());
    }
}

/// What a start refuses is told with the reason, and what stands there all the same.
#[test]
fn without_an_anchor_the_segments_are_told_all_the_same() {
    let media = stopped(used(10));
    let (before, ..) = look(&media, Depth::Log);
    let other = SliceId { shard: 9, ..SLICE };
    let foreign = block_on(inspect(&media, other, Depth::Log, |_| ())).unwrap();
    assert!(matches!(foreign.refused, Some(OpenError::WrongSlice { found: SLICE, .. })), "{foreign:?}");
    assert_eq!((foreign.is_sound(), foreign.segments.len()), (false, 0));

    for chunk in [ChunkId(0), ChunkId(1)] {
        corrupt(&media, chunk, 0);
    }
    let (report, told, _) = look(&media, Depth::Log);
    assert!(matches!(report.refused, Some(OpenError::AnchorDamaged)), "{report:?}");
    assert!(report.anchors.iter().any(|anchor| anchor.content == AnchorContent::Damaged));
    assert!(report.segments.iter().all(|at| at.state == SegmentState::Unknown));
    let frames = |report: &SliceReport| -> u64 {
        report.segments.iter().map(|at| at.contents.as_ref().unwrap().frames).sum()
    };
    assert_eq!(frames(&report), frames(&before));
    assert_eq!(told.len() as u64, frames(&before));
    assert!(report.log.is_none() && report.newest_anchor.is_none() && !report.is_sound());
}

/// The newest anchor is gone, and an older one is left, which knows nothing of the last epoch.
#[test]
fn a_log_that_is_newer_than_its_anchor_is_refused() {
    let media = stopped(used(3));
    let (report, ..) = look(&media, Depth::Headers);
    let newest = report.newest_anchor.unwrap();
    corrupt(&media, newest, 0);
    let (report, ..) = look(&media, Depth::Log);
    assert!(matches!(report.refused, Some(OpenError::AnchorLost { anchor: 0, log: 1 })), "{report:?}");
    assert!(!report.segments.is_empty());
}

/// A flush that a crash cut off is dropped by the next start: no damage.
#[test]
fn a_torn_last_flush_is_no_damage() {
    let mut node = used(3);
    let durable = node.store.append(GROUP, 4, vec![noop(7)]).unwrap();
    node.wait(durable);
    let last = frames(&node.media, CHUNKS).into_iter().max_by_key(|frame| frame.flush).unwrap();
    let media = node.media.clone();
    drop(node);
    media.power_on();
    corrupt(&media, last.chunk, last.sector);
    let (report, ..) = look(&media, Depth::Log);
    let log = report.log.as_ref().unwrap();
    assert_eq!((log.dropped_flushes, report.is_sound()), (1, true));
    assert_eq!(log.groups[0].last_index, 3);
}

#[test]
fn a_slice_that_was_never_formatted_is_blank() {
    let media = SimMedia::new(geometry(CHUNKS), SimOptions::default());
    let (report, ..) = look(&media, Depth::Log);
    assert!(matches!(report.refused, Some(OpenError::Blank)));
    block_on(Store::format(&media, SLICE)).unwrap();
    let (report, ..) = look(&media, Depth::Log);
    assert_eq!((report.is_sound(), report.segments.len(), report.blank_chunks), (true, 0, CHUNKS - 2));
    // What stood in a chunk before the device was formatted is no log.
    let mut buf = AlignedBuf::zeroed(512);
    buf.fill(7);
    block_on(media.reset(ChunkId(4))).unwrap();
    block_on(media.write(ChunkId(4), 0, buf, Durability::Durable)).0.unwrap();
    assert!(look(&media, Depth::Log).0.segments.is_empty());
}

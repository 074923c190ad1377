//! Footers of sealed segments: recovery goes by them, and is none the worse for one that is not there, not whole, not true
//! or not of this life of its chunk. Of each test it was tried that it fails when the check is taken out that it is about.

mod harness;

use std::collections::BTreeMap;

use bytes::Bytes;
use harness::{FoundFrame, Node, block_on, delete, frames, geometry, options, put};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use terrane_engine::{DamageKind, GroupId, HardState, Options, ReadError};
use terrane_ocssd::{AlignedBuf, ChunkId, Media, SimMedia, SimOptions};

const GROUP: GroupId = GroupId(5);
const CHUNKS: u32 = 24;
const SECTORS: u32 = 32;
const TRAILER_BYTES: usize = 48;

/// What the keys of [`GROUP`] are to be.
#[derive(Default, Clone)]
struct Model {
    last: u64,
    keys: BTreeMap<String, (Vec<u8>, u64)>,
}

/// Keys that do not pack: a byte of a footer that changes is a byte of a key.
fn key(index: u64) -> String {
    let mut rng = Pcg64Mcg::seed_from_u64(index % 60);
    (0..40).map(|_| rng.random_range(' '..='~')).collect()
}

fn value(index: u64) -> Vec<u8> {
    vec![index as u8; 700 + index as usize * 37 % 260]
}

impl Model {
    /// Appends entries in one call, and says durably that they are committed.
    fn write(&mut self, node: &mut Node, count: u64) {
        self.append(node, count);
        self.commit(node);
    }

    /// Appends entries, which wait for Raft.
    fn append(&mut self, node: &mut Node, count: u64) {
        let entries = (self.last + 1..=self.last + count).map(|index| match index % 13 {
            0 => delete(1, &key(index / 2)),
            _ => put(1, &key(index), &value(index)),
        });
        let durable = node.store.append(GROUP, self.last + 1, entries.collect()).unwrap();
        node.wait(durable);
        self.last += count;
        for index in self.last - count + 1..=self.last {
            match index % 13 {
                0 => drop(self.keys.remove(&key(index / 2))),
                _ => drop(self.keys.insert(key(index), (value(index), index))),
            }
        }
    }

    fn commit(&self, node: &mut Node) {
        node.store.apply(GROUP, self.last).unwrap();
        let state = HardState { term: 1, vote: 2, commit: self.last };
        let committed = node.store.set_hard_state(GROUP, state).unwrap();
        node.wait(committed);
    }

    /// Nothing is damaged, and the group is as the model has it.
    fn check(&self, node: &mut Node) {
        let recovery = &node.recovery;
        assert!(recovery.damage.is_empty(), "{:?}", recovery.damage);
        assert!(!recovery.groups[0].suspect);
        assert_eq!(recovery.groups[0].last_index, self.last);
        node.store.apply(GROUP, self.last).unwrap();
        let store = node.store.clone();
        let scan = node.block_on(async move {
            use std::ops::Bound::Unbounded;
            store.scan(GROUP, Unbounded, Unbounded, usize::MAX, usize::MAX).await
        });
        let found: BTreeMap<_, _> = scan
            .unwrap()
            .rows
            .into_iter()
            .map(|(key, found)| {
                (String::from_utf8(key.to_vec()).unwrap(), (found.value.to_vec(), found.version))
            })
            .collect();
        assert_eq!(found, self.keys);
    }
}

fn on(media: &SimMedia) -> Node {
    Node::format(media);
    let mut node = Node::open(media);
    let created = node.store.create_group(GROUP, Bytes::from_static(b"members")).unwrap();
    node.wait(created);
    node
}

/// A store that sealed some segments, all of them with footers.
fn sealed() -> (Node, Model) {
    let mut node = on(&SimMedia::new(geometry(CHUNKS), SimOptions::default()));
    let mut model = Model::default();
    while footers(&node.media).len() < 4 {
        model.write(&mut node, 3);
    }
    (node, model)
}

fn cut(node: Node) -> SimMedia {
    let media = node.media.clone();
    drop(node);
    media.power_on();
    media
}

/// Without footers each segment would be read whole.
fn reopen(node: Node) -> Node {
    Node::open(&cut(node))
}

fn chunk_bytes(media: &SimMedia, chunk: ChunkId) -> Vec<u8> {
    let sectors = block_on(media.report()).unwrap()[chunk.0 as usize].write_pointer;
    if sectors == 0 {
        return Vec::new();
    }
    let (result, bytes) = block_on(media.read(chunk, 0, AlignedBuf::zeroed(sectors as usize * 512)));
    result.unwrap();
    bytes.to_vec()
}

/// Where there is a trailer, whatever it says: its chunk, its generation, and that of the segment.
fn trailers(media: &SimMedia) -> Vec<(ChunkId, u64, u64)> {
    let mut found = Vec::new();
    for chunk in (2..CHUNKS).map(ChunkId) {
        let bytes = chunk_bytes(media, chunk);
        if bytes.len() == SECTORS as usize * 512 {
            let trailer = &bytes[bytes.len() - TRAILER_BYTES..];
            let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
            if trailer.starts_with(b"TRNHINTS") {
                found.push((chunk, number(&trailer[8..16]), number(&bytes[40..48])));
            }
        }
    }
    found
}

/// Chunks that end with a footer of their segment.
fn footers(media: &SimMedia) -> Vec<ChunkId> {
    let own = trailers(media).into_iter().filter(|(_, footer, segment)| footer == segment);
    own.map(|(chunk, ..)| chunk).collect()
}

/// Bytes of the chunk that its footer takes.
fn footer_range(media: &SimMedia, chunk: ChunkId) -> std::ops::Range<usize> {
    let bytes = chunk_bytes(media, chunk);
    let end = bytes.len();
    let blocks = &bytes[end - TRAILER_BYTES + 16..end - TRAILER_BYTES + 20];
    end - TRAILER_BYTES - u32::from_le_bytes(blocks.try_into().unwrap()) as usize..end
}

fn corrupt(media: &SimMedia, chunk: ChunkId, at: usize) {
    media.corrupt(chunk, at as u32 / 512, at as u32 % 512);
}

#[test]
fn a_sealed_segment_is_known_by_its_footer_alone() {
    let (node, model) = sealed();
    let media = cut(node);
    let with_footers = footers(&media);
    let before = media.counters().read_bytes;
    let mut node = Node::open(&media);
    assert_eq!(node.recovery.hinted_segments, with_footers.len() as u64);
    // Anchors, probes and footers; the chunks that were never written read as zeros.
    let read = media.counters().read_bytes - before;
    assert_eq!(model.keys.len(), node.store.counters().keys as usize);
    model.check(&mut node);

    // The same without footers.
    let media = cut(node);
    for chunk in with_footers {
        corrupt(&media, chunk, SECTORS as usize * 512 - 1);
    }
    let before = media.counters().read_bytes;
    let mut node = Node::open(&media);
    assert_eq!(node.recovery.hinted_segments, 0);
    let scanned = media.counters().read_bytes - before;
    assert!(read + 4 * 14 * 1024 < scanned, "{read} of {scanned} bytes");
    model.check(&mut node);
}

/// Power is lost while a flush writes footers and the frames behind them. Without the checksum of the blocks, a footer of which
/// only the trailer arrived makes no sense, and all segments are scanned.
#[test]
fn a_torn_footer_is_passed_over() {
    let mut torn = 0;
    for seed in 0..60 {
        for operation in 1..9 {
            let sim = SimOptions {
                seed,
                yields_max: 2,
                conventional: seed % 2 == 0,
                tear_within_sector: seed % 4 < 2,
                ..SimOptions::default()
            };
            let media = SimMedia::new(geometry(CHUNKS), sim);
            let mut node = on(&media);
            let mut model = Model::default();
            while footers(&media).is_empty() {
                model.write(&mut node, 3);
            }
            let before = footers(&media);
            media.crash_after(operation);
            let entries = (1..=30).map(|nth| put(1, &key(model.last + nth), &[9; 900])).collect();
            drop(node.store.append(GROUP, model.last + 1, entries).unwrap());
            node.executor.settle();
            if media.has_power() {
                continue;
            }
            let media = cut(node);
            let found = trailers(&media).len();
            let mut node = Node::open(&media);
            let hinted = node.recovery.hinted_segments as usize;
            assert!((before.len()..=found).contains(&hinted), "{hinted} of {found}");
            torn += usize::from(hinted < found);
            // Of the last flush nothing was acknowledged, and it counts whole or not at all.
            let last = node.recovery.groups[0].last_index;
            assert!(last == model.last || last == model.last + 30, "{last}");
            for index in model.last + 1..=last {
                model.keys.insert(key(index), (vec![9; 900], index));
            }
            model.last = last;
            model.check(&mut node);
        }
    }
    assert!(torn > 0, "no trailer without its blocks");
}

/// Any byte of a footer. Without the checksum of the blocks, a key is another one; without that of the trailer, a segment ends
/// where it does not.
#[test]
fn a_rotten_footer_is_passed_over() {
    let (node, model) = sealed();
    let mut media = cut(node);
    let with_footers = footers(&media);
    let chunk = with_footers[1];
    for at in footer_range(&media, chunk) {
        corrupt(&media, chunk, at);
        let mut node = Node::open(&media);
        assert_eq!(node.recovery.hinted_segments, with_footers.len() as u64 - 1, "byte {at}");
        model.check(&mut node);
        media = cut(node);
        // It flips back.
        corrupt(&media, chunk, at);
    }
}

/// A chunk is cleaned and begins another life; behind its new frames stands its old footer. Without the generation in the
/// footer's checksums, the old records are taken for the new ones.
#[test]
fn a_footer_of_an_older_generation_on_a_recycled_chunk_is_not_believed() {
    let sim = SimOptions { conventional: true, stale: true, ..SimOptions::default() };
    let media = SimMedia::new(geometry(CHUNKS), sim);
    let mut node = on(&media);
    let mut model = Model::default();
    let mut met = 0;
    for round in 0..400 {
        model.write(&mut node, 3);
        node.store.truncate_front(GROUP, model.last + 1).unwrap();
        node.executor.settle();
        if round % 5 == 0 {
            let media = cut(node);
            met += trailers(&media).iter().filter(|(_, footer, segment)| footer < segment).count();
            node = Node::open(&media);
            assert!(node.recovery.hinted_segments <= footers(&media).len() as u64);
            model.check(&mut node);
        }
    }
    assert!(met > 20, "{met} old footers behind new frames");
}

/// A flush of frames in three segments, which also says that all of it is committed. Its footers and all of its frames arrive
/// but one, and a footer says that this one is there. Without reading the frames of the highest flush, it counts.
#[test]
fn a_footer_does_not_make_an_incomplete_flush_whole() {
    for nth in 0..3 {
        let (node, model, of_last) = flushed_over_segments();
        let media = cut(node);
        let FoundFrame { chunk, sector, .. } = of_last[nth];
        media.corrupt(chunk, sector + 1, 100);
        let mut node = Node::open(&media);
        let with_footers = footers(&media).len() as u64;
        let found = (node.recovery.dropped_flushes, node.recovery.hinted_segments);
        assert_eq!(found, (1, with_footers), "frame {nth}");
        model.check(&mut node);
    }
}

/// What was dropped stays void, though a footer names it, and the frame that was missing becomes readable. Without the anchor's
/// word on it (the last flush that counts), its entries come back.
#[test]
fn what_a_footer_names_of_a_dropped_flush_stays_void() {
    for nth in 0..3 {
        let (node, mut model, of_last) = flushed_over_segments();
        let media = cut(node);
        let FoundFrame { chunk, sector, .. } = of_last[nth];
        media.corrupt(chunk, sector + 1, 100);
        let mut node = Node::open(&media);
        let with_footers = footers(&media).len() as u64;
        assert_eq!((node.recovery.dropped_flushes, node.recovery.hinted_segments), (1, with_footers));
        for _ in 0..2 {
            let media = cut(node);
            media.corrupt(chunk, sector + 1, 100);
            node = Node::open(&media);
            assert_eq!(node.recovery.hinted_segments, with_footers);
            model.check(&mut node);
        }
        // And the log goes on from there.
        model.write(&mut node, 5);
        model.check(&mut reopen(node));
    }
}

/// A sector that the device does not give back is no torn write, and what was in it may have been acknowledged. Without the care
/// for it, the flush is dropped and nobody is suspect.
#[test]
fn a_frame_of_the_last_flush_that_the_device_refuses_is_damage() {
    let (node, _, of_last) = flushed_over_segments();
    let media = cut(node);
    let FoundFrame { chunk, sector, .. } = of_last[1];
    media.fail_reads_of(chunk, sector + 1);
    let node = Node::open(&media);
    assert!(node.recovery.groups[0].suspect);
    let [damage] = &node.recovery.damage[..] else { panic!("{:?}", node.recovery.damage) };
    assert_eq!((damage.chunk, damage.sector, damage.what), (chunk, sector + 1, DamageKind::Sector));
}

/// A store whose last flush has frames in at least three segments, two of which it left; the model without it.
fn flushed_over_segments() -> (Node, Model, Vec<FoundFrame>) {
    let (mut node, model) = sealed();
    let last = model.last + 75;
    let entries = (model.last + 1..=last).map(|index| put(1, &key(index), &[7; 400])).collect();
    let durable = node.store.append(GROUP, model.last + 1, entries).unwrap();
    node.store.apply(GROUP, last).unwrap();
    let committed = node.store.set_hard_state(GROUP, HardState { term: 1, vote: 2, commit: last }).unwrap();
    node.wait(committed);
    node.wait(durable);
    let all = frames(&node.media, CHUNKS);
    let last = all.iter().map(|frame| frame.flush).max().unwrap();
    let of_last: Vec<_> = all.into_iter().filter(|frame| frame.flush == last).collect();
    assert!(of_last.len() >= 3, "{of_last:?}");
    let named = footers(&node.media);
    let left = of_last.iter().filter(|frame| named.contains(&frame.chunk)).count();
    assert_eq!(left + 1, of_last.len(), "all but the last segment have footers");
    (node, model, of_last)
}

/// What waits for Raft is in memory, so it is read. If that fails, everything is scanned, and the damage is what it is.
#[test]
fn entries_above_the_commit_are_read_from_their_places() {
    let (mut node, mut model) = sealed();
    let committed = model.last;
    let first = frames(&node.media, CHUNKS).len();
    while footers(&node.media).len() < 7 {
        model.append(&mut node, 4);
    }
    let first = frames(&node.media, CHUNKS).into_iter().map(|frame| frame.flush).nth(first);
    let mut node = reopen(node);
    assert_eq!((node.recovery.groups[0].applied, node.recovery.hinted_segments), (committed, 7));
    let (store, count) = (node.store.clone(), (model.last - committed) as usize);
    assert!(
        store.try_entries(GROUP, committed + 1, count, u64::MAX).is_some_and(|found| found.len() == count)
    );
    model.check(&mut node);

    let media = cut(node);
    let hurt = frames(&media, CHUNKS).into_iter().find(|frame| Some(frame.flush) == first).unwrap();
    assert!(footers(&media).contains(&hurt.chunk));
    media.corrupt(hurt.chunk, hurt.sector + 1, 7);
    let node = Node::open(&media);
    assert_eq!((node.recovery.hinted_segments, node.recovery.damage.len()), (0, 1));
    assert!(node.recovery.groups[0].suspect);
}

/// The price of not reading values: a value that rotted is noticed when it is read.
#[test]
fn a_frame_that_rotted_behind_a_footer_is_found_when_it_is_read() {
    let (node, model) = sealed();
    let media = cut(node);
    let hurt = footers(&media)[1];
    for frame in frames(&media, CHUNKS).into_iter().filter(|frame| frame.chunk == hurt) {
        media.corrupt(frame.chunk, frame.sector, 400);
    }
    let mut node = Node::try_open(&media, Options { cache_bytes: 0, ..options() }).unwrap();
    assert!(node.recovery.damage.is_empty() && !node.recovery.groups[0].suspect);
    let mut damaged = 0;
    for (key, (value, version)) in model.keys {
        let store = node.store.clone();
        match node.block_on(async move { store.get(GROUP, key.as_bytes()).await }) {
            Ok(found) => {
                let found = found.unwrap();
                assert_eq!((found.value.to_vec(), found.version), (value, version));
            }
            Err(ReadError::Damaged { chunk, .. }) => {
                assert_eq!(chunk, hurt);
                damaged += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(damaged > 0);
}

/// Records that leave much of a segment behind: zeros up to a footer would cost more than a scan.
#[test]
fn a_segment_that_is_left_half_empty_gets_no_footer() {
    let mut node = on(&SimMedia::new(geometry(CHUNKS), SimOptions::default()));
    for index in 1..6 {
        let durable = node.store.append(GROUP, index, vec![put(1, "k", &[1; 9000])]).unwrap();
        node.wait(durable);
    }
    assert_eq!(trailers(&node.media).len(), 0);
    assert_eq!(node.store.counters().hint_bytes, 0);
    assert_eq!(reopen(node).recovery.groups[0].last_index, 5);
}

//! What must be written again before the flash forgets it: from notices to an ordered list of chunks.
//!
//! Flash loses charge with time and with reads of its neighbours. The device corrects what it reads and tells the host
//! when correcting becomes hard (Open-Channel 2.0, "Chunk notification log"; status 2D0). The host then moves the data
//! and resets the chunk, within its own cleaning. Scrubbing finds the same, and what is beyond repair
//! ([`scrub`](super::scrub)).
//!
//! Invariants:
//! - One entry for each chunk, whatever arrives: memory is bounded by the number of chunks, and lost ranges by
//!   [`LOST_RANGES_MAX`] for each.
//! - Urgency and ranges of an entry only grow until the chunk is [reset](RefreshList::reset): the data does not heal.
//! - What is said of sectors that hold no data, or of chunks that are not there, is not believed.
//! - The order is total: the most urgent first, then the longest known, then the lowest chunk.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use crate::geometry::{ChunkId, Geometry};
use crate::media::{ChunkInfo, ChunkState, Notice, NoticeKind};

/// Lost ranges that are told apart in one chunk. Beyond that the two that lie closest count as one, so that the list
/// says too much rather than too little.
pub const LOST_RANGES_MAX: usize = 16;

/// How urgent it is to move what a chunk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Urgency {
    /// Whenever cleaning would come by, or the device is idle.
    WhenConvenient,
    /// Ahead of cleaning for the sake of space.
    Soon,
    /// At once: the next time it may not be correctable.
    Now,
    /// Part of it is gone. What was there must come from elsewhere (a replica), and the rest must leave.
    Lost,
}

impl Urgency {
    /// What a notice asks for; `None`: nothing of the data (a worn chunk is the matter of wear levelling).
    pub fn of(kind: NoticeKind) -> Option<Self> {
        match kind {
            NoticeKind::Worn => None,
            NoticeKind::EccLow => Some(Self::WhenConvenient),
            NoticeKind::EccMedium => Some(Self::Soon),
            NoticeKind::EccHigh => Some(Self::Now),
            NoticeKind::Unrecoverable | NoticeKind::Offline => Some(Self::Lost),
        }
    }
}

/// What is to be done about one chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// Which chunk.
    pub chunk: ChunkId,
    /// How urgent it is.
    pub urgency: Urgency,
    /// When the chunk was first noticed.
    pub since: Duration,
    /// From the first to the last sector that any notice named: to be moved first.
    pub sectors: Range<u32>,
    /// Sectors that cannot be read, ascending and apart. Empty unless the urgency is [`Urgency::Lost`].
    pub lost: Vec<Range<u32>>,
}

/// Why a notice was not taken up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotNoted {
    /// There is no such chunk: damage, or a confused device.
    #[error("there is no such chunk")]
    NoSuchChunk,
    /// It names only sectors that hold no data.
    #[error("the sectors hold no data")]
    NoData,
    /// It is about the chunk's wear, not its data.
    #[error("nothing needs to be rewritten")]
    NotAboutData,
}

/// The work list.
#[derive(Debug, Clone)]
pub struct RefreshList {
    chunk_count: u32,
    chunk_sectors: u32,
    work: BTreeMap<ChunkId, Work>,
    order: BTreeSet<(Reverse<Urgency>, Duration, ChunkId)>,
}

impl RefreshList {
    /// An empty list for a medium of this shape.
    pub fn new(geometry: &Geometry) -> Self {
        Self {
            chunk_count: geometry.chunk_count(),
            chunk_sectors: geometry.chunk_sectors,
            work: BTreeMap::new(),
            order: BTreeSet::new(),
        }
    }

    /// Takes up what a notice says. `written`: sectors of the chunk that hold data; what lies beyond is cut off.
    ///
    /// # Errors
    /// Why the list does not change because of it.
    pub fn note(&mut self, now: Duration, notice: &Notice, written: u32) -> Result<(), NotNoted> {
        if notice.chunk.0 >= self.chunk_count {
            return Err(NotNoted::NoSuchChunk);
        }
        let urgency = Urgency::of(notice.kind).ok_or(NotNoted::NotAboutData)?;
        let written = written.min(self.chunk_sectors);
        let (first, count) = match notice.kind {
            NoticeKind::Offline => (0, written),
            _ => notice.sectors.unwrap_or((0, written)),
        };
        let end = first.saturating_add(count).min(written);
        if first >= end {
            return Err(NotNoted::NoData);
        }
        let noted = first..end;
        let work = self.work.entry(notice.chunk).or_insert_with(|| Work {
            chunk: notice.chunk,
            urgency,
            since: now,
            sectors: noted.clone(),
            lost: Vec::new(),
        });
        self.order.remove(&key(work));
        work.urgency = work.urgency.max(urgency);
        work.sectors = work.sectors.start.min(noted.start)..work.sectors.end.max(noted.end);
        if urgency == Urgency::Lost {
            add_range(&mut work.lost, noted);
        }
        self.order.insert(key(work));
        Ok(())
    }

    /// The chunk was reset: whatever was wrong with its data is gone with it.
    pub fn reset(&mut self, chunk: ChunkId) {
        if let Some(work) = self.work.remove(&chunk) {
            self.order.remove(&key(&work));
        }
    }

    /// Compares the list with what the device reports: chunks that are free hold nothing to rewrite; of those that are
    /// offline nothing can be read any more.
    pub fn reconcile(&mut self, report: &[ChunkInfo]) {
        for chunk in report {
            match chunk.state {
                ChunkState::Free => self.reset(chunk.id),
                ChunkState::Offline => {
                    if let Some(work) = self.work.get_mut(&chunk.id) {
                        self.order.remove(&key(work));
                        work.urgency = Urgency::Lost;
                        work.sectors = 0..self.chunk_sectors;
                        work.lost.clear();
                        work.lost.push(0..self.chunk_sectors);
                        self.order.insert(key(work));
                    }
                }
                ChunkState::Open | ChunkState::Closed => {}
            }
        }
    }

    /// What is to be done first.
    pub fn first(&self) -> Option<&Work> {
        self.iter().next()
    }

    /// Everything, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Work> {
        self.order.iter().map(|(_, _, chunk)| &self.work[chunk])
    }

    /// What is known of one chunk.
    pub fn get(&self, chunk: ChunkId) -> Option<&Work> {
        self.work.get(&chunk)
    }

    /// Chunks in the list.
    pub fn len(&self) -> usize {
        self.work.len()
    }

    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.work.is_empty()
    }
}

fn key(work: &Work) -> (Reverse<Urgency>, Duration, ChunkId) {
    (Reverse(work.urgency), work.since, work.chunk)
}

/// Adds a range to ascending ones that are apart; joins what touches, then the closest two if there are too many.
fn add_range(ranges: &mut Vec<Range<u32>>, new: Range<u32>) {
    ranges.push(new);
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u32>> = Vec::with_capacity(ranges.len());
    for range in ranges.drain(..) {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    if joined.len() > LOST_RANGES_MAX {
        let gap = |at: &usize| joined[at + 1].start - joined[*at].end;
        let closest = (0..joined.len() - 1).min_by_key(gap).expect("there are several");
        let end = joined.remove(closest + 1).end;
        joined[closest].end = end;
    }
    *ranges = joined;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CHUNKS: u32 = 8;
    const SECTORS: u32 = 64;

    fn list() -> RefreshList {
        RefreshList::new(&Geometry {
            groups: 1,
            parallel_units: 2,
            chunks: CHUNKS / 2,
            chunk_sectors: SECTORS,
            sector_bytes: 4096,
            ws_min: 1,
            ws_opt: 1,
            mw_cunits: 0,
            max_open: 0,
        })
    }

    fn notice(chunk: u32, sectors: Option<(u32, u32)>, kind: NoticeKind) -> Notice {
        Notice { chunk: ChunkId(chunk), sectors, kind }
    }

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn urgency_of_each_notice() {
        let table = [
            (NoticeKind::Worn, None),
            (NoticeKind::EccLow, Some(Urgency::WhenConvenient)),
            (NoticeKind::EccMedium, Some(Urgency::Soon)),
            (NoticeKind::EccHigh, Some(Urgency::Now)),
            (NoticeKind::Unrecoverable, Some(Urgency::Lost)),
            (NoticeKind::Offline, Some(Urgency::Lost)),
        ];
        for (kind, urgency) in table {
            assert_eq!(Urgency::of(kind), urgency);
        }
    }

    #[test]
    fn the_most_urgent_first_then_the_longest_known() {
        let mut list = list();
        for (at, chunk, kind) in [
            (1, 5, NoticeKind::EccLow),
            (2, 4, NoticeKind::EccHigh),
            (3, 3, NoticeKind::Unrecoverable),
            (4, 2, NoticeKind::EccHigh),
            (4, 1, NoticeKind::EccHigh),
            (5, 0, NoticeKind::EccMedium),
        ] {
            list.note(s(at), &notice(chunk, None, kind), SECTORS).unwrap();
        }
        let order: Vec<u32> = list.iter().map(|work| work.chunk.0).collect();
        assert_eq!(order, [3, 4, 1, 2, 0, 5]);
        assert_eq!(list.first().unwrap().chunk, ChunkId(3));
    }

    #[test]
    fn a_chunk_has_one_entry_that_only_gets_worse() {
        let mut list = list();
        list.note(s(1), &notice(3, Some((8, 4)), NoticeKind::EccMedium), SECTORS).unwrap();
        list.note(s(2), &notice(3, Some((40, 2)), NoticeKind::EccHigh), SECTORS).unwrap();
        list.note(s(3), &notice(3, Some((0, 1)), NoticeKind::EccLow), SECTORS).unwrap();
        let expected =
            Work { chunk: ChunkId(3), urgency: Urgency::Now, since: s(1), sectors: 0..42, lost: Vec::new() };
        assert_eq!(list.iter().cloned().collect::<Vec<_>>(), [expected]);
        list.note(s(4), &notice(3, Some((20, 2)), NoticeKind::Unrecoverable), SECTORS).unwrap();
        list.note(s(5), &notice(3, Some((22, 2)), NoticeKind::Unrecoverable), SECTORS).unwrap();
        list.note(s(5), &notice(3, Some((4, 2)), NoticeKind::Unrecoverable), SECTORS).unwrap();
        let work = list.first().unwrap();
        assert_eq!((work.urgency, work.since), (Urgency::Lost, s(1)));
        assert_eq!(work.lost, [4..6, 20..24]);
    }

    #[test]
    fn a_reset_forgets() {
        let mut list = list();
        list.note(s(1), &notice(3, None, NoticeKind::EccHigh), SECTORS).unwrap();
        list.note(s(1), &notice(4, None, NoticeKind::EccLow), SECTORS).unwrap();
        list.reset(ChunkId(3));
        list.reset(ChunkId(3));
        assert_eq!(list.iter().map(|work| work.chunk.0).collect::<Vec<_>>(), [4]);
        assert_eq!(list.get(ChunkId(3)), None);
        // In its next life the chunk starts over.
        list.note(s(9), &notice(3, None, NoticeKind::EccLow), SECTORS).unwrap();
        assert_eq!(list.get(ChunkId(3)).unwrap().since, s(9));
    }

    #[test]
    fn what_cannot_be_is_not_believed() {
        let mut list = list();
        let high = NoticeKind::EccHigh;
        let table = [
            (notice(CHUNKS, None, high), SECTORS, NotNoted::NoSuchChunk),
            (notice(0, None, high), 0, NotNoted::NoData),
            (notice(0, Some((10, 5)), high), 10, NotNoted::NoData),
            (notice(0, Some((10, 0)), high), SECTORS, NotNoted::NoData),
            (notice(0, Some((SECTORS, 1)), high), u32::MAX, NotNoted::NoData),
            (notice(0, None, NoticeKind::Worn), SECTORS, NotNoted::NotAboutData),
            (notice(0, None, NoticeKind::Offline), 0, NotNoted::NoData),
        ];
        for (notice, written, why) in table {
            assert_eq!(list.note(s(1), &notice, written), Err(why), "{notice:?}");
        }
        assert!(list.is_empty());
        list.note(s(1), &notice(0, Some((60, u32::MAX)), high), u32::MAX).unwrap();
        assert_eq!(list.first().unwrap().sectors, 60..SECTORS);
    }

    #[test]
    fn the_report_corrects_the_list() {
        let mut list = list();
        for chunk in 0..4 {
            list.note(s(1), &notice(chunk, Some((0, 4)), NoticeKind::EccLow), SECTORS).unwrap();
        }
        let states = [
            ChunkState::Free,
            ChunkState::Open,
            ChunkState::Closed,
            ChunkState::Offline,
            ChunkState::Offline,
        ];
        let report: Vec<ChunkInfo> = states
            .iter()
            .enumerate()
            .map(|(id, state)| ChunkInfo { id: ChunkId(id as u32), state: *state, write_pointer: 4, wear: 0 })
            .collect();
        list.reconcile(&report);
        let found: Vec<(u32, Urgency)> = list.iter().map(|work| (work.chunk.0, work.urgency)).collect();
        // Chunk 4 went offline too, but nothing says that it held data: who knows gives a notice.
        assert_eq!(found, [(3, Urgency::Lost), (1, Urgency::WhenConvenient), (2, Urgency::WhenConvenient)]);
    }

    #[test]
    fn the_closest_lost_ranges_become_one_when_there_are_too_many() {
        let mut list = list();
        let limit = LOST_RANGES_MAX as u32;
        for nth in 0..limit {
            list.note(s(1), &notice(0, Some((nth * 3, 1)), NoticeKind::Unrecoverable), SECTORS).unwrap();
        }
        assert_eq!(list.first().unwrap().lost.len(), LOST_RANGES_MAX);
        list.note(s(1), &notice(0, Some((limit * 3 - 1, 1)), NoticeKind::Unrecoverable), SECTORS).unwrap();
        let lost = &list.first().unwrap().lost;
        assert_eq!(lost.len(), LOST_RANGES_MAX);
        assert_eq!(*lost.last().unwrap(), limit * 3 - 3..limit * 3, "a gap of one, the others have two");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Note(Notice, u32),
        Reset(ChunkId),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let kind = prop_oneof![
            1 => Just(NoticeKind::Worn),
            1 => Just(NoticeKind::EccLow),
            1 => Just(NoticeKind::EccMedium),
            1 => Just(NoticeKind::EccHigh),
            3 => Just(NoticeKind::Unrecoverable),
            1 => Just(NoticeKind::Offline),
        ];
        let note =
            (0..CHUNKS + 1, prop::option::weighted(0.9, (0..SECTORS + 2, 0u32..4)), kind, 0..SECTORS + 2)
                .prop_map(|(chunk, sectors, kind, written)| {
                    Step::Note(notice(chunk, sectors, kind), written)
                });
        let step = prop_oneof![20 => note, 1 => (0..CHUNKS).prop_map(|chunk| Step::Reset(ChunkId(chunk)))];
        prop::collection::vec(step, 0..300)
    }

    proptest! {
        /// Against a list that remembers everything.
        #[test]
        fn nothing_is_forgotten_but_by_a_reset(steps in steps()) {
            let mut list = list();
            let mut model: BTreeMap<ChunkId, (Urgency, Duration, BTreeSet<u32>, BTreeSet<u32>)> = BTreeMap::new();
            let mut crowded = BTreeSet::new();
            for (at, step) in steps.into_iter().enumerate() {
                let now = s(at as u64);
                match step {
                    Step::Reset(chunk) => {
                        list.reset(chunk);
                        model.remove(&chunk);
                    }
                    Step::Note(notice, written) => {
                        let noted = list.note(now, &notice, written);
                        let whole = (0, SECTORS);
                        let (first, count) = match notice.kind {
                            NoticeKind::Offline => whole,
                            _ => notice.sectors.unwrap_or(whole),
                        };
                        let sectors: BTreeSet<u32> =
                            (first..first + count).filter(|sector| *sector < written.min(SECTORS)).collect();
                        let urgency = Urgency::of(notice.kind);
                        let believed = notice.chunk.0 < CHUNKS && urgency.is_some() && !sectors.is_empty();
                        prop_assert_eq!(noted.is_ok(), believed);
                        if let (true, Some(urgency)) = (believed, urgency) {
                            let entry = model
                                .entry(notice.chunk)
                                .or_insert((urgency, now, BTreeSet::new(), BTreeSet::new()));
                            entry.0 = entry.0.max(urgency);
                            entry.2.extend(&sectors);
                            if urgency == Urgency::Lost {
                                entry.3.extend(&sectors);
                                let lost = &entry.3;
                                let ranges = lost.iter().filter(|sector| !lost.contains(&(*sector + 1))).count();
                                if ranges > LOST_RANGES_MAX {
                                    crowded.insert(notice.chunk);
                                }
                            }
                        }
                    }
                }
            }
            prop_assert_eq!(list.len(), model.len());
            let keys: Vec<_> = list.iter().map(key).collect();
            prop_assert!(keys.is_sorted());
            for (chunk, (urgency, since, sectors, lost)) in model {
                let work = list.get(chunk).unwrap();
                prop_assert_eq!((work.urgency, work.since), (urgency, since));
                prop_assert_eq!(work.sectors.start, *sectors.first().unwrap());
                prop_assert_eq!(work.sectors.end, *sectors.last().unwrap() + 1);
                prop_assert!(work.lost.len() <= LOST_RANGES_MAX);
                prop_assert!(work.lost.windows(2).all(|pair| pair[0].end < pair[1].start));
                let found: BTreeSet<u32> = work.lost.iter().cloned().flatten().collect();
                prop_assert!(lost.is_subset(&found));
                // Ranges are joined for want of room only: as long as all found room, nothing else counts as lost.
                if !crowded.contains(&chunk) {
                    prop_assert_eq!(found, lost);
                }
            }
        }
    }
}

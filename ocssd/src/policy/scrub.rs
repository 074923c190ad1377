//! Reading everything that is kept within an interval, so that what fades is found while it can be corrected.
//!
//! Data that nobody reads loses bits unnoticed, on one replica after another. A scrub reads it in the background, a bit
//! at a time, and turns what it finds into [notices](crate::media::Notice) for the
//! [work list](super::refresh::RefreshList). This file only says what to read next and when; the
//! [scrubber](crate::scrubber) reads.
//!
//! **Order and pace.** Chunks queue up by the time they were last known good: written, or read whole. The head of the
//! queue is read at the slowest steady pace at which it and all behind it are read before their intervals end, so that
//! a device that was filled in an hour is not read in an hour two weeks later. The pace is found anew for each chunk. One
//! whose interval is over is due whatever the pace. One that was known good [recently](ScrubOptions::recent) is
//! not read again yet.
//!
//! **Losses are narrowed down.** A read that fails says that something in it is lost. It is read again in halves, each
//! a read of its own within the budget, down to [`ScrubOptions::read_sectors_min`]: the rest of the chunk is not given
//! up with one bad sector.
//!
//! Invariants:
//! - Granted its reads in time, no sector that stays written goes unread for longer than the interval, counted from
//!   when the scrub first heard of it.
//! - A chunk that was reset is forgotten at once; the result of a read of its former life changes nothing.
//! - Memory: one small entry for each chunk that holds data.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::geometry::{ChunkId, Geometry};
use crate::media::{ChunkInfo, ChunkState, Notice, NoticeKind};

/// How a [`Scrub`] reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScrubOptions {
    /// Time in which everything is read once. Default 14 days. Longer: fewer reads, more bits gone when found.
    pub interval: Duration,
    /// A chunk that was written or read whole within this time is not read. Default 7 days; at most the interval.
    /// Longer: fewer reads after much was written at once, less evenly spread.
    pub recent: Duration,
    /// Sectors of one read. Default 32. More: fewer operations, each a longer wait for the foreground.
    pub read_sectors_max: u32,
    /// Sectors to which a loss is narrowed down. Default 1; the device's `ws_min` where sectors of one write fall
    /// together. At most `read_sectors_max`.
    pub read_sectors_min: u32,
}

impl Default for ScrubOptions {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Self { interval: 14 * DAY, recent: 7 * DAY, read_sectors_max: 32, read_sectors_min: 1 }
    }
}

/// What makes no sense in [`ScrubOptions`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScrubOptionsError {
    /// Everything would be due at once, always.
    #[error("the interval is zero")]
    NoInterval,
    /// Chunks would be skipped beyond their interval.
    #[error("`recent` is longer than the interval")]
    RecentTooLong,
    /// Reads of nothing, or a smallest read above the largest.
    #[error("a read must be of 1 to {max} sectors, not {min}")]
    ReadSectors {
        /// The smallest read.
        min: u32,
        /// The largest.
        max: u32,
    },
}

/// One read that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScrubRead {
    /// Which chunk.
    pub chunk: ChunkId,
    /// First sector.
    pub first: u32,
    /// Sectors.
    pub sectors: u32,
    /// Which life of the chunk this is about.
    life: u32,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// This read. It stays the next one until its [result](Scrub::complete) is told.
    Read(ScrubRead),
    /// Nothing before then.
    WaitUntil(Duration),
    /// Nothing, since nothing is written.
    Idle,
}

/// What came of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The data is what was written.
    Good,
    /// The same, but it took effort: to be rewritten soon.
    Corrected,
    /// The device gave data, and it is wrong in these sectors (first, how many).
    Damaged(u32, u32),
    /// The device cannot give the data of some sector in the range.
    Unreadable,
    /// The chunk went offline.
    Offline,
    /// The device says that the chunk does not hold this range: it was reset behind our back.
    Gone,
    /// It says nothing about the data: the device as a whole failed. To be read again.
    Failed,
}

/// What a scrub did so far, and how far it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Sectors that are written now.
    pub written_sectors: u64,
    /// Sectors of those that were known good within the last interval: all, if the scrub keeps up.
    pub fresh_sectors: u64,
    /// When the chunk at the head of the queue was last known good; `None` if nothing is written.
    pub oldest: Option<Duration>,
    /// The chunk being read.
    pub current: Option<ChunkId>,
    /// Chunks read from end to end.
    pub chunks_read: u64,
    /// Sectors read.
    pub sectors_read: u64,
    /// Reads that needed correction.
    pub corrected_reads: u64,
    /// Sectors found lost.
    pub sectors_lost: u64,
}

/// A chunk that holds data.
#[derive(Debug, Clone, Copy)]
struct Chunk {
    written: u32,
    /// As reported, if it was.
    wear: Option<u32>,
    /// When all of it was last known good.
    good_at: Duration,
    /// Whether that is knowledge, or the time at which the scrub first heard of it.
    known: bool,
    /// Place among chunks of equal time.
    rank: u32,
    /// Sectors of the check under way that are done, from the chunk's start; and when that check began.
    upto: u32,
    began: Duration,
    /// Whether the scrub itself reads there, or only others did.
    own: bool,
    /// Sectors of the next read.
    step: u32,
}

/// The scrub of one medium: what to read next, and when.
#[derive(Debug, Clone)]
pub struct Scrub {
    options: ScrubOptions,
    chunk_sectors: u32,
    hidden_sectors: u32,
    chunks: Vec<Option<Chunk>>,
    lives: Vec<u32>,
    queue: BTreeSet<(Duration, u32, ChunkId)>,
    written_sectors: u64,
    /// So many sectors in so many nanoseconds.
    pace: (u64, u128),
    /// When the pace allows the next read.
    paced: Duration,
    /// Where the first round starts.
    resume_after: Option<ChunkId>,
    counts: Progress,
}

impl Scrub {
    /// A scrub that knows of no chunk yet. `resume_after`: [`Progress::current`] of the last life, so that a host that
    /// restarts often does not read the first chunks over and over.
    ///
    /// # Errors
    /// What makes no sense in the options.
    pub fn new(
        geometry: &Geometry,
        options: ScrubOptions,
        resume_after: Option<ChunkId>,
        now: Duration,
    ) -> Result<Self, ScrubOptionsError> {
        let ScrubOptions { read_sectors_min: min, read_sectors_max: max, .. } = options;
        if options.interval.is_zero() {
            return Err(ScrubOptionsError::NoInterval);
        }
        if options.recent > options.interval {
            return Err(ScrubOptionsError::RecentTooLong);
        }
        if min == 0 || min > max {
            return Err(ScrubOptionsError::ReadSectors { min, max });
        }
        let count = geometry.chunk_count() as usize;
        Ok(Self {
            options,
            chunk_sectors: geometry.chunk_sectors,
            hidden_sectors: geometry.mw_cunits,
            chunks: vec![None; count],
            lives: vec![0; count],
            queue: BTreeSet::new(),
            written_sectors: 0,
            pace: (1, 0),
            paced: now,
            resume_after,
            counts: Progress::default(),
        })
    }

    /// How it reads.
    pub fn options(&self) -> &ScrubOptions {
        &self.options
    }

    /// Compares with a report of chunks, of all or some, that hold data worth reading: new ones queue up, those that
    /// are free, offline or have been reset since are forgotten. Chunks that do not exist are ignored.
    pub fn observe(&mut self, now: Duration, report: &[ChunkInfo]) {
        for info in report {
            let Some(known) = self.chunks.get(info.id.0 as usize).copied() else { continue };
            let written = self.readable(info);
            let reborn = known.is_some_and(|chunk| {
                chunk.wear.is_some_and(|wear| info.wear > wear) || info.write_pointer < chunk.written
            });
            let empty = written == 0 || matches!(info.state, ChunkState::Free | ChunkState::Offline);
            if reborn || empty {
                self.reset(info.id);
            }
            match self.chunks[info.id.0 as usize] {
                _ if empty => {}
                Some(chunk) => {
                    let written = written.max(chunk.written);
                    self.replace(info.id, Chunk { written, wear: Some(info.wear), ..chunk });
                }
                None => self.insert(info.id, written, Some(info.wear), now, reborn),
            }
        }
    }

    /// The host wrote the chunk, and can read it, up to this sector.
    pub fn wrote(&mut self, now: Duration, chunk: ChunkId, written: u32) {
        let written = written.min(self.chunk_sectors);
        match self.chunks.get(chunk.0 as usize).copied() {
            // Older than it need be for the new part, so read early rather than late.
            Some(Some(known)) if written > known.written => self.replace(chunk, Chunk { written, ..known }),
            Some(None) if written > 0 => self.insert(chunk, written, None, now, true),
            _ => {}
        }
    }

    /// The chunk was reset, or nothing in it is alive.
    pub fn reset(&mut self, chunk: ChunkId) {
        let Some(slot) = self.chunks.get_mut(chunk.0 as usize) else { return };
        if let Some(known) = slot.take() {
            self.queue.remove(&(known.good_at, known.rank, chunk));
            self.written_sectors -= u64::from(known.written);
            self.lives[chunk.0 as usize] += 1;
        }
    }

    /// Someone else read these sectors and found them good. Reads that go through a chunk from its start (a snapshot, a
    /// follower that catches up) spare the scrub its own; reads here and there do not.
    pub fn read_elsewhere(&mut self, now: Duration, chunk: ChunkId, first: u32, sectors: u32) {
        let Some(Some(known)) = self.chunks.get(chunk.0 as usize).copied() else { return };
        let end = first.saturating_add(sectors).min(known.written);
        let starts_over = first == 0 && !known.own;
        if end <= first || (!starts_over && !(first..end).contains(&known.upto)) {
            return;
        }
        let began = if starts_over { now } else { known.began };
        self.advance(chunk, Chunk { upto: end, began, ..known });
    }

    /// What is to be read now.
    pub fn next(&mut self, now: Duration) -> Next {
        let Some(&(_, _, id)) = self.queue.first() else { return Next::Idle };
        let mut chunk = self.chunks[id.0 as usize].expect("what is queued is known");
        let due = chunk.good_at.saturating_add(self.options.interval);
        let fresh_until = match chunk.known {
            true => chunk.good_at.saturating_add(self.options.recent),
            false => chunk.good_at,
        };
        let at = self.paced.max(fresh_until).min(due);
        if at > now {
            return Next::WaitUntil(at);
        }
        if !chunk.own {
            // What others read a while ago would make the chunk look fresher than its first sectors are.
            let stale = chunk.began.saturating_add(self.options.recent) < now;
            if chunk.upto == 0 || stale {
                chunk = Chunk { upto: 0, began: now, ..chunk };
            }
            chunk = Chunk { own: true, step: self.options.read_sectors_max, ..chunk };
            self.chunks[id.0 as usize] = Some(chunk);
            self.pace = self.slowest_pace(now);
        }
        let sectors = chunk.step.min(chunk.written - chunk.upto);
        Next::Read(ScrubRead { chunk: id, first: chunk.upto, sectors, life: self.lives[id.0 as usize] })
    }

    /// Takes the result of a read that [`Self::next`] gave. Returns what the work list should know.
    pub fn complete(&mut self, now: Duration, read: &ScrubRead, outcome: Outcome) -> Option<Notice> {
        self.follow_pace(now, read.sectors);
        self.counts.sectors_read += u64::from(read.sectors);
        let known = self.chunks[read.chunk.0 as usize]?;
        if self.lives[read.chunk.0 as usize] != read.life {
            return None;
        }
        let end = read.first + read.sectors;
        let notice = |kind, sectors| Some(Notice { chunk: read.chunk, sectors, kind });
        let (min, max) = (self.options.read_sectors_min, self.options.read_sectors_max);
        // Others may have read on meanwhile: never back. If they came to its end, this check is over.
        let upto = if known.own { known.upto.max(end) } else { known.upto };
        let done = Chunk { upto, ..known };
        match outcome {
            Outcome::Good => {
                self.advance(read.chunk, Chunk { step: known.step.saturating_mul(2).min(max), ..done });
                None
            }
            Outcome::Corrected => {
                self.counts.corrected_reads += 1;
                self.advance(read.chunk, done);
                notice(NoticeKind::EccMedium, Some((read.first, read.sectors)))
            }
            Outcome::Damaged(first, sectors) => {
                // Held to what was read, whoever judged it.
                let first = first.clamp(read.first, end - 1);
                let sectors = sectors.clamp(1, end - first);
                self.counts.sectors_lost += u64::from(sectors);
                self.advance(read.chunk, done);
                notice(NoticeKind::Unrecoverable, Some((first, sectors)))
            }
            Outcome::Unreadable if read.sectors > min => {
                let step = (read.sectors / 2).next_multiple_of(min);
                self.chunks[read.chunk.0 as usize] = Some(Chunk { step, ..known });
                None
            }
            Outcome::Unreadable => {
                self.counts.sectors_lost += u64::from(read.sectors);
                self.advance(read.chunk, done);
                notice(NoticeKind::Unrecoverable, Some((read.first, read.sectors)))
            }
            Outcome::Offline => {
                self.counts.sectors_lost += u64::from(known.written);
                self.reset(read.chunk);
                notice(NoticeKind::Offline, None)
            }
            Outcome::Gone => {
                self.reset(read.chunk);
                None
            }
            Outcome::Failed => None,
        }
    }

    /// Sectors of a chunk that the scrub believes to hold data: what bounds a notice about it.
    pub fn written(&self, chunk: ChunkId) -> u32 {
        self.chunks.get(chunk.0 as usize).copied().flatten().map_or(0, |chunk| chunk.written)
    }

    /// What was done and how far it is. Goes through all chunks.
    pub fn progress(&self, now: Duration) -> Progress {
        let fresh = |chunk: &&Chunk| chunk.good_at.saturating_add(self.options.interval) >= now;
        let sectors = |chunk: &Chunk| u64::from(chunk.written);
        let head = self.queue.first();
        Progress {
            written_sectors: self.written_sectors,
            fresh_sectors: self.chunks.iter().flatten().filter(fresh).map(sectors).sum(),
            oldest: head.map(|(good_at, _, _)| *good_at),
            current: head.map(|(_, _, chunk)| *chunk),
            ..self.counts
        }
    }

    /// The next read may follow when the time has passed that this one takes at the pace. What was missed is caught up,
    /// up to a hundredth of the interval.
    fn follow_pace(&mut self, now: Duration, sectors: u32) {
        let interval = self.options.interval;
        let from = self.paced.max(now.saturating_sub(interval / 100));
        let nanos = self.pace.1.saturating_mul(u128::from(sectors)) / u128::from(self.pace.0);
        let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
        self.paced = from.saturating_add(Duration::from_nanos(nanos).min(interval));
    }

    /// The slowest steady pace at which every chunk of the queue, read in order, is done before its interval ends.
    fn slowest_pace(&self, now: Duration) -> (u64, u128) {
        let mut slowest = (1, u128::MAX);
        let mut sectors = 0;
        for (good_at, _, id) in &self.queue {
            let chunk = self.chunks[id.0 as usize].expect("what is queued is known");
            sectors += u64::from(chunk.written - chunk.upto);
            let left = good_at.saturating_add(self.options.interval).saturating_sub(now).as_nanos();
            // sectors / left > slowest
            if u128::from(sectors).saturating_mul(slowest.1) > left.saturating_mul(u128::from(slowest.0)) {
                slowest = (sectors, left);
            }
        }
        slowest
    }

    /// Stores a check that came further, and ends it if that was all.
    fn advance(&mut self, id: ChunkId, chunk: Chunk) {
        if chunk.upto < chunk.written {
            self.chunks[id.0 as usize] = Some(chunk);
            return;
        }
        self.queue.remove(&(chunk.good_at, chunk.rank, id));
        self.counts.chunks_read += u64::from(chunk.own);
        let checked =
            Chunk { good_at: chunk.began, known: true, rank: u32::MAX, upto: 0, own: false, ..chunk };
        self.queue.insert((checked.good_at, checked.rank, id));
        self.chunks[id.0 as usize] = Some(checked);
    }

    fn insert(&mut self, id: ChunkId, written: u32, wear: Option<u32>, now: Duration, known: bool) {
        // Known ones after the unknown of the same time; those in the order of a first round.
        let rank = match known {
            true => u32::MAX,
            false => {
                id.0.wrapping_sub(self.resume_after.map_or(0, |last| last.0.wrapping_add(1)))
                    .min(u32::MAX - 1)
            }
        };
        let step = self.options.read_sectors_max;
        let chunk = Chunk { written, wear, good_at: now, known, rank, upto: 0, began: now, own: false, step };
        self.queue.insert((now, rank, id));
        self.written_sectors += u64::from(written);
        self.chunks[id.0 as usize] = Some(chunk);
    }

    /// The same life, written further.
    fn replace(&mut self, id: ChunkId, chunk: Chunk) {
        let before = self.chunks[id.0 as usize].expect("only a known chunk is replaced").written;
        self.written_sectors = self.written_sectors - u64::from(before) + u64::from(chunk.written);
        self.chunks[id.0 as usize] = Some(chunk);
    }

    /// Sectors that hold data and can be read.
    fn readable(&self, info: &ChunkInfo) -> u32 {
        let hidden = if info.state == ChunkState::Open { self.hidden_sectors } else { 0 };
        info.write_pointer.min(self.chunk_sectors).saturating_sub(hidden)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const CHUNKS: u32 = 8;
    const SECTORS: u32 = 64;
    const READ: u32 = 8;

    fn geometry(mw_cunits: u32) -> Geometry {
        Geometry {
            groups: 1,
            parallel_units: 1,
            chunks: CHUNKS,
            chunk_sectors: SECTORS,
            sector_bytes: 4096,
            ws_min: 1,
            ws_opt: 1,
            mw_cunits,
            max_open: 0,
        }
    }

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Everything within 1,000 s, nothing within 400 s.
    fn options() -> ScrubOptions {
        ScrubOptions { interval: s(1_000), recent: s(400), read_sectors_max: READ, read_sectors_min: 1 }
    }

    fn scrub() -> Scrub {
        Scrub::new(&geometry(0), options(), None, s(0)).unwrap()
    }

    fn info(chunk: u32, state: ChunkState, write_pointer: u32, wear: u32) -> ChunkInfo {
        ChunkInfo { id: ChunkId(chunk), state, write_pointer, wear }
    }

    fn full(chunks: std::ops::Range<u32>) -> Vec<ChunkInfo> {
        chunks.map(|chunk| info(chunk, ChunkState::Closed, SECTORS, 0)).collect()
    }

    /// Reads what is due until `end`, all of it good. Returns when each read was made.
    fn read_until(scrub: &mut Scrub, from: Duration, end: Duration) -> Vec<(Duration, ScrubRead)> {
        let mut reads = Vec::new();
        let mut now = from;
        loop {
            match scrub.next(now) {
                Next::Read(read) => {
                    reads.push((now, read));
                    assert_eq!(scrub.complete(now, &read, Outcome::Good), None);
                }
                Next::WaitUntil(at) if at <= end => {
                    assert!(at > now);
                    now = at;
                }
                Next::WaitUntil(_) | Next::Idle => return reads,
            }
        }
    }

    fn chunks_of(reads: &[(Duration, ScrubRead)]) -> Vec<u32> {
        let mut chunks: Vec<u32> = reads.iter().map(|(_, read)| read.chunk.0).collect();
        chunks.dedup();
        chunks
    }

    #[test]
    fn one_round_is_spread_over_the_interval() {
        let mut scrub = scrub();
        assert_eq!(scrub.next(s(0)), Next::Idle);
        scrub.observe(s(0), &full(0..CHUNKS));
        let reads = read_until(&mut scrub, s(0), s(999));
        assert_eq!(chunks_of(&reads)[..8], [0, 1, 2, 3, 4, 5, 6, 7]);
        // The first chunk is due again when its check began an interval ago: of few chunks one more is read.
        assert!((64..=72).contains(&reads.len()), "{} reads", reads.len());
        for window in 0..8 {
            let within =
                |(at, _): &&(Duration, ScrubRead)| (s(window * 125)..s(window * 125 + 125)).contains(at);
            let count = reads.iter().filter(within).count();
            assert!((7..=16).contains(&count), "{count} of 64 reads in eighth {window}");
        }
        let progress = scrub.progress(s(999));
        assert!(progress.chunks_read >= 8 && progress.sectors_read >= 512);
        assert_eq!((progress.written_sectors, progress.fresh_sectors), (512, 512));
    }

    #[test]
    fn what_was_written_all_at_once_is_not_read_all_at_once() {
        let mut scrub = scrub();
        for chunk in 0..CHUNKS {
            scrub.wrote(s(0), ChunkId(chunk), SECTORS);
        }
        assert_eq!(scrub.next(s(0)), Next::WaitUntil(s(400)), "recently written");
        let reads = read_until(&mut scrub, s(400), s(995));
        assert_eq!(reads.len(), 64);
        let early = reads.iter().filter(|(at, _)| *at < s(700)).count();
        assert!((31..=33).contains(&early), "{early} of 64 reads in the first half");
    }

    #[test]
    fn an_overdue_chunk_is_read_whatever_the_pace() {
        let mut scrub = scrub();
        scrub.observe(s(0), &full(0..2));
        let first = read_until(&mut scrub, s(0), s(10));
        assert!(!first.is_empty() && first.len() < 8);
        // Nobody had time for it until all intervals were over.
        let reads = read_until(&mut scrub, s(5_000), s(5_000));
        // The check of chunk 0 began so long ago that what it read first is overdue once more.
        assert_eq!(chunks_of(&reads), [0, 1, 0]);
        assert_eq!(first.len() + reads.len(), 24);
    }

    #[test]
    fn a_chunk_in_order_of_when_it_was_last_good() {
        let mut scrub = scrub();
        scrub.observe(s(0), &full(3..5));
        scrub.wrote(s(50), ChunkId(0), SECTORS);
        scrub.observe(s(60), &full(1..2));
        let reads = read_until(&mut scrub, s(60), s(1_100));
        assert_eq!(chunks_of(&reads)[..4], [3, 4, 0, 1]);
    }

    #[test]
    fn a_restart_goes_on_where_the_last_life_was() {
        let mut scrub = Scrub::new(&geometry(0), options(), Some(ChunkId(5)), s(0)).unwrap();
        scrub.observe(s(0), &full(0..CHUNKS));
        let reads = read_until(&mut scrub, s(0), s(999));
        assert_eq!(chunks_of(&reads)[..8], [6, 7, 0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn only_what_is_readable_is_read() {
        let mut scrub = Scrub::new(&geometry(6), options(), None, s(0)).unwrap();
        scrub.observe(
            s(0),
            &[
                info(0, ChunkState::Open, 16, 0),
                info(1, ChunkState::Open, 6, 0),
                info(2, ChunkState::Free, 0, 9),
                info(3, ChunkState::Offline, 64, 0),
                info(4, ChunkState::Closed, 12, 0),
                info(5, ChunkState::Closed, 1_000, 0),
                info(99, ChunkState::Closed, 64, 0),
            ],
        );
        let written: Vec<u32> = (0..6).map(|chunk| scrub.written(ChunkId(chunk))).collect();
        assert_eq!(written, [10, 0, 0, 0, 12, 64]);
        let reads = read_until(&mut scrub, s(0), s(999));
        let first_round: Vec<(u32, u32, u32)> =
            reads.iter().take(4).map(|(_, read)| (read.chunk.0, read.first, read.sectors)).collect();
        assert_eq!(first_round, [(0, 0, 8), (0, 8, 2), (4, 0, 8), (4, 8, 4)]);
    }

    /// Without the chunk's life in the read, sectors of the new life would count as read.
    #[test]
    fn a_result_of_a_former_life_changes_nothing() {
        let mut scrub = scrub();
        scrub.observe(s(0), &full(0..1));
        let Next::Read(read) = scrub.next(s(0)) else { panic!() };
        scrub.reset(ChunkId(0));
        assert_eq!(scrub.next(s(0)), Next::Idle);
        scrub.wrote(s(1), ChunkId(0), SECTORS);
        assert_eq!(scrub.complete(s(2), &read, Outcome::Unreadable), None);
        assert_eq!(scrub.complete(s(2), &read, Outcome::Offline), None);
        assert_eq!(scrub.written(ChunkId(0)), SECTORS);
        let Next::Read(read) = scrub.next(s(900)) else { panic!() };
        assert_eq!((read.first, read.sectors), (0, READ));
    }

    #[test]
    fn a_report_tells_of_resets_that_were_missed() {
        let mut scrub = scrub();
        scrub.observe(s(0), &full(0..3));
        let Next::Read(before) = scrub.next(s(0)) else { panic!() };
        // Chunk 0 was reset and written again, 1 is free, 2 is offline.
        scrub.observe(
            s(10),
            &[
                info(0, ChunkState::Closed, SECTORS, 1),
                info(1, ChunkState::Free, 0, 1),
                info(2, ChunkState::Offline, 0, 0),
            ],
        );
        assert_eq!(scrub.complete(s(10), &before, Outcome::Unreadable), None);
        assert_eq!(scrub.progress(s(10)).written_sectors, u64::from(SECTORS));
        assert_eq!(scrub.next(s(10)), Next::WaitUntil(s(410)));
    }

    #[test]
    fn a_loss_is_narrowed_down_to_its_sectors() {
        let bad = [3, 20, 21];
        let mut scrub = scrub();
        scrub.observe(s(0), &full(0..1));
        let mut lost = Vec::new();
        let mut reads = 0;
        let mut now = s(0);
        while scrub.progress(now).chunks_read == 0 {
            match scrub.next(now) {
                Next::Read(read) => {
                    reads += 1;
                    let hit =
                        bad.iter().any(|sector| (read.first..read.first + read.sectors).contains(sector));
                    let outcome = if hit { Outcome::Unreadable } else { Outcome::Good };
                    if let Some(notice) = scrub.complete(now, &read, outcome) {
                        assert_eq!(notice.kind, NoticeKind::Unrecoverable);
                        lost.push(notice.sectors.unwrap());
                    }
                }
                Next::WaitUntil(at) => now = at,
                Next::Idle => panic!("the chunk is there"),
            }
        }
        assert_eq!(lost, [(3, 1), (20, 1), (21, 1)]);
        assert_eq!(scrub.progress(now).sectors_lost, 3);
        assert!(reads < 40, "{reads} reads of 64 sectors");
    }

    #[test]
    fn what_each_outcome_leads_to() {
        let table = [
            (Outcome::Good, None, 8),
            (Outcome::Corrected, Some((NoticeKind::EccMedium, Some((0, 8)))), 8),
            (Outcome::Damaged(2, 3), Some((NoticeKind::Unrecoverable, Some((2, 3)))), 8),
            (Outcome::Damaged(7, 99), Some((NoticeKind::Unrecoverable, Some((7, 1)))), 8),
            (Outcome::Damaged(99, 0), Some((NoticeKind::Unrecoverable, Some((7, 1)))), 8),
            (Outcome::Unreadable, None, 0),
            (Outcome::Failed, None, 0),
        ];
        for (outcome, expected, upto) in table {
            let mut scrub = scrub();
            scrub.observe(s(0), &full(0..1));
            let Next::Read(read) = scrub.next(s(0)) else { panic!() };
            let notice = scrub.complete(s(0), &read, outcome);
            assert_eq!(notice.map(|notice| (notice.kind, notice.sectors)), expected, "{outcome:?}");
            let Next::WaitUntil(at) = scrub.next(s(0)) else { panic!("the pace holds after {outcome:?}") };
            let Next::Read(read) = scrub.next(at) else { panic!() };
            assert_eq!(read.first, upto, "{outcome:?}");
        }
        for (outcome, kind) in [(Outcome::Gone, None), (Outcome::Offline, Some(NoticeKind::Offline))] {
            let mut scrub = scrub();
            scrub.observe(s(0), &full(0..1));
            let Next::Read(read) = scrub.next(s(0)) else { panic!() };
            assert_eq!(scrub.complete(s(0), &read, outcome).map(|notice| notice.kind), kind);
            assert_eq!(scrub.next(s(0)), Next::Idle);
        }
    }

    #[test]
    fn reads_of_others_that_go_through_a_chunk_count() {
        let mut scrub = scrub();
        scrub.observe(s(0), &full(0..2));
        scrub.read_elsewhere(s(100), ChunkId(0), 0, 40);
        scrub.read_elsewhere(s(150), ChunkId(0), 50, 14); // does not join
        scrub.read_elsewhere(s(200), ChunkId(0), 32, 99);
        scrub.read_elsewhere(s(200), ChunkId(7), 0, 64);
        assert_eq!(scrub.progress(s(200)).oldest, Some(s(0)));
        let reads = read_until(&mut scrub, s(200), s(499));
        assert!(reads.iter().all(|(_, read)| read.chunk == ChunkId(1)));
        // Chunk 1 is known good since it was begun; chunk 0 since 100 s.
        let reads = read_until(&mut scrub, s(990), s(1_100));
        assert!(reads.iter().any(|(_, read)| read.chunk == ChunkId(0)));
    }

    /// Without the rule the chunk would look as fresh as its last sectors, or start over for nothing.
    #[test]
    fn the_scrub_goes_on_where_others_stopped_unless_that_was_long_ago() {
        for (read_at, first) in [(10, 0), (200, 40)] {
            let mut scrub = scrub();
            scrub.wrote(s(0), ChunkId(0), SECTORS);
            scrub.read_elsewhere(s(read_at), ChunkId(0), 0, 40);
            let Next::Read(read) = scrub.next(s(450)) else { panic!() };
            assert_eq!(read.first, first, "read by others at {read_at}");
        }
    }

    #[test]
    fn a_check_that_others_finished_is_over() {
        let mut scrub = scrub();
        scrub.observe(s(0), &full(0..1));
        let Next::Read(read) = scrub.next(s(0)) else { panic!() };
        scrub.read_elsewhere(s(0), ChunkId(0), 0, SECTORS);
        assert_eq!(scrub.complete(s(0), &read, Outcome::Good), None);
        // The next one begins at the first sector.
        let Next::Read(read) = scrub.next(s(400)) else { panic!() };
        assert_eq!(read.first, 0);
    }

    #[test]
    fn options_are_checked() {
        let with = |options| Scrub::new(&geometry(0), options, None, s(0)).map(|_| ());
        assert_eq!(with(options()), Ok(()));
        let none = ScrubOptions { interval: s(0), recent: s(0), ..options() };
        assert_eq!(with(none), Err(ScrubOptionsError::NoInterval));
        assert_eq!(
            with(ScrubOptions { recent: s(1_001), ..options() }),
            Err(ScrubOptionsError::RecentTooLong)
        );
        for (min, max) in [(0, 8), (9, 8)] {
            let options = ScrubOptions { read_sectors_min: min, read_sectors_max: max, ..options() };
            assert_eq!(with(options), Err(ScrubOptionsError::ReadSectors { min, max }));
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Write { chunk: u32, sectors: u32 },
        Reset { chunk: u32 },
        Report,
        Read { chunk: u32, first: u32, sectors: u32 },
    }

    fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
        let chunk = 0..CHUNKS;
        let step = prop_oneof![
            4 => (chunk.clone(), 1u32..=SECTORS).prop_map(|(chunk, sectors)| Step::Write { chunk, sectors }),
            2 => chunk.clone().prop_map(|chunk| Step::Reset { chunk }),
            1 => Just(Step::Report),
            3 => (chunk, prop_oneof![Just(0), 0..SECTORS], 1u32..=SECTORS)
                .prop_map(|(chunk, first, sectors)| Step::Read { chunk, first, sectors }),
        ];
        prop::collection::vec((0u64..300, step), 1..80)
    }

    proptest! {
        /// The promise, against a model that knows of every sector when it was last good. Reads take no time here, so
        /// there is no slack.
        #[test]
        fn nothing_goes_unread_for_longer_than_the_interval(steps in steps()) {
            let mut scrub = scrub();
            let mut good: BTreeMap<(u32, u32), Duration> = BTreeMap::new();
            let written = |good: &BTreeMap<(u32, u32), Duration>, chunk| {
                good.range((chunk, 0)..(chunk + 1, 0)).count() as u32
            };
            let mut wear = [0u32; CHUNKS as usize];
            let mut now = s(0);
            for (seconds, step) in steps {
                let until = now + s(seconds);
                loop {
                    let next = scrub.next(now);
                    for (sector, at) in &good {
                        prop_assert!(now - *at <= s(1_000), "{:?} last good at {:?}, now {:?}", sector, at, now);
                    }
                    match next {
                        Next::Read(read) => {
                            for sector in read.first..read.first + read.sectors {
                                let at = good.get_mut(&(read.chunk.0, sector));
                                prop_assert!(at.is_some(), "{:?} reads what is not there", read);
                                *at.unwrap() = now;
                            }
                            scrub.complete(now, &read, Outcome::Good);
                        }
                        Next::WaitUntil(at) if at <= until => now = at,
                        Next::WaitUntil(_) => break,
                        Next::Idle => {
                            prop_assert!(good.is_empty());
                            break;
                        }
                    }
                }
                now = until;
                match step {
                    Step::Write { chunk, sectors } => {
                        let start = written(&good, chunk);
                        let end = (start + sectors).min(SECTORS);
                        good.extend((start..end).map(|sector| ((chunk, sector), now)));
                        scrub.wrote(now, ChunkId(chunk), end);
                    }
                    Step::Reset { chunk } => {
                        good.retain(|(of, _), _| *of != chunk);
                        wear[chunk as usize] += 1;
                        scrub.reset(ChunkId(chunk));
                    }
                    Step::Report => {
                        let report: Vec<ChunkInfo> = (0..CHUNKS)
                            .map(|chunk| {
                                let written = written(&good, chunk);
                                let state = match written {
                                    0 => ChunkState::Free,
                                    SECTORS => ChunkState::Closed,
                                    _ => ChunkState::Open,
                                };
                                info(chunk, state, written, wear[chunk as usize])
                            })
                            .collect();
                        scrub.observe(now, &report);
                    }
                    Step::Read { chunk, first, sectors } => {
                        let end = (first + sectors).min(written(&good, chunk));
                        for sector in first..end {
                            good.insert((chunk, sector), now);
                        }
                        if first < end {
                            scrub.read_elsewhere(now, ChunkId(chunk), first, end - first);
                        }
                    }
                }
                prop_assert_eq!(scrub.progress(now).written_sectors, good.len() as u64);
            }
        }
    }
}

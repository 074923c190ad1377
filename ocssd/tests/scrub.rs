//! Scrubbing a simulated medium: what is unreadable or wrong is found to the sector, what is reset meanwhile does no
//! harm, and the budget holds.

#![expect(clippy::single_range_in_vec_init, reason = "lists of lost ranges, some with one")]

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use terrane_ocssd::policy::budget::{Budget, BudgetOptions, Consumer, ConsumerId, Cost, Rate, Refusal};
use terrane_ocssd::policy::refresh::{RefreshList, Urgency};
use terrane_ocssd::policy::scrub::{Outcome, Scrub, ScrubOptions, ScrubRead};
use terrane_ocssd::{
    AlignedBuf, ChunkId, Durability, Geometry, Media, MediaError, Scrubber, SimMedia, SimOptions, Step,
    Verdict,
};

const CHUNKS: u32 = 4;
const SECTORS: u32 = 64;
const SECTOR_BYTES: u32 = 512;
const READ_SECTORS: u32 = 8;
const CLEANING: ConsumerId = ConsumerId(0);
const SCRUB: ConsumerId = ConsumerId(1);

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
}

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn content(chunk: ChunkId, sector: u32) -> u8 {
    (chunk.0 * SECTORS + sector) as u8
}

fn verify(read: &ScrubRead, data: &[u8]) -> Verdict {
    let sectors = data.chunks(SECTOR_BYTES as usize).zip(read.first..);
    let wrong: Vec<u32> = sectors
        .filter(|(bytes, sector)| bytes.iter().any(|byte| *byte != content(read.chunk, *sector)))
        .map(|(_, sector)| sector)
        .collect();
    match (wrong.first(), wrong.last()) {
        (Some(first), Some(last)) => Verdict::Damaged(*first, last - first + 1),
        _ => Verdict::Good,
    }
}

/// A full medium, and all that scrubbing it takes.
struct Bench {
    media: SimMedia,
    scrubber: Scrubber,
    budget: RefCell<Budget>,
    refresh: RefCell<RefreshList>,
    now: Duration,
}

impl Bench {
    /// Everything is to be read within 1,000 s.
    fn new(bytes_per_s: u64, yields_max: u32) -> Self {
        let geometry = Geometry {
            groups: 1,
            parallel_units: 1,
            chunks: CHUNKS,
            chunk_sectors: SECTORS,
            sector_bytes: SECTOR_BYTES,
            ws_min: 1,
            ws_opt: 8,
            mw_cunits: 0,
            max_open: 0,
        };
        let options = SimOptions { conventional: false, yields_max, ..SimOptions::default() };
        let media = SimMedia::new(geometry, options);
        let scrub = ScrubOptions {
            interval: s(1_000),
            recent: s(0),
            read_sectors_max: READ_SECTORS,
            read_sectors_min: 1,
        };
        let budget = BudgetOptions {
            rate: Rate { bytes_per_s, operations_per_s: 1_000 },
            burst: Cost { bytes: 64 << 10, operations: 1_000 },
            consumers: vec![
                Consumer { name: "cleaning", priority: 1, share_permille: 0 },
                Consumer { name: "scrub", priority: 0, share_permille: 100 },
            ],
        };
        let bench = Self {
            scrubber: Scrubber::new(Scrub::new(&geometry, scrub, None, s(0)).unwrap(), SCRUB),
            budget: RefCell::new(Budget::new(&budget, s(0)).unwrap()),
            refresh: RefCell::new(RefreshList::new(&geometry)),
            media,
            now: s(0),
        };
        for chunk in 0..CHUNKS {
            bench.fill(ChunkId(chunk));
        }
        bench.scrubber.observe(s(0), &block_on(bench.media.report()).unwrap(), &bench.refresh);
        bench
    }

    fn fill(&self, chunk: ChunkId) {
        let mut buf = AlignedBuf::zeroed((SECTORS * SECTOR_BYTES) as usize);
        for (bytes, sector) in buf.chunks_mut(SECTOR_BYTES as usize).zip(0..) {
            bytes.fill(content(chunk, sector));
        }
        block_on(self.media.write(chunk, 0, buf, Durability::Volatile)).0.unwrap();
    }

    fn step(&self) -> Result<Step, MediaError> {
        block_on(self.scrubber.run_one(&self.media, self.now, &self.budget, &self.refresh, verify))
    }

    /// Steps until `done`, moving time on as the steps say.
    fn run_until(&mut self, mut done: impl FnMut(&Self, &Step) -> bool) {
        loop {
            let step = self.step().unwrap();
            if done(self, &step) {
                return;
            }
            if let Step::WaitUntil(at) = step {
                assert!(at > self.now, "a wait that is over");
                self.now = at;
            }
        }
    }

    fn read_everything(&mut self) {
        self.run_until(|bench, step| {
            matches!(step, Step::Idle) || bench.scrubber.progress(bench.now).chunks_read >= u64::from(CHUNKS)
        });
    }
}

#[test]
fn a_good_medium_gives_no_work() {
    let mut bench = Bench::new(1 << 20, 3);
    bench.read_everything();
    assert!(bench.refresh.borrow().is_empty());
    let progress = bench.scrubber.progress(bench.now);
    assert_eq!(progress.fresh_sectors, u64::from(CHUNKS * SECTORS));
    assert!(bench.now <= s(1_000));
    assert_eq!(bench.media.counters().read_bytes, progress.sectors_read * u64::from(SECTOR_BYTES));
}

#[test]
fn unreadable_sectors_are_found_one_by_one() {
    let mut bench = Bench::new(1 << 20, 0);
    let bad = [(1, 0), (1, 63), (2, 9), (2, 10)];
    for (chunk, sector) in bad {
        bench.media.fail_reads_of(ChunkId(chunk), sector);
    }
    bench.read_everything();
    let refresh = bench.refresh.borrow();
    assert_eq!(refresh.len(), 2);
    assert_eq!(refresh.get(ChunkId(1)).unwrap().lost, [0..1, 63..64]);
    assert_eq!(refresh.get(ChunkId(2)).unwrap().lost, [9..11]);
    assert!(refresh.iter().all(|work| work.urgency == Urgency::Lost));
    let progress = bench.scrubber.progress(bench.now);
    assert_eq!(progress.sectors_lost, 4);
    // The rest of those chunks was read all the same.
    assert_eq!(progress.chunks_read, u64::from(CHUNKS));
}

#[test]
fn what_is_silently_wrong_is_the_verifiers_to_find() {
    let mut bench = Bench::new(1 << 20, 0);
    bench.media.corrupt(ChunkId(3), 41, 7);
    bench.read_everything();
    let refresh = bench.refresh.borrow();
    assert_eq!(refresh.iter().map(|work| work.chunk.0).collect::<Vec<_>>(), [3]);
    assert_eq!(refresh.first().unwrap().lost, [41..42]);
}

#[test]
fn what_was_hard_to_read_is_rewritten_soon() {
    let bench = Bench::new(1 << 20, 0);
    let verify = |_: &ScrubRead, _: &[u8]| Verdict::Corrected;
    let step = bench.scrubber.run_one(&bench.media, s(0), &bench.budget, &bench.refresh, verify);
    let Step::Read { outcome: Outcome::Corrected, notice: Some(_), .. } = block_on(step).unwrap() else {
        panic!()
    };
    let refresh = bench.refresh.borrow();
    assert_eq!(refresh.first().unwrap().urgency, Urgency::Soon);
    assert_eq!(refresh.first().unwrap().sectors, 0..READ_SECTORS);
}

#[test]
fn a_chunk_that_is_reset_in_between_is_left_alone() {
    let mut bench = Bench::new(1 << 20, 0);
    let Step::Read { read, .. } = bench.step().unwrap() else { panic!() };
    assert_eq!(read.chunk, ChunkId(0));
    // Once with the host saying so, and once behind its back.
    for chunk in [ChunkId(0), ChunkId(1)] {
        block_on(bench.media.reset(chunk)).unwrap();
    }
    bench.scrubber.reset(ChunkId(0));
    let mut gone = Vec::new();
    bench.run_until(|bench, step| {
        if let Step::Read { read, outcome: Outcome::Gone, .. } = step {
            gone.push(read.chunk);
        }
        if let Step::Read { read, .. } = step {
            assert_ne!(read.chunk, ChunkId(0));
        }
        bench.scrubber.progress(bench.now).chunks_read == 2
    });
    assert_eq!(gone, [ChunkId(1)]);
    assert!(bench.refresh.borrow().is_empty());
    assert_eq!(bench.scrubber.progress(bench.now).written_sectors, u64::from(2 * SECTORS));
    // Written again, they are read again.
    bench.fill(ChunkId(0));
    bench.scrubber.wrote(bench.now, ChunkId(0), SECTORS);
    bench.run_until(|_, step| matches!(step, Step::Read { read, .. } if read.chunk == ChunkId(0)));
}

/// Without lives the loss of the old content would be held against the new.
#[test]
fn a_chunk_that_is_reset_during_its_read_keeps_nothing_of_it() {
    let bench = Bench::new(1 << 20, 8);
    bench.media.fail_reads_of(ChunkId(0), 0);
    let mut read = pin!(bench.scrubber.run_one(&bench.media, s(0), &bench.budget, &bench.refresh, verify));
    let mut context = Context::from_waker(Waker::noop());
    assert!(read.as_mut().poll(&mut context).is_pending());
    block_on(bench.media.reset(ChunkId(0))).unwrap();
    bench.scrubber.reset(ChunkId(0));
    bench.fill(ChunkId(0));
    bench.scrubber.wrote(s(0), ChunkId(0), SECTORS);
    let Step::Read { notice, .. } = block_on(read).unwrap() else { panic!() };
    assert_eq!(notice, None);
    assert!(bench.refresh.borrow().is_empty());
    assert_eq!(bench.scrubber.progress(s(0)).written_sectors, u64::from(CHUNKS * SECTORS));
}

#[test]
fn an_offline_chunk_is_lost_work() {
    let mut bench = Bench::new(1 << 20, 0);
    bench.media.take_offline(ChunkId(0));
    bench.media.take_offline(ChunkId(2));
    // One is found by reading, the other by a report.
    bench.run_until(|_, step| matches!(step, Step::Read { outcome: Outcome::Offline, .. }));
    let report = block_on(bench.media.report()).unwrap();
    bench.scrubber.observe(bench.now, &report, &bench.refresh);
    let refresh = bench.refresh.borrow();
    let lost: Vec<_> = refresh.iter().map(|work| (work.chunk.0, work.lost.clone())).collect();
    assert_eq!(lost, [(0, vec![0..SECTORS]), (2, vec![0..SECTORS])]);
}

#[test]
fn the_budget_holds_and_the_scrub_gets_its_share() {
    // The interval would want 131 bytes a second for 128 KiB; the budget has 200, and cleaning wants them all.
    let mut bench = Bench::new(200, 0);
    let greed = Cost { bytes: 4096, operations: 1 };
    let burst_bytes = 64 << 10;
    let mut cleaned_bytes = 0;
    while bench.scrubber.progress(bench.now).chunks_read < u64::from(CHUNKS) {
        let cleaning = loop {
            match bench.budget.borrow_mut().try_take(bench.now, CLEANING, greed) {
                Ok(()) => cleaned_bytes += greed.bytes,
                Err(Refusal::NotBefore(at)) => break at,
                Err(refusal) => panic!("{refusal}"),
            }
        };
        match bench.step().unwrap() {
            Step::WaitUntil(at) => bench.now = at.min(cleaning),
            Step::Read { .. } => {}
            Step::Idle => panic!("the medium is full"),
        }
        let read_bytes = bench.media.counters().read_bytes;
        assert!(read_bytes + cleaned_bytes <= 200 * (bench.now.as_secs() + 1) + burst_bytes);
    }
    // Its tenth alone takes 6,554 s for the 128 KiB, less what was saved up.
    let least = (128 * 1024 - 6_554 - 4_096) / 20;
    assert!((s(least)..=s(6_554)).contains(&bench.now), "{:?}", bench.now);
}

/// Without the withdrawal, equals of the scrub would leave tokens to one who no longer wants them.
#[test]
fn who_has_nothing_to_read_claims_nothing() {
    let bench = Bench::new(200, 0);
    let equal = |name| Consumer { name, priority: 0, share_permille: 0 };
    let options = BudgetOptions {
        rate: Rate { bytes_per_s: 200, operations_per_s: 1_000 },
        burst: Cost { bytes: 8_192, operations: 1_000 },
        consumers: vec![equal("cleaning"), equal("scrub")],
    };
    let all = Cost { bytes: 8_192, operations: 1 };
    bench.budget.replace(Budget::new(&options, s(0)).unwrap());
    bench.budget.borrow_mut().try_take(s(0), CLEANING, all).unwrap();
    assert!(matches!(bench.step().unwrap(), Step::WaitUntil(_)));
    for chunk in 0..CHUNKS {
        bench.scrubber.reset(ChunkId(chunk));
    }
    assert_eq!(bench.step().unwrap(), Step::Idle);
    let half = Cost { bytes: 4_096, operations: 1 };
    assert_eq!(bench.budget.borrow().next_ready(s(1), CLEANING, half), Some(Duration::from_millis(20_480)));
}

#[test]
fn lost_power_is_an_error_and_nothing_is_held_against_the_data() {
    let mut bench = Bench::new(1 << 20, 0);
    block_on(bench.media.flush()).unwrap();
    let Step::Read { read: first, .. } = bench.step().unwrap() else { panic!() };
    bench.media.power_cut();
    bench.run_until_failed();
    assert!(bench.refresh.borrow().is_empty());
    bench.media.power_on();
    bench.run_until(|_, step| matches!(step, Step::Read { .. }));
    assert_eq!(bench.scrubber.progress(bench.now).sectors_lost, 0);
    assert_eq!(first.first, 0);
}

impl Bench {
    fn run_until_failed(&mut self) {
        loop {
            match self.step() {
                Ok(Step::WaitUntil(at)) => self.now = at,
                Ok(step) => panic!("{step:?} without power"),
                Err(error) => {
                    assert!(matches!(error, MediaError::PowerLost), "{error}");
                    return;
                }
            }
        }
    }
}

#[test]
fn one_buffer_serves_all_reads() {
    let mut bench = Bench::new(1 << 20, 0);
    let addresses = RefCell::new(BTreeSet::new());
    let mut reads = 0;
    while reads < 40 {
        let verify = |_: &ScrubRead, data: &[u8]| {
            addresses.borrow_mut().insert(data.as_ptr() as usize);
            Verdict::Good
        };
        let step = bench.scrubber.run_one(&bench.media, bench.now, &bench.budget, &bench.refresh, verify);
        match block_on(step).unwrap() {
            Step::Read { .. } => reads += 1,
            Step::WaitUntil(at) => bench.now = at,
            Step::Idle => panic!("the medium is full"),
        }
    }
    assert_eq!(addresses.borrow().len(), 1);
}

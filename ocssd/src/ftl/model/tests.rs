//! The model against its invariants, and against a plain reference.

use proptest::prelude::*;
use rand::RngExt;

use super::*;
use crate::ftl::victim::{self, VictimPolicy};

impl Ftl {
    /// Every count and mapping, found again by walking over everything.
    fn check(&mut self) {
        let block_pages = self.options.block_pages;
        let mut valid = vec![0; self.options.blocks() as usize];
        let mut mapped = 0;
        for (page, place) in self.map.mapped() {
            assert_eq!(self.map.page_at(place), Some(page), "a page's place names another page");
            valid[(place / block_pages) as usize] += 1;
            mapped += 1;
        }
        assert_eq!(mapped, self.mapped);
        for (block, count) in valid.iter().enumerate() {
            assert_eq!(self.blocks.valid(block as u32), *count, "valid pages of block {block}");
        }
        let named =
            (0..self.options.blocks() * block_pages).filter_map(|place| self.map.page_at(place)).count();
        assert_eq!(named as u32, mapped, "a place names a page that is elsewhere");
        assert!(self.blocks.free() >= self.options.reserve_blocks, "the reserve was used up");
        let by_index = self.blocks.next_by_index();
        let candidate = |block| self.blocks.candidates().find(|candidate| Some(candidate.block) == block);
        match self.options.victim {
            VictimPolicy::Greedy => {
                let expected = victim::greedy(self.blocks.candidates()).map(|found| found.valid);
                assert_eq!(candidate(by_index).map(|found| found.valid), expected);
            }
            VictimPolicy::Fifo => assert_eq!(candidate(by_index), victim::fifo(self.blocks.candidates())),
            VictimPolicy::CostBenefit | VictimPolicy::Choices(_) => {}
        }
    }
}

fn small(victim: VictimPolicy, collector: CollectorStream, host_streams: u8) -> FtlOptions {
    FtlOptions {
        logical_pages: 160,
        block_pages: 8,
        // 20 blocks of data, up to 9 others.
        over_provisioning: 0.5,
        host_streams,
        collector,
        victim,
        ..FtlOptions::default()
    }
}

fn policies() -> impl Strategy<Value = VictimPolicy> {
    use VictimPolicy::{Choices, CostBenefit, Fifo, Greedy};
    prop_oneof![Just(Greedy), Just(Fifo), Just(CostBenefit), Just(Choices(3))]
}

fn collectors() -> impl Strategy<Value = CollectorStream> {
    use CollectorStream::{Own, PerStream, WithHost};
    prop_oneof![Just(WithHost), Just(Own), Just(PerStream)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever is written and trimmed, the counts hold, and exactly what was written and not trimmed is mapped.
    #[test]
    fn counts_and_maps_hold(
        victim in policies(),
        collector in collectors(),
        streams in 1u8..=3,
        steps in prop::collection::vec((0u32..160, 0u8..5, 0u8..8), 1..1500),
    ) {
        let mut drive = Ftl::new(small(victim, collector, streams)).unwrap();
        let mut written = std::collections::BTreeSet::new();
        let mut host_pages = 0;
        for (index, (page, stream, action)) in steps.into_iter().enumerate() {
            if action == 0 {
                drive.trim(page);
                written.remove(&page);
            } else {
                drive.write(page, StreamId(stream));
                written.insert(page);
                host_pages += 1;
            }
            if index % 97 == 0 {
                drive.check();
            }
        }
        drive.check();
        prop_assert!(drive.map.mapped().map(|(page, _)| page).eq(written.iter().copied()));
        let counters = drive.counters();
        prop_assert_eq!(counters.host_pages, host_pages);
        prop_assert_eq!(drive.wear().histogram.iter().map(|(erases, blocks)| u64::from(erases * blocks)).sum::<u64>(), counters.erases);
        // Every page programmed is in a block that is not yet erased, or went with an erased one.
        let held: u64 = counters.host_pages + counters.collector_pages;
        prop_assert!(held >= counters.erases * 8);
    }
}

#[test]
fn the_same_seed_gives_the_same_drive() {
    let run = |seed| {
        let options = FtlOptions { seed, ..small(VictimPolicy::Choices(2), CollectorStream::Own, 1) };
        let mut drive = Ftl::new(options).unwrap();
        let mut rng = Pcg64Mcg::seed_from_u64(5);
        for _ in 0..5000 {
            drive.write(rng.random_range(0..160), StreamId(0));
        }
        drive.counters()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn overwriting_in_order_moves_nothing() {
    for victim in [VictimPolicy::Greedy, VictimPolicy::Fifo, VictimPolicy::CostBenefit] {
        let mut drive = Ftl::new(small(victim, CollectorStream::Own, 1)).unwrap();
        for _ in 0..10 {
            drive.fill();
        }
        assert_eq!(drive.counters().amplification(), 1.0, "{victim:?}");
        drive.check();
        let wear = drive.wear();
        assert!(wear.max - wear.min <= 1, "free blocks are used in turn: {wear:?}");
    }
}

/// Two writers go round their halves, one three times as fast. Mixed, the slow one's pages keep blocks alive;
/// apart, whole blocks die at once. Fails (nothing is moved when mixed, or something when apart) if streams do not
/// have blocks of their own, or if they always have.
#[test]
fn streams_of_their_own_die_together() {
    let run = |host_streams| {
        let mut drive = Ftl::new(small(VictimPolicy::Greedy, CollectorStream::Own, host_streams)).unwrap();
        for step in 0..8000u32 {
            let lap = step / 4;
            match step % 4 {
                0 => drive.write(lap % 80, StreamId(0)),
                part => drive.write(80 + (lap * 3 + part - 1) % 80, StreamId(1)),
            }
        }
        drive.counters()
    };
    assert!(run(1).amplification() > 1.1, "{:?}", run(1));
    assert_eq!(run(2).collector_pages, 0);
}

/// Two streams of one drive, both overwritten at random, one rarely. The block that a stream's moved pages go to
/// differs by the collector's kind.
#[test]
fn moved_pages_go_where_the_collector_says() {
    for collector in [CollectorStream::WithHost, CollectorStream::Own, CollectorStream::PerStream] {
        let mut drive = Ftl::new(small(VictimPolicy::Greedy, collector, 2)).unwrap();
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        for _ in 0..4000 {
            let (first, stream) = if rng.random_bool(0.9) { (0, 0) } else { (80, 1) };
            drive.write(first + rng.random_range(0..80), StreamId(stream));
        }
        drive.check();
        assert!(drive.counters().collector_pages > 0);
        // A block that holds pages of both halves.
        let mixed = (0..drive.options.blocks()).any(|block| {
            let places = block * 8..(block + 1) * 8;
            let halves: std::collections::BTreeSet<_> =
                places.filter_map(|place| drive.map.page_at(place)).map(|page| page / 80).collect();
            halves.len() > 1
        });
        assert_eq!(mixed, collector == CollectorStream::Own, "{collector:?}");
    }
}

#[test]
fn trimmed_pages_are_not_moved() {
    let run = |trim: bool| {
        let mut drive = Ftl::new(small(VictimPolicy::Greedy, CollectorStream::Own, 1)).unwrap();
        drive.fill();
        if trim {
            (80..160).for_each(|page| drive.trim(page));
            (80..160).for_each(|page| drive.trim(page));
            assert_eq!(drive.counters().trimmed_pages, 80);
            assert_eq!(drive.mapped_pages(), 80);
        }
        let before = drive.counters();
        let mut rng = Pcg64Mcg::seed_from_u64(2);
        for _ in 0..4000 {
            drive.write(rng.random_range(0..80), StreamId(0));
        }
        drive.counters().since(&before).amplification()
    };
    assert!(run(true) < run(false), "{} {}", run(true), run(false));
}

#[test]
#[should_panic(expected = "page 160 is beyond the drive's 160")]
fn pages_beyond_the_drive_are_our_mistake() {
    Ftl::new(small(VictimPolicy::Greedy, CollectorStream::Own, 1)).unwrap().write(160, StreamId(0));
}

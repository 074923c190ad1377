//! Erase blocks: what is in them, which are free, and which is to be collected next.

use std::collections::VecDeque;

use rand::RngExt;
use rand_pcg::Pcg64Mcg;

use crate::ftl::buckets::Buckets;
use crate::ftl::victim::{self, Candidate, VictimPolicy};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Open,
    Closed,
    /// Being collected.
    Victim,
}

#[derive(Debug, Clone)]
struct Block {
    state: State,
    /// The host stream whose data it holds.
    stream: u8,
    valid: u32,
    erases: u32,
    closed_at: u64,
}

/// All blocks of the drive.
///
/// Invariant: the index holds exactly the closed blocks, each under its current key.
#[derive(Debug, Clone)]
pub(crate) struct Blocks {
    block_pages: u32,
    policy: VictimPolicy,
    blocks: Vec<Block>,
    /// Used first in, first out, which spreads erases about evenly.
    free: VecDeque<u32>,
    closed: Buckets,
}

impl Blocks {
    pub(crate) fn new(blocks: u32, block_pages: u32, policy: VictimPolicy) -> Self {
        let block = Block { state: State::Free, stream: 0, valid: 0, erases: 0, closed_at: 0 };
        Self {
            block_pages,
            policy,
            blocks: vec![block; blocks as usize],
            free: (0..blocks).collect(),
            closed: Buckets::new(blocks, block_pages),
        }
    }

    pub(crate) fn free(&self) -> u32 {
        self.free.len() as u32
    }

    /// Takes a free block to write to.
    pub(crate) fn open(&mut self, stream: u8) -> u32 {
        let block = self.free.pop_front().expect("the reserve keeps blocks free");
        let entry = &mut self.blocks[block as usize];
        debug_assert_eq!((entry.state, entry.valid), (State::Free, 0));
        entry.state = State::Open;
        entry.stream = stream;
        block
    }

    /// The block's last page was programmed, at `now`.
    pub(crate) fn close(&mut self, block: u32, now: u64) {
        let entry = &mut self.blocks[block as usize];
        debug_assert_eq!(entry.state, State::Open);
        entry.state = State::Closed;
        entry.closed_at = now;
        let valid = entry.valid;
        self.closed.insert(block, self.key(valid));
    }

    /// Greedy keeps blocks by valid pages. The others need the order of closing, or none.
    fn key(&self, valid: u32) -> u32 {
        if self.policy == VictimPolicy::Greedy { valid } else { 0 }
    }

    pub(crate) fn page_programmed(&mut self, block: u32) {
        self.blocks[block as usize].valid += 1;
    }

    pub(crate) fn page_died(&mut self, block: u32) {
        let entry = &mut self.blocks[block as usize];
        entry.valid -= 1;
        if entry.state == State::Closed && self.policy == VictimPolicy::Greedy {
            let valid = entry.valid;
            self.closed.remove(block);
            self.closed.insert(block, valid);
        }
    }

    /// Chooses the block to collect at `now` and takes it out of the closed ones.
    pub(crate) fn choose_victim(&mut self, now: u64, rng: &mut Pcg64Mcg) -> u32 {
        let found = match self.policy {
            VictimPolicy::Greedy | VictimPolicy::Fifo => self.closed.first(),
            VictimPolicy::CostBenefit => {
                victim::cost_benefit(self.candidates(), now, self.block_pages).map(|found| found.block)
            }
            VictimPolicy::Choices(count) => self.drawn(count, rng).map(|found| found.block),
        };
        let block = found.expect("a drive that needs room has closed blocks");
        self.closed.remove(block);
        self.blocks[block as usize].state = State::Victim;
        block
    }

    fn drawn(&self, count: u32, rng: &mut Pcg64Mcg) -> Option<Candidate> {
        // All but a few blocks are closed, so drawing again is cheaper than keeping a list of those that are.
        let blocks = self.blocks.len() as u32;
        let draws = (0..count).map(|_| {
            loop {
                if let Some(candidate) = self.candidate(rng.random_range(0..blocks)) {
                    break candidate;
                }
            }
        });
        victim::greedy(draws)
    }

    fn candidate(&self, block: u32) -> Option<Candidate> {
        let entry = &self.blocks[block as usize];
        let candidate = Candidate { block, valid: entry.valid, closed_at: entry.closed_at };
        (entry.state == State::Closed).then_some(candidate)
    }

    /// The closed blocks.
    pub(crate) fn candidates(&self) -> impl Iterator<Item = Candidate> + '_ {
        (0..self.blocks.len() as u32).filter_map(|block| self.candidate(block))
    }

    pub(crate) fn erase(&mut self, block: u32) {
        let entry = &mut self.blocks[block as usize];
        assert_eq!(
            (entry.state, entry.valid),
            (State::Victim, 0),
            "only a victim without valid pages is erased"
        );
        entry.state = State::Free;
        entry.erases += 1;
        self.free.push_back(block);
    }

    pub(crate) fn valid(&self, block: u32) -> u32 {
        self.blocks[block as usize].valid
    }

    pub(crate) fn stream(&self, block: u32) -> u8 {
        self.blocks[block as usize].stream
    }

    pub(crate) fn erases(&self) -> Vec<u32> {
        self.blocks.iter().map(|block| block.erases).collect()
    }

    /// The block that the index would give next: for the tests, which hold it against the pure functions.
    #[cfg(test)]
    pub(crate) fn next_by_index(&mut self) -> Option<u32> {
        self.closed.first()
    }
}

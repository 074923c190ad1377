//! Which block is collected next: pure functions over what is known of the closed blocks.
//!
//! The model serves [`VictimPolicy::Greedy`] and [`VictimPolicy::Fifo`] from an ordered index instead of a walk
//! over all blocks; its tests hold the index against the functions here.

/// How the victim is chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum VictimPolicy {
    /// The block with the fewest valid pages.
    #[default]
    Greedy,
    /// The block that was closed first.
    Fifo,
    /// The block with the greatest space gained × age for the work of gaining it (Rosenblum and Ousterhout, "The
    /// Design and Implementation of a Log-Structured File System", 1992, section 3.5; for flash Kawaguchi et al.,
    /// "A Flash-Memory Based File System", 1995).
    CostBenefit,
    /// The one with the fewest valid pages among so many, drawn at random (*d-choices*: Van Houdt, "A mean field
    /// model for a class of garbage collection algorithms in flash-based solid state drives", 2013).
    Choices(u32),
}

/// A closed block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub block: u32,
    /// Its valid pages.
    pub valid: u32,
    /// When its last page was programmed, in pages programmed since the drive was made.
    pub closed_at: u64,
}

/// The candidate with the fewest valid pages; of equal ones the first.
pub fn greedy(candidates: impl IntoIterator<Item = Candidate>) -> Option<Candidate> {
    candidates.into_iter().min_by_key(|candidate| candidate.valid)
}

/// The candidate that was closed first.
pub fn fifo(candidates: impl IntoIterator<Item = Candidate>) -> Option<Candidate> {
    candidates.into_iter().min_by_key(|candidate| candidate.closed_at)
}

/// The candidate with the best ratio of benefit to cost, at a moment and for blocks of so many pages; of equal ones
/// the one closed first.
pub fn cost_benefit(
    candidates: impl IntoIterator<Item = Candidate>,
    now: u64,
    block_pages: u32,
) -> Option<Candidate> {
    let score = |candidate: &Candidate| benefit_over_cost(candidate, now, block_pages);
    candidates
        .into_iter()
        .max_by(|left, right| score(left).total_cmp(&score(right)).then(right.closed_at.cmp(&left.closed_at)))
}

/// `(1 − u) × age / 2u`, where `u` is the share of valid pages: they are read once and written once. Infinite
/// where there is nothing to move.
pub fn benefit_over_cost(candidate: &Candidate, now: u64, block_pages: u32) -> f64 {
    if candidate.valid == 0 {
        return f64::INFINITY;
    }
    let valid_share = f64::from(candidate.valid) / f64::from(block_pages);
    // The block that was closed just now is one page old, lest its age of zero make it worth nothing for ever
    // on an idle drive.
    let age = now.saturating_sub(candidate.closed_at) as f64 + 1.0;
    (1.0 - valid_share) * age / (2.0 * valid_share)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates() -> Vec<Candidate> {
        [(0, 50, 900), (1, 90, 100), (2, 50, 500), (3, 100, 0)]
            .map(|(block, valid, closed_at)| Candidate { block, valid, closed_at })
            .to_vec()
    }

    #[test]
    fn each_policy_by_its_own_measure() {
        assert_eq!(greedy(candidates()).map(|found| found.block), Some(0));
        assert_eq!(fifo(candidates()).map(|found| found.block), Some(3));
        // Half full and 500 old against nine tenths full and 900 old: 250 against 50.
        assert_eq!(cost_benefit(candidates(), 1000, 100).map(|found| found.block), Some(2));
        assert_eq!(greedy([]), None);
        assert_eq!(fifo([]), None);
        assert_eq!(cost_benefit([], 0, 100), None);
    }

    #[test]
    fn age_outweighs_a_few_dead_pages() {
        let young = Candidate { block: 0, valid: 70, closed_at: 990 };
        let old = Candidate { block: 1, valid: 90, closed_at: 0 };
        assert_eq!(cost_benefit([young, old], 1000, 100), Some(old));
        assert_eq!(greedy([young, old]), Some(young));
    }

    #[test]
    fn full_blocks_are_worth_nothing_and_empty_ones_everything() {
        let full = Candidate { block: 0, valid: 100, closed_at: 0 };
        assert_eq!(benefit_over_cost(&full, u64::MAX, 100), 0.0);
        let empty = Candidate { valid: 0, closed_at: 1000, ..full };
        assert_eq!(cost_benefit([full, empty], 1000, 100), Some(empty));
    }
}

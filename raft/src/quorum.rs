//! What a quorum has decided: pure functions over what each voter has reported.
//!
//! A majority decides; in a joint configuration a majority of each of the two sets does. The same function
//! answers "up to which index is the log on a quorum", "since when has a quorum been in contact" and "which
//! read round has a quorum confirmed": each is the greatest value that a quorum has reached.

use std::collections::BTreeSet;

use crate::{membership::Membership, types::PeerId};

/// Outcome of an election so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VoteResult {
    /// Neither side has a quorum.
    Pending,
    /// So many refused that no quorum can grant.
    Lost,
    /// A quorum granted.
    Won,
}

/// How many of `voters` are a majority.
#[must_use]
pub fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// The greatest value that a majority of `voters` has reached; `None` if there are no voters.
///
/// Quadratic, without allocation: groups have a handful of voters, and this runs on every acknowledgement.
#[must_use]
pub fn reached_by_majority<T: Ord + Copy>(
    voters: &BTreeSet<PeerId>,
    value: impl Fn(PeerId) -> T,
) -> Option<T> {
    let enough = majority(voters.len());
    let mut best = None;
    for candidate in voters.iter().map(|voter| value(*voter)) {
        if best.is_some_and(|best| best >= candidate) {
            continue;
        }
        if voters.iter().filter(|voter| value(**voter) >= candidate).count() >= enough {
            best = Some(candidate);
        }
    }
    best
}

/// The greatest value that a quorum of `membership` has reached: the smaller of the two majorities' values in a
/// joint configuration. `None` if there are no voters at all.
#[must_use]
pub fn reached<T: Ord + Copy>(membership: &Membership, value: impl Fn(PeerId) -> T) -> Option<T> {
    let incoming = reached_by_majority(&membership.voters, &value);
    if membership.voters_outgoing.is_empty() {
        return incoming;
    }
    let outgoing = reached_by_majority(&membership.voters_outgoing, &value);
    Some(incoming?.min(outgoing?))
}

/// Outcome among one set of voters; `vote` is `None` for those who have not answered. No voters: lost.
#[must_use]
pub fn vote_of_majority(voters: &BTreeSet<PeerId>, vote: impl Fn(PeerId) -> Option<bool>) -> VoteResult {
    let enough = majority(voters.len());
    let granted = voters.iter().filter(|voter| vote(**voter) == Some(true)).count();
    let refused = voters.iter().filter(|voter| vote(**voter) == Some(false)).count();
    if granted >= enough {
        VoteResult::Won
    } else if voters.len() - refused < enough {
        VoteResult::Lost
    } else {
        VoteResult::Pending
    }
}

/// Outcome of an election in `membership`: won if every set is won, lost as soon as one is lost.
#[must_use]
pub fn vote_result(membership: &Membership, vote: impl Fn(PeerId) -> Option<bool>) -> VoteResult {
    let incoming = vote_of_majority(&membership.voters, &vote);
    if membership.voters_outgoing.is_empty() {
        return incoming;
    }
    match (incoming, vote_of_majority(&membership.voters_outgoing, &vote)) {
        (VoteResult::Lost, _) | (_, VoteResult::Lost) => VoteResult::Lost,
        (VoteResult::Won, VoteResult::Won) => VoteResult::Won,
        _ => VoteResult::Pending,
    }
}

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

/// The greatest value that a quorum of `membership` has reached: the smaller of the two majorities' values in
/// a joint configuration. `None` if there are no voters at all.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn membership(voters: &[u64], outgoing: &[u64]) -> Membership {
        Membership {
            voters: voters.iter().copied().map(PeerId).collect(),
            voters_outgoing: outgoing.iter().copied().map(PeerId).collect(),
            ..Membership::default()
        }
    }

    /// Voters, outgoing voters, what each of the peers 1, 2, .. has reached, what a quorum has.
    type Reached = (&'static [u64], &'static [u64], &'static [u64], Option<u64>);

    #[test]
    fn committed_index() {
        let table: &[Reached] = &[
            (&[], &[], &[], None),
            (&[1], &[], &[7], Some(7)),
            (&[1, 2], &[], &[7, 3], Some(3)),
            (&[1, 2], &[], &[7, 7], Some(7)),
            (&[1, 2, 3], &[], &[0, 0, 0], Some(0)),
            (&[1, 2, 3], &[], &[9, 0, 0], Some(0)),
            (&[1, 2, 3], &[], &[9, 4, 0], Some(4)),
            (&[1, 2, 3], &[], &[4, 9, 6], Some(6)),
            (&[1, 2, 3], &[], &[0, 5, 5], Some(5)),
            (&[1, 2, 3, 4], &[], &[9, 8, 7, 6], Some(7)),
            (&[1, 2, 3, 4], &[], &[9, 9, 0, 0], Some(0)),
            (&[1, 2, 3, 4, 5], &[], &[1, 2, 3, 4, 5], Some(3)),
            (&[1, 2, 3, 4, 5], &[], &[5, 0, 5, 0, 5], Some(5)),
            // Joint: the lower of the two.
            (&[1, 2, 3], &[3, 4, 5], &[9, 9, 9, 0, 0], Some(0)),
            (&[1, 2, 3], &[3, 4, 5], &[9, 9, 5, 5, 0], Some(5)),
            (&[1, 2, 3], &[3, 4, 5], &[0, 0, 9, 9, 9], Some(0)),
            (&[1, 2, 3], &[1, 2, 3], &[3, 2, 1], Some(2)),
            (&[1], &[2], &[8, 3], Some(3)),
            (&[1, 2, 3], &[4], &[8, 8, 8, 1], Some(1)),
            (&[], &[1], &[4], None),
        ];
        for (voters, outgoing, values, expected) in table {
            let value = |peer: PeerId| values[peer.0 as usize - 1];
            let found = reached(&membership(voters, outgoing), value);
            assert_eq!(found, *expected, "{voters:?} {outgoing:?} {values:?}");
        }
    }

    /// Voters, outgoing voters, answers of the peers 1, 2, .. (`y`, `n`, or `.` for none), outcome.
    type Election = (&'static [u64], &'static [u64], &'static str, VoteResult);

    #[test]
    fn votes() {
        use VoteResult::{Lost, Pending, Won};
        let table: &[Election] = &[
            (&[], &[], "", Lost),
            (&[1], &[], ".", Pending),
            (&[1], &[], "y", Won),
            (&[1], &[], "n", Lost),
            (&[1, 2], &[], "y.", Pending),
            (&[1, 2], &[], "yy", Won),
            (&[1, 2], &[], "yn", Lost),
            (&[1, 2], &[], ".n", Lost),
            (&[1, 2, 3], &[], "y..", Pending),
            (&[1, 2, 3], &[], "y.y", Won),
            (&[1, 2, 3], &[], "yn.", Pending),
            (&[1, 2, 3], &[], "ynn", Lost),
            (&[1, 2, 3], &[], ".nn", Lost),
            (&[1, 2, 3, 4], &[], "yy..", Pending),
            (&[1, 2, 3, 4], &[], "yynn", Lost),
            (&[1, 2, 3, 4], &[], "yyny", Won),
            (&[1, 2, 3, 4, 5], &[], "yynn.", Pending),
            (&[1, 2, 3, 4, 5], &[], "yynny", Won),
            // Joint: both sets have to be won, either can be lost.
            (&[1, 2, 3], &[3, 4, 5], "yyy..", Pending),
            (&[1, 2, 3], &[3, 4, 5], "yyyy.", Won),
            (&[1, 2, 3], &[3, 4, 5], "yy.yy", Won),
            (&[1, 2, 3], &[3, 4, 5], "yynn.", Lost),
            (&[1, 2, 3], &[3, 4, 5], "...nn", Lost),
            (&[1, 2, 3], &[3, 4, 5], "nn...", Lost),
            (&[1, 2, 3], &[4], "yyy.", Pending),
            (&[1, 2, 3], &[4], "yyyn", Lost),
        ];
        for (voters, outgoing, answers, expected) in table {
            let vote = |peer: PeerId| match answers.as_bytes()[peer.0 as usize - 1] {
                b'y' => Some(true),
                b'n' => Some(false),
                _ => None,
            };
            let found = vote_result(&membership(voters, outgoing), vote);
            assert_eq!(found, *expected, "{voters:?} {outgoing:?} {answers}");
        }
    }

    /// Against the definition: some majority has reached the value, and none a greater one.
    #[test]
    fn reached_agrees_with_its_definition() {
        for size in 1..=5u64 {
            let voters: BTreeSet<PeerId> = (1..=size).map(PeerId).collect();
            for mut code in 0..4u64.pow(size as u32) {
                let mut values = Vec::new();
                for _ in 0..size {
                    values.push(code % 4);
                    code /= 4;
                }
                let mut sorted = values.clone();
                sorted.sort_unstable_by(|a, b| b.cmp(a));
                let expected = sorted[majority(values.len()) - 1];
                let found = reached_by_majority(&voters, |peer| values[peer.0 as usize - 1]);
                assert_eq!(found, Some(expected), "{values:?}");
            }
        }
    }
}

//! Who takes part in a group, and in which role.
//!
//! Invariants of a valid membership: at least one voter that holds data; ids are valid; a learner is not a
//! voter; witnesses are voters (of either set) and less than half of each set they are in.
//!
//! While `voters_outgoing` is not empty the configuration is joint (Ongaro's dissertation, section 4.3):
//! every decision needs a majority of both sets.

use std::collections::BTreeSet;

use rkyv::{Archive, Deserialize, Serialize};

use crate::types::PeerId;

/// The members of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Membership {
    /// Decide elections and commits.
    pub voters: BTreeSet<PeerId>,
    /// The voters of the configuration being left; empty unless a change is in progress.
    pub voters_outgoing: BTreeSet<PeerId>,
    /// Receive the log, decide nothing.
    pub learners: BTreeSet<PeerId>,
    /// Those voters that hold no data and never lead.
    pub witnesses: BTreeSet<PeerId>,
}

/// Why a [`Membership`] cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MembershipError {
    /// Nobody could decide anything.
    #[error("the membership has no voter that holds data")]
    NoVoters,
    /// 0 and the greatest number are reserved.
    #[error("{0} is not a valid peer id")]
    InvalidPeer(PeerId),
    /// A replica either decides or only listens.
    #[error("peer {0} is both a learner and a voter")]
    LearnerVotes(PeerId),
    /// A witness is a kind of voter.
    #[error("peer {0} is a witness but not a voter")]
    WitnessWithoutVote(PeerId),
    /// Data could be lost with the replicas that hold it while a majority is alive.
    #[error("{witnesses} of {voters} voters are witnesses; at most a majority minus one may be")]
    TooManyWitnesses {
        /// Witnesses among the voters.
        witnesses: usize,
        /// All voters of that set.
        voters: usize,
    },
}

impl Membership {
    /// A membership of voters only.
    #[must_use]
    pub fn of_voters(voters: impl IntoIterator<Item = PeerId>) -> Membership {
        Membership { voters: voters.into_iter().collect(), ..Membership::default() }
    }

    /// Checks the invariants of the module's header.
    ///
    /// # Errors
    /// The first rule found broken.
    pub fn validate(&self) -> Result<(), MembershipError> {
        if let Some(peer) = self.members().find(|peer| !peer.is_valid()) {
            return Err(MembershipError::InvalidPeer(peer));
        }
        if let Some(peer) = self.learners.iter().find(|peer| self.is_voter(**peer)) {
            return Err(MembershipError::LearnerVotes(*peer));
        }
        if let Some(peer) = self.witnesses.iter().find(|peer| !self.is_voter(**peer)) {
            return Err(MembershipError::WitnessWithoutVote(*peer));
        }
        if self.voters.is_subset(&self.witnesses) {
            return Err(MembershipError::NoVoters);
        }
        for set in [&self.voters, &self.voters_outgoing] {
            let witnesses = set.intersection(&self.witnesses).count();
            if witnesses > set.len() / 2 {
                return Err(MembershipError::TooManyWitnesses { witnesses, voters: set.len() });
            }
        }
        Ok(())
    }

    /// Whether `peer` has a say, in either set of a joint configuration.
    #[must_use]
    pub fn is_voter(&self, peer: PeerId) -> bool {
        self.voters.contains(&peer) || self.voters_outgoing.contains(&peer)
    }

    /// Whether `peer` may lead: a voter that holds data.
    #[must_use]
    pub fn can_lead(&self, peer: PeerId) -> bool {
        self.is_voter(peer) && !self.witnesses.contains(&peer)
    }

    /// Whether `peer` alone is every quorum.
    #[must_use]
    pub fn is_sole_voter(&self, peer: PeerId) -> bool {
        let mut voters = self.all_voters();
        voters.next() == Some(peer) && voters.next().is_none()
    }

    /// Voters of both sets, ascending, each once.
    pub fn all_voters(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.voters.union(&self.voters_outgoing).copied()
    }

    /// Everyone the leader sends entries to and itself: voters of both sets, then learners.
    pub fn members(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.all_voters().chain(self.learners.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[u64]) -> BTreeSet<PeerId> {
        ids.iter().copied().map(PeerId).collect()
    }

    #[test]
    fn rules_are_checked() {
        type Ids = &'static [u64];
        type Row = (Ids, Ids, Ids, Ids, Result<(), MembershipError>);
        let table: &[Row] = &[
            (&[1], &[], &[], &[], Ok(())),
            (&[1, 2, 3], &[], &[4], &[3], Ok(())),
            (&[1, 2, 3], &[3, 4, 5], &[6], &[], Ok(())),
            (&[], &[], &[], &[], Err(MembershipError::NoVoters)),
            (&[1], &[], &[], &[1], Err(MembershipError::NoVoters)),
            (&[0, 1], &[], &[], &[], Err(MembershipError::InvalidPeer(PeerId(0)))),
            (&[1], &[], &[u64::MAX], &[], Err(MembershipError::InvalidPeer(PeerId::SPENT))),
            (&[1, 2], &[], &[2], &[], Err(MembershipError::LearnerVotes(PeerId(2)))),
            (&[1, 2], &[3], &[3], &[], Err(MembershipError::LearnerVotes(PeerId(3)))),
            (&[1, 2], &[], &[3], &[3], Err(MembershipError::WitnessWithoutVote(PeerId(3)))),
            (
                &[1, 2, 3],
                &[],
                &[],
                &[2, 3],
                Err(MembershipError::TooManyWitnesses { witnesses: 2, voters: 3 }),
            ),
            (
                &[1, 2, 3],
                &[2, 3, 4],
                &[],
                &[3, 4],
                Err(MembershipError::TooManyWitnesses { witnesses: 2, voters: 3 }),
            ),
        ];
        for (voters, outgoing, learners, witnesses, expected) in table {
            let membership = Membership {
                voters: ids(voters),
                voters_outgoing: ids(outgoing),
                learners: ids(learners),
                witnesses: ids(witnesses),
            };
            assert_eq!(membership.validate(), *expected, "{membership:?}");
        }
    }

    #[test]
    fn members_are_listed_once() {
        let membership = Membership {
            voters: ids(&[1, 2, 3]),
            voters_outgoing: ids(&[2, 3, 4]),
            learners: ids(&[9]),
            witnesses: ids(&[3]),
        };
        assert_eq!(membership.members().map(|peer| peer.0).collect::<Vec<_>>(), [1, 2, 3, 4, 9]);
        assert!(membership.is_voter(PeerId(4)) && membership.can_lead(PeerId(4)));
        assert!(membership.is_voter(PeerId(3)) && !membership.can_lead(PeerId(3)));
        assert!(!membership.is_voter(PeerId(9)));
        assert!(!membership.is_sole_voter(PeerId(1)));
        assert!(Membership::of_voters([PeerId(7)]).is_sole_voter(PeerId(7)));
        assert!(!Membership::of_voters([PeerId(7)]).is_sole_voter(PeerId(1)));
    }
}

//! What only a leader keeps and does: contact with a quorum, the lease, reads, and handing over.
//!
//! A leader that has asked a peer to take over ([`Body::TimeoutNow`]) has allowed votes against its own
//! lease, and that message may arrive at any later time: it claims no lease for the rest of its term, even if
//! the transfer is given up.
//!
//! A suspect peer (see [`Restored::suspect`](crate::Restored::suspect)) counts as heard, so that the leader
//! stays to repair it, but neither for the lease nor for reads. Its answers would be sound as long as its
//! host has spent the vote of every term it may have voted in; but its storage has already broken one
//! promise, and all it costs not to lean on another is that reads wait until it is repaired.

use std::collections::BTreeMap;

use crate::{
    message::{Body, MessageError, Stamp},
    node::{PeerStatus, RaftNode, State},
    progress::Progress,
    quorum,
    read::PendingReads,
    types::{Index, PeerId, Time},
};

/// The state of a leader; ends with its leadership.
#[derive(Debug)]
pub(crate) struct Leadership {
    /// Index of the leader's first own entry. Only entries from here on are committed by counting (section
    /// 5.4.2 of the Raft paper).
    term_start: Index,
    pub(crate) peers: BTreeMap<PeerId, Progress>,
    /// Last heartbeat round; 0 before the first.
    pub(crate) round: u64,
    pub(crate) heartbeat_at: Time,
    /// A round is to begin when the effects are taken.
    pub(crate) heartbeat_due: bool,
    reads: PendingReads,
    transfer: Option<Transfer>,
    lease_forfeited: bool,
}

#[derive(Clone, Copy, Debug)]
struct Transfer {
    to: PeerId,
    give_up_at: Time,
    /// The peer was told to campaign.
    asked: bool,
}

/// Why leadership cannot be transferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// Ask the leader.
    #[error("this replica does not lead the group")]
    NotLeader {
        /// The leader, if known.
        leader: Option<PeerId>,
    },
    /// No other replica may lead.
    #[error("the group has no other replica that may lead now")]
    NoTarget,
    /// The peer is not another voter with data whose storage is sound.
    #[error("peer {0} may not lead the group now")]
    Ineligible(PeerId),
    /// That peer was already told to campaign.
    #[error("leadership is already being transferred to peer {0}")]
    InProgress(PeerId),
}

impl Leadership {
    /// A first heartbeat round goes out at once, the next at `heartbeat_at`.
    pub(crate) fn new(
        term_start: Index,
        peers: BTreeMap<PeerId, Progress>,
        heartbeat_at: Time,
    ) -> Leadership {
        Leadership {
            term_start,
            peers,
            round: 0,
            heartbeat_at,
            heartbeat_due: true,
            reads: PendingReads::default(),
            transfer: None,
            lease_forfeited: false,
        }
    }

    pub(crate) fn term_start(&self) -> Index {
        self.term_start
    }

    pub(crate) fn transfer_target(&self) -> Option<PeerId> {
        self.transfer.map(|transfer| transfer.to)
    }

    pub(crate) fn peer_statuses(&self) -> Vec<PeerStatus> {
        self.peers
            .iter()
            .map(|(id, progress)| PeerStatus {
                id: *id,
                state: progress.state(),
                matched: progress.matched(),
                next: progress.next(),
                inflight_entries: progress.inflight_entries(),
                inflight_bytes: progress.inflight_bytes(),
                suspect: progress.suspect(),
                heard_at: progress.heard_at(),
            })
            .collect()
    }

    /// The peer whose answer gives back `stamp`; `None` if it is not a member.
    pub(crate) fn heard(
        &mut self,
        now: Time,
        from: PeerId,
        stamp: Stamp,
        suspect: bool,
    ) -> Result<Option<&mut Progress>, MessageError> {
        if stamp.sent_at > now || stamp.round > self.round {
            return Err(MessageError::Stamp);
        }
        let Some(progress) = self.peers.get_mut(&from) else { return Ok(None) };
        progress.heard(now, stamp, suspect);
        Ok(Some(progress))
    }

    /// Gives up all waiting reads.
    pub(crate) fn fail_reads(&mut self) -> impl Iterator<Item = u64> + '_ {
        self.reads.fail()
    }
}

impl RaftNode {
    /// Since when a quorum has been heard from, counting this replica as always.
    fn quorum_heard_at(&self, leadership: &Leadership) -> Time {
        quorum::reached(&self.membership, |peer| {
            if peer == self.config.id {
                Time::NEVER
            } else {
                leadership.peers.get(&peer).map_or(Time(0), Progress::heard_at)
            }
        })
        .unwrap_or(Time(0))
    }

    pub(crate) fn leader_deadline(&self, leadership: &Leadership) -> Time {
        let heartbeat = if leadership.peers.is_empty() { Time::NEVER } else { leadership.heartbeat_at };
        let give_up = leadership.transfer.map_or(Time::NEVER, |transfer| transfer.give_up_at);
        let step_down = self.quorum_heard_at(leadership).plus(self.timing.election);
        heartbeat.min(give_up).min(step_down)
    }

    pub(crate) fn tick_leader(&mut self) {
        let State::Leader(leadership) = &self.state else { return };
        if self.quorum_heard_at(leadership).plus(self.timing.election) <= self.now {
            // Nobody may be listening: let those who can reach a quorum elect another.
            self.become_follower(self.term, None);
            return;
        }
        let (now, heartbeat) = (self.now, self.timing.heartbeat);
        let State::Leader(leadership) = &mut self.state else { return };
        if leadership.transfer.is_some_and(|transfer| transfer.give_up_at <= now) {
            leadership.transfer = None;
        }
        if leadership.heartbeat_at <= now {
            leadership.heartbeat_due = true;
            leadership.heartbeat_at = now.plus(heartbeat);
        }
    }

    pub(crate) fn lease_holds(&self) -> bool {
        self.lease_holds_at(self.now)
    }

    pub(crate) fn lease_holds_at(&self, now: Time) -> bool {
        let State::Leader(leadership) = &self.state else { return false };
        if leadership.lease_forfeited || leadership.transfer.is_some() || self.commit < leadership.term_start
        {
            return false;
        }
        let confirmed_at = quorum::reached(&self.membership, |peer| {
            if peer == self.config.id {
                return Some(Time::NEVER);
            }
            let progress = leadership.peers.get(&peer)?;
            if progress.suspect() { None } else { progress.confirmed_at() }
        });
        confirmed_at.flatten().is_some_and(|at| at.plus(self.timing.lease) > now)
    }

    /// A read arrived: it is answered from `Effects::reads`, now or later.
    pub(crate) fn begin_read(&mut self, context: u64) {
        let commit = self.commit;
        let State::Leader(leadership) = &mut self.state else { return };
        let index = commit.max(leadership.term_start);
        leadership.reads.push(context, index, leadership.round + 1);
        self.release_reads();
        if let State::Leader(leadership) = &mut self.state
            && !leadership.reads.is_empty()
        {
            leadership.heartbeat_due = true;
        }
    }

    /// Lets go of the reads that need not wait any longer. A valid lease proves leadership up to now, and so
    /// for every read that has arrived.
    pub(crate) fn release_reads(&mut self) {
        let State::Leader(leadership) = &self.state else { return };
        if leadership.reads.is_empty() {
            return;
        }
        let confirmed = if self.lease_holds() {
            u64::MAX
        } else {
            quorum::reached(&self.membership, |peer| {
                if peer == self.config.id {
                    return u64::MAX;
                }
                let progress = leadership.peers.get(&peer).filter(|progress| !progress.suspect());
                progress.map_or(0, Progress::confirmed_round)
            })
            .unwrap_or(0)
        };
        let State::Leader(leadership) = &mut self.state else { return };
        leadership.reads.release(confirmed, self.commit, &mut self.outbox.open().reads);
    }

    /// Hands leadership to `to`, or to the voter whose log is most complete: this replica accepts no
    /// proposals, waits until the peer has all entries and tells it to campaign. Given up after one election
    /// timeout; watch [`Effects::role`](crate::Effects::role).
    ///
    /// # Errors
    /// If this replica does not lead, or there is nobody to hand over to.
    pub fn transfer_leader(&mut self, now: Time, to: Option<PeerId>) -> Result<(), TransferError> {
        self.now = self.now.max(now);
        let give_up_at = self.now.plus(self.timing.election);
        let State::Leader(leadership) = &mut self.state else {
            return Err(TransferError::NotLeader { leader: self.leader });
        };
        let eligible = |id: PeerId, progress: &Progress| self.membership.can_lead(id) && !progress.suspect();
        let to = match to {
            Some(to) => match leadership.peers.get(&to) {
                Some(progress) if eligible(to, progress) => to,
                _ => return Err(TransferError::Ineligible(to)),
            },
            None => {
                // The most complete log; among equals the one heard from last, then the lowest id.
                let best =
                    leadership.peers.iter().filter(|(id, progress)| eligible(**id, progress)).max_by_key(
                        |(id, progress)| (progress.matched(), progress.heard_at(), std::cmp::Reverse(**id)),
                    );
                *best.ok_or(TransferError::NoTarget)?.0
            }
        };
        match leadership.transfer {
            Some(transfer) if transfer.asked && transfer.to != to => {
                return Err(TransferError::InProgress(transfer.to));
            }
            Some(transfer) if transfer.to == to => return Ok(()),
            _ => {}
        }
        leadership.transfer = Some(Transfer { to, give_up_at, asked: false });
        self.continue_transfer(to, false);
        Ok(())
    }

    /// Tells `peer` to campaign if leadership is to go to it and it has every entry; `again` repeats it.
    pub(crate) fn continue_transfer(&mut self, peer: PeerId, again: bool) {
        let last = self.log.last();
        let State::Leader(leadership) = &mut self.state else { return };
        let Some(transfer) = &mut leadership.transfer else { return };
        let complete = leadership.peers.get(&peer).is_some_and(|progress| progress.matched() == last);
        if transfer.to == peer && complete && (again || !transfer.asked) {
            transfer.asked = true;
            leadership.lease_forfeited = true;
            self.send(peer, Body::TimeoutNow);
        }
    }
}

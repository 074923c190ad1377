//! What replicas say to each other, and which of it has a shape that can be believed.
//!
//! [`Message::term`] is always the sender's own term. Payloads do not travel in here: the host attaches them
//! behind an [`Append`](Body::Append) that has entries.

use rkyv::{Archive, Deserialize, Serialize};

use crate::types::{EntryMeta, Index, Term, Time};

/// No term and no index of a real group comes near this: counting on from it cannot overflow.
const NUMBER_MAX: u64 = 1 << 62;

/// One message between two replicas of a group.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Message {
    /// The sender's term.
    pub term: Term,
    /// What it says.
    pub body: Body,
}

/// When, on the leader's clock, a message was sent and in which of its rounds; the follower gives it back.
///
/// Time proves a lease (it is not later than the send), the round proves leadership for reads without any
/// clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Stamp {
    /// Not later than the moment of sending, on the leader's clock.
    pub sent_at: Time,
    /// Counts the leader's heartbeat rounds within its term.
    pub round: u64,
}

/// What a [`Message`] says.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Body {
    /// "Would you vote for me in the next term?" Changes nothing at either side.
    PreVote {
        /// The term the sender would campaign in: its own plus one.
        campaign: Term,
        /// The sender's last entry.
        last_index: Index,
        /// Its term.
        last_term: Term,
    },
    /// Answer to [`Body::PreVote`].
    PreVoteReply {
        /// The term that was asked for.
        campaign: Term,
        /// Whether the sender would vote.
        granted: bool,
    },
    /// "Vote for me in this term."
    Vote {
        /// The sender's last entry.
        last_index: Index,
        /// Its term.
        last_term: Term,
        /// The last leader asked the sender to take over, and has given up its lease: a voter need not keep
        /// its promise to that leader.
        transfer: bool,
    },
    /// Answer to [`Body::Vote`].
    VoteReply {
        /// Whether the sender's vote is the receiver's.
        granted: bool,
    },
    /// Entries to store after the one at `prev_index`, or just the question whether the logs agree there.
    Append {
        /// Index of the entry before `entries`.
        prev_index: Index,
        /// Its term.
        prev_term: Term,
        /// The leader's commit index.
        commit: Index,
        /// The leader's last entry when it sent this.
        leader_last: Index,
        /// To be given back.
        stamp: Stamp,
        /// The entries at `prev_index + 1` and up.
        entries: Vec<EntryMeta>,
    },
    /// Answer to [`Body::Append`] once its entries are durable, or at once if there is nothing to wait for.
    AppendReply {
        /// The newest stamp the sender has of this leader.
        stamp: Stamp,
        /// The sender lost records that it had acknowledged: `Accepted` steers the flow, but acknowledges
        /// nothing.
        suspect: bool,
        /// What became of the append.
        outcome: AppendOutcome,
    },
    /// "I lead"; also carries the commit index to idle followers.
    Heartbeat {
        /// To be given back.
        stamp: Stamp,
        /// The leader's commit index; holds for as much of the follower's log as is known to match.
        commit: Index,
    },
    /// Answer to [`Body::Heartbeat`], sent at once.
    HeartbeatReply {
        /// The newest stamp the sender has of this leader.
        stamp: Stamp,
        /// See [`Body::AppendReply`].
        suspect: bool,
        /// The sender's log is known to equal the leader's up to here; may not be durable yet.
        matched: Index,
        /// So much of `matched` is durable.
        persisted: Index,
    },
    /// "Campaign now": the leader hands over to the receiver, whose log is complete.
    TimeoutNow,
}

/// What became of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum AppendOutcome {
    /// The sender's durable log equals the leader's up to `persisted`.
    Accepted {
        /// Highest such index.
        persisted: Index,
    },
    /// The logs differ at `prev_index`, or the sender has no such entry.
    Rejected {
        /// `prev_index` of the append.
        prev_index: Index,
        /// The sender's last entry at or before `prev_index` whose term is not above `prev_term`: the logs
        /// cannot agree above it.
        hint_index: Index,
        /// Term of the entry at `hint_index`.
        hint_term: Term,
    },
}

/// Why a received message was ignored. Only a fault (of ours, or of what carried the message) causes these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// Sent by nobody, or by the receiver itself.
    #[error("the sender's id is not that of another replica")]
    Sender,
    /// There are no leaders or candidates in term 0.
    #[error("the term is zero")]
    ZeroTerm,
    /// Counting past the end of the numbers.
    #[error("an index or a term is out of range")]
    OutOfRange,
    /// Terms must rise along the log, up to the sender's.
    #[error("the terms of the entries do not ascend")]
    TermOrder,
    /// See [`EntryMeta::UNKNOWN_BYTES`].
    #[error("an entry came without its size")]
    UnknownBytes,
    /// A leader cannot have committed, or sent, more than it has.
    #[error("the leader's last index is below its commit index or its entries")]
    BeyondLast,
    /// The time given back has not come yet.
    #[error("the stamp given back was never sent")]
    Stamp,
    /// It would change an entry that is committed here.
    #[error("an entry differs from the one that is committed at its index")]
    ConflictsWithCommitted,
    /// Two leaders in one term.
    #[error("another replica claims to lead the term")]
    SecondLeader,
}

impl Message {
    /// The entries of an append and the index of the first; `None` if the message carries no entries.
    ///
    /// To send: attach the payload of each, in order, if the host's entry at that index still has that term;
    /// drop the whole message otherwise. To receive: each payload is `bytes` long.
    #[must_use]
    pub fn entries_range(&self) -> Option<(Index, &[EntryMeta])> {
        match &self.body {
            Body::Append { prev_index, entries, .. } if !entries.is_empty() => {
                Some((prev_index + 1, entries))
            }
            _ => None,
        }
    }

    /// Like [`Message::entries_range`], to fill in size and kind where they are
    /// [unknown](EntryMeta::UNKNOWN_BYTES).
    pub fn entries_mut(&mut self) -> Option<(Index, &mut [EntryMeta])> {
        match &mut self.body {
            Body::Append { prev_index, entries, .. } if !entries.is_empty() => {
                Some((*prev_index + 1, entries.as_mut_slice()))
            }
            _ => None,
        }
    }

    /// Bytes of all payloads the host attaches; entries of unknown size count as none.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        let (_, entries) = self.entries_range().unwrap_or((0, &[]));
        entries
            .iter()
            .filter(|entry| entry.bytes != EntryMeta::UNKNOWN_BYTES)
            .map(|entry| u64::from(entry.bytes))
            .sum()
    }

    /// Checks what can be checked without knowing the receiver's state.
    /// [`RaftNode::step`](crate::RaftNode::step) does so itself.
    ///
    /// # Errors
    /// The first rule found broken.
    pub fn validate(&self) -> Result<(), MessageError> {
        // Only before its first election may a replica speak from term 0.
        let may_be_zero = matches!(self.body, Body::PreVote { .. } | Body::PreVoteReply { .. });
        if self.term == 0 && !may_be_zero {
            return Err(MessageError::ZeroTerm);
        }
        if self.term > NUMBER_MAX {
            return Err(MessageError::OutOfRange);
        }
        match &self.body {
            Body::PreVote { campaign, last_index, last_term } => {
                if *campaign != self.term + 1 {
                    return Err(MessageError::OutOfRange);
                }
                check_last(*last_index, *last_term, self.term)
            }
            Body::Vote { last_index, last_term, .. } => {
                // A candidate's log ends before its own term begins.
                check_last(*last_index, *last_term, self.term - 1)
            }
            Body::Append { prev_index, prev_term, commit, leader_last, entries, .. } => {
                check_last(*prev_index, *prev_term, self.term)?;
                let count = u64::try_from(entries.len()).map_err(|_| MessageError::OutOfRange)?;
                let last = prev_index.checked_add(count).ok_or(MessageError::OutOfRange)?;
                if last > *leader_last || *commit > *leader_last {
                    return Err(MessageError::BeyondLast);
                }
                if *leader_last > NUMBER_MAX {
                    return Err(MessageError::OutOfRange);
                }
                let mut before = (*prev_term).max(1);
                for entry in entries {
                    if entry.term < before || entry.term > self.term {
                        return Err(MessageError::TermOrder);
                    }
                    if entry.bytes == EntryMeta::UNKNOWN_BYTES {
                        return Err(MessageError::UnknownBytes);
                    }
                    before = entry.term;
                }
                Ok(())
            }
            Body::HeartbeatReply { matched, persisted, .. } => {
                if persisted > matched || *matched > NUMBER_MAX {
                    return Err(MessageError::OutOfRange);
                }
                Ok(())
            }
            Body::AppendReply { outcome, .. } => match outcome {
                AppendOutcome::Accepted { persisted } if *persisted > NUMBER_MAX => {
                    Err(MessageError::OutOfRange)
                }
                AppendOutcome::Rejected { prev_index, hint_index, .. }
                    if hint_index > prev_index || *prev_index > NUMBER_MAX =>
                {
                    Err(MessageError::OutOfRange)
                }
                _ => Ok(()),
            },
            Body::PreVoteReply { .. }
            | Body::VoteReply { .. }
            | Body::Heartbeat { .. }
            | Body::TimeoutNow => Ok(()),
        }
    }
}

/// A position in a log: index and term are both zero or neither is, and the term is not above `term_max`.
fn check_last(index: Index, term: Term, term_max: Term) -> Result<(), MessageError> {
    if index > NUMBER_MAX || term > term_max || (index == 0) != (term == 0) {
        return Err(MessageError::OutOfRange);
    }
    Ok(())
}

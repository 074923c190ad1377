//! What a node wants done: one value, whose fields say what must be durable before what.
//!
//! Effects leave the node in the order in which they came about. [`RaftNode::take_effects`] gives at most one
//! [`Append`] at a time; if calls that each need one were made before the first was taken, they queue up, and
//! the host takes until [`Effects::is_empty`].
//!
//! [`RaftNode::take_effects`]: crate::RaftNode::take_effects

use std::collections::VecDeque;

use crate::{
    message::{Message, MessageError},
    types::{EntryMeta, HardState, Index, PeerId, Role, Term},
};

/// What the host must do, in no particular order unless a field's text says so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Make this durable. Needed before [`messages_after_persist`](Effects::messages_after_persist) go, and
    /// before [`RaftNode::on_persisted`](crate::RaftNode::on_persisted) is called for an
    /// [`append`](Effects::append) of these or later effects.
    pub hard_state: Option<HardState>,
    /// Store these entries; report with [`RaftNode::on_persisted`](crate::RaftNode::on_persisted) when they
    /// and all that was handed out before them are durable.
    pub append: Option<Append>,
    /// May go at once, before anything is durable.
    pub messages: Vec<(PeerId, Message)>,
    /// Go once `hard_state` and `append` of these very effects, and everything handed out earlier, are
    /// durable. If the node is dropped before that, so are they.
    pub messages_after_persist: Vec<(PeerId, Message)>,
    /// Entries up to here are committed: apply them. They need not be durable on this replica.
    pub commit: Option<Index>,
    /// These reads may be answered as soon as the state machine has applied up to their index.
    pub reads: Vec<ReadReady>,
    /// Contexts of reads whose answer was lost along with leadership.
    pub reads_failed: Vec<u64>,
    /// The role, the term or the known leader changed.
    pub role: Option<RoleChange>,
    /// Peers that need entries from before the log's first index. Each is listed once, until it has caught
    /// up.
    pub snapshot_wanted: Vec<PeerId>,
    /// The replica was suspect and no longer is: its log again holds all that it may ever have acknowledged.
    pub repaired: bool,
    /// Messages that were ignored because no correct peer could have sent them; to be counted and logged.
    pub rejected: Vec<(PeerId, MessageError)>,
}

/// Entries to store from `first` on. If `first` is at or below the last stored index, the old entries from
/// `first` on are void: the new ones replace them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    /// Index of the first of `entries`.
    pub first: Index,
    /// At least one.
    pub entries: Vec<EntryMeta>,
    /// Where the payloads are.
    pub source: AppendSource,
}

impl Append {
    /// Index of the last entry.
    #[must_use]
    pub fn last(&self) -> Index {
        self.first + self.entries.len() as u64 - 1
    }

    /// What to report to [`RaftNode::on_persisted`](crate::RaftNode::on_persisted) once it is durable: the
    /// last entry's term and index.
    #[must_use]
    pub fn persisted_mark(&self) -> (Term, Index) {
        (self.entries.last().map_or(0, |entry| entry.term), self.last())
    }
}

/// Where the payloads of an [`Append`] are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendSource {
    /// With the host, from [`RaftNode::propose`](crate::RaftNode::propose); a
    /// [`Noop`](crate::EntryKind::Noop) has none.
    Proposal,
    /// With the message that was stepped. Its first entries may be missing here: those are in the log
    /// already.
    Message,
}

/// The answer to [`RaftNode::read_index`](crate::RaftNode::read_index).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadReady {
    /// As given to the call.
    pub context: u64,
    /// A state machine that has applied this entry answers the read linearizably.
    pub index: Index,
}

/// Who the replica is, and whom it follows, from here on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleChange {
    /// Its role.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// The leader of that term, if known; itself when it leads.
    pub leader: Option<PeerId>,
}

impl Effects {
    /// Nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hard_state.is_none()
            && self.append.is_none()
            && self.messages.is_empty()
            && self.messages_after_persist.is_empty()
            && self.commit.is_none()
            && self.reads.is_empty()
            && self.reads_failed.is_empty()
            && self.role.is_none()
            && self.snapshot_wanted.is_empty()
            && !self.repaired
            && self.rejected.is_empty()
    }
}

/// Effects not yet taken, in order. All but the last are complete.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    complete: VecDeque<Effects>,
    open: Effects,
}

impl Outbox {
    /// The effects being collected.
    pub(crate) fn open(&mut self) -> &mut Effects {
        &mut self.open
    }

    /// Adds entries to store. Returns whether they joined an append that was not taken yet.
    pub(crate) fn append(&mut self, first: Index, entries: &[EntryMeta], source: AppendSource) -> bool {
        if let Some(append) = &mut self.open.append {
            if source == AppendSource::Proposal && append.source == source && append.last() + 1 == first {
                append.entries.extend_from_slice(entries);
                return true;
            }
            self.complete.push_back(std::mem::take(&mut self.open));
        }
        self.open.append = Some(Append { first, entries: entries.to_vec(), source });
        false
    }

    /// The oldest complete effects, if there are any.
    pub(crate) fn pop_complete(&mut self) -> Option<Effects> {
        self.complete.pop_front()
    }

    /// What has been collected so far.
    pub(crate) fn pop_open(&mut self) -> Effects {
        std::mem::take(&mut self.open)
    }
}

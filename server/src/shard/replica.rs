//! One replica of a group: its Raft node, and the requests that wait on it.
//!
//! Invariants:
//! - Conditions are evaluated once, by a leader that has applied its term's first entry, against the index
//!   overlaid with its own unapplied proposals. The log carries effects only.
//! - A refusal never enters the log. It is answered when the proposals it depended on are applied and
//!   leadership has been confirmed, exactly as a read of the same moment would be.
//! - An acknowledged write is applied here, hence committed: durable on a quorum.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use bytes::Bytes;
use terrane_client::wire::{Condition, ErrorReply, Response};
use terrane_engine::{GroupId, Lsn};
use terrane_raft::{EntryKind, Index, RaftNode, Term};

use super::session::Responder;
use super::{Phase, STOPPING, Shard};
use crate::seam::World;

/// A replica and everything that waits on it.
pub(super) struct Replica {
    pub(super) group: GroupId,
    pub(super) raft: RaftNode,
    /// Payloads proposed and not yet handed to the store, in order of index.
    pub(super) staged: VecDeque<(Index, Bytes)>,
    /// Writes proposed by this leader and not yet applied, in order of index.
    pub(super) proposals: VecDeque<Proposal>,
    /// What the keys of `proposals` will be: the newest proposal of each.
    overlay: BTreeMap<Bytes, Overlaid>,
    /// Reads that wait for their read index, by context.
    pub(super) reads: BTreeMap<u64, Read>,
    /// Reads that wait until an index is applied.
    pub(super) waiting: Vec<(Index, Read)>,
    next_context: u64,
    /// Effects may be waiting.
    pub(super) dirty: bool,
    /// Of the last thing that this replica gave to the store.
    pub(super) last_lsn: Lsn,
}

/// A write on its way through the log.
pub(super) struct Proposal {
    pub(super) index: Index,
    pub(super) term: Term,
    key: Bytes,
    responder: Responder,
}

#[derive(Clone, Copy)]
struct Overlaid {
    index: Index,
    live: bool,
}

/// What a read wants once it may look.
pub(super) enum Wanted {
    /// A value.
    Get(Bytes),
    /// Rows of this partition.
    Scan(super::request::Scan),
    /// The refusal of a condition, decided when it was asked for.
    Refusal {
        /// Version that the condition met.
        current: Option<u64>,
    },
}

/// A read that waits.
pub(super) struct Read {
    pub(super) wanted: Wanted,
    /// Not to be answered before this index is applied.
    pub(super) after: Index,
    pub(super) responder: Responder,
}

/// What a write does to its key.
pub(super) enum Effect {
    Put { value: Bytes },
    Delete,
}

impl Replica {
    pub(super) fn new(group: GroupId, raft: RaftNode, last_lsn: Lsn) -> Self {
        Self {
            group,
            raft,
            staged: VecDeque::new(),
            proposals: VecDeque::new(),
            overlay: BTreeMap::new(),
            reads: BTreeMap::new(),
            waiting: Vec::new(),
            next_context: 0,
            dirty: true,
            last_lsn,
        }
    }

    /// Proposes a write if its condition holds; else arranges for the refusal to be answered.
    pub(super) fn write<W: World>(
        &mut self,
        shard: &Rc<Shard<W>>,
        key: Bytes,
        effect: Effect,
        condition: Condition,
        responder: Responder,
    ) {
        if !self.raft.is_leader() {
            return shard.respond(responder, self.not_leader(shard));
        }
        if shard.phase() == Phase::Stopping {
            let why = STOPPING.into();
            return shard.respond(responder, Response::Error(ErrorReply::Unavailable { why }));
        }
        if condition != Condition::None {
            if !self.raft.leader_ready() {
                // A new leader does not know yet what is committed; it will within a round trip.
                return shard.respond(responder, Response::Error(ErrorReply::Busy { retry_after_ms: 10 }));
            }
            let (current, after) = match self.overlay.get(&key) {
                Some(overlaid) => (overlaid.live.then_some(overlaid.index), overlaid.index),
                None => (shard.store.version(self.group, &key), 0),
            };
            if !condition.holds(current) {
                return self.read(shard, Wanted::Refusal { current }, after, responder);
            }
        }
        let room = match effect {
            Effect::Put { .. } => shard.store.accepts_put(self.group, &key),
            Effect::Delete => shard.store.accepts_deletes(),
        };
        if !room {
            return shard.respond(responder, Response::Error(ErrorReply::Full));
        }
        let (payload, live) = match effect {
            Effect::Put { value } => (terrane_engine::op::encode_put(&key, &value, None), true),
            Effect::Delete => (terrane_engine::op::encode_delete(&key), false),
        };
        let bytes = u32::try_from(payload.len()).expect("requests are bounded far below 4 GiB");
        let limit = shard.store.payload_bytes_max();
        if bytes > limit {
            return shard.respond(responder, Response::Error(ErrorReply::TooLarge { limit }));
        }
        match self.raft.propose(shard.raft_now(), &[(EntryKind::Ops, bytes)]) {
            Ok(proposed) => {
                let (index, term) = (proposed.first, proposed.term);
                shard.stage(payload.len());
                self.staged.push_back((index, payload));
                self.overlay.insert(key.clone(), Overlaid { index, live });
                self.proposals.push_back(Proposal { index, term, key, responder });
                self.dirty = true;
            }
            Err(terrane_raft::ProposeError::NotLeader { .. }) => {
                shard.respond(responder, self.not_leader(shard));
            }
            Err(_) => {
                shard.respond(responder, Response::Error(ErrorReply::Busy { retry_after_ms: 20 }));
            }
        }
    }

    /// Looks once leadership is confirmed and everything committed before this call, and `after`, is
    /// applied: at once when the lease holds.
    pub(super) fn read<W: World>(
        &mut self,
        shard: &Rc<Shard<W>>,
        wanted: Wanted,
        after: Index,
        responder: Responder,
    ) {
        let now = shard.raft_now();
        let applied = shard.store.applied(self.group);
        let read = Read { wanted, after, responder };
        // Lease check and look-up happen in one poll: nothing can move between them.
        if self.raft.leader_ready()
            && self.raft.lease_valid(now)
            && applied >= self.raft.commit()
            && applied >= after
        {
            return shard.look(self.group, read);
        }
        let context = self.next_context;
        match self.raft.read_index(now, context) {
            Ok(()) => {
                self.next_context += 1;
                self.reads.insert(context, read);
                self.dirty = true;
            }
            Err(_) => shard.respond(read.responder, self.not_leader(shard)),
        }
    }

    /// Moves a read whose index is known on to the wait for that index.
    pub(super) fn read_ready(&mut self, context: u64, index: Index) {
        if let Some(read) = self.reads.remove(&context) {
            self.waiting.push((index.max(read.after), read));
        }
    }

    /// Answers writes and reads that `applied` settles.
    pub(super) fn settle<W: World>(&mut self, shard: &Rc<Shard<W>>, applied: Index) {
        while let Some(proposal) = self.proposals.pop_front_if(|proposal| proposal.index <= applied) {
            if self.overlay.get(&proposal.key).is_some_and(|overlaid| overlaid.index == proposal.index) {
                self.overlay.remove(&proposal.key);
            }
            // Proposals do not outlive the leadership they were made in, so the entry is the proposed one.
            assert_eq!(
                self.raft.term_at(proposal.index),
                Some(proposal.term),
                "a leader never replaces an entry"
            );
            shard.respond(proposal.responder, Response::Written { version: proposal.index });
        }
        let mut k = 0;
        while k < self.waiting.len() {
            if self.waiting[k].0 <= applied {
                let (_, read) = self.waiting.swap_remove(k);
                shard.look(self.group, read);
            } else {
                k += 1;
            }
        }
    }

    /// Leadership is lost: nobody here can tell any more what becomes of the proposals.
    pub(super) fn abandon<W: World>(&mut self, shard: &Rc<Shard<W>>) {
        self.overlay.clear();
        for proposal in std::mem::take(&mut self.proposals) {
            shard.respond(proposal.responder, Response::Error(ErrorReply::OutcomeUnknown));
        }
        // A refusal may rest on a proposal that will now never be; reads of confirmed indexes still hold.
        let (refusals, reads) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|(_, read)| matches!(read.wanted, Wanted::Refusal { .. }));
        self.waiting = reads;
        let refusals: Vec<(Index, Read)> = refusals;
        for (_, refusal) in refusals {
            let reply = self.not_leader(shard);
            shard.respond(refusal.responder, reply);
        }
    }

    /// Fails a read whose leadership could not be confirmed.
    pub(super) fn fail_read<W: World>(&mut self, shard: &Rc<Shard<W>>, context: u64) {
        if let Some(read) = self.reads.remove(&context) {
            let reply = self.not_leader(shard);
            shard.respond(read.responder, reply);
        }
    }

    /// Answers everything that waits: reads with `reply`, writes with the truth that nobody knows their outcome.
    pub(super) fn fail_all<W: World>(&mut self, shard: &Rc<Shard<W>>, reply: &ErrorReply) {
        self.overlay.clear();
        self.staged.clear();
        for proposal in std::mem::take(&mut self.proposals) {
            shard.respond(proposal.responder, Response::Error(ErrorReply::OutcomeUnknown));
        }
        let reads = std::mem::take(&mut self.reads).into_values().map(|read| read.responder);
        let waiting = std::mem::take(&mut self.waiting).into_iter().map(|(_, read)| read.responder);
        for responder in reads.chain(waiting) {
            shard.respond(responder, Response::Error(reply.clone()));
        }
    }

    fn not_leader<W: World>(&self, shard: &Shard<W>) -> Response {
        Response::Error(shard.not_leader(self.group, self.raft.leader()))
    }
}

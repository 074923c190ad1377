//! The node: its state, its public calls, and who handles which message.
//!
//! Elections are in `election.rs`, both ends of replication in `replication.rs`, what only a leader keeps in
//! `leadership.rs`.
//!
//! Invariants: `applied <= commit <= log.last()`; `commit` never falls; `term` never falls and `vote` changes
//! only from `None` within a term; an entry at or below `commit` never changes.

use crate::{
    config::{Config, ConfigError},
    effects::{AppendSource, Effects, Outbox, RoleChange},
    election::Ballot,
    leadership::Leadership,
    lease::Timing,
    log::{Log, LogError},
    membership::{Membership, MembershipError},
    message::{Body, Message, MessageError, Stamp},
    progress::ProgressState,
    random::Random,
    types::{EntryKind, EntryMeta, HardState, Index, PeerId, Restored, Role, Term, Time},
};

/// One replica's part in its group's Raft.
///
/// Calls that take `now` expect it not to run backwards; if it does, the latest time seen counts.
#[derive(Debug)]
pub struct RaftNode {
    pub(crate) config: Config,
    pub(crate) timing: Timing,
    pub(crate) random: Random,
    pub(crate) now: Time,

    pub(crate) term: Term,
    pub(crate) vote: Option<PeerId>,
    /// `term` is known to be durable: something is that was handed over later, or was answered that was sent
    /// later.
    pub(crate) term_durable: bool,
    pub(crate) log: Log,
    pub(crate) commit: Index,
    pub(crate) applied: Index,
    pub(crate) membership: Membership,

    pub(crate) state: State,
    pub(crate) leader: Option<PeerId>,
    pub(crate) following: Following,

    /// When to campaign unless a leader is heard.
    pub(crate) election_deadline: Time,
    /// Until then, unless a leader hands over, the vote is promised to the leader last heard.
    pub(crate) promised_until: Time,
    /// Until then a promise may exist that a restart has forgotten.
    pub(crate) rejoin_until: Time,
    pub(crate) suspect: bool,

    pub(crate) outbox: Outbox,
    reported_commit: Index,
    reported_role: RoleChange,
    rejected: u64,
}

/// The role, with what only that role knows.
#[derive(Debug)]
pub(crate) enum State {
    Follower,
    PreCandidate(Ballot),
    Candidate(Ballot),
    Leader(Leadership),
}

/// What a follower knows of the current term's leader's log; forgotten when the term changes.
#[derive(Debug, Default)]
pub(crate) struct Following {
    /// Our log equals the leader's up to here.
    pub(crate) matched: Index,
    /// Newest stamp from the leader.
    pub(crate) stamp: Stamp,
    /// A suspect replica is repaired once so much is durable and matched: the leader's last entry when we
    /// first accepted an append from it. It has every entry that was committed before its term.
    pub(crate) repaired_at: Option<Index>,
}

/// Why a node cannot be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// See [`Config::validate`].
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// See [`Membership::validate`].
    #[error("membership: {0}")]
    Membership(#[from] MembershipError),
    /// The runs and the range of the log contradict each other.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Applied entries are in the log, or were dropped from it.
    #[error("entry {applied} is said to be applied, but the log is {first_index} to {last_index}")]
    Applied {
        /// As restored.
        applied: Index,
        /// As restored.
        first_index: Index,
        /// As restored.
        last_index: Index,
    },
    /// No entry can come from a term the replica has not seen.
    #[error("the log ends in term {last}, above the hard state's term {term}")]
    TermBelowLog {
        /// As restored.
        term: Term,
        /// Term of the last entry.
        last: Term,
    },
}

/// Why a proposal was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// Propose at the leader.
    #[error("this replica does not lead the group")]
    NotLeader {
        /// The leader, if known.
        leader: Option<PeerId>,
    },
    /// The leader is about to hand over; propose at its successor.
    #[error("leadership is being transferred to peer {to}")]
    Transferring {
        /// The successor.
        to: PeerId,
    },
}

/// The call needs the leader, and this replica is not it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this replica does not lead the group")]
pub struct NotLeader {
    /// The leader, if known.
    pub leader: Option<PeerId>,
}

/// Where proposed entries will be, if they are committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proposed {
    /// Index of the first; the others follow.
    pub first: Index,
    /// Their term. If the entry committed at the index has another term, the proposal was lost.
    pub term: Term,
}

/// A look into a node, for people and tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This replica.
    pub id: PeerId,
    /// Its role.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// Its vote in that term.
    pub vote: Option<PeerId>,
    /// The leader of that term, if known.
    pub leader: Option<PeerId>,
    /// Entries known to be committed.
    pub commit: Index,
    /// Entries the host said it applied.
    pub applied: Index,
    /// First entry the log still has.
    pub first_index: Index,
    /// Last entry of the log.
    pub last_index: Index,
    /// Entries the host said are durable.
    pub persisted: Index,
    /// See [`RaftNode::lease_valid`].
    pub lease: bool,
    /// See [`Restored::suspect`].
    pub suspect: bool,
    /// Messages ignored because no correct peer could have sent them.
    pub rejected_messages: u64,
    /// What a leader knows of its peers, ascending by id; empty at others.
    pub peers: Vec<PeerStatus>,
}

/// What a leader knows of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// The peer.
    pub id: PeerId,
    /// How it is fed.
    pub state: ProgressState,
    /// Its log durably equals the leader's up to here.
    pub matched: Index,
    /// The next entry to send.
    pub next: Index,
    /// Entries sent and not acknowledged.
    pub inflight_entries: usize,
    /// Their payload bytes.
    pub inflight_bytes: u64,
    /// See [`Restored::suspect`].
    pub suspect: bool,
    /// When the leader last heard from it in this term.
    pub heard_at: Time,
}

impl RaftNode {
    /// A follower with the given past.
    ///
    /// # Errors
    /// If the configuration is out of its limits, or what was restored contradicts itself.
    pub fn new(config: Config, restored: Restored, now: Time) -> Result<RaftNode, RestoreError> {
        config.validate()?;
        let Restored { hard_state, runs, first_index, last_index, applied, membership, suspect, rejoining } =
            restored;
        membership.validate()?;
        let log = Log::restore(runs, first_index, last_index)?;
        if applied > last_index || applied + 1 < first_index {
            return Err(RestoreError::Applied { applied, first_index, last_index });
        }
        if log.last_term() > hard_state.term {
            return Err(RestoreError::TermBelowLog { term: hard_state.term, last: log.last_term() });
        }
        // The commit index may have been written before the entries were; what is lost will be sent again.
        let commit = hard_state.commit.min(last_index).max(applied);
        let timing = Timing::new(&config);
        let mut node = RaftNode {
            random: Random::new(config.seed, config.id),
            timing,
            now,
            term: hard_state.term,
            vote: hard_state.vote,
            term_durable: true,
            log,
            commit,
            applied,
            membership,
            state: State::Follower,
            leader: None,
            following: Following { matched: commit, ..Following::default() },
            election_deadline: Time::NEVER,
            promised_until: Time(0),
            rejoin_until: if rejoining { now.plus(timing.rejoin) } else { Time(0) },
            suspect,
            outbox: Outbox::default(),
            reported_commit: applied,
            reported_role: RoleChange { role: Role::Follower, term: hard_state.term, leader: None },
            rejected: 0,
            config,
        };
        node.reset_election_deadline();
        Ok(node)
    }

    /// Takes in a message from another replica. Messages may be lost, doubled, late and out of order; one
    /// that no correct peer could have sent is ignored and listed in [`Effects::rejected`].
    pub fn step(&mut self, now: Time, from: PeerId, message: Message) {
        self.advance(now);
        if let Err(error) = self.try_step(from, message) {
            self.rejected += 1;
            self.outbox.open().rejected.push((from, error));
        }
    }

    fn try_step(&mut self, from: PeerId, message: Message) -> Result<(), MessageError> {
        if !from.is_valid() || from == self.config.id {
            return Err(MessageError::Sender);
        }
        message.validate()?;
        let Some(Message { term, body }) = self.step_outside_terms(from, message) else { return Ok(()) };
        if term < self.term {
            self.answer_old_term(from, &body);
            return Ok(());
        }
        if term > self.term {
            self.become_follower(term, None);
        }
        match body {
            // Handled above; a reply of a higher term says no more than that term.
            Body::PreVote { .. } | Body::PreVoteReply { .. } => Ok(()),
            Body::Vote { last_index, last_term, transfer } => {
                self.on_vote(from, last_index, last_term, transfer);
                Ok(())
            }
            Body::VoteReply { granted } => {
                self.on_vote_reply(from, granted);
                Ok(())
            }
            Body::Append { prev_index, prev_term, commit, leader_last, stamp, entries } => {
                self.on_leader_heard(from, stamp)?;
                self.on_append(prev_index, prev_term, commit, leader_last, &entries)
            }
            Body::AppendReply { stamp, suspect, outcome } => {
                self.on_append_reply(from, stamp, suspect, outcome)
            }
            Body::Heartbeat { stamp, commit } => {
                self.on_leader_heard(from, stamp)?;
                self.on_heartbeat(commit);
                Ok(())
            }
            Body::HeartbeatReply { stamp, suspect, matched, persisted } => {
                self.on_heartbeat_reply(from, stamp, suspect, matched, persisted)
            }
            Body::TimeoutNow => {
                self.on_timeout_now(from);
                Ok(())
            }
        }
    }

    /// Does what is due. To be called at [`RaftNode::next_deadline`]; earlier or later calls do no harm.
    pub fn tick(&mut self, now: Time) {
        self.advance(now);
        match self.state {
            State::Leader(_) => self.tick_leader(),
            _ if self.now >= self.election_deadline => self.start_campaign(),
            _ => {}
        }
    }

    /// When [`RaftNode::tick`] has something to do. Any other call may change it.
    #[must_use]
    pub fn next_deadline(&self) -> Time {
        match &self.state {
            State::Leader(leadership) => self.leader_deadline(leadership),
            _ => self.election_deadline,
        }
    }

    /// Appends entries, each with a kind and a payload size in bytes, to the log. The host stores them as
    /// [`Effects::append`] says; proposals made before the effects are taken share one append and go to each
    /// peer together.
    ///
    /// # Errors
    /// If this replica does not lead, or is handing over.
    pub fn propose(&mut self, now: Time, entries: &[(EntryKind, u32)]) -> Result<Proposed, ProposeError> {
        self.advance(now);
        match &self.state {
            State::Leader(leadership) => {
                if let Some(to) = leadership.transfer_target() {
                    return Err(ProposeError::Transferring { to });
                }
            }
            _ => return Err(ProposeError::NotLeader { leader: self.leader }),
        }
        let first = self.log.last() + 1;
        let term = self.term;
        if !entries.is_empty() {
            let entries: Vec<EntryMeta> =
                entries.iter().map(|&(kind, bytes)| EntryMeta { term, bytes, kind }).collect();
            self.append(first, &entries, AppendSource::Proposal);
        }
        Ok(Proposed { first, term })
    }

    /// The append that ends with the entry (`term`, `index`), and everything handed out before it, is
    /// durable. Report appends in the order in which they were handed out; of several that became durable
    /// together it is enough to report the last. Reports about entries that were replaced since are ignored.
    pub fn on_persisted(&mut self, now: Time, term: Term, index: Index) {
        self.advance(now);
        let Some((handed_in, grew)) = self.log.on_persisted(term, index) else { return };
        if handed_in == self.term {
            self.term_durable = true;
        }
        if !grew {
            return;
        }
        match self.state {
            State::Leader(_) => self.advance_commit(),
            _ => {
                self.try_repair();
                self.acknowledge();
            }
        }
    }

    /// The state machine has applied the entries up to `index`, all of them committed.
    pub fn on_applied(&mut self, now: Time, index: Index) {
        self.advance(now);
        assert!(index <= self.commit, "entry {index} was applied before it was committed");
        self.applied = self.applied.max(index);
    }

    /// The host has dropped the entries before `first` from its log, all of them applied. Peers that still
    /// need them will be listed in [`Effects::snapshot_wanted`].
    pub fn on_log_truncated(&mut self, now: Time, first: Index) {
        self.advance(now);
        assert!(first <= self.applied + 1, "entry {first} was dropped before it was applied");
        self.log.drop_before(first);
    }

    /// Asks when the state machine may answer a read linearizably; [`Effects::reads`] says so, at once if the
    /// lease is valid, else when a quorum has confirmed that this replica still leads.
    ///
    /// # Errors
    /// If this replica does not lead.
    pub fn read_index(&mut self, now: Time, context: u64) -> Result<(), NotLeader> {
        self.advance(now);
        if !self.is_leader() {
            return Err(NotLeader { leader: self.leader });
        }
        self.begin_read(context);
        Ok(())
    }

    /// Whether a read of the state at [`RaftNode::commit`], once applied, is linearizable right now without
    /// asking anyone: this replica leads, has committed an entry of its term, and nobody else can have been
    /// elected yet.
    #[must_use]
    pub fn lease_valid(&self, now: Time) -> bool {
        self.lease_holds_at(self.now.max(now))
    }

    /// The link to `peer` was lost; what was under way may never arrive.
    pub fn report_unreachable(&mut self, now: Time, peer: PeerId) {
        self.advance(now);
        if let State::Leader(leadership) = &mut self.state
            && let Some(progress) = leadership.peers.get_mut(&peer)
        {
            progress.unreachable();
        }
    }

    /// Campaigns now rather than at the timeout: the host prefers this replica as leader. Without effect at a
    /// leader, at a replica that may not campaign, and while its vote is promised to a leader that was heard
    /// from lately.
    pub fn campaign(&mut self, now: Time) {
        self.advance(now);
        if !matches!(self.state, State::Leader(_)) && self.now >= self.promised_until {
            self.start_campaign();
        }
    }

    /// What is to be done since the last call. Appends to peers are built here, so proposals made since then
    /// travel together.
    pub fn take_effects(&mut self) -> Effects {
        if let Some(effects) = self.outbox.pop_complete() {
            return effects;
        }
        self.send_as_leader();
        if self.commit > self.reported_commit {
            self.reported_commit = self.commit;
            self.outbox.open().commit = Some(self.commit);
        }
        let role = RoleChange { role: self.role(), term: self.term, leader: self.leader };
        if role != self.reported_role {
            self.reported_role = role;
            self.outbox.open().role = Some(role);
        }
        self.outbox.pop_open()
    }

    /// A look into the node.
    #[must_use]
    pub fn status(&self) -> Status {
        let peers = match &self.state {
            State::Leader(leadership) => leadership.peer_statuses(),
            _ => Vec::new(),
        };
        Status {
            id: self.config.id,
            role: self.role(),
            term: self.term,
            vote: self.vote,
            leader: self.leader,
            commit: self.commit,
            applied: self.applied,
            first_index: self.log.first(),
            last_index: self.log.last(),
            persisted: self.log.persisted(),
            lease: self.lease_holds(),
            suspect: self.suspect,
            rejected_messages: self.rejected,
            peers,
        }
    }

    /// Term of the entry at `index`, known from the entry before the log's first (0 for index 0) to its last.
    #[must_use]
    pub fn term_at(&self, index: Index) -> Option<Term> {
        self.log.term_at(index)
    }

    /// Last entry of the log, durable or not.
    #[must_use]
    pub fn last_index(&self) -> Index {
        self.log.last()
    }

    /// Entries up to here are known to be committed.
    #[must_use]
    pub fn commit(&self) -> Index {
        self.commit
    }

    /// The current term.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }

    /// The current role.
    #[must_use]
    pub fn role(&self) -> Role {
        match self.state {
            State::Follower => Role::Follower,
            State::PreCandidate(_) => Role::PreCandidate,
            State::Candidate(_) => Role::Candidate,
            State::Leader(_) => Role::Leader,
        }
    }

    /// The leader of the current term, if known; this replica itself when it leads.
    #[must_use]
    pub fn leader(&self) -> Option<PeerId> {
        self.leader
    }

    /// Whether this replica leads.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        matches!(self.state, State::Leader(_))
    }

    /// Whether this replica leads and its state machine has applied an entry of its own term, hence
    /// everything that was committed before: from here on it can evaluate conditions.
    #[must_use]
    pub fn leader_ready(&self) -> bool {
        match &self.state {
            State::Leader(leadership) => self.applied >= leadership.term_start(),
            _ => false,
        }
    }

    /// The members of the group.
    #[must_use]
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    fn advance(&mut self, now: Time) {
        self.now = self.now.max(now);
    }

    /// The hard state changed: the next effects carry it.
    pub(crate) fn save_hard_state(&mut self) {
        // Not above what is durable: after a crash it must not vouch for entries that were about to be
        // replaced.
        let commit = self.commit.min(self.log.persisted());
        let hard_state = HardState { term: self.term, vote: self.vote, commit };
        self.outbox.open().hard_state = Some(hard_state);
    }

    /// Puts entries into the log and hands them to the host.
    pub(crate) fn append(&mut self, first: Index, entries: &[EntryMeta], source: AppendSource) {
        assert!(first > self.commit, "entry {first} is committed and cannot be replaced");
        let joined = self.outbox.append(first, entries, source);
        self.log.append(first, entries, self.term, joined);
    }

    /// Sends without waiting for durability.
    pub(crate) fn send(&mut self, to: PeerId, body: Body) {
        let message = Message { term: self.term, body };
        self.outbox.open().messages.push((to, message));
    }

    /// Sends once the term, the vote and the log as they are now are durable.
    pub(crate) fn send_after_persist(&mut self, to: PeerId, body: Body) {
        let message = Message { term: self.term, body };
        self.outbox.open().messages_after_persist.push((to, message));
    }
}

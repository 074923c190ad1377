//! Elections: who may stand, who may vote, and how a term begins (sections 5.2 and 5.4.1 of the Raft paper,
//! section 9.6 of Ongaro's dissertation for the preliminary vote).
//!
//! A replica asks for preliminary votes first, which change nothing, so one that was cut off does not disturb
//! a group that works. Nobody votes against a leader it heard from lately; see `lease.rs` for why that must
//! be so.

use std::collections::BTreeMap;

use crate::{
    effects::AppendSource,
    leadership::Leadership,
    message::{Body, Message, MessageError, Stamp},
    node::{Following, RaftNode, State},
    progress::Progress,
    quorum::{self, VoteResult},
    types::{EntryKind, EntryMeta, Index, PeerId, Term, Time},
};

/// Answers to a (preliminary) campaign.
#[derive(Debug, Default)]
pub(crate) struct Ballot(BTreeMap<PeerId, bool>);

impl Ballot {
    /// The first answer counts.
    fn record(&mut self, from: PeerId, granted: bool) {
        self.0.entry(from).or_insert(granted);
    }
}

impl RaftNode {
    /// Draws the time after which this replica campaigns unless it hears a leader.
    pub(crate) fn reset_election_deadline(&mut self) {
        let id = self.config.id;
        self.election_deadline = if self.suspect || !self.membership.can_lead(id) {
            Time::NEVER
        } else if self.membership.is_sole_voter(id) {
            self.now
        } else {
            let wait = self.timing.election + self.random.below(self.timing.election);
            self.now.plus(wait).max(self.rejoin_until)
        };
    }

    /// Whether this replica may ask for votes now, were it not for a promise. Alone it needs nobody's vote
    /// and can have promised nobody anything.
    fn may_campaign(&self) -> bool {
        let id = self.config.id;
        !self.suspect
            && self.membership.can_lead(id)
            && (self.now >= self.rejoin_until || self.membership.is_sole_voter(id))
    }

    /// Whether votes are held back because there is, or may be, a leader that counts on it.
    pub(crate) fn refuses_campaigns(&self, transfer: bool) -> bool {
        if self.now < self.rejoin_until {
            return true;
        }
        !transfer && (self.is_leader() || self.now < self.promised_until)
    }

    /// The timeout has passed, or the host wishes so.
    pub(crate) fn start_campaign(&mut self) {
        self.reset_election_deadline();
        if !self.may_campaign() {
            return;
        }
        if self.membership.is_sole_voter(self.config.id) {
            self.become_candidate(false);
            return;
        }
        self.leader = None;
        let mut ballot = Ballot::default();
        ballot.record(self.config.id, true);
        self.state = State::PreCandidate(ballot);
        let (last_index, last_term) = (self.log.last(), self.log.last_term());
        for peer in self.other_voters() {
            self.send(peer, Body::PreVote { campaign: self.term + 1, last_index, last_term });
        }
        self.count_votes();
    }

    fn become_candidate(&mut self, transfer: bool) {
        self.begin_term(self.term + 1);
        self.vote = Some(self.config.id);
        self.save_hard_state();
        let mut ballot = Ballot::default();
        ballot.record(self.config.id, true);
        self.state = State::Candidate(ballot);
        self.reset_election_deadline();
        let (last_index, last_term) = (self.log.last(), self.log.last_term());
        for peer in self.other_voters() {
            // After our own vote is durable: then any answer proves that it is.
            self.send_after_persist(peer, Body::Vote { last_index, last_term, transfer });
        }
        self.count_votes();
    }

    fn become_leader(&mut self) {
        let term_start = self.log.last() + 1;
        let id = self.config.id;
        let peers = self.membership.members().filter(|peer| *peer != id);
        let peers = peers.map(|peer| (peer, Progress::new(term_start, self.now))).collect();
        let heartbeat_at = self.now.plus(self.timing.heartbeat);
        self.state = State::Leader(Leadership::new(term_start, peers, heartbeat_at));
        self.leader = Some(id);
        let first = EntryMeta { term: self.term, bytes: 0, kind: EntryKind::Noop };
        self.append(term_start, &[first], AppendSource::Proposal);
    }

    /// Follows `leader`, or nobody yet, in `term`, which may be a new one.
    pub(crate) fn become_follower(&mut self, term: Term, leader: Option<PeerId>) {
        if let State::Leader(leadership) = &mut self.state {
            self.outbox.open().reads_failed.extend(leadership.fail_reads());
        }
        let was_follower = matches!(self.state, State::Follower);
        self.state = State::Follower;
        if term > self.term {
            self.begin_term(term);
            self.save_hard_state();
        }
        self.leader = leader;
        if !was_follower {
            self.reset_election_deadline();
        }
    }

    /// Nothing is known in a new term yet, but the committed entries are in every leader's log.
    fn begin_term(&mut self, term: Term) {
        assert!(term > self.term, "terms only rise");
        self.term = term;
        self.vote = None;
        self.leader = None;
        self.term_durable = false;
        self.following = Following { matched: self.commit, ..Following::default() };
    }

    fn other_voters(&self) -> Vec<PeerId> {
        self.membership.all_voters().filter(|peer| *peer != self.config.id).collect()
    }

    /// Acts on the answers so far.
    fn count_votes(&mut self) {
        let (State::PreCandidate(ballot) | State::Candidate(ballot)) = &self.state else { return };
        let result = quorum::vote_result(&self.membership, |voter| ballot.0.get(&voter).copied());
        match (result, &self.state) {
            (VoteResult::Pending, _) => {}
            (VoteResult::Lost, _) => self.become_follower(self.term, None),
            (VoteResult::Won, State::PreCandidate(_)) => self.become_candidate(false),
            (VoteResult::Won, _) => self.become_leader(),
        }
    }

    pub(crate) fn on_pre_vote(&mut self, from: PeerId, campaign: Term, last_index: Index, last_term: Term) {
        let granted = campaign > self.term
            && !self.suspect
            && !self.refuses_campaigns(false)
            && self.log.is_covered_by(last_index, last_term);
        self.send(from, Body::PreVoteReply { campaign, granted });
    }

    pub(crate) fn on_pre_vote_reply(&mut self, from: PeerId, campaign: Term, granted: bool) {
        if campaign != self.term + 1 {
            return;
        }
        if let State::PreCandidate(ballot) = &mut self.state {
            ballot.record(from, granted);
            self.count_votes();
        }
    }

    pub(crate) fn on_vote(&mut self, from: PeerId, last_index: Index, last_term: Term, transfer: bool) {
        let free = match self.vote {
            Some(given) => given == from,
            None => self.leader.is_none() && !self.refuses_campaigns(transfer),
        };
        let granted = free
            && !self.suspect
            && self.now >= self.rejoin_until
            && self.log.is_covered_by(last_index, last_term);
        if !granted {
            self.send(from, Body::VoteReply { granted });
            return;
        }
        if self.vote.is_none() {
            self.vote = Some(from);
            self.save_hard_state();
            self.reset_election_deadline();
        }
        self.send_after_persist(from, Body::VoteReply { granted });
    }

    pub(crate) fn on_vote_reply(&mut self, from: PeerId, granted: bool) {
        if let State::Candidate(ballot) = &mut self.state {
            // Votes are asked for only once our own is durable.
            self.term_durable = true;
            ballot.record(from, granted);
            self.count_votes();
        }
    }

    /// The leader wants this replica to take over, and has given up its lease for that.
    pub(crate) fn on_timeout_now(&mut self, from: PeerId) {
        let follows = matches!(self.state, State::Follower) && self.leader == Some(from);
        if follows && self.may_campaign() {
            self.become_candidate(true);
        }
    }

    /// A message of this term that only its leader can send: believe it and hold the vote back for a while.
    pub(crate) fn on_leader_heard(&mut self, from: PeerId, stamp: Stamp) -> Result<(), MessageError> {
        if self.leader.is_some_and(|leader| leader != from) {
            return Err(MessageError::SecondLeader);
        }
        if !matches!(self.state, State::Follower) {
            self.become_follower(self.term, Some(from));
        }
        self.leader = Some(from);
        self.promised_until = self.now.plus(self.timing.election);
        self.reset_election_deadline();
        let newest = &mut self.following.stamp;
        newest.sent_at = newest.sent_at.max(stamp.sent_at);
        newest.round = newest.round.max(stamp.round);
        Ok(())
    }

    /// The sender lags behind; tell it our term if it thinks it leads or wants to.
    pub(crate) fn answer_old_term(&mut self, from: PeerId, body: &Body) {
        match body {
            Body::Vote { .. } => self.send(from, Body::VoteReply { granted: false }),
            Body::Append { .. } | Body::Heartbeat { .. } => {
                let suspect = self.suspect;
                let stamp = Stamp::default();
                self.send(from, Body::HeartbeatReply { stamp, suspect, matched: 0, persisted: 0 });
            }
            _ => {}
        }
    }

    /// Handles what may be believed whatever its term: questions and answers of preliminary votes change no
    /// one's term, and a campaign against a leader that is alive is not heard at all. Gives other messages
    /// back.
    pub(crate) fn step_outside_terms(&mut self, from: PeerId, message: Message) -> Option<Message> {
        let Message { term, body } = &message;
        match *body {
            Body::PreVote { campaign, last_index, last_term } => {
                self.on_pre_vote(from, campaign, last_index, last_term);
            }
            // The voter may not have reached our term yet.
            Body::PreVoteReply { campaign, granted } if *term <= self.term => {
                self.on_pre_vote_reply(from, campaign, granted);
            }
            Body::Vote { transfer, .. } if *term > self.term && self.refuses_campaigns(transfer) => {}
            _ => return Some(message),
        }
        None
    }
}

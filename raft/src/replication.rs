//! Replication: what a leader sends and counts, what a follower stores and acknowledges (sections 5.3 and
//! 5.4.2 of the Raft paper).
//!
//! A follower acknowledges from one place: when the host reports that more of its log is durable, or at once
//! if an append brought nothing new. The acknowledgement always names the last durable entry that equals the
//! leader's, so a later one makes up for a lost one.

use crate::{
    effects::AppendSource,
    message::{AppendOutcome, Body, Message, MessageError, Stamp},
    node::{RaftNode, State},
    progress::{Progress, ProgressState},
    quorum,
    types::{EntryMeta, Index, PeerId, Term},
};

impl RaftNode {
    /// Builds the leader's messages: a heartbeat round if one is due, and what each peer's window lets
    /// through.
    pub(crate) fn send_as_leader(&mut self) {
        let State::Leader(leadership) = &mut self.state else { return };
        let (term, commit, leader_last) = (self.term, self.commit, self.log.last());
        let effects = self.outbox.open();
        // A term that only this replica has voted for must not leave traces before that vote is durable.
        let messages =
            if self.term_durable { &mut effects.messages } else { &mut effects.messages_after_persist };
        if std::mem::take(&mut leadership.heartbeat_due) {
            leadership.round += 1;
            let stamp = Stamp { sent_at: self.now, round: leadership.round };
            for peer in leadership.peers.keys() {
                let body = Body::Heartbeat { stamp, commit };
                messages.push((*peer, Message { term, body }));
            }
        }
        let round = leadership.round;
        let stamp = Stamp { sent_at: self.now, round };
        for (peer, progress) in &mut leadership.peers {
            while let Some((entries_left, bytes_left)) =
                progress.window(self.config.inflight_entries_max, self.config.inflight_bytes_max)
            {
                if progress.state() == ProgressState::Replicate && progress.next() > leader_last {
                    break;
                }
                let prev_index = progress.next() - 1;
                let Some(prev_term) = self.log.term_at(prev_index) else {
                    progress.become_snapshot();
                    effects.snapshot_wanted.push(*peer);
                    break;
                };
                let count_max = entries_left.min(self.config.append_entries_max);
                let bytes_max = bytes_left.min(self.config.append_bytes_max);
                let entries = self.log.entries(progress.next(), count_max, bytes_max);
                // Of an entry whose size is forgotten assume that it is not small.
                let unknown_bytes = self.config.append_bytes_max / 16;
                let bytes = entries.iter().map(|entry| match entry.bytes {
                    EntryMeta::UNKNOWN_BYTES => unknown_bytes,
                    bytes => u64::from(bytes),
                });
                progress.sent(entries.len(), bytes.sum(), round);
                let body = Body::Append { prev_index, prev_term, commit, leader_last, stamp, entries };
                messages.push((*peer, Message { term, body }));
            }
        }
    }

    /// Commits what a quorum holds durably. Entries of earlier terms are committed along with one of this
    /// term, never by counting.
    pub(crate) fn advance_commit(&mut self) {
        let State::Leader(leadership) = &self.state else { return };
        let agreed = quorum::reached(&self.membership, |peer| {
            if peer == self.config.id {
                self.log.persisted()
            } else {
                leadership.peers.get(&peer).map_or(0, Progress::matched)
            }
        });
        let agreed = agreed.unwrap_or(0);
        if agreed > self.commit && agreed >= leadership.term_start() {
            assert!(agreed <= self.log.last(), "peers acknowledged more than there is");
            self.commit = agreed;
            self.release_reads();
        }
    }

    pub(crate) fn on_append_reply(
        &mut self,
        from: PeerId,
        stamp: Stamp,
        suspect: bool,
        outcome: AppendOutcome,
    ) -> Result<(), MessageError> {
        let State::Leader(leadership) = &mut self.state else { return Ok(()) };
        if matches!(outcome, AppendOutcome::Accepted { persisted } if persisted > self.log.last()) {
            return Err(MessageError::OutOfRange);
        }
        let Some(progress) = leadership.heard(self.now, from, stamp, suspect)? else { return Ok(()) };
        match outcome {
            AppendOutcome::Accepted { persisted } => {
                let grew = progress.accepted(persisted);
                progress.leave_snapshot(self.log.first());
                if grew {
                    self.advance_commit();
                    self.continue_transfer(from, false);
                }
            }
            AppendOutcome::Rejected { prev_index, hint_index, hint_term } => {
                let (agree_max, _) = self.log.last_not_above(hint_index, hint_term);
                progress.rejected(prev_index, agree_max);
            }
        }
        self.release_reads();
        Ok(())
    }

    pub(crate) fn on_heartbeat_reply(
        &mut self,
        from: PeerId,
        stamp: Stamp,
        suspect: bool,
        matched: Index,
        persisted: Index,
    ) -> Result<(), MessageError> {
        let State::Leader(leadership) = &mut self.state else { return Ok(()) };
        if matched > self.log.last() {
            return Err(MessageError::OutOfRange);
        }
        let Some(progress) = leadership.heard(self.now, from, stamp, suspect)? else { return Ok(()) };
        let grew = progress.heartbeat_answered(stamp.round, matched, persisted);
        progress.leave_snapshot(self.log.first());
        if grew {
            self.advance_commit();
        }
        self.continue_transfer(from, true);
        self.release_reads();
        Ok(())
    }

    pub(crate) fn on_append(
        &mut self,
        prev_index: Index,
        prev_term: Term,
        leader_commit: Index,
        leader_last: Index,
        entries: &[EntryMeta],
    ) -> Result<(), MessageError> {
        let last_new = prev_index + entries.len() as u64;
        if prev_index > self.log.last()
            || (prev_index > self.commit && self.log.term_at(prev_index) != Some(prev_term))
        {
            self.reject(prev_index, prev_term);
            return Ok(());
        }
        if self.log.term_at(prev_index).is_some_and(|term| term != prev_term) {
            return Err(MessageError::ConflictsWithCommitted);
        }
        // Entries dropped from the front of the log are committed; their terms are not known any more, nor
        // needed.
        let differs = |(index, entry): &(Index, &EntryMeta)| {
            *index >= self.log.first() && self.log.term_at(*index) != Some(entry.term)
        };
        let first_new = (prev_index + 1..).zip(entries).find(differs).map(|(index, _)| index);
        if first_new.is_some_and(|index| index <= self.commit) {
            return Err(MessageError::ConflictsWithCommitted);
        }
        if let Some(first) = first_new {
            let skip = (first - prev_index - 1) as usize;
            self.append(first, &entries[skip..], AppendSource::Message);
        }
        self.following.matched = self.following.matched.max(last_new);
        self.learn_commit(leader_commit);
        self.following.repaired_at.get_or_insert(leader_last);
        self.try_repair();
        if self.log.persisted() >= last_new {
            self.acknowledge();
        }
        Ok(())
    }

    fn reject(&mut self, prev_index: Index, prev_term: Term) {
        let Some(leader) = self.leader else { return };
        let (mut hint_index, mut hint_term) = self.log.last_not_above(prev_index, prev_term);
        if hint_index < self.commit {
            // What is committed is in every leader's log.
            hint_index = self.commit;
            hint_term = self.log.term_at(self.commit).unwrap_or(prev_term);
        }
        let outcome = AppendOutcome::Rejected { prev_index, hint_index, hint_term };
        let (stamp, suspect) = (self.following.stamp, self.suspect);
        self.send(leader, Body::AppendReply { stamp, suspect, outcome });
    }

    /// Tells the leader how much of its log is durable here.
    pub(crate) fn acknowledge(&mut self) {
        let Some(leader) = self.leader else { return };
        let persisted = self.log.persisted().min(self.following.matched);
        let (stamp, suspect) = (self.following.stamp, self.suspect);
        let outcome = AppendOutcome::Accepted { persisted };
        let body = Body::AppendReply { stamp, suspect, outcome };
        // An earlier leader could still make us replace the entries as long as we may forget this term.
        if self.term_durable {
            self.send(leader, body);
        } else {
            self.send_after_persist(leader, body);
        }
    }

    pub(crate) fn on_heartbeat(&mut self, leader_commit: Index) {
        self.learn_commit(leader_commit);
        let Some(leader) = self.leader else { return };
        let matched = self.following.matched;
        // See `acknowledge`; what is committed no leader replaces.
        let firm = if self.term_durable { matched } else { self.commit };
        let persisted = self.log.persisted().min(firm);
        let (stamp, suspect) = (self.following.stamp, self.suspect);
        self.send(leader, Body::HeartbeatReply { stamp, suspect, matched, persisted });
    }

    /// What the leader has committed is committed here as far as the logs are known to be equal.
    fn learn_commit(&mut self, leader_commit: Index) {
        self.commit = self.commit.max(leader_commit.min(self.following.matched));
    }

    /// A suspect replica is sound again when it durably has all that the leader had when they first agreed.
    pub(crate) fn try_repair(&mut self) {
        let durable = self.log.persisted().min(self.following.matched);
        if self.suspect && self.following.repaired_at.is_some_and(|index| durable >= index) {
            self.suspect = false;
            self.outbox.open().repaired = true;
            self.reset_election_deadline();
        }
    }
}

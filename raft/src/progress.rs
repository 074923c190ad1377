//! What a leader knows of one peer, and every way in which that changes.
//!
//! ```text
//!            Accepted / HeartbeatReply shows a common entry
//!   Probe ────────────────────────────────────────────────▶ Replicate
//!     ▲  ◀──────────────────────────────────────────────────   │
//!     │        Rejected, link lost                             │
//!     │                                                        │
//!     └── Snapshot ◀── the entry needed is before the log ─────┘ (from Probe too)
//! ```
//!
//! - **Probe**: where the logs agree is not known; one append at a time asks.
//! - **Replicate**: appends go out without waiting, within the window.
//! - **Snapshot**: the log no longer has what the peer needs; only heartbeats go.
//!
//! Invariants: `matched <= acked < next`; `matched` counts for commits and never exceeds what the peer has
//! said to be durable; a suspect peer's `matched` is 0.

use std::collections::VecDeque;

use crate::{
    message::Stamp,
    types::{Index, Time},
};

/// How a leader feeds a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgressState {
    /// Looking for the last common entry.
    Probe,
    /// Streaming.
    Replicate,
    /// Needs what the log no longer has.
    Snapshot,
}

/// One append that was sent and not acknowledged.
#[derive(Clone, Copy, Debug)]
struct Inflight {
    last: Index,
    entries: usize,
    bytes: u64,
    round: u64,
}

#[derive(Debug)]
pub(crate) struct Progress {
    state: ProgressState,
    /// Durable on the peer and equal to our log, as far as commits are concerned.
    matched: Index,
    /// Durable on the peer as far as the flow is concerned: also moves for a suspect peer.
    acked: Index,
    /// The next entry to send.
    next: Index,
    /// While probing: the round in which the outstanding question was asked.
    probe_round: Option<u64>,
    inflight: VecDeque<Inflight>,
    inflight_entries: usize,
    inflight_bytes: u64,
    suspect: bool,
    /// Newest send time that the peer has given back.
    confirmed_at: Option<Time>,
    /// Newest round that the peer has given back; rounds begin at 1.
    confirmed_round: u64,
    /// When we last heard anything of this term from it.
    heard_at: Time,
}

impl Progress {
    /// A peer of a new leader whose first own entry is `next`. It counts as heard of: the election was just
    /// won.
    pub(crate) fn new(next: Index, now: Time) -> Progress {
        Progress {
            state: ProgressState::Probe,
            matched: 0,
            acked: 0,
            next,
            probe_round: None,
            inflight: VecDeque::new(),
            inflight_entries: 0,
            inflight_bytes: 0,
            suspect: false,
            confirmed_at: None,
            confirmed_round: 0,
            heard_at: now,
        }
    }

    pub(crate) fn state(&self) -> ProgressState {
        self.state
    }

    pub(crate) fn matched(&self) -> Index {
        self.matched
    }

    pub(crate) fn next(&self) -> Index {
        self.next
    }

    pub(crate) fn suspect(&self) -> bool {
        self.suspect
    }

    /// When we sent the newest message that the peer is known to have received.
    pub(crate) fn confirmed_at(&self) -> Option<Time> {
        self.confirmed_at
    }

    /// The newest round that the peer is known to have received a message of.
    pub(crate) fn confirmed_round(&self) -> u64 {
        self.confirmed_round
    }

    pub(crate) fn heard_at(&self) -> Time {
        self.heard_at
    }

    pub(crate) fn inflight_entries(&self) -> usize {
        self.inflight_entries
    }

    pub(crate) fn inflight_bytes(&self) -> u64 {
        self.inflight_bytes
    }

    /// The peer answered: it was reachable, knows of our leadership since `stamp`, and is suspect or not.
    pub(crate) fn heard(&mut self, now: Time, stamp: Stamp, suspect: bool) {
        self.heard_at = self.heard_at.max(now);
        self.confirmed_at = self.confirmed_at.max(Some(stamp.sent_at));
        self.confirmed_round = self.confirmed_round.max(stamp.round);
        self.suspect = suspect;
        if suspect {
            // It may have lost what it once acknowledged.
            self.matched = 0;
        }
    }

    /// How many entries and bytes the next append may have; `None` if nothing may be sent now. The window may
    /// be exceeded by one entry, so that a large one can pass.
    pub(crate) fn window(&self, entries_max: usize, bytes_max: u64) -> Option<(usize, u64)> {
        match self.state {
            ProgressState::Probe if self.probe_round.is_none() => Some((entries_max, bytes_max)),
            ProgressState::Replicate => {
                let entries = entries_max.saturating_sub(self.inflight_entries);
                let bytes = bytes_max.saturating_sub(self.inflight_bytes);
                (entries > 0 && bytes > 0).then_some((entries, bytes))
            }
            ProgressState::Probe | ProgressState::Snapshot => None,
        }
    }

    /// An append with `entries` entries of `bytes` bytes from `next` on (none: only a question) goes out.
    pub(crate) fn sent(&mut self, entries: usize, bytes: u64, round: u64) {
        match self.state {
            ProgressState::Probe => self.probe_round = Some(round),
            ProgressState::Replicate => {
                self.next += entries as u64;
                self.inflight.push_back(Inflight { last: self.next - 1, entries, bytes, round });
                self.inflight_entries += entries;
                self.inflight_bytes += bytes;
            }
            ProgressState::Snapshot => panic!("nothing is sent to a peer that waits for a snapshot"),
        }
    }

    /// The peer's durable log equals ours up to `persisted`. Returns whether `matched` grew.
    pub(crate) fn accepted(&mut self, persisted: Index) -> bool {
        self.advance_acked(persisted);
        if self.state == ProgressState::Probe {
            self.become_replicate(self.acked);
        }
        self.count(persisted)
    }

    /// The logs do not agree at `prev_index`; `agree_max` is the last entry at which they still may. Returns
    /// false if this is an old answer that says nothing new.
    pub(crate) fn rejected(&mut self, prev_index: Index, agree_max: Index) -> bool {
        if self.suspect {
            self.acked = 0;
        }
        let old = match self.state {
            ProgressState::Probe => prev_index + 1 != self.next || prev_index <= self.acked,
            ProgressState::Replicate => prev_index <= self.acked,
            ProgressState::Snapshot => true,
        };
        if !old {
            self.become_probe(agree_max.min(prev_index.saturating_sub(1)));
        }
        !old
    }

    /// The peer answered a heartbeat: up to `matched` its log is known to equal ours, `persisted` of it
    /// durably. Appends sent before that heartbeat which the peer does not have were lost. Returns whether
    /// `matched` grew.
    pub(crate) fn heartbeat_answered(&mut self, round: u64, matched: Index, persisted: Index) -> bool {
        self.advance_acked(persisted);
        match self.state {
            ProgressState::Probe if self.probe_round.is_some_and(|asked| asked < round) => {
                if matched + 1 >= self.next {
                    self.become_replicate(matched);
                } else {
                    self.probe_round = None;
                }
            }
            ProgressState::Replicate => {
                let common = matched.max(self.acked);
                let overdue = self.inflight.iter().any(|sent| sent.round < round && sent.last > common);
                // The peer had more when it last answered, and forgot it in a crash.
                let oldest =
                    self.inflight.front().map_or(self.next, |sent| sent.last + 1 - sent.entries as u64);
                if overdue || oldest > common + 1 {
                    self.next = common + 1;
                    while self.inflight.back().is_some_and(|sent| sent.last > common) {
                        self.forget_newest();
                    }
                }
            }
            ProgressState::Probe | ProgressState::Snapshot => {}
        }
        self.count(persisted)
    }

    /// The link was lost: whatever was under way may never arrive.
    pub(crate) fn unreachable(&mut self) {
        match self.state {
            ProgressState::Replicate => self.become_probe(self.acked),
            ProgressState::Probe => self.probe_round = None,
            ProgressState::Snapshot => {}
        }
    }

    /// The entry to send next is no longer in the log.
    pub(crate) fn become_snapshot(&mut self) {
        self.state = ProgressState::Snapshot;
        self.probe_round = None;
        self.clear_inflight();
    }

    /// The log begins at `first`: a peer that waited for a snapshot and got it from the host can be fed
    /// again.
    pub(crate) fn leave_snapshot(&mut self, first: Index) {
        if self.state == ProgressState::Snapshot && self.acked + 1 >= first {
            self.become_replicate(self.acked);
        }
    }

    fn become_probe(&mut self, agree_max: Index) {
        self.state = ProgressState::Probe;
        self.next = agree_max.max(self.acked) + 1;
        self.probe_round = None;
        self.clear_inflight();
    }

    fn become_replicate(&mut self, common: Index) {
        self.state = ProgressState::Replicate;
        self.next = common + 1;
        self.probe_round = None;
        self.clear_inflight();
    }

    /// Moves what the flow counts as received. A suspect peer may have less than it once had.
    fn advance_acked(&mut self, persisted: Index) {
        self.acked = if self.suspect { persisted } else { self.acked.max(persisted) };
        self.next = self.next.max(self.acked + 1);
        while self.inflight.front().is_some_and(|sent| sent.last <= self.acked) {
            if let Some(sent) = self.inflight.pop_front() {
                self.inflight_entries -= sent.entries;
                self.inflight_bytes -= sent.bytes;
            }
        }
    }

    fn count(&mut self, persisted: Index) -> bool {
        if self.suspect || persisted <= self.matched {
            return false;
        }
        self.matched = persisted;
        true
    }

    fn forget_newest(&mut self) {
        if let Some(sent) = self.inflight.pop_back() {
            self.inflight_entries -= sent.entries;
            self.inflight_bytes -= sent.bytes;
        }
    }

    fn clear_inflight(&mut self) {
        self.inflight.clear();
        self.inflight_entries = 0;
        self.inflight_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A peer of a leader whose log has 9 entries and whose first own entry is 10.
    fn fresh() -> Progress {
        Progress::new(10, Time(0))
    }

    /// The same peer, streaming: 9 matches, appends of 2 and 3 entries of 10 bytes each are under way in
    /// round 1.
    fn streaming() -> Progress {
        let mut progress = fresh();
        progress.sent(1, 0, 1);
        assert!(progress.accepted(9));
        progress.sent(2, 20, 1);
        progress.sent(3, 30, 1);
        progress
    }

    fn place(progress: &Progress) -> (ProgressState, Index, Index, usize, u64) {
        let (entries, bytes) = (progress.inflight_entries(), progress.inflight_bytes());
        (progress.state(), progress.matched(), progress.next(), entries, bytes)
    }

    use ProgressState::{Probe, Replicate, Snapshot};

    #[test]
    fn one_question_at_a_time() {
        let mut progress = fresh();
        assert_eq!(progress.window(5, 100), Some((5, 100)));
        progress.sent(1, 0, 1);
        assert_eq!(progress.window(5, 100), None);
        assert!(!progress.rejected(7, 5), "an answer to some other question");
        assert_eq!(progress.window(5, 100), None);
        assert!(progress.rejected(9, 6));
        assert_eq!(place(&progress), (Probe, 0, 7, 0, 0));
        assert_eq!(progress.window(5, 100), Some((5, 100)));
        // A hint at or above what was refused does not stop the search.
        progress.sent(1, 0, 1);
        assert!(progress.rejected(6, 6));
        assert_eq!(place(&progress), (Probe, 0, 6, 0, 0));
    }

    #[test]
    fn a_lost_question_is_asked_again_after_a_heartbeat() {
        let mut progress = fresh();
        progress.sent(1, 0, 4);
        progress.heartbeat_answered(4, 3, 3);
        assert_eq!(progress.window(5, 100), None, "it may have left after the heartbeat of round 4");
        progress.heartbeat_answered(5, 3, 3);
        assert_eq!(progress.window(5, 100), Some((5, 100)));
        // Or it was not lost, and only the peer's disk is slow.
        progress.sent(1, 0, 5);
        progress.heartbeat_answered(6, 10, 3);
        assert_eq!(place(&progress), (Replicate, 3, 11, 0, 0));
    }

    #[test]
    fn the_window_closes_and_opens() {
        let mut progress = streaming();
        assert_eq!(place(&progress), (Replicate, 9, 15, 5, 50));
        assert_eq!(progress.window(7, 60), Some((2, 10)));
        assert_eq!((progress.window(5, 60), progress.window(7, 50)), (None, None));
        assert!(progress.accepted(11));
        assert_eq!(place(&progress), (Replicate, 11, 15, 3, 30));
        assert!(progress.accepted(13), "part of an append");
        assert_eq!(place(&progress), (Replicate, 13, 15, 3, 30));
        assert!(!progress.accepted(11), "late");
        assert!(progress.accepted(14));
        assert_eq!(place(&progress), (Replicate, 14, 15, 0, 0));
    }

    #[test]
    fn a_refusal_stops_the_stream_unless_it_is_old() {
        let mut progress = streaming();
        assert!(!progress.rejected(8, 4), "the peer has acknowledged 9 since");
        assert_eq!(place(&progress), (Replicate, 9, 15, 5, 50));
        assert!(progress.rejected(11, 9));
        assert_eq!(place(&progress), (Probe, 9, 10, 0, 0));
        assert!(!progress.rejected(9, 4), "it cannot lack what it acknowledged");
    }

    #[test]
    fn what_a_heartbeat_shows_to_be_lost_is_sent_again() {
        let mut progress = streaming();
        progress.heartbeat_answered(1, 9, 9);
        assert_eq!(progress.next(), 15, "the appends left after that heartbeat");
        progress.heartbeat_answered(2, 14, 9);
        assert_eq!(progress.next(), 15, "they arrived");
        progress.heartbeat_answered(2, 11, 9);
        assert_eq!(place(&progress), (Replicate, 9, 12, 2, 20));
        // The peer crashed and forgot what it had not written: nothing is in flight, yet it lacks 10 and 11.
        let mut progress = fresh();
        progress.sent(1, 0, 1);
        progress.heartbeat_answered(2, 11, 9);
        assert_eq!(place(&progress), (Replicate, 9, 12, 0, 0));
        progress.heartbeat_answered(3, 9, 9);
        assert_eq!(place(&progress), (Replicate, 9, 10, 0, 0));
    }

    #[test]
    fn a_lost_link_means_asking_again() {
        let mut progress = streaming();
        progress.unreachable();
        assert_eq!(place(&progress), (Probe, 9, 10, 0, 0));
        progress.sent(2, 20, 1);
        progress.unreachable();
        assert_eq!(progress.window(5, 100), Some((5, 100)));
    }

    #[test]
    fn a_suspect_peer_is_fed_but_does_not_count() {
        let mut progress = streaming();
        progress.heard(Time(5), Stamp::default(), true);
        assert_eq!(progress.matched(), 0);
        assert!(progress.rejected(14, 3), "it may lack what it acknowledged");
        assert_eq!(place(&progress), (Probe, 0, 4, 0, 0));
        progress.sent(5, 50, 1);
        assert!(!progress.accepted(8));
        assert_eq!(place(&progress), (Replicate, 0, 9, 0, 0));
        progress.heard(Time(6), Stamp::default(), false);
        assert!(progress.accepted(9));
        assert_eq!(place(&progress), (Replicate, 9, 10, 0, 0));
    }

    #[test]
    fn a_peer_that_needs_a_snapshot_waits_for_it() {
        let mut progress = streaming();
        progress.become_snapshot();
        assert_eq!((place(&progress), progress.window(5, 100)), ((Snapshot, 9, 15, 0, 0), None));
        assert!(!progress.rejected(14, 3));
        progress.leave_snapshot(20);
        assert_eq!(progress.state(), Snapshot);
        assert!(progress.heartbeat_answered(3, 19, 19));
        progress.leave_snapshot(20);
        assert_eq!(place(&progress), (Replicate, 19, 20, 0, 0));
    }
}

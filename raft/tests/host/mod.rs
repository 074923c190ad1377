//! A host for one replica, as small as it can be: a disk that keeps three states apart (handed to it,
//! durable, reported as durable) and a state machine that only remembers how far it got.
//!
//! Both the scenario driver and the simulator run it; they differ in who decides when writes complete and
//! messages arrive.

#![allow(dead_code, reason = "each test target uses its own part")]

use std::collections::{BTreeMap, VecDeque};

use terrane_raft::{
    AppendSource, Config, Effects, EntryKind, EntryMeta, HardState, Index, Membership, Message, PeerId,
    RaftNode, Restored, Term, TermRun, Time,
};

/// A stored entry; `payload` stands for its bytes and is unique to each proposal, 0 for a leader's first
/// entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) term: Term,
    pub(crate) kind: EntryKind,
    pub(crate) bytes: u32,
    pub(crate) payload: u64,
}

/// A message under way, with the payloads of its entries.
#[derive(Clone, Debug)]
pub(crate) struct Envelope {
    pub(crate) from: PeerId,
    pub(crate) to: PeerId,
    pub(crate) message: Message,
    pub(crate) payloads: Vec<u64>,
}

/// One unit of work for the disk, and what may happen once it is durable.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) hard_state: Option<HardState>,
    pub(crate) append: Option<(Index, Vec<Entry>)>,
    pub(crate) then_send: Vec<Envelope>,
}

/// What survives a crash, and what is on its way to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) hard_state: HardState,
    /// Entry `i` is at position `i - 1`.
    pub(crate) log: Vec<Entry>,
    pub(crate) writing: VecDeque<Write>,
    /// Durable, but the node was not told.
    pub(crate) unreported: VecDeque<Write>,
    pub(crate) suspect: bool,
}

impl Disk {
    /// The oldest write becomes durable.
    pub(crate) fn complete_one(&mut self) -> bool {
        let Some(write) = self.writing.pop_front() else { return false };
        if let Some(hard_state) = write.hard_state {
            self.hard_state = hard_state;
        }
        if let Some((first, entries)) = &write.append {
            self.log.truncate(*first as usize - 1);
            assert_eq!(self.log.len() as u64, first - 1, "an append left a gap");
            self.log.extend_from_slice(entries);
        }
        self.unreported.push_back(write);
        true
    }

    pub(crate) fn holds(&self, index: Index, term: Term) -> bool {
        index == 0 || self.log.get(index as usize - 1).is_some_and(|entry| entry.term == term)
    }
}

/// One replica and its host.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) config: Config,
    pub(crate) membership: Membership,
    pub(crate) disk: Disk,
    /// The log as the node believes it to be, durable or not.
    pub(crate) log: Vec<Entry>,
    /// `None` while crashed.
    pub(crate) node: Option<RaftNode>,
    pub(crate) applied: Index,
    proposals: BTreeMap<Index, u64>,
}

/// What a node wanted at one time, after the host has taken care of storage and of attaching payloads.
pub(crate) struct Turn {
    /// `messages` and `messages_after_persist` are as the node gave them.
    pub(crate) effects: Effects,
    pub(crate) outgoing: Vec<Envelope>,
    /// Entries the state machine took in: (index, entry).
    pub(crate) applied: Vec<(Index, Entry)>,
}

impl Replica {
    pub(crate) fn new(config: Config, membership: Membership) -> Replica {
        Replica {
            config,
            membership,
            disk: Disk::default(),
            log: Vec::new(),
            node: None,
            applied: 0,
            proposals: BTreeMap::new(),
        }
    }

    pub(crate) fn id(&self) -> PeerId {
        self.config.id
    }

    /// Starts from what is durable; the state machine holds the effects up to `applied`.
    pub(crate) fn start(&mut self, now: Time, applied: Index, rejoining: bool) {
        let mut runs: Vec<TermRun> = Vec::new();
        for (index, entry) in (1..).zip(&self.disk.log) {
            if runs.last().is_none_or(|run| run.term != entry.term) {
                runs.push(TermRun { term: entry.term, first: index });
            }
        }
        let restored = Restored {
            hard_state: self.disk.hard_state,
            runs,
            first_index: 1,
            last_index: self.disk.log.len() as u64,
            applied,
            membership: self.membership.clone(),
            suspect: self.disk.suspect,
            rejoining,
        };
        self.applied = applied;
        self.log = self.disk.log.clone();
        self.node =
            Some(RaftNode::new(self.config.clone(), restored, now).expect("the disk holds a valid state"));
    }

    /// Loses all that is not durable.
    pub(crate) fn crash(&mut self) {
        self.node = None;
        self.disk.writing.clear();
        self.disk.unreported.clear();
        self.proposals.clear();
    }

    pub(crate) fn step(&mut self, now: Time, envelope: &Envelope) -> Vec<Turn> {
        let Some(node) = &mut self.node else { return Vec::new() };
        node.step(now, envelope.from, envelope.message.clone());
        self.turns(now, Some(envelope))
    }

    /// Proposes one entry for each payload; `None` if the node refused.
    pub(crate) fn propose(&mut self, now: Time, payloads: &[u64], bytes: u32) -> Option<Vec<Turn>> {
        let node = self.node.as_mut()?;
        let entries = vec![(EntryKind::Ops, bytes); payloads.len()];
        let proposed = node.propose(now, &entries).ok()?;
        for (index, payload) in (proposed.first..).zip(payloads) {
            self.proposals.insert(index, *payload);
        }
        Some(self.turns(now, None))
    }

    /// Any other call.
    pub(crate) fn call(&mut self, now: Time, call: impl FnOnce(&mut RaftNode)) -> Vec<Turn> {
        let Some(node) = &mut self.node else { return Vec::new() };
        call(node);
        self.turns(now, None)
    }

    /// Tells the node of the oldest write that it does not know to be durable, and sends what waited for it.
    pub(crate) fn report_one(&mut self, now: Time) -> Option<(Vec<Envelope>, Vec<Turn>)> {
        let write = self.disk.unreported.pop_front()?;
        let turns = match &write.append {
            Some((first, entries)) => {
                let last = entries[entries.len() - 1];
                let index = first + entries.len() as u64 - 1;
                self.call(now, |node| node.on_persisted(now, last.term, index))
            }
            None => Vec::new(),
        };
        // The host checks again when it attaches payloads: the log may have changed since.
        let sent = write.then_send.into_iter().filter(|envelope| self.still_true(envelope)).collect();
        Some((sent, turns))
    }

    fn still_true(&self, envelope: &Envelope) -> bool {
        let Some((first, entries)) = envelope.message.entries_range() else { return true };
        (first..).zip(entries).all(|(index, meta)| {
            self.log.get(index as usize - 1).is_some_and(|entry| entry.term == meta.term)
        })
    }

    fn turns(&mut self, now: Time, stepped: Option<&Envelope>) -> Vec<Turn> {
        let mut turns = Vec::new();
        loop {
            let node = self.node.as_mut().expect("running");
            let effects = node.take_effects();
            if effects.is_empty() {
                return turns;
            }
            let turn = self.carry_out(now, effects, stepped);
            turns.push(turn);
        }
    }

    fn carry_out(&mut self, now: Time, effects: Effects, stepped: Option<&Envelope>) -> Turn {
        let append = effects.append.as_ref().map(|append| {
            let entries: Vec<Entry> = (append.first..)
                .zip(&append.entries)
                .map(|(index, meta)| {
                    let payload = match append.source {
                        AppendSource::Message => payload_in(stepped, index, meta),
                        AppendSource::Proposal if meta.kind == EntryKind::Noop => 0,
                        AppendSource::Proposal => {
                            self.proposals.remove(&index).expect("an entry nobody proposed")
                        }
                    };
                    Entry { term: meta.term, kind: meta.kind, bytes: meta.bytes, payload }
                })
                .collect();
            self.log.truncate(append.first as usize - 1);
            assert_eq!(self.log.len() as u64, append.first - 1, "an append left a gap");
            self.log.extend_from_slice(&entries);
            (append.first, entries)
        });
        let mut outgoing: Vec<Envelope> =
            effects.messages.iter().map(|(to, message)| self.envelope(*to, message)).collect();
        let then_send: Vec<Envelope> =
            effects.messages_after_persist.iter().map(|(to, message)| self.envelope(*to, message)).collect();
        let nothing_under_way = self.disk.writing.is_empty() && self.disk.unreported.is_empty();
        if effects.hard_state.is_none() && append.is_none() && nothing_under_way {
            outgoing.extend(then_send);
        } else if effects.hard_state.is_some() || append.is_some() || !then_send.is_empty() {
            self.disk.writing.push_back(Write { hard_state: effects.hard_state, append, then_send });
        }
        if effects.repaired {
            self.disk.suspect = false;
        }
        let mut applied = Vec::new();
        if let Some(commit) = effects.commit {
            for index in self.applied + 1..=commit {
                applied.push((index, self.log[index as usize - 1]));
            }
            self.applied = self.applied.max(commit);
            self.node.as_mut().expect("running").on_applied(now, self.applied);
        }
        Turn { effects, outgoing, applied }
    }

    fn envelope(&self, to: PeerId, message: &Message) -> Envelope {
        let mut message = message.clone();
        let mut payloads = Vec::new();
        if let Some((first, entries)) = message.entries_mut() {
            for (index, meta) in (first..).zip(entries) {
                let entry = self.log[index as usize - 1];
                assert_eq!(entry.term, meta.term, "the node sends an entry that is not in its log");
                assert!(
                    meta.bytes == EntryMeta::UNKNOWN_BYTES
                        || (meta.bytes, meta.kind) == (entry.bytes, entry.kind),
                    "the node remembers an entry wrongly"
                );
                (meta.bytes, meta.kind) = (entry.bytes, entry.kind);
                payloads.push(entry.payload);
            }
        }
        Envelope { from: self.id(), to, message, payloads }
    }
}

fn payload_in(stepped: Option<&Envelope>, index: Index, meta: &EntryMeta) -> u64 {
    let envelope = stepped.expect("entries came with a message");
    let (first, entries) = envelope.message.entries_range().expect("the message has entries");
    let position = (index - first) as usize;
    assert_eq!(entries[position], *meta, "the node stores what was not sent");
    envelope.payloads[position]
}

//! Groups of replicas under a seeded storm: messages lost, doubled, delayed and reordered; links cut, also
//! one way; crashes that lose what was not durable; pauses; clocks that drift to the stated bound; damaged
//! disks; leaders moved at will. After every event the properties of `Laws` are checked, and at the end, when
//! the storm is over, the group must work again.
//!
//! `TERRANE_SEED=n cargo test -p terrane-raft --test simulation` replays one seed, `TERRANE_SEEDS=n` runs
//! more of them.

mod host;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use host::{Entry, Envelope, Replica, Turn};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use terrane_raft::{
    AppendSource, Config, HardState, Index, Membership, PeerId, Role, Term, Time,
    quorum::{VoteResult, vote_result},
};

const MS: u64 = 1_000_000;
const ELECTION: u64 = 100 * MS;
const DRIFT_PPM: u32 = 50_000;
const STORM: u64 = 15_000 * MS;
const CALM: u64 = 4_000 * MS;
const SEEDS: u64 = 400;

/// A clock that runs fast or slow, and shows some other time.
#[derive(Clone, Copy, Debug)]
struct Clock {
    offset: u64,
    /// Local nanoseconds per million true ones.
    rate: u64,
}

impl Clock {
    fn local(self, at: u64) -> Time {
        Time(self.offset + (u128::from(at) * u128::from(self.rate) / 1_000_000) as u64)
    }

    /// The first true time at which the clock shows `local` or more.
    fn when(self, local: Time) -> u64 {
        let past = u128::from(local.0.saturating_sub(self.offset));
        u64::try_from((past * 1_000_000).div_ceil(u128::from(self.rate))).unwrap_or(u64::MAX)
    }
}

#[derive(Debug)]
enum Event {
    Deliver(Envelope),
    /// The flush of the oldest `writes` writes is done.
    Flushed {
        id: PeerId,
        life: u64,
        writes: usize,
    },
    Report {
        id: PeerId,
        life: u64,
    },
    Propose,
    Read,
    Fault,
    Campaigns,
    Heal,
    Restart {
        id: PeerId,
    },
}

#[derive(Debug)]
struct Node {
    replica: Replica,
    clock: Clock,
    /// Counts starts, so that events of an earlier life are void.
    life: u64,
    paused_until: u64,
    flushing: bool,
    report_free_at: u64,
}

/// What must hold at every moment; remembers what it needs for that.
#[derive(Debug, Default)]
struct Laws {
    /// Election safety: the one leader of each term.
    leaders: BTreeMap<Term, PeerId>,
    /// Log matching: an entry's index and term determine its content and the term of the entry before, hence
    /// by induction everything before. An entry exists once it is durable or was received: what a leader that
    /// stands alone loses in a crash, nobody has seen.
    entries: BTreeMap<(Index, Term), (u64, Term)>,
    /// State machine safety and leader completeness: what a leader first committed at each index, and its
    /// term then.
    committed: Vec<(Entry, Term)>,
    /// How much was committed when each read arrived.
    reads: BTreeMap<u64, Index>,
}

impl Laws {
    fn on_stored(&mut self, log: &[Entry], first: Index) {
        for index in first..=log.len() as u64 {
            let entry = log[index as usize - 1];
            let before = if index == 1 { 0 } else { log[index as usize - 2].term };
            let seen = *self.entries.entry((index, entry.term)).or_insert((entry.payload, before));
            assert_eq!(seen, (entry.payload, before), "log matching: entry {index} of term {}", entry.term);
        }
    }

    fn on_leader(&mut self, id: PeerId, term: Term, log: &[Entry]) {
        let leader = *self.leaders.entry(term).or_insert(id);
        assert_eq!(leader, id, "election safety: two leaders in term {term}");
        for (index, (entry, committed_in)) in (1u64..).zip(&self.committed) {
            if *committed_in < term {
                assert_eq!(
                    log.get(index as usize - 1),
                    Some(entry),
                    "leader completeness: leader {id} of term {term} lacks entry {index}"
                );
            }
        }
    }

    fn on_applied(&mut self, index: Index, entry: Entry, leads_in: Option<Term>) {
        let position = index as usize - 1;
        if position == self.committed.len() {
            let term = leads_in.expect("a follower committed before any leader did");
            self.committed.push((entry, term));
        }
        assert_eq!(self.committed[position].0, entry, "state machine safety at entry {index}");
    }
}

/// How often things happened: a storm in which they never do proves nothing.
#[derive(Debug, Default)]
struct Tally {
    elections: u64,
    commits: u64,
    commits_before_own_disk: u64,
    truncations: u64,
    lease_reads: u64,
    quorum_reads: u64,
    reads_failed: u64,
    crashes: u64,
    transfers: u64,
    repairs: u64,
    messages: u64,
    hash: u64,
}

#[derive(Debug)]
struct Storm {
    rng: Pcg64,
    now: u64,
    nodes: BTreeMap<PeerId, Node>,
    membership: Membership,
    events: BTreeMap<(u64, u64), Event>,
    next_event: u64,
    next_payload: u64,
    next_read: u64,
    cut: BTreeSet<(PeerId, PeerId)>,
    loss_percent: u32,
    double_percent: u32,
    delay_max: u64,
    /// Replicas campaign as soon as they may.
    eager: bool,
    /// Between faults.
    calm_max: u64,
    disk_max: u64,
    over: bool,
    damaged: Option<PeerId>,
    laws: Laws,
    tally: Tally,
}

impl Storm {
    fn new(seed: u64) -> Storm {
        let mut rng = Pcg64::seed_from_u64(seed);
        let ids = |range: std::ops::RangeInclusive<u64>| range.map(PeerId).collect::<BTreeSet<_>>();
        let mut membership = Membership {
            voters: ids(1..=[1, 2, 3, 3, 3, 3, 4, 5][rng.random_range(0..8usize)]),
            ..Membership::default()
        };
        if rng.random_range(0..8u32) == 0 {
            membership.voters_outgoing = ids(2..=4);
        }
        if rng.random_range(0..3u32) == 0 {
            membership.learners.insert(PeerId(9));
        }
        let mut storm = Storm {
            now: 0,
            nodes: BTreeMap::new(),
            membership,
            events: BTreeMap::new(),
            next_event: 0,
            next_payload: 1,
            next_read: 1,
            cut: BTreeSet::new(),
            loss_percent: rng.random_range(0..15),
            double_percent: rng.random_range(0..10),
            delay_max: [MS, 5 * MS, 40 * MS, ELECTION / 2][rng.random_range(0..4usize)],
            calm_max: [40 * MS, 200 * MS, 600 * MS][rng.random_range(0..3usize)],
            disk_max: [MS, 10 * MS, 60 * MS, ELECTION][rng.random_range(0..4usize)],
            eager: rng.random_range(0..2u32) == 0,
            over: false,
            damaged: None,
            laws: Laws::default(),
            tally: Tally::default(),
            rng,
        };
        for id in storm.membership.members().collect::<Vec<_>>() {
            let drift = u64::from(DRIFT_PPM);
            let rates = [1_000_000 - drift, 1_000_000, 1_000_000 + drift];
            let config = Config {
                election_timeout: Duration::from_nanos(ELECTION),
                heartbeat_interval: Duration::from_nanos(ELECTION / 5),
                clock_drift_ppm: DRIFT_PPM,
                inflight_entries_max: storm.rng.random_range(1..20),
                inflight_bytes_max: storm.rng.random_range(1..2000),
                append_bytes_max: storm.rng.random_range(1..400),
                append_entries_max: storm.rng.random_range(1..8),
                seed,
                ..Config::new(id)
            };
            let node = Node {
                replica: Replica::new(config, storm.membership.clone()),
                clock: Clock {
                    offset: storm.rng.random_range(0..1000) * MS,
                    rate: rates[storm.rng.random_range(0..3usize)],
                },
                life: 0,
                paused_until: 0,
                flushing: false,
                report_free_at: 0,
            };
            storm.nodes.insert(id, node);
            storm.start(id, 0, false);
        }
        storm.schedule(0, Event::Propose);
        storm.schedule(0, Event::Read);
        storm.schedule(20 * MS, Event::Fault);
        if storm.eager {
            storm.schedule(0, Event::Campaigns);
        }
        storm
    }

    fn schedule(&mut self, after: u64, event: Event) {
        self.next_event += 1;
        self.events.insert((self.now + after, self.next_event), event);
    }

    fn start(&mut self, id: PeerId, applied: Index, rejoining: bool) {
        let node = self.nodes.get_mut(&id).expect("a member");
        node.life += 1;
        node.paused_until = 0;
        node.flushing = false;
        node.report_free_at = self.now;
        node.replica.start(node.clock.local(self.now), applied, rejoining);
    }

    fn running(&self) -> Vec<PeerId> {
        let running = self.nodes.iter().filter(|(_, node)| node.replica.node.is_some());
        running.map(|(id, _)| *id).collect()
    }

    fn any(&mut self, ids: &[PeerId]) -> Option<PeerId> {
        (!ids.is_empty()).then(|| ids[self.rng.random_range(0..ids.len())])
    }

    /// Runs until `end` or until `done`.
    fn run(&mut self, end: u64, done: impl Fn(&Storm) -> bool) -> bool {
        while !done(self) {
            let tick = self
                .nodes
                .iter()
                .filter_map(|(id, node)| {
                    let deadline = node.clock.when(node.replica.node.as_ref()?.next_deadline());
                    Some((deadline.max(node.paused_until).max(self.now), *id))
                })
                .min();
            let event = self.events.keys().next().copied();
            let ticks_first = match (tick, event) {
                (Some((at, _)), Some((event_at, _))) => at < event_at,
                (tick, _) => tick.is_some(),
            };
            let at = if ticks_first { tick.map(|(at, _)| at) } else { event.map(|(at, _)| at) };
            let Some(at) = at.filter(|at| *at <= end) else {
                self.now = end;
                return false;
            };
            self.now = at;
            match tick {
                Some((_, id)) if ticks_first => {
                    self.note(id.0);
                    self.call(id, |node, now| node.tick(now));
                }
                _ => {
                    let (_, event) = self.events.pop_first().expect("an event is next");
                    self.handle(event);
                }
            }
            self.check();
        }
        true
    }

    fn note(&mut self, what: u64) {
        let mixed = self.tally.hash ^ what ^ self.now.rotate_left(20);
        self.tally.hash = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
    }

    fn call(&mut self, id: PeerId, call: impl FnOnce(&mut terrane_raft::RaftNode, Time)) {
        let node = self.nodes.get_mut(&id).expect("a member");
        let now = node.clock.local(self.now);
        let turns = node.replica.call(now, |raft| call(raft, now));
        self.carry_on(id, turns);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Deliver(envelope) => {
                let to = envelope.to;
                if self.cut.contains(&(envelope.from, to)) {
                    return;
                }
                let Some(node) = self.nodes.get_mut(&to) else { return };
                if node.paused_until > self.now {
                    let wait = node.paused_until - self.now;
                    self.schedule(wait, Event::Deliver(envelope));
                    return;
                }
                let turns = node.replica.step(node.clock.local(self.now), &envelope);
                self.tally.messages += 1;
                self.note(envelope.from.0 << 8 | to.0);
                self.carry_on(to, turns);
            }
            Event::Flushed { id, life, writes } => {
                if self.nodes[&id].life != life {
                    return;
                }
                for _ in 0..writes {
                    let late = self.rng.random_range(0..self.disk_max / 4);
                    let node = self.nodes.get_mut(&id).expect("a member");
                    assert!(node.replica.disk.complete_one(), "a write that was not handed over");
                    let disk = &node.replica.disk;
                    if let Some((first, _)) = disk.unreported.back().and_then(|write| write.append.as_ref()) {
                        self.laws.on_stored(&disk.log, *first);
                    }
                    node.report_free_at = node.report_free_at.max(self.now + late);
                    let after = node.report_free_at - self.now;
                    self.schedule(after, Event::Report { id, life });
                }
                self.nodes.get_mut(&id).expect("a member").flushing = false;
                self.feed_disk(id);
            }
            Event::Report { id, life } => {
                let node = self.nodes.get_mut(&id).expect("a member");
                if node.life != life {
                    return;
                }
                if node.paused_until > self.now {
                    let wait = node.paused_until - self.now;
                    self.schedule(wait, Event::Report { id, life });
                    return;
                }
                if let Some((sent, turns)) = node.replica.report_one(node.clock.local(self.now)) {
                    self.post(sent);
                    self.carry_on(id, turns);
                }
            }
            Event::Propose => {
                let running = self.running();
                if let Some(id) = self.any(&running) {
                    let count = self.rng.random_range(1..6u64);
                    let payloads: Vec<u64> = (self.next_payload..).take(count as usize).collect();
                    self.next_payload += count;
                    let bytes = self.rng.random_range(0..100);
                    let node = self.nodes.get_mut(&id).expect("a member");
                    if node.paused_until <= self.now {
                        let turns = node.replica.propose(node.clock.local(self.now), &payloads, bytes);
                        self.carry_on(id, turns.unwrap_or_default());
                    }
                }
                let after = self.rng.random_range(0..20 * MS);
                self.schedule(after, Event::Propose);
            }
            Event::Read => {
                let running = self.running();
                if let Some(id) = self.any(&running)
                    && self.nodes[&id].paused_until <= self.now
                {
                    let context = self.next_read;
                    self.next_read += 1;
                    self.laws.reads.insert(context, self.laws.committed.len() as u64);
                    let mut accepted = false;
                    self.call(id, |raft, now| accepted = raft.read_index(now, context).is_ok());
                    if !accepted {
                        self.laws.reads.remove(&context);
                    }
                }
                let after = self.rng.random_range(0..10 * MS);
                self.schedule(after, Event::Read);
            }
            Event::Fault => {
                if !self.over {
                    self.fault();
                    let after = self.rng.random_range(0..self.calm_max);
                    self.schedule(after, Event::Fault);
                }
            }
            Event::Campaigns => {
                if !self.over {
                    let running = self.running();
                    if let Some(id) = self.any(&running)
                        && self.nodes[&id].paused_until <= self.now
                        && self.role(id) == Role::Follower
                    {
                        self.call(id, |raft, now| raft.campaign(now));
                    }
                    let after = self.rng.random_range(0..10 * MS);
                    self.schedule(after, Event::Campaigns);
                }
            }
            Event::Heal => self.cut.clear(),
            Event::Restart { id } => {
                if self.nodes[&id].replica.node.is_none() {
                    self.restart(id);
                }
            }
        }
    }

    /// Something breaks, most often at the leader, and mends again after a while.
    fn fault(&mut self) {
        let all: Vec<PeerId> = self.nodes.keys().copied().collect();
        let leader = all.iter().copied().find(|id| self.role(*id) == Role::Leader);
        let any = self.any(&all).expect("there are members");
        let other = self.any(&all).expect("there are members");
        let victim = if self.rng.random_range(0..3u32) == 0 { any } else { leader.unwrap_or(any) };
        let lasts = self.rng.random_range(0..4 * ELECTION);
        match self.rng.random_range(0..16u32) {
            0..=2 => {
                for peer in &all {
                    self.cut.insert((victim, *peer));
                    self.cut.insert((*peer, victim));
                }
                self.schedule(lasts, Event::Heal);
            }
            3 => {
                // Deaf, or mute.
                let deaf = self.rng.random_range(0..2u32) == 0;
                for peer in &all {
                    self.cut.insert(if deaf { (*peer, victim) } else { (victim, *peer) });
                }
                self.schedule(lasts, Event::Heal);
            }
            4 => {
                self.cut.insert((any, other));
                self.cut.insert((other, any));
                self.schedule(lasts, Event::Heal);
            }
            5 => {
                // Two parts, with the leader in either.
                let side: BTreeSet<PeerId> =
                    all.iter().copied().filter(|_| self.rng.random_range(0..2u32) == 0).collect();
                for a in &all {
                    for b in all.iter().filter(|b| side.contains(a) != side.contains(b)) {
                        self.cut.insert((*a, *b));
                    }
                }
                self.schedule(lasts, Event::Heal);
            }
            6..=8 => self.crash(victim),
            9 => {
                // The power fails for all of them.
                for id in &all {
                    self.crash(*id);
                }
            }
            10 | 11 => {
                let node = self.nodes.get_mut(&victim).expect("a member");
                node.paused_until = self.now + lasts;
            }
            12 | 13 => {
                let chosen = self.rng.random_range(0..2u32) == 0;
                if let Some(leader) = leader {
                    let mut started = false;
                    self.call(leader, |raft, now| {
                        started = raft.transfer_leader(now, chosen.then_some(other)).is_ok();
                    });
                    self.tally.transfers += u64::from(started);
                }
            }
            14 => {
                self.call(any, |raft, now| raft.campaign(now));
                self.call(other, |raft, now| raft.campaign(now));
            }
            _ => {
                if let Some(leader) = leader {
                    self.call(leader, |raft, now| raft.report_unreachable(now, other));
                }
            }
        }
    }

    fn crash(&mut self, id: PeerId) {
        let node = self.nodes.get_mut(&id).expect("a member");
        let Some(raft) = &node.replica.node else { return };
        // The host may have written a newer commit index at any time.
        let status = raft.status();
        let newer = status.commit.min(status.persisted).max(node.replica.disk.hard_state.commit);
        if self.rng.random_range(0..2u32) == 0 {
            node.replica.disk.hard_state.commit = newer;
        }
        node.life += 1;
        node.replica.crash();
        self.tally.crashes += 1;
        let after = self.rng.random_range(0..2 * ELECTION);
        self.schedule(after, Event::Restart { id });
        if self.damaged.is_none() && self.membership.voters.len() > 2 && self.rng.random_range(0..4u32) == 0 {
            self.damage(id);
        }
    }

    /// The disk loses records that were durable; the host notices and spends the vote.
    fn damage(&mut self, id: PeerId) {
        self.damaged = Some(id);
        let disk = &mut self.nodes.get_mut(&id).expect("a member").replica.disk;
        let keep = self.rng.random_range(0..=disk.log.len());
        disk.log.truncate(keep);
        disk.hard_state = HardState {
            vote: Some(PeerId::SPENT),
            commit: disk.hard_state.commit.min(keep as u64),
            ..disk.hard_state
        };
        disk.suspect = true;
    }

    fn restart(&mut self, id: PeerId) {
        let disk = &self.nodes[&id].replica.disk;
        let applied_max = disk.hard_state.commit.min(disk.log.len() as u64);
        let applied = self.rng.random_range(0..=applied_max);
        self.start(id, applied, true);
    }

    fn role(&self, id: PeerId) -> Role {
        self.nodes[&id].replica.node.as_ref().map_or(Role::Follower, terrane_raft::RaftNode::role)
    }

    fn carry_on(&mut self, id: PeerId, turns: Vec<Turn>) {
        for turn in turns {
            let Turn { effects, outgoing, applied } = turn;
            let node = &self.nodes[&id];
            let raft = node.replica.node.as_ref().expect("running");
            let (term, leads) = (raft.term(), raft.is_leader());
            assert!(effects.rejected.is_empty(), "{id} rejected {:?}", effects.rejected);
            if let Some(append) = &effects.append
                && append.source == AppendSource::Message
            {
                self.laws.on_stored(&node.replica.log, append.first);
            }
            if let Some(role) = effects.role
                && role.role == Role::Leader
            {
                self.tally.elections += 1;
                self.laws.on_leader(id, role.term, &node.replica.log);
            }
            let persisted = raft.status().persisted;
            for (index, entry) in applied {
                let new = index as usize > self.laws.committed.len();
                self.laws.on_applied(index, entry, leads.then_some(term));
                if new {
                    self.tally.commits += 1;
                    self.tally.commits_before_own_disk += u64::from(index > persisted);
                    // A damaged disk may have held it when it acknowledged it.
                    let holders = vote_result(&self.membership, |voter| {
                        let disk = &self.nodes[&voter].replica.disk;
                        Some(disk.suspect || disk.holds(index, entry.term))
                    });
                    assert_eq!(holders, VoteResult::Won, "entry {index} is committed but not on a quorum");
                }
            }
            let lease = raft.lease_valid(node.clock.local(self.now));
            for read in &effects.reads {
                let needed = self.laws.reads.remove(&read.context).expect("answered once");
                assert!(read.index >= needed, "a read at {} misses commits up to {needed}", read.index);
                if lease {
                    self.tally.lease_reads += 1;
                } else {
                    self.tally.quorum_reads += 1;
                }
            }
            for context in &effects.reads_failed {
                self.laws.reads.remove(context).expect("answered once");
                self.tally.reads_failed += 1;
            }
            if effects.repaired {
                self.tally.repairs += 1;
                self.damaged = None;
            }
            let truncates = effects.append.as_ref().is_some_and(|append| {
                let disk = &self.nodes[&id].replica.disk;
                append.first <= disk.log.len() as u64
            });
            self.tally.truncations += u64::from(truncates);
            self.post(outgoing);
        }
        self.feed_disk(id);
    }

    /// One flush is under way at a time; it takes all that was handed over before it began.
    fn feed_disk(&mut self, id: PeerId) {
        let node = self.nodes.get_mut(&id).expect("a member");
        let (life, writes) = (node.life, node.replica.disk.writing.len());
        if node.flushing || writes == 0 {
            return;
        }
        node.flushing = true;
        let takes = self.rng.random_range(0..self.disk_max);
        self.schedule(takes, Event::Flushed { id, life, writes });
    }

    fn post(&mut self, envelopes: Vec<Envelope>) {
        for envelope in envelopes {
            let copies = 1 + u32::from(self.rng.random_range(0..100) < self.double_percent);
            for _ in 0..copies {
                if self.rng.random_range(0..100) < self.loss_percent {
                    continue;
                }
                let slow = if self.rng.random_range(0..50u32) == 0 { 10 } else { 1 };
                let delay = self.rng.random_range(MS / 10..self.delay_max * slow);
                self.schedule(delay, Event::Deliver(envelope.clone()));
            }
        }
    }

    /// Lease safety: while a leader may answer alone, nobody leads a later term and nothing is committed that
    /// it does not know of.
    fn check(&mut self) {
        let committed = self.laws.committed.len() as u64;
        for (id, node) in &self.nodes {
            let Some(raft) = &node.replica.node else { continue };
            if !raft.lease_valid(node.clock.local(self.now)) {
                continue;
            }
            assert!(raft.commit() >= committed, "{id} holds a lease and misses committed entries");
            for (other, rival) in &self.nodes {
                let rival = rival.replica.node.as_ref();
                let rules = rival.is_some_and(|rival| rival.is_leader() && rival.term() > raft.term());
                assert!(!rules, "{id} holds a lease of term {} while {other} leads", raft.term());
            }
        }
    }

    fn end(&mut self) {
        self.over = true;
        self.cut.clear();
        self.loss_percent = 0;
        self.delay_max = MS;
        self.disk_max = MS;
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.nodes.get_mut(&id).expect("a member").paused_until = 0;
            if self.nodes[&id].replica.node.is_none() {
                self.restart(id);
            }
        }
    }

    /// Everyone agrees and has applied something that was committed after `committed`.
    fn is_well(&self, committed: usize) -> bool {
        let all = self.laws.committed.len() as u64;
        self.laws.committed.len() > committed
            && self.nodes.values().all(|node| {
                let status = node.replica.node.as_ref().expect("running").status();
                !status.suspect && node.replica.applied == all
            })
    }
}

/// Says how to see a failure again.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay: TERRANE_SEED={} cargo test -p terrane-raft --test simulation", self.0);
        }
    }
}

fn storm(seed: u64) -> Tally {
    let _replay = Replay(seed);
    let mut storm = Storm::new(seed);
    storm.run(STORM, |_| false);
    storm.end();
    let committed = storm.laws.committed.len();
    let well = storm.run(STORM + CALM, |storm| storm.is_well(committed));
    if !well {
        for node in storm.nodes.values() {
            eprintln!("{:#?}", node.replica.node.as_ref().map(terrane_raft::RaftNode::status));
        }
    }
    assert!(well, "the group did not recover when the storm was over");
    storm.tally
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

#[test]
fn the_laws_hold_in_every_storm() {
    if let Some(seed) = number("TERRANE_SEED") {
        eprintln!("{:#?}", storm(seed));
        return;
    }
    let mut sum = Tally::default();
    for seed in 0..number("TERRANE_SEEDS").unwrap_or(SEEDS) {
        let tally = storm(seed);
        sum.elections += tally.elections;
        sum.commits += tally.commits;
        sum.commits_before_own_disk += tally.commits_before_own_disk;
        sum.truncations += tally.truncations;
        sum.lease_reads += tally.lease_reads;
        sum.quorum_reads += tally.quorum_reads;
        sum.reads_failed += tally.reads_failed;
        sum.crashes += tally.crashes;
        sum.transfers += tally.transfers;
        sum.repairs += tally.repairs;
        sum.messages += tally.messages;
    }
    eprintln!("{sum:#?}");
    let all = [
        sum.elections,
        sum.commits,
        sum.commits_before_own_disk,
        sum.truncations,
        sum.lease_reads,
        sum.quorum_reads,
        sum.reads_failed,
        sum.crashes,
        sum.transfers,
        sum.repairs,
        sum.messages,
    ];
    assert!(all.iter().all(|count| *count > 0), "something never happened: {sum:#?}");
}

#[test]
fn a_seed_always_gives_the_same_storm() {
    assert_eq!(storm(7).hash, storm(7).hash);
    assert_ne!(storm(7).hash, storm(8).hash);
}

//! Crashes at any media operation, against a model of what Raft hosts do.
//!
//! The model is a cluster seen by one replica: per group, the logs of leaders past and present, of which the replica's
//! log is some prefix. What an entry holds follows from (group, index, term), as Raft's log matching has it. After
//! each crash the store must show:
//! - every change whose `Durable` resolved, unless a later change replaced it;
//! - a log that is a prefix of one that some leader had, whose payloads read back as they were;
//! - a hard state that was set, no older than the newest acknowledged one;
//! - an applied index that was known to be committed, and the values that a replay up to it gives;
//! - no damage and no suspicion: a crash never looks like damage.

mod harness;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::rc::Rc;

use bytes::Bytes;
use harness::{Node, Replay, block_on, geometry, options, seeds, small_flushes};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use terrane_engine::compression::{CompressionOptions, Decompressor, ValueCompressor};
use terrane_engine::{
    AppendError, Durable, Entry, GroupId, HardState, Lookup, RecoveredGroup, Store, StoreError, op,
};
use terrane_ocssd::{Geometry, SimMedia, SimOptions};

const GROUPS: u64 = 3;
const KEYS: u64 = 12;

thread_local! {
    static COMPRESSOR: RefCell<ValueCompressor> =
        ValueCompressor::new(CompressionOptions { level: -1, value_bytes_min: 32 }).unwrap().into();
    static DECOMPRESSOR: RefCell<Decompressor> = RefCell::default();
}

/// What the entry of (group, index, term) holds, always.
fn entry(group: GroupId, index: u64, term: u64) -> Entry {
    let mut rng = Pcg64Mcg::seed_from_u64(group.0 << 48 ^ index << 20 ^ term);
    if rng.random_ratio(1, 10) {
        return harness::noop(term);
    }
    let mut ops = op::OpsBuilder::new();
    let large = rng.random_ratio(1, 12);
    for _ in 0..if large { 1 } else { rng.random_range(1..=3) } {
        let key = format!("key{}", rng.random_range(0..KEYS));
        if rng.random_ratio(1, 5) {
            ops.delete(key.as_bytes());
        } else {
            let length = if large { 6000 } else { rng.random_range(0..700) };
            let mut value: Vec<u8> = (0..length).map(|_| rng.random()).collect();
            if length % 2 == 0 {
                value[length / 4..].fill(7);
            }
            COMPRESSOR.with_borrow_mut(|compressor| {
                ops.put_compressed(key.as_bytes(), &value, None, compressor);
            });
        }
    }
    Entry { term, kind: terrane_engine::ENTRY_OPS, payload: ops.finish() }
}

type Row = (Vec<u8>, u64);

/// A value as it was put.
fn raw(value: op::Stored<'_>) -> Vec<u8> {
    match value {
        op::Stored::Raw(value) => value.to_vec(),
        op::Stored::Compressed { stored, raw_bytes } => {
            DECOMPRESSOR.with_borrow_mut(|decompressor| decompressor.decompress(stored, raw_bytes).unwrap())
        }
    }
}

/// Live keys after applying the log's first `applied` entries: value and version.
fn applied_state(group: GroupId, log: &[u64], applied: u64) -> BTreeMap<Vec<u8>, Row> {
    let mut keys = BTreeMap::new();
    for (index, term) in (1..=applied).zip(log) {
        let entry = entry(group, index, *term);
        if entry.kind != terrane_engine::ENTRY_OPS {
            continue;
        }
        for op in op::decode(&entry.payload) {
            match op.unwrap() {
                op::Op::Put { key, value, .. } => {
                    keys.insert(key.to_vec(), (raw(value), index));
                }
                op::Op::Delete { key } => {
                    keys.remove(key);
                }
            }
        }
    }
    keys
}

fn common_prefix(a: &[u64], b: &[u64]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// What the world knows of a group; it outlives the replica's crashes.
#[derive(Default)]
struct World {
    exists: bool,
    /// The replica's log as of the last call: the term of each entry.
    log: Vec<u64>,
    /// The log of the present leader, whose term is `term`.
    leader: Option<Vec<u64>>,
    /// Logs that leaders had at some time. The replica's log is always a prefix of one of them.
    leaders: Vec<Vec<u64>>,
    /// What is committed: every later leader has it.
    committed: Vec<u64>,
    applied: u64,
    /// Where the host last let the log begin.
    front: u64,
    /// The highest term anybody was in.
    term: u64,
    /// Hard states since the one that the last recovery found (the first of them), oldest first.
    hard_states: Vec<HardState>,
    /// The log that the last recovery found.
    recovered: Vec<u64>,
    /// Calls of this life, in order.
    changes: Vec<Change>,
}

#[derive(Debug)]
struct Change {
    lsn: u64,
    what: What,
}

#[derive(Debug)]
enum What {
    Created,
    /// The log after the change, and the index from which it may have replaced another.
    Log(Vec<u64>, u64),
    /// Position in `hard_states`.
    HardState(usize),
}

/// One run of the store, from opening it to its end.
struct Life {
    node: Node,
    /// LSN counters of the changes whose `Durable` resolved.
    acknowledged: Rc<RefCell<BTreeSet<u64>>>,
    failed: Rc<RefCell<u64>>,
}

impl Life {
    fn new(node: Node) -> Self {
        Self { node, acknowledged: Rc::default(), failed: Rc::default() }
    }

    fn track(&mut self, durable: Durable<SimMedia>) {
        let (acknowledged, failed) = (Rc::clone(&self.acknowledged), Rc::clone(&self.failed));
        self.node.executor.spawn(async move {
            let lsn = durable.lsn().counter;
            match durable.await {
                Ok(()) => drop(acknowledged.borrow_mut().insert(lsn)),
                Err(_) => *failed.borrow_mut() += 1,
            }
        });
    }

    /// What was acknowledged when it ended.
    fn end(self) -> Acknowledged {
        let durable = self.node.store.durable_lsn().counter;
        let singly = self.acknowledged.borrow().clone();
        Acknowledged { durable, singly }
    }
}

/// Changes whose LSN is at most `durable`, and some others.
#[derive(Debug, Default)]
struct Acknowledged {
    durable: u64,
    singly: BTreeSet<u64>,
}

impl Acknowledged {
    fn has(&self, change: &Change) -> bool {
        change.lsn <= self.durable || self.singly.contains(&change.lsn)
    }
}

struct Model {
    groups: BTreeMap<GroupId, World>,
    rng: Pcg64Mcg,
}

impl Model {
    fn new(seed: u64) -> Self {
        let groups = (1..=GROUPS).map(|group| (GroupId(group), World::default())).collect();
        Self { groups, rng: Pcg64Mcg::seed_from_u64(seed) }
    }

    /// One call of the host, chosen by chance.
    fn step(&mut self, life: &mut Life) -> Result<(), StoreError> {
        let group = GroupId(self.rng.random_range(1..=GROUPS));
        let world = self.groups.get_mut(&group).unwrap();
        if !world.exists {
            let durable = match life.node.store.create_group(group, Bytes::from_static(b"members")) {
                Err(StoreError::Full) => return Ok(()),
                durable => durable?,
            };
            world.exists = true;
            world.hard_states = vec![HardState::default()];
            world.changes.push(Change { lsn: durable.lsn().counter, what: What::Created });
            life.track(durable);
            return Ok(());
        }
        match self.rng.random_range(0..12) {
            0..=4 => world.append(group, life, &mut self.rng),
            5..=6 => world.apply(group, life, &mut self.rng),
            7 => world.vote(group, life, &mut self.rng),
            8 => world.truncate(group, life, &mut self.rng),
            _ => {
                for _ in 0..self.rng.random_range(1..40) {
                    life.node.executor.round();
                }
                Ok(())
            }
        }
    }

    /// Checks what recovery found, and adopts it.
    fn check(&mut self, node: &Node, acknowledged: &Acknowledged) {
        let recovery = &node.recovery;
        assert!(recovery.damage.is_empty(), "a crash is not damage: {:?}", recovery.damage);
        let mut found: BTreeMap<GroupId, RecoveredGroup> =
            recovery.groups.iter().map(|group| (group.id, group.clone())).collect();
        for (id, world) in &mut self.groups {
            match found.remove(id) {
                Some(found) => world.check(&found, node, acknowledged),
                None => world.check_absent(*id, acknowledged),
            }
        }
        assert!(found.is_empty(), "groups nobody created: {found:?}");
    }
}

impl World {
    /// Follows the present leader, or a new one, as far as its entries have arrived.
    fn append(&mut self, id: GroupId, life: &mut Life, rng: &mut Pcg64Mcg) -> Result<(), StoreError> {
        let mut leader = match self.leader.take() {
            Some(leader) if rng.random_ratio(3, 4) => leader,
            _ => self.elect(rng),
        };
        leader.extend(std::iter::repeat_n(self.term, rng.random_range(0..4)));
        self.leaders.push(leader.clone());
        let common = common_prefix(&leader, &self.log);
        self.leader = Some(leader.clone());
        if common == leader.len() {
            return Ok(());
        }
        let upto = rng.random_range(common + 1..=leader.len());
        let first = common as u64 + 1;
        let entries =
            (first..).zip(&leader[common..upto]).map(|(index, term)| entry(id, index, *term)).collect();
        match life.node.store.append(id, first, entries) {
            Ok(durable) => {
                self.log.truncate(common);
                self.log.extend_from_slice(&leader[common..upto]);
                let what = What::Log(self.log.clone(), first);
                self.changes.push(Change { lsn: durable.lsn().counter, what });
                life.track(durable);
                Ok(())
            }
            Err(AppendError::Full) => Ok(()),
            Err(AppendError::Store(error)) => Err(error),
            Err(error) => panic!("{error}"),
        }
    }

    /// The log of a new leader: it has what is committed, and goes on from there or from what some replica had.
    fn elect(&mut self, rng: &mut Pcg64Mcg) -> Vec<u64> {
        let mut logs = vec![&self.committed];
        logs.extend(self.leaders.iter().chain([&self.log]).filter(|log| log.starts_with(&self.committed)));
        let mut log = logs[rng.random_range(0..logs.len())].clone();
        log.truncate(rng.random_range(self.committed.len()..=log.len()));
        self.term += 1;
        log.push(self.term);
        log
    }

    /// The leader commits something of what this replica has, and the replica applies, durable here or not.
    fn apply(&mut self, id: GroupId, life: &mut Life, rng: &mut Pcg64Mcg) -> Result<(), StoreError> {
        let Some(leader) = &self.leader else { return Ok(()) };
        let common = common_prefix(&self.log, leader);
        if common > self.committed.len() {
            let commit = rng.random_range(self.committed.len()..=common);
            self.committed = self.log[..commit].to_vec();
        }
        let known = common_prefix(&self.log, &self.committed) as u64;
        self.applied = rng.random_range(self.applied..=known.max(self.applied));
        life.node.store.apply(id, self.applied).unwrap();
        assert_eq!(life.node.store.applied(id), self.applied);
        self.check_reads(id, &life.node.store, rng);
        Ok(())
    }

    /// What can be read without waiting is right at any time.
    fn check_reads(&self, id: GroupId, store: &Store<SimMedia>, rng: &mut Pcg64Mcg) {
        let state = applied_state(id, &self.log, self.applied);
        for key in (0..KEYS).map(|key| format!("key{key}")) {
            let expected = state.get(key.as_bytes());
            assert_eq!(store.version(id, key.as_bytes()), expected.map(|(_, version)| *version));
            match store.try_get(id, key.as_bytes()) {
                Lookup::Absent => assert_eq!(None, expected, "{key}"),
                Lookup::Ready(found) => {
                    assert_eq!(Some(&(found.value.to_vec(), found.version)), expected, "{key}");
                }
                Lookup::OnMedia { .. } => assert!(expected.is_some()),
            }
        }
        let from = rng.random_range(1..=self.log.len().max(1)) as u64;
        for (index, found) in (from..).zip(store.try_entries(id, from, 10, 10_000).unwrap_or_default()) {
            assert_eq!(found, entry(id, index, self.log[index as usize - 1]));
        }
    }

    /// Nobody needs the front of the log any more.
    fn truncate(&mut self, id: GroupId, life: &Life, rng: &mut Pcg64Mcg) -> Result<(), StoreError> {
        self.front = rng.random_range(self.front.max(1)..=(self.applied + 1).max(self.front.max(1)));
        life.node.store.truncate_front(id, self.front).unwrap();
        assert!(life.node.store.first_index(id) <= self.front);
        Ok(())
    }

    fn vote(&mut self, id: GroupId, life: &mut Life, rng: &mut Pcg64Mcg) -> Result<(), StoreError> {
        let last = *self.hard_states.last().unwrap();
        if rng.random_bool(0.5) {
            self.term += 1;
            self.leader = None;
        }
        let term = self.term.max(last.term);
        let vote = if term > last.term { rng.random_range(0..4) } else { last.vote };
        let committed = common_prefix(&self.log, &self.committed) as u64;
        let commit = rng.random_range(last.commit..=committed.max(last.commit));
        let hard_state = HardState { term, vote, commit };
        let durable = match life.node.store.set_hard_state(id, hard_state) {
            Err(StoreError::Full) => return Ok(()),
            durable => durable?,
        };
        self.hard_states.push(hard_state);
        let what = What::HardState(self.hard_states.len() - 1);
        self.changes.push(Change { lsn: durable.lsn().counter, what });
        life.track(durable);
        Ok(())
    }

    fn check_absent(&mut self, id: GroupId, acknowledged: &Acknowledged) {
        let created_now = matches!(self.changes.first(), Some(Change { what: What::Created, .. }));
        assert!(!self.exists || created_now, "{id} is lost");
        let kept = self.changes.iter().find(|change| acknowledged.has(change));
        assert!(kept.is_none(), "{id} is lost, with {kept:?}");
        self.exists = false;
        self.front = 0;
        self.adopt(Vec::new(), 0, HardState::default());
    }

    fn check(&mut self, found: &RecoveredGroup, node: &Node, acknowledged: &Acknowledged) {
        let id = found.id;
        assert!(self.exists, "{id} was never created");
        assert!(!found.suspect, "a crash makes nobody suspect");
        assert_eq!(&found.membership[..], b"members");
        assert!(found.first_index <= self.front.max(1) && found.first_index > 0);
        let log = expand(found);

        // What was acknowledged is there, as far as nothing later may have replaced it.
        let mut must = std::mem::take(&mut self.recovered);
        let mut hard_state_from = 0;
        for change in &self.changes {
            match &change.what {
                What::Log(after, _) if acknowledged.has(change) => must.clone_from(after),
                What::Log(_, first) => must.truncate(*first as usize - 1),
                What::HardState(at) if acknowledged.has(change) => hard_state_from = *at,
                What::HardState(_) | What::Created => {}
            }
        }
        assert!(log.starts_with(&must), "{id}: acknowledged {must:?}, found {log:?}");
        // And nothing that no leader ever had.
        let had = log.is_empty() || self.leaders.iter().any(|leader| leader.starts_with(&log));
        assert!(had, "{id}: no leader ever had {log:?}");

        let vote = |state: &HardState| (state.term, state.vote);
        let set = self.hard_states[hard_state_from..].iter();
        let at = set.clone().rposition(|state| vote(state) == vote(&found.hard_state));
        let Some(at) = at else {
            panic!("{id}: {:?} is none of {:?}", found.hard_state, set.collect::<Vec<_>>());
        };
        let hard_state_at = hard_state_from + at;

        let commit = found.hard_state.commit;
        let least = self.hard_states[hard_state_from].commit.min(log.len() as u64);
        assert!(commit >= least && commit <= log.len() as u64, "{id}: commit {commit}");
        assert!(
            commit as usize <= self.committed.len() && log.starts_with(&self.committed[..commit as usize])
        );
        assert_eq!(found.applied, commit, "{id}: exactly what is known to be committed is applied");

        self.check_content(id, &log, found.applied, &node.store);
        let hard_state = HardState { commit, ..self.hard_states[hard_state_at] };
        self.front = found.first_index;
        self.adopt(log, found.applied, hard_state);
    }

    /// Everything reads back.
    fn check_content(&self, id: GroupId, log: &[u64], applied: u64, store: &Store<SimMedia>) {
        let scan = block_on(store.scan(id, Bound::Unbounded, Bound::Unbounded, usize::MAX, usize::MAX));
        let scan = scan.expect("a scan after recovery succeeds");
        assert!(!scan.more);
        let rows: BTreeMap<_, _> = scan
            .rows
            .into_iter()
            .map(|(key, found)| (key.to_vec(), (found.value.to_vec(), found.version)))
            .collect();
        assert_eq!(rows, applied_state(id, log, applied), "{id}: applied up to {applied}");
        let mut next = store.first_index(id);
        while next <= log.len() as u64 {
            let entries = block_on(store.entries(id, next, 7, 5000)).expect("entries read back");
            assert!(!entries.is_empty());
            for found in entries {
                assert_eq!(found, entry(id, next, log[next as usize - 1]), "{id} index {next}");
                next += 1;
            }
        }
    }

    fn adopt(&mut self, log: Vec<u64>, applied: u64, hard_state: HardState) {
        self.recovered.clone_from(&log);
        self.log = log;
        self.applied = applied;
        self.hard_states = vec![hard_state];
        self.changes.clear();
    }
}

/// The recovered log: the term of each entry.
fn expand(found: &RecoveredGroup) -> Vec<u64> {
    let mut log = Vec::new();
    for index in 1..=found.last_index {
        let run = found.runs.iter().rev().find(|run| run.first <= index);
        log.push(run.expect("runs cover the log").term);
    }
    log
}

/// How a life ends.
#[derive(Debug, Clone, Copy)]
enum End {
    /// Power is cut at the n-th media operation, or after the last step.
    Cut(u64),
    /// The process is killed after the last step; the device keeps its cache.
    Killed,
    /// The store is closed, and the flusher comes to its end.
    Closed,
}

/// Opens the store, perhaps after crashes in the middle of recovery (at these operations).
fn open(media: &SimMedia, seed: u64, crashes: &[u64]) -> Node {
    let options = if seed.is_multiple_of(2) { options() } else { small_flushes() };
    for crash in crashes {
        media.crash_after(*crash);
        let opened = Node::try_open(media, options.clone());
        drop(opened);
        // Perhaps recovery ended before the cut: then the store dies young.
        media.power_on();
    }
    Node::try_open(media, options).expect("the slice can be opened")
}

/// Lives through `steps` calls. True if power was lost on the way.
fn live(media: &SimMedia, model: &mut Model, node: Node, steps: usize, end: End) -> (Acknowledged, bool) {
    let mut life = Life::new(node);
    if let End::Cut(operation) = end {
        media.crash_after(operation);
    }
    for _ in 0..steps {
        if let Err(error) = model.step(&mut life) {
            assert!(matches!(error, StoreError::Stopped(_)), "{error}");
        }
        if !media.has_power() {
            break;
        }
    }
    match end {
        End::Closed => {
            life.node.store.close();
            life.node.executor.settle();
            let flusher = life.node.flusher.borrow();
            assert!(matches!(*flusher, Some(Ok(()))), "{flusher:?}, {:?}", life.node.store.counters());
            assert_eq!(*life.failed.borrow(), 0);
        }
        End::Cut(_) => life.node.executor.settle(),
        End::Killed => {}
    }
    let cut = !media.has_power();
    if cut {
        let flusher = life.node.flusher.borrow();
        // A read of cleaning may have been the last operation: nobody writes after it.
        assert!(matches!(*flusher, None | Some(Err(StoreError::Stopped(_)))), "{flusher:?}");
    }
    let acknowledged = life.end();
    match end {
        End::Killed => media.restart(),
        End::Cut(_) | End::Closed => media.power_on(),
    }
    (acknowledged, cut)
}

fn one_crash(script: u64, operation: u64, in_recovery: &[u64]) -> bool {
    let sim = SimOptions { seed: script * 7919 + operation, yields_max: 1, ..SimOptions::default() };
    let media = SimMedia::new(geometry(16), sim);
    Node::format(&media);
    let mut model = Model::new(script);
    let (acknowledged, cut) = live(&media, &mut model, open(&media, script, &[]), 24, End::Cut(operation));
    let node = open(&media, script, in_recovery);
    model.check(&node, &acknowledged);
    // What was recovered is durable, and the store goes on from it.
    let (acknowledged, _) = live(&media, &mut model, node, 8, End::Closed);
    model.check(&Node::open(&media), &acknowledged);
    cut
}

#[test]
fn power_is_cut_at_every_operation() {
    let scripts = seeds(150);
    let mut cuts = 0;
    for script in &scripts {
        let _replay = Replay { seed: *script, suite: "crash", test: "power_is_cut_at_every_operation" };
        let mut operation = 1;
        while one_crash(*script, operation, &[]) {
            operation += 1;
        }
        cuts += operation - 1;
    }
    assert!(
        cuts as usize > 4 * scripts.len() || scripts.len() == 1,
        "{cuts} cuts: the scripts do too little"
    );
}

#[test]
fn power_is_cut_at_every_operation_and_at_every_operation_of_recovery() {
    for script in seeds(10) {
        let test = "power_is_cut_at_every_operation_and_at_every_operation_of_recovery";
        let _replay = Replay { seed: script, suite: "crash", test };
        let mut operation = 1;
        loop {
            let mut cut = false;
            for in_recovery in 1..=40 {
                cut = one_crash(script, operation, &[in_recovery]);
            }
            cut |= one_crash(script, operation, &[3, 25, 30]);
            if !cut {
                break;
            }
            operation += 1;
        }
    }
}

#[test]
fn long_lives_end_in_every_way() {
    for seed in seeds(500) {
        let _replay = Replay { seed, suite: "crash", test: "long_lives_end_in_every_way" };
        let mut rng = Pcg64Mcg::seed_from_u64(seed ^ 0x5eed);
        let sim = SimOptions {
            seed,
            yields_max: rng.random_range(0..4),
            conventional: rng.random_bool(0.7),
            stale: rng.random_bool(0.5),
            tear_within_sector: rng.random_bool(0.5),
            ..SimOptions::default()
        };
        // A device that remembers what is open may have a limit to it.
        let max_open = if sim.conventional { 0 } else { [0, 4, 5][rng.random_range(0..3)] };
        let media = SimMedia::new(Geometry { max_open, ..geometry(40) }, sim);
        Node::format(&media);
        let mut model = Model::new(seed);
        let mut node = open(&media, seed, &[]);
        for _ in 0..rng.random_range(3..9) {
            let end = match rng.random_range(0..6) {
                0 => End::Closed,
                1 => End::Killed,
                _ => End::Cut(rng.random_range(1..120)),
            };
            let steps = rng.random_range(0..120);
            let (acknowledged, _) = live(&media, &mut model, node, steps, end);
            let crashes: Vec<u64> = (0..rng.random_range(0..3)).map(|_| rng.random_range(1..80)).collect();
            node = open(&media, seed, &crashes);
            model.check(&node, &acknowledged);
        }
    }
}

/// Three groups overwrite a few keys on a slice that has room for little more, and let go of their logs: what they write is
/// cleaned many times over, and power is lost at any moment of it.
#[test]
fn cleaning_loses_nothing() {
    cleaned_lives("cleaning_loses_nothing", 120, |rng, limited| {
        let max_open = if limited { [0, 4, 5][rng.random_range(0..3)] } else { 0 };
        Geometry { max_open, ..geometry(rng.random_range(24..40)) }
    });
}

/// The same where there are enough chunks that records go to several streams, by their expected lifetime.
#[test]
fn cleaning_of_many_streams_loses_nothing() {
    cleaned_lives("cleaning_of_many_streams_loses_nothing", 60, |rng, limited| {
        let max_open = if limited { [0, 10, 14][rng.random_range(0..3)] } else { 0 };
        Geometry { max_open, chunk_sectors: 20, ..geometry(rng.random_range(66..100)) }
    });
}

/// Lives that clean, on devices of the shape that `shape` draws (and whether what is open is limited).
fn cleaned_lives(test: &'static str, count: u64, shape: impl Fn(&mut Pcg64Mcg, bool) -> Geometry) {
    let (mut cleaned, mut lives, mut hinted) = (0, 0, 0);
    let all = seeds(count);
    for seed in &all {
        let _replay = Replay { seed: *seed, suite: "crash", test };
        let mut rng = Pcg64Mcg::seed_from_u64(seed ^ 0xc1ea);
        let sim = SimOptions {
            seed: *seed,
            yields_max: rng.random_range(0..4),
            conventional: rng.random_bool(0.7),
            stale: rng.random_bool(0.5),
            ..SimOptions::default()
        };
        let media = SimMedia::new(shape(&mut rng, !sim.conventional), sim);
        Node::format(&media);
        let mut model = Model::new(*seed);
        let mut node = open(&media, *seed, &[]);
        for _ in 0..rng.random_range(3..7) {
            let end = match rng.random_range(0..6) {
                0 => End::Closed,
                1 => End::Killed,
                _ => End::Cut(rng.random_range(1..900)),
            };
            let counters = node.store.clone();
            let (acknowledged, _) = live(&media, &mut model, node, rng.random_range(100..700), end);
            cleaned += counters.counters().cleaned_segments;
            drop(counters);
            lives += 1;
            let crashes: Vec<u64> = (0..rng.random_range(0..3)).map(|_| rng.random_range(1..80)).collect();
            node = open(&media, *seed, &crashes);
            hinted += node.recovery.hinted_segments;
            model.check(&node, &acknowledged);
        }
    }
    assert!(cleaned > lives || all.len() == 1, "{cleaned} segments in {lives} lives: too little was cleaned");
    assert!(hinted > lives || all.len() == 1, "{hinted} footers in {lives} starts: too few were used");
}

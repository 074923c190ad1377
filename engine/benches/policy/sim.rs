//! A log of segments that is filled, cleaned and counted, but holds no bytes: what the policies make of a trace.
//!
//! The log has room for `space` times what is alive at most. Everything counts as occupied: open segments, the free ones
//! that cleaning needs, dead records. Cleaning starts when fewer than [`FREE_MIN`] segments are free and takes one victim
//! at a time. First every key is written once, in any order; then the trace runs, of which the first part only warms up.
//!
//! Headers, padding, hints and checkpoints are not modelled: they come on top, and are the same whatever the policy.

use terrane_engine::policy::LogTime;
use terrane_engine::policy::candidates::Candidates;
use terrane_engine::policy::heat::Heat;
use terrane_engine::policy::placement::{Class, Classes, Placed};
use terrane_engine::policy::victim::{Ask, Contents, Score, SegmentState, SegmentStats, Victim, choose};
use terrane_ocssd::ChunkId;

use crate::trace::Trace;

/// Free segments below which cleaning starts.
pub(crate) const FREE_MIN: usize = 4;

/// How records are placed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Streams {
    /// All together.
    One,
    /// What users write and what is relocated apart.
    UserRelocated,
    /// Users' records by the key's last interval, relocated ones by age: as many classes of each.
    LastInterval {
        /// Of each.
        classes: u8,
        /// Longest over shortest interval of a class.
        ratio: f64,
    },
    /// By the interval that [`Heat`] lets expect.
    Heat {
        /// Streams of users' records; classes share them. 0: users and relocations share the streams of the classes.
        user: u8,
        /// Classes, each a stream of relocated records.
        classes: u8,
        /// Longest over shortest interval of a class.
        ratio: f64,
        /// Intervals that the heat remembers.
        memory: u32,
    },
    /// SepBIT as published (FAST '22, algorithm 1): two classes of users' records by the overwritten version's age, one for
    /// what is relocated from the first, three for the rest by age; boundaries from the lifetime of the first class.
    SepBit,
    /// By the next write to the key, which it knows.
    Oracle {
        /// Classes.
        classes: u8,
        /// Longest over shortest remaining life of a class.
        ratio: f64,
    },
    /// By the true rate of the key, which it knows, but not by its next write.
    Rates {
        /// Classes.
        classes: u8,
        /// Longest over shortest interval of a class.
        ratio: f64,
    },
}

/// A policy to be measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Policy {
    /// Where records go.
    pub(crate) streams: Streams,
    /// What is cleaned.
    pub(crate) score: Score,
    /// Whether victims come from [`Candidates`] instead of all segments.
    pub(crate) heads: bool,
}

/// The log to simulate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Log {
    /// Bytes of a segment.
    pub(crate) segment_bytes: u64,
    /// Bytes that the log occupies ÷ bytes alive.
    pub(crate) space: f64,
    /// Updates of the trace that only warm up.
    pub(crate) warm: usize,
}

/// What was counted after warming up.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Outcome {
    /// Bytes that users wrote.
    pub(crate) user_bytes: u64,
    /// Bytes that cleaning copied.
    pub(crate) copied_bytes: u64,
    /// Segments of the log.
    pub(crate) segments: usize,
    /// Segments that a choice looked at, and choices.
    pub(crate) looked_at: u64,
    /// Victims.
    pub(crate) victims: u64,
}

impl Outcome {
    /// Write amplification.
    pub(crate) fn amplification(&self) -> f64 {
        (self.user_bytes + self.copied_bytes) as f64 / self.user_bytes as f64
    }
}

#[derive(Debug, Clone, Copy)]
struct Key {
    segment: u32,
    slot: u32,
    bytes: u32,
    heat: Heat,
    written_at: LogTime,
    /// Updates of the trace until the next one of this key, from the start.
    next: usize,
}

const NOWHERE: u32 = u32::MAX;

struct Simulation<'t> {
    policy: Policy,
    trace: &'t Trace,
    segment_bytes: u64,
    keys: Vec<Key>,
    /// By segment: the keys of its records, in order.
    records: Vec<Vec<u32>>,
    filled: Vec<u64>,
    contents: Vec<Contents>,
    /// All segments; `live_bytes` is right here, sealed ones are in `candidates` too.
    stats: Vec<SegmentStats>,
    candidates: Candidates,
    free: Vec<u32>,
    open: Vec<Option<u32>>,
    classes: Classes,
    now: LogTime,
    at: usize,
    copied_bytes: u64,
    looked_at: u64,
    victims: u64,
    first_class_life: FirstClassLife,
}

/// SepBIT's estimate: the mean lifetime of the last 16 cleaned segments of its first class.
#[derive(Debug, Clone, Copy)]
struct FirstClassLife {
    mean: u64,
    sum: u64,
    count: u64,
}

/// Runs `trace` through a log and counts. `progress` is told of every 4,096 updates.
pub(crate) fn run(trace: &Trace, log: &Log, policy: Policy, progress: &dyn Fn(u64)) -> Outcome {
    let segments = (trace.live_bytes_max as f64 * log.space / log.segment_bytes as f64).ceil() as usize;
    let mut simulation = Simulation::new(trace, log, policy, segments);
    simulation.load();
    let mut start = (LogTime::default(), 0, 0, 0);
    for at in 0..trace.updates.len() {
        if at == log.warm {
            start = (simulation.now, simulation.copied_bytes, simulation.looked_at, simulation.victims);
        }
        simulation.update(at);
        if at % 4096 == 4095 {
            progress(4096);
        }
    }
    Outcome {
        user_bytes: simulation.now.since(start.0),
        copied_bytes: simulation.copied_bytes - start.1,
        segments,
        looked_at: simulation.looked_at - start.2,
        victims: simulation.victims - start.3,
    }
}

impl<'t> Simulation<'t> {
    fn new(trace: &'t Trace, log: &Log, policy: Policy, segments: usize) -> Self {
        let capacity = log.segment_bytes * segments as u64;
        let (streams, classes) = match policy.streams {
            Streams::One => (1, Classes::new(1, 2.0, capacity)),
            Streams::UserRelocated => (2, Classes::new(1, 2.0, capacity)),
            Streams::LastInterval { classes, ratio } => (2 * classes, Classes::new(classes, ratio, capacity)),
            Streams::Heat { user, classes, ratio, .. } => {
                (user + classes, Classes::new(classes, ratio, capacity))
            }
            Streams::SepBit => (6, Classes::new(6, 2.0, capacity)),
            Streams::Oracle { classes, ratio } => (classes, Classes::new(classes, ratio, capacity)),
            Streams::Rates { classes, ratio } => (classes, Classes::new(classes, ratio, capacity)),
        };
        let free_segment = |segment| SegmentStats {
            segment: ChunkId(segment),
            state: SegmentState::Free,
            size_bytes: log.segment_bytes,
            live_bytes: 0,
            class: Class(0),
            interval_bytes: u64::MAX,
            filled_at: LogTime(0),
        };
        let new_key = Key {
            segment: NOWHERE,
            slot: 0,
            bytes: 0,
            heat: Heat::NEW,
            written_at: LogTime(0),
            next: usize::MAX,
        };
        Self {
            policy,
            trace,
            segment_bytes: log.segment_bytes,
            keys: vec![new_key; trace.keys.len()],
            records: vec![Vec::new(); segments],
            filled: vec![0; segments],
            contents: vec![Contents::default(); segments],
            stats: (0..segments as u32).map(free_segment).collect(),
            candidates: Candidates::new(segments as u32),
            free: (0..segments as u32).rev().collect(),
            open: vec![None; usize::from(streams)],
            classes,
            now: LogTime(0),
            at: 0,
            copied_bytes: 0,
            looked_at: 0,
            victims: 0,
            first_class_life: FirstClassLife { mean: u64::MAX, sum: 0, count: 0 },
        }
    }

    /// Writes every key once.
    fn load(&mut self) {
        for (key, first) in self.trace.keys.iter().enumerate() {
            self.keys[key].next = first.next;
            self.write(key as u32, first.bytes);
        }
    }

    fn update(&mut self, at: usize) {
        let update = self.trace.updates[at];
        self.at = at;
        self.keys[update.key as usize].next = self.trace.next_of(at);
        self.write(update.key, update.bytes);
    }

    fn write(&mut self, key: u32, bytes: u32) {
        let state = &mut self.keys[key as usize];
        let old_age = self.now.since(state.written_at);
        let old = (state.segment, state.bytes);
        if old.0 != NOWHERE {
            let memory = if let Streams::Heat { memory, .. } = self.policy.streams { memory } else { 1 };
            state.heat = state.heat.overwritten_with_memory(old_age, memory);
        }
        state.segment = NOWHERE;
        state.bytes = bytes;
        state.written_at = self.now;
        if old.0 != NOWHERE {
            let died = u64::from(old.1);
            self.stats[old.0 as usize].live_bytes -= died;
            self.candidates.died(ChunkId(old.0), died);
        }
        let (stream, placed) = self.place_first(key, old_age);
        self.append(key, stream, placed);
        self.now.0 += u64::from(bytes);
        while self.free.len() < FREE_MIN {
            self.clean();
        }
    }

    fn place_first(&self, key: u32, old_age: u64) -> (u8, Placed) {
        let state = &self.keys[key as usize];
        match self.policy.streams {
            Streams::One | Streams::UserRelocated => (0, self.classes.first_written(state.heat)),
            Streams::LastInterval { .. } => {
                let placed = self.classes.first_written(state.heat);
                (placed.class.0, placed)
            }
            Streams::Heat { user, classes, .. } => {
                let placed = self.classes.first_written(state.heat);
                let stream =
                    if user == 0 { placed.class.0 } else { classes + placed.class.stream(classes, user) };
                (stream, placed)
            }
            Streams::SepBit => {
                let stream = u8::from(old_age >= self.first_class_life.mean);
                (stream, Placed { class: Class(stream), interval_bytes: old_age })
            }
            Streams::Oracle { .. } | Streams::Rates { .. } => self.place_known(key),
        }
    }

    fn place_relocated(&self, key: u32, from: Class) -> (u8, Placed) {
        let state = &self.keys[key as usize];
        let age = self.now.since(state.written_at);
        let by_age = Placed { class: self.classes.class_of(age), interval_bytes: age };
        match self.policy.streams {
            Streams::One => (0, by_age),
            Streams::UserRelocated => (1, by_age),
            Streams::LastInterval { classes, .. } => (classes + by_age.class.0, by_age),
            Streams::Heat { .. } => {
                let placed = self.classes.relocated(state.heat, age);
                (placed.class.0, placed)
            }
            Streams::SepBit => {
                let life = self.first_class_life.mean;
                let stream = match age {
                    _ if from == Class(0) => 2,
                    age if age < life.saturating_mul(4) => 3,
                    age if age < life.saturating_mul(16) => 4,
                    _ => 5,
                };
                (stream, Placed { class: Class(stream), interval_bytes: age })
            }
            Streams::Oracle { .. } | Streams::Rates { .. } => self.place_known(key),
        }
    }

    fn place_known(&self, key: u32) -> (u8, Placed) {
        let state = &self.keys[key as usize];
        let interval_bytes = match self.policy.streams {
            Streams::Rates { .. } => self.trace.mean_interval_bytes(key),
            // Updates of the mean size: near enough to the bytes until then.
            _ => (state.next.saturating_sub(self.at) as u64).saturating_mul(self.trace.update_bytes_mean),
        };
        let class = self.classes.class_of(interval_bytes);
        (class.0, Placed { class, interval_bytes })
    }

    fn append(&mut self, key: u32, stream: u8, placed: Placed) {
        let bytes = u64::from(self.keys[key as usize].bytes);
        let segment = self.segment_with_room(stream, placed.class, bytes);
        let index = segment as usize;
        let state = &mut self.keys[key as usize];
        state.segment = segment;
        state.slot = self.records[index].len() as u32;
        self.records[index].push(key);
        self.filled[index] += bytes;
        self.contents[index].add(bytes, placed.interval_bytes, self.now);
        self.stats[index].live_bytes += bytes;
    }

    fn segment_with_room(&mut self, stream: u8, class: Class, bytes: u64) -> u32 {
        let segment_bytes = self.segment_bytes;
        let fits = |filled: u64| filled + bytes <= segment_bytes;
        if let Some(segment) = self.open[usize::from(stream)]
            && fits(self.filled[segment as usize])
        {
            return segment;
        }
        let Some(segment) = self.free.pop() else {
            // Cleaning has reached its reserve: what it moves goes wherever there is room.
            let elsewhere =
                self.open.iter().flatten().copied().find(|open| fits(self.filled[*open as usize]));
            return elsewhere.expect("the space given holds what is alive and the open segments");
        };
        if let Some(full) = self.open[usize::from(stream)].replace(segment) {
            self.seal(full);
        }
        self.stats[segment as usize].state = SegmentState::Open;
        self.stats[segment as usize].class = class;
        segment
    }

    fn seal(&mut self, segment: u32) {
        let index = segment as usize;
        let stats = &mut self.stats[index];
        stats.state = SegmentState::Sealed;
        stats.interval_bytes = self.contents[index].interval_bytes();
        stats.filled_at = self.contents[index].filled_at();
        self.candidates.add(*stats);
    }

    fn clean(&mut self) {
        let ask = Ask {
            now: self.now,
            score: self.policy.score,
            victims: 1,
            live_share_max: 1.0,
            room_bytes: u64::MAX,
            must_move: &[],
        };
        let mut victims = Vec::with_capacity(1);
        if self.policy.heads {
            let heads = self.candidates.heads(&[]);
            self.looked_at += heads.clone().count() as u64;
            choose(heads, &ask, |_| 0.0, &mut victims);
        } else {
            self.looked_at += self.stats.len() as u64;
            choose(self.stats.iter(), &ask, |_| 0.0, &mut victims);
        }
        let victim = *victims.first().expect("with more space than what is alive, something is dead");
        self.relocate(victim);
    }

    fn relocate(&mut self, victim: Victim) {
        let index = victim.segment.0 as usize;
        let stats = self.candidates.remove(victim.segment).expect("a victim is sealed");
        self.stats[index].state = SegmentState::Pinned;
        self.victims += 1;
        match self.policy.streams {
            Streams::SepBit if stats.class == Class(0) => {
                let life = &mut self.first_class_life;
                life.sum += self.now.since(stats.filled_at);
                life.count += 1;
                if life.count == 16 {
                    *life = FirstClassLife { mean: life.sum / 16, sum: 0, count: 0 };
                }
            }
            // Their classes are of other things than expected intervals, and the going rate would move the oracle's.
            Streams::SepBit | Streams::Oracle { .. } => {}
            _ => self.classes.cleaned(&stats, self.now),
        }
        let mut records = std::mem::take(&mut self.records[index]);
        for (slot, key) in records.iter().enumerate() {
            let state = self.keys[*key as usize];
            if (state.segment, state.slot) != (victim.segment.0, slot as u32) {
                continue;
            }
            let (stream, placed) = self.place_relocated(*key, stats.class);
            self.append(*key, stream, placed);
            self.copied_bytes += u64::from(state.bytes);
        }
        records.clear();
        self.records[index] = records;
        self.filled[index] = 0;
        self.contents[index] = Contents::default();
        self.stats[index].state = SegmentState::Free;
        self.stats[index].live_bytes = 0;
        self.free.insert(0, victim.segment.0);
    }
}

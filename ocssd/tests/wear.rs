//! Wear levelling measured: a toy log-structured store, cleaned with and without the policy.
//!
//! The store has segments of pages, three streams (users, survivors, old survivors) and a cleaner that takes the victim
//! of the highest score. Half of its keys are written once and never again; the others by Zipf's law. First it lives for a
//! hundred overwrites of the device without any policy. The mean wear that this leaves is what chunks are then rated for:
//! with the policy it lives until the mean is there, which must take as many overwrites, and leave no chunk far ahead.
//!
//! `cargo test -p terrane-ocssd --test wear -- --nocapture` prints the tables of `docs/decisions/0007-wear-levelling.md`;
//! `TERRANE_SEED=n` draws other numbers.

use std::collections::VecDeque;

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use terrane_ocssd::ChunkId;
use terrane_ocssd::policy::allocation::{Candidate, Lifetime, OpenSegments, choose};
use terrane_ocssd::policy::wear::{SegmentWear, Traffic, WearPolicy, WearStats};

const SEGMENTS: usize = 256;
const UNITS: usize = 4;
const PAGES: usize = 64;
const CAPACITY: u64 = (SEGMENTS * PAGES) as u64;
/// 80 % of the pages are alive.
const KEYS: usize = SEGMENTS * PAGES * 8 / 10;
const STATIC_KEYS: usize = KEYS / 2;
/// Cleaning keeps so many segments free.
const FREE_MIN: usize = 8;
const OVERWRITES: u64 = 100;

/// What users write, then survivors by age.
const STREAMS: [Lifetime; 5] =
    [Lifetime::Short, Lifetime::Short, Lifetime::Medium, Lifetime::Medium, Lifetime::Long];
/// Age in device overwrites up to which a survivor belongs to a stream; older ones to the last.
const STREAM_OVERWRITES: [u64; STREAMS.len() - 2] = [2, 6, 20];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Score {
    /// Most dead space.
    Greedy,
    /// Dead space times the root of age, for what is copied.
    CostBenefit,
}

/// How wear enters the choice of victims.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Tilt {
    Nothing,
    /// The score is multiplied by up to 1.5 for what is behind, by as little as 0.5 for what is ahead.
    Factor,
    /// The credit counts as dead space.
    Credit,
}

#[derive(Debug, Clone, Copy)]
struct Levelling {
    name: &'static str,
    by_wear: bool,
    tilt: Tilt,
    static_moves: bool,
    policy: WearPolicy,
}

struct Segment {
    keys: Vec<u32>,
    live: usize,
    wear: u32,
    sealed_at: u64,
    /// When the youngest of its data was written by a user.
    youngest_at: u64,
    sealed: bool,
}

struct Store {
    levelling: Levelling,
    score: Score,
    segments: Vec<Segment>,
    free: VecDeque<usize>,
    open: [usize; STREAMS.len()],
    last_unit: Option<u32>,
    /// Segment and page of each key.
    places: Vec<(u32, u32)>,
    written_at: Vec<u64>,
    user_pages: u64,
    relocated_pages: u64,
    levelled_pages: u64,
    erases: u64,
}

impl Store {
    fn new(levelling: Levelling, score: Score) -> Self {
        let segment = || Segment {
            keys: Vec::with_capacity(PAGES),
            live: 0,
            wear: 0,
            sealed_at: 0,
            youngest_at: 0,
            sealed: false,
        };
        Self {
            levelling,
            score,
            segments: (0..SEGMENTS).map(|_| segment()).collect(),
            free: (STREAMS.len()..SEGMENTS).collect(),
            open: std::array::from_fn(|stream| stream),
            last_unit: None,
            places: vec![(u32::MAX, 0); KEYS],
            written_at: vec![0; KEYS],
            user_pages: 0,
            relocated_pages: 0,
            levelled_pages: 0,
            erases: 0,
        }
    }

    fn written_pages(&self) -> u64 {
        self.user_pages + self.relocated_pages + self.levelled_pages
    }

    fn write(&mut self, key: u32) {
        self.user_pages += 1;
        self.written_at[key as usize] = self.written_pages();
        self.append(0, key);
        while self.free.len() < FREE_MIN {
            let victim = self.victim();
            self.relocated_pages += self.empty(victim);
            if self.levelling.static_moves
                && let Some(victim) = self.static_victim()
            {
                self.levelled_pages += self.empty(victim);
            }
        }
    }

    fn append(&mut self, stream: usize, key: u32) {
        if self.segments[self.open[stream]].keys.len() == PAGES {
            let now = self.written_pages();
            let full = &mut self.segments[self.open[stream]];
            full.sealed = true;
            full.sealed_at = now;
            self.open[stream] = self.take_free(stream);
        }
        let (segment, page) = self.places[key as usize];
        if segment != u32::MAX && self.segments[segment as usize].keys.get(page as usize) == Some(&key) {
            self.segments[segment as usize].live -= 1;
        }
        let to = self.open[stream];
        self.places[key as usize] = (to as u32, self.segments[to].keys.len() as u32);
        self.segments[to].keys.push(key);
        self.segments[to].live += 1;
        self.segments[to].youngest_at = self.segments[to].youngest_at.max(self.written_at[key as usize]);
    }

    fn take_free(&mut self, stream: usize) -> usize {
        if !self.levelling.by_wear {
            return self.free.pop_front().expect("cleaning keeps some free");
        }
        let unit = |segment: usize| (segment / (SEGMENTS / UNITS)) as u32;
        let mut per_unit = [0; UNITS];
        for (other, segment) in self.open.iter().enumerate() {
            per_unit[unit(*segment) as usize] += u32::from(other != stream);
        }
        let candidates: Vec<Candidate> = self
            .free
            .iter()
            .map(|segment| Candidate {
                chunk: ChunkId(*segment as u32),
                unit: unit(*segment),
                wear: self.segments[*segment].wear,
            })
            .collect();
        let open = OpenSegments { per_unit: &per_unit, last_unit: self.last_unit };
        let chosen = choose(&candidates, &open, STREAMS[stream]).expect("cleaning keeps some free");
        self.last_unit = Some(chosen.unit);
        let chosen = chosen.chunk.0 as usize;
        self.free.retain(|segment| *segment != chosen);
        chosen
    }

    fn stats(&self) -> WearStats {
        WearStats::of(self.segments.iter().map(|segment| segment.wear)).unwrap()
    }

    fn victim(&self) -> usize {
        let stats = self.stats();
        let now = self.written_pages();
        let policy = &self.levelling.policy;
        let score = |segment: &Segment| {
            let live = segment.live as f64 / PAGES as f64;
            let credit = policy.credit(segment.wear, &stats);
            let dead = match self.levelling.tilt {
                Tilt::Credit => (1.0 - live + credit).max(0.0),
                Tilt::Factor | Tilt::Nothing => 1.0 - live,
            };
            let factor = match self.levelling.tilt {
                Tilt::Factor => 1.0 + 0.5 * credit * 1_000.0 / f64::from(policy.credit_permille_max.max(1)),
                Tilt::Credit | Tilt::Nothing => 1.0,
            };
            let age = (now - segment.sealed_at + 1) as f64;
            factor
                * match self.score {
                    Score::Greedy => dead,
                    Score::CostBenefit => dead * age.sqrt() / live.max(1e-3),
                }
        };
        let sealed = self.segments.iter().enumerate().filter(|(_, segment)| segment.sealed);
        sealed.max_by(|(_, a), (_, b)| score(a).total_cmp(&score(b))).expect("something is sealed").0
    }

    fn static_victim(&self) -> Option<usize> {
        let now = self.written_pages();
        let sealed: Vec<SegmentWear> = self
            .segments
            .iter()
            .enumerate()
            .filter(|(_, segment)| segment.sealed)
            .map(|(id, segment)| SegmentWear {
                chunk: ChunkId(id as u32),
                wear: segment.wear,
                live_bytes: segment.live as u64,
                age_bytes: now - segment.youngest_at,
            })
            .collect();
        let rest_wear = self.free.iter().map(|segment| self.segments[*segment].wear).max()?;
        let traffic =
            Traffic { capacity_bytes: CAPACITY, written_bytes: now, levelled_bytes: self.levelled_pages };
        let victim = self.levelling.policy.static_victim(&sealed, &self.stats(), rest_wear, &traffic);
        victim.map(|chunk| chunk.0 as usize)
    }

    /// Moves what is alive and erases the segment. Returns how many pages were moved.
    fn empty(&mut self, victim: usize) -> u64 {
        let keys = std::mem::take(&mut self.segments[victim].keys);
        let mut moved = 0;
        for (page, key) in keys.iter().enumerate() {
            if self.places[*key as usize] == (victim as u32, page as u32) {
                let age = (self.written_pages() - self.written_at[*key as usize]) / CAPACITY;
                self.append(1 + STREAM_OVERWRITES.iter().filter(|most| age >= **most).count(), *key);
                moved += 1;
            }
        }
        let segment = &mut self.segments[victim];
        *segment = Segment {
            keys: Vec::with_capacity(PAGES),
            live: 0,
            youngest_at: 0,
            wear: segment.wear + 1,
            sealed: false,
            ..*segment
        };
        self.free.push_back(victim);
        self.erases += 1;
        moved
    }
}

/// When a run ends.
#[derive(Debug, Clone, Copy)]
enum End {
    /// When the device was overwritten this often.
    Overwrites(u64),
    /// When chunks were erased this often on average.
    MeanWear(u32),
}

impl End {
    /// How much of the run is over.
    fn share(self, store: &Store) -> f64 {
        match self {
            Self::Overwrites(count) => store.user_pages as f64 / (count * CAPACITY) as f64,
            Self::MeanWear(wear) => store.erases as f64 / (u64::from(wear) * SEGMENTS as u64) as f64,
        }
    }
}

/// What a run came to.
struct Life {
    name: &'static str,
    user_pages: u64,
    written_pages: u64,
    levelled_pages: u64,
    stats: WearStats,
    /// How far the most worn was ahead of the mean after each quarter.
    ahead: [f64; 4],
}

impl Life {
    fn overwrites(&self) -> f64 {
        self.user_pages as f64 / CAPACITY as f64
    }

    fn write_amplification(&self) -> f64 {
        self.written_pages as f64 / self.user_pages as f64
    }

    /// Share of its writes that `other` does without.
    fn extra_over(&self, other: &Self) -> f64 {
        1.0 - other.write_amplification() / self.write_amplification()
    }
}

/// Draws ranks by Zipf's law with exponent 0.99.
struct Zipf {
    cumulative: Vec<f64>,
}

impl Zipf {
    fn new(count: usize) -> Self {
        let mut sum = 0.0;
        let cumulative = (1..=count).map(|rank| {
            sum += 1.0 / (rank as f64).powf(0.99);
            sum
        });
        Self { cumulative: cumulative.collect() }
    }

    fn draw(&self, rng: &mut Pcg64Mcg) -> u32 {
        let at = rng.random::<f64>() * self.cumulative.last().unwrap();
        self.cumulative.partition_point(|sum| *sum < at) as u32
    }
}

fn live(levelling: Levelling, score: Score, end: End, seed: u64) -> Life {
    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    let mut store = Store::new(levelling, score);
    let mut keys: Vec<u32> = (0..KEYS as u32).collect();
    keys.shuffle(&mut rng);
    // The last keys are the static ones.
    for key in &keys {
        store.write(*key);
    }
    let hot = Zipf::new(KEYS - STATIC_KEYS);
    let mut ahead = [0.0; 4];
    for (quarter, ahead) in (1..=4).zip(&mut ahead) {
        while end.share(&store) < f64::from(quarter) / 4.0 {
            store.write(hot.draw(&mut rng));
        }
        *ahead = store.stats().max_over_mean();
    }
    Life {
        name: levelling.name,
        user_pages: store.user_pages,
        written_pages: store.written_pages(),
        levelled_pages: store.levelled_pages,
        stats: store.stats(),
        ahead,
    }
}

fn print(lives: &[Life]) {
    eprintln!(
        "| | overwrites | WA | extra copies, % of writes | static moves, % of writes | wear min / mean / max | max − mean after each quarter |"
    );
    eprintln!("|---|---|---|---|---|---|---|");
    for life in lives {
        let [first, second, third, last] = life.ahead;
        eprintln!(
            "| {} | {:.1} | {:.3} | {:.2} | {:.2} | {} / {:.1} / {} | {first:.1}, {second:.1}, {third:.1}, **{last:.1}** |",
            life.name,
            life.overwrites(),
            life.write_amplification(),
            100.0 * life.extra_over(&lives[0]),
            100.0 * life.levelled_pages as f64 / life.written_pages as f64,
            life.stats.min,
            life.stats.sum as f64 / f64::from(life.stats.count),
            life.stats.max,
        );
    }
}

fn seed() -> u64 {
    let seed = std::env::var("TERRANE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    eprintln!("replay: TERRANE_SEED={seed} cargo test -p terrane-ocssd --test wear -- --nocapture");
    seed
}

/// No policy at all: free chunks in turn.
const NOTHING: Levelling = Levelling {
    name: "nothing",
    by_wear: false,
    tilt: Tilt::Nothing,
    static_moves: false,
    policy: WearPolicy {
        rated_cycles: 1,
        spread_min: 1,
        spread_permille: 0,
        credit_permille_max: 0,
        cold_permille: 1,
        copy_permille_max: 0,
    },
};

/// As the engine is meant to use it.
fn the_policy(rated_cycles: u32) -> Levelling {
    let policy = WearPolicy { rated_cycles, ..WearPolicy::default() };
    Levelling { name: "the policy", by_wear: true, tilt: Tilt::Credit, static_moves: true, policy }
}

/// Lives until the rated life is over.
fn live_to_the_end(levelling: Levelling, score: Score, seed: u64) -> Life {
    live(levelling, score, End::MeanWear(levelling.policy.rated_cycles), seed)
}

fn wear_is_level_at_the_end_of_a_life(score: Score) {
    let seed = seed();
    let nothing = live(NOTHING, score, End::Overwrites(OVERWRITES), seed);
    let all = the_policy(nothing.stats.mean());
    let allocation =
        Levelling { name: "allocation by wear", static_moves: false, tilt: Tilt::Nothing, ..all };
    let allocation = live_to_the_end(allocation, score, seed);
    let with = live_to_the_end(all, score, seed);
    let lives = [nothing, allocation, with];
    eprintln!("\n{score:?}, {OVERWRITES} overwrites:\n");
    print(&lives);
    let [nothing, allocation, with] = lives;
    let (spread, extra) = (with.stats.max_over_mean(), with.extra_over(&nothing));
    assert!(spread <= 2.0, "the most worn chunk is {spread:.1} ahead of the mean");
    assert!(extra <= 0.01, "{:.2} % of the writes are extra copies", 100.0 * extra);
    let moved = with.levelled_pages as f64 / with.written_pages as f64;
    assert!(moved <= 0.01, "{:.2} % of the writes are static moves", 100.0 * moved);
    // It is the policy that does it, all of it: neither its absence nor allocation alone comes near.
    assert!(nothing.stats.max_over_mean() > 20.0);
    assert!(allocation.stats.max_over_mean() > 20.0);
}

#[test]
fn greedy_cleaning_levels_wear() {
    wear_is_level_at_the_end_of_a_life(Score::Greedy);
}

#[test]
fn cost_benefit_cleaning_levels_wear() {
    wear_is_level_at_the_end_of_a_life(Score::CostBenefit);
}

#[test]
#[ignore = "measures the formulations that decision 7 compares; takes a minute"]
fn formulations() {
    let seed = seed();
    for (score, overwrites) in
        [(Score::CostBenefit, OVERWRITES), (Score::Greedy, OVERWRITES), (Score::CostBenefit, 4 * OVERWRITES)]
    {
        let nothing = live(NOTHING, score, End::Overwrites(overwrites), seed);
        let all = the_policy(nothing.stats.mean());
        let allocation =
            Levelling { name: "allocation by wear", static_moves: false, tilt: Tilt::Nothing, ..all };
        let factor = Levelling { name: "allocation, score × factor", tilt: Tilt::Factor, ..allocation };
        let credit = Levelling { name: "allocation, credit up to 10 %", tilt: Tilt::Credit, ..allocation };
        let weak = WearPolicy { credit_permille_max: 20, ..all.policy };
        let with = |name, policy| Levelling { name, policy, ..all };
        let constant = WearPolicy { spread_permille: 0, ..all.policy };
        let variants = [
            allocation,
            factor,
            Levelling { name: "allocation, credit up to 2 %", policy: weak, ..credit },
            credit,
            with("constant limit, no cap", WearPolicy { copy_permille_max: 1_000, ..constant }),
            with("constant limit", constant),
            with("limit at half of the life left", WearPolicy { spread_permille: 500, ..all.policy }),
            with("limit at twice the life left", WearPolicy { spread_permille: 2_000, ..all.policy }),
            Levelling { name: "the policy, factor instead of credit", tilt: Tilt::Factor, ..all },
            Levelling { name: "the policy, no credit", tilt: Tilt::Nothing, ..all },
            all,
        ];
        let mut lives = vec![nothing];
        lives.extend(variants.map(|levelling| live_to_the_end(levelling, score, seed)));
        eprintln!("\n{score:?}, {overwrites} overwrites:\n");
        print(&lives);
    }
}

#[test]
#[ignore = "eight seeds; takes a minute"]
fn other_seeds() {
    for score in [Score::CostBenefit, Score::Greedy] {
        for seed in 1..=8 {
            let nothing = live(NOTHING, score, End::Overwrites(OVERWRITES), seed);
            let with = live_to_the_end(the_policy(nothing.stats.mean()), score, seed);
            eprintln!("\n{score:?}, seed {seed}:\n");
            print(&[nothing, with]);
        }
    }
}

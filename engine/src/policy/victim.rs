//! Which segments cleaning takes next.
//!
//! **The score.** Say that space has a price: keeping one byte of it for `P` bytes of user writes costs as much as copying
//! one byte. A record pays rent for its place until its segment is cleaned, dead or alive, and if it is alive then, one
//! copy. With records that die at rate λ, a segment of age T holds the live share u = e^−λT, and the cheapest moment
//! to clean it is when
//!
//! ```text
//!   1/u − 1 + ln u = λ·P     that is    (1/u − 1 + ln u) / λ = P
//! ```
//!
//! Proof: a record costs V = (T/P + u) / (1 − u) from each time that it is placed until it is dead; set dV/dT to zero. So
//! the left side, [`rent_score`], says at which price a segment is due, and the one with the highest is cleaned first. It
//! knows dead space (the numerator) and expected lifetime (1/λ), and it explains what is found by trial
//! elsewhere: for nearly full segments its root is (1−u)·√(age)/√2, about the cost-benefit score with the root of age. For
//! empty ones it is infinite. What is right for records that die at one known rate is then right for the engine as far as
//! [`placement`](super::placement) gets such records together.
//!
//! No policy that does not know the future can do better than this price on such a load, which gives the bound that
//! `benches/policy` prints.
//!
//! **Cost.** [`choose`] looks at every candidate once for each victim wanted and allocates nothing. A store of many
//! segments hands it the few of [`Candidates`](super::candidates::Candidates).
//!
//! Invariants:
//! - A victim is sealed: never open, pinned or free. Nothing is chosen twice.
//! - What the victims hold alive fits the room that was given, so that cleaning can always finish.
//! - The order is total: equal scores go to the segment with less to copy, then to the lower chunk.

use terrane_ocssd::ChunkId;

use super::LogTime;
use super::placement::Class;

/// What a segment is being used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentState {
    /// For nothing.
    Free,
    /// It is being filled.
    Open,
    /// It is full, and nobody needs it to stay.
    Sealed,
    /// It must stay for now: a read, a snapshot or a cleaning under way is in it, or what it holds must be kept.
    Pinned,
}

/// What the engine knows of a segment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SegmentStats {
    /// Which: its chunk.
    pub segment: ChunkId,
    /// Whether it can be taken.
    pub state: SegmentState,
    /// Bytes that erasing it gives back: all of the segment, the unwritten rest of one sealed early included.
    pub size_bytes: u64,
    /// Bytes that would be copied.
    pub live_bytes: u64,
    /// The class of its stream.
    pub class: Class,
    /// After how many bytes of [`LogTime`] its records were expected to be overwritten when they were put there
    /// ([`Contents::interval_bytes`]).
    pub interval_bytes: u64,
    /// When its records were put there, on average ([`Contents::filled_at`]). Relocation counts as putting.
    pub filled_at: LogTime,
}

impl SegmentStats {
    /// The part of it that is alive, 0 to 1.
    pub fn live_share(&self) -> f64 {
        (self.live_bytes as f64 / self.size_bytes.max(1) as f64).min(1.0)
    }
}

/// What a segment was filled with, summed up while it is open.
#[derive(Debug, Clone, Copy, Default)]
pub struct Contents {
    bytes: u64,
    /// Bytes expected to die for each byte that users write.
    dying: f64,
    /// Sum of bytes × time, for the mean.
    byte_times: u128,
}

impl Contents {
    /// A record was put into it.
    pub fn add(&mut self, bytes: u64, interval_bytes: u64, now: LogTime) {
        self.bytes += bytes;
        self.dying += bytes as f64 / interval_bytes.max(1) as f64;
        self.byte_times += u128::from(bytes) * u128::from(now.0);
    }

    /// Nothing was put into it.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The interval at which its records die, all of them together.
    pub fn interval_bytes(&self) -> u64 {
        if self.bytes == 0 { u64::MAX } else { (self.bytes as f64 / self.dying) as u64 }
    }

    /// When they were put there, on average.
    pub fn filled_at(&self) -> LogTime {
        let mean = self.byte_times / u128::from(self.bytes.max(1));
        LogTime(u64::try_from(mean).expect("a mean of u64 is one"))
    }
}

/// How segments are compared. [`Score::Rent`] is what the store uses; the others are there to be compared with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Score {
    /// The one filled first.
    Oldest,
    /// The one with the least alive.
    Greedy,
    /// Dead space × age to a power, for what is copied (Rosenblum and Ousterhout, "The Design and Implementation of a
    /// Log-Structured File System", SOSP '91, with the power of 1).
    CostBenefit {
        /// The power.
        age_exponent: f64,
    },
    /// The price of space at which it is due: [`rent_score`].
    Rent,
}

impl Score {
    /// How much the segment is to be preferred, if `dead_share` of it counts as dead: 0 to infinity. 0: nothing is gained.
    pub fn of(self, segment: &SegmentStats, dead_share: f64, now: LogTime) -> f64 {
        if dead_share <= 0.0 {
            return 0.0;
        }
        let age = now.since(segment.filled_at).max(1) as f64;
        match self {
            Self::Oldest => age,
            Self::Greedy => dead_share,
            _ if dead_share >= 1.0 => f64::INFINITY,
            Self::CostBenefit { age_exponent } => dead_share * age.powf(age_exponent) / (1.0 - dead_share),
            Self::Rent => rent_score(segment, dead_share, now),
        }
    }
}

/// Outlived intervals that double the expected one, for records that a segment holds together.
const SURVIVAL_SHAPE: f64 = 2.0;

/// The price of space (the bytes of user writes for which keeping a byte costs as much as copying one) at which the segment
/// is due, if `dead_share` of it counts as dead. 0 if nothing is dead, infinite if everything is.
///
/// The interval of what is alive is what was expected when the segment was filled, longer by what it has outlived since:
/// the hotter ones are those that died.
pub fn rent_score(segment: &SegmentStats, dead_share: f64, now: LogTime) -> f64 {
    if dead_share <= 0.0 {
        return 0.0;
    }
    if dead_share >= 1.0 {
        return f64::INFINITY;
    }
    let live_share = 1.0 - dead_share;
    let age = now.since(segment.filled_at) as f64;
    let interval = segment.interval_bytes.max(1) as f64 + age / SURVIVAL_SHAPE;
    // 1/u − 1 + ln u: never below zero, but the sum of a large and a small number may be.
    ((dead_share / live_share + (-dead_share).ln_1p()) * interval).max(0.0)
}

/// Why a segment is cleaned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It was on the list of those that must move.
    MustMove,
    /// Its score was the highest.
    Score,
}

/// A segment to be cleaned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Victim {
    /// Which.
    pub segment: ChunkId,
    /// Why.
    pub reason: Reason,
    /// Bytes to be copied, as the statistics say.
    pub live_bytes: u64,
}

/// What is asked of [`choose`].
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// The time now.
    pub now: LogTime,
    /// How segments are compared.
    pub score: Score,
    /// How many victims at most.
    pub victims: usize,
    /// Share alive above which a segment is left alone for now, 0 to 1
    /// ([`Marks::live_share_max`](super::pace::Marks::live_share_max)). Those that must move move all the same.
    pub live_share_max: f64,
    /// What all of them may hold alive: the room there is to copy it to.
    pub room_bytes: u64,
    /// Segments to be taken before all others, the most urgent first: bad or weak chunks
    /// (`terrane_ocssd::policy::refresh`), static data in young chunks (`WearPolicy::static_victim`).
    pub must_move: &'a [ChunkId],
}

/// The segments to clean next, in that order, into `victims` (what was in there is dropped).
///
/// `credit` is the share of a segment that counts as dead beside what is, −0.5 to 0.5, for the sake of wear
/// (`terrane_ocssd::policy::wear::WearPolicy::credit`).
pub fn choose<'s>(
    segments: impl Iterator<Item = &'s SegmentStats> + Clone,
    ask: &Ask<'_>,
    credit: impl Fn(&SegmentStats) -> f64,
    victims: &mut Vec<Victim>,
) {
    victims.clear();
    let mut room_bytes = ask.room_bytes;
    let can_take = |segment: &SegmentStats, victims: &[Victim], room_bytes: u64| {
        segment.state == SegmentState::Sealed
            && segment.live_bytes <= room_bytes
            && victims.iter().all(|victim| victim.segment != segment.segment)
    };
    for chunk in ask.must_move {
        if victims.len() == ask.victims {
            return;
        }
        let found = segments.clone().find(|segment| segment.segment == *chunk);
        if let Some(segment) = found.filter(|segment| can_take(segment, victims, room_bytes)) {
            room_bytes -= segment.live_bytes;
            victims.push(Victim {
                segment: *chunk,
                reason: Reason::MustMove,
                live_bytes: segment.live_bytes,
            });
        }
    }
    while victims.len() < ask.victims {
        let scored =
            segments.clone().filter(|segment| can_take(segment, victims, room_bytes)).filter_map(|segment| {
                let dead_share = 1.0 - segment.live_share() + credit(segment);
                let score = ask.score.of(segment, dead_share, ask.now);
                (score > 0.0 && 1.0 - dead_share <= ask.live_share_max).then_some((score, segment))
            });
        let best = scored.max_by(|(a_score, a), (b_score, b)| {
            a_score.total_cmp(b_score).then(b.live_bytes.cmp(&a.live_bytes)).then(b.segment.cmp(&a.segment))
        });
        let Some((_, segment)) = best else { return };
        room_bytes -= segment.live_bytes;
        victims.push(Victim {
            segment: segment.segment,
            reason: Reason::Score,
            live_bytes: segment.live_bytes,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: u64 = 1_000;

    fn segment(chunk: u32, live_bytes: u64, interval_bytes: u64, filled_at: u64) -> SegmentStats {
        SegmentStats {
            segment: ChunkId(chunk),
            state: SegmentState::Sealed,
            size_bytes: SIZE,
            live_bytes,
            class: Class(0),
            interval_bytes,
            filled_at: LogTime(filled_at),
        }
    }

    fn ask(score: Score) -> Ask<'static> {
        Ask {
            now: LogTime(10_000),
            score,
            victims: 1,
            live_share_max: 1.0,
            room_bytes: u64::MAX,
            must_move: &[],
        }
    }

    fn chosen(segments: &[SegmentStats], ask: &Ask<'_>) -> Vec<u32> {
        let mut victims = Vec::new();
        choose(segments.iter(), ask, |_| 0.0, &mut victims);
        victims.iter().map(|victim| victim.segment.0).collect()
    }

    #[test]
    fn each_score_prefers_what_it_is_named_for() {
        let old = segment(0, 900, 1_000, 0);
        let emptiest = segment(1, 300, 1_000, 9_990);
        let cold = segment(2, 700, 1_000_000, 5_000);
        let segments = [old, emptiest, cold];
        assert_eq!(chosen(&segments, &ask(Score::Oldest)), [0]);
        assert_eq!(chosen(&segments, &ask(Score::Greedy)), [1]);
        assert_eq!(chosen(&segments, &ask(Score::CostBenefit { age_exponent: 0.0 })), [1]);
        assert_eq!(chosen(&segments, &ask(Score::CostBenefit { age_exponent: 1.0 })), [2]);
        assert_eq!(chosen(&segments, &ask(Score::Rent)), [2]);
        assert_eq!(chosen(&[old, emptiest], &ask(Score::Rent)), [1]);
    }

    #[test]
    fn what_is_dead_comes_first_and_what_is_full_never() {
        let full = segment(0, SIZE, u64::MAX, 0);
        let dead = segment(1, 0, 1, 10_000);
        for score in [Score::Greedy, Score::CostBenefit { age_exponent: 0.5 }, Score::Rent] {
            assert_eq!(chosen(&[full, segment(2, 1, u64::MAX, 0), dead], &ask(score)), [1], "{score:?}");
            assert_eq!(chosen(&[full], &ask(score)), [0u32; 0], "{score:?}");
        }
        assert_eq!(chosen(&[], &ask(Score::Rent)), [0u32; 0]);
    }

    #[test]
    fn equal_scores_go_to_less_copying_then_to_the_lower_chunk() {
        let mut victims = Vec::new();
        let segments = [segment(1, 20, 1, 0), segment(3, 50, 1, 0), segment(2, 20, 1, 0)];
        choose(segments.iter(), &ask(Score::Rent), |_| 0.5, &mut victims);
        assert_eq!(victims[0].segment, ChunkId(1), "all count as empty");
    }

    /// Without the filters in `choose` each of these would be taken.
    #[test]
    fn open_and_pinned_segments_stay_even_if_they_must_move() {
        for state in [SegmentState::Open, SegmentState::Pinned, SegmentState::Free] {
            let dead = SegmentStats { state, ..segment(0, 0, 1, 0) };
            let must_move = [ChunkId(0)];
            assert_eq!(chosen(&[dead], &Ask { must_move: &must_move, ..ask(Score::Rent) }), [0u32; 0]);
        }
    }

    #[test]
    fn those_that_must_move_come_first_full_or_not() {
        let segments = [segment(0, 10, 1, 0), segment(1, SIZE, 1, 0), segment(2, 999, 1, 0)];
        let must_move = [ChunkId(2), ChunkId(7), ChunkId(1), ChunkId(2)];
        let ask = Ask { must_move: &must_move, victims: 5, live_share_max: 0.5, ..ask(Score::Rent) };
        let mut victims = Vec::new();
        choose(segments.iter(), &ask, |_| 0.0, &mut victims);
        let order: Vec<_> = victims.iter().map(|victim| (victim.segment.0, victim.reason)).collect();
        assert_eq!(order, [(2, Reason::MustMove), (1, Reason::MustMove), (0, Reason::Score)]);
    }

    #[test]
    fn what_is_too_full_for_now_or_for_the_room_is_left() {
        let segments = [segment(0, 400, 1_000_000, 0), segment(1, 100, 1, 9_000)];
        assert_eq!(chosen(&segments, &ask(Score::Rent)), [0]);
        assert_eq!(chosen(&segments, &Ask { live_share_max: 0.3, ..ask(Score::Rent) }), [1]);
        assert_eq!(chosen(&segments, &Ask { room_bytes: 399, ..ask(Score::Rent) }), [1]);
        assert_eq!(chosen(&segments, &Ask { room_bytes: 450, victims: 2, ..ask(Score::Rent) }), [0]);
        assert_eq!(chosen(&segments, &Ask { room_bytes: 500, victims: 2, ..ask(Score::Rent) }), [0, 1]);
        let room_for_one = Ask { room_bytes: 400, must_move: &[ChunkId(0)], victims: 2, ..ask(Score::Rent) };
        assert_eq!(chosen(&segments, &room_for_one), [0], "what must move takes its room");
    }

    #[test]
    fn credit_decides_between_near_equals() {
        let segments = [segment(0, 500, 1_000, 0), segment(1, 510, 1_000, 0)];
        let mut victims = Vec::new();
        choose(segments.iter(), &ask(Score::Rent), |s| f64::from(s.segment.0) * 0.1, &mut victims);
        assert_eq!(victims[0].segment, ChunkId(1));
        assert_eq!(victims[0].live_bytes, 510, "credit is no copy saved");
        let full = [segment(0, SIZE, 1_000, 0)];
        choose(full.iter(), &ask(Score::Rent), |_| 0.1, &mut victims);
        assert_eq!(victims.len(), 1, "credit brings a full segment forward");
        choose(segments.iter(), &ask(Score::Rent), |_| -0.5, &mut victims);
        assert!(victims.is_empty(), "and can hold one back");
    }

    /// The cheapest age to clean, found by trying, is where the score meets the price.
    #[test]
    fn the_rent_score_is_the_price_at_which_cleaning_is_due() {
        for (rate, price) in [(1e-3, 100.0), (1e-3, 1_000.0), (1e-3, 30_000.0)] {
            let cost = |age: f64| {
                let live = (-rate * age).exp();
                (age / price + live) / (1.0 - live)
            };
            let ages = (1..200_000).map(|tenth| f64::from(tenth) / 10.0);
            let best = ages.min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap();
            let dead = 1.0 - (-rate * best).exp();
            // Filled now, so that the interval is the expected one.
            let due = rent_score(&segment(0, 0, (1.0 / rate) as u64, 0), dead, LogTime(0));
            assert!((due / price - 1.0).abs() < 0.01, "rate {rate}, price {price}: due at {due}");
        }
    }

    #[test]
    fn what_survives_is_taken_for_colder() {
        let survivor = segment(0, 0, 1_000, 0);
        let doubled = LogTime((1_000.0 * SURVIVAL_SHAPE) as u64);
        let (young, old) = (rent_score(&survivor, 0.5, LogTime(0)), rent_score(&survivor, 0.5, doubled));
        assert!((old / young - 2.0).abs() < 1e-9, "{young}, then {old}");
    }

    #[test]
    fn contents_sum_up() {
        let mut contents = Contents::default();
        assert_eq!((contents.interval_bytes(), contents.filled_at()), (u64::MAX, LogTime(0)));
        contents.add(100, 1_000, LogTime(50));
        contents.add(300, 3_000, LogTime(90));
        // 100 bytes at 1/1000 and 300 at 1/3000: 0.2 bytes die for each byte written.
        assert_eq!((contents.interval_bytes(), contents.filled_at()), (2_000, LogTime(80)));
        contents.add(100, 0, LogTime(u64::MAX));
        assert!(contents.interval_bytes() < 100);
    }

    prop_compose! {
        fn any_segment()(
            chunk in 0u32..64,
            state in prop::sample::select(vec![
                SegmentState::Free, SegmentState::Open, SegmentState::Sealed, SegmentState::Sealed, SegmentState::Pinned,
            ]),
            live_bytes in 0..=SIZE,
            interval_bytes: u64,
            filled_at in 0u64..20_000,
        ) -> SegmentStats {
            SegmentStats { state, ..segment(chunk, live_bytes, interval_bytes, filled_at) }
        }
    }

    fn any_score() -> impl Strategy<Value = Score> {
        prop::sample::select(vec![
            Score::Oldest,
            Score::Greedy,
            Score::CostBenefit { age_exponent: 0.75 },
            Score::Rent,
        ])
    }

    proptest! {
        #[test]
        fn victims_keep_the_rules(
            mut segments in prop::collection::vec(any_segment(), 0..64),
            score in any_score(),
            victims in 0usize..8,
            live_share_max in 0.0f64..=1.0,
            room_bytes in 0..4 * SIZE,
            must_move in prop::collection::vec((0u32..64).prop_map(ChunkId), 0..4),
            credit in -0.2f64..0.2,
        ) {
            segments.sort_by_key(|segment| segment.segment);
            segments.dedup_by_key(|segment| segment.segment);
            let ask = Ask { now: LogTime(10_000), score, victims, live_share_max, room_bytes, must_move: &must_move };
            let credit = |segment: &SegmentStats| if segment.segment.0.is_multiple_of(2) { credit } else { -credit };
            let mut chosen = Vec::new();
            choose(segments.iter(), &ask, credit, &mut chosen);
            prop_assert!(chosen.len() <= victims);
            prop_assert!(chosen.iter().map(|victim| victim.live_bytes).sum::<u64>() <= room_bytes);
            for (at, victim) in chosen.iter().enumerate() {
                let segment = segments.iter().find(|segment| segment.segment == victim.segment).unwrap();
                prop_assert_eq!(segment.state, SegmentState::Sealed);
                prop_assert_eq!(segment.live_bytes, victim.live_bytes);
                prop_assert!(chosen[..at].iter().all(|other| other.segment != victim.segment));
                match victim.reason {
                    Reason::MustMove => prop_assert!(must_move.contains(&victim.segment)),
                    Reason::Score => prop_assert!(
                        segment.live_share() - credit(segment) <= live_share_max + 1e-9
                    ),
                }
            }
            // The same set in another order gives the same victims.
            segments.reverse();
            let mut again = Vec::new();
            choose(segments.iter(), &ask, credit, &mut again);
            prop_assert_eq!(chosen, again);
        }

        #[test]
        fn more_dead_or_colder_never_scores_lower(
            dead in 0.0f64..1.0, more in 0.0f64..0.5, interval in 1u64..1 << 40, score in any_score(),
        ) {
            let now = LogTime(10_000);
            let base = score.of(&segment(0, 0, interval, 0), dead, now);
            prop_assert!(base >= 0.0);
            prop_assert!(score.of(&segment(0, 0, interval, 0), dead + more, now) >= base);
            prop_assert!(score.of(&segment(0, 0, interval * 2, 0), dead, now) >= base);
            prop_assert!(score.of(&segment(0, 0, interval, 5_000), dead, now) <= base);
        }
    }
}

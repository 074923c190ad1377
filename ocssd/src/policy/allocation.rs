//! Which free chunk a new segment takes.
//!
//! This is dynamic wear levelling: data that dies soon goes where it will be erased soon at least harm, to the least
//! worn chunk; data that stays goes to the most worn, which then rests. It costs nothing, as the segment has to go
//! somewhere (the idea behind the two pools of L.-P. Chang, "On efficient wear leveling for large-scale flash-memory
//! storage systems", SAC 2007).
//!
//! Invariants:
//! - Among chunks whose wear fits equally well, a unit with fewer open segments comes first: two streams on one unit wait
//!   for each other's programs. Wear goes before units, since few free chunks would leave it little to choose from.
//! - Among equals, units are taken in turn, then the lowest chunk: the answer depends on the set of candidates, never
//!   on their order.

use crate::geometry::ChunkId;

/// How long the content of a new segment will live, against other segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lifetime {
    /// Written by users, overwritten soon: the least worn chunk.
    Short,
    /// In between, or unknown: the chunk of median wear. The most worn would be back too soon.
    Medium,
    /// Survived long: the most worn chunk.
    Long,
}

/// A free chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub chunk: ChunkId,
    /// The parallel unit it is in.
    pub unit: u32,
    /// Times it was reset, or [`Endurance::effective_wear`](super::endurance::Endurance::effective_wear).
    pub wear: u32,
}

/// Where segments are open now.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenSegments<'a> {
    /// Open segments of each parallel unit, by its number. A unit beyond the end has none.
    pub per_unit: &'a [u32],
    /// The unit that was chosen last.
    pub last_unit: Option<u32>,
}

impl OpenSegments<'_> {
    fn count(&self, unit: u32) -> u32 {
        self.per_unit.get(unit as usize).copied().unwrap_or(0)
    }

    /// Steps from the unit after the last one to `unit`, going round.
    fn turn(&self, unit: u32) -> u32 {
        let next = self.last_unit.map_or(0, |last| last.wrapping_add(1));
        // Units before the next one come after all others; the distance among them keeps their order.
        unit.wrapping_sub(next)
    }
}

/// The chunk that a new segment of this lifetime takes; `None` if there is no candidate.
pub fn choose(candidates: &[Candidate], open: &OpenSegments<'_>, lifetime: Lifetime) -> Option<Candidate> {
    let wear = wear_for(candidates.iter().map(|candidate| candidate.wear).collect(), lifetime)?;
    let fitting = candidates.iter().filter(|candidate| candidate.wear == wear);
    let order =
        |candidate: &&Candidate| (open.count(candidate.unit), open.turn(candidate.unit), candidate.chunk);
    fitting.min_by_key(order).copied()
}

/// The wear among `wears` that fits the lifetime.
fn wear_for(mut wears: Vec<u32>, lifetime: Lifetime) -> Option<u32> {
    match lifetime {
        Lifetime::Short => wears.into_iter().min(),
        Lifetime::Long => wears.into_iter().max(),
        Lifetime::Medium => {
            let median = wears.len().checked_sub(1)? / 2;
            Some(*wears.select_nth_unstable(median).1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate(chunk: u32, unit: u32, wear: u32) -> Candidate {
        Candidate { chunk: ChunkId(chunk), unit, wear }
    }

    fn chosen(
        candidates: &[Candidate],
        per_unit: &[u32],
        last_unit: Option<u32>,
        lifetime: Lifetime,
    ) -> Option<u32> {
        let open = OpenSegments { per_unit, last_unit };
        choose(candidates, &open, lifetime).map(|candidate| candidate.chunk.0)
    }

    #[test]
    fn wear_fits_the_lifetime() {
        let free = [
            candidate(0, 0, 5),
            candidate(1, 0, 2),
            candidate(2, 0, 9),
            candidate(3, 0, 6),
            candidate(4, 0, 6),
        ];
        assert_eq!(chosen(&free, &[0], None, Lifetime::Short), Some(1));
        assert_eq!(chosen(&free, &[0], None, Lifetime::Medium), Some(3));
        assert_eq!(chosen(&free, &[0], None, Lifetime::Long), Some(2));
        assert_eq!(chosen(&[], &[0], None, Lifetime::Short), None);
    }

    /// Without the rule the lowest chunk would win, and two streams would share a unit.
    #[test]
    fn open_segments_spread_over_units_of_equal_wear() {
        let free = [candidate(0, 0, 1), candidate(8, 1, 1), candidate(16, 2, 9), candidate(24, 3, 9)];
        assert_eq!(chosen(&free, &[1, 0, 0, 0], None, Lifetime::Short), Some(8));
        assert_eq!(chosen(&free, &[1, 1, 0, 0], None, Lifetime::Short), Some(0), "9 is not 1");
        assert_eq!(chosen(&free, &[0, 0, 2, 1], None, Lifetime::Long), Some(24));
        assert_eq!(chosen(&free, &[0, 0, 1, 1], None, Lifetime::Long), Some(16), "1 is not 9");
    }

    #[test]
    fn equal_units_are_taken_in_turn() {
        let free = [candidate(0, 0, 3), candidate(8, 1, 3), candidate(16, 2, 3)];
        let mut last = None;
        let mut units = Vec::new();
        for _ in 0..6 {
            let open = OpenSegments { per_unit: &[], last_unit: last };
            let unit = choose(&free, &open, Lifetime::Short).unwrap().unit;
            units.push(unit);
            last = Some(unit);
        }
        assert_eq!(units, [0, 1, 2, 0, 1, 2]);
        assert_eq!(chosen(&free, &[], Some(u32::MAX), Lifetime::Short), Some(0));
    }

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        prop::collection::vec((0u32..6, 0u32..20), 1..40).prop_map(|list| {
            let number = |(chunk, (unit, wear)): (usize, (u32, u32))| candidate(chunk as u32, unit, wear);
            list.into_iter().enumerate().map(number).collect()
        })
    }

    fn lifetimes() -> impl Strategy<Value = Lifetime> {
        prop_oneof![Just(Lifetime::Short), Just(Lifetime::Medium), Just(Lifetime::Long)]
    }

    proptest! {
        #[test]
        fn the_order_of_candidates_does_not_matter(
            free in candidates(),
            per_unit in prop::collection::vec(0u32..3, 0..7),
            last_unit in prop::option::of(0u32..6),
            lifetime in lifetimes(),
        ) {
            let open = OpenSegments { per_unit: &per_unit, last_unit };
            let mut reversed = free.clone();
            reversed.reverse();
            prop_assert_eq!(choose(&free, &open, lifetime), choose(&reversed, &open, lifetime));
        }

        #[test]
        fn no_better_unit_and_no_fitter_wear_is_left(
            free in candidates(),
            per_unit in prop::collection::vec(0u32..3, 0..7),
            last_unit in prop::option::of(0u32..6),
            lifetime in lifetimes(),
        ) {
            let open = OpenSegments { per_unit: &per_unit, last_unit };
            let chosen = choose(&free, &open, lifetime).unwrap();
            let mut wears: Vec<u32> = free.iter().map(|candidate| candidate.wear).collect();
            wears.sort_unstable();
            let best = match lifetime {
                Lifetime::Short => wears[0],
                Lifetime::Medium => wears[(wears.len() - 1) / 2],
                Lifetime::Long => wears[wears.len() - 1],
            };
            prop_assert_eq!(chosen.wear, best);
            for other in free.iter().filter(|other| other.wear == best) {
                prop_assert!(open.count(chosen.unit) <= open.count(other.unit));
            }
        }
    }
}

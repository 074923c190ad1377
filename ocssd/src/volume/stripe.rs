//! The stripe: how the sectors of a line lie on its members.
//!
//! Round robin by stripe unit, as in RAID 0 (Patterson, Gibson and Katz, SIGMOD '88): unit `n` of a line is on member
//! `n % width`. A run of sectors of a line is **one** run of sectors on each member, so a long read or write is at
//! most one operation a member.
//!
//! ```text
//! line       | 0 | 1 | 2 | 3 | 4 | 5 | 6 | ...      one stripe unit each
//! member 0   | 0 | 3 | 6 |
//! member 1   | 1 | 4 |
//! member 2   | 2 | 5 |
//! ```
//!
//! # The lag of a line
//!
//! A device with a buffer that dies with the power keeps the last `mw_cunits` sectors `m` below the write pointer of
//! each open chunk in it, flushed or not. Written up to sector `X`, a line is durable below `X - L` if **every**
//! member has at least `m` sectors (or all it has) within `[X - L, X)`. With unit `u` and stripe `S = width * u`, a run
//! of `k * S + r` sectors (`r < S`) has `k * u` sectors on every member from the whole stripes; of the rest it has
//! fewest on the member whose unit ends just where the run begins, since the `S - u` sectors of all the others come
//! first: `max(0, r - (S - u))`. So with `m = q * u + t` (`t < u`):
//!
//! ```text
//! L = q * S                      if t = 0
//! L = q * S + (S - u) + t        otherwise
//! ```
//!
//! For one member this is `m`. [`Stripe::lag`] is that, and a property test compares it with counting.

/// The shape of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stripe {
    /// Members.
    pub(super) width: u32,
    /// Sectors of a stripe unit.
    pub(super) unit_sectors: u32,
    /// Sectors of a member, a whole number of units.
    pub(super) chunk_sectors: u32,
}

/// A run of sectors that is one run in the line and on one member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) member: usize,
    /// First sector within the member.
    pub(super) sector: u32,
    pub(super) sectors: u32,
    /// Sectors of the whole run before this piece.
    pub(super) offset: u32,
}

impl Stripe {
    /// Sectors of a line.
    pub(super) fn line_sectors(&self) -> u32 {
        self.width * self.chunk_sectors
    }

    /// Sectors of one unit on every member.
    pub(super) fn stripe_sectors(&self) -> u32 {
        self.width * self.unit_sectors
    }

    /// The member and its sector that hold a sector of the line.
    pub(super) fn locate(&self, sector: u32) -> (usize, u32) {
        let (stripe, rest) = (sector / self.stripe_sectors(), sector % self.stripe_sectors());
        let member = rest / self.unit_sectors;
        (member as usize, stripe * self.unit_sectors + rest % self.unit_sectors)
    }

    /// The sector of the line that a member's sector holds.
    pub(super) fn sector_of(&self, member: usize, sector: u32) -> u32 {
        let (stripe, rest) = (sector / self.unit_sectors, sector % self.unit_sectors);
        stripe * self.stripe_sectors() + member as u32 * self.unit_sectors + rest
    }

    /// Sectors that the first `end` sectors of the line have on a member: also where on it the next one goes.
    pub(super) fn member_end(&self, member: usize, end: u32) -> u32 {
        let (stripes, rest) = (end / self.stripe_sectors(), end % self.stripe_sectors());
        let before = member as u32 * self.unit_sectors;
        stripes * self.unit_sectors + rest.saturating_sub(before).min(self.unit_sectors)
    }

    /// The run in pieces, ascending, none crossing the bound of a unit.
    pub(super) fn pieces(&self, sector: u32, sectors: u32) -> impl Iterator<Item = Piece> + use<> {
        let stripe = *self;
        let end = sector + sectors;
        let mut at = sector;
        std::iter::from_fn(move || {
            if at == end {
                return None;
            }
            let (member, on_member) = stripe.locate(at);
            let left_of_unit = stripe.unit_sectors - on_member % stripe.unit_sectors;
            let piece =
                Piece { member, sector: on_member, sectors: left_of_unit.min(end - at), offset: at - sector };
            at += piece.sectors;
            Some(piece)
        })
    }

    /// The longest prefix of the line that is there, given how far each member goes. `None`: the member does not count.
    pub(super) fn prefix(&self, ends: impl IntoIterator<Item = Option<u32>>) -> u32 {
        let first_missing = |(member, end): (usize, Option<u32>)| match end {
            Some(end) if end < self.chunk_sectors => self.sector_of(member, end),
            _ => self.line_sectors(),
        };
        ends.into_iter().enumerate().map(first_missing).min().unwrap_or(0)
    }

    /// Sectors of a line that must be written behind a sector before it is durable on a device whose buffer of
    /// `mw_cunits` sectors a chunk dies with the power. See the file's header.
    pub(super) fn lag(&self, mw_cunits: u32) -> u32 {
        let (units, rest) = (mw_cunits / self.unit_sectors, mw_cunits % self.unit_sectors);
        let partial = if rest == 0 { 0 } else { self.stripe_sectors() - self.unit_sectors + rest };
        units * self.stripe_sectors() + partial
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stripes() -> impl Strategy<Value = Stripe> {
        (1..6u32, 1..6u32, 2..7u32).prop_map(|(width, unit_sectors, units)| Stripe {
            width,
            unit_sectors,
            chunk_sectors: units * unit_sectors,
        })
    }

    /// Sectors of `[start, end)` on a member, counted one by one.
    fn counted(stripe: &Stripe, member: usize, start: u32, end: u32) -> u32 {
        (start..end).filter(|sector| stripe.locate(*sector).0 == member).count() as u32
    }

    proptest! {
        #[test]
        fn every_sector_has_one_place(stripe in stripes()) {
            let mut next = vec![0; stripe.width as usize];
            for sector in 0..stripe.line_sectors() {
                let (member, on_member) = stripe.locate(sector);
                prop_assert_eq!(on_member, next[member], "a member is filled front to back");
                next[member] += 1;
                prop_assert_eq!(stripe.sector_of(member, on_member), sector);
            }
            prop_assert!(next.iter().all(|end| *end == stripe.chunk_sectors));
        }

        #[test]
        fn member_ends_count(stripe in stripes(), end in 0..200u32) {
            let end = end % (stripe.line_sectors() + 1);
            for member in 0..stripe.width as usize {
                prop_assert_eq!(stripe.member_end(member, end), counted(&stripe, member, 0, end));
            }
        }

        #[test]
        fn pieces_are_the_run(stripe in stripes(), from in 0..200u32, count in 1..200u32) {
            let from = from % stripe.line_sectors();
            let count = count.min(stripe.line_sectors() - from);
            let mut at = 0;
            for piece in stripe.pieces(from, count) {
                prop_assert_eq!(piece.offset, at);
                for step in 0..piece.sectors {
                    let place = stripe.locate(from + at + step);
                    prop_assert_eq!(place, (piece.member, piece.sector + step));
                }
                prop_assert!(piece.sectors > 0 && piece.sectors <= stripe.unit_sectors);
                at += piece.sectors;
            }
            prop_assert_eq!(at, count);
        }

        /// Whatever the members' ends: all sectors below the prefix are there, and the one at it is not.
        #[test]
        fn the_prefix_is_there_and_no_longer(stripe in stripes(), seeds in prop::collection::vec(0..1000u32, 6)) {
            let ends: Vec<u32> = (0..stripe.width as usize)
                .map(|member| seeds[member] % (stripe.chunk_sectors + 1))
                .collect();
            let there = |sector: u32| {
                let (member, on_member) = stripe.locate(sector);
                on_member < ends[member]
            };
            let prefix = stripe.prefix(ends.iter().copied().map(Some));
            prop_assert!((0..prefix).all(there));
            prop_assert!(prefix == stripe.line_sectors() || !there(prefix));
        }

        /// The lag is enough for every end, and one sector less is not (in lines long enough to show it).
        #[test]
        fn the_lag_is_enough_and_no_more(width in 1..5u32, unit in 1..5u32, mw in 0..14u32) {
            let stripe = Stripe { width, unit_sectors: unit, chunk_sectors: unit * 40 };
            let enough = |lag: u32| (0..=stripe.line_sectors()).all(|end| {
                (0..width as usize).all(|member| {
                    let behind = counted(&stripe, member, end.saturating_sub(lag), end);
                    behind >= mw.min(stripe.member_end(member, end))
                })
            });
            let lag = stripe.lag(mw);
            prop_assert!(enough(lag), "{} is not enough", lag);
            prop_assert!(lag == 0 || !enough(lag - 1), "{} is more than needed", lag);
        }
    }
}

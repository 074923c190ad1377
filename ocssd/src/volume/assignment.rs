//! Which chunk plays which part: the static assignment, and what was remapped.
//!
//! ```text
//! chunk of a unit   0 1 | 2 .. 2+spares | 2+spares ..
//! units 0 and 1     metadata | spares   | member of line 0, 1, 2 ...
//! other units       spares   | spares   | member of line 0, 1, 2 ...
//! ```
//!
//! A lone unit keeps four chunks for metadata. The units are divided into `units / width` stripe sets; member `j` of set
//! `s` is in unit `j * sets + s`, so that the members of a narrow stripe are in different groups where there are
//! several. Line `l` belongs to set `l % sets`: consecutive lines keep all units busy. Its home in each unit is the same
//! nth chunk, and a bad one is remapped.
//!
//! Invariants:
//! - A chunk is at most one of: metadata candidate, member of one line, spare, known bad.
//! - Candidates for metadata never become members. Anything that a host writes may stand at the front of a member, a
//!   forged record too; recovery looks for records only where no host ever writes.

use std::collections::{BTreeMap, BTreeSet};

use super::error::VolumeError;
use super::stripe::Stripe;
use crate::geometry::{ChunkId, Geometry};

/// Chunks of each of the two metadata units that may hold metadata: the place itself and what replaces it.
const CANDIDATES_PER_PLACE: u32 = 2;

/// Physical chunks that metadata keeps open.
const METADATA_OPEN_CHUNKS: u32 = 2;

/// Where a member stands: which one of which line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct MemberId {
    pub(super) line: u32,
    pub(super) member: u32,
}

/// The static assignment of a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Assignment {
    pub(super) geometry: Geometry,
    pub(super) stripe: Stripe,
    pub(super) spare_chunks_per_unit: u32,
    sets: u32,
    lines_per_set: u32,
}

impl Assignment {
    /// Divides a slice. `width` 0: all units.
    pub(super) fn new(
        geometry: Geometry,
        width: u32,
        spare_chunks_per_unit: u32,
    ) -> Result<Self, VolumeError> {
        let units = geometry
            .groups
            .checked_mul(geometry.parallel_units)
            .filter(|units| *units > 0 && units.checked_mul(geometry.chunks).is_some())
            .ok_or(VolumeError::Options("the device's geometry makes no sense"))?;
        let width = if width == 0 { units } else { width };
        if width > units || !units.is_multiple_of(width) {
            return Err(VolumeError::Options("the stripe's width must divide the number of parallel units"));
        }
        let unit_sectors = unit_sectors(&geometry)?;
        let stripe = Stripe { width, unit_sectors, chunk_sectors: geometry.chunk_sectors };
        if width.checked_mul(geometry.chunk_sectors).is_none() {
            return Err(VolumeError::Options("a line has more sectors than can be addressed"));
        }
        let reserved = reserved_chunks(units).saturating_add(spare_chunks_per_unit);
        let Some(lines_per_set) = geometry.chunks.checked_sub(reserved).filter(|lines| *lines > 0) else {
            return Err(VolumeError::Options("metadata and spares leave no chunk of a unit for data"));
        };
        let this = Self { geometry, stripe, spare_chunks_per_unit, sets: units / width, lines_per_set };
        if geometry.max_open != 0 && this.max_open() == 0 {
            return Err(VolumeError::Options(
                "the device's limit of open chunks does not allow a stripe of that width beside the metadata",
            ));
        }
        Ok(this)
    }

    /// Lines of the slice.
    pub(super) fn lines(&self) -> u32 {
        self.sets * self.lines_per_set
    }

    /// Lines that may be open at once; 0: no limit. Two chunks of the device's limit are the metadata's.
    pub(super) fn max_open(&self) -> u32 {
        self.geometry.max_open.saturating_sub(METADATA_OPEN_CHUNKS) / self.stripe.width
    }

    /// What the host sees: one unit, whose chunks are the lines.
    pub(super) fn logical_geometry(&self, protects_buffer: bool) -> Geometry {
        let Geometry { sector_bytes, ws_min, mw_cunits, .. } = self.geometry;
        Geometry {
            groups: 1,
            parallel_units: 1,
            chunks: self.lines(),
            chunk_sectors: self.stripe.line_sectors(),
            sector_bytes,
            ws_min,
            ws_opt: self.stripe.stripe_sectors(),
            mw_cunits: if protects_buffer { 0 } else { self.stripe.lag(mw_cunits) },
            max_open: self.max_open(),
        }
    }

    /// Where a member stands unless it was remapped.
    pub(super) fn home(&self, id: MemberId) -> ChunkId {
        let (set, nth) = (id.line % self.sets, id.line / self.sets);
        let unit = id.member * self.sets + set;
        self.geometry.chunk_of(unit, self.first_line_chunk() + nth)
    }

    /// The member whose home a chunk is.
    pub(super) fn member_at_home(&self, chunk: ChunkId) -> Option<MemberId> {
        let (unit, nth) = (self.geometry.unit_of(chunk), chunk.0 % self.geometry.chunks);
        let nth = nth.checked_sub(self.first_line_chunk())?;
        Some(MemberId { line: nth * self.sets + unit % self.sets, member: unit / self.sets })
    }

    /// The chunks that may hold metadata, those of each of the two places.
    pub(super) fn candidates(&self) -> [Vec<ChunkId>; 2] {
        candidates(&self.geometry)
    }

    /// The chunks that no line has at first and no metadata.
    pub(super) fn first_spares(&self) -> BTreeSet<ChunkId> {
        let [first, second] = self.candidates();
        (0..self.geometry.chunk_count())
            .map(ChunkId)
            .filter(|chunk| chunk.0 % self.geometry.chunks < self.first_line_chunk())
            .filter(|chunk| !first.contains(chunk) && !second.contains(chunk))
            .collect()
    }

    /// All members, line by line.
    pub(super) fn members(&self) -> impl Iterator<Item = MemberId> + use<> {
        let width = self.stripe.width;
        (0..self.lines()).flat_map(move |line| (0..width).map(move |member| MemberId { line, member }))
    }

    fn first_line_chunk(&self) -> u32 {
        reserved_chunks(self.geometry.unit_count()) + self.spare_chunks_per_unit
    }
}

/// The chunks that may hold metadata on a device of that shape. Depends on nothing that a record says.
pub(super) fn candidates(geometry: &Geometry) -> [Vec<ChunkId>; 2] {
    let chunk = |unit, nth| (nth < geometry.chunks).then(|| geometry.chunk_of(unit, nth));
    let of =
        |unit, from: u32| (from..from + CANDIDATES_PER_PLACE).filter_map(|nth| chunk(unit, nth)).collect();
    match geometry.unit_count() {
        0 => [Vec::new(), Vec::new()],
        1 => [of(0, 0), of(0, CANDIDATES_PER_PLACE)],
        _ => [of(0, 0), of(1, 0)],
    }
}

/// Chunks at the front of every unit that are not the lines' beside the spares asked for.
fn reserved_chunks(units: u32) -> u32 {
    if units == 1 { 2 * CANDIDATES_PER_PLACE } else { CANDIDATES_PER_PLACE }
}

/// The stripe unit: the device's best write, or the largest smaller one of which a chunk is a whole number, at least two
/// (or a line whose members are all free or full could not be told from one that was closed).
fn unit_sectors(geometry: &Geometry) -> Result<u32, VolumeError> {
    let Geometry { chunk_sectors, ws_min, ws_opt, sector_bytes, .. } = *geometry;
    if sector_bytes == 0 || ws_min == 0 || chunk_sectors == 0 || !chunk_sectors.is_multiple_of(ws_min) {
        return Err(VolumeError::Options("the device's geometry makes no sense"));
    }
    let most = (ws_opt.max(ws_min) / ws_min).min(chunk_sectors / ws_min / 2);
    (1..=most)
        .rev()
        .map(|writes| writes * ws_min)
        .find(|unit| chunk_sectors.is_multiple_of(*unit))
        .ok_or(VolumeError::Options("a chunk is not even two smallest writes"))
}

/// What changed since the volume was made. This is what metadata records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tables {
    /// Members that do not stand at home.
    pub(super) remaps: BTreeMap<MemberId, ChunkId>,
    /// Chunks that are never used again: bad at birth, or grown.
    pub(super) defects: BTreeSet<ChunkId>,
    /// How often a chunk failed a write and was taken back.
    pub(super) strikes: BTreeMap<ChunkId, u32>,
}

impl Tables {
    /// Where a member stands.
    pub(super) fn chunk_of(&self, assignment: &Assignment, id: MemberId) -> ChunkId {
        self.remaps.get(&id).copied().unwrap_or_else(|| assignment.home(id))
    }

    /// Lets a member stand on a chunk.
    pub(super) fn assign(&mut self, assignment: &Assignment, id: MemberId, chunk: ChunkId) {
        if assignment.home(id) == chunk {
            self.remaps.remove(&id);
        } else {
            self.remaps.insert(id, chunk);
        }
    }

    /// Chunks that are nothing: neither member, nor metadata, nor known bad.
    pub(super) fn unused(&self, assignment: &Assignment) -> BTreeSet<ChunkId> {
        let [first, second] = assignment.candidates();
        let members: BTreeSet<ChunkId> =
            assignment.members().map(|id| self.chunk_of(assignment, id)).collect();
        (0..assignment.geometry.chunk_count())
            .map(ChunkId)
            .filter(|chunk| !first.contains(chunk) && !second.contains(chunk))
            .filter(|chunk| !members.contains(chunk) && !self.defects.contains(chunk))
            .collect()
    }

    /// Whether what a record says makes sense for that slice.
    pub(super) fn validate(&self, assignment: &Assignment) -> Result<(), &'static str> {
        let chunks = assignment.geometry.chunk_count();
        let [first, second] = assignment.candidates();
        for (id, chunk) in &self.remaps {
            if id.line >= assignment.lines() || id.member >= assignment.stripe.width || chunk.0 >= chunks {
                return Err("it remaps what does not exist");
            }
            if first.contains(chunk) || second.contains(chunk) {
                return Err("it gives a line a chunk of the metadata");
            }
        }
        // Homes differ, so only what was remapped can collide. Members are not listed: how many there are is the record's word.
        let mut taken = BTreeSet::new();
        let collides = |chunk: &ChunkId| {
            let at_home = assignment.member_at_home(*chunk);
            !taken.insert(*chunk) || at_home.is_some_and(|id| !self.remaps.contains_key(&id))
        };
        if self.remaps.values().any(collides) {
            return Err("it gives one chunk to two members");
        }
        if self.defects.iter().chain(self.strikes.keys()).any(|chunk| chunk.0 >= chunks) {
            return Err("it speaks of chunks that do not exist");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(groups: u32, parallel_units: u32) -> Geometry {
        Geometry {
            groups,
            parallel_units,
            chunks: 10,
            chunk_sectors: 64,
            sector_bytes: 512,
            ws_min: 2,
            ws_opt: 8,
            mw_cunits: 12,
            max_open: 0,
        }
    }

    #[test]
    fn every_chunk_has_one_part() {
        for (groups, units, width, spares) in
            [(1, 1, 0, 1), (1, 2, 0, 2), (2, 4, 4, 1), (2, 4, 0, 3), (2, 2, 1, 0)]
        {
            let assignment = Assignment::new(geometry(groups, units), width, spares).unwrap();
            let [first, second] = assignment.candidates();
            let mut parts: Vec<ChunkId> = first.into_iter().chain(second).collect();
            parts.extend(assignment.first_spares());
            parts.extend(assignment.members().map(|id| assignment.home(id)));
            parts.sort();
            let all: Vec<ChunkId> = (0..assignment.geometry.chunk_count()).map(ChunkId).collect();
            assert_eq!(parts, all, "{groups} groups of {units}, width {width}");
            for id in assignment.members() {
                assert_eq!(assignment.member_at_home(assignment.home(id)), Some(id));
            }
            assert_eq!(Tables::default().unused(&assignment), assignment.first_spares());
            assert_eq!(Tables::default().validate(&assignment), Ok(()));
        }
    }

    /// Fails by taking all time and memory if what a record says of the device's size is believed before it is compared: members
    /// were listed once.
    #[test]
    fn a_chunk_is_given_to_one_member_however_many_there_are() {
        for chunks in [20, 0x1fff_ffff] {
            let assignment = Assignment::new(Geometry { chunks, ..geometry(2, 2) }, 4, 1).unwrap();
            let at = |line, member| MemberId { line, member };
            let home = |line, member| assignment.home(at(line, member));
            let valid = |remaps: &[(MemberId, ChunkId)]| {
                let tables = Tables { remaps: remaps.iter().copied().collect(), ..Tables::default() };
                tables.validate(&assignment)
            };
            let spare = ChunkId(home(0, 2).0 - 1);
            assert_eq!(valid(&[(at(1, 2), spare)]), Ok(()));
            assert_eq!(
                valid(&[(at(1, 2), home(3, 2)), (at(3, 2), home(1, 2))]),
                Ok(()),
                "they changed places"
            );
            for twice in [&[(at(1, 2), home(3, 2))][..], &[(at(1, 2), spare), (at(3, 2), spare)]] {
                assert_eq!(valid(twice), Err("it gives one chunk to two members"));
            }
        }
    }

    #[test]
    fn members_are_in_units_of_their_own_and_in_many_groups() {
        let assignment = Assignment::new(geometry(4, 2), 4, 1).unwrap();
        for line in 0..assignment.lines() {
            let homes = (0..4).map(|member| assignment.home(MemberId { line, member }));
            let groups: BTreeSet<u32> = homes.map(|chunk| assignment.geometry.unit_of(chunk) / 2).collect();
            assert_eq!(groups.len(), 4);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refused = |geometry, width, spares| {
            matches!(Assignment::new(geometry, width, spares), Err(VolumeError::Options(_)))
        };
        assert!(refused(geometry(2, 2), 3, 1));
        assert!(refused(geometry(2, 2), 8, 1));
        assert!(refused(geometry(2, 2), 0, 8));
        assert!(refused(Geometry { ws_min: 3, ..geometry(1, 1) }, 0, 1));
        assert!(refused(Geometry { ws_min: 64, ws_opt: 64, ..geometry(1, 1) }, 0, 1));
        assert!(refused(Geometry { groups: 0, ..geometry(1, 1) }, 0, 1));
        assert!(refused(Geometry { max_open: 5, ..geometry(2, 2) }, 4, 1));
        assert!(!refused(Geometry { max_open: 6, ..geometry(2, 2) }, 4, 1));
    }

    #[test]
    fn the_stripe_unit_divides_a_chunk() {
        let unit = |chunk_sectors, ws_min, ws_opt| {
            unit_sectors(&Geometry { chunk_sectors, ws_min, ws_opt, ..geometry(1, 1) }).unwrap()
        };
        assert_eq!(unit(64, 2, 8), 8);
        assert_eq!(unit(64, 2, 0), 2);
        assert_eq!(unit(60, 2, 8), 6);
        assert_eq!(unit(64, 1, 64), 32);
    }

    #[test]
    fn logical_geometry() {
        let limited = Geometry { max_open: 11, ..geometry(2, 2) };
        let assignment = Assignment::new(limited, 0, 3).unwrap();
        let expected = Geometry {
            groups: 1,
            parallel_units: 1,
            chunks: 5,
            chunk_sectors: 256,
            sector_bytes: 512,
            ws_min: 2,
            ws_opt: 32,
            mw_cunits: 32 + 24 + 4,
            max_open: 2,
        };
        assert_eq!(assignment.logical_geometry(false), expected);
        assert_eq!(assignment.logical_geometry(true), Geometry { mw_cunits: 0, ..expected });
    }

    #[test]
    fn tables_that_make_no_sense_are_noticed() {
        let assignment = Assignment::new(geometry(2, 2), 0, 3).unwrap();
        let spare = *assignment.first_spares().first().unwrap();
        let id = MemberId { line: 1, member: 2 };
        let with = |id, chunk| {
            let mut tables = Tables::default();
            tables.remaps.insert(id, chunk);
            tables.validate(&assignment)
        };
        assert_eq!(with(id, spare), Ok(()));
        assert!(with(id, ChunkId(0)).is_err(), "a chunk of the metadata");
        assert!(with(id, ChunkId(40)).is_err());
        assert!(with(id, assignment.home(MemberId { line: 2, member: 2 })).is_err());
        assert!(with(MemberId { line: 5, ..id }, spare).is_err());
        assert!(with(MemberId { member: 4, ..id }, spare).is_err());
        let defects = BTreeSet::from([ChunkId(40)]);
        assert!(Tables { defects, ..Tables::default() }.validate(&assignment).is_err());
    }
}

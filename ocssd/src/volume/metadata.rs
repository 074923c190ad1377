//! The metadata's two places, and how a record gets into both.
//!
//! A place is a chunk in which records are appended, each padded to the smallest write and, behind that, by twice
//! `mw_cunits` sectors: a power cut may take the first half of that, and the device then hides the other one; the record
//! is before both. The candidates for both places are
//! few and fixed (see [`assignment`](super::assignment)): recovery looks at all of them, and needs no pointer to find
//! one that took the place of another.
//!
//! Every record is a full copy of the newest state and goes to **both** places, one after the other, before anything
//! relies on it. So:
//!
//! - the newest record that anybody relied on is in both places, and either of them is enough;
//! - a chunk is reset for metadata only while the other place holds the newest record: the place that is behind is
//!   written first;
//! - a record that does not end below its chunk's write pointer was torn and is ignored: nobody relied on it;
//! - a whole record with a wrong checksum, or sectors that cannot be read, is *damage*, behind which a newer record may
//!   be hidden. The newest record is taken only if a chunk that holds it has no damage behind it; one place may be
//!   damaged as long as the other is not. A record's padding hides nothing, whatever is found there; and padding is all
//!   that the device hides of records that anybody relied on, so a start sees the damage that there is.
//!
//! Damage, or a torn record, in a chunk that is not one of the newest records' is repaired by a start: it resets the chunk
//! once both places hold the newest record.
//!
//! A torn record may also come to light **later**: as long as its chunk is open the device hides its last sectors, and a
//! start that did not see it goes on from the record before. So if a chunk is not written exactly to the end of its last
//! record, a start writes a new record before it relies on the old one, and skips a sequence number with it, which beats
//! whatever may be hidden.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::assignment::{Assignment, Tables};
use super::error::VolumeError;
use super::line::Blame;
use super::record::{Found, METADATA_VERSION, Record};
use super::shared::{Shared, State};
use crate::buffer::AlignedBuf;
use crate::geometry::{ChunkId, Geometry};
use crate::media::{ChunkInfo, ChunkState, Durability, Media, MediaError};

/// Where the next record of a place goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) chunk: ChunkId,
    pub(super) next_sector: u32,
    /// Whether anything may follow what is there.
    appendable: bool,
    /// Whether the device counts the chunk as open.
    open: bool,
}

/// Why no record can be written any more.
#[derive(Debug)]
enum Failed {
    PowerLost,
    Device(String),
}

impl Failed {
    fn error(&self) -> MediaError {
        match self {
            Self::PowerLost => MediaError::PowerLost,
            Self::Device(reason) => {
                let source = std::io::Error::other(VolumeError::MetadataFailed(reason.clone()));
                MediaError::Io { operation: "write", chunk: ChunkId(0), sector: 0, source }
            }
        }
    }
}

/// What stopped the write of a record.
enum WriteError {
    /// The chunk is to blame.
    Chunk(Blame),
    /// The device, or it did not say that the chunk is at fault.
    Device(MediaError),
}

/// The two places, and how far each of them is.
#[derive(Debug)]
pub(super) struct Places {
    candidates: [Vec<ChunkId>; 2],
    pub(super) active: [Option<Place>; 2],
    /// Sequence of the newest record in each.
    held: [u64; 2],
    /// Candidates known to be free.
    free: BTreeSet<ChunkId>,
    /// Sequence of the newest record.
    sequence: u64,
    /// The version of the tables that both places hold.
    durable_version: Option<u64>,
    writing: bool,
    failed: Option<Failed>,
}

impl Places {
    /// Places of a new volume: nothing is anywhere, but for a record numbered up to `kept` of an earlier volume in a
    /// chunk that cannot be reset.
    pub(super) fn empty(candidates: [Vec<ChunkId>; 2], free: BTreeSet<ChunkId>, kept: u64) -> Self {
        Self {
            candidates,
            active: [None, None],
            held: [0, 0],
            free,
            sequence: kept,
            durable_version: None,
            writing: false,
            failed: None,
        }
    }

    /// Whether a chunk is open, and to be written on.
    pub(super) fn is_open(&self, chunk: ChunkId) -> bool {
        self.active.iter().flatten().any(|place| place.chunk == chunk && place.open)
    }

    /// A chunk was closed.
    fn close(&mut self, chunk: ChunkId) {
        for place in self.active.iter_mut().flatten().filter(|place| place.chunk == chunk) {
            place.open = false;
        }
    }

    /// A chunk is not to be written on: the next record of its place goes to another one if there is one. False: it is no
    /// place's.
    pub(super) fn leave(&mut self, chunk: ChunkId) -> bool {
        let place = self.active.iter_mut().flatten().find(|place| place.chunk == chunk);
        place.map(|place| place.appendable = false).is_some()
    }

    /// Whether a chunk is one of the two that hold the newest records.
    fn is_active(&self, chunk: ChunkId) -> bool {
        self.active.iter().flatten().any(|place| place.chunk == chunk)
    }

    /// Whether a chunk is one of the candidates.
    pub(super) fn is_candidate(&self, chunk: ChunkId) -> bool {
        self.candidates.iter().any(|candidates| candidates.contains(&chunk))
    }

    /// Whether a record could not be written.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Whether both places hold that version of the tables, or a later one.
    pub(super) fn holds(&self, version: u64) -> bool {
        self.durable_version.is_some_and(|durable| durable >= version)
    }
}

/// Where the next record of a place goes, and whether the chunk must be reset first. `None`: there is no chunk.
///
/// In the chunk it has while there is room; else in another candidate of its own, of the other place's, or in its own
/// one again, in that order.
fn choose(
    places: &Places,
    defects: &BTreeSet<ChunkId>,
    index: usize,
    sectors: u32,
    chunk_sectors: u32,
) -> Option<(Place, bool)> {
    let current = places.active[index];
    if let Some(place) = current
        && place.appendable
        && sectors <= chunk_sectors - place.next_sector
    {
        return Some((place, false));
    }
    let current = current.map(|place| place.chunk);
    let other = places.active[1 - index].map(|place| place.chunk);
    let own = places.candidates[index].iter().chain(&places.candidates[1 - index]).copied();
    let mut usable = own.filter(|chunk| Some(*chunk) != other && !defects.contains(chunk));
    let chunk = usable.clone().find(|chunk| Some(*chunk) != current).or_else(|| usable.next())?;
    Some((Place { chunk, next_sector: 0, appendable: true, open: false }, !places.free.contains(&chunk)))
}

impl<M: Media> Shared<M> {
    /// Resolves when a record of the tables as they are now is durable in both places. For jobs.
    pub(super) async fn commit(self: &Rc<Self>) -> Result<(), MediaError> {
        let wanted = self.state.borrow().tables_version;
        loop {
            {
                let mut state = self.state.borrow_mut();
                if let Some(reason) = &state.places.failed {
                    return Err(reason.error());
                }
                if state.places.holds(wanted) {
                    return Ok(());
                }
                if !state.places.writing {
                    state.places.writing = true;
                    let shared = Rc::clone(self);
                    self.jobs.add(async move { shared.write_records().await });
                }
            }
            let progress = || (!self.state.borrow().places.writing).then_some(());
            self.jobs.wait(progress).await;
        }
    }

    /// Writes records until one holds the tables as they are.
    async fn write_records(self: Rc<Self>) {
        loop {
            let (record, version) = self.next_record();
            let written = self.write_record(&record).await;
            let mut state = self.state.borrow_mut();
            let state = &mut *state;
            match written {
                Ok(()) => {
                    state.places.durable_version = Some(version);
                    self.recorded(state, &record.tables);
                }
                Err(error) => {
                    // Nobody knows now which chunk the metadata names: nothing is given away any more.
                    for member in state.lines.iter_mut().flat_map(|line| &mut line.members) {
                        member.recording = false;
                    }
                    state.places.failed = Some(match error {
                        VolumeError::Media(MediaError::PowerLost) => Failed::PowerLost,
                        error => Failed::Device(error.to_string()),
                    });
                }
            }
            if state.places.failed.is_some() || state.tables_version == version {
                state.places.writing = false;
                break;
            }
        }
        self.jobs.notify();
    }

    fn next_record(&self) -> (Record, u64) {
        let mut state = self.state.borrow_mut();
        state.places.sequence += 1;
        let record = Record {
            sequence: state.places.sequence,
            geometry: self.assignment.geometry,
            width: self.assignment.stripe.width,
            spare_chunks_per_unit: self.assignment.spare_chunks_per_unit,
            label: self.label.clone(),
            tables: state.tables.clone(),
        };
        (record, state.tables_version)
    }

    async fn write_record(&self, record: &Record) -> Result<(), VolumeError> {
        let geometry = &self.assignment.geometry;
        let mut bytes = record.encode();
        bytes.resize(padded_sectors(geometry, bytes.len()) as usize * self.limits.sector_bytes, 0);
        // The one that is behind first: the other then holds the newest record, should this one's chunk be reset.
        let order = {
            let held = self.state.borrow().places.held;
            if held[1] < held[0] { [1, 0] } else { [0, 1] }
        };
        for index in order {
            self.append_record(index, &bytes, record.sequence).await?;
        }
        Ok(())
    }

    /// Writes a record in one place. After a chunk that fails another one is taken.
    async fn append_record(&self, index: usize, bytes: &[u8], sequence: u64) -> Result<(), VolumeError> {
        let sectors = (bytes.len() / self.limits.sector_bytes) as u32;
        loop {
            let (place, reset, left) = {
                let mut state = self.state.borrow_mut();
                let state = &mut *state;
                let chunk_sectors = self.limits.chunk_sectors;
                let chosen = choose(&state.places, &state.tables.defects, index, sectors, chunk_sectors);
                let (place, reset) = chosen.ok_or(VolumeError::NoMetadataPlace)?;
                let left = state.places.active[index].filter(|old| old.chunk != place.chunk && old.open);
                if let Some(left) = left {
                    state.places.leave(left.chunk);
                    state.places.close(left.chunk);
                }
                (place, reset, left)
            };
            if let Some(left) = left {
                // It counts as open for the device until it is closed. If it cannot be, nothing depends on it.
                let _ = self.media.finish(left.chunk).await;
            }
            let written = self.write_at(place, reset, bytes).await;
            {
                let mut state = self.state.borrow_mut();
                state.places.free.remove(&place.chunk);
                match written {
                    Ok(()) => {
                        let next_sector = place.next_sector + sectors;
                        let open = next_sector < self.limits.chunk_sectors;
                        let before = state.places.active[index].filter(|old| old.chunk == place.chunk);
                        // A notice may have come while it was written.
                        let appendable = reset || before.is_none_or(|old| old.appendable);
                        state.places.active[index] = Some(Place { next_sector, open, appendable, ..place });
                        state.places.held[index] = sequence;
                        state.metadata_bytes += bytes.len() as u64;
                    }
                    Err(WriteError::Chunk(blame)) => {
                        // As with any chunk, its next reset judges it, and the second strike is the last.
                        state.places.leave(place.chunk);
                        state.places.close(place.chunk);
                        state.blame(place.chunk, blame);
                        continue;
                    }
                    Err(WriteError::Device(error)) => return Err(error.into()),
                }
            }
            return Ok(());
        }
    }

    async fn write_at(&self, place: Place, reset: bool, bytes: &[u8]) -> Result<(), WriteError> {
        if reset {
            self.media.reset(place.chunk).await.map_err(|error| match error {
                MediaError::PowerLost | MediaError::Rule { .. } => WriteError::Device(error),
                _ => WriteError::Chunk(Blame::Offline),
            })?;
        }
        let mut buf = AlignedBuf::zeroed(bytes.len());
        buf.copy_from_slice(bytes);
        let (written, _) = self.media.write(place.chunk, place.next_sector, buf, Durability::Durable).await;
        written.map_err(|error| match error {
            MediaError::WriteFailed { .. } | MediaError::ClosedEarly { .. } => {
                WriteError::Chunk(Blame::Strike)
            }
            MediaError::Offline { .. } => WriteError::Chunk(Blame::Offline),
            error => WriteError::Device(error),
        })
    }

    /// Resets the chunks, other than those of the newest records, in which damage or the rest of a torn record was found.
    /// With the newest record in both places nothing needs what they hold; but damage in two chunks at once would have
    /// the volume refused.
    pub(super) async fn repair_candidates(&self, found: &[Candidate]) -> Result<(), MediaError> {
        for chunk in
            found.iter().filter(|found| !found.is_whole(&self.assignment.geometry)).map(|found| found.chunk)
        {
            {
                let state = self.state.borrow();
                if state.places.is_active(chunk) || state.tables.defects.contains(&chunk) {
                    continue;
                }
            }
            let reset = self.media.reset(chunk).await;
            let mut state = self.state.borrow_mut();
            match reset {
                Ok(()) => {
                    state.places.free.insert(chunk);
                }
                Err(error @ MediaError::PowerLost) => return Err(error),
                // The next start tries again.
                Err(MediaError::Rule { .. }) => {}
                Err(_) => state.blame(chunk, Blame::Offline),
            }
        }
        Ok(())
    }

    /// A record with these tables is durable in both places: the members that it names are recorded, and the chunks
    /// that it does not name any more are given back.
    fn recorded(&self, state: &mut State, tables: &Tables) {
        for id in self.assignment.members() {
            let member = &mut state.lines[id.line as usize].members[id.member as usize];
            if member.recording && tables.chunk_of(&self.assignment, id) == member.chunk {
                let before = member.record(member.chunk, &self.limits);
                state.give_back(before);
            }
        }
    }
}

/// Sectors of a record's write: padded to the smallest write, and far enough that the device keeps it and can return it
/// while the chunk is open.
pub(super) fn padded_sectors(geometry: &Geometry, record_bytes: usize) -> u32 {
    let record = record_bytes.div_ceil(geometry.sector_bytes as usize) as u32;
    record.next_multiple_of(geometry.ws_min) + padding_sectors(geometry)
}

/// Sectors of padding behind a record: what a power cut may take, and what the device then hides.
fn padding_sectors(geometry: &Geometry) -> u32 {
    2 * geometry.mw_cunits.next_multiple_of(geometry.ws_min)
}

/// What recovery found in one candidate.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) chunk: ChunkId,
    pub(super) state: ChunkState,
    write_pointer: u32,
    scan: Scan,
}

/// What the records of one chunk say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Scan {
    newest: Option<Record>,
    /// Sequence and version of the newest record of a version to come.
    newer: Option<(u64, u32)>,
    /// What is wrong behind the newest record.
    damage: Option<&'static str>,
    /// The last record was being written when the power went.
    torn: bool,
    /// Bytes up to the end of the last record.
    end: usize,
}

/// Looks at records one after the other. What stands in the padding of one means nothing, the next begins behind it: a
/// sector there that went bad while the device hid it must not count as damage once the chunk is closed.
fn scan(bytes: &[u8], unit_bytes: usize, padding_bytes: usize) -> Scan {
    let mut found = Scan::default();
    let mut at = 0;
    while at < bytes.len() {
        let length = match Record::decode(&bytes[at..], unit_bytes) {
            Found::Padding => unit_bytes,
            Found::Record(record) => {
                let length = record.encoded_bytes();
                found.damage = None;
                if found.newest.as_ref().is_none_or(|newest| newest.sequence < record.sequence) {
                    found.newest = Some(record);
                }
                found.end = at + length.next_multiple_of(unit_bytes);
                length.next_multiple_of(unit_bytes) + padding_bytes
            }
            Found::Newer { sequence, version, length } => {
                found.newer = found.newer.max(Some((sequence, version)));
                length.max(1).next_multiple_of(unit_bytes)
            }
            Found::CutOff => {
                found.torn = true;
                break;
            }
            Found::Damaged(reason) => {
                found.damage = Some(reason);
                unit_bytes
            }
        };
        at += length;
    }
    found
}

/// Reads all candidates of a device of that shape.
pub(super) async fn read_candidates<M: Media>(
    media: &M,
    report: &[ChunkInfo],
) -> Result<Vec<Candidate>, MediaError> {
    let geometry = media.geometry();
    let sector_bytes = geometry.sector_bytes as usize;
    let unit_bytes = geometry.ws_min as usize * sector_bytes;
    let padding_bytes = padding_sectors(geometry) as usize * sector_bytes;
    let mut candidates = Vec::new();
    for chunk in super::assignment::candidates(geometry).into_iter().flatten() {
        let ChunkInfo { state, write_pointer, .. } = report[chunk.0 as usize];
        let readable = match state {
            ChunkState::Free | ChunkState::Offline => 0,
            ChunkState::Open => write_pointer.saturating_sub(geometry.mw_cunits),
            ChunkState::Closed => write_pointer,
        };
        let bytes = read_chunk(media, chunk, readable.min(geometry.chunk_sectors)).await?;
        let scan = scan(&bytes, unit_bytes, padding_bytes);
        candidates.push(Candidate { chunk, state, write_pointer, scan });
    }
    Ok(candidates)
}

/// The front of a chunk. What cannot be read is filled with what no record is, so that it counts as damage: no more than
/// the smallest writes concerned, for behind a record its padding begins.
async fn read_chunk<M: Media>(media: &M, chunk: ChunkId, sectors: u32) -> Result<Vec<u8>, MediaError> {
    const UNREADABLE: u8 = 0xff;
    let geometry = media.geometry();
    let mut step = geometry.ws_opt.max(geometry.ws_min);
    let mut bytes = Vec::new();
    let mut from = 0;
    while from < sectors {
        let count = step.min(sectors - from);
        let len = count as usize * geometry.sector_bytes as usize;
        let (read, buf) = media.read(chunk, from, AlignedBuf::zeroed(len)).await;
        match read {
            Ok(()) => bytes.extend_from_slice(&buf),
            Err(MediaError::PowerLost) => return Err(MediaError::PowerLost),
            Err(_) if step > geometry.ws_min => {
                step = geometry.ws_min;
                continue;
            }
            Err(_) => bytes.resize(bytes.len() + len, UNREADABLE),
        }
        from += count;
    }
    Ok(bytes)
}

/// The newest record, if it can be trusted to be that.
pub(super) fn newest(candidates: &[Candidate]) -> Result<&Record, VolumeError> {
    let best = candidates.iter().filter_map(|candidate| candidate.scan.newest.as_ref());
    let best = best.max_by_key(|record| record.sequence);
    let newer = candidates.iter().filter_map(|candidate| candidate.scan.newer).max();
    if let Some((sequence, version)) = newer
        && best.is_none_or(|best| best.sequence < sequence)
    {
        return Err(VolumeError::Newer { version, known: METADATA_VERSION });
    }
    let damaged = || candidates.iter().filter(|candidate| candidate.scan.damage.is_some());
    let Some(best) = best else {
        return Err(match damaged().next() {
            Some(_) => VolumeError::Damaged(describe(candidates)),
            None => VolumeError::Blank,
        });
    };
    let trusted = |candidate: &&Candidate| !best.tables.defects.contains(&candidate.chunk);
    let holds = |candidate: &&Candidate| {
        candidate.scan.newest.as_ref().is_some_and(|record| record.sequence == best.sequence)
    };
    let clean = candidates.iter().filter(holds).any(|candidate| candidate.scan.damage.is_none());
    if !clean || damaged().filter(trusted).count() > 1 {
        return Err(VolumeError::Damaged(describe(candidates)));
    }
    Ok(best)
}

/// What was found, for a message.
fn describe(candidates: &[Candidate]) -> String {
    let one = |candidate: &Candidate| {
        let Scan { newest, damage, .. } = &candidate.scan;
        let records = match newest {
            Some(record) => format!("records up to number {}", record.sequence),
            None => "no record".to_owned(),
        };
        let damage = damage.map_or(String::new(), |damage| format!(", then {damage}"));
        format!("chunk {}: {records}{damage}", candidate.chunk.0)
    };
    let told = candidates
        .iter()
        .filter(|candidate| candidate.scan.newest.is_some() || candidate.scan.damage.is_some());
    told.map(one).collect::<Vec<_>>().join("; ")
}

impl Places {
    /// The places as they were found, with the newest record among them.
    pub(super) fn found(assignment: &Assignment, found: &[Candidate], newest: &Record) -> Self {
        let free = found.iter().filter(|candidate| candidate.state == ChunkState::Free);
        let mut this =
            Self::empty(assignment.candidates(), free.map(|candidate| candidate.chunk).collect(), 0);
        let chunk_sectors = assignment.geometry.chunk_sectors;
        let mut left: Vec<&Candidate> = found
            .iter()
            .filter(|candidate| candidate.scan.newest.is_some())
            .filter(|candidate| !newest.tables.defects.contains(&candidate.chunk))
            .collect();
        for own_only in [true, false] {
            for index in 0..2 {
                if this.active[index].is_some() {
                    continue;
                }
                let is_own = |candidate: &Candidate| this.candidates[index].contains(&candidate.chunk);
                let best = left
                    .iter()
                    .enumerate()
                    .filter(|(_, candidate)| !own_only || is_own(candidate))
                    .max_by_key(|(_, candidate)| candidate.sequence());
                let Some((nth, _)) = best else { continue };
                let candidate = left.remove(nth);
                let appendable = candidate.is_appendable(&assignment.geometry);
                let next_sector = if appendable { candidate.write_pointer } else { chunk_sectors };
                this.active[index] =
                    Some(Place { chunk: candidate.chunk, next_sector, appendable, open: appendable });
                this.held[index] = candidate.sequence();
            }
        }
        // A record that cannot be seen may have the next number.
        this.sequence = newest.sequence + 1;
        let whole = |candidate: &Candidate| {
            newest.tables.defects.contains(&candidate.chunk) || candidate.is_whole(&assignment.geometry)
        };
        if found.iter().all(whole) && this.held == [newest.sequence; 2] {
            this.durable_version = Some(0);
        }
        this
    }
}

impl Candidate {
    /// Number of the newest record in it; 0 without one.
    pub(super) fn sequence(&self) -> u64 {
        self.scan.newest.as_ref().map_or(0, |record| record.sequence)
    }

    /// Whether a record stands in it, of whatever version.
    pub(super) fn holds_record(&self) -> bool {
        self.scan.newest.is_some() || self.scan.newer.is_some()
    }

    /// When it goes, if all are erased one after the other: older records before newer ones, and last what damage may
    /// hide a still newer one in.
    pub(super) fn turn_to_go(&self) -> (bool, u64) {
        let newer = self.scan.newer.map_or(0, |(sequence, _)| sequence);
        (self.scan.damage.is_some(), self.sequence().max(newer))
    }

    /// Whether the last record is the last that was ever begun. Else a newer one, on which nobody relied, may stand where
    /// the device does not show it yet, and come to light when the chunk is closed.
    fn is_whole(&self, geometry: &Geometry) -> bool {
        let clean = self.scan.damage.is_none() && !self.scan.torn;
        let end = (self.scan.end / geometry.sector_bytes as usize) as u32 + padding_sectors(geometry);
        match self.state {
            ChunkState::Free | ChunkState::Offline => true,
            ChunkState::Closed => clean,
            ChunkState::Open => clean && self.write_pointer == end,
        }
    }

    /// Whether the next record may follow what is there.
    fn is_appendable(&self, geometry: &Geometry) -> bool {
        self.state == ChunkState::Open && self.is_whole(geometry)
    }
}

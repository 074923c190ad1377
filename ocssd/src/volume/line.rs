//! A line and its members: what was accepted, submitted, completed, made durable and promised, without any I/O.
//!
//! ```text
//! of a member:   promised <= flushed <= done <= issued <= end of its buffer
//! ```
//!
//! - *issued*: programs were submitted to the chunk up to here;
//! - *done*: all of them up to here completed well;
//! - *flushed*: a flush began after they completed, or they were durable writes, all up to here;
//! - *promised*: what the host may rely on after a power cut. On a device whose buffer dies with the power this trails
//!   *flushed* by `mw_cunits` until a flush begins after the chunk was closed.
//!
//! *recorded* is where the durable metadata says that the member stands. It differs from where it does stand from the
//! moment an evacuation ended until the record of it is durable, and so long a power cut falls back to it.
//!
//! Invariants:
//! - A sector leaves the memory only when the device can return it.
//! - A remap is recorded only once the new chunk holds everything *promised*, durably, and a flush covers what was
//!   brought there (see [`Member::may_record`]).
//! - A program is submitted only to a sound chunk; one that fails stops the others behind it.

use std::collections::VecDeque;

use super::stripe::Stripe;
use super::write_buffer::{WriteBuffer, program_end};
use crate::geometry::ChunkId;
use crate::media::{LifetimeClass, MediaError};

/// What all members have in common, in sectors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) chunk_sectors: u32,
    pub(super) unit_sectors: u32,
    pub(super) sector_bytes: usize,
    /// Sectors below an open chunk's write pointer that cannot be read.
    pub(super) hidden: u32,
    /// Sectors below it that a flush does not make durable.
    pub(super) lag: u32,
}

/// How a member's chunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    Sound,
    /// A program failed; others may be on their way.
    Failing,
    /// Its content is being brought elsewhere.
    Evacuating,
    /// It failed and could not be replaced, or it went offline with its data.
    Lost,
}

/// What the chunk that metadata names did, to be entered there together with its replacement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blame {
    /// It failed a write.
    Strike,
    /// It is gone.
    Offline,
}

#[derive(Debug)]
struct Program {
    end: u32,
    durable: bool,
    done: bool,
}

/// One chunk's worth of a line.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) chunk: ChunkId,
    pub(super) recorded: ChunkId,
    /// The blame on `recorded`.
    pub(super) blame: Option<Blame>,
    /// A record that says `chunk` is on its way.
    pub(super) recording: bool,
    pub(super) health: Health,
    pub(super) buffer: WriteBuffer,
    issued: u32,
    done: u32,
    flushed: u32,
    promised: u32,
    /// End of what an evacuation brought to `chunk`.
    moved: u32,
    programs: VecDeque<Program>,
    pub(super) in_flight: u32,
    /// A part of a unit is issued up to here.
    wanted: u32,
    /// The chunk is known to be free: to erase it again would only wear it.
    pub(super) free: bool,
    /// The chunk was closed before it was full.
    pub(super) finished: bool,
    /// A flush began after that, and ended.
    sealed: bool,
    /// Found offline, or known bad: whatever the device returned would not be this member's.
    pub(super) gone: bool,
    /// Rises whenever `chunk` or its life changes, so that a late flush is not credited to the wrong one.
    pub(super) life: u64,
    /// What the programs that failed said.
    pub(super) errors: Vec<MediaError>,
}

impl Member {
    /// An empty member on a free chunk.
    pub(super) fn empty(chunk: ChunkId, limits: &Limits) -> Self {
        Self { free: true, ..Self::found(chunk, 0, false, limits) }
    }

    /// A member that was found written up to `end`, all of it flushed, and perhaps closed there.
    pub(super) fn found(chunk: ChunkId, end: u32, closed: bool, limits: &Limits) -> Self {
        Self {
            chunk,
            recorded: chunk,
            blame: None,
            recording: false,
            health: Health::Sound,
            buffer: WriteBuffer::at(end, limits.sector_bytes),
            issued: end,
            done: end,
            flushed: end,
            promised: end,
            moved: 0,
            programs: VecDeque::new(),
            in_flight: 0,
            wanted: 0,
            free: false,
            finished: closed,
            sealed: closed,
            gone: false,
            life: 0,
            errors: Vec::new(),
        }
    }

    /// A member whose chunk is gone, with whatever it held.
    pub(super) fn gone(chunk: ChunkId, limits: &Limits) -> Self {
        Self { health: Health::Lost, gone: true, ..Self::found(chunk, limits.chunk_sectors, true, limits) }
    }

    /// Begins a new life, empty, on `chunk`. What metadata says of it stays.
    pub(super) fn restart(&mut self, chunk: ChunkId, limits: &Limits) {
        let Self { recorded, blame, recording, life, .. } = *self;
        *self = Self { recorded, blame, recording, life: life + 1, ..Self::empty(chunk, limits) };
    }

    pub(super) fn issued(&self) -> u32 {
        self.issued
    }

    pub(super) fn done(&self) -> u32 {
        self.done
    }

    pub(super) fn flushed(&self) -> u32 {
        self.flushed
    }

    /// Lets a part of a unit be issued, up to `end`.
    pub(super) fn want(&mut self, end: u32) {
        self.wanted = self.wanted.max(end);
    }

    /// Drops what waits to be written: the chunk is about to be reset.
    pub(super) fn forget_waiting(&mut self, limits: &Limits) {
        self.wanted = 0;
        self.buffer = WriteBuffer::at(self.issued, limits.sector_bytes);
    }

    /// Whether all that was issued will be durable without a flush.
    pub(super) fn is_durable_chain(&self) -> bool {
        self.health == Health::Sound
            && self.recorded == self.chunk
            && self.programs.iter().all(|program| program.durable)
    }

    /// Whether a program is due.
    fn is_due(&self, limits: &Limits) -> bool {
        let end = program_end(self.issued, self.buffer.end(), self.wanted, limits.unit_sectors);
        self.health == Health::Sound && !self.finished && end.is_some()
    }

    /// Whether the device may count the chunk as open, or the one that takes its place.
    fn is_open(&self, limits: &Limits) -> bool {
        match self.health {
            Health::Sound | Health::Failing => self.issued > 0 && !self.is_closed(limits),
            Health::Evacuating => self.issued > 0,
            Health::Lost => self.issued > 0 && !self.gone && !self.is_closed(limits),
        }
    }

    /// The next program, if one is due: from where to where. It counts as submitted.
    pub(super) fn take_program(&mut self, limits: &Limits, durable: bool) -> Option<(u32, u32)> {
        if self.health != Health::Sound || self.finished {
            return None;
        }
        let end = program_end(self.issued, self.buffer.end(), self.wanted, limits.unit_sectors)?;
        let from = std::mem::replace(&mut self.issued, end);
        self.programs.push_back(Program { end, durable, done: false });
        self.in_flight += 1;
        self.free = false;
        Some((from, end))
    }

    /// The program that ends at `end` completed well.
    pub(super) fn complete(&mut self, end: u32, limits: &Limits) {
        let program = self.programs.iter_mut().find(|program| program.end == end);
        program.expect("a program completes once").done = true;
        self.advance(limits);
    }

    /// How far a flush that begins now will reach.
    pub(super) fn mark(&self) -> Mark {
        Mark { life: self.life, done: self.done, finished: self.finished }
    }

    /// A flush that began at the mark has ended.
    pub(super) fn credit(&mut self, mark: &Mark, limits: &Limits) {
        if self.life != mark.life {
            return;
        }
        for program in self.programs.iter_mut().filter(|program| program.end <= mark.done) {
            debug_assert!(program.done);
            program.durable = true;
        }
        self.sealed |= mark.finished;
        self.advance(limits);
    }

    fn advance(&mut self, limits: &Limits) {
        while let Some(program) = self.programs.front()
            && program.done
            && program.durable
        {
            self.flushed = program.end;
            self.programs.pop_front();
        }
        let done = self.programs.iter().take_while(|program| program.done).last().map(|program| program.end);
        self.done = self.done.max(done.unwrap_or(self.flushed));
        if self.recorded == self.chunk {
            self.promised = self.promised.max(self.durable_end(limits));
        }
        self.forget_readable(limits);
    }

    /// What a power cut cannot take from `chunk`. A close counts only once a flush covers it: before that the chunk may
    /// come back open, without its last sectors.
    fn durable_end(&self, limits: &Limits) -> u32 {
        let closed = self.sealed || self.flushed == limits.chunk_sectors;
        let lag = if closed { 0 } else { limits.lag };
        self.flushed.saturating_sub(lag)
    }

    /// Whether the device has nothing left to hide.
    fn is_closed(&self, limits: &Limits) -> bool {
        self.finished || self.done == limits.chunk_sectors
    }

    /// A finish of the chunk ended. True if it is closed, with all that was done in it: a device that pads may fail to
    /// program the padding, which costs the chunk a strike and harms nothing.
    pub(super) fn note_finish(&mut self, result: &Result<(), MediaError>, limits: &Limits) -> bool {
        let closed = match result {
            Ok(()) => true,
            Err(
                MediaError::WriteFailed { sector: end, .. }
                | MediaError::ClosedEarly { write_pointer: end, .. },
            ) => {
                if !self.is_unrecorded() {
                    self.blame = Some(Blame::Strike);
                }
                *end >= self.done
            }
            Err(_) => false,
        };
        if closed {
            self.finished = true;
            self.forget_readable(limits);
        }
        closed
    }

    /// Frees the memory of what the device can return. Of a lost chunk nobody knows what that is.
    fn forget_readable(&mut self, limits: &Limits) {
        if self.health == Health::Lost {
            return;
        }
        let hidden = if self.is_closed(limits) { 0 } else { limits.hidden };
        self.buffer.forget_below(self.done.saturating_sub(hidden));
    }

    /// Whether the chunk stands elsewhere than the durable metadata says.
    pub(super) fn is_unrecorded(&self) -> bool {
        self.recorded != self.chunk
    }

    /// Whether the new place may be recorded: whatever the host relies on is durable there too, and a flush covers what
    /// was brought there, even if nothing of that was promised. (The chunk may have been reset just before, and without
    /// a flush a power cut may bring back what it held in its earlier life.) Until then nothing more is promised of this
    /// member, and a power cut falls back to the recorded chunk, which still has it.
    pub(super) fn may_record(&self, limits: &Limits) -> bool {
        let readable = self.health == Health::Sound || (self.health == Health::Lost && !self.gone);
        let arrived = self.flushed >= self.moved && self.durable_end(limits) >= self.promised;
        self.is_unrecorded() && readable && arrived
    }

    /// The chunk takes no more, and there is none to go on with. If the one before it, which the metadata still names,
    /// has more of what was promised, the member stands there again, and the chunk that it left is returned.
    pub(super) fn lose(&mut self, remains: Remains, limits: &Limits) -> Option<ChunkId> {
        self.health = Health::Lost;
        let kept = match remains {
            Remains::Done => self.done,
            Remains::Readable => {
                self.done.saturating_sub(limits.hidden).max(self.durable_end(limits)).min(self.done)
            }
            Remains::Below(sector) => sector.min(self.done),
            Remains::Nothing => 0,
        };
        if self.is_unrecorded() && kept < self.promised {
            let left = std::mem::replace(&mut self.chunk, self.recorded);
            self.end_at(self.promised);
            self.buffer = WriteBuffer::at(self.issued, limits.sector_bytes);
            return Some(left);
        }
        match remains {
            Remains::Done => {}
            // What the device hides stays in memory.
            Remains::Readable => self.end_at(kept),
            Remains::Below(_) => {
                self.end_at(kept);
                self.buffer = WriteBuffer::at(self.issued, limits.sector_bytes);
            }
            Remains::Nothing => self.gone = true,
        }
        None
    }

    /// The member ends here, and the chunk hides nothing below that.
    fn end_at(&mut self, end: u32) {
        self.life += 1;
        self.finished = true;
        self.sealed = false;
        self.done = end;
        self.flushed = self.flushed.min(end);
        self.moved = self.moved.min(end);
        self.programs.clear();
        if self.flushed < end {
            self.programs.push_back(Program { end, durable: false, done: true });
        }
    }

    /// The durable metadata now says `chunk`. Returns the chunk that it said before.
    pub(super) fn record(&mut self, chunk: ChunkId, limits: &Limits) -> ChunkId {
        let before = std::mem::replace(&mut self.recorded, chunk);
        self.recording = false;
        self.advance(limits);
        before
    }

    /// An evacuation ended: `chunk` holds everything issued so far, and `kept` what of that it hides. Returns the chunk
    /// that was left.
    pub(super) fn move_to(&mut self, chunk: ChunkId, mut kept: WriteBuffer, limits: &Limits) -> ChunkId {
        assert!(self.in_flight == 0 && kept.end() == self.issued);
        let waiting = self.buffer.end() - self.issued;
        let mut rest = vec![0; waiting as usize * limits.sector_bytes];
        self.buffer.copy_out(self.issued, &mut rest);
        kept.push(&rest);
        self.buffer = kept;
        self.health = Health::Sound;
        self.free = self.issued == 0;
        self.finished = false;
        self.sealed = false;
        self.life += 1;
        self.errors.clear();
        self.moved = self.issued;
        self.flushed = 0;
        self.done = self.issued;
        self.programs.clear();
        if self.issued > 0 {
            self.programs.push_back(Program { end: self.issued, durable: false, done: true });
        }
        std::mem::replace(&mut self.chunk, chunk)
    }
}

/// How far a member was when a flush began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    life: u64,
    done: u32,
    finished: bool,
}

/// What stopped a line for good.
#[derive(Debug, Clone)]
pub(super) enum Broken {
    PowerLost,
    Device(std::io::ErrorKind, String),
    NoSpare { missing: u32, defects: u32, spares: u32 },
    NotEvacuated(String),
}

/// A line.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) members: Vec<Member>,
    /// Why it takes no more writes in this life.
    pub(super) broken: Option<Broken>,
    /// It is broken, and its members are still being closed.
    pub(super) closing: bool,
    /// It is broken, and of what was acknowledged, though not as durable, something is gone.
    pub(super) lost_acknowledged: bool,
    /// End of the furthest write that was acknowledged.
    pub(super) acknowledged: u32,
    /// A finish is under way.
    pub(super) finishing: bool,
    pub(super) class: Option<LifetimeClass>,
    /// Rises with every reset.
    pub(super) life: u64,
}

impl Line {
    pub(super) fn new(members: Vec<Member>) -> Self {
        Self {
            members,
            broken: None,
            closing: false,
            lost_acknowledged: false,
            acknowledged: 0,
            finishing: false,
            class: None,
            life: 0,
        }
    }

    /// Where the next write goes, while the line is open: round robin leaves no gaps.
    pub(super) fn end(&self) -> u32 {
        self.members.iter().map(|member| member.buffer.end()).sum()
    }

    /// Whether a program is due on any member.
    pub(super) fn is_due(&self, limits: &Limits) -> bool {
        self.members.iter().any(|member| member.is_due(limits))
    }

    /// Whether the device may count any of its chunks as open. A line that is full, finished or broken for the host
    /// stays open beneath until its programs are done.
    pub(super) fn is_open(&self, limits: &Limits) -> bool {
        self.members.iter().any(|member| member.is_open(limits)) && (self.broken.is_none() || self.closing)
    }

    /// Whether everything below `end` is done.
    pub(super) fn is_done(&self, stripe: &Stripe, end: u32) -> bool {
        self.all(stripe, end, Member::done)
    }

    /// Whether everything below `end` is flushed.
    pub(super) fn is_flushed(&self, stripe: &Stripe, end: u32) -> bool {
        self.all(stripe, end, Member::flushed)
    }

    fn all(&self, stripe: &Stripe, end: u32, reaches: impl Fn(&Member) -> u32) -> bool {
        let mut members = self.members.iter().enumerate();
        members.all(|(index, member)| reaches(member) >= stripe.member_end(index, end))
    }

    /// Whether anything of it is not flushed or not recorded.
    pub(super) fn is_unsettled(&self) -> bool {
        self.members.iter().any(|member| {
            let flushed = member.flushed >= member.buffer.end() && member.sealed == member.finished;
            !flushed || member.is_unrecorded()
        })
    }
}

/// What is left of a chunk that takes no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remains {
    /// All that completed, as far as anyone knows.
    Done,
    /// What the device returns of a chunk that cannot be closed, or keeps over a power cut if that is more.
    Readable,
    /// What is below this sector.
    Below(u32),
    /// Nothing.
    Nothing,
}

/// What the errors of a member's programs mean, once none is in flight: the chunk is to blame, or more than that.
pub(super) fn verdict(errors: &mut Vec<MediaError>) -> Result<(Blame, Remains), Broken> {
    let errors = std::mem::take(errors);
    if errors.iter().any(|error| matches!(error, MediaError::PowerLost)) {
        return Err(Broken::PowerLost);
    }
    if errors.iter().any(|error| matches!(error, MediaError::Offline { .. })) {
        return Ok((Blame::Offline, Remains::Nothing));
    }
    // Programs behind the one that failed may be refused by the rules of a chunk that is closed now.
    let first_missing = |error: &MediaError| match error {
        MediaError::WriteFailed { sector, .. } => Some(*sector),
        MediaError::ClosedEarly { write_pointer, .. } => Some(*write_pointer),
        _ => None,
    };
    if let Some(sector) = errors.iter().filter_map(first_missing).min() {
        return Ok((Blame::Strike, Remains::Below(sector)));
    }
    Err(broken_by(errors.first().expect("something failed")))
}

/// What is kept of an error that stops a line.
pub(super) fn broken_by(error: &MediaError) -> Broken {
    match error {
        MediaError::PowerLost => Broken::PowerLost,
        MediaError::Io { source, .. } => Broken::Device(source.kind(), error.to_string()),
        _ => Broken::Device(std::io::ErrorKind::Other, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { chunk_sectors: 32, unit_sectors: 4, sector_bytes: 1, hidden: 6, lag: 6 };

    /// Writes up to `end`, which completes.
    fn write(member: &mut Member, end: u32) {
        member.buffer.push(&vec![0; (end - member.buffer.end()) as usize]);
        member.want(end);
        let (_, issued) = member.take_program(&LIMITS, false).unwrap();
        member.in_flight -= 1;
        member.complete(issued, &LIMITS);
        assert_eq!(member.done(), end);
    }

    fn flush(member: &mut Member) {
        let mark = member.mark();
        member.credit(&mark, &LIMITS);
    }

    /// Were the close believed at once, a remap could be recorded that a power cut proves wrong.
    #[test]
    fn a_close_counts_once_a_flush_that_began_after_it_has_ended() {
        let mut member = Member::empty(ChunkId(0), &LIMITS);
        write(&mut member, 20);
        let before = member.mark();
        assert!(member.note_finish(&Ok(()), &LIMITS));
        member.credit(&before, &LIMITS);
        assert_eq!((member.flushed(), member.promised), (20, 14));
        flush(&mut member);
        assert_eq!((member.flushed(), member.promised), (20, 20));
    }

    #[test]
    fn the_last_write_closes_a_chunk_and_must_be_flushed_too() {
        let mut member = Member::empty(ChunkId(0), &LIMITS);
        write(&mut member, 20);
        flush(&mut member);
        write(&mut member, 32);
        member.credit(&Mark { done: 20, ..member.mark() }, &LIMITS);
        assert_eq!((member.flushed(), member.promised), (20, 14));
        flush(&mut member);
        assert_eq!((member.flushed(), member.promised), (32, 32));
    }

    /// Of what was brought there nothing was promised, and yet the reset of the chunk must be durable.
    #[test]
    fn a_new_place_is_recorded_once_a_flush_covers_it() {
        let mut member = Member::empty(ChunkId(0), &LIMITS);
        write(&mut member, 4);
        let before = member.mark();
        let mut kept = WriteBuffer::at(0, 1);
        kept.push(&[0; 4]);
        assert_eq!(member.move_to(ChunkId(1), kept, &LIMITS), ChunkId(0));
        member.credit(&before, &LIMITS);
        assert!(member.is_unrecorded() && !member.may_record(&LIMITS));
        flush(&mut member);
        assert!(member.may_record(&LIMITS));
    }
}

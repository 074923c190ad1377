//! What the operations and jobs of one volume share.
//!
//! Invariant: the state is borrowed only between two awaits, never across one.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

use super::assignment::{Assignment, MemberId, Tables};
use super::error::VolumeError;
use super::jobs::Jobs;
use super::line::{Blame, Broken, Health, Limits, Line, Mark, Member, Remains, verdict};
use super::metadata::Places;
use super::notices::OwnNotice;
use super::spares::{STRIKES_MAX, Spares};
use crate::buffer::AlignedBuf;
use crate::chunk_table::ChunkTable;
use crate::geometry::{ChunkId, Geometry};
use crate::media::{ChunkState, Durability, Media, MediaCounters, MediaError, NoticeKind};

/// A volume's device, state and jobs.
pub(super) struct Shared<M> {
    pub(super) media: M,
    pub(super) assignment: Assignment,
    pub(super) limits: Limits,
    pub(super) geometry: Geometry,
    pub(super) label: Vec<u8>,
    pub(super) jobs: Jobs,
    pub(super) state: RefCell<State>,
}

/// All that changes.
pub(super) struct State {
    /// The rules of the lines as the host sees them.
    pub(super) table: ChunkTable,
    pub(super) lines: Vec<Line>,
    /// Lines of which something is not flushed or not recorded.
    pub(super) unsettled: BTreeSet<u32>,
    /// Lines that have chunks open on the device, where that limits them.
    pub(super) open: BTreeSet<u32>,
    /// Lines that wait for another one to be closed beneath before they open their first chunk.
    waiting: BTreeSet<u32>,
    /// What the next metadata record will say.
    pub(super) tables: Tables,
    /// Rises with every change of `tables`, and when they must be recorded anew.
    pub(super) tables_version: u64,
    pub(super) places: Places,
    pub(super) spares: Spares,
    /// Reads in flight, by chunk: one that is being read is not reset.
    pub(super) readers: Vec<u32>,
    /// Wear as the device last reported it, and resets since.
    pub(super) wear: Vec<u32>,
    /// What the volume itself noticed of lines, until the host takes it.
    pub(super) noticed: BTreeSet<OwnNotice>,
    /// A flush failed: no later one may claim to cover what that one lost.
    pub(super) flush_failed: bool,
    pub(super) counters: MediaCounters,
    pub(super) evacuations: u64,
    pub(super) evacuated_bytes: u64,
    pub(super) padding_bytes: u64,
    pub(super) metadata_bytes: u64,
}

/// The parts of a state that are known when a volume is made or opened.
pub(super) struct Parts {
    pub(super) table: ChunkTable,
    pub(super) lines: Vec<Line>,
    pub(super) tables: Tables,
    pub(super) places: Places,
    pub(super) spares: Spares,
    pub(super) wear: Vec<u32>,
}

impl State {
    /// A state in which nothing is under way.
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { table, lines, tables, places, spares, wear } = parts;
        Self {
            table,
            lines,
            unsettled: BTreeSet::new(),
            open: BTreeSet::new(),
            waiting: BTreeSet::new(),
            tables,
            tables_version: 0,
            places,
            spares,
            readers: vec![0; wear.len()],
            wear,
            noticed: BTreeSet::new(),
            flush_failed: false,
            counters: MediaCounters::default(),
            evacuations: 0,
            evacuated_bytes: 0,
            padding_bytes: 0,
            metadata_bytes: 0,
        }
    }

    /// Whether a line may open chunks now. The host keeps to the limit of open lines; but a line that it filled or
    /// finished is closed on the device only when its last program is done, perhaps after an evacuation.
    fn may_program(&mut self, line: u32, max_open: u32, limits: &Limits) -> bool {
        if max_open == 0 || self.open.contains(&line) || !self.lines[line as usize].is_due(limits) {
            return true;
        }
        self.open.retain(|line| self.lines[*line as usize].is_open(limits));
        if self.open.len() as u32 >= max_open {
            self.waiting.insert(line);
            return false;
        }
        self.waiting.remove(&line);
        self.open.insert(line)
    }

    /// A line is being reset: what waits to be written is of its old life, and must not follow into the new one. It may
    /// wait for another line to be closed, or for a flush that began before.
    pub(super) fn forget_waiting(&mut self, line: u32, limits: &Limits) {
        self.waiting.remove(&line);
        for member in &mut self.lines[line as usize].members {
            member.forget_waiting(limits);
        }
    }

    /// Whether the durable metadata is behind, and can be brought up to date.
    pub(super) fn is_metadata_behind(&self) -> bool {
        !self.places.has_failed() && !self.places.holds(self.tables_version)
    }

    /// The error of a line that is broken, as its host sees it.
    pub(super) fn broken(&self, operation: &'static str, line: u32, sector: u32) -> Option<MediaError> {
        let broken = self.lines[line as usize].broken.as_ref()?;
        let failed = |source| MediaError::Io { operation, chunk: ChunkId(line), sector, source };
        Some(match broken {
            Broken::PowerLost => MediaError::PowerLost,
            Broken::Device(kind, text) => failed(std::io::Error::new(*kind, text.clone())),
            Broken::NoSpare { missing, defects, spares } => {
                let (missing, defects, spares) = (*missing, *defects, *spares);
                failed(std::io::Error::other(VolumeError::TooFewSpares { missing, defects, spares }))
            }
            Broken::NotEvacuated(text) => {
                failed(std::io::Error::other(VolumeError::NotEvacuated(text.clone())))
            }
        })
    }

    /// Blames a chunk that is no member any more (or never was, as far as metadata knows).
    pub(super) fn blame(&mut self, chunk: ChunkId, blame: Blame) {
        let strikes = self.tables.strikes.get(&chunk).copied().unwrap_or(0) + 1;
        if blame == Blame::Offline || strikes >= STRIKES_MAX {
            self.retire_for_good(chunk);
        } else {
            self.tables.strikes.insert(chunk, strikes);
            self.tables_version += 1;
        }
    }

    /// Enters a chunk in the list of defects.
    pub(super) fn retire_for_good(&mut self, chunk: ChunkId) {
        self.tables.strikes.remove(&chunk);
        self.tables.defects.insert(chunk);
        self.tables_version += 1;
        self.spares.forget(chunk);
    }

    /// Gives a chunk that no line has any more to the spares; its next reset judges it.
    pub(super) fn give_back(&mut self, chunk: ChunkId) {
        if !self.tables.defects.contains(&chunk) {
            self.spares.used.insert(chunk);
        }
    }

    /// Used spares that may be reset: nobody reads them, and no record that may exist names them.
    pub(super) fn to_judge(&self) -> impl Iterator<Item = ChunkId> {
        let may = !self.places.has_failed();
        self.spares.used.iter().copied().filter(move |chunk| may && self.readers[chunk.0 as usize] == 0)
    }

    /// Every unsettled member's mark for a flush that begins now.
    fn marks(&self) -> Vec<(u32, Vec<Mark>)> {
        let of_line = |line: &u32| {
            let members = self.lines[*line as usize].members.iter();
            (*line, members.map(Member::mark).collect())
        };
        self.unsettled.iter().map(of_line).collect()
    }

    /// Forgets which of those lines were unsettled and are not any more.
    pub(super) fn forget_settled(&mut self, lines: impl IntoIterator<Item = u32>) {
        for line in lines {
            if !self.lines[line as usize].is_unsettled() {
                self.unsettled.remove(&line);
            }
        }
    }

    /// The member's chunk takes no more, and there is none to go on with.
    pub(super) fn lose(&mut self, line: u32, index: usize, remains: Remains, limits: &Limits) {
        let member = &mut self.lines[line as usize].members[index];
        let left = member.lose(remains, limits);
        let gone = member.gone;
        if let Some(left) = left {
            self.blame(left, if remains == Remains::Nothing { Blame::Offline } else { Blame::Strike });
            self.give_back(left);
        }
        // What is left of the line is good, and had better be moved while it is.
        self.notice(line, None, if gone { NoticeKind::Offline } else { NoticeKind::EccHigh });
    }

    /// Spares that the layout keeps, for a message.
    pub(super) fn no_spare(&self, assignment: &Assignment, missing: u32) -> VolumeError {
        VolumeError::TooFewSpares {
            missing,
            defects: self.tables.defects.len() as u32,
            spares: assignment.first_spares().len() as u32,
        }
    }
}

impl<M: Media> Shared<M> {
    /// Runs a job to its end, whether or not the caller stays.
    pub(super) async fn run<T: 'static>(&self, job: impl Future<Output = T> + 'static) -> T {
        let result = Rc::new(Cell::new(None));
        let slot = Rc::clone(&result);
        self.jobs.add(async move { slot.set(Some(job.await)) });
        self.jobs.until(|| result.take()).await
    }

    /// Submits every program of a line that is due.
    pub(super) fn pump(self: &Rc<Self>, line: u32, durable: bool) {
        let durability = if durable { Durability::Durable } else { Durability::Volatile };
        let mut state = self.state.borrow_mut();
        // What becomes due on a broken line comes too late: its members are being closed one after the other.
        let broken = state.lines[line as usize].broken.is_some();
        if broken || !state.may_program(line, self.geometry.max_open, &self.limits) {
            return;
        }
        for (index, member) in state.lines[line as usize].members.iter_mut().enumerate() {
            while let Some((from, end)) = member.take_program(&self.limits, durable) {
                let mut buf = AlignedBuf::zeroed((end - from) as usize * self.limits.sector_bytes);
                member.buffer.copy_out(from, &mut buf);
                let (shared, chunk) = (Rc::clone(self), member.chunk);
                self.jobs.add(async move {
                    let (result, _) = shared.media.write(chunk, from, buf, durability).await;
                    shared.programmed(line, index, end, result);
                });
            }
        }
        drop(state);
        self.jobs.drive();
    }

    /// Submits what waits for another line to be closed, if one was.
    pub(super) fn pump_waiting(self: &Rc<Self>) {
        let waiting = self.state.borrow().waiting.clone();
        for line in waiting {
            self.pump(line, false);
        }
    }

    fn programmed(self: &Rc<Self>, line: u32, index: usize, end: u32, result: Result<(), MediaError>) {
        let mut state = self.state.borrow_mut();
        let member = &mut state.lines[line as usize].members[index];
        member.in_flight -= 1;
        match result {
            Ok(()) => member.complete(end, &self.limits),
            Err(error) => {
                member.errors.push(error);
                if member.health == Health::Sound {
                    member.health = Health::Failing;
                }
            }
        }
        if member.in_flight == 0 && member.health == Health::Failing {
            let verdict = verdict(&mut member.errors);
            drop(state);
            match verdict {
                Ok(failure) => self.begin_evacuation(line, index, failure),
                Err(broken) => self.give_up(line, index, Remains::Done, broken),
            }
        } else {
            drop(state);
        }
        self.pump_waiting();
        self.jobs.notify();
    }

    /// A line can take no more writes: closes its members, so that what is there can be read and moved.
    pub(super) fn give_up(self: &Rc<Self>, line: u32, index: usize, remains: Remains, broken: Broken) {
        let mut state = self.state.borrow_mut();
        state.lose(line, index, remains, &self.limits);
        let this = &mut state.lines[line as usize];
        if this.broken.is_none() {
            this.broken = Some(broken);
            this.closing = true;
            let shared = Rc::clone(self);
            self.jobs.add(async move { shared.close_broken(line).await });
        }
        drop(state);
        self.jobs.notify();
    }

    async fn close_broken(self: Rc<Self>, line: u32) {
        let at_rest = || {
            let state = self.state.borrow();
            let busy = |health| matches!(health, Health::Failing | Health::Evacuating);
            let mut members = state.lines[line as usize].members.iter();
            members.all(|member| member.in_flight == 0 && !busy(member.health)).then_some(())
        };
        self.jobs.wait(at_rest).await;
        for index in 0..self.assignment.stripe.width as usize {
            self.close_member(line, index).await;
        }
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        let this = &mut state.lines[line as usize];
        let stripe = &self.assignment.stripe;
        let gone = this.members.iter().any(|member| member.gone);
        this.lost_acknowledged =
            !this.is_done(stripe, this.acknowledged) || (gone && !this.is_flushed(stripe, this.acknowledged));
        this.closing = false;
        let end = stripe.prefix(this.members.iter().map(|member| Some(member.done())));
        state.table.set(ChunkId(line), ChunkState::Closed, end);
        drop(guard);
        self.pump_waiting();
        self.jobs.notify();
    }

    /// Closes a member of a broken line if it is open. If it cannot be closed it ends before what the chunk hides, which
    /// no flush makes durable.
    async fn close_member(&self, line: u32, index: usize) {
        let member = |state: &State| -> Option<ChunkId> {
            let member = &state.lines[line as usize].members[index];
            let partial = member.issued() > 0 && member.done() < self.limits.chunk_sectors;
            (partial && !member.finished && !member.gone).then_some(member.chunk)
        };
        let Some(chunk) = member(&self.state.borrow()) else { return };
        let finished = self.media.finish(chunk).await;
        if self.state.borrow_mut().lines[line as usize].members[index].note_finish(&finished, &self.limits) {
            return;
        }
        // Until it is known which chunk the metadata names, neither may be given away.
        let recorded = || (!self.state.borrow().lines[line as usize].members[index].recording).then_some(());
        self.jobs.wait(recorded).await;
        let mut state = self.state.borrow_mut();
        let remains = match verdict(&mut finished.err().into_iter().collect()) {
            Ok((_, remains)) => remains,
            Err(broken) => {
                if matches!(broken, Broken::PowerLost) {
                    state.lines[line as usize].broken = Some(broken);
                }
                Remains::Readable
            }
        };
        state.lose(line, index, remains, &self.limits);
    }

    /// A barrier on the device. Resolves when everything that was done before is flushed, and is credited as such.
    pub(super) async fn barrier(&self) -> Result<(), MediaError> {
        let marks = {
            let state = self.state.borrow();
            if state.flush_failed {
                return Err(flush_failed());
            }
            state.marks()
        };
        let flushed = self.media.flush().await;
        let mut state = self.state.borrow_mut();
        if let Err(error) = flushed {
            // Without power nothing succeeds later anyway, and the error says so.
            state.flush_failed |= !matches!(error, MediaError::PowerLost);
            return Err(error);
        }
        if state.flush_failed {
            return Err(flush_failed());
        }
        for (line, marks) in marks {
            for (member, mark) in state.lines[line as usize].members.iter_mut().zip(&marks) {
                member.credit(mark, &self.limits);
            }
        }
        drop(state);
        self.jobs.notify();
        Ok(())
    }

    /// A spare for a member of `unit`, free. `None`: there is none, and no used one could be made free. For jobs: it waits
    /// for those that others are judging.
    pub(super) async fn take_spare(&self, unit: u32) -> Option<ChunkId> {
        loop {
            let used = {
                let mut state = self.state.borrow_mut();
                let state = &mut *state;
                let geometry = &self.assignment.geometry;
                if let Some(chunk) = state.spares.take(geometry, &state.wear, unit) {
                    return Some(chunk);
                }
                let chosen = state.to_judge().min_by_key(|chunk| {
                    (geometry.unit_of(*chunk) != unit, state.wear[chunk.0 as usize], *chunk)
                });
                if let Some(chosen) = chosen {
                    state.spares.begin_judging(chosen);
                }
                chosen
            };
            match used {
                Some(used) => {
                    if !self.judge(used).await {
                        return None;
                    }
                }
                None => {
                    let judged = self.state.borrow().spares.judged;
                    if self.state.borrow().spares.judging.is_empty() {
                        return None;
                    }
                    let another = || (self.state.borrow().spares.judged != judged).then_some(());
                    self.jobs.wait(another).await;
                }
            }
        }
    }

    /// Resets a spare that [is being judged](super::spares::Spares::begin_judging): it becomes a ready one, or a defect.
    /// False: neither, the device itself failed.
    pub(super) async fn judge(&self, chunk: ChunkId) -> bool {
        let reset = self.media.reset(chunk).await;
        let mut state = self.state.borrow_mut();
        state.spares.end_judging(chunk);
        let told = match reset {
            Ok(()) => {
                state.wear[chunk.0 as usize] += 1;
                // A notice may have come meanwhile.
                if !state.tables.defects.contains(&chunk) {
                    state.spares.ready.insert(chunk);
                }
                true
            }
            Err(MediaError::PowerLost | MediaError::Rule { .. }) => {
                state.give_back(chunk);
                false
            }
            Err(_) => {
                state.retire_for_good(chunk);
                true
            }
        };
        drop(state);
        self.jobs.notify();
        told
    }

    /// Takes back a spare that nothing came to stand on. If anything was `written` to it, it is closed, since the device
    /// may count it as open, and judged.
    pub(super) async fn take_back(&self, chunk: ChunkId, written: bool) {
        {
            let mut state = self.state.borrow_mut();
            if !written {
                state.spares.ready.insert(chunk);
                return;
            }
            state.spares.begin_judging(chunk);
        }
        // If it cannot be closed, its reset tells.
        let _ = self.media.finish(chunk).await;
        self.judge(chunk).await;
    }

    /// The unit that a member of a line is to stand in.
    pub(super) fn unit_of(&self, line: u32, member: usize) -> u32 {
        let id = MemberId { line, member: member as u32 };
        self.assignment.geometry.unit_of(self.assignment.home(id))
    }

    /// Where a member's record of a new place is entered: it goes out with the next metadata record.
    pub(super) fn enter(&self, state: &mut State, line: u32, member: usize) {
        let id = MemberId { line, member: member as u32 };
        let this = &mut state.lines[line as usize].members[member];
        // If no record can be written any more, none is on its way that others would have to wait for.
        this.recording = !state.places.has_failed();
        let (recorded, chunk, blame) = (this.recorded, this.chunk, this.blame.take());
        state.tables.assign(&self.assignment, id, chunk);
        state.tables_version += 1;
        if let Some(blame) = blame {
            state.blame(recorded, blame);
        }
    }
}

/// What a flush says after one failed.
pub(super) fn flush_failed() -> MediaError {
    let source = std::io::Error::other(VolumeError::FlushFailed);
    MediaError::Io { operation: "flush", chunk: ChunkId(0), sector: 0, source }
}

//! What it takes for data to be durable, for a flush and for a durable write alike:
//!
//! 1. everything concerned that waits in memory is submitted, and done, by evacuated members too;
//! 2. a barrier of the device covers it, unless it was written durably;
//! 3. members that stand elsewhere than the durable metadata says are recorded, as soon as they may be; and whatever
//!    else changed of the metadata goes with them, or by itself: strikes, defects, a record that must leave its chunk.
//!
//! A **durable write** makes only itself durable for the host. But a line is recovered up to the first sector that is
//! missing (see [`close`](super::close)), so a durable write must not be acknowledged while anything **below** it in
//! its line could be lost. Where everything below is durable already, as in a log whose every write is, the programs go
//! out as durable writes and no barrier is needed; else the barrier comes behind them.
//!
//! A flush that failed is never success later: the device may have dropped what it had to cover. From then on nothing
//! that needs a barrier is acknowledged until the volume is opened again; a log of durable writes needs none and goes on.

use std::rc::Rc;

use super::line::{Health, Line};
use super::shared::{Shared, State};
use crate::geometry::ChunkId;
use crate::media::{Media, MediaError};

/// Up to where a line has to be durable.
pub(super) struct Target {
    pub(super) line: u32,
    pub(super) end: u32,
    pub(super) life: u64,
}

impl Target {
    /// The line, unless it began a new life: then nothing of the old one counts.
    fn line<'a>(&self, state: &'a State) -> Option<&'a Line> {
        Some(&state.lines[self.line as usize]).filter(|line| line.life == self.life)
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asks {
    /// A flush: it needs at least one barrier, and does not mind writes that failed and said so.
    Flush,
    /// A durable write of `operation` at `sector`.
    Write { operation: &'static str, sector: u32 },
}

impl<M: Media> Shared<M> {
    /// Resolves when all targets are durable, as far as the device makes anything durable.
    pub(super) async fn settle(self: &Rc<Self>, targets: &[Target], asks: Asks) -> Result<(), MediaError> {
        let stripe = &self.assignment.stripe;
        let mut barrier_needed = asks == Asks::Flush;
        loop {
            for target in targets {
                self.want(target);
                self.pump(target.line, false);
            }
            self.jobs.until(|| self.written(targets, asks)).await?;
            let flushed = {
                let state = self.state.borrow();
                let flushed = |line: &Line, end| line.broken.is_some() || line.is_flushed(stripe, end);
                targets.iter().all(|target| target.line(&state).is_none_or(|line| flushed(line, target.end)))
            };
            if barrier_needed || !flushed {
                barrier_needed = false;
                let shared = Rc::clone(self);
                self.run(async move { shared.barrier().await }).await?;
                continue;
            }
            let needed = self.enter_remaps(targets);
            if needed || self.state.borrow().is_metadata_behind() {
                let shared = Rc::clone(self);
                match self.run(async move { shared.commit().await }).await {
                    // What is asked for stands where the last record has it. It fails once: then no more are tried.
                    Err(error) if !needed && !matches!(error, MediaError::PowerLost) => {}
                    committed => committed?,
                }
                continue;
            }
            self.state.borrow_mut().forget_settled(targets.iter().map(|target| target.line));
            return Ok(());
        }
    }

    /// Lets parts of units be written as far as the target needs it.
    pub(super) fn want(&self, target: &Target) {
        let mut state = self.state.borrow_mut();
        let line = &mut state.lines[target.line as usize];
        if line.life == target.life {
            for (index, member) in line.members.iter_mut().enumerate() {
                member.want(self.assignment.stripe.member_end(index, target.end));
            }
        }
    }

    /// Whether the device has everything.
    fn written(&self, targets: &[Target], asks: Asks) -> Option<Result<(), MediaError>> {
        let state = self.state.borrow();
        let mut waits = false;
        for target in targets {
            let Some(line) = target.line(&state) else { continue };
            let busy = |health| matches!(health, Health::Failing | Health::Evacuating);
            match (asks, line.broken.is_some()) {
                (Asks::Flush, true) if line.closing => waits = true,
                (Asks::Flush, true) if line.lost_acknowledged => {
                    return Some(Err(state.broken("flush", target.line, 0)?));
                }
                (Asks::Flush, true) => {}
                (Asks::Write { operation, sector }, true) => {
                    return Some(Err(state.broken(operation, target.line, sector)?));
                }
                (_, false) => {
                    waits |= !line.is_done(&self.assignment.stripe, target.end);
                    waits |= line.members.iter().any(|member| busy(member.health));
                }
            }
        }
        (!waits).then_some(Ok(()))
    }

    /// Enters the members of the targets that may be recorded; true if the metadata must be written.
    fn enter_remaps(&self, targets: &[Target]) -> bool {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let mut any = false;
        for target in targets {
            if state.lines[target.line as usize].life != target.life {
                continue;
            }
            for index in 0..self.assignment.stripe.width as usize {
                let member = &state.lines[target.line as usize].members[index];
                if member.may_record(&self.limits) {
                    any = true;
                    if !member.recording {
                        self.enter(state, target.line, index);
                    }
                }
            }
        }
        any
    }

    /// [`Media::flush`] of the volume.
    pub(super) async fn flush(self: &Rc<Self>) -> Result<(), MediaError> {
        let targets: Vec<Target> = {
            let mut state = self.state.borrow_mut();
            state.counters.flushes += 1;
            let target = |line: &u32| {
                let this = &state.lines[*line as usize];
                Target { line: *line, end: this.end(), life: this.life }
            };
            state.unsettled.iter().map(target).collect()
        };
        self.settle(&targets, Asks::Flush).await.map_err(|error| match error {
            // A flush has no address.
            MediaError::Io { source, .. } => {
                MediaError::Io { operation: "flush", chunk: ChunkId(0), sector: 0, source }
            }
            error => error,
        })
    }
}

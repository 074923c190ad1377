//! Resetting a line: where chunks are judged, and bad ones replaced with nothing to move.
//!
//! All members that are not free are reset at once, together with the used spares that wait for their judgement. A member that cannot be
//! reset is retired for good and a spare takes its place; if there is none, the line goes offline: it holds nothing, so
//! nothing is lost but its room.
//!
//! Resolves when the resets are **durable** and, if a member was replaced, so is the record of it. Without that a power
//! cut could bring back one member's old content behind the others' new one (see [`close`](super::close)). It costs one
//! barrier a line's life.

use std::rc::Rc;

use futures_util::future::join_all;

use super::line::{Blame, Health, Line, Member};
use super::shared::Shared;
use super::spares::STRIKES_MAX;
use crate::geometry::ChunkId;
use crate::media::{ChunkState, Media, MediaError};

/// Why a line has no new life.
enum ResetError {
    /// A member has no chunk any more.
    NoSpare(MediaError),
    Failed(MediaError),
}

impl From<MediaError> for ResetError {
    fn from(error: MediaError) -> Self {
        Self::Failed(error)
    }
}

impl<M: Media> Shared<M> {
    /// [`Media::reset`].
    pub(super) async fn reset(self: &Rc<Self>, chunk: ChunkId) -> Result<(), MediaError> {
        {
            let mut state = self.state.borrow_mut();
            let state = &mut *state;
            if state.lines.get(chunk.0 as usize).is_some_and(|line| line.finishing) {
                let reason = "a finish of the chunk is in flight";
                return Err(MediaError::Rule { operation: "reset", chunk, sector: 0, reason });
            }
            state.table.begin_reset(chunk)?;
            state.counters.resets += 1;
        }
        let shared = Rc::clone(self);
        self.run(async move { shared.reset_members(chunk).await }).await
    }

    async fn reset_members(self: Rc<Self>, chunk: ChunkId) -> Result<(), MediaError> {
        let line = chunk.0;
        // A record may be on its way that names a member; and what the host was told of may still be on its way to the
        // device, or to another chunk.
        let under_way = |member: &Member| {
            member.recording
                || member.in_flight > 0
                || matches!(member.health, Health::Failing | Health::Evacuating)
        };
        let at_rest = || {
            let state = self.state.borrow();
            let line = &state.lines[line as usize];
            (!line.closing && !line.members.iter().any(under_way)).then_some(())
        };
        self.jobs.wait(at_rest).await;
        let members: Vec<(ChunkId, bool)> = {
            let mut state = self.state.borrow_mut();
            // From here on a flush, even one that began before, writes nothing more of the old life.
            state.unsettled.remove(&line);
            state.forget_waiting(line, &self.limits);
            let this = &mut state.lines[line as usize];
            this.life += 1;
            this.members.iter().map(|member| (member.chunk, member.free)).collect()
        };
        let members = members.into_iter().map(|(chunk, free)| self.make_free(chunk, free));
        let (resets, ()) = futures_util::future::join(join_all(members), self.judge_used_spares()).await;
        let result = self.begin_life(line, resets).await;
        if matches!(result, Err(ResetError::NoSpare(_))) {
            // The defect is remembered if that can be: the reset has failed either way.
            let _ = self.commit().await;
        }
        let result = self.end_reset(chunk, result);
        self.pump_waiting();
        result
    }

    fn end_reset(&self, chunk: ChunkId, result: Result<(), ResetError>) -> Result<(), MediaError> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        state.table.end_reset(chunk, result.is_ok());
        // Whatever was unsettled of its old life is gone.
        state.unsettled.remove(&chunk.0);
        result.map_err(|error| match error {
            ResetError::NoSpare(error) => {
                state.table.set(chunk, ChunkState::Offline, 0);
                error
            }
            ResetError::Failed(error) => {
                // Some members were reset and some were not.
                state.table.set(chunk, ChunkState::Closed, 0);
                error
            }
        })
    }

    /// The members were reset, or not: replaces those that were not, and makes it all durable.
    async fn begin_life(
        self: &Rc<Self>,
        line: u32,
        resets: Vec<Result<(), MediaError>>,
    ) -> Result<(), ResetError> {
        let fatal = |error: &MediaError| matches!(error, MediaError::PowerLost | MediaError::Rule { .. });
        let mut judged = Vec::with_capacity(resets.len());
        for reset in resets {
            match reset {
                Err(error) if fatal(&error) => return Err(ResetError::Failed(error)),
                reset => judged.push(reset.is_ok()),
            }
        }
        let mut replaced = false;
        for (index, reset) in judged.into_iter().enumerate() {
            let chunk = {
                let mut state = self.state.borrow_mut();
                let state = &mut *state;
                let member = &mut state.lines[line as usize].members[index];
                let chunk = member.chunk;
                // A chunk that failed and was not evacuated is still here: it has its strike now.
                let blamed = chunk == member.recorded && member.blame.take().is_some();
                let failed = blamed || member.health == Health::Lost;
                let strikes = state.tables.strikes.get(&chunk).copied().unwrap_or(0) + u32::from(failed);
                if reset && strikes < STRIKES_MAX {
                    if failed {
                        state.blame(chunk, Blame::Strike);
                    }
                    state.lines[line as usize].members[index].restart(chunk, &self.limits);
                    continue;
                }
                chunk
            };
            let spare = self.take_spare(self.unit_of(line, index)).await;
            let mut state = self.state.borrow_mut();
            let state = &mut *state;
            state.retire_for_good(chunk);
            let Some(spare) = spare else {
                let source = std::io::Error::other(state.no_spare(&self.assignment, 1));
                let (operation, chunk) = ("reset", ChunkId(line));
                return Err(ResetError::NoSpare(MediaError::Io { operation, chunk, sector: 0, source }));
            };
            state.lines[line as usize].members[index].restart(spare, &self.limits);
            replaced = true;
        }
        {
            let mut state = self.state.borrow_mut();
            state.forget_notices(line);
            let this = &mut state.lines[line as usize];
            let life = this.life + 1;
            let members = std::mem::take(&mut this.members);
            *this = Line { life, ..Line::new(members) };
        }
        self.barrier().await?;
        replaced |= {
            let state = self.state.borrow();
            state.lines[line as usize].members.iter().any(Member::is_unrecorded)
        };
        if replaced {
            self.enter_line(line);
            self.commit().await?;
        }
        Ok(())
    }

    async fn make_free(&self, chunk: ChunkId, free: bool) -> Result<(), MediaError> {
        if !free {
            self.media.reset(chunk).await?;
            self.state.borrow_mut().wear[chunk.0 as usize] += 1;
        }
        Ok(())
    }

    fn enter_line(&self, line: u32) {
        let mut state = self.state.borrow_mut();
        for index in 0..self.assignment.stripe.width as usize {
            if state.lines[line as usize].members[index].is_unrecorded() {
                self.enter(&mut state, line, index);
            }
        }
    }

    /// Judges the used spares that nobody reads.
    async fn judge_used_spares(&self) {
        let used: Vec<ChunkId> = {
            let mut state = self.state.borrow_mut();
            let used: Vec<ChunkId> = state.to_judge().collect();
            used.iter().for_each(|chunk| state.spares.begin_judging(*chunk));
            used
        };
        join_all(used.into_iter().map(|chunk| self.judge(chunk))).await;
    }
}

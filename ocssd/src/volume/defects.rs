//! Chunks that go bad while a line is being written: their content is brought to a spare, and the writer never notices.
//!
//! A program that fails ([`MediaError::WriteFailed`], [`MediaError::ClosedEarly`], [`MediaError::Offline`]) leaves what
//! is below it readable. What the device had accepted and not programmed is in the [write buffer](super::write_buffer),
//! and so is what was on its way. The *evacuation* of the member then is:
//!
//! 1. wait until no program of the chunk is in flight, so that all that will fail has failed;
//! 2. take a spare of the same unit, or of another one;
//! 3. write everything issued so far to it, from the device and from memory; a read that fails and does not say that the
//!    sectors are lost is repeated, for the line hangs on it;
//! 4. let the member stand there, and go on: programs that failed are now done, those that waited are submitted.
//!
//! Nobody is told anything durable of the new chunk before a metadata record names it, and the record is written only
//! when a flush covers what was brought there, and with it all that was promised of the old one
//! ([`Member::may_record`]). The old chunk is reset only after that record is durable in both places.
//!
//! **Policy.** A failed write costs a chunk one strike and the next reset judges it (the policy of liblightnvm's and
//! pblk's documentation): if it can be reset it is a spare again. The second strike, a failed reset, or going offline
//! retires it for good, in the persistent list of defects. The next flush or durable write records what changed of these
//! tables even if it needs nothing of them, so a power cut costs at most the strikes since then; and a chunk that fails
//! gets one chance more.
//!
//! # Races, and what settles them
//!
//! | race | outcome |
//! |---|---|
//! | a second program is in flight on the chunk that fails | the evacuation waits for it; whatever it returned, its sectors are still in memory unless it succeeded, and are written again |
//! | a write arrives during the evacuation | it is accepted into memory and submitted to the new chunk; it completes after that |
//! | a read during the evacuation | goes to the old chunk for what it can return, to memory for the rest; the old chunk is not reset while a read of it is in flight |
//! | a flush during the evacuation | waits for its end, then flushes the new chunk and records the remap |
//! | a reset during the evacuation | is refused while a write of the line or a finish is in flight, as on every medium; else waits for its end |
//! | the spare fails too | it gets its strike, the next spare is taken, from the first sector |
//! | the only spares left are being judged | the evacuation waits for that |
//! | the copy stops halfway | the spare is closed and judged |
//! | the power goes between the evacuation and the record | the metadata still names the old chunk, which still holds what was promised; the new one is an unused chunk with leavings, which recovery resets |
//! | the power goes while the record is written | either name is right: both chunks hold what was promised |
//! | the old chunk cannot be read | the line is closed at the prefix that is there, its writer gets an error, and there is a notice of it |

use std::rc::Rc;

use super::line::{Blame, Broken, Health, Remains, broken_by};
use super::shared::Shared;
use super::write_buffer::WriteBuffer;
use crate::buffer::AlignedBuf;
use crate::geometry::ChunkId;
use crate::media::{Durability, Media, MediaError};

#[cfg(doc)]
use super::line::Member;

/// How often a read is tried that fails and does not say that the sectors are lost.
const READ_ATTEMPTS: u32 = 4;

/// What stopped a copy.
enum CopyError {
    /// The chunk that was copied to.
    Target(Blame),
    /// The chunk that was copied from, or the whole device. Whether anything was written by then.
    Stopped { broken: Broken, written: bool },
}

impl<M: Media> Shared<M> {
    /// Brings a member that failed elsewhere; its programs must have drained.
    pub(super) fn begin_evacuation(
        self: &Rc<Self>,
        line: u32,
        index: usize,
        (blame, remains): (Blame, Remains),
    ) {
        let mut state = self.state.borrow_mut();
        let member = &mut state.lines[line as usize].members[index];
        assert_eq!(member.in_flight, 0, "an evacuation begins when nothing is in flight");
        member.health = Health::Evacuating;
        let shared = Rc::clone(self);
        self.jobs.add(async move {
            if let Err(broken) = shared.evacuate(line, index, blame).await {
                shared.give_up(line, index, remains, broken);
            }
        });
    }

    async fn evacuate(self: &Rc<Self>, line: u32, index: usize, blame: Blame) -> Result<(), Broken> {
        // Until it is known which chunk the metadata names, neither may be given away.
        let undisturbed = || {
            let state = self.state.borrow();
            let member = &state.lines[line as usize].members[index];
            (!member.recording).then_some((member.chunk, member.issued()))
        };
        let (source, end) = self.jobs.wait(undisturbed).await;
        loop {
            let Some(target) = self.take_spare(self.unit_of(line, index)).await else {
                let state = self.state.borrow();
                let defects = state.tables.defects.len() as u32;
                let spares = self.assignment.first_spares().len() as u32;
                return Err(Broken::NoSpare { missing: 1, defects, spares });
            };
            if let Some(class) = self.state.borrow().lines[line as usize].class {
                self.media.expect_lifetime(target, class);
            }
            let copied = self.copy(line, index, (source, target), end).await;
            let kept = match copied {
                Ok(kept) => kept,
                Err(CopyError::Target(blame)) => {
                    let mut state = self.state.borrow_mut();
                    state.blame(target, blame);
                    state.give_back(target);
                    continue;
                }
                Err(CopyError::Stopped { broken, written }) => {
                    self.take_back(target, written).await;
                    return Err(broken);
                }
            };
            let mut state = self.state.borrow_mut();
            state.evacuations += 1;
            state.evacuated_bytes += u64::from(end) * u64::from(self.geometry.sector_bytes);
            state.unsettled.insert(line);
            let member = &mut state.lines[line as usize].members[index];
            let left = member.move_to(target, kept, &self.limits);
            if left == member.recorded {
                member.blame = Some(blame);
            } else {
                state.blame(left, blame);
                state.give_back(left);
            }
            drop(state);
            self.pump(line, false);
            self.pump_waiting();
            self.jobs.notify();
            return Ok(());
        }
    }

    /// Writes the first `end` sectors of a member to another chunk. Returns those that the other one will hide.
    async fn copy(
        &self,
        line: u32,
        index: usize,
        (source, target): (ChunkId, ChunkId),
        end: u32,
    ) -> Result<WriteBuffer, CopyError> {
        let sector_bytes = self.limits.sector_bytes;
        let hidden = if end == self.limits.chunk_sectors { 0 } else { self.limits.hidden };
        let mut kept = WriteBuffer::at(end.saturating_sub(hidden), sector_bytes);
        let mut at = 0;
        while at < end {
            let to = (at + self.limits.unit_sectors).min(end);
            let bytes = |from: u32, to: u32| (to - from) as usize * sector_bytes;
            let memory_start = {
                let state = self.state.borrow();
                state.lines[line as usize].members[index].buffer.start().clamp(at, to)
            };
            let mut piece = AlignedBuf::zeroed(bytes(at, to));
            if memory_start > at {
                piece.set_len(bytes(at, memory_start));
                let (read, filled) = self.read_repeatedly(source, at, piece).await;
                piece = filled;
                piece.set_len(bytes(at, to));
                read.map_err(|error| {
                    let broken = match error {
                        MediaError::PowerLost => Broken::PowerLost,
                        error => Broken::NotEvacuated(error.to_string()),
                    };
                    CopyError::Stopped { broken, written: at > 0 }
                })?;
            }
            if memory_start < to {
                let state = self.state.borrow();
                let buffer = &state.lines[line as usize].members[index].buffer;
                buffer.copy_out(memory_start, &mut piece[bytes(at, memory_start)..]);
            }
            if to > kept.start() {
                let from = at.max(kept.start());
                kept.push(&piece[bytes(at, from)..]);
            }
            let (written, _) = self.media.write(target, at, piece, Durability::Volatile).await;
            written.map_err(|error| match error {
                MediaError::WriteFailed { .. } | MediaError::ClosedEarly { .. } => {
                    CopyError::Target(Blame::Strike)
                }
                MediaError::Offline { .. } => CopyError::Target(Blame::Offline),
                error => CopyError::Stopped { broken: broken_by(&error), written: true },
            })?;
            at = to;
        }
        Ok(kept)
    }

    async fn read_repeatedly(
        &self,
        chunk: ChunkId,
        sector: u32,
        mut buf: AlignedBuf,
    ) -> (Result<(), MediaError>, AlignedBuf) {
        for _ in 1..READ_ATTEMPTS {
            let (read, filled) = self.media.read(chunk, sector, buf).await;
            if !matches!(read, Err(MediaError::Io { .. })) {
                return (read, filled);
            }
            buf = filled;
        }
        self.media.read(chunk, sector, buf).await
    }
}

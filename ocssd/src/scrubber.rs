//! Scrubbing carried out: one read after another, as the [policy](crate::policy::scrub) says and the
//! [budget](crate::policy::budget) allows.
//!
//! The host calls [`Scrubber::run_one`] from a loop of its own, sleeps as the step says, and tells the scrubber what it
//! writes and resets. The device's own [notices](crate::Media::take_notices) are not taken here: they belong to
//! whoever owns the medium, who hands them to the same work list.
//!
//! Invariants:
//! - One buffer, used again for every read.
//! - Nothing is borrowed while a read is in flight: chunks may be written and reset meanwhile, and the result of a read
//!   of a former life changes nothing.
//! - What was read is judged by the caller's verifier, since only it knows what belongs there. What the device says is
//!   wrong is wrong, whatever the verifier thinks.

use std::cell::RefCell;
use std::time::Duration;

use crate::buffer::AlignedBuf;
use crate::geometry::ChunkId;
use crate::media::{ChunkInfo, ChunkState, Media, MediaError, Notice, NoticeKind};
use crate::policy::budget::{Budget, ConsumerId, Cost, Refusal};
use crate::policy::refresh::RefreshList;
use crate::policy::scrub::{Next, Outcome, Progress, Scrub, ScrubRead};

/// What the owner of the data thinks of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is what was written, or nothing of it matters.
    Good,
    /// It is what was written, but was hard to read.
    Corrected,
    /// It is wrong from this sector of the chunk on, for so many.
    Damaged(u32, u32),
}

/// What a call of [`Scrubber::run_one`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A read was made; the next may be due at once.
    Read {
        /// Which.
        read: ScrubRead,
        /// What came of it.
        outcome: Outcome,
        /// What the work list was told.
        notice: Option<Notice>,
    },
    /// Nothing before then: nothing is due, or the budget is used up. A new rate or a new chunk may change that.
    WaitUntil(Duration),
    /// Nothing is written that could be read.
    Idle,
}

/// Ties a [`Scrub`] to a medium and a budget.
#[derive(Debug)]
pub struct Scrubber {
    scrub: RefCell<Scrub>,
    buffer: RefCell<Option<AlignedBuf>>,
    consumer: ConsumerId,
}

impl Scrubber {
    /// Reads as `scrub` says, at the cost of `consumer` in the budget. A read of `read_sectors_max` should fit what the
    /// budget [guarantees](Budget::guaranteed) it, or the interval depends on the others' restraint.
    pub fn new(scrub: Scrub, consumer: ConsumerId) -> Self {
        Self { scrub: RefCell::new(scrub), buffer: RefCell::new(None), consumer }
    }

    /// Compares with a report of chunks; see [`Scrub::observe`]. Chunks that went offline with data go to the work list.
    pub fn observe(&self, now: Duration, report: &[ChunkInfo], refresh: &RefCell<RefreshList>) {
        let mut scrub = self.scrub.borrow_mut();
        for info in report.iter().filter(|info| info.state == ChunkState::Offline) {
            let notice = Notice { chunk: info.id, sectors: None, kind: NoticeKind::Offline };
            // Refused if the chunk held nothing, which is all that can be wrong with it.
            let _ = refresh.borrow_mut().note(now, &notice, scrub.written(info.id));
        }
        scrub.observe(now, report);
    }

    /// The host wrote a chunk; see [`Scrub::wrote`].
    pub fn wrote(&self, now: Duration, chunk: ChunkId, written: u32) {
        self.scrub.borrow_mut().wrote(now, chunk, written);
    }

    /// The host reset a chunk, or gave up what is in it; see [`Scrub::reset`].
    pub fn reset(&self, chunk: ChunkId) {
        self.scrub.borrow_mut().reset(chunk);
    }

    /// Someone else read; see [`Scrub::read_elsewhere`].
    pub fn read_elsewhere(&self, now: Duration, chunk: ChunkId, first: u32, sectors: u32) {
        self.scrub.borrow_mut().read_elsewhere(now, chunk, first, sectors);
    }

    /// How far the scrub is; see [`Scrub::progress`].
    pub fn progress(&self, now: Duration) -> Progress {
        self.scrub.borrow().progress(now)
    }

    /// Makes the next read, if one is due and the budget grants it, and tells the policy and the work list what came
    /// of it. Resolves when that is done; with a step that waits, at once. `now` is when the call is made. One call at a
    /// time: two would make the same read. A future that is dropped leaves the read to be made again.
    ///
    /// `verify` is shown the range and its content.
    ///
    /// # Errors
    /// Of the medium as a whole, such as lost power. What is wrong with the content is a step, not an error.
    ///
    /// # Panics
    /// If a read costs more than the budget can ever grant.
    pub async fn run_one<M: Media>(
        &self,
        media: &M,
        now: Duration,
        budget: &RefCell<Budget>,
        refresh: &RefCell<RefreshList>,
        verify: impl FnOnce(&ScrubRead, &[u8]) -> Verdict,
    ) -> Result<Step, MediaError> {
        let sector_bytes = media.geometry().sector_bytes as usize;
        let read = match self.scrub.borrow_mut().next(now) {
            Next::Read(read) => read,
            waiting => {
                // Whatever was refused before is no longer wanted.
                budget.borrow_mut().withdraw(self.consumer);
                return Ok(match waiting {
                    Next::WaitUntil(at) => Step::WaitUntil(at),
                    _ => Step::Idle,
                });
            }
        };
        let len = read.sectors as usize * sector_bytes;
        let cost = Cost { bytes: len as u64, operations: 1 };
        match budget.borrow_mut().try_take(now, self.consumer, cost) {
            Ok(()) => {}
            Err(Refusal::NotBefore(at)) => return Ok(Step::WaitUntil(at)),
            Err(refusal @ Refusal::TooLarge { .. }) => panic!("a scrub read of {len} bytes: {refusal}"),
        }
        let (result, buffer) = media.read(read.chunk, read.first, self.buffer(len, sector_bytes)).await;
        let judged = match result {
            Ok(()) => Ok(match verify(&read, &buffer) {
                Verdict::Good => Outcome::Good,
                Verdict::Corrected => Outcome::Corrected,
                Verdict::Damaged(first, sectors) => Outcome::Damaged(first, sectors),
            }),
            Err(error) => classify(error),
        };
        self.buffer.replace(Some(buffer));
        let mut scrub = self.scrub.borrow_mut();
        let written = scrub.written(read.chunk);
        let outcome = *judged.as_ref().unwrap_or(&Outcome::Failed);
        let notice = scrub.complete(now, &read, outcome);
        if let Some(notice) = &notice {
            let noted = refresh.borrow_mut().note(now, notice, written);
            assert_eq!(noted, Ok(()), "the scrub speaks only of what is written");
        }
        judged.map(|outcome| Step::Read { read, outcome, notice })
    }

    /// The buffer, `len` bytes long. A new one at first, and after a read whose future was dropped.
    fn buffer(&self, len: usize, sector_bytes: usize) -> AlignedBuf {
        let mut buffer = self.buffer.take().unwrap_or_else(|| {
            let sectors = self.scrub.borrow().options().read_sectors_max as usize;
            AlignedBuf::zeroed(sectors * sector_bytes)
        });
        buffer.set_len(len);
        buffer
    }
}

/// What a failed read says of the data; the error itself if it says nothing.
fn classify(error: MediaError) -> Result<Outcome, MediaError> {
    match error {
        MediaError::Unreadable { .. } | MediaError::Io { .. } => Ok(Outcome::Unreadable),
        MediaError::Offline { .. } => Ok(Outcome::Offline),
        // The range is not what the device holds: a reset came in between.
        MediaError::Rule { .. } => Ok(Outcome::Gone),
        // The last two are answers to writes.
        MediaError::PowerLost | MediaError::WriteFailed { .. } | MediaError::ClosedEarly { .. } => Err(error),
    }
}

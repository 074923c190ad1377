//! How commands end: NVMe status codes, and what became of the request behind them.
//!
//! A [`Refusal`] is what the controller decides. Vector commands turn it into a [`Status`] and a bit, `Media`
//! operations into a [`MediaError`] that names the chunk; so both say the same of the same event.

use std::fmt;
use std::io;

use crate::geometry::ChunkId;
use crate::media::MediaError;

/// Status of a completed command: status code type (3 bits) above status code (8 bits), as `nvme-cli` prints it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Status(pub u16);

impl Status {
    /// It did what it should.
    pub const SUCCESS: Self = Self(0x000);
    /// A field of the command cannot be: no or too many addresses, a buffer of another size, writes that are not
    /// whole multiples of `ws_min`.
    pub const INVALID_FIELD: Self = Self(0x002);
    /// The power went while the command was under way.
    pub const POWER_LOSS: Self = Self(0x005);
    /// An address names nothing on this device.
    pub const LBA_OUT_OF_RANGE: Self = Self(0x080);
    /// The storage behind the model failed.
    pub const INTERNAL: Self = Self(0x006);
    /// Write fault. Also said where a write would open more chunks than `maxoc` or `maxocpu` allow, for which the
    /// specification names no code.
    pub const WRITE_FAULT: Self = Self(0x280);
    /// The sectors could not be corrected.
    pub const UNRECOVERED_READ: Self = Self(0x281);
    /// The sectors were not written, or cannot be read yet.
    pub const UNWRITTEN: Self = Self(0x287);
    /// The chunk is offline, or this reset took it there.
    pub const OFFLINE_CHUNK: Self = Self(0x2C0);
    /// The chunk's state does not allow a reset.
    pub const INVALID_RESET: Self = Self(0x2C1);
    /// Read with much correction: the data is good, but should be written anew soon.
    pub const HIGH_ECC: Self = Self(0x2D0);
    /// The write unit was not programmed.
    pub const WRITE_NEXT_UNIT: Self = Self(0x2F0);
    /// The chunk was closed before its end, and is readable up to its write pointer.
    pub const CHUNK_EARLY_CLOSE: Self = Self(0x2F1);
    /// Not at the write pointer, or to a chunk that is closed or offline.
    pub const OUT_OF_ORDER: Self = Self(0x2F2);
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Status({:03X})", self.0)
    }
}

/// A rule that a request broke, in words and as the device says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) reason: &'static str,
    pub(super) status: Status,
}

impl Rule {
    const fn new(status: Status, reason: &'static str) -> Self {
        Self { reason, status }
    }

    pub(super) const NO_SUCH_CHUNK: Self = Self::new(Status::LBA_OUT_OF_RANGE, "there is no such chunk");
    pub(super) const NOT_WHOLE_SECTORS: Self =
        Self::new(Status::INVALID_FIELD, "the length is not a positive number of whole sectors");
    pub(super) const NOT_WHOLE_UNITS: Self =
        Self::new(Status::INVALID_FIELD, "the length is not a multiple of the smallest write");
    pub(super) const WRITE_BEYOND_END: Self =
        Self::new(Status::LBA_OUT_OF_RANGE, "the write reaches beyond the chunk's end");
    pub(super) const READ_BEYOND_END: Self =
        Self::new(Status::LBA_OUT_OF_RANGE, "the read reaches beyond the chunk's end");
    pub(super) const NOT_AT_POINTER: Self =
        Self::new(Status::OUT_OF_ORDER, "the sector is not the write pointer");
    pub(super) const CLOSED: Self = Self::new(Status::OUT_OF_ORDER, "the chunk is closed; reset it first");
    pub(super) const TOO_MANY_OPEN: Self = Self::new(Status::WRITE_FAULT, "too many chunks are open");
    pub(super) const TOO_MANY_OPEN_IN_SLICE: Self =
        Self::new(Status::WRITE_FAULT, "too many chunks of the slice are open");
    pub(super) const TOO_MANY_OPEN_IN_UNIT: Self =
        Self::new(Status::WRITE_FAULT, "too many chunks of the parallel unit are open");
    pub(super) const BEYOND_POINTER: Self =
        Self::new(Status::UNWRITTEN, "the read reaches beyond the write pointer");
    pub(super) const HIDDEN: Self =
        Self::new(Status::UNWRITTEN, "the last sectors below the write pointer cannot be read yet");
    pub(super) const RESETTING: Self = Self::new(Status::INVALID_RESET, "a reset of the chunk is in flight");
    pub(super) const WRITE_IN_FLIGHT: Self =
        Self::new(Status::INVALID_RESET, "a write of the chunk is in flight");
    pub(super) const RESET_OF_FREE: Self =
        Self::new(Status::INVALID_RESET, "the chunk is free, and this device resets no free chunk");
    pub(super) const RESET_OF_OPEN: Self =
        Self::new(Status::INVALID_RESET, "the chunk is open, and this device resets no open chunk");
    pub(super) const FINISH_OF_NOT_OPEN: Self =
        Self::new(Status::INVALID_FIELD, "only an open chunk can be finished");
}

/// Why a request was not done.
#[derive(Debug)]
pub(super) enum Refusal {
    PowerLost,
    Rule(Rule),
    Offline,
    WriteFailed { sector: u32 },
    ClosedEarly { write_pointer: u32 },
    Unreadable { sector: u32 },
    Io(io::Error),
}

impl From<Rule> for Refusal {
    fn from(rule: Rule) -> Self {
        Self::Rule(rule)
    }
}

impl Refusal {
    /// As a vector command says it.
    pub(super) fn status(&self) -> Status {
        match self {
            Self::PowerLost => Status::POWER_LOSS,
            Self::Rule(rule) => rule.status,
            Self::Offline => Status::OFFLINE_CHUNK,
            Self::WriteFailed { .. } => Status::WRITE_NEXT_UNIT,
            Self::ClosedEarly { .. } => Status::CHUNK_EARLY_CLOSE,
            Self::Unreadable { .. } => Status::UNRECOVERED_READ,
            Self::Io(_) => Status::INTERNAL,
        }
    }

    /// As a `Media` operation says it, of the chunk as its slice knows it.
    pub(super) fn into_media(self, operation: &'static str, chunk: ChunkId, sector: u32) -> MediaError {
        match self {
            Self::PowerLost => MediaError::PowerLost,
            Self::Rule(Rule { reason, .. }) => MediaError::Rule { operation, chunk, sector, reason },
            Self::Offline => MediaError::Offline { chunk },
            Self::WriteFailed { sector } => MediaError::WriteFailed { chunk, sector },
            Self::ClosedEarly { write_pointer } => MediaError::ClosedEarly { chunk, write_pointer },
            Self::Unreadable { sector } => MediaError::Unreadable { chunk, sector },
            Self::Io(source) => MediaError::Io { operation, chunk, sector, source },
        }
    }
}

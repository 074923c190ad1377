//! What a completed command says: the NVMe status, and what that means for the host.
//!
//! The kernel hands the status field of the completion on without its phase bit: status code in bits 7:0, status
//! code type in bits 10:8, "do not retry" in bit 14 (Base 2.1, "Status Field").

use std::io;

use nix::errno::Errno;

use crate::geometry::ChunkId;
use crate::media::MediaError;

/// Code and type, without the flags above.
const CODE_MASK: u16 = 0x7ff;
/// The command will fail again if it is sent again.
const DO_NOT_RETRY: u16 = 0x4000;

/// The status of a command that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status(u16);

impl Status {
    /// The zone ends before the transfer does.
    pub const ZONE_BOUNDARY: u16 = 0x1b8;
    /// The zone is full.
    pub const ZONE_FULL: u16 = 0x1b9;
    /// The zone is read only.
    pub const ZONE_READ_ONLY: u16 = 0x1ba;
    /// The zone is offline.
    pub const ZONE_OFFLINE: u16 = 0x1bb;
    /// The write is not at the zone's write pointer.
    pub const ZONE_INVALID_WRITE: u16 = 0x1bc;
    /// The device has no more active zones to give.
    pub const TOO_MANY_ACTIVE: u16 = 0x1bd;
    /// The device has no more open zones to give.
    pub const TOO_MANY_OPEN: u16 = 0x1be;
    /// The zone cannot get into that state from the one it is in.
    pub const ZONE_TRANSITION: u16 = 0x1bf;
    /// The device could not write the sectors.
    pub const WRITE_FAULT: u16 = 0x280;
    /// The device could not read the sectors.
    pub const UNRECOVERED_READ: u16 = 0x281;

    /// The status in the result of a completion; `None`: it succeeded or failed in the kernel.
    pub fn of(result: i32) -> Option<Self> {
        u16::try_from(result).ok().filter(|status| *status != 0).map(Self)
    }

    /// Status code and its type: one of the constants above, or another of the specification's.
    pub fn code(self) -> u16 {
        self.0 & CODE_MASK
    }

    /// Whether the device would not refuse the same command again for the same reason.
    pub fn retryable(self) -> bool {
        self.0 & DO_NOT_RETRY == 0
    }

    /// What the specification calls it, if it is one that this program knows.
    pub fn name(self) -> Option<&'static str> {
        Some(match self.code() {
            0x001 => "invalid command opcode",
            0x002 => "invalid field in command",
            0x004 => "data transfer error",
            0x005 => "commands aborted due to power loss notification",
            0x006 => "internal error",
            0x007 => "command abort requested",
            0x00b => "invalid namespace or format",
            0x021 => "command interrupted",
            0x029 => "flexible data placement disabled",
            0x02a => "invalid placement handle list",
            0x080 => "LBA out of range",
            0x081 => "capacity exceeded",
            0x082 => "namespace not ready",
            0x083 => "reservation conflict",
            0x109 => "invalid log page",
            0x182 => "attempted write to read only range",
            0x183 => "command size limit exceeded",
            Self::ZONE_BOUNDARY => "zone boundary error",
            Self::ZONE_FULL => "zone is full",
            Self::ZONE_READ_ONLY => "zone is read only",
            Self::ZONE_OFFLINE => "zone is offline",
            Self::ZONE_INVALID_WRITE => "zone invalid write",
            Self::TOO_MANY_ACTIVE => "too many active zones",
            Self::TOO_MANY_OPEN => "too many open zones",
            Self::ZONE_TRANSITION => "invalid zone state transition",
            Self::WRITE_FAULT => "write fault",
            Self::UNRECOVERED_READ => "unrecovered read error",
            0x286 => "access denied",
            _ => return None,
        })
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let again = if self.retryable() { "" } else { ", do not retry" };
        write!(f, "NVMe status {:03x} ({}{again})", self.code(), self.name().unwrap_or("unknown"))
    }
}

/// Why an operation on a device failed, before it is known of which chunk: what both transports, the kernel's block
/// device and passthrough, tell apart.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The sectors could not be written.
    WriteFailed,
    /// The sectors could not be read.
    Unreadable,
    /// The zone takes no more writes: it went read only, or the device filled it.
    Closed,
    /// The zone is lost.
    Offline,
    /// The device refused what breaks a rule.
    Rule(&'static str),
    /// Anything else.
    Io(io::Error),
}

impl Fault {
    /// What the result of a passthrough command means; `None`: success.
    pub(crate) fn of_result(result: i32) -> Option<Self> {
        if result < 0 {
            return Some(Self::Io(io::Error::from_raw_os_error(-result)));
        }
        Status::of(result).map(Self::of_status)
    }

    /// What the status of a command means.
    pub(crate) fn of_status(status: Status) -> Self {
        match status.code() {
            Status::WRITE_FAULT => Self::WriteFailed,
            Status::UNRECOVERED_READ => Self::Unreadable,
            Status::ZONE_FULL | Status::ZONE_READ_ONLY => Self::Closed,
            Status::ZONE_OFFLINE => Self::Offline,
            Status::ZONE_BOUNDARY => Self::Rule("the device says that the transfer crosses the zone's end"),
            Status::ZONE_INVALID_WRITE => {
                Self::Rule("the device says that the sector is not the write pointer")
            }
            Status::TOO_MANY_ACTIVE => Self::Rule("the device says that too many zones are active"),
            Status::TOO_MANY_OPEN => Self::Rule("the device says that too many zones are open"),
            Status::ZONE_TRANSITION => Self::Rule("the device says that the zone's state does not allow it"),
            _ => Self::Io(io::Error::other(status.to_string())),
        }
    }

    /// What an error of the kernel's block layer means (`blk_errors` in its `block/blk-core.c`). `writes`: of a
    /// write rather than a read.
    pub(crate) fn of_block_error(error: io::Error, writes: bool) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENODATA) if writes => Self::WriteFailed,
            Some(Errno::ENODATA) => Self::Unreadable,
            Some(Errno::ETOOMANYREFS) => Self::Rule("the device says that too many zones are open"),
            Some(Errno::EOVERFLOW) => Self::Rule("the device says that too many zones are active"),
            _ => Self::Io(error),
        }
    }

    /// The failure as the seam says it.
    pub(crate) fn at(self, operation: &'static str, chunk: ChunkId, sector: u32) -> MediaError {
        match self {
            Self::WriteFailed => MediaError::WriteFailed { chunk, sector },
            Self::Unreadable => MediaError::Unreadable { chunk, sector },
            Self::Closed => MediaError::ClosedEarly { chunk, write_pointer: sector },
            Self::Offline => MediaError::Offline { chunk },
            Self::Rule(reason) => MediaError::Rule { operation, chunk, sector, reason },
            Self::Io(source) => MediaError::Io { operation, chunk, sector, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: ChunkId = ChunkId(3);

    fn said(result: i32) -> String {
        match Fault::of_result(result) {
            None => "success".to_owned(),
            Some(fault) => match fault.at("write", CHUNK, 8) {
                MediaError::Rule { .. } => "rule".to_owned(),
                MediaError::Io { source, .. } => format!("io: {source}"),
                MediaError::Offline { chunk: CHUNK } => "offline".to_owned(),
                MediaError::WriteFailed { chunk: CHUNK, sector: 8 } => "write failed".to_owned(),
                MediaError::ClosedEarly { chunk: CHUNK, write_pointer: 8 } => "closed early".to_owned(),
                MediaError::Unreadable { chunk: CHUNK, sector: 8 } => "unreadable".to_owned(),
                other => panic!("{other}"),
            },
        }
    }

    #[test]
    fn what_each_result_means() {
        let table = [
            (0, "success"),
            (0x1b8, "rule"),
            (0x1b9, "closed early"),
            (0x1ba, "closed early"),
            (0x1bb, "offline"),
            (0x1bc, "rule"),
            (0x1bd, "rule"),
            (0x1be, "rule"),
            (0x1bf, "rule"),
            (0x280, "write failed"),
            (0x4280, "write failed"),
            (0x281, "unreadable"),
            (0x4281, "unreadable"),
            (0x4002, "io: NVMe status 002 (invalid field in command, do not retry)"),
            (0x006, "io: NVMe status 006 (internal error)"),
            (0x7c5, "io: NVMe status 7c5 (unknown)"),
            (-13, "io: Permission denied (os error 13)"),
        ];
        for (result, meaning) in table {
            assert_eq!(said(result), meaning, "{result:#x}");
        }
    }

    #[test]
    fn flags_are_no_part_of_the_code() {
        let status = Status::of(0x6281).unwrap();
        assert_eq!((status.code(), status.retryable()), (Status::UNRECOVERED_READ, false));
        assert!(Status::of(0x2281).unwrap().retryable());
        assert_eq!(Status::of(0), None);
        assert_eq!(Status::of(-5), None);
    }

    #[test]
    fn errors_of_the_block_layer() {
        let of = |errno: Errno, writes| Fault::of_block_error(errno.into(), writes);
        assert!(matches!(of(Errno::ENODATA, true), Fault::WriteFailed));
        assert!(matches!(of(Errno::ENODATA, false), Fault::Unreadable));
        assert!(matches!(of(Errno::ETOOMANYREFS, true), Fault::Rule(_)));
        assert!(matches!(of(Errno::EOVERFLOW, true), Fault::Rule(_)));
        assert!(matches!(of(Errno::EIO, true), Fault::Io(_)));
    }
}

//! Errors that a server answers with: a code, and enough beside it to act on.
//!
//! Bodies by status:
//! ```text
//! condition failed   0 u64 current version (0: the key does not exist)
//! not leader         0 u64 leader's node id (0: unknown)   8 text "host:port" of the leader's shard (empty: unknown)
//! wrong partition    0 u32 the server's map version
//! busy               0 u32 milliseconds to wait
//! too large, key too large   0 u32 limit in bytes
//! unsupported, malformed, unavailable   0 text
//! version mismatch   0 u8 the server's protocol version
//! unknown opcode     0 u8 the opcode
//! ```
//! Text is a `u16` length and UTF-8. The others have no body.

use super::fields::{Fields, put_text};
use super::{DecodeError, NodeId};
use bytes::Bytes;

/// A reply's status: 0 is success, everything else an [`ErrorReply`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
#[repr(u16)]
#[expect(missing_docs, reason = "each is explained at the ErrorReply of the same name")]
pub enum StatusCode {
    Ok = 0,
    NotFound = 1,
    ConditionFailed = 2,
    NotLeader = 3,
    WrongPartition = 4,
    Busy = 5,
    Full = 6,
    TooLarge = 7,
    KeyTooLarge = 8,
    Unsupported = 9,
    UnknownTable = 10,
    Malformed = 11,
    VersionMismatch = 12,
    Unavailable = 13,
    OutcomeUnknown = 14,
    StorageFailed = 15,
    UnknownOpcode = 16,
}

/// Why a request was not done. The message of each says what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorReply {
    /// The key does not exist.
    #[error("no such key")]
    NotFound,
    /// The condition did not hold; nothing was written.
    #[error("the condition did not hold ({})", match current {
        Some(version) => format!("the key is at version {version}"),
        None => "the key does not exist".to_owned(),
    })]
    ConditionFailed {
        /// The key's version; `None`: it does not exist.
        current: Option<u64>,
    },
    /// This replica does not lead the partition; nothing was written. Ask the leader.
    #[error("not the leader ({})", match address {
        Some(address) => format!("{address} is"),
        None => "who is, is not known yet".to_owned(),
    })]
    NotLeader {
        /// The leader's node, if known.
        leader: Option<NodeId>,
        /// `host:port` of the leader's shard, if known.
        address: Option<String>,
    },
    /// The server does not host this partition; nothing was written. Fetch the topology again.
    #[error("the server does not host this partition (its partition map is version {map_version})")]
    WrongPartition {
        /// The version of the server's partition map.
        map_version: u32,
    },
    /// Too much is in flight; nothing was written. Try again after the time given.
    #[error("the server is busy: try again in {retry_after_ms} ms")]
    Busy {
        /// How long to wait, in milliseconds.
        retry_after_ms: u32,
    },
    /// No room for more data; nothing was written. Reads and deletes go on.
    #[error("the storage is full: delete something or add capacity")]
    Full,
    /// The value (or frame) is larger than the server accepts.
    #[error("the value is too large: at most {limit} bytes")]
    TooLarge {
        /// Most bytes accepted.
        limit: u32,
    },
    /// The key is larger than the protocol accepts.
    #[error("the key is too large: at most {limit} bytes")]
    KeyTooLarge {
        /// Most bytes accepted.
        limit: u32,
    },
    /// The protocol has a place for this, the server does not do it.
    #[error("not supported by the server: {what}")]
    Unsupported {
        /// The name of what was asked for.
        what: String,
    },
    /// No table has this id.
    #[error("no such table")]
    UnknownTable,
    /// The request could not be read: a bug in the client, or damage.
    #[error("the server could not read the request: {why}")]
    Malformed {
        /// What was wrong.
        why: String,
    },
    /// The server speaks another protocol version; it closes the connection.
    #[error("the server speaks protocol version {supported}, this client version {}", super::VERSION)]
    VersionMismatch {
        /// The version the server speaks.
        supported: u8,
    },
    /// The server cannot serve this now (no leader yet, shutting down); nothing was written. Try again.
    #[error("unavailable: {why}")]
    Unavailable {
        /// Why.
        why: String,
    },
    /// The write may have been done, or be done yet, or never: leadership was lost after it was proposed. Read
    /// before writing again if that matters.
    #[error("the outcome is unknown: leadership was lost while the write was under way")]
    OutcomeUnknown,
    /// The shard's storage failed; it serves nothing any more. Another replica will. A write that was under way may
    /// have been done.
    #[error("the server's storage failed")]
    StorageFailed,
    /// The server knows no operation with this number.
    #[error("the server knows no operation with opcode {opcode}")]
    UnknownOpcode {
        /// The number it was sent.
        opcode: u8,
    },
    /// A status this client does not know: the server is newer.
    #[error("the server answered status {status}, which this client does not know")]
    Unknown {
        /// The status.
        status: u16,
    },
}

impl ErrorReply {
    /// The number that goes into the header.
    pub fn status(&self) -> u16 {
        let code = match self {
            ErrorReply::NotFound => StatusCode::NotFound,
            ErrorReply::ConditionFailed { .. } => StatusCode::ConditionFailed,
            ErrorReply::NotLeader { .. } => StatusCode::NotLeader,
            ErrorReply::WrongPartition { .. } => StatusCode::WrongPartition,
            ErrorReply::Busy { .. } => StatusCode::Busy,
            ErrorReply::Full => StatusCode::Full,
            ErrorReply::TooLarge { .. } => StatusCode::TooLarge,
            ErrorReply::KeyTooLarge { .. } => StatusCode::KeyTooLarge,
            ErrorReply::Unsupported { .. } => StatusCode::Unsupported,
            ErrorReply::UnknownTable => StatusCode::UnknownTable,
            ErrorReply::Malformed { .. } => StatusCode::Malformed,
            ErrorReply::VersionMismatch { .. } => StatusCode::VersionMismatch,
            ErrorReply::Unavailable { .. } => StatusCode::Unavailable,
            ErrorReply::OutcomeUnknown => StatusCode::OutcomeUnknown,
            ErrorReply::StorageFailed => StatusCode::StorageFailed,
            ErrorReply::UnknownOpcode { .. } => StatusCode::UnknownOpcode,
            ErrorReply::Unknown { status } => return *status,
        };
        code as u16
    }

    pub(super) fn encode_body(&self, out: &mut Vec<u8>) {
        match self {
            ErrorReply::ConditionFailed { current } => {
                out.extend_from_slice(&current.unwrap_or(0).to_le_bytes());
            }
            ErrorReply::NotLeader { leader, address } => {
                out.extend_from_slice(&leader.map_or(0, |node| node.0).to_le_bytes());
                put_text(out, address.as_deref().unwrap_or(""));
            }
            ErrorReply::WrongPartition { map_version } => out.extend_from_slice(&map_version.to_le_bytes()),
            ErrorReply::Busy { retry_after_ms } => out.extend_from_slice(&retry_after_ms.to_le_bytes()),
            ErrorReply::TooLarge { limit } | ErrorReply::KeyTooLarge { limit } => {
                out.extend_from_slice(&limit.to_le_bytes());
            }
            ErrorReply::Unsupported { what: text }
            | ErrorReply::Malformed { why: text }
            | ErrorReply::Unavailable { why: text } => put_text(out, text),
            ErrorReply::VersionMismatch { supported: number }
            | ErrorReply::UnknownOpcode { opcode: number } => out.push(*number),
            ErrorReply::NotFound
            | ErrorReply::Full
            | ErrorReply::UnknownTable
            | ErrorReply::OutcomeUnknown
            | ErrorReply::StorageFailed
            | ErrorReply::Unknown { .. } => {}
        }
    }

    /// Reads the body that goes with a status other than 0.
    pub(super) fn decode_body(status: u16, body: Bytes) -> Result<ErrorReply, DecodeError> {
        let mut fields = Fields::new(body);
        Ok(match status {
            1 => ErrorReply::NotFound,
            2 => {
                let version = fields.u64("current version")?;
                ErrorReply::ConditionFailed { current: (version != 0).then_some(version) }
            }
            3 => {
                let leader = fields.u64("leader's node")?;
                let address = fields.text("leader's address")?;
                ErrorReply::NotLeader {
                    leader: (leader != 0).then_some(NodeId(leader)),
                    address: (!address.is_empty()).then_some(address),
                }
            }
            4 => ErrorReply::WrongPartition { map_version: fields.u32("map version")? },
            5 => ErrorReply::Busy { retry_after_ms: fields.u32("retry time")? },
            6 => ErrorReply::Full,
            7 => ErrorReply::TooLarge { limit: fields.u32("limit")? },
            8 => ErrorReply::KeyTooLarge { limit: fields.u32("limit")? },
            9 => ErrorReply::Unsupported { what: fields.text("name")? },
            10 => ErrorReply::UnknownTable,
            11 => ErrorReply::Malformed { why: fields.text("reason")? },
            12 => ErrorReply::VersionMismatch { supported: fields.u8("version")? },
            13 => ErrorReply::Unavailable { why: fields.text("reason")? },
            14 => ErrorReply::OutcomeUnknown,
            15 => ErrorReply::StorageFailed,
            16 => ErrorReply::UnknownOpcode { opcode: fields.u8("opcode")? },
            status => ErrorReply::Unknown { status },
        })
    }

    /// Every error once, in the order of their codes: for tests that must cover all.
    #[cfg(test)]
    pub(super) fn samples() -> Vec<ErrorReply> {
        vec![
            ErrorReply::NotFound,
            ErrorReply::ConditionFailed { current: Some(0x0102) },
            ErrorReply::NotLeader { leader: Some(NodeId(2)), address: Some("10.0.0.2:7401".into()) },
            ErrorReply::WrongPartition { map_version: 4 },
            ErrorReply::Busy { retry_after_ms: 250 },
            ErrorReply::Full,
            ErrorReply::TooLarge { limit: 4 << 20 },
            ErrorReply::KeyTooLarge { limit: 64 << 10 },
            ErrorReply::Unsupported { what: "batch".into() },
            ErrorReply::UnknownTable,
            ErrorReply::Malformed { why: "no".into() },
            ErrorReply::VersionMismatch { supported: 1 },
            ErrorReply::Unavailable { why: "no leader".into() },
            ErrorReply::OutcomeUnknown,
            ErrorReply::StorageFailed,
            ErrorReply::UnknownOpcode { opcode: 99 },
        ]
    }
}

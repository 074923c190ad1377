//! What can go wrong, one enum per operation: each variant is a decision the caller can make.
//!
//! All of them tell "nothing was written" from "it may have been written": of a write's errors only
//! `OutcomeUnknown` means the latter.

use crate::routing::{MapError, OperationKind};
use crate::wire::{ErrorReply, KEY_BYTES_MAX, StatusCode};
use std::fmt;
use std::time::Duration;

/// The last thing that went wrong before time ran out, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastProblem(pub(crate) Option<String>);

impl fmt::Display for LastProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(problem) => write!(f, " (last problem: {problem})"),
            None => Ok(()),
        }
    }
}

impl LastProblem {
    /// The problem, if there was one beside the passing of time.
    pub fn as_deref(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

/// How an operation failed, before it is told in its own enum's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    TimedOut { after: Duration, last: LastProblem },
    OutcomeUnknown { last: LastProblem },
    Refused(ErrorReply),
    Protocol { why: String },
    EmptyKey,
}

impl Failure {
    pub(crate) fn key(key: &[u8]) -> Result<(), Failure> {
        if key.is_empty() {
            return Err(Failure::EmptyKey);
        }
        Failure::bound(key)
    }

    pub(crate) fn bound(key: &[u8]) -> Result<(), Failure> {
        if key.len() > KEY_BYTES_MAX as usize {
            return Err(Failure::Refused(ErrorReply::KeyTooLarge { limit: KEY_BYTES_MAX }));
        }
        Ok(())
    }

    /// A write that may have been done by an earlier attempt has not simply failed.
    pub(crate) fn after_attempts(self, kind: OperationKind, maybe_done: bool) -> Failure {
        let unknown = kind != OperationKind::Read && maybe_done;
        match self {
            Failure::TimedOut { last, .. } if unknown => Failure::OutcomeUnknown { last },
            // Whoever deleted it: what was asked for is so.
            Failure::Refused(ErrorReply::NotFound) => Failure::Refused(ErrorReply::NotFound),
            Failure::Refused(error) if unknown => {
                Failure::OutcomeUnknown { last: LastProblem(Some(error.to_string())) }
            }
            Failure::Protocol { why } if unknown => Failure::OutcomeUnknown { last: LastProblem(Some(why)) },
            other => other,
        }
    }

    pub(crate) fn unexpected(reply: &str) -> Failure {
        Failure::Protocol { why: format!("the reply is of another kind than the request ({reply})") }
    }
}

/// Why [`Client::connect`](crate::Client::connect) did not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// No address was given.
    #[error("no address given: name at least one node as host:port")]
    NoAddress,
    /// An address is not `host:port`.
    #[error("{address:?} is not an address: write host:port")]
    BadAddress {
        /// What was given.
        address: String,
    },
    /// None of the addresses answered with a topology.
    #[error("no node could be reached: {}", .problems.join("; "))]
    Unreachable {
        /// One line per address tried, the address first.
        problems: Vec<String>,
    },
    /// The topology a node sent cannot be used.
    #[error("the cluster's topology cannot be used: {0}")]
    Map(#[from] MapError),
    /// A setting of the builder is out of its bounds.
    #[error("{setting} must be {bounds}")]
    BadSetting {
        /// Which setting.
        setting: &'static str,
        /// What it may be.
        bounds: &'static str,
    },
}

/// Why a read of one key failed. (A key that does not exist is not an error.)
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GetError {
    /// No answer within the client's timeout.
    #[error("timed out after {} ms{last}", .after.as_millis())]
    TimedOut {
        /// The client's timeout.
        after: Duration,
        /// What went wrong last.
        last: LastProblem,
    },
    /// Keys have at least one byte.
    #[error("a key must have at least one byte")]
    EmptyKey,
    /// The key exceeds the limit.
    #[error("the key is too large: at most {limit} bytes")]
    KeyTooLarge {
        /// Most bytes of a key.
        limit: u32,
    },
    /// The cluster has no such table.
    #[error("the cluster has no such table")]
    UnknownTable,
    /// The server refused for a reason that has no variant of its own here.
    #[error("refused: {0}")]
    Refused(ErrorReply),
    /// The server broke the protocol.
    #[error("protocol error: {why}")]
    Protocol {
        /// How.
        why: String,
    },
}

/// Why a put failed. Only [`PutError::OutcomeUnknown`] may have written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PutError {
    /// The condition did not hold.
    #[error("the condition did not hold ({})", Current(.current))]
    ConditionFailed {
        /// The key's version; `None`: it does not exist.
        current: Option<u64>,
    },
    /// The storage is full. Reads and deletes go on.
    #[error("the storage is full: delete something or add capacity")]
    Full,
    /// The value exceeds the server's limit.
    #[error("the value is too large: at most {limit} bytes")]
    TooLarge {
        /// Most bytes of a value.
        limit: u32,
    },
    /// Keys have at least one byte.
    #[error("a key must have at least one byte")]
    EmptyKey,
    /// The key exceeds the limit.
    #[error("the key is too large: at most {limit} bytes")]
    KeyTooLarge {
        /// Most bytes of a key.
        limit: u32,
    },
    /// The cluster has no such table.
    #[error("the cluster has no such table")]
    UnknownTable,
    /// No success within the client's timeout; nothing was written.
    #[error("timed out after {} ms, nothing was written{last}", .after.as_millis())]
    TimedOut {
        /// The client's timeout.
        after: Duration,
        /// What went wrong last.
        last: LastProblem,
    },
    /// The value may have been written, now or yet to come, or never. Read before deciding.
    #[error("it is unknown whether the value was written{last}")]
    OutcomeUnknown {
        /// What went wrong last.
        last: LastProblem,
    },
    /// The server refused for a reason that has no variant of its own here.
    #[error("refused: {0}")]
    Refused(ErrorReply),
    /// The server broke the protocol.
    #[error("protocol error: {why}")]
    Protocol {
        /// How.
        why: String,
    },
}

/// Why a delete failed. Only [`DeleteError::OutcomeUnknown`] may have deleted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeleteError {
    /// The condition did not hold.
    #[error("the condition did not hold ({})", Current(.current))]
    ConditionFailed {
        /// The key's version; `None`: it does not exist.
        current: Option<u64>,
    },
    /// Even the reserve for deletes is used up.
    #[error("the storage is full, its reserve for deletes as well: add capacity")]
    Full,
    /// Keys have at least one byte.
    #[error("a key must have at least one byte")]
    EmptyKey,
    /// The key exceeds the limit.
    #[error("the key is too large: at most {limit} bytes")]
    KeyTooLarge {
        /// Most bytes of a key.
        limit: u32,
    },
    /// The cluster has no such table.
    #[error("the cluster has no such table")]
    UnknownTable,
    /// No success within the client's timeout; nothing was deleted.
    #[error("timed out after {} ms, nothing was deleted{last}", .after.as_millis())]
    TimedOut {
        /// The client's timeout.
        after: Duration,
        /// What went wrong last.
        last: LastProblem,
    },
    /// The key may have been deleted, now or yet to come, or never. Read before deciding.
    #[error("it is unknown whether the key was deleted{last}")]
    OutcomeUnknown {
        /// What went wrong last.
        last: LastProblem,
    },
    /// The server refused for a reason that has no variant of its own here.
    #[error("refused: {0}")]
    Refused(ErrorReply),
    /// The server broke the protocol.
    #[error("protocol error: {why}")]
    Protocol {
        /// How.
        why: String,
    },
}

/// Why a scan ended before its range did.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScanError {
    /// A page got no answer within the client's timeout.
    #[error("timed out after {} ms{last}", .after.as_millis())]
    TimedOut {
        /// The client's timeout.
        after: Duration,
        /// What went wrong last.
        last: LastProblem,
    },
    /// An end of the range exceeds the limit of keys.
    #[error("an end of the range is too large: at most {limit} bytes")]
    KeyTooLarge {
        /// Most bytes of a key.
        limit: u32,
    },
    /// The cluster has no such table.
    #[error("the cluster has no such table")]
    UnknownTable,
    /// The server refused for a reason that has no variant of its own here.
    #[error("refused: {0}")]
    Refused(ErrorReply),
    /// The server broke the protocol.
    #[error("protocol error: {why}")]
    Protocol {
        /// How.
        why: String,
    },
}

/// Why a question to a certain node (or to any node, for the topology) has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// It could not be reached, or did not answer in time.
    #[error("{why}")]
    Unreachable {
        /// Why, with the address.
        why: String,
    },
    /// It answered with an error.
    #[error("refused: {0}")]
    Refused(ErrorReply),
    /// It broke the protocol.
    #[error("protocol error: {why}")]
    Protocol {
        /// How.
        why: String,
    },
    /// The topology it sent cannot be used.
    #[error("the cluster's topology cannot be used: {0}")]
    Map(#[from] MapError),
}

/// The cluster has no table of this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the cluster has no table named {name:?}")]
pub struct UnknownTable {
    /// The name asked for.
    pub name: String,
}

struct Current<'a>(&'a Option<u64>);

impl fmt::Display for Current<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(version) => write!(f, "the key is at version {version}"),
            None => f.write_str("the key does not exist"),
        }
    }
}

/// A failure that an operation has no word for can only come from a server that answers something else than it
/// was asked.
fn out_of_place(failure: &str) -> String {
    format!("the server's answer does not belong to this operation: {failure}")
}

impl From<Failure> for GetError {
    fn from(failure: Failure) -> GetError {
        match failure {
            Failure::TimedOut { after, last } => GetError::TimedOut { after, last },
            Failure::OutcomeUnknown { last } => {
                GetError::Protocol { why: out_of_place(&format!("outcome unknown{last}")) }
            }
            Failure::EmptyKey => GetError::EmptyKey,
            Failure::Refused(ErrorReply::KeyTooLarge { limit }) => GetError::KeyTooLarge { limit },
            Failure::Refused(ErrorReply::UnknownTable) => GetError::UnknownTable,
            Failure::Refused(error) => GetError::Refused(error),
            Failure::Protocol { why } => GetError::Protocol { why },
        }
    }
}

impl From<Failure> for PutError {
    fn from(failure: Failure) -> PutError {
        match failure {
            Failure::TimedOut { after, last } => PutError::TimedOut { after, last },
            Failure::OutcomeUnknown { last } => PutError::OutcomeUnknown { last },
            Failure::EmptyKey => PutError::EmptyKey,
            Failure::Refused(ErrorReply::ConditionFailed { current }) => {
                PutError::ConditionFailed { current }
            }
            Failure::Refused(ErrorReply::Full) => PutError::Full,
            Failure::Refused(ErrorReply::TooLarge { limit }) => PutError::TooLarge { limit },
            Failure::Refused(ErrorReply::KeyTooLarge { limit }) => PutError::KeyTooLarge { limit },
            Failure::Refused(ErrorReply::UnknownTable) => PutError::UnknownTable,
            Failure::Refused(error) => PutError::Refused(error),
            Failure::Protocol { why } => PutError::Protocol { why },
        }
    }
}

impl From<Failure> for DeleteError {
    fn from(failure: Failure) -> DeleteError {
        match failure {
            Failure::TimedOut { after, last } => DeleteError::TimedOut { after, last },
            Failure::OutcomeUnknown { last } => DeleteError::OutcomeUnknown { last },
            Failure::EmptyKey => DeleteError::EmptyKey,
            Failure::Refused(ErrorReply::ConditionFailed { current }) => {
                DeleteError::ConditionFailed { current }
            }
            Failure::Refused(ErrorReply::Full) => DeleteError::Full,
            Failure::Refused(ErrorReply::KeyTooLarge { limit }) => DeleteError::KeyTooLarge { limit },
            Failure::Refused(ErrorReply::UnknownTable) => DeleteError::UnknownTable,
            Failure::Refused(error) => DeleteError::Refused(error),
            Failure::Protocol { why } => DeleteError::Protocol { why },
        }
    }
}

impl From<Failure> for ScanError {
    fn from(failure: Failure) -> ScanError {
        match failure {
            Failure::TimedOut { after, last } => ScanError::TimedOut { after, last },
            Failure::OutcomeUnknown { last } => {
                ScanError::Protocol { why: out_of_place(&format!("outcome unknown{last}")) }
            }
            Failure::EmptyKey => ScanError::Protocol { why: out_of_place("empty key") },
            Failure::Refused(ErrorReply::KeyTooLarge { limit }) => ScanError::KeyTooLarge { limit },
            Failure::Refused(ErrorReply::UnknownTable) => ScanError::UnknownTable,
            Failure::Refused(error) => ScanError::Refused(error),
            Failure::Protocol { why } => ScanError::Protocol { why },
        }
    }
}

// `StatusCode` is what these enums are made from; a new code must be looked at here.
const _: () = assert!(StatusCode::UnknownOpcode as u16 == 16, "a new status code: which operations name it?");

//! Errors, one type per decision that the caller can take.

use std::sync::Arc;

use terrane_ocssd::{ChunkId, MediaError};

use crate::compression::DecompressError;
use crate::entry::GroupId;
use crate::op::OpError;
use crate::options::OptionsError;
use crate::slice::SliceId;

/// The store cannot do this, or anything any more.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The medium failed a write or a flush. Nothing of that flush was acknowledged and nothing will be: open the
    /// store again to learn what is on the medium.
    #[error("the store stopped, because its medium failed: {0}")]
    Stopped(Arc<MediaError>),
    /// [`Store::close`](crate::Store::close) was called.
    #[error("the store is closed")]
    Closed,
    /// The future of [`Store::run_flusher`](crate::Store::run_flusher) was dropped during a flush, whose end is
    /// therefore unknown.
    #[error("the flusher was dropped during a flush")]
    FlusherDropped,
    /// No such group.
    #[error("{0} does not exist in this store")]
    UnknownGroup(GroupId),
    /// A group is created once.
    #[error("{0} exists already")]
    GroupExists(GroupId),
    /// Not even a state record fits.
    #[error("the slice is full")]
    Full,
    /// A group's state (its membership and lineage) does not fit in a record.
    #[error("a group state of {bytes} bytes exceeds the limit of {limit}")]
    StateTooLarge {
        /// Bytes of the state.
        bytes: u64,
        /// Bytes allowed.
        limit: u64,
    },
}

/// Entries were not appended. Nothing of the call happened.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The slice has no room for entries.
    #[error("the slice is full")]
    Full,
    /// The index has no memory for more keys. Keys that it holds may be written and deleted.
    #[error("the index has no room for new keys in its limit of {limit} bytes")]
    IndexFull {
        /// Bytes allowed: [`Options::index_bytes_max`](crate::Options::index_bytes_max).
        limit: u64,
    },
    /// A payload exceeds the limit.
    #[error("a payload of {bytes} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Bytes of the payload.
        bytes: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// An entry that cannot be: its sender is wrong.
    #[error("the entry at index {index} is malformed: {reason}")]
    Malformed {
        /// Index of the entry.
        index: u64,
        /// What is wrong with it.
        reason: Malformed,
    },
    /// The entries do not join the log.
    #[error("entries from index {first} do not join a log that ends at {last}")]
    Gap {
        /// First index of the call.
        first: u64,
        /// Last index of the log.
        last: u64,
    },
    /// The store cannot do it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is wrong with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// The payload is not a run of ops.
    #[error("{0}")]
    Ops(#[from] OpError),
    /// An entry is written as one record for each op, at most 65,536.
    #[error("{0} ops are more than an entry holds")]
    OpCount(u32),
    /// The kind is none of the known ones.
    #[error("unknown entry kind {0}")]
    Kind(u8),
    /// Terms never fall along a log, and start at 1.
    #[error("term {term} follows term {before}")]
    Term {
        /// The entry's term.
        term: u64,
        /// Term of the entry before it.
        before: u64,
    },
}

/// Entries were not applied.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// No such group.
    #[error("{0} does not exist in this store")]
    UnknownGroup(GroupId),
}

/// A read failed. Never are wrong bytes returned instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// No such group.
    #[error("{0} does not exist in this store")]
    UnknownGroup(GroupId),
    /// The medium failed the read, twice.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// The medium returned, twice, something other than the record that was written: another replica has it.
    #[error("the record of {group} index {index} in chunk {} at byte {offset} is damaged", chunk.0)]
    Damaged {
        /// The group.
        group: GroupId,
        /// Raft index of the record.
        index: u64,
        /// Chunk of the record.
        chunk: ChunkId,
        /// Bytes from the start of the chunk.
        offset: u32,
    },
    /// The record is as it was appended, but its value is not one that was compressed: whoever appended it was wrong, and
    /// every replica has the same.
    #[error("the value of {group} index {index} cannot be decompressed: {reason}")]
    Compressed {
        /// The group.
        group: GroupId,
        /// Raft index of the record.
        index: u64,
        /// What is wrong with it.
        reason: DecompressError,
    },
    /// The log does not reach that far back or forth.
    #[error("index {index} is outside the log, which is {first}..={last}")]
    OutOfLog {
        /// Index asked for.
        index: u64,
        /// First index of the log.
        first: u64,
        /// Last index of the log.
        last: u64,
    },
}

/// A slice was not formatted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The slice's shape cannot hold a store.
    #[error("a slice of this geometry cannot hold a store: {0}")]
    Geometry(&'static str),
    /// The slice holds a store of the very same identity: formatting would destroy its memory.
    #[error("the slice already holds the store of shard {} of node {}", .0.shard, .0.node)]
    Exists(SliceId),
    /// The medium failed.
    #[error(transparent)]
    Media(#[from] MediaError),
}

/// A store was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// An option is outside its limits.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The slice's shape cannot hold a store.
    #[error("a slice of this geometry cannot hold a store: {0}")]
    Geometry(&'static str),
    /// The slice was never formatted. A replica whose memory is gone must not start empty: it would vote again.
    #[error("the slice was never formatted")]
    Blank,
    /// Neither anchor can be read.
    #[error("both anchors of the slice are damaged")]
    AnchorDamaged,
    /// The log is younger than the newest anchor that can be read: the one that belongs to it is lost, and with it
    /// the list of what is void.
    #[error(
        "the newest readable anchor is of epoch {anchor}, the log of epoch {log}: the right anchor is lost"
    )]
    AnchorLost {
        /// Epoch of the anchor.
        anchor: u32,
        /// Epoch of the log.
        log: u32,
    },
    /// Written by another version of this software.
    #[error(
        "the slice has format version {found}, which this version does not know: open it with the one that wrote it"
    )]
    OtherFormat {
        /// The slice's version.
        found: u32,
    },
    /// The slice belongs to somebody else.
    #[error("the slice belongs to {found:?}, not to {expected:?}")]
    WrongSlice {
        /// Whose it is.
        found: SliceId,
        /// Whose it should be.
        expected: SliceId,
    },
    /// The anchor must list more epochs with valid flushes than a chunk can hold.
    #[error("the slice was started in {epochs} epochs that wrote to the log, more than its anchor can list")]
    AnchorFull {
        /// Epochs to be listed.
        epochs: usize,
    },
    /// No more starts can be counted.
    #[error("the epochs of this slice are used up")]
    EpochsExhausted,
    /// The medium failed.
    #[error(transparent)]
    Media(#[from] MediaError),
}

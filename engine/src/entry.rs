//! What the host stores: groups, log entries, hard state, and the order of durability.

use bytes::Bytes;

/// A Raft group. Ids are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u64);

impl std::fmt::Display for GroupId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "group {}", self.0)
    }
}

/// Log sequence number: the order in which a shard issued its changes. The epoch rises at every start, so that no
/// number ever repeats; the counter starts at 1 in each epoch (0: nothing yet).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn {
    /// Which start of the shard.
    pub epoch: u32,
    /// Which change since that start.
    pub counter: u64,
}

/// The entry says nothing to the state machine (a leader's first entry of its term).
pub const ENTRY_NOOP: u8 = 0;
/// The payload holds ops ([`crate::op`]).
pub const ENTRY_OPS: u8 = 1;
/// The payload is a membership, meaningful to the host.
pub const ENTRY_MEMBERSHIP: u8 = 2;

/// One Raft log entry, without its index: entries travel in runs of consecutive indexes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The term of the leader that created it.
    pub term: u64,
    /// [`ENTRY_NOOP`], [`ENTRY_OPS`] or [`ENTRY_MEMBERSHIP`].
    pub kind: u8,
    /// What it carries. The store keeps this buffer while the entry is recent: a slice of a much larger buffer
    /// keeps all of that one alive.
    pub payload: Bytes,
}

/// What Raft must remember of a group beside its log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HardState {
    /// The current term.
    pub term: u64,
    /// Whom this replica voted for in that term; 0: nobody; [`VOTE_SPENT`]: it must not vote in this term.
    pub vote: u64,
    /// Highest index known to be committed. A hint: after a restart it may be lower than before (never higher than
    /// the log), which Raft allows.
    pub commit: u64,
}

/// A vote that may have been given and forgotten (the storage lost records): nobody else gets it.
pub const VOTE_SPENT: u64 = u64::MAX;

/// A value as the index knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// The value's bytes.
    pub value: Bytes,
    /// Raft index of the entry that wrote it.
    pub version: u64,
    /// When it expires, in milliseconds of Unix time. The store reports it and does not act on it.
    pub expires_unix_ms: Option<u64>,
}

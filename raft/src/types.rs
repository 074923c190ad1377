//! The numbers Raft speaks in, and the few records made of them.
//!
//! Nothing here holds a payload: an entry is an index, a term, a kind and a size. The host keeps the bytes.

use rkyv::{Archive, Deserialize, Serialize};

use crate::membership::Membership;

/// Position of an entry in a group's log. The first entry has index 1; 0 is "before the log".
pub type Index = u64;

/// Election term. The first leader has term 1; 0 is "before the log".
pub type Term = u64;

/// One replica of a group. Never reused: a replica that left and came back has a new id.
///
/// `PeerId(0)` is never a valid id; [`PeerId::SPENT`] is reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize, Deserialize)]
#[rkyv(derive(PartialEq, Eq, PartialOrd, Ord))]
pub struct PeerId(pub u64);

impl PeerId {
    /// A vote that may have been given, to nobody knows whom: stands in [`HardState::vote`] of a replica that
    /// lost the record of its vote. No replica has this id, so nobody gets a vote in that term.
    pub const SPENT: PeerId = PeerId(u64::MAX);

    /// Whether a replica can have this id: neither 0 nor [`PeerId::SPENT`].
    #[must_use]
    pub fn is_valid(self) -> bool {
        self.0 != 0 && self != PeerId::SPENT
    }
}

impl std::fmt::Display for PeerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Nanoseconds on the host's monotonic clock, one that also counts while the machine is suspended.
///
/// Clocks of different hosts are never compared; only their rates must agree within
/// [`Config::clock_drift_ppm`](crate::Config::clock_drift_ppm).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize, Deserialize,
)]
pub struct Time(pub u64);

impl Time {
    /// Later than any deadline: "never".
    pub const NEVER: Time = Time(u64::MAX);

    /// This time and `nanos` more; stays at [`Time::NEVER`] instead of wrapping.
    #[must_use]
    pub fn plus(self, nanos: u64) -> Time {
        Time(self.0.saturating_add(nanos))
    }
}

/// What an entry is for. The numbers are those of the engine's log records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Archive, Serialize, Deserialize)]
#[repr(u8)]
pub enum EntryKind {
    /// Empty; a leader's first entry, whose commit proves that all earlier entries are committed.
    Noop = 0,
    /// Operations for the state machine.
    Ops = 1,
    /// A new [`Membership`].
    Membership = 2,
}

impl EntryKind {
    /// The kind with this number, `None` if no kind has it.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<EntryKind> {
        match number {
            0 => Some(EntryKind::Noop),
            1 => Some(EntryKind::Ops),
            2 => Some(EntryKind::Membership),
            _ => None,
        }
    }
}

/// What the algorithm knows of one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct EntryMeta {
    /// Term of the leader that created the entry.
    pub term: Term,
    /// Length of the payload in bytes, or [`EntryMeta::UNKNOWN_BYTES`].
    pub bytes: u32,
    /// What the entry is for; meaningless while `bytes` is unknown.
    pub kind: EntryKind,
}

impl EntryMeta {
    /// The node no longer remembers this entry's size and kind (it was written before the last start, or long
    /// ago). Appears only in outgoing [`Append`](crate::Body::Append)s; the host, which reads the payload to
    /// attach it, fills both in with [`Message::entries_mut`](crate::Message::entries_mut). A received append
    /// that still says so is malformed.
    pub const UNKNOWN_BYTES: u32 = u32::MAX;
}

/// Entries from `first` on have term `term`, up to where the next run begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermRun {
    /// Term of every entry of the run.
    pub term: Term,
    /// Index of its first entry.
    pub first: Index,
}

/// What a replica must remember across a crash, beside its log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The highest term the replica has taken part in.
    pub term: Term,
    /// Whom it voted for in that term.
    pub vote: Option<PeerId>,
    /// A lower bound of the commit index. It saves work after a restart and nothing depends on it: it is
    /// written along with changes of `term` and `vote`, and a host may write a newer one whenever it likes,
    /// but never one above the entries that are durable already: those on disk there may be about to be
    /// replaced.
    pub commit: Index,
}

/// Everything [`RaftNode::new`](crate::RaftNode::new) needs of a replica's durable state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Last durable hard state; the default for a new group.
    pub hard_state: HardState,
    /// Terms of the log, ascending in both fields. Should cover `first_index - 1` if that is not 0.
    pub runs: Vec<TermRun>,
    /// First entry the log still has; 1 when it was never truncated at the front.
    pub first_index: Index,
    /// Last entry of the log; `first_index - 1` when it is empty. All of it is durable.
    pub last_index: Index,
    /// The state machine holds the effects of entries up to here.
    pub applied: Index,
    /// Who takes part in the group.
    pub membership: Membership,
    /// The replica's storage lost records that it had acknowledged (damage below the highest flush). Until a
    /// leader has repaired it, it votes for nobody and acknowledges nothing. The host raises
    /// `hard_state.term` to the highest term any record of the storage speaks of, with the vote
    /// [`PeerId::SPENT`].
    pub suspect: bool,
    /// The replica may have promised its vote before it stopped: true after every restart with existing
    /// data, false only for a group that was just created. While true, it grants no vote and does not
    /// campaign until the longest lease it could have backed has run out.
    pub rejoining: bool,
}

/// What a replica currently is in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Accepts entries from the leader, if there is one.
    Follower,
    /// Asks whether an election could be won, without disturbing anyone.
    PreCandidate,
    /// Asks for votes in a new term.
    Candidate,
    /// Orders the group's entries.
    Leader,
}

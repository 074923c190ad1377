//! Raft without I/O, clock or payloads: indexes, terms and sizes in, effects out.
//!
//! A [`RaftNode`] is one replica's part in one group. It never sees a payload byte, reads no clock and draws
//! no randomness it was not seeded with: its host tells it what happened and when, and does what the
//! [`Effects`] say. The same calls with the same arguments always have the same effects.
//!
//! # What a host does
//!
//! 1. Build the node from what is durable: [`RaftNode::new`] with a [`Config`] and what was [`Restored`].
//! 2. Tell it everything: [`step`](RaftNode::step) for each message received, [`tick`](RaftNode::tick) when
//!    [`next_deadline`](RaftNode::next_deadline) has come, [`propose`](RaftNode::propose) and
//!    [`read_index`](RaftNode::read_index) for users, [`on_persisted`](RaftNode::on_persisted) and
//!    [`on_applied`](RaftNode::on_applied) when work is done.
//! 3. After each step, and after a batch of other calls, [`take_effects`](RaftNode::take_effects) until they
//!    are empty, and do what each field says, in particular what must be durable before what. Several calls
//!    may come before one taking; effects that cannot be merged then queue up in order.
//! 4. Keep the payloads: store those that [`Effects::append`] names; attach those that an outgoing
//!    [`Append`](Body::Append) names ([`Message::entries_range`]), after checking that the entry at each
//!    index still has that term, and filling in the sizes the node has forgotten ([`Message::entries_mut`]).
//!
//! A group of one replica, whose host keeps everything in memory:
//!
//! ```
//! use terrane_raft::{Config, Effects, EntryKind, HardState, Membership, PeerId, RaftNode, Restored, Time};
//!
//! let id = PeerId(1);
//! let restored = Restored {
//!     hard_state: HardState::default(),
//!     runs: Vec::new(),
//!     first_index: 1,
//!     last_index: 0,
//!     applied: 0,
//!     membership: Membership::of_voters([id]),
//!     suspect: false,
//!     rejoining: false,
//! };
//! let mut now = Time(0);
//! let mut node = RaftNode::new(Config::new(id), restored, now)?;
//! let mut applied = Vec::new();
//!
//! // Does what the node wants until it wants no more. "Durable" is immediate here; a real host reports it
//! // when the write has completed.
//! let mut pump = |node: &mut RaftNode, now: Time| loop {
//!     let effects: Effects = node.take_effects();
//!     if effects.is_empty() {
//!         break;
//!     }
//!     // 1. Make `hard_state` and `append` durable; send `messages` meanwhile.
//!     // 2. Then send `messages_after_persist`, and report the append.
//!     if let Some(append) = &effects.append {
//!         let (term, index) = append.persisted_mark();
//!         node.on_persisted(now, term, index);
//!     }
//!     // 3. Apply what is committed.
//!     if let Some(commit) = effects.commit {
//!         applied.push(commit);
//!         node.on_applied(now, commit);
//!     }
//!     // 4. Answer the reads whose index is applied.
//!     for read in effects.reads {
//!         assert_eq!((read.context, read.index), (7, 2));
//!     }
//! };
//!
//! now = node.next_deadline();
//! node.tick(now);
//! pump(&mut node, now);
//! assert!(node.leader_ready());
//!
//! let proposed = node.propose(now, &[(EntryKind::Ops, 100)])?;
//! assert_eq!((proposed.first, proposed.term), (2, 1));
//! pump(&mut node, now);
//!
//! node.read_index(now, 7)?;
//! pump(&mut node, now);
//! assert_eq!(applied, [1, 2]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What holds, whatever the network, the disks and the clocks do
//!
//! - At most one leader per term; logs that agree at an entry agree before it; a leader has all committed
//!   entries; no two replicas apply different entries at one index (figure 3 of the Raft paper, Ongaro and
//!   Ousterhout 2014).
//! - A read answered under a lease sees every write that was acknowledged before it, if the clocks' rates are
//!   off by no more than [`Config::clock_drift_ppm`], all replicas have the same
//!   [`Config::election_timeout`], and a host says [`Restored::rejoining`] when it restarts. Without a lease,
//!   reads depend on no clock.
//! - Nothing a peer sends makes a node panic; what no correct peer would send is ignored and listed in
//!   [`Effects::rejected`]. Wrong calls by the host (applying what is not committed) are assertions.

mod config;
mod effects;
mod election;
mod leadership;
mod lease;
mod log;
mod membership;
mod message;
mod node;
mod progress;
pub mod quorum;
mod random;
mod read;
mod replication;
mod types;

pub use config::{Config, ConfigError};
pub use effects::{Append, AppendSource, Effects, ReadReady, RoleChange};
pub use leadership::TransferError;
pub use log::LogError;
pub use membership::{Membership, MembershipError};
pub use message::{AppendOutcome, Body, Message, MessageError, Stamp};
pub use node::{NotLeader, PeerStatus, ProposeError, Proposed, RaftNode, RestoreError, Status};
pub use progress::ProgressState;
pub use types::{EntryKind, EntryMeta, HardState, Index, PeerId, Restored, Role, Term, TermRun, Time};

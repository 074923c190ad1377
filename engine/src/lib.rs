//! One shard's store: the Raft log as the value log, the index over it, recovery.
//!
//! A value is written to flash **once**. Entries of all of a shard's Raft groups go into one log; applying an entry
//! points the group's index at the record that is there already. With single-replica groups, this is an embeddable
//! durable key-value engine: a put is append, durable, apply.
//!
//! ```
//! use bytes::Bytes;
//! use terrane_engine::{ENTRY_OPS, Entry, GroupId, Options, SliceId, Store, op};
//! use terrane_ocssd::{Geometry, sim::{SimMedia, SimOptions}};
//! # use std::future::Future;
//! # use std::task::{Context, Poll, Waker};
//! # /// Polls both until the second is done: any executor will do.
//! # fn run<T>(background: impl Future, main: impl Future<Output = T>) -> T {
//! #     let (mut background, mut main) = (std::pin::pin!(background), std::pin::pin!(main));
//! #     let mut cx = Context::from_waker(Waker::noop());
//! #     let mut ended = false;
//! #     loop {
//! #         ended = ended || background.as_mut().poll(&mut cx).is_ready();
//! #         if let Poll::Ready(out) = main.as_mut().poll(&mut cx) { return out }
//! #     }
//! # }
//!
//! let geometry = Geometry {
//!     groups: 1, parallel_units: 1, chunks: 16, chunk_sectors: 128, sector_bytes: 512,
//!     ws_min: 1, ws_opt: 8, mw_cunits: 0, max_open: 0,
//! };
//! let media = SimMedia::new(geometry, SimOptions::default());
//! let slice = SliceId { cluster: 1, node: 1, shard: 0 };
//! let group = GroupId(7);
//!
//! # let opened = run(std::future::pending::<()>(), async {
//! Store::format(&media, slice).await?;
//! let (store, recovery) = Store::open(media, slice, Options::default()).await?;
//! assert!(recovery.groups.is_empty());
//! # Ok::<_, Box<dyn std::error::Error>>(store)
//! # });
//! # let store = opened.unwrap();
//! # let flusher = store.clone();
//! // The host runs `store.run_flusher()` in a task of its own.
//! # let done = run(async move { flusher.run_flusher().await }, async {
//! store.create_group(group, Bytes::new())?.await?;
//! let entry = Entry { term: 1, kind: ENTRY_OPS, payload: op::encode_put(b"key", b"value", None) };
//! store.append(group, 1, vec![entry])?.await?; // durable on this replica
//! store.apply(group, 1)?; // committed: a group of one replica needs nobody else
//! let value = store.get(group, b"key").await?.expect("it was just put");
//! assert_eq!((&value.value[..], value.version), (&b"value"[..], 1));
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! # });
//! # done.unwrap();
//! ```
//!
//! **Invariant:** the store knows no runtime, clock or randomness. Its futures wait on the medium or on the store's
//! own progress, and everything happens on one thread.
//!
//! The layout of a slice is described in `docs/format.md`; each part of it has one owner here ([`op`], and the private
//! modules `anchor`, `segment`, `frame`, `record`, `state_record`). Values may be compressed before they are appended
//! ([`compression`], [`op::encode_put_compressed`]).

mod anchor;
mod cache;
mod chronicle;
mod cleaning;
pub mod compression;
mod core;
mod cursor;
mod entry;
mod error;
mod flusher;
mod footer;
mod frame;
mod frame_set;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
#[cfg(test)]
mod golden;
mod group;
mod hint;
pub mod index;
pub mod inspect;
mod lineage;
mod log;
pub mod op;
mod options;
mod pipeline;
pub mod policy;
mod read;
mod record;
mod recovery;
mod replay;
mod scan;
mod segment;
mod slice;
mod state_record;
mod store;
mod stream;
mod watch;

pub use crate::core::Counters;
pub use entry::{ENTRY_MEMBERSHIP, ENTRY_NOOP, ENTRY_OPS, Entry, GroupId, HardState, Lsn, VOTE_SPENT, Value};
pub use error::{AppendError, ApplyError, FormatError, Malformed, OpenError, ReadError, StoreError};
pub use lineage::TermRun;
pub use options::{Options, OptionsError};
pub use read::{Lookup, Scan};
pub use recovery::{Damage, DamageKind, RecoveredGroup, Recovery};
pub use slice::SliceId;
pub use store::{Durable, Store};

//! What a medium was asked to write, recorded and told again.
//!
//! [`Recorder`] stands in front of any [`Media`](crate::Media) and writes down each write, reset and finish that
//! succeeded. [`Trace`] reads that back, and [`replay()`] feeds it to a model of an ordinary drive
//! ([`crate::ftl`]): so the same work that a host-managed device did without amplification is priced on a drive
//! that manages itself. Several traces, of shards that share a drive, are [put side by side](side_by_side()) first.
//!
//! # The format
//!
//! A header, then frames, the last of which says that the recording ended. All numbers are little-endian.
//!
//! ```text
//! header   0       8         12       16                                        52     60
//!          | magic | version | length | nine numbers of the geometry, u32 each  | 0 ... | crc32c of 0..60 |
//!
//! frame    0                4        8          12                  16                  20
//!          | payload length | events | sequence | crc32c of payload | crc32c of 0..16   | payload |
//!
//! write    | 1 | class | chunk, sector, sectors: LEB128 |
//! reset    | 2 | chunk: LEB128 |
//! finish   | 3 | chunk: LEB128 |
//! ```
//!
//! The frames count from 0. The last has neither payload nor events; nothing follows it.
//!
//! Invariants:
//! - What is damaged is an error. What was cut off (the process died while it recorded) is told by [`Tail`]: all that
//!   is there is good.
//! - Every event that is read lies within the geometry of the header.
//! - There is one encoding of each trace: LEB128 is minimal.

mod codec;
mod recorder;
mod replay;
mod side_by_side;

pub use codec::{Event, Tail, Trace, TraceError, TraceWriter};
pub use recorder::{Recorder, Recording};
pub use replay::{ReplayError, ReplayOptions, Replayed, replay};
pub use side_by_side::{SideBySideError, side_by_side};

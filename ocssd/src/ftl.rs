//! A model of an ordinary drive: the page-mapped flash translation layer that hides erase blocks behind an
//! address space that may be overwritten anywhere.
//!
//! It is here to be measured beside host-managed flash. Fed with a recorded trace of what the engine writes
//! ([`crate::trace`]), it tells the device's share of the total write amplification.
//!
//! What is modelled: over-provisioning, the page map, garbage collection and its victim policy, TRIM, write
//! streams with an open block each (placement handles), and where the collector puts what it moves. What is
//! not: wear levelling and refresh (which only add writes), writes of the mapping tables themselves, collection
//! in idle time (which can only move pages that would have died), bad blocks, parity. Real drives are a
//! little worse than the model.
//!
//! A *block* here is what the drive erases at once and collects as a whole: a super-block over all its dies
//! (a *reclaim unit* in the words of NVMe's Flexible Data Placement), hundreds of MiB to some GiB. What counts
//! is its share of the drive; a model of a small drive with small blocks behaves like a large one with large
//! blocks.
//!
//! Invariants:
//! - A logical page is mapped to at most one physical page, and that one names it back.
//! - A block's valid count is the number of physical pages in it that name a logical page.
//! - Between operations at least `reserve_blocks` blocks are free, so collection can always go on.
//! - The same options and the same operations give the same counters.
//!
//! ```
//! use terrane_ocssd::ftl::{Ftl, FtlOptions, StreamId};
//!
//! let mut drive = Ftl::new(FtlOptions { logical_pages: 10_000, block_pages: 64, ..FtlOptions::default() })?;
//! drive.fill();
//! for round in 0..100_000u32 {
//!     drive.write(round.wrapping_mul(2_654_435_761) % 10_000, StreamId(0));
//! }
//! assert!(drive.counters().amplification() > 1.0);
//! # Ok::<(), terrane_ocssd::ftl::FtlOptionsError>(())
//! ```

pub mod analytic;
mod blocks;
mod buckets;
mod counters;
mod mapping;
mod model;
mod options;
pub mod victim;

pub use counters::{FtlCounters, NandTiming, Wear};
pub use model::{Ftl, StreamId};
pub use options::{CollectorStream, FtlOptions, FtlOptionsError};
pub use victim::VictimPolicy;

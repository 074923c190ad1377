//! What the host decides about flash, apart from how it is carried out.
//!
//! Every file here is a pure function or a small state machine: numbers and `now` come in, data goes out. Who asks
//! does the I/O: the engine's cleaning, which does not exist yet, and the [scrubber](crate::scrubber), which cleaning
//! will run. Until then tests ask, with a toy store in cleaning's place (`tests/wear.rs`, `tests/scrub.rs`).
//!
//! Invariants:
//! - Nothing here does I/O, reads a clock or draws a random number: the same calls give the same answers.
//! - Wear levelling copies nothing of its own accord. It tilts the choices that cleaning makes anyway, and at most
//!   names one segment more (`docs/decisions/0006-host-managed-flash.md`).
//! - A *chunk* here is whatever is erased as one: a chunk of the device, or a line of the volume.
//!
//! | module | decides | for |
//! |---|---|---|
//! | [`allocation`] | which free chunk a new segment takes | the engine's log |
//! | [`wear`] | which victims cleaning prefers for the sake of wear, and which one more it takes | cleaning |
//! | [`endurance`] | how much life a chunk has left, and when it is not used any more | cleaning and the log |
//! | [`refresh`] | what must be rewritten, and how soon | cleaning; the scrubber tells it |
//! | [`scrub`] | what to read next in the background, and when | the scrubber |
//! | [`budget`] | who may do how much background I/O, and when | the scrubber, cleaning and snapshots |

pub mod allocation;
pub mod budget;
pub mod endurance;
pub mod refresh;
pub mod scrub;
pub mod wear;

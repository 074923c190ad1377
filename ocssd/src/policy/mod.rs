//! What the host decides about flash, apart from how it is carried out.
//!
//! Every file here is a pure function or a small state machine: numbers and `now` come in, data goes out. The
//! volume, the engine's cleaning and the [scrubber](crate::scrubber) ask, and do the I/O.
//!
//! Invariants:
//! - Nothing here does I/O, reads a clock or draws a random number: the same calls give the same answers.
//! - Wear levelling copies nothing of its own accord. It tilts the choices that cleaning makes anyway, and at most
//!   names one segment more (`docs/decisions/0006-host-managed-flash.md`).
//! - A *chunk* here is whatever is erased as one: a chunk of the device, or a line of the volume.
//!
//! | module | decides |
//! |---|---|
//! | [`allocation`] | which free chunk a new segment takes |
//! | [`wear`] | which victims cleaning prefers for the sake of wear, and which one more it takes |
//! | [`endurance`] | how much life a chunk has left, and when it is not used any more |
//! | [`refresh`] | what must be rewritten, and how soon |
//! | [`scrub`] | what to read next in the background, and when |
//! | [`budget`] | who may do how much background I/O, and when |

pub mod allocation;
pub mod budget;
pub mod endurance;
pub mod refresh;
pub mod scrub;
pub mod wear;

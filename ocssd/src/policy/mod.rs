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

pub mod allocation;
pub mod budget;
pub mod endurance;
pub mod refresh;
pub mod scrub;
pub mod wear;

//! What cleaning decides, apart from how it is carried out: where a record goes, which segment is cleaned next, how fast.
//!
//! Everything here is a pure function or a small state machine over numbers that the engine has at hand anyway. The store asks
//! (`cleaning.rs`, `flusher.rs`) and does the I/O; `benches/policy` asks the same functions, and prints what they make of a
//! trace (`docs/decisions/0008-cleaning.md`).
//!
//! | module | decides |
//! |---|---|
//! | [`heat`] | how soon a key is expected to be overwritten, in two bytes a key |
//! | [`placement`] | which stream a record goes to, when first written and when relocated |
//! | [`victim`] | which segments are cleaned next |
//! | [`candidates`] | how few segments need to be looked at for that |
//! | [`pace`] | how much may be copied for each byte that users write |
//!
//! Invariants:
//! - Nothing here does I/O, reads a clock or draws a random number: the same calls give the same answers.
//! - Time is [`LogTime`], the shard's own: it stands still when nobody writes, and so does every age.
//! - Nothing here copies for the sake of flash: wear and decay enter as a credit to a segment or as a segment that must
//!   move (`terrane_ocssd::policy`), and cleaning does the copying.

pub mod candidates;
pub mod heat;
pub mod pace;
pub mod placement;
pub mod victim;

/// The shard's own time: bytes of records that users have written to it, ever. Relocations do not count: how soon a key
/// is overwritten has nothing to do with them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogTime(pub u64);

impl LogTime {
    /// Bytes that users wrote since `earlier`; 0 if that is later.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

//! How a simulated medium behaves: what its user chooses.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use super::FaultRates;
use crate::geometry::Geometry;

/// A kind of media operation, as a [`DelayHook`] sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// [`Media::write`](crate::Media::write) with [`Durability::Volatile`](crate::Durability::Volatile).
    Write,
    /// [`Media::write`](crate::Media::write) with [`Durability::Durable`](crate::Durability::Durable).
    DurableWrite,
    /// [`Media::append`](crate::Media::append), of either durability.
    Append,
    /// [`Media::read`](crate::Media::read).
    Read,
    /// [`Media::reset`](crate::Media::reset).
    Reset,
    /// [`Media::finish`](crate::Media::finish).
    Finish,
    /// [`Media::flush`](crate::Media::flush).
    Flush,
}

/// How long an operation on so many bytes takes: a future of the simulator's virtual time.
pub type DelayHook = Rc<dyn Fn(Operation, usize) -> Pin<Box<dyn Future<Output = ()>>>>;

/// How a [`SimMedia`](super::SimMedia) behaves.
#[derive(Clone)]
pub struct SimOptions {
    /// Decides everything that is left to chance. Default 0.
    pub seed: u64,
    /// Each operation returns `Pending` 0 to this many times before it completes, waking itself, so that
    /// completions overtake each other. Default 0: every operation completes at once.
    pub yields_max: u32,
    /// Awaited by every operation, after its yields. Default none.
    pub delay: Option<DelayHook>,
    /// Whether the device is a conventional one, which cannot report write pointers after a start and
    /// keeps none. Default true.
    pub conventional: bool,
    /// Whether a reset leaves the old content in place (a file does), to be seen again behind a lost
    /// write. Default true; false: a reset zeroes the chunk, once it is durable.
    pub stale: bool,
    /// Whether a power cut may tear a write within a sector. Default false: sectors are atomic.
    pub tear_within_sector: bool,
    /// Whether the device's buffer survives power loss, so that a flush covers the last
    /// [`Geometry::mw_cunits`] sectors of open chunks too. Default false.
    pub protected_buffer: bool,
    /// How often each fault strikes by chance. Default never.
    pub faults: FaultRates,
}

impl SimOptions {
    /// Whether a device of this geometry can behave so.
    ///
    /// # Errors
    /// What it cannot do.
    pub fn validate(&self, geometry: &Geometry) -> Result<(), &'static str> {
        self.faults.validate()?;
        if !self.conventional {
            return Ok(());
        }
        let FaultRates { failed_program, early_close, high_ecc, .. } = self.faults;
        if geometry.mw_cunits != 0 {
            return Err("a conventional device hides no sectors: mw_cunits is 0");
        }
        if failed_program != 0 || early_close != 0 || high_ecc != 0 {
            return Err("a conventional device knows no chunks: it neither names, closes nor reports them");
        }
        Ok(())
    }
}

impl Default for SimOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            yields_max: 0,
            delay: None,
            conventional: true,
            stale: true,
            tear_within_sector: false,
            protected_buffer: false,
            faults: FaultRates::default(),
        }
    }
}

impl fmt::Debug for SimOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimOptions")
            .field("seed", &self.seed)
            .field("yields_max", &self.yields_max)
            .field("delay", &self.delay.is_some())
            .field("conventional", &self.conventional)
            .field("stale", &self.stale)
            .field("tear_within_sector", &self.tear_within_sector)
            .field("protected_buffer", &self.protected_buffer)
            .field("faults", &self.faults)
            .finish()
    }
}

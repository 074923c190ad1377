//! What an emulated device is: its shape, how it wears, what it tells, how long it takes.
//!
//! Invariants:
//! - Options that pass [`FlashOptions::validate`] describe a device that every other part of the model can
//!   serve: sizes are whole multiples of each other, and no product of them overflows.
//! - They hold no hook and no clock, so that a device made from them can be stored, sent and printed.

use super::timing::NandTiming;
use crate::geometry::Geometry;
use crate::layout::{SECTOR_BYTES_MAX, SECTOR_BYTES_MIN};

/// An emulated Open-Channel 2.0 device.
#[derive(Debug, Clone, PartialEq)]
pub struct FlashOptions {
    /// Its shape. Default: 2 groups of 2 parallel units of 16 chunks of 256 sectors of 4096 bytes; `ws_min` 4,
    /// `ws_opt` 8, `mw_cunits` 16, any number of open chunks.
    pub geometry: Geometry,
    /// Chunks that may be open at once in one parallel unit (`maxocpu`); 0: no limit. Default 0.
    pub max_open_per_unit: u32,
    /// Decides everything that is left to chance. Default 0.
    pub seed: u64,
    /// Share of the chunks that are offline from the start, 0 to 1. Default 0.
    pub bad_at_birth: f64,
    /// How chunks wear out. Default: never.
    pub endurance: Endurance,
    /// Page reads of a chunk after which a new block's data is read with high ECC effort; a worn one's earlier. 0:
    /// never. Default 0.
    pub ecc_page_reads: u32,
    /// How far a chunk's wear index may rise above the mean before the device says so (`wit`); 0: it never does.
    /// Default 0.
    pub wear_threshold: u8,
    /// Whether a chunk that is free may be reset (capability bit 1). Default true. Where it may not, resetting one
    /// through [`crate::Media`] does nothing, successfully.
    pub reset_free: bool,
    /// Whether a chunk that is open may be reset, which the specification leaves out and most drives allow. Default
    /// true. Where it may not, [`crate::Media::reset`] pads it to its end first.
    pub reset_open: bool,
    /// Whether the write buffer outlives a power cut, so that a flush covers the last `mw_cunits` sectors of open
    /// chunks too. Default false.
    pub protected_buffer: bool,
    /// Sectors of a NAND page, of which `ws_min` is a multiple. 0: `ws_min`. Default 0.
    pub page_sectors: u32,
    /// How long the flash takes. Default `None`: no time. It passes only where a
    /// [`FlashClock`](super::FlashClock) is given.
    pub timing: Option<NandTiming>,
    /// Each operation returns `Pending` 0 to this many times before it completes, waking itself, so that
    /// completions overtake each other. Default 0.
    pub yields_max: u32,
}

/// How chunks wear out.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Endurance {
    /// Erases that a chunk stands on average; the next one fails and takes it offline. 0: any number. Default 0.
    pub erases_mean: u32,
    /// Standard deviation between chunks, as a share of the mean, 0 to 1. Default 0.
    pub variation: f64,
    /// Odds that a smallest write fails to be programmed. Default never.
    pub program_failure: WearOdds,
    /// Odds that the device closes a chunk early instead of taking a write. Default never.
    pub early_close: WearOdds,
}

/// Odds that grow with the square of wear, from those of a new chunk to those of one about to fail.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct WearOdds {
    /// For a chunk that was never erased, 0 to 1.
    pub fresh: f64,
    /// For a chunk at the end of its endurance, 0 to 1, at least `fresh`.
    pub worn: f64,
}

impl Default for FlashOptions {
    fn default() -> Self {
        Self {
            geometry: Geometry {
                groups: 2,
                parallel_units: 2,
                chunks: 16,
                chunk_sectors: 256,
                sector_bytes: 4096,
                ws_min: 4,
                ws_opt: 8,
                mw_cunits: 16,
                max_open: 0,
            },
            max_open_per_unit: 0,
            seed: 0,
            bad_at_birth: 0.0,
            endurance: Endurance::default(),
            ecc_page_reads: 0,
            wear_threshold: 0,
            reset_free: true,
            reset_open: true,
            protected_buffer: false,
            page_sectors: 0,
            timing: None,
            yields_max: 0,
        }
    }
}

/// Why options describe no device.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FlashOptionsError {
    /// A size that must not be zero is.
    #[error("{field} must be at least 1")]
    Zero {
        /// Which size.
        field: &'static str,
    },
    /// The sector size cannot be used.
    #[error(
        "a sector of {sector_bytes} bytes cannot be used: it must be a power of two from {SECTOR_BYTES_MIN} to \
         {SECTOR_BYTES_MAX}"
    )]
    Sector {
        /// The size asked for.
        sector_bytes: u32,
    },
    /// One size must be a whole multiple of another.
    #[error("{field} is {value}, but must be a multiple of {unit}, which is {unit_value}")]
    Multiple {
        /// The size that is wrong.
        field: &'static str,
        /// Its value.
        value: u32,
        /// What it must be a multiple of.
        unit: &'static str,
        /// The value of that.
        unit_value: u32,
    },
    /// One size must not exceed another.
    #[error("{field} is {value}, but must be at most {limit}")]
    TooLarge {
        /// The size that is wrong.
        field: &'static str,
        /// Its value.
        value: u64,
        /// The greatest value allowed.
        limit: u64,
    },
    /// A share or probability is not between 0 and 1, or not a number.
    #[error("{field} is {value}, but must be between 0 and 1")]
    Share {
        /// Which one.
        field: &'static str,
        /// Its value.
        value: f64,
    },
    /// Worn chunks cannot be better than new ones.
    #[error("{field} of a worn chunk ({worn}) is below that of a new one ({fresh})")]
    Odds {
        /// Which odds.
        field: &'static str,
        /// Those of a new chunk.
        fresh: f64,
        /// Those of a worn one.
        worn: f64,
    },
}

/// Chunks that a device may have at most: their numbers are 32 bits, and each takes a record in memory.
const CHUNKS_MAX: u64 = 1 << 24;

/// Bytes that a device may have at most, so that offsets in a file stay positive.
const DEVICE_BYTES_MAX: u64 = 1 << 60;

impl FlashOptions {
    /// Whether the options describe a device, and if not, the first thing that is wrong with them.
    pub fn validate(&self) -> Result<(), FlashOptionsError> {
        let shape = &self.geometry;
        let sizes = [
            ("groups", shape.groups),
            ("parallel_units", shape.parallel_units),
            ("chunks", shape.chunks),
            ("chunk_sectors", shape.chunk_sectors),
            ("ws_min", shape.ws_min),
            ("ws_opt", shape.ws_opt),
        ];
        if let Some((field, _)) = sizes.into_iter().find(|(_, value)| *value == 0) {
            return Err(FlashOptionsError::Zero { field });
        }
        let sector_bytes = shape.sector_bytes;
        if !sector_bytes.is_power_of_two() || !(SECTOR_BYTES_MIN..=SECTOR_BYTES_MAX).contains(&sector_bytes) {
            return Err(FlashOptionsError::Sector { sector_bytes });
        }
        multiple("ws_min", shape.ws_min, "page_sectors", self.page_sectors())?;
        multiple("ws_opt", shape.ws_opt, "ws_min", shape.ws_min)?;
        multiple("mw_cunits", shape.mw_cunits, "ws_min", shape.ws_min)?;
        multiple("chunk_sectors", shape.chunk_sectors, "ws_min", shape.ws_min)?;
        let chunk_sectors = u64::from(shape.chunk_sectors);
        at_most("ws_opt", shape.ws_opt.into(), chunk_sectors)?;
        at_most("mw_cunits", shape.mw_cunits.into(), chunk_sectors)?;
        // The specification gives groups and parallel units 16 bits each.
        at_most("groups", shape.groups.into(), u16::MAX.into())?;
        at_most("parallel_units", shape.parallel_units.into(), u16::MAX.into())?;
        let units = u64::from(shape.groups) * u64::from(shape.parallel_units);
        let chunks = units.saturating_mul(shape.chunks.into());
        at_most("the number of all chunks", chunks, CHUNKS_MAX)?;
        let bytes = (chunks * chunk_sectors).saturating_mul(sector_bytes.into());
        at_most("the size of the device in bytes", bytes, DEVICE_BYTES_MAX)?;

        share("bad_at_birth", self.bad_at_birth)?;
        share("endurance.variation", self.endurance.variation)?;
        odds("the program failure rate", self.endurance.program_failure)?;
        odds("the early close rate", self.endurance.early_close)?;
        if let Some(timing) = &self.timing
            && timing.planes == 0
        {
            return Err(FlashOptionsError::Zero { field: "timing.planes" });
        }
        Ok(())
    }

    /// Sectors of a NAND page.
    pub fn page_sectors(&self) -> u32 {
        if self.page_sectors == 0 { self.geometry.ws_min } else { self.page_sectors }
    }
}

fn multiple(
    field: &'static str,
    value: u32,
    unit: &'static str,
    unit_value: u32,
) -> Result<(), FlashOptionsError> {
    if value.is_multiple_of(unit_value) {
        Ok(())
    } else {
        Err(FlashOptionsError::Multiple { field, value, unit, unit_value })
    }
}

fn at_most(field: &'static str, value: u64, limit: u64) -> Result<(), FlashOptionsError> {
    if value <= limit { Ok(()) } else { Err(FlashOptionsError::TooLarge { field, value, limit }) }
}

fn share(field: &'static str, value: f64) -> Result<(), FlashOptionsError> {
    if (0.0..=1.0).contains(&value) { Ok(()) } else { Err(FlashOptionsError::Share { field, value }) }
}

fn odds(field: &'static str, odds: WearOdds) -> Result<(), FlashOptionsError> {
    share(field, odds.fresh)?;
    share(field, odds.worn)?;
    if odds.worn < odds.fresh {
        return Err(FlashOptionsError::Odds { field, fresh: odds.fresh, worn: odds.worn });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_a_device() {
        assert_eq!(FlashOptions::default().validate(), Ok(()));
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        type Change = fn(&mut FlashOptions);
        let cases: [(Change, &str); 18] = [
            (|o| o.geometry.groups = 0, "groups must"),
            (|o| o.geometry.chunks = 0, "chunks must"),
            (|o| o.geometry.ws_min = 0, "ws_min must"),
            (|o| o.geometry.sector_bytes = 1000, "sector of 1000"),
            (|o| o.geometry.sector_bytes = 256, "sector of 256"),
            (|o| o.page_sectors = 3, "ws_min is 4, but must be a multiple of page_sectors"),
            (|o| o.geometry.ws_opt = 6, "ws_opt is 6"),
            (|o| o.geometry.mw_cunits = 2, "mw_cunits is 2"),
            (|o| o.geometry.chunk_sectors = 255, "chunk_sectors is 255"),
            (|o| o.geometry.ws_opt = 512, "ws_opt is 512, but must be at most 256"),
            (|o| o.geometry.mw_cunits = 260, "mw_cunits is 260, but must be at most 256"),
            (|o| o.geometry.groups = 1 << 20, "groups is 1048576"),
            (|o| o.geometry.chunks = u32::MAX, "number of all chunks"),
            (|o| o.bad_at_birth = f64::NAN, "bad_at_birth is NaN"),
            (|o| o.endurance.variation = -0.1, "endurance.variation is -0.1"),
            (|o| o.endurance.early_close.worn = 1.5, "early close rate is 1.5"),
            (|o| o.endurance.program_failure.fresh = 0.5, "of a worn chunk (0) is below"),
            (|o| o.timing = Some(NandTiming { planes: 0, ..NandTiming::default() }), "timing.planes"),
        ];
        for (change, says) in cases {
            let mut options = FlashOptions::default();
            change(&mut options);
            let error = options.validate().unwrap_err().to_string();
            assert!(error.contains(says), "{error:?} does not say {says:?}");
        }
    }
}

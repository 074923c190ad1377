//! What kind of drive is modelled.

use crate::ftl::victim::VictimPolicy;

/// Where the collector puts the pages it moves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CollectorStream {
    /// Into the open block of the host stream they came from, between the host's own writes.
    WithHost,
    /// Into one open block of its own, whatever stream they came from (placement handles that are *initially
    /// isolated*). What was moved once is old, so this alone separates some cold data from hot.
    #[default]
    Own,
    /// Into a block of its own for each host stream (*persistently isolated* handles).
    PerStream,
}

/// The drive that an [`Ftl`](crate::ftl::Ftl) models.
#[derive(Debug, Clone, PartialEq)]
pub struct FtlOptions {
    /// Pages of the address space that the host sees. Default 1 Mi: 4 GiB.
    pub logical_pages: u32,
    /// Bytes of a page, the unit of mapping. Default 4096.
    pub page_bytes: u32,
    /// Pages of an erase block. Default 2048 (8 MiB, a 512th of the default drive; of a drive of 1.88 TB whose
    /// reclaim units have 6 GB, each is a 313th). Larger against the drive: coarser collection, and the open and
    /// the reserved blocks take more of the spare.
    pub block_pages: u32,
    /// Physical space beyond the logical, as a share of the logical. Default 0.07: about the difference between
    /// GiB and GB, the least that drives have.
    pub over_provisioning: f64,
    /// Blocks kept free between operations, so that collection can go on. Default 2, least 1. They are part of
    /// the over-provisioning.
    pub reserve_blocks: u32,
    /// Host streams, each with an open block of its own. Default 1: an ordinary drive, in which all writers mix. A
    /// write of stream *s* goes to stream *s* modulo this number, as on a drive with fewer handles than classes.
    pub host_streams: u8,
    /// Where moved pages go. Default [`CollectorStream::Own`].
    pub collector: CollectorStream,
    /// Which block is collected next. Default [`VictimPolicy::Greedy`].
    pub victim: VictimPolicy,
    /// Decides what the policy leaves to chance. Default 0.
    pub seed: u64,
}

impl Default for FtlOptions {
    fn default() -> Self {
        Self {
            logical_pages: 1 << 20,
            page_bytes: 4096,
            block_pages: 2048,
            over_provisioning: 0.07,
            reserve_blocks: 2,
            host_streams: 1,
            collector: CollectorStream::default(),
            victim: VictimPolicy::default(),
            seed: 0,
        }
    }
}

/// Why a drive cannot be modelled.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FtlOptionsError {
    /// A size, count or share is zero, negative or not a number.
    #[error("{field} makes no sense")]
    Senseless {
        /// Name of the field.
        field: &'static str,
    },
    /// Pages are numbered with 32 bits.
    #[error("a drive of that many physical pages is beyond the model, which numbers pages with 32 bits")]
    TooLarge,
    /// With open and reserved blocks taken off, the physical space would not hold the logical: collection
    /// could not gain anything.
    #[error("{blocks} blocks are too few: the data, the open and the reserved ones take {needed}")]
    TooLittleSpare {
        /// Physical blocks.
        blocks: u32,
        /// The least that would do.
        needed: u32,
    },
}

impl FtlOptions {
    /// Physical erase blocks.
    pub fn blocks(&self) -> u32 {
        let physical_pages = f64::from(self.logical_pages) * (1.0 + self.over_provisioning);
        (physical_pages / f64::from(self.block_pages)).round() as u32
    }

    /// Streams of the collector's own.
    pub(crate) fn collector_streams(&self) -> u8 {
        match self.collector {
            CollectorStream::WithHost => 0,
            CollectorStream::Own => 1,
            CollectorStream::PerStream => self.host_streams,
        }
    }

    /// Blocks that may be open at once.
    pub fn open_blocks(&self) -> u32 {
        u32::from(self.host_streams) + u32::from(self.collector_streams())
    }

    /// Physical pages that really serve as room for data, for each of `valid_pages` pages of data: without the
    /// reserve, and with open blocks taken as half full. This, not the nominal one, is the ratio that the formulas
    /// in [`crate::ftl::analytic`] speak of; on a large drive the two are the same.
    pub fn room_ratio(&self, valid_pages: u32) -> f64 {
        let serving =
            f64::from(self.blocks()) - f64::from(self.reserve_blocks) - f64::from(self.open_blocks()) / 2.0;
        serving * f64::from(self.block_pages) / f64::from(valid_pages)
    }

    /// Refuses a drive that could not work.
    pub fn validate(&self) -> Result<(), FtlOptionsError> {
        let sensible = [
            ("logical_pages", self.logical_pages > 0),
            ("page_bytes", self.page_bytes > 0),
            ("block_pages", self.block_pages > 0),
            ("over_provisioning", self.over_provisioning.is_finite() && self.over_provisioning >= 0.0),
            ("reserve_blocks", self.reserve_blocks > 0),
            ("host_streams", self.host_streams > 0),
            ("victim", self.victim != VictimPolicy::Choices(0)),
        ];
        if let Some((field, _)) = sensible.into_iter().find(|(_, sensible)| !sensible) {
            return Err(FtlOptionsError::Senseless { field });
        }
        let physical = f64::from(self.logical_pages) * (1.0 + self.over_provisioning);
        // The highest number stands for "none"; rounding to whole blocks may add one.
        if physical + f64::from(self.block_pages) >= f64::from(u32::MAX) {
            return Err(FtlOptionsError::TooLarge);
        }
        // One page more than the data, so that some closed block always has a dead page.
        let data = self.logical_pages / self.block_pages + 1;
        let needed = data.saturating_add(self.open_blocks()).saturating_add(self.reserve_blocks);
        let blocks = self.blocks();
        if blocks < needed {
            return Err(FtlOptionsError::TooLittleSpare { blocks, needed });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_a_drive() {
        let options = FtlOptions::default();
        assert_eq!(options.validate(), Ok(()));
        assert_eq!(options.blocks(), 548);
        // 548 − 2 − 1 blocks for 512 blocks of data.
        assert!((options.room_ratio(1 << 20) - 545.0 / 512.0).abs() < 1e-9);
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let refused = |change: fn(&mut FtlOptions)| {
            let mut options = FtlOptions::default();
            change(&mut options);
            options.validate().unwrap_err()
        };
        let senseless = |field| FtlOptionsError::Senseless { field };
        assert_eq!(refused(|o| o.logical_pages = 0), senseless("logical_pages"));
        assert_eq!(refused(|o| o.block_pages = 0), senseless("block_pages"));
        assert_eq!(refused(|o| o.over_provisioning = f64::NAN), senseless("over_provisioning"));
        assert_eq!(refused(|o| o.over_provisioning = -0.1), senseless("over_provisioning"));
        assert_eq!(refused(|o| o.reserve_blocks = 0), senseless("reserve_blocks"));
        assert_eq!(refused(|o| o.host_streams = 0), senseless("host_streams"));
        assert_eq!(refused(|o| o.victim = VictimPolicy::Choices(0)), senseless("victim"));
        assert_eq!(refused(|o| o.logical_pages = u32::MAX - 1), FtlOptionsError::TooLarge);
        let scarce = FtlOptionsError::TooLittleSpare { blocks: 515, needed: 517 };
        assert_eq!(refused(|o| o.over_provisioning = 3.0 / 512.0), scarce);
    }
}

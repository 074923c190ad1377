//! What a modelled drive did, and what it would have cost NAND.

use std::collections::BTreeMap;

/// What the drive did since it was made, in pages and blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FtlCounters {
    /// Pages programmed for the host.
    pub host_pages: u64,
    /// Pages read and programmed again by the collector.
    pub collector_pages: u64,
    /// Mapped pages that the host gave up (TRIM).
    pub trimmed_pages: u64,
    /// Blocks erased.
    pub erases: u64,
}

impl FtlCounters {
    /// Pages programmed for each page that the host wrote: the device's write amplification. 1 of a drive that has
    /// written nothing.
    pub fn amplification(&self) -> f64 {
        if self.host_pages == 0 {
            return 1.0;
        }
        (self.host_pages + self.collector_pages) as f64 / self.host_pages as f64
    }

    /// What was done after `earlier`, an earlier state of the same drive's counters.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            host_pages: self.host_pages - earlier.host_pages,
            collector_pages: self.collector_pages - earlier.collector_pages,
            trimmed_pages: self.trimmed_pages - earlier.trimmed_pages,
            erases: self.erases - earlier.erases,
        }
    }
}

/// How long NAND is busy with each operation, in nanoseconds. Of a page and block of the model: where the drive
/// programs several planes or a whole word line at once, the share of one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NandTiming {
    /// Reading a page.
    pub read_ns: u64,
    /// Programming a page.
    pub program_ns: u64,
    /// Erasing a block.
    pub erase_ns: u64,
}

impl NandTiming {
    /// Time that all dies together were busy writing, collecting and erasing; reads of the host are not part of
    /// the model. Divided by the number of dies it is the least time that the work takes.
    pub fn busy_ns(&self, counters: &FtlCounters) -> u64 {
        (counters.host_pages + counters.collector_pages) * self.program_ns
            + counters.collector_pages * self.read_ns
            + counters.erases * self.erase_ns
    }
}

/// How often blocks were erased.
#[derive(Debug, Clone, PartialEq)]
pub struct Wear {
    /// Erases of the block erased least.
    pub min: u32,
    /// Erases of the block erased most.
    pub max: u32,
    /// Mean over the blocks.
    pub mean: f64,
    /// How many blocks were erased how many times.
    pub histogram: BTreeMap<u32, u32>,
}

impl Wear {
    /// The summary of each block's erases.
    ///
    /// # Panics
    /// If there is no block.
    pub fn of(erases: &[u32]) -> Self {
        let mut histogram = BTreeMap::new();
        for count in erases {
            *histogram.entry(*count).or_insert(0) += 1;
        }
        let (min, max) = (erases.iter().min(), erases.iter().max());
        let sum: u64 = erases.iter().map(|count| u64::from(*count)).sum();
        Self {
            min: *min.expect("a drive has blocks"),
            max: *max.expect("a drive has blocks"),
            mean: sum as f64 / erases.len() as f64,
            histogram,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amplification_and_time_follow_from_the_counts() {
        assert_eq!(FtlCounters::default().amplification(), 1.0);
        let before = FtlCounters { host_pages: 10, collector_pages: 1, trimmed_pages: 0, erases: 1 };
        let after = FtlCounters { host_pages: 110, collector_pages: 151, trimmed_pages: 7, erases: 4 };
        let done = after.since(&before);
        assert_eq!(done.amplification(), 2.5);
        let timing = NandTiming { read_ns: 1, program_ns: 10, erase_ns: 1000 };
        assert_eq!(timing.busy_ns(&done), 250 * 10 + 150 + 3 * 1000);
    }

    #[test]
    fn wear_is_counted_by_block() {
        let wear = Wear::of(&[3, 1, 3, 5]);
        assert_eq!((wear.min, wear.max, wear.mean), (1, 5, 3.0));
        assert_eq!(wear.histogram, BTreeMap::from([(1, 1), (3, 2), (5, 1)]));
    }
}

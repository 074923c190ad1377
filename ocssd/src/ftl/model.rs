//! The drive itself: writes, TRIM, and collection when room is needed.

use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;

use crate::ftl::blocks::Blocks;
use crate::ftl::counters::{FtlCounters, Wear};
use crate::ftl::mapping::PageMap;
use crate::ftl::options::{CollectorStream, FtlOptions, FtlOptionsError};

/// Which of the host's streams a write belongs to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u8);

/// Where a stream writes next.
#[derive(Debug, Clone, Copy)]
struct WritePoint {
    /// The host stream whose data goes here.
    stream: u8,
    /// The open block and the next page in it.
    open: Option<(u32, u32)>,
}

/// An ordinary drive.
#[derive(Debug, Clone)]
pub struct Ftl {
    options: FtlOptions,
    map: PageMap,
    blocks: Blocks,
    /// The host's streams, then the collector's.
    points: Vec<WritePoint>,
    rng: Pcg64Mcg,
    counters: FtlCounters,
    mapped: u32,
}

impl Ftl {
    /// A new drive: nothing is mapped, every block is free.
    pub fn new(options: FtlOptions) -> Result<Self, FtlOptionsError> {
        options.validate()?;
        let host = 0..options.host_streams;
        let collector = 0..options.collector_streams();
        let points = host.chain(collector).map(|stream| WritePoint { stream, open: None }).collect();
        Ok(Self {
            map: PageMap::new(options.logical_pages, options.blocks() * options.block_pages),
            blocks: Blocks::new(options.blocks(), options.block_pages, options.victim),
            points,
            rng: Pcg64Mcg::seed_from_u64(options.seed),
            counters: FtlCounters::default(),
            mapped: 0,
            options,
        })
    }

    /// What kind of drive it is.
    pub fn options(&self) -> &FtlOptions {
        &self.options
    }

    /// Writes a page, collecting first if room is needed.
    ///
    /// # Panics
    /// If the drive has no such page.
    pub fn write(&mut self, page: u32, stream: StreamId) {
        assert!(page < self.map.len(), "page {page} is beyond the drive's {}", self.map.len());
        let point = usize::from(stream.0 % self.options.host_streams);
        // Collection may itself open a block for this stream, where the two share one.
        while self.points[point].open.is_none() && self.blocks.free() <= self.options.reserve_blocks {
            self.collect();
        }
        self.program(point, page);
        self.counters.host_pages += 1;
    }

    /// Tells the drive that a page's content is not needed any more.
    ///
    /// # Panics
    /// If the drive has no such page.
    pub fn trim(&mut self, page: u32) {
        assert!(page < self.map.len(), "page {page} is beyond the drive's {}", self.map.len());
        if let Some(place) = self.map.unmap(page) {
            self.blocks.page_died(place / self.options.block_pages);
            self.mapped -= 1;
            self.counters.trimmed_pages += 1;
        }
    }

    /// Writes every page once, in order, as the first stream: a drive that has been full.
    pub fn fill(&mut self) {
        for page in 0..self.map.len() {
            self.write(page, StreamId(0));
        }
    }

    /// What was done since the drive was made.
    pub fn counters(&self) -> FtlCounters {
        self.counters
    }

    /// Pages that the drive takes for valid data.
    pub fn mapped_pages(&self) -> u32 {
        self.mapped
    }

    /// How often its blocks were erased.
    pub fn wear(&self) -> Wear {
        Wear::of(&self.blocks.erases())
    }

    /// Programs a page where the point writes next, opening a block if it has none.
    fn program(&mut self, point: usize, page: u32) {
        let block_pages = self.options.block_pages;
        let WritePoint { stream, open } = self.points[point];
        let (block, next) = open.unwrap_or_else(|| (self.blocks.open(stream), 0));
        match self.map.place(page, block * block_pages + next) {
            Some(old) => self.blocks.page_died(old / block_pages),
            None => self.mapped += 1,
        }
        self.blocks.page_programmed(block);
        let next = next + 1;
        self.points[point].open = (next < block_pages).then_some((block, next));
        if next == block_pages {
            self.blocks.close(block, self.programmed() + 1);
        }
    }

    /// Pages programmed so far: the drive's clock.
    fn programmed(&self) -> u64 {
        self.counters.host_pages + self.counters.collector_pages
    }

    /// Frees one block: moves its valid pages, then erases it. Uses up at most one free block, and gives one back.
    fn collect(&mut self) {
        let block_pages = self.options.block_pages;
        let victim = self.blocks.choose_victim(self.programmed(), &mut self.rng);
        let stream = self.blocks.stream(victim);
        let point = match self.options.collector {
            CollectorStream::WithHost => usize::from(stream),
            CollectorStream::Own => usize::from(self.options.host_streams),
            CollectorStream::PerStream => usize::from(self.options.host_streams) + usize::from(stream),
        };
        let mut place = victim * block_pages;
        while self.blocks.valid(victim) > 0 {
            if let Some(page) = self.map.page_at(place) {
                self.program(point, page);
                self.counters.collector_pages += 1;
            }
            place += 1;
        }
        self.blocks.erase(victim);
        self.counters.erases += 1;
    }
}

#[cfg(test)]
mod tests;

//! What is written to the drive: each workload as a stream of requests, with the formula that speaks of it.

use std::collections::VecDeque;

use rand::RngExt;
use rand_pcg::Pcg64Mcg;
use terrane_ocssd::ftl::analytic::{self, RateClass};
use terrane_ocssd::ftl::{Ftl, FtlOptions, StreamId};

/// Pages of a sequential request: 128 KiB.
const REQUEST_PAGES: u32 = 32;

/// Exponent of Zipf's law, YCSB's.
const ZIPF_EXPONENT: f64 = 0.99;

/// Shares of the writes, and of the live data, of a log's lifetime classes: hot data is written often and is little.
pub(crate) const LOG_CLASSES: [(f64, f64); 4] = [(0.5, 0.1), (0.25, 0.2), (0.15, 0.3), (0.1, 0.4)];

/// A workload.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Workload {
    /// Single pages anywhere.
    Uniform,
    /// Single pages by Zipf's law, popular ones scattered.
    Zipf,
    /// Writers that each overwrite a ring of their own in order, at these paces.
    Writers(Vec<u32>),
    /// A log in segments of so many blocks, one open for each lifetime class; a random segment of the class is
    /// recycled when the open one is full.
    Log { segment_blocks: f64 },
    /// A flash cache: a random part of 4 % of the space that takes this share of the writes, and a ring.
    Cache { random_share: f64 },
}

impl Workload {
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Uniform => "uniform".to_owned(),
            Self::Zipf => format!("zipf {ZIPF_EXPONENT}"),
            Self::Writers(paces) if paces.len() == 1 => "1 sequential writer".to_owned(),
            Self::Writers(paces) if paces.iter().all(|pace| *pace == paces[0]) => {
                format!("{} sequential writers", paces.len())
            }
            Self::Writers(paces) => {
                let paces: Vec<String> = paces.iter().map(u32::to_string).collect();
                format!("{} writers, paces {}", paces.len(), paces.join(":"))
            }
            Self::Log { segment_blocks } => format!("log, segments of {segment_blocks} blocks"),
            Self::Cache { random_share } => format!("cache, {:.0} % random", random_share * 100.0),
        }
    }

    /// How many streams the host can tell apart.
    pub(crate) fn streams(&self) -> u8 {
        match self {
            Self::Uniform | Self::Zipf => 1,
            Self::Writers(paces) => paces.len() as u8,
            Self::Log { .. } => LOG_CLASSES.len() as u8,
            Self::Cache { .. } => 2,
        }
    }

    /// The formula for this workload without streams, and its name, on a drive that uses `used` pages and holds
    /// `still` more that are never written.
    pub(crate) fn formula(&self, drive: &FtlOptions, used: u32, still: u32) -> Option<(&'static str, f64)> {
        let room = drive.room_ratio(1) - f64::from(still);
        let pages = f64::from(used);
        match self {
            Self::Uniform => Some(("greedy", analytic::greedy(room / pages, drive.block_pages))),
            Self::Zipf => Some(("FIFO", analytic::fifo_skewed(&zipf_classes(used), room))),
            // What was written together dies together, one lap later.
            Self::Writers(paces) if paces.iter().all(|pace| *pace == paces[0]) => Some(("in order", 1.0)),
            Self::Writers(_) => None,
            // Segments of a class die at random, like pages; but only if the drive learns of it at once.
            Self::Log { .. } if still == 0 => {
                let class = |(writes, live): (f64, f64)| RateClass { pages: pages * live, writes };
                Some(("FIFO", analytic::fifo_skewed(&LOG_CLASSES.map(class), room)))
            }
            Self::Log { .. } | Self::Cache { .. } => None,
        }
    }

    /// The workload at its beginning, on a drive that was filled. Trims what it does not use, if the host does.
    pub(crate) fn begin(&self, drive: &mut Ftl, used: u32, trim: bool, rng: &mut Pcg64Mcg) -> Requests {
        let logical = drive.options().logical_pages;
        if trim && !matches!(self, Self::Log { .. }) {
            (used..logical).for_each(|page| drive.trim(page));
        }
        match self {
            Self::Uniform => Requests::Uniform { used },
            Self::Zipf => Requests::Zipf(Zipf::new(used, rng)),
            Self::Writers(paces) => {
                let pages = used / paces.len() as u32;
                let ring = |(index, pace): (usize, &u32)| Ring::new(index as u32 * pages, pages, *pace);
                Requests::Writers(paces.iter().enumerate().map(ring).collect())
            }
            Self::Log { segment_blocks } => {
                let segment = (f64::from(drive.options().block_pages) * segment_blocks).round() as u32;
                Requests::Log(Log::new(drive, segment.max(1), used, trim))
            }
            Self::Cache { random_share } => {
                let random = used / 25;
                // A random request is one page, one of the ring many.
                let weight = random_share * f64::from(REQUEST_PAGES);
                let chance = weight / (weight + 1.0 - random_share);
                Requests::Cache { random, chance, ring: Ring::new(random, used - random, 1) }
            }
        }
    }
}

/// A workload as it goes on.
pub(crate) enum Requests {
    Uniform { used: u32 },
    Zipf(Zipf),
    Writers(Vec<Ring>),
    Log(Log),
    Cache { random: u32, chance: f64, ring: Ring },
}

impl Requests {
    /// Makes one request of the drive.
    pub(crate) fn next(&mut self, drive: &mut Ftl, rng: &mut Pcg64Mcg) {
        match self {
            Self::Uniform { used } => drive.write(rng.random_range(0..*used), StreamId(0)),
            Self::Zipf(zipf) => drive.write(zipf.draw(rng), StreamId(0)),
            Self::Writers(rings) => {
                let writer = weighted(rng, rings.iter().map(|ring| f64::from(ring.pace)));
                rings[writer].write(drive, StreamId(writer as u8));
            }
            Self::Log(log) => log.write(drive, rng),
            Self::Cache { random, chance, ring } => {
                if rng.random_bool(*chance) {
                    drive.write(rng.random_range(0..*random), StreamId(0));
                } else {
                    ring.write(drive, StreamId(1));
                }
            }
        }
    }
}

/// An index, by weights.
pub(crate) fn weighted(rng: &mut Pcg64Mcg, weights: impl Iterator<Item = f64> + Clone) -> usize {
    let mut left = rng.random::<f64>() * weights.clone().sum::<f64>();
    let found = weights.clone().position(|weight| {
        left -= weight;
        left < 0.0
    });
    found.unwrap_or(weights.count() - 1)
}

/// Pages overwritten in order, for ever.
pub(crate) struct Ring {
    first: u32,
    pages: u32,
    next: u32,
    pace: u32,
}

impl Ring {
    fn new(first: u32, pages: u32, pace: u32) -> Self {
        Self { first, pages, next: 0, pace }
    }

    fn write(&mut self, drive: &mut Ftl, stream: StreamId) {
        for _ in 0..REQUEST_PAGES {
            drive.write(self.first + self.next, stream);
            self.next = (self.next + 1) % self.pages;
        }
    }
}

/// Zipf's law over pages in random order.
pub(crate) struct Zipf {
    /// Weights summed up, by rank.
    sums: Vec<f64>,
    pages: Vec<u32>,
}

impl Zipf {
    fn new(pages: u32, rng: &mut Pcg64Mcg) -> Self {
        let mut sum = 0.0;
        let weigh = |rank: u32| {
            sum += f64::from(rank).powf(-ZIPF_EXPONENT);
            sum
        };
        let sums = (1..=pages).map(weigh).collect();
        let mut pages: Vec<u32> = (0..pages).collect();
        for index in (1..pages.len()).rev() {
            pages.swap(index, rng.random_range(0..=index));
        }
        Self { sums, pages }
    }

    fn draw(&self, rng: &mut Pcg64Mcg) -> u32 {
        let at = rng.random::<f64>() * self.sums[self.sums.len() - 1];
        let rank = self.sums.partition_point(|sum| *sum <= at);
        self.pages[rank.min(self.pages.len() - 1)]
    }
}

/// The law as classes of about the same rate: the first thousand ranks by themselves, then a hundredth more ranks in each.
fn zipf_classes(pages: u32) -> Vec<RateClass> {
    let (mut classes, mut first) = (Vec::new(), 1);
    while first <= pages {
        let count = if first <= 1000 { 1 } else { first / 100 }.min(pages - first + 1);
        let writes = (first..first + count).map(|rank| f64::from(rank).powf(-ZIPF_EXPONENT)).sum();
        classes.push(RateClass { pages: f64::from(count), writes });
        first += count;
    }
    let sum: f64 = classes.iter().map(|class| class.writes).sum();
    classes.iter_mut().for_each(|class| class.writes /= sum);
    classes
}

/// A log-structured store's segments over the whole drive.
pub(crate) struct Log {
    segment_pages: u32,
    trim: bool,
    classes: Vec<LogClass>,
    /// Recycled first in, first out.
    free: VecDeque<u32>,
}

struct LogClass {
    writes: f64,
    live: Vec<u32>,
    open: u32,
    next: u32,
}

impl Log {
    fn new(drive: &mut Ftl, segment_pages: u32, used: u32, trim: bool) -> Self {
        let segments = drive.options().logical_pages / segment_pages;
        let mut free: VecDeque<u32> = (0..segments).collect();
        let live_segments = f64::from(used / segment_pages);
        let class = |(writes, live): (f64, f64)| {
            // The open segment counts as half of one.
            let count = (live_segments * live - 0.5).round().max(1.0) as usize;
            let live = free.drain(..count).collect();
            LogClass { writes, live, open: free.pop_front().expect("a segment is free"), next: 0 }
        };
        let classes = LOG_CLASSES.into_iter().map(class).collect();
        let log = Self { segment_pages, trim, classes, free };
        let open = log.classes.iter().map(|class| class.open);
        let unused: Vec<u32> = log.free.iter().copied().chain(open).collect();
        unused.into_iter().for_each(|segment| log.recycle(drive, segment));
        log
    }

    fn recycle(&self, drive: &mut Ftl, segment: u32) {
        if self.trim {
            let first = segment * self.segment_pages;
            (first..first + self.segment_pages).for_each(|page| drive.trim(page));
        }
    }

    fn write(&mut self, drive: &mut Ftl, rng: &mut Pcg64Mcg) {
        let index = weighted(rng, self.classes.iter().map(|class| class.writes));
        for _ in 0..REQUEST_PAGES {
            let class = &mut self.classes[index];
            drive.write(class.open * self.segment_pages + class.next, StreamId(index as u8));
            class.next += 1;
            if class.next == self.segment_pages {
                class.live.push(class.open);
                let victim = class.live.swap_remove(rng.random_range(0..class.live.len()));
                self.free.push_back(victim);
                class.next = 0;
                class.open = self.free.pop_front().expect("one was just recycled");
                self.recycle(drive, victim);
            }
        }
    }
}

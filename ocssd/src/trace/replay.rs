//! A recorded trace, done again on the model of an ordinary drive.

use crate::ftl::{Ftl, FtlCounters, StreamId};
use crate::geometry::ChunkId;
use crate::trace::{Event, Trace};

/// What the ordinary drive is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplayOptions {
    /// Whether a reset trims the chunk. Default true; false: the drive learns of it only when the chunk is
    /// overwritten.
    pub trim: bool,
    /// Whether each lifetime class is a stream. Default false: all writes mix, as on a drive without placement
    /// handles. The drive may have fewer streams than there are classes; they then share.
    pub streams: bool,
    /// Whether the drive programs a page once that two successive writes to a chunk share, as one does that keeps
    /// it in a protected cache meanwhile. Default true; false: each programs the whole page.
    pub merge: bool,
}

impl Default for ReplayOptions {
    fn default() -> Self {
        Self { trim: true, streams: false, merge: true }
    }
}

/// Why a trace cannot be replayed on a drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// Chunks begin within pages: a reset would not free them.
    #[error("chunks of {chunk_bytes} bytes are not whole pages of {page_bytes}")]
    ChunksNotWholePages {
        /// Of the trace.
        chunk_bytes: u64,
        /// Of the drive.
        page_bytes: u32,
    },
    /// The medium was larger than the drive.
    #[error("the trace is of {trace_pages} pages, the drive has {drive_pages}")]
    DriveTooSmall {
        /// What the medium takes, in the drive's pages.
        trace_pages: u64,
        /// What the drive has.
        drive_pages: u32,
    },
}

/// What a replay did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Bytes that the trace writes.
    pub host_bytes: u64,
    /// Bytes that the drive programmed for it.
    pub programmed_bytes: u64,
    /// What the drive counted during the replay.
    pub counters: FtlCounters,
}

impl Replayed {
    /// Bytes programmed for each byte that was written, parts of pages included: the device's share of the total
    /// write amplification. 1 where nothing was written.
    pub fn amplification(&self) -> f64 {
        if self.host_bytes == 0 { 1.0 } else { self.programmed_bytes as f64 / self.host_bytes as f64 }
    }
}

/// Does everything in the trace to the drive, chunk 0 at its page 0. The drive goes on from the state that it has:
/// replay once to bring it into a steady one, and again to measure.
pub fn replay(trace: &Trace, drive: &mut Ftl, options: &ReplayOptions) -> Result<Replayed, ReplayError> {
    let geometry = &trace.geometry;
    let page_bytes = drive.options().page_bytes;
    let page_size = u64::from(page_bytes);
    let chunk_bytes = geometry.chunk_bytes();
    if !chunk_bytes.is_multiple_of(page_size) {
        return Err(ReplayError::ChunksNotWholePages { chunk_bytes, page_bytes });
    }
    let (trace_pages, drive_pages) = (geometry.slice_bytes() / page_size, drive.options().logical_pages);
    if trace_pages > u64::from(drive_pages) {
        return Err(ReplayError::DriveTooSmall { trace_pages, drive_pages });
    }
    let chunk_pages = (chunk_bytes / page_size) as u32;
    let first_page = |chunk: ChunkId| chunk.0 * chunk_pages;
    let sector_bytes = u64::from(geometry.sector_bytes);
    // By chunk: where the last write ended, in bytes, if it ended within a page.
    let mut partial: Vec<Option<u64>> = vec![None; geometry.chunk_count() as usize];
    let before = drive.counters();
    let mut host_bytes = 0;
    for event in &trace.events {
        match *event {
            Event::Write { chunk, sector, sectors, class } => {
                let start = u64::from(sector) * sector_bytes;
                let end = start + u64::from(sectors) * sector_bytes;
                host_bytes += end - start;
                let partial = &mut partial[chunk.0 as usize];
                let mut pages = start / page_size..end.div_ceil(page_size);
                if options.merge && *partial == Some(start) {
                    pages.start += 1;
                }
                let stream = StreamId(if options.streams { class.0 } else { 0 });
                for page in pages {
                    drive.write(first_page(chunk) + page as u32, stream);
                }
                *partial = (!end.is_multiple_of(page_size)).then_some(end);
            }
            Event::Reset { chunk } => {
                partial[chunk.0 as usize] = None;
                if options.trim {
                    let first = first_page(chunk);
                    (first..first + chunk_pages).for_each(|page| drive.trim(page));
                }
            }
            Event::Finish { chunk } => partial[chunk.0 as usize] = None,
        }
    }
    let counters = drive.counters().since(&before);
    let programmed_bytes = (counters.host_pages + counters.collector_pages) * page_size;
    Ok(Replayed { host_bytes, programmed_bytes, counters })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ftl::FtlOptions;
    use crate::geometry::Geometry;
    use crate::media::LifetimeClass;
    use crate::trace::Tail;

    fn trace(events: Vec<Event>) -> Trace {
        let geometry = Geometry {
            groups: 1,
            parallel_units: 1,
            chunks: 100,
            chunk_sectors: 128,
            sector_bytes: 512,
            ws_min: 1,
            ws_opt: 8,
            mw_cunits: 0,
            max_open: 0,
        };
        Trace { geometry, events, tail: Tail::Ended }
    }

    fn drive(logical_pages: u32) -> Ftl {
        let options =
            FtlOptions { logical_pages, block_pages: 16, over_provisioning: 0.2, ..Default::default() };
        Ftl::new(options).unwrap()
    }

    fn write(sector: u32, sectors: u32) -> Event {
        Event::Write { chunk: ChunkId(9), sector, sectors, class: LifetimeClass(0) }
    }

    /// Three sectors and five fill a page of eight; then two pages and half of one, which the next write begins
    /// anew.
    #[test]
    fn parts_of_pages_are_merged_or_not() {
        let events = vec![write(0, 3), write(3, 5), write(8, 20), write(28, 4), write(40, 1)];
        let replayed = |merge| {
            let options = ReplayOptions { merge, ..ReplayOptions::default() };
            replay(&trace(events.clone()), &mut drive(1600), &options).unwrap()
        };
        assert_eq!(replayed(true).counters.host_pages, 1 + 3 + 1);
        assert_eq!(replayed(false).counters.host_pages, 2 + 3 + 1 + 1);
        assert_eq!(replayed(true).host_bytes, 33 * 512);
        assert_eq!(replayed(true).programmed_bytes, 5 * 4096);
    }

    #[test]
    fn a_reset_trims_the_whole_chunk_or_nothing() {
        let events = vec![write(0, 128), Event::Reset { chunk: ChunkId(9) }];
        for (trim, mapped) in [(true, 0), (false, 16)] {
            let mut drive = drive(1600);
            let options = ReplayOptions { trim, ..ReplayOptions::default() };
            replay(&trace(events.clone()), &mut drive, &options).unwrap();
            assert_eq!(drive.mapped_pages(), mapped);
        }
    }

    #[test]
    fn a_drive_that_does_not_fit_is_refused() {
        let options = ReplayOptions::default();
        let refused = ReplayError::DriveTooSmall { trace_pages: 1600, drive_pages: 1599 };
        assert_eq!(replay(&trace(vec![]), &mut drive(1599), &options), Err(refused));
        let mut odd = trace(vec![]);
        odd.geometry.chunk_sectors = 127;
        let refused = ReplayError::ChunksNotWholePages { chunk_bytes: 127 * 512, page_bytes: 4096 };
        assert_eq!(replay(&odd, &mut drive(1600), &options), Err(refused));
    }
}

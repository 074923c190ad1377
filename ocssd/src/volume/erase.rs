//! Making a volume unreadable, before anything of what it held is touched.
//!
//! Invariants:
//! - After a power cut at any moment the volume's newest record is found, as before, or none: an older record, which a chunk
//!   that is not in use any more may still hold, goes before the newest does.
//! - One chunk at a time, and a flush behind each: a device may lose a reset that no flush covered, and keep a later one.

use super::error::VolumeError;
use super::metadata::{Candidate, read_candidates};
use super::recovery::checked_report;
use crate::media::{ChunkState, Media, MediaError};

/// Resets every chunk that metadata may stand in. Durable when it resolves.
///
/// # Errors
/// [`VolumeError::NotErased`] if a chunk with a record cannot be reset and is still there: of the newest record at least one
/// copy is left. Else what the device said.
pub(super) async fn erase<M: Media>(media: &M) -> Result<(), VolumeError> {
    // What a process that died left in the device's cache counts from here on.
    media.flush().await?;
    let mut candidates = read_candidates(media, &checked_report(media).await?).await?;
    candidates.sort_by_key(Candidate::turn_to_go);
    let used = |candidate: &&Candidate| matches!(candidate.state, ChunkState::Open | ChunkState::Closed);
    for candidate in candidates.iter().filter(used) {
        match media.reset(candidate.chunk).await {
            Ok(()) => {}
            Err(error @ (MediaError::PowerLost | MediaError::Rule { .. })) => return Err(error.into()),
            Err(error) => {
                let found = checked_report(media).await?[candidate.chunk.0 as usize];
                if found.state != ChunkState::Offline && candidate.holds_record() {
                    return Err(VolumeError::NotErased(error));
                }
            }
        }
        media.flush().await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::super::assignment::{Tables, candidates};
    use super::super::metadata::padded_sectors;
    use super::super::record::Record;
    use super::super::{Volume, VolumeError};
    use super::*;
    use crate::buffer::AlignedBuf;
    use crate::geometry::{ChunkId, Geometry};
    use crate::media::Durability;
    use crate::sim::{SimMedia, SimOptions};

    const GEOMETRY: Geometry = Geometry {
        groups: 1,
        parallel_units: 2,
        chunks: 10,
        chunk_sectors: 16,
        sector_bytes: 512,
        ws_min: 1,
        ws_opt: 4,
        mw_cunits: 0,
        max_open: 0,
    };

    const NEWEST: u64 = 7;

    /// A simulated device wakes itself, so polling again is all that waking does.
    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return value;
            }
        }
    }

    /// The newest record in both places, and an older one in what each of them was before.
    fn device(seed: u64) -> SimMedia {
        let media =
            SimMedia::new(GEOMETRY, SimOptions { seed, conventional: false, ..SimOptions::default() });
        for place in candidates(&GEOMETRY) {
            for (chunk, sequence) in place.into_iter().zip([NEWEST, NEWEST - 3]) {
                put(&media, chunk, sequence);
            }
        }
        media
    }

    fn put(media: &SimMedia, chunk: ChunkId, sequence: u64) {
        let record = Record {
            sequence,
            geometry: GEOMETRY,
            width: 2,
            spare_chunks_per_unit: 2,
            label: sequence.to_le_bytes().to_vec(),
            tables: Tables::default(),
        };
        let bytes = record.encode();
        let sectors = padded_sectors(&GEOMETRY, bytes.len());
        let mut buf = AlignedBuf::zeroed((sectors * GEOMETRY.sector_bytes) as usize);
        buf[..bytes.len()].copy_from_slice(&bytes);
        block_on(media.write(chunk, 0, buf, Durability::Durable)).0.unwrap();
    }

    /// Fails if a newer record goes before an older one, or without a flush between two resets.
    #[test]
    fn the_newest_record_is_found_or_none() {
        let mut seen = [0; 2];
        for seed in 0..64 {
            for nth in 1.. {
                let media = device(seed);
                media.crash_after(nth);
                let ended = block_on(Volume::erase(&media)).is_ok();
                media.power_on();
                match block_on(Volume::read_label(&media)) {
                    Ok(label) => {
                        assert_eq!(label, NEWEST.to_le_bytes(), "seed {seed}, cut at operation {nth}");
                        assert!(!ended);
                        seen[0] += 1;
                    }
                    Err(VolumeError::Blank) => seen[1] += 1,
                    Err(error) => panic!("seed {seed}, cut at operation {nth}: {error}"),
                }
                if ended {
                    break;
                }
            }
        }
        assert!(seen.iter().all(|times| *times > 0), "found and not: {seen:?}");
    }

    /// What may hide a newer record is not the first to go: behind it an older one would count.
    #[test]
    fn damage_goes_last() {
        for seed in 0..32 {
            for nth in 1.. {
                let media = SimMedia::new(
                    GEOMETRY,
                    SimOptions { seed, conventional: false, ..SimOptions::default() },
                );
                let [first, second] = candidates(&GEOMETRY);
                put(&media, first[0], NEWEST);
                put(&media, second[0], NEWEST - 1);
                let mut torn = AlignedBuf::zeroed(512);
                torn.fill(9);
                let at = block_on(media.report()).unwrap()[first[0].0 as usize].write_pointer;
                block_on(media.write(first[0], at, torn, Durability::Durable)).0.unwrap();
                let damaged = |found| matches!(found, Err(VolumeError::Damaged(_)));
                assert!(damaged(block_on(Volume::read_label(&media)).map(drop)));
                media.crash_after(nth);
                let ended = block_on(Volume::erase(&media)).is_ok();
                media.power_on();
                let found = block_on(Volume::read_label(&media)).map(drop);
                let gone = matches!(found, Err(VolumeError::Blank));
                assert!(
                    gone || damaged(found),
                    "seed {seed}, cut at operation {nth}: an older record counts"
                );
                if ended {
                    break;
                }
            }
        }
    }

    #[test]
    fn a_chunk_that_is_lost_is_erased_and_one_that_stays_is_not() {
        let media = device(0);
        media.fail_next_reset();
        block_on(Volume::erase(&media)).unwrap();
        assert!(matches!(block_on(Volume::read_label(&media)), Err(VolumeError::Blank)));
        let media = device(0);
        media.power_cut();
        let refused = block_on(Volume::erase(&media));
        assert!(matches!(refused, Err(VolumeError::Media(MediaError::PowerLost))));
    }
}

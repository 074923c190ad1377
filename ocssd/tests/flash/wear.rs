//! Wear, its end, what is bad from birth, what reading does, and that nothing is written twice.

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use terrane_ocssd::flash::{Endurance, WearOdds};
use terrane_ocssd::{
    AlignedBuf, ChunkId, ChunkState, Durability, FlashOptions, Geometry, Media, MediaError, NoticeKind,
};

use crate::harness::{
    SECTOR, block_on, device, finish, flush, for_seeds, geometry, options, plain, read, reset, state, whole,
    write,
};

fn endurance(erases_mean: u32) -> FlashOptions {
    FlashOptions { endurance: Endurance { erases_mean, ..Endurance::default() }, ..plain() }
}

#[test]
fn wear_rises_with_each_reset() {
    let media = whole(endurance(100));
    for wear in 0..20 {
        assert_eq!(block_on(media.report()).unwrap()[2].wear, wear);
        assert_eq!(u32::from(media.device().descriptors(2..3)[0].wear_index), wear * 255 / 100);
        write(&media, 2, 0, 4, 1).unwrap();
        reset(&media, 2).unwrap();
    }
    assert_eq!(block_on(media.report()).unwrap()[3].wear, 0);
    media.power_on();
    assert_eq!(block_on(media.report()).unwrap()[2].wear, 20);
}

/// Fails without the limit: the chunk would be reset for ever.
#[test]
fn endurance_ends_offline() {
    let media = whole(endurance(5));
    for _ in 0..5 {
        write(&media, 0, 0, 4, 1).unwrap();
        reset(&media, 0).unwrap();
    }
    write(&media, 0, 0, 4, 1).unwrap();
    assert_eq!(read(&media, 0, 0, 4).unwrap(), [1; 4]);
    assert!(matches!(reset(&media, 0), Err(MediaError::Offline { chunk: ChunkId(0) })));
    assert_eq!(state(&media, 0).0, ChunkState::Offline);
    assert_eq!(media.take_notices().last().unwrap().kind, NoticeKind::Offline);
    assert_eq!(media.device().counters().gone_offline, 1);
    // The others live on.
    write(&media, 1, 0, 4, 1).unwrap();
    reset(&media, 1).unwrap();
}

#[test]
fn chunks_differ_in_what_they_stand() {
    let variation = Endurance { erases_mean: 50, variation: 0.2, ..Endurance::default() };
    let media = whole(FlashOptions { endurance: variation, seed: 5, ..plain() });
    let ends: std::collections::BTreeSet<u32> =
        (0..16).map(|chunk| (0..1000).take_while(|_| reset(&media, chunk).is_ok()).count() as u32).collect();
    assert!(ends.len() > 8, "{ends:?}");
    assert!(ends.iter().all(|erases| (10..=90).contains(erases)), "{ends:?}");
}

#[test]
fn some_are_bad_at_birth() {
    let big = Geometry { chunks: 250, ..geometry() };
    let bad = |seed, bad_at_birth| {
        let device = device(FlashOptions { geometry: big, seed, bad_at_birth, ..options() });
        let offline = device.report().into_iter().filter(|info| info.state == ChunkState::Offline);
        offline.map(|info| info.id.0).collect::<Vec<_>>()
    };
    let of_seed = bad(1, 0.02);
    assert!((8..40).contains(&of_seed.len()), "{of_seed:?}");
    assert_eq!(bad(1, 0.02), of_seed);
    assert_ne!(bad(2, 0.02), of_seed);
    assert_eq!(bad(1, 0.0), []);
    assert_eq!(bad(1, 1.0).len(), 1000);
}

#[test]
fn worn_chunks_fail_more_often() {
    let odds = WearOdds { fresh: 0.0, worn: 0.5 };
    let wearing =
        Endurance { erases_mean: 40, program_failure: odds, early_close: odds, ..Endurance::default() };
    let media = whole(FlashOptions { endurance: wearing, ..plain() });
    let mut failed = [0, 0];
    for erase in 0..40 {
        for chunk in 0..16 {
            for at in (0..32).step_by(4) {
                match write(&media, chunk, at, 4, 1) {
                    Ok(()) => {}
                    Err(MediaError::WriteFailed { .. } | MediaError::ClosedEarly { .. }) => {
                        failed[erase / 20] += 1;
                        break;
                    }
                    Err(other) => panic!("{other}"),
                }
            }
            reset(&media, chunk).unwrap();
        }
    }
    let counters = media.device().counters();
    assert!(counters.program_failures > 0 && counters.early_closes > 0, "{counters:?}");
    assert!(failed[0] > 0 && failed[1] > 2 * failed[0], "{failed:?}");
    assert_eq!(counters.amplification(), 1.0);
}

#[test]
fn a_chunk_ahead_of_the_others_is_told_of() {
    let media = whole(FlashOptions { wear_threshold: 10, ..endurance(255) });
    for _ in 0..10 {
        reset(&media, 4).unwrap();
    }
    assert_eq!(media.take_notices(), [], "an index of 10 over the mean is allowed");
    reset(&media, 4).unwrap();
    let notices = media.take_notices();
    assert_eq!(
        notices.iter().map(|notice| (notice.chunk, notice.kind)).collect::<Vec<_>>(),
        [(ChunkId(4), NoticeKind::Worn)]
    );
    reset(&media, 4).unwrap();
    assert_eq!(media.take_notices(), [], "once is enough");
}

#[test]
fn reading_much_is_told_of_in_steps() {
    let media = whole(FlashOptions { ecc_page_reads: 100, ..plain() });
    write(&media, 0, 0, 32, 1).unwrap();
    let mut told = Vec::new();
    for reads in 1..=120 {
        read(&media, 0, reads % 32, 1).unwrap();
        told.extend(media.take_notices().into_iter().map(|notice| (reads, notice.kind)));
    }
    assert_eq!(told, [(50, NoticeKind::EccLow), (75, NoticeKind::EccMedium), (100, NoticeKind::EccHigh)]);
    reset(&media, 0).unwrap();
    write(&media, 0, 0, 32, 1).unwrap();
    read(&media, 0, 0, 32).unwrap();
    assert_eq!(media.take_notices(), [], "an erase heals");
}

/// Two counts that are taken apart: what the host sent, and what the pages took.
#[test]
fn nothing_is_written_that_the_host_did_not_write() {
    for_seeds(8, "nothing_is_written_that_the_host_did_not_write", |seed| {
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        let odds = WearOdds { fresh: 0.001, worn: 0.05 };
        let endurance =
            Endurance { erases_mean: 200, variation: 0.1, program_failure: odds, early_close: odds };
        let media = whole(FlashOptions { seed, endurance, bad_at_birth: 0.05, yields_max: 2, ..options() });
        let mut sent = 0;
        for _ in 0..20_000 {
            let chunk = rng.random_range(0..16);
            let (now, pointer) = state(&media, chunk);
            match (now, rng.random_range(0..20)) {
                (ChunkState::Offline, _) => {}
                (ChunkState::Free | ChunkState::Open, 1..) => {
                    let sectors = 4 * rng.random_range(1..=(32 - pointer) / 4);
                    let buf = AlignedBuf::zeroed(sectors as usize * SECTOR);
                    let durability = [Durability::Volatile, Durability::Durable][rng.random_range(0..2)];
                    match block_on(media.write(ChunkId(chunk), pointer, buf, durability)).0 {
                        Ok(()) => sent += sectors,
                        Err(MediaError::WriteFailed { sector, .. }) => sent += sector - pointer,
                        Err(MediaError::ClosedEarly { .. }) => {}
                        Err(other) => panic!("{other}"),
                    }
                }
                (ChunkState::Open, 0) => {
                    let end = match finish(&media, chunk) {
                        Ok(()) => 32,
                        Err(
                            MediaError::WriteFailed { sector: end, .. }
                            | MediaError::ClosedEarly { write_pointer: end, .. },
                        ) => end,
                        Err(other) => panic!("{other}"),
                    };
                    sent += end - pointer;
                }
                (ChunkState::Closed, 0..10) => {
                    let _ = reset(&media, chunk);
                }
                _ => flush(&media),
            }
        }
        let counters = media.device().counters();
        assert_eq!(counters.received_bytes, u64::from(sent) * SECTOR as u64);
        assert_eq!(counters.programmed_bytes, counters.received_bytes);
        assert_eq!(counters.pages_programmed, u64::from(sent) / 4);
        assert_eq!(counters.amplification(), 1.0);
        assert!(counters.padding_bytes > 0 && counters.erases > 300, "{counters:?}");
        let wear: u32 = media.device().report().iter().map(|info| info.wear).sum();
        assert_eq!(u64::from(wear), counters.erases);
    });
}

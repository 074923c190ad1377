//! One test for each fault: what it does, and what stays true all the same. And of all of them: they strike at their
//! rate, never without one, and a seed repeats them.

use std::cell::Cell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use terrane_ocssd::sim::{Fault, FaultRates, Injected};
use terrane_ocssd::{
    AlignedBuf, ChunkId, ChunkState, Durability, Geometry, Media, MediaError, Notice, NoticeKind, SimMedia,
    SimOptions,
};

use crate::{
    CHUNK, POLLS_MAX, SECTOR, block_on, cut, device, filled, flush, geometry, poll_once, reset, sectors,
    write,
};

/// A device that tracks write pointers.
fn tracking(seed: u64, mw_cunits: u32) -> SimMedia {
    let geometry = Geometry { mw_cunits, ..geometry() };
    SimMedia::new(geometry, SimOptions { seed, conventional: false, ..SimOptions::default() })
}

fn read(media: &SimMedia, chunk: ChunkId, sector: u32, count: usize) -> Result<Vec<u8>, MediaError> {
    let (result, buf) = block_on(media.read(chunk, sector, AlignedBuf::zeroed(count * SECTOR)));
    result.map(|()| buf.to_vec())
}

fn try_write(media: &SimMedia, sector: u32, sectors: usize, byte: u8) -> Result<(), MediaError> {
    block_on(media.write(CHUNK, sector, filled(sectors, byte), Durability::Durable)).0
}

fn state(media: &SimMedia) -> (ChunkState, u32) {
    let info = block_on(media.report()).unwrap()[CHUNK.0 as usize];
    (info.state, info.write_pointer)
}

fn struck(fault: Fault, sectors: impl Into<Option<(u32, u32)>>) -> Injected {
    Injected { fault, chunk: CHUNK, sectors: sectors.into() }
}

/// How the rate of one fault is set.
type Rate = fn(u32) -> FaultRates;

/// Every fault that has a rate.
const RATES: [(Fault, Rate); 16] = [
    (Fault::TornWrite, |rate| FaultRates { torn_write: rate, ..FaultRates::default() }),
    (Fault::LostWrite, |rate| FaultRates { lost_write: rate, ..FaultRates::default() }),
    (Fault::MisdirectedWrite, |rate| FaultRates { misdirected_write: rate, ..FaultRates::default() }),
    (Fault::CorruptedWrite, |rate| FaultRates { corrupted_write: rate, ..FaultRates::default() }),
    (Fault::FailedProgram, |rate| FaultRates { failed_program: rate, ..FaultRates::default() }),
    (Fault::EarlyClose, |rate| FaultRates { early_close: rate, ..FaultRates::default() }),
    (Fault::ReadError, |rate| FaultRates { read_error: rate, ..FaultRates::default() }),
    (Fault::LatentReadError, |rate| FaultRates { latent_read_error: rate, ..FaultRates::default() }),
    (Fault::CorruptedRead, |rate| FaultRates { corrupted_read: rate, ..FaultRates::default() }),
    (Fault::HighEcc, |rate| FaultRates { high_ecc: rate, ..FaultRates::default() }),
    (Fault::FailedFlush, |rate| FaultRates { failed_flush: rate, ..FaultRates::default() }),
    (Fault::FailedReset, |rate| FaultRates { failed_reset: rate, ..FaultRates::default() }),
    (Fault::Offline, |rate| FaultRates { offline: rate, ..FaultRates::default() }),
    (Fault::LatencySpike, |rate| FaultRates { latency_spike: rate, ..FaultRates::default() }),
    (Fault::Stall, |rate| FaultRates { stall: rate, ..FaultRates::default() }),
    (Fault::PowerCut, |rate| FaultRates { power_cut: rate, ..FaultRates::default() }),
];

/// Goes through a device's operations many times over, whatever fails. Returns all that the host was told, and the log.
fn ordeal(seed: u64, faults: FaultRates) -> (Vec<String>, Vec<Injected>) {
    let options = SimOptions { seed, conventional: false, faults, ..SimOptions::default() };
    let media = SimMedia::new(geometry(), options);
    let mut told = Vec::new();
    for round in 0..60u8 {
        let chunk = ChunkId(u32::from(round) % 4);
        told.push(format!("{:?}", block_on(media.reset(chunk))));
        for sector in 0..4 {
            let durability = if sector % 2 == 0 { Durability::Durable } else { Durability::Volatile };
            told.push(format!("{:?}", block_on(media.write(chunk, sector, filled(1, round), durability)).0));
        }
        told.push(format!("{:?}", block_on(media.flush())));
        for sector in 0..4 {
            told.push(format!("{:?}", read(&media, chunk, sector, 1)));
        }
        told.push(format!("{:?}", block_on(media.finish(chunk))));
        told.push(format!("{:?}", media.take_notices()));
        if !media.has_power() {
            media.power_on();
        }
        told.push(format!("{:?}", block_on(media.report())));
    }
    (told, media.take_fault_log())
}

/// Fails if a fault is drawn for at a rate of zero (the seeds of every user would change), or from elsewhere than the
/// seed.
#[test]
fn faults_strike_at_their_rate_and_a_seed_repeats_them() {
    let (unharmed, log) = ordeal(1, FaultRates::default());
    assert_eq!(log, []);
    assert!(unharmed.iter().all(|told| !told.contains("Err")));
    for (fault, rates) in RATES {
        assert_eq!(rates(7).of(fault), 7);
        let (told, log) = ordeal(1, rates(30_000));
        assert!(log.iter().any(|injected| injected.fault == fault), "{fault:?} never struck");
        let itself =
            |other: Fault| other == fault || (fault, other) == (Fault::MisdirectedWrite, Fault::Overwritten);
        assert!(log.iter().all(|injected| itself(injected.fault)), "{fault:?}: {log:?}");
        assert_eq!(ordeal(1, rates(30_000)), (told, log.clone()), "{fault:?} is not repeated");
        assert_ne!(ordeal(2, rates(30_000)).1, log, "{fault:?} does not depend on the seed");
        let (_, always) = ordeal(1, rates(1_000_000));
        assert!(always.len() > log.len() || matches!(fault, Fault::Offline | Fault::FailedReset));
    }
}

#[test]
fn rates_can_change_on_the_way() {
    let media = device(0);
    reset(&media);
    media.set_fault_rates(FaultRates { torn_write: 1_000_000, ..FaultRates::default() });
    assert!(try_write(&media, 0, 1, 1).is_err());
    cut(&media);
    reset(&media);
    assert!(try_write(&media, 0, 1, 1).is_err(), "a new life changes no rate");
    media.set_fault_rates(FaultRates::default());
    assert!(try_write(&media, 1, 1, 1).is_ok());
}

#[test]
fn a_conventional_device_cannot_behave_like_flash() {
    let conventional = SimOptions::default();
    let flash = SimOptions { conventional: false, ..SimOptions::default() };
    let hiding = Geometry { mw_cunits: 4, ..geometry() };
    assert!(conventional.validate(&geometry()).is_ok());
    assert!(conventional.validate(&hiding).is_err());
    assert!(flash.validate(&hiding).is_ok());
    for (fault, rates) in RATES {
        let with = |options: &SimOptions, rate| {
            SimOptions { faults: rates(rate), ..options.clone() }.validate(&geometry())
        };
        let only_flash = matches!(fault, Fault::FailedProgram | Fault::EarlyClose | Fault::HighEcc);
        assert_eq!(with(&conventional, 1).is_err(), only_flash, "{fault:?}");
        assert_eq!(with(&flash, 1_000_000), Ok(()));
        assert!(with(&flash, 1_000_001).is_err());
    }
}

#[test]
fn a_torn_write_fails_and_leaves_some_sectors() {
    let mut partly = false;
    for seed in 0..32 {
        let media = device(seed);
        reset(&media);
        media.fail_next_write();
        let result = try_write(&media, 0, 4, 1);
        assert!(matches!(result, Err(MediaError::Io { operation: "write", chunk: CHUNK, sector: 0, .. })));
        assert_eq!(media.take_fault_log(), [struck(Fault::TornWrite, (0, 4))]);
        let found = sectors(&media, 0, 4);
        partly |= found.contains(&1) && found.contains(&0);
        write(&media, 4, 1, 2, Durability::Durable);
        assert_eq!(sectors(&media, 4, 1), [2]);
    }
    assert!(partly);
}

#[test]
fn a_lost_write_is_acknowledged_and_never_there() {
    for durability in [Durability::Volatile, Durability::Durable] {
        for conventional in [true, false] {
            let options = SimOptions { conventional, ..SimOptions::default() };
            let media = SimMedia::new(geometry(), options);
            reset(&media);
            write(&media, 0, 2, 1, Durability::Durable);
            media.lose_next_write();
            write(&media, 2, 2, 2, durability);
            write(&media, 4, 2, 3, Durability::Durable);
            assert_eq!(sectors(&media, 0, 6), [1, 1, 0, 0, 3, 3]);
            flush(&media);
            cut(&media);
            assert_eq!(sectors(&media, 0, 6), [1, 1, 0, 0, 3, 3]);
            assert_eq!(media.take_fault_log(), [struck(Fault::LostWrite, (2, 2))]);
            if !conventional {
                assert_eq!(state(&media), (ChunkState::Open, 6), "the write pointer does not know of it");
            }
        }
    }
}

#[test]
fn a_misdirected_write_overwrites_another_place() {
    let (mut same, mut other, mut content) = (false, false, 0);
    for seed in 0..64 {
        let media = tracking(seed, 0);
        for chunk in 0..4 {
            block_on(media.write(ChunkId(chunk), 0, filled(8, 1), Durability::Durable)).0.unwrap();
        }
        media.misdirect_next_write();
        write(&media, 8, 2, 2, Durability::Durable);
        assert_eq!(sectors(&media, 8, 2), [0, 0]);
        let log = media.take_fault_log();
        let [astray, Injected { fault: Fault::Overwritten, chunk, sectors: Some((at, 2)) }] = log[..] else {
            panic!("{log:?}");
        };
        assert_eq!(astray, struck(Fault::MisdirectedWrite, (8, 2)));
        assert!(chunk != CHUNK || at + 2 <= 8 || at >= 10);
        same |= chunk == CHUNK;
        other |= chunk != CHUNK;
        cut(&media);
        // No write pointer moved, and nothing changed but the place in the log.
        for id in (0..4).map(ChunkId) {
            let end = if id == CHUNK { 10 } else { 8 };
            let info = block_on(media.report()).unwrap()[id.0 as usize];
            assert_eq!((info.state, info.write_pointer), (ChunkState::Open, end));
            let found = read(&media, id, 0, 8).unwrap();
            for (sector, bytes) in found.chunks(SECTOR).enumerate() {
                let hit = id == chunk && (at..at + 2).contains(&(sector as u32));
                assert!(bytes.iter().all(|byte| *byte == if hit { 2 } else { 1 }));
                content += usize::from(hit);
            }
        }
    }
    assert!(same && other && content > 0);
}

#[test]
fn there_may_be_no_other_place_for_a_write() {
    let geometry = Geometry { chunks: 1, ..geometry() };
    let media = SimMedia::new(geometry, SimOptions { conventional: false, ..SimOptions::default() });
    media.misdirect_next_write();
    block_on(media.write(ChunkId(0), 0, filled(16, 1), Durability::Durable)).0.unwrap();
    assert_eq!(read(&media, ChunkId(0), 0, 16).unwrap(), vec![0; 16 * SECTOR]);
    assert_eq!(media.take_fault_log().len(), 1);
}

#[test]
fn a_corrupted_write_has_one_bit_flipped_for_good() {
    let media = device(3);
    reset(&media);
    media.corrupt_next_write();
    write(&media, 0, 4, 0, Durability::Durable);
    let bits = |bytes: &[u8]| bytes.iter().map(|byte| byte.count_ones()).sum::<u32>();
    let found = read(&media, CHUNK, 0, 4).unwrap();
    assert_eq!(bits(&found), 1);
    let hit = found.chunks(SECTOR).position(|sector| bits(sector) == 1).unwrap() as u32;
    assert_eq!(media.take_fault_log(), [struck(Fault::CorruptedWrite, (hit, 1))]);
    cut(&media);
    assert_eq!(read(&media, CHUNK, 0, 4).unwrap(), found);
}

#[test]
fn a_failed_program_names_its_chunk_and_closes_it() {
    let mut places = std::collections::BTreeSet::new();
    for seed in 0..32 {
        let media = tracking(seed, 0);
        write(&media, 0, 2, 1, Durability::Durable);
        media.fail_next_program();
        let Err(MediaError::WriteFailed { chunk: CHUNK, sector }) = try_write(&media, 2, 4, 2) else {
            panic!("not a failed program");
        };
        assert!((2..6).contains(&sector));
        places.insert(sector);
        assert_eq!(media.take_fault_log(), [struck(Fault::FailedProgram, (sector, 16 - sector))]);
        assert_eq!(state(&media), (ChunkState::Closed, sector));
        let found = sectors(&media, 0, sector as usize);
        assert_eq!(found[..2], [1, 1]);
        assert!(found[2..].iter().all(|byte| *byte == 2));
        assert!(matches!(read(&media, CHUNK, sector, 1), Err(MediaError::Rule { .. })));
        // Even to a host that has not heard of it, it is no broken rule.
        let again = try_write(&media, 6, 1, 3);
        assert!(matches!(again, Err(MediaError::WriteFailed { sector: same, .. }) if same == sector));
        cut(&media);
        assert_eq!(state(&media).0, ChunkState::Closed);
        assert_eq!(sectors(&media, 0, 2), [1, 1]);
        reset(&media);
        write(&media, 0, 1, 4, Durability::Durable);
    }
    assert_eq!(places.len(), 4);
}

/// What was acknowledged and is hidden from reads was not programmed, so a failed program may take it; no more.
#[test]
fn a_failed_program_may_take_what_was_not_programmed_yet() {
    let ends = |protected_buffer| -> std::collections::BTreeSet<u32> {
        let run = |seed| {
            let geometry = Geometry { mw_cunits: 3, ..geometry() };
            let options = SimOptions { seed, conventional: false, protected_buffer, ..SimOptions::default() };
            let media = SimMedia::new(geometry, options);
            write(&media, 0, 6, 1, Durability::Durable);
            flush(&media);
            media.fail_next_program();
            let Err(MediaError::WriteFailed { sector, .. }) = try_write(&media, 6, 2, 2) else {
                panic!("not a failed program");
            };
            assert_eq!(sectors(&media, 0, sector as usize), [1, 1, 1, 1, 1, 1, 2, 2][..sector as usize]);
            flush(&media);
            cut(&media);
            assert_eq!(state(&media), (ChunkState::Closed, sector));
            assert_eq!(sectors(&media, 0, sector as usize), [1, 1, 1, 1, 1, 1, 2, 2][..sector as usize]);
            sector
        };
        (0..64).map(run).collect()
    };
    assert_eq!(ends(false), (3..8).collect());
    assert_eq!(ends(true), (6..8).collect());
}

/// Fails if a write behind the failed one is acknowledged: it would be lost above the chunk's end.
#[test]
fn a_failed_program_fails_the_writes_behind_it() {
    for seed in 0..64 {
        let geometry = Geometry { max_open: 1, ..geometry() };
        let options = SimOptions { seed, conventional: false, yields_max: 9, ..SimOptions::default() };
        let media = SimMedia::new(geometry, options);
        let mut writes: Vec<_> = (0..4)
            .map(|at| Box::pin(media.write(CHUNK, at * 2, filled(2, 1), Durability::Durable)))
            .collect();
        let mut results: Vec<Option<Result<(), MediaError>>> = writes.iter().map(|_| None).collect();
        for (at, write) in writes.iter_mut().enumerate() {
            if at == 1 {
                media.fail_next_program();
            }
            if let Poll::Ready((result, _)) = poll_once(write.as_mut()) {
                results[at] = Some(result);
            }
        }
        // The last first, so that it would be the first to be acknowledged.
        for (write, result) in writes.into_iter().zip(&mut results).rev() {
            if result.is_none() {
                *result = Some(block_on(write).0);
            }
        }
        let results: Vec<_> = results.into_iter().flatten().collect();
        assert!(results[0].is_ok());
        for result in &results[1..] {
            assert!(matches!(result, Err(MediaError::WriteFailed { sector: 2 | 3, .. })), "{result:?}");
        }
        assert_eq!(sectors(&media, 0, 2), [1, 1]);
        // It counts as open no longer.
        block_on(media.write(ChunkId(2), 0, filled(1, 1), Durability::Durable)).0.unwrap();
    }
}

#[test]
fn an_early_close_takes_nothing_of_the_write() {
    for mw_cunits in [0, 4] {
        let media = tracking(1, mw_cunits);
        write(&media, 0, 6, 1, Durability::Durable);
        media.close_early_at_next_write();
        let result = try_write(&media, 6, 4, 2);
        assert!(matches!(result, Err(MediaError::ClosedEarly { chunk: CHUNK, write_pointer: 6 })));
        assert_eq!(media.take_fault_log(), [struck(Fault::EarlyClose, (6, 10))]);
        assert_eq!(state(&media), (ChunkState::Closed, 6));
        assert_eq!(sectors(&media, 0, 6), [1; 6], "a closed chunk hides nothing");
        assert!(matches!(try_write(&media, 6, 1, 3), Err(MediaError::ClosedEarly { .. })));
        flush(&media);
        cut(&media);
        assert_eq!(state(&media), (ChunkState::Closed, 6));
        assert_eq!(sectors(&media, 0, 6), [1; 6]);
        reset(&media);
        write(&media, 0, 1, 4, Durability::Durable);
    }
}

/// The device is cut off, or its host dies, before it could say that the chunk failed.
#[test]
fn a_failure_that_nobody_heard_of_is_there_all_the_same() {
    for seed in 0..32 {
        for restart in [true, false] {
            let options = SimOptions { seed, conventional: false, yields_max: 9, ..SimOptions::default() };
            let media = SimMedia::new(geometry(), options);
            write(&media, 0, 2, 1, Durability::Durable);
            media.close_early_at_next_write();
            let mut writing = Box::pin(media.write(CHUNK, 2, filled(2, 2), Durability::Durable));
            let heard = poll_once(writing.as_mut()).is_ready();
            drop(writing);
            if heard {
                continue;
            }
            if restart {
                media.restart();
            } else {
                cut(&media);
            }
            assert_eq!(media.take_fault_log(), [struck(Fault::EarlyClose, (2, 14))]);
            assert_eq!(state(&media), (ChunkState::Closed, 2));
            assert_eq!(sectors(&media, 0, 2), [1, 1]);
        }
    }
}

#[test]
fn a_read_error_passes() {
    for media in [device(0), tracking(0, 0)] {
        reset(&media);
        write(&media, 0, 2, 1, Durability::Durable);
        media.fail_next_read();
        assert!(matches!(read(&media, CHUNK, 0, 2), Err(MediaError::Io { operation: "read", .. })));
        assert_eq!(sectors(&media, 0, 2), [1, 1]);
        assert_eq!(media.take_fault_log(), [struck(Fault::ReadError, (0, 2))]);
    }
}

#[test]
fn a_latent_read_error_lasts_until_the_reset() {
    for conventional in [true, false] {
        let media = SimMedia::new(geometry(), SimOptions { conventional, ..SimOptions::default() });
        reset(&media);
        write(&media, 0, 8, 1, Durability::Durable);
        media.set_fault_rates(FaultRates { latent_read_error: 1_000_000, ..FaultRates::default() });
        assert!(read(&media, CHUNK, 0, 8).is_err());
        media.set_fault_rates(FaultRates::default());
        let log = media.take_fault_log();
        let [Injected { fault: Fault::LatentReadError, chunk: CHUNK, sectors: Some((bad, 1)) }] = log[..]
        else {
            panic!("{log:?}");
        };
        for _ in 0..2 {
            match read(&media, CHUNK, 0, 8) {
                Err(MediaError::Io { sector, .. }) if conventional => assert_eq!(sector, bad),
                Err(MediaError::Unreadable { chunk: CHUNK, sector }) if !conventional => {
                    assert_eq!(sector, bad);
                }
                other => panic!("{other:?}"),
            }
            for sector in (0..8).filter(|sector| *sector != bad) {
                assert_eq!(sectors(&media, sector, 1), [1]);
            }
            cut(&media);
        }
        reset(&media);
        write(&media, 0, 8, 2, Durability::Durable);
        assert_eq!(sectors(&media, 0, 8), [2; 8]);
    }
}

#[test]
fn a_corrupted_read_is_wrong_once() {
    let media = device(0);
    reset(&media);
    write(&media, 0, 4, 0, Durability::Durable);
    media.corrupt_next_read();
    let found = read(&media, CHUNK, 0, 4).unwrap();
    assert_eq!(found.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
    assert_eq!(sectors(&media, 0, 4), [0; 4]);
    assert!(matches!(media.take_fault_log()[..], [Injected { fault: Fault::CorruptedRead, .. }]));
}

#[test]
fn high_ecc_is_a_notice_and_the_data_are_good() {
    let media = tracking(0, 0);
    write(&media, 0, 4, 1, Durability::Durable);
    media.weaken_next_read();
    assert_eq!(sectors(&media, 1, 2), [1, 1]);
    let notice = Notice { chunk: CHUNK, sectors: Some((1, 2)), kind: NoticeKind::EccHigh };
    assert_eq!(media.take_notices(), [notice]);
    assert_eq!(media.take_notices(), []);
    assert_eq!(sectors(&media, 1, 2), [1, 1]);
    assert_eq!(media.take_notices(), []);
}

#[test]
fn a_failed_reset_takes_the_chunk_offline() {
    for media in [device(0), tracking(0, 0)] {
        media.fail_next_reset();
        assert!(matches!(block_on(media.reset(CHUNK)), Err(MediaError::Offline { chunk: CHUNK })));
        assert_eq!(media.take_fault_log(), [struck(Fault::FailedReset, None)]);
        let notice = Notice { chunk: CHUNK, sectors: None, kind: NoticeKind::Offline };
        assert_eq!(media.take_notices(), [notice]);
        assert_eq!(state(&media).0, ChunkState::Offline);
        cut(&media);
        assert_eq!(state(&media).0, ChunkState::Offline);
        assert!(matches!(try_write(&media, 0, 1, 1), Err(MediaError::Offline { .. })));
        block_on(media.reset(ChunkId(2))).unwrap();
    }
}

/// Fails if an operation that was in flight is acknowledged, or brings its chunk back.
#[test]
fn a_chunk_that_goes_offline_takes_what_is_in_flight_with_it() {
    let options = SimOptions { yields_max: 9, seed: 5, ..SimOptions::default() };
    let media = SimMedia::new(geometry(), options);
    let offline = |chunk, result: Result<(), MediaError>| {
        assert!(matches!(result, Err(MediaError::Offline { chunk: same }) if same == ChunkId(chunk)));
    };
    for chunk in 0..3 {
        block_on(media.reset(ChunkId(chunk))).unwrap();
    }
    block_on(media.write(ChunkId(1), 0, filled(2, 1), Durability::Durable)).0.unwrap();
    let mut writing = pin!(media.write(ChunkId(0), 0, filled(1, 1), Durability::Durable));
    let mut reading = pin!(media.read(ChunkId(1), 0, AlignedBuf::zeroed(SECTOR)));
    let mut resetting = pin!(media.reset(ChunkId(2)));
    assert!(poll_once(writing.as_mut()).is_pending());
    assert!(poll_once(reading.as_mut()).is_pending());
    assert!(poll_once(resetting.as_mut()).is_pending());
    for chunk in 0..3 {
        media.take_offline(ChunkId(chunk));
        media.take_offline(ChunkId(chunk));
    }
    offline(0, block_on(writing).0);
    offline(1, block_on(reading).0);
    offline(2, block_on(resetting));
    let report = block_on(media.report()).unwrap();
    assert!(report[..3].iter().all(|info| info.state == ChunkState::Offline));
    assert_eq!(media.take_notices().len(), 3, "each goes offline once");
    assert_eq!(report[3].state, ChunkState::Closed);
}

/// Fails if a reset that a failed flush forgot happens after all, over what was made durable since.
#[test]
fn a_failed_flush_does_not_undo_what_came_after_it() {
    for seed in 0..32 {
        for conventional in [true, false] {
            let options = SimOptions { seed, conventional, stale: false, ..SimOptions::default() };
            let media = SimMedia::new(geometry(), options);
            reset(&media);
            media.fail_next_flush();
            assert!(block_on(media.flush()).is_err());
            write(&media, 0, 2, 1, Durability::Volatile);
            flush(&media);
            cut(&media);
            assert_eq!(sectors(&media, 0, 2), [1, 1]);
        }
    }
}

/// Fails if a flush that began while a finish was on its way, and failed, is held against that finish.
#[test]
fn a_failed_flush_forgets_only_what_had_completed() {
    for seed in 0..32 {
        let options = SimOptions { seed, conventional: false, yields_max: 9, ..SimOptions::default() };
        let media = SimMedia::new(geometry(), options);
        write(&media, 0, 2, 1, Durability::Durable);
        let mut finishing = pin!(media.finish(CHUNK));
        if poll_once(finishing.as_mut()).is_ready() {
            continue;
        }
        media.fail_next_flush();
        assert!(block_on(media.flush()).is_err());
        block_on(finishing).unwrap();
        flush(&media);
        cut(&media);
        assert_eq!(state(&media), (ChunkState::Closed, 2));
    }
}

/// Polls of one operation until it completes.
fn polls<T>(future: impl Future<Output = T>) -> u32 {
    let mut future = pin!(future);
    (0..POLLS_MAX).find(|_| poll_once(future.as_mut()).is_ready()).expect("it completes")
}

#[test]
fn a_spike_multiplies_the_time_of_one_operation() {
    let media = device(0);
    reset(&media);
    assert_eq!(polls(media.write(CHUNK, 0, filled(1, 1), Durability::Durable)), 0);
    media.slow_next_operation();
    assert!((4..=32).contains(&polls(media.write(CHUNK, 1, filled(1, 2), Durability::Durable))));
    assert_eq!(polls(media.write(CHUNK, 2, filled(1, 3), Durability::Durable)), 0);
    assert_eq!(sectors(&media, 0, 3), [1, 2, 3]);
}

#[test]
fn a_stall_holds_every_operation() {
    let media = device(0);
    reset(&media);
    media.stall_at_next_operation();
    let mut first = Box::pin(media.write(CHUNK, 0, filled(1, 1), Durability::Durable));
    let mut second = Box::pin(media.write(CHUNK, 1, filled(1, 2), Durability::Durable));
    for _ in 0..20 {
        assert!(poll_once(first.as_mut()).is_pending());
        assert!(poll_once(second.as_mut()).is_pending());
    }
    block_on(second).0.unwrap();
    // It is over for all of them.
    assert!(poll_once(first.as_mut()).is_ready());
    assert_eq!(polls(media.flush()), 0);
    assert_eq!(sectors(&media, 0, 2), [1, 2]);
}

/// Fails if only the operation at which the stall began can end it: a host may leave that one alone.
#[test]
fn a_stall_ends_without_the_operation_at_which_it_began() {
    for forgotten in [true, false] {
        let media = device(0);
        reset(&media);
        media.stall_at_next_operation();
        let mut first = Box::pin(media.read(CHUNK, 0, AlignedBuf::zeroed(SECTOR)));
        let _ = poll_once(first.as_mut());
        let kept = (!forgotten).then_some(first);
        flush(&media);
        drop(kept);
    }
}

/// A virtual clock: each delay passes after as many polls as it is long.
#[test]
fn spikes_and_stalls_stretch_the_delay() {
    struct Passing(Rc<Cell<u32>>);
    impl Future for Passing {
        type Output = ();
        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
            self.0.set(self.0.get() + 1);
            Poll::Ready(())
        }
    }
    let passed = Rc::new(Cell::new(0));
    let clock = Rc::clone(&passed);
    let delay = move |_, _| -> Pin<Box<dyn Future<Output = ()>>> { Box::pin(Passing(Rc::clone(&clock))) };
    let media =
        SimMedia::new(geometry(), SimOptions { delay: Some(Rc::new(delay)), ..SimOptions::default() });
    flush(&media);
    assert_eq!(passed.take(), 1);
    media.slow_next_operation();
    flush(&media);
    assert!((4..=32).contains(&passed.take()));
    media.stall_at_next_operation();
    flush(&media);
    assert_eq!(passed.take(), 101);
    flush(&media);
    assert_eq!(passed.take(), 1);
}

#[test]
fn power_goes_by_chance_at_any_operation() {
    let faults = FaultRates { power_cut: 1_000_000, ..FaultRates::default() };
    let media = SimMedia::new(geometry(), SimOptions { faults, ..SimOptions::default() });
    assert!(matches!(block_on(media.flush()), Err(MediaError::PowerLost)));
    assert!(!media.has_power());
    media.power_on();
    assert!(matches!(block_on(media.reset(CHUNK)), Err(MediaError::PowerLost)));
}

/// The last sectors of an open chunk are lost although they were flushed and durable; what is left below the write
/// pointer is good.
#[test]
fn a_cut_takes_what_was_not_programmed_yet() {
    let mut pointers = std::collections::BTreeSet::new();
    for seed in 0..64 {
        let media = tracking(seed, 3);
        write(&media, 0, 4, 1, Durability::Volatile);
        write(&media, 4, 4, 2, Durability::Durable);
        flush(&media);
        cut(&media);
        let (state, pointer) = state(&media);
        assert_eq!(state, ChunkState::Open);
        assert!((5..=8).contains(&pointer));
        pointers.insert(pointer);
        block_on(media.finish(CHUNK)).unwrap();
        assert_eq!(sectors(&media, 0, pointer as usize), [1, 1, 1, 1, 2, 2, 2, 2][..pointer as usize]);
    }
    assert_eq!(pointers, (5..=8).collect());
}

#[test]
fn what_was_written_behind_or_finished_survives_a_cut() {
    for seed in 0..64 {
        let behind = tracking(seed, 3);
        write(&behind, 0, 4, 1, Durability::Durable);
        write(&behind, 4, 3, 2, Durability::Volatile);
        flush(&behind);
        cut(&behind);
        assert!(state(&behind).1 >= 4);
        let finished = tracking(seed, 3);
        write(&finished, 0, 4, 1, Durability::Durable);
        block_on(finished.finish(CHUNK)).unwrap();
        flush(&finished);
        cut(&finished);
        assert_eq!(state(&finished), (ChunkState::Closed, 4));
        assert_eq!(sectors(&finished, 0, 4), [1; 4]);
        let full = tracking(seed, 3);
        write(&full, 0, 16, 1, Durability::Durable);
        cut(&full);
        assert_eq!(state(&full), (ChunkState::Closed, 16));
        assert_eq!(sectors(&full, 0, 16), [1; 16]);
    }
}

#[test]
fn a_protected_buffer_survives_a_cut() {
    let geometry = Geometry { mw_cunits: 3, ..geometry() };
    assert!(!tracking(0, 3).protects_buffer());
    assert!(tracking(0, 0).protects_buffer());
    for seed in 0..64 {
        let options =
            SimOptions { seed, conventional: false, protected_buffer: true, ..SimOptions::default() };
        let media = SimMedia::new(geometry, options);
        assert!(media.protects_buffer());
        write(&media, 0, 2, 1, Durability::Volatile);
        flush(&media);
        write(&media, 2, 2, 2, Durability::Durable);
        assert!(matches!(read(&media, CHUNK, 0, 2), Err(MediaError::Rule { .. })), "hidden all the same");
        cut(&media);
        assert_eq!(state(&media), (ChunkState::Open, 4));
        block_on(media.finish(CHUNK)).unwrap();
        assert_eq!(sectors(&media, 0, 4), [1, 1, 2, 2]);
    }
}

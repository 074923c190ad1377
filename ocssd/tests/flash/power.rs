//! Power cuts and restarts, for many seeds and at any operation; lives of handles; replay.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::task::Poll;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use terrane_ocssd::flash::{Endurance, WearOdds};
use terrane_ocssd::{
    AlignedBuf, ChunkId, ChunkState, Durability, FlashMedia, FlashOptions, Media, MediaError,
};

use crate::harness::{
    SECTOR, block_on, filled, finish, flush, for_seeds, options, plain, read, reset, state, whole, write,
};

fn cut(media: &FlashMedia) {
    media.power_cut();
    media.power_on();
}

/// Write pointers after a cut, over many seeds.
fn pointers(options: &FlashOptions, prepare: impl Fn(&FlashMedia)) -> BTreeSet<u32> {
    (0..64)
        .map(|seed| {
            let media = whole(FlashOptions { seed, ..options.clone() });
            prepare(&media);
            cut(&media);
            let (_, pointer) = state(&media, 1);
            if pointer > 0 {
                // An open chunk still hides its last sectors, until it is closed.
                if pointer < 32 {
                    finish(&media, 1).unwrap();
                }
                assert_eq!(read(&media, 1, 0, pointer).unwrap(), vec![1; pointer as usize]);
            }
            pointer
        })
        .collect()
}

/// Fails if a cut takes sectors one by one, or what was durable.
#[test]
fn a_cut_takes_whole_units_from_the_end() {
    let written = |media: &FlashMedia| write(media, 1, 0, 16, 1).unwrap();
    assert_eq!(pointers(&plain(), written), BTreeSet::from([0, 4, 8, 12, 16]));
    let flushed = |media: &FlashMedia| {
        write(media, 1, 0, 8, 1).unwrap();
        flush(media);
        write(media, 1, 8, 8, 1).unwrap();
    };
    assert_eq!(pointers(&plain(), flushed), BTreeSet::from([8, 12, 16]));
}

/// Fails if a flush counts for what the buffer of an open chunk holds.
#[test]
fn an_unprotected_buffer_loses_what_a_flush_covered() {
    let flushed = |media: &FlashMedia| {
        write(media, 1, 0, 16, 1).unwrap();
        flush(media);
    };
    assert_eq!(pointers(&options(), flushed), BTreeSet::from([8, 12, 16]), "mw_cunits is 8");
    let protected = FlashOptions { protected_buffer: true, ..options() };
    assert_eq!(pointers(&protected, flushed), BTreeSet::from([16]));
    assert!(whole(protected).protects_buffer());
    assert!(!whole(options()).protects_buffer());
    assert!(whole(plain()).protects_buffer(), "there is nothing to lose");
}

#[test]
fn closing_a_chunk_and_a_flush_save_all_of_it() {
    let finished = |media: &FlashMedia| {
        write(media, 1, 0, 16, 1).unwrap();
        finish(media, 1).unwrap();
    };
    let kept = |flushed: bool| {
        (0..64).all(|seed| {
            let media = whole(FlashOptions { seed, ..options() });
            finished(&media);
            if flushed {
                flush(&media);
            }
            cut(&media);
            state(&media, 1) == (ChunkState::Closed, 32)
        })
    };
    assert!(kept(true));
    assert!(!kept(false), "without the flush nothing is promised");
}

#[test]
fn a_durable_write_saves_what_is_below_it() {
    let durable = |media: &FlashMedia| {
        write(media, 1, 0, 8, 1).unwrap();
        block_on(media.write(ChunkId(1), 8, filled(4, 1), Durability::Durable)).0.unwrap();
        write(media, 1, 12, 4, 1).unwrap();
    };
    assert_eq!(pointers(&plain(), durable), BTreeSet::from([12, 16]));
    // The last 8 below what was written by then are still in the buffer.
    assert_eq!(pointers(&options(), durable), BTreeSet::from([4, 8, 12, 16]));
}

/// Fails if a flush counts for what was written after it began, in a later life of the chunk.
#[test]
fn a_flush_covers_what_was_there_when_it_began() {
    let mut left = BTreeSet::new();
    for seed in 0..64 {
        let media = whole(FlashOptions { seed, yields_max: 200, ..plain() });
        write(&media, 1, 0, 16, 1).unwrap();
        let other = media.clone();
        let mut late = Box::pin(other.flush());
        if block_on(poll_fn(|context| Poll::Ready(late.as_mut().poll(context).is_ready()))) {
            continue;
        }
        reset(&media, 1).unwrap();
        write(&media, 1, 0, 16, 2).unwrap();
        block_on(late).unwrap();
        cut(&media);
        left.insert(state(&media, 1).1);
    }
    assert_eq!(left, BTreeSet::from([0, 4, 8, 12, 16]));
}

#[test]
fn a_flush_is_of_its_own_slice() {
    let lost = (0..64).any(|seed| {
        let device = crate::harness::device(FlashOptions { seed, ..plain() });
        let (first, second) = (device.slice(0, 2).unwrap(), device.slice(1, 2).unwrap());
        write(&first, 1, 0, 16, 1).unwrap();
        write(&second, 1, 0, 16, 1).unwrap();
        flush(&second);
        second.power_on();
        assert_eq!(state(&second, 1).1, 16);
        device.report()[1].write_pointer < 16
    });
    assert!(lost);
}

#[test]
fn a_reset_under_way_was_done_or_not() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..64 {
        let media = whole(FlashOptions { seed, yields_max: 20, ..plain() });
        write(&media, 0, 0, 32, 1).unwrap();
        flush(&media);
        let other = media.clone();
        let mut erase = Box::pin(other.reset(ChunkId(0)));
        let done = block_on(poll_fn(|context| Poll::Ready(erase.as_mut().poll(context).is_ready())));
        cut(&media);
        let now = state(&media, 0);
        assert!(!done || now == (ChunkState::Free, 0));
        if now.0 == ChunkState::Closed {
            assert_eq!(read(&media, 0, 0, 32).unwrap(), [1; 32]);
        } else {
            assert_eq!(now, (ChunkState::Free, 0));
            write(&media, 0, 0, 4, 2).unwrap();
        }
        assert!(done || matches!(block_on(erase), Err(MediaError::PowerLost)));
        outcomes.insert(now.1);
    }
    assert_eq!(outcomes, BTreeSet::from([0, 32]));
}

#[test]
fn a_restart_loses_nothing_that_reached_the_device() {
    let media = whole(FlashOptions { yields_max: 50, seed: 3, ..options() });
    write(&media, 0, 0, 8, 1).unwrap();
    let old = media.clone();
    let mut late = Box::pin(old.write(ChunkId(0), 8, filled(8, 2), Durability::Volatile));
    assert!(block_on(poll_fn(|context| Poll::Ready(late.as_mut().poll(context).is_pending()))));
    media.restart();
    assert_eq!(state(&media, 0), (ChunkState::Open, 16));
    assert_eq!(read(&media, 0, 0, 8).unwrap(), [1; 8]);
    assert!(read(&media, 0, 8, 1).is_err(), "still in the buffer");
    assert!(matches!(block_on(late).0, Err(MediaError::PowerLost)));
    write(&media, 0, 16, 8, 3).unwrap();
    assert_eq!(read(&media, 0, 8, 8).unwrap(), [2; 8]);
    // And all of it is still volatile.
    let lost = (0..64).any(|seed| {
        let media = whole(FlashOptions { seed, ..plain() });
        write(&media, 0, 0, 8, 1).unwrap();
        media.restart();
        cut(&media);
        state(&media, 0).1 < 8
    });
    assert!(lost);
}

#[test]
fn handles_of_an_earlier_life_do_nothing() {
    let media = whole(options());
    let device = media.device();
    let zombie = media.clone();
    media.power_cut();
    assert!(matches!(write(&media, 0, 0, 4, 1), Err(MediaError::PowerLost)));
    assert!(device.slice(0, 1).is_err(), "there is no power");
    media.power_on();
    write(&media, 0, 0, 4, 1).unwrap();
    assert!(matches!(write(&zombie, 0, 4, 4, 1), Err(MediaError::PowerLost)));
    assert!(matches!(reset(&zombie, 0), Err(MediaError::PowerLost)));
    assert!(block_on(zombie.report()).is_err());
    assert_eq!(state(&media, 0), (ChunkState::Open, 4));
    assert_eq!(media.counters().writes, 1, "counters begin anew");
    // A zombie gives nothing back that is not its own any more.
    drop(zombie);
    assert!(device.slice(0, 1).is_err());
    device.restart();
    let next = device.slice(0, 1).unwrap();
    assert!(matches!(write(&media, 0, 4, 4, 1), Err(MediaError::PowerLost)));
    write(&next, 0, 4, 4, 1).unwrap();
}

#[test]
fn power_goes_at_the_operation_asked_for() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..32 {
        let media = whole(FlashOptions { seed, ..plain() });
        media.crash_after(3);
        write(&media, 0, 0, 4, 1).unwrap();
        assert!(write(&media, 0, 0, 4, 1).is_err(), "one that breaks a rule does not count");
        flush(&media);
        assert!(media.has_power());
        assert!(matches!(write(&media, 0, 4, 4, 1), Err(MediaError::PowerLost)));
        assert!(!media.has_power());
        assert_eq!(media.operations(), 3);
        media.power_on();
        outcomes.insert(state(&media, 0).1);
        write(&media, 1, 0, 4, 1).unwrap();
    }
    assert_eq!(outcomes, BTreeSet::from([4, 8]), "before it, or in the middle");
}

/// What a host may rely on in each chunk.
#[derive(Debug, Clone, Default)]
struct Model {
    /// Byte of each unit that was sent in the present life of the chunk.
    sent: Vec<u8>,
    /// Units that are safe, and those that were acknowledged.
    durable: usize,
    acknowledged: usize,
    /// A reset was sent, and not answered.
    resetting: bool,
}

/// Random operations, and a cut at any of them, many times over on one device.
#[test]
fn no_cut_takes_what_is_durable() {
    for_seeds(300, "no_cut_takes_what_is_durable", |seed| {
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        let odds = WearOdds { fresh: 0.002, worn: 0.1 };
        let endurance =
            Endurance { erases_mean: 60, variation: 0.2, program_failure: odds, early_close: odds };
        let base = if rng.random_bool(0.5) { options() } else { plain() };
        let protected_buffer = rng.random_bool(0.5);
        let media = whole(FlashOptions { seed, endurance, protected_buffer, yields_max: 3, ..base });
        let hidden = if protected_buffer { 0 } else { media.geometry().mw_cunits as usize / 4 };
        let mut models: BTreeMap<u32, Model> = (0..16).map(|chunk| (chunk, Model::default())).collect();
        for _ in 0..6 {
            media.crash_after(rng.random_range(1..120));
            while media.has_power() {
                step(&media, &mut rng, &mut models, hidden);
            }
            media.power_on();
            recover(&media, &mut models);
        }
    });
}

fn step(media: &FlashMedia, rng: &mut Pcg64Mcg, models: &mut BTreeMap<u32, Model>, hidden: usize) {
    let chunk = rng.random_range(0..16);
    let Ok(report) = block_on(media.report()) else {
        return;
    };
    let info = report[chunk as usize];
    let model = models.get_mut(&chunk).unwrap();
    match (info.state, rng.random_range(0..10)) {
        (ChunkState::Free | ChunkState::Open, 0..7) => {
            let at = info.write_pointer;
            let units = rng.random_range(1..=(32 - at) / 4);
            let byte = rng.random();
            let durable = rng.random_bool(0.2);
            let durability = if durable { Durability::Durable } else { Durability::Volatile };
            model.sent.truncate(at as usize / 4);
            model.sent.extend(vec![byte; units as usize]);
            match block_on(media.write(ChunkId(chunk), at, filled(4 * units, byte), durability)).0 {
                Ok(()) => {
                    model.acknowledged = model.sent.len();
                    if durable {
                        let held = if model.sent.len() == 8 { 0 } else { hidden };
                        model.durable = model.durable.max(model.sent.len().saturating_sub(held));
                    }
                }
                Err(MediaError::PowerLost) => {}
                Err(
                    MediaError::WriteFailed { sector: end, .. }
                    | MediaError::ClosedEarly { write_pointer: end, .. },
                ) => {
                    model.sent.truncate(end as usize / 4);
                    model.acknowledged = model.sent.len();
                }
                Err(other) => panic!("{other}"),
            }
        }
        (ChunkState::Free | ChunkState::Open, 7) => burst(media, rng, chunk, info.write_pointer, model),
        (ChunkState::Closed, 0..3) => {
            model.resetting = true;
            match block_on(media.reset(ChunkId(chunk))) {
                Ok(()) | Err(MediaError::Offline { .. }) => *model = Model::default(),
                Err(MediaError::PowerLost) => {}
                Err(other) => panic!("{other}"),
            }
        }
        (_, 9) if block_on(media.flush()).is_ok() => {
            for (chunk, model) in models {
                let closed = report[*chunk as usize].state == ChunkState::Closed;
                let held = if closed { 0 } else { hidden };
                model.durable = model.durable.max(model.acknowledged.saturating_sub(held));
            }
        }
        _ => {}
    }
}

/// Several writes of one chunk at once, each of one unit, so that a cut meets some in flight.
fn burst(media: &FlashMedia, rng: &mut Pcg64Mcg, chunk: u32, from: u32, model: &mut Model) {
    let count = rng.random_range(1..=4).min((32 - from) / 4);
    model.sent.truncate(from as usize / 4);
    let mut writes = Vec::new();
    for at in 0..count {
        let byte = rng.random();
        model.sent.push(byte);
        writes.push(Box::pin(media.write(
            ChunkId(chunk),
            from + 4 * at,
            filled(4, byte),
            Durability::Volatile,
        )));
    }
    let mut ended: Vec<Option<Result<(), MediaError>>> = (0..count).map(|_| None).collect();
    block_on(poll_fn(|context| {
        for (write, ended) in writes.iter_mut().zip(&mut ended) {
            if ended.is_none()
                && let Poll::Ready((result, _)) = write.as_mut().poll(context)
            {
                *ended = Some(result);
            }
        }
        if ended.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    }));
    for result in ended.into_iter().flatten() {
        match result {
            Ok(()) => model.acknowledged += 1,
            Err(MediaError::PowerLost) => return,
            Err(
                MediaError::WriteFailed { sector: end, .. }
                | MediaError::ClosedEarly { write_pointer: end, .. },
            ) => {
                model.sent.truncate(end as usize / 4);
                assert_eq!(model.acknowledged, model.sent.len(), "all before the failed one are there");
            }
            Err(other) => panic!("{other}"),
        }
    }
}

fn recover(media: &FlashMedia, models: &mut BTreeMap<u32, Model>) {
    let report = block_on(media.report()).unwrap();
    for (chunk, model) in models {
        let info = report[*chunk as usize];
        if info.state == ChunkState::Offline {
            *model = Model::default();
            continue;
        }
        if model.resetting && info.write_pointer == 0 {
            *model = Model::default();
        }
        model.resetting = false;
        let units = info.write_pointer as usize / 4;
        assert!(info.write_pointer.is_multiple_of(4));
        assert!(units >= model.durable, "chunk {chunk}: {units} units are left of {model:?}");
        assert!(units <= model.sent.len(), "chunk {chunk}: {units} units are more than {model:?}");
        model.sent.truncate(units);
        model.acknowledged = units;
        model.durable = units;
        let readable = match info.state {
            ChunkState::Closed => units as u32,
            _ => info.write_pointer.saturating_sub(media.geometry().mw_cunits) / 4,
        };
        if readable > 0 {
            let found = read(media, *chunk, 0, 4 * readable).unwrap();
            let expected: Vec<u8> =
                model.sent[..readable as usize].iter().flat_map(|byte| [*byte; 4]).collect();
            assert_eq!(found, expected, "chunk {chunk}");
        }
    }
}

/// Everything that a workload with all chances sees, in one number.
fn trace(seed: u64, workload: u64) -> u32 {
    let odds = WearOdds { fresh: 0.01, worn: 0.2 };
    let endurance = Endurance { erases_mean: 30, variation: 0.3, program_failure: odds, early_close: odds };
    let media = whole(FlashOptions {
        seed,
        endurance,
        bad_at_birth: 0.1,
        ecc_page_reads: 50,
        wear_threshold: 20,
        yields_max: 3,
        ..options()
    });
    let mut rng = Pcg64Mcg::seed_from_u64(workload);
    let mut seen = String::new();
    for _ in 0..600 {
        let chunk = rng.random_range(0..16);
        let pointer = media.device().report()[chunk as usize].write_pointer;
        let result = match rng.random_range(0..12) {
            0..6 => write(&media, chunk, pointer, 4, rng.random()).map(|()| Vec::new()),
            6..9 => read(&media, chunk, rng.random_range(0..32), 1),
            9 => reset(&media, chunk).map(|()| Vec::new()),
            10 => block_on(media.flush()).map(|()| Vec::new()),
            _ => {
                if rng.random_bool(0.2) {
                    cut(&media);
                }
                Ok(Vec::new())
            }
        };
        seen += &format!("{result:?} {:?}\n", media.take_notices());
    }
    seen += &format!("{:?} {:?}", media.device().report(), media.device().counters());
    let mut sum = AlignedBuf::zeroed(seen.len().next_multiple_of(SECTOR));
    sum[..seen.len()].copy_from_slice(seen.as_bytes());
    crc32c::crc32c(&sum)
}

#[test]
fn a_seed_repeats_a_device() {
    let traces: BTreeSet<u32> = (0..8)
        .map(|seed| {
            let once = trace(seed, 99);
            assert_eq!(trace(seed, 99), once);
            once
        })
        .collect();
    assert_eq!(traces.len(), 8, "another seed is another device");
}

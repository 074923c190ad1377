//! Writes that fail, chunks that close or go, sectors that rot, limits of open chunks, notices, slices.

use std::future::poll_fn;
use std::task::Poll;

use terrane_ocssd::flash::{FlashSliceError, Notification, NotificationScope};
use terrane_ocssd::{
    ChunkId, ChunkState, Durability, FlashOptions, Geometry, Media, MediaError, Notice, NoticeKind,
};

use crate::harness::{
    block_on, broken_rule, device, filled, finish, flush, geometry, options, plain, read, reset, state,
    whole, write,
};

/// Sends four writes before the first is answered, and returns how each ended.
fn pipelined(media: &terrane_ocssd::FlashMedia, chunk: u32, from: u32) -> Vec<Result<(), MediaError>> {
    let mut writes: Vec<_> = (0..4)
        .map(|at| {
            let buf = filled(4, 10 + at as u8);
            Box::pin(media.write(ChunkId(chunk), from + 4 * at, buf, Durability::Volatile))
        })
        .collect();
    let mut ended: Vec<Option<Result<(), MediaError>>> = (0..4).map(|_| None).collect();
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
    ended.into_iter().flatten().collect()
}

/// Fails without the rule that a chunk takes nothing behind a unit that failed: the later writes would succeed.
#[test]
fn a_failed_write_ends_the_chunk() {
    for seed in 0..20 {
        let media = whole(FlashOptions { seed, yields_max: 4, ..options() });
        write(&media, 1, 0, 4, 1).unwrap();
        media.fail_next_write_of(ChunkId(1));
        for result in pipelined(&media, 1, 4) {
            assert!(
                matches!(result, Err(MediaError::WriteFailed { chunk: ChunkId(1), sector: 4 })),
                "{result:?}"
            );
        }
        assert_eq!(state(&media, 1), (ChunkState::Closed, 4));
        // What is below can be read at once: nothing is held back for it any more.
        assert_eq!(read(&media, 1, 0, 4).unwrap(), [1; 4]);
        assert_eq!(broken_rule(read(&media, 1, 4, 1)), "the read reaches beyond the write pointer");
        assert!(matches!(write(&media, 1, 4, 4, 9), Err(MediaError::WriteFailed { sector: 4, .. })));
        reset(&media, 1).unwrap();
        write(&media, 1, 0, 4, 2).unwrap();
        assert_eq!(media.device().counters().program_failures, 1);
    }
}

#[test]
fn units_below_the_failed_one_of_a_write_are_there() {
    let mut ends = std::collections::BTreeSet::new();
    for seed in 0..40 {
        let media = whole(FlashOptions { seed, ..options() });
        media.fail_next_write_of(ChunkId(0));
        let Err(MediaError::WriteFailed { sector, .. }) = write(&media, 0, 0, 16, 5) else { panic!() };
        assert_eq!(state(&media, 0), (ChunkState::Closed, sector));
        if sector > 0 {
            assert_eq!(read(&media, 0, 0, sector).unwrap(), vec![5; sector as usize]);
        }
        ends.insert(sector);
    }
    assert_eq!(ends.into_iter().collect::<Vec<_>>(), [0, 4, 8, 12]);
}

#[test]
fn a_chunk_closed_early_keeps_what_it_has() {
    for seed in 0..20 {
        let media = whole(FlashOptions { seed, yields_max: 4, ..options() });
        write(&media, 2, 0, 12, 1).unwrap();
        assert!(read(&media, 2, 4, 1).is_err(), "hidden while the chunk is open");
        media.close_early(ChunkId(2));
        for result in pipelined(&media, 2, 12) {
            assert!(matches!(result, Err(MediaError::ClosedEarly { write_pointer: 12, .. })), "{result:?}");
        }
        assert_eq!(state(&media, 2), (ChunkState::Closed, 12));
        assert_eq!(read(&media, 2, 0, 12).unwrap(), [1; 12]);
        assert_eq!(media.device().counters().early_closes, 1);
    }
}

#[test]
fn nothing_is_left_of_a_chunk_offline() {
    let media = whole(options());
    write(&media, 3, 0, 32, 1).unwrap();
    media.take_offline(ChunkId(3));
    let offline = |result| matches!(result, Err(MediaError::Offline { chunk: ChunkId(3) }));
    assert!(offline(read(&media, 3, 0, 1).map(drop)));
    assert!(offline(write(&media, 3, 0, 4, 1)));
    assert!(offline(reset(&media, 3)));
    assert!(offline(finish(&media, 3)));
    assert_eq!(state(&media, 3).0, ChunkState::Offline);
    media.power_on();
    assert_eq!(state(&media, 3).0, ChunkState::Offline);
    let gone = Notice { chunk: ChunkId(3), sectors: None, kind: NoticeKind::Offline };
    assert_eq!(media.take_notices(), [gone]);
    assert_eq!(media.take_notices(), []);
}

#[test]
fn a_failed_reset_takes_the_chunk_offline() {
    let media = whole(options());
    write(&media, 0, 0, 4, 1).unwrap();
    media.fail_next_reset_of(ChunkId(0));
    assert!(matches!(reset(&media, 0), Err(MediaError::Offline { .. })));
    assert_eq!(state(&media, 0).0, ChunkState::Offline);
}

#[test]
fn sectors_that_cannot_be_read_are_named_and_told() {
    let media = whole(plain());
    write(&media, 1, 0, 8, 1).unwrap();
    media.fail_reads_of(ChunkId(1), 5);
    assert_eq!(read(&media, 1, 0, 5).unwrap(), [1; 5]);
    assert!(matches!(read(&media, 1, 3, 4), Err(MediaError::Unreadable { sector: 5, .. })));
    let lost = Notice { chunk: ChunkId(1), sectors: Some((5, 1)), kind: NoticeKind::Unrecoverable };
    assert_eq!(media.take_notices(), [lost]);
    media.power_on();
    assert!(read(&media, 1, 5, 1).is_err(), "it stays lost");
    reset(&media, 1).unwrap();
    write(&media, 1, 0, 8, 2).unwrap();
    assert_eq!(read(&media, 1, 0, 8).unwrap(), [2; 8]);
}

#[test]
fn corruption_is_silent_and_ends_with_the_chunk() {
    let media = whole(plain());
    write(&media, 1, 0, 8, 0xFF).unwrap();
    media.corrupt(ChunkId(1), 3, 100);
    let (result, buf) = block_on(media.read(ChunkId(1), 2, filled(3, 0)));
    result.unwrap();
    let wrong: Vec<usize> = (0..buf.len()).filter(|at| buf[*at] != 0xFF).collect();
    assert_eq!(wrong, [512 + 100]);
    media.corrupt(ChunkId(1), 3, 100);
    assert_eq!(read(&media, 1, 0, 8).unwrap(), [0xFF; 8]);
    media.corrupt(ChunkId(1), 3, 100);
    reset(&media, 1).unwrap();
    write(&media, 1, 0, 8, 7).unwrap();
    assert_eq!(read(&media, 1, 0, 8).unwrap(), [7; 8]);
}

/// Fails without the count of open chunks: the third would open.
#[test]
fn open_chunks_are_limited_on_the_device() {
    let geometry = Geometry { max_open: 2, ..geometry() };
    let media = whole(FlashOptions { geometry, ..options() });
    write(&media, 0, 0, 4, 1).unwrap();
    write(&media, 5, 0, 4, 1).unwrap();
    assert_eq!(broken_rule(write(&media, 9, 0, 4, 1)), "too many chunks are open");
    // One that is filled by a single write counts for the moment too.
    assert!(write(&media, 9, 0, 32, 1).is_err());
    write(&media, 0, 4, 28, 1).unwrap();
    write(&media, 9, 0, 4, 1).unwrap();
    reset(&media, 5).unwrap();
    write(&media, 10, 0, 4, 1).unwrap();
    media.take_offline(ChunkId(9));
    write(&media, 11, 0, 4, 1).unwrap();
    media.fail_next_write_of(ChunkId(11));
    write(&media, 11, 4, 4, 1).unwrap_err();
    write(&media, 12, 0, 4, 1).unwrap();
    assert_eq!(broken_rule(write(&media, 13, 0, 4, 1)), "too many chunks are open");
}

#[test]
fn open_chunks_are_limited_in_a_unit() {
    let media = whole(FlashOptions { max_open_per_unit: 1, ..options() });
    assert_eq!(media.max_open_per_unit(), 1);
    assert_eq!(media.geometry().max_open, 4);
    for unit in 0..4 {
        write(&media, 4 * unit, 0, 4, 1).unwrap();
        assert_eq!(
            broken_rule(write(&media, 4 * unit + 1, 0, 4, 1)),
            "too many chunks of the parallel unit are open"
        );
    }
    finish(&media, 0).unwrap();
    write(&media, 1, 0, 4, 1).unwrap();
}

#[test]
fn a_slice_has_its_share_of_open_chunks() {
    let geometry = Geometry { max_open: 5, ..geometry() };
    let device = device(FlashOptions { geometry, ..options() });
    let (first, second) = (device.slice(0, 2).unwrap(), device.slice(1, 2).unwrap());
    assert_eq!(first.geometry().max_open, 2);
    write(&first, 0, 0, 4, 1).unwrap();
    write(&first, 1, 0, 4, 1).unwrap();
    assert_eq!(broken_rule(write(&first, 2, 0, 4, 1)), "too many chunks of the slice are open");
    write(&second, 0, 0, 4, 1).unwrap();
    write(&second, 1, 0, 4, 1).unwrap();
}

#[test]
fn slices_are_apart_and_handed_out_once() {
    let device = device(options());
    let (first, second) = (device.slice(0, 2).unwrap(), device.slice(1, 2).unwrap());
    assert_eq!(first.geometry().chunk_count(), 8);
    write(&first, 7, 0, 32, 1).unwrap();
    write(&second, 0, 0, 32, 2).unwrap();
    assert_eq!(read(&first, 7, 0, 32).unwrap(), [1; 32]);
    assert_eq!(read(&second, 0, 0, 32).unwrap(), [2; 32]);
    assert_eq!(second.on_device(ChunkId(0)), ChunkId(8));
    assert!(broken_rule(write(&first, 8, 0, 4, 1)).contains("no such chunk"));

    assert!(matches!(device.slice(0, 2), Err(FlashSliceError::InUse { shard: 0 })));
    assert!(matches!(device.slice(0, 1), Err(FlashSliceError::InUse { shard: 0 })));
    let other = first.clone();
    drop(first);
    assert!(device.slice(0, 2).is_err(), "a clone still holds it");
    drop(other);
    let first = device.slice(0, 2).unwrap();
    assert_eq!(read(&first, 7, 0, 32).unwrap(), [1; 32]);
    assert!(matches!(device.slice(0, 3), Err(FlashSliceError::Indivisible { units: 4, shards: 3 })));
}

#[test]
fn notices_go_to_whom_they_concern_once() {
    let device = device(options());
    let (first, second) = (device.slice(0, 2).unwrap(), device.slice(1, 2).unwrap());
    let high = Notice { chunk: ChunkId(3), sectors: Some((8, 4)), kind: NoticeKind::EccHigh };
    second.notice(high);
    device.notice_of_unit(1, NoticeKind::EccLow);
    assert_eq!(second.take_notices(), [high]);
    assert_eq!(second.take_notices(), []);
    let of_unit: Vec<Notice> = (4..8)
        .map(|chunk| Notice { chunk: ChunkId(chunk), sectors: None, kind: NoticeKind::EccLow })
        .collect();
    assert_eq!(first.take_notices(), of_unit);
    let format = device.address_format();
    let log = device.notifications(0);
    assert_eq!(log.iter().map(|entry| entry.count).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(log[0].scope, NotificationScope::Sectors(4));
    assert_eq!(
        format.unpack(log[0].address).map(|place| (place.group, place.unit, place.chunk, place.sector)),
        Some((1, 0, 3, 8))
    );
    assert_eq!(log[1].scope, NotificationScope::Unit);
    for entry in log {
        assert_eq!(Notification::decode(&entry.encode()), Some(entry));
    }
    // A host that lost its memory reads the log again.
    device.restart();
    assert_eq!(device.slice(1, 2).unwrap().take_notices(), [high]);
}

#[test]
fn finish_is_padding_and_counted_as_such() {
    let media = whole(options());
    write(&media, 0, 0, 12, 1).unwrap();
    finish(&media, 0).unwrap();
    assert_eq!(state(&media, 0), (ChunkState::Closed, 32));
    assert_eq!(read(&media, 0, 10, 4).unwrap(), [1, 1, 0, 0]);
    let counters = media.device().counters();
    assert_eq!((counters.received_bytes, counters.padding_bytes), (32 * 512, 20 * 512));
    assert_eq!(counters.programmed_bytes, 32 * 512);
    assert_eq!(media.counters().written_bytes, 32 * 512);
    // A write that fails while padding leaves what was there.
    write(&media, 1, 0, 12, 1).unwrap();
    media.fail_next_write_of(ChunkId(1));
    assert!(matches!(finish(&media, 1), Err(MediaError::WriteFailed { .. })));
    assert_eq!(read(&media, 1, 0, 12).unwrap(), [1; 12]);
}

#[test]
fn resets_that_the_device_refuses_are_gone_around() {
    let media = whole(FlashOptions { reset_free: false, reset_open: false, ..options() });
    reset(&media, 0).unwrap();
    assert_eq!(media.device().counters().erases, 0, "it was free");
    write(&media, 0, 0, 4, 1).unwrap();
    reset(&media, 0).unwrap();
    assert_eq!(state(&media, 0), (ChunkState::Free, 0));
    let counters = media.device().counters();
    assert_eq!((counters.erases, counters.padding_bytes), (1, 28 * 512), "padded, then reset");
}

#[test]
fn reads_stop_at_what_was_answered() {
    let media = whole(FlashOptions { seed: 3, yields_max: 50, ..plain() });
    write(&media, 0, 0, 4, 1).unwrap();
    let mut late = Box::pin(media.write(ChunkId(0), 4, filled(4, 2), Durability::Volatile));
    // Once under way, it counts for the write pointer and not for reads.
    block_on(poll_fn(|context| {
        if late.as_mut().poll(context).is_ready() {
            panic!("this seed answers later");
        }
        Poll::Ready(())
    }));
    assert_eq!(state(&media, 0), (ChunkState::Open, 8));
    assert_eq!(
        broken_rule(read(&media, 0, 4, 1)),
        "the last sectors below the write pointer cannot be read yet"
    );
    assert_eq!(broken_rule(reset(&media, 0)), "a write of the chunk is in flight");
    assert_eq!(broken_rule(finish(&media, 0)), "a write of the chunk is in flight");
    block_on(late).0.unwrap();
    assert_eq!(read(&media, 0, 4, 1).unwrap(), [2]);
    flush(&media);
}

#[test]
fn what_is_armed_strikes_once_and_ends_with_the_power() {
    let media = whole(plain());
    let arm = |chunk| {
        media.fail_next_write_of(ChunkId(chunk));
        media.close_early(ChunkId(chunk));
        media.fail_next_reset_of(ChunkId(chunk));
    };
    arm(0);
    media.power_on();
    write(&media, 0, 0, 32, 1).unwrap();
    reset(&media, 0).unwrap();
    arm(1);
    assert!(matches!(write(&media, 1, 0, 4, 1), Err(MediaError::ClosedEarly { .. })));
    assert!(matches!(reset(&media, 1), Err(MediaError::Offline { .. })));
    media.close_early(ChunkId(2));
    write(&media, 2, 0, 4, 1).unwrap_err();
    reset(&media, 2).unwrap();
    write(&media, 2, 0, 32, 1).unwrap();
}

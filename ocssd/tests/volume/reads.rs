//! What the host is told of bad chunks, and what a volume costs.

use std::time::Duration;

use terrane_ocssd::policy::refresh::{RefreshList, Urgency};
use terrane_ocssd::{
    AlignedBuf, ChunkId, ChunkState, Durability, Geometry, Media, MediaError, Notice, NoticeKind,
};

use crate::faulty::{Fault, ReadFault, block_on};
use crate::model::{SECTOR, content};
use crate::{Bench, geometry, is_no_spare};

use Durability::{Durable, Volatile};

/// The first chunk of a line's members: chunk 5 of unit 0 and chunk 5 of unit 1 are line 0.
const FIRST_LINE_CHUNK: u32 = 5;

/// Line 0 has a chunk that is offline.
const OFFLINE: Notice = Notice { chunk: ChunkId(0), sectors: None, kind: NoticeKind::Offline };

fn read(bench: &Bench, line: u32, from: u32, sectors: u32) -> Result<(), MediaError> {
    let buf = AlignedBuf::zeroed(sectors as usize * SECTOR);
    let (result, buf) = block_on(bench.volume.read(ChunkId(line), from, buf));
    if result.is_ok() {
        assert!(*buf == *content(line, 0, from, sectors));
    }
    result
}

#[test]
fn a_closed_line_that_loses_a_chunk_loses_only_that() {
    let bench = Bench::new(geometry(), 1, 1);
    bench.write(0, 64, Durable).unwrap();
    bench.write(1, 64, Durable).unwrap();
    bench.flush().unwrap();
    bench.device.sim.take_offline(ChunkId(9 + FIRST_LINE_CHUNK));
    for _ in 0..2 {
        for sector in 0..64 {
            let result = read(&bench, 0, sector, 1);
            match sector % 8 < 4 {
                true => result.unwrap(),
                false => assert!(
                    matches!(result, Err(MediaError::Unreadable { chunk: ChunkId(0), sector: named }) if named == sector)
                ),
            }
        }
        // The first of those that are lost is named.
        let whole = read(&bench, 0, 1, 40);
        assert!(matches!(whole, Err(MediaError::Unreadable { chunk: ChunkId(0), sector: 4 })), "{whole:?}");
        read(&bench, 1, 0, 64).unwrap();
        assert_eq!(bench.volume.take_notices(), [OFFLINE], "once, however many reads failed");
        read(&bench, 0, 4, 1).unwrap_err();
    }
    // The reset replaces it, with nothing to move.
    bench.reset(0).unwrap();
    assert!(bench.volume.take_notices().is_empty());
    let status = bench.volume.status();
    assert_eq!((status.defects, status.remapped, status.evacuations), (1, 1, 0));
    bench.write(0, 64, Durable).unwrap();
    bench.power_cycle().check();
}

#[test]
fn a_closed_line_that_lost_a_chunk_is_found_again() {
    let bench = Bench::new(geometry(), 1, 1);
    bench.write(0, 64, Durable).unwrap();
    bench.device.sim.take_offline(ChunkId(FIRST_LINE_CHUNK));
    let device = bench.device.clone();
    drop(bench);
    device.power_cycle();
    let volume = block_on(terrane_ocssd::Volume::open(device)).unwrap();
    let report = block_on(volume.report()).unwrap();
    assert_eq!((report[0].state, report[0].write_pointer), (ChunkState::Closed, 64));
    assert_eq!(volume.take_notices(), [OFFLINE]);
    let (lost, _) = block_on(volume.read(ChunkId(0), 0, AlignedBuf::zeroed(SECTOR)));
    assert!(matches!(lost, Err(MediaError::Unreadable { sector: 0, .. })), "{lost:?}");
    let (there, buf) = block_on(volume.read(ChunkId(0), 4, AlignedBuf::zeroed(4 * SECTOR)));
    there.unwrap();
    assert!(*buf == *content(0, 0, 4, 4));
}

#[test]
fn notices_speak_of_lines() {
    let bench = Bench::new(geometry(), 1, 0);
    for line in 0..4 {
        bench.write(line, 64, Durable).unwrap();
    }
    let notice = |chunk, sectors, kind| bench.device.notice(Notice { chunk: ChunkId(chunk), sectors, kind });
    notice(FIRST_LINE_CHUNK, Some((2, 5)), NoticeKind::EccMedium);
    notice(9 + FIRST_LINE_CHUNK + 1, None, NoticeKind::EccHigh);
    notice(FIRST_LINE_CHUNK + 2, Some((0, 2)), NoticeKind::EccLow);
    notice(2, None, NoticeKind::Offline);
    notice(99, None, NoticeKind::Offline);
    let found = bench.volume.take_notices();
    let expected = [
        Notice { chunk: ChunkId(0), sectors: Some((2, 2)), kind: NoticeKind::EccMedium },
        Notice { chunk: ChunkId(0), sectors: Some((8, 3)), kind: NoticeKind::EccMedium },
        Notice { chunk: ChunkId(1), sectors: None, kind: NoticeKind::EccHigh },
        Notice { chunk: ChunkId(2), sectors: Some((0, 2)), kind: NoticeKind::EccLow },
    ];
    assert_eq!(found, expected);
    assert_eq!(bench.volume.status().defects, 1, "the spare that is offline");
    assert_eq!(bench.volume.status().spares_left, 5);
}

#[test]
fn notices_of_a_chunk_that_took_the_place_of_another() {
    let bench = Bench::new(geometry(), 1, 0);
    bench.device.fail_write(1, Fault::Failed);
    bench.write(0, 16, Volatile).unwrap();
    for recorded in [0, 1] {
        assert_eq!(bench.volume.status().remapped, recorded);
        // The spares of both units are equal: the first one was taken.
        bench.device.notice(Notice { chunk: ChunkId(2), sectors: None, kind: NoticeKind::Worn });
        let found = bench.volume.take_notices();
        assert_eq!(found, [Notice { chunk: ChunkId(0), sectors: None, kind: NoticeKind::Worn }]);
        bench.flush().unwrap();
    }
}

/// With the metadata in a chunk that the device is worried about, the next record goes elsewhere.
#[test]
fn metadata_moves_away_from_a_sick_chunk() {
    let bench = Bench::new(geometry(), 1, 0);
    bench.device.notice(Notice { chunk: ChunkId(0), sectors: None, kind: NoticeKind::EccHigh });
    assert!(bench.volume.take_notices().is_empty());
    bench.device.fail_write(1, Fault::Failed);
    bench.write(0, 16, Durable).unwrap();
    bench.device.sim.take_offline(ChunkId(0));
    bench.device.sim.take_offline(ChunkId(9));
    let bench = bench.power_cycle();
    assert_eq!(bench.volume.status().remapped, 1);
    bench.check();
}

/// Without a record of its own the metadata would stay in the chunk, until something else is recorded or for good.
#[test]
fn a_notice_of_a_metadata_chunk_moves_it_with_the_next_flush() {
    for durability in [Durable, Volatile] {
        let bench = Bench::new(geometry(), 1, 0);
        bench.device.notice(Notice { chunk: ChunkId(0), sectors: None, kind: NoticeKind::EccHigh });
        // One that holds nothing new is no reason.
        bench.device.notice(Notice { chunk: ChunkId(10), sectors: None, kind: NoticeKind::EccHigh });
        assert!(bench.volume.take_notices().is_empty());
        let before = bench.volume.status().metadata_bytes;
        bench.write(0, 16, durability).unwrap();
        if durability == Volatile {
            bench.flush().unwrap();
        }
        assert_eq!(bench.volume.status().metadata_bytes, 2 * before, "one record more in each place");
        bench.flush().unwrap();
        assert_eq!(bench.volume.status().metadata_bytes, 2 * before);
        bench.device.sim.take_offline(ChunkId(0));
        bench.device.sim.take_offline(ChunkId(9));
        bench.power_cycle().check();
    }
}

/// A strike that no remap goes with: were it in memory alone, a chunk that fails again and again would be taken back
/// after each start.
#[test]
fn a_strike_is_recorded_by_the_next_flush() {
    let bench = Bench::new(geometry(), 1, 0);
    for chunk in [2, 3, 4, 11, 12, 13] {
        bench.device.sim.take_offline(ChunkId(chunk));
        bench.device.notice(Notice { chunk: ChunkId(chunk), sectors: None, kind: NoticeKind::Offline });
    }
    bench.volume.take_notices();
    bench.device.fail_write(1, Fault::Failed);
    assert!(is_no_spare(&bench.write(0, 16, Durable).unwrap_err()));
    bench.reset(0).unwrap();
    bench.flush().unwrap();
    let bench = bench.power_cycle();
    bench.device.fail_write(1, Fault::Failed);
    assert!(is_no_spare(&bench.write(0, 16, Durable).unwrap_err()));
    assert!(is_no_spare(&bench.reset(0).unwrap_err()), "the second strike is the last");
}

/// What is read during an evacuation may fail in passing; the line hangs on it.
#[test]
fn a_passing_read_error_does_not_stop_an_evacuation() {
    for failures in [1, 3, 4] {
        let bench = Bench::new(geometry(), 1, 0);
        bench.write(0, 40, Volatile).unwrap();
        bench.device.fail_write(1, Fault::Failed);
        (1..=failures).for_each(|n| bench.device.fail_read(n, ReadFault::Io));
        let written = bench.write(0, 8, Volatile);
        if failures < 4 {
            written.unwrap();
            bench.check();
            assert_eq!(bench.volume.status().evacuations, 1);
            bench.flush().unwrap();
        } else {
            assert!(matches!(written, Err(MediaError::Io { .. })), "{written:?}");
        }
        bench.power_cycle();
    }
}

/// It counted as open for the device, and no limit of ours knew of it.
#[test]
fn a_spare_that_was_half_filled_is_closed_and_judged() {
    for n in 1..=3 {
        let bench = Bench::new(geometry(), 1, 0);
        bench.write(0, 40, Volatile).unwrap();
        bench.device.fail_write(1, Fault::Failed);
        bench.device.fail_read(n, ReadFault::Unreadable);
        bench.write(0, 8, Volatile).unwrap_err();
        let spare = block_on(bench.device.report()).unwrap()[2];
        assert_eq!(spare.state, ChunkState::Free);
        assert_eq!(spare.wear, u32::from(n > 1), "one that was not written is as it was");
        assert_eq!(bench.volume.status().spares_left, 6);
    }
}

/// The host kept the rules: the device has not what it should.
#[test]
fn a_read_that_the_device_refuses_is_unreadable() {
    let bench = Bench::new(geometry(), 1, 0);
    bench.write(0, 64, Durable).unwrap();
    bench.device.fail_read(1, ReadFault::Rule);
    let refused = read(&bench, 0, 5, 3);
    assert!(matches!(refused, Err(MediaError::Unreadable { chunk: ChunkId(0), sector: 5 })), "{refused:?}");
    let notice = Notice { chunk: ChunkId(0), sectors: Some((5, 1)), kind: NoticeKind::Unrecoverable };
    assert_eq!(bench.volume.take_notices(), [notice]);
    read(&bench, 0, 5, 3).unwrap();
}

/// One list for all that is to be rewritten: what the volume finds out itself reaches it as the device's notices do.
/// Seed 48813 of the endurance run `volume_over_flash`. The volume closes a line whose programs fail, where the device can
/// return it; as nothing can be closed without power, that was far below what was acknowledged, and a read of it was refused
/// by the rules, as if the host had asked for what it never wrote.
#[test]
fn a_read_after_the_power_went_says_so() {
    for seed in 0..20 {
        let bench = Bench::new(geometry(), seed, 4);
        bench.write(0, 40, Volatile).unwrap();
        bench.device.sim.crash_after(1);
        let lost = bench.write(0, 8, Volatile);
        assert!(matches!(lost, Err(MediaError::PowerLost)), "{lost:?}");
        // The rest of it happens while the others are polled.
        assert!(matches!(bench.flush(), Err(MediaError::PowerLost)));
        for sector in 0..40 {
            let read = read(&bench, 0, sector, 1);
            assert!(matches!(read, Err(MediaError::PowerLost)), "sector {sector}: {read:?}");
        }
    }
}

#[test]
fn what_the_volume_notices_goes_to_the_list_of_what_to_rewrite() {
    let bench = Bench::new(geometry(), 1, 0);
    for line in 0..3 {
        bench.write(line, 64, Durable).unwrap();
    }
    bench.device.notice(Notice {
        chunk: ChunkId(FIRST_LINE_CHUNK),
        sectors: None,
        kind: NoticeKind::EccMedium,
    });
    bench.device.sim.take_offline(ChunkId(FIRST_LINE_CHUNK + 1));
    bench.device.fail_read(1, ReadFault::Unreadable);
    read(&bench, 2, 8, 1).unwrap_err();
    read(&bench, 1, 0, 1).unwrap_err();
    let mut list = RefreshList::new(bench.volume.geometry());
    for notice in bench.volume.take_notices() {
        list.note(Duration::ZERO, &notice, 64).unwrap();
    }
    let found: Vec<_> = list.iter().map(|work| (work.chunk.0, work.urgency)).collect();
    assert_eq!(found, [(1, Urgency::Lost), (2, Urgency::Lost), (0, Urgency::Soon)]);
    assert!(matches!(&list.get(ChunkId(2)).unwrap().lost[..], [lost] if *lost == (8..9)));
}

/// Spares run out: the writer is told, what was written before is still there, and the line goes offline at its next
/// reset.
#[test]
fn when_spares_run_out_nothing_durable_is_lost() {
    let bench = Bench::new(geometry(), 1, 0);
    for chunk in [2, 3, 4, 11, 12, 13] {
        bench.device.sim.take_offline(ChunkId(chunk));
        bench.device.notice(Notice { chunk: ChunkId(chunk), sectors: None, kind: NoticeKind::Offline });
    }
    bench.volume.take_notices();
    assert_eq!(bench.volume.status().spares_left, 0);
    bench.write(0, 30, Durable).unwrap();
    bench.write(1, 30, Durable).unwrap();
    bench.device.fail_write(1, Fault::Failed);
    let refused = bench.write(0, 16, Durable).unwrap_err();
    assert!(is_no_spare(&refused), "{refused}");
    let info = block_on(bench.volume.report()).unwrap()[0];
    assert_eq!(info.state, ChunkState::Closed);
    assert!(info.write_pointer >= 30);
    bench.check();
    // What is there is good.
    assert_eq!(bench.volume.take_notices(), [Notice { kind: NoticeKind::EccHigh, ..OFFLINE }]);
    bench.write(1, 10, Durable).unwrap();
    bench.flush().unwrap();
    // The chunk gets its second chance at the reset, and uses it.
    bench.reset(0).unwrap();
    bench.write(0, 6, Durable).unwrap();
    // With the second strike it is out.
    bench.device.fail_write(1, Fault::Failed);
    assert!(is_no_spare(&bench.write(0, 16, Durable).unwrap_err()));
    assert!(is_no_spare(&bench.reset(0).unwrap_err()));
    let info = block_on(bench.volume.report()).unwrap()[0];
    assert_eq!(info.state, ChunkState::Offline);
    assert!(matches!(
        block_on(bench.volume.reset(ChunkId(0))),
        Err(MediaError::Offline { chunk: ChunkId(0) })
    ));
    assert_eq!(bench.volume.status().lines_offline, 1);
    bench.write(1, 10, Durable).unwrap();
}

/// One strike is forgiven, two are not, over any number of restarts.
#[test]
fn strikes_are_remembered() {
    let mut bench = Bench::new(geometry(), 1, 0);
    let spares = bench.volume.status().spares_left;
    let mut defects = 0;
    for round in 0..12 {
        bench.device.fail_write(1, Fault::Failed);
        bench.write(0, 8, Durable).unwrap();
        bench = bench.power_cycle();
        bench.reset(0).unwrap();
        let status = bench.volume.status();
        assert_eq!(status.spares_left + status.defects, spares, "round {round}");
        assert!(status.defects >= defects && status.defects <= defects + 1);
        defects = status.defects;
    }
    assert!(defects >= 3, "twelve failures of seven chunks leave some with two: {defects}");
}

#[test]
fn a_member_that_cannot_be_reset_is_replaced() {
    let bench = Bench::new(geometry(), 1, 1);
    bench.write(0, 64, Durable).unwrap();
    bench.device.fail_reset(2);
    bench.reset(0).unwrap();
    let status = bench.volume.status();
    assert_eq!((status.defects, status.remapped, status.spares_left, status.evacuations), (1, 1, 5, 0));
    bench.write(0, 20, Durable).unwrap();
    let bench = bench.power_cycle();
    bench.check();
    assert_eq!(bench.volume.status().defects, 1);
}

/// Seed 916 of `chunks_go_offline_while_the_volume_is_in_use`. A chunk that is empty is not erased again by a reset, so
/// nothing failed that would have told: the line went on with it, its next program was brought to a spare, and after a power
/// cut before the next flush the metadata named a chunk that is offline, with other members' sectors around the hole.
#[test]
fn a_chunk_that_went_offline_while_it_was_empty_is_replaced_by_the_reset() {
    for seed in 0..20 {
        let bench = Bench::new(geometry(), seed, 1);
        let chunk = ChunkId(9 + FIRST_LINE_CHUNK);
        bench.device.sim.take_offline(chunk);
        bench.device.notice(Notice { chunk, sectors: None, kind: NoticeKind::Offline });
        assert_eq!(bench.volume.take_notices(), [OFFLINE]);
        bench.reset(0).unwrap();
        let status = bench.volume.status();
        assert_eq!((status.defects, status.remapped, status.evacuations), (1, 1, 0));
        bench.write(0, 40, Volatile).unwrap();
        assert_eq!(bench.volume.status().evacuations, 0);
        bench.power_cycle().check();
    }
}

#[test]
fn wear_is_that_of_the_worst_member() {
    let bench = Bench::new(geometry(), 1, 0);
    bench.device.fail_reset(1);
    for _ in 0..3 {
        bench.write(0, 16, Durable).unwrap();
        bench.reset(0).unwrap();
    }
    bench.reset(0).unwrap();
    bench.write(0, 2, Durable).unwrap();
    bench.reset(0).unwrap();
    let wear = bench.volume.member_wear(ChunkId(0));
    // The first was replaced; the second was free when the last reset came.
    assert_eq!(wear, [3, 3]);
    assert_eq!(block_on(bench.volume.report()).unwrap()[0].wear, 3);
}

/// The device is written what the host wrote, and the metadata: nothing else. On flash that the host manages this is the
/// whole amplification.
#[test]
fn the_device_writes_what_the_host_wrote() {
    let bench = Bench::new(geometry(), 1, 0);
    let metadata = bench.volume.status().metadata_bytes;
    assert_eq!(metadata, bench.device.counters().written_bytes);
    for life in 0..3 {
        for line in 0..4 {
            bench.reset(line).unwrap();
            for sectors in [2, 6, 10, 14, 32] {
                bench.write(line, sectors, if life == 1 { Durable } else { Volatile }).unwrap();
            }
        }
        bench.flush().unwrap();
    }
    assert_eq!(bench.volume.status().metadata_bytes, metadata);
    let host = bench.volume.counters().written_bytes;
    assert_eq!(host, 3 * 4 * 64 * SECTOR as u64);
    assert_eq!(bench.device.counters().written_bytes, host + metadata);
}

/// A log of small volatile writes goes out in whole units.
#[test]
fn small_writes_become_whole_units() {
    let bench = Bench::new(geometry(), 1, 0);
    let before = bench.device.writes();
    for _ in 0..16 {
        bench.write(0, 2, Volatile).unwrap();
    }
    assert_eq!(bench.device.writes() - before, 8);
    bench.write(0, 2, Volatile).unwrap();
    assert_eq!(bench.device.writes() - before, 8);
    bench.check();
    bench.flush().unwrap();
    assert_eq!(bench.device.writes() - before, 9);
}

/// A log of durable writes needs no barrier: each is durable by itself, on all members.
#[test]
fn a_log_of_durable_writes_needs_no_flush() {
    let bench = Bench::new(geometry(), 1, 0);
    let before = bench.device.counters().flushes;
    for sectors in [2, 2, 12, 16] {
        bench.write(0, sectors, Durable).unwrap();
    }
    assert_eq!(bench.device.counters().flushes, before);
    bench.write(0, 2, Volatile).unwrap();
    bench.write(0, 2, Durable).unwrap();
    assert_eq!(bench.device.counters().flushes, before, "one program holds both");
    bench.write(0, 8, Volatile).unwrap();
    bench.write(0, 2, Durable).unwrap();
    assert_eq!(bench.device.counters().flushes, before + 1);
}

#[test]
fn memory_is_given_back() {
    // A device that hides nothing: what was written can be read from it, and is.
    let bench = Bench::new(Geometry { mw_cunits: 0, ..geometry() }, 1, 0);
    bench.write(0, 32, Volatile).unwrap();
    let before = bench.device.counters().read_bytes;
    bench.check();
    assert!(bench.device.counters().read_bytes > before);
}

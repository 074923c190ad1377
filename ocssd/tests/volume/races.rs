//! One test for each race in the table of `volume/defects.rs`, and for what is dropped or fails halfway.

use std::pin::pin;
use std::task::Poll;

use terrane_ocssd::{AlignedBuf, ChunkId, Durability, Geometry, Media, MediaError, Notice, NoticeKind};

use crate::faulty::{Fault, block_on};
use crate::model::{SECTOR, content, write};
use crate::{Bench, both, geometry, poll};

use Durability::{Durable, Volatile};

/// Reads and compares.
async fn expect(bench: &Bench, line: u32, from: u32, to: u32) {
    let buf = AlignedBuf::zeroed((to - from) as usize * SECTOR);
    let (result, buf) = bench.volume.read(ChunkId(line), from, buf).await;
    result.unwrap();
    assert!(*buf == *content(line, 0, from, to - from), "sectors {from}..{to} are wrong");
}

fn bench(seed: u64) -> Bench {
    Bench::new(geometry(), seed, 4)
}

/// Without waiting for the second program, its sectors would be missing on the spare.
#[test]
fn a_second_program_is_in_flight_on_the_chunk_that_fails() {
    for seed in 0..40 {
        for failing in 1..=4 {
            let bench = bench(seed);
            bench.device.fail_write(failing, Fault::FailedWithBuffer);
            let first = write(&bench.volume, 0, 0, 0, 8, Volatile);
            let second = write(&bench.volume, 0, 0, 8, 8, Volatile);
            let (first, second) = both(first, second);
            first.unwrap();
            second.unwrap();
            block_on(expect(&bench, 0, 0, 16));
            assert_eq!(bench.volume.status().evacuations, 1);
            block_on(bench.volume.flush()).unwrap();
            assert_eq!(bench.volume.status().remapped, 1);
        }
    }
}

#[test]
fn writes_and_reads_during_an_evacuation() {
    for seed in 0..40 {
        let bench = bench(seed);
        block_on(write(&bench.volume, 0, 0, 0, 24, Volatile)).unwrap();
        bench.device.fail_write(1, Fault::FailedWithBuffer);
        let mut failing = pin!(write(&bench.volume, 0, 0, 24, 8, Volatile));
        assert!(poll(failing.as_mut()).is_pending());
        // The chunk that fails is one of the two that this write goes to as well.
        let next = async {
            write(&bench.volume, 0, 0, 32, 10, Volatile).await.unwrap();
            bench.volume.status().evacuations
        };
        let reads = async {
            for from in 0..24 {
                expect(&bench, 0, from, 24).await;
            }
        };
        let (evacuations, ()) = both(next, reads);
        assert_eq!(evacuations, 1, "a write to the chunk waits for the evacuation");
        block_on(expect(&bench, 0, 0, 42));
        assert_eq!(bench.volume.status().evacuations, 1);
    }
}

/// If the flush did not wait, it would promise sectors that are in memory alone.
#[test]
fn a_flush_during_an_evacuation() {
    for seed in 0..40 {
        let bench = bench(seed);
        bench.write(0, 26, Volatile).unwrap();
        bench.device.fail_write(1, Fault::FailedWithBuffer);
        bench.model.borrow_mut().lines[0].written = 34;
        let (failing, flush) = {
            let before = bench.model.borrow().lines.clone();
            let result = both(write(&bench.volume, 0, 0, 26, 8, Volatile), bench.volume.flush());
            bench.model.borrow_mut().flushed(&before);
            result
        };
        failing.unwrap();
        flush.unwrap();
        bench.model.borrow_mut().lines[0].acknowledged = 34;
        assert_eq!(bench.volume.status().evacuations, 1);
        bench.power_cycle();
    }
}

#[test]
fn a_reset_during_an_evacuation_is_refused() {
    for seed in 0..20 {
        let bench = bench(seed);
        block_on(write(&bench.volume, 0, 0, 0, 20, Volatile)).unwrap();
        bench.device.fail_write(1, Fault::Failed);
        {
            // The caller loses interest; the evacuation goes on whenever anyone polls.
            let mut dropped = pin!(write(&bench.volume, 0, 0, 20, 8, Volatile));
            for _ in 0..=seed {
                if poll(dropped.as_mut()).is_ready() || bench.volume.status().evacuations > 0 {
                    break;
                }
                let mut reset = pin!(bench.volume.reset(ChunkId(0)));
                let refused = poll(reset.as_mut());
                let is_rule = |refused: &Result<(), _>| {
                    matches!(refused, Err(MediaError::Rule { operation: "reset", .. }))
                };
                assert!(matches!(&refused, Poll::Ready(refused) if is_rule(refused)), "{refused:?}");
            }
        }
        block_on(bench.volume.flush()).unwrap();
        block_on(expect(&bench, 0, 0, 20));
    }
}

/// Without the pin the old chunk would be reset under the read, which would then return zeros (even seeds).
#[test]
fn the_old_chunk_is_not_reset_while_it_is_read() {
    for seed in (0..60).step_by(2) {
        let bench = Bench::new(geometry(), seed, 30);
        block_on(write(&bench.volume, 0, 0, 0, 32, Durable)).unwrap();
        let mut reads: Vec<_> = (0..20).map(|_| Box::pin(expect(&bench, 0, 0, 16))).collect();
        reads.retain_mut(|read| poll(read.as_mut()).is_pending());
        bench.device.fail_write(1, Fault::Failed);
        block_on(write(&bench.volume, 0, 0, 32, 8, Durable)).unwrap();
        assert_eq!(bench.volume.status().remapped, 1);
        block_on(bench.volume.reset(ChunkId(1))).unwrap();
        reads.into_iter().for_each(block_on);
    }
}

/// The metadata still names the old chunk, and that still holds what was promised.
#[test]
fn the_power_goes_between_the_evacuation_and_the_record() {
    for seed in 0..60 {
        let bench = bench(seed);
        bench.write(0, 30, Durable).unwrap();
        bench.device.fail_write(1, Fault::Failed);
        bench.write(0, 16, Volatile).unwrap();
        assert_eq!((bench.volume.status().evacuations, bench.volume.status().remapped), (1, 0));
        let bench = bench.power_cycle();
        assert_eq!(bench.volume.status().remapped, 0);
        let spares = bench.volume.status().spares_left;
        assert_eq!(spares, 6, "the half-filled spare is free again");
    }
}

/// All spares but this one are gone: chunk 5, which failed with what line 0 had on it, and waits for its judgement.
fn with_one_used_spare(geometry: Geometry, seed: u64, yields_max: u32) -> Bench {
    let bench = Bench::new(geometry, seed, yields_max);
    bench.write(0, 32, Durable).unwrap();
    bench.device.fail_write(1, Fault::Failed);
    bench.write(0, 8, Durable).unwrap();
    assert_eq!(bench.volume.status().remapped, 1);
    for chunk in [3, 4, 11, 12, 13] {
        bench.device.sim.take_offline(ChunkId(chunk));
        bench.device.notice(Notice { chunk: ChunkId(chunk), sectors: None, kind: NoticeKind::Offline });
    }
    bench.volume.take_notices();
    assert_eq!(bench.volume.status().spares_left, 1);
    bench
}

/// Nothing of the new chunk was promised, and yet it must not be recorded before a flush: its reset is not durable, and
/// the power cut brings back what it held in its earlier life, as if it were the line's.
#[test]
fn a_remap_is_not_recorded_before_a_flush_covers_it() {
    for seed in 0..80 {
        let bench = with_one_used_spare(geometry(), seed, 4);
        bench.device.fail_write(2, Fault::Failed);
        let durable = write(&bench.volume, 1, 0, 0, 4, Durable);
        let (durable, failing) = both(durable, write(&bench.volume, 1, 0, 4, 4, Volatile));
        durable.unwrap();
        failing.unwrap();
        bench.model.borrow_mut().lines[1].written = 8;
        bench.power_cycle();
    }
}

/// It is about to be ready: without waiting for that the line would break.
#[test]
fn a_spare_that_is_being_judged_is_waited_for() {
    for seed in 0..40 {
        let bench = with_one_used_spare(geometry(), seed, 4);
        bench.device.fail_write(1, Fault::Failed);
        let failing = write(&bench.volume, 1, 0, 0, 8, Volatile);
        let (reset, failing) = both(bench.volume.reset(ChunkId(3)), failing);
        reset.unwrap();
        failing.unwrap();
        block_on(bench.volume.flush()).unwrap();
        assert_eq!((bench.volume.status().evacuations, bench.volume.status().spares_left), (2, 1));
    }
}

/// Part of a unit waits until a line may be opened, and for that another one must be closed beneath. If it still waited
/// while its line is reset, it would be written into the line's next life.
#[test]
fn what_waited_does_not_follow_into_the_next_life() {
    for seed in 0..100 {
        let bench = with_one_used_spare(Geometry { max_open: 6, ..geometry() }, seed, 40);
        bench.finish(0).unwrap();
        bench.write(3, 8, Volatile).unwrap();
        bench.write(1, 56, Volatile).unwrap();
        let volume = &bench.volume;
        let mut last = pin!(write(volume, 1, 0, 56, 8, Volatile));
        let pending = poll(last.as_mut()).is_pending();
        block_on(write(volume, 2, 0, 0, 2, Volatile)).unwrap();
        let mut flush = pin!(volume.flush());
        // The judgement of the spare keeps the reset busy.
        let reset = async {
            let waits = poll(flush.as_mut()).is_pending();
            volume.reset(ChunkId(2)).await.unwrap();
            if waits {
                flush.await.unwrap();
            }
            write(volume, 2, 1, 0, 6, Volatile).await.unwrap();
            write(volume, 2, 1, 6, 10, Durable).await.unwrap();
        };
        let last = async {
            if pending {
                last.await.unwrap();
            }
        };
        both(last, reset);
        let (read, buf) = block_on(volume.read(ChunkId(2), 0, AlignedBuf::zeroed(16 * SECTOR)));
        read.unwrap();
        assert!(*buf == *content(2, 1, 0, 16), "seed {seed}: another life's content");
    }
}

/// The chunk dies in the reset and is replaced. The read that was on its way fails, and says nothing of the line as it is
/// now: a notice would have the host give up what is sound.
#[test]
fn a_read_of_an_earlier_life_gives_no_notice() {
    for seed in 0..20 {
        let bench = Bench::new(geometry(), seed, 30);
        bench.write(0, 64, Durable).unwrap();
        bench.device.fail_reset(1);
        let mut read = pin!(bench.volume.read(ChunkId(0), 0, AlignedBuf::zeroed(4 * SECTOR)));
        if poll(read.as_mut()).is_ready() {
            continue;
        }
        block_on(bench.volume.reset(ChunkId(0))).unwrap();
        let (read, _) = block_on(read);
        assert!(matches!(read, Err(MediaError::Unreadable { .. })), "{read:?}");
        assert_eq!(bench.volume.take_notices(), []);
    }
}

#[test]
fn a_dropped_write_spoils_nothing() {
    for seed in 0..40 {
        for fault in [None, Some(Fault::FailedWithBuffer)] {
            let bench = bench(seed);
            block_on(write(&bench.volume, 0, 0, 0, 6, Volatile)).unwrap();
            if let Some(fault) = fault {
                bench.device.fail_write(1, fault);
            }
            {
                let mut dropped = pin!(write(&bench.volume, 0, 0, 6, 20, Durable));
                if poll(dropped.as_mut()).is_ready() {
                    continue;
                }
            }
            block_on(bench.volume.flush()).unwrap();
            block_on(write(&bench.volume, 0, 0, 26, 8, Durable)).unwrap();
            block_on(expect(&bench, 0, 0, 34));
            let refused = block_on(bench.volume.reset(ChunkId(0)));
            assert!(matches!(refused, Err(MediaError::Rule { .. })), "as every medium does");
        }
    }
}

/// A later flush of the device succeeds without covering what the failed one had to.
#[test]
fn a_failed_flush_is_never_success_later() {
    let bench = Bench::new(geometry(), 3, 0);
    bench.write(0, 20, Volatile).unwrap();
    bench.device.sim.fail_next_flush();
    bench.flush().unwrap_err();
    bench.flush().unwrap_err();
    bench.write(0, 2, Durable).unwrap_err();
    bench.reset(1).unwrap_err();
    bench.power_cycle().check();
}

/// A write that fails without naming a chunk is the writer's to know; a flush does not succeed if anything else that was
/// acknowledged went with it.
#[test]
fn an_error_that_names_no_chunk_stops_the_line() {
    let bench = Bench::new(geometry(), 3, 0);
    bench.write(0, 6, Volatile).unwrap();
    bench.device.fail_write(1, Fault::Io);
    bench.write(0, 2, Volatile).unwrap_err();
    bench.write(0, 2, Volatile).unwrap_err();
    bench.flush().unwrap_err();
    assert_eq!(block_on(bench.volume.report()).unwrap()[0].write_pointer, 4, "one unit was done");
    block_on(expect(&bench, 0, 0, 4));
    bench.reset(0).unwrap();
    bench.flush().unwrap();
    bench.write(0, 10, Durable).unwrap();
    bench.check();
}

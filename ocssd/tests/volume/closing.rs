//! Lines that are closed: because they were found open, because they broke; and chunks that cannot be closed.

use std::pin::pin;

use terrane_ocssd::{AlignedBuf, ChunkId, ChunkState, Durability, Media, MediaError, Notice, NoticeKind};

use crate::faulty::{Fault, Faulty, block_on};
use crate::model::{SECTOR, content, write};
use crate::{Bench, geometry, is_no_spare, poll};

use Durability::{Durable, Volatile};

fn bench(seed: u64) -> Bench {
    Bench::new(geometry(), seed, 0)
}

fn info(bench: &Bench, line: u32) -> (ChunkState, u32) {
    let info = block_on(bench.volume.report()).unwrap()[line as usize];
    (info.state, info.write_pointer)
}

fn expect(bench: &Bench, line: u32, end: u32) {
    let (read, buf) =
        block_on(bench.volume.read(ChunkId(line), 0, AlignedBuf::zeroed(end as usize * SECTOR)));
    read.unwrap();
    assert!(*buf == *content(line, 0, 0, end));
}

/// No spare is left.
fn without_spares(protects_buffer: bool) -> Bench {
    let device = Faulty::new(geometry(), 1, 0);
    device.protect_buffer(protects_buffer);
    let bench = Bench::with(device);
    for chunk in [2, 3, 4, 11, 12, 13] {
        bench.device.sim.take_offline(ChunkId(chunk));
        bench.device.notice(Notice { chunk: ChunkId(chunk), sectors: None, kind: NoticeKind::Offline });
    }
    bench.volume.take_notices();
    bench
}

/// What the device hides of an open chunk is in nobody's memory after a start, and dies with the power. Without the close
/// it could not be read; without the flush behind it the second cut would take it.
#[test]
fn a_line_found_open_is_closed_with_its_durable_end() {
    for seed in 0..60 {
        for cut in [false, true] {
            let bench = bench(seed);
            bench.write(0, 40, Durable).unwrap();
            bench.write(1, 10, Volatile).unwrap();
            bench.flush().unwrap();
            let bench = if cut { bench.power_cycle() } else { bench.restart() };
            for line in [0, 1] {
                let (state, end) = info(&bench, line);
                assert!(end == 0 || state == ChunkState::Closed, "line {line} is {state:?} at {end}");
                assert!(cut || end == [40, 10][line as usize]);
                if end > 0 {
                    let refused = block_on(write(&bench.volume, line, 0, end, 2, Durable));
                    assert!(matches!(refused, Err(MediaError::Rule { .. })), "{refused:?}");
                }
                bench.model.borrow_mut().lines[line as usize].promised = end;
            }
            bench.check();
            assert_eq!(bench.volume.status().evacuations, 0);
            let bench = bench.power_cycle();
            bench.reset(0).unwrap();
            bench.write(0, 20, Durable).unwrap();
            bench.check();
        }
    }
}

/// A device that hides nothing: such a line goes on.
#[test]
fn a_line_of_which_nothing_is_hidden_stays_open() {
    let bench = Bench::new(terrane_ocssd::Geometry { mw_cunits: 0, ..geometry() }, 1, 0);
    bench.write(0, 40, Durable).unwrap();
    let bench = bench.power_cycle();
    assert_eq!(info(&bench, 0), (ChunkState::Open, 40));
    bench.write(0, 24, Durable).unwrap();
    bench.power_cycle().check();
}

/// Once a read waited there until a member was closed, and did not survive that the line was reset meanwhile.
#[test]
fn a_line_found_open_is_read_and_reset_at_once() {
    for seed in 0..40 {
        let bench = Bench::new(geometry(), seed, 4);
        bench.write(0, 40, Durable).unwrap();
        let bench = bench.restart();
        let buf = AlignedBuf::zeroed(40 * SECTOR);
        let mut read = pin!(bench.volume.read(ChunkId(0), 0, buf));
        if poll(read.as_mut()).is_ready() {
            continue;
        }
        block_on(bench.volume.reset(ChunkId(0))).unwrap();
        block_on(read).0.unwrap();
    }
}

/// It ends where it can be read, which is not before what was promised.
#[test]
fn a_line_found_open_that_cannot_be_closed_ends_where_it_can_be_read() {
    let bench = bench(1);
    bench.write(0, 40, Durable).unwrap();
    bench.device.fail_finishes(2);
    let bench = bench.restart();
    assert_eq!(info(&bench, 0), (ChunkState::Closed, 26), "of 20 sectors on either chunk 14 can be read");
    bench.check();
    let notice = Notice { chunk: ChunkId(0), sectors: None, kind: NoticeKind::EccHigh };
    assert_eq!(bench.volume.take_notices(), [notice]);
    bench.reset(0).unwrap();
    bench.write(0, 40, Durable).unwrap();
    bench.power_cycle().check();
}

/// If what cannot be closed counted as written, the flush would promise what dies with the power.
#[test]
fn a_broken_line_that_cannot_be_closed_is_not_reported_flushed() {
    for flushed in [false, true] {
        let bench = without_spares(flushed);
        bench.write(0, 40, Volatile).unwrap();
        if flushed {
            bench.flush().unwrap();
        }
        bench.device.fail_finishes(1);
        bench.device.fail_write(1, Fault::Failed);
        assert!(is_no_spare(&bench.write(0, 4, Volatile).unwrap_err()));
        if flushed {
            // The device had promised what it hides, and memory still returns it.
            bench.flush().unwrap();
            assert_eq!(info(&bench, 0), (ChunkState::Closed, 40));
            expect(&bench, 0, 40);
        } else {
            assert!(is_no_spare(&bench.flush().unwrap_err()), "acknowledged sectors are not durable");
            assert_eq!(
                info(&bench, 0),
                (ChunkState::Closed, 30),
                "20 sectors on the second chunk, 6 of them hidden"
            );
            expect(&bench, 0, 30);
        }
        bench.power_cycle();
    }
}

/// The same if it is the finish itself that breaks the line. It is tried once more.
#[test]
fn a_line_that_a_finish_breaks_is_not_reported_flushed() {
    for failures in [2, 4] {
        let bench = bench(1);
        bench.write(0, 40, Volatile).unwrap();
        bench.device.fail_finishes(failures);
        bench.finish(0).unwrap_err();
        let flush = bench.flush();
        match failures {
            2 => {
                flush.unwrap();
                assert_eq!(info(&bench, 0), (ChunkState::Closed, 40));
                expect(&bench, 0, 40);
            }
            _ => {
                flush.unwrap_err();
                assert_eq!(info(&bench, 0), (ChunkState::Closed, 26));
                expect(&bench, 0, 26);
            }
        }
        bench.power_cycle();
    }
}

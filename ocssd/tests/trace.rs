//! What a recorder writes down of a medium, and what an ordinary drive makes of it.

use std::future::Future;
use std::io::{self, Write};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use terrane_ocssd::ftl::{Ftl, FtlOptions};
use terrane_ocssd::trace::{Event, Recorder, ReplayOptions, Tail, Trace, replay, side_by_side};
use terrane_ocssd::{
    AlignedBuf, ChunkId, Durability, Geometry, LifetimeClass, Media, MediaError, SimMedia, SimOptions,
};

const GEOMETRY: Geometry = Geometry {
    groups: 1,
    parallel_units: 1,
    chunks: 80,
    chunk_sectors: 64,
    sector_bytes: 4096,
    ws_min: 1,
    ws_opt: 8,
    mw_cunits: 0,
    max_open: 0,
};

fn run<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
}

fn medium() -> SimMedia {
    SimMedia::new(GEOMETRY, SimOptions { conventional: false, ..SimOptions::default() })
}

async fn write(media: &impl Media, chunk: u32, sector: u32, sectors: u32) -> Result<(), MediaError> {
    let buf = AlignedBuf::zeroed(sectors as usize * 4096);
    media.write(ChunkId(chunk), sector, buf, Durability::Volatile).await.0
}

/// A log-structured store that keeps four fifths of its chunks: it resets one at random and fills a free one.
async fn log_structured(media: &impl Media, rounds: u32, seed: u64) {
    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    let mut free: Vec<u32> = (0..GEOMETRY.chunks).collect();
    let mut used = Vec::new();
    for _ in 0..rounds {
        while used.len() >= GEOMETRY.chunks as usize / 5 * 4 {
            let chunk = used.swap_remove(rng.random_range(0..used.len()));
            media.reset(ChunkId(chunk)).await.unwrap();
            free.push(chunk);
        }
        let chunk = free.swap_remove(rng.random_range(0..free.len()));
        for sector in (0..64).step_by(16) {
            write(media, chunk, sector, 16).await.unwrap();
        }
        used.push(chunk);
    }
}

fn recorded(rounds: u32) -> (Trace, SimMedia) {
    let (recorder, recording) = Recorder::new(medium(), Vec::new()).unwrap();
    run(log_structured(&recorder, rounds, 3));
    let trace = Trace::read(&recording.end().unwrap()[..]).unwrap();
    (trace, recorder.into_media())
}

/// The host's log is written without amplification on flash that it manages, and the same log costs more on a drive
/// that manages itself: least if resets are told as TRIM and chunks are blocks, most if nothing is told.
#[test]
fn a_log_on_an_ordinary_drive() {
    let (trace, media) = recorded(2000);
    assert_eq!((trace.geometry, trace.tail), (GEOMETRY, Tail::Ended));
    let written = media.counters().written_bytes;
    let on_a_drive = |block_pages, trim| {
        // The blocks that are open or reserved are many of so few: the spare is counted beyond them.
        let options = FtlOptions {
            logical_pages: 80 * 64,
            block_pages,
            over_provisioning: 0.07 + 4.0 * f64::from(block_pages) / (80.0 * 64.0),
            ..FtlOptions::default()
        };
        let mut drive = Ftl::new(options).unwrap();
        drive.fill();
        let options = ReplayOptions { trim, ..ReplayOptions::default() };
        replay(&trace, &mut drive, &options).unwrap();
        let replayed = replay(&trace, &mut drive, &options).unwrap();
        assert_eq!(replayed.host_bytes, written, "the trace holds what the medium counted");
        replayed.amplification()
    };
    let whole = on_a_drive(64, true);
    let (told, untold) = (on_a_drive(128, true), on_a_drive(128, false));
    eprintln!("chunks as blocks {whole:.3}; two a block: with TRIM {told:.3}, without {untold:.3}");
    assert_eq!(whole, 1.0);
    assert!(told > 1.05 && untold > told + 0.2, "with TRIM {told:.3}, without {untold:.3}");
}

#[test]
fn what_succeeds_is_recorded_and_nothing_else() {
    let (recorder, recording) = Recorder::new(medium(), Vec::new()).unwrap();
    run(async {
        recorder.expect_lifetime(ChunkId(7), LifetimeClass(3));
        write(&recorder, 7, 0, 2).await.unwrap();
        write(&recorder, 7, 9, 1).await.unwrap_err();
        recorder.media().fail_next_write();
        write(&recorder, 7, 2, 1).await.unwrap_err();
        let buf = AlignedBuf::zeroed(3 * 4096);
        let place = recorder.append(ChunkId(8), buf, Durability::Durable).await.0.unwrap();
        assert_eq!(place, 0);
        recorder.finish(ChunkId(9)).await.unwrap_err();
        recorder.finish(ChunkId(7)).await.unwrap();
        recorder.read(ChunkId(7), 0, AlignedBuf::zeroed(4096)).await.0.unwrap();
        recorder.flush().await.unwrap();
        recorder.reset(ChunkId(80)).await.unwrap_err();
        recorder.reset(ChunkId(7)).await.unwrap();
        // The class went with the old content.
        write(&recorder, 7, 0, 1).await.unwrap();
    });
    let bytes = recording.end().unwrap();
    run(write(&recorder, 7, 1, 1)).unwrap();
    let write = |chunk, sectors, class| Event::Write {
        chunk: ChunkId(chunk),
        sector: 0,
        sectors,
        class: LifetimeClass(class),
    };
    let expected = [
        write(7, 2, 3),
        write(8, 3, 0),
        Event::Finish { chunk: ChunkId(7) },
        Event::Reset { chunk: ChunkId(7) },
        write(7, 1, 0),
    ];
    assert_eq!(Trace::read(&bytes[..]).unwrap().events, expected);
}

/// A full disk must not fail the store that is being recorded.
#[test]
fn a_sink_that_fails_changes_nothing_for_the_host() {
    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let (recorder, recording) = Recorder::new(medium(), Full(100)).unwrap();
    run(log_structured(&recorder, 5000, 1));
    assert_eq!(recorder.counters().writes, 20_000);
    assert_eq!(recording.end().err().unwrap().kind(), io::ErrorKind::StorageFull);
}

/// A recorder that is dropped, as with a process that dies, leaves what it had written out.
#[test]
fn a_recording_that_was_not_ended_is_told_as_cut_off() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let (recorder, recording) = Recorder::new(medium(), file.reopen().unwrap()).unwrap();
    run(log_structured(&recorder, 5000, 1));
    drop((recorder, recording));
    let trace = Trace::read(file.reopen().unwrap()).unwrap();
    assert!(matches!(trace.tail, Tail::CutOff { .. }));
    assert!(trace.events.len() > 5000, "{}", trace.events.len());
}

/// A host that may record is compiled for one type of medium.
#[test]
fn an_idle_recorder_passes_everything_on() {
    let recorder: Recorder<_, io::Sink> = Recorder::idle(medium());
    recorder.expect_lifetime(ChunkId(0), LifetimeClass(3));
    run(log_structured(&recorder, 100, 1));
    assert_eq!(recorder.counters().writes, 400);
}

/// Two shards whose traces are each a log written in order, at different paces: on blocks that they share, the drive
/// must move what the slower one still has, unless each has a stream.
#[test]
fn two_shards_on_one_drive() {
    let log = |rounds: u32| {
        let (recorder, recording) = Recorder::new(medium(), Vec::new()).unwrap();
        run(async {
            for round in 0..rounds {
                let chunk = round % GEOMETRY.chunks;
                recorder.reset(ChunkId(chunk)).await.unwrap();
                for sector in (0..64).step_by(8) {
                    write(&recorder, chunk, sector, 8).await.unwrap();
                }
            }
        });
        let trace = Trace::read(&recording.end().unwrap()[..]).unwrap();
        assert_eq!(trace.written_bytes(), recorder.counters().written_bytes);
        trace
    };
    let amplification = |paces: [u32; 2], streams| {
        let traces = paces.map(|pace| log(pace * GEOMETRY.chunks));
        let joined = side_by_side(&traces).unwrap();
        assert_eq!(joined.written_bytes(), traces.iter().map(Trace::written_bytes).sum::<u64>());
        let options = FtlOptions {
            logical_pages: 2 * 80 * 64,
            block_pages: 128,
            over_provisioning: 0.1,
            host_streams: 2,
            ..FtlOptions::default()
        };
        let mut drive = Ftl::new(options).unwrap();
        drive.fill();
        let options = ReplayOptions { streams, ..ReplayOptions::default() };
        (0..4).map(|_| replay(&joined, &mut drive, &options).unwrap().amplification()).last().unwrap()
    };
    assert_eq!(amplification([1, 1], false), 1.0, "what is written together dies together");
    let mixed = amplification([1, 3], false);
    assert!(mixed > 1.1, "{mixed:.3}");
    assert_eq!(amplification([1, 3], true), 1.0);
}

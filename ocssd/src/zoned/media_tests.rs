use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

use super::*;
use crate::claims::Claims;
use crate::lock::LockError;
use crate::nvme::status::Status;
use crate::probe::Kind;
use crate::zoned::fake::{FakeZones, SECTOR_BYTES, Trouble};

const ZONES: u32 = 4;
const ZONE_SECTORS: u64 = 32;
const CAPACITY: u32 = 24;

fn shape() -> ZonedShape {
    ZonedShape {
        zones: ZONES,
        zone_sectors: ZONE_SECTORS,
        capacity_sectors: CAPACITY,
        sector_bytes: SECTOR_BYTES as u32,
        best_write_sectors: 4,
        open_max: 0,
    }
}

fn over(fake: FakeZones) -> ZonedMedia {
    slice_of(fake, Arc::default(), None)
}

fn slice_of(fake: FakeZones, barrier: Arc<Barrier>, owned: Option<Owned>) -> ZonedMedia {
    let zones = fake.report();
    let slice = ZonedSlice { first_zone: 0, zones: ZONES, max_open: 0 };
    ZonedMedia::new(Transport::Fake(fake), &shape(), slice, &zones, barrier, owned).unwrap()
}

fn fake(media: &ZonedMedia) -> &FakeZones {
    let Transport::Fake(fake) = &media.transport else { panic!("another transport") };
    fake
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
}

/// Submits an operation, and drops its future before it ends.
fn begin_and_drop<T>(operation: impl Future<Output = T>) {
    assert!(pin!(operation).poll(&mut Context::from_waker(Waker::noop())).is_pending());
}

fn filled(byte: u8, sectors: u32) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(sectors as usize * SECTOR_BYTES);
    buf.fill(byte);
    buf
}

async fn write(
    media: &ZonedMedia,
    chunk: u32,
    sector: u32,
    byte: u8,
    sectors: u32,
) -> Result<(), MediaError> {
    media.write(ChunkId(chunk), sector, filled(byte, sectors), Durability::Volatile).await.0
}

async fn append(media: &ZonedMedia, chunk: u32, byte: u8, sectors: u32) -> Result<u32, MediaError> {
    media.append(ChunkId(chunk), filled(byte, sectors), Durability::Volatile).await.0
}

async fn byte_at(media: &ZonedMedia, chunk: u32, sector: u32) -> Result<u8, MediaError> {
    let (result, buf) = media.read(ChunkId(chunk), sector, filled(0, 1)).await;
    result.map(|()| {
        assert!(buf.iter().all(|byte| *byte == buf[0]));
        buf[0]
    })
}

async fn state(media: &ZonedMedia, chunk: u32) -> (ChunkState, u32) {
    let info = media.report().await.unwrap()[chunk as usize];
    (info.state, info.write_pointer)
}

/// All of them at once, in the order given.
async fn all<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut waiting: Vec<_> = futures.into_iter().map(|future| Some(Box::pin(future))).collect();
    let mut done: Vec<Option<T>> = waiting.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (index, future) in waiting.iter_mut().enumerate() {
            if let Some(Poll::Ready(value)) = future.as_mut().map(|future| future.as_mut().poll(context)) {
                done[index] = Some(value);
                *future = None;
            }
        }
        if done.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}

/// A write or an append: where it went, how long it is, and its byte.
type Placing = Pin<Box<dyn Future<Output = (u32, u32, u8)>>>;

/// With all writes sharing a zone (`Sharing::Shared` in `place`), the device refuses the first that overtakes.
#[test]
fn writes_and_appends_reach_a_device_that_reorders_in_the_host_s_order() {
    let seeds = std::env::var("TERRANE_SEED").ok().map_or(0..300, |seed| {
        let seed = seed.parse().expect("a number");
        seed..seed + 1
    });
    for seed in seeds {
        let replay = format!("TERRANE_SEED={seed} cargo test -p terrane-ocssd --lib reorders");
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        let media = Rc::new(over(FakeZones::new(ZONES, ZONE_SECTORS, seed, 6)));
        run(async {
            for life in 0..3 {
                let mut operations: Vec<Placing> = Vec::new();
                let mut next = 0;
                while next < CAPACITY {
                    // Appends beyond four sectors are not placed by the device.
                    let sectors = rng.random_range(1..=6).min(CAPACITY - next);
                    let (media, byte, at) = (media.clone(), 1 + life * 50 + operations.len() as u8, next);
                    operations.push(if rng.random_bool(0.5) {
                        Box::pin(async move {
                            write(&media, 1, at, byte, sectors).await.unwrap();
                            (at, sectors, byte)
                        })
                    } else {
                        Box::pin(
                            async move { (append(&media, 1, byte, sectors).await.unwrap(), sectors, byte) },
                        )
                    });
                    next += sectors;
                }
                let mut places = all(operations).await;
                places.sort_unstable();
                let mut end = 0;
                for (at, sectors, byte) in places {
                    assert_eq!(at, end, "a hole or an overlap: {replay}");
                    end = at + sectors;
                    assert_eq!(byte_at(&media, 1, at).await.unwrap(), byte, "{replay}");
                    assert_eq!(byte_at(&media, 1, end - 1).await.unwrap(), byte, "{replay}");
                }
                assert_eq!(state(&media, 1).await, (ChunkState::Closed, CAPACITY), "{replay}");
                media.reset(ChunkId(1)).await.unwrap();
            }
        });
    }
}

#[test]
fn appends_are_in_flight_together() {
    let media = over(FakeZones::new(ZONES, ZONE_SECTORS, 1, 6));
    run(async {
        let places = all((0..6).map(|byte| append(&media, 0, byte, 2)).collect()).await;
        let mut places: Vec<u32> = places.into_iter().map(Result::unwrap).collect();
        places.sort_unstable();
        assert_eq!(places, [0, 2, 4, 6, 8, 10]);
    });
    assert_eq!(fake(&media).appends_at_once.get(), 6);
}

#[test]
fn a_failed_write_closes_the_chunk_and_fails_what_waited_behind_it() {
    let media = over(FakeZones::new(ZONES, ZONE_SECTORS, 2, 3));
    run(async {
        write(&media, 0, 0, 1, 5).await.unwrap();
        fake(&media).trouble([Trouble::Status(0x4000 | Status::WRITE_FAULT)]);
        let results = all((0..3).map(|index| write(&media, 0, 5 + index, 2, 1)).collect()).await;
        for result in results {
            let failed = matches!(result, Err(MediaError::WriteFailed { chunk: ChunkId(0), sector: 5 }));
            assert!(failed, "{result:?}");
        }
        assert_eq!(state(&media, 0).await, (ChunkState::Closed, 5));
        assert_eq!(byte_at(&media, 0, 4).await.unwrap(), 1);
        // It holds no open resource.
        assert_eq!(fake(&media).report()[0].condition, ZoneCondition::Full);
        assert!(matches!(write(&media, 0, 5, 2, 1).await, Err(MediaError::Rule { .. })));
        media.reset(ChunkId(0)).await.unwrap();
        write(&media, 0, 0, 3, 2).await.unwrap();
        append(&media, 0, 3, 2).await.unwrap();
    });
}

/// As QEMU's zones through the kernel's block device: a failed write moves the write pointer, the kernel's second attempt
/// is refused for it, and all that comes back is an input/output error.
#[test]
fn a_write_pointer_that_moved_without_a_word_is_a_failed_write() {
    for (trouble, moved) in [(Trouble::Lost, true), (Trouble::Status(0x006), false)] {
        let media = over(FakeZones::new(ZONES, ZONE_SECTORS, 9, 3));
        run(async {
            write(&media, 0, 0, 1, 5).await.unwrap();
            fake(&media).trouble([trouble]);
            let result = write(&media, 0, 5, 2, 1).await;
            match result {
                Err(MediaError::WriteFailed { sector: 5, .. }) => assert!(moved),
                Err(MediaError::Io { .. }) => assert!(!moved),
                other => panic!("{other:?}"),
            }
            assert_eq!(state(&media, 0).await, (ChunkState::Closed, 5));
        });
    }
}

#[test]
fn a_failed_append_keeps_what_the_others_wrote() {
    let media = over(FakeZones::new(ZONES, ZONE_SECTORS, 3, 4));
    run(async {
        fake(&media).trouble([Trouble::None, Trouble::Status(Status::WRITE_FAULT), Trouble::None]);
        let results = all((1..=3).map(|byte| append(&media, 2, byte, 2)).collect()).await;
        let failed: Vec<_> = results.iter().filter(|result| result.is_err()).collect();
        assert!(matches!(failed[..], [Err(MediaError::WriteFailed { sector: 4, .. })]), "{results:?}");
        for (byte, place) in (1..).zip(&results) {
            if let Ok(place) = place {
                assert_eq!(byte_at(&media, 2, *place).await.unwrap(), byte);
            }
        }
        assert_eq!(state(&media, 2).await, (ChunkState::Closed, 4));
    });
}

/// Without the write pointer of the start, what the last owner wrote would be cut off.
#[test]
fn a_failed_append_keeps_what_was_there_at_the_start() {
    let first = over(FakeZones::new(ZONES, ZONE_SECTORS, 3, 0));
    run(async { write(&first, 0, 0, 7, 3).await.unwrap() });
    let ZonedMedia { ref transport, .. } = first;
    let Transport::Fake(device) = transport else { panic!("another transport") };
    let again = FakeZones::new(ZONES, ZONE_SECTORS, 3, 0);
    let mut zones = again.report();
    zones[0] = device.report()[0];
    let slice = ZonedSlice { first_zone: 0, zones: ZONES, max_open: 0 };
    let media =
        ZonedMedia::new(Transport::Fake(again), &shape(), slice, &zones, Arc::default(), None).unwrap();
    run(async {
        fake(&media).trouble([Trouble::Status(Status::WRITE_FAULT)]);
        assert!(matches!(append(&media, 0, 1, 1).await, Err(MediaError::WriteFailed { sector: 3, .. })));
        assert_eq!(state(&media, 0).await, (ChunkState::Closed, 3));
    });
}

#[test]
fn a_zone_that_the_device_closes_is_readable_below() {
    for condition in [ZoneCondition::ReadOnly, ZoneCondition::Full] {
        let media = over(FakeZones::new(ZONES, ZONE_SECTORS, 4, 3));
        run(async {
            write(&media, 0, 0, 1, 5).await.unwrap();
            fake(&media).trouble([Trouble::Condition(condition)]);
            let results = all((0..2).map(|index| write(&media, 0, 5 + index, 2, 1)).collect()).await;
            for result in results {
                let closed = matches!(result, Err(MediaError::ClosedEarly { write_pointer: 5, .. }));
                assert!(closed, "{result:?}");
            }
            assert_eq!(state(&media, 0).await, (ChunkState::Closed, 5));
            assert_eq!(byte_at(&media, 0, 4).await.unwrap(), 1);
            assert_eq!(media.reset(ChunkId(0)).await.is_err(), condition == ZoneCondition::ReadOnly);
        });
    }
}

#[test]
fn an_offline_zone_is_said_once_and_refused_from_then_on() {
    let media = over(FakeZones::new(ZONES, ZONE_SECTORS, 5, 3));
    run(async {
        write(&media, 0, 0, 1, 5).await.unwrap();
        fake(&media).set_condition(0, ZoneCondition::Offline);
        assert!(matches!(write(&media, 0, 5, 1, 1).await, Err(MediaError::Offline { .. })));
        assert_eq!(state(&media, 0).await.0, ChunkState::Offline);
        let notice = Notice { chunk: ChunkId(0), sectors: None, kind: NoticeKind::Offline };
        assert_eq!(media.take_notices(), [notice]);
        assert!(matches!(byte_at(&media, 0, 0).await, Err(MediaError::Offline { .. })));
        assert!(matches!(media.reset(ChunkId(0)).await, Err(MediaError::Offline { .. })));
        assert_eq!(media.take_notices(), []);
    });
}

#[test]
fn a_refusal_before_the_first_sector_leaves_the_chunk_free() {
    let media = over(FakeZones::new(ZONES, ZONE_SECTORS, 6, 3));
    run(async {
        fake(&media).trouble([Trouble::Status(Status::TOO_MANY_OPEN)]);
        let results = all((0..2).map(|index| write(&media, 0, index, 2, 1)).collect()).await;
        assert!(matches!(results[0], Err(MediaError::Rule { .. })), "{results:?}");
        assert!(results[1].is_err());
        assert_eq!(state(&media, 0).await, (ChunkState::Free, 0));
        write(&media, 0, 0, 2, 1).await.unwrap();
        write(&media, 0, 1, 2, 1).await.unwrap();
    });
}

#[test]
fn a_place_outside_the_zone_is_not_believed() {
    for said in [ZONE_SECTORS - 1, ZONE_SECTORS + u64::from(CAPACITY) - 1, u64::MAX, 0] {
        let media = over(FakeZones::new(ZONES, ZONE_SECTORS, 7, 0));
        run(async {
            fake(&media).trouble([Trouble::Lie(said)]);
            let result = append(&media, 1, 1, 2).await;
            // The device has moved its write pointer, so what it says elsewhere is lost.
            assert!(matches!(result, Err(MediaError::WriteFailed { sector: 0, .. })), "{result:?}");
            assert_eq!(state(&media, 1).await.0, ChunkState::Closed);
        });
    }
}

#[test]
fn a_dropped_write_leaves_the_chunk_alone() {
    let media = over(FakeZones::new(ZONES, ZONE_SECTORS, 8, 9));
    run(async {
        let mut next = 0;
        loop {
            let mut dropped = pin!(write(&media, 0, next, 1, 1));
            next += 1;
            if dropped.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() && next > 1 {
                break;
            }
            dropped.await.unwrap();
        }
        assert!(matches!(write(&media, 0, next, 3, 1).await, Err(MediaError::Rule { .. })));
        assert!(matches!(media.reset(ChunkId(0)).await, Err(MediaError::Rule { .. })));
        assert_eq!(byte_at(&media, 0, 0).await.unwrap(), 1);
    });
}

/// A zone whose write failed would keep its open resource, of which the host knows nothing any more.
#[test]
fn a_zone_that_cannot_be_looked_at_gives_its_resource_back() {
    let media = over(FakeZones::new(ZONES, ZONE_SECTORS, 9, 3));
    run(async {
        write(&media, 0, 0, 1, 5).await.unwrap();
        fake(&media).trouble([Trouble::Lost]);
        fake(&media).is_silent.set(true);
        assert!(write(&media, 0, 5, 2, 1).await.is_err());
        assert_eq!(state(&media, 0).await, (ChunkState::Closed, 5));
        assert_eq!(fake(&media).report()[0].condition, ZoneCondition::Full);
        assert_eq!(byte_at(&media, 0, 4).await.unwrap(), 1);
    });
}

/// The kernel says once that the flush behind a write failed. Forgotten, a later flush says that all is well.
#[test]
fn a_durable_write_whose_flush_may_have_failed_fails_the_later_flushes_of_every_slice() {
    // No FUA; what becomes of the write; whether the device says how the zone is then; whether flushes fail.
    let table = [
        (true, Trouble::None, true, false),
        (true, Trouble::Lost, true, true),
        (true, Trouble::Lost, false, true),
        (true, Trouble::Condition(ZoneCondition::Full), true, true),
        (true, Trouble::Condition(ZoneCondition::ReadOnly), true, true),
        (true, Trouble::Condition(ZoneCondition::Offline), true, true),
        // The write pointer stands where it stood: there was nothing to be flushed yet.
        (true, Trouble::Status(Status::WRITE_FAULT), true, false),
        (true, Trouble::Status(Status::WRITE_FAULT), false, true),
        // Alone with its failure.
        (false, Trouble::Lost, true, false),
    ];
    for (case, (no_fua, trouble, says, fails)) in table.into_iter().enumerate() {
        for (durability, fails) in [(Durability::Durable, fails), (Durability::Volatile, false)] {
            let barrier = Arc::<Barrier>::default();
            let slice = || slice_of(FakeZones::new(ZONES, ZONE_SECTORS, 10, 3), barrier.clone(), None);
            let (media, other) = (slice(), slice());
            run(async {
                write(&media, 0, 0, 1, 5).await.unwrap();
                fake(&media).flushes_behind_durable_writes.set(no_fua);
                fake(&media).trouble([trouble]);
                fake(&media).is_silent.set(!says);
                let (written, _) = media.write(ChunkId(0), 5, filled(2, 1), durability).await;
                assert_eq!(written.is_err(), trouble != Trouble::None, "{case}");
                for media in [&media, &other] {
                    assert_eq!(media.flush().await.is_err(), fails, "{case}: {durability:?}");
                }
            });
        }
    }
}

/// Nobody would ever hear that it failed.
#[test]
fn a_dropped_flush_or_durable_write_fails_the_later_flushes_of_every_slice() {
    type Drops = fn(&ZonedMedia);
    let flush: Drops = |media| begin_and_drop(media.flush());
    let durable: Drops =
        |media| begin_and_drop(media.write(ChunkId(0), 0, filled(1, 1), Durability::Durable));
    let volatile: Drops = |media| begin_and_drop(write(media, 0, 0, 1, 1));
    for (case, (drops, no_fua, fails)) in
        [(flush, false, true), (durable, true, true), (durable, false, false), (volatile, true, false)]
            .into_iter()
            .enumerate()
    {
        let barrier = Arc::<Barrier>::default();
        let slice = || slice_of(FakeZones::new(ZONES, ZONE_SECTORS, 11, 99), barrier.clone(), None);
        let (media, other) = (slice(), slice());
        fake(&media).flushes_behind_durable_writes.set(no_fua);
        drops(&media);
        assert_eq!(run(other.flush()).is_err(), fails, "{case}");
    }
}

/// The next owner would meet it: a reset empties the zone that he writes to.
#[test]
fn a_slice_is_kept_if_something_was_dropped_in_flight() {
    type Drops = fn(&ZonedMedia);
    let nothing: Drops = |_| {};
    let read: Drops = |media| begin_and_drop(byte_at(media, 1, 0));
    let append: Drops = |media| begin_and_drop(append(media, 1, 1, 1));
    let reset: Drops = |media| begin_and_drop(media.reset(ChunkId(1)));
    let finish: Drops = |media| begin_and_drop(media.finish(ChunkId(1)));
    for (drops, kept) in [(nothing, false), (read, false), (append, true), (reset, true), (finish, true)] {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lock = || DeviceLock::take(file.path(), Kind::RegularFile);
        let claims = Arc::<Claims>::default();
        let claim = claims.take(0..ZONES, ZONES, 0, 0).unwrap();
        let owned = Owned { claim, lock: Arc::new(lock().unwrap()) };
        let media = slice_of(FakeZones::new(ZONES, ZONE_SECTORS, 12, 99), Arc::default(), Some(owned));
        run(write(&media, 1, 0, 1, 1)).unwrap();
        drops(&media);
        drop(media);
        assert_eq!(claims.take(0..1, ZONES, 0, 0).is_err(), kept);
        assert_eq!(matches!(lock(), Err(LockError::Held)), kept);
    }
}

/// It would fill the zone in its next life.
#[test]
fn a_chunk_is_not_reset_if_its_finish_was_dropped_in_flight() {
    let media = over(FakeZones::new(ZONES, ZONE_SECTORS, 13, 99));
    run(async {
        write(&media, 0, 0, 1, 3).await.unwrap();
        begin_and_drop(media.finish(ChunkId(0)));
        assert!(matches!(media.reset(ChunkId(0)).await, Err(MediaError::Rule { operation: "reset", .. })));
        assert_eq!(byte_at(&media, 0, 2).await.unwrap(), 1);
        // Its neighbours go on.
        media.reset(ChunkId(1)).await.unwrap();
        write(&media, 1, 0, 1, 3).await.unwrap();
    });
}

//! The store over flash that the host manages: a device that remembers write pointers and what is open, a volume on it,
//! and lives that end suddenly; and over placement handles, whose reclaim units each hold one segment.

mod harness;

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use harness::placement::PlacedMedia;
use harness::{Executor, Replay, SLICE, block_on, geometry, options, put, seeds, small_flushes};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use terrane_engine::{GroupId, Options, Store, StoreError};
use terrane_ocssd::{
    FlashDevice, FlashMedia, FlashOptions, Geometry, Media, SimMedia, SimOptions, Volume, VolumeOptions,
};

const GROUP: GroupId = GroupId(1);

/// Two units; lines of 64 KiB, four of which may be open beside the metadata.
fn device(seed: u64) -> FlashDevice {
    let geometry = Geometry {
        groups: 1,
        parallel_units: 2,
        chunks: 120,
        chunk_sectors: 64,
        sector_bytes: 512,
        ws_min: 2,
        ws_opt: 8,
        mw_cunits: 16,
        max_open: 10,
    };
    let options =
        FlashOptions { geometry, seed, protected_buffer: true, yields_max: 2, ..FlashOptions::default() };
    let device = FlashDevice::memory(options).unwrap();
    let volume_options = VolumeOptions { spare_chunks_per_unit: 2, ..VolumeOptions::default() };
    block_on(async {
        let volume = Volume::create(device.slice(0, 1).unwrap(), &volume_options).await.unwrap();
        assert_eq!(volume.geometry().max_open, 4);
        Store::format(&volume, SLICE).await.unwrap();
    });
    device
}

/// A store with its flusher running.
struct Life<M: Media> {
    store: Store<M>,
    executor: Executor,
    last: u64,
}

/// On a volume of the device.
fn open(device: &FlashDevice, seed: u64) -> Life<Volume<FlashMedia>> {
    let volume = block_on(Volume::open(device.slice(0, 1).unwrap())).unwrap();
    Life::begin(volume, options_of(seed))
}

fn options_of(seed: u64) -> Options {
    if seed.is_multiple_of(2) { options() } else { small_flushes() }
}

impl<M: Media> Life<M> {
    fn begin(media: M, options: Options) -> Self {
        let opened = block_on(Store::open(media, SLICE, options));
        let (store, recovery) = opened.expect("the slice can be opened");
        assert!(recovery.damage.is_empty(), "a crash never looks like damage: {:?}", recovery.damage);
        let mut executor = Executor::default();
        let running = store.clone();
        executor.spawn(async move {
            let _ = running.run_flusher().await;
        });
        let last = recovery.groups.first().map_or(0, |group| group.last_index);
        Self { store, executor, last }
    }

    /// Appends what belongs at the next `count` indexes.
    fn append(&mut self, count: u64) -> Result<(), StoreError> {
        let first = self.store.last_index(GROUP) + 1;
        let entries = (first..first + count).map(|index| put(1, &key(index), &value(index))).collect();
        let appended = self.store.append(GROUP, first, entries).unwrap();
        self.wait(appended)
    }

    fn wait(
        &mut self,
        durable: impl Future<Output = Result<(), StoreError>> + 'static,
    ) -> Result<(), StoreError> {
        self.executor.block_on(durable)
    }

    /// What stands at every index up to `last`.
    fn check(&mut self, last: u64) {
        self.store.apply(GROUP, last).unwrap();
        for index in 1..=last {
            let (store, slot) = (self.store.clone(), Rc::new(RefCell::new(None)));
            let found = slot.clone();
            self.executor.block_on(async move {
                *found.borrow_mut() = store.get(GROUP, key(index).as_bytes()).await.unwrap();
            });
            let found = slot.take().expect("what was acknowledged is there");
            assert_eq!((&found.value[..], found.version), (&value(index)[..], index));
        }
    }
}

fn key(index: u64) -> String {
    format!("key{index}")
}

fn value(index: u64) -> Vec<u8> {
    let length = index * 104_729 % 9000;
    (0..length).map(|at| (at * 7 + index) as u8).collect()
}

/// Put, kill or cut the power, open again, get; whatever the moment, and however often. Fails with "too many chunks are
/// open" if a start leaves open what it finds open.
#[test]
fn what_was_acknowledged_survives_every_sudden_end() {
    for seed in seeds(60) {
        let _replay =
            Replay { seed, suite: "flash", test: "what_was_acknowledged_survives_every_sudden_end" };
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        let device = device(seed);
        let mut acknowledged = 0;
        for life in 0..8 {
            let mut now = open(&device, seed);
            if life == 0 {
                let created = now.store.create_group(GROUP, Bytes::new()).unwrap();
                now.wait(created).unwrap();
            }
            assert!(now.last >= acknowledged, "{} of {acknowledged} are there", now.last);
            now.check(acknowledged);
            let cut = rng.random_bool(0.6);
            if cut {
                device.crash_after(rng.random_range(1..150));
            }
            let mut index = now.last;
            for _ in 0..rng.random_range(1..20) {
                let count = rng.random_range(1..5);
                let entries =
                    (index + 1..=index + count).map(|index| put(1, &key(index), &value(index))).collect();
                let Ok(appended) = now.store.append(GROUP, index + 1, entries) else { break };
                index += count;
                if now.wait(appended).is_err() {
                    break;
                }
                acknowledged = index;
            }
            assert!(cut || acknowledged == index, "nothing fails on sound flash");
            drop(now);
            if cut { device.power_on() } else { device.restart() }
        }
    }
}

/// A store with the group on a new medium with placement handles.
fn placed(media: &SimMedia, options: Options) -> (PlacedMedia<SimMedia>, Life<PlacedMedia<SimMedia>>) {
    block_on(Store::format(media, SLICE)).unwrap();
    let placed = PlacedMedia::over(media.clone());
    let mut life = Life::begin(placed.clone(), options);
    let created = life.store.create_group(GROUP, Bytes::new()).unwrap();
    life.wait(created).unwrap();
    (placed, life)
}

/// With frames of one flush written side by side, or a chunk finished only after its successor began, segments lie in two
/// units each; and nothing is known of a segment of which the engine does not say a lifetime.
#[test]
fn a_segment_is_one_reclaim_unit() {
    for seed in seeds(40) {
        let _replay = Replay { seed, suite: "flash", test: "a_segment_is_one_reclaim_unit" };
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        let sim =
            SimOptions { seed, yields_max: 3, conventional: rng.random_bool(0.5), ..SimOptions::default() };
        let media = SimMedia::new(geometry(120), sim);
        let (placed, mut life) = placed(&media, options_of(seed));
        // Partly filled segments of small flushes, and flushes that span several.
        for _ in 0..25 {
            life.append(rng.random_range(1..8)).unwrap();
        }
        let lives = placed.lives();
        let segments: Vec<_> = lives.iter().filter(|life| life.chunk.0 >= 2).collect();
        assert!(segments.len() > 20, "{}", segments.len());
        for segment in segments {
            assert!(segment.class.is_some(), "nothing was said of {segment:?}");
            assert_eq!(segment.units.len(), 1, "{segment:?}");
            let tenants = lives.iter().filter(|other| !other.units.is_disjoint(&segment.units)).count();
            assert_eq!(tenants, 1, "{segment:?} shares its unit");
        }
    }
}

/// With the finish behind the write, the frame of the failed flush is on the medium.
#[test]
fn a_finish_that_fails_stops_the_store_before_the_next_segment_begins() {
    let media = SimMedia::new(geometry(16), SimOptions::default());
    let (placed, mut life) = placed(&media, options());
    life.append(1).unwrap();
    let writes = media.counters().writes;
    placed.fail_finish();
    // More than what is left of the chunk.
    let entries = (2..4).map(|index| put(1, &key(index), &[7; 12_000])).collect();
    let appended = life.store.append(GROUP, 2, entries).unwrap();
    let stopped = life.wait(appended);
    assert!(matches!(stopped, Err(StoreError::Stopped(_))), "{stopped:?}");
    assert_eq!(placed.counters().writes, writes, "something was written behind the finish that failed");
    assert_eq!(life.store.counters().flushes, 2, "the group's and the first entry's");
    drop(life);
    media.power_on();
    let mut next = Life::begin(media.clone(), options());
    assert_eq!(next.last, 1);
    next.check(1);
    next.append(3).unwrap();
    next.check(4);
}

/// Whichever of finish, reset and first write of the next segment is the last: the segment before it ends early, and that
/// is all.
#[test]
fn power_lost_between_two_segments_loses_nothing() {
    for (seed, conventional) in (0..20).map(|seed| (seed, seed % 2 == 0)) {
        for cut in 1..=3 {
            let sim = SimOptions { seed, conventional, ..SimOptions::default() };
            let media = SimMedia::new(Geometry { max_open: 4, ..geometry(16) }, sim);
            block_on(Store::format(&media, SLICE)).unwrap();
            let mut life = Life::begin(media.clone(), options());
            let created = life.store.create_group(GROUP, Bytes::new()).unwrap();
            life.wait(created).unwrap();
            life.append(1).unwrap();
            let resets = media.counters().resets;
            media.crash_after(cut);
            let appended = life.store.append(GROUP, 2, vec![put(1, "key2", &[7; 15_000])]).unwrap();
            assert!(life.wait(appended).is_err());
            assert!(media.counters().resets - resets <= 1, "one segment was begun");
            drop(life);
            media.power_on();
            let mut next = Life::begin(media.clone(), options());
            // The write that was cut may be there all the same.
            assert!((1..=2).contains(&next.last));
            next.check(1);
            next.append(2).unwrap();
        }
    }
}

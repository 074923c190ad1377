//! The store over flash that the host manages: a device that remembers write pointers and what is open, a volume on it,
//! and lives that end suddenly.

mod harness;

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use harness::{Executor, Replay, SLICE, block_on, options, put, seeds, small_flushes};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use terrane_engine::{GroupId, Store, StoreError};
use terrane_ocssd::{FlashDevice, FlashMedia, FlashOptions, Geometry, Media, Volume, VolumeOptions};

const GROUP: GroupId = GroupId(1);

/// Two units; lines of 64 KiB, two of which may be open beside the metadata.
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
        max_open: 6,
    };
    let options =
        FlashOptions { geometry, seed, protected_buffer: true, yields_max: 2, ..FlashOptions::default() };
    let device = FlashDevice::memory(options).unwrap();
    let volume_options = VolumeOptions { spare_chunks_per_unit: 2, ..VolumeOptions::default() };
    block_on(async {
        let volume = Volume::create(device.slice(0, 1).unwrap(), &volume_options).await.unwrap();
        assert_eq!(volume.geometry().max_open, 2);
        Store::format(&volume, SLICE).await.unwrap();
    });
    device
}

/// A store with its flusher running.
struct Life {
    store: Store<Volume<FlashMedia>>,
    executor: Executor,
    last: u64,
}

impl Life {
    fn open(device: &FlashDevice, seed: u64) -> Self {
        let options = if seed.is_multiple_of(2) { options() } else { small_flushes() };
        let (store, recovery) = block_on(async {
            let volume = Volume::open(device.slice(0, 1).unwrap()).await.unwrap();
            Store::open(volume, SLICE, options).await.expect("the slice can be opened")
        });
        assert!(recovery.damage.is_empty(), "a crash never looks like damage: {:?}", recovery.damage);
        let mut executor = Executor::default();
        let running = store.clone();
        executor.spawn(async move {
            let _ = running.run_flusher().await;
        });
        let last = recovery.groups.first().map_or(0, |group| group.last_index);
        Self { store, executor, last }
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
            let mut now = Life::open(&device, seed);
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

//! Emulated Open-Channel flash, in memory and in a file.

use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use terrane_ocssd::{FlashDevice, FlashMedia, FlashOptions, Geometry};

use crate::contract::{CHUNK_BYTES, CHUNKS, Harness, every_rule};

const SECTOR_BYTES: u32 = 512;

/// Two slices of eight chunks in one, two or eight parallel units; the second is used.
fn options(units: u32, ws_min: u32, mw_cunits: u32) -> FlashOptions {
    let geometry = Geometry {
        groups: 2,
        parallel_units: units,
        chunks: CHUNKS / units,
        chunk_sectors: (CHUNK_BYTES / u64::from(SECTOR_BYTES)) as u32,
        sector_bytes: SECTOR_BYTES,
        ws_min,
        ws_opt: 2 * ws_min,
        mw_cunits,
        max_open: 0,
    };
    FlashOptions { geometry, ..FlashOptions::default() }
}

fn slice(device: &FlashDevice) -> FlashMedia {
    device.slice(1, 2).unwrap()
}

struct InMemory(FlashOptions);

impl Harness for InMemory {
    type Media = FlashMedia;

    fn create(&self) -> FlashMedia {
        slice(&FlashDevice::memory(self.0.clone()).unwrap())
    }

    fn reopen(&self, media: FlashMedia) -> FlashMedia {
        media.restart();
        media
    }

    fn remembers_write_pointers(&self) -> bool {
        true
    }

    fn finish_pads(&self) -> bool {
        true
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
                return value;
            }
        }
    }
}

/// In the build's own temporary folder: a system's `/tmp` may be memory, without direct I/O.
struct InFile {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl InFile {
    fn with(options: FlashOptions) -> Self {
        // Direct I/O wants whole blocks of the file system.
        let geometry =
            Geometry { sector_bytes: 4096, chunk_sectors: 16 * options.geometry.ws_min, ..options.geometry };
        let options = FlashOptions { geometry, ..options };
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = folder.path().join("node.flash");
        FlashDevice::create_file(&path, &options, &mut |_, _| {}).unwrap();
        Self { _folder: folder, path }
    }
}

impl Harness for InFile {
    type Media = FlashMedia;

    fn create(&self) -> FlashMedia {
        slice(&FlashDevice::open_file(&self.path).unwrap())
    }

    fn reopen(&self, media: FlashMedia) -> FlashMedia {
        drop(media);
        self.create()
    }

    fn remembers_write_pointers(&self) -> bool {
        true
    }

    fn finish_pads(&self) -> bool {
        true
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().build().unwrap();
        runtime.block_on(future)
    }
}

#[test]
fn flash_in_one_unit() {
    every_rule(&InMemory(options(1, 1, 0)));
}

#[test]
fn flash_out_of_order() {
    for seed in 0..20 {
        every_rule(&InMemory(FlashOptions { seed, yields_max: 5, ..options(2, 1, 0) }));
    }
}

#[test]
fn flash_with_large_smallest_write() {
    every_rule(&InMemory(FlashOptions { yields_max: 3, ..options(2, 4, 0) }));
}

#[test]
fn flash_that_hides_what_it_buffers() {
    for protected_buffer in [false, true] {
        for seed in 0..10 {
            every_rule(&InMemory(FlashOptions {
                seed,
                yields_max: 3,
                protected_buffer,
                ..options(8, 4, 16)
            }));
        }
    }
}

#[test]
fn flash_that_resets_only_closed_chunks() {
    every_rule(&InMemory(FlashOptions { reset_free: false, reset_open: false, ..options(2, 4, 8) }));
}

#[test]
fn flash_file() {
    every_rule(&InFile::with(options(2, 1, 0)));
}

#[test]
fn flash_file_that_hides_what_it_buffers() {
    every_rule(&InFile::with(FlashOptions { yields_max: 3, protected_buffer: true, ..options(2, 4, 16) }));
}

//! A conventional block device, formatted as a file would be.

use std::future::Future;
use std::path::PathBuf;

use terrane_ocssd::{FileDevice, FileMedia, FormatError, FormatOptions, format};

use crate::contract::{CHUNK_BYTES, CHUNKS, Harness, every_rule};
use crate::hardware::{device, number, run};

struct Conventional {
    path: PathBuf,
}

fn options(size_bytes: u64) -> FormatOptions {
    FormatOptions {
        cluster: 1,
        node: 1,
        shards: 2,
        size_bytes,
        chunk_bytes: Some(CHUNK_BYTES),
        sector_bytes: None,
        force: true,
    }
}

impl Conventional {
    fn open(&self) -> FileMedia {
        FileDevice::open(&self.path).unwrap().slice(1).unwrap()
    }
}

impl Harness for Conventional {
    type Media = FileMedia;

    fn create(&self) -> FileMedia {
        let size_bytes = (1 << 20) + 2 * u64::from(CHUNKS) * CHUNK_BYTES;
        format(&self.path, &options(size_bytes), &mut |_, _| {}).unwrap();
        self.open()
    }

    fn reopen(&self, media: FileMedia) -> FileMedia {
        drop(media);
        self.open()
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        run(future)
    }
}

#[test]
fn conventional_block_device() {
    if let Some(path) = device("TERRANE_CONV_BLOCK") {
        every_rule(&Conventional { path });
    }
}

/// A format writes every sector once, so a device that cannot be written is found before anything is trusted to it.
#[test]
fn a_device_with_a_sector_that_cannot_be_written_is_not_formatted() {
    let (Some(path), Some(_)) = (device("TERRANE_BAD_CONV_BLOCK"), number("TERRANE_BAD_WRITE_SECTOR")) else {
        return;
    };
    let refused = format(&path, &options(0), &mut |_, _| {}).unwrap_err();
    assert!(matches!(refused, FormatError::Io { step: "write", .. }), "{refused}");
    assert!(FileDevice::open(&path).is_err());
}

//! A conventional block device, formatted as a file would be.

use std::future::Future;
use std::path::PathBuf;

use terrane_ocssd::{FileDevice, FileMedia, FormatError, FormatOptions, Media, format};

use crate::contract::{CHUNK_BYTES, CHUNKS, Harness, Probe, every_rule};
use crate::hardware::{device, number, run};

/// Bytes of a sector of the namespaces with media errors.
const SECTOR_BYTES: u64 = 4096;

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

/// The host reads around a bad sector as around a bad checksum, and its neighbours are good.
#[test]
fn a_sector_that_cannot_be_read_is_bad_content() {
    let (Some(path), Some(bad)) = (device("TERRANE_BAD_CONV_BLOCK"), number("TERRANE_BAD_SECTOR")) else {
        return;
    };
    let chunk_bytes = 1 << 20;
    // No further than the chunk with the bad sector: behind it one cannot be written.
    let chunks = u64::from(bad) * SECTOR_BYTES / chunk_bytes;
    let options =
        FormatOptions { shards: 1, chunk_bytes: Some(chunk_bytes), ..options((1 + chunks) * chunk_bytes) };
    format(&path, &options, &mut |_, _| {}).unwrap();
    let probe = Probe::of(FileDevice::open(&path).unwrap().slice(0).unwrap());
    assert_eq!(u64::from(probe.media.geometry().sector_bytes), SECTOR_BYTES);
    let sector = (u64::from(bad) % (chunk_bytes / SECTOR_BYTES)) as u32;
    let chunk = chunks as u32 - 1;
    run(async {
        probe.reset(chunk).await;
        probe.write(chunk, 0, 3, probe.chunk_writes as usize).await.unwrap();
        assert!(probe.read(chunk, sector, 1).await.unwrap_err().is_bad_content());
        probe.expect(chunk, sector + 1, 3_u8.wrapping_add((sector + 1) as u8), 7).await;
    });
}

//! A device file through io_uring and direct I/O.

use std::future::Future;
use std::path::{Path, PathBuf};

use terrane_ocssd::{FileDevice, FileMedia, FileOptions, FormatOptions, format};

use crate::contract::{CHUNK_BYTES, CHUNKS, Harness, every_rule};

/// A device file in the build's own temporary folder: a system's `/tmp` may be memory, without direct I/O.
struct DeviceFile {
    _folder: tempfile::TempDir,
    path: PathBuf,
    options: FileOptions,
}

impl DeviceFile {
    fn with(options: FileOptions, sector_bytes: Option<u32>) -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = folder.path().join("node.terrane");
        let format_options = FormatOptions {
            cluster: 1,
            node: 1,
            shards: 2,
            size_bytes: (1 << 20) + 2 * u64::from(CHUNKS) * CHUNK_BYTES,
            chunk_bytes: Some(CHUNK_BYTES),
            sector_bytes,
            force: false,
        };
        format(&path, &format_options, &mut |_, _| {}).unwrap();
        Self { _folder: folder, path, options }
    }

    fn open(path: &Path, options: FileOptions) -> FileMedia {
        FileDevice::open_with(path, options).unwrap().slice(1).unwrap()
    }
}

impl Harness for DeviceFile {
    type Media = FileMedia;

    fn create(&self) -> FileMedia {
        Self::open(&self.path, self.options)
    }

    fn reopen(&self, media: FileMedia) -> FileMedia {
        drop(media);
        Self::open(&self.path, self.options)
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().build().unwrap();
        runtime.block_on(future)
    }
}

#[test]
fn file_in_the_sectors_of_the_device() {
    every_rule(&DeviceFile::with(FileOptions::default(), None));
}

#[test]
fn file_in_sectors_of_4096_bytes() {
    every_rule(&DeviceFile::with(FileOptions::default(), Some(4096)));
}

#[test]
fn file_without_syncing() {
    every_rule(&DeviceFile::with(FileOptions { nosync: true }, None));
}

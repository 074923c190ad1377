//! Devices that are there only where the environment names them: on real drives, or in the QEMU guest
//! (`ocssd/qemu/run --help` says what each variable names). **Everything on them is destroyed.**

use std::future::Future;
use std::path::PathBuf;

use terrane_ocssd::{ChunkId, Media};

use crate::contract::Harness;

/// The device that a variable names. Without it the caller's test passes, and says why.
pub(crate) fn device(variable: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        skipped(variable);
    }
    path
}

/// A number that a variable gives.
pub(crate) fn number(variable: &str) -> Option<u32> {
    let text = std::env::var(variable).ok();
    if text.is_none() {
        skipped(variable);
    }
    text.map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

#[expect(clippy::print_stdout, reason = "a test that did nothing says so")]
fn skipped(variable: &str) {
    println!("skipped: {variable} is not set");
}

/// Which half of a test that spans a hard reset of the machine this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Before the reset.
    Write,
    /// After it.
    Verify,
}

/// `None`: an ordinary run, in which such a test does nothing.
pub(crate) fn phase() -> Option<Phase> {
    match std::env::var("TERRANE_PHASE").ok()?.as_str() {
        "write" => Some(Phase::Write),
        "verify" => Some(Phase::Verify),
        other => panic!("TERRANE_PHASE is {other}, neither write nor verify"),
    }
}

/// In a runtime of its own.
pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().build().unwrap();
    runtime.block_on(future)
}

/// A kind of device, as the contract wants it.
pub(crate) trait Device {
    type Media: Media;

    /// Opens the device, and all of it as one slice.
    fn open(&self) -> Self::Media;

    fn remembers_write_pointers(&self) -> bool;
}

impl<D: Device> Harness for D {
    type Media = D::Media;

    fn create(&self) -> D::Media {
        let media = self.open();
        run(async {
            for chunk in 0..media.geometry().chunk_count() {
                media.reset(ChunkId(chunk)).await.unwrap();
            }
        });
        media
    }

    fn reopen(&self, media: D::Media) -> D::Media {
        drop(media);
        self.open()
    }

    fn remembers_write_pointers(&self) -> bool {
        Device::remembers_write_pointers(self)
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        run(future)
    }
}
